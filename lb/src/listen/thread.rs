//! A thread that carries traffic: it accepts on the sockets that it is given, until they are closed or the process
//! stops, and serves what it has accepted.
//!
//! Accepting and handshakes do not wait in the queue of the tasks that serve clients, where they would come after
//! thousands of others each time. They are tasks of the thread's own future, which runs whenever the thread looks which
//! sockets are ready. How much is done there at once is bounded, so that clients that are being served wait no longer
//! than new ones.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream as BlockingTcpStream};
use std::os::unix::net::UnixStream as BlockingUnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use rustix::net::getsockname;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::Builder;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::task::{self, JoinSet, LocalSet};

use super::handshake::{self, HandshakeError, HandshakeStats};
use super::proxy::ProxyHeaderPolicy;
use super::sockets::Socket;
use crate::config::tls::Protocol;
use crate::connection_limit::ConnectionPermit;
use crate::exchange::headers::{Peer, PeerAddress};
use crate::http::io::Io;
use crate::http::stream::ClientStream;
use crate::http::{self, Engine, ThreadState, h2, idle};
use crate::shutdown::Shutdown;
use crate::tls::server::ServerTls;

/// How many clients are accepted before others have their turn.
const MAX_ACCEPTED_AT_ONCE: u32 = 16;
/// How often a thread that stops looks whether its last exchange has ended.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(5);
/// How long a stop waits, beyond the last exchange, for connections that carry none: a TLS handshake, half a head, what
/// a refused client still sends. Nobody can say whether they would ever end.
const SILENT_TIMEOUT: Duration = Duration::from_secs(1);

/// A socket that a thread has to accept on.
pub(super) struct Accepting {
    pub socket: Socket,
    /// Who serves the next connection. The sender is dropped when the socket is to be closed.
    pub listener: watch::Receiver<Arc<Listener>>,
    /// Dropped once the socket is closed.
    pub is_open: Arc<()>,
    /// All threads accept on the same socket.
    pub turns: Option<Turns>,
}

/// Gives each thread as many of a shared socket's clients as any other. Otherwise those who are awake first would get
/// most, and clients that stay, such as those of a proxy with keep-alive, would be theirs for good.
pub(super) struct Turns {
    turn: Turn,
    /// What the others give this one.
    given: UnboundedReceiver<Accepted>,
}

/// Whose turn it is to get a client of a shared socket.
struct Turn {
    next: Arc<AtomicUsize>,
    /// To each thread.
    threads: Arc<[UnboundedSender<Accepted>]>,
    /// Which of them is this one.
    own: usize,
}

/// A client on its way to another thread.
pub(super) struct Accepted {
    stream: Detached,
    peer: PeerAddress,
    permits: ClientPermits,
}

/// A connection that no runtime knows.
enum Detached {
    Tcp(BlockingTcpStream),
    Unix(BlockingUnixStream),
}

/// A socket that listens, as the runtime knows it.
enum AsyncListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// What serves the connections of one listener on one thread.
#[derive(Clone)]
pub(super) struct Listener {
    /// As it is for the next connection; `None`: plain.
    pub tls: Arc<ArcSwapOption<ServerTls>>,
    /// Of whom a header of the PROXY protocol is demanded.
    pub proxies: Arc<ProxyHeaderPolicy>,
    pub stats: Arc<HandshakeStats>,
    pub engine: Arc<Engine>,
}

/// One thread's life. False: exchanges were cut off at the deadline.
pub(super) fn run(
    mut sockets: UnboundedReceiver<Accepting>,
    state: &ThreadState,
    shutdown: &Shutdown,
    max_idle: Arc<AtomicUsize>,
) -> bool {
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            tracing::error!("a thread for traffic cannot be started: {e}");
            return false;
        }
    };
    let clients = LocalSet::new();
    runtime.block_on(clients.run_until(async {
        let alive = Arc::new(AtomicUsize::new(0));
        let mut accepting = JoinSet::new();
        let sweeping = tokio::spawn(idle::sweep_forever(max_idle));
        let mut stopping = std::pin::pin!(shutdown.stopping());
        loop {
            tokio::select! {
                biased;
                _ = &mut stopping => break,
                Some(socket) = sockets.recv() => {
                    begin(&mut accepting, socket, shutdown, &alive);
                }
                Some(_) = accepting.join_next() => {}
            }
        }
        // Clients may wait there already.
        sockets.close();
        while let Some(socket) = sockets.recv().await {
            begin(&mut accepting, socket, shutdown, &alive);
        }
        // They end by themselves: they have seen the same signal.
        while accepting.join_next().await.is_some() {}
        state.begin();
        let has_finished = finish(state, &alive, shutdown).await;
        sweeping.abort();
        idle::clear();
        has_finished
    }))
}

fn begin(tasks: &mut JoinSet<()>, mut accepting: Accepting, shutdown: &Shutdown, alive: &Arc<AtomicUsize>) {
    let turns = accepting.turns.take().map(|Turns { turn, given }| {
        tasks.spawn_local(serve_given(given, accepting.listener.clone(), shutdown.clone(), Arc::clone(alive)));
        turn
    });
    tasks.spawn_local(accept(accepting, turns, shutdown.clone(), Arc::clone(alive)));
}

/// Waits until every connection has ended, or none carries an exchange any more and those that are left were given
/// [`SILENT_TIMEOUT`]. False: exchanges were in flight at the deadline, which may come nearer meanwhile.
async fn finish(state: &ThreadState, alive: &AtomicUsize, shutdown: &Shutdown) -> bool {
    let mut silent_since = None;
    while alive.load(Ordering::Acquire) > 0 {
        let now = Instant::now();
        silent_since = match state.exchanges() {
            0 => silent_since.or(Some(now)),
            _ => None,
        };
        let is_over = shutdown.deadline().is_none_or(|deadline| now >= deadline);
        if is_over || silent_since.is_some_and(|since| now.duration_since(since) >= SILENT_TIMEOUT) {
            return silent_since.is_some();
        }
        tokio::time::sleep(STOP_CHECK_INTERVAL).await;
    }
    true
}

/// Accepts until the socket is to be closed or the process stops, and then what had been connected by then.
async fn accept(accepting: Accepting, turn: Option<Turn>, shutdown: Shutdown, alive: Arc<AtomicUsize>) {
    let Accepting { socket, listener: mut given, is_open, .. } = accepting;
    let socket = match AsyncListener::new(socket) {
        Ok(socket) => socket,
        Err(e) => return tracing::error!("a listening socket cannot be used: {e}"),
    };
    let mut stopping = std::pin::pin!(shutdown.stopping());
    let mut listener = Arc::clone(&given.borrow_and_update());
    let mut count = 0_u32;
    loop {
        count = count.wrapping_add(1);
        if count.is_multiple_of(MAX_ACCEPTED_AT_ONCE) {
            task::yield_now().await;
        }
        let accepted = tokio::select! {
            biased;
            _ = &mut stopping => break,
            given_anew = given.changed() => {
                if given_anew.is_err() {
                    break;
                }
                listener = Arc::clone(&given.borrow_and_update());
                continue;
            }
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let permits = tokio::select! {
                    biased;
                    _ = &mut stopping => {
                        spawn(&listener, stream, peer, listener.permits_over_limit(), &alive);
                        break;
                    }
                    _ = given.changed() => {
                        listener = Arc::clone(&given.borrow());
                        listener.permits_over_limit()
                    }
                    permits = listener.permits() => permits,
                };
                match &turn {
                    Some(turn) => turn.give(&listener, stream, peer, permits, &alive),
                    None => spawn(&listener, stream, peer, permits, &alive),
                }
            }
            Err(e) => tokio::time::sleep(listener.engine.accept_failed(&e)).await,
        }
    }
    // Closing the socket would reset what waits to be accepted. The kernel is asked: the runtime says that nobody waits
    // also when it has not heard of those who do, or finds that a task has done enough for now.
    match socket.into_std() {
        Ok(socket) => loop {
            let (stream, peer) = match socket.accept() {
                Ok(accepted) => accepted,
                Err(e) if matches!(e.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => continue,
                Err(_) => break,
            };
            Accepted { stream, peer, permits: listener.permits_over_limit() }.serve(&listener, &alive);
        },
        Err(e) => tracing::error!("a listening socket cannot be used: {e}"),
    }
    drop(is_open);
}

/// Serves those that other threads have accepted for this one, until the socket is to be closed or the process stops.
async fn serve_given(
    mut accepted: UnboundedReceiver<Accepted>,
    mut given: watch::Receiver<Arc<Listener>>,
    shutdown: Shutdown,
    alive: Arc<AtomicUsize>,
) {
    let mut stopping = std::pin::pin!(shutdown.stopping());
    let serve = |accepted: Accepted, given: &watch::Receiver<Arc<Listener>>| {
        let listener = Arc::clone(&given.borrow());
        accepted.serve(&listener, &alive);
    };
    loop {
        tokio::select! {
            biased;
            _ = &mut stopping => break,
            changed = given.changed() => if changed.is_err() { break },
            next = accepted.recv() => match next {
                Some(client) => serve(client, &given),
                None => return,
            },
        }
    }
    accepted.close();
    while let Some(client) = accepted.recv().await {
        serve(client, &given);
    }
}

impl Turns {
    /// For each of so many threads.
    pub(super) fn of(threads: usize) -> Vec<Self> {
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..threads).map(|_| unbounded_channel()).unzip();
        let (next, threads) = (Arc::new(AtomicUsize::new(0)), Arc::from(senders));
        let turns = receivers.into_iter().enumerate();
        let turn = |own| Turn { next: Arc::clone(&next), threads: Arc::clone(&threads), own };
        turns.map(|(own, given)| Self { turn: turn(own), given }).collect()
    }
}

impl Turn {
    /// Has the thread serve the client whose turn it is; this one if that one has stopped.
    fn give(
        &self,
        listener: &Arc<Listener>,
        stream: Io,
        peer: PeerAddress,
        permits: ClientPermits,
        alive: &Arc<AtomicUsize>,
    ) {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.threads.len();
        if turn == self.own {
            return spawn(listener, stream, peer, permits, alive);
        }
        match Detached::new(stream) {
            Ok(stream) => {
                if let Err(back) = self.threads[turn].send(Accepted { stream, peer, permits }) {
                    back.0.serve(listener, alive);
                }
            }
            Err(e) => tracing::warn!("a connection could not be accepted: {e}"),
        }
    }
}

impl Accepted {
    fn serve(self, listener: &Arc<Listener>, alive: &Arc<AtomicUsize>) {
        match self.stream.attach() {
            Ok(stream) => spawn(listener, stream, self.peer, self.permits, alive),
            Err(e) => tracing::warn!("a connection could not be accepted: {e}"),
        }
    }
}

impl Detached {
    fn new(stream: Io) -> io::Result<Self> {
        match stream {
            Io::Tcp(tcp) => tcp.into_std().map(Self::Tcp),
            Io::Unix(unix) => unix.into_std().map(Self::Unix),
            _ => Err(ErrorKind::Unsupported.into()),
        }
    }

    fn attach(self) -> io::Result<Io> {
        match self {
            Self::Tcp(tcp) => {
                tcp.set_nonblocking(true)?;
                TcpStream::from_std(tcp).map(Io::Tcp)
            }
            Self::Unix(unix) => {
                unix.set_nonblocking(true)?;
                UnixStream::from_std(unix).map(Io::Unix)
            }
        }
    }
}

impl Socket {
    fn accept(&self) -> io::Result<(Detached, PeerAddress)> {
        match self {
            Self::Tcp(tcp) => tcp.accept().map(|(stream, peer)| (Detached::Tcp(stream), PeerAddress::Ip(peer))),
            Self::Unix(unix) => unix.accept().map(|(stream, _)| (Detached::Unix(stream), PeerAddress::Unix)),
        }
    }
}

impl AsyncListener {
    fn new(socket: Socket) -> io::Result<Self> {
        match socket {
            Socket::Tcp(tcp) => TcpListener::from_std(tcp).map(Self::Tcp),
            Socket::Unix(unix) => UnixListener::from_std(unix).map(Self::Unix),
        }
    }

    fn into_std(self) -> io::Result<Socket> {
        match self {
            Self::Tcp(tcp) => tcp.into_std().map(Socket::Tcp),
            Self::Unix(unix) => unix.into_std().map(Socket::Unix),
        }
    }

    async fn accept(&self) -> io::Result<(Io, PeerAddress)> {
        match self {
            Self::Tcp(tcp) => tcp.accept().await.map(|(stream, peer)| (Io::Tcp(stream), PeerAddress::Ip(peer))),
            Self::Unix(unix) => unix.accept().await.map(|(stream, _)| (Io::Unix(stream), PeerAddress::Unix)),
        }
    }
}

fn spawn(listener: &Arc<Listener>, stream: Io, peer: PeerAddress, permits: ClientPermits, alive: &Arc<AtomicUsize>) {
    let (listener, alive) = (Arc::clone(listener), ConnectionGuard::new(alive));
    let ClientPermits { client, handshake } = permits;
    let serve = move |connected: Connected, engine: Arc<Engine>| {
        tokio::spawn(async move {
            connected.serve(engine).await;
            drop((alive, client));
        });
    };
    if !listener.has_tls() && !listener.proxies.of(peer) {
        return serve(Connected { io: stream, peer: Peer::new(peer), is_http2: false }, Arc::clone(&listener.engine));
    }
    task::spawn_local(async move {
        if let Some(connected) = listener.connected(stream, peer, handshake).await {
            serve(connected, Arc::clone(&listener.engine));
        }
    });
}

/// A client that may send requests.
struct Connected {
    io: Io,
    peer: Peer,
    is_http2: bool,
}

impl Connected {
    async fn serve(self, engine: Arc<Engine>) {
        let Self { io, peer, is_http2 } = self;
        match is_http2 {
            // Large, and rare beside idle connections of HTTP/1.1.
            true => Box::pin(h2::serve(engine, io, Vec::new(), peer)).await,
            false => http::serve(engine, ClientStream::Io(io), peer).await,
        }
    }
}

/// What a client that is accepted takes up.
struct ClientPermits {
    client: ConnectionPermit,
    /// Until its handshake is over.
    handshake: Option<ConnectionPermit>,
}

/// Counts a connection until dropped.
struct ConnectionGuard(Arc<AtomicUsize>);

impl ConnectionGuard {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(count))
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Listener {
    fn has_tls(&self) -> bool {
        self.tls.load().is_some()
    }

    /// Places for a client, as soon as there are some. The handshake's comes first: who waits for one takes no place
    /// from clients without TLS.
    async fn permits(&self) -> ClientPermits {
        let handshake = if self.has_tls() { Some(self.engine.admit_handshake().await) } else { None };
        ClientPermits { handshake, client: self.engine.admit().await }
    }

    fn permits_over_limit(&self) -> ClientPermits {
        let handshake = self.has_tls().then(|| self.engine.admit_handshake_over_limit());
        ClientPermits { handshake, client: self.engine.admit_over_limit() }
    }

    /// Has the client say what goes before its requests. `None`: it did not.
    async fn connected(
        &self,
        mut io: Io,
        mut peer: PeerAddress,
        permit: Option<ConnectionPermit>,
    ) -> Option<Connected> {
        let engine = &self.engine;
        if self.proxies.of(peer) {
            peer = self.proxies.read(engine, &mut io, peer).await?;
        }
        let Some(tls) = self.tls.load_full() else {
            return Some(Connected { io, peer: Peer::new(peer), is_http2: false });
        };
        let accepted = handshake::accept(engine, &tls, &self.stats, io, peer).await;
        drop(permit);
        match accepted {
            Ok(stream) => {
                let tls = handshake::tls(&stream);
                let local = stream.get_ref().0.socket().and_then(|socket| getsockname(socket).ok());
                let local = local.and_then(|local| SocketAddr::try_from(local).ok());
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(Protocol::Http2.name());
                Some(Connected { io: Io::Tls(stream), peer: Peer::with_tls(peer, tls, local), is_http2 })
            }
            Err(HandshakeError::PlainHttp(io)) => {
                Some(Connected { io, peer: Peer::without_tls(peer), is_http2: false })
            }
            Err(_) => None,
        }
    }
}
