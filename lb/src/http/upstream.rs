//! The backend's side of an exchange: a connection that carries one request, and what happens to it afterwards.

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

/// An HTTP/1.1 connection.
pub(super) struct H1 {
    pub socket: Io,
    /// Counts the connection towards the limit on backend connections.
    permit: ConnectionPermit,
    /// How the connection was made.
    transport: Arc<Transport>,
    /// The PROXY header that it began with.
    header: Box<[u8]>,
    /// The server that the connection leads to.
    server: Incarnation,
    /// The connection has carried a request before.
    is_reused: bool,
    /// Bytes have arrived since this request began.
    has_heard: bool,
    /// A write has returned a connection reset. The system reports that only once: the next read returns end of file.
    is_reset: bool,
    /// The response allows another request on the connection.
    pub keeps_alive: bool,
    /// Bytes arrived that belong to no response.
    pub has_surplus: bool,
}

/// What happens to a connection at the end of an exchange.
pub(super) enum Disposition {
    /// Keep it for the next request.
    Idle(H1),
    Close,
}

impl Upstream {
    /// Takes an idle connection to `server` that was made by `transport`, began with `header`, and still looks open.
    pub(super) fn reuse(server: Incarnation, transport: &Arc<Transport>, header: &[u8], now: Instant) -> Option<Self> {
        idle::take(server, transport, header, now).map(|connection| Self::new(connection, server, true))
    }

    /// Connects to `server`, at the address in `dial`. Fails if the limit on backend connections is reached and no idle
    /// one can be closed.
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

    /// Decides whether the connection may carry another request. Over HTTP/1.1 both messages must be complete: the
    /// response was read to its end, and every byte of the request was written. Otherwise the rest of one message would
    /// be read as part of the next.
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

    /// Whether only requests of one client may use it.
    pub(super) fn is_for_one_client(&self) -> bool {
        !self.header.is_empty()
    }

    /// Appends received bytes to `buffer`. Returns how many. The error says how the connection was lost.
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

    /// Whether the backend has refused our client certificate in the TLS handshake.
    #[cold]
    fn refused(&self, error: &io::Error) -> Option<AttemptError> {
        let is_new = !self.is_reused && !self.has_heard;
        tls::refuses_client(error).filter(|_| is_new)
    }

    /// Flushes what was written, if it is buffered.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Io::Tls(tls) => Pin::new(tls).poll_flush(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Writes from either buffer, or both.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, first: &[u8], second: &[u8]) -> Poll<io::Result<usize>> {
        let socket = Pin::new(&mut self.socket);
        let written = match (first, second) {
            (only, []) | ([], only) => socket.poll_write(cx, only),
            both => socket.poll_write_vectored(cx, &[IoSlice::new(both.0), IoSlice::new(both.1)]),
        };
        if let Poll::Ready(Err(error)) = &written {
            // A broken pipe is a reset after the backend's end of file: the bytes before it are complete.
            self.is_reset = error.kind() != io::ErrorKind::BrokenPipe && !Bug::ForgottenReset.is_planted();
        }
        written
    }

    fn lost(&self, how: Failure) -> Failure {
        if !self.is_reused || self.has_heard {
            return how;
        }
        // The others have been idle for longer, so the next attempt opens a new connection.
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

    /// Writes until that fails, then reads to the end. Returns the bytes read, and how the connection ended.
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

    // After a reload, connections made with the old settings were reused for as long as there were any: plain ones in
    // place of TLS.
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

    // The failed write consumed the error, so content delimited by close was taken to be complete.
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
