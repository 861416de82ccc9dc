//! Listeners, which can be added and removed while the process runs, and the threads that serve them. Each thread has
//! its own socket at each TCP address (`SO_REUSEPORT`), its own runtime and its own connections to backends. So threads
//! share nothing but the backends' counters.

mod handshake;
mod proxy;
pub(crate) mod sockets;
#[cfg(test)]
mod tests;
mod thread;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak, mpsc};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};

use self::handshake::HandshakeStats;
use self::proxy::ProxyHeaderPolicy;
use self::sockets::{Bound, Listening, RightsChange, SocketFile, Sockets, cannot_listen};
use self::thread::{Accepting, Listener, SharedSocket};
use crate::config::advice::same_sockets;
use crate::config::backend::SocketAddress;
use crate::config::site::ListenerName;
use crate::config::tls::TlsConfig;
use crate::config::tls::material::LoadedCertificate;
use crate::config::{ListenerConfig, certificate};
use crate::control::resources::ListenerCertificate;
use crate::http::{Engine, EngineContext, ThreadState, splice};
use crate::site::Sites;
use crate::tls::server::ServerTls;
use crate::tls::server::renewal::Renewed;

/// At most this long until the next check: a reload may add listeners whose files need checking sooner.
const MAX_WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// The open listeners, and the threads that serve them.
pub(crate) struct Listeners {
    context: EngineContext,
    /// For each thread, the channel that passes sockets to it.
    threads: Vec<UnboundedSender<Accepting>>,
    thread_states: Arc<[Arc<ThreadState>]>,
    state: Mutex<State>,
    max_pipes: usize,
}

#[derive(Default)]
struct State {
    open: Vec<Open>,
    /// Listeners that no longer accept, for as long as they have connections.
    left: Vec<Open>,
    /// Addresses whose sockets are being closed.
    closing: Vec<(SocketAddress, Weak<()>)>,
    /// The receiving ends for the threads, until these are started.
    receivers: Vec<UnboundedReceiver<Accepting>>,
}

/// A listener, open at one of its addresses.
struct Open {
    config: ListenerConfig,
    /// The address as configured.
    address: SocketAddress,
    /// `None`: connections are plain.
    tls: Arc<ArcSwapOption<ServerTls>>,
    proxies: Arc<ProxyHeaderPolicy>,
    /// When the certificate files were last checked.
    looked: Instant,
    /// For each thread, the listener that serves new connections.
    listeners: Vec<Arc<Listener>>,
    sockets: Vec<Group>,
}

/// The sockets of one address. They are closed on drop.
struct Group {
    /// With the actual port, where the system chose one.
    address: SocketAddress,
    /// For each thread, the channel that names the listener for the next connections.
    given: Vec<watch::Sender<Arc<Listener>>>,
    is_open: Weak<()>,
    /// The file of a Unix socket, removed when the sockets are closed.
    file: Option<SocketFile>,
}

/// Listeners that are ready to be put in force: nothing is left to do that could fail. On drop, sockets that were
/// opened for this are closed.
pub(crate) struct Prepared {
    /// For each open listener, in order: its new configuration; `None`: it is closed.
    kept: Vec<Option<KeptListener>>,
    added: Vec<AddedListener>,
    /// Permission changes for sockets that stay open.
    rights: Vec<RightsChange>,
    /// New and changed certificates: file, names and expiry of each.
    pub certificates: Vec<String>,
    /// Default certificates that changed although no setting names another one.
    pub moved_defaults: Vec<String>,
}

struct KeptListener {
    config: ListenerConfig,
    tls: Option<Arc<ServerTls>>,
}

struct AddedListener {
    config: ListenerConfig,
    address: SocketAddress,
    /// No sockets, if it takes over those of a listener that is closed.
    listening: Listening,
    tls: Option<Arc<ServerTls>>,
}

/// Why listeners cannot be put in force.
#[derive(Debug)]
pub(crate) struct Problem {
    /// Its index in the configuration.
    pub listener: usize,
    pub message: String,
}

/// Threads that can accept, and wait to be allowed to. After a drop they end.
pub(crate) struct StartedThreads(Vec<(JoinHandle<bool>, oneshot::Sender<()>)>);

/// The threads that carry traffic.
pub(crate) struct Threads(Vec<JoinHandle<bool>>);

impl Listeners {
    /// No listeners yet. [`Self::start`] starts `threads` threads, at least one. `max_pipes`: the limit on pipes for
    /// large content on all threads together.
    pub(crate) fn new(threads: usize, context: EngineContext, max_pipes: usize) -> Self {
        let (threads, receivers): (Vec<_>, _) = (0..threads.max(1)).map(|_| unbounded_channel()).unzip();
        let thread_states = threads.iter().map(|_| Arc::new(ThreadState::new(context.shutdown.clone()))).collect();
        Self { context, threads, thread_states, state: Mutex::new(State { receivers, ..State::default() }), max_pipes }
    }

    /// Opens the addresses of `wanted` that are not open yet, taking sockets from `sockets` where it has them, and
    /// reads certificates again. `is_trial`: only check whether that is possible; no client may notice.
    pub(crate) fn prepare(
        &self,
        wanted: &[ListenerConfig],
        sockets: &mut Sockets,
        is_trial: bool,
    ) -> Result<Prepared, Vec<Problem>> {
        let mut state = self.state();
        state.closing.retain(|(_, is_open)| is_open.strong_count() > 0);
        let mut kept: Vec<Option<KeptListener>> = state.open.iter().map(|_| None).collect();
        let (mut new, mut problems) = (Vec::new(), Vec::new());
        let (mut certificates, mut moved_defaults) = (Vec::new(), Vec::new());
        problems.extend(same_sockets(wanted).map(|(listener, message)| Problem { listener, message }));
        for (index, config) in wanted.iter().enumerate() {
            let mut addresses: Vec<(&SocketAddress, Option<usize>)> = Vec::new();
            for address in config.addresses.iter() {
                let is_unused = |open_index: usize| addresses.iter().all(|(_, used)| *used != Some(open_index));
                let mut open = state.open.iter().zip(&kept).enumerate();
                let open_index = open.find_map(|(open_index, (open, kept))| {
                    let fits = kept.is_none() && open.address == *address && is_unused(open_index);
                    (fits && open.is_reachable()).then_some(open_index)
                });
                addresses.push((address, open_index));
            }
            let before = addresses.iter().find_map(|(_, open_index)| state.open.get((*open_index)?)?.tls.load_full());
            // All addresses of a listener share it, so that sessions can be resumed at each.
            let tls = match load(config.tls.as_ref(), before.as_ref()) {
                Ok(tls) => tls,
                Err(message) => {
                    problems.push(Problem { listener: index, message });
                    continue;
                }
            };
            let new_certificates = tls.iter().flat_map(|tls| tls.new_since(before.as_deref()));
            certificates.extend(new_certificates.map(|loaded| describe(config, loaded)));
            let removed = tls.iter().flat_map(|tls| tls.removed_since(before.as_deref()));
            certificates.extend(removed.map(|loaded| format!("{}: removed", describe(config, loaded))));
            let both = tls.as_ref().zip(before.as_ref());
            moved_defaults.extend(both.and_then(|(tls, before)| moved_default(config, tls, before)));
            for (address, open_index) in addresses {
                let tls = tls.clone();
                match open_index {
                    Some(open_index) => kept[open_index] = Some(KeptListener { config: config.clone(), tls }),
                    None => new.push((index, config, address, tls)),
                }
            }
        }
        let mut added = Vec::new();
        for (index, config, address, tls) in new {
            let count = self.threads.len();
            let is_closed = |(open, kept): (&Open, &Option<KeptListener>)| {
                kept.is_none() && open.sockets.iter().any(|group| group.address == *address && group.is_reachable())
            };
            let opened = if state.open.iter().zip(&kept).any(is_closed) {
                Ok(Opened::Ready(Listening::default()))
            } else if let Some(handed) = sockets.take(address, count) {
                handed.map(Opened::Ready)
            } else {
                let is_own = state.is_own(address);
                Bound::new(address, count, is_own, config.socket_file.as_ref()).map(Opened::Bound)
            };
            match opened {
                Ok(opened) => added.push((index, config, address, opened, tls)),
                Err(e) => {
                    let message = cannot_listen(address, "[[listener]] address", &e);
                    problems.push(Problem { listener: index, message });
                }
            }
        }
        let mut rights = Vec::new();
        for (open, kept) in state.open.iter().zip(&kept) {
            if let (SocketAddress::Unix(path), Some(kept)) = (&open.address, kept)
                && let Some(wanted_rights) = kept.config.socket_file.as_ref()
                && open.config.socket_file.as_ref() != Some(wanted_rights)
            {
                let listener = wanted.iter().position(|config| config.name == kept.config.name).unwrap_or(0);
                match RightsChange::new(path, wanted_rights) {
                    Ok(change) => rights.push((listener, &open.address, change)),
                    Err(e) => {
                        let message = cannot_listen(&open.address, "[[listener]] address", &e);
                        problems.push(Problem { listener, message });
                    }
                }
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        if is_trial {
            return Ok(Prepared { kept, added: Vec::new(), rights: Vec::new(), certificates, moved_defaults });
        }
        let problem = |listener: usize, address: &SocketAddress, e: &io::Error| {
            let message = cannot_listen(address, "[[listener]] address", e);
            vec![Problem { listener, message }]
        };
        let listen = |(index, config, address, opened, tls): (usize, &ListenerConfig, &SocketAddress, Opened, _)| {
            let listening = match opened {
                Opened::Ready(listening) => listening,
                Opened::Bound(bound) => bound.listen().map_err(|e| problem(index, address, &e))?,
            };
            Ok::<_, Vec<Problem>>(AddedListener { config: config.clone(), address: address.clone(), listening, tls })
        };
        for (listener, address, change) in &mut rights {
            change.give().map_err(|e| problem(*listener, address, &e))?;
        }
        // Last, since a client that has connected cannot be sent away again.
        let added = added.into_iter().map(listen).collect::<Result<_, _>>()?;
        let rights = rights.into_iter().map(|(_, _, change)| change).collect();
        Ok(Prepared { kept, added, rights, certificates, moved_defaults })
    }

    /// Puts in force what was prepared last. A removed listener stops accepting once it has accepted all clients that
    /// are connected already; its exchanges continue, and each response is the last one on its connection. If another
    /// listener covers the address, as 0.0.0.0 covers 127.0.0.1, the sockets stay open and serve that listener, so that
    /// no client is sent away.
    ///
    /// `put_in_force` puts the new snapshot in force. Connections whose clients the new settings may exclude are
    /// revoked before that, so that any thread that sees the snapshot sees the revocation, too. New connections follow
    /// the new settings, and new listeners open after it, so that no client who was admitted by weaker settings is
    /// served content that needs stricter ones. A client that connects in between gets a 421.
    pub(crate) fn commit(&self, prepared: Prepared, put_in_force: &mut dyn FnMut()) {
        let mut state = self.state();
        let state = &mut *state;
        let is_revoked = {
            let kept = prepared.kept.iter().filter_map(|kept| {
                let KeptListener { config, tls } = kept.as_ref()?;
                Some((config, tls.as_deref()))
            });
            let added = prepared.added.iter().map(|new| (&new.config, new.tls.as_deref()));
            let wanted: Vec<ListenerSpec<'_>> = kept.chain(added).collect();
            let snapshot = self.context.control.snapshot();
            state
                .left
                .retain(|open| open.is_in_use() && open.revoke_unless(open.may_be_served(&wanted, &snapshot.sites)));
            let is_revoked = |(open, kept): (&Open, &Option<KeptListener>)| match kept {
                Some(KeptListener { config, tls }) => !open.admits_same_as(config, tls.as_deref()),
                None => !open.may_be_served(&wanted, &snapshot.sites),
            };
            state.open.iter().zip(&prepared.kept).map(is_revoked).collect::<Vec<_>>()
        };
        for (open, _) in state.open.iter().zip(&is_revoked).filter(|(_, is_revoked)| **is_revoked) {
            open.revoke();
        }
        for (open, _) in state.open.iter().zip(&prepared.kept).filter(|(_, kept)| kept.is_none()) {
            open.listeners.iter().for_each(|listener| listener.engine.close(open.config.settings));
        }
        put_in_force();
        prepared.rights.into_iter().for_each(RightsChange::keep);
        let before = std::mem::take(&mut state.open);
        let (mut free, mut closed) = (Vec::new(), Vec::new());
        for ((mut open, kept), is_revoked) in before.into_iter().zip(prepared.kept).zip(is_revoked) {
            match kept {
                Some(KeptListener { config, tls }) => {
                    open.tls.store(tls);
                    open.proxies.set(config.proxy_protocol.as_ref());
                    let name = std::mem::replace(&mut open.config, config).name;
                    if name != open.config.name {
                        self.rename(&mut open);
                        closed.push(name);
                    }
                    open.looked = Instant::now();
                    if is_revoked {
                        self.replace(&mut open);
                    }
                    state.open.push(open);
                }
                None => {
                    tracing::info!(address = %open.address, "does not listen any more");
                    free.append(&mut open.sockets);
                    closed.push(open.config.name.clone());
                    if !is_revoked {
                        state.left.push(open);
                    }
                }
            }
        }
        for added in prepared.added {
            let mut open = self.open(added);
            let goes_on = |group: &Group| open.address.covers(&group.address) && group.is_reachable();
            let (covered, others) = free.into_iter().partition(goes_on);
            free = others;
            for group in covered {
                group.give(&open.listeners);
                open.sockets.push(group);
            }
            if let Some(group) = open.sockets.first() {
                let address = if open.address.port() == Some(0) { &group.address } else { &open.address };
                tracing::info!(%address, "listening");
            }
            state.open.push(open);
        }
        for name in closed.iter().filter(|name| state.open.iter().all(|open| open.config.name != **name)) {
            self.context.control.metrics.forget_listener(name.as_str());
        }
        state.closing.extend(free.into_iter().map(|group| (group.address, group.is_open)));
    }

    /// Counts new connections under the listener's current name.
    fn rename(&self, open: &mut Open) {
        let (stats, proxies) = self.counters(&open.config);
        let listener = |before: &Arc<Listener>| {
            let (proxies, stats) = (Arc::clone(&proxies), Arc::clone(&stats));
            before.engine.rename(&open.config.name);
            Arc::new(Listener { proxies, stats, ..Listener::clone(before) })
        };
        open.listeners = open.listeners.iter().map(listener).collect();
        open.sockets.iter().for_each(|group| group.give(&open.listeners));
        open.proxies = proxies;
    }

    /// Starts the threads, and waits until each can accept on each of its sockets. If one cannot, all of them have
    /// ended when this returns. The error is a message with the fix.
    pub(crate) fn start(&self) -> Result<StartedThreads, String> {
        let mut started = StartedThreads(Vec::with_capacity(self.threads.len()));
        match self.start_each(&mut started) {
            Ok(()) => Ok(started),
            Err(problem) => {
                started.end();
                Err(problem)
            }
        }
    }

    fn start_each(&self, started: &mut StartedThreads) -> Result<(), String> {
        let receivers = std::mem::take(&mut self.state().receivers);
        let count = self.threads.len();
        let max_pipes = self.max_pipes / count;
        let (sender, results) = mpsc::channel();
        for (number, (receiver, state)) in receivers.into_iter().zip(self.thread_states.iter()).enumerate() {
            let (state, shutdown) = (Arc::clone(state), self.context.shutdown.clone());
            let max_idle = Arc::clone(&self.context.max_idle);
            let (allow, may_accept) = oneshot::channel();
            let start = thread::Start { result: sender.clone(), may_accept };
            let thread = Builder::new().name(format!("traffic-{number}")).spawn(move || {
                splice::allow(max_pipes);
                thread::run(receiver, &state, &shutdown, max_idle, start)
            });
            started.0.push((thread.map_err(|e| cannot_start(count, &e))?, allow));
        }
        drop(sender);
        for _ in 0..count {
            match results.recv() {
                Ok(result) => result.map_err(|e| cannot_start(count, &e))?,
                Err(_) => return Err("a thread for traffic has ended at its start".to_owned()),
            }
        }
        Ok(())
    }

    /// Whether one thread at least accepts at each address. While a reload prepares listeners, this says yes, so that
    /// nobody waits for the disk.
    pub(crate) fn is_accepting(&self) -> bool {
        let state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return true,
        };
        state.open.iter().all(|open| !open.sockets.is_empty() && open.sockets.iter().all(Group::is_accepting))
    }

    /// Loads certificates whose files have changed, for listeners that are due. Returns when the next check is due.
    /// Reads from disk.
    pub(crate) fn renew_certificates(&self) -> Duration {
        for (config, before) in self.due() {
            let Some(wanted) = &config.tls else { continue };
            let Some(Renewed { tls: renewed, taken_up, removed, problems }) = before.renew(wanted) else { continue };
            {
                let mut state = self.state();
                let is_before =
                    |open: &&mut Open| open.tls.load().as_ref().is_some_and(|now| Arc::ptr_eq(now, &before));
                let of_listener = state.open.iter_mut().filter(|open| open.config.name == config.name);
                let mut addresses: Vec<_> = of_listener.filter(is_before).collect();
                // A reload has read the files in the meantime.
                if addresses.is_empty() {
                    continue;
                }
                let is_same = renewed.asks_same_of_clients(&before);
                for open in &mut addresses {
                    if !is_same {
                        open.revoke();
                    }
                    open.tls.store(Some(Arc::clone(&renewed)));
                    if !is_same {
                        self.replace(open);
                    }
                }
                // Their connections are served by this listener, if at all.
                let admits = |open: &Open| {
                    !config.may_succeed(&open.config.name, &open.address)
                        || open.admits_same_as(&config, Some(&renewed))
                };
                state.left.retain(|open| open.revoke_unless(admits(open)));
            }
            if let Some(warning) = moved_default(&config, &renewed, &before) {
                tracing::warn!("{warning}");
            }
            let count = |result, count: usize| {
                let renewals = &self.context.control.metrics.certificate_renewals;
                renewals.with_label_values(&[config.name.as_str(), result]).inc_by(count as u64);
            };
            count("success", taken_up.len());
            count("failure", problems.len());
            for loaded in taken_up {
                tracing::info!("a file has changed: {}", describe(&config, &loaded));
            }
            for file in removed {
                tracing::info!("listener {}: certificate {} no longer exists", config.addresses, file.display());
            }
            for problem in problems {
                tracing::warn!(
                    "listener {}: {problem}; what was in use before stays so until that is mended or the configuration is reloaded",
                    config.addresses
                );
            }
        }
        let state = self.state();
        let intervals = state.open.iter().filter_map(|open| open.config.tls.as_ref()).map(|tls| tls.watch_interval);
        intervals.filter(|interval| !interval.is_zero()).min().unwrap_or(MAX_WATCH_INTERVAL).min(MAX_WATCH_INTERVAL)
    }

    /// The listeners whose files are due for a check.
    fn due(&self) -> Vec<(ListenerConfig, Arc<ServerTls>)> {
        let (mut state, now) = (self.state(), Instant::now());
        let mut due: Vec<(ListenerConfig, Arc<ServerTls>)> = Vec::new();
        for open in &mut state.open {
            let (Some(interval), Some(tls)) =
                (open.config.tls.as_ref().map(|tls| tls.watch_interval), open.tls.load_full())
            else {
                continue;
            };
            if interval.is_zero() || now.saturating_duration_since(open.looked) < interval {
                continue;
            }
            open.looked = now;
            // All addresses of a listener share it.
            if !due.iter().any(|(config, other)| config.name == open.config.name && Arc::ptr_eq(other, &tls)) {
                due.push((open.config.clone(), tls));
            }
        }
        due
    }

    /// The certificates of each listener, and files that could not be loaded.
    pub(crate) fn certificates(&self) -> Vec<ListenerCertificate> {
        let mut listeners: Vec<(ListenerName, Arc<ServerTls>)> = Vec::new();
        for open in &self.state().open {
            let Some(tls) = open.tls.load_full() else { continue };
            // All addresses of a listener share it.
            if !listeners.iter().any(|(name, other)| *name == open.config.name && Arc::ptr_eq(other, &tls)) {
                listeners.push((open.config.name.clone(), tls));
            }
        }
        let mut found = Vec::new();
        for (listener, tls) in listeners {
            let mut problems = tls.problems();
            let mut add = |file: &Path, leaf, problem| {
                let (listener, file) = (listener.clone(), file.to_owned());
                found.push(ListenerCertificate { listener, file, leaf, problem });
            };
            for loaded in tls.certificates() {
                let file = &loaded.pair.certificate;
                add(file, Some(loaded.leaf.clone()), problems.remove(file));
            }
            problems.into_iter().for_each(|(file, problem)| add(&file, None, Some(problem)));
        }
        found
    }

    fn open(&self, AddedListener { config, address, listening, tls }: AddedListener) -> Open {
        let tls = Arc::new(ArcSwapOption::new(tls));
        let (stats, proxies) = self.counters(&config);
        let listener = |thread| {
            let (tls, proxies, stats) = (Arc::clone(&tls), Arc::clone(&proxies), Arc::clone(&stats));
            Arc::new(Listener { tls, proxies, stats, engine: self.engine(&config, &address, thread) })
        };
        let listeners: Vec<_> = (0..self.threads.len()).map(listener).collect();
        let Listening { sockets, is_shared, file } = listening;
        let bound = sockets.first().and_then(|socket| socket.address(&address));
        let is_open = Arc::new(());
        let shared = if is_shared && sockets.len() > 1 { SharedSocket::of(sockets.len()) } else { Vec::new() };
        let mut shared = shared.into_iter();
        let given = sockets.into_iter().zip(self.threads.iter().zip(&listeners)).map(|(socket, (thread, listener))| {
            let (given, listener) = watch::channel(Arc::clone(listener));
            let is_open = Arc::clone(&is_open);
            // Fails only when the process stops, which closes the socket.
            let _ = thread.send(Accepting { socket, listener, is_open, shared: shared.next() });
            given
        });
        let given = given.collect();
        let group = bound.map(|address| Group { address, given, is_open: Arc::downgrade(&is_open), file });
        let sockets = group.into_iter().collect();
        Open { config, address, tls, proxies, looked: Instant::now(), listeners, sockets }
    }

    /// Removes the files of Unix sockets, so that no new clients connect. Call this when the threads are about to stop.
    pub(crate) fn remove_files(&self) {
        for group in self.state().open.iter_mut().flat_map(|open| &mut open.sockets) {
            group.file = None;
        }
    }

    /// The counters under a listener's name.
    fn counters(&self, config: &ListenerConfig) -> (Arc<HandshakeStats>, Arc<ProxyHeaderPolicy>) {
        let (metrics, name) = (&self.context.control.metrics, config.name.as_str());
        let proxies = ProxyHeaderPolicy::new(config.proxy_protocol.as_ref(), name, metrics);
        metrics.expect_http2(name);
        (Arc::new(HandshakeStats::new(metrics.tls(name))), Arc::new(proxies))
    }

    fn engine(&self, config: &ListenerConfig, address: &SocketAddress, thread: usize) -> Arc<Engine> {
        Arc::new(Engine::new(config, &self.context, &self.thread_states, thread).at(address.clone()))
    }

    /// Makes new connections independent of those that were [revoked](Open::revoke).
    fn replace(&self, open: &mut Open) {
        let anew = |(thread, former): (usize, &Arc<Listener>)| {
            let engine = self.engine(&open.config, &open.address, thread);
            Arc::new(Listener { engine, ..Listener::clone(former) })
        };
        let listeners = open.listeners.iter().enumerate().map(anew).collect();
        open.listeners = listeners;
        open.sockets.iter().for_each(|group| group.give(&open.listeners));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Whether clients reach it at its address. The file of a Unix socket may have been removed or replaced.
    fn is_reachable(&self) -> bool {
        self.sockets.iter().all(Group::is_reachable)
    }

    /// Whether clients are connected, or about to be.
    fn is_in_use(&self) -> bool {
        let is_held = |listener: &Arc<Listener>| Arc::strong_count(listener) + Arc::strong_count(&listener.engine) > 2;
        self.listeners.iter().any(is_held)
    }

    /// Closes the connections made so far after their current exchange, including those not accepted yet.
    fn revoke(&self) {
        tracing::info!(
            address = %self.address,
            "other clients may connect now: connections that were made before end with what they carry"
        );
        self.listeners.iter().for_each(|listener| listener.engine.revoke());
    }

    /// Like [`Self::revoke`], unless `stays` is true. Returns `stays`.
    fn revoke_unless(&self, stays: bool) -> bool {
        if !stays {
            self.revoke();
        }
        stays
    }

    /// Whether clients of this closed listener may still be served under `wanted`. If the listener has moved, they are
    /// served as clients of the listener with its name or with an overlapping address ([`Sites::listener`]), provided
    /// that one demands the same of clients. If it was removed, they get only what every listener serves: one of them
    /// must demand the same, and the removed listener must not have had sites of its own.
    fn may_be_served(&self, wanted: &[ListenerSpec<'_>], before: &Sites) -> bool {
        let admits = |(config, tls): &ListenerSpec<'_>| self.admits_same_as(config, *tls);
        let may_succeed = |(config, _): &&ListenerSpec<'_>| config.may_succeed(&self.config.name, &self.address);
        let mut successors = wanted.iter().filter(may_succeed).peekable();
        if successors.peek().is_some() {
            return successors.all(admits);
        }
        let index = before.listener(&self.address, || &self.config.name);
        wanted.iter().any(admits) && !index.is_some_and(|index| before.has_own(index))
    }

    /// Whether every client that is connected here could also connect under the other settings, with the same demands.
    fn admits_same_as(&self, config: &ListenerConfig, tls: Option<&ServerTls>) -> bool {
        let is_same_tls = match (self.tls.load().as_deref(), tls) {
            (Some(before), Some(now)) => now.asks_same_of_clients(before),
            (before, now) => before.is_none() && now.is_none(),
        };
        is_same_tls && self.config.proxy_protocol == config.proxy_protocol
    }
}

/// A configured listener and its TLS.
type ListenerSpec<'a> = (&'a ListenerConfig, Option<&'a ServerTls>);

enum Opened {
    Ready(Listening),
    Bound(Bound),
}

impl Group {
    /// Whether a thread accepts on one of the sockets, or is about to.
    fn is_accepting(&self) -> bool {
        self.is_open.strong_count() > 0
    }

    fn is_reachable(&self) -> bool {
        self.file.as_ref().is_none_or(SocketFile::is_there)
    }

    /// Lets these listeners, one for each thread, serve new connections.
    fn give(&self, listeners: &[Arc<Listener>]) {
        for (given, listener) in self.given.iter().zip(listeners) {
            given.send_replace(Arc::clone(listener));
        }
    }
}

impl State {
    /// Whether a socket of this process blocks `address`, for example when a listener moves from 127.0.0.1 to 0.0.0.0.
    fn is_own(&self, address: &SocketAddress) -> bool {
        let open = self.open.iter().flat_map(|open| &open.sockets).map(|group| &group.address);
        open.chain(self.closing.iter().map(|(address, _)| address)).any(|own| own.overlaps(address))
    }
}

impl StartedThreads {
    /// Lets the threads accept. Clients that have connected before are served now.
    pub(crate) fn accept(self) -> Threads {
        let accept = |(thread, allow): (JoinHandle<bool>, oneshot::Sender<()>)| {
            // An error means that the thread has ended, which its handle tells.
            let _ = allow.send(());
            thread
        };
        Threads(self.0.into_iter().map(accept).collect())
    }

    /// Ends the threads, and waits for that.
    fn end(self) {
        for (thread, allow) in self.0 {
            drop(allow);
            // One that panicked has ended as well.
            let _ = thread.join();
        }
    }
}

impl Threads {
    /// Waits until the threads have stopped. False: exchanges were cut off.
    pub(crate) fn join(self) -> bool {
        // A thread that panicked has cut off its exchanges.
        let finished: Vec<bool> = self.0.into_iter().map(|thread| thread.join().unwrap_or(false)).collect();
        finished.into_iter().all(|finished| finished)
    }
}

fn cannot_start(threads: usize, error: &io::Error) -> String {
    let fix = sockets::fix_of_limit(error).map(|fix| format!("{fix}, or ")).unwrap_or_default();
    format!("not all of the {threads} threads for traffic can be started ({error}): {fix}lower [server] threads")
}

/// A message, if the default certificate has changed although no setting says so: clients without SNI, or with a name
/// that no certificate matches, get another certificate than before.
fn moved_default(listener: &ListenerConfig, tls: &ServerTls, before: &ServerTls) -> Option<String> {
    let (was, is) = tls.moved_default(listener.tls.as_ref()?, before)?;
    let [was, is] =
        [was, is].map(|loaded| format!("{} for {}", loaded.pair.certificate.display(), loaded.leaf.names.join(", ")));
    Some(format!(
        "listener {}: the default certificate is {is} now, and was {was}: it is the first of the folder by the name of its \
         file; write default = \"FILE\" beside certificates to choose one",
        listener.addresses
    ))
}

/// The file, names and expiry of a certificate of a listener.
fn describe(listener: &ListenerConfig, loaded: &LoadedCertificate) -> String {
    let (addresses, file) = (&listener.addresses, loaded.pair.certificate.display());
    let (names, until) = (loaded.leaf.names.join(", "), certificate::date(loaded.not_after()));
    format!("listener {addresses}: certificate {file} for {names}, valid until {until}")
}

/// Reads the TLS files of a listener. Returns `before` if nothing has changed, so that clients can still resume
/// sessions.
fn load(config: Option<&TlsConfig>, before: Option<&Arc<ServerTls>>) -> Result<Option<Arc<ServerTls>>, String> {
    let Some(config) = config else { return Ok(None) };
    ServerTls::load(config, before).map(Some)
}
