//! What is known of a run from outside: which exchanges there are, what each side did, and whose fault it was. The
//! actors write it and hold the balancer against it; the first contradiction ends the run.

use std::cell::{Cell, RefCell};
use std::fmt::Write;
use std::rc::Rc;
use std::sync::Arc;

use super::wire::Stream;
use crate::backend::Backend;
use crate::clock::simulated;
use crate::http::io::pipe::Link;

/// A request as its client means to send it.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub id: u32,
    pub place: Place,
    pub method: &'static str,
    pub is_http10: bool,
    pub framing: Framing,
    pub size: u64,
    pub expects_continue: bool,
    pub closes: bool,
    pub upgrades: bool,
    pub fault: ClientFault,
    /// Bytes of the content, or of the response, after which the fault comes.
    pub fault_at: u64,
}

/// The route that a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Leads to the pool.
    Proxy,
    /// Answers itself, with 418 and a little content.
    Own,
    /// The same with more content than is written at once.
    Large,
    /// Leads to the pool. Where that answers 500, the client has a page of the balancer's with that status; where 503, the
    /// request goes on to another route, which leads there again.
    Paged,
}

impl Place {
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Proxy => "/e/",
            Self::Own => "/own/",
            Self::Large => "/large/",
            Self::Paged => "/paged/",
        }
    }

    /// How much content an answer has that the route gives itself.
    pub(super) fn own_bytes(self) -> Option<u64> {
        match self {
            Self::Own => Some(100),
            Self::Large => Some(150_000),
            Self::Proxy | Self::Paged => None,
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

/// How a client deviates from what it should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientFault {
    None,
    /// Pauses within what it sends, for longer than any limit.
    StallsSending,
    StallsReading,
    LeavesSending,
    LeavesReading,
    ResetsSending,
    ResetsReading,
    /// Ends its side when all has been sent, where that means that it has left.
    HalfCloses,
    BadHead,
    BadChunk,
}

/// What a backend made of a request.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    pub status: u16,
    pub size: u64,
    /// The backend has done nothing wrong, as far as it got.
    pub is_sound: bool,
    /// All of the response is written; never where the backend breaks off.
    pub is_whole: bool,
    pub is_until_close: bool,
    /// Content of the request that the backend has had.
    pub uploaded: u64,
    /// Content of the response that the backend has written.
    pub written: u64,
}

#[derive(Debug)]
pub(super) struct Exchange {
    pub asked: Asked,
    pub attempts: Vec<Attempt>,
    /// The client has deviated, in this exchange or before on the same connection.
    pub is_client_at_fault: bool,
    /// More requests were sent behind it before its response had come.
    pub is_overtaken: bool,
    /// How much the client's connection had brought when it was closed to make room for others.
    pub shed_at: Option<u64>,
    /// The client reads only when it has written.
    pub reads_late: bool,
    /// The client has had a response to its end; `None`: from the balancer itself.
    pub answer: Option<Answer>,
    /// Content of the request that the client has written.
    pub written: u64,
    /// Content of the response that the client has had.
    pub downloaded: u64,
    /// Of what the client has written on its connection, so much belongs to this request or to those before.
    pub up_to: u64,
    pub client: Option<Arc<Link>>,
    /// The request has a stream of its own on the client's connection.
    pub is_stream: bool,
    /// The client waits for what is to come on that stream.
    pub is_awaiting: bool,
    /// The connection of the attempt under way, and up to which byte of it the response goes.
    pub under_way: Option<UnderWay>,
}

#[derive(Debug, Clone)]
pub(super) struct UnderWay {
    pub backend: Arc<Link>,
    /// Of what the backend has written, so much belongs to this response or to those before.
    pub down_to: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Backend { attempt: usize },
    Balancer { status: u16 },
}

/// What a run has come by: a simulation that never sees a retry proves nothing about retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Sight {
    WholeResponse,
    Refusal,
    Retry,
    ReusedBackend,
    ReusedClient,
    EarlyAnswer,
    Interim,
    Continue,
    Tunnel,
    Truncation,
    ClientLeft,
    ClientStalled,
    BackendStalled,
    StaleConnection,
    Ejection,
    GracefulStop,
    CutOff,
    MembershipChange,
    HealthChange,
    /// A name does not lead any more to an address that it led to.
    NameMoved,
    Tls,
    /// With a backend.
    BackendTls,
    Pipelined,
    HalfClosed,
    /// A connection was closed to make room for others.
    Shed,
    Http2,
    /// A WebSocket on a stream carried everything.
    Http2Tunnel,
    StreamReset,
    /// A route answered itself.
    OwnAnswer,
    /// A page took the place of a backend's answer.
    ErrorPage,
    /// Another route did.
    Jump,
}

impl Sight {
    pub(super) const ALL: [Self; 31] = [
        Self::WholeResponse,
        Self::Refusal,
        Self::Retry,
        Self::ReusedBackend,
        Self::ReusedClient,
        Self::EarlyAnswer,
        Self::Interim,
        Self::Continue,
        Self::Tunnel,
        Self::Truncation,
        Self::ClientLeft,
        Self::ClientStalled,
        Self::BackendStalled,
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
        Self::OwnAnswer,
        Self::ErrorPage,
        Self::Jump,
    ];
}

#[derive(Default)]
pub(super) struct Book {
    pub exchanges: Vec<Exchange>,
    /// By backend: what it did that may count against it.
    pub faults: Vec<u64>,
    /// Every backend that there has been, with what counted against it before this run.
    pub backends: Vec<(Arc<Backend>, u64, u64)>,
    /// Every connection that there has been.
    pub links: Vec<Arc<Link>>,
    /// Exchanges are cut off: the time to stop is over.
    pub is_cut: bool,
    pub sights: u64,
}

impl Book {
    /// Whether the response may be lost though it was sent, because more requests were sent behind it. One that comes
    /// when the balancer stops and has closed an idle connection is answered by a reset. And a response to HTTP/1.0 may end by
    /// one, because the end of the connection would be its own.
    pub(super) fn may_be_taken_back(&self, exchange: &Exchange) -> bool {
        let client = exchange.client.as_ref();
        let is_on_it = |other: &Exchange| other.client.as_ref().zip(client).is_some_and(|(a, b)| Arc::ptr_eq(a, b));
        let mut from_it_on = self.exchanges.iter().skip(exchange.asked.id as usize);
        let stops = self.sights & (1 << Sight::GracefulStop as u32) != 0;
        exchange.is_overtaken && (stops || from_it_on.any(|other| is_on_it(other) && other.asked.is_http10))
    }
}

impl Exchange {
    /// Whether the response may be lost though it was sent, because the client's connection was closed to make room while the
    /// client was still sending this request, or others behind it. As after any lingering close that ends early, a reset may
    /// then take the end of the response.
    pub(super) fn may_be_lost_to_others(&self) -> bool {
        self.shed_at.is_some_and(|read| read < self.up_to || self.is_overtaken)
    }
}

thread_local! {
    static BOOK: RefCell<Book> = RefCell::default();
    static VIOLATION: RefCell<Option<String>> = const { RefCell::new(None) };
    static IS_VIOLATED: Cell<bool> = const { Cell::new(false) };
    /// The steps of the run as text, where somebody wants to read them.
    static TRACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

pub(super) fn open(traces: bool) {
    BOOK.set(Book::default());
    VIOLATION.set(None);
    IS_VIOLATED.set(false);
    TRACE.set(traces.then(String::new));
}

pub(super) fn with<T>(read: impl FnOnce(&mut Book) -> T) -> T {
    BOOK.with_borrow_mut(read)
}

/// The balancer has done what it must not.
pub(super) fn violated(what: String) {
    trace(|| format!("VIOLATION: {what}"));
    IS_VIOLATED.set(true);
    VIOLATION.with_borrow_mut(|violation| {
        violation.get_or_insert(what);
    });
}

pub(super) fn is_violated() -> bool {
    IS_VIOLATED.get()
}

pub(super) fn violation() -> Option<String> {
    VIOLATION.take()
}

pub(super) fn trace(line: impl FnOnce() -> String) {
    TRACE.with_borrow_mut(|trace| {
        if let Some(trace) = trace {
            let _ = writeln!(trace, "{:>12.6} {}", simulated::elapsed().as_secs_f64(), line());
        }
    });
}

pub(super) fn taken_trace() -> String {
    TRACE.take().unwrap_or_default()
}

pub(super) fn saw(sight: Sight) {
    with(|book| book.sights |= 1 << sight as u32);
}

/// What a backend does now may count against it.
pub(super) fn blame(backend: usize) {
    with(|book| {
        if book.faults.len() <= backend {
            book.faults.resize(backend + 1, 0);
        }
        book.faults[backend] += 1;
    });
}

/// The attempt is not what it should be, whoever looks at it.
pub(super) fn spoil(id: u32, attempt: usize) {
    with(|book| book.exchanges[id as usize].attempts[attempt].is_sound = false);
}

/// The first `count` bytes of `stream` have been written by its sender.
pub(super) fn written(stream: Stream, count: u64) {
    with(|book| {
        let exchange = &mut book.exchanges[stream.id as usize];
        let written =
            if stream.is_down { &mut exchange.attempts[stream.attempt].written } else { &mut exchange.written };
        *written = count;
    });
}

/// The first `count` bytes of `stream` have come to its receiver, over this connection.
pub(super) fn received(stream: Stream, over: &Arc<Link>, count: u64) {
    with(|book| {
        let Exchange { attempts, under_way, downloaded, .. } = &mut book.exchanges[stream.id as usize];
        let is_under_way = under_way.as_ref().is_some_and(|under_way| Arc::ptr_eq(&under_way.backend, over));
        if stream.is_down {
            *downloaded = count;
        } else if let (true, Some(attempt)) = (is_under_way, attempts.last_mut()) {
            attempt.uploaded = count;
        }
    });
}

pub(super) fn client_at_fault(id: u32) {
    with(|book| book.exchanges[id as usize].is_client_at_fault = true);
}

/// Wakes whoever waits for something to have changed.
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
