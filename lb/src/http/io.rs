//! The socket of one side of an exchange: TCP or Unix, plain or TLS. Simulations use a pipe instead.

#[cfg(feature = "pingora-proxy")]
pub(crate) mod accepted;
#[cfg(test)]
pub(crate) mod pipe;
pub(crate) mod virtual_socket;

use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use pingora::connectors::l4::BindTo;
use pingora::prelude::ErrorType;
use pingora::protocols::l4::ext::{self, TCP_INFO};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::coop;
use tokio_rustls::{TlsConnector, TlsStream};

use crate::clock;
use crate::config::backend::SocketAddress;
use crate::dial::{Dial, tls};
use crate::failure::{AttemptError, Detail, Failure};

/// How long to wait for space in the queue of a Unix socket before the first retry; doubled for each further one.
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(2);
const MAX_FULL_QUEUE_PAUSE: Duration = Duration::from_millis(128);
/// How many attempts are made, within 0.7 s in total.
const MAX_FULL_QUEUE_TRIES: u32 = 11;

/// The state of a TCP connection that was reset, or whose both ends are closed (include/net/tcp_states.h).
const TCP_CLOSE: u8 = 7;

pub(crate) enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<Self>>),
    /// A client's connection that a Pingora server has accepted, of any kind.
    #[cfg(feature = "pingora-proxy")]
    Accepted(Box<accepted::Accepted>),
    /// In memory, for simulations.
    #[cfg(test)]
    Pipe(pipe::Pipe),
}

/// What a peer's system has acknowledged of the bytes that were written to its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Acknowledged {
    pub bytes: u64,
    /// The kernel holds nothing more for the peer: no bytes, and not the end of our side.
    pub is_all: bool,
}

/// A socket that carries the plain bytes of the exchange.
#[derive(Clone, Copy)]
pub(crate) enum Plain<'a> {
    Tcp(&'a TcpStream),
    Unix(&'a UnixStream),
}

impl Io {
    /// Connects to an endpoint as its pool says.
    pub(crate) async fn connect(dial: &Dial<'_>) -> Result<Self, AttemptError> {
        let mut io = Self::open(dial).await?;
        if !dial.header.is_empty() {
            io.write_all(dial.header).await.map_err(|_| Failure::ConnectReset)?;
        }
        match &dial.transport.tls {
            None => Ok(io),
            Some(tls) => {
                let (config, name) = tls.client(dial)?;
                // Not Pingora's connector: it reduces errors to text, parses every certificate for statistics, and has
                // no sessions per endpoint.
                let connected = TlsConnector::from(config).connect(name, io).await;
                connected.map(|tls| Self::Tls(Box::new(tls.into()))).map_err(|e| tls::failed(&e))
            }
        }
    }

    async fn open(Dial { address, transport, .. }: &Dial<'_>) -> Result<Self, AttemptError> {
        #[cfg(test)]
        if let Some(connecting) = address.ip().and_then(pipe::connect) {
            return connecting.await.map(Self::Pipe).map_err(|e| AttemptError::of_connecting(address, &e));
        }
        let connected = match address {
            SocketAddress::Ip(ip) => {
                let stream = match transport.config.source_address {
                    Some(source) => connect_from(source, address, *ip).await?,
                    None => TcpStream::connect(ip).await.map_err(|e| AttemptError::of_connecting(address, &e))?,
                };
                // Fails only if the socket is closed already.
                let _ = stream.set_nodelay(true);
                Ok(Self::Tcp(stream))
            }
            SocketAddress::Unix(path) => connect_unix(path).await.map(Self::Unix),
        };
        connected.map_err(|e| AttemptError::of_connecting(address, &e))
    }

    /// Whether nothing has arrived on an idle connection: neither its end nor unsolicited bytes. Records of TLS itself,
    /// such as session tickets, do not count. Costs no system call while the runtime was not notified of readiness.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let Self::Tls(tls) = self else {
            return matches!(self.try_read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock);
        };
        let mut cx = Context::from_waker(Waker::noop());
        let (io, session) = tls.get_ref();
        let has_heard = io.plain().is_none_or(|socket| socket.poll_read_ready(&mut cx).is_ready());
        if session.wants_read() && !has_heard {
            return true;
        }
        let mut byte = [0];
        let mut byte = ReadBuf::new(&mut byte);
        // A task without budget would be told that nothing is ready.
        let read = pin!(coop::unconstrained(poll_fn(|cx| Pin::new(&mut **tls).poll_read(cx, &mut byte))));
        read.poll(&mut cx).is_pending()
    }

    pub(crate) fn is_tls(&self) -> bool {
        match self {
            Self::Tls(_) => true,
            #[cfg(feature = "pingora-proxy")]
            Self::Accepted(accepted) => accepted.is_tls(),
            _ => false,
        }
    }

    /// Whether received bytes can only be seen by reading them.
    pub(crate) fn is_opaque(&self) -> bool {
        match self {
            Self::Tls(_) => true,
            #[cfg(feature = "pingora-proxy")]
            Self::Accepted(_) => true,
            _ => false,
        }
    }

    /// The socket, if bytes can be moved from and to it without being read.
    pub(crate) fn plain(&self) -> Option<Plain<'_>> {
        match self {
            Self::Tcp(tcp) => Some(Plain::Tcp(tcp)),
            Self::Unix(unix) => Some(Plain::Unix(unix)),
            _ => None,
        }
    }

    /// Copies received bytes without consuming them; 0: the peer has closed its sending side. Only for a plain socket.
    pub(crate) async fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let socket = self.plain().ok_or(io::ErrorKind::Unsupported)?;
        loop {
            poll_fn(|cx| socket.poll_read_ready(cx)).await?;
            let peek = || Ok(recv(socket, &mut *buffer, RecvFlags::PEEK)?.1);
            match socket.try_io(Interest::READABLE, peek) {
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                peeked => return peeked,
            }
        }
    }

    /// The socket, also under TLS.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Tcp(tcp) => Some(tcp.as_fd()),
            Self::Unix(unix) => Some(unix.as_fd()),
            Self::Tls(tls) => tls.get_ref().0.socket(),
            #[cfg(feature = "pingora-proxy")]
            Self::Accepted(_) => None,
            #[cfg(test)]
            Self::Pipe(_) => None,
        }
    }

    /// Whether [`Self::acknowledged`] can be asked, as far as that is known without a system call.
    pub(crate) fn tells_acknowledged(&self) -> bool {
        match self {
            Self::Unix(_) => false,
            Self::Tls(tls) => tls.get_ref().0.tells_acknowledged(),
            _ => true,
        }
    }

    /// What the peer's system has acknowledged so far. `None` if the kernel does not tell: for a Unix socket, and
    /// before Linux 6.2, whose answer is shorter than Pingora expects. Costs a system call.
    pub(crate) fn acknowledged(&self) -> Option<Acknowledged> {
        match self {
            Self::Tcp(tcp) => ext::get_tcp_info(tcp.as_raw_fd()).ok().map(|info| Acknowledged::of(&info)),
            Self::Unix(_) => None,
            Self::Tls(tls) => tls.get_ref().0.acknowledged(),
            #[cfg(feature = "pingora-proxy")]
            Self::Accepted(accepted) => accepted.tcp_info().map(|info| Acknowledged::of(&info)),
            #[cfg(test)]
            Self::Pipe(pipe) => Some(pipe.acknowledged()),
        }
    }

    /// Whether the peer has disconnected with at least `missing` bytes still to come, for connections without a socket
    /// to watch. Otherwise `cx` is woken when that may have changed.
    pub(crate) fn has_disconnected(&mut self, _cx: &mut Context<'_>, _missing: u64) -> bool {
        match self {
            #[cfg(feature = "pingora-proxy")]
            Self::Accepted(accepted) => accepted.has_disconnected(_cx, _missing),
            _ => false,
        }
    }

    /// Tells a simulation that the connection has been chosen for another request.
    #[cfg(test)]
    pub(crate) fn reuse(&self) {
        match self {
            Self::Pipe(pipe) => pipe.reuse(),
            Self::Tls(tls) => tls.get_ref().0.reuse(),
            _ => {}
        }
    }

    /// Reads without waiting. Costs no system call while the runtime was not notified of readiness. Not possible under
    /// TLS.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.try_read(buffer),
            Self::Unix(unix) => unix.try_read(buffer),
            Self::Tls(_) => Err(io::ErrorKind::WouldBlock.into()),
            #[cfg(feature = "pingora-proxy")]
            Self::Accepted(_) => Err(io::ErrorKind::WouldBlock.into()),
            #[cfg(test)]
            Self::Pipe(pipe) => pipe.try_read(buffer),
        }
    }

    /// Ends the connection so that the peer cannot mistake what it has received for a complete message: with a reset,
    /// under TLS without a `close_notify` before it.
    pub(crate) fn abort(self) {
        self.reset_when_closed();
    }

    /// Makes the connection end in that way when it is dropped.
    pub(crate) fn reset_when_closed(&self) {
        match self {
            // Otherwise the peer still sees that chunks or a length are incomplete.
            Self::Tcp(tcp) => drop(tcp.set_zero_linger()),
            // Otherwise the system would keep what such a client does not take.
            Self::Tls(tls) => tls.get_ref().0.reset_when_closed(),
            // The peer gets a reset only if some of its bytes were not read.
            Self::Unix(_) => {}
            #[cfg(feature = "pingora-proxy")]
            Self::Accepted(_) => {}
            #[cfg(test)]
            Self::Pipe(pipe) => pipe.reset(),
        }
    }
}

impl Acknowledged {
    fn of(info: &TCP_INFO) -> Self {
        let is_held = info.tcpi_unacked > 0 || info.tcpi_notsent_bytes > 0;
        // A connection that was reset still counts what it has dropped.
        Self { bytes: info.tcpi_bytes_acked, is_all: !is_held || info.tcpi_state == TCP_CLOSE }
    }
}

/// Connects to a Unix socket. If its queue is full, the system fails at once, unlike TCP, which waits.
async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let mut pause = FULL_QUEUE_PAUSE;
    for _ in 1..MAX_FULL_QUEUE_TRIES {
        match UnixStream::connect(path).await {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => clock::sleep(pause).await,
            connected => return connected,
        }
        pause = (pause * 2).min(MAX_FULL_QUEUE_PAUSE);
    }
    UnixStream::connect(path).await
}

/// Connects from a local address. The port is chosen once the remote address is known, so that one local port serves
/// connections to many of them (`IP_BIND_ADDRESS_NO_PORT`).
async fn connect_from(source: IpAddr, address: &SocketAddress, to: SocketAddr) -> Result<TcpStream, AttemptError> {
    let mut bind_to = BindTo::default();
    bind_to.addr = Some(SocketAddr::new(source, 0));
    ext::connect(&to, Some(&bind_to)).await.map_err(|e| {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(e.root_cause());
        let mut error = None;
        while let (Some(here), None) = (cause, error) {
            error = here.downcast_ref::<io::Error>();
            cause = here.source();
        }
        match (e.etype(), error) {
            (ErrorType::BindError, error) => {
                let errno = error.and_then(Errno::from_io_error).map(Detail::Errno);
                AttemptError { failure: Failure::NoSourceAddress, detail: errno }
            }
            (_, Some(error)) => AttemptError::of_connecting(address, error),
            (_, None) => Failure::ConnectUnreachable.into(),
        }
    })
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(tcp) => tcp.fmt(f),
            Self::Unix(unix) => unix.fmt(f),
            Self::Tls(_) => f.write_str("TLS"),
            #[cfg(feature = "pingora-proxy")]
            Self::Accepted(_) => f.write_str("a connection of a Pingora server"),
            #[cfg(test)]
            Self::Pipe(_) => f.write_str("a pipe"),
        }
    }
}

impl Plain<'_> {
    pub(crate) fn poll_read_ready(self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(tcp) => tcp.poll_read_ready(cx),
            Self::Unix(unix) => unix.poll_read_ready(cx),
        }
    }

    pub(crate) fn poll_write_ready(self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(tcp) => tcp.poll_write_ready(cx),
            Self::Unix(unix) => unix.poll_write_ready(cx),
        }
    }

    /// Runs `operate` on the socket, and clears its readiness if that would block.
    pub(crate) fn try_io<R>(self, interest: Interest, operate: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
        match self {
            Self::Tcp(tcp) => tcp.try_io(interest, operate),
            Self::Unix(unix) => unix.try_io(interest, operate),
        }
    }
}

impl AsFd for Plain<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(tcp) => tcp.as_fd(),
            Self::Unix(unix) => unix.as_fd(),
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Unix(unix) => Pin::new(unix).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
            #[cfg(feature = "pingora-proxy")]
            Self::Accepted(accepted) => Pin::new(&mut **accepted).poll_read(cx, buf),
            #[cfg(test)]
            Self::Pipe(pipe) => Pin::new(pipe).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Unix(unix) => Pin::new(unix).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
            #[cfg(feature = "pingora-proxy")]
            Self::Accepted(accepted) => Pin::new(&mut **accepted).poll_write(cx, buf),
            #[cfg(test)]
            Self::Pipe(pipe) => Pin::new(pipe).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Unix(unix) => Pin::new(unix).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
            #[cfg(feature = "pingora-proxy")]
            Self::Accepted(accepted) => Pin::new(&mut **accepted).poll_write_vectored(cx, bufs),
            #[cfg(test)]
            Self::Pipe(pipe) => Pin::new(pipe).poll_write_vectored(cx, bufs),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Unix(unix) => Pin::new(unix).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
            #[cfg(feature = "pingora-proxy")]
            Self::Accepted(accepted) => Pin::new(&mut **accepted).poll_flush(cx),
            #[cfg(test)]
            Self::Pipe(pipe) => Pin::new(pipe).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Unix(unix) => Pin::new(unix).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
            #[cfg(feature = "pingora-proxy")]
            Self::Accepted(accepted) => Pin::new(&mut **accepted).poll_shutdown(cx),
            #[cfg(test)]
            Self::Pipe(pipe) => Pin::new(pipe).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::net;
    use tokio::net::UnixListener;

    use super::*;

    // A server that accepted nothing was tried five hundred times a second by each waiting request.
    #[tokio::test]
    async fn connecting_to_a_full_unix_socket_is_retried_and_then_fails() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("app.sock");
        let socket =
            net::socket_with(net::AddressFamily::UNIX, net::SocketType::STREAM, net::SocketFlags::NONBLOCK, None)
                .expect("a socket");
        net::bind(&socket, &net::SocketAddrUnix::new(&path).expect("a short path")).expect("a free path");
        net::listen(&socket, 1).expect("a bound socket");
        let listener = UnixListener::from_std(socket.into()).expect("a socket that does not block");
        let mut waiting = Vec::new();
        while let Ok(connected) = UnixStream::connect(&path).await {
            waiting.push(connected);
        }
        let error = connect_unix(&path).await.expect_err("there is no room");
        let address = SocketAddress::Unix(path.as_path().into());
        assert_eq!(AttemptError::of_connecting(&address, &error).failure, Failure::ConnectQueueFull);
        let makes_room = async { drop(listener.accept().await.expect("one that waits")) };
        let (connected, ()) = tokio::join!(connect_unix(&path), makes_room);
        connected.expect("there is room for one more");
    }
}
