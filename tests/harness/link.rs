//! A TCP connection between two parts that a test can cut, stall and restore.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::port::Port;

/// Relays every connection to `address` unless stalled or cut.
#[derive(Debug)]
pub struct Link {
    port: Port,
    state: watch::Sender<State>,
    relay: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Passing,
    /// Connections stay open; nothing moves.
    Stalled,
    /// Connections, old and new, are reset.
    Cut,
}

impl Link {
    pub fn to(target: SocketAddr) -> Self {
        let port = Port::reserve();
        let (state, watched) = watch::channel(State::Passing);
        let relay = tokio::spawn(accept(port.listen(), target, watched));
        Self { port, state, relay }
    }

    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    pub fn stall(&self) {
        self.state.send_replace(State::Stalled);
    }

    pub fn restore(&self) {
        self.state.send_replace(State::Passing);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.relay.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, state: watch::Receiver<State>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(relay(client, target, state.clone()));
    }
}

async fn relay(mut client: TcpStream, target: SocketAddr, mut state: watch::Receiver<State>) {
    if *state.borrow_and_update() == State::Cut {
        let _ = client.set_zero_linger();
        return;
    }
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let is_cut = {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let both = async {
            tokio::join!(
                pass(&mut from_client, &mut to_server, state.clone()),
                pass(&mut from_server, &mut to_client, state.clone()),
            )
        };
        let mut watched = state.clone();
        tokio::select! {
            _ = both => false,
            _ = watched.wait_for(|state| *state == State::Cut) => true,
        }
    };
    if is_cut {
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

async fn pass(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut state: watch::Receiver<State>,
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        // Bytes that were read while stalled wait here.
        if state.wait_for(|state| *state != State::Stalled).await.is_err() {
            break;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}
