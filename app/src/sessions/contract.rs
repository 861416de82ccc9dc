//! What every [`SessionStore`] must do. Each implementation calls [`run`] from its own test.
#![allow(clippy::unwrap_used, reason = "a suite of assertions")]

use futures_util::future::join_all;
use serde_json::json;
use time::{Duration, OffsetDateTime};
use tower_sessions_core::{
    SessionStore,
    session::{Id, Record},
};

use crate::given_up;

/// Runs the suite. `one` and `other` are two handles, as of two instances, on the same sessions.
pub async fn run(one: &dyn SessionStore, other: &dyn SessionStore) {
    a_created_session_is_seen_through_every_handle(one, other).await;
    creating_under_a_taken_id_takes_another(one, other).await;
    saving_replaces_the_whole_record(one, other).await;
    saving_does_not_bring_back_what_was_deleted(one, other).await;
    saving_extends_the_life(one, other).await;
    deleting_is_repeatable(one, other).await;
    what_has_expired_is_not_loaded(one, other).await;
    an_operation_given_up_leaves_the_answers_of_others_alone(one).await;
}

async fn a_created_session_is_seen_through_every_handle(one: &dyn SessionStore, other: &dyn SessionStore) {
    let mut record = record(in_an_hour());
    one.create(&mut record).await.unwrap();
    let loaded = other.load(&record.id).await.unwrap().unwrap();
    assert_eq!((loaded.id, loaded.data), (record.id, record.data));
    assert!((loaded.expiry_date - record.expiry_date).abs() < Duration::seconds(2));
}

async fn creating_under_a_taken_id_takes_another(one: &dyn SessionStore, other: &dyn SessionStore) {
    let mut first = record(in_an_hour());
    one.create(&mut first).await.unwrap();
    let mut second = record(in_an_hour());
    second.id = first.id;
    second.data.insert("whose".into(), json!("second"));
    other.create(&mut second).await.unwrap();
    assert_ne!(first.id, second.id);
    assert_eq!(one.load(&first.id).await.unwrap().unwrap().data, first.data);
    assert_eq!(one.load(&second.id).await.unwrap().unwrap().data, second.data);
}

async fn saving_replaces_the_whole_record(one: &dyn SessionStore, other: &dyn SessionStore) {
    let mut record = record(in_an_hour());
    one.create(&mut record).await.unwrap();
    record.data.remove("name");
    record.data.insert("deep".into(), json!({ "list": [1, 2.5, "\u{1f36a}", null] }));
    other.save(&record).await.unwrap();
    assert_eq!(one.load(&record.id).await.unwrap().unwrap().data, record.data);
}

async fn saving_does_not_bring_back_what_was_deleted(one: &dyn SessionStore, other: &dyn SessionStore) {
    let mut record = record(in_an_hour());
    one.create(&mut record).await.unwrap();
    other.delete(&record.id).await.unwrap();
    one.save(&record).await.unwrap();
    assert_eq!(one.load(&record.id).await.unwrap(), None);
    assert_eq!(other.load(&record.id).await.unwrap(), None);
}

async fn saving_extends_the_life(one: &dyn SessionStore, other: &dyn SessionStore) {
    let mut record = record(in_an_hour());
    one.create(&mut record).await.unwrap();
    record.expiry_date += Duration::hours(5);
    one.save(&record).await.unwrap();
    let loaded = other.load(&record.id).await.unwrap().unwrap();
    assert!((loaded.expiry_date - record.expiry_date).abs() < Duration::seconds(2));
}

async fn deleting_is_repeatable(one: &dyn SessionStore, other: &dyn SessionStore) {
    let mut record = record(in_an_hour());
    one.create(&mut record).await.unwrap();
    one.delete(&record.id).await.unwrap();
    other.delete(&record.id).await.unwrap();
    one.delete(&Id::default()).await.unwrap();
    assert_eq!(other.load(&record.id).await.unwrap(), None);
}

async fn what_has_expired_is_not_loaded(one: &dyn SessionStore, other: &dyn SessionStore) {
    let mut record = record(in_an_hour());
    one.create(&mut record).await.unwrap();
    record.expiry_date = OffsetDateTime::now_utc() - Duration::seconds(5);
    one.save(&record).await.unwrap();
    assert_eq!(other.load(&record.id).await.unwrap(), None);
}

/// A dropped future must not leave its connection, with the answer still to come, to whoever asks next.
async fn an_operation_given_up_leaves_the_answers_of_others_alone(store: &dyn SessionStore) {
    let mut records = Vec::new();
    for number in 0..3 {
        let mut record = record(in_an_hour());
        record.data.insert("number".into(), json!(number));
        store.create(&mut record).await.unwrap();
        records.push(record);
    }
    let unknown = Id::default();
    let operations: [given_up::Operation<'_>; 4] = [
        &|| Box::pin(async { assert!(store.load(&records[0].id).await.unwrap().is_some()) }),
        &|| Box::pin(async { store.save(&records[0]).await.unwrap() }),
        &|| Box::pin(async { store.create(&mut record(in_an_hour())).await.unwrap() }),
        &|| Box::pin(async { store.delete(&unknown).await.unwrap() }),
    ];
    for operation in operations {
        for waits in 0.. {
            let finished = given_up::after(waits, operation()).await.is_some();
            let loads = records.iter().map(|record| store.load(&record.id));
            for (loaded, record) in join_all(loads).await.into_iter().zip(&records) {
                assert_eq!(loaded.unwrap().unwrap().data, record.data, "after {waits} waits");
            }
            assert_eq!(store.load(&unknown).await.unwrap(), None);
            if finished {
                break;
            }
        }
    }
}

fn in_an_hour() -> OffsetDateTime {
    OffsetDateTime::now_utc() + Duration::hours(1)
}

/// A record with a fresh id and a little data.
pub fn record(expiry_date: OffsetDateTime) -> Record {
    Record { id: Id::default(), data: [("name".to_owned(), json!("ann"))].into(), expiry_date }
}
