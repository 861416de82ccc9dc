//! One line for each exchange, written by a thread of its own so that no request waits for a disk. When the writer
//! falls too far behind, lines are lost and counted.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use prometheus::IntCounter;
use serde::Serialize;

use crate::config::{AccessLogConfig, AccessLogFile, AccessLogFormat};
use crate::exchange::refusal::Refusal;
use crate::exchange::{Exchange, Outcome};
use crate::failure::Failure;
use crate::lines::{Queue, Settings, Writer};

/// Bytes of lines that may wait for the disk.
const MAX_WAITING_BYTES: usize = 32 * 1024 * 1024;

/// How much of a value that a client chose is written. The limit on a line; a head as a whole has limits of its own.
const MAX_VALUE_BYTES: usize = 4096;

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
    /// As sent to the client; 499: it left before anything was.
    pub status: u16,
    /// Of the body, as sent to the client.
    pub bytes: u64,
    #[serde(rename = "duration_seconds", serialize_with = "seconds")]
    pub duration: Duration,
    pub request_id: &'a str,
    pub referer: Option<&'a str>,
    pub user_agent: Option<&'a str>,
    #[serde(flatten)]
    pub served: Served<'a>,
}

/// Who served a request, and how.
#[derive(Debug, Clone, Serialize)]
pub struct Served<'a> {
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
    /// What went wrong last with a backend or the client, even if another attempt then succeeded.
    pub failure: Option<&'static str>,
}

impl<'a> Served<'a> {
    /// `exchange` is `None` when the request found no route.
    pub fn new(exchange: Option<&'a Exchange>, outcome: &'a Outcome) -> Self {
        Self {
            route: exchange.and_then(Exchange::route_name),
            pool: exchange.and_then(Exchange::pool).map(|pool| pool.name.as_str()),
            backend: outcome.backend.as_ref().map(|backend| backend.address.as_str()),
            backend_status: outcome.backend_status,
            response_time: outcome.response_time,
            attempts: outcome.attempts,
            sticky: outcome.is_sticky,
            refusal: outcome.refusal.map(Refusal::reason),
            failure: outcome.failure.map(Failure::word),
        }
    }
}

/// Where lines go now, which can change at any time.
#[derive(Debug)]
pub struct AccessLog {
    output: ArcSwapOption<Output>,
    /// Whether there is one: asked for each request.
    is_on: AtomicBool,
    /// Of all outputs so far that may not have written everything yet.
    writers: Mutex<Vec<Writer>>,
    lost: IntCounter,
}

/// A file, or standard output, that was opened for lines of one format.
#[derive(Debug)]
struct Output {
    queue: Queue,
    format: AccessLogFormat,
    zone: TimeZone,
}

/// An output that is open and not written to yet; `None`: the log will be off.
#[derive(Debug)]
pub struct Opened(Option<(Output, Writer)>);

impl AccessLog {
    /// A log that is off. `lost` counts lines that were lost.
    pub fn new(lost: IntCounter) -> Self {
        Self { output: ArcSwapOption::empty(), is_on: AtomicBool::new(false), writers: Mutex::default(), lost }
    }

    /// Opens what `config` names, for [`Self::switch`].
    pub fn open(&self, config: &AccessLogConfig) -> io::Result<Opened> {
        let settings = Settings { name: "access log", max_bytes: MAX_WAITING_BYTES, lost: self.lost.clone() };
        let (queue, writer) = match &config.file {
            None => return Ok(Opened(None)),
            Some(AccessLogFile::Stdout) => Queue::to_stdout(settings)?,
            Some(AccessLogFile::Path(path)) => Queue::to_file(path, settings)?,
        };
        Ok(Opened(Some((Output { queue, format: config.format, zone: TimeZone::system() }, writer))))
    }

    /// Writes to another output from now on. Lines that wait for the former one are still written to it.
    pub fn switch(&self, Opened(opened): Opened) {
        let (output, writer) = opened.map(|(output, writer)| (Arc::new(output), writer)).unzip();
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        // Each ends with the last request that still writes to it.
        writers.iter_mut().for_each(Writer::release);
        writers.retain(|writer| !writer.has_ended());
        writers.extend(writer);
        self.is_on.store(output.is_some(), Ordering::Relaxed);
        self.output.store(output);
    }

    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    pub fn write(&self, record: &Record<'_>) {
        let output = self.output.load();
        let Some(Output { queue, format, zone }) = output.as_deref() else { return };
        let record = record.cut();
        let mut line = match format {
            // Every field is text or a number: there is nothing that JSON cannot say.
            AccessLogFormat::Json => serde_json::to_vec(&record).unwrap_or_default(),
            AccessLogFormat::Combined => combined(&record, zone).into_bytes(),
        };
        line.push(b'\n');
        queue.push(line);
    }

    /// Opens the file again before the next line, for rotation.
    pub fn reopen(&self) {
        if let Some(output) = &*self.output.load() {
            output.queue.reopen();
        }
    }

    /// Waits until every line is written, but not longer than `limit`. Those that come later are lost. False: the last
    /// lines may not have been written.
    pub fn finish(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        let finish = |writer: Writer| writer.finish(deadline.saturating_duration_since(Instant::now()));
        let finished: Vec<_> = writers.drain(..).map(finish).collect();
        finished.into_iter().all(|has_written_all| has_written_all)
    }
}

impl Record<'_> {
    /// The record with at most [`MAX_VALUE_BYTES`] of each value.
    fn cut(&self) -> Record<'_> {
        Record {
            method: cut(self.method),
            host: cut(self.host),
            target: cut(self.target),
            request_id: cut(self.request_id),
            referer: self.referer.map(cut),
            user_agent: self.user_agent.map(cut),
            ..self.clone()
        }
    }
}

fn cut(value: &str) -> &str {
    &value[..value.floor_char_boundary(MAX_VALUE_BYTES)]
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

/// Quotes, backslashes, control characters and what Unicode takes for the end of a line as `\xXX`, as nginx does, so that
/// no client can write lines of its own.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '"' | '\\' | '\u{2028}' | '\u{2029}' => hex(c, f)?,
                c if c.is_control() => hex(c, f)?,
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

/// A character's bytes in UTF-8.
fn hex(c: char, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
    c.encode_utf8(&mut [0; 4]).bytes().try_for_each(|byte| write!(f, "\\x{byte:02X}"))
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

    #[test]
    fn a_switch_loses_no_line_and_ends_the_former_writer() {
        const LIMIT: Duration = Duration::from_secs(20);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = |name: &str| AccessLogConfig {
            file: Some(AccessLogFile::Path(folder.path().join(name))),
            format: AccessLogFormat::Combined,
        };
        let log = AccessLog::new(IntCounter::new("lost", "Lost.").expect("a name"));
        log.write(&record());
        for name in ["a", "b", "a"] {
            log.switch(log.open(&config(name)).expect("writable"));
            (0..100).for_each(|_| log.write(&record()));
        }
        let before = log.writers.lock().expect("no panic").len();
        log.switch(Opened(None));
        assert!(!log.is_on());
        log.write(&record());
        assert!(log.finish(LIMIT) && before <= 3, "{before} writers");
        let lines = |name| std::fs::read_to_string(folder.path().join(name)).expect("readable").lines().count();
        assert_eq!((lines("a"), lines("b"), log.lost.get()), (200, 100, 0));
    }

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
            user_agent: Some("a \"browser\"\n\u{9b}\u{2028}\u{e4}"),
            served: Served {
                route: Some("/"),
                pool: Some("app"),
                backend: Some("web1:80"),
                backend_status: Some(200),
                response_time: Some(Duration::from_millis(1)),
                attempts: 1,
                sticky: false,
                refusal: None,
                failure: None,
            },
        }
    }

    #[test]
    fn combined_is_what_log_readers_know() {
        assert_eq!(
            combined(&record(), &TimeZone::UTC),
            "192.0.2.1 - - [21/Nov/2026:10:30:00 +0000] \"GET /x?y=1 HTTP/1.1\" 200 12 \"-\" \"a \\x22browser\\x22\\x0A\\xC2\\x9B\\xE2\\x80\\xA8\u{e4}\""
        );
    }

    #[test]
    fn long_values_are_cut_between_two_characters() {
        let long = "a".repeat(MAX_VALUE_BYTES - 1) + "\u{e4}\u{e4}";
        let mut record = record();
        (record.target, record.user_agent) = (long.as_str(), Some(long.as_str()));
        let record = record.cut();
        assert_eq!((record.target, record.user_agent), (&long[..MAX_VALUE_BYTES - 1], Some(record.target)));
        assert_eq!(record.host, "a.example");
    }

    #[test]
    fn json_carries_the_same_and_more() {
        let line = serde_json::to_value(record()).expect("serializable");
        assert_eq!(line["time"], "2026-11-21T10:30:00.123Z");
        assert_eq!(line["duration_seconds"], 0.0015);
        assert_eq!(line["backend"], "web1:80");
        assert_eq!(line["refusal"], serde_json::Value::Null);
    }
}
