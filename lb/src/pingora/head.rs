//! A request's head as parsed by Pingora: its route, and the fields added for backend and client.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ::pingora::http::{RequestHeader, ResponseHeader};
use http::{HeaderValue, Method, Version, header};
use pingora_core::protocols::l4::socket;
use pingora_proxy::Session;

use crate::config::backend::SocketAddress;
use crate::config::{Config, ForwardedBy, ListenerConfig, ListenerSettings, RequestIdField, ServerConfig};
use crate::control::Control;
use crate::date;
use crate::exchange::headers::{
    Forwarding, Peer, PeerAddress, ProxyClaims, RequestOrigin, XForwarded, write_request_id,
};
use crate::exchange::limits::ClientLimits;
use crate::exchange::refusal::{Refusal, RefusalFormat};
use crate::exchange::{ExchangeStart, RequestInfo};
use crate::message::limits::{AmbiguousNames, NonAsciiTargets};
use crate::message::path::normalise;
use crate::value::variable::Variable;
use crate::value::{Facts, Presence};

/// Fields that tell a backend about the client: received ones are dropped.
const OURS: &[&str] = &[
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-real-ip",
];
/// Those that a trusted proxy may set instead of us.
const OF_TRUSTED: &[&str] = &["client-cert", "client-cert-chain", "x-forwarded-client-cert"];
/// The bytes of a head's line besides name and value.
pub(super) const FIELD_BYTES: usize = ": \r\n".len();
const CDN_LOOP: &str = "cdn-loop";
const REQUEST_ID: &str = "X-Request-Id";

/// The properties of a request that are forwarded.
#[derive(Debug)]
pub(super) struct ForwardedFields {
    pub id: String,
    id_field: RequestIdField,
    /// The client's limits.
    pub limits: ClientLimits,
    pub listener: ListenerSettings,
    /// Fields for the backend.
    fields: Vec<(&'static str, HeaderValue)>,
    via: Option<HeaderValue>,
    /// Whether the peer is a trusted proxy.
    is_trusted: bool,
    continues_x_forwarded: bool,
}

/// The result for a request: an exchange, or a refusal.
#[derive(Debug)]
pub(super) struct CheckedRequest {
    pub forwarded: ForwardedFields,
    pub start: Result<ExchangeStart, Refusal>,
}

/// Checks the request's head and finds its route. `None`: the configuration has no listener.
pub(super) fn begin(control: &Control, session: &Session, now: Instant) -> Option<CheckedRequest> {
    let snapshot = control.snapshot();
    let server = &snapshot.config.server;
    let head = session.req_header();
    let (listener, address) = listener(&snapshot.config, session.server_addr())?;
    let peer = Peer::new(peer(session.client_addr()));
    let is_tls = session.digest().is_some_and(|digest| digest.ssl_digest.is_some());
    let claims = claims(server, peer.address, head);
    let host = authority(head);
    let forwarding =
        Forwarding::new(RequestOrigin { peer: &peer, is_tls, host, claims: &claims }, &server.trusted_proxies);
    let is_trusted = server.trusted_proxies.contains(peer.address);
    let mut forwarded = ForwardedFields {
        id: String::new(),
        id_field: server.request_id.clone(),
        limits: ClientLimits::of_listener(&listener.settings),
        listener: listener.settings,
        fields: Vec::with_capacity(10),
        via: via(server, head.version),
        is_trusted,
        continues_x_forwarded: matches!(claims, ProxyClaims::XForwarded(_)),
    };
    let own_id = head.headers.get(server.request_id.as_str()).or_else(|| head.headers.get(REQUEST_ID));
    // Writing to a string cannot fail.
    let _ = write_request_id(own_id.filter(|_| is_trusted).map(HeaderValue::as_bytes), &mut forwarded.id);
    forwarded.read(&forwarding, control.loop_id());
    let start = admit(control, head, &listener.settings).and_then(|()| {
        let info = RequestInfo {
            client: forwarding.client,
            is_https: forwarding.proto == "https",
            is_idempotent: head.method.is_idempotent(),
            body_length: body_length(head),
            is_preflight: false,
            now,
        };
        let here = snapshot.sites.listener(address, || &listener.name);
        let site = snapshot.sites.site(here, host).ok_or(Refusal::NoRoute)?;
        let mut made = Vec::new();
        let path = normalise(path(head), &mut made).map_err(|_| Refusal::Malformed)?;
        // Configurations with conditions on routes are rejected.
        let route = site.find(path, &Nothing);
        Ok(ExchangeStart { site: Arc::clone(site), route, pool_index: 0, request: info })
    });
    Some(CheckedRequest { forwarded, start })
}

/// Whether the request is one that is forwarded.
fn admit(control: &Control, head: &RequestHeader, listener: &ListenerSettings) -> Result<(), Refusal> {
    if matches!(head.method, Method::TRACE | Method::CONNECT) {
        return Err(Refusal::Method);
    }
    check_limits(head, listener)?;
    let is_ambiguous = |name: &header::HeaderName| name.as_str().contains(['_', '.']);
    if listener.ambiguous_names == AmbiguousNames::Reject && head.headers.keys().any(is_ambiguous) {
        return Err(Refusal::Malformed);
    }
    let passed = head.headers.get_all(CDN_LOOP).iter().flat_map(|list| list.as_bytes().split(|b| b",; \t".contains(b)));
    if passed.into_iter().any(|token| token == control.loop_id().as_bytes()) {
        if control.loops.note("loop", crate::clock::now()) {
            tracing::warn!(
                host = authority(head),
                "a request came back to this balancer: one of its backends leads here"
            );
        }
        return Err(Refusal::Loop);
    }
    Ok(())
}

/// Whether the head is within the listener's limits. Pingora has already read all of it.
fn check_limits(head: &RequestHeader, listener: &ListenerSettings) -> Result<(), Refusal> {
    let limits = listener.limits();
    let target = head.raw_path();
    let line_bytes = head.method.as_str().len() + target.len() + "  HTTP/1.1".len();
    if line_bytes > limits.line_bytes {
        return Err(Refusal::TargetTooLong);
    }
    let fields = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_BYTES);
    if head.headers.len() > limits.fields || line_bytes + fields.sum::<usize>() + "\r\n\r\n".len() > limits.head_bytes {
        return Err(Refusal::FieldsTooLarge);
    }
    match limits.non_ascii {
        NonAsciiTargets::Reject if !target.is_ascii() => Err(Refusal::Malformed),
        NonAsciiTargets::Reject | NonAsciiTargets::Pass => Ok(()),
    }
}

impl ForwardedFields {
    fn read(&mut self, forwarding: &Forwarding<'_>, loop_id: &str) {
        self.field("X-Forwarded-For", |text| forwarding.write_forwarded_for(text));
        self.field("X-Forwarded-Proto", |text| text.write_str(forwarding.proto));
        self.field("X-Forwarded-Host", |text| text.write_str(forwarding.host));
        self.field("X-Real-IP", |text| forwarding.write_client(text));
        self.field("Forwarded", |text| forwarding.write_forwarded(text));
        self.field("CDN-Loop", |text| text.write_str(loop_id));
        self.field("X-Forwarded-Port", |text| text.write_str(forwarding.port));
        if let Some(prefix) = forwarding.prefix {
            self.field("X-Forwarded-Prefix", |text| text.write_str(prefix));
        }
    }

    /// Adds a field for the backend, unless its value contains bytes that would end the line.
    fn field(&mut self, name: &'static str, write: impl FnOnce(&mut String) -> fmt::Result) {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = write(&mut text);
        self.fields.extend(HeaderValue::from_str(&text).ok().map(|value| (name, value)));
    }

    /// The request for the backend.
    pub(super) fn write(&self, head: &mut RequestHeader) -> pingora_core::Result<()> {
        let is_ambiguous = |name: &&header::HeaderName| name.as_str().contains(['_', '.']);
        let ambiguous: Vec<_> = head.headers.keys().filter(is_ambiguous).cloned().collect();
        for name in ambiguous {
            let read_as = name.as_str().replace(['_', '.'], "-");
            if self.listener.ambiguous_names != AmbiguousNames::Pass || is_ours(&read_as) {
                head.remove_header(&name);
            }
        }
        OURS.iter().for_each(|name| drop(head.remove_header(*name)));
        if !self.is_trusted {
            OF_TRUSTED.iter().for_each(|name| drop(head.remove_header(*name)));
        }
        if !self.continues_x_forwarded {
            head.remove_header("x-forwarded-server");
        }
        for (name, value) in &self.fields {
            // Elements of other proxies stay (RFC 8586 §2).
            head.append_header(*name, value)?;
        }
        if let Some(via) = &self.via {
            head.append_header("Via", via)?;
        }
        match &self.id_field {
            RequestIdField::Off => {}
            RequestIdField::Usual => head.insert_header(REQUEST_ID, &self.id)?,
            RequestIdField::Named(name) => head.insert_header(name.to_string(), &self.id)?,
        }
        Ok(())
    }

    /// Adds the balancer's fields to the response for the client.
    pub(super) fn write_response(&self, head: &mut ResponseHeader, cookie: Option<&str>) -> pingora_core::Result<()> {
        match &self.id_field {
            RequestIdField::Off => {}
            RequestIdField::Usual => head.insert_header(REQUEST_ID, &self.id)?,
            RequestIdField::Named(name) => head.insert_header(name.to_string(), &self.id)?,
        }
        if let Some(cookie) = cookie {
            head.append_header("Set-Cookie", cookie)?;
        }
        if !head.headers.contains_key(header::DATE) {
            head.insert_header("Date", &date::now()[..])?;
        }
        Ok(())
    }
}

/// Sends a refusal.
pub(super) async fn refuse(
    session: &mut Session,
    forwarded: &ForwardedFields,
    refusal: Refusal,
) -> pingora_core::Result<()> {
    let accept = session.req_header().headers.get_all(header::ACCEPT);
    let reply = refusal.reply(RefusalFormat::asked(accept.iter().map(HeaderValue::as_bytes)), &forwarded.id);
    let mut head = ResponseHeader::build(reply.status(), Some(8))?;
    for (name, value) in reply.fields() {
        head.append_header(String::from_utf8_lossy(name).into_owned(), value)?;
    }
    let content = reply.into_content();
    head.insert_header("Content-Length", content.len().to_string())?;
    forwarded.write_response(&mut head, None)?;
    let is_bare = content.is_empty() || session.req_header().method == Method::HEAD;
    session.write_response_header(Box::new(head), is_bare).await?;
    if is_bare { Ok(()) } else { session.write_response_body(Some(content), true).await }
}

fn is_ours(name: &str) -> bool {
    OURS.contains(&name) || OF_TRUSTED.contains(&name) || name.eq_ignore_ascii_case(REQUEST_ID) || name == CDN_LOOP
}

/// The listener of a connection, and the listener's address: the socket is Pingora's, and may be bound to all
/// addresses.
pub(super) fn listener<'c>(
    config: &'c Config,
    local: Option<&socket::SocketAddr>,
) -> Option<(&'c ListenerConfig, &'c SocketAddress)> {
    let is_local = |address: &&SocketAddress| match (address, local) {
        (SocketAddress::Ip(ours), Some(socket::SocketAddr::Inet(local))) => {
            ours.port() == local.port() && (ours.ip() == local.ip() || ours.ip().is_unspecified())
        }
        (SocketAddress::Unix(ours), Some(socket::SocketAddr::Unix(local))) => local.as_pathname() == Some(&**ours),
        _ => false,
    };
    let at = |listener: &'c ListenerConfig| Some((listener, listener.addresses.iter().find(is_local)?));
    config.listeners.iter().find_map(at).or_else(|| {
        let first = config.listeners.first()?;
        Some((first, first.addresses.first()))
    })
}

/// The peer, as reported by Pingora.
pub(super) fn peer(address: Option<&socket::SocketAddr>) -> PeerAddress {
    address.and_then(socket::SocketAddr::as_inet).map_or(PeerAddress::Unix, |address| PeerAddress::Ip(*address))
}

/// Host and port as sent by the client.
pub(super) fn authority(head: &RequestHeader) -> &str {
    let of_target = head.uri.authority().map(|authority| authority.as_str());
    let of_field = || head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let named = of_target.or_else(of_field).unwrap_or_default();
    named.rsplit_once('@').map_or(named, |(_, host)| host)
}

fn path(head: &RequestHeader) -> &[u8] {
    match head.uri.path() {
        "" | "*" => b"/",
        path => path.as_bytes(),
    }
}

/// The length of a body that can be buffered.
fn body_length(head: &RequestHeader) -> Option<u64> {
    let headers = &head.headers;
    if headers.contains_key(header::TRANSFER_ENCODING) || headers.contains_key(header::EXPECT) {
        return None;
    }
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

fn via(server: &ServerConfig, version: Version) -> Option<HeaderValue> {
    let version = match version {
        Version::HTTP_2 => "2.0",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    };
    HeaderValue::from_str(&format!("{version} {}", server.via.as_deref()?)).ok()
}

/// What the peer claims about the client, if it is a trusted proxy.
fn claims<'a>(server: &ServerConfig, peer: Option<IpAddr>, head: &'a RequestHeader) -> ProxyClaims<'a> {
    if !server.trusted_proxies.contains(peer) {
        return ProxyClaims::None;
    }
    let list = |name| joined(head, name);
    match server.forwarded_by {
        ForwardedBy::XForwarded => ProxyClaims::XForwarded(XForwarded {
            addresses: list("x-forwarded-for"),
            proto: list("x-forwarded-proto"),
            host: list("x-forwarded-host"),
            port: list("x-forwarded-port"),
            prefix: list("x-forwarded-prefix"),
        }),
        ForwardedBy::Forwarded => ProxyClaims::Forwarded(list("forwarded")),
    }
}

/// All fields of a name as one list; empty if there are none.
fn joined<'a>(head: &'a RequestHeader, name: &str) -> Cow<'a, [u8]> {
    let mut values = head.headers.get_all(name).into_iter().map(HeaderValue::as_bytes);
    let first = values.next().unwrap_or_default();
    values.fold(Cow::Borrowed(first), |list, value| Cow::Owned([&list, &b", "[..], value].concat()))
}

/// Facts for routes without conditions.
struct Nothing;

impl Facts for Nothing {
    fn write(&self, _: &Variable, _: &mut Vec<u8>) -> Presence {
        Presence::Missing
    }
}
