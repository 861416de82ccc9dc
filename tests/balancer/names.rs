//! A backend with a host name has all current addresses of that name in DNS. Names that do not resolve, or resolve
//! anew, do not affect others.

use serde_json::{Value, json};
use tests::dns::DnsBehaviour;
use tests::{Balancer, Config, Dns, Health, Origin, Pool, Port, Request, Step, eventually};

/// Origins `a`, `b`, … at these addresses, all with the same port.
fn origins<const N: usize>(ips: [&str; N]) -> [Origin; N] {
    let mut names = ["a", "b", "c", "d"].into_iter();
    Port::reserve_at(ips).map(|port| Origin::at(names.next().expect("as many as names"), port))
}

fn backend(name: &str, origin: &Origin) -> String {
    format!("{name}:{}", origin.address().port())
}

/// One pool `app` with a name whose addresses have the origins' port.
fn config(dns: &Dns, origin: &Origin) -> Config {
    Config::default().pool(Pool::empty("app").backend(&backend("web.test", origin), "")).dns(dns)
}

async fn view(balancer: &Balancer, name: &str) -> Value {
    let pool = balancer.pool().await;
    let mut backends = pool["backends"].as_array().into_iter().flatten();
    backends
        .find(|backend| backend["address"].as_str().is_some_and(|a| a.starts_with(name)))
        .cloned()
        .expect("a backend")
}

/// The addresses of a backend.
async fn addresses(balancer: &Balancer, name: &str) -> Vec<String> {
    let view = view(balancer, name).await;
    let endpoints = view["endpoints"].as_array().into_iter().flatten();
    endpoints.filter_map(|endpoint| endpoint["address"].as_str()).map(str::to_owned).collect()
}

async fn leads_to(balancer: &Balancer, name: &str, origins: &[&Origin]) {
    let mut wanted: Vec<_> = origins.iter().map(|origin| origin.address()).collect();
    wanted.sort_unstable();
    let wanted: Vec<_> = wanted.iter().map(ToString::to_string).collect();
    eventually(&format!("{name} leads to {wanted:?}"), async || addresses(balancer, name).await == wanted).await;
}

fn count(origins: &[String], name: &str) -> usize {
    origins.iter().filter(|origin| *origin == name).count()
}

// It was 502 for ever if nothing listened at the first address; nginx answers 200.
#[tokio::test]
async fn a_name_is_served_by_whichever_address_listens() {
    let [refusing, listening] = Port::reserve_at(["::1", "127.0.0.1"]);
    let origin = Origin::at("a", listening);
    let dns = Dns::start().await;
    dns.set("web.test", ["::1", "127.0.0.1"]);
    let balancer = Balancer::start(config(&dns, &origin)).await;
    eventually("both addresses are known", async || addresses(&balancer, "web.test").await.len() == 2).await;
    assert_eq!(count(&balancer.origins_of(30).await, "a"), 30);
    eventually("the other address is put aside", async || {
        balancer.get("/").await;
        let view = view(&balancer, "web.test").await;
        let statuses = ["healthy", "ejected"];
        (0..2).all(|place| view["endpoints"][place]["status"] == statuses[place]) && view["status"] == "healthy"
    })
    .await;
    drop(refusing);
}

// All traffic went to one of them.
#[tokio::test]
async fn every_address_of_a_name_gets_a_share_and_is_probed() {
    let [a, b] = origins(["127.0.0.1", "127.0.0.2"]);
    let dns = Dns::start().await;
    dns.set("web.test", ["127.0.0.2", "127.0.0.1"]);
    let balancer = Balancer::start(config(&dns, &a).app(Pool::quick_probe)).await;
    leads_to(&balancer, "web.test", &[&a, &b]).await;
    for algorithm in ["weighted", "round-robin", "least-connections", "ip-hash"] {
        balancer.switch_algorithm(algorithm).await;
        let answered = balancer.origins_of(20).await;
        assert_eq!((count(&answered, "a"), count(&answered, "b")), (10, 10), "{algorithm}");
    }
    b.set_health(Health::Status(503));
    eventually("the sick one is seen", async || {
        view(&balancer, "web.test").await["endpoints"][1]["status"] == "unhealthy"
    })
    .await;
    assert_eq!(count(&balancer.origins_of(20).await, "a"), 20);
    let view = view(&balancer, "web.test").await;
    assert_eq!(
        (&view["status"], &view["endpoints"][1]["last_probe"]["error"]),
        (&json!("healthy"), &json!("status 503"))
    );
    let metrics = balancer.metrics().await;
    assert_eq!(metrics.sum("evenkeel_backend_endpoints", &[]), 2.0);
    assert_eq!(metrics.sum("evenkeel_backend_endpoints_usable", &[]), 1.0);
    assert_eq!(
        metrics.sum("evenkeel_backend_attempts_total", &[]),
        100.0,
        "a series for the name, not for each address"
    );
}

// Names were resolved one after the other, and one without an answer delayed all others for ten seconds each time.
#[tokio::test]
async fn a_name_without_a_dns_answer_delays_neither_others_nor_the_start() {
    let [a, b] = origins(["127.0.0.1", "127.0.0.2"]);
    let dns = Dns::start().await;
    dns.set("web.test", ["127.0.0.1"]);
    for name in ["dead.test", "sick.test"] {
        dns.set_behaviour(name, if name == "sick.test" { DnsBehaviour::Fails } else { DnsBehaviour::Silent });
    }
    let pool = ["dead.test", "sick.test", "missing.test", "web.test"]
        .into_iter()
        .fold(Pool::empty("app"), |pool, name| pool.backend(&backend(name, &a), ""));
    // Without our own timeout: no query for the dead one ends during this test.
    let resolver = format!(
        "resolver = {{ servers = [\"{}\"], timeout = \"30s\", max_ttl = \"50ms\", min_ttl = \"20ms\" }}",
        dns.address()
    );
    let balancer = Balancer::start(Config::default().pool(pool).server(&resolver)).await;
    eventually("the others have been asked for", async || {
        view(&balancer, "missing.test").await["resolution"]["error"] != Value::Null
            && view(&balancer, "sick.test").await["resolution"]["error"] != Value::Null
    })
    .await;
    assert_eq!(count(&balancer.origins_of(20).await, "a"), 20, "nothing goes where nothing listens");
    dns.set("web.test", ["127.0.0.2"]);
    leads_to(&balancer, "web.test", &[&b]).await;
    assert_eq!(count(&balancer.origins_of(20).await, "b"), 20);
    assert_eq!(view(&balancer, "dead.test").await["resolution"], Value::Null, "its first question has no end yet");
    balancer.logs(&["missing.test", "does not exist", "sick.test", "nothing can be sent there"]).await;
    // It does not prevent a reload.
    let reloaded = balancer.change("POST", "/admin/reload", None).await;
    assert_eq!(reloaded["changes"], json!([]));
}

#[tokio::test]
async fn the_last_addresses_are_used_while_dns_fails() {
    let [a] = origins(["127.0.0.1"]);
    let dns = Dns::start().await;
    dns.set("web.test", ["127.0.0.1"]);
    let balancer = Balancer::start(config(&dns, &a)).await;
    leads_to(&balancer, "web.test", &[&a]).await;
    let failures = async || {
        let labels = [("backend", &*backend("web.test", &a)), ("result", "failure")];
        balancer.metrics().await.sum("evenkeel_backend_resolutions_total", &labels)
    };
    assert_eq!(failures().await, 0.0);
    for behaviour in [DnsBehaviour::Fails, DnsBehaviour::Silent] {
        dns.set_behaviour("web.test", behaviour);
        let before = failures().await;
        eventually("DNS has failed several times", async || failures().await >= before + 3.0).await;
        assert_eq!(balancer.get("/").await.origin(), "a", "{behaviour:?}");
        assert_ne!(view(&balancer, "web.test").await["resolution"]["error"], Value::Null);
    }
    assert_eq!(balancer.log().matches("its last addresses are used on").count(), 1, "{}", balancer.log());
    dns.set_behaviour("web.test", DnsBehaviour::Answers);
    eventually("DNS answers", async || view(&balancer, "web.test").await["resolution"]["error"] == Value::Null).await;
    balancer.logs(&["is resolved again"]).await;
}

// While a backend was down its name was forgotten, and if DNS then failed, it had no address.
#[tokio::test]
async fn the_last_addresses_are_used_after_an_operator_took_the_backend_down_and_back() {
    let [a] = origins(["127.0.0.1"]);
    let dns = Dns::start().await;
    dns.set("web.test", ["127.0.0.1"]);
    let balancer = Balancer::start(config(&dns, &a)).await;
    leads_to(&balancer, "web.test", &[&a]).await;
    let path = format!("/admin/pools/app/backends/{}?force=true", backend("web.test", &a));
    balancer.change("PATCH", &path, Some(json!({ "state": "down" }))).await;
    dns.set_behaviour("web.test", DnsBehaviour::Fails);
    let asked = dns.asked("web.test");
    balancer.change("PATCH", &path, Some(json!({ "state": "active" }))).await;
    eventually("DNS has failed", async || {
        dns.asked("web.test") > asked && view(&balancer, "web.test").await["resolution"]["error"] != Value::Null
    })
    .await;
    leads_to(&balancer, "web.test", &[&a]).await;
    assert_eq!(balancer.get("/").await.origin(), "a");
}

#[tokio::test]
async fn addresses_of_a_name_that_no_longer_exists_are_kept_for_a_while() {
    let [a] = origins(["127.0.0.1"]);
    let dns = Dns::start().await;
    dns.set("web.test", ["127.0.0.1"]);
    let config = |hold: &str| {
        Config::default()
            .pool(Pool::empty("app").backend(&backend("web.test", &a), ""))
            .resolver(&dns, &format!(", hold = \"{hold}\""))
    };
    let balancer = Balancer::start(config("1h")).await;
    leads_to(&balancer, "web.test", &[&a]).await;
    dns.remove("web.test");
    let asked = dns.asked("web.test");
    eventually("DNS has said so several times", async || dns.asked("web.test") > asked + 3).await;
    assert_eq!(balancer.get("/").await.origin(), "a");
    // A reload applies another rule.
    balancer.configure(&config("0s"));
    balancer.change("POST", "/admin/reload", None).await;
    eventually("nothing is sent there", async || balancer.get("/").await.status == 502).await;
    assert_eq!(addresses(&balancer, "web.test").await, Vec::<String>::new());
    balancer.logs(&["has no address any more"]).await;
    dns.set("web.test", ["127.0.0.1"]);
    eventually("it is back", async || balancer.get("/").await.status == 200).await;
}

#[tokio::test]
async fn a_name_with_new_addresses_ends_no_exchange_and_moves_no_other_client() {
    let [a, b, c] = origins(["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
    let dns = Dns::start().await;
    dns.set("web.test", ["127.0.0.1"]);
    let config = config(&dns, &a).app(|pool| pool.backend(&c.address().to_string(), "").sticky("cookie = \"ROUTEID\""));
    let balancer = Balancer::start(config).await;
    leads_to(&balancer, "web.test", &[&a]).await;
    // One client of each.
    let mut cookies = Vec::new();
    for _ in 0..2 {
        let reply = balancer.get("/").await;
        let cookie = reply.set_cookie("ROUTEID").expect("a cookie");
        cookies.push((reply.origin().to_owned(), format!("ROUTEID={}", cookie.split(';').next().expect("a value"))));
    }
    cookies.sort();
    assert_eq!([&*cookies[0].0, &*cookies[1].0], ["a", "c"]);
    let series = async || {
        let metrics = balancer.metrics().await;
        metrics.names().filter(|name| name.starts_with("evenkeel_backend")).count()
    };
    let before = series().await;
    let held = async {
        let mut wire = balancer.connect().await;
        wire.exchange(&Request::get("/hold").with("Cookie", &cookies[0].1)).await
    };
    let moving = async {
        eventually("it is in flight", async || a.heads() == 2).await;
        dns.set("web.test", ["127.0.0.2"]);
        leads_to(&balancer, "web.test", &[&b]).await;
        assert_eq!(view(&balancer, "web.test").await["in_flight"], 1, "it goes on where it is");
        for (cookie, origin) in [(&cookies[0].1, "b"), (&cookies[1].1, "c")] {
            for _ in 0..5 {
                let reply = balancer.send(&Request::get("/").with("Cookie", cookie)).await;
                assert_eq!((reply.origin(), reply.set_cookie("ROUTEID")), (origin, None));
            }
        }
        eventually("idle connections to the old address are closed", async || a.open_connections() == 1).await;
        a.release();
    };
    let (held, ()) = tokio::join!(held, moving);
    assert_eq!((held.status, held.origin()), (200, "a"));
    assert_eq!(a.heads(), 2, "nothing new came");
    assert_eq!(series().await, before);
    balancer.until_idle().await;
    assert_eq!(a.abandoned(), 0);
}

#[tokio::test]
async fn a_retry_may_go_to_another_address_of_the_same_name() {
    let [a, b] = origins(["127.0.0.1", "127.0.0.2"]);
    let dns = Dns::start().await;
    dns.set("web.test", ["127.0.0.1", "127.0.0.2"]);
    let balancer = Balancer::start(config(&dns, &a).app(Pool::without_ejection)).await;
    leads_to(&balancer, "web.test", &[&a, &b]).await;
    a.answer(|_| vec![Step::Reset]);
    for _ in 0..6 {
        assert_eq!(balancer.get("/").await.origin(), "b");
    }
    assert!((1..=6).contains(&a.heads()), "{}", a.heads());
    b.answer(|_| vec![Step::Reset]);
    let before = (a.heads(), b.heads());
    assert_eq!(balancer.get("/").await.status, 502);
    // A kept connection may have been closed: that does not count as an attempt.
    let tried = (a.heads() - before.0, b.heads() - before.1);
    assert!(tried.0 == 1 && (1..=2).contains(&tried.1), "each is tried once: {tried:?}");
}

#[tokio::test]
async fn addresses_share_the_weight_of_the_backend_or_each_have_it_whole() {
    let [a, b, c] = origins(["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
    let dns = Dns::start().await;
    dns.set("web.test", ["127.0.0.1", "127.0.0.2"]);
    for (addresses, expected) in [("share", [10, 10, 20]), ("each", [15, 15, 15])] {
        let config = config(&dns, &a)
            .app(|pool| pool.backend(&c.address().to_string(), "").set(&format!("addresses = \"{addresses}\"")));
        let balancer = Balancer::start(config).await;
        leads_to(&balancer, "web.test", &[&a, &b]).await;
        let requests = expected.iter().sum();
        let answered = balancer.origins_of(requests).await;
        assert_eq!(["a", "b", "c"].map(|name| count(&answered, name)), expected, "{addresses}");
    }
}

#[tokio::test]
async fn dns_answers_are_used_for_their_ttl_within_limits() {
    let [a] = origins(["127.0.0.1"]);
    let dns = Dns::start().await;
    let names = ["long.test", "short.test"];
    names.iter().for_each(|name| dns.set(name, ["127.0.0.1"]));
    dns.set_ttl("long.test", 86_400);
    let pool = names.into_iter().fold(Pool::empty("app"), |pool, name| pool.backend(&backend(name, &a), ""));
    let resolver = |max: &str| {
        format!("resolver = {{ servers = [\"{}\"], min_ttl = \"20ms\", max_ttl = \"{max}\" }}", dns.address())
    };
    let config = |max: &str| Config::default().pool(pool.clone()).server(&resolver(max));
    let balancer = Balancer::start(config("1h")).await;
    let again = async |name: &str, more: usize| {
        let before = dns.asked(name);
        eventually(&format!("{name} is asked for again"), async || dns.asked(name) >= before + more).await;
    };
    again("short.test", 10).await;
    assert_eq!(dns.asked("long.test"), 1);
    balancer.configure(&config("50ms"));
    balancer.change("POST", "/admin/reload", None).await;
    again("long.test", 3).await;
}

#[tokio::test]
async fn truncated_dns_answers_are_repeated_over_tcp_and_broken_ipv6_answers_are_harmless() {
    let [a] = origins(["127.0.0.1"]);
    let dns = Dns::start().await;
    dns.set("web.test", ["127.0.0.1"]);
    dns.set_behaviour("web.test", DnsBehaviour::Truncates);
    let balancer = Balancer::start(config(&dns, &a)).await;
    leads_to(&balancer, "web.test", &[&a]).await;
    assert!(dns.asked_by_tcp() > 0);
    dns.set_behaviour("web.test", DnsBehaviour::FailsForIpv6);
    let asked = dns.asked("web.test");
    eventually("it is asked for again", async || dns.asked("web.test") > asked + 3).await;
    assert_eq!(view(&balancer, "web.test").await["resolution"]["error"], Value::Null);
    assert_eq!(balancer.get("/").await.origin(), "a");
}

// Weights were ignored, and hosts of other priorities never used.
#[tokio::test]
async fn srv_records_give_hosts_ports_priorities_and_weights() {
    let [a, b, c] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"].map(|ip| Port::reserve_at([ip]));
    let [a, b, c] = [("a", a), ("b", b), ("c", c)].map(|(name, [port])| Origin::at(name, port));
    let dns = Dns::start().await;
    dns.set("one.test", ["127.0.0.1"]);
    dns.set("two.test", ["127.0.0.2"]);
    dns.set("three.test", ["127.0.0.3"]);
    let port = |origin: &Origin| origin.address().port();
    let services = |a_weight| {
        [(10, a_weight, port(&a), "one.test"), (10, 1, port(&b), "two.test"), (20, 9, port(&c), "three.test")]
    };
    dns.set_services("_http._tcp.test", services(1));
    let pool = Pool::empty("app").backend("srv:_http._tcp.test", "").quick_probe();
    let balancer = Balancer::start(Config::default().pool(pool).dns(&dns)).await;
    leads_to(&balancer, "srv:_http._tcp.test", &[&a, &b, &c]).await;
    let are_healthy = async || {
        let view = view(&balancer, "srv:").await;
        (0..3).all(|place| view["endpoints"][place]["status"] == "healthy")
    };
    eventually("all are well", are_healthy).await;
    let answered = balancer.origins_of(20).await;
    assert_eq!((count(&answered, "a"), count(&answered, "b")), (10, 10));
    dns.set_services("_http._tcp.test", services(3));
    let asked = dns.services_asked("_http._tcp.test");
    eventually("it is asked for again", async || dns.services_asked("_http._tcp.test") > asked + 1).await;
    let answered = balancer.origins_of(40).await;
    assert!((28..=32).contains(&count(&answered, "a")) && count(&answered, "c") == 0, "{answered:?}");
    // The next priority is used if no backend of the first is left.
    a.set_health(Health::Status(503));
    b.set_health(Health::Status(503));
    eventually("the last one is asked", async || balancer.get("/").await.origin() == "c").await;
    a.set_health(Health::Status(200));
    b.set_health(Health::Status(200));
    eventually("the first are back", async || count(&balancer.origins_of(10).await, "c") == 0).await;
    // If it cannot be resolved, those of the first stay, resolvable or not.
    dns.set_behaviour("three.test", DnsBehaviour::Fails);
    let failed = dns.asked("three.test");
    eventually("it is asked for again", async || dns.asked("three.test") > failed + 1).await;
    leads_to(&balancer, "srv:_http._tcp.test", &[&a, &b, &c]).await;
    assert_eq!(view(&balancer, "srv:").await["resolution"]["error"], Value::Null);
    dns.set_services("_http._tcp.test", [(20, 0, port(&b), "two.test")]);
    leads_to(&balancer, "srv:_http._tcp.test", &[&b]).await;
    assert_eq!(count(&balancer.origins_of(10).await, "b"), 10);
    // If hosts cannot be resolved, it is unknown whether they are different ones.
    dns.set_behaviour("two.test", DnsBehaviour::Fails);
    eventually("DNS fails", async || {
        view(&balancer, "srv:").await["resolution"]["error"].as_str().is_some_and(|error| error.contains("fails"))
    })
    .await;
    assert_eq!(balancer.get("/").await.origin(), "b");
}

// One failing host kept the others unchanged: all traffic went on to a host that had left.
#[tokio::test]
async fn a_failing_host_of_an_srv_record_delays_no_other() {
    let [a] = origins(["127.0.0.1"]);
    let [b] = origins(["127.0.0.1"]);
    let [c] = origins(["127.0.0.2"]);
    let [a_port, b_port, c_port] = [&a, &b, &c].map(|origin| origin.address().port());
    let dns = Dns::start().await;
    dns.set("one.test", ["127.0.0.1"]);
    dns.set("sick.test", ["127.0.0.2"]);
    dns.set_behaviour("sick.test", DnsBehaviour::Fails);
    dns.set_services("_http._tcp.test", [(1, 1, a_port, "one.test"), (1, 1, c_port, "sick.test")]);
    let pool = Pool::empty("app").backend("srv:_http._tcp.test", "");
    let balancer = Balancer::start(Config::default().pool(pool).dns(&dns)).await;
    leads_to(&balancer, "srv:_http._tcp.test", &[&a]).await;
    assert_eq!(count(&balancer.origins_of(10).await, "a"), 10);
    let host = format!("host=sick.test:{c_port}");
    balancer.logs(&["a host of a service", &host, "the DNS server fails", "pools=app"]).await;
    // Hosts that the service no longer lists leave, and new ones join.
    dns.set_services("_http._tcp.test", [(1, 1, b_port, "one.test"), (1, 1, c_port, "sick.test")]);
    leads_to(&balancer, "srv:_http._tcp.test", &[&b]).await;
    assert_eq!(view(&balancer, "srv:").await["resolution"]["error"], Value::Null, "the service itself is known");
    dns.set_behaviour("sick.test", DnsBehaviour::Answers);
    leads_to(&balancer, "srv:_http._tcp.test", &[&b, &c]).await;
    // The failing one keeps its last addresses as long as the service lists it.
    dns.set_behaviour("sick.test", DnsBehaviour::Fails);
    dns.set_services("_http._tcp.test", [(1, 1, a_port, "one.test"), (1, 1, c_port, "sick.test")]);
    leads_to(&balancer, "srv:_http._tcp.test", &[&a, &c]).await;
    dns.set_services("_http._tcp.test", [(1, 1, a_port, "one.test")]);
    leads_to(&balancer, "srv:_http._tcp.test", &[&a]).await;
    // Without any other, the last addresses of all are better than none.
    dns.set_behaviour("other.test", DnsBehaviour::Fails);
    dns.set_services("_http._tcp.test", [(1, 1, b_port, "other.test")]);
    eventually("DNS fails", async || {
        view(&balancer, "srv:").await["resolution"]["error"].as_str().is_some_and(|error| error.contains("other.test"))
    })
    .await;
    assert_eq!(count(&balancer.origins_of(10).await, "a"), 10);
}

#[tokio::test]
async fn an_srv_name_does_not_wait_for_a_host_without_an_answer() {
    let [a] = origins(["127.0.0.1"]);
    let port = a.address().port();
    let dns = Dns::start().await;
    dns.set("one.test", ["127.0.0.1"]);
    dns.set_behaviour("dead.test", DnsBehaviour::Silent);
    dns.set_services("_http._tcp.test", [(1, 1, port, "one.test"), (1, 1, port, "dead.test"), (1, 1, 0, "one.test")]);
    let pool = Pool::empty("app").backend("srv:_http._tcp.test", "");
    // No query for the dead one ends during this test.
    let resolver = format!("resolver = {{ servers = [\"{}\"], timeout = \"50s\", attempts = 1 }}", dns.address());
    let balancer = Balancer::start(Config::default().pool(pool).server(&resolver)).await;
    leads_to(&balancer, "srv:_http._tcp.test", &[&a]).await;
    assert_eq!(count(&balancer.origins_of(10).await, "a"), 10);
}

#[tokio::test]
async fn an_srv_record_with_port_0_is_no_endpoint() {
    let [a] = origins(["127.0.0.1"]);
    let dns = Dns::start().await;
    dns.set("one.test", ["127.0.0.1"]);
    dns.set_services("_http._tcp.test", [(1, 1, a.address().port(), "one.test"), (1, 9, 0, "one.test")]);
    let pool = Pool::empty("app").backend("srv:_http._tcp.test", "");
    let balancer = Balancer::start(Config::default().pool(pool).dns(&dns)).await;
    leads_to(&balancer, "srv:_http._tcp.test", &[&a]).await;
    balancer.logs(&["a host of a service", "host=one.test:0", "its record has port 0"]).await;
}

// It asked the system even if the configuration names servers, and never for services.
#[tokio::test]
async fn check_resolves_names_as_a_running_balancer_does() {
    let dns = Dns::start().await;
    dns.set("web.test", ["127.0.0.1"]);
    dns.set_behaviour("sick.test", DnsBehaviour::Fails);
    dns.set_behaviour("dead.test", DnsBehaviour::Silent);
    dns.set_services("_http._web.test", [(1, 1, 80, "web.test")]);
    let names = ["web.test:80", "missing.test:80", "sick.test:80", "dead.test:80"];
    let names = names.into_iter().chain(["srv:_http._web.test", "srv:_http._gone.test"]);
    let pool = names.fold(Pool::empty("app"), |pool, name| pool.backend(name, ""));
    let balancer = Balancer::prepare(&Config::default().pool(pool).dns(&dns));
    let checked = tests::evenkeel(["check", &balancer.config_file().display().to_string()]).await;
    assert!(checked.status.success(), "{checked:?}");
    for (name, answer) in [
        ("missing.test:80", "missing.test. does not exist"),
        ("sick.test:80", "the DNS server fails"),
        ("dead.test:80", "no DNS server answers in time"),
        ("srv:_http._gone.test", "_http._gone.test. does not exist"),
    ] {
        let warning = format!("warning: the name of backend {name} does not resolve here: {answer}");
        let line = checked.stderr.lines().find(|line| line.contains(&warning));
        let line = line.unwrap_or_else(|| panic!("{warning:?} in\n{}", checked.stderr));
        assert!(line.ends_with(&format!(" (DNS: {})", dns.address())), "{line}");
    }
    assert_eq!(checked.stderr.lines().count(), 4, "{}", checked.stderr);
}

#[tokio::test]
async fn names_in_the_hosts_file_need_no_dns() {
    let [a] = origins(["127.0.0.1"]);
    let dns = Dns::start().await;
    let pool = Pool::empty("app").backend(&backend("localhost", &a), "");
    let balancer = Balancer::start(Config::default().pool(pool).dns(&dns)).await;
    assert_eq!(balancer.get("/").await.origin(), "a");
    assert_eq!(dns.asked("localhost"), 0);
}

#[tokio::test]
async fn the_access_log_has_the_address_that_answered() {
    let [a] = origins(["127.0.0.2"]);
    let dns = Dns::start().await;
    dns.set("web.test", ["127.0.0.2"]);
    let config = config(&dns, &a).section("[access_log]\nfile = \"access.log\"");
    let balancer = Balancer::start(config).await;
    assert_eq!(balancer.get("/").await.origin(), "a");
    let lines = balancer.lines("access.log", 1).await;
    let line: Value = serde_json::from_str(&lines[0]).expect("JSON");
    assert_eq!(line["backend"], backend("web.test", &a).as_str());
    assert_eq!(line["backend_address"], a.address().to_string().as_str());
}
