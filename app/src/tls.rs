//! TLS of outgoing connections: one cryptography provider, and the trusted certificates.

use std::sync::Arc;

use anyhow::Context;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

/// Chooses the cryptography provider for the whole process, including libraries that choose none.
pub fn choose_provider() {
    // Already chosen: nothing to do.
    let _ = ring::default_provider().install_default();
}

/// Trusts the certificate authorities of the system.
pub fn trusting_system() -> anyhow::Result<ClientConfig> {
    let found = rustls_native_certs::load_native_certs();
    anyhow::ensure!(!found.certs.is_empty(), "the system has no certificates to trust: name a file of them");
    trusting(found.certs)
}

/// Trusts the authorities in `certificates`.
pub fn trusting(certificates: Vec<CertificateDer<'static>>) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates);
    anyhow::ensure!(added > 0, "there is no certificate to trust");
    let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(builder.context("no version of TLS is left")?.with_root_certificates(roots).with_no_client_auth())
}
