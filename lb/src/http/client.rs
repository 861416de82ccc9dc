//! One client's requests, one after the other: read, begun, tried on backends until one answers, and told of.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::futures::Notified;
use tokio::time::{sleep, timeout};
use tokio_util::io::poll_read_buf;

use super::attempt::Attempt;
use super::body::{RequestBody, ResponseBody, refusal};
use super::request::{self, Told};
use super::stream::ClientStream;
use super::timer::Timer;
use super::work::Work;
use super::{Engine, h2, idle, tunnel};
use crate::access_log::{AccessLog, Record, Served};
use crate::backend::Backend;
use crate::date;
use crate::exchange::failure::Failure;
use crate::exchange::headers::Peer;
use crate::exchange::refusal::Refusal;
use crate::exchange::{Answer, Event, Exchange, Moment, Outcome, Step};
use crate::http::h1::rewrite::{self, Change, Edit, FieldName, FieldValue, Persistence, ResponsePlan};
use crate::http::h1::websocket;
use crate::message::framing::Framing;
use crate::message::name::Name;
use crate::message::{Method, Parsed, Version};

const HEAD_READ_BYTES: usize = 4096;
/// How long a client has to be idle before it has to leave to make room for others.
pub(super) const LEAST_IDLE: Duration = Duration::from_secs(1);
/// How long a stream may linger once the process stops, as connections that carry nothing may.
const LINGERING_AT_STOP: Duration = Duration::from_secs(1);
/// How long closing an idle connection may take under TLS.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// What becomes of the client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Waits for the next request.
    Idle,
    Close,
    /// Closed once the client has had the time to read its answer; it may still be sending.
    Linger,
    /// Cut off, because what was sent is incomplete.
    Abort,
}

/// Serves a connection to its end.
pub async fn serve(engine: Arc<Engine>, mut client: ClientStream, peer: IpAddr) {
    let peer = Peer::new(peer);
    let mut patience = engine.listener.header_timeout;
    let mut timer = Timer::default();
    let notified = pin!(engine.stop.idle.notified());
    let mut calls = Calls { notified, sheddings: 0 };
    poll_fn(|cx| {
        calls.listen(&engine, cx);
        Poll::Ready(())
    })
    .await;
    loop {
        let Some(mut work) = first_bytes(&engine, &mut client, &mut timer, &mut calls, patience).await else { break };
        // In a box of its own, so that an idle connection is small.
        let fate = Box::pin(requests(&engine, &mut client, &mut timer, &peer, &mut work)).await;
        work.give_back();
        match fate {
            Fate::Idle => patience = engine.listener.keepalive_timeout,
            Fate::Close if client.has_unread_bytes() => return Box::pin(linger(&engine, &mut client)).await,
            // Closing the socket says as much as shutting it down before.
            Fate::Close if !client.is_tls() => return,
            Fate::Close => break,
            Fate::Linger => return Box::pin(linger(&engine, &mut client)).await,
            Fate::Abort => return client.abort(),
        }
    }
    let _ = timeout(SHUTDOWN_TIMEOUT, client.shutdown()).await;
}

/// Serves the one request of an HTTP/2 stream. True: the client reset the stream before it had its answer.
pub(super) async fn serve_stream(engine: &Engine, mut client: ClientStream, peer: &Peer) -> bool {
    let mut timer = Timer::default();
    let mut work = Work::take();
    work.from_client.reserve(HEAD_READ_BYTES);
    // The head is there: `requests` begins when a request has begun.
    let _ = client.read_buf(&mut work.from_client).await;
    let fate = requests(engine, &mut client, &mut timer, peer, &mut work).await;
    work.give_back();
    let is_reset = matches!(&client, ClientStream::Http2(stream) if stream.is_reset());
    match fate {
        Fate::Idle | Fate::Close => {}
        Fate::Linger => linger(engine, &mut client).await,
        Fate::Abort => {
            // A reset takes back what the connection has not sent: let it send first.
            tokio::task::yield_now().await;
            client.abort();
        }
    }
    is_reset
}

/// What calls an idle connection from outside: the signal to stop, and the lack of room.
struct Calls<'p, 'e> {
    /// Polled so that a call wakes this task; what was called stands in [`super::Stop`].
    notified: Pin<&'p mut Notified<'e>>,
    /// Of those the connection knows.
    sheddings: usize,
}

impl<'e> Calls<'_, 'e> {
    fn listen(&mut self, engine: &'e Engine, cx: &mut Context<'_>) {
        self.sheddings = engine.stop.sheddings.load(Ordering::Acquire);
        while self.notified.as_mut().poll(cx).is_ready() {
            self.notified.set(engine.stop.idle.notified());
        }
    }

    /// Whether idle connections have been asked to leave since the last call.
    fn ask_to_leave(&mut self, engine: &'e Engine, cx: &mut Context<'_>) -> bool {
        let asks = engine.stop.sheddings.load(Ordering::Acquire) != self.sheddings;
        if asks {
            self.listen(engine, cx);
        }
        asks
    }
}

/// What an idle connection waits for.
enum Next {
    Request(Box<Work>),
    End,
    /// Those that have been idle for long have to leave.
    Shedding,
}

/// Waits for a request to begin, without holding a buffer. `None`: there will be none.
async fn first_bytes<'e>(
    engine: &'e Engine,
    client: &mut ClientStream,
    timer: &mut Timer,
    calls: &mut Calls<'_, 'e>,
    patience: Duration,
) -> Option<Box<Work>> {
    let mut idle = Duration::ZERO;
    loop {
        let waiting = timer.limit(patience.saturating_sub(idle), |cx| {
            let mut work = Work::take();
            work.from_client.reserve(HEAD_READ_BYTES);
            let read = poll_read_buf(Pin::new(&mut *client), cx, &mut work.from_client);
            if matches!(read, Poll::Ready(Ok(count)) if count > 0) {
                return Poll::Ready(Next::Request(work));
            }
            work.give_back();
            match read {
                Poll::Ready(_) => Poll::Ready(Next::End),
                Poll::Pending if engine.stop.has_begun() => Poll::Ready(Next::End),
                Poll::Pending if calls.ask_to_leave(engine, cx) => Poll::Ready(Next::Shedding),
                Poll::Pending => Poll::Pending,
            }
        });
        match waiting.await {
            Ok(Next::Request(work)) => return Some(work),
            Ok(Next::Shedding) => idle += timer.waited(),
            Ok(Next::End) | Err(_) => return None,
        }
        // A client that is about to send its next request is not idle.
        if idle >= LEAST_IDLE && engine.room.is_full() && engine.stop.sheds_one() {
            engine.control.metrics.client_connections_shed.inc();
            return None;
        }
    }
}

async fn requests(engine: &Engine, client: &mut ClientStream, timer: &mut Timer, peer: &Peer, work: &mut Work) -> Fate {
    loop {
        // A blank line after a request is no beginning of another (RFC 9112, 2.2).
        if work.from_client.iter().all(|byte| matches!(byte, b'\r' | b'\n')) {
            work.from_client.clear();
            return Fate::Idle;
        }
        let started = Instant::now();
        let mut carrier = Carrier {
            engine,
            client,
            timer,
            peer,
            started,
            ended: None,
            time: engine.access_log.as_ref().map(|_| Timestamp::now()),
            told: Told::default(),
            sent: 0,
        };
        let fate = match carrier.read_head(work).await {
            Ok(Some(head)) => carrier.carry(work, head).await,
            Ok(None) => return Fate::Close,
            Err(refusal) => carrier.refuse(work, refusal, false).await,
        };
        if fate != Fate::Idle {
            return fate;
        }
    }
}

/// One request with what is told of it afterwards.
struct Carrier<'a> {
    engine: &'a Engine,
    client: &'a mut ClientStream,
    timer: &'a mut Timer,
    peer: &'a Peer,
    started: Instant,
    /// When the answer had been sent, if it was a backend's.
    ended: Option<Instant>,
    /// Only the access log needs it.
    time: Option<Timestamp>,
    told: Told,
    sent: u64,
}

impl Carrier<'_> {
    /// Reads the rest of the head; where it ends. `None`: the client left.
    async fn read_head(&mut self, work: &mut Work) -> Result<Option<usize>, Refusal> {
        work.request.clear();
        let limits = &self.engine.limits;
        let reading = self.timer.limit(self.engine.listener.header_timeout, |cx| {
            loop {
                match work.request.parse(&work.from_client, limits) {
                    Parsed::Complete(head) => return Poll::Ready(Ok(Some(head))),
                    Parsed::Rejected(reject) => {
                        tracing::debug!(client = self.peer.as_str(), reason = reject.reason(), "a request is refused");
                        return Poll::Ready(Err(refusal(reject)));
                    }
                    Parsed::Partial => {}
                }
                work.from_client.reserve(HEAD_READ_BYTES);
                match ready!(poll_read_buf(Pin::new(&mut *self.client), cx, &mut work.from_client)) {
                    Ok(count) if count > 0 => {}
                    _ => return Poll::Ready(Ok(None)),
                }
            }
        });
        reading.await.unwrap_or(Err(Refusal::ClientTimeout))
    }

    /// Answers a request that is no exchange. `has_read_all`: nothing of it is left to read.
    async fn refuse(&mut self, work: &mut Work, refusal: Refusal, has_read_all: bool) -> Fate {
        let fate = self.respond(work, refusal, has_read_all).await;
        let outcome = Outcome { refusal: Some(refusal), status: refusal.status(), ..Outcome::default() };
        self.conclude(work, None, &outcome, Instant::now());
        fate
    }

    async fn carry(&mut self, work: &mut Work, head: usize) -> Fate {
        let _exchange = self.engine.stop.in_exchange();
        let is_tls = self.client.is_tls();
        let now = Instant::now();
        let begun = request::begin(self.engine, work, head, self.peer, is_tls, now, &mut self.told);
        match begun {
            Ok((mut exchange, mut body)) => {
                let fate = self.exchange(work, &mut exchange, &mut body, now).await;
                let now = self.ended.unwrap_or_else(Instant::now);
                let outcome = exchange.finish(now);
                self.conclude(work, Some(&exchange), &outcome, now);
                if fate == Fate::Idle {
                    work.from_client.drain(..body.end());
                }
                fate
            }
            Err(refusal) => {
                let is_whole = work.request.framing() == Framing::None;
                let fate = self.refuse(work, refusal, is_whole).await;
                if fate == Fate::Idle {
                    work.from_client.drain(..head);
                }
                fate
            }
        }
    }

    /// Does what the exchange says, step by step, to its end.
    async fn exchange(
        &mut self,
        work: &mut Work,
        exchange: &mut Exchange,
        body: &mut RequestBody,
        mut now: Instant,
    ) -> Fate {
        let mut event = Event::Begun;
        let mut fate = Fate::Abort;
        loop {
            event = match exchange.step(event, Moment { now, client_waited: body.pace.waited() }) {
                Step::Hold => match self.read_small_body(work, body).await {
                    Ok(()) => Event::Held,
                    Err(failure) => failed(failure, body),
                },
                Step::Open(backend) => {
                    body.rewind();
                    match self.attempt(work, exchange, &backend, body, now).await {
                        Ok(answered) => {
                            fate = answered;
                            Event::Sent
                        }
                        Err(failure) => failed(failure, body),
                    }
                }
                Step::Refuse(refusal) => {
                    fate = self.respond(work, refusal, body.is_done()).await;
                    match fate {
                        Fate::Abort => failed(Failure::ClientGone, body),
                        _ => Event::Sent,
                    }
                }
                // An attempt passes its answer on itself.
                Step::Pass | Step::End => return fate,
                Step::Wait(never) | Step::Sub(never) | Step::Spawn(never) | Step::Replace(never) => match never {},
            };
            now = match event {
                // Nobody had to be waited for.
                Event::Held if body.pace.waited().is_zero() => now,
                Event::Sent => self.ended.unwrap_or_else(Instant::now),
                _ => Instant::now(),
            };
        }
    }

    /// Reads a small body whole, so that no backend waits for a slow client. One that is held back until the backend
    /// asks for it is not waited for.
    async fn read_small_body(&mut self, work: &mut Work, body: &mut RequestBody) -> Result<(), Failure> {
        if work.request.expects_continue() {
            return Ok(());
        }
        loop {
            let missing = body.missing(&work.from_client);
            if missing == 0 {
                return Ok(());
            }
            work.from_client.reserve(missing);
            let reading = self.timer.limit(body.pace.patience(self.engine.listener.body_timeout), |cx| {
                poll_read_buf(Pin::new(&mut *self.client), cx, &mut work.from_client)
            });
            match reading.await {
                Ok(Ok(count)) if count > 0 => body.pace.moved(count as u64, self.timer.waited()),
                Ok(_) => return Err(Failure::ClientGone),
                Err(_) => return Err(Failure::ClientTimeout),
            }
        }
    }

    async fn attempt(
        &mut self,
        work: &mut Work,
        exchange: &mut Exchange,
        backend: &Arc<Backend>,
        body: &mut RequestBody,
        now: Instant,
    ) -> Result<Fate, Failure> {
        let server = backend.incarnation();
        let address = backend.socket_address().ok_or(Failure::Unresolved)?;
        let plan = Arc::clone(exchange.plan());
        let settings = &plan.settings;
        let (mut connection, is_reused) = match idle::take(server, now) {
            Some(connection) => (connection, true),
            None => (connect(address, settings.connect_timeout).await?, false),
        };
        // A failed attempt may have left the beginning of an answer in it, which this one's interim responses precede.
        work.to_client.clear();
        work.to_backend.clear();
        work.from_backend.clear();
        let wants_websocket = request::asks_for_websocket(work);
        request::write_head(work, &self.told, wants_websocket);
        let Engine { listener, limits, .. } = self.engine;
        let mut attempt = Attempt::new(self.client, &mut connection, work, body, listener, settings, limits, is_reused);
        let head = attempt.ask(self.timer).await?;
        let switches = websocket::answers(attempt.response(), wants_websocket);
        let switches = switches.map_err(|_| Failure::UnaskedUpgrade)?;
        // Bytes that are still owed would have no place in the tunnel.
        if switches && !attempt.has_sent_all() {
            return Err(Failure::UnaskedUpgrade);
        }
        let keeps_backend = attempt.response().keeps_alive();
        let status = attempt.response().status();
        let (mut response, keeps_client) = write_head(self.engine, attempt.work, attempt.body, exchange, switches);
        let is_in_order = switches || attempt.begin_answer(head, &mut response)?;
        let at = Moment { now: Instant::now(), client_waited: attempt.body.pace.waited() };
        // A route that only proxies passes whatever comes.
        exchange.step(Event::Head(Answer { status }), at);
        if switches {
            let work = &mut *attempt.work;
            let end = attempt.body.end();
            let early = work.from_client.split_off(end);
            let mut down = std::mem::take(&mut work.to_client);
            down.extend_from_slice(&work.from_backend[head..]);
            let head_bytes = (down.len() - (work.from_backend.len() - head)) as u64;
            let moved =
                tunnel::carry(self.client, &mut connection, early, down, settings.tunnel_timeout, self.timer).await;
            self.sent = moved.saturating_sub(head_bytes);
            return Ok(Fate::Close);
        }
        let answered = attempt.answer(&mut response, self.timer).await;
        self.sent = response.sent;
        let is_backend_clean = answered? && is_in_order;
        let now = Instant::now();
        self.ended = Some(now);
        if is_backend_clean && keeps_backend {
            idle::keep(backend, server, connection, now + settings.idle_timeout, self.engine.most_idle);
        }
        Ok(match (keeps_client, body.is_done()) {
            (true, true) => Fate::Idle,
            (_, false) => Fate::Linger,
            (false, true) if work.from_client.len() > body.end() => Fate::Linger,
            (false, true) => Fate::Close,
        })
    }

    /// Answers the request ourselves. `has_read_all`: nothing of it is left to read.
    async fn respond(&mut self, work: &mut Work, refusal: Refusal, has_read_all: bool) -> Fate {
        let keeps =
            has_read_all && refusal.keeps_connection() && work.request.keeps_alive() && self.engine.keeps_clients();
        let request_id = work.text.get(self.told.request_id.clone()).unwrap_or_default();
        work.to_client.clear();
        let is_head = work.request.method() == Method::Head;
        refusal.write(request_id, keeps, work.request.version() == Version::Http10, is_head, &mut work.to_client);
        self.sent = if is_head { 0 } else { refusal.body().len() as u64 };
        let mut written = 0;
        let sending = self.timer.limit(self.engine.listener.send_timeout, |cx| {
            let sent = poll_send_all(self.client, cx, &work.to_client, &mut written);
            if sent.is_pending() && !keeps {
                // A client may read only when it has sent everything, which nobody wants any more.
                while let Poll::Ready(Ok(1..)) = self.client.poll_discard(cx) {}
            }
            sent
        });
        let sent = sending.await;
        work.to_client.clear();
        match sent {
            Ok(Ok(())) if keeps => Fate::Idle,
            Ok(Ok(())) => Fate::Linger,
            _ => Fate::Abort,
        }
    }

    /// Counts and logs the request.
    fn conclude(&self, work: &Work, exchange: Option<&Exchange>, outcome: &Outcome, now: Instant) {
        if let Some(refusal) = outcome.refusal {
            self.engine.control.metrics.refused(refusal.reason());
        }
        let (Some(log), Some(time)) = (&self.engine.access_log, self.time) else { return };
        write_record(self, log, time, work, exchange, outcome, now);
    }
}

/// What an exchange is told of a failure.
fn failed(failure: Failure, body: &RequestBody) -> Event {
    Event::Failed { failure, has_body: body.is_at_hand() }
}

/// Writes the head for the client; how the content goes to it, and whether its connection stays.
fn write_head(
    engine: &Engine,
    work: &mut Work,
    body: &RequestBody,
    exchange: &Exchange,
    switches: bool,
) -> (ResponseBody, bool) {
    let Work { request, response, from_backend, to_client, .. } = work;
    let keeps = request.keeps_alive() && body.is_done() && engine.keeps_clients();
    let persistence = match (switches, keeps) {
        (true, _) => Persistence::WebSocket,
        (false, true) => Persistence::KeepAlive,
        (false, false) => Persistence::Close,
    };
    let cookie = exchange.set_cookie();
    let cookie = cookie.as_ref().and_then(|cookie| FieldValue::new(cookie.as_bytes()));
    let changes = cookie.map(|cookie| [Change { name: FieldName::known(Name::SetCookie), edit: Edit::Add(cookie) }]);
    let changes = changes.as_ref().map_or(&[][..], |changes| &changes[..]);
    let date = response.fields().value(from_backend, Name::Date).is_none().then(date::now);
    let mut plan = ResponsePlan::new(response, request.version(), persistence, changes);
    plan.date = date.as_ref().and_then(|date| FieldValue::new(date));
    rewrite::response(response, from_backend, &plan, to_client);
    (ResponseBody::new(response.framing(), plan.framing), plan.persistence == Persistence::KeepAlive)
}

async fn connect(address: SocketAddr, limit: Duration) -> Result<TcpStream, Failure> {
    let stream = match timeout(limit, TcpStream::connect(address)).await {
        Ok(connected) => connected.map_err(|e| Failure::of_connecting(&e))?,
        Err(_) => return Err(Failure::ConnectTimeout),
    };
    // Fails only on a socket that is gone already.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Sends what is in `bytes` from `written` on, to the last byte that TLS holds back.
fn poll_send_all(
    client: &mut ClientStream,
    cx: &mut Context<'_>,
    bytes: &[u8],
    written: &mut usize,
) -> Poll<io::Result<()>> {
    while *written < bytes.len() {
        match ready!(Pin::new(&mut *client).poll_write(cx, &bytes[*written..]))? {
            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            count => *written += count,
        }
    }
    Pin::new(client).poll_flush(cx)
}

/// Closes our side, then reads and drops what the client still sends (RFC 9112 §9.6; nginx's `lingering_close`). Closing
/// at once would reset the connection, and a client that sends everything before it reads would never see its answer.
async fn linger(engine: &Engine, client: &mut ClientStream) {
    let Engine { listener, .. } = engine;
    // A stream holds no place of its own.
    let is_stream = matches!(client, ClientStream::Http2(_));
    let lingering = async {
        let mut is_shut_down = false;
        let mut discard = |cx: &mut Context<'_>| {
            if !is_shut_down {
                is_shut_down = Pin::new(&mut *client).poll_shutdown(cx).is_ready();
            }
            client.poll_discard(cx)
        };
        while let Ok(Ok(1..)) = timeout(listener.lingering_timeout, poll_fn(&mut discard)).await {}
    };
    let stop = async {
        h2::stopping(engine).await;
        sleep(LINGERING_AT_STOP).await;
    };
    tokio::select! {
        biased;
        _ = timeout(listener.lingering_time, lingering) => {}
        () = engine.sheds_lingering(), if !is_stream => {}
        // Connections are not waited for while they linger, but one of HTTP/2 is for its streams.
        () = stop, if is_stream => {}
    }
}

#[cold]
fn write_record(
    carrier: &Carrier<'_>,
    log: &AccessLog,
    time: Timestamp,
    work: &Work,
    exchange: Option<&Exchange>,
    outcome: &Outcome,
    now: Instant,
) {
    let Work { request, from_client, text, .. } = work;
    let readable = |bytes| String::from_utf8_lossy(bytes);
    let field = |name| request.fields().value(from_client, name).map(readable);
    let mut target = readable(request.path(from_client)).into_owned();
    if let Some(query) = request.query(from_client) {
        target.push('?');
        target.push_str(&readable(query));
    }
    log.write(&Record {
        time,
        client: carrier.told.client.unwrap_or(carrier.peer.address),
        method: &readable(request.method_token(from_client)),
        host: &readable(request.authority(from_client).unwrap_or_default()),
        target: &target,
        protocol: carrier.client.protocol(request.version()),
        status: outcome.status,
        bytes: carrier.sent,
        duration: now.saturating_duration_since(carrier.started),
        request_id: text.get(carrier.told.request_id.clone()).unwrap_or_default(),
        referer: field(Name::Referer).as_deref(),
        user_agent: field(Name::UserAgent).as_deref(),
        served: Served::new(exchange, outcome),
    });
}
