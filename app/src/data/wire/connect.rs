//! Connections to the nodes of a database. Each node has its own time limits, and nodes that failed recently are tried
//! last.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use deadpool::managed::{Manager, Metrics, RecycleError, RecycleResult};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{DatabaseErrorText, failure};
use crate::config::Secret;
use crate::error::StoreError;
use crate::retry::Failure;
use crate::tls;

/// How each node is connected to.
#[derive(Clone)]
pub struct Nodes {
    each: Vec<Config>,
    /// None for plain text.
    tls: Option<Trust>,
}

/// Which certificates are trusted.
#[derive(Clone)]
enum Trust {
    System,
    Pem(Vec<u8>),
}

impl Nodes {
    /// From a connection string with one or more hosts. Uses TLS with verified certificates if it contains
    /// `sslmode=require` or there is a `ca`, otherwise plain text.
    pub fn parse(url: &str, password: Option<&Secret>, ca: Option<&[u8]>) -> anyhow::Result<Self> {
        // The library's error may contain the text, which may contain a password.
        let all: Config = url.parse().ok().context("it is not of the form postgresql://USER@HOST:PORT/DATABASE")?;
        ensure!(!all.get_hosts().is_empty(), "it names no host");
        ensure!(all.get_user().is_some(), "it names no user");
        ensure!(
            password.is_none() || all.get_password().is_none(),
            "there is a password in it and another in --database-password-file: leave out the one in it"
        );
        let ports = all.get_ports();
        let mut each = Vec::new();
        for (index, host) in all.get_hosts().iter().enumerate() {
            // As in the library: no port, one for all hosts, or one for each.
            let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
            each.push(one_node(&all, host, port, password));
        }
        let tls = match (ca, all.get_ssl_mode()) {
            (Some(pem), _) => Some(Trust::Pem(pem.to_vec())),
            (None, SslMode::Disable | SslMode::Prefer) => None,
            (None, SslMode::Require) => Some(Trust::System),
            (None, _) => bail!("its sslmode is not known here: take disable or require"),
        };
        Ok(Self { each, tls })
    }

    pub fn count(&self) -> u32 {
        u32::try_from(self.each.len()).unwrap_or(u32::MAX)
    }
}

fn one_node(all: &Config, host: &Host, port: u16, password: Option<&Secret>) -> Config {
    let mut node = Config::new();
    match host {
        Host::Tcp(name) => node.host(name),
        Host::Unix(path) => node.host_path(path),
    };
    node.port(port).application_name(all.get_application_name().unwrap_or("app"));
    if let Some(user) = all.get_user() {
        node.user(user);
    }
    if let Some(database) = all.get_dbname() {
        node.dbname(database);
    }
    if let Some(options) = all.get_options() {
        node.options(options);
    }
    match (password, all.get_password()) {
        (Some(secret), _) => node.password(secret.reveal()),
        (None, Some(secret)) => node.password(secret),
        (None, None) => &mut node,
    };
    // A connection ends if data is not acknowledged within this time, or after a long silence.
    node.tcp_user_timeout(all.get_tcp_user_timeout().copied().unwrap_or(TCP_USER_TIMEOUT))
        .keepalives_idle(KEEPALIVE_IDLE)
        .keepalives_interval(KEEPALIVE_IDLE / 4)
        .keepalives_retries(3);
    node
}

impl fmt::Display for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tls = if self.tls.is_some() { "under TLS " } else { "" };
        let hosts = self.each.iter().flat_map(|node| node.get_hosts().iter().zip(node.get_ports()));
        let hosts: Vec<_> = hosts
            .map(|(host, port)| match host {
                Host::Tcp(name) => format!("{name}:{port}"),
                Host::Unix(path) => path.display().to_string(),
            })
            .collect();
        write!(f, "{tls}{}", hosts.join(", "))
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Creates connections for the pool.
pub struct Connections {
    nodes: Vec<Node>,
    tls: Option<MakeRustlsConnect>,
    connect_timeout: Duration,
    /// Sent once on each connection, before anything else.
    session: Option<&'static str>,
    /// Whether a node has accepted our login before. A later refusal is treated as temporary: CrateDB knows no users
    /// while it recovers its state after a restart of all nodes.
    let_in: AtomicBool,
    made: AtomicU64,
    begun: Instant,
}

#[derive(Debug)]
struct Node {
    config: Config,
    failures: Arc<LastFailure>,
}

/// When a node last failed, in milliseconds since the start; 0 for never.
#[derive(Debug, Default)]
struct LastFailure(AtomicU64);

/// A connection to one node.
pub struct Link {
    /// Present until the connection is cancelled.
    client: Option<Client>,
    task: JoinHandle<()>,
    tls: Option<MakeRustlsConnect>,
    failures: Arc<LastFailure>,
    begun: Instant,
}

impl Link {
    pub fn client(&self) -> &Client {
        self.client.as_ref().expect("only `cancel` takes it, and nobody sends a statement after that")
    }

    /// Cancels the running statement on the server, and waits until it has ended, for at most [`CANCEL_TIMEOUT`], since
    /// a hanging node never reports that. The connection cannot be used afterwards.
    pub async fn cancel(&mut self) {
        let Some(client) = self.client.take().filter(|client| !client.is_closed()) else { return };
        let token = client.cancel_token();
        // Without a client, the connection ends once all responses have arrived.
        drop(client);
        let cancelling = async {
            loop {
                match self.tls.clone() {
                    None => token.cancel_query(NoTls).await?,
                    Some(tls) => token.cancel_query(tls).await?,
                }
                // A cancel request that arrives before the statement has no effect.
                if timeout(CANCEL_INTERVAL, &mut self.task).await.is_ok() {
                    return Ok::<_, tokio_postgres::Error>(());
                }
            }
        };
        match timeout(CANCEL_TIMEOUT, cancelling).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = %DatabaseErrorText(error), "a statement could not be cancelled"),
            Err(_) => tracing::debug!("a statement was not cancelled in time"),
        }
    }

    /// Records that its node did not answer.
    pub fn blame_node(&self) {
        self.failures.now(self.begun);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Otherwise it would wait for responses that nobody needs.
        self.task.abort();
    }
}

impl LastFailure {
    fn now(&self, begun: Instant) {
        self.0.store(elapsed_ms(begun).max(1), Ordering::Relaxed);
    }

    fn is_recent(&self, begun: Instant) -> bool {
        let at = self.0.load(Ordering::Relaxed);
        at > 0 && elapsed_ms(begun).saturating_sub(at) < AVOID_FOR_MS
    }
}

fn elapsed_ms(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Connections {
    pub fn new(nodes: Nodes, connect_timeout: Duration, session: Option<&'static str>) -> anyhow::Result<Self> {
        let tls = nodes.tls.map(|trust| match trust {
            Trust::System => tls::trusting_system(),
            Trust::Pem(pem) => {
                let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
                tls::trusting(certificates.context("--database-ca-file is not in PEM format")?)
            }
        });
        let node = |config| Node { config, failures: Arc::default() };
        Ok(Self {
            nodes: nodes.each.into_iter().map(node).collect(),
            tls: tls.transpose()?.map(MakeRustlsConnect::new),
            connect_timeout,
            session,
            let_in: AtomicBool::new(false),
            // Instances that start together begin with different nodes.
            made: AtomicU64::new(RandomState::new().build_hasher().finish()),
            begun: Instant::now(),
        })
    }

    /// Round robin, so that connections are spread over all nodes; nodes that failed recently come last.
    fn in_order(&self) -> Vec<&Node> {
        let first = self.made.fetch_add(1, Ordering::Relaxed) as usize % self.nodes.len();
        let (before, after) = self.nodes.split_at(first);
        let mut nodes: Vec<_> = after.iter().chain(before).collect();
        nodes.sort_by_key(|node| node.failures.is_recent(self.begun));
        nodes
    }

    async fn connect(&self, node: &Node) -> Result<Link, Failure> {
        let connecting = async {
            // The two kinds of connections have different types, but are driven alike.
            let (client, task) = match &self.tls {
                None => {
                    let (client, connection) = node.config.connect(NoTls).await?;
                    (client, tokio::spawn(drive(connection)))
                }
                Some(tls) => {
                    let mut config = node.config.clone();
                    let (client, connection) = config.ssl_mode(SslMode::Require).connect(tls.clone()).await?;
                    (client, tokio::spawn(drive(connection)))
                }
            };
            let (failures, begun) = (Arc::clone(&node.failures), self.begun);
            // From here on, dropping it closes the connection.
            let link = Link { client: Some(client), task, tls: self.tls.clone(), failures, begun };
            if let Some(statement) = self.session {
                link.client().batch_execute(statement).await?;
            }
            Ok(link)
        };
        match timeout(self.connect_timeout, connecting).await {
            Ok(Ok(link)) => {
                self.let_in.store(true, Ordering::Relaxed);
                Ok(link)
            }
            Ok(Err(error)) => {
                let failure = failure(error);
                Err(Failure { again: failure.again || self.let_in.load(Ordering::Relaxed), ..failure })
            }
            Err(_) => Err(Failure::passing(StoreError::unavailable("a node did not let us in in time"))),
        }
    }
}

/// Sends and receives for a connection, until it ends.
async fn drive(connection: impl Future<Output = Result<(), tokio_postgres::Error>>) {
    if let Err(error) = connection.await {
        tracing::debug!(error = %DatabaseErrorText(error), "a connection to the database has ended");
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.nodes.iter().flat_map(|node| node.config.get_hosts())).finish()
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Link")
    }
}

impl Manager for Connections {
    type Type = Link;
    type Error = Failure;

    async fn create(&self) -> Result<Link, Failure> {
        let mut worst = None;
        for node in self.in_order() {
            match self.connect(node).await {
                Ok(link) => return Ok(link),
                Err(error) => {
                    node.failures.now(self.begun);
                    worst = Some(error);
                }
            }
        }
        Err(worst.unwrap_or_else(|| Failure::lasting(StoreError::unavailable("the database has no nodes"))))
    }

    async fn recycle(&self, link: &mut Link, metrics: &Metrics) -> RecycleResult<Failure> {
        // Whether the connection still works is not checked: a statement that fails is sent again.
        if link.client.as_ref().is_none_or(Client::is_closed) {
            return Err(RecycleError::message("it has ended"));
        }
        // Connections do not move between nodes: without a maximum age, a node that was down would get none again.
        if metrics.created.elapsed() > MAX_CONNECTION_AGE {
            return Err(RecycleError::message("it is old"));
        }
        Ok(())
    }
}

/// After this time the statement is left running: its slot in the pool is needed more.
const CANCEL_TIMEOUT: Duration = Duration::from_millis(500);
const CANCEL_INTERVAL: Duration = Duration::from_millis(100);
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const AVOID_FOR_MS: u64 = 10_000;
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_becomes_a_node_with_its_port_and_the_password() {
        let url = "postgresql://crate@c1:5432,c2:5433/doc?connect_timeout=2&load_balance_hosts=random";
        let nodes = Nodes::parse(url, Some(&Secret::new("s3cret")), None).unwrap();
        assert_eq!(nodes.count(), 2);
        assert_eq!(nodes.each[1].get_ports(), [5433]);
        assert_eq!(nodes.each[1].get_hosts(), [Host::Tcp("c2".into())]);
        assert_eq!(nodes.each[1].get_password(), Some(b"s3cret".as_slice()));
        assert_eq!(nodes.to_string(), "c1:5432, c2:5433");
    }

    #[test]
    fn one_port_counts_for_all_hosts() {
        let nodes = Nodes::parse("host=a,b port=6000 user=u", None, None).unwrap();
        assert!(nodes.each.iter().all(|node| node.get_ports() == [6000]));
    }

    #[test]
    fn invalid_urls_are_reported_without_the_password() {
        for url in
            ["postgresql://u:s3cret@/doc", "http://u:s3cret@a", "postgresql://a/doc", "host=a user=u port=x s3cret"]
        {
            let error = Nodes::parse(url, None, None).unwrap_err();
            assert!(!format!("{error:#}").contains("s3cret"), "{error:#}");
        }
        assert!(Nodes::parse("postgresql://u:one@a/doc", Some(&Secret::new("two")), None).is_err());
    }

    #[test]
    fn a_node_that_failed_recently_is_tried_last() {
        let nodes = Nodes::parse("host=a,b,c user=u", None, None).unwrap();
        let connections = Connections::new(nodes, Duration::from_secs(1), None).unwrap();
        connections.nodes[1].failures.now(connections.begun);
        for _ in 0..3 {
            let last = connections.in_order()[2].config.get_hosts()[0].clone();
            assert_eq!(last, Host::Tcp("b".into()));
        }
    }
}
