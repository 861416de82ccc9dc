//! HTTP by Pingora's proxy. One short method for each of its phases; every decision is made in [`crate::proxy`].

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Version, header};
use jiff::Timestamp;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::prelude::{Error, ErrorSource, ErrorType, HttpPeer, Session};
use pingora::proxy::{FailToProxy, HttpProxy, ProxyHttp, ProxyWarnLogContext};
use pingora::server::configuration::ServerConf;

use super::Shared;
use super::http1::limits::Limits;
use super::http1::path::normalise;
use crate::access_log::{AccessLog, Record, Served};
use crate::config::ListenerConfig;
use crate::control::Control;
use crate::pingora_error;
use crate::proxy::admission::Claims;
use crate::proxy::exchange::{Asked, Exchange, Outcome};
use crate::proxy::failure::{Failure, Replay};
use crate::proxy::headers::{FORWARDING, Forwarding, HOP_BY_HOP, Origin, Peer, connection_options, write_request_id};
use crate::proxy::refusal::Refusal;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

pub type Proxy = HttpProxy<Evenkeel>;

/// What serves the connections of one listener.
pub struct Evenkeel {
    control: Arc<Control>,
    access_log: Option<Arc<AccessLog>>,
    listener: ListenerConfig,
}

/// What Pingora carries from phase to phase.
pub struct Context {
    started: Instant,
    time: Timestamp,
    /// None until the request was admitted and routed.
    exchange: Option<Exchange>,
    client: Option<IpAddr>,
    fields: Vec<(&'static str, String)>,
    request_id: String,
    refusal: Option<Refusal>,
    /// What a filter found wrong with a response.
    bad_response: Option<Failure>,
    body_bytes: u64,
    /// When the last of the request's body had come from the client.
    body_ended: Option<Instant>,
}

pub fn proxy(listener: &ListenerConfig, shared: &Shared) -> Arc<Proxy> {
    let conf = ServerConf {
        upstream_keepalive_pool_size: shared.idle_connections,
        // How often to try is decided by the exchange; this only has to be more.
        max_retries: 64,
        ..ServerConf::default()
    };
    let evenkeel = Evenkeel {
        control: Arc::clone(&shared.control),
        access_log: shared.access_log.clone(),
        listener: listener.clone(),
    };
    let mut proxy = HttpProxy::new(evenkeel, Arc::new(conf));
    proxy.handle_init_modules();
    Arc::new(proxy)
}

#[async_trait]
impl ProxyHttp for Evenkeel {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        Context {
            started: Instant::now(),
            time: Timestamp::now(),
            exchange: None,
            client: None,
            fields: Vec::new(),
            request_id: String::new(),
            refusal: None,
            bad_response: None,
            body_bytes: 0,
            body_ended: None,
        }
    }

    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, context: &mut Context) -> pingora::Result<bool> {
        self.set_timeouts(session);
        if let Err(refusal) = self.begin(session, context) {
            return Err(refuse(context, refusal));
        }
        if session.req_header().headers.contains_key(header::EXPECT) {
            // At once, because nothing here can tell that the backend does not do it.
            session.write_continue_response().await?;
        }
        Ok(false)
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        context: &mut Context,
    ) -> pingora::Result<()> {
        if end_of_stream {
            context.body_ended.get_or_insert_with(Instant::now);
        }
        context.body_bytes += body.as_ref().map_or(0, |b| b.len() as u64);
        match self.listener.max_body_bytes {
            Some(max) if context.body_bytes > max && !context.is_tunnel() => {
                Err(refuse(context, Refusal::BodyTooLarge))
            }
            _ => Ok(()),
        }
    }

    async fn upstream_peer(&self, session: &mut Session, context: &mut Context) -> pingora::Result<Box<HttpPeer>> {
        let replay = context.replay(session);
        let Some(exchange) = &mut context.exchange else { return Err(refuse(context, Refusal::Internal)) };
        let backend = loop {
            let backend = match exchange.next_backend(&self.control, Instant::now()) {
                Ok(backend) => backend,
                Err(refusal) => return Err(refuse(context, refusal)),
            };
            match backend.socket_address() {
                Some(address) => break address,
                None => {
                    if !exchange.failed(&self.control, Failure::Unresolved, replay, Duration::ZERO, Instant::now()) {
                        return Err(refuse(context, Refusal::Failed(Failure::Unresolved)));
                    }
                }
            }
        };
        let settings = &exchange.pool().settings;
        let mut peer = Box::new(HttpPeer::new(backend, false, String::new()));
        peer.options.connection_timeout = Some(settings.connect_timeout);
        peer.options.total_connection_timeout = Some(settings.connect_timeout);
        // Pingora knows one limit for the head and for pauses in the body.
        peer.options.read_timeout = Some(settings.response_timeout.max(settings.read_timeout));
        peer.options.write_timeout = Some(settings.write_timeout);
        peer.options.idle_timeout = Some(settings.idle_timeout);
        Ok(peer)
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        context: &mut Context,
    ) -> pingora::Result<()> {
        request.remove_header(&header::EXPECT);
        for name in FORWARDING {
            request.remove_header(name);
        }
        for (name, value) in &context.fields {
            request.insert_header(*name, value.as_str())?;
        }
        request.insert_header(X_REQUEST_ID, context.request_id.as_str())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Context,
    ) -> pingora::Result<()> {
        let status = response.status.as_u16();
        let is_upgrade = status == 101 && session.is_upgrade_req();
        let bad = if status == 101 && !is_upgrade { Some(Failure::UnaskedUpgrade) } else { over_limits(response) };
        if let Some(failure) = bad {
            context.bad_response = Some(failure);
            return Error::e_explain(ErrorType::InvalidHTTPHeader, failure.word());
        }
        let is_final = !response.status.is_informational() || is_upgrade;
        if let Some(exchange) = context.exchange.as_mut().filter(|_| is_final) {
            exchange.answered(&self.control, status, Instant::now());
        }
        if !is_upgrade {
            strip_hop_by_hop(response);
        }
        // The version is that of our connection, not of the backend's.
        response.set_version(Version::HTTP_11);
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Context,
    ) -> pingora::Result<()> {
        if response.status.is_informational() && response.status != 101 {
            return Ok(());
        }
        let is_tls = is_tls(session);
        if let Some(cookie) = context.exchange.as_ref().and_then(|exchange| exchange.set_cookie(is_tls)) {
            response.append_header(header::SET_COOKIE, cookie)?;
        }
        Ok(())
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        _peer: &HttpPeer,
        context: &mut Context,
        error: Box<Error>,
    ) -> Box<Error> {
        attempt_failed(&self.control, session, context, pingora_error::failure(&error), error)
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        context: &mut Context,
        client_reused: bool,
    ) -> Box<Error> {
        if context.refusal.is_some() || *error.esource() == ErrorSource::Downstream {
            return no_retry(error);
        }
        let has_answered = context.exchange.as_ref().is_some_and(Exchange::has_answered);
        let failure = match (context.bad_response.take(), error.etype()) {
            (Some(failure), _) => failure,
            (None, ErrorType::ReadTimedout | ErrorType::WriteTimedout) if has_answered => Failure::ResponseStalled,
            (None, _) if has_answered => Failure::ResponseTruncated,
            (None, ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError) if client_reused => {
                Failure::StaleConnection
            }
            (None, _) => pingora_error::failure(&error),
        };
        attempt_failed(&self.control, session, context, failure, error)
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, context: &mut Context) -> FailToProxy {
        let refusal = context.refusal.or_else(|| refusal_for(error));
        context.refusal = refusal;
        let has_begun = session.response_written().is_some_and(|r| !r.status.is_informational());
        let (Some(refusal), false) = (refusal, has_begun) else {
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        };
        let keeps = refusal.keeps_connection() && session.is_body_done();
        if !keeps {
            session.set_keepalive(None);
        }
        if let Err(e) = respond(session, refusal, &context.request_id).await {
            tracing::debug!("an answer of our own did not reach the client: {e}");
        }
        FailToProxy { error_code: refusal.status(), can_reuse_downstream: keeps }
    }

    async fn logging(&self, session: &mut Session, _error: Option<&Error>, context: &mut Context) {
        let now = Instant::now();
        let final_response = session.response_written().filter(|response| !response.status.is_informational());
        let is_gone = final_response.is_none();
        let client_gone = Failure::ClientGone;
        let status = final_response.map_or(client_gone.verdict().status, |response| response.status.as_u16());
        if let Some(refusal) = context.refusal {
            self.control.metrics.refused(refusal.reason());
        }
        let outcome = match &mut context.exchange {
            Some(exchange) => {
                if is_gone {
                    exchange.ended_by_client(client_gone);
                }
                exchange.finish(status, context.refusal, now)
            }
            None => Outcome { refusal: context.refusal, ..Outcome::default() },
        };
        if let Some(log) = &self.access_log {
            write_record(log, session, context, &outcome, status, now);
        }
    }

    fn suppress_error_log(&self, _session: &Session, _context: &Context, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _context: &Context,
        _error: &Error,
        _log: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}

impl Evenkeel {
    fn set_timeouts(&self, session: &mut Session) {
        session.set_keepalive(Some(whole_seconds(self.listener.keepalive_timeout)));
        session.set_read_timeout(Some(self.listener.body_timeout));
        session.set_write_timeout(Some(self.listener.send_timeout));
        session.set_total_drain_timeout(Some(self.listener.body_timeout));
    }

    /// Admits the request and finds where it goes.
    fn begin(&self, session: &Session, context: &mut Context) -> Result<(), Refusal> {
        let request = session.req_header();
        let incoming_id = request.headers.get(X_REQUEST_ID).map(|id| id.as_bytes());
        // Writing to a string does not fail.
        let _ = write_request_id(incoming_id, &mut context.request_id);
        let host = claims(request).admit(self.listener.max_body_bytes)?;
        let headers = &request.headers;
        let joined = |name| join(headers, name);
        let (forwarded_for, proto) = (joined("x-forwarded-for"), joined("x-forwarded-proto"));
        let (forwarded_host, forwarded) = (joined("x-forwarded-host"), joined("forwarded"));
        let peer = session.client_addr().and_then(|address| address.as_inet()).map(|address| address.ip());
        let peer = Peer::new(peer.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        let origin = Origin {
            peer: &peer,
            is_tls: is_tls(session),
            host,
            forwarded_for: forwarded_for.as_deref(),
            forwarded_proto: proto.as_deref(),
            forwarded_host: forwarded_host.as_deref(),
            forwarded: forwarded.as_deref(),
        };
        let mut scratch = Vec::new();
        let path = match request.uri.path() {
            "*" => b"/",
            path => normalise(path.as_bytes(), &mut scratch).map_err(|_| Refusal::Malformed)?,
        };
        let cookies = headers.get_all(header::COOKIE).iter().map(|value| value.as_bytes());
        let asked = Asked { origin, path, now: context.started };
        let (exchange, forwarding) = Exchange::begin(&self.control.snapshot(), &asked, cookies)?;
        context.fields = forwarding_fields(&forwarding);
        context.client = Some(forwarding.client);
        context.exchange = Some(exchange);
        Ok(())
    }
}

/// The fields by which the backend is told about the client.
fn forwarding_fields(forwarding: &Forwarding<'_>) -> Vec<(&'static str, String)> {
    let mut forwarded_for = String::new();
    let mut forwarded = String::new();
    // Writing to a string does not fail.
    let _ = forwarding.write_forwarded_for(&mut forwarded_for);
    let _ = forwarding.write_forwarded(&mut forwarded);
    vec![
        ("X-Forwarded-For", forwarded_for),
        ("X-Forwarded-Proto", forwarding.proto.to_owned()),
        ("X-Forwarded-Host", forwarding.host.to_owned()),
        ("X-Real-IP", forwarding.client.to_string()),
        ("Forwarded", forwarded),
    ]
}

impl Context {
    fn is_tunnel(&self) -> bool {
        self.exchange.as_ref().is_some_and(Exchange::is_tunnel)
    }

    fn replay(&self, session: &Session) -> Replay {
        let kept = self.exchange.as_ref().map_or(0, |e| e.route().pool.settings.retry_body_bytes as u64);
        Replay {
            is_idempotent: session.req_header().method.is_idempotent(),
            has_body: !session.as_ref().retry_buffer_truncated() && self.body_bytes <= kept,
        }
    }
}

fn claims(request: &RequestHeader) -> Claims<'_> {
    let headers = &request.headers;
    let first = |name| headers.get(name).map(|value| value.as_bytes());
    let count = |name| headers.get_all(name).iter().count();
    let is_http2 = request.version == Version::HTTP_2;
    Claims {
        method: request.method.as_str(),
        is_modern: request.version >= Version::HTTP_11,
        authority: request.uri.authority().map(|authority| authority.as_str()),
        host: first(header::HOST),
        hosts: count(header::HOST),
        content_length: first(header::CONTENT_LENGTH),
        content_lengths: count(header::CONTENT_LENGTH),
        transfer_encodings: if is_http2 { 0 } else { count(header::TRANSFER_ENCODING) },
        transfer_encoding: first(header::TRANSFER_ENCODING).filter(|_| !is_http2),
        expect: first(header::EXPECT),
        target: request.uri.path_and_query().map_or("", |target| target.as_str()),
    }
}

/// All fields of a name as one list.
fn join(headers: &HeaderMap, name: &str) -> Option<String> {
    let values: Vec<&str> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    (!values.is_empty()).then(|| values.join(", "))
}

fn strip_hop_by_hop(response: &mut ResponseHeader) {
    let is_chunked = response.headers.contains_key(header::TRANSFER_ENCODING);
    let named = join(&response.headers, "connection").unwrap_or_default();
    for name in connection_options(&named) {
        response.remove_header(name);
    }
    // Pingora frames the response by this field, and writes it itself.
    for name in HOP_BY_HOP.iter().filter(|name| **name != "transfer-encoding" || !is_chunked) {
        response.remove_header(*name);
    }
}

fn is_tls(session: &Session) -> bool {
    session.digest().is_some_and(|digest| digest.ssl_digest.is_some())
}

fn refuse(context: &mut Context, refusal: Refusal) -> Box<Error> {
    context.refusal = Some(refusal);
    no_retry(Error::new(ErrorType::HTTPStatus(refusal.status())))
}

fn no_retry(mut error: Box<Error>) -> Box<Error> {
    error.set_retry(false);
    error
}

fn attempt_failed(
    control: &Control,
    session: &Session,
    context: &mut Context,
    failure: Failure,
    mut error: Box<Error>,
) -> Box<Error> {
    let replay = context.replay(session);
    let now = Instant::now();
    let waited = context.exchange.as_ref().map_or(Duration::ZERO, |exchange| exchange.until(context.body_ended, now));
    let goes_on =
        context.exchange.as_mut().is_some_and(|exchange| exchange.failed(control, failure, replay, waited, now));
    tracing::debug!(request_id = context.request_id, failure = failure.word(), "an attempt failed: {error}");
    error.set_retry(goes_on);
    context.refusal = if goes_on { None } else { failure.refusal() };
    error
}

/// Whether a response's head is larger than HTTP/1.1 clients are passed.
fn over_limits(response: &ResponseHeader) -> Option<Failure> {
    let limits = Limits::default();
    let fields = response.headers.len();
    if fields > limits.fields() {
        tracing::warn!(
            limit = limits.fields(),
            fields,
            "a response's head is refused: it has more fields than the limit"
        );
        return Some(Failure::ResponseTooManyFields);
    }
    let line = |(name, value): (&HeaderName, &http::HeaderValue)| name.as_str().len() + value.len() + ": \r\n".len();
    let bytes: usize = "HTTP/1.1 200 \r\n\r\n".len() + response.headers.iter().map(line).sum::<usize>();
    if bytes > limits.head_bytes() {
        tracing::warn!(limit = limits.head_bytes(), bytes, "a response's head is refused: it is larger than the limit");
        return Some(Failure::ResponseHeadTooLarge);
    }
    None
}

/// What a client is told of an error that no decision of ours made; `None` when it is gone.
fn refusal_for(error: &Error) -> Option<Refusal> {
    match (error.esource(), error.etype()) {
        (ErrorSource::Downstream, ErrorType::ReadTimedout) => Some(Refusal::ClientTimeout),
        (ErrorSource::Downstream, ErrorType::ReadError | ErrorType::WriteError | ErrorType::WriteTimedout) => None,
        (ErrorSource::Downstream, ErrorType::ConnectionClosed) => None,
        (ErrorSource::Downstream, _) => Some(Refusal::Malformed),
        (ErrorSource::Upstream, _) => Some(Refusal::Failed(Failure::Closed)),
        _ => Some(Refusal::Internal),
    }
}

async fn respond(session: &mut Session, refusal: Refusal, request_id: &str) -> pingora::Result<()> {
    let body = refusal.body();
    let mut response = ResponseHeader::build(refusal.status(), Some(6))?;
    response.insert_header(header::CONTENT_TYPE, "text/plain; charset=utf-8")?;
    response.insert_header(header::CONTENT_LENGTH, body.len())?;
    response.insert_header(header::CACHE_CONTROL, "no-store")?;
    if !request_id.is_empty() {
        response.insert_header(X_REQUEST_ID, request_id)?;
    }
    if let Some(seconds) = refusal.retry_after() {
        response.insert_header(header::RETRY_AFTER, seconds)?;
    }
    let is_head = session.req_header().method == http::Method::HEAD;
    session.write_response_header(Box::new(response), is_head).await?;
    if !is_head {
        session.write_response_body(Some(Bytes::from(body)), true).await?;
    }
    Ok(())
}

fn write_record(log: &AccessLog, session: &Session, context: &Context, outcome: &Outcome, status: u16, now: Instant) {
    let request = session.req_header();
    let text = |name: HeaderName| request.headers.get(name).and_then(|value| value.to_str().ok());
    let peer = session.client_addr().and_then(|address| address.as_inet()).map(|address| address.ip());
    let client = context.client.or(peer);
    log.write(&Record {
        time: context.time,
        client: client.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        method: request.method.as_str(),
        host: text(header::HOST).or(request.uri.host()).unwrap_or_default(),
        target: request.uri.path_and_query().map_or("", |target| target.as_str()),
        protocol: protocol(request.version),
        status,
        bytes: session.body_bytes_sent() as u64,
        duration: now.saturating_duration_since(context.started),
        request_id: &context.request_id,
        referer: text(header::REFERER),
        user_agent: text(header::USER_AGENT),
        served: Served::new(context.exchange.as_ref(), outcome),
    });
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

/// Pingora counts keepalive in seconds, and takes none for "close".
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs().max(1)
}
