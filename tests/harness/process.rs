//! Child processes: found, watched, and never left behind.

use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::deadline::found_eventually;

/// A program that runs for as long as a test needs it. Its output goes to a file, so that it never waits for a reader.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with both its outputs in `log`.
    pub fn start(command: Command, log: &Path) -> Self {
        Self::start_with_error(command, log, open(log))
    }

    /// As [`Self::start`], with standard error somewhere else.
    pub fn start_with_error(mut command: Command, log: &Path, error: impl Into<Stdio>) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        if !command.get_envs().any(|(name, _)| name == "RUST_LOG") {
            command.env_remove("RUST_LOG");
        }
        command.stdin(Stdio::null()).stdout(open(log)).stderr(error);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Self { child, name, log: log.to_owned() }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What the program has written so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a line that `read` understands; panics when the program ends before.
    pub async fn line<T>(&mut self, what: &str, read: impl Fn(&str) -> Option<T>) -> T {
        found_eventually(what, async || {
            if let Some(found) = self.output().lines().find_map(&read) {
                return Some(found);
            }
            if let Some(status) = self.ended() {
                panic!("{} ended with {status} before {what}:\n{}", self.name, self.output());
            }
            None
        })
        .await
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.id() as i32), signal).expect("a child that was not waited for");
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of this process")
    }

    pub async fn end(&mut self) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        found_eventually(&what, async || self.ended()).await
    }
}

fn open(log: &Path) -> File {
    File::options().create(true).append(true).open(log).expect("a writable directory")
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- what {} wrote ---\n{}", self.name, self.output());
        }
    }
}

/// A directory for the files of a program, in memory where that can be: a disk that others use may need seconds until
/// something is written.
pub fn fast_directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}

/// A program of this workspace: the one that `variable` names, else the one that was built beside this test.
pub fn built(name: &str, package: &str, variable: &str) -> PathBuf {
    if let Some(path) = env::var_os(variable) {
        return path.into();
    }
    let test = env::current_exe().expect("a test has a file");
    let mut beside = test.ancestors().skip(1).take(2).map(|directory| directory.join(name));
    beside.find(|path| path.is_file()).unwrap_or_else(|| {
        panic!(
            "no program `{name}` beside this test: build it with `cargo build -p {package}` or name it in {variable}"
        )
    })
}

/// A program of the system, with what to install when it is missing.
pub fn installed(name: &str, package: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let standard = ["/usr/sbin", "/usr/bin", "/usr/local/bin"].map(PathBuf::from);
    let found = env::split_paths(&path).chain(standard).map(|directory| directory.join(name)).find(|p| p.is_file());
    found.unwrap_or_else(|| {
        panic!("no `{name}` on this machine: install it, on Debian with `apt-get install {package}`")
    })
}
