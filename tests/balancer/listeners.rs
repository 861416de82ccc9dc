//! Where clients connect, and which address counts as theirs. HAProxy is the load balancer in front of Evenkeel.

use std::net::{IpAddr, SocketAddr};

use tempfile::TempDir;
use tests::haproxy::Haproxy;
use tests::openssl::{Authority, Kind, handshake};
use tests::{Balancer, Config, Origin, Port, Request, Wire, eventually, found_eventually};

const FROM_HERE: &str = "proxy_protocol = { from = [\"127.0.0.1/32\"] }";
const REQUEST: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const FAILURES: &str = "evenkeel_proxy_protocol_failures_total";

/// An address that is not [`FROM_HERE`].
const ELSEWHERE: &str = "127.0.0.9";

fn elsewhere() -> IpAddr {
    ELSEWHERE.parse().expect("an address")
}

/// A header of version 2 for 192.0.2.7, with this many bytes after the address.
fn v2(more: u16) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
    header.extend((12 + more).to_be_bytes());
    header.extend([192, 0, 2, 7, 10, 0, 0, 1, 0xdc, 4, 1, 0xbb]);
    header.extend(vec![4; more.into()]);
    header
}

fn told_client(origin: &Origin) -> String {
    origin.last_request().field("x-forwarded-for").unwrap_or_default().to_owned()
}

#[tokio::test]
async fn proxy_headers_of_haproxy_are_read_in_both_versions_and_before_tls() {
    let a = Origin::start("a").await;
    let (folder, authority) = (TempDir::new().expect("a temporary directory"), Authority::new().await);
    let path = |name: &str| folder.path().join(name);
    authority.issue(&path("a.pem"), &path("a.key"), Kind::Ecdsa, &["localhost"], 20).await;
    let plain = Balancer::start(Config::of([&a]).listener(FROM_HERE)).await;
    let tls = format!("{FROM_HERE}\ntls = {{ certificates = \"{}\" }}", folder.path().display());
    let tls = Balancer::start(Config::of([&a]).listener(&tls)).await;
    for server in [
        format!("{} send-proxy", plain.address()),
        format!("{} send-proxy-v2", plain.address()),
        format!("{} send-proxy-v2 proxy-v2-options unique-id,crc32c", plain.address()),
        format!("{} send-proxy ssl verify none", tls.address()),
        format!("{} send-proxy-v2 ssl verify none", tls.address()),
        format!("{} send-proxy-v2 ssl verify none alpn h2", tls.address()),
    ] {
        let haproxy = Haproxy::start(&server).await;
        let mut client = Wire::connect_from(elsewhere(), haproxy.address()).await;
        assert_eq!(client.exchange(&Request::get("/")).await.status, 200, "{server}");
        assert_eq!(told_client(&a), ELSEWHERE, "{server}");
    }
}

#[tokio::test]
async fn the_address_in_a_proxy_header_is_the_peer_however_it_is_split() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).listener(FROM_HERE)).await;
    let v1 = b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n".to_vec();
    let v6 = b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n".to_vec();
    let unknown = b"PROXY UNKNOWN\r\n".to_vec();
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec();
    for (header, client) in [
        (v1, "192.0.2.7"),
        (v6, "2001:db8::7"),
        (unknown, "127.0.0.1"),
        (v2(0), "192.0.2.7"),
        (v2(300), "192.0.2.7"),
        (local, "127.0.0.1"),
    ] {
        let mut wire = balancer.connect().await;
        wire.send([&header[..], REQUEST.as_bytes(), REQUEST.as_bytes()].concat()).await;
        assert_eq!((wire.reply().await.status, wire.reply().await.status), (200, 200), "both requests are there");
        assert_eq!(told_client(&a), client);
        let mut wire = balancer.connect().await;
        for byte in header {
            wire.send([byte]).await;
        }
        assert_eq!(wire.exchange(&Request::get("/")).await.status, 200);
        assert_eq!(told_client(&a), client);
    }
    // A large header arrives in several reads.
    let mut wire = balancer.connect().await;
    wire.send([&v2(4096)[..], REQUEST.as_bytes()].concat()).await;
    assert_eq!((wire.reply().await.status, told_client(&a)), (200, "192.0.2.7".to_owned()));
}

#[tokio::test]
async fn trusted_proxies_are_matched_by_the_address_in_the_proxy_header() {
    let a = Origin::start("a").await;
    let config =
        |trusted: &str| Config::of([&a]).listener(FROM_HERE).server(&format!("trusted_proxies = [\"{trusted}\"]"));
    let mut balancer = Balancer::prepare(&config("192.0.2.7"));
    balancer.launch();
    balancer.ready().await;
    let forwarded_for = async |balancer: &Balancer| {
        let mut wire = balancer.connect().await;
        wire.send("PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n").await;
        assert_eq!(wire.exchange(&Request::get("/").with("X-Forwarded-For", "203.0.113.1")).await.status, 200);
        told_client(&a)
    };
    assert_eq!(forwarded_for(&balancer).await, "203.0.113.1, 192.0.2.7");
    // The sender of the header does not count as the request's peer.
    balancer.configure(&config("127.0.0.1"));
    assert_eq!(balancer.admin("POST", "/admin/reload", None).await.status, 200);
    assert_eq!(forwarded_for(&balancer).await, "192.0.2.7");
}

#[tokio::test]
async fn missing_and_malformed_proxy_headers_are_disconnected_counted_and_logged() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).listener(FROM_HERE)).await;
    let too_long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(107));
    for (bytes, reason) in [
        (REQUEST.as_bytes(), "missing"),
        (b"\r\n", "closed"),
        (b"PROXY TCP4 192.0.2.7 10.0.0.1 56324\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "malformed"),
        (too_long.as_bytes(), "malformed"),
        (&v2(5000), "too-large"),
    ] {
        let before = balancer.metrics().await.sum(FAILURES, &[("reason", reason)]);
        let mut wire = balancer.connect().await;
        wire.send(bytes).await;
        if reason == "closed" {
            wire.close_sending().await;
        }
        assert!(wire.is_closed().await, "{reason}: nobody is answered");
        let after = balancer.metrics().await.sum(FAILURES, &[("reason", reason)]);
        assert_eq!(after - before, 1.0, "{reason}");
    }
    assert_eq!(a.heads(), 0);
    balancer.logs(&["proxy_protocol demands", "127.0.0.1:", "begins with something else"]).await;
    // The same failure again is only counted.
    let mut again = balancer.connect().await;
    again.send(REQUEST).await;
    assert!(again.is_closed().await);
    assert_eq!(balancer.log().matches("it begins with something else").count(), 1, "{}", balancer.log());
}

#[tokio::test]
async fn a_missing_proxy_header_times_out() {
    let a = Origin::start("a").await;
    let balancer =
        Balancer::start(Config::of([&a]).listener(&format!("{FROM_HERE}\nheader_timeout = \"200ms\""))).await;
    let (mut silent, mut half) = (balancer.connect().await, balancer.connect().await);
    half.send("PROXY TCP4 192.0.2.7").await;
    assert!(silent.is_closed().await && half.is_closed().await);
    assert_eq!(balancer.metrics().await.sum(FAILURES, &[("reason", "timeout")]), 2.0);
}

#[tokio::test]
async fn untrusted_peers_cannot_send_a_proxy_header() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).listener(FROM_HERE)).await;
    let mut own = Wire::connect_from(elsewhere(), balancer.address()).await;
    assert_eq!(own.exchange(&Request::get("/")).await.status, 200);
    assert_eq!(told_client(&a), ELSEWHERE);
    for header in [b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n".to_vec(), v2(0)] {
        let mut other = Wire::connect_from(elsewhere(), balancer.address()).await;
        other.send([&header[..], REQUEST.as_bytes()].concat()).await;
        assert_eq!(other.reply().await.status, 400, "the header is no request");
    }
    assert_eq!(a.heads(), 1);
}

#[tokio::test]
async fn a_reload_changes_which_peers_must_send_a_proxy_header() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    assert_eq!(balancer.get("/").await.status, 200);
    balancer.configure(&Config::of([&a]).listener(FROM_HERE));
    assert_eq!(balancer.admin("POST", "/admin/reload", None).await.status, 200);
    eventually("a header is demanded", async || {
        let mut wire = balancer.connect().await;
        wire.send(REQUEST).await;
        wire.is_closed().await
    })
    .await;
    let mut wire = balancer.connect().await;
    wire.send(["PROXY UNKNOWN\r\n", REQUEST].concat()).await;
    assert_eq!(wire.reply().await.status, 200);
}

/// The text of a configuration with these addresses for its listener.
fn with_addresses(config: &Config, balancer: &Balancer, addresses: &[SocketAddr]) -> String {
    let one = format!("address = \"{}\"", balancer.address());
    let several: Vec<_> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
    let text = config.text(balancer.address(), balancer.admin_address());
    text.replacen(&one, &format!("addresses = [{}]", several.join(", ")), 1)
}

#[tokio::test]
async fn a_reload_changes_single_addresses_of_a_listener() {
    let a = Origin::start("a").await;
    let sites = "[[site]]\nhosts = [\"\"]\nlisteners = [\"web\"]\npool = \"app\"\n";
    let config = Config::of([&a]).listener("name = \"web\"").sites(sites);
    let mut balancer = Balancer::prepare(&config);
    // Both families at the same port, as with 0.0.0.0 and [::].
    let ports = Port::reserve_at(["127.0.0.1", "::1", "127.0.0.9"]);
    let [first, six, last] = [&ports[0], &ports[1], &ports[2]].map(Port::address);
    balancer.write(&with_addresses(&config, &balancer, &[first, six]));
    balancer.launch();
    balancer.ready().await;
    let mut kept = Wire::connect(six).await;
    for (address, client) in [(first, "127.0.0.1"), (six, "::1")] {
        assert_eq!(Wire::connect(address).await.exchange(&Request::get("/")).await.status, 200, "{address}");
        assert_eq!(told_client(&a), client);
    }
    assert_eq!(kept.exchange(&Request::get("/")).await.status, 200);
    balancer.write(&with_addresses(&config, &balancer, &[six, last]));
    assert_eq!(balancer.change("POST", "/admin/reload", None).await["warnings"], serde_json::json!([]));
    eventually("the first address is closed", async || Wire::try_connect(first).await.is_err()).await;
    assert_eq!(Wire::connect(last).await.exchange(&Request::get("/")).await.status, 200);
    assert_eq!(Wire::connect(six).await.exchange(&Request::get("/")).await.status, 200);
    assert_eq!(kept.exchange(&Request::get("/")).await.status, 200, "the connection has stayed");
}

#[tokio::test]
async fn a_listener_with_an_unavailable_address_changes_nothing() {
    let a = Origin::start("a").await;
    let config = Config::of([&a]);
    let mut balancer = Balancer::prepare(&config);
    let [first, taken, free] = Port::reserve_at(["127.0.0.1", "127.0.0.8", "127.0.0.9"]);
    let somebody = taken.listen();
    balancer.write(&with_addresses(&config, &balancer, &[first.address()]));
    balancer.launch();
    balancer.ready().await;
    let mut kept = Wire::connect(first.address()).await;
    assert_eq!(kept.exchange(&Request::get("/")).await.status, 200);
    balancer.write(&with_addresses(&config, &balancer, &[free.address(), taken.address()]));
    for path in ["/admin/reload?dry_run=true", "/admin/reload"] {
        let refused = balancer.admin("POST", path, None).await;
        assert_eq!(refused.status, 400, "{path}: {}", refused.text());
        let text = refused.text();
        assert!(text.contains(&format!("cannot listen on {}", taken.address())), "{path}: {text}");
        assert!(!text.contains(&free.address().to_string()), "{path}: {text}");
    }
    assert!(Wire::try_connect(free.address()).await.is_err(), "the address that could be had is not open either");
    assert_eq!(Wire::connect(first.address()).await.exchange(&Request::get("/")).await.status, 200);
    assert_eq!(kept.exchange(&Request::get("/")).await.status, 200, "the connection has stayed");
    drop(somebody);
    balancer.change("POST", "/admin/reload", None).await;
    for address in [free.address(), taken.address()] {
        assert_eq!(Wire::connect(address).await.exchange(&Request::get("/")).await.status, 200, "{address}");
    }
}

#[tokio::test]
async fn a_listener_can_have_all_addresses_of_both_families_on_one_port() {
    let a = Origin::start("a").await;
    let config = Config::of([&a]);
    let mut balancer = Balancer::prepare(&config);
    // A port that is unused for both families.
    let ports = Port::reserve_at(["127.0.0.1", "::1"]);
    let [four, six] = ports.each_ref().map(Port::address);
    let port = four.port();
    let everywhere = ["0.0.0.0", "::"].map(|ip| SocketAddr::new(ip.parse().expect("an address"), port));
    balancer.write(&with_addresses(&config, &balancer, &everywhere));
    balancer.launch();
    balancer.ready().await;
    let mut kept = Wire::connect(four).await;
    for (address, client) in [(four, "127.0.0.1"), (six, "::1")] {
        assert_eq!(Wire::connect(address).await.exchange(&Request::get("/")).await.status, 200, "{address}");
        assert_eq!(told_client(&a), client);
    }
    assert_eq!(kept.exchange(&Request::get("/")).await.status, 200);
    // One address becomes narrower: its sockets continue, the other's are not touched.
    balancer.write(&with_addresses(&config, &balancer, &[everywhere[0], six]));
    balancer.change("POST", "/admin/reload", None).await;
    assert_eq!(kept.exchange(&Request::get("/")).await.status, 200, "the connection has stayed");
    assert_eq!(Wire::connect(six).await.exchange(&Request::get("/")).await.status, 200);
}

#[tokio::test]
async fn addresses_of_a_listener_share_its_certificates() {
    let a = Origin::start("a").await;
    let (folder, authority) = (TempDir::new().expect("a temporary directory"), Authority::new().await);
    let path = |name: &str| folder.path().join(name);
    let issue = async || authority.issue(&path("a.pem"), &path("a.key"), Kind::Ecdsa, &["shop.example"], 20).await;
    issue().await;
    let tls = format!("tls = {{ certificates = \"{}\", watch_interval = \"50ms\" }}", folder.path().display());
    let config = Config::of([&a]).listener(&format!("name = \"web\"\n{tls}"));
    let mut balancer = Balancer::prepare(&config);
    let ports = Port::reserve_at(["127.0.0.1", "127.0.0.8"]);
    let addresses = ports.each_ref().map(Port::address);
    balancer.write(&with_addresses(&config, &balancer, &addresses[..1]));
    balancer.launch();
    balancer.ready().await;
    balancer.write(&with_addresses(&config, &balancer, &addresses));
    let changes = balancer.change("POST", "/admin/reload", None).await["changes"].to_string();
    assert!(changes.contains("listener web: addresses"), "{changes}");
    assert!(!changes.contains("shop.example"), "no certificate is other: {changes}");
    let shown = async |address: SocketAddr| {
        let client = handshake(address, "shop.example", &[]).await;
        client.text.split_once("BEGIN CERTIFICATE").expect("a certificate").1.to_owned()
    };
    let certificate =
        async |address| shown(address).await.split_once("END CERTIFICATE").map(|(text, _)| text.to_owned());
    let before = certificate(addresses[0]).await;
    assert_eq!(certificate(addresses[1]).await, before);
    let pools = balancer.change("GET", "/admin/pools", None).await;
    assert_eq!(pools["certificates"].as_array().map(Vec::len), Some(1), "{pools:#}");
    issue().await;
    for address in addresses {
        eventually("the renewed one is there", async || certificate(address).await != before).await;
    }
    balancer.logs(&["a file has changed: listener ", " for shop.example"]).await;
    assert_eq!(balancer.log().matches("a file has changed").count(), 1, "{}", balancer.log());
}

#[tokio::test]
async fn connections_are_counted_under_the_current_name_of_the_listener() {
    let a = Origin::start("a").await;
    let config = |name: &str| Config::of([&a]).listener(&format!("name = \"{name}\"\n{FROM_HERE}"));
    let balancer = Balancer::start(config("before")).await;
    let fail = async || {
        let mut wire = balancer.connect().await;
        wire.send(REQUEST).await;
        assert!(wire.is_closed().await);
    };
    let count = async |name: &str| balancer.metrics().await.sum(FAILURES, &[("listener", name), ("reason", "missing")]);
    fail().await;
    assert_eq!(count("before").await, 1.0);
    let mut kept = balancer.connect().await;
    kept.send(["PROXY UNKNOWN\r\n", REQUEST].concat()).await;
    assert_eq!(kept.reply().await.status, 200);
    balancer.configure(&config("after"));
    balancer.change("POST", "/admin/reload", None).await;
    eventually("the new name counts", async || {
        fail().await;
        count("after").await >= 1.0
    })
    .await;
    assert!(!balancer.admin("GET", "/metrics", None).await.text().contains("listener=\"before\""));
    assert_eq!(kept.exchange(&Request::get("/")).await.status, 200, "the connection has stayed");
}

// Each failure, ten a second for each socket, wrote a warning.
#[tokio::test]
async fn clients_wait_while_files_are_lacking_which_is_logged_once_and_counted() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::start(Config::of([&a]).section("[log]\nlevel = \"debug\"")).await;
    let before = balancer.limit_open_files(3);
    let mut client = balancer.connect().await;
    client.send(REQUEST).await;
    let again = "another connection could not be accepted: Too many open files";
    eventually("accepting fails again", async || balancer.log().matches(again).count() >= 3).await;
    balancer.limit_open_files(before);
    assert_eq!(client.reply().await.status, 200);
    let metrics = balancer.metrics().await;
    let failures = |reason| metrics.sum("evenkeel_accept_failures_total", &[("reason", reason)]);
    assert!(failures("process-fd-limit") >= 3.0, "{metrics:?}");
    assert_eq!(failures("system-fd-limit") + failures("memory") + failures("other"), 0.0, "{metrics:?}");
    let log = balancer.log();
    assert_eq!(log.matches("WARN a connection could not be accepted").count(), 1, "{log}");
    balancer.logs(&["failure=\"process-fd-limit\"", "raise the limit on open files"]).await;
}

// With 16 files no thread for traffic could start, and the process said that it was ready.
#[tokio::test]
async fn with_any_number_of_files_the_start_is_refused_or_requests_are_served() {
    let a = Origin::start("a").await;
    let config = Config::of([&a]).server("threads = 8");
    let (mut refused, mut served) = (0, 0);
    for files in [8, 15, 16, 24, 40, 48, 56, 64, 128] {
        let mut balancer = Balancer::prepare(&config);
        balancer.most_files = Some(files);
        balancer.launch();
        let ended = found_eventually("the start is refused, or the process is ready", async || {
            if let Some(status) = balancer.process().ended() {
                return Some(Some(status));
            }
            let reply = balancer.try_admin("GET", "/readyz", None).await?;
            (reply.status == 200).then_some(None)
        })
        .await;
        match ended {
            Some(status) => {
                assert_eq!(status.code(), Some(1), "{files} files: {}", balancer.log());
                let log = balancer.log();
                assert!(log.contains("error: ") && log.contains("open files"), "{files} files: {log}");
                refused += 1;
            }
            None => {
                assert_eq!(balancer.get("/").await.origin(), "a", "{files} files");
                served += 1;
            }
        }
    }
    assert!(refused >= 2 && served >= 1, "{refused} refused, {served} served");
}
