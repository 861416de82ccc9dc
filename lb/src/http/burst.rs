//! Groups the reads and writes of a thread's tasks. The runtime learns of many ready sockets at once and runs the woken
//! tasks in order. A task that is about to write moves behind those that still have to read. This keeps the kernel's
//! code for each in the processor's caches, and a peer is woken once for several messages.

use std::future::{Future, poll_fn};
use std::mem;
use std::pin::pin;
use std::task::{Context, Poll};

use tokio::task::yield_now;

/// Lets the tasks that have been woken by now run first. Returns at once if there are none.
pub(super) async fn let_others_read() {
    let mut has_waited = false;
    poll_fn(|cx| match mem::replace(&mut has_waited, true) {
        true => Poll::Ready(()),
        false => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}

/// Has the task that is being polled run again once the runtime has looked which sockets are ready. For a task that has
/// done as much as it may at once: woken as usual, it would run up to 61 times before the runtime learns of new
/// requests.
pub(super) fn wake_after_others(cx: &mut Context<'_>) {
    _ = pin!(yield_now()).poll(cx);
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Write;
    use std::os::unix::net::UnixStream as BlockingUnixStream;
    use std::rc::Rc;

    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;
    use tokio::task::LocalSet;

    use super::*;

    #[tokio::test]
    async fn a_task_that_has_done_enough_runs_once_before_a_new_request_is_seen() {
        let (mut client, server) = BlockingUnixStream::pair().expect("two sockets");
        server.set_nonblocking(true).expect("a socket");
        let mut server = UnixStream::from_std(server).expect("a socket");
        let turns = Rc::new(Cell::new(0));
        let busy = Rc::clone(&turns);
        let tasks = LocalSet::new();
        tasks.spawn_local(async move {
            poll_fn(|cx| {
                busy.set(busy.get() + 1);
                if busy.get() == 100 {
                    client.write_all(b"x").expect("an open socket");
                }
                wake_after_others(cx);
                Poll::<()>::Pending
            })
            .await;
        });
        let reading = async {
            server.read_u8().await.expect("a byte");
            turns.get()
        };
        let seen_at = tasks.run_until(reading).await;
        assert!(seen_at <= 102, "{seen_at}");
    }
}
