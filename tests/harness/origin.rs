//! A scripted backend: it answers as a test has scripted it, records its requests, and can fail in every way that a
//! backend can. Without a script, it returns the request as JSON.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::deadline::eventually;
use crate::port::Port;
use crate::wire::{Request, Wire};

/// Without a script, `/hold` is answered once [`Origin::release`] is called, `/slow?ms=5` takes that long,
/// `/status/404` has that status, and `/probe` is answered as set by [`Origin::set_health`] and not recorded.
#[derive(Debug)]
pub struct Origin {
    port: Port,
    shared: Arc<Shared>,
    server: Mutex<Option<JoinHandle<()>>>,
}

/// One step of a response.
#[derive(Debug, Clone)]
pub enum Step {
    Send(Vec<u8>),
    /// Sends until nothing is accepted for this time, and drops the rest.
    SendUntilFull(Vec<u8>, Duration),
    Wait(Duration),
    /// Waits for [`Origin::release`].
    Hold,
    Close,
    Reset,
    /// Nothing more, until the peer closes.
    Hang,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Status(u16),
    /// Probes get the two codes in turn.
    Alternating(u16, u16),
    /// Answers 200 once [`Origin::release`] was called.
    Hold,
}

type Script = dyn Fn(&Request) -> Vec<Step> + Send + Sync;

struct Shared {
    name: String,
    /// The steps after a whole request.
    answer: Mutex<Option<Arc<Script>>>,
    /// The steps after a request's head, before its body is read; empty to continue.
    at_head: Mutex<Option<Arc<Script>>>,
    requests: Mutex<Vec<Request>>,
    last_probe: Mutex<Option<Request>>,
    health: Mutex<Health>,
    is_released: watch::Sender<bool>,
    heads: AtomicU64,
    probes: AtomicU64,
    connections: AtomicU64,
    open: AtomicU64,
    abandoned: AtomicU64,
    given_up: AtomicU64,
}

impl Origin {
    pub async fn start(name: &str) -> Self {
        Self::at(name, Port::reserve())
    }

    /// As [`Self::start`], at an address that was reserved. Needs a runtime.
    pub fn at(name: &str, port: Port) -> Self {
        let shared = Shared {
            name: name.to_owned(),
            answer: Mutex::default(),
            at_head: Mutex::default(),
            requests: Mutex::default(),
            last_probe: Mutex::default(),
            health: Mutex::new(Health::Status(200)),
            is_released: watch::channel(false).0,
            heads: AtomicU64::new(0),
            probes: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            open: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
        };
        let origin = Self { port, shared: Arc::new(shared), server: Mutex::default() };
        origin.restart();
        origin
    }

    /// Origins with these names.
    pub async fn several<const N: usize>(names: [&str; N]) -> [Self; N] {
        futures_util::future::join_all(names.map(Self::start)).await.try_into().expect("as many as names")
    }

    pub fn name(&self) -> &str {
        &self.shared.name
    }

    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Ends all connections and refuses new ones. They are refused when this returns.
    pub async fn stop(&self) {
        let server = lock(&self.server).take();
        if let Some(server) = server {
            server.abort();
            // Dropping the task closes its sockets; it has ended when this returns.
            let _ = server.await;
        }
        // A process that another test is starting has a copy of the listening socket until it executes its program.
        // Until then, connections would be accepted and reset instead of refused.
        eventually("connections are refused", async || {
            TcpStream::connect(self.address()).await.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        })
        .await;
    }

    /// Listens again, on the same port.
    pub fn restart(&self) {
        let server = tokio::spawn(accept(self.port.listen(), Arc::clone(&self.shared)));
        if let Some(former) = lock(&self.server).replace(server) {
            former.abort();
        }
    }

    /// Scripts what follows a request.
    pub fn answer(&self, script: impl Fn(&Request) -> Vec<Step> + Send + Sync + 'static) {
        *lock(&self.shared.answer) = Some(Arc::new(script));
    }

    /// Scripts what follows a request's head, before its body is read.
    pub fn at_head(&self, script: impl Fn(&Request) -> Vec<Step> + Send + Sync + 'static) {
        *lock(&self.shared.at_head) = Some(Arc::new(script));
    }

    /// Answers every request with these bytes.
    pub fn answer_with(&self, bytes: impl Into<Vec<u8>>) {
        let bytes = bytes.into();
        self.answer(move |_| vec![Step::Send(bytes.clone())]);
    }

    /// Returns requests as JSON again.
    pub fn forget_script(&self) {
        *lock(&self.shared.answer) = None;
        *lock(&self.shared.at_head) = None;
    }

    pub fn set_health(&self, health: Health) {
        *lock(&self.shared.health) = health;
    }

    /// Releases everything that holds, and holds no further requests.
    pub fn release(&self) {
        self.shared.is_released.send_replace(true);
    }

    /// Holds further requests again.
    pub fn hold(&self) {
        self.shared.is_released.send_replace(false);
    }

    /// Complete requests, except probes.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    pub fn last_request(&self) -> Request {
        self.requests().pop().unwrap_or_else(|| panic!("{} was never asked", self.name()))
    }

    /// How many request heads arrived, except probes, whatever happened to the rest.
    pub fn heads(&self) -> u64 {
        self.shared.heads.load(Relaxed)
    }

    pub fn probes(&self) -> u64 {
        self.shared.probes.load(Relaxed)
    }

    pub fn last_probe(&self) -> Request {
        lock(&self.shared.last_probe).clone().unwrap_or_else(|| panic!("{} was never probed", self.name()))
    }

    /// Connections accepted since the start.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Relaxed)
    }

    pub fn open_connections(&self) -> u64 {
        self.shared.open.load(Relaxed)
    }

    /// How often a peer disconnected before its response was complete.
    pub fn abandoned(&self) -> u64 {
        self.shared.abandoned.load(Relaxed)
    }

    /// How often [`Step::SendUntilFull`] has dropped the rest.
    pub fn given_up(&self) -> u64 {
        self.shared.given_up.load(Relaxed)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Some(server) = lock(&self.server).take() {
            server.abort();
        }
    }
}

/// A whole response with `Content-Length`.
pub fn response(status: u16, fields: &[(&str, &str)], body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("HTTP/1.1 {status} Scripted\r\n{fields}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Counts a connection as open until dropped, so that an aborted task counts down too.
struct Open(Arc<Shared>);

/// The peer has disconnected.
struct Gone;

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        shared.connections.fetch_add(1, Relaxed);
        shared.open.fetch_add(1, Relaxed);
        let open = Open(Arc::clone(&shared));
        connections.spawn(async move {
            // Whatever ends a connection, a malformed request included, ends only that connection.
            let _ = serve(Wire::new(stream), &open.0).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(mut wire: Wire, shared: &Shared) -> std::io::Result<()> {
    while let Some(mut request) = wire.request_head().await? {
        let is_probe = request.target == "/probe";
        if !is_probe {
            shared.heads.fetch_add(1, Relaxed);
            let script = lock(&shared.at_head).clone();
            let steps = script.map(|script| script(&request)).unwrap_or_default();
            if !steps.is_empty() {
                match follow(&mut wire, shared, steps).await {
                    Ok(true) => {}
                    Ok(false) => return Ok(()),
                    Err(Gone) => return abandon(shared),
                }
            }
        }
        if request.field("expect").is_some() {
            wire.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let (body, end) = wire.request_body(&request).await?;
        if end == crate::wire::End::CutOff {
            return abandon(shared);
        }
        request.body = body;
        if is_probe {
            shared.probes.fetch_add(1, Relaxed);
            *lock(&shared.last_probe) = Some(request.clone());
        } else {
            lock(&shared.requests).push(request.clone());
        }
        let script = lock(&shared.answer).clone();
        let steps = match script {
            Some(script) if !is_probe => script(&request),
            _ if request.fields.get("upgrade").is_some_and(|u| u.eq_ignore_ascii_case("websocket")) => {
                return echo_websocket(wire, shared, &request).await;
            }
            _ => unscripted(shared, &request),
        };
        match follow(&mut wire, shared, steps).await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(Gone) => return abandon(shared),
        }
        if request.fields.get("connection").is_some_and(|c| c.eq_ignore_ascii_case("close")) {
            return Ok(());
        }
    }
    Ok(())
}

fn abandon(shared: &Shared) -> std::io::Result<()> {
    shared.abandoned.fetch_add(1, Relaxed);
    Ok(())
}

fn unscripted(shared: &Shared, request: &Request) -> Vec<Step> {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let echo = |status| {
        let mut bytes = response(status, &[("X-Origin", &shared.name), ("Content-Type", "application/json")], {
            told_back(shared, request).to_string()
        });
        if request.method == "HEAD" {
            let head = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("the end of the head");
            bytes.truncate(head + 4);
        }
        Step::Send(bytes)
    };
    if path == "/probe" {
        return match *lock(&shared.health) {
            Health::Status(status) => vec![Step::Send(response(status, &[], ""))],
            Health::Alternating(odd, even) => {
                let is_odd = shared.probes.load(Relaxed) % 2 == 1;
                vec![Step::Send(response(if is_odd { odd } else { even }, &[], ""))]
            }
            Health::Hold => vec![Step::Hold, Step::Send(response(200, &[], ""))],
        };
    }
    if path == "/hold" {
        return vec![Step::Hold, echo(200)];
    }
    if path == "/slow" {
        let milliseconds = query.strip_prefix("ms=").and_then(|ms| ms.parse().ok()).unwrap_or(20);
        return vec![Step::Wait(Duration::from_millis(milliseconds)), echo(200)];
    }
    let status = path.strip_prefix("/status/").and_then(|status| status.parse().ok());
    vec![echo(status.unwrap_or(200))]
}

fn told_back(shared: &Shared, request: &Request) -> Value {
    let is_short = request.body.len() <= 64 << 10;
    json!({
        "origin": shared.name,
        "method": request.method,
        "target": request.target,
        "version": request.version,
        "fields": request.fields.0,
        "body": if is_short { String::from_utf8_lossy(&request.body) } else { "".into() },
        "body_length": request.body.len(),
        "body_sha256": sha256(&request.body),
    })
}

/// Runs the steps. Returns whether the connection may continue.
async fn follow(wire: &mut Wire, shared: &Shared, steps: Vec<Step>) -> Result<bool, Gone> {
    for step in steps {
        match step {
            Step::Send(bytes) => wire.stream.write_all(&bytes).await.map_err(|_| Gone)?,
            Step::SendUntilFull(bytes, duration) => {
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let Ok(sent) = tokio::time::timeout(duration, wire.stream.write(rest)).await else {
                        shared.given_up.fetch_add(1, Relaxed);
                        break;
                    };
                    rest = &rest[sent.map_err(|_| Gone)?..];
                }
            }
            Step::Wait(duration) => unless_gone(wire, tokio::time::sleep(duration)).await?,
            Step::Hold => {
                let mut is_released = shared.is_released.subscribe();
                unless_gone(wire, async move {
                    let _ = is_released.wait_for(|is_released| *is_released).await;
                })
                .await?;
            }
            Step::Close => {
                let _ = wire.stream.shutdown().await;
                // A close with unread bytes would become a reset.
                let mut rest = [0; 4096];
                while matches!(wire.stream.read(&mut rest).await, Ok(1..)) {}
                return Ok(false);
            }
            Step::Reset => {
                let _ = wire.stream.set_zero_linger();
                return Ok(false);
            }
            Step::Hang => unless_gone(wire, std::future::pending()).await?,
        }
    }
    Ok(true)
}

/// Waits for `future`, but only while the peer is connected; bytes that it sends are kept.
async fn unless_gone(wire: &mut Wire, future: impl Future<Output = ()>) -> Result<(), Gone> {
    tokio::pin!(future);
    let Wire { stream, buffer } = wire;
    loop {
        tokio::select! {
            () = &mut future => return Ok(()),
            read = stream.read_buf(buffer) => if !matches!(read, Ok(1..)) { return Err(Gone) },
        }
    }
}

async fn echo_websocket(mut wire: Wire, shared: &Shared, request: &Request) -> std::io::Result<()> {
    let accept = derive_accept_key(request.field("sec-websocket-key").unwrap_or_default().as_bytes());
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\nX-Origin: {}\r\n\r\n",
        shared.name
    );
    wire.stream.write_all(head.as_bytes()).await?;
    let Wire { stream, buffer } = wire;
    let mut socket: WebSocketStream<TcpStream> =
        WebSocketStream::from_partially_read(stream, buffer, Role::Server, None).await;
    while let Some(Ok(message)) = socket.next().await {
        let is_data = message.is_text() || message.is_binary();
        if is_data && socket.send(message).await.is_err() {
            break;
        }
    }
    // Finishes the closing handshake, if that is what ended it.
    let _ = socket.close(None).await;
    Ok(())
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Locks; a test that panicked elsewhere has failed already.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
