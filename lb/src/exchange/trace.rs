//! What happened to one exchange, for tests to look at afterwards: short events, kept without allocation. An exchange that
//! is retried more often than they suffice for keeps the first ones.

use std::time::{Duration, Instant};

use super::refusal::Refusal;
use crate::balance::BackendIndex;
use crate::failure::Failure;

/// How many events are kept.
const MAX_EVENTS: usize = 16;

/// The events of one exchange, in the order in which they happened.
#[derive(Debug, Clone)]
pub(super) struct Trace {
    started: Instant,
    events: [TraceEvent; MAX_EVENTS],
    /// Of all that happened, whether kept or not.
    count: u32,
}

/// One event, and how long after the beginning of the exchange it happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TraceEvent {
    micros: u32,
    pub what: TraceEventKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TraceEventKind {
    /// The exchange began: its route is known.
    Begun,
    /// The body was read ahead.
    Held,
    /// A wait ended, or an answer to a question came.
    Waited,
    /// The position of the chosen backend in its pool.
    Opened(BackendIndex),
    Failed(Failure),
    /// The status of the head that came.
    Answered(u16),
    /// The answer was thrown away, and the exchange goes on somewhere else.
    Replaced,
    Refused(Refusal),
    /// The status of an answer that the operator wrote.
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
            // Beyond 71 minutes it is only known to be later.
            let micros = now.saturating_duration_since(self.started).as_micros();
            *event = TraceEvent { micros: u32::try_from(micros).unwrap_or(u32::MAX), what };
        }
        self.count = self.count.saturating_add(1);
    }

    pub(super) fn events(&self) -> &[TraceEvent] {
        self.events.get(..self.count as usize).unwrap_or(&self.events)
    }

    /// How many events happened after the last one that was kept.
    pub(super) fn lost(&self) -> u32 {
        self.count.saturating_sub(MAX_EVENTS as u32)
    }
}

impl TraceEvent {
    /// After the beginning of the exchange.
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
