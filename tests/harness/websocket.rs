//! A WebSocket client, over HTTP/1.1 or HTTP/2 (RFC 8441): enough to keep a tunnel open and see that it carries what
//! was sent.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::deadline::within;
use crate::http2::{Http2, Tunnel};

pub struct WebSocket<S = TcpStream> {
    stream: WebSocketStream<S>,
    /// Name of the origin at the other end.
    pub origin: String,
}

impl WebSocket {
    pub async fn open(address: SocketAddr, target: &str) -> Self {
        Self::try_open(address, target).await.expect("a WebSocket")
    }

    pub async fn try_open(address: SocketAddr, target: &str) -> Result<Self, Error> {
        let request = format!("ws://{address}{target}").into_client_request()?;
        let stream = TcpStream::connect(address).await?;
        let (stream, response) = within("a handshake", tokio_tungstenite::client_async(request, stream)).await?;
        let origin = response.headers().get("x-origin").and_then(|name| name.to_str().ok());
        Ok(Self { stream, origin: origin.unwrap_or_default().to_owned() })
    }

    /// Goes away without a word, with a reset.
    pub fn vanish(self) {
        let _ = self.stream.get_ref().set_zero_linger();
    }
}

impl WebSocket<Tunnel> {
    /// On a stream of `client`.
    pub async fn over(client: &mut Http2, path: &str) -> Self {
        let (fields, tunnel) = client.websocket(path, &[]).await.expect("a WebSocket");
        let stream = WebSocketStream::from_raw_socket(tunnel, Role::Client, None).await;
        Self { stream, origin: fields.get("x-origin").unwrap_or_default().to_owned() }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// Sends `text` and waits for it to come back.
    pub async fn echo(&mut self, text: &str) {
        self.try_echo(text).await.expect("an echo");
    }

    pub async fn try_echo(&mut self, text: &str) -> Result<(), Error> {
        self.stream.send(Message::text(text)).await?;
        match within("an echo", self.stream.next()).await {
            Some(Ok(Message::Text(back))) if back.as_str() == text => Ok(()),
            Some(Err(error)) => Err(error),
            other => panic!("{text:?} came back as {other:?}"),
        }
    }

    /// Closes as the protocol asks, both sides saying so.
    pub async fn close(mut self) {
        self.stream.close(None).await.expect("a peer");
        let rest = async { while let Some(Ok(_)) = self.stream.next().await {} };
        within("the peer's close", rest).await;
    }

    /// Waits for the end of the tunnel.
    pub async fn ended(&mut self) {
        let rest = async { while let Some(Ok(_)) = self.stream.next().await {} };
        within("the end of the tunnel", rest).await;
    }
}
