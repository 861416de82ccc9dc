//! A connection that ceased to be HTTP with a 101: bytes pass both ways, each direction ends on its own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

const BUFFER_BYTES: usize = 16 * 1024;

/// How long a backend may go on talking to a client that has closed its side.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(5);

/// Both directions. It is over when the backend has closed, one side breaks, or both are silent for too long.
pub struct Tunnel {
    up: Direction,
    down: Direction,
    /// How many bytes that the client is sent are the head.
    head_bytes: u64,
    timeout: Duration,
}

/// What came of one look at a tunnel.
pub enum Flow {
    Moved,
    Over,
}

impl Tunnel {
    /// What was read already goes first, and to the client a head of so many bytes.
    pub fn new(from_client: Vec<u8>, to_client: Vec<u8>, head_bytes: u64, timeout: Duration) -> Self {
        Self { up: Direction::new(from_client), down: Direction::new(to_client), head_bytes, timeout }
    }

    /// How many bytes the client was sent behind the head.
    pub fn sent(&self) -> u64 {
        self.down.moved.saturating_sub(self.head_bytes)
    }

    /// How long both sides may be silent.
    pub fn patience(&self) -> Duration {
        if self.up.is_ended { HALF_CLOSED_TIMEOUT.min(self.timeout) } else { self.timeout }
    }

    pub fn poll<C, B>(&mut self, cx: &mut Context<'_>, client: &mut C, backend: &mut B) -> Poll<Flow>
    where
        C: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        let up = self.up.poll(cx, client, backend);
        let down = self.down.poll(cx, backend, client);
        match (up, down) {
            // A backend that has closed is done with its client, and would not notice what comes from it.
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_) | Ok(State::Ended))) => Poll::Ready(Flow::Over),
            (Poll::Ready(Ok(State::Open)), _) | (_, Poll::Ready(Ok(State::Open))) => Poll::Ready(Flow::Moved),
            _ => Poll::Pending,
        }
    }
}

enum State {
    Open,
    Ended,
}

struct Direction {
    buffer: Vec<u8>,
    written: usize,
    moved: u64,
    is_ended: bool,
}

impl Direction {
    fn new(buffer: Vec<u8>) -> Self {
        Self { buffer, written: 0, moved: 0, is_ended: false }
    }

    fn poll<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<io::Result<State>> {
        if self.is_ended {
            return Poll::Ready(Ok(State::Ended));
        }
        if self.buffer.is_empty() {
            self.buffer.reserve(BUFFER_BYTES);
            let Poll::Ready(read) = poll_read_buf(Pin::new(reader), cx, &mut self.buffer) else {
                // A silent tunnel holds no buffer.
                self.buffer = Vec::new();
                return Poll::Pending;
            };
            if read? == 0 {
                ready!(Pin::new(writer).poll_shutdown(cx))?;
                self.is_ended = true;
                return Poll::Ready(Ok(State::Open));
            }
        }
        while self.written < self.buffer.len() {
            let count = ready!(Pin::new(&mut *writer).poll_write(cx, &self.buffer[self.written..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
            self.moved += count as u64;
        }
        ready!(Pin::new(writer).poll_flush(cx))?;
        self.buffer.clear();
        self.written = 0;
        Poll::Ready(Ok(State::Open))
    }
}
