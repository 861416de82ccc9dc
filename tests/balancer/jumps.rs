//! Jumps and error pages that lead a request to another backend: what goes along, and what is true of it there.

use tests::{Balancer, Config, Origin, Pool, Request, Step, response};

/// A site whose routes are `lines`. Its pools are `app` of `a`, and `next` of `next`.
fn config<'a>(a: &'a Origin, next: impl IntoIterator<Item = &'a Origin>, lines: &str) -> Config {
    Config::of([a])
        .app(Pool::without_ejection)
        .pool(Pool::of("next", next))
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
