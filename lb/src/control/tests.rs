use std::cell::Cell;

use super::*;
use crate::backend::queue::Turn;
use crate::balance::Key;
use crate::config::route::PathPrefix;
use crate::pool::{Pick, Pool};

fn control() -> Control {
    let text = "[state]\npersist = false\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\npool = \"app\"\n\
                [[pool]]\nname = \"app\"\nbackends = [{ address = \"a:1\" }, { address = \"b:1\" }]\n";
    let path = Path::new("/evenkeel.toml");
    let config = crate::config::toml::read(text, path).expect("valid");
    Control::new(path, config, Arc::new(Metrics::new()))
}

fn pool(control: &Control) -> Arc<Pool> {
    Arc::clone(&control.snapshot().pools[0])
}

/// Has every pool use `algorithm`; how often the change was looked at.
fn rounds(control: &Control, algorithm: Algorithm) -> usize {
    let rounds = Cell::new(0);
    let switch = |_: &ChangeState, before: &Snapshot| {
        rounds.set(rounds.get() + 1);
        assert!(control.change_state.try_lock().is_err(), "nothing changes while a change is looked at");
        let mut wanted = before.config.clone();
        wanted.pools.iter_mut().for_each(|pool| pool.algorithm = algorithm);
        Ok::<_, Infallible>(PreparedChange { config: Some(wanted), record: None, result: () })
    };
    let switched = control.take_up(None, switch);
    assert!(switched.is_ok());
    rounds.get()
}

// Other changes had to wait until a ring of millions of points was there.
#[test]
fn a_ring_is_built_outside_the_lock_and_only_when_needed() {
    let control = control();
    assert_eq!(rounds(&control, Algorithm::Weighted), 1);
    assert_eq!(rounds(&control, Algorithm::IpHash), 2, "without the lock in between");
    change_backend(&control, None, Some(AdminState::Draining));
    assert_eq!(rounds(&control, Algorithm::Weighted), 1);
    assert_eq!(rounds(&control, Algorithm::IpHash), 1, "the ring still fits");
    change_backend(&control, Weight::new(2), None);
    assert_eq!(rounds(&control, Algorithm::Weighted), 1);
    let new = BackendConfig { address: "c:1".parse().expect("valid"), ..backend() };
    make(&control, ChangeRequest::AddBackend { pool: "app".into(), backend: new });
    assert_eq!(rounds(&control, Algorithm::IpHash), 2, "of other backends");
}

fn make(control: &Control, request: ChangeRequest) {
    let author = Author { by: "local", from: None };
    let options = ChangeOptions { author, if_match: None, dry_run: false, force: false, deadline: None };
    control.make(&request, &options).expect("it can be made");
}

fn change_backend(control: &Control, weight: Option<Weight>, state: Option<AdminState>) {
    make(control, ChangeRequest::ChangeBackend { pool: "app".into(), backend: "a:1".into(), weight, state });
}

fn backend() -> BackendConfig {
    BackendConfig::new("x:1".parse().expect("valid"))
}

#[tokio::test]
async fn changes_of_the_process_before_are_taken_over_with_the_state_file() {
    const LIMIT: Duration = Duration::from_secs(20);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let started = || {
        let text = "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\npool = \"app\"\n\
                    [[pool]]\nname = \"app\"\nbackends = [{ address = \"a:1\" }, { address = \"b:1\" }]\n";
        let path = folder.path().join("evenkeel.toml");
        let config = crate::config::toml::read(text, &path).expect("valid");
        Control::new(&path, config, Arc::new(Metrics::new()))
    };
    let former = started();
    former.own_state().expect("nobody else owns it");
    let next = started();
    make(&former, ChangeRequest::Algorithm { pool: None, to: Algorithm::IpHash });
    change_backend(&former, Weight::new(9), None);
    assert_eq!(former.release_state(LIMIT).await, Persistence::Saved);
    assert_eq!(pool(&next).plan().algorithm, Algorithm::Weighted);
    next.own_state().expect("released");
    assert_eq!(next.drift(), former.drift());
    assert_eq!(pool(&next).plan().algorithm, Algorithm::IpHash);
    assert_eq!(next.changes().len(), 1, "as one change");
    assert_eq!(next.persistence(LIMIT).await, Persistence::Saved);
    assert_eq!(started().drift(), former.drift());
}

#[test]
fn changing_a_pools_backends_keeps_pools_and_routes() {
    let control = control();
    let (sites, pool_before) = (Arc::clone(&control.snapshot().sites), pool(&control));
    make(&control, ChangeRequest::Algorithm { pool: None, to: Algorithm::IpHash });
    change_backend(&control, Weight::new(9), None);
    make(&control, ChangeRequest::AddBackend { pool: "app".into(), backend: backend() });
    make(&control, ChangeRequest::RemoveBackend { pool: "app".into(), backend: "x:1".into() });
    assert!(!control.drop_drained());
    assert!(Arc::ptr_eq(&sites, &control.snapshot().sites));
    assert!(Arc::ptr_eq(&pool_before, &pool(&control)));
    assert_eq!(pool_before.plan().algorithm, Algorithm::IpHash);
    assert_eq!(pool_before.plan().backends().count(), 2);
}

// Each reload made new ones, and each tunnel kept those of its beginning.
#[test]
fn tables_that_are_the_same_are_kept() {
    let control = control();
    let tables = Arc::clone(&control.snapshot().config.values);
    let change = |_: &ChangeState, before: &Snapshot| {
        let mut wanted = before.config.clone();
        wanted.values = Arc::new((*wanted.values).clone());
        Ok::<_, Infallible>(PreparedChange { config: Some(wanted), record: None, result: () })
    };
    assert!(control.take_up(None, change).is_ok());
    assert!(Arc::ptr_eq(&tables, &control.snapshot().config.values));
}

#[test]
fn retired_snapshots_are_dropped_by_control_and_not_by_exchanges() {
    let control = control();
    let in_use = (Arc::clone(control.snapshot().sites.iter().next().expect("a site")), pool(&control).plan());
    let (snapshot, site, plan) =
        (Arc::downgrade(&control.snapshot()), Arc::downgrade(&in_use.0), Arc::downgrade(&in_use.1));
    let is_there = || [snapshot.strong_count() > 0, site.strong_count() > 0, plan.strong_count() > 0];
    let change = |_: &ChangeState, before: &Snapshot| {
        let mut wanted = before.config.clone();
        wanted.routes[0].path = PathPrefix::parse("/other").expect("a path");
        wanted.pools[0].settings.retries += 1;
        Ok::<_, Infallible>(PreparedChange { config: Some(wanted), record: None, result: () })
    };
    assert!(control.take_up(None, change).is_ok());
    assert!(control.drop_retired(), "two are in use");
    assert_eq!(is_there(), [false, true, true]);
    drop(in_use);
    assert_eq!(is_there(), [false, true, true], "not by who used it last");
    assert!(!control.drop_retired());
    assert_eq!(is_there(), [false; 3]);
}

#[test]
fn counters_are_dropped_with_the_last_snapshot_that_names_them() {
    let control = control();
    let series = || String::from_utf8(control.metrics.scrape(|_| {})).expect("text");
    let app = pool(&control);
    app.metrics.retries.inc();
    assert!(series().contains("evenkeel_retries_total{pool=\"app\"} 1"));
    make(&control, ChangeRequest::Algorithm { pool: None, to: Algorithm::IpHash });
    assert!(series().contains("evenkeel_retries_total{pool=\"app\"} 1"), "taken over");
    rename(&control, "app", "other");
    app.metrics.retries.inc();
    assert!(!series().contains("\"app\""), "{}", series());
    rename(&control, "other", "app");
    assert!(series().contains("evenkeel_retries_total{pool=\"app\"} 0"), "another pool of that name");
    assert!(!Arc::ptr_eq(&app, &pool(&control)));
}

fn rename(control: &Control, from: &'static str, to: &'static str) {
    let change = move |_: &ChangeState, before: &Snapshot| {
        let mut wanted = before.config.clone();
        let name = PoolName::new(to).expect("valid");
        wanted.pools.iter_mut().filter(|p| p.name.as_str() == from).for_each(|p| p.name = name.clone());
        wanted.routes.iter_mut().for_each(|route| route.pool = name.clone());
        Ok::<_, Infallible>(PreparedChange { config: Some(wanted), record: None, result: () })
    };
    assert!(control.take_up(None, change).is_ok());
}

#[test]
fn a_pool_that_comes_back_before_its_exchanges_have_ended_is_the_same_and_learns_anew() {
    let control = control();
    let app = pool(&control);
    let Pick::Use(choice) = app.choose(&Key { client: None }, None, &[], Turn::New) else { panic!("it has backends") };
    let has_series = || {
        String::from_utf8(control.metrics.scrape(|_| {}))
            .expect("text")
            .contains("evenkeel_retries_total{pool=\"app\"}")
    };
    rename(&control, "app", "other");
    assert!(has_series() && control.drop_drained(), "an exchange is in flight");
    assert!(choice.lease.is_current(), "and goes on");
    rename(&control, "other", "app");
    assert!(Arc::ptr_eq(&app, &pool(&control)));
    assert_eq!((app.plan().in_flight(), choice.lease.is_current()), (1, false), "its backends may be other servers");

    rename(&control, "app", "other");
    drop(choice);
    assert!(!control.drop_drained() && !has_series());
    assert_eq!(control.snapshot().all_pools().count(), 1);
}
