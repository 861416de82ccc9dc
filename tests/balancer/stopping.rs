//! Neither a stop nor a reload loses a request in flight, and an invalid configuration file changes nothing.

use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::http2::tls;
use tests::{Balancer, Config, Origin, Pool, Request, Step, WebSocket, Wire, eventually};

#[tokio::test]
async fn sigterm_finishes_requests_in_flight() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::start(Config::of([&a])).await;
    let mut held = held(&balancer).await;
    let mut idle = balancer.connect().await;
    assert_eq!(idle.exchange(&Request::get("/")).await.status, 200);
    eventually("the request arrived", async || a.heads() == 2).await;

    balancer.signal(Signal::SIGTERM);
    eventually("new connections are refused", async || Wire::try_connect(balancer.address()).await.is_err()).await;
    let ready = balancer.admin("GET", "/readyz", None).await;
    assert_eq!((ready.status, ready.text().trim()), (503, "stopping"));
    assert_eq!(balancer.admin("GET", "/healthz", None).await.status, 200, "the admin API stays to the end");
    assert_eq!(balancer.in_flight().await, 1);

    a.release();
    let reply = held.reply().await;
    assert_eq!((reply.status, reply.origin()), (200, "a"));
    let status = balancer.process().end().await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn unready_for_the_configured_delay_before_it_stops_accepting() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::start(Config::of([&a]).server("shutdown_delay = \"2s\"")).await;
    balancer.signal(Signal::SIGTERM);
    eventually("it is not ready", async || balancer.admin("GET", "/readyz", None).await.status == 503).await;
    assert_eq!(balancer.get("/").await.status, 200, "whoever has not heard yet is served");
    let status = balancer.process().end().await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn the_shutdown_deadline_ends_open_exchanges() {
    let a = Origin::start("a").await;
    let log = "[access_log]\nfile = \"access.log\"";
    let config = Config::of([&a]).server("shutdown_timeout = \"300ms\"").section(log);
    let mut balancer = Balancer::start(config).await;
    let mut held = held(&balancer).await;
    let mut socket = WebSocket::open(balancer.address(), "/socket").await;
    socket.echo("hello").await;
    eventually("the request arrived", async || balancer.in_flight().await == 2).await;
    balancer.stop().await;
    assert!(held.is_closed().await);
    socket.ended().await;
    // They were missing from the log.
    let lines = std::fs::read_to_string(balancer.file("access.log")).expect("a log");
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let mut ends: Vec<_> = lines.iter().map(|line| (line["target"].as_str(), line["status"].as_u64())).collect();
    ends.sort();
    assert_eq!(ends, [(Some("/hold"), Some(503)), (Some("/socket"), Some(101))]);
    assert!(lines.iter().all(|line| line["failure"] == "shutdown"), "{lines:?}");
}

#[tokio::test]
async fn a_second_signal_ends_open_exchanges() {
    let a = Origin::start("a").await;
    a.answer(|_| {
        vec![Step::Send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n".into()), Step::Hang]
    });
    let log = "[access_log]\nfile = \"access.log\"";
    let mut balancer = Balancer::start(Config::of([&a]).section(log)).await;
    let mut wire = balancer.connect().await;
    wire.send("GET /ticks HTTP/1.0\r\nHost: a\r\n\r\n").await;
    assert_eq!(wire.reply_head().await.status, 200);
    balancer.signal(Signal::SIGTERM);
    balancer.logs(&["stopping: not ready"]).await;
    balancer.signal(Signal::SIGTERM);
    let (begun, is_in_order) = wire.rest().await;
    assert!(!is_in_order, "half a response passes for a whole one: {begun:?}");
    let status = balancer.process().end().await;
    assert!(status.success(), "{status}");
    let lines = std::fs::read_to_string(balancer.file("access.log")).expect("a log");
    assert!(lines.contains("\"/ticks\"") && lines.contains("\"shutdown\""), "{lines}");
}

/// More connections than a thread accepts at once.
#[tokio::test]
async fn a_stop_serves_clients_that_have_connected() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::start(Config::of([&a]).server("threads = 2")).await;
    balancer.signal(Signal::SIGSTOP);
    let mut wires = Vec::new();
    for _ in 0..600 {
        let mut wire = balancer.connect().await;
        wire.send(Request::get("/").to_bytes()).await;
        wires.push(wire);
    }
    balancer.signal(Signal::SIGTERM);
    balancer.signal(Signal::SIGCONT);
    for mut wire in wires {
        assert_eq!(wire.reply().await.status, 200);
    }
    let status = balancer.process().end().await;
    assert!(status.success(), "{status}");
}

// It was closed at once.
#[tokio::test]
async fn a_stop_gives_a_new_client_time_for_its_first_request() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::start(Config::of([&a]).server("threads = 2")).await;
    let mut wires = Vec::new();
    for _ in 0..8 {
        wires.push(balancer.connect().await);
    }
    eventually("all are accepted", async || balancer.metrics().await.sum("evenkeel_client_connections", &[]) == 8.0)
        .await;
    balancer.signal(Signal::SIGTERM);
    eventually("it stops", async || Wire::try_connect(balancer.address()).await.is_err()).await;
    for wire in &mut wires {
        wire.send(Request::get("/").to_bytes()).await;
    }
    for wire in &mut wires {
        assert_eq!(wire.reply().await.status, 200);
        assert!(wire.is_closed().await);
    }
    let status = balancer.process().end().await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn during_the_delay_every_response_closes_its_connection() {
    let a = Origin::start("a").await;
    let config = Config::of([&a]).server("shutdown_delay = \"1h\"").route("shop.example", "/", "app");
    let mut balancer = Balancer::start(config).await;
    balancer.signal(Signal::SIGTERM);
    eventually("it is not ready", async || balancer.admin("GET", "/readyz", None).await.text() == "stopping\n").await;
    for (host, status) in [("shop.example", 200), ("nowhere.example", 404)] {
        let mut wire = balancer.connect().await;
        let reply = wire.exchange(&Request::new("GET", "/").with("Host", host)).await;
        assert_eq!((reply.status, reply.field("connection")), (status, Some("close")), "{host}");
        assert!(wire.is_closed().await, "{host}");
    }
    balancer.stop().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_idle_clients() {
    let a = Origin::start("a").await;
    // Longer than the test waits for the end, and shorter than anything else takes.
    for timeout in ["1h", "50ms"] {
        let settings = format!("shutdown_timeout = \"{timeout}\"");
        let mut plain = Balancer::start(Config::of([&a]).server(&settings).listener("max_body_bytes = 10")).await;
        let mut with_tls = Balancer::start(Config::of([&a]).server(&settings).listener(&tls())).await;
        let mut idle = plain.connect().await;
        assert_eq!(idle.exchange(&Request::get("/")).await.status, 200);
        let mut half_a_head = plain.connect().await;
        half_a_head.send("GET / HTTP/1.1\r\nHost: ").await;
        let mut refused = plain.connect().await;
        refused.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n").await;
        assert_eq!(refused.reply().await.status, 413);
        let _no_handshake = with_tls.connect().await;
        for balancer in [&mut plain, &mut with_tls] {
            balancer.stop().await;
            assert!(balancer.log().contains("stopped: every exchange has finished"), "{timeout}: {}", balancer.log());
        }
    }
}

#[tokio::test]
async fn unused_signals_are_ignored_and_logged() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::start(Config::of([&a])).await;
    for (signal, line) in [
        (Signal::SIGUSR2, "SIGUSR2 is ignored: upgrading"),
        (Signal::SIGALRM, "SIGALRM is ignored"),
        (Signal::SIGVTALRM, "SIGVTALRM is ignored"),
        (Signal::SIGPROF, "SIGPROF is ignored"),
        (Signal::SIGIO, "SIGIO is ignored"),
        (Signal::SIGSTKFLT, "SIGSTKFLT is ignored"),
        (Signal::SIGPWR, "SIGPWR is ignored"),
    ] {
        balancer.signal(signal);
        eventually(line, async || balancer.log().contains(line)).await;
    }
    for number in [34, 64] {
        let kill = format!("kill -{number} {}", balancer.process().id());
        assert!(Command::new("sh").args(["-c", &kill]).status().expect("a shell").success());
        let line = format!("real-time signal {number} is ignored");
        eventually(&line, async || balancer.log().contains(&line)).await;
    }
    for signal in [Signal::SIGPIPE, Signal::SIGWINCH, Signal::SIGXFSZ] {
        balancer.signal(signal);
    }
    assert_eq!(balancer.get("/").await.origin(), "a");
    balancer.stop().await;
}

#[tokio::test]
async fn a_log_at_its_size_limit_loses_lines_but_not_the_process() {
    let a = Origin::start("a").await;
    let log = "[access_log]\nfile = \"access.log\"";
    let mut balancer = Balancer::start(Config::of([&a]).section(log)).await;
    let id = balancer.process().id();
    let limit = |bytes: &str| {
        let limit = Command::new("prlimit").args(["--pid", &id.to_string(), &format!("--fsize={bytes}")]).status();
        assert!(limit.expect("prlimit, of util-linux").success());
    };
    limit("0:unlimited");
    eventually("lines are lost", async || {
        // Enough to fill the writer's buffer, with nothing lost yet.
        assert_eq!(balancer.origins_of(200).await.concat(), "a".repeat(200));
        balancer.metrics().await.sum("evenkeel_access_log_lost_total", &[]) > 0.0
    })
    .await;
    limit("unlimited:unlimited");
    eventually("it is told how many", async || {
        balancer.get("/").await;
        balancer.log().contains("lines of the access log were lost")
    })
    .await;
    balancer.stop().await;
}

#[tokio::test]
async fn sigint_and_sigquit_stop_gracefully() {
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        let a = Origin::start("a").await;
        let mut balancer = Balancer::start(Config::of([&a])).await;
        let mut held = held(&balancer).await;
        eventually("the request arrived", async || a.heads() == 1).await;
        balancer.signal(signal);
        balancer.logs(&["stopping: not ready from now on", "in_flight=1 timeout_seconds="]).await;
        a.release();
        assert_eq!(held.reply().await.status, 200, "{signal}");
        let status = balancer.process().end().await;
        assert!(status.success(), "{signal}: {status}");
    }
}

#[tokio::test]
async fn restarts_on_the_same_ports_at_once() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::start(Config::of([&a])).await;
    for _ in 0..3 {
        let mut wire = balancer.connect().await;
        assert_eq!(wire.exchange(&Request::get("/")).await.status, 200);
        balancer.stop().await;
        balancer.start_again().await;
    }
}

#[tokio::test]
async fn a_reload_routes_new_requests_and_keeps_those_in_flight() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let mut balancer = Balancer::start(Config::of([&a])).await;
    let mut kept_alive = balancer.connect().await;
    assert_eq!(kept_alive.exchange(&Request::get("/")).await.origin(), "a");
    let mut held = held(&balancer).await;
    let mut socket = WebSocket::open(balancer.address(), "/socket").await;
    socket.echo("before").await;
    eventually("both are in flight", async || balancer.in_flight().await == 2).await;

    balancer.configure(&Config::of([&b]));
    balancer.signal(Signal::SIGHUP);
    eventually("the new backend is there", async || !balancer.backend(&b).await.is_null()).await;
    assert_eq!(kept_alive.exchange(&Request::get("/")).await.origin(), "b");
    assert_eq!(balancer.origins_of(4).await.concat(), "bbbb");
    socket.echo("after").await;
    a.release();
    assert_eq!(held.reply().await.origin(), "a");
    socket.echo("still").await;
    socket.close().await;
    eventually("the old backend is gone", async || balancer.backend(&a).await.is_null()).await;
    balancer.until_idle().await;
}

#[tokio::test]
async fn a_reload_by_the_admin_api_returns_the_new_version() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let version = balancer.version().await;
    balancer.configure(&Config::of([&a, &b]).app(|pool| pool.algorithm("weighted")));
    let answer = balancer.change("POST", "/admin/reload", None).await;
    assert_eq!((&answer["version"], &answer["warnings"]), (&json!(version + 1), &json!([])));
    assert_eq!(balancer.algorithm().await, "weighted");
    assert_eq!(balancer.metrics().await.sum("evenkeel_reloads_total", &[("result", "success")]), 1.0);
}

#[tokio::test]
async fn a_reload_keeps_counters_and_turns() {
    let [a, b, c] = Origin::several(["a", "b", "c"]).await;
    let config = Config::of([&a, &b, &c]);
    let balancer = Balancer::start(config.clone()).await;
    let mut held = held(&balancer).await;
    eventually("the request arrived", async || a.heads() == 1).await;
    assert_eq!(balancer.origins_of(3).await.concat(), "bca");
    balancer.configure(&config.app(|pool| pool.set("response_timeout = \"30s\"")));
    balancer.change("POST", "/admin/reload", None).await;
    let backend = balancer.backend(&a).await;
    assert_eq!((&backend["in_flight"], &backend["requests"]), (&json!(1), &json!(2)), "{backend}");
    assert_eq!(balancer.origins_of(3).await.concat(), "bca", "the turn goes on");
    a.release();
    held.reply().await;
}

#[tokio::test]
async fn a_reload_of_an_invalid_file_changes_nothing_and_reports_every_problem() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let mut balancer = Balancer::start(Config::of([&a])).await;
    let before = (balancer.version().await, balancer.admin("GET", "/admin/config", None).await.text());
    let bad = Config::of([&b]).app(|pool| pool.algorithm("fastest").set("retries = 99").set("colour = \"red\""));
    balancer.configure(&bad.route("", "/", "nowhere"));
    let reply = balancer.admin("POST", "/admin/reload", None).await;
    assert_eq!((reply.status, reply.field("content-type")), (400, Some("application/problem+json")));
    for problem in ["fastest", "retries", "colour", "nowhere"] {
        assert!(reply.text().contains(problem), "{problem} in {}", reply.text());
    }
    balancer.signal(Signal::SIGHUP);
    eventually("both failures are counted", async || {
        balancer.metrics().await.sum("evenkeel_reloads_total", &[("result", "failure")]) == 2.0
    })
    .await;
    balancer.write("this is no TOML [");
    assert_eq!(balancer.admin("POST", "/admin/reload", None).await.status, 400);
    std::fs::remove_file(balancer.config_file()).expect("a file");
    assert_eq!(balancer.admin("POST", "/admin/reload", None).await.status, 400);

    let after = (balancer.version().await, balancer.admin("GET", "/admin/config", None).await.text());
    assert_eq!(after, before);
    assert_eq!(balancer.origins_of(2).await.concat(), "aa");
}

#[tokio::test]
async fn a_removed_pool_finishes_its_requests() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let two = Config::default().pool(Pool::of("app", [&a])).pool(Pool::of("old", [&b]));
    let balancer = Balancer::start(two.route("", "/", "app").route("", "/hold", "old")).await;
    let mut held = held(&balancer).await;
    eventually("the request arrived", async || b.heads() == 1).await;
    balancer.configure(&Config::of([&a]));
    balancer.change("POST", "/admin/reload", None).await;
    let old = balancer.change("GET", "/admin/pools/old", None).await;
    assert_eq!(old["backends"][0]["status"], "removing", "{old}");
    b.release();
    assert_eq!(held.reply().await.origin(), "b");
    let is_gone = async || balancer.admin("GET", "/admin/pools/old", None).await.status == 404;
    eventually("the pool is gone", is_gone).await;
    assert_eq!(balancer.get("/hello").await.origin(), "a");
}

async fn held(balancer: &Balancer) -> Wire {
    let mut wire = balancer.connect().await;
    wire.send(Request::get("/hold").to_bytes()).await;
    wire
}
