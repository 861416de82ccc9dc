//! A port that is a test's own. It is bound but not listened on: connections to it are refused, nobody else is given
//! it, and a program that sets `SO_REUSEADDR`, as servers do, can listen on it, end and listen again.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpMaxSeg;
use tokio::net::{TcpListener, TcpSocket};

#[derive(Debug)]
pub struct Port {
    address: SocketAddr,
    _reservation: TcpSocket,
}

impl Port {
    pub fn reserve() -> Self {
        Self::on(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)).expect("a free port")
    }

    fn on(address: SocketAddr) -> std::io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self { address: socket.local_addr()?, _reservation: socket })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn listen(&self) -> TcpListener {
        self.bound().listen(1024).expect("a bound socket")
    }

    /// Listens for connections whose buffers, on both sides, take a few hundred kilobytes instead of megabytes.
    pub fn listen_with_small_buffers(&self) -> TcpListener {
        let socket = self.bound();
        socket.set_recv_buffer_size(16 << 10).expect("an option of every socket");
        // The peer's kernel keeps room for so many segments, of whatever size.
        setsockopt(&socket, TcpMaxSeg, &1000).expect("an option of every TCP socket");
        socket.listen(1024).expect("a bound socket")
    }

    fn bound(&self) -> TcpSocket {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("an option of every socket");
        socket.bind(self.address).unwrap_or_else(|error| panic!("{} is reserved, yet {error}", self.address));
        socket
    }
}
