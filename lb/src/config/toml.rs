//! Reads `evenkeel.toml`. All problems are found in one pass, so this walks the parsed file by hand; a derived
//! deserializer would stop at the first one. The defaults and the set of valid keys come from `default.toml` itself.

mod environment;
mod files;
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
use std::collections::hash_map::Entry;
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
    AccessLogConfig, AccessLogFormat, Addresses, AdminConfig, BackendConfig, Config, EjectionConfig, ForwardedBy,
    HalfClose, HostRoute, ListenerAddresses, ListenerConfig, ListenerSettings, LogConfig, LogFormat, MetricsConfig,
    PoolConfig, PoolName, PoolSettings, Position, ProbeConfig, ProbeKind, Problem, ProxySenders, ResolverConfig,
    SameSite, SecureCookie, ServerConfig, SocketFileRights, StateConfig, StatusRanges, StickyConfig, TrustedPeers,
};
use crate::config::algorithm::Algorithm;
use crate::config::backend::{AdminState, SocketAddress};
use crate::config::route::{HostPattern, PathPrefix};
use crate::config::site::{ListenerName, SourceLocation};
use crate::config::tls::TlsConfig;
use crate::config::transport::{BackendTls, ProxyProtocol, TransportConfig, Trust};
use crate::message::limits::{self, AmbiguousNames, NonAsciiTargets};
use environment::Replaced;
use reader::{Reader, Section};
use rules::References;
use sources::{Parsed, Sources};
use template::Template;
use tls::{Named, Pinnable};
use values::{DAY, MILLISECOND};

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
            values: are_values_sound.then_some(values)?,
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

    /// The listeners, each with the offset of its address, and what sites can refer to, even if a listener has
    /// problems.
    fn listeners(&mut self, roots: &[Section<'t>]) -> (Option<Vec<(ListenerConfig, usize)>>, Vec<Named>) {
        let sections = self.list(roots, "listener", "add one with its address, such as \"0.0.0.0:8888\"");
        let mut addresses: Vec<SocketAddress> = Vec::new();
        let mut names: Vec<(ListenerName, bool)> = Vec::new();
        let (mut listeners, mut all_named) = (Some(Vec::new()), Vec::new());
        for section in &sections {
            let (listener, named) = self.listener(section);
            all_named.push(named);
            let mut own: Vec<SocketAddress> = Vec::new();
            for (index, address) in listener.iter().flat_map(|listener| listener.addresses.iter()).enumerate() {
                let index_among_others = index.checked_sub(usize::from(section.has("address")));
                let (offset, key) =
                    match index_among_others.and_then(|index| element_offset(section, "addresses", index)) {
                        Some(offset) => (offset, "addresses has"),
                        None => (section.offset("address"), "address is"),
                    };
                if let Some(taken) = own.iter().find(|taken| overlap(taken, address)) {
                    let why = match taken == address {
                        true => "is listed already".to_owned(),
                        false => format!("overlaps with \"{taken}\""),
                    };
                    self.problem(offset, format!("listener.{key} \"{address}\", which {why}: remove one of the two"));
                } else if let Some(taken) = addresses.iter().find(|taken| overlap(taken, address)) {
                    let fix = if address.ip().is_some() { "port" } else { "path" };
                    let message = format!(
                        "listener.{key} \"{address}\", which another [[listener]] has taken with \"{taken}\": write another {fix}"
                    );
                    self.problem(offset, message);
                }
                own.push(address.clone());
            }
            addresses.append(&mut own);
            if let Some(listener) = &listener {
                // Several listeners on free ports may have the same address and so the same default name.
                let is_given = section.has("name");
                if names.iter().any(|(name, was_given)| *name == listener.name && (is_given || *was_given)) {
                    let message = format!(
                        "listener.name is \"{}\", which another [[listener]] has: write another name",
                        listener.name
                    );
                    self.problem(section.first_offset(&["name", "address", "addresses"]), message);
                }
                names.push((listener.name.clone(), is_given));
            }
            collect(
                &mut listeners,
                listener.map(|listener| (listener, section.first_offset(&["address", "addresses"]))),
            );
        }
        (listeners, all_named)
    }

    fn listener(&mut self, section: &Section<'t>) -> (Option<ListenerConfig>, Named) {
        let addresses = self.addresses(section);
        let name = match section.has("name") {
            true => self.value(section, "name", values::listener_name),
            false => addresses.as_ref().map(|addresses| ListenerName::from(addresses.first())),
        };
        let inner = self.section(section, "tls");
        let tls = match section.has("tls") {
            true if inner.is_written() => self.tls(&inner).map(Some),
            true => None,
            false => Some(None),
        };
        let named = Named { name, certificates: Pinnable::of(tls.as_ref().map(Option::as_ref)) };
        let listener = self.listener_of(section, named.name.clone(), addresses, tls);
        (listener, named)
    }

    fn listener_of(
        &mut self,
        section: &Section<'t>,
        name: Option<ListenerName>,
        addresses: Option<ListenerAddresses>,
        tls: Option<Option<TlsConfig>>,
    ) -> Option<ListenerConfig> {
        let has_unix_socket = addresses.as_ref().is_some_and(|all| all.iter().any(|address| address.ip().is_none()));
        let socket_file = self.socket_file(section, has_unix_socket);
        let proxy_protocol = self.proxy_protocol(section);
        let keepalive_timeout = self.value(section, "keepalive_timeout", values::duration(MILLISECOND, DAY));
        let header_timeout = self.value(section, "header_timeout", values::duration(MILLISECOND, DAY));
        let body_timeout = self.value(section, "body_timeout", values::duration(MILLISECOND, DAY));
        let send_timeout = self.value(section, "send_timeout", values::duration(MILLISECOND, DAY));
        let lingering_time = self.value(section, "lingering_time", values::duration(MILLISECOND, DAY));
        let lingering_timeout = self.value(section, "lingering_timeout", values::duration(MILLISECOND, DAY));
        let min_rate = self.value(section, "min_rate", values::size::<u32>(0, u32::MAX.into()));
        let half_close = [("cancel", HalfClose::Cancel), ("answer", HalfClose::Answer)];
        let half_close = self.value(section, "half_close", values::choice(&half_close));
        let h2c = self.value(section, "h2c", values::flag);
        let rules =
            [("drop", AmbiguousNames::Drop), ("pass", AmbiguousNames::Pass), ("reject", AmbiguousNames::Reject)];
        let ambiguous_names = self.value(section, "ambiguous_names", values::choice(&rules));
        let rules = [("reject", NonAsciiTargets::Reject), ("pass", NonAsciiTargets::Pass)];
        let non_ascii_targets = self.value(section, "non_ascii_targets", values::choice(&rules));
        let max_line_bytes =
            self.value(section, "max_request_line_bytes", values::size(MIN_HEAD_BYTES, MAX_HEAD_BYTES));
        let max_head_bytes = self.value(section, "max_head_bytes", values::size(MIN_HEAD_BYTES, MAX_HEAD_BYTES));
        let max_fields = self.value(section, "max_fields", values::whole(1, MAX_FIELDS));
        let max_body_bytes = self.value(section, "max_body_bytes", values::size::<u64>(0, i64::MAX as u64));
        Some(ListenerConfig {
            name: name?,
            addresses: addresses?,
            socket_file: socket_file?,
            tls: tls?,
            proxy_protocol: proxy_protocol?,
            settings: ListenerSettings {
                keepalive_timeout: keepalive_timeout?,
                header_timeout: header_timeout?,
                body_timeout: body_timeout?,
                send_timeout: send_timeout?,
                lingering_time: lingering_time?,
                lingering_timeout: lingering_timeout?,
                min_rate: min_rate.map(NonZero::new)?,
                half_close: half_close?,
                h2c: h2c?,
                ambiguous_names: ambiguous_names?,
                non_ascii_targets: non_ascii_targets?,
                max_request_line_bytes: max_line_bytes?,
                max_head_bytes: max_head_bytes?,
                max_fields: max_fields?,
                max_body_bytes: max_body_bytes.map(|bytes| (bytes != 0).then_some(bytes))?,
            },
        })
    }

    /// `address` comes before `addresses`.
    fn addresses(&mut self, section: &Section<'t>) -> Option<ListenerAddresses> {
        let base = self.base(section);
        let one = match section.has("address") || !section.has("addresses") {
            true => self.required(section, "address", |v| values::listener_address(base, v)).map(Some),
            false => Some(None),
        };
        let others = match section.has("addresses") {
            true => self.each(section, "addresses", |v| values::listener_address(base, v)),
            false => Some(Vec::new()),
        };
        let addresses = ListenerAddresses::new(one?.into_iter().chain(others?).collect());
        if addresses.is_none() {
            let message = "listener.addresses is empty: write at least one, such as \"0.0.0.0:8888\"";
            self.problem(section.offset("addresses"), message);
        }
        addresses
    }

    fn socket_file(&mut self, section: &Section<'t>, has_unix_socket: bool) -> Option<Option<SocketFileRights>> {
        let mode = self.optional(section, "mode", values::mode);
        let owner = self.optional(section, "owner", values::user_and_group);
        if !has_unix_socket {
            for key in ["mode", "owner"].into_iter().filter(|key| section.has(key)) {
                let message = format!(
                    "listener.{key} has no effect without a Unix socket: remove it, or write address = \"unix:/run/evenkeel.sock\""
                );
                self.problem(section.key_offset(key), message);
            }
        }
        let rights = SocketFileRights { mode: mode?.unwrap_or(SocketFileRights::DEFAULT_MODE), owner: owner? };
        Some(has_unix_socket.then_some(rights))
    }

    fn proxy_protocol(&mut self, listener: &Section<'t>) -> Option<Option<ProxySenders>> {
        let section = self.section(listener, "proxy_protocol");
        if !section.is_written() {
            return Some(None);
        }
        let from = match section.has("from") {
            true => self.each(&section, "from", values::peer_network)?,
            false => Vec::new(),
        };
        if from.is_empty() {
            let message = "listener.proxy_protocol.from names no network: write the addresses of the load balancers that send the header, such as [\"10.0.0.0/8\"]";
            self.problem(section.first_offset(&["from"]), message);
            return None;
        }
        Some(Some(ProxySenders { from: trusted_peers(from) }))
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

    /// The pools, and all names that occur, also of pools with problems.
    fn pools(&mut self, roots: &[Section<'t>]) -> (Option<Vec<PoolConfig>>, Vec<PoolName>) {
        // Sites can do without pools.
        let sections = match roots.iter().any(|root| root.has("site")) {
            true => roots.iter().flat_map(|root| self.tables(root, "pool")).collect(),
            false => self.list(roots, "pool", "add one with a name and its backends"),
        };
        let mut names = Vec::new();
        let mut pools = Some(Vec::new());
        for section in &sections {
            let name = self.required(section, "name", values::pool_name);
            if let Some(name) = &name {
                if names.contains(name) {
                    let message = format!("pool.name is \"{name}\", which another [[pool]] has: write another name");
                    self.problem(section.offset("name"), message);
                } else {
                    names.push(name.clone());
                }
            }
            let algorithm = self.value(section, "algorithm", values::algorithm);
            let backends = self.backends(section);
            let settings = self.pool_settings(section);
            let pool =
                || Some(PoolConfig { name: name?, algorithm: algorithm?, backends: backends?, settings: settings? });
            collect(&mut pools, pool());
        }
        (pools, names)
    }

    fn pool_settings(&mut self, section: &Section<'t>) -> Option<PoolSettings> {
        let connect_timeout = self.value(section, "connect_timeout", values::duration(MILLISECOND, DAY));
        let response_timeout = self.value(section, "response_timeout", values::duration(MILLISECOND, DAY));
        let read_timeout = self.value(section, "read_timeout", values::duration(MILLISECOND, DAY));
        let write_timeout = self.value(section, "write_timeout", values::duration(MILLISECOND, DAY));
        let tunnel_timeout = self.value(section, "tunnel_timeout", values::duration(MILLISECOND, DAY));
        let idle_timeout = self.value(section, "idle_timeout", values::duration(MILLISECOND, DAY));
        let retries = self.value(section, "retries", values::whole(0, 16));
        let continue_timeout = self.value(section, "continue_timeout", values::duration(MILLISECOND, DAY));
        let retry_timeout = self.value(section, "retry_timeout", values::duration(Duration::ZERO, DAY));
        let retry_body_bytes = self.value(section, "retry_body_bytes", values::size(0, 65536));
        let max_head_bytes = self.value(section, "max_head_bytes", values::size(MIN_HEAD_BYTES, MAX_HEAD_BYTES));
        let max_fields = self.value(section, "max_fields", values::whole(1, MAX_FIELDS));
        let panic_threshold = self.value(section, "panic_threshold", values::whole(0, 100));
        let words = [("share", Addresses::Share), ("each", Addresses::Each)];
        let addresses = self.value(section, "addresses", values::choice(&words));
        let queue_timeout = self.value(section, "queue_timeout", values::duration(Duration::ZERO, DAY));
        let transport = self.transport(section);
        let probe = self.section(section, "probe");
        let probe = if probe.is_written() { self.probe(&probe).map(Some) } else { Some(None) };
        let ejection = self.section(section, "ejection");
        let ejection = self.ejection(&ejection);
        let sticky = self.section(section, "sticky");
        let sticky = if sticky.is_written() { self.sticky(&sticky).map(Some) } else { Some(None) };
        Some(PoolSettings {
            connect_timeout: connect_timeout?,
            response_timeout: response_timeout?,
            read_timeout: read_timeout?,
            write_timeout: write_timeout?,
            tunnel_timeout: tunnel_timeout?,
            idle_timeout: idle_timeout?,
            continue_timeout: continue_timeout?,
            retries: retries?,
            retry_timeout: retry_timeout
                .map(|timeout| if timeout.is_zero() { response_timeout } else { Some(timeout) })??,
            retry_body_bytes: retry_body_bytes?,
            max_head_bytes: max_head_bytes?,
            max_fields: max_fields?,
            panic_threshold: panic_threshold?,
            addresses: addresses?,
            queue_timeout: queue_timeout?,
            transport: transport?,
            probe: probe?,
            ejection: ejection?,
            sticky: sticky?,
        })
    }

    fn transport(&mut self, section: &Section<'t>) -> Option<TransportConfig> {
        let source_address = self.value(section, "source_address", values::ip_address);
        let versions = [("off", ProxyProtocol::Off), ("v1", ProxyProtocol::V1), ("v2", ProxyProtocol::V2)];
        let proxy_protocol = self.value(section, "proxy_protocol", values::choice(&versions));
        let tls = match section.written("tls").map(Spanned::get_ref) {
            Some(DeValue::Boolean(false)) => Some(None),
            Some(DeValue::Boolean(true)) => self.backend_tls(&section.without("tls"), section.offset("tls")).map(Some),
            Some(DeValue::Table(_)) => {
                let inner = self.section(section, "tls");
                self.backend_tls(&inner, section.offset("tls")).map(Some)
            }
            Some(_) => {
                let name = section.name_of("tls");
                let message = format!("{name} is neither true nor a table: write tls = true, or a section [pool.tls]");
                self.problem(section.offset("tls"), message);
                None
            }
            None => Some(None),
        };
        Some(TransportConfig { source_address: source_address?, proxy_protocol: proxy_protocol?, tls: tls? })
    }

    fn backend_tls(&mut self, section: &Section<'t>, offset: usize) -> Option<BackendTls> {
        let base = self.base(section);
        let name = self.optional(section, "name", values::certificate_name);
        let verify = self.optional(section, "verify", values::flag);
        let ca = self.optional(section, "ca", |v| files::certificates(base, v));
        let certificate = self.optional(section, "certificate", |v| files::certificates(base, v));
        let key = self.optional(section, "key", |v| files::key(base, v));
        let (name, verify, ca) = (name?.flatten(), verify?.unwrap_or(true), ca?.flatten());
        let (certificate, key) = (certificate?.flatten(), key?.flatten());
        if certificate.is_some() != key.is_some() {
            let (there, missing) = if key.is_some() { ("key", "certificate") } else { ("certificate", "key") };
            let message = format!("pool.tls.{there} is of no use without pool.tls.{missing}: write both, or neither");
            self.problem(section.offset(there), message);
            return None;
        }
        let (ca, roots) = match ca {
            Some((path, roots)) => (Some(path), roots.into()),
            None if !verify => (None, Arc::default()),
            None => match self.system_roots() {
                Ok(roots) => (None, roots),
                Err(problem) => {
                    let message = format!(
                        "pool.tls has no ca, and the CAs that this system trusts cannot be read: {problem}; write ca = \"FILE\" or install them (on Debian the package ca-certificates)"
                    );
                    self.problem(offset, message);
                    return None;
                }
            },
        };
        let (certificate, chain) = certificate.unzip();
        let (key, secret) = key.unzip();
        let trust = Trust { roots, chain: chain.unwrap_or_default(), key: secret };
        let tls = BackendTls { name, ca, certificate, key, verify, trust };
        if let Err(e) = tls.client_config() {
            let (key, message) = match tls.key {
                Some(_) => (
                    "key",
                    format!(
                        "pool.tls.key does not belong to pool.tls.certificate ({e}): name the key that the certificate was made for"
                    ),
                ),
                None => ("ca", format!("pool.tls cannot be used: {e}")),
            };
            self.problem(section.offset(key), message);
            return None;
        }
        Some(tls)
    }

    fn backends(&mut self, pool: &Section<'t>) -> Option<Vec<BackendConfig>> {
        if !pool.has("backends") {
            self.missing(pool, "backends");
            return None;
        }
        let elements = self.elements(pool, "backends")?;
        let mut addresses = HashMap::new();
        let mut backends = Some(Vec::new());
        for element in elements {
            let (backend, offset) = match element.get_ref() {
                DeValue::Table(_) => {
                    let section = self.element(pool, "backends", element);
                    (self.backend(&section), section.offset("address"))
                }
                _ => {
                    let address = self.read_at(pool, "backends", element, values::backend_address);
                    (address.map(BackendConfig::new), pool.at(element))
                }
            };
            if let Some(address) = backend.as_ref().map(|backend| &backend.address) {
                match addresses.entry(address.canonical()) {
                    Entry::Vacant(entry) => drop(entry.insert(address.clone())),
                    Entry::Occupied(first) => {
                        let spelling = match first.get() == address {
                            true => String::new(),
                            false => format!(", the first time as \"{}\"", first.get()),
                        };
                        let message = format!(
                            "pool.backends has \"{address}\" twice{spelling}: remove one, and write weight = 2 to send it twice as much"
                        );
                        self.problem(offset, message);
                    }
                }
            }
            collect(&mut backends, backend);
        }
        backends
    }

    fn backend(&mut self, section: &Section<'t>) -> Option<BackendConfig> {
        const STATES: &[(&str, AdminState)] =
            &[("active", AdminState::Active), ("draining", AdminState::Draining), ("down", AdminState::Down)];
        let address = self.required(section, "address", values::backend_address);
        let weight = self.value(section, "weight", values::weight);
        let state = self.value(section, "state", values::choice(STATES));
        let max_connections = self.value(section, "max_connections", values::whole(0, u32::MAX.into()));
        let max_connections = max_connections.map(NonZero::new);
        Some(BackendConfig { address: address?, weight: weight?, state: state?, max_connections: max_connections? })
    }

    fn probe(&mut self, section: &Section<'t>) -> Option<ProbeConfig> {
        let is_http = self.value(section, "type", values::choice(&[("http", true), ("tcp", false)]));
        let path = self.value(section, "path", values::request_target);
        let host = self.value(section, "host", values::host_field);
        let status = self.value(section, "status", values::status_ranges);
        let interval = self.value(section, "interval", values::duration(MILLISECOND, DAY));
        let timeout = self.value(section, "timeout", values::duration(MILLISECOND, DAY));
        let rise = self.value(section, "rise", values::whole(1, 100));
        let fall = self.value(section, "fall", values::whole(1, 100));
        if is_http == Some(false) {
            for key in ["path", "host", "status"].into_iter().filter(|key| section.has(key)) {
                let message =
                    format!("pool.probe.{key} has no effect for a tcp probe: remove it, or write type = \"http\"");
                self.problem(section.key_offset(key), message);
            }
        }
        if let (Some(timeout), Some(interval)) = (timeout, interval)
            && timeout > interval
        {
            let message = format!(
                "pool.probe.timeout is {timeout:?}, longer than the interval of {interval:?}: write a shorter timeout or a longer interval"
            );
            self.problem(section.first_offset(&["timeout", "interval"]), message);
        }
        let http = || Some(ProbeKind::Http { path: path?, host: host?, status: status? });
        Some(ProbeConfig {
            kind: if is_http? { http()? } else { ProbeKind::Tcp },
            interval: interval?,
            timeout: timeout?,
            rise: rise?,
            fall: fall?,
        })
    }

    fn ejection(&mut self, section: &Section<'t>) -> Option<EjectionConfig> {
        let consecutive_failures = self.value(section, "consecutive_failures", values::whole(0, 1000));
        let base_time = self.value(section, "base_time", values::duration(MILLISECOND, DAY));
        let max_time = self.value(section, "max_time", values::duration(MILLISECOND, DAY));
        let max_percent = self.value(section, "max_percent", values::whole(0, 100));
        let statuses = match section.is_text("statuses") {
            true => self.value(section, "statuses", values::failing_statuses),
            false => self.each(section, "statuses", values::failing_statuses).map(|codes| codes.concat()),
        };
        if let (Some(base_time), Some(max_time)) = (base_time, max_time)
            && max_time < base_time
        {
            let message = format!(
                "pool.ejection.max_time is {max_time:?}, shorter than the base_time of {base_time:?}: write a longer max_time or a shorter base_time"
            );
            self.problem(section.first_offset(&["max_time", "base_time"]), message);
        }
        Some(EjectionConfig {
            consecutive_failures: consecutive_failures?,
            base_time: base_time?,
            max_time: max_time?,
            max_percent: max_percent?,
            statuses: statuses?,
        })
    }

    fn sticky(&mut self, section: &Section<'t>) -> Option<StickyConfig> {
        const SAME_SITE: &[(&str, SameSite)] =
            &[("lax", SameSite::Lax), ("strict", SameSite::Strict), ("none", SameSite::None)];
        const SECURE: &[(&str, SecureCookie)] =
            &[("auto", SecureCookie::Auto), ("always", SecureCookie::Always), ("never", SecureCookie::Never)];
        let base = self.base(section);
        let cookie = self.value(section, "cookie", values::cookie_name);
        // Browsers keep no cookie for longer than 400 days.
        let max_age = self.value(section, "max_age", values::duration(Duration::ZERO, DAY * 400));
        let same_site = self.value(section, "same_site", values::choice(SAME_SITE));
        let secure = self.value(section, "secure", values::choice(SECURE));
        let secret = self.value(section, "secret_file", |v| files::secret(base, v));
        let secret_file = self.value(section, "secret_file", |v| values::path(base, v));
        let path = self.value(section, "path", values::cookie_path);
        let grace = self.value(section, "grace", values::duration(Duration::ZERO, DAY));
        if (same_site, secure) == (Some(SameSite::None), Some(SecureCookie::Never)) {
            let message = "pool.sticky.secure is \"never\", but browsers refuse a cookie with same_site \"none\" that is not secure: write secure = \"auto\" or \"always\"";
            self.problem(section.offset("secure"), message);
        }
        Some(StickyConfig {
            cookie: cookie?,
            max_age: Some(max_age?).filter(|age| !age.is_zero()),
            same_site: same_site?,
            secure: secure?,
            secret: secret?,
            secret_file: secret_file?,
            path: path?,
            grace: grace?,
        })
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
