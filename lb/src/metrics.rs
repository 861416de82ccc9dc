//! All metrics, in a registry of their own. Labels come only from the configuration, so that no client can create a
//! series. Requests update plain atomics that the pool and the backend hold; gauges are read from the snapshot at each
//! scrape.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::failure::Failure;

/// In seconds, from a quarter of a millisecond to a minute.
const DURATION_BUCKETS: [f64; 17] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Status codes with their own counters: what clients get when a backend, the balancer or the client gives up.
const WATCHED_STATUSES: [u16; 5] = [429, 499, 502, 503, 504];

/// Valid status codes (RFC 9110 §15: three digits).
const STATUSES: RangeInclusive<u16> = 100..=999;

/// Reasons within the balancer for not opening a connection to a backend.
const NOT_OPENED: [Failure; 3] = [Failure::NoLocalPort, Failure::NoSourceAddress, Failure::OutOfResources];

const CODE_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The metrics of one balancer, in a registry of its own.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    responses: IntCounterVec,
    /// Responses without a pool.
    pub(crate) own_responses: StatusCounters,
    counts_each_status: Arc<AtomicBool>,
    request_duration: HistogramVec,
    retries: IntCounterVec,
    refusals: IntCounterVec,
    client_failures: IntCounterVec,
    backend_attempts: IntCounterVec,
    backend_requests: IntCounterVec,
    backend_failures: IntCounterVec,
    backend_response: HistogramVec,
    backend_ejections: IntCounterVec,
    backend_probes: IntCounterVec,
    backend_killed: IntCounterVec,
    connections_not_opened: IntCounterVec,
    backend_resolutions: IntCounterVec,
    pub(crate) reloads: IntCounterVec,
    pub(crate) certificate_renewals: IntCounterVec,
    tls_handshakes: IntCounterVec,
    tls_handshake_failures: IntCounterVec,
    proxy_protocol_failures: IntCounterVec,
    http2_connection_errors: IntCounterVec,
    accept_failures: IntCounterVec,
    pub(crate) access_log_lost: IntCounter,
    /// Lines of the log that were lost since nobody took them; [`crate::log::Log::start`] counts them.
    pub log_lost: IntCounter,
    pub(crate) client_connections_shed: IntCounter,
    gauges: Mutex<Gauges>,
}

/// Reset and set again at each scrape.
#[derive(Debug)]
pub(crate) struct Gauges {
    pub(crate) snapshot_version: IntGauge,
    pub(crate) client_connections: IntGauge,
    pub(crate) client_connections_limit: IntGauge,
    pub(crate) pool_algorithm: IntGaugeVec,
    pub(crate) pool_panic: IntGaugeVec,
    pub(crate) pool_available: IntGaugeVec,
    pub(crate) pool_queued: IntGaugeVec,
    pub(crate) backend_in_flight: IntGaugeVec,
    pub(crate) backend_weight: IntGaugeVec,
    pub(crate) backend_max_connections: IntGaugeVec,
    pub(crate) backend_status: IntGaugeVec,
    pub(crate) certificate_not_before: IntGaugeVec,
    pub(crate) certificate_not_after: IntGaugeVec,
    pub(crate) certificate_problem: IntGaugeVec,
    pub(crate) backend_endpoints: IntGaugeVec,
    pub(crate) backend_endpoints_usable: IntGaugeVec,
}

/// Counts by class of status code.
#[derive(Debug)]
pub(crate) struct CodeCounters([IntCounter; 5]);

/// Counts of [`WATCHED_STATUSES`], and of all others while each status is counted.
#[derive(Debug)]
pub(crate) struct StatusCounters {
    watched: [IntCounter; WATCHED_STATUSES.len()],
    /// By status, starting with the first of [`STATUSES`]; each is created when that status is first sent.
    others: Box<[OnceLock<IntCounter>]>,
    counts_each: Arc<AtomicBool>,
    /// The pool is gone: no more series are created.
    is_forgotten: AtomicBool,
    counters: IntCounterVec,
    pool: String,
}

/// Reasons for which connections are not accepted.
pub(crate) const ACCEPT_FAILURES: [&str; 5] = ["aborted", "memory", "other", "process-fd-limit", "system-fd-limit"];

/// Reasons for failed TLS handshakes.
pub(crate) const HANDSHAKE_FAILURES: [&str; 10] = [
    "client-certificate",
    "closed",
    "incompatible",
    "malformed",
    "no-client-certificate",
    "plain-http",
    "refused",
    "shed",
    "timeout",
    "unknown-name",
];

/// Reasons for closing connections that must begin with a PROXY header.
pub(crate) const PROXY_PROTOCOL_FAILURES: [&str; 6] =
    ["closed", "malformed", "missing", "shed", "timeout", "too-large"];

/// Why HTTP/2 connections are ended: the error code for the client (RFC 9113 §7), or a timeout.
pub(crate) const HTTP2_ERRORS: [&str; 7] = [
    "compression-error",
    "enhance-your-calm",
    "flow-control-error",
    "frame-size-error",
    "protocol-error",
    "stream-closed",
    "timeout",
];

/// Handshake counters of a listener.
#[derive(Debug)]
pub(crate) struct TlsMetrics {
    pub(crate) full: IntCounter,
    pub(crate) resumed: IntCounter,
    /// By [`HANDSHAKE_FAILURES`].
    failures: [IntCounter; HANDSHAKE_FAILURES.len()],
}

impl TlsMetrics {
    pub(crate) fn failed(&self, reason: &str) {
        if let Some(index) = HANDSHAKE_FAILURES.iter().position(|known| *known == reason) {
            self.failures[index].inc();
        }
    }
}

/// Counters of a route.
#[derive(Debug)]
#[doc(hidden)]
pub struct RouteMetrics {
    pub(crate) requests: CodeCounters,
}

/// Counters of a pool.
#[derive(Debug)]
pub(crate) struct PoolMetrics {
    pub(crate) responses: StatusCounters,
    pub(crate) request_duration: Histogram,
    pub(crate) retries: IntCounter,
    /// By [`NOT_OPENED`].
    not_opened: [IntCounter; NOT_OPENED.len()],
}

/// Counters of a backend, which the backend holds.
#[derive(Debug)]
pub struct BackendMetrics {
    pub(crate) requests: CodeCounters,
    pub(crate) attempts: IntCounter,
    pub(crate) response: Histogram,
    pub(crate) ejections: IntCounter,
    pub(crate) probes_succeeded: IntCounter,
    pub(crate) probes_failed: IntCounter,
    /// Exchanges that an operator killed.
    pub(crate) killed: IntCounter,
    /// For a backend with a name.
    pub(crate) resolutions: Option<Resolutions>,
    failures: FailureCounters,
}

/// Counters of lookups of a name.
#[derive(Debug)]
pub(crate) struct Resolutions {
    pub(crate) succeeded: IntCounter,
    pub(crate) failed: IntCounter,
}

/// One counter for each [`FailureKind`] that is a backend's fault.
#[derive(Debug)]
struct FailureCounters(Box<[(FailureKind, IntCounter)]>);

/// The ways in which a backend fails real traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    Attempt(Failure),
    /// It responded with one of the pool's `[pool.ejection] statuses`.
    Status,
}

impl Metrics {
    /// Every metric at zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntGaugeVec::new(Opts::new(name, help), labels))
        };
        let histograms = |name: &str, help: &str, labels: &[&str]| {
            let opts = HistogramOpts::new(name, help).buckets(DURATION_BUCKETS.to_vec());
            register(&registry, HistogramVec::new(opts, labels))
        };
        let responses = counters(
            "evenkeel_responses_total",
            "Requests that ended with one of these status codes, a backend's or Evenkeel's own: 429, 499 (the client left before its answer), 502, 503, 504; with [metrics] exact_status, any. The pool is empty where none was asked: for redirects, fixed answers, and requests that found no route or were refused before.",
            &["pool", "status"],
        );
        let counts_each_status = Arc::default();
        let metrics = Self {
            requests: counters(
                "evenkeel_requests_total",
                "Requests, by the route that gave the answer and class of the status code sent to the client; 4xx counts clients that left before their answer, 1xx WebSockets.",
                &["route", "pool", "code"],
            ),
            own_responses: StatusCounters::new(&responses, &counts_each_status, ""),
            responses,
            counts_each_status,
            request_duration: histograms(
                "evenkeel_request_duration_seconds",
                "Time from a request's head to the end of its response, tunnels left out.",
                &["pool"],
            ),
            retries: counters("evenkeel_retries_total", "Attempts beyond the first, on another backend.", &["pool"]),
            refusals: counters(
                "evenkeel_refusals_total",
                "Requests that Evenkeel answered itself, by reason.",
                &["reason"],
            ),
            client_failures: counters(
                "evenkeel_client_failures_total",
                "Requests that failed by their client's fault, by the word that the access log has for it.",
                &["kind"],
            ),
            backend_attempts: counters(
                "evenkeel_backend_attempts_total",
                "Times a backend was chosen, retries included.",
                &["pool", "backend"],
            ),
            backend_requests: counters(
                "evenkeel_backend_requests_total",
                "Responses that a backend gave, by class of the status code.",
                &["pool", "backend", "code"],
            ),
            backend_failures: counters(
                "evenkeel_backend_failures_total",
                "Attempts on a backend that failed by its fault, by the word that the access log has for it; status: it answered with one of [pool.ejection] statuses.",
                &["pool", "backend", "kind"],
            ),
            backend_response: histograms(
                "evenkeel_backend_response_seconds",
                "Time from choosing a backend to the head of its response, without what it waited for the client's upload.",
                &["pool", "backend"],
            ),
            backend_ejections: counters(
                "evenkeel_backend_ejections_total",
                "Times a backend was ejected because real traffic failed on it.",
                &["pool", "backend"],
            ),
            backend_probes: counters(
                "evenkeel_backend_probes_total",
                "Active health checks, by result: success or failure.",
                &["pool", "backend", "result"],
            ),
            backend_killed: counters(
                "evenkeel_backend_killed_total",
                "Exchanges that an operator ended: by kill, or at the deadline of a change.",
                &["pool", "backend"],
            ),
            connections_not_opened: counters(
                "evenkeel_connections_not_opened_total",
                "Connections to backends that the balancer itself could not open, by what it lacked: no-local-port, no-source-address, out-of-resources (files or memory).",
                &["pool", "kind"],
            ),
            backend_resolutions: counters(
                "evenkeel_backend_resolutions_total",
                "Questions for the addresses of a backend that is written by name, by result: success, or failure when the last addresses are used on.",
                &["pool", "backend", "result"],
            ),
            reloads: counters(
                "evenkeel_reloads_total",
                "Readings of the configuration: success or failure.",
                &["result"],
            ),
            certificate_renewals: counters(
                "evenkeel_certificate_renewals_total",
                "Certificates whose files changed while they were in use: loaded (success), or not (failure).",
                &["listener", "result"],
            ),
            tls_handshakes: counters(
                "evenkeel_tls_handshakes_total",
                "TLS handshakes with clients that succeeded: full ones, and those that resumed a session.",
                &["listener", "kind"],
            ),
            proxy_protocol_failures: counters(
                "evenkeel_proxy_protocol_failures_total",
                "Connections that were cut because a header of the PROXY protocol was demanded of them, by reason.",
                &["listener", "reason"],
            ),
            http2_connection_errors: counters(
                "evenkeel_http2_connection_errors_total",
                "Connections of HTTP/2 that were ended by an error of their client, by reason.",
                &["listener", "reason"],
            ),
            tls_handshake_failures: counters(
                "evenkeel_tls_handshake_failures_total",
                "TLS handshakes with clients that failed, by reason.",
                &["listener", "reason"],
            ),
            accept_failures: counters(
                "evenkeel_accept_failures_total",
                "Failures to accept a connection of a client or of the admin API, by reason.",
                &["reason"],
            ),
            access_log_lost: register(
                &registry,
                IntCounter::new(
                    "evenkeel_access_log_lost_total",
                    "Access log lines lost: the disk was too slow, or refused them.",
                ),
            ),
            log_lost: register(
                &registry,
                IntCounter::new(
                    "evenkeel_log_lost_total",
                    "Lines of the log lost: the reader of standard error was too slow, or is gone.",
                ),
            ),
            client_connections_shed: register(
                &registry,
                IntCounter::new(
                    "evenkeel_client_connections_shed_total",
                    "Idle clients that had to leave to make room for others.",
                ),
            ),
            gauges: Mutex::new(Gauges {
                client_connections: register(
                    &registry,
                    IntGauge::new("evenkeel_client_connections", "Clients connected now."),
                ),
                client_connections_limit: register(
                    &registry,
                    IntGauge::new("evenkeel_client_connections_limit", "Clients that may be connected at once."),
                ),
                snapshot_version: register(
                    &registry,
                    IntGauge::new("evenkeel_snapshot_version", "Snapshots since the start; each change makes one."),
                ),
                pool_algorithm: gauges(
                    "evenkeel_pool_algorithm",
                    "1 for the algorithm that a pool uses, 0 for the others.",
                    &["pool", "algorithm"],
                ),
                pool_panic: gauges(
                    "evenkeel_pool_panic",
                    "1 while so few backends are usable that the pool ignores health.",
                    &["pool"],
                ),
                pool_available: gauges(
                    "evenkeel_pool_available",
                    "1 while a pool has a backend that may take traffic, 0 while its requests are answered 503.",
                    &["pool"],
                ),
                pool_queued: gauges(
                    "evenkeel_pool_queued",
                    "Requests that wait now because every backend is at its limit on connections.",
                    &["pool"],
                ),
                backend_in_flight: gauges(
                    "evenkeel_backend_in_flight",
                    "Exchanges on a backend now, WebSocket tunnels included.",
                    &["pool", "backend"],
                ),
                backend_max_connections: gauges(
                    "evenkeel_backend_max_connections",
                    "Exchanges that may be on a backend at once; no series where any number may.",
                    &["pool", "backend"],
                ),
                backend_weight: gauges("evenkeel_backend_weight", "Weight of a backend.", &["pool", "backend"]),
                backend_status: gauges(
                    "evenkeel_backend_status",
                    "1 for the status that a backend has, 0 for the others.",
                    &["pool", "backend", "status"],
                ),
                certificate_not_before: gauges(
                    "evenkeel_certificate_not_before_timestamp_seconds",
                    "From when on a certificate that clients get is valid, in seconds since 1970.",
                    &["listener", "certificate", "name"],
                ),
                certificate_not_after: gauges(
                    "evenkeel_certificate_not_after_timestamp_seconds",
                    "When a certificate that clients get expires, in seconds since 1970; the name is the first that it is for.",
                    &["listener", "certificate", "name"],
                ),
                certificate_problem: gauges(
                    "evenkeel_certificate_problem",
                    "1 for a file that has changed and cannot be loaded, or is gone while its certificate is still needed.",
                    &["listener", "certificate"],
                ),
                backend_endpoints: gauges(
                    "evenkeel_backend_endpoints",
                    "Addresses of a backend: 1 unless it is configured by a name with none or several.",
                    &["pool", "backend"],
                ),
                backend_endpoints_usable: gauges(
                    "evenkeel_backend_endpoints_usable",
                    "Those of its addresses that are neither unhealthy nor ejected.",
                    &["pool", "backend"],
                ),
            }),
            registry: registry.clone(),
        };
        let version = Opts::new("evenkeel_build_info", "Always 1; the version is the label.")
            .const_label("version", env!("CARGO_PKG_VERSION"));
        register(&registry, IntGauge::with_opts(version)).set(1);
        for result in ["success", "failure"] {
            metrics.reloads.with_label_values(&[result]);
        }
        for reason in ACCEPT_FAILURES {
            metrics.accept_failures.with_label_values(&[reason]);
        }
        let process = prometheus::process_collector::ProcessCollector::for_self();
        registry.register(Box::new(process)).expect("the names of the process collector are its own");
        metrics
    }

    pub(crate) fn tls(&self, listener: &str) -> TlsMetrics {
        let handshakes = |kind| self.tls_handshakes.with_label_values(&[listener, kind]);
        let failure = |reason| self.tls_handshake_failures.with_label_values(&[listener, reason]);
        TlsMetrics {
            full: handshakes("full"),
            resumed: handshakes("resumed"),
            failures: HANDSHAKE_FAILURES.map(failure),
        }
    }

    /// Starts these counters at 0.
    pub(crate) fn expect_proxy_protocol(&self, listener: &str) {
        for reason in PROXY_PROTOCOL_FAILURES {
            self.proxy_protocol_failures.with_label_values(&[listener, reason]);
        }
    }

    pub(crate) fn proxy_protocol_failed(&self, listener: &str, reason: &str) {
        self.proxy_protocol_failures.with_label_values(&[listener, reason]).inc();
    }

    /// `reason`: one of [`ACCEPT_FAILURES`].
    pub(crate) fn accept_failed(&self, reason: &str) {
        self.accept_failures.with_label_values(&[reason]).inc();
    }

    /// Starts these counters at 0.
    pub(crate) fn expect_http2(&self, listener: &str) {
        for reason in HTTP2_ERRORS {
            self.http2_connection_errors.with_label_values(&[listener, reason]);
        }
    }

    /// `reason`: one of [`HTTP2_ERRORS`].
    pub(crate) fn http2_connection_failed(&self, listener: &str, reason: &str) {
        self.http2_connection_errors.with_label_values(&[listener, reason]).inc();
    }

    /// Removes the series of a listener that is closed or renamed.
    pub(crate) fn forget_listener(&self, listener: &str) {
        // An error means that the series never existed.
        for kind in ["full", "resumed"] {
            let _ = self.tls_handshakes.remove_label_values(&[listener, kind]);
        }
        for reason in PROXY_PROTOCOL_FAILURES {
            let _ = self.proxy_protocol_failures.remove_label_values(&[listener, reason]);
        }
        for reason in HTTP2_ERRORS {
            let _ = self.http2_connection_errors.remove_label_values(&[listener, reason]);
        }
        for reason in HANDSHAKE_FAILURES {
            let _ = self.tls_handshake_failures.remove_label_values(&[listener, reason]);
        }
        for result in ["success", "failure"] {
            let _ = self.certificate_renewals.remove_label_values(&[listener, result]);
        }
    }

    pub(crate) fn route(&self, route: &str, pool: &str) -> RouteMetrics {
        RouteMetrics { requests: CodeCounters::new(|code| self.requests.with_label_values(&[route, pool, code])) }
    }

    pub(crate) fn pool(&self, pool: &str) -> PoolMetrics {
        PoolMetrics {
            responses: StatusCounters::new(&self.responses, &self.counts_each_status, pool),
            request_duration: self.request_duration.with_label_values(&[pool]),
            retries: self.retries.with_label_values(&[pool]),
            not_opened: NOT_OPENED.map(|kind| self.connections_not_opened.with_label_values(&[pool, kind.word()])),
        }
    }

    /// Whether [`StatusCounters`] count every status code from now on. Existing series stay until the next start.
    pub(crate) fn count_each_status(&self, wanted: bool) {
        self.counts_each_status.store(wanted, Ordering::Relaxed);
    }

    /// The counters of a backend. `is_name`: it has a name that is looked up.
    pub(crate) fn backend(&self, pool: &str, backend: &str, is_name: bool) -> BackendMetrics {
        let failures = |kind: &str| self.backend_failures.with_label_values(&[pool, backend, kind]);
        let probes = |result| self.backend_probes.with_label_values(&[pool, backend, result]);
        BackendMetrics {
            requests: CodeCounters::new(|code| self.backend_requests.with_label_values(&[pool, backend, code])),
            attempts: self.backend_attempts.with_label_values(&[pool, backend]),
            response: self.backend_response.with_label_values(&[pool, backend]),
            ejections: self.backend_ejections.with_label_values(&[pool, backend]),
            probes_succeeded: probes("success"),
            probes_failed: probes("failure"),
            killed: self.backend_killed.with_label_values(&[pool, backend]),
            resolutions: is_name.then(|| {
                let resolutions = |result| self.backend_resolutions.with_label_values(&[pool, backend, result]);
                Resolutions { succeeded: resolutions("success"), failed: resolutions("failure") }
            }),
            failures: FailureCounters::new(failures),
        }
    }

    /// Removes the series of a route that is gone, or uses another pool. Exchanges in flight still update the counters,
    /// which are no longer exported; the same holds below.
    pub(crate) fn forget_route(&self, route: &str, pool: &str) {
        // An error means that the series never existed.
        for code in CODE_CLASSES {
            let _ = self.requests.remove_label_values(&[route, pool, code]);
        }
    }

    /// Removes the series of a pool that is gone, except those of its backends.
    pub(crate) fn forget_pool(&self, pool: &str, metrics: &PoolMetrics) {
        metrics.responses.is_forgotten.store(true, Ordering::Relaxed);
        for status in STATUSES {
            let _ = self.responses.remove_label_values(&[pool, &status.to_string()]);
        }
        let _ = self.request_duration.remove_label_values(&[pool]);
        let _ = self.retries.remove_label_values(&[pool]);
        for kind in NOT_OPENED {
            let _ = self.connections_not_opened.remove_label_values(&[pool, kind.word()]);
        }
    }

    /// Removes the series of a backend that left its pool.
    pub(crate) fn forget_backend(&self, pool: &str, backend: &str) {
        // An error means that the series never existed.
        for code in CODE_CLASSES {
            let _ = self.backend_requests.remove_label_values(&[pool, backend, code]);
        }
        for kind in FailureKind::all() {
            let _ = self.backend_failures.remove_label_values(&[pool, backend, kind.word()]);
        }
        for result in ["success", "failure"] {
            let _ = self.backend_probes.remove_label_values(&[pool, backend, result]);
            let _ = self.backend_resolutions.remove_label_values(&[pool, backend, result]);
        }
        let _ = self.backend_attempts.remove_label_values(&[pool, backend]);
        let _ = self.backend_response.remove_label_values(&[pool, backend]);
        let _ = self.backend_ejections.remove_label_values(&[pool, backend]);
        let _ = self.backend_killed.remove_label_values(&[pool, backend]);
    }

    /// Exports zero for each reason, so that the first refusal appears as an increase.
    pub(crate) fn expect_refusals<'a>(&self, reasons: impl Iterator<Item = &'a str>) {
        reasons.for_each(|reason| drop(self.refusals.with_label_values(&[reason])));
    }

    /// Exports zero for each word of a failure by the client's fault.
    pub(crate) fn expect_client_failures<'a>(&self, words: impl Iterator<Item = &'a str>) {
        words.for_each(|word| drop(self.client_failures.with_label_values(&[word])));
    }

    pub(crate) fn client_failed(&self, word: &str) {
        self.client_failures.with_label_values(&[word]).inc();
    }

    pub(crate) fn refused(&self, reason: &str) {
        self.refusals.with_label_values(&[reason]).inc();
    }

    /// All metrics in Prometheus's text format, after `set` has set the gauges. Concurrent scrapes do not mix them.
    pub(crate) fn scrape(&self, set: impl FnOnce(&Gauges)) -> Vec<u8> {
        let gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        gauges.reset();
        set(&gauges);
        self.text()
    }

    fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).expect("writing to memory does not fail");
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Gauges {
    /// Removes gauges that depend on the configuration, before they are set again.
    fn reset(&self) {
        for gauge in [
            &self.pool_algorithm,
            &self.pool_panic,
            &self.backend_endpoints,
            &self.backend_endpoints_usable,
            &self.pool_available,
            &self.pool_queued,
            &self.backend_in_flight,
            &self.backend_weight,
            &self.backend_max_connections,
            &self.backend_status,
            &self.certificate_not_before,
            &self.certificate_not_after,
            &self.certificate_problem,
        ] {
            gauge.reset();
        }
    }
}

impl CodeCounters {
    fn new(counter: impl Fn(&str) -> IntCounter) -> Self {
        Self(CODE_CLASSES.map(counter))
    }

    pub(crate) fn count(&self, code: u16) {
        let class = usize::from(code / 100).clamp(1, CODE_CLASSES.len()) - 1;
        self.0[class].inc();
    }
}

impl StatusCounters {
    fn new(counters: &IntCounterVec, counts_each: &Arc<AtomicBool>, pool: &str) -> Self {
        Self {
            watched: WATCHED_STATUSES.map(|status| counters.with_label_values(&[pool, &status.to_string()])),
            others: STATUSES.map(|_| OnceLock::new()).collect(),
            counts_each: Arc::clone(counts_each),
            is_forgotten: AtomicBool::new(false),
            counters: counters.clone(),
            pool: pool.to_owned(),
        }
    }

    pub(crate) fn count(&self, status: u16) {
        if let Some(index) = WATCHED_STATUSES.iter().position(|watched| *watched == status) {
            self.watched[index].inc();
        } else if self.counts_each.load(Ordering::Relaxed)
            && !self.is_forgotten.load(Ordering::Relaxed)
            && let Some(index) = status.checked_sub(*STATUSES.start())
            && let Some(counter) = self.others.get(usize::from(index))
        {
            let made = || self.counters.with_label_values(&[self.pool.as_str(), &status.to_string()]);
            counter.get_or_init(made).inc();
        }
    }
}

impl BackendMetrics {
    /// Not part of any registry, for tests.
    pub fn unregistered() -> Self {
        let histogram = HistogramOpts::new("unregistered", "No registry shows this.");
        Self {
            requests: CodeCounters::new(|_| unregistered()),
            attempts: unregistered(),
            response: Histogram::with_opts(histogram).expect("the options are valid"),
            ejections: unregistered(),
            probes_succeeded: unregistered(),
            probes_failed: unregistered(),
            killed: unregistered(),
            resolutions: None,
            failures: FailureCounters::new(|_| unregistered()),
        }
    }

    /// Counts a failure that is the backend's fault.
    pub(crate) fn failed(&self, kind: FailureKind) {
        if let Some((_, counter)) = self.failures.0.iter().find(|(counted, _)| *counted == kind) {
            counter.inc();
        }
    }

    /// The number of attempts with this failure.
    #[cfg(test)]
    pub(crate) fn failures_of(&self, failure: Failure) -> u64 {
        let of = |kind: &FailureKind| *kind == FailureKind::Attempt(failure);
        self.failures.0.iter().find(|(kind, _)| of(kind)).map_or(0, |(_, counter)| counter.get())
    }

    pub(crate) fn failures(&self) -> u64 {
        self.failures.0.iter().map(|(_, counter)| counter.get()).sum()
    }
}

impl PoolMetrics {
    /// Counts a connection that could not be opened for a reason within the balancer.
    pub(crate) fn not_opened(&self, why: Failure) {
        let counter = NOT_OPENED.iter().position(|kind| *kind == why).and_then(|kind| self.not_opened.get(kind));
        counter.into_iter().for_each(IntCounter::inc);
    }
}

impl FailureKind {
    fn all() -> impl Iterator<Item = Self> {
        let of_backends = Failure::ALL.into_iter().filter(|failure| failure.is_backend_fault());
        of_backends.map(Self::Attempt).chain([Self::Status])
    }

    fn word(self) -> &'static str {
        match self {
            Self::Attempt(failure) => failure.word(),
            Self::Status => "status",
        }
    }
}

impl FailureCounters {
    fn new(counter: impl Fn(&str) -> IntCounter) -> Self {
        Self(FailureKind::all().map(|kind| (kind, counter(kind.word()))).collect())
    }
}

fn unregistered() -> IntCounter {
    IntCounter::new("unregistered", "No registry shows this.").expect("the name is valid")
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: prometheus::Result<C>) -> C {
    let collector = collector.expect("names and labels are constants, written correctly");
    registry.register(Box::new(collector.clone())).expect("each name is registered once");
    collector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_backend_has_no_series() {
        let metrics = Metrics::new();
        let backend = metrics.backend("app", "web1:80", true);
        backend.requests.count(200);
        assert!(String::from_utf8_lossy(&metrics.text()).contains("backend=\"web1:80\""));
        metrics.forget_backend("app", "web1:80");
        assert!(!String::from_utf8_lossy(&metrics.text()).contains("backend=\"web1:80\""));
    }

    #[test]
    fn exactly_the_configured_statuses_are_counted_singly() {
        let metrics = Metrics::new();
        let pool = metrics.pool("app");
        for status in [200, 404, 429, 499, 499, 500, 503] {
            pool.responses.count(status);
        }
        let text = String::from_utf8_lossy(&metrics.text()).into_owned();
        let series: Vec<_> =
            text.lines().filter(|line| line.starts_with("evenkeel_responses_total{pool=\"app\"")).collect();
        let expected = [(429, 1), (499, 2), (502, 0), (503, 1), (504, 0)];
        assert_eq!(
            series,
            expected.map(|(status, count)| {
                format!("evenkeel_responses_total{{pool=\"app\",status=\"{status}\"}} {count}")
            })
        );
    }

    #[test]
    fn each_status_is_counted_where_configured() {
        let metrics = Metrics::new();
        let pool = metrics.pool("app");
        for is_wanted in [false, true, false] {
            metrics.count_each_status(is_wanted);
            for status in [0, 99, 100, 200, 404, 404, 503, 999, 1000, u16::MAX] {
                pool.responses.count(status);
            }
        }
        let text = String::from_utf8_lossy(&metrics.text()).into_owned();
        let of = |status: &str| format!("evenkeel_responses_total{{pool=\"app\",status=\"{status}\"}} ");
        for (status, count) in [("100", 1), ("200", 1), ("404", 2), ("503", 3), ("999", 1)] {
            assert!(text.contains(&format!("{}{count}\n", of(status))), "{status}: {text}");
        }
        for status in ["0", "99", "1000", "65535"] {
            assert!(!text.contains(&of(status)), "{status}: {text}");
        }
        metrics.forget_pool("app", &pool);
        // By an exchange that was in flight.
        metrics.count_each_status(true);
        pool.responses.count(418);
        assert!(!String::from_utf8_lossy(&metrics.text()).contains("app"));
    }

    #[test]
    fn removed_pools_and_routes_have_no_series() {
        let metrics = Metrics::new();
        let before = metrics.text();
        let pool = metrics.pool("old");
        pool.responses.count(502);
        metrics.route("/old", "old").requests.count(200);
        assert!(String::from_utf8_lossy(&metrics.text()).contains("old"));
        metrics.forget_route("/old", "old");
        metrics.forget_pool("old", &pool);
        let names = |text: &[u8]| String::from_utf8_lossy(text).matches("=\"").count();
        assert_eq!(names(&metrics.text()), names(&before));
    }

    #[test]
    fn every_standard_bucket_exists() {
        for usual in prometheus::DEFAULT_BUCKETS {
            assert!(DURATION_BUCKETS.contains(usual), "{usual}");
        }
        assert!(DURATION_BUCKETS.is_sorted());
    }

    #[test]
    fn unassigned_status_codes_count_in_the_nearest_class() {
        let metrics = Metrics::new();
        let route = metrics.route("/", "app");
        for code in [0, 99, 100, 200, 599, 999] {
            route.requests.count(code);
        }
        let text = String::from_utf8_lossy(&metrics.text()).into_owned();
        assert!(text.contains(r#"evenkeel_requests_total{code="1xx",pool="app",route="/"} 3"#), "{text}");
        assert!(text.contains(r#"evenkeel_requests_total{code="5xx",pool="app",route="/"} 2"#), "{text}");
    }
}
