//! Streams that are over. The last of them are remembered, to tell what is still under way to them from what must not
//! come (RFC 9113 §5.1).

use std::collections::VecDeque;

/// How many streams of each kind are remembered.
pub(super) const MAX_REMEMBERED: usize = 128;

/// The streams that ended last, each in one of these lists.
#[derive(Debug, Default)]
pub(super) struct EndedStreams {
    /// Both sides have ended, or the client has reset the stream.
    ended: Recent,
    /// Reset or refused by us.
    reset: Recent,
    /// Served, and all declared content has come. The client has still to send END_STREAM.
    unended: Recent,
}

/// The last streams of a kind.
#[derive(Debug, Default)]
struct Recent {
    ids: VecDeque<u32>,
    /// The highest id that is no longer remembered.
    forgotten: u32,
}

impl EndedStreams {
    pub(super) fn add_ended(&mut self, id: u32) {
        self.ended.add(id);
    }

    pub(super) fn add_reset(&mut self, id: u32) {
        self.reset.add(id);
    }

    /// Returns the stream that has to be reset to make room for it, if any.
    pub(super) fn add_unended(&mut self, id: u32) -> Option<u32> {
        let oldest = self.unended.add(id);
        if let Some(oldest) = oldest {
            self.reset.add(oldest);
        }
        oldest
    }

    pub(super) fn has_ended(&self, id: u32) -> bool {
        self.ended.ids.contains(&id)
    }

    /// Whether what comes on a stream may have been in flight when we reset it. How the oldest ones have ended is no
    /// longer known: any of them may have been reset.
    pub(super) fn was_reset(&self, id: u32) -> bool {
        let is_forgotten = id <= self.ended.forgotten.max(self.reset.forgotten);
        self.reset.ids.contains(&id) || is_forgotten && !self.has_ended(id) && !self.is_unended(id)
    }

    pub(super) fn is_unended(&self, id: u32) -> bool {
        self.unended.ids.contains(&id)
    }

    /// Whether there are any that the client has still to end.
    pub(super) fn has_unended(&self) -> bool {
        !self.unended.ids.is_empty()
    }

    /// The client has ended a stream. Returns whether it was one of those that it still had to end.
    pub(super) fn end(&mut self, id: u32) -> bool {
        let was_unended = self.unended.take(id);
        if was_unended {
            self.ended.add(id);
        }
        was_unended
    }

    /// Forgets those that the client has still to end, to reset them.
    pub(super) fn take_unended(&mut self) -> impl Iterator<Item = u32> + use<> {
        std::mem::take(&mut self.unended.ids).into_iter()
    }

    #[cfg(test)]
    pub(super) fn capacities(&self) -> [usize; 3] {
        [&self.ended, &self.reset, &self.unended].map(|recent| recent.ids.capacity())
    }
}

impl Recent {
    /// Returns the one that is forgotten in its place, if any.
    fn add(&mut self, id: u32) -> Option<u32> {
        let oldest = if self.ids.len() == MAX_REMEMBERED { self.ids.pop_front() } else { None };
        self.forgotten = self.forgotten.max(oldest.unwrap_or(0));
        self.ids.push_back(id);
        oldest
    }

    /// Removes `id`. Returns whether it was there.
    fn take(&mut self, id: u32) -> bool {
        let at = self.ids.iter().position(|other| *other == id);
        at.and_then(|at| self.ids.remove(at)).is_some()
    }
}
