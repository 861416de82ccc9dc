//! The history of one exchange for tests: short events, recorded without allocation. If there are too many, the first
//! ones are kept.

use std::time::{Duration, Instant};

use super::refusal::Refusal;
use crate::balance::BackendIndex;
use crate::failure::Failure;

/// The number of events kept.
const MAX_EVENTS: usize = 16;

/// The events of one exchange, in the order in which they happened.
#[derive(Debug, Clone)]
pub(super) struct Trace {
    started: Instant,
    events: [TraceEvent; MAX_EVENTS],
    /// The number of all events, kept or not.
    count: u32,
}

/// An event with its time since the beginning of the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TraceEvent {
    micros: u32,
    pub what: TraceEventKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TraceEventKind {
    /// The exchange began with its route.
    Begun,
    /// The whole body was buffered.
    BodyBuffered,
    /// A wait or a subrequest ended.
    Waited,
    /// The index of the chosen backend in its pool.
    Opened(BackendIndex),
    Failed(Failure),
    /// The status of the head that arrived.
    Answered(u16),
    /// The response was discarded for a jump.
    Jumped,
    Refused(Refusal),
    /// The status of a configured reply.
    Replied(u16),
    /// The whole answer was sent.
    Sent,
}

impl Trace {
    pub(super) fn new(started: Instant) -> Self {
        let begun = TraceEvent { micros: 0, what: TraceEventKind::Begun };
        Self { started, events: [begun; MAX_EVENTS], count: 1 }
    }

    #[inline]
    pub(super) fn push(&mut self, what: TraceEventKind, now: Instant) {
        if let Some(event) = self.events.get_mut(self.count as usize) {
            // After 71 minutes, the exact time is no longer recorded.
            let micros = now.saturating_duration_since(self.started).as_micros();
            *event = TraceEvent { micros: u32::try_from(micros).unwrap_or(u32::MAX), what };
        }
        self.count = self.count.saturating_add(1);
    }

    pub(super) fn events(&self) -> &[TraceEvent] {
        self.events.get(..self.count as usize).unwrap_or(&self.events)
    }

    /// The number of events after the last kept one.
    pub(super) fn lost(&self) -> u32 {
        self.count.saturating_sub(MAX_EVENTS as u32)
    }
}

impl TraceEvent {
    /// Time since the beginning of the exchange.
    pub(super) fn after(&self) -> Duration {
        Duration::from_micros(self.micros.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_events_are_kept_and_the_others_counted() {
        let started = Instant::now();
        let mut trace = Trace::new(started);
        for status in 1..100 {
            trace.push(TraceEventKind::Answered(status), started + Duration::from_millis(status.into()));
        }
        assert_eq!((trace.events().len(), trace.lost()), (MAX_EVENTS, 84));
        assert_eq!(trace.events()[0].what, TraceEventKind::Begun);
        let last = trace.events()[MAX_EVENTS - 1];
        assert_eq!((last.what, last.after()), (TraceEventKind::Answered(15), Duration::from_millis(15)));
    }

    #[test]
    fn an_event_is_small() {
        assert!(size_of::<TraceEvent>() <= 12, "{}", size_of::<TraceEvent>());
    }
}
