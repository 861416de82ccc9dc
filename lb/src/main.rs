//! The program `evenkeel`: everything that concerns the process of a balancer (command line, log, limit on open files,
//! signals).

#![forbid(unsafe_code)]

mod signals;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use evenkeel::config::toml::Checked;
use evenkeel::control;
use evenkeel::log::Log;
use evenkeel::metrics::Metrics;
use evenkeel::server::{self, Sockets, Start};
use signals::Signals;
use tokio::runtime::Builder;

/// The runtimes panic where they cannot have the files that they need.
const MIN_OPEN_FILES: usize = 16;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    evenkeel::cli::main(run)
}

/// Runs a balancer with the configuration at `path` until it is stopped.
fn run(path: &Path) -> anyhow::Result<()> {
    let checked = match control::load(path) {
        Ok(checked) => checked,
        Err(problems) => {
            let lines: Vec<_> = problems.iter().map(|problem| problem.in_file(path)).collect();
            bail!("{}", lines.join("\n"));
        }
    };
    // Before any thread starts.
    let mut sockets = Sockets::default();
    let told_of_user = server::give_up_root(&checked, &mut sockets)?;
    let Checked { config, warnings, .. } = checked;
    let metrics = Arc::new(Metrics::new());
    // Lives until the end, so that the last lines are written.
    let log = Log::start(&config.log, metrics.log_lost.clone()).with_context(|| match &config.log.file {
        Some(file) => format!(
            "cannot write to {}: change [log] file, or make its folder one that can be written to",
            file.display()
        ),
        None => "the log cannot be started".to_owned(),
    })?;
    log.use_thread();
    for warning in warnings {
        tracing::warn!("{}", warning.problem.in_file(path));
    }
    match told_of_user {
        Some((told, true)) => tracing::warn!("{told}"),
        Some((told, false)) => tracing::info!("{told}"),
        None => {}
    }
    let open_files = raise_open_files_limit();
    if open_files < MIN_OPEN_FILES {
        bail!("{open_files} open files are too few to start: raise that limit (ulimit -n, in systemd LimitNOFILE)");
    }
    // Probes and the admin API have their own thread, so that they stay responsive under any load.
    let management = Builder::new_multi_thread().worker_threads(1).thread_name("management").enable_all().build();
    let management = management.context("the management thread cannot be started")?;
    let stopped = management.block_on(async {
        let (signals, commands) = Signals::new()?;
        let start = Start { path: path.to_owned(), config, metrics, open_files };
        tokio::select! {
            stopped = server::run(start, sockets, commands) => stopped,
            never = signals.translate(&log) => match never {},
        }
    });
    management.shutdown_background();
    stopped
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
