//! The handshake of TLS with a client, from its first byte on.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::AsyncWriteExt;
use tokio_rustls::{LazyConfigAcceptor, TlsStream};

use crate::http::Engine;
use crate::http::io::Io;
use crate::tls::server::ServerTls;

/// How much time each client has, even if others wait for its place.
const LEAST_HANDSHAKE: Duration = Duration::from_secs(1);
/// A fatal alert `unrecognized_name` (RFC 8446 §6, RFC 6066 §3), before anything is encrypted.
const UNRECOGNIZED_NAME: &[u8] = &[21, 3, 1, 0, 2, 2, 112];

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error("no certificate is for the name that the client asks for")]
    UnknownName,
    #[error("it took too long")]
    Timeout,
    #[error("it had to make room")]
    Shed,
    #[error(transparent)]
    Io(io::Error),
}

/// Takes as long as the listener's `handshake_timeout` at most.
pub async fn accept(engine: &Engine, tls: &Arc<ServerTls>, io: Io) -> Result<Box<TlsStream<Io>>, Failed> {
    let shed = async {
        tokio::time::sleep(LEAST_HANDSHAKE).await;
        engine.sheds_lingering().await;
    };
    tokio::select! {
        biased;
        accepted = tokio::time::timeout(tls.handshake_timeout, handshake(tls, io)) => {
            accepted.unwrap_or(Err(Failed::Timeout))
        }
        () = shed => Err(Failed::Shed),
    }
}

async fn handshake(tls: &Arc<ServerTls>, io: Io) -> Result<Box<TlsStream<Io>>, Failed> {
    let mut start = LazyConfigAcceptor::new(Acceptor::default(), io).await.map_err(Failed::Io)?;
    if tls.choice.admits(start.client_hello().server_name()).is_err() {
        // Whoever does not read it learns nothing.
        let _ = start.io.write_all(UNRECOGNIZED_NAME).await;
        let _ = start.io.shutdown().await;
        return Err(Failed::UnknownName);
    }
    let stream = start.into_stream(Arc::clone(&tls.config)).await.map_err(Failed::Io)?;
    Ok(Box::new(stream.into()))
}
