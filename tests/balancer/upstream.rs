//! How backends are connected to: over Unix sockets, and how often.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::nginx::Nginx;
use tests::{Balancer, Config, End, Origin, Pool, Request, Step, eventually, response};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpStream, UnixListener};
use tokio::task::JoinSet;

/// A folder whose path leaves room for a socket's name.
fn folder() -> TempDir {
    TempDir::new_in("/tmp").expect("a temporary directory")
}

fn pool(address: &str) -> Pool {
    Pool::empty("app").backend(address, "")
}

/// Listens on a Unix socket in place of an origin, until dropped.
fn relay(socket: UnixListener, origin: SocketAddr) -> JoinSet<()> {
    let mut relay = JoinSet::new();
    relay.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut from, _)) = socket.accept().await {
            connections.spawn(async move {
                let mut to = TcpStream::connect(origin).await.expect("an origin");
                let _ = copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });
    relay
}

async fn backend(balancer: &Balancer, address: &str) -> Value {
    let pool = balancer.pool().await;
    let mut backends = pool["backends"].as_array().into_iter().flatten();
    backends.find(|backend| backend["address"] == address).cloned().unwrap_or(Value::Null)
}

#[tokio::test]
async fn a_unix_socket_is_probed_and_serves_as_any_backend() {
    let folder = folder();
    let content: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(folder.path().join("large"), &content).expect("a writable directory");
    let path = folder.path().join("app.sock");
    let nginx = Nginx::start(&format!(
        "server {{ listen {{listen}}; listen unix:{}; root {};\n\
         location = / {{ return 200 \"$http_host $server_protocol\"; }} }}",
        path.display(),
        folder.path().display(),
    ))
    .await;
    let address = format!("unix:{}", path.display());
    let probe = "path = \"/\"\ninterval = \"100ms\"\ntimeout = \"100ms\"\nrise = 1\nfall = 3";
    let balancer =
        Balancer::start(Config::default().pool(pool(&address).probe(probe).sticky("cookie = \"SERVER\""))).await;
    eventually("the socket is healthy", async || backend(&balancer, &address).await["status"] == "healthy").await;
    let mut wire = balancer.connect().await;
    for _ in 0..3 {
        let reply = wire.exchange(&Request::get("/").with("Host", "shop.example")).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "shop.example HTTP/1.1"));
        let reply = wire.exchange(&Request::get("/large")).await;
        assert_eq!((reply.status, reply.end), (200, End::Complete));
        assert!(reply.body == content, "what came is what was sent");
    }
    let named = [("backend", address.as_str())];
    assert_eq!(balancer.metrics().await.sum("evenkeel_backend_requests_total", &named), 6.0);
    drop(nginx);
    eventually("the socket is unhealthy", async || backend(&balancer, &address).await["status"] == "unhealthy").await;
    balancer.logs(&["WARN backend health changed", &format!("backend={address}")]).await;
}

#[tokio::test]
async fn what_is_sent_to_a_unix_socket_and_its_connections_are_as_over_tcp() {
    let folder = folder();
    let origin = Origin::start("a").await;
    let path = folder.path().join("app.sock");
    let _relay = relay(UnixListener::bind(&path).expect("a free path"), origin.address());
    let address = format!("unix:{}", path.display());
    let config = Config::default().server("threads = 1").pool(pool(&address).without_ejection());
    let balancer = Balancer::start(config).await;
    let body: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    for _ in 0..3 {
        let reply = balancer.send(&Request::post("/", body.clone())).await;
        assert_eq!((reply.status, reply.origin()), (200, "a"));
        assert!(origin.last_request().body == body, "what came is what was sent");
    }
    assert_eq!(origin.connections(), 1, "it is kept");
    // One that has ended is not used again, nor taken for a whole answer.
    origin.stop().await;
    origin.restart();
    eventually("the end has come", async || balancer.send(&Request::post("/", "text")).await.status == 200).await;
    origin.answer(|_| vec![Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_vec()), Step::Close]);
    assert_eq!(balancer.get("/").await.end, End::CutOff);
    origin.answer_with(response(200, &[("Connection", "close")], "whole"));
    assert_eq!(balancer.get("/").await.text(), "whole");
    // As any backend, by its address as it is written.
    let escaped = address.replace('/', "%2F");
    balancer.change("PATCH", &format!("/admin/pools/app/backends/{escaped}"), Some(json!({ "state": "down" }))).await;
    assert_eq!(balancer.get("/").await.status, 503);
}

#[tokio::test]
async fn what_is_wrong_with_a_unix_socket_is_told() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    drop(std::os::unix::net::UnixListener::bind(path("dead")).expect("a free path"));
    std::fs::write(path("file"), "").expect("a writable directory");
    let pools = ["missing", "dead", "file"].map(|name| {
        let address = format!("unix:{}", path(name).display());
        Pool::empty(name).backend(&address, "").without_ejection()
    });
    let [missing, dead, file] = pools;
    let config = Config::default().pool(missing).pool(dead).pool(file);
    let config = config.route("", "/missing", "missing").route("", "/dead", "dead").route("", "/file", "file");
    let balancer = Balancer::start(config).await;
    for (name, failure, reason) in [
        ("missing", "connect-unreachable", "there is no such file: start its server, or correct the path"),
        ("dead", "connect-refused", "nobody listens on the socket: its server has ended and left the file behind"),
        ("file", "connect-refused", "nobody listens on the socket"),
    ] {
        assert_eq!(balancer.get(&format!("/{name}")).await.status, 502);
        balancer.logs(&[&format!("pool={name} backend=unix:"), &format!("failure=\"{failure}\""), reason]).await;
    }
    let checked = tests::evenkeel(["check", &balancer.config_file().display().to_string()]).await;
    assert!(!checked.status.success(), "{checked:?}");
    let told = |words: &str| assert!(checked.stderr.contains(words), "{words:?} in\n{}", checked.stderr);
    told(&format!("warning: the socket of backend unix:{} is not there now", path("missing").display()));
    told(&format!("backend unix:{} is a file, but no socket", path("file").display()));
    assert!(!checked.stderr.contains("dead"), "its server may start later: {}", checked.stderr);
}

// nginx answers 502 as soon as the queue of a Unix socket is full; over TCP the system waits.
#[tokio::test]
async fn a_unix_socket_whose_queue_is_full_is_waited_for() {
    let folder = folder();
    let origin = Origin::start("a").await;
    let path = folder.path().join("app.sock");
    let listener = listener_with_short_queue(&path);
    let mut waiting = Vec::new();
    while let Ok(connected) = tokio::net::UnixStream::connect(&path).await {
        waiting.push(connected);
    }
    let address = format!("unix:{}", path.display());
    let config = Config::default().pool(pool(&address).set("connect_timeout = \"20s\"").without_ejection());
    let balancer = Balancer::start(config).await;
    let mut wire = balancer.connect().await;
    wire.send(Request::get("/").to_bytes()).await;
    eventually("the request waits", async || balancer.in_flight().await == 1).await;
    drop(waiting);
    let _relay = relay(listener, origin.address());
    assert_eq!(wire.reply().await.status, 200);
}

fn listener_with_short_queue(path: &Path) -> UnixListener {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None).expect("a socket");
    socket::bind(socket.as_raw_fd(), &UnixAddr::new(path).expect("a short path")).expect("a free path");
    socket::listen(&socket, Backlog::new(1).expect("a small number")).expect("a bound socket");
    UnixListener::from_std(socket.into()).expect("a socket that does not block")
}
