//! `app demo` as users run it, with a mock balancer: checks that everything is started, listed and stopped. The `tests`
//! package tests it with the real balancer.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const APP: &str = env!("CARGO_BIN_EXE_app");

struct Demo {
    process: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    _folder: TempDir,
}

impl Demo {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut process = command(folder.path(), "0").stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines, _folder: folder }
    }

    /// Reads until a line contains `text`. Returns what was read.
    fn says(&mut self, text: &str) -> String {
        let mut seen = String::new();
        for line in self.lines.by_ref() {
            seen = seen + &line.unwrap() + "\n";
            if seen.contains(text) {
                return seen;
            }
        }
        panic!("{text:?} is missing in: {seen}");
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().try_into().unwrap())
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Also kills its children.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The demonstration on free ports, with a mock balancer that only reports "ready".
fn command(folder: &Path, port: &str) -> Command {
    let balancer = folder.join("evenkeel");
    let script = format!(
        "#!/bin/sh\naddress=$(sed -n '/admin/,$ s/^address = \"\\(.*\\)\"/\\1/p' \"$3\")\n\
         exec '{APP}' serve --name balancer --shutdown-delay 0s --listen \"$address\" --data-dir '{}'\n",
        folder.join("balancer").display()
    );
    std::fs::write(&balancer, script).unwrap();
    std::fs::set_permissions(&balancer, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(APP);
    command.arg("demo").args(["--port", port, "--admin-port", "0", "--app-ports", "0,0,0"]);
    command.arg("--evenkeel").arg(balancer).arg("--data-dir").arg(folder.join("data"));
    command
}

/// The process ids listed in the guide: of the balancer and the three instances.
fn pids(guide: &str) -> Vec<Pid> {
    let pids: Vec<_> = guide
        .lines()
        .filter_map(|line| line.split_once("  pid "))
        .map(|(_, pid)| Pid::from_raw(pid.trim().parse().unwrap()))
        .collect();
    assert_eq!(pids.len(), 4, "{guide}");
    pids
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_gone(pid: Pid) -> bool {
    // A process that has ended but was not collected by its parent counts as gone.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
}

#[test]
fn demo_starts_all_processes_reports_a_death_and_stops_all() {
    let mut demo = Demo::start();
    let guide = demo.says("Ctrl-C stops everything");
    assert!(guide.starts_with("demo ready on http://127.0.0.1:"), "{guide}");
    let pids = pids(&guide);
    assert!(guide.contains(&format!("kill -9 {}", pids[1])), "{guide}");

    kill(pids[1], Signal::SIGKILL).unwrap();
    let report = demo.says(" serve ");
    assert!(report.contains("web1 was ended by SIGKILL"), "{report}");

    kill(demo.pid(), Signal::SIGTERM).unwrap();
    assert!(demo.process.wait().unwrap().success());
    assert!(pids.into_iter().all(is_gone));
}

#[test]
fn a_killed_demo_leaves_no_process_behind() {
    let mut demo = Demo::start();
    let pids = pids(&demo.says("Ctrl-C stops everything"));
    kill(demo.pid(), Signal::SIGKILL).unwrap();
    eventually("the end of the children", || pids.iter().all(|&pid| is_gone(pid)));
}

#[test]
fn demo_fails_when_the_balancer_ends() {
    let mut demo = Demo::start();
    let pids = pids(&demo.says("Ctrl-C stops everything"));
    kill(pids[0], Signal::SIGKILL).unwrap();
    assert_eq!(demo.process.wait().unwrap().code(), Some(1));
    assert!(pids.into_iter().all(is_gone));
}

#[test]
fn a_port_in_use_fails_the_demo_before_anything_starts() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let folder = tempfile::tempdir().unwrap();
    let output = command(folder.path(), &port).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains(&format!("port {port} is taken")) && error.contains("--port"), "{error}");
    assert!(!folder.path().join("data").exists());
}

#[test]
fn a_balancer_that_fails_at_once_is_reported_with_its_last_lines() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(folder.path(), "0");
    std::fs::write(folder.path().join("evenkeel"), "#!/bin/sh\necho no such setting >&2\nexit 3\n").unwrap();
    let output = command.output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("failed with exit code 3") && error.contains("no such setting"), "{error}");
}
