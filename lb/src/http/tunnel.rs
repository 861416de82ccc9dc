//! A connection after a 101: bytes pass in both directions, and each direction ends independently.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

const BUFFER_BYTES: usize = 16 * 1024;

/// How long a backend may keep sending to a client that has closed its side.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(5);

/// Both directions. The tunnel ends when the backend has closed, one side fails, or both are idle for too long.
pub(super) struct Tunnel {
    up: Direction,
    down: Direction,
    /// How many of the bytes for the client are the response head.
    head_bytes: u64,
    timeout: Duration,
    /// The backend's side has ended with an error.
    has_backend_broken: bool,
}

/// The result of one poll of a tunnel.
pub(super) enum TunnelProgress {
    Moved,
    Over,
}

impl Tunnel {
    /// Bytes that were read already are sent first; those for the client begin with a head of `head_bytes`.
    pub(super) fn new(from_client: Vec<u8>, to_client: Vec<u8>, head_bytes: u64, timeout: Duration) -> Self {
        let (up, down) = (Direction::new(from_client), Direction::new(to_client));
        Self { up, down, head_bytes, timeout, has_backend_broken: false }
    }

    /// How many bytes the client was sent after the head.
    pub(super) fn sent(&self) -> u64 {
        self.down.moved.saturating_sub(self.head_bytes)
    }

    /// How long both sides may be idle.
    pub(super) fn patience(&self) -> Duration {
        if self.up.is_ended { HALF_CLOSED_TIMEOUT.min(self.timeout) } else { self.timeout }
    }

    /// Whether the client has closed its side, so that nothing more can arrive from it.
    pub(super) fn has_client_ended(&self) -> bool {
        self.up.is_ended
    }

    /// Whether the backend's side has failed.
    pub(super) fn has_backend_broken(&self) -> bool {
        self.has_backend_broken
    }

    /// Whether the backend does not accept what the client sent, so that the client is not read.
    pub(super) fn is_up_stuck(&self) -> bool {
        !self.up.buffer.is_empty()
    }

    /// Whether the client does not accept what the backend sent.
    pub(super) fn is_down_stuck(&self) -> bool {
        !self.down.buffer.is_empty()
    }

    pub(super) fn poll<C, B>(&mut self, cx: &mut Context<'_>, client: &mut C, backend: &mut B) -> Poll<TunnelProgress>
    where
        C: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        let up = match self.up.poll(cx, client, backend) {
            // The client still has to get what the backend sent before.
            Poll::Ready(Err(FailedSide::Writer)) => {
                self.up.is_dropped = true;
                Poll::Ready(Ok(State::Open))
            }
            up => up,
        };
        let down = self.down.poll(cx, backend, client);
        self.has_backend_broken |= matches!(down, Poll::Ready(Err(FailedSide::Reader)));
        match (up, down) {
            // A backend that has closed is done with its client, and would not notice bytes from it.
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_) | Ok(State::Ended))) => Poll::Ready(TunnelProgress::Over),
            (Poll::Ready(Ok(State::Open)), _) | (_, Poll::Ready(Ok(State::Open))) => Poll::Ready(TunnelProgress::Moved),
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
    /// Nobody accepts the bytes: they are dropped.
    is_dropped: bool,
}

/// Which side of a direction has failed.
enum FailedSide {
    Reader,
    Writer,
}

impl Direction {
    fn new(buffer: Vec<u8>) -> Self {
        Self { buffer, written: 0, moved: 0, is_ended: false, is_dropped: false }
    }

    fn poll<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<Result<State, FailedSide>> {
        if self.is_ended {
            return Poll::Ready(Ok(State::Ended));
        }
        if self.buffer.is_empty() {
            self.buffer.reserve(BUFFER_BYTES);
            let Poll::Ready(read) = poll_read_buf(Pin::new(reader), cx, &mut self.buffer) else {
                // An idle tunnel holds no buffer.
                self.buffer = Vec::new();
                return Poll::Pending;
            };
            if read.map_err(|_| FailedSide::Reader)? == 0 {
                if !self.is_dropped {
                    ready!(Pin::new(writer).poll_shutdown(cx)).map_err(|_| FailedSide::Writer)?;
                }
                self.is_ended = true;
                return Poll::Ready(Ok(State::Open));
            }
        }
        if self.is_dropped {
            self.buffer.clear();
            return Poll::Ready(Ok(State::Open));
        }
        let before = self.written;
        while self.written < self.buffer.len() {
            match Pin::new(&mut *writer).poll_write(cx, &self.buffer[self.written..]) {
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.written += count;
                    self.moved += count as u64;
                }
                Poll::Ready(_) => return Poll::Ready(Err(FailedSide::Writer)),
                // A part of the buffer is progress, too.
                Poll::Pending if self.written > before => return Poll::Ready(Ok(State::Open)),
                Poll::Pending => return Poll::Pending,
            }
        }
        ready!(Pin::new(writer).poll_flush(cx)).map_err(|_| FailedSide::Writer)?;
        self.buffer.clear();
        self.written = 0;
        Poll::Ready(Ok(State::Open))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio::io::ReadBuf;

    use super::*;

    /// One side of the tunnel. It sends `sends` and then ends or stays silent, and it accepts nothing, or accepts up to
    /// three bytes every other turn, from its second on.
    struct Side {
        sends: &'static [u8],
        ends: bool,
        has_gone: bool,
        turns: usize,
        taken: Vec<u8>,
    }

    impl AsyncRead for Side {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if self.sends.is_empty() && !self.ends {
                return Poll::Pending;
            }
            buf.put_slice(std::mem::take(&mut self.sends));
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Side {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.turns += 1;
            if self.has_gone {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            if !self.turns.is_multiple_of(2) {
                return Poll::Pending;
            }
            let count = buf.len().min(3);
            self.taken.extend_from_slice(&buf[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn the_last_bytes_of_a_backend_reach_a_client_that_is_still_sending() {
        let mut client = Side { sends: b"more", ends: false, has_gone: false, turns: 0, taken: Vec::new() };
        let mut backend = Side { sends: b"goodbye", ends: true, has_gone: true, turns: 0, taken: Vec::new() };
        let mut tunnel = Tunnel::new(Vec::new(), Vec::new(), 0, Duration::from_secs(60));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let is_over = (0..10)
            .any(|_| matches!(tunnel.poll(&mut cx, &mut client, &mut backend), Poll::Ready(TunnelProgress::Over)));
        assert_eq!((is_over, client.taken.as_slice()), (true, &b"goodbye"[..]));
        assert!(!tunnel.has_client_ended());
    }

    // A slow reader had to take a whole buffer within the time limit.
    #[test]
    fn bytes_that_are_a_part_of_the_buffer_count_as_progress() {
        let mut client = Side { sends: b"", ends: false, has_gone: false, turns: 0, taken: Vec::new() };
        let mut backend = Side { sends: b"goodbye", ends: false, has_gone: false, turns: 0, taken: Vec::new() };
        let mut tunnel = Tunnel::new(Vec::new(), Vec::new(), 0, Duration::from_secs(60));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut turn = || {
            let has_moved =
                matches!(tunnel.poll(&mut cx, &mut client, &mut backend), Poll::Ready(TunnelProgress::Moved));
            (has_moved, client.taken.len())
        };
        assert_eq!([turn(), turn(), turn(), turn()], [(false, 0), (true, 3), (true, 6), (true, 7)]);
    }
}
