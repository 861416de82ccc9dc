//! Connections to backends that wait for their next request, kept by each thread for itself. They are kept by the
//! server they lead to, not by address: where another server may have taken its place, none of them is used again.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::io::Io;
use crate::backend::{Endpoint, Incarnation};
use crate::connection_limit::ConnectionPermit;
use crate::dial::Transport;

#[cfg(not(test))]
type ByServer = std::collections::HashMap<Incarnation, Server, foldhash::fast::RandomState>;
/// In the order in which the servers came, so that a simulation closes connections in the same order again.
#[cfg(test)]
type ByServer = std::collections::BTreeMap<Incarnation, Server>;

/// How often they are looked through.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// A few more than the one that is wanted.
const MAX_CLOSED_AT_ONCE: usize = 8;

/// A connection to a backend that carries no request.
pub(crate) struct Connection {
    pub socket: Io,
    pub permit: ConnectionPermit,
    /// How it was made. A request whose pool says something else of connections needs another one, whatever changed first.
    pub transport: Arc<Transport>,
    /// What it began with: requests for which it would be another need another connection.
    pub header: Box<[u8]>,
}

struct Idle {
    connection: Connection,
    until: Instant,
}

/// The idle connections to one server.
struct Server {
    endpoint: Arc<Endpoint>,
    idle: Vec<Idle>,
}

#[derive(Default)]
struct Connections {
    by_server: ByServer,
    /// Of all servers together.
    count: usize,
}

thread_local! {
    static CONNECTIONS: RefCell<Connections> = RefCell::default();
}

/// The connection used last of those that were made by `transport` and began with `header`, if one is left that is still
/// open as far as can be seen.
pub(crate) fn take(server: Incarnation, transport: &Arc<Transport>, header: &[u8], now: Instant) -> Option<Connection> {
    CONNECTIONS.with_borrow_mut(|connections| {
        let server = connections.by_server.get_mut(&server)?;
        let fits = |Connection { transport: of, header: with, .. }: &Connection| {
            Arc::ptr_eq(of, transport) && **with == *header
        };
        // Mostly the last one, since all were made alike and began with nothing.
        while let Some(index) = server.idle.iter().rposition(|idle| fits(&idle.connection)) {
            let Idle { mut connection, until } = server.idle.remove(index);
            connections.count -= 1;
            if now < until && connection.socket.is_quiet() {
                return Some(connection);
            }
        }
        None
    })
}

/// Keeps a connection to `server`, which was the endpoint's when the connection was opened, unless another has taken
/// its place since or the thread keeps `limit` already.
pub(crate) fn keep(
    endpoint: &Arc<Endpoint>,
    server: Incarnation,
    connection: Connection,
    until: Instant,
    limit: usize,
) {
    if endpoint.incarnation() != server {
        return;
    }
    CONNECTIONS.with_borrow_mut(|connections| {
        if connections.count < limit {
            connections.count += 1;
            let new = || Server { endpoint: Arc::clone(endpoint), idle: Vec::new() };
            connections.by_server.entry(server).or_insert_with(new).idle.push(Idle { connection, until });
        }
    });
}

/// Closes those to `server`.
pub(crate) fn forget(server: Incarnation) {
    CONNECTIONS.with_borrow_mut(|connections| {
        if let Some(server) = connections.by_server.remove(&server) {
            connections.count -= server.idle.len();
        }
    });
}

/// Closes those which idled too long, which the backend closed, or whose server another may have replaced, and what is
/// beyond `limit`.
pub(crate) fn sweep(now: Instant, limit: usize) {
    CONNECTIONS.with_borrow_mut(|connections| {
        connections.by_server.retain(|&incarnation, server| {
            server.idle.retain_mut(|Idle { connection, until }| now < *until && connection.socket.is_quiet());
            !server.idle.is_empty() && server.endpoint.incarnation() == incarnation
        });
        connections.count = connections.by_server.values().map(|server| server.idle.len()).sum();
        while connections.count > limit && connections.close(connections.count - limit) > 0 {}
    });
}

/// Looks through those of the present thread, for as long as that is awaited. `limit` may change.
pub(crate) async fn sweep_forever(limit: Arc<AtomicUsize>) {
    let mut tick = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        tick.tick().await;
        sweep(Instant::now(), limit.load(Ordering::Relaxed));
    }
}

/// Closes some, so that others can be opened: of the server to which most lead, those that idle longest. False: there is
/// none on this thread.
pub(crate) fn make_room() -> bool {
    CONNECTIONS.with_borrow_mut(|connections| connections.close(MAX_CLOSED_AT_ONCE) > 0)
}

impl Connections {
    /// Closes so many of the server to which most lead; how many it were.
    fn close(&mut self, limit: usize) -> usize {
        let largest = self.by_server.values_mut().max_by_key(|server| server.idle.len());
        let closed = largest.map_or(0, |server| server.idle.drain(..server.idle.len().min(limit)).count());
        self.count -= closed;
        closed
    }
}

/// Closes all.
pub(crate) fn clear() {
    CONNECTIONS.with_borrow_mut(|connections| *connections = Connections::default());
}
