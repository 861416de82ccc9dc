//! What the process says on standard error. Every line goes through a bounded queue with a writer of its own, so that
//! a terminal that is held, or a pipe that nobody reads, stops neither traffic nor management nor the end.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal};
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};
use crate::lines::{Queue, Settings, Writer};

/// Bytes of lines that may wait for standard error.
const MAX_WAITING_BYTES: usize = 1024 * 1024;
/// How long the end of the process waits for standard error to take the last lines.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(2);

/// The log of the process. What still waits when this is dropped is written, but not waited for longer than 2 s.
#[derive(Debug)]
#[must_use = "the last lines are lost unless this lives to the end"]
pub struct Log(Option<Writer>);

impl Log {
    /// Starts to log as configured; panics are logged, too. `lost` counts lines that standard error did not take.
    pub fn start(config: &LogConfig, lost: IntCounter) -> io::Result<Self> {
        let (queue, writer) = Queue::to_stderr(settings(lost))?;
        let configured = || format!("evenkeel={0},{0}", config.level).replace(",info", ",warn");
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(configured()));
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(io::stderr().is_terminal())
            // Errors of the log itself would go straight to standard error.
            .log_internal_errors(false)
            .with_writer(Arc::new(queue));
        // Fails only when a log was started before, which then serves as well.
        let _ = match config.format {
            LogFormat::Text => log.with_target(false).try_init(),
            LogFormat::Json => log.json().try_init(),
        };
        std::panic::set_hook(Box::new(log_panic));
        Ok(Self(Some(writer)))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // Nobody is left to be told that standard error does not take them.
        let _ = self.0.take().map(|writer| writer.finish(LAST_LINES_TIMEOUT));
    }
}

/// Writes a line to standard error as it is, for what is said before the log has started or after its end. Waits for at
/// most 2 s.
pub fn say(line: &str) {
    let lost = IntCounter::new("lost", "Nobody reads this.").expect("the name is valid");
    if let Ok((queue, writer)) = Queue::to_stderr(settings(lost)) {
        queue.push(format!("{line}\n").into_bytes());
        writer.finish(LAST_LINES_TIMEOUT);
    }
}

fn settings(lost: IntCounter) -> Settings {
    Settings { name: "log", max_bytes: MAX_WAITING_BYTES, lost }
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let message = info.payload_as_str().unwrap_or("without a message");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let backtrace = Backtrace::capture();
    match backtrace.status() {
        BacktraceStatus::Captured => tracing::error!(thread, place, "panicked: {message}\n{backtrace}"),
        _ => tracing::error!(thread, place, "panicked: {message}"),
    }
}
