//! Detects that a client has disconnected while its bytes are not being read: the unread bytes hide the end of the
//! connection behind them.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionread;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::connection_limit::{ConnectionLimit, ConnectionPermit};

/// The client's socket, registered with the runtime a second time, so that readiness seen here is not taken from the
/// task that reads.
pub(super) struct DisconnectWatcher {
    socket: TcpStream,
    /// It uses a file descriptor, as a backend connection does.
    _permit: ConnectionPermit,
}

impl DisconnectWatcher {
    /// Watches a client. Fails at the connection limit, or without a free file descriptor.
    pub(super) fn of(client: BorrowedFd<'_>, limit: &Arc<ConnectionLimit>) -> io::Result<Self> {
        let permit = limit.try_acquire_spare().ok_or(io::ErrorKind::QuotaExceeded)?;
        let socket = std::net::TcpStream::from(client.try_clone_to_owned()?);
        Ok(Self { socket: TcpStream::from_std(socket)?, _permit: permit })
    }

    /// Whether the client has disconnected: it reset the connection, or closed its side though at least `missing` bytes
    /// are still to come. Otherwise `cx` is woken when that may have changed.
    pub(super) fn has_disconnected(&self, cx: &mut Context<'_>, missing: u64) -> bool {
        while let Poll::Ready(Ok(())) = self.socket.poll_read_ready(cx) {
            let mut sockets = [PollFd::new(&self.socket, PollFlags::RDHUP)];
            if poll(&mut sockets, Some(&Timespec::default())).is_err() {
                return false;
            }
            let seen = sockets[0].revents();
            if seen.intersects(PollFlags::ERR | PollFlags::HUP) {
                return true;
            }
            if seen.contains(PollFlags::RDHUP) {
                // A half-closed socket reports no further change.
                return ioctl_fionread(&self.socket).is_ok_and(|unread| unread < missing);
            }
            // More bytes arrived, which are not read here: wait for the next change.
            let _ = self.socket.try_io(Interest::READABLE, || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into()));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::os::fd::AsFd;
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// A client that has sent ten bytes, which are not read.
    async fn client() -> (TcpStream, DisconnectWatcher) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("a listener");
        let (accepted, _) = listener.accept().await.expect("a client");
        client.write_all(&[b'x'; 10]).await.expect("a peer");
        (client, DisconnectWatcher::of(accepted.as_fd(), &ConnectionLimit::new(1)).expect("a file"))
    }

    async fn leaves(watcher: &DisconnectWatcher, missing: u64) -> bool {
        let disconnected =
            poll_fn(|cx| if watcher.has_disconnected(cx, missing) { Poll::Ready(()) } else { Poll::Pending });
        tokio::time::timeout(Duration::from_secs(5), disconnected).await.is_ok()
    }

    #[tokio::test]
    async fn a_reset_is_noticed_behind_unread_bytes() {
        let (client, watcher) = client().await;
        let resetting = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            client.set_zero_linger().expect("an open socket");
            drop(client);
        };
        let (has_left, ()) = tokio::join!(leaves(&watcher, 0), resetting);
        assert!(has_left);
    }

    #[tokio::test]
    async fn a_close_means_disconnect_if_bytes_are_missing() {
        for (missing, expected) in [(11, true), (10, false)] {
            let (mut client, watcher) = client().await;
            client.shutdown().await.expect("an open socket");
            let disconnected = poll_fn(|cx| {
                // The close has arrived.
                std::task::ready!(watcher.socket.poll_read_ready(cx)).expect("an open socket");
                let mut sockets = [PollFd::new(&watcher.socket, PollFlags::RDHUP)];
                poll(&mut sockets, Some(&Timespec::default())).expect("a socket");
                if !sockets[0].revents().contains(PollFlags::RDHUP) {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(watcher.has_disconnected(cx, missing))
            });
            assert_eq!(disconnected.await, expected, "{missing} bytes are missing");
        }
    }
}
