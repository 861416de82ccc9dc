//! The backend's side of an exchange: a connection that carries one request, and what becomes of it afterwards.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;

use super::idle::{self, Connection};
use super::io::Io;
use super::transfer::{Download, Upload};
use crate::backend::{Endpoint, Incarnation};
use crate::connection_limit::{ConnectionLimit, ConnectionPermit};
use crate::dial::{Dial, Transport, tls};
use crate::failure::{AttemptError, Failure};
use crate::plant::Bug;

/// A backend, by the protocol that it speaks.
pub(super) enum Upstream {
    H1(H1),
}

/// A connection that speaks HTTP/1.1.
pub(super) struct H1 {
    pub socket: Io,
    /// Among all connections to backends.
    permit: ConnectionPermit,
    /// How it was made.
    transport: Arc<Transport>,
    /// What it began with.
    header: Box<[u8]>,
    /// The server that the connection leads to.
    server: Incarnation,
    /// It has carried a request before.
    is_reused: bool,
    /// Something has come since this request was begun.
    has_heard: bool,
    /// A write was told of a reset, of which the system tells once: to a read it is the end.
    is_reset: bool,
    /// The response allows another request behind it.
    pub keeps_alive: bool,
    /// Something came that belongs to no response.
    pub has_surplus: bool,
}

/// What becomes of a connection at the end of an exchange.
pub(super) enum Disposition {
    /// It waits for the next request.
    Idle(H1),
    Close,
}

impl Upstream {
    /// An idle connection to `server` that was made by `transport` and began with `header`, if there is one that is open as
    /// far as can be seen.
    pub(super) fn reuse(server: Incarnation, transport: &Arc<Transport>, header: &[u8], now: Instant) -> Option<Self> {
        idle::take(server, transport, header, now).map(|connection| Self::new(connection, server, true))
    }

    /// Connects to `server`, which is where `dial` says, if there is room for one more connection to a backend, or idle ones
    /// can be closed for it.
    pub(super) async fn connect(
        server: Incarnation,
        dial: &Dial<'_>,
        limit: &Arc<ConnectionLimit>,
    ) -> Result<Self, AttemptError> {
        let permit = loop {
            match limit.try_acquire() {
                Some(permit) => break permit,
                None if idle::make_room() => {}
                None => return Err(Failure::OutOfResources.into()),
            }
        };
        let socket = Io::connect(dial).await?;
        let transport = Arc::clone(dial.transport);
        Ok(Self::new(Connection { socket, permit, transport, header: dial.header.into() }, server, false))
    }

    fn new(connection: Connection, server: Incarnation, is_reused: bool) -> Self {
        let [has_heard, is_reset, keeps_alive, has_surplus] = [false; 4];
        let Connection { socket, permit, transport, header } = connection;
        Self::H1(H1 {
            socket,
            permit,
            transport,
            header,
            server,
            is_reused,
            has_heard,
            is_reset,
            keeps_alive,
            has_surplus,
        })
    }

    /// Decides whether the connection may carry another request. Over HTTP/1.1 both messages have to be over: the
    /// response was read to its end, and every byte of the request was written. Bytes that are still owed would be read
    /// as part of the next request, or it as part of them.
    pub(super) fn release(self, upload: &Upload, download: &Download) -> Disposition {
        let Self::H1(h1) = self;
        let is_sent = matches!(upload, Upload::Sent) || Bug::PoisonedConnection.is_planted();
        let is_over = is_sent && matches!(download, Download::Sent);
        if is_over && h1.keeps_alive && !h1.has_surplus { Disposition::Idle(h1) } else { Disposition::Close }
    }
}

impl H1 {
    /// Keeps the connection for the next request to `endpoint`, among at most `limit` of this thread.
    pub(super) fn keep(self, endpoint: &Arc<Endpoint>, until: Instant, limit: usize) {
        let Self { socket, permit, transport, header, .. } = self;
        idle::keep(endpoint, self.server, Connection { socket, permit, transport, header }, until, limit);
    }

    /// Whether nobody else's requests may go over it.
    pub(super) fn is_for_one_client(&self) -> bool {
        !self.header.is_empty()
    }

    /// Appends what comes to `buffer`; how many bytes. An error tells how the connection was lost.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut Vec<u8>,
    ) -> Poll<Result<usize, AttemptError>> {
        poll_read_buf(Pin::new(&mut self.socket), cx, buffer).map(|read| match read {
            Ok(0) => Err(self.lost(if self.is_reset { Failure::Reset } else { Failure::Closed }).into()),
            Ok(count) => {
                self.has_heard = true;
                Ok(count)
            }
            Err(e) => Err(self.refused(&e).unwrap_or_else(|| self.lost(Failure::Reset).into())),
        })
    }

    /// Whether the backend, which speaks TLS, has not taken us for a client.
    #[cold]
    fn refused(&self, error: &io::Error) -> Option<AttemptError> {
        let is_new = !self.is_reused && !self.has_heard;
        tls::refuses_client(error).filter(|_| is_new)
    }

    /// Has what was written leave, where it is held back until then.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Io::Tls(tls) => Pin::new(tls).poll_flush(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Writes from one or the other, or both.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, first: &[u8], second: &[u8]) -> Poll<io::Result<usize>> {
        let socket = Pin::new(&mut self.socket);
        let written = match (first, second) {
            (only, []) | ([], only) => socket.poll_write(cx, only),
            both => socket.poll_write_vectored(cx, &[IoSlice::new(both.0), IoSlice::new(both.1)]),
        };
        if let Poll::Ready(Err(error)) = &written {
            // A broken pipe is a reset that came behind the backend's end: what was sent before is whole.
            self.is_reset = error.kind() != io::ErrorKind::BrokenPipe && !Bug::ForgottenReset.is_planted();
        }
        written
    }

    fn lost(&self, how: Failure) -> Failure {
        if !self.is_reused || self.has_heard {
            return how;
        }
        // The others have been idle for longer, so the next attempt is made on a new connection.
        idle::forget(self.server);
        Failure::StaleConnection
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::backend::Backend;
    use crate::config::transport::TransportConfig;
    use crate::metrics::BackendMetrics;

    /// A connection whose backend has sent four bytes.
    async fn connected() -> (H1, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let backend = address.to_string().parse().expect("an address");
        let backend = Backend::new(backend, false, BackendMetrics::unregistered(), Arc::default());
        let server = backend.endpoints().as_slice()[0].incarnation();
        let transport = Arc::new(Transport::new(&TransportConfig::default()));
        let dial = Dial { backend: &backend.address, address: &address.into(), transport: &transport, header: b"" };
        let Upstream::H1(h1) = Upstream::connect(server, &dial, &ConnectionLimit::new(1)).await.expect("a listener");
        let (mut peer, _) = listener.accept().await.expect("a client");
        peer.write_all(b"text").await.expect("a peer");
        (h1, peer)
    }

    /// Writes until that fails, then reads to the end: what came, and what the end was.
    async fn write_then_read(mut h1: H1) -> (Vec<u8>, Failure) {
        while poll_fn(|cx| h1.poll_write(cx, b"x", b"y")).await.is_ok() {
            tokio::task::yield_now().await;
        }
        let mut bytes = Vec::new();
        loop {
            if let Err(failed) = poll_fn(|cx| h1.poll_read(cx, &mut bytes)).await {
                return (bytes, failed.failure);
            }
        }
    }

    // After a reload, connections of before carried requests for as long as there were any: plain ones in place of TLS.
    #[tokio::test]
    async fn a_connection_made_with_other_settings_is_not_reused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let backend = address.to_string().parse().expect("an address");
        let backend = Backend::new(backend, false, BackendMetrics::unregistered(), Arc::default());
        let endpoint = Arc::clone(&backend.endpoints().as_slice()[0]);
        let server = endpoint.incarnation();
        let [before, after] = [(); 2].map(|()| Arc::new(Transport::new(&TransportConfig::default())));
        let dial = Dial { backend: &backend.address, address: &address.into(), transport: &before, header: b"" };
        let Upstream::H1(h1) = Upstream::connect(server, &dial, &ConnectionLimit::new(1)).await.expect("a listener");
        let now = Instant::now();
        h1.keep(&endpoint, now + std::time::Duration::from_secs(60), 1);
        assert!(Upstream::reuse(server, &after, b"", now).is_none());
        assert!(Upstream::reuse(server, &before, b"", now).is_some());
    }

    // The write that failed had taken the error: content that ends with the connection was taken for whole.
    #[tokio::test]
    async fn a_reset_reported_to_a_write_is_not_an_end_of_file_to_a_read() {
        let (h1, peer) = connected().await;
        peer.set_zero_linger().expect("an open socket");
        drop(peer);
        assert_eq!(write_then_read(h1).await, (b"text".to_vec(), Failure::Reset));
    }

    #[tokio::test]
    async fn a_reset_after_the_end_of_file_stays_an_end_of_file() {
        let (h1, peer) = connected().await;
        drop(peer);
        assert_eq!(write_then_read(h1).await, (b"text".to_vec(), Failure::Closed));
    }
}
