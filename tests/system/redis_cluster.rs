//! Members of a site with sessions in a real Redis Cluster, through a real balancer and three instances, during faults
//! of the cluster: members stay logged in, and no page fails unless Redis is completely unreachable.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tests::app::{self, Instance};
use tests::redis_cluster::{Options, RedisCluster};
use tests::{Balancer, Config, Pool, Reply, Request, Wire};
use tokio::task::JoinHandle;

const MEMBERS: usize = 8;
const STEP: Duration = Duration::from_millis(40);
/// Slow enough for a user to notice.
const SLOW: Duration = Duration::from_millis(500);
/// The fault is over after this much time without problems.
const CALM: Duration = Duration::from_millis(2500);
/// The application's limit for all session operations of a page.
const LIMIT: Duration = Duration::from_secs(8);
/// How shortly before a fault an acknowledged login may have happened for Redis to have lost it.
const REPLICATION_WINDOW: Duration = Duration::from_millis(500);
/// As in the compose files: an instance without its sessions is not ready; if all of them are in that state, the pool
/// uses real traffic only.
const PROBE: &str = r#"path = "/readyz"
status = "200"
interval = "2s"
timeout = "1s"
rise = 1
fall = 2"#;
const STRANGER: &str = "the page takes the member for a stranger";
/// The page says so.
const OUT_OF_REACH: &str = "a page without its session";
/// The page says so and asks to log in.
const NO_LOGIN: &str = "an account without its first login";

#[tokio::test(flavor = "multi_thread")]
async fn members_stay_logged_in_while_masters_are_killed_and_come_back_with_other_roles() {
    let mut site = Site::start(as_in_production()).await;
    let load = Load::start(&site).await;
    let victim = site.redis.masters(0)[1];
    let successor = site.redis.replica_of(victim);
    let begun = Instant::now();
    site.redis.kill(victim);
    load.settles("a master killed (-9)", begun).await;

    let begun = Instant::now();
    site.redis.start_node(victim);
    site.redis.wait_until_healthy();
    load.settles("it comes back as a replica", begun).await;

    let begun = Instant::now();
    site.redis.kill(successor);
    load.settles("its successor killed: roles exchanged", begun).await;
    load.stop(&site).await.assert_none_failed();
}

#[tokio::test(flavor = "multi_thread")]
async fn members_stay_logged_in_while_a_master_is_frozen_and_thawed() {
    let site = Site::start(as_in_production()).await;
    let load = Load::start(&site).await;
    let victim = site.redis.masters(0)[1];
    let begun = Instant::now();
    site.redis.freeze(victim);
    load.settles("a master frozen (SIGSTOP)", begun).await;

    let begun = Instant::now();
    site.redis.thaw(victim);
    site.redis.wait_until_healthy();
    load.settles("it thaws, a replica now", begun).await;
    load.stop(&site).await.assert_none_failed();
}

#[tokio::test(flavor = "multi_thread")]
async fn members_stay_logged_in_while_slots_move_and_roles_change() {
    let mut site = Site::start(Options::default()).await;
    let load = Load::start(&site).await;
    let master = site.redis.masters(0)[0];
    let replica = site.redis.replica_of(master);
    let begun = Instant::now();
    site.redis.fail_over_to(replica);
    load.settles("CLUSTER FAILOVER", begun).await;

    site.redis.wait_until_healthy();
    let begun = Instant::now();
    site.redis.kill(master);
    load.settles("a replica lost", begun).await;

    site.redis.start_node(master);
    site.redis.wait_until_healthy();
    let masters = site.redis.masters(0);
    let begun = Instant::now();
    let new = site.redis.add_master();
    for master in &masters {
        site.redis.move_slots(300, *master, new);
    }
    load.settles("a node added, 900 slots moved there", begun).await;
    let begun = Instant::now();
    site.redis.move_slots(900, new, masters[0]);
    load.settles("all of them moved back", begun).await;
    load.stop(&site).await.assert_none_failed();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_pages_without_a_session_work_and_everything_recovers() {
    let mut site = Site::start(Options::default()).await;
    let load = Load::start(&site).await;
    let begun = Instant::now();
    site.stop_redis();
    site.start_redis();
    load.settles("all nodes restarted (AOF)", begun).await;

    let begun = Instant::now();
    site.stop_redis();
    let address = site.balancer.address();
    let request = Request::get("/accounts/logs/").with("Cookie", &load.cookie);
    let asked = Instant::now();
    let refused = ask(address, &request).await.expect("an answer");
    let first = asked.elapsed();
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.text().contains("<html") && first < LIMIT * 3 / 2, "after {first:?}: {}", refused.text());
    for target in ["/api/hello/", "/accounts/login/", "/robots.txt"] {
        for _ in 0..5 {
            let begun = Instant::now();
            let page = ask(address, &Request::get(target)).await.expect("an answer");
            assert_eq!(page.status, 200, "{target}: {}", page.text());
            assert!(begun.elapsed() < load.slow * 4, "{target} needs no session, yet took {:?}", begun.elapsed());
        }
    }
    let away = begun.elapsed();
    let back = Instant::now();
    site.start_redis();
    let recovered = load.settles("Redis entirely away", begun).await;
    println!(
        "| Redis away for {:.1} s | first 503 after {:.1} s | all well {:.1} s after its nodes were started |",
        away.as_secs_f64(),
        first.as_secs_f64(),
        recovered.saturating_duration_since(back).as_secs_f64()
    );
    let outcome = load.stop(&site).await;
    let is_clear = |failure: &String| failure.starts_with("503") || [OUT_OF_REACH, NO_LOGIN].contains(&&**failure);
    assert!(outcome.failures.iter().all(is_clear), "{:#?}", outcome.failures);
    assert!(outcome.slowest < LIMIT * 2, "a page took {:?}", outcome.slowest);
}

/// With the time until a silent master is replaced from `redis/redis.conf`.
fn as_in_production() -> Options {
    Options { node_timeout: Duration::from_secs(2), ..Options::default() }
}

/// Three instances with sessions in Redis, behind a balancer.
struct Site {
    balancer: Balancer,
    instances: Vec<Instance>,
    redis: RedisCluster,
    _directory: TempDir,
}

impl Site {
    async fn start(options: Options) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let password = directory.path().join("redis-password");
        std::fs::write(&password, &options.password).expect("a writable directory");
        let redis = RedisCluster::start(options);
        let (nodes, data) = (redis.addresses().join(","), directory.path().join("data"));
        let password = password.to_str().expect("a name in UTF-8");
        let flags = ["--sessions", "redis-cluster", "--redis-nodes", &nodes, "--redis-password-file", password];
        let mut instances = Vec::new();
        for name in ["web1", "web2", "web3"] {
            instances.push(Instance::start_with(name, &data, "127.0.0.1:0", &flags).await);
        }
        let pool = instances.iter().fold(Pool::empty("app"), |pool, i| pool.backend(&i.address.to_string(), ""));
        let balancer = Balancer::start(Config::default().pool(pool.probe(PROBE))).await;
        Self { balancer, instances, redis, _directory: directory }
    }

    /// Stops all nodes properly at once, so that none is left to report the others.
    fn stop_redis(&mut self) {
        for place in 0..self.redis.addresses().len() {
            self.redis.stop_node(place);
        }
    }

    fn start_redis(&mut self) {
        for place in 0..self.redis.addresses().len() {
            self.redis.start_node(place);
        }
    }
}

/// Members who keep visiting pages, and occasional new members.
struct Load {
    stop: Arc<AtomicBool>,
    visits: Arc<Mutex<Vec<Visit>>>,
    members: Vec<JoinHandle<Vec<Member>>>,
    faults: Arc<Faults>,
    /// The cookie of a logged-in member.
    cookie: String,
    /// What takes longer is felt.
    slow: Duration,
}

/// When nodes were harmed, and which members lost a login by it. Redis replicates after it answers: a write that a
/// master acknowledged just before it was lost may be missing on its successor. Logins in that window are tolerated,
/// counted and printed.
#[derive(Default)]
struct Faults {
    begun: Mutex<Vec<Instant>>,
    lost_in_window: AtomicUsize,
}

/// A request and its result.
#[derive(Clone)]
struct Visit {
    member: usize,
    begun: Instant,
    ended: Instant,
    /// The error, if any.
    failure: Option<String>,
}

/// A member whose login was acknowledged.
struct Member {
    name: String,
    cookie: String,
    acknowledged: Instant,
}

struct Outcome {
    failures: Vec<String>,
    slowest: Duration,
}

impl Load {
    /// Returns once everyone is logged in and visits pages.
    async fn start(site: &Site) -> Self {
        let (stop, visits, faults) = (Arc::new(AtomicBool::new(false)), Arc::default(), Arc::<Faults>::default());
        let address = site.balancer.address();
        let welcome = ask(address, &app::sign_up("hopper")).await.expect("an answer");
        assert_eq!(welcome.status, 303, "{}", welcome.text());
        let members = (0..MEMBERS)
            .map(|member| {
                let (stop, visits, faults) = (Arc::clone(&stop), Arc::clone(&visits), Arc::clone(&faults));
                tokio::spawn(visit_pages(member, address, stop, visits, faults))
            })
            .collect();
        let mut load = Self { stop, visits, members, faults, cookie: app::cookies(&welcome), slow: SLOW };
        tests::eventually("everyone is there", async || {
            (0..MEMBERS).all(|member| load.visits().iter().filter(|visit| visit.member == member).count() > 5)
        })
        .await;
        // A busy machine is slow without any fault.
        load.slow = SLOW.max(3 * slowest(&load.visits()));
        load
    }

    fn visits(&self) -> Vec<Visit> {
        self.visits.lock().expect("no panic while it is held").clone()
    }

    /// Waits until the fault that began at `begun` is over, prints its effects, and returns when it ended.
    async fn settles(&self, what: &str, begun: Instant) -> Instant {
        let deadline = Instant::now() + Duration::from_secs(25);
        self.faults.begun.lock().expect("no panic while it is held").push(begun);
        loop {
            tokio::time::sleep(STEP).await;
            // Visits in progress when it began may be affected, too.
            let visits: Vec<_> = self.visits().into_iter().filter(|visit| visit.ended > begun).collect();
            let is_bad = |visit: &&Visit| visit.failure.is_some() || visit.ended - visit.begun > self.slow;
            let end = visits.iter().filter(is_bad).map(|visit| visit.ended).max().unwrap_or(begun);
            // A member who still waits has nothing recorded yet.
            let is_calm = |member| visits.iter().filter(|v| v.member == member && v.begun > end).count() > 5;
            if end.elapsed() > CALM && (0..MEMBERS).all(is_calm) {
                println!(
                    "| {what} | felt for {:.1} s | slowest page {:.2} s | {} of {} requests failed |",
                    (end - begun).as_secs_f64(),
                    slowest(&visits).as_secs_f64(),
                    visits.iter().filter(|visit| visit.failure.is_some()).count(),
                    visits.len(),
                );
                return end;
            }
            let failures: Vec<_> = visits.iter().filter_map(|visit| visit.failure.as_ref()).collect();
            assert!(Instant::now() < deadline, "{what} is felt without end; {failures:#?}");
        }
    }

    /// Ends the load and checks that everyone is logged in on every instance.
    async fn stop(self, site: &Site) -> Outcome {
        self.stop.store(true, Relaxed);
        let mut members = Vec::new();
        for member in self.members {
            members.extend(member.await.expect("a member who does not panic"));
        }
        let mut lost = Vec::new();
        for member in &members {
            for instance in &site.instances {
                if let Err(failure) = member.visit(instance.address).await {
                    lost.push(format!("{} on {}: {failure}", member.name, instance.name));
                }
            }
        }
        let visits = self.visits.lock().expect("no panic while it is held");
        let failures: Vec<_> = visits.iter().filter_map(|visit| visit.failure.clone()).collect();
        println!(
            "| in all | {} acknowledged logins, {} lost, {} more within replication's window | {} of {} requests failed |",
            members.len(),
            lost.len(),
            self.faults.lost_in_window.load(Relaxed),
            failures.len(),
            visits.len()
        );
        assert!(lost.is_empty(), "acknowledged logins are lost: {lost:#?}");
        Outcome { failures, slowest: slowest(&visits) }
    }
}

impl Member {
    /// Signs up. Fails unless the login is acknowledged.
    async fn join(name: String, site: SocketAddr) -> Result<Self, String> {
        let reply = ask(site, &app::sign_up(&name)).await?;
        match reply.status {
            303 => Ok(Self { cookie: app::cookies(&reply), name, acknowledged: Instant::now() }),
            200 if reply.text().contains("Your account is made") => Err(NO_LOGIN.to_owned()),
            status => Err(format!("{status} to a new member")),
        }
    }

    /// Reads and changes the session. Fails unless the page knows the member.
    async fn visit(&self, site: SocketAddr) -> Result<(), String> {
        let reply = ask(site, &Request::get("/").with("Cookie", &self.cookie)).await?;
        match reply.status {
            200 if reply.text().contains(&self.name) => Ok(()),
            200 if reply.text().contains("Sessions cannot be reached just now") => Err(OUT_OF_REACH.to_owned()),
            200 => Err(STRANGER.to_owned()),
            status => Err(format!("{status} to a member")),
        }
    }
}

impl Faults {
    /// Whether this login was acknowledged so shortly before a fault that Redis may have lost it. Counts such logins.
    fn excuse(&self, member: &Member) -> bool {
        let begun = self.begun.lock().expect("no panic while it is held");
        let at = member.acknowledged;
        let is_excused = begun.iter().any(|&fault| at.max(fault) - at.min(fault) < REPLICATION_WINDOW);
        self.lost_in_window.fetch_add(is_excused.into(), Relaxed);
        is_excused
    }
}

impl Outcome {
    #[track_caller]
    fn assert_none_failed(self) {
        assert!(self.failures.is_empty(), "{:#?}", self.failures);
    }
}

/// Visits pages one after the other as different members, each of whom must stay logged in.
async fn visit_pages(
    place: usize,
    site: SocketAddr,
    stop: Arc<AtomicBool>,
    visits: Arc<Mutex<Vec<Visit>>>,
    faults: Arc<Faults>,
) -> Vec<Member> {
    let mut members: Vec<Member> = Vec::new();
    for turn in 0.. {
        if stop.load(Relaxed) {
            break;
        }
        tokio::time::sleep(STEP).await;
        let begun = Instant::now();
        let result = if members.is_empty() || turn % 40 == 0 {
            Member::join(format!("guest{place}x{turn}y"), site).await.map(|member| members.push(member))
        } else {
            let visited = turn % members.len();
            match members[visited].visit(site).await {
                Err(failure) if failure == STRANGER && faults.excuse(&members[visited]) => {
                    members.remove(visited);
                    continue;
                }
                result => result,
            }
        };
        let visit = Visit { member: place, begun, ended: Instant::now(), failure: result.err() };
        visits.lock().expect("no panic while it is held").push(visit);
    }
    members
}

fn slowest(visits: &[Visit]) -> Duration {
    visits.iter().map(|visit| visit.ended - visit.begun).max().unwrap_or_default()
}

/// Sends a request over a new connection; failures are results, not panics.
async fn ask(site: SocketAddr, request: &Request) -> Result<Reply, String> {
    let exchange = async { Wire::try_connect(site).await?.try_exchange(request).await };
    match tokio::time::timeout(LIMIT * 3, exchange).await {
        Ok(reply) => reply.map_err(|error| format!("no answer: {error}")),
        Err(_) => Err("no answer in time".to_owned()),
    }
}
