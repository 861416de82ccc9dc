//! How long a store on the network may keep a request waiting, and when to stop trying.
//!
//! A failover takes seconds, and whoever waits for it meanwhile gets an answer instead of an error: one slow page.
//! But once a store has stayed away for that long, every further request would be as slow only to fail as well, so
//! then each gets one attempt until one succeeds. And a page that asks its stores several times waits once: what one
//! operation has taken is not there for the next.

use std::{
    cell::Cell,
    fmt,
    future::Future,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout_at};

use crate::error::StoreError;

tokio::task_local! {
    /// How long the operations of the present request have taken so far.
    static WAITED: Cell<Duration>;
}

/// Answers a request whose operations on stores share one limit.
pub async fn of_one_request<F: Future>(answer: F) -> F::Output {
    WAITED.scope(Cell::new(Duration::ZERO), answer).await
}

#[derive(Debug)]
pub struct Patience {
    /// From the first attempt to the error, for one operation and for those of one request together.
    overall: Duration,
    /// Whether an operation has spent all that time in vain, and none has succeeded since.
    away: AtomicBool,
}

/// Why an attempt failed, and whether another could succeed.
#[derive(Debug)]
pub struct Failure {
    pub error: StoreError,
    pub again: bool,
}

impl Failure {
    /// Of what may have passed by the next attempt.
    pub fn passing(error: StoreError) -> Self {
        Self { error, again: true }
    }

    /// Of what another attempt would not change.
    pub fn lasting(error: StoreError) -> Self {
        Self { error, again: false }
    }
}

impl Patience {
    pub fn new(overall: Duration) -> Self {
        Self { overall, away: AtomicBool::new(false) }
    }

    /// Repeats `attempt`, which must be repeatable and bound its own time, until it succeeds, fails for good or has
    /// taken too long.
    pub async fn run<T, F>(&self, attempt: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let begun = Instant::now();
        let waited = WAITED.try_with(Cell::get).unwrap_or_default();
        let left = self.overall.saturating_sub(waited).max(LAST_CHANCE.min(self.overall));
        // What other operations have left of the time can be too little to prove anything about this store.
        let is_proof = left >= self.overall / 2;
        let outcome = self.run_until(begun + left, is_proof, attempt).await;
        // An error says that this belongs to no request.
        let _ = WAITED.try_with(|waited| waited.set(waited.get() + begun.elapsed()));
        outcome
    }

    async fn run_until<T, F>(
        &self,
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
                    self.away.store(false, Ordering::Relaxed);
                    return Ok(done);
                }
                Ok(Err(failure)) if !failure.again || self.is_away() => return Err(failure.error),
                Ok(Err(failure)) => cause = Some(failure.error),
                Err(_) => {}
            }
            if Instant::now() + pause >= deadline {
                self.away.fetch_or(is_proof, Ordering::Relaxed);
                return Err(cause.unwrap_or_else(|| StoreError::unavailable(TooLong(self.overall))));
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Whether the store has stayed away for so long that nobody waits for it any more.
    pub fn is_away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
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
const LONGEST_PAUSE: Duration = Duration::from_millis(400);
/// What an operation gets when those before it have used up all patience: enough where the store is well again.
const LAST_CHANCE: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    async fn fail<T>() -> Result<T, Failure> {
        Err(Failure::passing(StoreError::unavailable("refused")))
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_back_in_time_was_never_away() {
        let patience = Patience::new(Duration::from_secs(8));
        let begun = Instant::now();
        let outcome = patience
            .run(|| async move { if begun.elapsed() < Duration::from_secs(4) { fail().await } else { Ok(7) } })
            .await;
        assert_eq!(outcome.unwrap(), 7);
        assert!(!patience.is_away());
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_never_returns_is_ended_at_the_limit() {
        let patience = Patience::new(Duration::from_secs(8));
        let begun = Instant::now();
        let error = patience.run(std::future::pending::<Result<(), Failure>>).await.unwrap_err();
        assert_eq!(begun.elapsed(), Duration::from_secs(8));
        assert!(error.to_string().contains("no answer within 8s"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn once_away_each_gets_one_attempt_until_one_succeeds() {
        let patience = Patience::new(Duration::from_secs(8));
        patience.run(fail::<()>).await.unwrap_err();
        assert!(patience.is_away());
        let begun = Instant::now();
        patience.run(fail::<()>).await.unwrap_err();
        assert_eq!(begun.elapsed(), Duration::ZERO);
        patience.run(|| async { Ok(()) }).await.unwrap();
        assert!(!patience.is_away());
    }

    #[tokio::test(start_paused = true)]
    async fn the_operations_of_one_request_share_the_limit() {
        let patience = Patience::new(Duration::from_secs(8));
        let begun = Instant::now();
        let slow = || async {
            sleep(Duration::from_secs(6)).await;
            Ok(())
        };
        let outcomes = of_one_request(async {
            let outcomes = (patience.run(slow).await, patience.run(slow).await, patience.run(slow).await);
            // The store is well again: nothing is refused that it can answer.
            (outcomes, patience.run(|| async { Ok(()) }).await)
        });
        assert!(matches!(outcomes.await, ((Ok(()), Err(_), Err(_)), Ok(()))));
        assert_eq!(begun.elapsed(), Duration::from_secs(8) + LAST_CHANCE);
        assert!(!patience.is_away());
        of_one_request(patience.run(slow)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_mended_is_not_tried_again() {
        let patience = Patience::new(Duration::from_secs(8));
        let attempts = Cell::new(0);
        let outcome: Result<(), _> = patience
            .run(|| {
                attempts.set(attempts.get() + 1);
                async { Err(Failure::lasting(StoreError::unavailable("wrong password"))) }
            })
            .await;
        assert!(outcome.is_err());
        assert_eq!(attempts.get(), 1);
        assert!(!patience.is_away());
    }
}
