//! The TLS handshake with a client, from its first byte on. The number of handshakes is limited, so that clients which
//! start one and fall silent do not exclude others. A thread does the CPU-bound part for one client at a time, and lets
//! its other tasks run in between.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::server::Acceptor;
use rustls::{
    AlertDescription, CertificateError, CipherSuite, Error, HandshakeKind, ProtocolVersion, ServerConnection,
};
use tokio::io::AsyncWriteExt;
use tokio_rustls::{LazyConfigAcceptor, TlsStream};

use crate::backend::repeats::RepeatedFailures;
use crate::clock;
use crate::config::backend::SocketAddress;
use crate::config::certificate;
use crate::exchange::headers::{ClientCertificate, PeerAddress, TlsInfo};
use crate::http::io::Io;
use crate::http::{Engine, MAX_READ_BYTES};
use crate::metrics::TlsMetrics;
use crate::tls::server::ServerTls;

/// How much time each client has at least, even if others wait for its permit.
const MIN_HANDSHAKE_TIME: Duration = Duration::from_secs(1);
/// A fatal alert `unrecognized_name` (RFC 8446 §6, RFC 6066 §3), in plain text.
const UNRECOGNIZED_NAME: &[u8] = &[21, 3, 1, 0, 2, 2, 112];
/// A fatal alert `protocol_version`, as RFC 8996 §4 and §5 require.
const PROTOCOL_VERSION: &[u8] = &[21, 3, 1, 0, 2, 2, 70];
/// The prefix of a ClientHello that shows its version: the headers of the record and of the message, and the version.
const CLIENT_HELLO_PREFIX_BYTES: usize = 5 + 4 + 2;
/// After this many consecutive failures of a listener, failures are logged as warnings.
const FREQUENT_FAILURES: u32 = 20;

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    /// The client speaks plain HTTP, as its first byte shows. That byte is still unread.
    #[error("the client speaks plain HTTP")]
    PlainHttp(Io),
    #[error("the client knows no newer version than TLS 1.1")]
    OldVersion,
    #[error("no certificate is for the name that the client asks for")]
    UnknownName,
    #[error("it took too long")]
    Timeout,
    #[error("it had to make room")]
    Shed,
    #[error(transparent)]
    Io(io::Error),
}

/// Counters and log of a listener's handshakes.
pub(super) struct HandshakeStats {
    pub metrics: TlsMetrics,
    /// Failures since the last success.
    failures: AtomicU32,
    repeats: RepeatedFailures,
}

impl HandshakeStats {
    pub(super) fn new(metrics: TlsMetrics) -> Self {
        Self { metrics, failures: AtomicU32::new(0), repeats: RepeatedFailures::default() }
    }

    fn succeeded(&self, stream: &TlsStream<Io>) {
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        match stream.get_ref().1.handshake_kind() {
            Some(HandshakeKind::Resumed) => self.metrics.resumed.inc(),
            _ => self.metrics.full.inc(),
        }
    }

    fn failed(&self, failed: &HandshakeError, peer: PeerAddress, listener: &SocketAddress) {
        let reason = failed.reason();
        self.metrics.failed(reason);
        tracing::debug!(%peer, reason, "TLS handshake failed: {failed}");
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures >= FREQUENT_FAILURES && self.repeats.note(reason, Instant::now()) {
            tracing::warn!(
                %peer,
                reason,
                "listener {listener}: {failures} TLS handshakes in a row have failed, the last one so: {failed}"
            );
        }
        // A kind of failure that did not recur is logged by itself again.
        self.repeats.take(Instant::now());
    }
}

/// Takes at most the listener's `handshake_timeout`.
pub(super) async fn accept(
    engine: &Engine,
    tls: &Arc<ServerTls>,
    stats: &HandshakeStats,
    io: Io,
    peer: PeerAddress,
) -> Result<Box<TlsStream<Io>>, HandshakeError> {
    let shed = async {
        tokio::time::sleep(MIN_HANDSHAKE_TIME).await;
        engine.sheds_handshake().await;
    };
    let accepted = tokio::select! {
        biased;
        accepted = tokio::time::timeout(tls.handshake_timeout, handshake(engine, tls, io)) => {
            accepted.unwrap_or(Err(HandshakeError::Timeout))
        }
        () = shed => Err(HandshakeError::Shed),
    };
    match &accepted {
        Ok(stream) => stats.succeeded(stream),
        Err(failed) => stats.failed(failed, peer, engine.address()),
    }
    accepted
}

async fn handshake(engine: &Engine, tls: &Arc<ServerTls>, io: Io) -> Result<Box<TlsStream<Io>>, HandshakeError> {
    let mut first = [0; CLIENT_HELLO_PREFIX_BYTES];
    match io.peek(&mut first).await.map_err(HandshakeError::Io)? {
        0 => return Err(HandshakeError::Io(ErrorKind::UnexpectedEof.into())),
        // No TLS record begins with such a byte, nor one of SSL 2.
        _ if first[0].is_ascii_alphabetic() || matches!(first[0], b'\r' | b'\n') => {
            return Err(HandshakeError::PlainHttp(io));
        }
        CLIENT_HELLO_PREFIX_BYTES if is_old_hello(&first) => {
            refuse_old(io).await;
            return Err(HandshakeError::OldVersion);
        }
        _ => {}
    }
    let mut start = LazyConfigAcceptor::new(Acceptor::default(), io).await.map_err(HandshakeError::Io)?;
    if tls.choice.admits(start.client_hello().server_name()).is_err() {
        // Best effort: the client may not read it.
        let _ = start.io.write_all(UNRECOGNIZED_NAME).await;
        let _ = start.io.shutdown().await;
        return Err(HandshakeError::UnknownName);
    }
    let turn = engine.handshake_turn().await;
    // The key exchange and the signature happen here.
    let rest = start.into_stream(Arc::clone(&tls.config));
    // Other tasks that have become ready run before the next handshake.
    tokio::task::yield_now().await;
    drop(turn);
    let mut stream = rest.await.map_err(HandshakeError::Io)?;
    // Large reads can be written in one piece.
    stream.get_mut().1.set_buffer_limit(Some(MAX_READ_BYTES));
    if has_expired(stream.get_ref().1) {
        return Err(HandshakeError::Io(io::Error::other(Error::InvalidCertificate(CertificateError::Expired))));
    }
    Ok(Box::new(stream.into()))
}

/// Whether the client certificate of a resumed session has expired since. A full handshake would refuse it.
fn has_expired(connection: &ServerConnection) -> bool {
    if connection.handshake_kind() != Some(HandshakeKind::Resumed) {
        return false;
    }
    let shown = connection.peer_certificates().and_then(|chain| chain.first());
    let now = clock::wall().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    shown.and_then(|leaf| certificate::parse(leaf)).is_some_and(|leaf| leaf.not_after < now.cast_signed())
}

/// Whether this is the beginning of a ClientHello of TLS 1.1 or older. Newer versions send the version of TLS 1.2 here
/// (RFC 8446 §4.1.2). rustls would report a signature mismatch to such clients.
fn is_old_hello(first: &[u8; CLIENT_HELLO_PREFIX_BYTES]) -> bool {
    const HANDSHAKE: u8 = 22;
    const CLIENT_HELLO: u8 = 1;
    let [kind, _, _, length @ .., message, _, _, _, _, _] = *first;
    let [.., major, minor] = *first;
    // A shorter record ends before the version, which is then in the next record (RFC 8446 §5.1).
    let has_version = u16::from_be_bytes(length) >= 6;
    (kind, message) == (HANDSHAKE, CLIENT_HELLO) && has_version && [major, minor] < [3, 3]
}

/// Sends the alert for an unsupported version, as best effort.
async fn refuse_old(mut io: Io) {
    // Closing with unread bytes would reset the connection and discard the alert.
    let _ = io.try_read(&mut [0; 4096]);
    let _ = io.write_all(PROTOCOL_VERSION).await;
    let _ = io.shutdown().await;
}

/// The TLS properties of a connection.
pub(super) fn tls(stream: &TlsStream<Io>) -> TlsInfo {
    let (_, connection) = stream.get_ref();
    let cipher = connection.negotiated_cipher_suite().map_or(CipherSuite::Unknown(0), |suite| suite.suite());
    let server_name = match stream {
        TlsStream::Server(server) => server.get_ref().1.server_name().map(Into::into),
        TlsStream::Client(_) => None,
    };
    let certificate = connection.peer_certificates().and_then(|chain| chain.first());
    TlsInfo {
        protocol: match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "",
        },
        cipher: CIPHERS.iter().find(|(suite, _)| *suite == cipher).map_or("", |(_, name)| name),
        server_name,
        is_resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
        client: certificate.and_then(|der| client_certificate(der)),
    }
}

/// Cipher suites by OpenSSL's names, as in nginx's `$ssl_cipher`.
const CIPHERS: [(CipherSuite, &str); 9] = [
    (CipherSuite::TLS13_AES_128_GCM_SHA256, "TLS_AES_128_GCM_SHA256"),
    (CipherSuite::TLS13_AES_256_GCM_SHA384, "TLS_AES_256_GCM_SHA384"),
    (CipherSuite::TLS13_CHACHA20_POLY1305_SHA256, "TLS_CHACHA20_POLY1305_SHA256"),
    (CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, "ECDHE-ECDSA-AES128-GCM-SHA256"),
    (CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, "ECDHE-ECDSA-AES256-GCM-SHA384"),
    (CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, "ECDHE-ECDSA-CHACHA20-POLY1305"),
    (CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, "ECDHE-RSA-AES128-GCM-SHA256"),
    (CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, "ECDHE-RSA-AES256-GCM-SHA384"),
    (CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, "ECDHE-RSA-CHACHA20-POLY1305"),
];

/// A client certificate in the formats for backends: `X-Forwarded-Client-Cert` as Envoy writes it, and `Client-Cert`
/// (RFC 9440). `None` if it is malformed, which TLS has excluded.
fn client_certificate(der: &[u8]) -> Option<ClientCertificate> {
    let leaf = certificate::parse(der)?;
    let hex = |algorithm| {
        let digest = ring::digest::digest(algorithm, der);
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let sha256 = hex(&ring::digest::SHA256);
    let subject = certificate::distinguished_name(&leaf.subject);
    let quoted = subject.replace('\\', "\\\\").replace('"', "\\\"");
    let lines = format!(
        "X-Forwarded-Client-Cert: Hash={sha256};Subject=\"{quoted}\"\r\nClient-Cert: :{}:\r\n",
        STANDARD.encode(der)
    );
    Some(ClientCertificate {
        subject: subject.into(),
        issuer: certificate::distinguished_name(&leaf.issuer).into(),
        sha1: hex(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY).into(),
        sha256: sha256.into(),
        lines: lines.into(),
    })
}

impl HandshakeError {
    /// Its label in metrics and logs.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::PlainHttp(_) => "plain-http",
            Self::OldVersion => "incompatible",
            Self::UnknownName => "unknown-name",
            Self::Timeout => "timeout",
            Self::Shed => "shed",
            Self::Io(e) => match e.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
                Some(error) => reason(error),
                None => "closed",
            },
        }
    }
}

fn reason(error: &Error) -> &'static str {
    match error {
        Error::NoCertificatesPresented => "no-client-certificate",
        Error::InvalidCertificate(_) | Error::InvalidCertRevocationList(_) => "client-certificate",
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => "incompatible",
        Error::AlertReceived(AlertDescription::CloseNotify | AlertDescription::UserCanceled) => "closed",
        Error::AlertReceived(_) => "refused",
        _ => "malformed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::HANDSHAKE_FAILURES;

    #[test]
    fn every_reason_is_counted_from_the_start() {
        let io = |error: Error| HandshakeError::Io(io::Error::new(ErrorKind::InvalidData, error));
        for (failed, expected) in [
            (HandshakeError::OldVersion, "incompatible"),
            (HandshakeError::UnknownName, "unknown-name"),
            (HandshakeError::Timeout, "timeout"),
            (HandshakeError::Shed, "shed"),
            (HandshakeError::Io(ErrorKind::UnexpectedEof.into()), "closed"),
            (io(Error::NoCertificatesPresented), "no-client-certificate"),
            (io(Error::InvalidCertificate(rustls::CertificateError::Expired)), "client-certificate"),
            (io(Error::PeerIncompatible(rustls::PeerIncompatible::NoCipherSuitesInCommon)), "incompatible"),
            (io(Error::AlertReceived(AlertDescription::UnknownCA)), "refused"),
            (io(Error::AlertReceived(AlertDescription::UserCanceled)), "closed"),
            (io(Error::DecryptError), "malformed"),
        ] {
            assert_eq!(failed.reason(), expected, "{failed:?}");
            assert!(HANDSHAKE_FAILURES.contains(&expected));
        }
        assert!(HANDSHAKE_FAILURES.contains(&"plain-http"));
    }
}
