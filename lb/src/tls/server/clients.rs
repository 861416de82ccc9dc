//! Verification of client certificates: they must be valid, and small enough to be forwarded to backends.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};

use crate::config::certificate;

/// The largest accepted certificate. Each request to a backend carries it in base64, a third larger, and many backends
/// refuse fields of more than 8 or 16 KiB.
const MAX_CERTIFICATE_BYTES: usize = 8 * 1024;
/// The largest accepted subject, which is also forwarded as text.
const MAX_SUBJECT_BYTES: usize = 2 * 1024;
/// The largest accepted chain of intermediates. The session ticket contains it, so the client sends it again with each
/// connection.
const MAX_CHAIN_BYTES: usize = 24 * 1024;

/// Accepts certificates that are valid and within these sizes. A larger one is refused instead of being left out of the
/// forwarded fields, because backends would take its client for one without a certificate.
#[derive(Debug)]
pub(super) struct Clients(pub Arc<dyn ClientCertVerifier>);

#[derive(Debug, thiserror::Error)]
enum TooLarge {
    #[error("the client's certificate has {0} bytes, more than {MAX_CERTIFICATE_BYTES}")]
    Certificate(usize),
    #[error("the subject of the client's certificate has {0} bytes, more than {MAX_SUBJECT_BYTES}")]
    Subject(usize),
    #[error("the certificates behind the client's have {0} bytes, more than {MAX_CHAIN_BYTES}")]
    Chain(usize),
}

impl ClientCertVerifier for Clients {
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // A certificate that cannot be parsed cannot be forwarded.
        let known = certificate::parse(leaf).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let chain: usize = intermediates.iter().map(|certificate| certificate.len()).sum();
        let too_large = match (leaf.len(), known.subject.len(), chain) {
            (bytes, ..) if bytes > MAX_CERTIFICATE_BYTES => TooLarge::Certificate(bytes),
            (_, bytes, _) if bytes > MAX_SUBJECT_BYTES => TooLarge::Subject(bytes),
            (.., bytes) if bytes > MAX_CHAIN_BYTES => TooLarge::Chain(bytes),
            _ => return self.0.verify_client_cert(leaf, intermediates, now),
        };
        Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(too_large)))))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }

    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }
}
