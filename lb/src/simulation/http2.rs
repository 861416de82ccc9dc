//! Clients of HTTP/2, whose requests share a connection. They use the `h2` crate, so that the balancer's implementation
//! is tested against another one.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::client::is_response_of;
use super::executor::{TaskKind, spawn};
use super::history::{
    self, ClientFault, Coverage, Framing, PlannedRequest, ResponseOrigin, Route, Signal, cover, record_client_fault,
    record_received, record_written, report_violation, trace,
};
use super::random::{below, milliseconds, one_in, pick};
use super::wire::{Pauses, Payload, Sips};
use crate::clock::{self, Sleep};
use crate::http::io::pipe::{Link, Pipe};

/// More bytes than all responses of a connection have.
const AMPLE_WINDOW: u32 = 1 << 30;

/// What one connection of a client is to do.
pub(super) struct Plan {
    pub requests: Vec<PlannedRequest>,
    /// Keeps the connection open until the balancer closes it.
    pub keeps_open: bool,
    pub sips: Sips,
    /// The most bytes of content in one write.
    pub max_write: u64,
}

struct Client {
    link: Arc<Link>,
    /// The connection's pipe, while it exists.
    pipe: Weak<Pipe>,
    ids: Vec<u32>,
    max_write: u64,
    pauses: Pauses,
    /// The connection's window is so large that no response uses up the window of another.
    has_ample_window: bool,
    has_left: Cell<bool>,
    changed: Rc<Signal>,
}

/// Runs one connection until it ends.
pub(super) async fn run(plan: Plan, pipe: Pipe) {
    cover(Coverage::Http2);
    // Unread responses would use up the window of the others.
    let leaves_unread = plan.requests.iter().any(|request| request.fault == ClientFault::StallsWhileReading);
    let window = if leaves_unread { AMPLE_WINDOW } else { pick(&[65_535, AMPLE_WINDOW]) };
    // Who reads slowly would open windows too late.
    let window = if plan.sips.has_any() { AMPLE_WINDOW } else { window };
    let pipe = Rc::new(pipe);
    let client = Rc::new(Client {
        link: Arc::clone(pipe.link()),
        pipe: Rc::downgrade(&pipe),
        ids: plan.requests.iter().map(|request| request.id).collect(),
        max_write: plan.max_write,
        pauses: Pauses::new(),
        has_ample_window: window == AMPLE_WINDOW,
        has_left: Cell::default(),
        changed: Rc::default(),
    });
    let name = &client.link.name;
    let mut builder = Builder::new();
    builder.enable_push(false).initial_connection_window_size(window);
    // A narrow pipe makes frames small, and the client would take many small frames for an attack.
    builder.data_frame_budget(usize::MAX);
    let stream_window = pick(&[100, 2_000, 65_535, 1 << 20]);
    builder.initial_window_size(if plan.sips.has_any() { AMPLE_WINDOW } else { stream_window });
    let is_slow = plan.sips.has_any();
    let socket = Socket { pipe, sips: plan.sips, pause: None };
    let Ok((send, connection)) = builder.handshake::<_, Bytes>(socket).await else { return };
    for request in plan.requests {
        // Some requests of a slow reader come while it still reads earlier responses.
        let most_ms = if is_slow { 4_000 } else { 20 };
        let delay = if one_in(2) { Duration::ZERO } else { milliseconds(0, most_ms) };
        spawn(TaskKind::Actor, exchange(Rc::clone(&client), send.clone(), request, delay));
    }
    let kept = plan.keeps_open.then(|| send.clone());
    drop(send);
    tokio::select! {
        biased;
        () = client.changed.until(|| client.has_left.get()) => {}
        ended = connection => {
            trace(|| format!("{name} client: the connection has ended: {ended:?}"));
            let error = ended.err().filter(|e| e.is_library() || e.is_remote() && e.is_go_away());
            if let Some(e) = error.filter(|e| e.reason() != Some(Reason::NO_ERROR)) {
                report_violation(format!("{name}: the connection ended by {e:?}"));
            }
        }
    }
    drop(kept);
    trace(|| format!("{name} client closes"));
}

/// Sends one request on a stream of its own, and reads the response.
async fn exchange(client: Rc<Client>, mut send: SendRequest<Bytes>, request: PlannedRequest, delay: Duration) {
    let name = &client.link.name;
    clock::sleep(delay).await;
    if poll_fn(|cx| send.poll_ready(cx)).await.is_err() {
        return;
    }
    // Extended CONNECT needs the balancer's settings (RFC 8441 §3).
    while request.upgrades && !send.is_extended_connect_protocol_enabled() {
        if client.pipe.upgrade().is_none() {
            return;
        }
        clock::sleep(Duration::from_millis(1)).await;
    }
    trace(|| format!("{name} client asks {request:?}"));
    let Ok((mut response, mut body)) =
        send.send_request(head(&request), request.framing == Framing::None && !request.upgrades)
    else {
        return;
    };
    drop(send);
    let gate = UploadGate::default();
    tokio::join!(upload(&client, &request, &mut body, &gate), download(&client, &request, &mut response, &gate));
}

fn head(request: &PlannedRequest) -> Request<()> {
    let PlannedRequest { id, method, framing, size, .. } = request;
    let mut head = Request::builder()
        .method(*method)
        .uri(format!("http://sim{}{id}", request.route.prefix()))
        .header("x-exchange", *id);
    if *framing == Framing::Length {
        head = head.header("content-length", *size);
    }
    if request.expects_continue {
        head = head.header("expect", "100-continue");
    }
    let mut head = head.body(()).expect("a sound head");
    if request.upgrades {
        *head.method_mut() = Method::CONNECT;
        head.extensions_mut().insert(Protocol::from_static("websocket"));
    }
    head
}

/// What a client waits for before it sends content.
#[derive(Default)]
struct UploadGate {
    /// A 100, or the final response, has arrived.
    may_send: Cell<bool>,
    /// The WebSocket is open.
    is_open: Cell<bool>,
    changed: Rc<Signal>,
}

impl UploadGate {
    fn set(&self) -> bool {
        let before = self.may_send.replace(true);
        self.changed.notify();
        before
    }
}

async fn upload(client: &Client, request: &PlannedRequest, body: &mut SendStream<Bytes>, gate: &UploadGate) {
    if request.framing == Framing::None && !request.upgrades {
        return;
    }
    if request.expects_continue || request.upgrades {
        gate.changed.until(|| gate.may_send.get()).await;
    }
    if request.upgrades && !gate.is_open.get() {
        return;
    }
    let (name, id) = (&client.link.name, request.id);
    let misbehaves = matches!(
        request.fault,
        ClientFault::StallsWhileSending | ClientFault::ClosesWhileSending | ClientFault::ResetsWhileSending
    );
    let to = if misbehaves { request.fault_at.min(request.size) } else { request.size };
    let (payload, mut at) = (Payload::upload(id), 0);
    while at < to {
        let count = (1 + below(client.max_write)).min(to - at);
        body.reserve_capacity(count as usize);
        let capacity = loop {
            match poll_fn(|cx| body.poll_capacity(cx)).await {
                Some(Ok(0)) => {}
                Some(Ok(capacity)) => break capacity as u64,
                Some(Err(_)) | None => return,
            }
        };
        let count = count.min(capacity);
        let mut out = Vec::new();
        payload.write(at, count, &mut out);
        if body.send_data(Bytes::from(out), false).is_err() {
            return;
        }
        at += count;
        record_written(payload, at);
        client.pauses.maybe_pause().await;
    }
    trace(|| format!("{name} client has written {at} bytes of {id}"));
    if request.upgrades && !one_in(3) {
        // The backend ends the tunnel.
        return;
    }
    if !misbehaves {
        let _ = body.send_data(Bytes::new(), true);
        return;
    }
    record_client_fault(id);
    match request.fault {
        ClientFault::StallsWhileSending => cover(Coverage::ClientStalled),
        ClientFault::ClosesWhileSending => {
            cover(Coverage::StreamReset);
            body.send_reset(Reason::CANCEL);
        }
        _ => client.reset_connection(),
    }
}

async fn download(client: &Client, request: &PlannedRequest, response: &mut ResponseFuture, gate: &UploadGate) {
    let outcome = read(client, request, response, gate).await;
    history::with(|history| history.exchanges[request.id as usize].is_awaiting = false);
    gate.set();
    trace(|| format!("{} client has had {}: {outcome:?}", client.link.name, request.id));
    if outcome.is_some() {
        return;
    }
    // The client commits its fault now.
    record_client_fault(request.id);
    match request.fault {
        ClientFault::StallsWhileReading => {
            cover(Coverage::ClientStalled);
            super::wait_for_close(&client.link, 0).await;
        }
        ClientFault::ResetsWhileReading => client.reset_connection(),
        _ => cover(Coverage::StreamReset),
    }
}

#[derive(Debug)]
enum Outcome {
    Complete,
    Incomplete,
}

/// Reads the response. `None` if it is time for the client's fault.
async fn read(
    client: &Client,
    request: &PlannedRequest,
    response: &mut ResponseFuture,
    gate: &UploadGate,
) -> Option<Outcome> {
    let name = &client.link.name;
    let misbehaves = matches!(
        request.fault,
        ClientFault::StallsWhileReading | ClientFault::ClosesWhileReading | ClientFault::ResetsWhileReading
    );
    if misbehaves && request.fault_at == 0 {
        return None;
    }
    let head = loop {
        let head = awaiting_response(client, request.id, |cx| match response.poll_informational(cx) {
            Poll::Ready(Some(interim)) => Poll::Ready(interim.map(Head::Interim)),
            Poll::Ready(None) => Pin::new(&mut *response).poll(cx).map_ok(Head::Final),
            Poll::Pending => Poll::Pending,
        });
        match head.await {
            Ok(Head::Final(head)) => break head,
            Ok(Head::Interim(head)) if head.status() == 100 => {
                cover(Coverage::Continue);
                if gate.set() {
                    report_violation(format!("{name}: a second 100 for exchange {}", request.id));
                }
            }
            Ok(Head::Interim(_)) => cover(Coverage::Interim),
            Err(_) => return Some(Outcome::Incomplete),
        }
    };
    let (head, mut content) = head.into_parts();
    let is_open = request.upgrades && head.status == 200;
    let status = if is_open { 101 } else { head.status.as_u16() };
    if is_open {
        gate.is_open.set(true);
        gate.set();
    }
    trace(|| format!("{name} client has a head for {}: {status}", request.id));
    let Some(id) = number(&head.headers, "x-exchange") else {
        return Some(read_local_response(request, status, &mut content).await);
    };
    let attempt = number(&head.headers, "x-attempt").unwrap_or(u64::MAX) as usize;
    if !is_response_of(request.id, name, id, attempt, status) {
        return Some(Outcome::Incomplete);
    }
    let is_bare = request.method == "HEAD" || matches!(status, 204 | 304);
    let payload = Payload::download(request.id, attempt);
    let mut at = 0;
    loop {
        if misbehaves && at >= request.fault_at {
            return None;
        }
        let bytes = match awaiting_response(client, request.id, |cx| content.poll_data(cx)).await {
            Some(Ok(bytes)) => bytes,
            Some(Err(_)) => {
                cover(Coverage::Truncation);
                return Some(Outcome::Incomplete);
            }
            None => break,
        };
        if let Some(mismatch) = payload.mismatch(at, &bytes) {
            report_violation(format!("{name}: {mismatch}"));
        }
        at += bytes.len() as u64;
        record_received(payload, &client.link, at);
        client.pauses.maybe_pause().await;
        let _ = content.flow_control().release_capacity(bytes.len());
    }
    let made = history::with(|history| history.exchanges[request.id as usize].attempts[attempt].clone());
    if is_open {
        // The end of a tunnel does not tell whether everything arrived.
        if made.is_complete && made.size == at {
            cover(Coverage::Http2Tunnel);
            history::with(|history| {
                history.exchanges[request.id as usize].response = Some(ResponseOrigin::Backend { attempt })
            });
        }
        return Some(Outcome::Complete);
    }
    if !is_bare && (!made.is_complete || made.size != at) {
        report_violation(format!(
            "{name} took {at} bytes of exchange {} for a whole response, of {made:?}",
            request.id
        ));
    }
    cover(Coverage::CompleteResponse);
    history::with(|history| {
        history.exchanges[request.id as usize].response = Some(ResponseOrigin::Backend { attempt })
    });
    Some(Outcome::Complete)
}

enum Head {
    Interim(Response<()>),
    Final(Response<RecvStream>),
}

async fn read_local_response(request: &PlannedRequest, status: u16, content: &mut RecvStream) -> Outcome {
    if status < 400 {
        report_violation(format!("exchange {} was answered {status} by nobody", request.id));
    }
    cover(match (request.route, status) {
        (Route::Local | Route::LocalLarge, 418) => Coverage::LocalResponse,
        (Route::ErrorPages, 500) => Coverage::ErrorPage,
        _ => Coverage::Refusal,
    });
    let mut length = 0;
    while let Some(bytes) = poll_fn(|cx| content.poll_data(cx)).await {
        let Ok(bytes) = bytes else { return Outcome::Incomplete };
        length += bytes.len() as u64;
        let _ = content.flow_control().release_capacity(bytes.len());
    }
    if status == 418 && request.method != "HEAD" && request.route.local_bytes() != Some(length) {
        report_violation(format!("exchange {} was answered with {length} bytes: {:?}", request.id, request.route));
    }
    history::with(|history| {
        history.exchanges[request.id as usize].response = Some(ResponseOrigin::Balancer { status })
    });
    Outcome::Complete
}

/// Waits for more of a response, and records in the history that the client waits and that nothing holds it up.
async fn awaiting_response<T>(client: &Client, id: u32, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
    poll_fn(|cx| {
        let polled = poll(cx);
        history::with(|history| {
            history.exchanges[id as usize].is_awaiting = polled.is_pending() && client.has_ample_window
        });
        polled
    })
    .await
}

fn number(fields: &HeaderMap, name: &str) -> Option<u64> {
    fields.get(name)?.to_str().ok()?.parse().ok()
}

impl Client {
    /// Resets the connection, with all its streams.
    fn reset_connection(&self) {
        cover(Coverage::ClientLeft);
        self.ids.iter().for_each(|&id| record_client_fault(id));
        self.pipe.upgrade().iter().for_each(|pipe| pipe.reset());
        self.has_left.set(true);
        self.changed.notify();
    }
}

/// A shared pipe, so that the client can still reset it while the connection uses it.
struct Socket {
    pipe: Rc<Pipe>,
    sips: Sips,
    /// Until when nothing is read.
    pause: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let most = self.sips.most(self.pipe.link().flow(0).unread()).min(buf.remaining());
        let read = self.pipe.read(cx, buf.initialize_unfilled_to(most));
        if read.is_ready() {
            self.pause = self.sips.next().map(|pause| Box::pin(clock::sleep(pause)));
        }
        read.map_ok(|count| buf.advance(count))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.pipe.write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pipe.shutdown();
        Poll::Ready(Ok(()))
    }
}
