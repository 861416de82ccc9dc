//! Failures to accept a connection, of a client or of the admin API: how long to wait, and what to log.

use std::io;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::Control;
use crate::backend::repeats::SuppressedFailures;

/// Pause after a failure that concerns all connections, which wait in the backlog meanwhile. HAProxy pauses for 100 ms,
/// nginx for 500 ms (`accept_mutex_delay`).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a connection could not be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AcceptFailure {
    /// The process has as many open files as it may have.
    ProcessFdLimit,
    /// The system has as many as it may have.
    SystemFdLimit,
    Memory,
    /// This connection failed before it was accepted (accept(2)). The next one may be accepted at once.
    Aborted,
    Other,
}

impl Control {
    /// Counts a failure to accept on any socket of the process. Returns the pause before the next attempt. The first
    /// failure of a kind is logged; [`Self::catch_up`] logs the number of further ones every ten seconds. nginx and
    /// HAProxy log each of them.
    pub(crate) fn accept_failed(&self, error: &io::Error, now: Instant) -> Duration {
        let failure = AcceptFailure::of(error);
        self.metrics.accept_failed(failure.word());
        if self.accept_failures.note(failure.word(), now) {
            tracing::warn!(failure = failure.word(), "a connection could not be accepted: {error}{}", failure.fix());
        } else {
            tracing::debug!(failure = failure.word(), "another connection could not be accepted: {error}");
        }
        failure.pause()
    }

    pub(super) fn log_suppressed_accept_failures(&self, now: Instant) {
        for SuppressedFailures { word, count, within } in self.accept_failures.take(now) {
            tracing::warn!(
                failure = word,
                more = count,
                "… and accepting connections failed {count} more times in {} s",
                within.as_secs(),
            );
        }
    }
}

impl AcceptFailure {
    fn of(error: &io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(Errno::MFILE) => Self::ProcessFdLimit,
            Some(Errno::NFILE) => Self::SystemFdLimit,
            Some(Errno::NOBUFS | Errno::NOMEM) => Self::Memory,
            Some(
                Errno::CONNABORTED
                | Errno::INTR
                | Errno::PERM
                | Errno::PROTO
                | Errno::NOPROTOOPT
                | Errno::NETDOWN
                | Errno::NETUNREACH
                | Errno::NONET
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH,
            ) => Self::Aborted,
            _ => Self::Other,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::ProcessFdLimit => "process-fd-limit",
            Self::SystemFdLimit => "system-fd-limit",
            Self::Memory => "memory",
            Self::Aborted => "aborted",
            Self::Other => "other",
        }
    }

    /// The end of the message.
    fn fix(self) -> &'static str {
        match self {
            Self::ProcessFdLimit => {
                "; new clients wait: raise the limit on open files (ulimit -n, in systemd LimitNOFILE) and restart, or \
                 lower max_connections"
            }
            Self::SystemFdLimit => "; new clients wait: raise the system's limit on open files (sysctl fs.file-max)",
            Self::Memory => "; new clients wait until the kernel has memory for their connections",
            Self::Aborted | Self::Other => "",
        }
    }

    fn pause(self) -> Duration {
        if self == Self::Aborted { Duration::ZERO } else { ACCEPT_PAUSE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::ACCEPT_FAILURES;

    #[test]
    fn a_lack_of_files_or_memory_pauses_and_a_failed_connection_does_not() {
        for (errno, word, pauses) in [
            (Errno::MFILE, "process-fd-limit", true),
            (Errno::NFILE, "system-fd-limit", true),
            (Errno::NOBUFS, "memory", true),
            (Errno::NOMEM, "memory", true),
            (Errno::INVAL, "other", true),
            (Errno::CONNABORTED, "aborted", false),
            (Errno::NETUNREACH, "aborted", false),
        ] {
            let failure = AcceptFailure::of(&errno.into());
            assert!(ACCEPT_FAILURES.contains(&failure.word()), "{errno} is counted");
            assert_eq!((failure.word(), failure.pause() == ACCEPT_PAUSE), (word, pauses), "{errno}");
        }
    }
}
