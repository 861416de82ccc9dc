//! Load balancing algorithms. Each is exact with any number of threads. A pick does not allocate: expensive work is
//! done when the list of candidates changes, not during requests. Only weighted round robin takes a lock, for one pass
//! over the candidates, as nginx locks an upstream's zone.

mod ip_hash;
mod least_connections;
mod round_robin;
mod turns;
mod weighted;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::backend::{Backend, Endpoint, Endpoints, Lease};
use crate::config::algorithm::Algorithm;
use crate::config::backend::Weight;
pub use ip_hash::Ring;
pub use turns::Turns;

/// Position of a backend in its pool.
pub type BackendIndex = u32;

/// A way to choose among candidates.
pub trait Balance: fmt::Debug + Send + Sync {
    /// Picks a backend for this request, never one that was tried. `None` if no candidate is left.
    fn pick(&self, candidates: &Candidates<'_>, key: &Key) -> Option<BackendIndex>;

    /// As [`Self::pick`], and counts the exchange on the backend.
    fn lease(&self, candidates: &Candidates<'_>, key: &Key) -> Option<(BackendIndex, Lease)> {
        let index = self.pick(candidates, key)?;
        Some((index, candidates.lease(index)?))
    }
}

/// A backend with its configuration in the pool.
#[derive(Debug, Clone)]
pub struct Member {
    pub backend: Arc<Backend>,
    pub weight: Weight,
}

/// A backend with its state at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The endpoints that take traffic; none if the backend takes none.
    pub endpoints: Endpoints,
    /// Its weight relative to the others.
    pub weight: u32,
}

/// The backends that one request may use now.
#[derive(Debug, Clone, Copy)]
pub struct Candidates<'a> {
    /// Every backend of the pool, by its position.
    pub backends: &'a [Candidate],
    pub usable: &'a Usable,
    /// The endpoints that this request has tried. A backend is excluded once all of its endpoints have been tried.
    pub tried: &'a [Arc<Endpoint>],
    /// Endpoints have been ejected since `usable` was made, and are excluded.
    pub skips_ejected: bool,
    /// Some backends have `max_connections`; those at the limit are excluded.
    pub skips_full: bool,
}

/// The backends of a pool that take traffic now.
#[derive(Debug)]
pub struct Usable {
    in_order: Box<[BackendIndex]>,
    contains: Box<[bool]>,
}

/// The request attributes that an algorithm may use.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// `None` if it came through a Unix socket.
    pub client: Option<IpAddr>,
}

/// The state of round robin. It belongs to the pool and outlives snapshots, so that a change does not start again at
/// the first backend.
pub type SharedTurns = Arc<Turns>;

/// Whether these are the same backends in the same order, with any weights.
pub fn are_same_backends(these: &[Member], those: &[Member]) -> bool {
    these.len() == those.len() && these.iter().zip(those).all(|(this, that)| Arc::ptr_eq(&this.backend, &that.backend))
}

/// An instance of `algorithm` for these backends. `ring` is the pool's hash ring, made when first needed.
pub fn balance(
    algorithm: Algorithm,
    backends: &[Candidate],
    usable: &Usable,
    turn: &SharedTurns,
    ring: impl FnOnce() -> Arc<Ring>,
) -> Box<dyn Balance> {
    match algorithm {
        Algorithm::RoundRobin => Box::new(round_robin::RoundRobin::new(Arc::clone(turn))),
        Algorithm::Weighted => Box::new(weighted::Weighted::new(backends, usable, Arc::clone(turn))),
        Algorithm::LeastConnections => {
            Box::new(least_connections::LeastConnections::new(backends, usable, Arc::clone(turn)))
        }
        Algorithm::IpHash => Box::new(ip_hash::IpHash::new(ring())),
    }
}

impl Usable {
    /// From the number of backends and the usable ones, in the order of the pool.
    pub fn new(members: usize, in_order: Vec<BackendIndex>) -> Self {
        let mut contains = vec![false; members];
        for &index in &in_order {
            contains[index as usize] = true;
        }
        Self { in_order: in_order.into_boxed_slice(), contains: contains.into_boxed_slice() }
    }

    pub fn as_slice(&self) -> &[BackendIndex] {
        &self.in_order
    }

    pub fn contains(&self, index: BackendIndex) -> bool {
        self.contains.get(index as usize).copied().unwrap_or(false)
    }
}

impl Candidates<'_> {
    /// Whether a usable backend must not be picked.
    pub fn is_excluded(&self, index: BackendIndex) -> bool {
        let has_closed = !self.tried.is_empty() || self.skips_ejected;
        self.is_full(index) || has_closed && self.endpoints(index).iter().all(|endpoint| self.is_closed(endpoint))
    }

    /// Counts an exchange on one of the backend's endpoints. `None` if the backend is excluded or takes no traffic.
    pub fn lease(&self, index: BackendIndex) -> Option<Lease> {
        if self.is_full(index) {
            return None;
        }
        self.backends.get(index as usize)?.endpoints.lease(|endpoint| self.is_closed(endpoint))
    }

    fn is_full(&self, index: BackendIndex) -> bool {
        self.skips_full && self.endpoints(index).first().is_some_and(|endpoint| endpoint.backend.is_full())
    }

    /// Whether any backend may be picked.
    pub fn has_any(&self) -> bool {
        self.iter().next().is_some()
    }

    /// As [`Self::lease`], but only if the backend has exactly this many exchanges in flight.
    fn lease_at(&self, index: BackendIndex, in_flight: u32) -> Option<Lease> {
        self.backends.get(index as usize)?.endpoints.lease_at(in_flight, |endpoint| self.is_closed(endpoint))
    }

    fn endpoints(&self, index: BackendIndex) -> &[Arc<Endpoint>] {
        self.backends.get(index as usize).map_or(&[], |backend| backend.endpoints.as_slice())
    }

    fn is_closed(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.tried.iter().any(|tried| Arc::ptr_eq(tried, endpoint)) || (self.skips_ejected && endpoint.is_ejected())
    }

    /// The usable backends that may be picked.
    fn iter(&self) -> impl Iterator<Item = BackendIndex> {
        self.usable.as_slice().iter().copied().filter(|&index| !self.is_excluded(index))
    }
}

impl Member {
    /// The backend as a candidate, with all of its endpoints and its configured weight.
    pub fn candidate(&self) -> Candidate {
        Candidate { endpoints: self.backend.endpoints(), weight: self.weight.as_u32() }
    }
}

#[cfg(test)]
mod tests;
