//! Backends are probed before they get traffic, real traffic counts as well, and what is known about a backend survives
//! every change of configuration.

use std::time::Duration;

use serde_json::{Value, json};
use tests::balancer::backend_path;
use tests::{Balancer, Config, Health, Origin, Pool, Request, Step, eventually, found_eventually, response};

const ALGORITHMS: [&str; 4] = ["weighted", "least-connections", "ip-hash", "round-robin"];

/// A probe that takes as long as the origin wants.
const PATIENT_PROBE: &str = "path = \"/probe\"\ninterval = \"60s\"\ntimeout = \"60s\"";

#[tokio::test]
async fn ready_once_every_backend_was_probed() {
    let [a, b] = Origin::several(["a", "b"]).await;
    b.set_health(Health::Hold);
    let mut balancer = Balancer::prepare(&Config::of([&a, &b]).app(|pool| pool.probe(PATIENT_PROBE)));
    balancer.launch();
    let reply = found_eventually("an answer", async || balancer.try_admin("GET", "/readyz", None).await).await;
    assert_eq!((reply.status, reply.text().trim()), (503, "starting"));
    assert_eq!(balancer.admin("GET", "/healthz", None).await.status, 200);
    b.release();
    balancer.ready().await;
}

#[tokio::test]
async fn ready_when_the_first_probes_have_timed_out() {
    let [a, b] = Origin::several(["a", "b"]).await;
    b.set_health(Health::Hold);
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.probe(PATIENT_PROBE))).await;
    assert_eq!(balancer.backend(&b).await["status"], "unknown");
}

#[tokio::test]
async fn stays_ready_whatever_the_health_of_its_backends() {
    // Every balancer of a fleet became unready at once when a backend was added.
    let [a, b] = Origin::several(["a", "b"]).await;
    let config = Config::of([&a]).app(|pool| pool.probe(PATIENT_PROBE));
    let balancer = Balancer::start(config.clone()).await;
    let ready = async || {
        let reply = balancer.admin("GET", "/readyz", None).await;
        (reply.status, reply.text().trim().to_owned())
    };
    b.set_health(Health::Hold);
    let added = json!({ "address": b.address().to_string() });
    balancer.change("POST", "/admin/pools/app/backends", Some(added)).await;
    assert_eq!(balancer.backend(&b).await["status"], "unknown");
    assert_eq!(ready().await, (200, "ready".to_owned()), "with a backend that was never probed");

    let other = Pool::of("other", [&b]).probe(PATIENT_PROBE);
    balancer.configure(&config.pool(other).route("", "/", "app").route("", "/other", "other"));
    balancer.change("POST", "/admin/reload", None).await;
    assert_eq!(ready().await, (200, "ready".to_owned()), "with a pool that was never probed");

    for origin in [&a, &b] {
        balancer.patch(origin, json!({ "state": "down" })).await;
    }
    assert_eq!(balancer.get("/").await.status, 503);
    assert_eq!(ready().await, (200, "ready".to_owned()), "with a pool that has nobody to serve");
}

#[tokio::test]
async fn readiness_names_pools_without_usable_backends() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let answers = async |path: &str| {
        let reply = balancer.admin("GET", path, None).await;
        (reply.status, reply.text().trim().to_owned())
    };
    let available = async || balancer.metrics().await.sum("evenkeel_pool_available", &[("pool", "app")]);
    let logged = |line: &str| balancer.log().matches(line).count();
    for change in 1..=2 {
        assert_eq!(answers("/readyz?pool=app").await, (200, "ready".to_owned()));
        assert_eq!(available().await, 1.0);
        balancer.patch(&a, json!({ "state": "down" })).await;
        assert_eq!(answers("/readyz?pool=app").await, (503, "no backend".to_owned()));
        assert_eq!(available().await, 0.0);
        balancer.patch(&a, json!({ "weight": 2 })).await;
        eventually("one line per change", async || logged("no backend may take traffic") == change).await;
        balancer.patch(&a, json!({ "state": "active" })).await;
        eventually("one line per change", async || logged("a backend may take traffic again") == change).await;
    }
    assert_eq!(answers("/readyz?pool=nowhere").await.0, 404);
    assert_eq!(answers("/readyz?pool=").await.0, 404);
    assert_eq!(answers("/readyz?pol=app").await.0, 400, "mistyped, it would be answered for the whole process");
}

#[tokio::test]
async fn backends_of_unknown_health_are_used_only_without_healthy_ones() {
    let [a, b] = Origin::several(["a", "b"]).await;
    a.set_health(Health::Hold);
    b.set_health(Health::Hold);
    let mut balancer = Balancer::prepare(&Config::of([&a, &b]).app(|pool| pool.probe(PATIENT_PROBE)));
    balancer.launch();
    balancer_answers(&balancer).await;
    assert_eq!(balancer.backend(&a).await["status"], "unknown");
    assert_eq!(balancer.origins_of(4).await.concat(), "abab");
    a.release();
    balancer.sees(&a, "healthy").await;
    assert_eq!(balancer.origins_of(4).await.concat(), "aaaa");
    b.release();
    balancer.sees(&b, "healthy").await;
    assert!(balancer.origins_of(4).await.contains(&"b".to_owned()));
}

#[tokio::test]
async fn an_unhealthy_backend_gets_no_requests_until_it_recovers() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.quick_probe())).await;
    for _ in 0..3 {
        a.set_health(Health::Status(503));
        balancer.sees(&a, "unhealthy").await;
        let backend = balancer.backend(&a).await;
        assert_eq!(backend["last_probe"]["ok"], false, "{backend}");
        assert!(backend["last_probe"]["error"].as_str().is_some_and(|error| error.contains("503")), "{backend}");
        assert_eq!(balancer.origins_of(6).await.concat(), "bbbbbb");
        a.set_health(Health::Status(200));
        balancer.sees(&a, "healthy").await;
        assert!(balancer.origins_of(4).await.contains(&"a".to_owned()));
    }
}

#[tokio::test]
async fn health_changes_only_after_consecutive_results() {
    let a = Origin::start("a").await;
    // A probe that a busy machine delays fails as well: it must not be often.
    let probe = "path = \"/probe\"\ninterval = \"300ms\"\ntimeout = \"300ms\"\nrise = 4\nfall = 3";
    let balancer = Balancer::start(Config::of([&a]).app(|pool| pool.probe(probe))).await;

    a.set_health(Health::Alternating(500, 200));
    let start = a.probes();
    eventually("some probes", async || {
        assert_eq!(balancer.backend(&a).await["health"], "healthy");
        a.probes() >= start + 8
    })
    .await;

    a.set_health(Health::Status(200));
    let start = a.probes();
    eventually("successes only", async || a.probes() >= start + 3).await;

    let start = a.probes();
    a.set_health(Health::Status(500));
    balancer.sees(&a, "unhealthy").await;
    assert!(a.probes() >= start + 3, "it takes three failures");

    let start = a.probes();
    a.set_health(Health::Status(200));
    balancer.sees(&a, "healthy").await;
    assert!(a.probes() >= start + 4, "it takes four successes");
}

#[tokio::test]
async fn probes_use_the_configured_request_and_statuses() {
    let a = Origin::start("a").await;
    let probe = "path = \"/probe\"\nhost = \"health.example\"\nstatus = \"200-299,418\"\n\
                 interval = \"200ms\"\ntimeout = \"200ms\"\nrise = 1\nfall = 1";
    let balancer = Balancer::start(Config::of([&a]).app(|pool| pool.probe(probe))).await;
    eventually("a probe", async || a.probes() > 0).await;
    let asked = a.last_probe();
    assert_eq!((asked.method.as_str(), asked.target.as_str()), ("GET", "/probe"));
    assert_eq!(asked.field("host"), Some("health.example"));
    for (status, health) in
        [(302, "unhealthy"), (418, "healthy"), (404, "unhealthy"), (204, "healthy"), (500, "unhealthy")]
    {
        a.set_health(Health::Status(status));
        eventually("the probe's finding", async || balancer.backend(&a).await["health"] == health).await;
    }
}

#[tokio::test]
async fn probes_without_a_host_send_the_backends_address() {
    let a = Origin::start("a").await;
    let _balancer = Balancer::start(Config::of([&a]).app(|pool| pool.quick_probe())).await;
    eventually("a probe", async || a.probes() > 0).await;
    assert_eq!(a.last_probe().field("host"), Some(a.address().to_string().as_str()));
}

#[tokio::test]
async fn a_hanging_probe_fails_at_its_timeout() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.quick_probe())).await;
    a.set_health(Health::Hold);
    balancer.sees(&a, "unhealthy").await;
    a.set_health(Health::Status(200));
    balancer.sees(&a, "healthy").await;
}

#[tokio::test]
async fn a_tcp_probe_only_connects() {
    let [a, b] = Origin::several(["a", "b"]).await;
    a.set_health(Health::Status(500));
    let probe = "type = \"tcp\"\ninterval = \"250ms\"\ntimeout = \"250ms\"\nrise = 1\nfall = 2";
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.probe(probe))).await;
    for origin in [&a, &b] {
        balancer.sees(origin, "healthy").await;
    }
    a.stop().await;
    balancer.sees(&a, "unhealthy").await;
    assert_eq!(balancer.origins_of(4).await.concat(), "bbbb");
    a.restart();
    balancer.sees(&a, "healthy").await;
}

#[tokio::test]
async fn consecutive_failures_eject_for_longer_each_time() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let rules = "consecutive_failures = 3\nbase_time = \"1s\"\nmax_time = \"2500ms\"\nstatuses = [503]";
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.ejection(rules))).await;
    b.answer_with(response(503, &[], ""));
    for (ejection, more_than, at_most) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 2.0, 2.5)] {
        let backend = fail_until_ejected(&balancer, &b).await;
        let seconds = backend["ejected_for_seconds"].as_f64().expect("a number");
        assert!(seconds > more_than && seconds <= at_most, "ejection {ejection} lasts {seconds} s");
        assert_eq!(backend["ejections"], ejection);
        assert_eq!(backend["health"], "healthy", "probes have nothing against it");
        let asked = balancer.origins_of(4).await.concat();
        // Unless its time is already over.
        assert!(asked == "aaaa" || balancer.backend(&b).await["status"] == "healthy", "{asked}");
        balancer.sees(&b, "healthy").await;
    }
    assert_eq!(balancer.metrics().await.sum("evenkeel_backend_ejections_total", &[]), 3.0);
    b.forget_script();
    eventually("it takes part again", async || balancer.get("/").await.origin() == "b").await;
}

#[tokio::test]
async fn successful_probes_end_an_ejection_early() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let probe = "path = \"/probe\"\ninterval = \"100ms\"\ntimeout = \"100ms\"\nrise = 2\nfall = 100";
    let rules = "consecutive_failures = 1\nbase_time = \"300s\"\nmax_time = \"900s\"\nstatuses = [503]";
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.probe(probe).ejection(rules))).await;
    for ejection in 1..=2 {
        b.set_health(Health::Status(503));
        eventually("its probes fail", async || balancer.backend(&b).await["last_probe"]["ok"] == false).await;
        b.answer_with(response(503, &[], ""));
        let backend = fail_until_ejected(&balancer, &b).await;
        let seconds = backend["ejected_for_seconds"].as_f64().expect("a number");
        let longest = 300.0 * f64::from(ejection);
        assert!(seconds > longest - 300.0 && seconds <= longest, "ejection {ejection} lasts {seconds} s");
        assert_eq!(backend["ejections"], ejection);
        b.forget_script();
        b.set_health(Health::Status(200));
        balancer.sees(&b, "healthy").await;
        eventually("it takes part again", async || balancer.get("/").await.origin() == "b").await;
    }
    eventually("two returns are logged", async || balancer.log().matches("backend is back").count() == 2).await;
}

#[tokio::test]
async fn the_end_of_an_ejection_is_logged() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let rules = "consecutive_failures = 1\nbase_time = \"100ms\"";
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.ejection(rules))).await;
    b.at_head(|_| vec![Step::Reset]);
    fail_until_ejected(&balancer, &b).await;
    eventually("its return is logged", async || balancer.log().contains("backend is back")).await;
}

#[tokio::test]
async fn a_backend_that_was_down_is_unknown_until_it_is_probed() {
    // Five of ten requests got the 503 of an application that was still starting.
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.probe(PATIENT_PROBE))).await;
    balancer.origins_of(4).await;
    balancer.patch(&b, json!({ "state": "down" })).await;
    b.set_health(Health::Hold);
    let backend = balancer.patch(&b, json!({ "state": "active" })).await;
    assert_eq!(backend["status"], "unknown", "{backend}");
    assert_eq!((&backend["last_probe"], &backend["latency_seconds"]), (&Value::Null, &Value::Null), "{backend}");
    assert_eq!(balancer.origins_of(4).await.concat(), "aaaa");
    b.release();
    balancer.sees(&b, "healthy").await;
}

#[tokio::test]
async fn a_backend_that_is_added_again_while_it_leaves_is_unknown_until_it_is_probed() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.probe(PATIENT_PROBE))).await;
    let mut held = Vec::new();
    while b.heads() == 0 {
        let (before, mut wire) = (a.heads(), balancer.connect().await);
        wire.send(Request::get("/hold").to_bytes()).await;
        eventually("the request arrived", async || a.heads() > before || b.heads() == 1).await;
        held.push(wire);
    }
    balancer.change("DELETE", &backend_path(&b), None).await;
    assert_eq!(balancer.backend(&b).await["status"], "removing");
    b.set_health(Health::Hold);
    let added = json!({ "address": b.address().to_string() });
    let backend = balancer.change("POST", "/admin/pools/app/backends", Some(added)).await;
    assert_eq!((&backend["status"], &backend["in_flight"]), (&json!("unknown"), &json!(1)), "{backend}");
    // The next regular probe would be a minute later: the backend does not wait for it.
    b.release();
    balancer.sees(&b, "healthy").await;
}

#[tokio::test]
async fn reactivating_a_backend_without_probes_ends_its_ejection() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let rules = "consecutive_failures = 1\nbase_time = \"300s\"\nstatuses = [503]";
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.ejection(rules))).await;
    b.answer_with(response(503, &[], ""));
    fail_until_ejected(&balancer, &b).await;
    b.forget_script();
    balancer.patch(&b, json!({ "state": "down" })).await;
    let backend = balancer.patch(&b, json!({ "state": "active" })).await;
    assert_eq!(backend["status"], "healthy", "{backend}");
}

#[tokio::test]
async fn idle_connections_are_closed_when_the_server_may_have_changed() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).server("threads = 1")).await;
    balancer.origins_of(3).await;
    assert_eq!(a.connections(), 1, "one connection is used again and again");
    balancer.patch(&a, json!({ "state": "down" })).await;
    balancer.patch(&a, json!({ "state": "active" })).await;
    balancer.origins_of(3).await;
    assert_eq!(a.connections(), 2, "the one of before is not used again");
    eventually("the one of before is closed", async || a.open_connections() == 1).await;

    balancer.change("DELETE", &backend_path(&a), None).await;
    eventually("a removed backend keeps no connection", async || a.open_connections() == 0).await;
}

#[tokio::test]
async fn results_of_exchanges_with_the_previous_server_are_ignored() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let rules = "consecutive_failures = 1\nbase_time = \"300s\"";
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.set("retries = 0").ejection(rules))).await;
    b.at_head(|_| vec![Step::Hold, Step::Reset]);
    let mut held = Vec::new();
    while b.heads() == 0 {
        let (before, mut wire) = (a.heads(), balancer.connect().await);
        wire.send(Request::get("/").to_bytes()).await;
        eventually("the request arrived", async || a.heads() > before || b.heads() == 1).await;
        held.push(wire);
    }
    balancer.patch(&b, json!({ "state": "down" })).await;
    balancer.patch(&b, json!({ "state": "active" })).await;
    b.release();
    assert_eq!(held.last_mut().expect("the held one").reply().await.status, 502);
    balancer.until_idle().await;
    let backend = balancer.backend(&b).await;
    assert_eq!((&backend["failures"], &backend["ejections"]), (&json!(1), &json!(0)), "{backend}");
}

#[tokio::test]
async fn a_success_between_failures_prevents_an_ejection() {
    let a = Origin::start("a").await;
    let b = Origin::start("b").await;
    let rules = "consecutive_failures = 3\nbase_time = \"60s\"\nstatuses = [503]";
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.ejection(rules))).await;
    // Over one connection: a success counts once its answer is sent, so another request might overtake it.
    let mut wire = balancer.connect().await;
    for request in 0..24 {
        let status = if request % 6 < 4 { 503 } else { 200 };
        assert_eq!(wire.exchange(&Request::get(&format!("/status/{status}"))).await.status, status);
    }
    for origin in [&a, &b] {
        assert_eq!(balancer.backend(origin).await["ejections"], 0);
    }
}

#[tokio::test]
async fn statuses_that_an_application_chooses_do_not_eject() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.ejection("consecutive_failures = 1"))).await;
    for status in [400, 401, 403, 404, 409, 429, 500, 501, 502, 503, 504] {
        for _ in 0..4 {
            assert_eq!(balancer.get(&format!("/status/{status}")).await.status, status);
        }
    }
    assert_eq!(balancer.pool().await["backends"][0]["status"], "healthy");
    assert_eq!(balancer.pool().await["backends"][1]["status"], "healthy");
}

// One slow path ejected every backend, one after the other.
#[tokio::test]
async fn timeouts_of_one_slow_path_eject_no_backend_but_a_frozen_backend_is_ejected() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let rules = "consecutive_failures = 1\nbase_time = \"60s\"";
    let pool = |pool: Pool| pool.set("response_timeout = \"1s\"\nretries = 0").ejection(rules);
    let balancer = Balancer::start(Config::of([&a, &b]).app(pool)).await;
    // Both get a request that they never answer, and answer others meanwhile.
    let [mut first, mut second] = [balancer.connect().await, balancer.connect().await];
    first.send(Request::get("/hold").to_bytes()).await;
    second.send(Request::get("/hold").to_bytes()).await;
    eventually("both hold", async || a.heads() == 1 && b.heads() == 1).await;
    let answered = async {
        loop {
            assert_eq!(balancer.get("/").await.status, 200);
        }
    };
    let refused = async { (first.reply().await.status, second.reply().await.status) };
    let statuses = tokio::select! {
        statuses = refused => statuses,
        () = answered => unreachable!("it goes on for ever"),
    };
    assert_eq!(statuses, (504, 504));
    balancer.until_idle().await;
    for origin in [&a, &b] {
        assert_eq!(balancer.backend(origin).await["status"], "healthy");
    }
    // A backend that answers nothing at all is ejected.
    a.answer(|_| vec![Step::Hang]);
    eventually("the frozen one is put aside", async || {
        balancer.get("/").await;
        balancer.backend(&a).await["status"] == "ejected"
    })
    .await;
    assert_eq!(balancer.metrics().await.sum("evenkeel_backend_ejections_total", &[]), 1.0);
}

#[tokio::test]
async fn a_backend_that_refuses_connections_is_ejected_without_failed_requests() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let rules = "consecutive_failures = 3\nbase_time = \"60s\"";
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.ejection(rules))).await;
    a.stop().await;
    assert_eq!(balancer.origins_of(12).await, vec!["b"; 12]);
    balancer.sees(&a, "ejected").await;
    // Failures of any kind: if the origin had still accepted a connection, it is reset.
    let failures = balancer.metrics().await.sum("evenkeel_backend_failures_total", &[("pool", "app")]);
    assert_eq!(failures, 3.0, "an ejected backend is not tried any more");
}

#[tokio::test]
async fn an_ejection_names_the_last_failures() {
    let [a, b, c, d] = Origin::several(["a", "b", "c", "d"]).await;
    let rules = "consecutive_failures = 3\nmax_percent = 100\nbase_time = \"60s\"\nstatuses = [503]";
    let config = Config::of([&a, &b, &c, &d]).app(|pool| pool.set("response_timeout = \"500ms\"").ejection(rules));
    let balancer = Balancer::start(config).await;
    a.stop().await;
    b.answer(|_| vec![Step::Reset]);
    c.answer(|_| vec![Step::Hang]);
    // A request has at most three attempts, and none succeeds before all are ejected.
    d.answer_with(response(503, &[], ""));
    eventually("all are ejected", async || {
        balancer.get("/").await;
        let pool = balancer.pool().await;
        pool["backends"].as_array().into_iter().flatten().all(|backend| backend["status"] == "ejected")
    })
    .await;
    let named = |origin: &Origin, what: &str| format!("{what} at {} (3 times)", origin.address());
    for (origin, what) in
        [(&b, "reset"), (&c, "response-timeout (longer than [[pool]] response_timeout (500ms))"), (&d, "status 503")]
    {
        let failures = format!("last_failures=\"{}\"", named(origin, what));
        balancer.logs(&["backend ejected", &format!("backend={}", origin.address()), &failures]).await;
    }
    // The pool's first connection may still have been accepted by the closed listener.
    let address = a.address();
    let refused = format!("connect-refused (Connection refused (os error 111)) at {address}");
    balancer.logs(&["backend ejected", &format!("backend={address}"), &refused]).await;
}

// Failures of a backend were only in the access log, and each refused head of a response was logged.
#[tokio::test]
async fn repeated_failures_are_logged_once_and_then_counted() {
    let [a, b, c] = Origin::several(["a", "b", "c"]).await;
    a.answer(|_| vec![Step::Reset]);
    let large = format!("HTTP/1.1 200 OK\r\nX-Large: {}\r\nContent-Length: 0\r\n\r\n", "x".repeat(33_000));
    b.answer_with(large);
    let config = Config::of([&a, &b, &c]).app(|pool| pool.set("retries = 0").without_ejection());
    let balancer = Balancer::start(config).await;
    for _ in 0..60 {
        balancer.get("/").await;
    }
    let (a, b) = (a.address(), b.address());
    for line in [
        format!("pool=app backend={a} address={a} failure=\"reset\""),
        format!("pool=app backend={b} address={b} failure=\"response-head-too-large\" limit=32768"),
        format!("… and 19 more in 10 s pool=app backend={a} failure=\"reset\" more=19"),
        format!("… and 19 more in 10 s pool=app backend={b} failure=\"response-head-too-large\" more=19"),
    ] {
        balancer.logs(&["WARN", &line]).await;
    }
    assert_eq!(balancer.log().matches("WARN").count(), 4, "{}", balancer.log());
}

#[tokio::test]
async fn no_more_than_the_configured_share_of_a_pool_is_ejected() {
    let origins = Origin::several(["a", "b", "c", "d"]).await;
    for (count, max_percent, ejected) in [(4, 50, 2), (4, 25, 1), (2, 50, 1), (2, 10, 1), (1, 100, 0), (3, 0, 0)] {
        let rules =
            format!("consecutive_failures = 2\nbase_time = \"60s\"\nmax_percent = {max_percent}\nstatuses = [503]");
        let config = Config::of(&origins[..count]).app(|pool| pool.ejection(&rules));
        let balancer = Balancer::start(config).await;
        for _ in 0..30 {
            assert_eq!(balancer.get("/status/503").await.status, 503);
        }
        let pool = balancer.pool().await;
        let aside = pool["backends"].as_array().into_iter().flatten().filter(|b| b["status"] == "ejected").count();
        assert_eq!(aside, ejected, "{count} backends, {max_percent} %: {pool}");
    }
}

#[tokio::test]
async fn a_pool_with_too_few_usable_backends_panics_and_reports_it() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.quick_probe())).await;
    a.set_health(Health::Status(503));
    b.set_health(Health::Status(503));
    eventually("panic", async || balancer.pool().await["panic"] == true).await;
    assert_eq!(panic_metric(&balancer).await, 1.0);
    let origins = balancer.origins_of(4).await.concat();
    assert!(origins == "abab" || origins == "baba", "health is ignored: {origins}");
    assert_eq!(balancer.backend(&a).await["status"], "unhealthy", "yet shown");

    b.set_health(Health::Status(200));
    eventually("the panic ends", async || balancer.pool().await["panic"] == false).await;
    assert_eq!(panic_metric(&balancer).await, 0.0);
    balancer.logs(&["INFO the panic is over: health counts again pool=app"]).await;
    let begun = balancer.log().matches("WARN panic: too few backends are usable").count();
    assert_eq!(begun, 1, "said once: {}", balancer.log());
    let found = format!("pool=app backend={0} address={0} health=\"unhealthy\" reason=\"status 503\"", a.address());
    balancer.logs(&["WARN backend health changed", &found]).await;
    balancer.logs(&["INFO backend health changed", "health=\"healthy\""]).await;
    assert!(!balancer.log().contains("reason=\"\""), "a backend that is well has none: {}", balancer.log());
    assert_eq!(balancer.origins_of(4).await.concat(), "bbbb");
}

#[tokio::test]
async fn probes_that_lack_file_descriptors_are_logged_once_and_counted() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::start(Config::of([&a]).app(|pool| pool.quick_probe())).await;
    let before = balancer.limit_open_files(3);
    balancer.logs(&["a backend could not be probed pool=app", "error=out-of-resources"]).await;
    // Enough time for several more.
    tokio::time::sleep(Duration::from_millis(500)).await;
    balancer.limit_open_files(before);
    balancer.logs(&["a backend is probed again pool=app"]).await;
    let log = balancer.log();
    assert_eq!(log.matches("could not be probed").count(), 1, "{log}");
    let counted = log.split("not_made=").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse::<u32>().ok());
    assert!(counted.is_some_and(|count| count > 1), "{log}");
    balancer.sees(&a, "healthy").await;
}

#[tokio::test]
async fn the_panic_threshold_is_a_share_of_the_active_backends() {
    let [a, b, c] = Origin::several(["a", "b", "c"]).await;
    let config = Config::of([&a, &b, &c]).app(|pool| pool.quick_probe().set("panic_threshold = 50"));
    let balancer = Balancer::start(config).await;
    a.set_health(Health::Status(503));
    balancer.sees(&a, "unhealthy").await;
    assert_eq!(balancer.pool().await["panic"], false, "two of three are enough");
    b.set_health(Health::Status(503));
    eventually("panic", async || balancer.pool().await["panic"] == true).await;
    balancer.patch(&b, json!({ "state": "down" })).await;
    assert_eq!(balancer.pool().await["panic"], false, "one of two active ones is enough");
    assert_eq!(balancer.origins_of(4).await.concat(), "cccc");
}

#[tokio::test]
async fn health_outlives_algorithm_switches_and_reloads() {
    let [a, b, c] = Origin::several(["a", "b", "c"]).await;
    // Unhealthy by its first probe. The next ones of the other backend change nothing: successful ones would end its
    // ejection.
    let probe = "path = \"/probe\"\ninterval = \"1s\"\ntimeout = \"1s\"\nfall = 100";
    let pool =
        |pool: Pool| pool.probe(probe).ejection("consecutive_failures = 1\nbase_time = \"300s\"\nstatuses = [503]");
    let config = Config::of([&a, &b, &c]).app(pool);
    a.set_health(Health::Status(503));
    let balancer = Balancer::start(config.clone()).await;
    balancer.sees(&a, "unhealthy").await;
    b.set_health(Health::Status(503));
    eventually("its probes fail", async || balancer.backend(&b).await["last_probe"]["ok"] == false).await;
    b.answer_with(response(503, &[], ""));
    fail_until_ejected(&balancer, &b).await;

    let requests = balancer.backend(&c).await["requests"].as_u64().expect("a count");
    for algorithm in ALGORITHMS {
        balancer.switch_algorithm(algorithm).await;
        assert_findings(&balancer, &a, &b, &c).await;
    }
    balancer.patch(&a, json!({ "weight": 9 })).await;
    balancer.patch(&b, json!({ "weight": 8 })).await;
    assert_findings(&balancer, &a, &b, &c).await;
    balancer.configure(&config.app(|pool| pool.set("response_timeout = \"30s\"")));
    balancer.change("POST", "/admin/reload", None).await;
    assert_findings(&balancer, &a, &b, &c).await;
    let after = balancer.backend(&c).await["requests"].as_u64().expect("a count");
    assert_eq!(after, requests + 6 * 3, "counts go on: three requests at each of six looks");
}

#[tokio::test]
async fn a_backend_recovers_from_a_storm_of_resets() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let rules = "consecutive_failures = 2\nbase_time = \"100ms\"\nmax_time = \"100ms\"";
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.ejection(rules))).await;
    a.at_head(|_| vec![Step::Reset]);
    assert_eq!(balancer.origins_of(20).await, vec!["b"; 20], "GET is repeated elsewhere");
    a.forget_script();
    eventually("a takes part again", async || balancer.get("/").await.origin() == "a").await;
}

async fn balancer_answers(balancer: &Balancer) {
    eventually("the admin API answers", async || balancer.try_admin("GET", "/healthz", None).await.is_some()).await;
}

/// Sends requests until the failing backend is ejected, and returns what the API then shows.
async fn fail_until_ejected(balancer: &Balancer, origin: &Origin) -> Value {
    let mut wire = balancer.connect().await;
    found_eventually("the failing backend is ejected", async || {
        wire.exchange(&Request::get("/")).await;
        let backend = balancer.backend(origin).await;
        (backend["status"] == "ejected").then_some(backend)
    })
    .await
}

async fn assert_findings(balancer: &Balancer, unhealthy: &Origin, ejected: &Origin, healthy: &Origin) {
    let statuses =
        [balancer.backend(unhealthy).await, balancer.backend(ejected).await, balancer.backend(healthy).await];
    let statuses = statuses.map(|backend| backend["status"].clone());
    assert_eq!(statuses, [json!("unhealthy"), json!("ejected"), json!("healthy")]);
    assert_eq!(balancer.backend(ejected).await["ejections"], 1);
    assert_eq!(balancer.origins_of(3).await, vec![healthy.name(); 3]);
}

async fn panic_metric(balancer: &Balancer) -> f64 {
    balancer.metrics().await.sum("evenkeel_pool_panic", &[("pool", "app")])
}
