//! The connections to backends, which Pingora opens, uses and keeps. Each is opened as by the engine and is registered
//! here until it is closed, so that a kill ends those in use, and none is kept that may lead to another server.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use pingora_core::connectors::l4::Connect;
use pingora_core::prelude::{ErrorType, OrErr};
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::upstreams::peer::{Tracer, Tracing};
use rustix::net::{Shutdown, shutdown};

use crate::backend::{Endpoint, Incarnation};
use crate::control::Control;
use crate::control::kill::ThreadDone;
use crate::dial::{Dial, Transport};
use crate::failure::{AttemptError, Failure};
use crate::http::io::Io;
use crate::http::io::virtual_socket::Virtual;

/// The open connections by file descriptor.
#[derive(Debug, Default)]
pub(super) struct Connections(Mutex<HashMap<RawFd, Arc<TrackedConnection>>>);

/// One connection. The exchange that uses it holds it, too.
#[derive(Debug)]
pub(super) struct TrackedConnection {
    /// A duplicate file descriptor of the socket, so that it can be shut down whatever Pingora does with its own.
    socket: OwnedFd,
    endpoint: Arc<Endpoint>,
    server: Incarnation,
    /// The settings with which it was opened. Held so that nothing else can have the same address in memory.
    _transport: Arc<Transport>,
    /// No exchange has used it yet.
    is_new: AtomicBool,
    /// Notified when its exchange has seen that it was killed.
    waiting: Mutex<Vec<ThreadDone>>,
}

impl Connections {
    /// The connection with this file descriptor, for an exchange that begins to use it.
    pub(super) fn take(&self, file: RawFd) -> Option<Arc<TrackedConnection>> {
        let connection = self.open().get(&file).map(Arc::clone)?;
        connection.is_new.store(false, Ordering::Relaxed);
        Some(connection)
    }

    /// Closes idle connections to a server. One that an exchange takes at this moment is closed as well: the exchange
    /// meets a stale connection, as it would have a moment later.
    pub(super) fn forget(&self, server: Incarnation) {
        self.close(|connection| connection.server == server);
    }

    /// Closes idle connections that may lead to another server.
    pub(super) fn sweep(&self) {
        self.close(|connection| connection.endpoint.incarnation() != connection.server);
    }

    fn close(&self, is_meant: impl Fn(&TrackedConnection) -> bool) {
        for connection in self.open().values().filter(|connection| connection.is_idle() && is_meant(connection)) {
            connection.shut_down();
        }
    }

    /// Ends connections when the admin API kills them, as long as `connections` exists.
    pub(super) async fn close_killed(connections: Weak<Self>, control: Arc<Control>) {
        let mut kills = control.kills();
        while let Some(done) = kills.recv().await {
            let Some(connections) = connections.upgrade() else { return };
            for connection in
                connections.open().values().filter(|connection| connection.endpoint.is_killed(connection.server))
            {
                if !connection.is_idle() {
                    connection.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(done.clone());
                }
                connection.shut_down();
            }
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<RawFd, Arc<TrackedConnection>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TrackedConnection {
    /// The server to which it leads.
    pub(super) fn server(&self) -> Incarnation {
        self.server
    }

    /// Whether no exchange uses it.
    fn is_idle(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1 && !self.is_new.load(Ordering::Relaxed)
    }

    /// Readers see the end of the connection, and Pingora stops keeping it.
    fn shut_down(&self) {
        // Fails only if the backend has closed it first.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}

/// How to connect to an endpoint.
#[derive(Debug)]
pub(super) struct BackendConnector {
    pub endpoint: Arc<Endpoint>,
    pub server: Incarnation,
    pub transport: Arc<Transport>,
    pub connections: Arc<Connections>,
    /// Set if the request asks to switch protocols: receives the file descriptor, which Pingora does not know in this
    /// case.
    pub tunnel: Option<Arc<AtomicI32>>,
}

impl BackendConnector {
    async fn connected(&self) -> Result<Stream, AttemptError> {
        let address = self.endpoint.address().ok_or(Failure::Unresolved)?;
        let (backend, transport) = (&self.endpoint.backend.address, &self.transport);
        let io = Io::connect(&Dial { backend, address, transport, header: &[] }).await?;
        // Configurations with TLS to backends are rejected.
        let socket = io.socket().filter(|_| !io.is_tls()).ok_or(Failure::Internal)?;
        let (connection, file) = (self.connection(socket)?, socket.as_raw_fd());
        let closing = Closing { connections: Arc::clone(&self.connections), file };
        self.connections.open().insert(file, Arc::new(connection));
        if let Some(tunnel) = &self.tunnel {
            tunnel.store(file, Ordering::Relaxed);
            // If Pingora has read a 101 before the end of the request's body, it takes that end for the end of the
            // tunnel (cloudflare/pingora issue 946). It reads that end while its first read here finds nothing.
            return Ok(Virtual::new(io, ClosingOnDrop(closing)).pausing().into_stream());
        }
        let mut stream = match io {
            Io::Tcp(tcp) => Stream::from(tcp),
            Io::Unix(unix) => Stream::from(unix),
            _ => return Err(Failure::Internal.into()),
        };
        stream.tracer = Some(Tracer(Box::new(closing)));
        Ok(stream)
    }

    fn connection(&self, socket: BorrowedFd<'_>) -> Result<TrackedConnection, AttemptError> {
        Ok(TrackedConnection {
            socket: socket.try_clone_to_owned().map_err(|_| Failure::OutOfResources)?,
            endpoint: Arc::clone(&self.endpoint),
            server: self.server,
            _transport: Arc::clone(&self.transport),
            is_new: AtomicBool::new(true),
            waiting: Mutex::default(),
        })
    }
}

/// Implemented without the macro `async_trait`.
impl Connect for BackendConnector {
    fn connect<'s, 'a, 'f>(
        &'s self,
        _: &'a SocketAddr,
    ) -> Pin<Box<dyn Future<Output = pingora_core::Result<Stream>> + Send + 'f>>
    where
        's: 'f,
        'a: 'f,
        Self: 'f,
    {
        Box::pin(async { self.connected().await.or_err(ErrorType::ConnectError, "not connected") })
    }
}

/// Unregisters a connection when Pingora drops it. Runs before the file descriptor is closed, so no other connection
/// can have the same number yet.
#[derive(Debug, Clone)]
struct Closing {
    connections: Arc<Connections>,
    file: RawFd,
}

impl Tracing for Closing {
    fn on_connected(&self) {}

    fn on_disconnected(&self) {
        self.connections.open().remove(&self.file);
    }

    fn boxed_clone(&self) -> Box<dyn Tracing> {
        Box::new(self.clone())
    }
}

/// Unregisters a connection when it is dropped.
struct ClosingOnDrop(Closing);

impl Drop for ClosingOnDrop {
    fn drop(&mut self) {
        self.0.on_disconnected();
    }
}
