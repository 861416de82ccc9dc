//! The clock of unit tests: the real one, or that of the simulation that this thread has entered.

use std::cell::{Cell, RefCell};
use std::collections::BinaryHeap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;
type Spawner = Box<dyn Fn(Task)>;

thread_local! {
    static SPAWNER: RefCell<Option<Spawner>> = const { RefCell::new(None) };
    static CLOCK: Cell<Option<Clock>> = const { Cell::new(None) };
    /// The generator's state. Separate, because it is used most often.
    static RANDOM: Cell<Option<u64>> = const { Cell::new(None) };
    static ALARMS: RefCell<BinaryHeap<Alarm>> = const { RefCell::new(BinaryHeap::new()) };
}

#[derive(Clone, Copy)]
struct Clock {
    start: Instant,
    now: Instant,
    /// Numbers the alarms, so that simultaneous ones ring in the order in which they were set.
    alarms: u64,
}

struct Alarm {
    at: Instant,
    number: u64,
    waker: Waker,
}

/// A timeout has expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Elapsed;

/// Like tokio's, but in simulated time if this thread has entered a simulation.
pub(crate) enum Sleep {
    Real(Pin<Box<tokio::time::Sleep>>),
    Simulated {
        deadline: Instant,
        /// An alarm is set for the deadline.
        is_set: bool,
    },
}

/// Enters a simulation: from now on time stands still on this thread, and randomness comes from the seed.
pub(crate) fn enter(seed: u64) {
    let start = Instant::now();
    CLOCK.set(Some(Clock { start, now: start, alarms: 0 }));
    RANDOM.set(Some(seed));
    ALARMS.with_borrow_mut(BinaryHeap::clear);
}

pub(crate) fn leave() {
    CLOCK.set(None);
    RANDOM.set(None);
    ALARMS.with_borrow_mut(BinaryHeap::clear);
}

/// The simulated time since the simulation began.
pub(crate) fn elapsed() -> Duration {
    CLOCK.get().map_or(Duration::ZERO, |clock| clock.now - clock.start)
}

/// Moves the clock to the next alarm and rings all that are due. False if there is none.
pub(crate) fn advance() -> bool {
    let Some(mut clock) = CLOCK.get() else { return false };
    let Some(first) = ALARMS.with_borrow_mut(BinaryHeap::pop) else { return false };
    clock.now = clock.now.max(first.at);
    CLOCK.set(Some(clock));
    first.waker.wake();
    while let Some(due) = ALARMS.with_borrow_mut(|alarms| {
        let is_due = alarms.peek().is_some_and(|next| next.at <= clock.now);
        is_due.then(|| alarms.pop()).flatten()
    }) {
        due.waker.wake();
    }
    true
}

pub(crate) fn now() -> Instant {
    CLOCK.get().map_or_else(Instant::now, |clock| clock.now)
}

pub(crate) fn wall() -> SystemTime {
    match CLOCK.get() {
        Some(clock) => UNIX_EPOCH + Duration::from_secs(1_800_000_000) + (clock.now - clock.start),
        None => SystemTime::now(),
    }
}

pub(crate) fn random() -> u64 {
    let Some(state) = RANDOM.get() else { return rand::random() };
    // SplitMix64.
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    RANDOM.set(Some(state));
    mixed(state)
}

/// The output function of SplitMix64.
pub(crate) fn mixed(state: u64) -> u64 {
    let mut z = state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

pub(crate) fn sleep(limit: Duration) -> Sleep {
    match CLOCK.get() {
        Some(clock) => Sleep::Simulated { deadline: clock.now + limit, is_set: false },
        None => Sleep::Real(Box::pin(tokio::time::sleep(limit))),
    }
}

pub(crate) fn sleep_until(deadline: tokio::time::Instant) -> Sleep {
    match CLOCK.get() {
        Some(_) => Sleep::Simulated { deadline: deadline.into_std(), is_set: false },
        None => Sleep::Real(Box::pin(tokio::time::sleep_until(deadline))),
    }
}

/// Passes tasks spawned on this thread to `spawner`; `None`: to the runtime.
pub(crate) fn set_spawner(spawner: Option<Spawner>) {
    SPAWNER.set(spawner);
}

pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    SPAWNER.with_borrow(|spawner| match spawner {
        Some(spawner) => spawner(Box::pin(task)),
        None => drop(tokio::spawn(task)),
    });
}

pub(crate) async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    let (mut future, mut alarm) = (pin!(future), pin!(sleep(limit)));
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending => alarm.as_mut().poll(cx).map(|()| Err(Elapsed)),
    })
    .await
}

impl Sleep {
    pub(crate) fn deadline(&self) -> tokio::time::Instant {
        match self {
            Self::Real(sleep) => sleep.deadline(),
            Self::Simulated { deadline, .. } => (*deadline).into(),
        }
    }

    pub(crate) fn is_elapsed(&self) -> bool {
        match self {
            Self::Real(sleep) => sleep.is_elapsed(),
            Self::Simulated { deadline, .. } => now() >= *deadline,
        }
    }

    pub(crate) fn reset(self: Pin<&mut Self>, at: tokio::time::Instant) {
        match self.get_mut() {
            Self::Real(sleep) => sleep.as_mut().reset(at),
            Self::Simulated { deadline, is_set } => (*deadline, *is_set) = (at.into_std(), false),
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let (deadline, is_set) = match self.get_mut() {
            Self::Real(sleep) => return sleep.as_mut().poll(cx),
            Self::Simulated { deadline, is_set } => (*deadline, is_set),
        };
        // A thread whose simulation has ended drops its futures without polling them.
        let Some(mut clock) = CLOCK.get() else { return Poll::Pending };
        if clock.now >= deadline {
            return Poll::Ready(());
        }
        if !std::mem::replace(is_set, true) {
            clock.alarms += 1;
            CLOCK.set(Some(clock));
            let alarm = Alarm { at: deadline, number: clock.alarms, waker: cx.waker().clone() };
            ALARMS.with_borrow_mut(|alarms| alarms.push(alarm));
        }
        Poll::Pending
    }
}

impl Ord for Alarm {
    /// Reversed, because a heap returns the greatest first.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Alarm {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Alarm {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Alarm {}
