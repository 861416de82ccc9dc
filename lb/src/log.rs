//! What the process says, on standard error or in a file. Every line goes through a bounded queue with a writer of its own, so that
//! a terminal that is held, or a pipe that nobody reads, stops neither traffic nor management nor the end.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal};
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::{LogConfig, LogFormat};
use crate::lines::{Queue, Settings, Writer};

/// Bytes of lines that may wait for the output.
const MAX_WAITING_BYTES: usize = 1024 * 1024;
/// How long the end of the process waits for the output to take the last lines.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(2);

/// The log of the process. What still waits when this is dropped is written, but not waited for longer than 2 s.
#[derive(Debug)]
#[must_use = "the last lines are lost unless this lives to the end"]
pub struct Log {
    queue: Arc<Queue>,
    writer: Option<Writer>,
}

impl Log {
    /// Starts to log as configured; panics are logged, too. `lost` counts lines that the output did not take.
    pub fn start(config: &LogConfig, lost: IntCounter) -> io::Result<Self> {
        let (queue, writer) = match &config.file {
            Some(file) => Queue::to_file(file, settings(lost))?,
            None => Queue::to_stderr(settings(lost))?,
        };
        let queue = Arc::new(queue);
        let configured = EnvFilter::new(format!("evenkeel={0},{0}", config.level).replace(",info", ",warn"));
        let (filter, problem) = filter(std::env::var("RUST_LOG").ok().as_deref(), configured);
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(config.file.is_none() && io::stderr().is_terminal())
            // Errors of the log itself would go straight to standard error.
            .log_internal_errors(false)
            .with_writer(Arc::clone(&queue));
        // Fails only when a log was started before, which then serves as well.
        let _ = match config.format {
            LogFormat::Text => log.with_target(false).try_init(),
            LogFormat::Json => log.json().try_init(),
        };
        std::panic::set_hook(Box::new(log_panic));
        if let Some(problem) = problem {
            tracing::warn!("{problem}");
        }
        Ok(Self { queue, writer: Some(writer) })
    }

    /// Opens the file again before the next line, for rotation.
    pub fn reopen(&self) {
        self.queue.reopen();
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // Nobody is left to be told that the output does not take them.
        let _ = self.writer.take().map(|writer| writer.finish(LAST_LINES_TIMEOUT));
    }
}

/// The filter that RUST_LOG asks for, or the configured one; and what is wrong with RUST_LOG.
fn filter(asked: Option<&str>, configured: EnvFilter) -> (EnvFilter, Option<String>) {
    let Some(asked) = asked.filter(|asked| !asked.trim().is_empty()) else { return (configured, None) };
    // A word alone that is no level is taken for the name of a module, and nothing else is logged any more.
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    let is_ours = |word: &str| word.contains(['=', '[']) || word.split("::").next() == Some("evenkeel");
    let mistyped = asked.split(',').map(str::trim).find(|word| !word.is_empty() && !is_level(word) && !is_ours(word));
    let reason = match (mistyped, EnvFilter::try_new(asked)) {
        (Some(word), _) => format!("\"{word}\" is no level"),
        (None, Err(e)) => e.to_string(),
        (None, Ok(filter)) => return (filter, None),
    };
    let problem = format!(
        "RUST_LOG is \"{asked}\", which is ignored ({reason}): [log] level counts; write a level such as debug, or evenkeel=debug"
    );
    (configured, Some(problem))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rust_log_cannot_mean_is_told() {
        let asked = |text| filter(Some(text), EnvFilter::new("warn"));
        for (text, reason) in
            [("verbose", "\"verbose\" is no level"), ("evenkeel=loud", ""), ("info,deubg", "\"deubg\"")]
        {
            let (filter, problem) = asked(text);
            let problem = problem.expect("a problem");
            assert!(problem.contains(text) && problem.contains(reason), "{problem}");
            assert_eq!(filter.to_string(), "warn");
        }
        for text in ["debug", "WARN", "evenkeel=debug", "evenkeel::pool=trace,info", "h2=debug,warn", "evenkeel"] {
            let (_, problem) = asked(text);
            assert_eq!(problem, None, "{text}");
        }
        assert_eq!(filter(None, EnvFilter::new("warn")).0.to_string(), "warn");
        assert_eq!(filter(Some(""), EnvFilter::new("warn")).1, None);
    }
}
