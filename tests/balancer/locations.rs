//! A path's route is the location that nginx chooses among the same texts; generated tables are compared with nginx.

use std::fmt::Write;

use tests::nginx::Nginx;
use tests::{Balancer, Config, Origin, Request, Wire};

const TABLES: usize = 150;
const PATHS_OF_EACH: usize = 12;

/// Few and overlapping, so that most paths match several routes. In nginx's file, `%` and a final dot are ordinary
/// characters.
const TEXTS: &[&str] =
    &["/", "/a", "/a/", "/ab", "/a/b", "/a/b/", "/a/bc", "/a.b", "/b", "/b/a", "/A", "/a/b/c", "/a%b", "/a."];
const REGEXES: &[&str] = &[
    "^/a",
    "^/a/",
    "b$",
    "\\.b$",
    "a.b",
    "^/(a|b)/",
    "^/a/b$",
    "[ab]/b",
    "^/$",
    "c",
    "(?i)^/A/B",
    "(?i)\\.B$",
    "^/b(/.*)?$",
    " ",
    "^/a/[^/]+$",
    "a/b/?$",
    "^/a/.*$",
    "^/(a|b)$",
];
const PIECES: &[&str] = &[
    "/", "/", "/", "a", "a", "b", "b", "c", "A", "B", ".b", ".", "/./", "/../", "//", "%61", "%2F", "%20b", "%25b",
    "%2e", "?b", "%0a", "%0a",
];

/// A fixed sequence of random numbers (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }

    fn of<'a>(&mut self, texts: &[&'a str]) -> &'a str {
        texts[self.below(texts.len())]
    }
}

/// The locations of an nginx server, and the equivalent routes of a site. Each answers with its name.
fn table(numbers: &mut Numbers) -> (String, String) {
    let (mut nginx, mut site) = (String::new(), String::new());
    let mut known = Vec::new();
    for index in 0..=numbers.below(8) {
        let kind = numbers.below(5);
        let text = numbers.of(if kind >= 3 { REGEXES } else { TEXTS });
        // Both programs refuse duplicates.
        if known.contains(&(kind.div_ceil(2), text)) {
            continue;
        }
        known.push((kind.div_ceil(2), text));
        let (location, route) = match (kind, text.strip_prefix("(?i)")) {
            (0, _) => (format!("= \"{text}\""), format!("exact = '{text}'")),
            (1, _) => (format!("\"{text}\""), format!("prefix = '{text}'")),
            (2, _) => (format!("^~ \"{text}\""), format!("prefix = '{text}'\nover_regex = true")),
            (_, None) => (format!("~ \"{text}\""), format!("regex = '{text}'")),
            (_, Some(rest)) => (format!("~* \"{rest}\""), format!("regex = '{text}'")),
        };
        let name = format!("{index} {kind} {text}").replace(['\\', '$', '"'], "_");
        let _ = writeln!(nginx, "location {location} {{ return 200 \"{name}\"; }}");
        let _ = writeln!(site, "[[site.route]]\n{route}\nrespond = {{ body = \"{name}\" }}");
    }
    (nginx, site)
}

fn path(numbers: &mut Numbers) -> String {
    (0..=numbers.below(6)).fold("/".to_owned(), |path, _| path + numbers.of(PIECES))
}

#[tokio::test]
async fn routes_are_chosen_as_nginx_chooses_locations() {
    let mut numbers = Numbers(13);
    let (mut nginx, mut sites) = ("server_names_hash_max_size 4096;\n".to_owned(), String::new());
    for index in 0..TABLES {
        let (locations, routes) = table(&mut numbers);
        let _ = writeln!(
            nginx,
            "server {{ listen {{listen}}; server_name s{index}; location = /none {{ return 200; }}\n{locations}}}"
        );
        let _ = writeln!(sites, "[[site]]\nhosts = [\"s{index}\"]\n{routes}");
    }
    let origin = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&origin]).sites(&sites)).await;
    let nginx = Nginx::start(&nginx).await;
    let (mut chosen, mut refused) = (0, 0);
    for index in 0..TABLES {
        let (mut ours, mut theirs) = (balancer.connect().await, Wire::connect(nginx.address()).await);
        for _ in 0..PATHS_OF_EACH {
            let request = Request::get(&path(&mut numbers)).with("Host", &format!("s{index}"));
            let (our, their) = (ours.exchange(&request).await, theirs.exchange(&request).await);
            let comparable = |status, text: String| (status, if status == 200 { text } else { String::new() });
            let (our, their) = (comparable(our.status, our.text()), comparable(their.status, their.text()));
            assert_eq!(our, their, "{} of s{index}, where nginx chose the latter", request.target);
            match our.0 {
                200 => chosen += 1,
                404 => {}
                _ => {
                    refused += 1;
                    (ours, theirs) = (balancer.connect().await, Wire::connect(nginx.address()).await);
                }
            }
        }
    }
    assert!(chosen > TABLES * PATHS_OF_EACH / 6, "{chosen} were answered, {refused} refused");
}
