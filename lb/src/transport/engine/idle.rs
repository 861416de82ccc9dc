//! Connections to backends that wait for their next request, kept by each thread for itself.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

use foldhash::fast::RandomState;
use tokio::net::TcpStream;

struct Idle {
    stream: TcpStream,
    until: Instant,
}

#[derive(Default)]
struct Connections {
    by_address: HashMap<SocketAddr, Vec<Idle>, RandomState>,
    count: usize,
}

thread_local! {
    static CONNECTIONS: RefCell<Connections> = RefCell::default();
}

/// The connection used last, if one is left that is still open as far as can be seen.
pub fn take(address: SocketAddr, now: Instant) -> Option<TcpStream> {
    CONNECTIONS.with_borrow_mut(|connections| {
        let idle = connections.by_address.get_mut(&address)?;
        while let Some(Idle { stream, until }) = idle.pop() {
            connections.count -= 1;
            if now < until && is_quiet(&stream) {
                return Some(stream);
            }
        }
        None
    })
}

/// Keeps a connection, unless the thread keeps `most` already.
pub fn keep(address: SocketAddr, stream: TcpStream, until: Instant, most: usize) {
    CONNECTIONS.with_borrow_mut(|connections| {
        if connections.count < most {
            connections.count += 1;
            connections.by_address.entry(address).or_default().push(Idle { stream, until });
        }
    });
}

/// Closes those which idled too long or which the backend closed.
pub fn sweep(now: Instant) {
    CONNECTIONS.with_borrow_mut(|connections| {
        for idle in connections.by_address.values_mut() {
            idle.retain(|Idle { stream, until }| now < *until && is_quiet(stream));
        }
        connections.by_address.retain(|_, idle| !idle.is_empty());
        connections.count = connections.by_address.values().map(Vec::len).sum();
    });
}

/// Closes all.
pub fn clear() {
    CONNECTIONS.with_borrow_mut(|connections| *connections = Connections::default());
}

/// Whether nothing came on an idle connection: neither its end nor bytes that nobody asked for. Costs no system call
/// while the runtime has heard nothing of the socket.
fn is_quiet(stream: &TcpStream) -> bool {
    let mut byte = [0];
    matches!(stream.try_read(&mut byte), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
}
