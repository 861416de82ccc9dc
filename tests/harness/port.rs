//! A port that is a test's own. It is bound but not listened on: connections to it are refused, nobody else is given
//! it, and a program that sets `SO_REUSEADDR`, as servers do, can listen on it, end and listen again.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

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
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("an option of every socket");
        socket.bind(self.address).unwrap_or_else(|error| panic!("{} is reserved, yet {error}", self.address));
        socket.listen(1024).expect("a bound socket")
    }
}
