//! Moves large content between two sockets without copying it to this process: `splice(2)` through a pipe.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;

use super::io::Plain;

/// Less than this is read and written, which needs fewer system calls.
pub(crate) const MIN_SPLICE_BYTES: u64 = 128 * 1024;
const PIPE_BYTES: usize = 256 * 1024;
const MIN_PIPE_BYTES: usize = 64 * 1024;
/// Pipes that a thread keeps for reuse.
const MAX_SPARE: usize = 16;

/// A pipe and the number of bytes in it.
pub(crate) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    filled: usize,
}

thread_local! {
    static SPARE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
    /// Pipes that the thread has open, spare ones included.
    static OPEN: Cell<usize> = const { Cell::new(0) };
    static MAX_OPEN: Cell<usize> = const { Cell::new(0) };
}

/// Allows this thread to open up to `pipes` pipes; none before this is called.
pub(crate) fn allow(pipes: usize) {
    MAX_OPEN.set(pipes);
}

impl Pipe {
    /// An empty pipe. `Err`: no usable one is available; read and write instead.
    pub(crate) fn take() -> io::Result<Self> {
        if let Some(spare) = SPARE.with_borrow_mut(Vec::pop) {
            return Ok(spare);
        }
        if OPEN.get() >= MAX_OPEN.get() {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Pipes are tiny once the user's limit on pipe memory is reached.
        let _ = fcntl_setpipe_size(&writer, PIPE_BYTES);
        if fcntl_getpipe_size(&writer)? < MIN_PIPE_BYTES {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        OPEN.set(OPEN.get() + 1);
        Ok(Self { reader, writer, filled: 0 })
    }

    /// Keeps an empty pipe for reuse. A pipe with content is closed.
    pub(crate) fn give_back(self) {
        SPARE.with_borrow_mut(|spare| {
            if self.filled == 0 && spare.len() < MAX_SPARE {
                spare.push(self);
            }
        });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Moves at most `max` bytes from `from` into the pipe; 0: end of file.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>, from: Plain<'_>, max: usize) -> Poll<io::Result<usize>> {
        loop {
            ready!(from.poll_read_ready(cx))?;
            match from.try_io(Interest::READABLE, || moved(from, &self.writer, max.min(PIPE_BYTES))) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(count) => {
                    self.filled += count;
                    return Poll::Ready(Ok(count));
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// Moves bytes from the pipe to `to`. Returns how many.
    pub(crate) fn poll_empty(&mut self, cx: &mut Context<'_>, to: Plain<'_>) -> Poll<io::Result<usize>> {
        loop {
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || moved(&self.reader, to, self.filled)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(count) => {
                    self.filled = self.filled.saturating_sub(count);
                    return Poll::Ready(Ok(count));
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // When the thread ends, the counter may be destroyed before the spare pipes.
        let _ = OPEN.try_with(|open| open.set(open.get().saturating_sub(1)));
    }
}

fn moved(from: impl std::os::fd::AsFd, to: impl std::os::fd::AsFd, max: usize) -> io::Result<usize> {
    Ok(splice(from, None, to, None, max, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threads_open_pipes_are_limited() {
        assert!(Pipe::take().is_err(), "none unless allowed");
        allow(2);
        let (first, second) = (Pipe::take().expect("a pipe"), Pipe::take().expect("a pipe"));
        assert!(Pipe::take().is_err());
        first.give_back();
        let third = Pipe::take().expect("the spare one");
        assert!(Pipe::take().is_err());
        drop((second, third));
        assert!(Pipe::take().is_ok());
    }
}
