//! Changes can be tried first, are recorded, can be undone, and are compared with the configuration file.

use serde_json::{Value, json};
use tests::balancer::backend_path;
use tests::{Balancer, Config, Origin, Pool, Reply, Request, evenkeel, eventually};

async fn recorded(balancer: &Balancer) -> Vec<Value> {
    let answer = balancer.change("GET", "/admin/changes", None).await;
    answer["changes"].as_array().expect("a list").clone()
}

async fn run(balancer: &Balancer, arguments: &[&str]) -> String {
    let admin = format!("http://{}", balancer.admin_address());
    let outcome = evenkeel([arguments, &["--admin", &admin][..]].concat()).await;
    assert!(outcome.status.success(), "{arguments:?}: {outcome:?}");
    outcome.stdout
}

fn texts(edits: &Value) -> Vec<&str> {
    edits.as_array().expect("edits").iter().map(|edit| edit["text"].as_str().expect("words")).collect()
}

#[tokio::test]
async fn a_change_to_the_current_value_makes_no_version_and_no_record() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let version = balancer.version().await;
    let answer = balancer.switch_algorithm("weighted").await;
    assert_eq!((&answer["version"], &answer["change"]), (&json!(version), &Value::Null), "{answer}");
    assert_eq!(answer["pools"][0]["previous"], "weighted");
    let answer = balancer.patch(&a, json!({ "weight": 1, "state": "active" })).await;
    assert_eq!(answer["change"], Value::Null, "{answer}");
    assert_eq!(balancer.version().await, version);
    assert_eq!(recorded(&balancer).await, [Value::Null; 0]);
}

#[tokio::test]
async fn every_change_is_recorded_with_who_and_what() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::prepare(&Config::of([&a]).admin("token_file = \"token\""));
    std::fs::write(balancer.file("token"), "open-sesame-open-sesame\n").expect("a writable directory");
    balancer.token = Some("open-sesame-open-sesame".to_owned());
    balancer.launch();
    balancer.ready().await;
    let first = balancer.switch_algorithm("ip-hash").await;
    let second = balancer.patch(&a, json!({ "weight": 3 })).await;
    balancer.change("POST", "/admin/reload", None).await;
    assert_eq!((&first["change"], &second["change"]), (&json!(1), &json!(2)));
    let changes = recorded(&balancer).await;
    let [reload, weight, algorithm] = changes.as_slice() else { panic!("{changes:?}") };
    assert_eq!((&reload["id"], &reload["reloaded"]), (&json!(3), &json!([])));
    assert_eq!(
        weight["edits"],
        json!([{
            "setting": "backend", "pool": "app", "backend": a.address().to_string(),
            "before": { "weight": 1, "state": "active" }, "after": { "weight": 3, "state": "active" },
            "text": format!("pool app: backend {} weight 3 instead of 1", a.address()),
        }])
    );
    assert_eq!(algorithm["edits"][0]["text"], "pool app: algorithm ip-hash instead of weighted");
    assert_eq!((&algorithm["by"], &algorithm["version"]), (&json!("admin"), &first["version"]));
    assert!(algorithm["from"].as_str().is_some_and(|from| from.starts_with("127.0.0.1:")), "{algorithm}");
    assert!(algorithm["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{algorithm}");
    balancer.logs(&["pool app: algorithm ip-hash instead of weighted change=1", "by=\"admin from 127.0.0.1:"]).await;
}

#[tokio::test]
async fn a_dry_run_reports_the_effects_and_changes_nothing() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b])).await;
    let mut held = balancer.connect().await;
    held.send(Request::get("/hold").to_bytes()).await;
    eventually("the request arrived", async || a.heads() == 1).await;
    let (version, address) = (balancer.version().await, a.address().to_string());
    let output = run(&balancer, &["drain", &address, "--dry-run"]).await;
    assert_eq!(
        output,
        format!(
            "dry run: pool app: backend {address} draining instead of active\n  \
             {address}: takes nothing new and is still probed; 1 exchange in flight goes on to its end\n  \
             pool app: 1 of 1 active backends can take traffic then\n"
        )
    );
    for (arguments, words) in [
        (vec!["algorithm", "ip-hash", "--dry-run"], "algorithm ip-hash instead of weighted"),
        (vec!["weight", &address, "9", "--dry-run"], "weight 9 instead of 1"),
        (vec!["backend", "add", "127.0.0.1:1", "--dry-run"], "added, active with weight 1"),
        (vec!["backend", "remove", &address, "--dry-run"], "removed"),
        (vec!["undrain", &address, "--dry-run"], "this is so already"),
    ] {
        let output = run(&balancer, &arguments).await;
        assert!(output.starts_with("dry run: ") && output.contains(words), "{arguments:?}: {output}");
    }
    assert_eq!(balancer.version().await, version);
    assert_eq!(recorded(&balancer).await, [Value::Null; 0]);
    let reply = balancer.admin("POST", "/admin/algorithm?dryrun=true", Some(json!({ "algorithm": "ip-hash" }))).await;
    assert_eq!(reply.status, 400, "a mistyped dry run must not be a real one: {}", reply.text());
    a.release();
    assert_eq!(held.reply().await.status, 200);
}

#[tokio::test]
async fn undo_restores_what_no_later_change_touched() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b])).await;
    balancer.switch_algorithm("ip-hash").await;
    balancer.change("DELETE", &backend_path(&b), None).await;
    eventually("the removed backend is gone", async || balancer.backend(&b).await.is_null()).await;
    balancer.patch(&a, json!({ "weight": 4 })).await;
    balancer.patch(&a, json!({ "weight": 5 })).await;

    let output = run(&balancer, &["undo", "1"]).await;
    assert_eq!(output, "pool app: algorithm weighted instead of ip-hash\n");
    assert_eq!(balancer.algorithm().await, "weighted");
    run(&balancer, &["undo", "2"]).await;
    balancer.sees(&b, "healthy").await;
    let superseded = balancer.admin("POST", "/admin/changes/3/undo", None).await;
    assert_eq!(superseded.status, 409, "{}", superseded.text());
    assert!(superseded.text().contains("weight 1 instead of 4 (now: active, weight 5)"), "{}", superseded.text());
    assert_eq!(balancer.backend(&a).await["weight"], 5);
    // An undo can be undone.
    run(&balancer, &["undo", "5"]).await;
    assert_eq!(balancer.algorithm().await, "ip-hash");
    let last = recorded(&balancer).await[0].clone();
    assert_eq!((&last["id"], &last["undoes"]), (&json!(7), &json!(5)));

    balancer.change("POST", "/admin/reload", None).await;
    for (id, status) in [("8", 409), ("99", 404), ("first", 400)] {
        let reply = balancer.admin("POST", &format!("/admin/changes/{id}/undo"), None).await;
        assert_eq!(reply.status, status, "{id}: {}", reply.text());
    }
    let list = run(&balancer, &["changes"]).await;
    assert!(
        list.lines().count() == 8 && list.contains("local from 127.0.0.1:") && list.contains("(undoes 5)"),
        "{list}"
    );
}

#[tokio::test]
async fn a_change_can_depend_on_the_version_that_was_read() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let etag = |reply: &Reply| reply.field("etag").expect("an ETag").to_owned();
    let read = etag(&balancer.admin("GET", "/admin/config", None).await);
    assert_eq!(etag(&balancer.admin("GET", "/admin/algorithm", None).await), read);
    let switch = async |algorithm: &str, tags: &str| {
        let request = Request::new("POST", "/admin/algorithm").with("Host", "localhost").with("Connection", "close");
        let request = request.json(&json!({ "algorithm": algorithm })).with("If-Match", tags);
        balancer.try_admin_request(request).await.expect("an answer")
    };
    let first = switch("ip-hash", &read).await;
    assert_eq!(first.status, 200, "{}", first.text());
    assert_ne!(etag(&first), read);
    let second = switch("least-connections", &read).await;
    assert_eq!(second.status, 412, "{}", second.text());
    assert_eq!(balancer.algorithm().await, "ip-hash");
    let both = format!("{read}, {}", etag(&first));
    assert_eq!(switch("least-connections", &both).await.status, 200);
    assert_eq!(switch("weighted", "*").await.status, 200);
}

#[tokio::test]
async fn changes_that_the_file_lacks_are_shown_everywhere() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let mut balancer = Balancer::start(Config::of([&a, &b])).await;
    let config = balancer.config_file().display().to_string();
    let address = a.address().to_string();
    assert!(!run(&balancer, &["status"]).await.contains("not in the file"));
    assert_eq!(
        run(&balancer, &["config", "--diff"]).await,
        format!("the configuration in force is that of {config}\n")
    );
    balancer.switch_algorithm("ip-hash").await;
    balancer.patch(&a, json!({ "weight": 3 })).await;

    let expected = [
        "pool app: algorithm ip-hash instead of weighted".to_owned(),
        format!("pool app: backend {address} weight 3 instead of 1"),
    ];
    let status = run(&balancer, &["status"]).await;
    assert!(status.contains("2 changes are in force and not in the file"), "{status}");
    assert_eq!(run(&balancer, &["config", "--diff"]).await, format!("{}\n", expected.join("\n")));
    let reload = balancer.change("POST", "/admin/reload", None).await;
    assert_eq!(texts(&reload["drift"]), expected);
    let checked = evenkeel(["check", &config]).await;
    balancer.stop().await;
    balancer.start_again().await;
    for edit in &expected {
        assert!(reload["warnings"].to_string().contains(edit), "{reload}");
        assert!(checked.stderr.contains("warning: by a change at run time, kept in "), "{checked:?}");
        assert!(checked.status.success() && checked.stderr.contains(edit), "{checked:?}");
        balancer.logs(&["WARN", &format!("in force and not in the configuration file: {edit}")]).await;
    }

    run(&balancer, &["reset"]).await;
    assert_eq!((balancer.algorithm().await.as_str(), &balancer.backend(&a).await["weight"]), ("weighted", &json!(1)));
    assert!(!run(&balancer, &["status"]).await.contains("not in the file"));
    assert_eq!(run(&balancer, &["reset"]).await, "nothing to put back\n");
    balancer.stop().await;
    balancer.start_again().await;
    assert_eq!(balancer.algorithm().await, "weighted", "the state file has forgotten it");
}

#[tokio::test]
async fn reset_can_be_limited_to_one_pool() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let config = Config::of([&a]).pool(Pool::of("other", [&b])).route("", "/", "app").route("", "/other", "other");
    let balancer = Balancer::start(config).await;
    balancer.switch_algorithm("ip-hash").await;
    run(&balancer, &["reset", "--pool", "other"]).await;
    let drift = balancer.change("GET", "/admin/drift", None).await;
    assert_eq!(texts(&drift["edits"]), ["pool app: algorithm ip-hash instead of weighted"]);
    let reply = balancer.admin("POST", "/admin/reset", Some(json!({ "pool": "nowhere" }))).await;
    assert_eq!(reply.status, 404, "{}", reply.text());
}

#[tokio::test]
async fn the_configuration_in_force_can_be_saved_as_a_file() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let config = Config::of([&a]).app(|pool| pool.quick_probe().sticky("max_age = \"1h\""));
    let balancer = Balancer::start(config).await;
    balancer.switch_algorithm("least-connections").await;
    balancer.change("POST", "/admin/pools/app/backends", Some(json!({ "address": b.address().to_string() }))).await;
    let written = run(&balancer, &["config", "--running", "--toml"]).await;
    let in_force = balancer.change("GET", "/admin/config", None).await;
    balancer.write(&written);
    let reload = balancer.change("POST", "/admin/reload", None).await;
    assert_eq!((&reload["changes"], &reload["drift"], &reload["warnings"]), (&json!([]), &json!([]), &json!([])));
    assert_eq!(balancer.change("GET", "/admin/config", None).await, in_force);
}

#[tokio::test]
async fn a_reload_reports_what_it_changed() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b])).await;
    balancer.configure(&Config::of([&a]).app(|pool| pool.set("response_timeout = \"7s\"\nretry_timeout = \"60s\"")));
    let output = run(&balancer, &["reload"]).await;
    for words in [&format!("pool app: backend {} removed", b.address()), "pool app: response_timeout 7s instead of 60s"]
    {
        assert!(output.lines().any(|line| line == words), "{words} in\n{output}");
    }
    let output = run(&balancer, &["reload"]).await;
    assert!(output.starts_with("reloaded, version ") && output.ends_with(", nothing has changed\n"), "{output}");
}

#[tokio::test]
async fn taking_the_last_healthy_backend_out_needs_force() {
    let [a, b, c] = Origin::several(["a", "b", "c"]).await;
    let balancer = Balancer::start(Config::of([&a, &b, &c]).app(|pool| pool.quick_probe())).await;
    b.stop().await;
    balancer.sees(&b, "unhealthy").await;
    // Two active backends are left, one of them healthy.
    balancer.patch(&c, json!({ "state": "down" })).await;
    for (method, body) in
        [("PATCH", Some(json!({ "state": "draining" }))), ("PATCH", Some(json!({ "state": "down" }))), ("DELETE", None)]
    {
        let reply = balancer.admin(method, &backend_path(&a), body).await;
        assert_eq!(reply.status, 409, "{}", reply.text());
        let detail = reply.json()["detail"].as_str().expect("words").to_owned();
        assert!(
            detail.contains("the other backend is unhealthy or ejected") && detail.contains("?force=true"),
            "{detail}"
        );
    }
    let address = a.address().to_string();
    let output = run(&balancer, &["drain", &address, "--dry-run"]).await;
    for words in ["draining instead of active", "it would be refused: no usable backend would be left", "--force"] {
        assert!(output.contains(words), "{words} in\n{output}");
    }
    let output = run(&balancer, &["drain", &address, "--dry-run", "--force"]).await;
    assert!(!output.contains("refused"), "{output}");
    assert_eq!(balancer.backend(&a).await["state"], "active");
    let admin = format!("http://{}", balancer.admin_address());
    let refused = evenkeel(["drain", &address, "--admin", &admin]).await;
    assert!(!refused.status.success() && refused.stderr.contains("--force"), "{refused:?}");
    run(&balancer, &["drain", &address, "--force"]).await;
    assert_eq!(balancer.backend(&a).await["state"], "draining");
    // No active backend would be left: allowed, because the change says so.
    balancer.change("PATCH", &backend_path(&b), Some(json!({ "state": "down" }))).await;
}

#[tokio::test]
async fn a_read_only_token_changes_nothing() {
    let a = Origin::start("a").await;
    let tokens = "token_file = \"token\"\nread_token_file = \"read-token\"";
    let mut balancer = Balancer::prepare(&Config::of([&a]).admin(tokens));
    std::fs::write(balancer.file("token"), "open-sesame-open-sesame\n").expect("a writable directory");
    std::fs::write(balancer.file("read-token"), "only-look-only-look\n").expect("a writable directory");
    balancer.launch();
    balancer.ready().await;
    balancer.token = Some("only-look-only-look".to_owned());
    for path in ["/admin/pools", "/admin/algorithm", "/admin/config", "/admin/changes", "/admin/drift", "/metrics"] {
        let reply = balancer.admin("GET", path, None).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        assert!(!reply.text().contains("open-sesame") && !reply.text().contains("only-look"), "{path}");
    }
    let switch = || Some(json!({ "algorithm": "ip-hash" }));
    for (method, path, body) in [
        ("POST", "/admin/algorithm", switch()),
        ("POST", "/admin/algorithm?dry_run=true", switch()),
        ("POST", "/admin/reload", None),
        ("POST", "/admin/reset", None),
        ("DELETE", &backend_path(&a), None),
        ("PATCH", &backend_path(&a), Some(json!({ "weight": 2 }))),
    ] {
        let reply = balancer.admin(method, path, body).await;
        assert_eq!(reply.status, 403, "{method} {path}: {}", reply.text());
        assert!(reply.text().contains("may only read"), "{}", reply.text());
    }
    // The message called it a wrong token, which it is not.
    let (admin, token) = (format!("http://{}", balancer.admin_address()), balancer.file("read-token"));
    let token = token.to_str().expect("UTF-8");
    let refused = evenkeel(["algorithm", "ip-hash", "--admin", &admin, "--token-file", token]).await;
    let message = "error: this token may only read: send the one of [admin] token_file: name the file";
    assert!(!refused.status.success() && refused.stderr.starts_with(message), "{refused:?}");
    balancer.token = Some("open-sesame-open-sesame".to_owned());
    balancer.switch_algorithm("ip-hash").await;
    // A changed token file takes effect at the next start, and no token is shown anywhere.
    std::fs::write(balancer.file("read-token"), "another-one-another-one\n").expect("a writable directory");
    balancer.change("POST", "/admin/reload", None).await;
    let drift = balancer.change("GET", "/admin/drift", None).await;
    assert_eq!(drift["awaiting_restart"], json!(["[admin] another token in the same file"]));
}

#[tokio::test]
async fn an_unknown_query_parameter_of_readiness_is_an_error() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let reply = balancer.admin("GET", "/readyz?pol=app", None).await;
    assert_eq!((reply.status, reply.text().as_str()), (400, "the query takes pool=NAME only\n"));
    assert_eq!(balancer.admin("GET", "/readyz?pool=app", None).await.status, 200);
}

#[tokio::test]
async fn taking_the_last_active_backend_out_warns() {
    const WARNING: &str = "pool app has no active backend: its requests get 503";
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b])).await;
    let drained = balancer.patch(&a, json!({ "state": "draining" })).await;
    assert_eq!(drained["warnings"], json!([]), "{drained}");
    let path = backend_path(&b);
    let dry_run = format!("{path}?dry_run=true");
    for (method, path, body) in [
        ("PATCH", &dry_run, Some(json!({ "state": "draining" }))),
        ("PATCH", &dry_run, Some(json!({ "state": "down" }))),
        ("DELETE", &dry_run, None),
        ("PATCH", &path, Some(json!({ "state": "draining" }))),
    ] {
        let answer = balancer.change(method, path, body).await;
        assert_eq!(answer["warnings"], json!([WARNING]), "{answer}");
        assert_eq!(answer["effects"][1], WARNING, "{answer}");
    }
    assert_eq!(balancer.get("/").await.status, 503);
    let reload = balancer.change("POST", "/admin/reload?dry_run=true", None).await;
    assert!(reload["warnings"].to_string().contains(WARNING), "{reload}");
    let undrained = balancer.patch(&b, json!({ "state": "active" })).await;
    assert_eq!(undrained["warnings"], json!([]), "{undrained}");
}

#[tokio::test]
async fn a_file_without_an_active_backend_gives_a_warning() {
    const WARNING: &str = "pool app has no active backend: its requests get 503";
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let file = balancer.config_file();
    let text = std::fs::read_to_string(&file).expect("a file");
    let address = format!("address = \"{}\"", a.address());
    assert!(text.contains(&address), "{text}");
    std::fs::write(&file, text.replace(&address, &format!("{address}, state = \"down\""))).expect("writable");
    let checked = evenkeel(["check", file.to_str().expect("text")]).await;
    assert!(checked.status.success() && checked.stderr.contains(&format!(": warning: {WARNING}")), "{checked:?}");
    let reload = balancer.change("POST", "/admin/reload?dry_run=true", None).await;
    let warnings = reload["warnings"].to_string();
    assert_eq!(warnings.matches(WARNING).count(), 1, "{reload}");
}

#[tokio::test]
async fn activating_a_backend_reports_whether_it_takes_traffic_at_once() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.quick_probe())).await;
    balancer.sees(&a, "healthy").await;
    let dry_run = format!("{}?dry_run=true", backend_path(&a));
    for (state, words) in [("draining", "takes traffic at once"), ("down", "takes traffic once a probe has succeeded")]
    {
        let change = balancer.patch(&a, json!({ "state": state })).await["change"].clone();
        let active = balancer.change("PATCH", &dry_run, Some(json!({ "state": "active" }))).await;
        let undone = balancer.change("POST", &format!("/admin/changes/{change}/undo?dry_run=true"), None).await;
        let reset = balancer.change("POST", "/admin/reset?dry_run=true", None).await;
        for answer in [active, undone, reset] {
            assert!(answer["effects"][0].as_str().is_some_and(|effect| effect.ends_with(words)), "{state}: {answer}");
        }
        balancer.patch(&a, json!({ "state": "active" })).await;
        balancer.sees(&a, "healthy").await;
    }
}
