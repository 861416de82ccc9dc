//! A child process of the demonstration, which ends with it.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context;
use nix::sys::{prctl, signal};
use nix::unistd::{Pid, getppid};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{ChildStdout, Command};

use super::{Duration, Instant, timeout, timeout_at};

pub struct Child {
    process: tokio::process::Child,
    stdout: Option<BufReader<ChildStdout>>,
    pid: u32,
    log: PathBuf,
}

/// What happens to a child's standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speech {
    /// The demonstration waits for its first line.
    Awaited,
    /// It goes to the log.
    Logged,
}

impl Child {
    /// Starts `program`, with a new log file `log`.
    pub fn spawn(program: &Path, arguments: &[OsString], log: &Path, speech: Speech) -> anyhow::Result<Self> {
        let context = || format!("cannot start {}", program.display());
        let errors = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let output = match speech {
            Speech::Awaited => Stdio::piped(),
            Speech::Logged => errors.try_clone().with_context(context)?.into(),
        };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(output).stderr(errors).kill_on_drop(true);
        // In a process group of its own: Ctrl-C reaches only this process, which then stops the others in order.
        command.process_group(0);
        let parent = Pid::this();
        #[expect(unsafe_code, reason = "the standard library has no safe call for it")]
        // SAFETY: runs in the child between fork and exec, where only calls that are safe in signal handlers are
        // allowed; both calls are bare system calls, and neither allocates nor locks.
        unsafe {
            command.pre_exec(move || {
                // As on Ctrl-C: the parent, which would stop it in order, is gone.
                prctl::set_pdeathsig(signal::Signal::SIGINT)?;
                // If the parent was killed before the line above, no signal will arrive.
                if getppid() == parent { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
            });
        }
        let mut process = command.spawn().with_context(context)?;
        let pid = process.id().with_context(context)?;
        let stdout = process.stdout.take().map(BufReader::new);
        Ok(Self { process, stdout, pid, log: log.to_owned() })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The first line of standard output. The rest is read and dropped.
    pub async fn first_line(&mut self, deadline: Instant) -> anyhow::Result<String> {
        let mut stdout = self.stdout.take().context("its first line was read already")?;
        let mut line = String::new();
        let read = timeout_at(deadline, stdout.read_line(&mut line)).await;
        tokio::spawn(forget(stdout));
        match read {
            Err(_) => anyhow::bail!("it said nothing in time{}", self.last_words()),
            Ok(Ok(count)) if count > 0 => Ok(line.trim_end().to_owned()),
            Ok(_) => anyhow::bail!("it {}{}", self.ended().await, self.last_words()),
        }
    }

    /// Waits until it ends. Returns how, as a verb.
    pub async fn ended(&mut self) -> String {
        match self.process.wait().await {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(0), _) => "ended".to_owned(),
                (Some(code), _) => format!("failed with exit code {code}"),
                (None, number) => {
                    let name = number.and_then(|number| signal::Signal::try_from(number).ok());
                    format!("was ended by {}", name.map_or("a signal", signal::Signal::as_str))
                }
            },
            Err(error) => format!("was lost sight of: {error}"),
        }
    }

    /// The end of its log, for a message about its end.
    pub fn last_words(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().rev().take(5).collect();
        let lines: String = lines.into_iter().rev().map(|line| format!("\n  {line}")).collect();
        if lines.is_empty() { String::new() } else { format!(". The end of {}:{lines}", self.log.display()) }
    }

    /// Sends `signal`, and kills it after `retry`.
    pub async fn stop(&mut self, signal: signal::Signal, retry: Duration) {
        self.send(signal);
        if timeout(retry, self.process.wait()).await.is_err() {
            eprintln!("{} did not stop in time and is ended", self.log.display());
            self.kill();
            let _ = self.process.wait().await;
        }
    }

    pub fn kill(&mut self) {
        self.send(signal::Signal::SIGKILL);
    }

    fn send(&self, what: signal::Signal) {
        // Its id cannot be reused by another process before it has been waited for.
        let pid = self.process.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid {
            let _ = signal::kill(Pid::from_raw(pid), what);
        }
    }
}

/// Keeps the pipe from filling up.
async fn forget(mut stdout: BufReader<ChildStdout>) {
    let mut buffer = [0; 1024];
    while matches!(stdout.read(&mut buffer).await, Ok(1..)) {}
}
