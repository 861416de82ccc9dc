//! The history of one exchange: short events with their times, recorded without allocation. The access log shows it.
//! If there are too many events, the first ones are kept.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};

use super::Exchange;
use super::refusal::Refusal;
use super::walk::Walk;
use crate::backend::Endpoint;
use crate::failure::Failure;
use crate::site::{RouteId, Site};

/// The number of events kept.
const MAX_EVENTS: usize = 16;
/// Up to this time in seconds, the microseconds fit 32 bits: 71 minutes.
const MAX_SECONDS: u64 = u32::MAX as u64 / 1_000_000 - 1;
/// Exchanges that take longer are shown with their trace.
const SLOW: Duration = Duration::from_secs(1);

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
    /// Every backend was at `max_connections`.
    Queued,
    /// A backend was chosen.
    Opened,
    Failed(Failure),
    /// The status of the head that arrived.
    Answered(u16),
    /// It went on on this route.
    Jumped(RouteId),
    Refused(Refusal),
    /// The status of a configured reply.
    Replied(u16),
    /// The whole answer was sent.
    Sent,
}

/// A trace with the names that its events refer to. As text: `0.000021 opened 127.0.0.1:9001, 0.000150 failed reset`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShownTrace<'a> {
    trace: &'a Trace,
    site: &'a Site,
    /// The endpoints of all attempts but the last one.
    former: &'a [Arc<Endpoint>],
    last: Option<&'a Arc<Endpoint>>,
}

/// An event as the access log shows it.
#[derive(Debug, Serialize)]
struct ShownEvent<'a> {
    /// Since the beginning of the exchange.
    seconds: f64,
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<&'static str>,
}

impl Trace {
    pub(super) fn new(started: Instant) -> Self {
        let begun = TraceEvent { micros: 0, what: TraceEventKind::Begun };
        Self { started, events: [begun; MAX_EVENTS], count: 1 }
    }

    #[inline]
    pub(super) fn push(&mut self, what: TraceEventKind, now: Instant) {
        if let Some(event) = self.events.get_mut(self.count as usize) {
            let after = now.saturating_duration_since(self.started);
            // Later times are not exact.
            let seconds = after.as_secs().min(MAX_SECONDS) as u32;
            *event = TraceEvent { micros: seconds * 1_000_000 + after.subsec_micros(), what };
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

impl<W: Walk> Exchange<W> {
    /// What happened. `last` is the endpoint of the last attempt.
    pub(crate) fn trace<'a>(&'a self, last: Option<&'a Arc<Endpoint>>) -> ShownTrace<'a> {
        ShownTrace { trace: &self.trace, site: &self.site, former: &self.former, last }
    }
}

impl<'a> ShownTrace<'a> {
    /// Whether the exchange was slow, or anything but one attempt whose answer was sent. `duration`: how long it took.
    pub(crate) fn is_remarkable(&self, duration: Duration) -> bool {
        use TraceEventKind::{Failed, Jumped, Queued};
        let is_remarkable = |event: &TraceEvent| matches!(event.what, Queued | Failed(_) | Jumped(_));
        duration > SLOW || self.trace.events().iter().any(is_remarkable)
    }

    /// Time in the queues of pools; `None` if it never waited there.
    pub(crate) fn queue_time(&self) -> Option<Duration> {
        let (mut total, mut queued) = (None, None);
        for event in self.trace.events() {
            if let Some(since) = queued.take() {
                *total.get_or_insert(Duration::ZERO) += event.after().saturating_sub(since);
            }
            queued = (event.what == TraceEventKind::Queued).then(|| event.after());
        }
        total
    }

    fn events(&self) -> impl Iterator<Item = ShownEvent<'a>> {
        let (site, mut endpoints) = (self.site, self.former.iter().chain(self.last));
        // The first is the beginning.
        self.trace.events().iter().skip(1).map(move |event| {
            let mut shown = ShownEvent::new(event.after());
            match event.what {
                TraceEventKind::Begun => shown.event = "begun",
                TraceEventKind::BodyBuffered => shown.event = "body-buffered",
                TraceEventKind::Waited => shown.event = "waited",
                TraceEventKind::Queued => shown.event = "queued",
                TraceEventKind::Opened => {
                    shown.event = "opened";
                    shown.backend = endpoints.next().map(|endpoint| endpoint.backend.address.as_str());
                }
                TraceEventKind::Failed(failure) => (shown.event, shown.failure) = ("failed", Some(failure.word())),
                TraceEventKind::Answered(status) => (shown.event, shown.status) = ("answered", Some(status)),
                TraceEventKind::Jumped(route) => {
                    (shown.event, shown.route) = ("jumped", Some(site.route(route).name.as_str()));
                }
                TraceEventKind::Refused(refusal) => (shown.event, shown.refusal) = ("refused", Some(refusal.reason())),
                TraceEventKind::Replied(status) => (shown.event, shown.status) = ("replied", Some(status)),
                TraceEventKind::Sent => shown.event = "sent",
            }
            shown
        })
    }
}

impl ShownEvent<'_> {
    fn new(after: Duration) -> Self {
        let seconds = after.as_micros() as f64 / 1e6;
        Self { seconds, event: "", backend: None, failure: None, status: None, route: None, refusal: None }
    }
}

impl Serialize for ShownTrace<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        for event in self.events() {
            list.serialize_element(&event)?;
        }
        list.end()
    }
}

impl fmt::Display for ShownTrace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, ShownEvent { seconds, event, backend, failure, status, route, refusal }) in
            self.events().enumerate()
        {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{seconds:.6} {event}")?;
            let name = backend.or(failure).or(route).or(refusal);
            name.map_or(Ok(()), |name| write!(f, " {name}"))?;
            status.map_or(Ok(()), |status| write!(f, " {status}"))?;
        }
        match self.trace.lost() {
            0 => Ok(()),
            lost => write!(f, " … and {lost} more"),
        }
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
