//! Both directions of one exchange: the upload from the client to a backend, and the download back. They are
//! independent and both always make progress: one poll drives both at every wake-up, including flushes, splice and
//! tunnels. So a backend may respond before it has read the whole request, a client may send everything before it
//! reads, and a client that disconnects is noticed at any time.
//!
//! The states of [`Upload`] and [`Download`] say what each direction does; [`upload`] and [`download`] do it. [`waits`]
//! says what they wait for, and for how long.

mod download;
mod upload;
mod waits;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};

use self::download::failure_of;
use self::waits::Wait;
use super::Engine;
use super::body::ResponseBody;
use super::buffers::Buffers;
use super::burst::wake_after_others;
use super::content::{Content, Cursor};
use super::disconnect::DisconnectWatcher;
use super::h1::response::ResponseHead;
use super::interim::InterimRate;
use super::pace::Pace;
use super::splice::Pipe;
use super::stream::ClientStream;
use super::timer::Timer;
use super::tunnel::Tunnel;
use super::upstream::{Disposition, Upstream};
use crate::clock;
use crate::config::{HalfClose, ListenerSettings};
use crate::exchange::limits::{BackendLimits, ClientLimits};
use crate::exchange::reply::Reply;
use crate::failure::{AttemptError, Detail, Failure};
use crate::message::Parsed;
use crate::message::framing::Framing;
use crate::message::limits::Limits;
use crate::plant::Bug;
use crate::pool::Plan;

const READ_BYTES: usize = 16 * 1024;
const LARGE_READ_BYTES: usize = 64 * 1024;
/// How much is read at once while content is moved as fast as it can be read and written.
pub(crate) const MAX_READ_BYTES: usize = 256 * 1024;
/// A client that is waited for longer than this gets smaller pieces again.
const MAX_LARGE_READ_WAIT: Duration = Duration::from_millis(20);
/// How much of pipelined requests is read while this one is answered.
const MAX_PIPELINED_BYTES: usize = 16 * 1024;

/// How much may be read from both sides together before other exchanges get their turn.
const MAX_BYTES_AT_ONCE: u64 = 1024 * 1024;
/// The same for chunked content. Chunks may have a byte each, which costs a hundred times as much as plain content.
const MAX_CHUNKED_BYTES_AT_ONCE: u64 = 128 * 1024;
/// How often the client is read before the other direction gets its turn. Without this limit, a client that sends as
/// fast as it is read would use up the task's tokio budget, and the backend would not be read.
const MAX_CONSECUTIVE_READS: usize = 16;

/// The shortest time after which a backend may give up on a client that does not read its response.
const MIN_CLIENT_LAG: Duration = Duration::from_secs(1);

/// More than a TLS stream may hold after reading it from its socket: its read buffer and one record.
const MAX_UNSEEN_TLS_BYTES: u64 = 128 * 1024;

/// State of the upload, from the client to a backend.
#[derive(Debug)]
pub(super) enum Upload {
    /// No backend is chosen. Received content is buffered.
    Buffering,
    /// Head and content are being sent. More content may have to be read from the client.
    Sending(RequestWriter),
    /// The client has sent everything, but the backend has not accepted all of it yet.
    Flushing(RequestWriter),
    /// Every byte of the request was written to the backend.
    Sent,
    /// Nobody needs the rest of the request.
    Abandoned(AbandonReason),
}

/// What still has to be written to the backend: `to_backend`, then the content that the cursor has not read yet.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RequestWriter {
    cursor: Cursor,
    /// The request is sent without its content, which nobody reads.
    omits_body: bool,
    /// How much of `to_backend` has been written.
    written: usize,
    /// TLS may hold back some of the bytes that were written.
    is_unflushed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AbandonReason {
    /// The backend accepts no more of the request. Its response may still arrive.
    Stopped,
    /// The request is refused.
    Refused,
}

/// State of the download, from the backend to the client. Interim responses pass while it waits.
pub(super) enum Download {
    /// Waits for the head of the final response.
    Waiting,
    /// The head has arrived; it ends at this offset in `from_backend`. Nothing of it has been sent, so another response
    /// may still replace it.
    HeadReceived(usize),
    /// Content is passed on from the backend.
    Sending(ResponseContent),
    /// Content of our own still has to be sent.
    Replying(Bytes),
    /// The rest of the response is being written to the client.
    Flushing,
    /// Every byte was written to the client.
    Sent,
    Tunnel(Box<Tunnel>),
}

/// The content of a backend's response.
pub(super) struct ResponseContent {
    body: ResponseBody,
    /// Used while the content is spliced.
    pipe: Option<Pipe>,
    /// No pipe is available, so the content is copied.
    is_copied: bool,
    /// How much is read at once. Larger pieces wake both sides less often; smaller ones bound what a slow client holds.
    read_bytes: usize,
    /// The content ends here with an error. What came before it still has to be sent to the client.
    has_broken: bool,
}

/// What the exchange has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TransferEvent {
    /// The whole body is buffered.
    BodyBuffered,
    /// The head of the final response has arrived.
    Head,
    /// The response was sent completely.
    Sent,
    Failed(Failure),
}

pub(super) struct Transfer<'a> {
    engine: &'a Engine,
    listener: &'a ListenerSettings,
    /// The limits that apply to the client.
    limits: ClientLimits,
    /// Limits for the backend of the current attempt that differ from its pool's.
    own_limits: Option<Box<BackendLimits>>,
    pub client: &'a mut ClientStream,
    pub buffers: &'a mut Buffers,
    /// Details of the backend's failure, for the log.
    detail: Option<Detail>,
    /// The client was within the limit on a single wait, but below its minimum rate.
    pub has_low_rate: bool,
    pub body: Content,
    upload: Upload,
    download: Download,
    upstream: Option<Upstream>,
    /// The pool's plan for the current attempt.
    plan: Option<Arc<Plan>>,
    /// How many bytes of `to_client` were written.
    written: usize,
    /// TLS still holds back some of them.
    is_unflushed: bool,
    /// How many bytes at the beginning of `to_client` are complete interim responses. They are always sent once they
    /// are there.
    interim_bytes: usize,
    interim: InterimRate,
    /// The deadline for a head that has begun to arrive, however slowly it drips, once the backend has the request.
    head_by: Option<Instant>,
    /// The client has closed its sending side, and is answered nevertheless.
    has_half_closed: bool,
    disconnect_watcher: Option<DisconnectWatcher>,
    /// The rate at which the client reads its response.
    pace: Pace,
    /// What the client, and the backend, had acknowledged when that was last asked for; `None` since bytes were last
    /// written.
    client_acknowledged: Option<u64>,
    backend_acknowledged: Option<u64>,
    /// What the upload waited for in the last turn, and how much time it has left.
    upload_wait: Option<Wait>,
    upload_waited: Duration,
    /// How long the download's current wait has lasted.
    download_waited: Duration,
    moved: BytesMoved,
    /// Bytes of the client that were read and dropped.
    dropped: u64,
    /// Whether the response allows another request on the client's connection.
    keeps_client: bool,
    /// Only the end of the connection tells the client that the response is complete.
    is_until_close: bool,
    /// How much longer the download has waited for the client than for the backend, since the backend was last behind.
    client_lag: Duration,
    /// The client has read nothing, or too little, within its limits.
    is_stuck: bool,
    /// Bytes of content that were prepared for the client; some may still be in `to_client`.
    ready: u64,
}

/// Bytes that were moved in this turn.
#[derive(Debug, Clone, Copy, Default)]
struct BytesMoved {
    from_client: u64,
    to_backend: u64,
    from_backend: u64,
    to_client: u64,
    /// A direction has stopped although it may be able to continue at once: it was the other one's turn, or its state
    /// has changed. The end of a flush is such a change: what the direction waits for now is not what it waited for.
    is_unfinished: bool,
}

/// The result of one poll of both directions.
#[derive(Debug, Clone, Copy)]
enum PollOutcome {
    Event(TransferEvent),
    /// They may be able to continue at once.
    Unfinished,
    /// Each direction is woken when it can continue, or has nothing to do.
    Blocked,
}

/// In which state an exchange left the client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientConnectionState {
    /// It may carry the next request.
    Reusable,
    /// No more bytes will be exchanged on it.
    Complete,
    /// The client may still be sending and may not have read everything: a complete response, or a truncated one whose
    /// framing shows that it is.
    Unread,
    /// A regular close would make a truncated response look complete, or the client does not read it.
    CutOff,
}

impl<'a> Transfer<'a> {
    pub(super) fn new(
        engine: &'a Engine,
        listener: &'a ListenerSettings,
        limits: ClientLimits,
        client: &'a mut ClientStream,
        buffers: &'a mut Buffers,
        body: Content,
    ) -> Self {
        let pace = Pace::new(limits.min_rate, limits.send_timeout, client.total());
        Self {
            engine,
            listener,
            limits,
            client,
            buffers,
            body,
            upload: Upload::Buffering,
            download: Download::Waiting,
            upstream: None,
            plan: None,
            own_limits: None,
            detail: None,
            has_low_rate: false,
            written: 0,
            is_unflushed: false,
            interim_bytes: 0,
            interim: InterimRate::default(),
            head_by: None,
            has_half_closed: false,
            disconnect_watcher: None,
            pace,
            client_acknowledged: None,
            backend_acknowledged: None,
            upload_wait: None,
            upload_waited: Duration::ZERO,
            download_waited: Duration::ZERO,
            moved: BytesMoved::default(),
            dropped: 0,
            keeps_client: false,
            is_until_close: false,
            client_lag: Duration::ZERO,
            is_stuck: false,
            ready: 0,
        }
    }

    /// Waits for `event`. Fails if the client disconnects, if an operator kills the exchange, or with `late` after
    /// `limit`.
    pub(super) async fn wait_for<T>(
        &mut self,
        mut event: impl Future<Output = Result<T, AttemptError>> + Unpin,
        is_killed: impl Fn() -> bool,
        now: Instant,
        (limit, late): (Duration, Failure),
        timer: &mut Timer,
    ) -> Result<T, AttemptError> {
        let happened = timer.limit(now, limit, |cx| match Pin::new(&mut event).poll(cx) {
            Poll::Ready(happened) => Poll::Ready(happened),
            Poll::Pending if is_killed() => Poll::Ready(Err(Failure::Killed.into())),
            // An HTTP/2 stream that waited to send an interim response may get its turn now, and other streams wait for
            // it.
            Poll::Pending => match self.poll_write_client(cx).and_then(|_| self.watch_client(cx)) {
                Err(failure) => Poll::Ready(Err(failure.into())),
                Ok(()) => Poll::Pending,
            },
        });
        happened.await.unwrap_or(Err(late.into()))
    }

    /// Begins an attempt: sends the bytes in `to_backend` and then the content. Forgets the results of earlier
    /// attempts. `omits_body`: the content is not sent. Otherwise its beginning must still be buffered.
    pub(super) fn open(
        &mut self,
        upstream: Upstream,
        plan: Arc<Plan>,
        limits: Option<Box<BackendLimits>>,
        omits_body: bool,
    ) -> Result<(), Failure> {
        let Buffers { from_client, to_backend, from_backend, response, .. } = &mut *self.buffers;
        let mut writing = RequestWriter { omits_body, ..RequestWriter::default() };
        if !omits_body {
            // Partial content would be read as the next request on the connection.
            if !self.body.has_beginning() {
                return Err(Failure::Internal);
            }
            self.body.take_in(from_client)?;
            self.body.read(&mut writing.cursor, from_client, to_backend);
        }
        from_backend.clear();
        response.clear();
        self.upload = Upload::Sending(writing);
        self.upload_wait = None;
        self.download = Download::Waiting;
        self.interim = InterimRate::default();
        self.head_by = None;
        self.download_waited = Duration::ZERO;
        self.upstream = Some(upstream);
        self.plan = Some(plan);
        self.own_limits = limits;
        Ok(())
    }

    /// Abandons the current attempt and its connection.
    pub(super) fn give_up(&mut self) {
        self.upstream = None;
        self.upload = Upload::Buffering;
        self.download = Download::Waiting;
        self.head_by = None;
        self.buffers.to_backend.clear();
    }

    /// Applies other limits to the client from here on. `keep`: how many bytes of the content may be kept for a retry.
    #[cold]
    pub(super) fn limit(&mut self, limits: ClientLimits, keep: usize) {
        self.limits = limits;
        self.body.limit(limits.max_body_bytes, keep);
        let total = self.client.total();
        self.body.pace.require(limits.min_rate, limits.body_timeout, total);
        self.pace.require(limits.min_rate, limits.send_timeout, total);
    }

    /// Sends the response whose head has been received. `write` writes the head for the client, and returns how the
    /// content is framed and whether the connection is kept alive.
    pub(super) fn pass(
        &mut self,
        write: impl FnOnce(&mut Buffers, &Content) -> (ResponseBody, bool),
    ) -> Result<(), Failure> {
        let (Download::HeadReceived(head), Some(Upstream::H1(h1))) = (&self.download, &mut self.upstream) else {
            return Ok(());
        };
        let head = *head;
        h1.keeps_alive = self.buffers.response.keeps_alive();
        let before = self.buffers.to_client.len();
        let (mut body, keeps_client) = write(self.buffers, &self.body);
        self.keeps_client = keeps_client;
        self.is_until_close = body.is_until_close();
        let bad = |_| Failure::ResponseBodyMalformed;
        let Buffers { to_client, from_backend, .. } = &mut *self.buffers;
        let content = &from_backend[head..];
        h1.has_surplus = match from_backend.space_for_head(head, to_client.len()) {
            // The rewritten head replaces the received one in place, so that the content need not be moved.
            Some(start) if before == 0 && body.is_plain() => {
                let used = body.pass(content).map_err(bad)?;
                let has_surplus = used < content.len();
                from_backend.truncate(head + used);
                from_backend.put_head(start, to_client);
                self.written = start;
                has_surplus
            }
            _ => {
                let content = &mut from_backend[head..];
                body.take(content, to_client).map_err(bad)? < content.len()
            }
        };
        from_backend.clear();
        self.ready = body.sent;
        self.download = match body.is_done() {
            true => Download::Flushing,
            false => Download::Sending(ResponseContent {
                body,
                pipe: None,
                is_copied: false,
                read_bytes: LARGE_READ_BYTES,
                has_broken: false,
            }),
        };
        Ok(())
    }

    /// Continues as a tunnel. `write` writes the head for the client to `to_client`.
    pub(super) fn switch(&mut self, write: impl FnOnce(&mut Buffers)) {
        let (Download::HeadReceived(head), Some(plan)) = (&self.download, &self.plan) else { return };
        let own = self.own_limits.as_ref().map(|own| own.tunnel_timeout);
        let (head, tunnel_timeout) = (*head, own.unwrap_or(plan.settings.tunnel_timeout));
        write(self.buffers);
        let mut down = std::mem::take(&mut self.buffers.to_client);
        down.drain(..self.written);
        self.written = 0;
        let head_bytes = down.len();
        down.extend_from_slice(&self.buffers.from_backend[head..]);
        let early = self.buffers.from_client.split_off(self.body.end());
        self.download = Download::Tunnel(Box::new(Tunnel::new(early, down, head_bytes as u64, tunnel_timeout)));
    }

    /// Sends a response of our own. `write` gets whether the connection is kept alive, and writes the head for the
    /// client from `response`, as for a backend's response. `may_keep`: whether the response allows keeping the
    /// connection. The rest of the request is dropped.
    pub(super) fn reply(&mut self, reply: Reply, may_keep: bool, write: impl FnOnce(&mut Buffers, bool)) {
        self.upstream = None;
        self.client.answer_ourselves();
        self.buffers.to_client.truncate(self.interim_bytes);
        let content = self.buffers.take_reply(reply);
        let has_content = !matches!(self.buffers.response.framing(), Framing::None);
        self.keeps_client =
            may_keep && self.body.is_done() && self.buffers.request.keeps_alive() && self.engine.keeps_clients();
        write(self.buffers, self.keeps_client);
        self.buffers.from_backend.clear();
        self.ready = 0;
        // The client has not been waited for yet.
        self.download_waited = Duration::ZERO;
        self.upload = Upload::Abandoned(AbandonReason::Refused);
        self.download = Download::Replying(if has_content { content } else { Bytes::new() });
        self.reply_on();
    }

    /// Continues with content of our own, once the client has accepted what precedes it.
    fn reply_on(&mut self) {
        let Download::Replying(content) = &mut self.download else { return };
        let piece = content.len().min(LARGE_READ_BYTES);
        self.buffers.to_client.extend_from_slice(&content[..piece]);
        content.advance(piece);
        self.ready += piece as u64;
        if content.is_empty() {
            self.download = Download::Flushing;
        }
    }

    /// Moves both directions until something happens that the exchange has to know. Apart from [`Self::wait_for`], this
    /// is where an exchange waits.
    pub(super) async fn run(&mut self, is_killed: impl Fn() -> bool, now: Instant, timer: &mut Timer) -> TransferEvent {
        timer.end();
        // The current waits; most turns wait for nothing.
        let mut waits = None;
        poll_fn(|cx| {
            let mut bytes_left = self.max_at_once();
            loop {
                let turn = self.poll(cx);
                bytes_left = bytes_left.saturating_sub(self.moved.from_client + self.moved.from_backend);
                if !matches!(turn, PollOutcome::Blocked) || self.moved.is_anything() {
                    self.count_moved(waits.take(), timer);
                }
                match turn {
                    PollOutcome::Event(happened) => return Poll::Ready(happened),
                    PollOutcome::Unfinished if bytes_left > 0 => continue,
                    PollOutcome::Blocked | PollOutcome::Unfinished if is_killed() => {
                        return Poll::Ready(TransferEvent::Failed(Failure::Killed));
                    }
                    PollOutcome::Unfinished => {
                        wake_after_others(cx);
                        return Poll::Pending;
                    }
                    PollOutcome::Blocked => {}
                }
                if waits.is_none() {
                    // The first wait begins with the run.
                    let now = if timer.has_waited() { clock::now() } else { now };
                    timer.begin(now, waits.insert(self.waits()).limit());
                }
                ready!(timer.poll_elapsed(cx));
                self.count_waits(waits.take(), timer);
                self.download_waited += timer.waited();
                if let Some(happened) = self.late() {
                    return Poll::Ready(happened);
                }
            }
        })
        .await
    }

    /// How much may be read before other exchanges get their turn.
    fn max_at_once(&self) -> u64 {
        let has_chunks = match &self.download {
            Download::Sending(content) => !content.body.is_plain(),
            _ => false,
        };
        if has_chunks || self.body.is_chunked() { MAX_CHUNKED_BYTES_AT_ONCE } else { MAX_BYTES_AT_ONCE }
    }

    /// The received head. No part of it has been sent.
    pub(super) fn response(&self) -> &ResponseHead {
        &self.buffers.response
    }

    /// Details of a failure that the response's head caused. Call this before the attempt is abandoned.
    #[cold]
    pub(super) fn explain(&mut self, failure: Failure) -> Option<Detail> {
        if let Some(detail) = self.detail.take() {
            return Some(detail);
        }
        if self.upstream.is_none() || !matches!(self.download, Download::Waiting) {
            return None;
        }
        let limits = self.plan.as_ref().map_or_else(Limits::default, |plan| plan.settings.limits());
        let Buffers { from_backend, request, response, .. } = &mut *self.buffers;
        // Parsing the same bytes again finds the same error.
        response.clear();
        let Parsed::Rejected(bad) = response.parse(from_backend, request.method(), &limits) else { return None };
        (failure_of(bad) == failure).then(|| match failure {
            // The size of the head is unknown: reading stops at the limit.
            Failure::ResponseHeadTooLarge => {
                Detail::Limit { setting: "[[pool]] max_head_bytes", limit: limits.head_bytes(), value: None }
            }
            Failure::ResponseTooManyFields => {
                let value = Some(fields_in(from_backend));
                Detail::Limit { setting: "[[pool]] max_fields", limit: limits.fields(), value }
            }
            _ => Detail::Reason(bad.reason()),
        })
    }

    /// Whether every byte of the request was written to the backend.
    pub(super) fn has_sent_request(&self) -> bool {
        matches!(self.upload, Upload::Sent)
    }

    /// How many bytes of content were sent to the client. In the unsent part, framing counts as content.
    pub(super) fn content_sent(&self) -> u64 {
        self.ready.saturating_sub((self.buffers.to_client.len() - self.written) as u64)
    }

    /// Decides what happens to the backend's connection, after the response has been sent.
    pub(super) fn release(&mut self) -> Disposition {
        match self.upstream.take() {
            Some(upstream) => upstream.release(&self.upload, &self.download),
            None => Disposition::Close,
        }
    }

    /// The state of the client's connection at the end of the exchange.
    pub(super) fn ending(&self) -> ClientConnectionState {
        match (&self.download, &self.upload) {
            // On a stream, a connection reset is passed on as a stream error (RFC 8441 §5).
            (Download::Tunnel(tunnel), _) if tunnel.has_backend_broken() && self.client.is_stream() => {
                ClientConnectionState::CutOff
            }
            (Download::Tunnel(tunnel), _) if tunnel.has_client_ended() => ClientConnectionState::Complete,
            // If the client is still sending, closing at once would reset the connection and truncate what it was sent.
            (Download::Tunnel(_), _) => ClientConnectionState::Unread,
            (Download::Sent, Upload::Abandoned(AbandonReason::Refused)) if self.keeps_client => {
                ClientConnectionState::Reusable
            }
            (Download::Sent, Upload::Abandoned(AbandonReason::Refused)) => ClientConnectionState::Unread,
            (Download::Sent, _) if !self.body.is_done() => ClientConnectionState::Unread,
            (Download::Sent, _) if self.keeps_client => ClientConnectionState::Reusable,
            (Download::Sent, _) if self.buffers.from_client.len() > self.body.end() => ClientConnectionState::Unread,
            (Download::Sent, _) if self.may_client_send_more() => ClientConnectionState::Unread,
            (Download::Sent, _) => ClientConnectionState::Complete,
            _ if self.is_until_close || self.is_stuck || self.client.is_stream() => ClientConnectionState::CutOff,
            _ if Bug::TakenBack.is_planted() => ClientConnectionState::CutOff,
            // A reset would also discard unread parts of this response and of those before it.
            _ => ClientConnectionState::Unread,
        }
    }

    /// Whether a correct client may still be sending though its request was read completely: the next request, since it
    /// does not know yet that the connection ends, or `close_notify`.
    fn may_client_send_more(&self) -> bool {
        let may_alert = self.client.is_tls() && self.listener.half_close == HalfClose::Answer;
        !self.client.is_stream() && (self.buffers.request.keeps_alive() || may_alert)
    }

    /// Drives both directions. The download goes first: an HTTP/2 stream whose response is complete reads as closed.
    fn poll(&mut self, cx: &mut Context<'_>) -> PollOutcome {
        let happened = match self.poll_download(cx) {
            Ok(None) if Bug::HalfDuplex.is_planted() && !self.buffers.to_client.is_empty() => Ok(None),
            Ok(None) => self.poll_upload(cx),
            happened => happened,
        };
        match happened {
            Err(failure) => PollOutcome::Event(TransferEvent::Failed(failure)),
            Ok(Some(happened)) => PollOutcome::Event(happened),
            Ok(None) if self.moved.is_unfinished => PollOutcome::Unfinished,
            Ok(None) => PollOutcome::Blocked,
        }
    }
}

impl BytesMoved {
    fn is_anything(&self) -> bool {
        self.is_unfinished || self.from_client + self.to_backend + self.from_backend + self.to_client > 0
    }
}

/// The number of field lines in a head.
fn fields_in(received: &[u8]) -> usize {
    let head = received.windows(4).position(|four| four == b"\r\n\r\n").map_or(received, |end| &received[..end + 2]);
    head.windows(2).filter(|two| *two == b"\r\n").count().saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::http::io::Io;

    // Even with "answer", the response was cut off if the backend had accepted no more of the request.
    #[tokio::test]
    async fn a_client_that_half_closes_a_stalled_upload_is_answered_where_configured() {
        let engine = Engine::alone();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        for (half_close, expected) in [(HalfClose::Answer, Ok(())), (HalfClose::Cancel, Err(Failure::ClientGone))] {
            let settings = ListenerSettings { half_close, ..engine.settings };
            let limits = ClientLimits::of_listener(&settings);
            let mut peer = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("a listener");
            let (socket, _) = listener.accept().await.expect("a client");
            let mut client = ClientStream::Io(Io::Tcp(socket));
            let mut buffers = Buffers::take();
            let content = Content::new(Framing::Length(4), 0, None, 0, Pace::new(None, Duration::ZERO, None));
            let mut transfer = Transfer::new(&engine, &settings, limits, &mut client, &mut buffers, content);
            transfer.upload = Upload::Abandoned(AbandonReason::Stopped);
            transfer.download = Download::Flushing;
            peer.write_all(b"rest").await.expect("a peer");
            peer.shutdown().await.expect("an open socket");
            // Once end of file has arrived.
            let ended = poll_fn(|cx| match transfer.poll_upload(cx) {
                Ok(_) if !transfer.has_half_closed => Poll::Pending,
                ended => Poll::Ready(ended.map(drop)),
            });
            assert_eq!(ended.await, expected, "{half_close:?}");
        }
    }
}
