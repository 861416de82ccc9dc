//! The resources of a running balancer outside of the snapshot, and how they follow a reload.

use std::io;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::bail;

use crate::access_log::{AccessLog, AccessLogSpec, OpenError};
use crate::config::advice::Subject;
use crate::config::{AccessLogFile, Config, ServerConfig};
use crate::connection_limit::ConnectionLimit;
use crate::control::resources::{ListenerCertificate, PreparedResources, Resources, Unavailable};
use crate::listen::Listeners;
use crate::listen::sockets::{Sockets, fix_of_limit};

/// Files for the admin API, probes, listeners and logs.
const RESERVED_FILES: usize = 256;
/// How many files must be left for traffic once the process has started: a client, its backend, a request of the admin
/// API, a probe, a pipe, and what a reload reads.
const MIN_SPARE_FILES: usize = 8;
/// Open files per pipe for large content.
const PIPE_FILES: usize = 2;
const MAX_PIPES: usize = 4096;

/// Everything that a reload can change besides the snapshot.
#[derive(Clone)]
pub(crate) struct RunningResources {
    pub listeners: Arc<Listeners>,
    pub access_log: Arc<AccessLog>,
    pub client_limit: Arc<ConnectionLimit>,
    pub backend_limit: Arc<ConnectionLimit>,
    pub handshake_limit: Arc<ConnectionLimit>,
    pub max_idle: Arc<AtomicUsize>,
    /// The limit on open files.
    pub open_files: usize,
    /// Number of threads that carry traffic.
    pub threads: usize,
}

impl Resources for RunningResources {
    fn prepare(
        &self,
        running: &Config,
        wanted: &Config,
        is_trial: bool,
    ) -> Result<PreparedResources, Vec<Unavailable>> {
        let mut problems = Vec::new();
        let logs = AccessLogSpec::of(wanted);
        let access_log = (logs != AccessLogSpec::of(running)).then(|| self.access_log.open(&logs));
        let access_log = access_log.transpose().unwrap_or_else(|refused| {
            problems.push(Unavailable { subject: Subject::AccessLog, message: cannot_log(&refused) });
            None
        });
        // Listening comes last, since it is visible from outside.
        let is_trial_so_far = is_trial || !problems.is_empty();
        let listeners = self.listeners.prepare(&wanted.listeners, &mut Sockets::default(), is_trial_so_far);
        let listeners = match listeners {
            Ok(listeners) if problems.is_empty() => listeners,
            Ok(_) => return Err(problems),
            Err(more) => {
                let unavailable = |problem: crate::listen::Problem| Unavailable {
                    subject: Subject::Listener { listener: problem.listener },
                    message: problem.message,
                };
                problems.extend(more.into_iter().map(unavailable));
                return Err(problems);
            }
        };
        let (limit, warning) = connection_limits(&wanted.server, self.open_files);
        let max_idle = max_idle_per_thread(&wanted.server, limit, self.threads);
        let this = self.clone();
        let (changes, moved) = (listeners.certificates.clone(), listeners.moved_defaults.clone());
        let commit = move |put_in_force: &mut dyn FnMut()| {
            let mut access_log = access_log;
            this.listeners.commit(listeners, &mut || {
                put_in_force();
                if let Some(access_log) = access_log.take() {
                    this.access_log.switch(access_log);
                }
                this.client_limit.resize(limit.clients);
                this.backend_limit.resize(limit.backends);
                this.handshake_limit.resize(limit.handshakes);
                this.max_idle.store(max_idle, Ordering::Relaxed);
            });
        };
        Ok(PreparedResources {
            changes,
            warnings: warning.into_iter().chain(moved).collect(),
            commit: Box::new(commit),
        })
    }

    fn certificates(&self) -> Vec<ListenerCertificate> {
        self.listeners.certificates()
    }

    fn is_accepting(&self) -> bool {
        self.listeners.is_accepting()
    }

    fn reopen_logs(&self) {
        self.access_log.reopen();
    }
}

/// The limit on idle backend connections of each thread. Half of all backend connections remain for busy ones, because
/// a thread can close only its own idle connections.
pub(crate) fn max_idle_per_thread(server: &ServerConfig, limit: ConnectionLimits, threads: usize) -> usize {
    let threads = threads.max(1);
    server.idle_connections.div_ceil(threads).min(limit.backends / 2 / threads)
}

/// The limit on pipes for large content: at most a sixteenth of the open files, and no more than are useful. Without a
/// pipe, content is read and written.
pub(crate) fn max_pipes(open_files: usize) -> usize {
    (open_files / 16 / PIPE_FILES).min(MAX_PIPES)
}

/// The limits on connections. Together they leave files for the rest of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionLimits {
    pub clients: usize,
    /// To backends, busy or idle: an HTTP/2 client may use many.
    pub backends: usize,
    /// Clients in a TLS handshake. They count as clients, too, and leave room for others.
    pub handshakes: usize,
}

/// `max_connections`, capped by the files that backend connections leave, with a warning in that case. By default,
/// every client can have a backend connection.
pub(crate) fn connection_limits(server: &ServerConfig, open_files: usize) -> (ConnectionLimits, Option<String>) {
    let reserved = RESERVED_FILES.min(open_files / 4) + PIPE_FILES * max_pipes(open_files);
    let affordable = (open_files - reserved).max(4);
    let wanted = server.max_connections.map_or(affordable / 2, NonZero::get);
    let clients = wanted.min(affordable / 4 * 3);
    let backends = affordable - clients;
    let warning = (wanted > clients).then(|| {
        format!(
            "[server] max_connections is {wanted}, but {open_files} open files are enough for {clients} clients and \
             {backends} connections to backends only: raise that limit (ulimit -n, LimitNOFILE in systemd)"
        )
    });
    let most_handshakes = (clients / 2).max(1);
    let handshakes = server.max_handshakes.map_or(most_handshakes, |limit| limit.get().min(most_handshakes));
    (ConnectionLimits { clients, backends, handshakes }, warning)
}

/// Refuses a limit on open files that the process itself exhausts. `file`: any open one, duplicated to find out.
pub(crate) fn demand_spare_files(file: &impl AsFd, open_files: usize) -> anyhow::Result<()> {
    let spare: io::Result<Vec<_>> = (0..MIN_SPARE_FILES).map(|_| file.as_fd().try_clone_to_owned()).collect();
    match spare {
        Ok(_) => Ok(()),
        Err(e) => bail!(
            "{open_files} open files are too few to serve anybody ({e}): {}",
            fix_of_limit(&e).unwrap_or("raise the limit on them")
        ),
    }
}

pub(crate) fn cannot_log(OpenError { file, is_common, error }: &OpenError) -> String {
    let file = match file {
        AccessLogFile::Path(path) => path.display().to_string(),
        AccessLogFile::Stdout => "stdout".to_owned(),
    };
    let key = if *is_common { "[access_log] file" } else { "the access_log of the site or route that has it" };
    format!("cannot write to {file}: change {key}, or make its folder one that can be written to: {error}")
}
