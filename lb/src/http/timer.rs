//! A connection's one timer. Waits follow each other quickly and nearly all end in time, so setting a limit only
//! writes down when it ends; the runtime's timer is touched when it fires, or when a limit ends before it would. A
//! limit costs a request nothing.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::task::coop::unconstrained;

use crate::clock::{self, Sleep};

#[derive(Default)]
pub(super) struct Timer {
    deadline: Option<Instant>,
    /// When the present wait, or the last one, began; `None`: there was nothing to wait for.
    waits_since: Option<Instant>,
    /// Fires at or before the deadline, once there has been a wait.
    alarm: Option<Alarm>,
}

struct Alarm {
    sleep: Pin<Box<Sleep>>,
    /// Whom it wakes when it fires; `None`: it has to be polled first. Polling it for each wait costs more than this.
    wakes: Option<Waker>,
}

/// The limit has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Elapsed;

impl Timer {
    /// Waits for `poll` to be ready, at most for `limit` from `now` on. The caller tells the present, since mostly it has
    /// just read the clock.
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

    /// Whether there was anything to wait for, or still is.
    pub(super) fn has_waited(&self) -> bool {
        self.waits_since.is_some()
    }

    /// How long the present or the last wait has taken.
    pub(super) fn waited(&self) -> Duration {
        self.waits_since.map_or(Duration::ZERO, |since| clock::now().saturating_duration_since(since))
    }

    /// Begins a wait, in place of the one before.
    pub(super) fn begin(&mut self, now: Instant, limit: Duration) {
        self.waits_since = Some(now);
        // So far away that it never comes.
        let deadline = now.checked_add(limit);
        if let (Some(deadline), Some(alarm)) = (deadline, &mut self.alarm)
            && tokio::time::Instant::from_std(deadline) < alarm.sleep.deadline()
        {
            alarm.reset(deadline);
        }
        self.deadline = deadline;
    }

    /// Nothing is waited for any more.
    pub(super) fn end(&mut self) {
        self.waits_since = None;
    }

    /// Whether the limit of the present wait has passed. Otherwise `cx` is woken when it does.
    pub(super) fn poll_elapsed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        let alarm = self.alarm.get_or_insert_with(|| Alarm::at(deadline));
        while alarm.poll(cx).is_ready() {
            if clock::now() >= deadline {
                return Poll::Ready(());
            }
            // It was set for an earlier wait.
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
        // A task that has done as much as tokio lets it at once is told to wait by everything that it polls, and this
        // would not be set.
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
