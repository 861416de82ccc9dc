//! TLS towards clients: those that begin it and send nothing more, those that speak another protocol, and those with
//! client certificates. The clients are `openssl s_client`; results are compared with nginx where it decides what is
//! correct.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use tempfile::TempDir;
use tests::http2::{self, Http2, connect_for, frame, kind, literals, next_frame, request};
use tests::nginx::Nginx;
use tests::openssl::{Authority, Kind, handshake, openssl_with};
use tests::wire::Wire;
use tests::{Balancer, Config, Origin, Port, Request, Step, eventually, within};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConnection, StreamOwned};

/// A server's certificate and client certificates, all of one authority.
struct Shop {
    folder: TempDir,
    authority: Authority,
}

impl Shop {
    async fn new() -> Self {
        let shop = Self { folder: TempDir::new().expect("a temporary directory"), authority: Authority::new().await };
        shop.issue("server", "/CN=server", &["shop.example"]).await;
        shop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    async fn issue(&self, file: &str, subject: &str, names: &[&str]) {
        let (certificate, key) = (self.path(&format!("{file}.pem")), self.path(&format!("{file}.key")));
        self.authority.issue_as(&certificate, &key, Kind::Ecdsa, subject, names, 20).await;
    }

    /// The listener's `tls` with these additional settings.
    fn tls(&self, more: &str) -> String {
        let (certificate, key) = (self.text("server.pem"), self.text("server.key"));
        let separator = if more.is_empty() { "" } else { ", " };
        format!("tls = {{ certificate = \"{certificate}\", key = \"{key}\"{separator}{more} }}")
    }

    fn clients(&self, mode: &str) -> String {
        let ca = self.authority.certificate();
        self.tls(&format!("client_certificates = {{ mode = \"{mode}\", ca = \"{}\" }}", ca.display()))
    }

    /// The answer shown by `s_client` for a request with these arguments.
    async fn ask(&self, address: std::net::SocketAddr, fields: &str, arguments: &[&str]) -> String {
        let address = address.to_string();
        let all = ["s_client", "-connect", &address, "-servername", "shop.example", "-ign_eof"];
        let request = format!("GET / HTTP/1.1\r\nHost: shop.example\r\n{fields}Connection: close\r\n\r\n");
        openssl_with(&[&all, arguments].concat(), &request).await.text
    }
}

#[tokio::test]
async fn plain_http_on_a_tls_port_is_answered_400_as_by_nginx() {
    let (a, shop) = (Origin::start("a").await, Shop::new().await);
    let config = Config::of([&a]).listener(&shop.tls("")).section("[access_log]\nfile = \"access.log\"");
    let balancer = Balancer::start(config).await;
    let server = format!(
        "server {{ listen {{listen}} ssl; ssl_certificate {}; ssl_certificate_key {}; return 200; }}",
        shop.text("server.pem"),
        shop.text("server.key")
    );
    let nginx = Nginx::start(&server).await;
    for (address, words) in [
        (balancer.address(), "plain HTTP was sent to a port where HTTPS is spoken"),
        (nginx.address(), "The plain HTTP request was sent to HTTPS port"),
    ] {
        let mut wire = Wire::connect(address).await;
        let reply = wire.exchange(&Request::get("/").with("Host", "shop.example")).await;
        assert_eq!(reply.status, 400);
        assert!(reply.text().contains(words), "{}", reply.text());
        assert!(wire.is_closed().await);
    }
    for metric in ["evenkeel_refusals_total", "evenkeel_tls_handshake_failures_total"] {
        is_counted(&balancer, metric, ("reason", "plain-http"), 1).await;
    }
    let lines = balancer.lines("access.log", 1).await;
    assert!(lines[0].contains("\"refusal\":\"plain-http\"") && lines[0].contains("\"status\":400"), "{lines:?}");
    assert!(a.requests().is_empty(), "nothing comes through");
}

#[tokio::test]
async fn silent_tls_clients_do_not_delay_plain_ones() {
    let (a, shop) = (Origin::start("a").await, Shop::new().await);
    let tls = Port::reserve();
    let section = format!("[[listener]]\naddress = \"{}\"\n{}\n", tls.address(), shop.tls(""));
    let config = Config::of([&a]).server("threads = 1\nmax_connections = 8\nmax_handshakes = 3").section(&section);
    let balancer = Balancer::start(config).await;
    // More than the limits for handshakes and for clients.
    let mut silent = Vec::new();
    for _ in 0..12 {
        silent.push(Wire::connect(tls.address()).await);
    }
    balancer.logs(&["no more clients can begin TLS at once"]).await;
    for _ in 0..50 {
        assert_eq!(balancer.get("/").await.status, 200);
    }
    // TLS clients do not wait for ever either: slow handshakes end.
    let mut client = Http2::connect(tls.address()).await;
    assert_eq!(client.get("/").await.status, 200);
    let metrics = balancer.metrics().await;
    assert!(metrics.sum("evenkeel_tls_handshake_failures_total", &[("reason", "shed")]) >= 1.0);
    // A client whose handshake is over does not count as a handshake.
    let more = [Http2::connect(tls.address()).await, Http2::connect(tls.address()).await];
    drop(silent);
    drop(more);
    assert_eq!(client.get("/").await.status, 200);
}

/// Waits until a metric has this value, and asserts that it is not more: a client may know its handshake's result
/// first.
async fn is_counted(balancer: &Balancer, metric: &str, label: (&str, &str), expected: u32) {
    let mut counted = 0.0;
    eventually(&format!("{expected} of {metric} {label:?}"), async || {
        counted = balancer.metrics().await.sum(metric, &[label]);
        counted >= f64::from(expected)
    })
    .await;
    assert_eq!(counted, f64::from(expected), "{metric} {label:?}");
}

/// Waits until so many clients are accepted and, over TLS, have finished their handshakes.
async fn are_accepted(balancer: &Balancer, clients: u32, is_tls: bool) {
    let clients = f64::from(clients);
    eventually("all are accepted", async || {
        let metrics = balancer.metrics().await;
        metrics.sum("evenkeel_client_connections", &[]) == clients
            && (!is_tls || metrics.sum("evenkeel_tls_handshakes_total", &[]) == clients)
    })
    .await;
}

#[tokio::test]
async fn failed_handshakes_are_counted_by_reason() {
    let (a, shop) = (Origin::start("a").await, Shop::new().await);
    // Long enough for a client beside a busy loop to say why it leaves.
    let settings = shop.tls("profile = \"modern\", unknown_names = \"refuse\", handshake_timeout = \"2s\"");
    let balancer = Balancer::start(Config::of([&a]).listener(&settings)).await;
    let count = async |reason: &str| {
        let what = format!("a failure for {reason}");
        eventually(&what, async || {
            balancer.metrics().await.sum("evenkeel_tls_handshake_failures_total", &[("reason", reason)]) >= 1.0
        })
        .await;
    };
    handshake(balancer.address(), "shop.example", &["-tls1_2"]).await;
    count("incompatible").await;
    handshake(balancer.address(), "other.example", &[]).await;
    count("unknown-name").await;
    let refusing = ["-verify_return_error", "-CAfile", &shop.text("server.pem")];
    handshake(balancer.address(), "shop.example", &refusing).await;
    count("refused").await;
    drop(Wire::connect(balancer.address()).await);
    count("closed").await;
    let mut wire = Wire::connect(balancer.address()).await;
    wire.send([22, 3, 1, 0, 4, 1, 2, 3, 4]).await;
    let _ = wire.rest().await;
    let silent = Wire::connect(balancer.address()).await;
    count("timeout").await;
    count("malformed").await;
    drop(silent);
    handshake(balancer.address(), "shop.example", &[]).await;
    is_counted(&balancer, "evenkeel_tls_handshakes_total", ("kind", "full"), 1).await;
    // Many in a row are logged once.
    for _ in 0..30 {
        handshake(balancer.address(), "other.example", &[]).await;
    }
    balancer.logs(&["WARN", "TLS handshakes in a row have failed", "unknown-name"]).await;
    assert_eq!(balancer.log().matches("in a row have failed").count(), 1, "{}", balancer.log());
}

const SUBJECT: &str = "/C=DE/O=Shop, Ltd./OU=\"Ops\"/CN=Jos\u{e9}";

#[tokio::test]
async fn client_certificates_are_verified_and_described_as_by_nginx() {
    let (a, shop) = (Origin::start("a").await, Shop::new().await);
    shop.issue("client", SUBJECT, &["client.example"]).await;
    let facts = "$ssl_client_verify|$ssl_client_s_dn|$ssl_client_i_dn|$ssl_client_fingerprint|$ssl_protocol|$ssl_cipher|$ssl_server_name|$ssl_session_reused";
    let site = format!(
        "[[site]]\nhosts = [\"shop.example\"]\nrespond = {{ status = 200, body = \"facts $ssl_client_fingerprint_sha256 {facts}#end\" }}\n"
    );
    let config = Config::of([&a]).listener(&shop.clients("optional")).sites(&site);
    let balancer = Balancer::start(config).await;
    let server = format!(
        "server {{ listen {{listen}} ssl; server_name shop.example; ssl_certificate {}; ssl_certificate_key {}; \
         ssl_protocols TLSv1.2 TLSv1.3; ssl_prefer_server_ciphers off; ssl_verify_client optional; ssl_client_certificate {}; return 200 \"facts x {facts}#end\"; }}",
        shop.text("server.pem"),
        shop.text("server.key"),
        shop.authority.certificate().display(),
    );
    let nginx = Nginx::start(&server).await;
    let own = ["-cert", &shop.text("client.pem"), "-key", &shop.text("client.key")];
    let suite = ["-ciphersuites", "TLS_AES_128_GCM_SHA256"];
    let old = ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"];
    let facts = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("facts ")).unwrap_or_else(|| panic!("{text}"));
        let (line, _) = line.split_once("#end").unwrap_or_else(|| panic!("{line}"));
        let mut words = line.splitn(3, ' ').skip(1);
        (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned())
    };
    for arguments in [[&own[..], &suite].concat(), [&own[..], &old].concat(), suite.to_vec()] {
        let (sha256, ours) = facts(&shop.ask(balancer.address(), "", &arguments).await);
        let (_, theirs) = facts(&shop.ask(nginx.address(), "", &arguments).await);
        let has_certificate = arguments.contains(&"-cert");
        // nginx has a text for missing values; here they are empty.
        assert_eq!(ours, theirs, "{arguments:?}");
        assert_eq!(
            ours.starts_with("SUCCESS|CN=Jos\\C3\\A9,OU=\\\"Ops\\\",O=Shop\\, Ltd.,C=DE|CN=Authority|"),
            has_certificate,
            "{ours}"
        );
        assert_eq!(sha256.len(), if has_certificate { 64 } else { 0 }, "{sha256}");
    }
}

#[tokio::test]
async fn client_certificate_fields_are_sent_to_backends_and_not_taken_from_clients() {
    let (a, shop) = (Origin::start("a").await, Shop::new().await);
    shop.issue("client", "/CN=client", &["client.example"]).await;
    let plain = Port::reserve();
    let section = format!("[[listener]]\naddress = \"{}\"\n", plain.address());
    let config = Config::of([&a]).listener(&shop.clients("optional")).section(&section);
    let balancer = Balancer::start(config).await;
    let lies = [
        ("Client-Cert", ":eA==:"),
        ("Client-Cert-Chain", ":eA==:"),
        ("X-Forwarded-Client-Cert", "Subject=\"CN=root\""),
    ];
    let lies_text: String = lies.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let own = ["-cert", &shop.text("client.pem"), "-key", &shop.text("client.key")];
    shop.ask(balancer.address(), &lies_text, &own).await;
    let seen = a.last_request();
    let forwarded = seen.fields.all("X-Forwarded-Client-Cert");
    let [forwarded] = forwarded.as_slice() else { panic!("{seen:?}") };
    assert!(forwarded.starts_with("Hash=") && forwarded.ends_with(";Subject=\"CN=client\""), "{forwarded}");
    let certificate = std::fs::read_to_string(shop.path("client.pem")).expect("our file");
    let base64: String = certificate.lines().filter(|line| !line.starts_with("-----")).collect();
    assert_eq!(seen.fields.all("Client-Cert"), [format!(":{base64}:")]);
    assert_eq!(seen.fields.get("Client-Cert-Chain"), None);
    let has_none = |seen: &Request| lies.iter().all(|(name, _)| seen.field(name).is_none());
    shop.ask(balancer.address(), &lies_text, &[]).await;
    assert!(has_none(&a.last_request()), "{:?}", a.last_request());
    let lying = lies.iter().fold(Request::get("/plain"), |request, (name, value)| request.with(name, value));
    assert_eq!(Wire::connect(plain.address()).await.exchange(&lying).await.status, 200);
    assert!(has_none(&a.last_request()), "{:?}", a.last_request());
    let mut http2 = Http2::connect(balancer.address()).await;
    let (response, _) = http2.begin(request("GET", "/h2", &lies), true).await;
    tests::http2::reply(response).await.expect("a reply");
    assert_eq!(a.last_request().target, "/h2");
    assert!(has_none(&a.last_request()), "{:?}", a.last_request());
}

#[tokio::test]
async fn required_client_certificates_are_enforced() {
    let (a, shop) = (Origin::start("a").await, Shop::new().await);
    shop.issue("client", "/CN=client", &["client.example"]).await;
    let strange = Authority::new().await;
    strange.issue(&shop.path("strange.pem"), &shop.path("strange.key"), Kind::Ecdsa, &["client.example"], 20).await;
    let balancer = Balancer::start(Config::of([&a]).listener(&shop.clients("required"))).await;
    let pair = |file: &str| {
        ["-cert".to_owned(), shop.text(&format!("{file}.pem")), "-key".to_owned(), shop.text(&format!("{file}.key"))]
    };
    for version in ["-tls1_2", "-tls1_3"] {
        let own = pair("client");
        let own = own.each_ref().map(String::as_str);
        let let_in = shop.ask(balancer.address(), "", &[&own[..], &[version]].concat()).await;
        assert!(let_in.contains("HTTP/1.1 200"), "{let_in}");
        let strange = pair("strange");
        let strange = strange.each_ref().map(String::as_str);
        for arguments in [&[&strange[..], &[version]].concat()[..], &[version]] {
            let answer = shop.ask(balancer.address(), "", arguments).await;
            assert!(!answer.contains("HTTP/1.1") && answer.contains("SSL alert number"), "{answer}");
        }
    }
    for reason in ["no-client-certificate", "client-certificate"] {
        is_counted(&balancer, "evenkeel_tls_handshake_failures_total", ("reason", reason), 2).await;
    }
    assert_eq!(a.requests().len(), 2);
}

#[tokio::test]
async fn a_session_without_a_certificate_is_not_resumed_where_one_is_required() {
    let (a, shop) = (Origin::start("a").await, Shop::new().await);
    let secrets = shop.path("secrets");
    std::fs::write(&secrets, "s".repeat(32)).expect("our folder");
    let ca = shop.authority.certificate();
    let with = |mode: &str| {
        shop.tls(&format!(
            "ticket_file = \"{}\", client_certificates = {{ mode = \"{mode}\", ca = \"{}\" }}",
            secrets.display(),
            ca.display()
        ))
    };
    let open = Balancer::start(Config::of([&a]).listener(&with("optional"))).await;
    let closed = Balancer::start(Config::of([&a]).listener(&with("required"))).await;
    let session = shop.text("session");
    for version in ["-tls1_2", "-tls1_3"] {
        let first = shop.ask(open.address(), "", &[version, "-sess_out", &session]).await;
        assert!(first.contains("HTTP/1.1 200"), "{first}");
        let again = shop.ask(open.address(), "", &[version, "-sess_in", &session]).await;
        assert!(again.contains("Reused, TLSv1") && again.contains("HTTP/1.1 200"), "{again}");
        let refused = shop.ask(closed.address(), "", &[version, "-sess_in", &session]).await;
        assert!(!refused.contains("HTTP/1.1"), "{refused}");
    }
}

#[tokio::test]
async fn a_request_for_a_pinned_site_on_another_sites_connection_is_421() {
    let (a, shop) = (Origin::start("a").await, Shop::new().await);
    shop.issue("pinned", "/CN=pinned", &["pinned.example"]).await;
    let pair = format!("{{ certificate = \"{}\", key = \"{}\" }}", shop.text("pinned.pem"), shop.text("pinned.key"));
    let sites = format!(
        "[[site]]\nhosts = [\"shop.example\", \"other.example\"]\npool = \"app\"\n\
         [[site]]\nhosts = [\"pinned.example\"]\npool = \"app\"\ncertificate = \"{}\"\n",
        shop.text("pinned.pem")
    );
    let config = Config::of([&a]).listener(&shop.tls(&format!("certificates = [{pair}]"))).sites(&sites);
    let balancer = Balancer::start(config).await;
    // The harness's clients request `localhost`, which is no site's host: equivalent to another site.
    let ask = async |name: &str, host: &str| {
        let address = balancer.address().to_string();
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let name = if name.is_empty() { vec!["-noservername"] } else { vec!["-servername", name] };
        let all = [&["s_client", "-connect", &address, "-ign_eof"], &name[..]].concat();
        let text = openssl_with(&all, &request).await.text;
        let line = text.lines().find_map(|line| line.strip_prefix("HTTP/1.1 ")).unwrap_or_else(|| panic!("{text}"));
        line[..3].to_owned()
    };
    for (name, host, status) in [
        ("shop.example", "shop.example", "200"),
        ("shop.example", "other.example", "200"),
        ("shop.example", "pinned.example", "421"),
        ("pinned.example", "pinned.example", "200"),
        ("PINNED.example", "pinned.example:443", "200"),
        // This one is not protected by the certificate.
        ("pinned.example", "shop.example", "200"),
        // A client without a server name has nothing to compare with.
        ("", "pinned.example", "200"),
    ] {
        assert_eq!(ask(name, host).await, status, "{name} {host}");
    }
    let mut http2 = Http2::connect(balancer.address()).await;
    let of = |host: &str| http::Request::get(format!("https://{host}/")).body(()).expect("a request");
    let (response, _) = http2.begin(of("pinned.example"), true).await;
    assert_eq!(tests::http2::reply(response).await.expect("a reply").status, 421);
    let (response, _) = http2.begin(of("shop.example"), true).await;
    assert_eq!(tests::http2::reply(response).await.expect("a reply").status, 200, "the connection stays");
}

#[tokio::test]
async fn a_flood_of_handshakes_does_not_starve_plain_requests() {
    let (a, shop) = (Origin::start("a").await, Shop::new().await);
    let tls = Port::reserve();
    let section = format!("[[listener]]\naddress = \"{}\"\n{}\n", tls.address(), shop.tls(""));
    let balancer = Balancer::start(Config::of([&a]).server("threads = 1").section(&section)).await;
    let address = tls.address();
    let connect = |_| tokio::spawn(async move { connect_for(b"http/1.1", address).await.is_ok() });
    let flood: Vec<_> = (0..200).map(connect).collect();
    for _ in 0..50 {
        assert_eq!(balancer.get("/").await.status, 200);
    }
    for handshake in flood {
        assert!(within("the end of a handshake", handshake).await.expect("no panic"), "nobody is sent away");
    }
}

// As in docs/tls.md.
#[tokio::test]
async fn one_site_of_a_listener_requires_certificates_and_refuses_listed_fingerprints() {
    let (a, shop) = (Origin::start("a").await, Shop::new().await);
    let mut pairs = Vec::new();
    for file in ["sound", "lost"] {
        shop.issue(file, "/CN=client", &["client.example"]).await;
        pairs.push([shop.text(&format!("{file}.pem")), shop.text(&format!("{file}.key"))]);
    }
    let fingerprint = openssl_with(&["x509", "-in", &pairs[1][0], "-noout", "-fingerprint", "-sha256"], "").await;
    let fingerprint = fingerprint.text.split('=').nth(1).expect("a fingerprint").trim().replace(':', "").to_lowercase();
    let sites = format!(
        "[values]\nlost = {{ from = \"$ssl_client_fingerprint_sha256\", cases = {{ \"{fingerprint}\" = \"yes\" }} }}\n\
         [[site]]\nhosts = [\"intern.example\"]\nrespond = {{ status = 403 }}\n\
         [[site.route]]\npath = \"/\"\npool = \"app\"\n\
         when = {{ values = {{ \"$ssl_client_verify\" = \"SUCCESS\", \"$lost\" = {{ not = \"yes\" }} }} }}\n\
         [[site]]\nhosts = [\"\"]\npool = \"app\"\n"
    );
    let config = Config::of([&a]).listener(&shop.clients("optional")).sites(&sites);
    let balancer = Balancer::start(config).await;
    for (host, pair, status) in [
        ("intern.example", None, 403),
        ("intern.example", Some(&pairs[0]), 200),
        ("intern.example", Some(&pairs[1]), 403),
        ("shop.example", None, 200),
        ("shop.example", Some(&pairs[1]), 200),
    ] {
        let address = balancer.address().to_string();
        let mut arguments = vec!["s_client", "-connect", &address, "-servername", host, "-ign_eof"];
        if let Some([certificate, key]) = pair {
            arguments.extend(["-cert", certificate, "-key", key]);
        }
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = openssl_with(&arguments, &request).await.text;
        assert!(answer.contains(&format!("HTTP/1.1 {status} ")), "{host} {pair:?}: {answer}");
    }
}

#[tokio::test]
async fn a_client_certificate_too_large_to_forward_is_refused() {
    let (a, shop) = (Origin::start("a").await, Shop::new().await);
    let balancer = Balancer::start(Config::of([&a]).listener(&shop.clients("optional"))).await;
    let subject =
        |units: usize| format!("/CN=client{}", "/OU=a unit of an organization with many of them".repeat(units));
    let names = |count: usize| (0..count).map(|name| format!("client-{name}.example")).collect::<Vec<_>>();
    for (file, subject, names, is_let_in) in [
        ("large", subject(30), names(250), true),
        ("subject", subject(60), names(1), false),
        ("certificate", subject(1), names(600), false),
    ] {
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        shop.issue(file, &subject, &names).await;
        let (certificate, key) = (shop.text(&format!("{file}.pem")), shop.text(&format!("{file}.key")));
        for version in ["-tls1_2", "-tls1_3"] {
            let answer = shop.ask(balancer.address(), "", &["-cert", &certificate, "-key", &key, version]).await;
            assert_eq!(answer.contains("HTTP/1.1 200"), is_let_in, "{file} {version}: {answer}");
            assert_eq!(answer.contains("SSL alert number"), !is_let_in, "{file} {version}: {answer}");
        }
    }
    assert_eq!(a.requests().len(), 2);
    assert!(a.last_request().field("client-cert").is_some_and(|told| told.len() > 8000));
    is_counted(&balancer, "evenkeel_tls_handshake_failures_total", ("reason", "client-certificate"), 4).await;
}

#[tokio::test]
async fn clients_limited_to_tls_1_1_get_a_protocol_version_alert_as_by_nginx() {
    let (a, shop) = (Origin::start("a").await, Shop::new().await);
    let balancer = Balancer::start(Config::of([&a]).listener(&shop.tls(""))).await;
    let server = format!(
        "server {{ listen {{listen}} ssl; ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.2 TLSv1.3; \
         return 200; }}",
        shop.text("server.pem"),
        shop.text("server.key")
    );
    let nginx = Nginx::start(&server).await;
    for version in ["-tls1", "-tls1_1"] {
        for address in [balancer.address(), nginx.address()] {
            let client = handshake(address, "shop.example", &[version, "-cipher", "ALL:@SECLEVEL=0"]).await;
            assert!(client.text.contains("SSL alert number 70"), "{version} {address}: {}", client.text);
        }
    }
    is_counted(&balancer, "evenkeel_tls_handshake_failures_total", ("reason", "incompatible"), 2).await;
}

/// The first record of its ClientHello may be as short as one byte (RFC 8446 §5.1).
#[tokio::test]
async fn a_client_hello_in_small_records_is_not_taken_for_an_old_version() {
    let (a, shop) = (Origin::start("a").await, Shop::new().await);
    let balancer = Balancer::start(Config::of([&a]).listener(&shop.tls(""))).await;
    let script = r#"
import socket, ssl, sys
host, port = sys.argv[1].rsplit(":", 1)
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
for first in (1, 2, 3, 5, 6, 100):
    took, gives = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(took, gives, server_hostname="shop.example")
    with socket.create_connection((host, int(port))) as tcp:
        is_first = True
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                hello = gives.read()
                if is_first and hello:
                    parts = [hello[5:5 + first], hello[5 + first:]]
                    hello = b"".join(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in parts)
                    is_first = False
                tcp.sendall(hello)
                took.write(tcp.recv(65536))
        tcp.sendall(gives.read())
    print(first)
"#;
    let python = tokio::process::Command::new("python3")
        .args(["-c", script, &balancer.address().to_string()])
        .output()
        .await
        .expect("python3 runs");
    assert_eq!(String::from_utf8_lossy(&python.stdout), "1\n2\n3\n5\n6\n100\n", "{python:?}");
}

#[tokio::test]
async fn a_client_that_offers_only_http_1_0_by_alpn_is_served_as_by_nginx() {
    let (a, shop) = (Origin::start("a").await, Shop::new().await);
    let balancer = Balancer::start(Config::of([&a]).listener(&shop.tls(""))).await;
    let client = handshake(balancer.address(), "shop.example", &["-alpn", "http/1.0"]).await;
    assert!(client.text.contains("ALPN protocol: http/1.0"), "{}", client.text);
}

/// A connection, plain or TLS.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

async fn connection(address: SocketAddr, is_tls: bool, protocol: &[u8]) -> Box<dyn Connection> {
    match is_tls {
        true => Box::new(connect_for(protocol, address).await.expect("a handshake")),
        false => Box::new(TcpStream::connect(address).await.expect("a listener")),
    }
}

/// HTTP/1.1 on such a connection.
struct Http1(Box<dyn Connection>);

impl Http1 {
    async fn connect(address: SocketAddr, is_tls: bool) -> Self {
        Self(connection(address, is_tls, b"http/1.1").await)
    }

    async fn ask(&mut self, paths: &[&str]) {
        let requests: String = paths.iter().map(|path| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
        http2::write(&mut self.0, requests.as_bytes()).await;
    }

    /// The head of an answer. Also reads its content.
    async fn answer(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(within("an answer", self.0.read_u8()).await.expect("a head"));
        }
        let head = String::from_utf8(head).expect("text");
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect("a length");
        let mut content = vec![0; length.parse().expect("a number")];
        within("content", self.0.read_exact(&mut content)).await.expect("content");
        head
    }

    async fn get(&mut self, path: &str) -> String {
        self.ask(&[path]).await;
        self.answer().await
    }

    /// Everything that arrives until the peer closes.
    async fn rest(&mut self) -> String {
        String::from_utf8_lossy(&http2::rest(&mut self.0).await).into_owned()
    }
}

async fn http2_over(address: SocketAddr, is_tls: bool) -> Http2 {
    let connection = connection(address, is_tls, b"h2").await;
    within("an HTTP/2 connection", Http2::over(connection, h2::client::Builder::new())).await
}

async fn reload(balancer: &Balancer, config: &Config) {
    balancer.configure(config);
    balancer.change("POST", "/admin/reload", None).await;
}

/// Listeners with different requirements. A client without a certificate can connect to all but the last two.
struct Demands {
    plain: String,
    tls: String,
    optional: String,
    of_others: String,
    required: String,
    of_senders: String,
}

impl Demands {
    fn of(shop: &Shop, others: &Authority) -> Self {
        let other = others.certificate().display().to_string();
        let of_others = format!("client_certificates = {{ mode = \"optional\", ca = \"{other}\" }}");
        Self {
            plain: String::new(),
            tls: shop.tls(""),
            optional: shop.clients("optional"),
            of_others: shop.tls(&of_others),
            required: shop.clients("required"),
            of_senders: "proxy_protocol = { from = [\"127.0.0.0/8\"] }".to_owned(),
        }
    }
}

#[tokio::test]
async fn connections_end_when_a_reload_changes_who_may_connect() {
    let (a, shop, others) = (Origin::start("a").await, Shop::new().await, Authority::new().await);
    let demands = Demands::of(&shop, &others);
    let config = |listener: &str| Config::of([&a]).listener(listener);
    for (what, before, after) in [
        ("plain becomes TLS", &demands.plain, &demands.tls),
        ("TLS becomes plain", &demands.tls, &demands.plain),
        ("certificates are asked for", &demands.tls, &demands.optional),
        ("certificates are demanded", &demands.optional, &demands.required),
        ("others issue certificates", &demands.optional, &demands.of_others),
        ("the PROXY protocol is demanded", &demands.plain, &demands.of_senders),
    ] {
        let is_tls = before.starts_with("tls");
        let balancer = Balancer::start(config(before)).await;
        let address = balancer.address();
        a.hold();
        let heads = a.heads();
        let (mut idle, mut new) = (Http1::connect(address, is_tls).await, Http1::connect(address, is_tls).await);
        assert!(idle.get("/").await.starts_with("HTTP/1.1 200"), "{what}");
        let (mut idle_2, new_2) = (http2_over(address, is_tls).await, http2_over(address, is_tls).await);
        assert_eq!(idle_2.get("/").await.status, 200, "{what}");
        let (mut busy, mut busy_2) = (Http1::connect(address, is_tls).await, http2_over(address, is_tls).await);
        // The second request may not begin any more.
        busy.ask(&["/hold", "/behind"]).await;
        let (response, _) = busy_2.begin(request("GET", "/hold", &[]), true).await;
        eventually("both are there", async || a.heads() == heads + 4).await;
        are_accepted(&balancer, 6, is_tls).await;
        reload(&balancer, &config(after)).await;
        assert_eq!(idle.rest().await, "", "{what}");
        assert_eq!(new.rest().await, "", "{what}");
        idle_2.closed().await.unwrap_or_else(|e| panic!("{what}: {e}"));
        new_2.closed().await.unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(!busy_2.is_closed(), "{what}");
        a.release();
        let answer = busy.answer().await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("Connection: close\r\n"), "{what}: {answer}");
        assert_eq!(busy.rest().await, "", "{what}");
        assert_eq!(http2::reply(response).await.expect("a whole answer").status, 200, "{what}");
        busy_2.closed().await.unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(a.heads(), heads + 4, "{what}");
        balancer.logs(&["other clients may connect now"]).await;
    }
}

#[tokio::test]
async fn connections_end_when_a_stricter_listener_takes_their_address_over() {
    let (a, shop) = (Origin::start("a").await, Shop::new().await);
    let port = Port::reserve();
    let at = |ip: &str, tls: &str| {
        let number = port.address().port();
        Config::of([&a]).section(&format!("[[listener]]\naddress = \"{ip}:{number}\"\n{tls}\n"))
    };
    for (tls, is_served) in [(String::new(), true), (shop.tls(""), false)] {
        let balancer = Balancer::start(at("127.0.0.1", "")).await;
        let mut client = Http1::connect(port.address(), false).await;
        assert!(client.get("/").await.starts_with("HTTP/1.1 200"));
        reload(&balancer, &at("0.0.0.0", &tls)).await;
        if is_served {
            assert!(client.get("/").await.contains("Connection: close\r\n"), "one more, and no other");
        }
        assert_eq!(client.rest().await, "", "{tls}");
    }
}

#[tokio::test]
async fn connections_end_when_a_listener_moves_and_gets_stricter() {
    let (a, shop) = (Origin::start("a").await, Shop::new().await);
    let (port, other) = (Port::reserve(), Port::reserve());
    let at = |name: &str, ip: &str, port: &Port, tls: &str| {
        let number = port.address().port();
        Config::of([&a]).section(&format!("[[listener]]\n{name}address = \"{ip}:{number}\"\n{tls}\n"))
    };
    let name = "name = \"shop\"\n";
    for (before, after) in [
        ((name, "127.0.0.1", &port), (name, "127.0.0.1", &other)),
        ((name, "127.0.0.1", &port), (name, "0.0.0.0", &port)),
        (("", "0.0.0.0", &port), ("", "127.0.0.1", &port)),
    ] {
        let balancer = Balancer::start(at(before.0, before.1, before.2, "")).await;
        let (mut idle, mut new) =
            (Http1::connect(port.address(), false).await, Http1::connect(port.address(), false).await);
        assert!(idle.get("/").await.starts_with("HTTP/1.1 200"));
        are_accepted(&balancer, 2, false).await;
        reload(&balancer, &at(after.0, after.1, after.2, &shop.clients("required"))).await;
        assert_eq!(idle.rest().await, "", "{} to {}", before.1, after.1);
        assert_eq!(new.rest().await, "", "{} to {}", before.1, after.1);
    }
}

#[tokio::test]
async fn connections_on_a_former_address_end_when_their_listener_gets_stricter() {
    let (a, shop) = (Origin::start("a").await, Shop::new().await);
    let (port, other) = (Port::reserve(), Port::reserve());
    let at = |port: &Port, tls: &str| {
        let address = port.address();
        Config::of([&a]).section(&format!("[[listener]]\nname = \"shop\"\naddress = \"{address}\"\n{tls}\n"))
    };
    let balancer = Balancer::start(at(&port, "")).await;
    let mut idle = Http1::connect(port.address(), false).await;
    assert!(idle.get("/").await.starts_with("HTTP/1.1 200"));
    reload(&balancer, &at(&other, "")).await;
    reload(&balancer, &at(&other, &shop.clients("required"))).await;
    assert_eq!(idle.rest().await, "");
}

// Clients were excluded only after the configuration had taken effect, and admitted before it had.
#[tokio::test(flavor = "multi_thread")]
async fn no_client_is_served_by_a_configuration_that_excludes_it() {
    const ROUNDS: usize = 12;
    const PIPELINED: usize = 40;
    let a = Origin::start("a").await;
    let config = |listener: &str, body: &str| {
        let site = format!("[[site]]\nhosts = [\"\"]\nrespond = {{ status = 200, body = \"{body}\" }}\n");
        Config::of([&a]).listener(listener).sites(&site)
    };
    let open = config("", "PUBLIC");
    let shut = config("proxy_protocol = { from = [\"127.0.0.0/8\"] }", "SECRET");
    let balancer = Balancer::start(open.clone()).await;
    let (address, is_over) = (balancer.address(), Arc::new(AtomicBool::new(false)));
    let answered = Arc::new(AtomicUsize::new(0));
    // No client sends a header of the PROXY protocol.
    let client = |_| {
        let (is_over, answered) = (Arc::clone(&is_over), Arc::clone(&answered));
        tokio::spawn(async move {
            let (mut secrets, mut told) = (0, Vec::new());
            while !is_over.load(Relaxed) {
                let Ok(mut tcp) = TcpStream::connect(address).await else { continue };
                let requests = "GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(PIPELINED);
                while tcp.write_all(requests.as_bytes()).await.is_ok() {
                    told.clear();
                    let count = |word: &[u8], told: &[u8]| told.windows(word.len()).filter(|at| *at == word).count();
                    let is_open = loop {
                        if !matches!(tcp.read_buf(&mut told).await, Ok(1..)) {
                            break false;
                        }
                        if count(b"PUBLIC", &told) + count(b"SECRET", &told) >= PIPELINED {
                            break true;
                        }
                    };
                    answered.fetch_add(count(b"PUBLIC", &told), Relaxed);
                    secrets += count(b"SECRET", &told);
                    if !is_open || is_over.load(Relaxed) {
                        break;
                    }
                }
            }
            secrets
        })
    };
    let clients: Vec<_> = (0..4).map(client).collect();
    for _ in 0..ROUNDS {
        let before = answered.load(Relaxed);
        eventually("clients are served", async || answered.load(Relaxed) > before + 10 * PIPELINED).await;
        reload(&balancer, &shut).await;
        reload(&balancer, &open).await;
    }
    is_over.store(true, Relaxed);
    for client in clients {
        assert_eq!(within("the end of a client", client).await.expect("no panic"), 0, "answers that were for others");
    }
}

#[tokio::test]
async fn a_websocket_that_is_opened_too_late_is_refused() {
    let a = Origin::start("a").await;
    let config = |listener: &str| Config::of([&a]).listener(listener);
    a.at_head(|_| {
        let head = "HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        vec![Step::Hold, Step::Send(head.as_bytes().to_vec()), Step::Hang]
    });
    let balancer = Balancer::start(config("")).await;
    let mut client = Http1::connect(balancer.address(), false).await;
    let mut streams = http2_over(balancer.address(), false).await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==";
    http2::write(&mut client.0, format!("GET /late HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n\r\n").as_bytes()).await;
    let mut connect = request("CONNECT", "/late", &[]);
    connect.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    let (response, _content) = streams.begin(connect, false).await;
    eventually("both are asked for", async || a.heads() == 2).await;
    reload(&balancer, &config("proxy_protocol = { from = [\"127.0.0.0/8\"] }")).await;
    a.release();
    let answer = client.answer().await;
    assert!(answer.starts_with("HTTP/1.1 421") && answer.contains("Connection: close\r\n"), "{answer}");
    assert_eq!(client.rest().await, "");
    assert_eq!(http2::reply(response).await.expect("a whole answer").status, 421);
    balancer.until_idle().await;
}

#[tokio::test]
async fn connections_stay_when_a_reload_does_not_change_who_may_connect() {
    let (a, shop) = (Origin::start("a").await, Shop::new().await);
    let authority = shop.authority.certificate();
    let issuers = shop.path("clients.pem");
    std::fs::copy(&authority, &issuers).expect("our files");
    let config = |listener: &str, more: &str| {
        let clients = format!("client_certificates = {{ mode = \"optional\", ca = \"{}\" }}", issuers.display());
        let tls = format!("{clients}, watch_interval = \"50ms\"{more}");
        Config::of([&a]).listener(&format!("{listener}\n{}", shop.tls(&tls)))
    };
    let balancer = Balancer::start(config("", "")).await;
    let address = balancer.address();
    let (mut http1, mut http2) = (Http1::connect(address, true).await, http2_over(address, true).await);
    let mut serves = async |what: &str| {
        let answer = http1.get("/").await;
        assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("Connection: close"), "{what}: {answer}");
        assert_eq!(http2.get("/").await.status, 200, "{what}");
    };
    serves("before").await;
    reload(&balancer, &config("keepalive_timeout = \"1h\"", "")).await;
    serves("another time limit").await;
    reload(&balancer, &config("", ", profile = \"modern\", alpn = [\"h2\"]")).await;
    serves("another profile").await;
    // The same issuers with additional text in the file.
    let text = std::fs::read_to_string(&authority).expect("our file");
    std::fs::write(&issuers, format!("Written anew\n{text}")).expect("our folder");
    shop.issue("server", "/CN=server", &["shop.example"]).await;
    let renewed = [("result", "success")];
    let renewals = async || balancer.metrics().await.sum("evenkeel_certificate_renewals_total", &renewed);
    eventually("the certificate is renewed", async || renewals().await >= 1.0).await;
    serves("a renewal").await;
    shop.issue("server", "/CN=server", &["shop.example"]).await;
    reload(&balancer, &config("", "")).await;
    serves("a reload with a renewed certificate").await;
    assert!(!balancer.log().contains("other clients may connect"), "{}", balancer.log());
    // A changed file of issuers takes effect without a reload, too.
    std::fs::copy(Authority::new().await.certificate(), &issuers).expect("our files");
    assert_eq!(http1.rest().await, "");
    http2.closed().await.expect("a closed connection");
}

#[tokio::test]
async fn a_client_that_ignores_goaway_is_served_no_more_streams() {
    let a = Origin::start("a").await;
    let config = |listener: &str| Config::of([&a]).listener(listener);
    let balancer = Balancer::start(config("")).await;
    let get = |stream, path| {
        let fields = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "x")];
        frame(kind::HEADERS, 5, stream, &literals(&fields))
    };
    let mut client = TcpStream::connect(balancer.address()).await.expect("a listener");
    http2::write(&mut client, &[http2::PREFACE, &get(1, "/hold")].concat()).await;
    eventually("it is asked", async || a.heads() == 1).await;
    reload(&balancer, &config("proxy_protocol = { from = [\"127.0.0.0/8\"] }")).await;
    within("GOAWAY", http2::payload_of(&mut client, kind::GOAWAY)).await;
    http2::write(&mut client, &get(3, "/behind")).await;
    // The client may repeat it on another connection, as the error code says.
    let refused = within("a reset", http2::frame_of(&mut client, kind::RST_STREAM)).await;
    assert_eq!((refused.stream, refused.reason()), (3, Some(h2::Reason::REFUSED_STREAM)));
    a.release();
    let stream_1 = async { while next_frame(&mut client).await.expect("a frame").stream != 1 {} };
    within("the answer to what was begun before", stream_1).await;
    assert_eq!(a.heads(), 1);
}

#[tokio::test]
async fn a_handshake_begun_before_certificates_were_required_admits_nobody() {
    let (a, shop) = (Origin::start("a").await, Shop::new().await);
    let config = |mode: &str| Config::of([&a]).listener(&shop.clients(mode));
    let balancer = Balancer::start(config("optional")).await;
    let name = ServerName::try_from("localhost").expect("a name");
    let mut tls = ClientConnection::new(Arc::new(http2::client(b"http/1.1")), name).expect("a sound configuration");
    let mut hello = Vec::new();
    tls.write_tls(&mut hello).expect("a vector");
    let mut tcp = TcpStream::connect(balancer.address()).await.expect("a listener");
    tcp.write_all(&hello[..9]).await.expect("a peer");
    // It has been accepted by then.
    let mut served = Http1::connect(balancer.address(), true).await;
    assert!(served.get("/").await.starts_with("HTTP/1.1 200"));
    let requests = a.heads();
    reload(&balancer, &config("required")).await;
    tcp.write_all(&hello[9..]).await.expect("a peer");
    let tcp = tcp.into_std().expect("an open socket");
    tcp.set_nonblocking(false).expect("an open socket");
    let rest = tokio::task::spawn_blocking(move || {
        let mut stream = StreamOwned::new(tls, tcp);
        let mut rest = Vec::new();
        // Both ways of ending are correct.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").and_then(|()| stream.flush());
        let _ = stream.read_to_end(&mut rest);
        rest
    });
    let rest = within("the end of the connection", rest).await.expect("no panic");
    let rest = String::from_utf8_lossy(&rest);
    assert!(!rest.contains("HTTP/1.1 200"), "{rest}");
    assert_eq!(a.heads(), requests);
}
