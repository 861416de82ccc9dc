//! Sites: what is done with the requests of certain hosts. Inheritance is resolved: each route holds all settings in
//! force for it, with the line that each comes from. Every type serializes to JSON in the form that `evenkeel.toml` has
//! for it.

mod json;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::backend::SocketAddress;
use super::route::{HostPattern, PathPrefix};
use super::{AccessLogFile, HostRoute, PoolName, SameSite, StatusRanges, optional_seconds};
use crate::message::name::Name;
use crate::value::Value;
use crate::value::condition::Condition;
use crate::value::encode::Escape;
use crate::value::pattern::Pattern;

/// The requests of certain hosts, on all listeners or some of them.
#[derive(Debug, Clone, PartialEq)]
pub struct SiteConfig {
    /// The configured name, or the first host; unique.
    pub name: String,
    /// At least one. A request belongs to the site with the most specific host, and to no other.
    pub hosts: Vec<HostPattern>,
    /// Empty: all.
    pub listeners: Vec<ListenerName>,
    /// A certificate of its listeners, which clients get when they request one of its hosts.
    pub certificate: Option<PathBuf>,
    /// In file order, which decides between equally specific routes.
    pub routes: Vec<RouteConfig>,
    /// The rules for requests that no route matches.
    pub fallback: Rules,
    /// The line of the file.
    pub defined_at: SourceLocation,
}

/// Name of a listener: 1 to 64 visible ASCII characters. By default its address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct ListenerName(String);

/// Which requests of a site it matches, and what is done with them.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteConfig {
    /// Unique in its site.
    pub name: RouteName,
    /// Which paths.
    pub matcher: Matcher,
    /// If it does not hold, the next best route is tried.
    pub condition: Option<Condition>,
    /// Whether routes with a regex are skipped if this is the longest matching prefix (nginx's `^~`).
    pub over_regex: bool,
    /// Whether only jumps and error pages reach it.
    pub internal: bool,
    /// What answers.
    pub action: Action,
    /// All that is in force for its requests.
    pub rules: Rules,
    /// The line of the file.
    pub defined_at: SourceLocation,
}

/// Name of a route in metrics, logs and explanations. Unique, except that routes inherited from less specific hosts
/// keep their name there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteName(Arc<str>);

/// Which paths match: decoded, without `//`, `.` and `..`, as in [`PathPrefix`].
#[derive(Debug, Clone, PartialEq)]
pub enum Matcher {
    /// The path and everything below it, by whole segments.
    Path(PathPrefix),
    /// This path and no other.
    Exact(String),
    /// By bytes, as with nginx's locations.
    Prefix(String),
    /// Paths that the regex fits, at any place unless it is anchored.
    Regex(Pattern),
    /// No path: only jumps and error pages reach it, by the route's name.
    Named,
}

/// What responds to a request.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A backend of this pool.
    Pool(PoolName),
    /// A backend of the pool that a value names.
    PoolFrom(PoolFrom),
    /// A response that the operator wrote.
    Respond(Respond),
    /// A redirect.
    Redirect(Redirect),
    /// Another route of the same site.
    Jump(JumpTo),
}

/// The pool whose name is the value. Any other value is answered with 502.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PoolFrom {
    /// Computed for each request.
    pub value: Value,
    /// The allowed pools; at least one.
    pub pools: Vec<PoolName>,
}

/// A response that the operator wrote.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Respond {
    /// 200 to 599.
    pub status: u16,
    /// `None`: no body was configured. Error statuses then have the usual body, others an empty one.
    pub body: Option<Value>,
    /// Its `Content-Type`; empty: none.
    pub content_type: Value,
}

/// A redirect of the client.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Redirect {
    /// Either an absolute URL or a path on the same host. The reader refuses values that a request could turn into
    /// another host. Code that writes a path still has to prevent a leading `//`.
    pub to: Value,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// Where a request continues within the same site.
#[derive(Debug, Clone, PartialEq)]
pub enum JumpTo {
    /// At the route with this name, which keeps path and method.
    Route(RouteName),
    /// At the route that matches this path, as GET or HEAD.
    Path(Value),
}

/// The rules in force: defaults, then the site's, then the route's.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Rules {
    /// `None`: backends are asked for what the client asked.
    pub rewrite: Option<Rewrite>,
    /// Changes of the request that backends are sent.
    pub request_headers: HeaderEdits,
    /// Configured changes, applied after those of [`Rules::preset`].
    #[serde(serialize_with = "json::field_changes")]
    pub response_headers: Vec<FieldChange>,
    /// Fields of responses that belong together.
    pub preset: Option<Preset>,
    /// The first one that matches a status is used.
    #[serde(serialize_with = "json::error_pages")]
    pub error_pages: Vec<ErrorPage>,
    /// Whether error responses of backends are replaced by error pages, too.
    pub intercept_errors: bool,
    /// `None`: cross-origin requests are the backend's to answer.
    pub cors: Option<Cors>,
    /// What becomes of redirects of the backend.
    pub location: LocationRewrite,
    /// What becomes of cookies of the backend.
    pub cookies: CookieRewrite,
    /// Limits of clients.
    #[serde(flatten)]
    pub client: ClientRules,
    /// Time limits and retries of backends.
    #[serde(flatten)]
    pub backend: BackendRules,
    /// `None`: as in `[access_log]`. An empty list: no log.
    pub access_log: Option<Vec<AccessLogRule>>,
    /// The position of each of these in the files.
    #[serde(skip)]
    pub origins: SourceLocations,
}

/// The path and query that a backend gets.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Rewrite {
    /// Replaces the route's own path or prefix; begins with `/`.
    Prefix {
        /// The path that replaces the route's.
        prefix: String,
    },
    /// Applies if the regex matches the path. The query stays unless `to` has one.
    Regex {
        /// The paths that are rewritten.
        regex: Pattern,
        /// The new path, with the groups of the regex as variables.
        to: Value,
    },
    /// The query stays unless `to` has one.
    To {
        /// The new path.
        to: Value,
    },
}

/// Changes of the fields of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeaderEdits {
    /// The `Host` for backends; `None`: the client's.
    pub host: Option<Value>,
    /// In the order in which they are applied.
    pub changes: Vec<FieldChange>,
}

/// One change of one field.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldChange {
    /// As it is sent; a token.
    pub name: String,
    /// The same name as a symbol.
    pub known: Name,
    /// How it is changed.
    pub edit: Edit,
    /// If it is empty or missing, the field is not sent. Ignored for [`Edit::Remove`].
    pub value: Text,
    /// Only for responses with these statuses; `None`: all. Always `None` for requests.
    pub on: Option<StatusRanges>,
}

/// How a field is changed. Changes of one table are applied in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Edit {
    /// All of its lines are removed.
    Remove,
    /// Replaces all of its lines.
    Set,
    /// Adds a line.
    Add,
    /// Appends to its last line, after a comma; like `Set` if there is none.
    Append,
    /// `default` in the file.
    SetIfMissing,
}

/// A value that may be a secret.
#[derive(Clone, PartialEq)]
pub struct Text {
    /// With its variables.
    pub value: Value,
    /// What is shown instead of it.
    pub shown: Option<SecretSource>,
}

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// A file, without the final line ending.
    File(PathBuf),
    /// Text with environment variables, as written.
    Written(String),
}

/// A group of fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// `Strict-Transport-Security`, `X-Content-Type-Options`, `X-Frame-Options` and `Referrer-Policy`.
    SecureHeaders,
}

/// A field of a preset, sent if the response lacks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PresetField {
    /// A token without another meaning.
    pub name: &'static str,
    /// The value that is sent.
    pub value: &'static str,
    /// Only if the client used HTTPS, here or towards a trusted proxy.
    pub only_https: bool,
}

/// What a client gets in place of an error.
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorPage {
    /// The statuses that it is for.
    pub on: StatusRanges,
    /// The status that the client gets.
    pub status: PageStatus,
    /// The content.
    pub page: Page,
}

/// The status of an error page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageStatus {
    /// The status of the error.
    Keep,
    /// This one.
    Is(u16),
    /// The status of the page.
    OfPage,
}

/// The content of an error page.
#[derive(Debug, Clone, PartialEq)]
pub enum Page {
    /// What another route of the site answers.
    Jump(JumpTo),
    /// A text with variables.
    Text {
        /// The text.
        text: Value,
        /// Its `Content-Type`; empty: none.
        content_type: Value,
    },
    /// The content of a file.
    File {
        /// The file as it was read.
        file: PageFile,
        /// Its `Content-Type`; empty: none.
        content_type: Value,
    },
    /// A redirect to this URL or path.
    Redirect(Value),
}

/// A file that was read with the configuration; compared by content.
#[derive(Clone, PartialEq, Eq)]
pub struct PageFile {
    /// Where it was read from.
    pub path: PathBuf,
    /// What was in it.
    pub bytes: Arc<[u8]>,
}

/// Cross-origin resource sharing (the Fetch standard, "HTTP extensions").
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cors {
    /// At least one.
    pub origins: Vec<CorsOrigin>,
    /// The methods that a preflight allows.
    pub methods: Vec<String>,
    /// Fields that a preflight allows in requests.
    pub headers: CorsHeaders,
    /// Response fields that scripts may read.
    pub expose: Vec<String>,
    /// Whether scripts may send cookies along.
    pub credentials: bool,
    /// How long browsers may cache the response to a preflight.
    #[serde(serialize_with = "optional_seconds")]
    pub max_age: Option<Duration>,
}

/// Which origins are allowed.
#[derive(Debug, Clone, PartialEq)]
pub enum CorsOrigin {
    /// All; never together with credentials.
    Any,
    /// Lower-case scheme and host, and the port unless it is the scheme's default, such as `https://shop.example`.
    Exact(String),
    /// The hosts below a domain, such as `https://*.shop.example`.
    Below {
        /// In lower case.
        scheme: String,
        /// In lower case, with the port unless it is the scheme's default.
        domain: String,
    },
    /// Must match the whole origin.
    Regex(Pattern),
}

/// The request fields that a preflight allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CorsHeaders {
    /// All that the preflight requests.
    Asked,
    /// These names.
    These(Vec<String>),
}

/// How `Location` and `Refresh` of a backend are changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum LocationRewrite {
    /// URLs with the `Host` that the backend was sent, or below a path that [`Rewrite::Prefix`] produced, are mapped
    /// back to those that the client uses.
    #[default]
    Auto,
    /// They stay as they are.
    Off,
    /// The first pair whose `from` is a prefix is applied.
    Pairs(Vec<Replace>),
}

/// A text in place of another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replace {
    /// What is replaced.
    pub from: String,
    /// What takes its place.
    pub to: Value,
}

/// How `Set-Cookie` of a backend is changed.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CookieRewrite {
    /// Replacements of its `Domain`, ignoring case and a leading dot.
    pub domain: Vec<Replace>,
    /// Replacements of a prefix of its `Path`.
    pub path: Vec<Replace>,
    /// `None`: as the backend sets it.
    pub secure: Option<bool>,
    /// Whether it has `HttpOnly`; `None`: as the backend says.
    pub http_only: Option<bool>,
    /// Its `SameSite`; `None`: as the backend says.
    pub same_site: Option<SameSite>,
}

/// Settings for clients; `None`: as for their listener.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ClientRules {
    /// Limit on a request body; 0: no limit.
    pub max_body_bytes: Option<u64>,
    /// Longest pause within a request body.
    #[serde(serialize_with = "optional_seconds")]
    pub body_timeout: Option<Duration>,
    /// Bytes per second; 0: no minimum.
    pub min_rate: Option<u32>,
    /// How long a client may take to accept more of a response.
    #[serde(serialize_with = "optional_seconds")]
    pub send_timeout: Option<Duration>,
}

/// Settings for backends; `None`: as for their pool.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct BackendRules {
    /// For opening a connection.
    #[serde(serialize_with = "optional_seconds")]
    pub connect_timeout: Option<Duration>,
    /// From a request sent to the head of its response.
    #[serde(serialize_with = "optional_seconds")]
    pub response_timeout: Option<Duration>,
    /// Longest pause within a response body.
    #[serde(serialize_with = "optional_seconds")]
    pub read_timeout: Option<Duration>,
    /// Longest pause while a request is sent.
    #[serde(serialize_with = "optional_seconds")]
    pub write_timeout: Option<Duration>,
    /// How long a WebSocket may be silent in both directions.
    #[serde(serialize_with = "optional_seconds")]
    pub tunnel_timeout: Option<Duration>,
    /// 0 to 16.
    pub retries: Option<usize>,
    /// Zero: the response timeout in force.
    #[serde(serialize_with = "optional_seconds")]
    pub retry_timeout: Option<Duration>,
    /// Largest request body in bytes that is kept for another attempt.
    pub retry_body_bytes: Option<usize>,
}

/// One of the access logs that may get a line for a request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AccessLogRule {
    /// Where its lines are written.
    pub file: AccessLogFile,
    /// How a line is written.
    pub format: LogLine,
    /// How values are escaped in a custom line; `None`: [`Escape::Json`] if the line begins with `{`, else
    /// [`Escape::Default`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub escape: Option<Escape>,
    /// Which requests, by status and by a condition that is evaluated at the end. `None`: all.
    pub status: Option<StatusRanges>,
    /// A condition that is evaluated at the end of a request.
    pub when: Option<Condition>,
    /// The share of those that is logged.
    pub share: Share,
    /// The share of the others that is logged.
    pub or_share: Share,
}

/// The format of an access log.
#[derive(Debug, Clone, PartialEq)]
pub enum LogLine {
    /// One JSON object a line.
    Json,
    /// The combined format of nginx and Apache.
    Combined,
    /// Without a line break.
    Own(Value),
}

/// A share in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(u32);

/// A position in a file. Ignored when configurations are compared.
#[derive(Debug, Clone)]
pub struct SourceLocation {
    /// The file's path.
    pub file: Arc<Path>,
    /// Counted from 1.
    pub line: usize,
}

/// The position of each key of some rules. A key without one has its default. Ignored when configurations are compared.
#[derive(Debug, Clone, Default)]
pub struct SourceLocations(Vec<(&'static str, SourceLocation)>);

impl SiteConfig {
    /// The sites that top-level routes stand for, one for each of their hosts. If a host has no route for a path, the
    /// next less specific host applies, so its routes are included here unless they are hidden.
    #[expect(clippy::mutable_key_type, reason = "a pattern is compared and hashed by its text")]
    pub fn of_routes(routes: &[HostRoute]) -> Vec<Self> {
        let mut hosts: Vec<&HostPattern> = Vec::new();
        let mut of_host: HashMap<&HostPattern, Vec<&HostRoute>> = HashMap::new();
        for route in routes {
            let routes = of_host.entry(&route.host).or_default();
            if routes.is_empty() {
                hosts.push(&route.host);
            }
            routes.push(route);
        }
        // Only these can include other hosts. This avoids comparing each of a thousand exact hosts with all others.
        let mut wide: Vec<&HostPattern> =
            hosts.iter().copied().filter(|host| !matches!(host, HostPattern::Exact(_))).collect();
        wide.sort_by_key(|host| std::cmp::Reverse(host.rank()));
        let site = |host: &HostPattern| {
            let mut taken: Vec<&HostRoute> = of_host.get(host).into_iter().flatten().copied().collect();
            for wider in wide.iter().filter(|wider| **wider != host && wider.includes(host)) {
                for route in of_host.get(wider).into_iter().flatten() {
                    let is_hidden = |above: &&HostRoute| above.host != route.host && above.path.covers(&route.path);
                    if !taken.iter().any(is_hidden) {
                        taken.push(route);
                    }
                }
            }
            let defined_at = taken.first()?.defined_at.clone();
            Some(Self {
                name: if *host == HostPattern::Any { "*".to_owned() } else { host.to_string() },
                hosts: vec![host.clone()],
                listeners: Vec::new(),
                certificate: None,
                routes: taken.into_iter().map(RouteConfig::of_route).collect(),
                fallback: Rules::default(),
                defined_at,
            })
        };
        hosts.into_iter().filter_map(site).collect()
    }
}

impl SiteConfig {
    /// Every file that was read for it: error pages and values of fields.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let rules = self.routes.iter().map(|route| &route.rules).chain([&self.fallback]);
        rules.flat_map(|rules| {
            let pages = rules.error_pages.iter().filter_map(|page| match &page.page {
                Page::File { file, .. } => Some(file.path.as_path()),
                _ => None,
            });
            let changes = rules.request_headers.changes.iter().chain(&rules.response_headers);
            pages.chain(changes.filter_map(|change| match &change.value.shown {
                Some(SecretSource::File(file)) => Some(file.as_path()),
                _ => None,
            }))
        })
    }
}

impl RouteConfig {
    fn of_route(route: &HostRoute) -> Self {
        Self {
            name: RouteName::new(&format!("{}{}", route.host, route.path.as_str())),
            matcher: Matcher::Path(route.path.clone()),
            condition: None,
            over_regex: false,
            internal: false,
            action: Action::Pool(route.pool.clone()),
            rules: Rules::default(),
            defined_at: route.defined_at.clone(),
        }
    }

    /// The pools that it may use.
    pub fn pools(&self) -> &[PoolName] {
        match &self.action {
            Action::Pool(pool) => std::slice::from_ref(pool),
            Action::PoolFrom(from) => &from.pools,
            Action::Respond(_) | Action::Redirect(_) | Action::Jump(_) => &[],
        }
    }
}

impl ListenerName {
    /// `None` if the text is no such name.
    pub fn new(name: &str) -> Option<Self> {
        ((1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic())).then(|| Self(name.to_owned()))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&SocketAddress> for ListenerName {
    fn from(address: &SocketAddress) -> Self {
        Self(address.to_string())
    }
}

impl fmt::Display for ListenerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl RouteName {
    /// A name that the caller has made unique.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// As metrics, logs and explanations show it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Serialize for RouteName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl fmt::Display for RouteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Preset {
    /// The fields, in the order in which they are sent.
    pub fn fields(self) -> &'static [PresetField] {
        match self {
            Self::SecureHeaders => SECURE_HEADERS,
        }
    }
}

const fn field(name: &'static str, value: &'static str) -> PresetField {
    PresetField { name, value, only_https: false }
}

const SECURE_HEADERS: &[PresetField] = &[
    // Never over HTTP (RFC 6797 §7.2).
    PresetField { name: "Strict-Transport-Security", value: "max-age=31536000", only_https: true },
    field("X-Content-Type-Options", "nosniff"),
    field("X-Frame-Options", "SAMEORIGIN"),
    field("Referrer-Policy", "strict-origin-when-cross-origin"),
];

impl Text {
    /// A value that is no secret.
    pub fn of(value: Value) -> Self {
        Self { value, shown: None }
    }
}

/// Makes an expression match the whole text.
const ANCHORS: (&str, &str) = ("^(?:", ")$");

impl CorsOrigin {
    /// The expression of [`CorsOrigin::Regex`] for the configured text.
    pub fn whole(written: &str) -> String {
        [ANCHORS.0, written, ANCHORS.1].concat()
    }
}

impl AccessLogRule {
    /// A log of all requests.
    pub fn all(file: AccessLogFile, format: LogLine) -> Self {
        Self { file, format, escape: None, status: None, when: None, share: Share::ALL, or_share: Share::NONE }
    }
}

impl Share {
    /// All of them.
    pub const ALL: Self = Self(1_000_000);
    /// None of them.
    pub const NONE: Self = Self(0);

    /// From 0 to 1.
    pub fn new(share: f64) -> Option<Self> {
        (0.0..=1.0).contains(&share).then(|| Self((share * 1e6).round() as u32))
    }

    /// From 0 to 1,000,000.
    pub fn millionths(self) -> u32 {
        self.0
    }
}

impl SourceLocations {
    /// Records the position of a key, in place of an earlier one.
    pub fn note(&mut self, key: &'static str, origin: SourceLocation) {
        self.0.retain(|(known, _)| *known != key);
        self.0.push((key, origin));
    }

    /// `None`: the key has its default.
    pub fn of(&self, key: &str) -> Option<&SourceLocation> {
        self.0.iter().find(|(known, _)| *known == key).map(|(_, origin)| origin)
    }

    /// In the order in which they were noted.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &SourceLocation)> {
        self.0.iter().map(|(key, origin)| (*key, origin))
    }
}

impl PartialEq for SourceLocation {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for SourceLocation {}

impl PartialEq for SourceLocations {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl fmt::Display for SourceLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.shown {
            Some(shown) => shown.fmt(f),
            None => self.value.fmt(f),
        }
    }
}

impl fmt::Debug for PageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageFile({}, {} bytes)", self.path.display(), self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::toml::read;

    /// The site of each host with its routes, as `path pool`.
    fn sites(routes: &[(&str, &str, &str)]) -> Vec<(String, Vec<String>)> {
        let mut text = "[[listener]]\naddress = \"127.0.0.1:80\"\n".to_owned();
        for pool in ["a", "b", "c", "d"] {
            text.push_str(&format!("[[pool]]\nname = \"{pool}\"\nbackends = []\n"));
        }
        for (host, path, pool) in routes {
            text.push_str(&format!("[[route]]\nhost = \"{host}\"\npath = \"{path}\"\npool = \"{pool}\"\n"));
        }
        let config = read(&text, Path::new("/evenkeel.toml")).expect("valid");
        let shown = |route: &RouteConfig| match &route.matcher {
            Matcher::Path(path) => format!("{} {}", path.as_str(), route.pools()[0]),
            other => panic!("{other:?}"),
        };
        config.all_sites().iter().map(|site| (site.name.clone(), site.routes.iter().map(shown).collect())).collect()
    }

    #[test]
    fn routes_of_a_host_include_unhidden_routes_of_less_specific_hosts() {
        let sites = sites(&[
            ("", "/", "a"),
            ("", "/x/y", "a"),
            ("a.example", "/x", "b"),
            ("*.example", "/only", "c"),
            ("*.sub.example", "/only/this", "d"),
            ("b.sub.example", "/z", "d"),
        ]);
        let expected: &[(&str, &[&str])] = &[
            ("*", &["/ a", "/x/y a"]),
            ("a.example", &["/x b", "/only c", "/ a"]),
            ("*.example", &["/only c", "/ a", "/x/y a"]),
            ("*.sub.example", &["/only/this d", "/only c", "/ a", "/x/y a"]),
            ("b.sub.example", &["/z d", "/only/this d", "/only c", "/ a", "/x/y a"]),
        ];
        let expected = expected.iter().map(|(name, routes)| {
            ((*name).to_owned(), routes.iter().map(|route| (*route).to_owned()).collect::<Vec<_>>())
        });
        assert_eq!(sites, expected.collect::<Vec<_>>());
    }

    #[test]
    fn a_prefix_with_a_slash_does_not_hide_the_one_without() {
        let sites = sites(&[("", "/api", "a"), ("h.example", "/api/", "b")]);
        assert_eq!(sites[1].1, ["/api/ b", "/api a"]);
        let sites = self::sites(&[("", "/api/", "a"), ("h.example", "/api", "b")]);
        assert_eq!(sites[1].1, ["/api b"]);
    }
}
