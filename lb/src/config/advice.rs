//! Finds settings that cannot work or have no effect. The results are shown by `check`, at the start, after a reload,
//! and for changes by the admin API. Unreachable routes are found by the tables of sites.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::OsString;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use super::algorithm::Algorithm;
use super::backend::{AdminState, BackendAddress, SocketAddress};
use super::certificate::{self, Certificate, Renewal};
use super::route::HostPattern;
use super::site::Matcher;
use super::tls::TlsConfig;
use super::{BackendConfig, Config, ListenerConfig, PoolConfig, StickyConfig, folder_of};

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Advice {
    pub subject: Subject,
    /// Whether it cannot work. Then `check` fails, but a start or a reload only warns, because the rest of the
    /// configuration is needed.
    pub is_error: bool,
    pub message: String,
}

/// The part of a configuration that it concerns, by index in its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    Algorithm { pool: usize },
    Backends { pool: usize },
    Backend { pool: usize, backend: usize },
    BackendTls { pool: usize },
    Source { pool: usize },
    Cookie { pool: usize },
    Certificate { listener: usize },
    Listener { listener: usize },
    Proxies { listener: usize },
    Pool { pool: usize },
    Route { route: usize },
    Site { site: usize },
    RouteOfSite { site: usize, route: usize },
    AccessLog,
    Log,
    State,
}

/// All findings, from the configuration, the files that it names, and the addresses of this machine.
pub(crate) fn of(config: &Config, now: SystemTime) -> Vec<Advice> {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let now = i64::try_from(since).unwrap_or(i64::MAX);
    let mut advice = Vec::new();
    for (pool, settings) in config.pools.iter().enumerate() {
        if !config.is_routed(&settings.name) {
            let name = &settings.name;
            let message =
                format!("no route uses the pool \"{name}\": write a [[route]] with pool = \"{name}\", or remove it");
            advice.push(Advice { subject: Subject::Pool { pool }, is_error: false, message });
        }
        for (backend, message) in backends_written_twice(settings) {
            advice.push(Advice { subject: Subject::Backend { pool, backend }, is_error: false, message });
        }
        for (is_error, message) in wrong_source(settings) {
            advice.push(Advice { subject: Subject::Source { pool }, is_error, message });
        }
        for (backend, message) in nameless(settings) {
            advice.push(Advice { subject: Subject::Backend { pool, backend }, is_error: true, message });
        }
        if settings.settings.transport.tls.as_ref().is_some_and(|tls| !tls.verify) {
            let message = format!(
                "pool \"{}\" takes any certificate, so anyone between it and its backends can read and change everything: write ca = \"FILE\" in place of verify = false",
                settings.name
            );
            advice.push(Advice { subject: Subject::BackendTls { pool }, is_error: false, message });
        }
        for message in dates_of_transport(settings, now) {
            advice.push(Advice { subject: Subject::BackendTls { pool }, is_error: false, message });
        }
        if let Some(message) = ignored_weights(settings) {
            advice.push(Advice { subject: Subject::Algorithm { pool }, is_error: false, message });
        }
        if let Some(message) = no_active_backend(config, settings) {
            advice.push(Advice { subject: Subject::Backends { pool }, is_error: false, message });
        }
        for (backend, settings) in settings.backends.iter().enumerate() {
            if let Some((is_error, message)) = own_address(config, &settings.address) {
                advice.push(Advice { subject: Subject::Backend { pool, backend }, is_error, message });
            }
        }
    }
    for (route, settings) in config.routes.iter().enumerate() {
        if let Some(message) = literal_star("route.path", settings.path.as_str()) {
            advice.push(Advice { subject: Subject::Route { route }, is_error: false, message });
        }
    }
    for (site, settings) in config.sites.iter().enumerate() {
        for (route, settings) in settings.routes.iter().enumerate() {
            let message = match &settings.matcher {
                Matcher::Path(path) => literal_star("site.route.path", path.as_str()),
                Matcher::Prefix(path) => literal_star("site.route.prefix", path),
                _ => None,
            };
            if let Some(message) = message {
                advice.push(Advice { subject: Subject::RouteOfSite { site, route }, is_error: false, message });
            }
        }
    }
    cookies(config, &mut advice);
    for (index, listener) in config.listeners.iter().enumerate() {
        if let Some(message) = absent_proxies(listener) {
            advice.push(Advice { subject: Subject::Proxies { listener: index }, is_error: false, message });
        }
        if let Some(tls) = &listener.tls {
            certificates(config, index, tls, now, &mut advice);
        }
    }
    advice
}

/// A listener with the PROXY protocol whose senders cannot connect to it.
fn absent_proxies(listener: &ListenerConfig) -> Option<String> {
    let senders = &listener.proxy_protocol.as_ref()?.from;
    let is_unix = |address: &SocketAddress| matches!(address, SocketAddress::Unix(_));
    let has_unix = listener.addresses.iter().any(is_unix);
    let has_ip = !listener.addresses.iter().all(is_unix);
    let can_come = (has_unix && senders.has_unix) || (has_ip && !senders.networks.is_empty());
    let (has, fix) = match has_ip {
        true => ("no Unix socket", "write the networks of the load balancers that send the header"),
        false => ("Unix sockets alone, whose peers are in no network", "write from = [\"unix:\"]"),
    };
    (!can_come).then(|| {
        let name = &listener.name;
        format!("listener {name} expects the PROXY protocol only from peers that cannot connect to it, since it has {has}: {fix}")
    })
}

/// A pool that a route leads to and that has no active backend.
pub(crate) fn no_active_backend(config: &Config, pool: &PoolConfig) -> Option<String> {
    let has_one = pool.backends.iter().any(|backend| backend.state == AdminState::Active);
    (config.is_routed(&pool.name) && !has_one)
        .then(|| format!("pool {} has no active backend: its requests get 503", pool.name))
}

/// Problems with the pool's source address, and whether each is an error.
pub(crate) fn wrong_source(pool: &PoolConfig) -> Vec<(bool, String)> {
    let Some(source) = pool.settings.transport.source_address else { return Vec::new() };
    let is_other = |address: &BackendAddress| {
        let ip = address.socket_address().and_then(|address| address.ip());
        ip.is_some_and(|ip| ip.is_ipv4() != source.is_ipv4())
    };
    let family = |is_ipv4| if is_ipv4 { "IPv4" } else { "IPv6" };
    let mut advice = Vec::new();
    for address in pool.backends.iter().map(|backend| &backend.address).filter(|address| is_other(address)) {
        advice.push((
            true,
            format!(
                "pool \"{}\" connects from {source}, an {} address, and never reaches backend {address}, which has {}: write backends of one family, or give the others a pool of their own",
                pool.name,
                family(source.is_ipv4()),
                family(!source.is_ipv4()),
            ),
        ));
    }
    if !is_of_this_machine(source) {
        let message = format!(
            "pool \"{}\" connects from {source}, which is not an address of this machine now: write one that \"ip address\" shows",
            pool.name
        );
        advice.push((false, message));
    }
    advice
}

/// Backends with TLS for whose certificate no name is known.
pub(crate) fn nameless(pool: &PoolConfig) -> Vec<(usize, String)> {
    let Some(tls) = &pool.settings.transport.tls else { return Vec::new() };
    let problem = |(index, backend): (usize, &BackendConfig)| {
        let problem = tls.server_name(&backend.address).err()?;
        let (address, pool) = (&backend.address, &pool.name);
        Some((index, format!("backend {address} of pool \"{pool}\" cannot be verified: {problem}; write tls.name")))
    };
    pool.backends.iter().enumerate().filter_map(problem).collect()
}

/// Different weights that have no effect.
pub(crate) fn ignored_weights(pool: &PoolConfig) -> Option<String> {
    let first = pool.backends.first()?.weight;
    let differ = pool.backends.iter().any(|backend| backend.weight != first);
    (pool.algorithm == Algorithm::RoundRobin && differ).then(|| {
        format!(
            "pool \"{}\" ignores its weights, since its algorithm is round-robin: choose weighted, or weights that are equal",
            pool.name
        )
    })
}

/// Backends that are listed twice, once by address and once as `localhost`.
fn backends_written_twice(pool: &PoolConfig) -> Vec<(usize, String)> {
    let mut known: HashMap<SocketAddr, &BackendAddress> = HashMap::new();
    let mut advice = Vec::new();
    for (index, backend) in pool.backends.iter().enumerate() {
        let Some(address) = socket_address(&backend.address) else { continue };
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        match known.entry(address) {
            Entry::Vacant(entry) => drop(entry.insert(&backend.address)),
            Entry::Occupied(first) => advice.push((
                index,
                format!(
                    "backend {} of pool \"{}\" is listed before as {}, so it gets twice its share and is probed twice: remove one, and write weight = 2 to send it twice as much",
                    backend.address,
                    pool.name,
                    first.get()
                ),
            )),
        }
    }
    advice
}

/// A path that ends with a star, which no client sends.
fn literal_star(key: &str, path: &str) -> Option<String> {
    let folder = path.trim_end_matches('*').strip_suffix('/').filter(|_| path.ends_with('*'))?;
    let fix = if folder.is_empty() { "/" } else { folder };
    Some(format!(
        "{key} is \"{path}\", whose star is taken literally, and a path covers everything below it anyway: write path = \"{fix}\""
    ))
}

/// Whether a backend is this balancer itself, and a message about that.
pub(crate) fn own_address(config: &Config, address: &BackendAddress) -> Option<(bool, String)> {
    let mut own = config.listeners.iter().flat_map(|listener| listener.addresses.iter());
    let is_target = |own: &&SocketAddress| match own {
        SocketAddress::Ip(own) => socket_address(address).is_some_and(|target| leads_to(target, *own)),
        SocketAddress::Unix(own) => address.unix_path() == Some(own),
    };
    if let Some(own) = own.find(is_target) {
        let message = format!(
            "backend {address} is this balancer itself, which listens on {own}: each request would come back until it is refused; write the application's address"
        );
        return Some((true, message));
    }
    leads_to(socket_address(address)?, config.admin.address).then(|| {
        let message = format!(
            "backend {address} is this balancer's admin API: its routes would let clients change the balancer; write the application's address"
        );
        (false, message)
    })
}

/// The socket address of a backend that is configured as an IP address or as `localhost`.
fn socket_address(address: &BackendAddress) -> Option<SocketAddr> {
    let (host, port) = address.host_and_port()?;
    match host.trim_end_matches('.').eq_ignore_ascii_case("localhost") {
        true => Some(SocketAddr::new([127, 0, 0, 1].into(), port)),
        false => address.socket_address()?.ip(),
    }
}

fn leads_to(target: SocketAddr, listener: SocketAddr) -> bool {
    let (target_ip, listener_ip) = (target.ip().to_canonical(), listener.ip().to_canonical());
    let is_wildcard = listener_ip.is_unspecified() && listener_ip.is_ipv4() == target_ip.is_ipv4();
    target.port() == listener.port() && (target_ip == listener_ip || (is_wildcard && is_of_this_machine(target_ip)))
}

/// Only local addresses can be bound.
fn is_of_this_machine(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

/// Pools whose sticky cookies overwrite each other in a browser, and cookies that browsers do not send to their routes.
fn cookies(config: &Config, advice: &mut Vec<Advice>) {
    let sticky = |name| {
        let pool = config.pools.iter().position(|pool| pool.name == name)?;
        Some((pool, config.pools.get(pool)?.settings.sticky.as_ref()?))
    };
    let of_routes = config.routes.iter().map(|route| (&route.host, route.path.as_str(), &route.pool));
    let of_sites = config.sites.iter().flat_map(|site| {
        let routes = site.routes.iter().filter_map(|route| match &route.matcher {
            Matcher::Path(path) => Some((path.as_str(), route.pools())),
            Matcher::Exact(path) | Matcher::Prefix(path) => Some((path.as_str(), route.pools())),
            Matcher::Regex(_) | Matcher::Named => None,
        });
        let pools = routes.flat_map(|(path, pools)| pools.iter().map(move |pool| (path, pool)));
        pools.flat_map(|(path, pool)| site.hosts.iter().map(move |host| (host, path, pool)))
    });
    let routes: Vec<(&HostPattern, &str, usize, &StickyConfig)> = of_routes
        .chain(of_sites)
        .filter_map(|(host, path, pool)| sticky(pool.clone()).map(|(pool, sticky)| (host, path, pool, sticky)))
        .collect();
    let mut clashes: HashMap<(usize, usize), &HostPattern> = HashMap::new();
    for (index, (host, path, pool, sticky)) in routes.iter().enumerate() {
        if !covers(&sticky.path, path) {
            let message = format!(
                "the cookie {} of pool \"{}\" has the path \"{}\", so browsers do not send it to {host}{path}: write a path that covers the route's",
                sticky.cookie, config.pools[*pool].name, sticky.path,
            );
            advice.push(Advice { subject: Subject::Cookie { pool: *pool }, is_error: false, message });
        }
        for (other_host, _, other, other_sticky) in &routes[..index] {
            let same_cookie = sticky.cookie == other_sticky.cookie && sticky.path == other_sticky.path;
            if pool != other && same_cookie && overlap(host, other_host) {
                let shown = if **host == HostPattern::Any { other_host } else { host };
                clashes.entry((*pool.max(other), *pool.min(other))).or_insert(shown);
            }
        }
    }
    let mut clashes: Vec<_> = clashes.into_iter().collect();
    clashes.sort_by_key(|(pools, _)| *pools);
    for ((pool, other), host) in clashes {
        let host = if *host == HostPattern::Any { "one host".to_owned() } else { host.to_string() };
        let cookie = &config.pools[pool].settings.sticky.as_ref().map_or("", |sticky| &sticky.cookie);
        let message = format!(
            "the pools \"{}\" and \"{}\" use the cookie {cookie} on {host} with the same path, so each overwrites the other's: give one of them another cookie or path",
            config.pools[other].name, config.pools[pool].name
        );
        advice.push(Advice { subject: Subject::Cookie { pool }, is_error: true, message });
    }
}

/// Whether a browser sends a cookie with this path to `target` (RFC 6265 §5.1.4).
fn covers(cookie_path: &str, target: &str) -> bool {
    let Some(rest) = target.strip_prefix(cookie_path) else { return false };
    rest.is_empty() || cookie_path.ends_with('/') || rest.starts_with('/')
}

/// Whether some host matches both.
fn overlap(a: &HostPattern, b: &HostPattern) -> bool {
    use HostPattern::{Any, Below, Exact, Regex, Starting};
    let is_below = |name: &str, domain: &str| name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    match (a, b) {
        (Any, _) | (_, Any) => true,
        (Exact(a), Exact(b)) => a == b,
        (Exact(name), Below(domain)) | (Below(domain), Exact(name)) => is_below(name, domain),
        (Below(a), Below(b)) => a == b || is_below(a, b) || is_below(b, a),
        (Exact(_), _) => b.includes(a),
        (_, Exact(_)) => a.includes(b),
        (Below(_) | Starting(_) | Regex(_), Below(_) | Starting(_) | Regex(_)) => true,
    }
}

/// Problems with the dates of a pool's client certificate and of the certificates that it trusts.
fn dates_of_transport(pool: &PoolConfig, now: i64) -> Vec<String> {
    let Some(tls) = &pool.settings.transport.tls else { return Vec::new() };
    let mut advice = Vec::new();
    let trusted = tls.ca.as_ref().filter(|_| tls.verify);
    let files = [(tls.certificate.as_ref(), "backends refuse it"), (trusted, "none that it issued is taken")];
    for (file, refusal) in files {
        let Some(file) = file else { continue };
        let shown = file.display();
        match certificate::load(file) {
            Ok(chain) => {
                let dates = chain.iter().enumerate().filter_map(|(index, one)| date(one, index, &shown, refusal, now));
                advice.extend(dates.map(|problem| format!("pool \"{}\": {problem}", pool.name)));
            }
            Err(problem) => advice.push(format!("the certificates in {shown} cannot be understood: {problem}")),
        }
    }
    advice
}

fn certificates(config: &Config, listener: usize, tls: &TlsConfig, now: i64, advice: &mut Vec<Advice>) {
    let mut tell = |message: String| {
        advice.push(Advice { subject: Subject::Certificate { listener }, is_error: false, message });
    };
    let mut leaves = Vec::new();
    for pair in tls.certificates.pairs().unwrap_or_default() {
        let file = pair.certificate.display();
        match certificate::load(&pair.certificate) {
            Ok(chain) if chain.is_empty() => {}
            Ok(chain) => {
                of_chain(&chain, &file, now).into_iter().for_each(&mut tell);
                leaves.extend(chain.into_iter().next().map(|leaf| (pair.certificate.clone(), leaf)));
            }
            Err(problem) => tell(format!("the certificates in {file} cannot be understood: {problem}")),
        }
    }
    let mut uncovered: Vec<&str> = Vec::new();
    let name = &config.listeners[listener].name;
    let here = config.sites.iter().filter(|site| site.listeners.is_empty() || site.listeners.contains(name));
    let hosts = config.routes.iter().map(|route| &route.host).chain(here.flat_map(|site| &site.hosts));
    for host in hosts {
        if let HostPattern::Exact(name) = host
            && !leaves.iter().any(|(_, leaf)| leaf.is_for(name))
            && !uncovered.contains(&name.as_str())
        {
            uncovered.push(name);
        }
    }
    // With several listeners, each may serve some of the hosts.
    let is_alone = config.listeners.iter().filter(|listener| listener.tls.is_some()).count() == 1;
    if uncovered.is_empty() || !is_alone {
        return;
    }
    let uncovered = uncovered.join(", ");
    match leaves.as_slice() {
        [(file, leaf)] => tell(format!(
            "the certificate in {} is for {}, not for {uncovered}, to which routes lead: browsers refuse it there",
            file.display(),
            names(leaf),
        )),
        _ => tell(format!(
            "no certificate is for {uncovered}, to which routes lead: browsers refuse the default one there"
        )),
    }
}

/// Problems with a certificate chain, leaf first.
fn of_chain(chain: &[Certificate], file: &impl Display, now: i64) -> Vec<String> {
    let dates = chain.iter().enumerate();
    let mut advice: Vec<_> =
        dates.filter_map(|(index, one)| date(one, index, file, "browsers refuse it", now)).collect();
    let is_out_of_order = chain.iter().zip(chain.iter().skip(1)).any(|(one, next)| one.issuer != next.subject);
    if is_out_of_order {
        advice.push(format!("the certificates in {file} are not a chain: put the leaf first, then the issuer of each"));
    } else if let [leaf] = chain
        && leaf.issuer != leaf.subject
    {
        advice.push(format!(
            "{file} holds the leaf certificate alone: clients that do not know its issuer refuse it; append the intermediate certificates (\"fullchain.pem\")"
        ));
    }
    advice
}

/// A problem with the dates of a certificate and its consequence. `index`: its position in the file.
fn date(certificate: &Certificate, index: usize, file: &impl Display, refusal: &str, now: i64) -> Option<String> {
    let what =
        if index == 0 { "the certificate".to_owned() } else { format!("certificate {} of the chain", index + 1) };
    let (from, until) = (certificate::date(certificate.not_before), certificate::date(certificate.not_after));
    match certificate.renewal(now) {
        Some(Renewal::Expired) => Some(format!("{what} in {file} has expired on {until}: {refusal}; renew it")),
        _ if certificate.not_before > now => {
            Some(format!("{what} in {file} is not valid before {from}: {refusal} until then"))
        }
        Some(Renewal::Due | Renewal::Urgent) => {
            let days = certificate.days_left(now);
            Some(format!("{what} in {file} expires on {until}, in {days} days: renew it"))
        }
        None => None,
    }
}

fn names(leaf: &Certificate) -> String {
    if leaf.names.is_empty() { "no name at all".to_owned() } else { leaf.names.join(", ") }
}

/// Names of backends that need DNS, with the subject that uses each first.
pub(crate) fn names_to_resolve(config: &Config) -> Vec<(BackendAddress, Subject)> {
    let mut names: Vec<(BackendAddress, Subject)> = Vec::new();
    for (pool, settings) in config.pools.iter().enumerate() {
        for (backend, settings) in settings.backends.iter().enumerate() {
            let is_known = names.iter().any(|(known, _)| *known == settings.address);
            let is_name = settings.address.socket_address().is_none();
            if is_name && settings.state != AdminState::Down && !is_known {
                names.push((settings.address.clone(), Subject::Backend { pool, backend }));
            }
        }
    }
    names
}

/// Listeners, by index, whose path leads to the Unix socket of another listener, though it is written differently.
pub(crate) fn same_sockets(wanted: &[ListenerConfig]) -> impl Iterator<Item = (usize, String)> {
    let (mut known, mut found) = (Vec::new(), Vec::new());
    for (listener, config) in wanted.iter().enumerate() {
        for address in config.addresses.iter() {
            let SocketAddress::Unix(path) = address else { continue };
            let Some(identity) = identity(path) else { continue };
            match known.iter().find(|(other, _)| *other == identity) {
                Some((_, other)) => {
                    found.push((
                        listener,
                        format!("listener {address} is the same socket as {other}: remove one of them"),
                    ));
                }
                None => known.push((identity, address)),
            }
        }
    }
    found.into_iter()
}

/// Identifies a file that need not exist: the device and inode of its folder, and its name. Equal for all paths that
/// lead to the same file. `None` if the folder cannot be found.
fn identity(path: &Path) -> Option<(u64, u64, OsString)> {
    let folder = std::fs::metadata(folder_of(path)).ok()?;
    Some((folder.dev(), folder.ino(), path.file_name()?.to_owned()))
}
