//! Reads, routes, proxies and logs the requests of one client connection, one after the other.

use std::borrow::Cow;
use std::future::{Future, poll_fn};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::io::AsyncWriteExt;
use tokio::sync::futures::Notified;
use tokio_util::io::poll_read_buf;

use super::body::{detail, refusal};
use super::buffers::Buffers;
use super::burst::let_others_read;
use super::content::Content;
use super::facts::RequestFacts;
use super::h2::stream::Http2Stream;
use super::linger::{Drain, Drained, SHUTDOWN_TIMEOUT, linger};
use super::pace::Pace;
use super::request::{self, ForwardedFields, Request, RequestState, StatusFields};
use super::response::{of_status, without_route, write_head};
use super::stream::ClientStream;
use super::timer::Timer;
use super::transfer::{ClientConnectionState, Transfer, TransferEvent};
use super::upstream::{Disposition, Upstream};
use super::{Engine, configured_reply, h2, kill};
use crate::access_log::{AccessLog, Record, Served};
use crate::backend::Endpoint;
use crate::backend::queue::Place;
use crate::clock::{self, timeout};
use crate::config::ListenerSettings;
use crate::config::transport::ProxyProtocol;
use crate::dial::{Dial, proxy};
use crate::exchange::headers::Peer;
use crate::exchange::limits::ClientLimits;
use crate::exchange::refusal::{Refusal, RefusalFormat};
use crate::exchange::reply::Reply;
use crate::exchange::walk::Jump;
use crate::exchange::{Answer, ConfiguredReply, Event, Exchange, Moment, Outcome, Step};
use crate::failure::{AttemptError, Detail, Failure};
use crate::http::h1::reject::Reject;
use crate::http::h1::rewrite::Persistence;
use crate::http::h1::websocket;
use crate::message::Parsed;
use crate::message::framing::Framing;
use crate::message::limits::BLANK_BYTES;
use crate::message::name::Name;
use crate::plant::Bug;
use crate::pool::{Plan, QueueTicket};

const HEAD_READ_BYTES: usize = 4096;
/// Empty lines that are accepted before a request line (RFC 9112 §2.2).
const BLANK_LINES: &[u8; BLANK_BYTES] = b"\r\n\r\n\r\n\r\n";
/// Maximum idle time of a backend connection that serves one client only. That client may have left.
const MAX_IDLE_FOR_ONE_CLIENT: Duration = Duration::from_secs(5);

/// What is done with the client's connection after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionAction {
    /// Wait for the next request.
    Idle,
    Close,
    /// It speaks HTTP/2 from its first byte on.
    Http2,
    /// Lingering close: the client may still be sending and has to be able to read its response.
    Linger,
    /// Reset: a truncated response would look complete otherwise, or the client does not read it.
    Abort,
    /// Tell that nothing was done for the request, which the client may repeat on another connection (HTTP/2).
    Refuse,
}

/// Serves a connection to its end.
pub(crate) async fn serve(engine: Arc<Engine>, mut client: ClientStream, peer: impl Into<Peer>) {
    let peer = peer.into();
    let _task = kill::list_task(&engine.control).await;
    let limit = engine.listener().header_timeout;
    let mut idle = Idle { since: clock::now(), limit, blank_bytes: 0, is_new: true };
    let mut timer = Timer::default();
    let notified = pin!(engine.thread.idle.notified());
    let mut wakeups = IdleWakeups { notified, sheddings: 0 };
    poll_fn(|cx| {
        wakeups.listen(&engine, cx);
        Poll::Ready(())
    })
    .await;
    let mut buffers = None;
    loop {
        let mut lent = match first_bytes(&engine, &mut client, &mut timer, &mut wakeups, &idle, buffers).await {
            Ok(lent) => lent,
            Err(IdleEnd::TooSlow) => return client.abort(),
            // It sends nothing that could cause a reset; for the rest see below.
            Err(IdleEnd::Gone) if engine.keeps_clients() => break,
            Err(_) if client.is_held() => return Box::pin(linger(&engine, &mut client, false)).await,
            Err(_) => break,
        };
        // In a box of its own, so that an idle connection is small.
        let guard = ResetOnDrop(&mut client);
        // Allocate first, then build the future in place, instead of moving it there.
        let room = Box::new_uninit();
        let requests = Box::write(room, requests(&engine, guard.0, &mut timer, &peer, &mut lent, &mut idle));
        let action = Box::into_pin(requests).await;
        std::mem::forget(guard);
        let read = if action == ConnectionAction::Http2 { lent.from_client.to_vec() } else { Vec::new() };
        buffers = if action == ConnectionAction::Idle {
            Some(lent)
        } else {
            lent.give_back();
            None
        };
        match action {
            ConnectionAction::Idle => {}
            ConnectionAction::Close if client.has_unread_bytes() => {
                return Box::pin(linger(&engine, &mut client, true)).await;
            }
            // The kernel sends the rest by itself, unless the machine, or the container, goes with the process.
            ConnectionAction::Close if !engine.keeps_clients() && client.is_held() => {
                return Box::pin(linger(&engine, &mut client, false)).await;
            }
            // Closing the socket says as much as shutting it down before.
            ConnectionAction::Close if !client.is_tls() => return,
            ConnectionAction::Close => break,
            ConnectionAction::Linger => return Box::pin(linger(&engine, &mut client, true)).await,
            ConnectionAction::Abort | ConnectionAction::Refuse => return client.abort(),
            ConnectionAction::Http2 => {
                // Streams cannot ask for the local address.
                let mut peer = peer;
                peer.local = client.local_address();
                let ClientStream::Io(io) = client else { return };
                return Box::pin(h2::serve(Arc::clone(&engine), io, read, peer)).await;
            }
        }
    }
    // The closing alert has to wait while the kernel takes no more.
    if timeout(SHUTDOWN_TIMEOUT, client.shutdown()).await.is_err() && client.is_held() {
        Box::pin(linger(&engine, &mut client, false)).await;
    }
}

/// Resets the connection when dropped during a request, by a panic or at the shutdown deadline. A regular close would
/// tell an HTTP/1.0 client that its response is complete.
struct ResetOnDrop<'a>(&'a mut ClientStream);

impl Drop for ResetOnDrop<'_> {
    fn drop(&mut self) {
        if !Bug::CleanCutOff.is_planted() {
            self.0.reset_when_closed();
        }
    }
}

/// Serves the one request of an HTTP/2 stream.
pub(super) async fn serve_stream(engine: &Engine, mut stream: Http2Stream, peer: &Peer) {
    let _task = kill::list_task(&engine.control).await;
    let mut timer = Timer::default();
    let mut buffers = Buffers::take();
    buffers.from_client.extend_from_slice(&stream.take_head());
    let mut client = ClientStream::Http2(Box::new(stream));
    // A stream has one request. Whatever follows it is never read as another one.
    let served = serve_one(engine, &engine.listener(), &mut client, &mut timer, peer, &mut buffers, false).await;
    buffers.give_back();
    match served.action {
        ConnectionAction::Idle | ConnectionAction::Close | ConnectionAction::Http2 => {}
        ConnectionAction::Linger => linger(engine, &mut client, true).await,
        ConnectionAction::Abort => client.abort(),
        ConnectionAction::Refuse => client.refuse(),
    }
}

/// What wakes an idle connection: shutdown, or shedding.
struct IdleWakeups<'p, 'e> {
    /// Polled so that this task is woken. The reason is in [`super::ThreadState`].
    notified: Pin<&'p mut Notified<'e>>,
    /// The last shedding that this connection has seen.
    sheddings: usize,
}

impl<'e> IdleWakeups<'_, 'e> {
    fn listen(&mut self, engine: &'e Engine, cx: &mut Context<'_>) {
        self.sheddings = engine.thread.sheddings.load(Ordering::Acquire);
        while self.notified.as_mut().poll(cx).is_ready() {
            self.notified.set(engine.thread.idle.notified());
        }
    }

    /// Whether idle connections have been asked to close since the last call of this.
    fn ask_to_leave(&mut self, engine: &'e Engine, cx: &mut Context<'_>) -> bool {
        let asks = engine.thread.sheddings.load(Ordering::Acquire) != self.sheddings;
        if asks {
            self.listen(engine, cx);
        }
        asks
    }
}

/// An idle connection: since when, and until when it may be.
struct Idle {
    since: Instant,
    limit: Duration,
    /// How many bytes of [`BLANK_LINES`] have come. They start no request of their own and are parsed with the next
    /// one.
    blank_bytes: usize,
    /// The connection has not had a request yet.
    is_new: bool,
}

/// What ends the wait of an idle connection.
enum IdleEvent {
    Request(Box<Buffers>),
    /// The connection is to be closed.
    End(IdleEnd),
    /// Connections that have been idle for long are to close.
    Shedding,
}

/// Why an idle connection is to be closed.
enum IdleEnd {
    /// It was idle for as long as it may be, or its place is wanted.
    Over,
    /// The client has closed its side.
    Gone,
    /// The client takes too little of what the kernel holds for it.
    TooSlow,
}

/// Waits for the first bytes of a request without holding buffers: `buffers` serves the first read and is given back.
/// The time of an idle connection does not pass while its client still takes what the kernel holds of the last
/// response: then it begins anew.
async fn first_bytes<'e>(
    engine: &'e Engine,
    client: &mut ClientStream,
    timer: &mut Timer,
    wakeups: &mut IdleWakeups<'_, 'e>,
    idle: &Idle,
    mut buffers: Option<Box<Buffers>>,
) -> Result<Box<Buffers>, IdleEnd> {
    let mut since = idle.since;
    let mut drain: Option<Box<Drain>> = None;
    loop {
        let (began, limit) = drain.as_ref().map_or((since, idle.limit), |drain| drain.next_look());
        let waiting = timer.limit(began, limit, |cx| {
            let mut buffers = buffers.take().unwrap_or_else(Buffers::take);
            buffers.from_client.reserve(HEAD_READ_BYTES);
            buffers.from_client.extend_from_slice(&BLANK_LINES[..idle.blank_bytes]);
            let read = poll_read_buf(Pin::new(&mut *client), cx, &mut buffers.from_client);
            if matches!(read, Poll::Ready(Ok(count)) if count > 0) {
                return Poll::Ready(IdleEvent::Request(buffers));
            }
            buffers.give_back();
            match read {
                Poll::Ready(_) => Poll::Ready(IdleEvent::End(IdleEnd::Gone)),
                Poll::Pending if engine.is_revoked() => Poll::Ready(IdleEvent::End(IdleEnd::Over)),
                // A new client's first request may be on its way; the stop does not wait for long.
                Poll::Pending if engine.thread.is_stopping() && !idle.is_new && !client.has_more_to_read() => {
                    Poll::Ready(IdleEvent::End(IdleEnd::Over))
                }
                Poll::Pending if wakeups.ask_to_leave(engine, cx) => Poll::Ready(IdleEvent::Shedding),
                Poll::Pending => Poll::Pending,
            }
        });
        match waiting.await {
            Ok(IdleEvent::Request(buffers)) => return Ok(buffers),
            Ok(IdleEvent::Shedding) if engine.client_limit.is_full() => {
                let idle_for = clock::now().saturating_duration_since(since);
                let mut is_held = false;
                let held = || {
                    is_held = !idle.is_new && client.is_held();
                    is_held
                };
                if engine.thread.sheds_one(idle_for, held) {
                    engine.control.metrics.client_connections_shed.inc();
                    return Err(IdleEnd::Over);
                }
                // One that takes nothing of its response does not keep its place for as long as an idle one may.
                if is_held && drain.is_none() {
                    drain = Drain::begin(&engine.listener(), client.acknowledged()).map(Box::new);
                }
            }
            Ok(IdleEvent::Shedding) => {}
            // A client that has not had a response has nothing to lose.
            Err(_) if idle.is_new => return Err(IdleEnd::Over),
            Err(_) => match drain.as_mut().map(|drain| drain.look(client.acknowledged())) {
                None => {
                    drain = Drain::begin(&engine.listener(), client.acknowledged()).map(Box::new);
                    if drain.is_none() {
                        return Err(IdleEnd::Over);
                    }
                }
                Some(Drained::Partly) => {}
                Some(Drained::All) => (drain, since) = (None, clock::now()),
                Some(Drained::TooSlow) => return Err(IdleEnd::TooSlow),
            },
            Ok(IdleEvent::End(end)) => return Err(end),
        }
    }
}

/// Serves requests in turn until the connection is idle (`idle` is then updated) or ends.
async fn requests(
    engine: &Engine,
    client: &mut ClientStream,
    timer: &mut Timer,
    peer: &Peer,
    buffers: &mut Buffers,
    idle: &mut Idle,
) -> ConnectionAction {
    loop {
        // The parser rejects any other blank input.
        if BLANK_LINES.starts_with(&buffers.from_client) {
            idle.blank_bytes = buffers.from_client.len();
            buffers.from_client.clear();
            return ConnectionAction::Idle;
        }
        let listener = engine.listener();
        let ended = serve_one(engine, &listener, client, timer, peer, buffers, idle.is_new).await;
        if ended.action != ConnectionAction::Idle {
            return ended.action;
        }
        *idle = Idle { since: ended.at, limit: listener.keepalive_timeout, blank_bytes: 0, is_new: false };
    }
}

/// Serves the one request that has begun to arrive. `is_first`: it is the first on the connection.
async fn serve_one(
    engine: &Engine,
    listener: &ListenerSettings,
    client: &mut ClientStream,
    timer: &mut Timer,
    peer: &Peer,
    buffers: &mut Buffers,
    is_first: bool,
) -> RequestEnd {
    let time = engine.access_log.is_on().then(|| Timestamp::try_from(clock::wall()).ok()).flatten();
    let forwarded = ForwardedFields::default();
    let started = clock::now();
    let mut request = Request {
        engine,
        listener,
        peer,
        started,
        time,
        forwarded,
        state: RequestState::default(),
        is_stream: client.is_stream(),
        is_connect: client.is_connect(),
        is_tls: client.is_tls(),
        limits: ClientLimits::of_listener(listener),
    };
    match read_head(listener, started, client, timer, buffers).await {
        Ok(Some(_)) if peer.lacks_tls => {
            request.forwarded.complete(engine, peer, false, &mut buffers.text);
            request.refuse(client, timer, buffers, Refusal::PlainHttp, false).await
        }
        Ok(Some(head)) => {
            let now = if timer.has_waited() { clock::now() } else { started };
            request.serve(client, timer, buffers, head, now, is_first).await
        }
        Ok(None) => RequestEnd { action: ConnectionAction::Close, at: started },
        Err(_) if is_first && speaks_h2c(listener, client, peer) && h2::is_preface(&buffers.from_client) => {
            RequestEnd { action: ConnectionAction::Http2, at: started }
        }
        Err((refusal, detail)) => {
            request.state.detail = Some(detail);
            request.forwarded.complete(engine, peer, client.is_tls(), &mut buffers.text);
            request.refuse(client, timer, buffers, refusal, false).await
        }
    }
}

/// Whether HTTP/2 with prior knowledge is allowed (RFC 9113 §3.3).
fn speaks_h2c(listener: &ListenerSettings, client: &ClientStream, peer: &Peer) -> bool {
    listener.h2c && !client.is_tls() && !peer.lacks_tls
}

/// What is to be done with the client's connection after a request, and when the request ended.
struct RequestEnd {
    action: ConnectionAction,
    at: Instant,
}

/// Reads the rest of a head. Returns its length; `None` if the client left.
async fn read_head(
    listener: &ListenerSettings,
    now: Instant,
    client: &mut ClientStream,
    timer: &mut Timer,
    buffers: &mut Buffers,
) -> Result<Option<usize>, (Refusal, Detail)> {
    buffers.request.clear();
    let limits = listener.limits();
    let reading = timer.limit(now, listener.header_timeout, |cx| {
        loop {
            match buffers.request.parse(&buffers.from_client, &limits) {
                Parsed::Complete(head) => return Poll::Ready(Ok(Some(head))),
                Parsed::Rejected(reject) => return Poll::Ready(Err((refusal(reject), detail(reject, &limits)))),
                Parsed::Partial if client.has_too_large_head() => {
                    return Poll::Ready(Err((Refusal::FieldsTooLarge, detail(Reject::HeadTooLarge, &limits))));
                }
                Parsed::Partial => {}
            }
            buffers.from_client.reserve(HEAD_READ_BYTES);
            match ready!(poll_read_buf(Pin::new(&mut *client), cx, &mut buffers.from_client)) {
                Ok(count) if count > 0 => {}
                _ => return Poll::Ready(Ok(None)),
            }
        }
    });
    reading.await.unwrap_or_else(|_| {
        let detail = Detail::Timeout { setting: "[[listener]] header_timeout", limit: listener.header_timeout };
        Err((Refusal::ClientTimeout, detail))
    })
}

/// Drives an exchange to its end. The request is counted and logged on drop, however it ends.
struct ExchangeDriver<'a, 'r> {
    request: &'a mut Request<'r>,
    exchange: Exchange,
    transfer: Transfer<'a>,
    /// When the last event came.
    now: Instant,
}

impl Request<'_> {
    /// Makes an exchange of the request and drives it, or refuses the request. Its head ends at `head`.
    async fn serve(
        &mut self,
        client: &mut ClientStream,
        timer: &mut Timer,
        buffers: &mut Buffers,
        head: usize,
        now: Instant,
        is_first: bool,
    ) -> RequestEnd {
        let _exchange = self.engine.thread.in_exchange();
        match request::begin(self, buffers, client.is_tls(), now) {
            Ok(start) => {
                let exchange = request::exchange(self, buffers, start);
                let event = request::beginning(self, buffers, &exchange);
                let keep = exchange.retry_body_bytes();
                let pace = Pace::new(self.limits.min_rate, self.limits.body_timeout, client.total());
                let body = Content::new(buffers.request.framing(), head, self.limits.max_body_bytes, keep, pace);
                let transfer = Transfer::new(self.engine, self.listener, self.limits, client, buffers, body);
                let (ended, end) = ExchangeDriver { request: self, exchange, transfer, now }.drive(event, timer).await;
                if ended.action == ConnectionAction::Idle {
                    buffers.from_client.drain(..end);
                }
                ended
            }
            // Clients expect that an idle connection may close, and retry (RFC 9112 §9.3.1).
            Err(_) if self.state.is_misdirected && !is_first && !self.is_stream => {
                RequestEnd { action: ConnectionAction::Close, at: self.started }
            }
            // Clients repeat what crossed the GOAWAY on a new connection, which is judged anew. An answer of 421 they
            // would take for the end of it.
            Err(_) if self.state.is_misdirected && self.is_stream => {
                RequestEnd { action: ConnectionAction::Refuse, at: self.started }
            }
            Err(refusal) => {
                self.forwarded.complete(self.engine, self.peer, client.is_tls(), &mut buffers.text);
                let is_whole = buffers.request.framing() == Framing::None && !self.state.is_misdirected;
                let ended = self.refuse(client, timer, buffers, refusal, is_whole).await;
                if ended.action == ConnectionAction::Idle {
                    buffers.from_client.drain(..head);
                }
                ended
            }
        }
    }

    /// Answers a request that does not become an exchange. `has_read_all`: no part of it is left to read.
    async fn refuse(
        &self,
        client: &mut ClientStream,
        timer: &mut Timer,
        buffers: &mut Buffers,
        refusal: Refusal,
        has_read_all: bool,
    ) -> RequestEnd {
        buffers.to_client.clear();
        buffers.noted.clear();
        let transfer = Transfer::new(self.engine, self.listener, self.limits, client, buffers, Content::none());
        let mut answer = RefusalDriver { request: self, transfer, refusal, status: refusal.status() };
        answer.status = self.write_refusal(&mut answer.transfer, refusal, has_read_all, None);
        answer.transfer.run(|| false, clock::now(), timer).await;
        RequestEnd { action: action(answer.transfer.ending()), at: clock::now() }
    }

    /// Writes the response for a refusal. Returns its status.
    fn write_refusal(
        &self,
        transfer: &mut Transfer<'_>,
        refusal: Refusal,
        may_keep: bool,
        exchange: Option<&Exchange>,
    ) -> u16 {
        let (reply, status) = self.refusal(transfer.buffers, refusal, exchange);
        self.write_reply(transfer, reply, may_keep && refusal.keeps_connection(), exchange);
        status
    }

    /// The response for a refusal, and its status.
    pub(super) fn refusal(&self, buffers: &Buffers, refusal: Refusal, exchange: Option<&Exchange>) -> (Reply, u16) {
        let form = RefusalFormat::asked(buffers.request.fields().named(&buffers.from_client, b"accept"));
        let page = exchange.is_none().then(|| self.page_without_route(buffers, refusal)).flatten();
        page.unwrap_or_else(|| {
            let id = buffers.text.get(self.forwarded.request_id.clone()).unwrap_or_default();
            (refusal.reply(form, id), refusal.status())
        })
    }

    fn write_reply(&self, transfer: &mut Transfer<'_>, reply: Reply, may_keep: bool, exchange: Option<&Exchange>) {
        let may_keep = may_keep && self.may_be_followed(transfer.buffers);
        transfer.reply(reply, may_keep, |buffers, keeps| {
            write_head(self, buffers, Persistence::of(keeps), exchange, false);
        });
    }

    /// Whether the bytes after this request are certainly the next request. A client that asks for a WebSocket may send
    /// WebSocket data before the response, which may look like a request (RFC 9931).
    fn may_be_followed(&self, buffers: &Buffers) -> bool {
        self.is_stream || !buffers.request.offers_websocket()
    }

    /// The default site's error page for a request without a route.
    fn page_without_route(&self, buffers: &Buffers, refusal: Refusal) -> Option<(Reply, u16)> {
        let snapshot = self.engine.control.snapshot();
        // A revoked connection must not see the current configuration.
        if self.engine.is_revoked() {
            return None;
        }
        let (rules, facts) = without_route(self, buffers, &snapshot)?;
        let page = configured_reply::page_for(rules, refusal, &facts);
        page.filter(|(_, status)| !self.would_open_websocket(*status))
    }

    /// Whether a response with this status, which opens no WebSocket, tells the client that one is open: over HTTP/2
    /// any 2xx does (RFC 8441 §5).
    fn would_open_websocket(&self, status: u16) -> bool {
        matches!(status, 200..=299) && self.is_connect
    }

    /// Counts a failure by the client's fault. The first one of its kind is logged, with what it has in the access log,
    /// and so is the number of further ones ([`Control::catch_up`](crate::control::Control::catch_up)): anybody can
    /// cause them. Clients that leave do nothing wrong.
    #[cold]
    fn note_client_failure(&self, transfer: &Transfer<'_>, outcome: &Outcome) {
        let Some(word) = outcome.client_failure_word() else { return };
        let control = &self.engine.control;
        control.metrics.client_failed(word);
        if outcome.failure == Some(Failure::ClientGone) {
            return;
        }
        let kind = outcome.detail.and_then(Detail::kind).unwrap_or(word);
        let text = &transfer.buffers.text;
        let client = str::from_utf8(self.forwarded.client_text(text)).unwrap_or_default();
        let request_id = text.get(self.forwarded.request_id.clone()).unwrap_or_default();
        let (status, detail) = (outcome.status, outcome.detail.map(tracing::field::display));
        let why: &dyn std::fmt::Display = match &outcome.detail {
            Some(detail) => detail,
            None => &word,
        };
        let listener = self.engine.name.load();
        let (listener, what) = (listener.as_str(), answered(outcome));
        if control.client_failures.note(kind, clock::now()) {
            tracing::warn!(listener, client, request_id, status, failure = word, reason = detail, "{what}: {why}");
        } else {
            tracing::debug!(listener, client, request_id, status, failure = word, reason = detail, "{what}: {why}");
        }
    }

    /// Counts and logs the request.
    fn conclude(&self, transfer: &Transfer<'_>, exchange: Option<&Exchange>, outcome: &Outcome, now: Instant) {
        if let Some(refusal) = outcome.refusal {
            self.engine.control.metrics.refused(refusal.reason());
        }
        if outcome.failure.is_some() || outcome.refusal.is_some() {
            self.note_client_failure(transfer, outcome);
        }
        if exchange.is_none_or(|exchange| exchange.pool().is_none()) {
            self.engine.control.metrics.own_responses.count(outcome.status);
        }
        let Some(time) = self.time else { return };
        write_record(self, &self.engine.access_log, time, transfer, exchange, outcome, now);
    }
}

/// Whether and how a request was answered, for a line of the log.
const fn answered(outcome: &Outcome) -> &'static str {
    match outcome.refusal {
        Some(_) => "a request is refused",
        None => "a client is disconnected",
    }
}

/// Sends the answer to a request that is not an exchange. The request is counted and logged on drop, however it ends.
struct RefusalDriver<'a> {
    request: &'a Request<'a>,
    transfer: Transfer<'a>,
    refusal: Refusal,
    status: u16,
}

impl Drop for RefusalDriver<'_> {
    fn drop(&mut self) {
        let refusal = self.refusal;
        let detail = self.request.state.detail;
        let outcome = Outcome { refusal: Some(refusal), status: self.status, detail, ..Outcome::default() };
        self.request.conclude(&self.transfer, None, &outcome, clock::now());
    }
}

impl ExchangeDriver<'_, '_> {
    /// Carries out the exchange's steps until it ends. Returns what to do with the client's connection, and the offset
    /// of the next request in what was received.
    async fn drive(&mut self, mut event: Event, timer: &mut Timer) -> (RequestEnd, usize) {
        loop {
            // Before the choice of a backend and an idle connection, not between that and the first write. Meanwhile
            // the backend may be removed, and the connection may end or bring bytes that nobody has asked for: they
            // would be taken for the response to a request of which nothing was sent.
            if matches!(event, Event::Begun | Event::BodyBuffered | Event::Head(_)) {
                let_others_read().await;
            }
            let at = Moment { now: self.now, client_waited: self.transfer.body.pace.waited() };
            let step = self.exchange.step(event, at);
            let prepared = match step {
                Step::BufferBody => Ok(()),
                Step::Open(endpoint) => self.open(endpoint, timer).await,
                Step::Queue(full) => match self.queue(full, timer).await {
                    Ok(place) => {
                        event = Event::CapacityFreed(place);
                        continue;
                    }
                    Err(failed) => Err(failed),
                },
                Step::Pass => self.pass().map_err(AttemptError::from),
                Step::Refuse(refusal) => {
                    self.request.write_refusal(&mut self.transfer, refusal, true, Some(&self.exchange));
                    Ok(())
                }
                Step::Reply(configured, status) => {
                    self.reply(configured, status);
                    Ok(())
                }
                Step::Jump(jump) => {
                    event = self.jump(jump);
                    continue;
                }
                Step::End => {
                    let ended = RequestEnd { action: action(self.transfer.ending()), at: self.now };
                    return (ended, self.transfer.body.end());
                }
                Step::Wait(never) | Step::Sub(never) | Step::Spawn(never) => match never {},
            };
            event = match prepared {
                Ok(()) => {
                    let exchange = &self.exchange;
                    let happened = self.transfer.run(|| exchange.is_killed(), self.now, timer).await;
                    self.event_of(happened)
                }
                Err(failed) => self.failed(failed),
            };
        }
    }

    /// Translates what happened in the transfer to an event for the exchange.
    fn event_of(&mut self, happened: TransferEvent) -> Event {
        match happened {
            TransferEvent::BodyBuffered => {
                if !self.transfer.body.pace.waited().is_zero() {
                    self.now = clock::now();
                }
                Event::BodyBuffered
            }
            TransferEvent::Head => {
                self.now = clock::now();
                let response = self.transfer.response();
                let answer = Answer { status: response.status(), has_body: self.transfer.body.is_at_hand() };
                let is_asked = asks_for_websocket(self.transfer.buffers, &self.exchange);
                match websocket::answers(response, is_asked) {
                    // Even that of an error page, whose backend was not asked for a WebSocket.
                    Ok(false) if self.request.would_open_websocket(self.exchange.page_status(answer.status)) => {
                        self.failed(Failure::NoWebSocket)
                    }
                    Ok(false) => {
                        if self.exchange.is_failure(answer.status) {
                            self.identify();
                        }
                        Event::Head(answer)
                    }
                    // A tunnel would outlive the client's permission to connect.
                    Ok(true) if self.request.engine.is_revoked() => self.failed(Failure::ConnectionRevoked),
                    // The client cannot check it: the key is ours.
                    Ok(true) if self.request.is_stream && !self.proves_websocket() => self.failed(Failure::NoWebSocket),
                    // Request bytes that are not sent yet cannot be sent in the tunnel.
                    Ok(true) if self.transfer.has_sent_request() => Event::Head(answer),
                    _ => self.failed(Failure::UnaskedUpgrade),
                }
            }
            TransferEvent::Sent => {
                self.now = clock::now();
                self.release();
                Event::Sent
            }
            TransferEvent::Failed(failure) => self.failed(failure),
        }
    }

    /// Whether the backend has understood what it was asked, and does not only repeat it (RFC 6455 §4.1). Otherwise it
    /// would read what the client sends through the tunnel as requests.
    fn proves_websocket(&self) -> bool {
        let Buffers { request, from_client, response, from_backend, .. } = &*self.transfer.buffers;
        let key = request.fields().value(from_client, Name::SecWebSocketKey).unwrap_or_default();
        let accept = response.fields().value(from_backend, Name::SecWebSocketAccept).unwrap_or_default();
        accept == websocket::accept_of(key).as_bytes()
    }

    /// Waits until a backend may have another connection.
    #[cold]
    async fn queue(
        &mut self,
        QueueTicket { place, timeout }: QueueTicket,
        timer: &mut Timer,
    ) -> Result<Box<Place>, AttemptError> {
        let called = Box::pin(async {
            place.called().await;
            Ok(place)
        });
        let limit = (timeout, Failure::QueueTimeout);
        let called = self.transfer.wait_for(called, || false, self.now, limit, timer).await;
        self.now = clock::now();
        called
    }

    /// Sends the request to `endpoint`.
    async fn open(&mut self, endpoint: Arc<Endpoint>, timer: &mut Timer) -> Result<(), AttemptError> {
        let (Some(server), Some(plan)) = (self.exchange.server(), self.exchange.plan().map(Arc::clone)) else {
            return Err(Failure::Internal.into());
        };
        let limits = self.exchange.own_limits();
        let header = self.proxy_header(&plan);
        let reused = match self.exchange.needs_new_connection() {
            true => None,
            false => Upstream::reuse(server, &plan.transport, &header, self.now),
        };
        let upstream = match reused {
            Some(upstream) => upstream,
            None => {
                let address = endpoint.address().ok_or(Failure::Unresolved)?;
                let dial =
                    Dial { backend: &endpoint.backend.address, address, transport: &plan.transport, header: &header };
                // The future is large and rarely needed: most requests reuse a connection.
                let connecting = Box::pin(Upstream::connect(server, &dial, &self.request.engine.backend_limit));
                let limit = limits.as_ref().map_or(plan.settings.connect_timeout, |own| own.connect_timeout);
                let limit = (limit, Failure::ConnectTimeout);
                let exchange = &self.exchange;
                let is_killed = || exchange.is_killed();
                let connected = self.transfer.wait_for(connecting, is_killed, self.now, limit, timer).await?;
                self.now = clock::now();
                connected
            }
        };
        let buffers = &mut *self.transfer.buffers;
        let wants_websocket = asks_for_websocket(buffers, &self.exchange);
        buffers.to_backend.clear();
        request::write_head(self.request, buffers, &self.exchange, wants_websocket)?;
        Ok(self.transfer.open(upstream, plan, limits, self.request.state.omits_body)?)
    }

    /// The PROXY header for a connection to a backend; empty unless the pool asks for one.
    fn proxy_header(&self, plan: &Plan) -> Vec<u8> {
        match plan.transport.config.proxy_protocol {
            ProxyProtocol::Off => Vec::new(),
            version => self.header_for_client(version),
        }
    }

    /// The client as named by trusted proxies. A client behind them has no known port.
    #[cold]
    fn header_for_client(&self, version: ProxyProtocol) -> Vec<u8> {
        let Peer { address, port, local, .. } = *self.request.peer;
        let client = self.request.forwarded.client.or(address).map(|from| {
            let from = SocketAddr::new(from, if Some(from) == address { port } else { 0 });
            let to = self.transfer.client.local_address().or(local).or(self.request.engine.address.ip());
            // The client was named by a proxy that connected through a Unix socket.
            let nowhere = match from {
                SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            proxy::Client { from, to: to.unwrap_or(SocketAddr::new(nowhere, 0)) }
        });
        proxy::header(version, client)
    }

    /// Sends the backend's response, whose head has arrived.
    fn pass(&mut self) -> Result<(), Failure> {
        let (request, exchange) = (&*self.request, &self.exchange);
        if self.transfer.response().status() == 101 {
            self.transfer.switch(|buffers| {
                write_head(request, buffers, Persistence::WebSocket, Some(exchange), true);
            });
            return Ok(());
        }
        self.transfer.pass(|buffers, body| {
            let may_keep = buffers.request.keeps_alive() && body.is_done() && request.may_be_followed(buffers);
            let keeps = may_keep && request.engine.keeps_clients();
            write_head(request, buffers, Persistence::of(keeps), Some(exchange), true)
        })
    }

    /// Sends a response from the configuration.
    #[cold]
    fn reply(&mut self, configured: ConfiguredReply, status: u16) {
        let (buffers, exchange) = (&*self.transfer.buffers, &self.exchange);
        let form = RefusalFormat::asked(buffers.request.fields().named(&buffers.from_client, b"accept"));
        let facts = RequestFacts::of(self.request, buffers, exchange);
        let status_fields = match configured {
            ConfiguredReply::Page(_) => of_status(buffers, exchange, &facts),
            ConfiguredReply::Action | ConfiguredReply::Preflight => StatusFields::default(),
        };
        let reply = match self.request.would_open_websocket(status) {
            true => Err(Refusal::NotImplemented),
            false => configured_reply::reply(configured, status, exchange, &facts, form),
        };
        self.request.state.status_fields = status_fields;
        match reply {
            Ok(reply) => {
                let may_keep = exchange.outcome().refusal.is_none_or(Refusal::keeps_connection);
                self.request.write_reply(&mut self.transfer, reply, may_keep, Some(exchange));
            }
            Err(refusal) => {
                self.exchange.reply_failed(refusal);
                self.request.write_refusal(&mut self.transfer, refusal, true, Some(&self.exchange));
            }
        }
    }

    /// Continues on another route instead of sending the current answer. Returns the event that begins the exchange
    /// there.
    #[cold]
    fn jump(&mut self, jump: Jump) -> Event {
        let is_at_hand = self.transfer.body.is_at_hand();
        if matches!(jump, Jump::Page(_)) {
            let facts = RequestFacts::of(self.request, self.transfer.buffers, &self.exchange);
            self.request.state.status_fields = of_status(self.transfer.buffers, &self.exchange, &facts);
        }
        // The current answer is discarded, and so is its backend connection.
        self.transfer.give_up();
        let event = request::jump(self.request, self.transfer.buffers, &mut self.exchange, jump, is_at_hand);
        self.transfer.limit(self.request.limits, self.exchange.retry_body_bytes());
        event
    }

    fn failed(&mut self, failed: impl Into<AttemptError>) -> Event {
        let mut failed = failed.into();
        failed.detail = failed.detail.or_else(|| self.transfer.explain(failed.failure)).or_else(|| {
            let Transfer { body, buffers, has_low_rate, .. } = &self.transfer;
            match failed.failure {
                Failure::RequestMalformed => body.fault.map(|bad| Detail::Reason(bad.reason())),
                failure => self.request.explain(failure, buffers, &self.exchange, *has_low_rate),
            }
        });
        self.identify();
        self.now = clock::now();
        let has_body = self.request.state.omits_body || self.transfer.body.is_at_hand();
        self.transfer.give_up();
        Event::Failed { failed, has_body }
    }

    /// Has the log of failures name the request.
    #[cold]
    fn identify(&mut self) {
        let id = self.transfer.buffers.text.get(self.request.forwarded.request_id.clone());
        self.exchange.identify(id.unwrap_or_default());
    }

    /// Returns the backend connection to the idle ones, if it can be reused.
    fn release(&mut self) {
        if let (Disposition::Idle(connection), Some(endpoint), Some(plan)) =
            (self.transfer.release(), self.exchange.endpoint(), self.exchange.plan())
        {
            let own = connection.is_for_one_client().then_some(MAX_IDLE_FOR_ONE_CLIENT);
            let idle_timeout = own.map_or(plan.settings.idle_timeout, |own| own.min(plan.settings.idle_timeout));
            let until = self.now + idle_timeout;
            connection.keep(endpoint, until, self.request.engine.max_idle());
        }
    }
}

impl Drop for ExchangeDriver<'_, '_> {
    fn drop(&mut self) {
        if !self.exchange.is_over() {
            self.now = clock::now();
        }
        let outcome = self.exchange.finish(self.now);
        self.request.conclude(&self.transfer, Some(&self.exchange), &outcome, self.now);
    }
}

fn action(ending: ClientConnectionState) -> ConnectionAction {
    match ending {
        ClientConnectionState::Reusable => ConnectionAction::Idle,
        ClientConnectionState::Complete => ConnectionAction::Close,
        ClientConnectionState::Unread => ConnectionAction::Linger,
        ClientConnectionState::CutOff => ConnectionAction::Abort,
    }
}

/// Whether the request asks for a WebSocket and gets the route's own answer, not an error page.
fn asks_for_websocket(buffers: &Buffers, exchange: &Exchange) -> bool {
    request::asks_for_websocket(buffers) && !exchange.is_page()
}

#[inline(never)]
fn write_record(
    of: &Request<'_>,
    log: &AccessLog,
    time: Timestamp,
    transfer: &Transfer<'_>,
    exchange: Option<&Exchange>,
    outcome: &Outcome,
    now: Instant,
) {
    let Buffers { request, from_client, text, .. } = &*transfer.buffers;
    // Nearly all values are ASCII: check for valid UTF-8 first.
    let readable = |bytes| str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed);
    let field = |name| request.fields().value(from_client, name).map(readable);
    let path = readable(request.path(from_client));
    let target = match request.query(from_client) {
        _ if let Some(received) = request.unread_target(from_client) => readable(received),
        None => path,
        Some(query) => [&*path, "?", &readable(query)].concat().into(),
    };
    let method = readable(request.method_token(from_client));
    let host = readable(request.authority(from_client).unwrap_or_default());
    let (referer, user_agent) = (field(Name::Referer), field(Name::UserAgent));
    let client = str::from_utf8(of.forwarded.client_text(text)).unwrap_or_default();
    let duration = now.saturating_duration_since(of.started);
    let record = Record {
        time,
        client,
        method: &method,
        host: &host,
        target: &target,
        protocol: transfer.client.protocol(request.version()),
        status: outcome.status,
        bytes: transfer.content_sent(),
        duration,
        request_id: text.get(of.forwarded.request_id.clone()).unwrap_or_default(),
        referer: referer.as_deref(),
        user_agent: user_agent.as_deref(),
        served: Served::new(exchange, outcome, duration),
    };
    let ended = Some((outcome, record.bytes));
    let Some(exchange) = exchange else {
        // By the rules of the default site, if there is one.
        let snapshot = of.engine.control.snapshot();
        let found = without_route(of, transfer.buffers, &snapshot);
        return match found.and_then(|(rules, facts)| Some((rules.access_log.as_deref()?, facts))) {
            None => log.write(&record),
            Some((rules, facts)) => log.write_by(rules, &record, &RequestFacts { ended, ..facts }, clock::random),
        };
    };
    match exchange.rules().and_then(|rules| rules.access_log.as_deref()) {
        None => log.write(&record),
        Some(rules) => {
            let facts = RequestFacts { ended, ..RequestFacts::of(of, transfer.buffers, exchange) };
            log.write_by(rules, &record, &facts, clock::random);
        }
    }
}
