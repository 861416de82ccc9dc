//! The download: reads the backend's response and sends it, or an answer of ours, to the client.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

use super::super::body::ResponseBody;
use super::super::buffers::Buffers;
use super::super::h1::response::BadResponse;
use super::super::h1::rewrite::{self, Persistence, ResponsePlan};
use super::super::splice::{self, Pipe};
use super::super::tunnel::TunnelProgress;
use super::super::upstream::Upstream;
use super::{Download, MAX_READ_BYTES, MIN_CLIENT_LAG, READ_BYTES, Transfer, TransferEvent, Upload};
use crate::clock;
use crate::failure::{AttemptError, Failure};
use crate::message::limits::Limits;
use crate::message::{Parsed, Version};
use crate::plant::Bug;

impl Transfer<'_> {
    /// Moves as much as possible. Returns what the exchange has to be told, if anything.
    pub(super) fn poll_download(&mut self, cx: &mut Context<'_>) -> Result<Option<TransferEvent>, Failure> {
        if let Download::Tunnel(tunnel) = &mut self.download {
            let Some(Upstream::H1(h1)) = &mut self.upstream else { return Ok(Some(TransferEvent::Sent)) };
            let flow = tunnel.poll(cx, self.client, &mut h1.socket);
            self.ready = tunnel.sent();
            if let Poll::Ready(TunnelProgress::Moved) = flow {
                self.moved.is_unfinished = true;
                (self.client_acknowledged, self.backend_acknowledged) = (None, None);
            }
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
    pub(super) fn poll_write_client(&mut self, cx: &mut Context<'_>) -> Result<bool, Failure> {
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
        if content.pipe.is_some() {
            return self.poll_splice(cx);
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

    /// Moves content within the kernel, from socket to socket. False: nothing can be moved for now. A pipe is taken only
    /// between two sockets without TLS.
    fn poll_splice(&mut self, cx: &mut Context<'_>) -> Result<bool, Failure> {
        let Download::Sending(content) = &mut self.download else { return Ok(false) };
        let Some(Upstream::H1(h1)) = &mut self.upstream else { return Err(Failure::ResponseTruncated) };
        let (Some(pipe), Some(client), Some(backend)) = (&mut content.pipe, self.client.plain(), h1.socket.plain())
        else {
            return Ok(false);
        };
        let body = &mut content.body;
        if pipe.is_empty() {
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
        match pipe.poll_empty(cx, client) {
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
        }
    }

    /// The failure for a response that the backend truncated. The client is at fault if it kept the backend waiting: a
    /// backend may limit how long it waits for its response to be read.
    fn broken_off(&self) -> Failure {
        if self.client_lag < MIN_CLIENT_LAG { Failure::ResponseTruncated } else { Failure::ClosedDuringDownload }
    }
}

/// Whose fault a malformed head is. The server writes the status line, but the application writes the fields, and some
/// of them may contain text from the client.
pub(super) fn failure_of(bad: BadResponse) -> Failure {
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
