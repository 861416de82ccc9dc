//! Access log and log say why a request was answered as it was: the limit with its value, or the rule that it broke.

use std::time::Duration;

use serde_json::{Value, json};
use tests::http2::{self, PREFACE, frame, frame_of, kind, literals};
use tests::wire::narrow;
use tests::{Balancer, Config, Origin, Pool, Port, Request, Step, evenkeel, eventually};
use tokio::io::AsyncWriteExt;

const LOG: &str = "[access_log]\nfile = \"access.log\"";

/// A balancer with an access log, and small limits for clients.
async fn strict(origin: &Origin, lines: &str) -> Balancer {
    let limits = format!("max_request_line_bytes = \"1KiB\"\nmax_head_bytes = \"2KiB\"\nmax_fields = 5\n{lines}");
    Balancer::start(Config::of([origin]).listener(&limits).section(LOG)).await
}

/// Line `count` of the access log, counted from one.
async fn line(balancer: &Balancer, count: usize) -> Value {
    serde_json::from_str(&balancer.lines("access.log", count).await[count - 1]).expect("JSON")
}

// The reason was logged at level debug only, and the method as "" for the target "/".
#[tokio::test]
async fn refused_heads_are_logged_with_their_reason_and_their_first_line() {
    let a = Origin::start("a").await;
    let balancer = strict(&a, "").await;
    let long = "x".repeat(1100);
    let cases = [
        ("GET /a HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "malformed", "Host repeated", "GET", "/a"),
        ("GET /a\u{1} HTTP/1.1\r\n", "malformed", "byte not allowed in a request target", "", "GET /a\u{1} HTTP/1.1"),
        ("\x16\x03\x01\x02 \r\n", "malformed", "malformed method", "", "\x16\x03\x01\x02 "),
        ("CONNECT a:443 HTTP/1.1\r\n", "method", "CONNECT is not served", "CONNECT", "a:443"),
        ("GET /%zz?a HTTP/1.1\r\n", "malformed", "malformed escape or %00 in the path", "GET", "/%zz?a"),
        ("GET /../a HTTP/1.1\r\nHost: a\r\n\r\n", "malformed", "path climbs above the root", "GET", "/../a"),
        ("GET /a HTTP/3.0\r\n", "version", "HTTP version other than 1.x", "", "GET /a HTTP/3.0"),
        (
            "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "not-implemented",
            "transfer coding other than chunked",
            "POST",
            "/a",
        ),
        (
            &format!("GET /{long} HTTP/1.1\r\n"),
            "target-too-long",
            "more than [[listener]] max_request_line_bytes (1024)",
            "",
            &format!("GET /{long} HTTP/1.1"),
        ),
        (
            &format!("GET /a HTTP/1.1\r\nHost: a\r\nA: {long}\r\nB: {long}\r\n\r\n"),
            "fields-too-large",
            "more than [[listener]] max_head_bytes (2048)",
            "GET",
            "/a",
        ),
        (
            "GET /a HTTP/1.1\r\nHost: a\r\nA: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\nE: 5\r\n\r\n",
            "fields-too-large",
            "more than [[listener]] max_fields (5)",
            "GET",
            "/a",
        ),
        ("GET /a HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n", "expectation", "unknown expectation", "GET", "/a"),
    ];
    for (count, (head, refusal, reason, method, target)) in (1..).zip(&cases) {
        let mut wire = balancer.connect().await;
        wire.send(head).await;
        wire.reply().await;
        let line = line(&balancer, count).await;
        let logged = [&line["refusal"], &line["failure"], &line["reason"], &line["method"], &line["target"]];
        assert_eq!(
            logged,
            [&json!(refusal), &json!(refusal), &json!(reason), &json!(method), &json!(target)],
            "{head}"
        );
        let id = line["request_id"].as_str().expect("an id");
        assert!(!id.is_empty(), "{line}");
        balancer.logs(&[&format!("request_id=\"{id}\""), reason, "client=\"127.0.0.1\""]).await;
    }
    assert_eq!(balancer.get("/").await.status, 200);
    let line = line(&balancer, cases.len() + 1).await;
    assert_eq!((line.get("reason"), &line["failure"]), (None, &Value::Null), "{line}");
}

#[tokio::test]
async fn own_formats_have_the_reason_and_the_first_line() {
    let a = Origin::start("a").await;
    let sites = "[[site]]\nname = \"shop\"\nhosts = [\"\"]\npool = \"app\"\naccess_log = [\
        { file = \"own.log\", format = '$status [$reason] [$failure] $request_uri' }, \
        { file = \"combined.log\", format = \"combined\" }]\n";
    let balancer = Balancer::start(Config::of([&a]).sites(sites)).await;
    for (count, head) in
        (1..).zip(["GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET /\"\u{1} HTTP/1.1\r\n", "TRACE /b?c HTTP/1.1\r\n"])
    {
        let mut wire = balancer.connect().await;
        wire.send(head).await;
        wire.reply().await;
        // Lines of several connections have no order.
        balancer.lines("combined.log", count).await;
    }
    let expected = [
        "200 [-] [-] /",
        r"400 [byte not allowed in a request target] [malformed] GET /\x22\x01 HTTP/1.1",
        "405 [TRACE is not served] [method] /b?c",
    ];
    assert_eq!(balancer.lines("own.log", 3).await, expected);
    let combined = balancer.lines("combined.log", 3).await;
    assert!(combined[1].contains(r#"] "GET /\x22\x01 HTTP/1.1" 400 "#), "{}", combined[1]);
    assert!(combined[2].contains("] \"TRACE /b?c HTTP/1.1\" 405 "), "{}", combined[2]);
}

// An attacker must not fill the log.
#[tokio::test]
async fn refusals_of_a_kind_are_logged_once_and_counted() {
    let a = Origin::start("a").await;
    let balancer = strict(&a, "").await;
    for _ in 0..20 {
        let mut wire = balancer.connect().await;
        wire.send("GET /a HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n").await;
        assert_eq!(wire.reply().await.status, 400);
    }
    balancer.logs(&["… and 19 more requests in ", "Host repeated"]).await;
    let log = balancer.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("Host repeated")).collect();
    assert!(lines.len() == 2 && lines[0].contains("WARN"), "{lines:?}");
    let malformed = [("kind", "malformed")];
    assert_eq!(balancer.metrics().await.sum("evenkeel_client_failures_total", &malformed), 20.0);
}

#[tokio::test]
async fn limits_on_content_and_time_are_named() {
    let a = Origin::start("a").await;
    let sites = "[[site]]\nname = \"shop\"\nhosts = [\"\"]\npool = \"app\"\n\
        [[site.route]]\npath = \"/own\"\npool = \"app\"\nmax_body_bytes = 3\nbody_timeout = \"200ms\"\n";
    let limits = "max_body_bytes = 10\nheader_timeout = \"300ms\"\nbody_timeout = \"100ms\"";
    let balancer = Balancer::start(Config::of([&a]).listener(limits).sites(sites).section(LOG)).await;
    let post = |path: &str, more: &str| format!("POST {path} HTTP/1.1\r\nHost: a\r\n{more}");
    let long = "Content-Length: 11\r\n\r\n";
    let slow = "Content-Length: 2\r\n\r\na";
    let chunked = "Transfer-Encoding: chunked\r\n\r\n";
    for (count, (sent, failure, reason)) in (1..).zip([
        (post("/a", long), "body-too-large", "11, more than [[listener]] max_body_bytes (10)"),
        (post("/own", long), "body-too-large", "11, more than max_body_bytes of the site or route (3)"),
        (
            post("/own", &format!("{chunked}5\r\nabcde\r\n")),
            "body-too-large",
            "more than max_body_bytes of the site or route (3)",
        ),
        (post("/a", slow), "client-timeout", "longer than [[listener]] body_timeout (100ms)"),
        (post("/own", slow), "client-timeout", "longer than body_timeout of the site or route (200ms)"),
        ("GET /a HTTP/1.1\r\n".to_owned(), "client-timeout", "longer than [[listener]] header_timeout (300ms)"),
        (post("/a", &format!("{chunked}x\r\n")), "malformed", "malformed chunk size"),
    ]) {
        let mut wire = balancer.connect().await;
        wire.send(&sent).await;
        wire.reply().await;
        let line = line(&balancer, count).await;
        let logged = [&line["refusal"], &line["failure"], &line["reason"]];
        assert_eq!(logged, [&json!(failure), &json!(failure), &json!(reason)], "{sent}");
        let id = format!("request_id={}", line["request_id"]);
        // The second one of its kind is only counted.
        if count != 3 {
            balancer.logs(&[&id, reason]).await;
        }
    }
}

// It was logged as `client-gone`, although we disconnected it.
#[tokio::test]
async fn a_client_that_does_not_read_is_called_stalled() {
    for (limits, reason) in [
        ("send_timeout = \"500ms\"", "longer than [[listener]] send_timeout (500ms)"),
        (
            "min_rate = 1000000000\nsend_timeout = \"1h\"",
            "less than [[listener]] min_rate (1000000000 bytes per second)",
        ),
    ] {
        let a = Origin::start("a").await;
        let body = vec![b'x'; 32 * 1024 * 1024];
        a.at_head(move |_| {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            vec![Step::Send([head.as_bytes(), &body].concat())]
        });
        let balancer = strict(&a, limits).await;
        let mut client = narrow(balancer.address(), 1000).await;
        client.write_all(&Request::get("/").to_bytes()).await.expect("a peer");
        let line = line(&balancer, 1).await;
        let logged = [&line["status"], &line["refusal"], &line["failure"], &line["reason"]];
        assert_eq!(logged, [&json!(200), &Value::Null, &json!("client-stalled"), &json!(reason)], "{line}");
        let id = format!("request_id={}", line["request_id"]);
        balancer.logs(&[&id, reason, "client-stalled"]).await;
        let kind = [("kind", "client-stalled")];
        eventually("it is counted", async || {
            balancer.metrics().await.sum("evenkeel_client_failures_total", &kind) == 1.0
        })
        .await;
        drop(client);
    }
}

// The line named neither the setting nor the request.
#[tokio::test]
async fn a_failed_attempt_names_the_setting_and_the_request() {
    let silent = Port::reserve();
    let _listens = silent.listen_with_small_buffers();
    let address = silent.address().to_string();
    let sites = "[[site]]\nname = \"shop\"\nhosts = [\"\"]\npool = \"app\"\n\
        [[site.route]]\npath = \"/own\"\npool = \"other\"\nresponse_timeout = \"200ms\"\n";
    let pool = |name| Pool::empty(name).backend(&address, "").set("response_timeout = \"100ms\"").without_ejection();
    let config = Config::default().pool(pool("app")).pool(pool("other")).sites(sites).section(LOG);
    let balancer = Balancer::start(config).await;
    for (count, path, reason) in [
        (1, "/", "longer than [[pool]] response_timeout (100ms)"),
        (2, "/own", "longer than response_timeout of the site or route (200ms)"),
    ] {
        assert_eq!(balancer.get(path).await.status, 504);
        let line = line(&balancer, count).await;
        assert_eq!((&line["failure"], &line["reason"]), (&json!("response-timeout"), &json!(reason)), "{line}");
        let id = format!("request_id={}", line["request_id"]);
        let log = async || balancer.log().lines().any(|line| line.contains(&id) && line.contains(reason));
        eventually("the failure is logged with its request", log).await;
    }
}

// The ejection did not happen, and nothing said why.
#[tokio::test]
async fn an_ejection_that_max_percent_prevents_is_logged() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let rules = "statuses = [503]\nconsecutive_failures = 2\nbase_time = \"1h\"\nmax_time = \"1h\"\nmax_percent = 50";
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.ejection(rules))).await;
    for origin in [&a, &b] {
        origin.answer_with(tests::response(503, &[], "no"));
    }
    eventually("one is ejected, the other would be", async || {
        balancer.get("/").await;
        let log = balancer.log();
        log.contains("backend ejected") && log.contains("[pool.ejection] max_percent")
    })
    .await;
    let states = [balancer.backend(&a).await, balancer.backend(&b).await];
    assert_eq!(states.iter().filter(|state| state["status"] == "ejected").count(), 1, "{states:?}");
    let is_prevented = |state: &&Value| state["status"] == "healthy" && state["ejection_prevented"] == true;
    assert_eq!(states.iter().filter(is_prevented).count(), 1, "{states:?}");
    let admin = format!("http://{}", balancer.admin_address());
    let status = evenkeel(["status", "--admin", &admin]).await;
    assert!(status.stdout.contains("healthy, fails, not ejected"), "{}", status.stdout);
    balancer.logs(&["max_percent=50", "not ejected"]).await;
    tokio::time::timeout(Duration::from_secs(30), async {
        while !balancer.log().contains("failure=\"not-ejected\" more=") {
            balancer.get("/").await;
        }
    })
    .await
    .expect("the further ones are counted");
}

// Such a request left no trace at all: neither a line of a log nor a count.
#[tokio::test]
async fn requests_that_break_a_rule_of_http_2_are_logged_and_counted() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).listener(&http2::tls())).await;
    let sound = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "x")];
    let with = |name: &'static str, value: &'static str| {
        let mut fields: Vec<_> = sound.into_iter().filter(|(other, _)| *other != name).collect();
        let at = if name.starts_with(':') { 0 } else { fields.len() };
        fields.insert(at, (name, value));
        fields
    };
    let cases = [
        (with("connection", "close"), "Connection, Keep-Alive, Proxy-Connection, Transfer-Encoding or Upgrade"),
        (with("te", "gzip"), "TE with another value than trailers"),
        (with("X-Upper", "y"), "field name with a capital letter"),
        (with("x y", "z"), "malformed field name"),
        (with("x", "y\0"), "NUL, CR or LF in a field's value"),
        (with("content-length", "5"), "less content than Content-Length says"),
        (with(":unknown", "x"), "unknown pseudo-header field"),
        ([&sound[..], &[(":path", "/")]].concat(), "pseudo-header field repeated"),
        ([&sound[..], &[("x", "y"), (":path", "/")]].concat(), "pseudo-header field behind other fields"),
        (with(":path", "x y"), "blank or control character in a pseudo-header field"),
        (with(":path", "http://x/"), ":path that does not begin with a slash"),
        (sound[1..].to_vec(), ":method missing"),
        (sound[..2].to_vec(), ":path missing"),
        (with(":scheme", "1:"), "malformed :scheme"),
        (with(":method", "CONNECT"), "CONNECT with :scheme or :path, without :protocol"),
    ];
    let mut client = http2::connect(balancer.address()).await;
    http2::write(&mut client, PREFACE).await;
    for (stream, (fields, why)) in (1..).step_by(2).zip(&cases) {
        // The second one of its kind is only counted.
        for stream in [2 * stream - 1, 2 * stream + 1] {
            http2::write(&mut client, &frame(kind::HEADERS, 5, stream, &literals(fields))).await;
            assert_eq!(frame_of(&mut client, kind::RST_STREAM).await.stream, stream, "{why}");
        }
        balancer.logs(&["WARN", why, "an HTTP/2 stream is reset", "client=\"127.0.0.1\"", "listener="]).await;
    }
    let malformed = [("kind", "malformed")];
    let count = 2.0 * cases.len() as f64;
    assert_eq!(balancer.metrics().await.sum("evenkeel_client_failures_total", &malformed), count);
    balancer.logs(&["… and 1 more requests in ", "malformed field name"]).await;
    assert_eq!(a.heads(), 0);
}
