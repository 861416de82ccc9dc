//! HTTP by a data path of our own, on both sides. A request's head is parsed where it was read and written anew
//! for the backend in one pass; buffers and idle connections to backends belong to the thread, so an exchange
//! allocates next to nothing and waits for no lock. An idle client costs its socket and a small task.
//!
//! - [`stream`]: a client's connection, plain or TLS.
//! - [`io`]: what either side's socket is.
//! - [`buffers`]: lent for as long as a connection is busy.
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
//! - [`burst`]: reads and writes of a thread's tasks in groups.
//! - [`kill`]: wakes the tasks that carry exchanges which an operator ends.
//! - [`timer`]: time limits that cost nothing until they pass.
//! - [`tunnel`]: a connection that ceased to be HTTP.

mod body;
#[cfg(not(test))]
mod buffers;
#[cfg(test)]
pub mod buffers;
mod burst;
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

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use crate::access_log::AccessLog;
use crate::config::backend::SocketAddress;
use crate::config::site::ListenerName;
use crate::config::{ListenerConfig, ListenerSettings};
use crate::connection_limit::{ConnectionLimit, ConnectionPermit};
use crate::control::Control;
use crate::shutdown::{Phase, Shutdown};
use crate::site::Sites;
pub use client::serve;
pub use transfer::MAX_READ_BYTES;

/// Where Linux tells the machine's name.
const HOSTNAME_FILE: &str = "/proc/sys/kernel/hostname";

/// What every listener of the process shares.
pub struct Shared {
    pub control: Arc<Control>,
    pub access_log: Arc<AccessLog>,
    /// Idle connections to backends that each thread may keep.
    pub max_idle: Arc<AtomicUsize>,
    pub shutdown: Shutdown,
    /// For clients.
    pub client_limit: Arc<ConnectionLimit>,
    /// For connections to backends.
    pub backend_limit: Arc<ConnectionLimit>,
    /// For handshakes of TLS with clients.
    pub handshake_limit: Arc<ConnectionLimit>,
}

/// What all connections of one listener on one thread have in common.
pub struct Engine {
    control: Arc<Control>,
    access_log: Arc<AccessLog>,
    address: SocketAddress,
    /// The listener's.
    name: ArcSwap<ListenerName>,
    /// The machine's name.
    hostname: Box<str>,
    /// As they were when the listener was opened.
    settings: ListenerSettings,
    /// As they were last, once the listener is closed.
    last_settings: OnceLock<ListenerSettings>,
    /// Whether others may connect now than when its connections were made.
    is_revoked: AtomicBool,
    max_idle: Arc<AtomicUsize>,
    stop: Arc<Stop>,
    /// Those of all threads, this one's among them.
    stops: Arc<[Arc<Stop>]>,
    room: Arc<ConnectionLimit>,
    backend_limit: Arc<ConnectionLimit>,
    handshake_limit: Arc<ConnectionLimit>,
}

/// Tells the connections of one thread to end when they can.
#[derive(Debug)]
pub struct Stop {
    shutdown: Shutdown,
    idle: Notify,
    /// Clients that linger: they have had their answer and still send.
    lingering: ShedGroup,
    /// Clients that are slow with their handshake of TLS.
    handshakes: ShedGroup,
    /// Whose handshake may use the processor.
    handshake_turn: Semaphore,
    /// Exchanges that the thread carries now. Only its own tasks count here.
    exchanges: AtomicUsize,
    /// How many idle connections have to leave to make room.
    to_shed: AtomicUsize,
    /// How often some had to.
    sheddings: AtomicUsize,
}

/// Clients of a kind that have to leave when others want their places.
#[derive(Debug)]
struct ShedGroup {
    count: AtomicUsize,
    /// How many of them have to, and what tells them.
    to_shed: AtomicUsize,
    shed: Notify,
}

impl ShedGroup {
    const fn new() -> Self {
        Self { count: AtomicUsize::new(0), to_shed: AtomicUsize::new(0), shed: Notify::const_new() }
    }

    /// Returns when the client that awaits it has to leave, since `room` is full.
    async fn sheds(&self, room: &ConnectionLimit) {
        let _counted = CountGuard::new(&self.count);
        loop {
            let mut notified = pin!(self.shed.notified());
            notified.as_mut().enable();
            if room.is_full() && take_one(&self.to_shed) {
                return;
            }
            notified.await;
        }
    }

    /// Has up to `count` leave; how many there are for that.
    fn shed(&self, count: usize) -> usize {
        let here = count.min(self.count.load(Ordering::Relaxed));
        self.to_shed.store(here, Ordering::Release);
        self.shed.notify_waiters();
        here
    }

    fn shed_nobody(&self) {
        self.to_shed.store(0, Ordering::Release);
    }
}

/// Counts one more until dropped. Only the tasks of one thread count, others at most look: so counting is no
/// read-modify-write, which would cost more than all else in here.
#[derive(Debug)]
pub struct CountGuard<'a>(&'a AtomicUsize);

impl Engine {
    /// At the listener's first address, for the thread that stands at `thread` in `stops`.
    pub fn new(listener: &ListenerConfig, shared: &Shared, stops: &Arc<[Arc<Stop>]>, thread: usize) -> Self {
        Self {
            control: Arc::clone(&shared.control),
            access_log: Arc::clone(&shared.access_log),
            address: listener.addresses.first().clone(),
            name: ArcSwap::from_pointee(listener.name.clone()),
            hostname: std::fs::read_to_string(HOSTNAME_FILE).unwrap_or_default().trim().into(),
            settings: listener.settings,
            last_settings: OnceLock::new(),
            is_revoked: AtomicBool::new(false),
            max_idle: Arc::clone(&shared.max_idle),
            stop: Arc::clone(&stops[thread]),
            stops: Arc::clone(stops),
            room: Arc::clone(&shared.client_limit),
            backend_limit: Arc::clone(&shared.backend_limit),
            handshake_limit: Arc::clone(&shared.handshake_limit),
        }
    }

    /// The same at another one of the listener's addresses.
    #[must_use]
    pub fn at(self, address: SocketAddress) -> Self {
        Self { address, ..self }
    }

    /// Its listener has another name.
    pub fn rename(&self, name: &ListenerName) {
        self.name.store(Arc::new(name.clone()));
    }

    /// Has each answer be the last on its connection, since nobody listens any more. `settings` hold to the end.
    pub fn close(&self, settings: ListenerSettings) {
        // It is closed once.
        let _ = self.last_settings.set(settings);
        self.stop.call();
    }

    /// Ends connections, idle ones at once and others with what they carry, since others may connect now than when they
    /// were made: no further request of theirs is served. To be called before what these may not have is put in force.
    pub fn revoke(&self) {
        self.is_revoked.store(true, Ordering::Release);
        self.stop.call();
    }

    /// Where the listener of these connections stands in a snapshot; `None`: it is gone.
    #[inline]
    fn place_in(&self, sites: &Sites) -> Option<usize> {
        sites.listener(&self.address, || self.name.load_full())
    }

    /// How clients are treated now: as the snapshot has it for their listener.
    fn listener(&self) -> ListenerSettings {
        if let Some(last) = self.last_settings.get() {
            return *last;
        }
        let snapshot = self.control.snapshot();
        match self.place_in(&snapshot.sites).and_then(|index| snapshot.config.listeners.get(index)) {
            Some(here) => here.settings,
            None => self.settings,
        }
    }

    /// A client's place, as soon as there is one. Idle clients leave to make room: of this thread, and where that does not
    /// help, of each.
    pub async fn admit(&self) -> ConnectionPermit {
        let mut has_asked = false;
        let shed = |count: usize| match std::mem::replace(&mut has_asked, true) {
            false => self.stop.shed(count),
            true => self.stops.iter().for_each(|stop| stop.shed(count.div_ceil(self.stops.len()))),
        };
        let permit = self.room.acquire(shed).await;
        if has_asked {
            // Who was asked to leave and has not need not any more.
            self.stops.iter().for_each(|stop| stop.shed_nobody());
        }
        permit
    }

    /// A place for a client that cannot be kept waiting.
    pub fn admit_over_limit(&self) -> ConnectionPermit {
        self.room.acquire_over_limit()
    }

    /// To be awaited while a client lingers: returns when it has to leave to make room.
    pub async fn sheds_lingering(&self) {
        self.stop.lingering.sheds(&self.room).await;
        self.control.metrics.client_connections_shed.inc();
    }

    /// A place for a handshake, as soon as there is one. Clients that are slow with theirs leave to make room.
    pub async fn admit_handshake(&self) -> ConnectionPermit {
        let mut has_asked = false;
        let shed = |count: usize| {
            has_asked = true;
            for stop in self.stops.iter() {
                stop.handshakes.shed(count.div_ceil(self.stops.len()));
            }
        };
        let permit = self.handshake_limit.acquire(shed).await;
        if has_asked {
            self.stops.iter().for_each(|stop| stop.handshakes.shed_nobody());
        }
        permit
    }

    /// A place for the handshake of a client that cannot be kept waiting.
    pub fn admit_handshake_over_limit(&self) -> ConnectionPermit {
        self.handshake_limit.acquire_over_limit()
    }

    /// To be awaited while a handshake is slow: returns when the client has to leave to make room.
    pub async fn sheds_handshake(&self) {
        tokio::select! {
            () = self.stop.lingering.sheds(&self.room) => {}
            () = self.stop.handshakes.sheds(&self.handshake_limit) => {}
        }
        self.control.metrics.client_connections_shed.inc();
    }

    /// The right to what costs the processor in a handshake. Nobody closes the semaphore.
    pub async fn handshake_turn(&self) -> Option<SemaphorePermit<'_>> {
        self.stop.handshake_turn.acquire().await.ok()
    }

    pub fn address(&self) -> &SocketAddress {
        &self.address
    }

    /// How long a client may take to send what comes before its request.
    pub fn header_timeout(&self) -> Duration {
        self.listener().header_timeout
    }

    /// Whether connections may outlive their present exchange.
    fn keeps_clients(&self) -> bool {
        self.stop.shutdown.phase() == Phase::Running && !self.is_closed()
    }

    /// Whether each of these connections ends with what it carries: nobody listens any more where they came from, or they
    /// are [revoked](Self::revoke).
    fn is_closed(&self) -> bool {
        self.last_settings.get().is_some() || self.is_revoked()
    }

    /// Whether no further request is served. Where it is asked after a snapshot was loaded, the answer holds for that one:
    /// [`revoke`](Self::revoke) comes before the snapshot is stored. That store releases what was written before, and the
    /// load of what it has stored acquires it, so that whoever has the new snapshot sees the connection revoked. Asked
    /// before, the snapshot could come between.
    fn is_revoked(&self) -> bool {
        self.is_revoked.load(Ordering::Acquire)
    }

    fn max_idle(&self) -> usize {
        self.max_idle.load(Ordering::Relaxed)
    }
}

impl Stop {
    pub fn new(shutdown: Shutdown) -> Self {
        let [exchanges, to_shed, sheddings] = [const { AtomicUsize::new(0) }; 3];
        let [lingering, handshakes] = [const { ShedGroup::new() }; 2];
        let (idle, handshake_turn) = (Notify::const_new(), Semaphore::const_new(1));
        Self { shutdown, idle, lingering, handshakes, handshake_turn, exchanges, to_shed, sheddings }
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
    pub fn in_exchange(&self) -> CountGuard<'_> {
        CountGuard::new(&self.exchanges)
    }

    pub fn exchanges(&self) -> usize {
        self.exchanges.load(Ordering::Relaxed)
    }

    /// Sheds `count` connections: those that linger, then idle ones, longest-waiting first.
    fn shed(&self, count: usize) {
        let lingering = self.lingering.shed(count);
        self.to_shed.store(count - lingering, Ordering::Release);
        self.call();
    }

    fn shed_nobody(&self) {
        self.lingering.shed_nobody();
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

impl<'a> CountGuard<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for CountGuard<'_> {
    fn drop(&mut self) {
        self.0.store(self.0.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    }
}
