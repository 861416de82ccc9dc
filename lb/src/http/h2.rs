//! HTTP/2 from clients (RFC 9113). The `h2` crate keeps the connection; each stream is carried like an HTTP/1.1
//! connection with one request ([`stream::Http2Stream`]). So limits, rules for fields, framing, retries, time limits
//! and logs are those of HTTP/1.1. This file says how long a connection may stay.

mod head;
pub mod stream;

use std::future::{pending, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::{Builder, Connection};
use h2::{Reason, RecvStream};
use http::Request;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::Engine;
use super::client::{LEAST_IDLE, serve_stream};
use super::io::Io;
use super::pace::{Pace, Total};
use super::stream::ClientStream;
use crate::clock::{self, sleep, sleep_until, timeout};
use crate::exchange::headers::Peer;
use stream::Http2Stream;

/// Streams that a client may have open at once. RFC 9113 §6.5.2 recommends no less.
const MAX_STREAMS: u32 = 100;
/// What a field counts beside its bytes (RFC 9113 §6.5.2).
const FIELD_OVERHEAD: usize = 32;
/// How much content a client may send ahead on all streams together: the windows of all (64 KiB each) and of one more,
/// so that those whose backend does not read hold up no other.
const CONNECTION_WINDOW_BYTES: u32 = (MAX_STREAMS + 1) * 64 * 1024;
/// How much of a response is buffered for one stream.
const MAX_SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Malformed streams after which the connection ends.
const MAX_MALFORMED_STREAMS: usize = 100;
/// How many more requests a client may cancel than it has had answered ("rapid reset", CVE-2023-44487).
const MAX_CANCELLED: u64 = 100;

/// How long a closing connection may take to send what it has still to say.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long in all a client is read after its GOAWAY. It has to do no more than read that, so this is less than the
/// lingering close of HTTP/1.1 takes at most.
const MAX_LINGERING_TIME: Duration = Duration::from_secs(2);

/// What a client sends first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Whether these first bytes of a connection, which the parser of HTTP/1.1 refused, are those of HTTP/2.
pub fn is_preface(read: &[u8]) -> bool {
    // So much has come when the version is refused. The rest may be on its way.
    read.starts_with(b"PRI * HTTP/2.0") && read.iter().zip(PREFACE).all(|(a, b)| a == b)
}

/// Serves a connection to its end. `read`: what was read of it before.
pub async fn serve(engine: Arc<Engine>, mut io: Io, read: Vec<u8>, peer: Peer) {
    let streams = Arc::new(Streams::default());
    let total = Total::new(clock::now());
    let is_tls = io.is_tls();
    let counted = Counted { io: &mut io, read, total: &total };
    let Some(mut connection) = handshake(&engine, counted).await else { return };
    let is_shut_down = match accept(&engine, &mut connection, &streams, &total, is_tls, Arc::new(peer)).await {
        Some(reason) => {
            connection.abrupt_shutdown(reason);
            timeout(CLOSE_TIMEOUT, poll_fn(|cx| connection.poll_closed(cx))).await.is_ok()
        }
        None => true,
    };
    // What streams are left learn now that the client has gone.
    drop(connection);
    let lingering = async {
        if is_shut_down {
            linger(&engine, &mut io).await;
        }
    };
    let streams_end = async {
        while streams.are_open() {
            streams.closed.notified().await;
        }
    };
    tokio::join!(lingering, streams_end);
}

/// Reads and drops what the client still sends after the GOAWAY, until it closes. Closing at once would reset the
/// connection, and a client that is writing would fail before it has read why it has to leave (RFC 9113 §5.4.1). A stop
/// does not wait for it.
async fn linger(engine: &Engine, io: &mut (impl AsyncRead + Unpin)) {
    let mut dropped = vec![0; 4096];
    let reading = async { while let Ok(1..) = io.read(&mut dropped).await {} };
    tokio::select! {
        biased;
        _ = timeout(engine.listener().lingering_time.min(MAX_LINGERING_TIME), reading) => {}
        () = engine.sheds_lingering() => {}
    }
}

/// Reads the client's preface. `None`: it did not come in time, or was none, or the connection has to leave.
async fn handshake<T: AsyncRead + AsyncWrite + Unpin>(engine: &Engine, io: T) -> Option<Connection<T, Bytes>> {
    let limits = engine.listener().limits();
    // Beyond it nothing is decoded. Twice the limits, which have an answer of their own.
    let fields_bytes = 2 * (limits.head_bytes() + FIELD_OVERHEAD * limits.fields());
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(fields_bytes).unwrap_or(u32::MAX))
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(MAX_SEND_BUFFER_BYTES)
        .enable_connect_protocol()
        .max_local_error_reset_streams(Some(MAX_MALFORMED_STREAMS));
    tokio::select! {
        biased;
        connection = builder.handshake(io) => connection.ok(),
        () = must_leave(engine, clock::now()) => None,
        () = sleep(engine.listener().header_timeout) => None,
    }
}

/// Accepts streams until the connection is over. `Some`: what to tell the client in closing; `None`: it has gone.
///
/// A connection without streams is idle, whatever frames it sends. It may be so for `header_timeout` until its first
/// request, then for `keepalive_timeout`, and less when its place is wanted. While it has only to send what is left of its
/// responses, the client has to take some of it within `send_timeout`, at `min_rate`.
async fn accept<T: AsyncRead + AsyncWrite + Unpin>(
    engine: &Arc<Engine>,
    connection: &mut Connection<T, Bytes>,
    streams: &Arc<Streams>,
    total: &Total,
    is_tls: bool,
    peer: Arc<Peer>,
) -> Option<Reason> {
    let mut patience = engine.listener().header_timeout;
    let mut phase = Phase::Idle;
    let (mut phase_since, mut written_before) = (clock::now(), total.written());
    let mut is_leaving = false;
    // A stop waits for what is still to be sent, too.
    let mut exchange = None;
    loop {
        let is = Phase::of(streams, connection, total);
        if std::mem::replace(&mut phase, is) != is {
            (phase_since, written_before) = (clock::now(), total.written());
        }
        let is_idle = phase == Phase::Idle;
        exchange = (!is_idle).then(|| exchange.take().unwrap_or_else(|| engine.stop.in_exchange()));
        // Where only the listener is closed, the client has time to read the GOAWAY: a request that crosses it is served.
        if is_idle && is_leaving && (engine.stop.has_begun() || !engine.is_closed()) {
            return Some(Reason::NO_ERROR);
        }
        if streams.are_cancelled_too_often() {
            tracing::debug!(client = peer.as_str(), "an HTTP/2 client cancels too many requests");
            return Some(Reason::ENHANCE_YOUR_CALM);
        }
        if !is_leaving && (engine.is_closed() || !is_idle && !engine.keeps_clients()) {
            connection.graceful_shutdown();
            is_leaving = true;
        }
        let late = async {
            match phase {
                Phase::Serving => pending().await,
                Phase::Sending => takes_no_more(engine, total, phase_since, written_before).await,
                Phase::Flushing => sleep_until((phase_since + engine.listener().send_timeout).into()).await,
                Phase::Idle => sleep_until((phase_since + patience).into()).await,
            }
        };
        let next = poll_fn(|cx| match connection.poll_accept(cx) {
            Poll::Ready(accepted) => Poll::Ready(Next::Accepted(accepted)),
            Poll::Pending if !is_idle && Phase::of(streams, connection, total) != phase => Poll::Ready(Next::Phase),
            Poll::Pending => Poll::Pending,
        });
        tokio::select! {
            biased;
            next = next => match next {
                Next::Accepted(Some(Ok((request, respond)))) => {
                    patience = engine.listener().keepalive_timeout;
                    let stream = Http2Stream::new(request, respond, is_tls, total.clone());
                    clock::spawn(carry(Arc::clone(engine), stream, Arc::clone(&peer), OpenStream::new(streams)));
                }
                Next::Accepted(Some(Err(_)) | None) => return None,
                Next::Phase => {}
            },
            () = streams.closed.notified() => {}
            () = late => return Some(Reason::NO_ERROR),
            () = must_leave(engine, phase_since), if is_idle => return Some(Reason::NO_ERROR),
            () = stopping(engine), if !is_leaving => {}
        }
    }
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
    Idle,
}

impl Phase {
    fn of<T: AsyncRead + AsyncWrite + Unpin>(
        streams: &Streams,
        connection: &Connection<T, Bytes>,
        total: &Total,
    ) -> Self {
        match (streams.are_open(), connection.has_streams(), total.is_unflushed()) {
            (true, ..) => Self::Serving,
            (false, true, _) => Self::Sending,
            (false, false, true) => Self::Flushing,
            (false, false, false) => Self::Idle,
        }
    }
}

/// Waits until the client has taken nothing for too long, or too little in all since then, when it had taken so much.
async fn takes_no_more(engine: &Engine, total: &Total, since: Instant, written_before: u64) {
    loop {
        let left = {
            let (now, listener) = (clock::now(), engine.listener());
            let waited = now.saturating_duration_since(since);
            let mut pace = Pace::new(listener.min_rate, None);
            pace.moved(total.written() - written_before, waited);
            pace.patience(listener.send_timeout.saturating_sub(total.stalled(now).min(waited)))
        };
        if left.is_zero() {
            return;
        }
        sleep(left).await;
    }
}

/// Counts what is written to a client.
struct Counted<'a, T> {
    io: T,
    /// What was read before.
    read: Vec<u8>,
    total: &'a Total,
}

impl<T> Counted<'_, T> {
    fn count(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.total.set_unflushed(true);
        if let Poll::Ready(Ok(count @ 1..)) = written {
            self.total.wrote(count, clock::now());
        }
        written
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<'_, T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.read.is_empty() {
            let count = self.read.len().min(buf.remaining());
            buf.put_slice(&self.read[..count]);
            self.read.drain(..count);
            if self.read.is_empty() {
                self.read = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<'_, T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.total.set_unflushed(false);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

type Accepted = Result<(Request<RecvStream>, h2::server::SendResponse<Bytes>), h2::Error>;

#[expect(clippy::large_enum_variant, reason = "one at a time, on its way to where it is used")]
enum Next {
    Accepted(Option<Accepted>),
    /// The connection is in another one.
    Phase,
}

async fn carry(engine: Arc<Engine>, stream: Http2Stream, peer: Arc<Peer>, open: OpenStream) {
    let is_cancelled = serve_stream(&engine, ClientStream::Http2(Box::new(stream)), &peer).await;
    let count = if is_cancelled { &open.0.cancelled } else { &open.0.answered };
    count.fetch_add(1, Ordering::Relaxed);
}

/// Waits until a connection that is idle since then has to leave: the process stops, or the place is wanted.
async fn must_leave(engine: &Engine, idle_since: Instant) {
    let is_shed = || {
        let is_shed = clock::now().saturating_duration_since(idle_since) >= LEAST_IDLE
            && engine.room.is_full()
            && engine.stop.sheds_one();
        if is_shed {
            engine.control.metrics.client_connections_shed.inc();
        }
        is_shed
    };
    called(engine, || engine.stop.has_begun() || is_shed()).await;
}

/// Waits until the process stops, or nobody listens any more where the connection came from.
pub(super) async fn stopping(engine: &Engine) {
    called(engine, || engine.stop.has_begun() || engine.is_closed()).await;
}

/// Asks at once, and again whenever idle connections are called.
async fn called(engine: &Engine, mut is_meant: impl FnMut() -> bool) {
    loop {
        let mut notified = pin!(engine.stop.idle.notified());
        notified.as_mut().enable();
        if is_meant() {
            return;
        }
        notified.await;
    }
}

/// The streams of one connection that are being served, and how those that were have ended.
#[derive(Default)]
struct Streams {
    open: AtomicUsize,
    answered: AtomicU64,
    cancelled: AtomicU64,
    /// Called when the last one has ended.
    closed: Notify,
}

/// Counts a stream as open until dropped.
struct OpenStream(Arc<Streams>);

impl Streams {
    fn are_open(&self) -> bool {
        self.open.load(Ordering::Acquire) > 0
    }

    fn are_cancelled_too_often(&self) -> bool {
        let cancelled = self.cancelled.load(Ordering::Relaxed);
        cancelled > self.answered.load(Ordering::Relaxed) + MAX_CANCELLED
    }
}

impl OpenStream {
    fn new(streams: &Arc<Streams>) -> Self {
        streams.open.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(streams))
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.closed.notify_one();
        }
    }
}
