//! Content of requests: DATA frames are handed on as they come, to whoever takes them from the stream, and the client may send as
//! much again as was taken (RFC 9113 §5.2).

use std::task::{Context, Poll};

use super::super::buffers;
use super::super::frame::{Bad, Code, DataFrame, FIRST_WINDOW, write};
use super::{Came, Connection, Gone, Input, MAX_STREAMS, Reset};

/// How much further than their first windows streams may be opened whose content is taken as fast as it comes, all of them
/// together. Without it an upload is held to 64 KiB for each round trip. About what Linux lets a connection of TCP have.
pub const EXTRA_WINDOW: i64 = 4 * 1024 * 1024;
/// By how many times of what it is given back such a stream is opened further: its window grows fourfold in a round trip.
const WINDOW_GROWTH: i64 = 3;
/// How much content a client may send ahead on all streams together: the windows of all and of one more, so that those
/// whose backend does not read hold up no other.
pub const CONNECTION_WINDOW: i64 = (MAX_STREAMS as i64 + 1) * 64 * 1024 + EXTRA_WINDOW;
/// The client may send as much again once so much was taken. Small beside what all streams leave of the connection's window.
pub const RELEASED_AT_ONCE: i64 = 32 * 1024;
/// So much of a stream's content may have been taken and not been freed, or as much as has not been taken.
const MAX_TAKEN_BYTES: usize = 32 * 1024;

/// What is still to come of a DATA frame, and what nobody takes of it.
#[derive(Debug)]
pub struct IncomingData {
    id: u32,
    content: usize,
    padding: usize,
    is_end: bool,
    /// Its padding, with the length of that.
    overhead: i64,
    /// Content of a stream that is over, or that nobody wants.
    dropped: i64,
}

impl Connection {
    /// A DATA frame begins, and counts against the windows as a whole. A stream's error ends the stream; what is still to come of
    /// the frame is dropped.
    pub(super) fn begin_data(&mut self, frame: DataFrame) -> Result<IncomingData, Bad> {
        let DataFrame { id, content, padding, size, is_end } = frame;
        let size = size as i64;
        if self.is_idle(id) {
            return Err(Bad::Connection(Code::Protocol, "content on a stream without a head"));
        }
        if size > self.receive_window {
            return Err(Bad::Connection(Code::FlowControl, "more content than the connection's window"));
        }
        self.receive_window -= size;
        if content == 0 && !is_end {
            self.budgets.idle_frame()?;
        }
        if let Some(code) = self.content_error(id, content, size)? {
            self.fail_stream(id, code);
        }
        if let Some(at) = self.find_unreset(id) {
            let stream = &mut self.streams[at];
            stream.receive_window -= size;
            stream.declared = stream.declared.map(|declared| declared - content as u64);
        }
        Ok(IncomingData { id, content, padding, is_end, overhead: size - content as i64, dropped: 0 })
    }

    /// What is wrong with content on a stream.
    fn content_error(&mut self, id: u32, content: usize, size: i64) -> Result<Option<Code>, Bad> {
        let Some(at) = self.find(id) else {
            return match self.ended.was_reset(id) || self.ended.is_unended(id) && content == 0 {
                true => Ok(None),
                false if self.ended.end(id) => Ok(Some(Code::Protocol)),
                false => Err(Bad::Connection(Code::StreamClosed, "content on a stream that is closed")),
            };
        };
        let stream = &self.streams[at];
        Ok(match (stream.reset, stream.input) {
            (Some(Reset::ByUs), _) => None,
            (Some(Reset::ByClient), _) | (None, Input::Ended) => Some(Code::StreamClosed),
            _ if size > stream.receive_window => Some(Code::FlowControl),
            _ if stream.declared.is_some_and(|declared| declared < content as u64) => Some(Code::Protocol),
            _ => None,
        })
    }

    /// Hands on what came of a DATA frame; how much that was. `None`: nothing came.
    pub(super) fn go_on_with_data(&mut self, data: IncomingData, bytes: &[u8]) -> Option<(usize, Result<(), Bad>)> {
        if bytes.is_empty() {
            self.data = Some(data);
            return None;
        }
        Some(self.take_data(data, bytes))
    }

    pub(super) fn take_data(&mut self, mut data: IncomingData, bytes: &[u8]) -> (usize, Result<(), Bad>) {
        let (content, rest) = bytes.split_at(data.content.min(bytes.len()));
        let padding = data.padding.min(rest.len());
        data.content -= content.len();
        data.padding -= padding;
        match self.find_unreset(data.id).map(|at| &mut self.streams[at]) {
            Some(stream) if stream.input == Input::Open => {
                if !content.is_empty() {
                    if stream.content.capacity() == 0 {
                        stream.content = buffers::take();
                    }
                    stream.content.extend_from_slice(content);
                    stream.wake();
                }
            }
            _ => data.dropped += content.len() as i64,
        }
        let used = content.len() + padding;
        if data.content + data.padding > 0 {
            self.data = Some(data);
            return (used, Ok(()));
        }
        (used, self.end_data(&data))
    }

    /// The end of a DATA frame has come: the client may send as much again as nobody takes of it.
    fn end_data(&mut self, data: &IncomingData) -> Result<(), Bad> {
        let IncomingData { id, is_end, overhead, dropped, .. } = *data;
        let at = self.find_unreset(id);
        if let Some(at) = at {
            self.release_on_stream(at, overhead);
        }
        self.release(overhead + dropped);
        match at {
            _ if !is_end => Ok(()),
            Some(at) => self.end_input(at),
            None => {
                self.ended.end(id);
                Ok(())
            }
        }
    }

    /// The client has sent everything on a stream.
    pub(super) fn end_input(&mut self, at: usize) -> Result<(), Bad> {
        let stream = &mut self.streams[at];
        if stream.declared.is_some_and(|declared| declared > 0) {
            return Err(Bad::Stream(stream.id, Code::Protocol));
        }
        stream.input = Input::Ended;
        stream.wake();
        Ok(())
    }

    /// The client may send as much again on the connection.
    pub(super) fn release(&mut self, size: i64) {
        self.unreleased += size;
        if self.unreleased >= RELEASED_AT_ONCE {
            let by = std::mem::take(&mut self.unreleased);
            self.receive_window += by;
            write::window_update(0, by as u32, self.control());
            self.call();
        }
    }

    /// The client may send as much again on the stream, or more where nobody has to take anything of it.
    fn release_on_stream(&mut self, at: usize, size: i64) {
        let stream = &mut self.streams[at];
        stream.unreleased += size;
        if stream.unreleased >= FIRST_WINDOW / 2 && stream.input == Input::Open && stream.reset.is_none() {
            let mut by = std::mem::take(&mut stream.unreleased);
            if stream.content.is_empty() {
                // Whoever takes it is no slower than the client: let more be under way.
                let more = (WINDOW_GROWTH * by).min(self.extra_window);
                stream.extra_window += more;
                self.extra_window -= more;
                by += more;
            }
            stream.receive_window += by;
            let id = stream.id;
            write::window_update(id, by as u32, self.control());
            self.call();
        }
    }

    // --- A stream's side.

    /// Waits for content of a request, or its end.
    pub fn poll_content(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<Result<Came, Gone>> {
        let Some(at) = self.find(id) else { return Poll::Ready(Err(Gone)) };
        let stream = &mut self.streams[at];
        if stream.reset.is_some() {
            return Poll::Ready(Err(Gone));
        }
        match (stream.content.len() - stream.content_at, stream.input) {
            (0, Input::Open) => stream.wait(cx),
            (0, Input::Dropped | Input::Ended) => Poll::Ready(Ok(Came::End)),
            (count, _) => Poll::Ready(Ok(Came::Some(count))),
        }
    }

    /// Takes content, at most so much; the client may then send as much again, or more where that was all there is.
    pub fn take_content(&mut self, id: u32, most: usize, put: impl FnOnce(&[u8])) -> usize {
        let Some(at) = self.find(id) else { return 0 };
        let stream = &mut self.streams[at];
        let content = &stream.content[stream.content_at..];
        let count = content.len().min(most);
        put(&content[..count]);
        stream.content_at += count;
        if stream.content_at == stream.content.len() {
            stream.drop_content();
        } else if stream.content_at >= MAX_TAKEN_BYTES.max(stream.content.len() / 2) {
            stream.content.drain(..stream.content_at);
            stream.content_at = 0;
        }
        self.release_on_stream(at, count as i64);
        self.release(count as i64);
        count
    }

    /// The trailers of a request that has ended, as lines of HTTP/1.1.
    pub fn take_trailers(&mut self, id: u32) -> Vec<u8> {
        self.find(id).map_or_else(Vec::new, |at| std::mem::take(&mut self.streams[at].trailers))
    }

    /// What comes of the request from now on is dropped.
    pub fn drop_content(&mut self, id: u32) {
        if let Some(at) = self.find(id) {
            let stream = &mut self.streams[at];
            let left = stream.drop_content();
            if stream.input == Input::Open {
                stream.input = Input::Dropped;
            }
            self.release(left);
        }
    }
}
