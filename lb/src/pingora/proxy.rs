//! [`Proxy`]: Evenkeel's choices and its table of failures behind the callbacks of Pingora's proxy. As in the engine,
//! an exchange is passed the events and decides the next step.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use ::pingora::http::{RequestHeader, ResponseHeader};
use async_trait::async_trait;
use bytes::Bytes;
use http::{Version, header};
use pingora_core::prelude::{Error, ErrorSource, ErrorType};
use pingora_core::protocols::Digest;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};

use super::connections::{BackendConnector, Connections, TrackedConnection};
use super::failed::{AttemptProgress, failed};
use super::head::{self, CheckedRequest, FIELD_BYTES, ForwardedFields};
use super::management::{Management, Started};
use super::settings::{Host, Mode, ProxyResources, Refused};
use crate::backend::Endpoint;
use crate::clock;
use crate::config::HalfClose;
use crate::config::backend::SocketAddress;
use crate::connection_limit::ConnectionLimit;
use crate::control::Control;
use crate::exchange::limits::BackendLimits;
use crate::exchange::refusal::Refusal;
use crate::exchange::{Answer, Event, Exchange, Moment, Outcome, Step};
use crate::failure::{AttemptError, Detail, Failure};
use crate::pool::QueueTicket;
use crate::shutdown::Phase;

/// Pingora buffers no more of a body for a retry.
const MAX_KEPT_BYTES: usize = 64 * 1024;

/// A `ProxyHttp` with Evenkeel's routes, pools and rules. Clones share them.
#[derive(Clone)]
pub struct Proxy {
    control: Arc<Control>,
    host: Host,
    connections: Arc<Connections>,
    started: Started,
}

/// The state of a request.
#[derive(Default)]
pub struct Context(Option<Box<RequestState>>);

struct RequestState {
    control: Arc<Control>,
    forwarded: ForwardedFields,
    /// `None`: the request was refused before an exchange began.
    exchange: Option<Exchange>,
    next: Next,
    /// The refusal for the client; once set, nothing more is tried.
    refusal: Option<Refusal>,
    /// The head of the backend's response has arrived.
    has_head: bool,
    /// The connection of the current attempt.
    connection: Option<Arc<TrackedConnection>>,
    /// Its file descriptor, if the request asks to switch protocols.
    tunnel: Option<Arc<AtomicI32>>,
    /// The time spent waiting for the client so far, and when the current wait began.
    client_waited: Duration,
    waiting_since: Option<Instant>,
}

/// What to do for the next attempt.
enum Next {
    Nothing,
    Open(Arc<Endpoint>),
    Queue(QueueTicket),
}

impl Proxy {
    /// Serves by the configuration of `control`, and rejects reloads with settings that a Pingora proxy in a server
    /// with this configuration cannot apply. `Err`: the configuration has such settings. Settings without effect, or
    /// with another effect, are logged.
    pub fn new(control: &Arc<Control>, server: &ServerConf) -> Result<Self, Refused> {
        let host = Host::new(Mode::Proxy, server);
        host.check(&control.snapshot().config)?;
        Ok(Self { control: Arc::clone(control), host, connections: Arc::default(), started: Started::default() })
    }

    /// The probes and the admin API, to be added to `server` as a service. Binds the admin API's address immediately,
    /// or, in an upgrade, as soon as the process that is replaced gives it up.
    pub fn management(&self, server: &Server) -> anyhow::Result<Management> {
        let (control, shutdown) = (Arc::clone(&self.control), self.started.shutdown.clone());
        // Pingora does not report the number of clients.
        Management::new(
            server,
            control,
            shutdown,
            ConnectionLimit::new(0),
            Arc::new(ProxyResources(self.host)),
            Some(&self.connections),
        )
    }

    /// Begins a request. The result contains the first attempt, or the refusal.
    async fn begin(&self, session: &mut Session) -> Option<Box<RequestState>> {
        let started = Instant::now();
        let CheckedRequest { forwarded, start } = head::begin(&self.control, session, started)?;
        let mut state = Box::new(RequestState {
            control: Arc::clone(&self.control),
            forwarded,
            exchange: None,
            next: Next::Nothing,
            refusal: None,
            has_head: false,
            connection: None,
            tunnel: None,
            client_waited: Duration::ZERO,
            waiting_since: None,
        });
        let start = match start {
            Ok(start) => start,
            Err(refusal) => {
                self.set_client_options(session, &state.forwarded);
                state.refusal = Some(refusal);
                return Some(state);
            }
        };
        let head = session.req_header();
        let length = start.request.body_length;
        let cookies = head.headers.get_all(header::COOKIE).iter().map(http::HeaderValue::as_bytes);
        let exchange = Exchange::begin(start, cookies);
        state.forwarded.limits = exchange.client_limits(state.forwarded.limits);
        state.exchange = Some(exchange);
        self.set_client_options(session, &state.forwarded);
        let limit = state.forwarded.limits.max_body_bytes;
        let is_too_large = length.zip(limit).is_some_and(|(length, limit)| length > limit);
        let mut step = state.step(match is_too_large {
            true => Event::Failed { failed: Failure::BodyTooLarge.into(), has_body: false },
            false => Event::Begun,
        });
        if let Some(Step::BufferBody) = step {
            let held = state.hold(session).await;
            step = state.step(held);
        }
        state.apply(step);
        Some(state)
    }

    /// Applies the settings for the client's connection, which Pingora has per request.
    fn set_client_options(&self, session: &mut Session, forwarded: &ForwardedFields) {
        let keepalive = forwarded.listener.keepalive_timeout.as_secs().max(1);
        let keeps = self.started.shutdown.phase() <= Phase::Running && session.get_keepalive().is_some();
        session.set_keepalive(keeps.then_some(keepalive));
        session.set_read_timeout(Some(forwarded.limits.body_timeout));
        session.set_write_timeout(Some(forwarded.limits.send_timeout));
        session.set_total_drain_timeout(Some(forwarded.listener.lingering_time));
        session.set_abort_on_close(forwarded.listener.half_close == HalfClose::Cancel);
    }
}

impl Context {
    fn state(&mut self) -> Result<&mut RequestState, Box<Error>> {
        self.0.as_deref_mut().ok_or_else(|| Error::explain(ErrorType::InternalError, "no request has begun"))
    }
}

impl RequestState {
    fn moment(&self) -> Moment {
        let now = Instant::now();
        let waiting = self.waiting_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        Moment { now, client_waited: self.client_waited + waiting }
    }

    fn step(&mut self, event: Event) -> Option<Step> {
        let at = self.moment();
        self.exchange.as_mut().map(|exchange| exchange.step(event, at))
    }

    /// Carries out the exchange's next step.
    fn apply(&mut self, step: Option<Step>) {
        self.next = Next::Nothing;
        match step {
            Some(Step::Open(endpoint)) => self.next = Next::Open(endpoint),
            Some(Step::Queue(full)) => self.next = Next::Queue(full),
            Some(Step::Refuse(refusal)) => self.refusal = Some(refusal),
            // Configurations with fixed answers or internal redirects are rejected, and a body is buffered only once.
            Some(Step::Reply(..) | Step::Jump(_) | Step::BufferBody) => {
                if let Some(exchange) = &mut self.exchange {
                    exchange.reply_failed(Refusal::Internal);
                }
                self.refusal = Some(Refusal::Internal);
            }
            Some(Step::Pass | Step::End) | None => {}
            Some(Step::Wait(never) | Step::Sub(never) | Step::Spawn(never)) => match never {},
        }
    }

    /// Reads the whole body, which Pingora buffers and sends with each attempt.
    async fn hold(&mut self, session: &mut Session) -> Event {
        session.as_mut().enable_retry_buffering();
        self.waiting_since = Some(Instant::now());
        let read = loop {
            match session.read_request_body().await {
                Ok(Some(_)) => {}
                Ok(None) => break Ok(()),
                Err(e) => break Err(e),
            }
        };
        self.client_has_sent(true);
        match read {
            Ok(()) => Event::BodyBuffered,
            Err(mut e) => {
                e.as_down();
                let progress = AttemptProgress { has_head: false, is_reused: false, is_uploading: true };
                Event::Failed { failed: failed(&e, progress), has_body: false }
            }
        }
    }

    /// Part of the body, or its end, has arrived.
    fn client_has_sent(&mut self, is_end: bool) {
        let now = Instant::now();
        if let Some(since) = self.waiting_since {
            self.client_waited += now.saturating_duration_since(since);
        }
        self.waiting_since = (!is_end).then_some(now);
    }

    /// Whether the part of the body that has arrived is still buffered.
    fn has_body(&self, session: &Session) -> bool {
        let limit = self.exchange.as_ref().map_or(0, Exchange::retry_body_bytes).min(MAX_KEPT_BYTES);
        !session.as_ref().retry_buffer_truncated() && session.body_bytes_read() <= limit
    }

    /// Reports to the exchange that the current attempt failed. Returns whether to make another one.
    fn failed(&mut self, session: &Session, failed: AttemptError) -> bool {
        let is_killed = self.exchange.as_ref().is_some_and(Exchange::is_killed);
        let failed = if is_killed { Failure::Killed.into() } else { failed };
        let step = self.step(Event::Failed { failed, has_body: self.has_body(session) });
        // After the exchange has seen it, because a kill waits for that.
        self.connection = None;
        self.waiting_since = None;
        self.apply(step);
        !matches!(self.next, Next::Nothing)
    }

    /// The endpoint of the next attempt; `None` if there is none.
    async fn next(&mut self, session: &Session) -> Option<Arc<Endpoint>> {
        loop {
            match std::mem::replace(&mut self.next, Next::Nothing) {
                Next::Nothing => return None,
                Next::Open(endpoint) if endpoint.address().is_none() => {
                    self.failed(session, Failure::Unresolved.into());
                }
                Next::Open(endpoint) => return Some(endpoint),
                Next::Queue(QueueTicket { place, timeout }) => {
                    let event = match tokio::time::timeout(timeout, place.called()).await {
                        Ok(()) => Event::CapacityFreed(place),
                        Err(_) => {
                            Event::Failed { failed: Failure::QueueTimeout.into(), has_body: self.has_body(session) }
                        }
                    };
                    let step = self.step(event);
                    self.apply(step);
                }
            }
        }
    }

    /// The backend limits of the current attempt.
    fn limits(&self) -> Option<BackendLimits> {
        let exchange = self.exchange.as_ref()?;
        let plan = exchange.plan()?;
        Some(exchange.own_limits().map_or_else(|| BackendLimits::of_pool(&plan.settings), |own| *own))
    }

    /// The options with which Pingora connects to `endpoint`.
    fn peer(
        &mut self,
        endpoint: Arc<Endpoint>,
        connections: &Arc<Connections>,
        upgrades: bool,
    ) -> Option<Box<HttpPeer>> {
        let limits = self.limits()?;
        let plan = self.exchange.as_ref()?.plan()?;
        let mut peer = match endpoint.address()? {
            SocketAddress::Ip(address) => HttpPeer::new(*address, false, String::new()),
            SocketAddress::Unix(path) => HttpPeer::new_uds(path.to_str()?, false, String::new()).ok()?,
        };
        let server = endpoint.incarnation();
        let transport = Arc::clone(&plan.transport);
        // A connection is reused only for the same settings and the same server.
        peer.group_key = server.number() ^ (Arc::as_ptr(&transport) as u64).rotate_left(32);
        // A connection that may become a tunnel is not shared.
        let tunnel = upgrades.then(|| Arc::new(AtomicI32::new(-1)));
        if upgrades {
            peer.group_key = clock::random();
        }
        peer.options.total_connection_timeout = Some(limits.connect_timeout);
        // Pingora has one timeout for the head, the body and a tunnel's data.
        peer.options.read_timeout = Some(if upgrades { limits.tunnel_timeout } else { limits.response_timeout });
        peer.options.write_timeout = Some(limits.write_timeout);
        peer.options.idle_timeout = Some(plan.settings.idle_timeout);
        let connections = Arc::clone(connections);
        self.tunnel = tunnel.clone();
        peer.options.custom_l4 = Some(Arc::new(BackendConnector { endpoint, server, transport, connections, tunnel }));
        Some(Box::new(peer))
    }

    /// Whether the head of a response is within the pool's limits.
    fn fits(&self, head: &ResponseHeader) -> Result<(), AttemptError> {
        let Some(plan) = self.exchange.as_ref().and_then(Exchange::plan) else { return Ok(()) };
        let (most_fields, most_bytes) = (plan.settings.max_fields as usize, plan.settings.max_head_bytes as usize);
        let fields = head.headers.len();
        if fields > most_fields {
            let setting = "[[pool]] max_fields";
            let detail = Some(Detail::Limit { setting, limit: most_fields, value: Some(fields) });
            return Err(AttemptError { failure: Failure::ResponseTooManyFields, detail });
        }
        let field_bytes = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_BYTES);
        if field_bytes.sum::<usize>() > most_bytes {
            let setting = "[[pool]] max_head_bytes";
            let detail = Some(Detail::Limit { setting, limit: most_bytes, value: None });
            return Err(AttemptError { failure: Failure::ResponseHeadTooLarge, detail });
        }
        Ok(())
    }
}

/// Every request is counted, however it ends.
impl Drop for RequestState {
    fn drop(&mut self) {
        let metrics = &self.control.metrics;
        let (outcome, has_pool) = match &mut self.exchange {
            Some(exchange) => (exchange.finish(Instant::now()), exchange.pool().is_some()),
            None => {
                let (refusal, status) = (self.refusal, self.refusal.map_or(499, Refusal::status));
                (Outcome { refusal, status, ..Outcome::default() }, false)
            }
        };
        if let Some(refusal) = outcome.refusal {
            metrics.refused(refusal.reason());
        }
        if let Some(word) = outcome.client_failure_word() {
            metrics.client_failed(word);
        }
        if !has_pool {
            metrics.own_responses.count(outcome.status);
        }
    }
}

/// A Pingora error for one of ours.
fn error(failed: AttemptError, source: ErrorSource) -> Box<Error> {
    let mut error = Error::because(ErrorType::InternalError, "", failed);
    error.esource = source;
    error
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        Context::default()
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Context) -> pingora_core::Result<bool> {
        self.started.wait().await;
        let Some(state) = self.begin(session).await else {
            return Err(Error::explain(ErrorType::InternalError, "there is no [[listener]]"));
        };
        let state = ctx.0.insert(state);
        match state.refusal {
            None if matches!(state.next, Next::Nothing) => {
                Err(error(Failure::ClientGone.into(), ErrorSource::Downstream))
            }
            None => Ok(false),
            Some(refusal) => {
                if !refusal.keeps_connection() {
                    session.set_keepalive(None);
                }
                head::refuse(session, &state.forwarded, refusal).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Context) -> pingora_core::Result<Box<HttpPeer>> {
        let upgrades = session.is_upgrade_req();
        let state = ctx.state()?;
        let endpoint = state.next(session).await;
        let peer = endpoint.and_then(|endpoint| state.peer(endpoint, &self.connections, upgrades));
        peer.ok_or_else(|| error(Failure::Internal.into(), ErrorSource::Internal))
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        _: bool,
        _: &HttpPeer,
        file: RawFd,
        _: Option<&Digest>,
        ctx: &mut Context,
    ) -> pingora_core::Result<()> {
        let state = ctx.state()?;
        let file = state.tunnel.as_ref().map_or(file, |file| file.load(Ordering::Relaxed));
        state.connection = self.connections.take(file);
        // If it was killed while connecting, the kill did not find its connection.
        match state.exchange.as_ref().is_some_and(Exchange::is_killed) {
            true => Err(error(Failure::Killed.into(), ErrorSource::Upstream)),
            false => Ok(()),
        }
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream_request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> pingora_core::Result<()> {
        let state = ctx.state()?;
        state.forwarded.write(upstream_request)?;
        state.waiting_since = (!session.as_mut().is_body_done()).then(Instant::now);
        Ok(())
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        _: &mut Option<Bytes>,
        is_end: bool,
        ctx: &mut Context,
    ) -> pingora_core::Result<()> {
        let state = ctx.state()?;
        if session.was_upgraded() {
            return Ok(());
        }
        state.client_has_sent(is_end);
        let limit = state.forwarded.limits.max_body_bytes;
        match limit.is_some_and(|limit| session.body_bytes_read() as u64 > limit) {
            true => Err(error(Failure::BodyTooLarge.into(), ErrorSource::Downstream)),
            false => Ok(()),
        }
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        upstream_response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> pingora_core::Result<()> {
        let status = upstream_response.status;
        if status.is_informational() && status.as_u16() != 101 {
            return Ok(());
        }
        let state = ctx.state()?;
        state.fits(upstream_response).map_err(|failed| error(failed, ErrorSource::Upstream))?;
        let answer = Answer { status: status.as_u16(), has_body: state.has_body(session) };
        let step = state.step(Event::Head(answer));
        let passes = matches!(step, Some(Step::Pass));
        if status.as_u16() == 101 {
            session.set_read_timeout(state.limits().map(|limits| limits.tunnel_timeout));
        }
        state.has_head = passes;
        state.apply(step);
        if passes { Ok(()) } else { Err(error(Failure::Internal.into(), ErrorSource::Internal)) }
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> pingora_core::Result<()> {
        let state = ctx.state()?;
        if response.status.is_informational() {
            return Ok(());
        }
        let cookie = state.exchange.as_ref().and_then(Exchange::set_cookie);
        state.forwarded.write_response(response, cookie.as_deref())?;
        if self.started.shutdown.phase() > Phase::Running && session.req_header().version != Version::HTTP_2 {
            session.set_keepalive(None);
        }
        Ok(())
    }

    fn fail_to_connect(&self, session: &mut Session, _: &HttpPeer, ctx: &mut Context, mut e: Box<Error>) -> Box<Error> {
        if let Ok(state) = ctx.state() {
            let progress = AttemptProgress { has_head: false, is_reused: false, is_uploading: false };
            e.set_retry(state.failed(session, failed(&e, progress)));
        }
        e
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut e: Box<Error>,
        ctx: &mut Context,
        is_reused: bool,
    ) -> Box<Error> {
        let is_uploading = !session.as_mut().is_body_done();
        if let Ok(state) = ctx.state() {
            let progress = AttemptProgress { has_head: state.has_head, is_reused, is_uploading };
            let failed = failed(&e, progress);
            if failed.failure == Failure::StaleConnection
                && let Some(connection) = &state.connection
            {
                // The other connections have been idle for longer, so the next attempt uses a new one.
                self.connections.forget(connection.server());
            }
            e.set_retry(state.failed(session, failed));
        }
        e
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut Context) -> FailToProxy {
        let nothing = FailToProxy { error_code: 0, can_reuse_downstream: false };
        let Ok(state) = ctx.state() else {
            // An error of a filter around this proxy, before it saw the request.
            let ErrorType::HTTPStatus(status) = *e.etype() else { return nothing };
            return match session.respond_error(status).await {
                Ok(()) => FailToProxy { error_code: status, can_reuse_downstream: false },
                Err(_) => nothing,
            };
        };
        if let Next::Open(_) | Next::Queue(_) = state.next {
            // Pingora makes no more attempts than `max_retries`.
            let last = state.exchange.as_ref().and_then(|exchange| exchange.outcome().failure);
            state.refusal = last.and_then(Failure::refusal);
            if let (Some(exchange), Some(refusal)) = (&mut state.exchange, state.refusal) {
                exchange.reply_failed(refusal);
            }
        }
        let has_begun = session.response_written().is_some_and(|head| !head.status.is_informational());
        let Some(refusal) = state.refusal.filter(|_| !has_begun) else { return nothing };
        session.set_keepalive(None);
        match head::refuse(session, &state.forwarded, refusal).await {
            Ok(()) => FailToProxy { error_code: refusal.status(), can_reuse_downstream: false },
            Err(_) => nothing,
        }
    }

    async fn logging(&self, session: &mut Session, e: Option<&Error>, ctx: &mut Context) {
        let Some(mut state) = ctx.0.take() else { return };
        let is_killed = state.exchange.as_ref().is_some_and(Exchange::is_killed);
        let is_over = state.exchange.as_ref().is_none_or(Exchange::is_over);
        match e {
            _ if is_over => {}
            // The client of a killed tunnel has seen it end like a regular one.
            None if is_killed => drop(state.failed(session, Failure::Killed.into())),
            None => drop(state.step(Event::Sent)),
            Some(e) => {
                let progress = AttemptProgress { has_head: state.has_head, is_reused: false, is_uploading: false };
                state.failed(session, failed(e, progress));
            }
        }
    }

    /// The exchange logs failures.
    fn suppress_error_log(&self, _: &Session, _: &Context, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Context, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }
}
