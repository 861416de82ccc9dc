//! Runtime changes that survive a restart. What is kept is the difference between the configuration file and what
//! is in force, each with the file's value at that time: where the file has changed since, the file wins.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::backend::{AdminState, BackendAddress, Weight};
use crate::balance::Algorithm;
use crate::config::{BackendConfig, Config, PoolConfig, Secret};

const FORMAT: u32 = 1;
const SECRET_BYTES: usize = 32;

/// How what is in force differs from the configuration file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Changes {
    pools: BTreeMap<String, PoolChanges>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct PoolChanges {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    algorithm: Option<Change<Algorithm>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    backends: BTreeMap<BackendAddress, Change<Option<BackendChange>>>,
}

/// What the file said, and what was wanted instead.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Change<T> {
    configured: T,
    current: T,
}

/// A backend's settings; none at all where it is not part of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct BackendChange {
    weight: Weight,
    state: AdminState,
}

impl Changes {
    pub fn between(file: &Config, in_force: &Config) -> Self {
        let of_pool = |current: &PoolConfig| {
            let configured = file.pools.iter().find(|pool| pool.name == current.name)?;
            let changes = PoolChanges::between(configured, current);
            (changes != PoolChanges::default()).then(|| (current.name.to_string(), changes))
        };
        Self { pools: in_force.pools.iter().filter_map(of_pool).collect() }
    }

    /// The configuration with these changes, but for those which the file has overtaken: each of these is told.
    pub fn apply(&self, file: &Config) -> (Config, Vec<String>) {
        let mut config = file.clone();
        let mut overtaken = Vec::new();
        for (name, changes) in &self.pools {
            match config.pools.iter_mut().find(|pool| pool.name.as_str() == name) {
                Some(pool) => changes.apply(pool, &mut overtaken),
                None => overtaken.push(format!("pool \"{name}\" is gone from the configuration")),
            }
        }
        (config, overtaken)
    }
}

impl PoolChanges {
    fn between(configured: &PoolConfig, current: &PoolConfig) -> Self {
        let algorithm = Change { configured: configured.algorithm, current: current.algorithm };
        let addresses = configured.backends.iter().chain(&current.backends).map(|b| &b.address);
        let backend = |address: &BackendAddress| {
            let change = Change { configured: settings(configured, address), current: settings(current, address) };
            (address.clone(), change)
        };
        Self {
            algorithm: Some(algorithm).filter(Change::is_one),
            backends: addresses.map(backend).filter(|(_, change)| change.is_one()).collect(),
        }
    }

    fn apply(&self, pool: &mut PoolConfig, overtaken: &mut Vec<String>) {
        let name = pool.name.clone();
        if let Some(change) = &self.algorithm {
            if pool.algorithm == change.configured {
                pool.algorithm = change.current;
            } else {
                overtaken.push(format!("the configuration now says {} for pool \"{name}\"", pool.algorithm));
            }
        }
        for (address, change) in &self.backends {
            if settings(pool, address) == change.configured {
                set(pool, address, change.current);
            } else {
                overtaken.push(format!("the configuration of backend {address} of pool \"{name}\" has changed"));
            }
        }
    }
}

impl<T: PartialEq> Change<T> {
    fn is_one(&self) -> bool {
        self.configured != self.current
    }
}

fn settings(pool: &PoolConfig, address: &BackendAddress) -> Option<BackendChange> {
    let backend = pool.backends.iter().find(|b| b.address == *address)?;
    let stays = backend.state != AdminState::Removing;
    stays.then_some(BackendChange { weight: backend.weight, state: backend.state })
}

fn set(pool: &mut PoolConfig, address: &BackendAddress, wanted: Option<BackendChange>) {
    let place = pool.backends.iter().position(|b| b.address == *address);
    match (place, wanted) {
        (Some(place), Some(BackendChange { weight, state })) => {
            pool.backends[place] = BackendConfig { address: address.clone(), weight, state };
        }
        (Some(place), None) => drop(pool.backends.remove(place)),
        (None, Some(BackendChange { weight, state })) => {
            pool.backends.push(BackendConfig { address: address.clone(), weight, state });
        }
        (None, None) => {}
    }
}

/// The file that keeps the changes, and the secret that signs sticky cookies.
#[derive(Debug)]
pub struct StateFile {
    path: Option<PathBuf>,
    pub secret: Secret,
}

#[derive(Debug, Serialize, Deserialize)]
struct Document {
    format: u32,
    sticky_secret: String,
    pools: Changes,
}

impl StateFile {
    /// Opens the file and reads what it keeps. A file that cannot be understood is set aside under another name and
    /// never stops the start; nothing is kept without a path.
    pub fn open(path: Option<PathBuf>) -> (Self, Changes) {
        let document = path.as_deref().and_then(read_or_set_aside);
        let (secret, changes) = match document {
            Some((secret, changes)) => (secret, changes),
            None => (random_secret(), Changes::default()),
        };
        (Self { path, secret }, changes)
    }

    /// Where it is; empty when nothing is kept.
    pub fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// Writes the changes beside the file and moves them over it, so that a crash leaves the old or the new.
    pub fn save(&self, changes: &Changes) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let document =
            Document { format: FORMAT, sticky_secret: STANDARD.encode(self.secret.expose()), pools: changes.clone() };
        let mut text = serde_json::to_vec_pretty(&document)?;
        text.push(b'\n');
        let beside = path.with_extension("json.new");
        // A leftover of a crash would keep its old permissions.
        let _ = fs::remove_file(&beside);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        match path.parent().filter(|p| !p.as_os_str().is_empty()) {
            Some(folder) => File::open(folder)?.sync_all(),
            None => File::open(".")?.sync_all(),
        }
    }
}

fn read_or_set_aside(path: &Path) -> Option<(Secret, Changes)> {
    let problem = match fs::read(path) {
        Ok(bytes) => match parse(&bytes) {
            Ok(state) => return Some(state),
            Err(problem) => problem,
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
        Err(e) => {
            tracing::warn!("the state file {} cannot be read: {e}; starting without it", path.display());
            return None;
        }
    };
    let aside = path.with_extension("json.corrupt");
    let outcome = match fs::rename(path, &aside) {
        Ok(()) => format!("set aside as {}", aside.display()),
        Err(e) => format!("and cannot be set aside: {e}"),
    };
    tracing::warn!("the state file {} is corrupt ({problem}), {outcome}; starting without it", path.display());
    None
}

fn parse(bytes: &[u8]) -> Result<(Secret, Changes), String> {
    let document: Document = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if document.format != FORMAT {
        return Err(format!("format {} is not {FORMAT}", document.format));
    }
    let secret = STANDARD.decode(&document.sticky_secret).ok().and_then(Secret::new);
    Ok((secret.ok_or("sticky_secret is not base64")?, document.pools))
}

fn random_secret() -> Secret {
    let bytes: [u8; SECRET_BYTES] = rand::random();
    Secret::new(bytes).expect("32 bytes are not none")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        let text = format!("[[listener]]\naddress = \"127.0.0.1:0\"\n{text}\n[[route]]\npool = \"app\"\n");
        crate::config::toml::read(&text, Path::new("/evenkeel.toml")).expect("valid")
    }

    fn file() -> Config {
        config("[[pool]]\nname = \"app\"\nbackends = [{ address = \"a:1\" }, { address = \"b:1\", weight = 2 }]")
    }

    fn changed() -> Config {
        let mut config = file();
        let pool = &mut config.pools[0];
        pool.algorithm = Algorithm::IpHash;
        pool.backends[0].state = AdminState::Draining;
        pool.backends[1].state = AdminState::Removing;
        let address = "c:1".parse().expect("valid");
        pool.backends.push(BackendConfig { address, weight: Weight::ONE, state: AdminState::Active });
        config
    }

    fn addresses(config: &Config) -> Vec<&str> {
        config.pools[0].backends.iter().map(|b| b.address.as_str()).collect()
    }

    #[test]
    fn changes_come_back_and_a_backend_being_removed_stays_away() {
        let (restored, overtaken) = Changes::between(&file(), &changed()).apply(&file());
        assert_eq!(overtaken, [""; 0]);
        assert_eq!(restored.pools[0].algorithm, Algorithm::IpHash);
        assert_eq!(addresses(&restored), ["a:1", "c:1"]);
        assert_eq!(restored.pools[0].backends[0].state, AdminState::Draining);
    }

    #[test]
    fn the_file_wins_for_what_it_changed_since() {
        let changes = Changes::between(&file(), &changed());
        let newer = config(
            "[[pool]]\nname = \"app\"\nalgorithm = \"weighted\"\n\
             backends = [{ address = \"a:1\" }, { address = \"b:1\", weight = 7 }]",
        );
        let (restored, overtaken) = changes.apply(&newer);
        assert_eq!(restored.pools[0].algorithm, Algorithm::Weighted);
        assert_eq!(addresses(&restored), ["a:1", "b:1", "c:1"]);
        assert_eq!(restored.pools[0].backends[0].state, AdminState::Draining);
        assert_eq!(overtaken.len(), 2, "{overtaken:?}");
    }

    #[test]
    fn a_saved_state_reads_back_with_its_secret() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("evenkeel.state.json");
        let (state, none) = StateFile::open(Some(path.clone()));
        assert_eq!(none, Changes::default());
        let changes = Changes::between(&file(), &changed());
        state.save(&changes).expect("writable");
        let (again, read) = StateFile::open(Some(path));
        assert_eq!(read, changes);
        assert_eq!(again.secret, state.secret);
    }

    #[test]
    fn a_corrupt_file_is_set_aside() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("evenkeel.state.json");
        for bytes in [&b"{"[..], b"", b"\xff\xfe", br#"{"format":9,"sticky_secret":"YQ==","pools":{}}"#] {
            fs::write(&path, bytes).expect("writable");
            assert_eq!(StateFile::open(Some(path.clone())).1, Changes::default());
            assert!(!path.exists() && folder.path().join("evenkeel.state.json.corrupt").exists());
        }
    }
}
