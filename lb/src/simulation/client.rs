//! Clients: each sends the requests of one connection, holds what it gets against what the backends sent, and may
//! deviate in any way that clients do.

use std::cell::Cell;
use std::rc::Rc;

use super::book::{
    self, Answer, Asked, ClientFault, Framing, Place, Sight, Signal, client_at_fault, saw, trace, violated,
};
use super::random::one_in;
use super::wire::{Broken, End, Head, Source, Stream, send_content};
use crate::clock;
use crate::config::HalfClose;

/// What one connection of a client is to do.
pub(super) struct Plan {
    pub requests: Vec<Asked>,
    /// Sends requests before the responses to those before have come.
    pub is_pipelined: bool,
    /// Reads a response only once its request has been sent.
    pub reads_late: bool,
    /// Keeps the connection until the balancer closes it.
    pub stays: bool,
    /// The largest piece of content that is written at once.
    pub piece: u64,
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

/// Lives through a connection, to its end.
pub(super) async fn run(plan: Plan, end: Rc<End>) {
    let name = end.pipe.link().name.clone();
    let progress = Progress::default();
    if end.tls.is_some() {
        saw(Sight::Tls);
    }
    {
        let both = async {
            tokio::join!(write(&plan, &end, &progress), read(&plan, &end, &progress));
        };
        tokio::select! {
            biased;
            () = progress.changed.until(|| progress.has_left.get()) => {}
            () = both => {}
        }
    }
    trace(|| format!("{name} client closes"));
}

/// From the `n`th request on nothing can be expected any more.
fn at_fault(plan: &Plan, progress: &Progress) {
    plan.requests[progress.answered.get().min(plan.requests.len())..]
        .iter()
        .for_each(|asked| client_at_fault(asked.id));
}

async fn write(plan: &Plan, end: &Rc<End>, progress: &Progress) {
    for (n, asked) in plan.requests.iter().enumerate() {
        if !plan.is_pipelined {
            progress.changed.until(|| progress.answered.get() >= n || progress.is_over.get()).await;
        }
        if progress.is_over.get() {
            return;
        }
        if n > progress.answered.get() {
            let earlier = &plan.requests[progress.answered.get()..n];
            book::with(|book| earlier.iter().for_each(|asked| book.exchanges[asked.id as usize].is_overtaken = true));
        }
        let goes_on = write_one(plan, asked, n, end, progress).await.is_some();
        let written = end.pipe.link().flow(1).written;
        if goes_on {
            book::with(|book| book.exchanges[asked.id as usize].up_to = written);
        }
        progress.set(&progress.sent, n + 1);
        if !goes_on {
            return;
        }
    }
}

/// Sends one request. `None`: none can follow.
async fn write_one(plan: &Plan, asked: &Asked, n: usize, end: &Rc<End>, progress: &Progress) -> Option<()> {
    let (name, id) = (&end.pipe.link().name, asked.id);
    trace(|| format!("{name} client asks {asked:?}"));
    if asked.fault == ClientFault::BadHead {
        at_fault(plan, progress);
        end.send(b"GET / HTTP/1.1\r\nHost sim\r\n\r\n").await.ok()?;
        return None;
    }
    end.send(head(asked).as_bytes()).await.ok()?;
    if asked.upgrades {
        return None;
    }
    if asked.expects_continue {
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
    let deviates = matches!(
        asked.fault,
        ClientFault::StallsSending | ClientFault::LeavesSending | ClientFault::ResetsSending | ClientFault::BadChunk
    );
    let to = if deviates { asked.fault_at.min(asked.size) } else { asked.size };
    let mut at = 0;
    let stream = Stream::up(id);
    let sent = send_content(end, stream, asked.framing, &mut at, to, plan.piece).await;
    trace(|| format!("{name} client has sent {at} bytes of {id}: {sent:?}"));
    sent.ok()?;
    if deviates {
        at_fault(plan, progress);
    }
    match asked.fault {
        ClientFault::StallsSending => {
            saw(Sight::ClientStalled);
            return None;
        }
        ClientFault::LeavesSending => {
            saw(Sight::ClientLeft);
            progress.set(&progress.has_left, true);
            return None;
        }
        ClientFault::ResetsSending => {
            saw(Sight::ClientLeft);
            end.pipe.reset();
            progress.set(&progress.has_left, true);
            return None;
        }
        ClientFault::BadChunk => {
            let _ = end.send(b"zz\r\n").await;
            return None;
        }
        _ => {}
    }
    if asked.framing == Framing::Chunked {
        end.send(b"0\r\n\r\n").await.ok()?;
    }
    if asked.fault == ClientFault::HalfCloses {
        saw(Sight::HalfClosed);
        if plan.half_close == HalfClose::Cancel {
            at_fault(plan, progress);
        }
        end.end().await;
        return None;
    }
    (!asked.closes).then_some(())
}

fn head(asked: &Asked) -> String {
    let Asked { id, method, is_http10, framing, size, .. } = asked;
    let prefix = asked.place.prefix();
    let mut head =
        format!("{method} {prefix}{id} HTTP/1.{}\r\nHost: sim\r\nX-Exchange: {id}\r\n", u8::from(!is_http10));
    match framing {
        Framing::Length => head += &format!("Content-Length: {size}\r\n"),
        Framing::Chunked => head += "Transfer-Encoding: chunked\r\n",
        _ => {}
    }
    if asked.expects_continue {
        head += "Expect: 100-continue\r\n";
    }
    if asked.upgrades {
        head += "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    } else if asked.closes && !is_http10 {
        head += "Connection: close\r\n";
    } else if !asked.closes && *is_http10 {
        head += "Connection: keep-alive\r\n";
    }
    head + "\r\n"
}

async fn read(plan: &Plan, end: &Rc<End>, progress: &Progress) {
    let mut source = Source::new(end);
    let name = &end.pipe.link().name;
    let (mut persists, mut has_left, mut is_broken) = (true, false, false);
    for (n, asked) in plan.requests.iter().enumerate() {
        if plan.reads_late {
            let is_time = || progress.sent.get() > n || progress.is_over.get();
            // Some of what a client does ends with its request half sent: then it reads at last.
            let _ = clock::timeout(super::random::milliseconds(5_000, 9_000), progress.changed.until(is_time)).await;
        }
        let outcome = read_one(plan, asked, n, end, &mut source, progress).await;
        trace(|| format!("{name} client has had {}: {outcome:?}", asked.id));
        persists = matches!(outcome, Outcome::Whole { persists: true });
        if matches!(outcome, Outcome::Whole { .. }) {
            progress.set(&progress.answered, n + 1);
            if n > 0 {
                saw(Sight::ReusedClient);
            }
            if n + 1 < plan.requests.len() && plan.is_pipelined {
                saw(Sight::Pipelined);
            }
        }
        has_left = matches!(outcome, Outcome::Left);
        is_broken = matches!(outcome, Outcome::Broken);
        if !persists || asked.closes {
            break;
        }
    }
    progress.set(&progress.is_over, true);
    if has_left {
        progress.set(&progress.has_left, true);
    }
    if has_left || is_broken || (persists && !plan.stays) {
        return;
    }
    // Whatever comes now belongs to nothing.
    match source.more().await {
        Err(_) if source.rest().is_empty() => {}
        _ => violated(format!("{name} was sent {:?} beyond its last response", String::from_utf8_lossy(source.rest()))),
    }
}

#[derive(Debug)]
enum Outcome {
    Whole {
        persists: bool,
    },
    /// The connection ended before the response did.
    Broken,
    Left,
}

async fn read_one(
    plan: &Plan,
    asked: &Asked,
    n: usize,
    end: &Rc<End>,
    source: &mut Source,
    progress: &Progress,
) -> Outcome {
    let name = &end.pipe.link().name;
    let mut has_continued = false;
    let deviates =
        matches!(asked.fault, ClientFault::StallsReading | ClientFault::LeavesReading | ClientFault::ResetsReading);
    if deviates && asked.fault_at == 0 {
        return deviate(plan, asked, end, progress).await;
    }
    let head = loop {
        let head = match source.head().await {
            Ok(head) => head,
            Err(Broken::Malformed(what)) => {
                violated(format!("{name} got what is no response: {what}"));
                return Outcome::Broken;
            }
            Err(Broken::Ended { .. }) => return Outcome::Broken,
        };
        let status = head.first.get(1).map_or("", String::as_str).to_owned();
        trace(|| format!("{name} client has a head for {}: {:?}", asked.id, head.first));
        if !status.starts_with('1') || status == "101" {
            break head;
        }
        if asked.is_http10 {
            violated(format!("{name}: an interim response for a client of HTTP/1.0"));
        }
        saw(Sight::Interim);
        if status == "100" {
            if std::mem::replace(&mut has_continued, true) {
                violated(format!("{name}: a second 100 for exchange {}", asked.id));
            }
            saw(Sight::Continue);
            progress.set(&progress.continued, n + 1);
        }
    };
    let status = head.first.get(1).and_then(|status| status.parse::<u16>().ok()).unwrap_or_default();
    let is_bare = asked.method == "HEAD" || matches!(status, 204 | 304);
    let framing = if is_bare { (Framing::None, 0) } else { head.framing(Framing::UntilClose) };
    let persists = persists(&head, asked, framing.0);
    let Some(id) = head.number("x-exchange") else {
        return own_answer(asked, status, framing, persists, source).await;
    };
    let attempt = head.number("x-attempt").unwrap_or(u64::MAX) as usize;
    if !is_of(asked.id, name, id, attempt, status) {
        return Outcome::Broken;
    }
    let stream = Stream::down(asked.id, attempt);
    let (mut at, mut within) = (0, 0);
    if status == 101 {
        return tunnel(plan, asked, attempt, end, source).await;
    }
    let mut is_done = false;
    if deviates {
        match source.content(stream, framing, &mut at, &mut within, asked.fault_at).await {
            Ok(false) => return deviate(plan, asked, end, progress).await,
            // Too short for that.
            Ok(true) => is_done = true,
            Err(Broken::Malformed(what)) => violated(format!("{name}: {what}")),
            Err(Broken::Ended { .. }) => return Outcome::Broken,
        }
    }
    let rest = if is_done { Ok(true) } else { source.content(stream, framing, &mut at, &mut within, u64::MAX).await };
    match rest {
        Ok(_) => {
            // Whether the backend has come to the end of it is known by now: it has written what came here.
            let made = book::with(|book| book.exchanges[asked.id as usize].attempts[attempt].clone());
            if !is_bare && (!made.is_whole || made.size != at) {
                violated(format!("{name} took {at} bytes of exchange {id} for a whole response, of {made:?}"));
            }
            saw(Sight::WholeResponse);
            book::with(|book| book.exchanges[asked.id as usize].answer = Some(Answer::Backend { attempt }));
            Outcome::Whole { persists }
        }
        Err(Broken::Malformed(what)) => {
            violated(format!("{name}: {what}"));
            Outcome::Broken
        }
        Err(Broken::Ended { is_clean }) => {
            saw(Sight::Truncation);
            if !is_clean && framing.0 != Framing::UntilClose && !may_be_cut_off(plan, asked) {
                violated(format!(
                    "{name} was reset, or not sent the closing alert, within a response to {id} that shows where it is incomplete"
                ));
            }
            Outcome::Broken
        }
    }
}

/// Whether the client has done what it may be reset for, or the time to stop is over.
fn may_be_cut_off(plan: &Plan, asked: &Asked) -> bool {
    book::with(|book| {
        let exchange = &book.exchanges[asked.id as usize];
        // Who reads late may have taken nothing for too long.
        let deviates = plan.reads_late || exchange.is_client_at_fault;
        deviates || exchange.may_be_lost_to_others() || book.is_cut || book.may_be_taken_back(exchange)
    })
}

/// Whether a head that says it is of exchange `id` is that of an attempt of `asked`, unchanged.
pub(super) fn is_of(asked: u32, name: &str, id: u64, attempt: usize, status: u16) -> bool {
    if id != u64::from(asked) {
        violated(format!("{name} was given the response of exchange {id} for exchange {asked}"));
        return false;
    }
    let Some(made) = book::with(|book| book.exchanges[asked as usize].attempts.get(attempt).cloned()) else {
        violated(format!("{name} was given a response of exchange {id} that nobody made"));
        return false;
    };
    if made.status != status {
        violated(format!("{name}: a response of {} became {status}", made.status));
    }
    true
}

/// An answer that the balancer gave itself.
async fn own_answer(
    asked: &Asked,
    status: u16,
    framing: (Framing, u64),
    persists: bool,
    source: &mut Source,
) -> Outcome {
    if status < 400 {
        violated(format!("exchange {} was answered {status} by nobody", asked.id));
    }
    saw(match (asked.place, status) {
        (Place::Own | Place::Large, 418) => Sight::OwnAnswer,
        (Place::Paged, 500) => Sight::ErrorPage,
        _ => Sight::Refusal,
    });
    if let (418, Framing::Length, Some(length)) = (status, framing.0, asked.place.own_bytes())
        && framing.1 != length
    {
        violated(format!("exchange {} was answered with {} bytes of {length}", asked.id, framing.1));
    }
    if source.skip(framing.1).await.is_err() {
        return Outcome::Broken;
    }
    book::with(|book| book.exchanges[asked.id as usize].answer = Some(Answer::Balancer { status }));
    Outcome::Whole { persists }
}

async fn tunnel(plan: &Plan, asked: &Asked, attempt: usize, end: &Rc<End>, source: &mut Source) -> Outcome {
    let name = &end.pipe.link().name;
    let (mut sent, mut at, mut within) = (0, 0, 0);
    let sending = async {
        let up = send_content(end, Stream::up(asked.id), Framing::None, &mut sent, asked.size, plan.piece).await;
        if up.is_ok() && one_in(3) {
            end.end().await;
        }
    };
    let down = Stream::down(asked.id, attempt);
    let hearing = source.content(down, (Framing::UntilClose, 0), &mut at, &mut within, u64::MAX);
    let ((), heard) = tokio::join!(sending, hearing);
    match heard {
        Err(Broken::Malformed(what)) => violated(format!("{name}: {what}")),
        Err(Broken::Ended { .. }) => {}
        Ok(_) => {
            let made = book::with(|book| book.exchanges[asked.id as usize].attempts[attempt].clone());
            if made.is_whole && made.size == at {
                saw(Sight::Tunnel);
                book::with(|book| book.exchanges[asked.id as usize].answer = Some(Answer::Backend { attempt }));
            }
        }
    }
    Outcome::Whole { persists: false }
}

async fn deviate(plan: &Plan, asked: &Asked, end: &Rc<End>, progress: &Progress) -> Outcome {
    at_fault(plan, progress);
    trace(|| format!("{} client deviates: {:?}", end.pipe.link().name, asked.fault));
    match asked.fault {
        ClientFault::StallsReading => {
            saw(Sight::ClientStalled);
            super::hold(end.pipe.link(), 0).await;
        }
        ClientFault::ResetsReading => {
            saw(Sight::ClientLeft);
            end.pipe.reset();
        }
        _ => saw(Sight::ClientLeft),
    }
    Outcome::Left
}

/// Whether another response may follow on the connection (RFC 9112 §9.3).
fn persists(head: &Head, asked: &Asked, framing: Framing) -> bool {
    let closes = head.lists("connection", "close");
    let keeps = !asked.is_http10 || head.lists("connection", "keep-alive");
    !closes && keeps && framing != Framing::UntilClose
}
