//! Metrics and logs show exactly what happened.

use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::{Balancer, Config, Origin, Pool, Request, Step, WebSocket, eventually, found_eventually, response};

const NAMES: [&str; 25] = [
    "evenkeel_build_info",
    "evenkeel_requests_total",
    "evenkeel_responses_total",
    "evenkeel_request_duration_seconds_bucket",
    "evenkeel_request_duration_seconds_sum",
    "evenkeel_request_duration_seconds_count",
    "evenkeel_retries_total",
    "evenkeel_backend_attempts_total",
    "evenkeel_backend_requests_total",
    "evenkeel_backend_failures_total",
    "evenkeel_backend_response_seconds_bucket",
    "evenkeel_backend_response_seconds_count",
    "evenkeel_backend_ejections_total",
    "evenkeel_backend_probes_total",
    "evenkeel_backend_in_flight",
    "evenkeel_backend_weight",
    "evenkeel_backend_status",
    "evenkeel_pool_algorithm",
    "evenkeel_pool_panic",
    "evenkeel_pool_available",
    "evenkeel_snapshot_version",
    "evenkeel_reloads_total",
    "evenkeel_access_log_lost_total",
    "evenkeel_log_lost_total",
    "process_resident_memory_bytes",
];

#[tokio::test]
async fn every_metric_is_there_from_the_start() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).app(|pool| pool.quick_probe())).await;
    let reply = balancer.admin("GET", "/metrics", None).await;
    assert!(reply.field("content-type").is_some_and(|kind| kind.starts_with("text/plain")));
    let metrics = balancer.metrics().await;
    for name in NAMES {
        assert!(metrics.has(name), "{name} in\n{}", reply.text());
    }
    for name in metrics.names() {
        assert!(name.starts_with("evenkeel_") || name.starts_with("process_"), "{name}");
    }
}

#[tokio::test]
async fn counters_match_the_traffic_exactly() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let config = Config::of([&a, &b]).app(|pool| pool.ejection("consecutive_failures = 0\nstatuses = [503]"));
    let config = config.route("", "/", "app").route("", "/status", "app");
    let balancer = Balancer::start(config).await;
    let mut wire = balancer.connect().await;
    for (target, times) in [("/", 7), ("/status/204", 4), ("/status/301", 2), ("/status/404", 5), ("/status/503", 6)] {
        for _ in 0..times {
            wire.exchange(&Request::get(target)).await;
        }
    }
    counted(&balancer, "evenkeel_requests_total", 24.0).await;
    let metrics = balancer.metrics().await;
    let requests = |route, code| metrics.sum("evenkeel_requests_total", &[("route", route), ("code", code)]);
    for (route, code, times) in [
        ("/", "2xx", 7.0),
        ("/", "5xx", 0.0),
        ("/status", "2xx", 4.0),
        ("/status", "3xx", 2.0),
        ("/status", "4xx", 5.0),
        ("/status", "5xx", 6.0),
    ] {
        assert_eq!(requests(route, code), times, "{route} {code}");
    }
    assert_eq!(metrics.sum("evenkeel_requests_total", &[]), 24.0);
    for origin in [&a, &b] {
        let address = origin.address().to_string();
        let backend = [("pool", "app"), ("backend", address.as_str())];
        assert_eq!(metrics.sum("evenkeel_backend_requests_total", &backend), 12.0);
        assert_eq!(metrics.sum("evenkeel_backend_attempts_total", &backend), 12.0);
        assert_eq!(metrics.sum("evenkeel_backend_response_seconds_count", &backend), 12.0);
        assert_eq!(balancer.backend(origin).await["requests"], 12);
    }
    let failures = |kind| metrics.sum("evenkeel_backend_failures_total", &[("kind", kind)]);
    assert_eq!((failures("status"), failures("connect-refused"), failures("reset")), (6.0, 0.0, 0.0));
    assert_eq!(metrics.sum("evenkeel_request_duration_seconds_count", &[("pool", "app")]), 24.0);
}

#[tokio::test]
async fn refusals_and_retries_are_counted_by_reason() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let config = Config::of([&a, &b]).app(|pool| pool.without_ejection()).listener("max_body_bytes = 10");
    let balancer = Balancer::start(config.route("shop.example", "/", "app")).await;
    let request = |method| Request::new(method, "/").with("Host", "shop.example");
    balancer.get("/").await;
    balancer.send(&request("POST").body("more than ten bytes")).await;
    balancer.send(&request("TRACE")).await;
    a.at_head(|_| vec![Step::Reset]);
    b.at_head(|_| vec![Step::Reset]);
    balancer.send(&request("GET")).await;
    counted(&balancer, "evenkeel_refusals_total", 4.0).await;
    let metrics = balancer.metrics().await;
    for (reason, times) in [("no-route", 1.0), ("body-too-large", 1.0), ("method", 1.0), ("reset", 1.0)] {
        assert_eq!(metrics.sum("evenkeel_refusals_total", &[("reason", reason)]), times, "{reason}");
    }
    assert_eq!(metrics.sum("evenkeel_retries_total", &[("pool", "app")]), 1.0);
    assert_eq!(metrics.sum("evenkeel_backend_failures_total", &[("kind", "reset")]), 2.0);
}

// They counted as WebSockets, and were logged with status 0.
#[tokio::test]
async fn a_client_that_gives_up_is_499() {
    for format in ["json", "combined"] {
        let a = Origin::start("a").await;
        let log = format!("[access_log]\nfile = \"access.log\"\nformat = \"{format}\"");
        let balancer = Balancer::start(Config::of([&a]).section(&log)).await;
        let mut wire = balancer.connect().await;
        wire.send(Request::get("/hold").to_bytes()).await;
        eventually("the backend has it", async || a.heads() == 1).await;
        drop(wire);
        balancer.lines("access.log", 1).await;
        // One that leaves before it has sent its body never reaches a backend.
        let mut wire = balancer.connect().await;
        wire.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf").await;
        drop(wire);
        let lines = balancer.lines("access.log", 2).await;
        for line in &lines {
            if format == "combined" {
                assert!(line.contains("HTTP/1.1\" 499 0 "), "{line}");
                continue;
            }
            let line: Value = serde_json::from_str(line).expect("JSON");
            assert_eq!((&line["status"], &line["failure"]), (&json!(499), &json!("client-gone")), "{line}");
            assert_eq!(line["refusal"], Value::Null, "{line}");
        }
        let socket = WebSocket::open(balancer.address(), "/socket").await;
        socket.close().await;
        counted(&balancer, "evenkeel_requests_total", 3.0).await;
        let metrics = balancer.metrics().await;
        for (code, times) in [("1xx", 1.0), ("2xx", 0.0), ("4xx", 2.0), ("5xx", 0.0)] {
            assert_eq!(metrics.sum("evenkeel_requests_total", &[("code", code)]), times, "{code}");
        }
        assert_eq!(metrics.sum("evenkeel_responses_total", &[("pool", "app"), ("status", "499")]), 2.0);
        assert_eq!(metrics.sum("evenkeel_responses_total", &[]), 2.0);
        assert_eq!(balancer.backend(&a).await["failures"], 0);
    }
}

#[tokio::test]
async fn gauges_follow_the_current_state() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b])).await;
    let socket = WebSocket::open(balancer.address(), "/socket").await;
    balancer.switch_algorithm("ip-hash").await;
    balancer.patch(&a, json!({ "weight": 5, "state": "draining" })).await;
    let metrics = balancer.metrics().await;
    let address = a.address().to_string();
    assert_eq!(metrics.sum("evenkeel_backend_in_flight", &[]), 1.0);
    assert_eq!(metrics.sum("evenkeel_backend_weight", &[("backend", &address)]), 5.0);
    for (status, value) in [("draining", 1.0), ("healthy", 0.0)] {
        let labels = [("backend", address.as_str()), ("status", status)];
        assert_eq!(metrics.sum("evenkeel_backend_status", &labels), value, "{status}");
    }
    for (algorithm, value) in [("ip-hash", 1.0), ("round-robin", 0.0)] {
        assert_eq!(metrics.sum("evenkeel_pool_algorithm", &[("algorithm", algorithm)]), value, "{algorithm}");
    }
    socket.close().await;
    balancer.until_idle().await;
}

#[tokio::test]
async fn requests_create_no_series() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    balancer.get("/").await;
    counted(&balancer, "evenkeel_requests_total", 1.0).await;
    let before = balancer.metrics().await.names().count();
    for number in 0..50 {
        let request =
            Request::new(&format!("M{number}"), &format!("/path{number}")).with("Host", &format!("h{number}"));
        balancer.send(&request).await;
    }
    assert_eq!(balancer.metrics().await.names().count(), before);
}

#[tokio::test]
async fn removed_pools_routes_and_backends_have_no_series() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let config = |name: &str, pools: &[Pool]| {
        let config = pools.iter().cloned().fold(Config::default(), Config::pool);
        config.route(&format!("{name}.example"), "/", name).route("", "/", "app")
    };
    let app = || Pool::of("app", [&a]);
    let balancer = Balancer::start(config("app", &[app()])).await;
    let before = series(&balancer).await;
    let mut held = balancer.connect().await;
    for number in 0..5 {
        let name = format!("gone{number}");
        balancer.configure(&config(&name, &[app(), Pool::of(&name, [&a, &b])]));
        balancer.change("POST", "/admin/reload", None).await;
        let request = Request::new("GET", "/status/503").with("Host", &format!("{name}.example"));
        assert_eq!(balancer.send(&request).await.status, 503);
        assert!(series(&balancer).await.len() > before.len());
    }
    // A pool keeps its series while an exchange is in flight there, and nothing brings them back afterwards.
    let heads = a.heads() + b.heads();
    held.send(Request::new("GET", "/hold").with("Host", "gone4.example").to_bytes()).await;
    eventually("it is in flight", async || a.heads() + b.heads() > heads).await;
    balancer.configure(&config("app", &[app()]));
    balancer.change("POST", "/admin/reload", None).await;
    let held_by = "evenkeel_backend_in_flight{backend=";
    assert_eq!(series(&balancer).await.iter().filter(|series| series.starts_with(held_by)).count(), 3);
    a.release();
    b.release();
    assert_eq!(held.reply().await.status, 200);
    eventually("only the other series are left", async || series(&balancer).await == before).await;
    assert_eq!(balancer.get("/").await.status, 200);
    assert_eq!(series(&balancer).await, before);
}

/// The names and labels of all series.
async fn series(balancer: &Balancer) -> std::collections::BTreeSet<String> {
    let text = balancer.admin("GET", "/metrics", None).await.text();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
}

#[tokio::test]
async fn the_access_log_has_one_json_line_for_each_request() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let log = "[access_log]\nfile = \"access.log\"\nformat = \"json\"";
    let config = Config::default()
        .pool(Pool::of("app", [&a, &b]).without_ejection())
        .section(log)
        .server("trusted_proxies = [\"127.0.0.1/32\"]")
        .route("shop.example", "/", "app");
    let balancer = Balancer::start(config).await;
    let request = Request::post("/buy?id=7", "ten bytes!")
        .with("Host", "shop.example")
        .with("X-Request-Id", "abc-123")
        .with("X-Forwarded-For", "203.0.113.7")
        .with("User-Agent", "agent \"quoted\"")
        .with("Referer", "http://shop.example/")
        .with("Cookie", "secret=1");
    let reply = balancer.send(&request).await;
    balancer.lines("access.log", 1).await;
    balancer.get("/nowhere").await;
    let lines = balancer.lines("access.log", 2).await;

    let line: Value = serde_json::from_str(&lines[0]).expect("JSON");
    for (field, value) in [
        ("client", json!("203.0.113.7")),
        ("method", json!("POST")),
        ("host", json!("shop.example")),
        ("target", json!("/buy?id=7")),
        ("protocol", json!("HTTP/1.1")),
        ("status", json!(200)),
        ("bytes", json!(reply.body.len())),
        ("request_id", json!("abc-123")),
        ("user_agent", json!("agent \"quoted\"")),
        ("referer", json!("http://shop.example/")),
        ("pool", json!("app")),
        ("backend", json!(a.address().to_string())),
        ("backend_status", json!(200)),
        ("attempts", json!(1)),
        ("refusal", Value::Null),
    ] {
        assert_eq!(line[field], value, "{field} in {line}");
    }
    assert!(line["duration_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{line}");
    assert!(line["time"].as_str().is_some_and(|time| time.contains('T')), "{line}");
    assert!(!lines[0].contains("secret"), "no cookies: {line}");

    let line: Value = serde_json::from_str(&lines[1]).expect("JSON");
    assert_eq!((&line["status"], &line["refusal"], &line["backend"]), (&json!(404), &json!("no-route"), &Value::Null));
}

#[tokio::test]
async fn the_access_log_has_attempts_and_tunnels() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let log = "[access_log]\nfile = \"access.log\"";
    let balancer = Balancer::start(Config::of([&a, &b]).section(log)).await;
    a.stop().await;
    assert_eq!(balancer.get("/").await.origin(), "b");
    balancer.lines("access.log", 1).await;
    let mut socket = WebSocket::open(balancer.address(), "/socket").await;
    socket.echo("hello").await;
    socket.close().await;
    let lines = balancer.lines("access.log", 2).await;
    let line: Value = serde_json::from_str(&lines[0]).expect("JSON");
    assert_eq!((&line["attempts"], &line["backend"]), (&json!(2), &json!(b.address().to_string())), "{line}");
    let line: Value = serde_json::from_str(&lines[1]).expect("JSON");
    assert_eq!((&line["status"], &line["target"]), (&json!(101), &json!("/socket")), "{line}");
}

#[tokio::test]
async fn the_combined_format_is_that_of_nginx() {
    let a = Origin::start("a").await;
    let log = "[access_log]\nfile = \"access.log\"\nformat = \"combined\"";
    let balancer = Balancer::start(Config::of([&a]).section(log)).await;
    let request = Request::get("/x?y=1").with("User-Agent", "a \"b\"").with("Referer", "http://r.example/");
    let reply = balancer.send(&request).await;
    let line = balancer.lines("access.log", 1).await.remove(0);
    let (before, after) = line.split_once(" [").expect("a time");
    assert_eq!(before, "127.0.0.1 - -");
    let (time, rest) = after.split_once("] ").expect("the time's end");
    assert_eq!((time.len(), time.as_bytes()[2], time.as_bytes()[11]), (26, b'/', b':'), "{time}");
    let length = reply.body.len();
    assert_eq!(rest, format!("\"GET /x?y=1 HTTP/1.1\" 200 {length} \"http://r.example/\" \"a \\x22b\\x22\""));
}

#[tokio::test]
async fn the_access_log_is_reopened_on_sigusr1() {
    let a = Origin::start("a").await;
    let log = "[access_log]\nfile = \"access.log\"";
    let mut balancer = Balancer::start(Config::of([&a]).section(log)).await;
    balancer.get("/first").await;
    balancer.lines("access.log", 1).await;
    std::fs::rename(balancer.file("access.log"), balancer.file("access.log.1")).expect("a log");
    balancer.signal(Signal::SIGUSR1);
    found_eventually("a line in the new file", async || {
        balancer.get("/second").await;
        std::fs::read_to_string(balancer.file("access.log")).ok().filter(|text| text.contains("/second"))
    })
    .await;
    assert!(std::fs::read_to_string(balancer.file("access.log.1")).expect("a file").contains("/first"));
}

#[tokio::test]
async fn every_line_is_written_before_the_process_ends() {
    let a = Origin::start("a").await;
    let log = "[access_log]\nfile = \"access.log\"";
    let mut balancer = Balancer::start(Config::of([&a]).section(log)).await;
    balancer.origins_of(200).await;
    balancer.stop().await;
    let text = std::fs::read_to_string(balancer.file("access.log")).expect("a file");
    assert_eq!(text.lines().count(), 200);
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let a = Origin::start("a").await;
    let first = Balancer::start(Config::of([&a])).await;
    for taken in [first.address(), first.admin_address()] {
        let mut second = Balancer::prepare(&Config::of([&a]));
        let own = if taken == first.address() { second.address() } else { second.admin_address() };
        let text = std::fs::read_to_string(second.config_file()).expect("a configuration");
        second.write(&text.replace(&own.to_string(), &taken.to_string()));
        second.launch();
        let status = second.process().end().await;
        assert!(!status.success());
        let log = second.log();
        let message = log.lines().find(|line| line.contains(&taken.to_string()) && line.contains("in use"));
        assert!(message.is_some() && !log.contains("panicked"), "{log}");
    }
    assert_eq!(first.get("/").await.status, 200, "the first is not disturbed");
}

#[tokio::test]
async fn the_log_can_be_json() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::start(Config::of([&a]).section("[log]\nformat = \"json\"")).await;
    balancer.switch_algorithm("ip-hash").await;
    balancer.stop().await;
    let log = balancer.log();
    assert!(log.lines().count() > 0);
    for line in log.lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
    assert!(log.contains("ip-hash"), "the switch is logged: {log}");
}

#[tokio::test]
async fn the_log_can_be_a_file_that_is_reopened_on_sigusr1() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::start(Config::of([&a]).section("[log]\nfile = \"error.log\"")).await;
    let log = balancer.file("error.log");
    let has = async |words: &str| {
        let what = format!("{words:?} is in error.log");
        eventually(&what, async || std::fs::read_to_string(&log).is_ok_and(|text| text.contains(words))).await;
    };
    let file = balancer.config_file().display().to_string();
    has(&format!("evenkeel {} starts with {file}, as user ", env!("CARGO_PKG_VERSION"))).await;
    std::fs::rename(&log, balancer.file("error.log.1")).expect("our directory");
    balancer.signal(Signal::SIGUSR1);
    // The file for a line is chosen when it is written, so log a line after the signal was handled.
    eventually("the file is there again", async || {
        balancer.patch(&a, json!({ "weight": 2 })).await;
        balancer.patch(&a, json!({ "weight": 1 })).await;
        log.exists()
    })
    .await;
    has("weight 1 instead of 2").await;
    assert_eq!(balancer.log(), "", "nothing goes to standard error");
}

#[tokio::test]
async fn a_log_that_cannot_be_opened_is_named() {
    let a = Origin::start("a").await;
    for (section, setting) in [("log", "[log] file"), ("access_log", "[access_log] file")] {
        let config = Config::of([&a]).section(&format!("[{section}]\nfile = \"/proc/nowhere/x.log\""));
        let mut balancer = Balancer::prepare(&config);
        balancer.launch();
        assert!(!balancer.process().end().await.success());
        let log = balancer.log();
        assert!(log.contains("cannot write to /proc/nowhere/x.log") && log.contains(setting), "{log}");
    }
}

#[tokio::test]
async fn an_unknown_level_in_rust_log_is_reported() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::prepare(&Config::of([&a]));
    balancer.environment = vec![("RUST_LOG".to_owned(), "verbose".to_owned())];
    balancer.launch();
    balancer.ready().await;
    balancer.logs(&["RUST_LOG is \"verbose\", which is ignored", "listening"]).await;
}

#[tokio::test]
async fn a_full_pipe_on_standard_error_blocks_nothing() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::prepare(&Config::of([&a]).section("[log]\nlevel = \"debug\""));
    let (mut unread, error) = std::io::pipe().expect("a pipe");
    balancer.launch_with_error(error);
    balancer.ready().await;
    loses_lines(&mut balancer).await;
    for _ in 0..8 {
        // The thread that refuses it logs that, whichever it is.
        let mut wire = balancer.connect().await;
        wire.send("GET / HTTP/1.1\r\nHost: a\r\nno field\r\n\r\n").await;
        assert_eq!(wire.reply().await.status, 400);
    }
    assert_eq!(balancer.get("/").await.origin(), "a");
    assert_eq!(balancer.admin("GET", "/healthz", None).await.status, 200);
    balancer.switch_algorithm("weighted").await;

    // After reading resumes, the log reports how many lines were lost, and is complete again.
    let text = Arc::new(Mutex::new(String::new()));
    let read = Arc::clone(&text);
    let reading = std::thread::spawn(move || {
        let mut chunk = vec![0; 64 * 1024];
        while let count @ 1.. = unread.read(&mut chunk).expect("a pipe") {
            read.lock().expect("no panic").push_str(&String::from_utf8_lossy(&chunk[..count]));
        }
    });
    let says = |line| text.lock().expect("no panic").contains(line);
    eventually("it is told what was lost", async || says("lines of the log were lost")).await;
    eventually("new lines come", async || {
        balancer.switch_algorithm("round-robin").await;
        balancer.switch_algorithm("weighted").await;
        says("algorithm weighted instead of round-robin")
    })
    .await;
    balancer.stop().await;
    reading.join().expect("no panic");
    assert!(says("every exchange has finished"), "the last lines are written before the end");
}

#[tokio::test]
async fn a_full_pipe_on_standard_error_does_not_delay_the_stop() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::prepare(&Config::of([&a]));
    let (_unread, error) = std::io::pipe().expect("a pipe");
    balancer.launch_with_error(error);
    balancer.ready().await;
    loses_lines(&mut balancer).await;
    balancer.stop().await;
}

/// Logs more than fits into a pipe and the queue before it: SIGHUP logs a line for each problem of the file.
async fn loses_lines(balancer: &mut Balancer) {
    balancer.write(&"[[pool]]\nname = \"?\"\n".repeat(1000));
    eventually("lines are lost", async || {
        balancer.signal(Signal::SIGHUP);
        balancer.metrics().await.sum("evenkeel_log_lost_total", &[]) > 0.0
    })
    .await;
}

/// Waits until a counter has this sum: a request is counted just after its client has the answer.
async fn counted(balancer: &Balancer, name: &str, sum: f64) {
    eventually("everything is counted", async || balancer.metrics().await.sum(name, &[]) == sum).await;
}

#[tokio::test]
async fn backend_latency_excludes_the_clients_upload() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut wire = balancer.connect().await;
    // Too large to be buffered before a backend is chosen.
    let body = vec![b'x'; 200_000];
    wire.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes()).await;
    wire.send(body[..100_000].to_vec()).await;
    eventually("the head arrived", async || a.heads() == 1).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    wire.send(body[100_000..].to_vec()).await;
    assert_eq!(wire.reply().await.status, 200);
    let backend = balancer.backend(&a).await;
    let latency = backend["latency_seconds"].as_f64().expect("a latency");
    assert!(latency > 0.0 && latency < 3.0, "{backend}");
}

#[tokio::test]
async fn single_statuses_are_counted_when_configured_and_a_reload_changes_it() {
    let a = Origin::start("a").await;
    let config = |wanted: bool| Config::of([&a]).section(&format!("[metrics]\nexact_status = {wanted}"));
    let balancer = Balancer::start(config(false)).await;
    let answered = async |status: u16| {
        a.answer_with(response(status, &[], ""));
        assert_eq!(balancer.get("/").await.status, status);
    };
    let counted = async |status: &str| {
        balancer.metrics().await.sum("evenkeel_responses_total", &[("pool", "app"), ("status", status)])
    };
    // It is counted once it is answered, so perhaps after the reload; its status does not occur below.
    answered(410).await;
    balancer.configure(&config(true));
    balancer.change("POST", "/admin/reload", None).await;
    for status in [200, 404, 418, 418] {
        answered(status).await;
    }
    for (status, count) in [("200", 1.0), ("404", 1.0), ("418", 2.0)] {
        eventually("it is counted", async || counted(status).await == count).await;
    }
}

// With the most verbose log, whatever clients send.
#[tokio::test]
async fn clients_cannot_inject_lines_into_the_log() {
    let a = Origin::start("a").await;
    let log = "[access_log]\nfile = \"access.log\"\nformat = \"combined\"";
    let mut balancer = Balancer::prepare(&Config::of([&a]).section(log).listener(&tests::http2::tls()));
    balancer.environment = vec![("RUST_LOG".to_owned(), "trace".to_owned())];
    balancer.launch();
    balancer.ready().await;
    let evil = "x\u{85}\u{9b}31m\u{2028}2026-01-01T00:00:00Z ERROR forged pool=app\t\"";
    let mut client = tests::http2::Http2::connect(balancer.address()).await;
    let fields = [("user-agent", evil), ("x-request-id", evil), ("cdn-loop", evil), ("accept", evil), ("x-any", evil)];
    let (response, _) = client.begin(tests::http2::request("GET", "/%0a%0dERROR", &fields), true).await;
    assert_eq!(tests::http2::reply(response).await.expect("a response").status, 200);
    balancer.lines("access.log", 1).await;
    balancer.stop().await;
    let access_log = std::fs::read_to_string(balancer.file("access.log")).expect("a file");
    for line in balancer.log().lines() {
        let is_stamped = line.split('T').next().is_some_and(|day| day.len() == 10 && day.starts_with("20"));
        assert!(is_stamped && !line.starts_with("2026-01-01T00:00:00Z"), "{line:?}");
    }
    for text in [balancer.log(), access_log] {
        let breaks = |c: char| c != '\n' && (c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'));
        assert!(!text.contains(breaks), "{:?}", text.chars().find(|c| breaks(*c)));
    }
}
