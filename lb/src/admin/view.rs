//! The API's representation of pools and backends.

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;

use crate::backend::{Endpoint, ProbeReport, Resolution, Status};
use crate::balance::Member;
use crate::config::algorithm::Algorithm;
use crate::config::backend::{AdminState, BackendAddress};
use crate::config::certificate::Renewal;
use crate::config::site::ListenerName;
use crate::config::{EjectionConfig, PoolName};
use crate::control::resources::ListenerCertificate;
use crate::health::tracker::Health;
use crate::metrics::Gauges;
use crate::pool::{Plan, Pool};
use crate::snapshot::Snapshot;

#[derive(Debug, Serialize)]
pub(super) struct PoolsView {
    pub version: u64,
    /// The number of settings in force that differ from the configuration file.
    pub drift: usize,
    /// Settings of the file that take effect only at a start, and differ from the running ones.
    pub awaiting_restart: Vec<String>,
    /// The certificates that listeners use.
    pub certificates: Vec<CertificateView>,
    pub pools: Vec<PoolView>,
}

#[derive(Debug, Serialize)]
pub(super) struct CertificateView {
    listener: ListenerName,
    file: PathBuf,
    names: Vec<String>,
    /// `None`: nothing of this file is in use.
    not_after: Option<String>,
    days_left: Option<i64>,
    /// `due`, `urgent` or `expired`.
    renewal: Option<&'static str>,
    /// Why the current content of the file is not in use.
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct PoolView {
    name: PoolName,
    algorithm: Algorithm,
    panic: bool,
    /// Requests in the queue for a connection to a backend.
    queued: usize,
    backends: Vec<BackendView>,
}

#[derive(Debug, Serialize)]
pub(super) struct BackendView {
    address: BackendAddress,
    weight: u32,
    state: AdminState,
    health: Health,
    status: Status,
    ejected_for_seconds: f64,
    /// It would be ejected, but too many are, or it is the only one.
    ejection_prevented: bool,
    in_flight: u32,
    /// The limit on connections; `None`: no limit.
    max_connections: Option<NonZero<u32>>,
    /// Time until the exchanges that are still in flight are killed.
    deadline_seconds: Option<f64>,
    /// How long its sticky clients are still sent there while it drains.
    grace_seconds: Option<f64>,
    requests: u64,
    failures: u64,
    ejections: u64,
    latency_seconds: Option<f64>,
    last_probe: Option<ProbeView>,
    endpoints: Vec<EndpointView>,
    /// The result of the last lookup of its name; null for an address, and before the first lookup.
    resolution: Option<ResolutionView>,
}

/// One of the addresses of a backend.
#[derive(Debug, Serialize)]
struct EndpointView {
    /// Null: the name has no address.
    address: Option<String>,
    health: Health,
    status: Status,
    ejected_for_seconds: f64,
    /// It would be ejected, but too many are, or it is the only one.
    ejection_prevented: bool,
    in_flight: u32,
    latency_seconds: Option<f64>,
    last_probe: Option<ProbeView>,
}

#[derive(Debug, Serialize)]
struct ResolutionView {
    seconds_ago: f64,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct ProbeView {
    ok: bool,
    seconds_ago: f64,
    duration_seconds: f64,
    error: Option<String>,
}

impl PoolView {
    pub(super) fn new(pool: &Pool, now: Instant) -> Self {
        let plan = pool.plan();
        Self {
            name: pool.name.clone(),
            algorithm: plan.algorithm,
            panic: pool.is_panicking(),
            queued: plan.queue.waiting(),
            backends: plan.backends().map(|(member, state)| BackendView::new(&plan, member, state, now)).collect(),
        }
    }

    /// A pool that is no longer configured: all of its backends are being removed.
    pub(super) fn leaving(pool: &Pool, now: Instant) -> Self {
        let plan = pool.plan();
        let removing = |(member, _)| BackendView::new(&plan, member, AdminState::Removing, now);
        Self { backends: plan.backends().map(removing).collect(), ..Self::new(pool, now) }
    }
}

impl BackendView {
    pub(super) fn find(pool: &Pool, address: &str, now: Instant) -> Option<Self> {
        let plan = pool.plan();
        let (member, state) = plan.backends().find(|(member, _)| member.backend.address.as_str() == address)?;
        Some(Self::new(&plan, member, state, now))
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    fn new(plan: &Plan, member: &Member, state: AdminState, now: Instant) -> Self {
        let (backend, rules) = (&member.backend, &plan.settings.ejection);
        let endpoints = backend.endpoints();
        let endpoints = endpoints.as_slice();
        let ejected_for: Option<Vec<_>> = endpoints.iter().map(|endpoint| endpoint.ejected_for(now)).collect();
        let latencies: Vec<_> = endpoints.iter().filter_map(|endpoint| endpoint.latency()).collect();
        Self {
            address: backend.address.clone(),
            weight: member.weight.as_u32(),
            state,
            health: backend.health(),
            status: backend.status(state, now),
            ejected_for_seconds: ejected_for.and_then(|all| all.into_iter().min()).map_or(0.0, seconds),
            ejection_prevented: endpoints.iter().any(|endpoint| endpoint.is_ejection_prevented(rules)),
            in_flight: backend.in_flight(),
            max_connections: backend.max_connections(),
            deadline_seconds: backend.deadline().map(|deadline| seconds(deadline.saturating_duration_since(now))),
            grace_seconds: plan.grace_end(member, state).filter(|end| now < *end).map(|end| seconds(end - now)),
            requests: backend.metrics.attempts.get(),
            failures: backend.metrics.failures(),
            ejections: backend.metrics.ejections.get(),
            latency_seconds: average(&latencies).map(seconds),
            last_probe: last_probe(endpoints).map(|report| ProbeView::new(report, now)),
            endpoints: endpoints.iter().map(|endpoint| EndpointView::new(endpoint, state, rules, now)).collect(),
            resolution: backend.resolution().map(|resolution| ResolutionView::new(resolution, now)),
        }
    }
}

impl EndpointView {
    fn new(endpoint: &Endpoint, state: AdminState, rules: &EjectionConfig, now: Instant) -> Self {
        Self {
            address: endpoint.address().map(ToString::to_string),
            health: endpoint.health(),
            status: endpoint.status(state, now),
            ejected_for_seconds: endpoint.ejected_for(now).map_or(0.0, seconds),
            ejection_prevented: endpoint.is_ejection_prevented(rules),
            in_flight: endpoint.in_flight(),
            latency_seconds: endpoint.latency().map(seconds),
            last_probe: endpoint.last_probe().map(|report| ProbeView::new(report, now)),
        }
    }
}

impl ResolutionView {
    fn new(resolution: Resolution, now: Instant) -> Self {
        Self { seconds_ago: seconds(now.saturating_duration_since(resolution.at)), error: resolution.error }
    }
}

impl ProbeView {
    fn new(report: ProbeReport, now: Instant) -> Self {
        Self {
            ok: report.error.is_none(),
            seconds_ago: seconds(now.saturating_duration_since(report.at)),
            duration_seconds: seconds(report.duration),
            error: report.error,
        }
    }
}

fn average(durations: &[Duration]) -> Option<Duration> {
    durations.iter().sum::<Duration>().checked_div(u32::try_from(durations.len()).ok()?)
}

/// The latest probe of all endpoints.
fn last_probe(endpoints: &[Arc<Endpoint>]) -> Option<ProbeReport> {
    endpoints.iter().filter_map(|endpoint| endpoint.last_probe()).max_by_key(|report| report.at)
}

fn seconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e6
}

impl CertificateView {
    pub(super) fn of(certificates: &[ListenerCertificate]) -> Vec<Self> {
        let now = Timestamp::now().as_second();
        let view = |certificate: &ListenerCertificate| {
            let leaf = certificate.leaf.as_ref();
            Self {
                listener: certificate.listener.clone(),
                file: certificate.file.clone(),
                names: leaf.map(|leaf| leaf.names.clone()).unwrap_or_default(),
                not_after: leaf
                    .and_then(|leaf| Timestamp::from_second(leaf.not_after).ok())
                    .map(|time| time.to_string()),
                days_left: leaf.map(|leaf| leaf.days_left(now)),
                renewal: leaf.and_then(|leaf| leaf.renewal(now)).map(|renewal| match renewal {
                    Renewal::Due => "due",
                    Renewal::Urgent => "urgent",
                    Renewal::Expired => "expired",
                }),
                problem: certificate.problem.clone(),
            }
        };
        certificates.iter().map(view).collect()
    }
}

/// Sets the gauges of certificates.
pub(super) fn set_certificates(gauges: &Gauges, certificates: &[ListenerCertificate]) {
    for ListenerCertificate { listener, file, leaf, problem } in certificates {
        let (listener, file) = (listener.as_str(), file.to_string_lossy());
        if let Some(leaf) = leaf {
            let name = leaf.names.first().map_or("", String::as_str);
            let labels = [listener, &*file, name];
            gauges.certificate_not_before.with_label_values(&labels).set(leaf.not_before);
            gauges.certificate_not_after.with_label_values(&labels).set(leaf.not_after);
        }
        if problem.is_some() {
            gauges.certificate_problem.with_label_values(&[listener, &*file]).set(1);
        }
    }
}

/// Sets the gauges to the current state.
pub(super) fn set_gauges(gauges: &Gauges, snapshot: &Snapshot, now: Instant) {
    gauges.snapshot_version.set(i64::try_from(snapshot.version).unwrap_or(i64::MAX));
    for pool in &snapshot.pools {
        let (name, plan) = (pool.name.as_str(), pool.plan());
        gauges.pool_panic.with_label_values(&[name]).set(pool.is_panicking().into());
        gauges.pool_available.with_label_values(&[name]).set(pool.is_available().into());
        gauges.pool_queued.with_label_values(&[name]).set(pool.plan().queue.waiting() as i64);
        for algorithm in Algorithm::ALL {
            let is_used = plan.algorithm == algorithm;
            gauges.pool_algorithm.with_label_values(&[name, algorithm.as_str()]).set(is_used.into());
        }
        set_backends(gauges, pool, None, now);
    }
    for pool in &snapshot.leaving {
        set_backends(gauges, pool, Some(AdminState::Removing), now);
    }
}

/// Sets the gauges of a pool's backends. `leaving` is their state if it is not the configured one.
fn set_backends(gauges: &Gauges, pool: &Pool, leaving: Option<AdminState>, now: Instant) {
    for (member, state) in pool.plan().backends() {
        let state = leaving.unwrap_or(state);
        let labels = [pool.name.as_str(), member.backend.address.as_str()];
        gauges.backend_in_flight.with_label_values(&labels).set(member.backend.in_flight().into());
        gauges.backend_weight.with_label_values(&labels).set(member.weight.as_u32().into());
        if let Some(max) = member.backend.max_connections() {
            gauges.backend_max_connections.with_label_values(&labels).set(max.get().into());
        }
        let endpoints = member.backend.endpoints();
        let endpoints = endpoints.as_slice().iter().filter(|endpoint| endpoint.address().is_some());
        let is_usable = |endpoint: &&Arc<Endpoint>| {
            matches!(endpoint.status(AdminState::Active, now), Status::Healthy | Status::Unknown)
        };
        let count = |endpoints: usize| i64::try_from(endpoints).unwrap_or(i64::MAX);
        gauges.backend_endpoints.with_label_values(&labels).set(count(endpoints.clone().count()));
        let usable = endpoints.filter(|endpoint| is_usable(endpoint)).count();
        gauges.backend_endpoints_usable.with_label_values(&labels).set(count(usable));
        let current = member.backend.status(state, now);
        for status in Status::ALL {
            let labels = [labels[0], labels[1], status.as_str()];
            gauges.backend_status.with_label_values(&labels).set((status == current).into());
        }
    }
}
