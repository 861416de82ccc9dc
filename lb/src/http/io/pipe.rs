//! A connection in memory, for simulations. It behaves like TCP, but the seed decides how many bytes an operation moves
//! and whether it has to wait.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Acknowledged;
use crate::clock::simulated::random;

pub(crate) type Connecting = Pin<Box<dyn Future<Output = io::Result<Pipe>> + Send>>;
type Network = Box<dyn Fn(SocketAddr) -> Connecting>;

type Observer = Box<dyn Fn(&Link)>;

thread_local! {
    static TRACER: Cell<Option<fn(String)>> = const { Cell::new(None) };
    static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
    static NETWORK: RefCell<Option<Network>> = const { RefCell::new(None) };
}

/// Passes this thread's outgoing connections to `network`; `None`: to the system.
pub(crate) fn set_network(network: Option<Network>) {
    NETWORK.set(network);
}

/// A connection in the simulated network of this thread; `None` outside a simulation.
pub(crate) fn connect(address: SocketAddr) -> Option<Connecting> {
    NETWORK.with_borrow(|network| network.as_ref().map(|network| network(address)))
}

/// Reports to `tracer` what the first end of each connection does.
pub(crate) fn set_tracer(tracer: Option<fn(String)>) {
    TRACER.set(tracer);
}

/// Reports to `observer` when a connection is [chosen again](Pipe::reuse).
pub(crate) fn set_observer(observer: Option<Observer>) {
    OBSERVER.set(observer);
}

/// One end of a connection. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct Pipe {
    link: Arc<Link>,
    side: usize,
}

/// The state shared by both ends, for observers.
#[derive(Debug)]
pub(crate) struct Link {
    pub name: String,
    /// The owner of the connection.
    pub tag: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Indexed by the side that writes into it.
    directions: [Direction; 2],
    conditions: LinkConditions,
}

/// How a connection behaves within what TCP allows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinkConditions {
    /// The most bytes in flight in one direction.
    pub window: usize,
    /// The most bytes moved by one operation.
    pub max_operation: usize,
    /// One in this many operations waits unnecessarily, as the runtime sometimes makes tasks wait; 0: none.
    pub delay_one_in: u64,
}

#[derive(Debug, Default)]
struct Direction {
    bytes: Vec<u8>,
    /// How many of the bytes have been read.
    start: usize,
    /// Bytes read in total.
    read: u64,
    written: u64,
    has_ended: bool,
    /// The reader learns of a reset when it has read the rest, or when it writes.
    is_reset: bool,
    /// The reader has learnt of the reset. The system reports it once: then reads return the end.
    is_reset_reported: bool,
    /// Nobody will read.
    is_reader_closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// The state of one direction for observers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    pub read: u64,
    pub written: u64,
    pub room: usize,
    /// The writer may still write, as far as it knows.
    pub is_open: bool,
    /// The reader has read everything and waits for more.
    pub is_awaited: bool,
}

impl Flow {
    pub(crate) fn unread(&self) -> u64 {
        self.written - self.read
    }
}

impl Link {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The direction into which `side` writes.
    pub(crate) fn flow(&self, side: usize) -> Flow {
        let state = self.state();
        let direction = &state.directions[side];
        Flow {
            read: direction.read,
            written: direction.written,
            room: state.conditions.window.saturating_sub(direction.unread()),
            is_open: !direction.has_ended && !direction.is_reader_closed && !direction.is_reset,
            is_awaited: direction.unread() == 0 && direction.reader.is_some(),
        }
    }
}

impl Direction {
    fn unread(&self) -> usize {
        self.bytes.len() - self.start
    }

    fn take(&mut self, count: usize) -> &[u8] {
        let taken = self.start..self.start + count;
        self.start += count;
        self.read += count as u64;
        &self.bytes[taken]
    }

    fn put(&mut self, bytes: &[u8]) {
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        } else if self.start > 64 * 1024 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
        self.written += bytes.len() as u64;
    }

    /// Resets the connection for the reader. Some of the bytes in flight may be lost.
    fn reset(&mut self) {
        // Once the end has arrived, everything before it has arrived, too.
        let has_come = self.has_ended && random().is_multiple_of(2);
        if !self.is_reset && !has_come {
            self.is_reset = true;
            self.has_ended = false;
            let kept = (random() % (self.unread() as u64 + 1)) as usize;
            self.bytes.truncate(self.start + kept);
            self.written = self.read + kept as u64;
        }
        self.wake();
    }

    fn wake(&mut self) {
        self.wake_reader();
        self.wake_writer();
    }

    fn wake_reader(&mut self) {
        self.reader.take().into_iter().for_each(Waker::wake);
    }

    fn wake_writer(&mut self) {
        self.writer.take().into_iter().for_each(Waker::wake);
    }
}

impl LinkConditions {
    /// How many of `possible` bytes to move now; `None`: the task has to wait for its next turn.
    fn count(&self, possible: usize) -> Option<usize> {
        if self.delay_one_in > 0 && random().is_multiple_of(self.delay_one_in) {
            return None;
        }
        let max = possible.min(self.max_operation);
        Some(if max > 1 && random().is_multiple_of(2) { 1 + (random() % max as u64) as usize } else { max })
    }
}

impl Pipe {
    /// Both ends of a connection.
    pub(crate) fn pair(name: String, tag: usize, conditions: LinkConditions) -> (Self, Self) {
        let state = State { directions: Default::default(), conditions };
        let link = Arc::new(Link { name, tag, state: Mutex::new(state) });
        (Self { link: Arc::clone(&link), side: 0 }, Self { link, side: 1 })
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// What the other side has read counts as acknowledged.
    pub(crate) fn acknowledged(&self) -> Acknowledged {
        let state = self.link.state();
        let outgoing = &state.directions[self.side];
        let is_over = outgoing.is_reset || outgoing.is_reader_closed || state.directions[1 - self.side].is_reset;
        Acknowledged { bytes: outgoing.read, is_all: outgoing.unread() == 0 || is_over }
    }

    /// Reports to the observer that the connection has been chosen for another request. Its bytes may come later.
    pub(crate) fn reuse(&self) {
        OBSERVER.with_borrow(|observer| observer.iter().for_each(|observer| observer(&self.link)));
    }

    /// Reads into `buffer`; 0: the other side has closed.
    pub(crate) fn read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        self.read_with(cx, buffer.len(), |bytes| buffer[..bytes.len()].copy_from_slice(bytes))
    }

    /// Passes at most `max` bytes to `sink`. Returns how many; 0: the other side has closed.
    fn read_with(&self, cx: &mut Context<'_>, max: usize, sink: impl FnOnce(&[u8])) -> Poll<io::Result<usize>> {
        let mut state = self.link.state();
        let State { directions, conditions, .. } = &mut *state;
        let incoming = &mut directions[1 - self.side];
        let possible = incoming.unread().min(max);
        if possible == 0 {
            return match (incoming.unread() == 0, incoming.is_reset, incoming.has_ended) {
                (false, ..) => Poll::Ready(Ok(0)),
                (true, true, false) if !incoming.is_reset_reported => {
                    // The actors on the other side read and write independently, and would have to tell each other.
                    incoming.is_reset_reported = self.side == 0;
                    Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
                }
                (true, true, false) => Poll::Ready(Ok(0)),
                (true, _, true) => Poll::Ready(Ok(0)),
                (true, false, false) => {
                    incoming.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        }
        let Some(count) = conditions.count(possible) else {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        };
        sink(incoming.take(count));
        self.trace(|| format!("reads {count} bytes"));
        incoming.wake_writer();
        Poll::Ready(Ok(count))
    }

    /// Writes some of `bytes` and returns how many.
    pub(crate) fn write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.link.state();
        let State { directions, conditions, .. } = &mut *state;
        let [outgoing, incoming] = Self::ends(directions, self.side);
        if outgoing.has_ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if incoming.is_reset || outgoing.is_reset {
            incoming.is_reset_reported |= self.side == 0;
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if outgoing.is_reader_closed {
            // Data for a closed socket is answered by a reset, which the writer learns later.
            incoming.reset();
            return Poll::Ready(Ok(bytes.len()));
        }
        let room = conditions.window.saturating_sub(outgoing.unread());
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if room == 0 {
            outgoing.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let Some(count) = conditions.count(room.min(bytes.len())) else {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        };
        outgoing.put(&bytes[..count]);
        self.trace(|| format!("writes {count} bytes"));
        outgoing.wake_reader();
        Poll::Ready(Ok(count))
    }

    /// Reads without waiting, if the runtime may not know yet that bytes have arrived.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        if random().is_multiple_of(4) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        match self.read(&mut Context::from_waker(Waker::noop()), buffer) {
            Poll::Ready(result) => result,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Closes the writing side.
    pub(crate) fn shutdown(&self) {
        self.trace(|| "ends".to_owned());
        let mut state = self.link.state();
        let outgoing = &mut state.directions[self.side];
        outgoing.has_ended = true;
        outgoing.wake_reader();
    }

    /// Resets the connection. Call it before dropping the connection.
    pub(crate) fn reset(&self) {
        self.trace(|| "resets".to_owned());
        let mut state = self.link.state();
        let [outgoing, incoming] = Self::ends(&mut state.directions, self.side);
        outgoing.has_ended = false;
        outgoing.reset();
        incoming.is_reader_closed = true;
        incoming.wake();
    }

    fn trace(&self, what: impl FnOnce() -> String) {
        if let (0, Some(tracer)) = (self.side, TRACER.get()) {
            tracer(format!("{} balancer {}", self.link.name, what()));
        }
    }

    fn ends(directions: &mut [Direction; 2], side: usize) -> [&mut Direction; 2] {
        let [first, second] = directions;
        if side == 0 { [first, second] } else { [second, first] }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.trace(|| "closes".to_owned());
        let mut state = self.link.state();
        let [outgoing, incoming] = Self::ends(&mut state.directions, self.side);
        incoming.is_reader_closed = true;
        // Closing a socket with unread bytes resets the connection.
        if incoming.unread() > 0 {
            outgoing.reset();
        } else if !outgoing.is_reset {
            outgoing.has_ended = true;
        }
        outgoing.wake();
        incoming.wake();
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.read_with(cx, buf.remaining(), |bytes| buf.put_slice(bytes)).map_ok(drop)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shutdown();
        Poll::Ready(Ok(()))
    }
}
