//! An HTTP/2 stream as `AsyncRead` and `AsyncWrite`, like an HTTP/1.1 connection with one request.
//!
//! Reading gives the request in HTTP/1.1; content without a length comes in chunks. Behind it reading is pending, as on
//! a connection whose client waits for the response: it fails when the client resets the stream, and ends once the
//! stream was shut down. Writing takes the response in HTTP/1.1, with interim ones before it.
//!
//! A WebSocket (RFC 8441) is read as its handshake in HTTP/1.1, then the data that the client sends, then the end.
//! Behind a 101, bytes are written as they are, and shutting down ends the client's data. Any other response ends the
//! request, and the data of the client is dropped.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::pace::ConnectionTotal;
use super::connection::{Connection, HeadKind, Received, ShutWindow};
use super::frame::Code;
use super::head::{self, Content, Request};
use crate::http::h1::body::BodyReader;
use crate::http::h1::chunked::{self, CHUNK_END, ChunkHeader};
use crate::http::h1::response::ResponseHead;
use crate::message::framing::Framing;
use crate::message::limits::Limits;
use crate::message::{Method, Parsed};

/// A larger `text` is freed once it has been read. The lines of chunks are smaller.
const MAX_KEPT_BYTES: usize = 64;

/// What the task of a connection shares with those of its streams. All run on one thread, so that the lock is always
/// free; it is there because the runtime demands `Send`.
pub(crate) struct Link {
    connection: Mutex<Connection>,
    pub total: ConnectionTotal,
    pub is_tls: bool,
}

impl Link {
    pub(crate) fn new(connection: Connection, total: ConnectionTotal, is_tls: bool) -> Self {
        Self { connection: Mutex::new(connection), total, is_tls }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) struct Http2Stream {
    link: Arc<Link>,
    id: u32,
    /// HTTP/1.1 to be read before more content: the head, or the line of a chunk. The first `text_at` bytes have been
    /// read.
    text: Vec<u8>,
    text_at: usize,
    is_too_large: bool,
    /// How much content can be read behind `text`.
    data: usize,
    input: Input,
    method: Method,
    is_connect: bool,
    output: Output,
    /// The window that kept the last write back.
    shut_window: Option<ShutWindow>,
    /// The value from which its [share](Connection::share) is counted, while content waits for anything but its own
    /// window.
    share_since: Option<u64>,
    /// Nothing more will be written.
    is_shut_down: bool,
}

/// How the content of the request is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Input {
    Plain,
    /// In chunks. True: one has been read before.
    Chunked(bool),
    /// As the data of a WebSocket.
    WebSocket,
    /// The client has closed its side of a WebSocket.
    Closed,
    /// All has been read.
    Ended,
}

/// What comes next of the response.
enum Output {
    /// A head, of which these bytes have been written.
    Head(Vec<u8>),
    Content(BodyReader),
    /// Trailers, which wait for their turn as a head does. The reader has come to the end of the content.
    Trailers(BodyReader),
    /// The data of a WebSocket.
    WebSocket,
    /// Nothing: the response is complete.
    Ended,
}

impl Http2Stream {
    pub(crate) fn new(link: Arc<Link>, id: u32, request: Request) -> Self {
        let Request { text, is_too_large, method, is_connect, content, .. } = request;
        let input = match content {
            Content::Nothing => Input::Ended,
            Content::Plain => Input::Plain,
            Content::Chunked => Input::Chunked(false),
            Content::Tunnel => Input::WebSocket,
        };
        let output = Output::Head(Vec::new());
        Self {
            link,
            id,
            text,
            text_at: 0,
            is_too_large,
            data: 0,
            input,
            method,
            is_connect,
            output,
            shut_window: None,
            share_since: None,
            is_shut_down: false,
        }
    }

    /// Whether the client has asked with CONNECT: any 2xx would say that its WebSocket is open (RFC 8441 §5).
    pub(crate) fn is_connect(&self) -> bool {
        self.is_connect
    }

    /// Whether the head of the request exceeds the limit. Then what is read of it has no end.
    pub(crate) fn is_too_large(&self) -> bool {
        self.is_too_large
    }

    /// Takes the head of the request.
    pub(crate) fn take_head(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.text)
    }

    pub(crate) fn total(&self) -> &ConnectionTotal {
        &self.link.total
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.link.is_tls
    }

    /// Whether a window kept the last write back: its client can open it at any time, whatever else the connection
    /// carries.
    pub(crate) fn is_window_shut(&self) -> bool {
        self.shut_window.is_some()
    }

    /// How many bytes the stream would have sent since this was last called, or since it began to wait, if it had not had
    /// to wait for the turns of others.
    pub(crate) fn take_share(&mut self) -> u64 {
        self.share_since.as_mut().map_or(0, |since| self.link.lock().share(since))
    }

    /// Notes what keeps content back.
    fn note_wait(&mut self) {
        let connection = self.link.lock();
        self.shut_window = connection.shut_window(self.id);
        // The socket may be full for a moment in between: what was shared out before counts all the same.
        self.share_since = match self.shut_window {
            Some(ShutWindow::Stream) => None,
            _ => self.share_since.or(Some(connection.share_now())),
        };
    }

    /// The response will be one of our own, not a backend's.
    pub(crate) fn answer_ourselves(&self) {
        self.link.lock().answer_ourselves(self.id);
    }

    /// Ends the stream so that the client cannot take what it has for a whole response.
    pub(crate) fn abort(self) {
        let code = match &self.output {
            Output::Head(_) | Output::Content(_) | Output::Trailers(_) => Code::Internal,
            // The equivalent of a reset connection (RFC 8441 §5).
            Output::WebSocket => Code::Cancel,
            Output::Ended => return,
        };
        self.link.lock().abort(self.id, code);
    }

    /// Ends the stream so that its client may repeat the request on another connection: nothing of it was done (RFC
    /// 9113 §8.7).
    pub(crate) fn refuse(self) {
        self.link.lock().abort(self.id, Code::RefusedStream);
    }

    /// Waits for more of the request; ready when `text` or `data` has some or the request has ended.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut connection = self.link.lock();
        match ready!(connection.poll_content(self.id, cx)).map_err(|_| reset())? {
            Received::Bytes(count) => {
                drop(connection);
                if let (Input::Chunked(is_later), Some(line)) = (self.input, ChunkHeader::new(count)) {
                    self.begin_line(is_later);
                    self.text.extend_from_slice(line.as_bytes());
                    self.input = Input::Chunked(true);
                }
                self.data = count;
            }
            Received::End => {
                if let Input::Chunked(is_later) = self.input {
                    let trailers = connection.take_trailers(self.id);
                    drop(connection);
                    self.begin_line(is_later);
                    head::write_end(&trailers, &mut self.text);
                }
                self.input = if self.input == Input::WebSocket { Input::Closed } else { Input::Ended };
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Begins the line of a chunk, after the end of the one before.
    fn begin_line(&mut self, is_later: bool) {
        self.text.clear();
        self.text_at = 0;
        if is_later {
            self.text.extend_from_slice(CHUNK_END);
        }
    }

    /// Whether the client has reset the stream, where nothing is read that would tell. Otherwise `cx` is woken when it
    /// does.
    pub(crate) fn is_given_up(&mut self, cx: &mut Context<'_>) -> bool {
        matches!(self.poll_reset(cx), Poll::Ready(Err(_)))
    }

    /// Waits until the client resets the stream. Once the response is complete, that makes no difference.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.output {
            Output::Ended if self.is_shut_down => Poll::Ready(Ok(())),
            Output::Ended => Poll::Pending,
            _ => self.link.lock().poll_reset(self.id, cx).map(|_| Err(reset())),
        }
    }

    /// Sends a head once all of it was written. Returns how many bytes of `buf` were taken.
    fn poll_write_head(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Output::Head(begun) = &mut self.output else { return Poll::Ready(Ok(0)) };
        let mut connection = self.link.lock();
        ready!(connection.poll_room(self.id, cx)).map_err(|_| reset())?;
        let before = begun.len();
        let head = if before == 0 {
            buf
        } else {
            begun.extend_from_slice(buf);
            &*begun
        };
        let mut response = ResponseHead::default();
        let len = match response.parse(head, self.method, &Limits::LARGEST) {
            Parsed::Complete(len) => len,
            Parsed::Partial => {
                if before == 0 {
                    begun.extend_from_slice(buf);
                }
                return Poll::Ready(Ok(buf.len()));
            }
            Parsed::Rejected(bad) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, bad))),
        };
        // To a CONNECT any 2xx would say that the WebSocket is open.
        if self.is_connect && matches!(response.status(), 200..=299) {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let (is_interim, opens_tunnel) = (response.is_interim(), response.status() == 101);
        let is_end = !is_interim && !opens_tunnel && matches!(response.framing(), Framing::None | Framing::Length(0));
        let kind = match opens_tunnel {
            true => HeadKind::Tunnel,
            false if is_interim => HeadKind::Interim,
            false => HeadKind::Response,
        };
        connection.send_head(self.id, kind, is_end, |out| head::write_response(&response, head, out));
        if is_interim {
            begun.clear();
            return Poll::Ready(Ok(len - before));
        }
        if matches!(self.input, Input::WebSocket | Input::Closed) && !opens_tunnel {
            // The client may have sent data for the WebSocket already.
            (self.input, self.data) = (Input::Ended, 0);
            connection.drop_content(self.id);
        }
        self.output = match (opens_tunnel, is_end) {
            (true, _) => Output::WebSocket,
            (_, true) => Output::Ended,
            _ => Output::Content(BodyReader::new(response.framing(), chunked::Limits::default())),
        };
        Poll::Ready(Ok(len - before))
    }

    /// Sends data of a WebSocket.
    fn poll_write_websocket(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut connection = self.link.lock();
        let most = ready!(connection.poll_window(self.id, cx)).map_err(|_| reset())?;
        let count = buf.len().min(most);
        let start = connection.begin_content();
        connection.content().extend_from_slice(&buf[..count]);
        connection.end_content(start, self.id, false);
        Poll::Ready(Ok(count))
    }

    /// Sends content, in as many frames as may go without waiting.
    fn poll_write_content(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Output::Content(reader) = &mut self.output else { return Poll::Ready(Ok(0)) };
        let mut connection = self.link.lock();
        let mut at = 0;
        while at < buf.len() && !reader.is_done() {
            let most = match at {
                0 => match connection.poll_window(self.id, cx) {
                    Poll::Ready(Ok(most)) => most,
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(reset())),
                    Poll::Pending => 0,
                },
                _ => connection.window(self.id),
            };
            // Chunk lines and the end of content need no window: the client may have opened it for the content alone.
            if most == 0 {
                let next = reader.clone().advance(&buf[at..]).map_err(|_| malformed())?;
                match next.data(&buf[at..]).is_empty() {
                    true => {}
                    false if at > 0 => return Poll::Ready(Ok(at)),
                    false => return Poll::Pending,
                }
            }
            let start = connection.begin_content();
            let end = start + super::frame::HEAD_BYTES + most;
            while at < buf.len() && !reader.is_done() {
                // Without a window, bytes are taken up to the next data.
                let room = end - connection.content().len();
                let rest = &buf[at..];
                let piece = if most == 0 { rest } else { &rest[..rest.len().min(room)] };
                let progress = match reader.advance(piece) {
                    Ok(progress) => progress,
                    Err(_) => {
                        connection.content().truncate(start);
                        return Poll::Ready(Err(malformed()));
                    }
                };
                connection.content().extend_from_slice(progress.data(piece));
                at += progress.consumed;
                if most == 0 || connection.content().len() == end {
                    break;
                }
            }
            connection.end_content(start, self.id, reader.is_done() && reader.trailers().is_empty());
        }
        if reader.is_done() {
            self.output = match reader.trailers() {
                [] => Output::Ended,
                _ => Output::Trailers(reader.clone()),
            };
        }
        Poll::Ready(Ok(at))
    }

    /// Sends the trailers, if there are any left to send.
    fn poll_send_trailers(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Output::Trailers(reader) = &self.output {
            let mut connection = self.link.lock();
            ready!(connection.poll_room(self.id, cx)).map_err(|_| reset())?;
            connection.send_trailers(self.id, |out| head::write_trailers(reader.trailers(), out));
            drop(connection);
            self.output = Output::Ended;
        }
        Poll::Ready(Ok(()))
    }
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

fn malformed() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

impl Drop for Http2Stream {
    fn drop(&mut self) {
        self.link.lock().leave(self.id);
    }
}

impl AsyncRead for Http2Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while buf.remaining() > 0 {
            if this.text_at < this.text.len() {
                let rest = &this.text[this.text_at..];
                let count = rest.len().min(buf.remaining());
                buf.put_slice(&rest[..count]);
                this.text_at += count;
                if this.text_at == this.text.len() && this.text.capacity() > MAX_KEPT_BYTES {
                    (this.text, this.text_at) = (Vec::new(), 0);
                }
                if this.data == 0 {
                    break;
                }
            } else if this.data > 0 {
                let most = this.data.min(buf.remaining());
                let mut connection = this.link.lock();
                let count = connection.take_content(this.id, most, |content| buf.put_slice(content));
                if count == 0 {
                    return Poll::Ready(Err(reset()));
                }
                this.data -= count;
                break;
            } else if this.input == Input::Ended {
                return this.poll_reset(cx);
            } else if this.input == Input::Closed {
                if let Output::Head(_) = this.output {
                    // Until the WebSocket is open, the end of the client's side is no more than the end of a request.
                    return this.poll_reset(cx);
                }
                break;
            } else {
                ready!(this.poll_request(cx))?;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Http2Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.shut_window = None;
        let written = match this.output {
            Output::Head(_) => this.poll_write_head(cx, buf),
            Output::Content(..) => this.poll_write_content(cx, buf),
            Output::WebSocket => this.poll_write_websocket(cx, buf),
            Output::Trailers(_) | Output::Ended => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        };
        if written.is_ready() {
            // Only a stream whose write is pending may stay in the queue: the next write may need no turn, or never
            // come.
            this.link.lock().stand_back(this.id);
            this.share_since = None;
        } else if let Output::Content(_) = this.output {
            this.note_wait();
        }
        written
    }

    /// Ready once the connection has all that was written. It sends that by itself.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send_trailers(cx)
    }

    /// Ends a WebSocket's output. The framing of any other response has ended it.
    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_shut_down = true;
        if let Output::WebSocket = self.output {
            let mut connection = self.link.lock();
            let start = connection.begin_content();
            connection.end_content(start, self.id, true);
            drop(connection);
            self.output = Output::Ended;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
