//! Clients of HTTP/1.1: each sends the requests of one connection, compares the responses with what the backends sent,
//! and may commit any fault that real clients do.

use std::cell::Cell;
use std::rc::Rc;

use super::history::{
    self, ClientFault, Coverage, Framing, PlannedRequest, ResponseOrigin, Route, Signal, cover, record_client_fault,
    report_violation, trace,
};
use super::random::one_in;
use super::wire::{Connection, Head, Payload, ReadError, Reader, Sips, send_content};
use crate::clock;
use crate::config::HalfClose;

/// What one connection of a client is to do.
pub(super) struct Plan {
    pub requests: Vec<PlannedRequest>,
    /// Sends requests before the responses to earlier ones have arrived.
    pub is_pipelined: bool,
    /// Reads a response only after its request has been sent.
    pub reads_late: bool,
    /// Keeps the connection open until the balancer closes it.
    pub keeps_open: bool,
    pub sips: Sips,
    /// The most bytes of content in one write.
    pub max_write: u64,
    pub half_close: HalfClose,
}

#[derive(Default)]
struct Progress {
    sent: Cell<usize>,
    continued: Cell<usize>,
    answered: Cell<usize>,
    is_over: Cell<bool>,
    has_left: Cell<bool>,
    changed: Rc<Signal>,
}

impl Progress {
    fn set<T>(&self, cell: &Cell<T>, value: T) {
        cell.set(value);
        self.changed.notify();
    }
}

/// Runs one connection until it ends.
pub(super) async fn run(plan: Plan, connection: Rc<Connection>) {
    let name = connection.pipe.link().name.clone();
    let progress = Progress::default();
    if connection.tls.is_some() {
        cover(Coverage::Tls);
    }
    {
        let both = async {
            tokio::join!(write(&plan, &connection, &progress), read(&plan, &connection, &progress));
        };
        tokio::select! {
            biased;
            () = progress.changed.until(|| progress.has_left.get()) => {}
            () = both => {}
        }
    }
    trace(|| format!("{name} client closes"));
}

/// Records that the client is at fault in all requests that have no response yet.
fn record_faults(plan: &Plan, progress: &Progress) {
    plan.requests[progress.answered.get().min(plan.requests.len())..]
        .iter()
        .for_each(|request| record_client_fault(request.id));
}

async fn write(plan: &Plan, connection: &Rc<Connection>, progress: &Progress) {
    for (n, request) in plan.requests.iter().enumerate() {
        if !plan.is_pipelined {
            progress.changed.until(|| progress.answered.get() >= n || progress.is_over.get()).await;
        }
        if progress.is_over.get() {
            return;
        }
        if n > progress.answered.get() {
            let earlier = &plan.requests[progress.answered.get()..n];
            history::with(|history| {
                earlier.iter().for_each(|request| history.exchanges[request.id as usize].is_followed = true)
            });
        }
        let may_continue = write_one(plan, request, n, connection, progress).await.is_some();
        let written = connection.pipe.link().flow(1).written;
        if may_continue {
            history::with(|history| history.exchanges[request.id as usize].request_end = written);
        }
        progress.set(&progress.sent, n + 1);
        if !may_continue {
            return;
        }
    }
}

/// Sends one request. `None` if no other request can follow.
async fn write_one(
    plan: &Plan,
    request: &PlannedRequest,
    n: usize,
    connection: &Rc<Connection>,
    progress: &Progress,
) -> Option<()> {
    let (name, id) = (&connection.pipe.link().name, request.id);
    trace(|| format!("{name} client asks {request:?}"));
    if request.fault == ClientFault::BadHead {
        record_faults(plan, progress);
        connection.send(b"GET / HTTP/1.1\r\nHost sim\r\n\r\n").await.ok()?;
        return None;
    }
    connection.send(head(request).as_bytes()).await.ok()?;
    if request.upgrades {
        return None;
    }
    if request.expects_continue {
        let asked_for = || progress.continued.get() > n || progress.answered.get() > n || progress.is_over.get();
        let waiting = progress.changed.until(asked_for);
        if one_in(4) {
            let _ = clock::timeout(super::random::milliseconds(1, 3000), waiting).await;
        } else {
            waiting.await;
        }
        if progress.answered.get() > n || progress.is_over.get() {
            return None;
        }
    }
    let misbehaves = matches!(
        request.fault,
        ClientFault::StallsWhileSending
            | ClientFault::ClosesWhileSending
            | ClientFault::ResetsWhileSending
            | ClientFault::BadChunk
    );
    let to = if misbehaves { request.fault_at.min(request.size) } else { request.size };
    let mut at = 0;
    let payload = Payload::upload(id);
    let sent = send_content(connection, payload, request.framing, &mut at, to, plan.max_write).await;
    trace(|| format!("{name} client has sent {at} bytes of {id}: {sent:?}"));
    sent.ok()?;
    if misbehaves {
        record_faults(plan, progress);
    }
    match request.fault {
        ClientFault::StallsWhileSending => {
            cover(Coverage::ClientStalled);
            return None;
        }
        ClientFault::ClosesWhileSending => {
            cover(Coverage::ClientLeft);
            progress.set(&progress.has_left, true);
            return None;
        }
        ClientFault::ResetsWhileSending => {
            cover(Coverage::ClientLeft);
            connection.pipe.reset();
            progress.set(&progress.has_left, true);
            return None;
        }
        ClientFault::BadChunk => {
            let _ = connection.send(b"zz\r\n").await;
            return None;
        }
        _ => {}
    }
    if request.framing == Framing::Chunked {
        connection.send(b"0\r\n\r\n").await.ok()?;
    }
    if request.fault == ClientFault::HalfCloses {
        cover(Coverage::HalfClosed);
        if plan.half_close == HalfClose::Cancel {
            record_faults(plan, progress);
        }
        connection.shutdown().await;
        return None;
    }
    (!request.closes).then_some(())
}

fn head(request: &PlannedRequest) -> String {
    let PlannedRequest { id, method, is_http10, framing, size, .. } = request;
    let prefix = request.route.prefix();
    let mut head =
        format!("{method} {prefix}{id} HTTP/1.{}\r\nHost: sim\r\nX-Exchange: {id}\r\n", u8::from(!is_http10));
    match framing {
        Framing::Length => head += &format!("Content-Length: {size}\r\n"),
        Framing::Chunked => head += "Transfer-Encoding: chunked\r\n",
        _ => {}
    }
    if request.expects_continue {
        head += "Expect: 100-continue\r\n";
    }
    if request.upgrades {
        head += "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    } else if request.closes && !is_http10 {
        head += "Connection: close\r\n";
    } else if !request.closes && *is_http10 {
        head += "Connection: keep-alive\r\n";
    }
    head + "\r\n"
}

async fn read(plan: &Plan, connection: &Rc<Connection>, progress: &Progress) {
    let mut reader = Reader::new(connection);
    let name = &connection.pipe.link().name;
    let (mut persists, mut has_left, mut is_incomplete) = (true, false, false);
    for (n, request) in plan.requests.iter().enumerate() {
        if plan.reads_late {
            let is_time = || progress.sent.get() > n || progress.is_over.get();
            // A fault may leave the request half sent; then the client reads after a while all the same.
            let _ = clock::timeout(super::random::milliseconds(5_000, 9_000), progress.changed.until(is_time)).await;
        }
        let outcome = read_one(plan, request, n, connection, &mut reader, progress).await;
        trace(|| format!("{name} client has had {}: {outcome:?}", request.id));
        persists = matches!(outcome, Outcome::Complete { persists: true });
        if matches!(outcome, Outcome::Complete { .. }) {
            progress.set(&progress.answered, n + 1);
            if n > 0 {
                cover(Coverage::ReusedClient);
            }
            if n + 1 < plan.requests.len() && plan.is_pipelined {
                cover(Coverage::Pipelined);
            }
        }
        has_left = matches!(outcome, Outcome::Left);
        is_incomplete = matches!(outcome, Outcome::Incomplete);
        if !persists || request.closes {
            break;
        }
    }
    progress.set(&progress.is_over, true);
    if has_left {
        progress.set(&progress.has_left, true);
    }
    if has_left || is_incomplete || (persists && !plan.keeps_open) {
        return;
    }
    // No byte may follow the last response.
    match reader.fill().await {
        Err(_) if reader.buffered().is_empty() => {}
        _ => report_violation(format!(
            "{name} was sent {:?} beyond its last response",
            String::from_utf8_lossy(reader.buffered())
        )),
    }
}

#[derive(Debug)]
enum Outcome {
    Complete {
        persists: bool,
    },
    /// The connection ended before the response did.
    Incomplete,
    Left,
}

async fn read_one(
    plan: &Plan,
    request: &PlannedRequest,
    n: usize,
    connection: &Rc<Connection>,
    reader: &mut Reader,
    progress: &Progress,
) -> Outcome {
    let name = &connection.pipe.link().name;
    let mut has_continued = false;
    let misbehaves = matches!(
        request.fault,
        ClientFault::StallsWhileReading | ClientFault::ClosesWhileReading | ClientFault::ResetsWhileReading
    );
    if misbehaves && request.fault_at == 0 {
        return misbehave(plan, request, connection, progress).await;
    }
    let head = loop {
        let head = match reader.head().await {
            Ok(head) => head,
            Err(ReadError::Malformed(what)) => {
                report_violation(format!("{name} got what is no response: {what}"));
                return Outcome::Incomplete;
            }
            Err(ReadError::Closed { .. }) => return Outcome::Incomplete,
        };
        let status = head.first.get(1).map_or("", String::as_str).to_owned();
        trace(|| format!("{name} client has a head for {}: {:?}", request.id, head.first));
        if !status.starts_with('1') || status == "101" {
            break head;
        }
        if request.is_http10 {
            report_violation(format!("{name}: an interim response for a client of HTTP/1.0"));
        }
        cover(Coverage::Interim);
        if status == "100" {
            if std::mem::replace(&mut has_continued, true) {
                report_violation(format!("{name}: a second 100 for exchange {}", request.id));
            }
            cover(Coverage::Continue);
            progress.set(&progress.continued, n + 1);
        }
    };
    let status = head.first.get(1).and_then(|status| status.parse::<u16>().ok()).unwrap_or_default();
    let is_bare = request.method == "HEAD" || matches!(status, 204 | 304);
    let framing = if is_bare { (Framing::None, 0) } else { head.framing(Framing::UntilClose) };
    let persists = persists(&head, request, framing.0);
    let Some(id) = head.number("x-exchange") else {
        return read_local_response(request, status, framing, persists, reader).await;
    };
    let attempt = head.number("x-attempt").unwrap_or(u64::MAX) as usize;
    if !is_response_of(request.id, name, id, attempt, status) {
        return Outcome::Incomplete;
    }
    let payload = Payload::download(request.id, attempt);
    let (mut at, mut chunk_left) = (0, 0);
    if status == 101 {
        return tunnel(plan, request, attempt, connection, reader).await;
    }
    let mut is_done = false;
    if misbehaves {
        match reader.content(payload, framing, &mut at, &mut chunk_left, request.fault_at).await {
            Ok(false) => return misbehave(plan, request, connection, progress).await,
            // The response ended before the fault could come.
            Ok(true) => is_done = true,
            Err(ReadError::Malformed(what)) => report_violation(format!("{name}: {what}")),
            Err(ReadError::Closed { .. }) => return Outcome::Incomplete,
        }
    }
    let rest =
        if is_done { Ok(true) } else { reader.content(payload, framing, &mut at, &mut chunk_left, u64::MAX).await };
    match rest {
        Ok(_) => {
            // The history has the backend's side by now, since it wrote what has arrived here.
            let made = history::with(|history| history.exchanges[request.id as usize].attempts[attempt].clone());
            if !is_bare && (!made.is_complete || made.size != at) {
                report_violation(format!("{name} took {at} bytes of exchange {id} for a whole response, of {made:?}"));
            }
            cover(Coverage::CompleteResponse);
            history::with(|history| {
                history.exchanges[request.id as usize].response = Some(ResponseOrigin::Backend { attempt })
            });
            Outcome::Complete { persists }
        }
        Err(ReadError::Malformed(what)) => {
            report_violation(format!("{name}: {what}"));
            Outcome::Incomplete
        }
        Err(ReadError::Closed { is_clean }) => {
            cover(Coverage::Truncation);
            if !is_clean && framing.0 != Framing::UntilClose && !may_be_cut_off(plan, request) {
                report_violation(format!(
                    "{name} was reset, or not sent the closing alert, within a response to {id} that shows where it is incomplete"
                ));
            }
            Outcome::Incomplete
        }
    }
}

/// Whether the balancer may end this response by a reset: after a fault of the client, or after the stop timed out.
fn may_be_cut_off(plan: &Plan, request: &PlannedRequest) -> bool {
    history::with(|history| {
        let exchange = &history.exchanges[request.id as usize];
        // A client that reads late may have exceeded send_timeout.
        let misbehaves = plan.reads_late || exchange.is_client_at_fault;
        misbehaves
            || exchange.may_be_lost_to_shedding()
            || history.has_stop_timed_out
            || history.may_be_lost_to_reset(exchange)
    })
}

/// Whether a response that claims to be of exchange `id` is a backend's unchanged response to `request`. Reports a
/// violation if it is not.
pub(super) fn is_response_of(request: u32, name: &str, id: u64, attempt: usize, status: u16) -> bool {
    if id != u64::from(request) {
        report_violation(format!("{name} was given the response of exchange {id} for exchange {request}"));
        return false;
    }
    let Some(made) = history::with(|history| history.exchanges[request as usize].attempts.get(attempt).cloned()) else {
        report_violation(format!("{name} was given a response of exchange {id} that nobody made"));
        return false;
    };
    if made.status != status {
        report_violation(format!("{name}: a response of {} became {status}", made.status));
    }
    true
}

/// Reads a response that the balancer made itself.
async fn read_local_response(
    request: &PlannedRequest,
    status: u16,
    framing: (Framing, u64),
    persists: bool,
    reader: &mut Reader,
) -> Outcome {
    if status < 400 {
        report_violation(format!("exchange {} was answered {status} by nobody", request.id));
    }
    cover(match (request.route, status) {
        (Route::Local | Route::LocalLarge, 418) => Coverage::LocalResponse,
        (Route::ErrorPages, 500) => Coverage::ErrorPage,
        _ => Coverage::Refusal,
    });
    if let (418, Framing::Length, Some(length)) = (status, framing.0, request.route.local_bytes())
        && framing.1 != length
    {
        report_violation(format!("exchange {} was answered with {} bytes of {length}", request.id, framing.1));
    }
    if reader.skip(framing.1).await.is_err() {
        return Outcome::Incomplete;
    }
    history::with(|history| {
        history.exchanges[request.id as usize].response = Some(ResponseOrigin::Balancer { status })
    });
    Outcome::Complete { persists }
}

async fn tunnel(
    plan: &Plan,
    request: &PlannedRequest,
    attempt: usize,
    connection: &Rc<Connection>,
    reader: &mut Reader,
) -> Outcome {
    let name = &connection.pipe.link().name;
    let (mut sent, mut at, mut chunk_left) = (0, 0, 0);
    let sending = async {
        let up = send_content(
            connection,
            Payload::upload(request.id),
            Framing::None,
            &mut sent,
            request.size,
            plan.max_write,
        )
        .await;
        if up.is_ok() && one_in(3) {
            connection.shutdown().await;
        }
    };
    let down = Payload::download(request.id, attempt);
    let receiving = reader.content(down, (Framing::UntilClose, 0), &mut at, &mut chunk_left, u64::MAX);
    let ((), received) = tokio::join!(sending, receiving);
    match received {
        Err(ReadError::Malformed(what)) => report_violation(format!("{name}: {what}")),
        Err(ReadError::Closed { .. }) => {}
        Ok(_) => {
            let made = history::with(|history| history.exchanges[request.id as usize].attempts[attempt].clone());
            if made.is_complete && made.size == at {
                cover(Coverage::Tunnel);
                history::with(|history| {
                    history.exchanges[request.id as usize].response = Some(ResponseOrigin::Backend { attempt })
                });
            }
        }
    }
    Outcome::Complete { persists: false }
}

async fn misbehave(plan: &Plan, request: &PlannedRequest, connection: &Rc<Connection>, progress: &Progress) -> Outcome {
    record_faults(plan, progress);
    trace(|| format!("{} client misbehaves: {:?}", connection.pipe.link().name, request.fault));
    match request.fault {
        ClientFault::StallsWhileReading => {
            cover(Coverage::ClientStalled);
            super::wait_for_close(connection.pipe.link(), 0).await;
        }
        ClientFault::ResetsWhileReading => {
            cover(Coverage::ClientLeft);
            connection.pipe.reset();
        }
        _ => cover(Coverage::ClientLeft),
    }
    Outcome::Left
}

/// Whether another response may follow on the connection (RFC 9112 §9.3).
fn persists(head: &Head, request: &PlannedRequest, framing: Framing) -> bool {
    let closes = head.lists("connection", "close");
    let keeps = !request.is_http10 || head.lists("connection", "keep-alive");
    !closes && keeps && framing != Framing::UntilClose
}
