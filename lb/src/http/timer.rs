//! The one timer of a connection. Waits follow each other quickly and nearly all end in time, so setting a limit only
//! stores the deadline. The runtime's timer is touched only when it fires, or when a new deadline is earlier than the
//! armed one.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::task::coop::unconstrained;

use crate::clock::{self, Sleep};

#[derive(Default)]
pub(super) struct Timer {
    deadline: Option<Instant>,
    /// When the current or the last wait began; `None`: nothing had to be waited for.
    waits_since: Option<Instant>,
    /// Fires at or before the deadline, once there has been a wait.
    alarm: Option<Alarm>,
}

struct Alarm {
    sleep: Pin<Box<Sleep>>,
    /// The waker to be called when it fires; `None`: it has to be polled first. Comparing wakers is cheaper than
    /// polling for each wait.
    wakes: Option<Waker>,
}

/// The limit has expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Elapsed;

impl Timer {
    /// Waits until `poll` is ready, for at most `limit` from `now` on. The caller passes the time, because it usually
    /// has just read the clock.
    pub(super) async fn limit<T>(
        &mut self,
        now: Instant,
        limit: Duration,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Result<T, Elapsed> {
        self.end();
        poll_fn(|cx| {
            if let Poll::Ready(value) = poll(cx) {
                return Poll::Ready(Ok(value));
            }
            if !self.has_waited() {
                self.begin(now, limit);
            }
            self.poll_elapsed(cx).map(|()| Err(Elapsed))
        })
        .await
    }

    /// Whether there was or is anything to wait for.
    pub(super) fn has_waited(&self) -> bool {
        self.waits_since.is_some()
    }

    /// How long the current or the last wait has taken.
    pub(super) fn waited(&self) -> Duration {
        self.waits_since.map_or(Duration::ZERO, |since| clock::now().saturating_duration_since(since))
    }

    /// Begins a wait, which replaces the previous one.
    pub(super) fn begin(&mut self, now: Instant, limit: Duration) {
        self.waits_since = Some(now);
        // Too far away to ever expire.
        let deadline = now.checked_add(limit);
        if let (Some(deadline), Some(alarm)) = (deadline, &mut self.alarm)
            && tokio::time::Instant::from_std(deadline) < alarm.sleep.deadline()
        {
            alarm.reset(deadline);
        }
        self.deadline = deadline;
    }

    /// Ends the wait.
    pub(super) fn end(&mut self) {
        self.waits_since = None;
    }

    /// Whether the limit of the current wait has expired. Otherwise `cx` is woken when it does.
    pub(super) fn poll_elapsed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        let alarm = self.alarm.get_or_insert_with(|| Alarm::at(deadline));
        while alarm.poll(cx).is_ready() {
            if clock::now() >= deadline {
                return Poll::Ready(());
            }
            // It was armed for an earlier wait.
            alarm.reset(deadline);
        }
        Poll::Pending
    }
}

impl Alarm {
    fn at(deadline: Instant) -> Self {
        Self { sleep: Box::pin(clock::sleep_until(deadline.into())), wakes: None }
    }

    fn reset(&mut self, deadline: Instant) {
        self.sleep.as_mut().reset(deadline.into());
        self.wakes = None;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let wakes_this = self.wakes.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if wakes_this && !self.sleep.is_elapsed() {
            return Poll::Pending;
        }
        // A task without tokio budget gets `Pending` from everything that it polls, and this timer would not be armed.
        let polled = pin!(unconstrained(self.sleep.as_mut())).poll(cx);
        self.wakes = polled.is_pending().then(|| cx.waker().clone());
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(30);
    const LONG: Duration = Duration::from_secs(600);

    #[tokio::test]
    async fn a_time_limit_ends_a_wait_and_the_next_one_starts_fresh() {
        let mut timer = Timer::default();
        for _ in 0..2 {
            let started = Instant::now();
            assert_eq!(timer.limit(Instant::now(), SHORT, |_| Poll::<()>::Pending).await, Err(Elapsed));
            assert!(started.elapsed() >= SHORT);
        }
        assert_eq!(timer.limit(Instant::now(), SHORT, |_| Poll::Ready(7)).await, Ok(7));
    }

    #[tokio::test]
    async fn an_earlier_limit_moves_the_alarm_forward_and_a_later_one_outlives_it() {
        let mut timer = Timer::default();
        let mut once = ready_at_second_poll();
        assert_eq!(timer.limit(Instant::now(), LONG, &mut once).await, Ok(()));
        assert_eq!(timer.limit(Instant::now(), SHORT, |_| Poll::<()>::Pending).await, Err(Elapsed));

        let started = Instant::now();
        let mut once = ready_at_second_poll();
        assert_eq!(timer.limit(Instant::now(), SHORT, &mut once).await, Ok(()));
        assert_eq!(timer.limit(Instant::now(), SHORT * 4, |_| Poll::<()>::Pending).await, Err(Elapsed));
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
