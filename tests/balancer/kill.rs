//! An operator who takes a backend out can end its open exchanges, at once or at a deadline, and learns how many were
//! ended. None of this counts against the backend.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::balancer::backend_path;
use tests::http2::{Http2, reply, request, tls};
use tests::{Balancer, Config, End, Origin, Pool, Request, Step, WebSocket, Wire, evenkeel, eventually};

const NOBODY_LEFT: &str = "pool app has no active backend: its requests get 503";
const ACCESS_LOG: &str = "[access_log]\nfile = \"access.log\"";

/// A download that has begun and does not end.
async fn download(balancer: &Balancer) -> Wire {
    let mut wire = balancer.connect().await;
    wire.send(Request::get("/download").to_bytes()).await;
    assert_eq!(wire.reply_head().await.status, 200);
    wire
}

fn endless(origin: &Origin) {
    origin.answer(|request| match request.target.as_str() {
        "/download" => {
            vec![Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nbegun".to_vec()), Step::Hang]
        }
        "/hang" => vec![Step::Hang],
        _ => vec![Step::Send(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())],
    });
}

async fn cli(balancer: &Balancer, arguments: &[&str]) -> String {
    let admin = format!("http://{}", balancer.admin_address());
    let outcome = evenkeel([arguments, &["--admin", &admin][..]].concat()).await;
    assert!(outcome.status.success(), "{arguments:?}: {outcome:?}");
    outcome.stdout
}

/// Asserts that killed exchanges do not count against the backend, and that each is reported.
async fn is_told(balancer: &Balancer, origin: &Origin, killed: usize) {
    balancer.until_idle().await;
    let backend = balancer.backend(origin).await;
    assert_eq!((&backend["failures"], &backend["ejections"]), (&json!(0), &json!(0)), "{backend}");
    assert_eq!(backend["health"], "healthy", "{backend}");
    let metrics = balancer.metrics().await;
    assert_eq!(metrics.sum("evenkeel_backend_killed_total", &[]), killed as f64);
    let lines = async || {
        let text = std::fs::read_to_string(balancer.file("access.log")).unwrap_or_default();
        text.lines().filter(|line| line.contains("\"failure\":\"killed\"")).count()
    };
    eventually("a line in the access log for each", async || lines().await == killed).await;
    let address = origin.address();
    balancer.logs(&[&format!("an exchange was killed pool=app backend={address} address={address}")]).await;
}

#[tokio::test]
async fn a_drain_deadline_ends_open_exchanges() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).section(ACCESS_LOG)).await;
    let mut socket = WebSocket::open(balancer.address(), "/socket").await;
    socket.echo("before").await;
    endless(&a);
    let mut download = download(&balancer).await;
    let mut short = balancer.connect().await;
    assert_eq!(short.exchange(&Request::get("/")).await.status, 204);

    let address = a.address().to_string();
    let output = cli(&balancer, &["drain", &address, "--deadline", "300ms", "--dry-run"]).await;
    assert!(output.contains("what is still open after 300ms is killed"), "{output}");
    socket.echo("still open").await;
    let output = cli(&balancer, &["drain", &address, "--deadline", "300ms"]).await;
    assert_eq!(output, format!("{address} in pool app: draining, weight 1, nothing in flight\n2 exchanges killed\n"));
    socket.ended().await;
    let (came, _) = download.rest().await;
    assert!(came.len() < 1000, "{} bytes of 1000000 came", came.len());
    is_told(&balancer, &a, 2).await;
}

#[tokio::test]
async fn a_drain_without_open_exchanges_ends_before_its_deadline() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let begun = Instant::now();
    let path = format!("{}?deadline=1h", backend_path(&a));
    assert_eq!(balancer.change("PATCH", &path, Some(json!({ "state": "down" }))).await["killed"], 0);
    balancer.patch(&a, json!({ "state": "active" })).await;

    // Exchanges that end by themselves end the wait.
    let mut held = balancer.connect().await;
    held.send(Request::get("/hold").to_bytes()).await;
    eventually("the request arrived", async || a.heads() == 1).await;
    let draining = balancer.change("PATCH", &path, Some(json!({ "state": "draining" })));
    let releasing = async {
        eventually("the deadline is told", async || balancer.backend(&a).await["deadline_seconds"].is_number()).await;
        a.release();
        assert_eq!(held.reply().await.status, 200);
    };
    let (answer, ()) = tokio::join!(draining, releasing);
    assert_eq!(answer["killed"], 0, "{answer}");
    assert!(begun.elapsed() < Duration::from_secs(600));
    let path = format!("{}?deadline=30s", backend_path(&a));
    assert_eq!(balancer.change("DELETE", &path, None).await, {
        let mut expected = json!({ "removed": true, "finished": true, "killed": 0, "warnings": [NOBODY_LEFT] });
        for key in ["change", "edits", "effects"] {
            expected[key] = balancer_record(&balancer, key).await;
        }
        expected
    });
}

/// The record of the last change, which has no effects.
async fn balancer_record(balancer: &Balancer, key: &str) -> Value {
    let changes = balancer.change("GET", "/admin/changes", None).await;
    match key {
        "change" => changes["changes"][0]["id"].clone(),
        "edits" => changes["changes"][0]["edits"].clone(),
        _ => {
            let backend = changes["changes"][0]["edits"][0]["backend"].as_str().expect("an address").to_owned();
            json!([
                format!("{backend}: takes nothing new and leaves the pool when it is idle; nothing is in flight"),
                NOBODY_LEFT,
                "what is still open after 30s is killed"
            ])
        }
    }
}

#[tokio::test]
async fn reactivating_a_backend_cancels_its_drain_deadline() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut socket = WebSocket::open(balancer.address(), "/socket").await;
    let path = format!("{}?deadline=1h", backend_path(&a));
    let draining = balancer.change("PATCH", &path, Some(json!({ "state": "draining" })));
    let undraining = async {
        eventually("the deadline is told", async || balancer.backend(&a).await["deadline_seconds"].is_number()).await;
        balancer.patch(&a, json!({ "state": "active" })).await
    };
    let (drained, active) = tokio::join!(draining, undraining);
    assert_eq!((&drained["killed"], &active["deadline_seconds"]), (&json!(0), &Value::Null), "{drained}");
    assert_eq!(drained["finished"], false, "{drained}");

    // A script must not mistake that for a drained backend.
    let (admin, address) = (format!("http://{}", balancer.admin_address()), a.address().to_string());
    for (command, words) in [(&["drain"][..], "not drained"), (&["backend", "remove"], "not removed")] {
        let arguments = [command, &[&address, "--deadline", "1h", "--admin", &admin]].concat();
        let undraining = async {
            let is_told = async || balancer.backend(&a).await["deadline_seconds"].is_number();
            eventually("the deadline is told", is_told).await;
            let status = cli(&balancer, &["status"]).await;
            assert!(status.contains(", killed in "), "{status}");
            if words == "not drained" {
                // Another operator, who does not know about the deadline.
                let output = cli(&balancer, &["drain", &address]).await;
                assert!(output.contains("draining, weight 1, 1 in flight, killed in 60m"), "{output}");
                balancer.patch(&a, json!({ "state": "active" })).await;
            } else {
                balancer.change("POST", "/admin/pools/app/backends", Some(json!({ "address": address }))).await;
            }
        };
        let (outcome, ()) = tokio::join!(evenkeel(arguments), undraining);
        let expected = format!("{words}: {address} in pool app is active again");
        assert!(outcome.status.code() == Some(1) && outcome.stderr.contains(&expected), "{outcome:?}");
    }
    socket.echo("still open").await;
    socket.close().await;
}

#[tokio::test]
async fn a_drain_deadline_ends_sticky_grace_and_a_drain_waits_for_it() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let config = |grace: &str| Config::of([&a, &b]).app(|pool| pool.sticky(&format!("grace = \"{grace}\"")));
    let balancer = Balancer::start(config("1h").section(ACCESS_LOG)).await;
    let cookie = loop {
        let reply = balancer.get("/").await;
        if reply.origin() == "a" {
            let field = reply.field("set-cookie").expect("a cookie").to_owned();
            break field.split(';').next().expect("a pair").to_owned();
        }
    };
    b.release();
    let visit = async || balancer.send(&Request::get("/").with("Cookie", &cookie)).await.origin().to_owned();
    let path = format!("{}?deadline=3s", backend_path(&a));
    let draining = || Some(json!({ "state": "draining" }));
    let effects = balancer.change("PATCH", &format!("{path}&dry_run=true"), draining()).await["effects"].to_string();
    assert!(effects.contains("takes only its sticky clients for 3s, then nothing new"), "{effects}");
    assert_eq!(balancer.in_flight().await, 0);
    let visiting = async {
        let is_kept = async || balancer.backend(&a).await["grace_seconds"].is_number();
        eventually("the grace has begun", is_kept).await;
        assert_eq!(visit().await, "a");
        let mut held = balancer.connect().await;
        held.send(Request::get("/hold").with("Cookie", &cookie).to_bytes()).await;
        let output = cli(&balancer, &["drain", a.address().to_string().as_str()]).await;
        assert!(output.contains("takes its sticky clients for another "), "{output}");
        held
    };
    let (drained, mut held) = tokio::join!(balancer.change("PATCH", &path, draining()), visiting);
    assert_eq!((&drained["finished"], &drained["killed"]), (&json!(true), &json!(1)), "{drained}");
    assert_eq!((&drained["grace_seconds"], &drained["deadline_seconds"]), (&Value::Null, &Value::Null), "{drained}");
    assert_eq!(held.reply().await.origin(), "b", "it had no answer yet");
    assert_eq!(visit().await, "b", "the grace is over");
    balancer.patch(&a, json!({ "weight": 2 })).await;
    assert_eq!(visit().await, "b", "and stays so");
    is_told(&balancer, &a, 1).await;

    // The grace ends before the deadline.
    balancer.patch(&a, json!({ "state": "active" })).await;
    balancer.configure(&config("300ms"));
    balancer.change("POST", "/admin/reload", None).await;
    assert_eq!(visit().await, "a");
    let drained = balancer.change("PATCH", &format!("{}?deadline=1h", backend_path(&a)), draining()).await;
    assert_eq!((&drained["finished"], &drained["killed"]), (&json!(true), &json!(0)), "{drained}");
    assert_eq!(visit().await, "b", "finished says that nobody is sent there");
}

#[tokio::test]
async fn kill_ends_only_what_is_open_now() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b]).section(ACCESS_LOG)).await;
    let mut sockets = Vec::new();
    for _ in 0..2 {
        sockets.push(WebSocket::open(balancer.address(), "/socket").await);
    }
    let address = a.address().to_string();
    let warning = format!("warning: {address} is active and gets new requests as before: drain it to keep them away\n");
    assert_eq!(
        cli(&balancer, &["kill", &address, "--dry-run"]).await,
        format!("dry run: 1 exchange of {address} in pool app would be killed\n{warning}")
    );
    assert_eq!(cli(&balancer, &["kill", &address]).await, format!("1 exchange killed\n{warning}"));
    assert_eq!(cli(&balancer, &["kill", &address]).await, format!("nothing was killed\n{warning}"));
    let mut alive = 0;
    for socket in &mut sockets {
        alive += usize::from(socket.try_echo("anybody there?").await.is_ok());
    }
    assert_eq!(alive, 1, "the one on the other backend goes on");
    drop(sockets);
    is_told(&balancer, &a, 1).await;
    assert_eq!(balancer.backend(&a).await["state"], "active", "what is wanted stays");
    let origins = balancer.origins_of(4).await.concat();
    assert!(origins.contains('a') && origins.contains('b'), "new ones go there: {origins}");

    let path = backend_path(&a);
    for (path, status) in [
        (format!("{path}/kill?force=true"), 400),
        (format!("{path}/kill?deadline=3s"), 400),
        ("/admin/pools/app/backends/127.0.0.1:1/kill".to_owned(), 404),
        ("/admin/pools/nowhere/backends/127.0.0.1:1/kill".to_owned(), 404),
    ] {
        let reply = balancer.admin("POST", &path, None).await;
        assert_eq!(reply.status, status, "{path}: {}", reply.text());
    }
    let body = Some(json!({ "state": "draining" }));
    for (query, words) in [("deadline=30", "such as \\\"30s\\\""), ("deadline=25h", "from 0s to 24h")] {
        let reply = balancer.admin("PATCH", &format!("{path}?{query}"), body.clone()).await;
        assert!(reply.status == 400 && reply.text().contains(words), "{query}: {}", reply.text());
    }
    for (method, path, body) in [
        ("PATCH", format!("{path}?deadline=3s"), Some(json!({ "weight": 2 }))),
        ("PATCH", format!("{path}?deadline=3s"), Some(json!({ "state": "active" }))),
        ("POST", "/admin/algorithm?deadline=3s".to_owned(), Some(json!({ "algorithm": "ip-hash" }))),
        ("POST", "/admin/reload?deadline=3s".to_owned(), None),
    ] {
        let reply = balancer.admin(method, &path, body).await;
        assert_eq!(reply.status, 400, "{path}: {}", reply.text());
    }
}

#[tokio::test]
async fn a_killed_request_without_a_response_is_retried_if_possible() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b]).section(ACCESS_LOG)).await;
    endless(&a);
    let mut waiting = Vec::new();
    // The first and the third go to a.
    for (number, request) in
        [Request::get("/hang"), Request::get("/"), Request::post("/hang", "body"), Request::get("/")]
            .into_iter()
            .enumerate()
    {
        let mut wire = balancer.connect().await;
        wire.send(request.to_bytes()).await;
        eventually("the request arrived", async || a.heads() + b.heads() == number as u64 + 1).await;
        if request.target == "/hang" {
            waiting.push(wire);
        } else {
            assert_eq!(wire.reply().await.status, 200);
        }
    }
    let answer = balancer.change("POST", &format!("{}/kill", backend_path(&a)), None).await;
    assert_eq!(answer["killed"], 2, "{answer}");
    assert_eq!(waiting[0].reply().await.origin(), "b");
    let refused = waiting[1].reply().await;
    assert_eq!(refused.status, 503, "a POST may have been done already: {}", refused.text());
    assert!(refused.text().contains("an operator ended the exchanges"), "{}", refused.text());
    is_told(&balancer, &a, 2).await;
}

#[tokio::test]
async fn http_2_streams_are_killed_without_their_connection() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b]).listener(&tls()).section(ACCESS_LOG)).await;
    endless(&a);
    endless(&b);
    let mut client = Http2::connect(balancer.address()).await;
    let mut downloads = Vec::new();
    for _ in 0..2 {
        let (response, _) = client.begin(request("GET", "/download", &[]), true).await;
        downloads.push(tokio::spawn(reply(response)));
        let begun = downloads.len() as u64;
        eventually("it has begun", async || a.heads() + b.heads() == begun).await;
    }
    eventually("both are under way", async || balancer.in_flight().await == 2).await;
    for origin in [&a, &b] {
        let answer = balancer.change("POST", &format!("{}/kill", backend_path(origin)), None).await;
        assert_eq!(answer["killed"], 1, "{answer}");
    }
    for download in downloads {
        match download.await.expect("no panic") {
            Ok(reply) => assert_eq!(reply.end, End::CutOff),
            Err(error) => assert!(error.is_reset(), "{error}"),
        }
    }
    assert_eq!(client.get("/").await.status, 204, "the connection goes on");
    is_told(&balancer, &a, 2).await;
}

// It vanished from status and metrics, and could not be killed, while its exchanges went on.
#[tokio::test]
async fn a_backend_that_a_reload_removes_stays_visible_until_its_exchanges_end() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b])).await;
    let mut socket = WebSocket::open(balancer.address(), "/socket").await;
    let [left, stays] = if a.heads() == 1 { [&a, &b] } else { [&b, &a] };
    let (address, pool) = (left.address().to_string(), balancer.pool().await);
    balancer.configure(&Config::of([stays]));

    let goes_on = format!("pool app: backend {address}: 1 exchange in flight goes on to its end");
    for path in ["/admin/reload?dry_run=true", "/admin/reload"] {
        let changes = balancer.change("POST", path, None).await["changes"].clone();
        assert_eq!(changes, json!([format!("pool app: backend {address} removed"), goes_on]), "{path}");
    }
    // A reload without a change keeps it.
    assert_eq!(balancer.change("POST", "/admin/reload", None).await["changes"], json!([]));
    let backend = balancer.backend(left).await;
    assert_eq!((&backend["status"], &backend["in_flight"]), (&json!("removing"), &json!(1)), "{pool}");
    let labels = [("backend", address.as_str())];
    assert_eq!(balancer.metrics().await.sum("evenkeel_backend_in_flight", &labels), 1.0);
    assert_eq!(balancer.change("GET", "/admin/pools", None).await["drift"], 0);
    assert_eq!(balancer.origins_of(4).await.concat(), stays.name().repeat(4));
    socket.echo("still open").await;
    let drain = balancer.admin("PATCH", &backend_path(left), Some(json!({ "state": "draining" }))).await;
    assert_eq!(drain.status, 409, "it was added again");
    assert!(drain.text().contains("is being removed from pool \\\"app\\\" already"), "{}", drain.text());

    let output = cli(&balancer, &["kill", &address]).await;
    assert!(output.contains("1 exchange killed"), "{output}");
    socket.ended().await;
    eventually("the backend is gone", async || balancer.backend(left).await.is_null()).await;
    assert!(!balancer.metrics().await.has_series("evenkeel_backend_in_flight", &labels));
}

#[tokio::test]
async fn a_backend_that_is_written_again_while_a_reload_removes_it_takes_traffic() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b])).await;
    let mut sockets = Vec::new();
    for _ in 0..2 {
        sockets.push(WebSocket::open(balancer.address(), "/socket").await);
    }
    for (origins, status) in [(vec![&a], "removing"), (vec![&a, &b], "healthy")] {
        balancer.configure(&Config::of(origins));
        balancer.change("POST", "/admin/reload", None).await;
        balancer.sees(&b, status).await;
        assert_eq!(balancer.backend(&b).await["in_flight"], 1);
    }
    assert!(balancer.origins_of(4).await.contains(&"b".to_owned()));
    for socket in &mut sockets {
        socket.echo("still open").await;
    }
}

#[tokio::test]
async fn a_pool_that_a_reload_removes_stays_visible_until_its_exchanges_end() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut socket = WebSocket::open(balancer.address(), "/socket").await;
    let other = Config::default().pool(Pool::of("other", [&b]));
    balancer.configure(&other);
    let changes = balancer.change("POST", "/admin/reload", None).await["changes"].clone();
    let goes_on = json!("pool app: 1 exchange in flight goes on to its end");
    assert!(changes.as_array().is_some_and(|changes| changes.contains(&goes_on)), "{changes}");
    let status = async || balancer.backend(&a).await["status"].clone();
    assert_eq!(status().await, "removing");
    assert!(balancer.change("GET", "/admin/pools", None).await.to_string().contains("\"name\":\"app\""));
    let metrics = balancer.metrics().await;
    assert_eq!(metrics.sum("evenkeel_backend_in_flight", &[("pool", "app")]), 1.0);
    assert!(
        !metrics.has_series("evenkeel_pool_available", &[("pool", "app")]),
        "nobody is told that it lacks backends"
    );
    assert_eq!(balancer.get("/").await.origin(), "b");
    let kill = |dry_run: bool| format!("{}/kill?dry_run={dry_run}", backend_path(&a));
    let would = balancer.change("POST", &kill(true), None).await;
    assert_eq!(would["warnings"], json!([]), "nothing new comes");

    // The pool that comes back with other backends keeps this one until its exchanges end.
    balancer.configure(&Config::of([&b]));
    balancer.change("POST", "/admin/reload", None).await;
    assert_eq!((status().await, balancer.backend(&a).await["in_flight"].clone()), (json!("removing"), json!(1)));

    // The pool that comes back is the same one.
    balancer.configure(&Config::of([&a]));
    balancer.change("POST", "/admin/reload", None).await;
    balancer.sees(&a, "healthy").await;
    assert_eq!((balancer.backend(&a).await["in_flight"].clone(), balancer.get("/").await.origin()), (json!(1), "a"));
    balancer.configure(&other);
    balancer.change("POST", "/admin/reload", None).await;
    socket.echo("still open").await;
    assert_eq!(balancer.change("POST", &format!("{}/kill", backend_path(&a)), None).await["killed"], 1);
    socket.ended().await;
    let is_gone = async || balancer.admin("GET", "/admin/pools/app", None).await.status == 404;
    eventually("the pool is gone", is_gone).await;
    assert!(!balancer.metrics().await.has_series("evenkeel_backend_in_flight", &[("pool", "app")]));
}

// Failures that were counted since the last line of the log were never logged.
#[tokio::test]
async fn failures_of_a_removed_backend_are_logged_before_it_is_dropped() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let pool = |origins: &[&Origin]| Pool::of("app", origins.iter().copied()).set("retries = 0");
    let config = |origins: &[&Origin]| Config::default().pool(pool(origins));
    let balancer = Balancer::start(config(&[&a])).await;
    a.answer(|_| vec![Step::Reset]);
    for _ in 0..3 {
        assert_eq!(balancer.get("/").await.status, 502);
    }
    balancer.configure(&config(&[&b]));
    balancer.change("POST", "/admin/reload", None).await;
    balancer.logs(&[&format!("s pool=app backend={} failure=\"reset\" more=2", a.address())]).await;
}
