//! What of a running balancer lies outside of the snapshot, and how it follows a reload.

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::access_log::AccessLog;
use crate::config::advice::Subject;
use crate::config::{AccessLogConfig, AccessLogFile, Config, ServerConfig};
use crate::control::resources::{Obtained, Resources, Unavailable};
use crate::listen::Listeners;
use crate::listen::sockets::Sockets;
use crate::room::Room;

/// For the admin API, probes, listeners and logs.
const RESERVED_FILES: usize = 256;
/// Open files that a pipe for large content takes.
const PIPE_FILES: usize = 2;
const MAX_PIPES: usize = 4096;

/// Everything that a reload can change beside the snapshot.
#[derive(Clone)]
pub struct Running {
    pub listeners: Arc<Listeners>,
    pub access_log: Arc<AccessLog>,
    pub room: Arc<Room>,
    pub most_idle: Arc<AtomicUsize>,
    /// How many files the process may have open.
    pub open_files: usize,
    /// Threads that carry traffic.
    pub threads: usize,
}

impl Resources for Running {
    fn prepare(&self, running: &Config, wanted: &Config, is_trial: bool) -> Result<Obtained, Vec<Unavailable>> {
        let mut problems = Vec::new();
        let access_log = (wanted.access_log != running.access_log).then(|| self.access_log.open(&wanted.access_log));
        let access_log = access_log.transpose().unwrap_or_else(|e| {
            let message = format!("{}: {e}", cannot_log_to(&wanted.access_log));
            problems.push(Unavailable { subject: Subject::AccessLog, message });
            None
        });
        // Listening comes last, since it can be noticed.
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
        let (most, warning) = most_clients(&wanted.server, self.open_files);
        let most_idle = idle_for_each_thread(&wanted.server, most, self.threads);
        let this = self.clone();
        let changes = listeners.certificates();
        let commit = move || {
            if let Some(access_log) = access_log {
                this.access_log.switch(access_log);
            }
            this.room.resize(most);
            this.most_idle.store(most_idle, Ordering::Relaxed);
            this.listeners.commit(listeners);
        };
        Ok(Obtained { changes, warnings: warning.into_iter().collect(), commit: Box::new(commit) })
    }
}

/// How many idle connections to backends each thread may keep, where `most` clients may be connected.
pub fn idle_for_each_thread(server: &ServerConfig, most: usize, threads: usize) -> usize {
    server.idle_connections.min(most).div_ceil(threads.max(1))
}

/// How many pipes there may be for large content: a sixteenth of the open files at most, and no more than are of use.
/// Where there is none left, content is read and written.
pub fn max_pipes(open_files: usize) -> usize {
    (open_files / 16 / PIPE_FILES).min(MAX_PIPES)
}

/// How many clients may be connected at once: as told, but no more than there are files for, and a warning then. Where
/// nothing is told, each of them may have a backend at work for it.
pub fn most_clients(server: &ServerConfig, open_files: usize) -> (usize, Option<String>) {
    let reserved = RESERVED_FILES.min(open_files / 4) + PIPE_FILES * max_pipes(open_files);
    let affordable = (open_files - reserved).max(2);
    let Some(wanted) = server.max_connections.map(NonZero::get) else { return (affordable / 2, None) };
    let warning = (wanted > affordable).then(|| {
        format!(
            "[server] max_connections is {wanted}, but {open_files} open files are enough for {affordable} only: raise \
             that limit (ulimit -n, LimitNOFILE in systemd)"
        )
    });
    (wanted.min(affordable), warning)
}

pub fn cannot_log_to(config: &AccessLogConfig) -> String {
    let file = match &config.file {
        Some(AccessLogFile::Path(path)) => path.display().to_string(),
        _ => "stdout".to_owned(),
    };
    format!("cannot write to {file}: change [access_log] file, or make its folder one that can be written to")
}
