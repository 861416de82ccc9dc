//! The configuration, validated and ready to use. Whatever reads a file (`toml` here, nginx's language later) returns
//! this model or a list of problems, never something in between.

pub(crate) mod advice;
pub mod algorithm;
pub mod backend;
pub(crate) mod certificate;
pub(crate) mod difference;
pub mod route;
pub mod site;
pub mod tls;
pub mod toml;
pub mod transport;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use self::algorithm::Algorithm;
use self::backend::{AdminState, BackendAddress, SocketAddress, UNIX, Weight};
use self::route::{HostPattern, PathPrefix};
use self::site::{ListenerName, RouteConfig, SiteConfig, SourceLocation};
use self::tls::TlsConfig;
use self::transport::TransportConfig;
use crate::message::ascii::is_token;
use crate::message::limits::{AmbiguousNames, Limits, NonAsciiTargets};
use crate::message::name::Name;
use crate::value::table::Tables;

/// A whole configuration. All references in it resolve: each route names a pool that exists.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    /// Section `[server]`.
    pub server: ServerConfig,
    /// In the order of the file; names and addresses are unique.
    pub listeners: Vec<ListenerConfig>,
    /// Section `[admin]`.
    pub admin: AdminConfig,
    /// Section `[state]`.
    pub state: StateConfig,
    /// Section `[log]`.
    pub log: LogConfig,
    /// Section `[access_log]`: the access log of all routes that have none of their own.
    pub access_log: AccessLogConfig,
    /// Section `[metrics]`.
    pub metrics: MetricsConfig,
    /// In the order of the file; names are unique.
    pub pools: Vec<PoolConfig>,
    /// The top-level routes, which are a short form of sites: see [`Config::all_sites`].
    pub routes: Vec<HostRoute>,
    /// Shared with the snapshot, and by configurations that were derived from each other.
    #[serde(serialize_with = "shared")]
    pub sites: Vec<Arc<SiteConfig>>,
    /// User-defined variables. Shared with exchanges, which may outlive the snapshot.
    #[serde(serialize_with = "inner")]
    pub values: Arc<Tables>,
}

/// What holds for the whole process, or for all listeners. Ranges and defaults are in `default.toml`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServerConfig {
    /// The user that the process becomes if it is started as root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<UserAndGroup>,
    /// Threads that carry traffic, at least 1.
    pub threads: usize,
    /// How long the balancer answers "not ready" before it closes its listeners.
    #[serde(serialize_with = "seconds")]
    pub shutdown_delay: Duration,
    /// How long exchanges in flight may take to finish once the listeners are closed.
    #[serde(serialize_with = "seconds")]
    pub shutdown_timeout: Duration,
    /// Peers whose forwarded fields are believed.
    pub trusted_proxies: TrustedPeers,
    /// The fields by which trusted proxies describe their clients. The others are ignored and written anew.
    pub forwarded_by: ForwardedBy,
    /// The name of this balancer in `Via`; `None`: no `Via` is sent.
    pub via: Option<Box<str>>,
    /// The field that carries a request's id to backends and clients.
    pub request_id: RequestIdField,
    /// Limit on connected clients; `None`: as many as the limit on open files allows.
    pub max_connections: Option<NonZero<usize>>,
    /// Limit on clients in a TLS handshake; `None`: half of all.
    pub max_handshakes: Option<NonZero<usize>>,
    /// Idle connections to all backends together.
    pub idle_connections: usize,
    /// Section `[server.resolver]`.
    pub resolver: ResolverConfig,
}

/// How names of backends are resolved.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ResolverConfig {
    /// Used in place of the system's servers; empty: those of `/etc/resolv.conf`, with its search domains and options.
    pub servers: Vec<SocketAddr>,
    /// How long a server may take to answer; `None`: as in `/etc/resolv.conf`.
    #[serde(serialize_with = "optional_seconds")]
    pub timeout: Option<Duration>,
    /// How often each server is asked before it counts as not answering; `None`: as in `/etc/resolv.conf`.
    pub attempts: Option<NonZero<usize>>,
    /// An answer is used at least this long, whatever its TTL.
    #[serde(serialize_with = "seconds")]
    pub min_ttl: Duration,
    /// An answer is used at most this long.
    #[serde(serialize_with = "seconds")]
    pub max_ttl: Duration,
    /// How long the last addresses of a name are used after DNS has answered that it has none.
    #[serde(serialize_with = "seconds")]
    pub hold: Duration,
}

/// The fields in which trusted proxies name their clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedBy {
    /// X-Forwarded-For and related fields.
    XForwarded,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// The field in which backends and clients get a request's id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum RequestIdField {
    /// No field.
    Off,
    /// `X-Request-Id`.
    #[default]
    Usual,
    /// A field without another meaning here.
    Named(Arc<str>),
}

/// Where clients connect, and how they are treated.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ListenerConfig {
    /// Unique.
    pub name: ListenerName,
    /// Where it accepts connections.
    #[serde(flatten)]
    pub addresses: ListenerAddresses,
    /// For its Unix sockets; `None`: it has none.
    #[serde(flatten)]
    pub socket_file: Option<SocketFileRights>,
    /// `None`: clients speak clear text.
    pub tls: Option<TlsConfig>,
    /// Peers that must send a PROXY header; `None`: none.
    pub proxy_protocol: Option<ProxySenders>,
    /// Time limits, sizes and rules of HTTP.
    #[serde(flatten)]
    pub settings: ListenerSettings,
}

/// The addresses of a listener: one or several, without duplicates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerAddresses(Vec<SocketAddress>);

/// Who may connect to a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SocketFileRights {
    /// Permission bits.
    #[serde(serialize_with = "octal")]
    pub mode: u32,
    /// `None`: the user and group of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<UserAndGroup>,
}

/// A user, a group or both, as names or numbers: `www-data`, `www-data:adm`, `:adm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserAndGroup {
    /// Its name or number; `None`: the user stays as it is.
    pub user: Option<String>,
    /// Its name or number; `None`: the user's own groups.
    pub group: Option<String>,
}

/// Trusted peers: those in these networks, and peers on Unix sockets if configured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedPeers {
    /// Of IPv4 and IPv6.
    pub networks: Vec<IpNet>,
    /// Written as `unix:`.
    pub has_unix: bool,
}

/// Networks of load balancers that send a PROXY protocol header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProxySenders {
    /// At least one.
    pub from: TrustedPeers,
}

/// Settings for the clients of a listener. A reload can change them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ListenerSettings {
    /// How long a connection may be idle between two requests; over HTTP/2, without an open stream.
    #[serde(serialize_with = "seconds")]
    pub keepalive_timeout: Duration,
    /// How long a client may take for the head of a request: then 408.
    #[serde(serialize_with = "seconds")]
    pub header_timeout: Duration,
    /// How long a client may pause within a request body: then 408.
    #[serde(serialize_with = "seconds")]
    pub body_timeout: Duration,
    /// How long a client may take to accept more of a response.
    #[serde(serialize_with = "seconds")]
    pub send_timeout: Duration,
    /// How long in total a client that still sends is read after its last response (nginx's `lingering_time`).
    #[serde(serialize_with = "seconds")]
    pub lingering_time: Duration,
    /// How long it may pause in that time (nginx's `lingering_timeout`).
    #[serde(serialize_with = "seconds")]
    pub lingering_timeout: Duration,
    /// Bytes per second that a client must transfer on average; `None`: no minimum.
    pub min_rate: Option<NonZero<u32>>,
    /// What a client means that closes its sending side early.
    pub half_close: HalfClose,
    /// Whether clients may use HTTP/2 in clear text.
    pub h2c: bool,
    /// What becomes of fields with `_` or `.` in their names.
    pub ambiguous_names: AmbiguousNames,
    /// What becomes of a request target that holds bytes above ASCII.
    pub non_ascii_targets: NonAsciiTargets,
    /// Limit on a request line in bytes, without its line ending.
    pub max_request_line_bytes: u32,
    /// Limit on a request's head in bytes, from the first line to the empty line.
    pub max_head_bytes: u32,
    /// Limit on the fields of a request.
    pub max_fields: u32,
    /// Limit on a request body in bytes; `None`: no limit.
    pub max_body_bytes: Option<u64>,
}

/// What happens when a client closes its sending side before its response is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HalfClose {
    /// Its exchange ends: most such clients have disconnected, and the two cases cannot be distinguished.
    Cancel,
    /// It is answered all the same (HTTP/1.1).
    Answer,
}

/// The admin API: where it listens, and who may use it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdminConfig {
    /// Where it listens.
    pub address: SocketAddr,
    /// Set unless the address is loopback.
    #[serde(skip)]
    pub token: Option<Secret>,
    /// A token that permits reading only.
    #[serde(skip)]
    pub read_token: Option<Secret>,
    /// The file that the tokens come from.
    pub token_file: Option<PathBuf>,
    /// The file of [`AdminConfig::read_token`].
    pub read_token_file: Option<PathBuf>,
}

/// Whether changes made at run time survive a restart.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StateConfig {
    /// `None`: runtime changes end with the process.
    pub file: Option<PathBuf>,
}

/// The log of the process; access logs are separate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LogConfig {
    /// `None`: standard error.
    pub file: Option<PathBuf>,
    /// `error`, `warn`, `info`, `debug` or `trace`. The variable `RUST_LOG` overrides it.
    pub level: String,
    /// How a line is written.
    pub format: LogFormat,
}

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text for people; with colours on a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which series there are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetricsConfig {
    /// Whether each status code has its own counter, and not only those that are watched.
    pub exact_status: bool,
}

/// One line for each request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AccessLogConfig {
    /// `None`: off.
    pub file: Option<AccessLogFile>,
    /// How a line is written.
    pub format: AccessLogFormat,
}

/// Where an access log is written.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLogFile {
    /// Standard output.
    Stdout,
    /// Appended to this file.
    Path(PathBuf),
}

/// The format of the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLogFormat {
    /// One JSON object a line (`docs/observability.md` lists the fields).
    Json,
    /// The combined format of nginx and Apache.
    Combined,
}

/// The backends of one service, and how one of them is chosen for a request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PoolConfig {
    /// Unique.
    pub name: PoolName,
    /// How a backend is chosen. The admin API can change it.
    pub algorithm: Algorithm,
    /// No address twice. May be empty: requests are then answered with 503.
    pub backends: Vec<BackendConfig>,
    /// All other settings.
    #[serde(flatten)]
    pub settings: PoolSettings,
}

/// Settings of a pool besides its backends and algorithm. Only a reload changes them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PoolSettings {
    /// For opening a connection: then the next backend, else 504.
    #[serde(serialize_with = "seconds")]
    pub connect_timeout: Duration,
    /// From a request sent to the head of its response: then the next backend where repeating is safe, else 504.
    #[serde(serialize_with = "seconds")]
    pub response_timeout: Duration,
    /// How long a backend may leave an expectation of 100 unanswered before we tell the client to continue.
    #[serde(serialize_with = "seconds")]
    pub continue_timeout: Duration,
    /// Longest pause within a response body: then the response is cut off.
    #[serde(serialize_with = "seconds")]
    pub read_timeout: Duration,
    /// Longest pause while a request is sent to a backend.
    #[serde(serialize_with = "seconds")]
    pub write_timeout: Duration,
    /// How long a WebSocket may be silent in both directions.
    #[serde(serialize_with = "seconds")]
    pub tunnel_timeout: Duration,
    /// How long an idle connection is kept for reuse.
    #[serde(serialize_with = "seconds")]
    pub idle_timeout: Duration,
    /// Limit on further attempts after the first, 0 to 16.
    pub retries: usize,
    /// No attempt begins later than this after the first.
    #[serde(serialize_with = "seconds")]
    pub retry_timeout: Duration,
    /// Largest request body in bytes that is kept for another attempt, 0 to 65536.
    pub retry_body_bytes: usize,
    /// Limit on a response's head in bytes.
    pub max_head_bytes: u32,
    /// Limit on the fields of a response.
    pub max_fields: u32,
    /// How long a request waits while every backend is at its limit on connections.
    #[serde(serialize_with = "seconds")]
    pub queue_timeout: Duration,
    /// Percentage, 0 to 100.
    pub panic_threshold: u8,
    /// What weight the addresses of a backend's name have.
    pub addresses: Addresses,
    /// How backends are connected to.
    #[serde(flatten)]
    pub transport: TransportConfig,
    /// `None`: backends count as healthy until traffic fails on them.
    pub probe: Option<ProbeConfig>,
    /// When traffic that fails takes a backend out.
    pub ejection: EjectionConfig,
    /// `None`: no cookie.
    pub sticky: Option<StickyConfig>,
}

/// How the weight of a backend applies to the addresses of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Addresses {
    /// The addresses share it.
    Share,
    /// Each address has it.
    Each,
}

/// One server of a pool.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BackendConfig {
    /// Unique in its pool.
    pub address: BackendAddress,
    /// Its share of the traffic.
    pub weight: Weight,
    /// What the operator wants of it. The admin API can change it.
    pub state: AdminState,
    /// Limit on connections in use at once; `None`: no limit.
    pub max_connections: Option<NonZero<u32>>,
}

impl BackendConfig {
    /// A backend with default settings.
    pub fn new(address: BackendAddress) -> Self {
        Self { address, weight: Weight::ONE, state: AdminState::Active, max_connections: None }
    }
}

/// Active health checks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProbeConfig {
    /// What is asked.
    pub kind: ProbeKind,
    /// Between two probes of one address, give or take a tenth.
    #[serde(serialize_with = "seconds")]
    pub interval: Duration,
    /// For one probe; not longer than the interval.
    #[serde(serialize_with = "seconds")]
    pub timeout: Duration,
    /// 1 to 100.
    pub rise: u32,
    /// 1 to 100.
    pub fall: u32,
}

/// What a probe asks, and what it expects.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeKind {
    /// A connection can be opened.
    Tcp,
    /// A GET request is answered with an expected status.
    Http {
        /// The request target.
        path: String,
        /// `None`: the backend's address.
        host: Option<String>,
        /// The expected codes.
        status: StatusRanges,
    },
}

/// Response codes that a probe accepts, such as `200-299,304`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StatusRanges(Vec<(u16, u16)>);

/// Passive health checks: backends on which real traffic fails are taken out for a time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EjectionConfig {
    /// 0: never eject.
    pub consecutive_failures: u32,
    /// Length of the first ejection; the second in a row takes twice that, the third three times, and so on.
    #[serde(serialize_with = "seconds")]
    pub base_time: Duration,
    /// The longest ejection.
    #[serde(serialize_with = "seconds")]
    pub max_time: Duration,
    /// Percentage, 0 to 100.
    pub max_percent: u8,
    /// Status codes of responses that count as failures, 500 to 599.
    pub statuses: Vec<u16>,
}

/// A cookie that brings a client back to its backend.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StickyConfig {
    /// Name of the cookie.
    pub cookie: String,
    /// How long a draining backend still gets the clients whose cookie names it.
    #[serde(serialize_with = "seconds")]
    pub grace: Duration,
    /// The path for which browsers send the cookie; begins with `/`.
    pub path: String,
    /// `None`: until the browser closes.
    #[serde(serialize_with = "optional_seconds")]
    pub max_age: Option<Duration>,
    /// Its attribute `SameSite`.
    pub same_site: SameSite,
    /// When it has the attribute `Secure`.
    pub secure: SecureCookie,
    /// `None`: the random secret of the state file.
    #[serde(skip)]
    pub secret: Option<Secret>,
    /// The file that the secret was read from.
    pub secret_file: Option<PathBuf>,
}

/// The attribute `SameSite` of a cookie (RFC 6265bis).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SameSite {
    /// Also sent when a user follows a link from another site.
    Lax,
    /// Only sent by the cookie's own site.
    Strict,
    /// Also sent within pages of other sites.
    None,
}

/// When a cookie has the attribute `Secure`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SecureCookie {
    /// When the client came by HTTPS, here or to a trusted proxy.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// A top-level route. It only leads to a pool.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HostRoute {
    /// Hosts whose requests it is for.
    pub host: HostPattern,
    /// Paths that it is for; the longest match wins.
    pub path: PathPrefix,
    /// The pool that answers.
    pub pool: PoolName,
    /// The line of the file.
    #[serde(skip)]
    pub defined_at: SourceLocation,
}

/// Name of a pool: 1 to 64 letters, digits, `-`, `_` and `.`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PoolName(String);

/// Bytes that must not be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

/// A problem in a configuration file, and its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `None`: the main file.
    pub file: Option<Arc<Path>>,
    /// Counted from 1; `None`: the problem concerns the whole file.
    pub position: Option<Position>,
    /// Names the key, the value and the fix.
    pub message: String,
}

/// A place in a text file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
}

impl Config {
    /// Every site: those that top-level routes stand for, and those under `[[site]]`. No host is in both.
    pub fn all_sites(&self) -> Vec<Arc<SiteConfig>> {
        SiteConfig::of_routes(&self.routes).into_iter().map(Arc::new).chain(self.sites.iter().cloned()).collect()
    }

    /// Whether some route leads to a pool.
    pub fn is_routed(&self, pool: &PoolName) -> bool {
        let mut in_sites = self.sites.iter().flat_map(|site| &site.routes).flat_map(RouteConfig::pools);
        self.routes.iter().any(|route| route.pool == *pool) || in_sites.any(|name| name == pool)
    }
}

impl ListenerAddresses {
    /// `None` if the list is empty.
    pub fn new(addresses: Vec<SocketAddress>) -> Option<Self> {
        (!addresses.is_empty()).then_some(Self(addresses))
    }

    /// The address that the listener is named after, unless it has a name.
    pub fn first(&self) -> &SocketAddress {
        &self.0[0]
    }

    /// Whether the listener has this very address.
    pub fn contains(&self, address: &SocketAddress) -> bool {
        self.0.contains(address)
    }

    /// In the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &SocketAddress> {
        self.0.iter()
    }

    /// Whether one of them covers `address` or is covered by it ([`SocketAddress::overlaps`]).
    pub(crate) fn overlap(&self, address: &SocketAddress) -> bool {
        self.iter().any(|own| own.overlaps(address))
    }
}

impl ListenerConfig {
    /// Whether this may be, after a reload, the listener of connections that came to `address` while it was called
    /// `name`: it has the name still, or an address that covers that one or is covered by it.
    pub(crate) fn may_succeed(&self, name: &ListenerName, address: &SocketAddress) -> bool {
        self.name == *name || self.addresses.overlap(address)
    }
}

impl Serialize for ListenerAddresses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        match &*self.0 {
            [one] => map.serialize_entry("address", one)?,
            several => map.serialize_entry("addresses", several)?,
        }
        map.end()
    }
}

impl fmt::Display for ListenerAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<_> = self.iter().map(|address| address.to_string()).collect();
        f.write_str(&texts.join(", "))
    }
}

impl SocketFileRights {
    /// Owner and group may connect.
    pub const DEFAULT_MODE: u32 = 0o660;
}

impl TrustedPeers {
    /// `None`: a peer on a Unix socket.
    pub fn contains(&self, peer: Option<IpAddr>) -> bool {
        match peer.map(|peer| peer.to_canonical()) {
            Some(peer) => self.networks.iter().any(|network| network.contains(&peer)),
            None => self.has_unix,
        }
    }
}

impl Serialize for TrustedPeers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let networks = self.networks.iter().map(ToString::to_string);
        serializer.collect_seq(networks.chain(self.has_unix.then(|| UNIX.to_owned())))
    }
}

impl UserAndGroup {
    /// Parses `user`, `user:group` or `:group`; `None` if it is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let is_name = |name: &str| {
            (1..=255).contains(&name.len())
                && !name.starts_with('-')
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.$@".contains(&byte))
        };
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (Some(user).filter(|user| !user.is_empty()), Some(group)),
            None => (Some(text), None),
        };
        let are_names = user.into_iter().chain(group).all(is_name);
        are_names.then(|| Self { user: user.map(str::to_owned), group: group.map(str::to_owned) })
    }
}

impl fmt::Display for UserAndGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.user.as_deref().unwrap_or_default())?;
        self.group.iter().try_for_each(|group| write!(f, ":{group}"))
    }
}

impl Serialize for UserAndGroup {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The folder of a file: the parent of its path, or `.` if the path has none.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn octal<S: Serializer>(mode: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{mode:04o}"))
}

impl ListenerSettings {
    /// The limits on request heads.
    pub fn limits(&self) -> Limits {
        let head_bytes = self.max_head_bytes as usize;
        // The configured line length may exceed that of the head, which then applies.
        let line_bytes = (self.max_request_line_bytes as usize).min(head_bytes.saturating_sub(4));
        Limits {
            line_bytes,
            head_bytes,
            fields: self.max_fields as usize,
            ambiguous: self.ambiguous_names,
            non_ascii: self.non_ascii_targets,
        }
    }
}

impl PoolSettings {
    /// The limits on response heads.
    pub fn limits(&self) -> Limits {
        let head_bytes = self.max_head_bytes as usize;
        let (line_bytes, fields) = (head_bytes.saturating_sub(4), self.max_fields as usize);
        Limits { line_bytes, head_bytes, fields, ..Limits::LARGEST }
    }
}

impl RequestIdField {
    /// `None` if it is not a field name, or a field with another meaning here.
    pub fn new(name: &str) -> Option<Self> {
        match Name::of(name.as_bytes()) {
            _ if name.is_empty() => Some(Self::Off),
            Name::XRequestId => Some(Self::Usual),
            Name::Other if is_token(name.as_bytes()) => Some(Self::Named(name.into())),
            _ => None,
        }
    }

    /// Empty: no field is sent.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Off => "",
            Self::Usual => Name::XRequestId.text(),
            Self::Named(name) => name,
        }
    }
}

impl Serialize for RequestIdField {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl PoolName {
    /// `None` if the text is no such name.
    pub fn new(name: &str) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        ((1..=64).contains(&name.len()) && name.bytes().all(allowed)).then(|| Self(name.to_owned()))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PoolName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::new(&name).ok_or_else(|| format!("\"{name}\" is not a valid pool name"))
    }
}

impl From<PoolName> for String {
    fn from(name: PoolName) -> Self {
        name.0
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StatusRanges {
    /// Parses `200`, `200-299` and comma-separated lists of these; codes are 100 to 599.
    pub fn parse(text: &str) -> Option<Self> {
        let code = |s: &str| s.trim().parse::<u16>().ok().filter(|c| (100..=599).contains(c));
        let range = |part: &str| match part.split_once('-') {
            Some((low, high)) => Some((code(low)?, code(high)?)).filter(|(low, high)| low <= high),
            None => code(part).map(|c| (c, c)),
        };
        text.split(',').map(range).collect::<Option<Vec<_>>>().map(Self)
    }

    /// Every code once, in order.
    pub fn codes(&self) -> Vec<u16> {
        (100..=599).filter(|&code| self.contains(code)).collect()
    }

    /// Whether a code is in one of the ranges.
    pub fn contains(&self, code: u16) -> bool {
        self.0.iter().any(|&(low, high)| (low..=high).contains(&code))
    }
}

impl fmt::Display for StatusRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (low, high)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match low == high {
                true => write!(f, "{comma}{low}")?,
                false => write!(f, "{comma}{low}-{high}")?,
            }
        }
        Ok(())
    }
}

impl Secret {
    /// `None` if there are no bytes: an empty secret protects nothing.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Option<Self> {
        let bytes = bytes.into();
        (!bytes.is_empty()).then_some(Self(bytes))
    }

    /// The bytes, for the one use that they are for.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl Problem {
    /// `FILE:LINE:COLUMN: message`, as in editors and compilers.
    pub fn in_file(&self, file: &Path) -> String {
        let separator = if self.position.is_some() { ":" } else { ": " };
        format!("{}{separator}{self}", self.file.as_deref().unwrap_or(file).display())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            Some(Position { line, column }) => write!(f, "{line}:{column}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

fn shared<T: Serialize, S: Serializer>(list: &[Arc<T>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(list.iter().map(|one| &**one))
}

fn inner<T: Serialize, S: Serializer>(one: &Arc<T>, serializer: S) -> Result<S::Ok, S::Error> {
    (**one).serialize(serializer)
}

fn optional_seconds<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    duration.map(|duration| duration.as_secs_f64()).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_ranges_accept_codes_and_ranges() {
        let ranges = StatusRanges::parse("200-299, 304").expect("valid");
        assert!(ranges.contains(200) && ranges.contains(299) && ranges.contains(304));
        assert!(!ranges.contains(199) && !ranges.contains(300) && !ranges.contains(404));
    }

    #[test]
    fn status_ranges_refuse_invalid_codes() {
        for text in ["", "abc", "20", "600", "300-200", "200-", "200,,204"] {
            assert_eq!(StatusRanges::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn secrets_do_not_print() {
        let secret = Secret::new("hunter2").expect("not empty");
        assert_eq!(format!("{secret:?}"), "Secret(…)");
    }
}
