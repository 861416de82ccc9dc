//! Listening sockets: those that a balancer is handed, and those that it binds itself, one for each thread.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

const BACKLOG: i32 = 4096;

/// Ports below are for privileged processes, unless net.ipv4.ip_unprivileged_port_start says otherwise.
const UNPRIVILEGED_PORT: u16 = 1024;

/// Listening sockets that a balancer is handed, by the addresses at which they listen. Where the configuration names
/// such an address, the socket is used; other addresses are bound.
#[derive(Debug, Default)]
pub struct Sockets(HashMap<SocketAddr, TcpListener>);

impl Sockets {
    /// Adds a socket that listens.
    pub fn add(&mut self, socket: TcpListener) -> io::Result<()> {
        self.0.insert(socket.local_addr()?, socket);
        Ok(())
    }

    pub(crate) fn take(&mut self, address: SocketAddr) -> Option<TcpListener> {
        self.0.remove(&address)
    }

    /// The addresses of those that nobody has taken.
    pub(crate) fn into_addresses(self) -> impl Iterator<Item = SocketAddr> {
        self.0.into_keys()
    }
}

/// Sockets that are bound to one address and do not listen yet.
#[derive(Debug)]
pub(crate) struct Bound(Vec<OwnedFd>);

impl Bound {
    /// Binds `count` sockets that share an address. Sharing would also let them join those of another process, so that
    /// nobody else listens is made sure of first, unless this process itself does: `is_own`.
    pub(crate) fn new(address: SocketAddr, count: usize, is_own: bool) -> io::Result<Self> {
        if address.port() != 0 && !is_own {
            let alone = socket_for(address)?;
            sockopt::set_socket_reuseaddr(&alone, true)?;
            bind(&alone, &address)?;
        }
        let first = shared_socket(address)?;
        // A port that was free to choose is known now.
        let address = SocketAddr::try_from(rustix::net::getsockname(&first)?)?;
        let mut sockets = vec![first];
        for _ in 1..count {
            sockets.push(shared_socket(address)?);
        }
        Ok(Self(sockets))
    }

    /// Listens: clients can connect from now on, and wait for somebody to accept them.
    pub(crate) fn listen(self) -> io::Result<Vec<TcpListener>> {
        let listening = |socket: OwnedFd| {
            listen(&socket, BACKLOG)?;
            Ok(TcpListener::from(socket))
        };
        self.0.into_iter().map(listening).collect()
    }
}

/// One socket for each of `count` threads, which all are `socket`.
pub(crate) fn duplicates(socket: &TcpListener, count: usize) -> io::Result<Vec<TcpListener>> {
    socket.set_nonblocking(true)?;
    // Accepted connections inherit it.
    sockopt::set_tcp_nodelay(socket, true)?;
    (0..count).map(|_| socket.try_clone()).collect()
}

/// Why an address cannot be listened on, and what to do about it. `key` is the setting that names the address.
pub(crate) fn cannot_listen(address: SocketAddr, key: &str, error: &io::Error) -> String {
    let port = address.port();
    let fix = match error.kind() {
        io::ErrorKind::PermissionDenied if port < UNPRIVILEGED_PORT => format!(
            "a port below {UNPRIVILEGED_PORT} needs CAP_NET_BIND_SERVICE (AmbientCapabilities= in systemd, or `setcap \
             cap_net_bind_service=+ep` on the program); or change {key}"
        ),
        io::ErrorKind::AddrNotAvailable => format!("this machine has no address {}: change {key}", address.ip()),
        _ => format!("change {key}, or stop what uses port {port}"),
    };
    format!("cannot listen on {address} ({error}): {fix}")
}

fn shared_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = socket_for(address)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    // Accepted connections inherit it.
    sockopt::set_tcp_nodelay(&socket, true)?;
    bind(&socket, &address)?;
    Ok(socket)
}

fn socket_for(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if address.is_ipv6() {
        // As with nginx, `[::]` stands for IPv6 alone, so that 0.0.0.0 can listen beside it.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_it_from_listening_is_told_with_the_fix() {
        let told = |address: &str, kind: io::ErrorKind| {
            cannot_listen(address.parse().expect("an address"), "[[listener]] address", &kind.into())
        };
        for (address, kind, words) in [
            ("0.0.0.0:80", io::ErrorKind::PermissionDenied, "CAP_NET_BIND_SERVICE"),
            ("0.0.0.0:8080", io::ErrorKind::PermissionDenied, "change [[listener]] address"),
            ("192.0.2.1:80", io::ErrorKind::AddrNotAvailable, "this machine has no address 192.0.2.1"),
            ("0.0.0.0:80", io::ErrorKind::AddrInUse, "stop what uses port 80"),
        ] {
            let told = told(address, kind);
            assert!(told.starts_with(&format!("cannot listen on {address} (")) && told.contains(words), "{told}");
        }
    }

    #[test]
    fn an_address_that_somebody_listens_on_is_not_shared_unless_it_is_our_own() {
        let free = "127.0.0.1:0".parse().expect("an address");
        let ours = Bound::new(free, 2, false).expect("a free port").listen().expect("a free port");
        let address = ours[0].local_addr().expect("a bound socket");
        assert_eq!(ours[1].local_addr().expect("a bound socket"), address);
        let refused = Bound::new(address, 1, false).expect_err("it is taken");
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        let everywhere = SocketAddr::new([0, 0, 0, 0].into(), address.port());
        Bound::new(everywhere, 2, true).expect("our own").listen().expect("our own");
    }
}
