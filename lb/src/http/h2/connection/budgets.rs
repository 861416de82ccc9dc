//! How much a client may do that costs more than it is worth, before its connection ends: lose streams, ask for too
//! many of them, and send frames that bring nothing. Ordinary use fills each budget again.

use super::super::frame::{Code, FrameError};

/// How many streams may be lost to errors of the client, where no backend answers one ("MadeYouReset", CVE-2025-8671).
/// A head that is too large counts as one, since it costs more than others that are refused.
pub(super) const MAX_LOST: u32 = 100;
/// How many streams the client may cancel before their responses begin ("rapid reset", CVE-2023-44487). A browser
/// cancels all that a page waits for when its user goes on to the next one. As nghttp2.
pub(super) const MAX_CANCELLED: u32 = 1_000;
/// How many cancelled ones are forgiven with each one that was lost to an error.
const CANCELLED_FORGIVEN: u32 = 3;
/// How many requests beyond [`super::MAX_STREAMS`] may be refused in a row. A client that knows the limit asks for
/// none.
pub(super) const MAX_REFUSED: u32 = 1_000;
/// How many frames that bring nothing may come: PRIORITY, frames of kinds that nobody knows, content without any,
/// acknowledgements, resets of what is over (CVE-2019-9513, -9518), and those that open windows. So many at first and
/// for each stream that the client opens, and so many for each frame of content that it is sent, which it may open
/// windows for.
pub(super) const IDLE_FRAMES_OF_STREAM: u32 = 100;
pub(super) const IDLE_FRAMES_OF_CONTENT: u32 = 20;
/// What may be left of them.
pub(super) const MAX_IDLE_FRAMES: u32 = 10_000;

/// How much of each is left.
#[derive(Debug)]
pub(super) struct Budgets {
    losses: u32,
    cancelled: u32,
    refusals: u32,
    idle_frames: u32,
}

impl Default for Budgets {
    fn default() -> Self {
        let (losses, cancelled) = (MAX_LOST, MAX_CANCELLED);
        Self { losses, cancelled, refusals: MAX_REFUSED, idle_frames: IDLE_FRAMES_OF_STREAM }
    }
}

impl Budgets {
    /// A stream was lost to an error of the client.
    pub(super) fn lose(&mut self) -> Result<(), FrameError> {
        use_up(&mut self.losses, "too many streams that end by errors")
    }

    /// The client has cancelled a stream before its response began.
    pub(super) fn cancel(&mut self) -> Result<(), FrameError> {
        use_up(&mut self.cancelled, "too many streams that are cancelled")
    }

    /// Forgives `count` lost streams, and three times as many cancelled ones: after each answer of a backend, and as time
    /// passes.
    pub(super) fn forgive(&mut self, count: u32) {
        self.losses = self.losses.saturating_add(count).min(MAX_LOST);
        let cancelled = count.saturating_mul(CANCELLED_FORGIVEN);
        self.cancelled = self.cancelled.saturating_add(cancelled).min(MAX_CANCELLED);
    }

    /// A request beyond the limit was refused.
    pub(super) fn refuse(&mut self) -> Result<(), FrameError> {
        use_up(&mut self.refusals, "too many requests beyond the limit")
    }

    /// A frame came that brings nothing.
    pub(super) fn idle_frame(&mut self) -> Result<(), FrameError> {
        use_up(&mut self.idle_frames, "too many frames that bring nothing")
    }

    /// The client has opened a stream.
    pub(super) fn stream_opened(&mut self) {
        self.refusals = MAX_REFUSED;
        self.allow_idle(IDLE_FRAMES_OF_STREAM);
    }

    /// The client is sent a frame of content.
    pub(super) fn content_sent(&mut self) {
        self.allow_idle(IDLE_FRAMES_OF_CONTENT);
    }

    fn allow_idle(&mut self, more: u32) {
        self.idle_frames = (self.idle_frames + more).min(MAX_IDLE_FRAMES);
    }

    #[cfg(test)]
    pub(super) fn losses(&mut self) -> &mut u32 {
        &mut self.losses
    }
}

fn use_up(budget: &mut u32, why: &'static str) -> Result<(), FrameError> {
    *budget = budget.checked_sub(1).ok_or(FrameError::Connection(Code::EnhanceYourCalm, why))?;
    Ok(())
}
