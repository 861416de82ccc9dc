//! TLS towards clients: those that begin it and fall silent, those that speak something else, and those that show
//! certificates of their own. Clients are `openssl s_client`; where nginx settles what is right, it is asked the same.

use std::path::PathBuf;

use tempfile::TempDir;
use tests::http2::{Http2, connect_for, request};
use tests::nginx::Nginx;
use tests::openssl::{Authority, Kind, handshake, openssl_with};
use tests::wire::Wire;
use tests::{Balancer, Config, Origin, Port, Request, eventually, within};

/// A server's certificate and those of clients, all of one authority.
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

    /// The listener's `tls`, with these settings beside.
    fn tls(&self, more: &str) -> String {
        let (certificate, key) = (self.text("server.pem"), self.text("server.key"));
        let separator = if more.is_empty() { "" } else { ", " };
        format!("tls = {{ certificate = \"{certificate}\", key = \"{key}\"{separator}{more} }}")
    }

    fn clients(&self, mode: &str) -> String {
        let ca = self.authority.certificate();
        self.tls(&format!("client_certificates = {{ mode = \"{mode}\", ca = \"{}\" }}", ca.display()))
    }

    /// What `s_client` shows of the answer to a request, made with these arguments.
    async fn ask(&self, address: std::net::SocketAddr, fields: &str, arguments: &[&str]) -> String {
        let address = address.to_string();
        let all = ["s_client", "-connect", &address, "-servername", "shop.example", "-ign_eof"];
        let request = format!("GET / HTTP/1.1\r\nHost: shop.example\r\n{fields}Connection: close\r\n\r\n");
        openssl_with(&[&all, arguments].concat(), &request).await.text
    }
}

#[tokio::test]
async fn plain_http_on_a_port_of_tls_is_answered_400_as_by_nginx() {
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
    let metrics = balancer.metrics().await;
    assert_eq!(metrics.sum("evenkeel_refusals_total", &[("reason", "plain-http")]), 1.0);
    assert_eq!(metrics.sum("evenkeel_tls_handshake_failures_total", &[("reason", "plain-http")]), 1.0);
    let lines = balancer.lines("access.log", 1).await;
    assert!(lines[0].contains("\"refusal\":\"plain-http\"") && lines[0].contains("\"status\":400"), "{lines:?}");
    assert!(a.requests().is_empty(), "nothing comes through");
}

#[tokio::test]
async fn silent_clients_of_tls_hold_up_no_plain_ones() {
    let (a, shop) = (Origin::start("a").await, Shop::new().await);
    let tls = Port::reserve();
    let section = format!("[[listener]]\naddress = \"{}\"\n{}\n", tls.address(), shop.tls(""));
    let config = Config::of([&a]).server("threads = 1\nmax_connections = 8\nmax_handshakes = 3").section(&section);
    let balancer = Balancer::start(config).await;
    // More than there are places for handshakes, and for clients.
    let mut silent = Vec::new();
    for _ in 0..12 {
        silent.push(Wire::connect(tls.address()).await);
    }
    balancer.logs(&["no more clients can begin TLS at once"]).await;
    for _ in 0..50 {
        assert_eq!(balancer.get("/").await.status, 200);
    }
    // Nor a client of TLS for ever: those that are slow leave.
    let mut client = Http2::connect(tls.address()).await;
    assert_eq!(client.get("/").await.status, 200);
    let metrics = balancer.metrics().await;
    assert!(metrics.sum("evenkeel_tls_handshake_failures_total", &[("reason", "shed")]) >= 1.0);
    // Whoever is served takes no place of a handshake.
    let more = [Http2::connect(tls.address()).await, Http2::connect(tls.address()).await];
    drop(silent);
    drop(more);
    assert_eq!(client.get("/").await.status, 200);
}

#[tokio::test]
async fn failed_handshakes_are_counted_by_reason() {
    let (a, shop) = (Origin::start("a").await, Shop::new().await);
    let settings = shop.tls("profile = \"modern\", unknown_names = \"refuse\", handshake_timeout = \"300ms\"");
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
    let metrics = balancer.metrics().await;
    assert_eq!(metrics.sum("evenkeel_tls_handshakes_total", &[("kind", "full")]), 1.0);
    // Many in a row are told of, once.
    for _ in 0..30 {
        handshake(balancer.address(), "other.example", &[]).await;
    }
    balancer.logs(&["WARN", "TLS handshakes in a row have failed", "unknown-name"]).await;
    assert_eq!(balancer.log().matches("in a row have failed").count(), 1, "{}", balancer.log());
}

const SUBJECT: &str = "/C=DE/O=Shop, Ltd./OU=\"Ops\"/CN=Jos\u{e9}";

#[tokio::test]
async fn certificates_of_clients_are_verified_and_told_as_by_nginx() {
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
        // nginx has a text for what is missing; with ours nothing is there.
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
async fn backends_are_told_of_certificates_and_clients_are_not_believed() {
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
    let told = seen.fields.all("X-Forwarded-Client-Cert");
    let [told] = told.as_slice() else { panic!("{seen:?}") };
    assert!(told.starts_with("Hash=") && told.ends_with(";Subject=\"CN=client\""), "{told}");
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
async fn who_has_to_show_a_certificate_gets_nothing_without() {
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
    let metrics = balancer.metrics().await;
    assert_eq!(metrics.sum("evenkeel_tls_handshake_failures_total", &[("reason", "no-client-certificate")]), 2.0);
    assert_eq!(metrics.sum("evenkeel_tls_handshake_failures_total", &[("reason", "client-certificate")]), 2.0);
    assert_eq!(a.requests().len(), 2);
}

#[tokio::test]
async fn a_session_without_a_certificate_does_not_get_in_where_one_is_required() {
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
async fn a_request_for_a_pinned_site_on_another_sites_connection_is_sent_back() {
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
    // The harness's clients ask for `localhost`, of which no site knows: as good as another site.
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
        // The certificate is not what protects this one.
        ("pinned.example", "shop.example", "200"),
        // A client without a name for it has nothing to compare with.
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
async fn a_flood_of_handshakes_leaves_plain_requests_their_turn() {
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

// As docs/tls.md has it.
#[tokio::test]
async fn one_site_of_a_listener_demands_certificates_and_refuses_those_that_were_lost() {
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
async fn a_certificate_that_is_too_large_to_be_told_of_is_refused() {
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
    let metrics = balancer.metrics().await;
    assert_eq!(metrics.sum("evenkeel_tls_handshake_failures_total", &[("reason", "client-certificate")]), 4.0);
}

#[tokio::test]
async fn a_client_that_knows_no_newer_version_than_tls_1_1_is_told_so_as_by_nginx() {
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
    let metrics = balancer.metrics().await;
    assert_eq!(metrics.sum("evenkeel_tls_handshake_failures_total", &[("reason", "incompatible")]), 2.0);
}
