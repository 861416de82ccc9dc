//! Lingering close (RFC 9112 §9.6; nginx's `lingering_close`): closes our side, then reads and discards what the client
//! still sends. Closing at once would reset the connection, and a client that sends everything before it reads would
//! never see its response.
//!
//! Under TLS our side is closed when the closing alert has been sent. Without it the client takes a response that ends
//! with the connection for one that broke off. So neither the end of the client's side nor another client that needs
//! the place ends the close before (nginx waits for it too).

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWrite;

use super::stream::ClientStream;
use super::{Engine, h2};
use crate::clock::{sleep, timeout};
use crate::plant::Bug;

/// How long closing our side may take under TLS, where somebody waits for it.
pub(super) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a stream's lingering close may last once the process stops.
const LINGERING_AT_STOP: Duration = Duration::from_secs(1);

pub(super) async fn linger(engine: &Engine, client: &mut ClientStream) {
    let listener = engine.listener();
    // A stream has no connection permit of its own.
    let is_stream = client.is_stream();
    // A cell, but one that two futures of a task may share.
    let is_shut_down = AtomicBool::new(false);
    let lingering = async {
        let mut has_client_ended = false;
        // Ready when the client has sent something, or when both sides have ended (false).
        let mut discard = |cx: &mut Context<'_>| {
            if !is_shut_down.load(Ordering::Relaxed) {
                is_shut_down.store(Pin::new(&mut *client).poll_shutdown(cx).is_ready(), Ordering::Relaxed);
            }
            if !has_client_ended {
                if let Ok(1..) = ready!(client.poll_discard(cx)) {
                    return Poll::Ready(true);
                }
                has_client_ended = true;
            }
            match is_shut_down.load(Ordering::Relaxed) || Bug::LostAlert.is_planted() {
                true => Poll::Ready(false),
                false => Poll::Pending,
            }
        };
        while let Ok(true) = timeout(listener.lingering_timeout, poll_fn(&mut discard)).await {}
    };
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
            linger(&engine, &mut client).await;
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
            let mut lingering = pin!(linger(&engine, &mut client));
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

    #[test]
    fn a_client_that_reads_nothing_makes_room_all_the_same() {
        linger_in_a_full_place(|_, _, polls| {
            while !polls() {
                assert!(simulated::elapsed() < 2 * SHUTDOWN_TIMEOUT && simulated::advance());
            }
            assert!(simulated::elapsed() >= SHUTDOWN_TIMEOUT, "but not before");
        });
    }
}
