//! Bugs, kept to check that the simulation can find them. Nearly all existed once in the code, and a unit test can plant
//! them again on its thread. In production nothing of them is left: the check is a constant.
//!
//! A switch at run time needs only one build for all bugs; `--cfg` would need one build per bug, and nobody would run
//! them.

/// A former bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A backend connection was reused although it still owed bytes of the previous request.
    PoisonedConnection,
    /// While the client did not read its response, its request was not forwarded either.
    HalfDuplex,
    /// A client with a slow upload was counted as a backend that does not respond.
    BlamedBackend,
    /// A backend was chosen from the pool as it was when the exchange began.
    #[cfg(test)]
    StalePool,
    /// Bytes of a response that TLS had buffered counted as sent.
    UnflushedTls,
    /// Responses cut off by the shutdown timeout ended like complete ones.
    CleanCutOff,
    /// An incomplete response ended with a reset, which discarded earlier responses that the client had not read yet.
    TakenBack,
    /// The wait for a backend's 100 counted as the client's: with `continue_timeout` longer than `send_timeout`, the
    /// client was cut off as soon as it was asked for its content.
    ChargedContinue,
    /// A reset reported to a write was forgotten. The next read found the end of the connection, and an incomplete
    /// response counted as complete.
    ForgottenReset,
    /// A connection counted as idle while the kernel still held bytes for its client. It was closed, what the client
    /// sent next caused a reset, and the rest of the response was lost.
    HeldIsIdle,
    /// A lingering close under TLS ended when the client closed its side, before the close_notify alert was sent.
    LostAlert,
    /// The wait for a flush went on when the flush had ended: a backend that closed because of a slow client was
    /// blamed.
    StaleWait,
    /// A connection that became free woke nobody who waited for it.
    LostWakeup,
}

impl Bug {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 13] = [
        Self::PoisonedConnection,
        Self::HalfDuplex,
        Self::BlamedBackend,
        Self::StalePool,
        Self::UnflushedTls,
        Self::CleanCutOff,
        Self::TakenBack,
        Self::ChargedContinue,
        Self::ForgottenReset,
        Self::HeldIsIdle,
        Self::LostAlert,
        Self::StaleWait,
        Self::LostWakeup,
    ];

    /// Whether this bug is planted.
    #[cfg(not(test))]
    #[inline(always)]
    pub(crate) const fn is_planted(self) -> bool {
        false
    }

    #[cfg(test)]
    pub(crate) fn is_planted(self) -> bool {
        PLANTED.get() == Some(self)
    }
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug on this thread, replacing the previous one.
#[cfg(test)]
pub(crate) fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}
