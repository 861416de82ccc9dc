//! Where a request goes, and the head that its backend is sent.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::net::IpAddr;
use std::ops::Range;
use std::time::Instant;

use jiff::Timestamp;

use super::Engine;
use super::body::refusal;
use super::content::Content;
use super::pace::Pace;
use super::stream::ClientStream;
use super::work::Work;
use crate::config::{ForwardedBy, ListenerSettings, RequestIdField, ServerConfig};
use crate::exchange::headers::{Claims, Forwarding, Origin, Peer, XForwarded, trusts, write_request_id};
use crate::exchange::refusal::Refusal;
use crate::exchange::{Asked, Exchange};
use crate::http::h1::head::Form;
use crate::http::h1::reject::Reject;
use crate::http::h1::rewrite::{self, Change, Edit, FieldName, FieldValue, Persistence, RequestPlan};
use crate::http::h1::websocket;
use crate::message::field::Fields;
use crate::message::framing::Framing;
use crate::message::name::Name;
use crate::message::path::normalise;

const NO_SERVER: Change<'_> = Change { name: FieldName::known(Name::XForwardedServer), edit: Edit::Remove };

/// What the backend is told besides what the client said, as places in the text of the work.
#[derive(Default)]
pub struct Told {
    pub client: Option<IpAddr>,
    pub request_id: Range<usize>,
    /// By which field the id is told.
    pub id_field: RequestIdField,
    proto: &'static str,
    host: Range<usize>,
    port: Range<usize>,
    /// Empty: there is none.
    prefix: Range<usize>,
    /// Whether a trusted proxy has told what is told now, X-Forwarded-Server included.
    continues_x_forwarded: bool,
    client_text: Range<usize>,
    forwarded_for: Range<usize>,
    forwarded: Range<usize>,
    /// Empty: nothing is said.
    via: Range<usize>,
}

/// One request, with what is told of it.
pub struct Request<'a> {
    pub engine: &'a Engine,
    /// As they were when the request began.
    pub listener: &'a ListenerSettings,
    pub peer: &'a Peer,
    pub started: Instant,
    /// Only the access log needs it.
    pub time: Option<Timestamp>,
    pub told: Told,
}

/// Lets the request in whose head ends at `head`, or says why not. What is told is filled in as far as it gets.
pub fn begin(
    of: &mut Request<'_>,
    work: &mut Work,
    head: usize,
    client: &ClientStream,
    now: Instant,
) -> Result<(Exchange, Content), Refusal> {
    let Request { engine, listener, peer, told, .. } = of;
    let Work { request, from_client, text, path, .. } = work;
    text.clear();
    let snapshot = engine.control.snapshot();
    let server = &snapshot.config.server;
    told.id_field = server.request_id.clone();
    let incoming_id = incoming_id(&told.id_field, request.fields(), from_client);
    // A stranger's own would be found in other people's logs.
    let incoming_id = incoming_id.filter(|_| trusts(&server.trusted_proxies, peer.address));
    told.request_id = written(text, |text| write_request_id(incoming_id, text));
    if has_been_here(request.fields(), from_client, engine.control.loop_id()) {
        tell_loop(engine, request.authority(from_client), now);
        return Err(Refusal::Loop);
    }
    if request.max_forwards() == Some(0) {
        return Err(Refusal::LastHop);
    }
    let most = listener.max_body_bytes;
    if most.is_some_and(|most| request.framing().exceeds(most)) {
        return Err(Refusal::BodyTooLarge);
    }
    let path: &[u8] = match request.form() {
        Form::Asterisk => b"/",
        _ => normalise(request.path(from_client), path).map_err(|bad| refusal(Reject::from(bad)))?,
    };
    let claims = claims(server, peer, request.fields(), from_client);
    told.continues_x_forwarded = matches!(claims, Claims::XForwarded(_));
    let origin = Origin {
        peer,
        is_tls: client.is_tls(),
        // The parser takes no host but in ASCII.
        host: request.authority(from_client).and_then(|host| std::str::from_utf8(host).ok()).unwrap_or_default(),
        claims: &claims,
    };
    let cookies = request.fields().values(from_client, Name::Cookie);
    let body_length = match request.framing() {
        Framing::Length(length) if !request.expects_continue() => Some(length),
        _ => None,
    };
    let asked = Asked {
        origin,
        listener: engine.address,
        path,
        is_idempotent: request.method().is_idempotent(),
        body_length,
        now,
    };
    let (exchange, forwarding) = Exchange::begin(&snapshot, &asked, cookies)?;
    told.read(&forwarding, text);
    if let Some(name) = &snapshot.config.server.via {
        let version = client.protocol(request.version()).trim_start_matches("HTTP/");
        told.via = written(text, |text| write!(text, "{version} {name}"));
    }
    let keep = exchange.plan().settings.retry_body_bytes;
    let pace = Pace::new(listener.min_rate, client.total());
    Ok((exchange, Content::new(request.framing(), head, most, keep, pace)))
}

/// Writes the head for the backend. `websocket`: ask it to switch protocols. `loop_id`: how this process names itself.
pub fn write_head(work: &mut Work, told: &Told, loop_id: &str, websocket: bool) {
    let Work { request, from_client, text, to_backend, .. } = work;
    let value = |range: &Range<usize>| text.as_bytes().get(range.clone()).unwrap_or_default();
    let id = told.request_id_change(&*text);
    let changes = [
        set(FieldName::known(Name::XForwardedFor), value(&told.forwarded_for)),
        set(FieldName::known(Name::XForwardedProto), told.proto.as_bytes()),
        set(FieldName::known(Name::XForwardedHost), value(&told.host)),
        set(FieldName::known(Name::XRealIp), value(&told.client_text)),
        set(FieldName::known(Name::Forwarded), value(&told.forwarded)),
        // Those of others stay (RFC 8586 §2).
        Change {
            name: FieldName::known(Name::CdnLoop),
            edit: FieldValue::new(loop_id.as_bytes()).map_or(Edit::Remove, Edit::Add),
        },
        set(FieldName::known(Name::XForwardedPort), value(&told.port)),
        match value(&told.prefix) {
            b"" => Change { name: FieldName::known(Name::XForwardedPrefix), edit: Edit::Remove },
            prefix => set(FieldName::known(Name::XForwardedPrefix), prefix),
        },
        id.unwrap_or(NO_SERVER),
        NO_SERVER,
    ];
    let left_out = usize::from(id.is_none()) + usize::from(told.continues_x_forwarded);
    let changes = &changes[..changes.len() - left_out];
    let mut plan = RequestPlan::new(request, changes);
    plan.expect_continue = request.expects_continue();
    plan.via = FieldValue::new(value(&told.via)).filter(|_| !told.via.is_empty());
    plan.persistence = if websocket { Persistence::WebSocket } else { Persistence::KeepAlive };
    rewrite::request(request, from_client, &plan, to_backend);
}

/// Whether the request asks to become a WebSocket.
pub fn asks_for_websocket(work: &Work) -> bool {
    websocket::asks(&work.request)
}

impl Told {
    /// What tells the request's id in a head for the backend or the client.
    pub fn request_id_change<'a>(&'a self, text: &'a str) -> Option<Change<'a>> {
        let name = match &self.id_field {
            RequestIdField::Off => return None,
            RequestIdField::Usual => FieldName::known(Name::XRequestId),
            RequestIdField::Named(name) => FieldName::new(name.as_bytes())?,
        };
        Some(set(name, text.as_bytes().get(self.request_id.clone()).unwrap_or_default()))
    }

    /// Gives a request an id that has got none, since its head is none.
    #[cold]
    pub fn name_request(&mut self, engine: &Engine, text: &mut String) {
        if self.request_id.is_empty() {
            text.clear();
            self.id_field = engine.control.snapshot().config.server.request_id.clone();
            self.request_id = written(text, |text| write_request_id(None, text));
        }
    }

    fn read(&mut self, forwarding: &Forwarding<'_>, text: &mut String) {
        self.client = Some(forwarding.client);
        self.proto = forwarding.proto;
        self.host = written(text, |text| text.write_str(forwarding.host));
        self.port = written(text, |text| text.write_str(forwarding.port));
        self.prefix = written(text, |text| text.write_str(forwarding.prefix.unwrap_or_default()));
        self.client_text = written(text, |text| forwarding.write_client(text));
        self.forwarded_for = written(text, |text| forwarding.write_forwarded_for(text));
        self.forwarded = written(text, |text| forwarding.write_forwarded(text));
    }
}

/// The id that the client has for its request.
fn incoming_id<'a>(field: &'a RequestIdField, fields: &'a Fields, buffer: &'a [u8]) -> Option<&'a [u8]> {
    match field {
        RequestIdField::Named(name) => fields.named(buffer, name.as_bytes()).next(),
        RequestIdField::Off | RequestIdField::Usual => fields.value(buffer, Name::XRequestId),
    }
}

/// Whether this process has passed the request on before. It is known by a token that nobody else has.
fn has_been_here(fields: &Fields, buffer: &[u8], loop_id: &str) -> bool {
    let mut tokens = fields.values(buffer, Name::CdnLoop).flat_map(|list| list.split(|byte| b",; \t".contains(byte)));
    tokens.any(|token| token == loop_id.as_bytes())
}

#[cold]
fn tell_loop(engine: &Engine, host: Option<&[u8]>, now: Instant) {
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

/// A value that could break out of its line is none; a field without a value is left out.
fn set<'a>(name: FieldName<'a>, value: &'a [u8]) -> Change<'a> {
    Change { name, edit: FieldValue::new(value).map_or(Edit::Remove, Edit::Set) }
}

/// What the peer says of the client, if it is a proxy that is believed.
fn claims<'a>(server: &ServerConfig, peer: &Peer, fields: &'a Fields, buffer: &'a [u8]) -> Claims<'a> {
    if !trusts(&server.trusted_proxies, peer.address) {
        return Claims::None;
    }
    let list = |name| joined(fields, buffer, name);
    match server.forwarded_by {
        ForwardedBy::XForwarded => Claims::XForwarded(XForwarded {
            addresses: list(Name::XForwardedFor),
            proto: list(Name::XForwardedProto),
            host: list(Name::XForwardedHost),
            port: list(Name::XForwardedPort),
            prefix: list(Name::XForwardedPrefix),
        }),
        ForwardedBy::Forwarded => Claims::Forwarded(list(Name::Forwarded)),
    }
}

/// All fields of a name as one list, empty if there are none.
fn joined<'a>(fields: &'a Fields, buffer: &'a [u8], name: Name) -> Cow<'a, [u8]> {
    let mut values = fields.values(buffer, name);
    let first = values.next().unwrap_or_default();
    values.fold(Cow::Borrowed(first), |list, value| Cow::Owned([&list, &b", "[..], value].concat()))
}
