//! The access log: one line per exchange, written by a separate thread so that no request waits for a disk. If the
//! writer falls too far behind, lines are dropped and counted.

use std::fmt::{Display, Write as _};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use prometheus::IntCounter;
use serde::Serialize;

use crate::config::site::{AccessLogRule, LogLine, Share};
use crate::config::{AccessLogFile, AccessLogFormat, Config};
use crate::exchange::refusal::Refusal;
use crate::exchange::{Exchange, Outcome, ShownTrace};
use crate::failure::Detail;
use crate::lines::{Queue, Settings, Writer};
use crate::value::encode::Escape;
use crate::value::{Facts, Value};

/// Limit on the lines that wait to be written, in bytes.
const MAX_WAITING_BYTES: usize = 32 * 1024 * 1024;

/// How long the end waits for the last lines to be written.
pub(crate) const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(10);

/// Limit on each value that a client controls, in bytes.
const MAX_VALUE_BYTES: usize = 4096;

/// The content of a line.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Record<'a> {
    /// When the request's head had arrived, RFC 3339.
    #[serde(serialize_with = "milliseconds")]
    pub time: Timestamp,
    /// The client's address, or `unix:`.
    pub client: &'a str,
    pub method: &'a str,
    pub host: &'a str,
    pub target: &'a str,
    pub protocol: &'static str,
    /// As sent to the client; 499: it disconnected before.
    pub status: u16,
    /// Bytes of the body sent to the client.
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
pub(crate) struct Served<'a> {
    pub route: Option<&'a str>,
    pub pool: Option<&'a str>,
    pub backend: Option<&'a str>,
    /// The address that the backend's name resolved to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_address: Option<SocketAddr>,
    pub backend_status: Option<u16>,
    #[serde(rename = "response_seconds", serialize_with = "some_seconds")]
    pub response_time: Option<Duration>,
    pub attempts: usize,
    pub sticky: bool,
    /// Why Evenkeel responded itself.
    pub refusal: Option<&'static str>,
    /// The last failure of a backend or the client, even if a later attempt succeeded.
    pub failure: Option<&'static str>,
    /// Details of that failure, or of the refusal.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "displayed")]
    pub reason: Option<Detail>,
    /// Time in the queue of a pool whose backends were all at `max_connections`.
    #[serde(rename = "queue_seconds", serialize_with = "some_seconds", skip_serializing_if = "Option::is_none")]
    pub queue_time: Option<Duration>,
    /// What happened, if it was slow or anything but one attempt whose answer was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<ShownTrace<'a>>,
}

impl<'a> Served<'a> {
    /// `exchange` is `None` if no route matched. `duration`: how long it took.
    pub(crate) fn new(exchange: Option<&'a Exchange>, outcome: &'a Outcome, duration: Duration) -> Self {
        let trace = exchange.map(|exchange| exchange.trace(outcome.endpoint.as_ref()));
        let trace = trace.filter(|trace| trace.is_remarkable(duration));
        Self {
            route: exchange.and_then(Exchange::route_name),
            pool: exchange.and_then(Exchange::pool).map(|pool| pool.name.as_str()),
            backend: outcome.endpoint.as_ref().map(|endpoint| endpoint.backend.address.as_str()),
            backend_address: outcome.endpoint.as_ref().and_then(|endpoint| endpoint.resolved_address()),
            backend_status: outcome.backend_status,
            response_time: outcome.response_time,
            attempts: outcome.attempts,
            sticky: outcome.is_sticky,
            refusal: outcome.refusal.map(Refusal::reason),
            failure: outcome.failure_word(),
            reason: outcome.detail,
            queue_time: trace.as_ref().and_then(ShownTrace::queue_time),
            trace,
        }
    }
}

/// The access logs in use, which can be switched at any time.
#[derive(Debug)]
pub(crate) struct AccessLog {
    outputs: ArcSwap<Outputs>,
    /// Whether there are any; read for each request.
    is_on: AtomicBool,
    /// Writers of all outputs so far that may still have lines to write.
    writers: Mutex<Vec<(AccessLogFile, Writer)>>,
    lost: IntCounter,
}

/// Files and standard output, each opened once even if several logs write to it.
#[derive(Debug)]
struct Outputs {
    /// The log of `[access_log]`.
    common: Option<(Arc<Queue>, AccessLogFormat)>,
    open: Vec<(AccessLogFile, Arc<Queue>)>,
    /// Outputs of the previous configuration: requests that began with it are logged there.
    former: Vec<(AccessLogFile, Arc<Queue>)>,
    times: Times,
}

/// Times in the combined format. The last one is cached, since most requests begin within the same second.
#[derive(Debug)]
struct Times {
    zone: TimeZone,
    last: ArcSwap<(i64, String)>,
}

/// Outputs that are open and not in use yet.
#[derive(Debug)]
pub(crate) struct Opened {
    outputs: Outputs,
    /// Writers of newly opened ones.
    writers: Vec<(AccessLogFile, Writer)>,
}

/// The access logs of a configuration. Two configurations with equal ones need no switch.
#[derive(Debug, PartialEq)]
pub(crate) struct AccessLogSpec<'a> {
    common: Option<(&'a AccessLogFile, AccessLogFormat)>,
    /// Without duplicates.
    files: Vec<&'a AccessLogFile>,
}

/// A file that cannot be opened.
#[derive(Debug)]
pub(crate) struct OpenError {
    pub file: AccessLogFile,
    /// Whether it is that of `[access_log]`.
    pub is_common: bool,
    pub error: io::Error,
}

impl<'a> AccessLogSpec<'a> {
    pub(crate) fn of(config: &'a Config) -> Self {
        let common = config.access_log.file.as_ref().map(|file| (file, config.access_log.format));
        let sites = config.sites.iter().map(|site| &**site);
        let rules = sites.flat_map(|site| site.routes.iter().map(|route| &route.rules).chain([&site.fallback]));
        let of_rules = rules.filter_map(|rules| rules.access_log.as_ref()).flatten().map(|rule| &rule.file);
        let mut files = Vec::new();
        for file in common.map(|(file, _)| file).into_iter().chain(of_rules) {
            if !files.contains(&file) {
                files.push(file);
            }
        }
        Self { common, files }
    }
}

impl AccessLog {
    /// No access log yet. `lost` counts dropped lines.
    pub(crate) fn new(lost: IntCounter) -> Self {
        let outputs = Outputs { common: None, open: Vec::new(), former: Vec::new(), times: Times::of(TimeZone::UTC) };
        Self { outputs: ArcSwap::from_pointee(outputs), is_on: AtomicBool::new(false), writers: Mutex::default(), lost }
    }

    /// Opens the outputs that are not open yet, for [`Self::switch`].
    pub(crate) fn open(&self, wanted: &AccessLogSpec<'_>) -> Result<Opened, OpenError> {
        let running = self.outputs.load();
        let (mut open, mut writers) = (Vec::new(), Vec::new());
        for &file in &wanted.files {
            let queue = match running.queue(file) {
                Some(queue) => Arc::clone(queue),
                None => {
                    let (queue, writer) = self.start(file).map_err(|error| OpenError {
                        file: file.clone(),
                        is_common: wanted.common.is_some_and(|(common, _)| common == file),
                        error,
                    })?;
                    writers.push((file.clone(), writer));
                    Arc::new(queue)
                }
            };
            open.push((file.clone(), queue));
        }
        let queue =
            |file: &AccessLogFile| open.iter().find(|(known, _)| known == file).map(|(_, queue)| Arc::clone(queue));
        let common = wanted.common.and_then(|(file, format)| Some((queue(file)?, format)));
        let is_kept = |file: &AccessLogFile| wanted.files.contains(&file);
        let former = running.open.iter().filter(|(file, _)| !is_kept(file)).cloned().collect();
        Ok(Opened { outputs: Outputs { common, open, former, times: Times::of(TimeZone::system()) }, writers })
    }

    fn start(&self, file: &AccessLogFile) -> io::Result<(Queue, Writer)> {
        let settings = Settings { name: "access log", max_bytes: MAX_WAITING_BYTES, lost: self.lost.clone() };
        match file {
            AccessLogFile::Stdout => Queue::to_stdout(settings),
            AccessLogFile::Path(path) => Queue::to_file(path, settings),
        }
    }

    /// Switches to other outputs. Lines queued for the previous ones are still written there.
    pub(crate) fn switch(&self, Opened { outputs, writers: new }: Opened) {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        // Each ends with the last request that still writes to it.
        writers.iter_mut().filter(|(file, _)| outputs.queue(file).is_none()).for_each(|(_, writer)| writer.release());
        writers.retain(|(_, writer)| !writer.has_ended());
        writers.extend(new);
        self.is_on.store(!outputs.open.is_empty(), Ordering::Relaxed);
        self.outputs.store(Arc::new(outputs));
    }

    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Writes a line to the log of `[access_log]`.
    pub(crate) fn write(&self, record: &Record<'_>) {
        let outputs = self.outputs.load();
        if let Some((queue, format)) = &outputs.common {
            queue.push(line(*format, &record.cut(), &outputs.times));
        }
    }

    /// Writes the lines for the rules of a route. `random` decides which requests are sampled.
    pub(crate) fn write_by(
        &self,
        rules: &[AccessLogRule],
        record: &Record<'_>,
        facts: &impl Facts,
        mut random: impl FnMut() -> u64,
    ) {
        let outputs = self.outputs.load();
        for rule in rules {
            let holds = rule.status.as_ref().is_none_or(|status| status.contains(record.status))
                && rule.when.as_ref().is_none_or(|when| when.holds(facts));
            if !takes(if holds { rule.share } else { rule.or_share }, &mut random) {
                continue;
            }
            let line = match &rule.format {
                LogLine::Json => line(AccessLogFormat::Json, &record.cut(), &outputs.times),
                LogLine::Combined => line(AccessLogFormat::Combined, &record.cut(), &outputs.times),
                LogLine::Own(value) => own(value, rule.escape, facts),
            };
            match outputs.queue(&rule.file) {
                Some(queue) => queue.push(line),
                // The request began two configurations ago.
                None => self.lost.inc(),
            }
        }
    }

    /// Reopens the files before the next line, for rotation.
    pub(crate) fn reopen(&self) {
        self.outputs.load().open.iter().for_each(|(_, queue)| queue.reopen());
    }

    /// Waits until every line is written, for at most `limit`. Later lines are lost. False: the last lines may not have
    /// been written. Dropping the log does the same for [`LAST_LINES_TIMEOUT`].
    pub(crate) fn finish(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        let finish = |(_, writer): (_, Writer)| writer.finish(deadline.saturating_duration_since(Instant::now()));
        let finished: Vec<_> = writers.drain(..).map(finish).collect();
        finished.into_iter().all(|has_written_all| has_written_all)
    }
}

/// The last owner is gone, and with it everybody who could log a line. In a Pingora server nobody else knows when that
/// is.
impl Drop for AccessLog {
    fn drop(&mut self) {
        // Lost lines are counted; nobody is left to be told.
        let _ = self.finish(LAST_LINES_TIMEOUT);
    }
}

impl Outputs {
    fn queue(&self, file: &AccessLogFile) -> Option<&Arc<Queue>> {
        self.open.iter().chain(&self.former).find(|(known, _)| known == file).map(|(_, queue)| queue)
    }
}

/// Whether a request is sampled.
fn takes(share: Share, random: &mut impl FnMut() -> u64) -> bool {
    match share {
        Share::ALL => true,
        Share::NONE => false,
        share => random() % u64::from(Share::ALL.millionths()) < u64::from(share.millionths()),
    }
}

fn line(format: AccessLogFormat, record: &Record<'_>, times: &Times) -> Vec<u8> {
    let mut line = match format {
        // Every field is a text or a number, so serialization cannot fail.
        AccessLogFormat::Json => serde_json::to_vec(record).unwrap_or_default(),
        AccessLogFormat::Combined => combined(record, times).into_bytes(),
    };
    line.push(b'\n');
    line
}

/// A custom line. If it begins with `{`, it is JSON, and its values are escaped accordingly by default.
fn own(value: &Value, escape: Option<Escape>, facts: &impl Facts) -> Vec<u8> {
    let by_form = if value.text().starts_with('{') { Escape::Json } else { Escape::Default };
    let escape = escape.unwrap_or(by_form);
    let mut line = Vec::new();
    value.write_log(escape, MAX_VALUE_BYTES, facts, &mut line);
    line.push(b'\n');
    line
}

impl Record<'_> {
    /// The record with values cut to [`MAX_VALUE_BYTES`].
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

/// The length of a line in the combined format without the values from the client.
const COMBINED_BYTES: usize = 128;

/// The combined format of nginx and Apache.
fn combined(record: &Record<'_>, times: &Times) -> String {
    let Record { client, method, target, protocol, status, bytes, .. } = record;
    let (referer, user_agent) = (record.referer.unwrap_or("-"), record.user_agent.unwrap_or("-"));
    let mut line = String::with_capacity(COMBINED_BYTES + target.len() + referer.len() + user_agent.len());
    // Writing to a string does not fail.
    let _ = write!(line, "{client} - - [");
    times.write(record.time, &mut line);
    line.push_str("] \"");
    // Without a method, the target is all of the request line that could be read.
    if !method.is_empty() {
        line.push_str(method);
        line.push(' ');
    }
    escape(target, &mut line);
    if !method.is_empty() {
        line.push(' ');
        line.push_str(protocol);
    }
    let _ = write!(line, "\" {status} {bytes} \"");
    escape(referer, &mut line);
    line.push_str("\" \"");
    escape(user_agent, &mut line);
    line.push('"');
    line
}

impl Times {
    fn of(zone: TimeZone) -> Self {
        Self { zone, last: ArcSwap::from_pointee((i64::MIN, String::new())) }
    }

    fn write(&self, time: Timestamp, out: &mut String) {
        let last = self.last.load();
        if last.0 == time.as_second() {
            return out.push_str(&last.1);
        }
        let text = time.to_zoned(self.zone.clone()).strftime("%d/%b/%Y:%H:%M:%S %z").to_string();
        out.push_str(&text);
        self.last.store(Arc::new((time.as_second(), text)));
    }
}

/// Appends `text`, with quotes, backslashes, control characters and Unicode line separators as `\xXX`, as nginx does,
/// so that no client can inject lines.
fn escape(text: &str, out: &mut String) {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') & (byte != b'"') & (byte != b'\\');
    // Branch-free, and nearly always true.
    if text.bytes().fold(true, |plain, byte| plain & is_plain(byte)) {
        return out.push_str(text);
    }
    for c in text.chars() {
        if matches!(c, '"' | '\\' | '\u{2028}' | '\u{2029}') || c.is_control() {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                let _ = write!(out, "\\x{byte:02X}");
            }
        } else {
            out.push(c);
        }
    }
}

fn milliseconds<S: serde::Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.3}"))
}

fn displayed<S: serde::Serializer>(value: &Option<impl Display>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    some_seconds(&Some(*duration), serializer)
}

fn some_seconds<S: serde::Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    // Microseconds are precise enough.
    duration.map(|d| d.as_micros() as f64 / 1e6).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::condition::{Comparison, Condition, Test};
    use crate::value::variable::Variable;
    use crate::value::{Phase, Presence, Scope};

    #[test]
    fn switching_logs_loses_no_line_and_ends_the_previous_writer() {
        const LIMIT: Duration = Duration::from_secs(20);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = |name: &str| AccessLogFile::Path(folder.path().join(name));
        let log = AccessLog::new(IntCounter::new("lost", "Lost.").expect("a name"));
        log.write(&record());
        for name in ["a", "b", "a"] {
            let file = file(name);
            let wanted = AccessLogSpec { common: Some((&file, AccessLogFormat::Combined)), files: vec![&file] };
            log.switch(log.open(&wanted).expect("writable"));
            (0..100).for_each(|_| log.write(&record()));
        }
        let before = log.writers.lock().expect("no panic").len();
        log.switch(log.open(&OFF).expect("nothing to open"));
        assert!(!log.is_on());
        log.write(&record());
        assert!(log.finish(LIMIT) && before <= 3, "{before} writers");
        let lines = |name| std::fs::read_to_string(folder.path().join(name)).expect("readable").lines().count();
        assert_eq!((lines("a"), lines("b"), log.lost.get()), (200, 100, 0));
    }

    // A Pingora server ended without waiting for the thread that writes the lines.
    #[test]
    fn a_log_that_is_dropped_has_written_its_last_lines() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("access.log");
        let file = AccessLogFile::Path(path.clone());
        let log = AccessLog::new(IntCounter::new("lost", "Lost.").expect("a name"));
        let wanted = AccessLogSpec { common: Some((&file, AccessLogFormat::Combined)), files: vec![&file] };
        log.switch(log.open(&wanted).expect("writable"));
        (0..1000).for_each(|_| log.write(&record()));
        drop(log);
        assert_eq!(std::fs::read_to_string(&path).expect("readable").lines().count(), 1000);
    }

    const OFF: AccessLogSpec<'static> = AccessLogSpec { common: None, files: Vec::new() };

    /// Facts with `$status`, and a field in which a client tries to inject lines.
    struct TestFacts(&'static str);

    impl Facts for TestFacts {
        fn write(&self, variable: &Variable, out: &mut Vec<u8>) -> Presence {
            match variable {
                Variable::Status => out.extend_from_slice(self.0.as_bytes()),
                Variable::Field(_) => out.extend_from_slice(b"a\"\nb"),
                _ => return Presence::Missing,
            }
            Presence::Present
        }
    }

    #[test]
    fn each_log_gets_the_lines_that_match_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = |name: &str| AccessLogFile::Path(folder.path().join(name));
        let value = |text| Value::parse(text, &Scope::new(Phase::End)).expect(text);
        let is_500 = Test { of: value("$status"), is: Comparison::Equal(value("500")), negated: false };
        let when = Some(Condition { tests: vec![is_500], ..Condition::default() });
        let share = |share| Share::new(share).expect("a share");
        let all = AccessLogRule {
            file: file("all"),
            format: LogLine::Own(value("$status \"$http_x\" $args")),
            escape: None,
            status: None,
            when: None,
            share: Share::ALL,
            or_share: Share::NONE,
        };
        let json = LogLine::Own(value("{\"x\":\"$http_x$args\"}"));
        let rules = [
            all.clone(),
            AccessLogRule { file: file("json"), format: json, when: when.clone(), ..all.clone() },
            AccessLogRule { format: LogLine::Combined, when: when.clone(), ..all.clone() },
            AccessLogRule { file: file("sampled"), when, or_share: share(0.25), ..all.clone() },
        ];
        let files: Vec<_> = rules.iter().map(|rule| &rule.file).collect();
        let log = AccessLog::new(IntCounter::new("lost", "Lost.").expect("a name"));
        log.switch(log.open(&AccessLogSpec { common: None, files }).expect("writable"));
        assert!(log.is_on());
        // Evenly distributed.
        let mut next = 0;
        for (status, count) in [("500", 1), ("200", 8)] {
            for _ in 0..count {
                log.write_by(&rules, &record(), &TestFacts(status), || {
                    next += 125_000;
                    next
                });
            }
        }
        // Requests that began before a reload are logged by the old configuration; those that began before two reloads
        // are not logged.
        log.switch(log.open(&OFF).expect("nothing to open"));
        log.write_by(&rules[..1], &record(), &TestFacts("201"), || 0);
        log.switch(log.open(&OFF).expect("nothing to open"));
        log.write_by(&rules[..1], &record(), &TestFacts("202"), || 0);
        assert!(log.finish(Duration::from_secs(20)));
        let text = |name| std::fs::read_to_string(folder.path().join(name)).expect("readable");
        let all = text("all");
        let own = |status| format!("{status} \"a\\x22\\x0Ab\" -");
        let lines: Vec<_> = all.lines().collect();
        assert_eq!((lines.len(), lines[0], lines[10]), (11, &*own("500"), &*own("201")));
        assert!(lines[1].starts_with("192.0.2.1 - - ["), "{}", lines[1]);
        assert_eq!(text("json"), "{\"x\":\"a\\\"\\nb\"}\n");
        let sampled = text("sampled");
        assert_eq!(sampled.lines().map(|line| &line[..3]).collect::<Vec<_>>(), ["500", "200", "200"], "{sampled}");
        assert_eq!(log.lost.get(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named_and_nothing_changes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (good, bad) = (folder.path().join("good"), folder.path().join("none").join("bad"));
        let (good, bad) = (AccessLogFile::Path(good), AccessLogFile::Path(bad));
        let log = AccessLog::new(IntCounter::new("lost", "Lost.").expect("a name"));
        let refused =
            log.open(&AccessLogSpec { common: Some((&good, AccessLogFormat::Json)), files: vec![&good, &bad] });
        let refused = refused.expect_err("there is no such folder");
        assert!(refused.file == bad && !refused.is_common && !log.is_on());
    }

    fn record() -> Record<'static> {
        Record {
            time: "2026-11-21T10:30:00.123456Z".parse().expect("a time"),
            client: "192.0.2.1",
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
                backend_address: Some("10.0.0.1:80".parse().expect("an address")),
                backend_status: Some(200),
                response_time: Some(Duration::from_millis(1)),
                attempts: 1,
                sticky: false,
                refusal: None,
                failure: None,
                reason: None,
                queue_time: None,
                trace: None,
            },
        }
    }

    #[test]
    fn combined_is_the_format_of_nginx() {
        assert_eq!(
            combined(&record(), &Times::of(TimeZone::UTC)),
            "192.0.2.1 - - [21/Nov/2026:10:30:00 +0000] \"GET /x?y=1 HTTP/1.1\" 200 12 \"-\" \"a \\x22browser\\x22\\x0A\\xC2\\x9B\\xE2\\x80\\xA8\u{e4}\""
        );
    }

    #[test]
    fn the_cached_time_changes_every_second() {
        let times = Times::of(TimeZone::UTC);
        for (second, expected) in [(0, "00:00:00"), (0, "00:00:00"), (1, "00:00:01"), (0, "00:00:00"), (-1, "23:59:59")]
        {
            let mut text = String::new();
            times.write(Timestamp::from_second(second).expect("a time"), &mut text);
            assert!(text.ends_with(&format!("{expected} +0000")), "{second}: {text}");
        }
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
    fn json_has_all_of_combined_and_more() {
        let line = serde_json::to_value(record()).expect("serializable");
        assert_eq!(line["time"], "2026-11-21T10:30:00.123Z");
        assert_eq!(line["duration_seconds"], 0.0015);
        assert_eq!((&line["backend"], &line["backend_address"]), (&"web1:80".into(), &"10.0.0.1:80".into()));
        assert_eq!(line["refusal"], serde_json::Value::Null);
    }
}
