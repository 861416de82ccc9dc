//! [`App`]: the engine behind Pingora's `ServerApp`. Pingora accepts connections and speaks TLS; everything else works
//! as with `evenkeel run`, except that content is not moved by splice.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Instant;

use anyhow::bail;
use async_trait::async_trait;
use pingora_core::apps::ServerApp;
use pingora_core::protocols::l4::socket;
use pingora_core::protocols::{ALPN, Stream};
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{Server, ShutdownWatch};
use rustix::process::{Resource, getrlimit};
use tokio::runtime::{Handle, RuntimeFlavor};

use super::head;
use super::management::{Management, Started};
use super::settings::{Host, Mode};
use crate::access_log::{AccessLog, AccessLogSpec};
use crate::config::Config;
use crate::config::advice::Subject;
use crate::config::backend::SocketAddress;
use crate::connection_limit::ConnectionLimit;
use crate::control::Control;
use crate::control::resources::{ListenerCertificate, PreparedResources, Resources, Unavailable};
use crate::exchange::headers::{Peer, TlsInfo};
use crate::http::io::Io;
use crate::http::io::accepted::Accepted;
use crate::http::stream::ClientStream;
use crate::http::{self, Engine, EngineContext, ThreadState, h2, idle};
use crate::server::resources::{ConnectionLimits, cannot_log, connection_limits, max_idle_per_thread};

/// A `ServerApp` that serves each connection by the `[[listener]]` with its local address, or else by the first one.
pub struct App {
    context: EngineContext,
    host: Host,
    started: Started,
    open_files: usize,
    /// One per thread of the service.
    thread_states: Arc<[Arc<ThreadState>]>,
    threads: Mutex<Threads>,
    is_told: AtomicBool,
}

#[derive(Default)]
struct Threads {
    /// Each thread with its index in thread_states, in the order in which they first served.
    indices: HashMap<ThreadId, usize>,
    /// By thread and the listener's address.
    engines: HashMap<(ThreadId, SocketAddress), Arc<Engine>>,
}

impl App {
    /// For a service with the number of threads in `server`. Limits on connections follow from the process's limit on
    /// open files. `Err`: the configuration requires something that is left to Pingora's server, or the server moves
    /// connections between threads.
    pub fn new(control: &Arc<Control>, server: &ServerConf) -> anyhow::Result<Self> {
        let config = &control.snapshot().config;
        let host = Host::new(Mode::Engine, server);
        host.check(config)?;
        if server.work_stealing && server.threads > 1 {
            bail!("the engine keeps a connection on one thread: set work_stealing to false in Pingora's configuration");
        }
        let access_log = Arc::new(AccessLog::new(control.metrics.access_log_lost.clone()));
        let opened = access_log.open(&AccessLogSpec::of(config));
        access_log.switch(opened.map_err(|refused| anyhow::anyhow!(cannot_log(&refused)))?);
        let threads = server.threads.max(1);
        let open_files = open_files();
        let (limit, warning) = connection_limits(&config.server, open_files);
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
        }
        let started = Started::default();
        let shutdown = started.shutdown.clone();
        let context = EngineContext {
            control: Arc::clone(control),
            access_log,
            max_idle: Arc::new(AtomicUsize::new(max_idle_per_thread(&config.server, limit, threads))),
            shutdown: shutdown.clone(),
            client_limit: ConnectionLimit::new(limit.clients),
            backend_limit: ConnectionLimit::new(limit.backends),
            handshake_limit: ConnectionLimit::for_handshakes(limit.handshakes),
        };
        let thread_states = (0..threads).map(|_| Arc::new(ThreadState::new(shutdown.clone()))).collect();
        Ok(Self {
            context,
            host,
            started,
            open_files,
            thread_states,
            threads: Mutex::default(),
            is_told: AtomicBool::new(false),
        })
    }

    /// The probes and the admin API, to be added to `server` as a service. Binds the admin API's address immediately,
    /// or, in an upgrade, as soon as the process that is replaced gives it up.
    pub fn management(&self, server: &Server) -> anyhow::Result<Management> {
        let EngineContext { control, access_log, max_idle, shutdown, client_limit, backend_limit, handshake_limit } =
            &self.context;
        let resources = AppResources {
            host: self.host,
            access_log: Arc::clone(access_log),
            client_limit: Arc::clone(client_limit),
            backend_limit: Arc::clone(backend_limit),
            handshake_limit: Arc::clone(handshake_limit),
            max_idle: Arc::clone(max_idle),
            open_files: self.open_files,
            threads: self.thread_states.len(),
        };
        let (control, client_limit) = (Arc::clone(control), Arc::clone(client_limit));
        Management::new(server, control, shutdown.clone(), client_limit, Arc::new(resources), None)
    }

    /// The engine of this thread for connections to `local`. `None`: this thread cannot serve.
    fn engine(&self, local: Option<&socket::SocketAddr>) -> Option<Arc<Engine>> {
        let snapshot = self.context.control.snapshot();
        let (listener, address) = head::listener(&snapshot.config, local)?;
        let this = thread::current().id();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = threads.engines.get(&(this, address.clone())) {
            return Some(Arc::clone(engine));
        }
        let next = threads.indices.len();
        let index = match threads.indices.entry(this) {
            Entry::Occupied(index) => *index.get(),
            Entry::Vacant(_) if next == self.thread_states.len() || !stays_on_thread() => return None,
            Entry::Vacant(index) => {
                tokio::spawn(idle::sweep_forever(Arc::clone(&self.context.max_idle)));
                *index.insert(next)
            }
        };
        let engine = Arc::new(Engine::new(listener, &self.context, &self.thread_states, index).at(address.clone()));
        threads.engines.insert((this, address.clone()), Arc::clone(&engine));
        Some(engine)
    }
}

/// How many files the process may open.
fn open_files() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX)
}

/// Whether the current task stays on its thread.
fn stays_on_thread() -> bool {
    Handle::try_current().is_ok_and(|runtime| {
        runtime.runtime_flavor() == RuntimeFlavor::CurrentThread || runtime.metrics().num_workers() == 1
    })
}

#[async_trait]
impl ServerApp for App {
    async fn process_new(self: &Arc<Self>, stream: Stream, _: &ShutdownWatch) -> Option<Stream> {
        self.started.wait().await;
        let addresses = stream.get_socket_digest();
        let local = addresses.as_ref().and_then(|addresses| addresses.local_addr());
        let client = head::peer(addresses.as_ref().and_then(|addresses| addresses.peer_addr()));
        let Some(engine) = self.engine(local) else {
            if !self.is_told.swap(true, Ordering::Relaxed) {
                tracing::error!(
                    "connections are closed: they come on more threads than the App was made for, or would move between \
                     them; give it the configuration of the server that runs it, with work_stealing set to false"
                );
            }
            return None;
        };
        let local = local.and_then(|local| local.as_inet().copied());
        let mut peer = match tls(&stream) {
            Some(tls) => Peer::with_tls(client, tls, local),
            None => Peer::new(client),
        };
        peer.local = local;
        let _permit = engine.admit().await;
        let speaks_http2 = stream.selected_alpn_proto() == Some(ALPN::H2);
        let io = Io::Accepted(Box::new(Accepted::new(stream)));
        if speaks_http2 {
            Box::pin(h2::serve(engine, io, Vec::new(), peer)).await;
        } else {
            http::serve(engine, ClientStream::Io(io), peer).await;
        }
        None
    }

    /// No connection is accepted any more. Idle connections end now, others after their current exchange.
    async fn cleanup(&self) {
        let timeout = self.context.control.snapshot().config.server.shutdown_timeout;
        self.context.shutdown.stop(Instant::now() + timeout);
        self.thread_states.iter().for_each(|thread| thread.wake_idle());
    }
}

/// What Pingora reports about a connection's TLS: without the requested name and the client certificate.
fn tls(stream: &Stream) -> Option<TlsInfo> {
    let digest = stream.get_ssl_digest()?;
    let protocol = if digest.version.contains("1_2") || digest.version.contains("1.2") { "TLSv1.2" } else { "TLSv1.3" };
    Some(TlsInfo { protocol, cipher: "", server_name: None, is_resumed: false, client: None })
}

/// What a reload changes besides the snapshot.
struct AppResources {
    host: Host,
    access_log: Arc<AccessLog>,
    client_limit: Arc<ConnectionLimit>,
    backend_limit: Arc<ConnectionLimit>,
    handshake_limit: Arc<ConnectionLimit>,
    max_idle: Arc<AtomicUsize>,
    open_files: usize,
    threads: usize,
}

impl Resources for AppResources {
    fn prepare(&self, running: &Config, wanted: &Config, _: bool) -> Result<PreparedResources, Vec<Unavailable>> {
        let mut warnings = self.host.check_reload(running, wanted)?;
        let logs = AccessLogSpec::of(wanted);
        let opened = (logs != AccessLogSpec::of(running)).then(|| self.access_log.open(&logs)).transpose();
        let opened = opened
            .map_err(|refused| vec![Unavailable { subject: Subject::AccessLog, message: cannot_log(&refused) }])?;
        let (limit, warning) = connection_limits(&wanted.server, self.open_files);
        warnings.extend(warning);
        let idle = max_idle_per_thread(&wanted.server, limit, self.threads);
        let (access_log, max_idle) = (Arc::clone(&self.access_log), Arc::clone(&self.max_idle));
        let limits = [&self.client_limit, &self.backend_limit, &self.handshake_limit].map(Arc::clone);
        let commit = move |put_in_force: &mut dyn FnMut()| {
            put_in_force();
            if let Some(opened) = opened {
                access_log.switch(opened);
            }
            let ConnectionLimits { clients, backends, handshakes } = limit;
            limits.iter().zip([clients, backends, handshakes]).for_each(|(limit, size)| limit.resize(size));
            max_idle.store(idle, Ordering::Relaxed);
        };
        Ok(PreparedResources { changes: Vec::new(), warnings, commit: Box::new(commit) })
    }

    fn certificates(&self) -> Vec<ListenerCertificate> {
        Vec::new()
    }

    fn reopen_logs(&self) {
        self.access_log.reopen();
    }
}
