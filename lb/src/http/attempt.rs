//! One try on one backend: the request goes out, its response comes back. Both directions move at once, so a backend
//! may answer before it has heard everything, and a client that leaves is noticed while its answer is being made.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

use super::body::{RequestBody, ResponseBody};
use super::interim::InterimRate;
use super::pace::Pace;
use super::splice::{self, Pipe};
use super::stream::ClientStream;
use super::timer::Timer;
use super::work::Work;
use crate::config::{HalfClose, ListenerConfig, PoolSettings};
use crate::exchange::failure::Failure;
use crate::http::h1::response::{BadResponse, ResponseHead};
use crate::http::h1::rewrite::{self, Persistence, ResponsePlan};
use crate::message::limits::Limits;
use crate::message::{Parsed, Version};

const READ_BYTES: usize = 16 * 1024;
const LARGE_READ_BYTES: usize = 64 * 1024;
/// How much of the next requests is taken in while this one is being answered.
const MOST_PIPELINED_BYTES: usize = 16 * 1024;

/// How often the client is read before the other direction has its turn. Without it a client that sends as fast as it is
/// read uses up what tokio lets a task do at once, and the backend is not heard.
const MOST_READS_AT_ONCE: usize = 16;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

pub struct Attempt<'a> {
    pub client: &'a mut ClientStream,
    pub backend: &'a mut TcpStream,
    pub work: &'a mut Work,
    pub body: &'a mut RequestBody,
    pub listener: &'a ListenerConfig,
    pub settings: &'a PoolSettings,
    pub limits: &'a Limits,
    /// The connection has carried a request before.
    pub is_reused: bool,
    /// Content in `from_client` that is to be sent behind what is in `to_backend`.
    content: Range<usize>,
    /// How much of what is to be sent to the backend has been.
    sent: usize,
    /// The backend takes no more of the request; its response may come all the same.
    has_stopped_sending: bool,
    has_heard: bool,
    /// The client has closed its sending side and is answered all the same.
    has_half_closed: bool,
    /// The response is passed on, so this attempt is the last.
    is_answering: bool,
    /// Bytes of the request that were dropped because the backend takes no more.
    dropped: u64,
    /// How the client keeps up with its answer.
    pace: Pace,
    /// How much of `to_client` has been sent, or is not to be.
    written: usize,
}

/// What came of one step towards the client.
enum Step {
    /// It took so many bytes.
    Written(usize),
    /// All that was written is on its way.
    Flushed,
    /// It took nothing, but more of its request has moved.
    RequestMoved,
}

/// What the present wait is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// For the backend, to take the request or to answer it.
    Backend(Failure),
    /// For the client to send more of its body.
    Client,
    /// For the backend to ask for the body that the client holds back.
    Continue,
}

impl<'a> Attempt<'a> {
    #[expect(clippy::too_many_arguments, reason = "each is one of the things that meet here")]
    pub fn new(
        client: &'a mut ClientStream,
        backend: &'a mut TcpStream,
        work: &'a mut Work,
        body: &'a mut RequestBody,
        listener: &'a ListenerConfig,
        settings: &'a PoolSettings,
        limits: &'a Limits,
        is_reused: bool,
    ) -> Self {
        Self {
            client,
            backend,
            work,
            body,
            listener,
            settings,
            limits,
            is_reused,
            content: 0..0,
            sent: 0,
            has_stopped_sending: false,
            has_heard: false,
            has_half_closed: false,
            is_answering: false,
            dropped: 0,
            pace: Pace::new(listener.min_rate),
            written: 0,
        }
    }

    /// Sends what is in `to_backend` and the content behind it; returns where the final response's head ends in
    /// `from_backend`. Interim responses have been passed on.
    pub async fn ask(&mut self, timer: &mut Timer) -> Result<usize, Failure> {
        let Work { from_client, to_backend, .. } = &mut *self.work;
        match self.body.take_in_place(from_client) {
            Some(content) => self.content = content,
            None => self.body.take(from_client, to_backend)?,
        }
        let mut interim = InterimRate::default();
        loop {
            // The time limit on the response begins anew with each interim one, as nginx's `proxy_read_timeout` does: a
            // backend sends them to say that it is still at work.
            let head = self.hear_head(timer).await?;
            if !self.work.response.is_interim() {
                return Ok(head);
            }
            if !interim.allows(Instant::now()) {
                return Err(Failure::TooManyInterimResponses);
            }
            self.pass_interim(head, timer).await?;
        }
    }

    async fn hear_head(&mut self, timer: &mut Timer) -> Result<usize, Failure> {
        let method = self.work.request.method();
        self.work.response.clear();
        // Once some of the head is there, the rest has to come in time too, however it drips.
        let mut deadline: Option<Instant> = None;
        loop {
            if !self.work.from_backend.is_empty() {
                match self.work.response.parse(&self.work.from_backend, method, self.limits) {
                    Parsed::Complete(head) => return Ok(head),
                    Parsed::Partial if deadline.is_none() => {
                        deadline = Instant::now().checked_add(self.settings.response_timeout);
                    }
                    Parsed::Partial => {}
                    Parsed::Rejected(bad) => return Err(self.refused_head(bad)),
                }
            }
            let (patience, wait) = match deadline {
                Some(deadline) => {
                    (deadline.saturating_duration_since(Instant::now()), Wait::Backend(Failure::ResponseTimeout))
                }
                None => self.patience(),
            };
            let heard = timer.limit(patience, |cx| self.poll_hear(cx)).await;
            if wait == Wait::Client {
                self.body.pace.moved(0, timer.waited());
            }
            match (heard, wait) {
                (Ok(heard), _) => heard?,
                (Err(_), Wait::Backend(failure)) => return Err(failure),
                (Err(_), Wait::Client) => return Err(Failure::ClientTimeout),
                (Err(_), Wait::Continue) => self.ask_for_body(timer).await?,
            }
        }
    }

    /// The backend ignores the expectation, as it may (RFC 9110 §10.1.1): the client is asked in its place.
    async fn ask_for_body(&mut self, timer: &mut Timer) -> Result<(), Failure> {
        self.body.has_continued = true;
        self.work.to_client.extend_from_slice(CONTINUE);
        self.flush_interim(timer).await
    }

    fn refused_head(&self, bad: BadResponse) -> Failure {
        let failure = failure_of(bad);
        let (received, reason) = (self.work.from_backend.as_slice(), bad.reason());
        let backend = self.backend.peer_addr().map_or(String::new(), |address| address.to_string());
        match failure {
            Failure::ResponseHeadTooLarge => tracing::warn!(
                backend,
                limit = self.limits.head_bytes(),
                bytes = received.len(),
                "a response's head is refused: it is larger than the limit (bytes received so far)",
            ),
            Failure::ResponseTooManyFields => tracing::warn!(
                backend,
                limit = self.limits.fields(),
                fields = fields_in(received),
                "a response's head is refused: it has more fields than the limit (fields received so far)",
            ),
            _ => tracing::warn!(backend, reason, "a response's head is refused"),
        }
        failure
    }

    /// How long the present wait may last, and what it means when it lasts longer.
    fn patience(&self) -> (Duration, Wait) {
        let is_sending = self.sent < self.to_send() && !self.has_stopped_sending;
        if is_sending {
            (self.settings.write_timeout, Wait::Backend(Failure::WriteTimeout))
        } else if self.body.is_done() || self.has_stopped_sending {
            (self.settings.response_timeout, Wait::Backend(Failure::ResponseTimeout))
        } else if self.awaits_continue() {
            (self.settings.continue_timeout, Wait::Continue)
        } else {
            (self.body.pace.patience(self.listener.body_timeout), Wait::Client)
        }
    }

    /// Whether the client holds its content back until it is asked for it.
    fn awaits_continue(&self) -> bool {
        self.work.request.expects_continue() && self.body.is_untouched() && !self.body.has_continued
    }

    /// Ready when a direction has moved on.
    fn poll_hear(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let sending = self.poll_send(cx)?;
        self.work.from_backend.reserve(READ_BYTES);
        match poll_read_buf(Pin::new(&mut *self.backend), cx, &mut self.work.from_backend) {
            Poll::Ready(Ok(count)) if count > 0 => {
                self.has_heard = true;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Ok(_)) => Poll::Ready(Err(self.lost_backend(Failure::Closed))),
            Poll::Ready(Err(_)) => Poll::Ready(Err(self.lost_backend(Failure::Reset))),
            Poll::Pending => sending.map(Ok),
        }
    }

    /// Sends the request on as far as it goes, then watches the client. Ready when something was sent and the wait
    /// is another one now.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Failure> {
        let mut has_moved = false;
        for _ in 0..MOST_READS_AT_ONCE {
            match self.poll_flush_to_backend(cx) {
                // Nothing of the client is read meanwhile; a stream tells all the same that it was given up. Until it is
                // dropped it keeps its part of the connection's window.
                Poll::Pending if self.client.is_given_up(cx) => return Err(Failure::ClientGone),
                Poll::Pending => return Ok(if has_moved { Poll::Ready(()) } else { Poll::Pending }),
                Poll::Ready(has_written) => has_moved |= has_written,
            }
            if self.body.is_done() || self.has_stopped_sending {
                self.watch_client(cx)?;
                return Ok(if has_moved { Poll::Ready(()) } else { Poll::Pending });
            }
            self.work.from_client.reserve(READ_BYTES);
            match poll_read_buf(Pin::new(&mut *self.client), cx, &mut self.work.from_client) {
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.body.take(&mut self.work.from_client, &mut self.work.to_backend)?;
                    has_moved = true;
                }
                Poll::Ready(_) => return Err(Failure::ClientGone),
                Poll::Pending => return Ok(if has_moved { Poll::Ready(()) } else { Poll::Pending }),
            }
        }
        Ok(Poll::Ready(()))
    }

    /// Ready when all is sent; true if that took anything.
    fn poll_flush_to_backend(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let has_written = self.sent < self.to_send();
        while self.sent < self.to_send() && !self.has_stopped_sending {
            match ready!(self.poll_write_to_backend(cx)) {
                Ok(count) if count > 0 => self.sent += count,
                _ => self.has_stopped_sending = true,
            }
        }
        self.work.to_backend.clear();
        self.content = 0..0;
        self.sent = 0;
        Poll::Ready(has_written)
    }

    fn to_send(&self) -> usize {
        self.work.to_backend.len() + self.content.len()
    }

    fn poll_write_to_backend(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Work { to_backend, from_client, .. } = &*self.work;
        let backend = Pin::new(&mut *self.backend);
        if self.content.is_empty() {
            return backend.poll_write(cx, &to_backend[self.sent..]);
        }
        let head = to_backend.get(self.sent..).unwrap_or_default();
        let content = &from_client[self.content.clone()];
        let content = &content[self.sent.saturating_sub(to_backend.len())..];
        backend.poll_write_vectored(cx, &[IoSlice::new(head), IoSlice::new(content)])
    }

    /// Notices a client that leaves, and takes in what it sends ahead.
    fn watch_client(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        while !self.has_half_closed && self.work.from_client.len() < self.body.end() + MOST_PIPELINED_BYTES {
            self.work.from_client.reserve(1024);
            match poll_read_buf(Pin::new(&mut *self.client), cx, &mut self.work.from_client) {
                Poll::Ready(Ok(count)) if count > 0 => {}
                Poll::Ready(Ok(_)) if self.listener.half_close == HalfClose::Answer => self.has_half_closed = true,
                Poll::Ready(_) => return Err(Failure::ClientGone),
                Poll::Pending => return Ok(()),
            }
        }
        Ok(())
    }

    fn lost_backend(&self, how: Failure) -> Failure {
        if self.is_reused && !self.has_heard { Failure::StaleConnection } else { how }
    }

    /// Passes an interim response on. A client is asked for its body once: an earlier attempt or Evenkeel itself may
    /// have done so.
    async fn pass_interim(&mut self, head: usize, timer: &mut Timer) -> Result<(), Failure> {
        let is_said = self.work.response.status() == 100 && std::mem::replace(&mut self.body.has_continued, true);
        if self.work.request.version() == Version::Http11 && !is_said {
            let plan = ResponsePlan::new(&self.work.response, Version::Http11, Persistence::KeepAlive, &[]);
            rewrite::response(&self.work.response, &self.work.from_backend, &plan, &mut self.work.to_client);
            self.flush_interim(timer).await?;
        }
        self.work.from_backend.drain(..head);
        Ok(())
    }

    /// Sends the client an interim response. One that broke off has no final response behind it.
    async fn flush_interim(&mut self, timer: &mut Timer) -> Result<(), Failure> {
        let flushed = self.flush_to_client(timer).await;
        flushed.map_err(|failure| if self.written > 0 { Failure::ClientGone } else { failure })
    }

    /// Takes the content that came with the head into `to_client`, before the client is sent anything. False:
    /// something came that does not belong to the response.
    pub fn begin_answer(&mut self, head: usize, response: &mut ResponseBody) -> Result<bool, Failure> {
        let Work { to_client, from_backend, .. } = &mut *self.work;
        let bad = |_| Failure::ResponseBodyMalformed;
        let content = &from_backend[head..];
        let is_in_order = match head.checked_sub(to_client.len()) {
            // The head that goes out is put in the place of the one that came, and the content stays where it is.
            Some(start) if response.is_plain() => {
                let used = response.pass(content).map_err(bad)?;
                let is_in_order = used == content.len();
                from_backend.truncate(head + used);
                from_backend[start..head].copy_from_slice(to_client);
                std::mem::swap(to_client, from_backend);
                self.written = start;
                is_in_order
            }
            _ => response.take(content, to_client).map_err(bad)? == content.len(),
        };
        from_backend.clear();
        Ok(is_in_order)
    }

    /// Whether the backend was sent every byte of the request. Only then may its connection carry another one: bytes
    /// that are still owed would be read as part of it, or it as part of them.
    pub fn has_sent_all(&self) -> bool {
        self.body.is_done() && self.work.to_backend.is_empty() && !self.has_stopped_sending
    }

    /// Sends the client what is in `to_client`, then the rest of the content. Returns whether the backend's
    /// connection is in order for another request.
    pub async fn answer(&mut self, response: &mut ResponseBody, timer: &mut Timer) -> Result<bool, Failure> {
        let mut is_clean = true;
        self.is_answering = true;
        loop {
            self.flush_to_client(timer).await?;
            if response.is_done() {
                break;
            }
            if self.can_splice(response) && self.splice(response, timer).await? {
                continue;
            }
            is_clean &= self.hear_content(response, timer).await?;
        }
        Ok(is_clean && self.has_sent_all())
    }

    /// Whether what is left of the response can go from socket to socket: much of it, both sides plain, and nothing
    /// else under way.
    fn can_splice(&self, response: &ResponseBody) -> bool {
        let is_large = response.plain_bytes_left().is_some_and(|left| left >= splice::LEAST_BYTES);
        is_large && !self.client.is_tls() && self.body.is_done() && self.work.to_backend.is_empty()
    }

    /// Moves the rest of the response without looking at it. False: that cannot be done here.
    async fn splice(&mut self, response: &mut ResponseBody, timer: &mut Timer) -> Result<bool, Failure> {
        let Ok(mut pipe) = Pipe::take() else { return Ok(false) };
        while let Some(left) = response.plain_bytes_left().filter(|left| *left > 0) {
            let most = usize::try_from(left).unwrap_or(usize::MAX);
            let filling = timer.limit(self.settings.read_timeout, |cx| {
                let filled = pipe.poll_fill(cx, self.backend, most);
                if filled.is_pending() {
                    self.watch_client(cx)?;
                }
                filled.map(Ok)
            });
            let filling = filling
                .await
                .map(|filled| filled.map_or_else(Err, |read| read.map_err(|_| Failure::ResponseTruncated)));
            match filling {
                Err(_) => return Err(Failure::ResponseStalled),
                Ok(Ok(count)) if count > 0 => {}
                Ok(Ok(_)) => return Err(Failure::ResponseTruncated),
                Ok(Err(broken)) => return Err(broken),
            }
            while !pipe.is_empty() {
                let patience = self.pace.patience(self.listener.send_timeout);
                let emptying = timer.limit(patience, |cx| match &*self.client {
                    ClientStream::Tcp(client) => pipe.poll_empty(cx, client),
                    _ => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
                });
                match emptying.await {
                    Ok(Ok(count)) if count > 0 => {
                        self.pace.moved(count as u64, timer.waited());
                        response.skip(count as u64);
                    }
                    _ => return Err(Failure::ClientGone),
                }
            }
        }
        pipe.give_back();
        Ok(true)
    }

    /// Reads the next content into `to_client`. False: something came that does not belong to the response.
    async fn hear_content(&mut self, response: &mut ResponseBody, timer: &mut Timer) -> Result<bool, Failure> {
        let is_plain = response.is_plain();
        let count = loop {
            // While the client owes content and nothing else is to be done, the silence is its own.
            let owes = !self.body.is_done() && !self.has_stopped_sending && self.work.to_backend.is_empty();
            let (patience, late) = if owes {
                (self.body.pace.patience(self.listener.body_timeout), Failure::ClientTimeout)
            } else {
                (self.settings.read_timeout, Failure::ResponseStalled)
            };
            let reading = timer.limit(patience, |cx| self.poll_content(cx, is_plain)).await;
            if owes {
                self.body.pace.moved(0, timer.waited());
            }
            // `None`: the request moved on, and the wait is another one now.
            if let Some(count) = reading.map_err(|_| late)?? {
                break count;
            }
        };
        let bad = |_| Failure::ResponseBodyMalformed;
        let Work { to_client, from_backend, .. } = &mut *self.work;
        if count == 0 {
            response.end_of_input(to_client).map_err(|_| Failure::ResponseTruncated)?;
            return Ok(true);
        }
        if is_plain {
            let used = response.pass(to_client).map_err(bad)?;
            to_client.truncate(used);
            return Ok(used == count);
        }
        let used = response.take(from_backend, to_client).map_err(bad)?;
        from_backend.clear();
        Ok(used == count)
    }

    /// Ready with how much of the response came, or `None` when the request has moved on.
    fn poll_content(&mut self, cx: &mut Context<'_>, is_plain: bool) -> Poll<Result<Option<usize>, Failure>> {
        let request = self.poll_rest_of_request(cx)?;
        let Work { to_client, from_backend, .. } = &mut *self.work;
        let buffer = if is_plain { to_client } else { from_backend };
        buffer.reserve(LARGE_READ_BYTES);
        match poll_read_buf(Pin::new(&mut *self.backend), cx, buffer) {
            Poll::Ready(Ok(count)) => Poll::Ready(Ok(Some(count))),
            Poll::Ready(Err(_)) => Poll::Ready(Err(Failure::ResponseTruncated)),
            Poll::Pending => request.map(|()| Ok(None)),
        }
    }

    /// The client's content may still be on its way when the answer comes; a client that has sent everything may
    /// leave. Ready when some of the request has moved.
    fn poll_rest_of_request(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Failure> {
        if self.is_answering && self.has_stopped_sending && !self.body.is_done() {
            return self.drop_rest_of_request(cx);
        }
        let is_sent = self.body.is_done() && self.work.to_backend.is_empty();
        if is_sent || self.has_stopped_sending {
            return self.watch_client(cx).map(|()| Poll::Pending);
        }
        self.poll_send(cx)
    }

    /// Nobody takes the rest of the request, yet a client may read its answer only when it has sent everything.
    fn drop_rest_of_request(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Failure> {
        let before = self.dropped;
        for _ in 0..MOST_READS_AT_ONCE {
            match self.client.poll_discard(cx) {
                Poll::Ready(Ok(count)) if count > 0 => self.dropped += count as u64,
                Poll::Ready(_) => return Err(Failure::ClientGone),
                Poll::Pending => break,
            }
        }
        Ok(if self.dropped > before { Poll::Ready(()) } else { Poll::Pending })
    }

    /// Sends the client what is in `to_client`, to the last byte that TLS holds back. The request moves meanwhile: a
    /// client may read only when it has sent everything.
    async fn flush_to_client(&mut self, timer: &mut Timer) -> Result<(), Failure> {
        let mut is_flushed = !self.client.is_tls();
        while self.written < self.work.to_client.len() || !is_flushed {
            let patience = self.pace.patience(self.listener.send_timeout);
            let from_client = self.body.received() + self.dropped;
            let step = timer.limit(patience, |cx| self.poll_to_client(cx)).await;
            // Sending is progress of the client too.
            let mut moved = (self.body.received() + self.dropped).saturating_sub(from_client);
            match step.map_err(|_| Failure::ClientGone)?? {
                Step::Written(count) => {
                    self.written += count;
                    moved += count as u64;
                }
                Step::Flushed => is_flushed = true,
                Step::RequestMoved => {}
            }
            self.pace.moved(moved, timer.waited());
        }
        self.work.to_client.clear();
        self.written = 0;
        Ok(())
    }

    fn poll_to_client(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step, Failure>> {
        let (client, rest) = (Pin::new(&mut *self.client), &self.work.to_client[self.written..]);
        let step = if rest.is_empty() {
            client.poll_flush(cx).map_ok(|()| Step::Flushed)
        } else {
            client.poll_write(cx, rest).map_ok(Step::Written)
        };
        match step {
            Poll::Ready(Ok(Step::Written(0)) | Err(_)) => Poll::Ready(Err(Failure::ClientGone)),
            Poll::Ready(Ok(step)) => Poll::Ready(Ok(step)),
            // Only while the client takes nothing: a stream of HTTP/2 whose response is complete reads as closed.
            Poll::Pending => Poll::Ready(Ok(ready!(self.poll_rest_of_request(cx)?.map(|()| Step::RequestMoved)))),
        }
    }

    pub fn response(&self) -> &ResponseHead {
        &self.work.response
    }
}

/// Whose fault a head is that cannot be passed on. The server writes the status line; the application writes the fields,
/// and some of them may be the client's words.
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

/// How many field lines of a head are there.
fn fields_in(received: &[u8]) -> usize {
    let head = received.windows(4).position(|four| four == b"\r\n\r\n").map_or(received, |end| &received[..end + 2]);
    head.windows(2).filter(|two| *two == b"\r\n").count().saturating_sub(1)
}
