//! Evenkeel in a Pingora server (docs/pingora.md): what such a server does with its process. Requests are tested by the
//! other modules, with `make test-pingora`.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::{Balancer, Config, Origin, Program, Request, Wire, eventually, found_eventually};

/// With a short grace period, all of which Pingora takes to stop.
fn config<'a>(origins: impl IntoIterator<Item = &'a Origin>) -> Config {
    Config::of(origins).server("shutdown_timeout = \"1s\"")
}

fn prepare(program: Program, config: &Config) -> Balancer {
    let mut balancer = Balancer::prepare(config);
    balancer.program = program;
    balancer
}

async fn start(program: Program, config: &Config) -> Balancer {
    let mut balancer = prepare(program, config);
    balancer.start_again().await;
    balancer
}

/// Differs for each process.
async fn etag(balancer: &Balancer) -> Option<String> {
    let reply = balancer.try_admin("GET", "/admin/config", None).await?;
    reply.field("ETag").map(str::to_owned)
}

/// Status of the answer on a connection of its own.
async fn get(address: SocketAddr, target: &'static str) -> u16 {
    Wire::connect(address).await.exchange(&Request::get(target).with("Connection", "close")).await.status
}

/// Sends requests one after the other, each on a connection of its own, until `is_over`. Each must succeed.
async fn visit(address: SocketAddr, is_over: Arc<AtomicBool>) {
    while !is_over.load(Ordering::Relaxed) {
        assert_eq!(get(address, "/").await, 200);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

// The new process could not bind the admin API's address, and ended after it had taken the listening sockets.
async fn is_upgraded_without_losing_a_request_or_a_change(program: Program, moves_admin: bool) {
    let origins = Origin::several(["a", "b"]).await;
    let config = config(&origins);
    let mut balancer = start(program, &config).await;
    balancer.switch_algorithm("ip-hash").await;
    let former_etag = etag(&balancer).await.expect("an answer");
    let address = balancer.address();
    let held = tokio::spawn(get(address, "/hold"));
    eventually("the request is held", async || origins.iter().any(|origin| origin.heads() > 0)).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let visits = tokio::spawn(visit(address, Arc::clone(&is_over)));

    // A change that the former process has begun, and that keeps the admin API's address.
    let body = r#"{"algorithm":"least-connections"}"#;
    let mut change = Wire::connect(balancer.admin_address()).await;
    change
        .send(format!(
            "POST /admin/algorithm HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nExpect: 100-continue\r\n\r\n",
            body.len()
        ))
        .await;
    assert_eq!(change.reply_head().await.status, 100);

    let _former_address = moves_admin.then(|| balancer.move_admin(&config));
    balancer.options = vec!["--upgrade"];
    let mut former = balancer.launch_another();
    eventually("the new process waits for sockets", async || balancer.file("evenkeel.upgrade.sock").exists()).await;
    former.signal(Signal::SIGQUIT);
    balancer.logs(&["still belongs to the process that this one replaces"]).await;
    change.send(body).await;
    assert_eq!(change.reply().await.status, 200);
    eventually("the new process has the admin API", async || {
        etag(&balancer).await.is_some_and(|etag| etag != former_etag)
    })
    .await;
    assert_eq!(balancer.algorithm().await, "least-connections", "the former process's last change");

    origins.iter().for_each(Origin::release);
    assert_eq!(held.await.expect("no panic"), 200, "the former process has answered it");
    let status = former.end().await;
    assert!(status.success(), "{status}: {}", balancer.log());
    is_over.store(true, Ordering::Relaxed);
    visits.await.expect("no request fails");

    // The new process owns the state file now.
    balancer.switch_algorithm("round-robin").await;
    balancer.stop().await;
    balancer.options.clear();
    balancer.start_again().await;
    assert_eq!(balancer.algorithm().await, "round-robin");
}

#[tokio::test]
async fn a_proxy_is_upgraded_without_losing_a_request_or_a_change() {
    is_upgraded_without_losing_a_request_or_a_change(Program::PingoraProxy, false).await;
}

#[tokio::test]
async fn an_engine_is_upgraded_without_losing_a_request_or_a_change() {
    is_upgraded_without_losing_a_request_or_a_change(Program::PingoraEngine, false).await;
}

// Each of the two had an address of its own, and so both owned the state file: the former one's last change was lost.
#[tokio::test]
async fn an_upgrade_that_moves_the_admin_api_loses_no_change() {
    is_upgraded_without_losing_a_request_or_a_change(Program::PingoraEngine, true).await;
}

/// Ends a process that is no child of this one.
struct Daemon(Pid);

impl Daemon {
    fn is_running(&self) -> bool {
        // One that nobody waits for stays as a zombie.
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = kill(self.0, Signal::SIGKILL);
        }
    }
}

// The threads that write logs and the state file did not survive the fork.
#[tokio::test]
async fn a_daemon_writes_its_logs_and_its_state() {
    let a = Origin::start("a").await;
    let sections = "[access_log]\nfile = \"access.log\"\n[log]\nfile = \"evenkeel.log\"";
    let mut balancer = prepare(Program::PingoraEngine, &config([&a]).section(sections));
    balancer.options = vec!["--daemon"];
    balancer.launch();
    let status = balancer.process().end().await;
    assert!(status.success(), "{}", balancer.log());
    let pid = found_eventually("the daemon's number", async || {
        fs::read_to_string(balancer.file("evenkeel.pid")).ok()?.trim().parse().ok()
    })
    .await;
    let daemon = Daemon(Pid::from_raw(pid));
    eventually("the daemon is ready", async || {
        balancer.try_admin("GET", "/readyz", None).await.is_some_and(|reply| reply.status == 200)
    })
    .await;
    balancer.switch_algorithm("ip-hash").await;
    assert_eq!(balancer.get("/").await.status, 200);
    assert!(balancer.lines("access.log", 1).await[0].contains("\"status\":200"));
    let log = || fs::read_to_string(balancer.file("evenkeel.log")).unwrap_or_default();
    eventually("the change is logged", async || log().contains("change=1")).await;
    assert!(fs::read_to_string(balancer.state_file()).expect("a file").contains("ip-hash"));
    kill(daemon.0, Signal::SIGTERM).expect("a process of this test");
    eventually("the daemon has ended", async || !daemon.is_running()).await;
}

// Nobody waited for the thread that writes them: what was logged in the last milliseconds was missing.
#[tokio::test]
async fn exchanges_that_the_end_of_the_server_cuts_off_are_logged() {
    const CLIENTS: usize = 50;
    let a = Origin::start("a").await;
    let config = config([&a]).section("[access_log]\nfile = \"access.log\"");
    let mut balancer = start(Program::PingoraEngine, &config).await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = balancer.connect().await;
        client.send(Request::get("/hold").to_bytes()).await;
        clients.push(client);
    }
    eventually("the requests are held", async || a.heads() == CLIENTS as u64).await;
    balancer.stop().await;
    balancer.lines("access.log", CLIENTS).await;
}

#[tokio::test]
async fn signals_reload_the_file_and_reopen_the_logs() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let sections = "[access_log]\nfile = \"access.log\"\n[log]\nfile = \"evenkeel.log\"";
    let mut balancer = start(Program::PingoraEngine, &config([&a]).section(sections)).await;
    assert_eq!(balancer.get("/1").await.origin(), "a");
    balancer.lines("access.log", 1).await;

    for log in ["access.log", "evenkeel.log"] {
        fs::rename(balancer.file(log), balancer.file(&format!("{log}.1"))).expect("renamed");
    }
    balancer.signal(Signal::SIGUSR1);
    eventually("the logs are opened again", async || {
        balancer.get("/2").await;
        balancer.file("access.log").exists()
    })
    .await;

    balancer.configure(&config([&b]).section(sections));
    balancer.signal(Signal::SIGHUP);
    eventually("the file is read again", async || balancer.get("/").await.origin() == "b").await;
    let log = || fs::read_to_string(balancer.file("evenkeel.log")).unwrap_or_default();
    eventually("that is logged in the new file", async || log().contains("by=SIGHUP")).await;
}

#[tokio::test]
async fn a_filter_around_the_proxy_decides_before_it_and_changes_what_it_writes() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = start(Program::PingoraFilter, &config([&a, &b])).await;
    let refused = balancer.get("/").await;
    assert_eq!((refused.status, a.heads() + b.heads()), (403, 0));
    let request = Request::get("/").with("X-Api-Key", "secret-of-a");
    let mut wire = balancer.connect().await;
    for _ in 0..2 {
        let reply = wire.exchange(&request).await;
        assert_eq!((reply.status, reply.field("X-Filtered")), (200, Some("yes")));
    }
    for origin in [&a, &b] {
        let forwarded = origin.last_request();
        assert_eq!(forwarded.field("X-Key-Id"), Some("secr"));
        assert_eq!(forwarded.field("X-Api-Key"), None);
        assert_eq!(forwarded.field("X-Forwarded-For"), Some("127.0.0.1"));
    }
    // Evenkeel tries the other one.
    a.stop().await;
    for _ in 0..4 {
        assert_eq!(balancer.send(&request).await.origin(), "b");
    }
    eventually("all are counted", async || {
        balancer.metrics().await.sum("evenkeel_requests_total", &[("pool", "app")]) == 6.0
    })
    .await;
}
