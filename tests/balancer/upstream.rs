//! Connecting to backends: over Unix sockets, and with limits on connections.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::authority::{Authority, shown};
use tests::http2::Http2;
use tests::nginx::Nginx;
use tests::process::installed;
use tests::{Balancer, Config, End, Origin, Pool, Port, Request, Step, eventually, response, within};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpStream, UnixListener};
use tokio::task::JoinSet;

/// A folder with a path short enough for a socket's name.
fn folder() -> TempDir {
    TempDir::new_in("/tmp").expect("a temporary directory")
}

fn pool(address: &str) -> Pool {
    Pool::empty("app").backend(address, "")
}

/// Listens on a Unix socket for an origin, until dropped.
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
async fn a_unix_socket_backend_is_probed_and_serves() {
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
async fn requests_to_a_unix_socket_backend_are_as_over_tcp() {
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
    // A connection that has ended is not reused, and its truncated answer does not count as complete.
    origin.stop().await;
    origin.restart();
    eventually("the end has come", async || balancer.send(&Request::post("/", "text")).await.status == 200).await;
    origin.answer(|_| vec![Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_vec()), Step::Close]);
    assert_eq!(balancer.get("/").await.end, End::CutOff);
    origin.answer_with(response(200, &[("Connection", "close")], "whole"));
    assert_eq!(balancer.get("/").await.text(), "whole");
    // Like any backend, by its address as written.
    let escaped = address.replace('/', "%2F");
    balancer.change("PATCH", &format!("/admin/pools/app/backends/{escaped}"), Some(json!({ "state": "down" }))).await;
    assert_eq!(balancer.get("/").await.status, 503);
}

#[tokio::test]
async fn problems_with_a_unix_socket_backend_are_explained() {
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
        ("dead", "connect-refused", "no process listens on the socket: its server has ended and left the file behind"),
        ("file", "connect-refused", "no process listens on the socket"),
    ] {
        assert_eq!(balancer.get(&format!("/{name}")).await.status, 502);
        balancer.logs(&[&format!("pool={name} backend=unix:"), &format!("failure=\"{failure}\""), reason]).await;
    }
    let checked = tests::evenkeel(["check", &balancer.config_file().display().to_string()]).await;
    assert!(!checked.status.success(), "{checked:?}");
    let assert_reported = |words: &str| assert!(checked.stderr.contains(words), "{words:?} in\n{}", checked.stderr);
    assert_reported(&format!("warning: the socket of backend unix:{} is not there now", path("missing").display()));
    assert_reported(&format!("backend unix:{} is a file, but no socket", path("file").display()));
    assert!(!checked.stderr.contains("dead"), "its server may start later: {}", checked.stderr);
}

// Each request tried to connect every 2 ms until `connect_timeout`.
#[tokio::test]
async fn a_unix_socket_backend_with_a_full_queue_counts_as_refusing() {
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
    let reply = balancer.get("/").await;
    assert_eq!(reply.status, 502);
    assert!(reply.text().contains("queue of connections to be accepted is full"), "{}", reply.text());
    balancer.logs(&["failure=\"connect-queue-full\"", "its server accepts too slowly"]).await;
    let metrics = balancer.metrics().await;
    assert_eq!(metrics.sum("evenkeel_backend_failures_total", &[("kind", "connect-queue-full")]), 1.0);
    assert_eq!(metrics.sum("evenkeel_backend_failures_total", &[]), 1.0);
    drop(waiting);
    let _relay = relay(listener, origin.address());
    assert_eq!(balancer.get("/").await.status, 200);
}

fn listener_with_short_queue(path: &Path) -> UnixListener {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None).expect("a socket");
    socket::bind(socket.as_raw_fd(), &UnixAddr::new(path).expect("a short path")).expect("a free path");
    socket::listen(&socket, Backlog::new(1).expect("a small number")).expect("a bound socket");
    UnixListener::from_std(socket.into()).expect("a socket that does not block")
}

#[tokio::test]
async fn source_address_is_used_for_connections_to_backends() {
    let nginx = Nginx::start("server { listen {listen}; location / { return 200 $remote_addr; } }").await;
    let address = nginx.address().to_string();
    let probe = "path = \"/\"\ninterval = \"100ms\"\ntimeout = \"100ms\"\nrise = 1\nfall = 3";
    let from = |source: &str| {
        let pool = pool(&address).set(&format!("source_address = \"{source}\"")).without_ejection();
        Config::default().server("threads = 1").pool(pool.probe(probe))
    };
    let balancer = Balancer::start(from("127.0.0.9")).await;
    assert_eq!(balancer.get("/").await.text(), "127.0.0.9");
    balancer.configure(&from(""));
    balancer.change("POST", "/admin/reload", None).await;
    assert_eq!(balancer.get("/").await.text(), "127.0.0.1", "no connection from before is used");
    // An address that this machine does not have is our own mistake: no backend is blamed.
    balancer.configure(&from("192.0.2.9"));
    balancer.change("POST", "/admin/reload", None).await;
    let reply = balancer.get("/").await;
    assert_eq!(reply.status, 503, "{}", reply.text());
    balancer.logs(&["failure=\"no-source-address\"", "a backend could not be probed", "error=no-source-address"]).await;
    let metrics = balancer.metrics().await;
    let not_opened = [("pool", "app"), ("kind", "no-source-address")];
    assert_eq!(metrics.sum("evenkeel_connections_not_opened_total", &not_opened), 1.0);
    assert_eq!(metrics.sum("evenkeel_backend_failures_total", &[]), 0.0);
    let checked = tests::evenkeel(["check", &balancer.config_file().display().to_string()]).await;
    assert!(checked.stderr.contains("which is not an address of this machine now"), "{}", checked.stderr);
    balancer.configure(&from("::1"));
    let checked = tests::evenkeel(["check", &balancer.config_file().display().to_string()]).await;
    assert!(
        !checked.status.success() && checked.stderr.contains("an IPv6 address, and never reaches backend"),
        "{checked:?}"
    );
}

// A lack of local ports is not blamed on a backend, and another local address still has ports.
#[tokio::test]
async fn a_lack_of_local_ports_is_distinguished_from_a_refusing_backend() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(folder.path().join("slow"), vec![b'x'; 1 << 20]).expect("a writable directory");
    let scratch: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {};", path(name)))
        .concat();
    let nginx = format!(
        "user root; master_process off; pid {}; error_log stderr; events {{}} http {{ access_log off; {scratch} root {};\n\
         server {{ listen 127.0.0.1:9001; location /slow {{ limit_rate 1k; }} location / {{ return 200 a; }} }}\n\
         server {{ listen 127.0.0.2:9001; location / {{ return 200 b; }} }} }}",
        path("nginx.pid"),
        path(""),
    );
    let text = "[server]\nthreads = 1\n[[listener]]\naddress = \"127.0.0.1:8888\"\n[[listener]]\naddress = \"127.0.0.1:8887\"\n\
                [[pool]]\nname = \"one\"\nbackends = [\"127.0.0.1:9001\"]\n\
                [[pool]]\nname = \"two\"\nbackends = [\"127.0.0.1:9001\", \"127.0.0.2:9001\"]\n\
                [[route]]\npool = \"one\"\n[[route]]\npath = \"/two\"\npool = \"two\"\n";
    for (file, text) in [("nginx.conf", nginx.as_str()), ("evenkeel.toml", text)] {
        std::fs::write(folder.path().join(file), text).expect("a writable directory");
    }
    // In a separate network namespace, with four ports to connect from.
    let script = r#"set -e; PIDS=; trap 'kill $PIDS' EXIT TERM
        ip link set lo up; echo 40000 40003 > /proc/sys/net/ipv4/ip_local_port_range
        "$WEB" -g 'daemon off;' -p . -c nginx.conf > nginx.log 2>&1 & PIDS="$PIDS $!"
        "$EVENKEEL" run --config evenkeel.toml 2> evenkeel.log & PIDS="$PIDS $!"
        until curl -sf -m 5 http://127.0.0.2:9001/; do sleep 0.05; done
        until curl -sf -m 5 http://127.0.0.1:8889/readyz; do sleep 0.05; done
        for n in 1 2 3 4; do curl -s -m 15 http://127.0.0.1:8888/slow > /dev/null 2>&1 & PIDS="$PIDS $!"; done
        until curl -sf -m 5 http://127.0.0.1:8889/metrics | grep -q '_requests_total{backend.*2xx.*one.* 4$'; do sleep 0.1; done
        echo; curl -s -m 5 -w ' %{http_code}\n' http://127.0.0.1:8887/
        for n in 1 2; do curl -s -m 5 -w ' %{http_code}\n' http://127.0.0.1:8887/two; done
        until curl -sf -m 5 http://127.0.0.1:8889/metrics > metrics; do sleep 0.1; done
        grep 'not_opened\|failures_total\|ejections' metrics; cat evenkeel.log >&2"#;
    let mut command = tokio::process::Command::new(installed("unshare", "util-linux"));
    command
        .args(["--map-root-user", "--net", "timeout", "18", "sh", "-c", script])
        .current_dir(folder.path())
        .kill_on_drop(true);
    command.env("WEB", installed("nginx", "nginx-light")).env("EVENKEEL", tests::balancer::program());
    let output = within("the script", command.output()).await.expect("a program that starts");
    let (stdout, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{log}");
    assert!(
        stdout.contains("no local port left for a connection to the backend.\n") && stdout.contains(" 503\n"),
        "{stdout}\n{log}"
    );
    assert_eq!(stdout.matches("b 200\n").count(), 2, "another address has ports: {stdout}\n{log}");
    assert!(
        stdout.contains("evenkeel_connections_not_opened_total{kind=\"no-local-port\",pool=\"one\"} 1"),
        "{stdout}"
    );
    let blamed = stdout.lines().filter(|line| line.contains("failures_total") || line.contains("ejections"));
    assert!(blamed.filter(|line| !line.starts_with('#')).all(|line| line.ends_with(" 0")), "{stdout}");
    assert!(log.contains("failure=\"no-local-port\""), "{log}");
}

#[tokio::test]
async fn proxy_headers_name_the_client_of_each_backend_connection() {
    let authority = Authority::new("Ours");
    let certified = authority.certify("app", "IP:127.0.0.1");
    let [plain, secured] = [Port::reserve(), Port::reserve()];
    let server = |listen: String| {
        format!(
            "server {{ listen {listen} proxy_protocol; {}\n\
             location / {{ return 200 \"$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr \
             $proxy_protocol_server_port $connection\"; }} }}\n",
            certified.of_nginx()
        )
    };
    let nginx = Nginx::start(&format!(
        "server {{ listen {{listen}}; }}\n{}{}",
        server(plain.address().to_string()),
        server(format!("{} ssl", secured.address())),
    ))
    .await;
    let tls = format!("tls = {{ ca = \"{}\" }}", shown(&authority.file()));
    for (version, address, tls) in [("v1", &plain, ""), ("v2", &plain, ""), ("v2", &secured, tls.as_str())] {
        let probe = "path = \"/\"\ninterval = \"100ms\"\ntimeout = \"100ms\"\nrise = 1\nfall = 3";
        let pool =
            pool(&address.address().to_string()).set(&format!("proxy_protocol = \"{version}\"\n{tls}")).probe(probe);
        // One of many addresses, chosen by the client.
        let wide = Port::reserve();
        let clear_text = format!("[[listener]]\naddress = \"0.0.0.0:{}\"\nh2c = true\n", wide.address().port());
        let config =
            Config::default().server("threads = 1\ntrusted_proxies = [\"127.0.0.1\"]").pool(pool.without_ejection());
        let config = config.section(&clear_text);
        let balancer = Balancer::start(config).await;
        let name = address.address().to_string();
        eventually("a probe of our own is taken", async || backend(&balancer, &name).await["status"] == "healthy")
            .await;
        let here = balancer.address();
        let [mut one, mut other] = [balancer.connect().await, balancer.connect().await];
        let asks = async |wire: &mut tests::Wire, request: &Request| {
            let text = wire.exchange(request).await.text();
            let (peer, connection) = text.rsplit_once(' ').expect("what nginx was told, and a number");
            (peer.to_owned(), connection.to_owned())
        };
        let mut connections = Vec::new();
        for _ in 0..2 {
            for wire in [&mut one, &mut other] {
                let client = wire.stream.local_addr().expect("connected");
                let (text, connection) = asks(wire, &Request::get("/")).await;
                let expected = format!("{} {} {} {}", client.ip(), client.port(), here.ip(), here.port());
                assert_eq!(text, expected, "{version}");
                connections.push(connection);
            }
        }
        assert_eq!((&connections[0], &connections[1]), (&connections[2], &connections[3]), "kept for its client");
        assert_ne!(connections[0], connections[1], "and for nobody else");
        // Another client behind the same proxy, whose port is unknown.
        for client in ["192.0.2.7", "192.0.2.8"] {
            let (text, connection) = asks(&mut one, &Request::get("/").with("X-Forwarded-For", client)).await;
            // nginx shows no port if it is 0.
            assert_eq!(text, format!("{client}  {} {}", here.ip(), here.port()), "{version}");
            assert!(!connections.contains(&connection), "{version}");
            connections.push(connection);
        }
        let there = wide.address();
        let text = Http2::connect_plain(there).await.get("/").await.text();
        assert!(text.contains(&format!(" {} {} ", there.ip(), there.port())), "{version} over HTTP/2: {text}");
    }
    drop(nginx);
}

#[tokio::test]
async fn no_backend_exceeds_its_max_connections() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let config = |timeout: &str, most: u32| {
        let pool = Pool::empty("app").set(&format!("queue_timeout = \"{timeout}\"")).algorithm("least-connections");
        let pool = pool.backend(&a.address().to_string(), &format!("max_connections = {most}"));
        Config::default().pool(pool.backend(&b.address().to_string(), "max_connections = 1"))
    };
    let balancer = Balancer::start(config("20s", 2)).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut wire = balancer.connect().await;
        wire.send(Request::get("/hold").to_bytes()).await;
        clients.push(wire);
    }
    let queued = async || balancer.metrics().await.sum("evenkeel_pool_queued", &[("pool", "app")]);
    eventually("two wait", async || queued().await == 2.0 && balancer.in_flight().await == 3).await;
    eventually("the others are asked", async || a.heads() == 2 && b.heads() == 1).await;
    // A client that leaves gives up its turn.
    let mut leaving = balancer.connect().await;
    leaving.send(Request::get("/").to_bytes()).await;
    eventually("a third waits", async || queued().await == 3.0).await;
    drop(leaving);
    eventually("it has left", async || queued().await == 2.0).await;
    // A reload with a higher limit admits one of them.
    balancer.configure(&config("20s", 3));
    balancer.change("POST", "/admin/reload", None).await;
    eventually("one waits", async || queued().await == 1.0 && a.heads() == 3).await;
    a.release();
    b.release();
    for wire in &mut clients {
        assert_eq!(wire.reply().await.status, 200);
    }
    balancer.until_idle().await;
    assert_eq!(queued().await, 0.0);
    // A client that waits too long gets an error, and no backend is blamed.
    a.hold();
    b.hold();
    balancer.configure(&config("50ms", 1));
    balancer.change("POST", "/admin/reload", None).await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut wire = balancer.connect().await;
        wire.send(Request::get("/hold").to_bytes()).await;
        clients.push(wire);
    }
    eventually("both are full", async || balancer.in_flight().await == 2).await;
    let reply = balancer.get("/").await;
    assert_eq!((reply.status, reply.field("retry-after")), (503, Some("5")));
    assert!(reply.text().contains("every backend is at its limit on connections"), "{}", reply.text());
    let refused = [("reason", "queue-timeout")];
    let is_counted = async || balancer.metrics().await.sum("evenkeel_refusals_total", &refused) == 1.0;
    eventually("it is counted", is_counted).await;
    let metrics = balancer.metrics().await;
    balancer.logs(&["a request waited too long", "pool=app failure=\"queue-timeout\""]).await;
    assert_eq!(metrics.sum("evenkeel_backend_failures_total", &[]), 0.0);
    a.release();
    b.release();
    for wire in &mut clients {
        assert_eq!(wire.reply().await.status, 200);
    }
}

// The limit could only be set in the file, and was not shown.
#[tokio::test]
async fn max_connections_of_an_added_backend_is_applied_kept_and_shown() {
    let [a, b, c] = Origin::several(["a", "b", "c"]).await;
    let mut balancer = Balancer::start(Config::of([&a])).await;
    let path = "/admin/pools/app/backends";
    let wanted = |most: i64| json!({ "address": b.address().to_string(), "max_connections": most });
    for bad in [-1, 1 << 32] {
        let reply = balancer.admin("POST", path, Some(wanted(bad))).await;
        let message = format!("max_connections {bad} is not from 0 (any number) to 4294967295");
        assert!(reply.status == 400 && reply.text().contains(&message), "{}", reply.text());
    }
    let added = balancer.change("POST", path, Some(wanted(8))).await;
    assert_eq!(added["max_connections"], 8, "{added}");
    let admin = format!("http://{}", balancer.admin_address());
    let address = c.address().to_string();
    let outcome = tests::evenkeel(["backend", "add", &address, "--max-connections", "7", "--admin", &admin]).await;
    assert!(outcome.status.success() && outcome.stdout.contains("7 at most"), "{outcome:?}");
    let change = &balancer.change("GET", "/admin/changes", None).await["changes"][0]["edits"][0];
    assert_eq!(change["after"]["max_connections"], 7, "{change}");
    assert!(change["text"].as_str().is_some_and(|text| text.ends_with("with weight 1, max_connections 7")), "{change}");
    let limit = async |balancer: &Balancer, origin: &Origin| {
        backend(balancer, &origin.address().to_string()).await["max_connections"].clone()
    };
    for time in ["as it is added", "after a restart"] {
        assert_eq!(limit(&balancer, &a).await, Value::Null, "{time}");
        assert_eq!((limit(&balancer, &b).await, limit(&balancer, &c).await), (json!(8), json!(7)), "{time}");
        balancer.stop().await;
        balancer.start_again().await;
    }
    let metrics = balancer.metrics().await;
    assert_eq!(metrics.sum("evenkeel_backend_max_connections", &[]), 15.0);
    let status = tests::evenkeel(["status", "--admin", &format!("http://{}", balancer.admin_address())]).await;
    assert!(status.stdout.contains(" 0/8 ") && status.stdout.contains(" 0/7 "), "{}", status.stdout);
}
