//! Unix sockets for clients. The clients are curl, nginx and HAProxy.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::json;
use tempfile::TempDir;
use tests::haproxy::Haproxy;
use tests::nginx::Nginx;
use tests::openssl::{Authority, Kind};
use tests::process::installed;
use tests::{Balancer, Config, Origin, Request, Wire, evenkeel, eventually, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// A balancer that also listens on a Unix socket.
struct Unix {
    balancer: Balancer,
    folder: TempDir,
}

/// A folder with a path short enough for a socket's name.
fn folder() -> TempDir {
    TempDir::new_in("/tmp").expect("a temporary directory")
}

/// The section of a listener on a Unix socket.
fn listener(path: &Path, lines: &str) -> String {
    format!("[[listener]]\nname = \"unix\"\naddress = \"unix:{}\"\n{lines}\n", path.display())
}

impl Unix {
    async fn start(config: Config, lines: &str) -> Self {
        let folder = folder();
        let config = config.section(&listener(&folder.path().join("web.sock"), lines));
        Self { balancer: Balancer::start(config).await, folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("web.sock")
    }

    /// Reloads another configuration, in which the listener is `section`.
    async fn reload(&self, config: Config, section: &str) -> serde_json::Value {
        self.balancer.configure(&config.section(section));
        self.balancer.change("POST", "/admin/reload", None).await
    }
}

/// Sends a request and reads until the connection is closed.
async fn try_ask(path: &Path, request: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    within("an answer", stream.read_to_string(&mut answer)).await?;
    Ok(answer)
}

async fn ask(path: &Path, request: &str) -> String {
    try_ask(path, request).await.expect("an answer")
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// One exchange on a connection that is kept.
async fn exchange(stream: &mut UnixStream) {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("somebody who reads");
    let mut answer = String::new();
    // An origin's JSON.
    while !answer.ends_with('}') {
        let mut buffer = [0; 4096];
        let read = within("an answer", stream.read(&mut buffer)).await.expect("an answer");
        assert!(read > 0, "the connection is closed: {answer}");
        answer.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
}

/// The output of curl.
async fn curl(arguments: &[&str]) -> String {
    let mut command = tokio::process::Command::new(installed("curl", "curl"));
    command.args(["-sS", "--max-time", "20"]).args(arguments).kill_on_drop(true);
    let output = within("the end of curl", command.output()).await.expect("a program that starts");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("a file").mode() & 0o777
}

#[tokio::test]
async fn clients_of_a_unix_socket_are_served_and_logged_without_an_address() {
    let a = Origin::start("a").await;
    let sites = "[[site]]\nhosts = [\"\"]\npool = \"app\"\n\
        response_headers = { set = { X-Client = \"$remote_addr|$server_port|\" } }\n";
    let config = Config::of([&a]).sites(sites).section("[access_log]\nfile = \"access.log\"");
    let unix = Unix::start(config, "").await;
    let path = unix.path();
    let socket = path.to_str().expect("UTF-8");
    let answer = curl(&["-i", "--unix-socket", socket, "-H", "X-Forwarded-For: 203.0.113.9", "http://a/"]).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("x-client: unix:||"), "{answer}");
    let request = a.last_request();
    for name in ["x-forwarded-for", "x-real-ip"] {
        assert_eq!(request.field(name), None, "no address is made up, and none is believed");
    }
    assert_eq!(request.field("forwarded"), Some("for=unknown;host=a;proto=http"));
    assert_eq!(request.field("x-forwarded-proto"), Some("http"));
    let lines = unix.balancer.lines("access.log", 1).await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&lines[0]).expect("JSON")["client"], "unix:");
    // HTTP/2 without TLS, and a body in both directions.
    assert!(
        curl(&["--http2-prior-knowledge", "-i", "--unix-socket", socket, "http://a/"]).await.starts_with("HTTP/2 200")
    );
    let nginx = Nginx::start(&format!(
        "upstream e {{ server unix:{socket}; keepalive 4; }}\n\
         server {{ listen {{listen}}; location / {{ proxy_pass http://e; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }}"
    ))
    .await;
    let mut client = Wire::connect(nginx.address()).await;
    for _ in 0..5 {
        assert_eq!(client.exchange(&Request::post("/", vec![b'x'; 300_000])).await.status, 200);
    }
    assert_eq!(a.last_request().field("x-forwarded-for"), None, "nginx is not trusted");
}

#[tokio::test]
async fn a_peer_on_a_unix_socket_can_be_a_trusted_proxy() {
    let a = Origin::start("a").await;
    let config = |trusted: &str| Config::of([&a]).server(&format!("trusted_proxies = [{trusted}]"));
    let unix = Unix::start(config("\"127.0.0.0/8\", \"unix:\""), "").await;
    let nginx = Nginx::start(&format!(
        "server {{ listen {{listen}}; location / {{ proxy_pass http://unix:{};\n\
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto https; }} }}",
        unix.path().display()
    ))
    .await;
    let mut client = Wire::connect_from("127.0.0.9".parse().expect("an address"), nginx.address()).await;
    let ask = Request::get("/").with("X-Forwarded-For", "203.0.113.9");
    assert_eq!(client.exchange(&ask).await.status, 200);
    let request = a.last_request();
    // nginx's own address is trusted in 127.0.0.0/8, so the client is the address before it.
    assert_eq!(request.field("x-forwarded-for"), Some("203.0.113.9, 127.0.0.9"));
    assert_eq!((request.field("x-real-ip"), request.field("x-forwarded-proto")), (Some("203.0.113.9"), Some("https")));
    assert_eq!(request.field("forwarded").map(|text| text.ends_with(", for=unknown")), Some(true), "{request:?}");
    let section = listener(&unix.path(), "");
    unix.reload(config("\"127.0.0.0/8\""), &section).await;
    assert_eq!(client.exchange(&ask).await.status, 200);
    let request = a.last_request();
    assert_eq!((request.field("x-forwarded-for"), request.field("x-forwarded-proto")), (None, Some("http")));
}

#[tokio::test]
async fn proxy_protocol_and_tls_work_over_unix_sockets() {
    let a = Origin::start("a").await;
    let (certificates, authority) = (folder(), Authority::new().await);
    let file = |name: &str| certificates.path().join(name);
    authority.issue(&file("a.pem"), &file("a.key"), Kind::Ecdsa, &["shop.example"], 20).await;
    let tls = format!("tls = {{ certificates = \"{}\" }}", certificates.path().display());
    let secured = Unix::start(Config::of([&a]), &tls).await;
    let path = secured.path();
    let (socket, ca) = (path.to_str().expect("UTF-8"), authority.certificate());
    let ca = ca.to_str().expect("UTF-8");
    for version in ["--http1.1", "--http2"] {
        let answer = curl(&["-i", version, "--cacert", ca, "--unix-socket", socket, "https://shop.example/"]).await;
        assert!(answer.contains(" 200"), "{answer}");
        assert_eq!(a.last_request().field("x-forwarded-proto"), Some("https"));
    }
    assert!(ask(&path, GET).await.starts_with("HTTP/1.1 400"), "plain HTTP on a socket of TLS");
    let with_header = Unix::start(Config::of([&a]), "proxy_protocol = { from = [\"unix:\"] }").await;
    for version in ["send-proxy", "send-proxy-v2"] {
        let haproxy = Haproxy::start(format!("unix@{} {version}", with_header.path().display())).await;
        let mut client = Wire::connect_from("127.0.0.9".parse().expect("an address"), haproxy.address()).await;
        assert_eq!(client.exchange(&Request::get("/")).await.status, 200, "{version}");
        assert_eq!(a.last_request().field("x-forwarded-for"), Some("127.0.0.9"), "{version}");
    }
    // Its data is not read, so the connection is reset.
    let cut = try_ask(&with_header.path(), GET).await;
    assert!(cut.as_ref().is_ok_and(String::is_empty) || cut.is_err(), "a header is demanded: {cut:?}");
}

#[tokio::test]
async fn the_socket_file_has_its_permissions_and_is_removed_at_the_end() {
    let a = Origin::start("a").await;
    let config = Config::of([&a]);
    let mut unix = Unix::start(config.clone(), "").await;
    let path = unix.path();
    assert!(fs::metadata(&path).expect("a socket").file_type().is_socket());
    assert_eq!(mode(&path), 0o660, "the owner and the group may connect");
    let mut kept = UnixStream::connect(&path).await.expect("a listener");
    exchange(&mut kept).await;
    let inode = fs::metadata(&path).expect("a socket").ino();
    unix.reload(config.clone(), &listener(&path, "mode = \"0600\"")).await;
    assert_eq!((mode(&path), fs::metadata(&path).expect("a socket").ino()), (0o600, inode));
    exchange(&mut kept).await;
    // If the file has been removed, a reload creates it again.
    fs::remove_file(&path).expect("our socket");
    unix.reload(config.clone(), &listener(&path, "mode = \"0666\"")).await;
    assert_eq!(mode(&path), 0o666);
    assert!(ask(&path, GET).await.starts_with("HTTP/1.1 200"));
    unix.reload(config.clone(), &listener(&path, "mode = \"0606\"")).await;
    assert_eq!(mode(&path), 0o606);
    assert!(ask(&path, GET).await.starts_with("HTTP/1.1 200"));
    // The file of a removed listener is removed.
    unix.reload(config.clone(), "").await;
    assert!(!path.exists());
    unix.reload(config.clone(), &listener(&path, "")).await;
    assert!(ask(&path, GET).await.starts_with("HTTP/1.1 200"));
    unix.balancer.stop().await;
    assert_eq!(fs::read_dir(unix.folder.path()).expect("our folder").count(), 0, "nothing is left");
    // A file that another process has put there is not removed.
    unix.balancer.start_again().await;
    fs::remove_file(&path).expect("our socket");
    let _other = std::os::unix::net::UnixListener::bind(&path).expect("a free path");
    unix.balancer.stop().await;
    assert!(path.exists());
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_anything_else_is_an_error() {
    let a = Origin::start("a").await;
    let mut unix = Unix::start(Config::of([&a]), "").await;
    let path = unix.path();
    unix.balancer.kill().await;
    assert!(path.exists(), "nobody has removed it");
    unix.balancer.start_again().await;
    assert!(ask(&path, GET).await.starts_with("HTTP/1.1 200"));
    // A second process.
    let mut second = Balancer::prepare(&Config::of([&a]).section(&listener(&path, "")));
    second.launch();
    assert!(!second.process().end().await.success());
    let message = format!("cannot listen on unix:{}", path.display());
    assert!(
        second.log().contains(&message) && second.log().contains("another process listens there"),
        "{}",
        second.log()
    );
    assert!(ask(&path, GET).await.starts_with("HTTP/1.1 200"), "the first one is not touched");
    // A file that is not a socket.
    let file = unix.folder.path().join("file");
    fs::write(&file, "text").expect("our folder");
    unix.balancer.configure(&Config::of([&a]).section(&listener(&file, "")));
    let refused = unix.balancer.admin("POST", "/admin/reload", None).await;
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(refused.text().contains("a file that is not a socket"), "{}", refused.text());
    assert_eq!(fs::read_to_string(&file).expect("our file"), "text");
    assert!(ask(&path, GET).await.starts_with("HTTP/1.1 200"), "nothing has changed");
}

#[tokio::test]
async fn a_refused_reload_changes_no_permissions() {
    let a = Origin::start("a").await;
    let unix = Unix::start(Config::of([&a]), "mode = \"0600\"").await;
    let path = unix.path();
    let other = |lines: &str| {
        let path = unix.folder.path().join("other.sock");
        listener(&path, lines).replace("\"unix\"", "\"other\"")
    };
    let first = listener(&path, "mode = \"0666\"");
    unix.reload(Config::of([&a]), &(listener(&path, "mode = \"0600\"") + &other(""))).await;
    let refused = async |section: &str, message: &str| {
        unix.balancer.configure(&Config::of([&a]).section(section));
        let refused = unix.balancer.admin("POST", "/admin/reload", None).await;
        assert!(refused.status == 400 && refused.text().contains(message), "{}", refused.text());
        assert_eq!(mode(&path), 0o600);
    };
    refused(&(first.clone() + &other("owner = \"no-such-user\"")), "there is no user").await;
    // The same socket by another path.
    let link = unix.folder.path().join("link");
    std::os::unix::fs::symlink(unix.folder.path(), &link).expect("our folder");
    let again = listener(&link.join("new.sock"), "").replace("\"unix\"", "\"again\"");
    let new = listener(&unix.folder.path().join("new.sock"), "").replace("\"unix\"", "\"new\"");
    refused(&(first + &new + &again), "is the same socket as").await;
    assert!(!unix.folder.path().join("new.sock").exists());
    let outcome = evenkeel(["check", unix.balancer.config_file().to_str().expect("UTF-8")]).await;
    assert!(!outcome.status.success() && outcome.stderr.contains("is the same socket as"), "{outcome:?}");
}

#[tokio::test]
async fn check_reports_missing_owners_and_folders() {
    let a = Origin::start("a").await;
    let folder = folder();
    for (path, lines, is_error, message) in [
        ("none/web.sock", "", false, "(RuntimeDirectory= in systemd)"),
        ("web.sock", "owner = \"no-such-user\"", true, "there is no user \"no-such-user\""),
        ("web.sock", "owner = \":no-such-group\"", true, "there is no group \"no-such-group\""),
    ] {
        let balancer = Balancer::prepare(&Config::of([&a]).section(&listener(&folder.path().join(path), lines)));
        let outcome = evenkeel(["check", balancer.config_file().to_str().expect("UTF-8")]).await;
        assert!(outcome.status.success() != is_error && outcome.stderr.contains(message), "{outcome:?}");
    }
}

#[tokio::test]
async fn reloads_under_load_fail_no_client_of_a_unix_socket() {
    let a = Origin::start("a").await;
    let config = Config::of([&a]);
    let unix = Unix::start(config.clone(), "").await;
    let path = unix.path();
    let (is_over, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let client = tokio::spawn({
        let (path, is_over, asked) = (path.clone(), Arc::clone(&is_over), Arc::clone(&asked));
        async move {
            while !is_over.load(Ordering::Relaxed) {
                // The queue may be full for a moment, which TCP would not report.
                match try_ask(&path, GET).await {
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                    answer => assert!(answer.expect("an answer").starts_with("HTTP/1.1 200")),
                }
                asked.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    for round in 0..20 {
        let before = asked.load(Ordering::Relaxed);
        unix.reload(config.clone(), &listener(&path, &format!("max_fields = {}", 50 + round))).await;
        eventually("clients come", async || asked.load(Ordering::Relaxed) > before).await;
    }
    is_over.store(true, Ordering::Relaxed);
    client.await.expect("no client has failed");
    assert_eq!(fs::read_dir(unix.folder.path()).expect("our folder").count(), 1);
}

#[tokio::test]
async fn threads_get_equal_numbers_of_clients() {
    let a = Origin::start("a").await;
    let unix = Unix::start(Config::of([&a]).server("threads = 4"), "").await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut client = UnixStream::connect(unix.path()).await.expect("a listener");
        exchange(&mut client).await;
        clients.push(client);
    }
    // Each thread has its own connections to backends and reuses them.
    eventually("each thread has served two clients", async || a.open_connections() == 4).await;
}

#[tokio::test]
async fn the_path_is_relative_to_the_file_and_no_longer_than_the_system_allows() {
    let a = Origin::start("a").await;
    let config = |path: &str| Config::of([&a]).section(&listener(Path::new(path), ""));
    let balancer = Balancer::start(config("web.sock")).await;
    assert!(ask(&balancer.file("web.sock"), GET).await.starts_with("HTTP/1.1 200"));
    let long = format!("/tmp/{}", "x".repeat(103));
    balancer.configure(&config(&long));
    let refused = balancer.admin("POST", "/admin/reload", None).await;
    assert!(refused.text().contains("a path of 107 bytes at most"), "{}", refused.text());
    // A user without write permission.
    let closed = folder();
    fs::set_permissions(closed.path(), Permissions::from_mode(0o755)).expect("our folder");
    balancer.configure(&config(closed.path().join("none").join("web.sock").to_str().expect("UTF-8")));
    let refused = balancer.admin("POST", "/admin/reload", None).await;
    assert!(refused.text().contains("make the folder"), "{}", refused.text());
    assert_eq!(balancer.change("GET", "/admin/config", None).await["listeners"][1]["mode"], json!("0660"));
}

#[tokio::test]
async fn explain_treats_clients_of_a_unix_socket_as_traffic_does() {
    let a = Origin::start("a").await;
    let unix = Unix::start(Config::of([&a]), "").await;
    ask(&unix.path(), GET).await;
    let request = a.last_request();
    assert_eq!((request.field("x-forwarded-for"), request.field("x-real-ip")), (None, None));
    let file = unix.balancer.config_file().display().to_string();
    let explain = async |further: &[&str]| {
        let arguments = ["check", &file, "--explain", "GET http://a/", "--listener", "unix"];
        tests::evenkeel(arguments.iter().chain(further).copied()).await
    };
    for further in [&[][..], &["--client", "unix:"]] {
        let explained = explain(further).await;
        let text = explained.stdout.to_ascii_lowercase();
        assert!(text.contains("forwarded: for=unknown;host=a;proto=http"), "{explained:?}");
        assert!(!text.contains("x-forwarded-for") && !text.contains("x-real-ip"), "{explained:?}");
    }
    for (further, message) in [
        (["--client", "10.0.0.7"], "it has Unix sockets alone"),
        (["--client", "web1"], "write an IP address without a port, such as 192.0.2.1, or unix:"),
    ] {
        let refused = explain(&further).await;
        assert!(!refused.status.success() && refused.stderr.contains(message), "{refused:?}");
    }
    let plain = ["check", &file, "--explain", "GET http://a/", "--client", "unix:"];
    let refused = tests::evenkeel(plain).await;
    assert!(!refused.status.success() && refused.stderr.contains("by a Unix socket"), "{refused:?}");
}
