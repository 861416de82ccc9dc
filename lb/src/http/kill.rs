//! Exchanges that an operator ends. An exchange looks whether it has been killed whenever it has to wait, which costs it
//! nothing else; those that wait already have to be woken. So the tasks that carry exchanges are listed, by their thread,
//! and all of them woken at once: a kill is rare.

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
    /// Somebody wakes them.
    are_followed: bool,
}

/// A task that carries exchanges, listed until dropped.
pub(crate) struct ExchangeTask(usize);

/// Lists the present task, which stays on this thread.
pub(crate) async fn carrier(control: &Arc<Control>) -> ExchangeTask {
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
        // The list may be gone already at the end of the thread.
        let _ = EXCHANGE_TASKS.try_with(|tasks| {
            let mut tasks = tasks.borrow_mut();
            tasks.wakers[self.0] = None;
            tasks.free.push(self.0);
        });
    }
}

/// Wakes this thread's tasks whenever exchanges are killed, as long as the thread lives.
async fn follow(control: Arc<Control>) {
    let mut kills = control.kills();
    while let Some(done) = kills.recv().await {
        EXCHANGE_TASKS.with_borrow(|tasks| tasks.wakers.iter().flatten().for_each(Waker::wake_by_ref));
        // They are ready before this task is again, so that all have looked when it says so.
        yield_now().await;
        drop(done);
    }
}
