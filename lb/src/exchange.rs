//! The decisions about a request: its route, the attempts and retries, what backend and client are sent, what is
//! counted. How bytes move is not decided here. Plain Rust without sockets.
//!
//! An [`Exchange`] is one request with its state: the route, the backends that were tried, the lease on the current
//! one. It is a state machine that never waits: `http` passes in each [`Event`] and carries out the [`Step`] that is
//! returned. For a plain request these are `Begun` → `Open`, `Head` → `Pass`, `Sent` → `End`.

pub(crate) mod headers;
pub(crate) mod limits;
pub(crate) mod refusal;
pub(crate) mod reply;
mod trace;
pub(crate) mod walk;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use self::limits::{BackendLimits, ClientLimits};
use self::refusal::Refusal;
pub(crate) use self::trace::ShownTrace;
use self::trace::{Trace, TraceEventKind};
use self::walk::{DirectWalk, HeadVerdict, Jump, Walk, WalkEvent, WalkStep};
use crate::backend::queue::{Place, Turn};
use crate::backend::{Endpoint, Identity, Incarnation, Lease};
use crate::balance::{BackendIndex, Key};
use crate::config::site::{JumpTo, Page, PageStatus, Rules};
use crate::failure::{AttemptError, BackendFailure, Detail, EjectionRule, Failure, Fault, Replay};
use crate::metrics::{FailureKind, RouteMetrics};
#[cfg(test)]
use crate::plant::Bug;
use crate::pool::{BackendHint, Pick, Plan, Pool, QueueTicket};
use crate::site::{Action, Route, RouteId, RoutePool, Site};

/// Limit on all attempts. Attempts on stale connections do not count as retries, so `retries` does not bound them.
const MAX_ATTEMPTS: usize = 32;
/// A backend that closes an idle connection has not seen the request yet, so the end arrives within a round trip. If it
/// closes the connection later, it received the request, and has failed.
const MAX_STALE_TIME: Duration = Duration::from_secs(1);
const QUEUE_TIMEOUT: &str = "[[pool]] queue_timeout";
/// Limit on jumps of one request, as on internal redirects in nginx.
const MAX_JUMPS: u8 = 10;

#[derive(Debug)]
pub(crate) struct Exchange<W: Walk = DirectWalk> {
    site: Arc<Site>,
    route: RouteId,
    /// Index among the pools of the route's action.
    pool_index: usize,
    /// `None` if the route's action is not a pool.
    target: Option<Target>,
    walk: W,
    stage: Stage,
    /// Number of jumps so far.
    jumps: u8,
    key: Key,
    /// Whether the client came by HTTPS, here or to a trusted proxy.
    is_https: bool,
    /// RFC 9110 §9.2.2.
    is_idempotent: bool,
    /// Length of the body if it can be buffered before a backend is chosen; `None` if it must not be.
    body_length: Option<u64>,
    /// The answer is an error page, which is not replaced by another error page.
    is_page: bool,
    /// The status that is sent with the error page.
    page_status: Option<u16>,
    /// The part of the body that has arrived is still buffered, so that a jump can take it along.
    has_body: bool,
    /// Endpoints that have failed this exchange, or whose exchanges an operator killed. None is tried again.
    tried: Vec<Arc<Endpoint>>,
    /// Number of failed attempts.
    failures: usize,
    /// An attempt met a stale connection.
    met_stale: bool,
    /// The refusal to send if no further attempt is possible.
    last_failure: Option<Refusal>,
    current: Option<Attempt>,
    started: Instant,
    /// When the first attempt began.
    first_attempt: Option<Moment>,
    /// When it began to wait for a backend below `max_connections`.
    queued_since: Option<Instant>,
    /// That wait ends with the time for retries, and not with that for the queue.
    is_retry_ending: bool,
    /// Its turn at the next choice.
    turn: Turn,
    outcome: Outcome,
    /// What has happened so far.
    trace: Trace,
    /// The endpoints of all attempts but the last one.
    former: Vec<Arc<Endpoint>>,
    /// For the log of failures; empty until there is one.
    request_id: Box<str>,
}

/// A pool that an exchange leads to.
#[derive(Debug)]
struct Target {
    pool: Arc<Pool>,
    /// The plan of the last choice; before that, the one in force when the exchange came to this pool.
    plan: Arc<Plan>,
    /// The backend that the client's sticky cookie names.
    sticky: Option<BackendHint>,
}

/// A response that is written in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConfiguredReply {
    /// The route's action: `respond` or `redirect`.
    Action,
    /// The answer to a CORS preflight.
    Preflight,
    /// The error page with this index in the route's rules.
    Page(usize),
}

/// The state of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Before the route's action.
    Walking,
    /// Waiting for the head of a backend's response.
    Trying,
    /// A backend's answer is being sent.
    Passing,
    /// Our own answer is being sent.
    Refusing,
    Over,
}

/// What the caller does next, and the event with which it answers.
#[derive(Debug)]
pub(crate) enum Step<W: Walk = DirectWalk> {
    /// [`Event::Waited`].
    Wait(W::Wait),
    /// Buffer the whole body before choosing a backend: [`Event::BodyBuffered`].
    BufferBody,
    /// Make a subrequest: [`Event::Sub`].
    Sub(W::SubRequest),
    /// Start a subrequest without waiting for its answer: [`Event::Spawned`].
    Spawn(W::SubRequest),
    /// Wait in the pool's queue, for no longer than this: [`Event::CapacityFreed`].
    Queue(QueueTicket),
    /// Send the request to this endpoint: [`Event::Head`].
    Open(Arc<Endpoint>),
    /// Send the client the backend's response: [`Event::Sent`].
    Pass,
    /// Discard the current answer and go on on another route: [`Event::Begun`].
    Jump(Jump),
    /// Send the client this refusal: [`Event::Sent`].
    Refuse(Refusal),
    /// Send the client a response from the configuration, with this status: [`Event::Sent`].
    Reply(ConfiguredReply, u16),
    /// Nothing is left to be done.
    End,
}

/// What happened.
#[cfg_attr(not(test), expect(dead_code, reason = "no route waits or makes subrequests yet; tests do"))]
pub(crate) enum Event<W: Walk = DirectWalk> {
    Begun,
    Waited(W::Waited),
    /// The whole body is buffered.
    BodyBuffered,
    /// A backend of the queue may have capacity again, and this is the place that was called.
    CapacityFreed(Box<Place>),
    Sub(Answer),
    Spawned,
    /// The head of the backend's response has arrived. Nothing of it has been sent.
    Head(Answer),
    /// The last step failed, or the client left. `has_body`: the part of the body that has arrived is still buffered,
    /// so that it can be sent again.
    Failed {
        failed: AttemptError,
        has_body: bool,
    },
    /// The whole answer was sent.
    Sent,
}

/// The parts of a response head that decisions depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub status: u16,
    /// The part of the request body that has arrived is still buffered, so that it can be sent again.
    pub has_body: bool,
}

/// A point in time, with the time spent waiting for the client until then. Timeouts of backends do not count that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    pub now: Instant,
    /// Total time spent waiting for the client so far.
    pub client_waited: Duration,
}

/// What an exchange begins with: the route that was found, and the request's properties.
#[derive(Debug)]
pub(crate) struct ExchangeStart {
    pub site: Arc<Site>,
    pub route: RouteId,
    /// Index among the pools of the route's action.
    pub pool_index: usize,
    pub request: RequestInfo,
}

/// The properties of a request on which an exchange's decisions depend.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestInfo {
    /// `None` if it came through a Unix socket.
    pub client: Option<IpAddr>,
    /// Whether the client came by HTTPS, here or to a trusted proxy.
    pub is_https: bool,
    /// RFC 9110 §9.2.2.
    pub is_idempotent: bool,
    /// Length of a body that can be buffered: the length is declared, and the client does not wait for 100 (Continue).
    pub body_length: Option<u64>,
    /// It is a CORS preflight.
    pub is_preflight: bool,
    pub now: Instant,
}

#[derive(Debug)]
struct Attempt {
    index: BackendIndex,
    lease: Lease,
    started: Moment,
    /// Status of the response, once its head has arrived.
    status: Option<u16>,
}

/// The result of an exchange, for access log and metrics.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// The status sent to the client, or 499 if it left before.
    pub status: u16,
    pub refusal: Option<Refusal>,
    /// The endpoint that answered, or else was tried last.
    pub endpoint: Option<Arc<Endpoint>>,
    pub attempts: usize,
    pub backend_status: Option<u16>,
    /// Time from the choice of the backend to the head of its response, without the time spent waiting for the client.
    pub response_time: Option<Duration>,
    pub is_tunnel: bool,
    pub is_sticky: bool,
    /// The last failure, even if a later attempt succeeded.
    pub failure: Option<Failure>,
    /// Details of that failure, or of the refusal if nothing has failed.
    pub detail: Option<Detail>,
}

impl Outcome {
    /// The word of the last failure. A request that was refused by its client's fault has failed, too, even if it never
    /// became an exchange.
    pub(crate) fn failure_word(&self) -> Option<&'static str> {
        self.failure.map(Failure::word).or_else(|| self.client_refusal().map(Refusal::reason))
    }

    /// The word of a failure by the client's fault.
    pub(crate) fn client_failure_word(&self) -> Option<&'static str> {
        match self.failure {
            Some(failure) => (failure.verdict().fault == Fault::Client).then_some(failure.word()),
            None => self.client_refusal().map(Refusal::reason),
        }
    }

    fn client_refusal(&self) -> Option<Refusal> {
        self.refusal.filter(|refusal| refusal.is_client_failure())
    }
}

/// A request body up to this size is read before we answer ourselves, so that the connection can be kept alive.
const MAX_BUFFERED_BYTES: usize = 64 * 1024;

impl Exchange {
    /// `cookies` are the values of the request's `Cookie` fields.
    pub(crate) fn begin<'c>(start: ExchangeStart, cookies: impl Iterator<Item = &'c [u8]>) -> Self {
        let is_preflight = start.request.is_preflight;
        let (body_length, may_buffer) = (start.request.body_length, may_buffer_body(start.site.route(start.route)));
        let walk = |max| DirectWalk { buffers_body: may_buffer && is_bufferable(body_length, max), is_preflight };
        Self::begin_walk(start, cookies, walk)
    }

    /// Continues on another route of the site. `keeps_body`: with the request's body.
    pub(crate) fn enter<'c>(
        &mut self,
        route: RouteId,
        pool_index: usize,
        keeps_body: bool,
        cookies: impl Iterator<Item = &'c [u8]>,
        now: Instant,
    ) {
        self.trace.push(TraceEventKind::Jumped(route), now);
        (self.route, self.pool_index) = (route, pool_index);
        self.target = Target::of(self.site.route(route), pool_index, cookies);
        self.tried.clear();
        self.failures = 0;
        self.last_failure = None;
        self.first_attempt = None;
        // It waits in the queue of another pool.
        (self.queued_since, self.is_retry_ending) = (None, false);
        self.turn = Turn::New;
        // Nothing has been sent.
        self.outcome.status = 0;
        if !keeps_body {
            self.body_length = None;
            // An error page is requested by GET.
            self.is_idempotent = true;
        }
        let max = max_buffered_bytes(&self.site, self.route, self.target.as_ref());
        let buffers_body = may_buffer_body(self.route()) && is_bufferable(self.body_length, max);
        self.walk = DirectWalk { buffers_body, is_preflight: false };
    }
}

/// Whether the route's action allows the body to be buffered first.
fn may_buffer_body(route: &Route) -> bool {
    !matches!(route.action, Action::Jump { .. } | Action::Missing)
}

/// Whether a body of this length is buffered.
fn is_bufferable(body_length: Option<u64>, max: usize) -> bool {
    body_length.is_some_and(|length| (1..=max as u64).contains(&length))
}

/// Maximum size of a body that is buffered.
fn max_buffered_bytes(site: &Site, route: RouteId, target: Option<&Target>) -> usize {
    target.map_or(MAX_BUFFERED_BYTES, |target| retry_body_bytes(site, route, &target.plan))
}

impl Target {
    fn of<'c>(route: &Route, pool_index: usize, cookies: impl Iterator<Item = &'c [u8]>) -> Option<Self> {
        let RoutePool { pool, .. } = route.action.pools().get(pool_index)?;
        let plan = pool.plan();
        let sticky = plan.sticky.as_ref().and_then(|sticky| sticky.backend(cookies));
        let sticky =
            sticky.and_then(|index| Some(BackendHint { backend: Arc::clone(plan.backend(index)?.identity()), index }));
        Some(Self { pool: Arc::clone(pool), plan, sticky })
    }
}

impl<W: Walk> Exchange<W> {
    #[inline]
    fn begin_walk<'c>(
        ExchangeStart { site, route, pool_index, request }: ExchangeStart,
        cookies: impl Iterator<Item = &'c [u8]>,
        walk: impl FnOnce(usize) -> W,
    ) -> Self {
        let target = Target::of(site.route(route), pool_index, cookies);
        let max = max_buffered_bytes(&site, route, target.as_ref());
        Self {
            site,
            route,
            pool_index,
            target,
            walk: walk(max),
            stage: Stage::Walking,
            jumps: 0,
            key: Key { client: request.client },
            is_https: request.is_https,
            is_idempotent: request.is_idempotent,
            body_length: request.body_length,
            is_page: false,
            page_status: None,
            has_body: true,
            tried: Vec::new(),
            failures: 0,
            last_failure: None,
            met_stale: false,
            current: None,
            started: request.now,
            first_attempt: None,
            queued_since: None,
            is_retry_ending: false,
            turn: Turn::New,
            outcome: Outcome::default(),
            trace: Trace::new(request.now),
            former: Vec::new(),
            request_id: Box::default(),
        }
    }

    pub(crate) fn site(&self) -> &Arc<Site> {
        &self.site
    }

    pub(crate) fn route_id(&self) -> RouteId {
        self.route
    }

    pub(crate) fn route(&self) -> &Route {
        self.site.route(self.route)
    }

    /// `None` if no route matches.
    pub(crate) fn route_name(&self) -> Option<&str> {
        let route = self.route();
        (!matches!(route.action, Action::Missing)).then(|| route.name.as_str())
    }

    /// The route's rules; `None` if they are the defaults.
    pub(crate) fn rules(&self) -> Option<&Rules> {
        self.route().has_rules.then(|| self.site.rules(self.route))
    }

    /// `None` if the route's action is not a pool.
    pub(crate) fn pool(&self) -> Option<&Pool> {
        self.target.as_ref().map(|target| &*target.pool)
    }

    /// The plan of the current attempt.
    pub(crate) fn plan(&self) -> Option<&Arc<Plan>> {
        self.target.as_ref().map(|target| &target.plan)
    }

    /// The backend limits of the current attempt, if the route overrides any.
    pub(crate) fn own_limits(&self) -> Option<Box<BackendLimits>> {
        let rules = self.rules().filter(|_| self.route().limits_backends)?;
        Some(Box::new(BackendLimits::of_pool(&self.plan()?.settings).with(&rules.backend)))
    }

    /// How much of the body is buffered for a retry.
    pub(crate) fn retry_body_bytes(&self) -> usize {
        max_buffered_bytes(&self.site, self.route, self.target.as_ref())
    }

    /// The client limits: those of the route, else `listener`.
    pub(crate) fn client_limits(&self, listener: ClientLimits) -> ClientLimits {
        self.rules().map_or(listener, |rules| listener.with(&rules.client))
    }

    /// Whether the answer is an error page.
    pub(crate) fn is_page(&self) -> bool {
        self.is_page
    }

    /// The result so far.
    pub(crate) fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// The endpoint of the current attempt.
    pub(crate) fn endpoint(&self) -> Option<&Arc<Endpoint>> {
        self.current.as_ref().map(|attempt| attempt.lease.endpoint())
    }

    /// The server of the current attempt.
    pub(crate) fn server(&self) -> Option<Incarnation> {
        self.current.as_ref().map(|attempt| attempt.lease.incarnation())
    }

    /// Whether the current attempt must not use an idle connection, since one was stale. A backend that fails as soon
    /// as it reads the request cannot be told from one that closes an idle connection; on a new connection it can.
    pub(crate) fn needs_new_connection(&self) -> bool {
        self.met_stale
    }

    /// Has the log of failures name the request. Call this before an event that is one.
    #[cold]
    pub(crate) fn identify(&mut self, request_id: &str) {
        if self.request_id.is_empty() {
            self.request_id = request_id.into();
        }
    }

    /// Whether an operator has killed the current attempt.
    pub(crate) fn is_killed(&self) -> bool {
        self.current.as_ref().is_some_and(|attempt| attempt.lease.is_killed())
    }

    /// Advances the exchange by `event`. Returns what to do next.
    pub(crate) fn step(&mut self, event: Event<W>, at: Moment) -> Step<W> {
        match event {
            Event::Begun => self.walk_on(WalkEvent::Begun, at),
            Event::Waited(waited) => {
                self.trace.push(TraceEventKind::Waited, at.now);
                self.walk_on(WalkEvent::Waited(waited), at)
            }
            Event::BodyBuffered => {
                self.trace.push(TraceEventKind::BodyBuffered, at.now);
                self.walk_on(WalkEvent::BodyBuffered, at)
            }
            Event::Sub(answer) => {
                self.trace.push(TraceEventKind::Waited, at.now);
                self.walk_on(WalkEvent::Sub(answer), at)
            }
            Event::CapacityFreed(place) => {
                self.turn = Turn::Called(place);
                self.open(at)
            }
            Event::Spawned => self.walk_on(WalkEvent::Spawned, at),
            Event::Head(answer) => self.answered(answer, at),
            Event::Failed { failed, has_body } => self.failed(failed, has_body, at),
            Event::Sent => {
                self.trace.push(TraceEventKind::Sent, at.now);
                self.leave_backend();
                self.stage = Stage::Over;
                Step::End
            }
        }
    }

    fn walk_on(&mut self, event: WalkEvent<W>, at: Moment) -> Step<W> {
        self.stage = Stage::Walking;
        match self.walk.step(event) {
            WalkStep::Act => self.act(at),
            WalkStep::Wait(wait) => Step::Wait(wait),
            WalkStep::BufferBody => Step::BufferBody,
            WalkStep::Sub(request) => Step::Sub(request),
            WalkStep::Spawn(request) => Step::Spawn(request),
            WalkStep::Answer(refusal) => self.refuse(refusal, at),
            WalkStep::Preflight => self.reply(ConfiguredReply::Preflight, 204, at),
        }
    }

    /// Begins the route's action.
    fn act(&mut self, at: Moment) -> Step<W> {
        match &self.route().action {
            Action::Pool(_) => self.open(at),
            Action::PoolFrom { .. } if self.target.is_some() => self.open(at),
            Action::PoolFrom { .. } => self.refuse(Refusal::NoPool, at),
            Action::Jump { .. } => self.jump(Jump::Action, at),
            Action::Missing => self.refuse(Refusal::NoRoute, at),
            Action::Redirect { to, .. } => {
                let status = to.status;
                self.reply(ConfiguredReply::Action, status, at)
            }
            Action::Respond { with, .. } => {
                let (status, is_bare) = (with.status, with.body.is_none());
                match self.page_for(status).filter(|_| is_bare) {
                    Some(page) => self.answer_with_page(page, status, at),
                    None => self.reply(ConfiguredReply::Action, status, at),
                }
            }
        }
    }

    /// Chooses a backend for the next attempt and ends the previous lease. After a stale connection the same backend is
    /// used again, so that a turn in the queue is not lost.
    fn open(&mut self, at: Moment) -> Step<W> {
        if let Some(Attempt { index, lease, .. }) = self.current.take() {
            if self.may_be_asked_again(&lease) {
                lease.backend().metrics.attempts.inc();
                return self.attempt(index, lease, at);
            }
            self.turn = Turn::Kept;
        }
        let Some(Target { pool, sticky, .. }) = &self.target else { return self.refuse(Refusal::NoRoute, at) };
        let turn = std::mem::take(&mut self.turn);
        let choice = match pool.choose(&self.key, sticky.as_ref(), &self.tried, turn) {
            Pick::Use(choice) => Some(choice),
            Pick::Queue(full) => return self.queue(full, at),
            Pick::NoBackend => None,
        };
        #[cfg(test)]
        let choice = if Bug::StalePool.is_planted() { self.stale_choice() } else { choice };
        let Some(choice) = choice else {
            return self.refuse(self.last_failure.unwrap_or(Refusal::NoBackend), at);
        };
        if let Some(target) = &mut self.target {
            if !self.tried.is_empty() {
                target.pool.metrics.retries.inc();
            }
            target.plan = choice.plan;
        }
        self.attempt(choice.index, choice.lease, at)
    }

    /// Whether plan and server are the same as when the lease was given, and the endpoint is not ejected.
    fn may_be_asked_again(&self, lease: &Lease) -> bool {
        let has_same_plan = self.target.as_ref().is_some_and(|target| Arc::ptr_eq(&target.plan, &target.pool.plan()));
        has_same_plan && lease.is_current() && !lease.endpoint().is_ejected()
    }

    /// Begins an attempt.
    fn attempt(&mut self, index: BackendIndex, lease: Lease, at: Moment) -> Step<W> {
        let endpoint = Arc::clone(lease.endpoint());
        self.former.extend(self.outcome.endpoint.replace(Arc::clone(&endpoint)));
        self.outcome.attempts += 1;
        (self.queued_since, self.is_retry_ending) = (None, false);
        self.outcome.is_sticky = self.wants(&endpoint.backend);
        (self.outcome.backend_status, self.outcome.response_time) = (None, None);
        self.first_attempt.get_or_insert(at);
        self.trace.push(TraceEventKind::Opened, at.now);
        self.current = Some(Attempt { index, lease, started: at, status: None });
        self.stage = Stage::Trying;
        Step::Open(endpoint)
    }

    /// Waits in the queue until a backend is below `max_connections`.
    #[cold]
    fn queue(&mut self, full: QueueTicket, at: Moment) -> Step<W> {
        if self.queued_since.is_none() {
            self.trace.push(TraceEventKind::Queued, at.now);
        }
        let since = *self.queued_since.get_or_insert(at.now);
        let mut timeout = full.timeout.saturating_sub(at.now.saturating_duration_since(since));
        if let (false, Some(first), Some(plan)) = (self.tried.is_empty(), self.first_attempt, self.plan()) {
            let left = limits(&self.site, self.route, plan).retry_timeout.saturating_sub(at.since(first));
            self.is_retry_ending = left < timeout;
            timeout = timeout.min(left);
            if let (true, Some(failure)) = (timeout.is_zero(), self.last_failure) {
                return self.refuse(failure, at);
            }
        }
        if timeout.is_zero() {
            let limit = self.plan().map(|plan| plan.settings.queue_timeout).unwrap_or_default();
            self.outcome.failure = Some(Failure::QueueTimeout);
            self.outcome.detail = Some(Detail::Timeout { setting: QUEUE_TIMEOUT, limit });
            self.pool().into_iter().for_each(|pool| pool.log_queue_timeout(&self.request_id, at.now));
            return self.refuse(Refusal::Failed(Failure::QueueTimeout), at);
        }
        Step::Queue(QueueTicket { timeout, ..full })
    }

    /// The first backend of the plan as it was when the exchange began.
    #[cfg(test)]
    fn stale_choice(&self) -> Option<crate::pool::Choice> {
        use crate::config::backend::AdminState;

        let is_tried = |endpoint: &Arc<Endpoint>| self.tried.iter().any(|tried| Arc::ptr_eq(tried, endpoint));
        let plan = self.plan()?;
        let active = (0..).zip(plan.backends()).filter(|(_, (_, state))| *state == AdminState::Active);
        let mut leases = active.map(|(index, (member, _))| (index, member.backend.endpoints().lease(is_tried)));
        let (index, lease) = leases.find_map(|(index, lease)| Some((index, lease?)))?;
        Some(crate::pool::Choice { index, lease, plan: Arc::clone(plan) })
    }

    /// An attempt failed, or the client failed to send its request.
    fn failed(&mut self, mut failed: AttemptError, has_body: bool, at: Moment) -> Step<W> {
        if failed.failure == Failure::StaleConnection {
            let is_late = |attempt: &Attempt| at.since(attempt.started) > MAX_STALE_TIME;
            match self.current.as_ref().is_some_and(is_late) {
                true => failed.failure = Failure::Closed,
                false => self.met_stale = true,
            }
        }
        let failure = failed.failure;
        // The wait of a retry ended by `retry_timeout`.
        if let (Failure::QueueTimeout, true, Some(last)) = (failure, self.is_retry_ending, self.last_failure) {
            return self.refuse(last, at);
        }
        self.trace.push(TraceEventKind::Failed(failure), at.now);
        if matches!(self.stage, Stage::Refusing | Stage::Over) {
            // The refusal states the reason.
            return self.end();
        }
        failed.detail = failed.detail.or_else(|| self.explain(failure));
        (self.outcome.failure, self.outcome.detail) = (Some(failure), failed.detail);
        // A malformed or incomplete body is not sent anywhere.
        let is_client_fault = failure.verdict().fault == Fault::Client;
        self.has_body = has_body && !is_client_fault;
        let may_try = !is_client_fault && self.attempt_failed(failed, has_body, at);
        match (self.stage, failure.refusal()) {
            // A response that is partly sent cannot be replaced.
            (Stage::Passing, _) | (_, None) => self.end(),
            (_, Some(_)) if may_try => self.open(at),
            (_, Some(refusal)) => self.refuse(refusal, at),
        }
    }

    /// The timeout of the current attempt that led to this failure.
    #[cold]
    fn explain(&self, failure: Failure) -> Option<Detail> {
        let plan = self.plan()?;
        if failure == Failure::QueueTimeout {
            return Some(Detail::Timeout { setting: QUEUE_TIMEOUT, limit: plan.settings.queue_timeout });
        }
        let rules = self.rules().filter(|_| self.route().limits_backends);
        limits(&self.site, self.route, plan).explain(failure, rules.map(|rules| &rules.backend))
    }

    /// Counts the failure of the current attempt and ends its lease, unless its connection was stale, which is nobody's
    /// failure. Returns whether another attempt may be made.
    fn attempt_failed(&mut self, failed: AttemptError, has_body: bool, at: Moment) -> bool {
        let failure = failed.failure;
        self.last_failure = failure.refusal();
        let Some(Target { pool, plan, .. }) = &self.target else { return false };
        let settings = &limits(&self.site, self.route, &pool.plan());
        if failure == Failure::QueueTimeout {
            pool.log_queue_timeout(&self.request_id, at.now);
        }
        if failure != Failure::StaleConnection
            && let Some(attempt) = self.current.take()
        {
            let (endpoint, waiting_since) =
                (attempt.lease.endpoint(), attempt.waiting_since(failure, settings, at.now));
            let backend = &endpoint.backend;
            self.failures += 1;
            self.tried.push(Arc::clone(endpoint));
            if failure.is_backend_fault() {
                backend.metrics.failed(FailureKind::Attempt(failure));
            }
            if failure == Failure::Killed {
                backend.metrics.killed.inc();
                // A kill concerns all endpoints of the backend.
                let endpoints = plan.backend(attempt.index).map(|backend| backend.endpoints());
                self.tried.extend(endpoints.iter().flat_map(|endpoints| endpoints.as_slice()).map(Arc::clone));
            }
            pool.metrics.not_opened(failure);
            let cause = BackendFailure::Attempt(failed);
            log_failure(pool, endpoint, cause, &self.request_id, at.now);
            match failure.verdict().ejection {
                EjectionRule::Counts => count_failure(pool, &attempt.lease, cause, at.now),
                EjectionRule::IfSilent if !endpoint.has_answered_since(waiting_since) => {
                    count_failure(pool, &attempt.lease, cause, at.now)
                }
                EjectionRule::IfSilent | EjectionRule::Never => {}
            }
        }
        let taken = self.first_attempt.map_or(Duration::ZERO, |first| at.since(first));
        let may_try = self.failures <= settings.retries && self.outcome.attempts < MAX_ATTEMPTS;
        let replay = Replay { is_idempotent: self.is_idempotent, has_body };
        let is_retried = taken < settings.retry_timeout && may_try && failure.allows_retry(replay);
        if let (Failure::StaleConnection, false, Some(attempt)) = (failure, is_retried, &self.current) {
            log_failure(pool, attempt.lease.endpoint(), BackendFailure::Attempt(failed), &self.request_id, at.now);
        }
        is_retried
    }

    /// Handles the head of a backend's response.
    fn answered(&mut self, answer: Answer, at: Moment) -> Step<W> {
        let status = answer.status;
        self.has_body = answer.has_body;
        self.trace.push(TraceEventKind::Answered(status), at.now);
        if let Some(attempt) = &mut self.current {
            attempt.status = Some(status);
        }
        if let Some(attempt) = &self.current {
            let endpoint = attempt.lease.endpoint();
            let backend = &endpoint.backend;
            let time = at.since(attempt.started);
            self.outcome.backend_status = Some(status);
            self.outcome.response_time = Some(time);
            self.outcome.is_tunnel = status == 101;
            if attempt.lease.is_current() {
                endpoint.observe_latency(time);
                endpoint.answered(at.now);
            }
            backend.metrics.response.observe(time.as_secs_f64());
            backend.metrics.requests.count(status);
            if self.is_failure(status) {
                backend.metrics.failed(FailureKind::Status);
                if let Some(Target { pool, .. }) = &self.target {
                    log_failure(pool, endpoint, BackendFailure::Status(status), &self.request_id, at.now);
                    count_failure(pool, &attempt.lease, BackendFailure::Status(status), at.now);
                }
            }
        }
        match self.walk.head(&answer) {
            HeadVerdict::Pass if let Some(page) = self.page_of_backend(status) => {
                self.answer_with_page(page, status, at)
            }
            HeadVerdict::Pass => {
                self.outcome.status = self.page_status(status);
                self.stage = Stage::Passing;
                Step::Pass
            }
            HeadVerdict::Jump(internal) => self.jump(internal, at),
        }
    }

    /// The status to send for an answer whose own status is `status`.
    pub(crate) fn page_status(&self, status: u16) -> u16 {
        self.page_status.unwrap_or(status)
    }

    /// The error page for a backend's response, if the route intercepts errors.
    fn page_of_backend(&self, status: u16) -> Option<usize> {
        self.rules().filter(|rules| rules.intercept_errors)?;
        self.page_for(status)
    }

    /// The error page for a status. An error page is not replaced again, and 304 is not an error. A named route is used
    /// only if it gets the request unchanged: a POST without its body would be another request.
    fn page_for(&self, status: u16) -> Option<usize> {
        let pages = &self.rules().filter(|_| !self.is_page && status != 304)?.error_pages;
        let index = pages.iter().position(|page| page.on.contains(status))?;
        (self.has_body || !self.asks_by_name(&pages.get(index)?.page)).then_some(index)
    }

    /// Whether a page is a named route whose action is not a fixed response.
    fn asks_by_name(&self, page: &Page) -> bool {
        let Page::Jump(JumpTo::Route(name)) = page else { return false };
        let action = self.site.named(name).map(|route| &self.site.route(route).action);
        !matches!(action, Some(Action::Respond { .. } | Action::Redirect { .. }))
    }

    #[cold]
    fn answer_with_page(&mut self, index: usize, status: u16, at: Moment) -> Step<W> {
        let pages = self.rules().map(|rules| &*rules.error_pages).unwrap_or_default();
        let Some(page) = pages.get(index) else { return self.end() };
        let of_page = match page.page {
            Page::Redirect(_) => Some(302),
            _ => None,
        };
        let page_status = match page.status {
            PageStatus::Keep => of_page.or(Some(status)),
            PageStatus::Is(status) => Some(status),
            PageStatus::OfPage => of_page,
        };
        let is_jump = matches!(page.page, Page::Jump(_));
        (self.is_page, self.page_status) = (true, page_status);
        if is_jump {
            // Its target may depend on the request.
            self.outcome.status = page_status.unwrap_or(status);
            return self.jump(Jump::Page(index), at);
        }
        self.reply(ConfiguredReply::Page(index), 200, at)
    }

    /// Jumps to another route, at most [`MAX_JUMPS`] times.
    fn jump(&mut self, jump: Jump, at: Moment) -> Step<W> {
        if self.jumps == MAX_JUMPS {
            let route = self.route();
            if !route.is_loop_logged.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    site = %self.site.config.name, route = %route.name,
                    "a request jumped ten times and is answered with 500: its jumps and error pages form a loop",
                );
            }
            self.is_page = true;
            return self.refuse(Refusal::Internal, at);
        }
        self.jumps += 1;
        self.leave_backend();
        self.stage = Stage::Walking;
        Step::Jump(jump)
    }

    /// Sends a response from the configuration, whose own status is `status`.
    #[cold]
    fn reply(&mut self, own: ConfiguredReply, status: u16, at: Moment) -> Step<W> {
        let status = self.page_status(status);
        self.trace.push(TraceEventKind::Replied(status), at.now);
        self.leave_backend();
        self.outcome.status = status;
        self.stage = Stage::Refusing;
        Step::Reply(own, status)
    }

    /// The configured response cannot be made for this request, so `refusal` is sent instead.
    #[cold]
    pub(crate) fn reply_failed(&mut self, refusal: Refusal) {
        (self.outcome.refusal, self.outcome.status) = (Some(refusal), refusal.status());
    }

    /// Ends the lease before the refusal is sent, so that a slow client does not occupy the backend.
    fn refuse(&mut self, refusal: Refusal, at: Moment) -> Step<W> {
        self.trace.push(TraceEventKind::Refused(refusal), at.now);
        self.leave_backend();
        self.outcome.refusal = Some(refusal);
        let status = refusal.status();
        if let Some(page) = self.page_for(status) {
            return self.answer_with_page(page, status, at);
        }
        self.outcome.status = status;
        self.stage = Stage::Refusing;
        Step::Refuse(refusal)
    }

    fn end(&mut self) -> Step<W> {
        self.leave_backend();
        self.stage = Stage::Over;
        Step::End
    }

    /// Ends the lease on a backend that did not fail.
    fn leave_backend(&mut self) {
        if let Some(attempt) = self.current.take()
            && attempt.status.is_some_and(|status| !self.is_failure(status))
            && attempt.lease.is_current()
        {
            attempt.lease.endpoint().succeeded();
        }
    }

    /// The sticky cookie to set, if the client did not send one for the current backend.
    pub(crate) fn set_cookie(&self) -> Option<String> {
        let sticky = self.plan()?.sticky.as_ref()?;
        let attempt = self.current.as_ref()?;
        (!self.wants(attempt.lease.backend())).then(|| sticky.set_cookie(attempt.index, self.is_https))
    }

    /// Whether the client's sticky cookie names this backend.
    fn wants(&self, backend: &Arc<Identity>) -> bool {
        let sticky = self.target.as_ref().and_then(|target| target.sticky.as_ref());
        sticky.is_some_and(|sticky| Arc::ptr_eq(&sticky.backend, backend))
    }

    /// Whether `[pool.ejection] statuses` counts a response with this status as a failure.
    pub(crate) fn is_failure(&self, status: u16) -> bool {
        self.plan().is_some_and(|plan| plan.settings.ejection.statuses.contains(&status))
    }

    /// The request metrics of the route and pool.
    fn metrics(&self) -> Option<&RouteMetrics> {
        match &self.route().action {
            Action::Pool(of) => Some(&of.metrics),
            Action::PoolFrom { pools, metrics, .. } => {
                Some(pools.get(self.pool_index).map_or(metrics, |of| &of.metrics))
            }
            Action::Respond { metrics, .. } | Action::Redirect { metrics, .. } | Action::Jump { metrics, .. } => {
                Some(metrics)
            }
            Action::Missing => None,
        }
    }

    /// Whether the last step was [`Step::End`].
    pub(crate) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Ends the lease and returns the result. An exchange that is not over has been cut off, by a panic or by the
    /// shutdown.
    pub(crate) fn finish(&mut self, now: Instant) -> Outcome {
        if !self.is_over() {
            let cut_off = if std::thread::panicking() { Failure::Internal } else { Failure::Shutdown };
            self.outcome.failure.get_or_insert(cut_off);
            self.end();
        }
        if self.outcome.status == 0 {
            self.outcome.status = self.outcome.failure.unwrap_or(Failure::ClientGone).verdict().status;
        }
        let status = self.outcome.status;
        if let Some(metrics) = self.metrics() {
            metrics.requests.count(status);
        }
        if let Some(Target { pool, .. }) = &self.target {
            pool.metrics.responses.count(status);
            if !self.outcome.is_tunnel {
                let duration = now.saturating_duration_since(self.started);
                pool.metrics.request_duration.observe(duration.as_secs_f64());
            }
        }
        std::mem::take(&mut self.outcome)
    }
}

fn retry_body_bytes(site: &Site, route: RouteId, plan: &Plan) -> usize {
    let rules = site.route(route).limits_backends.then(|| site.rules(route));
    rules.and_then(|rules| rules.backend.retry_body_bytes).unwrap_or(plan.settings.retry_body_bytes)
}

/// The backend limits of a plan on a route.
fn limits(site: &Site, route: RouteId, plan: &Plan) -> BackendLimits {
    let limits = BackendLimits::of_pool(&plan.settings);
    if site.route(route).limits_backends { limits.with(&site.rules(route).backend) } else { limits }
}

impl Moment {
    /// Time since `earlier`, without the time spent waiting for the client.
    fn since(self, earlier: Self) -> Duration {
        let waited = self.client_waited.saturating_sub(earlier.client_waited);
        self.now.saturating_duration_since(earlier.now).saturating_sub(waited)
    }
}

impl Attempt {
    /// When the wait that timed out began, but not before the attempt.
    fn waiting_since(&self, failure: Failure, settings: &BackendLimits, now: Instant) -> Instant {
        let limit = match failure {
            Failure::WriteTimeout => settings.write_timeout,
            _ => settings.response_timeout,
        };
        now.checked_sub(limit).map_or(self.started.now, |since| since.max(self.started.now))
    }
}

fn count_failure(pool: &Pool, lease: &Lease, cause: BackendFailure, now: Instant) {
    if let Some(duration) = pool.failed(lease, cause, now) {
        let (endpoint, rules) = (lease.endpoint(), &pool.plan().settings.ejection);
        let last_failures = endpoint.last_failures(rules.consecutive_failures.try_into().unwrap_or(usize::MAX));
        let address = endpoint.address().map(tracing::field::display);
        tracing::warn!(
            pool = %pool.name, backend = %endpoint.backend.address, address, seconds = duration.as_secs_f64(), last_failures,
            "backend ejected: traffic keeps failing on it",
        );
    }
}

/// Logs a failure on an endpoint, or only counts it if one of its kind was logged recently. `request_id` may be empty.
#[cold]
fn log_failure(pool: &Pool, endpoint: &Endpoint, cause: BackendFailure, request_id: &str, now: Instant) {
    let backend = &endpoint.backend;
    if !backend.repeats.note(cause.word(), now) {
        return;
    }
    let (name, address) = (&pool.name, endpoint.address().map(tracing::field::display));
    let request_id = Some(request_id).filter(|id| !id.is_empty());
    let (failure, detail) = match cause {
        BackendFailure::Attempt(AttemptError { failure, detail }) => (failure, detail),
        BackendFailure::Status(status) => {
            return tracing::warn!(
                pool = %name, backend = %backend.address, address, failure = cause.word(), status, request_id,
                "a response counts as a failure: [pool.ejection] statuses lists its status",
            );
        }
    };
    if failure == Failure::Killed {
        return tracing::info!(
            pool = %name, backend = %backend.address, address, failure = failure.word(), request_id,
            "an exchange was killed",
        );
    }
    let (mut errno, mut limit, mut value, mut seconds, mut reason) = (None, None, None, None, None);
    let mut more_than = String::new();
    match detail {
        Some(Detail::Errno(number)) => errno = Some(number.to_string()),
        Some(Detail::Limit { setting, limit: maximum, value: actual }) => {
            (limit, value) = (Some(maximum), actual);
            more_than = format!(": more than {setting}");
        }
        Some(detail @ Detail::Timeout { limit: waited, .. }) => {
            seconds = Some(waited.as_secs_f64());
            more_than = format!(": {detail}");
        }
        Some(detail @ Detail::Rate { .. }) => more_than = format!(": {detail}"),
        Some(Detail::Reason(sentence)) => reason = Some(sentence),
        None => {}
    }
    tracing::warn!(
        pool = %name, backend = %backend.address, address, failure = failure.word(), errno, limit, value,
        seconds, reason, request_id, "an attempt failed: {failure}{more_than}",
    );
}

#[cfg(test)]
mod tests;
