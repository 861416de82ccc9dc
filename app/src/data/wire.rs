//! What CrateDB and PostgreSQL have in common: the wire, a pool of connections, and the statements.
//!
//! Neither is spoken to in transactions, because CrateDB has none: each statement stands alone and may be sent again.
//! Statements carry the types of their parameters, so each costs one round trip and leaves nothing on the server.
//! CrateDB answers statements that are pipelined on one connection in any order, so a connection never carries a second
//! one before the first has been answered: see [`Loan`].
//! The pool is `deadpool`'s with connections of our own making, because each node needs a time limit of its own: one
//! that is frozen takes connections and never answers, and would use up the limit meant for all.

mod connect;
pub mod statements;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool::managed::{Object, Pool, PoolError, Timeouts};
use futures_util::TryStreamExt;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

pub use self::connect::Nodes;
use self::connect::{Connections, Link};
use super::{Cursor, Login, Millis, Picture, Post, Result, Signup, User, UserKey};
use crate::error::StoreError;
use crate::metrics::PoolSize;
use crate::retry::{Failure, Retry};

/// Address and time limits of the database.
#[derive(Debug, Clone)]
pub struct Settings {
    pub nodes: Nodes,
    pub connections: usize,
    /// To connect and log in to one node.
    pub connect_timeout: Duration,
    /// For one statement; then its connection is given up.
    pub statement_timeout: Duration,
    /// For one operation with all attempts.
    pub overall_timeout: Duration,
    /// For the database and its tables to appear at the start.
    pub start_deadline: Duration,
}

/// A database of either kind. Clones share their connections.
#[derive(Debug, Clone)]
pub struct Wire {
    pool: Pool<Connections>,
    retry: Arc<Retry>,
    settings: Arc<Settings>,
}

/// A parameter and its type.
type Parameter<'p> = (&'p (dyn ToSql + Sync), Type);

/// A connection, lent for one statement.
///
/// It returns to the pool only by [`give_back`](Self::give_back), once the answer has been read to its end. In any
/// other way it is closed, since an answer may still be on its way, which the next statement would be taken to be
/// answered by. Dropped without an answer, after a time limit or with the future that waited for it, it has the server
/// end the statement first, and keeps its place in the pool until then or until [`Link::cancel`] gives up: else ever
/// more statements would run that nobody waits for.
struct Loan(Option<Object<Connections>>);

impl Loan {
    fn link(&self) -> &Link {
        self.0.as_ref().expect("it is there until it is given back, which takes self")
    }

    fn give_back(mut self) {
        self.0.take();
    }

    /// Closes it, after an answer that was an error, or when it has ended by itself.
    fn close(mut self) {
        drop(self.0.take().map(Object::take));
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let Some(unanswered) = self.0.take() else { return };
        let mut given_up = ClosedOnDrop(Some(unanswered));
        let cancelling = async move {
            if let Some(link) = &mut given_up.0 {
                link.cancel().await;
            }
        };
        // Without a runtime the program ends, and its connections with it.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(cancelling);
        }
    }
}

/// A connection that is no longer used: however it is dropped, it is closed, and its slot in the pool becomes free.
struct ClosedOnDrop(Option<Object<Connections>>);

impl Drop for ClosedOnDrop {
    fn drop(&mut self) {
        drop(self.0.take().map(Object::take));
    }
}

impl Wire {
    /// Connects on first use, and sends `session` at the start of each connection.
    pub fn new(settings: Settings, session: Option<&'static str>) -> anyhow::Result<Self> {
        let manager = Connections::new(settings.nodes.clone(), settings.connect_timeout, session)?;
        let pool = Pool::builder(manager)
            .max_size(settings.connections)
            .timeouts(Timeouts {
                wait: Some(settings.overall_timeout),
                // Every node may have to be tried.
                create: Some(settings.connect_timeout * settings.nodes.count()),
                recycle: Some(settings.connect_timeout),
            })
            .runtime(deadpool::Runtime::Tokio1)
            .build()?;
        let retry = Arc::new(Retry::new(settings.overall_timeout));
        Ok(Self { pool, retry, settings: Arc::new(settings) })
    }

    pub fn pool_size(&self) -> PoolSize {
        let status = self.pool.status();
        PoolSize { most: status.max_size, open: status.size, idle: status.available, waiting: status.waiting }
    }

    /// Waits until the database answers and has all tables. Creates missing ones with the statements of `ddl`, each of
    /// which may be repeated. Logs every few seconds what it waits for.
    pub async fn start(&self, database: &str, ddl: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut logged_at = begun - LOG_INTERVAL;
        loop {
            let error = match self.prepare(ddl).await {
                Ok(()) => {
                    tracing::info!(took_ms = begun.elapsed().as_millis(), "{database} is ready");
                    return Ok(());
                }
                Err(error) => error,
            };
            let (waited, limit) = (begun.elapsed(), self.settings.start_deadline);
            let seconds = |time: Duration| time.as_secs_f64().round();
            if !error.again || waited >= limit {
                anyhow::bail!("{database} is not ready after {} s: {}", seconds(waited), error.error);
            }
            if logged_at.elapsed() >= LOG_INTERVAL {
                logged_at = Instant::now();
                let cause = error.error.to_string();
                tracing::info!(cause, "waiting for {database}, {} of {} s: {cause}", seconds(waited), seconds(limit));
            }
            tokio::time::sleep(MASTER_POLL_INTERVAL).await;
        }
    }

    async fn prepare(&self, ddl: &str) -> std::result::Result<(), Failure> {
        let missing = self.missing().await?;
        if missing.is_empty() {
            return Ok(());
        }
        tracing::info!("making the missing tables: {}", missing.join(", "));
        for statement in statements::of_file(ddl) {
            if let Err(failure) = self.attempt_plain(statement).await {
                // Another instance may have created it at the same time, which PostgreSQL reports as a duplicate.
                tracing::debug!(error = %failure.error, "a table could not be made");
                let missing = self.missing().await?;
                if missing.is_empty() {
                    return Ok(());
                }
                let message =
                    format!("the tables {} are missing and cannot be made: {}", missing.join(", "), failure.error);
                return Err(Failure { error: StoreError::unavailable(message), again: true });
            }
        }
        Ok(())
    }

    async fn missing(&self) -> std::result::Result<Vec<&'static str>, Failure> {
        let answer = self.attempt(statements::TABLES, &[]).await?;
        let present: Vec<String> = answer
            .iter()
            .map(|row| row.try_get(0))
            .collect::<std::result::Result<_, _>>()
            .map_err(|error| Failure::lasting(StoreError::corrupt(error)))?;
        Ok(statements::OUR_TABLES.into_iter().filter(|ours| !present.iter().any(|name| name == ours)).collect())
    }

    /// Sends a statement, with retries, within the time limit of an operation.
    async fn run(&self, statement: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>> {
        self.retry.run(|| self.attempt(statement, parameters)).await
    }

    /// A single number.
    pub(super) async fn count(&self, statement: &str) -> Result<i64> {
        let answer = self.attempt(statement, &[]).await.map_err(|failure| failure.error)?;
        let row = answer.first().ok_or_else(|| StoreError::corrupt("no row where there is always one"))?;
        row.try_get(0).map_err(StoreError::corrupt)
    }

    /// Whether the CrateDB cluster has a master, as far as the asked node knows.
    pub(super) async fn has_master(&self) -> Result<bool> {
        let answer = self.attempt(statements::MASTER, &[]).await.map_err(|failure| failure.error)?;
        let row = answer.first().ok_or_else(|| StoreError::corrupt("no row where there is always one"))?;
        let master: Option<&str> = row.try_get(0).map_err(StoreError::corrupt)?;
        Ok(master.is_some())
    }

    async fn attempt(&self, statement: &str, parameters: &[Parameter<'_>]) -> std::result::Result<Vec<Row>, Failure> {
        let loan = self.lend().await?;
        let work = async {
            let parameters = parameters.iter().map(|(value, of_type)| (*value, of_type.clone()));
            // For unknown types, the library would send a lookup statement before this one is answered. All columns
            // have known types.
            let mut answer = pin!(loan.link().client().query_typed_raw(statement, parameters).await?);
            let mut rows = Vec::new();
            while let Some(row) = answer.try_next().await? {
                rows.push(row);
            }
            Ok(rows)
        };
        let result = timeout(self.settings.statement_timeout, work).await;
        self.judge(loan, result)
    }

    async fn attempt_plain(&self, statement: &str) -> std::result::Result<(), Failure> {
        let loan = self.lend().await?;
        let work = loan.link().client().batch_execute(statement);
        let result = timeout(self.settings.statement_timeout, work).await;
        self.judge(loan, result)
    }

    async fn lend(&self) -> std::result::Result<Loan, Failure> {
        let lent = self.pool.get().await;
        lent.map(|link| Loan(Some(link))).map_err(|error| match error {
            PoolError::Backend(failure) => failure,
            PoolError::Timeout(_) => Failure::passing(StoreError::unavailable("no connection to be had in time")),
            PoolError::Closed | PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_) => {
                Failure::lasting(StoreError::unavailable("the pool of connections does not work"))
            }
        })
    }

    /// The result of a statement, and whether its connection can be reused.
    fn judge<T>(
        &self,
        loan: Loan,
        result: std::result::Result<std::result::Result<T, tokio_postgres::Error>, tokio::time::error::Elapsed>,
    ) -> std::result::Result<T, Failure> {
        match result {
            Ok(Ok(answer)) => {
                loan.give_back();
                Ok(answer)
            }
            // Even an error precedes the end of the response. A retry goes to another node, which may have no error.
            Ok(Err(error)) => {
                loan.close();
                Err(failure(error))
            }
            Err(_) => {
                // Other connections may lead to the same node. Idle ones are cheap to replace with connections to other
                // nodes.
                loan.link().blame_node();
                self.pool.retain(|_, _| false);
                Err(Failure::passing(StoreError::unavailable("a statement was not answered in time")))
            }
        }
    }
}

/// The store's operations. CrateDB and PostgreSQL have different statements for writes, with the same parameters.
impl Wire {
    pub(super) async fn create_user(&self, statement: &str, user: &User) -> Result<Signup> {
        let (key, id) = (user.name.key(), user.id.to_string());
        let answer = self
            .run(
                statement,
                &[
                    text(&key.as_str()),
                    text(&id),
                    text(&user.name.as_str()),
                    text(&user.password_hash),
                    (&user.created.0, Type::INT8),
                ],
            )
            .await?;
        let row = answer.first().ok_or_else(|| StoreError::corrupt("no row where there is always one"))?;
        // The account is ours if an earlier attempt, whose response was lost, has created it.
        Ok(if parsed::<Uuid>(row, "id")? == user.id { Signup::Created } else { Signup::Taken })
    }

    pub(super) async fn user(&self, key: &UserKey) -> Result<Option<User>> {
        let answer = self.run(statements::USER, &[text(&key.as_str())]).await?;
        answer.first().map(user).transpose()
    }

    pub(super) async fn record_login(&self, statement: &str, login: &Login) -> Result<()> {
        let (id, address) = (login.id.to_string(), login.address.to_string());
        self.run(
            statement,
            &[
                text(&login.user.as_str()),
                (&login.at.0, Type::INT8),
                text(&id),
                text(&address),
                text(&login.instance),
                (&login.succeeded, Type::BOOL),
            ],
        )
        .await?;
        Ok(())
    }

    pub(super) async fn logins(&self, key: &UserKey, after: Option<Cursor>, limit: usize) -> Result<Vec<Login>> {
        let (at_ms, id, limit) = bounds(after, limit);
        let key = key.as_str();
        let parameters = [text(&key), (&at_ms, Type::INT8), text(&id), (&limit, Type::INT8)];
        self.run(statements::LOGINS, &parameters).await?.iter().map(login).collect()
    }

    pub(super) async fn login_by_key(&self, key: &UserKey, cursor: Cursor) -> Result<Option<Login>> {
        let (key, id) = (key.as_str(), cursor.id.to_string());
        let parameters = [text(&key), (&cursor.at.0 as &(dyn ToSql + Sync), Type::INT8), text(&id)];
        self.run(statements::LOGIN_BY_KEY, &parameters).await?.first().map(login).transpose()
    }

    pub(super) async fn add_post(&self, statement: &str, post: &Post) -> Result<()> {
        let id = post.id.to_string();
        let picture = post.picture.as_ref();
        let name = picture.map(|picture| picture.name.to_string());
        let alt = picture.map(|picture| picture.alt.as_str());
        let side = |side: u32| i32::try_from(side).unwrap_or(i32::MAX);
        let (width, height) = (picture.map(|p| side(p.width)), picture.map(|p| side(p.height)));
        self.run(
            statement,
            &[
                text(&id),
                (&post.created.0, Type::INT8),
                text(&post.author.as_str()),
                text(&post.text),
                (&name, Type::TEXT),
                (&alt, Type::TEXT),
                (&width, Type::INT4),
                (&height, Type::INT4),
            ],
        )
        .await?;
        Ok(())
    }

    pub(super) async fn posts(&self, after: Option<Cursor>, limit: usize) -> Result<Vec<Post>> {
        let (at_ms, id, limit) = bounds(after, limit);
        let parameters = [(&at_ms as &(dyn ToSql + Sync), Type::INT8), text(&id), (&limit, Type::INT8)];
        self.run(statements::POSTS, &parameters).await?.iter().map(post).collect()
    }

    pub(super) async fn post_by_key(&self, cursor: Cursor) -> Result<Option<Post>> {
        let id = cursor.id.to_string();
        self.run(statements::POST_BY_KEY, &[text(&id)]).await?.first().map(post).transpose()
    }

    pub(super) async fn ready(&self) -> Result<()> {
        self.attempt(statements::READY, &[]).await.map(|_| ()).map_err(|failure| failure.error)
    }
}

fn text<T: ToSql + Sync>(value: &T) -> Parameter<'_> {
    (value, Type::TEXT)
}

/// The start of a list, after the cursor or at the beginning, and its length.
fn bounds(after: Option<Cursor>, limit: usize) -> (i64, String, i64) {
    let (at_ms, id) = after.map_or((i64::MAX, String::new()), |cursor| (cursor.at.0, cursor.id.to_string()));
    (at_ms, id, i64::try_from(limit).unwrap_or(i64::MAX))
}

fn user(row: &Row) -> Result<User> {
    Ok(User {
        id: parsed(row, "id")?,
        name: parsed(row, "name")?,
        password_hash: column(row, "password_hash")?,
        created: Millis(column(row, "created_ms")?),
    })
}

fn login(row: &Row) -> Result<Login> {
    Ok(Login {
        id: parsed(row, "id")?,
        user: UserKey::from_stored(column(row, "user_key")?),
        at: Millis(column(row, "at_ms")?),
        address: parsed(row, "address")?,
        instance: column(row, "instance")?,
        succeeded: column(row, "succeeded")?,
    })
}

fn post(row: &Row) -> Result<Post> {
    let picture = match column::<Option<String>>(row, "picture")? {
        None => None,
        Some(_) => Some(Picture {
            name: parsed(row, "picture")?,
            alt: column(row, "picture_alt")?,
            width: side(row, "picture_width")?,
            height: side(row, "picture_height")?,
        }),
    };
    Ok(Post {
        id: parsed(row, "id")?,
        created: Millis(column(row, "created_ms")?),
        author: parsed(row, "author")?,
        text: column(row, "text")?,
        picture,
    })
}

fn side(row: &Row, name: &str) -> Result<u32> {
    column::<i32>(row, name)?.try_into().map_err(StoreError::corrupt)
}

fn column<'r, T: tokio_postgres::types::FromSql<'r>>(row: &'r Row, name: &str) -> Result<T> {
    row.try_get(name).map_err(StoreError::corrupt)
}

fn parsed<T>(row: &Row, name: &str) -> Result<T>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    column::<&str>(row, name)?.parse().map_err(StoreError::corrupt)
}

/// Statements are repeatable, so any failure that is not caused by the statement itself may be temporary.
fn failure(error: tokio_postgres::Error) -> Failure {
    let again = error.code().is_none_or(|code| !is_lasting(code));
    // Class 22 of SQLSTATE: data exceptions.
    let is_unfit = error.code().is_some_and(|code| code.code().starts_with("22"));
    let error = DatabaseErrorText(error);
    Failure { error: if is_unfit { StoreError::unfit(error) } else { StoreError::unavailable(error) }, again }
}

fn is_lasting(code: &SqlState) -> bool {
    // SQLSTATE classes of permanent errors: unsupported feature, data, constraints, authorisation, unknown database or
    // schema, syntax, names and privileges.
    const LASTING: [&str; 7] = ["0A", "22", "23", "28", "3D", "3F", "42"];
    // CrateDB knows no tables, and only its default schema, while it recovers its state after a restart of all nodes.
    let unknown_yet = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME];
    !unknown_yet.contains(code) && LASTING.iter().any(|class| code.code().starts_with(class))
}

/// The library's own message is only "db error"; the database's message is in its source.
#[derive(Debug)]
struct DatabaseErrorText(tokio_postgres::Error);

impl std::fmt::Display for DatabaseErrorText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(error) = self.0.as_db_error() {
            return write!(f, "{} ({})", error.message(), error.code().code());
        }
        write!(f, "{}", self.0)?;
        match std::error::Error::source(&self.0) {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for DatabaseErrorText {}

const LOG_INTERVAL: Duration = Duration::from_secs(5);
const MASTER_POLL_INTERVAL: Duration = Duration::from_millis(500);
