//! The scripts in `redis/` as operators run them, on real nodes of Redis 7.0, and of 8.0, whose nodes forward a
//! `CLUSTER FORGET` to each other.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Output, Stdio};

use tempfile::TempDir;
use tests::redis_cluster::{Options, RedisCluster, Server, eventually};

const KEYS: usize = 40;

#[test]
fn scripts_that_add_and_remove_a_node_can_be_killed_and_restarted() {
    nodes_come_and_go(Server::Installed);
}

#[test]
fn scripts_that_add_and_remove_a_redis_8_node_can_be_killed_and_restarted() {
    nodes_come_and_go(Server::Debian13);
}

fn nodes_come_and_go(server: Server) {
    let mut cluster = RedisCluster::start(Options { replicas_of_each: 0, server, ..Options::default() });
    for key in 0..KEYS {
        cluster.cli(0, &["-c", "set", &format!("key{key}"), "value"]);
    }
    let (master, replica) = (cluster.start_stranger(), cluster.start_stranger());

    let killer = Killer::new();
    let mut slots_left_open = 0;
    let killed = killer.run_until_done(&cluster, || {
        if killer.is_amid_slots() && slots_left_open == 0 {
            slots_left_open += 1;
            leave_a_slot_open(&cluster, 0, master);
        }
        add_node(&cluster, master, "--master")
    });
    assert!(killed >= 4 && slots_left_open == 1, "killed {killed} times, {slots_left_open} slots left open");
    assert_eq!(cluster.masters(0), [0, 1, 2, master]);
    assert!((4090..=4100).contains(&slots(&cluster, master)), "{} slots", slots(&cluster, master));
    let killed = Killer::new().run_until_done(&cluster, || add_node(&cluster, replica, "--replica"));
    assert!(killed >= 2, "killed {killed} times");
    assert_eq!(keys(&cluster, &[0, 1, 2, master]), KEYS);

    // Its replica moves to another master.
    assert_eq!(cluster.cli(replica, &["cluster", "replicate", &id(&cluster, master)]).trim(), "OK");
    eventually("a replica known to all", || (0..3).all(|asked| has_replica(&cluster, asked, master)));
    let before = id(&cluster, master);
    let killed = Killer::new().run_until_done(&cluster, || add_node(&cluster, master, "--remove"));
    assert!(killed >= 4, "killed {killed} times");
    assert!(is_alone(&cluster, master));
    assert_ne!(id(&cluster, master), before, "an id that is banned for a minute");
    for asked in [0, 1, 2, replica] {
        assert!(!cluster.cli(asked, &["cluster", "nodes"]).contains(&before));
    }
    eventually("a new master's data", || cluster.cli(replica, &["info", "replication"]).contains("link_status:up"));
    assert_eq!(cluster.masters(0), [0, 1, 2]);
    assert_eq!(keys(&cluster, &[0, 1, 2]), KEYS);

    // At once, within the minute in which the nodes that were told to forget it ignore its old id.
    succeeds(add_node(&cluster, master, "--master"));
    assert_eq!(cluster.masters(0), [0, 1, 2, master]);
    assert_eq!(keys(&cluster, &[0, 1, 2, master]), KEYS);

    // Forgotten but not reset, as after an interrupted `redis-cli --cluster del-node`.
    let forgotten = id(&cluster, replica);
    for asked in [0, 1, 2, master] {
        assert_eq!(cluster.cli(asked, &["cluster", "forget", &forgotten]).trim(), "OK");
    }
    succeeds(add_node(&cluster, replica, "--replica"));
    assert!((0..3).all(|asked| cluster.cli(asked, &["cluster", "nodes"]).contains(&id(&cluster, replica))));
}

#[test]
fn moving_slots_gives_up_on_a_hanging_node() {
    let mut cluster = RedisCluster::start(Options { replicas_of_each: 0, ..Options::default() });
    let new = cluster.start_stranger();
    let mut script = add_node(&cluster, new, "--master");
    script.env("REDIS_MOVE_SECONDS", "3").stderr(Stdio::piped());
    let script = script.spawn().expect("a shell");
    eventually("the first slots", || slots(&cluster, new) > 0);
    cluster.freeze(new);
    let output = script.wait_with_output().expect("a child");
    assert!(!output.status.success());
    assert!(print_output(&output).contains("not moved within 3 s (REDIS_MOVE_SECONDS)"));

    cluster.thaw(new);
    succeeds(add_node(&cluster, new, "--master"));
    assert!((4090..=4100).contains(&slots(&cluster, new)), "{} slots", slots(&cluster, new));
}

#[test]
fn a_dead_node_or_one_that_was_never_a_member_can_be_removed() {
    let mut cluster = RedisCluster::start(Options::default());
    let dead = cluster.replica_of(cluster.masters(0)[0]);
    let asked = usize::from(dead == 0);
    let its_id = id(&cluster, dead);
    cluster.kill(dead);
    eventually("a dead node", || !cluster.cli(asked, &["cluster", "nodes"]).contains("slave,fail "));
    succeeds(add_node_by(&cluster, dead, asked, "--remove"));
    assert!(!cluster.cli(asked, &["cluster", "nodes"]).contains(&its_id));

    // It comes back without knowing of this.
    cluster.start_node(dead);
    assert!(!is_alone(&cluster, dead));
    succeeds(add_node_by(&cluster, dead, asked, "--remove"));
    assert!(is_alone(&cluster, dead));
    succeeds(add_node_by(&cluster, dead, asked, "--remove"));

    let other = RedisCluster::start(Options { replicas_of_each: 0, ..Options::default() });
    let mut script = other.script("add-node.sh");
    let output = script.args([&other.addresses()[0], &cluster.addresses()[asked]]).output().expect("a shell");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("belongs to another cluster"), "{output:?}");
}

#[test]
fn a_cluster_is_formed_without_a_dead_node_and_completed_when_it_starts() {
    let mut cluster = RedisCluster::start_unformed(Options { server: Server::Debian13, ..Options::default() });
    cluster.kill(1);
    let printed = succeeds(init(&cluster));
    assert!(printed.contains("MISSING"), "{printed}");
    let masters = cluster.masters(0);
    assert_eq!(masters.len(), 3, "{masters:?}");
    assert!(!masters.contains(&1));

    cluster.start_node(1);
    let printed = succeeds(init(&cluster));
    assert!(!printed.contains("MISSING"), "{printed}");
    cluster.wait_until_healthy();
    assert_eq!(cluster.masters(0), masters);

    // A node that has lost its volume gets a new id; no node keeps the old one.
    let lost = masters[1];
    let asked = masters[0];
    cluster.kill(lost);
    eventually("a new master", || {
        let masters = cluster.masters(asked);
        masters.len() == 3 && !masters.contains(&lost)
    });
    cluster.empty_node(lost);
    cluster.start_node(lost);
    succeeds(init(&cluster));
    cluster.wait_until_healthy();
}

/// Before its replica has taken over; otherwise none ever would.
#[test]
fn a_master_that_comes_back_at_once_without_its_volume_is_replaced() {
    let node_timeout = std::time::Duration::from_secs(5);
    let mut cluster = RedisCluster::start(Options { node_timeout, ..Options::default() });
    let lost = cluster.masters(0)[0];
    let asked = usize::from(lost == 0);
    cluster.kill(lost);
    cluster.empty_node(lost);
    cluster.start_node(lost);
    let printed = succeeds(init(&cluster));
    assert!(printed.contains("takes over from"), "{printed}");
    cluster.wait_until_healthy();
    let masters = cluster.masters(asked);
    assert!(masters.len() == 3 && !masters.contains(&lost), "{masters:?}");
}

#[test]
fn a_cluster_is_formed_though_a_node_hangs() {
    let cluster = RedisCluster::start_unformed(Options::default());
    cluster.freeze(0);
    succeeds(init(&cluster));
    cluster.thaw(0);
    succeeds(init(&cluster));
    cluster.wait_until_healthy();
}

#[test]
fn forming_a_cluster_resumes_after_an_interruption() {
    let cluster = RedisCluster::start_unformed(Options::default());
    let answers = [
        cluster.cli(0, &["cluster", "addslotsrange", "0", "5460"]),
        cluster.cli(1, &["cluster", "addslotsrange", "5461", "10922"]),
        cluster.cli(0, &["cluster", "meet", "127.0.0.1", cluster.addresses()[1].rsplit(':').next().expect("a port")]),
    ];
    assert!(answers.iter().all(|answer| answer.trim() == "OK"), "{answers:?}");
    succeeds(init(&cluster));
    cluster.wait_until_healthy();
}

#[test]
fn an_existing_cluster_starts_without_one_master_but_not_without_most_nodes() {
    let mut cluster = RedisCluster::start(Options::default());
    let lost = cluster.masters(0)[0];
    for place in 0..6 {
        cluster.stop_node(place);
    }
    let others = (0..6).filter(|&place| place != lost);
    for place in others.clone().take(3) {
        cluster.start_node(place);
    }
    let output = init(&cluster).env("REDIS_INIT_SECONDS", "2").output().expect("a shell");
    assert!(!output.status.success(), "{output:?}");

    for place in others.clone().skip(3) {
        cluster.start_node(place);
    }
    let printed = succeeds(init(&cluster));
    // It is known, so the script need not wait.
    assert!(printed.contains("MISSING") && !printed.contains("going on without"), "{printed}");
    let asked = usize::from(lost == 0);
    assert!(cluster.masters(asked).len() == 3 && !cluster.masters(asked).contains(&lost));
    cluster.start_node(lost);
    let printed = succeeds(init(&cluster));
    assert!(!printed.contains("adding"), "{printed}");
    cluster.wait_until_healthy();
}

fn init(cluster: &RedisCluster) -> Command {
    let mut script = cluster.script("init.sh");
    script.args(cluster.addresses());
    script
}

fn add_node(cluster: &RedisCluster, node: usize, how: &str) -> Command {
    add_node_by(cluster, node, 0, how)
}

fn add_node_by(cluster: &RedisCluster, node: usize, member: usize, how: &str) -> Command {
    let addresses = cluster.addresses();
    let mut script = cluster.script("add-node.sh");
    script.args([&addresses[node], &addresses[member], how]);
    script
}

/// Runs a command that must succeed, and returns its output.
fn succeeds(mut script: Command) -> String {
    let output = script.output().expect("a shell");
    let printed = print_output(&output);
    assert!(output.status.success(), "{printed}");
    printed
}

fn print_output(output: &Output) -> String {
    let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    println!("{printed}-- {}", output.status);
    printed.into_owned()
}

/// Kills scripts right after each kind of command that changes something, when it is first sent; and once while they
/// move slots.
struct Killer {
    folder: TempDir,
}

impl Killer {
    const REDIS_CLI: &str = r#"#!/bin/sh
here=${0%/*}
PATH=${PATH#*:}
first() { mkdir "$here/$1" 2> /dev/null; }
case "$*" in
    *" cluster meet "* | *" cluster forget "* | *" cluster reset "* | *" cluster replicate "*)
        first "$(echo "$*" | tr -dc '[:alnum:]')" || exec redis-cli "$@"
        redis-cli "$@"
        ;;
    *"--cluster rebalance "*)
        # A character for each slot, after some lines that say what moves.
        if first amid-slots; then redis-cli "$@" | head -c 1500 > /dev/null
        elif first slots-moved; then redis-cli "$@"
        else exec redis-cli "$@"
        fi
        ;;
    *) exec redis-cli "$@" ;;
esac
# The leader of the session is the script.
kill -KILL "$(cut -d ' ' -f 6 /proc/self/stat)"
"#;

    fn new() -> Self {
        let folder = TempDir::new().expect("a temporary directory");
        let program = folder.path().join("redis-cli");
        fs::write(&program, Self::REDIS_CLI).expect("a writable directory");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a file of ours");
        Self { folder }
    }

    /// Whether the script ran to its end.
    fn run(&self, cluster: &RedisCluster, script: Command) -> bool {
        let mut path = self.folder.path().as_os_str().to_owned();
        path.push(":");
        path.push(cluster.path());
        let mut session = Command::new("setsid");
        session.arg(script.get_program()).args(script.get_args());
        session.envs(script.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("PATH", path);
        let output = session.output().expect("setsid");
        print_output(&output);
        assert!(output.status.success() || was_killed(output.status), "{}", output.status);
        output.status.success()
    }

    /// Whether a script was killed while it moved slots.
    fn is_amid_slots(&self) -> bool {
        self.folder.path().join("amid-slots").exists() && !self.folder.path().join("slots-moved").exists()
    }

    /// Runs a script until it succeeds. Returns how often it was killed before.
    fn run_until_done(&self, cluster: &RedisCluster, mut script: impl FnMut() -> Command) -> usize {
        let killed = (0..20).take_while(|_| !self.run(cluster, script())).count();
        assert!(killed < 20, "the script does not get on");
        killed
    }
}

fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(9)
}

fn id(cluster: &RedisCluster, node: usize) -> String {
    cluster.cli(node, &["cluster", "myid"]).trim().to_owned()
}

fn is_alone(cluster: &RedisCluster, node: usize) -> bool {
    cluster.cli(node, &["cluster", "nodes"]).lines().count() == 1 && slots(cluster, node) == 0
}

fn has_replica(cluster: &RedisCluster, asked: usize, master: usize) -> bool {
    cluster.cli(asked, &["cluster", "nodes"]).contains(&format!("slave {}", id(cluster, master)))
}

/// The slots that `node` reports as its own, without those being moved.
fn slots_of(cluster: &RedisCluster, node: usize) -> BTreeSet<u16> {
    let nodes = cluster.cli(node, &["cluster", "nodes"]);
    let line = nodes.lines().find(|line| line.contains("myself")).unwrap_or_else(|| panic!("{nodes}"));
    let ranges = line.split_whitespace().skip(8).filter(|range| !range.starts_with('['));
    let bounds = ranges.map(|range| range.split_once('-').unwrap_or((range, range)));
    bounds
        .flat_map(|(first, last)| first.parse::<u16>().expect("a slot")..=last.parse::<u16>().expect("a slot"))
        .collect()
}

fn slots(cluster: &RedisCluster, node: usize) -> usize {
    slots_of(cluster, node).len()
}

/// The state after a move that was interrupted within a slot.
fn leave_a_slot_open(cluster: &RedisCluster, from: usize, to: usize) {
    let slot = slots_of(cluster, from).last().expect("a master with slots").to_string();
    let importing = cluster.cli(to, &["cluster", "setslot", &slot, "importing", &id(cluster, from)]);
    let migrating = cluster.cli(from, &["cluster", "setslot", &slot, "migrating", &id(cluster, to)]);
    assert_eq!([importing.trim(), migrating.trim()], ["OK", "OK"]);
}

fn keys(cluster: &RedisCluster, masters: &[usize]) -> usize {
    let size = |&node| cluster.cli(node, &["dbsize"]).trim().parse::<usize>().expect("a number");
    masters.iter().map(size).sum()
}
