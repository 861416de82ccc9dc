//! How one endpoint is connected to: where it is, and what its pool says of connections.

pub(crate) mod proxy;
pub(crate) mod tls;

use std::sync::Arc;

use crate::config::backend::{BackendAddress, SocketAddress};
use crate::config::transport::TransportConfig;
use tls::ClientTls;

/// What a pool says of its connections, ready for use. It is the same for as long as the pool says the same.
#[derive(Debug)]
pub struct Transport {
    pub config: TransportConfig,
    /// `None`: plain.
    pub tls: Option<ClientTls>,
}

/// One endpoint to connect to.
#[derive(Debug)]
pub struct Dial<'a> {
    /// As it is configured.
    pub backend: &'a BackendAddress,
    /// Where it is.
    pub address: &'a SocketAddress,
    pub transport: &'a Arc<Transport>,
    /// What is said first, before TLS; mostly nothing.
    pub header: &'a [u8],
}

impl Transport {
    pub fn new(config: &TransportConfig) -> Self {
        Self { config: config.clone(), tls: config.tls.as_ref().map(ClientTls::new) }
    }
}
