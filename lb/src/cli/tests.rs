use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::{fs, thread};

use serde_json::Value;
use tempfile::TempDir;

use super::*;

/// A request as the admin API received it.
#[derive(Debug)]
struct Seen {
    line: String,
    head: String,
    body: Value,
}

/// An admin API that returns these responses in turn, and then closes.
struct Admin {
    url: String,
    seen: Receiver<Seen>,
}

impl Admin {
    fn answering<const N: usize>(answers: [(&str, Value); N]) -> Self {
        let answers = answers.map(|(status, body)| (status.to_owned(), body.to_string()));
        Self::answering_text(answers)
    }

    fn answering_text<const N: usize>(answers: [(String, String); N]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (sender, seen) = channel();
        thread::spawn(move || {
            for (status, body) in answers {
                let (mut connection, _) = listener.accept().expect("a connection");
                let request = read_request(&mut BufReader::new(&connection));
                let length = body.len();
                let answer =
                    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
                connection.write_all(answer.as_bytes()).expect("a client that reads");
                sender.send(request).expect("a test that looks");
            }
        });
        Self { url, seen }
    }

    fn saw(&self) -> Seen {
        self.seen.recv().expect("a request")
    }
}

fn read_request(reader: &mut impl BufRead) -> Seen {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(reader.read_line(&mut head).expect("a request"), 0);
    }
    let lower = head.to_ascii_lowercase();
    let length = lower
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |n| n.parse().expect("a length"));
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("the body");
    let line = head.lines().next().expect("a first line").to_owned();
    Seen { line, head: lower, body: serde_json::from_slice(&body).unwrap_or_default() }
}

/// The output of a command, or its error.
fn evenkeel(arguments: &[&str]) -> Result<String, String> {
    let cli = Cli::try_parse_from([&["evenkeel"], arguments].concat()).map_err(|e| e.to_string())?;
    let mut out = Vec::new();
    match cli.execute(|_| panic!("nothing is to run"), &mut out) {
        Ok(_) => Ok(String::from_utf8(out).expect("text")),
        Err(e) => Err(format!("{e:#}")),
    }
}

fn ask(admin: &Admin, arguments: &[&str]) -> Result<String, String> {
    evenkeel(&[arguments, &["--admin", &admin.url]].concat())
}

fn backend(address: &str) -> Value {
    json!({
        "address": address, "weight": 2, "state": "draining", "health": "healthy", "status": "draining",
        "ejected_for_seconds": 0.0, "in_flight": 3, "requests": 7, "failures": 0, "ejections": 0,
        "latency_seconds": null, "last_probe": null
    })
}

fn pools(pools: &[(&str, &[&str])]) -> Value {
    let pool = |(name, addresses): &(&str, &[&str])| {
        let backends: Vec<_> = addresses.iter().map(|address| backend(address)).collect();
        json!({ "name": name, "algorithm": "round-robin", "panic": false, "backends": backends })
    };
    json!({ "version": 4, "pools": pools.iter().map(pool).collect::<Vec<_>>() })
}

fn problem(detail: &str) -> Value {
    json!({ "type": "about:blank", "title": "Bad Request", "status": 400, "detail": detail })
}

#[test]
fn the_command_line_definition_is_valid() {
    Cli::command().debug_assert();
}

#[test]
fn run_gets_the_path_of_the_configuration() {
    let cli = Cli::try_parse_from(["evenkeel", "run", "--config", "/etc/lb.toml"]).expect("valid");
    let mut path = None;
    let run = |given: &Path| {
        path = Some(given.to_owned());
        Ok(())
    };
    cli.execute(run, &mut Vec::new()).expect("runs");
    assert_eq!(path.as_deref(), Some(Path::new("/etc/lb.toml")));
}

#[test]
fn check_prints_counts_or_fails() {
    let folder = TempDir::new().expect("a temporary folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let good = file("good.toml", toml::DEFAULT);
    let bad = file("bad.toml", "x = 1");
    assert_eq!(evenkeel(&["check", &good]), Ok(format!("{good}: ok (1 listener, 1 pool, 1 backend, 1 route)\n")));
    let check =
        |file| Cli::try_parse_from(["evenkeel", "check", file]).expect("valid").execute(|_| Ok(()), &mut Vec::new());
    assert_eq!(format!("{:?}", check(&bad).expect("an exit code")), format!("{:?}", ExitCode::FAILURE));
    let printed = evenkeel(&["config", "--config", &good]).expect("printed");
    assert_eq!(serde_json::from_str::<Value>(&printed).expect("JSON")["pools"][0]["name"], "app");
}

#[test]
fn config_prints_the_defaults() {
    assert_eq!(evenkeel(&["config", "--default"]).as_deref(), Ok(toml::DEFAULT));
}

#[test]
fn completions_exist_for_the_usual_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let script = evenkeel(&["completions", shell]).expect("a script");
        assert!(script.contains("undrain"), "{shell}");
    }
}

#[test]
fn the_admin_address_is_an_http_url_with_or_without_scheme() {
    for (text, url) in [
        ("http://127.0.0.1:8889", "http://127.0.0.1:8889"),
        ("127.0.0.1:8889", "http://127.0.0.1:8889"),
        ("localhost:8889/", "http://localhost:8889"),
        ("http://[::1]:8889", "http://[::1]:8889"),
        ("http://front.example/lb/", "http://front.example/lb"),
    ] {
        assert_eq!(text.parse::<AdminUrl>().map(|url| url.to_string()).as_deref(), Ok(url));
    }
    for text in ["", "http://", "ftp://a:1", "http://a b", "https://a:1", "http://a/?x"] {
        assert!(text.parse::<AdminUrl>().is_err(), "{text:?}");
    }
    let https = evenkeel(&["--admin", "https://a:1", "status"]).expect_err("refused");
    assert!(https.contains("the admin API speaks plain HTTP: write http://"), "{https}");
}

#[test]
fn algorithm_without_a_name_lists_pools_and_choices() {
    let answer = json!({
        "version": 7, "choices": ["round-robin", "ip-hash"],
        "pools": [{ "pool": "app", "algorithm": "round-robin" }, { "pool": "api", "algorithm": "ip-hash" }]
    });
    let admin = Admin::answering([("200 OK", answer.clone()), ("200 OK", answer.clone()), ("200 OK", answer)]);
    let choices = "\nSwitch with `evenkeel algorithm NAME` to one of round-robin, ip-hash\n";
    assert_eq!(ask(&admin, &["algorithm"]), Ok(format!("app: round-robin\napi: ip-hash\n{choices}")));
    assert_eq!(admin.saw().line, "GET /admin/algorithm HTTP/1.1");
    assert_eq!(ask(&admin, &["algorithm", "--pool", "api"]), Ok(format!("api: ip-hash\n{choices}")));
    let unknown = Err("there is no pool \"web\"; the pools are app, api".to_owned());
    assert_eq!(ask(&admin, &["algorithm", "--pool", "web"]), unknown);
}

#[test]
fn algorithm_with_a_name_switches() {
    let switch = |pool: &str, previous: &str| json!({ "pool": pool, "previous": previous, "current": "weighted" });
    let answer = json!({ "version": 8, "pools": [switch("app", "ip-hash"), switch("api", "weighted")] });
    let admin = Admin::answering([("200 OK", answer.clone()), ("200 OK", answer)]);
    let output = "app: weighted instead of ip-hash\napi: weighted already\n";
    assert_eq!(ask(&admin, &["algorithm", "weighted"]).as_deref(), Ok(output));
    let seen = admin.saw();
    assert_eq!((seen.line.as_str(), seen.body), ("POST /admin/algorithm HTTP/1.1", json!({ "algorithm": "weighted" })));
    assert!(seen.head.contains("content-type: application/json\r\n"), "{}", seen.head);
    ask(&admin, &["algorithm", "weighted", "--pool", "app"]).expect("switched");
    assert_eq!(admin.saw().body, json!({ "algorithm": "weighted", "pool": "app" }));
}

#[test]
fn a_mistyped_algorithm_is_answered_with_the_choices() {
    let error = evenkeel(&["algorithm", "least-connection"]).expect_err("refused");
    assert!(error.contains("round-robin, weighted, least-connections, ip-hash"), "{error}");
}

#[test]
fn a_backend_is_found_without_naming_its_pool() {
    let all = pools(&[("app", &["a:1", "b:1"]), ("we/b", &["[::1]:80"])]);
    let admin = Admin::answering([("200 OK", all), ("200 OK", backend("[::1]:80"))]);
    let output = "[::1]:80 in pool we/b: draining, weight 2, 3 in flight\n";
    assert_eq!(ask(&admin, &["drain", "[::1]:80"]).as_deref(), Ok(output));
    assert_eq!(admin.saw().line, "GET /admin/pools HTTP/1.1");
    let seen = admin.saw();
    assert_eq!(seen.line, "PATCH /admin/pools/we%2Fb/backends/%5B::1%5D:80 HTTP/1.1");
    assert_eq!(seen.body, json!({ "state": "draining" }));
}

#[test]
fn each_backend_command_sends_its_change() {
    for (arguments, line, body) in [
        (vec!["undrain", "a:1"], "PATCH /admin/pools/app/backends/a:1 HTTP/1.1", json!({ "state": "active" })),
        (vec!["weight", "a:1", "9"], "PATCH /admin/pools/app/backends/a:1 HTTP/1.1", json!({ "weight": 9 })),
        (
            vec!["backend", "add", "a:1"],
            "POST /admin/pools/app/backends HTTP/1.1",
            json!({ "address": "a:1", "weight": 1 }),
        ),
    ] {
        let admin = Admin::answering([("200 OK", backend("a:1"))]);
        let output = ask(&admin, &[&arguments[..], &["--pool", "app"]].concat()).expect("changed");
        assert!(output.starts_with("a:1 in pool app: "), "{output}");
        let seen = admin.saw();
        assert_eq!((seen.line.as_str(), seen.body), (line, body));
    }
}

#[test]
fn a_removal_reports_whether_it_has_finished() {
    let removed = Admin::answering([("200 OK", json!({ "removed": true }))]);
    let remove = ["backend", "remove", "a:1", "--pool", "app"];
    assert_eq!(ask(&removed, &remove).as_deref(), Ok("a:1 is removed from pool app\n"));
    assert_eq!(removed.saw().line, "DELETE /admin/pools/app/backends/a:1 HTTP/1.1");
    let busy = Admin::answering([("202 Accepted", json!({ "removed": false, "in_flight": 5 }))]);
    assert_eq!(ask(&busy, &remove).as_deref(), Ok("a:1 leaves pool app with the last of 5 exchanges\n"));
}

#[test]
fn ambiguous_and_unknown_backends_are_explained() {
    let all: admin::Pools =
        serde_json::from_value(pools(&[("app", &["a:1", "b:1"]), ("api", &["a:1"])])).expect("pools");
    let pool_with = |address| admin::pool_with(&all.pools, address).map_err(|e| e.to_string());
    assert_eq!(pool_with("b:1").as_deref(), Ok("app"));
    assert_eq!(pool_with("a:1"), Err("the pools app, api have a backend a:1: name one with --pool".to_owned()));
    assert_eq!(pool_with("c:1"), Err("no pool has a backend c:1; the backends are a:1, b:1, a:1".to_owned()));
    let only_pool = admin::only_pool(&all.pools).map_err(|e| e.to_string());
    assert_eq!(only_pool, Err("there are the pools app, api: name one with --pool".to_owned()));
}

#[test]
fn reload_prints_warnings() {
    let warnings = json!(["threads only change at a start"]);
    let changes = json!(["pool app: read_timeout 1s instead of 2s"]);
    let answer = json!({ "version": 9, "warnings": warnings, "changes": changes });
    let admin = Admin::answering([("200 OK", answer)]);
    let output =
        "warning: threads only change at a start\npool app: read_timeout 1s instead of 2s\nreloaded, version 9\n";
    assert_eq!(ask(&admin, &["reload"]).as_deref(), Ok(output));
    assert_eq!(admin.saw().line, "POST /admin/reload HTTP/1.1");
}

#[test]
fn a_dry_run_of_a_reload_prints_the_changes() {
    let answer = |changes| json!({ "version": 9, "warnings": [], "changes": changes, "dry_run": true });
    let answers = [json!(["listener 0.0.0.0:80 added"]), json!([])].map(|changes| ("200 OK", answer(changes)));
    let admin = Admin::answering(answers);
    let output = "dry run: listener 0.0.0.0:80 added\n";
    assert_eq!(ask(&admin, &["reload", "--dry-run"]).as_deref(), Ok(output));
    assert_eq!(admin.saw().line, "POST /admin/reload?dry_run=true HTTP/1.1");
    assert_eq!(ask(&admin, &["reload", "--dry-run"]).as_deref(), Ok("dry run: nothing would change\n"));
}

#[test]
fn api_errors_are_printed_without_control_characters() {
    let admin = Admin::answering([("400 Bad Request", problem("weight 0 is not\n from 1 \u{1b}[31m"))]);
    assert_eq!(ask(&admin, &["weight", "a:1", "0", "--pool", "app"]), Err("weight 0 is not  from 1  [31m".to_owned()));
}

#[test]
fn health_follows_readiness() {
    let text = |status: &str, body: &str| (status.to_owned(), body.to_owned());
    let admin = Admin::answering_text([text("200 OK", "ready\n"), text("503 Service Unavailable", "starting\n")]);
    assert_eq!(ask(&admin, &["health"]).as_deref(), Ok("ready\n"));
    assert_eq!(ask(&admin, &["health"]), Err("the balancer is not ready: starting".to_owned()));
}

#[test]
fn the_token_is_read_from_its_file_and_sent() {
    let folder = TempDir::new().expect("a temporary folder");
    let file = |text: &str| {
        let path = folder.path().join("token");
        fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let admin = Admin::answering([
        ("200 OK", json!({})),
        ("403 Forbidden", problem("this is not the admin token")),
        ("401 Unauthorized", problem("no")),
    ]);
    let token = file("s3cret-Token\n");
    ask(&admin, &["config", "--running", "--token-file", &token]).expect("sent");
    assert!(admin.saw().head.contains("authorization: bearer s3cret-token\r\n"));
    let wrong = ask(&admin, &["status", "--token-file", &token]).expect_err("refused");
    assert!(
        wrong.starts_with("this is not the admin token: name the file with another token with --token-file"),
        "{wrong}"
    );
    let none = ask(&admin, &["status"]).expect_err("refused");
    assert!(none.starts_with("the admin API wants its token: name the file with --token-file"), "{none}");
    for (text, message) in [("", "must hold one line"), ("a b", "must hold one line"), ("a\nb", "must hold one line")] {
        let error = ask(&admin, &["status", "--token-file", &file(text)]).expect_err("refused");
        assert!(error.contains(message), "{error}");
    }
    let absent = ask(&admin, &["status", "--token-file", "/nowhere/token"]).expect_err("refused");
    assert!(absent.starts_with("the token file /nowhere/token cannot be read: "), "{absent}");
}

#[test]
fn no_server_and_another_server_are_distinguished() {
    let admin = Admin::answering_text([("404 Not Found".to_owned(), "<html>".to_owned())]);
    let other = ask(&admin, &["status"]).expect_err("refused");
    assert_eq!(
        other,
        format!(
            "the server at {} is not an admin API (status 404): name the [admin] address with --admin or EVENKEEL_ADMIN",
            admin.url
        )
    );
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let nobody = evenkeel(&["status", "--admin", &free.to_string()]).expect_err("refused");
    let expected = format!("cannot reach the admin API at http://{free}: connection refused. Is Evenkeel running");
    assert!(nobody.starts_with(&expected), "{nobody}");
}
