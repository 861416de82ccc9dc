//! One server that answers requests, and everything that is true of it right now: exchanges in flight, health,
//! ejection, latency. A backend is shared by every snapshot that names it and outlives them, so that no change of
//! configuration forgets what is known. What was learned of one server is forgotten where another may have taken its
//! place: its *incarnation* then is another one.

pub mod repeats;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use serde::Serialize;
use tokio::sync::Notify;

use crate::clock;
use crate::config::EjectionConfig;
use crate::config::backend::{AdminState, BackendAddress};
use crate::failure::Cause;
use crate::health::ejection::{Ejection, Place};
use crate::health::tracker::{Health, Tracker};
use crate::metrics::BackendMetrics;
use repeats::Repeats;

/// The operator's wish, the probes' finding and the traffic's in one word.
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
    pub address: BackendAddress,
    pub metrics: BackendMetrics,
    /// Where to connect; `None` while a host name does not resolve.
    socket_address: ArcSwapOption<SocketAddr>,
    in_flight: AtomicU32,
    /// As the ejection in `vitals`, for picks, which take no lock.
    is_ejected: AtomicBool,
    failures_in_a_row: AtomicU32,
    incarnation: AtomicU64,
    /// Exchanges that were opened with an incarnation before this one have been killed.
    killed_before: AtomicU64,
    /// Failures that are counted instead of logged.
    pub repeats: Repeats,
    /// Calls for a probe before its time, since nothing is known any more.
    forgotten: Notify,
    /// Counts changes of health and ejections, by which a pool sees that its list of candidates is out of date.
    changes: AtomicU64,
    /// Bits of an `f64` in seconds; 0 before the first response.
    latency: AtomicU64,
    born: Instant,
    /// When the last response's head came, in nanoseconds after `born`; 0 before the first.
    last_head: AtomicU64,
    vitals: Mutex<Vitals>,
}

/// What changes seldom: read to list candidates, not for each request.
#[derive(Debug)]
struct Vitals {
    is_probed: bool,
    /// It is no part of its pool any more.
    has_left: bool,
    /// What began before is not believed.
    since: Instant,
    tracker: Tracker,
    ejection: Ejection,
    last_probe: Option<ProbeReport>,
    /// Why real traffic failed on it and where it was then, the newest at the end.
    last_failures: VecDeque<(Cause, Option<SocketAddr>)>,
    draining_since: Option<Instant>,
    /// A deadline has ended the grace of its sticky clients; only while it drains.
    is_grace_ended: bool,
    /// When what is still open on it then is killed; only while it is not active.
    deadline: Option<Instant>,
}

/// How many failures an ejection's line in the log names.
const MAX_LAST_FAILURES: usize = 5;

/// How one probe ended.
#[derive(Debug, Clone)]
pub struct ProbeReport {
    pub at: Instant,
    pub duration: Duration,
    /// `None`: it succeeded.
    pub error: Option<String>,
}

/// Which server is behind a backend's address, as far as can be told: no two backends of this process, and no two
/// servers that one backend has had, share the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(u64);

/// What a probe's result changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Finding {
    /// The new health, when it is another one.
    pub health: Option<Health>,
    /// The ejection is over before its time.
    pub ends_ejection: bool,
}

/// Counts one exchange in flight on a backend until dropped, however the exchange ends.
#[derive(Debug)]
pub struct Lease {
    backend: Arc<Backend>,
    incarnation: Incarnation,
}

impl Incarnation {
    /// Unique among all backends, and idle connections are kept by it: hence a counter that all share.
    fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

impl Backend {
    /// A backend nothing is known about. Without probes (`probed` false) it counts as healthy.
    pub fn new(address: BackendAddress, probed: bool, metrics: BackendMetrics) -> Self {
        let socket_address = address.socket_address().map(Arc::new);
        Self {
            address,
            metrics,
            socket_address: ArcSwapOption::new(socket_address),
            in_flight: AtomicU32::new(0),
            is_ejected: AtomicBool::new(false),
            failures_in_a_row: AtomicU32::new(0),
            incarnation: AtomicU64::new(Incarnation::next().0),
            killed_before: AtomicU64::new(0),
            repeats: Repeats::default(),
            forgotten: Notify::new(),
            changes: AtomicU64::new(0),
            latency: AtomicU64::new(0),
            born: clock::now(),
            last_head: AtomicU64::new(0),
            vitals: Mutex::new(Vitals {
                is_probed: probed,
                has_left: false,
                since: clock::now(),
                tracker: Tracker::new(unprobed(probed)),
                ejection: Ejection::default(),
                last_probe: None,
                last_failures: VecDeque::new(),
                draining_since: None,
                is_grace_ended: false,
                deadline: None,
            }),
        }
    }

    pub fn lease(self: &Arc<Self>) -> Lease {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.counted()
    }

    /// A lease if so many exchanges are in flight now, neither more nor fewer.
    pub fn lease_at(self: &Arc<Self>, in_flight: u32) -> Option<Lease> {
        let next = in_flight.checked_add(1)?;
        let counted = self.in_flight.compare_exchange(in_flight, next, Ordering::Relaxed, Ordering::Relaxed);
        counted.is_ok().then(|| self.counted())
    }

    fn counted(self: &Arc<Self>) -> Lease {
        Lease { backend: Arc::clone(self), incarnation: self.incarnation() }
    }

    /// To be asked before [`Self::socket_address`]: a connection is kept for the incarnation that was known when it
    /// was opened.
    pub fn incarnation(&self) -> Incarnation {
        Incarnation(self.incarnation.load(Ordering::Acquire))
    }

    /// From `now` on another server may be behind the address. What was learned is not believed any more: health is
    /// unknown until the next probe, latency and failures in a row begin anew, kept connections are closed, and what
    /// exchanges and probes that began before still report is not taken in. An ejection ends here only where no
    /// probes could end it.
    pub fn forget(&self, now: Instant) {
        let mut vitals = self.vitals();
        vitals.tracker = Tracker::new(unprobed(vitals.is_probed));
        vitals.last_probe = None;
        vitals.since = now;
        if !vitals.is_probed && vitals.ejection.end() {
            self.is_ejected.store(false, Ordering::Release);
        }
        self.failures_in_a_row.store(0, Ordering::Relaxed);
        self.latency.store(0, Ordering::Relaxed);
        self.incarnation.store(Incarnation::next().0, Ordering::Release);
        self.changes.fetch_add(1, Ordering::Release);
        drop(vitals);
        self.forgotten.notify_one();
    }

    /// The backend has left its pool for good: an address that is added again is another backend. An ejection ends here,
    /// since nobody would see its end, and none begins any more, so that others may be put aside.
    pub fn leave(&self, now: Instant) {
        let mut vitals = self.vitals();
        vitals.has_left = true;
        if vitals.ejection.end() {
            self.is_ejected.store(false, Ordering::Release);
        }
        drop(vitals);
        self.forget(now);
    }

    /// Has every exchange end that is open now; whoever carries them has to be woken. What they still report is not
    /// taken in, and their connections are not used again.
    pub fn kill(&self) {
        // Held so that the numbers are stored in their order.
        let _vitals = self.vitals();
        let next = Incarnation::next();
        self.incarnation.store(next.0, Ordering::Release);
        self.killed_before.store(next.0, Ordering::Release);
    }

    /// Whether exchanges that were opened with this incarnation have been killed.
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

    pub fn socket_address(&self) -> Option<SocketAddr> {
        self.socket_address.load().as_deref().copied()
    }

    /// Keeps what a host name resolved to. Another address is another server. True when it is.
    pub fn set_socket_address(&self, address: SocketAddr, now: Instant) -> bool {
        let before = self.socket_address.load_full();
        if before.as_deref() == Some(&address) {
            return false;
        }
        self.socket_address.store(Some(Arc::new(address)));
        if before.is_some() {
            self.forget(now);
        }
        before.is_some()
    }

    /// A response's head came after `latency`. Peaks count at once, improvement slowly, so that a backend which
    /// begins to stall is seen with its first slow answer.
    pub fn observe_latency(&self, latency: Duration) {
        const SHARE_OF_NEW: f64 = 0.1;
        let new = latency.as_secs_f64();
        let old = f64::from_bits(self.latency.load(Ordering::Relaxed));
        let average = if old == 0.0 || new > old { new } else { old + (new - old) * SHARE_OF_NEW };
        self.latency.store(average.to_bits(), Ordering::Relaxed);
    }

    /// Moving average of the time to a response's head; `None` before the first.
    pub fn latency(&self) -> Option<Duration> {
        let seconds = f64::from_bits(self.latency.load(Ordering::Relaxed));
        (seconds > 0.0).then(|| Duration::from_secs_f64(seconds))
    }

    /// A response's head came.
    pub fn answered(&self, now: Instant) {
        self.last_head.store(self.age(now), Ordering::Relaxed);
    }

    /// Whether any response's head has come after `since`.
    pub fn has_answered_since(&self, since: Instant) -> bool {
        self.last_head.load(Ordering::Relaxed) > self.age(since)
    }

    /// Nanoseconds, enough for 584 years.
    fn age(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.born).as_nanos() as u64
    }

    pub fn succeeded(&self) {
        if self.failures_in_a_row.load(Ordering::Relaxed) != 0 {
            self.failures_in_a_row.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a failure of real traffic; true when it is the one that should eject the backend.
    pub fn failed(&self, cause: Cause, rules: &EjectionConfig) -> bool {
        let address = self.socket_address();
        let mut vitals = self.vitals();
        if vitals.last_failures.len() == MAX_LAST_FAILURES {
            vitals.last_failures.pop_front();
        }
        vitals.last_failures.push_back((cause, address));
        drop(vitals);
        let failures = self.failures_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
        rules.consecutive_failures != 0 && failures >= rules.consecutive_failures
    }

    /// The last failures of real traffic, at most `most`, such as `reset at 10.0.0.1:80 (3 times), status 503 at …`.
    pub fn last_failures(&self, most: usize) -> String {
        let vitals = self.vitals();
        let failures = &vitals.last_failures;
        let mut rows: Vec<((Cause, Option<SocketAddr>), usize)> = Vec::new();
        for &failure in failures.range(failures.len().saturating_sub(most)..) {
            match rows.last_mut() {
                Some((last, times)) if *last == failure => *times += 1,
                _ => rows.push((failure, 1)),
            }
        }
        let told = rows.into_iter().map(|((cause, address), times)| {
            let place = address.map_or(String::new(), |address| format!(" at {address}"));
            let times = if times == 1 { String::new() } else { format!(" ({times} times)") };
            format!("{cause}{place}{times}")
        });
        told.collect::<Vec<_>>().join(", ")
    }

    /// Puts the backend aside, for longer each time. `None` when it is aside already, or has left.
    pub fn eject(&self, place: Place, rules: &EjectionConfig, now: Instant) -> Option<Duration> {
        let mut vitals = self.vitals();
        if vitals.has_left {
            return None;
        }
        let duration = vitals.ejection.start(place, rules, now)?;
        self.is_ejected.store(true, Ordering::Release);
        drop(vitals);
        self.failures_in_a_row.store(0, Ordering::Relaxed);
        self.changes.fetch_add(1, Ordering::Release);
        self.metrics.ejections.inc();
        Some(duration)
    }

    /// Ends an ejection whose time is over; true once for each.
    pub fn expire_ejection(&self, now: Instant) -> bool {
        let mut vitals = self.vitals();
        let is_over = vitals.ejection.expire(now);
        if is_over {
            self.return_from_ejection();
            self.changes.fetch_add(1, Ordering::Release);
        }
        is_over
    }

    /// What was sent before the ejection may still have failed during it, which is no row that goes on now.
    fn return_from_ejection(&self) {
        self.failures_in_a_row.store(0, Ordering::Relaxed);
        self.is_ejected.store(false, Ordering::Release);
    }

    /// Whether an ejection has begun and its end has not been noticed.
    pub fn is_ejected(&self) -> bool {
        self.is_ejected.load(Ordering::Acquire)
    }

    pub fn ejected_for(&self, now: Instant) -> Option<Duration> {
        self.vitals().ejection.remaining(now)
    }

    pub fn health(&self) -> Health {
        self.vitals().tracker.health()
    }

    /// Whether no probe has come back yet.
    pub fn is_unknown(&self) -> bool {
        self.health() == Health::Unknown
    }

    pub fn last_probe(&self) -> Option<ProbeReport> {
        self.vitals().last_probe.clone()
    }

    /// Takes in a probe's result, unless the probe began before all was forgotten.
    pub fn probed(&self, report: ProbeReport, rise: u32, fall: u32) -> Finding {
        let mut vitals = self.vitals();
        if report.at < vitals.since {
            return Finding::default();
        }
        let succeeded = report.error.is_none();
        let finding = Finding {
            health: vitals.tracker.observe(succeeded, rise, fall),
            ends_ejection: vitals.ejection.probed(report.at, succeeded, rise),
        };
        vitals.last_probe = Some(report);
        if finding.ends_ejection {
            self.return_from_ejection();
        }
        if finding != Finding::default() {
            self.changes.fetch_add(1, Ordering::Release);
        }
        finding
    }

    /// How often health or ejection has changed.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The configuration began or ceased to probe, so health is unknown or taken for good; else nothing changes.
    pub fn set_probed(&self, probed: bool) {
        let mut vitals = self.vitals();
        if vitals.is_probed != probed {
            vitals.is_probed = probed;
            vitals.tracker = Tracker::new(unprobed(probed));
            vitals.last_probe = None;
            self.changes.fetch_add(1, Ordering::Release);
        }
    }

    pub fn status(&self, state: AdminState, now: Instant) -> Status {
        let vitals = self.vitals();
        match state {
            AdminState::Draining => Status::Draining,
            AdminState::Down => Status::Down,
            AdminState::Removing => Status::Removing,
            AdminState::Active if vitals.ejection.remaining(now).is_some() => Status::Ejected,
            AdminState::Active => match vitals.tracker.health() {
                Health::Unknown => Status::Unknown,
                Health::Healthy => Status::Healthy,
                Health::Unhealthy => Status::Unhealthy,
            },
        }
    }

    /// Notes what the operator wants of it. A draining that goes on keeps its beginning; a deadline ends when the backend
    /// is active again.
    pub fn set_wanted(&self, state: AdminState, now: Instant) {
        let mut vitals = self.vitals();
        let is_draining = state == AdminState::Draining;
        vitals.draining_since = is_draining.then(|| vitals.draining_since.unwrap_or(now));
        vitals.is_grace_ended &= is_draining;
        if state == AdminState::Active {
            vitals.deadline = None;
        }
    }

    /// Sets when what is still open then is killed, in place of an earlier deadline.
    pub fn set_deadline(&self, deadline: Option<Instant>) {
        self.vitals().deadline = deadline;
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.vitals().deadline
    }

    /// Ends a deadline, and with it the grace of sticky clients. False when it is not in force any more.
    pub fn end_deadline(&self, deadline: Instant) -> bool {
        let mut vitals = self.vitals();
        let is_in_force = vitals.deadline == Some(deadline);
        if is_in_force {
            vitals.deadline = None;
            vitals.is_grace_ended = vitals.draining_since.is_some();
        }
        is_in_force
    }

    /// When the grace of its sticky clients ends, if it drains and no deadline has ended it. A restart of the process
    /// begins it anew.
    pub fn grace_end(&self, grace: Duration) -> Option<Instant> {
        let vitals = self.vitals();
        let end = vitals.draining_since.filter(|_| !vitals.is_grace_ended)? + grace;
        Some(vitals.deadline.map_or(end, |deadline| deadline.min(end)))
    }

    fn vitals(&self) -> MutexGuard<'_, Vitals> {
        self.vitals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is taken for true of a backend before its first probe, if there will be one.
fn unprobed(is_probed: bool) -> Health {
    if is_probed { Health::Unknown } else { Health::Healthy }
}

impl Lease {
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// Whether an operator has ended this exchange.
    pub fn is_killed(&self) -> bool {
        self.backend.is_killed(self.incarnation)
    }

    /// Whether what this exchange learns is true of the server that is behind the backend now.
    pub fn is_current(&self) -> bool {
        self.incarnation == self.backend.incarnation()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.backend.in_flight.fetch_sub(1, Ordering::Relaxed);
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

    fn backend() -> Arc<Backend> {
        Arc::new(Backend::new("127.0.0.1:1".parse().expect("valid"), true, BackendMetrics::unregistered()))
    }

    #[test]
    fn a_lease_counts_until_dropped() {
        let backend = backend();
        let first = backend.lease();
        let second = backend.lease();
        assert_eq!(backend.in_flight(), 2);
        drop(first);
        assert_eq!(backend.in_flight(), 1);
        drop(second);
        assert_eq!(backend.in_flight(), 0);
    }

    #[test]
    fn a_lease_that_is_asked_for_at_a_count_is_given_at_no_other() {
        let backend = backend();
        let first = backend.lease_at(0).expect("idle");
        assert!(backend.lease_at(0).is_none());
        let second = backend.lease_at(1).expect("one is in flight");
        assert_eq!(backend.in_flight(), 2);
        drop((first, second));
        assert_eq!(backend.in_flight(), 0);
    }

    #[test]
    fn a_success_ends_the_row_of_failures() {
        let rules = EjectionConfig {
            consecutive_failures: 2,
            base_time: Duration::from_secs(1),
            max_time: Duration::from_secs(9),
            max_percent: 50,
            statuses: Vec::new(),
        };
        let backend = backend();
        let failed = |cause| backend.failed(cause, &rules);
        assert!(!failed(Cause::Status(500)));
        backend.succeeded();
        assert!(!failed(Cause::Status(503)));
        assert!(failed(Cause::Status(503)));
        assert_eq!(backend.last_failures(2), "status 503 at 127.0.0.1:1 (2 times)");
        assert_eq!(backend.last_failures(9), "status 500 at 127.0.0.1:1, status 503 at 127.0.0.1:1 (2 times)");
    }

    #[test]
    fn only_what_was_open_is_killed_and_nothing_is_forgotten() {
        let backend = backend();
        let now = Instant::now();
        backend.probed(report(now), 1, 1);
        let before = backend.incarnation();
        let lease = backend.lease();
        assert!(!backend.is_killed(before));
        backend.kill();
        assert!(backend.is_killed(before) && !lease.is_current());
        assert!(!backend.is_killed(backend.incarnation()) && backend.lease().is_current());
        backend.forget(now);
        assert!(!backend.is_killed(backend.incarnation()));
        backend.probed(report(now), 1, 1);
        assert_eq!(backend.health(), Health::Healthy);
    }

    #[test]
    fn a_deadline_ends_when_the_backend_is_active_again() {
        let backend = backend();
        let now = Instant::now();
        backend.set_deadline(Some(now));
        backend.set_wanted(AdminState::Down, now);
        assert_eq!(backend.deadline(), Some(now));
        backend.set_wanted(AdminState::Active, now);
        assert_eq!(backend.deadline(), None);
    }

    #[test]
    fn a_backend_is_silent_until_a_head_comes() {
        let backend = backend();
        let sent = Instant::now();
        assert!(!backend.has_answered_since(sent));
        backend.answered(sent + Duration::from_millis(1));
        assert!(backend.has_answered_since(sent));
        assert!(!backend.has_answered_since(sent + Duration::from_millis(1)));
    }

    #[test]
    fn latency_rises_at_once_and_falls_slowly() {
        let backend = backend();
        assert_eq!(backend.latency(), None);
        backend.observe_latency(Duration::from_millis(10));
        backend.observe_latency(Duration::from_millis(100));
        assert_eq!(backend.latency(), Some(Duration::from_millis(100)));
        backend.observe_latency(Duration::from_millis(10));
        assert_eq!(backend.latency(), Some(Duration::from_millis(91)));
    }

    #[test]
    fn the_operators_word_comes_before_probes_and_traffic() {
        let backend = backend();
        let now = Instant::now();
        assert_eq!(backend.status(AdminState::Active, now), Status::Unknown);
        backend.probed(ProbeReport { at: now, duration: Duration::ZERO, error: None }, 1, 1);
        assert_eq!(backend.status(AdminState::Active, now), Status::Healthy);
        assert_eq!(backend.status(AdminState::Draining, now), Status::Draining);
        assert_eq!(backend.status(AdminState::Down, now), Status::Down);
    }

    fn report(at: Instant) -> ProbeReport {
        ProbeReport { at, duration: Duration::ZERO, error: None }
    }

    #[test]
    fn nothing_that_began_before_is_believed_once_another_server_may_be_there() {
        let backend = backend();
        let start = Instant::now();
        backend.probed(report(start), 1, 1);
        backend.observe_latency(Duration::from_millis(10));
        let lease = backend.lease();
        assert!(lease.is_current());
        let incarnation = backend.incarnation();
        backend.forget(start + Duration::from_secs(2));
        assert_eq!((backend.health(), backend.latency()), (Health::Unknown, None));
        assert!(backend.last_probe().is_none());
        assert_ne!(backend.incarnation(), incarnation);
        assert!(!lease.is_current() && backend.lease().is_current());
        assert_eq!(backend.probed(report(start + Duration::from_secs(1)), 1, 1), Finding::default());
        assert!(backend.is_unknown());
        backend.probed(report(start + Duration::from_secs(3)), 1, 1);
        assert_eq!(backend.health(), Health::Healthy);
    }

    #[test]
    fn a_name_that_leads_to_another_address_leads_to_another_server() {
        let backend = backend();
        let now = Instant::now();
        backend.probed(report(now), 1, 1);
        assert!(!backend.set_socket_address("127.0.0.1:1".parse().expect("an address"), now));
        assert_eq!(backend.health(), Health::Healthy);
        assert!(backend.set_socket_address("127.0.0.2:1".parse().expect("an address"), now));
        assert_eq!(backend.health(), Health::Unknown);
    }
}
