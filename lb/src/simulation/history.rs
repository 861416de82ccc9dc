//! The history of a run, independent of the balancer: its exchanges, what each side sent and received, and the faults
//! that were injected. The actors record it and check the balancer against it. The first violation ends the run.

use std::cell::{Cell, RefCell};
use std::fmt::Write;
use std::rc::Rc;
use std::sync::Arc;

use super::wire::Payload;
use crate::backend::Backend;
use crate::clock::simulated;
use crate::http::io::pipe::Link;

/// A request that a client is going to send, with the fault that it is going to commit.
#[derive(Debug, Clone)]
pub(super) struct PlannedRequest {
    pub id: u32,
    pub route: Route,
    pub method: &'static str,
    pub is_http10: bool,
    pub framing: Framing,
    pub size: u64,
    pub expects_continue: bool,
    pub closes: bool,
    pub upgrades: bool,
    pub fault: ClientFault,
    /// The fault comes after this many bytes of the content sent, or of the response.
    pub fault_at: u64,
}

/// The route that a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// Proxied to the pool.
    Proxy,
    /// Answered by the balancer itself, with 418 and a little content.
    Local,
    /// The same with more content than one write takes.
    LocalLarge,
    /// Proxied to the pool, with error pages: for 500 a text of the balancer's own with that status; for 503 an
    /// internal redirect to another route, which is proxied to the pool again.
    ErrorPages,
}

impl PlannedRequest {
    pub(super) fn has_content(&self) -> bool {
        self.method == "POST" || self.framing != Framing::None
    }
}

impl Route {
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Proxy => "/e/",
            Self::Local => "/own/",
            Self::LocalLarge => "/large/",
            Self::ErrorPages => "/paged/",
        }
    }

    /// The size of the route's local response; `None` if it is proxied.
    pub(super) fn local_bytes(self) -> Option<u64> {
        match self {
            Self::Local => Some(100),
            Self::LocalLarge => Some(150_000),
            Self::Proxy | Self::ErrorPages => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    None,
    Length,
    Chunked,
    UntilClose,
}

/// A fault that a client injects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientFault {
    None,
    /// Stops sending in the middle of its request, for longer than any limit.
    StallsWhileSending,
    StallsWhileReading,
    ClosesWhileSending,
    ClosesWhileReading,
    ResetsWhileSending,
    ResetsWhileReading,
    /// Shuts down its sending side after the request. With `half_close = "cancel"` this counts as leaving.
    HalfCloses,
    BadHead,
    BadChunk,
}

/// A request as one backend received and answered it.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    pub status: u16,
    pub size: u64,
    /// The backend has committed no fault so far.
    pub is_faultless: bool,
    /// The backend has written the whole response. Never true if it breaks off.
    pub is_complete: bool,
    pub is_until_close: bool,
    /// Bytes of the request's content that the backend has received.
    pub uploaded: u64,
    /// Bytes of the response's content that the backend has written.
    pub written: u64,
}

#[derive(Debug)]
pub(super) struct Exchange {
    pub request: PlannedRequest,
    pub attempts: Vec<Attempt>,
    /// The client has committed a fault, in this exchange or before it on the same connection.
    pub is_client_at_fault: bool,
    /// The client has pipelined further requests behind this one.
    pub is_followed: bool,
    /// Whether part of the request was still to be read when the balancer shed the client's connection; `None` if it
    /// did not shed it.
    pub was_shed_early: Option<bool>,
    /// The client reads the response only after it has sent the request.
    pub reads_late: bool,
    /// The complete response that the client has received, if any.
    pub response: Option<ResponseOrigin>,
    /// Bytes of the request's content that the client has written.
    pub written: u64,
    /// Bytes of the response's content that the client has received.
    pub downloaded: u64,
    /// Offset in the bytes that the client writes on its connection at which this request ends.
    pub request_end: u64,
    pub client: Option<Arc<Link>>,
    /// The request uses a stream of HTTP/2.
    pub is_stream: bool,
    /// The client waits for more of that stream, and its flow-control window is open.
    pub is_awaiting: bool,
    /// The latest attempt.
    pub current: Option<CurrentAttempt>,
}

#[derive(Debug, Clone)]
pub(super) struct CurrentAttempt {
    pub backend: Arc<Link>,
    /// Offset in the bytes that the backend writes on its connection at which this response ends.
    pub response_end: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResponseOrigin {
    Backend { attempt: usize },
    Balancer { status: u16 },
}

/// Situations that schedules must cover: a simulation without a single retry proves nothing about retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Coverage {
    CompleteResponse,
    Refusal,
    Retry,
    ReusedBackend,
    ReusedClient,
    EarlyResponse,
    Interim,
    Continue,
    Tunnel,
    Truncation,
    ClientLeft,
    ClientStalled,
    BackendStalled,
    /// A backend closed a connection because the client had paused.
    BackendGaveUp,
    StaleConnection,
    Ejection,
    GracefulStop,
    CutOff,
    MembershipChange,
    HealthChange,
    /// A name no longer resolves to one of its former addresses.
    NameMoved,
    Tls,
    /// TLS with a backend.
    BackendTls,
    Pipelined,
    HalfClosed,
    /// The balancer closed a connection to make room for others.
    Shed,
    Http2,
    /// A WebSocket on a stream of HTTP/2 transferred everything in both directions.
    Http2Tunnel,
    StreamReset,
    /// A route with a local response.
    LocalResponse,
    /// An error page replaced a backend's response.
    ErrorPage,
    /// An error page sent the request to another route.
    Jump,
}

impl Coverage {
    pub(super) const ALL: [Self; 32] = [
        Self::CompleteResponse,
        Self::Refusal,
        Self::Retry,
        Self::ReusedBackend,
        Self::ReusedClient,
        Self::EarlyResponse,
        Self::Interim,
        Self::Continue,
        Self::Tunnel,
        Self::Truncation,
        Self::ClientLeft,
        Self::ClientStalled,
        Self::BackendStalled,
        Self::BackendGaveUp,
        Self::StaleConnection,
        Self::Ejection,
        Self::GracefulStop,
        Self::CutOff,
        Self::MembershipChange,
        Self::HealthChange,
        Self::NameMoved,
        Self::Tls,
        Self::BackendTls,
        Self::Pipelined,
        Self::HalfClosed,
        Self::Shed,
        Self::Http2,
        Self::Http2Tunnel,
        Self::StreamReset,
        Self::LocalResponse,
        Self::ErrorPage,
        Self::Jump,
    ];
}

#[derive(Default)]
pub(super) struct History {
    pub exchanges: Vec<Exchange>,
    /// By backend: how many of its actions may count as failures.
    pub faults: Vec<u64>,
    /// All backends so far, with the failures and ejections that were counted before this run.
    pub backends: Vec<(Arc<Backend>, u64, u64)>,
    /// All connections so far.
    pub links: Vec<Arc<Link>>,
    /// Nobody is meant to commit a fault, and nothing changes or stops.
    pub is_meant_to_be_calm: bool,
    /// Backends have limits, so that exchanges may wait for them in vain.
    pub has_limits: bool,
    /// The time limit of the graceful stop is over, and the balancer drops all exchanges.
    pub has_stop_timed_out: bool,
    pub coverage: u64,
}

impl History {
    /// Whether nothing in this run excuses a failure.
    pub(super) fn is_calm(&self) -> bool {
        // A backend that answers early may commit one all the same.
        self.is_meant_to_be_calm && self.faults.iter().all(|&faults| faults == 0)
    }

    /// Whether a reset may discard the response after it was sent, because the client has pipelined further requests:
    /// an incomplete response to HTTP/1.0 ends with a reset, since a plain close would make it look complete.
    pub(super) fn may_be_lost_to_reset(&self, exchange: &Exchange) -> bool {
        let client = exchange.client.as_ref();
        let is_on_it = |other: &Exchange| other.client.as_ref().zip(client).is_some_and(|(a, b)| Arc::ptr_eq(a, b));
        let mut from_it_on = self.exchanges.iter().skip(exchange.request.id as usize);
        exchange.is_followed && from_it_on.any(|other| is_on_it(other) && other.request.is_http10)
    }
}

impl Exchange {
    /// Whether a reset may discard the response after it was sent, because the balancer shed the connection while the
    /// client was still sending this request or further ones. This can happen whenever a lingering close ends early.
    pub(super) fn may_be_lost_to_shedding(&self) -> bool {
        self.was_shed_early.is_some_and(|early| early || self.is_followed)
    }
}

thread_local! {
    static HISTORY: RefCell<History> = RefCell::default();
    static VIOLATION: RefCell<Option<String>> = const { RefCell::new(None) };
    static HAS_VIOLATION: Cell<bool> = const { Cell::new(false) };
    /// The steps of the run as text; `None` unless a trace was asked for.
    static TRACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

pub(super) fn open(traces: bool) {
    HISTORY.set(History::default());
    VIOLATION.set(None);
    HAS_VIOLATION.set(false);
    TRACE.set(traces.then(String::new));
}

pub(super) fn with<T>(read: impl FnOnce(&mut History) -> T) -> T {
    HISTORY.with_borrow_mut(read)
}

/// Records that the balancer broke an invariant. Only the first violation of a run is kept.
pub(super) fn report_violation(what: String) {
    trace(|| format!("VIOLATION: {what}"));
    HAS_VIOLATION.set(true);
    VIOLATION.with_borrow_mut(|violation| {
        violation.get_or_insert(what);
    });
}

pub(super) fn has_violation() -> bool {
    HAS_VIOLATION.get()
}

pub(super) fn take_violation() -> Option<String> {
    VIOLATION.take()
}

pub(super) fn trace(line: impl FnOnce() -> String) {
    TRACE.with_borrow_mut(|trace| {
        if let Some(trace) = trace {
            let _ = writeln!(trace, "{:>12.6} {}", simulated::elapsed().as_secs_f64(), line());
        }
    });
}

pub(super) fn take_trace() -> String {
    TRACE.take().unwrap_or_default()
}

pub(super) fn cover(coverage: Coverage) {
    with(|history| history.coverage |= 1 << coverage as u32);
}

/// Records an action of a backend that may count as a failure.
pub(super) fn record_fault(backend: usize) {
    with(|history| {
        if history.faults.len() <= backend {
            history.faults.resize(backend + 1, 0);
        }
        history.faults[backend] += 1;
    });
}

/// Records that the attempt need not succeed, because of a fault.
pub(super) fn mark_faulty(id: u32, attempt: usize) {
    with(|history| history.exchanges[id as usize].attempts[attempt].is_faultless = false);
}

/// Records that the sender of `payload` has written its first `count` bytes.
pub(super) fn record_written(payload: Payload, count: u64) {
    with(|history| {
        let exchange = &mut history.exchanges[payload.id as usize];
        let written =
            if payload.is_download { &mut exchange.attempts[payload.attempt].written } else { &mut exchange.written };
        *written = count;
    });
}

/// Records that the first `count` bytes of `payload` have reached its receiver over this connection.
pub(super) fn record_received(payload: Payload, over: &Arc<Link>, count: u64) {
    with(|history| {
        let Exchange { attempts, current, downloaded, .. } = &mut history.exchanges[payload.id as usize];
        let is_current = current.as_ref().is_some_and(|current| Arc::ptr_eq(&current.backend, over));
        if payload.is_download {
            *downloaded = count;
        } else if let (true, Some(attempt)) = (is_current, attempts.last_mut()) {
            attempt.uploaded = count;
        }
    });
}

pub(super) fn record_client_fault(id: u32) {
    with(|history| history.exchanges[id as usize].is_client_at_fault = true);
}

/// Wakes tasks that wait for a condition.
#[derive(Default)]
pub(super) struct Signal {
    wakers: RefCell<Vec<std::task::Waker>>,
}

impl Signal {
    pub(super) fn notify(&self) {
        self.wakers.take().into_iter().for_each(std::task::Waker::wake);
    }

    pub(super) async fn until(self: &Rc<Self>, is_true: impl Fn() -> bool) {
        std::future::poll_fn(|cx| {
            if is_true() {
                return std::task::Poll::Ready(());
            }
            self.wakers.borrow_mut().push(cx.waker().clone());
            std::task::Poll::Pending
        })
        .await;
    }
}
