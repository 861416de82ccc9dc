//! The application: single instances that share a folder, and the whole demonstration.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::balancer::program;
use crate::deadline::eventually;
use crate::process::{Process, built};
use crate::wire::{Reply, Request};

/// One `app serve` process.
pub struct Instance {
    process: Process,
    pub name: String,
    pub address: SocketAddr,
}

/// One `app demo` process, with its balancer and three instances.
pub struct Demo {
    process: Process,
    _directory: TempDir,
    /// The URL's address.
    pub address: SocketAddr,
    pub admin: SocketAddr,
    /// The balancer first, then the instances.
    pub parts: Vec<Part>,
}

/// A process of the demonstration, as its guide lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub name: String,
    pub pid: u32,
}

impl Instance {
    /// Starts an instance on `address`; port 0 takes any.
    pub async fn start(name: &str, data: &Path, address: &str) -> Self {
        Self::start_with(name, data, address, &[]).await
    }

    /// As [`Self::start`], with more flags.
    pub async fn start_with(name: &str, data: &Path, address: &str, flags: &[&str]) -> Self {
        let mut command = Command::new(built("app", "app", "APP_BIN"));
        // Unless a flag says otherwise: most tests stop an instance that gets no more requests.
        command.env("APP_SHUTDOWN_DELAY", "0s");
        command
            .args(["serve", "--listen", address, "--name", name, "--trivial-passwords", "--data-dir"])
            .arg(data)
            .args(flags);
        let mut process = Process::start(command, &data.with_extension(format!("{name}.log")));
        let prefix = format!("app {name} listening on ");
        let address = process.line("the instance listens", |line| line.strip_prefix(&prefix)?.parse().ok()).await;
        Self { process, name: name.to_owned(), address }
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Kills the instance.
    pub async fn kill(&mut self) {
        self.process.signal(Signal::SIGKILL);
        self.process.end().await;
    }

    /// Stops the instance and asserts that it ends in order.
    pub async fn stop(&mut self) {
        self.process.signal(Signal::SIGTERM);
        let status = self.process.end().await;
        assert!(status.success(), "{} ended with {status}:\n{}", self.name, self.process.output());
    }
}

impl Demo {
    pub async fn start() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let mut process = Process::start(demo(directory.path(), 0), &directory.path().join("demo.log"));
        let ready = |line: &str| {
            let (address, admin) = line.strip_prefix("demo ready on http://")?.split_once(" (admin http://")?;
            Some((address.parse().ok()?, admin.trim_end_matches(')').parse().ok()?))
        };
        let (address, admin) = process.line("the demonstration is ready", ready).await;
        process.line("the end of the guide", |line| line.contains("Ctrl-C").then_some(())).await;
        let parts: Vec<_> = process.output().lines().filter_map(Part::read).collect();
        assert_eq!(parts.len(), 4, "{}", process.output());
        Self { process, _directory: directory, address, admin, parts }
    }

    pub fn part(&self, name: &str) -> &Part {
        self.parts.iter().find(|part| part.name == name).unwrap_or_else(|| panic!("no {name} in {:?}", self.parts))
    }

    pub fn output(&self) -> String {
        self.process.output()
    }

    /// Sends Ctrl-C, and waits for the end.
    pub async fn interrupt(&mut self) {
        self.process.signal(Signal::SIGINT);
        let status = self.process.end().await;
        assert!(status.success(), "the demonstration ended with {status}:\n{}", self.process.output());
    }
}

/// What a browser sends to sign up a member.
pub fn sign_up(name: &str) -> Request {
    Request::post("/accounts/signup/", format!("name={name}&password=a+compiler+is+a+poem"))
        .with("Content-Type", "application/x-www-form-urlencoded")
        .with("Origin", "http://site.example")
}

/// What a browser sends to post a text.
pub fn post(text: &str) -> Request {
    let body = format!("--boundary\r\nContent-Disposition: form-data; name=\"text\"\r\n\r\n{text}\r\n--boundary--\r\n");
    Request::post("/posts/", body)
        .with("Content-Type", "multipart/form-data; boundary=boundary")
        .with("Origin", "http://site.example")
}

/// The cookies that an answer sets, as a browser sends them back.
pub fn cookies(reply: &Reply) -> String {
    let cookies = reply.fields.all("set-cookie").into_iter().filter_map(|cookie| cookie.split(';').next());
    cookies.collect::<Vec<_>>().join("; ")
}

/// `app demo` with the balancer on `port`, 0 for any.
pub fn demo(directory: &Path, port: u16) -> Command {
    let mut command = Command::new(built("app", "app", "APP_BIN"));
    command.args(["demo", "--port", &port.to_string(), "--admin-port", "0", "--app-ports", "0,0,0"]);
    command.arg("--data-dir").arg(directory.join("data")).arg("--evenkeel").arg(program());
    command
}

impl Part {
    /// Reads `  web1      127.0.0.1:9001   pid 4711`.
    fn read(line: &str) -> Option<Self> {
        let (before, pid) = line.split_once("  pid ")?;
        let mut words = before.split_whitespace();
        let (name, address) = (words.next()?, words.next()?);
        address.parse::<SocketAddr>().ok()?;
        Some(Self { name: name.to_owned(), pid: pid.trim().parse().ok()? })
    }

    pub fn kill(&self) {
        kill(Pid::from_raw(self.pid as i32), Signal::SIGKILL).expect("a process of ours");
    }

    pub fn is_running(&self) -> bool {
        kill(Pid::from_raw(self.pid as i32), None).is_ok()
    }

    pub async fn ended(&self) {
        eventually(&format!("{} has ended", self.name), async || !self.is_running()).await;
    }
}
