//! Deterministic simulation of the engine: scripted clients and backends, a network in memory and simulated time. A
//! seed decides the schedule: which task runs next, how many bytes an operation moves, which faults are injected.
//! Invariants are checked during the run and after it. Tests with real sockets cover only a few of these schedules.
//!
//! A run uses one thread, and the same seed gives the same run. [`history`] records what each side did; [`client`],
//! [`http2`] and [`backend`] are the actors; [`operator`] changes the configuration meanwhile; [`executor`] schedules
//! the tasks; [`wire`] is the actors' own HTTP/1.1; [`checks`] has the invariants. CONTRIBUTING.md says how to run more schedules, and what to do with
//! a seed that fails.

mod backend;
mod checks;
mod client;
mod executor;
mod history;
mod http2;
mod operator;
mod random;
pub(crate) mod tls;
mod wire;

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZero;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use crate::access_log::AccessLog;
use crate::clock::{self, simulated};
use crate::config::algorithm::Algorithm;
use crate::config::{BackendConfig, Config, HalfClose};
use crate::connection_limit::ConnectionLimit;
use crate::control::{ChangeRequest, Control};
use crate::exchange::headers::Peer;
use crate::http::io::Io;
use crate::http::io::pipe::{self, Connecting, Link, LinkConditions, Pipe};
use crate::http::stream::ClientStream;
use crate::http::{self, Engine, EngineContext, ThreadState, idle};
use crate::metrics::Metrics;
use crate::plant::{self, Bug};
use crate::shutdown::Shutdown;
use backend::BackendProfile;
use checks::{check_end_state, check_is_active, check_quiescence, record_backends};
use executor::{TaskKind, spawn};
use history::{
    ClientFault, Coverage, Exchange, Framing, PlannedRequest, Route, Signal, cover, record_fault, report_violation,
};
use random::{below, between, milliseconds, one_in, pick, size};
use wire::Sips;

/// The longest that a run may take in simulated time, even if many of its waits end only by their time limits.
const MAX_RUN_TIME: Duration = Duration::from_secs(30 * 60);

/// The balancer under test.
struct Balancer {
    control: Arc<Control>,
    engine: Arc<Engine>,
    client_limit: Arc<ConnectionLimit>,
    backend_limit: Arc<ConnectionLimit>,
    thread: Arc<ThreadState>,
    shutdown: Shutdown,
    /// One backend is configured by its name, [`NAME`].
    has_name: bool,
    is_tls: bool,
    are_backends_tls: bool,
    stop_timeout: Rc<Signal>,
}

/// The result of one run.
struct Run {
    violation: Option<String>,
    coverage: u64,
    trace: String,
}

/// The sizes of a run, chosen together so that small windows do not make it long.
#[derive(Clone, Copy)]
struct Scale {
    max_content: u64,
    max_write: u64,
    windows: (u64, u64),
    operations: (u64, u64),
}

const SCALES: [Scale; 4] = [
    Scale { max_content: 120, max_write: 30, windows: (8, 200), operations: (1, 64) },
    Scale { max_content: 3_000, max_write: 700, windows: (200, 4_000), operations: (50, 2_000) },
    Scale { max_content: 40_000, max_write: 8_000, windows: (2_000, 70_000), operations: (1_000, 100_000) },
    Scale { max_content: 250_000, max_write: 60_000, windows: (16_000, 200_000), operations: (16_000, 200_000) },
];

impl Scale {
    fn conditions(self) -> LinkConditions {
        let logarithmic = |(min, max): (u64, u64)| (min + size(max - min)) as usize;
        LinkConditions {
            window: logarithmic(self.windows),
            max_operation: logarithmic(self.operations),
            delay_one_in: pick(&[0, 0, 3, 20]),
        }
    }
}

fn address(backend: u64) -> String {
    format!("10.0.0.{backend}:80")
}

/// The backend, in one run of four, whose name resolves to changing addresses.
const NAME: &str = "web:80";
/// The addresses that it may resolve to.
const NAME_TARGETS: RangeInclusive<u64> = 11..=13;

/// Runs the schedule that `seed` determines.
fn run(seed: u64, traces: bool) -> Run {
    simulated::enter(seed);
    history::open(traces);
    idle::clear();
    http::buffers::clear();
    pipe::set_tracer(traces.then_some(|line| history::trace(|| line)));
    // A panic is a violation like any other. No state that it leaves behind outlives the run.
    let outcome = catch_unwind(AssertUnwindSafe(|| scenario(seed)));
    pipe::set_network(None);
    pipe::set_observer(None);
    simulated::set_spawner(None);
    pipe::set_tracer(None);
    idle::clear();
    if let Err(panic) = outcome {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
        report_violation(format!("a panic: {message}"));
    }
    simulated::leave();
    Run {
        violation: history::take_violation(),
        coverage: history::with(|history| history.coverage),
        trace: history::take_trace(),
    }
}

thread_local! {
    /// Shared by all runs of a thread: a run compares counts before and after.
    static METRICS: Arc<Metrics> = Arc::new(Metrics::new());
    static CONFIG: Config = {
        let own = |route: Route| {
            let body = "x".repeat(route.local_bytes().unwrap_or_default() as usize);
            format!("[[site.route]]\npath = \"{}\"\nrespond = {{ status = 418, body = \"{body}\" }}\n", route.prefix())
        };
        let text = "[[listener]]\naddress = \"127.0.0.1:0\"\n[state]\npersist = false\n\
                    [[pool]]\nname = \"app\"\nbackends = [\"10.0.0.1:80\"]\n[pool.probe]\npath = \"/\"\n\
                    [[site]]\nhosts = [\"\"]\n\
                    [[site.route]]\npath = \"/\"\npool = \"app\"\n\
                    [[site.route]]\npath = \"/paged\"\npool = \"app\"\nintercept_errors = true\n\
                    [site.route.error_pages]\n500 = { text = \"a page\" }\n503 = { path = \"again\", status = \"page\" }\n\
                    [[site.route]]\nname = \"again\"\npool = \"app\"\n"
            .to_owned()
            + &own(Route::Local)
            + &own(Route::LocalLarge);
        crate::config::toml::read(&text, Path::new("/evenkeel.toml"))
            .unwrap_or_else(|problems| panic!("{:?}", problems.iter().map(|p| &p.message).collect::<Vec<_>>()))
    };
}

fn config(backends: u64, scale: Scale, allows_faults: bool) -> Config {
    let mut config = CONFIG.with(Clone::clone);
    let limit = || milliseconds(1_000, 9_000);
    let listener = &mut config.listeners[0].settings;
    listener.keepalive_timeout = limit();
    listener.header_timeout = limit();
    listener.body_timeout = limit();
    listener.send_timeout = limit();
    listener.lingering_time = limit();
    listener.lingering_timeout = limit();
    listener.min_rate = if one_in(2) { NonZero::new(240) } else { None };
    listener.half_close = if one_in(4) { HalfClose::Answer } else { HalfClose::Cancel };
    listener.max_body_bytes = if allows_faults && one_in(10) { Some(scale.max_content / 2) } else { None };
    let pool = &mut config.pools[0];
    pool.algorithm = pick(&Algorithm::ALL);
    let template = pool.backends[0].clone();
    pool.backends = (1..=backends)
        .map(|n| BackendConfig { address: address(n).parse().expect("an address"), ..template.clone() })
        .collect();
    let settings = &mut pool.settings;
    settings.connect_timeout = limit();
    settings.response_timeout = limit();
    settings.continue_timeout = limit();
    settings.read_timeout = limit();
    settings.write_timeout = limit();
    settings.tunnel_timeout = limit();
    settings.idle_timeout = limit();
    settings.retry_timeout = limit();
    settings.retries = below(4) as usize;
    settings.retry_body_bytes = pick(&[0, 100, 5_000, 65_536]);
    settings.ejection.consecutive_failures = between(1, 5) as u32;
    if one_in(2) {
        settings.probe = None;
    }
    config
}

fn scenario(seed: u64) {
    let scale = pick(&[SCALES[0], SCALES[0], SCALES[1], SCALES[1], SCALES[1], SCALES[2], SCALES[2], SCALES[3]]);
    let backends = between(1, 3);
    // In some runs clients, or backends, or both are free of faults, so that no failure is excused by them.
    let clients_fail = one_in(2);
    let backends_fail = one_in(2);
    let mut config = config(backends, scale, clients_fail);
    // Derived from the seed without drawing from the generator, so that the schedules of older seeds stay the same.
    let has_name = simulated::mixed(seed.wrapping_add(1)).is_multiple_of(4);
    if has_name {
        let template = config.pools[0].backends[0].clone();
        config.pools[0].backends.push(BackendConfig { address: NAME.parse().expect("an address"), ..template });
    }
    // Likewise.
    let are_backends_tls = seed % 6 == 1 && scale.max_content > 1_000;
    if are_backends_tls {
        config.pools[0].settings.transport.tls = Some(tls::to_backends());
    }
    let has_limits = seed % 5 == 2;
    if has_limits {
        for (number, backend) in (1..).zip(&mut config.pools[0].backends) {
            backend.max_connections = NonZero::new(number);
        }
    }
    history::trace(|| format!("listener: {:?}\npool: {:?}", config.listeners[0], config.pools[0].settings));
    let half_close = config.listeners[0].settings.half_close;
    let max_body = config.listeners[0].settings.max_body_bytes;
    let control = Arc::new(Control::new(Path::new("/evenkeel.toml"), config, METRICS.with(Arc::clone)));
    let has_few_places = one_in(8);
    let client_limit = ConnectionLimit::new(if has_few_places { between(1, 3) as usize } else { 1000 });
    let backend_limit = ConnectionLimit::new(100_000);
    let shutdown = Shutdown::new();
    shutdown.run();
    let thread = Arc::new(ThreadState::new(shutdown.clone()));
    let max_idle = pick(&[0, 1, 64, 64, 64]);
    let context = EngineContext {
        control: Arc::clone(&control),
        access_log: Arc::new(AccessLog::new(METRICS.with(|metrics| metrics.access_log_lost.clone()))),
        max_idle: Arc::new(AtomicUsize::new(max_idle)),
        shutdown: shutdown.clone(),
        client_limit: Arc::clone(&client_limit),
        backend_limit: Arc::clone(&backend_limit),
        handshake_limit: ConnectionLimit::for_handshakes(1),
    };
    let engine =
        Arc::new(Engine::new(&control.snapshot().config.listeners[0], &context, &Arc::from([Arc::clone(&thread)]), 0));
    let is_tls = one_in(10) && scale.max_content > 1_000;
    history::trace(|| format!("TLS with clients: {is_tls}, with backends: {are_backends_tls}"));
    let balancer = Rc::new(Balancer {
        control,
        engine,
        client_limit,
        backend_limit,
        thread,
        shutdown,
        has_name,
        is_tls,
        are_backends_tls,
        stop_timeout: Rc::default(),
    });
    record_backends(&balancer);
    if has_name {
        operator::resolve(&balancer);
    }

    // Derived from the seed, as above. The number is one that gives no older seed long pauses.
    let has_long_pauses = simulated::mixed(seed.wrapping_add(121)).is_multiple_of(4);
    let profiles: Vec<BackendProfile> = (0..=backends + 2)
        .map(|_| BackendProfile {
            request_fault_one_in: if backends_fail { pick(&[0, 2, 4, 8]) } else { 0 },
            connect_fault_one_in: if backends_fail { pick(&[0, 0, 2, 6]) } else { 0 },
            closes_idle: one_in(4),
            patience: has_long_pauses.then(|| milliseconds(5, 600)),
            max_content: scale.max_content,
            max_write: scale.max_write,
        })
        .collect();
    pipe::set_network(Some(network(&balancer, profiles, scale)));
    let watching = Rc::downgrade(&balancer);
    pipe::set_observer(Some(Box::new(move |link| {
        if let Some(balancer) = watching.upgrade() {
            check_is_active(&balancer, link.tag);
        }
    })));
    let spawning = Rc::downgrade(&balancer);
    simulated::set_spawner(Some(Box::new(move |task| {
        if let Some(balancer) = spawning.upgrade() {
            spawn(TaskKind::Balancer, until_stop_timeout(balancer, task));
        }
    })));
    for client in 0..between(1, 4) {
        let delay = if one_in(2) { Duration::ZERO } else { milliseconds(0, 30) };
        let plan = |turn| {
            // Derived from the seed, as above.
            let sips = Sips::drawn(simulated::mixed(seed.wrapping_add(1000 + 10 * client + turn)));
            match !is_tls && one_in(4) {
                true => Plan::Http2(http2_plan(seed, scale, clients_fail, max_body, sips)),
                false => Plan::Http1(client_plan(scale, clients_fail, half_close, max_body, sips)),
            }
        };
        let plans = (0..between(1, 2)).map(plan).collect();
        spawn(TaskKind::Actor, run_client(Rc::clone(&balancer), client, delay, plans, scale, has_long_pauses));
    }
    let changes = one_in(3);
    if changes {
        spawn(TaskKind::Actor, operator::changes(Rc::clone(&balancer), between(1, 8), backends));
    }
    let stops = one_in(6);
    if stops {
        spawn(TaskKind::Background, operator::stop(Rc::clone(&balancer)));
    }
    history::with(|history| {
        history.is_meant_to_be_calm =
            !(clients_fail || backends_fail || has_long_pauses || has_few_places || changes || stops);
        history.has_limits = has_limits;
    });
    spawn(TaskKind::Background, operator::housekeeping(Rc::clone(&balancer)));
    let end = executor::run(MAX_RUN_TIME, || check_quiescence(&balancer));
    check_end_state(&balancer, end);
}

/// What one connection of a client is to do.
enum Plan {
    Http1(client::Plan),
    Http2(http2::Plan),
}

/// Runs a client's connections, one after the other.
async fn run_client(
    balancer: Rc<Balancer>,
    number: u64,
    delay: Duration,
    plans: Vec<Plan>,
    scale: Scale,
    has_long_pauses: bool,
) {
    clock::sleep(delay).await;
    for (turn, plan) in plans.into_iter().enumerate() {
        if balancer.thread.is_stopping() {
            return;
        }
        let (balancer_pipe, actor_pipe) = Pipe::pair(format!("c{number}.{turn}"), 0, scale.conditions());
        let link = Arc::clone(actor_pipe.link());
        history::with(|history| {
            let requests = match &plan {
                Plan::Http1(plan) => &plan.requests,
                Plan::Http2(plan) => &plan.requests,
            };
            for request in requests {
                history.exchanges[request.id as usize].client = Some(Arc::clone(&link));
            }
            history.links.push(link);
        });
        spawn(TaskKind::Balancer, serve(Rc::clone(&balancer), balancer_pipe));
        match plan {
            Plan::Http1(plan) => {
                let tls = balancer.is_tls.then(tls::Tls::client);
                let connection = wire::Connection::sipping(actor_pipe, tls, plan.sips.clone());
                if has_long_pauses {
                    // Shorter than every time limit, with all short pauses.
                    connection.will_pause(milliseconds(100, 700));
                }
                client::run(plan, connection).await;
            }
            Plan::Http2(plan) => http2::run(plan, actor_pipe).await,
        }
    }
}

/// Serves an accepted connection as the balancer's listeners do.
async fn serve(balancer: Rc<Balancer>, pipe: Pipe) {
    let link = Arc::clone(pipe.link());
    let serving = async {
        let permit = balancer.engine.admit().await;
        let peer = Peer::from(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1 + below(4) as u8)));
        let io = if balancer.is_tls {
            let handshake = tls::ACCEPTOR.accept(Io::Pipe(pipe));
            let Ok(Ok(tls)) = clock::timeout(Duration::from_secs(10), handshake).await else {
                return;
            };
            Io::Tls(Box::new(tls.into()))
        } else {
            Io::Pipe(pipe)
        };
        http::serve(Arc::clone(&balancer.engine), ClientStream::Io(io), peer).await;
        drop(permit);
    };
    let mut serving = pin!(serving);
    let mut stop_timeout = pin!(balancer.stop_timeout.until(|| history::with(|history| history.has_stop_timed_out)));
    let shed = &balancer.control.metrics.client_connections_shed;
    poll_fn(|cx| {
        if stop_timeout.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let before = shed.get();
        ready!(serving.as_mut().poll(cx));
        if shed.get() > before {
            record_shedding(&link);
        }
        Poll::Ready(())
    })
    .await;
}

/// Runs a task of the balancer, and drops it when the stop times out.
async fn until_stop_timeout(balancer: Rc<Balancer>, task: impl Future<Output = ()>) {
    let (mut task, mut stop_timeout) =
        (pin!(task), pin!(balancer.stop_timeout.until(|| history::with(|history| history.has_stop_timed_out))));
    poll_fn(|cx| if stop_timeout.as_mut().poll(cx).is_ready() { Poll::Ready(()) } else { task.as_mut().poll(cx) })
        .await;
}

/// Records that the balancer closed this connection to make room for others.
fn record_shedding(link: &Arc<Link>) {
    cover(Coverage::Shed);
    let read = link.flow(1).read;
    history::with(|history| {
        for exchange in &mut history.exchanges {
            let is_on_it = exchange.client.as_ref().is_some_and(|client| Arc::ptr_eq(client, link));
            if is_on_it {
                // Now: a client that writes the rest to the closed connection takes that for the end of its request.
                exchange.was_shed_early = Some(read < exchange.request_end);
            }
        }
    });
}

fn client_plan(scale: Scale, may_fail: bool, half_close: HalfClose, max_body: Option<u64>, sips: Sips) -> client::Plan {
    let count = between(1, 4);
    let reads_late = one_in(5);
    let mut is_at_fault = false;
    let requests: Vec<_> = (0..count)
        .map(|n| {
            let mut request = random_request(scale, may_fail, n + 1 == count);
            // A client that waits for a 100 has to read it.
            request.expects_continue &= !reads_late;
            if max_body.is_some_and(|max| request.size > max) {
                // The request is refused, and the requests behind it are lost with the connection.
                is_at_fault = true;
            }
            record_request(&mut request, is_at_fault, reads_late, false);
            request
        })
        .collect();
    // Who waits for a 100 has to read it in time.
    let may_sip = !reads_late && requests.iter().all(|request| !request.expects_continue);
    client::Plan {
        requests,
        is_pipelined: one_in(4),
        reads_late,
        keeps_open: one_in(4),
        sips: if may_sip { sips } else { Sips::default() },
        max_write: scale.max_write,
        half_close,
    }
}

fn http2_plan(seed: u64, scale: Scale, may_fail: bool, max_body: Option<u64>, sips: Sips) -> http2::Plan {
    let requests = (0..between(1, 6)).map(|n| {
        let mut request = random_request(scale, may_fail, false);
        // These faults exist only in HTTP/1.1.
        while matches!(request.fault, ClientFault::HalfCloses | ClientFault::BadHead | ClientFault::BadChunk) {
            request = random_request(scale, may_fail, false);
        }
        (request.is_http10, request.closes) = (false, false);
        // Derived from the seed, as above.
        let drawn = simulated::mixed(seed.wrapping_add(2 + n));
        if request.method == "GET" && request.fault == ClientFault::None && drawn.is_multiple_of(3) {
            (request.upgrades, request.route, request.size) = (true, Route::Proxy, (drawn >> 32) % scale.max_content);
        }
        let is_at_fault = max_body.is_some_and(|max| request.size > max);
        record_request(&mut request, is_at_fault, false, true);
        request
    });
    let requests: Vec<_> = requests.collect();
    // Who sends content has to read in time that windows are opened.
    let sips = if requests.iter().all(|request| request.size == 0) { sips } else { Sips::default() };
    http2::Plan { requests, keeps_open: one_in(4), sips, max_write: scale.max_write }
}

/// Adds a request to the history and sets its id.
fn record_request(request: &mut PlannedRequest, is_client_at_fault: bool, reads_late: bool, is_stream: bool) {
    history::with(|history| {
        request.id = history.exchanges.len() as u32;
        history.exchanges.push(Exchange {
            request: request.clone(),
            attempts: Vec::new(),
            is_client_at_fault,
            is_followed: false,
            was_shed_early: None,
            reads_late,
            response: None,
            written: 0,
            downloaded: 0,
            request_end: if is_stream { 0 } else { u64::MAX },
            client: None,
            is_stream,
            is_awaiting: false,
            current: None,
        });
    });
}

fn random_request(scale: Scale, may_fail: bool, is_last: bool) -> PlannedRequest {
    let mut method = pick(&["GET", "GET", "GET", "HEAD", "POST", "POST", "PUT", "PUT"]);
    let is_http10 = one_in(8);
    let has_content = matches!(method, "POST" | "PUT");
    let framing = match (has_content, is_http10) {
        (false, _) => Framing::None,
        (true, true) => Framing::Length,
        (true, false) => pick(&[Framing::Length, Framing::Chunked]),
    };
    let upgrades = method == "GET" && !is_http10 && is_last && one_in(5);
    let size = if has_content || upgrades { size(scale.max_content) } else { 0 };
    let fault = if may_fail && one_in(4) {
        let fault = pick(&[
            ClientFault::StallsWhileSending,
            ClientFault::StallsWhileReading,
            ClientFault::ClosesWhileSending,
            ClientFault::ClosesWhileReading,
            ClientFault::ResetsWhileSending,
            ClientFault::ResetsWhileReading,
            ClientFault::HalfCloses,
            ClientFault::BadHead,
            ClientFault::BadChunk,
        ]);
        if fault == ClientFault::BadChunk && framing != Framing::Chunked {
            ClientFault::StallsWhileSending
        } else {
            fault
        }
    } else {
        ClientFault::None
    };
    if fault == ClientFault::BadHead {
        // The balancer cannot read the method, so that it does not know whether the response has content.
        method = "GET";
    }
    let route = match has_content || upgrades {
        _ if fault == ClientFault::BadHead => Route::Proxy,
        _ if !upgrades && one_in(10) => {
            pick(if scale.max_content > 10_000 { &[Route::Local, Route::LocalLarge] } else { &[Route::Local] })
        }
        false if one_in(6) => Route::ErrorPages,
        _ => Route::Proxy,
    };
    PlannedRequest {
        id: 0,
        route,
        method,
        is_http10,
        framing,
        size,
        expects_continue: has_content && !is_http10 && size > 0 && one_in(6),
        closes: is_http10 && one_in(2) || one_in(8),
        upgrades,
        fault,
        fault_at: if one_in(3) { 0 } else { below(scale.max_content) },
    }
}

/// Connects to the backends: refuses, drops or accepts connections as their profiles say.
fn network(
    balancer: &Rc<Balancer>,
    profiles: Vec<BackendProfile>,
    scale: Scale,
) -> Box<dyn Fn(SocketAddr) -> Connecting> {
    let balancer = Rc::downgrade(balancer);
    let count = AtomicU64::new(0);
    Box::new(move |address| {
        let IpAddr::V4(ip) = address.ip() else { return Box::pin(async { Err(io::ErrorKind::NotFound.into()) }) };
        let backend = usize::from(ip.octets()[3]);
        let mut is_tls = false;
        if let Some(balancer) = balancer.upgrade() {
            check_is_active(&balancer, backend);
            is_tls = balancer.are_backends_tls;
        }
        let profile = profiles[backend % profiles.len()];
        let number = count.fetch_add(1, Ordering::Relaxed);
        let refusal = (profile.connect_fault_one_in > 0 && one_in(profile.connect_fault_one_in)).then(|| below(3));
        let delay = if one_in(2) { Duration::ZERO } else { Duration::from_micros(below(2000)) };
        let conditions = scale.conditions();
        if refusal.is_some() {
            record_fault(backend);
        }
        Box::pin(async move {
            clock::sleep(delay).await;
            match refusal {
                Some(0) => return Err(io::Error::from_raw_os_error(rustix::io::Errno::CONNREFUSED.raw_os_error())),
                Some(1) => return Err(io::Error::from_raw_os_error(rustix::io::Errno::HOSTUNREACH.raw_os_error())),
                Some(_) => std::future::pending().await,
                None => {}
            }
            let (balancer_pipe, actor_pipe) = Pipe::pair(format!("b{backend}.{number}"), backend, conditions);
            history::with(|history| history.links.push(Arc::clone(actor_pipe.link())));
            spawn(TaskKind::Actor, backend::run(backend, actor_pipe, is_tls, profile));
            Ok(balancer_pipe)
        })
    })
}

/// Waits, without reading or writing, until the balancer has closed its side of a connection.
async fn wait_for_close(link: &Link, balancer_side: usize) {
    while link.flow(1 - balancer_side).is_open {
        clock::sleep(Duration::from_millis(500)).await;
    }
}

/// Seeds that once failed. Each test run repeats them, and runs some ordinary ones.
const SEEDS: &str = include_str!("simulation/seeds.txt");
const ORDINARY_SEEDS: u64 = 400;
/// Each planted bug has to be found within this many schedules.
const MAX_SCHEDULES_PER_BUG: u64 = 5_000;
/// Bugs that only `make simulate` plants, since they need more schedules: a response of unknown length for a client of
/// HTTP/1.0 has to be in progress when the stop times out; a client under TLS has to shut its side down before it has
/// read the end of the last response; a client of HTTP/2 has to read for two seconds more when its connection has to
/// close, and to send a request meanwhile.
const RARE_BUGS: [Bug; 3] = [Bug::CleanCutOff, Bug::HeldIsIdle, Bug::LostAlert];
const MAX_SCHEDULES_PER_RARE_BUG: u64 = 500_000;

fn replay(seed: u64, what: &str) -> String {
    let again = run(seed, true);
    format!(
        "{}\nseed {seed}: {what}\nagain: {:?}\nmake simulate SEED={seed}",
        again.trace,
        again.violation.unwrap_or_else(|| "NOT REPRODUCED".to_owned())
    )
}

#[test]
fn every_seed_that_ever_failed_and_many_others_hold() {
    let known =
        SEEDS.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split(' ').next()?.parse().ok());
    let mut coverage = 0;
    for seed in known.chain(0..ORDINARY_SEEDS) {
        let run = run(seed, false);
        coverage |= run.coverage;
        if let Some(violation) = run.violation {
            panic!("{}", replay(seed, &violation));
        }
    }
    let missing: Vec<_> = Coverage::ALL.into_iter().filter(|&one| coverage & (1 << one as u32) == 0).collect();
    assert!(missing.is_empty(), "no schedule covers {missing:?}");
}

#[test]
fn a_seed_gives_the_same_schedule_again() {
    for seed in 0..40 {
        let (first, second) = (run(seed, true), run(seed, true));
        assert_eq!(first.trace, second.trace, "seed {seed}");
    }
}

/// An engine outside of a run.
fn alone() -> (Arc<Control>, Arc<Metrics>, Arc<Engine>) {
    let metrics = Arc::new(Metrics::new());
    let mut config = CONFIG.with(Clone::clone);
    config.pools[0].settings.probe = None;
    let control = Arc::new(Control::new(Path::new("/evenkeel.toml"), config, Arc::clone(&metrics)));
    let shutdown = Shutdown::new();
    shutdown.run();
    let context = EngineContext {
        control: Arc::clone(&control),
        access_log: Arc::new(AccessLog::new(metrics.access_log_lost.clone())),
        max_idle: Arc::new(AtomicUsize::new(8)),
        shutdown: shutdown.clone(),
        backend_limit: ConnectionLimit::new(100_000),
        handshake_limit: ConnectionLimit::for_handshakes(1),
        client_limit: ConnectionLimit::new(1),
    };
    let thread = Arc::new(ThreadState::new(shutdown));
    let engine = Arc::new(Engine::new(&control.snapshot().config.listeners[0], &context, &Arc::from([thread]), 0));
    (control, metrics, engine)
}

/// Writes all of `bytes`, which fit into the window.
fn write(pipe: &Pipe, mut bytes: &[u8]) {
    let mut cx = Context::from_waker(Waker::noop());
    while let (false, Poll::Ready(written)) = (bytes.is_empty(), pipe.write(&mut cx, bytes)) {
        bytes = &bytes[written.expect("an open connection")..];
    }
}

const ROOMY: LinkConditions = LinkConditions { window: 4096, max_operation: 4096, delay_one_in: 0 };

/// A client's end of a connection, and the future that serves it.
fn connect(engine: Arc<Engine>, conditions: LinkConditions) -> (Pipe, Pin<Box<impl Future<Output = ()>>>) {
    let (balancer_pipe, client) = Pipe::pair("c".to_owned(), 0, conditions);
    let peer = Peer::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
    (client, Box::pin(http::serve(engine, ClientStream::Io(Io::Pipe(balancer_pipe)), peer)))
}

/// The backends' ends of all connections from now on, until the network is set again.
fn record_connections() -> Rc<RefCell<Vec<Pipe>>> {
    let backends: Rc<RefCell<Vec<Pipe>>> = Rc::default();
    let connected = Rc::clone(&backends);
    pipe::set_network(Some(Box::new(move |_| {
        let (balancer_pipe, backend) = Pipe::pair("b".to_owned(), 0, ROOMY);
        connected.borrow_mut().push(backend);
        Box::pin(std::future::ready(Ok(balancer_pipe)))
    })));
    backends
}

// A connection was taken before the other tasks of the thread had their turn. What it brought meanwhile was the answer.
#[test]
fn an_idle_connection_that_ends_before_the_request_is_written_is_not_used() {
    simulated::enter(0);
    let (_, _, engine) = alone();
    let backends = record_connections();
    let (client, mut serving) = connect(engine, ROOMY);
    let mut cx = Context::from_waker(Waker::noop());
    let mut serve = |turns| (0..turns).for_each(|_| assert!(serving.as_mut().poll(&mut cx).is_pending()));
    write(&client, b"GET / HTTP/1.1\r\nHost: sim\r\n\r\n");
    serve(200);
    write(&backends.borrow()[0], b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    serve(200);
    write(&client, b"POST / HTTP/1.1\r\nHost: sim\r\nContent-Length: 0\r\n\r\n");
    serve(1);
    assert_eq!(backends.borrow().len(), 1, "the request has not come, or the connection was not kept");
    backends.borrow()[0].shutdown();
    serve(200);
    assert_eq!(backends.borrow().len(), 2);
    assert!(backends.borrow()[1].link().flow(0).unread() > 0, "the request is sent on another connection");
    pipe::set_network(None);
    idle::clear();
    simulated::leave();
}

// Each reload left a snapshot behind for every WebSocket that was open.
#[test]
fn a_tunnel_keeps_no_snapshot() {
    simulated::enter(0);
    let (control, _, engine) = alone();
    let backends = record_connections();
    let (client, mut serving) = connect(engine, ROOMY);
    // The route has rules, which may need what the snapshot holds.
    write(&client, b"GET /paged HTTP/1.1\r\nHost: sim\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    let mut cx = Context::from_waker(Waker::noop());
    let mut serve = || (0..200).for_each(|_| assert!(serving.as_mut().poll(&mut cx).is_pending()));
    serve();
    let response = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    write(&backends.borrow()[0], response);
    serve();
    let mut received = Vec::new();
    while received.len() < 12 {
        let mut buffer = [0; 12];
        let read = client.read(&mut Context::from_waker(Waker::noop()), &mut buffer);
        let Poll::Ready(Ok(count @ 1..)) = read else { panic!("no response: {read:?}") };
        received.extend_from_slice(&buffer[..count]);
    }
    assert!(received.starts_with(b"HTTP/1.1 101"), "{received:?}");
    let before = Arc::downgrade(&control.snapshot());
    let to = Algorithm::ALL.into_iter().find(|&to| to != control.snapshot().config.pools[0].algorithm);
    let change = ChangeRequest::Algorithm { pool: None, to: to.expect("another algorithm") };
    assert!(control.make(&change, &operator::unconditionally()).is_ok());
    control.drop_retired();
    assert!(before.upgrade().is_none(), "the tunnel keeps the former snapshot");
    pipe::set_network(None);
    simulated::leave();
}

#[test]
fn a_refusal_that_the_stop_cuts_off_is_counted() {
    simulated::enter(0);
    let (_, metrics, engine) = alone();
    let mut cx = Context::from_waker(Waker::noop());
    // Smaller than the response, which nobody reads.
    let (client, mut serving) = connect(engine, LinkConditions { window: 64, max_operation: 64, delay_one_in: 0 });
    write(&client, b"GET / HTTP/1.1\r\nHost sim\r\n\r\n");
    (0..200).for_each(|_| assert!(serving.as_mut().poll(&mut cx).is_pending()));
    let refusals = || {
        let text = String::from_utf8(metrics.scrape(|_| {})).expect("text");
        let counts = text.lines().filter(|line| line.starts_with("evenkeel_refusals_total{"));
        counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
    };
    assert_eq!((client.link().flow(0).room, refusals()), (0, 0.0), "the response is only partly written");
    drop(serving);
    simulated::leave();
    assert_eq!(refusals(), 1.0);
}

#[test]
fn planted_bugs_are_found() {
    let plants_all = std::env::var_os("EVENKEEL_SCHEDULES").is_some();
    for bug in Bug::ALL.into_iter().filter(|&bug| plants_all || !RARE_BUGS.contains(&bug)) {
        let within = if RARE_BUGS.contains(&bug) { MAX_SCHEDULES_PER_RARE_BUG } else { MAX_SCHEDULES_PER_BUG };
        let found = (0..within).find_map(|seed| {
            plant::plant(Some(bug));
            let violation = run(seed, false).violation;
            plant::plant(None);
            // Without the planted bug the same schedule has to pass.
            Some((seed, violation.filter(|_| run(seed, false).violation.is_none())?))
        });
        let Some((seed, violation)) = found else { panic!("{bug:?} is not found within {within} schedules") };
        println!("{bug:?} is found after {} schedules of {within}: {violation}", seed + 1);
    }
}

/// `make simulate`: `EVENKEEL_SCHEDULES` fresh seeds on all cores, or `EVENKEEL_SEED` alone, with its trace.
#[test]
fn as_many_schedules_as_wanted_hold() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("EVENKEEL_SEED") {
        let run = run(seed, true);
        println!("{}", run.trace);
        assert_eq!(run.violation, None);
        return;
    }
    // Without either variable: the same few schedules in each run of the tests.
    let (first, count) = match number("EVENKEEL_SCHEDULES") {
        Some(count) => (rand::random::<u64>() >> 1, count),
        None => (0, 20),
    };
    let (next, has_failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !has_failed.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let seed = first + number;
                    if let Some(violation) = run(seed, false).violation {
                        has_failed.store(true, Ordering::Relaxed);
                        eprintln!("{}", replay(seed, &violation));
                    }
                    if number % 10_000 == 9_999 {
                        eprintln!("{} schedules in {:.1?}", number + 1, started.elapsed());
                    }
                }
            });
        }
    });
    let count = next.into_inner().min(count);
    let rate = count as f64 / started.elapsed().as_secs_f64();
    println!("{count} schedules from seed {first} on {threads} threads: {rate:.0} a second");
    assert!(!has_failed.into_inner());
}
