//! What is decided about a request, apart from how its bytes move: where it goes, what is tried when a backend fails,
//! what is told to the backend and to the client, what is counted. Plain Rust without sockets.
//!
//! An [`Exchange`] is one request and what it has learned: its route, the backends it tried, the lease on the one it is
//! with. It is a step machine that never waits: `http` tells it each [`Event`], it returns the [`Step`] to be done next.
//! A plain request is `Begun` → `Open`, `Head` → `Pass`, `Sent` → `End`.

pub mod headers;
pub mod limits;
pub mod refusal;
pub mod reply;
#[cfg(test)]
mod trace;
pub mod walk;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use self::limits::{BackendLimits, ClientLimits};
use self::refusal::Refusal;
#[cfg(test)]
use self::trace::{Trace, TraceEventKind};
use self::walk::{DirectWalk, HeadVerdict, InternalRedirect, Walk, WalkEvent, WalkStep};
use crate::backend::{Endpoint, Identity, Incarnation, Lease};
use crate::balance::{BackendIndex, Key};
use crate::config::site::{JumpTo, Page, PageStatus, Rules};
use crate::failure::{AttemptError, BackendFailure, Detail, EjectionRule, Failure, Fault, Replay};
use crate::metrics::{FailureKind, RouteMetrics};
#[cfg(test)]
use crate::plant::Bug;
use crate::pool::{BackendHint, Pick, Plan, Pool, QueueTicket};
use crate::site::{Action, Route, RouteId, RoutePool, Site};

/// Bounds attempts on connections that turn out to be stale, which do not count as retries.
const MAX_ATTEMPTS: usize = 32;
/// How often an answer may be replaced by another one; nginx allows as many internal redirects.
const MAX_REPLACED: u8 = 10;

#[derive(Debug)]
pub struct Exchange<W: Walk = DirectWalk> {
    site: Arc<Site>,
    route: RouteId,
    /// Among the pools that the route may lead to.
    pool_index: usize,
    /// `None`: the answer is our own.
    target: Option<Target>,
    walk: W,
    stage: Stage,
    /// How many answers were replaced.
    replaced: u8,
    key: Key,
    /// Whether the client came by HTTPS, here or to a trusted proxy.
    is_https: bool,
    /// RFC 9110 §9.2.2.
    is_idempotent: bool,
    /// How many bytes of a body may be read ahead; `None`: it must not be.
    body_length: Option<u64>,
    /// An error page takes the place of an answer, so that none takes its own.
    is_page: bool,
    /// The status that such a page has to have.
    page_status: Option<u16>,
    /// What has come of the request's body, if anything, can go along to where an error leads.
    has_body: bool,
    /// Endpoints that failed it, or whose backend an operator took it from: none of them is tried again.
    tried: Vec<Arc<Endpoint>>,
    /// How many attempts have failed.
    failures: usize,
    /// What the client is told if nobody else can be tried.
    last_failure: Option<Refusal>,
    current: Option<Attempt>,
    started: Instant,
    /// When the first attempt began.
    first_attempt: Option<Moment>,
    /// Since when it waits for a backend that may have another connection, and whether it was called.
    queued_since: Option<Instant>,
    was_notified: bool,
    outcome: Outcome,
    /// What has happened so far.
    #[cfg(test)]
    trace: Trace,
}

/// Keeps in mind what has happened, for tests: nothing else asks for it.
macro_rules! note {
    ($exchange:expr, $what:expr, $now:expr) => {
        #[cfg(test)]
        $exchange.trace.push($what, $now);
        #[cfg(not(test))]
        let _ = $now;
    };
}

/// A pool that an exchange leads to.
#[derive(Debug)]
struct Target {
    pool: Arc<Pool>,
    /// The plan by which the last choice was made, or which was in force when the exchange came here.
    plan: Arc<Plan>,
    /// Where the client's cookie points.
    sticky: Option<BackendHint>,
}

/// An answer that the operator wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfiguredReply {
    /// That of the route's action.
    Action,
    /// To a preflight of CORS.
    Preflight,
    /// The error page at this place among those of the route.
    Page(usize),
}

/// Where an exchange stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// On the way to its action.
    Walking,
    /// With a backend, whose head has not come.
    Trying,
    /// A backend's answer is being sent.
    Passing,
    /// Our own answer is being sent.
    Refusing,
    Over,
}

/// What is to be done next, and by which event it is answered.
#[derive(Debug)]
pub enum Step<W: Walk = DirectWalk> {
    /// [`Event::Waited`].
    Wait(W::Wait),
    /// Read the body before anybody is asked: [`Event::Held`].
    Hold,
    /// Make a request of our own: [`Event::Sub`].
    Sub(W::SubRequest),
    /// Make one whose answer nobody waits for: [`Event::Spawned`].
    Spawn(W::SubRequest),
    /// Wait for a backend that may have another connection, for no longer than this: [`Event::CapacityFreed`].
    Queue(QueueTicket),
    /// Send the request to this endpoint of a backend: [`Event::Head`].
    Open(Arc<Endpoint>),
    /// Send the client the answer whose head has come: [`Event::Sent`].
    Pass,
    /// Throw that answer away and go on with this: [`Event::Begun`].
    Replace(InternalRedirect),
    /// Send the client this answer: [`Event::Sent`].
    Refuse(Refusal),
    /// Send the client what the operator wrote, with this status: [`Event::Sent`].
    Reply(ConfiguredReply, u16),
    /// Nothing is left to be done.
    End,
}

/// What happened.
pub enum Event<W: Walk = DirectWalk> {
    Begun,
    Waited(W::Waited),
    /// The body is there as a whole.
    Held,
    /// There may be room.
    CapacityFreed,
    Sub(Answer),
    Spawned,
    /// The head of the backend's answer came. Nothing of it has been sent.
    Head(Answer),
    /// What the last step asked for did not come about. The client's leaving is such a failure too. `has_body`: all
    /// that was taken of the body is kept, so that it can be sent again.
    Failed {
        failed: AttemptError,
        has_body: bool,
    },
    /// The whole answer was sent.
    Sent,
}

/// What decisions need of an answer's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// All that was taken of the request's body is kept, so that it can be sent again.
    pub has_body: bool,
}

/// A point in an exchange's time. What the client takes for its upload is no time of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub now: Instant,
    /// How long the client has kept the exchange waiting so far.
    pub client_waited: Duration,
}

/// How an exchange begins: where the request goes, and what has to be known of it.
#[derive(Debug)]
pub struct ExchangeStart {
    pub site: Arc<Site>,
    pub route: RouteId,
    /// Among the pools that the route may lead to.
    pub pool_index: usize,
    pub request: RequestInfo,
}

/// What has to be known of a request to begin an exchange.
#[derive(Debug, Clone, Copy)]
pub struct RequestInfo {
    /// `None`: it has come by a Unix socket.
    pub client: Option<IpAddr>,
    /// Whether the client came by HTTPS, here or to a trusted proxy.
    pub is_https: bool,
    /// RFC 9110 §9.2.2.
    pub is_idempotent: bool,
    /// How long the body is that can be read ahead: its length is known, and the client does not hold it back.
    pub body_length: Option<u64>,
    /// It asks what CORS allows.
    pub is_preflight: bool,
    pub now: Instant,
}

#[derive(Debug)]
struct Attempt {
    index: BackendIndex,
    lease: Lease,
    started: Moment,
    /// Of its answer, once the head has come.
    status: Option<u16>,
}

/// What the access log tells of an exchange.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// As sent to the client, or what stands for it when nothing was.
    pub status: u16,
    pub refusal: Option<Refusal>,
    /// The endpoint of a backend that answered, or was tried last.
    pub endpoint: Option<Arc<Endpoint>>,
    pub attempts: usize,
    pub backend_status: Option<u16>,
    /// From choosing the backend to the head of its response, without the time that it waited for the client.
    pub response_time: Option<Duration>,
    pub is_tunnel: bool,
    pub is_sticky: bool,
    /// What went wrong last, even if another attempt then succeeded.
    pub failure: Option<Failure>,
}

/// A body so long is read before an answer of our own is sent, so that its connection stays.
const MAX_READ_BYTES: usize = 64 * 1024;

impl Exchange {
    /// `cookies` are the values of the request's `Cookie` fields.
    pub fn begin<'c>(start: ExchangeStart, cookies: impl Iterator<Item = &'c [u8]>) -> Self {
        let is_preflight = start.request.is_preflight;
        let (body_length, is_held) = (start.request.body_length, may_be_held(start.site.route(start.route)));
        let walk = |most| DirectWalk { holds_body: is_held && is_held_length(body_length, most), is_preflight };
        Self::begin_walk(start, cookies, walk)
    }

    /// Goes on along another route of the site, in place of an answer. `keeps_body`: the request's body goes along.
    pub fn enter<'c>(
        &mut self,
        route: RouteId,
        pool_index: usize,
        keeps_body: bool,
        cookies: impl Iterator<Item = &'c [u8]>,
    ) {
        (self.route, self.pool_index) = (route, pool_index);
        self.target = Target::of(self.site.route(route), pool_index, cookies);
        self.tried.clear();
        self.failures = 0;
        self.last_failure = None;
        self.first_attempt = None;
        // Nothing has been sent.
        self.outcome.status = 0;
        if !keeps_body {
            self.body_length = None;
            // A page is asked for by GET.
            self.is_idempotent = true;
        }
        let most = most_read(&self.site, self.route, self.target.as_ref());
        let holds_body = may_be_held(self.route()) && is_held_length(self.body_length, most);
        self.walk = DirectWalk { holds_body, is_preflight: false };
    }
}

/// Whether a body may be read as a whole before the route's action begins.
fn may_be_held(route: &Route) -> bool {
    !matches!(route.action, Action::Jump { .. } | Action::Missing)
}

/// Whether one of this length is.
fn is_held_length(body_length: Option<u64>, most: usize) -> bool {
    body_length.is_some_and(|length| (1..=most as u64).contains(&length))
}

/// How large a body may be to be read as a whole.
fn most_read(site: &Site, route: RouteId, target: Option<&Target>) -> usize {
    target.map_or(MAX_READ_BYTES, |target| retry_body_bytes(site, route, &target.plan))
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
        let most = most_read(&site, route, target.as_ref());
        Self {
            site,
            route,
            pool_index,
            target,
            walk: walk(most),
            stage: Stage::Walking,
            replaced: 0,
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
            current: None,
            started: request.now,
            first_attempt: None,
            queued_since: None,
            was_notified: false,
            outcome: Outcome::default(),
            #[cfg(test)]
            trace: Trace::new(request.now),
        }
    }

    pub fn site(&self) -> &Arc<Site> {
        &self.site
    }

    pub fn route_id(&self) -> RouteId {
        self.route
    }

    pub fn route(&self) -> &Route {
        self.site.route(self.route)
    }

    /// `None`: no route fits.
    pub fn route_name(&self) -> Option<&str> {
        let route = self.route();
        (!matches!(route.action, Action::Missing)).then(|| route.name.as_str())
    }

    /// What is in force for the route, if that is anything but the defaults.
    pub fn rules(&self) -> Option<&Rules> {
        self.route().has_rules.then(|| self.site.rules(self.route))
    }

    /// `None`: the answer is our own.
    pub fn pool(&self) -> Option<&Pool> {
        self.target.as_ref().map(|target| &*target.pool)
    }

    /// The plan that says how the present attempt is to be made.
    pub fn plan(&self) -> Option<&Arc<Plan>> {
        self.target.as_ref().map(|target| &target.plan)
    }

    /// How the backends of the present attempt are to be treated, where the route says anything of it.
    pub fn own_limits(&self) -> Option<Box<BackendLimits>> {
        let rules = self.rules().filter(|_| self.route().limits_backends)?;
        Some(Box::new(BackendLimits::of_pool(&self.plan()?.settings).with(&rules.backend)))
    }

    /// How much of the body is kept to be sent again.
    pub fn retry_body_bytes(&self) -> usize {
        most_read(&self.site, self.route, self.target.as_ref())
    }

    /// How the client is to be treated, whose listener says `listener`.
    pub fn client_limits(&self, listener: ClientLimits) -> ClientLimits {
        self.rules().map_or(listener, |rules| listener.with(&rules.client))
    }

    /// Whether an error page takes the place of an answer.
    pub fn is_page(&self) -> bool {
        self.is_page
    }

    /// What is known of it so far.
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// Where the present attempt is made.
    pub fn endpoint(&self) -> Option<&Arc<Endpoint>> {
        self.current.as_ref().map(|attempt| attempt.lease.endpoint())
    }

    /// The server that the present attempt is made on.
    pub fn server(&self) -> Option<Incarnation> {
        self.current.as_ref().map(|attempt| attempt.lease.incarnation())
    }

    /// Whether an operator has ended what it has open on its backend.
    pub fn is_killed(&self) -> bool {
        self.current.as_ref().is_some_and(|attempt| attempt.lease.is_killed())
    }

    /// Takes in what happened; what is to be done next.
    pub fn step(&mut self, event: Event<W>, at: Moment) -> Step<W> {
        match event {
            Event::Begun => self.walk_on(WalkEvent::Begun, at),
            Event::Waited(waited) => {
                note!(self, TraceEventKind::Waited, at.now);
                self.walk_on(WalkEvent::Waited(waited), at)
            }
            Event::Held => {
                note!(self, TraceEventKind::Held, at.now);
                self.walk_on(WalkEvent::Held, at)
            }
            Event::Sub(answer) => {
                note!(self, TraceEventKind::Waited, at.now);
                self.walk_on(WalkEvent::Sub(answer), at)
            }
            Event::CapacityFreed => {
                self.was_notified = true;
                self.open(at)
            }
            Event::Spawned => self.walk_on(WalkEvent::Spawned, at),
            Event::Head(answer) => self.answered(answer, at),
            Event::Failed { failed, has_body } => self.failed(failed, has_body, at),
            Event::Sent => {
                note!(self, TraceEventKind::Sent, at.now);
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
            WalkStep::Hold => Step::Hold,
            WalkStep::Sub(request) => Step::Sub(request),
            WalkStep::Spawn(request) => Step::Spawn(request),
            WalkStep::Answer(refusal) => self.refuse(refusal, at),
            WalkStep::Preflight => self.reply(ConfiguredReply::Preflight, 204, at),
        }
    }

    /// Has the route's action answer.
    fn act(&mut self, at: Moment) -> Step<W> {
        match &self.route().action {
            Action::Pool(_) => self.open(at),
            Action::PoolFrom { .. } if self.target.is_some() => self.open(at),
            Action::PoolFrom { .. } => self.refuse(Refusal::NoPool, at),
            Action::Jump { .. } => self.replace(InternalRedirect::Action, at),
            Action::Missing => self.refuse(Refusal::NoRoute, at),
            Action::Redirect { to, .. } => {
                let status = to.status;
                self.reply(ConfiguredReply::Action, status, at)
            }
            Action::Respond { with, .. } => {
                let (status, is_bare) = (with.status, with.body.is_none());
                match self.page_for(status).filter(|_| is_bare) {
                    Some(page) => self.turn_to_page(page, status, at),
                    None => self.reply(ConfiguredReply::Action, status, at),
                }
            }
        }
    }

    /// Chooses a backend for the next attempt; the lease on the one before ends. One whose connection turned out to be stale
    /// is asked again: a turn that was waited for is not given away.
    fn open(&mut self, at: Moment) -> Step<W> {
        if let Some(Attempt { index, lease, .. }) = self.current.take() {
            if self.may_be_asked_again(&lease) {
                lease.backend().metrics.attempts.inc();
                return self.attempt(index, lease, at);
            }
            self.was_notified = true;
        }
        let Some(Target { pool, sticky, .. }) = &self.target else { return self.refuse(Refusal::NoRoute, at) };
        let was_notified = std::mem::take(&mut self.was_notified);
        let choice = match pool.choose(&self.key, sticky.as_ref(), &self.tried, was_notified) {
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

    /// Whether nothing has changed since the lease was given.
    fn may_be_asked_again(&self, lease: &Lease) -> bool {
        let has_same_plan = self.target.as_ref().is_some_and(|target| Arc::ptr_eq(&target.plan, &target.pool.plan()));
        has_same_plan && lease.is_current() && !lease.endpoint().is_ejected()
    }

    /// Begins an attempt.
    fn attempt(&mut self, index: BackendIndex, lease: Lease, at: Moment) -> Step<W> {
        let endpoint = Arc::clone(lease.endpoint());
        self.outcome.endpoint = Some(Arc::clone(&endpoint));
        self.outcome.attempts += 1;
        self.outcome.is_sticky = self.wants(&endpoint.backend);
        (self.outcome.backend_status, self.outcome.response_time) = (None, None);
        self.first_attempt.get_or_insert(at);
        note!(self, TraceEventKind::Opened(index), at.now);
        self.current = Some(Attempt { index, lease, started: at, status: None });
        self.stage = Stage::Trying;
        Step::Open(endpoint)
    }

    /// Waits until a backend may have another connection.
    #[cold]
    fn queue(&mut self, full: QueueTicket, at: Moment) -> Step<W> {
        let since = *self.queued_since.get_or_insert(at.now);
        let timeout = full.timeout.saturating_sub(at.now.saturating_duration_since(since));
        if timeout.is_zero() {
            self.outcome.failure = Some(Failure::QueueTimeout);
            self.pool().into_iter().for_each(|pool| pool.log_queue_timeout(at.now));
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

    /// An attempt failed, or the client did.
    fn failed(&mut self, failed: AttemptError, has_body: bool, at: Moment) -> Step<W> {
        let failure = failed.failure;
        note!(self, TraceEventKind::Failed(failure), at.now);
        if matches!(self.stage, Stage::Refusing | Stage::Over) {
            // The reason is told by the refusal.
            return self.end();
        }
        self.outcome.failure = Some(failure);
        // A body that the client did not send as it has to goes nowhere.
        let is_clients = failure.verdict().fault == Fault::Client;
        self.has_body = has_body && !is_clients;
        let may_try = !is_clients && self.attempt_failed(failed, has_body, at);
        match (self.stage, failure.refusal()) {
            // Half an answer cannot be taken back.
            (Stage::Passing, _) | (_, None) => self.end(),
            (_, Some(_)) if may_try => self.open(at),
            (_, Some(refusal)) => self.refuse(refusal, at),
        }
    }

    /// Counts the failure of the present attempt, and ends its lease, but for a stale connection. Whether another one may be
    /// made.
    fn attempt_failed(&mut self, failed: AttemptError, has_body: bool, at: Moment) -> bool {
        let failure = failed.failure;
        self.last_failure = failure.refusal();
        let Some(Target { pool, plan, .. }) = &self.target else { return false };
        let settings = &limits(&self.site, self.route, &pool.plan());
        if failure == Failure::QueueTimeout {
            pool.log_queue_timeout(at.now);
        }
        if failure != Failure::StaleConnection
            && let Some(attempt) = self.current.take()
        {
            let (endpoint, waiting_since) =
                (attempt.lease.endpoint(), attempt.waiting_since(failure, settings, at.now));
            let backend = &endpoint.backend;
            self.failures += 1;
            self.tried.push(Arc::clone(endpoint));
            if failure.is_backends() {
                backend.metrics.failed(FailureKind::Attempt(failure));
            }
            if failure == Failure::Killed {
                backend.metrics.killed.inc();
                // All of the backend is meant.
                let endpoints = plan.backend(attempt.index).map(|backend| backend.endpoints());
                self.tried.extend(endpoints.iter().flat_map(|endpoints| endpoints.as_slice()).map(Arc::clone));
            }
            pool.metrics.not_opened(failure);
            let detail =
                failed.detail.or_else(|| limit_on(failure, &limits(&self.site, self.route, plan)).map(Detail::After));
            let cause = BackendFailure::Attempt(AttemptError { failure, detail });
            log_failure(pool, endpoint, cause, at.now);
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
        taken < settings.retry_timeout && may_try && failure.allows_retry(replay)
    }

    /// The head of the backend's response came.
    fn answered(&mut self, answer: Answer, at: Moment) -> Step<W> {
        let status = answer.status;
        self.has_body = answer.has_body;
        note!(self, TraceEventKind::Answered(status), at.now);
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
                    log_failure(pool, endpoint, BackendFailure::Status(status), at.now);
                    count_failure(pool, &attempt.lease, BackendFailure::Status(status), at.now);
                }
            }
        }
        match self.walk.head(&answer) {
            HeadVerdict::Pass if let Some(page) = self.page_of_backend(status) => self.turn_to_page(page, status, at),
            HeadVerdict::Pass => {
                self.outcome.status = self.page_status(status);
                self.stage = Stage::Passing;
                Step::Pass
            }
            HeadVerdict::Replace(internal) => self.replace(internal, at),
        }
    }

    /// The status that an answer gets whose own is `status`.
    fn page_status(&self, status: u16) -> u16 {
        self.page_status.unwrap_or(status)
    }

    /// The error page for an answer of the backend.
    fn page_of_backend(&self, status: u16) -> Option<usize> {
        self.rules().filter(|rules| rules.intercept_errors)?;
        self.page_for(status)
    }

    /// The error page for a status. One that takes the place of an answer has none, and a 304 is no error: what the
    /// client has is still right. A route by name gets the request as it is, or not at all: without its body a POST
    /// would be another request.
    fn page_for(&self, status: u16) -> Option<usize> {
        let pages = &self.rules().filter(|_| !self.is_page && status != 304)?.error_pages;
        let index = pages.iter().position(|page| page.on.contains(status))?;
        (self.has_body || !self.asks_by_name(&pages.get(index)?.page)).then_some(index)
    }

    /// Whether a page is a route by its name that answers with anything else than what the operator wrote.
    fn asks_by_name(&self, page: &Page) -> bool {
        let Page::Jump(JumpTo::Route(name)) = page else { return false };
        let action = self.site.named(name).map(|route| &self.site.route(route).action);
        !matches!(action, Some(Action::Respond { .. } | Action::Redirect { .. }))
    }

    #[cold]
    fn turn_to_page(&mut self, index: usize, status: u16, at: Moment) -> Step<W> {
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
            // Where it leads may depend on it.
            self.outcome.status = page_status.unwrap_or(status);
            return self.replace(InternalRedirect::Page(index), at);
        }
        self.reply(ConfiguredReply::Page(index), 200, at)
    }

    /// Goes on with something else in place of an answer, but not for ever.
    fn replace(&mut self, internal: InternalRedirect, at: Moment) -> Step<W> {
        if self.replaced == MAX_REPLACED {
            let route = self.route();
            if !route.is_circle_told.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    site = %self.site.config.name, route = %route.name,
                    "a request jumped ten times and is answered with 500: its jumps and error pages go round in a circle",
                );
            }
            self.is_page = true;
            return self.refuse(Refusal::Internal, at);
        }
        self.replaced += 1;
        note!(self, TraceEventKind::Replaced, at.now);
        self.leave_backend();
        self.stage = Stage::Walking;
        Step::Replace(internal)
    }

    /// Sends what the operator wrote, whose own status is `status`.
    #[cold]
    fn reply(&mut self, own: ConfiguredReply, status: u16, at: Moment) -> Step<W> {
        let status = self.page_status(status);
        note!(self, TraceEventKind::Replied(status), at.now);
        self.leave_backend();
        self.outcome.status = status;
        self.stage = Stage::Refusing;
        Step::Reply(own, status)
    }

    /// What the operator wrote cannot be said of this request: it is told this refusal in its place.
    #[cold]
    pub fn reply_failed(&mut self, refusal: Refusal) {
        (self.outcome.refusal, self.outcome.status) = (Some(refusal), refusal.status());
    }

    /// The lease ends before the refusal is sent: a slow client holds no backend by it.
    fn refuse(&mut self, refusal: Refusal, at: Moment) -> Step<W> {
        note!(self, TraceEventKind::Refused(refusal), at.now);
        self.leave_backend();
        self.outcome.refusal = Some(refusal);
        let status = refusal.status();
        if let Some(page) = self.page_for(status) {
            return self.turn_to_page(page, status, at);
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

    /// Ends the lease on a backend that has not failed.
    fn leave_backend(&mut self) {
        if let Some(attempt) = self.current.take()
            && attempt.status.is_some_and(|status| !self.is_failure(status))
            && attempt.lease.is_current()
        {
            attempt.lease.endpoint().succeeded();
        }
    }

    /// The `Set-Cookie` field to send, when the client is to come back to another backend than it asked for.
    pub fn set_cookie(&self) -> Option<String> {
        let sticky = self.plan()?.sticky.as_ref()?;
        let attempt = self.current.as_ref()?;
        (!self.wants(attempt.lease.backend())).then(|| sticky.set_cookie(attempt.index, self.is_https))
    }

    /// Whether the client's cookie points to this backend.
    fn wants(&self, backend: &Arc<Identity>) -> bool {
        let sticky = self.target.as_ref().and_then(|target| target.sticky.as_ref());
        sticky.is_some_and(|sticky| Arc::ptr_eq(&sticky.backend, backend))
    }

    /// Whether the operator takes a response of this status for a failure of its backend.
    fn is_failure(&self, status: u16) -> bool {
        self.plan().is_some_and(|plan| plan.settings.ejection.statuses.contains(&status))
    }

    /// Those of the route, for where its request goes.
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
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Ends the lease; what is told of the exchange. One that is not over has been cut off, by a panic or by the shutdown.
    pub fn finish(&mut self, now: Instant) -> Outcome {
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

/// How the backends of a plan are treated along a route.
fn limits(site: &Site, route: RouteId, plan: &Plan) -> BackendLimits {
    let limits = BackendLimits::of_pool(&plan.settings);
    if site.route(route).limits_backends { limits.with(&site.rules(route).backend) } else { limits }
}

impl Moment {
    /// How long it has been since `earlier`, without the time for which the client was waited for.
    fn since(self, earlier: Self) -> Duration {
        let waited = self.client_waited.saturating_sub(earlier.client_waited);
        self.now.saturating_duration_since(earlier.now).saturating_sub(waited)
    }
}

impl Attempt {
    /// Since when nothing has come of what a timeout waited for, but not before the attempt began.
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

/// How long a failure of this kind was waited for.
fn limit_on(failure: Failure, settings: &BackendLimits) -> Option<Duration> {
    match failure {
        Failure::ConnectTimeout => Some(settings.connect_timeout),
        Failure::WriteTimeout => Some(settings.write_timeout),
        Failure::ResponseTimeout => Some(settings.response_timeout),
        Failure::ResponseStalled => Some(settings.read_timeout),
        _ => None,
    }
}

/// Logs a failure on an endpoint, or counts it if one of its kind was logged not long ago.
#[cold]
fn log_failure(pool: &Pool, endpoint: &Endpoint, cause: BackendFailure, now: Instant) {
    let backend = &endpoint.backend;
    if !backend.repeats.note(cause.word(), now) {
        return;
    }
    let (name, address) = (&pool.name, endpoint.address().map(tracing::field::display));
    let (failure, detail) = match cause {
        BackendFailure::Attempt(AttemptError { failure, detail }) => (failure, detail),
        BackendFailure::Status(status) => {
            return tracing::warn!(
                pool = %name, backend = %backend.address, address, failure = cause.word(), status,
                "a response counts as a failure: [pool.ejection] statuses lists its status",
            );
        }
    };
    if failure == Failure::Killed {
        return tracing::info!(
            pool = %name, backend = %backend.address, address, failure = failure.word(), "an exchange was killed",
        );
    }
    let (mut errno, mut limit, mut value, mut seconds, mut reason) = (None, None, None, None, None);
    let mut more_than = String::new();
    match detail {
        Some(Detail::Errno(number)) => errno = Some(number.to_string()),
        Some(Detail::Limit { setting, limit: most, value: came }) => {
            (limit, value) = (Some(most), came);
            more_than = format!(": more than {setting}");
        }
        Some(Detail::After(waited)) => seconds = Some(waited.as_secs_f64()),
        Some(Detail::Reason(sentence)) => reason = Some(sentence),
        None => {}
    }
    tracing::warn!(
        pool = %name, backend = %backend.address, address, failure = failure.word(), errno, limit, value,
        seconds, reason, "an attempt failed: {failure}{more_than}",
    );
}

#[cfg(test)]
mod tests;
