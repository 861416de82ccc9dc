//! A client's connection that a Pingora server has accepted, plain or TLS. It is behind a pointer, so bytes cannot be
//! spliced.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pingora::protocols::Stream;
use pingora::protocols::l4::ext::TCP_INFO;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub(crate) struct Accepted {
    stream: Stream,
    is_tls: bool,
    /// A byte that was read ahead, to see whether the client is still connected.
    ahead: Option<u8>,
    /// The client has closed its side, after `ahead`.
    is_ended: bool,
}

impl Accepted {
    pub(crate) fn new(stream: Stream) -> Self {
        let is_tls = stream.get_ssl_digest().is_some();
        Self { stream, is_tls, ahead: None, is_ended: false }
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// What the kernel tells about the connection; `None` if it is not TCP.
    pub(crate) fn tcp_info(&self) -> Option<TCP_INFO> {
        self.stream.get_socket_digest()?.tcp_info()
    }

    /// Whether the client has reset the connection, or closed its side though at least `missing` bytes are still to
    /// come. Otherwise `cx` is woken when that may have changed, but not while an unread byte hides what follows it.
    pub(crate) fn has_disconnected(&mut self, cx: &mut Context<'_>, missing: u64) -> bool {
        if !self.is_ended && self.ahead.is_none() {
            let mut byte = [0];
            let mut byte = ReadBuf::new(&mut byte);
            match Pin::new(&mut self.stream).poll_read(cx, &mut byte) {
                Poll::Pending => {}
                Poll::Ready(Err(_)) => return true,
                Poll::Ready(Ok(())) => {
                    self.ahead = byte.filled().first().copied();
                    self.is_ended = self.ahead.is_none();
                }
            }
        }
        self.is_ended && u64::from(self.ahead.is_some()) < missing
    }
}

impl AsyncRead for Accepted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if let Some(byte) = this.ahead.take() {
            buf.put_slice(&[byte]);
            return Poll::Ready(Ok(()));
        }
        if this.is_ended {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        this.is_ended = buf.filled().len() == before;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Waker;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn accepted() -> (DuplexStream, Accepted) {
        let (client, ours) = duplex(64);
        (client, Accepted::new(Box::new(ours)))
    }

    fn has_disconnected(accepted: &mut Accepted, missing: u64) -> bool {
        accepted.has_disconnected(&mut Context::from_waker(Waker::noop()), missing)
    }

    #[tokio::test]
    async fn a_closed_client_is_noticed_and_a_waiting_one_is_not() {
        let (client, mut accepted) = accepted();
        assert!(!has_disconnected(&mut accepted, u64::MAX));
        drop(client);
        assert!(!has_disconnected(&mut accepted, 0), "it has sent all that it had to");
        assert!(has_disconnected(&mut accepted, 1));
        assert_eq!(accepted.read(&mut [0; 8]).await.expect("an end"), 0);
    }

    #[tokio::test]
    async fn bytes_read_to_detect_a_close_are_not_lost() {
        let (mut client, mut accepted) = accepted();
        client.write_all(b"GET /").await.expect("room");
        for _ in 0..3 {
            assert!(!has_disconnected(&mut accepted, u64::MAX), "a byte waits");
        }
        client.shutdown().await.expect("an open side");
        let mut text = String::new();
        accepted.read_to_string(&mut text).await.expect("text");
        assert_eq!(text, "GET /");
        assert!(has_disconnected(&mut accepted, 1));
    }

    #[tokio::test]
    async fn a_task_that_waits_is_woken_by_the_close() {
        let (client, mut accepted) = accepted();
        let closing = async {
            tokio::task::yield_now().await;
            drop(client);
        };
        let disconnected =
            poll_fn(|cx| if accepted.has_disconnected(cx, u64::MAX) { Poll::Ready(()) } else { Poll::Pending });
        tokio::join!(disconnected, closing);
    }
}
