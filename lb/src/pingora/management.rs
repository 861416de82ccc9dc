//! The tasks of an embedded balancer besides requests: probes, name resolution, ends of ejections, the admin API.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::ServiceReadyNotifier;
use pingora_core::services::background::BackgroundService;
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;

use super::connections::Connections;
use crate::admin::{self, Admin};
use crate::config::backend::SocketAddress;
use crate::config::{AdminConfig, SocketFileRights};
use crate::connection_limit::ConnectionLimit;
use crate::control::Control;
use crate::control::resources::Resources;
use crate::exchange::refusal::Refusal;
use crate::listen::sockets::cannot_listen;
use crate::probe;
use crate::server::first_probes;
use crate::shutdown::{Phase, Shutdown};

/// How often idle connections to backends are checked.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// How long the server may take to listen once it is allowed to.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_INTERVAL: Duration = Duration::from_millis(2);
/// Longer than the first probes and the server together may take.
const START_TIMEOUT: Duration = Duration::from_secs(15);
const START_INTERVAL: Duration = Duration::from_millis(5);

/// A service of a Pingora server (`background_service`). Requests wait until it has probed every backend, but five
/// seconds at most.
pub struct Management {
    control: Arc<Control>,
    client_limit: Arc<ConnectionLimit>,
    shutdown: Shutdown,
    /// The admin API's socket, until it is started.
    listener: Mutex<Option<TcpListener>>,
    /// Held as long as it checks reloads.
    _resources: Arc<dyn Resources>,
    connections: Option<Arc<Connections>>,
}

/// Whether requests can be served; early requests wait for it.
#[derive(Debug, Clone, Default)]
pub(super) struct Started {
    pub shutdown: Shutdown,
    is_given_up: Arc<AtomicBool>,
}

impl Started {
    /// Waits for the first probes. If no management service runs, logs that once and serves requests anyway.
    pub(super) async fn wait(&self) {
        let began = Instant::now();
        while self.shutdown.phase() == Phase::Starting && !self.is_given_up.load(Ordering::Relaxed) {
            if began.elapsed() > START_TIMEOUT && !self.is_given_up.swap(true, Ordering::Relaxed) {
                tracing::error!(
                    "the backends are not probed, and there is no admin API: add management() to the Pingora server, as a \
                     background_service"
                );
            }
            tokio::time::sleep(START_INTERVAL).await;
        }
    }
}

impl Management {
    pub(super) fn new(
        control: Arc<Control>,
        shutdown: Shutdown,
        client_limit: Arc<ConnectionLimit>,
        resources: Arc<dyn Resources>,
        connections: Option<&Arc<Connections>>,
    ) -> anyhow::Result<Self> {
        let address = control.snapshot().config.admin.address;
        let listener = TcpListener::bind(address)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|e| anyhow::anyhow!(cannot_listen(&address.into(), "[admin] address", &e)))?;
        control.metrics.expect_refusals(Refusal::all().map(Refusal::reason));
        control.reload_with(&resources);
        let connections = connections.map(Arc::clone);
        Ok(Self {
            control,
            client_limit,
            shutdown,
            listener: Mutex::new(Some(listener)),
            _resources: resources,
            connections,
        })
    }

    /// Serves the admin API and probes until the result is dropped.
    fn begin(&self) -> std::io::Result<JoinSet<()>> {
        let mut tasks = JoinSet::new();
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(listener) = listener {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let AdminConfig { token, read_token, .. } = self.control.snapshot().config.admin.clone();
            let (control, client_limit, shutdown) =
                (Arc::clone(&self.control), Arc::clone(&self.client_limit), self.shutdown.clone());
            let admin = Admin { control, client_limit, token, read_token, shutdown };
            tracing::info!(address = %self.control.snapshot().config.admin.address, "admin API ready");
            tasks.spawn(admin::serve(listener, Arc::new(admin)));
        }
        tasks.spawn(probe::run(Arc::clone(&self.control)));
        if let Some(connections) = &self.connections {
            tasks.spawn(Connections::close_killed(Arc::downgrade(connections), Arc::clone(&self.control)));
            let connections = Arc::clone(connections);
            tasks.spawn(async move {
                let mut tick = tokio::time::interval(SWEEP_INTERVAL);
                loop {
                    tick.tick().await;
                    connections.sweep();
                }
            });
        }
        Ok(tasks)
    }

    /// Waits until the server listens, which Pingora does not report: as soon as the service is ready, clients may
    /// connect.
    async fn listening(&self) {
        let snapshot = Arc::clone(&self.control.snapshot());
        for listener in &snapshot.config.listeners {
            for address in listener.addresses.iter() {
                let connecting = async {
                    while !can_connect(address).await {
                        tokio::time::sleep(CONNECT_INTERVAL).await;
                    }
                };
                if tokio::time::timeout(LISTEN_TIMEOUT, connecting).await.is_err() {
                    tracing::warn!(
                        "nothing listens at {address}, which is the address of a [[listener]]: have a service of the Pingora \
                         server listen there, or correct it"
                    );
                }
                if let (SocketAddress::Unix(path), Some(rights)) = (address, &listener.socket_file)
                    && let Some(mode) = other_mode(path, rights)
                {
                    tracing::warn!(
                        "[[listener]] {address}: mode is {:04o}, and the socket's file has {mode:04o}: have the Pingora server \
                         make it so (add_uds)",
                        rights.mode
                    );
                }
            }
        }
    }
}

async fn can_connect(address: &SocketAddress) -> bool {
    match address {
        SocketAddress::Ip(address) => TcpStream::connect(reachable(*address)).await.is_ok(),
        SocketAddress::Unix(path) => UnixStream::connect(path).await.is_ok(),
    }
}

/// The permission bits of a socket's file, if they differ from the configured ones.
fn other_mode(file: &Path, rights: &SocketFileRights) -> Option<u32> {
    const PERMISSIONS: u32 = 0o7777;
    let mode = std::fs::metadata(file).ok()?.mode() & PERMISSIONS;
    (mode != rights.mode).then_some(mode)
}

/// An address of this machine for a socket that is bound to all addresses.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[async_trait]
impl BackgroundService for Management {
    async fn start_with_ready_notifier(&self, mut stopping: ShutdownWatch, ready: ServiceReadyNotifier) {
        let _tasks = match self.begin() {
            Ok(tasks) => tasks,
            Err(e) => return tracing::error!("the admin API cannot be served: {e}"),
        };
        first_probes(&self.control).await;
        ready.notify_ready();
        self.listening().await;
        self.shutdown.run();
        // An error means that the server is gone.
        let _ = stopping.wait_for(|&is_stopping| is_stopping).await;
        self.shutdown.close();
        // The admin API stays available until the server ends its runtimes after the grace period.
        std::future::pending::<()>().await;
    }
}

impl Drop for Management {
    fn drop(&mut self) {
        self.shutdown.stop(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_socket_file_with_other_permissions_is_reported() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("socket");
        let _socket = std::os::unix::net::UnixListener::bind(&file).expect("bound");
        let rights = SocketFileRights { mode: 0o660, owner: None };
        for (mode, other) in [(0o660, None), (0o666, Some(0o666))] {
            set_permissions(&file, Permissions::from_mode(mode)).expect("given");
            assert_eq!(other_mode(&file, &rights), other, "{mode:o}");
        }
    }
}
