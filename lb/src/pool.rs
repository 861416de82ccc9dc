//! Pools of equivalent backends, and the choice among them. The configuration of a pool is its *plan*: immutable and
//! swapped as a whole. Its state is kept beside the plan. So routes refer to the pool itself, and every choice uses the
//! current configuration and state. Both are combined in the *view*: the backends that take traffic now.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::backend::queue::{Place, Queue, Turn};
use crate::backend::repeats::{RepeatedFailures, SuppressedFailures};
use crate::backend::{Backend, Endpoint, Endpoints, Identity, Lease, Status};
use crate::balance::{
    self, BackendIndex, Balance, Candidate, Candidates, Key, Member, Ring, SharedTurns, Usable, are_same_backends,
};
use crate::clock;
use crate::config::algorithm::Algorithm;
use crate::config::backend::AdminState;
use crate::config::{Addresses, BackendConfig, PoolConfig, PoolName, PoolSettings, Secret};
use crate::dial::Transport;
use crate::failure::{BackendFailure, Failure};
use crate::health::ejection::{Ejections, most_ejected};
use crate::metrics::{Metrics, PoolMetrics};
use crate::sticky::Sticky;

/// The word for ejections that `max_percent` prevents, in the count of repeated log lines.
const PREVENTED_EJECTION: &str = "not-ejected";

/// A pool. It lives from the first snapshot that names it to the last.
#[derive(Debug)]
pub struct Pool {
    pub name: PoolName,
    pub(crate) metrics: PoolMetrics,
    /// Throttles repeated log lines.
    repeats: RepeatedFailures,
    ejections: Arc<Ejections>,
    view: ArcSwap<View>,
    /// Held while a view is made, so that the last view includes every change. The value is the earliest time for the
    /// next view, to bound the CPU time for views.
    refreshing: Mutex<Instant>,
    /// The value of [`Self::is_available`] that was logged last.
    was_available: AtomicBool,
    /// The value of [`Self::is_panicking`] that was logged last.
    was_panicking: AtomicBool,
    /// The sum of the backends' change counters when the view was made.
    known_changes: AtomicU64,
}

/// The configuration of a pool in one snapshot, with its backends, which outlive it.
#[derive(Debug)]
pub struct Plan {
    pub algorithm: Algorithm,
    pub settings: PoolSettings,
    pub sticky: Option<Arc<Sticky>>,
    /// How to connect to backends. Shared between plans while it does not change.
    pub transport: Arc<Transport>,
    /// The queue of exchanges that wait for a backend below `max_connections`. Shared between plans.
    pub queue: Arc<Queue>,
    /// Whether any backend has `max_connections`.
    has_limits: bool,
    members: Box<[Member]>,
    states: Box<[AdminState]>,
    turn: SharedTurns,
    /// The hash ring, if the algorithm needs one. Shared between plans while it fits.
    ring: Option<Arc<Ring>>,
}

/// A plan that is not in use yet.
#[derive(Debug)]
pub struct Draft {
    plan: Plan,
    /// Backends whose state is reset once the plan is in use, including what is learned until then.
    outdated: Vec<Arc<Backend>>,
}

/// The backends that take traffic now, and the plan. It is not made by threads that carry traffic.
#[derive(Debug)]
struct View {
    plan: Arc<Plan>,
    /// [`Ejections::begun`] when the view was made. It may contain backends that were ejected later.
    known_ejections: u64,
    standing: BackendStates,
    usable: Usable,
    balance: Box<dyn Balance>,
}

/// The states of a plan's backends at one moment.
#[derive(Debug, PartialEq)]
struct BackendStates {
    /// Each backend of the plan, with its endpoints that take traffic.
    backends: Box<[Candidate]>,
    /// Number of endpoints that would take traffic if they were healthy.
    endpoints: usize,
    /// Draining backends within the sticky grace.
    keeping: StickyGrace,
    is_panicking: bool,
}

/// Draining backends that still take clients whose cookie names them, and when the first such grace ends.
#[derive(Debug, Default, PartialEq)]
struct StickyGrace {
    backends: Vec<BackendIndex>,
    until: Option<Instant>,
}

/// A backend with its index in the plan in which it was found. In another plan the index is only where to look first.
#[derive(Debug, Clone)]
pub struct BackendHint {
    pub backend: Arc<Identity>,
    pub index: BackendIndex,
}

/// The result of a choice.
#[derive(Debug)]
pub enum Pick {
    Use(Choice),
    /// All remaining backends are at `max_connections`.
    Queue(QueueTicket),
    /// No backend is left.
    NoBackend,
}

/// The place in the queue in which an exchange waits, and its timeout.
#[derive(Debug)]
pub struct QueueTicket {
    pub place: Box<Place>,
    pub timeout: Duration,
}

/// The backend chosen for an exchange, and the plan whose settings apply.
#[derive(Debug)]
pub struct Choice {
    pub plan: Arc<Plan>,
    pub index: BackendIndex,
    pub lease: Lease,
}

impl Pool {
    /// A new pool.
    pub fn new(name: &PoolName, Draft { plan, .. }: Draft, metrics: &Metrics) -> Self {
        let now = clock::now();
        let known_changes = AtomicU64::new(plan.changes());
        let view = View::new(Arc::new(plan), 0, now);
        let pool = Self {
            name: name.clone(),
            metrics: metrics.pool(name.as_str()),
            repeats: RepeatedFailures::default(),
            ejections: Arc::default(),
            refreshing: Mutex::new(now),
            was_available: AtomicBool::new(true),
            was_panicking: AtomicBool::new(false),
            known_changes,
            view: ArcSwap::from_pointee(view),
        };
        pool.log_availability();
        pool
    }

    /// The current plan.
    pub fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.view.load().plan)
    }

    /// Switches to another plan.
    pub fn adopt(&self, Draft { plan, outdated }: Draft, now: Instant) {
        self.replace_view(Some(Arc::new(plan)), now);
        if !outdated.is_empty() {
            // Exchanges that have a lease already may still connect by the former plan.
            let now = clock::now();
            outdated.iter().for_each(|backend| backend.forget(now));
            self.refresh(now);
        }
    }

    /// Chooses a backend and one of its endpoints, and counts the exchange there. `sticky` is the backend that the
    /// client's cookie names. `tried` are the endpoints that have failed this exchange; another endpoint of the same
    /// backend may be next, as in nginx, where each address is a server of its own. `turn`: whether it goes before
    /// those that wait in the queue.
    pub fn choose(&self, key: &Key, sticky: Option<&BackendHint>, tried: &[Arc<Endpoint>], turn: Turn) -> Pick {
        let view = self.view.load();
        let plan = &view.plan;
        let sticky = sticky.and_then(|backend| plan.index_of(backend));
        let skips_ejected = !view.standing.is_panicking && view.known_ejections != self.ejections.begun();
        let (backends, usable, skips_full) = (&view.standing.backends, &view.usable, plan.has_limits);
        let candidates = Candidates { backends, usable, tried, skips_ejected, skips_full };
        let pick = || {
            // Backends that take no traffic have no endpoints here.
            let wanted = sticky.and_then(|index| Some((index, candidates.lease(index)?)));
            let picked = wanted.or_else(|| view.balance.lease(&candidates, key));
            // One that is only full is waited for.
            if picked.is_some() || !skips_ejected || (Candidates { skips_full: false, ..candidates }).has_any() {
                return picked;
            }
            // All remaining ones have been ejected since: the next view decides.
            view.balance.lease(&Candidates { skips_ejected: false, ..candidates }, key)
        };
        let (index, lease) = match plan.has_limits {
            false => match pick() {
                Some((index, lease)) => (index, lease.in_use()),
                None => return Pick::NoBackend,
            },
            true => match self.within_limits(plan, &candidates, pick, turn) {
                Ok(picked) => picked,
                Err(none) => return none,
            },
        };
        lease.backend().metrics.attempts.inc();
        Pick::Use(Choice { plan: Arc::clone(plan), index, lease })
    }

    /// The result of `pick`, if its backend is below `max_connections`.
    #[cold]
    fn within_limits(
        &self,
        plan: &Plan,
        candidates: &Candidates<'_>,
        pick: impl Fn() -> Option<(BackendIndex, Lease)>,
        turn: Turn,
    ) -> Result<(BackendIndex, Lease), Pick> {
        /// Attempts to win the last connection against other threads.
        const MAX_PICKS: usize = 16;
        let seen = plan.queue.freed();
        // An exchange that has failed before has waited long enough.
        let is_retry = !candidates.tried.is_empty();
        let is_next = is_retry || !matches!(turn, Turn::New) || !plan.queue.has_new();
        for _ in 0..if is_next { MAX_PICKS } else { 0 } {
            let Some((index, lease)) = pick() else { break };
            if let Some(lease) = lease.in_use_if_allowed() {
                let is_more_left = || Candidates { tried: &[], ..*candidates }.has_any();
                if let Turn::Called(place) = turn
                    && !is_more_left()
                {
                    place.leave_none();
                }
                return Ok((index, lease));
            }
        }
        let anybody = Candidates { skips_full: false, skips_ejected: false, ..*candidates };
        if !anybody.has_any() {
            return Err(Pick::NoBackend);
        }
        let place = match turn {
            Turn::Called(mut place) => {
                place.stay(seen);
                place
            }
            Turn::New | Turn::Kept => plan.queue.join(is_retry, is_next.then_some(seen)),
        };
        Err(Pick::Queue(QueueTicket { place, timeout: plan.settings.queue_timeout }))
    }

    /// Counts a failure of real traffic on an endpoint, and ejects the endpoint after too many. Returns the ejection
    /// time.
    pub fn failed(&self, lease: &Lease, cause: BackendFailure, now: Instant) -> Option<Duration> {
        let view = self.view.load();
        let (endpoint, rules) = (lease.endpoint(), &view.plan.settings.ejection);
        if !lease.is_current() || !endpoint.failed(cause, rules) {
            return None;
        }
        let Some(permit) = self.ejections.try_acquire(most_ejected(view.standing.endpoints, rules.max_percent)) else {
            // A single one is never ejected, and one that is ejected already may have more failures.
            if view.standing.endpoints > 1 && !endpoint.is_ejected() {
                self.log_prevented_ejection(endpoint, rules.max_percent, now);
            }
            return None;
        };
        let ejected = endpoint.eject(permit, rules, now);
        if ejected.is_some() {
            self.ejections.record_begun();
        }
        ejected
    }

    /// Logs an ejection that `max_percent` prevents, or only counts it if one was logged recently.
    #[cold]
    fn log_prevented_ejection(&self, endpoint: &Endpoint, max_percent: u8, now: Instant) {
        if self.repeats.note(PREVENTED_EJECTION, now) {
            let (backend, address) = (&endpoint.backend.address, endpoint.address().map(tracing::field::display));
            tracing::warn!(
                pool = %self.name, backend = %backend, address, max_percent, ejected = self.ejections.under_way(),
                "backend not ejected, though traffic keeps failing on it: [pool.ejection] max_percent allows no more \
                 ejections",
            );
        }
    }

    /// Logs a queue timeout, or only counts it if one was logged recently.
    #[cold]
    pub fn log_queue_timeout(&self, request_id: &str, now: Instant) {
        let word = Failure::QueueTimeout.word();
        if self.repeats.note(word, now) {
            let plan = self.plan();
            let request_id = Some(request_id).filter(|id| !id.is_empty());
            let (seconds, queued) = (plan.settings.queue_timeout.as_secs_f64(), plan.queue.waiting());
            tracing::warn!(
                pool = %self.name, failure = word, seconds, queued, request_id,
                "a request waited too long ([[pool]] queue_timeout) and is answered 503: every backend has as many \
                 connections as its max_connections allows",
            );
        }
    }

    /// Ends ejections whose time is over, makes a new view if a backend has changed, and logs the counts of repeated
    /// failures.
    pub fn catch_up(&self, now: Instant) {
        let plan = self.plan();
        self.log_suppressed(None, self.repeats.take(now));
        for member in &plan.members {
            self.log_suppressed(Some(&member.backend), member.backend.repeats.take(now));
        }
        if self.ejections.under_way() > 0 {
            for endpoints in plan.members.iter().map(|member| member.backend.endpoints()) {
                let ejected = endpoints.as_slice().iter().filter(|endpoint| endpoint.is_ejected());
                for endpoint in ejected.filter(|endpoint| endpoint.expire_ejection(now)) {
                    tracing::info!(
                        pool = %self.name, backend = %endpoint.backend.address,
                        address = endpoint.address().map(tracing::field::display),
                        "backend is back: the time of its ejection is over",
                    );
                }
            }
        }
        let view = self.view.load();
        let knows_ejections = view.known_ejections == self.ejections.begun();
        let is_grace_over = view.standing.keeping.until.is_some_and(|until| now >= until);
        if !knows_ejections || is_grace_over || self.known_changes.load(Ordering::Acquire) != plan.changes() {
            self.refresh(now);
        }
    }

    /// Logs the failures of a backend that were only counted so far, before it is dropped.
    pub fn log_last_failures_of(&self, backend: &Backend, now: Instant) {
        self.log_suppressed(Some(backend), backend.repeats.take_all(now));
    }

    /// Logs the failures of the pool that were only counted so far, before it is dropped.
    pub fn log_last_failures(&self, now: Instant) {
        self.log_suppressed(None, self.repeats.take_all(now));
    }

    /// `backend`: whose failures they are; `None`: the pool's own.
    fn log_suppressed(&self, backend: Option<&Backend>, suppressed: Vec<SuppressedFailures>) {
        let backend = backend.map(|backend| tracing::field::display(&backend.address));
        for SuppressedFailures { word, count, within } in suppressed {
            tracing::warn!(
                pool = %self.name, backend, failure = word, more = count, "… and {count} more in {} s", within.as_secs(),
            );
        }
    }

    /// Makes a new view after a backend has changed. If many change in a short time and views are expensive, leaves it
    /// to [`Self::catch_up`].
    pub fn refresh_soon(&self, now: Instant) {
        let not_before = *self.refreshing.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= not_before {
            self.refresh(now);
        }
    }

    pub fn refresh(&self, now: Instant) {
        self.replace_view(None, now);
    }

    /// Makes a new view, of another plan if there is one. It locks every backend, so threads that carry traffic must
    /// not call it.
    fn replace_view(&self, plan: Option<Arc<Plan>>, now: Instant) {
        /// Making views takes at most one fifth of a thread's time.
        const REFRESH_TIME_DIVISOR: u32 = 5;
        /// Up to this size a view is so fast that it is made at once.
        const SMALL_POOL_MEMBERS: usize = 256;
        let mut not_before = self.refreshing.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = clock::now();
        let before = self.view.load();
        let plan = plan.unwrap_or_else(|| Arc::clone(&before.plan));
        let known_ejections = self.ejections.begun();
        self.known_changes.store(plan.changes(), Ordering::Release);
        let members = plan.members.len();
        if let Some(view) = View::after(&before, plan, known_ejections, now) {
            let queue = Arc::clone(&view.plan.queue);
            self.view.store(Arc::new(view));
            // There may be new backends, or higher limits.
            queue.free();
            self.log_availability();
        }
        if members > SMALL_POOL_MEMBERS {
            *not_before = clock::now() + clock::now().saturating_duration_since(begun) * (REFRESH_TIME_DIVISOR - 1);
        }
    }

    fn log_availability(&self) {
        let is_available = self.is_available();
        match (self.was_available.swap(is_available, Ordering::Relaxed), is_available) {
            (true, false) => tracing::error!(pool = %self.name, "no backend may take traffic: requests get 503"),
            (false, true) => tracing::info!(pool = %self.name, "a backend may take traffic again"),
            _ => {}
        }
        let is_panicking = self.is_panicking();
        match (self.was_panicking.swap(is_panicking, Ordering::Relaxed), is_panicking) {
            (false, true) => tracing::warn!(
                pool = %self.name,
                "panic: too few backends are usable, so requests go to all active ones, whatever their health",
            ),
            (true, false) => tracing::info!(pool = %self.name, "the panic is over: health counts again"),
            _ => {}
        }
    }

    /// Whether a draining backend may still be sent its sticky clients.
    pub fn keeps_clients_of(&self, backend: &Arc<Backend>, now: Instant) -> bool {
        let view = self.view.load();
        let found = (0..).zip(view.plan.backends()).find(|(_, (member, _))| Arc::ptr_eq(&member.backend, backend));
        found.is_some_and(|(index, (member, state))| {
            let is_in_grace = view.plan.grace_end(member, state).is_some_and(|end| now < end);
            is_in_grace || view.standing.keeping.backends.contains(&index)
        })
    }

    /// Whether health is ignored because too few backends are usable.
    pub fn is_panicking(&self) -> bool {
        self.view.load().standing.is_panicking
    }

    /// Whether any backend may take traffic, even if only because of panic mode.
    pub fn is_available(&self) -> bool {
        !self.view.load().usable.as_slice().is_empty()
    }
}

impl Draft {
    /// The plan for `config`. Reuses and updates the backends of `previous`. `ring` is made beforehand because that
    /// takes long.
    pub fn new(
        config: &PoolConfig,
        previous: Option<&Plan>,
        ring: Option<Arc<Ring>>,
        metrics: &Metrics,
        secret: &Secret,
    ) -> Self {
        let is_probed = config.settings.probe.is_some();
        let transport = previous.map(|plan| &plan.transport).filter(|of| of.config == config.settings.transport);
        let is_connected_anew = previous.is_some() && transport.is_none();
        let transport = transport.map_or_else(|| Arc::new(Transport::new(&config.settings.transport)), Arc::clone);
        let now = clock::now();
        let known: HashMap<_, _> = previous
            .iter()
            .flat_map(|plan| plan.backends())
            .map(|(m, state)| (&m.backend.address, (m, state)))
            .collect();
        let queue = previous.map(|plan| Arc::clone(&plan.queue)).unwrap_or_default();
        let mut outdated = Vec::new();
        let member = |backend: &BackendConfig| {
            let backend_here = match known.get(&backend.address) {
                Some(&(known, before)) => {
                    known.backend.set_probed(is_probed);
                    // One that comes back must not be taken for what it was. What was learned over other connections
                    // may not hold over those of this plan; it is learned as long as the plan before is in force.
                    if may_be_another(before, backend.state) && backend.state != AdminState::Down {
                        known.backend.forget(now);
                    }
                    if is_connected_anew || may_be_another(before, backend.state) {
                        outdated.push(Arc::clone(&known.backend));
                    }
                    Arc::clone(&known.backend)
                }
                None => {
                    let is_name = backend.address.socket_address().is_none();
                    let metrics = metrics.backend(config.name.as_str(), backend.address.as_str(), is_name);
                    Arc::new(Backend::new(backend.address.clone(), is_probed, metrics, Arc::clone(&queue)))
                }
            };
            backend_here.set_wanted(backend.state, now);
            backend_here.set_max_connections(backend.max_connections);
            Member { backend: backend_here, weight: backend.weight }
        };
        let members: Box<[Member]> = config.backends.iter().map(member).collect();
        let has_same_backends = |plan: &&Plan| are_same_backends(&plan.members, &members);
        let sticky = config.settings.sticky.as_ref().map(|wanted| {
            let before = previous.filter(has_same_backends).and_then(|plan| plan.sticky.as_ref());
            let same = before.filter(|sticky| sticky.config() == wanted).map(Arc::clone);
            same.unwrap_or_else(|| Arc::new(Sticky::new(wanted, &config.name, &members, secret)))
        });
        let ring = ring.or_else(|| previous?.ring_for(config));
        let needs_ring = ring.is_none() && config.algorithm == Algorithm::IpHash;
        let plan = Plan {
            algorithm: config.algorithm,
            settings: config.settings.clone(),
            sticky,
            transport,
            queue,
            has_limits: config.backends.iter().any(|backend| backend.max_connections.is_some()),
            states: config.backends.iter().map(|backend| backend.state).collect(),
            turn: previous.map(|plan| plan.turn.of_members(&plan.members, &members)).unwrap_or_default(),
            ring: if needs_ring { Some(Arc::new(Ring::new(&members))) } else { ring },
            members,
        };
        Self { plan, outdated }
    }

    /// Has the state of every backend reset.
    pub fn with_all_outdated(mut self) -> Self {
        self.outdated = self.plan.members.iter().map(|member| Arc::clone(&member.backend)).collect();
        self
    }
}

impl Plan {
    /// The ring, if it fits `config`.
    pub fn ring_for(&self, config: &PoolConfig) -> Option<Arc<Ring>> {
        let parts = config.backends.iter().map(|backend| (&backend.address, backend.weight));
        self.ring.as_ref().filter(|ring| ring.is_of(parts)).map(Arc::clone)
    }

    /// Every backend with its configured state, in the order of the configuration.
    pub fn backends(&self) -> impl Iterator<Item = (&Member, AdminState)> {
        self.members.iter().zip(self.states.iter().copied())
    }

    pub fn backend(&self, index: BackendIndex) -> Option<&Arc<Backend>> {
        self.members.get(index as usize).map(|member| &member.backend)
    }

    /// Exchanges in flight on all backends.
    pub fn in_flight(&self) -> u32 {
        self.members.iter().map(|member| member.backend.in_flight()).sum()
    }

    /// Whether every backend with probes has been probed.
    pub fn is_probed(&self) -> bool {
        self.backends().all(|(m, state)| state == AdminState::Down || !m.backend.is_unknown())
    }

    /// The index of a backend in this plan, if it is a member.
    fn index_of(&self, wanted: &BackendHint) -> Option<BackendIndex> {
        let is_it =
            |index: BackendIndex| self.backend(index).is_some_and(|here| Arc::ptr_eq(here.identity(), &wanted.backend));
        if is_it(wanted.index) {
            return Some(wanted.index);
        }
        (0..).zip(&self.members).map(|(index, _)| index).find(|&index| is_it(index))
    }

    fn changes(&self) -> u64 {
        self.members.iter().map(|member| member.backend.changes()).sum()
    }

    /// When the sticky grace of a draining backend ends.
    pub fn grace_end(&self, member: &Member, state: AdminState) -> Option<Instant> {
        let grace = self.settings.sticky.as_ref()?.grace;
        let has_grace = state == AdminState::Draining && !grace.is_zero();
        has_grace.then(|| member.backend.grace_end(grace))?
    }

    /// The draining backends within the sticky grace. Adds their usable endpoints to `backends`.
    fn keeping(&self, backends: &mut [Candidate], now: Instant) -> StickyGrace {
        let mut keeping = StickyGrace::default();
        for (index, (member, state)) in (0..).zip(self.backends()) {
            let Some(until) = self.grace_end(member, state).filter(|until| now < *until) else { continue };
            let is_well = |endpoint: &&Arc<Endpoint>| {
                matches!(endpoint.status(AdminState::Active, now), Status::Healthy | Status::Unknown)
            };
            let well: Endpoints = member.backend.endpoints().as_slice().iter().filter(is_well).cloned().collect();
            if well != Endpoints::None {
                backends[index as usize].endpoints = well;
                keeping.backends.push(index);
                keeping.until = keeping.until.into_iter().chain([until]).min();
            }
        }
        keeping
    }
}

impl View {
    fn new(plan: Arc<Plan>, known_ejections: u64, now: Instant) -> Self {
        let (standing, usable) = BackendStates::of(&plan, now);
        Self::of(plan, standing, usable, known_ejections)
    }

    /// The view that replaces `before`; `None` if nothing has changed.
    fn after(before: &Self, plan: Arc<Plan>, known_ejections: u64, now: Instant) -> Option<Self> {
        let (standing, usable) = BackendStates::of(&plan, now);
        let is_same = Arc::ptr_eq(&before.plan, &plan)
            && before.standing == standing
            && before.known_ejections == known_ejections;
        (!is_same).then(|| Self::of(plan, standing, usable, known_ejections))
    }

    fn of(plan: Arc<Plan>, standing: BackendStates, usable: Vec<BackendIndex>, known_ejections: u64) -> Self {
        let usable = Usable::new(plan.members.len(), usable);
        let ring = || plan.ring.clone().unwrap_or_else(|| Arc::new(Ring::new(&plan.members)));
        let balance = balance::balance(plan.algorithm, &standing.backends, &usable, &plan.turn, ring);
        Self { known_ejections, standing, usable, balance, plan }
    }
}

impl BackendStates {
    /// Reads the state of every endpoint. Returns also the backends that take traffic.
    fn of(plan: &Plan, now: Instant) -> (Self, Vec<BackendIndex>) {
        let mut endpoints: Vec<(BackendIndex, Arc<Endpoint>)> = Vec::with_capacity(plan.members.len());
        let mut statuses = Vec::with_capacity(plan.members.len());
        for (index, (member, state)) in (0..).zip(plan.backends()) {
            for endpoint in member.backend.endpoints().as_slice() {
                statuses.push(endpoint.status(state, now));
                endpoints.push((index, Arc::clone(endpoint)));
            }
        }
        let (usable, is_panicking) = usable(&statuses, plan.settings.panic_threshold);
        let candidate = |member: &Member| Candidate { endpoints: Endpoints::None, weight: member.weight.as_u32() };
        let mut backends: Box<[Candidate]> = plan.members.iter().map(candidate).collect();
        let mut in_order = Vec::with_capacity(backends.len());
        for group in usable.chunk_by(|&one, &next| endpoints[one].0 == endpoints[next].0) {
            let index = endpoints[group[0]].0;
            backends[index as usize].endpoints =
                group.iter().map(|&position| Arc::clone(&endpoints[position].1)).collect();
            if plan.settings.addresses == Addresses::Each {
                let count = u32::try_from(group.len()).unwrap_or(u32::MAX);
                let weight = &mut backends[index as usize].weight;
                *weight = weight.saturating_mul(count);
            }
            in_order.push(index);
        }
        let keeping = plan.keeping(&mut backends, now);
        let is_active = |status: &&Status| {
            matches!(status, Status::Healthy | Status::Unknown | Status::Unhealthy | Status::Ejected)
        };
        let endpoints = statuses.iter().filter(is_active).count();
        (Self { backends, endpoints, keeping, is_panicking }, in_order)
    }
}

/// Whether such a change of the configured state means that another server may be behind the address. A draining
/// backend is still probed, so probes notice that.
fn may_be_another(before: AdminState, after: AdminState) -> bool {
    use AdminState::{Down, Removing};
    before != after && (after == Down || matches!(before, Down | Removing))
}

/// Which endpoints of a pool take traffic: the healthy ones; without any, those never probed; and when fewer than
/// `panic_threshold` percent of those of active backends are either, all of these, whatever their health ("panic").
fn usable(statuses: &[Status], panic_threshold: u8) -> (Vec<usize>, bool) {
    let having = |wanted: &[Status]| -> Vec<usize> {
        (0..).zip(statuses).filter(|(_, status)| wanted.contains(status)).map(|(permit, _)| permit).collect()
    };
    let healthy = having(&[Status::Healthy]);
    let unknown = having(&[Status::Unknown]);
    let active = having(&[Status::Healthy, Status::Unknown, Status::Unhealthy, Status::Ejected]);
    let fit = healthy.len() + unknown.len();
    if fit * 100 < active.len() * usize::from(panic_threshold) {
        return (active, true);
    }
    (if healthy.is_empty() { unknown } else { healthy }, false)
}

#[cfg(test)]
mod tests {
    use super::Status::*;
    use super::*;

    #[test]
    fn candidates_are_the_healthy_then_the_unknown_then_all_in_panic() {
        for (statuses, threshold, expected) in [
            (&[Healthy, Unhealthy, Unknown, Ejected][..], 1, (vec![0], false)),
            (&[Unknown, Unhealthy, Unknown], 1, (vec![0, 2], false)),
            (&[Unhealthy, Ejected, Down, Draining], 1, (vec![0, 1], true)),
            (&[Unhealthy, Ejected, Down, Draining], 0, (vec![], false)),
            (&[Draining, Down, Removing], 100, (vec![], false)),
            (&[Healthy, Unhealthy, Unhealthy], 50, (vec![0, 1, 2], true)),
            (&[Healthy, Healthy, Unhealthy, Unhealthy], 50, (vec![0, 1], false)),
            (&[], 100, (vec![], false)),
        ] {
            assert_eq!(usable(statuses, threshold), expected, "{statuses:?} {threshold}");
        }
    }

    fn config(backends: &[(&str, u32)], settings: &str) -> PoolConfig {
        let backends: Vec<_> = backends
            .iter()
            .map(|(address, weight)| format!("{{ address = \"{address}\", weight = {weight} }}"))
            .collect();
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\npool = \"app\"\n\
             [[pool]]\nname = \"app\"\nbackends = [{}]\n{settings}",
            backends.join(", "),
        );
        let read = crate::config::toml::read(&text, std::path::Path::new("/evenkeel.toml"));
        read.expect("valid").pools.remove(0)
    }

    fn draft(config: &PoolConfig, previous: Option<&Plan>) -> Draft {
        Draft::new(config, previous, None, &Metrics::new(), &Secret::new("secret").expect("not empty"))
    }

    fn pool(config: &PoolConfig) -> Pool {
        Pool::new(&config.name, draft(config, None), &Metrics::new())
    }

    fn chosen(pick: Pick) -> Option<Choice> {
        match pick {
            Pick::Use(choice) => Some(choice),
            Pick::Queue(_) | Pick::NoBackend => None,
        }
    }

    #[test]
    fn max_connections_is_kept_and_queued_requests_go_first() {
        let two = |first: u32| {
            let mut config = config(&[("a:1", 1), ("b:1", 1)], SETTINGS);
            for (backend, max) in config.backends.iter_mut().zip([first, 1]) {
                backend.max_connections = std::num::NonZero::new(max);
            }
            config
        };
        for algorithm in Algorithm::ALL {
            let mut config = two(2);
            config.algorithm = algorithm;
            let pool = pool(&config);
            let key = Key { client: Some(std::net::Ipv4Addr::LOCALHOST.into()) };
            let mut leases: Vec<_> =
                (0..3).map(|_| chosen(pool.choose(&key, None, &[], Turn::New)).expect("room")).collect();
            let on = |address: &str| leases.iter().filter(|c| c.lease.backend().address.as_str() == address).count();
            assert_eq!((on("a:1"), on("b:1")), (2, 1), "{algorithm:?}");
            let Pick::Queue(full) = pool.choose(&key, None, &[], Turn::New) else {
                panic!("there is room, {algorithm:?}")
            };
            assert!(!is_called(&full.place));
            leases.pop();
            // Until it was called and had looked, others were let in before it.
            let Pick::Queue(mut next) = pool.choose(&key, None, &[], Turn::New) else { panic!("let in before") };
            assert!(is_called(&full.place) && !is_called(&next.place));
            let Pick::Queue(third) = pool.choose(&key, None, &[], Turn::New) else { panic!("let in before") };
            assert!(!is_called(&third.place), "the first one has not looked yet");
            drop(third);
            leases.push(chosen(pool.choose(&key, None, &[], Turn::Called(full.place))).expect("it was called"));
            assert!(!is_called(&next.place), "there is no room for more");
            // A retry got there first.
            leases.pop();
            assert!(is_called(&next.place));
            leases.push(chosen(pool.choose(&key, None, &[], Turn::Kept)).expect("room"));
            let behind = pool.choose(&key, None, &[], Turn::New);
            let Pick::Queue(again) = pool.choose(&key, None, &[], Turn::Called(next.place)) else { panic!("no room") };
            let Pick::Queue(behind) = behind else { panic!("no room") };
            assert!(!is_called(&again.place) && !is_called(&behind.place));
            next = again;
            leases.pop();
            assert!(is_called(&next.place) && !is_called(&behind.place), "it has kept its place");
            leases.push(chosen(pool.choose(&key, None, &[], Turn::Called(next.place))).expect("room"));
            // A higher limit calls all that fit.
            change(&pool, &two(4));
            assert!(is_called(&behind.place));
            let last = pool.choose(&key, None, &[], Turn::New);
            leases.push(chosen(pool.choose(&key, None, &[], Turn::Called(behind.place))).expect("room"));
            let Pick::Queue(last) = last else { panic!("let in before") };
            assert!(is_called(&last.place));
            leases.push(chosen(pool.choose(&key, None, &[], Turn::Called(last.place))).expect("room"));
            change(&pool, &two(5));
            assert!(matches!(pool.choose(&key, None, &[], Turn::New), Pick::Use(_)));
        }
    }

    fn is_called(place: &Place) -> bool {
        std::pin::pin!(place.called()).poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_ready()
    }

    fn change(pool: &Pool, config: &PoolConfig) {
        pool.adopt(draft(config, Some(&pool.plan())), Instant::now());
    }

    fn backend(pool: &Pool, index: BackendIndex) -> Arc<Backend> {
        Arc::clone(pool.plan().backend(index).expect("a backend"))
    }

    fn lease(backend: &Backend) -> Lease {
        backend.endpoints().lease(|_| false).expect("an endpoint")
    }

    /// Fails a backend until it is ejected, or has failed ten times.
    fn eject(pool: &Pool, backend: &Backend, now: Instant) -> Option<Duration> {
        (0..10).find_map(|_| pool.failed(&lease(backend), FAILURE, now))
    }

    const FAILURE: BackendFailure = BackendFailure::Status(500);
    const SETTINGS: &str = "[pool.ejection]\nconsecutive_failures = 5\nbase_time = \"10s\"\nmax_percent = 34\n";

    #[test]
    fn removing_an_ejected_backend_frees_its_ejection_permit() {
        let settings = format!("{SETTINGS}[pool.probe]\npath = \"/\"\n");
        let pool = pool(&config(&[("a:1", 1), ("b:1", 1), ("c:1", 1)], &settings));
        let now = Instant::now();
        let a = backend(&pool, 0);
        assert!(eject(&pool, &a, now).is_some());
        let _held_by_an_exchange = pool.plan();
        change(&pool, &config(&[("b:1", 1), ("c:1", 1)], &settings));
        a.leave(now);
        assert_eq!(pool.ejections.under_way(), 0, "whoever still holds the old plan does not hold its ejections");
        assert!(eject(&pool, &backend(&pool, 0), now).is_some());
        assert_eq!(eject(&pool, &a, now), None, "it is not in the pool");
        assert_eq!(pool.ejections.under_way(), 1);
    }

    // While a WebSocket kept a removed backend in the pool, the only other one was ejected.
    #[test]
    fn a_backend_that_leaves_does_not_count_for_max_percent() {
        let mut config = config(&[("a:1", 1), ("b:1", 1)], SETTINGS);
        let pool = pool(&config);
        config.backends[0].state = AdminState::Removing;
        change(&pool, &config);
        assert_eq!(eject(&pool, &backend(&pool, 1), Instant::now()), None, "the last one");
    }

    #[test]
    fn picks_use_the_current_plan() {
        let pool = pool(&config(&[("a:1", 1), ("b:1", 1)], SETTINGS));
        let key = Key { client: Some(std::net::Ipv4Addr::LOCALHOST.into()) };
        let first = chosen(pool.choose(&key, None, &[], Turn::New)).expect("two are there");
        let a = BackendHint { backend: Arc::clone(first.lease.backend()), index: first.index };
        assert_eq!((a.backend.address.as_str(), first.plan.settings.retries), ("a:1", 2));
        change(&pool, &config(&[("c:1", 1), ("a:1", 1)], &format!("retries = 3\n{SETTINGS}")));
        let again = chosen(pool.choose(&key, Some(&a), &[], Turn::New)).expect("it is still there");
        assert!(Arc::ptr_eq(again.lease.backend(), &a.backend), "the same one, elsewhere in the list");
        assert_eq!((again.index, again.plan.settings.retries), (1, 3));
        let other =
            chosen(pool.choose(&key, Some(&a), &[Arc::clone(first.lease.endpoint())], Turn::New)).expect("one is left");
        assert_eq!(other.lease.backend().address.as_str(), "c:1");
        change(&pool, &config(&[("c:1", 1)], SETTINGS));
        let gone = chosen(pool.choose(&key, Some(&a), &[], Turn::New)).expect("one is left");
        assert_eq!(gone.lease.backend().address.as_str(), "c:1");
    }

    // Exchanges that took a lease in between counted for the new connections, over the old ones.
    #[test]
    fn results_from_before_a_change_of_how_to_connect_are_ignored() {
        let pool = pool(&config(&[("a:1", 1)], SETTINGS));
        let key = Key { client: Some(std::net::Ipv4Addr::LOCALHOST.into()) };
        let choose = || chosen(pool.choose(&key, None, &[], Turn::New)).expect("one is there");
        let transport = Arc::clone(&pool.plan().transport);
        let other = config(&[("a:1", 1)], &format!("proxy_protocol = \"v1\"\n{SETTINGS}"));
        let draft = draft(&other, Some(&pool.plan()));
        let between = choose();
        assert!(Arc::ptr_eq(&between.plan.transport, &transport) && between.lease.is_current());
        pool.adopt(draft, Instant::now());
        assert!(!between.lease.is_current());
        let after = choose();
        assert!(!Arc::ptr_eq(&after.plan.transport, &transport) && after.lease.is_current());
    }

    // Exchanges that began without a limit were not counted, and their end woke nobody.
    #[test]
    fn a_new_or_lower_max_connections_counts_exchanges_in_flight() {
        let limited = |max| {
            let mut config = config(&[("a:1", 1)], SETTINGS);
            config.backends[0].max_connections = std::num::NonZero::new(max);
            config
        };
        let pool = pool(&limited(0));
        let key = Key { client: Some(std::net::Ipv4Addr::LOCALHOST.into()) };
        let choose = |turn| pool.choose(&key, None, &[], turn);
        let mut leases: Vec<_> = (0..4).map(|_| chosen(choose(Turn::New)).expect("room")).collect();
        for max in [3, 2] {
            change(&pool, &limited(max));
            while leases.len() > max as usize {
                assert!(matches!(choose(Turn::Kept), Pick::Queue(_)), "{} are in use", leases.len());
                leases.pop();
            }
            let Pick::Queue(full) = choose(Turn::New) else { panic!("{max} are in use already") };
            assert!(!is_called(&full.place));
            leases.pop();
            assert!(is_called(&full.place));
            leases.push(chosen(choose(Turn::Called(full.place))).expect("room for one"));
            assert!(matches!(choose(Turn::Kept), Pick::Queue(_)));
        }
        leases.clear();
        assert_eq!(backend(&pool, 0).connections_in_use(), 0);
    }

    // Until the next list of candidates was made, such requests were refused.
    #[test]
    fn requests_wait_for_a_full_backend_that_was_ejected_a_moment_ago() {
        let mut config = config(&[("a:1", 1), ("b:1", 1)], &SETTINGS.replace("34", "100"));
        for backend in &mut config.backends {
            backend.max_connections = std::num::NonZero::new(1);
        }
        let pool = pool(&config);
        let key = Key { client: Some(std::net::Ipv4Addr::LOCALHOST.into()) };
        let choose = || pool.choose(&key, None, &[], Turn::New);
        let _leases = [chosen(choose()).expect("room"), chosen(choose()).expect("room")];
        for index in 0..2 {
            assert!(eject(&pool, &backend(&pool, index), Instant::now()).is_some());
        }
        assert!(matches!(choose(), Pick::Queue(_)));
    }

    // Until the next list of candidates was made, such requests went to the ejected backend.
    #[test]
    fn requests_wait_for_a_full_backend_beside_one_that_was_ejected_a_moment_ago() {
        let mut config = config(&[("a:1", 1), ("b:1", 1)], &SETTINGS.replace("34", "100"));
        config.backends[0].max_connections = std::num::NonZero::new(1);
        let pool = pool(&config);
        let key = Key { client: Some(std::net::Ipv4Addr::LOCALHOST.into()) };
        assert!(eject(&pool, &backend(&pool, 1), Instant::now()).is_some());
        let choose = || pool.choose(&key, None, &[], Turn::New);
        let only = chosen(choose()).expect("room");
        assert_eq!(only.lease.backend().address.as_str(), "a:1");
        assert!(matches!(choose(), Pick::Queue(_)));
    }

    #[test]
    fn an_ejection_missed_by_one_list_of_candidates_is_in_the_next() {
        let pool = pool(&config(&[("a:1", 1), ("b:1", 1)], SETTINGS));
        // As when a list is made after the backend was ejected and before that was counted.
        pool.ejections.record_begun();
        pool.catch_up(Instant::now());
        assert_eq!(pool.view.load().known_ejections, pool.ejections.begun());
    }

    #[test]
    fn failures_during_an_ejection_are_ignored_after_it() {
        let pool = pool(&config(&[("a:1", 1), ("b:1", 1)], SETTINGS));
        let now = Instant::now();
        let a = backend(&pool, 0);
        let duration = eject(&pool, &a, now).expect("room for one");
        for _ in 0..10 {
            assert_eq!(pool.failed(&lease(&a), FAILURE, now), None, "it is ejected already");
        }
        let later = now + duration;
        pool.catch_up(later);
        assert!(!a.endpoints().as_slice()[0].is_ejected());
        assert_eq!(pool.failed(&lease(&a), FAILURE, later), None, "a single failure does not eject");
    }
}
