//! HTTP by a data path of our own, on both sides. A request's head is parsed where it was read and written anew
//! for the backend in one pass; buffers and idle connections to backends belong to the thread, so an exchange
//! allocates next to nothing and waits for no lock. An idle client costs its socket and a small task.
//!
//! - [`stream`]: a client's connection, plain or TLS.
//! - [`work`]: buffers, lent for as long as a connection is busy.
//! - [`idle`]: connections to backends that wait for their next request.
//! - [`client`]: one client's requests, one after the other.
//! - [`http2`]: connections of HTTP/2, whose streams are carried as HTTP/1.1.
//! - [`request`]: where a request goes and what its backend is told.
//! - [`attempt`]: one try on one backend.
//! - [`body`]: content on its way, framed anew.
//! - [`splice`]: large content that need not be looked at.
//! - [`pace`]: clients that are too slow over all.
//! - [`timer`]: time limits that cost nothing until they pass.
//! - [`tunnel`]: a connection that ceased to be HTTP.

mod attempt;
mod body;
mod client;
pub mod http2;
pub mod idle;
mod pace;
mod request;
pub mod splice;
pub mod stream;
mod timer;
mod tunnel;
mod work;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::Shared;
use super::http1::limits::{AmbiguousNames, Limits};
use crate::access_log::AccessLog;
use crate::config::{self, ListenerConfig};
use crate::control::Control;
use crate::room::{Place, Room};
use crate::shutdown::{Phase, Shutdown};
pub use client::serve;

/// What all connections of one listener on one thread have in common.
pub struct Engine {
    control: Arc<Control>,
    access_log: Option<Arc<AccessLog>>,
    listener: ListenerConfig,
    limits: Limits,
    /// Idle connections to backends that this thread may keep.
    most_idle: usize,
    stop: Arc<Stop>,
    room: Arc<Room>,
}

/// Tells the connections of one thread to end when they can.
#[derive(Debug)]
pub struct Stop {
    shutdown: Shutdown,
    idle: Notify,
    /// Exchanges that the thread carries now. Only its own tasks count here.
    exchanges: AtomicUsize,
    /// How many idle connections have to leave to make room.
    to_shed: AtomicUsize,
    /// How often some had to.
    sheddings: AtomicUsize,
}

/// Counts an exchange of a thread until dropped.
#[derive(Debug)]
pub struct InExchange<'a>(&'a AtomicUsize);

impl Engine {
    pub fn new(listener: &ListenerConfig, shared: &Shared, most_idle: usize, stop: Arc<Stop>) -> Self {
        Self {
            control: Arc::clone(&shared.control),
            access_log: shared.access_log.clone(),
            listener: listener.clone(),
            limits: Limits::default().with_ambiguous_names(match listener.ambiguous_names {
                config::AmbiguousNames::Drop => AmbiguousNames::Drop,
                config::AmbiguousNames::Pass => AmbiguousNames::Pass,
                config::AmbiguousNames::Reject => AmbiguousNames::Reject,
            }),
            most_idle,
            stop,
            room: Arc::clone(&shared.room),
        }
    }

    /// A client's place, as soon as there is one; idle clients of this thread leave to make room.
    pub async fn place(&self) -> Place {
        self.room.place(|count| self.stop.shed(count)).await
    }

    /// A place for a client that cannot be kept waiting.
    pub fn place_anyway(&self) -> Place {
        self.room.place_anyway()
    }

    /// Whether connections may outlive their present exchange.
    fn keeps_clients(&self) -> bool {
        self.stop.shutdown.phase() == Phase::Running
    }
}

impl Stop {
    pub fn new(shutdown: Shutdown) -> Self {
        let [exchanges, to_shed, sheddings] = [const { AtomicUsize::new(0) }; 3];
        Self { shutdown, idle: Notify::new(), exchanges, to_shed, sheddings }
    }

    /// Has idle connections see that the stop has begun.
    pub fn begin(&self) {
        self.idle.notify_waiters();
    }

    /// To be held from a request's head to the end of its answer, by which a stop knows what it has to wait for.
    pub fn in_exchange(&self) -> InExchange<'_> {
        self.exchanges.fetch_add(1, Ordering::Relaxed);
        InExchange(&self.exchanges)
    }

    pub fn exchanges(&self) -> usize {
        self.exchanges.load(Ordering::Relaxed)
    }

    /// So many idle connections have to leave, those first that have waited longest for such a call.
    fn shed(&self, count: usize) {
        self.to_shed.store(count, Ordering::Release);
        self.sheddings.fetch_add(1, Ordering::AcqRel);
        self.idle.notify_waiters();
    }

    /// Whether the idle connection that asks is one of those which have to leave.
    fn sheds_one(&self) -> bool {
        self.to_shed.try_update(Ordering::AcqRel, Ordering::Acquire, |count| count.checked_sub(1)).is_ok()
    }

    /// From then on connections end with the exchange they carry, idle ones at once.
    pub fn has_begun(&self) -> bool {
        self.shutdown.phase() == Phase::Stopping
    }
}

impl Drop for InExchange<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
