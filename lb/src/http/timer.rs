//! A connection's one timer. Waits follow each other quickly and nearly all end in time, so setting a limit only
//! writes down when it ends; the runtime's timer is touched when it fires, or when a limit ends before it would. A
//! limit costs a request nothing.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::clock::{self, Sleep};

#[derive(Default)]
pub struct Timer {
    deadline: Option<Instant>,
    /// When the present wait, or the last one, had to wait; `None`: it had not.
    waits_since: Option<Instant>,
    /// Fires at or before the deadline, once the first wait had to wait.
    alarm: Option<Pin<Box<Sleep>>>,
}

/// The limit has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

impl Timer {
    /// Waits for `poll` to be ready, at most for `limit`.
    pub async fn limit<T>(
        &mut self,
        limit: Duration,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Result<T, Elapsed> {
        self.limit_when_waiting(|cx| match poll(cx) {
            Poll::Ready(value) => Ok(value),
            Poll::Pending => Err(limit),
        })
        .await
    }

    /// Waits for `poll` to return a value. The first error begins the wait, and is its limit.
    pub async fn limit_when_waiting<T>(
        &mut self,
        mut poll: impl FnMut(&mut Context<'_>) -> Result<T, Duration>,
    ) -> Result<T, Elapsed> {
        self.waits_since = None;
        poll_fn(|cx| {
            let limit = match poll(cx) {
                Ok(value) => return Poll::Ready(Ok(value)),
                Err(limit) => limit,
            };
            if self.waits_since.is_none() {
                self.set(limit);
            }
            self.poll_elapsed(cx).map(|()| Err(Elapsed))
        })
        .await
    }

    /// How long the last wait took.
    pub fn waited(&self) -> Duration {
        self.waits_since.map_or(Duration::ZERO, |since| clock::now().saturating_duration_since(since))
    }

    fn set(&mut self, limit: Duration) {
        let now = clock::now();
        self.waits_since = Some(now);
        // So far away that it never comes.
        let deadline = now.checked_add(limit);
        if let (Some(deadline), Some(alarm)) = (deadline, &mut self.alarm)
            && tokio::time::Instant::from_std(deadline) < alarm.deadline()
        {
            alarm.as_mut().reset(deadline.into());
        }
        self.deadline = deadline;
    }

    fn poll_elapsed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(clock::sleep_until(deadline.into())));
        while alarm.as_mut().poll(cx).is_ready() {
            if clock::now() >= deadline {
                return Poll::Ready(());
            }
            // It was set for an earlier wait.
            alarm.as_mut().reset(deadline.into());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(30);
    const LONG: Duration = Duration::from_secs(600);

    #[tokio::test]
    async fn a_limit_ends_a_wait_and_the_next_one_begins_anew() {
        let mut timer = Timer::default();
        for _ in 0..2 {
            let started = Instant::now();
            assert_eq!(timer.limit(SHORT, |_| Poll::<()>::Pending).await, Err(Elapsed));
            assert!(started.elapsed() >= SHORT);
        }
        assert_eq!(timer.limit(SHORT, |_| Poll::Ready(7)).await, Ok(7));
    }

    #[tokio::test]
    async fn an_earlier_limit_moves_the_alarm_forward_and_a_later_one_outlives_it() {
        let mut timer = Timer::default();
        let mut once = ready_at_second_poll();
        assert_eq!(timer.limit(LONG, &mut once).await, Ok(()));
        assert_eq!(timer.limit(SHORT, |_| Poll::<()>::Pending).await, Err(Elapsed));

        let started = Instant::now();
        let mut once = ready_at_second_poll();
        assert_eq!(timer.limit(SHORT, &mut once).await, Ok(()));
        assert_eq!(timer.limit(SHORT * 4, |_| Poll::<()>::Pending).await, Err(Elapsed));
        assert!(started.elapsed() >= SHORT * 4);
    }

    fn ready_at_second_poll() -> impl FnMut(&mut Context<'_>) -> Poll<()> {
        let mut polls = 0;
        move |cx| {
            polls += 1;
            cx.waker().wake_by_ref();
            if polls == 2 { Poll::Ready(()) } else { Poll::Pending }
        }
    }
}
