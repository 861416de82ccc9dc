//! Settings that cannot work, or do not work as written, are reported by `check`, at the start, by a reload, and by the
//! API. Each file in the folder `check` has one such problem; `NAME.clean.toml` shows the correct version.

use std::path::Path;

use serde_json::json;
use tempfile::TempDir;
use tests::balancer::{Outcome, evenkeel_in};
use tests::{Balancer, Config, Origin, Pool, Request, evenkeel};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/balancer/check");
/// Followed by the message expected for its line, or, on a line of its own, for the whole file.
const MARK: &str = "#? ";

async fn check(file: &str) -> Outcome {
    evenkeel_in(Path::new(FOLDER), ["check", file]).await
}

fn files(is_wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let names = std::fs::read_dir(FOLDER).expect("the folder").flatten();
    let names = names.map(|entry| entry.file_name().into_string().expect("UTF-8"));
    let mut names: Vec<_> = names.filter(|name| name.ends_with(".toml") && is_wanted(name)).collect();
    names.sort();
    assert!(names.len() >= 10, "{names:?}");
    names
}

#[tokio::test]
async fn each_file_gets_exactly_the_expected_messages() {
    for name in files(|name| !name.ends_with(".clean.toml")) {
        let text = std::fs::read_to_string(Path::new(FOLDER).join(&name)).expect("readable");
        let outcome = check(&name).await;
        let mut problems: Vec<&str> = outcome.stderr.lines().collect();
        let mut fails = false;
        for (line, words) in (1..).zip(text.lines()).filter_map(|(n, line)| Some((n, line.split_once(MARK)?))) {
            let (before, words) = words;
            let prefix = if before.is_empty() { format!("{name}: ") } else { format!("{name}:{line}:") };
            let index = problems.iter().position(|problem| problem.starts_with(&prefix) && problem.contains(words));
            let index = index.unwrap_or_else(|| panic!("{prefix} {words:?} in\n{}", outcome.stderr));
            fails |= !problems.remove(index).contains(": warning: ");
        }
        assert_eq!(problems, [""; 0], "{name}");
        assert_eq!(outcome.status.success(), !fails, "{name}: {outcome:?}");
    }
}

#[tokio::test]
async fn clean_files_get_no_message() {
    for name in files(|name| name.ends_with(".clean.toml")) {
        let outcome = check(&name).await;
        assert!(outcome.status.success() && outcome.stderr.is_empty(), "{name}: {outcome:?}");
        assert!(outcome.stdout.starts_with(&format!("{name}: ok (")), "{outcome:?}");
    }
}

// Each line of such a file was a problem of its own.
#[tokio::test]
async fn check_and_run_say_in_one_line_what_a_file_of_another_program_is() {
    let directory = TempDir::new().expect("a temporary directory");
    for (file, text, what) in [
        ("nginx.conf", "events {}\nhttp {\n  server {\n    listen 80;\n  }\n}\n", "a configuration of nginx"),
        ("haproxy.cfg", "global\n  daemon\nfrontend web\n  bind *:80\n", "a configuration of HAProxy"),
        ("Caddyfile", "example.com {\n  reverse_proxy 10.0.0.1:80\n}\n", "a Caddyfile"),
        ("evenkeel.yaml", "listener:\n  - address: 0.0.0.0:80\npool:\n  - name: app\n", "YAML"),
        ("evenkeel.json", "{\n  \"listener\": [{ \"address\": \"0.0.0.0:80\" }]\n}\n", "JSON"),
    ] {
        std::fs::write(directory.path().join(file), text).expect("a writable directory");
        let problem = format!("{file}:1:1: this looks like {what}, but Evenkeel reads TOML: ");
        let check = evenkeel_in(directory.path(), ["check", file]).await;
        assert!(!check.status.success() && check.stderr.starts_with(&problem), "{check:?}");
        assert_eq!(check.stderr.lines().count(), 1, "{check:?}");
        let run = evenkeel_in(directory.path(), ["run", "--config", file]).await;
        assert!(!run.status.success() && run.stderr.contains(&problem), "{run:?}");
    }
}

#[tokio::test]
async fn check_names_files_that_the_user_cannot_read() {
    let directory = TempDir::new().expect("a temporary directory");
    std::fs::set_permissions(directory.path(), permissions(0o755)).expect("our directory");
    for name in ["cert.pem", "key.pem"] {
        let source = match name {
            "cert.pem" => "fullchain.pem",
            name => name,
        };
        std::fs::copy(Path::new(FOLDER).join("tls").join(source), directory.path().join(name)).expect("copied");
    }
    let text = "[[listener]]\naddress = \"127.0.0.1:8443\"\ntls = { certificate = \"cert.pem\", key = \"key.pem\" }\n\
        [state]\npersist = false\n[[pool]]\nname = \"app\"\nbackends = [{ address = \"127.0.0.1:9001\" }]\n[[route]]\npool = \"app\"\n";
    let file = directory.path().join("evenkeel.toml");
    std::fs::write(&file, text).expect("a writable directory");
    let user = async || evenkeel_in(directory.path(), ["check", "evenkeel.toml", "--user", "nobody"]).await;
    let fine = user().await;
    assert!(fine.status.success() && fine.stderr.is_empty(), "{fine:?}");
    std::fs::set_permissions(directory.path().join("key.pem"), permissions(0o600)).expect("our file");
    let closed = user().await;
    assert!(!closed.status.success() && closed.stderr.contains("user nobody cannot read"), "{closed:?}");
    assert!(closed.stderr.contains("key.pem") && !closed.stderr.contains("cert.pem"), "{closed:?}");
    std::fs::write(&file, text.replace("[state]\npersist = false\n", "")).expect("a writable directory");
    let state = user().await;
    assert!(state.stderr.contains("where the state file evenkeel.state.json is kept"), "{state:?}");
    let logs = "[log]\nfile = \"evenkeel.log\"\n[access_log]\nfile = \"no-folder/access.log\"\n";
    std::fs::write(&file, format!("{text}{logs}")).expect("a writable directory");
    let logs = user().await;
    assert!(logs.stderr.contains("user nobody cannot write the log evenkeel.log"), "{logs:?}");
    assert_eq!(logs.stderr.matches("access.log").count(), 1, "of a folder that is missing is told once: {logs:?}");
    let unknown = evenkeel_in(directory.path(), ["check", "evenkeel.toml", "--user", "no-such-user"]).await;
    assert!(unknown.stderr.contains("there is no user \"no-such-user\""), "{unknown:?}");
}

fn permissions(mode: u32) -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(mode)
}

#[tokio::test]
async fn start_reload_and_api_give_the_same_warnings_as_check() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let pool = |algorithm| Pool::empty("app").weighted(&a, 1).weighted(&b, 2).algorithm(algorithm);
    let round_robin = Config::default().pool(pool("round-robin"));
    let message = "pool \"app\" ignores its weights, since its algorithm is round-robin";
    let mut balancer = Balancer::start(round_robin.clone()).await;
    balancer.logs(&["WARN", "evenkeel.toml:", message]).await;

    balancer.configure(&Config::default().pool(pool("weighted")));
    let reload = balancer.change("POST", "/admin/reload", None).await;
    assert_eq!(reload["warnings"], json!([]));
    balancer.configure(&round_robin);
    let reload = balancer.change("POST", "/admin/reload", None).await;
    let warning = reload["warnings"][0].as_str().expect("a warning");
    assert!(warning.contains("evenkeel.toml:") && warning.contains(message), "{reload}");

    let patch = balancer.patch(&a, json!({ "weight": 5 })).await;
    assert!(patch["warnings"][0].as_str().is_some_and(|warning| warning.starts_with(message)), "{patch}");
    let switch = balancer.switch_algorithm("weighted").await;
    assert_eq!(switch["warnings"], json!([]));
    let admin = format!("http://{}", balancer.admin_address());
    let outcome = evenkeel(["algorithm", "round-robin", "--admin", &admin]).await;
    assert!(outcome.status.success() && outcome.stderr.contains(message), "{outcome:?}");

    let itself = json!({ "address": balancer.address().to_string(), "state": "down" });
    let added = balancer.change("POST", "/admin/pools/app/backends", Some(itself)).await;
    assert!(added["warnings"].to_string().contains("is this balancer itself"), "{added}");
    balancer.stop().await;
}

/// The start and a reload also report problems found in the tables of sites.
#[tokio::test]
async fn start_and_reload_warn_of_unreachable_routes() {
    let a = Origin::start("a").await;
    let config = |regex: &str| {
        let routes = format!(
            "[[site.route]]\npath = \"/\"\npool = \"app\"\n[[site.route]]\nregex = '{regex}'\npool = \"app\"\n"
        );
        Config::of([&a]).sites(&format!("[[site]]\nhosts = [\"\"]\n{routes}"))
    };
    let message = "no request can reach this route";
    let balancer = Balancer::start(config("^/")).await;
    balancer.logs(&["WARN", "evenkeel.toml:", message]).await;
    for (regex, is_told) in [("^/x", false), ("^/", true)] {
        balancer.configure(&config(regex));
        let reload = balancer.change("POST", "/admin/reload", None).await;
        assert_eq!(reload["warnings"].to_string().contains(message), is_told, "{reload}");
    }
}

/// Problems were reported without their file name.
#[tokio::test]
async fn a_reload_names_the_file_that_has_problems() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    balancer.write("[server]\ncolour = \"red\"\n");
    let reply = balancer.admin("POST", "/admin/reload", None).await;
    let detail = reply.json()["detail"].as_str().expect("words").to_owned();
    assert_eq!(reply.status, 400);
    assert!(detail.contains(&format!("{}:2:1: server.colour", balancer.config_file().display())), "{detail}");
    balancer.logs(&["evenkeel.toml:2:1: server.colour"]).await;
}

/// Twenty of twenty visits went to the other backend, because each pool overwrote the other's cookie.
#[tokio::test]
async fn sticky_pools_whose_cookies_have_different_paths_keep_their_clients_on_one_host() {
    let [a, b, c, d] = Origin::several(["a", "b", "c", "d"]).await;
    let pool = |name, origins: [&Origin; 2], path| Pool::of(name, origins).sticky(&format!("path = \"{path}\""));
    let config = Config::default().pool(pool("shop", [&a, &b], "/shop")).pool(pool("wiki", [&c, &d], "/wiki"));
    let balancer = Balancer::start(config.route("", "/shop", "shop").route("", "/wiki", "wiki")).await;
    let mut jar = Vec::new();
    let mut homes = Vec::new();
    for path in ["/shop", "/wiki"] {
        let reply = balancer.get(path).await;
        let cookie = reply.field("set-cookie").expect("a cookie").to_owned();
        assert!(cookie.contains(&format!("; Path={path};")), "{cookie}");
        jar.push(cookie.split(';').next().expect("a pair").to_owned());
        homes.push(reply.origin().to_owned());
    }
    // A browser sends the cookie of the path; another application's cookie with the same name precedes it.
    for _ in 0..10 {
        for (index, path) in [(0, "/shop"), (1, "/wiki")] {
            let cookies = format!("ROUTEID=.node3; {}", jar[index]);
            let reply = balancer.send(&Request::get(path).with("Cookie", &cookies)).await;
            assert_eq!(reply.origin(), homes[index]);
        }
    }
}
