//! The access logs of sites and routes: which requests are logged, in which file, and with which content.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::http2::{self, Http2};
use tests::{Balancer, Config, Origin, Pool, Port, Request, Step, eventually, found_eventually, response};

/// A site for every host. `lines` end with its routes.
fn config(origin: &Origin, lines: &str) -> Config {
    Config::of([origin]).sites(&format!("[[site]]\nname = \"shop\"\nhosts = [\"\"]\n{lines}"))
}

#[tokio::test]
async fn a_custom_format_has_the_variables_of_each_phase() {
    let a = Origin::start("a").await;
    a.answer_with(response(201, &[("X-Kind", "book"), ("Server", "secret")], "four"));
    let lines = "response_headers = { set = { X-Sent = \"$route\" }, remove = [\"Server\"] }\n\
        [[site.route]]\nname = \"items\"\nregex = '^/items/(?<id>[0-9]+)$'\npool = \"app\"\n\
        rewrite = { to = \"/v1/$id?$args\" }\n\
        access_log = { file = \"own.log\", format = '$remote_addr $request_method $request_uri $host $http_x_tag $arg_q \
        $cookie_c $1 $id $uri [$args] $site $route $pool $status $upstream_status $upstream_addr $upstream_http_x_kind \
        $upstream_http_server $sent_http_x_sent $sent_http_server $attempts $failure $body_bytes_sent $server_protocol \
        $scheme $$ $http_none' }\n";
    let balancer = Balancer::start(config(&a, lines)).await;
    let request =
        Request::get("/items/17?q=x").with("Host", "Shop.Example").with("X-Tag", "tag").with("Cookie", "b=1; c=crumb");
    let reply = balancer.send(&request).await;
    assert_eq!((reply.status, a.last_request().target.as_str()), (201, "/v1/17?q=x"));
    let expected = format!(
        "127.0.0.1 GET /items/17?q=x shop.example tag x crumb 17 17 /items/17 [q=x] shop items app 201 201 {} book secret \
         items - 1 - 4 HTTP/1.1 http $ -",
        a.address()
    );
    assert_eq!(balancer.lines("own.log", 1).await, [expected]);
}

#[tokio::test]
async fn a_request_is_logged_in_each_log_that_matches() {
    let a = Origin::start("a").await;
    let lines = "access_log = { file = \"all.json\", format = \"json\" }\n\
        [[site.route]]\npath = \"/\"\nrespond = { body = \"fine\" }\n\
        access_log = [{ keep_outer = true, file = \"combined.log\", format = \"combined\" }, \
        { file = \"errors.log\", format = \"error $uri\", when = { status = \"400-599\" }, or_share = 0 }, \
        { file = \"api.log\", format = \"api $uri\", when = { query = { key = \"~^a\" }, methods = [\"GET\"] } }, \
        { file = \"both.log\", format = \"in $uri\", when = { status = \"200\" } }, \
        { file = \"both.log\", format = \"out $uri\", when = { status = \"404\" }, or_share = 1.0 }, \
        { file = \"none.log\", format = \"$uri\", share = 0 }, \
        { file = \"others.log\", format = \"$uri\", when = { status = \"404\" }, share = 0, or_share = 1.0 }]\n\
        [[site.route]]\npath = \"/lost\"\nrespond = { status = 404 }\n\
        access_log = [{ file = \"errors.log\", format = \"error $uri\", when = { status = \"400-599\" } }]\n";
    let balancer = Balancer::start(config(&a, lines)).await;
    // Lines of one connection are in order.
    let mut wire = balancer.connect().await;
    for target in ["/1?key=abc", "/2?key=b", "/lost"] {
        wire.exchange(&Request::get(target).with("User-Agent", "\"me\"")).await;
    }
    wire.exchange(&Request::post("/3?key=a", "body")).await;
    let json = balancer.lines("all.json", 3).await;
    let first: Value = serde_json::from_str(&json[0]).expect("JSON");
    for (field, value) in [
        ("target", json!("/1?key=abc")),
        ("status", json!(200)),
        ("bytes", json!(4)),
        ("user_agent", json!("\"me\"")),
        ("pool", Value::Null),
    ] {
        assert_eq!(first[field], value, "{field} in {first}");
    }
    let combined = balancer.lines("combined.log", 3).await;
    assert!(combined[0].ends_with("\"GET /1?key=abc HTTP/1.1\" 200 4 \"-\" \"\\x22me\\x22\""), "{}", combined[0]);
    assert_eq!(balancer.lines("api.log", 1).await, ["api /1"]);
    assert_eq!(balancer.lines("errors.log", 1).await, ["error /lost"]);
    assert_eq!(balancer.lines("both.log", 6).await, ["in /1", "out /1", "in /2", "out /2", "in /3", "out /3"]);
    assert_eq!(balancer.lines("others.log", 3).await, ["/1", "/2", "/3"]);
    assert_eq!(balancer.lines("none.log", 0).await, [""; 0]);
}

/// Half of the requests, and all with a certain status: the bounds are ten standard deviations wide.
#[tokio::test]
async fn sampling_logs_a_share_of_the_requests() {
    let a = Origin::start("a").await;
    let lines = "[[site.route]]\npath = \"/\"\nrespond = { status = 204 }\n\
        access_log = [{ file = \"half.log\", format = \"$uri\", share = 0.5 }, \
        { file = \"errors.log\", format = \"$status\", when = { status = \"500-599\" }, or_share = 0.25 }, \
        { file = \"all.log\", format = \"$uri\" }]\n";
    let mut balancer = Balancer::start(config(&a, lines)).await;
    let mut wire = balancer.connect().await;
    for _ in 0..1000 {
        wire.exchange(&Request::get("/x")).await;
    }
    balancer.stop().await;
    let count = |file| fs::read_to_string(balancer.file(file)).expect("a log").lines().count();
    assert_eq!(count("all.log"), 1000);
    assert!((342..=658).contains(&count("half.log")), "{}", count("half.log"));
    assert!((113..=387).contains(&count("errors.log")), "{}", count("errors.log"));
}

/// One line for each way in which a request can end, with `-` for unknown values.
#[tokio::test]
async fn configured_replies_refusals_and_unrouted_requests_are_logged() {
    let a = Origin::start("a").await;
    let lines = "access_log = { file = \"site.log\", format = \"$status $request_method $uri $route $pool $upstream_status $sent_http_x_a\" }\n\
        response_headers = { set = { X-A = \"$status\" } }\n\
        [[site.route]]\nname = \"own\"\npath = \"/own\"\nrespond = { body = \"fine\" }\n\
        [[site.route]]\nname = \"away\"\npath = \"/away\"\nredirect = \"/own\"\n\
        [[site.route]]\nname = \"jump\"\npath = \"/jump\"\njump = \"/own/x\"\n\
        [[site.route]]\nname = \"only-post\"\npath = \"/post\"\nmethods = [\"POST\"]\npool = \"app\"\n\
        [[site.route]]\nname = \"off\"\npath = \"/off\"\nrespond = { body = \"silent\" }\naccess_log = \"off\"\n";
    let balancer = Balancer::start(config(&a, lines).section("[access_log]\nfile = \"common.log\"")).await;
    let mut seen = 0;
    for (target, expected) in [
        ("/own?x", "200 GET /own own - - 200"),
        ("/away", "302 GET /away away - - 302"),
        ("/jump", "200 GET /own/x own - - 200"),
        ("/post", "404 GET /post shop - - 404"),
        ("/nowhere", "404 GET /nowhere shop - - 404"),
    ] {
        assert_eq!(balancer.get("/off").await.status, 200);
        balancer.get(target).await;
        seen += 1;
        assert_eq!(balancer.lines("site.log", seen).await.last().map(String::as_str), Some(expected), "{target}");
    }
    let mut wire = balancer.connect().await;
    wire.send("GET /bad HTTP/1.1\r\nHost: a\r\nbad field\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 400);
    let line = balancer.lines("site.log", seen + 1).await.remove(seen);
    assert!(line.starts_with("400 GET /") && line.ends_with(" shop - - 400"), "{line}");
    assert!(!balancer.file("common.log").exists() || balancer.lines("common.log", 0).await.is_empty());
}

#[tokio::test]
async fn clients_cannot_inject_log_lines() {
    let a = Origin::start("a").await;
    let lines = "access_log = [{ file = \"own.log\", format = '\"$uri\" \"$http_x\" \"$arg_a\"' }, \
        { file = \"own.json\", format = '{\"uri\":\"$uri\",\"x\":\"$http_x\",\"none\":\"$http_none\"}' }, \
        { file = \"combined.log\", format = \"combined\" }, { file = \"all.json\", format = \"json\" }]\n\
        [[site.route]]\npath = \"/\"\nrespond = { body = \"fine\" }\n";
    let balancer = Balancer::start(config(&a, lines)).await;
    let mut wire = balancer.connect().await;
    wire.send(b"GET /a%0d%0a%22%5c%01%ff?a=%22 HTTP/1.1\r\nHost: a\r\nX: \"q\\ \tz\xff\xe2\x80\xa8\r\nUser-Agent: \"\\\tx\r\n\r\n".to_vec()).await;
    assert_eq!(wire.reply().await.status, 200);
    assert_eq!(
        balancer.lines("own.log", 1).await,
        [r#""/a\x0D\x0A\x22\x5C\x01\xFF" "\x22q\x5C \x09z\xFF\xE2\x80\xA8" "%22""#]
    );
    let own: Value = serde_json::from_str(&balancer.lines("own.json", 1).await[0]).expect("JSON");
    assert_eq!(own["uri"], "/a\r\n\"\\\u{1}\u{fffd}");
    assert_eq!(own["x"], "\"q\\ \tz\u{fffd}\u{2028}");
    let combined = balancer.lines("combined.log", 1).await.remove(0);
    assert!(combined.ends_with(r#"200 4 "-" "\x22\x5C\x09x""#), "{combined}");
    let json: Value = serde_json::from_str(&balancer.lines("all.json", 1).await[0]).expect("JSON");
    assert_eq!((&json["user_agent"], &json["target"]), (&json!("\"\\\tx"), &json!("/a%0d%0a%22%5c%01%ff?a=%22")));
}

#[tokio::test]
async fn values_are_escaped_as_configured() {
    let a = Origin::start("a").await;
    let format = "format = '\"$http_x\" $uri [$http_none]'";
    let logs: Vec<_> = ["default", "json", "none"]
        .iter()
        .map(|escape| format!("{{ file = \"{escape}.log\", {format}, escape = \"{escape}\" }}"))
        .collect();
    let lines =
        format!("access_log = [{}]\n[[site.route]]\npath = \"/\"\nrespond = {{ body = \"fine\" }}\n", logs.join(", "));
    let balancer = Balancer::start(config(&a, &lines)).await;
    let mut wire = balancer.connect().await;
    wire.send("GET /a%0d%0ab%5c HTTP/1.1\r\nHost: a\r\nX: \"q\"\t\u{e4}\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 200);
    for (file, line) in [
        ("default.log", r#""\x22q\x22\x09\xC3\xA4" /a\x0D\x0Ab\x5C [-]"#),
        ("json.log", "\"\\\"q\\\"\\t\u{e4}\" /a\\r\\nb\\\\ []"),
        // But no client can begin a line.
        ("none.log", "\"\"q\"\t\u{e4}\" /a\\x0D\\x0Ab\\ []"),
    ] {
        assert_eq!(balancer.lines(file, 1).await, [line], "{file}");
    }
}

/// Variables about a backend refer to the last one tried.
#[tokio::test]
async fn after_a_jump_the_line_names_the_backend_of_its_target() {
    let [a, b, c] = Origin::several(["a", "b", "c"]).await;
    a.answer_with(response(404, &[], "none"));
    b.answer_with(response(203, &[], "page"));
    c.answer(|_| vec![tests::Step::Close]);
    let lines = "access_log = { file = \"own.log\", format = \"$status $upstream_status $upstream_addr $pool $attempts\" }\n\
        intercept_errors = true\n\
        [[site.route]]\npath = \"/page\"\npool = \"app\"\nerror_pages = { \"404\" = \"/there\" }\n\
        [[site.route]]\npath = \"/fails\"\npool = \"app\"\nerror_pages = { \"404\" = \"/gone\" }\n\
        [[site.route]]\npath = \"/own\"\npool = \"app\"\nerror_pages = { \"404\" = { text = \"own\" } }\n\
        [[site.route]]\npath = \"/there\"\npool = \"next\"\n[[site.route]]\npath = \"/gone\"\npool = \"last\"\n";
    let config =
        config(&a, lines).pool(tests::Pool::of("next", [&b])).pool(tests::Pool::of("last", [&c]).without_ejection());
    let balancer = Balancer::start(config).await;
    for (count, (target, expected)) in (1..).zip([
        ("/page", format!("404 203 {} next 2", b.address())),
        ("/fails", format!("502 - {} last 2", c.address())),
        ("/own", format!("404 404 {} app 1", a.address())),
    ]) {
        balancer.get(target).await;
        assert_eq!(balancer.lines("own.log", count).await.last(), Some(&expected), "{target}");
    }
}

#[tokio::test]
async fn log_files_are_reopened_on_sigusr1_and_by_a_reload() {
    let a = Origin::start("a").await;
    let of = |file: &str| {
        config(
            &a,
            &format!(
                "access_log = {{ file = \"{file}\", format = \"$uri\" }}\n[[site.route]]\npath = \"/\"\npool = \"app\"\n"
            ),
        )
    };
    let mut balancer = Balancer::start(of("one.log")).await;
    balancer.get("/first").await;
    balancer.lines("one.log", 1).await;
    fs::rename(balancer.file("one.log"), balancer.file("one.log.1")).expect("a log");
    balancer.signal(Signal::SIGUSR1);
    found_eventually("a line in the new file", async || {
        balancer.get("/second").await;
        fs::read_to_string(balancer.file("one.log")).ok().filter(|text| text.contains("/second"))
    })
    .await;
    assert!(fs::read_to_string(balancer.file("one.log.1")).expect("a file").starts_with("/first\n"));

    // A request that began before the reload is logged in the log with which it began.
    let begun = a.heads();
    let mut wire = balancer.connect().await;
    wire.send("POST /held HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\nx").await;
    eventually("the request has begun", async || a.heads() > begun).await;
    balancer.configure(&of("two.log"));
    balancer.change("POST", "/admin/reload", None).await;
    balancer.get("/third").await;
    assert_eq!(balancer.lines("two.log", 1).await, ["/third"]);
    wire.send("x".repeat(69_999)).await;
    assert_eq!(wire.reply().await.status, 200);
    found_eventually("the held request's line", async || {
        fs::read_to_string(balancer.file("one.log")).ok().filter(|text| text.ends_with("/held\n"))
    })
    .await;
    assert_eq!(balancer.lines("two.log", 1).await, ["/third"]);

    // If a file cannot be opened, nothing changes.
    balancer.configure(&of("missing/x.log"));
    let refused = balancer.admin("POST", "/admin/reload", None).await;
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(refused.text().contains("missing/x.log"), "{}", refused.text());
    balancer.get("/fourth").await;
    assert_eq!(balancer.lines("two.log", 2).await, ["/third", "/fourth"]);
    assert_eq!(balancer.metrics().await.sum("evenkeel_access_log_lost_total", &[]), 0.0);
}

#[tokio::test]
async fn lines_have_the_variables_of_tls_and_http2() {
    let a = Origin::start("a").await;
    let tls = Port::reserve();
    let lines = "access_log = { file = \"own.log\", format = \"$scheme $server_protocol $http2 $uri\" }\n\
        [[site.route]]\npath = \"/\"\npool = \"app\"\n";
    let section = format!("[[listener]]\naddress = \"{}\"\n{}\n", tls.address(), http2::tls());
    let balancer = Balancer::start(config(&a, lines).section(&section)).await;
    let mut client = Http2::connect(tls.address()).await;
    let request = http::Request::get("https://site.example/x").body(()).expect("a request");
    let (reply, _) = client.begin(request, true).await;
    assert_eq!(http2::reply(reply).await.expect("a response").status, 200);
    assert_eq!(balancer.lines("own.log", 1).await, ["https HTTP/2.0 h2 /x"]);
    balancer.get("/y").await;
    assert_eq!(balancer.lines("own.log", 2).await[1], "http HTTP/1.1 - /y");
    assert_eq!(Http2::connect_plain(balancer.address()).await.get("/z").await.status, 200);
    assert_eq!(balancer.lines("own.log", 3).await[2], "http HTTP/2.0 h2c /z");
}

/// The names of the events in a line's `trace`.
fn events(line: &Value) -> Vec<&str> {
    let events = line["trace"].as_array().into_iter().flatten();
    events.map(|event| event["event"].as_str().expect("a name")).collect()
}

fn parsed(lines: &[String]) -> Vec<Value> {
    lines.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

// Only the last backend and failure were named.
#[tokio::test]
async fn a_retried_request_names_each_attempt() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let log = "[access_log]\nfile = \"access.log\"";
    let balancer = Balancer::start(Config::of([&a, &b]).section(log)).await;
    a.answer(|_| vec![Step::Reset]);
    let mut wire = balancer.connect().await;
    for _ in 0..2 {
        assert_eq!(wire.exchange(&Request::get("/")).await.origin(), "b");
    }
    let lines = parsed(&balancer.lines("access.log", 2).await);
    let retried = lines.iter().find(|line| line["attempts"] == 2).expect("one was sent to a first");
    assert_eq!(events(retried), ["opened", "failed", "opened", "answered", "sent"], "{retried}");
    let [first, failed, second, answered, _] = &retried["trace"].as_array().expect("a list")[..] else { panic!() };
    assert_eq!((&first["backend"], &failed["failure"]), (&json!(a.address().to_string()), &json!("reset")));
    assert_eq!((&second["backend"], &answered["status"]), (&json!(b.address().to_string()), &json!(200)));
    let plain = lines.iter().find(|line| line["attempts"] == 1).expect("one was not");
    assert!(plain.get("trace").is_none() && plain.get("queue_seconds").is_none(), "{plain}");
}

#[tokio::test]
async fn a_queued_request_says_how_long_it_waited() {
    let a = Origin::start("a").await;
    let pool =
        Pool::empty("app").backend(&a.address().to_string(), "max_connections = 1").set("queue_timeout = \"20s\"");
    let lines = "[[site]]\nhosts = [\"\"]\naccess_log = [{ file = \"a.json\" }, { file = \"a.log\", format = '$trace' }]\n\
        [[site.route]]\npath = \"/\"\npool = \"app\"\n";
    let balancer = Balancer::start(Config::default().pool(pool).sites(lines)).await;
    let mut wires = [balancer.connect().await, balancer.connect().await];
    for (index, wire) in wires.iter_mut().enumerate() {
        wire.send(Request::get("/hold").to_bytes()).await;
        eventually("it is in flight or queued", async || {
            balancer.metrics().await.sum("evenkeel_pool_queued", &[]) == index as f64 && a.heads() == 1
        })
        .await;
    }
    for wire in &mut wires {
        a.release();
        assert_eq!(wire.reply().await.status, 200);
    }
    let lines = parsed(&balancer.lines("a.json", 2).await);
    assert!(lines[0].get("queue_seconds").is_none(), "{}", lines[0]);
    assert_eq!(events(&lines[1]), ["queued", "opened", "answered", "sent"], "{}", lines[1]);
    let at = |index: usize| lines[1]["trace"][index]["seconds"].as_f64().expect("seconds");
    assert!((lines[1]["queue_seconds"].as_f64().expect("seconds") - (at(1) - at(0))).abs() < 1e-5, "{}", lines[1]);
    let text = &balancer.lines("a.log", 2).await[1];
    let backend = a.address();
    let words: Vec<_> = text.split(", ").map(|event| event.split_once(' ').expect("seconds").1).collect();
    assert_eq!(words, ["queued", &format!("opened {backend}"), "answered 200", "sent"], "{text}");
}

#[tokio::test]
async fn an_error_page_shows_in_the_trace() {
    let a = Origin::start("a").await;
    a.answer_with(response(503, &[], "busy"));
    let lines = "access_log = { file = \"a.json\" }\nintercept_errors = true\n\
        error_pages = { \"503\" = { path = \"/sorry\" } }\n[[site.route]]\npath = \"/\"\npool = \"app\"\n\
        [[site.route]]\nname = \"sorry\"\nexact = \"/sorry\"\nrespond = { body = \"sorry\" }\n";
    let balancer = Balancer::start(config(&a, lines)).await;
    balancer.get("/").await;
    let [line] = &parsed(&balancer.lines("a.json", 1).await)[..] else { panic!() };
    assert_eq!(events(line), ["opened", "answered", "jumped", "replied", "sent"], "{line}");
    assert_eq!((&line["trace"][2]["route"], &line["trace"][1]["status"]), (&json!("sorry"), &json!(503)), "{line}");
}
