//! Clients of HTTP/2, whose requests share a connection. The protocol is that of the `h2` crate, so that the balancer's is
//! held against another implementation.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::book::{
    self, Answer, Asked, ClientFault, Framing, Place, Sight, Signal, client_at_fault, received, saw, trace, violated,
    written,
};
use super::client::is_of;
use super::executor::{Kind, spawn};
use super::random::{below, milliseconds, one_in, pick};
use super::wire::{Pauses, Stream};
use crate::clock;
use crate::http::io::pipe::{Link, Pipe};

/// More than all responses of a connection.
const AMPLE_WINDOW: u32 = 1 << 30;

/// What one connection of a client is to do.
pub(super) struct Plan {
    pub requests: Vec<Asked>,
    /// Keeps the connection until the balancer closes it.
    pub stays: bool,
    /// The largest piece of content that is written at once.
    pub piece: u64,
}

struct Client {
    link: Arc<Link>,
    /// Of the connection, as long as there is one.
    pipe: Weak<Pipe>,
    ids: Vec<u32>,
    piece: u64,
    pauses: Pauses,
    /// No response takes the window of another.
    has_ample_window: bool,
    has_left: Cell<bool>,
    changed: Rc<Signal>,
}

/// Lives through a connection, to its end.
pub(super) async fn run(plan: Plan, pipe: Pipe) {
    saw(Sight::Http2);
    // Responses that are not read would take the window of the others.
    let leaves_unread = plan.requests.iter().any(|asked| asked.fault == ClientFault::StallsReading);
    let window = if leaves_unread { AMPLE_WINDOW } else { pick(&[65_535, AMPLE_WINDOW]) };
    let pipe = Rc::new(pipe);
    let client = Rc::new(Client {
        link: Arc::clone(pipe.link()),
        pipe: Rc::downgrade(&pipe),
        ids: plan.requests.iter().map(|asked| asked.id).collect(),
        piece: plan.piece,
        pauses: Pauses::new(),
        has_ample_window: window == AMPLE_WINDOW,
        has_left: Cell::default(),
        changed: Rc::default(),
    });
    let name = &client.link.name;
    let mut builder = Builder::new();
    builder.enable_push(false).initial_connection_window_size(window);
    // Where pipes are narrow, pieces are small, and a client that pauses would take them for an attack.
    builder.data_frame_budget(usize::MAX);
    builder.initial_window_size(pick(&[100, 2_000, 65_535, 1 << 20]));
    let Ok((send, connection)) = builder.handshake::<_, Bytes>(Socket(pipe)).await else { return };
    for asked in plan.requests {
        let delay = if one_in(2) { Duration::ZERO } else { milliseconds(0, 20) };
        spawn(Kind::Actor, exchange(Rc::clone(&client), send.clone(), asked, delay));
    }
    let kept = plan.stays.then(|| send.clone());
    drop(send);
    tokio::select! {
        biased;
        () = client.changed.until(|| client.has_left.get()) => {}
        ended = connection => {
            trace(|| format!("{name} client: the connection has ended: {ended:?}"));
            let complaint = ended.err().filter(|e| e.is_library() || e.is_remote() && e.is_go_away());
            if let Some(e) = complaint.filter(|e| e.reason() != Some(Reason::NO_ERROR)) {
                violated(format!("{name}: the connection ended by {e:?}"));
            }
        }
    }
    drop(kept);
    trace(|| format!("{name} client closes"));
}

/// One request, on a stream of its own.
async fn exchange(client: Rc<Client>, mut send: SendRequest<Bytes>, asked: Asked, delay: Duration) {
    let name = &client.link.name;
    clock::sleep(delay).await;
    if poll_fn(|cx| send.poll_ready(cx)).await.is_err() {
        return;
    }
    // Once the balancer's settings are there (RFC 8441 §3).
    while asked.upgrades && !send.is_extended_connect_protocol_enabled() {
        if client.pipe.upgrade().is_none() {
            return;
        }
        clock::sleep(Duration::from_millis(1)).await;
    }
    trace(|| format!("{name} client asks {asked:?}"));
    let Ok((mut response, mut body)) =
        send.send_request(head(&asked), asked.framing == Framing::None && !asked.upgrades)
    else {
        return;
    };
    drop(send);
    let has_continued = Continued::default();
    tokio::join!(
        upload(&client, &asked, &mut body, &has_continued),
        download(&client, &asked, &mut response, &has_continued)
    );
}

fn head(asked: &Asked) -> Request<()> {
    let Asked { id, method, framing, size, .. } = asked;
    let mut head = Request::builder()
        .method(*method)
        .uri(format!("http://sim{}{id}", asked.place.prefix()))
        .header("x-exchange", *id);
    if *framing == Framing::Length {
        head = head.header("content-length", *size);
    }
    if asked.expects_continue {
        head = head.header("expect", "100-continue");
    }
    let mut head = head.body(()).expect("a sound head");
    if asked.upgrades {
        *head.method_mut() = Method::CONNECT;
        head.extensions_mut().insert(Protocol::from_static("websocket"));
    }
    head
}

/// What a client waits for that holds its content back.
#[derive(Default)]
struct Continued {
    /// It is asked for it, or has its answer.
    may_send: Cell<bool>,
    /// Its WebSocket is open.
    is_open: Cell<bool>,
    changed: Rc<Signal>,
}

impl Continued {
    fn set(&self) -> bool {
        let before = self.may_send.replace(true);
        self.changed.notify();
        before
    }
}

async fn upload(client: &Client, asked: &Asked, body: &mut SendStream<Bytes>, has_continued: &Continued) {
    if asked.framing == Framing::None && !asked.upgrades {
        return;
    }
    if asked.expects_continue || asked.upgrades {
        has_continued.changed.until(|| has_continued.may_send.get()).await;
    }
    if asked.upgrades && !has_continued.is_open.get() {
        return;
    }
    let (name, id) = (&client.link.name, asked.id);
    let deviates =
        matches!(asked.fault, ClientFault::StallsSending | ClientFault::LeavesSending | ClientFault::ResetsSending);
    let to = if deviates { asked.fault_at.min(asked.size) } else { asked.size };
    let (stream, mut at) = (Stream::up(id), 0);
    while at < to {
        let count = (1 + below(client.piece)).min(to - at);
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
        stream.write(at, count, &mut out);
        if body.send_data(Bytes::from(out), false).is_err() {
            return;
        }
        at += count;
        written(stream, at);
        client.pauses.breathe().await;
    }
    trace(|| format!("{name} client has written {at} bytes of {id}"));
    if asked.upgrades && !one_in(3) {
        // The backend ends it.
        return;
    }
    if !deviates {
        let _ = body.send_data(Bytes::new(), true);
        return;
    }
    client_at_fault(id);
    match asked.fault {
        ClientFault::StallsSending => saw(Sight::ClientStalled),
        ClientFault::LeavesSending => {
            saw(Sight::StreamReset);
            body.send_reset(Reason::CANCEL);
        }
        _ => client.leave(),
    }
}

async fn download(client: &Client, asked: &Asked, response: &mut ResponseFuture, has_continued: &Continued) {
    let outcome = read(client, asked, response, has_continued).await;
    book::with(|book| book.exchanges[asked.id as usize].is_awaiting = false);
    has_continued.set();
    trace(|| format!("{} client has had {}: {outcome:?}", client.link.name, asked.id));
    if outcome.is_some() {
        return;
    }
    // Here the client deviates.
    client_at_fault(asked.id);
    match asked.fault {
        ClientFault::StallsReading => {
            saw(Sight::ClientStalled);
            super::hold(&client.link, 0).await;
        }
        ClientFault::ResetsReading => client.leave(),
        _ => saw(Sight::StreamReset),
    }
}

#[derive(Debug)]
enum Outcome {
    Whole,
    Broken,
}

/// `None`: the client deviates now.
async fn read(
    client: &Client,
    asked: &Asked,
    response: &mut ResponseFuture,
    has_continued: &Continued,
) -> Option<Outcome> {
    let name = &client.link.name;
    let deviates =
        matches!(asked.fault, ClientFault::StallsReading | ClientFault::LeavesReading | ClientFault::ResetsReading);
    if deviates && asked.fault_at == 0 {
        return None;
    }
    let head = loop {
        let head = awaiting(client, asked.id, |cx| match response.poll_informational(cx) {
            Poll::Ready(Some(interim)) => Poll::Ready(interim.map(Head::Interim)),
            Poll::Ready(None) => Pin::new(&mut *response).poll(cx).map_ok(Head::Final),
            Poll::Pending => Poll::Pending,
        });
        match head.await {
            Ok(Head::Final(head)) => break head,
            Ok(Head::Interim(head)) if head.status() == 100 => {
                saw(Sight::Continue);
                if has_continued.set() {
                    violated(format!("{name}: a second 100 for exchange {}", asked.id));
                }
            }
            Ok(Head::Interim(_)) => saw(Sight::Interim),
            Err(_) => return Some(Outcome::Broken),
        }
    };
    let (head, mut content) = head.into_parts();
    let is_open = asked.upgrades && head.status == 200;
    let status = if is_open { 101 } else { head.status.as_u16() };
    if is_open {
        has_continued.is_open.set(true);
        has_continued.set();
    }
    trace(|| format!("{name} client has a head for {}: {status}", asked.id));
    let Some(id) = number(&head.headers, "x-exchange") else {
        return Some(own_answer(asked, status, &mut content).await);
    };
    let attempt = number(&head.headers, "x-attempt").unwrap_or(u64::MAX) as usize;
    if !is_of(asked.id, name, id, attempt, status) {
        return Some(Outcome::Broken);
    }
    let is_bare = asked.method == "HEAD" || matches!(status, 204 | 304);
    let stream = Stream::down(asked.id, attempt);
    let mut at = 0;
    loop {
        if deviates && at >= asked.fault_at {
            return None;
        }
        let bytes = match awaiting(client, asked.id, |cx| content.poll_data(cx)).await {
            Some(Ok(bytes)) => bytes,
            Some(Err(_)) => {
                saw(Sight::Truncation);
                return Some(Outcome::Broken);
            }
            None => break,
        };
        if let Some(complaint) = stream.complaint(at, &bytes) {
            violated(format!("{name}: {complaint}"));
        }
        at += bytes.len() as u64;
        received(stream, &client.link, at);
        client.pauses.breathe().await;
        let _ = content.flow_control().release_capacity(bytes.len());
    }
    let made = book::with(|book| book.exchanges[asked.id as usize].attempts[attempt].clone());
    if is_open {
        // Its end says nothing of what it carried.
        if made.is_whole && made.size == at {
            saw(Sight::Http2Tunnel);
            book::with(|book| book.exchanges[asked.id as usize].answer = Some(Answer::Backend { attempt }));
        }
        return Some(Outcome::Whole);
    }
    if !is_bare && (!made.is_whole || made.size != at) {
        violated(format!("{name} took {at} bytes of exchange {} for a whole response, of {made:?}", asked.id));
    }
    saw(Sight::WholeResponse);
    book::with(|book| book.exchanges[asked.id as usize].answer = Some(Answer::Backend { attempt }));
    Some(Outcome::Whole)
}

enum Head {
    Interim(Response<()>),
    Final(Response<RecvStream>),
}

async fn own_answer(asked: &Asked, status: u16, content: &mut RecvStream) -> Outcome {
    if status < 400 {
        violated(format!("exchange {} was answered {status} by nobody", asked.id));
    }
    saw(match (asked.place, status) {
        (Place::Own | Place::Large, 418) => Sight::OwnAnswer,
        (Place::Paged, 500) => Sight::ErrorPage,
        _ => Sight::Refusal,
    });
    let mut length = 0;
    while let Some(bytes) = poll_fn(|cx| content.poll_data(cx)).await {
        let Ok(bytes) = bytes else { return Outcome::Broken };
        length += bytes.len() as u64;
        let _ = content.flow_control().release_capacity(bytes.len());
    }
    if status == 418 && asked.method != "HEAD" && asked.place.own_bytes() != Some(length) {
        violated(format!("exchange {} was answered with {length} bytes: {:?}", asked.id, asked.place));
    }
    book::with(|book| book.exchanges[asked.id as usize].answer = Some(Answer::Balancer { status }));
    Outcome::Whole
}

/// Waits for what is to come of a response, and has the book know that it is waited for and can come.
async fn awaiting<T>(client: &Client, id: u32, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
    poll_fn(|cx| {
        let polled = poll(cx);
        book::with(|book| book.exchanges[id as usize].is_awaiting = polled.is_pending() && client.has_ample_window);
        polled
    })
    .await
}

fn number(fields: &HeaderMap, name: &str) -> Option<u64> {
    fields.get(name)?.to_str().ok()?.parse().ok()
}

impl Client {
    /// Resets the connection.
    fn leave(&self) {
        saw(Sight::ClientLeft);
        self.ids.iter().for_each(|&id| client_at_fault(id));
        self.pipe.upgrade().iter().for_each(|pipe| pipe.reset());
        self.has_left.set(true);
        self.changed.notify();
    }
}

/// A pipe whose other uses it can still be asked for.
struct Socket(Rc<Pipe>);

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.read(cx, buf.initialize_unfilled()).map_ok(|count| buf.advance(count))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.end();
        Poll::Ready(Ok(()))
    }
}
