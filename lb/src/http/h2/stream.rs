//! One HTTP/2 stream, read and written as an HTTP/1.1 connection with one request. Reading gives the request; content
//! without a length comes in chunks. After its end nothing comes, since a client that has sent everything is still
//! there: an error when it resets the stream, the end once the stream was shut down. Writing takes the response, interim
//! ones included.
//!
//! A WebSocket (RFC 8441) is read as its handshake in HTTP/1.1, and behind that what the client sends, to its end.
//! Once a 101 was written, what is written is sent as it is, and shutting down ends that. Any other response ends the
//! request: what the client has sent for the WebSocket is dropped.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::pace::Total;
use super::head;
use crate::http::h1::body::BodyReader;
use crate::http::h1::chunked::{self, CHUNK_END, ChunkHeader};
use crate::http::h1::response::ResponseHead;
use crate::message::framing::Framing;
use crate::message::limits::Limits;
use crate::message::{Method, Parsed};

pub struct Http2Stream {
    /// Text of HTTP/1.1 that goes before `data`: the head, or the line of a chunk. `text_at` of it have been read.
    text: Vec<u8>,
    text_at: usize,
    /// Content that came and has not been read.
    data: Bytes,
    request: RecvStream,
    input: Input,
    method: Method,
    respond: SendResponse<Bytes>,
    output: Output,
    /// Nothing more will be written.
    is_shut_down: bool,
    /// The client has reset the stream, or left, and had no whole response.
    is_reset: bool,
    is_tls: bool,
    /// Of the whole connection.
    total: Total,
}

/// How the content of the request is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Input {
    Plain,
    /// In chunks; true: one came before.
    Chunked(bool),
    /// As what a WebSocket has to carry.
    WebSocket,
    /// The client has closed its side of a WebSocket.
    Closed,
    /// To the end.
    Ended,
}

/// What comes next of the response.
enum Output {
    /// A head, with what was written of it.
    Head(Vec<u8>),
    Content(SendStream<Bytes>, BodyReader),
    /// What a WebSocket carries.
    WebSocket(SendStream<Bytes>),
    /// Nothing; it is complete.
    Ended,
}

impl Http2Stream {
    pub fn new(request: Request<RecvStream>, respond: SendResponse<Bytes>, is_tls: bool, total: Total) -> Self {
        let (parts, request) = request.into_parts();
        let has_content = !request.is_end_stream();
        let mut text = Vec::with_capacity(512);
        let is_chunked = head::write_request(&parts, has_content, &mut text);
        let is_websocket = head::asks_for_websocket(&parts);
        let input = match (has_content, is_chunked) {
            _ if is_websocket => Input::WebSocket,
            (false, _) => Input::Ended,
            (true, false) => Input::Plain,
            (true, true) => Input::Chunked(false),
        };
        Self {
            text,
            text_at: 0,
            data: Bytes::new(),
            request,
            input,
            method: if is_websocket { Method::Get } else { Method::of(parts.method.as_str().as_bytes()) },
            respond,
            output: Output::Head(Vec::new()),
            is_shut_down: false,
            is_reset: false,
            is_tls,
            total,
        }
    }

    pub fn total(&self) -> &Total {
        &self.total
    }

    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// Whether the client has reset the stream before it had the whole response, or its WebSocket.
    pub fn is_reset(&self) -> bool {
        self.is_reset
    }

    /// Ends the stream so that the client cannot take what it has for a whole response.
    pub fn abort(mut self) {
        match &mut self.output {
            Output::Head(_) => self.respond.send_reset(Reason::INTERNAL_ERROR),
            Output::Content(send, _) => send.send_reset(Reason::INTERNAL_ERROR),
            // As a connection's reset is told (RFC 8441 §5).
            Output::WebSocket(send) => send.send_reset(Reason::CANCEL),
            Output::Ended => {}
        }
    }

    /// Waits for more of the request; ready when `text` or `data` has some or the request has ended.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let data = match ready!(self.request.poll_data(cx)) {
            Some(Ok(data)) => data,
            Some(Err(error)) => return Poll::Ready(Err(self.lost(error))),
            None => return self.poll_end(cx),
        };
        if let (Input::Chunked(is_later), Some(line)) = (self.input, ChunkHeader::new(data.len())) {
            self.begin_line(is_later);
            self.text.extend_from_slice(line.as_bytes());
            self.input = Input::Chunked(true);
        }
        self.data = data;
        Poll::Ready(Ok(()))
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Input::Chunked(is_later) = self.input {
            let trailers = match ready!(self.request.poll_trailers(cx)) {
                Ok(trailers) => trailers,
                Err(error) => return Poll::Ready(Err(self.lost(error))),
            };
            self.begin_line(is_later);
            head::write_end(trailers.as_ref(), &mut self.text);
        }
        self.input = if self.input == Input::WebSocket { Input::Closed } else { Input::Ended };
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

    /// Whether the client has given the stream up; to be asked where nothing is read.
    pub fn is_given_up(&mut self, cx: &mut Context<'_>) -> bool {
        matches!(self.poll_reset(cx), Poll::Ready(Err(_)))
    }

    /// Waits until the client gives the stream up. It cannot once it has the whole response.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let reset = match &mut self.output {
            Output::Head(_) => self.respond.poll_reset(cx),
            Output::Content(send, _) | Output::WebSocket(send) => send.poll_reset(cx),
            Output::Ended if self.is_shut_down => return Poll::Ready(Ok(())),
            Output::Ended => return Poll::Pending,
        };
        reset.map(|_| Err(self.reset()))
    }

    fn lost(&mut self, error: h2::Error) -> io::Error {
        if matches!(self.output, Output::Ended) {
            return io::Error::other(error);
        }
        self.reset()
    }

    fn reset(&mut self) -> io::Error {
        self.is_reset = !matches!(self.output, Output::WebSocket(_));
        io::ErrorKind::ConnectionReset.into()
    }

    /// Takes what is left of a head; returns how much of `buf` that was.
    fn write_head(&mut self, buf: &[u8]) -> io::Result<usize> {
        let Output::Head(head) = &mut self.output else { return Ok(0) };
        let before = head.len();
        head.extend_from_slice(buf);
        let mut response = ResponseHead::default();
        let len = match response.parse(head, self.method, &Limits::LARGEST) {
            Parsed::Complete(len) => len,
            Parsed::Partial => return Ok(buf.len()),
            Parsed::Rejected(bad) => return Err(io::Error::new(io::ErrorKind::InvalidData, bad)),
        };
        // Any such status would open what the client asked for.
        if matches!(self.input, Input::WebSocket | Input::Closed) && matches!(response.status(), 200..=299) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let message = head::response(&response, head);
        if response.is_interim() {
            head.clear();
            self.respond.send_informational(message).map_err(|_| self.reset())?;
            return Ok(len - before);
        }
        if response.status() == 101 {
            self.output = Output::WebSocket(self.respond.send_response(message, false).map_err(|_| self.reset())?);
            return Ok(len - before);
        }
        if matches!(self.input, Input::WebSocket | Input::Closed) {
            self.drop_input();
        }
        let is_end = matches!(response.framing(), Framing::None | Framing::Length(0));
        let send = self.respond.send_response(message, is_end).map_err(|_| self.reset())?;
        self.output = match is_end {
            true => Output::Ended,
            false => Output::Content(send, BodyReader::new(response.framing(), chunked::Limits::default())),
        };
        Ok(len - before)
    }

    /// Ends the request. The client may have sent more: that goes with the stream, as its flow control does.
    fn drop_input(&mut self) {
        self.input = Input::Ended;
        self.data = Bytes::new();
    }

    /// Sends what a WebSocket carries, as much as the client has opened its window for.
    fn poll_write_websocket(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Output::WebSocket(send) = &mut self.output else { return Poll::Ready(Ok(0)) };
        send.reserve_capacity(buf.len());
        let mut most = send.capacity();
        while most == 0 && !buf.is_empty() {
            match ready!(send.poll_capacity(cx)) {
                Some(Ok(_)) => most = send.capacity(),
                Some(Err(_)) | None => return Poll::Ready(Err(self.reset())),
            }
        }
        let count = buf.len().min(most);
        match send.send_data(Bytes::copy_from_slice(&buf[..count]), false) {
            Ok(()) => Poll::Ready(Ok(count)),
            Err(_) => Poll::Ready(Err(self.reset())),
        }
    }

    fn poll_write_content(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Output::Content(send, reader) = &mut self.output else { return Poll::Ready(Ok(0)) };
        send.reserve_capacity(buf.len());
        let mut most = send.capacity();
        if most == 0 {
            // What delimits content, and its end, need no window: a client may have opened it for the content alone.
            let next = reader.clone().advance(buf).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            if next.data(buf).is_empty() {
                most = next.consumed;
            }
        }
        while most == 0 {
            match ready!(send.poll_capacity(cx)) {
                Some(Ok(_)) => most = send.capacity(),
                Some(Err(_)) | None => return Poll::Ready(Err(self.reset())),
            }
        }
        let buf = &buf[..buf.len().min(most)];
        let mut at = 0;
        let mut sent = Ok(());
        while at < buf.len() && sent.is_ok() {
            let progress = reader.advance(&buf[at..]).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            let data = Bytes::copy_from_slice(progress.data(&buf[at..]));
            at += progress.consumed;
            sent = match (progress.done, head::trailers(reader.trailers())) {
                (false, _) if data.is_empty() => Ok(()),
                (is_end, None) => send.send_data(data, is_end),
                // Trailers end chunks, which leave no content for their end.
                (_, Some(trailers)) => send.send_trailers(trailers),
            };
            if progress.done {
                break;
            }
        }
        if sent.is_err() {
            return Poll::Ready(Err(self.reset()));
        }
        if reader.is_done() {
            self.output = Output::Ended;
        }
        Poll::Ready(Ok(at))
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
                if this.data.is_empty() {
                    break;
                }
            } else if !this.data.is_empty() {
                let count = this.data.len().min(buf.remaining());
                buf.put_slice(&this.data[..count]);
                this.data.advance(count);
                // The client may send as much again. Fails only on a stream that has ended.
                let _ = this.request.flow_control().release_capacity(count);
                break;
            } else if this.input == Input::Ended {
                return this.poll_reset(cx);
            } else if this.input == Input::Closed {
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
        match this.output {
            Output::Head(_) => Poll::Ready(this.write_head(buf)),
            Output::Content(..) => this.poll_write_content(cx, buf),
            Output::WebSocket(_) => this.poll_write_websocket(cx, buf),
            Output::Ended => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// The connection sends what its streams have written.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The response has its end by its framing. A WebSocket's output ends.
    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_shut_down = true;
        if let Output::WebSocket(send) = &mut self.output {
            // Fails only on a stream that was reset, which reading tells.
            let _ = send.send_data(Bytes::new(), true);
            self.output = Output::Ended;
        }
        Poll::Ready(Ok(()))
    }
}
