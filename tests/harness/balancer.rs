//! The real program, started with a configuration on ports of its own, and its admin API.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::config::Config;
use crate::deadline::{eventually, found_eventually, within};
use crate::origin::Origin;
use crate::port::Port;
use crate::process::{Process, built, fast_directory};
use crate::wire::{Reply, Request, Wire};

pub struct Balancer {
    /// `None` between a stop and the next start. First, so that it ends before its files go.
    process: Option<Process>,
    directory: TempDir,
    listener: Port,
    admin: Port,
    /// What runs, from the next start on.
    pub program: Program,
    /// Options of the program, from the next start on.
    pub options: Vec<&'static str>,
    /// Sent with every admin request.
    pub token: Option<String>,
    /// Environment variables, from the next start on.
    pub environment: Vec<(String, String)>,
    /// The limit on open files, from the next start on; `None`: that of the tests.
    pub most_files: Option<usize>,
}

/// What handles the requests of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `evenkeel run`.
    Run,
    /// A Pingora server with Evenkeel as its proxy.
    PingoraProxy,
    /// The same with the filter of the example around it.
    PingoraFilter,
    /// A Pingora server with Evenkeel's engine.
    PingoraEngine,
}

/// The content of `/metrics`.
#[derive(Debug)]
pub struct Metrics(Vec<Series>);

#[derive(Debug)]
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// The result of one run of the command line.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Balancer {
    /// Starts a balancer and waits until it is ready. A busy machine may delay a first quick probe, which decides
    /// alone: with such probes, waits until no backend is unhealthy.
    pub async fn start(config: Config) -> Self {
        let mut balancer = Self::prepare(&config);
        balancer.launch();
        balancer.ready().await;
        if config.is_quickly_probed() {
            let are_well = async || !balancer.admin("GET", "/admin/pools", None).await.text().contains("unhealthy");
            eventually("no backend is unhealthy", are_well).await;
        }
        balancer
    }

    /// Prepares everything but the process, for tests of the start itself.
    pub fn prepare(config: &Config) -> Self {
        let directory = fast_directory();
        let balancer = Self {
            process: None,
            directory,
            listener: Port::reserve(),
            admin: Port::reserve(),
            program: Program::of_environment(),
            options: Vec::new(),
            token: None,
            environment: Vec::new(),
            most_files: None,
        };
        balancer.configure(config);
        balancer
    }

    /// Starts the process without waiting for anything.
    pub fn launch(&mut self) {
        self.process = Some(Process::start(self.command(), &self.file("stderr.log")));
    }

    /// As [`Self::launch`], with standard error somewhere else than in [`Self::log`].
    pub fn launch_with_error(&mut self, error: impl Into<Stdio>) {
        self.process = Some(Process::start_with_error(self.command(), &self.file("stderr.log"), error));
    }

    fn command(&self) -> Command {
        let (program, arguments) = self.program.command();
        let mut command = match self.most_files {
            Some(files) => {
                let mut command = Command::new("prlimit");
                command.arg(format!("--nofile={files}:{files}")).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.args(arguments).args(&self.options).arg(self.config_file()).current_dir(self.directory.path());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    pub async fn ready(&mut self) {
        found_eventually("the balancer is ready", async || {
            if let Some(status) = self.process().ended() {
                panic!("the balancer ended with {status} instead of becoming ready:\n{}", self.log());
            }
            let reply = self.try_admin("GET", "/readyz", None).await?;
            (reply.status == 200).then_some(())
        })
        .await;
    }

    /// Writes another address of the admin API into the configuration file, for the next start. Returns the former one,
    /// which a running process still uses.
    pub fn move_admin(&mut self, config: &Config) -> Port {
        let former = std::mem::replace(&mut self.admin, Port::reserve());
        self.configure(config);
        former
    }

    /// Replaces the configuration file without notifying the process.
    pub fn configure(&self, config: &Config) {
        self.write(&config.text(self.listener.address(), self.admin.address()));
    }

    /// Replaces the configuration file by any text.
    pub fn write(&self, text: &str) {
        std::fs::write(self.config_file(), text).expect("a writable directory");
    }

    /// The file that this name refers to in the configuration.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn config_file(&self) -> PathBuf {
        self.file("evenkeel.toml")
    }

    pub fn state_file(&self) -> PathBuf {
        self.file("evenkeel.state.json")
    }

    /// Sets how many files the running process may have open. Returns the limit before.
    pub fn limit_open_files(&mut self, files: u64) -> u64 {
        let id = self.process().id();
        let limits = std::fs::read_to_string(format!("/proc/{id}/limits")).expect("the limits");
        let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit on files");
        let before = line.split_whitespace().nth(3).and_then(|files| files.parse().ok()).expect("a soft limit");
        let limit = Command::new("prlimit").args(["--pid", &id.to_string(), &format!("--nofile={files}:")]).status();
        assert!(limit.expect("prlimit, of util-linux").success());
        before
    }

    /// What the process logged since the first start.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.file("stderr.log")).unwrap_or_default()
    }

    /// Waits until the log contains all of `words`: a separate thread writes lines shortly after they are logged.
    pub async fn logs(&self, words: &[&str]) {
        let has_all = async || {
            let log = self.log();
            words.iter().all(|word| log.contains(word))
        };
        eventually(&format!("the log has {words:?}"), has_all).await;
    }

    /// Waits until a file has `count` whole lines, and asserts that these are all.
    pub async fn lines(&self, file: &str, count: usize) -> Vec<String> {
        let mut lines = Vec::new();
        eventually(&format!("{count} lines in {file}"), async || {
            let text = std::fs::read_to_string(self.file(file)).unwrap_or_default();
            lines = text.lines().map(str::to_owned).collect();
            lines.len() >= count && (count == 0 || text.ends_with('\n'))
        })
        .await;
        assert_eq!(lines.len(), count, "{file}: {lines:#?}");
        lines
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address()
    }

    /// Starts the program once more, beside the process so far, which is returned.
    pub fn launch_another(&mut self) -> Process {
        let former = self.process.take().expect("a started balancer");
        self.launch();
        former
    }

    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("a started balancer")
    }

    pub fn signal(&mut self, signal: Signal) {
        self.process().signal(signal);
    }

    /// Stops the process and asserts that it ends in order.
    pub async fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.process().end().await;
        assert!(status.success(), "the balancer ended with {status}:\n{}", self.log());
        self.process = None;
    }

    /// Kills the process.
    pub async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.process().end().await;
        self.process = None;
    }

    /// Starts the process again, with the current content of its files.
    pub async fn start_again(&mut self) {
        self.launch();
        self.ready().await;
    }

    pub async fn connect(&self) -> Wire {
        Wire::connect(self.address()).await
    }

    /// Sends one request on a connection of its own.
    pub async fn send(&self, request: &Request) -> Reply {
        self.connect().await.exchange(request).await
    }

    pub async fn get(&self, target: &str) -> Reply {
        self.send(&Request::get(target)).await
    }

    /// Names of the origins that answer this many requests, one after the other.
    pub async fn origins_of(&self, requests: usize) -> Vec<String> {
        let mut wire = self.connect().await;
        let mut origins = Vec::with_capacity(requests);
        for _ in 0..requests {
            origins.push(wire.exchange(&Request::get("/")).await.origin().to_owned());
        }
        origins
    }

    pub async fn admin(&self, method: &str, path: &str, body: Option<Value>) -> Reply {
        let reply = within("an answer of the admin API", self.try_admin(method, path, body)).await;
        reply.unwrap_or_else(|| panic!("no answer to {method} {path}:\n{}", self.log()))
    }

    /// Like [`Self::admin`]; `None` if there is no response.
    pub async fn try_admin(&self, method: &str, path: &str, body: Option<Value>) -> Option<Reply> {
        let mut request = Request::new(method, path).with("Host", "localhost").with("Connection", "close");
        if let Some(body) = &body {
            request = request.json(body);
        }
        self.try_admin_request(request).await
    }

    /// Sends any request to the admin listener, with the token if there is one.
    pub async fn try_admin_request(&self, mut request: Request) -> Option<Reply> {
        if let Some(token) = &self.token {
            request = request.with("Authorization", &format!("Bearer {token}"));
        }
        Wire::try_connect(self.admin_address()).await.ok()?.try_exchange(&request).await.ok()
    }

    /// As [`Self::admin`], for changes that must succeed.
    pub async fn change(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let reply = self.admin(method, path, body).await;
        assert!((200..300).contains(&reply.status), "{method} {path}: {} {}", reply.status, reply.text());
        reply.json()
    }

    pub async fn switch_algorithm(&self, algorithm: &str) -> Value {
        self.change("POST", "/admin/algorithm", Some(json!({ "algorithm": algorithm }))).await
    }

    pub async fn patch(&self, origin: &Origin, change: Value) -> Value {
        self.change("PATCH", &backend_path(origin), Some(change)).await
    }

    /// The pool `app` as the admin API shows it.
    pub async fn pool(&self) -> Value {
        self.change("GET", "/admin/pools/app", None).await
    }

    /// One backend of the pool `app`; null if it does not exist.
    pub async fn backend(&self, origin: &Origin) -> Value {
        let address = origin.address().to_string();
        let pool = self.pool().await;
        let mut backends = pool["backends"].as_array().into_iter().flatten();
        backends.find(|backend| backend["address"] == address.as_str()).cloned().unwrap_or(Value::Null)
    }

    /// Waits until a backend has this status.
    pub async fn sees(&self, origin: &Origin, status: &str) {
        let what = format!("{} is {status}", origin.name());
        eventually(&what, async || self.backend(origin).await["status"] == status).await;
    }

    /// Exchanges in flight on all backends of the pool `app`.
    pub async fn in_flight(&self) -> u64 {
        let pool = self.pool().await;
        let backends = pool["backends"].as_array().into_iter().flatten();
        backends.map(|backend| backend["in_flight"].as_u64().expect("a count")).sum()
    }

    /// Waits until nothing is in flight.
    pub async fn until_idle(&self) {
        eventually("nothing is in flight", async || self.in_flight().await == 0).await;
    }

    pub async fn version(&self) -> u64 {
        let answer = self.change("GET", "/admin/algorithm", None).await;
        answer["version"].as_u64().expect("a version")
    }

    pub async fn algorithm(&self) -> String {
        self.pool().await["algorithm"].as_str().expect("a name").to_owned()
    }

    pub async fn metrics(&self) -> Metrics {
        let reply = self.admin("GET", "/metrics", None).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        Metrics::parse(&reply.text())
    }
}

/// Path of a backend of the pool `app` in the admin API.
pub fn backend_path(origin: &Origin) -> String {
    format!("/admin/pools/app/backends/{}", origin.address())
}

/// The program under test.
pub fn program() -> PathBuf {
    built("evenkeel", "evenkeel", "EVENKEEL_BIN")
}

impl Program {
    /// `evenkeel run`, unless `EVENKEEL_IN` selects Evenkeel in a Pingora server, with Pingora's proxy
    /// (`pingora-proxy`) or with its own engine (`pingora-engine`).
    fn of_environment() -> Self {
        match std::env::var("EVENKEEL_IN").as_deref() {
            Err(_) => Self::Run,
            Ok("pingora-proxy") => Self::PingoraProxy,
            Ok("pingora-engine") => Self::PingoraEngine,
            Ok(other) => panic!("EVENKEEL_IN is {other:?}: write pingora-proxy or pingora-engine"),
        }
    }

    /// The program, and its first arguments; more options, and the configuration file, follow.
    fn command(self) -> (PathBuf, &'static [&'static str]) {
        let server = || built("pingora-server", "pingora-server", "PINGORA_SERVER_BIN");
        match self {
            // The file follows.
            Self::Run => (program(), &["run", "--config"]),
            Self::PingoraProxy => (server(), &[]),
            Self::PingoraFilter => (server(), &["--filter"]),
            Self::PingoraEngine => (server(), &["--engine"]),
        }
    }
}

/// Runs the command line to its end.
pub async fn evenkeel<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Outcome {
    evenkeel_in(Path::new("."), arguments).await
}

/// As [`evenkeel`], in another working directory.
pub async fn evenkeel_in<S: AsRef<std::ffi::OsStr>>(
    directory: &Path,
    arguments: impl IntoIterator<Item = S>,
) -> Outcome {
    let mut command = tokio::process::Command::new(program());
    command.args(arguments).current_dir(directory).env_remove("RUST_LOG").kill_on_drop(true);
    let output = within("the end of the command", command.output()).await.expect("a program that starts");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Outcome { status: output.status, stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

impl Metrics {
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(lines.map(|line| Series::parse(line).unwrap_or_else(|| panic!("no metric: {line:?}"))).collect())
    }

    /// The sum of all series with this name and these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|series| series.value).sum()
    }

    pub fn has(&self, name: &str) -> bool {
        self.matching(name, &[]).next().is_some()
    }

    pub fn has_series(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.matching(name, labels).next().is_some()
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|series| series.name.as_str())
    }

    fn matching<'a>(&'a self, name: &'a str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = &'a Series> {
        let has_labels = |series: &&Series| {
            labels.iter().all(|&(label, value)| series.labels.get(label).is_some_and(|found| found == value))
        };
        self.0.iter().filter(move |series| series.name == name).filter(has_labels)
    }
}

impl Series {
    /// Reads `name{label="value",…} 1`; values of labels hold no quotes here.
    fn parse(line: &str) -> Option<Self> {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let pairs = labels.trim_end_matches('}').split("\",").filter(|pair| !pair.is_empty());
        let pair = |pair: &str| {
            let (label, value) = pair.split_once("=\"")?;
            Some((label.to_owned(), value.trim_end_matches('"').to_owned()))
        };
        Some(Self {
            name: name.to_owned(),
            labels: pairs.map(pair).collect::<Option<_>>()?,
            value: value.parse().ok()?,
        })
    }
}
