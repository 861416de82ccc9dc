//! The metrics of this instance, in a registry of their own. Labels come from our routes and stores, never from the
//! request.

use std::fmt;
use std::future::Future;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    pub requests_in_flight: IntGauge,
    pub connections: IntGauge,
    pub sessions_created: IntCounter,
    pub logins_unrecorded: IntCounter,
    logins: IntCounterVec,
    pictures: IntCounterVec,
    store_seconds: HistogramVec,
    store_errors: IntCounterVec,
    pub redis_connections_replaced: IntCounter,
    data_connections: IntGaugeVec,
    pub cratedb: CrateDbGauges,
    pool_size: Mutex<Option<PoolSizeFn>>,
}

impl Metrics {
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counters = |name, help, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let histograms = |name, help, labels: &[&str], buckets: &[f64]| {
            let histograms = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?;
            registry.register(Box::new(histograms.clone()))?;
            Ok::<_, prometheus::Error>(histograms)
        };
        let gauge = |name, help| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        // Gauges without labels would be exported as 0 while their value is unknown.
        let gauges = |name, help, labels: &[&str]| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauges.clone()))?;
            Ok::<_, prometheus::Error>(gauges)
        };
        let redis_connections_replaced = IntCounter::new(
            "app_redis_connections_replaced_total",
            "Connections to the Redis Cluster given up for new ones.",
        )?;
        registry.register(Box::new(redis_connections_replaced.clone()))?;
        let sessions_created = IntCounter::new("app_sessions_created_total", "Sessions begun, renewed ids included.")?;
        registry.register(Box::new(sessions_created.clone()))?;
        let logins_unrecorded = IntCounter::new(
            "app_logins_unrecorded_total",
            "Attempts to log in that are missing in the login history, since they could not be written.",
        )?;
        registry.register(Box::new(logins_unrecorded.clone()))?;
        let store_errors = counters(
            "app_store_errors_total",
            "Operations of a store that failed, by store and operation.",
            &["store", "operation"],
        )?;
        let logins = counters("app_logins_total", "Attempts to log in, by result.", &["result"])?;
        // Present from the start, so that the first one appears as an increase.
        for result in LoginResult::ALL {
            logins.with_label_values(&[result.as_str()]);
        }
        for (store, operation) in OPERATIONS {
            store_errors.with_label_values(&[store, operation]);
        }
        Ok(Self {
            requests: counters(
                "app_requests_total",
                "Requests answered, by route, method and class of the status.",
                &["route", "method", "code"],
            )?,
            request_seconds: histograms(
                "app_request_duration_seconds",
                "Time from the request's headers to the answer's, by route.",
                &["route"],
                &REQUEST_BUCKETS,
            )?,
            requests_in_flight: gauge("app_requests_in_flight", "Requests being answered now.")?,
            connections: gauge("app_connections", "Connections open now.")?,
            sessions_created,
            logins_unrecorded,
            logins,
            pictures: counters("app_pictures_total", "Pictures received, by what became of them.", &["result"])?,
            store_seconds: histograms(
                "app_store_operation_duration_seconds",
                "Time a store took, by store and operation.",
                &["store", "operation"],
                &STORE_BUCKETS,
            )?,
            store_errors,
            redis_connections_replaced,
            data_connections: gauges(
                "app_data_connections",
                "Connections to the database: at most, idle and busy; and operations waiting for one.",
                &["state"],
            )?,
            cratedb: CrateDbGauges {
                nodes: gauges("app_cratedb_nodes", "Nodes of the CrateDB cluster.", &[])?,
                shards: gauges("app_cratedb_shards", "Shards in the CrateDB cluster.", &[])?,
                unassigned: gauges("app_cratedb_shards_unassigned", "Shards that no CrateDB node holds.", &[])?,
            },
            pool_size: Mutex::new(None),
            registry,
        })
    }

    /// Counts a response. `route` is the pattern of the matching route.
    pub fn answered(&self, route: &str, method: &Method, status: StatusCode, took: Duration) {
        self.requests.with_label_values(&[route, method_label(method), code_class(status)]).inc();
        self.request_seconds.with_label_values(&[route]).observe(took.as_secs_f64());
    }

    pub fn login(&self, result: LoginResult) {
        self.logins.with_label_values(&[result.as_str()]).inc();
    }

    pub fn picture(&self, result: &'static str) {
        self.pictures.with_label_values(&[result]).inc();
    }

    /// Times an operation of a store, and counts a failure.
    pub async fn watch<T, E>(
        &self,
        store: &'static str,
        operation: &'static str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let started = Instant::now();
        let result = work.await;
        debug_assert!(OPERATIONS.contains(&(store, operation)), "{operation} of {store} has no counter yet");
        self.store_seconds.with_label_values(&[store, operation]).observe(started.elapsed().as_secs_f64());
        if result.is_err() {
            self.store_errors.with_label_values(&[store, operation]).inc();
        }
        result
    }

    /// The total number of responses.
    pub fn total(&self) -> u64 {
        use prometheus::core::Collector;

        let families = self.requests.collect();
        let metrics = families.iter().flat_map(|family| family.get_metric());
        metrics.map(|metric| metric.get_counter().get_value() as u64).sum()
    }

    /// Sets the function that returns the size of a pool when metrics are read.
    pub fn ask_pool_size(&self, ask: impl Fn() -> PoolSize + Send + Sync + 'static) {
        *self.pool_size.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(PoolSizeFn(Box::new(ask)));
    }

    fn read_pool_size(&self) {
        let ask = self.pool_size.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(PoolSizeFn(ask)) = &*ask else { return };
        let size = ask();
        let busy = size.open.saturating_sub(size.idle);
        for (state, count) in [("most", size.most), ("idle", size.idle), ("busy", busy), ("waiting", size.waiting)] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.data_connections.with_label_values(&[state]).set(count);
        }
    }

    /// In Prometheus's text format.
    pub fn render(&self) -> prometheus::Result<Vec<u8>> {
        self.read_pool_size();
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// The operations of the stores.
const OPERATIONS: [(&str, &str); 21] = [
    ("data", "add_post"),
    ("data", "create_user"),
    ("data", "logins"),
    ("data", "posts"),
    ("data", "ready"),
    ("data", "record_login"),
    ("data", "user"),
    ("media", "open"),
    ("media", "put"),
    ("media", "ready"),
    ("media", "size"),
    ("sessions", "count"),
    ("sessions", "create"),
    ("sessions", "delete"),
    ("sessions", "enrol"),
    ("sessions", "list"),
    ("sessions", "load"),
    ("sessions", "reach"),
    ("sessions", "save"),
    ("sessions", "strike"),
    ("sessions", "uncount"),
];

/// The number of connections to a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSize {
    pub most: usize,
    pub open: usize,
    pub idle: usize,
    /// Operations that wait for a connection.
    pub waiting: usize,
}

struct PoolSizeFn(Box<dyn Fn() -> PoolSize + Send + Sync>);

impl fmt::Debug for PoolSizeFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AskPoolSize(..)")
    }
}

/// The state of the CrateDB cluster, from its system tables.
#[derive(Debug, Clone)]
pub struct CrateDbGauges {
    nodes: IntGaugeVec,
    shards: IntGaugeVec,
    unassigned: IntGaugeVec,
}

impl CrateDbGauges {
    /// Sets nodes, shards and unassigned shards; `None`: unknown.
    pub fn set(&self, observed: Option<[i64; 3]>) {
        for (index, gauge) in [&self.nodes, &self.shards, &self.unassigned].into_iter().enumerate() {
            match observed {
                Some(observed) => gauge.with_label_values::<&str>(&[]).set(observed[index]),
                None => gauge.reset(),
            }
        }
    }
}

/// The result of an attempt to log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginResult {
    Succeeded,
    WrongPassword,
    UnknownName,
    /// Too many attempts had failed; the password was not checked.
    Refused,
}

impl LoginResult {
    const ALL: [Self; 4] = [Self::Succeeded, Self::WrongPassword, Self::UnknownName, Self::Refused];

    fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::WrongPassword => "wrong_password",
            Self::UnknownName => "unknown_name",
            Self::Refused => "refused",
        }
    }
}

/// Counts one up until dropped.
#[derive(Debug)]
pub struct GaugeGuard(IntGauge);

impl GaugeGuard {
    pub fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A fixed set of labels, whatever methods clients send.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        _ => "other",
    }
}

fn code_class(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}

const REQUEST_BUCKETS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
const STORE_BUCKETS: [f64; 11] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_the_sum_over_routes() {
        let metrics = Metrics::new().unwrap();
        metrics.answered("/", &Method::GET, StatusCode::OK, Duration::ZERO);
        metrics.answered("/posts/", &Method::POST, StatusCode::SEE_OTHER, Duration::ZERO);
        assert_eq!(metrics.total(), 2);
    }

    #[test]
    fn unknown_methods_share_one_label() {
        let metrics = Metrics::new().unwrap();
        metrics.answered("/", &Method::from_bytes(b"BREW").unwrap(), StatusCode::METHOD_NOT_ALLOWED, Duration::ZERO);
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        assert!(text.contains(r#"app_requests_total{code="4xx",method="other",route="/"} 1"#), "{text}");
    }

    #[tokio::test]
    async fn a_failing_store_is_timed_and_counted() {
        let metrics = Metrics::new().unwrap();
        let _ = metrics.watch("data", "user", async { Err::<(), _>(()) }).await;
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        assert!(text.contains(r#"app_store_errors_total{operation="user",store="data"} 1"#), "{text}");
    }
}
