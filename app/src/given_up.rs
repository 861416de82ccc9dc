//! Futures that are dropped on their way, as when a client leaves: for the contracts of the stores.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use futures_util::future::BoxFuture;

/// What can be begun again and again.
pub type Operation<'a> = &'a (dyn Fn() -> BoxFuture<'a, ()> + Sync);

/// Drops `operation` when it has to wait for the time after `waits`. Gives its output if it has come to one before.
pub async fn after<F: Future>(mut waits: usize, operation: F) -> Option<F::Output> {
    let mut operation = pin!(operation);
    poll_fn(|context| match operation.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if waits == 0 => Poll::Ready(None),
        Poll::Pending => {
            waits -= 1;
            Poll::Pending
        }
    })
    .await
}
