//! Health probes: one task per endpoint probes it at intervals, with the HTTP and TCP checks of
//! `pingora-load-balancing`, over connections that are made as traffic's are. The tasks follow the snapshot. Results go
//! to the backend, and the pool updates its list of candidates.

mod connector;
mod names;
pub(crate) mod pingora_error;
pub(crate) mod resolver;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora::connectors::l4::Connect;
use pingora::http::RequestHeader;
use pingora::prelude::{Error, ErrorType};
use pingora_load_balancing::health_check::{HealthCheck, HttpHealthCheck, TcpHealthCheck};
use rand::RngExt;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::backend::{Endpoint, HealthChange, ProbeReport};
use crate::config::backend::{AdminState, BackendAddress, SocketAddress};
use crate::config::{PoolName, ProbeConfig, ProbeKind};
use crate::control::Control;
use crate::dial::Transport;
use crate::failure::{AttemptError, Detail, Failure, Fault};
use crate::health::tracker::Health;
use connector::ProbeConnector;

/// How often pools check whether their candidates have changed.
const CATCH_UP_INTERVAL: Duration = Duration::from_millis(100);

/// Probes the backends of current snapshots, resolves host names, and returns ejected backends to service, until
/// dropped.
pub(crate) async fn run(control: Arc<Control>) {
    // Notified when a name has new addresses.
    let moved = Arc::new(Notify::new());
    tokio::join!(
        follow_snapshots(&control, &moved),
        names::keep_resolved(&control, &moved),
        catch_up(&control),
        drop_drained(&control),
    );
}

async fn follow_snapshots(control: &Arc<Control>, moved: &Notify) {
    let mut versions = control.versions();
    let mut tasks = HashMap::<Key, Task>::new();
    loop {
        let wanted = wanted(control);
        tasks.retain(|key, task| wanted.get(key).is_some_and(|probed| task.is_for(probed)));
        for (key, probed) in wanted {
            tasks.entry(key).or_insert_with_key(|(pool, ..)| Task::start(control, pool, probed));
        }
        tokio::select! {
            changed = versions.changed() => if changed.is_err() { return },
            () = moved.notified() => {}
        }
    }
}

type Key = (PoolName, BackendAddress, SocketAddress);
type Wanted = HashMap<Key, Probed>;

/// An endpoint, and how it is probed.
#[derive(Clone)]
struct Probed {
    endpoint: Arc<Endpoint>,
    config: ProbeConfig,
    transport: Arc<Transport>,
}

fn wanted(control: &Control) -> Wanted {
    let snapshot = control.snapshot();
    let mut wanted = Wanted::new();
    for pool in &snapshot.pools {
        let plan = pool.plan();
        let Some(config) = &plan.settings.probe else { continue };
        for (member, _) in plan.backends().filter(|(_, state)| *state != AdminState::Down) {
            for endpoint in member.backend.endpoints().as_slice() {
                let Some(address) = endpoint.address() else { continue };
                let key = (pool.name.clone(), member.backend.address.clone(), address.clone());
                let (endpoint, transport) = (Arc::clone(endpoint), Arc::clone(&plan.transport));
                wanted.insert(key, Probed { endpoint, config: config.clone(), transport });
            }
        }
    }
    wanted
}

/// The probing of one endpoint; ends on drop.
struct Task {
    probed: Probed,
    handle: AbortHandle,
}

impl Task {
    fn start(control: &Arc<Control>, pool: &PoolName, probed: Probed) -> Self {
        let probing = probe_forever(Arc::clone(control), pool.clone(), probed.clone());
        Self { probed, handle: tokio::spawn(probing).abort_handle() }
    }

    fn is_for(&self, wanted: &Probed) -> bool {
        let Probed { endpoint, config, transport } = &self.probed;
        Arc::ptr_eq(endpoint, &wanted.endpoint) && Arc::ptr_eq(transport, &wanted.transport) && *config == wanted.config
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

async fn probe_forever(control: Arc<Control>, pool: PoolName, probed: Probed) {
    let check = health_check(&probed);
    let Probed { endpoint, config, transport } = probed;
    let backend = &endpoint.backend;
    let address = endpoint.address().map(tracing::field::display);
    // The first probe starts now, so discard an earlier notification, which would only repeat it.
    let _ = tokio::time::timeout(Duration::ZERO, endpoint.forgotten()).await;
    // Consecutive probes that failed for reasons of our own: logged once, and counted.
    let mut not_made = 0_u64;
    loop {
        let at = Instant::now();
        let error = probe(check.as_ref(), config.timeout).await.err();
        let counter = if error.is_none() { &backend.metrics.probes_succeeded } else { &backend.metrics.probes_failed };
        counter.inc();
        if let Some(error) = error.filter(|error| error.is_ours()) {
            if not_made == 0 {
                let detail = error.detail().map(tracing::field::display);
                tracing::warn!(%pool, backend = %backend.address, address, %error, detail, "a backend could not be probed");
            }
            not_made += 1;
            pause(&endpoint, &config, at).await;
            continue;
        }
        if not_made > 0 {
            tracing::info!(%pool, backend = %backend.address, address, not_made, "a backend is probed again");
            not_made = 0;
        }
        if !connects_by(&control, &pool, &transport) {
            return;
        }
        let report = ProbeReport { at, duration: at.elapsed(), error: error.map(|error| error.to_string()) };
        let finding = endpoint.probed(report, config.rise, config.fall);
        if let Some(health) = finding.health {
            log_change(&pool, &endpoint, health, error.as_ref());
        }
        if finding.ends_ejection {
            tracing::info!(
                %pool, backend = %backend.address, address,
                "backend is back: probes since its ejection have found it well",
            );
        }
        if finding != HealthChange::default()
            && let Some(pool) = control.snapshot().pool(&pool)
        {
            pool.refresh_soon(Instant::now());
        }
        pause(&endpoint, &config, at).await;
    }
}

/// Whether a pool still connects as it did. If not, the result says nothing about its backends under the new settings,
/// for which another task is about to start. A plan that is put in force later makes the backends forget earlier
/// results.
fn connects_by(control: &Control, pool: &PoolName, transport: &Arc<Transport>) -> bool {
    control.snapshot().pool(pool).is_some_and(|pool| Arc::ptr_eq(&pool.plan().transport, transport))
}

/// A change to unhealthy is logged as a warning, others as information.
fn log_change(pool: &PoolName, endpoint: &Endpoint, health: Health, error: Option<&ProbeError>) {
    let address = endpoint.address().map(tracing::field::display);
    let (backend, reason, health) = (&endpoint.backend.address, error.map(tracing::field::display), health.as_str());
    let detail = error.and_then(|error| error.detail()).map(tracing::field::display);
    match error {
        Some(_) => tracing::warn!(%pool, %backend, address, health, reason, detail, "backend health changed"),
        None => tracing::info!(%pool, %backend, address, health, "backend health changed"),
    }
}

/// Waits until the next probe; the last one began `at`.
async fn pause(endpoint: &Endpoint, config: &ProbeConfig, at: Instant) {
    let jitter = rand::rng().random_range(0.9..1.1);
    let pause = config.interval.mul_f64(jitter).saturating_sub(at.elapsed());
    // A backend whose state was reset is probed at once.
    let _ = tokio::time::timeout(pause, endpoint.forgotten()).await;
}

/// Why a probe failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProbeError {
    Failed(AttemptError),
    /// The backend answered with an unexpected status code.
    Status(u16),
}

async fn probe(check: &(dyn HealthCheck + Send + Sync), timeout: Duration) -> Result<(), ProbeError> {
    let target = connector::target();
    match tokio::time::timeout(timeout, check.check(&target)).await {
        Ok(checked) => checked.map_err(|e| probe_error(&e)),
        Err(_) => Err(ProbeError::Failed(Failure::ResponseTimeout.into())),
    }
}

fn health_check(Probed { endpoint, config, transport }: &Probed) -> Box<dyn HealthCheck + Send + Sync> {
    let connector = ProbeConnector { endpoint: Arc::clone(endpoint), transport: Arc::clone(transport) };
    let connector: Arc<dyn Connect + Send + Sync> = Arc::new(connector);
    match &config.kind {
        ProbeKind::Tcp => {
            let mut check = TcpHealthCheck::new();
            check.peer_template.options.connection_timeout = Some(config.timeout);
            check.peer_template.options.custom_l4 = Some(connector);
            check
        }
        ProbeKind::Http { path, host, status } => {
            let address = &endpoint.backend.address;
            // nginx sends the same host to Unix sockets.
            let default = if address.unix_path().is_some() { "localhost" } else { address.as_str() };
            let default = address.service().unwrap_or(default);
            let host = host.as_deref().unwrap_or(default);
            let mut check = HttpHealthCheck::new(host, false);
            if let Ok(request) = request(path, host) {
                check.req = request;
            }
            check.peer_template.options.connection_timeout = Some(config.timeout);
            check.peer_template.options.read_timeout = Some(config.timeout);
            check.peer_template.options.custom_l4 = Some(connector);
            let status = status.clone();
            check.validator = Some(Box::new(move |response| match response.status.as_u16() {
                code if status.contains(code) => Ok(()),
                code => Err(Error::new(ErrorType::CustomCode("unexpected status", code))),
            }));
            Box::new(check)
        }
    }
}

fn request(path: &str, host: &str) -> pingora::Result<RequestHeader> {
    let mut request = RequestHeader::build("GET", path.as_bytes(), None)?;
    request.insert_header("Host", host)?;
    request.insert_header("User-Agent", concat!("evenkeel/", env!("CARGO_PKG_VERSION"), " (probe)"))?;
    request.insert_header("Connection", "close")?;
    Ok(request)
}

/// Maps an error of a check to the table of failures.
fn probe_error(error: &Error) -> ProbeError {
    match error.etype() {
        ErrorType::CustomCode(_, code) => ProbeError::Status(*code),
        _ => ProbeError::Failed(pingora_error::failed(error)),
    }
}

impl ProbeError {
    /// Details beyond the failure's word.
    fn detail(self) -> Option<Detail> {
        match self {
            Self::Failed(failed) => failed.detail,
            Self::Status(_) => None,
        }
    }

    /// Whether the balancer itself is the cause, so that nothing is known about the backend.
    fn is_ours(self) -> bool {
        matches!(self, Self::Failed(failed) if failed.failure.verdict().fault == Fault::Balancer)
    }
}

/// The word from the table of failures, or the status.
impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(code) => write!(f, "status {code}"),
            Self::Failed(failed) => f.write_str(failed.failure.word()),
        }
    }
}

async fn catch_up(control: &Arc<Control>) {
    let mut tick = tokio::time::interval(CATCH_UP_INTERVAL);
    loop {
        tick.tick().await;
        let snapshot = Arc::clone(&control.snapshot());
        for pool in snapshot.all_pools() {
            pool.catch_up(Instant::now());
        }
        control.catch_up(Instant::now());
    }
}

async fn drop_drained(control: &Arc<Control>) {
    let mut versions = control.versions();
    loop {
        // Building and dropping the snapshot of a large pool takes time, and must not delay probes and the API.
        let dropping = Arc::clone(control);
        let drop_both = move || (dropping.drop_drained(), dropping.drop_retired());
        let pause = match tokio::task::spawn_blocking(drop_both).await {
            Ok((false, false)) => Duration::MAX,
            // A tunnel may use a site for hours.
            Ok((false, true)) => Duration::from_secs(1),
            Ok((true, _)) | Err(_) => Duration::from_millis(50),
        };
        let _ = tokio::time::timeout(pause, versions.changed()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Secret;
    use crate::metrics::Metrics;
    use crate::pool::Draft;

    // A probe over old connections, started when its pause ended early, was counted for the new ones.
    #[test]
    fn probe_results_from_before_a_change_of_how_to_connect_are_ignored() {
        let text = "[state]\npersist = false\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\npool = \"app\"\n\
                    [[pool]]\nname = \"app\"\nbackends = [\"127.0.0.1:1\"]\n";
        let path = Path::new("/evenkeel.toml");
        let config = crate::config::toml::read(text, path).expect("valid");
        let control = Control::new(path, config.clone(), Arc::new(Metrics::new()));
        let pool = Arc::clone(&control.snapshot().pools[0]);
        let change = |change: &dyn Fn(&mut crate::config::PoolSettings)| {
            let mut config = config.pools[0].clone();
            change(&mut config.settings);
            let secret = Secret::new("secret").expect("not empty");
            pool.adopt(Draft::new(&config, Some(&pool.plan()), None, &Metrics::new(), &secret), Instant::now());
        };
        let before = Arc::clone(&pool.plan().transport);
        change(&|settings| settings.retries += 1);
        assert!(connects_by(&control, &pool.name, &before));
        change(&|settings| settings.transport.proxy_protocol = crate::config::transport::ProxyProtocol::V1);
        assert!(!connects_by(&control, &pool.name, &before));
        assert!(connects_by(&control, &pool.name, &pool.plan().transport));
    }
}
