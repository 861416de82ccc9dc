//! A balancer from start to stop: bind, probe, serve; reload on request; then become unready, stop accepting, finish
//! exchanges in flight, and exit. It uses no global state, so that one process can run several.

mod privileges;
pub(crate) mod resources;

use std::future::pending;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::net::TcpListener;
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinSet;

use self::resources::{
    RunningResources, cannot_log, connection_limits, demand_spare_files, max_idle_per_thread, max_pipes,
};
use crate::access_log::{AccessLog, AccessLogSpec, LAST_LINES_TIMEOUT};
use crate::admin::{self, Admin};
use crate::change::Author;
use crate::config::{AdminConfig, Config, ServerConfig};
use crate::connection_limit::ConnectionLimit;
use crate::control::Control;
use crate::control::resources::Resources;
use crate::exchange::refusal::Refusal;
use crate::http::EngineContext;
use crate::listen::sockets::cannot_listen;
use crate::listen::{Listeners, Threads};
use crate::metrics::Metrics;
use crate::probe;
use crate::shutdown::Shutdown;
use crate::state::Persistence;

pub use self::privileges::give_up_root;
pub use crate::listen::sockets::Sockets;

/// How long traffic waits for the first probes.
const FIRST_PROBES_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an immediate stop waits for threads to cut off their exchanges.
const CUT_OFF_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the end waits for the last runtime changes to be written.
pub(crate) const LAST_CHANGES_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the state file is tried while another process owns it.
pub(crate) const OWN_INTERVAL: Duration = Duration::from_millis(10);

/// What a balancer is started with.
pub struct Start {
    /// The configuration file, which a reload reads again.
    pub path: PathBuf,
    /// What was read from it.
    pub config: Config,
    /// The metrics that the admin API shows.
    pub metrics: Arc<Metrics>,
    /// The limit on open files.
    pub open_files: usize,
}

/// A command to a running balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Reload the configuration file.
    Reload,
    /// Reopen the access log after its file was moved away.
    ReopenLogs,
    /// Stop gracefully; the second time, stop at once.
    Stop,
}

/// Runs a balancer until it is told to stop, or until `commands` is closed. It uses `sockets` for addresses that they
/// have, and binds the others. If dropped before its end, it cuts off exchanges in flight.
pub async fn run(start: Start, mut sockets: Sockets, mut commands: Receiver<Command>) -> anyhow::Result<()> {
    let Start { path, config, metrics, open_files } = start;
    let access_log = Arc::new(AccessLog::new(metrics.access_log_lost.clone()));
    let opened = access_log.open(&AccessLogSpec::of(&config));
    access_log.switch(opened.map_err(|refused| anyhow::anyhow!(cannot_log(&refused)))?);
    let shutdown = Shutdown::new();
    let _end = End(shutdown.clone());
    let admin_listener = bind_admin(config.admin.address, &mut sockets).await?;
    let admin_address = admin_listener.local_addr()?;
    let AdminConfig { token, read_token, .. } = config.admin.clone();
    metrics.expect_refusals(Refusal::all().map(Refusal::reason));
    metrics.expect_client_failures(Refusal::client_failure_words());
    let control = Arc::new(Control::new(&path, config.clone(), metrics));
    own_state(&control).await?;
    let (limit, warning) = connection_limits(&config.server, open_files);
    let (client_limit, backend_limit) = (ConnectionLimit::new(limit.clients), ConnectionLimit::new(limit.backends));
    let handshake_limit = ConnectionLimit::for_handshakes(limit.handshakes);
    tracing::info!(
        "evenkeel {} starts with {}, as user {}: {} threads, {} clients at most, {open_files} open files",
        env!("CARGO_PKG_VERSION"),
        path.display(),
        rustix::process::getuid().as_raw(),
        config.server.threads,
        limit.clients,
    );
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
    }
    let threads = config.server.threads;
    let max_idle = Arc::new(AtomicUsize::new(max_idle_per_thread(&config.server, limit, threads)));
    let context = EngineContext {
        control: Arc::clone(&control),
        access_log: Arc::clone(&access_log),
        max_idle: Arc::clone(&max_idle),
        shutdown: shutdown.clone(),
        client_limit: Arc::clone(&client_limit),
        backend_limit: Arc::clone(&backend_limit),
        handshake_limit: Arc::clone(&handshake_limit),
    };
    let listeners = Arc::new(Listeners::new(threads, context, max_pipes(open_files)));
    listen(&listeners, &config, &mut sockets)?;
    for address in sockets.into_addresses() {
        tracing::warn!(%address, "a socket was handed over that no [[listener]] and no [admin] names");
    }
    let resources: Arc<dyn Resources> = Arc::new(RunningResources {
        listeners: Arc::clone(&listeners),
        access_log: Arc::clone(&access_log),
        client_limit: Arc::clone(&client_limit),
        backend_limit,
        handshake_limit,
        max_idle,
        open_files,
        threads,
    });
    control.reload_with(&resources);
    let started = listeners.start().map_err(anyhow::Error::msg)?;
    demand_spare_files(&admin_listener, open_files)?;

    // They end with this function.
    let mut background = JoinSet::new();
    let admin = Admin { control: Arc::clone(&control), client_limit, token, read_token, shutdown: shutdown.clone() };
    background.spawn(async move { admin::serve(&admin_listener, Arc::new(admin), pending()).await });
    tracing::info!(address = %admin_address, "admin API ready");
    background.spawn(probe::run(Arc::clone(&control)));
    background.spawn(renew_certificates(Arc::clone(&listeners)));
    first_probes(&control).await;

    // The sockets are listening already; clients that connect now are served.
    shutdown.run();
    let threads = started.accept();

    until_stop(&mut commands, &control).await;
    shutdown.close();
    let server = control.snapshot().config.server.clone();
    let finished = {
        let second_stop = pin!(until_second_stop(&mut commands, &control));
        let in_flight = || in_flight(&control);
        stop_gracefully(&server, &listeners, threads, &shutdown, in_flight, second_stop).await
    };
    match finished {
        Some(true) => tracing::info!("stopped: every exchange has finished"),
        Some(false) => tracing::warn!("stopped: the exchanges that were still in flight are cut off"),
        None => tracing::error!("a thread does not stop: what it carries is cut off"),
    }
    let finished = tokio::task::spawn_blocking(move || access_log.finish(LAST_LINES_TIMEOUT));
    if !finished.await.is_ok_and(|has_written_all| has_written_all) {
        tracing::error!("the disk does not take the access log's last lines: they are lost");
    }
    // The admin API's socket is closed with this.
    background.shutdown().await;
    if control.release_state(LAST_CHANGES_TIMEOUT).await == Persistence::Pending {
        tracing::error!("the disk does not take the state file: the last changes made at run time are lost");
    }
    Ok(())
}

/// Ends the threads at the latest on drop.
struct End(Shutdown);

impl Drop for End {
    fn drop(&mut self) {
        self.0.stop(Instant::now());
    }
}

/// The number of exchanges that backends serve.
fn in_flight(control: &Control) -> u32 {
    let snapshot = control.snapshot();
    let plans: Vec<_> = snapshot.all_pools().map(|pool| pool.plan()).collect();
    plans.iter().flat_map(|plan| plan.backends()).map(|(member, _)| member.backend.in_flight()).sum()
}

/// Returns whether every exchange has finished; `None`: a thread hangs. `in_flight`: how many exchanges backends serve.
/// `second_stop`: resolves when the stop must be immediate.
async fn stop_gracefully(
    server: &ServerConfig,
    listeners: &Listeners,
    threads: Threads,
    shutdown: &Shutdown,
    in_flight: impl Fn() -> u32,
    mut second_stop: Pin<&mut impl Future<Output = ()>>,
) -> Option<bool> {
    tracing::info!(delay_seconds = server.shutdown_delay.as_secs_f64(), "stopping: not ready from now on");
    let mut stopping = pin!(async {
        tokio::time::sleep(server.shutdown_delay).await;
        listeners.remove_files();
        shutdown.stop(Instant::now() + server.shutdown_timeout);
        let (in_flight, timeout_seconds) = (in_flight(), server.shutdown_timeout.as_secs_f64());
        tracing::info!(
            in_flight,
            timeout_seconds,
            "stopping: no more clients are accepted; exchanges that backends serve may finish until the timeout",
        );
        pending::<()>().await
    });
    let mut stopped = tokio::task::spawn_blocking(move || threads.join());
    tokio::select! {
        () = &mut stopping => {}
        finished = &mut stopped => return Some(finished.unwrap_or(false)),
        () = &mut second_stop => {}
    }
    tracing::warn!("stopping at once: exchanges in flight are cut off");
    listeners.remove_files();
    // Exchanges that are cut off are then reset and logged as at a deadline.
    shutdown.stop(Instant::now());
    let stopped = tokio::time::timeout(CUT_OFF_TIMEOUT, stopped).await.ok()?;
    Some(stopped.unwrap_or(false))
}

/// Waits until every pool has been probed once, so that the first requests get healthy backends.
pub(crate) async fn first_probes(control: &Control) {
    let probed = async {
        while !control.snapshot().is_probed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(FIRST_PROBES_TIMEOUT, probed).await.is_err() {
        tracing::warn!("not every backend has been probed yet; serving anyway");
    }
}

/// Waits a moment for the former owner of the state file, which may still write its last changes.
async fn own_state(control: &Control) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        match control.own_state() {
            Ok(()) => return Ok(()),
            Err(_) if began.elapsed() < LAST_CHANGES_TIMEOUT => tokio::time::sleep(OWN_INTERVAL).await,
            Err(owned) => bail!("{owned}"),
        }
    }
}

async fn bind_admin(address: SocketAddr, sockets: &mut Sockets) -> anyhow::Result<TcpListener> {
    if let Some(socket) = sockets.take_tcp(address) {
        socket.set_nonblocking(true)?;
        return Ok(TcpListener::from_std(socket)?);
    }
    TcpListener::bind(address).await.map_err(|e| anyhow::anyhow!(cannot_listen(&address.into(), "[admin] address", &e)))
}

/// Loads changed certificates, for as long as the process runs.
async fn renew_certificates(listeners: Arc<Listeners>) {
    let mut pause = Duration::ZERO;
    loop {
        tokio::time::sleep(pause).await;
        let listeners = Arc::clone(&listeners);
        match tokio::task::spawn_blocking(move || listeners.renew_certificates()).await {
            Ok(next) => pause = next,
            Err(e) => return tracing::error!("certificates are not renewed any more: {e}"),
        }
    }
}

fn listen(listeners: &Listeners, config: &Config, sockets: &mut Sockets) -> anyhow::Result<()> {
    match listeners.prepare(&config.listeners, sockets, false) {
        Ok(prepared) => listeners.commit(prepared, &mut || {}),
        Err(problems) => {
            let lines: Vec<_> = problems.into_iter().map(|problem| problem.message).collect();
            bail!("{}", lines.join("\n"));
        }
    }
    Ok(())
}

async fn until_stop(commands: &mut Receiver<Command>, control: &Arc<Control>) {
    loop {
        match commands.recv().await {
            // A hanging disk must not prevent a stop.
            Some(Command::Reload) => drop(tokio::spawn(reload(Arc::clone(control)))),
            Some(Command::ReopenLogs) => control.reopen_logs(),
            Some(Command::Stop) | None => return,
        }
    }
}

async fn until_second_stop(commands: &mut Receiver<Command>, control: &Control) {
    loop {
        match commands.recv().await {
            Some(Command::Reload) => tracing::warn!("a reload is ignored: the process is stopping"),
            Some(Command::ReopenLogs) => control.reopen_logs(),
            Some(Command::Stop) => return,
            None => pending().await,
        }
    }
}

/// Reloads the configuration as SIGHUP asks for it.
pub(crate) async fn reload(control: Arc<Control>) {
    let author = Author { by: "SIGHUP", from: None };
    if let Err(e) = tokio::task::spawn_blocking(move || control.reload_and_log(author)).await {
        tracing::error!("reloading failed: {e}");
    }
}
