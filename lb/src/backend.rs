//! A backend is one entry of a pool in the configuration. It has one endpoint for its address, or one for each address
//! of its name. Snapshots share backends, so that a change of the configuration does not lose their state. The state of
//! a server belongs to its endpoint.

pub mod endpoint;
pub mod queue;
pub mod repeats;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZero;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::config::backend::{AdminState, BackendAddress, SocketAddress};
use crate::health::tracker::Health;
use crate::metrics::BackendMetrics;
pub use endpoint::{Endpoint, HealthChange, Incarnation, Lease, ProbeReport, Share};
use queue::Queue;
use repeats::RepeatedFailures;

/// The combined status from the configured state, probes and ejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Unknown,
    Healthy,
    Unhealthy,
    Ejected,
    Draining,
    Down,
    Removing,
}

#[derive(Debug)]
pub struct Backend {
    identity: Arc<Identity>,
    vitals: Mutex<SelectionState>,
}

/// The part of a backend that its endpoints and exchanges share: address, metrics, log throttling, connection limit.
#[derive(Debug)]
pub struct Identity {
    pub address: BackendAddress,
    /// Whether its addresses have to be resolved.
    is_name: bool,
    pub metrics: BackendMetrics,
    /// Throttles the log of repeated failures.
    pub repeats: RepeatedFailures,
    /// Counts changes of health, ejections and endpoints. By it the pool notices that its view is outdated.
    changes: AtomicU64,
    /// Round robin position among several endpoints.
    turn: AtomicUsize,
    /// Limit of connections in use, on all endpoints together; 0: no limit.
    max_connections: AtomicU32,
    /// Connections in use. Counted also without a limit, because one may be set later.
    in_use: AtomicU32,
    /// The queue of its pool.
    queue: Arc<Queue>,
}

/// What changes seldom: read to list candidates, not for each request.
#[derive(Debug)]
struct SelectionState {
    is_probed: bool,
    /// It has left its pool.
    has_left: bool,
    /// Never empty: an unresolved name has one endpoint without an address.
    endpoints: Endpoints,
    /// Endpoints whose address the name no longer has, while they are still in use.
    left: Vec<Weak<Endpoint>>,
    resolution: Option<Resolution>,
    draining_since: Option<Instant>,
    /// A deadline has ended the sticky grace. Only while it drains.
    is_grace_ended: bool,
    /// When its remaining exchanges are killed. Only while it is not active.
    deadline: Option<Instant>,
}

/// Endpoints of one backend, in the order of their addresses. Most backends have one, which needs no allocation.
#[derive(Debug, Clone, Default)]
pub enum Endpoints {
    #[default]
    None,
    One(Arc<Endpoint>),
    Several(Box<[Arc<Endpoint>]>),
}

/// The endpoints that a new resolution has added and removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressChanges {
    pub joined: Vec<SocketAddr>,
    pub left: Vec<SocketAddr>,
}

/// The result of resolving a name.
#[derive(Debug, Clone)]
pub struct Resolution {
    pub at: Instant,
    /// The error, if there is one. The addresses are then those of the last success.
    pub error: Option<String>,
}

impl Identity {
    pub fn new(address: BackendAddress, metrics: BackendMetrics, queue: Arc<Queue>) -> Self {
        let (is_name, repeats) = (address.socket_address().is_none(), RepeatedFailures::default());
        let [max_connections, in_use] = [const { AtomicU32::new(0) }; 2];
        let (changes, turn) = (AtomicU64::new(0), AtomicUsize::new(0));
        Self { address, is_name, metrics, repeats, changes, turn, max_connections, in_use, queue }
    }

    /// Sets the limit of connections in use; `None`: no limit. Connections beyond it stay.
    pub fn set_max_connections(&self, max: Option<NonZero<u32>>) {
        // Sequentially consistent with the counter: whoever finds no capacity is woken when a connection is given back.
        self.max_connections.store(max.map_or(0, NonZero::get), Ordering::SeqCst);
    }

    /// `None` if there is no limit.
    pub fn max_connections(&self) -> Option<NonZero<u32>> {
        NonZero::new(self.max_connections.load(Ordering::Relaxed))
    }

    /// Connections that count against [`Self::max_connections`].
    #[cfg(test)]
    pub fn connections_in_use(&self) -> u32 {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Whether the limit is reached.
    pub fn is_full(&self) -> bool {
        let max = self.max_connections.load(Ordering::Relaxed);
        max != 0 && self.in_use.load(Ordering::Relaxed) >= max
    }

    /// Counts one more connection, unless the limit is reached.
    fn use_one_if_allowed(&self) -> bool {
        let max = match self.max_connections.load(Ordering::SeqCst) {
            0 => u32::MAX,
            max => max,
        };
        let more = |used| (used < max).then_some(used + 1);
        self.in_use.try_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
    }

    fn use_another(&self) {
        self.in_use.fetch_add(1, Ordering::SeqCst);
    }

    fn use_one_less(&self) {
        self.in_use.fetch_sub(1, Ordering::SeqCst);
        if self.max_connections.load(Ordering::SeqCst) != 0 {
            self.queue.free();
        }
    }

    /// The counter of changes of health, ejections and endpoints.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn record_change(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }
}

impl Deref for Backend {
    type Target = Identity;

    fn deref(&self) -> &Identity {
        &self.identity
    }
}

impl Backend {
    /// A new backend, in the pool with this `queue`. Without probes (`probed` is false) its endpoints count as healthy.
    pub fn new(address: BackendAddress, probed: bool, metrics: BackendMetrics, queue: Arc<Queue>) -> Self {
        let socket_address = address.socket_address();
        let identity = Arc::new(Identity::new(address, metrics, queue));
        let endpoint = Endpoint::new(&identity, socket_address, probed);
        Self {
            identity,
            vitals: Mutex::new(SelectionState {
                is_probed: probed,
                has_left: false,
                endpoints: Endpoints::One(Arc::new(endpoint)),
                left: Vec::new(),
                resolution: None,
                draining_since: None,
                is_grace_ended: false,
                deadline: None,
            }),
        }
    }

    /// The part that its endpoints share.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Its current endpoints: at least one.
    pub fn endpoints(&self) -> Endpoints {
        self.vitals().endpoints.clone()
    }

    /// Sets the addresses of its name. Endpoints whose address remains are unchanged; the others finish their
    /// exchanges. A name without addresses has one endpoint without an address, which takes no traffic.
    pub fn resolved(&self, addresses: &[SocketAddr], now: Instant) -> AddressChanges {
        let mut wanted: Vec<Option<SocketAddr>> = addresses.iter().copied().map(Some).collect();
        wanted.sort_unstable();
        wanted.dedup();
        if wanted.is_empty() {
            wanted.push(None);
        }
        let mut vitals = self.vitals();
        let before = vitals.endpoints.clone();
        let (stay, leave): (Vec<_>, Vec<_>) =
            before.as_slice().iter().partition(|endpoint| wanted.contains(&endpoint.ip()));
        let known = |address| stay.iter().find(|endpoint| endpoint.ip() == address);
        let joined: Vec<_> = wanted.iter().copied().filter(|&address| known(address).is_none()).collect();
        if vitals.has_left || (joined.is_empty() && leave.is_empty()) {
            return AddressChanges::default();
        }
        let is_probed = vitals.is_probed;
        let endpoint = |&address: &Option<SocketAddr>| match known(address) {
            Some(&endpoint) => Arc::clone(endpoint),
            None => Arc::new(Endpoint::new(&self.identity, address.map(SocketAddress::Ip), is_probed)),
        };
        vitals.endpoints = wanted.iter().map(endpoint).collect();
        vitals.left.retain(|endpoint| endpoint.strong_count() > 0);
        vitals.left.extend(leave.iter().map(|endpoint| Arc::downgrade(endpoint)));
        drop(vitals);
        leave.iter().for_each(|endpoint| endpoint.leave(now));
        self.record_change();
        let left = leave.iter().filter_map(|endpoint| endpoint.ip()).collect();
        AddressChanges { joined: joined.into_iter().flatten().collect(), left }
    }

    /// Sets the shares of its endpoints.
    pub fn share_out(&self, shares: &BTreeMap<SocketAddr, Share>) {
        for endpoint in self.endpoints().as_slice() {
            endpoint.ip().and_then(|ip| shares.get(&ip)).into_iter().for_each(|share| endpoint.set_share(*share));
        }
    }

    /// Notes that its name did not resolve. Existing endpoints stay.
    pub fn record_unresolved(&self) {
        let endpoints = self.endpoints();
        endpoints.as_slice().iter().filter(|endpoint| endpoint.address().is_none()).for_each(|endpoint| {
            endpoint.record_unresolved();
        });
    }

    /// Sets the result of the last resolution.
    pub fn asked(&self, resolution: Resolution) {
        self.vitals().resolution = Some(resolution);
    }

    /// The result of the last resolution; `None` for an address, and before the first.
    pub fn resolution(&self) -> Option<Resolution> {
        self.vitals().resolution.clone()
    }

    /// [`Endpoint::forget`] for all endpoints.
    pub fn forget(&self, now: Instant) {
        self.endpoints().as_slice().iter().for_each(|endpoint| endpoint.forget(now));
    }

    /// Marks the backend as removed from its pool. An address that is added again is a new backend.
    pub fn leave(&self, now: Instant) {
        let mut vitals = self.vitals();
        vitals.has_left = true;
        let endpoints = vitals.endpoints.clone();
        drop(vitals);
        endpoints.as_slice().iter().for_each(|endpoint| endpoint.leave(now));
    }

    /// [`Endpoint::kill`] for all endpoints with exchanges in flight.
    pub fn kill(&self) {
        self.each(Endpoint::kill);
    }

    /// Exchanges in flight on all endpoints, including former ones.
    pub fn in_flight(&self) -> u32 {
        let mut count = 0;
        self.each(|endpoint| count += endpoint.in_flight());
        count
    }

    /// Calls a function with every endpoint, including former ones that are still in use.
    fn each(&self, mut does: impl FnMut(&Endpoint)) {
        let vitals = self.vitals();
        vitals.endpoints.as_slice().iter().for_each(|endpoint| does(endpoint));
        vitals.left.iter().filter_map(Weak::upgrade).for_each(|endpoint| does(&endpoint));
    }

    /// The best health among its endpoints.
    pub fn health(&self) -> Health {
        let endpoints = self.endpoints();
        let has = |health| endpoints.as_slice().iter().any(|endpoint| endpoint.health() == health);
        [Health::Healthy, Health::Unknown].into_iter().find(|&health| has(health)).unwrap_or(Health::Unhealthy)
    }

    /// Whether an endpoint has not been probed yet.
    pub fn is_unknown(&self) -> bool {
        self.endpoints().as_slice().iter().any(|endpoint| endpoint.health() == Health::Unknown)
    }

    /// Updates the health after probes were turned on or off.
    pub fn set_probed(&self, probed: bool) {
        let mut vitals = self.vitals();
        vitals.is_probed = probed;
        vitals.endpoints.as_slice().iter().for_each(|endpoint| endpoint.set_probed(probed));
    }

    /// The configured state if it is not *active*, else the best status among its endpoints.
    pub fn status(&self, state: AdminState, now: Instant) -> Status {
        const BEST_FIRST: [Status; 3] = [Status::Healthy, Status::Unknown, Status::Ejected];
        let endpoints = self.endpoints();
        let statuses = || endpoints.as_slice().iter().map(|endpoint| endpoint.status(state, now));
        let best = BEST_FIRST.into_iter().find(|&best| statuses().any(|status| status == best));
        best.or_else(|| statuses().next()).unwrap_or(Status::Unknown)
    }

    /// Sets the configured state. Draining that continues keeps its start time. A deadline ends when the backend is
    /// active again.
    pub fn set_wanted(&self, state: AdminState, now: Instant) {
        let mut vitals = self.vitals();
        let is_draining = state == AdminState::Draining;
        vitals.draining_since = is_draining.then(|| vitals.draining_since.unwrap_or(now));
        vitals.is_grace_ended &= is_draining;
        if state == AdminState::Active {
            vitals.deadline = None;
        }
    }

    /// Sets the deadline at which remaining exchanges are killed. Replaces an earlier one.
    pub fn set_deadline(&self, deadline: Option<Instant>) {
        self.vitals().deadline = deadline;
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.vitals().deadline
    }

    /// Ends a deadline, and with it the sticky grace. Returns false if the deadline was replaced or cancelled.
    pub fn end_deadline(&self, deadline: Instant) -> bool {
        let mut vitals = self.vitals();
        let is_in_force = vitals.deadline == Some(deadline);
        if is_in_force {
            vitals.deadline = None;
            vitals.is_grace_ended = vitals.draining_since.is_some();
        }
        is_in_force
    }

    /// When its sticky grace ends, if it is draining and no deadline has ended the grace. It starts anew with the
    /// process.
    pub fn grace_end(&self, grace: Duration) -> Option<Instant> {
        let vitals = self.vitals();
        let end = vitals.draining_since.filter(|_| !vitals.is_grace_ended)? + grace;
        Some(vitals.deadline.map_or(end, |deadline| deadline.min(end)))
    }

    fn vitals(&self) -> MutexGuard<'_, SelectionState> {
        self.vitals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Endpoints {
    pub fn as_slice(&self) -> &[Arc<Endpoint>] {
        match self {
            Self::None => &[],
            Self::One(endpoint) => std::slice::from_ref(endpoint),
            Self::Several(endpoints) => endpoints,
        }
    }

    /// Exchanges in flight on all endpoints.
    pub fn in_flight(&self) -> u32 {
        self.as_slice().iter().map(|endpoint| endpoint.in_flight()).sum()
    }

    /// Counts an exchange on one of the endpoints that is not closed to it.
    pub fn lease(&self, is_closed: impl Fn(&Arc<Endpoint>) -> bool) -> Option<Lease> {
        match self {
            Self::None => None,
            Self::One(endpoint) => (!is_closed(endpoint)).then(|| endpoint.lease()),
            Self::Several(endpoints) => least_loaded(endpoints, is_closed).map(|(endpoint, _)| endpoint.lease()),
        }
    }

    /// As [`Self::lease`], but only if exactly this many exchanges are in flight on all endpoints.
    pub fn lease_at(&self, in_flight: u32, is_closed: impl Fn(&Arc<Endpoint>) -> bool) -> Option<Lease> {
        match self {
            Self::None => None,
            Self::One(endpoint) => endpoint.lease_at(in_flight),
            Self::Several(endpoints) => {
                let (endpoint, load) = least_loaded(endpoints, is_closed).filter(|_| self.in_flight() == in_flight)?;
                endpoint.lease_at(load)
            }
        }
    }
}

/// The endpoint of the first priority with the fewest exchanges in flight per weight, and their number. Among equals,
/// weighted round robin.
fn least_loaded(
    endpoints: &[Arc<Endpoint>],
    is_closed: impl Fn(&Arc<Endpoint>) -> bool,
) -> Option<(&Arc<Endpoint>, u32)> {
    let turn = endpoints.first()?.backend.turn.fetch_add(1, Ordering::Relaxed);
    let open = endpoints.iter().filter(|endpoint| !is_closed(endpoint)).map(|endpoint| (endpoint, endpoint.share()));
    let first = open.clone().map(|(_, share)| share.priority).min()?;
    let open = open.filter(|(_, share)| share.priority == first);
    let mut weights = open.clone().map(|(_, share)| share.weight);
    let weight = weights.next()?;
    let start = match weights.all(|other| other == weight) {
        true => turn % open.clone().count(),
        false => weighted_place(turn, open.clone().map(|(_, share)| share.weight)),
    };
    let in_turn = open.clone().skip(start).chain(open.take(start));
    let loads = in_turn.map(|(endpoint, share)| (endpoint, endpoint.in_flight(), share.weight));
    let less = |one: u32, of_one: u32, other: u32, of_other: u32| {
        u64::from(one) * u64::from(of_other) < u64::from(other) * u64::from(of_one)
    };
    let least = loads.reduce(|least, next| if less(next.1, next.2, least.1, least.2) { next } else { least });
    least.map(|(endpoint, in_flight, _)| (endpoint, in_flight))
}

/// Weighted round robin with even spacing: multiples of the golden ratio fill a circle without clusters.
fn weighted_place(turn: usize, weights: impl Iterator<Item = u32> + Clone) -> usize {
    const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;
    let all: u64 = weights.clone().map(u64::from).sum();
    let part = (turn as u64).wrapping_mul(GOLDEN_RATIO);
    let mut point = ((u128::from(part) * u128::from(all)) >> 64) as u64;
    let is_here = |weight: u32| {
        let is_here = point < u64::from(weight);
        point = point.saturating_sub(weight.into());
        is_here
    };
    weights.map(is_here).position(|is_here| is_here).unwrap_or(0)
}

impl FromIterator<Arc<Endpoint>> for Endpoints {
    fn from_iter<I: IntoIterator<Item = Arc<Endpoint>>>(endpoints: I) -> Self {
        let mut endpoints = endpoints.into_iter();
        match (endpoints.next(), endpoints.next()) {
            (None, _) => Self::None,
            (Some(one), None) => Self::One(one),
            (Some(first), Some(second)) => Self::Several([first, second].into_iter().chain(endpoints).collect()),
        }
    }
}

/// Whether the endpoints are the same.
impl PartialEq for Endpoints {
    fn eq(&self, other: &Self) -> bool {
        let (these, those) = (self.as_slice(), other.as_slice());
        these.len() == those.len() && these.iter().zip(those).all(|(this, that)| Arc::ptr_eq(this, that))
    }
}

impl Status {
    pub const ALL: [Self; 7] =
        [Self::Unknown, Self::Healthy, Self::Unhealthy, Self::Ejected, Self::Draining, Self::Down, Self::Removing];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Ejected => "ejected",
            Self::Draining => "draining",
            Self::Down => "down",
            Self::Removing => "removing",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(address: &str) -> Backend {
        Backend::new(address.parse().expect("valid"), true, BackendMetrics::unregistered(), Arc::default())
    }

    fn addresses<const N: usize>(addresses: [&str; N]) -> [SocketAddr; N] {
        addresses.map(|address| address.parse().expect("an address"))
    }

    fn probe(endpoint: &Endpoint) {
        endpoint.probed(ProbeReport { at: Instant::now(), duration: Duration::ZERO, error: None }, 1, 1);
    }

    #[test]
    fn activating_a_backend_ends_its_deadline() {
        let backend = backend("127.0.0.1:1");
        let now = Instant::now();
        backend.set_deadline(Some(now));
        backend.set_wanted(AdminState::Down, now);
        assert_eq!(backend.deadline(), Some(now));
        backend.set_wanted(AdminState::Active, now);
        assert_eq!(backend.deadline(), None);
    }

    #[test]
    fn the_operators_state_outranks_probes_and_ejection() {
        let backend = backend("127.0.0.1:1");
        let now = Instant::now();
        assert_eq!(backend.status(AdminState::Active, now), Status::Unknown);
        probe(&backend.endpoints().as_slice()[0]);
        assert_eq!(backend.status(AdminState::Active, now), Status::Healthy);
        assert_eq!(backend.status(AdminState::Draining, now), Status::Draining);
        assert_eq!(backend.status(AdminState::Down, now), Status::Down);
    }

    #[test]
    fn a_new_address_of_a_name_is_a_new_endpoint() {
        let backend = backend("web:1");
        let now = Instant::now();
        assert_eq!(backend.endpoints().as_slice()[0].address(), None);
        backend.record_unresolved();
        assert_eq!(backend.health(), Health::Unhealthy);
        let [first, second] = addresses(["127.0.0.1:1", "127.0.0.2:1"]);
        assert_eq!(backend.resolved(&[first], now), AddressChanges { joined: vec![first], left: vec![] });
        assert_eq!(backend.health(), Health::Unknown);
        probe(&backend.endpoints().as_slice()[0]);
        assert_eq!(backend.resolved(&[first], now), AddressChanges::default());
        backend.record_unresolved();
        assert_eq!(backend.health(), Health::Healthy, "the last answer is kept");
        assert_eq!(backend.resolved(&[second], now), AddressChanges { joined: vec![second], left: vec![first] });
        assert_eq!(backend.health(), Health::Unknown);
        assert_eq!(backend.resolved(&[], now), AddressChanges { joined: vec![], left: vec![second] });
        assert_eq!(backend.endpoints().as_slice()[0].address(), None);
        assert_eq!(backend.resolved(&[], now), AddressChanges::default());
    }

    #[test]
    fn remaining_addresses_keep_their_state_and_removed_ones_finish_their_exchanges() {
        let backend = backend("web:1");
        let now = Instant::now();
        let [first, second, third] = addresses(["127.0.0.1:1", "127.0.0.2:1", "127.0.0.3:1"]);
        backend.resolved(&[second, first, second], now);
        let endpoints = backend.endpoints();
        let [one, two] = endpoints.as_slice() else { panic!("two addresses") };
        assert_eq!((one.ip(), two.ip()), (Some(first), Some(second)), "in the order of their addresses");
        probe(one);
        probe(two);
        let (held, kept) = (one.lease(), two.lease());
        assert_eq!(backend.resolved(&[third, second], now), AddressChanges { joined: vec![third], left: vec![first] });
        assert!(!held.is_current() && kept.is_current());
        assert_eq!(two.health(), Health::Healthy);
        assert_eq!(backend.in_flight(), 2, "what is in flight on an address that left counts until it ends");
        backend.kill();
        assert!(held.is_killed() && kept.is_killed());
        drop((held, kept));
        assert_eq!(backend.in_flight(), 0);
        backend.leave(now);
        assert_eq!(backend.resolved(&[first], now), AddressChanges::default(), "it is in no pool");
    }

    #[test]
    fn the_least_loaded_endpoint_is_picked_and_equals_take_turns() {
        let backend = backend("web:1");
        backend.resolved(&addresses(["127.0.0.1:1", "127.0.0.2:1", "127.0.0.3:1"]), Instant::now());
        let endpoints = backend.endpoints();
        let [one, two, three] = endpoints.as_slice() else { panic!("three addresses") };
        let lease = || endpoints.lease(|_| false).expect("three are open");
        let idle: Vec<_> = (0..3).map(|_| lease().endpoint().ip()).collect();
        assert_eq!(idle, [one.ip(), two.ip(), three.ip()]);
        let _leases = [one.lease(), three.lease()];
        assert!((0..3).all(|_| Arc::ptr_eq(lease().endpoint(), two)));
        let other = endpoints.lease(|endpoint| Arc::ptr_eq(endpoint, two)).expect("two are left");
        assert!(!Arc::ptr_eq(other.endpoint(), two));
        assert!(endpoints.lease(|_| true).is_none());
        assert_eq!(endpoints.in_flight(), 3);
        assert!(endpoints.lease_at(2, |_| false).is_none());
        let last = endpoints.lease_at(3, |_| false).expect("three are in flight");
        assert!(Arc::ptr_eq(last.endpoint(), two));
    }

    #[test]
    fn endpoints_share_by_weight_and_later_priorities_wait_for_earlier_ones_to_fail() {
        let backend = backend("srv:_http._tcp.test");
        let [one, two, three] = addresses(["127.0.0.1:1", "127.0.0.2:1", "127.0.0.3:1"]);
        backend.resolved(&[one, two, three], Instant::now());
        let share = |priority, weight| Share { priority, weight };
        backend.share_out(&BTreeMap::from([(one, share(1, 3)), (two, share(1, 1)), (three, share(2, 9))]));
        let endpoints = backend.endpoints();
        let asked = |is_closed: &dyn Fn(SocketAddr) -> bool, count: usize| {
            let mut asked = BTreeMap::<_, usize>::new();
            for _ in 0..count {
                let lease = endpoints.lease(|endpoint| endpoint.ip().is_some_and(is_closed)).expect("one is open");
                *asked.entry(lease.endpoint().ip().expect("an address")).or_default() += 1;
            }
            asked.into_iter().collect::<Vec<_>>()
        };
        let shared = asked(&|_| false, 400);
        assert!(matches!(*shared, [(_, 297..=303), (_, 97..=103)]), "{shared:?}");
        assert_eq!(asked(&|ip| ip == one, 4), [(two, 4)]);
        assert_eq!(asked(&|ip| ip != three, 4), [(three, 4)]);
        // With many in flight they are spread in the same way.
        let leases: Vec<_> = (0..8).map(|_| endpoints.lease(|_| false).expect("two are open")).collect();
        let on = |ip| leases.iter().filter(|lease| lease.endpoint().ip() == Some(ip)).count();
        assert_eq!((on(one), on(two), on(three)), (6, 2, 0));
    }

    #[test]
    fn a_backend_has_the_health_of_its_best_endpoint() {
        let backend = backend("web:1");
        let now = Instant::now();
        backend.resolved(&addresses(["127.0.0.1:1", "127.0.0.2:1"]), now);
        let endpoints = backend.endpoints();
        let [one, two] = endpoints.as_slice() else { panic!("two addresses") };
        let failed = || ProbeReport { at: Instant::now(), duration: Duration::ZERO, error: Some("reset".to_owned()) };
        one.probed(failed(), 1, 1);
        assert_eq!(backend.status(AdminState::Active, now), Status::Unknown);
        assert!(backend.is_unknown());
        probe(two);
        assert_eq!(backend.status(AdminState::Active, now), Status::Healthy);
        assert!(!backend.is_unknown());
        two.probed(failed(), 1, 1);
        assert_eq!(backend.status(AdminState::Active, now), Status::Unhealthy);
    }
}
