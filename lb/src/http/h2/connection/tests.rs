//! A connection as its client sees it, frame by frame, without a socket. Tests are grouped as the code is; this file has
//! the client.

mod budgets;
mod content;
mod ended;
mod errors;
mod turns;

use super::super::frame::raw as frame;
use super::*;

const GET: &[(&str, &str)] = &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")];
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A client, and the connection with it.
struct Client {
    connection: Connection,
}

/// Kind, flags, stream and payload.
type Sent = (u8, u8, u32, Vec<u8>);

fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    fields.iter().for_each(|(name, value)| {
        out.extend([0, name.len() as u8]);
        out.extend_from_slice(name.as_bytes());
        out.push(value.len() as u8);
        out.extend_from_slice(value.as_bytes());
    });
    out
}

fn window(id: u32, by: u32) -> Vec<u8> {
    frame(8, 0, id, &by.to_be_bytes())
}

fn setting(name: u8, value: u32) -> Vec<u8> {
    frame(4, 0, 0, &[&[0, name][..], &value.to_be_bytes()].concat())
}

fn head(flags: u8, id: u32) -> Vec<u8> {
    frame(1, flags, id, &block(GET))
}

fn whole(id: u32) -> Vec<u8> {
    head(END_STREAM | END_HEADERS, id)
}

impl Client {
    fn new() -> Self {
        let mut client = Self { connection: Connection::new(4096) };
        client.send(&[frame::PREFACE, &frame(4, 0, 0, b"")].concat());
        client.sent();
        client
    }

    /// A client that has windows for everything.
    fn with_windows() -> Self {
        let mut client = Self::new();
        client.send(&[setting(4, 1 << 30), window(0, 1 << 30)].concat());
        client.sent();
        client
    }

    fn send(&mut self, bytes: &[u8]) {
        assert_eq!(self.connection.receive(bytes), bytes.len());
    }

    /// Sends a request, which is taken.
    fn ask(&mut self, id: u32) {
        self.send(&whole(id));
        assert_eq!(self.connection.next_request().map(|(id, _)| id), Some(id));
    }

    /// What the client has been sent since it looked last.
    fn sent(&mut self) -> Vec<Sent> {
        let mut frames = Vec::new();
        let mut rest = self.connection.unsent();
        while let [a, b, c, kind, flags, d, e, f, g, tail @ ..] = rest {
            let (payload, tail) = tail.split_at(u32::from_be_bytes([0, *a, *b, *c]) as usize);
            frames.push((*kind, *flags, u32::from_be_bytes([*d, *e, *f, *g]), payload.to_vec()));
            rest = tail;
        }
        let count = self.connection.unsent().len();
        self.connection.sent(count);
        frames
    }

    /// Writes as much of so much content as there is room for; how much.
    fn write(&mut self, id: u32, len: usize) -> usize {
        let mut cx = Context::from_waker(Waker::noop());
        let mut written = 0;
        while written < len
            && let Poll::Ready(Ok(most)) = self.connection.poll_window(id, &mut cx)
        {
            let count = most.min(len - written);
            let start = self.connection.begin_content();
            self.connection.content().resize(start + HEAD_BYTES + count, b'x');
            self.connection.end_content(start, id, false);
            written += count;
        }
        written
    }

    fn answer(&mut self, id: u32) {
        self.connection.send_head(id, HeadKind::Response, true, |out| hpack::write_status(204, out));
        self.connection.leave(id);
    }

    fn error(&self) -> Option<Code> {
        self.connection.error().map(|(code, _)| code)
    }
}

/// The streams that were reset, and why.
fn resets(frames: &[Sent]) -> Vec<(u32, u8)> {
    frames.iter().filter(|(kind, ..)| *kind == 3).map(|(_, _, id, payload)| (*id, payload[3])).collect()
}

fn content(frames: &[Sent]) -> Vec<(u32, usize)> {
    frames.iter().filter(|(kind, ..)| *kind == 0).map(|(_, _, id, payload)| (*id, payload.len())).collect()
}

#[test]
fn an_unfinished_head_is_reported_by_its_start() {
    let mut client = Client::new();
    let mut all = [&head(1, 1)[..], &frame(9, 0, 1, b""), &frame(9, 4, 1, b""), &frame(6, 0, 0, b"8 bytes.")].concat();
    all.extend(whole(3));
    let mut began = Vec::new();
    let mut at = 0;
    for end in 1..=all.len() {
        at += client.connection.receive(&all[at..end]);
        began.push(client.connection.unfinished(&all[at..end]).map(|unfinished| unfinished.at));
    }
    assert_eq!(client.error(), None);
    let changes: Vec<_> = began.chunk_by(|a, b| a == b).map(|same| same[0].is_some()).collect();
    // The block is one, whatever continues it. The frame that ends it, PING and the next head are one each.
    assert_eq!(changes, [true, false, true, false, true, false]);
}

#[test]
fn a_change_of_the_table_size_is_answered_once() {
    let mut client = Client::new();
    client.send(&setting(1, 0));
    client.sent();
    for (id, first) in [(1, 0x20), (3, 0x89)] {
        client.ask(id);
        client.answer(id);
        assert_eq!(client.sent()[0].3[0], first);
    }
}
