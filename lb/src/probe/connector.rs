//! Connections of probes: Pingora's checks run over connections that are made as traffic's are.

use std::pin::Pin;
use std::sync::Arc;

use pingora::connectors::l4::Connect;
use pingora::prelude::{ErrorType, OrErr};
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;

use crate::backend::Endpoint;
use crate::dial::{Dial, Transport, proxy};
use crate::failure::{AttemptError, Failure};
use crate::http::io::Io;
use crate::http::io::virtual_socket::Virtual;

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
            Ok(Virtual::new(io, ()).into_stream())
        })
    }
}
