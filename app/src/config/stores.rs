//! Which stores an instance uses and how they are reached: flags, and the settings they become.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};

use super::{check_range, duration};
use crate::{
    data::wire,
    media::Bucket,
    sessions::redis_cluster::{self, Tls},
};

/// The stores, as written.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
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

/// The stores, as the program needs them.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    pub folder: PathBuf,
    pub sessions: SessionsPlace,
    pub data: DataPlace,
    pub media: MediaPlace,
}

#[derive(Clone, Debug)]
pub enum SessionsPlace {
    Sqlite,
    RedisCluster(Box<redis_cluster::Settings>),
}

#[derive(Clone, Debug)]
pub enum DataPlace {
    Sqlite,
    Postgres(wire::Settings),
    CrateDb(wire::Settings),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MediaPlace {
    Folder(PathBuf),
    Bucket(Bucket),
}

impl fmt::Display for SessionsPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite => f.write_str("SQLite"),
            Self::RedisCluster(settings) => {
                let tls = if settings.tls.is_some() { " under TLS" } else { "" };
                let nodes: Vec<_> = settings.nodes.iter().map(|node| format!("{}:{}", node.host, node.port)).collect();
                write!(f, "Redis Cluster{tls} ({})", nodes.join(", "))
            }
        }
    }
}

impl fmt::Display for DataPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite => f.write_str("SQLite"),
            Self::Postgres(settings) => write!(f, "PostgreSQL ({})", settings.nodes),
            Self::CrateDb(settings) => write!(f, "CrateDB ({})", settings.nodes),
        }
    }
}

impl fmt::Display for MediaPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::Bucket(bucket) => bucket.fmt(f),
        }
    }
}

impl StoreArgs {
    /// Checks what belongs together, and reads the files that hold secrets.
    /// Visitors' sessions last for `visitor_lifetime`.
    pub fn settings(&self, visitor_lifetime: Duration) -> anyhow::Result<StoreSettings> {
        Ok(StoreSettings {
            folder: self.data_dir.clone(),
            sessions: match self.sessions {
                SessionsKind::Sqlite => SessionsPlace::Sqlite,
                SessionsKind::RedisCluster => {
                    SessionsPlace::RedisCluster(Box::new(self.redis.settings(visitor_lifetime)?))
                }
            },
            data: self.database.place()?,
            media: media_place(&self.media, &self.data_dir)?,
        })
    }
}

impl RedisArgs {
    fn settings(&self, visitor_lifetime: Duration) -> anyhow::Result<redis_cluster::Settings> {
        ensure!(
            !self.redis_nodes.is_empty(),
            "--sessions redis-cluster needs --redis-nodes: name the cluster's nodes, such as redis-1:6379,redis-2:6379"
        );
        let fit = |byte: u8| byte.is_ascii_alphanumeric() || b":._-/".contains(&byte);
        ensure!(
            self.redis_prefix.len() <= 64 && self.redis_prefix.bytes().all(fit),
            // A brace would put every session into one slot, that is on one node.
            "--redis-prefix {:?} does not fit: take up to 64 letters, digits and any of : . _ - /, such as session:",
            self.redis_prefix,
        );
        for (flag, time) in [
            ("--redis-connect-timeout", self.redis_connect_timeout),
            ("--redis-response-timeout", self.redis_response_timeout),
            ("--redis-retry-wait", self.redis_retry_wait),
            ("--redis-rebuild-timeout", self.redis_rebuild_timeout),
            ("--redis-attempt-timeout", self.redis_attempt_timeout),
            ("--redis-timeout", self.redis_timeout),
        ] {
            check_range(flag, time, LONGEST_WAIT)?;
        }
        ensure!(
            self.redis_response_timeout <= self.redis_attempt_timeout
                && self.redis_attempt_timeout <= self.redis_timeout,
            "--redis-response-timeout, --redis-attempt-timeout and --redis-timeout contain each other: each is at least \
             as long as the one before, such as 500ms, 1500ms and 8s"
        );
        let tls = self.redis_tls || self.redis_ca_file.is_some();
        Ok(redis_cluster::Settings {
            nodes: self.redis_nodes.clone(),
            username: self.redis_username.clone(),
            password: secret("--redis-password-file", self.redis_password_file.as_deref())?,
            tls: if tls { Some(Tls { ca: read("--redis-ca-file", self.redis_ca_file.as_deref())? }) } else { None },
            prefix: self.redis_prefix.clone(),
            connect_timeout: self.redis_connect_timeout,
            response_timeout: self.redis_response_timeout,
            retry_wait: self.redis_retry_wait,
            rebuild_timeout: self.redis_rebuild_timeout,
            attempt_timeout: self.redis_attempt_timeout,
            overall_timeout: self.redis_timeout,
            visitor_lifetime,
        })
    }
}

impl DatabaseArgs {
    fn place(&self) -> anyhow::Result<DataPlace> {
        Ok(match self.data {
            DataKind::Sqlite => DataPlace::Sqlite,
            DataKind::Postgres => DataPlace::Postgres(self.settings("postgres")?),
            DataKind::Cratedb => DataPlace::CrateDb(self.settings("cratedb")?),
        })
    }

    fn settings(&self, kind: &str) -> anyhow::Result<wire::Settings> {
        let url = self.database_url.as_deref().with_context(|| {
            format!("--data {kind} needs --database-url, such as postgresql://crate@cratedb-1:5432,cratedb-2:5432/doc")
        })?;
        for (flag, time, longest) in [
            ("--database-connect-timeout", self.database_connect_timeout, LONGEST_WAIT),
            ("--database-statement-timeout", self.database_statement_timeout, LONGEST_WAIT),
            ("--database-timeout", self.database_timeout, LONGEST_WAIT),
            ("--database-start-deadline", self.database_start_deadline, Duration::from_secs(24 * 3600)),
        ] {
            check_range(flag, time, longest)?;
        }
        ensure!(
            self.database_statement_timeout <= self.database_timeout,
            "--database-statement-timeout is longer than --database-timeout, which contains it: take 2s and 8s"
        );
        ensure!(
            (1..=1_000).contains(&self.database_connections),
            "--database-connections {} is out of range: take 1 to 1000",
            self.database_connections
        );
        let nodes = wire::Nodes::parse(
            url,
            secret("--database-password-file", self.database_password_file.as_deref())?.as_ref(),
            read("--database-ca-file", self.database_ca_file.as_deref())?.as_deref(),
        );
        Ok(wire::Settings {
            nodes: nodes.context("--database-url cannot be used")?,
            connections: self.database_connections,
            connect_timeout: self.database_connect_timeout,
            statement_timeout: self.database_statement_timeout,
            overall_timeout: self.database_timeout,
            start_deadline: self.database_start_deadline,
        })
    }
}

fn media_place(place: &str, folder: &Path) -> anyhow::Result<MediaPlace> {
    Ok(match place.split_once("://") {
        Some(_) => MediaPlace::Bucket(place.parse().with_context(|| format!("--media {place:?} cannot be used"))?),
        None if place == "folder" => MediaPlace::Folder(folder.join("media")),
        None if place.contains('/') => MediaPlace::Folder(place.into()),
        None => bail!("--media {place:?} is no place: take folder, a folder such as ./pictures, s3://… or gs://…"),
    })
}

/// The content of a file that a flag names.
fn read(flag: &str, file: Option<&Path>) -> anyhow::Result<Option<Vec<u8>>> {
    let read = |file: &Path| std::fs::read(file).with_context(|| format!("{flag} {}: cannot read it", file.display()));
    file.map(read).transpose()
}

fn secret(flag: &str, file: Option<&Path>) -> anyhow::Result<Option<Secret>> {
    let (Some(content), Some(file)) = (read(flag, file)?, file) else { return Ok(None) };
    let text = String::from_utf8(content).ok().with_context(|| format!("{flag} {}: not text", file.display()))?;
    // Editors end a file with a line end, which is nobody's password.
    let text = text.trim_end_matches(['\r', '\n']);
    ensure!(!text.is_empty(), "{flag} {}: the file is empty, put the password into it", file.display());
    Ok(Some(Secret(text.to_owned())))
}

/// What must not be printed.
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
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// No request should wait longer for a store.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
