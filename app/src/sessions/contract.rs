//! What every [`SessionStore`] must do. Each implementation calls [`run`] from its own test.
#![allow(clippy::unwrap_used, reason = "a suite of assertions")]

use std::collections::BTreeSet;

use futures_util::future::join_all;
use serde_json::json;
use time::{Duration, OffsetDateTime};

use super::{Id, Loaded, Reachability, Record, SessionStore};
use crate::given_up;

/// Runs the suite. `one` and `other` are two handles, as of two instances, on the same sessions.
pub async fn run(one: &dyn SessionStore, other: &dyn SessionStore) {
    assert_eq!(one.reach().await.unwrap(), Reachability::Whole);
    a_created_session_is_seen_through_every_handle(one, other).await;
    an_id_that_is_taken_is_not_taken_again(one, other).await;
    saving_replaces_the_whole_record(one, other).await;
    what_has_ended_stays_so_and_is_told_from_what_never_was(one, other).await;
    saving_extends_the_life(one, other).await;
    what_has_expired_is_not_loaded(one, other).await;
    a_list_holds_each_entry_once_the_latest_last(one, other).await;
    a_list_is_kept_from_its_latest_entry_on(one, other).await;
    all_that_enrol_at_once_are_on_the_list(one, other).await;
    counts_are_shared_and_taken_back(one, other).await;
    a_count_ends_with_its_window_however_often_it_is_counted(one, other).await;
    an_operation_given_up_leaves_the_answers_of_others_alone(one).await;
}

async fn a_created_session_is_seen_through_every_handle(one: &dyn SessionStore, other: &dyn SessionStore) {
    let record = record(in_an_hour());
    assert!(one.create(&record).await.unwrap());
    let loaded = loaded(other, &record.id).await.unwrap();
    assert_eq!((loaded.id, loaded.data), (record.id, record.data));
    assert!((loaded.expiry_date - record.expiry_date).abs() < Duration::seconds(2));
}

async fn an_id_that_is_taken_is_not_taken_again(one: &dyn SessionStore, other: &dyn SessionStore) {
    let first = record(in_an_hour());
    assert!(one.create(&first).await.unwrap());
    let mut second = first.clone();
    second.data.insert("whose".into(), json!("second"));
    assert!(!other.create(&second).await.unwrap());
    assert_eq!(loaded(one, &first.id).await.unwrap().data, first.data);
}

async fn saving_replaces_the_whole_record(one: &dyn SessionStore, other: &dyn SessionStore) {
    let mut record = record(in_an_hour());
    assert!(one.create(&record).await.unwrap());
    record.data.remove("name");
    record.data.insert("deep".into(), json!({ "list": [1, 2.5, "\u{1f36a}", null] }));
    assert!(other.save(&record).await.unwrap());
    assert_eq!(loaded(one, &record.id).await.unwrap().data, record.data);
}

async fn what_has_ended_stays_so_and_is_told_from_what_never_was(one: &dyn SessionStore, other: &dyn SessionStore) {
    let (ended, unknown) = (record(in_an_hour()), record(in_an_hour()));
    assert!(one.create(&ended).await.unwrap());
    for _ in 0..2 {
        other.delete(&ended.id).await.unwrap();
        one.delete(&unknown.id).await.unwrap();
    }
    for store in [one, other] {
        assert!(!store.save(&ended).await.unwrap(), "a request that loaded it before says so");
        assert!(!store.save(&unknown).await.unwrap());
        assert!(!store.create(&ended).await.unwrap(), "nobody gets its id");
        assert_eq!(store.load(&ended.id).await.unwrap(), Loaded::Ended);
        assert_eq!(store.load(&unknown.id).await.unwrap(), Loaded::Nothing);
    }
}

async fn saving_extends_the_life(one: &dyn SessionStore, other: &dyn SessionStore) {
    let mut record = record(in_an_hour());
    assert!(one.create(&record).await.unwrap());
    record.expiry_date += Duration::hours(5);
    assert!(one.save(&record).await.unwrap());
    let loaded = loaded(other, &record.id).await.unwrap();
    assert!((loaded.expiry_date - record.expiry_date).abs() < Duration::seconds(2));
}

async fn what_has_expired_is_not_loaded(one: &dyn SessionStore, other: &dyn SessionStore) {
    let mut record = record(in_an_hour());
    assert!(one.create(&record).await.unwrap());
    record.expiry_date = OffsetDateTime::now_utc() - Duration::seconds(5);
    one.save(&record).await.unwrap();
    assert_eq!(other.load(&record.id).await.unwrap(), Loaded::Nothing);
}

async fn a_list_holds_each_entry_once_the_latest_last(one: &dyn SessionStore, other: &dyn SessionStore) {
    let (list, empty) = (fresh_name(), fresh_name());
    assert_eq!(one.list(&empty).await.unwrap(), [""; 0]);
    one.strike(&empty, &["a".into()]).await.unwrap();
    for entry in ["a", "b", "c"] {
        one.enrol(&list, entry, HOUR).await.unwrap();
    }
    assert_eq!(other.enrol(&list, "a", HOUR).await.unwrap(), ["b", "c", "a"]);
    for _ in 0..2 {
        other.strike(&list, &["b".into(), "a".into()]).await.unwrap();
    }
    assert_eq!(one.list(&list).await.unwrap(), ["c"]);
    assert_eq!(one.enrol(&empty, "a", HOUR).await.unwrap(), ["a"]);
}

async fn a_list_is_kept_from_its_latest_entry_on(one: &dyn SessionStore, other: &dyn SessionStore) {
    let (short, prolonged) = (fresh_name(), fresh_name());
    one.enrol(&short, "a", INSTANT).await.unwrap();
    one.enrol(&prolonged, "a", HOUR / 2).await.unwrap();
    assert_eq!(other.enrol(&prolonged, "b", HOUR).await.unwrap(), ["a", "b"]);
    eventually(async || one.list(&short).await.unwrap().is_empty()).await;
    assert_eq!(other.enrol(&short, "b", HOUR).await.unwrap(), ["b"], "what is over does not come back");
    assert_eq!(one.list(&prolonged).await.unwrap(), ["a", "b"]);
}

async fn all_that_enrol_at_once_are_on_the_list(one: &dyn SessionStore, other: &dyn SessionStore) {
    let list = fresh_name();
    let names: Vec<String> = (0..8).map(|number| number.to_string()).collect();
    let enrolled =
        join_all(names.iter().enumerate().map(|(index, name)| [one, other][index % 2].enrol(&list, name, HOUR)));
    let lengths: BTreeSet<_> = enrolled.await.into_iter().map(|listed| listed.unwrap().len()).collect();
    assert_eq!(lengths, (1..=8).collect(), "each saw those before it");
    let listed: BTreeSet<_> = one.list(&list).await.unwrap().into_iter().collect();
    assert_eq!(listed, names.into_iter().collect());
}

async fn counts_are_shared_and_taken_back(one: &dyn SessionStore, other: &dyn SessionStore) {
    let (name, unknown) = (fresh_name(), fresh_name());
    let entries: Vec<String> = (0..8).map(|number| number.to_string()).collect();
    let counted =
        join_all(entries.iter().enumerate().map(|(index, entry)| [one, other][index % 2].count(&name, entry, HOUR)));
    let counted = counted.await;
    let numbers: BTreeSet<_> = counted.iter().map(|count| count.as_ref().unwrap().number).collect();
    assert_eq!(numbers, (1..=8).collect(), "no two are the same");
    for count in counted {
        let left = count.unwrap().left;
        assert!(left <= HOUR && left > HOUR / 2, "{left:?}");
    }
    // Each may be sent again.
    assert_eq!(one.count(&name, "7", HOUR).await.unwrap().number, 8);
    for _ in 0..2 {
        other.uncount(&name, "3").await.unwrap();
        one.uncount(&unknown, "3").await.unwrap();
    }
    assert_eq!(one.count(&name, "8", HOUR).await.unwrap().number, 8);
    assert_eq!(one.count(&unknown, "1", HOUR).await.unwrap().number, 1);
    one.uncount(&unknown, "1").await.unwrap();
    assert_eq!(other.count(&unknown, "2", HOUR).await.unwrap().number, 1);
}

async fn a_count_ends_with_its_window_however_often_it_is_counted(one: &dyn SessionStore, other: &dyn SessionStore) {
    let name = fresh_name();
    let window = std::time::Duration::from_millis(500);
    let first = one.count(&name, "first", window).await.unwrap();
    assert!(first.number == 1 && first.left <= window);
    // It would never end if each began the window anew.
    let number = std::cell::Cell::new(0);
    eventually(async || {
        number.set(number.get() + 1);
        other.count(&name, &number.get().to_string(), window).await.unwrap().number == 1
    })
    .await;
}

async fn loaded(store: &dyn SessionStore, id: &Id) -> Option<Record> {
    store.load(id).await.unwrap().session()
}

/// Waits for a condition, without which it fails.
async fn eventually(condition: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "it did not come about");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

fn fresh_name() -> String {
    format!("contract-{}", Id::default())
}

const HOUR: std::time::Duration = std::time::Duration::from_secs(3600);
const INSTANT: std::time::Duration = std::time::Duration::from_millis(1);

/// A dropped future must not leave its connection, with the answer still to come, to whoever asks next.
async fn an_operation_given_up_leaves_the_answers_of_others_alone(store: &dyn SessionStore) {
    let mut records = Vec::new();
    for number in 0..3 {
        let mut record = record(in_an_hour());
        record.data.insert("number".into(), json!(number));
        assert!(store.create(&record).await.unwrap());
        records.push(record);
    }
    let (unknown, listed, lists, counts) = (Id::default(), fresh_name(), fresh_name(), fresh_name());
    store.enrol(&listed, "a", HOUR).await.unwrap();
    let operations: [given_up::Operation<'_>; 10] = [
        &|| Box::pin(async { assert!(loaded(store, &records[0].id).await.is_some()) }),
        &|| Box::pin(async { assert!(store.save(&records[0]).await.unwrap()) }),
        &|| Box::pin(async { assert!(store.create(&record(in_an_hour())).await.unwrap()) }),
        &|| Box::pin(async { store.delete(&unknown).await.unwrap() }),
        &|| Box::pin(async { assert!(!store.enrol(&lists, "b", HOUR).await.unwrap().is_empty()) }),
        &|| Box::pin(async { assert_eq!(store.list(&listed).await.unwrap(), ["a"]) }),
        &|| Box::pin(async { store.strike(&lists, &["c".into()]).await.unwrap() }),
        &|| Box::pin(async { assert!(store.count(&counts, "a", HOUR).await.unwrap().number > 0) }),
        &|| Box::pin(async { store.uncount(&counts, "a").await.unwrap() }),
        &|| Box::pin(async { assert_eq!(store.reach().await.unwrap(), Reachability::Whole) }),
    ];
    for operation in operations {
        for waits in 0.. {
            let finished = given_up::after(waits, operation()).await.is_some();
            let loads = records.iter().map(|record| loaded(store, &record.id));
            for (loaded, record) in join_all(loads).await.into_iter().zip(&records) {
                assert_eq!(loaded.unwrap().data, record.data, "after {waits} waits");
            }
            assert_eq!(store.load(&unknown).await.unwrap(), Loaded::Nothing);
            assert_eq!(store.list(&listed).await.unwrap(), ["a"]);
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
