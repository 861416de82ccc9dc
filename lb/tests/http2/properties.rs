//! What must hold for any bytes at all, checked by the property tests and the fuzz target alike: what comes of them
//! does not depend on how they were cut, nothing panics, and what a connection holds stays bounded.

#![allow(dead_code, reason = "each includer uses some")]

use std::task::{Context, Poll, Waker};

use evenkeel::http::h2::connection::{Connection, HeadKind, Received};
use evenkeel::http::h2::frame::{Code, PREFACE};

const STEPS: [usize; 5] = [1, 2, 9, 100, 10_000];
const LIST_BYTES: usize = 4096;
/// More than a connection has to hold of what it has to send, whatever comes.
const MAX_UNSENT_BYTES: usize = 192 * 1024;
/// The most content that may have come on a stream and not been taken.
const MAX_WINDOW: usize = 65_535 + 4 * 1024 * 1024;
/// How many streams may be open, and some that have ended while nobody looked.
const MAX_TASKS: usize = 256;

/// Bytes of a SETTINGS frame without settings.
pub const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

/// Checks everything about `data` as what a client sends behind its preface.
pub fn connection_holds(data: &[u8]) {
    let data = [PREFACE, SETTINGS, data].concat();
    let whole = outcome(&data, data.len());
    for step in STEPS {
        assert_eq!(outcome(&data, step), whole, "in pieces of {step}");
    }
    for step in [100, 5_000] {
        is_served(&data, step);
    }
}

/// What came of it where nobody serves the requests.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// How long each is: a WebSocket's key is drawn.
    requests: Vec<(u32, usize)>,
    sent: Vec<u8>,
    error: Option<Code>,
}

fn outcome(data: &[u8], step: usize) -> Outcome {
    let mut connection = Connection::new(LIST_BYTES);
    let (mut requests, mut sent) = (Vec::new(), Vec::new());
    let mut unread: Vec<u8> = Vec::new();
    for piece in data.chunks(step) {
        unread.extend_from_slice(piece);
        loop {
            let used = connection.receive(&unread);
            unread.drain(..used);
            if !connection.is_full() {
                break;
            }
            send(&mut connection, &mut sent);
        }
    }
    while let Some((id, request)) = connection.next_request() {
        requests.push((id, request.text.len()));
    }
    send(&mut connection, &mut sent);
    Outcome { requests, sent, error: connection.error().map(|(code, _)| code) }
}

fn send(connection: &mut Connection, sent: &mut Vec<u8>) {
    let unsent = connection.unsent();
    assert!(unsent.len() <= MAX_UNSENT_BYTES, "{} bytes to be sent", unsent.len());
    sent.extend_from_slice(unsent);
    let count = unsent.len();
    connection.sent(count);
}

/// A request that is being served.
struct Serving {
    id: u32,
    has_head: bool,
    /// What is left of its response.
    left: usize,
}

/// Serves the requests as far as it goes, each in a way that its number says.
fn is_served(data: &[u8], step: usize) {
    let mut cx = Context::from_waker(Waker::noop());
    let mut connection = Connection::new(LIST_BYTES);
    let (mut unread, mut serving, mut sent) = (Vec::new(), Vec::<Serving>::new(), Vec::new());
    for (turn, piece) in data.chunks(step).enumerate() {
        unread.extend_from_slice(piece);
        let used = connection.receive(&unread);
        unread.drain(..used);
        while let Some((id, _)) = connection.next_request() {
            serving.push(Serving { id, has_head: false, left: (id as usize * 7_919) % 100_000 });
        }
        assert!(serving.len() <= MAX_TASKS, "{} requests", serving.len());
        serving.retain_mut(|one| {
            let stays = goes_on(&mut connection, one, &mut cx);
            if !stays {
                connection.leave(one.id);
            }
            stays
        });
        assert!(connection.unsent().len() <= MAX_UNSENT_BYTES);
        // A socket takes some.
        let count = connection.unsent().len().min(if turn % 3 == 0 { 70_000 } else { 1_000 });
        connection.sent(count);
    }
    serving.iter().for_each(|one| connection.leave(one.id));
    assert!(!connection.is_serving());
    send(&mut connection, &mut sent);
}

/// False: it is over.
fn goes_on(connection: &mut Connection, one: &mut Serving, cx: &mut Context<'_>) -> bool {
    let id = one.id;
    match id % 8 {
        1 => connection.drop_content(id),
        3 => {}
        _ => match connection.poll_content(id, cx) {
            Poll::Ready(Ok(Received::Bytes(count))) => {
                assert!(count <= MAX_WINDOW);
                let mut came = 0;
                let taken = connection.take_content(id, 10_000, |content| came = content.len());
                assert!(taken == came && taken == count.min(10_000));
            }
            Poll::Ready(Ok(Received::End)) => drop(connection.take_trailers(id)),
            Poll::Ready(Err(_)) => return false,
            Poll::Pending => {}
        },
    }
    if id % 10 == 5 {
        connection.abort(id, Code::Internal);
        return false;
    }
    if !one.has_head {
        match connection.poll_room(id, cx) {
            Poll::Ready(Ok(())) => {
                connection.send_head(id, HeadKind::Response, one.left == 0, |out| out.push(0x88));
                one.has_head = true;
            }
            Poll::Ready(Err(_)) => return false,
            Poll::Pending => return true,
        }
    }
    while one.left > 0 {
        match connection.poll_window(id, cx) {
            Poll::Ready(Ok(most)) => {
                let count = most.min(one.left);
                let start = connection.begin_content();
                connection.content().resize(start + 9 + count, b'x');
                one.left -= count;
                connection.end_content(start, id, one.left == 0);
            }
            Poll::Ready(Err(_)) => return false,
            Poll::Pending => return true,
        }
    }
    // Some stay for what is still to come.
    id % 6 == 5
}
