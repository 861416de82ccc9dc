//! A stand-in for CrateDB: a proxy before a real PostgreSQL that does what CrateDB does and PostgreSQL does not.
//!
//! - Each statement runs on a connection of its own. Of two that are pipelined on one connection, the second is answered
//!   first. What was sent runs to its end, whether or not its client is still there.
//! - There are two copies of every table. A row is written to the primary, some time later to the replica, and only then
//!   acknowledged. A write that changes nothing is answered at once. Reads go to both copies in turn.
//! - `REFRESH TABLE` is understood, and has nothing to do.
//!
//! It has no users: anyone is let in.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Mutex, mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use crate::postgres::Postgres;

pub struct CrateStandIn {
    cluster: Arc<Cluster>,
    address: SocketAddr,
}

impl CrateStandIn {
    /// With all tables, and without a lag.
    pub async fn start() -> Self {
        let server = Postgres::start_trusting();
        server.sql(include_str!("../../../sql/postgres.sql"));
        server.sql(
            // CrateDB's primary key has the partition's column in it, which PostgreSQL's tables have no use for.
            "ALTER TABLE logins ADD month BIGINT GENERATED ALWAYS AS (at_ms / 2592000000) STORED;
            CREATE UNIQUE INDEX ON logins (user_key, at_ms, id, month);
            CREATE SCHEMA sys; CREATE TABLE sys.nodes (); CREATE TABLE sys.shards (state TEXT);
            INSERT INTO sys.nodes DEFAULT VALUES",
        );
        server.sql("CREATE DATABASE replica TEMPLATE postgres");
        let (writes, replicated) = mpsc::unbounded_channel();
        let cluster = Arc::new(Cluster {
            server,
            lag_ms: AtomicU64::new(0),
            reads: AtomicUsize::new(0),
            pipelined: AtomicUsize::new(0),
            writes: Mutex::new(writes),
        });
        tokio::spawn(replicate(cluster.server.port, replicated));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = Arc::clone(&cluster);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A client that leaves ends its session with an error.
                tokio::spawn(serve(stream, Arc::clone(&accepting)));
            }
        });
        Self { cluster, address }
    }

    pub fn url(&self) -> String {
        format!("postgresql://crate@{}/doc", self.address)
    }

    /// How far the replica is behind, for what is written from now on.
    pub fn set_lag(&self, lag: Duration) {
        self.cluster.lag_ms.store(lag.as_millis().try_into().unwrap(), Ordering::Relaxed);
    }

    /// Statements that were sent before the one before them on their connection had been answered.
    pub fn pipelined(&self) -> usize {
        self.cluster.pipelined.load(Ordering::Relaxed)
    }
}

struct Cluster {
    server: Postgres,
    lag_ms: AtomicU64,
    reads: AtomicUsize,
    pipelined: AtomicUsize,
    /// What the primary has and the replica has not, in the primary's order. Held during a write to the primary.
    writes: Mutex<mpsc::UnboundedSender<Write>>,
}

/// On its way to the replica.
struct Write {
    statement: Statement,
    due: Instant,
    done: oneshot::Sender<()>,
}

const PRIMARY: &str = "postgres";
const REPLICA: &str = "replica";

async fn replicate(port: u16, mut writes: mpsc::UnboundedReceiver<Write>) {
    while let Some(write) = writes.recv().await {
        sleep_until(write.due).await;
        if run(port, REPLICA, &write.statement).await.is_ok() {
            let _ = write.done.send(());
        }
    }
}

impl Cluster {
    async fn answer(&self, statement: Statement) -> io::Result<Vec<Message>> {
        let port = self.server.port;
        let verb = statement.text.split(' ').next().unwrap_or_default().to_uppercase();
        match verb.as_str() {
            "REFRESH" => Ok(vec![Message::new(b'C', b"REFRESH 1\0"), Message::new(b'Z', b"I")]),
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

/// One client.
async fn serve(stream: TcpStream, cluster: Arc<Cluster>) -> io::Result<()> {
    let (mut from, mut to) = stream.into_split();
    while read_startup(&mut from).await? == SSL_REQUEST {
        to.write_all(b"N").await?;
    }
    let (_, _, greeting) = connect(cluster.server.port, PRIMARY).await?;
    write(&mut to, &greeting).await?;

    let (sender, mut statements) = mpsc::unbounded_channel();
    tokio::spawn(read_statements(from, sender));
    // Those that run, or are done and wait for one that came later.
    let mut unanswered: Vec<JoinHandle<io::Result<Vec<Message>>>> = Vec::new();
    loop {
        tokio::select! {
            statement = statements.recv() => {
                let Some(statement) = statement else { return Ok(()) };
                cluster.pipelined.fetch_add(usize::from(!unanswered.is_empty()), Ordering::Relaxed);
                let cluster = Arc::clone(&cluster);
                unanswered.push(tokio::spawn(async move { cluster.answer(statement).await }));
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
    /// Whether the first message was added here: a `Parse` that the client sent on its own.
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
        // A `Bind` names a portal and then the statement.
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

/// In `ON CONFLICT … DO UPDATE SET a = a`, CrateDB takes the second `a` for that of the row that is there, and no other
/// form; PostgreSQL wants it with its table.
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

/// Runs a statement on a connection of its own.
async fn run(port: u16, database: &str, statement: &Statement) -> io::Result<Vec<Message>> {
    let (mut from, mut to, _) = connect(port, database).await?;
    write(&mut to, &statement.messages).await?;
    let mut answer = read_answer(&mut from).await?;
    if statement.parsed_before && answer.first().is_some_and(|message| message.tag == b'1') {
        answer.remove(0);
    }
    Ok(answer)
}

/// A connection to PostgreSQL, and what that said to begin with.
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

/// The code of a first message, which has no tag.
async fn read_startup(from: &mut OwnedReadHalf) -> io::Result<u32> {
    let length = from.read_u32().await?;
    let code = from.read_u32().await?;
    let mut rest = vec![0; length as usize - 8];
    from.read_exact(&mut rest).await?;
    Ok(code)
}

/// All up to `ReadyForQuery`.
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

    /// The string at `place` of those that the body begins with.
    fn string(&self, place: usize) -> &[u8] {
        self.body().split(|&byte| byte == 0).nth(place).unwrap_or_default()
    }
}
