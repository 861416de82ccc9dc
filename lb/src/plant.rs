//! Old bugs, kept so that the simulation can be held to finding them: each of these places once was wrong, and is wrong
//! again while a unit test has planted the bug on its thread. In production nothing is left of them: the question is a
//! constant.
//!
//! A switch at run time needs one build for all of them; `--cfg` would need a build for each, and nobody would run it.

/// A bug that there was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A backend's connection was used again though it was still owed bytes of the request before.
    PoisonedConnection,
    /// While the client took nothing of its response, nothing of its request moved.
    HalfDuplex,
    /// A client that was slow with its upload was counted as a backend that did not respond.
    BlamedBackend,
    /// A choice was made from the pool as it was when the exchange began.
    #[cfg(test)]
    StalePool,
    /// What TLS held back of a response was taken for sent.
    UnflushedTls,
    /// Responses that the end of the time to stop cut off ended as whole ones do.
    CleanCutOff,
    /// A response that broke off ended by a reset, which took back what the client had still to read of those before it.
    TakenBack,
    /// The wait for a backend's 100 was held against the client: with `continue_timeout` longer than `send_timeout`, the
    /// client was cut off as soon as it was to be asked for its content.
    ChargedContinue,
    /// A reset that a write was told of was forgotten. The read found the end behind it, and took a response that broke
    /// off for a whole one.
    ForgottenReset,
    /// A lingering close under TLS ended with the client's side, before the closing alert was sent.
    LostAlert,
}

impl Bug {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 10] = [
        Self::PoisonedConnection,
        Self::HalfDuplex,
        Self::BlamedBackend,
        Self::StalePool,
        Self::UnflushedTls,
        Self::CleanCutOff,
        Self::TakenBack,
        Self::ChargedContinue,
        Self::ForgottenReset,
        Self::LostAlert,
    ];

    /// Whether the bug is to be there.
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

/// Plants a bug on this thread, in place of the one before.
#[cfg(test)]
pub(crate) fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}
