//! Wakes exchanges that an operator kills. An exchange checks whether it has been killed whenever it waits, which costs
//! nothing else, but one that waits already has to be woken. So each thread lists the tasks that carry exchanges, and a
//! kill, which is rare, wakes all of them.

use std::cell::RefCell;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use tokio::runtime::Handle;
use tokio::task::yield_now;

use crate::control::Control;

thread_local! {
    static EXCHANGE_TASKS: RefCell<ExchangeTasks> = RefCell::default();
}

#[derive(Default)]
struct ExchangeTasks {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
    /// Whether a task of this thread waits for kills and wakes the others.
    are_followed: bool,
}

/// A task that carries exchanges; listed until dropped.
pub(crate) struct ExchangeTask(usize);

/// How many tasks of this thread are listed.
#[cfg(test)]
pub(crate) fn listed_tasks() -> usize {
    EXCHANGE_TASKS.with_borrow(|tasks| tasks.wakers.iter().flatten().count())
}

/// Lists the current task, which must stay on this thread.
pub(crate) async fn list_task(control: &Arc<Control>) -> ExchangeTask {
    poll_fn(|cx| {
        let index = EXCHANGE_TASKS.with_borrow_mut(|tasks| {
            // Simulations have no runtime, and kill nothing.
            if !tasks.are_followed
                && let Ok(runtime) = Handle::try_current()
            {
                tasks.are_followed = true;
                runtime.spawn(follow(Arc::clone(control)));
            }
            let waker = Some(cx.waker().clone());
            match tasks.free.pop() {
                Some(index) => {
                    tasks.wakers[index] = waker;
                    index
                }
                None => {
                    tasks.wakers.push(waker);
                    tasks.wakers.len() - 1
                }
            }
        });
        Poll::Ready(ExchangeTask(index))
    })
    .await
}

impl Drop for ExchangeTask {
    fn drop(&mut self) {
        // The list may already be destroyed when the thread ends.
        let _ = EXCHANGE_TASKS.try_with(|tasks| {
            let mut tasks = tasks.borrow_mut();
            tasks.wakers[self.0] = None;
            tasks.free.push(self.0);
        });
    }
}

/// Wakes this thread's tasks whenever exchanges are killed, for as long as the thread lives.
async fn follow(control: Arc<Control>) {
    let mut kills = control.kills();
    while let Some(done) = kills.recv().await {
        EXCHANGE_TASKS.with_borrow(|tasks| tasks.wakers.iter().flatten().for_each(Waker::wake_by_ref));
        // The woken tasks run before this one resumes, so all of them have checked when it reports that.
        yield_now().await;
        drop(done);
    }
}
