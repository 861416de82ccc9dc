//! Backends: each takes requests from its connections, checks that every byte is where it belongs, and answers, soundly
//! or in one of the ways in which servers fail.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

use super::book::{self, Attempt, Framing, Place, Sight, UnderWay, blame, saw, spoil, trace, violated};
use super::random::{below, between, milliseconds, one_in, pick, size};
use super::tls::Tls;
use super::wire::{Broken, End, Head, Source, Stream, send_content};
use crate::clock;
use crate::http::h1::websocket;
use crate::http::io::pipe::{Link, Pipe};

/// How a backend is in this run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mood {
    /// One request in so many goes wrong; 0: none.
    pub fails: u64,
    /// One connection in so many is not accepted; 0: none.
    pub refuses: u64,
    /// Closes idle connections at any time.
    pub closes_idle: bool,
    /// The most content of a response.
    pub most: u64,
    pub piece: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    ClosesBefore,
    ResetsBefore,
    StallsBefore,
    NotHttp,
    TruncatesHead,
    TruncatesContent,
    ResetsContent,
    StallsContent,
    BadChunk,
}

/// What a backend does with the rest of a request that it has answered early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
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
    /// A byte that belongs to nothing comes behind it.
    overflows: bool,
    fault: Option<Fault>,
    fault_at: u64,
}

/// Serves one connection.
pub(super) async fn run(backend: usize, pipe: Pipe, is_tls: bool, mood: Mood) {
    let end = End::new(pipe, is_tls.then(Tls::backend));
    live(backend, &end, mood).await;
    if let Some(tls) = &end.tls {
        saw(Sight::BackendTls);
        // Without it nobody could tell the end of a response from a cut.
        let _ = poll_fn(|cx| tls.end(cx, &end.pipe)).await;
    }
}

async fn live(backend: usize, end: &Rc<End>, mood: Mood) {
    let link = Arc::clone(end.pipe.link());
    let mut source = Source::new(end);
    let mut served = 0;
    loop {
        if served > 0 && mood.closes_idle && one_in(3) && source.rest().is_empty() {
            let waiting = clock::timeout(milliseconds(0, 50), source.more());
            if waiting.await.is_err() && source.rest().is_empty() {
                trace(|| format!("{} backend closes while idle", link.name));
                saw(Sight::StaleConnection);
                return;
            }
        }
        let head = match source.head().await {
            Ok(head) => head,
            Err(Broken::Malformed(what)) => return violated(format!("{} got what is no request: {what}", link.name)),
            Err(Broken::Ended { .. }) => return,
        };
        if served > 0 {
            saw(Sight::ReusedBackend);
        }
        if serve(backend, &head, &mut source, end, mood).await.is_none() {
            trace(|| format!("{} backend closes", link.name));
            return;
        }
        served += 1;
    }
}

/// Serves one request. `None`: the connection has to be closed.
async fn serve(backend: usize, head: &Head, source: &mut Source, end: &Rc<End>, mood: Mood) -> Option<()> {
    let link = end.pipe.link();
    let (id, attempt) = begin(head, link)?;
    let (reads_late, asked) = book::with(|book| {
        let exchange = &book.exchanges[id as usize];
        (exchange.reads_late, exchange.asked.clone())
    });
    let framing = head.framing(Framing::None);
    let fault = (mood.fails > 0 && one_in(mood.fails)).then(fault);
    if let Some(fault) = fault {
        trace(|| format!("{} backend will fail: {fault:?}", link.name));
        blame(backend);
        spoil(id, attempt);
    }
    match fault {
        Some(Fault::ClosesBefore) => return None,
        Some(Fault::ResetsBefore) => {
            end.pipe.reset();
            return None;
        }
        Some(Fault::StallsBefore) => {
            saw(Sight::BackendStalled);
            super::hold(link, 0).await;
            return None;
        }
        _ => {}
    }
    if head.lists("expect", "100-continue") && !one_in(4) {
        end.send(b"HTTP/1.1 100 Continue\r\n\r\n").await.ok()?;
    }
    let stream = Stream::up(id);
    let (mut at, mut within) = (0, 0);
    let is_early = framing.0 != Framing::None && one_in(3);
    let most = if is_early { below(asked.size + 1) } else { u64::MAX };
    let mut is_read = content(source, stream, framing, &mut at, &mut within, most, asked.size).await?;
    let interims = if one_in(6) { between(1, 3) } else { 0 };
    if interims > 0 && !is_read && reads_late {
        // Both sides only write then.
        blame(backend);
        spoil(id, attempt);
    }
    for _ in 0..interims {
        end.send(pick(&[&b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"[..], b"HTTP/1.1 102 Processing\r\n\r\n"]))
            .await
            .ok()?;
        end.breathe().await;
    }
    if asked.upgrades && head.lists("upgrade", "websocket") && !one_in(4) {
        let key = head.field("sec-websocket-key").unwrap_or_default().to_owned();
        return tunnel(id, attempt, &key, asked.size, source, end, mood).await;
    }
    let response = plan(id, attempt, head, fault, mood);
    if asked.upgrades
        && matches!(response.status, 200..=299)
        && book::with(|book| book.exchanges[id as usize].is_stream)
    {
        // On a stream it would tell that the WebSocket is open: another answer takes its place.
        spoil(id, attempt);
    }
    if asked.place == Place::Paged && matches!(response.status, 500 | 503) {
        // Another answer may take its place, unless it is itself one that did: that is not known here.
        spoil(id, attempt);
    }
    if fault.is_none() {
        note_page(id, attempt);
    }
    book::with(|book| {
        let made = &mut book.exchanges[id as usize].attempts[attempt];
        (made.status, made.size) = (response.status, response.size);
        made.is_until_close = response.framing == Framing::UntilClose;
    });
    let rest = if is_read { Rest::ReadsMeanwhile } else { rest() };
    if !is_read && asked.expects_continue && response.framing == Framing::UntilClose {
        // The end of the response waits for a body that is not sent any more.
        blame(backend);
        spoil(id, attempt);
    }
    if !is_read {
        saw(Sight::EarlyAnswer);
        trace(|| format!("{} backend answers after {at} bytes of {}, then {rest:?}", link.name, asked.size));
        if matches!(rest, Rest::Ignores | Rest::Closes) || (rest == Rest::ReadsAfter && reads_late) {
            // Both sides only write then, or bytes that nobody read end the connection before its time.
            blame(backend);
            spoil(id, attempt);
        }
    }
    if rest == Rest::ReadsMeanwhile && !is_read {
        let reading = content(source, stream, framing, &mut at, &mut within, u64::MAX, asked.size);
        let (answered, read) = tokio::join!(answer(backend, &response, end, mood), reading);
        is_read = read? && answered.is_some();
        answered?;
    } else {
        answer(backend, &response, end, mood).await?;
    }
    match rest {
        Rest::ReadsAfter => {
            is_read = content(source, stream, framing, &mut at, &mut within, u64::MAX, asked.size).await?
        }
        Rest::Ignores => super::hold(link, 0).await,
        Rest::ReadsMeanwhile | Rest::Closes => {}
    }
    let keeps = is_read && !response.closes && response.framing != Framing::UntilClose && !response.overflows;
    keeps.then_some(())
}

/// Takes in a request's head: whether it is one, and one that may be sent here.
fn begin(head: &Head, link: &Arc<Link>) -> Option<(u32, usize)> {
    let name = &link.name;
    let path = head.first.get(1).map_or("", String::as_str);
    let id = path.rsplit('/').next().and_then(|id| id.parse::<u32>().ok());
    let asked = id.and_then(|id| book::with(|book| Some(book.exchanges.get(id as usize)?.asked.clone())));
    let asked = asked.filter(|asked| path == format!("{}{}", asked.place.prefix(), asked.id));
    let asked = asked.filter(|asked| asked.place.own_bytes().is_none());
    let Some(asked) = asked else {
        violated(format!("{name} got a request that nobody sent: {head:?}"));
        return None;
    };
    let id = asked.id;
    if head.number("x-exchange") != Some(u64::from(id)) || head.first[0] != asked.method {
        violated(format!("{name} got a head that is none of exchange {id}: {head:?}"));
    }
    let (framing, length) = head.framing(Framing::None);
    if framing != asked.framing || (framing == Framing::Length && length != asked.size) {
        violated(format!("{name} got exchange {id} framed as {framing:?} {length}, which was {asked:?}"));
    }
    let attempt = book::with(|book| {
        let exchange = &mut book.exchanges[id as usize];
        exchange.attempts.push(Attempt {
            status: 0,
            size: 0,
            is_sound: true,
            is_whole: false,
            is_until_close: false,
            uploaded: 0,
            written: 0,
        });
        exchange.under_way = Some(UnderWay { backend: Arc::clone(link), down_to: u64::MAX });
        exchange.attempts.len() - 1
    });
    trace(|| format!("{name} backend has the head of exchange {id}, attempt {attempt}"));
    if attempt > 0 {
        saw(Sight::Retry);
        if asked.method == "POST" {
            violated(format!("{name} got exchange {id}, a POST which another backend had got"));
        }
    }
    Some((id, attempt))
}

/// A sound answer that comes after one which a page takes the place of is that of the page.
fn note_page(id: u32, attempt: usize) {
    let is_page = book::with(|book| {
        let exchange = &book.exchanges[id as usize];
        let before = &exchange.attempts[..attempt];
        exchange.asked.place == Place::Paged && before.iter().any(|attempt| attempt.status == 503 && attempt.is_whole)
    });
    if is_page {
        saw(Sight::Jump);
    }
}

/// Reads content of the request. `None`: it broke off.
async fn content(
    source: &mut Source,
    stream: Stream,
    framing: (Framing, u64),
    at: &mut u64,
    within: &mut u64,
    most: u64,
    size: u64,
) -> Option<bool> {
    let name = source.end.pipe.link().name.clone();
    match source.content(stream, framing, at, within, most).await {
        Ok(is_read) => {
            if is_read && *at != size && framing.0 != Framing::None {
                violated(format!("{name} took {at} bytes of exchange {} for a whole request of {size}", stream.id));
            }
            Some(is_read)
        }
        Err(Broken::Malformed(what)) => {
            violated(format!("{name}: {what}"));
            None
        }
        Err(Broken::Ended { .. }) => {
            trace(|| format!("{name} backend finds exchange {} broken off after {at} bytes", stream.id));
            None
        }
    }
}

fn fault() -> Fault {
    pick(&[
        Fault::ClosesBefore,
        Fault::ResetsBefore,
        Fault::StallsBefore,
        Fault::NotHttp,
        Fault::TruncatesHead,
        Fault::TruncatesContent,
        Fault::TruncatesContent,
        Fault::ResetsContent,
        Fault::StallsContent,
        Fault::BadChunk,
    ])
}

fn rest() -> Rest {
    pick(&[Rest::ReadsMeanwhile, Rest::ReadsMeanwhile, Rest::ReadsAfter, Rest::Ignores, Rest::Closes])
}

fn plan(id: u32, attempt: usize, head: &Head, fault: Option<Fault>, mood: Mood) -> Response {
    let status = pick(&[200, 200, 200, 200, 200, 404, 500, 503, 204, 304]);
    let is_bare = matches!(status, 204 | 304);
    let framing = match (is_bare, fault) {
        (true, _) => Framing::None,
        // Its end could be the end of anything.
        (_, Some(Fault::TruncatesContent)) => pick(&[Framing::Length, Framing::Chunked]),
        (_, Some(Fault::BadChunk)) => Framing::Chunked,
        _ => pick(&[Framing::Length, Framing::Length, Framing::Chunked, Framing::UntilClose]),
    };
    let size = if is_bare { 0 } else { size(mood.most) };
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

/// Writes a response. `None`: the connection has to be closed.
async fn answer(backend: usize, response: &Response, end: &End, mood: Mood) -> Option<()> {
    let Response { id, attempt, status, size, framing, fault, .. } = *response;
    let name = &end.pipe.link().name;
    trace(|| format!("{name} backend answers {id} with {status}, {framing:?}, {size} bytes"));
    if fault == Some(Fault::NotHttp) {
        let _ = end.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n").await;
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
        // From now on: a client may have the last byte before this task runs again. The size says the rest.
        wrote(id, attempt);
    }
    end.send(head.as_bytes()).await.ok()?;
    if fault == Some(Fault::TruncatesHead) {
        return None;
    }
    if !response.is_head && framing != Framing::None {
        let breaks_off = fault.is_some();
        let to = if breaks_off { response.fault_at } else { size };
        let mut at = 0;
        let stream = Stream::down(id, attempt);
        let sent = send_content(end, stream, framing, &mut at, to, mood.piece).await;
        trace(|| format!("{name} backend has sent {at} bytes of its response to {id}: {sent:?}"));
        sent.ok()?;
        match fault {
            Some(Fault::ResetsContent) => {
                end.pipe.reset();
                return None;
            }
            Some(Fault::StallsContent) => {
                saw(Sight::BackendStalled);
                super::hold(end.pipe.link(), 0).await;
                return None;
            }
            Some(Fault::BadChunk) => {
                let _ = end.send(b"no size\r\n").await;
                return None;
            }
            Some(_) => return None,
            None => {}
        }
        if framing == Framing::Chunked {
            end.send(b"0\r\n\r\n").await.ok()?;
        }
    } else if fault.is_some() {
        return None;
    }
    let written = end.pipe.link().flow(1).written;
    book::with(|book| {
        let under_way = book.exchanges[id as usize].under_way.as_mut();
        if let Some(under_way) = under_way.filter(|under_way| Arc::ptr_eq(&under_way.backend, end.pipe.link())) {
            under_way.down_to = written;
        }
    });
    if response.overflows {
        // It may come to an exchange that follows on the connection, which cannot be known there.
        blame(backend);
        let _ = end.write(b"overflow\r\n\r\n").await;
    }
    Some(())
}

/// The response is whole once `size` bytes of it have come.
fn wrote(id: u32, attempt: usize) {
    book::with(|book| book.exchanges[id as usize].attempts[attempt].is_whole = true);
}

async fn tunnel(
    id: u32,
    attempt: usize,
    key: &str,
    up: u64,
    source: &mut Source,
    end: &Rc<End>,
    mood: Mood,
) -> Option<()> {
    let down = size(mood.most);
    let name = end.pipe.link().name.clone();
    book::with(|book| {
        let made = &mut book.exchanges[id as usize].attempts[attempt];
        (made.status, made.size) = (101, down);
    });
    let accept = websocket::accept_of(key.as_bytes());
    let head = format!(
        "HTTP/1.1 101 Switching\r\nX-Exchange: {id}\r\nX-Attempt: {attempt}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    trace(|| format!("{name} backend opens a tunnel for {id}: {down} bytes down, {up} up"));
    end.send(head.as_bytes()).await.ok()?;
    let (mut sent, mut at, mut within) = (0, 0, 0);
    let sending = send_content(end, Stream::down(id, attempt), Framing::None, &mut sent, down, mood.piece);
    let hearing = source.content(Stream::up(id), (Framing::Length, up), &mut at, &mut within, u64::MAX);
    let (sent, heard) = tokio::join!(sending, hearing);
    match heard {
        Err(Broken::Malformed(what)) => violated(format!("{name}: {what}")),
        Ok(_) if sent.is_ok() => {
            wrote(id, attempt);
            if end.tls.is_some() {
                // Who closes while the other side's alert is coming resets the connection, and takes back what was sent.
                end.end().await;
                while source.more().await.is_ok() {}
            }
        }
        _ => {}
    }
    None
}
