//! Reads `evenkeel.toml`. All problems are found in one pass, so this walks the parsed file by hand; a derived
//! deserializer would stop at the first one. The defaults and the set of valid keys come from `default.toml` itself.

mod environment;
mod files;
mod foreign;
mod listener;
mod pool;
mod reader;
mod rules;
pub(crate) mod schema;
mod site;
mod sources;
mod template;
#[cfg(test)]
mod tests;
mod tls;
mod values;
mod words;
pub(crate) mod writer;

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::toml::Spanned;
use ::toml::de::{DeTable, DeValue};
use ipnet::IpNet;

use super::advice::{self, Advice, Subject};
use super::{
    AccessLogConfig, AccessLogFormat, AdminConfig, Config, ForwardedBy, HostRoute, ListenerConfig, LogConfig,
    LogFormat, MetricsConfig, PoolName, Position, Problem, ResolverConfig, ServerConfig, StateConfig, TrustedPeers,
};
use crate::config::backend::SocketAddress;
use crate::config::route::PathPrefix;
use crate::config::site::SourceLocation;
use crate::message::limits;
use environment::Replaced;
use reader::{Reader, Section};
use rules::References;
use sources::{Parsed, Sources};
use template::Template;
use values::DAY;

#[cfg(test)]
pub(crate) use tests::keys;

/// Every setting with its default and a line of explanation.
pub const DEFAULT: &str = include_str!("default.toml");

/// The lowest limit on a head, in bytes.
const MIN_HEAD_BYTES: u64 = 256;
const MAX_HEAD_BYTES: u64 = limits::MAX_HEAD_BYTES as u64;
const MAX_FIELDS: u64 = limits::MAX_FIELDS as u64;

/// Keys of sites that are not implemented yet. They get a message of their own.
const UNFINISHED: &[&str] = &["files", "limits", "auth", "basic", "split", "compress", "maintenance"];

/// A configuration, with warnings about settings that cannot work or have no effect.
#[derive(Debug)]
pub struct Checked {
    sources: Sources,
    /// The configuration.
    pub config: Config,
    /// In the order of the files.
    pub warnings: Vec<Warning>,
}

/// A problem that does not prevent the use of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// What it is, and where.
    pub problem: Problem,
    /// Whether it cannot work, which makes `check` fail.
    pub is_error: bool,
}

/// Parses a deadline such as `30s`. The error says what to write instead.
pub(crate) fn deadline(text: &str) -> Result<Duration, String> {
    values::duration_in(text.trim(), Duration::ZERO, DAY)
}

/// Reads the configuration file at `path`.
pub fn load(path: &Path) -> Result<Checked, Vec<Problem>> {
    let problem = |position, message| vec![Problem { file: None, position, message }];
    let bytes = std::fs::read(path).map_err(|e| problem(None, format!("the file cannot be read: {e}")))?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => check(text, path),
        Err(e) => {
            let valid = String::from_utf8_lossy(&bytes[..e.valid_up_to()]);
            let position = reader::position(&valid, valid.len());
            Err(problem(Some(position), "this is not UTF-8: save the file as UTF-8 text".to_owned()))
        }
    }
}

/// Like [`check`], without the warnings.
pub fn read(text: &str, file: &Path) -> Result<Config, Vec<Problem>> {
    check(text, file).map(|checked| checked.config)
}

/// Reads `text` as the content of `file`: relative paths are relative to that file's folder.
pub fn check(text: &str, file: &Path) -> Result<Checked, Vec<Problem>> {
    let (sources, included) = Sources::of(text, file);
    let mut replaced = Replaced::default();
    let mut parsed = sources.parse();
    for (source, (table, _)) in sources.iter().zip(&mut parsed) {
        replaced.replace(table.get_mut(), source.start, &|name| std::env::var(name).ok());
    }
    let template_text = template::with_examples();
    let template_table = DeTable::parse(&template_text).expect("a test reads default.toml");
    let template = Template::of(template_table.get_ref());
    let mut reader = Reader::new(&sources, &parsed, &replaced, &template);
    for (offset, message) in included.problems {
        reader.problem(offset, message);
    }
    let roots = reader.roots(&parsed);
    let config = reader.config(&roots, file);
    let problems = reader.into_problems();
    match config {
        Some(config) if problems.is_empty() => {
            drop(parsed);
            let advice = advice::of(&config, SystemTime::now());
            let mut checked = Checked { sources, config, warnings: Vec::new() };
            for (offset, message) in included.warnings {
                let problem = checked.sources.problem(Some(offset), message);
                checked.warnings.push(Warning { problem, is_error: false });
            }
            checked.advise(advice);
            Ok(checked)
        }
        _ => Err(problems),
    }
}

impl Checked {
    /// Adds advice to the warnings, in file order.
    pub(crate) fn advise(&mut self, advice: Vec<Advice>) {
        if advice.is_empty() {
            return;
        }
        let parsed = self.sources.parse();
        let tables = tables(&self.sources, &parsed);
        let warning = |advice: Advice| Warning {
            problem: self.sources.problem(subject_offset(&tables, advice.subject), advice.message),
            is_error: advice.is_error,
        };
        self.warnings.extend(advice.into_iter().map(warning));
        self.warnings.sort_by_key(|Warning { problem, .. }| (problem.file.clone(), problem.position));
    }

    /// The line of a setting of a listener, a pool, or `[access_log]`. `None`: it has its default.
    pub(crate) fn origin(&self, section: Subject, key: &str) -> Option<SourceLocation> {
        let parsed = self.sources.parse();
        let tables = tables(&self.sources, &parsed);
        let (list, index) = match section {
            Subject::Listener { listener } => ("listener", listener),
            Subject::Pool { pool } => ("pool", pool),
            Subject::AccessLog => ("access_log", 0),
            _ => return None,
        };
        let elements = tables.iter().flat_map(|(start, root)| {
            let elements: Vec<_> = match root.get(list).map(Spanned::get_ref) {
                Some(DeValue::Array(elements)) => elements.iter().map(Spanned::get_ref).collect(),
                Some(table) => vec![table],
                None => Vec::new(),
            };
            elements.into_iter().map(move |element| (*start, element))
        });
        let (start, element) = elements.into_iter().nth(index)?;
        let (key, _) = element.as_table()?.get_key_value(key)?;
        let offset = start + key.span().start;
        let file = Arc::clone(&self.sources.source(offset).file);
        Some(SourceLocation { file, line: self.sources.position(offset).line })
    }

    /// The files that it was read from.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.sources.iter().map(|source| &*source.file)
    }

    /// A problem, found later, with something that the configuration refers to.
    pub(crate) fn problem(&self, subject: Subject, message: String) -> Problem {
        let parsed = self.sources.parse();
        self.sources.problem(subject_offset(&tables(&self.sources, &parsed), subject), message)
    }
}

/// The table of each file, with the offset of the file's first byte.
fn tables<'t>(sources: &Sources, parsed: &'t [Parsed<'t>]) -> Vec<(usize, &'t DeTable<'t>)> {
    sources.iter().zip(parsed).map(|(source, (table, _))| (source.start, table.get_ref())).collect()
}

/// The offset of a subject, or of the section that would contain it. `files`: each with the offset of its first byte.
fn subject_offset(files: &[(usize, &DeTable<'_>)], subject: Subject) -> Option<usize> {
    let element = |list: &str, index: usize| {
        // A single section where a list is needed was reported already.
        let lists = files.iter().filter_map(|(start, root)| Some((*start, root.get(list)?.get_ref().as_array()?)));
        lists.flat_map(|(start, elements)| elements.iter().map(move |element| (start, element))).nth(index)
    };
    let section = |key: &str| files.iter().find_map(|(start, root)| Some((*start, root.get(key)?)));
    let within = |(start, section): (usize, &Spanned<DeValue<'_>>), keys: &[&str]| {
        let mut offset = section.span().start;
        let mut value = section.get_ref();
        for key in keys {
            let Some(inner) = value.as_table().and_then(|table| table.get(*key)) else { break };
            (offset, value) = (inner.span().start, inner.get_ref());
        }
        start + offset
    };
    match subject {
        Subject::Algorithm { pool } => Some(within(element("pool", pool)?, &["algorithm"])),
        Subject::Backends { pool } => Some(within(element("pool", pool)?, &["backends"])),
        Subject::Cookie { pool } => Some(within(element("pool", pool)?, &["sticky", "cookie"])),
        Subject::Listener { listener } => {
            let listener = element("listener", listener)?;
            let has_one = listener.1.get_ref().as_table().is_some_and(|listener| listener.contains_key("address"));
            Some(within(listener, &[if has_one { "address" } else { "addresses" }]))
        }
        Subject::Proxies { listener } => Some(within(element("listener", listener)?, &["proxy_protocol", "from"])),
        Subject::BackendTls { pool } => Some(within(element("pool", pool)?, &["tls", "verify"])),
        Subject::Source { pool } => Some(within(element("pool", pool)?, &["source_address"])),
        Subject::Pool { pool } => Some(within(element("pool", pool)?, &["name"])),
        Subject::Route { route } => Some(within(element("route", route)?, &["path"])),
        Subject::Site { site } => Some(within(element("site", site)?, &["hosts"])),
        Subject::RouteOfSite { site, route } => {
            let (start, site) = element("site", site)?;
            let routes = site.get_ref().as_table()?.get("route").and_then(|routes| routes.get_ref().as_array());
            match routes.and_then(|routes| routes.get(route)) {
                Some(route) => Some(start + route.span().start),
                // The site's own action.
                None => Some(start + site.span().start),
            }
        }
        Subject::AccessLog => Some(within(section("access_log")?, &["file"])),
        Subject::Log => Some(within(section("log")?, &["file"])),
        Subject::State => Some(within(section("state")?, &["file"])),
        Subject::Certificate { listener } => {
            let listener = element("listener", listener)?;
            let tls = listener.1.get_ref().as_table().and_then(|listener| listener.get("tls")?.get_ref().as_table());
            let has_one = tls.is_some_and(|tls| tls.contains_key("certificate"));
            Some(within(listener, &["tls", if has_one { "certificate" } else { "certificates" }]))
        }
        Subject::Backend { pool, backend } => {
            let (start, pool) = element("pool", pool)?;
            let backends = pool.get_ref().as_table()?.get("backends")?.get_ref();
            backends.as_array()?.get(backend).map(|backend| within((start, backend), &["address"]))
        }
    }
}

/// Each method reads all of its section before it returns `None`, so that no problem is missed.
impl<'t> Reader<'t> {
    fn config(&mut self, roots: &[Section<'t>], file: &Path) -> Option<Config> {
        let server = self.top_section(roots, "server");
        let server = self.server(&server);
        let (listeners, named) = self.listeners(roots);
        let admin = self.top_section(roots, "admin");
        let admin = self.admin(&admin, &listeners);
        let state = self.top_section(roots, "state");
        let state = self.state(&state, file);
        let log = self.top_section(roots, "log");
        let log = self.log(&log);
        let access_log = self.top_section(roots, "access_log");
        let access_log = self.access_log(&access_log);
        let metrics = self.top_section(roots, "metrics");
        let exact_status = self.value(&metrics, "exact_status", values::flag);
        let (pools, names) = self.pools(roots);
        let (values, are_values_sound) = self.values(roots);
        let routes = self.routes(roots, &names);
        let listeners: Option<Vec<_>> = listeners.map(|all| all.into_iter().map(|(listener, _)| listener).collect());
        let sites = {
            let references =
                References { pools: &names, listeners: &named, tables: &values, access_log: access_log.as_ref() };
            self.sites(roots, routes.as_deref().unwrap_or_default(), &references)
        };
        let (mut listeners, sites) = (listeners?, sites?);
        tls::pin(&mut listeners, &named, routes.as_deref().unwrap_or_default(), &sites);
        Some(Config {
            server: server?,
            listeners,
            admin: admin?,
            state: state?,
            log: log?,
            access_log: access_log?,
            metrics: MetricsConfig { exact_status: exact_status? },
            pools: pools?,
            routes: routes?,
            sites: sites.into_iter().map(Arc::new).collect(),
            values: Arc::new(are_values_sound.then_some(values)?),
        })
    }

    fn server(&mut self, section: &Section<'t>) -> Option<ServerConfig> {
        let user = self.optional(section, "user", values::user);
        let threads = self.value(section, "threads", values::whole(0, 1024));
        let shutdown_delay = self.value(section, "shutdown_delay", values::duration(Duration::ZERO, DAY));
        let shutdown_timeout = self.value(section, "shutdown_timeout", values::duration(Duration::ZERO, DAY));
        let trusted_proxies = self.each(section, "trusted_proxies", values::peer_network).map(trusted_peers);
        let families = [("x-forwarded", ForwardedBy::XForwarded), ("forwarded", ForwardedBy::Forwarded)];
        let forwarded_by = self.value(section, "forwarded_by", values::choice(&families));
        let via = self.value(section, "via", values::token);
        let request_id = self.value(section, "request_id", values::request_id_field);
        let max_connections = self.value(section, "max_connections", values::whole(0, 10_000_000));
        let max_handshakes = self.value(section, "max_handshakes", values::whole(0, 10_000_000));
        let idle_connections = self.value(section, "idle_connections", values::whole(0, 1_000_000));
        let resolver = self.section(section, "resolver");
        let resolver = self.resolver(&resolver);
        Some(ServerConfig {
            user: user?,
            threads: match threads? {
                0 => std::thread::available_parallelism().map_or(1, usize::from),
                threads => threads,
            },
            shutdown_delay: shutdown_delay?,
            shutdown_timeout: shutdown_timeout?,
            trusted_proxies: trusted_proxies?,
            forwarded_by: forwarded_by?,
            via: via?,
            request_id: request_id?,
            max_connections: max_connections.map(NonZero::new)?,
            max_handshakes: max_handshakes.map(NonZero::new)?,
            idle_connections: idle_connections?,
            resolver: resolver?,
        })
    }

    fn resolver(&mut self, section: &Section<'t>) -> Option<ResolverConfig> {
        /// Shorter lifetimes would only put load on the DNS server.
        const MIN_TTL: Duration = Duration::from_millis(10);
        let servers = self.each(section, "servers", values::name_server);
        let timeout = self.value(section, "timeout", values::duration(Duration::ZERO, Duration::from_secs(60)));
        let attempts = self.value(section, "attempts", values::whole(0, 10));
        let min_ttl = self.value(section, "min_ttl", values::duration(MIN_TTL, DAY));
        let max_ttl = self.value(section, "max_ttl", values::duration(MIN_TTL, DAY));
        let hold = self.value(section, "hold", values::duration(Duration::ZERO, DAY));
        if let (Some(min_ttl), Some(max_ttl)) = (min_ttl, max_ttl)
            && max_ttl < min_ttl
        {
            let message = format!(
                "server.resolver.max_ttl is {max_ttl:?}, shorter than the min_ttl of {min_ttl:?}: write a longer max_ttl or a shorter min_ttl"
            );
            self.problem(section.first_offset(&["max_ttl", "min_ttl"]), message);
        }
        Some(ResolverConfig {
            servers: servers?,
            timeout: Some(timeout?).filter(|timeout| !timeout.is_zero()),
            attempts: NonZero::new(attempts?),
            min_ttl: min_ttl?,
            max_ttl: max_ttl?,
            hold: hold?,
        })
    }

    fn admin(
        &mut self,
        section: &Section<'t>,
        listeners: &Option<Vec<(ListenerConfig, usize)>>,
    ) -> Option<AdminConfig> {
        let base = self.base(section);
        let address = self.value(section, "address", values::socket_address);
        let token = self.value(section, "token_file", |v| files::token(base, v));
        let read_token = self.value(section, "read_token_file", |v| files::token(base, v));
        let token_file = self.value(section, "token_file", |v| values::path(base, v));
        let read_token_file = self.value(section, "read_token_file", |v| values::path(base, v));
        match (&token, &read_token) {
            (Some(None), Some(Some(_))) => {
                let message = "admin.read_token_file has no effect without token_file, since then everyone may do everything: write both, or neither";
                self.problem(section.offset("read_token_file"), message);
            }
            (Some(Some(token)), Some(Some(read))) if token == read => {
                let message = "admin.read_token_file holds the same token as token_file, so it would not be one for reading only: write another token into it";
                self.problem(section.offset("read_token_file"), message);
            }
            _ => {}
        }
        if let Some(address) = address {
            if !address.ip().to_canonical().is_loopback() && matches!(token, Some(None)) {
                let message = format!(
                    "admin.address is \"{address}\", which others can reach, and there is no token: write token_file, or a loopback address such as \"127.0.0.1:8889\""
                );
                self.problem(section.offset("address"), message);
            }
            let of_listeners = listeners.iter().flatten();
            let mut of_listeners =
                of_listeners.flat_map(|(listener, offset)| listener.addresses.iter().map(move |taken| (taken, offset)));
            if let Some((taken, offset)) = of_listeners.find(|(taken, _)| overlap(taken, &address.into())) {
                let message = format!(
                    "admin.address is \"{address}\", which a [[listener]] has taken with \"{taken}\": write another port"
                );
                let offset = if section.has("address") { section.offset("address") } else { *offset };
                self.problem(offset, message);
            }
        }
        Some(AdminConfig {
            address: address?,
            token: token?,
            read_token: read_token?,
            token_file: token_file?,
            read_token_file: read_token_file?,
        })
    }

    fn state(&mut self, section: &Section<'t>, file: &Path) -> Option<StateConfig> {
        let base = self.base(section);
        let persist = self.value(section, "persist", values::flag);
        let chosen = self.value(section, "file", |v| values::path(base, v));
        let beside = || file.with_extension("state.json");
        let file = chosen?.unwrap_or_else(beside);
        Some(StateConfig { file: persist?.then_some(file) })
    }

    fn log(&mut self, section: &Section<'t>) -> Option<LogConfig> {
        const LEVELS: &[(&str, &str)] =
            &[("error", "error"), ("warn", "warn"), ("info", "info"), ("debug", "debug"), ("trace", "trace")];
        let level = self.value(section, "level", values::choice(LEVELS));
        let format =
            self.value(section, "format", values::choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)]));
        let base = self.base(section);
        let file = self.value(section, "file", |v| values::path(base, v));
        Some(LogConfig { file: file?, level: level?.to_owned(), format: format? })
    }

    fn access_log(&mut self, section: &Section<'t>) -> Option<AccessLogConfig> {
        const FORMATS: &[(&str, AccessLogFormat)] =
            &[("json", AccessLogFormat::Json), ("combined", AccessLogFormat::Combined)];
        let base = self.base(section);
        let file = self.value(section, "file", |v| values::log_file(base, v));
        let format = self.value(section, "format", values::choice(FORMATS));
        Some(AccessLogConfig { file: file?, format: format? })
    }

    fn routes(&mut self, roots: &[Section<'t>], pools: &[PoolName]) -> Option<Vec<HostRoute>> {
        let sections = match roots.iter().any(|root| root.has("site")) {
            true => roots.iter().flat_map(|root| self.tables(root, "route")).collect(),
            false => self.list(
                roots,
                "route",
                "without one every request is refused; add one that names a pool, or a [[site]]",
            ),
        };
        let mut seen: HashMap<(String, PathPrefix), usize> = HashMap::new();
        let mut routes = Some(Vec::new());
        for section in &sections {
            let route = self.route(section, pools);
            if let Some(route) = &route {
                let offset = section.first_offset(&["path", "host"]);
                let key = (route.host.to_string(), route.path.clone());
                match seen.get(&key) {
                    Some(first) => {
                        let message = format!(
                            "the route for host \"{}\" and path \"{}\" is in {} already: remove one of the two, or change its host or path",
                            route.host,
                            route.path.as_str(),
                            self.line(*first, offset)
                        );
                        self.problem(offset, message);
                    }
                    None => {
                        seen.insert(key, offset);
                    }
                }
            }
            collect(&mut routes, route);
        }
        routes
    }

    fn route(&mut self, section: &Section<'t>, pools: &[PoolName]) -> Option<HostRoute> {
        let host = self.value(section, "host", values::host_pattern);
        let path = self.value(section, "path", values::path_prefix);
        let pool = self.required(section, "pool", values::pool_name);
        if let Some(pool) = &pool {
            self.known_pool(section, "pool", pool, pools);
        }
        let defined_at = self.origin(section.offset("path"));
        Some(HostRoute { host: host?, path: path?, pool: pool?, defined_at })
    }

    /// Whether the pool exists; reports a problem if not.
    fn known_pool(&mut self, section: &Section<'t>, key: &str, pool: &PoolName, pools: &[PoolName]) -> bool {
        let is_known = pools.contains(pool);
        if !is_known {
            let names: Vec<_> = pools.iter().map(PoolName::as_str).collect();
            let fix = match names.is_empty() {
                true => "add a [[pool]] of this name".to_owned(),
                false => format!("{}the pools are {}", reader::did_you_mean(pool.as_str(), &names), names.join(", ")),
            };
            let message = format!("{} is \"{pool}\", but there is no such pool: {fix}", section.name_of(key));
            self.absent(Some(section.offset(key)), message);
        }
        is_known
    }
}

/// Whether two listeners would conflict. Port 0 is another free port each time.
fn overlap(a: &SocketAddress, b: &SocketAddress) -> bool {
    let (SocketAddress::Ip(a), SocketAddress::Ip(b)) = (a, b) else { return a == b };
    let same_family = matches!((a.ip(), b.ip()), (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)));
    let same_ip = a.ip() == b.ip() || (same_family && (a.ip().is_unspecified() || b.ip().is_unspecified()));
    a.port() == b.port() && a.port() != 0 && same_ip
}

/// `None` stands for peers on a Unix socket.
fn trusted_peers(from: Vec<Option<IpNet>>) -> TrustedPeers {
    let has_unix = from.contains(&None);
    TrustedPeers { networks: from.into_iter().flatten().collect(), has_unix }
}

/// The offset of an element of the array `key`.
fn element_offset(section: &Section<'_>, key: &str, index: usize) -> Option<usize> {
    Some(section.at(section.written(key)?.get_ref().as_array()?.get(index)?))
}

/// Adds to a list, which becomes `None` if any element has a problem.
fn collect<T>(list: &mut Option<Vec<T>>, item: Option<T>) {
    match (list.as_mut(), item) {
        (Some(items), Some(item)) => items.push(item),
        _ => *list = None,
    }
}
