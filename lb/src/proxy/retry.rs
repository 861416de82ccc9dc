//! Whether a request that failed on one backend may go to another (RFC 9110, 9.2.2). A refused connection moves on
//! whatever the method: nothing was sent. What may have reached a backend is repeated only if doing it twice is
//! doing it once, and only while its body is still at hand.

use super::refusal::Refusal;
use crate::metrics::FailureKind;

/// How an attempt on a backend failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection was made.
    Connect,
    /// No connection was made in time.
    ConnectTimeout,
    /// No connection could be made for want of files, ports or memory here: no fault of the backend.
    OutOfResources,
    /// A kept connection turned out to be closed before anything came back: no fault of the backend.
    Stale,
    /// The connection broke, or what came was no HTTP, before the response's head.
    Broken,
    /// The response's head did not come in time.
    Timeout,
    /// The response broke off behind its head.
    Truncated,
    /// The response stalled behind its head.
    Stalled,
}

/// What is known of the request when it has to be decided.
#[derive(Debug, Clone, Copy)]
pub struct Replay {
    /// RFC 9110, 9.2.2.
    pub is_idempotent: bool,
    /// Nothing of the body was taken from the client yet, or all that was is kept.
    pub has_body: bool,
}

impl Failure {
    /// How the failure counts against the backend; `None` when it does not.
    pub fn kind(self) -> Option<FailureKind> {
        match self {
            Self::Connect | Self::ConnectTimeout => Some(FailureKind::Connect),
            Self::Broken | Self::Truncated => Some(FailureKind::Broken),
            Self::Timeout | Self::Stalled => Some(FailureKind::Timeout),
            Self::Stale | Self::OutOfResources => None,
        }
    }

    /// What the client is told if nothing more can be tried.
    pub fn refusal(self) -> Refusal {
        match self {
            Self::ConnectTimeout | Self::Timeout | Self::Stalled => Refusal::BackendTimeout,
            Self::OutOfResources => Refusal::NoBackend,
            Self::Connect | Self::Stale | Self::Broken | Self::Truncated => Refusal::BackendFailed,
        }
    }

    /// Whether the request may be sent again.
    pub fn allows_retry(self, replay: Replay) -> bool {
        match self {
            Self::Connect | Self::ConnectTimeout => replay.has_body,
            Self::Stale | Self::Broken | Self::Timeout => replay.is_idempotent && replay.has_body,
            Self::Truncated | Self::Stalled | Self::OutOfResources => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Failure::*;
    use super::*;

    #[test]
    fn safe_failures_are_repeated_and_no_others() {
        for (failure, is_idempotent, has_body, expected) in [
            (Connect, false, true, true),
            (Connect, true, true, true),
            (ConnectTimeout, false, true, true),
            (Connect, true, false, false),
            (Stale, true, true, true),
            (Stale, false, true, false),
            (Broken, true, true, true),
            (Broken, true, false, false),
            (Broken, false, true, false),
            (Timeout, true, true, true),
            (Timeout, false, true, false),
            (Truncated, true, true, false),
            (Stalled, true, true, false),
            (OutOfResources, true, true, false),
        ] {
            let replay = Replay { is_idempotent, has_body };
            assert_eq!(failure.allows_retry(replay), expected, "{failure:?} {replay:?}");
        }
    }

    #[test]
    fn what_is_not_the_backends_fault_does_not_count_against_it() {
        assert_eq!((Stale.kind(), OutOfResources.kind()), (None, None));
        assert_eq!(OutOfResources.refusal(), Refusal::NoBackend);
    }
}
