//! How long a store on the network may keep a request waiting, and when to stop trying.
//!
//! A failover takes seconds, and whoever waits for it meanwhile gets an answer instead of an error: one slow page.
//! But once a store has stayed away for that long, every further request would be as slow only to fail as well, so
//! then each gets one attempt until one succeeds. A store may have parts, some of which can be away while others are
//! well; then only a success of the same part counts. And a page that asks its stores several times waits once: what
//! one operation has taken is not there for the next.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::error::StoreError;

tokio::task_local! {
    /// How long the store operations of the current request have taken so far.
    static WAITED: Cell<Duration>;
}

/// Runs a request whose store operations share one time limit.
pub async fn of_one_request<F: Future>(answer: F) -> F::Output {
    WAITED.scope(Cell::new(Duration::ZERO), answer).await
}

#[derive(Debug)]
pub struct Retry {
    /// From the first attempt to the error, for one operation and for those of one request together.
    overall: Duration,
    /// How many operations have used up their time without success, in any part.
    given_up: AtomicU64,
    /// The value of `given_up` when an operation last succeeded, for each part.
    succeeded: Box<[AtomicU64]>,
}

/// Adds the time of an operation to its request, also if it is dropped.
struct Waiting(Instant);

impl Drop for Waiting {
    fn drop(&mut self) {
        // Fails outside of a request.
        let _ = WAITED.try_with(|waited| waited.set(waited.get() + self.0.elapsed()));
    }
}

/// Why an attempt failed, and whether another could succeed.
#[derive(Debug)]
pub struct Failure {
    pub error: StoreError,
    pub again: bool,
}

impl Failure {
    /// A failure that may be over at the next attempt.
    pub fn passing(error: StoreError) -> Self {
        Self { error, again: true }
    }

    /// A failure that another attempt would not change.
    pub fn lasting(error: StoreError) -> Self {
        Self { error, again: false }
    }
}

impl Retry {
    pub fn new(overall: Duration) -> Self {
        Self::with_parts(overall, 1)
    }

    /// For a store with several parts, numbered from 0, which can be unreachable independently.
    pub fn with_parts(overall: Duration, parts: usize) -> Self {
        let succeeded = (0..parts).map(|_| AtomicU64::new(0)).collect();
        Self { overall, given_up: AtomicU64::new(0), succeeded }
    }

    /// Repeats `attempt`, which must be repeatable and have its own time limit, until it succeeds, fails permanently,
    /// or the time is over.
    pub async fn run<T, F>(&self, attempt: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        self.run_in(0, attempt).await
    }

    /// Like [`run`](Self::run), for one part.
    pub async fn run_in<T, F>(&self, part: usize, attempt: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let begun = Instant::now();
        let _waiting = Waiting(begun);
        let waited = WAITED.try_with(Cell::get).unwrap_or_default();
        let left = self.overall.saturating_sub(waited).max(MIN_ATTEMPT_TIME.min(self.overall));
        // The time that other operations of the request have left may be too short to prove an outage.
        let is_proof = left >= self.overall / 2;
        self.run_until(part, begun + left, is_proof, attempt).await
    }

    async fn run_until<T, F>(
        &self,
        part: usize,
        deadline: Instant,
        is_proof: bool,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut pause = FIRST_PAUSE;
        let mut cause = None;
        loop {
            match timeout_at(deadline, attempt()).await {
                Ok(Ok(done)) => {
                    self.succeeded[part].store(self.given_up.load(Ordering::Relaxed), Ordering::Relaxed);
                    return Ok(done);
                }
                Ok(Err(failure)) if !failure.again || self.is_away(part) => return Err(failure.error),
                Ok(Err(failure)) => cause = Some(failure.error),
                Err(_) => {}
            }
            if Instant::now() + pause >= deadline {
                if is_proof {
                    self.given_up.fetch_add(1, Ordering::Relaxed);
                }
                return Err(cause.unwrap_or_else(|| StoreError::unavailable(TooLong(self.overall))));
            }
            sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Whether operations no longer wait for this part: some part was unreachable for a long time, and this one has had
    /// no success since.
    pub fn is_away(&self, part: usize) -> bool {
        self.given_up.load(Ordering::Relaxed) > self.succeeded[part].load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct TooLong(Duration);

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no answer within {}", humantime::format_duration(self.0))
    }
}

impl std::error::Error for TooLong {}

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_millis(400);
/// The time for an operation after earlier ones have used up the limit: enough if the store is reachable again.
const MIN_ATTEMPT_TIME: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    async fn fail<T>() -> Result<T, Failure> {
        Err(Failure::passing(StoreError::unavailable("refused")))
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_that_recovers_in_time_is_hidden() {
        let retry = Retry::new(Duration::from_secs(8));
        let begun = Instant::now();
        let outcome = retry
            .run(|| async move { if begun.elapsed() < Duration::from_secs(4) { fail().await } else { Ok(7) } })
            .await;
        assert_eq!(outcome.unwrap(), 7);
        assert!(!retry.is_away(0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_never_returns_is_ended_at_the_limit() {
        let retry = Retry::new(Duration::from_secs(8));
        let begun = Instant::now();
        let error = retry.run(std::future::pending::<Result<(), Failure>>).await.unwrap_err();
        assert_eq!(begun.elapsed(), Duration::from_secs(8));
        assert!(error.to_string().contains("no answer within 8s"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn during_an_outage_operations_get_one_attempt_until_one_succeeds() {
        let retry = Retry::new(Duration::from_secs(8));
        retry.run(fail::<()>).await.unwrap_err();
        assert!(retry.is_away(0));
        let begun = Instant::now();
        retry.run(fail::<()>).await.unwrap_err();
        assert_eq!(begun.elapsed(), Duration::ZERO);
        retry.run(|| async { Ok(()) }).await.unwrap();
        assert!(!retry.is_away(0));
    }

    // Successes of other parts made each operation on the unreachable part wait for the whole time.
    #[tokio::test(start_paused = true)]
    async fn a_success_of_one_shard_does_not_end_the_outage_of_another() {
        let retry = Retry::with_parts(Duration::from_secs(8), 3);
        retry.run_in(0, fail::<()>).await.unwrap_err();
        retry.run_in(1, || async { Ok(()) }).await.unwrap();
        let begun = Instant::now();
        // The third part may be unreachable for the same reason, as far as is known.
        for part in [0, 2, 0] {
            retry.run_in(part, fail::<()>).await.unwrap_err();
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
        retry.run_in(1, fail::<()>).await.unwrap_err();
        assert!(begun.elapsed() > Duration::from_secs(7), "one that was well is waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_operation_counts_its_time() {
        let retry = Retry::new(Duration::from_secs(8));
        let begun = Instant::now();
        of_one_request(async {
            let dropped = retry.run(std::future::pending::<Result<(), Failure>>);
            tokio::time::timeout(Duration::from_secs(6), dropped).await.unwrap_err();
            retry.run(std::future::pending::<Result<(), Failure>>).await.unwrap_err();
        })
        .await;
        assert_eq!(begun.elapsed(), Duration::from_secs(8));
    }

    #[tokio::test(start_paused = true)]
    async fn the_operations_of_one_request_share_the_limit() {
        let retry = Retry::new(Duration::from_secs(8));
        let begun = Instant::now();
        let slow = || async {
            sleep(Duration::from_secs(6)).await;
            Ok(())
        };
        let outcomes = of_one_request(async {
            let outcomes = (retry.run(slow).await, retry.run(slow).await, retry.run(slow).await);
            // The store is reachable again: nothing that it can answer is refused.
            (outcomes, retry.run(|| async { Ok(()) }).await)
        });
        assert!(matches!(outcomes.await, ((Ok(()), Err(_), Err(_)), Ok(()))));
        assert_eq!(begun.elapsed(), Duration::from_secs(8) + MIN_ATTEMPT_TIME);
        assert!(!retry.is_away(0));
        of_one_request(retry.run(slow)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn permanent_failures_are_not_retried() {
        let retry = Retry::new(Duration::from_secs(8));
        let attempts = Cell::new(0);
        let outcome: Result<(), _> = retry
            .run(|| {
                attempts.set(attempts.get() + 1);
                async { Err(Failure::lasting(StoreError::unavailable("wrong password"))) }
            })
            .await;
        assert!(outcome.is_err());
        assert_eq!(attempts.get(), 1);
        assert!(!retry.is_away(0));
    }
}
