//! Listeners that come and go while the process runs, and the threads that serve them. Each thread has a socket of its own
//! at each address (`SO_REUSEPORT`), a runtime of its own and its own connections to backends, so threads share nothing
//! but the backends' counters.

pub(crate) mod sockets;
mod thread;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{Builder, JoinHandle};

use arc_swap::ArcSwapOption;
use pingora::listeners::tls::Acceptor;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

use self::sockets::{Bound, Sockets, cannot_listen, duplicates};
use self::thread::{Accepting, Listener};
use crate::config::certificate::{self, Certificate};
use crate::config::{ListenerConfig, TlsConfig, tls};
use crate::http::{Engine, Shared, Stop, splice};

/// What listens, on which threads.
pub struct Listeners {
    shared: Shared,
    /// For each thread, what gives it sockets.
    threads: Vec<UnboundedSender<Accepting>>,
    stops: Arc<[Arc<Stop>]>,
    state: Mutex<State>,
    max_pipes: usize,
}

#[derive(Default)]
struct State {
    open: Vec<Open>,
    /// Addresses whose sockets are on their way to be closed.
    closing: Vec<(SocketAddr, Weak<()>)>,
    /// What the threads will take, until they are started.
    receivers: Vec<UnboundedReceiver<Accepting>>,
}

/// A listener that accepts.
struct Open {
    config: ListenerConfig,
    tls: Tls,
    acceptor: Arc<ArcSwapOption<Acceptor>>,
    /// One for each thread.
    listeners: Vec<Arc<Listener>>,
    sockets: Vec<Group>,
}

/// Sockets of one address. Dropped, they are closed.
struct Group {
    /// A port that was free to choose is known.
    address: SocketAddr,
    /// For each thread, what tells it who serves the next connection.
    given: Vec<watch::Sender<Arc<Listener>>>,
    is_open: Weak<()>,
}

/// What a listener's certificate and key were when they were read last; `None`: it is plain.
type Tls = Option<[u8; 32]>;

/// Listeners that can be taken up: nothing that could fail is left to do. Dropped, it closes what it has opened.
pub struct Prepared {
    /// What becomes of those that listen now, in their order: where each stands in the configuration; `None`: it is
    /// closed.
    kept: Vec<Option<Kept>>,
    added: Vec<Added>,
}

struct Kept {
    config: ListenerConfig,
    /// Where its certificate, its key or their content has changed.
    tls: Option<(Tls, Option<Arc<Acceptor>>)>,
}

struct Added {
    config: ListenerConfig,
    /// None where it takes those of a listener that is closed.
    sockets: Vec<TcpListener>,
    tls: (Tls, Option<Arc<Acceptor>>),
}

/// Why listeners cannot be taken up.
#[derive(Debug)]
pub struct Problem {
    /// Its place in the configuration.
    pub listener: usize,
    pub message: String,
}

/// Threads that carry traffic.
pub struct Threads(Vec<JoinHandle<bool>>);

impl Listeners {
    /// No listener yet, for so many threads, at least one, which [`Self::start`] starts. `max_pipes`: pipes for large
    /// content on all threads together.
    pub fn new(threads: usize, shared: Shared, max_pipes: usize) -> Self {
        let (threads, receivers): (Vec<_>, _) = (0..threads.max(1)).map(|_| unbounded_channel()).unzip();
        let stops = threads.iter().map(|_| Arc::new(Stop::new(shared.shutdown.clone()))).collect();
        Self { shared, threads, stops, state: Mutex::new(State { receivers, ..State::default() }), max_pipes }
    }

    /// Opens what `wanted` has and nobody listens on yet, taking it from `sockets` where it is there, and reads
    /// certificates again. `is_trial`: it is only to be found out whether that can be done, and no client may notice.
    pub fn prepare(
        &self,
        wanted: &[ListenerConfig],
        sockets: &mut Sockets,
        is_trial: bool,
    ) -> Result<Prepared, Vec<Problem>> {
        let mut state = self.state();
        state.closing.retain(|(_, is_open)| is_open.strong_count() > 0);
        let mut kept: Vec<Option<Kept>> = state.open.iter().map(|_| None).collect();
        let (mut new, mut problems) = (Vec::new(), Vec::new());
        for (index, config) in wanted.iter().enumerate() {
            let place = (state.open.iter().zip(&kept))
                .position(|(open, kept)| kept.is_none() && open.config.address == config.address);
            let before = place.and_then(|place| state.open.get(place)).map(|open| open.tls);
            match (load(config.tls.as_ref(), before.flatten()), place) {
                (Err(message), _) => problems.push(Problem { listener: index, message }),
                (Ok(tls), None) => new.push((index, config, tls)),
                (Ok(tls), Some(place)) => {
                    let tls = (before != Some(tls.0)).then_some(tls);
                    kept[place] = Some(Kept { config: config.clone(), tls });
                }
            }
        }
        let mut added = Vec::new();
        for (index, config, tls) in new {
            let count = self.threads.len();
            let is_closed = |(open, kept): (&Open, &Option<Kept>)| {
                kept.is_none() && open.sockets.iter().any(|group| group.address == config.address)
            };
            let opened = match sockets.take(config.address) {
                _ if state.open.iter().zip(&kept).any(is_closed) => Ok(Opened::Ready(Vec::new())),
                Some(socket) => duplicates(&socket, count).map(Opened::Ready),
                None => Bound::new(config.address, count, state.is_own(config.address)).map(Opened::Bound),
            };
            match opened {
                Ok(opened) => added.push((index, config, opened, tls)),
                Err(e) => {
                    let message = cannot_listen(config.address, "[[listener]] address", &e);
                    problems.push(Problem { listener: index, message });
                }
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        if is_trial {
            return Ok(Prepared { kept, added: Vec::new() });
        }
        // Last, since a client that has connected may not be sent away again.
        let listen = |(index, config, opened, tls): (usize, &ListenerConfig, Opened, _)| {
            let sockets = match opened {
                Opened::Ready(sockets) => sockets,
                Opened::Bound(bound) => bound.listen().map_err(|e| {
                    let message = cannot_listen(config.address, "[[listener]] address", &e);
                    vec![Problem { listener: index, message }]
                })?,
            };
            Ok::<_, Vec<Problem>>(Added { config: config.clone(), sockets, tls })
        };
        Ok(Prepared { kept, added: added.into_iter().map(listen).collect::<Result<_, _>>()? })
    }

    /// Takes up what was prepared last. A listener that is not wanted any more stops to accept, once it has accepted
    /// whoever is connected already; its exchanges go on, and each answer is the last on its connection. Where another
    /// listener covers its address, as 0.0.0.0 does 127.0.0.1, its sockets stay and serve that one, so that nobody who
    /// connects meanwhile is sent away.
    pub fn commit(&self, prepared: Prepared) {
        let mut state = self.state();
        let before = std::mem::take(&mut state.open);
        let mut free = Vec::new();
        for (mut open, kept) in before.into_iter().zip(prepared.kept) {
            match kept {
                Some(Kept { config, tls }) => {
                    if let Some((tls, acceptor)) = tls {
                        open.tls = tls;
                        open.acceptor.store(acceptor);
                    }
                    open.config = config;
                    state.open.push(open);
                }
                None => {
                    tracing::info!(address = %open.config.address, "does not listen any more");
                    open.listeners.iter().for_each(|listener| listener.engine.close(open.config.settings));
                    free.append(&mut open.sockets);
                }
            }
        }
        for added in prepared.added {
            let mut open = self.open(added);
            let (covered, others) =
                free.into_iter().partition(|group: &Group| covers(open.config.address, group.address));
            free = others;
            for group in covered {
                for (given, listener) in group.given.iter().zip(&open.listeners) {
                    given.send_replace(Arc::clone(listener));
                }
                open.sockets.push(group);
            }
            if let Some(group) = open.sockets.first() {
                let address = if open.config.address.port() == 0 { group.address } else { open.config.address };
                tracing::info!(%address, "listening");
            }
            state.open.push(open);
        }
        state.closing.extend(free.into_iter().map(|group| (group.address, group.is_open)));
    }

    /// Starts the threads. Whoever has connected before is served now.
    pub fn start(&self) -> io::Result<Threads> {
        let receivers = std::mem::take(&mut self.state().receivers);
        let max_pipes = self.max_pipes / self.threads.len();
        let start = |(number, (receiver, stop)): (usize, (_, &Arc<Stop>))| {
            let (stop, shutdown) = (Arc::clone(stop), self.shared.shutdown.clone());
            let most_idle = Arc::clone(&self.shared.most_idle);
            Builder::new().name(format!("traffic-{number}")).spawn(move || {
                splice::allow(max_pipes);
                thread::run(receiver, &stop, &shutdown, most_idle)
            })
        };
        let threads = receivers.into_iter().zip(self.stops.iter()).enumerate().map(start).collect::<io::Result<_>>()?;
        Ok(Threads(threads))
    }

    fn open(&self, Added { config, sockets, tls: (tls, acceptor) }: Added) -> Open {
        let acceptor = Arc::new(ArcSwapOption::new(acceptor));
        let listener = |thread| {
            let engine = Arc::new(Engine::new(&config, &self.shared, &self.stops, thread));
            Arc::new(Listener { tls: Arc::clone(&acceptor), engine })
        };
        let listeners: Vec<_> = (0..self.threads.len()).map(listener).collect();
        let address = sockets.first().and_then(|socket| socket.local_addr().ok());
        let is_open = Arc::new(());
        let given = sockets.into_iter().zip(self.threads.iter().zip(&listeners)).map(|(socket, (thread, listener))| {
            let (given, listener) = watch::channel(Arc::clone(listener));
            // Fails only when the process stops, which closes the socket.
            let _ = thread.send(Accepting { socket, listener, is_open: Arc::clone(&is_open) });
            given
        });
        let given = given.collect();
        let group = address.map(|address| Group { address, given, is_open: Arc::downgrade(&is_open) });
        Open { config, tls, acceptor, listeners, sockets: group.into_iter().collect() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Opened {
    Ready(Vec<TcpListener>),
    Bound(Bound),
}

impl State {
    /// Whether a socket of this process is in the way of `address`, as where a listener moves from 127.0.0.1 to 0.0.0.0.
    fn is_own(&self, address: SocketAddr) -> bool {
        let open = self.open.iter().flat_map(|open| &open.sockets).map(|group| group.address);
        open.chain(self.closing.iter().map(|(address, _)| *address)).any(|own| overlap(own, address))
    }
}

impl Threads {
    /// Waits until they have stopped. False: something was cut off.
    pub fn join(self) -> bool {
        // A thread that panicked has cut off what it carried.
        let finished: Vec<bool> = self.0.into_iter().map(|thread| thread.join().unwrap_or(false)).collect();
        finished.into_iter().all(|finished| finished)
    }
}

impl Prepared {
    /// The certificates that are new, or others than before: which, for whom, until when.
    pub fn certificates(&self) -> Vec<String> {
        let renewed = self.kept.iter().flatten().filter(|kept| kept.tls.is_some()).map(|kept| &kept.config);
        let added = self.added.iter().map(|added| &added.config);
        let told = |listener: &ListenerConfig| {
            let file = &listener.tls.as_ref()?.certificate;
            // It has been read a moment ago.
            let Certificate { names, not_after, .. } = certificate::load(file).ok()?.into_iter().next()?;
            let (address, file, until) = (listener.address, file.display(), certificate::date(not_after));
            Some(format!("listener {address}: certificate {file} for {}, valid until {until}", names.join(", ")))
        };
        renewed.chain(added).filter_map(told).collect()
    }
}

/// Whether two sockets would be in each other's way.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    covers(a, b) || covers(b, a)
}

/// Whether who connects to `address` reaches `listener` as well. `[::]` stands for IPv6 alone.
fn covers(listener: SocketAddr, address: SocketAddr) -> bool {
    let is_same_family = listener.is_ipv4() == address.is_ipv4();
    listener == address || (listener.port() == address.port() && is_same_family && listener.ip().is_unspecified())
}

/// Reads a certificate and its key; no acceptor where both are as `before`, so that clients can still resume sessions.
fn load(config: Option<&TlsConfig>, before: Tls) -> Result<(Tls, Option<Arc<Acceptor>>), String> {
    let Some(config) = config else { return Ok((None, None)) };
    let mut digest = Sha256::new();
    for path in [&config.certificate, &config.key] {
        let content = std::fs::read(path).map_err(|e| format!("{} cannot be read: {e}", path.display()))?;
        digest.update(Sha256::digest(&content));
    }
    let digest: [u8; 32] = digest.finalize().into();
    if before == Some(digest) {
        return Ok((Some(digest), None));
    }
    let server = tls::server_config(config)?;
    Ok((Some(digest), Some(Arc::new(Acceptor::from_server_config(Arc::new(server))))))
}
