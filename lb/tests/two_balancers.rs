//! Two balancers in one process are independent: metrics, state, connections to backends and shutdown.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use evenkeel::config::toml;
use evenkeel::metrics::Metrics;
use evenkeel::server::{self, Command, Sockets, Start};
use tokio::sync::mpsc::{Sender, channel};
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(20);

/// Answers every request with its name, and counts its connections.
struct Backend {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

struct Balancer {
    address: SocketAddr,
    admin: SocketAddr,
    commands: Sender<Command>,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Backend {
    fn start(name: &'static str) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = socket.local_addr().expect("a bound socket");
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        thread::spawn(move || {
            for mut stream in socket.incoming().flatten() {
                counted.fetch_add(1, Ordering::Relaxed);
                thread::spawn(move || {
                    while let Some(head) = read_head(&mut stream) {
                        assert!(head.starts_with("GET "), "{head}");
                        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
                        stream.write_all(answer.as_bytes()).expect("a client that reads");
                    }
                });
            }
        });
        Self { address, connections }
    }
}

impl Balancer {
    fn start(folder: &Path, backend: SocketAddr) -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (traffic, admin) = (listen(), listen());
        let address = |socket: &TcpListener| socket.local_addr().expect("a bound socket");
        let (address, admin_address) = (address(&traffic), address(&admin));
        let path = folder.join("evenkeel.toml");
        let text = format!(
            "[server]\nthreads = 1\n[[listener]]\naddress = \"{address}\"\n[admin]\naddress = \"{admin_address}\"\n\
             [[route]]\npool = \"app\"\n[[pool]]\nname = \"app\"\nbackends = [\"{backend}\"]\n"
        );
        std::fs::write(&path, &text).expect("a writable folder");
        let config = toml::read(&text, &path).expect("valid");
        let start = Start { path, config, metrics: Arc::new(Metrics::new()), open_files: 1024 };
        let mut sockets = Sockets::default();
        [traffic, admin].into_iter().for_each(|socket| sockets.add(socket).expect("a bound socket"));
        let (commands, receiver) = channel(1);
        let running = tokio::spawn(server::run(start, sockets, receiver));
        Self { address, admin: admin_address, commands, running }
    }

    async fn ready(&self) {
        let deadline = Instant::now() + LIMIT;
        while !ask(self.admin, "GET", "/readyz", "").await.ends_with("ready\n") {
            assert!(Instant::now() < deadline, "it is not ready");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// As [`Self::count`], once it is `least`: an exchange is counted after its answer is sent.
    async fn counts(&self, metric: &str, least: u64) -> u64 {
        let deadline = Instant::now() + LIMIT;
        while self.count(metric).await < least && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.count(metric).await
    }

    /// The sum of all series of a metric.
    async fn count(&self, metric: &str) -> u64 {
        let text = ask(self.admin, "GET", "/metrics", "").await;
        let series = text.lines().filter(|line| line.starts_with(&format!("{metric}{{")));
        series.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

/// The complete answer to one request on a new connection.
async fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> String {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let asking = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).expect("somebody who listens");
        stream.set_read_timeout(Some(LIMIT)).expect("an option of every socket");
        stream.write_all(request.as_bytes()).expect("somebody who reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("a whole answer");
        answer
    });
    asking.await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_balancers_in_one_process_share_nothing() {
    // In memory where that can be: a busy disk may take a change later than the answer to it.
    let folder = || tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary folder");
    let folders = [folder(), folder()];
    let [a, b] = ["a", "b"].map(Backend::start);
    let one = Balancer::start(folders[0].path(), a.address);
    let other = Balancer::start(folders[1].path(), b.address);
    one.ready().await;
    other.ready().await;

    for _ in 0..3 {
        assert!(ask(one.address, "GET", "/", "").await.ends_with("\r\n\r\na"));
    }
    assert!(ask(other.address, "GET", "/", "").await.ends_with("\r\n\r\nb"));
    let answered = "evenkeel_requests_total";
    assert_eq!((one.counts(answered, 3).await, other.counts(answered, 1).await), (3, 1));
    // Each keeps its own idle connection.
    let connections = |backend: &Backend| backend.connections.load(Ordering::Relaxed);
    assert_eq!((connections(&a), connections(&b)), (1, 1));

    let switched = ask(one.admin, "POST", "/admin/algorithm", "{\"algorithm\":\"ip-hash\"}").await;
    assert!(switched.starts_with("HTTP/1.1 200"), "{switched}");
    assert!(ask(other.admin, "GET", "/admin/algorithm", "").await.contains("\"algorithm\":\"weighted\""));
    let state = |place: usize| std::fs::read_to_string(folders[place].path().join("evenkeel.state.json"));
    assert!(state(0).expect("a state file").contains("ip-hash"));
    assert!(!state(1).expect("a state file").contains("ip-hash"));

    one.commands.send(Command::Stop).await.expect("a running balancer");
    let ended = tokio::time::timeout(LIMIT, one.running).await.expect("it ends");
    ended.expect("no panic").expect("an orderly end");
    assert!(TcpStream::connect(one.address).is_err() && TcpStream::connect(one.admin).is_err(), "it is gone");
    assert!(ask(other.address, "GET", "/", "").await.ends_with("\r\n\r\nb"), "the other goes on");
    // Dropping its commands ends it as well.
    drop(other.commands);
    tokio::time::timeout(LIMIT, other.running).await.expect("it ends").expect("no panic").expect("an orderly end");
}
