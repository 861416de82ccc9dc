//! Sessions in a Redis Cluster: one key per session, which Redis expires.
//!
//! The client follows moved slots and changed masters. But it does not recover from a node that stops answering without
//! closing its connections (frozen, or cut off): it sends to that node for ever. So after a timeout, one request
//! replaces the whole connection while the others wait, and then each is tried again. This also prevents lost writes: a
//! frozen master that resumes executes what waits in its sockets and acknowledges it before it learns that it has been
//! replaced, and then discards it all. The old connection must be closed by then.
//!
//! Reads go to masters. A replica may lag behind, and then a visitor whose session was just written appears logged out.
//! So there is no setting to read from replicas.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use prometheus::IntCounter;
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, ResponsePolicy, RoutingInfo};
use redis::{
    Cmd, ConnectionAddr, ErrorKind, FromRedisValue, RedisError, ServerErrorKind, TlsCertificates, TlsMode,
    from_redis_value,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::{Count, Id, Loaded, Reachability, Record, Result, SessionStore, TOMBSTONE_TTL};
use crate::config::{Address, Secret};
use crate::error::StoreError;
use crate::retry::{Failure, Retry};

/// The address of the cluster and the time limits. The flags' defaults come from measured failovers.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Some nodes of the cluster; the client finds the others through them.
    pub nodes: Vec<Address>,
    pub username: Option<String>,
    pub password: Option<Secret>,
    pub tls: Option<Tls>,
    /// The prefix of every key.
    pub prefix: String,
    /// The limit for connecting to one node.
    pub connect_timeout: Duration,
    /// The limit for one answer of one node.
    pub response_timeout: Duration,
    /// The first wait before a command is sent again within an attempt.
    pub retry_wait: Duration,
    /// The limit for connecting to all nodes again.
    pub rebuild_timeout: Duration,
    /// The limit for one attempt, including redirections and missing answers. Then the connection is replaced.
    pub attempt_timeout: Duration,
    /// The limit for one operation with all its attempts. Then the request fails.
    pub overall_timeout: Duration,
    /// How long a visitor's session lasts. Keys that protect accounts and ended sessions last longer: a full Redis
    /// evicts the keys with the shortest time to live first, and anybody can fill it with visitors' sessions.
    pub visitor_lifetime: Duration,
}

#[derive(Debug, Clone)]
pub struct Tls {
    /// Certificates in PEM format to trust instead of the system's.
    pub ca: Option<Vec<u8>>,
}

#[derive(Clone)]
pub struct RedisSessions(Arc<Cluster>);

struct Cluster {
    client: ClusterClient,
    settings: Settings,
    retry: Retry,
    link: ArcSwapOption<Link>,
    /// Locked while a connection is made. Contains the time of the last failure.
    making: Mutex<Option<Instant>>,
    replaced: IntCounter,
}

/// A connection to all nodes. Its address distinguishes it from later ones.
struct Link(ClusterConnection);

impl RedisSessions {
    /// Connects on first use. `replaced` counts the replaced connections.
    pub fn new(settings: Settings, replaced: IntCounter) -> anyhow::Result<Self> {
        let client = client(&settings)?;
        let retry = Retry::with_parts(settings.overall_timeout, PARTS + 1);
        let (link, making) = (ArcSwapOption::empty(), Mutex::new(None));
        Ok(Self(Arc::new(Cluster { client, settings, retry, link, making, replaced })))
    }

    fn key(&self, id: &Id) -> String {
        format!("{}{id}", self.0.settings.prefix)
    }

    /// Sends a command for `key` that may be repeated.
    async fn ask<T: FromRedisValue + Send>(&self, key: &str, command: &Cmd) -> Result<T> {
        self.ask_part(part_of(key), command, None).await
    }

    /// Sends a command to the nodes in `routing`; without `routing`, to the node that has the key.
    async fn ask_part<T: FromRedisValue + Send>(
        &self,
        part: usize,
        command: &Cmd,
        routing: Option<RoutingInfo>,
    ) -> Result<T> {
        let cluster = &self.0;
        cluster.retry.run_in(part, || Arc::clone(cluster).attempt(part, command, routing.clone())).await
    }

    /// Runs a script atomically on one key.
    async fn run<T: FromRedisValue + Send>(&self, script: &str, key: &str, arguments: &[&[u8]]) -> Result<T> {
        let mut command = Cmd::new();
        command.arg("EVAL").arg(script).arg(1).arg(key).arg(arguments);
        self.ask(key, &command).await
    }

    /// The key of something other than a session. Session ids contain no colon.
    fn key_beside(&self, kind: &str, name: &str) -> String {
        format!("{}{kind}:{name}", self.0.settings.prefix)
    }
}

impl Cluster {
    async fn attempt<T: FromRedisValue>(
        self: Arc<Self>,
        part: usize,
        command: &Cmd,
        routing: Option<RoutingInfo>,
    ) -> std::result::Result<T, Failure> {
        let link = match self.link.load_full() {
            Some(link) => link,
            None => self.make(None).await?,
        };
        let mut connection = link.0.clone();
        let away = self.retry.is_away(part);
        // The client has the same limit; this one applies if the client fails to keep it.
        let limit = if away { self.settings.response_timeout } else { self.settings.attempt_timeout + GRACE };
        let asked = async {
            match routing {
                None => command.query_async(&mut connection).await,
                Some(routing) => Ok(from_redis_value(connection.route_command(command.clone(), routing).await?)?),
            }
        };
        let error = match timeout(limit, asked).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => match remedy(&error) {
                Remedy::None => return Err(Failure::lasting(unavailable(error))),
                Remedy::Time => return Err(Failure::passing(unavailable(error))),
                Remedy::NewConnection => unavailable(error),
            },
            Err(_) => StoreError::unavailable("no answer in time"),
        };
        // If this fails, the next attempt uses the old connection, which may have recovered.
        let replacing = async move { self.make(Some(&link)).await };
        if away {
            // No request waits for a part that has been away for long.
            tokio::spawn(replacing);
        } else {
            let _ = replacing.await;
        }
        Err(Failure::passing(error))
    }

    /// Returns a connection other than `old`. Makes one unless another request just has.
    async fn make(&self, old: Option<&Arc<Link>>) -> std::result::Result<Arc<Link>, Failure> {
        let asked = Instant::now();
        let mut failed = self.making.lock().await;
        let current = self.link.load_full();
        if let Some(current) = current.filter(|current| old.is_none_or(|old| !Arc::ptr_eq(old, current))) {
            return Ok(current);
        }
        if failed.is_some_and(|failed| failed > asked) {
            let error = StoreError::unavailable("no node of the cluster could be reached a moment ago");
            return Err(Failure::passing(error));
        }
        if old.is_some() {
            self.replaced.inc();
        }
        // Connecting can hang, and the client does not limit the whole of it. It waits for a frozen node several times:
        // as a configured node, as a node listed by the others, and for that node's own list.
        let made = timeout(self.settings.rebuild_timeout, self.client.get_async_connection()).await;
        let error = match made {
            Ok(Ok(connection)) => {
                let link = Arc::new(Link(connection));
                self.link.store(Some(Arc::clone(&link)));
                return Ok(link);
            }
            Ok(Err(error)) if is_refused(&error) => Failure::lasting(unavailable(error)),
            Ok(Err(error)) => Failure::passing(unavailable(error)),
            Err(_) => Failure::passing(StoreError::unavailable("the cluster could not be connected to in time")),
        };
        *failed = Some(Instant::now());
        Err(error)
    }
}

#[async_trait]
impl SessionStore for RedisSessions {
    async fn create(&self, record: &Record) -> Result<bool> {
        let (key, mut command) = (self.key(&record.id), Cmd::new());
        command.arg("SET").arg(&key).arg(kept(record)?).arg("PX").arg(left(record)).arg("NX");
        let created: Option<String> = self.ask(&key, &command).await?;
        Ok(created.is_some())
    }

    async fn save(&self, record: &Record) -> Result<bool> {
        let (kept, left) = (kept(record)?, left(record).to_string());
        self.run(SAVE, &self.key(&record.id), &[&kept, left.as_bytes(), ENDED]).await
    }

    async fn load(&self, id: &Id) -> Result<Loaded> {
        let key = self.key(id);
        let found: Option<Vec<u8>> = self.ask(&key, Cmd::new().arg("GET").arg(&key)).await?;
        found.map_or(Ok(Loaded::Nothing), |value| read(*id, &value))
    }

    async fn delete(&self, id: &Id) -> Result<()> {
        let lifetime = whole_millis(self.0.settings.visitor_lifetime.saturating_add(TOMBSTONE_TTL)).to_string();
        self.run(END, &self.key(id), &[&ended()?, lifetime.as_bytes(), ENDED]).await
    }

    async fn enrol(&self, name: &str, entry: &str, lifetime: Duration) -> Result<Vec<String>> {
        let lifetime = whole_millis(lifetime).to_string();
        self.run(ENROL, &self.key_beside("list", name), &[entry.as_bytes(), lifetime.as_bytes()]).await
    }

    async fn list(&self, name: &str) -> Result<Vec<String>> {
        let key = self.key_beside("list", name);
        self.ask(&key, Cmd::new().arg("LRANGE").arg(&key).arg(0).arg(-1)).await
    }

    async fn strike(&self, name: &str, entries: &[String]) -> Result<()> {
        let key = self.key_beside("list", name);
        for entry in entries {
            let mut command = Cmd::new();
            command.arg("LREM").arg(&key).arg(0).arg(entry);
            let _: i64 = self.ask(&key, &command).await?;
        }
        Ok(())
    }

    async fn count(&self, name: &str, entry: &str, window: Duration) -> Result<Count> {
        let lifetime = whole_millis(window.saturating_add(self.0.settings.visitor_lifetime)).to_string();
        let (window, key) = (whole_millis(window).to_string(), self.key_beside("count", name));
        let arguments = [entry.as_bytes(), window.as_bytes(), lifetime.as_bytes()];
        let (number, left): (u32, u64) = self.run(COUNT, &key, &arguments).await?;
        Ok(Count { number, left: Duration::from_millis(left) })
    }

    async fn uncount(&self, name: &str, entry: &str) -> Result<()> {
        let (key, mut command) = (self.key_beside("count", name), Cmd::new());
        command.arg("HDEL").arg(&key).arg(entry);
        let _: i64 = self.ask(&key, &command).await?;
        Ok(())
    }

    /// Reads the state from any master that answers: slots of an unreachable node are not served.
    async fn reach(&self) -> Result<Reachability> {
        let masters = (MultipleNodeRoutingInfo::AllMasters, Some(ResponsePolicy::OneSucceeded));
        let info: String =
            self.ask_part(PARTS, Cmd::new().arg("CLUSTER").arg("INFO"), Some(RoutingInfo::MultiNode(masters))).await?;
        let figure = |name: &str| {
            info.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':')?.parse::<u16>().ok())
        };
        let served =
            figure("cluster_slots_ok").ok_or_else(|| StoreError::corrupt("CLUSTER INFO without its figures"))?;
        Ok(if served == SLOTS {
            Reachability::Whole
        } else {
            Reachability::Partial(format!("{served} of {SLOTS} slots are served"))
        })
    }

    fn is_away(&self, id: &Id) -> bool {
        self.0.retry.is_away(part_of(&self.key(id)))
    }
}

impl fmt::Debug for RedisSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedisSessions").field(&self.0.settings.nodes).finish()
    }
}

/// The value of a session's key.
#[derive(Serialize, Deserialize)]
struct Kept<D> {
    /// In addition to the expiry of Redis, so that it is exact to the millisecond and needs no second command. Negative
    /// for an ended session: the time until which the end is remembered.
    expires_ms: i64,
    data: D,
}

fn kept(record: &Record) -> Result<Vec<u8>> {
    serde_json::to_vec(&Kept { expires_ms: millis(record.expiry_date), data: &record.data })
        .map_err(StoreError::corrupt)
}

/// The value of the key of an ended session.
fn ended() -> Result<Vec<u8>> {
    let until = millis(OffsetDateTime::now_utc()).saturating_add(whole_millis(TOMBSTONE_TTL));
    serde_json::to_vec(&Kept { expires_ms: -until, data: HashMap::<String, ()>::new() }).map_err(StoreError::corrupt)
}

/// The milliseconds that a session has left. Relative, because the clocks of this machine and of Redis may differ.
fn left(record: &Record) -> i64 {
    millis(record.expiry_date).saturating_sub(millis(OffsetDateTime::now_utc())).max(1)
}

fn read(id: Id, value: &[u8]) -> Result<Loaded> {
    let kept: Kept<HashMap<String, serde_json::Value>> = serde_json::from_slice(value).map_err(StoreError::corrupt)?;
    let now = millis(OffsetDateTime::now_utc());
    if kept.expires_ms.saturating_abs() <= now {
        return Ok(Loaded::Nothing);
    }
    if kept.expires_ms < 0 {
        return Ok(Loaded::Ended);
    }
    let expiry_date = OffsetDateTime::from_unix_timestamp_nanos(i128::from(kept.expires_ms) * 1_000_000)
        .map_err(StoreError::corrupt)?;
    Ok(Loaded::Session(Record { id, data: kept.data, expiry_date }))
}

fn millis(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// A time to live that Redis accepts: above zero, and small enough to add to the present.
fn whole_millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX).clamp(1, i64::MAX / 4)
}

fn client(settings: &Settings) -> anyhow::Result<ClusterClient> {
    let address = |node: &Address| match &settings.tls {
        None => ConnectionAddr::Tcp(node.host.clone(), node.port),
        Some(_) => {
            ConnectionAddr::TcpTls { host: node.host.clone(), port: node.port, insecure: false, tls_params: None }
        }
    };
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let mut builder = ClusterClientBuilder::new(settings.nodes.iter().map(address))
        .connection_timeout(settings.connect_timeout)
        .response_timeout(settings.response_timeout)
        .overall_response_timeout(Some(settings.attempt_timeout))
        // The attempt's limit expires before these retries do.
        .retries(RETRIES)
        .min_retry_wait(millis(settings.retry_wait))
        .max_retry_wait(millis(settings.retry_wait * 8));
    if let Some(username) = &settings.username {
        builder = builder.username(username);
    }
    if let Some(password) = &settings.password {
        builder = builder.password(password.reveal());
    }
    if let Some(tls) = &settings.tls {
        builder = builder.tls(TlsMode::Secure);
        builder = builder.certs(TlsCertificates { client_tls: None, root_cert: tls.ca.clone() });
    }
    Ok(builder.build()?)
}

/// What can help after an error.
enum Remedy {
    None,
    /// The cluster is changing: electing, loading, moving slots.
    Time,
    NewConnection,
}

fn remedy(error: &RedisError) -> Remedy {
    match error.kind() {
        ErrorKind::Server(
            ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::TryAgain
            | ServerErrorKind::BusyLoading,
        ) => Remedy::Time,
        ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::ReadOnly)
        | ErrorKind::Io
        | ErrorKind::ClusterConnectionNotFound
        | ErrorKind::Parse => Remedy::NewConnection,
        _ => Remedy::None,
    }
}

/// Whether the nodes reject the password, or the client rejects their certificate. After a failed first connection, the
/// client has only the error's text.
fn is_refused(error: &RedisError) -> bool {
    let words = error.to_string();
    ["Password authentication failed", "invalid peer certificate"].iter().any(|refusal| words.contains(refusal))
}

fn unavailable(error: RedisError) -> StoreError {
    StoreError::unavailable(error)
}

/// The part of the cluster that has a key. Each node has many parts, and few parts belong to two nodes.
fn part_of(key: &str) -> usize {
    usize::from(slot_of(key)) * PARTS / usize::from(SLOTS)
}

/// As the specification of Redis Cluster says: hashes the text between the first brace and the next closing one,
/// otherwise the whole key.
fn slot_of(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let hashed = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    crc16(hashed.as_bytes()) % SLOTS
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| {
        (0..8)
            .fold(crc ^ (u16::from(byte) << 8), |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 })
    })
}

/// The beginning of every ended session.
const ENDED: &[u8] = br#"{"expires_ms":-"#;
/// Replaces a session that exists and has not ended.
const SAVE: &str = "
local there = redis.call('GET', KEYS[1])
if not there or there:sub(1, #ARGV[3]) == ARGV[3] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1";
/// Ends a session that exists and has not ended.
const END: &str = "
local there = redis.call('GET', KEYS[1])
if not there or there:sub(1, #ARGV[3]) == ARGV[3] then return end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])";
/// Appends an entry to a list and extends the list's life.
const ENROL: &str = "
redis.call('LREM', KEYS[1], 0, ARGV[1])
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('LRANGE', KEYS[1], 0, -1)";
/// Counts one more. Sets the end in the same step: otherwise an aborted request could leave a count that never ends.
const COUNT: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ends = tonumber(redis.call('HGET', KEYS[1], 'ends') or '0')
if ends <= now then
  ends = now + ARGV[2]
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'ends', string.format('%.0f', ends))
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
redis.call('HSET', KEYS[1], ARGV[1], '')
return {redis.call('HLEN', KEYS[1]) - 1, ends - now}";
/// The same in every Redis Cluster.
const SLOTS: u16 = 16_384;
/// Some parts can be away while others work.
const PARTS: usize = 256;
const GRACE: Duration = Duration::from_millis(250);
const RETRIES: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_hash_to_the_slots_of_redis() {
        // From the specification and the command CLUSTER KEYSLOT.
        assert_eq!(crc16(b"123456789"), 0x31c3);
        for (key, slot) in [("foo", 12_182), ("{foo}bar", 12_182), ("a{foo}{x}", 12_182), ("foo{}{bar}", 8_363)] {
            assert_eq!(slot_of(key), slot, "{key}");
        }
        assert_eq!((part_of("foo"), PARTS - 1), (190, usize::from(SLOTS - 1) * PARTS / usize::from(SLOTS)));
    }
}
