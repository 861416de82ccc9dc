//! A real Redis Cluster on loopback, from the system's `redis-server` or a newer one: nodes that can be killed, frozen,
//! started again and told to change roles. Nothing of it outlives the test, even if that is killed.
//!
//! Its calls wait by blocking: in an asynchronous test, what shall go on meanwhile needs threads of its own.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::ffi::OsString;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::process::fast_directory;

/// What kind of cluster.
#[derive(Debug, Clone)]
pub struct Options {
    pub masters: usize,
    pub replicas_of_each: usize,
    /// A master that is silent this long is replaced.
    pub node_timeout: Duration,
    pub password: String,
    pub tls: Option<Certificates>,
    pub server: Server,
}

/// Which `redis-server` and `redis-cli`.
#[derive(Debug, Clone, Copy)]
pub enum Server {
    /// Those that are installed, unless `REDIS_BIN` names another folder. Debian 12 has 7.0.
    Installed,
    /// Debian 13's, 8.0, which `make tools-test` unpacks into `target/trixie`. Since 7.2 nodes tell each other of a
    /// `CLUSTER FORGET`.
    Debian13,
}

impl Server {
    /// The search path for programs, with those of this server first.
    pub fn path(self) -> OsString {
        let folder = match self {
            Self::Installed => env::var_os("REDIS_BIN").map(PathBuf::from),
            Self::Debian13 => {
                let test = env::current_exe().unwrap();
                let found = test.ancestors().map(|folder| folder.join("trixie/bin")).find(|path| path.is_dir());
                Some(found.expect("target/trixie/bin: `make tools-test` fetches Redis 8 from Debian 13"))
            }
        };
        let inherited = env::var_os("PATH").unwrap_or_default();
        env::join_paths(folder.into_iter().chain(env::split_paths(&inherited))).unwrap()
    }
}

/// Files in PEM format.
#[derive(Debug, Clone)]
pub struct Certificates {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Default for Options {
    /// Three masters and three replicas, in plain text.
    fn default() -> Self {
        Self {
            masters: 3,
            replicas_of_each: 1,
            node_timeout: Duration::from_secs(1),
            password: "not a secret".into(),
            tls: None,
            server: Server::Installed,
        }
    }
}

#[derive(Debug)]
pub struct RedisCluster {
    folder: TempDir,
    options: Options,
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    port: u16,
    process: Option<Child>,
}

impl RedisCluster {
    /// Returns once every slot is served and every replica has its master's data.
    pub fn start(options: Options) -> Self {
        let cluster = Self::start_unformed(options);
        let mut create = vec!["--cluster".to_owned(), "create".to_owned()];
        create.extend(cluster.addresses());
        create.extend(["--cluster-replicas".to_owned(), cluster.options.replicas_of_each.to_string()]);
        create.push("--cluster-yes".to_owned());
        let created = cluster.cli(0, &create.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(created.contains("All 16384 slots covered"), "{created}");
        cluster.wait_until_healthy();
        cluster
    }

    /// As many nodes as the cluster shall have, none of which knows another.
    pub fn start_unformed(options: Options) -> Self {
        let count = options.masters * (1 + options.replicas_of_each);
        let nodes = ports(count).into_iter().map(|port| Node { port, process: None }).collect();
        let mut cluster = Self { folder: fast_directory(), options, nodes };
        for place in 0..count {
            cluster.configure(place);
            cluster.start_node(place);
        }
        cluster
    }

    /// `HOST:PORT` of every node.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect()
    }

    /// Waits until all nodes agree that everything is there and every replica follows its master.
    pub fn wait_until_healthy(&self) {
        let count = self.nodes.len();
        eventually("a healthy cluster", || {
            (0..count).all(|place| {
                let info = self.cli(place, &["cluster", "info"]);
                let says = |line: &str| info.lines().any(|found| found.trim() == line);
                let replication = self.cli(place, &["info", "replication"]);
                says("cluster_state:ok")
                    && says("cluster_slots_ok:16384")
                    && says(&format!("cluster_known_nodes:{count}"))
                    && !replication.contains("master_link_status:down")
                    && (replication.contains("master_link_status:up") || self.follower_count(&replication))
            })
        });
    }

    /// Whether a master has the replicas that it should.
    fn follower_count(&self, replication: &str) -> bool {
        replication.lines().filter(|line| line.contains("state=online")).count() == self.options.replicas_of_each
    }

    /// The nodes that are masters with slots, as node `asked` sees it.
    pub fn masters(&self, asked: usize) -> Vec<usize> {
        let nodes = self.cli(asked, &["cluster", "nodes"]);
        let is_master = |line: &&str| line.contains("master") && !line.contains("fail") && line.contains('-');
        let mut masters: Vec<_> = nodes
            .lines()
            .filter(|line| is_master(line) && line.split(' ').count() > 8)
            .filter_map(|line| self.place_of(line))
            .collect();
        masters.sort_unstable();
        masters
    }

    /// A node that follows `master`. Nodes hear of each other's roles some time after they have taken them.
    pub fn replica_of(&self, master: usize) -> usize {
        let id = self.cli(master, &["cluster", "myid"]);
        let mut found = None;
        eventually("a replica known to its master", || {
            let nodes = self.cli(master, &["cluster", "nodes"]);
            let line = nodes.lines().find(|line| line.contains("slave") && line.contains(id.trim()));
            found = line.and_then(|line| self.place_of(line));
            found.is_some()
        });
        found.expect("it was found")
    }

    /// The master that keeps `key`, as node `asked` sees it.
    pub fn master_of(&self, asked: usize, key: &str) -> usize {
        let slot: u16 = self.cli(asked, &["cluster", "keyslot", key]).trim().parse().unwrap();
        let nodes = self.cli(asked, &["cluster", "nodes"]);
        let line = nodes.lines().find(|line| {
            line.split(' ').skip(8).filter_map(|range| range.split_once('-').or(Some((range, range)))).any(
                |(first, last)| {
                    let bounds = first.parse::<u16>().ok().zip(last.parse::<u16>().ok());
                    bounds.is_some_and(|(first, last)| (first..=last).contains(&slot))
                },
            )
        });
        line.and_then(|line| self.place_of(line)).unwrap_or_else(|| panic!("slot {slot} is nowhere in: {nodes}"))
    }

    fn place_of(&self, line: &str) -> Option<usize> {
        self.nodes.iter().position(|node| line.contains(&format!("127.0.0.1:{}@", node.port)))
    }

    /// Ends a node at once, as a crash would.
    pub fn kill(&mut self, place: usize) {
        let mut process = self.nodes[place].process.take().expect("a node that runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Stops a node without closing anything, as a machine that hangs would.
    pub fn freeze(&self, place: usize) {
        self.signal(place, Signal::SIGSTOP);
    }

    pub fn thaw(&self, place: usize) {
        self.signal(place, Signal::SIGCONT);
    }

    fn signal(&self, place: usize, signal: Signal) {
        let process = self.nodes[place].process.as_ref().expect("a node that runs");
        kill(Pid::from_raw(process.id().try_into().unwrap()), signal).unwrap();
    }

    /// Asks a node to end in order, and waits for it.
    pub fn stop_node(&mut self, place: usize) {
        self.signal(place, Signal::SIGTERM);
        let mut process = self.nodes[place].process.take().expect("a node that runs");
        process.wait().unwrap();
    }

    /// Starts a node with what it had, and waits until it answers.
    pub fn start_node(&mut self, place: usize) {
        let folder = self.node_folder(place);
        let log = fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
        // The kernel ends the node when the test ends, however that ends.
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "redis-server"])
            .arg(folder.join("redis.conf"))
            .env("PATH", self.options.server.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("setpriv and redis-server: on Debian, apt-get install redis-server");
        self.nodes[place].process = Some(process);
        eventually("an answer of a new node", || {
            let ended = self.nodes[place].process.as_mut().is_none_or(|process| process.try_wait().unwrap().is_some());
            let log = || fs::read_to_string(folder.join("log")).unwrap_or_default();
            assert!(!ended, "redis-server has ended: {}", log());
            self.cli(place, &["ping"]).contains("PONG")
        });
    }

    /// Has a replica take over from its master in order; returns once it has.
    pub fn fail_over_to(&self, replica: usize) {
        let answer = self.cli(replica, &["cluster", "failover"]);
        assert!(answer.starts_with("OK"), "{answer}");
        eventually("a new master", || self.cli(replica, &["role"]).starts_with("master"));
    }

    /// One more node, which is no member of the cluster.
    pub fn start_stranger(&mut self) -> usize {
        let index = self.nodes.len();
        self.nodes.push(Node { port: ports(1)[0], process: None });
        self.configure(index);
        self.start_node(index);
        index
    }

    /// One more master, without slots yet.
    pub fn add_master(&mut self) -> usize {
        let index = self.start_stranger();
        let addresses = self.addresses();
        let added = self.cli(0, &["--cluster", "add-node", &addresses[index], &addresses[0]]);
        assert!(added.contains("New node added correctly"), "{added}");
        eventually("a new node known to all", || {
            let known = format!("cluster_known_nodes:{}", index + 1);
            // Before the new one agrees that the cluster is up, it takes no keys.
            let info = |asked| self.cli(asked, &["cluster", "info"]);
            (0..=index).all(|asked| info(asked).contains(&known) && info(asked).contains("cluster_state:ok"))
        });
        index
    }

    /// Moves slots, with all that is in them, from one master to another; returns once they are there.
    pub fn move_slots(&self, count: usize, from: usize, to: usize) {
        let id = |index| self.cli(index, &["cluster", "myid"]).trim().to_owned();
        let (from, to, count, address) = (id(from), id(to), count.to_string(), self.addresses()[0].clone());
        // The tool refuses while some node has not heard yet what changed last.
        eventually("agreement on the slots", || {
            self.cli(0, &["--cluster", "check", &address]).contains("All nodes agree about slots configuration")
        });
        let mut arguments = vec!["--cluster", "reshard", &address, "--cluster-from", &from, "--cluster-to", &to];
        arguments.extend(["--cluster-slots", &count, "--cluster-yes"]);
        let moved = self.cli(0, &arguments);
        let end: Vec<_> = moved.lines().rev().take(4).collect();
        assert!(end[0].contains("Moving slot") && !moved.contains("ERR"), "{end:?}");
    }

    /// One of the scripts in `redis/`, ready to run against this cluster.
    pub fn script(&self, name: &str) -> Command {
        let password = self.folder.path().join("password");
        fs::write(&password, &self.options.password).unwrap();
        let mut command = Command::new("sh");
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../redis").join(name)).stdin(Stdio::null());
        command.env("PATH", self.options.server.path()).env("REDIS_PASSWORD_FILE", password);
        command.env("TMPDIR", self.folder.path());
        command
    }

    /// The search path for programs, with those of the cluster's server first.
    pub fn path(&self) -> OsString {
        self.options.server.path()
    }

    /// Throws away what a node that does not run has kept, as a new volume would.
    pub fn empty_node(&self, place: usize) {
        assert!(self.nodes[place].process.is_none(), "a node that runs");
        fs::remove_dir_all(self.node_folder(place)).unwrap();
        self.configure(place);
    }

    /// What `redis-cli` says, asking node `place`.
    pub fn cli(&self, place: usize, arguments: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-h", "127.0.0.1", "-p", &self.nodes[place].port.to_string()]);
        if let Some(tls) = &self.options.tls {
            command.arg("--tls").arg("--cacert").arg(&tls.ca);
        }
        command.args(arguments).env("REDISCLI_AUTH", &self.options.password).env("PATH", self.options.server.path());
        let output = command.output();
        let output = output.expect("redis-cli: on Debian, apt-get install redis-server");
        // An error of the connection goes to the other stream; both are what it says.
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    fn configure(&self, place: usize) {
        let folder = self.node_folder(place);
        fs::create_dir(&folder).unwrap();
        let port = self.nodes[place].port;
        let listen = match &self.options.tls {
            None => format!("port {port}"),
            Some(tls) => format!(
                "port 0\ntls-port {port}\ntls-cluster yes\ntls-replication yes\ntls-auth-clients no\n\
                 tls-ca-cert-file {}\ntls-cert-file {}\ntls-key-file {}",
                tls.ca.display(),
                tls.certificate.display(),
                tls.key.display()
            ),
        };
        let text = format!(
            "bind 127.0.0.1\n{listen}\ndir {folder}\nrequirepass \"{password}\"\nmasterauth \"{password}\"\n\
             cluster-enabled yes\ncluster-config-file nodes.conf\ncluster-node-timeout {timeout}\n\
             cluster-require-full-coverage no\ncluster-replica-validity-factor 0\n\
             cluster-allow-replica-migration no\nappendonly yes\nappendfsync everysec\nsave \"\"\n\
             repl-diskless-sync no\n",
            folder = folder.display(),
            password = self.options.password,
            timeout = self.options.node_timeout.as_millis(),
        );
        fs::write(folder.join("redis.conf"), text).unwrap();
    }

    fn node_folder(&self, place: usize) -> PathBuf {
        Path::new(self.folder.path()).join(place.to_string())
    }
}

impl Drop for RedisCluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut process) = node.process.take() {
                let _ = process.kill();
                let _ = process.wait();
            }
        }
        if std::thread::panicking() {
            for place in 0..self.nodes.len() {
                let log = fs::read_to_string(self.node_folder(place).join("log")).unwrap_or_default();
                let lines: Vec<_> = log.lines().rev().take(12).collect();
                eprintln!("--- node {place} ---\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
    }
}

/// Free ports for nodes: the bus of each, 10,000 above, is free as well, and both lie below those that the kernel
/// gives to outgoing connections.
fn ports(count: usize) -> Vec<u16> {
    // Tests beside this one look elsewhere: in this process behind the last that was given, in others at another start.
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    const PORTS: u16 = 11_500;
    let start = (std::process::id() % 100) as u16 * 110;
    let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let ports = std::iter::repeat_with(|| 10_500 + (start + GIVEN.fetch_add(1, Ordering::Relaxed)) % PORTS);
    let found: Vec<_> =
        ports.take(PORTS.into()).filter(|&port| free(port) && free(port + 10_000)).take(count).collect();
    assert_eq!(found.len(), count, "there are not enough free ports");
    found
}

/// Waits for a condition.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come about within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

const DEADLINE: Duration = Duration::from_secs(60);
