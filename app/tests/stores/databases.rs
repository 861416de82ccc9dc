//! Data in network databases: a real PostgreSQL, a mock of CrateDB, and a real CrateDB if there is one.

use std::time::{Duration, Instant};

use app::config::Secret;
use app::data::cratedb::CrateDbData;
use app::data::postgres::PostgresData;
use app::data::wire::{Nodes, Settings, statements};
use app::data::{DataStore, Login, Millis, Post, Readiness, Signup, User, UserName, contract};
use app::error::StoreError;
use uuid::Uuid;

use crate::link::Link;
use crate::postgres::Postgres;
use crate::standin::CrateStandIn;

fn settings(url: &str, password: Option<&str>) -> Settings {
    Settings {
        nodes: Nodes::parse(url, password.map(Secret::new).as_ref(), None).unwrap(),
        connections: 4,
        connect_timeout: Duration::from_millis(1500),
        statement_timeout: Duration::from_secs(2),
        overall_timeout: Duration::from_secs(8),
        start_deadline: Duration::from_secs(30),
    }
}

fn user() -> User {
    let name: UserName = format!("n{}", &Uuid::new_v4().simple().to_string()[..24]).parse().unwrap();
    User { id: Uuid::now_v7(), name, password_hash: "$argon2id$".into(), created: Millis::now() }
}

fn login() -> Login {
    Login {
        id: Uuid::now_v7(),
        user: user().name.key(),
        at: Millis::now(),
        address: [192, 0, 2, 7].into(),
        instance: "web1".into(),
        succeeded: true,
    }
}

fn post() -> Post {
    Post { id: Uuid::now_v7(), created: Millis::now(), author: user().name, text: "Hello".into(), picture: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_keeps_the_contract() {
    let server = Postgres::start();
    let url = server.url(&[server.port]);
    // Both at once: three instances also create the missing tables simultaneously.
    let start = || PostgresData::start(settings(&url, Some(Postgres::PASSWORD)));
    let (one, other) = tokio::try_join!(start(), start()).unwrap();
    contract::run(&one, &other).await;
    contract::run(&other, &one).await;
    // A value that can never be stored is no outage: the request does not wait, and is not told to retry.
    let error = one.add_post(&Post { text: "a\0b".into(), ..post() }).await.unwrap_err();
    assert!(matches!(error, StoreError::Unfit(_)) && error.to_string().contains("22021"), "{error}");

    let size = one.wire().pool_size();
    assert!(size.most == 4 && (1..=4).contains(&size.open) && size.idle == size.open, "{size:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn start_waits_for_the_database() {
    let mut server = Postgres::start();
    server.stop();
    let url = server.url(&[server.port]);
    let starting = tokio::spawn(PostgresData::start(settings(&url, Some(Postgres::PASSWORD))));
    server.start_again();
    starting.await.unwrap().unwrap().ready().await.unwrap();

    server.stop();
    let soon = Settings { start_deadline: Duration::from_secs(1), ..settings(&url, None) };
    let error = PostgresData::start(soon).await.unwrap_err().to_string();
    assert!(error.contains("PostgreSQL is not ready after") && error.contains("refused"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_and_forbidden_tables_fail_at_once() {
    let server = Postgres::start();
    let url = server.url(&[server.port]);
    let error = PostgresData::start(settings(&url, Some("wrong"))).await.unwrap_err().to_string();
    assert!(error.contains("password authentication failed"), "{error}");

    server.sql("CREATE ROLE stranger LOGIN PASSWORD 'stranger'");
    server.sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC");
    let url = url.replace("app@", "stranger@");
    let soon = Settings { start_deadline: Duration::from_secs(1), ..settings(&url, Some("stranger")) };
    let error = PostgresData::start(soon).await.unwrap_err().to_string();
    assert!(error.contains("the tables users, logins, posts are missing and cannot be made"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn under_tls_the_certificate_is_checked() {
    let certificate = || rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (made, other) = (certificate(), certificate());
    let mut server = Postgres::start();
    server.require_tls(&made.cert.pem(), &made.signing_key.serialize_pem());
    let url = server.url(&[server.port]);
    let trusting = |ca: Option<String>| {
        let ca = ca.map(String::into_bytes);
        let nodes = Nodes::parse(&url, Some(&Secret::new(Postgres::PASSWORD)), ca.as_deref()).unwrap();
        PostgresData::start(Settings { nodes, start_deadline: Duration::from_secs(1), ..settings(&url, None) })
    };
    trusting(Some(made.cert.pem())).await.unwrap().ready().await.unwrap();
    let error = trusting(Some(other.cert.pem())).await.unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
    let error = trusting(None).await.unwrap_err().to_string();
    assert!(error.contains("no encryption"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_ends_or_hangs_is_replaced_by_another() {
    let server = Postgres::start();
    // Two addresses of one database represent two nodes of a cluster.
    let (one, other) = (Link::to(server.port).await, Link::to(server.port).await);
    let url = server.url(&[one.port(), other.port()]);
    let data = PostgresData::start(settings(&url, Some(Postgres::PASSWORD))).await.unwrap();

    for (how, node) in [("hangs", &one), ("is gone", &other)] {
        for _ in 0..8 {
            // The pool has connections to both.
            let users: Vec<_> = (0..4).map(|_| user()).collect();
            futures_util::future::try_join_all(users.iter().map(|user| data.create_user(user))).await.unwrap();
        }
        if how == "hangs" {
            node.stall()
        } else {
            node.cut()
        }
        let begun = Instant::now();
        let (mut failed, mut slowest) = (0, Duration::ZERO);
        let mut kept = Vec::new();
        for _ in 0..100 {
            let user = user();
            let asked = Instant::now();
            match data.create_user(&user).await {
                Ok(_) => kept.push(user),
                Err(_) => failed += 1,
            }
            slowest = slowest.max(asked.elapsed());
        }
        println!(
            "| a node of the database {how} | {failed} of 100 sign-ups failed | slowest {:.1} s | all {:.1} s |",
            slowest.as_secs_f64(),
            begun.elapsed().as_secs_f64()
        );
        assert_eq!(failed, 0);
        for user in kept {
            assert_eq!(data.user(&user.name.key()).await.unwrap(), Some(user));
        }
        node.restore();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_database_fails_within_the_limit_and_recovers() {
    let mut server = Postgres::start();
    let url = server.url(&[server.port]);
    let limit = Duration::from_secs(2);
    let settings = settings(&url, Some(Postgres::PASSWORD));
    let settings = Settings { overall_timeout: limit, statement_timeout: Duration::from_secs(1), ..settings };
    let data = PostgresData::start(settings).await.unwrap();
    let ann = user();
    data.create_user(&ann).await.unwrap();

    server.stop();
    let begun = Instant::now();
    data.user(&ann.name.key()).await.unwrap_err();
    let first = begun.elapsed();
    let begun = Instant::now();
    data.user(&ann.name.key()).await.unwrap_err();
    let next = begun.elapsed();
    server.start_again();
    let begun = Instant::now();
    let found = loop {
        match data.user(&ann.name.key()).await {
            Ok(found) => break found,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "it did not recover");
    };
    assert_eq!(found, Some(ann));
    println!(
        "| the database away | first error after {:.1} s, next {:.2} s | back {:.2} s after it |",
        first.as_secs_f64(),
        next.as_secs_f64(),
        begun.elapsed().as_secs_f64()
    );
    // One that began anew with the whole limit would take it twice.
    assert!(first < limit * 2 && next < limit, "{first:?}, {next:?}");
}

/// The maximum number of simultaneous statements while clients send statements that are not answered, and leave when at
/// least one of them runs.
async fn most_running_while_clients_leave(
    data: &(impl DataStore + Clone),
    clients: usize,
    running: impl AsyncFn() -> usize,
) -> usize {
    let mut most = 0;
    for _ in 0..12 {
        let before = running().await;
        let ask = |_| {
            let (data, key) = (data.clone(), user().name.key());
            tokio::spawn(async move { data.user(&key).await })
        };
        let asking: Vec<_> = (0..clients).map(ask).collect();
        let deadline = Instant::now() + Duration::from_secs(20);
        // An earlier one may have ended meanwhile.
        while running().await <= before.min(clients - 1) {
            assert!(Instant::now() < deadline, "nothing runs");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        most = most.max(running().await);
        for client in asking {
            client.abort();
        }
    }
    most
}

// They rose from 7 to 43 in five seconds, with a pool of four.
#[tokio::test(flavor = "multi_thread")]
async fn abandoned_statements_end_before_their_connection_is_reused() {
    let server = Postgres::start();
    // Clients leave, and none of their statements exceeds its timeout.
    let long = Duration::from_secs(60);
    let settings = settings(&server.url(&[server.port]), Some(Postgres::PASSWORD));
    let settings = Settings { statement_timeout: long, overall_timeout: long, ..settings };
    let data = PostgresData::start(settings.clone()).await.unwrap();
    let url = server.url(&[server.port]).replace("app@", &format!("app:{}@", Postgres::PASSWORD.replace(' ', "%20")));
    let connect = async || {
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    };
    // Within a transaction PostgreSQL would keep showing the statements that ran first.
    let (holder, watcher) = (connect().await, connect().await);
    holder.batch_execute("BEGIN; LOCK TABLE users").await.unwrap();
    let running = async || {
        let asked = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%FROM users%' \
                     AND pid <> pg_backend_pid()";
        watcher.query_one(asked, &[]).await.unwrap().get::<_, i64>(0) as usize
    };
    let most = most_running_while_clients_leave(&data, settings.connections, running).await;
    println!("| statements running while clients leave | at most {most} with {} connections |", settings.connections);
    assert!(most <= settings.connections, "{most}");
    holder.batch_execute("COMMIT").await.unwrap();
    assert_eq!(data.user(&user().name.key()).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn abandoned_statements_are_cancelled_on_cratedb() {
    let crate_db = CrateStandIn::start().await;
    let long = Duration::from_secs(60);
    let settings = Settings { statement_timeout: long, overall_timeout: long, ..settings(&crate_db.url(), None) };
    let data = CrateDbData::start(settings.clone()).await.unwrap();
    // The other nodes accept the statements, and wait.
    crate_db.freeze(0, Duration::from_secs(600));
    let running = async || crate_db.running();
    let most = most_running_while_clients_leave(&data, settings.connections, running).await;
    assert!(most <= settings.connections, "{most}");
    let deadline = Instant::now() + Duration::from_secs(20);
    while crate_db.running() > 0 {
        assert!(Instant::now() < deadline, "{} run on", crate_db.running());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Until then neither tables nor users exist, which would otherwise count as a permanent error.
#[tokio::test(flavor = "multi_thread")]
async fn start_waits_for_a_recovering_cratedb_cluster() {
    let crate_db = CrateStandIn::start().await;
    for user in ["crate", "evenkeel"] {
        let data = CrateDbData::start(settings(&crate_db.url_of(user), None)).await.unwrap();
        let ann = self::user();
        data.create_user(&ann).await.unwrap();
        crate_db.restart();
        let (key, again) = (ann.name.key(), data.clone());
        let asking = tokio::spawn(async move { again.user(&key).await });
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!asking.is_finished(), "{user}: {:?}", asking.await);
        data.ready().await.unwrap_err();
        crate_db.recover();
        assert_eq!(asking.await.unwrap().unwrap(), Some(ann), "{user}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cratedb_without_a_master_is_ready_for_reads_only() {
    let crate_db = CrateStandIn::start().await;
    let hasty = Settings { overall_timeout: Duration::from_secs(2), ..settings(&crate_db.url(), None) };
    let hasty = Settings { statement_timeout: Duration::from_secs(2), ..hasty };
    let data = CrateDbData::start(hasty).await.unwrap();
    let ann = user();
    data.create_user(&ann).await.unwrap();
    assert_eq!(data.ready().await.unwrap(), Readiness::Ready);
    crate_db.set_master(false);
    assert_eq!(data.ready().await.unwrap(), Readiness::ReadsOnly);
    assert_eq!(data.user(&ann.name.key()).await.unwrap().as_ref(), Some(&ann));
    let error = data.add_post(&post()).await.unwrap_err().to_string();
    assert!(error.contains("MASTER_NOT_DISCOVERED"), "{error}");
    crate_db.set_master(true);
    assert_eq!(data.ready().await.unwrap(), Readiness::Ready);
    data.add_post(&post()).await.unwrap();
}

/// Without any privilege on `sys`, CrateDB reports that there is no such schema.
#[tokio::test(flavor = "multi_thread")]
async fn the_applications_user_has_the_privileges_that_it_needs_in_cratedb() {
    let crate_db = CrateStandIn::start().await;
    let (client, connection) =
        tokio_postgres::connect(&one_node(&crate_db.url_of("evenkeel")), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let asked = [statements::MASTER, statements::NODES, statements::SHARDS, statements::UNASSIGNED_SHARDS];
    for statement in asked {
        let error = client.query_typed(statement, &[]).await.unwrap_err();
        assert_eq!(error.code().map(|code| code.code()), Some("3F000"), "{statement}");
    }
    let users = include_str!("../../../sql/cratedb-users.sql");
    let granted =
        users.lines().find_map(|line| line.strip_prefix("GRANT DQL ON TABLE ")?.strip_suffix(" TO evenkeel;"));
    for table in granted.unwrap().split(", ") {
        crate_db.grant(table.strip_prefix("sys.").unwrap());
    }
    for statement in asked {
        assert_eq!(client.query_typed(statement, &[]).await.unwrap().len(), 1, "{statement}");
    }
    // A user without privileges does not look like a missing master.
    let data = CrateDbData::start(settings(&crate_db.url_of("stranger"), None)).await.unwrap();
    assert_eq!(data.ready().await.unwrap(), Readiness::Ready);
}

/// The other nodes answer nothing about a table until fault detection has removed the frozen one from the cluster: with
/// a longer timeout than that, nobody gets an error.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_cratedb_node_is_survived_where_it_is_detected_in_time() {
    let overall = Duration::from_secs(4);
    for (detection, fails) in [(Duration::from_millis(1500), false), (overall * 3, true)] {
        let crate_db = CrateStandIn::start().await;
        let short = Settings {
            overall_timeout: overall,
            connect_timeout: Duration::from_millis(500),
            ..settings(&crate_db.url(), None)
        };
        let data = CrateDbData::start(Settings { statement_timeout: Duration::from_secs(1), ..short }).await.unwrap();
        let (ann, before) = (user(), post());
        data.create_user(&ann).await.unwrap();
        crate_db.freeze(0, detection);
        let begun = Instant::now();
        let (key, own) = (ann.name.key(), [before.cursor()]);
        let (posted, found, listed, recorded) =
            tokio::join!(data.add_post(&before), data.user(&key), data.posts(None, 10, &own), async {
                data.record_login(&login()).await
            },);
        let failed = [posted.is_err(), found.is_err(), listed.is_err(), recorded.is_err()];
        println!(
            "| a frozen node, detected after {detection:?} | {} of 4 failed within {overall:?} | all {:.1} s |",
            failed.iter().filter(|failed| **failed).count(),
            begun.elapsed().as_secs_f64()
        );
        assert!(failed.iter().all(|failed| *failed == fails), "{failed:?}");
        if fails {
            crate_db.thaw(0);
        }
        // Frozen or not, it works with the others.
        let deadline = Instant::now() + Duration::from_secs(20);
        while data.add_post(&before).await.is_err() {
            assert!(Instant::now() < deadline, "it did not recover");
        }
        assert_eq!(data.posts(None, 10, &own).await.unwrap(), [before]);
    }
}

// CrateDB reports that after a restart of all nodes, until they have recovered its state.
#[tokio::test(flavor = "multi_thread")]
async fn start_waits_for_missing_tables() {
    let server = Postgres::start();
    let data = PostgresData::start(settings(&server.url(&[server.port]), Some(Postgres::PASSWORD))).await.unwrap();
    let ann = user();
    data.create_user(&ann).await.unwrap();
    server.sql("ALTER TABLE users RENAME TO away");
    data.ready().await.unwrap_err();
    let (key, again) = (ann.name.key(), data.clone());
    let asking = tokio::spawn(async move { again.user(&key).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.sql("ALTER TABLE away RENAME TO users");
    assert_eq!(asking.await.unwrap().unwrap(), Some(ann));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stand_in_for_cratedb_answers_out_of_order() {
    // Otherwise the tests that use the mock would prove nothing.
    let crate_db = CrateStandIn::start().await;
    let (client, connection) =
        tokio_postgres::connect(&one_node(&crate_db.url()), tokio_postgres::NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    let one = client.prepare("SELECT 1").await.unwrap();
    let two = client.prepare("SELECT 2").await.unwrap();
    let value = |row: &tokio_postgres::Row| row.get::<_, i32>(0);
    assert_eq!(value(&client.query_one(&one, &[]).await.unwrap()), 1);
    assert_eq!(crate_db.pipelined(), 0);
    let (first, second) = tokio::join!(client.query_one(&one, &[]), client.query_one(&two, &[]));
    assert_eq!((value(&first.unwrap()), value(&second.unwrap())), (2, 1));
    assert_eq!(crate_db.pipelined(), 1);
    connection.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stand_in_for_cratedb_has_a_replica_that_lags_behind() {
    let crate_db = CrateStandIn::start().await;
    crate_db.set_lag(Duration::from_secs(1));
    let connect = async || {
        let (client, connection) =
            tokio_postgres::connect(&one_node(&crate_db.url()), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    };
    let (writer, reader) = (connect().await, connect().await);
    let insert = "INSERT INTO users VALUES ('ann', '1', 'Ann', '', 0)";
    let writing = tokio::spawn(async move { writer.batch_execute(insert).await });
    let rows = async || reader.query_typed("SELECT id FROM users WHERE user_key = 'ann'", &[]).await.unwrap().len();
    while rows().await == 0 {}
    // It is on one copy, where another write would find it, but not yet on the other.
    let (this, next) = (rows().await, rows().await);
    assert!(this + next == 1 && !writing.is_finished(), "{this}, {next}");
    writing.await.unwrap().unwrap();
    assert_eq!((rows().await, rows().await), (1, 1));
}

/// Otherwise a listed write could not be distinguished from a merged one.
#[tokio::test(flavor = "multi_thread")]
async fn lists_on_the_stand_in_for_cratedb_show_only_refreshed_rows() {
    let crate_db = CrateStandIn::start().await;
    crate_db.set_refreshes(false);
    let data = CrateDbData::start(settings(&crate_db.url(), None)).await.unwrap();
    let post = post();
    data.add_post(&post).await.unwrap();
    assert_eq!(data.posts(None, 10, &[]).await.unwrap(), []);
    crate_db.set_refreshes(true);
    let deadline = Instant::now() + Duration::from_secs(20);
    while data.posts(None, 10, &[]).await.unwrap().is_empty() {
        assert!(Instant::now() < deadline, "it was not refreshed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

// A refresh took 241 ms on a real cluster, in addition to 50 ms for the INSERT of a post.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_to_cratedb_is_one_statement_and_appears_in_its_authors_next_list() {
    let crate_db = CrateStandIn::start().await;
    crate_db.set_refreshes(false);
    let start = || CrateDbData::start(settings(&crate_db.url(), None));
    let (one, other) = tokio::try_join!(start(), start()).unwrap();
    crate_db.take_sent();
    let (post, login) = (post(), login());
    one.add_post(&post).await.unwrap();
    one.record_login(&login).await.unwrap();
    let sent = crate_db.take_sent();
    assert_eq!(sent.len(), 2, "{sent:?}");
    assert!(sent.iter().all(|statement| statement.starts_with("INSERT INTO ")), "{sent:?}");

    assert_eq!(other.posts(None, 10, &[post.cursor()]).await.unwrap(), [post]);
    assert_eq!(other.logins(&login.user, None, 10, &[login.cursor()]).await.unwrap(), std::slice::from_ref(&login));
    assert_eq!(other.logins(&user().name.key(), None, 10, &[login.cursor()]).await.unwrap(), [], "of somebody else");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_cratedb_reads_own_rows_only_where_they_are_missing() {
    let crate_db = CrateStandIn::start().await;
    let data = CrateDbData::start(settings(&crate_db.url(), None)).await.unwrap();
    let posts: Vec<_> = (1..=3).map(|at| Post { created: Millis(at), ..post() }).collect();
    for post in &posts {
        data.add_post(post).await.unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while data.posts(None, 10, &[]).await.unwrap().len() < 3 {
        assert!(Instant::now() < deadline, "it was not refreshed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    crate_db.set_refreshes(false);
    let [oldest, middle, newest] = [0, 1, 2].map(|place| posts[place].cursor());
    for (after, limit, own, statements) in [
        (None, 10, vec![], 1),
        (None, 10, vec![newest], 1),
        // On another page.
        (None, 2, vec![oldest], 1),
        (Some(middle), 2, vec![newest], 1),
        // Nowhere: looked up, and not found.
        (None, 10, vec![post().cursor()], 2),
    ] {
        crate_db.take_sent();
        let listed = data.posts(after, limit, &own).await.unwrap();
        assert_eq!(listed.len(), if after.is_some() { 1 } else { limit.min(3) });
        let sent = crate_db.take_sent();
        assert_eq!(sent.len(), statements, "{own:?}: {sent:?}");
    }
    // A full page keeps its length and order.
    let late = Post { created: Millis(4), ..post() };
    data.add_post(&late).await.unwrap();
    let places: Vec<_> = data.posts(None, 2, &[late.cursor()]).await.unwrap().iter().map(Post::cursor).collect();
    assert_eq!(places, [late.cursor(), newest]);
}

#[tokio::test(flavor = "multi_thread")]
async fn cratedb_data_keeps_the_contract_on_the_stand_in() {
    let crate_db = CrateStandIn::start().await;
    let start = || CrateDbData::start(settings(&crate_db.url(), None));
    let (one, other) = tokio::try_join!(start(), start()).unwrap();
    lookups_beside_those_given_up("the stand-in", &one).await;
    for lag in [Duration::ZERO, Duration::from_millis(30)] {
        crate_db.set_lag(lag);
        contract::run(&one, &other).await;
    }
    assert_eq!(crate_db.pipelined(), 0, "statements shared a connection");
    assert_eq!(crate_db.fetched(), 0, "lists were read in two phases");
}

/// Some look up members and leave again, while others look up members and stay.
async fn lookups_beside_those_given_up(on: &str, data: &CrateDbData) {
    const LOOKUPS: usize = 100;
    let members: Vec<_> = (0..8).map(|_| user()).collect();
    for member in &members {
        data.create_user(member).await.unwrap();
    }
    let mut takes = Duration::MAX;
    for member in &members {
        let begun = Instant::now();
        assert!(data.user(&member.name.key()).await.unwrap().is_some());
        takes = takes.min(begun.elapsed());
    }
    let of = |round: usize| &members[round % members.len()];
    let leaving = async |first: usize| {
        for round in 0..LOOKUPS {
            let limit = takes * (round as u32 * 7 % 20) / 10;
            let _ = tokio::time::timeout(limit, data.user(&of(first + round).name.key())).await;
        }
    };
    let staying = async |first: usize| {
        let (mut wrong, mut failed) = (0, 0);
        for round in 0..LOOKUPS {
            match data.user(&of(first + round).name.key()).await {
                Ok(found) => wrong += usize::from(found.as_ref() != Some(of(first + round))),
                Err(_) => failed += 1,
            }
        }
        (wrong, failed)
    };
    let left = futures_util::future::join_all((0..4).map(|n| leaving(2 * n)));
    let stayed = futures_util::future::join_all((0..4).map(|n| staying(2 * n + 1)));
    let (_, stayed) = tokio::join!(left, stayed);
    let wrong: usize = stayed.iter().map(|(wrong, _)| wrong).sum();
    let failed: usize = stayed.iter().map(|(_, failed)| failed).sum();
    println!(
        "| lookups beside {} given up, on {on} | {wrong} wrong, {failed} failed of {} |",
        4 * LOOKUPS,
        4 * LOOKUPS
    );
    assert_eq!((wrong, failed), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signup_that_timed_out_is_distinguished_from_anothers_despite_replica_lag() {
    let crate_db = CrateStandIn::start().await;
    let data = CrateDbData::start(settings(&crate_db.url(), None)).await.unwrap();
    let short = Duration::from_millis(200);
    let hasty = Settings { statement_timeout: short, overall_timeout: short * 2, ..settings(&crate_db.url(), None) };
    let hasty = CrateDbData::start(hasty).await.unwrap();
    for same in [true, false] {
        crate_db.set_lag(Duration::from_secs(1));
        let ann = user();
        hasty.create_user(&ann).await.unwrap_err();
        // On a busy machine it may have been given up before it came to the first copy.
        let key = ann.name.key();
        let has_come = async || data.user(&key).await.unwrap().is_some() || data.user(&key).await.unwrap().is_some();
        while !has_come().await {
            let _ = hasty.create_user(&ann).await;
        }
        let again = if same { ann.clone() } else { User { name: ann.name.clone(), ..user() } };
        let expected = if same { Signup::Created } else { Signup::Taken };
        assert_eq!(data.create_user(&again).await.unwrap(), expected);
        for _ in 0..4 {
            assert_eq!(data.user(&ann.name.key()).await.unwrap().as_ref(), Some(&ann), "on every copy");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cratedb_keeps_the_contract_where_there_is_one() {
    let Ok(url) = std::env::var("CRATEDB_URL") else {
        println!(
            "NOT RUN: the contract on a real CrateDB. Set CRATEDB_URL, such as postgresql://crate@127.0.0.1:5432/doc, \
             to run it. It was kept on the stand-in, and the statements were parsed by CrateDB's grammar."
        );
        return;
    };
    let url = in_own_schema(&url);
    let start = || CrateDbData::start(settings(&url, None));
    let (one, other) = tokio::try_join!(start(), start()).unwrap();
    lookups_beside_those_given_up("CrateDB", &one).await;
    contract::run(&one, &other).await;
    contract::run(&other, &one).await;
}

/// A URL with only the first node.
pub fn one_node(url: &str) -> String {
    let (nodes, schema) = url.rsplit_once('/').unwrap();
    format!("{}/{schema}", nodes.split(',').next().unwrap())
}

/// The same server with a schema of its own, so that tests do not affect each other or other users.
pub fn in_own_schema(url: &str) -> String {
    let (server, _) = url.rsplit_once('/').expect("a URL that ends with the name of a schema");
    let schema = format!("test_{}", uuid::Uuid::new_v4().simple());
    println!("using tables of the schema {schema} in the CrateDB at hand; they can be dropped afterwards");
    format!("{server}/{schema}")
}
