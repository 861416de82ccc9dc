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
    ProcessFiles,
    /// The system has.
    SystemFiles,
    Memory,
    /// This connection failed before it was accepted (accept(2)). The next one may be accepted at once.
    Connection,
    Other,
}

impl Control {
    /// Returns the pause before the next attempt to accept. The first failure of a kind is logged. Further ones, on any
    /// socket of the process, are counted, and [`Self::catch_up`] logs their number every ten seconds. nginx and
    /// HAProxy log each of them.
    pub(crate) fn accept_failed(&self, error: &io::Error, now: Instant) -> Duration {
        let failure = AcceptFailure::of(error);
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
            Some(Errno::MFILE) => Self::ProcessFiles,
            Some(Errno::NFILE) => Self::SystemFiles,
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
            ) => Self::Connection,
            _ => Self::Other,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::ProcessFiles => "process-files",
            Self::SystemFiles => "system-files",
            Self::Memory => "memory",
            Self::Connection => "connection",
            Self::Other => "other",
        }
    }

    /// The end of the message.
    fn fix(self) -> &'static str {
        match self {
            Self::ProcessFiles => {
                "; new clients wait: raise the limit on open files (ulimit -n, in systemd LimitNOFILE) and restart, or \
                 lower max_connections"
            }
            Self::SystemFiles => "; new clients wait: raise the system's limit on open files (sysctl fs.file-max)",
            Self::Memory => "; new clients wait until the kernel has memory for their connections",
            Self::Connection | Self::Other => "",
        }
    }

    fn pause(self) -> Duration {
        if self == Self::Connection { Duration::ZERO } else { ACCEPT_PAUSE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_files_or_memory_pauses_and_a_failed_connection_does_not() {
        for (errno, word, pauses) in [
            (Errno::MFILE, "process-files", true),
            (Errno::NFILE, "system-files", true),
            (Errno::NOBUFS, "memory", true),
            (Errno::NOMEM, "memory", true),
            (Errno::INVAL, "other", true),
            (Errno::CONNABORTED, "connection", false),
            (Errno::NETUNREACH, "connection", false),
        ] {
            let failure = AcceptFailure::of(&errno.into());
            assert_eq!((failure.word(), failure.pause() == ACCEPT_PAUSE), (word, pauses), "{errno}");
        }
    }
}
