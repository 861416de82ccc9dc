//! TLS to backends: resumed sessions, and the messages for failed handshakes.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, OtherError};

use super::Dial;
use crate::config::backend::SocketAddress;
use crate::config::transport::BackendTls;
use crate::failure::{AttemptError, Detail, Failure};

/// Sessions stored per endpoint; the minimum of rustls.
const MAX_SESSIONS: usize = 8;
/// Endpoints whose sessions are stored. Without a limit, former addresses of a name would accumulate.
const MAX_ENDPOINTS: usize = 1024;

#[derive(Debug)]
pub struct ClientTls {
    config: BackendTls,
    /// `Err`: an error of the files, which were valid when the configuration was read.
    client: Result<ClientConfig, String>,
    /// With the sessions of each endpoint, because no other endpoint can resume them.
    by_endpoint: Mutex<HashMap<SocketAddress, Arc<ClientConfig>>>,
}

impl ClientTls {
    pub fn new(config: &BackendTls) -> Self {
        Self { config: config.clone(), client: config.client_config(), by_endpoint: Mutex::default() }
    }

    /// The TLS configuration of a connection to an endpoint, and the server name to request.
    pub fn client(&self, dial: &Dial<'_>) -> Result<(Arc<ClientConfig>, ServerName<'static>), AttemptError> {
        let unusable = |reason: &String| {
            tracing::error!(backend = %dial.backend, "TLS to a backend cannot be used: {reason}");
            AttemptError::from(Failure::Internal)
        };
        let name = self.config.server_name(dial.backend).map_err(|_| reason(Failure::TlsCertificate, NO_NAME))?;
        let client = self.client.as_ref().map_err(unusable)?;
        let mut by_endpoint = self.by_endpoint.lock().unwrap_or_else(PoisonError::into_inner);
        if by_endpoint.len() >= MAX_ENDPOINTS && !by_endpoint.contains_key(dial.address) {
            by_endpoint.clear();
        }
        let with_sessions = || {
            let mut client = client.clone();
            client.resumption = Resumption::in_memory_sessions(MAX_SESSIONS);
            Arc::new(client)
        };
        Ok((Arc::clone(by_endpoint.entry((*dial.address).clone()).or_insert_with(with_sessions)), name))
    }
}

fn reason(failure: Failure, reason: &'static str) -> AttemptError {
    AttemptError { failure, detail: Some(Detail::Reason(reason)) }
}

const NO_NAME: &str = "the name in its certificate is unknown: write tls.name";

/// Why a handshake failed, and what to do about it.
pub(crate) fn failed(error: &io::Error) -> AttemptError {
    match tls_error(error) {
        Some(error) => of_tls(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            reason(Failure::TlsHandshake, "the backend closed the connection: it may speak no TLS at this address")
        }
        None => AttemptError::from(Failure::ConnectReset),
    }
}

/// Whether a backend closed a connection because it rejects the client certificate. It may say so after its part of the
/// handshake (RFC 8446 §4.4.2.4).
pub(crate) fn refuses_client(error: &io::Error) -> Option<AttemptError> {
    let error = tls_error(error)?;
    matches!(error, Error::AlertReceived(_)).then(|| of_tls(error))
}

fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

fn of_tls(error: &Error) -> AttemptError {
    use Failure::{TlsCertificate, TlsHandshake};
    match error {
        Error::InvalidCertificate(error) => reason(TlsCertificate, of_certificate(error)),
        Error::NoCertificatesPresented => reason(TlsCertificate, "the backend has shown no certificate"),
        Error::AlertReceived(alert) => reason(TlsHandshake, of_alert(*alert)),
        Error::InvalidMessage(_) => {
            reason(TlsHandshake, "the answer is not TLS: write the backend's TLS port, or remove tls")
        }
        Error::PeerIncompatible(_) => {
            reason(TlsHandshake, "the backend has no version or cipher of TLS 1.2 or 1.3 in common")
        }
        _ => reason(TlsHandshake, "the backend does not keep to the protocol"),
    }
}

fn of_certificate(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the certificate has expired: renew it at the backend"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the certificate is not valid yet: compare the clocks of both machines"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "the certificate is for another name: write the one that it is for as tls.name, or give the backend another"
        }
        CertificateError::UnknownIssuer => {
            "the certificate's issuer is unknown: write a file with the certificate of its CA as tls.ca, and have the backend send its whole chain"
        }
        CertificateError::Revoked => "the certificate has been revoked: replace it at the backend",
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the certificate is not for servers: give the backend one that is"
        }
        CertificateError::Other(OtherError(_)) => {
            "the certificate cannot be used, such as a CA's own in place of a server's: give the backend another, or name it as tls.ca"
        }
        _ => "the certificate cannot be verified: give the backend another",
    }
}

fn of_alert(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CertificateRequired => {
            "the backend demands a client's certificate: write tls.certificate and tls.key"
        }
        AlertDescription::HandshakeFailure => {
            "the backend refused the handshake: it may demand a client's certificate, or have no cipher in common"
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnknownCA
        | AlertDescription::AccessDenied => {
            "the backend does not take tls.certificate: renew it, or have the backend know its CA"
        }
        AlertDescription::ProtocolVersion => "the backend speaks neither TLS 1.2 nor 1.3",
        AlertDescription::UnrecognisedName => {
            "the backend does not know the name that it was asked for: write another as tls.name"
        }
        AlertDescription::NoApplicationProtocol => "the backend does not speak HTTP/1.1 at this address",
        _ => "the backend ended the handshake by an alert",
    }
}
