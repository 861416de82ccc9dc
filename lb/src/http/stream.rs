//! A client's connection, or one stream of an HTTP/2 connection.

use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::io::ioctl_fionread;
use rustix::net::getsockname;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop;

use super::h2::stream::Http2Stream;
use super::io::{Acknowledged, Io, Plain};
use super::linger::is_held;
use super::pace::ConnectionTotal;
use crate::message::Version;

const DISCARD_BYTES: usize = 16 * 1024;

pub(crate) enum ClientStream {
    Io(Io),
    Http2(Box<Http2Stream>),
}

impl ClientStream {
    pub(crate) fn is_tls(&self) -> bool {
        match self {
            Self::Io(io) => io.is_tls(),
            Self::Http2(stream) => stream.is_tls(),
        }
    }

    /// Whether this is one of several exchanges that a connection carries at once.
    pub(crate) fn is_stream(&self) -> bool {
        matches!(self, Self::Http2(_))
    }

    /// Whether a 2xx would tell the client that a WebSocket is open.
    pub(crate) fn is_connect(&self) -> bool {
        matches!(self, Self::Http2(stream) if stream.is_connect())
    }

    /// Whether the request's head is known to exceed the limit. Its end is not read then.
    pub(crate) fn has_too_large_head(&self) -> bool {
        matches!(self, Self::Http2(stream) if stream.is_too_large())
    }

    /// The bytes moved by the connection, if it carries several exchanges at once.
    pub(crate) fn total(&self) -> Option<&ConnectionTotal> {
        match self {
            Self::Http2(stream) => Some(stream.total()),
            _ => None,
        }
    }

    /// For how long the connection has written no bytes of any response, if it carries several exchanges at once and
    /// this one waits for its turn.
    pub(crate) fn stalled(&self, now: Instant) -> Option<Duration> {
        self.total().map(|total| total.stalled(now))
    }

    /// Whether a flow-control window of HTTP/2 kept the last write back.
    pub(crate) fn is_window_shut(&self) -> bool {
        matches!(self, Self::Http2(stream) if stream.is_window_shut())
    }

    /// How many bytes a stream that waits for its turn would have sent since this was last called, if others had not had
    /// theirs before it.
    pub(crate) fn take_share(&mut self) -> u64 {
        match self {
            Self::Io(_) => 0,
            Self::Http2(stream) => stream.take_share(),
        }
    }

    /// What the client's system has acknowledged; `None` if that is unknown. A stream does not know it: see
    /// [`ConnectionTotal::stalled`].
    pub(crate) fn acknowledged(&self) -> Option<Acknowledged> {
        match self {
            Self::Io(io) => io.acknowledged(),
            Self::Http2(_) => None,
        }
    }

    /// Whether [`Self::acknowledged`] can be asked, as far as that is known without a system call.
    pub(crate) fn tells_acknowledged(&self) -> bool {
        matches!(self, Self::Io(io) if io.tells_acknowledged())
    }

    /// Whether the kernel is known to hold bytes that the client has not taken yet.
    pub(crate) fn is_held(&self) -> bool {
        is_held(self.acknowledged())
    }

    /// The socket, if bytes can be moved to it without being read.
    pub(crate) fn plain(&self) -> Option<Plain<'_>> {
        match self {
            Self::Io(io) => io.plain(),
            Self::Http2(_) => None,
        }
    }

    /// The socket, to be watched. A stream has none of its own.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Io(io) => io.socket(),
            Self::Http2(_) => None,
        }
    }

    /// The local address that the client connected to. A stream does not know it.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        SocketAddr::try_from(getsockname(self.socket()?).ok()?).ok()
    }

    /// The protocol for the access log, for a request that is represented in this version of HTTP/1.
    pub(crate) fn protocol(&self, version: Version) -> &'static str {
        match (self, version) {
            (Self::Http2(_), _) => "HTTP/2.0",
            (_, Version::Http10) => "HTTP/1.0",
            (_, Version::Http11) => "HTTP/1.1",
        }
    }

    /// Whether the kernel may have bytes of the client that the runtime has not been notified of yet.
    pub(crate) fn has_more_to_read(&self) -> bool {
        self.socket().is_some_and(|socket| ioctl_fionread(socket).is_ok_and(|unread| unread > 0))
    }

    /// Whether the client has sent bytes that nobody has read: closing now would reset the connection. Under TLS they
    /// are read and dropped. Costs no system call while the runtime was not notified of readiness.
    pub(crate) fn has_unread_bytes(&mut self) -> bool {
        match self {
            Self::Http2(_) => false,
            Self::Io(io) if io.is_opaque() => {
                // A task without budget would be told that nothing is ready.
                let discarding = pin!(coop::unconstrained(poll_fn(|cx| self.poll_discard(cx))));
                matches!(discarding.poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(1..)))
            }
            Self::Io(io) => matches!(io.try_read(&mut [0]), Ok(1..)),
        }
    }

    /// Reads once and drops the bytes. Returns how many; 0: the client has closed its sending side.
    pub(crate) fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        poll_discard(self, cx)
    }

    /// Whether the client has given up its request: an HTTP/2 client has reset the stream, or a client without a socket
    /// of ours has closed the connection with at least `missing` bytes still to come. Otherwise `cx` is woken when it
    /// does.
    pub(crate) fn is_given_up(&mut self, cx: &mut Context<'_>, missing: u64) -> bool {
        match self {
            Self::Http2(stream) => stream.is_given_up(cx),
            Self::Io(io) => io.has_disconnected(cx, missing),
        }
    }

    /// Tells that the response will be one of our own, not a backend's.
    pub(crate) fn answer_ourselves(&self) {
        if let Self::Http2(stream) = self {
            stream.answer_ourselves();
        }
    }

    /// Makes the connection end with a reset when it is dropped, or under TLS without `close_notify`.
    pub(crate) fn reset_when_closed(&mut self) {
        match self {
            Self::Io(io) => io.reset_when_closed(),
            Self::Http2(_) => {}
        }
    }

    /// Tells the client that the request of its stream was not processed.
    pub(crate) fn refuse(self) {
        match self {
            Self::Io(io) => io.abort(),
            Self::Http2(stream) => stream.refuse(),
        }
    }

    /// Ends the connection so that the client cannot mistake what it has received for a complete message.
    pub(crate) fn abort(self) {
        match self {
            Self::Io(io) => io.abort(),
            Self::Http2(stream) => stream.abort(),
        }
    }
}

/// Reads once and drops the bytes. Returns how many; 0: the peer has closed its sending side.
pub(super) fn poll_discard(reader: &mut (impl AsyncRead + Unpin), cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    let mut scrap = [MaybeUninit::uninit(); DISCARD_BYTES];
    let mut scrap = ReadBuf::uninit(&mut scrap);
    Pin::new(reader).poll_read(cx, &mut scrap).map_ok(|()| scrap.filled().len())
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Io(io) => Pin::new(io).poll_read(cx, buf),
            Self::Http2(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Io(io) => Pin::new(io).poll_write(cx, buf),
            Self::Http2(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Io(io) => Pin::new(io).poll_flush(cx),
            Self::Http2(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Io(io) => Pin::new(io).poll_shutdown(cx),
            Self::Http2(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::Arc;
    use std::time::Duration;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConnection, StreamOwned};
    use tokio::net::TcpListener;

    use super::*;
    use crate::simulation::tls::{ACCEPTOR, CLIENT};

    // Such a task was told that nothing was there.
    #[tokio::test]
    async fn buffered_tls_data_is_found_by_a_task_without_budget() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let peer = std::thread::spawn(move || {
            let name = ServerName::try_from("localhost").expect("a name");
            let tls = ClientConnection::new(Arc::clone(&CLIENT), name).expect("a sound configuration");
            let mut peer = StreamOwned::new(tls, std::net::TcpStream::connect(address).expect("a listener"));
            peer.write_all(b"text").expect("a peer");
            // Until the other side has closed in any way.
            let _ = peer.read(&mut [0; 16]);
        });
        let (socket, _) = listener.accept().await.expect("a client");
        let tls = ACCEPTOR.accept(Io::Tcp(socket)).await.expect("a handshake");
        let mut client = ClientStream::Io(Io::Tls(Box::new(tls.into())));
        let mut is_found = false;
        for _ in 0..500 {
            is_found = poll_fn(|cx| {
                while let Poll::Ready(coop) = coop::poll_proceed(cx) {
                    coop.made_progress();
                }
                Poll::Ready(client.has_unread_bytes())
            })
            .await;
            if is_found {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(is_found);
        drop(client);
        peer.join().expect("no panic");
    }
}
