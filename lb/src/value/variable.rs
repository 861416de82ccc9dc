//! The variables. A variable has nginx's name if it has nginx's meaning, and only one name.

use std::fmt;

use super::request::FieldKey;
use super::table::{TableId, Tables};
use super::{Phase, Scope};
use crate::message::ascii::is_token;

macro_rules! variables {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $phase:ident;)*) => {
        /// A piece of information about a request. [`super::Facts`] provides its text.
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub enum Variable {
            $($(#[$doc])* $variant,)*
            /// `$http_NAME`: a field of the request.
            Field(FieldKey),
            /// `$cookie_NAME`.
            Cookie(Box<[u8]>),
            /// `$arg_NAME`: an argument of the query.
            Query(Box<[u8]>),
            /// `$upstream_http_NAME`: a field of the backend's response.
            BackendField(FieldKey),
            /// `$sent_http_NAME`: a field of the response as the client gets it.
            AnswerField(FieldKey),
            /// `$1`, or `$name`: a group of an expression.
            Group { of: GroupOf, index: u8 },
            /// `$name`: a table of `[values]`.
            Table(TableId),
        }

        /// Variables with a fixed name, each with that name and the phase from which on it is known.
        pub const FIXED: &[(&str, Variable, Phase)] = &[$(($name, Variable::$variant, Phase::$phase)),*];
    };
}

variables! {
    /// The requested host, lower-case, without port.
    Host = "host", Head;
    /// The current query, without `?`.
    Args = "args", Head;
    /// `?` if there is a query, else empty.
    IsArgs = "is_args", Head;
    /// The current path: decoded, without `//`, `.` and `..`.
    Uri = "uri", Head;
    /// Path and query as received.
    RequestUri = "request_uri", Head;
    RequestMethod = "request_method", Head;
    /// `http` or `https`, as trusted proxies report it.
    Scheme = "scheme", Head;
    /// The listener's port.
    ServerPort = "server_port", Head;
    /// The site's first host.
    ServerName = "server_name", Head;
    /// The client's address, as trusted proxies report it.
    RemoteAddr = "remote_addr", Head;
    RequestId = "request_id", Head;
    /// For example `HTTP/1.1`.
    ServerProtocol = "server_protocol", Head;
    /// The request's `Content-Length`.
    ContentLength = "content_length", Head;
    /// The request's `Content-Type`.
    ContentType = "content_type", Head;
    /// Seconds since the first byte of the request's head, with milliseconds.
    RequestTime = "request_time", Head;
    /// The same in whole milliseconds.
    RequestTimeMs = "request_time_ms", Head;
    /// The current time, as in `2026-11-26T10:45:44+00:00`.
    TimeIso8601 = "time_iso8601", Head;
    /// The current time, as in `26/Nov/2026:10:45:44 +0000`.
    TimeLocal = "time_local", Head;
    /// The current time in seconds since 1970, with milliseconds.
    Msec = "msec", Head;
    /// The machine's host name.
    Hostname = "hostname", Head;
    /// `h2`, missing for HTTP/1.
    Http2 = "http2", Head;
    /// For example `TLSv1.3`; missing without TLS, like the next ones.
    SslProtocol = "ssl_protocol", Head;
    /// The cipher suite by OpenSSL's name.
    SslCipher = "ssl_cipher", Head;
    /// The server name that the client requested (SNI).
    SslServerName = "ssl_server_name", Head;
    /// `r` if the session was resumed, else `.`.
    SslSessionReused = "ssl_session_reused", Head;
    /// `SUCCESS` if the client has sent a certificate, which was verified, else `NONE`.
    SslClientVerify = "ssl_client_verify", Head;
    /// The subject of the client's certificate (RFC 2253).
    SslClientSDn = "ssl_client_s_dn", Head;
    /// The issuer of the client's certificate.
    SslClientIDn = "ssl_client_i_dn", Head;
    /// SHA-1 of the client's certificate, in hexadecimal.
    SslClientFingerprint = "ssl_client_fingerprint", Head;
    /// SHA-256 of the client's certificate, in hexadecimal.
    SslClientFingerprintSha256 = "ssl_client_fingerprint_sha256", Head;
    /// The site's name.
    Site = "site", Head;
    /// The route's name.
    Route = "route", Route;
    /// The name of the pool that serves the request.
    Pool = "pool", Route;
    /// The status that the client gets.
    Status = "status", Answer;
    /// The backend that was tried last.
    UpstreamAddr = "upstream_addr", Answer;
    /// The status of the backend that responded last.
    UpstreamStatus = "upstream_status", Answer;
    /// The number of attempts.
    Attempts = "attempts", Answer;
    /// The last failure.
    Failure = "failure", Answer;
    /// Details of that failure, or of the refusal.
    Reason = "reason", Answer;
    /// Seconds until that status arrived, with milliseconds.
    UpstreamResponseTime = "upstream_response_time", End;
    /// What happened, each event with its time in seconds since the request's head.
    Trace = "trace", End;
    /// Bytes of the response's body sent to the client.
    BodyBytesSent = "body_bytes_sent", End;
}

/// Which expression a group belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupOf {
    /// The expression among the site's hosts.
    Host,
    /// The route's expression.
    Route,
    /// The expression of the rewrite.
    Rewrite,
    /// The expression of the case that is being evaluated.
    Case,
}

/// Names of nginx's variables that do not exist here, and what to write instead.
const ELSEWHERE: &[(&str, &str)] = &[
    ("document_uri", "$uri"),
    ("query_string", "$args"),
    ("request", "$request_method $request_uri $server_protocol"),
    ("binary_remote_addr", "$remote_addr"),
    ("proxy_add_x_forwarded_for", "nothing: X-Forwarded-For is set already"),
    ("https", "$scheme"),
    ("http_", "$http_NAME with a field's name"),
    ("cookie_", "$cookie_NAME with a cookie's name"),
    ("arg_", "$arg_NAME with an argument's name"),
    ("upstream_http_", "$upstream_http_NAME with a field's name"),
    ("sent_http_", "$sent_http_NAME with a field's name"),
    ("client", "$remote_addr"),
    ("client_ip", "$remote_addr"),
    ("method", "$request_method"),
    ("path", "$uri"),
    ("query", "$args"),
    ("realip_remote_addr", "$remote_addr"),
    ("proxy_protocol_addr", "$remote_addr, which has the address that the PROXY protocol tells"),
    ("ssl_client_cert", "nothing: backends are told of the certificate in Client-Cert (docs/tls.md)"),
    ("ssl_client_escaped_cert", "nothing: backends are told of the certificate in Client-Cert (docs/tls.md)"),
    ("ssl_client_raw_cert", "nothing: backends are told of the certificate in Client-Cert (docs/tls.md)"),
    ("ssl_client_serial", "$ssl_client_fingerprint_sha256, which no two certificates share"),
];

impl Variable {
    /// The variable that `name`, without `$`, refers to in `scope`.
    pub fn parse(name: &str, scope: &Scope<'_>) -> Result<Self, String> {
        if let Some(digit) = digit(name) {
            return Self::numbered(digit, scope);
        }
        if let Some(variable) = Self::built_in(name) {
            return Ok(variable);
        }
        let group = scope.expressions().find_map(|(of, pattern)| Some(Self::Group { of, index: pattern.group(name)? }));
        match (group, scope.tables.named(name)) {
            (Some(_), Some(_)) => Err(format!(
                "${name} is both a group of the regular expression and a table of [values]; give one of them another name"
            )),
            (Some(group), None) => Ok(group),
            (None, Some(table)) => Ok(Self::Table(table)),
            (None, None) => Err(Self::unknown(name, scope)),
        }
    }

    /// Variables that do not depend on the scope.
    pub(super) fn built_in(name: &str) -> Option<Self> {
        if let Some((_, variable, _)) = FIXED.iter().find(|(fixed, ..)| *fixed == name) {
            return Some(variable.clone());
        }
        let rest = |prefix| name.strip_prefix(prefix).filter(|rest| is_token(rest.as_bytes()));
        if let Some(name) = rest("http_") {
            return Some(Self::Field(FieldKey::of_variable(name)));
        }
        if let Some(name) = rest("upstream_http_") {
            return Some(Self::BackendField(FieldKey::of_variable(name)));
        }
        if let Some(name) = rest("sent_http_") {
            return Some(Self::AnswerField(FieldKey::of_variable(name)));
        }
        if let Some(name) = rest("cookie_") {
            return Some(Self::Cookie(name.as_bytes().into()));
        }
        // The client chooses the names of arguments.
        let argument = name.strip_prefix("arg_").filter(|rest| !rest.is_empty());
        argument.map(|name| Self::Query(name.to_ascii_lowercase().into_bytes().into()))
    }

    fn numbered(digit: u8, scope: &Scope<'_>) -> Result<Self, String> {
        let Some((of, pattern)) = scope.expressions().next() else {
            return Err(format!("${digit} is a group of a regular expression, and there is none here"));
        };
        let groups = pattern.groups();
        if digit == 0 || digit > groups {
            let has = match groups {
                0 => "no groups".to_owned(),
                1 => "one group, $1".to_owned(),
                more => format!("{more} groups, $1 to ${more}"),
            };
            return Err(format!("${digit} is not a group: the regular expression '{}' has {has}", pattern.text()));
        }
        Ok(Self::Group { of, index: digit })
    }

    fn unknown(name: &str, scope: &Scope<'_>) -> String {
        if let Some((_, instead)) = ELSEWHERE.iter().find(|(other, _)| *other == name) {
            return format!("there is no variable ${name}; write {instead}");
        }
        let lower = name.to_ascii_lowercase();
        if lower != name && Self::parse(&lower, scope).is_ok() {
            return format!("there is no variable ${name}; write ${lower}");
        }
        let groups = scope.expressions().flat_map(|(_, pattern)| pattern.names());
        let near = FIXED.iter().map(|(name, ..)| *name).chain(groups).chain(scope.tables.names());
        match near.map(|other| (distance(name, other), other)).min() {
            Some((distance, other)) if distance <= 2 && distance < name.len() => {
                format!("there is no variable ${name}; did you mean ${other}?")
            }
            _ => format!("there is no variable ${name}; tables of [values] and named groups are variables too"),
        }
    }

    /// Whether a client controls its text.
    pub fn is_of_client(&self, tables: &Tables) -> bool {
        match self {
            Self::Scheme
            | Self::ServerPort
            | Self::ServerName
            | Self::Hostname
            | Self::Site
            | Self::Route
            | Self::Pool => false,
            Self::RequestTime | Self::RequestTimeMs | Self::TimeIso8601 | Self::TimeLocal | Self::Msec => false,
            Self::Status | Self::UpstreamAddr | Self::UpstreamStatus | Self::Attempts | Self::Failure => false,
            Self::Reason => false,
            Self::UpstreamResponseTime | Self::Trace | Self::BodyBytesSent => false,
            // Backends are trusted, as nginx trusts their X-Accel-Redirect.
            Self::BackendField(_) => false,
            Self::Table(id) => tables.get(*id).is_some_and(|table| {
                table.results().flat_map(super::Value::variables).any(|variable| variable.is_of_client(tables))
            }),
            _ => true,
        }
    }

    /// When its value is known.
    pub fn phase(&self, tables: &Tables) -> Phase {
        match self {
            Self::Field(_) | Self::Cookie(_) | Self::Query(_) => Phase::Head,
            Self::BackendField(_) | Self::AnswerField(_) => Phase::Answer,
            Self::Group { of: GroupOf::Host | GroupOf::Case, .. } => Phase::Head,
            Self::Group { of: GroupOf::Route | GroupOf::Rewrite, .. } => Phase::Route,
            Self::Table(id) => tables.phase(*id),
            fixed => FIXED.iter().find(|(_, other, _)| other == fixed).map_or(Phase::End, |(_, _, phase)| *phase),
        }
    }
}

/// `$name`, or `${name}` where needed; groups and tables by number.
impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (prefix, name) = match self {
            Self::Field(key) => ("http_", key.text()),
            Self::BackendField(key) => ("upstream_http_", key.text()),
            Self::AnswerField(key) => ("sent_http_", key.text()),
            Self::Cookie(name) => ("cookie_", String::from_utf8_lossy(name)),
            Self::Query(name) => ("arg_", String::from_utf8_lossy(name)),
            Self::Group { index, .. } => return write!(f, "${index}"),
            Self::Table(TableId(id)) => return write!(f, "${{table {id}}}"),
            fixed => {
                let name = FIXED.iter().find(|(_, other, _)| other == fixed).map_or("", |(name, ..)| *name);
                return write!(f, "${name}");
            }
        };
        if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            write!(f, "${prefix}{name}")
        } else {
            write!(f, "${{{prefix}{name}}}")
        }
    }
}

fn digit(name: &str) -> Option<u8> {
    match name.as_bytes() {
        [digit @ b'0'..=b'9'] => Some(digit - b'0'),
        _ => None,
    }
}

/// The number of letters to change, remove or insert (Levenshtein distance).
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, byte) in one.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, against) in other.bytes().enumerate() {
            let change = diagonal + usize::from(byte != against);
            diagonal = row[column + 1];
            row[column + 1] = change.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}
