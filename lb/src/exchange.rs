//! What is decided about a request, apart from how its bytes move: where it goes, what is tried when a backend fails,
//! what is told to the backend and to the client, what is counted. Plain Rust without sockets.
//!
//! An [`Exchange`] is one request and what it has learned: its route, the backends it tried, the lease on the one it is
//! with. `http` tells it what happens; it tells `http` what to do.

pub mod failure;
pub mod headers;
pub mod refusal;

use std::sync::Arc;
use std::time::{Duration, Instant};

use self::failure::{Ejection, Failure, Replay};
use self::headers::{Forwarding, Origin, without_port};
use self::refusal::Refusal;
use crate::backend::{Backend, Lease};
use crate::balance::{BackendIndex, Key};
use crate::config::PoolSettings;
use crate::metrics::FailureKind;
use crate::pool::{Plan, Pool, Remembered};
use crate::snapshot::{Route, Snapshot};

/// Bounds attempts on connections that turn out to be stale, which do not count as retries.
const MOST_ATTEMPTS: usize = 32;

#[derive(Debug)]
pub struct Exchange {
    route: Arc<Route>,
    key: Key,
    /// Whether the client came by HTTPS, here or to a trusted proxy.
    is_https: bool,
    /// The pool's plan by which the last choice was made, or which was in force when the exchange began.
    plan: Arc<Plan>,
    /// Where the client's cookie points.
    sticky: Option<Remembered>,
    tried: Vec<Remembered>,
    /// What the client is told if nobody else can be tried.
    last_failure: Option<Refusal>,
    current: Option<Attempt>,
    started: Instant,
    /// When the first attempt began.
    first_attempt: Option<Instant>,
    outcome: Outcome,
}

/// What has to be known of a request to begin an exchange.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub origin: Origin<'a>,
    /// Decoded and normalised, for choosing the route.
    pub path: &'a [u8],
    pub now: Instant,
}

#[derive(Debug)]
struct Attempt {
    index: BackendIndex,
    lease: Lease,
    started: Instant,
}

/// What the access log tells of an exchange.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub refusal: Option<Refusal>,
    /// The backend that answered, or was tried last.
    pub backend: Option<Arc<Backend>>,
    pub attempts: usize,
    pub backend_status: Option<u16>,
    /// From choosing the backend to the head of its response, without the time that it waited for the client.
    pub response_time: Option<Duration>,
    pub is_tunnel: bool,
    pub is_sticky: bool,
    /// What went wrong last, even if another attempt then succeeded.
    pub failure: Option<Failure>,
}

impl Exchange {
    /// Finds where a request goes. `cookies` are the values of its `Cookie` fields.
    pub fn begin<'a, 'c>(
        snapshot: &Snapshot,
        asked: &Asked<'a>,
        cookies: impl Iterator<Item = &'c [u8]>,
    ) -> Result<(Self, Forwarding<'a>), Refusal> {
        let host = without_port(asked.origin.host);
        let route = snapshot.routes.find(host, asked.path).ok_or(Refusal::NoRoute)?;
        let plan = route.pool.plan();
        let sticky = plan.sticky.as_ref().and_then(|sticky| sticky.backend(cookies));
        let forwarding = Forwarding::new(asked.origin, &snapshot.config.server.trusted_proxies);
        let exchange = Self {
            route: Arc::clone(route),
            key: Key { client: forwarding.client },
            is_https: forwarding.proto == "https",
            sticky: sticky.and_then(|index| Some(Remembered { backend: Arc::clone(plan.backend(index)?), index })),
            plan,
            tried: Vec::new(),
            last_failure: None,
            current: None,
            started: asked.now,
            first_attempt: None,
            outcome: Outcome::default(),
        };
        Ok((exchange, forwarding))
    }

    pub fn route(&self) -> &Route {
        &self.route
    }

    /// The plan that says how the present attempt is to be made.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Chooses a backend for the next attempt; the lease on the one before ends.
    pub fn next_backend(&mut self, now: Instant) -> Result<Arc<Backend>, Refusal> {
        self.current = None;
        let choice = self.route.pool.choose(&self.key, self.sticky.as_ref(), &self.tried);
        let choice = choice.ok_or(self.last_failure.unwrap_or(Refusal::NoBackend))?;
        if !self.tried.is_empty() {
            self.route.pool.metrics.retries.inc();
        }
        self.plan = choice.plan;
        let backend = Arc::clone(choice.lease.backend());
        self.outcome.backend = Some(Arc::clone(&backend));
        self.outcome.attempts += 1;
        self.outcome.is_sticky = self.wants(&backend);
        self.first_attempt.get_or_insert(now);
        self.current = Some(Attempt { index: choice.index, lease: choice.lease, started: now });
        Ok(backend)
    }

    /// The present attempt failed and its lease has ended. True: go on with [`Self::next_backend`]; else the client
    /// is answered [`Failure::refusal`]. `waited_for_client`: how long the attempts so far waited for the client's
    /// upload, which is no time of theirs.
    pub fn failed(&mut self, failure: Failure, replay: Replay, waited_for_client: Duration, now: Instant) -> bool {
        self.outcome.failure = Some(failure);
        self.last_failure = failure.refusal();
        let pool = &self.route.pool;
        let in_force = pool.plan();
        let settings = &in_force.settings;
        if let Some(attempt) = self.current.take()
            && failure != Failure::StaleConnection
        {
            self.tried.push(Remembered { backend: Arc::clone(attempt.lease.backend()), index: attempt.index });
            let (backend, waiting_since) = (attempt.lease.backend(), attempt.waiting_since(failure, settings, now));
            if failure.is_backends() {
                backend.metrics.failed(FailureKind::Attempt(failure));
            }
            match failure.verdict().ejection {
                Ejection::Counts => count_failure(pool, &attempt.lease, now),
                Ejection::IfSilent if !backend.has_answered_since(waiting_since) => {
                    count_failure(pool, &attempt.lease, now)
                }
                Ejection::IfSilent | Ejection::Never => {}
            }
        }
        let taken = self.first_attempt.map_or(Duration::ZERO, |first| now.saturating_duration_since(first));
        let is_in_time = taken.saturating_sub(waited_for_client) < settings.retry_timeout;
        let may_try = self.tried.len() <= settings.retries && self.outcome.attempts < MOST_ATTEMPTS;
        is_in_time && may_try && failure.allows_retry(replay)
    }

    /// The client left, or is refused in the middle of its request.
    pub fn ended_by_client(&mut self, failure: Failure) {
        self.outcome.failure = Some(failure);
    }

    /// The head of the backend's response came. `waited_for_client`: how long this attempt waited for the client's
    /// upload, which is no latency of the backend.
    pub fn answered(&mut self, status: u16, waited_for_client: Duration, now: Instant) {
        let Some(attempt) = &self.current else { return };
        let backend = attempt.lease.backend();
        let time = now.saturating_duration_since(attempt.started).saturating_sub(waited_for_client);
        self.outcome.backend_status = Some(status);
        self.outcome.response_time = Some(time);
        self.outcome.is_tunnel = status == 101;
        if attempt.lease.is_current() {
            backend.observe_latency(time);
            backend.answered(now);
        }
        backend.metrics.response.observe(time.as_secs_f64());
        backend.metrics.requests.count(status);
        if self.is_failure(status) {
            backend.metrics.failed(FailureKind::Status);
            count_failure(&self.route.pool, &attempt.lease, now);
        }
    }

    /// The `Set-Cookie` field to send, when the client is to come back to another backend than it asked for.
    pub fn set_cookie(&self) -> Option<String> {
        let sticky = self.plan.sticky.as_ref()?;
        let attempt = self.current.as_ref()?;
        (!self.wants(attempt.lease.backend())).then(|| sticky.set_cookie(attempt.index, self.is_https))
    }

    /// Whether the client's cookie points to this backend.
    fn wants(&self, backend: &Arc<Backend>) -> bool {
        self.sticky.as_ref().is_some_and(|sticky| Arc::ptr_eq(&sticky.backend, backend))
    }

    /// Whether the operator takes a response of this status for a failure of its backend.
    fn is_failure(&self, status: u16) -> bool {
        self.plan.settings.ejection.statuses.contains(&status)
    }

    /// The exchange is over, with this status sent to the client, or [`Failure::ClientGone`]'s if none was. Its lease
    /// ends.
    pub fn finish(&mut self, status: u16, refusal: Option<Refusal>, now: Instant) -> Outcome {
        if let (Some(attempt), Some(status)) = (self.current.take(), self.outcome.backend_status)
            && !self.is_failure(status)
            && attempt.lease.is_current()
        {
            attempt.lease.backend().succeeded();
        }
        self.route.metrics.requests.count(status);
        self.route.pool.metrics.responses.count(status);
        if !self.outcome.is_tunnel {
            let duration = now.saturating_duration_since(self.started);
            self.route.pool.metrics.request_duration.observe(duration.as_secs_f64());
        }
        self.outcome.refusal = refusal;
        std::mem::take(&mut self.outcome)
    }
}

impl Attempt {
    /// Since when nothing has come of what a timeout waited for, but not before the attempt began.
    fn waiting_since(&self, failure: Failure, settings: &PoolSettings, now: Instant) -> Instant {
        let limit = match failure {
            Failure::WriteTimeout => settings.write_timeout,
            _ => settings.response_timeout,
        };
        now.checked_sub(limit).map_or(self.started, |since| since.max(self.started))
    }
}

fn count_failure(pool: &Pool, lease: &Lease, now: Instant) {
    if let Some(duration) = pool.failed(lease, now) {
        tracing::warn!(
            pool = %pool.name, backend = %lease.backend().address, seconds = duration.as_secs_f64(),
            "backend ejected: traffic keeps failing on it",
        );
    }
}
