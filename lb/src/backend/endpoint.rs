//! One address of a backend, with the state of the server behind it: exchanges in flight, health, ejection, latency.
//! This state is reset when another server may be behind the address; the endpoint then gets a new *incarnation*.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::{Identity, Status};
use crate::clock;
use crate::config::EjectionConfig;
use crate::config::backend::{AdminState, SocketAddress};
use crate::failure::BackendFailure;
use crate::health::ejection::{Ejection, EjectionPermit};
use crate::health::tracker::{Health, Tracker};

/// An endpoint of a backend. It lives from the resolution that first names its address to its last exchange.
#[derive(Debug)]
pub struct Endpoint {
    /// Its backend.
    pub backend: Arc<Identity>,
    /// Where to connect; `None`: the backend's name has not been resolved.
    address: Option<SocketAddress>,
    /// A [`Share`], packed.
    share: AtomicU64,
    in_flight: AtomicU32,
    /// Mirrors the ejection in `vitals` for picks, which take no lock.
    is_ejected: AtomicBool,
    failures_in_a_row: AtomicU32,
    incarnation: AtomicU64,
    /// Exchanges of incarnations before this one have been killed.
    killed_before: AtomicU64,
    /// Requests an immediate probe after the state was reset.
    forgotten: Notify,
    /// Seconds, as the bits of an `f64`; 0 before the first response.
    latency: AtomicU64,
    born: Instant,
    /// When the last response head arrived, in nanoseconds after `born`; 0 before the first.
    last_head: AtomicU64,
    vitals: Mutex<SelectionState>,
}

/// State that changes rarely. It is read when a view is built, not for each request.
#[derive(Debug)]
struct SelectionState {
    is_probed: bool,
    /// The endpoint has left its backend, or the backend its pool.
    has_left: bool,
    /// Results of probes that began before are ignored.
    since: Instant,
    tracker: Tracker,
    ejection: Ejection,
    last_probe: Option<ProbeReport>,
    /// The last failures of real traffic, newest last.
    last_failures: VecDeque<BackendFailure>,
}

/// How many failures the log line of an ejection names.
const MAX_LAST_FAILURES: usize = 5;

/// The result of one probe.
#[derive(Debug, Clone)]
pub struct ProbeReport {
    pub at: Instant,
    pub duration: Duration,
    /// `None`: it succeeded.
    pub error: Option<String>,
}

/// Identifies the server behind an endpoint's address, as far as it can be known. The number is unique in the process:
/// no two endpoints and no two successive servers of an endpoint share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(u64);

/// Priority and weight of an endpoint within its backend, from SRV records (RFC 2782).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Only usable endpoints with the lowest number are used.
    pub priority: u16,
    /// Relative to others with the same priority; not 0.
    pub weight: u32,
}

impl Share {
    fn packed(self) -> u64 {
        (u64::from(self.priority) << 32) | u64::from(self.weight)
    }

    fn unpacked(packed: u64) -> Self {
        Self { priority: (packed >> 32) as u16, weight: packed as u32 }
    }
}

impl Default for Share {
    fn default() -> Self {
        Self { priority: 0, weight: 1 }
    }
}

/// What a probe's result has changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HealthChange {
    /// The new health, if it has changed.
    pub health: Option<Health>,
    /// The ejection was ended early.
    pub ends_ejection: bool,
}

/// Counts one exchange in flight on an endpoint until dropped.
#[derive(Debug)]
pub struct Lease {
    endpoint: Arc<Endpoint>,
    incarnation: Incarnation,
    /// Whether it counts towards the backend's `max_connections`.
    is_in_use: bool,
}

impl Incarnation {
    /// Unique among all endpoints, because idle connections are kept by incarnation; hence one shared counter.
    fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// The number that identifies it, for keys.
    pub fn number(self) -> u64 {
        self.0
    }
}

impl Endpoint {
    /// A new endpoint. Without probes it counts as healthy, if it has an address.
    pub fn new(backend: &Arc<Identity>, address: Option<SocketAddress>, is_probed: bool) -> Self {
        let now = clock::now();
        let tracker = Tracker::new(unprobed(address.as_ref(), is_probed));
        Self {
            backend: Arc::clone(backend),
            address,
            share: AtomicU64::new(Share::default().packed()),
            in_flight: AtomicU32::new(0),
            is_ejected: AtomicBool::new(false),
            failures_in_a_row: AtomicU32::new(0),
            incarnation: AtomicU64::new(Incarnation::next().0),
            killed_before: AtomicU64::new(0),
            forgotten: Notify::new(),
            latency: AtomicU64::new(0),
            born: now,
            last_head: AtomicU64::new(0),
            vitals: Mutex::new(SelectionState {
                is_probed,
                has_left: false,
                since: now,
                tracker,
                ejection: Ejection::default(),
                last_probe: None,
                last_failures: VecDeque::new(),
            }),
        }
    }

    /// Where to connect; `None`: the backend's name has not been resolved.
    pub fn address(&self) -> Option<&SocketAddress> {
        self.address.as_ref()
    }

    /// Where to connect by IP.
    pub fn ip(&self) -> Option<SocketAddr> {
        self.address().and_then(SocketAddress::ip)
    }

    /// The address that the backend's name resolved to; `None` if the backend is configured by address.
    pub fn resolved_address(&self) -> Option<SocketAddr> {
        self.ip().filter(|_| self.backend.is_name)
    }

    /// Its share of the backend's exchanges.
    pub fn share(&self) -> Share {
        Share::unpacked(self.share.load(Ordering::Relaxed))
    }

    pub fn set_share(&self, share: Share) {
        self.share.store(share.packed(), Ordering::Relaxed);
    }

    pub fn lease(self: &Arc<Self>) -> Lease {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.counted()
    }

    /// A lease, if exactly `in_flight` exchanges are in flight now.
    pub fn lease_at(self: &Arc<Self>, in_flight: u32) -> Option<Lease> {
        let next = in_flight.checked_add(1)?;
        let counted = self.in_flight.compare_exchange(in_flight, next, Ordering::Relaxed, Ordering::Relaxed);
        counted.is_ok().then(|| self.counted())
    }

    fn counted(self: &Arc<Self>) -> Lease {
        Lease { endpoint: Arc::clone(self), incarnation: self.incarnation(), is_in_use: false }
    }

    /// The current server, as far as can be known. A connection belongs to the server of its lease.
    pub fn incarnation(&self) -> Incarnation {
        Incarnation(self.incarnation.load(Ordering::Acquire))
    }

    /// Resets the state, because another server may be behind the address from `now` on: health is unknown until the
    /// next probe, latency and consecutive failures restart, idle connections are closed, and results of exchanges and
    /// probes that began before are ignored. An ejection ends here only if no probes could end it.
    pub fn forget(&self, now: Instant) {
        let mut vitals = self.vitals();
        vitals.tracker = Tracker::new(unprobed(self.address(), vitals.is_probed));
        vitals.last_probe = None;
        vitals.since = now;
        if !vitals.is_probed && vitals.ejection.end() {
            self.is_ejected.store(false, Ordering::Release);
        }
        self.failures_in_a_row.store(0, Ordering::Relaxed);
        self.latency.store(0, Ordering::Relaxed);
        self.incarnation.store(Incarnation::next().0, Ordering::Release);
        self.backend.record_change();
        drop(vitals);
        self.forgotten.notify_one();
    }

    /// Marks the endpoint as removed for good: an address that is added again is another endpoint. Ends an ejection,
    /// whose end nobody would see otherwise, and prevents further ones, so that its permit is free for others.
    pub fn leave(&self, now: Instant) {
        let mut vitals = self.vitals();
        vitals.has_left = true;
        if vitals.ejection.end() {
            self.is_ejected.store(false, Ordering::Release);
        }
        drop(vitals);
        self.forget(now);
    }

    /// Kills every open exchange; the caller must wake their tasks. Their results are ignored, and their connections
    /// are not reused.
    pub fn kill(&self) {
        // Locked so that the numbers are stored in order.
        let _vitals = self.vitals();
        let next = Incarnation::next();
        self.incarnation.store(next.0, Ordering::Release);
        self.killed_before.store(next.0, Ordering::Release);
    }

    /// Whether exchanges of this incarnation have been killed.
    pub fn is_killed(&self, server: Incarnation) -> bool {
        server.0 < self.killed_before.load(Ordering::Relaxed)
    }

    /// Resolves when [`Self::forget`] was called since this last resolved.
    pub async fn forgotten(&self) {
        self.forgotten.notified().await;
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Updates the latency average. A higher value counts at once, a lower one slowly (peak EWMA), so that an endpoint
    /// which begins to stall is noticed with its first slow response.
    pub fn observe_latency(&self, latency: Duration) {
        const SMOOTHING: f64 = 0.1;
        let new = latency.as_secs_f64();
        let old = f64::from_bits(self.latency.load(Ordering::Relaxed));
        let average = if old == 0.0 || new > old { new } else { old + (new - old) * SMOOTHING };
        self.latency.store(average.to_bits(), Ordering::Relaxed);
    }

    /// Moving average of the time to a response's head; `None` before the first.
    pub fn latency(&self) -> Option<Duration> {
        let seconds = f64::from_bits(self.latency.load(Ordering::Relaxed));
        (seconds > 0.0).then(|| Duration::from_secs_f64(seconds))
    }

    /// A response head has arrived.
    pub fn answered(&self, now: Instant) {
        self.last_head.store(self.age(now), Ordering::Relaxed);
    }

    /// Whether any response head has arrived since `since`.
    pub fn has_answered_since(&self, since: Instant) -> bool {
        self.last_head.load(Ordering::Relaxed) > self.age(since)
    }

    /// In nanoseconds, enough for 584 years.
    fn age(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.born).as_nanos() as u64
    }

    pub fn succeeded(&self) {
        if self.failures_in_a_row.load(Ordering::Relaxed) != 0 {
            self.failures_in_a_row.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a failure of real traffic. Returns true if the endpoint is to be ejected now.
    pub fn failed(&self, cause: BackendFailure, rules: &EjectionConfig) -> bool {
        let mut vitals = self.vitals();
        if vitals.last_failures.len() == MAX_LAST_FAILURES {
            vitals.last_failures.pop_front();
        }
        vitals.last_failures.push_back(cause);
        drop(vitals);
        let failures = self.failures_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
        rules.consecutive_failures != 0 && failures >= rules.consecutive_failures
    }

    /// Whether it has failed often enough to be ejected, and is not: too many are, or it is the only one.
    pub fn is_ejection_prevented(&self, rules: &EjectionConfig) -> bool {
        let failures = self.failures_in_a_row.load(Ordering::Relaxed);
        rules.consecutive_failures != 0 && failures >= rules.consecutive_failures && !self.is_ejected()
    }

    /// The last failures of real traffic, at most `max`, for example `reset at 10.0.0.1:80 (3 times), status 503 at
    /// …`.
    pub fn last_failures(&self, max: usize) -> String {
        let vitals = self.vitals();
        let failures = &vitals.last_failures;
        let mut rows: Vec<(BackendFailure, usize)> = Vec::new();
        for &failure in failures.range(failures.len().saturating_sub(max)..) {
            match rows.last_mut() {
                Some((last, times)) if *last == failure => *times += 1,
                _ => rows.push((failure, 1)),
            }
        }
        let at_address = self.address().map_or(String::new(), |address| format!(" at {address}"));
        let texts = rows.into_iter().map(|(cause, times)| match times {
            1 => format!("{cause}{at_address}"),
            _ => format!("{cause}{at_address} ({times} times)"),
        });
        texts.collect::<Vec<_>>().join(", ")
    }

    /// Ejects the endpoint, each time for longer. `None` if it is ejected already or has left.
    pub fn eject(&self, permit: EjectionPermit, rules: &EjectionConfig, now: Instant) -> Option<Duration> {
        let mut vitals = self.vitals();
        if vitals.has_left {
            return None;
        }
        let duration = vitals.ejection.start(permit, rules, now, |since| self.has_answered_since(since))?;
        self.is_ejected.store(true, Ordering::Release);
        drop(vitals);
        self.failures_in_a_row.store(0, Ordering::Relaxed);
        self.backend.record_change();
        self.backend.metrics.ejections.inc();
        Some(duration)
    }

    /// Ends an ejection whose time is over. Returns true once per ejection.
    pub fn expire_ejection(&self, now: Instant) -> bool {
        let mut vitals = self.vitals();
        let is_over = vitals.ejection.expire(now);
        if is_over {
            self.return_from_ejection();
            self.backend.record_change();
        }
        is_over
    }

    /// Restarts consecutive failures: requests sent before the ejection may have failed during it.
    fn return_from_ejection(&self) {
        self.failures_in_a_row.store(0, Ordering::Relaxed);
        self.is_ejected.store(false, Ordering::Release);
    }

    /// Whether an ejection has begun, and its end has not been processed.
    pub fn is_ejected(&self) -> bool {
        self.is_ejected.load(Ordering::Acquire)
    }

    pub fn ejected_for(&self, now: Instant) -> Option<Duration> {
        self.vitals().ejection.remaining(now)
    }

    pub fn health(&self) -> Health {
        self.vitals().tracker.health()
    }

    pub fn last_probe(&self) -> Option<ProbeReport> {
        self.vitals().last_probe.clone()
    }

    /// Takes a probe's result, unless the probe began before the state was reset.
    pub fn probed(&self, report: ProbeReport, rise: u32, fall: u32) -> HealthChange {
        let mut vitals = self.vitals();
        if report.at < vitals.since {
            return HealthChange::default();
        }
        let succeeded = report.error.is_none();
        let finding = HealthChange {
            health: vitals.tracker.observe(succeeded, rise, fall),
            ends_ejection: vitals.ejection.probed(report.at, succeeded, rise),
        };
        vitals.last_probe = Some(report);
        if finding.ends_ejection {
            self.return_from_ejection();
        }
        if finding != HealthChange::default() {
            self.backend.record_change();
        }
        finding
    }

    /// Updates the health when probes are turned on or off: it becomes unknown or healthy. Otherwise changes nothing.
    pub fn set_probed(&self, probed: bool) {
        let mut vitals = self.vitals();
        if vitals.is_probed != probed {
            vitals.is_probed = probed;
            // An endpoint without an address is not probed.
            if self.address.is_some() {
                vitals.tracker = Tracker::new(unprobed(self.address(), probed));
                vitals.last_probe = None;
            }
            self.backend.record_change();
        }
    }

    /// The lookup of the name has failed, so nothing can be sent here.
    pub fn record_unresolved(&self) {
        let mut vitals = self.vitals();
        if vitals.tracker.health() != Health::Unhealthy {
            vitals.tracker = Tracker::new(Health::Unhealthy);
            self.backend.record_change();
        }
    }

    pub fn status(&self, state: AdminState, now: Instant) -> Status {
        match state {
            AdminState::Draining => Status::Draining,
            AdminState::Down => Status::Down,
            AdminState::Removing => Status::Removing,
            AdminState::Active => {
                let vitals = self.vitals();
                match vitals.tracker.health() {
                    _ if vitals.ejection.remaining(now).is_some() => Status::Ejected,
                    Health::Unknown => Status::Unknown,
                    Health::Healthy => Status::Healthy,
                    Health::Unhealthy => Status::Unhealthy,
                }
            }
        }
    }

    fn vitals(&self) -> MutexGuard<'_, SelectionState> {
        self.vitals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The health before the first probe. An endpoint without an address waits for one.
fn unprobed(address: Option<&SocketAddress>, is_probed: bool) -> Health {
    if is_probed || address.is_none() { Health::Unknown } else { Health::Healthy }
}

impl Lease {
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    pub fn backend(&self) -> &Arc<Identity> {
        &self.endpoint.backend
    }

    /// The server at the time of the lease.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Counts it as a connection in use, even beyond the limit.
    pub fn in_use(mut self) -> Self {
        self.endpoint.backend.use_another();
        self.is_in_use = true;
        self
    }

    /// Like [`Self::in_use`]. `None`: the backend is at its limit.
    pub fn in_use_if_allowed(mut self) -> Option<Self> {
        self.is_in_use = self.endpoint.backend.use_one_if_allowed();
        self.is_in_use.then_some(self)
    }

    /// Whether an operator has killed this exchange.
    pub fn is_killed(&self) -> bool {
        self.endpoint.is_killed(self.incarnation)
    }

    /// Whether the endpoint still has the same server as when the lease was given.
    pub fn is_current(&self) -> bool {
        self.incarnation == self.endpoint.incarnation()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.is_in_use {
            self.endpoint.backend.use_one_less();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::BackendMetrics;

    fn endpoint() -> Arc<Endpoint> {
        let address = "127.0.0.1:1".parse().expect("valid");
        let backend = Identity::new(address, BackendMetrics::unregistered(), Arc::default());
        Arc::new(Endpoint::new(&Arc::new(backend), "127.0.0.1:1".parse().ok().map(SocketAddress::Ip), true))
    }

    #[test]
    fn a_lease_counts_until_dropped() {
        let endpoint = endpoint();
        let first = endpoint.lease();
        let second = endpoint.lease();
        assert_eq!(endpoint.in_flight(), 2);
        drop(first);
        assert_eq!(endpoint.in_flight(), 1);
        drop(second);
        assert_eq!(endpoint.in_flight(), 0);
    }

    #[test]
    fn a_lease_at_an_expected_count_fails_at_any_other() {
        let endpoint = endpoint();
        let first = endpoint.lease_at(0).expect("idle");
        assert!(endpoint.lease_at(0).is_none());
        let second = endpoint.lease_at(1).expect("one is in flight");
        assert_eq!(endpoint.in_flight(), 2);
        drop((first, second));
        assert_eq!(endpoint.in_flight(), 0);
    }

    #[test]
    fn a_success_resets_consecutive_failures() {
        let rules = EjectionConfig {
            consecutive_failures: 2,
            base_time: Duration::from_secs(1),
            max_time: Duration::from_secs(9),
            max_percent: 50,
            statuses: Vec::new(),
        };
        let endpoint = endpoint();
        let failed = |cause| endpoint.failed(cause, &rules);
        assert!(!failed(BackendFailure::Status(500)));
        endpoint.succeeded();
        assert!(!failed(BackendFailure::Status(503)));
        assert!(failed(BackendFailure::Status(503)));
        assert_eq!(endpoint.last_failures(2), "status 503 at 127.0.0.1:1 (2 times)");
        assert_eq!(endpoint.last_failures(9), "status 500 at 127.0.0.1:1, status 503 at 127.0.0.1:1 (2 times)");
    }

    #[test]
    fn kill_ends_only_open_leases_and_keeps_the_state() {
        let endpoint = endpoint();
        let now = Instant::now();
        endpoint.probed(report(now), 1, 1);
        let before = endpoint.incarnation();
        let lease = endpoint.lease();
        assert!(!endpoint.is_killed(before));
        endpoint.kill();
        assert!(endpoint.is_killed(before) && !lease.is_current());
        assert!(!endpoint.is_killed(endpoint.incarnation()) && endpoint.lease().is_current());
        endpoint.forget(now);
        assert!(!endpoint.is_killed(endpoint.incarnation()));
        endpoint.probed(report(now), 1, 1);
        assert_eq!(endpoint.health(), Health::Healthy);
    }

    #[test]
    fn an_endpoint_counts_as_silent_until_a_response_head_arrives() {
        let endpoint = endpoint();
        let sent = Instant::now();
        assert!(!endpoint.has_answered_since(sent));
        endpoint.answered(sent + Duration::from_millis(1));
        assert!(endpoint.has_answered_since(sent));
        assert!(!endpoint.has_answered_since(sent + Duration::from_millis(1)));
    }

    #[test]
    fn latency_rises_at_once_and_falls_slowly() {
        let endpoint = endpoint();
        assert_eq!(endpoint.latency(), None);
        endpoint.observe_latency(Duration::from_millis(10));
        endpoint.observe_latency(Duration::from_millis(100));
        assert_eq!(endpoint.latency(), Some(Duration::from_millis(100)));
        endpoint.observe_latency(Duration::from_millis(10));
        assert_eq!(endpoint.latency(), Some(Duration::from_millis(91)));
    }

    fn report(at: Instant) -> ProbeReport {
        ProbeReport { at, duration: Duration::ZERO, error: None }
    }

    #[test]
    fn results_of_attempts_begun_before_the_server_changed_are_ignored() {
        let endpoint = endpoint();
        let start = Instant::now();
        endpoint.probed(report(start), 1, 1);
        endpoint.observe_latency(Duration::from_millis(10));
        let lease = endpoint.lease();
        assert!(lease.is_current());
        let incarnation = endpoint.incarnation();
        endpoint.forget(start + Duration::from_secs(2));
        assert_eq!((endpoint.health(), endpoint.latency()), (Health::Unknown, None));
        assert!(endpoint.last_probe().is_none());
        assert_ne!(endpoint.incarnation(), incarnation);
        assert!(!lease.is_current() && endpoint.lease().is_current());
        assert_eq!(endpoint.probed(report(start + Duration::from_secs(1)), 1, 1), HealthChange::default());
        assert_eq!(endpoint.health(), Health::Unknown);
        endpoint.probed(report(start + Duration::from_secs(3)), 1, 1);
        assert_eq!(endpoint.health(), Health::Healthy);
    }
}
