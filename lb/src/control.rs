//! The one place where the snapshot changes: runtime changes, reloads, and what they leave in the state file.
//! Changes come one after the other; readers never wait, and no change waits for a disk.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use crate::config::algorithm::Algorithm;
use crate::config::backend::{AdminState, BackendAddress, Weight};
use crate::config::{BackendConfig, Config, PoolConfig, PoolName, Problem};
use crate::metrics::Metrics;
use crate::pool::Plan;
use crate::snapshot::{Rings, Snapshot};
use crate::state::{Changes, Persistence, StateFile};

#[derive(Debug)]
pub struct Control {
    pub metrics: Arc<Metrics>,
    path: PathBuf,
    state: StateFile,
    snapshot: ArcSwap<Snapshot>,
    versions: watch::Sender<u64>,
    /// The configuration file as last read. Held while a change is made.
    file: Mutex<Config>,
    /// Held from reading the file to taking it up, so that the newest one read is in force in the end.
    reloading: Mutex<()>,
    /// Whether a reload waits for another to end.
    reload_waits: AtomicBool,
}

/// A pool's algorithm before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switch {
    pub pool: PoolName,
    pub previous: Algorithm,
    pub current: Algorithm,
}

/// Why a change was refused. Nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error("there is no pool \"{name}\"; the pools are {existing}")]
    NoPool { name: String, existing: String },
    #[error("pool \"{pool}\" has no backend {address}; its backends are {existing}")]
    NoBackend { pool: PoolName, address: String, existing: String },
    #[error("pool \"{pool}\" has backend {address} already; change it with PATCH")]
    Exists { pool: PoolName, address: BackendAddress },
}

/// What became of a configuration that was read again.
#[derive(Debug)]
pub struct Reload {
    pub version: u64,
    pub warnings: Vec<String>,
}

/// Why nothing was reloaded.
#[derive(Debug)]
pub enum ReloadError {
    Invalid(Vec<Problem>),
    /// One reload is reading and another waits for it, which will read the file as it is now.
    Waiting,
}

impl Control {
    /// Takes up `config` as read from the file at `path`, with the runtime changes that the state file kept.
    pub fn new(path: &Path, config: Config, metrics: Arc<Metrics>) -> Self {
        let (state, changes) = StateFile::open(config.state.file.clone());
        let (in_force, overtaken) = changes.apply(&config);
        for reason in overtaken {
            tracing::warn!("a change made at run time is dropped: {reason}");
        }
        let snapshot = Snapshot::new(in_force, None, &Rings::default(), &metrics, &state.secret);
        let control = Self {
            metrics,
            path: path.to_owned(),
            versions: watch::Sender::new(snapshot.version),
            snapshot: ArcSwap::from_pointee(snapshot),
            state,
            file: Mutex::new(config),
            reloading: Mutex::new(()),
            reload_waits: AtomicBool::new(false),
        };
        // Writes the secret that signs sticky cookies at the first start, and finds out early that it cannot.
        control.keep(&control.locked_file());
        control
    }

    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// Tells of each new snapshot.
    pub fn versions(&self) -> watch::Receiver<u64> {
        self.versions.subscribe()
    }

    /// Switches one pool or all to an algorithm.
    pub fn switch_algorithm(&self, pool: Option<&str>, to: Algorithm) -> Result<(u64, Vec<Switch>), ChangeError> {
        self.change(|config| {
            if let Some(name) = pool {
                find_pool(config, name)?;
            }
            let wanted = config.pools.iter_mut().filter(|p| pool.is_none_or(|name| p.name.as_str() == name));
            let switch = |p: &mut PoolConfig| Switch {
                pool: p.name.clone(),
                previous: std::mem::replace(&mut p.algorithm, to),
                current: to,
            };
            Ok(wanted.map(switch).collect())
        })
    }

    /// Adds a backend; one that is being removed comes back instead.
    pub fn add_backend(&self, pool: &str, backend: BackendConfig) -> Result<u64, ChangeError> {
        let added = self.change(|config| {
            let pool = find_pool(config, pool)?;
            match pool.backends.iter_mut().find(|b| b.address == backend.address) {
                None => pool.backends.push(backend.clone()),
                Some(leaving) if leaving.state == AdminState::Removing => leaving.clone_from(&backend),
                Some(there) => {
                    return Err(ChangeError::Exists { pool: pool.name.clone(), address: there.address.clone() });
                }
            }
            Ok(())
        });
        added.map(|(version, ())| version)
    }

    /// Changes a backend's weight, its state or both.
    pub fn change_backend(
        &self,
        pool: &str,
        address: &str,
        weight: Option<Weight>,
        state: Option<AdminState>,
    ) -> Result<u64, ChangeError> {
        let changed = self.change(|config| {
            let backend = find_backend(find_pool(config, pool)?, address)?;
            backend.weight = weight.unwrap_or(backend.weight);
            backend.state = state.unwrap_or(backend.state);
            Ok(())
        });
        changed.map(|(version, ())| version)
    }

    /// Lets a backend finish what it has in flight, after which [`Self::drop_drained`] takes it out.
    pub fn remove_backend(&self, pool: &str, address: &str) -> Result<u64, ChangeError> {
        self.change_backend(pool, address, None, Some(AdminState::Removing))
    }

    /// Takes out the backends that are to be removed and have nothing in flight. True when some are left.
    pub fn drop_drained(&self) -> bool {
        let (mut drained, mut left) = (Vec::new(), false);
        for pool in &self.snapshot().pools {
            for (member, _) in pool.plan().backends().filter(|(_, state)| *state == AdminState::Removing) {
                match member.backend.in_flight() {
                    0 => drained.push((pool.name.clone(), member.backend.address.clone())),
                    _ => left = true,
                }
            }
        }
        if !drained.is_empty() {
            let dropped = self.change(|config| {
                for (pool, address) in &drained {
                    let pool = find_pool(config, pool.as_str())?;
                    // Whoever was added again meanwhile stays.
                    pool.backends.retain(|b| b.address != *address || b.state != AdminState::Removing);
                }
                Ok(())
            });
            if let Err(e) = dropped {
                tracing::debug!("a drained backend had left already: {e}");
            }
        }
        left
    }

    /// Reads the configuration file again and takes it up, keeping runtime changes that it does not overtake. Waits
    /// for the disk; while one reload does, one more may wait for it.
    pub fn reload(&self) -> Result<Reload, ReloadError> {
        let _one_at_a_time = match self.reloading.try_lock() {
            Ok(first) => first,
            Err(TryLockError::Poisoned(first)) => first.into_inner(),
            Err(TryLockError::WouldBlock) => {
                if self.reload_waits.swap(true, Ordering::AcqRel) {
                    return Err(ReloadError::Waiting);
                }
                let second = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
                self.reload_waits.store(false, Ordering::Release);
                second
            }
        };
        let read = crate::config::toml::load(&self.path);
        let result = if read.is_ok() { "success" } else { "failure" };
        self.metrics.reloads.with_label_values(&[result]).inc();
        let new = read.map_err(ReloadError::Invalid)?;
        let (version, warnings) = self.take_up(Some(&new), |file, running| {
            let (mut wanted, mut warnings) = Changes::between(file, running).apply(&new);
            warnings.extend(keep_until_next_start(&mut wanted, running));
            Ok::<_, ReloadError>((wanted, warnings))
        })?;
        Ok(Reload { version, warnings })
    }

    /// Whether all changes so far would survive a restart, after waiting for the disk no longer than `patience`.
    pub async fn persistence(&self, patience: Duration) -> Persistence {
        self.state.persistence(patience).await
    }

    fn change<T>(&self, edit: impl Fn(&mut Config) -> Result<T, ChangeError>) -> Result<(u64, T), ChangeError> {
        self.take_up(None, |_, running| {
            let mut wanted = running.clone();
            let result = edit(&mut wanted)?;
            Ok((wanted, result))
        })
    }

    /// Puts in force what `wanted` makes of the configuration file as last read and of the configuration that runs. It
    /// may be asked several times: what takes long is made before the change is, while other changes may be made.
    /// `file` takes the place of the file as last read.
    fn take_up<T, E>(
        &self,
        file: Option<&Config>,
        wanted: impl Fn(&Config, &Config) -> Result<(Config, T), E>,
    ) -> Result<(u64, T), E> {
        /// So many changes may come between before this one makes them wait.
        const MAX_ROUNDS: usize = 4;
        let (mut rings, mut rounds) = (Rings::default(), 1);
        loop {
            let mut last_read = self.locked_file();
            let before = self.snapshot.load_full();
            let (config, result) = wanted(&last_read, &before.config)?;
            if rounds < MAX_ROUNDS && !rings.are_complete(&config, &before) {
                drop(last_read);
                rounds += 1;
                rings.make_missing(&config, &before);
                continue;
            }
            if let Some(file) = file {
                last_read.clone_from(file);
            }
            let version = self.put_in_force(&before, config, &rings);
            self.keep(&last_read);
            return Ok((version, result));
        }
    }

    fn put_in_force(&self, before: &Snapshot, config: Config, rings: &Rings) -> u64 {
        let former_plans: Vec<Arc<Plan>> = before.pools.iter().map(|pool| pool.plan()).collect();
        let after = Arc::new(Snapshot::new(config, Some(before), rings, &self.metrics, &self.state.secret));
        let version = after.version;
        self.snapshot.store(Arc::clone(&after));
        self.versions.send_replace(version);
        for (pool, former) in before.pools.iter().zip(&former_plans) {
            let plan = after.pool(&pool.name).map(|pool| pool.plan());
            if plan.as_ref().is_some_and(|plan| Arc::ptr_eq(plan, former)) {
                continue;
            }
            let stay: HashSet<_> =
                plan.iter().flat_map(|plan| plan.backends()).map(|(m, _)| Arc::as_ptr(&m.backend)).collect();
            for (member, _) in former.backends().filter(|(m, _)| !stay.contains(&Arc::as_ptr(&m.backend))) {
                member.backend.leave(Instant::now());
                self.metrics.forget_backend(pool.name.as_str(), member.backend.address.as_str());
            }
            if plan.is_none() {
                self.metrics.forget_pool(pool.name.as_str());
            }
        }
        if !Arc::ptr_eq(&before.routes, &after.routes) {
            let stay: HashSet<_> = after.routes.iter().map(|route| (&route.name, &route.pool.name)).collect();
            for route in before.routes.iter().filter(|route| !stay.contains(&(&route.name, &route.pool.name))) {
                self.metrics.forget_route(&route.name, route.pool.name.as_str());
            }
        }
        version
    }

    fn keep(&self, file: &Config) {
        self.state.keep(Changes::between(file, &self.snapshot.load().config));
    }

    fn locked_file(&self) -> std::sync::MutexGuard<'_, Config> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find_pool<'a>(config: &'a mut Config, name: &str) -> Result<&'a mut PoolConfig, ChangeError> {
    let existing = join(config.pools.iter().map(|pool| pool.name.as_str()));
    let found = config.pools.iter_mut().find(|pool| pool.name.as_str() == name);
    found.ok_or_else(|| ChangeError::NoPool { name: name.to_owned(), existing })
}

fn find_backend<'a>(pool: &'a mut PoolConfig, address: &str) -> Result<&'a mut BackendConfig, ChangeError> {
    let Some(place) = pool.backends.iter().position(|b| b.address.as_str() == address) else {
        let existing = join(pool.backends.iter().map(|b| b.address.as_str()));
        return Err(ChangeError::NoBackend { pool: pool.name.clone(), address: address.to_owned(), existing });
    };
    Ok(&mut pool.backends[place])
}

fn join<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Takes back what a reload cannot change, so that what is said to be in force is, and tells of it: at each reload, as
/// long as the file says something else than what runs.
fn keep_until_next_start(wanted: &mut Config, running: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut keep = |section: &str, differs: bool| {
        if differs {
            warnings.push(format!("{section} has changed, which takes effect at the next start"));
        }
    };
    keep("[[listener]]", restore(&mut wanted.listeners, &running.listeners));
    keep("[admin]", restore(&mut wanted.admin, &running.admin));
    keep("[state]", restore(&mut wanted.state, &running.state));
    keep("[log]", restore(&mut wanted.log, &running.log));
    keep("[access_log]", restore(&mut wanted.access_log, &running.access_log));
    let (server, runs) = (&mut wanted.server, &running.server);
    keep("[server] threads", restore(&mut server.threads, &runs.threads));
    keep("[server] max_connections", restore(&mut server.max_connections, &runs.max_connections));
    keep("[server] idle_connections", restore(&mut server.idle_connections, &runs.idle_connections));
    warnings
}

/// Whether anything was different.
fn restore<T: Clone + PartialEq>(wanted: &mut T, running: &T) -> bool {
    let differs = wanted != running;
    wanted.clone_from(running);
    differs
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;

    use super::*;
    use crate::pool::Pool;

    fn control() -> Control {
        let text = "[state]\npersist = false\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\npool = \"app\"\n\
                    [[pool]]\nname = \"app\"\nbackends = [{ address = \"a:1\" }, { address = \"b:1\" }]\n";
        let path = Path::new("/evenkeel.toml");
        let config = crate::config::toml::read(text, path).expect("valid");
        Control::new(path, config, Arc::new(Metrics::new()))
    }

    fn pool(control: &Control) -> Arc<Pool> {
        Arc::clone(&control.snapshot().pools[0])
    }

    /// Has every pool use `algorithm`; how often the change was looked at.
    fn rounds(control: &Control, algorithm: Algorithm) -> usize {
        let rounds = Cell::new(0);
        let switch = |_: &Config, running: &Config| {
            rounds.set(rounds.get() + 1);
            assert!(control.file.try_lock().is_err(), "nothing changes while a change is looked at");
            let mut wanted = running.clone();
            wanted.pools.iter_mut().for_each(|pool| pool.algorithm = algorithm);
            Ok::<_, Infallible>((wanted, ()))
        };
        let switched = control.take_up(None, switch);
        assert!(switched.is_ok());
        rounds.get()
    }

    // Other changes had to wait until a ring of millions of points was there.
    #[test]
    fn a_ring_is_made_between_two_looks_at_a_change_and_no_more_often_than_needed() {
        let control = control();
        assert_eq!(rounds(&control, Algorithm::Weighted), 1);
        assert_eq!(rounds(&control, Algorithm::IpHash), 2, "without the lock in between");
        control.change_backend("app", "a:1", None, Some(AdminState::Draining)).expect("it is there");
        assert_eq!(rounds(&control, Algorithm::Weighted), 1);
        assert_eq!(rounds(&control, Algorithm::IpHash), 1, "the ring still fits");
        control.change_backend("app", "a:1", Weight::new(2), None).expect("it is there");
        assert_eq!(rounds(&control, Algorithm::Weighted), 1);
        control.add_backend("app", BackendConfig { address: "c:1".parse().expect("valid"), ..backend() }).expect("new");
        assert_eq!(rounds(&control, Algorithm::IpHash), 2, "of other backends");
    }

    fn backend() -> BackendConfig {
        BackendConfig { address: "x:1".parse().expect("valid"), weight: Weight::ONE, state: AdminState::Active }
    }

    #[test]
    fn pools_and_routes_are_the_same_after_a_change_of_what_is_in_a_pool() {
        let control = control();
        let (routes, pool_before) = (Arc::clone(&control.snapshot().routes), pool(&control));
        control.switch_algorithm(None, Algorithm::IpHash).expect("there is a pool");
        control.change_backend("app", "a:1", Weight::new(9), None).expect("it is there");
        control.add_backend("app", backend()).expect("it is new");
        control.remove_backend("app", "x:1").expect("it is there");
        assert!(!control.drop_drained());
        assert!(Arc::ptr_eq(&routes, &control.snapshot().routes));
        assert!(Arc::ptr_eq(&pool_before, &pool(&control)));
        assert_eq!(pool_before.plan().algorithm, Algorithm::IpHash);
        assert_eq!(pool_before.plan().backends().count(), 2);
    }

    #[test]
    fn counts_end_with_the_last_snapshot_that_names_them() {
        let control = control();
        let series = || String::from_utf8(control.metrics.scrape(|_| {})).expect("text");
        let rename = |from: &'static str, to: &'static str| {
            let change = move |_: &Config, running: &Config| {
                let mut wanted = running.clone();
                let name = PoolName::new(to).expect("valid");
                wanted.pools.iter_mut().filter(|p| p.name.as_str() == from).for_each(|p| p.name = name.clone());
                wanted.routes.iter_mut().for_each(|route| route.pool = name.clone());
                Ok::<_, Infallible>((wanted, ()))
            };
            assert!(control.take_up(None, change).is_ok());
        };
        let app = pool(&control);
        app.metrics.retries.inc();
        assert!(series().contains("evenkeel_retries_total{pool=\"app\"} 1"));
        control.switch_algorithm(None, Algorithm::IpHash).expect("there is a pool");
        assert!(series().contains("evenkeel_retries_total{pool=\"app\"} 1"), "taken over");
        rename("app", "other");
        app.metrics.retries.inc();
        assert!(!series().contains("\"app\""), "{}", series());
        rename("other", "app");
        assert!(series().contains("evenkeel_retries_total{pool=\"app\"} 0"), "another pool of that name");
        assert!(!Arc::ptr_eq(&app, &pool(&control)));
    }
}
