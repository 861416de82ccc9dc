//! Sites do what they say: replies of their own, changed heads and targets, jumps and error pages.

use std::fs;
use std::ops::Deref;

use tests::http2::{self, Http2};
use tests::{Balancer, Config, Origin, Pool, Port, Reply, Request, Step, eventually, response};

/// A balancer with a site for all hosts, and listeners with and without TLS.
struct Shop {
    balancer: Balancer,
    tls: Port,
}

impl Shop {
    /// `lines` of the site end with its routes.
    async fn start(origin: &Origin, lines: &str) -> Self {
        let tls = Port::reserve();
        let mut balancer = Balancer::prepare(&Self::config(origin, &tls, lines));
        balancer.launch();
        balancer.ready().await;
        Self { balancer, tls }
    }

    fn config(origin: &Origin, tls: &Port, lines: &str) -> Config {
        Config::of([origin])
            .section(&format!("[[listener]]\naddress = \"{}\"\n{}\n", tls.address(), http2::tls()))
            .sites(&format!("[[site]]\nname = \"shop\"\nhosts = [\"\"]\n{lines}"))
    }

    /// The reply over HTTP/1.1. Asserts that HTTP/2 gives the same.
    async fn both(&self, request: &Request) -> Reply {
        let host = request.field("host").unwrap_or("site.example");
        let mut other =
            http::Request::builder().method(&*request.method).uri(format!("https://{host}{}", request.target));
        for (name, value) in request.fields.0.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("host")) {
            other = other.header(name, value);
        }
        let mut client = Http2::connect(self.tls.address()).await;
        let (reply, _) = client.begin(other.body(()).expect("a request"), true).await;
        let other = http2::reply(reply).await.expect("a response");
        let reply = self.send(request).await;
        let comparable = |reply: &Reply| {
            let own = ["date", "x-request-id", "connection", "strict-transport-security"];
            let mut fields: Vec<_> =
                reply.fields.0.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
            fields.retain(|(name, _)| !own.contains(&name.as_str()));
            fields.sort();
            (reply.status, fields, reply.text())
        };
        assert_eq!(comparable(&reply), comparable(&other), "{}", request.target);
        reply
    }
}

impl Deref for Shop {
    type Target = Balancer;

    fn deref(&self) -> &Balancer {
        &self.balancer
    }
}

/// Waits until this many are counted: a request is counted once its answer has been sent.
async fn counts(balancer: &Balancer, name: &str, labels: &[(&str, &str)], count: f64) {
    eventually(name, async || balancer.metrics().await.sum(name, labels) == count).await;
}

fn route(lines: &str) -> String {
    format!("[[site.route]]\npath = \"/\"\n{lines}\n")
}

#[tokio::test]
async fn routes_can_answer_without_a_backend() {
    let a = Origin::start("a").await;
    let lines =
        route("respond = { status = 418, body = \"$request_method on $host: $arg_q\", content_type = \"text/x\" }");
    let shop = Shop::start(&a, &lines).await;
    let reply = shop.both(&Request::get("/x?q=1%20").with("Host", "Shop.Example:8080")).await;
    assert_eq!((reply.status, reply.text().as_str()), (418, "GET on shop.example: 1%20"));
    assert_eq!((reply.field("content-type"), reply.field("content-length")), (Some("text/x"), Some("25")));
    assert!(reply.field("x-request-id").is_some());

    let mut wire = shop.connect().await;
    let head = wire.exchange(&Request::new("HEAD", "/?q=")).await;
    assert_eq!((head.status, head.field("content-length"), head.body.len()), (418, Some("22"), 0));
    // The connection is kept, for two requests at once and for one with a late body.
    let twice = [Request::get("/?q=1").to_bytes(), Request::post("/?q=2", "body").to_bytes()].concat();
    wire.send(twice).await;
    assert_eq!(wire.reply().await.text(), "GET on site.example: 1");
    assert_eq!(wire.reply().await.text(), "POST on site.example: 2");
    wire.send("POST /?q=3 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n").await;
    wire.send("ab").await;
    assert_eq!(wire.reply().await.text(), "POST on a: 3");
    assert_eq!(wire.exchange(&Request::get("/?q=4")).await.text(), "GET on site.example: 4");

    // A client that waits for 100 is answered at once, and the connection is not reused.
    wire.send("POST /?q=5 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n").await;
    let reply = wire.reply().await;
    assert_eq!((reply.status, reply.field("connection")), (418, Some("close")));

    let mut old = shop.connect().await;
    old.send("GET /?q=6 HTTP/1.0\r\n\r\n").await;
    let reply = old.reply().await;
    assert_eq!((reply.text().as_str(), reply.field("connection")), ("GET on : 6", Some("close")));
    assert!(old.is_closed().await);
    assert_eq!(a.heads(), 0, "nothing reached the backend");

    counts(&shop, "evenkeel_requests_total", &[("pool", ""), ("code", "4xx")], 9.0).await;
}

#[tokio::test]
async fn a_large_configured_reply_is_sent_at_the_clients_pace() {
    let a = Origin::start("a").await;
    let lines =
        "error_pages = { \"404\" = { file = \"large.html\" } }\n[[site.route]]\npath = \"/there\"\npool = \"app\"\n";
    let tls = Port::reserve();
    let mut balancer = Balancer::prepare(&Shop::config(&a, &tls, lines));
    let page: Vec<u8> = (0..1_000_000u32).map(|i| b'a' + (i % 23) as u8).collect();
    fs::write(balancer.file("large.html"), &page).expect("a writable folder");
    balancer.launch();
    balancer.ready().await;
    let shop = Shop { balancer, tls };
    let mut wire = shop.connect().await;
    for _ in 0..2 {
        let reply = wire.exchange(&Request::get("/missing")).await;
        assert_eq!((reply.status, reply.field("content-type")), (404, Some("text/html; charset=utf-8")));
        assert!(reply.body == page);
    }
    assert_eq!(wire.exchange(&Request::get("/there")).await.status, 200, "the connection stays");
}

#[tokio::test]
async fn clients_cannot_change_where_a_redirect_leads() {
    let a = Origin::start("a").await;
    let lines = "[[site.route]]\npath = \"/tls\"\nredirect = { to = \"https://$host$request_uri\", status = 308 }\n\
                 [[site.route]]\nregex = '^/u/(?<id>[^!]+)$'\nredirect = { to = \"/users/${id}\", status = 301 }\n\
                 [[site.route]]\nregex = '^/go(?<rest>.*)$'\nredirect = \"/$rest\"\n";
    let shop = Shop::start(&a, lines).await;
    for (target, status, location) in [
        ("/tls/a%20b?c=d", 308, "https://shop.example/tls/a%20b?c=d"),
        ("/u/7", 301, "/users/7"),
        ("/u/a%20b%3Fc%0d%0aX:%20y", 301, "/users/a%20b%3Fc%0D%0AX:%20y"),
        ("/go//evil.example/", 302, "/evil.example/"),
        ("/go/%5cevil.example", 302, "/%5Cevil.example"),
        ("/go%2f%2fevil.example", 302, "/evil.example"),
    ] {
        let reply = shop.both(&Request::get(target).with("Host", "shop.example")).await;
        assert_eq!((reply.status, reply.field("location")), (status, Some(location)), "{target}");
        assert_eq!(reply.field("x"), None);
    }
    assert_eq!(a.heads(), 0);
}

/// A browser reads `https:///evil.example/x` as `https://evil.example/x`.
#[tokio::test]
async fn a_request_without_a_host_is_not_redirected_to_a_host_in_its_path() {
    let a = Origin::start("a").await;
    let shop = Shop::start(&a, &route("redirect = \"https://$host$request_uri\"")).await;
    for head in [
        "GET /evil.example/x HTTP/1.0\r\n",
        "GET /evil.example/x HTTP/1.1\r\nHost: .\r\n",
        "GET /evil.example/x HTTP/1.1\r\nHost: .:80\r\n",
        "GET http://./evil.example/x HTTP/1.1\r\nHost: .\r\n",
    ] {
        let mut wire = shop.connect().await;
        wire.send(format!("{head}\r\n")).await;
        let reply = wire.reply().await;
        assert_eq!((reply.status, reply.field("location")), (400, None), "{head}");
    }
    let reply = shop.both(&Request::get("/x").with("Host", "shop.example.")).await;
    assert_eq!((reply.status, reply.field("location")), (302, Some("https://shop.example/x")));
    counts(&shop, "evenkeel_requests_total", &[("pool", ""), ("code", "4xx")], 1.0).await;
}

#[tokio::test]
async fn fields_are_changed_in_requests_responses_and_refusals() {
    let a = Origin::start("a").await;
    a.answer_with(response(200, &[("Server", "secret"), ("Vary", "Accept"), ("X-Kept", "a")], "ok"));
    let lines = "response_headers = [{ remove = [\"Server\"], set = { X-Site = \"$site\", X-Kept = \"b\" }, \
                 append = { Vary = \"Cookie\" }, default = { X-New = \"$status\" } }, \
                 { status = \"404\", set = { X-Lost = \"yes\" } }]\n\
                 [[site.route]]\npath = \"/app\"\npool = \"app\"\n\
                 request_headers = { host = \"api.internal\", set = { X-Uri = \"$uri\", X-Client = \"$remote_addr\", \
                 X-Forwarded-Proto = \"gopher\", X-Empty = \"$arg_none\" }, add = { X-Tag = \"one\" }, \
                 append = { X-Way = \"lb\" }, default = { X-Lang = \"en\" }, remove = [\"X-Debug\", \"X-Real-IP\"] }\n";
    let shop = Shop::start(&a, lines).await;
    let request = Request::get("/app/a%20b")
        .with("Host", "shop.example")
        .with("X-Debug", "1")
        .with("X-Tag", "zero")
        .with("X-Way", "cdn")
        .with("X-Lang", "de")
        .with("X-Empty", "full");
    let reply = shop.both(&request).await;
    let seen = a.last_request();
    assert_eq!(seen.field("host"), Some("api.internal"));
    assert_eq!(seen.field("x-uri"), Some("/app/a b"));
    assert_eq!((seen.field("x-client"), seen.field("x-forwarded-proto")), (Some("127.0.0.1"), Some("gopher")));
    assert_eq!(seen.fields.all("x-tag"), ["zero", "one"]);
    assert_eq!((seen.field("x-way"), seen.field("x-lang")), (Some("cdn, lb"), Some("de")));
    for name in ["x-debug", "x-real-ip", "x-empty"] {
        assert_eq!(seen.field(name), None, "{name}");
    }
    assert_eq!((reply.field("server"), reply.field("x-site")), (None, Some("shop")));
    assert_eq!((reply.field("x-kept"), reply.field("x-new")), (Some("b"), Some("200")));
    assert_eq!((reply.field("vary"), reply.field("x-lost")), (Some("Accept, Cookie"), None));

    let lost = shop.get("/none").await;
    assert_eq!((lost.status, lost.field("x-site"), lost.field("x-lost")), (404, Some("shop"), Some("yes")));
    let mut wire = shop.connect().await;
    wire.send("GET / HTTP/1.1\r\nbad field\r\n\r\n").await;
    let malformed = wire.reply().await;
    assert_eq!((malformed.status, malformed.field("x-site")), (400, Some("shop")));
}

#[tokio::test]
async fn clients_cannot_inject_fields() {
    let a = Origin::start("a").await;
    a.answer_with(response(200, &[], "ok"));
    let lines = "response_headers = { set = { X-Uri = \"$uri\" } }\n".to_owned()
        + &route("pool = \"app\"\nrequest_headers = { set = { X-Uri = \"a $uri\" } }");
    let shop = Shop::start(&a, &lines).await;
    let reply = shop.both(&Request::get("/a%0d%0aX-Evil:%20yes")).await;
    assert_eq!((reply.field("x-uri"), reply.field("x-evil")), (None, None));
    let seen = a.last_request();
    assert_eq!((seen.field("x-uri"), seen.field("x-evil")), (None, None));
    assert_eq!(seen.target, "/a%0d%0aX-Evil:%20yes");
}

/// The target for the backend, for all states that a target can have: as received or changed, its prefix usable or not.
#[tokio::test]
async fn targets_are_forwarded_as_received_or_as_rewritten() {
    let a = Origin::start("a").await;
    let lines = "[[site.route]]\npath = \"/plain\"\npool = \"app\"\n\
                 [[site.route]]\npath = \"/up\"\npool = \"app\"\nrewrite = { prefix = \"/v1\" }\n\
                 [[site.route]]\npath = \"/root/\"\npool = \"app\"\nrewrite = { prefix = \"/\" }\n\
                 [[site.route]]\nprefix = \"/raw\"\npool = \"app\"\nrewrite = { prefix = \"/\" }\n\
                 [[site.route]]\npath = \"/regex\"\npool = \"app\"\nrewrite = { regex = '^/regex/([^/]*)(.*)$', to = \"/r/$1$2\" }\n\
                 [[site.route]]\npath = \"/query\"\npool = \"app\"\nrewrite = { regex = '^/query/(.*)$', to = \"/q?n=$1\" }\n\
                 [[site.route]]\npath = \"/to\"\npool = \"app\"\nrewrite = { to = \"/x$is_args$args\" }\n\
                 [[site.route]]\npath = \"/jump\"\njump = \"/up/b%20c?d=e\"\n\
                 [[site.route]]\npath = \"/named\"\njump = \"away\"\n\
                 [[site.route]]\nname = \"away\"\npool = \"app\"\n";
    let shop = Shop::start(&a, lines).await;
    for (target, expected) in [
        ("/plain/a%20b/..//c%2f?x=1", "/plain/a%20b/..//c%2f?x=1"),
        ("/up", "/v1"),
        ("/up/a%20b//c%2f%25%3f%C3%A9?x=1", "/v1/a%20b/c/%25%3F%C3%A9?x=1"),
        ("/up/../up/a?", "/v1/a?"),
        ("/root/a/b", "/a/b"),
        ("/rawx/y", "/x/y"),
        ("/raw/x/y", "/x/y"),
        ("/regex/a%20b/c?x=1", "/r/a%20b/c?x=1"),
        ("/regex", "/regex"),
        ("/query/a%26b%3Fc?x=1", "/q?n=a%26b%3Fc"),
        ("/to/anything?x=1", "/x?x=1"),
        ("/to/anything", "/x"),
        ("/jump/z?x=1", "/v1/b%20c?d=e"),
        ("/named/a%20b?x=1", "/named/a%20b?x=1"),
    ] {
        let reply = shop.get(target).await;
        assert_eq!((reply.status, a.last_request().target.as_str()), (200, expected), "{target}");
    }
}

/// nginx's `location /api { alias /; }` serves files outside the folder: `/api../x` is `/../x`.
#[tokio::test]
async fn the_rest_behind_a_byte_prefix_cannot_leave_its_folder() {
    let a = Origin::start("a").await;
    let lines = "[[site.route]]\nprefix = \"/api\"\npool = \"app\"\nrewrite = { prefix = \"/\" }\n\
                 [[site.route]]\nprefix = \"/deep\"\npool = \"app\"\nrewrite = { prefix = \"/v1/\" }\n";
    let shop = Shop::start(&a, lines).await;
    for (target, expected) in [
        ("/api../x", "/"),
        ("/api..%2fx", "/"),
        ("/api%2e%2E/x?y=1", "/?y=1"),
        ("/api..", "/"),
        ("/api./x", "/"),
        ("/deep../x", "/"),
        ("/deep./", "/"),
        ("/api.../x", "/.../x"),
        ("/api..x", "/..x"),
        ("/api/..x/y", "/..x/y"),
        ("/deepx", "/v1/x"),
    ] {
        let reply = shop.get(target).await;
        assert_eq!((reply.status, a.last_request().target.as_str()), (200, expected), "{target}");
    }
}

#[tokio::test]
async fn error_pages_replace_errors() {
    let a = Origin::start("a").await;
    a.answer(|request| match request.target.as_str() {
        "/pages/404.html" | "/kept" => vec![Step::Send(response(200, &[], "the page"))],
        "/odd" => vec![Step::Send(response(202, &[], "odd"))],
        "/fails" => vec![Step::Send(response(500, &[], "own error"))],
        _ => vec![Step::Send(response(404, &[], "not found"))],
    });
    let lines = "error_pages = { \"404\" = \"/pages/404.html\" }\n\
        [[site.route]]\npath = \"/pages\"\npool = \"app\"\ninternal = true\n\
        [[site.route]]\npath = \"/backend\"\npool = \"app\"\n\
        [[site.route]]\npath = \"/intercepted\"\npool = \"app\"\nintercept_errors = true\n\
        [[site.route]]\npath = \"/is\"\nrespond = { status = 404 }\nerror_pages = { \"404\" = { path = \"/kept\", status = 200 } }\n\
        [[site.route]]\npath = \"/of-page\"\nrespond = { status = 404 }\nerror_pages = { \"404\" = { path = \"/odd\", status = \"page\" } }\n\
        [[site.route]]\npath = \"/named\"\nrespond = { status = 404 }\nerror_pages = { \"404\" = { path = \"@page\", status = 299 } }\n\
        [[site.route]]\nname = \"@page\"\nrespond = { status = 200, body = \"named $uri\" }\n\
        [[site.route]]\npath = \"/text\"\nrespond = { status = 404 }\nerror_pages = { \"404\" = { text = \"no $uri\", content_type = \"text/plain\" } }\n\
        [[site.route]]\npath = \"/away\"\nrespond = { status = 404 }\nerror_pages = { \"404\" = { redirect = \"https://other.example/\" } }\n\
        [[site.route]]\npath = \"/said\"\nrespond = { status = 404, body = \"said\" }\n\
        [[site.route]]\nexact = \"/odd\"\npool = \"app\"\n[[site.route]]\nexact = \"/kept\"\npool = \"app\"\n";
    let shop = Shop::start(&a, lines).await;
    for (target, status, text) in [
        ("/nowhere", 404, "the page"),
        ("/backend", 404, "not found"),
        ("/intercepted", 404, "the page"),
        ("/pages/404.html", 404, "the page"),
        ("/is", 200, "the page"),
        ("/of-page", 202, "odd"),
        ("/text", 404, "no /text"),
        ("/said", 404, "said"),
    ] {
        let reply = shop.both(&Request::get(target)).await;
        assert_eq!((reply.status, reply.text().as_str()), (status, text), "{target}");
    }
    let named = shop.both(&Request::get("/named")).await;
    assert_eq!((named.status, named.text().as_str()), (299, "named /named"));
    let away = shop.get("/away").await;
    assert_eq!((away.status, away.field("location")), (302, Some("https://other.example/")));
    // An error page for a POST is requested by GET.
    let reply = shop.send(&Request::post("/intercepted", "body").with("Range", "bytes=0-1")).await;
    let seen = a.last_request();
    assert_eq!((reply.status, reply.text().as_str()), (404, "the page"));
    assert_eq!((seen.method.as_str(), seen.body.len(), seen.field("range")), ("GET", 0, None));
    let head = shop.connect().await.exchange(&Request::new("HEAD", "/intercepted")).await;
    assert_eq!((head.status, head.body.len(), a.last_request().method.as_str()), (404, 0, "HEAD"));
}

#[tokio::test]
async fn jumps_are_bounded_and_internal_routes_are_reached_only_by_jumps() {
    let a = Origin::start("a").await;
    let lines = "[[site.route]]\npath = \"/round\"\njump = \"/round\"\n\
        [[site.route]]\npath = \"/there\"\njump = \"/inside/x?y=$arg_q\"\n\
        [[site.route]]\npath = \"/inside\"\ninternal = true\npool = \"app\"\n\
        [[site.route]]\npath = \"/lost\"\njump = \"/../$uri\"\n";
    let shop = Shop::start(&a, lines).await;
    assert_eq!(shop.get("/round").await.status, 500);
    for target in ["/inside/x", "/x/../inside/x", "/%69nside", "//inside", "/inside"] {
        assert_eq!(shop.get(target).await.status, 404, "{target}");
    }
    assert_eq!(shop.get("/lost").await.status, 404);
    assert_eq!(a.heads(), 0);
    let reply = shop.send(&Request::post("/there?q=1", "body")).await;
    let seen = a.last_request();
    assert_eq!((reply.status, seen.target.as_str(), seen.method.as_str()), (200, "/inside/x?y=1", "POST"));
    assert_eq!(seen.body, b"body", "a jump that is no error page keeps method and body");
}

#[tokio::test]
async fn refusals_before_routing_use_the_error_pages_of_the_default_site() {
    let a = Origin::start("a").await;
    let lines = "error_pages = { \"400\" = { text = \"bad\", status = 499 }, \"414\" = { redirect = \"/shorter\" } }\n"
        .to_owned()
        + &route("pool = \"app\"");
    let shop = Shop::start(&a, &lines).await;
    let mut wire = shop.connect().await;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\nbad field\r\n\r\n").await;
    let reply = wire.reply().await;
    assert_eq!((reply.status, reply.text().as_str(), reply.field("connection")), (499, "bad", Some("close")));
    let mut wire = shop.connect().await;
    wire.send(format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(20_000))).await;
    let reply = wire.reply().await;
    assert_eq!((reply.status, reply.field("location")), (302, Some("/shorter")));
}

/// Variables of the connection also exist for requests with an invalid head, or refused for their path.
#[tokio::test]
async fn refusals_before_routing_have_client_and_status_variables() {
    let a = Origin::start("a").await;
    let lines = "error_pages = { \"400\" = { text = \"$remote_addr by $scheme: $status\" } }\n\
                 response_headers = { set = { X-Client = \"$remote_addr $status\" } }\n"
        .to_owned()
        + &route("pool = \"app\"");
    let shop = Shop::start(&a, &lines).await;
    for head in ["GET / HTTP/1.1\r\nHost: a\r\nbad field\r\n\r\n", "GET /../x HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let mut wire = shop.connect().await;
        wire.send(head).await;
        let reply = wire.reply().await;
        assert_eq!((reply.status, reply.text().as_str()), (400, "127.0.0.1 by http: 400"), "{head}");
        assert_eq!(reply.field("x-client"), Some("127.0.0.1 400"));
    }
    let reply = Http2::connect(shop.tls.address()).await.get("/../x").await;
    assert_eq!((reply.status, reply.text().as_str()), (400, "127.0.0.1 by https: 400"));
}

/// A client's text may be three times as long after encoding.
#[tokio::test]
async fn a_configured_reply_with_too_large_a_head_is_500() {
    let a = Origin::start("a").await;
    let lines = "[[site.route]]\npath = \"/\"\nredirect = \"https://h.example$uri\"\n\
                 [[site.route]]\npath = \"/page\"\nrespond = { status = 404 }\n\
                 error_pages = { \"404\" = { redirect = \"https://h.example$uri\" } }\n";
    let tls = Port::reserve();
    let config =
        Shop::config(&a, &tls, lines).listener("max_head_bytes = \"1MiB\"\nmax_request_line_bytes = \"1000KiB\"");
    let balancer = Balancer::start(config).await;
    for path in ["", "page/"] {
        for (times, status) in [(900_000, 500), (300, 302)] {
            let mut wire = balancer.connect().await;
            wire.send(format!("GET /{path}{} HTTP/1.1\r\nHost: a\r\n\r\n", "^".repeat(times))).await;
            assert_eq!(wire.reply().await.status, status, "{path} {times}");
        }
    }
    counts(&balancer, "evenkeel_requests_total", &[("pool", ""), ("code", "5xx")], 2.0).await;
    counts(&balancer, "evenkeel_refusals_total", &[("reason", "internal")], 2.0).await;
}

#[tokio::test]
async fn location_refresh_and_cookies_of_a_backend_are_rewritten_for_the_client() {
    let a = Origin::start("a").await;
    a.answer(|request| {
        let location = request.target.split_once('=').map_or("", |(_, location)| location);
        let fields = [
            ("Location", location),
            ("Refresh", "3; url=http://api.internal/v1/later"),
            ("Set-Cookie", "a=b; Path=/v1/x; Domain=.Api.Internal; SameSite=None"),
            ("Set-Cookie", "c=d"),
        ];
        vec![Step::Send(response(302, &fields, ""))]
    });
    let lines = "[[site.route]]\npath = \"/shop\"\npool = \"app\"\nrewrite = { prefix = \"/v1\" }\n\
        request_headers = { host = \"api.internal\" }\n\
        cookies = { domain = { \"api.internal\" = \"shop.example\" }, path = { \"/v1\" = \"/shop\" }, secure = true, same_site = \"lax\" }\n\
        [[site.route]]\npath = \"/pairs\"\npool = \"app\"\nlocation = [{ from = \"http://b/\", to = \"/pairs/\" }]\n\
        [[site.route]]\npath = \"/hosts\"\npool = \"app\"\nlocation = [{ from = \"http://a.example\", to = \"http://public.example\" }]\n\
        [[site.route]]\npath = \"/off\"\npool = \"app\"\nlocation = \"off\"\nrewrite = { prefix = \"/v1\" }\n\
        [[site.route]]\npath = \"/own\"\npool = \"app\"\nrewrite = { prefix = \"/v1\" }\n\
        [[site.route]]\npath = \"/\"\npool = \"app\"\nrewrite = { prefix = \"/int\" }\n";
    let shop = Shop::start(&a, lines).await;
    for (target, location) in [
        ("/shop?l=http://api.internal/v1/x?y", "http://shop.example/shop/x?y"),
        // A redirect of the application to HTTPS is not changed to HTTP.
        ("/shop?l=https://API.internal/other", "https://shop.example/other"),
        // The host sent to the backend is the client's own.
        ("/own?l=http://shop.example/v1/x", "http://shop.example/own/x"),
        ("/own?l=https://shop.example/v1/x", "https://shop.example/own/x"),
        ("/own?l=https://shop.example/x", "https://shop.example/x"),
        // The root of the site.
        ("/?l=/int", "/"),
        ("/?l=/int?q", "/?q"),
        ("/?l=/int/x", "/x"),
        ("/?l=/int//evil.example", "/evil.example"),
        ("/?l=/integer", "/integer"),
        ("/shop?l=http://api.internal.evil/", "http://api.internal.evil/"),
        ("/shop?l=/v1", "/shop"),
        ("/shop?l=/v12", "/v12"),
        ("/shop?l=//evil/", "//evil/"),
        ("/pairs?l=http://b/x", "/pairs/x"),
        ("/pairs?l=http://b//evil", "/pairs//evil"),
        ("/pairs?l=http://c/", "http://c/"),
        ("/hosts?l=http://a.example/x", "http://public.example/x"),
        ("/hosts?l=http://a.example?x", "http://public.example?x"),
        ("/hosts?l=http://a.example", "http://public.example"),
        ("/hosts?l=http://a.example.evil/", "http://a.example.evil/"),
        ("/hosts?l=http://a.example:81/", "http://a.example:81/"),
        ("/hosts?l=http://a.example@evil/", "http://a.example@evil/"),
        ("/off?l=/v1/x", "/v1/x"),
    ] {
        let reply = shop.send(&Request::get(target).with("Host", "shop.example")).await;
        assert_eq!(reply.field("location"), Some(location), "{target}");
    }
    let reply = shop.send(&Request::get("/shop").with("Host", "shop.example")).await;
    assert_eq!(reply.field("refresh"), Some("3; url=http://shop.example/shop/later"));
    assert_eq!(
        reply.fields.all("set-cookie"),
        ["a=b; Path=/shop/x; Domain=shop.example; Secure; SameSite=Lax", "c=d; Secure; SameSite=Lax"]
    );
}

#[tokio::test]
async fn cors_answers_allowed_origins() {
    let a = Origin::start("a").await;
    a.answer_with(response(200, &[("Access-Control-Allow-Origin", "*"), ("Vary", "Accept")], "ok"));
    let lines = route(
        "pool = \"app\"\ncors = { origins = [\"https://*.shop.example\"], methods = [\"GET\", \"PUT\"], headers = [\"X-A\"], \
         expose = [\"X-Total\"], credentials = true, max_age = \"10m\" }",
    );
    let shop = Shop::start(&a, &lines).await;
    let preflight = |origin: &str| {
        Request::new("OPTIONS", "/x").with("Origin", origin).with("Access-Control-Request-Method", "PUT")
    };
    let allow = "access-control-allow-origin";
    let reply = shop.both(&preflight("https://a.shop.example")).await;
    assert_eq!((reply.status, reply.field(allow)), (204, Some("https://a.shop.example")));
    for (name, value) in [("methods", "GET, PUT"), ("headers", "X-A"), ("credentials", "true")] {
        assert_eq!(reply.field(&format!("access-control-allow-{name}")), Some(value), "{name}");
    }
    assert_eq!((reply.field("access-control-max-age"), reply.field("vary")), (Some("600"), Some("Origin")));
    let refused = shop.both(&preflight("https://shop.example.evil")).await;
    assert_eq!((refused.status, refused.field(allow)), (204, None));
    assert_eq!(a.heads(), 0, "a preflight is answered here");

    let reply = shop.both(&Request::get("/x").with("Origin", "https://a.shop.example")).await;
    assert_eq!((reply.field(allow), reply.field("vary")), (Some("https://a.shop.example"), Some("Accept, Origin")));
    assert_eq!(reply.field("access-control-expose-headers"), Some("X-Total"));
    for request in [Request::get("/x"), Request::get("/x").with("Origin", "https://evil.example")] {
        let reply = shop.both(&request).await;
        assert_eq!((reply.field(allow), reply.field("vary")), (None, Some("Accept, Origin")));
    }
    // Other OPTIONS go to the backend.
    let before = a.heads();
    shop.send(&Request::new("OPTIONS", "/x")).await;
    assert_eq!(a.heads(), before + 1);
}

#[tokio::test]
async fn preflights_are_answered_with_field_names_only() {
    let a = Origin::start("a").await;
    a.answer_with(response(200, &[], "ok"));
    let lines = route(
        "pool = \"app\"\ncors = { origins = [\"~https://[a-z]+\\\\.shop\\\\.example|null\"], headers = [\"*\"] }",
    );
    let shop = Shop::start(&a, &lines).await;
    let allow = "access-control-allow-origin";
    for (origin, is_allowed) in [
        ("https://a.shop.example", true),
        ("null", true),
        ("https://a.shop.example.evil", false),
        ("http://x?https://a.shop.example", false),
        ("nullx", false),
        ("https://a.shop.examplex|null", false),
    ] {
        let reply = shop.both(&Request::get("/").with("Origin", origin)).await;
        assert_eq!(reply.field(allow).is_some(), is_allowed, "{origin}");
    }
    let preflight = Request::new("OPTIONS", "/")
        .with("Origin", "https://a.shop.example")
        .with("Access-Control-Request-Method", "PUT");
    for (asked, allowed) in [
        (&["x-a"][..], Some("x-a")),
        (&["X-A,  x-b ,"], Some("X-A, x-b")),
        (&["x-a", "x-b"], Some("x-a, x-b")),
        (&["<script>, x-a, a b, \"x\", *"], Some("x-a, *")),
        (&["\u{e4}"], None),
        (&[], None),
    ] {
        let request = asked
            .iter()
            .fold(preflight.clone(), |request, asked| request.with("Access-Control-Request-Headers", asked));
        let reply = shop.send(&request).await;
        assert_eq!((reply.status, reply.field("access-control-allow-headers")), (204, allowed), "{asked:?}");
    }
    // Two origins count as none.
    let reply =
        shop.send(&Request::get("/").with("Origin", "https://a.shop.example").with("Origin", "https://evil")).await;
    assert_eq!((reply.field(allow), reply.field("vary")), (None, Some("Origin")));
    let before = a.heads();
    shop.send(&preflight.clone().with("Origin", "null")).await;
    assert_eq!(a.heads(), before + 1, "it is no preflight");
}

#[tokio::test]
async fn cookie_paths_are_rewritten_by_whole_segments() {
    let a = Origin::start("a").await;
    a.answer(|request| {
        let path = request.target.split_once('=').map_or("", |(_, path)| path);
        vec![Step::Send(response(200, &[("Set-Cookie", &format!("a=b; Path={path}"))], ""))]
    });
    let lines = "[[site.route]]\npath = \"/one\"\npool = \"app\"\ncookies = { path = { \"/app\" = \"/\", \"/b/\" = \"/c/\" } }\n\
        [[site.route]]\npath = \"/root\"\npool = \"app\"\ncookies = { path = { \"/\" = \"/shop\" } }\n";
    let shop = Shop::start(&a, lines).await;
    for (target, path) in [
        ("/one?p=/app", "/"),
        ("/one?p=/app/", "/"),
        ("/one?p=/app/x", "/x"),
        ("/one?p=/appx", "/appx"),
        ("/one?p=/application/x", "/application/x"),
        ("/one?p=/b", "/c/"),
        ("/one?p=/b/x", "/c/x"),
        ("/one?p=/bx", "/bx"),
        ("/root?p=/", "/shop/"),
        ("/root?p=/x", "/shop/x"),
    ] {
        assert_eq!(shop.get(target).await.field("set-cookie"), Some(&*format!("a=b; Path={path}")), "{target}");
    }
}

/// A site that redirects everybody to HTTPS, or is closed, has no backends.
#[tokio::test]
async fn sites_need_no_pool() {
    let text = "[[site]]\nhosts = [\"old.example\"]\nredirect = \"https://new.example$request_uri\"\n\
                [[site]]\nhosts = [\"\"]\nrespond = { status = 503 }\nresponse_headers = { set = { X-Site = \"closed\" } }\n";
    let config = Config::default().sites(text).section("[metrics]\nexact_status = true");
    let mut balancer = Balancer::start(config).await;
    let reply = balancer.send(&Request::get("/x").with("Host", "old.example")).await;
    assert_eq!((reply.status, reply.field("location")), (302, Some("https://new.example/x")));
    assert_eq!(balancer.get("/").await.status, 503);
    // Refused before routing.
    for (head, status) in [
        ("TRACE / HTTP/1.1\r\nHost: a\r\n", 405),
        ("GET / HTTP/1.1\r\nHost: a..b\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: ..\r\n", 400),
    ] {
        let mut wire = balancer.connect().await;
        wire.send(format!("{head}\r\n")).await;
        let reply = wire.reply().await;
        assert_eq!((reply.status, reply.field("x-site")), (status, Some("closed")), "{head}");
        assert_eq!(reply.field("allow").is_some(), status == 405, "{head}");
    }
    for (status, count) in [("302", 1.0), ("503", 1.0), ("405", 1.0), ("400", 2.0)] {
        counts(&balancer, "evenkeel_responses_total", &[("pool", ""), ("status", status)], count).await;
    }
    balancer.configure(&Config::default().sites(&text.replace("503", "403")));
    balancer.change("POST", "/admin/reload", None).await;
    assert_eq!(balancer.get("/").await.status, 403);
    balancer.stop().await;
}

#[tokio::test]
async fn secure_headers_adds_only_missing_fields() {
    let a = Origin::start("a").await;
    a.answer_with(response(200, &[("X-Frame-Options", "DENY")], "ok"));
    let shop = Shop::start(&a, &("preset = \"secure-headers\"\n".to_owned() + &route("pool = \"app\""))).await;
    let reply = shop.both(&Request::get("/")).await;
    assert_eq!(reply.field("x-frame-options"), Some("DENY"));
    assert_eq!(
        (reply.field("x-content-type-options"), reply.field("strict-transport-security")),
        (Some("nosniff"), None)
    );
    let reply = Http2::connect(shop.tls.address()).await.get("/").await;
    assert_eq!(reply.field("strict-transport-security"), Some("max-age=31536000"));
}

#[tokio::test]
async fn a_value_chooses_among_the_declared_pools() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let tls = Port::reserve();
    let config = Shop::config(&a, &tls, &route("pool_from = { value = \"$arg_p\", pools = [\"app\", \"next\"] }"));
    let balancer = Balancer::start(config.pool(Pool::of("next", [&b]))).await;
    assert_eq!(balancer.get("/?p=app").await.origin(), "a");
    assert_eq!(balancer.get("/?p=next").await.origin(), "b");
    let reply = balancer.get("/?p=other").await;
    assert_eq!((reply.status, reply.text().contains("no pool has the name")), (502, true), "{}", reply.text());
    counts(&balancer, "evenkeel_refusals_total", &[("reason", "no-pool")], 1.0).await;
    counts(&balancer, "evenkeel_requests_total", &[("pool", ""), ("code", "5xx")], 1.0).await;
}

#[tokio::test]
async fn a_route_has_limits_of_its_own() {
    let [a, b] = Origin::several(["a", "b"]).await;
    for origin in [&a, &b] {
        origin.answer(|_| vec![Step::Close]);
    }
    let lines = "[[site.route]]\npath = \"/small\"\npool = \"app\"\nmax_body_bytes = 4\n\
        [[site.route]]\npath = \"/once\"\npool = \"app\"\nretries = 0\n\
        [[site.route]]\npath = \"/slow\"\npool = \"app\"\nretries = 0\nresponse_timeout = \"200ms\"\n";
    let tls = Port::reserve();
    let config = Shop::config(&a, &tls, lines).app(|_| Pool::of("app", [&a, &b]).without_ejection());
    let balancer = Balancer::start(config).await;
    assert_eq!(balancer.send(&Request::post("/small", "12345")).await.status, 413);
    assert_eq!(balancer.send(&Request::post("/once", "12345")).await.status, 502);
    assert_eq!(a.heads() + b.heads(), 1, "no other backend is tried");
    for origin in [&a, &b] {
        origin.answer(|_| vec![Step::Hang]);
    }
    assert_eq!(balancer.get("/slow").await.status, 504);
}

/// A reload reads included files again, and files that a site names; problems are reported with their file name.
#[tokio::test]
async fn a_reload_rereads_included_files() {
    let origin = Origin::start("a").await;
    let config = Config::of([&origin]).sites("");
    let mut balancer = Balancer::prepare(&config);
    let site = |page: &str| {
        format!("[[site]]\nhosts = [\"\"]\nerror_pages = {{ \"404\" = {{ file = \"404.html\" }} }}\n{page}")
    };
    fs::create_dir(balancer.file("sites")).expect("made");
    fs::write(balancer.file("sites/404.html"), "first").expect("written");
    fs::write(balancer.file("sites/a.toml"), site("[[site.route]]\npath = \"/a\"\npool = \"app\"\n")).expect("written");
    let text = config.text(balancer.address(), balancer.admin_address());
    balancer.write(&format!("include = [\"sites/*.toml\"]\n{text}"));
    balancer.launch();
    balancer.ready().await;
    assert_eq!(balancer.get("/a").await.status, 200);
    let missing = balancer.get("/b").await;
    assert_eq!((missing.status, missing.text()), (404, "first".to_owned()));

    fs::write(balancer.file("sites/404.html"), "second").expect("written");
    let changes = balancer.change("POST", "/admin/reload", None).await["changes"].clone();
    assert!(changes.to_string().contains("another text in a file"), "{changes}");
    assert_eq!(balancer.get("/b").await.text(), "second");

    fs::write(balancer.file("sites/a.toml"), site("[[site.route]]\npath = \"/b\"\nrespond = { body = \"here\" }\n"))
        .expect("written");
    let changes = balancer.change("POST", "/admin/reload", None).await["changes"].clone();
    assert!(changes.to_string().contains("route /b added"), "{changes}");
    assert_eq!(balancer.get("/b").await.text(), "here");
    assert_eq!(balancer.get("/a").await.status, 404);

    fs::write(balancer.file("sites/b.toml"), "\n[[site]]\nhosts = [\"b\"]\npool = \"none\"\n").expect("written");
    let refused = balancer.admin("POST", "/admin/reload", None).await;
    assert!(!(200..300).contains(&refused.status), "{}", refused.status);
    assert!(refused.text().contains("sites/b.toml:4:8: site.pool is"), "{}", refused.text());
    assert_eq!(balancer.get("/b").await.text(), "here");
}

#[tokio::test]
async fn error_pages_can_send_the_request_to_another_pool() {
    let [a, b] = Origin::several(["a", "b"]).await;
    a.answer(|_| vec![Step::Close]);
    let lines = "[[site.route]]\npath = \"/named\"\npool = \"app\"\nerror_pages = { \"502\" = { path = \"spare\", status = \"page\" } }\n\
        [[site.route]]\nname = \"spare\"\npool = \"next\"\n\
        [[site.route]]\npath = \"/path\"\npool = \"app\"\nerror_pages = { \"502\" = \"/sorry?of=$uri\" }\n\
        [[site.route]]\npath = \"/sorry\"\npool = \"next\"\n\
        [[site.route]]\npath = \"/twice\"\npool = \"app\"\nerror_pages = { \"502\" = \"/broken\" }\n\
        [[site.route]]\npath = \"/broken\"\npool = \"app\"\nerror_pages = { \"502\" = \"/sorry\" }\n\
        [[site.route]]\npath = \"/small\"\npool = \"app\"\nmax_body_bytes = 4\nerror_pages = { \"413\" = \"/sorry\" }\n";
    let tls = Port::reserve();
    let config = Shop::config(&a, &tls, lines).app(Pool::without_ejection).pool(Pool::of("next", [&b]));
    let balancer = Balancer::start(config).await;
    let reply = balancer.send(&Request::post("/named?q=1", "body")).await;
    let seen = b.last_request();
    assert_eq!((reply.status, reply.origin()), (200, "b"));
    assert_eq!((seen.method.as_str(), seen.target.as_str(), &*seen.body), ("POST", "/named?q=1", &b"body"[..]));

    let reply = balancer.send(&Request::post("/path", "body")).await;
    let seen = b.last_request();
    assert_eq!((reply.status, reply.origin()), (502, "b"));
    assert_eq!((seen.method.as_str(), seen.target.as_str(), seen.body.len()), ("GET", "/sorry?of=/path", 0));

    // A page that fails gets no page itself.
    let before = b.heads();
    let reply = balancer.get("/twice").await;
    assert_eq!((reply.status, reply.text().contains("Bad Gateway")), (502, true));
    assert_eq!(b.heads(), before);

    // A body that is too large is not read for the page.
    let mut wire = balancer.connect().await;
    let reply = wire.exchange(&Request::post("/small", "x".repeat(100_000))).await;
    assert_eq!((reply.status, reply.field("x-origin"), reply.field("connection")), (413, Some("b"), Some("close")));
    let seen = b.last_request();
    assert_eq!((seen.method.as_str(), seen.target.as_str(), seen.body.len()), ("GET", "/sorry", 0));
    counts(&balancer, "evenkeel_refusals_total", &[("reason", "body-too-large")], 1.0).await;
}

#[tokio::test]
async fn routes_match_by_conditions_on_the_request() {
    let a = Origin::start("a").await;
    let lines = "[[site.route]]\npath = \"/\"\nmethods = [\"DELETE\"]\nrespond = { status = 405 }\n\
        [[site.route]]\npath = \"/\"\nwhen = { headers = { X-Beta = \"on\" }, cookies = { id = true } }\nrespond = { body = \"beta\" }\n\
        [[site.route]]\npath = \"/\"\nwhen = { values = { \"$tier\" = \"fast\" } }\nrespond = { body = \"$tier\" }\n\
        [[site.route]]\npath = \"/\"\nnetworks = [\"192.0.2.0/24\"]\nrespond = { body = \"office\" }\n\
        [[site.route]]\npath = \"/\"\nrespond = { body = \"else\" }\n";
    let tls = Port::reserve();
    let config = Shop::config(&a, &tls, lines)
        .server("trusted_proxies = [\"127.0.0.1/32\"]")
        .section("[values]\ntier = { from = \"$cookie_tier\", cases = { gold = \"fast\", \"~^vip-\" = \"fast\" }, default = \"slow\" }\n");
    let balancer = Balancer::start(config).await;
    for (request, text) in [
        (Request::get("/"), "else"),
        (Request::get("/").with("X-Beta", "on"), "else"),
        (Request::get("/").with("X-Beta", "on").with("Cookie", "a=b; id=7"), "beta"),
        (Request::get("/").with("Cookie", "tier=vip-1"), "fast"),
        (Request::get("/").with("X-Forwarded-For", "192.0.2.7"), "office"),
        (Request::get("/").with("X-Forwarded-For", "198.51.100.7"), "else"),
    ] {
        assert_eq!(balancer.send(&request).await.text(), text, "{request:?}");
    }
    assert_eq!(balancer.send(&Request::new("DELETE", "/")).await.status, 405);
}

#[tokio::test]
async fn targets_with_bytes_above_ascii_are_accepted_where_configured() {
    let a = Origin::start("a").await;
    let lines = "[[site.route]]\npath = \"/caf\u{e9}\"\npool = \"app\"\nrewrite = { prefix = \"/v1\" }\n\
                 [[site.route]]\npath = \"/jump\"\njump = \"/caf\u{e9}$request_uri\"\n"
        .to_owned()
        + &route("pool = \"app\"\nrequest_headers = { set = { X-Uri = \"$uri\" } }");
    for (rule, status) in [("reject", 400), ("pass", 200)] {
        let tls = Port::reserve();
        let config = Shop::config(&a, &tls, &lines).listener(&format!("non_ascii_targets = \"{rule}\""));
        let balancer = Balancer::start(config).await;
        let mut wire = balancer.connect().await;
        wire.send(b"GET /x\xff?\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(wire.reply().await.status, status, "{rule}");
        if status == 200 {
            for (target, expected) in [
                ("/caf\u{e9}/\u{fc}", "/v1/%C3%BC"),
                ("/caf\u{e9}/a?x=\u{e9}&y=%c3\"|", "/v1/a?x=%C3%A9&y=%c3\"|"),
                ("/jump?x=\u{e9}", "/v1/jump?x=%C3%A9"),
            ] {
                wire.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
                assert_eq!(wire.reply().await.status, 200);
                assert_eq!(a.last_request().target, expected, "{target}");
            }
        }
    }
}
