//! The actors' TLS, over a pipe. Its bytes differ from run to run, but not their number: the key is of Ed25519, whose
//! signatures are all of one length, and no session is resumed.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};

use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use tokio_rustls::TlsAcceptor;

use crate::config::tls::TlsConfig;
use crate::config::tls::material::Material;
use crate::config::transport::{AcceptAnyCertificate, BackendTls, Trust};
use crate::http::io::pipe::Pipe;
use crate::tls::server::ServerTls;

/// The most unsent bytes that a connection buffers.
const MAX_BUFFERED_BYTES: usize = 4096;

pub(crate) static ACCEPTOR: LazyLock<TlsAcceptor> = LazyLock::new(|| {
    let config = TlsConfig::of_pair(file("cert.pem"), file("key.pem"));
    let material = Material::load(&config).expect("the files are there");
    let tls = ServerTls::new(&config, material, None).expect("a sound configuration");
    TlsAcceptor::from(Arc::clone(&tls.config))
});

pub(crate) static CLIENT: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let provider = ring::default_provider();
    // Other tests check certificates.
    let verifier = AcceptAnyCertificate(provider.signature_verification_algorithms);
    let builder = ClientConfig::builder_with_provider(Arc::new(provider));
    let builder = builder.with_safe_default_protocol_versions().expect("the versions that ring has");
    let verifier = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = verifier.with_no_client_auth();
    config.resumption = Resumption::disabled();
    Arc::new(config)
});

static BACKEND: LazyLock<Arc<ServerConfig>> = LazyLock::new(|| {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("the versions that ring has");
    let chain = CertificateDer::pem_file_iter(file("cert.pem")).expect("a file").collect::<Result<_, _>>();
    let key = PrivateKeyDer::from_pem_file(file("key.pem")).expect("a key");
    let config = builder.with_no_client_auth().with_single_cert(chain.expect("certificates"), key);
    let mut config = config.expect("they belong together");
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Arc::new(config)
});

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/simulation/test-data").join(name)
}

/// The pool's TLS settings for backends that use TLS.
pub(crate) fn to_backends() -> BackendTls {
    let name = Some("localhost".into());
    BackendTls { name, ca: None, certificate: None, key: None, verify: false, trust: Trust::default() }
}

/// An actor's side of TLS.
pub(crate) struct Tls(RefCell<Connection>);

impl Tls {
    pub(crate) fn client() -> Self {
        let name = ServerName::try_from("localhost").expect("a name");
        Self::new(ClientConnection::new(Arc::clone(&CLIENT), name).expect("a sound configuration").into())
    }

    pub(crate) fn backend() -> Self {
        Self::new(ServerConnection::new(Arc::clone(&BACKEND)).expect("a sound configuration").into())
    }

    fn new(mut connection: Connection) -> Self {
        connection.set_buffer_limit(Some(MAX_BUFFERED_BYTES));
        Self(RefCell::new(connection))
    }

    pub(crate) fn read(&self, cx: &mut Context<'_>, pipe: &Pipe, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut tls = self.0.borrow_mut();
        loop {
            // Also a read has to send what waits, above all in a handshake.
            if let Poll::Ready(Err(e)) = flush_to(&mut tls, cx, pipe) {
                return Poll::Ready(Err(e));
            }
            match tls.reader().read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read),
            }
            match tls.read_tls(&mut Raw { cx, pipe }) {
                Ok(_) => tls.process_new_packets().map_err(io::Error::other)?,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(e) => return Poll::Ready(Err(e)),
            };
        }
    }

    pub(crate) fn write(&self, cx: &mut Context<'_>, pipe: &Pipe, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut tls = self.0.borrow_mut();
        loop {
            let flushed = flush_to(&mut tls, cx, pipe)?;
            if !tls.is_handshaking() {
                match tls.writer().write(bytes)? {
                    0 if flushed.is_pending() => return Poll::Pending,
                    0 => continue,
                    count => return Poll::Ready(Ok(count)),
                }
            }
            match tls.read_tls(&mut Raw { cx, pipe }) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => tls.process_new_packets().map_err(io::Error::other)?,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(e) => return Poll::Ready(Err(e)),
            };
        }
    }

    pub(crate) fn flush(&self, cx: &mut Context<'_>, pipe: &Pipe) -> Poll<io::Result<()>> {
        flush_to(&mut self.0.borrow_mut(), cx, pipe)
    }

    /// Sends the close_notify alert.
    pub(crate) fn close_notify(&self, cx: &mut Context<'_>, pipe: &Pipe) -> Poll<io::Result<()>> {
        let mut tls = self.0.borrow_mut();
        tls.send_close_notify();
        flush_to(&mut tls, cx, pipe)
    }
}

fn flush_to(tls: &mut Connection, cx: &mut Context<'_>, pipe: &Pipe) -> Poll<io::Result<()>> {
    while tls.wants_write() {
        match tls.write_tls(&mut Raw { cx, pipe }) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            Err(e) => return Poll::Ready(Err(e)),
        }
    }
    Poll::Ready(Ok(()))
}

/// Adapts a pipe to the blocking traits that rustls reads and writes with.
struct Raw<'a, 'b> {
    cx: &'a mut Context<'b>,
    pipe: &'a Pipe,
}

impl Read for Raw<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.pipe.read(self.cx, buffer) {
            Poll::Ready(read) => read,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Raw<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.pipe.write(self.cx, bytes) {
            Poll::Ready(written) => written,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
