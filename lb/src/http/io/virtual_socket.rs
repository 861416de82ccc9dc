//! A connection in the form in which Pingora takes one that it has not opened itself.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Io;

pub(crate) struct Virtual {
    /// Dropped with the connection, before its file descriptor is closed, since fields are dropped in their order.
    _guard: Box<dyn Send + Sync>,
    io: Io,
    /// The next read finds nothing, and is woken at once.
    pauses: bool,
}

impl Virtual {
    pub(crate) fn new(io: Io, guard: impl Send + Sync + 'static) -> Self {
        Self { _guard: Box::new(guard), io, pauses: false }
    }

    /// Has the first read find nothing, so that its caller does something else first.
    #[cfg(feature = "pingora-proxy")]
    pub(crate) fn pausing(self) -> Self {
        Self { pauses: true, ..self }
    }

    pub(crate) fn into_stream(self) -> Stream {
        Stream::from(VirtualSocketStream::new(Box::new(self)))
    }
}

impl VirtualSocket for Virtual {
    /// The options of traffic's connections are set already.
    fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Virtual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Virtual")
    }
}

impl AsyncRead for Virtual {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.pauses) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Virtual {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
