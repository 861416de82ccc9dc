//! Slow clients: one that moves a byte now and then passes every limit on a single wait, so what it moves is also held
//! against all the time that it kept us waiting (CWE-400; as IIS's `minBytesPerSecond` and Apache's `MinRate`).

use std::num::NonZero;
use std::time::Duration;

/// Before it nothing is asked: connections may start slowly.
const GRACE: Duration = Duration::from_secs(5);

/// One direction of one exchange.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Bytes per second.
    least: Option<NonZero<u32>>,
    moved: u64,
    waited: Duration,
}

impl Pace {
    pub fn new(least: Option<NonZero<u32>>) -> Self {
        Self { least, moved: 0, waited: Duration::ZERO }
    }

    /// How long the client may keep us waiting now, where a single wait may last `limit`.
    pub fn patience(&self, limit: Duration) -> Duration {
        let Some(least) = self.least else { return limit };
        let earned = Duration::from_secs(self.moved / u64::from(least.get()));
        limit.min((GRACE + earned).saturating_sub(self.waited))
    }

    /// How long the client has kept us waiting in all.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// The client kept us waiting for `waited` and then moved so many bytes.
    pub fn moved(&mut self, bytes: u64, waited: Duration) {
        self.moved = self.moved.saturating_add(bytes);
        self.waited = self.waited.saturating_add(waited);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn a_drip_in_time_for_every_single_wait_is_too_slow_for_all_of_them() {
        let mut pace = Pace::new(NonZero::new(240));
        let mut waits = 0;
        while pace.patience(LIMIT) > Duration::from_secs(1) {
            pace.moved(1, Duration::from_secs(1));
            waits += 1;
        }
        assert_eq!(waits, 4);
    }

    #[test]
    fn who_keeps_the_pace_may_take_any_time() {
        let mut pace = Pace::new(NonZero::new(240));
        for _ in 0..10_000 {
            pace.moved(240, Duration::from_secs(1));
        }
        assert_eq!(pace.patience(LIMIT), GRACE);
        pace.moved(240 * 100, Duration::ZERO);
        assert_eq!(pace.patience(LIMIT), LIMIT, "the limit on a single wait stays");
    }

    #[test]
    fn nothing_is_asked_where_nothing_is_configured() {
        let mut pace = Pace::new(None);
        pace.moved(0, Duration::from_secs(3600));
        assert_eq!(pace.patience(LIMIT), LIMIT);
    }
}
