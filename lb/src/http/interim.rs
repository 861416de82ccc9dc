//! Limits the rate of a backend's interim responses, by a token bucket. Their number is not limited (RFC 9110 §15.2): a
//! long job may send a 102 every 20 seconds for hours.

use std::time::{Duration, Instant};

/// How many may arrive at once.
const MAX_BURST: u32 = 64;
/// How often another one is allowed.
const INTERVAL: Duration = Duration::from_millis(250);

/// The interim responses to one request. The bucket is stored as the time at which it will be full again.
#[derive(Debug, Default)]
pub(super) struct InterimRate {
    full_at: Option<Instant>,
}

impl InterimRate {
    /// Counts one that arrived `now`. False: there are too many.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.map_or(now, |full_at| full_at.max(now)) + INTERVAL;
        self.full_at = Some(full_at);
        full_at - now <= INTERVAL * MAX_BURST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_more_than_the_rate_does_not() {
        let mut rate = InterimRate::default();
        let start = Instant::now();
        assert!((0..MAX_BURST).all(|_| rate.allows(start)));
        assert!(!rate.allows(start));
    }

    #[test]
    fn any_number_passes_within_the_rate() {
        let mut rate = InterimRate::default();
        let start = Instant::now();
        assert!((0..100_000).all(|number| rate.allows(start + number * INTERVAL)));
        let later = start + 100_000 * INTERVAL;
        assert!((0..MAX_BURST - 1).all(|_| rate.allows(later)), "the burst is at hand again");
    }
}
