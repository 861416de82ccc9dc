//! HTTP by a data path of our own, on both sides. A request's head is parsed where it was read and written anew
//! for the backend in one pass; buffers and idle connections to backends belong to the thread, so an exchange
//! allocates next to nothing and waits for no lock. An idle client costs its socket and a small task.
//!
//! - [`stream`]: a client's connection, plain or TLS.
//! - [`io`]: what either side's socket is.
//! - [`work`]: buffers, lent for as long as a connection is busy.
//! - [`idle`]: connections to backends that wait for their next request.
//! - [`client`]: one client's requests, one after the other.
//! - [`h2`]: connections of HTTP/2, whose streams are carried as HTTP/1.1.
//! - [`request`]: where a request goes and what its backend is told.
//! - [`facts`]: what is true of a request, for values; [`fields`] and [`target`]: what is made of them; [`own`]: answers
//!   that the operator wrote.
//! - [`transfer`]: upload and download of an exchange, driven by one poll; [`upstream`]: the backend's side of them.
//! - [`presence`]: clients that have gone while nothing of theirs is read.
//! - [`content`]: a request's content, one store with several cursors; [`body`]: a response's, framed anew.
//! - [`splice`]: large content that need not be looked at.
//! - [`interim`]: how many interim responses pass.
//! - [`pace`]: clients that are too slow over all.
//! - [`kill`]: wakes the tasks that carry exchanges which an operator ends.
//! - [`timer`]: time limits that cost nothing until they pass.
//! - [`tunnel`]: a connection that ceased to be HTTP.

mod body;
mod client;
mod content;
pub mod explain;
mod facts;
mod fields;
pub mod h1;
pub mod h2;
pub mod idle;
mod interim;
pub mod io;
pub mod kill;
mod own;
mod pace;
mod presence;
mod request;
pub mod splice;
pub mod stream;
mod target;
mod timer;
mod transfer;
mod tunnel;
mod upstream;
#[cfg(not(test))]
mod work;
#[cfg(test)]
pub mod work;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

use crate::access_log::AccessLog;
use crate::config::{ListenerConfig, ListenerSettings};
use crate::control::Control;
use crate::room::{Place, Room};
use crate::shutdown::{Phase, Shutdown};
pub use client::serve;

/// Where Linux tells the machine's name.
const HOSTNAME_FILE: &str = "/proc/sys/kernel/hostname";

/// What every listener of the process shares.
pub struct Shared {
    pub control: Arc<Control>,
    pub access_log: Arc<AccessLog>,
    /// Idle connections to backends that each thread may keep.
    pub most_idle: Arc<AtomicUsize>,
    pub shutdown: Shutdown,
    /// For clients.
    pub room: Arc<Room>,
    /// For connections to backends.
    pub backend_room: Arc<Room>,
}

/// What all connections of one listener on one thread have in common.
pub struct Engine {
    control: Arc<Control>,
    access_log: Arc<AccessLog>,
    address: SocketAddr,
    /// The machine's name.
    hostname: Box<str>,
    /// As they were when the listener was opened.
    settings: ListenerSettings,
    /// As they were last, once the listener is closed.
    last_settings: OnceLock<ListenerSettings>,
    most_idle: Arc<AtomicUsize>,
    stop: Arc<Stop>,
    /// Those of all threads, this one's among them.
    stops: Arc<[Arc<Stop>]>,
    room: Arc<Room>,
    backend_room: Arc<Room>,
}

/// Tells the connections of one thread to end when they can.
#[derive(Debug)]
pub struct Stop {
    shutdown: Shutdown,
    idle: Notify,
    /// Clients that linger: they have had their answer and still send.
    lingering: AtomicUsize,
    /// How many of them have to leave to make room, and what tells them.
    lingering_to_shed: AtomicUsize,
    shed_lingering: Notify,
    /// Exchanges that the thread carries now. Only its own tasks count here.
    exchanges: AtomicUsize,
    /// How many idle connections have to leave to make room.
    to_shed: AtomicUsize,
    /// How often some had to.
    sheddings: AtomicUsize,
}

/// Counts one more until dropped. Only the tasks of one thread count, others at most look: so counting is no
/// read-modify-write, which would cost more than all else in here.
#[derive(Debug)]
pub struct Counted<'a>(&'a AtomicUsize);

impl Engine {
    /// For the thread that stands at `thread` in `stops`.
    pub fn new(listener: &ListenerConfig, shared: &Shared, stops: &Arc<[Arc<Stop>]>, thread: usize) -> Self {
        Self {
            control: Arc::clone(&shared.control),
            access_log: Arc::clone(&shared.access_log),
            address: listener.address,
            hostname: std::fs::read_to_string(HOSTNAME_FILE).unwrap_or_default().trim().into(),
            settings: listener.settings,
            last_settings: OnceLock::new(),
            most_idle: Arc::clone(&shared.most_idle),
            stop: Arc::clone(&stops[thread]),
            stops: Arc::clone(stops),
            room: Arc::clone(&shared.room),
            backend_room: Arc::clone(&shared.backend_room),
        }
    }

    /// Has each answer be the last on its connection, since nobody listens any more. `settings` hold to the end.
    pub fn close(&self, settings: ListenerSettings) {
        // It is closed once.
        let _ = self.last_settings.set(settings);
        self.stop.call();
    }

    /// How clients are treated now: as the snapshot has it for this address.
    fn listener(&self) -> ListenerSettings {
        if let Some(last) = self.last_settings.get() {
            return *last;
        }
        let snapshot = self.control.snapshot();
        match snapshot.config.listeners.iter().find(|listener| listener.address == self.address) {
            Some(here) => here.settings,
            None => self.settings,
        }
    }

    /// A client's place, as soon as there is one. Idle clients leave to make room: of this thread, and where that does not
    /// help, of each.
    pub async fn place(&self) -> Place {
        let mut has_asked = false;
        let shed = |count: usize| match std::mem::replace(&mut has_asked, true) {
            false => self.stop.shed(count),
            true => self.stops.iter().for_each(|stop| stop.shed(count.div_ceil(self.stops.len()))),
        };
        let place = self.room.place(shed).await;
        if has_asked {
            // Who was asked to leave and has not need not any more.
            self.stops.iter().for_each(|stop| stop.shed_nobody());
        }
        place
    }

    /// A place for a client that cannot be kept waiting.
    pub fn place_anyway(&self) -> Place {
        self.room.place_anyway()
    }

    /// To be awaited while a client lingers, or is slow to begin: returns when it has to leave to make room.
    pub async fn sheds_lingering(&self) {
        let Stop { lingering, lingering_to_shed, shed_lingering, .. } = &*self.stop;
        let _lingering = Counted::new(lingering);
        loop {
            let mut notified = pin!(shed_lingering.notified());
            notified.as_mut().enable();
            if self.room.is_full() && take_one(lingering_to_shed) {
                self.control.metrics.client_connections_shed.inc();
                return;
            }
            notified.await;
        }
    }

    /// Whether connections may outlive their present exchange.
    fn keeps_clients(&self) -> bool {
        self.stop.shutdown.phase() == Phase::Running && !self.is_closed()
    }

    /// Whether nobody listens any more where these connections came from.
    fn is_closed(&self) -> bool {
        self.last_settings.get().is_some()
    }

    fn most_idle(&self) -> usize {
        self.most_idle.load(Ordering::Relaxed)
    }
}

impl Stop {
    pub fn new(shutdown: Shutdown) -> Self {
        let [exchanges, to_shed, sheddings, lingering, lingering_to_shed] = [const { AtomicUsize::new(0) }; 5];
        let [idle, shed_lingering] = [const { Notify::const_new() }; 2];
        Self { shutdown, idle, exchanges, to_shed, sheddings, lingering, lingering_to_shed, shed_lingering }
    }

    /// Has idle connections see that the stop has begun.
    pub fn begin(&self) {
        self.idle.notify_waiters();
    }

    /// Has idle connections look whether something has changed.
    fn call(&self) {
        self.sheddings.fetch_add(1, Ordering::AcqRel);
        self.idle.notify_waiters();
    }

    /// To be held from a request's head to the end of its answer, by which a stop knows what it has to wait for.
    pub fn in_exchange(&self) -> Counted<'_> {
        Counted::new(&self.exchanges)
    }

    pub fn exchanges(&self) -> usize {
        self.exchanges.load(Ordering::Relaxed)
    }

    /// Sheds `count` connections: those that linger, then idle ones, longest-waiting first.
    fn shed(&self, count: usize) {
        let lingering = count.min(self.lingering.load(Ordering::Relaxed));
        self.lingering_to_shed.store(lingering, Ordering::Release);
        self.shed_lingering.notify_waiters();
        self.to_shed.store(count - lingering, Ordering::Release);
        self.call();
    }

    fn shed_nobody(&self) {
        self.lingering_to_shed.store(0, Ordering::Release);
        self.to_shed.store(0, Ordering::Release);
    }

    /// Whether the idle connection that asks is one of those which have to leave.
    fn sheds_one(&self) -> bool {
        take_one(&self.to_shed)
    }

    /// From then on connections end with the exchange they carry, idle ones at once.
    pub fn has_begun(&self) -> bool {
        self.shutdown.phase() == Phase::Stopping
    }
}

fn take_one(count: &AtomicUsize) -> bool {
    count.try_update(Ordering::AcqRel, Ordering::Acquire, |count| count.checked_sub(1)).is_ok()
}

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.store(self.0.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    }
}
