//! Minimum rates. A client that moves a byte now and then stays within every limit on a single wait, so its bytes are
//! also compared with the total time that it kept us waiting (CWE-400; like `minBytesPerSecond` of IIS and `MinRate` of
//! Apache).

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// No rate is required before this time: connections may start slowly.
const RATE_GRACE: Duration = Duration::from_secs(5);

/// The rate of one direction of one exchange.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    /// Bytes per second.
    least: Option<NonZero<u32>>,
    moved: u64,
    waited: Duration,
    /// The part of `waited` in which the connection's other exchanges cannot have delayed the client.
    waited_alone: Duration,
    /// For a connection that carries several exchanges at once: its total, and the value of that when this exchange
    /// began.
    connection: Option<(Total, u64)>,
}

/// The bytes moved by all exchanges of a connection, in both directions. An exchange may wait because its client is
/// busy sending and receiving on the others.
#[derive(Debug, Clone)]
pub struct Total(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    /// Bytes moved by exchanges. What they wrote may still be in a buffer of the connection.
    moved: AtomicU64,
    /// Bytes of responses written to the client's socket, including the framing between them.
    written: AtomicU64,
    began: Instant,
    /// When such bytes were last written, in nanoseconds since the connection began.
    written_at: AtomicU64,
}

impl Total {
    /// The total of a new connection.
    pub fn new(now: Instant) -> Self {
        let counts =
            Counts { moved: AtomicU64::new(0), written: AtomicU64::new(0), began: now, written_at: AtomicU64::new(0) };
        Self(Arc::new(counts))
    }

    /// Counts `bytes` that the client's socket accepted, some of them bytes of responses.
    pub fn wrote(&self, bytes: usize, now: Instant) {
        let at = now.saturating_duration_since(self.0.began).as_nanos();
        self.0.written.fetch_add(bytes as u64, Ordering::Relaxed);
        self.0.written_at.store(u64::try_from(at).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How many bytes of responses the client's socket has accepted.
    pub fn written(&self) -> u64 {
        self.0.written.load(Ordering::Relaxed)
    }

    /// How long ago the client's socket last accepted bytes of a response.
    pub fn stalled(&self, now: Instant) -> Duration {
        let since = Duration::from_nanos(self.0.written_at.load(Ordering::Relaxed));
        now.saturating_duration_since(self.0.began).saturating_sub(since)
    }

    fn moved(&self) -> u64 {
        self.0.moved.load(Ordering::Relaxed)
    }
}

impl Pace {
    pub(super) fn new(least: Option<NonZero<u32>>, connection: Option<&Total>) -> Self {
        let (waited, waited_alone) = (Duration::ZERO, Duration::ZERO);
        let mut pace = Self { least: None, moved: 0, waited, waited_alone, connection: None };
        pace.ask(least, connection);
        pace
    }

    /// Requires another rate, which applies to everything moved and waited for so far.
    pub(super) fn ask(&mut self, least: Option<NonZero<u32>>, connection: Option<&Total>) {
        self.least = least;
        if self.connection.is_none() {
            let connection = connection.filter(|_| least.is_some());
            self.connection = connection.map(|total| (total.clone(), total.moved()));
        }
    }

    /// How long the client may keep us waiting now, if a single wait may take `limit`.
    pub(super) fn patience(&self, limit: Duration) -> Duration {
        let moved = match &self.connection {
            Some((total, before)) => total.moved().saturating_sub(*before),
            None => self.moved,
        };
        limit.min(self.earned(moved).saturating_sub(self.waited))
    }

    /// The same where the client waits for nothing before it moves more in this exchange: only what moved in this one counts,
    /// and only [such waits](Self::waited_alone).
    pub(super) fn patience_alone(&self, limit: Duration) -> Duration {
        limit.min(self.earned(self.moved).saturating_sub(self.waited_alone))
    }

    /// For how long the client may keep us waiting in all, where so much has moved.
    fn earned(&self, moved: u64) -> Duration {
        self.least.map_or(Duration::MAX, |least| RATE_GRACE + Duration::from_secs(moved / u64::from(least.get())))
    }

    /// How long the client has kept us waiting in total.
    pub(super) fn waited(&self) -> Duration {
        self.waited
    }

    /// The client kept us waiting for `waited`, and then moved `bytes`.
    pub(super) fn moved(&mut self, bytes: u64, waited: Duration) {
        self.moved = self.moved.saturating_add(bytes);
        if let Some((total, _)) = &self.connection {
            total.0.moved.fetch_add(bytes, Ordering::Relaxed);
        }
        self.waited = self.waited.saturating_add(waited);
    }

    /// `waited` that was told to [`Self::moved`] was for this exchange alone.
    pub(super) fn waited_alone(&mut self, waited: Duration) {
        self.waited_alone = self.waited_alone.saturating_add(waited);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn a_drip_below_the_rate_is_too_slow_though_every_wait_is_short() {
        let mut pace = Pace::new(NonZero::new(240), None);
        let mut waits = 0;
        while pace.patience(LIMIT) > Duration::from_secs(1) {
            pace.moved(1, Duration::from_secs(1));
            waits += 1;
        }
        assert_eq!(waits, 4);
    }

    #[test]
    fn a_transfer_above_the_rate_may_take_any_time() {
        let mut pace = Pace::new(NonZero::new(240), None);
        for _ in 0..10_000 {
            pace.moved(240, Duration::from_secs(1));
        }
        assert_eq!(pace.patience(LIMIT), RATE_GRACE);
        pace.moved(240 * 100, Duration::ZERO);
        assert_eq!(pace.patience(LIMIT), LIMIT, "the limit on a single wait stays");
    }

    #[test]
    fn without_a_rate_nothing_is_too_slow() {
        let mut pace = Pace::new(None, None);
        pace.moved(0, Duration::from_secs(3600));
        assert_eq!(pace.patience(LIMIT), LIMIT);
    }

    #[test]
    fn a_changed_rate_applies_to_everything_moved_so_far() {
        let mut pace = Pace::new(None, None);
        pace.moved(240 * 10, RATE_GRACE + Duration::from_secs(7));
        pace.ask(NonZero::new(240), None);
        assert_eq!(pace.patience(LIMIT), Duration::from_secs(3));
        pace.ask(None, None);
        assert_eq!(pace.patience(LIMIT), LIMIT);
    }

    #[test]
    fn bytes_of_other_streams_of_the_connection_count() {
        let total = Total::new(Instant::now());
        let mut slow = Pace::new(NonZero::new(240), Some(&total));
        slow.moved(0, RATE_GRACE);
        assert_eq!(slow.patience(LIMIT), Duration::ZERO);
        let mut busy = Pace::new(NonZero::new(240), Some(&total));
        busy.moved(2400, Duration::ZERO);
        assert_eq!(slow.patience(LIMIT), Duration::from_secs(10));
        assert_eq!(Pace::new(NonZero::new(240), Some(&total)).patience(LIMIT), RATE_GRACE, "not what was moved before");
    }

    // A stream whose window is shut is waited for whatever else its client takes.
    #[test]
    fn what_other_streams_move_does_not_count_where_one_is_waited_for_alone() {
        let total = Total::new(Instant::now());
        let mut slow = Pace::new(NonZero::new(240), Some(&total));
        let mut busy = Pace::new(NonZero::new(240), Some(&total));
        busy.moved(240_000, Duration::ZERO);
        slow.moved(0, Duration::from_secs(7));
        assert_eq!(slow.patience_alone(LIMIT), RATE_GRACE, "it had no turn");
        slow.moved(240, Duration::from_secs(4));
        slow.waited_alone(Duration::from_secs(4));
        assert_eq!((slow.patience(LIMIT), slow.patience_alone(LIMIT)), (LIMIT, Duration::from_secs(2)));
        slow.ask(None, None);
        assert_eq!(slow.patience_alone(LIMIT), LIMIT);
    }

    #[test]
    fn a_write_that_the_socket_accepts_ends_its_stall() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let total = Total::new(now);
        assert_eq!(total.stalled(now + second), second);
        total.wrote(10, now + second);
        assert_eq!((total.written(), total.stalled(now + second * 3)), (10, second * 2));
    }
}
