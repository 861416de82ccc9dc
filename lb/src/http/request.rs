//! Routing of a request, and the head that is sent to its backend.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;

use super::body::refusal;
use super::buffers::Buffers;
use super::facts::RequestFacts;
use super::fields::{self, Changes};
use super::{Engine, target};
use crate::clock;
use crate::config::site::{HeaderEdits, JumpTo, Page, Rules};
use crate::config::{ForwardedBy, ListenerSettings, RequestIdField, ServerConfig};
use crate::exchange::headers::{Forwarding, Peer, ProxyClaims, RequestOrigin, XForwarded, write_request_id};
use crate::exchange::limits::ClientLimits;
use crate::exchange::refusal::Refusal;
use crate::exchange::walk::Jump;
use crate::exchange::{Event, Exchange, ExchangeStart, RequestInfo};
use crate::failure::{AttemptError, Detail, Failure, Fault};
use crate::http::h1::head::{RequestHead, TargetForm};
use crate::http::h1::reject::Reject;
use crate::http::h1::rewrite::{self, Change, Edit, FieldName, FieldValue, Lines, Persistence, RequestPlan, Target};
use crate::http::h1::websocket;
use crate::message::field::Fields;
use crate::message::framing::Framing;
use crate::message::name::{Name, NameSet};
use crate::message::path::normalise;
use crate::message::{Method, Version};
use crate::site::{Action, Route, RouteId};
use crate::value::table::Tables;

/// Fields that are always generated: values in the request are not forwarded as they are.
const GENERATED_FIELDS: NameSet = NameSet::of(&[
    Name::Forwarded,
    Name::XForwardedFor,
    Name::XForwardedHost,
    Name::XForwardedPort,
    Name::XForwardedPrefix,
    Name::XForwardedProto,
    Name::XRealIp,
]);

const REVOKED: Detail =
    Detail::Reason("the listener is gone, or the clients of this connection are no longer accepted");

/// Fields about the client's certificate. They are not accepted from clients (RFC 9440 §4).
const CLIENT_CERTIFICATE_FIELDS: NameSet =
    NameSet::of(&[Name::ClientCert, Name::ClientCertChain, Name::XForwardedClientCert]);

/// Changes to a request by jumps and error pages.
#[derive(Default)]
pub(super) struct RequestState {
    /// The method is GET.
    pub is_get: bool,
    /// The request is sent without its content.
    pub omits_body: bool,
    /// Fields of the answer that an error page replaces.
    pub status_fields: StatusFields,
    /// The tables that the route's values use; `None` if the route only proxies. Not the snapshot: a tunnel would keep
    /// that of its beginning through all reloads.
    pub tables: Option<Arc<Tables>>,
    /// No further request is served on its connection, because who may connect has changed or its listener is gone.
    pub is_misdirected: bool,
    /// Why the request is refused before it is an exchange.
    pub detail: Option<Detail>,
}

/// Fields that belong to a status, such as `Retry-After` to 503, and are sent with any content.
#[derive(Default)]
pub(super) struct StatusFields {
    pub status: u16,
    pub fields: Vec<(&'static str, Vec<u8>)>,
}

/// The fields generated for the backend, as ranges of [`Buffers::text`].
#[derive(Default)]
pub(super) struct ForwardedFields {
    pub client: Option<IpAddr>,
    pub request_id: Range<usize>,
    /// The field that carries the request id.
    pub id_field: RequestIdField,
    proto: &'static str,
    host: Range<usize>,
    /// Whether a trusted proxy has sent X-Forwarded fields, X-Forwarded-Server included.
    continues_x_forwarded: bool,
    /// Whether a trusted proxy without a certificate of its own has sent its client's.
    continues_client_certificate: bool,
    client_text: Range<usize>,
    /// Whole lines, including the request id if it has the usual field.
    lines: Range<usize>,
    /// The line of the request id, if it has the usual field.
    id_line: Range<usize>,
    /// Empty if no `Via` is sent.
    via: Range<usize>,
    /// Whether the path had to be normalised.
    has_rewritten_path: bool,
}

/// A request and the fields that are generated for it.
pub(super) struct Request<'a> {
    pub engine: &'a Engine,
    /// The listener's settings when the request began.
    pub listener: &'a ListenerSettings,
    pub peer: &'a Peer,
    pub started: Instant,
    /// Only for the access log.
    pub time: Option<Timestamp>,
    pub forwarded: ForwardedFields,
    pub state: RequestState,
    /// It is an HTTP/2 stream.
    pub is_stream: bool,
    /// It came as a CONNECT, on a stream.
    pub is_connect: bool,
    /// Its connection uses TLS.
    pub is_tls: bool,
    /// The client limits: the listener's, then the route's once it is known.
    pub limits: ClientLimits,
}

/// Finds the route of a request, or refuses it. `forwarded` is filled in as far as it gets.
pub(super) fn begin(
    of: &mut Request<'_>,
    buffers: &mut Buffers,
    is_tls: bool,
    now: Instant,
) -> Result<ExchangeStart, Refusal> {
    let Request { engine, peer, forwarded, .. } = of;
    let engine = *engine;
    let Buffers { request, from_client, text, path, target, noted, .. } = buffers;
    text.clear();
    target.clear();
    noted.clear();
    let snapshot = engine.control.snapshot();
    // Check this after loading the snapshot, see `is_revoked`.
    if engine.is_revoked() {
        of.state.is_misdirected = true;
        of.state.detail = Some(REVOKED);
        return Err(Refusal::Misdirected);
    }
    let server = &snapshot.config.server;
    forwarded.id_field = server.request_id.clone();
    let incoming_id = incoming_id(&server.request_id, request.fields(), from_client);
    // An id chosen by an untrusted client could be another request's in the logs.
    let incoming_id = incoming_id.filter(|_| server.trusted_proxies.contains(peer.address));
    forwarded.write_id(incoming_id, text);
    if has_been_here(request.fields(), from_client, engine.control.loop_id()) {
        warn_of_loop(engine, request.authority(from_client), now);
        return Err(Refusal::Loop);
    }
    if request.max_forwards() == Some(0) {
        return Err(Refusal::LastHop);
    }
    let received = request.path(from_client);
    forwarded.has_rewritten_path = match request.form() {
        TargetForm::Asterisk => {
            path.clear();
            path.push(b'/');
            true
        }
        _ => {
            let normal = normalise(received, path).map_err(|bad| {
                let reject = Reject::from(bad);
                of.state.detail = Some(Detail::Reason(reject.reason()));
                refusal(reject)
            })?;
            !std::ptr::eq(normal, received)
        }
    };
    let claims = claims(server, peer, request.fields(), from_client);
    forwarded.continues_x_forwarded = matches!(claims, ProxyClaims::XForwarded(_));
    // There are claims only from a trusted proxy.
    forwarded.continues_client_certificate =
        !matches!(claims, ProxyClaims::None) && peer.client_certificate().is_none();
    let origin = RequestOrigin {
        peer,
        is_tls,
        // The parser accepts only ASCII hosts.
        host: request.authority(from_client).and_then(|host| std::str::from_utf8(host).ok()).unwrap_or_default(),
        claims: &claims,
    };
    let forwarding = Forwarding::new(origin, &server.trusted_proxies);
    forwarded.read(&forwarding, peer, engine.control.loop_id(), text);
    if let Some(name) = &server.via {
        let version = match (of.is_stream, request.version()) {
            (true, _) => "2.0",
            (_, Version::Http10) => "1.0",
            (_, Version::Http11) => "1.1",
        };
        forwarded.via = written(text, |text| write!(text, "{version} {name}"));
    }
    let body_length = match request.framing() {
        Framing::Length(length) if !request.expects_continue() => Some(length),
        _ => None,
    };
    let mut info = RequestInfo {
        client: forwarding.client,
        is_https: forwarding.proto == "https",
        is_idempotent: request.method().is_idempotent(),
        body_length,
        is_preflight: false,
        now,
    };
    let path = forwarded.path(request, from_client, path);
    let listener = engine.place_in(&snapshot.sites);
    let Some(site) = snapshot.sites.site(listener, origin.host) else {
        of.state.is_misdirected = listener.is_none();
        of.state.detail = listener.is_none().then_some(REVOKED);
        return Err(if listener.is_none() { Refusal::Misdirected } else { Refusal::NoRoute });
    };
    // The client was shown the certificate of another site (RFC 9110 §7.4).
    if site.config.certificate.is_some()
        && let Some(name) = peer.tls.as_ref().and_then(|tls| tls.server_name.as_deref())
        && !snapshot.sites.site(listener, name).is_some_and(|info| Arc::ptr_eq(info, site))
    {
        of.state.detail =
            Some(Detail::Reason("the connection was made for another site, which has its own certificate"));
        return Err(Refusal::Misdirected);
    }
    let facts = |route| RequestFacts {
        of,
        head: request,
        from_client,
        text,
        path,
        target: b"",
        tables: &snapshot.config.values,
        matched: Some((site, route)),
        exchange: None,
        response: None,
        rewrite: None,
        ended: None,
        noted: &[],
    };
    let mut found = site.find_with(path, || facts(RouteId::FALLBACK));
    if site.route(found).is_internal {
        found = RouteId::FALLBACK;
    }
    let route = site.route(found);
    let mut pool_index = 0;
    let is_plain = !route.has_rules && matches!(route.action, Action::Pool(_));
    if !is_plain {
        let facts = facts(found);
        pool_index = pool_of(route, &facts);
        info.is_preflight = site.rules(found).cors.is_some() && fields::is_preflight(&facts);
    }
    let start = ExchangeStart { site: Arc::clone(site), route: found, pool_index, request: info };
    if !is_plain {
        of.state.tables = Some(Arc::clone(&snapshot.config.values));
    }
    Ok(start)
}

/// Begins the exchange of a routed request, and applies its client limits.
#[inline]
pub(super) fn exchange(of: &mut Request<'_>, buffers: &Buffers, start: ExchangeStart) -> Exchange {
    let exchange = Exchange::begin(start, buffers.request.fields().values(&buffers.from_client, Name::Cookie));
    of.limits = exchange.client_limits(ClientLimits::of_listener(of.listener));
    exchange
}

/// The index of the pool among the route's pools; out of range for none.
pub(super) fn pool_of(route: &Route, facts: &RequestFacts<'_>) -> usize {
    let Action::PoolFrom { value, pools, .. } = &route.action else { return 0 };
    let mut scratch = Vec::new();
    let name = value.read(facts, &mut scratch).unwrap_or_default();
    pools.iter().position(|of| of.pool.name.as_str().as_bytes() == name).unwrap_or(usize::MAX)
}

/// Jumps to another route. Returns the event that begins the exchange on the new route. `is_body_at_hand`: the part of
/// the body that has arrived is still buffered.
#[cold]
pub(super) fn jump(
    of: &mut Request<'_>,
    buffers: &mut Buffers,
    exchange: &mut Exchange,
    jump: Jump,
    is_body_at_hand: bool,
) -> Event {
    let site = Arc::clone(exchange.site());
    let is_page = matches!(jump, Jump::Page(_));
    let to = match jump {
        Jump::Action => match &site.route(exchange.route_id()).action {
            Action::Jump { to, .. } => Some(to),
            _ => None,
        },
        Jump::Page(index) => {
            let pages = &site.rules(exchange.route_id()).error_pages;
            pages.get(index).and_then(|page| match &page.page {
                Page::Jump(to) => Some(to),
                _ => None,
            })
        }
    };
    let is_page_by_path = is_page && matches!(to, Some(JumpTo::Path(_)));
    // Malformed or incomplete content is not sent anywhere, so error pages by name do not reach a backend then.
    let is_client_fault = |failure: Failure| failure.verdict().fault == Fault::Client;
    let has_failed = exchange.outcome().failure.is_some_and(is_client_fault);
    let keeps_body = is_body_at_hand && !of.state.omits_body && !has_failed && !is_page_by_path;
    let mut target = Vec::new();
    if let Some(JumpTo::Path(path)) = to {
        target::write(path, &RequestFacts::of(of, buffers, exchange), &mut target);
    }
    let has_content = !matches!(buffers.request.framing(), Framing::None | Framing::Length(0));
    // Before the route is looked up, since its conditions may depend on the method.
    if is_page_by_path || has_content && !keeps_body {
        of.state.omits_body = true;
        of.state.is_get = buffers.request.method() != Method::Head;
    }
    let mut route = RouteId::FALLBACK;
    let mut leads_nowhere = false;
    match to {
        Some(JumpTo::Route(name)) => route = site.named(name).unwrap_or(route),
        Some(JumpTo::Path(_)) => {
            let end = target.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(target.len());
            let mut scratch = Vec::new();
            match normalise(&target[..end], &mut scratch) {
                Ok(path) => {
                    buffers.path = path.to_vec();
                    buffers.target = target;
                    of.forwarded.record_rewritten_path();
                    let facts = RequestFacts::of(of, buffers, exchange);
                    route = site.find(&buffers.path, &facts);
                    let may_choose = matches!(to, Some(JumpTo::Path(to)) if !target::names(to, route, &facts));
                    if site.route(route).is_internal && may_choose {
                        route = RouteId::FALLBACK;
                    }
                }
                Err(_) => leads_nowhere = true,
            }
        }
        None => {}
    }
    let facts = RequestFacts::of(of, buffers, exchange);
    let pool_index = pool_of(site.route(route), &RequestFacts { matched: Some((&site, route)), ..facts });
    let cookies = buffers.request.fields().values(&buffers.from_client, Name::Cookie);
    exchange.enter(route, pool_index, keeps_body, cookies, clock::now());
    of.limits = exchange.client_limits(ClientLimits::of_listener(of.listener));
    match leads_nowhere {
        true => {
            let detail =
                Some(Detail::Reason("the request jumps to a path that climbs above the root or has a bad escape"));
            let failed = AttemptError { failure: Failure::RequestMalformed, detail };
            Event::Failed { failed, has_body: false }
        }
        false => beginning(of, buffers, exchange),
    }
}

/// The first event of an exchange on its route: a failure if the content is too large.
pub(super) fn beginning(of: &Request<'_>, buffers: &Buffers, exchange: &Exchange) -> Event {
    let max = of.limits.max_body_bytes.filter(|_| !of.state.omits_body);
    match max.is_some_and(|max| buffers.request.framing().exceeds(max)) {
        true => {
            let failure = Failure::BodyTooLarge;
            Event::Failed {
                failed: AttemptError { failure, detail: of.explain(failure, buffers, exchange, false) },
                has_body: false,
            }
        }
        false => Event::Begun,
    }
}

/// Writes the request head for the backend. `websocket`: ask to switch protocols. Fails if the rewritten target is
/// invalid.
pub(super) fn write_head(
    of: &Request<'_>,
    buffers: &mut Buffers,
    exchange: &Exchange,
    websocket: bool,
) -> Result<(), Failure> {
    let forwarded = &of.forwarded;
    let named_id = forwarded.named_id(&buffers.text);
    let mut plan = RequestPlan::new(&buffers.request, named_id.as_slice());
    plan.lines = forwarded.lines(&buffers.text);
    plan.expect_continue = buffers.request.expects_continue();
    plan.via = forwarded.via(&buffers.text);
    plan.persistence = if websocket { Persistence::WebSocket } else { Persistence::KeepAlive };
    if of.state.tables.is_some() && is_changed(of, buffers, exchange) {
        let mut out = std::mem::take(&mut buffers.to_backend);
        let written = write_changed_head(of, buffers, exchange, plan, &mut out);
        buffers.to_backend = out;
        return written;
    }
    rewrite::request(&buffers.request, &buffers.from_client, &plan, &mut buffers.to_backend);
    Ok(())
}

/// Whether the route's rules or jumps change the head for the backend.
fn is_changed(of: &Request<'_>, buffers: &Buffers, exchange: &Exchange) -> bool {
    let changes = |rules: &Rules| {
        let HeaderEdits { host, changes } = &rules.request_headers;
        rules.rewrite.is_some() || host.is_some() || !changes.is_empty()
    };
    let RequestState { is_get, omits_body, .. } = of.state;
    is_get || omits_body || exchange.is_page() || !buffers.target.is_empty() || exchange.rules().is_some_and(changes)
}

/// Writes the head with the changes by the route's rules and jumps.
#[inline(never)]
fn write_changed_head(
    of: &Request<'_>,
    buffers: &Buffers,
    exchange: &Exchange,
    mut plan: RequestPlan<'_>,
    out: &mut Vec<u8>,
) -> Result<(), Failure> {
    let facts = RequestFacts::of(of, buffers, exchange);
    let rules = exchange.rules();
    plan.is_get = of.state.is_get;
    if of.state.omits_body {
        (plan.framing, plan.expect_continue) = (Framing::None, false);
    }
    let (changes, lines) = Changes::made(plan.changes, plan.lines, |changes| {
        if of.state.omits_body {
            for name in CONTENT_FIELDS {
                changes.remove(FieldName::known(*name));
            }
        }
        if exchange.is_page() {
            // Range and conditional fields were meant for the answer that the page replaces.
            for name in CONDITIONS {
                changes.remove(FieldName::known(*name));
            }
        }
        if let Some(rules) = rules {
            changes.edit(&rules.request_headers.changes, None, &facts);
        }
    });
    let host = rules.and_then(|rules| fields::host(rules, &facts));
    let target = rules.and_then(|rules| target::rewritten(rules.rewrite.as_ref()?, &facts));
    let target = match target.as_deref().unwrap_or(&buffers.target) {
        b"" => None,
        // The backend must not get what was received in place of what the operator meant it to get.
        target => Some(Target::new(target).ok_or(Failure::Internal)?),
    };
    let host = host.as_deref().and_then(FieldValue::new);
    changes.list(|changes| {
        let plan = RequestPlan { target, host, changes, lines, ..plan };
        rewrite::request(&buffers.request, &buffers.from_client, &plan, out);
    });
    Ok(())
}

/// Fields that describe the content.
const CONTENT_FIELDS: &[Name] = &[Name::ContentType, Name::ContentEncoding, Name::ContentRange];

const CONDITIONS: &[Name] =
    &[Name::Range, Name::IfRange, Name::IfMatch, Name::IfNoneMatch, Name::IfModifiedSince, Name::IfUnmodifiedSince];

/// Whether the request asks for a WebSocket.
pub(super) fn asks_for_websocket(buffers: &Buffers) -> bool {
    websocket::asks(&buffers.request)
}

impl Request<'_> {
    /// The limit that led to this failure of the client. `has_low_rate`: it was too slow on average.
    #[cold]
    pub(super) fn explain(
        &self,
        failure: Failure,
        buffers: &Buffers,
        exchange: &Exchange,
        has_low_rate: bool,
    ) -> Option<Detail> {
        let length = match buffers.request.framing() {
            Framing::Length(length) => Some(length),
            _ => None,
        };
        self.limits.explain(failure, exchange.rules().map(|rules| &rules.client), has_low_rate, length)
    }

    /// The tables that its values use.
    pub(super) fn tables(&self) -> &Tables {
        self.state.tables.as_deref().unwrap_or(Tables::none())
    }
}

impl ForwardedFields {
    /// The scheme that the client used, `http` or `https`.
    pub(super) fn proto(&self) -> &'static str {
        self.proto
    }

    /// The host and port that the client sent.
    pub(super) fn host<'a>(&self, text: &'a str) -> &'a [u8] {
        text.as_bytes().get(self.host.clone()).unwrap_or_default()
    }

    /// The client's address.
    pub(super) fn client_text<'a>(&self, text: &'a str) -> &'a [u8] {
        text.as_bytes().get(self.client_text.clone()).unwrap_or_default()
    }

    pub(super) fn request_id<'a>(&self, text: &'a str) -> &'a [u8] {
        text.as_bytes().get(self.request_id.clone()).unwrap_or_default()
    }

    /// The current path, decoded and normalised. `made` is the buffer for a path that differs from the received one.
    pub(super) fn path<'a>(&self, head: &RequestHead, from_client: &'a [u8], made: &'a [u8]) -> &'a [u8] {
        if self.has_rewritten_path { made } else { head.path(from_client) }
    }

    /// Records that the path differs from the received one.
    pub(super) fn record_rewritten_path(&mut self) {
        self.has_rewritten_path = true;
    }

    /// The generated lines for the backend: the client, and the request's id if it has the usual field.
    fn lines<'a>(&self, text: &'a str) -> Lines<'a> {
        let mut replaced = GENERATED_FIELDS;
        if self.id_field == RequestIdField::Usual {
            replaced = replaced.with(Name::XRequestId);
        }
        if !self.continues_client_certificate {
            replaced = replaced.union(CLIENT_CERTIFICATE_FIELDS);
        }
        if !self.continues_x_forwarded {
            replaced = replaced.with(Name::XForwardedServer);
        }
        let lines = text.as_bytes().get(self.lines.clone()).unwrap_or_default();
        Lines::new(lines, replaced, NameSet::of(&[Name::CdnLoop]))
    }

    /// The generated lines for the client: the request's id, if it has the usual field.
    pub(super) fn id_lines<'a>(&self, text: &'a str) -> Lines<'a> {
        let line = text.as_bytes().get(self.id_line.clone()).unwrap_or_default();
        let replaced = if line.is_empty() { NameSet::EMPTY } else { NameSet::of(&[Name::XRequestId]) };
        Lines::new(line, replaced, NameSet::EMPTY)
    }

    /// The field with the request's id, if that is not the usual one.
    pub(super) fn named_id<'a>(&'a self, text: &'a str) -> Option<Change<'a>> {
        let RequestIdField::Named(name) = &self.id_field else { return None };
        let value = FieldValue::new(self.request_id(text));
        // A value with a line break is left out.
        Some(Change { name: FieldName::new(name.as_bytes())?, edit: value.map_or(Edit::Remove, Edit::Set) })
    }

    fn via<'a>(&self, text: &'a str) -> Option<FieldValue<'a>> {
        let via = text.as_bytes().get(self.via.clone()).filter(|via| !via.is_empty())?;
        FieldValue::new(via)
    }

    /// Writes the request's id: the client's own if it is safe to log, else a new one.
    fn write_id(&mut self, own: Option<&[u8]>, text: &mut String) {
        if self.id_field == RequestIdField::Usual {
            let start = text.len();
            self.request_id = line(text, "X-Request-Id: ", |text| write_request_id(own, text));
            self.id_line = start..text.len();
            self.lines = self.id_line.clone();
        } else {
            self.request_id = written(text, |text| write_request_id(own, text));
            self.lines = text.len()..text.len();
        }
    }

    /// Fills in what is missing in a request that was refused before it was read: an id, and the peer as its client.
    #[cold]
    pub(super) fn complete(&mut self, engine: &Engine, peer: &Peer, is_tls: bool, text: &mut String) {
        if self.request_id.is_empty() {
            text.clear();
            self.id_field = engine.control.snapshot().config.server.request_id.clone();
            self.write_id(None, text);
        }
        if self.client_text.is_empty() {
            self.client = peer.address;
            self.client_text = written(text, |text| text.write_str(peer.as_str()));
            self.proto = if is_tls { "https" } else { "http" };
        }
    }

    /// Writes the fields for the backend, after the id.
    fn read(&mut self, forwarding: &Forwarding<'_>, peer: &Peer, loop_id: &str, text: &mut String) {
        self.client = forwarding.client;
        self.proto = forwarding.proto;
        if forwarding.client.is_some() {
            line(text, "X-Forwarded-For: ", |text| forwarding.write_forwarded_for(text));
        }
        line(text, "X-Forwarded-Proto: ", |text| text.write_str(forwarding.proto));
        self.host = line(text, "X-Forwarded-Host: ", |text| text.write_str(forwarding.host));
        if forwarding.client.is_some() {
            self.client_text = line(text, "X-Real-IP: ", |text| forwarding.write_client(text));
        }
        line(text, "Forwarded: ", |text| forwarding.write_forwarded(text));
        // Fields of other proxies stay (RFC 8586 §2).
        line(text, "CDN-Loop: ", |text| text.write_str(loop_id));
        line(text, "X-Forwarded-Port: ", |text| text.write_str(forwarding.port));
        if let Some(prefix) = forwarding.prefix {
            line(text, "X-Forwarded-Prefix: ", |text| text.write_str(prefix));
        }
        if let Some(certificate) = peer.client_certificate() {
            text.push_str(&certificate.lines);
        }
        self.lines.end = text.len();
        if forwarding.client.is_none() {
            // Clients without an address, on Unix sockets, are not described to backends.
            self.client_text = written(text, |text| forwarding.write_client(text));
        }
    }
}

/// The request id that the client sent.
fn incoming_id<'a>(field: &'a RequestIdField, fields: &'a Fields, buffer: &'a [u8]) -> Option<&'a [u8]> {
    match field {
        RequestIdField::Named(name) => fields.named(buffer, name.as_bytes()).next(),
        RequestIdField::Off | RequestIdField::Usual => fields.value(buffer, Name::XRequestId),
    }
}

/// Whether this process has forwarded the request before. It recognises its own random token in `CDN-Loop`.
fn has_been_here(fields: &Fields, buffer: &[u8], loop_id: &str) -> bool {
    let mut tokens = fields.values(buffer, Name::CdnLoop).flat_map(|list| list.split(|byte| b",; \t".contains(byte)));
    tokens.any(|token| token == loop_id.as_bytes())
}

#[cold]
fn warn_of_loop(engine: &Engine, host: Option<&[u8]>, now: Instant) {
    if engine.control.loops.note("loop", now) {
        let host = String::from_utf8_lossy(host.unwrap_or_default());
        tracing::warn!(host = &*host, "a request came back to this balancer: one of its backends leads here");
    }
}

fn written(text: &mut String, write: impl FnOnce(&mut String) -> fmt::Result) -> Range<usize> {
    let start = text.len();
    // Writing to a string does not fail.
    let _ = write(text);
    start..text.len()
}

/// Appends a field line that begins with `start`, and returns the range of its value. A value with a line break is left
/// out.
#[inline]
fn line(text: &mut String, start: &str, write: impl FnOnce(&mut String) -> fmt::Result) -> Range<usize> {
    let line = text.len();
    text.push_str(start);
    let value = written(text, write);
    if text.as_bytes().get(value.clone()).and_then(FieldValue::new).is_none() {
        text.truncate(line);
        return line..line;
    }
    text.push_str("\r\n");
    value
}

/// What the peer claims about the client, if the peer is a trusted proxy.
fn claims<'a>(server: &ServerConfig, peer: &Peer, fields: &'a Fields, buffer: &'a [u8]) -> ProxyClaims<'a> {
    if !server.trusted_proxies.contains(peer.address) {
        return ProxyClaims::None;
    }
    let list = |name| joined(fields, buffer, name);
    match server.forwarded_by {
        ForwardedBy::XForwarded => ProxyClaims::XForwarded(XForwarded {
            addresses: list(Name::XForwardedFor),
            proto: list(Name::XForwardedProto),
            host: list(Name::XForwardedHost),
            port: list(Name::XForwardedPort),
            prefix: list(Name::XForwardedPrefix),
        }),
        ForwardedBy::Forwarded => ProxyClaims::Forwarded(list(Name::Forwarded)),
    }
}

/// All fields of a name as one list; empty if there are none.
fn joined<'a>(fields: &'a Fields, buffer: &'a [u8], name: Name) -> Cow<'a, [u8]> {
    let mut values = fields.values(buffer, name);
    let first = values.next().unwrap_or_default();
    values.fold(Cow::Borrowed(first), |list, value| Cow::Owned([&list, &b", "[..], value].concat()))
}
