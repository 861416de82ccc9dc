//! The process's log on standard error. Lines go through a bounded queue to a separate thread, so that a pipe that
//! nobody reads, or a paused terminal, blocks neither requests nor the exit.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;
use crate::data::is_default_ignorable;

/// The log of the process. On drop, queued lines are written, for at most 2 s.
#[derive(Debug)]
#[must_use = "the last lines are lost unless this lives to the end"]
pub struct Log {
    queue: Arc<Queue>,
    /// Disconnected when the writer has ended.
    ended: Receiver<()>,
}

/// The sending side. Never waits: lines beyond the limit are dropped and counted.
#[derive(Debug)]
struct Queue {
    sender: Sender<Message>,
    state: Arc<State>,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    End,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes of queued lines.
    waiting: AtomicUsize,
    /// Lost lines that have not been reported yet.
    lost: AtomicU64,
}

impl Log {
    /// Starts to log what `filter` accepts; panics are logged, too.
    pub fn start(filter: &str, format: LogFormat) -> anyhow::Result<Self> {
        let filter = EnvFilter::try_new(filter).with_context(|| {
            format!("--log {filter:?} is not a log filter: take a level such as info, or app=debug")
        })?;
        // Bypasses the standard library's lock, for which others would wait.
        let output = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let (sender, receiver) = channel();
        let (ending, ended) = channel();
        let state = Arc::new(State::default());
        let queue = Arc::new(Queue { sender, state: Arc::clone(&state) });
        thread::Builder::new().name("log".into()).spawn(move || {
            let _ending = ending;
            write_lines(&receiver, &output, &state);
        })?;
        let is_text = matches!(format, LogFormat::Text);
        let writer = Arc::clone(&queue);
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(move || Lines { queue: Arc::clone(&writer), is_text })
            .with_target(false)
            // Errors of the logging library itself would go straight to standard error.
            .log_internal_errors(false);
        match format {
            LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).init(),
            LogFormat::Json => log.json().flatten_event(true).init(),
        }
        std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
        Ok(Self { queue, ended })
    }

    /// Writes a line unchanged.
    pub fn say(&self, line: &str) {
        self.queue.push(format!("{line}\n").into_bytes());
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let _ = self.queue.sender.send(Message::End);
        // A failure to write the last lines cannot be reported any more.
        let _: Result<(), RecvTimeoutError> = self.ended.recv_timeout(FLUSH_TIMEOUT);
    }
}

impl Queue {
    fn push(&self, line: Vec<u8>) {
        let State { waiting, lost } = &*self.state;
        let size = size(&line);
        let has_room = waiting.fetch_add(size, Ordering::Relaxed).saturating_add(size) <= MAX_QUEUED_BYTES;
        if !has_room || self.sender.send(Message::Line(line)).is_err() {
            waiting.fetch_sub(size, Ordering::Relaxed);
            lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Each call writes one line.
struct Lines {
    queue: Arc<Queue>,
    is_text: bool,
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.queue.push(if self.is_text { shown(bytes) } else { bytes.to_vec() });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Escapes characters that terminals hide, obey, or use to reorder text. The line ending and colour codes are ASCII;
/// other ASCII control characters were escaped when the line was formatted.
fn shown(line: &[u8]) -> Vec<u8> {
    if line.is_ascii() {
        return line.to_vec();
    }
    let mut shown = String::with_capacity(line.len());
    for c in String::from_utf8_lossy(line).chars() {
        let is_control = !c.is_ascii() && c.is_control();
        if is_control || matches!(c, '\u{2028}' | '\u{2029}') || is_default_ignorable(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown.into_bytes()
}

fn write_lines(queue: &Receiver<Message>, mut output: &File, state: &State) {
    while let Ok(Message::Line(line)) = queue.recv() {
        let written = write_all(&mut output, &line);
        state.waiting.fetch_sub(size(&line), Ordering::Relaxed);
        if written.is_err() {
            state.lost.fetch_add(1, Ordering::Relaxed);
        } else if state.waiting.load(Ordering::Relaxed) == 0 {
            // Only now, since there may have been no space for the report before.
            let lost = state.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                tracing::warn!(lost, "{lost} lines of this log were lost: standard error did not take them in time");
            }
        }
    }
}

fn write_all(output: &mut &File, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match output.write(line) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => line = &line[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Another process that shares the pipe or terminal may have set this.
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(TRY_AGAIN_AFTER),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The memory for a queued line.
fn size(line: &Vec<u8>) -> usize {
    line.capacity() + LINE_BYTES
}

/// Limit on queued lines, in bytes.
const MAX_QUEUED_BYTES: usize = 1024 * 1024;
/// The memory for a queued line besides its text.
const LINE_BYTES: usize = 64;
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(10);
