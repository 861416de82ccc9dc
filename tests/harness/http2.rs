//! Clients that speak HTTP/2, over TLS or in clear text: a sound one, and frames by the byte for everything else.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::client::{ResponseFuture, SendRequest};
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use crate::deadline::{eventually, within};
use crate::wire::{End, Fields, Reply};

/// What a client sends first: the preface and an empty SETTINGS frame.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Lines for `[[listener]]` by which it speaks TLS.
pub fn tls() -> String {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../lb/src/config/toml/test-data");
    format!("tls = {{ certificate = \"{data}/cert.pem\", key = \"{data}/key.pem\" }}")
}

/// A TLS connection that has agreed on HTTP/2, and not sent a byte of it.
pub async fn connect(address: SocketAddr) -> TlsStream<TcpStream> {
    try_connect(address).await.expect("a TLS handshake")
}

/// As [`connect`]; waits as long as it takes.
pub async fn try_connect(address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
    connect_for(b"h2", address).await
}

/// A TLS connection that has agreed on this protocol (RFC 7301).
pub async fn connect_for(protocol: &[u8], address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    tls_over(protocol, tcp).await
}

/// As [`connect_for`], over a connection that is there.
pub async fn tls_over(protocol: &[u8], tcp: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
    tls_with(Arc::new(client(protocol)), tcp).await
}

/// A client that accepts any certificate, offers this protocol, and resumes sessions as long as the configuration is
/// shared.
pub fn client(protocol: &[u8]) -> ClientConfig {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let verifier = Arc::new(AnyCertificate(provider));
    let config = config.expect("versions").dangerous().with_custom_certificate_verifier(verifier);
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    config
}

/// A handshake of this client.
pub async fn tls_with(config: Arc<ClientConfig>, tcp: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(config).connect(name, tcp).await
}

/// A frame by the byte.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Fields as HPACK literals without indexing; each text shorter than 127 bytes.
pub fn literals(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "too long for one byte: {text}");
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// The payload of the next frame of this kind; those before it are dropped.
pub async fn payload_of(connection: &mut (impl AsyncRead + Unpin), kind: u8) -> Vec<u8> {
    frame_of(connection, kind).await.payload
}

/// The next frame of this kind; those before it are dropped.
pub async fn frame_of(connection: &mut (impl AsyncRead + Unpin), kind: u8) -> Frame {
    loop {
        let frame = next_frame(connection).await.expect("a frame");
        if frame.kind == kind {
            return frame;
        }
    }
}

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of a RST_STREAM or GOAWAY.
    pub fn reason(&self) -> Option<Reason> {
        let code = match self.kind {
            kind::RST_STREAM => self.payload.get(..4)?,
            kind::GOAWAY => self.payload.get(4..8)?,
            _ => return None,
        };
        Some(u32::from_be_bytes(code.try_into().ok()?).into())
    }
}

/// The next frame.
pub async fn next_frame(connection: &mut (impl AsyncRead + Unpin)) -> io::Result<Frame> {
    let mut head = [0; 9];
    connection.read_exact(&mut head).await?;
    let [a, b, c, kind, flags, stream @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    connection.read_exact(&mut payload).await?;
    Ok(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload })
}

/// All bytes until the peer closes in any way.
pub async fn rest(connection: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut rest = Vec::new();
    let _ = within("the end of the connection", connection.read_to_end(&mut rest)).await;
    rest
}

pub async fn write(connection: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) {
    within("send", async {
        connection.write_all(bytes).await?;
        connection.flush().await
    })
    .await
    .expect("a peer that reads");
}

/// A sound client, of the `h2` crate.
#[derive(Debug)]
pub struct Http2 {
    pub sender: SendRequest<Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
}

impl Http2 {
    pub async fn connect(address: SocketAddr) -> Self {
        within("an HTTP/2 connection", Self::try_connect(address)).await
    }

    async fn try_connect(address: SocketAddr) -> Self {
        Self::over(connect(address).await, h2::client::Builder::new()).await
    }

    /// In clear text.
    pub async fn connect_plain(address: SocketAddr) -> Self {
        let tcp = TcpStream::connect(address).await.expect("a listener");
        within("an HTTP/2 connection", Self::over(tcp, h2::client::Builder::new())).await
    }

    /// Speaks HTTP/2 on a connection, with these settings.
    pub async fn over(
        connection: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        builder: h2::client::Builder,
    ) -> Self {
        let (sender, driver) = builder.handshake::<_, Bytes>(connection).await.expect("a handshake");
        Self { sender, driver: tokio::spawn(driver) }
    }

    /// Begins a request; `is_end`: it has no content.
    pub async fn begin(&mut self, request: http::Request<()>, is_end: bool) -> (ResponseFuture, SendStream<Bytes>) {
        let sender = self.sender.clone();
        self.sender = within("room for a stream", sender.ready()).await.expect("an open connection");
        self.sender.send_request(request, is_end).expect("a request that can be sent")
    }

    pub async fn get(&mut self, path: &str) -> Reply {
        let (response, _) = self.begin(request("GET", path, &[]), true).await;
        reply(response).await.expect("a response")
    }

    /// Asks for a WebSocket (RFC 8441 §5). The error: another answer, which did not open one.
    pub async fn websocket(&mut self, path: &str, fields: &[(&str, &str)]) -> Result<(Fields, Tunnel), Reply> {
        // The peer's SETTINGS have to be there.
        eventually("the peer offers it", async || self.sender.is_extended_connect_protocol_enabled()).await;
        let version = [("sec-websocket-version", "13")];
        let mut asked = request("CONNECT", path, &[&version, fields].concat());
        asked.extensions_mut().insert(Protocol::from_static("websocket"));
        let (response, send) = self.begin(asked, false).await;
        let response = within("a response", response).await.expect("a response");
        if response.status() != 200 {
            return Err(whole(response).await);
        }
        let (parts, receive) = response.into_parts();
        Ok((fields_of(&parts.headers), Tunnel { send, receive, data: Bytes::new() }))
    }

    /// Waits until the peer has closed the connection. Returns how.
    pub async fn closed(self) -> Result<(), h2::Error> {
        // It stays open as long as there is a sender.
        let Self { sender, driver } = self;
        let ended = within("the end of the connection", driver).await;
        drop(sender);
        ended.expect("no panic")
    }

    /// Closes the connection without GOAWAY.
    pub fn leave(self) {
        self.driver.abort();
    }

    pub fn is_closed(&self) -> bool {
        self.driver.is_finished()
    }
}

/// A request for `https://site.example`.
pub fn request(method: &str, path: &str, fields: &[(&str, &str)]) -> http::Request<()> {
    let mut request = http::Request::builder().method(method).uri(format!("https://site.example{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request")
}

/// The whole response, or how the stream ended before its head.
pub async fn reply(response: ResponseFuture) -> Result<Reply, h2::Error> {
    Ok(whole(within("a response", response).await?).await)
}

/// The response with the rest of its content.
pub async fn whole(response: http::Response<RecvStream>) -> Reply {
    let (parts, mut content) = response.into_parts();
    let mut body = Vec::new();
    let mut end = End::Complete;
    while let Some(data) = within("content", content.data()).await {
        match data {
            Ok(data) => {
                let _ = content.flow_control().release_capacity(data.len());
                body.extend_from_slice(&data);
            }
            Err(_) => {
                end = End::CutOff;
                break;
            }
        }
    }
    let (version, status) = (format!("{:?}", parts.version), parts.status.as_u16());
    Reply { version, status, fields: fields_of(&parts.headers), body, end }
}

fn fields_of(fields: &http::HeaderMap) -> Fields {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    Fields(fields.iter().map(|(name, value)| (name.to_string(), text(value))).collect())
}

/// The data of a stream that has become a tunnel.
pub struct Tunnel {
    pub send: SendStream<Bytes>,
    pub receive: RecvStream,
    /// Received but not read.
    data: Bytes,
}

impl Tunnel {
    /// Waits until the peer resets the stream. Returns the code.
    pub async fn reset(&mut self) -> Reason {
        within("a reset", poll_fn(|cx| self.send.poll_reset(cx))).await.expect("a reset")
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.data.is_empty() {
            match ready!(self.receive.poll_data(cx)) {
                Some(data) => self.data = data.map_err(io::Error::other)?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.data.len().min(buf.remaining());
        buf.put_slice(&self.data[..count]);
        self.data.advance(count);
        // Fails only on a stream that has ended.
        let _ = self.receive.flow_control().release_capacity(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.send.reserve_capacity(buf.len());
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(capacity) => drop(capacity.map_err(io::Error::other)?),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let count = buf.len().min(self.send.capacity());
        self.send.send_data(Bytes::copy_from_slice(&buf[..count]), false).map_err(io::Error::other)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.send.send_data(Bytes::new(), true).map_err(io::Error::other))
    }
}

/// Takes whatever certificate there is: tests make sure of everything but the peer's name.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
