//! How to connect to an endpoint: its address, and its pool's settings for connections.

pub(crate) mod proxy;
pub(crate) mod tls;

use std::sync::Arc;

use crate::config::backend::{BackendAddress, SocketAddress};
use crate::config::transport::TransportConfig;
use tls::ClientTls;

/// A pool's settings for connections, prepared for use. Unchanged while the settings are.
#[derive(Debug)]
pub struct Transport {
    pub config: TransportConfig,
    /// `None`: plain text.
    pub tls: Option<ClientTls>,
}

/// One endpoint to connect to.
#[derive(Debug)]
pub struct Dial<'a> {
    /// The configured address.
    pub backend: &'a BackendAddress,
    /// The resolved address.
    pub address: &'a SocketAddress,
    pub transport: &'a Arc<Transport>,
    /// The bytes to send before TLS; usually none.
    pub header: &'a [u8],
}

impl Transport {
    pub fn new(config: &TransportConfig) -> Self {
        Self { config: config.clone(), tls: config.tls.as_ref().map(ClientTls::new) }
    }
}
