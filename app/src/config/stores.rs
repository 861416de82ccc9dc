//! The stores of an instance: flags, and the settings made from them.

#[cfg(feature = "network")]
mod network;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};

use super::duration;
#[cfg(feature = "network")]
use crate::{data::wire, media::Bucket, sessions::redis_cluster};

/// The flags of the stores.
#[derive(Debug, Args)]
pub struct StoreArgs {
    /// Folder of the embedded stores, shared by all instances of a machine; created if missing
    #[arg(long, env = "APP_DATA_DIR", default_value = "app-data", value_name = "FOLDER")]
    pub data_dir: PathBuf,
    /// Where sessions are kept: in a file of --data-dir, or in a Redis Cluster
    #[arg(long, env = "APP_SESSIONS", default_value = "sqlite")]
    pub sessions: SessionsKind,
    #[command(flatten)]
    pub redis: RedisArgs,
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Where pictures are kept: `folder` (media in --data-dir), another folder, s3://BUCKET/PREFIX or
    /// gs://BUCKET/PREFIX; buckets are reached as AWS_… and GOOGLE_… in the environment say
    #[arg(long, env = "APP_MEDIA", default_value = "folder", value_name = "PLACE")]
    pub media: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SessionsKind {
    Sqlite,
    RedisCluster,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Sessions in a Redis Cluster")]
pub struct RedisArgs {
    /// Nodes of the cluster, best all of them, as HOST:PORT separated by commas
    #[arg(long, env = "APP_REDIS_NODES", value_delimiter = ',', value_name = "HOST:PORT")]
    pub redis_nodes: Vec<Address>,
    /// Name to log in to Redis with [default: Redis's own default user]
    #[arg(long, env = "APP_REDIS_USERNAME", value_name = "NAME")]
    pub redis_username: Option<String>,
    /// File with the password for Redis
    #[arg(long, env = "APP_REDIS_PASSWORD_FILE", value_name = "FILE")]
    pub redis_password_file: Option<PathBuf>,
    /// Speak TLS with Redis
    #[arg(long, env = "APP_REDIS_TLS")]
    pub redis_tls: bool,
    /// Certificates (PEM) to trust for Redis in place of the system's; implies --redis-tls
    #[arg(long, env = "APP_REDIS_TLS_CA_FILE", value_name = "FILE")]
    pub redis_ca_file: Option<PathBuf>,
    /// What the name of every session's key begins with
    #[arg(long, env = "APP_REDIS_PREFIX", default_value = "session:", value_name = "TEXT")]
    pub redis_prefix: String,
    /// Time to connect to one node
    #[arg(long, env = "APP_REDIS_CONNECT_TIMEOUT", default_value = "500ms", value_parser = duration, value_name = "TIME")]
    pub redis_connect_timeout: Duration,
    /// Time for one answer of one node
    #[arg(long, env = "APP_REDIS_RESPONSE_TIMEOUT", default_value = "500ms", value_parser = duration, value_name = "TIME")]
    pub redis_response_timeout: Duration,
    /// Pause before a command is sent again within an attempt; doubles each time, up to eight times as long
    #[arg(long, env = "APP_REDIS_RETRY_WAIT", default_value = "50ms", value_parser = duration, value_name = "TIME")]
    pub redis_retry_wait: Duration,
    /// Time to learn the cluster's nodes and slots anew, and to connect to them
    #[arg(long, env = "APP_REDIS_REBUILD_TIMEOUT", default_value = "2s", value_parser = duration, value_name = "TIME")]
    pub redis_rebuild_timeout: Duration,
    /// Time for one attempt, redirections included; then all connections are made anew
    #[arg(long, env = "APP_REDIS_ATTEMPT_TIMEOUT", default_value = "1500ms", value_parser = duration, value_name = "TIME")]
    pub redis_attempt_timeout: Duration,
    /// Time for one operation with all attempts, and for all operations of one request together; longer than a
    /// failover takes, which is about twice Redis's own cluster-node-timeout
    #[arg(long, env = "APP_REDIS_TIMEOUT", default_value = "8s", value_parser = duration, value_name = "TIME")]
    pub redis_timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DataKind {
    Sqlite,
    Postgres,
    Cratedb,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Data in CrateDB or PostgreSQL")]
pub struct DatabaseArgs {
    /// Where accounts, logins and posts are kept: in a file of --data-dir, in PostgreSQL or in CrateDB
    #[arg(long, env = "APP_DATA", default_value = "sqlite")]
    pub data: DataKind,
    /// Where it is: postgresql://USER@HOST:PORT,HOST:PORT/DATABASE, without a password
    #[arg(long, env = "APP_DATABASE_URL", value_name = "URL")]
    pub database_url: Option<String>,
    /// File with the password of that user
    #[arg(long, env = "APP_DATABASE_PASSWORD_FILE", value_name = "FILE")]
    pub database_password_file: Option<PathBuf>,
    /// Certificates (PEM) to trust for the database in place of the system's; implies sslmode=require
    #[arg(long, env = "APP_DATABASE_CA_FILE", value_name = "FILE")]
    pub database_ca_file: Option<PathBuf>,
    /// Connections to the database at most; more requests wait for one
    #[arg(long, env = "APP_DATABASE_CONNECTIONS", default_value_t = 8, value_name = "COUNT")]
    pub database_connections: usize,
    /// Time to connect and log in to one node of the database
    #[arg(long, env = "APP_DATABASE_CONNECT_TIMEOUT", default_value = "1500ms", value_parser = duration, value_name = "TIME")]
    pub database_connect_timeout: Duration,
    /// Time for one statement; then its connection is given up and the statement sent again over another
    #[arg(long, env = "APP_DATABASE_STATEMENT_TIMEOUT", default_value = "2s", value_parser = duration, value_name = "TIME")]
    pub database_statement_timeout: Duration,
    /// Time for one operation with all attempts, and for all operations of one request together
    #[arg(long, env = "APP_DATABASE_TIMEOUT", default_value = "8s", value_parser = duration, value_name = "TIME")]
    pub database_timeout: Duration,
    /// Time that the database and its tables get to appear when an instance starts
    #[arg(long, env = "APP_DATABASE_START_DEADLINE", default_value = "2min", value_parser = duration, value_name = "TIME")]
    pub database_start_deadline: Duration,
}

/// The settings of the stores.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    pub folder: PathBuf,
    pub sessions: SessionsLocation,
    pub data: DataLocation,
    pub media: MediaLocation,
}

#[derive(Debug, Clone)]
pub enum SessionsLocation {
    Sqlite,
    #[cfg(feature = "network")]
    RedisCluster(Box<redis_cluster::Settings>),
}

#[derive(Debug, Clone)]
pub enum DataLocation {
    Sqlite,
    #[cfg(feature = "network")]
    Postgres(wire::Settings),
    #[cfg(feature = "network")]
    CrateDb(wire::Settings),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MediaLocation {
    Folder(PathBuf),
    #[cfg(feature = "network")]
    Bucket(Bucket),
}

impl fmt::Display for SessionsLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite => f.write_str("SQLite"),
            #[cfg(feature = "network")]
            Self::RedisCluster(settings) => {
                let tls = if settings.tls.is_some() { " under TLS" } else { "" };
                let nodes: Vec<_> = settings.nodes.iter().map(|node| format!("{}:{}", node.host, node.port)).collect();
                write!(f, "Redis Cluster{tls} ({})", nodes.join(", "))
            }
        }
    }
}

impl fmt::Display for DataLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite => f.write_str("SQLite"),
            #[cfg(feature = "network")]
            Self::Postgres(settings) => write!(f, "PostgreSQL ({})", settings.nodes),
            #[cfg(feature = "network")]
            Self::CrateDb(settings) => write!(f, "CrateDB ({})", settings.nodes),
        }
    }
}

impl fmt::Display for MediaLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            #[cfg(feature = "network")]
            Self::Bucket(bucket) => bucket.fmt(f),
        }
    }
}

impl StoreArgs {
    /// Checks what belongs together, and reads the files that hold secrets.
    /// Visitors' sessions last for `visitor_lifetime`.
    #[cfg_attr(
        not(feature = "network"),
        expect(unused_variables, reason = "an embedded store needs no limit of its own")
    )]
    pub fn settings(&self, visitor_lifetime: Duration) -> anyhow::Result<StoreSettings> {
        Ok(StoreSettings {
            folder: self.data_dir.clone(),
            sessions: match self.sessions {
                SessionsKind::Sqlite => SessionsLocation::Sqlite,
                #[cfg(not(feature = "network"))]
                SessionsKind::RedisCluster => return Err(not_built("--sessions redis-cluster")),
                #[cfg(feature = "network")]
                SessionsKind::RedisCluster => {
                    SessionsLocation::RedisCluster(Box::new(self.redis.settings(visitor_lifetime)?))
                }
            },
            data: self.database.location()?,
            media: media_location(&self.media, &self.data_dir)?,
        })
    }
}

impl DatabaseArgs {
    fn location(&self) -> anyhow::Result<DataLocation> {
        Ok(match self.data {
            DataKind::Sqlite => DataLocation::Sqlite,
            #[cfg(not(feature = "network"))]
            DataKind::Postgres | DataKind::Cratedb => return Err(not_built("--data")),
            #[cfg(feature = "network")]
            DataKind::Postgres => DataLocation::Postgres(self.settings("postgres")?),
            #[cfg(feature = "network")]
            DataKind::Cratedb => DataLocation::CrateDb(self.settings("cratedb")?),
        })
    }
}

fn media_location(location: &str, folder: &Path) -> anyhow::Result<MediaLocation> {
    Ok(match location.split_once("://") {
        #[cfg(not(feature = "network"))]
        Some(_) => return Err(not_built("--media")),
        #[cfg(feature = "network")]
        Some(_) => MediaLocation::Bucket(network::bucket(location)?),
        None if location == "folder" => MediaLocation::Folder(folder.join("media")),
        None if location.contains('/') => MediaLocation::Folder(location.into()),
        None => {
            bail!("--media {location:?} is not a location: take folder, a folder such as ./pictures, s3://… or gs://…")
        }
    })
}

/// The binary for the demonstration has only the embedded stores.
#[cfg(not(feature = "network"))]
fn not_built(flag: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "{flag} names a store on the network, and this program was built without those, as `make demo` builds it: build \
         it with `cargo build --workspace --bins`"
    )
}

/// A value that must not be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub host: String,
    pub port: u16,
}

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FIX: &str = "take HOST:PORT, such as redis-1:6379 or [::1]:6379";
        let (host, port) = text.trim().rsplit_once(':').ok_or(FIX)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let fit = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:%".contains(&byte);
        match port.parse() {
            Ok(port) if port > 0 && !host.is_empty() && host.bytes().all(fit) => Ok(Self { host: host.into(), port }),
            _ => Err(FIX),
        }
    }
}
