//! What changes while requests are under way: what the operator wants, what probes find, and in the end the stop.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::book::{Sight, saw, trace, with};
use super::random::{below, milliseconds, one_in, pick};
use super::{NAME, NAMED, World, address, note_backends};
use crate::backend::ProbeReport;
use crate::change::Author;
use crate::clock;
use crate::config::BackendConfig;
use crate::config::algorithm::Algorithm;
use crate::config::backend::AdminState;
use crate::control::{ChangeOptions, ChangeRequest};
use crate::http::idle;

/// Ends idle connections and ejections in time, as the threads of the process do.
pub(super) async fn housekeeping(world: Rc<World>) {
    loop {
        clock::sleep(Duration::from_secs(1)).await;
        idle::sweep(clock::now(), usize::MAX);
        for pool in &world.control.snapshot().pools {
            pool.catch_up(clock::now());
        }
        world.control.drop_drained();
    }
}

/// Makes `changes` changes, at any time.
pub(super) async fn changes(world: Rc<World>, changes: u64, backends: u64) {
    for _ in 0..changes {
        clock::sleep(milliseconds(0, if one_in(4) { 3000 } else { 12 })).await;
        change(&world, backends);
        note_backends(&world);
    }
}

fn change(world: &World, backends: u64) {
    let mut address = address(1 + below(backends + 1));
    if world.has_name && one_in(3) {
        NAME.clone_into(&mut address);
    }
    let what = below(if world.has_name { 15 } else { 9 });
    trace(|| format!("operator: change {what} of {address}"));
    let (pool, backend) = ("app".to_owned(), address.clone());
    let state = |state| ChangeRequest::ChangeBackend {
        pool: pool.clone(),
        backend: backend.clone(),
        weight: None,
        state: Some(state),
    };
    let wish = match what {
        0 => ChangeRequest::Algorithm { pool: None, to: pick(&Algorithm::ALL) },
        1 => state(AdminState::Draining),
        2 => state(AdminState::Down),
        3 | 4 => state(AdminState::Active),
        5 => ChangeRequest::RemoveBackend { pool, backend },
        6 => {
            let address = address.parse().expect("an address");
            ChangeRequest::AddBackend { pool, backend: BackendConfig::new(address) }
        }
        7 | 8 => return probe(world, one_in(2)),
        _ => return resolve(world),
    };
    let author = Author { by: "simulation", from: None };
    // Not every change can be made at any time.
    if world
        .control
        .make(&wish, &ChangeOptions { author, if_match: None, dry_run: false, force: true, deadline: None })
        .is_ok()
    {
        saw(Sight::MembershipChange);
    }
}

/// A probe of some backend has come back.
fn probe(world: &World, succeeds: bool) {
    let snapshot = world.control.snapshot();
    let pool = &snapshot.pools[0];
    let plan = pool.plan();
    let Some((member, _)) = plan.backends().nth(below(4) as usize) else { return };
    let error = (!succeeds).then(|| "refused".to_owned());
    let report = ProbeReport { at: clock::now(), duration: Duration::ZERO, error };
    let endpoints = member.backend.endpoints();
    let endpoint = match endpoints.as_slice() {
        // Nobody probes a name that leads nowhere.
        [endpoint] if endpoint.address().is_none() => return,
        [endpoint] => endpoint,
        endpoints => &endpoints[below(endpoints.len() as u64) as usize],
    };
    if endpoint.probed(report, 1, 1).health.is_some() {
        saw(Sight::HealthChange);
    }
    pool.refresh_soon(clock::now());
}

/// The name leads to some addresses, or to none.
pub(super) fn resolve(world: &World) {
    let addresses = NAMED.filter(|_| one_in(2)).map(|n| address(n).parse().expect("an address"));
    let addresses: Vec<SocketAddr> = addresses.collect();
    let snapshot = world.control.snapshot();
    let pool = &snapshot.pools[0];
    let plan = pool.plan();
    let Some((member, _)) = plan.backends().find(|(member, _)| member.backend.address.as_str() == NAME) else { return };
    trace(|| format!("operator: {NAME} leads to {addresses:?}"));
    if !member.backend.resolved(&addresses, clock::now()).left.is_empty() {
        saw(Sight::NameMoved);
    }
    if addresses.is_empty() {
        member.backend.is_unresolved();
    }
    pool.refresh(clock::now());
}

/// Stops the balancer at some time.
pub(super) async fn stop(world: Rc<World>) {
    clock::sleep(milliseconds(0, if one_in(3) { 8000 } else { 40 })).await;
    saw(Sight::GracefulStop);
    trace(|| "operator: the balancer closes".to_owned());
    world.shutdown.close();
    clock::sleep(milliseconds(0, 30)).await;
    let timeout = milliseconds(0, if one_in(2) { 60_000 } else { 50 });
    trace(|| format!("operator: the balancer stops within {timeout:?}"));
    world.shutdown.stop(clock::now() + timeout);
    world.thread.begin();
    clock::sleep(timeout).await;
    trace(|| "operator: the balancer is cut off".to_owned());
    with(|book| {
        if book.exchanges.iter().any(|exchange| exchange.answer.is_none() && !exchange.attempts.is_empty()) {
            book.sights |= 1 << Sight::CutOff as u32;
        }
        // What is not over by now need not end well.
        book.exchanges.iter_mut().filter(|exchange| exchange.answer.is_none()).for_each(|exchange| {
            exchange.is_client_at_fault = true;
        });
        book.is_cut = true;
    });
    world.cut.notify();
}
