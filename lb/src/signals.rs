//! Signals, with the same meanings as in nginx.

use std::convert::Infallible;

use anyhow::Context;
use evenkeel::log::Log;
use evenkeel::server::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// SIGRTMIN to SIGRTMAX: the C library reserves the ones before.
const REAL_TIME_SIGNALS: std::ops::RangeInclusive<i32> = 34..=64;
/// Limit on signals that wait until the balancer runs.
const MAX_WAITING: usize = 16;

/// SIGTERM, SIGINT and SIGQUIT stop, SIGHUP reloads, SIGUSR1 reopens the logs.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
    commands: Sender<Command>,
}

impl Signals {
    /// Starts to receive signals. Returns the channel of commands for the balancer.
    pub fn new() -> anyhow::Result<(Self, Receiver<Command>)> {
        let on = |kind| signal(kind).context("signals cannot be received");
        let (commands, receiver) = channel(MAX_WAITING);
        let signals = Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            quit: on(SignalKind::quit())?,
            hangup: on(SignalKind::hangup())?,
            user1: on(SignalKind::user_defined1())?,
            user2: on(SignalKind::user_defined2())?,
            commands,
        };
        ignore_other_signals();
        Ok((signals, receiver))
    }

    /// Passes each signal to the balancer as a command.
    pub async fn translate(mut self, log: &Log) -> Infallible {
        loop {
            let command = tokio::select! {
                _ = self.terminate.recv() => Command::Stop,
                _ = self.interrupt.recv() => Command::Stop,
                _ = self.quit.recv() => Command::Stop,
                _ = self.hangup.recv() => Command::Reload,
                _ = self.user1.recv() => {
                    log.reopen();
                    Command::ReopenLogs
                }
                _ = self.user2.recv() => {
                    refuse_upgrade();
                    continue;
                }
            };
            // Fails only if the balancer is about to end.
            let _ = self.commands.send(command).await;
        }
    }
}

/// nginx starts its new program on this signal.
fn refuse_upgrade() {
    tracing::warn!(
        "SIGUSR2 is ignored: upgrading a running process is not implemented yet; stop it and start the new one"
    );
}

/// Ignores signals without a meaning here that would end the process by default, with a log line. Those that report a
/// crash, and SIGXCPU, keep their effect.
fn ignore_other_signals() {
    use rustix::process::Signal;
    // The process has hit RLIMIT_FSIZE: the write fails, and the writer reports it.
    if let Err(e) = signal(SignalKind::from_raw(Signal::XFSZ.as_raw())) {
        tracing::debug!("SIGXFSZ cannot be ignored: {e}");
    }
    let named = [
        ("SIGALRM", Signal::ALARM),
        ("SIGVTALRM", Signal::VTALARM),
        ("SIGPROF", Signal::PROF),
        ("SIGIO", Signal::IO),
        ("SIGSTKFLT", Signal::STKFLT),
        ("SIGPWR", Signal::POWER),
    ];
    let named = named.into_iter().map(|(name, signal)| (name.to_owned(), signal.as_raw()));
    let real_time = REAL_TIME_SIGNALS.map(|number| (format!("real-time signal {number}"), number));
    for (name, number) in named.chain(real_time) {
        let mut signal = match signal(SignalKind::from_raw(number)) {
            Ok(signal) => signal,
            Err(e) => {
                tracing::debug!("{name} cannot be ignored: {e}");
                continue;
            }
        };
        tokio::spawn(async move {
            while signal.recv().await.is_some() {
                tracing::warn!(
                    "{name} is ignored: it has no meaning here (SIGTERM stops, SIGHUP reloads, SIGUSR1 opens the \
                     logs again)"
                );
            }
        });
    }
}
