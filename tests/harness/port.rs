//! A port reserved for a test. It is bound but not listening: connections to it are refused, the system assigns it to
//! nobody else, and a program that sets `SO_REUSEADDR`, as servers do, can listen on it repeatedly.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

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

    /// The same port at each of these addresses.
    pub fn reserve_at<const N: usize>(ips: [&str; N]) -> [Self; N] {
        let ips = ips.map(|ip| ip.parse::<IpAddr>().expect("an address"));
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let port = Self::reserve().address().port();
            let reserved: std::io::Result<Vec<_>> = ips.iter().map(|&ip| Self::on(SocketAddr::new(ip, port))).collect();
            match reserved {
                Ok(ports) => return ports.try_into().expect("as many as addresses"),
                // One of them may be taken.
                Err(error) => assert!(Instant::now() < deadline, "no port is free at {ips:?}: {error}"),
            }
        }
    }

    fn on(address: SocketAddr) -> std::io::Result<Self> {
        let socket = socket_for(address)?;
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

    /// Listens with small buffers, so that connections hold a few hundred kilobytes instead of megabytes.
    pub fn listen_with_small_buffers(&self) -> TcpListener {
        let socket = self.bound();
        socket.set_recv_buffer_size(16 << 10).expect("an option of every socket");
        // The peer's kernel reserves space for a number of segments, whatever their size.
        setsockopt(&socket, TcpMaxSeg, &1000).expect("an option of every TCP socket");
        socket.listen(1024).expect("a bound socket")
    }

    /// A process that another test is starting has copies of this one's sockets until it executes its program, so a
    /// closed listener may still exist for a moment.
    fn bound(&self) -> TcpSocket {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let socket = socket_for(self.address).expect("a socket");
            socket.set_reuseaddr(true).expect("an option of every socket");
            match socket.bind(self.address) {
                Ok(()) => return socket,
                Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("{} is reserved, yet {error}", self.address),
            }
        }
    }
}

fn socket_for(address: SocketAddr) -> std::io::Result<TcpSocket> {
    if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}
