//! Drops futures before they complete, as when a client disconnects: for the contract suites of the stores.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use futures_util::future::BoxFuture;

/// An operation that can be repeated.
pub type Operation<'a> = &'a (dyn Fn() -> BoxFuture<'a, ()> + Sync);

/// Polls `operation` and drops it when it is pending for the time after `waits`. Returns its output if it completes
/// before.
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
