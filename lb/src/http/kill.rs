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
        let place = EXCHANGE_TASKS.with_borrow_mut(|carriers| {
            // Simulations have no runtime, and kill nothing.
            if !carriers.are_followed
                && let Ok(runtime) = Handle::try_current()
            {
                carriers.are_followed = true;
                runtime.spawn(follow(Arc::clone(control)));
            }
            let waker = Some(cx.waker().clone());
            match carriers.free.pop() {
                Some(place) => {
                    carriers.wakers[place] = waker;
                    place
                }
                None => {
                    carriers.wakers.push(waker);
                    carriers.wakers.len() - 1
                }
            }
        });
        Poll::Ready(ExchangeTask(place))
    })
    .await
}

impl Drop for ExchangeTask {
    fn drop(&mut self) {
        // The list may be gone already at the end of the thread.
        let _ = EXCHANGE_TASKS.try_with(|carriers| {
            let mut carriers = carriers.borrow_mut();
            carriers.wakers[self.0] = None;
            carriers.free.push(self.0);
        });
    }
}

/// Wakes this thread's tasks whenever exchanges are killed, as long as the thread lives.
async fn follow(control: Arc<Control>) {
    let mut kills = control.kills();
    while let Some(done) = kills.recv().await {
        EXCHANGE_TASKS.with_borrow(|carriers| carriers.wakers.iter().flatten().for_each(Waker::wake_by_ref));
        // They are ready before this task is again, so that all have looked when it says so.
        yield_now().await;
        drop(done);
    }
}
