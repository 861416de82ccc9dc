//! One line for each exchange, written by a thread of its own so that no request waits for a disk. When the writer
//! falls behind, lines are dropped and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

use crate::config::{AccessLogConfig, AccessLogFile, AccessLogFormat};

/// What a line tells.
#[derive(Debug, Clone, Serialize)]
pub struct Record<'a> {
    /// When the request's head had come, RFC 3339.
    #[serde(serialize_with = "milliseconds")]
    pub time: Timestamp,
    pub client: IpAddr,
    pub method: &'a str,
    pub host: &'a str,
    pub target: &'a str,
    pub protocol: &'static str,
    /// As sent to the client; 0: nothing was.
    pub status: u16,
    /// Of the body, as sent to the client.
    pub bytes: u64,
    #[serde(rename = "duration_seconds", serialize_with = "seconds")]
    pub duration: Duration,
    pub request_id: &'a str,
    pub referer: Option<&'a str>,
    pub user_agent: Option<&'a str>,
    pub route: Option<&'a str>,
    pub pool: Option<&'a str>,
    pub backend: Option<&'a str>,
    pub backend_status: Option<u16>,
    #[serde(rename = "response_seconds", serialize_with = "some_seconds")]
    pub response_time: Option<Duration>,
    pub attempts: usize,
    pub sticky: bool,
    /// Why Evenkeel answered itself.
    pub refusal: Option<&'static str>,
}

#[derive(Debug)]
pub struct AccessLog {
    writer: NonBlocking,
    format: AccessLogFormat,
    zone: TimeZone,
    reopen: Arc<AtomicBool>,
    /// Writes what is left when dropped.
    _guard: WorkerGuard,
}

impl AccessLog {
    /// The log as configured; `None` when it is off.
    pub fn open(config: &AccessLogConfig) -> io::Result<Option<Self>> {
        let reopen = Arc::new(AtomicBool::new(false));
        let builder = NonBlockingBuilder::default().lossy(true).thread_name("access-log");
        let (writer, guard) = match &config.file {
            None => return Ok(None),
            Some(AccessLogFile::Stdout) => builder.finish(io::stdout()),
            Some(AccessLogFile::Path(path)) => builder.finish(Reopening::open(path, Arc::clone(&reopen))?),
        };
        Ok(Some(Self { writer, format: config.format, zone: TimeZone::system(), reopen, _guard: guard }))
    }

    pub fn write(&self, record: &Record<'_>) {
        let mut line = match self.format {
            // Every field is text or a number: there is nothing that JSON cannot say.
            AccessLogFormat::Json => serde_json::to_vec(record).unwrap_or_default(),
            AccessLogFormat::Combined => combined(record, &self.zone).into_bytes(),
        };
        line.push(b'\n');
        // Without loss there is nothing to fail: a full queue counts the line as lost.
        let _ = self.writer.clone().write_all(&line);
    }

    /// Lines dropped since the start.
    pub fn lost(&self) -> u64 {
        self.writer.error_counter().dropped_lines() as u64
    }

    /// Opens the file again before the next line, for rotation.
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::Relaxed);
    }
}

/// nginx's and Apache's combined format.
fn combined(record: &Record<'_>, zone: &TimeZone) -> String {
    let time = record.time.to_zoned(zone.clone()).strftime("%d/%b/%Y:%H:%M:%S %z").to_string();
    let Record { client, method, target, protocol, status, bytes, .. } = record;
    let referer = Escaped(record.referer.unwrap_or("-"));
    let user_agent = Escaped(record.user_agent.unwrap_or("-"));
    let target = Escaped(target);
    format!("{client} - - [{time}] \"{method} {target} {protocol}\" {status} {bytes} \"{referer}\" \"{user_agent}\"")
}

/// Quotes, backslashes and control characters as `\xXX`, as nginx does, so that no client can write lines of its own.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '"' | '\\' | '\0'..='\x1f' | '\x7f' => write!(f, "\\x{:02X}", c as u32)?,
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

/// A file that is opened anew when asked to, as after `logrotate` moved it away.
#[derive(Debug)]
struct Reopening {
    path: PathBuf,
    file: File,
    reopen: Arc<AtomicBool>,
}

impl Reopening {
    fn open(path: &Path, reopen: Arc<AtomicBool>) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: append_to(path)?, reopen })
    }
}

impl Write for Reopening {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.reopen.swap(false, Ordering::Relaxed) {
            match append_to(&self.path) {
                Ok(file) => self.file = file,
                Err(e) => tracing::error!("the access log {} cannot be opened again: {e}", self.path.display()),
            }
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn milliseconds<S: serde::Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.3}"))
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    some_seconds(&Some(*duration), serializer)
}

fn some_seconds<S: serde::Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    // Microseconds are as fine as anybody reads.
    duration.map(|d| d.as_micros() as f64 / 1e6).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record<'static> {
        Record {
            time: "2026-11-21T10:30:00.123456Z".parse().expect("a time"),
            client: "192.0.2.1".parse().expect("an address"),
            method: "GET",
            host: "a.example",
            target: "/x?y=1",
            protocol: "HTTP/1.1",
            status: 200,
            bytes: 12,
            duration: Duration::from_micros(1500),
            request_id: "id",
            referer: None,
            user_agent: Some("a \"browser\"\n"),
            route: Some("/"),
            pool: Some("app"),
            backend: Some("web1:80"),
            backend_status: Some(200),
            response_time: Some(Duration::from_millis(1)),
            attempts: 1,
            sticky: false,
            refusal: None,
        }
    }

    #[test]
    fn combined_is_what_log_readers_know() {
        assert_eq!(
            combined(&record(), &TimeZone::UTC),
            "192.0.2.1 - - [21/Nov/2026:10:30:00 +0000] \"GET /x?y=1 HTTP/1.1\" 200 12 \"-\" \"a \\x22browser\\x22\\x0A\""
        );
    }

    #[test]
    fn json_carries_the_same_and_more() {
        let line = serde_json::to_value(record()).expect("serializable");
        assert_eq!(line["time"], "2026-11-21T10:30:00.123Z");
        assert_eq!(line["duration_seconds"], 0.0015);
        assert_eq!(line["backend"], "web1:80");
        assert_eq!(line["refusal"], serde_json::Value::Null);
    }

    #[test]
    fn a_moved_file_is_opened_anew() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("access.log");
        let file = Some(AccessLogFile::Path(path.clone()));
        let log = AccessLog::open(&AccessLogConfig { file, format: AccessLogFormat::Json });
        let log = log.expect("writable").expect("on");
        let moved = folder.path().join("access.log.1");
        std::fs::rename(&path, &moved).expect("movable");
        log.reopen();
        log.write(&record());
        drop(log);
        assert_eq!(std::fs::read_to_string(&moved).expect("readable"), "");
        assert_eq!(std::fs::read_to_string(&path).expect("readable").lines().count(), 1);
    }
}
