//! The upload: reads the request's content from the client and sends it to the backend, and watches the client after
//! that.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BufMut;
use tokio_util::io::poll_read_buf;

use super::super::buffers::Buffers;
use super::super::disconnect::DisconnectWatcher;
use super::super::upstream::Upstream;
use super::{
    AbandonReason, Download, MAX_CONSECUTIVE_READS, MAX_PIPELINED_BYTES, MAX_UNSEEN_TLS_BYTES, READ_BYTES, Transfer,
    TransferEvent, Upload,
};
use crate::config::HalfClose;
use crate::failure::Failure;
use crate::plant::Bug;

impl Transfer<'_> {
    /// As [`poll_download`](Self::poll_download), for the other direction.
    pub(super) fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<Option<TransferEvent>, Failure> {
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
    pub(super) fn watch_client(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
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
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>, missing: u64) -> Result<(), Failure> {
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
}
