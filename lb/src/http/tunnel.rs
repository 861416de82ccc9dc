//! A connection that ceased to be HTTP with a 101: bytes pass both ways, each direction ends on its own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

use super::stream::ClientStream;
use super::timer::Timer;

const BUFFER_BYTES: usize = 16 * 1024;

/// How long a backend may go on talking to a client that has closed its side.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(5);

/// Carries bytes until the backend has closed, one side breaks, or both are silent for `timeout`. What was read
/// already goes first. Returns how many bytes the client was sent.
pub async fn carry(
    client: &mut ClientStream,
    backend: &mut TcpStream,
    from_client: Vec<u8>,
    from_backend: Vec<u8>,
    timeout: Duration,
    timer: &mut Timer,
) -> u64 {
    let mut up = Direction::new(from_client);
    let mut down = Direction::new(from_backend);
    loop {
        let patience = if up.is_ended { HALF_CLOSED_TIMEOUT.min(timeout) } else { timeout };
        let step = timer.limit(patience, |cx| {
            let up = up.poll(cx, client, backend);
            let down = down.poll(cx, backend, client);
            match (up, down) {
                // A backend that has closed is done with its client, and would not notice what comes from it.
                (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_) | Ok(Flow::Ended))) => Poll::Ready(Step::Over),
                (Poll::Ready(Ok(Flow::Moved)), _) | (_, Poll::Ready(Ok(Flow::Moved))) => Poll::Ready(Step::Moved),
                _ => Poll::Pending,
            }
        });
        match step.await {
            Ok(Step::Moved) => {}
            Ok(Step::Over) | Err(_) => return down.moved,
        }
    }
}

enum Step {
    Moved,
    Over,
}

enum Flow {
    Moved,
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
    ) -> Poll<io::Result<Flow>> {
        if self.is_ended {
            return Poll::Ready(Ok(Flow::Ended));
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
                return Poll::Ready(Ok(Flow::Moved));
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
        Poll::Ready(Ok(Flow::Moved))
    }
}
