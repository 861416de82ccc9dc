//! HTTP/2 from clients (RFC 9113), by a codec of our own. The engine serves each stream like an HTTP/1.1 connection
//! with one request ([`stream::Http2Stream`]), so that routes, limits, retries and logs are the same. This file moves
//! the bytes of a connection and enforces its time limits.
//!
//! - [`connection`]: the state of a connection and its streams, without a socket.
//! - [`frame`]: reads and writes frames. [`hpack`] and [`huffman`]: blocks of fields.
//! - [`head`]: translates heads to HTTP/1.1 and back.
//! - [`stream`]: a stream as the engine reads and writes it.
//! - [`buffers`]: spare buffers of the thread.

mod buffers;
pub mod connection;
pub mod frame;
pub mod head;
pub mod hpack;
mod huffman;
pub(super) mod stream;

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::BufMut;
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::sync::futures::Notified;
use tokio_util::io::poll_read_buf;

use super::burst::wake_after_others;
use super::client::serve_stream;
use super::io::{Acknowledged, Io};
use super::linger::{self, Drain, Drained, drain};
use super::pace::{ConnectionTotal, Pace, RATE_GRACE};
use super::stream::poll_discard;
use super::timer::Timer;
use super::{CountGuard, Engine};
use crate::clock::{self, timeout};
use crate::exchange::headers::Peer;
use crate::failure::Failure;
use connection::{Connection, Fault, Unfinished};
use frame::{Code, PREFACE};
use stream::{Http2Stream, Link};

/// How many bytes are read at once.
const READ_BYTES: usize = 32 * 1024;
/// Limits on what one poll of a connection does before other tasks run: reads, frames, which may be tiny, and requests
/// that it begins to serve. Tasks run in the order in which they were woken, so a new client waits for all that are
/// before it.
const MAX_READS_AT_ONCE: usize = 8;
const MAX_FRAMES_AT_ONCE: usize = 256;
const MAX_SERVED_AT_ONCE: usize = 16;

/// How often within `send_timeout`, or within [`RATE_GRACE`] if that is shorter, it is looked whether a client has taken
/// any of what the system holds for it.
const LOOKS: u32 = 8;

/// A client is forgiven one lost stream each time this has passed: a proxy may cancel many requests of its own clients
/// to a slow backend in the course of hours.
const LOSS_FORGIVEN_IN: Duration = Duration::from_millis(100);

/// How long a connection that ends may take to write what is left, its GOAWAY included.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long in all a client is read after its GOAWAY. It has to do no more than read that, so this is less than the
/// lingering close of HTTP/1.1 takes at most.
const MAX_LINGERING_TIME: Duration = Duration::from_secs(2);

/// Whether these first bytes of a connection, which the parser of HTTP/1.1 refused, are those of HTTP/2.
pub(super) fn is_preface(read: &[u8]) -> bool {
    // The parser refuses the version after so many bytes. The rest may not have come yet.
    read.starts_with(b"PRI * HTTP/2.0") && read.iter().zip(PREFACE).all(|(a, b)| a == b)
}

/// Serves a connection to its end. `read`: what was read of it before.
pub(crate) async fn serve(engine: Arc<Engine>, io: Io, read: Vec<u8>, peer: Peer) {
    let link =
        Arc::new(Link::new(Connection::new(list_bytes(&engine)), ConnectionTotal::new(clock::now()), io.is_tls()));
    // Also if this future is dropped.
    let _end = End(&link);
    let mut driver = Driver {
        engine: &engine,
        link: &link,
        peer: Arc::new(peer),
        io,
        incoming: read,
        unfinished: None,
        is_unflushed: false,
        is_response_unflushed: false,
        patience: engine.listener().header_timeout,
        phase: Phase::Idle,
        phase_since: clock::now(),
        forgiven_at: clock::now(),
        blocked: None,
        pace: Pace::new(None, Duration::ZERO, None),
        pace_since: clock::now(),
        written_before: 0,
        is_leaving: false,
        drain: None,
        is_shut_down: false,
        exchange: None,
    };
    let mut timer = Timer::default();
    let mut notified = pin!(engine.thread.idle.notified());
    let over = poll_fn(|cx| driver.poll(cx, notified.as_mut(), &mut timer)).await;
    // Rare beside an idle connection, and larger.
    Box::pin(driver.close(over)).await;
}

/// The limit on a block's fields for the decoder: twice those of the listener, whose excess is answered 431.
fn list_bytes(engine: &Engine) -> usize {
    let limits = engine.listener().limits();
    2 * (limits.head_bytes() + hpack::FIELD_OVERHEAD * limits.fields())
}

/// Ends the streams of a connection when dropped.
struct End<'a>(&'a Link);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.lock().lose();
    }
}

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// The client has closed it, or the socket has failed.
    Gone,
    /// The client has its GOAWAY, or it is queued.
    Told,
    /// The client has to leave, and its GOAWAY is still to be queued.
    Leave,
    /// The same, because it takes too little of its responses.
    Stuck,
}

/// What a connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Requests are being served.
    Serving,
    /// What is left of responses is on its way.
    Sending,
    /// TLS has the rest of them, and has not sent it.
    Flushing,
    /// Without requests, whatever frames come. It may be so for `header_timeout` until the first one, then for
    /// `keepalive_timeout`, and less when its place is wanted.
    Idle,
}

/// A socket that takes no more of the responses that are to be written.
#[derive(Debug, Clone, Copy)]
struct Blocked {
    since: Instant,
    /// When it was last looked how much the client has acknowledged, and how much that was.
    looked_at: Instant,
    acknowledged: Option<u64>,
}

impl Blocked {
    fn now() -> Self {
        let now = clock::now();
        Self { since: now, looked_at: now, acknowledged: None }
    }
}

struct Driver<'a> {
    engine: &'a Arc<Engine>,
    link: &'a Arc<Link>,
    peer: Arc<Peer>,
    io: Io,
    /// Bytes that were read and not taken: a part of a frame, or frames that cannot be taken now. A buffer is kept only
    /// while there are some.
    incoming: Vec<u8>,
    /// The frame or block that has come in part, and since when.
    unfinished: Option<(Unfinished, Instant)>,
    /// TLS may hold bytes that were written.
    is_unflushed: bool,
    /// They may be of a response.
    is_response_unflushed: bool,
    /// How long it may be idle.
    patience: Duration,
    phase: Phase,
    phase_since: Instant,
    /// Up to when lost streams have been forgiven.
    forgiven_at: Instant,
    /// The socket takes no more of the responses that are to be written.
    blocked: Option<Blocked>,
    /// The rate at which the client takes what is left of its responses, in [`Phase::Sending`] and [`Phase::Flushing`];
    /// since when it counts its waits, and behind how many written bytes.
    pace: Pace,
    pace_since: Instant,
    written_before: u64,
    /// The client has been asked to leave.
    is_leaving: bool,
    /// The connection has been idle for long enough to close, but its client still takes its responses.
    drain: Option<Box<Drain>>,
    /// Our side of the socket is closed.
    is_shut_down: bool,
    /// Held while the connection is not idle, so that a stop waits for it.
    exchange: Option<CountGuard<'a>>,
}

impl<'a> Driver<'a> {
    fn poll(&mut self, cx: &mut Context<'_>, mut notified: Pin<&mut Notified<'a>>, timer: &mut Timer) -> Poll<Over> {
        while notified.as_mut().poll(cx).is_ready() {
            notified.set(self.engine.thread.idle.notified());
        }
        match self.advance(cx, timer) {
            Err(over) => Poll::Ready(over),
            Ok(()) => {
                self.link.lock().register_driver(cx);
                Poll::Pending
            }
        }
    }

    /// One poll: reads, writes, begins to serve requests, and checks the limits on time.
    fn advance(&mut self, cx: &mut Context<'_>, timer: &mut Timer) -> Result<(), Over> {
        self.forgive_losses();
        // A reload may have changed them.
        self.link.lock().limit_fields(list_bytes(self.engine));
        let (mut reads, mut frames_left) = (0, MAX_FRAMES_AT_ONCE);
        loop {
            let has_read = self.read(cx, &mut frames_left)?;
            let may_read_on = self.write(cx)?;
            if !has_read && !may_read_on {
                break;
            }
            reads += 1;
            if reads == MAX_READS_AT_ONCE || frames_left == 0 {
                wake_after_others(cx);
                break;
            }
        }
        self.serve_requests(cx);
        self.note_unfinished();
        let is = self.phase();
        let was = std::mem::replace(&mut self.phase, is);
        if was != is {
            self.phase_since = clock::now();
            self.drain = None;
            if was == Phase::Serving {
                let listener = self.engine.listener();
                self.pace = Pace::new(listener.min_rate, listener.send_timeout, None);
                (self.pace_since, self.written_before) = (self.phase_since, self.link.total.written());
            }
            if is == Phase::Flushing {
                // Of what a TLS session holds nothing is written to be counted: the client has `send_timeout` for it.
                self.pace.fill();
            }
        }
        let is_idle = is == Phase::Idle;
        if is_idle {
            self.exchange = None;
        } else if self.exchange.is_none() {
            self.exchange = Some(self.engine.thread.in_exchange());
        }
        self.leave(cx, is_idle)?;
        self.wait(cx, timer)
    }

    fn forgive_losses(&mut self) {
        let since = clock::now().saturating_duration_since(self.forgiven_at);
        if let Ok(count @ 1..) = u32::try_from(since.as_millis() / LOSS_FORGIVEN_IN.as_millis()) {
            self.forgiven_at += count * LOSS_FORGIVEN_IN;
            self.link.lock().forgive(count);
        }
    }

    /// Reads once and takes at most `frames_left` frames. False: nothing came.
    fn read(&mut self, cx: &mut Context<'_>, frames_left: &mut usize) -> Result<bool, Over> {
        let mut connection = self.link.lock();
        if connection.is_full() {
            return Ok(false);
        }
        let mut used = connection.receive_frames(&self.incoming, frames_left);
        let mut has_read = used > 0;
        if !has_read && connection.error().is_none() {
            if self.incoming.capacity() - self.incoming.len() < READ_BYTES {
                let begun = std::mem::replace(&mut self.incoming, buffers::take());
                self.incoming.reserve(begun.len() + READ_BYTES);
                self.incoming.extend_from_slice(&begun);
            }
            let mut incoming = (&mut self.incoming).limit(READ_BYTES);
            match poll_read_buf(Pin::new(&mut self.io), cx, &mut incoming) {
                Poll::Ready(Ok(1..)) => {
                    used = connection.receive_frames(&self.incoming, frames_left);
                    has_read = true;
                }
                Poll::Ready(_) => return Err(Over::Gone),
                Poll::Pending => {}
            }
        }
        if used == self.incoming.len() {
            buffers::give_back(std::mem::take(&mut self.incoming));
        } else {
            self.incoming.drain(..used);
            if !has_read {
                let begun = self.incoming.to_vec();
                buffers::give_back(std::mem::replace(&mut self.incoming, begun));
            }
        }
        let (faults, has_failed) = (connection.take_faults(), connection.error().is_some());
        drop(connection);
        faults.into_iter().for_each(|fault| self.note(fault));
        if has_failed {
            return Err(self.error(None));
        }
        Ok(has_read)
    }

    /// Counts and logs a stream that was reset, as requests that are refused by their client's fault are. One that is
    /// being served counts as such, if it fails.
    #[cold]
    fn note(&self, Fault { why, is_unserved }: Fault) {
        let (control, client, name) = (&self.engine.control, self.peer.as_str(), self.engine.name.load());
        let (listener, failure) = (name.as_str(), Failure::RequestMalformed.word());
        if is_unserved {
            control.metrics.client_failed(failure);
        }
        if control.client_failures.note(why, clock::now()) {
            tracing::warn!(listener, client, failure, "an HTTP/2 stream is reset for an error of its client: {why}");
        } else {
            tracing::debug!(listener, client, failure, "an HTTP/2 stream is reset for an error of its client: {why}");
        }
    }

    /// The client has to go for an error of its own. `reason`: the word for it, unless that of its code says it.
    fn error(&self, reason: Option<&'static str>) -> Over {
        if let Some((code, why)) = self.link.lock().error() {
            let (control, client) = (&self.engine.control, self.peer.as_str());
            let reason = reason.unwrap_or(code.word());
            let name = self.engine.name.load();
            let listener = name.as_str();
            control.metrics.http2_connection_failed(listener, reason);
            if control.note_http2_error(client, why, clock::now()) {
                tracing::warn!(
                    client,
                    listener,
                    reason,
                    "an HTTP/2 connection is ended by an error of its client: {why}"
                );
            } else {
                tracing::debug!(
                    client,
                    listener,
                    reason,
                    "an HTTP/2 connection is ended by an error of its client: {why}"
                );
            }
        }
        Over::Told
    }

    /// Spawns tasks for requests, a limited number at a time.
    fn serve_requests(&mut self, cx: &mut Context<'_>) {
        for _ in 0..MAX_SERVED_AT_ONCE {
            let Some((id, request)) = self.link.lock().next_request() else { return };
            self.patience = self.engine.listener().keepalive_timeout;
            let stream = Http2Stream::new(Arc::clone(self.link), id, request);
            // A task that is not taken is dropped at once, and leaves its stream.
            clock::spawn(serve_in_task(Arc::clone(self.engine), stream, Arc::clone(&self.peer)));
        }
        if self.link.lock().has_request() {
            wake_after_others(cx);
        }
    }

    fn note_unfinished(&mut self) {
        let before = self.unfinished.take();
        self.unfinished = self.link.lock().unfinished(&self.incoming).map(|unfinished| match before {
            Some((same, since)) if same.at == unfinished.at => (unfinished, since),
            _ => (unfinished, clock::now()),
        });
    }

    /// Writes and flushes what there is. True: the connection was full before, and can receive again.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool, Over> {
        let Self { link, io, is_unflushed, is_response_unflushed, blocked, .. } = self;
        let mut connection = link.lock();
        let was_full = connection.is_full();
        while !connection.unsent().is_empty() {
            *is_unflushed = true;
            let is_of_response = connection.has_unsent_response();
            *is_response_unflushed |= is_of_response;
            match Pin::new(&mut *io).poll_write(cx, connection.unsent()) {
                Poll::Ready(Ok(count @ 1..)) => {
                    connection.sent(count);
                    // Taking nothing but acknowledgements of PING is no progress of a response.
                    if is_of_response {
                        let now = clock::now();
                        link.total.wrote(count, now);
                        if let Some(blocked) = blocked {
                            (blocked.looked_at, blocked.acknowledged) = (now, None);
                        }
                    }
                }
                Poll::Ready(_) => return Err(Over::Gone),
                Poll::Pending => {
                    if is_of_response {
                        blocked.get_or_insert_with(Blocked::now);
                    }
                    return Ok(false);
                }
            }
        }
        if *is_unflushed {
            match Pin::new(io).poll_flush(cx) {
                Poll::Ready(Ok(())) => (*is_unflushed, *is_response_unflushed) = (false, false),
                Poll::Ready(Err(_)) => return Err(Over::Gone),
                Poll::Pending => {}
            }
        }
        if !*is_response_unflushed {
            *blocked = None;
        } else if blocked.is_none() {
            *blocked = Some(Blocked::now());
        }
        Ok(was_full && !connection.is_full())
    }

    fn phase(&self) -> Phase {
        let connection = self.link.lock();
        match (connection.is_serving(), connection.has_unsent_response(), self.is_response_unflushed) {
            (true, ..) => Phase::Serving,
            (false, true, _) => Phase::Sending,
            (false, false, true) => Phase::Flushing,
            (false, false, false) => Phase::Idle,
        }
    }

    /// Ends an idle connection, or asks the client of a busy one to leave, where that is due.
    fn leave(&mut self, cx: &mut Context<'_>, is_idle: bool) -> Result<(), Over> {
        let engine = self.engine;
        if is_idle && (engine.thread.is_stopping() || self.is_leaving && !engine.is_closed() || self.is_shed()) {
            return Err(Over::Leave);
        }
        if !self.is_leaving && (engine.is_closed() || !is_idle && !engine.keeps_clients()) {
            self.is_leaving = true;
            self.link.lock().ask_to_leave();
            if self.write(cx)? {
                // It can receive again in its next poll.
                cx.waker().wake_by_ref();
            }
        }
        // Where only the listener is closed, the client has time to read the GOAWAY: a request that crosses it is
        // served.
        let connection = self.link.lock();
        if connection.is_over() && connection.unsent().is_empty() { Err(Over::Told) } else { Ok(()) }
    }

    /// Whether the place of an idle connection is wanted. From then on, a client that takes nothing of its responses
    /// does not keep its place for as long as an idle one may.
    fn is_shed(&mut self) -> bool {
        let engine = self.engine;
        if !engine.client_limit.is_full() {
            return false;
        }
        let idle_for = clock::now().saturating_duration_since(self.phase_since);
        let mut is_held = false;
        let held = || {
            is_held = self.link.total.written() > 0 && linger::is_held(self.acknowledged());
            is_held
        };
        let is_shed = engine.thread.sheds_one(idle_for, held);
        if is_shed {
            engine.control.metrics.client_connections_shed.inc();
        } else if is_held && self.drain.is_none() {
            self.drain = Drain::begin(&engine.listener(), self.acknowledged()).map(Box::new);
        }
        is_shed
    }

    fn acknowledged(&self) -> Option<Acknowledged> {
        self.io.acknowledged()
    }

    /// Waits, but no longer than it may. While it has only to send what is left of its responses, the client has to
    /// take some of it within `send_timeout`, at `min_rate`. Whatever is being served, a head that has begun has to end
    /// within `header_timeout`, and so has every other frame; one of content within `body_timeout`, where that is
    /// longer.
    fn wait(&mut self, cx: &mut Context<'_>, timer: &mut Timer) -> Result<(), Over> {
        let listener = self.engine.listener();
        let of_frame = self.unfinished.map(|(unfinished, since)| match unfinished.is_content {
            true => (since, listener.header_timeout.max(listener.body_timeout)),
            false => (since, listener.header_timeout),
        });
        loop {
            let is_sending = matches!(self.phase, Phase::Sending | Phase::Flushing);
            let of_phase = match self.phase {
                Phase::Serving => None,
                Phase::Sending | Phase::Flushing => Some(self.patience_with_reader(listener.send_timeout)),
                Phase::Idle => match &self.drain {
                    None => Some((self.phase_since, self.patience)),
                    Some(drain) => Some(drain.next_look()),
                },
            };
            let blocked = self.blocked.filter(|_| self.io.tells_acknowledged());
            // Even the shortest patience, of a response that has just begun, leaves time for several.
            let of_look = blocked.map(|blocked| (blocked.looked_at, listener.send_timeout.min(RATE_GRACE) / LOOKS));
            let ends = |(since, limit): &(Instant, Duration)| {
                let end = since.checked_add(*limit);
                (end.is_none(), end)
            };
            let all = of_phase.into_iter().chain(of_frame).chain(of_look);
            let Some(first) = all.min_by_key(ends) else { return Ok(()) };
            let (since, limit) = first;
            timer.begin(since, limit);
            if !limit.is_zero() && timer.poll_elapsed(cx).is_pending() {
                return Ok(());
            }
            if Some(first) == of_look {
                self.look();
            } else if Some(first) != of_phase {
                self.link.lock().fail(Code::EnhanceYourCalm, "a frame, or a head, that does not end in time");
                return Err(self.error(Some("timeout")));
            } else if !is_sending {
                self.drain_or_leave()?;
            } else if limit.is_zero() && !self.look() {
                return Err(Over::Stuck);
            }
        }
    }

    /// The connection has been idle for as long as it may be. Its time does not pass while the client still takes what
    /// the kernel holds of its responses: then it begins anew.
    fn drain_or_leave(&mut self) -> Result<(), Over> {
        let acknowledged = self.acknowledged();
        match &mut self.drain {
            // A client that has not had a response has nothing to lose.
            None if self.link.total.written() > 0 => {
                self.drain = Drain::begin(&self.engine.listener(), acknowledged).map(Box::new);
                if self.drain.is_some() { Ok(()) } else { Err(Over::Leave) }
            }
            None => Err(Over::Leave),
            Some(drain) => match drain.look(acknowledged) {
                Drained::Partly => Ok(()),
                Drained::All => {
                    (self.drain, self.phase_since) = (None, clock::now());
                    Ok(())
                }
                Drained::TooSlow => Err(Over::Stuck),
            },
        }
    }

    /// From now on, how much longer the client may take nothing of what is left of its responses.
    fn patience_with_reader(&mut self, send_timeout: Duration) -> (Instant, Duration) {
        let (now, written) = (clock::now(), self.link.total.written());
        let waited = now.saturating_duration_since(self.pace_since);
        self.pace.moved(written - self.written_before, waited);
        (self.pace_since, self.written_before) = (now, written);
        let since = self.blocked.map_or(self.phase_since, |blocked| blocked.since);
        let stalled = self.link.total.stalled(now).min(now.saturating_duration_since(since));
        (now, self.pace.patience(send_timeout.saturating_sub(stalled)))
    }

    /// Looks whether the client has taken some of what the system holds, which may be more than it takes in
    /// `send_timeout`: the system calls the socket writable only once a third of that has gone.
    fn look(&mut self) -> bool {
        let Some(blocked) = &mut self.blocked else { return false };
        let (now, acknowledged) = (clock::now(), self.io.acknowledged().map_or(0, |acknowledged| acknowledged.bytes));
        let before = blocked.acknowledged.replace(acknowledged).unwrap_or(acknowledged);
        blocked.looked_at = now;
        let more = acknowledged.saturating_sub(before);
        if more > 0 {
            self.link.total.acknowledged(more, now);
            self.pace.lend(more);
        }
        more > 0
    }

    /// Writes what is left, closes the socket in stages, and waits for the tasks of the streams.
    async fn close(mut self, over: Over) {
        let engine = self.engine;
        let has_begun = {
            let mut connection = self.link.lock();
            match over {
                Over::Leave | Over::Stuck => connection.close(Code::NoError, ""),
                // The client has had its GOAWAY, or is gone.
                Over::Gone | Over::Told => connection.lose(),
            }
            connection.has_begun()
        };
        let drained = match over {
            Over::Gone | Over::Stuck => Drained::All,
            // Looks before it writes the GOAWAY: nobody waits for a client that has gone silently to acknowledge that.
            Over::Leave | Over::Told => drain(engine, &mut self, Self::acknowledged, Self::poll_end).await,
        };
        if drained == Drained::TooSlow {
            self.io.reset_when_closed();
        } else if over != Over::Gone {
            let _ = timeout(CLOSE_TIMEOUT, poll_fn(|cx| self.poll_shutdown(cx))).await;
        }
        let Self { link, mut io, is_shut_down, .. } = self;
        let lingering = async {
            if is_shut_down && has_begun && drained == Drained::All {
                linger(engine, &mut io).await;
            }
        };
        let streams_end = poll_fn(|cx| {
            let mut connection = link.lock();
            connection.register_driver(cx);
            if connection.is_serving() { Poll::Pending } else { Poll::Ready(()) }
        });
        tokio::join!(lingering, streams_end);
    }

    /// Sends everything and closes our side, and reads and drops what the client sends, until it has closed its side.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let shut_down = self.poll_shutdown(cx);
        while let Ok(1..) = ready!(poll_discard(&mut self.io, cx)) {}
        shut_down
    }

    /// Sends everything, and closes our side.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_shut_down {
            return Poll::Ready(());
        }
        let has_gone = self.write(cx).is_err();
        if !has_gone && (!self.link.lock().unsent().is_empty() || self.is_unflushed) {
            return Poll::Pending;
        }
        // However it ends.
        let _ = ready!(Pin::new(&mut self.io).poll_shutdown(cx));
        self.is_shut_down = true;
        Poll::Ready(())
    }
}

async fn serve_in_task(engine: Arc<Engine>, stream: Http2Stream, peer: Arc<Peer>) {
    serve_stream(&engine, stream, &peer).await;
}

/// Reads and drops what the client still sends after the GOAWAY, until it closes. Closing at once would reset the
/// connection, and a client that is writing would fail before it has read why it has to leave (RFC 9113 §5.4.1). A stop
/// does not wait for it.
async fn linger(engine: &Engine, io: &mut Io) {
    let mut dropped = vec![0; 4096];
    let reading = async { while let Ok(1..) = io.read(&mut dropped).await {} };
    tokio::select! {
        biased;
        _ = timeout(engine.listener().lingering_time.min(MAX_LINGERING_TIME), reading) => {}
        () = engine.sheds_lingering() => {}
    }
}

/// Waits until the process stops, or nobody listens any more where the connection came from.
pub(super) async fn stopping(engine: &Engine) {
    loop {
        let mut notified = pin!(engine.thread.idle.notified());
        notified.as_mut().enable();
        if engine.thread.is_stopping() || engine.is_closed() {
            return;
        }
        notified.await;
    }
}
