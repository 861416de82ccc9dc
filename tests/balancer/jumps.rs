//! Jumps and error pages that lead a request to another backend: what is sent along, and which settings apply there.

use std::time::Duration;

use tests::{Balancer, Config, Origin, Pool, Request, Step, eventually, response, within};
use tokio::io::AsyncWriteExt;

/// A site with the routes `lines`. Its pools are `app` with `a`, and `next` with `next`.
fn config<'a>(a: &'a Origin, next: impl IntoIterator<Item = &'a Origin>, lines: &str) -> Config {
    Config::of([a])
        .app(Pool::without_ejection)
        .pool(Pool::of("next", next).without_ejection())
        .sites(&format!("[[site]]\nname = \"shop\"\nhosts = [\"\"]\n{lines}"))
}

#[tokio::test]
async fn a_request_for_an_error_page_announces_no_content_that_it_does_not_send() {
    let [a, b] = Origin::several(["a", "b"]).await;
    a.answer(|_| vec![Step::Send(response(404, &[], ""))]);
    let lines = "[[site.route]]\npath = \"/path\"\npool = \"app\"\nintercept_errors = true\n\
        error_pages = { \"404\" = \"/page\" }\n\
        [[site.route]]\npath = \"/page\"\npool = \"next\"\n";
    let balancer = Balancer::start(config(&a, [&b], lines)).await;
    // More than is kept for a retry, and it looks like a request.
    let content = "GET /evil HTTP/1.1\r\nHost: evil\r\n\r\n".repeat(6000);
    for (method, asked) in [("HEAD", "HEAD"), ("POST", "GET")] {
        for is_chunked in [false, true] {
            let mut request = Request::new(method, "/path").with("Content-Type", "text/x").body(content.as_str());
            if is_chunked {
                request = request.with("Transfer-Encoding", "chunked");
            }
            let mut wire = balancer.connect().await;
            let reply = wire.exchange(&request).await;
            assert_eq!((reply.status, reply.origin()), (404, "b"), "{method} {is_chunked}");
            let seen = b.last_request();
            assert_eq!((seen.method.as_str(), seen.target.as_str()), (asked, "/page"));
            let framing = ["content-length", "transfer-encoding", "content-type"].map(|name| seen.field(name));
            assert_eq!((framing, seen.body.len()), ([None; 3], 0), "{method} {is_chunked}");
            // The next request on the backend's connection is read correctly.
            assert_eq!(wire.exchange(&Request::get("/page?next")).await.status, 200);
            assert_eq!(b.last_request().target, "/page?next");
        }
    }
    assert!(b.connections() < b.heads(), "connections are used again");
}

#[tokio::test]
async fn requests_for_error_pages_are_retried_without_the_original_content() {
    let [a, b, c] = Origin::several(["a", "b", "c"]).await;
    a.answer(|_| vec![Step::Send(response(404, &[], ""))]);
    c.answer(|_| vec![Step::Close]);
    let lines = "[[site.route]]\npath = \"/\"\npool = \"app\"\nintercept_errors = true\n\
        error_pages = { \"404\" = \"/page\" }\n\
        [[site.route]]\npath = \"/page\"\npool = \"next\"\n";
    let balancer = Balancer::start(config(&a, [&b, &c], lines)).await;
    for _ in 0..3 {
        let reply = balancer.send(&Request::post("/", vec![b'x'; 200_000])).await;
        assert_eq!((reply.status, reply.origin()), (404, "b"));
    }
    assert!(c.heads() > 0, "the other one was asked too");
}

#[tokio::test]
async fn retries_after_a_jump_repeat_the_content() {
    let [a, b, c] = Origin::several(["a", "b", "c"]).await;
    c.answer(|_| vec![Step::Close]);
    let lines = "[[site.route]]\npath = \"/\"\njump = \"there\"\n\
        [[site.route]]\nname = \"there\"\npool = \"next\"\n";
    let balancer = Balancer::start(config(&a, [&b, &c], lines)).await;
    for content in ["short".to_owned(), "x".repeat(50_000)] {
        for is_chunked in [false, true, false, true] {
            let mut request = Request::put("/", content.as_str());
            if is_chunked {
                request = request.with("Transfer-Encoding", "chunked");
            }
            let reply = balancer.send(&request).await;
            assert_eq!((reply.status, reply.origin()), (200, "b"), "{} {is_chunked}", content.len());
            assert_eq!(b.last_request().body, content.as_bytes());
        }
    }
    assert!(c.heads() > 0, "the other one was asked too");
}

#[tokio::test]
async fn an_error_page_by_route_name_gets_the_request_whatever_its_size() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let lines = "[[site.route]]\npath = \"/\"\nrespond = { status = 404 }\nerror_pages = { \"404\" = \"spare\" }\n\
        [[site.route]]\nname = \"spare\"\npool = \"next\"\n";
    let balancer = Balancer::start(config(&a, [&b], lines)).await;
    for length in [1, 100, 50_000, 100_000] {
        let reply = balancer.send(&Request::post("/", vec![b'x'; length])).await;
        let seen = b.last_request();
        assert_eq!((reply.status, seen.method.as_str(), seen.body.len()), (404, "POST", length));
    }
}

#[tokio::test]
async fn a_jump_applies_the_limits_of_its_target() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let lines = "[[site.route]]\npath = \"/jump\"\njump = \"small\"\n\
        [[site.route]]\npath = \"/path\"\njump = \"/there\"\n\
        [[site.route]]\npath = \"/there\"\nmax_body_bytes = 10\npool = \"next\"\nerror_pages = { \"413\" = { text = \"no more\" } }\n\
        [[site.route]]\nname = \"small\"\nmax_body_bytes = 10\npool = \"next\"\nerror_pages = { \"413\" = { text = \"no more\" } }\n";
    let balancer = Balancer::start(config(&a, [&b], lines)).await;
    for target in ["/jump", "/path"] {
        for is_chunked in [false, true] {
            for (length, status) in [(10, 200), (11, 413)] {
                let mut request = Request::post(target, vec![b'x'; length]);
                if is_chunked {
                    request = request.with("Transfer-Encoding", "chunked");
                }
                let reply = balancer.send(&request).await;
                assert_eq!(reply.status, status, "{target} {length} {is_chunked}");
                assert!(status == 200 || reply.text() == "no more", "{}", reply.text());
            }
        }
    }
    assert!(b.requests().iter().all(|request| request.body.len() == 10));
}

/// Without its content, a POST would be another request: a GET to the spare pool looked like success.
#[tokio::test]
async fn an_error_page_by_route_name_gets_the_whole_request_or_none() {
    let [a, b] = Origin::several(["a", "b"]).await;
    a.answer(|request| match request.target.as_str() {
        "/breaks" => vec![Step::Close],
        _ => vec![Step::Send(response(404, &[("X-Origin", "a")], "the first one's"))],
    });
    let pages = "error_pages = { \"404\" = { path = \"spare\", status = \"page\" }, \"502\" = { path = \"spare\", status = \"page\" } }";
    let lines = format!(
        "[[site.route]]\npath = \"/\"\npool = \"app\"\nintercept_errors = true\n{pages}\n\
         [[site.route]]\npath = \"/own\"\npool = \"app\"\nintercept_errors = true\n\
         error_pages = {{ \"404\" = \"own\" }}\n\
         [[site.route]]\nname = \"spare\"\njump = \"there\"\n\
         [[site.route]]\nname = \"there\"\npool = \"next\"\n\
         [[site.route]]\nname = \"own\"\nrespond = {{ body = \"$request_method\" }}\n"
    );
    let balancer = Balancer::start(config(&a, [&b], &lines)).await;
    for method in ["POST", "PUT"] {
        for (target, length, is_chunked) in [
            ("/x", 10, false),
            ("/x", 10, true),
            ("/x", 200_000, false),
            ("/x", 200_000, true),
            ("/breaks", 10, false),
            ("/breaks", 200_000, false),
        ] {
            let before = b.heads();
            let mut request = Request::new(method, target).body(vec![b'x'; length]);
            if is_chunked {
                request = request.with("Transfer-Encoding", "chunked");
            }
            let reply = balancer.send(&request).await;
            if length < 1000 {
                assert_eq!((reply.status, reply.origin(), b.heads()), (200, "b", before + 1), "{method} {target}");
                let seen = b.last_request();
                assert_eq!((seen.method.as_str(), seen.body.len()), (method, length), "{method} {target}");
                continue;
            }
            let expected = if target == "/x" { (404, Some("a")) } else { (502, None) };
            assert_eq!((reply.status, reply.field("x-origin")), expected, "{method} {target} {is_chunked}");
            assert_eq!(b.heads(), before, "{method} {target} {is_chunked}");
        }
    }
    // A configured reply fits any request.
    let reply = balancer.send(&Request::post("/own", vec![b'x'; 200_000])).await;
    assert_eq!((reply.status, reply.text().as_str()), (404, "GET"));
}

#[tokio::test]
async fn requests_refused_for_client_errors_reach_error_pages_by_path_only() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let page =
        |page: &str| format!("error_pages = {{ \"400\" = \"{page}\", \"408\" = \"{page}\", \"413\" = \"{page}\" }}");
    let route = |path: &str, to: &str| {
        format!(
            "[[site.route]]\npath = \"/{path}\"\nmax_body_bytes = 4\nbody_timeout = \"100ms\"\npool = \"app\"\n{}\n",
            page(to)
        )
    };
    let lines = route("backend", "spare")
        + &route("own", "own")
        + &route("path", "/sorry")
        + "[[site.route]]\nname = \"spare\"\npool = \"next\"\n\
           [[site.route]]\nname = \"own\"\nrespond = { body = \"$request_method\" }\n\
           [[site.route]]\npath = \"/sorry\"\nmax_body_bytes = 2\npool = \"next\"\n";
    let balancer = Balancer::start(config(&a, [&b], &lines)).await;
    for (rest, status) in [
        ("Content-Length: 9\r\n\r\nmalformed", 413),
        ("Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", 413),
        ("Transfer-Encoding: chunked\r\n\r\nnone\r\n", 400),
        ("Content-Length: 3\r\n\r\na", 408),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\na", 408),
    ] {
        for (path, heads) in [("/backend", 0), ("/own", 0), ("/path", 1)] {
            let before = b.heads();
            let mut wire = balancer.connect().await;
            wire.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\n{rest}")).await;
            let reply = wire.reply().await;
            assert_eq!((reply.status, b.heads()), (status, before + heads), "{path} {rest:?}");
            match path {
                "/own" => assert_eq!(reply.text(), "GET", "{rest:?}"),
                "/path" => {
                    let seen = b.last_request();
                    assert_eq!((seen.method.as_str(), seen.target.as_str(), seen.body.len()), ("GET", "/sorry", 0));
                }
                _ => assert_eq!(reply.field("x-origin"), None, "{rest:?}"),
            }
        }
    }
}

// Each discarded byte of the content restarted the timeout.
#[tokio::test]
async fn content_that_is_dropped_keeps_no_response_waited_for() {
    let a = Origin::start("a").await;
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhere".to_vec();
    for (begun, status) in [(head, 413), (Vec::new(), 504)] {
        a.answer(move |_| vec![Step::Send(begun.clone()), Step::Hang]);
        let lines = "[[site.route]]\npath = \"/\"\nmax_body_bytes = 9\npool = \"app\"\nerror_pages = { \"413\" = \"/page\" }\n\
            [[site.route]]\npath = \"/page\"\npool = \"app\"\n";
        let timeouts = "read_timeout = \"300ms\"\nresponse_timeout = \"300ms\"\nretries = 0";
        let balancer = Balancer::start(config(&a, [], lines).app(|pool| pool.set(timeouts))).await;
        let mut wire = balancer.connect().await;
        let before = a.heads();
        wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nsome").await;
        eventually("the page is asked for", async || a.heads() > before).await;
        let dripping = async {
            while balancer.in_flight().await > 0 && wire.stream.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        within("the limit", dripping).await;
        assert_eq!(wire.reply().await.status, status);
    }
}

/// The page is another answer, but needs the fields required by its status.
#[tokio::test]
async fn an_error_page_keeps_the_fields_that_its_status_needs() {
    let [a, b] = Origin::several(["a", "b"]).await;
    a.answer(|request| {
        let (status, fields): (u16, &[(&str, &str)]) = match request.target.split('/').next_back() {
            Some("401") => {
                (401, &[("WWW-Authenticate", "Basic realm=\"a\""), ("WWW-Authenticate", "Bearer"), ("X-Other", "1")])
            }
            Some("405") => (405, &[("Allow", "GET, HEAD")]),
            Some("413") => (413, &[("Retry-After", "7")]),
            Some("416") => (416, &[("Content-Range", "bytes */9")]),
            Some("429") => (429, &[("Retry-After", "8")]),
            Some("302") => (302, &[("Location", "http://api.internal/there")]),
            _ => (503, &[("Retry-After", "9")]),
        };
        vec![Step::Send(response(status, fields, "the error"))]
    });
    b.answer(|_| vec![Step::Send(response(200, &[("X-Page", "yes")], "page"))]);
    let route = |path: &str, page: &str| {
        format!(
            "[[site.route]]\npath = \"/{path}\"\npool = \"app\"\nintercept_errors = true\n\
                 request_headers = {{ host = \"api.internal\" }}\nerror_pages = {{ \"302-599\" = {page} }}\n"
        )
    };
    let lines = route("path", "\"/page\"")
        + &route("text", "{ text = \"page\" }")
        + &route("other", "{ path = \"/page\", status = 200 }")
        + &route("own", "{ text = \"page\", status = 200 }")
        + "[[site.route]]\npath = \"/page\"\npool = \"next\"\n";
    let balancer = Balancer::start(config(&a, [&b], &lines)).await;
    for (status, name, values) in [
        (401, "www-authenticate", &["Basic realm=\"a\"", "Bearer"][..]),
        (405, "allow", &["GET, HEAD"]),
        (413, "retry-after", &["7"]),
        (416, "content-range", &["bytes */9"]),
        (429, "retry-after", &["8"]),
        (503, "retry-after", &["9"]),
        (302, "location", &["http://shop.example/there"]),
    ] {
        for path in ["path", "text", "other", "own"] {
            let reply = balancer.send(&Request::get(&format!("/{path}/{status}")).with("Host", "shop.example")).await;
            let is_kept = matches!(path, "path" | "text");
            let expected = if is_kept { (status, values) } else { (200, &[][..]) };
            assert_eq!((reply.status, &*reply.fields.all(name)), expected, "{path} {status}");
            assert_eq!((reply.text().as_str(), reply.field("x-other")), ("page", None));
        }
    }
    // An error of our own.
    b.stop().await;
    let lines = "[[site.route]]\npath = \"/\"\npool = \"next\"\nerror_pages = { \"503\" = \"/page\" }\n\
        [[site.route]]\npath = \"/page\"\npool = \"app\"\n";
    let config = Config::of([&a]).pool(Pool::empty("next")).sites(&format!("[[site]]\nhosts = [\"\"]\n{lines}"));
    a.answer(|_| vec![Step::Send(response(200, &[], "page"))]);
    let balancer = Balancer::start(config).await;
    let reply = balancer.get("/").await;
    assert_eq!((reply.status, reply.field("retry-after"), reply.text().as_str()), (503, Some("5"), "page"));
}

/// A page with 204 made an error look like success, and one with 206 like a partial response.
#[tokio::test]
async fn the_status_of_an_error_page_response_does_not_replace_the_error() {
    let [a, b] = Origin::several(["a", "b"]).await;
    a.answer(|request| {
        let path = request.target.split('?').next().unwrap_or_default();
        let status = path.split('/').next_back().and_then(|status| status.parse().ok()).expect("a status");
        vec![Step::Send(response(status, &[("ETag", "\"1\"")], ""))]
    });
    b.answer(|request| {
        let fields: &[(&str, &str)] =
            if request.target.ends_with("206") { &[("Content-Range", "bytes 0-3/9")] } else { &[] };
        match request.target.split('/').next_back() {
            Some("204") => vec![Step::Send(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())],
            Some("304") => vec![Step::Send(b"HTTP/1.1 304 Not Modified\r\n\r\n".to_vec())],
            _ => vec![Step::Send(response(206, fields, "page"))],
        }
    });
    let lines = "[[site.route]]\npath = \"/\"\npool = \"app\"\nintercept_errors = true\n\
        error_pages = { \"300-599\" = \"/page/$arg_p\" }\n\
        [[site.route]]\npath = \"/of-page\"\npool = \"app\"\nintercept_errors = true\n\
        error_pages = { \"404\" = { path = \"/page/$arg_p\", status = \"page\" } }\n\
        [[site.route]]\npath = \"/page\"\npool = \"next\"\n";
    let balancer = Balancer::start(config(&a, [&b], lines)).await;
    let mut wire = balancer.connect().await;
    for (target, status, length, text) in [
        ("/404?p=204", 404, Some("0"), ""),
        ("/404?p=304", 404, Some("0"), ""),
        ("/404?p=206", 404, Some("4"), "page"),
        ("/of-page/404?p=204", 204, None, ""),
        ("/of-page/404?p=206", 206, Some("4"), "page"),
    ] {
        let reply = wire.exchange(&Request::get(target)).await;
        assert_eq!(
            (reply.status, reply.field("content-length"), reply.text().as_str()),
            (status, length, text),
            "{target}"
        );
        assert_eq!(reply.field("content-range").is_some(), status == 206, "{target}");
    }
    let head = wire.exchange(&Request::new("HEAD", "/404?p=204")).await;
    assert_eq!((head.status, head.body.len()), (404, 0));
    // A 304 means that the client's copy is correct: it is not replaced.
    let before = b.heads();
    let reply = wire.exchange(&Request::get("/304?p=200").with("If-None-Match", "\"1\"")).await;
    assert_eq!((reply.status, reply.field("etag"), b.heads()), (304, Some("\"1\""), before));
    assert_eq!(wire.exchange(&Request::get("/404?p=206")).await.status, 404, "the connection stays");
}

#[tokio::test]
async fn clients_cannot_choose_internal_routes() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let lines = "[[site.route]]\npath = \"/any\"\njump = \"$arg_to\"\n\
        [[site.route]]\npath = \"/table\"\njump = \"$of_arg\"\n\
        [[site.route]]\npath = \"/glued\"\njump = \"/in$arg_to\"\n\
        [[site.route]]\npath = \"/below\"\njump = \"/inside/$arg_to\"\n\
        [[site.route]]\npath = \"/cases\"\njump = \"$chosen\"\n\
        [[site.route]]\npath = \"/page\"\nrespond = { status = 404 }\nerror_pages = { \"404\" = \"/exact/$status\" }\n\
        [[site.route]]\npath = \"/inside\"\ninternal = true\npool = \"next\"\n\
        [[site.route]]\nexact = \"/exact/404\"\ninternal = true\npool = \"next\"\n\
        [[site.route]]\nregex = '\\.secret$'\ninternal = true\npool = \"next\"\n\
        [[site.route]]\npath = \"/open\"\npool = \"next\"\n";
    let values = "[values]\nchosen = { from = \"$arg_to\", cases = { a = \"/inside/a\", b = \"/x.secret\" }, default = \"/open\" }\n\
        of_arg = { from = \"$host\", cases = { none = \"/\" }, default = \"$arg_to\" }\n";
    let balancer = Balancer::start(config(&a, [&b], lines).section(values)).await;
    for (target, status) in [
        ("/any?to=/open/x", 200),
        ("/any?to=/inside/x", 404),
        ("/any?to=/inside", 404),
        ("/any?to=/exact/404", 404),
        ("/any?to=/x.secret", 404),
        ("/any?to=/open/../inside/x", 404),
        ("/table?to=/inside/x", 404),
        ("/table?to=/open", 200),
        ("/glued?to=side/x", 404),
        ("/below?to=x", 200),
        ("/below?to=../exact/404", 404),
        ("/below?to=x.secret", 404),
        ("/cases?to=a", 200),
        ("/cases?to=b", 200),
        ("/cases", 200),
        ("/page", 404),
    ] {
        let before = b.heads();
        let reply = balancer.get(target).await;
        assert_eq!(reply.status, status, "{target}");
        assert_eq!(b.heads() > before, status == 200 || target == "/page", "{target}");
    }
}

#[tokio::test]
async fn the_route_of_an_error_page_is_found_by_the_method_of_its_request() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let lines = "[[site.route]]\npath = \"/\"\nrespond = { status = 404 }\nerror_pages = { \"404\" = \"/page/$request_method\" }\n\
        [[site.route]]\npath = \"/page\"\nmethods = [\"GET\"]\npool = \"next\"\n\
        [[site.route]]\npath = \"/page\"\nrespond = { status = 405 }\n";
    let balancer = Balancer::start(config(&a, [&b], lines)).await;
    for content in ["", "content"] {
        let reply = balancer.send(&Request::post("/", content)).await;
        assert_eq!((reply.status, reply.origin()), (404, "b"));
        assert_eq!(b.last_request().target, "/page/POST", "where it leads is said by the method that was asked");
    }
}
