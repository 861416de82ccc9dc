//! The HTTP engine: client side, backend side and the transfer between them. A request's head is parsed in the read
//! buffer and rewritten for the backend in one pass. Buffers and idle backend connections belong to the thread, so an
//! exchange allocates almost nothing and takes no lock. An idle client costs its socket and a small task.
//!
//! - [`stream`]: a client's connection, plain or TLS.
//! - [`io`]: the sockets of either side.
//! - [`buffers`]: buffers, lent to a connection while it is busy.
//! - [`idle`]: idle connections to backends.
//! - [`client`]: the requests of one client, one after the other.
//! - [`linger`]: the lingering close of connections whose client may still send.
//! - [`h2`]: HTTP/2 connections; their streams are handled as HTTP/1.1.
//! - [`request`]: routes a request and builds the head for its backend.
//! - [`facts`]: values of variables; [`fields`] and [`target`]: rules that use them; [`configured_reply`]: responses
//!   from the configuration.
//! - [`transfer`]: upload and download of an exchange, driven by one poll; [`upstream`]: the connection to the backend.
//! - [`disconnect`]: detects clients that disconnect while nothing of theirs is read.
//! - [`content`]: a request's content, one store with several cursors; [`body`]: a response's content, reframed.
//! - [`splice`]: moves large content without copying it to user space.
//! - [`interim`]: limits the rate of interim responses.
//! - [`pace`]: minimum rates of clients.
//! - [`burst`]: groups the reads and writes of a thread's tasks.
//! - [`kill`]: wakes the tasks of exchanges that an operator kills.
//! - [`timer`]: time limits that cost nothing until they expire.
//! - [`tunnel`]: connections after an upgrade.

mod body;
#[cfg(not(test))]
mod buffers;
#[cfg(test)]
pub(crate) mod buffers;
mod burst;
mod client;
mod configured_reply;
mod content;
mod disconnect;
pub(crate) mod explain;
mod facts;
mod fields;
pub mod h1;
pub mod h2;
pub(crate) mod idle;
mod interim;
pub(crate) mod io;
pub(crate) mod kill;
mod linger;
mod pace;
mod request;
mod response;
pub(crate) mod splice;
pub(crate) mod stream;
mod target;
mod timer;
mod transfer;
mod tunnel;
mod upstream;

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use crate::access_log::AccessLog;
use crate::clock;
use crate::config::backend::SocketAddress;
use crate::config::site::ListenerName;
use crate::config::{ListenerConfig, ListenerSettings};
use crate::connection_limit::{ConnectionLimit, ConnectionPermit};
use crate::control::Control;
use crate::shutdown::{Phase, Shutdown};
use crate::site::Sites;
pub(crate) use client::serve;
pub(crate) use transfer::MAX_READ_BYTES;

/// How long a client must have been idle before it may be shed. A client between two requests in quick succession is
/// not idle.
const MIN_IDLE: Duration = Duration::from_secs(1);
/// After this many rounds of shedding, ten per second, [`MIN_IDLE_OF_FULL`] applies instead. Otherwise clients with
/// frequent requests would exclude a new client for good.
const MAX_PATIENT_ROUNDS: u32 = 10;
/// Replaces [`MIN_IDLE`] for a client that has waited for long.
const MIN_IDLE_OF_FULL: Duration = Duration::from_millis(100);
/// Where Linux reports the machine's host name.
const HOSTNAME_FILE: &str = "/proc/sys/kernel/hostname";

/// What all listeners of the process share.
pub(crate) struct EngineContext {
    pub control: Arc<Control>,
    pub access_log: Arc<AccessLog>,
    /// Maximum of idle backend connections of each thread.
    pub max_idle: Arc<AtomicUsize>,
    pub shutdown: Shutdown,
    /// For clients.
    pub client_limit: Arc<ConnectionLimit>,
    /// For connections to backends.
    pub backend_limit: Arc<ConnectionLimit>,
    /// For handshakes of TLS with clients.
    pub handshake_limit: Arc<ConnectionLimit>,
}

/// What all connections of one listener on one thread share.
pub(crate) struct Engine {
    control: Arc<Control>,
    access_log: Arc<AccessLog>,
    address: SocketAddress,
    /// The listener's name.
    name: ArcSwap<ListenerName>,
    /// The machine's host name.
    hostname: Box<str>,
    /// The settings when the listener was opened.
    settings: ListenerSettings,
    /// The last settings of a listener that has been closed.
    last_settings: OnceLock<ListenerSettings>,
    /// Set when a change of who may connect has invalidated the existing connections.
    is_revoked: AtomicBool,
    max_idle: Arc<AtomicUsize>,
    thread: Arc<ThreadState>,
    /// The state of every thread, this one included.
    threads: Arc<[Arc<ThreadState>]>,
    client_limit: Arc<ConnectionLimit>,
    backend_limit: Arc<ConnectionLimit>,
    handshake_limit: Arc<ConnectionLimit>,
}

/// What the connections of one thread share: their signals to close, and their counters.
#[derive(Debug)]
pub(crate) struct ThreadState {
    shutdown: Shutdown,
    idle: Notify,
    /// Clients in a lingering close: they have their response and still send.
    lingering: ShedGroup,
    /// Clients whose TLS handshake is slow.
    handshakes: ShedGroup,
    /// Lets one handshake at a time use the CPU.
    handshake_turn: Semaphore,
    /// Exchanges in flight on this thread. Only its own tasks write this counter.
    exchanges: AtomicUsize,
    /// Connections without an exchange whose clients still take the end of a response. The same.
    drains: AtomicUsize,
    /// Idle connections that still have to be shed, and for how many milliseconds they have been idle at least.
    to_shed: AtomicUsize,
    min_idle_ms: AtomicU64,
    /// Counts sheddings, so that an idle connection notices a new one.
    sheddings: AtomicUsize,
}

/// Clients of one kind that are shed when the connection limit is reached.
#[derive(Debug)]
struct ShedGroup {
    count: AtomicUsize,
    /// How many of them still have to be shed.
    to_shed: AtomicUsize,
    shed: Notify,
}

impl ShedGroup {
    const fn new() -> Self {
        Self { count: AtomicUsize::new(0), to_shed: AtomicUsize::new(0), shed: Notify::const_new() }
    }

    /// Resolves when the client that awaits it is to be shed because `room` is full.
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

    /// Sheds up to `count` of them. Returns how many.
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

/// Counts one more until dropped. Only the tasks of one thread write the counter, others only read it. So a plain load
/// and store suffice; an atomic read-modify-write would cost more than all the rest.
#[derive(Debug)]
pub(crate) struct CountGuard<'a>(&'a AtomicUsize);

impl Engine {
    /// An engine at the listener's first address, for the thread that is `threads[thread]`.
    pub(crate) fn new(
        listener: &ListenerConfig,
        context: &EngineContext,
        threads: &Arc<[Arc<ThreadState>]>,
        thread: usize,
    ) -> Self {
        Self {
            control: Arc::clone(&context.control),
            access_log: Arc::clone(&context.access_log),
            address: listener.addresses.first().clone(),
            name: ArcSwap::from_pointee(listener.name.clone()),
            hostname: std::fs::read_to_string(HOSTNAME_FILE).unwrap_or_default().trim().into(),
            settings: listener.settings,
            last_settings: OnceLock::new(),
            is_revoked: AtomicBool::new(false),
            max_idle: Arc::clone(&context.max_idle),
            thread: Arc::clone(&threads[thread]),
            threads: Arc::clone(threads),
            client_limit: Arc::clone(&context.client_limit),
            backend_limit: Arc::clone(&context.backend_limit),
            handshake_limit: Arc::clone(&context.handshake_limit),
        }
    }

    /// The same engine at another address of the listener.
    #[must_use]
    pub(crate) fn at(self, address: SocketAddress) -> Self {
        Self { address, ..self }
    }

    /// Gives the listener another name.
    pub(crate) fn rename(&self, name: &ListenerName) {
        self.name.store(Arc::new(name.clone()));
    }

    /// Closes each connection after its current response, because its listener is closed. `settings` apply until then.
    pub(crate) fn close(&self, settings: ListenerSettings) {
        // A listener is closed only once.
        let _ = self.last_settings.set(settings);
        self.thread.recheck_idle();
    }

    /// Closes idle connections at once and busy ones after their current exchange, because who may connect has changed.
    /// No further request on them is served. Call this before the snapshot that these clients must not see is put in
    /// force.
    pub(crate) fn revoke(&self) {
        self.is_revoked.store(true, Ordering::Release);
        self.thread.recheck_idle();
    }

    /// The index of this listener in a snapshot; `None` if the snapshot no longer has it.
    #[inline]
    fn place_in(&self, sites: &Sites) -> Option<usize> {
        sites.listener(&self.address, || self.name.load_full())
    }

    /// The listener's settings in the current snapshot.
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

    /// Waits until another client may connect. Sheds idle clients of this thread first, then of all threads.
    pub(crate) async fn admit(&self) -> ConnectionPermit {
        let mut rounds = 0;
        let shed = |count: usize| {
            rounds += 1;
            let min_idle = if rounds <= MAX_PATIENT_ROUNDS { MIN_IDLE } else { MIN_IDLE_OF_FULL };
            match rounds {
                1 => self.thread.shed(count, min_idle),
                _ => self.threads.iter().for_each(|thread| thread.shed(count.div_ceil(self.threads.len()), min_idle)),
            }
        };
        let permit = self.client_limit.acquire(shed).await;
        if rounds > 0 {
            // Clients that have not been shed yet may stay.
            self.threads.iter().for_each(|thread| thread.shed_nobody());
        }
        permit
    }

    /// A permit beyond the limit, for a client that cannot wait.
    pub(crate) fn admit_over_limit(&self) -> ConnectionPermit {
        self.client_limit.acquire_over_limit()
    }

    /// Resolves when a client in a lingering close is to be shed.
    pub(crate) async fn sheds_lingering(&self) {
        self.thread.lingering.sheds(&self.client_limit).await;
        self.control.metrics.client_connections_shed.inc();
    }

    /// Waits until another TLS handshake may begin. Sheds clients whose handshake is slow.
    pub(crate) async fn admit_handshake(&self) -> ConnectionPermit {
        let mut has_asked = false;
        let shed = |count: usize| {
            has_asked = true;
            for thread in self.threads.iter() {
                thread.handshakes.shed(count.div_ceil(self.threads.len()));
            }
        };
        let permit = self.handshake_limit.acquire(shed).await;
        if has_asked {
            self.threads.iter().for_each(|thread| thread.handshakes.shed_nobody());
        }
        permit
    }

    /// A handshake permit beyond the limit, for a client that cannot wait.
    pub(crate) fn admit_handshake_over_limit(&self) -> ConnectionPermit {
        self.handshake_limit.acquire_over_limit()
    }

    /// Resolves when a client whose handshake is slow is to be shed.
    pub(crate) async fn sheds_handshake(&self) {
        tokio::select! {
            () = self.thread.lingering.sheds(&self.client_limit) => {}
            () = self.thread.handshakes.sheds(&self.handshake_limit) => {}
        }
        self.control.metrics.client_connections_shed.inc();
    }

    /// Permission for the CPU-bound part of a handshake. The semaphore is never closed, so this is never `None`.
    pub(crate) async fn handshake_turn(&self) -> Option<SemaphorePermit<'_>> {
        self.thread.handshake_turn.acquire().await.ok()
    }

    /// Logs that a connection could not be accepted. Returns the pause before the next attempt.
    pub(crate) fn accept_failed(&self, error: &std::io::Error) -> Duration {
        self.control.accept_failed(error, clock::now())
    }

    pub(crate) fn address(&self) -> &SocketAddress {
        &self.address
    }

    /// How long a client may take to send what precedes its first request, such as a PROXY header.
    pub(crate) fn header_timeout(&self) -> Duration {
        self.listener().header_timeout
    }

    /// Whether connections are kept alive after their current exchange.
    fn keeps_clients(&self) -> bool {
        self.thread.shutdown.phase() == Phase::Running && !self.is_closed()
    }

    /// Whether connections close after their current exchange, because the listener is closed or they are
    /// [revoked](Self::revoke).
    fn is_closed(&self) -> bool {
        self.last_settings.get().is_some() || self.is_revoked()
    }

    /// Whether no further request is served. Ask this after loading the snapshot: [`revoke`](Self::revoke) is called
    /// before the new snapshot is stored, and storing releases what loading acquires, so a thread that has loaded the
    /// new snapshot sees the revocation. If asked before, the new snapshot could be stored in between.
    fn is_revoked(&self) -> bool {
        self.is_revoked.load(Ordering::Acquire)
    }

    fn max_idle(&self) -> usize {
        self.max_idle.load(Ordering::Relaxed)
    }
}

impl ThreadState {
    pub(crate) fn new(shutdown: Shutdown) -> Self {
        let [exchanges, drains, to_shed, sheddings] = [const { AtomicUsize::new(0) }; 4];
        let [lingering, handshakes] = [const { ShedGroup::new() }; 2];
        let (idle, handshake_turn) = (Notify::const_new(), Semaphore::const_new(1));
        let min_idle_ms = AtomicU64::new(0);
        Self {
            shutdown,
            idle,
            lingering,
            handshakes,
            handshake_turn,
            exchanges,
            drains,
            to_shed,
            min_idle_ms,
            sheddings,
        }
    }

    /// Wakes idle connections, so that they close. Call this once the stop has begun.
    pub(crate) fn wake_idle(&self) {
        self.idle.notify_waiters();
    }

    /// Has idle connections check whether they are to close.
    fn recheck_idle(&self) {
        self.sheddings.fetch_add(1, Ordering::AcqRel);
        self.idle.notify_waiters();
    }

    /// Counts an exchange in flight until dropped. A graceful stop waits for it.
    pub(crate) fn in_exchange(&self) -> CountGuard<'_> {
        CountGuard::new(&self.exchanges)
    }

    pub(crate) fn exchanges(&self) -> usize {
        self.exchanges.load(Ordering::Relaxed)
    }

    /// Counts a connection whose client still takes the end of a response until dropped. A graceful stop waits for it.
    fn in_drain(&self) -> CountGuard<'_> {
        CountGuard::new(&self.drains)
    }

    pub(crate) fn drains(&self) -> usize {
        self.drains.load(Ordering::Relaxed)
    }

    /// Sheds `count` connections: those that linger, then idle ones, longest-waiting first.
    fn shed(&self, count: usize, min_idle: Duration) {
        let lingering = self.lingering.shed(count);
        self.min_idle_ms.store(min_idle.as_millis() as u64, Ordering::Relaxed);
        self.to_shed.store(count - lingering, Ordering::Release);
        self.recheck_idle();
    }

    fn shed_nobody(&self) {
        self.lingering.shed_nobody();
        self.to_shed.store(0, Ordering::Release);
    }

    /// Takes one of the sheddings that are due. True: the connection that asks, which has been idle for so long, has to
    /// close. `is_held`: the kernel holds bytes that its client has not taken. Such a client is not idle.
    fn sheds_one(&self, idle_for: Duration, is_held: impl FnOnce() -> bool) -> bool {
        let is_idle = idle_for.as_millis() >= u128::from(self.min_idle_ms.load(Ordering::Relaxed));
        is_idle && self.to_shed.load(Ordering::Relaxed) > 0 && !is_held() && take_one(&self.to_shed)
    }

    /// Whether the process stops: idle connections close at once, busy ones after their current exchange.
    pub(crate) fn is_stopping(&self) -> bool {
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

#[cfg(test)]
impl Engine {
    /// Of one listener with default settings, for one client, and without a backend.
    fn alone() -> Self {
        let text = "[[listener]]\naddress = \"127.0.0.1:0\"\n[state]\npersist = false\n[[route]]\npool = \"app\"\n\
                    [[pool]]\nname = \"app\"\nbackends = []\n";
        let file = std::path::Path::new("/evenkeel.toml");
        let config = crate::config::toml::read(text, file).expect("a sound configuration");
        let metrics = Arc::new(crate::metrics::Metrics::new());
        let shutdown = Shutdown::new();
        let context = EngineContext {
            control: Arc::new(Control::new(file, config.clone(), Arc::clone(&metrics))),
            access_log: Arc::new(AccessLog::new(metrics.access_log_lost.clone())),
            max_idle: Arc::default(),
            shutdown: shutdown.clone(),
            backend_limit: ConnectionLimit::new(1),
            handshake_limit: ConnectionLimit::for_handshakes(1),
            client_limit: ConnectionLimit::new(1),
        };
        Self::new(&config.listeners[0], &context, &Arc::from([Arc::new(ThreadState::new(shutdown))]), 0)
    }
}
