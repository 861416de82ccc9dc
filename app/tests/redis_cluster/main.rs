//! Sessions on a real Redis Cluster, while nodes of it are killed, frozen, restarted and exchange their roles.
//!
//! Each disturbance runs under load: members who change and read their sessions all the time. It prints how long the
//! disturbance was felt and how many operations failed, and proves that no session is gone that was acknowledged.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod load;

use std::time::{Duration, Instant};

use app::config::{Address, Secret};
use app::error::StoreError;
use app::sessions::redis_cluster::{RedisSessions, Settings, Tls};
use app::sessions::{Id, Reachability, SessionStore, contract};
use load::Load;
use prometheus::IntCounter;
use tests::redis_cluster::{Certificates, Options, RedisCluster};
use time::OffsetDateTime;

const PASSWORD: &str = "not a secret";

/// With the defaults of the flags.
fn settings(cluster: &RedisCluster) -> Settings {
    Settings {
        nodes: cluster.addresses().iter().map(|address| address.parse::<Address>().unwrap()).collect(),
        username: None,
        password: Some(Secret::new(PASSWORD)),
        tls: None,
        prefix: "session:".into(),
        connect_timeout: Duration::from_millis(500),
        response_timeout: Duration::from_millis(500),
        retry_wait: Duration::from_millis(50),
        rebuild_timeout: Duration::from_secs(2),
        attempt_timeout: Duration::from_millis(1500),
        overall_timeout: Duration::from_secs(8),
        visitor_lifetime: Duration::from_secs(2 * 3600),
    }
}

/// With the time until a silent master is replaced that `redis/redis.conf` sets.
fn as_in_production() -> Options {
    Options { node_timeout: Duration::from_secs(2), ..Options::default() }
}

fn store(settings: Settings) -> (RedisSessions, IntCounter) {
    let replaced = IntCounter::new("replaced", "Connections given up.").unwrap();
    (RedisSessions::new(settings, replaced.clone()).unwrap(), replaced)
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_the_contract_and_expires_sessions_in_redis() {
    let cluster = RedisCluster::start(Options { replicas_of_each: 0, ..Options::default() });
    let (one, _) = store(settings(&cluster));
    let (other, _) = store(settings(&cluster));
    contract::run(&one, &other).await;

    let record = contract::record(OffsetDateTime::now_utc() + time::Duration::hours(1));
    assert!(one.create(&record).await.unwrap());
    let key = format!("session:{}", record.id);
    let left = |key: &str| -> i64 { cluster.cli(cluster.master_of(0, key), &["pttl", key]).trim().parse().unwrap() };
    assert!((3_590_000..=3_600_000).contains(&left(&key)), "{} ms", left(&key));

    // A Redis that is full throws out first what has the least time left. That must be visitors' sessions, of which
    // anybody can make any number: not the counts that guard accounts, nor what is known of sessions that were ended.
    one.count("of-failures", "first", Duration::from_secs(900)).await.unwrap();
    one.delete(&record.id).await.unwrap();
    for (key, ends_after) in [("session:count:of-failures", 900), (&*key, 600)] {
        let spare = left(key) - 1_000 * ends_after;
        assert!((7_190_000..=7_200_000).contains(&spare), "{key}: {spare} ms");
    }

    // Nothing is kept for ever, be it given up half way.
    for place in cluster.masters(0) {
        for key in cluster.cli(place, &["keys", "*"]).lines().filter(|key| !key.is_empty()) {
            let left: i64 = cluster.cli(place, &["pttl", key]).trim().parse().unwrap();
            assert!(left != -1, "{key} has no end");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_the_contract_under_tls() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    let certificates = Certificates {
        ca: folder.path().join("ca.pem"),
        certificate: folder.path().join("ca.pem"),
        key: folder.path().join("key.pem"),
    };
    std::fs::write(&certificates.ca, made.cert.pem()).unwrap();
    std::fs::write(&certificates.key, made.signing_key.serialize_pem()).unwrap();
    let options = Options { replicas_of_each: 0, tls: Some(certificates), ..Options::default() };
    let cluster = RedisCluster::start(options);

    let tls = Some(Tls { ca: Some(made.cert.pem().into_bytes()) });
    let (one, _) = store(Settings { tls, ..settings(&cluster) });
    contract::run(&one, &one).await;

    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let tls = Some(Tls { ca: Some(other.cert.pem().into_bytes()) });
    let begun = Instant::now();
    assert_unavailable(store(Settings { tls, ..settings(&cluster) }).0.load(&Id::default()).await);
    assert!(begun.elapsed() < settings(&cluster).overall_timeout / 2, "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_an_error_at_once() {
    let cluster = RedisCluster::start(Options { replicas_of_each: 0, ..Options::default() });
    let (store, _) = store(Settings { password: Some(Secret::new("wrong")), ..settings(&cluster) });
    let begun = Instant::now();
    assert_unavailable(store.load(&Id::default()).await);
    assert!(begun.elapsed() < settings(&cluster).overall_timeout / 2, "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn survives_a_master_killed() {
    let mut cluster = RedisCluster::start(as_in_production());
    let (store, replaced) = store(settings(&cluster));
    let load = Load::start(&store).await;
    let victim = cluster.masters(0)[1];
    let successor = cluster.replica_of(victim);
    let begun = Instant::now();
    cluster.kill(victim);
    load.settles("kill -9 of a master", begun, Duration::from_secs(8)).await;

    // It comes back as the replica of its successor, and then its successor dies as well.
    cluster.start_node(victim);
    cluster.wait_until_healthy();
    let begun = Instant::now();
    cluster.kill(successor);
    load.settles("kill -9 of its successor", begun, Duration::from_secs(8)).await;
    load.stop("masters killed", &store, &replaced).await.allows_failures(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn survives_a_master_frozen_and_thawed() {
    let cluster = RedisCluster::start(as_in_production());
    let (store, replaced) = store(settings(&cluster));
    let load = Load::start(&store).await;
    let victim = cluster.masters(0)[1];
    let begun = Instant::now();
    cluster.freeze(victim);
    load.settles("SIGSTOP of a master", begun, Duration::from_secs(8)).await;

    let begun = Instant::now();
    cluster.thaw(victim);
    cluster.wait_until_healthy();
    load.settles("SIGCONT of the former master", begun, Duration::from_secs(8)).await;
    load.stop("a master frozen", &store, &replaced).await.allows_failures(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn survives_roles_exchanged_and_a_replica_lost() {
    let mut cluster = RedisCluster::start(Options::default());
    let (store, replaced) = store(settings(&cluster));
    let load = Load::start(&store).await;
    let master = cluster.masters(0)[0];
    let replica = cluster.replica_of(master);
    let begun = Instant::now();
    cluster.fail_over_to(replica);
    load.settles("CLUSTER FAILOVER", begun, Duration::from_secs(4)).await;

    cluster.wait_until_healthy();
    let begun = Instant::now();
    cluster.kill(master);
    load.settles("a replica lost", begun, Duration::from_secs(4)).await;
    load.stop("roles exchanged", &store, &replaced).await.allows_failures(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn survives_slots_moved_to_a_new_master_and_back() {
    let mut cluster = RedisCluster::start(Options { replicas_of_each: 0, ..Options::default() });
    let (store, replaced) = store(settings(&cluster));
    let load = Load::start(&store).await;
    let begun = Instant::now();
    let new = cluster.add_master();
    for master in 0..3 {
        cluster.move_slots(600, master, new);
    }
    load.settles("1800 slots moved to a new master", begun, Duration::from_secs(30)).await;
    let begun = Instant::now();
    cluster.move_slots(1800, new, 0);
    load.settles("all of them moved back", begun, Duration::from_secs(30)).await;
    load.stop("slots moved", &store, &replaced).await.allows_failures(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn survives_all_nodes_restarted_with_their_append_only_files() {
    let mut cluster = RedisCluster::start(Options::default());
    let (store, replaced) = store(settings(&cluster));
    let load = Load::start(&store).await;
    let begun = Instant::now();
    for place in 0..6 {
        cluster.stop_node(place);
    }
    for place in 0..6 {
        cluster.start_node(place);
    }
    load.settles("all nodes restarted", begun, Duration::from_secs(20)).await;
    // Those under way while nothing runs may give up; how many depends on how long the nodes take.
    let _ = load.stop("all nodes restarted", &store, &replaced).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_fails_within_the_limit_and_recovers() {
    let mut cluster = RedisCluster::start(Options { replicas_of_each: 0, ..Options::default() });
    let limit = Duration::from_secs(3);
    let (store, _) = store(Settings { overall_timeout: limit, ..settings(&cluster) });
    let record = contract::record(OffsetDateTime::now_utc() + time::Duration::hours(1));
    assert!(store.create(&record).await.unwrap());

    for frozen in [false, true] {
        for place in 0..3 {
            if frozen { cluster.freeze(place) } else { cluster.stop_node(place) }
        }
        let begun = Instant::now();
        assert_unavailable(store.load(&record.id).await);
        let first = begun.elapsed();
        let begun = Instant::now();
        assert_unavailable(store.load(&record.id).await);
        let next = begun.elapsed();
        let many = futures_util::future::join_all((0..50).map(|_| store.load(&record.id)));
        let begun = Instant::now();
        many.await.into_iter().for_each(assert_unavailable);
        let crowd = begun.elapsed();

        for place in 0..3 {
            if frozen { cluster.thaw(place) } else { cluster.start_node(place) }
        }
        let begun = Instant::now();
        let found = loop {
            match store.load(&record.id).await {
                Ok(found) => break found,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "it did not recover");
        };
        assert_eq!(found.session().unwrap().data, record.data);
        let how = if frozen { "all nodes frozen" } else { "no node runs" };
        println!(
            "| {how} | first error after {:.1} s, next {:.2} s, 50 at once {:.2} s | back {:.2} s after the nodes |",
            first.as_secs_f64(),
            next.as_secs_f64(),
            crowd.as_secs_f64(),
            begun.elapsed().as_secs_f64()
        );
        let slack = Duration::from_millis(500);
        assert!(first < limit + slack, "{first:?}");
        // Nobody waits a second time for what is known to be away.
        assert!(next < limit / 2 && crowd < limit / 2, "{next:?}, {crowd:?}");
    }
}

// A success elsewhere made each operation on the part that was away wait for the whole limit again.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_shard_is_waited_for_once_and_does_not_affect_the_others() {
    let mut cluster = RedisCluster::start(Options { replicas_of_each: 0, ..Options::default() });
    let limit = Duration::from_secs(3);
    let (store, _) = store(Settings { overall_timeout: limit, ..settings(&cluster) });
    let (mut there, mut away) = (Vec::new(), Vec::new());
    while there.len() < 3 || away.len() < 3 {
        let record = contract::record(OffsetDateTime::now_utc() + time::Duration::hours(1));
        assert!(store.create(&record).await.unwrap());
        let is_away = cluster.master_of(0, &format!("session:{}", record.id)) == 1;
        if is_away { &mut away } else { &mut there }.push(record.id);
    }
    cluster.stop_node(1);
    assert_unavailable(store.load(&away[0]).await);
    for _ in 0..2 {
        for (there, away) in there.iter().zip(&away) {
            assert!(store.load(there).await.unwrap().session().is_some());
            let begun = Instant::now();
            assert_unavailable(store.load(away).await);
            assert!(begun.elapsed() < limit / 2, "{:?}", begun.elapsed());
            assert!(store.is_away(away) && !store.is_away(there));
        }
    }
}

/// An instance that asked for one session found one of three of them out of reach, and called itself unready for that.
#[tokio::test(flavor = "multi_thread")]
async fn reports_an_unreachable_shard_apart_from_an_unreachable_cluster() {
    let mut cluster = RedisCluster::start(Options { replicas_of_each: 0, ..as_in_production() });
    let (store, _) = store(settings(&cluster));
    assert_eq!(store.reach().await.unwrap(), Reachability::Whole);
    cluster.stop_node(1);
    let (begun, mut in_a_row) = (Instant::now(), 0);
    // Whichever answers; they notice at different times. Never an error: two of three answer.
    while in_a_row < 20 {
        let is_part =
            matches!(store.reach().await.unwrap(), Reachability::Partial(which) if which.contains(" of 16384 slots"));
        in_a_row = if is_part { in_a_row + 1 } else { 0 };
        assert!(begun.elapsed() < Duration::from_secs(20), "they did not notice");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for place in [0, 2] {
        cluster.stop_node(place);
    }
    assert_unavailable(store.reach().await);
    for place in 0..3 {
        cluster.start_node(place);
    }
    let begun = Instant::now();
    while !matches!(store.reach().await, Ok(Reachability::Whole)) {
        assert!(begun.elapsed() < Duration::from_secs(30), "it did not recover");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[track_caller]
fn assert_unavailable<T: std::fmt::Debug>(outcome: Result<T, StoreError>) {
    assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
}
