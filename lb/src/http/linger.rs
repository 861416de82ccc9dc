//! Lingering close (RFC 9112 §9.6; nginx's `lingering_close`): closes our side, then reads and discards what the client
//! still sends. Closing at once would reset the connection, and a client that sends everything before it reads would
//! never see its response.
//!
//! Until the client has acknowledged what the kernel holds for it, which may be some MB, the connection stays, for as
//! long as the client takes it within the limits of a response: bytes that arrive at a closed socket, such as the
//! WINDOW_UPDATE frames of HTTP/2, have the kernel reset the connection and drop all that. nginx closes after
//! `lingering_time` all the same.
//!
//! Under TLS our side is closed when the closing alert has been sent. Without it the client takes a response that ends
//! with the connection for one that broke off. So neither the end of the client's side nor another client that needs
//! the place ends the close before (nginx waits for it too).

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::AsyncWrite;

use super::io::Acknowledged;
use super::pace::Pace;
use super::stream::ClientStream;
use super::{Engine, h2};
use crate::clock::{self, sleep, timeout};
use crate::config::ListenerSettings;
use crate::plant::Bug;

/// How long closing our side may take under TLS, where somebody waits for it.
pub(super) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a stream's lingering close may last once the process stops.
const LINGERING_AT_STOP: Duration = Duration::from_secs(1);
/// The pauses between two looks at what a client has acknowledged, which nothing tells of: the first one, then doubled
/// for each further look.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const MAX_LOOK: Duration = Duration::from_millis(250);

/// Watches how a client takes what the kernel holds for it, when there is nothing more to write. It has to take some
/// within `send_timeout`, at `min_rate`, as while the response was written.
pub(super) struct Drain {
    pace: Pace,
    send_timeout: Duration,
    acknowledged: u64,
    looked_at: Instant,
    /// When it was last seen to have taken some.
    taken_at: Instant,
    /// How long after `looked_at` to look again.
    pause: Duration,
}

/// How far a client has taken what the kernel held for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drained {
    Partly,
    /// It has everything, or the kernel does not tell.
    All,
    /// It takes nothing, or too little.
    TooSlow,
}

impl Drain {
    /// `None`: the client has everything, or the kernel does not tell.
    pub(super) fn begin(listener: &ListenerSettings, acknowledged: Option<Acknowledged>) -> Option<Self> {
        let Acknowledged { bytes, .. } = acknowledged.filter(|_| is_held(acknowledged))?;
        let (now, send_timeout) = (clock::now(), listener.send_timeout);
        let pace = Pace::new(listener.min_rate, send_timeout, None);
        let pause = FIRST_LOOK.min(send_timeout);
        Some(Self { pace, send_timeout, acknowledged: bytes, looked_at: now, taken_at: now, pause })
    }

    /// When to look next: how long after which time.
    pub(super) fn next_look(&self) -> (Instant, Duration) {
        (self.looked_at, self.pause)
    }

    pub(super) fn look(&mut self, acknowledged: Option<Acknowledged>) -> Drained {
        let Some(Acknowledged { bytes, is_all: false }) = acknowledged else { return Drained::All };
        let now = clock::now();
        let more = bytes.saturating_sub(std::mem::replace(&mut self.acknowledged, bytes));
        let waited = now.saturating_duration_since(std::mem::replace(&mut self.looked_at, now));
        self.pace.moved(more, waited);
        if more > 0 {
            self.taken_at = now;
        }
        let left = self.send_timeout.saturating_sub(now.saturating_duration_since(self.taken_at));
        let left = self.pace.patience(left);
        self.pause = (2 * self.pause).min(MAX_LOOK).min(left);
        if left.is_zero() { Drained::TooSlow } else { Drained::Partly }
    }
}

/// Whether the kernel is known to hold bytes that the client has not taken yet.
pub(super) fn is_held(acknowledged: Option<Acknowledged>) -> bool {
    acknowledged.is_some_and(|acknowledged| !acknowledged.is_all) && !Bug::HeldIsIdle.is_planted()
}

/// Waits until the client of a connection has [acknowledged](super::io::Io::acknowledged) what the kernel holds for it
/// now, or takes too little of it. A stop waits for it. Meanwhile `poll` moves the connection; it is not polled again
/// once it is ready.
pub(super) async fn drain<C>(
    engine: &Engine,
    connection: &mut C,
    acknowledged: impl Fn(&C) -> Option<Acknowledged>,
    mut poll: impl FnMut(&mut C, &mut Context<'_>) -> Poll<()>,
) -> Drained {
    let Some(mut drain) = Drain::begin(&engine.listener(), acknowledged(connection)) else { return Drained::All };
    let _draining = engine.thread.in_drain();
    let mut is_over = false;
    loop {
        let (_, pause) = drain.next_look();
        if is_over {
            sleep(pause).await;
        } else {
            is_over = timeout(pause, poll_fn(|cx| poll(connection, cx))).await.is_ok();
        }
        let drained = drain.look(acknowledged(connection));
        if drained != Drained::Partly {
            return drained;
        }
    }
}

/// A connection that is being closed.
struct Closing<'a> {
    client: &'a mut ClientStream,
    /// A cell, but one that two futures of a task may share.
    is_shut_down: &'a AtomicBool,
    has_client_ended: bool,
    /// The client is known to send.
    still_sends: bool,
}

impl Closing<'_> {
    /// Closes our side, and reads and drops what the client sends. Ready when it has sent something, or when both sides
    /// have ended (false).
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if !self.is_shut_down.load(Ordering::Relaxed) {
            self.is_shut_down.store(Pin::new(&mut *self.client).poll_shutdown(cx).is_ready(), Ordering::Relaxed);
        }
        if !self.has_client_ended {
            if let Ok(1..) = ready!(self.client.poll_discard(cx)) {
                self.still_sends = true;
                return Poll::Ready(true);
            }
            self.has_client_ended = true;
        }
        match self.is_shut_down.load(Ordering::Relaxed) || Bug::LostAlert.is_planted() {
            true => Poll::Ready(false),
            false => Poll::Pending,
        }
    }

    /// As [`Self::poll`], until both sides have ended.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while ready!(self.poll(cx)) {}
        Poll::Ready(())
    }
}

/// `still_sends`: the client is known to. Otherwise, unless it sends meanwhile, the close ends once it has everything.
pub(super) async fn linger(engine: &Engine, client: &mut ClientStream, still_sends: bool) {
    let is_shut_down = AtomicBool::new(false);
    // A stream has no connection permit of its own.
    let is_stream = client.is_stream();
    let mut closing = Closing { client, is_shut_down: &is_shut_down, has_client_ended: false, still_sends };
    match drain(engine, &mut closing, |closing| closing.client.acknowledged(), Closing::poll_end).await {
        Drained::TooSlow => return closing.client.reset_when_closed(),
        _ if !closing.still_sends && is_shut_down.load(Ordering::Relaxed) => return,
        _ => {}
    }
    let listener = engine.listener();
    let lingering =
        async { while let Ok(true) = timeout(listener.lingering_timeout, poll_fn(|cx| closing.poll(cx))).await {} };
    let shed = async {
        // Whenever `lingering` is polled, so is this.
        let shut_down = poll_fn(|_| match is_shut_down.load(Ordering::Relaxed) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        });
        let _ = timeout(SHUTDOWN_TIMEOUT, shut_down).await;
        engine.sheds_lingering().await;
    };
    let stop = async {
        h2::stopping(engine).await;
        sleep(LINGERING_AT_STOP).await;
    };
    tokio::select! {
        biased;
        _ = timeout(listener.lingering_time, lingering) => {}
        () = shed, if !is_stream => {}
        // The shutdown does not wait for connections in a lingering close, but an HTTP/2 connection waits for its
        // streams.
        () = stop, if is_stream => {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::mpsc;
    use std::task::{Poll, Waker};

    use rustls::pki_types::ServerName;
    use rustls::{ClientConnection, StreamOwned};
    use tokio::net::TcpListener;
    use tokio::sync::oneshot;

    use super::*;
    use crate::clock::simulated;
    use crate::http::io::Io;
    use crate::http::io::pipe::{LinkConditions, Pipe};
    use crate::http::pace::RATE_GRACE;
    use crate::simulation::tls::{ACCEPTOR, CLIENT, Tls};

    /// Writes until the connection takes no more; how many bytes.
    async fn fill(client: &mut ClientStream) -> usize {
        let mut count = 0;
        poll_fn(|cx| {
            while let Poll::Ready(written) = Pin::new(&mut *client).poll_write(cx, &[b'x'; 16 * 1024]) {
                count += written.expect("an open connection");
            }
            Poll::Ready(count)
        })
        .await
    }

    // The close ended with the client's side, and the closing alert was lost with what else waited to be sent.
    #[tokio::test]
    async fn a_half_closed_client_is_still_sent_buffered_bytes_and_the_closing_alert() {
        let engine = Engine::alone();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (has_ended, ended) = oneshot::channel();
        let (may_end, ending) = mpsc::channel();
        let (may_read, reading) = mpsc::channel();
        let peer = std::thread::spawn(move || {
            let name = ServerName::try_from("localhost").expect("a name");
            let tls = ClientConnection::new(Arc::clone(&CLIENT), name).expect("a sound configuration");
            let mut peer = StreamOwned::new(tls, std::net::TcpStream::connect(address).expect("a listener"));
            peer.write_all(b"text").expect("a peer");
            ending.recv().expect("the test");
            peer.conn.send_close_notify();
            peer.conn.write_tls(&mut peer.sock).expect("a peer");
            peer.sock.shutdown(Shutdown::Write).expect("an open socket");
            has_ended.send(()).expect("the test");
            reading.recv().expect("the test");
            let mut received = Vec::new();
            peer.read_to_end(&mut received).map(|_| received.len())
        });
        let (socket, _) = listener.accept().await.expect("a client");
        let tls = ACCEPTOR.accept(Io::Tcp(socket)).await.expect("a handshake");
        let mut client = ClientStream::Io(Io::Tls(Box::new(tls.into())));
        let mut sent = 0;
        // What leaves the socket for the peer's makes room for more.
        loop {
            let count = fill(&mut client).await;
            if count == 0 {
                break;
            }
            sent += count;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        may_end.send(()).expect("a peer");
        ended.await.expect("a peer");
        let mut lingering = Box::pin(async {
            linger(&engine, &mut client, true).await;
            drop(client);
        });
        // The end of the client's side has come, and may be noticed.
        let is_over = timeout(Duration::from_millis(200), &mut lingering).await.is_ok();
        may_read.send(()).expect("a peer");
        if !is_over {
            lingering.await;
        }
        let received = tokio::task::spawn_blocking(|| peer.join().expect("no panic")).await.expect("no panic");
        assert_eq!(received.expect("the closing alert"), sent);
    }

    /// Has a client linger under TLS whose pipe is full while another one wants its place. `act` is given the client's
    /// end and what polls the lingering close once.
    fn linger_in_a_full_place(act: impl FnOnce(&Pipe, &Tls, &mut dyn FnMut() -> bool)) {
        simulated::enter(0);
        let cx = &mut Context::from_waker(Waker::noop());
        let engine = Engine::alone();
        let _place = engine.client_limit.try_acquire().expect("there is room for one");
        let conditions = LinkConditions { window: 64, max_operation: 64, delay_one_in: 0 };
        let (engine_end, own_end) = Pipe::pair("c".to_owned(), 0, conditions);
        let tls = Tls::client();
        let mut accepting = pin!(ACCEPTOR.accept(Io::Pipe(engine_end)));
        let accepted = loop {
            assert!(tls.read(cx, &own_end, &mut [0; 16]).is_pending(), "nothing is sent yet");
            if let Poll::Ready(accepted) = accepting.as_mut().poll(cx) {
                break accepted.expect("a handshake");
            }
        };
        let mut client = ClientStream::Io(Io::Tls(Box::new(accepted.into())));
        assert!(Pin::new(&mut client).poll_write(cx, &[b'x'; 1000]).is_ready());
        {
            let mut lingering = pin!(linger(&engine, &mut client, true));
            let mut admitting = pin!(engine.admit());
            let mut polls = || {
                let is_over = lingering.as_mut().poll(cx).is_ready();
                assert!(is_over || admitting.as_mut().poll(cx).is_pending(), "the place is taken");
                is_over
            };
            assert!(!polls(), "nobody wants its place yet");
            act(&own_end, &tls, &mut polls);
        }
        simulated::leave();
    }

    // It was closed at once, and the closing alert was lost with what else waited to be sent.
    #[test]
    fn a_shed_client_is_first_sent_buffered_bytes_and_the_closing_alert() {
        linger_in_a_full_place(|end, tls, polls| {
            let cx = &mut Context::from_waker(Waker::noop());
            let (mut received, mut is_over) = (0, polls());
            loop {
                match tls.read(cx, end, &mut [0; 16]) {
                    Poll::Ready(Ok(0)) => break,
                    Poll::Ready(Ok(count)) => received += count,
                    Poll::Ready(Err(e)) => panic!("{e} after {received} bytes"),
                    Poll::Pending => {
                        assert!(!is_over, "the connection stays open, and brings nothing");
                        is_over = polls();
                    }
                }
            }
            assert_eq!(received, 1000);
            while !is_over {
                assert!(simulated::elapsed() < SHUTDOWN_TIMEOUT && simulated::advance(), "it makes room then");
                is_over = polls();
            }
        });
    }

    // It used to be closed after two seconds, with what the kernel still held for it.
    #[test]
    fn a_client_that_takes_nothing_makes_room_once_it_is_below_min_rate() {
        linger_in_a_full_place(|_, _, polls| {
            while !polls() {
                assert!(simulated::elapsed() < 2 * RATE_GRACE && simulated::advance());
            }
            assert!(simulated::elapsed() >= RATE_GRACE, "but not before: {:?}", simulated::elapsed());
        });
    }

    const LISTENER: fn() -> ListenerSettings = || Engine::alone().listener();

    fn held(bytes: u64) -> Option<Acknowledged> {
        Some(Acknowledged { bytes, is_all: false })
    }

    /// Looks whenever it is time, `count` times; what the last look found. `bytes` is given how much time has passed.
    fn look(drain: &mut Drain, count: usize, bytes: impl Fn(Duration) -> u64) -> Drained {
        let mut drained = Drained::Partly;
        for _ in 0..count {
            let (since, pause) = drain.next_look();
            let mut waiting = Box::pin(clock::sleep_until((since + pause).into()));
            while waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                assert!(simulated::advance());
            }
            drained = drain.look(held(bytes(simulated::elapsed())));
            if drained != Drained::Partly {
                break;
            }
        }
        drained
    }

    #[test]
    fn what_is_held_is_waited_for_while_the_client_takes_it() {
        simulated::enter(0);
        assert!(Drain::begin(&LISTENER(), None).is_none(), "the kernel does not tell");
        assert!(Drain::begin(&LISTENER(), Some(Acknowledged { bytes: 1, is_all: true })).is_none());
        let mut drain = Drain::begin(&LISTENER(), held(0)).expect("bytes are held");
        // Ten minutes at a thousand bytes a second.
        assert_eq!(look(&mut drain, 2400, |elapsed| elapsed.as_millis() as u64), Drained::Partly);
        assert_eq!(drain.look(Some(Acknowledged { bytes: 600_000, is_all: true })), Drained::All);
        simulated::leave();
    }

    #[test]
    fn a_client_below_min_rate_or_without_progress_is_not_waited_for() {
        simulated::enter(0);
        let ListenerSettings { send_timeout, .. } = LISTENER();
        let mut drain = Drain::begin(&LISTENER(), held(0)).expect("bytes are held");
        assert_eq!(look(&mut drain, 10_000, |elapsed| elapsed.as_secs()), Drained::TooSlow, "a byte a second");
        assert!(simulated::elapsed() < Duration::from_secs(6), "{:?}", simulated::elapsed());
        let began = simulated::elapsed();
        let mut drain = Drain::begin(&ListenerSettings { min_rate: None, ..LISTENER() }, held(0)).expect("held");
        assert_eq!(look(&mut drain, 10_000, |_| 0), Drained::TooSlow);
        let took = simulated::elapsed() - began;
        assert!(took >= send_timeout && took < send_timeout + MAX_LOOK, "{took:?}");
        simulated::leave();
    }
}
