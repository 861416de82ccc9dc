//! TLS to backends: which certificates are accepted, what is reported about others, and that TLS connections are kept,
//! ended and distinguished from broken ones like others.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use tests::authority::{Authority, Certified, shown};
use tests::nginx::Nginx;
use tests::origin::sha256;
use tests::process::{Process, installed};
use tests::{Balancer, Config, End, Origin, Pool, Port, Request, Step, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A pool of one backend, over TLS with these settings.
fn pool(name: &str, address: &str, tls: &str) -> Pool {
    Pool::empty(name).backend(address, "").set(&format!("tls = {tls}")).without_ejection()
}

fn trusting(authority: &Authority, more: &str) -> String {
    format!("{{ ca = \"{}\"{}{more} }}", shown(&authority.file()), if more.is_empty() { "" } else { ", " })
}

/// How a [`relay`] ends connections to the balancer after its origin has closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Farewell {
    Said,
    LeftOut,
}

/// Terminates TLS for an origin. After each answer it updates its keys, of which the balancer learns while the
/// connection is idle; like a late ticket, this must not matter.
fn relay(
    port: &Port,
    certified: &Certified,
    origin: &Origin,
    farewell: Farewell,
    count: &Arc<AtomicU64>,
) -> JoinSet<()> {
    let provider = Arc::new(ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let chain = CertificateDer::pem_file_iter(&certified.certificate).expect("a file").collect::<Result<_, _>>();
    let key = PrivateKeyDer::from_pem_file(&certified.key).expect("a key");
    let config = config.with_no_client_auth().with_single_cert(chain.expect("certificates"), key).expect("a pair");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (listener, address, count) = (port.listen(), origin.address(), Arc::clone(count));
    let mut relay = JoinSet::new();
    relay.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((from, _)) = listener.accept().await {
            let (acceptor, count) = (acceptor.clone(), Arc::clone(&count));
            connections.spawn(async move {
                let Ok(mut from) = acceptor.accept(from).await else { return };
                count.fetch_add(1, Relaxed);
                let mut to = TcpStream::connect(address).await.expect("an origin");
                let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
                loop {
                    tokio::select! {
                        read = from.read(&mut up) => match read {
                            Ok(1..) => to.write_all(&up[..read.expect("checked")]).await.expect("an origin"),
                            _ => return,
                        },
                        read = to.read(&mut down) => match read {
                            Ok(1..) => {
                                from.write_all(&down[..read.expect("checked")]).await.expect("the balancer");
                                from.get_mut().1.refresh_traffic_keys().expect("TLS 1.3");
                                from.flush().await.expect("the balancer");
                            }
                            _ if farewell == Farewell::Said => return drop(from.shutdown().await),
                            _ => return,
                        },
                    }
                }
            });
        }
    });
    relay
}

/// `openssl s_server` with these options, which answers every request with its view of the connection.
async fn s_server(certified: &Certified, options: &str) -> (Process, Port) {
    let port = Port::reserve();
    let mut command = Command::new(installed("openssl", "openssl"));
    command.args(["s_server", "-www", "-quiet", "-accept", &port.address().to_string()]);
    command.arg("-cert").arg(&certified.certificate).arg("-key").arg(&certified.key).args(options.split_whitespace());
    let log = certified.certificate.with_extension("log");
    let process = Process::start(command, &log);
    eventually("s_server listens", async || TcpStream::connect(port.address()).await.is_ok()).await;
    (process, port)
}

#[tokio::test]
async fn backends_get_sni_are_verified_and_sessions_are_resumed() {
    let authority = Authority::new("Ours");
    let certified = authority.certify("app", "DNS:app.test,DNS:localhost,IP:127.0.0.1");
    let folder = tempfile::TempDir::new_in("/tmp").expect("a temporary directory");
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(folder.path().join("large"), &content).expect("a writable directory");
    let origin = Origin::start("a").await;
    let [first, second] = [Port::reserve(), Port::reserve()];
    let socket = folder.path().join("app.sock");
    let server = |listen: &str, protocols: &str| {
        format!(
            "server {{ listen {listen} ssl; ssl_protocols {protocols}; {} keepalive_requests 1; root {};\n\
             location = / {{ return 200 \"$ssl_server_name $ssl_protocol $ssl_session_reused $http_host\"; }}\n\
             location /up {{ client_max_body_size 0; proxy_pass http://{}; }} }}\n",
            certified.of_nginx(),
            shown(folder.path()),
            origin.address(),
        )
    };
    let nginx = Nginx::start(&format!(
        "server {{ listen {{listen}}; }}\nssl_session_cache shared:test:1m;\n{}{}{}",
        server(&first.address().to_string(), "TLSv1.3"),
        server(&second.address().to_string(), "TLSv1.2"),
        server(&format!("unix:{}", shown(&socket)), "TLSv1.2 TLSv1.3"),
    ))
    .await;
    let localhost = format!("localhost:{}", first.address().port());
    let pools = [
        ("named", first.address().to_string(), trusting(&authority, "name = \"app.test\""), "app.test TLSv1.3"),
        ("old", second.address().to_string(), trusting(&authority, "name = \"app.test\""), "app.test TLSv1.2"),
        // No name is sent for an address (RFC 6066 §3).
        ("address", first.address().to_string(), trusting(&authority, ""), " TLSv1.3"),
        ("host", localhost, "true".to_owned(), "localhost TLSv1.3"),
        ("unix", format!("unix:{}", shown(&socket)), trusting(&authority, "name = \"app.test\""), "app.test TLSv1.3"),
    ];
    let mut config = Config::default().server("threads = 1");
    for (name, address, tls, _) in &pools {
        config = config.pool(pool(name, address, tls)).route(&format!("{name}.example"), "/", name);
    }
    let mut balancer = Balancer::prepare(&config);
    // Where the system's CAs are found.
    balancer.environment.push(("SSL_CERT_FILE".to_owned(), shown(&authority.file())));
    balancer.start_again().await;
    for (name, _, _, expected) in &pools {
        let host = format!("{name}.example");
        for resumed in [".", "r", "r"] {
            let reply = balancer.send(&Request::get("/").with("Host", &host)).await;
            assert_eq!(reply.text(), format!("{expected} {resumed} {host}"), "{name}");
        }
        let reply = balancer.send(&Request::get("/large").with("Host", &host)).await;
        assert!(reply.end == End::Complete && reply.body == content, "{name}: what came is what was sent");
        let body: Vec<u8> = (0..2_000_000_u32).map(|n| (n % 241) as u8).collect();
        let reply = balancer.send(&Request::post("/up", body.clone()).with("Host", &host)).await;
        assert_eq!((reply.status, reply.json()["body_sha256"].as_str()), (200, Some(sha256(&body).as_str())), "{name}");
    }
    drop(nginx);
}

#[tokio::test]
async fn each_rejected_backend_certificate_is_explained_with_the_fix() {
    let (authority, stranger) = (Authority::new("Ours"), Authority::new("Theirs"));
    let expired = authority.certify_until("expired", "IP:127.0.0.1", "20210101000000Z");
    let other = authority.certify("other", "DNS:other.test");
    let unknown = stranger.certify("unknown", "IP:127.0.0.1");
    let good = authority.certify("good", "IP:127.0.0.1");
    let (_a, on_a) = s_server(&expired, "").await;
    let (_b, on_b) = s_server(&other, "").await;
    let (_c, on_c) = s_server(&unknown, "").await;
    let (_d, on_d) = s_server(&good, "-Verify 1 -verify_return_error").await;
    let (_e, on_e) = s_server(&good, "-tls1_1 -cipher DEFAULT@SECLEVEL=0").await;
    let plain = Nginx::start("server { listen {listen}; }").await;
    let verified = trusting(&authority, "");
    let pools = [
        ("expired", on_a.address(), "tls-certificate", "the certificate has expired: renew it at the backend"),
        ("other", on_b.address(), "tls-certificate", "the certificate is for another name"),
        ("unknown", on_c.address(), "tls-certificate", "the certificate's issuer is unknown"),
        ("demanding", on_d.address(), "tls-handshake", "the backend demands a client's certificate"),
        ("old", on_e.address(), "tls-handshake", "the backend speaks neither TLS 1.2 nor 1.3"),
        ("plain", plain.address(), "tls-handshake", "the answer is not TLS"),
    ];
    let mut config = Config::default();
    for (name, address, ..) in &pools {
        config = config.pool(pool(name, &address.to_string(), &verified)).route(&format!("{name}.example"), "/", name);
    }
    // What is accepted from the others without verification.
    config = config.pool(pool("careless", &on_a.address().to_string(), "{ verify = false }"));
    let balancer = Balancer::start(config.route("careless.example", "/", "careless")).await;
    for (name, _, word, reason) in &pools {
        for request in [Request::get("/"), Request::post("/", "text")] {
            let reply = balancer.send(&request.with("Host", &format!("{name}.example"))).await;
            assert_eq!(reply.status, 502, "{name}: {}", reply.text());
            assert!(!reply.text().contains("certificate has expired"), "clients are told no more than a sentence");
        }
        balancer.logs(&[&format!("pool={name}"), &format!("failure=\"{word}\""), reason]).await;
        let metrics = balancer.metrics().await;
        let of_pool = [("pool", *name)];
        assert_eq!(metrics.sum("evenkeel_backend_attempts_total", &of_pool), 2.0, "{name}: one try a request");
        let kinds = [("pool", *name), ("kind", word)];
        assert_eq!(metrics.sum("evenkeel_backend_failures_total", &kinds), 2.0, "{name}");
    }
    let reply = balancer.send(&Request::get("/").with("Host", "careless.example")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let checked = tests::evenkeel(["check", &shown(&balancer.config_file())]).await;
    assert!(checked.status.success(), "{checked:?}");
    assert!(checked.stderr.contains("warning: pool \"careless\" takes any certificate"), "{}", checked.stderr);
}

#[tokio::test]
async fn requests_are_retried_when_a_backend_has_a_wrong_certificate() {
    let authority = Authority::new("Ours");
    let [expired, good] = [
        authority.certify_until("expired", "IP:127.0.0.1", "20210101000000Z"),
        authority.certify("good", "IP:127.0.0.1"),
    ];
    let origin = Origin::start("a").await;
    let (_expired, wrong) = s_server(&expired, "").await;
    let (right, count) = (Port::reserve(), Arc::default());
    let _relay = relay(&right, &good, &origin, Farewell::Said, &count);
    // Long enough for a handshake beside a busy loop: a backend that is not known yet is unhealthy after one probe.
    let probe = "type = \"tcp\"\ninterval = \"5s\"\ntimeout = \"5s\"\nrise = 1\nfall = 3";
    let config = |probe: Option<&str>| {
        let pool =
            Pool::empty("app").set(&format!("tls = {}", trusting(&authority, ""))).ejection("consecutive_failures = 3");
        let pool = [&wrong, &right].iter().fold(pool, |pool, port| pool.backend(&port.address().to_string(), ""));
        Config::default().pool(probe.map_or(pool.clone(), |probe| pool.probe(probe)))
    };
    let balancer = Balancer::start(config(None)).await;
    for _ in 0..20 {
        assert_eq!(balancer.send(&Request::post("/", "text")).await.origin(), "a");
    }
    balancer.logs(&["backend ejected", "tls-certificate (the certificate has expired"]).await;
    // Probes connect in the same way, and verify like traffic.
    balancer.configure(&config(Some(probe)));
    balancer.change("POST", "/admin/reload", None).await;
    eventually("a TCP probe finds the certificate", async || {
        let pool = balancer.pool().await;
        pool["backends"][0]["last_probe"]["error"] == "tls-certificate" && pool["backends"][1]["status"] == "healthy"
    })
    .await;
    balancer.logs(&["reason=tls-certificate detail=\"the certificate has expired"]).await;
}

#[tokio::test]
async fn a_client_certificate_is_sent_to_backends_that_ask_for_one() {
    let (authority, stranger) = (Authority::new("Ours"), Authority::new("Theirs"));
    let certified = authority.certify("app", "IP:127.0.0.1");
    let [client, wrong] = [authority.certify("balancer", "DNS:balancer"), stranger.certify("stranger", "DNS:balancer")];
    let port = Port::reserve();
    let nginx = Nginx::start(&format!(
        "server {{ listen {{listen}}; }}\nserver {{ listen {} ssl; {} ssl_client_certificate {}; ssl_verify_client on;\n\
         location / {{ return 200 \"$ssl_client_verify $ssl_client_s_dn\"; }} }}",
        port.address(),
        certified.of_nginx(),
        shown(&authority.file()),
    ))
    .await;
    let (_strict, strict) =
        s_server(&certified, &format!("-Verify 1 -verify_return_error -CAfile {}", shown(&authority.file()))).await;
    let keys = |of: &Certified| format!("certificate = \"{}\", key = \"{}\"", shown(&of.certificate), shown(&of.key));
    let known = trusting(&authority, &keys(&client));
    let config = Config::default()
        .pool(pool("nginx", &port.address().to_string(), &known))
        .pool(pool("strict", &strict.address().to_string(), &known))
        .pool(pool("refused", &strict.address().to_string(), &trusting(&authority, &keys(&wrong))))
        .route("nginx.example", "/", "nginx")
        .route("strict.example", "/", "strict")
        .route("refused.example", "/", "refused");
    let balancer = Balancer::start(config).await;
    let get = async |host: &str| balancer.send(&Request::get("/").with("Host", host)).await;
    assert_eq!(get("nginx.example").await.text(), "SUCCESS CN=balancer");
    assert_eq!(get("strict.example").await.status, 200);
    assert_eq!(get("refused.example").await.status, 502);
    balancer.logs(&["failure=\"tls-handshake\"", "the backend does not take tls.certificate"]).await;
    drop(nginx);
}

#[tokio::test]
async fn tls_connections_to_backends_are_reused_and_closed_as_plain_ones() {
    let authority = Authority::new("Ours");
    let certified = authority.certify("app", "IP:127.0.0.1");
    let origin = Origin::start("a").await;
    let (said, left_out, count) = (Port::reserve(), Port::reserve(), Arc::default());
    let _said = relay(&said, &certified, &origin, Farewell::Said, &count);
    let _left_out = relay(&left_out, &certified, &origin, Farewell::LeftOut, &Arc::default());
    let config = Config::default()
        .server("threads = 1")
        .pool(pool("app", &said.address().to_string(), &trusting(&authority, "")))
        .pool(pool("left-out", &left_out.address().to_string(), &trusting(&authority, "")))
        .route("", "/", "app")
        .route("", "/left-out", "left-out");
    let balancer = Balancer::start(config.clone()).await;
    for _ in 0..10 {
        assert_eq!(balancer.send(&Request::post("/", "text")).await.origin(), "a");
    }
    assert_eq!(count.load(Relaxed), 1, "it is kept, whatever TLS says behind an answer");
    // The end of an idle connection is noticed before the next request, which could not be repeated.
    for _ in 0..5 {
        origin.stop().await;
        origin.restart();
        eventually("the end has come", async || balancer.send(&Request::post("/", "text")).await.status == 200).await;
    }
    // Content that ends with the connection is complete only if TLS says so.
    origin.answer(|_| vec![Step::Send(b"HTTP/1.1 200 OK\r\n\r\nall of it".to_vec()), Step::Close]);
    let reply = balancer.get("/").await;
    assert_eq!((reply.text().as_str(), reply.end), ("all of it", End::Complete));
    let reply = balancer.get("/left-out").await;
    assert_eq!((reply.status, reply.end), (200, End::CutOff), "somebody may have cut the connection");
    origin.forget_script();
    // With another CA, no earlier connection is reused.
    let before = count.load(Relaxed);
    assert_eq!(balancer.get("/").await.status, 200);
    std::fs::write(authority.file(), std::fs::read(Authority::new("Theirs").file()).expect("a file")).expect("a file");
    let changes = balancer.change("POST", "/admin/reload", None).await;
    let change = format!("pool app: tls.ca: {} with other content", authority.file().display());
    assert!(changes.to_string().contains(&change), "{changes}");
    assert_eq!(balancer.get("/").await.status, 502);
    balancer.logs(&["the certificate's issuer is unknown"]).await;
    assert!(count.load(Relaxed) <= before + 1, "no handshake has been made since");
}

#[tokio::test]
async fn backend_tls_that_cannot_work_is_a_configuration_error() {
    let authority = Authority::new("Ours");
    let [one, two] = [authority.certify("one", "DNS:one"), authority.certify("two", "DNS:two")];
    let empty = one.certificate.with_file_name("index");
    let check = async |address: &str, tls: &str| {
        let balancer = Balancer::prepare(&Config::default().pool(pool("app", address, tls)));
        tests::evenkeel(["check", &shown(&balancer.config_file())]).await.stderr
    };
    let file = |path: &Path| format!("\"{}\"", shown(path));
    for (address, tls, expected) in [
        ("a:1", "\"yes\"".to_owned(), "pool.tls is neither true nor a table: write tls = true"),
        (
            "a:1",
            "{ ca = \"missing.pem\" }".to_owned(),
            "pool.tls.ca is \"missing.pem\": write the path of a file that can be read",
        ),
        ("a:1", format!("{{ ca = {} }}", file(&one.key)), "write the path of a PEM file with certificates"),
        (
            "a:1",
            format!("{{ ca = {}, name = \"a b\" }}", file(&authority.file())),
            "write the name or the IP address that certificates are for",
        ),
        (
            "a:1",
            format!("{{ certificate = {} }}", file(&one.certificate)),
            "pool.tls.certificate is of no use without pool.tls.key",
        ),
        (
            "a:1",
            format!(
                "{{ ca = {}, certificate = {}, key = {} }}",
                file(&authority.file()),
                file(&one.certificate),
                file(&two.key)
            ),
            "pool.tls.key does not belong to pool.tls.certificate",
        ),
        (
            "unix:/run/app.sock",
            trusting(&authority, ""),
            "cannot be verified: a Unix socket has no host to verify; write tls.name",
        ),
        ("a:1", format!("{{ ca = {}, verfy = false }}", file(&authority.file())), "did you mean \"verify\"?"),
        (
            "a:1",
            format!("{{ key = {}, certificate = {} }}", file(&empty), file(&one.certificate)),
            "with an unencrypted private key",
        ),
    ] {
        let output = check(address, &tls).await;
        assert!(output.contains(expected), "{tls}: {expected:?} in\n{output}");
    }
}
