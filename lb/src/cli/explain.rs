//! `evenkeel check --explain`: what happens to a request, by the code that handles real requests, and which lines of
//! the file cause it.

use std::fmt::Write as _;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::access_log::AccessLog;
use crate::config::advice::Subject;
use crate::config::backend::{SocketAddress, UNIX};
use crate::config::site::{Matcher, RouteConfig, Rules};
use crate::config::toml::{self, Checked};
use crate::config::{Config, ListenerConfig};
use crate::connection_limit::ConnectionLimit;
use crate::control::Control;
use crate::exchange::headers::PeerAddress;
use crate::http::explain::{End, Explanation, Question, Visit};
use crate::http::{Engine, EngineContext, ThreadState};
use crate::message::authority;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;
use crate::site::{RouteId, Site};

/// Properties of a request that are not in its request line.
#[derive(Debug, Args)]
pub(super) struct RequestArgs {
    /// A field of the request, such as 'Cookie: tier=gold'; may be given several times
    #[arg(long, value_name = "NAME: VALUE", requires = "explain")]
    header: Vec<String>,
    /// The client: an address, or "unix:" for a process that connects to a Unix socket. By default 192.0.2.1, or
    /// "unix:" if the listener has only such addresses
    #[arg(long, value_name = "IP", value_parser = client, requires = "explain")]
    client: Option<PeerAddress>,
    /// The listener, by name; by default the first one with the port or the scheme of the URL
    #[arg(long, value_name = "NAME", requires = "explain")]
    listener: Option<String>,
}

/// A request as given on the command line.
struct RequestLine<'a> {
    method: &'a str,
    is_https: bool,
    authority: &'a str,
    port: u16,
    target: String,
}

/// At most this much of a body is shown.
const MAX_SHOWN_BYTES: usize = 200;

pub(super) fn explain(
    file: &Path,
    request: &str,
    asked: &RequestArgs,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let checked = match toml::load(file) {
        Ok(checked) => checked,
        Err(problems) => return Ok(super::report(file, &problems)),
    };
    let mut config = checked.config.clone();
    // Has no side effects: no state is read or written, and no line is logged.
    config.state.file = None;
    let asks = RequestLine::parse(request)?;
    let index = listener(&config, &asks, asked.listener.as_deref())?;
    let client = asked_by(&config.listeners[index], asked.client)?;
    let head = asks.head(&asked.header)?;
    let control = Arc::new(Control::new(file, config, Arc::new(Metrics::new())));
    let engine = engine(&control, index);
    let question = Question { head: head.as_bytes(), client, is_tls: asks.is_https };
    let explanation = crate::http::explain::explain(&engine, &question).map_err(anyhow::Error::msg)?;
    let text = tell(&checked, index, &explanation, request);
    out.write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

impl<'a> RequestLine<'a> {
    /// Parses `GET https://host:port/path?query`; the default method is GET.
    fn parse(request: &'a str) -> anyhow::Result<Self> {
        let (method, url) = match request.trim().split_once(' ') {
            Some((method, url)) => (method, url.trim()),
            None => ("GET", request.trim()),
        };
        let example = "write it as 'GET https://host/path'";
        let (is_https, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => bail!("\"{request}\" is not a request with a URL: {example}"),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        let parsed = authority::parse(authority.as_bytes());
        let parsed = parsed.with_context(|| format!("\"{authority}\" in \"{request}\" is no host: {example}"))?;
        // A fragment is not sent.
        let target = target.split('#').next().unwrap_or_default();
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        ensure!(target.bytes().all(|byte| byte > b' ' && byte != 0x7f), "\"{target}\" holds a blank: write it as %20");
        Ok(Self { method, is_https, authority, port: parsed.port.unwrap_or(if is_https { 443 } else { 80 }), target })
    }

    fn head(&self, fields: &[String]) -> anyhow::Result<String> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        let names_host = fields.iter().any(|field| field.to_ascii_lowercase().starts_with("host:"));
        if !names_host {
            let _ = write!(head, "Host: {}\r\n", self.authority);
        }
        for field in fields {
            ensure!(
                field.contains(':') && !field.contains(['\r', '\n', '\0']),
                "\"{field}\" is no field: write it as 'Name: value'"
            );
            let _ = write!(head, "{field}\r\n");
        }
        head.push_str("\r\n");
        Ok(head)
    }
}

/// The index of the requested listener.
fn listener(config: &Config, asks: &RequestLine<'_>, name: Option<&str>) -> anyhow::Result<usize> {
    let position = |fits: &dyn Fn(&ListenerConfig) -> bool| config.listeners.iter().position(fits);
    if let Some(name) = name {
        let names: Vec<_> = config.listeners.iter().map(|listener| listener.name.as_str()).collect();
        return position(&|listener| listener.name.as_str() == name)
            .with_context(|| format!("there is no listener \"{name}\": there are {}", names.join(", ")));
    }
    let is_right = |listener: &ListenerConfig| listener.tls.is_some() == asks.is_https;
    let has_port =
        |listener: &ListenerConfig| listener.addresses.iter().any(|address| address.port() == Some(asks.port));
    let found = position(&|listener| is_right(listener) && has_port(listener))
        .or_else(|| position(&has_port))
        .or_else(|| position(&is_right));
    Ok(found.unwrap_or(0))
}

fn client(text: &str) -> Result<PeerAddress, String> {
    if text == UNIX {
        return Ok(PeerAddress::Unix);
    }
    let ip = text.parse::<IpAddr>();
    let ip = ip.map_err(|_| "write an IP address without a port, such as 192.0.2.1, or unix:".to_owned())?;
    Ok(PeerAddress::Ip(SocketAddr::new(ip, 0)))
}

/// The client on this listener. A client of a Unix socket has an address only with the PROXY protocol.
fn asked_by(listener: &ListenerConfig, client: Option<PeerAddress>) -> anyhow::Result<PeerAddress> {
    let is_unix = |address: &SocketAddress| matches!(address, SocketAddress::Unix(_));
    let has_unix = listener.addresses.iter().any(is_unix);
    let has_ip = !listener.addresses.iter().all(is_unix);
    let tells_of_others = listener.proxy_protocol.as_ref().is_some_and(|senders| senders.from.has_unix);
    let (name, addresses) = (&listener.name, &listener.addresses);
    match client {
        Some(PeerAddress::Unix) if !has_unix => {
            bail!("no client can reach listener {name} by a Unix socket ({addresses}): write the client's address")
        }
        Some(PeerAddress::Ip(client)) if !has_ip && !tells_of_others => bail!(
            "no client of listener {name} has an address such as {}, since it has Unix sockets alone ({addresses}): write --client unix:",
            client.ip()
        ),
        Some(client) => Ok(client),
        None if has_ip => Ok(PeerAddress::Ip(SocketAddr::from(([192, 0, 2, 1], 0)))),
        None => Ok(PeerAddress::Unix),
    }
}

/// An engine for requests of this listener, without sockets.
fn engine(control: &Arc<Control>, listener: usize) -> Engine {
    let shutdown = Shutdown::new();
    let thread_states: Arc<[Arc<ThreadState>]> = Arc::from([Arc::new(ThreadState::new(shutdown.clone()))]);
    let context = EngineContext {
        control: Arc::clone(control),
        access_log: Arc::new(AccessLog::new(control.metrics.access_log_lost.clone())),
        max_idle: Arc::new(AtomicUsize::new(0)),
        shutdown,
        client_limit: ConnectionLimit::new(1),
        backend_limit: ConnectionLimit::new(1),
        handshake_limit: ConnectionLimit::for_handshakes(1),
    };
    Engine::new(&control.snapshot().config.listeners[listener], &context, &thread_states, 0)
}

fn tell(checked: &Checked, index: usize, explanation: &Explanation, request: &str) -> String {
    let config = &checked.config;
    let listener = &config.listeners[index];
    let mut text = format!("{request}\n\n");
    row(&mut text, "listener", &listener.name.to_string(), &listener.addresses.to_string());
    let Some(site) = &explanation.site else {
        row(&mut text, "site", "none", "");
        let sites = config.all_sites();
        let every = sites.iter().flat_map(|site| site.routes.iter().map(|route| &route.rules).chain([&site.fallback]));
        end(&mut text, &explanation.end, &secret_fields(every, &explanation.end));
        return text;
    };
    let hosts: Vec<_> = site.config.hosts.iter().map(|host| format!("\"{host}\"")).collect();
    row(&mut text, "site", &site.config.name, &format!("{}, hosts {}", site.config.defined_at, hosts.join(" ")));
    for visit in &explanation.visits {
        route(&mut text, site, visit);
    }
    if let Some(last) = explanation.visits.last() {
        settings(&mut text, checked, index, site.rules(last.route), &explanation.end);
    }
    let visited = explanation.visits.iter().map(|visit| site.rules(visit.route)).chain([&site.config.fallback]);
    end(&mut text, &explanation.end, &secret_fields(visited, &explanation.end));
    text
}

/// The fields of the shown head to which these rules give secret values.
fn secret_fields<'a>(rules: impl Iterator<Item = &'a Rules>, end: &End) -> Vec<&'a str> {
    let changes = rules.flat_map(|rules| match end {
        End::Pool { .. } => &rules.request_headers.changes,
        End::Answer { .. } => &rules.response_headers,
    });
    changes.filter(|change| change.value.shown.is_some()).map(|change| &*change.name).collect()
}

fn row(text: &mut String, name: &str, value: &str, note: &str) {
    let _ = writeln!(text, "{}", format!("{name:<10}{value}  ({note})").trim_end_matches("  ()"));
}

/// A route that the request visits, and those that did not match.
fn route(text: &mut String, site: &Site, visit: &Visit) {
    let name = |id: RouteId| site.route(id).name.as_str().to_owned();
    let source_of = |id: RouteId| {
        site.route_config(id).map_or_else(String::new, |route| format!("{}, {}", route.defined_at, matcher(route)))
    };
    match site.route_config(visit.route) {
        Some(_) => row(text, "route", &name(visit.route), &source_of(visit.route)),
        None => row(text, "route", "none", "no route of the site takes it"),
    }
    let Some(path) = &visit.path else {
        let _ = writeln!(text, "{:<10}a jump names the route", "");
        return;
    };
    let winner = visit.asked.iter().rev().find(|(id, holds)| *holds && *id == visit.route);
    for (index, route) in site.config.routes.iter().enumerate() {
        let id = site.id(index);
        if id == visit.route {
            continue;
        }
        let why = match visit.asked.iter().find(|(asked, _)| *asked == id) {
            Some((_, false)) => "its condition does not hold",
            Some((_, true)) if winner.is_none() => "it is internal: only jumps and error pages lead there",
            Some((_, true)) => "a regex takes precedence",
            None if matches!(route.matcher, Matcher::Named) => continue,
            None if !site.covers(id, path) => continue,
            None if matches!(route.matcher, Matcher::Regex(_)) && is_over_regex(site, visit.route) => {
                "regexes are not asked, since over_regex says so"
            }
            None => "the chosen route is more specific, or comes first",
        };
        let _ = writeln!(text, "{:<10}lost: {} ({}): {why}", "", route.name, source_of(id));
    }
}

fn is_over_regex(site: &Site, id: RouteId) -> bool {
    site.route_config(id).is_some_and(|route| route.over_regex)
}

fn matcher(route: &RouteConfig) -> String {
    match &route.matcher {
        Matcher::Path(path) => format!("path \"{}\"", path.as_str()),
        Matcher::Exact(path) => format!("exact \"{path}\""),
        Matcher::Prefix(prefix) => format!("prefix \"{prefix}\""),
        Matcher::Regex(regex) => format!("regex '{}'", regex.text()),
        Matcher::Named => "named".to_owned(),
    }
}

/// A section whose settings apply unless a route overrides them.
struct Below<'a> {
    kind: &'static str,
    name: &'a str,
    subject: Subject,
    settings: Map<String, Value>,
}

/// Keys that identify a section, or are shown elsewhere.
const NO_SETTINGS: &[&str] = &["name", "address", "backends"];

/// Every setting in force, with its line in the file: those of the route, then the others of the listener and the pool.
fn settings(text: &mut String, checked: &Checked, index: usize, rules: &Rules, end: &End) {
    fn object(value: impl Serialize) -> Map<String, Value> {
        match serde_json::to_value(value) {
            Ok(Value::Object(map)) => map,
            _ => Map::new(),
        }
    }
    let config = &checked.config;
    let listener = &config.listeners[index];
    let pool = match end {
        End::Pool { name, .. } => config.pools.iter().position(|pool| pool.name.as_str() == name),
        End::Answer { .. } => None,
    };
    let mut below = vec![Below {
        kind: "listener",
        name: listener.name.as_str(),
        subject: Subject::Listener { listener: index },
        settings: object(listener),
    }];
    below.extend(pool.map(|pool| Below {
        kind: "pool",
        name: config.pools[pool].name.as_str(),
        subject: Subject::Pool { pool },
        settings: object(&config.pools[pool]),
    }));
    let source_of = |subject, key: &str| {
        checked.origin(subject, key).map_or_else(|| "default".to_owned(), |origin| origin.to_string())
    };
    let rules_said = object(rules);
    let _ = writeln!(text, "settings");
    for (key, value) in &rules_said {
        let of_below = || below.iter().find_map(|section| Some((section, section.settings.get(key)?)));
        let (value, source) = match (rules.origins.of(key), value) {
            (Some(origin), value) => (value.to_string(), origin.to_string()),
            (None, Value::Null) if key == "access_log" => {
                let value = serde_json::to_string(&config.access_log).unwrap_or_default();
                (value, format!("{}, [access_log]", source_of(Subject::AccessLog, "file")))
            }
            (None, Value::Null) => match of_below() {
                Some((section, value)) => (
                    value.to_string(),
                    format!("{}, {} {}", source_of(section.subject, key), section.kind, section.name),
                ),
                None => continue,
            },
            (None, value) => (value.to_string(), "default".to_owned()),
        };
        let _ = writeln!(text, "  {key} = {value}  ({source})");
    }
    for Below { kind, name, subject, settings } in &below {
        let _ = writeln!(text, "settings of {kind} {name}");
        for (key, value) in settings {
            if !rules_said.contains_key(key) && !NO_SETTINGS.contains(&key.as_str()) {
                let _ = writeln!(text, "  {key} = {value}  ({})", source_of(*subject, key));
            }
        }
    }
}

/// What is sent in the end; of `secret` fields only the names.
fn end(text: &mut String, end: &End, secret: &[&str]) {
    let head_shown = |text: &mut String, head: &[u8]| {
        for line in String::from_utf8_lossy(head).lines().filter(|line| !line.is_empty()) {
            let _ = match line.split_once(':') {
                Some((name, _)) if secret.iter().any(|secret| secret.eq_ignore_ascii_case(name)) => {
                    writeln!(text, "  {name}: …")
                }
                _ => writeln!(text, "  {line}"),
            };
        }
    };
    let shown = |text: &mut String, head: &[u8]| {
        for line in String::from_utf8_lossy(head).lines().filter(|line| !line.is_empty()) {
            let _ = writeln!(text, "  {line}");
        }
    };
    match end {
        End::Pool { name, head } => {
            let _ = writeln!(text, "to a backend of pool {name}");
            head_shown(text, head);
        }
        End::Answer { refusal, head, content } => {
            let why = refusal.map(|refusal| format!(", refused: {}", refusal.reason())).unwrap_or_default();
            let _ = writeln!(text, "to the client{why}");
            head_shown(text, head);
            if !content.is_empty() {
                let piece = content.get(..MAX_SHOWN_BYTES).unwrap_or(content);
                let _ = writeln!(text);
                shown(text, piece);
                if piece.len() < content.len() {
                    let _ = writeln!(text, "  … {} bytes in all", content.len());
                }
            }
        }
    }
}
