//! One SQLite file shared by several processes: write-ahead log, one writer and a few readers per process.
//!
//! Every statement runs on a blocking thread. Dropping a future does not undo its statement: once begun, it runs to the
//! end. So callers make their writes repeatable.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};
use tokio::sync::{Mutex, Semaphore};

use crate::error::StoreError;

/// How durable an acknowledged write is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Survives a crash of the process. The last moments may be lost if the machine loses power.
    Process,
    /// Also survives a loss of power, at the cost of one disk sync per write.
    Machine,
}

/// A file that this process has opened. Clones share its connections.
#[derive(Clone)]
pub struct Database {
    writer: Arc<Mutex<Connection>>,
    readers: Arc<Readers>,
}

impl Database {
    /// Opens `path`, creating it if necessary, and runs `schema`: statements that may be repeated.
    pub fn open(path: &Path, schema: &str, durability: Durability) -> Result<Self, StoreError> {
        let writer = connect(path, durability)?;
        with_patience(|| writer.execute_batch(&format!("BEGIN IMMEDIATE; {schema}; COMMIT;")))?;
        Ok(Self {
            writer: Arc::new(Mutex::new(writer)),
            readers: Arc::new(Readers {
                path: path.to_owned(),
                durability,
                idle: std::sync::Mutex::new(Vec::new()),
                permits: Arc::new(Semaphore::new(READERS)),
            }),
        })
    }

    /// Runs `work` on a connection for reading.
    pub async fn read<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let readers = Arc::clone(&self.readers);
        let permit = Arc::clone(&readers.permits).acquire_owned().await.map_err(StoreError::unavailable)?;
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let connection = readers.take()?;
            let result = work(&connection);
            readers.give_back(connection);
            Ok(result?)
        })
        .await
        .map_err(StoreError::unavailable)?
    }

    /// Runs `work` on the one connection for writing. Waits for writers of other processes.
    pub async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        // Waiting here rather than inside the closure keeps waiting writers from occupying blocking threads.
        let writer = Arc::clone(&self.writer).lock_owned().await;
        tokio::task::spawn_blocking(move || Ok(work(&writer)?)).await.map_err(StoreError::unavailable)?
    }
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Database").field(&self.readers.path).finish()
    }
}

struct Readers {
    path: PathBuf,
    durability: Durability,
    idle: std::sync::Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    fn take(&self) -> rusqlite::Result<Connection> {
        let idle = self.idle().pop();
        idle.map_or_else(|| connect(&self.path, self.durability), Ok)
    }

    fn give_back(&self, connection: Connection) {
        self.idle().push(connection);
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn connect(path: &Path, durability: Durability) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // The switch to the write-ahead log ignores the busy timeout when several processes switch at once.
    with_patience(|| {
        let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
        if mode.eq_ignore_ascii_case("wal") {
            return Ok(());
        }
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))
    })?;
    let synchronous = match durability {
        Durability::Process => "NORMAL",
        Durability::Machine => "FULL",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    Ok(connection)
}

/// Repeats `attempt` while another process has locked the file, for at most [`BUSY_TIMEOUT`].
fn with_patience<T>(mut attempt: impl FnMut() -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match attempt() {
            Err(error) if is_busy(&error) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match &error {
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::IntegralValueOutOfRange(..) => Self::corrupt(error),
            _ => Self::unavailable(error),
        }
    }
}

/// How long a statement waits for another process before the store counts as unreachable.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections for reading, per process and file.
const READERS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_openers_of_a_new_file_all_succeed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new.sqlite3");
        std::thread::scope(|scope| {
            let openers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        Database::open(&path, "CREATE TABLE IF NOT EXISTS t (n INTEGER)", Durability::Machine)
                    })
                })
                .collect();
            for opener in openers {
                opener.join().unwrap().unwrap();
            }
        });
    }

    #[tokio::test]
    async fn writes_of_one_handle_are_visible_to_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shared.sqlite3");
        let schema = "CREATE TABLE IF NOT EXISTS t (n INTEGER)";
        let one = Database::open(&path, schema, Durability::Process).unwrap();
        let other = Database::open(&path, schema, Durability::Process).unwrap();
        one.write(|c| c.execute("INSERT INTO t VALUES (7)", [])).await.unwrap();
        let n: i64 = other.read(|c| c.query_one("SELECT n FROM t", [], |row| row.get(0))).await.unwrap();
        assert_eq!(n, 7);
    }
}
