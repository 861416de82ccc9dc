//! Values of variables for the request in progress, for the values and conditions in the configuration.

use std::io::Write as _;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::buffers::Buffers;
use super::request::Request;
use crate::clock;
use crate::config::route::HostPattern;
use crate::config::site::Matcher;
use crate::exchange::{Exchange, Outcome};
use crate::http::h1::head::{RequestHead, TargetForm};
use crate::http::h1::response::ResponseHead;
use crate::message::Version;
use crate::message::name::Name;
use crate::site::{RouteId, Site};
use crate::value::pattern::Groups;
use crate::value::request::{FieldKey, argument, cookie};
use crate::value::table::Tables;
use crate::value::variable::{GroupOf, Variable};
use crate::value::{Facts, Presence, VariableText};

/// The facts of one request, borrowed from where they are stored.
#[derive(Clone, Copy)]
pub(super) struct RequestFacts<'a> {
    pub of: &'a Request<'a>,
    pub head: &'a RequestHead,
    pub from_client: &'a [u8],
    pub text: &'a str,
    /// The current path: decoded and normalised.
    pub path: &'a [u8],
    /// Path and query after an internal redirect; empty without one.
    pub target: &'a [u8],
    pub tables: &'a Tables,
    /// The site and the route, once they are chosen.
    pub matched: Option<(&'a Site, RouteId)>,
    pub exchange: Option<&'a Exchange>,
    /// The response head, once it has arrived.
    pub response: Option<(&'a ResponseHead, &'a [u8])>,
    /// The groups that the rewrite's expression matched, and the text that they refer to.
    pub rewrite: Option<(&'a Groups, &'a [u8])>,
    /// How the request ended, and how many bytes of the response's body were sent.
    pub ended: Option<(&'a Outcome, u64)>,
    /// Response fields that are logged after the head is gone.
    pub noted: &'a [(Variable, Vec<u8>)],
}

impl<'a> RequestFacts<'a> {
    /// The facts of a request in progress, before there is a response.
    pub(super) fn of(of: &'a Request<'a>, buffers: &'a Buffers, exchange: &'a Exchange) -> Self {
        let Buffers { request: head, from_client, text, path, target, .. } = buffers;
        Self {
            of,
            head,
            from_client,
            text,
            path: of.forwarded.path(head, from_client, path),
            target,
            tables: of.tables(),
            matched: Some((exchange.site(), exchange.route_id())),
            exchange: Some(exchange),
            response: None,
            rewrite: None,
            ended: None,
            noted: &buffers.noted,
        }
    }

    fn outcome(&self) -> Option<&'a Outcome> {
        self.ended.map(|(outcome, _)| outcome).or_else(|| self.exchange.map(Exchange::outcome))
    }

    /// The current query.
    pub(super) fn query(&self) -> Option<&'a [u8]> {
        match self.target {
            b"" => self.head.query(self.from_client),
            target => target.iter().position(|&byte| byte == b'?').map(|at| &target[at + 1..]),
        }
    }

    /// The host as the client sent it, without port.
    fn host(&self) -> Option<&'a [u8]> {
        self.head.host(self.from_client).map(|host| host.strip_suffix(b".").unwrap_or(host))
    }

    fn fields(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.head.fields().iter(self.from_client)
    }

    /// A group of the expression among the site's hosts that matched.
    fn host_group(&self, index: u8, out: &mut Vec<u8>) -> Presence {
        let (Some((site, _)), Some(host)) = (self.matched, self.host()) else { return Presence::Missing };
        let host = host.to_ascii_lowercase();
        let groups = site.config.hosts.iter().find_map(|pattern| match pattern {
            HostPattern::Regex(regex) => regex.captures(&host),
            _ => None,
        });
        write_some(groups.as_ref().and_then(|groups| groups.text(index, &host)), out)
    }

    fn route_group(&self, index: u8) -> Option<&'a [u8]> {
        let (site, route) = self.matched?;
        match &site.route_config(route)?.matcher {
            Matcher::Regex(regex) => regex.captures(self.path)?.text(index, self.path),
            _ => None,
        }
    }

    fn write_time(&self, format: &str, out: &mut Vec<u8>) -> Presence {
        let Ok(now) = Timestamp::try_from(clock::wall()) else { return Presence::Missing };
        display(now.to_zoned(TimeZone::system()).strftime(format), out)
    }
}

impl Facts for RequestFacts<'_> {
    fn find(&self, variable: &Variable) -> VariableText<'_> {
        let forwarded = &self.of.forwarded;
        let one = |name| match self.head.fields().values(self.from_client, name).nth(1) {
            Some(_) => VariableText::Made,
            None => some(self.head.fields().value(self.from_client, name)),
        };
        let tls = || self.of.peer.tls.as_deref();
        let certificate = || self.of.peer.client_certificate();
        match variable {
            Variable::Host => match self.host() {
                Some(host) if host.iter().any(u8::is_ascii_uppercase) => VariableText::Made,
                host => some(host),
            },
            Variable::Args => some(self.query()),
            Variable::IsArgs => {
                VariableText::Here(if self.query().is_some_and(|query| !query.is_empty()) { b"?" } else { b"" })
            }
            Variable::Uri => VariableText::Here(self.path),
            // Where it may be anything, only logs have it.
            Variable::RequestUri if self.ended.is_some() && self.head.unread_target(self.from_client).is_some() => {
                some(self.head.unread_target(self.from_client))
            }
            Variable::RequestUri if self.head.form() == TargetForm::Origin => {
                VariableText::Here(self.head.path_and_query(self.from_client))
            }
            Variable::RequestMethod if self.of.state.is_get => VariableText::Here(b"GET"),
            Variable::RequestMethod => VariableText::Here(self.head.method_token(self.from_client)),
            Variable::Scheme => VariableText::Here(forwarded.proto().as_bytes()),
            Variable::ServerName => {
                some(self.matched.and_then(|(site, _)| site.config.hosts.first()).and_then(name_of))
            }
            Variable::RemoteAddr => VariableText::Here(forwarded.client_text(self.text)),
            Variable::RequestId => VariableText::Here(forwarded.request_id(self.text)),
            Variable::ServerProtocol => VariableText::Here(match (self.of.is_stream, self.head.version()) {
                (true, _) => b"HTTP/2.0",
                (_, Version::Http10) => b"HTTP/1.0",
                (_, Version::Http11) => b"HTTP/1.1",
            }),
            Variable::ContentLength => one(Name::ContentLength),
            Variable::ContentType => one(Name::ContentType),
            Variable::Hostname => VariableText::Here(self.of.engine.hostname.as_bytes()),
            Variable::Http2 => some(self.of.is_stream.then_some(if self.of.is_tls { &b"h2"[..] } else { b"h2c" })),
            Variable::SslProtocol => some(tls().map(|tls| tls.protocol.as_bytes())),
            Variable::SslCipher => some(tls().map(|tls| tls.cipher.as_bytes())),
            Variable::SslServerName => some(tls().and_then(|tls| tls.server_name.as_deref()).map(str::as_bytes)),
            Variable::SslSessionReused => some(tls().map(|tls| if tls.is_resumed { &b"r"[..] } else { b"." })),
            Variable::SslClientVerify => {
                some(tls().map(|tls| if tls.client.is_some() { &b"SUCCESS"[..] } else { b"NONE" }))
            }
            Variable::SslClientSDn => some(certificate().map(|client| client.subject.as_bytes())),
            Variable::SslClientIDn => some(certificate().map(|client| client.issuer.as_bytes())),
            Variable::SslClientFingerprint => some(certificate().map(|client| client.sha1.as_bytes())),
            Variable::SslClientFingerprintSha256 => some(certificate().map(|client| client.sha256.as_bytes())),
            Variable::Site => some(self.matched.map(|(site, _)| site.config.name.as_bytes())),
            Variable::Route => some(self.matched.map(|(site, route)| site.route(route).name.as_str().as_bytes())),
            Variable::Pool => some(self.exchange.and_then(Exchange::pool).map(|pool| pool.name.as_str().as_bytes())),
            Variable::UpstreamAddr => {
                let endpoint = self.outcome().and_then(|outcome| outcome.endpoint.as_ref());
                match endpoint {
                    Some(endpoint) if endpoint.resolved_address().is_some() => VariableText::Made,
                    _ => some(endpoint.map(|endpoint| endpoint.backend.address.as_str().as_bytes())),
                }
            }
            Variable::Failure => some(self.outcome().and_then(Outcome::failure_word).map(str::as_bytes)),
            Variable::Query(name) => some(self.query().and_then(|query| argument(query, name))),
            Variable::Cookie(name) => some(cookie(self.head.fields().values(self.from_client, Name::Cookie), name)),
            Variable::Field(key) => find_field(key, self.fields()),
            Variable::BackendField(key) | Variable::AnswerField(key) => match self.response {
                Some((head, buffer)) => find_field(key, head.fields().iter(buffer)),
                None => some(self.noted.iter().find(|(noted, _)| noted == variable).map(|(_, text)| &**text)),
            },
            Variable::Group { of: GroupOf::Route, index } => some(self.route_group(*index)),
            Variable::Group { of: GroupOf::Rewrite, index } => {
                some(self.rewrite.and_then(|(groups, subject)| groups.text(*index, subject)))
            }
            _ => VariableText::Made,
        }
    }

    fn write(&self, variable: &Variable, out: &mut Vec<u8>) -> Presence {
        match self.find(variable) {
            VariableText::Missing => return Presence::Missing,
            VariableText::Here(text) => return write_some(Some(text), out),
            VariableText::Made => {}
        }
        let outcome = self.outcome();
        match variable {
            Variable::Host => {
                out.extend(self.host().unwrap_or_default().iter().map(u8::to_ascii_lowercase));
                Presence::Present
            }
            Variable::RequestUri => {
                let path =
                    if self.head.form() == TargetForm::Asterisk { b"/" } else { self.head.path(self.from_client) };
                out.extend_from_slice(path);
                if let Some(query) = self.head.query(self.from_client) {
                    out.push(b'?');
                    out.extend_from_slice(query);
                }
                Presence::Present
            }
            Variable::Field(key) => key.write(self.fields(), out),
            Variable::ContentLength | Variable::ContentType => Presence::Missing,
            Variable::BackendField(key) | Variable::AnswerField(key) => match self.response {
                Some((head, buffer)) => key.write(head.fields().iter(buffer), out),
                None => Presence::Missing,
            },
            Variable::ServerPort => display_some(self.of.engine.address.port(), out),
            Variable::RequestTime => {
                let taken = clock::now().saturating_duration_since(self.of.started);
                display(format_args!("{}.{:03}", taken.as_secs(), taken.subsec_millis()), out)
            }
            Variable::RequestTimeMs => {
                display(clock::now().saturating_duration_since(self.of.started).as_millis(), out)
            }
            Variable::TimeIso8601 => self.write_time("%Y-%m-%dT%H:%M:%S%:z", out),
            Variable::TimeLocal => self.write_time("%d/%b/%Y:%H:%M:%S %z", out),
            Variable::Msec => {
                let Ok(now) = Timestamp::try_from(clock::wall()) else { return Presence::Missing };
                let millis = now.as_millisecond();
                display(format_args!("{}.{:03}", millis / 1000, millis % 1000), out)
            }
            Variable::Status => {
                let status = self.response.map(|(head, _)| head.status());
                display_some(outcome.map(|outcome| outcome.status).filter(|status| *status > 0).or(status), out)
            }
            Variable::UpstreamAddr => {
                let endpoint = outcome.and_then(|outcome| outcome.endpoint.as_ref());
                display_some(endpoint.and_then(|endpoint| endpoint.resolved_address()), out)
            }
            Variable::UpstreamStatus => display_some(outcome.and_then(|outcome| outcome.backend_status), out),
            Variable::Attempts => display_some(outcome.map(|outcome| outcome.attempts), out),
            Variable::UpstreamResponseTime => {
                let time = outcome.and_then(|outcome| outcome.response_time);
                display_some(time.map(|time| format!("{}.{:03}", time.as_secs(), time.subsec_millis())), out)
            }
            Variable::Reason => display_some(outcome.and_then(|outcome| outcome.detail), out),
            Variable::Trace => {
                display_some(self.exchange.map(|e| e.trace(outcome.and_then(|o| o.endpoint.as_ref()))), out)
            }
            Variable::BodyBytesSent => display_some(self.ended.map(|(_, sent)| sent), out),
            Variable::Group { of: GroupOf::Host, index } => self.host_group(*index, out),
            Variable::Table(id) => self.tables.write(*id, self, out),
            _ => Presence::Missing,
        }
    }

    fn client(&self) -> Option<std::net::IpAddr> {
        self.of.forwarded.client
    }
}

fn some(text: Option<&[u8]>) -> VariableText<'_> {
    text.map_or(VariableText::Missing, VariableText::Here)
}

fn find_field<'a>(key: &FieldKey, fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> VariableText<'a> {
    let mut fitting = fields.filter(|(name, _)| key.fits(name));
    match (fitting.next(), fitting.next()) {
        (None, _) => VariableText::Missing,
        (Some((_, value)), None) => VariableText::Here(value),
        _ => VariableText::Made,
    }
}

fn name_of(host: &HostPattern) -> Option<&[u8]> {
    match host {
        HostPattern::Exact(name) | HostPattern::Below(name) | HostPattern::Starting(name) => Some(name.as_bytes()),
        HostPattern::Any | HostPattern::Regex(_) => None,
    }
}

fn write_some(text: Option<&[u8]>, out: &mut Vec<u8>) -> Presence {
    let Some(text) = text else { return Presence::Missing };
    out.extend_from_slice(text);
    Presence::Present
}

fn display(value: impl std::fmt::Display, out: &mut Vec<u8>) -> Presence {
    // Writing to memory does not fail.
    let _ = write!(out, "{value}");
    Presence::Present
}

fn display_some(value: Option<impl std::fmt::Display>, out: &mut Vec<u8>) -> Presence {
    value.map_or(Presence::Missing, |value| display(value, out))
}
