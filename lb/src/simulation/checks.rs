//! The invariants: checks during a run, whenever nothing can move before time does, and of what a run leaves.

use std::sync::Arc;

use super::executor::RunEnd;
use super::history::{self, Coverage, Exchange, History, ResponseOrigin, Route, report_violation};
use super::{Balancer, NAME, NAME_TARGETS, address};
use crate::backend::Backend;
use crate::clock::simulated;
use crate::config::backend::AdminState;
use crate::failure::Failure;
use crate::http::{self, idle};

/// Checks that `backend` is active in the configuration in force, at an address that its name resolves to now.
pub(super) fn check_is_active(balancer: &Balancer, backend: usize) {
    let address = address(backend as u64);
    let plan = balancer.control.snapshot().pools[0].plan();
    let address = address.parse().ok();
    let leads_there = |backend: &Backend| backend.endpoints().as_slice().iter().any(|it| it.ip() == address);
    let state = plan.backends().find(|(member, _)| leads_there(&member.backend)).map(|(_, state)| state);
    if state != Some(AdminState::Active) {
        report_violation(format!("backend {backend} is {state:?} and was sent a new request"));
    }
}

/// Adds new backends to the history, with their counts so far.
pub(super) fn record_backends(balancer: &Balancer) {
    let plan = balancer.control.snapshot().pools[0].plan();
    history::with(|history| {
        for (member, _) in plan.backends() {
            let backend = &member.backend;
            if !history.backends.iter().any(|(known, ..)| Arc::ptr_eq(known, backend)) {
                let before = (seen_failures(backend), backend.metrics.ejections.get());
                history.backends.push((Arc::clone(backend), before.0, before.1));
            }
        }
    });
}

/// Failures for which a backend must have done something: all but those of a name that does not resolve.
fn seen_failures(backend: &Backend) -> u64 {
    backend.metrics.failures() - backend.metrics.failures_of(Failure::Unresolved)
}

/// Liveness: called when no task can run before the clock advances. No exchange may be stalled by the balancer then.
pub(super) fn check_quiescence(balancer: &Balancer) {
    let stalled = history::with(|history| {
        let current = history.exchanges.iter().filter(|exchange| exchange.response.is_none());
        current.filter_map(|exchange| stalled_in_link(exchange).or_else(|| stalled_in_balancer(exchange))).next()
    });
    stalled.into_iter().for_each(report_violation);
    check_queues(balancer);
}

/// No exchange may wait for a backend that has room.
fn check_queues(balancer: &Balancer) {
    if !history::with(|history| history.is_calm() && history.has_limits) {
        return;
    }
    for pool in &balancer.control.snapshot().pools {
        let plan = pool.plan();
        // A name may lead nowhere.
        let mut backends = plan.backends().map(|(member, _)| &member.backend).filter(|it| it.address.as_str() != NAME);
        if plan.queue.waiting() > 0
            && let Some(backend) = backends.find(|backend| !backend.is_full())
        {
            report_violation(format!("an exchange waits although {} has room", backend.address));
        }
    }
}

/// Describes bytes of an exchange that the balancer leaves unread although the other side has room for them.
fn stalled_in_link(exchange: &Exchange) -> Option<String> {
    let (client, current) = (exchange.client.as_ref()?, exchange.current.as_ref()?);
    let (from_client, to_client) = (client.flow(1), client.flow(0));
    let (from_backend, to_backend) = (current.backend.flow(1), current.backend.flow(0));
    // Only the two ends know which bytes of a connection belong to a stream.
    if exchange.is_stream || !from_client.is_open || !from_backend.is_open {
        return None;
    }
    let up = from_client.unread() > 0 && from_client.read < exchange.request_end;
    let down = from_backend.unread() > 0 && from_backend.read < current.response_end;
    let (from, flow, to, room) = match (up, down) {
        (true, _) if to_backend.is_open && to_backend.room > 0 => {
            (client, from_client, &current.backend, to_backend.room)
        }
        (_, true) if to_client.is_open && to_client.room > 0 => {
            (&current.backend, from_backend, client, to_client.room)
        }
        _ => return None,
    };
    let (id, unread) = (exchange.request.id, flow.unread());
    Some(format!("{unread} bytes of exchange {id} wait at {}, while {} has room for {room}", from.name, to.name))
}

/// Describes bytes of an exchange that the balancer has read and keeps, for example in a buffer of TLS, while the other
/// side waits for them.
fn stalled_in_balancer(exchange: &Exchange) -> Option<String> {
    let (client, current) = (exchange.client.as_ref()?, exchange.current.as_ref()?);
    let attempt = exchange.attempts.last()?;
    let (from_client, to_client) = (client.flow(1), client.flow(0));
    let (from_backend, to_backend) = (current.backend.flow(1), current.backend.flow(0));
    let (id, written, uploaded) = (exchange.request.id, exchange.written, attempt.uploaded);
    if from_client.unread() == 0 && to_backend.is_open && to_backend.is_awaited && uploaded < written {
        let backend = &current.backend.name;
        return Some(format!("{backend} waits for content of exchange {id}: it has had {uploaded} of {written} bytes"));
    }
    let (written, downloaded) = (attempt.written, exchange.downloaded);
    let is_awaited = to_client.is_awaited && (!exchange.is_stream || exchange.is_awaiting);
    if attempt.is_faultless && to_client.is_open && is_awaited {
        let ends = !attempt.is_until_close || !from_backend.is_open;
        let is_read = ends && from_backend.read >= current.response_end;
        if from_backend.unread() == 0 && downloaded < written {
            let name = &client.name;
            return Some(format!(
                "{name} waits for content of exchange {id}: it has had {downloaded} of {written} bytes"
            ));
        }
        if is_read {
            return Some(format!("{} waits for the end of exchange {id}, which the balancer has read", client.name));
        }
    }
    None
}

/// Checks the invariants of a finished run: responses, counted failures, and that nothing is left in use.
pub(super) fn check_end_state(balancer: &Balancer, end: RunEnd) {
    if end != RunEnd::Finished && !history::has_violation() {
        report_violation(format!("the run does not end: {end:?} after {:?}", simulated::elapsed()));
    }
    if history::has_violation() {
        return;
    }
    idle::clear();
    record_backends(balancer);
    let wrong = history::with(|history| {
        let wrong = history.exchanges.iter().find_map(|exchange| wrong_response(history, exchange));
        if wrong.is_some() {
            return wrong;
        }
        for (backend, failures, ejections) in &history.backends {
            let failures = seen_failures(backend) - failures;
            let ejections = backend.metrics.ejections.get() - ejections;
            let number = &backend.address;
            let is_name = number.as_str() == NAME;
            let mut numbers = (1..=*NAME_TARGETS.end()).filter(|&n| match is_name {
                true => NAME_TARGETS.contains(&n),
                false => number.as_str() == address(n),
            });
            let faults: u64 = numbers.by_ref().filter_map(|n| history.faults.get(n as usize)).sum();
            if failures > faults || (ejections > 0 && faults == 0 && !is_name) {
                return Some(format!("backend {number} has {faults} faults, but counted are {failures}"));
            }
            if ejections > 0 {
                history.coverage |= 1 << Coverage::Ejection as u32;
            }
            if backend.connections_in_use() != 0 {
                return Some(format!("backend {number} has {} connections in use", backend.connections_in_use()));
            }
            if backend.in_flight() != 0 {
                return Some(format!(
                    "backend {number} has {} exchanges in flight, but all are over",
                    backend.in_flight()
                ));
            }
        }
        history.links.iter().find(|link| link.flow(1).is_open).map(|link| format!("{} is still open", link.name))
    });
    wrong.into_iter().for_each(report_violation);
    let snapshot = balancer.control.snapshot();
    for (left, what) in [
        (balancer.client_limit.in_use(), "clients"),
        (balancer.backend_limit.in_use(), "connections to backends"),
        (balancer.thread.exchanges(), "exchanges"),
        (balancer.thread.drains(), "clients that take the end of a response"),
        (http::kill::listed_tasks(), "tasks that carry exchanges"),
        (snapshot.pools.iter().map(|pool| pool.plan().queue.waiting()).sum(), "places in queues"),
    ] {
        if left != 0 {
            report_violation(format!("{left} {what} are left"));
        }
    }
}

/// What is wrong with the response that the client has of `exchange`, or with the lack of one.
fn wrong_response(history: &History, exchange: &Exchange) -> Option<String> {
    if let (Some(_), Some(ResponseOrigin::Balancer { status }), false) =
        (exchange.request.route.local_bytes(), exchange.response, exchange.is_client_at_fault)
        && status != 418
    {
        return Some(format!("exchange {} has {status} from a route that answers 418", exchange.request.id));
    }
    if history.is_calm()
        && !history.has_limits
        && exchange.request.route == Route::Proxy
        // A backend need not open the WebSocket.
        && !exchange.request.upgrades
        && let Some(ResponseOrigin::Balancer { status }) = exchange.response
        // What has content may not be repeated when its connection turns out to be stale.
        && (status != 502 || !exchange.request.has_content())
    {
        return Some(format!("exchange {} has {status} for no reason", exchange.request.id));
    }
    let sound = exchange.attempts.iter().position(|attempt| attempt.is_faultless);
    if let (Some(attempt), false) = (
        sound,
        exchange.is_client_at_fault || history.may_be_lost_to_reset(exchange) || exchange.may_be_lost_to_shedding(),
    ) && exchange.response != Some(ResponseOrigin::Backend { attempt })
    {
        return Some(format!(
            "exchange {} failed although neither side did: {:?}, but {:?}, {:?}",
            exchange.request.id, exchange.attempts[attempt], exchange.response, exchange.request
        ));
    }
    None
}
