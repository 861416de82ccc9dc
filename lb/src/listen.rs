//! Sockets that accept, and the threads that serve what they accept. Each thread accepts for itself (`SO_REUSEPORT`),
//! has a runtime of its own and keeps its own connections to backends, so threads share nothing but the backends'
//! counters.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pingora::listeners::tls::Acceptor;
use pingora::protocols::Ssl;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::protocols::tls::{ALPN, TlsStream};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Builder;

use crate::config::ListenerConfig;
use crate::config::tls;
use crate::http::io::Io;
use crate::http::stream::ClientStream;
use crate::http::{self, Engine, Shared, Stop, h2, idle, splice};
use crate::room::Place;
use crate::shutdown::Shutdown;

const BACKLOG: u32 = 4096;
const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failure to accept for lack of files or memory: connections wait in the backlog meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often idle connections to backends are looked through.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// How often a thread that stops looks whether its last exchange has ended.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(5);
/// How long a stop waits, beyond the last exchange, for connections that carry none: a TLS handshake, half a head, what a
/// refused client still sends. Nobody can say whether they would ever end.
const SILENT_TIMEOUT: Duration = Duration::from_secs(1);

/// Listening sockets, one for each thread and address.
pub struct Sockets {
    by_thread: Vec<Vec<std::net::TcpListener>>,
}

/// Threads that carry traffic.
pub struct Threads {
    threads: Vec<JoinHandle<bool>>,
    shutdown: Shutdown,
}

impl Sockets {
    /// Binds every address, once for each thread; on failure says which one.
    pub fn bind(addresses: &[SocketAddr], threads: usize) -> Result<Self, (SocketAddr, io::Error)> {
        let mut by_thread: Vec<Vec<_>> = (0..threads.max(1)).map(|_| Vec::new()).collect();
        for &wanted in addresses {
            let mut address = wanted;
            for (thread, sockets) in by_thread.iter_mut().enumerate() {
                let socket = if thread == 0 { first_socket(address) } else { shared_socket(address) };
                let socket = socket.map_err(|e| (wanted, e))?;
                address = socket.local_addr().map_err(|e| (wanted, e))?;
                sockets.push(socket);
            }
        }
        Ok(Self { by_thread })
    }

    /// Where these sockets listen; ports that were free to choose are known now.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.by_thread[0].iter().filter_map(|socket| socket.local_addr().ok()).collect()
    }

    /// Starts a thread for each set of sockets.
    pub fn serve(self, listeners: &[ListenerConfig], shared: &Shared) -> io::Result<Threads> {
        let most_idle = shared.idle_connections.div_ceil(self.by_thread.len());
        let max_pipes = shared.max_pipes / self.by_thread.len();
        let applications = listeners
            .iter()
            .map(|listener| {
                let tls = listener.tls.as_ref().map(tls::server_config).transpose().map_err(io::Error::other)?;
                let tls = tls.map(|config| Arc::new(Acceptor::from_server_config(Arc::new(config))));
                Ok((listener, tls))
            })
            .collect::<io::Result<Vec<_>>>()?;
        let thread = |(number, sockets): (usize, Vec<std::net::TcpListener>)| {
            let stopping = Arc::new(Stop::new(shared.shutdown.clone()));
            let listeners = sockets.into_iter().zip(&applications).map(|(socket, (listener, tls))| {
                let engine = Arc::new(Engine::new(listener, shared, most_idle, Arc::clone(&stopping)));
                (socket, Listener { tls: tls.clone(), engine })
            });
            let listeners: Vec<_> = listeners.collect();
            let shutdown = shared.shutdown.clone();
            thread::Builder::new().name(format!("traffic-{number}")).spawn(move || {
                splice::allow(max_pipes);
                run(listeners, &stopping, &shutdown)
            })
        };
        let threads = self.by_thread.into_iter().enumerate().map(thread).collect::<io::Result<_>>()?;
        Ok(Threads { threads, shutdown: shared.shutdown.clone() })
    }
}

impl Threads {
    /// Stops accepting and waits for what is in flight, until `deadline`. False: something was cut off.
    pub fn stop(self, deadline: Instant) -> bool {
        self.shutdown.stop(deadline);
        // A thread that panicked has cut off what it carried.
        let finished: Vec<bool> = self.threads.into_iter().map(|thread| thread.join().unwrap_or(false)).collect();
        finished.into_iter().all(|finished| finished)
    }
}

/// A socket that others of this process will share. Sharing would also let it join another process's, so that
/// nobody else listens has to be made sure of first.
fn first_socket(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    if address.port() != 0 {
        let alone = socket_for(address)?;
        alone.set_reuseaddr(true)?;
        alone.bind(address)?;
    }
    shared_socket(address)
}

fn shared_socket(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket_for(address)?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    // Accepted connections inherit it.
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

fn socket_for(address: SocketAddr) -> io::Result<TcpSocket> {
    if address.is_ipv4() {
        return TcpSocket::new_v4();
    }
    let socket = TcpSocket::new_v6()?;
    // As with nginx, `[::]` stands for IPv6 alone, so that 0.0.0.0 can listen beside it.
    rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
    Ok(socket)
}

/// What serves the connections of one address on one thread.
struct Listener {
    tls: Option<Arc<Acceptor>>,
    engine: Arc<Engine>,
}

/// One thread's life. False: exchanges were cut off at the deadline.
fn run(listeners: Vec<(std::net::TcpListener, Listener)>, stop: &Stop, shutdown: &Shutdown) -> bool {
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            tracing::error!("a thread for traffic cannot be started: {e}");
            return false;
        }
    };
    runtime.block_on(async {
        let alive = Arc::new(AtomicUsize::new(0));
        let accepting: Vec<_> = listeners
            .into_iter()
            .map(|(socket, listener)| {
                tokio::spawn(accept(socket, Arc::new(listener), shutdown.clone(), Arc::clone(&alive)))
            })
            .collect();
        let sweeping = tokio::spawn(sweep_idle());
        let deadline = shutdown.stopping().await;
        for accepting in accepting {
            // It ends by itself: it has seen the same signal.
            let _ = tokio::time::timeout_at(deadline.into(), accepting).await;
        }
        stop.begin();
        let has_finished = finish(stop, &alive, deadline).await;
        sweeping.abort();
        idle::clear();
        has_finished
    })
}

/// Waits until every connection has ended, or none carries an exchange any more and those that are left were given
/// [`SILENT_TIMEOUT`]. False: exchanges were in flight at the deadline.
async fn finish(stop: &Stop, alive: &AtomicUsize, deadline: Instant) -> bool {
    let mut silent_since = None;
    while alive.load(Ordering::Acquire) > 0 {
        let now = Instant::now();
        silent_since = match stop.exchanges() {
            0 => silent_since.or(Some(now)),
            _ => None,
        };
        if now >= deadline || silent_since.is_some_and(|since| now.duration_since(since) >= SILENT_TIMEOUT) {
            return silent_since.is_some();
        }
        tokio::time::sleep(STOP_CHECK_INTERVAL).await;
    }
    true
}

async fn sweep_idle() {
    let mut tick = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        tick.tick().await;
        idle::sweep(Instant::now());
    }
}

/// Accepts until the signal to stop, and then what had been connected by then.
async fn accept(socket: std::net::TcpListener, listener: Arc<Listener>, shutdown: Shutdown, alive: Arc<AtomicUsize>) {
    let socket = match TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(e) => return tracing::error!("a listening socket cannot be used: {e}"),
    };
    let mut stopped = std::pin::pin!(shutdown.stopping());
    loop {
        let accepted = tokio::select! {
            biased;
            _ = &mut stopped => break,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let place = tokio::select! {
                    biased;
                    _ = &mut stopped => {
                        spawn(&listener, stream, peer, listener.engine.place_anyway(), &alive);
                        break;
                    }
                    place = listener.engine.place() => place,
                };
                spawn(&listener, stream, peer, place, &alive);
            }
            Err(e) => {
                tracing::warn!("a connection could not be accepted: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Closing the socket would reset what waits to be accepted.
    let waiting = |cx: &mut Context<'_>| match socket.poll_accept(cx) {
        Poll::Ready(Ok(accepted)) => Poll::Ready(Some(accepted)),
        Poll::Ready(Err(_)) | Poll::Pending => Poll::Ready(None),
    };
    while let Some((stream, peer)) = poll_fn(waiting).await {
        spawn(&listener, stream, peer, listener.engine.place_anyway(), &alive);
    }
}

fn spawn(listener: &Arc<Listener>, stream: TcpStream, peer: SocketAddr, place: Place, alive: &Arc<AtomicUsize>) {
    let (listener, alive) = (Arc::clone(listener), Alive::new(alive));
    tokio::spawn(async move {
        listener.connected(stream, peer).await;
        drop((alive, place));
    });
}

/// Counts a connection until dropped.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(count))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Listener {
    async fn connected(&self, tcp: TcpStream, peer: SocketAddr) {
        let engine = Arc::clone(&self.engine);
        let Some(tls) = &self.tls else { return http::serve(engine, ClientStream::Io(Io::Tcp(tcp)), peer.ip()).await };
        // The handshake is large and short: in a box of its own it leaves nothing behind.
        let Some(stream) = Box::pin(handshake(tls, tcp, peer)).await else { return };
        if stream.selected_alpn_proto() == Some(ALPN::H2) {
            // Large, and rare beside idle connections of HTTP/1.1.
            Box::pin(h2::serve(engine, stream, peer.ip())).await;
        } else {
            http::serve(engine, ClientStream::Io(Io::Tls(stream)), peer.ip()).await;
        }
    }
}

async fn handshake(tls: &Acceptor, tcp: TcpStream, peer: SocketAddr) -> Option<Box<TlsStream<L4Stream>>> {
    let stream = L4Stream::from(tcp);
    match tokio::time::timeout(TLS_HANDSHAKE_TIMEOUT, tls.tls_handshake(stream)).await {
        Ok(Ok(stream)) => Some(Box::new(stream)),
        Ok(Err(e)) => {
            tracing::debug!(%peer, "TLS handshake failed: {e}");
            None
        }
        Err(_) => None,
    }
}
