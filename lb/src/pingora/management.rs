//! The tasks of an embedded balancer besides requests: probes, name resolution, ends of ejections, the admin API,
//! signals.
//!
//! In an upgrade (SIGQUIT) two processes serve requests for a while. The admin API's address and the state file belong
//! to one of them: the former process finishes the admin API's requests, has the last changes written, releases the
//! state file, and closes its socket. The new process, which has been trying to get both, then reads those changes. It
//! serves no admin API before, also if its address is another one.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::bail;
use async_trait::async_trait;
use pingora_core::server::{ExecutionPhase, Server, ShutdownWatch};
use pingora_core::services::ServiceReadyNotifier;
use pingora_core::services::background::BackgroundService;
use tokio::net::{TcpStream, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
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
use crate::log::Log;
use crate::shutdown::{Phase, Shutdown};
use crate::state::Persistence;
use crate::{probe, server};

/// How often idle connections to backends are checked.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// How long the server may take to listen once it is allowed to.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_INTERVAL: Duration = Duration::from_millis(2);
/// Longer than the first probes and the server together may take.
const START_TIMEOUT: Duration = Duration::from_secs(15);
const START_INTERVAL: Duration = Duration::from_millis(5);
/// The former process gives up the admin API's address and the state file within a moment, unless it cannot.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(60);

/// A service of a Pingora server (`background_service`). Requests wait until it has probed every backend, but five
/// seconds at most.
pub struct Management {
    control: Arc<Control>,
    client_limit: Arc<ConnectionLimit>,
    shutdown: Shutdown,
    /// What starts with the service. `None` afterwards.
    start: Mutex<Option<Start>>,
    takes_signals: bool,
    /// Held as long as it checks reloads.
    _resources: Arc<dyn Resources>,
    connections: Option<Arc<Connections>>,
}

struct Start {
    /// The admin API's socket; `None`: the process that this one replaces has it.
    listener: Option<TcpListener>,
    phases: Receiver<ExecutionPhase>,
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
        server: &Server,
        control: Arc<Control>,
        shutdown: Shutdown,
        client_limit: Arc<ConnectionLimit>,
        resources: Arc<dyn Resources>,
        connections: Option<&Arc<Connections>>,
    ) -> anyhow::Result<Self> {
        let phases = server.watch_execution_phase();
        let address = control.snapshot().config.admin.address;
        let is_upgrade = server.options.as_ref().is_some_and(|options| options.upgrade);
        let listener = match bind(address) {
            Ok(listener) => Some(listener),
            Err(e) if is_upgrade && e.kind() == ErrorKind::AddrInUse => None,
            Err(e) => bail!(cannot_listen(&address.into(), "[admin] address", &e)),
        };
        control.metrics.expect_refusals(Refusal::all().map(Refusal::reason));
        control.metrics.expect_client_failures(Refusal::client_failure_words());
        control.reload_with(&resources);
        let connections = connections.map(Arc::clone);
        let start = Mutex::new(Some(Start { listener, phases }));
        Ok(Self { control, client_limit, shutdown, start, takes_signals: false, _resources: resources, connections })
    }

    /// Has SIGHUP reload the configuration, and SIGUSR1 reopen the log and the access logs, as in `evenkeel run`.
    /// Otherwise each of them ends the process, unless the program does something else with it.
    #[must_use]
    pub fn with_signals(mut self) -> Self {
        self.takes_signals = true;
        self
    }

    /// Serves the admin API and probes until the result is dropped.
    fn begin(&self) -> JoinSet<()> {
        // A server with `daemon` has forked by now.
        Log::use_thread_of_ours();
        let mut tasks = JoinSet::new();
        if let Some(start) = self.start.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let AdminConfig { token, read_token, .. } = self.control.snapshot().config.admin.clone();
            let (control, client_limit, shutdown) =
                (Arc::clone(&self.control), Arc::clone(&self.client_limit), self.shutdown.clone());
            tasks.spawn(administer(start, Admin { control, client_limit, token, read_token, shutdown }));
        }
        if self.takes_signals {
            match take_signals(Arc::clone(&self.control)) {
                Ok(signals) => {
                    tasks.spawn(signals);
                }
                Err(e) => tracing::error!("SIGHUP and SIGUSR1 cannot be received: {e}"),
            }
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
        tasks
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

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves the admin API, from when its address and the state file are free until another process takes over.
async fn administer(Start { listener, mut phases }: Start, admin: Admin) {
    let address = admin.control.snapshot().config.admin.address;
    let mut upgrade = pin!(upgrade(&mut phases));
    let control = Arc::clone(&admin.control);
    let taken_over = async {
        let listener = match listener {
            Some(listener) => listener,
            None => {
                let cannot_bind = |e| cannot_listen(&address.into(), "[admin] address", &e);
                freed(&format!("[admin] address {address}"), || bind(address).map_err(cannot_bind)).await
            }
        };
        // Reads no more than a small file, as the start did.
        freed("the state file", || control.own_state().map_err(|owned| owned.to_string())).await;
        listener
    };
    let listener = tokio::select! {
        listener = taken_over => listener,
        // The next process takes over from the former one.
        () = &mut upgrade => return,
    };
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(e) => return tracing::error!("the admin API cannot be served: {e}"),
    };
    tracing::info!(%address, "admin API ready");
    admin::serve(&listener, Arc::new(admin), upgrade).await;
    if control.release_state(server::LAST_CHANGES_TIMEOUT).await == Persistence::Pending {
        tracing::error!(
            "the disk does not take the state file: the process that takes over waits for it, and the last changes made at run \
             time may be lost"
        );
    }
    // Only now may the other process read that file.
    drop(listener);
    tracing::info!(%address, "the admin API is left to the process that takes over");
}

/// Waits until the server is told to hand over to another process.
async fn upgrade(phases: &mut Receiver<ExecutionPhase>) {
    loop {
        match phases.recv().await {
            Ok(ExecutionPhase::GracefulUpgradeTransferringFds) => return,
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            // The server has ended.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Tries to take `what` until the process that this one replaces has given it up.
async fn freed<T>(what: &str, mut take: impl FnMut() -> Result<T, String>) -> T {
    let began = Instant::now();
    let (mut is_warned, mut is_told) = (false, false);
    loop {
        match take() {
            Ok(taken) => return taken,
            Err(_) if !is_warned => {
                is_warned = true;
                tracing::warn!(
                    "{what} still belongs to the process that this one replaces: requests are served, and the admin API as \
                     soon as it is free"
                );
            }
            Err(problem) if began.elapsed() > TAKE_OVER_TIMEOUT && !is_told => {
                is_told = true;
                tracing::error!(
                    "there is no admin API, and no change at run time is possible: {problem}; it is still tried"
                );
            }
            Err(_) => {}
        }
        tokio::time::sleep(server::OWN_INTERVAL).await;
    }
}

/// The future reloads the configuration and reopens the logs, as signals tell.
fn take_signals(control: Arc<Control>) -> io::Result<impl Future<Output = ()>> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut user1 = signal(SignalKind::user_defined1())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = hangup.recv() => drop(tokio::spawn(server::reload(Arc::clone(&control)))),
                _ = user1.recv() => {
                    Log::reopen_ours();
                    control.reopen_logs();
                }
            }
        }
    })
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
        let _tasks = self.begin();
        server::first_probes(&self.control).await;
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
