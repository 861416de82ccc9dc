//! A cookie leads a client back to its backend, with every algorithm, as long as that backend takes traffic.

use serde_json::json;
use tests::balancer::backend_path;
use tests::{Balancer, Config, Health, Origin, Pool, Request, Step, eventually, response};

const ALGORITHMS: [&str; 4] = ["round-robin", "weighted", "least-connections", "ip-hash"];

fn config<'a>(origins: impl IntoIterator<Item = &'a Origin>) -> Config {
    Config::of(origins).app(|pool| pool.quick_probe().sticky("cookie = \"ROUTEID\""))
}

#[tokio::test]
async fn a_client_returns_to_its_backend_with_every_algorithm() {
    let origins = Origin::several(["a", "b", "c"]).await;
    let balancer = Balancer::start(config(&origins)).await;
    let (cookie, origin) = first_visit(&balancer).await;
    for algorithm in ALGORITHMS {
        balancer.switch_algorithm(algorithm).await;
        for _ in 0..10 {
            let (answered, renewed) = visit(&balancer, &cookie).await;
            assert_eq!((answered.as_str(), renewed), (origin.as_str(), None), "{algorithm}");
        }
    }
}

#[tokio::test]
async fn clients_without_the_cookie_are_balanced() {
    let origins = Origin::several(["a", "b", "c"]).await;
    let balancer = Balancer::start(config(&origins)).await;
    assert_eq!(balancer.origins_of(6).await.concat(), "abcabc");
}

#[tokio::test]
async fn the_cookie_is_opaque_and_http_only() {
    let origins = Origin::several(["a"]).await;
    let balancer = Balancer::start(config(&origins)).await;
    let cookie = balancer.get("/").await.set_cookie("ROUTEID").expect("a cookie");
    let mut attributes: Vec<_> = cookie.split("; ").map(str::to_ascii_lowercase).collect();
    let value = attributes.remove(0);
    attributes.sort();
    assert_eq!(attributes, ["httponly", "path=/", "samesite=lax"], "{cookie}");
    let port = origins[0].address().port().to_string();
    assert!(value.len() >= 16 && !value.contains(&port) && !value.contains("127"), "{cookie}");
}

#[tokio::test]
async fn the_cookie_has_the_configured_attributes() {
    let origins = Origin::several(["a"]).await;
    let keys = "cookie = \"lb\"\nmax_age = \"1h\"\nsame_site = \"strict\"\nsecure = \"always\"";
    let balancer = Balancer::start(Config::of(&origins).app(|pool| pool.sticky(keys))).await;
    let cookie = balancer.get("/").await.set_cookie("lb").expect("a cookie").to_ascii_lowercase();
    for attribute in ["; max-age=3600", "; samesite=strict", "; secure", "; httponly"] {
        assert!(cookie.contains(attribute), "{attribute} in {cookie}");
    }
}

#[tokio::test]
async fn a_forged_cookie_is_ignored_and_replaced() {
    let origins = Origin::several(["a", "b", "c"]).await;
    let balancer = Balancer::start(config(&origins)).await;
    let (cookie, _) = first_visit(&balancer).await;
    let mut flipped = cookie.clone().into_bytes();
    flipped[3] ^= 1;
    let flipped = String::from_utf8(flipped).expect("text");
    let address = origins[1].address().to_string();
    for forged in [flipped.as_str(), "", "b", "1", &address, &cookie[..cookie.len() - 1], &format!("{cookie}x"), "%00"]
    {
        let mut answered = Vec::new();
        for _ in 0..3 {
            let (origin, renewed) = visit(&balancer, forged).await;
            assert!(renewed.is_some_and(|renewed| renewed != forged), "{forged:?} is renewed");
            answered.push(origin);
        }
        answered.sort();
        assert_eq!(answered.concat(), "abc", "{forged:?} is ignored");
    }
}

#[tokio::test]
async fn a_client_moves_when_its_backend_takes_no_traffic() {
    let origins = Origin::several(["a", "b", "c"]).await;
    let balancer = Balancer::start(config(&origins)).await;
    let (cookie, name) = first_visit(&balancer).await;
    let home = origins.iter().find(|origin| origin.name() == name).expect("an origin");

    home.set_health(Health::Status(503));
    balancer.sees(home, "unhealthy").await;
    assert_moves(&balancer, &cookie, &name).await;
    home.set_health(Health::Status(200));
    balancer.sees(home, "healthy").await;

    balancer.patch(home, json!({ "state": "draining" })).await;
    assert_moves(&balancer, &cookie, &name).await;
    balancer.patch(home, json!({ "state": "down" })).await;
    assert_moves(&balancer, &cookie, &name).await;

    balancer.patch(home, json!({ "state": "active" })).await;
    balancer.sees(home, "healthy").await;
    assert_eq!(visit(&balancer, &cookie).await, (name, None), "a client that kept the old cookie is home again");
}

#[tokio::test]
async fn a_client_moves_when_its_backend_is_ejected() {
    let origins = Origin::several(["a", "b", "c"]).await;
    let rules = "consecutive_failures = 2\nbase_time = \"300s\"\nstatuses = [503]";
    let config = Config::of(&origins).app(|pool| pool.sticky("cookie = \"ROUTEID\"").ejection(rules));
    let balancer = Balancer::start(config).await;
    let (cookie, name) = first_visit(&balancer).await;
    let home = origins.iter().find(|origin| origin.name() == name).expect("an origin");
    home.answer_with(response(503, &[], ""));
    for _ in 0..2 {
        let request = Request::get("/").with("Cookie", &format!("ROUTEID={cookie}"));
        assert_eq!(balancer.send(&request).await.status, 503);
    }
    balancer.sees(home, "ejected").await;
    assert_moves(&balancer, &cookie, &name).await;
}

#[tokio::test]
async fn a_client_moves_within_one_request_when_its_backend_is_down() {
    let origins = Origin::several(["a", "b", "c"]).await;
    let config = Config::of(&origins).app(|pool| pool.sticky("cookie = \"ROUTEID\"").without_ejection());
    let balancer = Balancer::start(config).await;
    let (cookie, name) = first_visit(&balancer).await;
    let home = origins.iter().find(|origin| origin.name() == name).expect("an origin");
    home.stop().await;
    assert_moves(&balancer, &cookie, &name).await;
    home.restart();
    home.at_head(|_| vec![Step::Reset]);
    assert_moves(&balancer, &cookie, &name).await;
}

// The cookie's backend was remembered by position, which may be another backend's after a change.
#[tokio::test]
async fn a_backend_inserted_before_the_choice_changes_no_clients_backend() {
    let origins = Origin::several(["a", "b", "c"]).await;
    // Without probes: a machine that is busy enough would fail those of the cookie's backend.
    let pool = |pool: Pool| pool.sticky("cookie = \"ROUTEID\"");
    let balancer = Balancer::start(Config::of(&origins).app(pool)).await;
    let (cookie, name) = first_visit(&balancer).await;
    let new = Origin::start("new").await;
    let mut wire = balancer.connect().await;
    let head = format!("POST / HTTP/1.1\r\nHost: x\r\nCookie: ROUTEID={cookie}\r\nContent-Length: 4\r\n\r\nbo");
    wire.send(head).await;
    // The exchange begins with its head, which is not visible from outside.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    balancer.configure(&Config::of(std::iter::once(&new).chain(&origins)).app(pool));
    balancer.change("POST", "/admin/reload", None).await;
    balancer.sees(&new, "healthy").await;
    wire.send("dy").await;
    let reply = wire.reply().await;
    assert_eq!((reply.origin(), reply.set_cookie("ROUTEID")), (name.as_str(), None));
}

#[tokio::test]
async fn the_cookie_outlives_restarts_and_reloads() {
    let origins = Origin::several(["a", "b", "c"]).await;
    // Without probes: beside a busy loop the first one after a start may take too long, and the backend is unhealthy
    // then.
    let config = Config::of(&origins).app(|pool| pool.sticky("cookie = \"ROUTEID\""));
    let mut balancer = Balancer::start(config).await;
    let (cookie, name) = first_visit(&balancer).await;
    balancer.change("POST", "/admin/reload", None).await;
    assert_eq!(visit(&balancer, &cookie).await, (name.clone(), None), "after a reload");
    balancer.stop().await;
    balancer.start_again().await;
    assert_eq!(visit(&balancer, &cookie).await, (name.clone(), None), "after a restart");
    balancer.kill().await;
    balancer.start_again().await;
    assert_eq!(visit(&balancer, &cookie).await, (name, None), "after a kill");
}

#[tokio::test]
async fn balancers_that_share_a_secret_share_the_cookie() {
    let origins = Origin::several(["a", "b", "c"]).await;
    let mut balancers = Vec::new();
    for secret in ["a secret to share", "a secret to share", "another secret altogether"] {
        let keys = "cookie = \"ROUTEID\"\nsecret_file = \"secret\"";
        let mut balancer = Balancer::prepare(&Config::of(&origins).app(|pool| pool.sticky(keys)));
        std::fs::write(balancer.file("secret"), secret).expect("a writable directory");
        balancer.launch();
        balancer.ready().await;
        balancers.push(balancer);
    }
    let (cookie, name) = first_visit(&balancers[0]).await;
    for _ in 0..3 {
        assert_eq!(visit(&balancers[1], &cookie).await, (name.clone(), None));
    }
    assert!(visit(&balancers[2], &cookie).await.1.is_some(), "another secret, another cookie");
}

#[tokio::test]
async fn pools_ignore_each_others_cookies() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let pool = |name| Pool::of(name, [&a, &b]).sticky("cookie = \"ROUTEID\"");
    let config = Config::default().pool(pool("one")).pool(pool("two")).route("", "/", "one").route("", "/two", "two");
    let balancer = Balancer::start(config).await;
    let (cookie, _) = first_visit(&balancer).await;
    let request = Request::get("/two").with("Cookie", &format!("ROUTEID={cookie}"));
    assert!(balancer.send(&request).await.set_cookie("ROUTEID").is_some());
}

/// The cookie that a new client gets, and the origin that answered.
async fn first_visit(balancer: &Balancer) -> (String, String) {
    let reply = balancer.get("/").await;
    let cookie = reply.set_cookie("ROUTEID").unwrap_or_else(|| panic!("no cookie: {:?}", reply.fields));
    (value(&cookie), reply.origin().to_owned())
}

/// The origin that answers a client with this cookie, and the new cookie if it gets one.
async fn visit(balancer: &Balancer, cookie: &str) -> (String, Option<String>) {
    let field = format!("theme=dark; ROUTEID={cookie}; ROUTEIDX=no");
    let reply = balancer.send(&Request::get("/").with("Cookie", &field)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    (reply.origin().to_owned(), reply.set_cookie("ROUTEID").map(|cookie| value(&cookie)))
}

async fn assert_moves(balancer: &Balancer, cookie: &str, from: &str) {
    let (to, renewed) = visit(balancer, cookie).await;
    assert_ne!(to, from);
    let renewed = renewed.expect("a new cookie");
    assert_ne!(renewed, cookie);
    assert_eq!(visit(balancer, &renewed).await, (to, None), "the new cookie holds");
}

fn value(cookie: &str) -> String {
    cookie.split(';').next().expect("a value").to_owned()
}

#[tokio::test]
async fn draining_backends_keep_their_clients_for_the_grace_and_down_backends_do_not() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let config = |grace: &str| Config::of([&a, &b]).app(|pool| pool.sticky(&format!("grace = \"{grace}\"")));
    let balancer = Balancer::start(config("1h")).await;
    let cookie = cookie_of(&balancer, "a").await;
    let visit = async || balancer.send(&Request::get("/").with("Cookie", &cookie)).await.origin().to_owned();
    balancer.patch(&a, json!({ "state": "draining" })).await;
    for _ in 0..5 {
        assert_eq!(visit().await, "a", "it knows the cookie");
    }
    assert_eq!(balancer.origins_of(6).await.concat(), "bbbbbb", "nothing new");
    balancer.patch(&a, json!({ "state": "down" })).await;
    assert_eq!(visit().await, "b");

    balancer.patch(&a, json!({ "state": "active" })).await;
    assert_eq!(visit().await, "a");
    balancer.configure(&config("10ms"));
    balancer.change("POST", "/admin/reload", None).await;
    balancer.patch(&a, json!({ "state": "draining" })).await;
    eventually("the grace is over", async || visit().await == "b").await;
}

#[tokio::test]
async fn the_grace_applies_only_to_healthy_backends_that_stay_in_the_pool() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let config = Config::of([&a, &b]).app(|pool| pool.quick_probe().sticky("grace = \"1h\""));
    let balancer = Balancer::start(config).await;
    let cookie = cookie_of(&balancer, "a").await;
    let visit = async || balancer.send(&Request::get("/").with("Cookie", &cookie)).await.origin().to_owned();
    let mut held = balancer.connect().await;
    held.send(Request::get("/hold").with("Cookie", &cookie).to_bytes()).await;
    eventually("it is in flight", async || balancer.in_flight().await == 1).await;
    let draining = json!({ "state": "draining" });
    let dry_run = format!("{}?dry_run=true", backend_path(&a));
    let effects = balancer.change("PATCH", &dry_run, Some(draining.clone())).await["effects"].to_string();
    assert!(effects.contains("takes only its sticky clients for 3600s, then nothing new"), "{effects}");
    balancer.patch(&a, draining).await;
    assert_eq!(visit().await, "a");
    a.set_health(Health::Status(503));
    eventually("it is unhealthy", async || visit().await == "b").await;
    a.set_health(Health::Status(200));
    eventually("it is well again", async || visit().await == "a").await;
    balancer.change("DELETE", &backend_path(&a), None).await;
    assert_eq!(balancer.backend(&a).await["state"], "removing");
    assert_eq!(visit().await, "b");
    a.release();
    assert_eq!(held.reply().await.origin(), "a");
}

/// The cookie for this origin, in the form in which browsers send it.
async fn cookie_of(balancer: &Balancer, origin: &str) -> String {
    loop {
        let reply = balancer.get("/").await;
        if reply.origin() == origin {
            return reply.field("set-cookie").map(value).expect("a cookie");
        }
    }
}
