//! Both directions of one exchange: the upload from the client to a backend, and the download back. They are
//! independent and both always make progress: one poll drives both at every wake-up, including flushes, splice and
//! tunnels. So a backend may respond before it has read the whole request, a client may send everything before it
//! reads, and a client that disconnects is noticed at any time.
//!
//! The states of [`Upload`] and [`Download`] say what each direction does. [`waits`] says what they wait for, and for
//! how long.

mod waits;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes};
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;

use self::waits::Wait;
use super::Engine;
use super::body::ResponseBody;
use super::buffers::Buffers;
use super::burst::wake_after_others;
use super::content::{Content, Cursor};
use super::disconnect::DisconnectWatcher;
use super::h1::response::{BadResponse, ResponseHead};
use super::h1::rewrite::{self, Persistence, ResponsePlan};
use super::interim::InterimRate;
use super::pace::Pace;
use super::splice::{self, Pipe};
use super::stream::ClientStream;
use super::timer::Timer;
use super::tunnel::{Tunnel, TunnelProgress};
use super::upstream::{Disposition, Upstream};
use crate::clock;
use crate::config::{HalfClose, ListenerSettings};
use crate::exchange::limits::{BackendLimits, ClientLimits};
use crate::exchange::reply::Reply;
use crate::failure::{AttemptError, Detail, Failure};
use crate::message::framing::Framing;
use crate::message::limits::Limits;
use crate::message::{Parsed, Version};
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

    // --- The upload.

    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<Option<TransferEvent>, Failure> {
        if matches!(self.download, Download::Tunnel(_)) {
            return Ok(None);
        }
        match self.upload {
            Upload::Buffering => return self.poll_buffer_body(cx),
            Upload::Sending(_) | Upload::Flushing(_) => self.poll_send(cx)?,
            Upload::Sent => self.watch_client(cx)?,
            // A retry may still need the body.
            Upload::Abandoned(AbandonReason::Stopped) if matches!(self.download, Download::Waiting) => {
                self.watch_client(cx)?
            }
            Upload::Abandoned(AbandonReason::Stopped) if self.body.is_done() => self.watch_client(cx)?,
            // Some clients read only after sending everything: read the rest and drop it.
            Upload::Abandoned(AbandonReason::Stopped) => self.drop_input(cx)?,
            Upload::Abandoned(AbandonReason::Refused) if self.keeps_client => {}
            // The refusal is sent for as long as the client accepts it.
            Upload::Abandoned(AbandonReason::Refused) => drop(self.drop_input(cx)),
        }
        Ok(None)
    }

    /// Buffers a small body completely, so that no backend waits for a slow client.
    fn poll_buffer_body(&mut self, cx: &mut Context<'_>) -> Result<Option<TransferEvent>, Failure> {
        loop {
            self.body.take_in(&mut self.buffers.from_client)?;
            if self.body.is_done() {
                return Ok(Some(TransferEvent::BodyBuffered));
            }
            let missing = self.body.bytes_left(&self.buffers.from_client).and_then(|left| usize::try_from(left).ok());
            self.buffers.from_client.reserve(missing.unwrap_or(READ_BYTES));
            match poll_read_buf(Pin::new(&mut *self.client), cx, &mut self.buffers.from_client) {
                Poll::Ready(Ok(count)) if count > 0 => self.moved.from_client += count as u64,
                Poll::Ready(_) => return Err(Failure::ClientGone),
                Poll::Pending => return Ok(None),
            }
        }
    }

    /// Sends as much of the request as possible.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        for _ in 0..MAX_CONSECUTIVE_READS {
            if !self.poll_write_backend(cx) {
                // The client is not read meanwhile.
                return self.poll_disconnect(cx);
            }
            let Upload::Sending(writing) = &mut self.upload else { return self.watch_client(cx) };
            let Buffers { to_backend, from_client, .. } = &mut *self.buffers;
            from_client.reserve(READ_BYTES);
            match poll_read_buf(Pin::new(&mut *self.client), cx, &mut (&mut *from_client).limit(READ_BYTES)) {
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.moved.from_client += count as u64;
                    self.body.take_in(from_client)?;
                    self.body.read(&mut writing.cursor, from_client, to_backend);
                }
                Poll::Ready(_) => return Err(Failure::ClientGone),
                Poll::Pending => return Ok(()),
            }
        }
        // Gives the other direction its turn.
        self.moved.is_unfinished = true;
        Ok(())
    }

    /// Writes to the backend. False: it accepts no more for now.
    fn poll_write_backend(&mut self, cx: &mut Context<'_>) -> bool {
        let (Upload::Sending(writing) | Upload::Flushing(writing)) = &mut self.upload else { return true };
        let Some(Upstream::H1(h1)) = &mut self.upstream else { return true };
        let Buffers { to_backend, from_client, .. } = &mut *self.buffers;
        loop {
            let text = &to_backend[writing.written..];
            let content = if writing.omits_body { 0..0 } else { self.body.unread(writing.cursor) };
            if text.is_empty() && content.is_empty() {
                match h1.poll_flush(cx) {
                    Poll::Ready(Ok(())) => {
                        let was_unflushed = std::mem::take(&mut writing.is_unflushed);
                        self.moved.is_unfinished |= was_unflushed && !Bug::StaleWait.is_planted();
                    }
                    Poll::Ready(Err(_)) => return self.stop_upload(),
                    Poll::Pending => {
                        writing.is_unflushed = true;
                        return self.wait_for_backend();
                    }
                }
                to_backend.clear();
                writing.written = 0;
                if writing.omits_body {
                    self.upload =
                        if self.body.is_done() { Upload::Sent } else { Upload::Abandoned(AbandonReason::Stopped) };
                    return true;
                }
                self.body.forget(&[writing.cursor], from_client);
                if self.body.is_read(writing.cursor) {
                    self.upload = Upload::Sent;
                }
                return true;
            }
            match h1.poll_write(cx, text, &from_client[content]) {
                Poll::Ready(Ok(count)) if count > 0 => {
                    let of_text = count.min(text.len());
                    writing.written += of_text;
                    writing.cursor.pass(count - of_text);
                    self.moved.to_backend += count as u64;
                }
                Poll::Ready(_) => return self.stop_upload(),
                Poll::Pending => return self.wait_for_backend(),
            }
        }
    }

    /// Ends the upload: the backend accepts no more of the request.
    fn stop_upload(&mut self) -> bool {
        // Something was on its way, so the backend did not wait for the client.
        self.upload_wait = None;
        self.upload = Upload::Abandoned(AbandonReason::Stopped);
        self.moved.is_unfinished = true;
        true
    }

    /// Waits until the backend accepts more.
    fn wait_for_backend(&mut self) -> bool {
        if let Upload::Sending(writing) | Upload::Flushing(writing) = self.upload {
            self.upload = if self.body.is_done() { Upload::Flushing(writing) } else { Upload::Sending(writing) };
        }
        false
    }

    /// Notices when the client disconnects, and reads pipelined requests.
    fn watch_client(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        while !self.has_half_closed {
            if self.buffers.from_client.len() >= self.body.end() + MAX_PIPELINED_BYTES {
                return self.poll_disconnect(cx);
            }
            self.buffers.from_client.reserve(1024);
            match poll_read_buf(Pin::new(&mut *self.client), cx, &mut self.buffers.from_client) {
                Poll::Ready(Ok(count)) if count > 0 => {}
                Poll::Ready(read) => self.input_ended(read)?,
                Poll::Pending => return Ok(()),
            }
        }
        Ok(())
    }

    /// Notices when the client disconnects while nothing of it is read.
    fn poll_disconnect(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        let missing = match (self.body.bytes_left(&self.buffers.from_client), self.listener.half_close) {
            (Some(0), HalfClose::Cancel) => u64::MAX,
            (Some(missing), _) => missing,
            (None, _) => 1,
        };
        // Bytes that a TLS stream has read from its socket may still be buffered in it.
        let unseen = if self.client.plain().is_some() { 0 } else { MAX_UNSEEN_TLS_BYTES };
        self.poll_gone(cx, missing.saturating_sub(unseen))
    }

    /// Notices when the client has reset the connection, or closed its side with at least `missing` bytes still to
    /// come.
    fn poll_gone(&mut self, cx: &mut Context<'_>, missing: u64) -> Result<(), Failure> {
        let has_disconnected = match (self.client.socket(), &self.disconnect_watcher) {
            // A stream reports it without being watched. Until it is dropped, its unread bytes occupy the connection's
            // window.
            (None, _) => self.client.is_given_up(cx, missing),
            (Some(_), Some(watcher)) => watcher.has_disconnected(cx, missing),
            (Some(socket), None) => match DisconnectWatcher::of(socket, &self.engine.backend_limit) {
                Ok(watcher) => self.disconnect_watcher.insert(watcher).has_disconnected(cx, missing),
                // Without a free file descriptor, only the time limits remain.
                Err(_) => false,
            },
        };
        if has_disconnected { Err(Failure::ClientGone) } else { Ok(()) }
    }

    /// Reads and drops what the client sends, and notices when it disconnects. Bytes beyond the request's content do
    /// not count as progress; otherwise a client that never reads its response could keep the exchange open forever.
    fn drop_input(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        for _ in 0..MAX_CONSECUTIVE_READS {
            if self.has_half_closed {
                return Ok(());
            }
            match self.client.poll_discard(cx) {
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.dropped += count as u64;
                    let content = self.body.bytes_left(&self.buffers.from_client).or(self.limits.max_body_bytes);
                    if content.is_none_or(|content| self.dropped <= content) {
                        self.moved.from_client += count as u64;
                    }
                }
                Poll::Ready(read) => self.input_ended(read)?,
                Poll::Pending => return Ok(()),
            }
        }
        self.moved.is_unfinished = true;
        Ok(())
    }

    /// The client's side has ended, by a close or an error.
    fn input_ended(&mut self, read: io::Result<usize>) -> Result<(), Failure> {
        self.has_half_closed = read.is_ok() && self.listener.half_close == HalfClose::Answer;
        if self.has_half_closed { Ok(()) } else { Err(Failure::ClientGone) }
    }

    // --- The download.

    fn poll_download(&mut self, cx: &mut Context<'_>) -> Result<Option<TransferEvent>, Failure> {
        if let Download::Tunnel(tunnel) = &mut self.download {
            let Some(Upstream::H1(h1)) = &mut self.upstream else { return Ok(Some(TransferEvent::Sent)) };
            let flow = tunnel.poll(cx, self.client, &mut h1.socket);
            self.ready = tunnel.sent();
            self.moved.is_unfinished |= matches!(flow, Poll::Ready(TunnelProgress::Moved));
            // A client may close its side while the backend still has to accept what it sent.
            let is_stuck = tunnel.is_up_stuck();
            let is_over = match flow {
                Poll::Ready(TunnelProgress::Over) => true,
                Poll::Pending if is_stuck => self.poll_gone(cx, 0).is_err(),
                _ => false,
            };
            return Ok(is_over.then_some(TransferEvent::Sent));
        }
        // Twice, so that bytes read in the first round are written at once.
        for _ in 0..2 {
            if !self.poll_write_client(cx)? {
                return Ok(None);
            }
            match self.download {
                Download::Waiting => return self.poll_head(cx),
                Download::Sending(_) => {
                    if !self.poll_content(cx)? {
                        return Ok(None);
                    }
                }
                Download::Replying(_) => self.reply_on(),
                Download::Flushing => {
                    self.download = Download::Sent;
                    return Ok(Some(TransferEvent::Sent));
                }
                Download::HeadReceived(_) | Download::Sent | Download::Tunnel(_) => return Ok(None),
            }
        }
        self.moved.is_unfinished = true;
        Ok(None)
    }

    /// Writes to the client, and flushes TLS. False: it accepts no more for now.
    fn poll_write_client(&mut self, cx: &mut Context<'_>) -> Result<bool, Failure> {
        let to_client = &mut self.buffers.to_client;
        if to_client.is_empty() {
            return Ok(true);
        }
        while self.written < to_client.len() {
            match Pin::new(&mut *self.client).poll_write(cx, &to_client[self.written..]) {
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.written += count;
                    self.moved.to_client += count as u64;
                }
                Poll::Ready(_) => return Err(Failure::ClientGone),
                Poll::Pending => return Ok(false),
            }
        }
        let flushed = match Bug::UnflushedTls.is_planted() {
            true => Poll::Ready(Ok(())),
            false => Pin::new(&mut *self.client).poll_flush(cx),
        };
        match flushed {
            Poll::Ready(Ok(())) => {
                to_client.clear();
                self.written = 0;
                self.interim_bytes = 0;
                let was_unflushed = std::mem::take(&mut self.is_unflushed);
                self.moved.is_unfinished |= was_unflushed && !Bug::StaleWait.is_planted();
                Ok(true)
            }
            Poll::Ready(Err(_)) => Err(Failure::ClientGone),
            Poll::Pending => {
                self.is_unflushed = true;
                Ok(false)
            }
        }
    }

    /// Reads the head of the final response. Passes interim responses on.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Result<Option<TransferEvent>, Failure> {
        let Some(Upstream::H1(h1)) = &mut self.upstream else { return Ok(None) };
        let limits = self.plan.as_ref().map_or_else(Limits::default, |plan| plan.settings.limits());
        loop {
            let Buffers { from_backend, request, response, .. } = &mut *self.buffers;
            if !from_backend.is_empty() {
                match response.parse(from_backend, request.method(), &limits) {
                    Parsed::Complete(head) if !response.is_interim() => return self.receive_head(head).map(Some),
                    Parsed::Complete(head) => {
                        self.pass_interim(head)?;
                        return Ok(None);
                    }
                    Parsed::Partial => {
                        // Until then the limits of the upload apply: the backend may wait for the rest of that.
                        let has_request = matches!(self.upload, Upload::Sent | Upload::Abandoned(_));
                        if let (None, Some(plan), true) = (self.head_by, &self.plan, has_request) {
                            let own = self.own_limits.as_ref().map(|own| own.response_timeout);
                            let timeout = own.unwrap_or(plan.settings.response_timeout);
                            self.head_by = clock::now().checked_add(timeout);
                        }
                    }
                    Parsed::Rejected(bad) => return Err(failure_of(bad)),
                }
            }
            let received = self.buffers.from_backend.end();
            received.reserve(READ_BYTES);
            match h1.poll_read(cx, received) {
                Poll::Ready(Ok(count)) => self.moved.from_backend += count as u64,
                // It has read everything, or it would have been a reset.
                Poll::Ready(Err(AttemptError { failure: Failure::Closed, .. })) if self.is_waiting_for_content() => {
                    return Err(Failure::ClosedDuringUpload);
                }
                Poll::Ready(Err(AttemptError { failure, detail })) => {
                    self.detail = detail;
                    return Err(failure);
                }
                Poll::Pending => return Ok(None),
            }
        }
    }

    /// Keeps the head of the final response, which ends at offset `head`, until the exchange has decided on it.
    fn receive_head(&mut self, head: usize) -> Result<TransferEvent, Failure> {
        let Buffers { response, from_backend, .. } = &*self.buffers;
        // Check the content that arrived with the head while another backend can still be tried.
        if !ResponseBody::begins_well(response.framing(), &from_backend[head..]) {
            return Err(Failure::ResponseBodyMalformed);
        }
        self.download = Download::HeadReceived(head);
        Ok(TransferEvent::Head)
    }

    /// Passes an interim response on. A client gets at most one 100: an earlier attempt or Evenkeel itself may have
    /// sent it.
    fn pass_interim(&mut self, head: usize) -> Result<(), Failure> {
        if !self.interim.allows(clock::now()) {
            return Err(Failure::TooManyInterimResponses);
        }
        let Buffers { response, from_backend, to_client, request, .. } = &mut *self.buffers;
        let is_said = response.status() == 100 && std::mem::replace(&mut self.body.has_continued, true);
        if request.version() == Version::Http11 && !is_said {
            let plan = ResponsePlan::new(response, Version::Http11, Persistence::KeepAlive, &[]);
            rewrite::response(response, from_backend, &plan, to_client);
            self.interim_bytes = to_client.len();
        }
        from_backend.drop_first(head);
        response.clear();
        // Each interim response restarts the time limit for the response, as with nginx's `proxy_read_timeout`: a
        // backend sends them to show that it is still working.
        self.head_by = None;
        self.moved.is_unfinished = true;
        Ok(())
    }

    /// Continues with the content, once the client has accepted everything before it. False: nothing is available for
    /// now.
    fn poll_content(&mut self, cx: &mut Context<'_>) -> Result<bool, Failure> {
        let Download::Sending(content) = &mut self.download else { return Ok(false) };
        let Some(Upstream::H1(h1)) = &mut self.upstream else { return Err(Failure::ResponseTruncated) };
        if content.has_broken {
            return Err(Failure::ResponseBodyMalformed);
        }
        let body = &mut content.body;
        if content.pipe.is_none() && !content.is_copied && body.plain_bytes_left() >= Some(splice::MIN_SPLICE_BYTES) {
            content.pipe = self.client.plain().and(h1.socket.plain()).and_then(|_| Pipe::take().ok());
            content.is_copied = content.pipe.is_none();
        }
        if let (Some(pipe), Some(client), Some(backend)) = (&mut content.pipe, self.client.plain(), h1.socket.plain()) {
            if !pipe.is_empty() {
                return match pipe.poll_empty(cx, client) {
                    Poll::Ready(Ok(count)) if count > 0 => {
                        self.moved.to_client += count as u64;
                        body.skip(count as u64);
                        self.ready = body.sent;
                        if body.is_done() {
                            if let Some(pipe) = content.pipe.take() {
                                pipe.give_back();
                            }
                            self.download = Download::Flushing;
                        }
                        Ok(true)
                    }
                    Poll::Ready(_) => Err(Failure::ClientGone),
                    Poll::Pending => Ok(false),
                };
            }
            let max = body.plain_bytes_left().map_or(0, |left| usize::try_from(left).unwrap_or(usize::MAX));
            return match pipe.poll_fill(cx, backend, max) {
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.moved.from_backend += count as u64;
                    Ok(true)
                }
                Poll::Ready(_) => Err(self.broken_off()),
                Poll::Pending => Ok(false),
            };
        }
        let Buffers { to_client, from_backend, .. } = &mut *self.buffers;
        let is_plain = body.is_plain();
        let buffer = if is_plain { &mut *to_client } else { from_backend.end() };
        buffer.reserve(content.read_bytes);
        match h1.poll_read(cx, buffer) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(count)) => {
                self.moved.from_backend += count as u64;
                if count >= content.read_bytes {
                    content.read_bytes = (2 * content.read_bytes).min(MAX_READ_BYTES);
                }
                let used = if is_plain {
                    body.pass(to_client).inspect(|&used| to_client.truncate(used))
                } else {
                    let used = body.take(from_backend, to_client);
                    from_backend.clear();
                    used
                };
                match used {
                    Ok(used) => h1.has_surplus |= used < count,
                    Err(_) => content.has_broken = true,
                }
            }
            Poll::Ready(Err(lost)) => {
                if lost.failure == Failure::Reset || body.end_of_input(to_client).is_err() {
                    return Err(self.broken_off());
                }
                self.moved.is_unfinished = true;
            }
        }
        self.ready = body.sent;
        if body.is_done() {
            self.download = Download::Flushing;
        }
        Ok(true)
    }

    /// The failure for a response that the backend truncated. The client is at fault if it kept the backend waiting: a
    /// backend may limit how long it waits for its response to be read.
    fn broken_off(&self) -> Failure {
        if self.client_lag < MIN_CLIENT_LAG { Failure::ResponseTruncated } else { Failure::ClosedDuringDownload }
    }
}

impl BytesMoved {
    fn is_anything(&self) -> bool {
        self.is_unfinished || self.from_client + self.to_backend + self.from_backend + self.to_client > 0
    }
}

/// Whose fault a malformed head is. The server writes the status line, but the application writes the fields, and some
/// of them may contain text from the client.
fn failure_of(bad: BadResponse) -> Failure {
    match bad {
        BadResponse::HeadTooLarge => Failure::ResponseHeadTooLarge,
        BadResponse::TooManyFields => Failure::ResponseTooManyFields,
        BadResponse::Version | BadResponse::Status | BadResponse::ReasonPhrase | BadResponse::StatusLineTooLong => {
            Failure::NotHttp
        }
        BadResponse::UnaskedUpgrade | BadResponse::Upgrade => Failure::UnaskedUpgrade,
        BadResponse::Truncated => Failure::ResponseTruncated,
        BadResponse::Chunk(_) => Failure::ResponseBodyMalformed,
        _ => Failure::ResponseHeadMalformed,
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
