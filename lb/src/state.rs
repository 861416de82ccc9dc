//! Persists runtime changes across restarts. The state file contains the differences between the configuration file and
//! the configuration in force, each with the file's value at that time: where the file has changed since, the file
//! wins. A separate thread writes it, so that a hanging disk blocks nothing else. One process at a time owns the file:
//! the one that has locked the file beside it (flock(2)), for as long as its thread writes.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::change::{BackendSettings, Edit, Edits};
use crate::config::algorithm::Algorithm;
use crate::config::backend::BackendAddress;
use crate::config::{PoolName, Secret};

const FORMAT: u32 = 1;
const SECRET_BYTES: usize = 32;

/// Edits in the format of the file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
struct Changes {
    pools: BTreeMap<PoolName, PoolChanges>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct PoolChanges {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    algorithm: Option<Changed<Algorithm>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    backends: BTreeMap<BackendAddress, Changed<Option<BackendSettings>>>,
}

/// The value of the configuration file, and the changed value.
#[derive(Debug, Serialize, Deserialize)]
struct Changed<T> {
    configured: T,
    current: T,
}

impl From<&Edits> for Changes {
    fn from(edits: &Edits) -> Self {
        let mut pools: BTreeMap<PoolName, PoolChanges> = BTreeMap::new();
        for edit in edits.iter().cloned() {
            let changes = pools.entry(edit.pool().clone()).or_default();
            match edit {
                Edit::Algorithm { before, after, .. } => {
                    changes.algorithm = Some(Changed { configured: before, current: after });
                }
                Edit::Backend { backend, before, after, .. } => {
                    changes.backends.insert(backend, Changed { configured: before, current: after });
                }
            }
        }
        Self { pools }
    }
}

impl From<Changes> for Edits {
    fn from(changes: Changes) -> Self {
        let of_pool = |(pool, changes): (PoolName, PoolChanges)| {
            let algorithm = changes.algorithm.map(|algorithm| Edit::Algorithm {
                pool: pool.clone(),
                before: algorithm.configured,
                after: algorithm.current,
            });
            let backend = move |(backend, change): (BackendAddress, Changed<_>)| Edit::Backend {
                pool: pool.clone(),
                backend,
                before: change.configured,
                after: change.current,
            };
            algorithm.into_iter().chain(changes.backends.into_iter().map(backend))
        };
        changes.pools.into_iter().flat_map(of_pool).collect()
    }
}

/// The file with the changes, and the secret that signs sticky cookies.
#[derive(Debug)]
pub(crate) struct StateFile {
    pub secret: Secret,
    /// `None`: nothing is persisted.
    writing: Option<Writing>,
}

/// Whether the changes in force would survive a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Persistence {
    /// The configuration turns persistence off.
    Off,
    Saved,
    /// They have not been written yet.
    Pending,
    /// They could not be written.
    Failed,
}

#[derive(Debug)]
struct Writing {
    path: PathBuf,
    wanted: Arc<Wanted>,
    written: watch::Receiver<Written>,
    /// `None` once the thread is started, or the file turns out to be one that must not be overwritten.
    waiting: Mutex<Option<Waiting>>,
}

/// Another process owns the state file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OwnedElsewhere {
    path: PathBuf,
}

impl Display for OwnedElsewhere {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the state file {} belongs to another process: stop that one, or write another [state] file, or persist = false",
            self.path.display()
        )
    }
}

/// What the thread needs to start.
#[derive(Debug)]
struct Waiting {
    written: watch::Sender<Written>,
    /// The changes in the file when it was opened.
    read: Edits,
}

/// What is to be written next. Newer changes replace those that still wait.
#[derive(Debug, Default)]
struct Wanted {
    newest: Mutex<Newest>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Newest {
    /// The number of writes requested so far.
    number: u64,
    edits: Option<Edits>,
    is_closed: bool,
}

/// The number of the last write that was completed or failed.
#[derive(Debug, Clone, Copy)]
struct Written {
    number: u64,
    is_saved: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Document {
    format: u32,
    sticky_secret: String,
    pools: Changes,
}

impl StateFile {
    /// Reads the file. One that is corrupt or cannot be read does not prevent the start. Without a path nothing is
    /// persisted. Nothing is changed before [`Self::own`], since the file may belong to another process.
    pub(crate) fn open(path: Option<PathBuf>) -> (Self, Edits) {
        let Some(path) = path else { return (Self { secret: random_secret(), writing: None }, Edits::default()) };
        let (secret, edits) = match read(&path) {
            Found::State(secret, edits) => (secret, edits),
            Found::Corrupt { secret, .. } => (secret.unwrap_or_else(random_secret), Edits::default()),
            Found::Nothing | Found::Unreadable(_) => (random_secret(), Edits::default()),
        };
        let writing = Writing::new(path, &edits);
        (Self { secret, writing: Some(writing) }, edits)
    }

    /// Begins to write what is requested, in a thread that ends when the file is released or closed: this process owns
    /// the file. Returns the changes in it if its former owner has changed them since it was opened. A corrupt file is
    /// set aside under another name; one that cannot be read, or set aside, is not overwritten. Has no effect after the
    /// first success.
    pub(crate) fn own(&self) -> Result<Option<Edits>, OwnedElsewhere> {
        let Some(writing) = &self.writing else { return Ok(None) };
        let mut waiting = writing.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.is_none() {
            return Ok(None);
        }
        let lock = lock(&writing.path)?;
        let Some(Waiting { written, read: before }) = waiting.take() else { return Ok(None) };
        let Ok(now) = read_or_set_aside(&writing.path) else { return Ok(None) };
        writing.start(self.secret.clone(), written, lock);
        Ok(now.filter(|edits| *edits != before))
    }

    /// Leaves the file to another process: later changes are not written. Waits for those requested so far, for at most
    /// `patience`. [`Persistence::Pending`]: this process owns the file until they are written.
    pub(crate) async fn release(&self, patience: Duration) -> Persistence {
        let Some(writing) = &self.writing else { return Persistence::Off };
        self.close();
        // It never wrote.
        drop(writing.waiting.lock().unwrap_or_else(PoisonError::into_inner).take());
        // An error means that the thread has ended.
        let has_ended = tokio::time::timeout(patience, writing.written.clone().wait_for(|_| false)).await.is_ok();
        if has_ended { self.persistence(Duration::ZERO).await } else { Persistence::Pending }
    }

    /// Requests that the changes are written, without waiting.
    pub(crate) fn keep(&self, edits: Edits) {
        if let Some(writing) = &self.writing {
            writing.wanted.put(edits);
        }
    }

    /// Whether everything requested so far is persisted, after waiting for at most `patience`.
    pub(crate) async fn persistence(&self, patience: Duration) -> Persistence {
        let Some(writing) = &self.writing else { return Persistence::Off };
        let number = writing.wanted.newest().number;
        let mut written = writing.written.clone();
        match tokio::time::timeout(patience, written.wait_for(|written| written.number >= number)).await {
            Ok(Ok(written)) if written.is_saved => Persistence::Saved,
            // The channel is closed, so nothing is being written.
            Ok(_) => Persistence::Failed,
            Err(_) => Persistence::Pending,
        }
    }
}

impl StateFile {
    fn close(&self) {
        if let Some(writing) = &self.writing {
            writing.wanted.newest().is_closed = true;
            writing.wanted.changed.notify_one();
        }
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        self.close();
    }
}

impl Writing {
    fn new(path: PathBuf, read: &Edits) -> Self {
        let (sender, written) = watch::channel(Written { number: 0, is_saved: true });
        let waiting = Waiting { written: sender, read: read.clone() };
        Self { path, wanted: Arc::default(), written, waiting: Mutex::new(Some(waiting)) }
    }

    /// Starts the thread that writes. It ends when the file is closed, and holds `lock` until then.
    fn start(&self, secret: Secret, written: watch::Sender<Written>, lock: Option<File>) {
        let (path, wanted) = (self.path.clone(), Arc::clone(&self.wanted));
        let write = move || {
            while let Some((number, edits)) = wanted.next() {
                let saved = save(&path, &secret, &edits);
                if let Err(e) = &saved {
                    tracing::warn!(
                        "the state file {} cannot be written: {e}; changes made at run time end with this process: \
                         set [state] file to a path that can be, or persist = false",
                        path.display(),
                    );
                }
                written.send_replace(Written { number, is_saved: saved.is_ok() });
            }
            // Who waits for the thread may rely on it that the file is free.
            drop(lock);
            drop(written);
        };
        if let Err(e) = thread::Builder::new().name("state".to_owned()).spawn(write) {
            tracing::warn!("no thread can be started to write the state file: {e}; changes end with this process");
        }
    }
}

impl Wanted {
    fn put(&self, edits: Edits) {
        let mut newest = self.newest();
        if newest.is_closed {
            return;
        }
        newest.number += 1;
        newest.edits = Some(edits);
        self.changed.notify_one();
    }

    /// Waits for something to write; `None` once everything is written and the file is closed.
    fn next(&self) -> Option<(u64, Edits)> {
        let nothing = |newest: &mut Newest| newest.edits.is_none() && !newest.is_closed;
        let waiting = self.changed.wait_while(self.newest(), nothing);
        let mut newest = waiting.unwrap_or_else(PoisonError::into_inner);
        newest.edits.take().map(|edits| (newest.number, edits))
    }

    fn newest(&self) -> MutexGuard<'_, Newest> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Locks the file beside the state file; the state file itself is replaced at each write. `None`: there is no lock to
/// be had, and nobody can tell whether another process uses the file.
fn lock(path: &Path) -> Result<Option<File>, OwnedElsewhere> {
    let beside = with_suffix(path, ".lock");
    // Never removed: who has opened it would lock another file than who creates it again.
    let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&beside);
    let locked = match opened.map_err(TryLockError::Error).and_then(|file| file.try_lock().map(|()| file)) {
        Ok(file) => return Ok(Some(file)),
        Err(TryLockError::WouldBlock) => return Err(OwnedElsewhere { path: path.to_owned() }),
        Err(TryLockError::Error(e)) => e,
    };
    // Where nothing can be written, the first write tells so.
    tracing::info!("{} cannot be locked ({locked}): let no other process use this state file", beside.display());
    Ok(None)
}

/// Writes the changes to a temporary file and renames that, so that a crash leaves either the old or the new state.
fn save(path: &Path, secret: &Secret, edits: &Edits) -> io::Result<()> {
    let document = Document { format: FORMAT, sticky_secret: STANDARD.encode(secret.expose()), pools: edits.into() };
    let mut text = serde_json::to_vec_pretty(&document)?;
    text.push(b'\n');
    let beside = with_suffix(path, ".new");
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

/// The file's whole name with a suffix, so that state files beside each other share no temporary files.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The name for a corrupt file. It does not replace one that was set aside earlier, which may contain the missing
/// secret.
fn free_name(path: &Path) -> PathBuf {
    let first = with_suffix(path, ".corrupt");
    let numbered = (2..).map(|n| with_suffix(path, &format!(".corrupt.{n}")));
    std::iter::once(first)
        .chain(numbered)
        .find(|name| fs::symlink_metadata(name).is_err())
        .expect("a folder has no end of names")
}

/// What is at the path of the state file.
enum Found {
    Nothing,
    State(Secret, Edits),
    Corrupt {
        problem: String,
        /// It may be known even if the rest is not understood.
        secret: Option<Secret>,
    },
    Unreadable(io::Error),
}

fn read(path: &Path) -> Found {
    match fs::read(path) {
        Ok(bytes) => match parse(&bytes) {
            Ok((secret, edits)) => Found::State(secret, edits),
            Err(problem) => Found::Corrupt { problem, secret: secret_of(&bytes) },
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Found::Nothing,
        Err(e) => Found::Unreadable(e),
    }
}

/// The file exists but cannot be read, or not set aside. Its content must not be lost.
struct Unreadable;

/// The changes in the file, which belongs to this process.
fn read_or_set_aside(path: &Path) -> Result<Option<Edits>, Unreadable> {
    let (problem, secret) = match read(path) {
        Found::State(_, edits) => return Ok(Some(edits)),
        Found::Nothing => return Ok(None),
        Found::Corrupt { problem, secret } => (problem, secret),
        Found::Unreadable(e) => {
            tracing::warn!(
                "the state file {} cannot be read: {e}; starting without it, and changes made at run time end with \
                 this process, so that nothing in it is lost: make it readable, or move it away, and start again",
                path.display(),
            );
            return Err(Unreadable);
        }
    };
    let aside = free_name(path);
    let set_aside = fs::rename(path, &aside);
    let path = path.display();
    if let Err(e) = set_aside {
        tracing::warn!(
            "the state file {path} is corrupt ({problem}) and cannot be set aside: {e}; starting without it, and changes \
             made at run time end with this process, so that nothing in it is lost: move it away, and start again"
        );
        return Err(Unreadable);
    }
    tracing::warn!(
        "the state file {path} is corrupt ({problem}), set aside as {}; starting without {}",
        aside.display(),
        if secret.is_some() { "the changes in it; sticky cookies stay valid" } else { "it" },
    );
    Ok(None)
}

/// The secret of a file that is otherwise not understood, such as one of a later version.
fn secret_of(bytes: &[u8]) -> Option<Secret> {
    let document: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    STANDARD.decode(document.get("sticky_secret")?.as_str()?).ok().and_then(Secret::new)
}

/// The content of the file at `path`, which is not changed. The error says what is wrong with the file.
pub(crate) fn peek(path: &Path) -> Result<Edits, String> {
    match fs::read(path) {
        Ok(bytes) => parse(&bytes).map(|(_, edits)| edits).map_err(|problem| format!("is corrupt: {problem}")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Edits::default()),
        Err(e) => Err(format!("cannot be read: {e}")),
    }
}

fn parse(bytes: &[u8]) -> Result<(Secret, Edits), String> {
    let document: Document = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if document.format != FORMAT {
        return Err(format!("format {} is not {FORMAT}", document.format));
    }
    let secret = STANDARD.decode(&document.sticky_secret).ok().and_then(Secret::new);
    Ok((secret.ok_or("sticky_secret is not base64")?, document.pools.into()))
}

fn random_secret() -> Secret {
    let bytes: [u8; SECRET_BYTES] = rand::random();
    Secret::new(bytes).expect("32 bytes are not none")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::backend::AdminState;
    use crate::config::{BackendConfig, Config};

    const LIMIT: Duration = Duration::from_secs(20);

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
        pool.backends.push(BackendConfig::new(address));
        config
    }

    fn own(state: &StateFile) -> Option<Edits> {
        state.own().expect("nobody else owns the file")
    }

    fn addresses(config: &Config) -> Vec<&str> {
        config.pools[0].backends.iter().map(|b| b.address.as_str()).collect()
    }

    #[test]
    fn changes_are_restored_and_a_backend_being_removed_stays_removed() {
        let (restored, overtaken) = Edits::between(&file(), &changed()).restore(&file());
        assert_eq!(overtaken, []);
        assert_eq!(restored.pools[0].algorithm, Algorithm::IpHash);
        assert_eq!(addresses(&restored), ["a:1", "c:1"]);
        assert_eq!(restored.pools[0].backends[0].state, AdminState::Draining);
    }

    #[test]
    fn the_file_overrides_runtime_changes_of_what_it_changed_since() {
        let newer = config(
            "[[pool]]\nname = \"app\"\nalgorithm = \"least-connections\"\n\
             backends = [{ address = \"a:1\" }, { address = \"b:1\", weight = 7 }]",
        );
        let (restored, overtaken) = Edits::between(&file(), &changed()).restore(&newer);
        assert_eq!(restored.pools[0].algorithm, Algorithm::LeastConnections);
        assert_eq!(addresses(&restored), ["a:1", "c:1"], "another weight brings no removed backend back");
        assert_eq!(restored.pools[0].backends[0].state, AdminState::Draining);
        assert_eq!(overtaken.len(), 1, "{overtaken:?}");
    }

    #[test]
    fn a_state_file_of_an_earlier_version_is_read() {
        let text = br#"{"format":1,"sticky_secret":"YQ==","pools":{"app":{
            "algorithm":{"configured":"round-robin","current":"ip-hash"},
            "backends":{"a:1":{"configured":{"weight":1,"state":"active"},"current":null}}}}}"#;
        let (secret, edits) = parse(text).expect("valid");
        assert_eq!(secret.expose(), b"a");
        assert_eq!(
            edits.to_string(),
            "pool app: algorithm ip-hash instead of round-robin; pool app: backend a:1 removed"
        );
    }

    #[tokio::test]
    async fn a_saved_state_is_restored_with_its_secret() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("evenkeel.state.json");
        let (state, none) = StateFile::open(Some(path.clone()));
        assert_eq!(none, Edits::default());
        let edits = Edits::between(&file(), &changed());
        state.keep(Edits::default());
        state.keep(edits.clone());
        assert_eq!(own(&state), None);
        assert_eq!(state.persistence(LIMIT).await, Persistence::Saved);
        let (again, read) = StateFile::open(Some(path));
        assert_eq!(read, edits);
        assert_eq!(again.secret, state.secret);
    }

    #[tokio::test]
    async fn a_process_that_takes_over_sees_the_last_changes_of_the_one_before() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("evenkeel.state.json");
        let (former, _) = StateFile::open(Some(path.clone()));
        former.keep(Edits::default());
        assert_eq!(own(&former), None);
        assert_eq!(former.persistence(LIMIT).await, Persistence::Saved);
        let (next, none) = StateFile::open(Some(path.clone()));
        next.keep(none);
        assert_eq!(next.own(), Err(OwnedElsewhere { path: path.clone() }));
        // A start that was refused renamed the file of the process that runs.
        let kept = fs::read(&path).expect("written");
        fs::write(&path, "{").expect("writable");
        let (refused, _) = StateFile::open(Some(path.clone()));
        assert_eq!(refused.own(), Err(OwnedElsewhere { path: path.clone() }));
        assert_eq!(fs::read(&path).expect("still there"), b"{");
        fs::write(&path, kept).expect("writable");
        let edits = Edits::between(&file(), &changed());
        former.keep(edits.clone());
        assert_eq!(former.release(LIMIT).await, Persistence::Saved);
        former.keep(Edits::default());
        assert_eq!(own(&next), Some(edits.clone()), "the next one has written nothing so far");
        next.keep(edits.clone());
        assert_eq!(next.persistence(LIMIT).await, Persistence::Saved);
        assert_eq!(StateFile::open(Some(path)).1, edits, "nor has the former one since");
        assert_eq!(own(&next), None);
    }

    #[tokio::test]
    async fn an_unreadable_state_file_is_not_overwritten() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("evenkeel.state.json");
        // A link to itself cannot be read, even by root, but a file can be renamed over it.
        std::os::unix::fs::symlink(&path, &path).expect("a file system with links");
        let (state, none) = StateFile::open(Some(path.clone()));
        assert_eq!(none, Edits::default());
        own(&state);
        state.keep(Edits::between(&file(), &changed()));
        assert_eq!(state.persistence(LIMIT).await, Persistence::Failed);
        assert!(fs::symlink_metadata(&path).expect("still there").is_symlink());
    }

    #[tokio::test]
    async fn a_corrupt_file_is_set_aside() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("evenkeel.state.json");
        for bytes in [&b"{"[..], b"", b"\xff\xfe", br#"{"format":9,"sticky_secret":"YQ==","pools":{}}"#] {
            fs::write(&path, bytes).expect("writable");
            let (state, none) = StateFile::open(Some(path.clone()));
            assert_eq!(none, Edits::default());
            assert!(path.exists(), "it may belong to another process");
            own(&state);
            // Nothing is written, and the next one owns it.
            state.release(LIMIT).await;
            assert!(!path.exists() && folder.path().join("evenkeel.state.json.corrupt").exists());
        }
        let names = fs::read_dir(folder.path()).expect("readable").map(|entry| entry.expect("readable").file_name());
        let aside = names.filter(|name| name.to_string_lossy().contains(".corrupt")).count();
        assert_eq!(aside, 4, "none took the place of another");
    }

    #[test]
    fn the_secret_of_a_state_file_of_an_unknown_version_is_kept() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("evenkeel.state.json");
        fs::write(&path, r#"{"format":9,"sticky_secret":"YWJj","sites":{}}"#).expect("writable");
        let (state, none) = StateFile::open(Some(path));
        assert_eq!((state.secret.expose(), none), (&b"abc"[..], Edits::default()));
    }

    #[tokio::test]
    async fn a_corrupt_state_file_that_cannot_be_set_aside_is_not_overwritten() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // A file name of the maximum length, which allows no suffix.
        let path = folder.path().join("s".repeat(251));
        fs::write(&path, "{").expect("writable");
        let (state, _) = StateFile::open(Some(path.clone()));
        own(&state);
        state.keep(Edits::between(&file(), &changed()));
        assert_eq!(state.persistence(LIMIT).await, Persistence::Failed);
        assert_eq!(fs::read(&path).expect("still there"), b"{");
    }

    #[test]
    fn corrupt_files_set_aside_keep_the_whole_name_of_the_state_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in ["state.one", "state.two"] {
            fs::write(folder.path().join(name), name).expect("writable");
            own(&StateFile::open(Some(folder.path().join(name))).0);
        }
        for name in ["state.one", "state.two"] {
            let aside = folder.path().join(format!("{name}.corrupt"));
            assert_eq!(fs::read_to_string(aside).expect("set aside"), name);
        }
    }
}
