//! `check --explain` reports for a request what the running balancer does with it: the same site, the same route, the
//! same head for the backend or the client.

use std::collections::BTreeSet;

use tests::balancer::evenkeel_in;
use tests::{Balancer, Config, Origin, Pool, Request};

const SITES: usize = 12;
const REQUESTS: usize = 72;
/// The number of processes at once.
const AT_ONCE: usize = 6;

/// Random numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        // Knuth's MMIX; the upper bits are the best ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % most
    }

    fn of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }

    fn is(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
}

fn path(random: &mut Random) -> String {
    let segments: Vec<_> = (0..random.below(4)).map(|_| random.of(&["a", "b", "ab"])).collect();
    format!("/{}", segments.join("/"))
}

/// A site with up to eight routes, each for different paths.
fn site(random: &mut Random, name: usize) -> String {
    let mut text = format!(
        "[[site]]\nname = \"site-{name}\"\nhosts = [\"s{name}.example\"]\n\
         response_headers = {{ set = {{ X-Where = \"$site|$route\" }} }}\n"
    );
    if random.is(3) {
        text += "request_headers = { set = { X-Of = \"$site $arg_q\" }, append = { X-T = \"$request_method\" } }\n";
    }
    let mut known = BTreeSet::new();
    for _ in 0..=random.below(8) {
        let matcher = match random.below(6) {
            0 => format!("exact = \"{}\"", path(random)),
            1 => format!("regex = '{}'", random.of(&["^/a", "b$", "/ab/", "^/(?<one>a|b)/"])),
            2 => format!("prefix = \"{}\"", path(random)),
            _ => format!("path = \"{}\"", path(random)),
        };
        if !known.insert(matcher.clone()) {
            continue;
        }
        text += &format!("[[site.route]]\n{matcher}\n");
        if random.is(4) && !matcher.starts_with("regex") && !matcher.starts_with("exact") {
            text += "over_regex = true\n";
        }
        if random.is(3) {
            text += random.of(&[
                "methods = [\"GET\"]\n",
                "methods = [\"POST\", \"PUT\"]\n",
                "when = { headers = { X-T = \"1\" } }\n",
                "when = { query = { q = \"1\" } }\n",
                "networks = [\"10.0.0.0/8\"]\n",
            ]);
        }
        text += match random.below(8) {
            0 => "respond = { status = 200, body = \"$uri $arg_q\" }\n",
            1 => "redirect = { to = \"/moved$uri?$args\", status = 307 }\n",
            2 => "jump = \"/a/b?from=jump\"\n",
            3 => "pool = \"app\"\nrewrite = { to = \"/to$uri\" }\n",
            4 => {
                "pool = \"app\"\nrequest_headers = { host = \"in.example\", set = { X-Set = \"$http_x_t,$host\" }, remove = [\"X-T\"] }\n"
            }
            5 => "pool = \"app\"\nerror_pages = { \"404\" = \"/a\" }\n",
            _ => "pool = \"app\"\n",
        };
    }
    text
}

fn request(random: &mut Random, port: u16) -> Request {
    let mut target = path(random);
    target += random.of(&["", "", "/", "/x", "?q=1", "?q=2&r=%20", "//a", "%2fb"]);
    let request = Request::new(random.of(&["GET", "GET", "POST", "HEAD", "DELETE"]), &target);
    let request = request.with("Host", &format!("s{}.example:{port}", random.below(SITES + 1)));
    // As the client would add it.
    let request = if request.method == "POST" { request.with("Content-Length", "0") } else { request };
    match random.below(3) {
        0 => request.with("X-T", "1"),
        1 => request.with("X-T", "two").with("X-T", "three"),
        _ => request,
    }
}

/// A head's first line, then its fields, without those that differ between requests.
fn head_lines<'a>(first: &str, fields: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    let varies = ["x-request-id", "cdn-loop", "date", "connection"];
    let fields = fields.filter(|(name, _)| !varies.contains(&name.to_ascii_lowercase().as_str()));
    std::iter::once(first.to_owned()).chain(fields.map(|(name, value)| format!("{name}: {value}"))).collect()
}

/// Site and route, and the head that the balancer sent to the backend or client.
async fn done(balancer: &Balancer, origin: &Origin, request: &Request) -> (Option<String>, Vec<String>) {
    let before = origin.requests().len();
    let reply = balancer.send(request).await;
    let matched = reply.field("x-where").map(str::to_owned);
    fn pairs(fields: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
        fields.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
    match origin.requests().get(before) {
        Some(sent) => {
            (matched, head_lines(&format!("{} {} HTTP/1.1", sent.method, sent.target), pairs(&sent.fields.0)))
        }
        None => (matched, head_lines(&reply.status.to_string(), pairs(&reply.fields.0))),
    }
}

/// The same according to `check --explain`.
async fn explained(balancer: &Balancer, request: &Request) -> (Option<String>, Vec<String>, String) {
    let host = request.field("host").expect("it has one");
    let question = format!("{} http://{host}{}", request.method, request.target);
    let mut arguments = vec!["check", "evenkeel.toml", "--client", "127.0.0.1", "--explain", &question];
    let fields: Vec<_> = request.fields.0.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    arguments.extend(fields.iter().flat_map(|field| ["--header", field]));
    let outcome = evenkeel_in(balancer.config_file().parent().expect("a folder"), arguments).await;
    assert!(outcome.status.success(), "{question}: {outcome:?}");
    let text = outcome.stdout;
    let value = |line: &str, key: &str| {
        let rest = line.strip_prefix(key)?;
        Some(rest.split("  (").next().unwrap_or(rest).trim().to_owned())
    };
    let site = text.lines().find_map(|line| value(line, "site      "));
    let route = text.lines().rev().find_map(|line| value(line, "route     "));
    let head: Vec<_> = text.lines().skip_while(|line| !line.starts_with("to ")).skip(1).collect();
    let head: Vec<_> = head.iter().take_while(|line| !line.is_empty()).filter_map(|l| l.strip_prefix("  ")).collect();
    let first = head.first().expect("a head").to_owned();
    let first = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.split(' ').next()).unwrap_or(first);
    let fields = head[1..].iter().filter_map(|line| line.split_once(": "));
    let matched = site.zip(route).map(|(site, route)| format!("{site}|{route}"));
    (matched, head_lines(first, fields), text.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn explanations_and_the_running_balancer_agree() {
    let random = &mut Random(7);
    let origin = Origin::start("a").await;
    let sites: String = (0..SITES).map(|name| site(random, name)).collect();
    let config = Config::of([&origin]).app(Pool::without_ejection).sites(&sites);
    let balancer = Balancer::start(config).await;
    let port = balancer.address().port();
    let requests: Vec<_> = (0..REQUESTS).map(|_| request(random, port)).collect();
    let (mut of_backends, mut own, mut none) = (0, 0, 0);
    for some in requests.chunks(AT_ONCE) {
        let explained = futures_util::future::join_all(some.iter().map(|request| explained(&balancer, request))).await;
        for (request, (place, head, text)) in some.iter().zip(explained) {
            let (done_by, done) = done(&balancer, &origin, request).await;
            assert_eq!(head, done, "{} {}\n{text}\n{sites}", request.method, request.target);
            match (&done_by, head[0].ends_with("HTTP/1.1")) {
                (None, _) => none += 1,
                (Some(_), true) => of_backends += 1,
                (Some(_), false) => own += 1,
            }
            let is_missing = place.as_ref().is_some_and(|place| place.ends_with("|none"));
            if let Some(by) = done_by.filter(|_| !is_missing) {
                assert_eq!(place.as_deref(), Some(&*by), "{text}");
            }
        }
    }
    assert!(of_backends > 10 && own > 5 && none > 0, "{of_backends} {own} {none}");
}

/// Each setting is shown with the line that sets it, or as a default.
#[tokio::test]
async fn explain_names_the_line_of_every_setting() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = "[[listener]]\naddress = \"127.0.0.1:80\"\nbody_timeout = \"5s\"\nheader_timeout = \"4s\"\n\
        [[listener]]\naddress = \"127.0.0.1:81\"\nname = \"other\"\n\
        [[pool]]\nname = \"spare\"\nbackends = []\n\
        [[pool]]\nname = \"app\"\nbackends = [\"127.0.0.1:1\"]\nresponse_timeout = \"3s\"\n\
        [pool.ejection]\nmax_percent = 7\n\
        [[site]]\nhosts = [\"\"]\nretries = 1\n\
        [[site.route]]\npath = \"/\"\npool = \"app\"\nmin_rate = 9\n\
        [[site.route]]\npath = \"/spare\"\npool = \"spare\"\n";
    std::fs::write(folder.path().join("evenkeel.toml"), text).expect("written");
    let explain = async |url: &str| {
        let outcome = evenkeel_in(folder.path(), ["check", "evenkeel.toml", "--explain", url]).await;
        assert!(outcome.status.success(), "{outcome:?}");
        outcome.stdout
    };
    let line = |key: &str| {
        let at = text.lines().position(|line| line.starts_with(key)).expect("it is there");
        format!("evenkeel.toml:{}", at + 1)
    };
    let explanation = explain("http://a/").await;
    for (key, source) in [
        ("min_rate", line("min_rate")),
        ("retries", line("retries")),
        ("body_timeout", format!("{}, listener 127.0.0.1:80", line("body_timeout"))),
        ("send_timeout", "default, listener 127.0.0.1:80".to_owned()),
        ("response_timeout", format!("{}, pool app", line("response_timeout"))),
        ("connect_timeout", "default, pool app".to_owned()),
        ("intercept_errors", "default".to_owned()),
        ("access_log", "default, [access_log]".to_owned()),
        ("header_timeout", line("header_timeout")),
        ("max_fields", "default".to_owned()),
        ("ejection", line("[pool.ejection]")),
        ("algorithm", "default".to_owned()),
    ] {
        let shown = explanation.lines().find(|line| line.starts_with(&format!("  {key} = "))).unwrap_or_default();
        assert!(shown.ends_with(&format!("  ({source})")), "{key}: {source}\n{explanation}");
    }
    let spare = explain("http://a:81/spare").await;
    for expected in ["(default, listener other)", "(default, pool spare)", "settings of pool spare"] {
        assert!(spare.contains(expected), "{expected}\n{spare}");
    }
    assert!(!spare.contains(&line("[pool.ejection]")), "nothing of the other pool: {spare}");
}

#[tokio::test]
async fn explain_hides_secrets() {
    let origin = Origin::start("a").await;
    let config = Config::of([&origin]).sites(
        "[[site]]\nhosts = [\"\"]\nresponse_headers = { set = { X-Answer = { file = \"secret.txt\" } } }\n\
         [[site.route]]\npath = \"/app\"\npool = \"app\"\n\
         request_headers = { set = { Authorization = { file = \"secret.txt\" }, X-Path = \"a ${env:PATH}\", X-Open = \"shown\" } }\n\
         [[site.route]]\npath = \"/own\"\nrespond = { body = \"own\" }\n",
    );
    let balancer = Balancer::prepare(&config);
    std::fs::write(balancer.file("secret.txt"), "hush-hush-hush").expect("a writable folder");
    let folder = balancer.config_file().parent().expect("a folder").to_owned();
    for (path, shown) in [("app", &["Authorization: …", "X-Path: …", "X-Open: shown"][..]), ("own", &["X-Answer: …"])]
    {
        let url = format!("http://shop.example/{path}");
        let outcome = evenkeel_in(&folder, ["check", "evenkeel.toml", "--explain", &url]).await;
        assert!(outcome.status.success(), "{outcome:?}");
        for line in shown {
            assert!(outcome.stdout.contains(line), "{line}: {}", outcome.stdout);
        }
        let path = std::env::var("PATH").expect("a path");
        assert!(!outcome.stdout.contains("hush") && !outcome.stdout.contains(&path), "{}", outcome.stdout);
    }
}
