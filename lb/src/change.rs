//! A runtime change as a value: who made it, when, and each setting with its old and new value. Responses of the API,
//! the command line, dry runs, the history, undo, the state file, and the drift from the configuration file are all
//! expressed in these types.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

use crate::config::algorithm::Algorithm;
use crate::config::backend::{AdminState, BackendAddress, Weight};
use crate::config::{BackendConfig, Config, PoolConfig, PoolName};

/// A change that was made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Counts the changes of this process from 1.
    pub id: u64,
    /// When it was put in force.
    #[serde(serialize_with = "rfc_3339")]
    pub at: Timestamp,
    /// Who made it.
    #[serde(flatten)]
    pub author: Author,
    /// The version of the snapshot that it produced.
    pub version: u64,
    /// What it changed.
    pub edits: Edits,
    /// All changes by a reload, as text; `None`: it was not a reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reloaded: Option<Vec<String>>,
    /// The id of the change that this one undoes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undoes: Option<u64>,
}

/// The author of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Author {
    /// `admin` for the admin token, `local` if no token is configured, the name of a signal, or `upgrade` for changes
    /// that the process before this one has made.
    pub by: &'static str,
    /// The client of the admin API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<SocketAddr>,
}

/// Settings that differ between two configurations.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Edits(Vec<Edit>);

/// One setting that can be changed at run time, with its old and new value.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "setting", rename_all = "lowercase")]
pub enum Edit {
    /// The algorithm of a pool.
    Algorithm {
        /// Whose algorithm.
        pool: PoolName,
        /// What it was.
        before: Algorithm,
        /// What it is.
        after: Algorithm,
    },
    /// A backend of a pool.
    Backend {
        /// Whose backend.
        pool: PoolName,
        /// Which one.
        backend: BackendAddress,
        /// `None`: it is added.
        before: Option<BackendSettings>,
        /// `None`: it is removed.
        after: Option<BackendSettings>,
    },
}

/// The settings of a backend in a pool.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BackendSettings {
    /// Its share of the traffic.
    pub weight: Weight,
    /// What the operator wants of it.
    pub state: AdminState,
    /// `None`: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<NonZero<u32>>,
}

/// An edit that was not applied, because the configuration does not have the old value.
#[derive(Debug, Clone, PartialEq)]
pub struct EditConflict {
    /// The part of the edit that was not made.
    pub edit: Edit,
    /// What the configuration has instead.
    pub instead: String,
}

/// The recent changes, newest last.
#[derive(Debug, Default)]
pub struct ChangeHistory {
    last_id: u64,
    changes: VecDeque<Arc<Change>>,
}

impl Edits {
    /// The runtime-changeable differences in pools that both configurations have. A backend that is being removed
    /// counts as not in its pool.
    pub fn between(before: &Config, after: &Config) -> Self {
        let same = |pool: &PoolConfig| after.pools.iter().find(|other| other.name == pool.name);
        let pools = before.pools.iter().filter_map(|pool| Some((pool, same(pool)?)));
        Self(pools.flat_map(|(before, after)| edits_of(before, after)).collect())
    }

    /// Applies the edits whose old value `config` has, and returns the others. An edit whose new value is in force
    /// already counts as applied. Weight, state and limit of a backend are compared separately: if one conflicts, the
    /// others are set.
    pub fn apply(&self, config: &mut Config) -> Vec<EditConflict> {
        self.0.iter().filter_map(|edit| edit.apply(config).err()).collect()
    }

    /// The configuration of a file with these edits applied. Removed backends stay removed even if the file has changed
    /// their weight or state. Returns the edits that conflict with the file.
    pub fn restore(&self, file: &Config) -> (Config, Vec<EditConflict>) {
        let mut config = file.clone();
        let overtaken = self.0.iter().filter_map(|edit| edit.begun_by(file).apply(&mut config).err()).collect();
        for pool in &mut config.pools {
            pool.backends.retain(|backend| backend.state != AdminState::Removing);
        }
        (config, overtaken)
    }

    /// The edits that undo these.
    pub fn inverted(&self) -> Self {
        Self(self.0.iter().rev().map(Edit::inverted).collect())
    }

    /// Those of one pool.
    pub fn of_pool(self, name: &str) -> Self {
        Self(self.0.into_iter().filter(|edit| edit.pool().as_str() == name).collect())
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of edits.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// In the order of the configuration.
    pub fn iter(&self) -> std::slice::Iter<'_, Edit> {
        self.0.iter()
    }
}

/// Each edit with its description as text.
impl Serialize for Edits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct SerializedEdit<'a> {
            #[serde(flatten)]
            edit: &'a Edit,
            text: String,
        }
        serializer.collect_seq(self.0.iter().map(|edit| SerializedEdit { edit, text: edit.to_string() }))
    }
}

impl FromIterator<Edit> for Edits {
    fn from_iter<I: IntoIterator<Item = Edit>>(edits: I) -> Self {
        Self(edits.into_iter().collect())
    }
}

fn edits_of(before: &PoolConfig, after: &PoolConfig) -> Vec<Edit> {
    let pool = &before.name;
    let algorithm = Edit::Algorithm { pool: pool.clone(), before: before.algorithm, after: after.algorithm };
    // By address, since searching for each of many backends takes long.
    let (old, new) = (by_address(before), by_address(after));
    let known: HashSet<_> = before.backends.iter().map(|backend| &backend.address).collect();
    let added = after.backends.iter().filter(|backend| !known.contains(&backend.address));
    let backend = |backend: &BackendConfig| Edit::Backend {
        pool: pool.clone(),
        backend: backend.address.clone(),
        before: old.get(&backend.address).copied(),
        after: new.get(&backend.address).copied(),
    };
    let backends = before.backends.iter().chain(added).map(backend);
    std::iter::once(algorithm).chain(backends).filter(Edit::changes_something).collect()
}

fn by_address(pool: &PoolConfig) -> HashMap<&BackendAddress, BackendSettings> {
    pool.backends.iter().filter_map(|backend| Some((&backend.address, BackendSettings::of(backend)?))).collect()
}

impl BackendSettings {
    /// `None` for a backend that is being removed.
    pub fn of(backend: &BackendConfig) -> Option<Self> {
        let stays = backend.state != AdminState::Removing;
        stays.then_some(Self { weight: backend.weight, state: backend.state, max_connections: backend.max_connections })
    }

    fn listed(self) -> String {
        format!("{}, weight {}{}", self.state, self.weight, self.limit())
    }

    fn limit(self) -> String {
        self.max_connections.map(|most| format!(", max_connections {most}")).unwrap_or_default()
    }
}

impl Edit {
    /// The pool that it concerns.
    pub fn pool(&self) -> &PoolName {
        match self {
            Self::Algorithm { pool, .. } | Self::Backend { pool, .. } => pool,
        }
    }

    fn changes_something(&self) -> bool {
        match self {
            Self::Algorithm { before, after, .. } => before != after,
            Self::Backend { before, after, .. } => before != after,
        }
    }

    fn inverted(&self) -> Self {
        match self.clone() {
            Self::Algorithm { pool, before, after } => Self::Algorithm { pool, before: after, after: before },
            Self::Backend { pool, backend, before, after } => {
                Self::Backend { pool, backend, before: after, after: before }
            }
        }
    }

    /// The edit with the file's value as its old one, if it removes a backend.
    fn begun_by(&self, file: &Config) -> Self {
        match self {
            Self::Backend { pool, backend, before: Some(_), after: None } => {
                let pools = file.pools.iter().filter(|of| of.name == *pool);
                let written = pools.flat_map(|of| &of.backends).find(|of| of.address == *backend);
                let (pool, backend) = (pool.clone(), backend.clone());
                Self::Backend { pool, backend, before: written.and_then(BackendSettings::of), after: None }
            }
            other => other.clone(),
        }
    }

    fn apply(&self, config: &mut Config) -> Result<(), EditConflict> {
        let conflict = |instead: String| Err(EditConflict { edit: self.clone(), instead });
        let Some(pool) = config.pools.iter_mut().find(|pool| pool.name == *self.pool()) else {
            return conflict("no such pool".to_owned());
        };
        match self {
            Self::Algorithm { before, after, .. } => match pool.algorithm {
                now if now == *before || now == *after => pool.algorithm = *after,
                now => return conflict(format!("algorithm {now}")),
            },
            Self::Backend { backend, before, after, .. } => {
                let now = pool.backends.iter().find(|b| b.address == *backend).and_then(BackendSettings::of);
                match (before, after, now) {
                    (Some(before), Some(after), Some(now)) => {
                        let (weight, may_weigh) = merged(before.weight, after.weight, now.weight);
                        let (state, may_be) = merged(before.state, after.state, now.state);
                        let (max_connections, may_limit) =
                            merged(before.max_connections, after.max_connections, now.max_connections);
                        set(pool, backend, Some(BackendSettings { weight, state, max_connections }));
                        if !may_weigh || !may_be || !may_limit {
                            // Settings that were applied are not part of the conflict.
                            let left = BackendSettings {
                                weight: if may_weigh { before.weight } else { after.weight },
                                state: if may_be { before.state } else { after.state },
                                max_connections: if may_limit { before.max_connections } else { after.max_connections },
                            };
                            let (pool, backend) = (self.pool().clone(), backend.clone());
                            let edit = Self::Backend { pool, backend, before: Some(*before), after: Some(left) };
                            return Err(EditConflict { edit, instead: now.listed() });
                        }
                    }
                    _ if now == *before => set(pool, backend, *after),
                    _ if now == *after => {}
                    (_, _, Some(now)) => return conflict(now.listed()),
                    (_, _, None) => return conflict("no such backend".to_owned()),
                }
            }
        }
        Ok(())
    }
}

/// The new value of a setting, and whether the edit could be applied: its old or its new value is in force now.
fn merged<T: Copy + PartialEq>(before: T, after: T, now: T) -> (T, bool) {
    match now {
        _ if before == after => (now, true),
        _ if now == before || now == after => (after, true),
        _ => (now, false),
    }
}

fn set(pool: &mut PoolConfig, address: &BackendAddress, wanted: Option<BackendSettings>) {
    let index = pool.backends.iter().position(|b| b.address == *address);
    match (index, wanted) {
        (Some(index), Some(BackendSettings { weight, state, max_connections })) => {
            let backend = &mut pool.backends[index];
            (backend.weight, backend.state, backend.max_connections) = (weight, state, max_connections);
        }
        (Some(index), None) => pool.backends[index].state = AdminState::Removing,
        (None, Some(BackendSettings { weight, state, max_connections })) => {
            pool.backends.push(BackendConfig { address: address.clone(), weight, state, max_connections });
        }
        (None, None) => {}
    }
}

impl EditConflict {
    /// As text, where the configuration is that of the file.
    pub fn with_file(&self) -> String {
        format!("{} (the file now says: {})", self.edit, self.instead)
    }
}

impl ChangeHistory {
    /// Older ones are dropped.
    const MAX_CHANGES: usize = 1000;

    /// The number of the next change.
    pub fn next_id(&self) -> u64 {
        self.last_id + 1
    }

    /// Adds a change; the oldest is forgotten when there are too many.
    pub fn push(&mut self, change: Change) -> Arc<Change> {
        self.last_id = change.id;
        if self.changes.len() == Self::MAX_CHANGES {
            self.changes.pop_front();
        }
        let change = Arc::new(change);
        self.changes.push_back(Arc::clone(&change));
        change
    }

    /// `None`: there was none of that number, or it is forgotten.
    pub fn find(&self, id: u64) -> Option<Arc<Change>> {
        self.changes.iter().find(|change| change.id == id).cloned()
    }

    /// Newest first.
    pub fn newest_first(&self) -> Vec<Arc<Change>> {
        self.changes.iter().rev().cloned().collect()
    }
}

impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.from {
            Some(from) => write!(f, "{} from {from}", self.by),
            None => f.write_str(self.by),
        }
    }
}

impl fmt::Display for Edits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, edit) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{edit}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Algorithm { pool, before, after } => write!(f, "pool {pool}: algorithm {after} instead of {before}"),
            Self::Backend { pool, backend, before, after } => {
                write!(f, "pool {pool}: backend {backend} ")?;
                match (before, after) {
                    (Some(before), Some(after)) if BackendSettings { state: after.state, ..*before } == *after => {
                        write!(f, "{} instead of {}", after.state, before.state)
                    }
                    (Some(before), Some(after)) if BackendSettings { weight: after.weight, ..*before } == *after => {
                        write!(f, "weight {} instead of {}", after.weight, before.weight)
                    }
                    (Some(before), Some(after)) => write!(f, "{after} instead of {before}"),
                    (None, Some(after)) => write!(f, "added, {after}"),
                    (_, None) => write!(f, "removed"),
                }
            }
        }
    }
}

impl fmt::Display for BackendSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with weight {}{}", self.state, self.weight, self.limit())
    }
}

impl fmt::Display for EditConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (now: {})", self.edit, self.instead)
    }
}

/// With milliseconds.
fn rfc_3339<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{at:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pool: &str) -> Config {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\npool = \"app\"\n[[pool]]\nname = \"app\"\n{pool}\n"
        );
        crate::config::toml::read(&text, std::path::Path::new("/evenkeel.toml")).expect("valid")
    }

    fn before() -> Config {
        config("algorithm = \"weighted\"\nbackends = [\"a:1\", { address = \"b:1\", weight = 2 }]")
    }

    fn after() -> Config {
        config("algorithm = \"ip-hash\"\nbackends = [{ address = \"a:1\", weight = 3, state = \"draining\" }, \"c:1\"]")
    }

    #[test]
    fn edits_convert_one_configuration_into_the_other_and_back() {
        let edits = Edits::between(&before(), &after());
        let mut config = before();
        assert_eq!(edits.apply(&mut config), []);
        assert!(Edits::between(&config, &after()).is_empty());
        assert_eq!(edits.inverted().apply(&mut config), []);
        assert!(Edits::between(&config, &before()).is_empty());
    }

    #[test]
    fn edits_read_as_sentences() {
        let sentences: Vec<_> = Edits::between(&before(), &after()).iter().map(ToString::to_string).collect();
        let expected = [
            "pool app: algorithm ip-hash instead of weighted",
            "pool app: backend a:1 draining with weight 3 instead of active with weight 1",
            "pool app: backend b:1 removed",
            "pool app: backend c:1 added, active with weight 1",
        ];
        assert_eq!(sentences, expected);
        let drained = config(
            "algorithm = \"weighted\"\nbackends = [{ address = \"a:1\", state = \"draining\" }, { address = \"b:1\", weight = 5 }]",
        );
        assert_eq!(
            Edits::between(&before(), &drained).to_string(),
            "pool app: backend a:1 draining instead of active; pool app: backend b:1 weight 5 instead of 2"
        );
    }

    #[test]
    fn an_edit_conflicts_where_the_configuration_has_another_value() {
        let edits = Edits::between(&before(), &after());
        let mut elsewhere = config("algorithm = \"least-connections\"\nbackends = [\"a:1\"]");
        let conflicts: Vec<_> = edits.apply(&mut elsewhere).iter().map(ToString::to_string).collect();
        assert_eq!(
            conflicts,
            ["pool app: algorithm ip-hash instead of weighted (now: algorithm least-connections)"],
            "a:1 is as before, b:1 has left already, c:1 is new"
        );
        assert_eq!(elsewhere.pools[0].backends.len(), 2);
    }

    // A new weight in the file put a drained backend back into traffic.
    #[test]
    fn weight_and_state_of_a_backend_change_independently() {
        let file = |backend: &str| config(&format!("backends = [{{ address = \"a:1\", {backend} }}]"));
        let restored = |before: &str, after: &str, now: &str| {
            let (config, conflicts) = Edits::between(&file(before), &file(after)).restore(&file(now));
            let conflicts: Vec<_> = conflicts.iter().map(EditConflict::with_file).collect();
            (config.pools[0].backends[0].weight.as_u32(), config.pools[0].backends[0].state, conflicts.join("; "))
        };
        let draining = "weight = 1, state = \"draining\"";
        let none = String::new();
        assert_eq!(restored("weight = 1", draining, "weight = 5"), (5, AdminState::Draining, none.clone()));
        assert_eq!(restored("weight = 1", "weight = 3", draining), (3, AdminState::Draining, none.clone()));
        let both = "weight = 3, state = \"draining\"";
        assert_eq!(restored("weight = 1", both, both), (3, AdminState::Draining, none.clone()));
        let conflict = "pool app: backend a:1 weight 3 instead of 1 (the file now says: active, weight 5)";
        assert_eq!(restored("weight = 1", both, "weight = 5"), (5, AdminState::Draining, conflict.to_owned()));
        let conflict = "pool app: backend a:1 draining instead of active (the file now says: down, weight 1)";
        let down = "weight = 1, state = \"down\"";
        assert_eq!(restored("weight = 1", both, down), (3, AdminState::Down, conflict.to_owned()));
    }

    #[test]
    fn an_edit_already_in_force_is_no_conflict() {
        let mut config = after();
        assert_eq!(Edits::between(&before(), &after()).apply(&mut config), []);
        assert_eq!(config, after());
    }

    #[test]
    fn the_history_is_bounded_and_its_numbers_continue() {
        let mut history = ChangeHistory::default();
        let author = Author { by: "local", from: None };
        for _ in 0..ChangeHistory::MAX_CHANGES + 2 {
            let id = history.next_id();
            let edits = Edits::default();
            let at = Timestamp::UNIX_EPOCH;
            history.push(Change { id, at, author: author.clone(), version: id, edits, reloaded: None, undoes: None });
        }
        assert!(history.find(2).is_none() && history.find(3).is_some());
        let ids: Vec<_> = history.newest_first().iter().map(|change| change.id).collect();
        assert_eq!((ids.len(), ids[0]), (ChangeHistory::MAX_CHANGES, 1002));
        let serialized = serde_json::to_value(&*history.newest_first()[0]).expect("JSON");
        let expected = serde_json::json!({ "id": 1002, "at": "1970-01-01T00:00:00.000Z", "by": "local", "version": 1002, "edits": [] });
        assert_eq!(serialized, expected);
    }
}
