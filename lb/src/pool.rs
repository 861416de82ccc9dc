//! Backends that serve the same thing, and the choice among them. A pool is part of a snapshot and never altered;
//! what it derives from the health of its backends is kept as a *view*, made anew whenever that health changes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::backend::{Backend, Lease, Status};
use crate::balance::{self, BackendIndex, Balance, Candidates, Key, Member, Ring, Turn, Usable};
use crate::config::algorithm::Algorithm;
use crate::config::backend::AdminState;
use crate::config::{PoolConfig, PoolName, PoolSettings, Secret};
use crate::health::ejection::{Ejections, most_ejected};
use crate::metrics::{Metrics, PoolMetrics};
use crate::sticky::Sticky;

#[derive(Debug)]
pub struct Pool {
    pub name: PoolName,
    pub algorithm: Algorithm,
    pub settings: PoolSettings,
    pub sticky: Option<Sticky>,
    pub metrics: PoolMetrics,
    members: Box<[Member]>,
    states: Box<[AdminState]>,
    turn: Turn,
    /// Shared with the pools of this name before and after.
    ejections: Arc<Ejections>,
    ring: OnceLock<Arc<Ring>>,
    view: ArcSwap<View>,
    /// Held while a view is made, so that the last one made knows of every change. When the next one may be made
    /// without taking too much of its thread's time.
    refreshing: Mutex<Instant>,
    /// What was last logged of [`Self::is_available`].
    was_available: AtomicBool,
    /// The changes of all backends together that the view knows of.
    known_changes: AtomicU64,
}

/// Who takes traffic now. Made away from the threads that carry traffic.
#[derive(Debug)]
struct View {
    /// [`Ejections::begun`] when it was made: later ones are not left out of it.
    known_ejections: u64,
    usable: Usable,
    balance: Box<dyn Balance>,
    is_panicking: bool,
}

/// A backend that an exchange keeps in mind from one choice to the next. The position is that in the pool it was found
/// in, so in another it is only where to look first.
#[derive(Debug, Clone)]
pub struct Remembered {
    pub backend: Arc<Backend>,
    pub index: BackendIndex,
}

/// A backend that was chosen for an exchange.
#[derive(Debug)]
pub struct Choice {
    pub index: BackendIndex,
    pub lease: Lease,
}

impl Pool {
    /// The pool as configured, around the backends that `previous` has already.
    pub fn new(config: &PoolConfig, previous: Option<&Self>, metrics: &Metrics, secret: &Secret) -> Self {
        let is_probed = config.settings.probe.is_some();
        let now = Instant::now();
        let known: std::collections::HashMap<_, _> = previous
            .iter()
            .flat_map(|pool| pool.backends())
            .map(|(m, state)| (&m.backend.address, (&m.backend, state)))
            .collect();
        let member = |backend: &crate::config::BackendConfig| {
            let backend_here = match known.get(&backend.address) {
                Some(&(known, before)) => {
                    known.set_probed(is_probed);
                    if may_be_another(before, backend.state) {
                        known.forget(now);
                    }
                    Arc::clone(known)
                }
                None => {
                    let metrics = metrics.backend(config.name.as_str(), backend.address.as_str());
                    Arc::new(Backend::new(backend.address.clone(), is_probed, metrics))
                }
            };
            Member { backend: backend_here, weight: backend.weight }
        };
        let members: Box<[Member]> = config.backends.iter().map(member).collect();
        let sticky = config.settings.sticky.as_ref();
        let pool = Self {
            name: config.name.clone(),
            algorithm: config.algorithm,
            settings: config.settings.clone(),
            sticky: sticky.map(|sticky| Sticky::new(sticky, &config.name, &members, secret)),
            metrics: metrics.pool(config.name.as_str()),
            states: config.backends.iter().map(|backend| backend.state).collect(),
            turn: previous.map(|pool| pool.turn.of_members(&pool.members, &members)).unwrap_or_default(),
            ejections: previous.map(|pool| Arc::clone(&pool.ejections)).unwrap_or_default(),
            ring: OnceLock::new(),
            view: ArcSwap::from_pointee(View::empty()),
            refreshing: Mutex::new(now),
            was_available: AtomicBool::new(previous.is_none_or(Self::is_available)),
            known_changes: AtomicU64::new(0),
            members,
        };
        pool.refresh(now);
        pool
    }

    /// Chooses a backend and counts the exchange on it. `sticky` is where the client wants back to; `tried` are
    /// those which failed this exchange. `None`: nobody is left.
    pub fn choose(&self, key: &Key, sticky: Option<&Remembered>, tried: &[Remembered]) -> Option<Choice> {
        let view = self.view.load();
        // Costs nothing for a first attempt.
        let tried: Vec<BackendIndex> = tried.iter().filter_map(|backend| self.index_of(backend)).collect();
        let sticky = sticky.and_then(|backend| self.index_of(backend));
        let skips_ejected = !view.is_panicking && view.known_ejections != self.ejections.begun();
        let candidates = Candidates { members: &self.members, usable: &view.usable, tried: &tried, skips_ejected };
        let wanted = sticky.filter(|&index| view.usable.contains(index) && !candidates.is_excluded(index));
        let picked = wanted.or_else(|| view.balance.pick(&candidates, key));
        // When all that are left have been ejected since the view was made, it is for the next view to say what then.
        let anybody = || view.balance.pick(&Candidates { skips_ejected: false, ..candidates }, key);
        let index = if skips_ejected { picked.or_else(anybody) } else { picked }?;
        let lease = self.members.get(index as usize)?.backend.lease();
        lease.backend().metrics.attempts.inc();
        Some(Choice { index, lease })
    }

    /// Where a backend stands in this pool; `None` when it does not.
    fn index_of(&self, wanted: &Remembered) -> Option<BackendIndex> {
        let is_it = |index: BackendIndex| self.backend(index).is_some_and(|here| Arc::ptr_eq(here, &wanted.backend));
        if is_it(wanted.index) {
            return Some(wanted.index);
        }
        (0..).zip(&self.members).map(|(index, _)| index).find(|&index| is_it(index))
    }

    /// Takes in that real traffic failed on a backend, and puts the backend aside when that was too often. Returns
    /// for how long it was put aside.
    pub fn failed(&self, lease: &Lease, now: Instant) -> Option<Duration> {
        let backend = lease.backend();
        if !lease.is_current() || !backend.failed(&self.settings.ejection) {
            return None;
        }
        let rules = &self.settings.ejection;
        let place = self.ejections.place(most_ejected(self.members.len(), rules.max_percent))?;
        let ejected = backend.eject(place, rules, now);
        if ejected.is_some() {
            self.ejections.has_begun();
        }
        ejected
    }

    /// Ends ejections whose time is over, and lists the candidates anew if a backend has changed, which an exchange
    /// may have reported to a pool that another has replaced.
    pub fn catch_up(&self, now: Instant) {
        if self.ejections.under_way() > 0 {
            for member in self.members.iter().filter(|member| member.backend.is_ejected()) {
                if member.backend.expire_ejection(now) {
                    tracing::info!(
                        pool = %self.name, backend = %member.backend.address,
                        "backend is back: the time of its ejection is over",
                    );
                }
            }
        }
        let knows_ejections = self.view.load().known_ejections == self.ejections.begun();
        if !knows_ejections || self.known_changes.load(Ordering::Acquire) != self.changes() {
            self.refresh(now);
        }
    }

    /// Lists the candidates anew after a backend has changed, or leaves it to [`Self::catch_up`] when many change in
    /// a short time and each list takes long.
    pub fn refresh_soon(&self, now: Instant) {
        let not_before = *self.refreshing.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= not_before {
            self.refresh(now);
        }
    }

    /// Lists the candidates anew. It asks every backend under its lock: no thread that carries traffic does.
    fn refresh(&self, now: Instant) {
        /// Making views takes one part in so many of a thread's time, however often backends change.
        const SHARE: u32 = 5;
        /// With so many members a view is made so fast that no finding of a probe has to wait for it.
        const FEW: usize = 256;
        let mut not_before = self.refreshing.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Instant::now();
        self.list_candidates(now);
        if self.members.len() > FEW {
            *not_before = Instant::now() + begun.elapsed() * (SHARE - 1);
        }
    }

    fn list_candidates(&self, now: Instant) {
        let known_ejections = self.ejections.begun();
        self.known_changes.store(self.changes(), Ordering::Release);
        let statuses: Vec<Status> = self.backends().map(|(m, state)| m.backend.status(state, now)).collect();
        let (usable, is_panicking) = usable(&statuses, self.settings.panic_threshold);
        let view = self.view.load();
        let same = view.usable.as_slice() == usable
            && view.is_panicking == is_panicking
            && view.known_ejections == known_ejections;
        if same && !usable.is_empty() {
            return;
        }
        let usable = Usable::new(self.members.len(), usable);
        let ring = || Arc::clone(self.ring.get_or_init(|| Arc::new(Ring::new(&self.members))));
        let balance = balance::balance(self.algorithm, &self.members, &usable, &self.turn, ring);
        let is_available = !usable.as_slice().is_empty();
        self.view.store(Arc::new(View { known_ejections, usable, balance, is_panicking }));
        match (self.was_available.swap(is_available, Ordering::Relaxed), is_available) {
            (true, false) => tracing::error!(pool = %self.name, "no backend may take traffic: requests get 503"),
            (false, true) => tracing::info!(pool = %self.name, "a backend may take traffic again"),
            _ => {}
        }
    }

    fn changes(&self) -> u64 {
        self.members.iter().map(|member| member.backend.changes()).sum()
    }

    /// Whether health is ignored because too few backends are usable.
    pub fn is_panicking(&self) -> bool {
        self.view.load().is_panicking
    }

    /// Whether a backend may take traffic, if only because the pool panics.
    pub fn is_available(&self) -> bool {
        !self.view.load().usable.as_slice().is_empty()
    }

    /// Every backend with what the operator wants of it, in the order of the configuration.
    pub fn backends(&self) -> impl Iterator<Item = (&Member, AdminState)> {
        self.members.iter().zip(self.states.iter().copied())
    }

    pub fn backend(&self, index: BackendIndex) -> Option<&Arc<Backend>> {
        self.members.get(index as usize).map(|member| &member.backend)
    }

    /// Whether every backend that is to be probed has been.
    pub fn is_probed(&self) -> bool {
        self.backends().all(|(m, state)| state == AdminState::Down || !m.backend.is_unknown())
    }
}

impl View {
    fn empty() -> Self {
        let usable = Usable::new(0, Vec::new());
        let balance =
            balance::balance(Algorithm::RoundRobin, &[], &usable, &Turn::default(), || Arc::new(Ring::new(&[])));
        Self { known_ejections: 0, usable, balance, is_panicking: false }
    }
}

/// Whether such a change of what the operator wants says that another server may be behind the address. While a
/// backend drains, probes go on and see it.
fn may_be_another(before: AdminState, after: AdminState) -> bool {
    use AdminState::{Down, Removing};
    before != after && (after == Down || matches!(before, Down | Removing))
}

/// Which backends take traffic: the healthy ones; without any, those never probed; and when fewer than
/// `panic_threshold` percent of the active ones are either, all active ones, whatever their health ("panic").
fn usable(statuses: &[Status], panic_threshold: u8) -> (Vec<BackendIndex>, bool) {
    let having = |wanted: &[Status]| -> Vec<BackendIndex> {
        let has = |&(_, status): &(BackendIndex, &Status)| wanted.contains(status);
        (0..).zip(statuses).filter(has).map(|(index, _)| index).collect()
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

    fn pool(config: &PoolConfig, previous: Option<&Pool>) -> Pool {
        Pool::new(config, previous, &Metrics::new(), &Secret::new("secret").expect("not empty"))
    }

    /// Fails a backend until it is ejected, or has failed ten times.
    fn eject(pool: &Pool, backend: &Arc<Backend>, now: Instant) -> Option<Duration> {
        (0..10).find_map(|_| pool.failed(&backend.lease(), now))
    }

    const SETTINGS: &str = "[pool.ejection]\nconsecutive_failures = 5\nbase_time = \"10s\"\nmax_percent = 34\n";

    #[test]
    fn a_backend_that_leaves_while_ejected_gives_its_place_to_another() {
        let settings = format!("{SETTINGS}[pool.probe]\npath = \"/\"\n");
        let before = pool(&config(&[("a:1", 1), ("b:1", 1), ("c:1", 1)], &settings), None);
        let now = Instant::now();
        let a = Arc::clone(before.backend(0).expect("three"));
        assert!(eject(&before, &a, now).is_some());
        let after = pool(&config(&[("b:1", 1), ("c:1", 1)], &settings), Some(&before));
        a.leave(now);
        assert_eq!(after.ejections.under_way(), 0, "whoever still holds the old pool does not hold its ejections");
        assert!(eject(&after, after.backend(0).expect("two"), now).is_some());
        assert_eq!(eject(&after, &a, now), None, "it is not in the pool");
        assert_eq!(after.ejections.under_way(), 1);
    }

    #[test]
    fn an_ejection_that_a_list_overlooked_is_taken_in_by_the_next() {
        let pool = pool(&config(&[("a:1", 1), ("b:1", 1)], SETTINGS), None);
        // As when a list is made after the backend was ejected and before that was counted.
        pool.ejections.has_begun();
        pool.catch_up(Instant::now());
        assert_eq!(pool.view.load().known_ejections, pool.ejections.begun());
    }

    #[test]
    fn failures_during_an_ejection_do_not_count_after_it() {
        let pool = pool(&config(&[("a:1", 1), ("b:1", 1)], SETTINGS), None);
        let now = Instant::now();
        let a = Arc::clone(pool.backend(0).expect("two"));
        let duration = eject(&pool, &a, now).expect("room for one");
        for _ in 0..10 {
            assert_eq!(pool.failed(&a.lease(), now), None, "it is ejected already");
        }
        let later = now + duration;
        pool.catch_up(later);
        assert!(!a.is_ejected());
        assert_eq!(pool.failed(&a.lease(), later), None, "a single failure does not eject");
    }
}
