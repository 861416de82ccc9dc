//! Runs tasks one step at a time, in an order that the seed gives, in simulated time.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::clock::simulated;

use super::history;
use super::random::{below, one_in};

/// A run with more steps does not make progress.
const MAX_STEPS: u64 = 400_000;

pub(super) type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Whose task it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TaskKind {
    /// The balancer's. It has to end.
    Balancer,
    /// A client or a backend.
    Actor,
    /// A task that runs until the others have ended.
    Background,
}

thread_local! {
    static READY: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    static SPAWNED: RefCell<Vec<(TaskKind, Task)>> = const { RefCell::new(Vec::new()) };
}

struct TaskWaker(usize);

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        READY.with_borrow_mut(|ready| mark(ready, self.0));
    }
}

struct Slot {
    kind: TaskKind,
    task: Option<Task>,
    waker: Waker,
    /// The highest runs first under [`Order::Priorities`].
    priority: u64,
}

/// In which order ready tasks run.
#[derive(Debug, Clone, Copy)]
enum Order {
    Any,
    /// By priorities that change now and then, which finds schedules where one task is far behind the others.
    Priorities,
    /// In the order in which they were spawned.
    First,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunEnd {
    /// Only background tasks are left.
    Finished,
    /// Deadlock or livelock: nothing will wake the tasks that are left, or they wake without end.
    Stuck,
    TooLong,
}

/// Adds a task.
pub(super) fn spawn(kind: TaskKind, task: impl Future<Output = ()> + 'static) {
    SPAWNED.with_borrow_mut(|spawned| spawned.push((kind, Box::pin(task))));
}

/// Runs all tasks. `on_quiescence` is called whenever no task can run before the clock advances.
pub(super) fn run(limit: Duration, mut on_quiescence: impl FnMut()) -> RunEnd {
    READY.with_borrow_mut(Vec::clear);
    let order = match below(4) {
        0 => Order::Priorities,
        1 => Order::First,
        _ => Order::Any,
    };
    let mut slots: Vec<Slot> = Vec::new();
    let mut steps = 0;
    let end = loop {
        admit(&mut slots);
        let Some(next) = READY.with_borrow_mut(|ready| pick(ready, &mut slots, order)) else {
            let left = |kind| slots.iter().any(|slot| slot.kind == kind && slot.task.is_some());
            if !left(TaskKind::Balancer) && !left(TaskKind::Actor) {
                break RunEnd::Finished;
            }
            on_quiescence();
            if simulated::elapsed() > limit {
                break RunEnd::TooLong;
            }
            if !simulated::advance() {
                break RunEnd::Stuck;
            }
            continue;
        };
        if history::has_violation() {
            break RunEnd::Stuck;
        }
        steps += 1;
        if steps > MAX_STEPS {
            break RunEnd::Stuck;
        }
        let slot = &mut slots[next];
        if let Some(task) = &mut slot.task
            && let Poll::Ready(()) = task.as_mut().poll(&mut Context::from_waker(&slot.waker))
        {
            slot.task = None;
        }
    };
    // Dropping a task may spawn or wake others.
    drop(slots);
    SPAWNED.with_borrow_mut(Vec::clear);
    end
}

fn admit(slots: &mut Vec<Slot>) {
    for (kind, task) in SPAWNED.with_borrow_mut(std::mem::take) {
        let number = slots.len();
        let waker = Waker::from(Arc::new(TaskWaker(number)));
        slots.push(Slot { kind, task: Some(task), waker, priority: simulated::random() });
        READY.with_borrow_mut(|ready| mark(ready, number));
    }
}

fn mark(ready: &mut Vec<u64>, number: usize) {
    if ready.len() <= number / 64 {
        ready.resize(number / 64 + 1, 0);
    }
    ready[number / 64] |= 1 << (number % 64);
}

/// Picks a ready task. The order of wake-ups makes no difference, since it may depend on the machine.
fn pick(ready: &mut [u64], slots: &mut [Slot], order: Order) -> Option<usize> {
    let count: u32 = ready.iter().map(|word| word.count_ones()).sum();
    if count == 0 {
        return None;
    }
    let number = match order {
        Order::First => nth(ready, 0),
        Order::Any => nth(ready, if count == 1 { 0 } else { below(u64::from(count)) as usize }),
        Order::Priorities => {
            let best = (0..count as usize).map(|n| nth(ready, n)).max_by_key(|&number| slots[number].priority)?;
            if one_in(16) {
                slots[best].priority = simulated::random();
            } else if one_in(4) {
                // A task that only yields would otherwise starve the others.
                slots[best].priority /= 2;
            }
            best
        }
    };
    ready[number / 64] &= !(1 << (number % 64));
    Some(number)
}

fn nth(ready: &[u64], mut n: usize) -> usize {
    for (index, word) in ready.iter().enumerate() {
        let ones = word.count_ones() as usize;
        if n < ones {
            let mut word = *word;
            for _ in 0..n {
                word &= word - 1;
            }
            return index * 64 + word.trailing_zeros() as usize;
        }
        n -= ones;
    }
    unreachable!("the caller counted more than n")
}
