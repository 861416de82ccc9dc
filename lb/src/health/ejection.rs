//! Ejection of backends on which real traffic fails (Envoy: outlier detection). The ejection time grows with each
//! ejection. It starts again at `base_time` once the backend was not ejected for as long as the last ejection lasted,
//! and has answered in that time: without an answer it may only have had too little traffic to be ejected. Successful
//! probes end an ejection early.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::config::EjectionConfig;

/// The number of current ejections of a pool, so that no thread has to ask every backend.
#[derive(Debug, Default)]
pub(crate) struct Ejections {
    begun: AtomicU64,
    under_way: AtomicUsize,
}

/// Permission for one ejection, counted until dropped.
#[derive(Debug)]
pub struct EjectionPermit(Arc<Ejections>);

#[derive(Debug, Default)]
pub(crate) struct Ejection {
    /// Recent ejections, by which the ejection time is multiplied.
    times: u32,
    /// The current ejection, or the last one.
    last: Option<Span>,
    under_way: Option<EjectionPermit>,
    /// Probes in a row that succeeded and began after the ejection.
    good_probes: u32,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    from: Instant,
    until: Instant,
    duration: Duration,
}

impl Ejections {
    /// Permits one more ejection, unless `max` are current.
    pub(crate) fn try_acquire(self: &Arc<Self>, max: usize) -> Option<EjectionPermit> {
        let more = |count| (count < max).then_some(count + 1);
        self.under_way.try_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(EjectionPermit(Arc::clone(self)))
    }

    pub(crate) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Acquire)
    }

    /// Call this once the ejection is visible to other threads.
    pub(crate) fn record_begun(&self) {
        self.begun.fetch_add(1, Ordering::AcqRel);
    }

    /// Ejections since the start. A list of candidates that was made at another number may contain ejected ones.
    pub(crate) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }
}

impl Drop for EjectionPermit {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Ejection {
    /// Begins an ejection and returns its duration. `None` if the backend is ejected already. `has_answered_since`
    /// tells whether the backend has answered a request since a time.
    pub(crate) fn start(
        &mut self,
        permit: EjectionPermit,
        rules: &EjectionConfig,
        now: Instant,
        has_answered_since: impl Fn(Instant) -> bool,
    ) -> Option<Duration> {
        if self.remaining(now).is_some() {
            return None;
        }
        let has_behaved = |last: Span| now >= last.until + last.duration && has_answered_since(last.from);
        if self.last.is_some_and(has_behaved) {
            self.times = 0;
        }
        self.times = self.times.saturating_add(1);
        let duration = rules.base_time.saturating_mul(self.times).min(rules.max_time);
        self.last = Some(Span { from: now, until: now + duration, duration });
        self.under_way = Some(permit);
        self.good_probes = 0;
        Some(duration)
    }

    pub(crate) fn remaining(&self, now: Instant) -> Option<Duration> {
        let until = self.last.filter(|_| self.under_way.is_some())?.until;
        until.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// Takes a probe's result. Returns true if it ends the ejection, because `rise` consecutive probes that began after
    /// it have succeeded. The next ejection lasts as long as if this one had not been shortened.
    pub(crate) fn probed(&mut self, at: Instant, succeeded: bool, rise: u32) -> bool {
        if self.under_way.is_none() || self.last.is_some_and(|last| at < last.from) {
            return false;
        }
        self.good_probes = if succeeded { self.good_probes + 1 } else { 0 };
        self.good_probes >= rise && self.end()
    }

    /// Ends an ejection whose time is over. Returns true once for each ejection.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        self.remaining(now).is_none() && self.end()
    }

    /// Ends an ejection early; true if one was under way.
    pub(crate) fn end(&mut self) -> bool {
        self.under_way.take().is_some()
    }
}

/// How many of `members` may be ejected at once: the percentage, but at least one of two or more. A single one is never
/// ejected, because that would only replace its errors by ours.
pub(crate) fn most_ejected(members: usize, max_percent: u8) -> usize {
    let share = members * usize::from(max_percent) / 100;
    match (members, max_percent) {
        (0 | 1, _) | (_, 0) => 0,
        _ => share.max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: EjectionConfig = EjectionConfig {
        consecutive_failures: 5,
        base_time: Duration::from_secs(10),
        max_time: Duration::from_secs(25),
        max_percent: 50,
        statuses: Vec::new(),
    };

    fn permit() -> EjectionPermit {
        Arc::new(Ejections::default()).try_acquire(1).expect("nobody is ejected")
    }

    #[test]
    fn ejections_stay_within_the_limit() {
        let ejections = Arc::new(Ejections::default());
        assert!(ejections.try_acquire(0).is_none());
        let first = ejections.try_acquire(2).expect("room");
        let _second = ejections.try_acquire(2).expect("room");
        assert!(ejections.try_acquire(2).is_none());
        drop(first);
        assert_eq!(ejections.under_way(), 1);
        let mut ejection = Ejection::default();
        let now = Instant::now();
        ejection.start(ejections.try_acquire(2).expect("room"), &RULES, now, |_| true);
        assert_eq!(ejections.under_way(), 2);
        assert!(ejection.expire(now + RULES.base_time));
        assert_eq!(ejections.under_way(), 1);
    }

    #[test]
    fn ejections_are_counted() {
        let ejections = Arc::new(Ejections::default());
        assert_eq!(ejections.begun(), 0);
        for begun in 1..=3 {
            let permit = ejections.try_acquire(1).expect("room");
            ejections.record_begun();
            drop(permit);
            assert_eq!(ejections.begun(), begun);
        }
    }

    #[test]
    fn ejection_time_grows_to_its_limit_and_recovers() {
        let mut ejection = Ejection::default();
        let mut now = Instant::now();
        for expected in [10, 20, 25, 25] {
            let duration = ejection.start(permit(), &RULES, now, |_| true).expect("not ejected");
            assert_eq!(duration, Duration::from_secs(expected));
            now += duration;
            assert_eq!(ejection.remaining(now), None);
        }
        now += Duration::from_secs(25);
        assert_eq!(ejection.start(permit(), &RULES, now, |_| true), Some(Duration::from_secs(10)));
    }

    // An address that refuses, asked seldom, was ejected for the shortest time again and again.
    #[test]
    fn ejection_time_grows_for_a_dead_backend_however_rarely_it_is_tried() {
        let mut ejection = Ejection::default();
        let start = Instant::now();
        for (hour, expected) in [(0, 10), (1, 20), (2, 25), (3, 25)] {
            let now = start + Duration::from_secs(hour * 3600);
            let answers_nobody = |since| {
                assert!(since < now);
                false
            };
            assert_eq!(ejection.start(permit(), &RULES, now, answers_nobody), Some(Duration::from_secs(expected)));
        }
        let now = start + Duration::from_secs(4 * 3600);
        assert_eq!(ejection.start(permit(), &RULES, now, |_| true), Some(Duration::from_secs(10)));
    }

    #[test]
    fn an_ejection_does_not_start_twice() {
        let mut ejection = Ejection::default();
        let now = Instant::now();
        assert!(ejection.start(permit(), &RULES, now, |_| true).is_some());
        assert_eq!(ejection.start(permit(), &RULES, now + Duration::from_secs(9), |_| true), None);
        assert_eq!(ejection.remaining(now + Duration::from_secs(9)), Some(Duration::from_secs(1)));
    }

    #[test]
    fn consecutive_good_probes_end_an_ejection_early_and_the_next_still_grows() {
        let mut ejection = Ejection::default();
        let start = Instant::now();
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        ejection.start(permit(), &RULES, after(10), |_| true);
        assert!(!ejection.probed(after(5), true, 1), "it began before the ejection");
        assert!(!ejection.probed(after(10), true, 2), "one of two");
        assert!(!ejection.probed(after(30), false, 2));
        assert!(!ejection.probed(after(40), true, 2));
        assert!(ejection.remaining(after(50)).is_some());
        assert!(ejection.probed(after(50), true, 2));
        assert_eq!(ejection.remaining(after(50)), None);
        assert!(!ejection.expire(after(60_000)), "it is over already");
        // Behaving for less than the ten seconds that follow the ten it was to last does not count as recovery.
        assert_eq!(ejection.start(permit(), &RULES, after(19_000), |_| true), Some(Duration::from_secs(20)));
    }

    #[test]
    fn a_probe_that_begins_with_the_ejection_counts() {
        let mut ejection = Ejection::default();
        let now = Instant::now();
        ejection.start(permit(), &RULES, now, |_| true);
        assert!(!ejection.probed(now, true, 2));
        assert!(ejection.probed(now, true, 2));
    }

    #[test]
    fn an_ejection_expires_once() {
        let mut ejection = Ejection::default();
        let now = Instant::now();
        assert!(!ejection.expire(now));
        ejection.start(permit(), &RULES, now, |_| true);
        assert!(!ejection.expire(now + Duration::from_secs(9)));
        assert!(ejection.expire(now + Duration::from_secs(10)));
        assert!(!ejection.expire(now + Duration::from_secs(10)));
    }

    #[test]
    fn the_limit_is_a_share_of_the_pool_but_at_least_one_of_two() {
        for (members, expected) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (10, 5)] {
            assert_eq!(most_ejected(members, 50), expected, "{members}");
        }
        assert_eq!(most_ejected(2, 10), 1);
        assert_eq!(most_ejected(9, 0), 0);
        assert_eq!(most_ejected(3, 100), 3);
    }
}
