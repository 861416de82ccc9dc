//! Jumps and error pages that lead a request to another backend: what goes along, and what is true of it there.

use tests::{Balancer, Config, Origin, Pool, Request, Step, response};

/// A site whose routes are `lines`. Its pools are `app` of `a`, and `next` of `next`.
fn config<'a>(a: &'a Origin, next: impl IntoIterator<Item = &'a Origin>, lines: &str) -> Config {
    Config::of([a])
        .app(Pool::without_ejection)
        .pool(Pool::of("next", next).without_ejection())
        .sites(&format!("[[site]]\nname = \"shop\"\nhosts = [\"\"]\n{lines}"))
}

#[tokio::test]
async fn content_that_does_not_go_along_is_not_announced_whatever_the_method() {
    let [a, b] = Origin::several(["a", "b"]).await;
    a.answer(|_| vec![Step::Send(response(404, &[], ""))]);
    let lines = "[[site.route]]\npath = \"/path\"\npool = \"app\"\nintercept_errors = true\n\
        error_pages = { \"404\" = \"/page\" }\n\
        [[site.route]]\npath = \"/named\"\npool = \"app\"\nintercept_errors = true\n\
        error_pages = { \"404\" = \"spare\" }\n\
        [[site.route]]\nname = \"spare\"\npool = \"next\"\n\
        [[site.route]]\npath = \"/page\"\npool = \"next\"\n";
    let balancer = Balancer::start(config(&a, [&b], lines)).await;
    // More than is kept to be sent again, and it looks like a request.
    let content = "GET /evil HTTP/1.1\r\nHost: evil\r\n\r\n".repeat(6000);
    for (method, asked) in [("HEAD", "HEAD"), ("POST", "GET")] {
        for (path, target) in [("/path", "/page"), ("/named", "/named")] {
            for is_chunked in [false, true] {
                let mut request = Request::new(method, path).with("Content-Type", "text/x").body(content.as_str());
                if is_chunked {
                    request = request.with("Transfer-Encoding", "chunked");
                }
                let mut wire = balancer.connect().await;
                let reply = wire.exchange(&request).await;
                assert_eq!((reply.status, reply.origin()), (404, "b"), "{method} {path} {is_chunked}");
                let seen = b.last_request();
                assert_eq!((seen.method.as_str(), seen.target.as_str()), (asked, target));
                let framing = ["content-length", "transfer-encoding", "content-type"].map(|name| seen.field(name));
                assert_eq!((framing, seen.body.len()), ([None; 3], 0), "{method} {path} {is_chunked}");
                // The next one on the backend's connection is read as what it is.
                assert_eq!(wire.exchange(&Request::get("/page?next")).await.status, 200);
                assert_eq!(b.last_request().target, "/page?next");
            }
        }
    }
    assert!(b.connections() < b.heads(), "connections are used again");
}

#[tokio::test]
async fn a_page_is_asked_for_again_though_the_content_of_its_request_is_gone() {
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
async fn behind_a_jump_a_request_is_sent_again_with_its_content() {
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
async fn a_page_by_name_is_asked_for_alike_however_long_the_content_is() {
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
async fn a_jump_leads_to_the_limits_of_where_it_leads() {
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

#[tokio::test]
async fn a_named_route_may_be_the_page_for_what_a_client_did_wrong() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let lines = "[[site.route]]\npath = \"/\"\nmax_body_bytes = 4\nbody_timeout = \"100ms\"\npool = \"app\"\n\
        error_pages = { \"400\" = \"sorry\", \"408\" = \"sorry\", \"413\" = \"sorry\" }\n\
        [[site.route]]\nname = \"sorry\"\nmax_body_bytes = 2\npool = \"next\"\n";
    let balancer = Balancer::start(config(&a, [&b], lines)).await;
    for (rest, status) in [
        ("Content-Length: 9\r\n\r\nmalformed", 413),
        ("Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", 413),
        ("Transfer-Encoding: chunked\r\n\r\nnone\r\n", 400),
        ("Content-Length: 3\r\n\r\na", 408),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\na", 408),
    ] {
        let before = b.heads();
        let mut wire = balancer.connect().await;
        wire.send(format!("POST /x HTTP/1.1\r\nHost: a\r\n{rest}")).await;
        let reply = wire.reply().await;
        assert_eq!((reply.status, reply.field("x-origin"), b.heads()), (status, Some("b"), before + 1), "{rest:?}");
        let seen = b.last_request();
        assert_eq!((seen.method.as_str(), seen.target.as_str(), seen.body.len()), ("GET", "/x", 0), "{rest:?}");
    }
}

#[tokio::test]
async fn the_route_of_a_page_is_looked_up_by_the_method_that_asks_for_it() {
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
