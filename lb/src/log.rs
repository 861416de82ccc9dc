//! The process's log, on standard error or in a file. Every line goes through a bounded queue with its own writer, so
//! that a paused terminal, or a pipe that nobody reads, blocks neither traffic nor management nor the exit.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal};
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use tracing::Subscriber;
use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer as Out;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::{LogConfig, LogFormat};
use crate::lines::{Queue, Settings, Writer};

/// Limit on the lines that wait to be written, in bytes.
const MAX_WAITING_BYTES: usize = 1024 * 1024;
/// How long the end of the process waits for the last lines to be written.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(2);

/// The log of the process. Each line is written by whoever logs it, until [`Self::use_thread`] or the first service of
/// a Pingora server starts. On drop, queued lines are written, for at most 2 s.
#[derive(Debug)]
#[must_use = "the last lines are lost unless this lives to the end"]
pub struct Log {
    queue: Arc<Queue>,
    writer: Option<Writer>,
}

/// Marks a subscriber as ours.
struct Ours(
    #[cfg_attr(not(feature = "pingora-proxy"), expect(dead_code, reason = "only a Pingora server asks for it"))]
    Arc<Queue>,
);

impl<S: Subscriber> Layer<S> for Ours {}

impl Log {
    /// Starts the configured log; panics are logged, too. `lost` counts lines that could not be written.
    pub fn start(config: &LogConfig, lost: IntCounter) -> io::Result<Self> {
        let (queue, writer) = match &config.file {
            Some(file) => Queue::to_file(file, settings(lost))?,
            None => Queue::to_stderr(settings(lost))?,
        };
        queue.write_directly();
        let queue = Arc::new(queue);
        let configured = EnvFilter::new(configured(&config.level));
        let (filter, problem) = filter(std::env::var("RUST_LOG").ok().as_deref(), configured);
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(config.file.is_none() && io::stderr().is_terminal())
            // Errors of the logging library itself would go straight to standard error.
            .log_internal_errors(false)
            .with_writer(Arc::clone(&queue));
        let ours = Ours(Arc::clone(&queue));
        // Fails only if a log was started before, which is then used.
        let _ = match config.format {
            LogFormat::Text => log.with_target(false).fmt_fields(Pairs).finish().with(ours).try_init(),
            LogFormat::Json => log.json().finish().with(ours).try_init(),
        };
        std::panic::set_hook(Box::new(log_panic));
        if let Some(problem) = problem {
            tracing::warn!("{problem}");
        }
        Ok(Self { queue, writer: Some(writer) })
    }

    /// Whether log events go to a log started by [`Log::start`].
    #[cfg(feature = "pingora-proxy")]
    pub(crate) fn is_ours() -> bool {
        tracing::dispatcher::get_default(|log| log.is::<Ours>())
    }

    /// Has a thread write the lines from now on, so that whoever logs one waits neither for a disk nor for a reader. A
    /// process that forks must not do this before.
    pub fn use_thread(&self) {
        self.queue.use_thread();
    }

    /// Reopens the file before the next line, for rotation.
    pub fn reopen(&self) {
        self.queue.reopen();
    }

    /// As [`Self::use_thread`], for the log in use, if it is one of ours.
    #[cfg(feature = "pingora-proxy")]
    pub(crate) fn use_thread_of_ours() {
        Self::with_ours(Queue::use_thread);
    }

    /// As [`Self::reopen`], for the log in use, if it is one of ours.
    #[cfg(feature = "pingora-proxy")]
    pub(crate) fn reopen_ours() {
        Self::with_ours(Queue::reopen);
    }

    #[cfg(feature = "pingora-proxy")]
    fn with_ours(call: impl FnOnce(&Queue)) {
        let ours =
            tracing::dispatcher::get_default(|log| log.downcast_ref::<Ours>().map(|Ours(queue)| Arc::clone(queue)));
        if let Some(queue) = ours {
            call(&queue);
        }
    }
}

/// The filter for a level: libraries log less than our own code.
fn configured(level: &str) -> String {
    let of_libraries = if level == "info" { "warn" } else { level };
    let filter = format!("evenkeel={level},{of_libraries}");
    match level {
        "debug" | "trace" => filter,
        // These warn about input that anyone can send, such as unexpected packets, or an IP address as server name.
        // Many of them could fill the log. We log the failures ourselves.
        _ => format!("{filter},rustls=error,hickory_net=error,hickory_proto=error,hickory_resolver=error"),
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // A failure to write cannot be reported any more.
        let _ = self.writer.take().map(|writer| writer.finish(LAST_LINES_TIMEOUT));
    }
}

/// The filter of RUST_LOG, or the configured one, and a problem with RUST_LOG.
fn filter(asked: Option<&str>, configured: EnvFilter) -> (EnvFilter, Option<String>) {
    let Some(asked) = asked.filter(|asked| !asked.trim().is_empty()) else { return (configured, None) };
    // A single word that is not a level would be taken for a module name, and turn off everything else.
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    let is_ours = |word: &str| word.contains(['=', '[']) || word.split("::").next() == Some("evenkeel");
    let mistyped = asked.split(',').map(str::trim).find(|word| !word.is_empty() && !is_level(word) && !is_ours(word));
    let reason = match (mistyped, EnvFilter::try_new(asked)) {
        (Some(word), _) => format!("\"{word}\" is not a level"),
        (None, Err(e)) => e.to_string(),
        (None, Ok(filter)) => return (filter, None),
    };
    let problem = format!(
        "RUST_LOG is \"{asked}\", which is ignored ({reason}): [log] level counts; write a level such as debug, or evenkeel=debug"
    );
    (configured, Some(problem))
}

/// Writes a line to standard error unchanged, before the log has started or after its end. Waits for at most 2 s.
pub(crate) fn say(line: &str) {
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
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let backtrace = Backtrace::capture();
    match backtrace.status() {
        BacktraceStatus::Captured => {
            tracing::error!(thread, location, "panicked: {message}");
            // Each event is one line.
            backtrace.to_string().lines().for_each(|line| tracing::error!("{line}"));
        }
        _ => tracing::error!(thread, location, "panicked: {message}"),
    }
}

/// Writes an event as `message key=value key="two words"`. No value can end its line or its field.
struct Pairs;

struct Visitor<'w> {
    out: Out<'w>,
    has_begun: bool,
    result: fmt::Result,
}

impl<'w> FormatFields<'w> for Pairs {
    fn format_fields<R: RecordFields>(&self, out: Out<'w>, fields: R) -> fmt::Result {
        let mut visitor = Visitor { out, has_begun: false, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

impl Visitor<'_> {
    fn write(&mut self, field: &Field, value: &str, is_quoted: bool) -> fmt::Result {
        let name = field.name();
        // Added by the `log` crate.
        if name.starts_with("log.") {
            return Ok(());
        }
        if std::mem::replace(&mut self.has_begun, true) {
            self.out.write_char(' ')?;
        }
        if name == "message" {
            return write!(self.out, "{}", OneLine(value));
        }
        let name = name.strip_prefix("r#").unwrap_or(name);
        if is_quoted { write!(self.out, "{name}={value:?}") } else { write!(self.out, "{name}={value}") }
    }
}

impl Visit for Visitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.result = self.result.and_then(|()| self.write(field, value, true));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        let is_plain = |c: char| !c.is_whitespace() && !breaks_lines(c) && !matches!(c, '"' | '=');
        let is_quoted = text.is_empty() || !text.chars().all(is_plain);
        self.result = self.result.and_then(|()| self.write(field, &text, is_quoted));
    }
}

/// Text in which nothing ends a line or controls a terminal.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            c if breaks_lines(c) => write!(f, "{}", c.escape_default()),
            c => f.write_char(c),
        })
    }
}

/// Control characters, and Unicode line separators.
fn breaks_lines(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what is logged during a call, as text.
    fn logged(log: impl FnOnce()) -> String {
        #[derive(Clone, Default)]
        struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);
        impl io::Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().expect("no panic").extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::default();
        let out = lines.clone();
        let subscriber = tracing_subscriber::fmt().without_time().with_target(false).with_ansi(false);
        let subscriber = subscriber.with_writer(move || out.clone()).fmt_fields(Pairs).finish();
        tracing::subscriber::with_default(subscriber, log);
        let bytes = lines.0.lock().expect("no panic").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn values_cannot_inject_lines_or_fields() {
        let evil = "a b=\"c\"\n ERROR x\u{1b}[31m\u{9b}\u{2028}\u{85}";
        let quoted = "\"a b=\\\"c\\\"\\n ERROR x\\u{1b}[31m\\u{9b}\\u{2028}\\u{85}\"";
        let line = logged(|| tracing::warn!(text = evil, shown = %evil, count = 3, word = %"plain", "told"));
        assert_eq!(line, format!(" WARN told text={quoted} shown={quoted} count=3 word=plain\n"));
        let line = logged(|| tracing::warn!("of {evil}"));
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(!line.trim_end().contains(|c: char| breaks_lines(c)), "{line:?}");
        let line = logged(|| tracing::info!(backend = %"[::1]:80", none = Option::<u32>::None, empty = %"", "told"));
        assert_eq!(line, " INFO told backend=[::1]:80 empty=\"\"\n");
    }

    #[test]
    fn untrusted_packets_write_no_log_lines() {
        for level in ["error", "warn", "info"] {
            let subscriber = tracing_subscriber::fmt().with_env_filter(configured(level)).finish();
            tracing::subscriber::with_default(subscriber, || {
                assert!(!tracing::enabled!(target: "hickory_net::udp::udp_client_stream", tracing::Level::WARN));
                assert!(tracing::enabled!(target: "hickory_net::udp::udp_client_stream", tracing::Level::ERROR));
                assert_eq!(tracing::enabled!(target: "h2", tracing::Level::WARN), level != "error");
                assert_eq!(tracing::enabled!(target: "evenkeel::pool", tracing::Level::INFO), level == "info");
            });
        }
        assert_eq!(configured("debug"), "evenkeel=debug,debug");
    }

    #[test]
    fn invalid_rust_log_directives_are_reported() {
        let asked = |text| filter(Some(text), EnvFilter::new("warn"));
        for (text, reason) in
            [("verbose", "\"verbose\" is not a level"), ("evenkeel=loud", ""), ("info,deubg", "\"deubg\"")]
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
