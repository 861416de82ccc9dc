//! Which candidate takes a request. Every algorithm is exact under any number of threads, and none allocates in a
//! pick: what takes time is done when the list of candidates changes, away from requests. Only turns by weight are
//! taken under a lock, for one pass over the candidates, as nginx locks an upstream's zone.

mod ip_hash;
mod least_connections;
mod round_robin;
mod turns;
mod weighted;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::backend::{Backend, Weight};
pub use ip_hash::Ring;
pub use turns::Turns;

/// Position of a backend in its pool.
pub type BackendIndex = u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// Each candidate in turn, weights ignored.
    RoundRobin,
    /// Smooth weighted round robin: 5:1:1 goes a a b a c a a (nginx's `weight=`).
    Weighted,
    /// Fewest exchanges in flight per unit of weight, ties in turn (nginx's `least_conn`).
    LeastConnections,
    /// Ketama on the client's address (nginx's `hash $remote_addr consistent`).
    IpHash,
}

/// A way to choose among candidates.
pub trait Balance: fmt::Debug + Send + Sync {
    /// The choice for this request, never one that it has tried; `None` when no candidate is left.
    fn pick(&self, candidates: &Candidates<'_>, key: &Key) -> Option<BackendIndex>;
}

/// A backend as its pool is configured.
#[derive(Debug, Clone)]
pub struct Member {
    pub backend: Arc<Backend>,
    pub weight: Weight,
}

/// The backends that one request may use now.
#[derive(Debug, Clone, Copy)]
pub struct Candidates<'a> {
    /// Every backend of the pool.
    pub members: &'a [Member],
    pub usable: &'a Usable,
    /// Those which this request has tried.
    pub tried: &'a [BackendIndex],
    /// Backends have been ejected since `usable` was listed, and are left out.
    pub skips_ejected: bool,
}

/// The backends of a pool that take traffic now.
#[derive(Debug)]
pub struct Usable {
    in_order: Box<[BackendIndex]>,
    contains: Box<[bool]>,
}

/// What of a request an algorithm may look at.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    pub client: IpAddr,
}

/// Where taking turns stands. It belongs to the pool and goes from snapshot to snapshot, so that a change does not
/// start every turn at the first backend again.
pub type Turn = Arc<Turns>;

impl Algorithm {
    pub const ALL: [Self; 4] = [Self::RoundRobin, Self::Weighted, Self::LeastConnections, Self::IpHash];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::Weighted => "weighted",
            Self::LeastConnections => "least-connections",
            Self::IpHash => "ip-hash",
        }
    }

    /// The names that can be written, for messages.
    pub fn choices() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }

    /// The algorithm, ready for these backends. `ring` is the pool's, made when first needed.
    pub fn balance(
        self,
        members: &[Member],
        usable: &Usable,
        turn: &Turn,
        ring: impl FnOnce() -> Arc<Ring>,
    ) -> Box<dyn Balance> {
        match self {
            Self::RoundRobin => Box::new(round_robin::RoundRobin::new(Arc::clone(turn))),
            Self::Weighted => Box::new(weighted::Weighted::new(members, usable, Arc::clone(turn))),
            Self::LeastConnections => {
                Box::new(least_connections::LeastConnections::new(members, usable, Arc::clone(turn)))
            }
            Self::IpHash => Box::new(ip_hash::IpHash::new(ring())),
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Algorithm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|a| a.as_str() == text);
        named.ok_or_else(|| format!("algorithm \"{text}\" is not one of {}", Self::choices()))
    }
}

impl Usable {
    /// Some of `members` backends, in the pool's order.
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
    /// Whether a usable backend is not to be picked.
    pub fn is_excluded(&self, index: BackendIndex) -> bool {
        self.tried.contains(&index) || (self.skips_ejected && self.is_ejected(index))
    }

    fn is_ejected(&self, index: BackendIndex) -> bool {
        self.members.get(index as usize).is_some_and(|member| member.backend.is_ejected())
    }

    /// The usable backends that may be picked.
    fn iter(&self) -> impl Iterator<Item = BackendIndex> {
        self.usable.as_slice().iter().copied().filter(|&index| !self.is_excluded(index))
    }
}

#[cfg(test)]
mod tests;
