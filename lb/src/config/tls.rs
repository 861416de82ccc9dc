//! TLS towards clients: the certificate of a listener, ready to use, or what is wrong with it.

use std::path::Path;
use std::sync::Arc;

use pingora::tls as loader;
use rustls::ServerConfig;
use rustls::crypto::ring::{self, Ticketer, cipher_suite};

use crate::config::TlsConfig;

/// Makes what a listener needs to speak TLS, with HTTP/2 offered. `Err` says what is wrong with the files.
pub fn server_config(config: &TlsConfig) -> Result<ServerConfig, String> {
    let name = |path: &Path| path.to_str().map(str::to_owned).ok_or("a path is not UTF-8");
    let loaded = loader::load_certs_and_key_files(&name(&config.certificate)?, &name(&config.key)?);
    let (certificates, key) = loaded.ok().flatten().ok_or("no certificate with a key can be read")?;
    let mut provider = ring::default_provider();
    // The order counts, whatever the client's: AES-128 with SHA-256 costs a handshake least and is strong enough for
    // anybody; clients that cannot use it name another.
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != cipher_suite::TLS13_AES_128_GCM_SHA256.suite());
    let builder = ServerConfig::builder_with_provider(Arc::new(provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(|e| e.to_string())?;
    let server = builder.with_no_client_auth().with_single_cert(certificates, key);
    let mut server = server.map_err(|e| e.to_string())?;
    server.ignore_client_order = true;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Tickets that every thread can read; one is enough to resume with, and each costs.
    server.ticketer = Ticketer::new().map_err(|e| e.to_string())?;
    server.send_tls13_tickets = 1;
    Ok(server)
}
