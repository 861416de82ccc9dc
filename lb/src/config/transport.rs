//! How a pool connects to its backends: with TLS or without, from which address, and with which PROXY header.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use pingora::tls::load_native_certs;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::ring::{self, cipher_suite};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::Serialize;

use super::Secret;
use super::backend::BackendAddress;

/// How connections to the backends of a pool are made.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TransportConfig {
    /// The local address to connect from; `None`: the system chooses.
    pub source_address: Option<IpAddr>,
    /// Whether a connection begins with a header of the PROXY protocol.
    pub proxy_protocol: ProxyProtocol,
    /// `None`: plain.
    pub tls: Option<BackendTls>,
}

/// Whether a connection begins with a PROXY header that names its client, and in which version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// No header.
    #[default]
    Off,
    /// Version 1, as text.
    V1,
    /// Version 2, as binary.
    V2,
}

/// TLS to backends.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BackendTls {
    /// Sent as SNI, and required in the backend's certificate; `None`: the host of the backend's address.
    pub name: Option<Box<str>>,
    /// PEM file with trusted CAs; `None`: those of the system.
    pub ca: Option<PathBuf>,
    /// The client certificate, for backends that ask for one.
    pub certificate: Option<PathBuf>,
    /// PEM file with its private key.
    pub key: Option<PathBuf>,
    /// Whether certificates are verified.
    pub verify: bool,
    /// The content of the files when the configuration was read.
    #[serde(skip)]
    pub trust: Trust,
}

/// Certificates and keys, as read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trust {
    /// Certificates of the CAs that are trusted.
    pub roots: Arc<[CertificateDer<'static>]>,
    /// The certificate that backends are shown, leaf first; empty: none.
    pub chain: Vec<CertificateDer<'static>>,
    /// In PEM.
    pub key: Option<Secret>,
}

impl BackendTls {
    /// The configuration for TLS connections, without sessions. The error says what is wrong with the files.
    pub fn client_config(&self) -> Result<ClientConfig, String> {
        let mut provider = ring::default_provider();
        // Saves work with backends that let the client choose: AES-128 suffices.
        provider.cipher_suites.sort_by_key(|suite| suite.suite() != cipher_suite::TLS13_AES_128_GCM_SHA256.suite());
        let provider = Arc::new(provider);
        let algorithms = provider.signature_verification_algorithms;
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().map_err(|e| e.to_string())?;
        let builder = builder.dangerous().with_custom_certificate_verifier(match self.verify {
            true => {
                let mut roots = RootCertStore::empty();
                // The system may have some that cannot be parsed.
                let (usable, _) = roots.add_parsable_certificates(self.trust.roots.iter().cloned());
                if usable == 0 {
                    return Err("no certificate of a CA can be read".to_owned());
                }
                let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
                verifier.build().map_err(|e| e.to_string())?
            }
            false => Arc::new(AcceptAnyCertificate(algorithms)),
        });
        let mut client = match &self.trust.key {
            Some(key) => {
                let key =
                    PrivateKeyDer::from_pem_slice(key.expose()).map_err(|e| format!("no key can be read: {e}"))?;
                builder.with_client_auth_cert(self.trust.chain.clone(), key).map_err(|e| e.to_string())?
            }
            None => builder.with_no_client_auth(),
        };
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        client.resumption = Resumption::disabled();
        Ok(client)
    }

    /// The name to send and to require of a backend; `Err` if it has none.
    pub fn server_name(&self, backend: &BackendAddress) -> Result<ServerName<'static>, String> {
        let host = || backend.host_and_port().map(|(host, _)| host.strip_suffix('.').unwrap_or(host));
        let name = self.name.as_deref().or_else(host).or((!self.verify).then_some("localhost"));
        let name = name.ok_or("a Unix socket has no host to verify")?;
        ServerName::try_from(name.to_owned())
            .map_err(|_| format!("\"{name}\" is not a name that a certificate can have"))
    }
}

/// The CA certificates that the system trusts.
pub fn system_roots() -> Result<Arc<[CertificateDer<'static>]>, String> {
    let roots = load_native_certs().map_err(|e| e.to_string())?;
    if roots.is_empty() { Err("there are none".to_owned()) } else { Ok(roots.into()) }
}

/// Accepts every certificate whose key the peer has.
#[derive(Debug)]
pub(crate) struct AcceptAnyCertificate(pub(crate) WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AcceptAnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
