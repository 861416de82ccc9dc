//! The admin API behaves as `docs/admin-api.md` says, and an invalid request changes nothing.

use serde_json::{Value, json};
use tests::balancer::backend_path;
use tests::{Balancer, Config, Origin, Pool, Reply, Request, evenkeel, eventually, found_eventually};

const CHOICES: [&str; 4] = ["round-robin", "weighted", "least-connections", "ip-hash"];

#[tokio::test]
async fn get_algorithm_lists_pools_and_choices() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(two_pools(&a, &b)).await;
    let answer = balancer.change("GET", "/admin/algorithm", None).await;
    assert_eq!(answer["choices"], json!(CHOICES));
    assert_eq!(
        answer["pools"],
        json!([{ "pool": "app", "algorithm": "weighted" }, { "pool": "other", "algorithm": "ip-hash" }])
    );
    assert!(answer["version"].is_u64(), "{answer}");
}

#[tokio::test]
async fn post_algorithm_switches_all_pools_or_one() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(two_pools(&a, &b)).await;
    let before = balancer.version().await;

    let every = balancer.switch_algorithm("least-connections").await;
    assert_eq!(every["version"], before + 1);
    assert_eq!(
        every["pools"],
        json!([
            { "pool": "app", "previous": "weighted", "current": "least-connections" },
            { "pool": "other", "previous": "ip-hash", "current": "least-connections" },
        ])
    );

    let one = json!({ "algorithm": "ip-hash", "pool": "other" });
    let one = balancer.change("POST", "/admin/algorithm", Some(one)).await;
    assert_eq!(one["version"], before + 2);
    assert_eq!(one["pools"], json!([{ "pool": "other", "previous": "least-connections", "current": "ip-hash" }]));
    assert_eq!(balancer.algorithm().await, "least-connections");
}

#[tokio::test]
async fn invalid_requests_explain_the_fix_and_change_nothing() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let backend = &backend_path(&a);
    let unknown_backend = "/admin/pools/app/backends/127.0.0.1:1";
    let address = a.address().to_string();
    let before = (balancer.version().await, settled(&balancer).await);
    for (method, path, body, status, mentions) in [
        ("POST", "/admin/algorithm", json!({ "algorithm": "fastest" }), 400, &CHOICES[..]),
        ("POST", "/admin/algorithm", json!({ "algorithm": "" }), 400, &CHOICES[..]),
        ("POST", "/admin/algorithm", json!({ "algorithm": 7 }), 400, &[]),
        ("POST", "/admin/algorithm", json!({}), 400, &["algorithm"]),
        ("POST", "/admin/algorithm", json!([]), 400, &[]),
        ("POST", "/admin/algorithm", json!({ "algorithm": "weighted", "pol": "app" }), 400, &["pol"]),
        ("POST", "/admin/algorithm", json!({ "algorithm": "weighted", "pool": "nowhere" }), 404, &["nowhere"]),
        ("PUT", "/admin/algorithm", json!({ "algorithm": "weighted" }), 405, &[]),
        ("DELETE", "/admin/pools", Value::Null, 405, &[]),
        ("GET", "/admin/pools/nowhere", Value::Null, 404, &["nowhere"]),
        ("GET", "/admin/nothing", Value::Null, 404, &[]),
        ("GET", "/nothing", Value::Null, 404, &[]),
        ("GET", "/admin/reload", Value::Null, 405, &[]),
        ("PATCH", backend, json!({ "weight": 0 }), 400, &["1000"]),
        ("PATCH", backend, json!({ "weight": 1001 }), 400, &["1000"]),
        ("PATCH", backend, json!({ "weight": -1 }), 400, &[]),
        ("PATCH", backend, json!({ "weight": 1.5 }), 400, &[]),
        ("PATCH", backend, json!({ "weight": "3" }), 400, &[]),
        ("PATCH", backend, json!({ "state": "sleeping" }), 400, &["active", "draining", "down"]),
        ("PATCH", backend, json!({ "state": "removing" }), 400, &["active", "draining", "down"]),
        ("PATCH", backend, json!({ "wieght": 3 }), 400, &["wieght"]),
        ("PATCH", backend, json!({ "weight": 3, "state": "sleeping" }), 400, &["draining"]),
        ("PATCH", unknown_backend, json!({ "weight": 3 }), 404, &["127.0.0.1:1"]),
        ("DELETE", unknown_backend, Value::Null, 404, &["127.0.0.1:1"]),
        ("POST", "/admin/pools/app/backends", json!({ "address": address }), 409, &[&address]),
        ("POST", "/admin/pools/app/backends", json!({ "address": "web1" }), 400, &["web1"]),
        ("POST", "/admin/pools/app/backends", json!({ "address": "127.0.0.1:0" }), 400, &["65535"]),
        ("POST", "/admin/pools/app/backends", json!({ "weight": 1 }), 400, &["address"]),
        ("POST", "/admin/pools/app/backends", json!({ "address": "127.0.0.1:1", "weight": 0 }), 400, &["1000"]),
        ("POST", "/admin/pools/nowhere/backends", json!({ "address": "127.0.0.1:1" }), 404, &["nowhere"]),
    ] {
        let reply = balancer.admin(method, path, (!body.is_null()).then(|| body.clone())).await;
        let case = format!("{method} {path} {body}: {} {}", reply.status, reply.text());
        assert_problem(&reply, status, &case);
        for word in mentions {
            assert!(reply.json()["detail"].as_str().is_some_and(|detail| detail.contains(word)), "{word}? {case}");
        }
    }
    assert_eq!((balancer.version().await, settled(&balancer).await), before);
}

#[tokio::test]
async fn a_body_that_is_not_json_is_refused() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let before = balancer.version().await;
    let post =
        |body: &str| Request::post("/admin/algorithm", body).with("Host", "localhost").with("Connection", "close");
    let sound = json!({ "algorithm": "weighted" }).to_string();
    let large = json!({ "algorithm": "weighted", "x": "y".repeat(70_000) }).to_string();
    for (request, status) in [
        (post("{\"algorithm\":").with("Content-Type", "application/json"), 400),
        (post("weighted").with("Content-Type", "application/json"), 400),
        (post("").with("Content-Type", "application/json"), 400),
        (post(&sound).with("Content-Type", "text/plain"), 415),
        (post(&sound).with("Content-Type", "application/x-www-form-urlencoded"), 415),
        (post(&sound), 415),
        (post(&large).with("Content-Type", "application/json"), 413),
        (post(&large).with("Content-Type", "application/json").with("Transfer-Encoding", "chunked"), 413),
    ] {
        let reply = balancer.try_admin_request(request.clone()).await.expect("an answer");
        assert_problem(&reply, status, &format!("{:?} {}", request.fields, reply.text()));
    }
    assert_eq!(balancer.version().await, before);
    let parameters = post(&sound).with("Content-Type", "application/json; charset=utf-8");
    assert_eq!(balancer.try_admin_request(parameters).await.expect("an answer").status, 200);
}

#[tokio::test]
async fn get_pools_shows_configuration_and_live_state() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.quick_probe())).await;
    balancer.origins_of(4).await;
    let all = balancer.change("GET", "/admin/pools", None).await;
    assert!(all["version"].is_u64(), "{all}");
    let pool = &all["pools"][0];
    assert_eq!((&pool["name"], &pool["algorithm"], &pool["panic"]), (&json!("app"), &json!("weighted"), &json!(false)));
    let backend = &pool["backends"][0];
    assert_eq!(backend["address"], a.address().to_string());
    for (field, value) in [
        ("weight", json!(1)),
        ("state", json!("active")),
        ("health", json!("healthy")),
        ("status", json!("healthy")),
        ("ejected_for_seconds", json!(0.0)),
        ("in_flight", json!(0)),
        ("requests", json!(2)),
        ("failures", json!(0)),
        ("ejections", json!(0)),
    ] {
        assert_eq!(backend[field], value, "{field} in {backend}");
    }
    assert!(backend["latency_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{backend}");
    let probe = &backend["last_probe"];
    assert_eq!((&probe["ok"], &probe["error"]), (&json!(true), &Value::Null), "{probe}");
    assert!(probe["seconds_ago"].is_f64() && probe["duration_seconds"].is_f64(), "{probe}");
}

#[tokio::test]
async fn an_added_backend_takes_its_share() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a]).app(|pool| pool.algorithm("weighted"))).await;
    let added = json!({ "address": b.address().to_string(), "weight": 2 });
    let reply = balancer.admin("POST", "/admin/pools/app/backends", Some(added)).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    let backend = reply.json();
    assert_eq!((&backend["weight"], &backend["state"]), (&json!(2), &json!("active")));
    balancer.sees(&b, "healthy").await;
    let origins = balancer.origins_of(9).await;
    assert_eq!(origins.iter().filter(|origin| *origin == "b").count(), 6, "{origins:?}");
}

#[tokio::test]
async fn a_backend_can_be_added_out_of_service() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let added = json!({ "address": b.address().to_string(), "state": "down" });
    let backend = balancer.change("POST", "/admin/pools/app/backends", Some(added)).await;
    assert_eq!(backend["status"], "down");
    assert_eq!(balancer.origins_of(4).await.concat(), "aaaa");
    let backend = balancer.patch(&b, json!({ "state": "active", "weight": 3 })).await;
    assert_eq!((&backend["status"], &backend["weight"]), (&json!("healthy"), &json!(3)));
    assert!(balancer.origins_of(4).await.contains(&"b".to_owned()));
}

#[tokio::test]
async fn a_draining_backend_finishes_requests_and_gets_no_new_ones() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b])).await;
    let mut held = balancer.connect().await;
    held.send(Request::get("/hold").to_bytes()).await;
    eventually("the request arrived", async || a.heads() == 1).await;
    let backend = balancer.patch(&a, json!({ "state": "draining" })).await;
    assert_eq!((&backend["status"], &backend["in_flight"]), (&json!("draining"), &json!(1)));
    assert_eq!(balancer.origins_of(6).await.concat(), "bbbbbb");
    a.release();
    assert_eq!(held.reply().await.origin(), "a");
    balancer.patch(&a, json!({ "state": "active" })).await;
    assert!(balancer.origins_of(4).await.contains(&"a".to_owned()));
}

#[tokio::test]
async fn removal_waits_for_requests_in_flight() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b])).await;
    let mut held = balancer.connect().await;
    held.send(Request::get("/hold").to_bytes()).await;
    eventually("the request arrived", async || a.heads() == 1).await;
    let reply = balancer.admin("DELETE", &backend_path(&a), None).await;
    let answer = reply.json();
    assert_eq!((reply.status, &answer["removed"], &answer["in_flight"]), (202, &json!(false), &json!(1)));
    assert_eq!(balancer.backend(&a).await["status"], "removing");
    assert_eq!(balancer.origins_of(4).await.concat(), "bbbb");
    a.release();
    assert_eq!(held.reply().await.origin(), "a");
    eventually("the backend is gone", async || balancer.backend(&a).await.is_null()).await;

    let reply = balancer.admin("DELETE", &backend_path(&b), None).await;
    assert_eq!((reply.status, &reply.json()["removed"]), (200, &json!(true)));
    assert_eq!(balancer.pool().await["backends"], json!([]));
    assert_eq!(balancer.get("/").await.status, 503);
}

#[tokio::test]
async fn a_removed_backend_that_is_added_again_starts_with_fresh_state() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b])).await;
    balancer.origins_of(4).await;
    balancer.change("DELETE", &backend_path(&b), None).await;
    eventually("the removed backend is gone", async || balancer.backend(&b).await.is_null()).await;
    let added = json!({ "address": b.address().to_string() });
    let backend = balancer.change("POST", "/admin/pools/app/backends", Some(added)).await;
    assert_eq!(backend["requests"], 0);
    assert!(balancer.origins_of(2).await.contains(&"b".to_owned()));
}

#[tokio::test]
async fn the_configuration_in_force_includes_changes_and_no_secrets() {
    let a = Origin::start("a").await;
    let config = Config::of([&a]).admin("token_file = \"token\"");
    let mut balancer = Balancer::prepare(&config);
    std::fs::write(balancer.file("token"), "open-sesame-open-sesame\n").expect("a writable directory");
    balancer.token = Some("open-sesame-open-sesame".to_owned());
    balancer.launch();
    balancer.ready().await;
    balancer.switch_algorithm("ip-hash").await;
    balancer.patch(&a, json!({ "weight": 4 })).await;
    let text = balancer.admin("GET", "/admin/config", None).await.text();
    assert!(text.contains("ip-hash") && text.contains(&a.address().to_string()), "{text}");
    assert!(!text.contains("open-sesame"), "{text}");
    let config: Value = serde_json::from_str(&text).expect("JSON");
    let pool = found_pool(&config);
    assert_eq!(pool["backends"][0]["weight"], 4, "{pool}");
}

/// Settings that take effect only at the next start were shown as if they were in effect, and the second reload did not
/// report them.
#[tokio::test]
async fn the_configuration_in_force_omits_settings_that_need_a_restart() {
    let a = Origin::start("a").await;
    let config = Config::of([&a]);
    let balancer = Balancer::start(config.clone()).await;
    let threads = balancer.change("GET", "/admin/config", None).await["server"]["threads"].clone();
    let settings = ["[log] level debug instead of info".to_owned(), format!("[server] threads 7 instead of {threads}")];
    let warned = settings.each_ref().map(|setting| format!("{setting}, which takes effect at the next start"));
    let admin = format!("http://{}", balancer.admin_address());
    let stdout_of = async |command: &[&str]| evenkeel([command, &["--admin", &admin]].concat()).await.stdout;
    assert!(!stdout_of(&["status"]).await.contains("from the next start on"));
    let (more, config_with) = ("[log]\nlevel = \"debug\"", config.clone().server("threads = 7"));
    balancer.configure(&config_with.listener("lingering_time = \"7s\"").section(more));
    for _ in 0..2 {
        let answer = balancer.change("POST", "/admin/reload", None).await;
        assert_eq!(answer["warnings"], json!(warned));
        let differs: String =
            settings.iter().map(|setting| format!("in the file, from the next start on: {setting}\n")).collect();
        assert_eq!(stdout_of(&["config", "--diff"]).await, differs);
        let status = stdout_of(&["status"]).await;
        let lines = format!("\nIn the file, from the next start on:\n  {}\n", settings.join("\n  "));
        assert!(status.ends_with(&lines), "{status}");
        let in_force = balancer.change("GET", "/admin/config", None).await;
        assert_ne!(in_force["server"]["threads"], 7, "{in_force}");
        assert_eq!(in_force["listeners"][0]["lingering_time"], 7.0, "{in_force}");
        assert_eq!(in_force["log"]["level"], "info", "{in_force}");
    }
    balancer.configure(&config);
    let answer = balancer.change("POST", "/admin/reload", None).await;
    assert_eq!(answer["warnings"], json!([]), "the file says again what runs");
    assert!(stdout_of(&["config", "--diff"]).await.starts_with("the configuration in force is that of"));
}

#[tokio::test]
async fn every_endpoint_but_health_requires_the_token() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::prepare(&Config::of([&a]).admin("token_file = \"token\""));
    std::fs::write(balancer.file("token"), "open-sesame-open-sesame\n").expect("a writable directory");
    balancer.launch();
    balancer.ready().await;
    let switch = || Some(json!({ "algorithm": "weighted" }));
    for (token, status) in [(None, 401), (Some("wrong"), 403), (Some("open-sesame-open-sesame"), 200)] {
        balancer.token = token.map(str::to_owned);
        for (method, path, body) in [
            ("GET", "/admin/algorithm", None),
            ("POST", "/admin/algorithm", switch()),
            ("GET", "/admin/pools", None),
            ("GET", "/admin/config", None),
            ("GET", "/metrics", None),
        ] {
            let reply = balancer.admin(method, path, body).await;
            assert_eq!(reply.status, status, "{token:?} {method} {path}: {}", reply.text());
            if status != 200 {
                assert_problem(&reply, status, path);
            }
        }
        for path in ["/healthz", "/readyz"] {
            assert_eq!(balancer.admin("GET", path, None).await.status, 200, "{token:?} {path}");
        }
    }
    balancer.token = None;
    let unauthorized = balancer.admin("POST", "/admin/algorithm", switch()).await;
    assert!(unauthorized.field("www-authenticate").is_some_and(|scheme| scheme.contains("Bearer")));
}

#[tokio::test]
async fn health_endpoints_say_ok_and_ready() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    for (path, body) in [("/healthz", "ok"), ("/readyz", "ready")] {
        let reply = balancer.admin("GET", path, None).await;
        assert_eq!((reply.status, reply.text().trim()), (200, body), "{path}");
    }
}

#[tokio::test]
async fn an_address_off_loopback_requires_a_token() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::prepare(&Config::of([&a]));
    let port = balancer.admin_address().port();
    let config = std::fs::read_to_string(balancer.config_file()).expect("a configuration");
    balancer
        .write(&config.replace(&format!("address = \"127.0.0.1:{port}\""), &format!("address = \"0.0.0.0:{port}\"")));
    balancer.launch();
    let status = balancer.process().end().await;
    assert!(!status.success());
    let log = balancer.log();
    assert!(log.contains("token_file") && log.contains("loopback"), "{log}");
}

#[tokio::test]
async fn the_admin_api_answers_while_all_traffic_waits() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut held = Vec::new();
    for _ in 0..200 {
        let mut wire = balancer.connect().await;
        wire.send(Request::get("/hold").to_bytes()).await;
        held.push(wire);
    }
    eventually("all of them wait", async || balancer.in_flight().await == 200).await;
    balancer.switch_algorithm("least-connections").await;
    a.release();
    for wire in &mut held {
        assert_eq!(wire.reply().await.status, 200);
    }
    balancer.until_idle().await;
}

#[tokio::test]
async fn cli_makes_the_same_changes_as_the_api() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b])).await;
    let admin = format!("http://{}", balancer.admin_address());
    let address = a.address().to_string();
    let run = async |arguments: &[&str]| {
        let outcome = evenkeel([arguments, &["--admin", &admin][..]].concat()).await;
        assert!(outcome.status.success(), "{arguments:?}: {outcome:?}");
        outcome.stdout
    };

    let status = run(&["status"]).await;
    assert!(status.contains("app") && status.contains(&address) && status.contains("weighted"), "{status}");

    let answer = run(&["algorithm", "least-connections"]).await;
    assert!(answer.contains("least-connections"), "{answer}");
    assert_eq!(balancer.algorithm().await, "least-connections");
    run(&["algorithm", "ip-hash", "--pool", "app"]).await;
    assert_eq!(balancer.algorithm().await, "ip-hash");

    run(&["drain", &address]).await;
    assert_eq!(balancer.backend(&a).await["status"], "draining");
    run(&["undrain", &address]).await;
    assert_eq!(balancer.backend(&a).await["status"], "healthy");
    run(&["weight", &address, "7"]).await;
    assert_eq!(balancer.backend(&a).await["weight"], 7);

    let json: Value = serde_json::from_str(&run(&["status", "--json"]).await).expect("JSON");
    assert_eq!(json["pools"][0]["name"], "app");
    let running = run(&["config", "--running"]).await;
    assert!(running.contains("ip-hash") && running.contains(&address), "{running}");
    run(&["health"]).await;

    let c = Origin::start("c").await;
    run(&["backend", "add", &c.address().to_string(), "--weight", "3"]).await;
    assert_eq!(balancer.backend(&c).await["weight"], 3);
    run(&["backend", "remove", &c.address().to_string()]).await;
    assert!(balancer.backend(&c).await.is_null());

    balancer.configure(&Config::of([&a, &b]).app(|pool| pool.algorithm("least-connections")));
    run(&["reload"]).await;
    assert_eq!(balancer.algorithm().await, "least-connections");
}

#[tokio::test]
async fn cli_reads_its_token_from_a_file() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::prepare(&Config::of([&a]).admin("token_file = \"token\""));
    std::fs::write(balancer.file("token"), "open-sesame-open-sesame\n").expect("a writable directory");
    balancer.launch();
    balancer.ready().await;
    let admin = format!("http://{}", balancer.admin_address());
    let token = balancer.file("token").display().to_string();
    let outcome = evenkeel(["algorithm", "weighted", "--admin", &admin]).await;
    assert!(!outcome.status.success() && outcome.stderr.contains("token"), "{outcome:?}");
    let outcome = evenkeel(["algorithm", "weighted", "--admin", &admin, "--token-file", &token]).await;
    assert!(outcome.status.success(), "{outcome:?}");
    assert!(!format!("{outcome:?}").contains("open-sesame"), "secrets are not printed");
}

#[tokio::test]
async fn cli_reports_what_went_wrong() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::start(Config::of([&a])).await;
    let admin = format!("http://{}", balancer.admin_address());
    for (arguments, mentions) in [
        (vec!["algorithm", "fastest"], "least-connections"),
        (vec!["algorithm", "weighted", "--pool", "nowhere"], "nowhere"),
        (vec!["drain", "127.0.0.1:1"], "127.0.0.1:1"),
    ] {
        let outcome = evenkeel([&arguments[..], &["--admin", &admin]].concat()).await;
        assert!(!outcome.status.success(), "{outcome:?}");
        assert!(outcome.stderr.contains(mentions), "{arguments:?}: {outcome:?}");
    }
    balancer.stop().await;
    let outcome = evenkeel(["status", "--admin", &admin]).await;
    assert!(!outcome.status.success() && outcome.stderr.contains(&balancer.admin_address().to_string()), "{outcome:?}");
}

#[tokio::test]
async fn every_change_increments_the_version() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let start = balancer.version().await;
    balancer.switch_algorithm("ip-hash").await;
    balancer.patch(&a, json!({ "weight": 2 })).await;
    balancer.change("POST", "/admin/pools/app/backends", Some(json!({ "address": b.address().to_string() }))).await;
    balancer.change("DELETE", &backend_path(&b), None).await;
    found_eventually("the version after four changes", async || {
        let version = balancer.version().await;
        (version >= start + 4).then_some(())
    })
    .await;
    assert_eq!(balancer.metrics().await.sum("evenkeel_snapshot_version", &[]), balancer.version().await as f64);
}

fn two_pools(a: &Origin, b: &Origin) -> Config {
    Config::of([a]).pool(Pool::of("other", [b]).algorithm("ip-hash")).route("", "/", "app").route("", "/other", "other")
}

/// The pool without fields that change by themselves.
async fn settled(balancer: &Balancer) -> Value {
    let mut pool = balancer.pool().await;
    for backend in pool["backends"].as_array_mut().expect("backends") {
        backend["last_probe"] = Value::Null;
    }
    pool
}

fn assert_problem(reply: &Reply, status: u16, case: &str) {
    assert_eq!(reply.status, status, "{case}");
    assert_eq!(reply.field("content-type"), Some("application/problem+json"), "{case}");
    let problem = reply.json();
    assert_eq!(problem["status"], status, "{case}");
    assert!(problem["title"].is_string() && problem["detail"].is_string(), "{case}");
}

/// The pool `app`, at any position in the configuration's list of pools.
fn found_pool(config: &Value) -> &Value {
    let pools = config.get("pools").or_else(|| config.get("pool")).and_then(Value::as_array).expect("pools");
    pools.iter().find(|pool| pool["name"] == "app").expect("the pool")
}

#[tokio::test]
async fn without_a_token_cross_origin_requests_are_refused() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let before = balancer.version().await;
    let post = || Request::post("/admin/reload", "").with("Connection", "close");
    let own = format!("http://{}", balancer.admin_address());
    for (request, status) in [
        // A page whose own name resolves to this machine.
        (post().with("Host", "evil.example"), 403),
        // A page that posts a form here.
        (post().with("Host", "localhost").with("Origin", "http://evil.example"), 403),
        (post().with("Host", "localhost").with("Origin", "null"), 403),
        (post().with("Host", &balancer.admin_address().to_string()).with("Origin", &own), 200),
    ] {
        let reply = balancer.try_admin_request(request.clone()).await.expect("an answer");
        assert_eq!(reply.status, status, "{:?}: {}", request.fields, reply.text());
    }
    assert_eq!(balancer.version().await, before + 1);
}
