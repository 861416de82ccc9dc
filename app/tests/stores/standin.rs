//! A stand-in for CrateDB: a proxy before a real PostgreSQL that does what CrateDB does and PostgreSQL does not.
//!
//! - Each statement runs on a connection of its own. Of two that are pipelined on one connection, the second is
//!   answered first. What was sent runs to its end, whether or not its client is still there.
//! - There are two copies of every table. A row is written to the primary, some time later to the replica, and only
//!   then acknowledged. A write that changes nothing is answered at once. Reads by primary key go to both copies in
//!   turn.
//! - Any other read sees what was there at the last refresh, which comes once a second.
//! - There are three nodes. One that is frozen takes connections and answers nothing; what is asked of the others waits
//!   for it until fault detection takes it out of the cluster.
//! - Without a master every write is refused, while reads go on and `sys.nodes` still counts three: only
//!   `sys.cluster` tells.
//! - After a restart of all nodes neither tables nor schemas nor users are known until the state is recovered.
//! - `crate` may do everything. Others do not see that there is a schema `sys`, but for the tables that they were
//!   granted.
//! - A list is read in two phases, of which the second leaves locks behind when a node hangs, unless its session has
//!   said otherwise. The locks are not there, but such lists are counted.
//! - A cancel request ends what runs on a connection.
//!
//! It asks for no passwords.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::link::Link;
use crate::postgres::Postgres;

pub const NODES: usize = 3;

pub struct CrateStandIn {
    cluster: Arc<Cluster>,
    nodes: Vec<Link>,
}

impl CrateStandIn {
    /// With all tables, and without lag.
    pub async fn start() -> Self {
        let server = Postgres::start_trusting();
        server.sql(include_str!("../../../sql/postgres.sql"));
        server.sql(
            // CrateDB's primary key includes the partition's column, which PostgreSQL's tables do not need.
            "ALTER TABLE logins ADD month BIGINT GENERATED ALWAYS AS (at_ms / 2592000000) STORED;
            CREATE UNIQUE INDEX ON logins (user_key, at_ms, id, month);
            CREATE SCHEMA sys; CREATE TABLE sys.nodes (name TEXT); CREATE TABLE sys.shards (state TEXT);
            CREATE TABLE sys.cluster (master_node TEXT);
            INSERT INTO sys.nodes VALUES ('cratedb-1'), ('cratedb-2'), ('cratedb-3');
            INSERT INTO sys.cluster VALUES ('2U65Z5F2QFu5YT9dWGJElw')",
        );
        for copy in [REPLICA, SEARCHED] {
            server.sql(&format!("CREATE DATABASE {copy} TEMPLATE postgres"));
        }
        let (writes, replicated) = mpsc::unbounded_channel();
        let cluster = Arc::new(Cluster {
            server,
            lag_ms: AtomicU64::new(0),
            reads: AtomicUsize::new(0),
            pipelined: AtomicUsize::new(0),
            fetched: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            writes: Mutex::new(writes),
            unsearched: Mutex::default(),
            refreshes: AtomicBool::new(true),
            recovered: AtomicBool::new(true),
            master: AtomicBool::new(true),
            detected: SyncMutex::new(Instant::now()),
            granted: SyncMutex::default(),
            sent: SyncMutex::default(),
            sessions: SyncMutex::default(),
        });
        tokio::spawn(replicate(cluster.server.port, replicated));
        tokio::spawn(refresh(Arc::clone(&cluster)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let nodes = join_all((0..NODES).map(|_| Link::to(port))).await;
        let accepting = Arc::clone(&cluster);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A client that leaves ends its session with an error.
                tokio::spawn(serve(stream, Arc::clone(&accepting)));
            }
        });
        Self { cluster, nodes }
    }

    pub fn url(&self) -> String {
        self.url_of("crate")
    }

    pub fn url_of(&self, user: &str) -> String {
        let nodes: Vec<_> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("postgresql://{user}@{}/doc", nodes.join(","))
    }

    /// How long the replica lags behind for later writes.
    pub fn set_lag(&self, lag: Duration) {
        self.cluster.lag_ms.store(lag.as_millis().try_into().unwrap(), Ordering::Relaxed);
    }

    /// Lists show no new rows from now on, or show them again, as after a refresh.
    pub fn set_refreshes(&self, on: bool) {
        self.cluster.refreshes.store(on, Ordering::Relaxed);
    }

    /// A node hangs. The others wait for it until fault detection removes it.
    pub fn freeze(&self, node: usize, detection: Duration) {
        *locked(&self.cluster.detected) = Instant::now() + detection;
        self.nodes[node].stall();
    }

    pub fn thaw(&self, node: usize) {
        *locked(&self.cluster.detected) = Instant::now();
        self.nodes[node].restore();
    }

    /// A node ends: its connections break, and it accepts no new ones.
    pub fn kill(&self, node: usize) {
        self.nodes[node].cut();
    }

    pub fn start_again(&self, node: usize) {
        self.nodes[node].restore();
    }

    pub fn set_master(&self, there: bool) {
        self.cluster.master.store(there, Ordering::Relaxed);
        let node = if there { "'2U65Z5F2QFu5YT9dWGJElw'" } else { "NULL" };
        self.cluster.server.sql(&format!("UPDATE sys.cluster SET master_node = {node}"));
    }

    /// All nodes restart: every connection ends, and no table is known until [`recover`](Self::recover).
    pub fn restart(&self) {
        self.cluster.recovered.store(false, Ordering::Relaxed);
        (0..NODES).for_each(|node| self.kill(node));
        (0..NODES).for_each(|node| self.start_again(node));
    }

    pub fn recover(&self) {
        self.cluster.recovered.store(true, Ordering::Relaxed);
    }

    /// Lets users other than `crate` read a table of `sys`.
    pub fn grant(&self, table: &str) {
        locked(&self.cluster.granted).push(table.to_owned());
    }

    /// The statements since the last call, as they were sent, without session settings.
    pub fn take_sent(&self) -> Vec<String> {
        std::mem::take(&mut *locked(&self.cluster.sent))
    }

    /// The number of statements running, whether or not anybody waits for their answers.
    pub fn running(&self) -> usize {
        self.cluster.running.load(Ordering::Relaxed)
    }

    /// The number of statements sent before the previous one on their connection had been answered.
    pub fn pipelined(&self) -> usize {
        self.cluster.pipelined.load(Ordering::Relaxed)
    }

    /// The number of lists read in two phases.
    pub fn fetched(&self) -> usize {
        self.cluster.fetched.load(Ordering::Relaxed)
    }
}

struct Cluster {
    server: Postgres,
    lag_ms: AtomicU64,
    reads: AtomicUsize,
    pipelined: AtomicUsize,
    fetched: AtomicUsize,
    running: AtomicUsize,
    /// What lists do not show yet, in the primary's order.
    unsearched: Mutex<Vec<Arc<Statement>>>,
    refreshes: AtomicBool,
    recovered: AtomicBool,
    master: AtomicBool,
    /// When a frozen node leaves the cluster.
    detected: SyncMutex<Instant>,
    granted: SyncMutex<Vec<String>>,
    sent: SyncMutex<Vec<String>>,
    /// How to cancel running statements, by the key that a client got.
    sessions: SyncMutex<HashMap<Vec<u8>, Arc<Notify>>>,
    /// What the primary has and the replica lacks, in the primary's order. Locked during a write to the primary.
    writes: Mutex<mpsc::UnboundedSender<Write>>,
}

/// A write that the replica lacks.
struct Write {
    statement: Arc<Statement>,
    due: Instant,
    done: oneshot::Sender<()>,
}

const PRIMARY: &str = "postgres";
const REPLICA: &str = "replica";
/// The schema from which lists are read.
const SEARCHED: &str = "searched";

fn locked<T>(of: &SyncMutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn refresh(cluster: Arc<Cluster>) {
    loop {
        sleep(Duration::from_secs(1)).await;
        if cluster.refreshes.load(Ordering::Relaxed) {
            for statement in std::mem::take(&mut *cluster.unsearched.lock().await) {
                let _ = run(cluster.server.port, SEARCHED, &statement).await;
            }
        }
    }
}

async fn replicate(port: u16, mut writes: mpsc::UnboundedReceiver<Write>) {
    while let Some(write) = writes.recv().await {
        sleep_until(write.due).await;
        if run(port, REPLICA, &write.statement).await.is_ok() {
            let _ = write.done.send(());
        }
    }
}

/// Counts a statement while it runs.
struct Running(Arc<Cluster>);

impl Running {
    fn new(cluster: &Arc<Cluster>) -> Self {
        cluster.running.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(cluster))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Cluster {
    /// Why a user's statement cannot be answered now.
    fn refusal(&self, user: &str, statement: &str) -> Option<Vec<Message>> {
        let asks_sys = statement.split_once("FROM sys.").map(|(_, rest)| rest.split(' ').next().unwrap_or_default());
        let is_granted = |table: &str| locked(&self.granted).iter().any(|granted| granted == table);
        if asks_sys.is_some_and(|table| user != "crate" && !is_granted(table)) {
            return Some(refused("3F000", "Schema 'sys' unknown"));
        }
        let is_setting = statement.starts_with("SET ");
        let asks_of_itself = is_setting || asks_sys.is_some() || statement.contains("information_schema");
        if !asks_of_itself && !self.recovered.load(Ordering::Relaxed) {
            let table = ["users", "logins", "posts"].into_iter().find(|table| statement.contains(table));
            return Some(refused("42P01", &format!("Relation '{}' unknown", table.unwrap_or_default())));
        }
        if !is_setting && !statement.starts_with("SELECT") && !self.master.load(Ordering::Relaxed) {
            return Some(refused("XX000", "blocked by: [MASTER_NOT_DISCOVERED/2/no master];"));
        }
        None
    }

    async fn answer(&self, statement: Arc<Statement>) -> io::Result<Vec<Message>> {
        let port = self.server.port;
        let text = &statement.text;
        if text.starts_with("SET ") {
            return Ok(vec![Message::new(b'C', b"SET\0"), Message::new(b'Z', b"I")]);
        }
        if text.contains("FROM sys.") || text.contains("information_schema") {
            return run(port, PRIMARY, &statement).await;
        }
        // Its shards are on all nodes.
        let detected = *locked(&self.detected);
        sleep_until(detected).await;
        let verb = text.split(' ').next().unwrap_or_default().to_uppercase();
        match verb.as_str() {
            // A list or count, or several keys as one value.
            "SELECT" if ["ORDER BY", "ANY("].iter().any(|word| text.contains(word)) || !text.contains("WHERE") => {
                run(port, SEARCHED, &statement).await
            }
            "SELECT" => {
                let copy = [PRIMARY, REPLICA][self.reads.fetch_add(1, Ordering::Relaxed) % 2];
                run(port, copy, &statement).await
            }
            _ => {
                let writes = self.writes.lock().await;
                let answer = run(port, PRIMARY, &statement).await?;
                let tag = answer.iter().find(|message| message.tag == b'C').map_or(&b""[..], Message::body);
                if tag.ends_with(b" 0\0") {
                    return Ok(answer);
                }
                self.unsearched.lock().await.push(Arc::clone(&statement));
                let lag = Duration::from_millis(self.lag_ms.load(Ordering::Relaxed));
                let (done, replicated) = oneshot::channel();
                let write = Write { statement, due: Instant::now() + lag, done };
                writes.send(write).map_err(io::Error::other)?;
                drop(writes);
                replicated.await.map_err(io::Error::other)?;
                Ok(answer)
            }
        }
    }
}

/// Serves one client.
async fn serve(stream: TcpStream, cluster: Arc<Cluster>) -> io::Result<()> {
    let (mut from, mut to) = stream.into_split();
    let user = loop {
        let (code, rest) = read_startup(&mut from).await?;
        match code {
            SSL_REQUEST => to.write_all(b"N").await?,
            CANCEL_REQUEST => {
                if let Some(session) = locked(&cluster.sessions).get(&rest) {
                    session.notify_waiters();
                }
                return Ok(());
            }
            _ => break parameter(&rest, "user"),
        }
    };
    if user != "crate" && !cluster.recovered.load(Ordering::Relaxed) {
        return write(&mut to, &refused("28000", &format!("trust authentication failed for user \"{user}\""))).await;
    }
    let (_, _, greeting) = connect(cluster.server.port, PRIMARY).await?;
    let cancelled = Arc::new(Notify::new());
    if let Some(key) = greeting.iter().find(|message| message.tag == b'K') {
        locked(&cluster.sessions).insert(key.body().to_vec(), Arc::clone(&cancelled));
    }
    write(&mut to, &greeting).await?;

    let (sender, mut statements) = mpsc::unbounded_channel();
    tokio::spawn(read_statements(from, sender));
    let mut fetches = true;
    // Those that run, or are done and wait for an earlier one.
    let mut unanswered: Vec<JoinHandle<io::Result<Vec<Message>>>> = Vec::new();
    loop {
        tokio::select! {
            statement = statements.recv() => {
                let Some(statement) = statement else { return Ok(()) };
                cluster.pipelined.fetch_add(usize::from(!unanswered.is_empty()), Ordering::Relaxed);
                fetches &= !statement.text.contains("optimizer_rewrite_to_query_then_fetch = false");
                let is_fetched = fetches && statement.text.contains("ORDER BY");
                cluster.fetched.fetch_add(usize::from(is_fetched), Ordering::Relaxed);
                if !statement.text.starts_with("SET ") {
                    locked(&cluster.sent).push(statement.text.clone());
                }
                let refusal = cluster.refusal(&user, &statement.text);
                let (cluster, cancelled) = (Arc::clone(&cluster), Arc::clone(&cancelled));
                unanswered.push(tokio::spawn(async move {
                    let _running = Running::new(&cluster);
                    if let Some(refusal) = refusal {
                        return Ok(refusal);
                    }
                    tokio::select! {
                        answer = cluster.answer(Arc::new(statement)) => answer,
                        () = cancelled.notified() => Ok(refused("57014", "Job killed.")),
                    }
                }));
            }
            () = sleep(ANOTHER_MAY_COME), if !unanswered.is_empty() => {
                let Some(latest) = unanswered.pop() else { continue };
                write(&mut to, &latest.await.map_err(io::Error::other)??).await?;
            }
        }
    }
}

/// Time for the next statement to overtake.
const ANOTHER_MAY_COME: Duration = Duration::from_millis(2);

/// One statement: all messages up to a `Sync`, or one `Query`.
struct Statement {
    text: String,
    messages: Vec<Message>,
    /// Whether the first message was added here: a `Parse` that the client sent separately.
    parsed_before: bool,
}

async fn read_statements(mut from: OwnedReadHalf, to: mpsc::UnboundedSender<Statement>) -> io::Result<()> {
    let mut prepared: HashMap<Vec<u8>, Message> = HashMap::new();
    let mut messages: Vec<Message> = Vec::new();
    loop {
        let mut message = Message::read(&mut from).await?;
        if message.tag == b'P' {
            message = with_table_named(&message);
        }
        let is_end = matches!(message.tag, b'S' | b'Q');
        if message.tag == b'P' && !message.string(0).is_empty() {
            prepared.insert(message.string(0).to_vec(), message.clone());
        }
        messages.push(message);
        if !is_end {
            continue;
        }
        // A `Bind` names a portal, then the statement.
        let bound = messages.iter().find(|message| message.tag == b'B').map(|bind| bind.string(1).to_vec());
        let parsed_before = messages[0].tag != b'P';
        if let Some(parse) = bound.filter(|_| parsed_before).and_then(|name| prepared.get(&name)) {
            messages.insert(0, parse.clone());
        }
        let text = match &messages[0] {
            query if query.tag == b'Q' => query.string(0),
            parse if parse.tag == b'P' => parse.string(1),
            _ => b"",
        };
        let text = String::from_utf8_lossy(text).into_owned();
        let parsed_before = parsed_before && messages[0].tag == b'P';
        let statement = Statement { text, messages: std::mem::take(&mut messages), parsed_before };
        if to.send(statement).is_err() {
            return Ok(());
        }
    }
}

/// In `ON CONFLICT … DO UPDATE SET a = a`, CrateDB reads the second `a` as that of the existing row, and accepts no
/// other form; PostgreSQL requires the table's name.
fn with_table_named(parse: &Message) -> Message {
    let [name, query, types] = parse.body().splitn(3, |&byte| byte == 0).collect::<Vec<_>>()[..] else {
        return parse.clone();
    };
    let query = String::from_utf8_lossy(query);
    let table = query.split(' ').nth(2).unwrap_or_default();
    let Some((column, _)) = query.split_once(" DO UPDATE SET ").and_then(|(_, set)| set.split_once(" = ")) else {
        return parse.clone();
    };
    let named = query.replace(&format!("SET {column} = "), &format!("SET {column} = {table}."));
    Message::new(b'P', &[name, named.as_bytes(), types].join(&0))
}

/// Runs a statement on a separate connection.
async fn run(port: u16, database: &str, statement: &Statement) -> io::Result<Vec<Message>> {
    let (mut from, mut to, _) = connect(port, database).await?;
    write(&mut to, &statement.messages).await?;
    let mut answer = read_answer(&mut from).await?;
    if statement.parsed_before && answer.first().is_some_and(|message| message.tag == b'1') {
        answer.remove(0);
    }
    Ok(answer)
}

/// A connection to PostgreSQL, and its first messages.
async fn connect(port: u16, database: &str) -> io::Result<(OwnedReadHalf, OwnedWriteHalf, Vec<Message>)> {
    let (mut from, mut to) = TcpStream::connect(("127.0.0.1", port)).await?.into_split();
    let mut startup = PROTOCOL_3.to_be_bytes().to_vec();
    startup.extend_from_slice(format!("user\0app\0database\0{database}\0\0").as_bytes());
    to.write_all(&(startup.len() as u32 + 4).to_be_bytes()).await?;
    to.write_all(&startup).await?;
    let greeting = read_answer(&mut from).await?;
    Ok((from, to, greeting))
}

const PROTOCOL_3: u32 = 3 << 16;
const SSL_REQUEST: u32 = 80_877_103;
const CANCEL_REQUEST: u32 = 80_877_102;

/// An error, as an answer.
fn refused(code: &str, message: &str) -> Vec<Message> {
    let body = format!("SERROR\0VERROR\0C{code}\0M{message}\0\0");
    vec![Message::new(b'E', body.as_bytes()), Message::new(b'Z', b"I")]
}

/// A parameter that a client sends when it connects.
fn parameter(startup: &[u8], name: &str) -> String {
    let mut words = startup.split(|&byte| byte == 0);
    words.find(|word| *word == name.as_bytes());
    String::from_utf8_lossy(words.next().unwrap_or_default()).into_owned()
}

/// The code of a first message, which has no tag, and the rest of it.
async fn read_startup(from: &mut OwnedReadHalf) -> io::Result<(u32, Vec<u8>)> {
    let length = from.read_u32().await?;
    let code = from.read_u32().await?;
    let mut rest = vec![0; length as usize - 8];
    from.read_exact(&mut rest).await?;
    Ok((code, rest))
}

/// Reads up to `ReadyForQuery`.
async fn read_answer(from: &mut OwnedReadHalf) -> io::Result<Vec<Message>> {
    let mut answer = Vec::new();
    loop {
        let message = Message::read(from).await?;
        let is_end = message.tag == b'Z';
        answer.push(message);
        if is_end {
            return Ok(answer);
        }
    }
}

async fn write(to: &mut OwnedWriteHalf, messages: &[Message]) -> io::Result<()> {
    let bytes: Vec<u8> = messages.iter().flat_map(|message| message.bytes.iter().copied()).collect();
    to.write_all(&bytes).await
}

#[derive(Clone)]
struct Message {
    tag: u8,
    /// As sent: tag, length, body.
    bytes: Vec<u8>,
}

impl Message {
    fn new(tag: u8, body: &[u8]) -> Self {
        let mut bytes = vec![tag];
        bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        bytes.extend_from_slice(body);
        Self { tag, bytes }
    }

    async fn read(from: &mut OwnedReadHalf) -> io::Result<Self> {
        let tag = from.read_u8().await?;
        let length = from.read_u32().await?;
        let mut body = vec![0; length as usize - 4];
        from.read_exact(&mut body).await?;
        Ok(Self::new(tag, &body))
    }

    fn body(&self) -> &[u8] {
        &self.bytes[5..]
    }

    /// The string with this index among those at the start of the body.
    fn string(&self, place: usize) -> &[u8] {
        self.body().split(|&byte| byte == 0).nth(place).unwrap_or_default()
    }
}
