//! A balancer from start to stop: read the configuration, bind, probe, serve; on a signal reload, or say "not
//! ready", stop accepting, finish what is in flight, and leave.

use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::access_log::AccessLog;
use crate::admin::{self, Admin};
use crate::change::Author;
use crate::config::toml::Checked;
use crate::config::{AccessLogConfig, AccessLogFile, AdminConfig, Config, ServerConfig};
use crate::control::Control;
use crate::exchange::refusal::Refusal;
use crate::http::Shared;
use crate::listen::{Sockets, Threads};
use crate::log::Log;
use crate::metrics::Metrics;
use crate::probe;
use crate::room::Room;
use crate::shutdown::Shutdown;
use crate::state::Persistence;

/// How long traffic waits for the first probes before it is served all the same.
const FIRST_PROBES_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the end waits for a disk to take the access log's last lines.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(10);

/// SIGRTMIN to SIGRTMAX: the C library keeps those before for itself.
const REAL_TIME_SIGNALS: std::ops::RangeInclusive<i32> = 34..=64;
/// How long the end waits for a disk to take the last runtime changes.
const LAST_CHANGES_TIMEOUT: Duration = Duration::from_secs(5);

/// Ports below are for privileged processes, unless net.ipv4.ip_unprivileged_port_start says otherwise.
const UNPRIVILEGED_PORT: u16 = 1024;

/// For the admin API, probes, listeners and logs.
const RESERVED_FILES: usize = 256;
/// Open files that a pipe for large content takes.
const PIPE_FILES: usize = 2;
const MAX_PIPES: usize = 4096;

/// Runs a balancer with the configuration at `path` until it is told to stop.
pub fn run(path: &Path) -> anyhow::Result<()> {
    let Checked { config, warnings } = match crate::config::toml::load(path) {
        Ok(checked) => checked,
        Err(problems) => {
            let lines: Vec<_> = problems.iter().map(|problem| problem.in_file(path)).collect();
            bail!("{}", lines.join("\n"));
        }
    };
    let metrics = Arc::new(Metrics::new());
    // To the end, so that the last lines are written.
    let log = Log::start(&config.log, metrics.log_lost.clone()).with_context(|| match &config.log.file {
        Some(file) => format!(
            "cannot write to {}: change [log] file, or make its folder one that can be written to",
            file.display()
        ),
        None => "the log cannot be started".to_owned(),
    })?;
    for warning in warnings {
        tracing::warn!("{}", warning.problem.in_file(path));
    }
    let open_files = raise_open_files_limit();
    // Probes and the admin API have a thread of their own: they stay responsive however busy the traffic is.
    let management = Builder::new_multi_thread().worker_threads(1).thread_name("management").enable_all().build();
    let management = management.context("the management thread cannot be started")?;
    let stopped = management.block_on(serve(path, config, metrics, open_files, &log));
    management.shutdown_background();
    stopped
}

async fn serve(path: &Path, config: Config, metrics: Arc<Metrics>, open_files: usize, log: &Log) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let access_log = AccessLog::open(&config.access_log, metrics.access_log_lost.clone());
    let access_log = access_log.with_context(|| cannot_log_to(&config.access_log))?;
    let (access_log, log_writer) = access_log.map(|(log, writer)| (Arc::new(log), writer)).unzip();
    let logs = Logs { log, access_log: access_log.as_deref() };
    let shutdown = Shutdown::new();
    let admin_listener = bind_admin(config.admin.address).await?;
    let admin_address = admin_listener.local_addr()?;
    let AdminConfig { token, read_token, .. } = config.admin.clone();
    metrics.expect_refusals(Refusal::all().map(Refusal::reason));
    let control = Arc::new(Control::new(path, config.clone(), metrics));
    let room = Room::new(most_clients(&config.server, open_files));
    tracing::info!(
        "evenkeel {} starts with {}, as user {}: {} threads, {} clients at most, {open_files} open files",
        env!("CARGO_PKG_VERSION"),
        path.display(),
        rustix::process::getuid().as_raw(),
        config.server.threads,
        room.most(),
    );
    let shared = Shared {
        control: Arc::clone(&control),
        access_log: access_log.clone(),
        idle_connections: config.server.idle_connections.min(room.most()),
        max_pipes: max_pipes(open_files),
        shutdown: shutdown.clone(),
        room: Arc::clone(&room),
    };
    let sockets = bind(&config)?;

    let admin = Admin { control: Arc::clone(&control), room, token, read_token, shutdown: shutdown.clone() };
    tokio::spawn(admin::serve(admin_listener, Arc::new(admin)));
    tracing::info!(address = %admin_address, "admin API ready");
    tokio::spawn(probe::run(Arc::clone(&control)));
    first_probes(&control).await;

    for address in sockets.addresses() {
        tracing::info!(%address, "listening");
    }
    // The sockets listen already: whoever comes now is served.
    shutdown.run();
    let threads = sockets.serve(&config.listeners, &shared).context("traffic cannot be served")?;

    signals.until_stop(&control, logs).await;
    shutdown.close();
    let server = control.snapshot().config.server.clone();
    tokio::select! {
        () = stop_gracefully(&server, threads) => {}
        () = signals.until_second_stop(logs) => tracing::warn!("stopping at once: exchanges in flight are cut off"),
    }
    if control.persistence(LAST_CHANGES_TIMEOUT).await == Persistence::Pending {
        tracing::error!("the disk does not take the state file: the last changes made at run time are lost");
    }
    if let Some(writer) = log_writer {
        let finished = tokio::task::spawn_blocking(|| writer.finish(LAST_LINES_TIMEOUT));
        if !finished.await.is_ok_and(|has_written_all| has_written_all) {
            tracing::error!("the disk does not take the access log's last lines: they are lost");
        }
    }
    Ok(())
}

async fn stop_gracefully(server: &ServerConfig, threads: Threads) {
    tracing::info!(delay_seconds = server.shutdown_delay.as_secs_f64(), "stopping: not ready from now on");
    tokio::time::sleep(server.shutdown_delay).await;
    let deadline = Instant::now() + server.shutdown_timeout;
    let stopping = tokio::task::spawn_blocking(move || threads.stop(deadline));
    match stopping.await {
        Ok(true) => tracing::info!("stopped: every exchange has finished"),
        _ => tracing::warn!("stopped at the deadline: the exchanges still in flight are cut off"),
    }
}

/// Waits until every pool was probed once, so that the first requests meet known backends.
async fn first_probes(control: &Control) {
    let probed = async {
        while !control.snapshot().is_probed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(FIRST_PROBES_TIMEOUT, probed).await.is_err() {
        tracing::warn!("not every backend has been probed yet; serving all the same");
    }
}

async fn bind_admin(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|e| {
        let message = cannot_listen(address, "[admin] address", &e);
        anyhow::Error::new(e).context(message)
    })
}

fn bind(config: &Config) -> anyhow::Result<Sockets> {
    let addresses: Vec<_> = config.listeners.iter().map(|listener| listener.address).collect();
    let bound = Sockets::bind(&addresses, config.server.threads);
    bound.map_err(|(address, e)| {
        let message = cannot_listen(address, "[[listener]] address", &e);
        anyhow::Error::new(e).context(message)
    })
}

fn cannot_listen(address: SocketAddr, key: &str, error: &io::Error) -> String {
    let port = address.port();
    let fix = match error.kind() {
        io::ErrorKind::PermissionDenied if port < UNPRIVILEGED_PORT => format!(
            "a port below {UNPRIVILEGED_PORT} needs CAP_NET_BIND_SERVICE (AmbientCapabilities= in systemd, or `setcap \
             cap_net_bind_service=+ep` on the program); or change {key}"
        ),
        io::ErrorKind::AddrNotAvailable => format!("this machine has no address {}: change {key}", address.ip()),
        _ => format!("change {key}, or stop what uses port {port}"),
    };
    format!("cannot listen on {address}: {fix}")
}

fn cannot_log_to(config: &AccessLogConfig) -> String {
    let file = match &config.file {
        Some(AccessLogFile::Path(path)) => path.display().to_string(),
        _ => "stdout".to_owned(),
    };
    format!("cannot write to {file}: change [access_log] file, or make its folder one that can be written to")
}

/// What is written to files that may be rotated.
#[derive(Clone, Copy)]
struct Logs<'a> {
    log: &'a Log,
    access_log: Option<&'a AccessLog>,
}

impl Logs<'_> {
    fn reopen(self) {
        self.log.reopen();
        self.access_log.into_iter().for_each(AccessLog::reopen);
    }
}

/// The signals that an operator's hands know from nginx.
struct Signals {
    stop: StopSignals,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
}

struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("signals cannot be received");
        let signals = Self {
            stop: StopSignals {
                terminate: on(SignalKind::terminate())?,
                interrupt: on(SignalKind::interrupt())?,
                quit: on(SignalKind::quit())?,
            },
            hangup: on(SignalKind::hangup())?,
            user1: on(SignalKind::user_defined1())?,
            user2: on(SignalKind::user_defined2())?,
        };
        ignore_other_signals();
        Ok(signals)
    }

    /// Reloads on SIGHUP and reopens the logs on SIGUSR1 until SIGTERM, SIGINT or SIGQUIT.
    async fn until_stop(&mut self, control: &Arc<Control>, logs: Logs<'_>) {
        loop {
            tokio::select! {
                () = self.stop.recv() => return,
                // A disk that hangs must not keep the signal to stop from being heard.
                _ = self.hangup.recv() => drop(tokio::spawn(reload(Arc::clone(control)))),
                _ = self.user1.recv() => logs.reopen(),
                _ = self.user2.recv() => refuse_upgrade(),
            }
        }
    }

    /// A second signal to stop.
    async fn until_second_stop(&mut self, logs: Logs<'_>) {
        loop {
            tokio::select! {
                () = self.stop.recv() => return,
                _ = self.hangup.recv() => tracing::warn!("SIGHUP is ignored: the process is stopping"),
                _ = self.user1.recv() => logs.reopen(),
                _ = self.user2.recv() => refuse_upgrade(),
            }
        }
    }
}

impl StopSignals {
    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.quit.recv() => {}
        }
    }
}

/// nginx starts its new program on this signal.
fn refuse_upgrade() {
    tracing::warn!("SIGUSR2 is ignored: upgrading a running process is not there yet; stop it and start the new one");
}

/// Signals that end a process by default are ignored with a log line when they mean nothing here. Those that tell of a
/// crash, and SIGXCPU, keep their effect.
fn ignore_other_signals() {
    use rustix::process::Signal;
    // A file that grew to the limit (RLIMIT_FSIZE): the write fails, and whoever writes says so.
    if let Err(e) = signal(SignalKind::from_raw(Signal::XFSZ.as_raw())) {
        tracing::debug!("SIGXFSZ cannot be ignored: {e}");
    }
    let named = [
        ("SIGALRM", Signal::ALARM),
        ("SIGVTALRM", Signal::VTALARM),
        ("SIGPROF", Signal::PROF),
        ("SIGIO", Signal::IO),
        ("SIGSTKFLT", Signal::STKFLT),
        ("SIGPWR", Signal::POWER),
    ];
    let named = named.into_iter().map(|(name, signal)| (name.to_owned(), signal.as_raw()));
    let real_time = REAL_TIME_SIGNALS.map(|number| (format!("real-time signal {number}"), number));
    for (name, number) in named.chain(real_time) {
        let mut signal = match signal(SignalKind::from_raw(number)) {
            Ok(signal) => signal,
            Err(e) => {
                tracing::debug!("{name} cannot be ignored: {e}");
                continue;
            }
        };
        tokio::spawn(async move {
            while signal.recv().await.is_some() {
                tracing::warn!(
                    "{name} is ignored: it means nothing here (SIGTERM stops, SIGHUP reloads, SIGUSR1 opens the \
                     logs again)"
                );
            }
        });
    }
}

async fn reload(control: Arc<Control>) {
    let author = Author { by: "SIGHUP", from: None };
    if let Err(e) = tokio::task::spawn_blocking(move || control.reload_and_log(author)).await {
        tracing::error!("reloading failed: {e}");
    }
}

/// How many pipes there may be for large content: a sixteenth of the open files at most, and no more than are of use.
/// Where there is none left, content is read and written.
fn max_pipes(open_files: usize) -> usize {
    (open_files / 16 / PIPE_FILES).min(MAX_PIPES)
}

/// How many clients may be connected at once: as told, but no more than there are files for. Where nothing is told, each
/// of them may have a backend at work for it.
fn most_clients(server: &ServerConfig, open_files: usize) -> usize {
    let reserved = RESERVED_FILES.min(open_files / 4) + PIPE_FILES * max_pipes(open_files);
    let affordable = (open_files - reserved).max(2);
    let Some(wanted) = server.max_connections.map(NonZero::get) else { return affordable / 2 };
    if wanted > affordable {
        tracing::warn!(
            "[server] max_connections is {wanted}, but {open_files} open files are enough for {affordable} only: raise \
             that limit (ulimit -n, LimitNOFILE in systemd)"
        );
    }
    wanted.min(affordable)
}

/// Every connection is an open file, so use as many as the system allows.
fn raise_open_files_limit() -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("the limit on open files cannot be raised: {e}");
    }
    let limit = getrlimit(Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_it_from_listening_is_told_with_the_fix() {
        let told = |address: &str, kind: io::ErrorKind| {
            cannot_listen(address.parse().expect("an address"), "[[listener]] address", &kind.into())
        };
        for (address, kind, words) in [
            ("0.0.0.0:80", io::ErrorKind::PermissionDenied, "CAP_NET_BIND_SERVICE"),
            ("0.0.0.0:8080", io::ErrorKind::PermissionDenied, "change [[listener]] address"),
            ("192.0.2.1:80", io::ErrorKind::AddrNotAvailable, "this machine has no address 192.0.2.1"),
            ("0.0.0.0:80", io::ErrorKind::AddrInUse, "stop what uses port 80"),
        ] {
            let told = told(address, kind);
            assert!(told.starts_with(&format!("cannot listen on {address}: ")) && told.contains(words), "{told}");
        }
    }
}
