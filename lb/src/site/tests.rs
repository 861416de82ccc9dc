//! Whole sites: which site and route a request gets, and what a snapshot reuses from the previous one.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::config::route::{HostPattern, PathPrefix};
use crate::config::site::{ListenerName, SourceLocation};
use crate::config::{HostRoute, Secret, toml};
use crate::snapshot::{Rings, Snapshot};
use crate::value::Presence;
use crate::value::condition::MethodSet;
use crate::value::variable::Variable;

const LISTENERS: [&str; 2] = ["127.0.0.1:80", "127.0.0.1:443"];

/// A request of which only the method is known.
struct Method(&'static str);

impl Facts for Method {
    fn write(&self, variable: &Variable, out: &mut Vec<u8>) -> Presence {
        if *variable != Variable::RequestMethod {
            return Presence::Missing;
        }
        out.extend_from_slice(self.0.as_bytes());
        Presence::Present
    }
}

/// Two listeners, and pools named `0` and up.
fn config(pools: usize) -> Config {
    let mut text = LISTENERS.map(|address| format!("[[listener]]\naddress = \"{address}\"\n")).concat();
    text += "[[route]]\npool = \"0\"\n";
    for pool in 0..pools {
        text += &format!("[[pool]]\nname = \"{pool}\"\nbackends = [\"127.0.0.1:1\"]\n");
    }
    let mut config = toml::read(&text, Path::new("/evenkeel.toml")).expect("valid");
    config.routes.clear();
    config
}

fn snapshot(config: Config, previous: Option<&Snapshot>) -> Snapshot {
    Snapshot::new(config, previous, &Rings::default(), &Metrics::new(), &Secret::new("secret").expect("not empty"))
}

fn origin() -> SourceLocation {
    SourceLocation { file: Arc::from(Path::new("evenkeel.toml")), line: 1 }
}

fn pool_name(pool: usize) -> PoolName {
    PoolName::new(&pool.to_string()).expect("a name")
}

fn host_route(host: &str, path: &str, pool: usize) -> HostRoute {
    HostRoute {
        host: HostPattern::parse(host).expect("a host"),
        path: PathPrefix::parse(path).expect("a path"),
        pool: pool_name(pool),
        defined_at: origin(),
    }
}

fn route(matcher: Matcher, pool: usize) -> RouteConfig {
    RouteConfig {
        name: RouteName::new(&format!("{matcher:?}")),
        matcher,
        condition: None,
        over_regex: false,
        internal: false,
        action: site::Action::Pool(pool_name(pool)),
        rules: Rules::default(),
        defined_at: origin(),
    }
}

fn path(path: &str) -> Matcher {
    Matcher::Path(PathPrefix::parse(path).expect("a path"))
}

fn site(hosts: &[&str], listeners: &[&str], routes: Vec<RouteConfig>) -> SiteConfig {
    SiteConfig {
        name: format!("{hosts:?} {listeners:?}"),
        hosts: hosts.iter().map(|host| HostPattern::parse(host).expect("a host")).collect(),
        listeners: listeners.iter().map(|name| ListenerName::new(name).expect("a name")).collect(),
        certificate: None,
        routes,
        fallback: Rules::default(),
        defined_at: origin(),
    }
}

/// The pool for a request. `None`: no site matches its host, or no route of the site its path.
fn pool(sites: &Sites, listener: usize, host: &str, path: &str, method: &'static str) -> Option<usize> {
    let found = sites.find(Some(listener), host, path.as_bytes(), &Method(method))?;
    match &found.site.route(found.route).action {
        Action::Pool(of) => of.pool.name.as_str().parse().ok(),
        Action::Missing => None,
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn a_site_exists_only_on_its_listeners_without_fallback() {
    let mut config = config(4);
    config.routes = vec![host_route("", "/", 0)];
    config.sites = vec![
        Arc::new(site(&["a.example"], &[LISTENERS[0]], vec![route(path("/"), 1)])),
        Arc::new(site(&["a.example", "*.a.example"], &[LISTENERS[1]], vec![route(path("/only"), 2)])),
        Arc::new(site(&["b.example"], &[], vec![route(path("/"), 3)])),
    ];
    let snapshot = snapshot(config, None);
    for (listener, host, path, expected) in [
        (0, "a.example", "/x", Some(1)),
        (0, "A.example.:80", "/x", Some(1)),
        (0, "x.a.example", "/only", Some(0)),
        (1, "a.example", "/only/x", Some(2)),
        (1, "a.example", "/x", None),
        (1, "x.a.example", "/x", None),
        (0, "b.example", "/x", Some(3)),
        (1, "b.example", "/x", Some(3)),
        (1, "c.example", "/only", Some(0)),
    ] {
        let found = pool(&snapshot.sites, listener, host, path, "GET");
        assert_eq!(found, expected, "{host}{path} on {}", LISTENERS[listener]);
    }
}

#[test]
fn a_listener_is_found_by_its_address_then_its_name_then_an_address_that_overlaps() {
    let mut config = config(2);
    config.routes = vec![host_route("", "/", 0)];
    config.sites = vec![Arc::new(site(&["a.example"], &[LISTENERS[1]], vec![route(path("/"), 1)]))];
    let sites = &snapshot(config, None).sites;
    for (address, name, expected) in [
        (LISTENERS[1], LISTENERS[0], Some(1)),
        ("127.0.0.1:81", LISTENERS[1], Some(1)),
        ("0.0.0.0:443", "x", Some(1)),
        ("[::]:443", "x", None),
        ("127.0.0.1:81", "x", None),
    ] {
        let (address, name) = (SocketAddress::Ip(address.parse().expect("an address")), ListenerName::new(name));
        let name = name.expect("a name");
        assert_eq!(sites.listener(&address, || &name), expected, "{name:?} at {address}");
    }
    // Clients of a removed listener get only what is the same on all listeners.
    assert!(sites.site(None, "a.example").is_none());
    assert!(sites.site(None, "b.example").is_some());
}

#[test]
fn a_route_whose_condition_fails_is_skipped() {
    let mut config = config(3);
    let only_get = |mut route: RouteConfig| {
        route.condition = Some(Condition { methods: MethodSet::new(["GET"]).ok(), ..Condition::default() });
        route
    };
    let routes = vec![
        only_get(route(Matcher::Exact("/a/b".to_owned()), 0)),
        only_get(route(path("/a"), 1)),
        route(path("/"), 2),
    ];
    config.sites = vec![Arc::new(site(&[""], &[], routes))];
    let snapshot = snapshot(config, None);
    let pool = |path, method| pool(&snapshot.sites, 0, "", path, method);
    assert_eq!([pool("/a/b", "GET"), pool("/a/c", "GET"), pool("/b", "GET")], [Some(0), Some(1), Some(2)]);
    assert_eq!([pool("/a/b", "PUT"), pool("/a/c", "PUT"), pool("/b", "PUT")], [Some(2); 3]);
}

#[test]
fn jumps_find_routes_by_name_and_paths_do_not_find_named_ones() {
    let mut config = config(1);
    let mut named = route(Matcher::Named, 0);
    named.name = RouteName::new("page");
    config.sites = vec![Arc::new(site(&[""], &[], vec![named]))];
    let snapshot = snapshot(config, None);
    let site = snapshot.sites.site(Some(0), "x").expect("any host");
    assert_eq!(site.find(b"/page", &Method("GET")), RouteId::FALLBACK);
    let page = site.named(&RouteName::new("page")).expect("there");
    assert!(matches!(site.route(page).action, Action::Pool(_)));
    assert!(site.named(&RouteName::new("other")).is_none());
}

#[test]
fn unchanged_parts_are_reused_from_the_previous_snapshot() {
    let mut config = config(2);
    config.routes = vec![host_route("c.example", "/", 0), host_route("", "/", 1)];
    let own = |host: &str, pool| Arc::new(site(&[host], &[], vec![route(path("/"), pool)]));
    config.sites = vec![own("a.example", 0), own("b.example", 1)];
    let first = snapshot(config.clone(), None);

    let mut change = config.clone();
    change.pools[0].settings.retries = 7;
    let second = snapshot(change, Some(&first));
    assert!(Arc::ptr_eq(&first.sites, &second.sites), "a pool's settings are not the sites'");

    // As after a reload: rebuilt, and equal.
    let mut change = config.clone();
    change.sites = vec![own("a.example", 0), own("b.example", 0)];
    let third = snapshot(change, Some(&second));
    let is_same: Vec<_> =
        second.sites.iter().zip(third.sites.iter()).map(|(one, other)| Arc::ptr_eq(one, other)).collect();
    assert_eq!(is_same, [true, true, true, false]);
    assert_eq!(pool(&third.sites, 0, "b.example", "/", "GET"), Some(0));

    let mut change = config.clone();
    change.pools[0].name = PoolName::new("other").expect("a name");
    change.routes[0].pool = change.pools[0].name.clone();
    change.sites = vec![own("b.example", 1)];
    let fourth = snapshot(change, Some(&first));
    // Another pool with the same name is another pool.
    let fifth = snapshot(config, Some(&fourth));
    let pools = |snapshot: &Snapshot| Arc::clone(&snapshot.pools[0]);
    assert!(!Arc::ptr_eq(&pools(&fourth), &pools(&fifth)));
    let leads_to = |snapshot: &Snapshot, host: &str| {
        let site = snapshot.sites.site(Some(0), host).expect("there");
        let RouteId(_) = site.find(b"/", &Method("GET"));
        site.routes.iter().flat_map(|route| route.action.pools()).map(|of| Arc::clone(&of.pool)).collect::<Vec<_>>()
    };
    assert!(Arc::ptr_eq(&leads_to(&fifth, "a.example")[0], &pools(&fifth)));
    assert!(Arc::ptr_eq(&leads_to(&fifth, "c.example")[0], &pools(&fifth)));
}

/// Top-level routes as before there were sites: ordered by host, then by length of the path, the first match wins.
fn as_before(routes: &[(String, String)], host: &str, path: &str) -> Option<usize> {
    let parsed = routes.iter().enumerate().map(|(index, (host, path))| {
        (HostPattern::parse(host).expect("a host"), PathPrefix::parse(path).expect("a path"), index)
    });
    let mut parsed: Vec<_> = parsed.collect();
    parsed.sort_by_key(|(host, path, _)| std::cmp::Reverse((host.rank(), path.as_str().len())));
    let fits = |(pattern, prefix, _): &&(HostPattern, PathPrefix, usize)| {
        pattern.matches(host) && prefix.matches(path.as_bytes())
    };
    parsed.iter().find(fits).map(|(.., index)| *index)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn top_level_routes_keep_their_meaning_from_before_sites(
        routes in prop::collection::hash_set(
            (r"|(\*\.)?[ab](\.[ab]){0,2}", r"/([ab](/[ab]){0,2}/?)?"),
            1..12,
        ),
        asked in prop::collection::vec((r"|[abAB](\.[ab]){0,3}", r"/([ab]/?){0,4}"), 48),
    ) {
        let routes: Vec<_> = routes.into_iter().collect();
        let mut config = config(routes.len());
        config.routes = (0..).zip(&routes).map(|(pool, (host, path))| host_route(host, path, pool)).collect();
        let snapshot = snapshot(config, None);
        for (host, path) in asked {
            let found = pool(&snapshot.sites, 0, &host, &path, "GET");
            prop_assert_eq!(found, as_before(&routes, &host, &path), "{:?} {}{}", routes, host, path);
        }
    }
}
