//! Data in databases on the network: on a real PostgreSQL; on a stand-in for CrateDB; and on a real CrateDB where there is
//! one.

use std::time::{Duration, Instant};

use app::{
    config::Secret,
    data::{
        DataStore, Millis, Signup, User, UserName, contract,
        cratedb::CrateDbData,
        postgres::PostgresData,
        wire::{Nodes, Settings},
    },
};
use uuid::Uuid;

use crate::{link::Link, postgres::Postgres, standin::CrateStandIn};

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

#[tokio::test(flavor = "multi_thread")]
async fn postgres_keeps_the_contract() {
    let server = Postgres::start();
    let url = server.url(&[server.port]);
    // Both at once: three instances make the missing tables together, too.
    let start = || PostgresData::start(settings(&url, Some(Postgres::PASSWORD)));
    let (one, other) = tokio::try_join!(start(), start()).unwrap();
    contract::run(&one, &other).await;
    contract::run(&other, &one).await;
    let size = one.wire().pool_size();
    assert!(size.most == 4 && (1..=4).contains(&size.open) && size.idle == size.open, "{size:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_comes_later_is_waited_for() {
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
async fn a_wrong_password_and_forbidden_tables_are_told_at_once() {
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
async fn a_node_that_ends_or_hangs_is_left_for_another() {
    let server = Postgres::start();
    // Two ways to one database stand for two nodes of a cluster.
    let (one, other) = (Link::to(server.port).await, Link::to(server.port).await);
    let url = server.url(&[one.port(), other.port()]);
    let data = PostgresData::start(settings(&url, Some(Postgres::PASSWORD))).await.unwrap();

    for (how, node) in [("hangs", &one), ("is gone", &other)] {
        for _ in 0..8 {
            // Connections in the pool lead to both.
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
async fn a_database_away_fails_within_the_limit_and_recovers_by_itself() {
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
    assert!(first < limit + Duration::from_millis(500) && next < Duration::from_millis(500), "{first:?}, {next:?}");
}

// CrateDB says so after all its nodes were restarted, until they have recovered its state.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_not_there_yet_is_waited_for() {
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
    // Else what it is used for would prove nothing.
    let crate_db = CrateStandIn::start().await;
    let (client, connection) = tokio_postgres::connect(&crate_db.url(), tokio_postgres::NoTls).await.unwrap();
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
    crate_db.set_lag(Duration::from_millis(300));
    let connect = async || {
        let (client, connection) = tokio_postgres::connect(&crate_db.url(), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    };
    let (writer, reader) = (connect().await, connect().await);
    let writing = tokio::spawn(async move { writer.batch_execute("INSERT INTO sys.shards VALUES ('STARTED')").await });
    let rows = async || reader.query_typed("SELECT * FROM sys.shards", &[]).await.unwrap().len();
    while rows().await == 0 {}
    // It is on one copy, where another write would find it, and not yet on the other.
    let (this, next) = (rows().await, rows().await);
    assert!(this + next == 1 && !writing.is_finished(), "{this}, {next}");
    writing.await.unwrap().unwrap();
    assert_eq!((rows().await, rows().await), (1, 1));
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
}

/// Some look up members and leave again while others look up members and stay.
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
async fn a_signup_that_timed_out_is_told_from_anothers_while_the_replica_lags() {
    let crate_db = CrateStandIn::start().await;
    let data = CrateDbData::start(settings(&crate_db.url(), None)).await.unwrap();
    let short = Duration::from_millis(200);
    let hasty = Settings { statement_timeout: short, overall_timeout: short * 2, ..settings(&crate_db.url(), None) };
    let hasty = CrateDbData::start(hasty).await.unwrap();
    for same in [true, false] {
        crate_db.set_lag(Duration::from_secs(1));
        let ann = user();
        hasty.create_user(&ann).await.unwrap_err();
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

/// The same server with a schema that nobody else uses: what the tests write there is in nobody's way, theirs included.
pub fn in_own_schema(url: &str) -> String {
    let (server, _) = url.rsplit_once('/').expect("a URL that ends with the name of a schema");
    let schema = format!("test_{}", uuid::Uuid::new_v4().simple());
    println!("using tables of the schema {schema} in the CrateDB at hand; they can be dropped afterwards");
    format!("{server}/{schema}")
}
