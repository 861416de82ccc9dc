//! Backends: each reads requests from its connections, checks every byte of them, and responds correctly or with one of
//! the faults of real servers.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::history::{
    self, Attempt, Coverage, CurrentAttempt, Framing, Route, cover, mark_faulty, record_fault, report_violation, trace,
};
use super::random::{below, between, milliseconds, one_in, pick, size};
use super::tls::Tls;
use super::wire::{Connection, Head, Payload, ReadError, Reader, send_content};
use crate::clock;
use crate::http::h1::websocket;
use crate::http::io::pipe::{Link, Pipe};

/// How a backend behaves in this run.
#[derive(Debug, Clone, Copy)]
pub(super) struct BackendProfile {
    /// One in this many requests gets a fault; 0: none.
    pub request_fault_one_in: u64,
    /// One in this many connections is not accepted; 0: none.
    pub connect_fault_one_in: u64,
    /// Closes idle connections at random times.
    pub closes_idle: bool,
    /// Closes a connection on which the content of a request does not continue for so long.
    pub patience: Option<Duration>,
    /// The most bytes of content in a response, and in one write.
    pub max_content: u64,
    pub max_write: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    ClosesBeforeResponse,
    ResetsBeforeResponse,
    StallsBeforeResponse,
    NotHttp,
    TruncatesHead,
    TruncatesContent,
    ResetsContent,
    StallsContent,
    BadChunk,
}

/// What a backend does with the rest of a request after an early response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AfterEarlyResponse {
    ReadsMeanwhile,
    ReadsAfter,
    /// Neither reads it nor closes.
    Ignores,
    Closes,
}

struct Response {
    id: u32,
    attempt: usize,
    status: u16,
    size: u64,
    framing: Framing,
    closes: bool,
    is_head: bool,
    /// The backend writes bytes behind the response that belong to no response.
    overflows: bool,
    fault: Option<Fault>,
    fault_at: u64,
}

/// Serves one connection.
pub(super) async fn run(backend: usize, pipe: Pipe, is_tls: bool, profile: BackendProfile) {
    let connection = Connection::new(pipe, is_tls.then(Tls::backend));
    serve_requests(backend, &connection, profile).await;
    if let Some(tls) = &connection.tls {
        cover(Coverage::BackendTls);
        // Without close_notify the end of a response could not be told from a truncation.
        let _ = poll_fn(|cx| tls.close_notify(cx, &connection.pipe)).await;
    }
}

async fn serve_requests(backend: usize, connection: &Rc<Connection>, profile: BackendProfile) {
    let link = Arc::clone(connection.pipe.link());
    let mut reader = Reader::new(connection);
    let mut served = 0;
    loop {
        if served > 0 && profile.closes_idle && one_in(3) && reader.buffered().is_empty() {
            let waiting = clock::timeout(milliseconds(0, 50), reader.fill());
            if waiting.await.is_err() && reader.buffered().is_empty() {
                trace(|| format!("{} backend closes while idle", link.name));
                cover(Coverage::StaleConnection);
                return;
            }
        }
        let head = match reader.head().await {
            Ok(head) => head,
            Err(ReadError::Malformed(what)) => {
                return report_violation(format!("{} got what is no request: {what}", link.name));
            }
            Err(ReadError::Closed { .. }) => return,
        };
        if served > 0 {
            cover(Coverage::ReusedBackend);
        }
        if serve(backend, &head, &mut reader, connection, profile).await.is_none() {
            trace(|| format!("{} backend closes", link.name));
            return;
        }
        served += 1;
    }
}

/// Serves one request. `None` if the connection has to be closed.
async fn serve(
    backend: usize,
    head: &Head,
    reader: &mut Reader,
    connection: &Rc<Connection>,
    profile: BackendProfile,
) -> Option<()> {
    let link = connection.pipe.link();
    let (id, attempt) = begin(head, link)?;
    let (reads_late, request) = history::with(|history| {
        let exchange = &history.exchanges[id as usize];
        (exchange.reads_late, exchange.request.clone())
    });
    let framing = head.framing(Framing::None);
    let fault = (profile.request_fault_one_in > 0 && one_in(profile.request_fault_one_in)).then(random_fault);
    if let Some(fault) = fault {
        trace(|| format!("{} backend will fail: {fault:?}", link.name));
        record_fault(backend);
        mark_faulty(id, attempt);
    }
    match fault {
        Some(Fault::ClosesBeforeResponse) => return None,
        Some(Fault::ResetsBeforeResponse) => {
            connection.pipe.reset();
            return None;
        }
        Some(Fault::StallsBeforeResponse) => {
            cover(Coverage::BackendStalled);
            super::wait_for_close(link, 0).await;
            return None;
        }
        _ => {}
    }
    if head.lists("expect", "100-continue") && !one_in(4) {
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n").await.ok()?;
    }
    let payload = Payload::upload(id);
    let (mut at, mut chunk_left) = (0, 0);
    let is_early = framing.0 != Framing::None && one_in(3);
    let max = if is_early { below(request.size + 1) } else { u64::MAX };
    let reading = content(reader, payload, framing, &mut at, &mut chunk_left, max, request.size);
    let mut is_read = match profile.patience.filter(|_| !request.expects_continue) {
        None => reading.await?,
        Some(patience) => match while_it_continues(link, patience, reading).await {
            Some(is_read) => is_read?,
            None => {
                trace(|| format!("{} backend gives up on the client's pause", link.name));
                cover(Coverage::BackendGaveUp);
                mark_faulty(id, attempt);
                return None;
            }
        },
    };
    let interims = if one_in(6) { between(1, 3) } else { 0 };
    if interims > 0 && !is_read && reads_late {
        // Deadlock: both sides write, and neither reads.
        record_fault(backend);
        mark_faulty(id, attempt);
    }
    for _ in 0..interims {
        connection
            .send(pick(&[&b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"[..], b"HTTP/1.1 102 Processing\r\n\r\n"]))
            .await
            .ok()?;
        connection.maybe_pause().await;
    }
    if request.upgrades && head.lists("upgrade", "websocket") && !one_in(4) {
        let key = head.field("sec-websocket-key").unwrap_or_default().to_owned();
        return tunnel(id, attempt, &key, request.size, reader, connection, profile).await;
    }
    let response = random_response(id, attempt, head, fault, profile);
    if request.upgrades
        && matches!(response.status, 200..=299)
        && history::with(|history| history.exchanges[id as usize].is_stream)
    {
        // To a client of HTTP/2 a 2xx would mean that the WebSocket is open, so that the balancer replaces it.
        mark_faulty(id, attempt);
    }
    if request.route == Route::ErrorPages && matches!(response.status, 500 | 503) {
        // An error page may replace it, unless it is the error page itself: that is not known here.
        mark_faulty(id, attempt);
    }
    if fault.is_none() {
        cover_jump(id, attempt);
    }
    history::with(|history| {
        let made = &mut history.exchanges[id as usize].attempts[attempt];
        (made.status, made.size) = (response.status, response.size);
        made.is_until_close = response.framing == Framing::UntilClose;
    });
    let rest = if is_read { AfterEarlyResponse::ReadsMeanwhile } else { random_after_early_response() };
    if !is_read && request.expects_continue && response.framing == Framing::UntilClose {
        // Deadlock: the response ends with the connection, which waits for content that the client no longer sends.
        record_fault(backend);
        mark_faulty(id, attempt);
    }
    if !is_read {
        cover(Coverage::EarlyResponse);
        trace(|| format!("{} backend answers after {at} bytes of {}, then {rest:?}", link.name, request.size));
        if matches!(rest, AfterEarlyResponse::Ignores | AfterEarlyResponse::Closes)
            || (rest == AfterEarlyResponse::ReadsAfter && reads_late)
        {
            // Deadlock, since both sides write, or a reset, since the backend closes with unread bytes.
            record_fault(backend);
            mark_faulty(id, attempt);
        }
    }
    if rest == AfterEarlyResponse::ReadsMeanwhile && !is_read {
        let reading = content(reader, payload, framing, &mut at, &mut chunk_left, u64::MAX, request.size);
        let (answered, read) = tokio::join!(send_response(backend, &response, connection, profile), reading);
        is_read = read? && answered.is_some();
        answered?;
    } else {
        send_response(backend, &response, connection, profile).await?;
    }
    match rest {
        AfterEarlyResponse::ReadsAfter => {
            is_read = content(reader, payload, framing, &mut at, &mut chunk_left, u64::MAX, request.size).await?
        }
        AfterEarlyResponse::Ignores => super::wait_for_close(link, 0).await,
        AfterEarlyResponse::ReadsMeanwhile | AfterEarlyResponse::Closes => {}
    }
    let keeps = is_read && !response.closes && response.framing != Framing::UntilClose && !response.overflows;
    keeps.then_some(())
}

/// The result of `reading`; `None` if nothing arrives on the connection for `patience`.
async fn while_it_continues<T>(link: &Link, patience: Duration, reading: impl Future<Output = T>) -> Option<T> {
    let mut reading = pin!(reading);
    loop {
        let before = link.flow(0).read;
        let read = clock::timeout(patience, reading.as_mut()).await;
        let flow = link.flow(0);
        match read {
            Ok(read) => return Some(read),
            Err(_) if flow.read == before && flow.unread() == 0 => return None,
            Err(_) => {}
        }
    }
}

/// Starts an attempt: checks that the head is that of a request which a client sent and which a backend may get.
fn begin(head: &Head, link: &Arc<Link>) -> Option<(u32, usize)> {
    let name = &link.name;
    let path = head.first.get(1).map_or("", String::as_str);
    let id = path.rsplit('/').next().and_then(|id| id.parse::<u32>().ok());
    let request = id.and_then(|id| history::with(|history| Some(history.exchanges.get(id as usize)?.request.clone())));
    let request = request.filter(|request| path == format!("{}{}", request.route.prefix(), request.id));
    let request = request.filter(|request| request.route.local_bytes().is_none());
    let Some(request) = request else {
        report_violation(format!("{name} got a request that nobody sent: {head:?}"));
        return None;
    };
    let id = request.id;
    if head.number("x-exchange") != Some(u64::from(id)) || head.first[0] != request.method {
        report_violation(format!("{name} got a head that is none of exchange {id}: {head:?}"));
    }
    let (framing, length) = head.framing(Framing::None);
    if framing != request.framing || (framing == Framing::Length && length != request.size) {
        report_violation(format!("{name} got exchange {id} framed as {framing:?} {length}, which was {request:?}"));
    }
    let attempt = history::with(|history| {
        let exchange = &mut history.exchanges[id as usize];
        exchange.attempts.push(Attempt {
            status: 0,
            size: 0,
            is_faultless: true,
            is_complete: false,
            is_until_close: false,
            uploaded: 0,
            written: 0,
        });
        exchange.current = Some(CurrentAttempt { backend: Arc::clone(link), response_end: u64::MAX });
        exchange.attempts.len() - 1
    });
    trace(|| format!("{name} backend has the head of exchange {id}, attempt {attempt}"));
    if attempt > 0 {
        cover(Coverage::Retry);
        if request.method == "POST" {
            report_violation(format!("{name} got exchange {id}, a POST which another backend had got"));
        }
    }
    Some((id, attempt))
}

/// A faultless attempt after one that was answered by 503 is that of a jump.
fn cover_jump(id: u32, attempt: usize) {
    let is_page = history::with(|history| {
        let exchange = &history.exchanges[id as usize];
        let before = &exchange.attempts[..attempt];
        exchange.request.route == Route::ErrorPages
            && before.iter().any(|attempt| attempt.status == 503 && attempt.is_complete)
    });
    if is_page {
        cover(Coverage::Jump);
    }
}

/// Reads content of the request, and returns whether it has ended. `None` if it broke off.
async fn content(
    reader: &mut Reader,
    payload: Payload,
    framing: (Framing, u64),
    at: &mut u64,
    chunk_left: &mut u64,
    max: u64,
    size: u64,
) -> Option<bool> {
    let name = reader.connection.pipe.link().name.clone();
    match reader.content(payload, framing, at, chunk_left, max).await {
        Ok(is_read) => {
            if is_read && *at != size && framing.0 != Framing::None {
                report_violation(format!(
                    "{name} took {at} bytes of exchange {} for a whole request of {size}",
                    payload.id
                ));
            }
            Some(is_read)
        }
        Err(ReadError::Malformed(what)) => {
            report_violation(format!("{name}: {what}"));
            None
        }
        Err(ReadError::Closed { .. }) => {
            trace(|| format!("{name} backend finds exchange {} broken off after {at} bytes", payload.id));
            None
        }
    }
}

fn random_fault() -> Fault {
    pick(&[
        Fault::ClosesBeforeResponse,
        Fault::ResetsBeforeResponse,
        Fault::StallsBeforeResponse,
        Fault::NotHttp,
        Fault::TruncatesHead,
        Fault::TruncatesContent,
        Fault::TruncatesContent,
        Fault::ResetsContent,
        Fault::StallsContent,
        Fault::BadChunk,
    ])
}

fn random_after_early_response() -> AfterEarlyResponse {
    pick(&[
        AfterEarlyResponse::ReadsMeanwhile,
        AfterEarlyResponse::ReadsMeanwhile,
        AfterEarlyResponse::ReadsAfter,
        AfterEarlyResponse::Ignores,
        AfterEarlyResponse::Closes,
    ])
}

fn random_response(id: u32, attempt: usize, head: &Head, fault: Option<Fault>, profile: BackendProfile) -> Response {
    let status = pick(&[200, 200, 200, 200, 200, 404, 500, 503, 204, 304]);
    let is_bare = matches!(status, 204 | 304);
    let framing = match (is_bare, fault) {
        (true, _) => Framing::None,
        // Without a framing that shows where it ends, a truncated response is a complete one.
        (_, Some(Fault::TruncatesContent)) => pick(&[Framing::Length, Framing::Chunked]),
        (_, Some(Fault::BadChunk)) => Framing::Chunked,
        _ => pick(&[Framing::Length, Framing::Length, Framing::Chunked, Framing::UntilClose]),
    };
    let size = if is_bare { 0 } else { size(profile.max_content) };
    Response {
        id,
        attempt,
        status,
        size,
        framing,
        closes: one_in(6),
        is_head: head.first[0] == "HEAD",
        overflows: framing != Framing::UntilClose && one_in(30),
        fault,
        fault_at: if size == 0 { 0 } else { below(size) },
    }
}

/// Writes a response. `None` if the connection has to be closed.
async fn send_response(
    backend: usize,
    response: &Response,
    connection: &Connection,
    profile: BackendProfile,
) -> Option<()> {
    let Response { id, attempt, status, size, framing, fault, .. } = *response;
    let name = &connection.pipe.link().name;
    trace(|| format!("{name} backend answers {id} with {status}, {framing:?}, {size} bytes"));
    if fault == Some(Fault::NotHttp) {
        let _ = connection.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n").await;
        return None;
    }
    let mut head = format!("HTTP/1.1 {status} Sim\r\nX-Exchange: {id}\r\nX-Attempt: {attempt}\r\n");
    match framing {
        Framing::Length => head += &format!("Content-Length: {size}\r\n"),
        Framing::Chunked => head += "Transfer-Encoding: chunked\r\n",
        Framing::None | Framing::UntilClose => {}
    }
    if response.closes {
        head += "Connection: close\r\n";
    }
    head += "\r\n";
    if fault == Some(Fault::TruncatesHead) {
        head.truncate(1 + below(head.len() as u64 - 1) as usize);
    }
    let is_empty = size == 0 && framing == Framing::Length && fault != Some(Fault::TruncatesHead);
    if fault.is_none() || is_empty {
        // Already now: the client may receive the last byte before this task runs again. It compares the size as well.
        mark_complete(id, attempt);
    }
    connection.send(head.as_bytes()).await.ok()?;
    if fault == Some(Fault::TruncatesHead) {
        return None;
    }
    if !response.is_head && framing != Framing::None {
        let breaks_off = fault.is_some();
        let to = if breaks_off { response.fault_at } else { size };
        let mut at = 0;
        let payload = Payload::download(id, attempt);
        let sent = send_content(connection, payload, framing, &mut at, to, profile.max_write).await;
        trace(|| format!("{name} backend has sent {at} bytes of its response to {id}: {sent:?}"));
        sent.ok()?;
        match fault {
            Some(Fault::ResetsContent) => {
                connection.pipe.reset();
                return None;
            }
            Some(Fault::StallsContent) => {
                cover(Coverage::BackendStalled);
                super::wait_for_close(connection.pipe.link(), 0).await;
                return None;
            }
            Some(Fault::BadChunk) => {
                let _ = connection.send(b"no size\r\n").await;
                return None;
            }
            Some(_) => return None,
            None => {}
        }
        if framing == Framing::Chunked {
            connection.send(b"0\r\n\r\n").await.ok()?;
        }
    } else if fault.is_some() {
        return None;
    }
    let written = connection.pipe.link().flow(1).written;
    history::with(|history| {
        let current = history.exchanges[id as usize].current.as_mut();
        if let Some(current) = current.filter(|current| Arc::ptr_eq(&current.backend, connection.pipe.link())) {
            current.response_end = written;
        }
    });
    if response.overflows {
        // The bytes may reach a later exchange on the connection, which cannot know where they come from.
        record_fault(backend);
        let _ = connection.write(b"overflow\r\n\r\n").await;
    }
    Some(())
}

/// Records that the response is complete once its `size` bytes have arrived.
fn mark_complete(id: u32, attempt: usize) {
    history::with(|history| history.exchanges[id as usize].attempts[attempt].is_complete = true);
}

async fn tunnel(
    id: u32,
    attempt: usize,
    key: &str,
    up: u64,
    reader: &mut Reader,
    connection: &Rc<Connection>,
    profile: BackendProfile,
) -> Option<()> {
    let down = size(profile.max_content);
    let name = connection.pipe.link().name.clone();
    history::with(|history| {
        let made = &mut history.exchanges[id as usize].attempts[attempt];
        (made.status, made.size) = (101, down);
    });
    let accept = websocket::accept_of(key.as_bytes());
    let head = format!(
        "HTTP/1.1 101 Switching\r\nX-Exchange: {id}\r\nX-Attempt: {attempt}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    trace(|| format!("{name} backend opens a tunnel for {id}: {down} bytes down, {up} up"));
    connection.send(head.as_bytes()).await.ok()?;
    let (mut sent, mut at, mut chunk_left) = (0, 0, 0);
    let sending =
        send_content(connection, Payload::download(id, attempt), Framing::None, &mut sent, down, profile.max_write);
    let receiving = reader.content(Payload::upload(id), (Framing::Length, up), &mut at, &mut chunk_left, u64::MAX);
    let (sent, received) = tokio::join!(sending, receiving);
    match received {
        Err(ReadError::Malformed(what)) => report_violation(format!("{name}: {what}")),
        Ok(_) if sent.is_ok() => {
            mark_complete(id, attempt);
            if connection.tls.is_some() {
                // To close before the other side's alert has arrived resets the connection and discards what was sent.
                connection.shutdown().await;
                while reader.fill().await.is_ok() {}
            }
        }
        _ => {}
    }
    None
}
