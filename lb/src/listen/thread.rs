//! A traffic thread: it accepts connections on its sockets until they are closed or the process stops, and serves them.
//!
//! Accepting and handshakes do not wait in the run queue, behind thousands of tasks that serve clients. They are local
//! tasks of the thread's main future, which runs whenever the thread polls its sockets. The work done there at once is
//! bounded, so that clients that are served do not wait longer than new ones.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream as BlockingTcpStream};
use std::os::unix::net::UnixStream as BlockingUnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use rustix::net::getsockname;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::Builder;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
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

/// How many clients are accepted before other tasks may run.
const MAX_ACCEPTED_AT_ONCE: u32 = 16;
/// How often a stopping thread checks whether its last exchange has ended.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(5);
/// How long a stop waits, after the last exchange, for connections without an exchange: a TLS handshake, half a head,
/// the rest of a refused request. They might never end.
const SILENT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a socket that is to be closed is still tried after the first failure, for the clients in its backlog.
const LAST_CLIENTS_TIMEOUT: Duration = Duration::from_secs(1);

/// A socket on which a thread accepts; an [`AsyncListener`] once the thread has registered it.
pub(super) struct Accepting<S = Socket> {
    pub socket: S,
    /// The listener that serves the next connection. The sender is dropped to close the socket.
    pub listener: watch::Receiver<Arc<Listener>>,
    /// Dropped once the socket is closed.
    pub is_open: Arc<()>,
    /// Set if all threads accept on the same socket.
    pub shared: Option<SharedSocket>,
}

/// One thread's part in a shared socket, whose clients go to all threads in turn. Otherwise the thread that wakes up
/// first would get most clients, and would keep those that stay connected, such as proxies with keep-alive.
pub(super) struct SharedSocket {
    distributor: Distributor,
    /// Clients that other threads have accepted for this one.
    incoming: UnboundedReceiver<Accepted>,
}

/// Distributes the clients of a shared socket over the threads, round robin.
struct Distributor {
    next: Arc<AtomicUsize>,
    /// One for each thread.
    threads: Arc<[UnboundedSender<Accepted>]>,
    /// The index of this thread.
    own: usize,
}

/// A client on its way to another thread.
pub(super) struct Accepted {
    stream: Detached,
    peer: PeerAddress,
    permits: ClientPermits,
}

/// A connection that is registered with no runtime.
enum Detached {
    Tcp(BlockingTcpStream),
    Unix(BlockingUnixStream),
}

/// How a thread and who starts it wait for each other.
pub(super) struct Start {
    /// Told once the thread can accept on its sockets, or why it cannot.
    pub result: Sender<io::Result<()>>,
    /// Resolves when the thread may accept. If its sender is dropped, the thread ends.
    pub may_accept: oneshot::Receiver<()>,
}

/// A listening socket that is registered with the runtime.
enum AsyncListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Serves the connections of one listener on one thread.
#[derive(Clone)]
pub(super) struct Listener {
    /// For the next connection; `None`: plain.
    pub tls: Arc<ArcSwapOption<ServerTls>>,
    /// Which peers must send a PROXY header.
    pub proxies: Arc<ProxyHeaderPolicy>,
    pub stats: Arc<HandshakeStats>,
    pub engine: Arc<Engine>,
}

/// Runs the thread until the process stops. Returns false if exchanges were cut off at the deadline.
pub(super) fn run(
    mut sockets: UnboundedReceiver<Accepting>,
    state: &ThreadState,
    shutdown: &Shutdown,
    max_idle: Arc<AtomicUsize>,
    start: Start,
) -> bool {
    let Start { result, may_accept } = start;
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            // An error means that nobody waits any more.
            let _ = result.send(Err(e));
            return false;
        }
    };
    let clients = LocalSet::new();
    runtime.block_on(clients.run_until(async {
        let first: io::Result<Vec<_>> =
            std::iter::from_fn(|| sockets.try_recv().ok()).map(Accepting::registered).collect();
        let (first, registered) = match first {
            Ok(first) => (first, Ok(())),
            Err(e) => (Vec::new(), Err(e)),
        };
        let _ = result.send(registered);
        // Once all have been dropped, nobody waits for the result of a thread that has panicked.
        drop(result);
        if may_accept.await.is_err() {
            return false;
        }
        let alive = Arc::new(AtomicUsize::new(0));
        let mut accepting = JoinSet::new();
        for socket in first {
            begin(&mut accepting, socket, shutdown, &alive);
        }
        let sweeping = tokio::spawn(idle::sweep_forever(max_idle));
        let mut stopping = std::pin::pin!(shutdown.stopping());
        loop {
            tokio::select! {
                biased;
                _ = &mut stopping => break,
                Some(socket) = sockets.recv() => register_and_begin(&mut accepting, socket, shutdown, &alive),
                Some(_) = accepting.join_next() => {}
            }
        }
        // Now, so that idle clients free their files for those in the backlogs.
        state.wake_idle();
        // Clients may wait in the backlogs of sockets that have just arrived.
        sockets.close();
        while let Some(socket) = sockets.recv().await {
            register_and_begin(&mut accepting, socket, shutdown, &alive);
        }
        // The tasks have seen the same signal and end by themselves.
        while accepting.join_next().await.is_some() {}
        state.wake_idle();
        let has_finished = finish(state, &alive, shutdown).await;
        sweeping.abort();
        idle::clear();
        has_finished
    }))
}

/// Begins to accept on a socket that has come while the thread runs.
fn register_and_begin(tasks: &mut JoinSet<()>, accepting: Accepting, shutdown: &Shutdown, alive: &Arc<AtomicUsize>) {
    match accepting.registered() {
        Ok(socket) => begin(tasks, socket, shutdown, alive),
        // If no other thread accepts there either, the process is not ready.
        Err(e) => tracing::error!("a listening socket cannot be used: {e}"),
    }
}

fn begin(
    tasks: &mut JoinSet<()>,
    mut accepting: Accepting<AsyncListener>,
    shutdown: &Shutdown,
    alive: &Arc<AtomicUsize>,
) {
    let distributor = accepting.shared.take().map(|SharedSocket { distributor, incoming }| {
        tasks.spawn_local(serve_incoming(incoming, accepting.listener.clone(), shutdown.clone(), Arc::clone(alive)));
        distributor
    });
    tasks.spawn_local(accept(accepting, distributor, shutdown.clone(), Arc::clone(alive)));
}

/// Waits until all connections have ended, or for [`SILENT_TIMEOUT`] after the last exchange, and the last client that
/// still took the end of its response. Returns false if there were any at the deadline, which may be moved forward
/// meanwhile.
async fn finish(state: &ThreadState, alive: &AtomicUsize, shutdown: &Shutdown) -> bool {
    let mut silent_since = None;
    while alive.load(Ordering::Acquire) > 0 {
        let now = Instant::now();
        silent_since = match state.exchanges() + state.drains() {
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

/// Accepts until the socket is to be closed or the process stops, and finally the clients that are in its backlog then.
async fn accept(
    accepting: Accepting<AsyncListener>,
    distributor: Option<Distributor>,
    shutdown: Shutdown,
    alive: Arc<AtomicUsize>,
) {
    let Accepting { socket, listener: mut listeners, is_open, .. } = accepting;
    let mut stopping = std::pin::pin!(shutdown.stopping());
    let mut listener = Arc::clone(&listeners.borrow_and_update());
    let mut count = 0_u32;
    loop {
        count = count.wrapping_add(1);
        if count.is_multiple_of(MAX_ACCEPTED_AT_ONCE) {
            task::yield_now().await;
        }
        let accepted = tokio::select! {
            biased;
            _ = &mut stopping => break,
            changed = listeners.changed() => {
                if changed.is_err() {
                    break;
                }
                listener = Arc::clone(&listeners.borrow_and_update());
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
                    _ = listeners.changed() => {
                        listener = Arc::clone(&listeners.borrow());
                        listener.permits_over_limit()
                    }
                    permits = listener.permits() => permits,
                };
                match &distributor {
                    Some(distributor) => distributor.dispatch(&listener, stream, peer, permits, &alive),
                    None => spawn(&listener, stream, peer, permits, &alive),
                }
            }
            Err(e) => tokio::time::sleep(listener.engine.accept_failed(&e)).await,
        }
    }
    // Closing the socket would reset clients in its backlog. Only the kernel knows whether there are any: the runtime
    // may not have been notified yet, or may make a task wait that has used up its budget.
    match socket.into_std() {
        Ok(socket) => {
            let serve = |(stream, peer)| {
                Accepted { stream, peer, permits: listener.permits_over_limit() }.serve(&listener, &alive);
            };
            accept_rest(|| socket.accept(), serve, |error| listener.engine.accept_failed(error)).await;
        }
        Err(e) => tracing::error!("a listening socket cannot be used: {e}"),
    }
    drop(is_open);
}

/// Accepts until the backlog is empty. A client that has failed in it is passed over. `failed` gives the pause after a
/// failure, which is more than none where it concerns all of them: after a lack of files, connections that end meanwhile
/// free some. But failures are borne with for no longer than [`LAST_CLIENTS_TIMEOUT`].
async fn accept_rest<C>(
    mut accept: impl FnMut() -> io::Result<C>,
    mut serve: impl FnMut(C),
    mut failed: impl FnMut(&io::Error) -> Duration,
) {
    let mut first_failure = None;
    loop {
        match accept() {
            Ok(client) => serve(client),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return,
            Err(e) => {
                let now = Instant::now();
                if now.duration_since(*first_failure.get_or_insert(now)) >= LAST_CLIENTS_TIMEOUT {
                    return;
                }
                tokio::time::sleep(failed(&e)).await;
            }
        }
    }
}

/// Serves clients that other threads have accepted for this one, until the socket is to be closed or the process stops.
async fn serve_incoming(
    mut incoming: UnboundedReceiver<Accepted>,
    mut listeners: watch::Receiver<Arc<Listener>>,
    shutdown: Shutdown,
    alive: Arc<AtomicUsize>,
) {
    let mut stopping = std::pin::pin!(shutdown.stopping());
    let serve = |accepted: Accepted, listeners: &watch::Receiver<Arc<Listener>>| {
        let listener = Arc::clone(&listeners.borrow());
        accepted.serve(&listener, &alive);
    };
    loop {
        tokio::select! {
            biased;
            _ = &mut stopping => break,
            changed = listeners.changed() => if changed.is_err() { break },
            next = incoming.recv() => match next {
                Some(client) => serve(client, &listeners),
                None => return,
            },
        }
    }
    incoming.close();
    while let Some(client) = incoming.recv().await {
        serve(client, &listeners);
    }
}

impl SharedSocket {
    /// The parts of all `threads`.
    pub(super) fn of(threads: usize) -> Vec<Self> {
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..threads).map(|_| unbounded_channel()).unzip();
        let (next, threads) = (Arc::new(AtomicUsize::new(0)), Arc::from(senders));
        let distributor = |own| Distributor { next: Arc::clone(&next), threads: Arc::clone(&threads), own };
        let parts = receivers.into_iter().enumerate();
        parts.map(|(own, incoming)| Self { distributor: distributor(own), incoming }).collect()
    }
}

impl Distributor {
    /// Passes a client to the next thread. If that one has stopped, this thread serves it.
    fn dispatch(
        &self,
        listener: &Arc<Listener>,
        stream: Io,
        peer: PeerAddress,
        permits: ClientPermits,
        alive: &Arc<AtomicUsize>,
    ) {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.threads.len();
        if next == self.own {
            return spawn(listener, stream, peer, permits, alive);
        }
        match Detached::new(stream) {
            Ok(stream) => {
                if let Err(back) = self.threads[next].send(Accepted { stream, peer, permits }) {
                    back.0.serve(listener, alive);
                }
            }
            Err(e) => {
                listener.engine.accept_failed(&e);
            }
        }
    }
}

impl Accepted {
    fn serve(self, listener: &Arc<Listener>, alive: &Arc<AtomicUsize>) {
        match self.stream.attach() {
            Ok(stream) => spawn(listener, stream, self.peer, self.permits, alive),
            Err(e) => {
                listener.engine.accept_failed(&e);
            }
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

impl Accepting {
    /// Registers the socket with the runtime of this thread.
    fn registered(self) -> io::Result<Accepting<AsyncListener>> {
        let Self { socket, listener, is_open, shared } = self;
        Ok(Accepting { socket: AsyncListener::new(socket)?, listener, is_open, shared })
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

/// A client that may send requests now.
struct Connected {
    io: Io,
    peer: Peer,
    is_http2: bool,
}

impl Connected {
    async fn serve(self, engine: Arc<Engine>) {
        let Self { io, peer, is_http2 } = self;
        match is_http2 {
            // A large future, and rarer than idle connections of HTTP/1.1.
            true => Box::pin(h2::serve(engine, io, Vec::new(), peer)).await,
            false => http::serve(engine, ClientStream::Io(io), peer).await,
        }
    }
}

/// The permits that an accepted client holds.
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

    /// Waits for the permits of a client. The handshake's comes first, so that a client that waits for it takes no
    /// permit from clients without TLS.
    async fn permits(&self) -> ClientPermits {
        let handshake = if self.has_tls() { Some(self.engine.admit_handshake().await) } else { None };
        ClientPermits { handshake, client: self.engine.admit().await }
    }

    fn permits_over_limit(&self) -> ClientPermits {
        let handshake = self.has_tls().then(|| self.engine.admit_handshake_over_limit());
        ClientPermits { handshake, client: self.engine.admit_over_limit() }
    }

    /// Reads what precedes the client's requests: PROXY header and TLS handshake. `None` if one of them failed.
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

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use rustix::io::Errno;

    use super::*;

    /// Accepts the rest of a backlog, with these failures before each client; the clients that are served. Only a lack
    /// of files pauses.
    async fn served(failures: &[&[Errno]]) -> Vec<usize> {
        let (next, failed, served) = (Cell::new(0), Cell::new(0), RefCell::new(Vec::new()));
        let accept = || match failures.get(next.get()) {
            Some(before) if failed.get() < before.len() => {
                failed.set(failed.get() + 1);
                Err(before[failed.get() - 1].into())
            }
            Some(_) => {
                failed.set(0);
                Ok(next.replace(next.get() + 1))
            }
            None => Err(Errno::AGAIN.into()),
        };
        let pause = |error: &io::Error| match Errno::from_io_error(error) {
            Some(Errno::MFILE) => LAST_CLIENTS_TIMEOUT / 50,
            _ => Duration::ZERO,
        };
        accept_rest(accept, |client| served.borrow_mut().push(client), pause).await;
        served.into_inner()
    }

    // The first failure but an aborted connection ended the loop, and those behind it were reset.
    #[tokio::test]
    async fn a_failure_to_accept_one_client_loses_no_other_in_the_backlog() {
        let failures: [&[Errno]; 4] =
            [&[], &[Errno::CONNABORTED, Errno::INTR], &[Errno::NETDOWN, Errno::PROTO], &[Errno::MFILE; 3]];
        assert_eq!(served(&failures).await, [0, 1, 2, 3]);
    }

    #[tokio::test]
    async fn a_lack_of_files_that_lasts_ends_the_wait_for_them() {
        assert_eq!(served(&[&[], &[Errno::MFILE; 1000], &[]]).await, [0]);
    }
}
