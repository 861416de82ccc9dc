//! Idle connections to backends, kept by each thread for itself. They are kept by server, not by address: once another
//! server may answer at an address, the old connections are not used again.

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
/// Ordered by the arrival of servers, so that a simulation closes connections in a reproducible order.
#[cfg(test)]
type ByServer = std::collections::BTreeMap<Incarnation, Server>;

/// How often idle connections are checked.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Slightly more than the one that is needed, so that this happens less often.
const MAX_CLOSED_AT_ONCE: usize = 8;

/// A connection to a backend without a request in progress.
pub(crate) struct Connection {
    pub socket: Io,
    pub permit: ConnectionPermit,
    /// How the connection was made. A request is sent only on a connection that was made as its pool says now.
    pub transport: Arc<Transport>,
    /// The PROXY header that the connection began with. A request with another header needs another connection.
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
    /// The number of connections to all servers.
    count: usize,
}

thread_local! {
    static CONNECTIONS: RefCell<Connections> = RefCell::default();
}

/// Takes the most recently used connection that was made by `transport`, began with `header`, and still looks open.
pub(crate) fn take(server: Incarnation, transport: &Arc<Transport>, header: &[u8], now: Instant) -> Option<Connection> {
    CONNECTIONS.with_borrow_mut(|connections| {
        let server = connections.by_server.get_mut(&server)?;
        let fits = |Connection { transport: of, header: with, .. }: &Connection| {
            Arc::ptr_eq(of, transport) && **with == *header
        };
        // Mostly the last one matches, since connections are usually made alike and without a header.
        while let Some(index) = server.idle.iter().rposition(|idle| fits(&idle.connection)) {
            let Idle { mut connection, until } = server.idle.remove(index);
            connections.count -= 1;
            if now < until && connection.socket.is_quiet() {
                #[cfg(test)]
                connection.socket.reuse();
                return Some(connection);
            }
        }
        None
    })
}

/// Keeps an idle connection. `server` is the endpoint's server when the connection was opened. The connection is closed
/// if the endpoint has another server now, or if the thread already keeps `limit` connections.
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

/// Closes the connections to `server`.
pub(crate) fn forget(server: Incarnation) {
    CONNECTIONS.with_borrow_mut(|connections| {
        if let Some(server) = connections.by_server.remove(&server) {
            connections.count -= server.idle.len();
        }
    });
}

/// Closes connections that were idle for too long, were closed by the backend, or lead to a server that may have been
/// replaced, and those beyond `limit`.
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

/// Sweeps the connections of this thread for as long as it is polled. `limit` may change.
pub(crate) async fn sweep_forever(limit: Arc<AtomicUsize>) {
    let mut tick = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        tick.tick().await;
        sweep(Instant::now(), limit.load(Ordering::Relaxed));
    }
}

/// Closes a few connections, so that others can be opened: the longest idle ones of the server with most connections.
/// False: this thread has none.
pub(crate) fn make_room() -> bool {
    CONNECTIONS.with_borrow_mut(|connections| connections.close(MAX_CLOSED_AT_ONCE) > 0)
}

impl Connections {
    /// Closes up to `limit` connections of the server with most connections. Returns how many.
    fn close(&mut self, limit: usize) -> usize {
        let largest = self.by_server.values_mut().max_by_key(|server| server.idle.len());
        let closed = largest.map_or(0, |server| server.idle.drain(..server.idle.len().min(limit)).count());
        self.count -= closed;
        closed
    }
}

/// Closes all connections.
pub(crate) fn clear() {
    CONNECTIONS.with_borrow_mut(|connections| *connections = Connections::default());
}
