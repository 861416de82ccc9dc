//! All changes of the snapshot: runtime changes, reloads, and their record in the state file. Changes are serialized.
//! Readers never wait, and no change waits for a disk.

mod accept;
mod effects;
pub(crate) mod kill;
pub(crate) mod resources;
mod retired;

use std::collections::HashSet;
use std::convert::Infallible;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::backend::repeats::{RepeatedFailures, SuppressedFailures};
use crate::change::{Author, Change, ChangeHistory, Edits};
use crate::clock;
use crate::config::algorithm::Algorithm;
use crate::config::backend::{AdminState, BackendAddress, Weight};
use crate::config::difference::{difference, difference_of, seconds};
use crate::config::toml::{self, Checked};
use crate::config::{BackendConfig, Config, PoolConfig, PoolName, Problem, UserAndGroup, advice};
use crate::metrics::Metrics;
use crate::pool::Plan;
use crate::site::unreachable;
use crate::snapshot::{Rings, Snapshot};
use crate::state::{OwnedElsewhere, Persistence, StateFile};
use resources::{Commit, ListenerCertificate, PreparedResources, Resources, Unavailable};
use retired::Retired;

/// Enough that two configurations do not collide.
const ETAG_HASH_BYTES: usize = 8;

/// A configuration in force and everything that is known of its backends. Shared by all who serve, probe or change.
pub struct Control {
    pub(crate) metrics: Arc<Metrics>,
    path: PathBuf,
    state: StateFile,
    snapshot: ArcSwap<Snapshot>,
    versions: watch::Sender<u64>,
    /// This process's name in `CDN-Loop` (RFC 8586).
    loop_id: String,
    /// Throttles the log of forwarding loops.
    pub(crate) loops: RepeatedFailures,
    /// And that of clients whose HTTP/2 connections are ended by their errors.
    http2_errors: RepeatedFailures,
    /// The address of the last client whose error ended an HTTP/2 connection.
    last_http2_error: Mutex<Box<str>>,
    /// And that of requests that fail by their client's fault.
    pub(crate) client_failures: RepeatedFailures,
    /// Throttles the log of connections that could not be accepted.
    accept_failures: RepeatedFailures,
    /// Part of ETags, so that those of different processes differ.
    boot_id: u32,
    change_state: Mutex<ChangeState>,
    /// Sockets, log files and limits outside of the snapshot, if there are any.
    resources: OnceLock<Weak<dyn Resources>>,
    /// Held from reading the file until it is in force, so that the last file read wins.
    reloading: Mutex<()>,
    /// Whether another reload is waiting for the current one.
    reload_waits: AtomicBool,
    threads: kill::Threads,
    retired: Mutex<Retired>,
}

/// The state that a change reads and updates under a lock.
#[derive(Debug)]
struct ChangeState {
    /// The configuration file as it was last read.
    file: Config,
    history: ChangeHistory,
}

/// A change that is ready to be put in force.
struct PreparedChange<T> {
    /// `None` if nothing changes.
    config: Option<Config>,
    /// `None` if the change is not recorded.
    record: Option<ChangeRecord>,
    result: T,
}

/// The result of a change.
struct AppliedChange<T> {
    /// The snapshot in force now.
    snapshot: Arc<Snapshot>,
    /// The record, if it was recorded.
    change: Option<Arc<Change>>,
    result: T,
}

/// The record of a change, before it has a number.
struct ChangeRecord {
    author: Author,
    edits: Edits,
    reloaded: Option<Vec<String>>,
    undoes: Option<u64>,
}

/// A change that is requested through the admin API.
#[derive(Debug, Clone)]
pub enum ChangeRequest {
    /// Set the algorithm of one pool, or of all.
    Algorithm {
        /// `None`: all pools.
        pool: Option<String>,
        /// The new algorithm.
        to: Algorithm,
    },
    /// Add a backend. One that is being removed is restored.
    AddBackend {
        /// Name of the pool.
        pool: String,
        /// The new backend.
        backend: BackendConfig,
    },
    /// Change weight or state of a backend.
    ChangeBackend {
        /// Name of the pool.
        pool: String,
        /// Address of the backend.
        backend: String,
        /// `None`: as it is.
        weight: Option<Weight>,
        /// `None`: as it is.
        state: Option<AdminState>,
    },
    /// Drain a backend, which [`Control::drop_drained`] then removes.
    RemoveBackend {
        /// Name of the pool.
        pool: String,
        /// Address of the backend.
        backend: String,
    },
    /// Undo a change, if all of it is still in force.
    Undo(u64),
    /// Go back to the configuration file, in one pool or in all.
    Reset {
        /// `None`: all pools.
        pool: Option<String>,
    },
}

/// Options of a change.
#[derive(Debug, Clone)]
pub struct ChangeOptions {
    /// Who makes the change.
    pub author: Author,
    /// `If-Match`: one of these ETags must be that of the configuration in force.
    pub if_match: Option<Vec<String>>,
    /// Only report what would happen.
    pub dry_run: bool,
    /// Make the change even if no backend would be left to take traffic.
    pub force: bool,
    /// After how long the remaining exchanges of a backend that is taken out are killed. The caller does that.
    pub deadline: Option<Duration>,
}

/// The effect of a change, or of a dry run.
#[derive(Debug, Clone)]
pub struct ChangeOutcome {
    /// The version of the snapshot in force afterwards.
    pub version: u64,
    /// The ETag of the configuration in force afterwards.
    pub etag: String,
    /// `None` if nothing was changed: it was so already, or it is a dry run.
    pub change: Option<Arc<Change>>,
    /// The settings that differ afterwards.
    pub edits: Edits,
    /// What the change means for exchanges, clients and backends.
    pub effects: Vec<String>,
    /// Requested effects that do not happen.
    pub warnings: Vec<String>,
}

/// Why a change was refused. It then has no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// There is no such pool.
    #[error("there is no pool \"{name}\"; the pools are {existing}")]
    NoPool {
        /// The name that was given.
        name: String,
        /// The pools that there are.
        existing: String,
    },
    /// The pool has no such backend.
    #[error("pool \"{pool}\" has no backend {address}; its backends are {existing}")]
    NoBackend {
        /// The pool.
        pool: PoolName,
        /// The address that was given.
        address: String,
        /// The backends that it has.
        existing: String,
    },
    /// The backend to add is part of its pool already.
    #[error("pool \"{pool}\" has backend {address} already; change it with PATCH")]
    Exists {
        /// The pool.
        pool: PoolName,
        /// The backend.
        address: BackendAddress,
    },
    /// A backend that is being removed is to be drained or taken down.
    #[error(
        "backend {address} is being removed from pool \"{pool}\" already, and takes nothing new: DELETE it with \
         ?deadline=… (`evenkeel backend remove --deadline …`) or kill it to end what is open; add it again to keep it"
    )]
    Removing {
        /// The pool.
        pool: PoolName,
        /// The backend.
        address: BackendAddress,
    },
    /// There is no such change to undo.
    #[error("there is no change {id}; GET /admin/changes lists those of this process")]
    NoChange {
        /// The number that was given.
        id: u64,
    },
    /// A reload cannot be undone.
    #[error("change {id} is a reload: put the former file back and reload")]
    Reload {
        /// Its number.
        id: u64,
    },
    /// What a change made has been changed again.
    #[error("change {id} cannot be undone, since what it made is not in force any more: {conflicts}")]
    Superseded {
        /// Its number.
        id: u64,
        /// What is in force in its place.
        conflicts: String,
    },
    /// The change would leave a pool without a backend that takes traffic.
    #[error("no usable backend would be left in pool \"{pool}\": {would}; repeat it with ?force=true to do it")]
    NoActiveBackend {
        /// The pool.
        pool: PoolName,
        /// What would be left.
        would: String,
    },
    /// The configuration in force has another ETag than those of [`ChangeOptions::if_match`].
    #[error("the configuration in force is another one than that of If-Match: read it again")]
    NoMatch,
}

/// The result of a reload.
#[derive(Debug)]
pub struct ReloadOutcome {
    /// The version of the snapshot in force afterwards.
    pub version: u64,
    /// The ETag of the configuration in force afterwards.
    pub etag: String,
    /// Descriptions of the changes.
    pub changes: Vec<String>,
    /// Runtime changes that differ from the file.
    pub drift: Edits,
    /// What of the file cannot work, or does not take effect.
    pub warnings: Vec<String>,
}

/// Why nothing was reloaded.
#[derive(Debug)]
pub enum ReloadError {
    /// Problems of the file, each with the file's name.
    Invalid(Vec<String>),
    /// One reload is running and another one is waiting, which will read the file as it is now.
    Waiting,
}

/// Reads the configuration file at `path`. The warnings include routes that no request can reach.
pub fn load(path: &Path) -> Result<Checked, Vec<Problem>> {
    let mut checked = toml::load(path)?;
    unreachable::tell(&mut checked);
    Ok(checked)
}

const SUPERSEDED: &str = "a change made at run time is dropped, since the file has changed";

impl Control {
    /// Starts with `config`, read from the file at `path`, and the runtime changes in the state file. That file is
    /// written from [`Self::own_state`] on.
    pub fn new(path: &Path, config: Config, metrics: Arc<Metrics>) -> Self {
        let (state, kept) = StateFile::open(config.state.file.clone());
        let (in_force, overtaken) = kept.restore(&config);
        for conflict in overtaken {
            tracing::warn!("{SUPERSEDED}: {}", conflict.with_file());
        }
        let drift = Edits::between(&config, &in_force);
        for edit in drift.iter() {
            tracing::warn!("in force and not in the configuration file: {edit}");
        }
        if !drift.is_empty() {
            tracing::warn!("`evenkeel reset` goes back to the file, `evenkeel config --diff` shows what differs");
        }
        metrics.count_each_status(in_force.metrics.exact_status);
        let snapshot = Snapshot::new(in_force, None, &Rings::default(), &metrics, &state.secret);
        Self {
            metrics,
            path: path.to_owned(),
            versions: watch::Sender::new(snapshot.version),
            snapshot: ArcSwap::from_pointee(snapshot),
            state,
            boot_id: rand::random(),
            loop_id: format!("evenkeel-{:016x}", rand::random::<u64>()),
            loops: RepeatedFailures::default(),
            http2_errors: RepeatedFailures::default(),
            last_http2_error: Mutex::default(),
            client_failures: RepeatedFailures::default(),
            accept_failures: RepeatedFailures::default(),
            change_state: Mutex::new(ChangeState { file: config, history: ChangeHistory::default() }),
            resources: OnceLock::new(),
            reloading: Mutex::new(()),
            reload_waits: AtomicBool::new(false),
            threads: kill::Threads::default(),
            retired: Mutex::default(),
        }
    }

    /// From now on this process, and no other, persists runtime changes. Those that the process before it has made
    /// since [`Self::new`] are put in force. While another process owns the state file, this fails without an effect.
    pub(crate) fn own_state(&self) -> Result<(), OwnedElsewhere> {
        if let Some(kept) = self.state.own()? {
            let author = Author { by: "upgrade", from: None };
            let taken_over = self.take_up(None, |change_state, before| {
                let (restored, _) = kept.restore(&change_state.file);
                let edits = Edits::between(&before.config, &restored);
                let mut wanted = before.config.clone();
                // Made for this configuration, so none can conflict.
                edits.apply(&mut wanted);
                let config = (!edits.is_empty()).then_some(wanted);
                let record = ChangeRecord { author: author.clone(), edits, reloaded: None, undoes: None };
                Ok::<_, Infallible>(PreparedChange { config, record: Some(record), result: () })
            });
            let Ok(_) = taken_over;
        }
        // At the first start this writes the secret that signs sticky cookies. It also detects early that the file
        // cannot be written.
        self.keep(&self.change_state().file);
        Ok(())
    }

    /// Leaves the state file to the process that replaces this one. Waits until the changes so far are written, for at
    /// most `patience`; later ones are not.
    pub(crate) async fn release_state(&self, patience: Duration) -> Persistence {
        self.state.release(patience).await
    }

    /// Sets the resources outside of the snapshot, which reloads prepare and release.
    pub(crate) fn reload_with(&self, resources: &Arc<dyn Resources>) {
        // Only the first call has an effect.
        let _ = self.resources.set(Arc::downgrade(resources));
    }

    /// Reopens the files of the access logs before their next lines, after they were moved away for rotation.
    pub fn reopen_logs(&self) {
        if let Some(resources) = self.resources.get().and_then(Weak::upgrade) {
            resources.reopen_logs();
        }
    }

    /// Whether clients are accepted at each address, as far as this process accepts them itself.
    pub(crate) fn is_accepting(&self) -> bool {
        self.resources.get().and_then(Weak::upgrade).is_none_or(|resources| resources.is_accepting())
    }

    /// The certificates in use.
    pub(crate) fn certificates(&self) -> Vec<ListenerCertificate> {
        self.resources.get().and_then(Weak::upgrade).map_or(Vec::new(), |resources| resources.certificates())
    }

    /// The snapshot in force.
    pub(crate) fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// A unique token that names this process in forwarded requests (`CDN-Loop`).
    pub(crate) fn loop_id(&self) -> &str {
        &self.loop_id
    }

    /// Notes that an error of `client` has ended an HTTP/2 connection. Returns whether it is to be logged individually.
    pub(crate) fn note_http2_error(&self, client: &str, why: &'static str, now: Instant) -> bool {
        *self.last_http2_error.lock().unwrap_or_else(PoisonError::into_inner) = client.into();
        self.http2_errors.note(why, now)
    }

    /// Logs the counts of what is throttled: forwarding loops, errors of HTTP/2 clients, requests that fail by their
    /// client's fault, failures to accept.
    pub(crate) fn catch_up(&self, now: Instant) {
        self.log_suppressed_accept_failures(now);
        for SuppressedFailures { word, count, within } in self.http2_errors.take(now) {
            let last_client = self.last_http2_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
            tracing::warn!(
                last_client = %last_client,
                "… and {count} more HTTP/2 connections were ended by errors of their clients in {} s: {word}",
                within.as_secs()
            );
        }
        for SuppressedFailures { word, count, within } in self.client_failures.take(now) {
            tracing::warn!(
                more = count,
                "… and {count} more requests in {} s failed by their clients' fault: {word}",
                within.as_secs()
            );
        }
        for SuppressedFailures { count, within, .. } in self.loops.take(now) {
            tracing::warn!(more = count, "… and {count} more requests came back in {} s", within.as_secs());
        }
    }

    /// Notifies of each new snapshot.
    pub(crate) fn versions(&self) -> watch::Receiver<u64> {
        self.versions.subscribe()
    }

    /// Makes a change, or reports what it would do. A change without effect makes no version and no record.
    pub fn make(&self, request: &ChangeRequest, options: &ChangeOptions) -> Result<ChangeOutcome, ChangeError> {
        let AppliedChange { snapshot, change, result: mut outcome } = self.take_up(None, |change_state, before| {
            if let Some(wanted) = &options.if_match
                && !wanted.iter().any(|tag| tag == "*")
                && !wanted.contains(&self.etag(&before.config))
            {
                return Err(ChangeError::NoMatch);
            }
            let mut wanted = before.config.clone();
            change_state.edit(&mut wanted, request)?;
            let (edits, now) = (Edits::between(&before.config, &wanted), clock::now());
            let mut effects = effects::of(&edits, before, &wanted, options.deadline, now);
            if !options.force
                && let Some((pool, would)) = effects::leaves_no_active_backend(&edits, before, &wanted, now)
            {
                let refused = ChangeError::NoActiveBackend { pool, would };
                if !options.dry_run {
                    return Err(refused);
                }
                effects.push(format!("it would be refused: {refused}"));
            }
            if let Some(deadline) = options.deadline {
                effects.push(format!("what is still open after {} is killed", seconds(deadline.as_secs_f64())));
            }
            let is_made = !options.dry_run && !edits.is_empty();
            let undoes = if let ChangeRequest::Undo(id) = request { Some(*id) } else { None };
            let outcome = ChangeOutcome {
                version: before.version,
                etag: String::new(),
                change: None,
                effects,
                warnings: effects::ignored(request, &edits, &wanted),
                edits: edits.clone(),
            };
            let record = ChangeRecord { author: options.author.clone(), edits, reloaded: None, undoes };
            Ok(PreparedChange { config: is_made.then_some(wanted), record: Some(record), result: outcome })
        })?;
        // Computed after the lock is released.
        outcome.etag = self.etag(&snapshot.config);
        (outcome.version, outcome.change) = (snapshot.version, change);
        Ok(outcome)
    }

    /// The recent changes of this process, the newest first.
    pub fn changes(&self) -> Vec<Arc<Change>> {
        self.change_state().history.newest_first()
    }

    /// The differences between what is in force and the configuration file as it was last read.
    pub fn drift(&self) -> Edits {
        let change_state = self.change_state();
        Edits::between(&change_state.file, &self.snapshot.load().config)
    }

    /// Settings that take effect only at a start, where the configuration file as it was last read differs from what
    /// runs. Each with both values.
    pub fn awaiting_restart(&self) -> Vec<String> {
        let change_state = self.change_state();
        awaiting_restart(&change_state.file, &self.snapshot.load().config)
    }

    /// Path of the configuration file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The ETag of a configuration (RFC 9110 §8.8.3). It differs after each change and each start.
    pub fn etag(&self, config: &Config) -> String {
        let text = serde_json::to_vec(config).unwrap_or_default();
        let hash = Sha256::digest(&text);
        let mut etag = format!("\"{:08x}-", self.boot_id);
        for byte in &hash[..ETAG_HASH_BYTES] {
            // Writing to a string does not fail.
            let _ = write!(etag, "{byte:02x}");
        }
        etag.push('"');
        etag
    }

    /// Drops the backends in state *removing* and the leaving pools that have no exchange in flight. Returns true if
    /// some are left.
    pub(crate) fn drop_drained(&self) -> bool {
        let (mut drained, mut left) = (Vec::new(), false);
        let snapshot = Arc::clone(&self.snapshot());
        let gone = snapshot.leaving.iter().filter(|pool| pool.plan().in_flight() == 0).count();
        left |= gone < snapshot.leaving.len();
        for pool in &snapshot.pools {
            for (member, _) in pool.plan().backends().filter(|(_, state)| *state == AdminState::Removing) {
                match member.backend.in_flight() {
                    0 => drained.push((pool.name.clone(), member.backend.address.clone())),
                    _ => left = true,
                }
            }
        }
        if !drained.is_empty() || gone > 0 {
            // Pools without exchanges leave with the next snapshot, whatever it changes.
            let dropped = self.take_up(None, |_, before| {
                let mut wanted = before.config.clone();
                for pool in &mut wanted.pools {
                    let is_drained =
                        |b: &BackendConfig| drained.iter().any(|(p, a)| *p == pool.name && *a == b.address);
                    // A backend that was added again meanwhile stays.
                    pool.backends.retain(|b| b.state != AdminState::Removing || !is_drained(b));
                }
                Ok::<_, Infallible>(PreparedChange { config: Some(wanted), record: None, result: () })
            });
            let Ok(_) = dropped;
        }
        left
    }

    /// Reloads the configuration file. Runtime changes are kept unless the file has changed in the same place. If the
    /// file is invalid or a resource cannot be had, nothing changes. Blocks on the disk. While one reload runs, one
    /// more may wait. `dry_run`: only reports what would happen.
    pub fn reload(&self, author: Author, dry_run: bool) -> Result<ReloadOutcome, ReloadError> {
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
        let read = load(&self.path).and_then(|checked| {
            let obtained = self.obtain(&checked, dry_run)?;
            Ok((checked, obtained))
        });
        if !dry_run {
            let result = if read.is_ok() { "success" } else { "failure" };
            self.metrics.reloads.with_label_values(&[result]).inc();
        }
        let (
            Checked { config: new, warnings: found, .. },
            PreparedResources { changes: others, warnings: lacking, commit },
        ) = read.map_err(|problems| {
            ReloadError::Invalid(problems.iter().map(|problem| problem.in_file(&self.path)).collect())
        })?;
        let prepare = |change_state: &ChangeState, before: &Snapshot| {
            let (mut wanted, overtaken) = Edits::between(&change_state.file, &before.config).restore(&new);
            let mut warnings: Vec<_> = found.iter().map(|warning| warning.problem.in_file(&self.path)).collect();
            warnings.extend(overtaken.iter().map(|conflict| format!("{SUPERSEDED}: {}", conflict.with_file())));
            warnings.extend(lacking.iter().cloned());
            warnings.extend(keep_until_next_start(&mut wanted, &before.config));
            // Warnings about the file itself have been added already, with their lines.
            let is_told = |pool: &PoolConfig| {
                new.pools.iter().any(|p| p.name == pool.name && advice::no_active_backend(&new, p).is_some())
            };
            warnings.extend(
                wanted.pools.iter().filter(|p| !is_told(p)).filter_map(|p| advice::no_active_backend(&wanted, p)),
            );
            let drift = Edits::between(&new, &wanted);
            warnings.extend(drift.iter().map(|edit| format!("in force and not in the file: {edit}")));
            let mut changes = difference(&without_removed(&before.config), &wanted);
            changes.extend(keep_removed(&mut wanted, before));
            changes.extend(others.iter().cloned());
            let edits = Edits::between(&before.config, &wanted);
            let record = ChangeRecord { author: author.clone(), edits, reloaded: Some(changes.clone()), undoes: None };
            let result = ReloadOutcome { version: before.version, etag: String::new(), changes, drift, warnings };
            Ok::<_, ReloadError>(PreparedChange { config: (!dry_run).then_some(wanted), record: Some(record), result })
        };
        let AppliedChange { snapshot, result: mut reload, .. } = self.take_up_with(Some(&new), commit, prepare)?;
        (reload.version, reload.etag) = (snapshot.version, self.etag(&snapshot.config));
        Ok(reload)
    }

    /// Prepares the resources outside of the snapshot.
    fn obtain(&self, checked: &Checked, is_trial: bool) -> Result<PreparedResources, Vec<Problem>> {
        let Some(resources) = self.resources.get().and_then(Weak::upgrade) else {
            return Ok(PreparedResources { changes: Vec::new(), warnings: Vec::new(), commit: no_more() });
        };
        resources.prepare(&self.snapshot().config, &checked.config, is_trial).map_err(|unavailable| {
            let problem = |Unavailable { subject, message }| checked.problem(subject, message);
            unavailable.into_iter().map(problem).collect()
        })
    }

    /// As [`Self::reload`], and logs the result.
    pub(crate) fn reload_and_log(&self, author: Author) -> Result<ReloadOutcome, ReloadError> {
        let reloaded = self.reload(author, false);
        match &reloaded {
            Ok(reload) => {
                for warning in &reload.warnings {
                    tracing::warn!("{warning}");
                }
            }
            Err(ReloadError::Invalid(problems)) => {
                tracing::error!("the configuration is not reloaded: the old one stays in force");
                for problem in problems {
                    tracing::error!("{problem}");
                }
            }
            Err(ReloadError::Waiting) => {
                tracing::warn!("a reload waits already, which will read the file as it is now");
            }
        }
        reloaded
    }

    /// Whether all changes so far would survive a restart. Waits for the disk for at most `patience`.
    pub(crate) async fn persistence(&self, patience: Duration) -> Persistence {
        self.state.persistence(patience).await
    }

    /// Puts in force what `prepare` makes of the file as last read and the current snapshot. `prepare` may be called
    /// several times: expensive parts are built without the lock, and other changes may come in between. `file`
    /// replaces the file as last read.
    fn take_up<T, E>(
        &self,
        file: Option<&Config>,
        prepare: impl Fn(&ChangeState, &Snapshot) -> Result<PreparedChange<T>, E>,
    ) -> Result<AppliedChange<T>, E> {
        self.take_up_with(file, no_more(), prepare)
    }

    /// As [`Self::take_up`], and commits resources outside of the snapshot.
    fn take_up_with<T, E>(
        &self,
        file: Option<&Config>,
        commit: Commit,
        prepare: impl Fn(&ChangeState, &Snapshot) -> Result<PreparedChange<T>, E>,
    ) -> Result<AppliedChange<T>, E> {
        /// After this many rounds the lock is kept, and other changes wait.
        const MAX_ROUNDS: usize = 4;
        let (mut rings, mut rounds) = (Rings::default(), 1);
        loop {
            let mut change_state = self.change_state();
            let before = self.snapshot.load_full();
            let PreparedChange { config, record, result } = prepare(&change_state, &before)?;
            let Some(config) = config else { return Ok(AppliedChange { snapshot: before, change: None, result }) };
            if rounds < MAX_ROUNDS && !rings.are_complete(&config, &before) {
                drop(change_state);
                rounds += 1;
                rings.make_missing(&config, &before);
                continue;
            }
            if let Some(file) = file {
                change_state.file.clone_from(file);
            }
            let snapshot = self.put_in_force(&before, config, &rings, commit);
            self.keep(&change_state.file);
            let change = record.map(|record| change_state.write_down(snapshot.version, record));
            return Ok(AppliedChange { snapshot, change, result });
        }
    }

    fn put_in_force(&self, before: &Snapshot, mut config: Config, rings: &Rings, commit: Commit) -> Arc<Snapshot> {
        // Tunnels keep the tables of their beginning, which may be large.
        let tables = &before.config.values;
        if !Arc::ptr_eq(tables, &config.values) && *tables == config.values {
            config.values = Arc::clone(tables);
        }
        self.metrics.count_each_status(config.metrics.exact_status);
        let former_plans: Vec<Arc<Plan>> = before.all_pools().map(|pool| pool.plan()).collect();
        let after = Arc::new(Snapshot::new(config, Some(before), rings, &self.metrics, &self.state.secret));
        let mut replaced = None;
        commit(&mut || replaced = Some(self.snapshot.swap(Arc::clone(&after))));
        let before = replaced.unwrap_or_else(|| self.snapshot.swap(Arc::clone(&after)));
        self.versions.send_replace(after.version);
        let now = clock::now();
        for (pool, former) in before.all_pools().zip(&former_plans) {
            let plan = after.all_pools().find(|after| after.name == pool.name).map(|pool| pool.plan());
            if plan.as_ref().is_some_and(|plan| Arc::ptr_eq(plan, former)) {
                continue;
            }
            let stay: HashSet<_> =
                plan.iter().flat_map(|plan| plan.backends()).map(|(m, _)| Arc::as_ptr(&m.backend)).collect();
            for (member, _) in former.backends().filter(|(m, _)| !stay.contains(&Arc::as_ptr(&m.backend))) {
                member.backend.leave(now);
                pool.log_last_failures_of(&member.backend, now);
                self.metrics.forget_backend(pool.name.as_str(), member.backend.address.as_str());
            }
            if plan.is_none() {
                pool.log_last_failures(now);
                self.metrics.forget_pool(pool.name.as_str(), &pool.metrics);
            }
        }
        if !Arc::ptr_eq(&before.sites, &after.sites) {
            let stay: HashSet<_> = after.sites.iter().flat_map(|site| site.series()).collect();
            for (route, pool) in before.sites.iter().flat_map(|site| site.series()).filter(|one| !stay.contains(one)) {
                self.metrics.forget_route(route, pool);
            }
        }
        self.retire(before, &former_plans, &after);
        after
    }

    /// Keeps what `after` no longer has until no exchange uses it, so that no exchange has to drop it.
    fn retire(&self, before: Arc<Snapshot>, former_plans: &[Arc<Plan>], after: &Snapshot) {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        let stay: HashSet<_> = after.sites.iter().map(Arc::as_ptr).collect();
        let sites: Vec<_> =
            before.sites.iter().filter(|site| !stay.contains(&Arc::as_ptr(site))).map(Arc::clone).collect();
        let tables = Arc::clone(&before.config.values);
        retired.push(before);
        if !Arc::ptr_eq(&tables, &after.config.values) {
            retired.push(tables);
        }
        sites.into_iter().for_each(|site| retired.push(site));
        let stay: HashSet<_> = after.all_pools().map(|pool| Arc::as_ptr(&pool.plan())).collect();
        for plan in former_plans.iter().filter(|plan| !stay.contains(&Arc::as_ptr(plan))) {
            retired.push(Arc::clone(plan) as _);
        }
        retired.drop_unused();
    }

    /// Drops retired objects that are no longer in use. Returns true if some still are.
    pub(crate) fn drop_retired(&self) -> bool {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.drop_unused();
        !retired.is_empty()
    }

    fn keep(&self, file: &Config) {
        self.state.keep(Edits::between(file, &self.snapshot.load().config));
    }

    fn change_state(&self) -> MutexGuard<'_, ChangeState> {
        self.change_state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A commit without resources outside of the snapshot.
fn no_more() -> Commit {
    Box::new(|put_in_force| put_in_force())
}

impl ChangeState {
    /// Applies `request` to `config`, which is in force.
    fn edit(&self, config: &mut Config, request: &ChangeRequest) -> Result<(), ChangeError> {
        match request {
            ChangeRequest::Algorithm { pool: Some(pool), to } => find_pool(config, pool)?.algorithm = *to,
            ChangeRequest::Algorithm { pool: None, to } => {
                config.pools.iter_mut().for_each(|pool| pool.algorithm = *to)
            }
            ChangeRequest::AddBackend { pool, backend } => {
                let pool = find_pool(config, pool)?;
                let address = backend.address.canonical();
                match pool.backends.iter_mut().find(|b| b.address.canonical() == address) {
                    None => pool.backends.push(backend.clone()),
                    Some(leaving) if leaving.state == AdminState::Removing && leaving.address == backend.address => {
                        *leaving = backend.clone();
                    }
                    Some(taken) => {
                        return Err(ChangeError::Exists { pool: pool.name.clone(), address: taken.address.clone() });
                    }
                }
            }
            ChangeRequest::ChangeBackend { pool, backend, weight, state } => {
                let pool = find_pool(config, pool)?;
                let name = pool.name.clone();
                let backend = find_backend(pool, backend)?;
                if backend.state == AdminState::Removing && state.is_some_and(|state| state != AdminState::Active) {
                    return Err(ChangeError::Removing { pool: name, address: backend.address.clone() });
                }
                backend.weight = weight.unwrap_or(backend.weight);
                backend.state = state.unwrap_or(backend.state);
            }
            ChangeRequest::RemoveBackend { pool, backend } => {
                find_backend(find_pool(config, pool)?, backend)?.state = AdminState::Removing;
            }
            ChangeRequest::Undo(id) => self.undo(config, *id)?,
            ChangeRequest::Reset { pool } => {
                if let Some(pool) = pool {
                    find_pool(config, pool)?;
                }
                let drift = Edits::between(&self.file, config);
                let drift = match pool {
                    Some(pool) => drift.of_pool(pool),
                    None => drift,
                };
                // The inverted edits start from what is in force, so they cannot conflict.
                drift.inverted().apply(config);
            }
        }
        Ok(())
    }

    fn undo(&self, config: &mut Config, id: u64) -> Result<(), ChangeError> {
        let change = self.history.find(id).ok_or(ChangeError::NoChange { id })?;
        if change.reloaded.is_some() {
            return Err(ChangeError::Reload { id });
        }
        let conflicts = change.edits.inverted().apply(config);
        if !conflicts.is_empty() {
            let conflicts: Vec<_> = conflicts.iter().map(ToString::to_string).collect();
            return Err(ChangeError::Superseded { id, conflicts: conflicts.join("; ") });
        }
        Ok(())
    }

    /// Records a change in the history and the log.
    fn write_down(&mut self, version: u64, record: ChangeRecord) -> Arc<Change> {
        let ChangeRecord { author, edits, reloaded, undoes } = record;
        let id = self.history.next_id();
        let message = match &reloaded {
            Some(changes) if changes.is_empty() => "reloaded, nothing has changed".to_owned(),
            Some(changes) => format!("reloaded: {}", changes.join("; ")),
            None => edits.to_string(),
        };
        tracing::info!(change = id, version, by = %author, "{message}");
        self.history.push(Change { id, at: Timestamp::now(), author, version, edits, reloaded, undoes })
    }
}

fn find_pool<'a>(config: &'a mut Config, name: &str) -> Result<&'a mut PoolConfig, ChangeError> {
    let existing = join(config.pools.iter().map(|pool| pool.name.as_str()));
    let found = config.pools.iter_mut().find(|pool| pool.name.as_str() == name);
    found.ok_or_else(|| ChangeError::NoPool { name: name.to_owned(), existing })
}

fn find_backend<'a>(pool: &'a mut PoolConfig, address: &str) -> Result<&'a mut BackendConfig, ChangeError> {
    let Some(index) = pool.backends.iter().position(|b| b.address.as_str() == address) else {
        let existing = join(pool.backends.iter().map(|b| b.address.as_str()));
        return Err(ChangeError::NoBackend { pool: pool.name.clone(), address: address.to_owned(), existing });
    };
    Ok(&mut pool.backends[index])
}

fn join<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// The configuration without backends that are being removed.
fn without_removed(config: &Config) -> Config {
    let mut config = config.clone();
    for pool in &mut config.pools {
        pool.backends.retain(|backend| backend.state != AdminState::Removing);
    }
    config
}

/// Keeps the backends that `wanted` no longer has as *removing* while exchanges are in flight on them. Returns a
/// sentence for each backend and each pool that was not being removed before.
fn keep_removed(wanted: &mut Config, running: &Snapshot) -> Vec<String> {
    let mut sentences = Vec::new();
    for (index, pool) in running.all_pools().enumerate() {
        let (plan, is_leaving) = (pool.plan(), index >= running.pools.len());
        let Some(wanted) = wanted.pools.iter_mut().find(|wanted| wanted.name == pool.name) else {
            if plan.in_flight() > 0 && !is_leaving {
                sentences.push(format!("pool {}: {}", pool.name, effects::finishing(plan.in_flight())));
            }
            continue;
        };
        let stay: HashSet<_> = wanted.backends.iter().map(|backend| &backend.address).collect();
        let mut removed = Vec::new();
        for (member, state) in plan.backends() {
            let (address, in_flight) = (&member.backend.address, member.backend.in_flight());
            if in_flight == 0 || stay.contains(address) {
                continue;
            }
            removed.push(BackendConfig {
                address: address.clone(),
                weight: member.weight,
                state: AdminState::Removing,
                max_connections: member.backend.max_connections(),
            });
            if state != AdminState::Removing && !is_leaving {
                sentences.push(format!("pool {}: backend {address}: {}", pool.name, effects::finishing(in_flight)));
            }
        }
        wanted.backends.extend(removed);
    }
    sentences
}

/// Resets the settings that a reload cannot change to the running values, so that the snapshot is what is really in
/// force. Returns a warning for each, at every reload for as long as the file differs.
fn keep_until_next_start(wanted: &mut Config, running: &Config) -> Vec<String> {
    let waiting = awaiting_restart(wanted, running);
    wanted.admin.clone_from(&running.admin);
    wanted.state.clone_from(&running.state);
    wanted.log.clone_from(&running.log);
    wanted.server.threads = running.server.threads;
    wanted.server.user.clone_from(&running.server.user);
    waiting.into_iter().map(|setting| format!("{setting}, which takes effect at the next start")).collect()
}

/// Settings that take effect only at a start, where the file differs from what runs.
fn awaiting_restart(file: &Config, running: &Config) -> Vec<String> {
    let mut differences = difference_of("admin", &running.admin, &file.admin);
    // Tokens are not shown.
    let tokens = |config: &Config| [config.admin.token.clone(), config.admin.read_token.clone()];
    if differences.is_empty() && tokens(file) != tokens(running) {
        differences.push("[admin] another token in the same file".to_owned());
    }
    differences.extend(difference_of("state", &running.state, &file.state));
    differences.extend(difference_of("log", &running.log, &file.log));
    if file.server.threads != running.server.threads {
        differences.push(format!("[server] threads {} instead of {}", file.server.threads, running.server.threads));
    }
    if file.server.user != running.server.user {
        let shown = |user: &Option<UserAndGroup>| user.as_ref().map_or("none".to_owned(), ToString::to_string);
        let (file, running) = (shown(&file.server.user), shown(&running.server.user));
        differences.push(format!("[server] user {file} instead of {running}"));
    }
    differences
}

#[cfg(test)]
mod tests;
