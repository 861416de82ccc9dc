//! Minimum rates. A client that moves a byte now and then stays within every limit on a single wait, so the time that
//! it keeps us waiting is also compared with the bytes that it moves (CWE-400; like `minBytesPerSecond` of IIS and
//! `MinRate` of Apache).
//!
//! Each byte earns some time to wait, but no more than a single wait may take is ever left of that: a client that was
//! fast once has no hours in which it may be slow.

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// No rate is required before this time: connections may start slowly.
pub(super) const RATE_GRACE: Duration = Duration::from_secs(5);

/// The rate of one direction of one exchange.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    /// Bytes per second; `None`: any.
    min_rate: Option<NonZero<u32>>,
    /// The limit on `left` and `left_alone`, in nanoseconds, and on what may be missing there.
    max_left: i64,
    /// How much longer the client may keep us waiting, in nanoseconds, apart from what `moved` earns. Below zero it has
    /// taken too long.
    left: i64,
    /// The same for waits in which the connection's other exchanges cannot have delayed the client, and for bytes of
    /// this exchange alone.
    left_alone: i64,
    /// Bytes that have not been added to the above as time yet.
    moved: u64,
    /// Bytes that were counted before they are moved.
    lent: u64,
    waited: Duration,
    /// For a connection that carries several exchanges at once: its total, and how much of that has been added to
    /// `left`.
    connection: Option<(ConnectionTotal, u64)>,
}

/// The bytes moved by all exchanges of a connection, in both directions. An exchange may wait because its client is
/// busy sending and receiving on the others.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionTotal(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    /// Bytes moved by exchanges, some of them twice: once when they were written, maybe into a buffer, and once more when
    /// they were seen to be acknowledged.
    moved: AtomicU64,
    /// Bytes of responses written to the client's socket, including the framing between them.
    written: AtomicU64,
    began: Instant,
    /// When such bytes were last written or acknowledged, in nanoseconds since the connection began.
    written_at: AtomicU64,
}

impl ConnectionTotal {
    /// The total of a new connection.
    pub(crate) fn new(now: Instant) -> Self {
        let [moved, written, written_at] = [(); 3].map(|()| AtomicU64::new(0));
        Self(Arc::new(Counts { moved, written, began: now, written_at }))
    }

    /// Counts `bytes` that the client's socket accepted, some of them bytes of responses.
    pub(crate) fn wrote(&self, bytes: usize, now: Instant) {
        self.0.written.fetch_add(bytes as u64, Ordering::Relaxed);
        self.took(now);
    }

    /// The client has acknowledged `bytes` since the socket last accepted any. They have been counted when they were
    /// written. Nothing is taken back for that: what an exchange has left is bounded, and a later exchange of the
    /// connection may not pay for this one.
    pub(crate) fn acknowledged(&self, bytes: u64, now: Instant) {
        self.0.moved.fetch_add(bytes, Ordering::Relaxed);
        self.took(now);
    }

    fn took(&self, now: Instant) {
        let at = now.saturating_duration_since(self.0.began).as_nanos();
        self.0.written_at.store(u64::try_from(at).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How many bytes of responses the client's socket has accepted.
    pub(crate) fn written(&self) -> u64 {
        self.0.written.load(Ordering::Relaxed)
    }

    /// How long ago the client's socket last accepted bytes of a response, or was seen to have sent some.
    pub(crate) fn stalled(&self, now: Instant) -> Duration {
        let since = Duration::from_nanos(self.0.written_at.load(Ordering::Relaxed));
        now.saturating_duration_since(self.0.began).saturating_sub(since)
    }

    /// An exchange has moved `bytes`.
    fn count(&self, bytes: u64) {
        self.0.moved.fetch_add(bytes, Ordering::Relaxed);
    }

    fn moved(&self) -> u64 {
        self.0.moved.load(Ordering::Relaxed)
    }
}

impl Pace {
    /// `limit`: how long a single wait may take. `connection`: if it carries several exchanges at once.
    pub(super) fn new(min_rate: Option<NonZero<u32>>, limit: Duration, connection: Option<&ConnectionTotal>) -> Self {
        Self {
            min_rate,
            max_left: nanoseconds(limit.max(RATE_GRACE)),
            left: nanoseconds(RATE_GRACE),
            left_alone: nanoseconds(RATE_GRACE),
            moved: 0,
            lent: 0,
            waited: Duration::ZERO,
            connection: connection.filter(|_| min_rate.is_some()).map(|total| (total.clone(), total.moved())),
        }
    }

    /// Requires another rate, from now on.
    pub(super) fn require(
        &mut self,
        min_rate: Option<NonZero<u32>>,
        limit: Duration,
        connection: Option<&ConnectionTotal>,
    ) {
        *self = Self { waited: self.waited, ..Self::new(min_rate, limit, connection) };
    }

    /// How long the client may keep us waiting now, if a single wait may take `limit`.
    pub(super) fn patience(&self, limit: Duration) -> Duration {
        let moved = self.connection.as_ref().map_or(self.moved, |(total, seen)| total.moved() - *seen);
        self.bounded(limit, self.left, moved)
    }

    /// The same where the client waits for nothing before it moves more in this exchange: only what moved in this one
    /// counts, and only [such waits](Self::waited_alone).
    pub(super) fn patience_alone(&self, limit: Duration) -> Duration {
        self.bounded(limit, self.left_alone, self.moved)
    }

    fn bounded(&self, limit: Duration, left: i64, moved: u64) -> Duration {
        if self.min_rate.is_none() {
            return limit;
        }
        let left = left.saturating_add(self.earned(moved)).min(self.max_left);
        limit.min(Duration::from_nanos(left.max(0).unsigned_abs()))
    }

    /// For how many nanoseconds the client may keep us waiting where so much has moved.
    fn earned(&self, moved: u64) -> i64 {
        let min_rate = self.min_rate.map_or(1, |rate| u64::from(rate.get()));
        i64::try_from(moved.saturating_mul(1_000_000_000) / min_rate).unwrap_or(i64::MAX)
    }

    /// How long the client has kept us waiting in total.
    pub(super) fn waited(&self) -> Duration {
        self.waited
    }

    /// The client kept us waiting for `waited`, and then moved `bytes`.
    pub(super) fn moved(&mut self, bytes: u64, waited: Duration) {
        if !waited.is_zero() {
            self.waited = self.waited.saturating_add(waited);
            self.settle(waited);
        }
        let repaid = self.lent.min(bytes);
        self.lent -= repaid;
        self.moved = self.moved.saturating_add(bytes - repaid);
        if let Some((total, _)) = &self.connection {
            total.count(bytes);
        }
    }

    /// Turns what has moved into time, and takes `waited` off it.
    fn settle(&mut self, waited: Duration) {
        let waited = nanoseconds(waited);
        let moved = std::mem::take(&mut self.moved);
        let own = self.earned(moved);
        self.left_alone = self.left_alone.saturating_add(own).min(self.max_left);
        let left = match &mut self.connection {
            None => self.left.saturating_add(own).min(self.max_left).saturating_sub(waited),
            Some((total, seen)) => {
                // Other exchanges moved it before the wait, or meanwhile.
                let now = total.moved();
                let moved = now - std::mem::replace(seen, now);
                self.left.saturating_add(self.earned(moved)).saturating_sub(waited)
            }
        };
        self.left = left.clamp(-self.max_left, self.max_left);
    }

    /// `waited` that was told to [`Self::moved`] was for this exchange alone.
    pub(super) fn waited_alone(&mut self, waited: Duration) {
        self.left_alone = self.left_alone.saturating_sub(nanoseconds(waited)).max(-self.max_left);
    }

    /// The client may take as long as a single wait may.
    pub(super) fn fill(&mut self) {
        self.left = self.max_left;
    }

    /// Counts `bytes` of this exchange before they are moved.
    pub(super) fn lend(&mut self, bytes: u64) {
        self.moved = self.moved.saturating_add(bytes);
        self.lent = self.lent.saturating_add(bytes);
    }
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);
    const SECOND: Duration = Duration::from_secs(1);

    fn pace(min_rate: u32, connection: Option<&ConnectionTotal>) -> Pace {
        Pace::new(NonZero::new(min_rate), LIMIT, connection)
    }

    #[test]
    fn a_drip_below_the_rate_is_too_slow_though_every_wait_is_short() {
        let mut pace = pace(240, None);
        let mut waits = 0;
        while pace.patience(LIMIT) > SECOND {
            pace.moved(1, SECOND);
            waits += 1;
        }
        assert_eq!(waits, 5);
    }

    #[test]
    fn a_transfer_above_the_rate_may_take_any_time() {
        let mut pace = pace(240, None);
        for _ in 0..10_000 {
            pace.moved(240, SECOND);
        }
        assert_eq!(pace.patience(LIMIT), RATE_GRACE);
        pace.moved(240 * 100, Duration::ZERO);
        assert_eq!(pace.patience(LIMIT), LIMIT, "the limit on a single wait stays");
    }

    // A gigabyte used to allow 48 days.
    #[test]
    fn a_fast_start_earns_no_more_than_a_single_wait() {
        let mut pace = pace(240, None);
        pace.moved(1 << 30, SECOND);
        for _ in 0..59 {
            assert!(pace.patience(LIMIT) > SECOND);
            pace.moved(1, SECOND);
        }
        assert!(pace.patience(LIMIT) <= SECOND + SECOND / 2, "{:?}", pace.patience(LIMIT));
    }

    #[test]
    fn without_a_rate_nothing_is_too_slow() {
        let mut pace = Pace::new(None, LIMIT, None);
        pace.moved(0, Duration::from_secs(3600));
        assert_eq!(pace.patience(2 * LIMIT), 2 * LIMIT);
    }

    #[test]
    fn another_rate_applies_from_then_on() {
        let mut pace = Pace::new(None, LIMIT, None);
        pace.moved(240 * 10, RATE_GRACE + SECOND);
        pace.require(NonZero::new(240), LIMIT, None);
        assert_eq!(pace.patience(LIMIT), RATE_GRACE);
        pace.require(None, LIMIT, None);
        assert_eq!((pace.patience(LIMIT), pace.waited()), (LIMIT, RATE_GRACE + SECOND));
    }

    #[test]
    fn bytes_of_other_streams_of_the_connection_count() {
        let total = ConnectionTotal::new(Instant::now());
        let mut slow = pace(240, Some(&total));
        slow.moved(0, RATE_GRACE);
        assert_eq!(slow.patience(LIMIT), Duration::ZERO);
        let mut busy = pace(240, Some(&total));
        busy.moved(2400, Duration::ZERO);
        assert_eq!(slow.patience(LIMIT), 10 * SECOND);
        assert_eq!(pace(240, Some(&total)).patience(LIMIT), RATE_GRACE, "not what was moved before");
        // They have moved it while this one waited.
        busy.moved(1 << 20, Duration::ZERO);
        slow.moved(0, LIMIT);
        assert_eq!(slow.patience(LIMIT), LIMIT);
    }

    // A stream whose window is shut is waited for whatever else its client takes.
    #[test]
    fn the_rate_of_a_stream_with_a_shut_window_excludes_other_streams() {
        let total = ConnectionTotal::new(Instant::now());
        let mut slow = pace(240, Some(&total));
        let mut busy = pace(240, Some(&total));
        busy.moved(240_000, Duration::ZERO);
        slow.moved(0, 7 * SECOND);
        assert_eq!(slow.patience_alone(LIMIT), RATE_GRACE, "it had no turn");
        slow.moved(240, 4 * SECOND);
        slow.waited_alone(4 * SECOND);
        assert_eq!((slow.patience(LIMIT), slow.patience_alone(LIMIT)), (57 * SECOND, 2 * SECOND));
        slow.require(None, LIMIT, None);
        assert_eq!(slow.patience_alone(LIMIT), LIMIT);
    }

    #[test]
    fn lent_bytes_count_once() {
        let mut pace = pace(240, None);
        pace.moved(0, 4 * SECOND);
        pace.lend(480);
        assert_eq!(pace.patience(LIMIT), 3 * SECOND);
        pace.moved(480, Duration::ZERO);
        assert_eq!(pace.patience(LIMIT), 3 * SECOND);
        pace.moved(240, Duration::ZERO);
        assert_eq!(pace.patience(LIMIT), 4 * SECOND);
    }

    #[test]
    fn a_write_that_the_socket_accepts_ends_its_stall() {
        let now = Instant::now();
        let total = ConnectionTotal::new(now);
        assert_eq!(total.stalled(now + SECOND), SECOND);
        total.wrote(10, now + SECOND);
        assert_eq!((total.written(), total.stalled(now + SECOND * 3)), (10, SECOND * 2));
    }

    #[test]
    fn acknowledged_bytes_end_a_stall_and_cost_no_later_exchange() {
        let now = Instant::now();
        let total = ConnectionTotal::new(now);
        let mut pace = pace(240, Some(&total));
        pace.moved(0, RATE_GRACE);
        total.acknowledged(480, now + SECOND);
        assert_eq!((total.stalled(now + SECOND), pace.patience(LIMIT)), (Duration::ZERO, 2 * SECOND));
        let mut later = self::pace(240, Some(&total));
        later.moved(0, RATE_GRACE);
        later.moved(480, Duration::ZERO);
        assert_eq!(later.patience(LIMIT), 2 * SECOND, "each byte of a later exchange counts");
    }
}
