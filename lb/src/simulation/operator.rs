//! Changes while requests are in progress: by the operator, by probes, by name resolution, and finally the stop.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::checks::record_backends;
use super::history::{Coverage, cover, trace, with};
use super::random::{below, milliseconds, one_in, pick};
use super::{Balancer, NAME, NAME_TARGETS, address};
use crate::backend::ProbeReport;
use crate::change::Author;
use crate::clock;
use crate::config::BackendConfig;
use crate::config::algorithm::Algorithm;
use crate::config::backend::AdminState;
use crate::control::{ChangeOptions, ChangeRequest};
use crate::http::idle;

/// Expires idle connections and ejections, as the threads of the process do.
pub(super) async fn housekeeping(balancer: Rc<Balancer>) {
    loop {
        clock::sleep(Duration::from_secs(1)).await;
        idle::sweep(clock::now(), usize::MAX);
        for pool in &balancer.control.snapshot().pools {
            pool.catch_up(clock::now());
        }
        balancer.control.drop_drained();
    }
}

/// Makes `changes` changes at random times.
pub(super) async fn changes(balancer: Rc<Balancer>, changes: u64, backends: u64) {
    for _ in 0..changes {
        clock::sleep(milliseconds(0, if one_in(4) { 3000 } else { 12 })).await;
        change(&balancer, backends);
        record_backends(&balancer);
    }
}

fn change(balancer: &Balancer, backends: u64) {
    let mut address = address(1 + below(backends + 1));
    if balancer.has_name && one_in(3) {
        NAME.clone_into(&mut address);
    }
    let what = below(if balancer.has_name { 15 } else { 9 });
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
        7 | 8 => return probe(balancer, one_in(2)),
        _ => return resolve(balancer),
    };
    // Some changes are impossible at some times.
    if balancer.control.make(&wish, &unconditionally()).is_ok() {
        cover(Coverage::MembershipChange);
    }
}

pub(super) fn unconditionally() -> ChangeOptions {
    let author = Author { by: "simulation", from: None };
    ChangeOptions { author, if_match: None, dry_run: false, force: true, deadline: None }
}

/// Reports a probe of a random backend.
fn probe(balancer: &Balancer, succeeds: bool) {
    let snapshot = balancer.control.snapshot();
    let pool = &snapshot.pools[0];
    let plan = pool.plan();
    let Some((member, _)) = plan.backends().nth(below(4) as usize) else { return };
    let error = (!succeeds).then(|| "refused".to_owned());
    let report = ProbeReport { at: clock::now(), duration: Duration::ZERO, error };
    let endpoints = member.backend.endpoints();
    let endpoint = match endpoints.as_slice() {
        // A name without an address is not probed.
        [endpoint] if endpoint.address().is_none() => return,
        [endpoint] => endpoint,
        endpoints => &endpoints[below(endpoints.len() as u64) as usize],
    };
    if endpoint.probed(report, 1, 1).health.is_some() {
        cover(Coverage::HealthChange);
    }
    pool.refresh_soon(clock::now());
}

/// Resolves [`NAME`] to a random set of addresses, which may be empty.
pub(super) fn resolve(balancer: &Balancer) {
    let addresses = NAME_TARGETS.filter(|_| one_in(2)).map(|n| address(n).parse().expect("an address"));
    let addresses: Vec<SocketAddr> = addresses.collect();
    let snapshot = balancer.control.snapshot();
    let pool = &snapshot.pools[0];
    let plan = pool.plan();
    let Some((member, _)) = plan.backends().find(|(member, _)| member.backend.address.as_str() == NAME) else { return };
    trace(|| format!("operator: {NAME} leads to {addresses:?}"));
    if !member.backend.resolved(&addresses, clock::now()).left.is_empty() {
        cover(Coverage::NameMoved);
    }
    if addresses.is_empty() {
        member.backend.record_unresolved();
    }
    pool.refresh(clock::now());
}

/// Stops the balancer at a random time.
pub(super) async fn stop(balancer: Rc<Balancer>) {
    clock::sleep(milliseconds(0, if one_in(3) { 8000 } else { 40 })).await;
    cover(Coverage::GracefulStop);
    trace(|| "operator: the balancer closes".to_owned());
    balancer.shutdown.close();
    clock::sleep(milliseconds(0, 30)).await;
    let timeout = milliseconds(0, if one_in(2) { 60_000 } else { 50 });
    trace(|| format!("operator: the balancer stops within {timeout:?}"));
    balancer.shutdown.stop(clock::now() + timeout);
    balancer.thread.wake_idle();
    clock::sleep(timeout).await;
    trace(|| "operator: the balancer is cut off".to_owned());
    with(|history| {
        if history.exchanges.iter().any(|exchange| exchange.response.is_none() && !exchange.attempts.is_empty()) {
            history.coverage |= 1 << Coverage::CutOff as u32;
        }
        // Exchanges that are not over by now may fail.
        history.exchanges.iter_mut().filter(|exchange| exchange.response.is_none()).for_each(|exchange| {
            exchange.is_client_at_fault = true;
        });
        history.has_stop_timed_out = true;
    });
    balancer.stop_timeout.notify();
}
