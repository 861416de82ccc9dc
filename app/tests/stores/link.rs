//! A way to a server that a test can stall, cut and restore.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Takes connections and bytes, and passes nothing on.
    Stalled,
    /// Ends every connection.
    Cut,
}

pub struct Link {
    address: SocketAddr,
    state: Arc<watch::Sender<State>>,
}

impl Link {
    /// A way to `port` on this machine.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(watch::Sender::new(State::Open));
        let sender = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(pass(near, port, sender.subscribe()));
            }
        });
        Self { address, state }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn stall(&self) {
        self.state.send_replace(State::Stalled);
    }

    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    pub fn restore(&self) {
        self.state.send_replace(State::Open);
    }
}

async fn pass(near: TcpStream, port: u16, mut state: watch::Receiver<State>) {
    let mut cut = state.clone();
    let passing = async {
        let _ = state.wait_for(|state| *state == State::Open).await;
        let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
        let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
        tokio::select! {
            () = copy(near_read, far_write, state.clone()) => {}
            () = copy(far_read, near_write, state.clone()) => {}
        }
    };
    tokio::select! {
        () = passing => {}
        _ = cut.wait_for(|state| *state == State::Cut) => {}
    }
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut state: watch::Receiver<State>) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let _ = state.wait_for(|state| *state == State::Open).await;
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
