//! Connections of probes: Pingora's checks run over connections that are made as traffic's are.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pingora::connectors::l4::Connect;
use pingora::prelude::{ErrorType, OrErr};
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::backend::Endpoint;
use crate::dial::{Dial, Transport, proxy};
use crate::failure::{AttemptError, Failure};
use crate::http::io::Io;

/// Connects to an endpoint.
#[derive(Debug)]
pub(super) struct ProbeConnector {
    pub endpoint: Arc<Endpoint>,
    pub transport: Arc<Transport>,
}

/// The address for the checks, which [`ProbeConnector`] ignores.
pub(super) fn target() -> pingora_load_balancing::Backend {
    pingora_load_balancing::Backend::new("0.0.0.0:1").expect("an address")
}

impl ProbeConnector {
    async fn connected(&self) -> Result<Io, AttemptError> {
        let address = self.endpoint.address().ok_or(Failure::Unresolved)?;
        let (backend, transport) = (&self.endpoint.backend.address, &self.transport);
        // A probe has no client.
        let header = proxy::header(transport.config.proxy_protocol, None);
        Io::connect(&Dial { backend, address, transport, header: &header }).await
    }
}

/// The expansion of the trait's macro.
impl Connect for ProbeConnector {
    fn connect<'s, 'a, 'f>(
        &'s self,
        _: &'a SocketAddr,
    ) -> Pin<Box<dyn Future<Output = pingora::Result<Stream>> + Send + 'f>>
    where
        's: 'f,
        'a: 'f,
        Self: 'f,
    {
        Box::pin(async {
            let io = self.connected().await.or_err(ErrorType::ConnectError, "not connected")?;
            Ok(Stream::from(VirtualSocketStream::new(Box::new(Socket(io)))))
        })
    }
}

/// A connection in the form that Pingora needs.
struct Socket(Io);

impl VirtualSocket for Socket {
    /// The options of traffic's connections are set already.
    fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Socket")
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
