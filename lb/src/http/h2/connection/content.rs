//! Content of requests: DATA frames are handed on as they come, to whoever takes them from the stream, and the client
//! may send as much again as was taken (RFC 9113 §5.2).

use std::task::{Context, Poll};

use super::super::buffers;
use super::super::frame::{Code, DataFrame, FIRST_WINDOW, FrameError, write};
use super::super::head::TOO_LITTLE;
use super::{Connection, Gone, Input, MAX_STREAMS, Received, Reset};

/// What is wrong with content beyond its declared length.
const TOO_MUCH: &str = "more content than Content-Length says";
/// By how much the windows of all streams together may grow beyond their first 64 KiB, where content is taken as fast
/// as it comes: otherwise an upload could send only 64 KiB in each round trip. About as much as Linux lets a receive
/// buffer of TCP grow.
pub(super) const EXTRA_WINDOW: i64 = 4 * 1024 * 1024;
/// Such a stream's window grows by this many times what was taken, so that it is four times as large after a round
/// trip.
const WINDOW_GROWTH: i64 = 3;
/// No stream has more of [`EXTRA_WINDOW`] than this many times what it leaves: it keeps its part until it ends, and
/// others may want to send as well.
const MAX_SHARE: i64 = 3;
/// The connection's window: those of all streams and of one more, so that streams whose backends do not read hold up no
/// other.
pub(super) const CONNECTION_WINDOW: i64 = (MAX_STREAMS as i64 + 1) * 64 * 1024 + EXTRA_WINDOW;
/// WINDOW_UPDATE of the connection is sent once this much was taken: less than what all streams leave of its window.
pub(super) const RELEASED_AT_ONCE: i64 = 32 * 1024;
/// Content that was taken is freed once it is this much, and no less than what is left.
const MAX_TAKEN_BYTES: usize = 32 * 1024;

/// A DATA frame of which only a part has come: how many bytes are still to come.
#[derive(Debug)]
pub(super) struct IncomingData {
    id: u32,
    content: usize,
    padding: usize,
    is_end: bool,
    /// Its padding and the byte with the padding's length, which count against the windows too.
    overhead: i64,
    /// How much content has come that no task takes: its stream has ended, or the request was answered.
    dropped: i64,
}

impl Connection {
    /// Begins a DATA frame. It is checked, and counts against the windows, as a whole, so that nothing depends on how
    /// it is cut. An error of the stream resets that, and its content is dropped.
    pub(super) fn begin_data(&mut self, frame: DataFrame) -> Result<IncomingData, FrameError> {
        let DataFrame { id, content, padding, size, is_end } = frame;
        let size = size as i64;
        if self.is_idle(id) {
            return Err(FrameError::Connection(Code::Protocol, "content on a stream without a head"));
        }
        if size > self.receive_window {
            return Err(FrameError::Connection(Code::FlowControl, "more content than the connection's window"));
        }
        self.receive_window -= size;
        if content == 0 && !is_end {
            self.budgets.idle_frame()?;
        }
        if let Some((code, why)) = self.content_error(id, content, size)? {
            self.fail_stream(id, code, why);
        }
        if let Some(at) = self.find_unreset(id) {
            let stream = &mut self.streams[at];
            stream.receive_window -= size;
            stream.declared = stream.declared.map(|declared| declared - content as u64);
        }
        Ok(IncomingData { id, content, padding, is_end, overhead: size - content as i64, dropped: 0 })
    }

    /// The stream's error if content must not come on it; `Err`: the connection's.
    fn content_error(
        &mut self,
        id: u32,
        content: usize,
        size: i64,
    ) -> Result<Option<(Code, &'static str)>, FrameError> {
        let Some(at) = self.find(id) else {
            return match self.ended.was_reset(id) || self.ended.is_unended(id) && content == 0 {
                true => Ok(None),
                false if self.ended.end(id) => Ok(Some((Code::Protocol, TOO_MUCH))),
                false => Err(FrameError::Connection(Code::StreamClosed, "content on a stream that is closed")),
            };
        };
        let stream = &self.streams[at];
        Ok(match (stream.reset, stream.input) {
            (Some(Reset::ByUs), _) => None,
            (Some(Reset::ByClient), _) | (None, Input::Ended) => {
                Some((Code::StreamClosed, "content on a stream that is closed"))
            }
            _ if size > stream.receive_window => Some((Code::FlowControl, "content beyond the window")),
            _ if stream.declared.is_some_and(|declared| declared < content as u64) => Some((Code::Protocol, TOO_MUCH)),
            _ => None,
        })
    }

    /// Continues a DATA frame that has begun. Returns as [`Self::next_frame`].
    pub(super) fn continue_data(
        &mut self,
        data: IncomingData,
        bytes: &[u8],
    ) -> Option<(usize, Result<(), FrameError>)> {
        if bytes.is_empty() {
            self.data = Some(data);
            return None;
        }
        Some(self.take_data(data, bytes))
    }

    pub(super) fn take_data(&mut self, mut data: IncomingData, bytes: &[u8]) -> (usize, Result<(), FrameError>) {
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
                    // By no more than a quarter, since many streams may have content that waits.
                    if stream.content.capacity() - stream.content.len() < content.len() {
                        stream.content.reserve_exact(content.len().max(stream.content.len() / 4));
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

    /// Ends a DATA frame: what no task takes of it is given back.
    fn end_data(&mut self, data: &IncomingData) -> Result<(), FrameError> {
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

    /// END_STREAM has come.
    pub(super) fn end_input(&mut self, at: usize) -> Result<(), FrameError> {
        let stream = &mut self.streams[at];
        if stream.declared.is_some_and(|declared| declared > 0) {
            return Err(FrameError::Stream(stream.id, Code::Protocol, TOO_LITTLE));
        }
        stream.input = Input::Ended;
        stream.wake();
        Ok(())
    }

    /// Gives `size` bytes back to the connection's window.
    pub(super) fn release(&mut self, size: i64) {
        self.unreleased += size;
        if self.unreleased >= RELEASED_AT_ONCE {
            let by = std::mem::take(&mut self.unreleased);
            self.receive_window += by;
            write::window_update(0, by as u32, self.control());
            self.wake_driver();
        }
    }

    /// Gives `size` bytes back to the stream's window, and more of [`EXTRA_WINDOW`] if most of its content has been
    /// taken.
    fn release_on_stream(&mut self, at: usize, size: i64) {
        let stream = &mut self.streams[at];
        stream.unreleased += size;
        if stream.unreleased >= FIRST_WINDOW / 2 && stream.input == Input::Open && stream.reset.is_none() {
            let mut by = std::mem::take(&mut stream.unreleased);
            let untaken = (stream.content.len() - stream.content_at) as i64;
            if untaken < (FIRST_WINDOW + stream.extra_window) / 2 {
                // It is taken as fast as it comes.
                let share = (MAX_SHARE * self.extra_window - stream.extra_window) / (MAX_SHARE + 1);
                let more = (WINDOW_GROWTH * by).min(share).max(0);
                stream.extra_window += more;
                self.extra_window -= more;
                by += more;
            }
            stream.receive_window += by;
            let id = stream.id;
            write::window_update(id, by as u32, self.control());
            self.wake_driver();
        }
    }

    // --- The streams' side.

    /// Waits for content of a request, or its end.
    pub fn poll_content(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<Result<Received, Gone>> {
        let Some(at) = self.find(id) else { return Poll::Ready(Err(Gone)) };
        let stream = &mut self.streams[at];
        if stream.reset.is_some() {
            return Poll::Ready(Err(Gone));
        }
        match (stream.content.len() - stream.content_at, stream.input) {
            (0, Input::Open) => stream.wait(cx),
            (0, Input::Dropped | Input::Ended) => Poll::Ready(Ok(Received::End)),
            (count, _) => Poll::Ready(Ok(Received::Bytes(count))),
        }
    }

    /// Takes at most `max_bytes` of content, which are given back to the windows. Returns how many.
    pub fn take_content(&mut self, id: u32, max_bytes: usize, put: impl FnOnce(&[u8])) -> usize {
        let Some(at) = self.find(id) else { return 0 };
        let stream = &mut self.streams[at];
        let content = &stream.content[stream.content_at..];
        let count = content.len().min(max_bytes);
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

    /// Drops the content that has not been taken, and all that is still to come.
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
