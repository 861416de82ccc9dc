use super::super::frame::raw as frame;
use super::budgets::{
    IDLE_FRAMES_OF_CONTENT, IDLE_FRAMES_OF_STREAM, MAX_CANCELLED, MAX_IDLE_FRAMES, MAX_LOST, MAX_REFUSED,
};
use super::content::RELEASED_AT_ONCE;
use super::ended::MAX_REMEMBERED;
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
        self.connection.send_head(id, Begins::Response, true, |out| hpack::write_status(204, out));
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
fn responses_take_turns_frame_by_frame() {
    let mut client = Client::with_windows();
    for id in [1, 3, 5] {
        client.ask(id);
    }
    let mut left = [(1, 200_000), (3, 100_000), (5, 20_000)];
    let mut order = Vec::new();
    for _ in 0..40 {
        for (id, left) in &mut left {
            *left -= client.write(*id, *left);
        }
        order.extend(content(&client.sent()));
    }
    assert!(left.iter().all(|(_, left)| *left == 0), "{left:?}");
    // The first had the room for itself. From then on nobody has two frames while others wait.
    let behind = &order[MAX_QUEUED_BYTES / MAX_PAYLOAD..];
    let ends = |id| behind.iter().rposition(|(other, _)| *other == id).expect("a frame");
    assert!(ends(5) < 8 && ends(3) < 20, "{order:?}");
    assert!(behind[..ends(5)].chunks_exact(3).all(|turn| turn.iter().any(|(id, _)| *id == 5)), "{order:?}");
}

#[test]
fn content_waits_for_both_windows() {
    let mut client = Client::new();
    client.ask(1);
    client.ask(3);
    assert_eq!(client.write(1, 40_000), 40_000);
    assert_eq!(client.write(3, 40_000), 25_535, "what the connection has left");
    assert_eq!(content(&client.sent()), [(1, 16_384), (1, 16_384), (1, 7_232), (3, 16_384), (3, 9_151)]);
    client.send(&window(0, 10));
    assert_eq!((client.write(1, 40_000), client.write(3, 40_000)), (0, 10), "who came first waits first");
    client.sent();
    client.send(&window(0, 100_000));
    assert_eq!((client.write(1, 40_000), client.write(3, 10)), (16_384, 10), "a frame each");
    assert_eq!(client.write(1, 40_000), 9_151, "its own window");
    // Smaller than what has been sent.
    client.send(&setting(4, 1_000));
    client.send(&window(1, 60_000));
    assert_eq!(client.write(1, 40_000), 0);
    client.send(&window(1, 4_536));
    assert_eq!(client.write(1, 40_000), 1);
}

#[test]
fn what_is_sent_counts_as_shared_by_all_that_wait_for_the_connections_window() {
    let mut cx = Context::from_waker(Waker::noop());
    let mut client = Client::new();
    client.send(&setting(4, 100_000));
    for id in [1, 3, 5] {
        client.ask(id);
        client.connection.send_head(id, Begins::Response, false, |out| hpack::write_status(200, out));
    }
    client.sent();
    assert_eq!(client.write(1, 100_000), 65_535);
    client.sent();
    let mut share = client.connection.share_now();
    for id in [3, 5] {
        assert!(client.connection.poll_window(id, &mut cx).is_pending());
    }
    assert_eq!([1, 3, 5].map(|id| client.connection.shut_window(id)), [Some(ShutWindow::Connection); 3]);
    client.send(&window(0, 301));
    assert_eq!(client.write(1, 1_000), 301, "its turn");
    assert_eq!(client.connection.share(&mut share), 100, "a third of it");
    client.send(&window(0, 300));
    assert_eq!((client.write(5, 1_000), client.write(3, 1_000)), (0, 300), "another's turn");
    assert_eq!(client.connection.share(&mut share), 100);
    assert_eq!(client.connection.share(&mut share), 0);
    // Whose own window is shut has no share.
    client.send(&window(0, 100_000));
    while client.write(1, 100_000) > 0 {
        client.sent();
    }
    assert_eq!(client.connection.shut_window(1), Some(ShutWindow::Stream));
    assert_eq!(client.connection.shut_window(3), None);
}

#[test]
fn a_stream_whose_turn_came_and_that_is_gone_holds_up_no_other() {
    let mut client = Client::with_windows();
    (0..6).for_each(|n| client.ask(2 * n + 1));
    assert_eq!(client.write(1, 1 << 20), MAX_QUEUED_BYTES);
    for n in 1..6 {
        assert_eq!(client.write(2 * n + 1, 1 << 20), 0);
    }
    client.sent();
    // The turn of some.
    for id in [1, 3, 5, 7, 9] {
        client.connection.leave(id);
    }
    client.sent();
    assert_eq!(client.write(11, 1 << 20), MAX_QUEUED_BYTES);
}

// Its turn would have been everybody's.
#[test]
fn a_stream_that_has_ended_takes_no_turn() {
    let mut client = Client::with_windows();
    for n in 0..6 {
        client.send(&head(END_HEADERS, 2 * n + 1));
        client.connection.next_request();
    }
    assert_eq!(client.write(1, 1 << 20), MAX_QUEUED_BYTES);
    for n in 1..6 {
        assert_eq!(client.write(2 * n + 1, 1 << 20), 0);
    }
    // Their responses end here; what is still to come of their requests is waited for.
    for id in [1, 3, 5, 7, 9] {
        let start = client.connection.begin_content();
        client.connection.end_content(start, id, true);
    }
    client.sent();
    assert_eq!(client.write(11, 1 << 20), MAX_QUEUED_BYTES);
    // The client gives one up whose turn it is.
    client.send(&whole(13));
    client.connection.next_request();
    assert_eq!(client.write(13, 1 << 20), 0);
    client.sent();
    client.send(&[frame(3, 0, 11, &[0, 0, 0, 8]), frame(3, 0, 13, &[0, 0, 0, 8])].concat());
    client.send(&whole(15));
    client.connection.next_request();
    assert_eq!(client.write(15, 1 << 20), MAX_QUEUED_BYTES);
}

#[test]
fn a_client_may_send_again_what_was_taken() {
    let mut client = Client::new();
    client.send(&head(END_HEADERS, 1));
    client.connection.next_request();
    for _ in 0..2 {
        client.send(&frame(0, 0, 1, &[b'x'; 16_384]));
    }
    assert!(client.sent().is_empty());
    let mut came = 0;
    assert_eq!(client.connection.take_content(1, 20_000, |content| came += content.len()), 20_000);
    assert_eq!(client.connection.take_content(1, 20_000, |content| came += content.len()), 12_768);
    let update = |id, by: u32| (8, 0, id, by.to_be_bytes().to_vec());
    assert_eq!((came, client.sent()), (32_768, vec![update(1, 131_072), update(0, 32_768)]), "it was all there was");
    // Padding counts, and comes back though nobody takes it.
    for _ in 0..200 {
        client.send(&frame(0, 8, 1, &[&[255][..], b"x", &[0; 255]].concat()));
        assert_eq!(client.connection.take_content(1, 10, |_| {}), 1);
    }
    let sent = client.sent();
    assert!(sent.len() == 2 && sent.iter().all(|(kind, ..)| *kind == 8), "{sent:?}");
    // Also where nothing but padding comes, of which there are no more frames than others that bring nothing.
    let mut padding = Client::new();
    padding.send(&head(END_HEADERS, 1));
    padding.connection.next_request();
    for _ in 0..190 {
        padding.send(&frame(0, 8, 1, &[&[255][..], &[0; 255]].concat()));
    }
    let sent = padding.sent();
    assert_eq!(sent.iter().map(|(_, _, id, _)| *id).collect::<Vec<_>>(), [1, 0]);
    // More than its window.
    for _ in 0..20 {
        client.send(&frame(0, 0, 1, &[b'x'; 16_384]));
    }
    assert_eq!((resets(&client.sent()), client.error()), (vec![(1, 3)], None));
}

// The connection's window was given back by the half of it, 3.3 MB, of which 99 stalled uploads leave nothing.
#[test]
fn uploads_that_nobody_takes_leave_the_others_a_whole_window() {
    let mut client = Client::new();
    for n in 0..99 {
        let id = 2 * n + 1;
        client.send(&head(END_HEADERS, id));
        client.connection.next_request();
        (0..4).for_each(|_| client.send(&frame(0, 0, id, &[b'x'; 16_383])));
    }
    client.send(&head(END_HEADERS, 199));
    client.connection.next_request();
    let (mut window, mut connection_window) = (FIRST_WINDOW, CONNECTION_WINDOW - 99 * 4 * 16_383);
    let mut came = 0;
    for _ in 0..2_000 {
        assert!(connection_window >= FIRST_WINDOW / 2, "{connection_window} bytes are left");
        let count = window.min(connection_window).min(10_000);
        client.send(&frame(0, 0, 199, &vec![b'x'; count as usize]));
        (window, connection_window) = (window - count, connection_window - count);
        came += client.connection.take_content(199, count as usize, |_| {});
        for (kind, _, id, payload) in client.sent() {
            assert_eq!(kind, 8);
            let by = i64::from(u32::from_be_bytes(payload.try_into().expect("a window")));
            *if id == 0 { &mut connection_window } else { &mut window } += by;
        }
    }
    assert!(came > 10_000_000, "{came} bytes came");
    // All that streams may hold, and what is not yet given back.
    let held: usize = client.connection.streams.iter().map(|stream| stream.content.len()).sum();
    assert_eq!(held, 99 * 4 * 16_383);
    assert!(MAX_STREAMS as i64 * FIRST_WINDOW + EXTRA_WINDOW + RELEASED_AT_ONCE < CONNECTION_WINDOW);
    // Their end gives everything back.
    for n in 0..100 {
        client.connection.leave(2 * n + 1);
    }
    assert!(client.connection.receive_window + RELEASED_AT_ONCE > CONNECTION_WINDOW);
    assert_eq!(resets(&client.sent()).len(), 100);
}

// One upload was held to 64 KiB for each round trip.
#[test]
fn uploads_that_are_taken_at_once_get_larger_windows() {
    /// A round trip: the client sends all it may, which is taken as it comes, or so much of it in the end, by 16 KiB.
    fn round_trip(client: &mut Client, id: u32, window: &mut i64, taken: Option<usize>) {
        while *window > 0 {
            let count = (*window).min(16_000);
            client.send(&frame(0, 0, id, &vec![b'x'; count as usize]));
            *window -= count;
            if taken.is_none() {
                assert_eq!(client.connection.take_content(id, 16_000, |_| {}), count as usize);
            }
        }
        let mut left = taken.unwrap_or_default();
        while left > 0 {
            match client.connection.take_content(id, left.min(16 * 1024), |_| {}) {
                0 => break,
                count => left -= count,
            }
        }
        for (kind, _, of, payload) in client.sent() {
            assert_eq!(kind, 8);
            *window += if of == id { i64::from(u32::from_be_bytes(payload.try_into().expect("a window"))) } else { 0 };
        }
    }
    for (taken, most) in [(None, 7), (Some(usize::MAX), 9)] {
        let mut client = Client::new();
        client.send(&head(END_HEADERS, 1));
        client.connection.next_request();
        let (mut window, mut sent, mut round_trips) = (FIRST_WINDOW, 0, 0);
        while sent < 10_000_000 {
            sent += window;
            round_trip(&mut client, 1, &mut window, taken);
            round_trips += 1;
        }
        assert!(round_trips <= most, "{round_trips} for 10 MB");
    }
    let mut client = Client::new();
    for id in [1, 3, 5] {
        client.send(&head(END_HEADERS, id));
        client.connection.next_request();
    }
    let (mut first, mut second, mut slow) = (FIRST_WINDOW, FIRST_WINDOW, FIRST_WINDOW);
    for _ in 0..10 {
        round_trip(&mut client, 1, &mut first, None);
        round_trip(&mut client, 5, &mut slow, Some(32_768));
        assert!((32_768..=FIRST_WINDOW).contains(&slow), "some is left each time: {slow}");
        assert!(client.connection.receive_window >= first + second + slow);
    }
    assert!((EXTRA_WINDOW / 2..EXTRA_WINDOW).contains(&first), "{first} bytes");
    // It left some for others, and they leave some.
    for _ in 0..10 {
        round_trip(&mut client, 3, &mut second, None);
    }
    assert!((EXTRA_WINDOW / 8..EXTRA_WINDOW / 4).contains(&second), "{second} bytes");
    assert!(client.connection.extra_window > 0);
    assert!(client.connection.receive_window >= first + second + slow);
    client.connection.leave(1);
    assert_eq!(resets(&client.sent()).len(), 1);
    for _ in 0..10 {
        round_trip(&mut client, 3, &mut second, None);
    }
    assert!(second > EXTRA_WINDOW / 2, "{second} bytes");
    [3, 5].into_iter().for_each(|id| client.connection.leave(id));
    assert_eq!(client.connection.extra_window, EXTRA_WINDOW);
}

// A frame was kept until all of it had come, however slowly it did.
#[test]
fn content_is_handed_on_before_its_frame_has_ended() {
    let mut cx = Context::from_waker(Waker::noop());
    let mut client = Client::new();
    client.send(&head(END_HEADERS, 1));
    client.connection.next_request();
    let all = frame(0, 8 | END_STREAM, 1, &[&[3][..], &[b'x'; 100], &[0; 3]].concat());
    assert_eq!(client.connection.receive(&all[..9]), 0, "its padding is not known");
    client.send(&all[..10]);
    let mut began = client.connection.unfinished(b"").expect("a frame");
    for (at, byte) in all[10..].iter().enumerate() {
        assert!(began.is_content);
        client.send(&[*byte]);
        let came = Came::Some(100.min(at + 1));
        assert_eq!(client.connection.poll_content(1, &mut cx), Poll::Ready(Ok(came)));
        if let Some(more) = client.connection.unfinished(b"") {
            assert_ne!(std::mem::replace(&mut began, more), more, "it is progress");
        }
    }
    assert_eq!((client.connection.unfinished(b""), client.error()), (None, None));
    assert_eq!(client.connection.take_content(1, 1_000, |content| assert_eq!(content, [b'x'; 100])), 100);
    assert_eq!(client.connection.poll_content(1, &mut cx), Poll::Ready(Ok(Came::End)));
    client.ask(3);
}

#[test]
fn content_whose_stream_ends_within_its_frame_gives_its_window_back() {
    let ends: [&dyn Fn(&mut Client); 4] = [
        &|client| client.connection.drop_content(1),
        &|client| {
            client.connection.abort(1, Code::Cancel);
            client.connection.leave(1);
        },
        &|client| client.connection.leave(1),
        &|client| client.answer(1),
    ];
    let post = block(&[GET, &[("content-length", "1000")]].concat());
    let all = frame(0, 8 | END_STREAM, 1, &[&[200][..], &[b'x'; 1_000], &[0; 200]].concat());
    for (case, end) in ends.iter().enumerate() {
        let mut client = Client::new();
        client.send(&frame(1, END_HEADERS, 1, &post));
        client.connection.next_request();
        client.send(&all[..500]);
        end(&mut client);
        client.send(&all[500..]);
        client.ask(3);
        let Connection { receive_window, unreleased, .. } = &client.connection;
        assert_eq!((receive_window + unreleased, client.error()), (CONNECTION_WINDOW, None), "case {case}");
        client.connection.close(Code::NoError, "");
        let resets = resets(&client.sent());
        assert_eq!(resets.len(), usize::from((1..3).contains(&case)), "case {case}: {resets:?}");
    }
}

// Each 32 KiB that were taken added a frame, whether any of them was sent.
#[test]
fn an_upload_is_read_no_faster_than_its_windows_are_taken() {
    let mut client = Client::new();
    client.send(&head(END_HEADERS, 1));
    client.connection.next_request();
    let content = frame(0, 0, 1, &[b'x'; 16_000]);
    let mut frames = 0;
    while !client.connection.is_full() && frames < 100_000 {
        client.send(&content);
        client.connection.take_content(1, 16_000, |_| {});
        frames += 1;
    }
    let unsent = client.connection.unsent().len();
    assert!(client.connection.is_full() && unsent < 2 * MAX_CONTROL_BYTES, "{unsent} bytes after {frames} frames");
    assert_eq!(client.connection.receive(&content), 0);
    client.sent();
    client.send(&content);
    assert_eq!(client.error(), None);
}

// What was taken stayed until everything was.
#[test]
fn content_that_was_taken_is_freed() {
    let mut client = Client::new();
    client.send(&head(END_HEADERS, 1));
    client.connection.next_request();
    client.send(&frame(0, 0, 1, &[b'x'; 10_000]));
    for n in 0..10_000_u32 {
        client.send(&frame(0, 0, 1, &[n as u8; 10_000]));
        let mut first = 0;
        assert_eq!(client.connection.take_content(1, 10_000, |content| first = content[0]), 10_000);
        assert_eq!(first, if n == 0 { b'x' } else { (n - 1) as u8 });
        let capacity = client.connection.streams[0].content.capacity();
        assert!(capacity <= 3 * FIRST_WINDOW as usize, "{capacity} bytes");
        client.sent();
    }
}

// The content of a stream that its client gave up was held until its task had ended.
#[test]
fn a_reset_frees_what_the_client_sent() {
    let mut client = Client::new();
    client.send(&head(END_HEADERS, 1));
    client.connection.next_request();
    (0..4).for_each(|_| client.send(&frame(0, 0, 1, &[b'x'; 16_000])));
    client.send(&frame(3, 0, 1, &[0, 0, 0, 8]));
    assert_eq!(client.connection.streams[0].content.capacity(), 0);
    assert_eq!(client.sent(), [window(0, 64_000)].map(|_| (8, 0, 0, 64_000_u32.to_be_bytes().to_vec())));
    assert_eq!(client.connection.take_content(1, 100, |_| {}), 0);
}

#[test]
fn a_malformed_request_ends_its_stream_alone() {
    for field in [("X", "y"), ("x y", "z"), ("x", "a\0"), ("x", "a\r\nb: c"), (":late", "x"), ("connection", "x")] {
        let mut client = Client::new();
        client.ask(1);
        client.send(&frame(1, 5, 3, &block(&[GET, &[field]].concat())));
        client.ask(5);
        assert_eq!((resets(&client.sent()), client.error()), (vec![(3, 1)], None), "{field:?}");
        assert!(client.connection.next_request().is_none());
    }
}

#[test]
fn errors_of_streams_are_told_on_them() {
    let get = block(GET);
    let declared = block(&[GET, &[("content-length", "3")]].concat());
    let cases: &[(&[&[u8]], u8)] = &[
        (&[&whole(1), &frame(0, 0, 1, b"late")], 5),
        (&[&whole(1), &whole(1)], 5),
        (&[&whole(1), &frame(3, 0, 1, &[0, 0, 0, 8]), &frame(0, 0, 1, b"late")], 5),
        (&[&whole(1), &window(1, 0)], 1),
        (&[&whole(1), &window(1, 0x7fff_ffff)], 3),
        (&[&head(4, 1), &frame(1, 4, 1, b"\x00\x01x\x01y")], 1),
        (&[&head(4, 1), &frame(1, 5, 1, b"\x82")], 1),
        (&[&frame(1, 4, 1, &declared), &frame(0, 0, 1, b"four")], 1),
        (&[&frame(1, 4, 1, &declared), &frame(0, 1, 1, b"ab")], 1),
        (&[&frame(1, 4, 1, &declared), &frame(1, 5, 1, b"\x00\x01x\x01y")], 1),
        (&[&frame(1, 5, 1, &declared)], 1),
        (&[&frame(1, 0x25, 1, &[&[0, 0, 0, 1, 16][..], &get].concat())], 1),
        (&[&whole(1), &frame(2, 0, 1, &[0, 0, 0, 1, 16])], 1),
        (&[&whole(1), &frame(2, 0, 1, &[0; 4])], 6),
    ];
    for (at, (frames, code)) in cases.iter().enumerate() {
        let mut client = Client::new();
        for frame in *frames {
            client.send(frame);
            // It is being served meanwhile.
            client.connection.next_request();
        }
        assert_eq!((resets(&client.sent()), client.error()), (vec![(1, *code)], None), "case {at}");
        // What is under way is no further error.
        if *code != 5 {
            client.send(&[frame(0, 0, 1, b"x"), frame(1, 5, 1, b"\x82"), window(1, 5)].concat());
            assert_eq!((client.sent().len(), client.error()), (0, None), "case {at}");
        }
        client.ask(3);
    }
}

#[test]
fn errors_of_the_connection_end_it() {
    let cases: &[(&[&[u8]], Code)] = &[
        (&[&frame(0, 0, 1, b"x")], Code::Protocol),
        (&[&frame(3, 0, 1, &[0; 4])], Code::Protocol),
        (&[&window(1, 5)], Code::Protocol),
        (&[&window(0, 0)], Code::Protocol),
        (&[&window(0, 0x7fff_ffff)], Code::FlowControl),
        (&[&whole(2)], Code::Protocol),
        (&[&whole(5), &whole(3)], Code::Protocol),
        (&[&head(0, 1), &frame(6, 0, 0, &[0; 8])], Code::Protocol),
        (&[&head(0, 1), &frame(9, 4, 3, b"")], Code::Protocol),
        (&[&frame(9, 4, 1, b"")], Code::Protocol),
        (&[&frame(1, 5, 1, b"\x80")], Code::Compression),
        (&[&frame(1, 5, 1, b"\x00\x7f\xff\xff\xff\xff\x7f")], Code::Compression),
        (&[&frame(1, 5, 1, b"\x00\x05ab")], Code::Compression),
        (&[&frame(5, 4, 1, &[0; 4])], Code::Protocol),
        (&[&setting(2, 2)], Code::Protocol),
        (&[&setting(4, 1 << 31)], Code::FlowControl),
        (&[&setting(5, 16_383)], Code::Protocol),
        (&[&whole(1), &window(1, 0x7fff_0000), &setting(4, 0x7fff_ffff)], Code::FlowControl),
        (&[&frame(2, 0, 7, &[0, 0, 0, 7, 16])], Code::Protocol),
    ];
    for (at, (frames, code)) in cases.iter().enumerate() {
        let mut client = Client::new();
        for frame in *frames {
            client.send(frame);
            client.connection.next_request();
        }
        let sent = client.sent();
        let (kind, _, _, payload) = sent.last().expect("a frame");
        assert_eq!((client.error(), *kind, u32::from(payload[7])), (Some(*code), 7, *code as u32), "case {at}");
        client.send(b"anything more is dropped");
        assert!(client.sent().is_empty());
    }
    let mut client = Client { connection: Connection::new(4096) };
    client.send(b"PRI * HTTP/2.0\r\n\r\nXX");
    assert_eq!(client.error(), Some(Code::Protocol));
    let mut client = Client { connection: Connection::new(4096) };
    client.send(&[frame::PREFACE, &frame(6, 0, 0, &[0; 8])].concat());
    assert_eq!(client.error(), Some(Code::Protocol));
    // Before the rest of it has come.
    let mut client = Client::new();
    assert_eq!(client.connection.receive(b"\x00\x40\x01\x00\x00\x00\x00\x00\x01"), 9);
    assert_eq!(client.error(), Some(Code::FrameSize));
}

#[test]
fn a_closed_stream_is_told_from_one_that_never_was() {
    let mut client = Client::new();
    client.ask(5);
    client.answer(5);
    client.send(&[window(5, 1), frame(3, 0, 5, &[0; 4]), frame(2, 0, 5, &[0, 0, 0, 0, 1])].concat());
    assert_eq!(client.error(), None);
    client.send(&whole(5));
    assert_eq!(client.error(), Some(Code::StreamClosed));
}

// Such a stream was reset as soon as its response had been given, and clients failed by that.
#[test]
fn a_request_that_is_whole_may_end_behind_its_response() {
    let post = block(&[GET, &[("content-length", "4")]].concat());
    let ask = |client: &mut Client, id| {
        client.send(&[frame(1, 4, id, &post), frame(0, 0, id, b"four")].concat());
        client.connection.next_request().expect("a request");
        assert_eq!(client.connection.take_content(id, 10, |_| {}), 4);
        client.answer(id);
        assert_eq!(resets(&client.sent()), []);
    };
    let trailers = frame(1, 5, 1, b"\x40\x01a\x01b");
    let reset = frame(3, 0, 1, &[0, 0, 0, 8]);
    for end in [frame(0, 1, 1, b""), [frame(0, 0, 1, b""), frame(0, 1, 1, b"")].concat(), trailers, reset] {
        let mut client = Client::new();
        ask(&mut client, 1);
        client.send(&end);
        assert_eq!((client.sent().len(), client.error()), (0, None));
        // Once.
        client.send(&frame(0, 1, 1, b""));
        assert_eq!(client.error(), Some(Code::StreamClosed));
    }
    // More than it said.
    for more in [frame(0, 1, 1, b"x"), frame(1, 4, 1, b"")] {
        let mut client = Client::new();
        ask(&mut client, 1);
        client.send(&more);
        assert_eq!((resets(&client.sent()), client.error()), (vec![(1, 1)], None));
        client.send(&frame(0, 1, 1, b""));
        assert_eq!(client.error(), None, "it was under way");
    }
    // The connection stays for it, or tells that it will not.
    for ends in [true, false] {
        let mut client = Client::new();
        ask(&mut client, 1);
        client.connection.ask_to_leave();
        let ping = client.sent()[1].3.clone();
        client.send(&frame(6, 1, 0, &ping));
        client.sent();
        assert!(!client.connection.is_over());
        if ends {
            client.send(&frame(0, 1, 1, b""));
            assert!(client.connection.is_over());
        }
        client.connection.close(Code::NoError, "");
        assert_eq!(client.sent(), if ends { Vec::new() } else { vec![(3, 0, 1, vec![0; 4])] });
    }
    // Those that never end are not kept.
    let mut client = Client::new();
    for n in 0..MAX_REMEMBERED as u32 {
        ask(&mut client, 2 * n + 1);
    }
    assert!(client.connection.streams.is_empty());
    let id = 2 * MAX_REMEMBERED as u32 + 1;
    client.send(&[frame(1, 4, id, &post), frame(0, 0, id, b"four")].concat());
    client.connection.next_request().expect("a request");
    client.answer(id);
    assert_eq!(resets(&client.sent()), [(1, 0)]);
    client.send(&[frame(0, 1, 1, b""), frame(0, 1, 3, b""), frame(0, 1, id, b"")].concat());
    assert_eq!(client.error(), None);
}

// They ended the connection with all its streams.
#[test]
fn what_is_under_way_to_the_first_of_many_refused_streams_is_dropped() {
    let mut client = Client::new();
    for n in 0..100 {
        client.ask(2 * n + 1);
    }
    for n in 100..400 {
        client.send(&head(END_HEADERS, 2 * n + 1));
    }
    assert_eq!(resets(&client.sent()).len(), 300);
    for n in 100..400 {
        client.send(&frame(0, 0, 2 * n + 1, b"content"));
        client.send(&frame(1, 5, 2 * n + 1, b"\x00\x01x\x01y"));
    }
    assert_eq!((client.sent().len(), client.error()), (0, None));
    client.answer(1);
    client.ask(801);
}

// They were read for as long as they came.
#[test]
fn fields_for_a_stream_that_was_reset_are_bounded() {
    let mut client = Client::new();
    client.send(&frame(1, 5, 1, &block(&[(":method", "GET")])));
    let mut count = 0;
    while client.error().is_none() && count < 1_000 {
        client.send(&whole(1));
        count += 1;
    }
    assert_eq!((client.error(), count), (Some(Code::EnhanceYourCalm), IDLE_FRAMES_OF_STREAM + 1));
}

// Each is an answer, and there was no end of them.
#[test]
fn heads_that_are_too_large_are_bounded_though_they_are_answered() {
    let mut client = Client::new();
    // Fifty bytes in the table, and as many references to them as are too many.
    let large = |id| frame(1, 5, id, &[&block(GET)[..], b"\x40\x01x\x10sixteen or so...", &[0xbe; 100]].concat());
    let mut count = 0;
    while client.error().is_none() && count < 1_000 {
        client.send(&large(2 * count + 1));
        if let Some((id, request)) = client.connection.next_request() {
            assert!(request.is_too_large);
            client.connection.answer_ourselves(id);
            client.answer(id);
        }
        client.sent();
        count += 1;
    }
    assert_eq!((client.error(), count), (Some(Code::EnhanceYourCalm), MAX_LOST + 1));
}

#[test]
fn what_is_under_way_to_a_stream_that_was_given_up_is_dropped() {
    let mut client = Client::new();
    client.send(&head(END_HEADERS, 1));
    client.connection.next_request();
    client.send(&frame(0, 0, 1, b"x"));
    client.connection.send_head(1, Begins::Response, true, |out| hpack::write_status(413, out));
    client.connection.leave(1);
    let sent = client.sent();
    assert_eq!(resets(&sent), [(1, 0)], "no error");
    assert!(sent[0].0 == 1 && sent[0].1 == 5);
    // The trailers change the table, which the next request refers to.
    client.send(&frame(0, 0, 1, &[b'x'; 10_000]));
    client.send(&frame(1, 5, 1, b"\x40\x01a\x01b"));
    client.send(&frame(1, 5, 3, &[&block(GET)[..], b"\xbe"].concat()));
    let (_, request) = client.connection.next_request().expect("a request");
    assert!(String::from_utf8_lossy(&request.text).contains("a: b"));
    assert_eq!((client.sent().len(), client.error()), (0, None));
}

// A WebSocket that was reset got the end of its content behind that (RFC 9113 §5.1), which counted as an answer.
#[test]
fn nothing_is_sent_on_a_stream_that_was_reset() {
    type End = dyn Fn(&mut Client);
    let ends: [&End; 5] = [
        &|client| {
            let start = client.connection.begin_content();
            client.connection.end_content(start, 1, true);
        },
        &|client| client.connection.send_head(1, Begins::Response, true, |out| hpack::write_status(204, out)),
        &|client| client.connection.send_trailers(1, |out| out.extend_from_slice(b"\x00\x01x\x01y")),
        &|client| client.connection.abort(1, Code::Internal),
        &|client| client.connection.leave(1),
    ];
    let resets: [&End; 2] = [&|client| client.send(&frame(3, 0, 1, &[0, 0, 0, 8])), &|client| {
        client.connection.abort(1, Code::Cancel);
    }];
    for (at, (reset, end)) in resets.iter().flat_map(|reset| ends.map(|end| (reset, end))).enumerate() {
        let mut client = Client::new();
        client.send(&head(END_HEADERS, 1));
        client.connection.next_request();
        client.connection.send_head(1, Begins::Tunnel, false, |out| hpack::write_status(200, out));
        *client.connection.budgets.losses() = 7;
        reset(&mut client);
        client.sent();
        end(&mut client);
        assert_eq!((client.sent(), *client.connection.budgets.losses()), (Vec::new(), 7), "case {at}");
        assert_eq!(client.connection.out.capacity(), 0, "case {at}");
    }
}

#[test]
fn clients_that_lose_more_than_they_get_have_to_leave() {
    let reset = |id| frame(3, 0, id, &[0, 0, 0, 8]);
    // Cancelled; broken by a window; malformed.
    type Lose<'a> = &'a dyn Fn(u32) -> Vec<u8>;
    let losses: [(u32, Lose<'_>); 3] = [
        (MAX_CANCELLED, &|id| [whole(id), reset(id)].concat()),
        (MAX_LOST, &|id| [whole(id), window(id, 0)].concat()),
        (MAX_LOST, &|id| frame(1, 5, id, &block(&[(":method", "GET")]))),
    ];
    for (max_lost, lose) in losses {
        // Answers of our own make up for nothing: they used to, and a client had one for each request that it lost.
        for is_refused in [false, true] {
            let mut client = Client::new();
            let mut lost = 0;
            while client.error().is_none() && lost < 2_000 {
                client.send(&lose(4 * lost + 1));
                while let Some((id, _)) = client.connection.next_request() {
                    client.connection.leave(id);
                }
                lost += 1;
                if is_refused && client.error().is_none() {
                    client.ask(4 * lost - 1);
                    client.connection.answer_ourselves(4 * lost - 1);
                    client.answer(4 * lost - 1);
                }
                client.sent();
            }
            assert_eq!((client.error(), lost), (Some(Code::EnhanceYourCalm), max_lost + 1), "{is_refused}");
        }
        // Who gets as much as it loses may go on.
        let mut client = Client::new();
        for n in 0..1_000 {
            client.send(&lose(4 * n + 1));
            while let Some((id, _)) = client.connection.next_request() {
                client.connection.leave(id);
            }
            client.ask(4 * n + 3);
            client.answer(4 * n + 3);
            client.sent();
        }
        assert_eq!(client.error(), None);
    }
    // So may who loses few in a long time.
    for (_, lose) in losses {
        let mut client = Client::new();
        for n in 0..2_000 {
            client.send(&lose(2 * n + 1));
            while let Some((id, _)) = client.connection.next_request() {
                client.connection.leave(id);
            }
            client.sent();
            client.connection.forgive(u32::from(n % 2 == 0) * 2);
        }
        assert_eq!(client.error(), None);
    }
    // What was earned before allows no more at once.
    for (max_lost, lose) in losses {
        let mut client = Client::new();
        let mut id = 1;
        for _ in 0..1_000 {
            client.ask(id);
            client.answer(id);
            client.sent();
            id += 2;
        }
        client.connection.forgive(1_000);
        let mut lost = 0;
        while client.error().is_none() && lost < 2_000 {
            client.send(&lose(id));
            while let Some((id, _)) = client.connection.next_request() {
                client.connection.leave(id);
            }
            client.sent();
            (id, lost) = (id + 2, lost + 1);
        }
        assert_eq!(lost, max_lost + 1);
    }
    // Those who leave a page with WebSockets do no harm, nor those who stop downloads.
    let mut client = Client::new();
    for n in 0..1_000 {
        let id = 2 * n + 1;
        client.ask(id);
        let begins = if n % 2 == 0 { Begins::Tunnel } else { Begins::Response };
        client.connection.send_head(id, begins, false, |out| hpack::write_status(200, out));
        client.send(&reset(id));
        client.connection.leave(id);
        client.sent();
    }
    assert_eq!(client.error(), None);
}

// Their tasks did not count: there could be thousands.
#[test]
fn streams_that_are_reset_have_no_more_tasks_than_streams_are_allowed() {
    let mut client = Client::new();
    for n in 0..1_000 {
        let id = 2 * n + 1;
        client.ask(id);
        client.connection.send_head(id, Begins::Response, false, |out| hpack::write_status(200, out));
        client.send(&frame(3, 0, id, &[0, 0, 0, 8]));
        client.sent();
        if client.connection.tasks == MAX_STREAMS {
            break;
        }
    }
    let id = 2 * MAX_STREAMS as u32 + 1;
    for n in 0..MAX_STREAMS as u32 {
        client.send(&whole(id + 2 * n));
        assert!(client.connection.next_request().is_none());
    }
    assert_eq!((resets(&client.sent()), client.error()), (Vec::new(), None), "they wait");
    client.connection.leave(1);
    assert_eq!(client.connection.next_request().map(|(id, _)| id), Some(id));
    assert!(client.connection.next_request().is_none());
    // Who gives up what waits costs next to nothing.
    client.send(&frame(3, 0, id + 2, &[0, 0, 0, 8]));
    assert_eq!(client.connection.streams.len(), 2 * MAX_STREAMS - 2);
    client.connection.leave(3);
    assert_eq!(client.connection.next_request().map(|(id, _)| id), Some(id + 4));
}

#[test]
fn streams_beyond_the_limit_are_refused() {
    let mut client = Client::new();
    (0..101).for_each(|n| client.send(&whole(2 * n + 1)));
    assert_eq!((resets(&client.sent()), client.error()), (vec![(201, 7)], None));
    let mut served = Vec::new();
    while let Some((id, _)) = client.connection.next_request() {
        served.push(id);
    }
    assert_eq!(served.len(), 100);
    client.answer(served[7]);
    client.ask(203);
    // It may do so again: it loses nothing by it.
    client.send(&frame(4, 1, 0, b""));
    let mut id = 205;
    for _ in 0..MAX_REFUSED {
        client.send(&whole(id));
        client.sent();
        id += 2;
    }
    assert_eq!(client.error(), None);
    // But not for good.
    client.send(&whole(id));
    assert_eq!(client.error(), Some(Code::EnhanceYourCalm));
}

// They counted until all that was to be sent had been: a client that took a download got no more answers after 964.
#[test]
fn answers_that_are_sent_make_room_for_others() {
    let mut client = Client::with_windows();
    client.ask(1);
    for _ in 0..5_000 {
        client.write(1, 1 << 20);
        client.send(&frame(6, 0, 0, b"8 bytes."));
        // There is always something left.
        let count = client.connection.unsent().len() - 10_000;
        client.connection.sent(count);
        assert!(!client.connection.is_full());
    }
}

#[test]
fn what_asks_for_an_answer_is_read_no_faster_than_answers_are_taken() {
    for asking in [frame(6, 0, 0, b"8 bytes."), frame(4, 0, 0, b""), setting(4, 65_535)] {
        let mut client = Client::new();
        let flood = asking.repeat(10_000);
        let mut taken = client.connection.receive(&flood);
        assert!(taken < flood.len() && client.connection.is_full());
        assert!(client.connection.unsent().len() < 2 * MAX_CONTROL_BYTES);
        assert_eq!(client.connection.receive(&flood[taken..]), 0);
        let mut answers = 0;
        while taken < flood.len() {
            answers += client.sent().len();
            taken += client.connection.receive(&flood[taken..]);
        }
        assert_eq!((answers + client.sent().len(), client.error()), (10_000, None));
    }
}

// Empty content was counted in a row only, and nothing else of it was.
#[test]
fn frames_that_bring_nothing_are_allowed_by_what_the_client_does() {
    let idle = [
        frame(2, 0, 3, &[0, 0, 0, 0, 16]),
        frame(0xbe, 0, 0, b"any"),
        frame(0, 0, 1, b""),
        frame(0, 8, 1, &[3, 0, 0, 0]),
        frame(4, 1, 0, b""),
        frame(6, 1, 0, b"8 bytes."),
        frame(7, 0, 0, &[0; 8]),
        frame(3, 0, 3, &[0, 0, 0, 8]),
        window(0, 1),
        window(1, 1),
        window(3, 1),
    ];
    for (at, idle) in idle.iter().enumerate() {
        let mut client = Client::with_windows();
        client.send(&head(END_HEADERS, 1));
        client.connection.next_request();
        client.ask(3);
        client.answer(3);
        assert_eq!(client.write(1, 20_000), 20_000);
        client.sent();
        let allowed = 3 * IDLE_FRAMES_OF_STREAM + 2 * IDLE_FRAMES_OF_CONTENT - 1;
        (0..allowed).for_each(|_| client.send(idle));
        assert_eq!(client.error(), None, "case {at}");
        client.send(idle);
        assert_eq!(client.error(), Some(Code::EnhanceYourCalm), "case {at}");
    }
    // What was earned before allows no more at once.
    let mut client = Client::with_windows();
    for n in 0..1_000 {
        client.ask(2 * n + 1);
        client.write(2 * n + 1, 10);
        client.answer(2 * n + 1);
        client.sent();
    }
    (0..MAX_IDLE_FRAMES).for_each(|_| client.send(&idle[0]));
    assert_eq!(client.error(), None);
    client.send(&idle[0]);
    assert_eq!(client.error(), Some(Code::EnhanceYourCalm));
}

// Each of a thousand settings in a frame woke all streams.
#[test]
fn a_frame_of_many_settings_wakes_streams_once() {
    #[derive(Default)]
    struct Count(std::sync::atomic::AtomicUsize);
    impl std::task::Wake for Count {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
    let mut client = Client::new();
    client.ask(1);
    assert_eq!(client.write(1, 65_535), 65_535);
    client.sent();
    let count = std::sync::Arc::new(Count::default());
    let waker = Waker::from(std::sync::Arc::clone(&count));
    assert!(client.connection.poll_window(1, &mut Context::from_waker(&waker)).is_pending());
    let both = [&[0, 4][..], &1_000_u32.to_be_bytes(), &[0, 4], &66_000_u32.to_be_bytes()].concat();
    client.send(&frame(4, 0, 0, &both.repeat(1_000)));
    assert_eq!(count.0.load(std::sync::atomic::Ordering::Relaxed), 1);
    client.send(&window(0, 10_000));
    assert_eq!(client.write(1, 10_000), 66_000 - 65_535);
}

// One client's tiny frames, a hundred thousand in a turn, kept all others waiting.
#[test]
fn no_more_frames_are_taken_at_once_than_asked_for() {
    let mut client = Client::new();
    let (mut left, frames) = (3, frame(6, 0, 0, b"8 bytes.").repeat(5));
    let taken = client.connection.receive_frames(&frames, &mut left);
    assert_eq!((taken, left, client.sent().len()), (3 * 17, 0, 3));
    assert_eq!(client.connection.receive_frames(&frames[taken..], &mut left), 0);
    left = 3;
    assert_eq!(client.connection.receive_frames(&frames[taken..], &mut left), 2 * 17);
    assert_eq!((left, client.sent().len()), (1, 2));
}

#[test]
fn endless_fields_end_the_connection() {
    let mut client = Client::new();
    client.send(&head(1, 1));
    (0..=MAX_CONTINUATIONS).for_each(|_| client.send(&frame(9, 0, 1, b"")));
    assert_eq!(client.error(), Some(Code::EnhanceYourCalm));
    let mut client = Client::new();
    client.send(&head(1, 1));
    (0..2).for_each(|_| client.send(&frame(9, 0, 1, &[0; 10_000])));
    assert_eq!(client.error(), Some(Code::EnhanceYourCalm));
    // A small block that stands for a huge one.
    let mut client = Client::new();
    client.send(&frame(1, 5, 1, &[&block(GET)[..], b"\x40\x01x\x7f\xa1\x1e", &[b'y'; 4000]].concat()));
    assert_eq!(client.error(), None);
    client.send(&frame(1, 5, 3, &[&block(GET)[..], &[0xbe; 16_000]].concat()));
    assert_eq!(client.error(), Some(Code::EnhanceYourCalm));
    // The same as trailers, and on a stream that was reset.
    for is_reset in [false, true] {
        let mut client = Client::new();
        client.send(&head(END_HEADERS, 1));
        if is_reset {
            client.connection.abort(1, Code::Cancel);
        }
        client.send(&frame(1, 5, 1, &[&b"\x40\x01x\x7f\xa1\x1e"[..], &[b'y'; 4000], &[0xbe; 12_000]].concat()));
        assert_eq!(client.error(), Some(Code::EnhanceYourCalm));
    }
}

#[test]
fn trailers_that_are_too_large_end_their_stream_alone() {
    let mut client = Client::new();
    client.send(&head(END_HEADERS, 1));
    client.sent();
    let large = [&b"\x40\x01x\x7f\xa1\x1e"[..], &[b'y'; 4000], &[0xbe; 3], b"\x40\x01a\x01b"].concat();
    client.send(&frame(1, 5, 1, &large));
    assert_eq!(client.sent(), [(3, 0, 1, vec![0, 0, 0, 1])]);
    client.send(&frame(1, 5, 3, &[&block(GET)[..], b"\xbe"].concat()));
    // Nobody has to serve the one that was reset.
    let (id, request) = client.connection.next_request().expect("a request");
    assert_eq!(id, 3);
    assert!(request.text.windows(6).any(|line| line == b"a: b\r\n"), "the table holds");
}

#[test]
fn who_is_asked_to_leave_is_served_what_it_asked_before() {
    let mut client = Client::new();
    client.ask(1);
    client.connection.ask_to_leave();
    let sent = client.sent();
    assert_eq!((&sent[0].3[..8], sent[1].0), (&[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0][..], 6));
    client.ask(3);
    client.send(&frame(6, 1, 0, &sent[1].3));
    assert_eq!(client.sent()[0].3, [0, 0, 0, 3, 0, 0, 0, 0]);
    // What comes behind it may be repeated elsewhere, and is part of the state of the connection all the same.
    client.send(&[frame(1, 4, 5, &block(GET)), frame(0, 1, 5, b"x"), window(5, 5)].concat());
    assert!(client.connection.next_request().is_none() && client.error().is_none());
    client.answer(1);
    assert!(!client.connection.is_over());
    client.answer(3);
    assert!(!client.connection.is_over(), "its response has still to be sent");
    client.sent();
    assert!(client.connection.is_over());
}

// A third one came once the connection was idle.
#[test]
fn who_is_asked_to_leave_is_told_twice() {
    let goaways = |sent: &[Sent]| -> Vec<_> {
        sent.iter().filter(|(kind, ..)| *kind == 7).map(|(.., payload)| payload[..4].to_vec()).collect()
    };
    for answers in [true, false] {
        let mut client = Client::new();
        client.ask(1);
        client.connection.ask_to_leave();
        let mut sent = client.sent();
        if answers {
            let ping = sent[1].3.clone();
            client.send(&frame(6, 1, 0, &ping));
        }
        client.answer(1);
        sent.extend(client.sent());
        client.connection.close(Code::NoError, "");
        sent.extend(client.sent());
        assert_eq!(goaways(&sent), [[0x7f, 0xff, 0xff, 0xff], [0, 0, 0, 1]], "{answers}");
    }
    // One that did nothing wrong before is told of its error all the same.
    let mut client = Client::new();
    client.connection.ask_to_leave();
    let ping = client.sent()[1].3.clone();
    client.send(&frame(6, 1, 0, &ping));
    client.sent();
    client.send(&frame(0, 0, 1, b"x"));
    assert_eq!(client.sent().len(), 1);
}

#[test]
fn what_is_unfinished_is_told_by_where_it_began() {
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
fn what_the_client_says_of_its_table_is_answered_once() {
    let mut client = Client::new();
    client.send(&setting(1, 0));
    client.sent();
    for (id, first) in [(1, 0x20), (3, 0x89)] {
        client.ask(id);
        client.answer(id);
        assert_eq!(client.sent()[0].3[0], first);
    }
}

#[test]
fn an_idle_connection_holds_next_to_nothing() {
    let mut client = Client::with_windows();
    for n in 0..500 {
        let id = 2 * n + 1;
        client.ask(id);
        client.connection.send_head(id, Begins::Response, false, |out| hpack::write_status(200, out));
        client.write(id, 50_000);
        let start = client.connection.begin_content();
        client.connection.end_content(start, id, true);
        client.connection.leave(id);
        client.sent();
    }
    let Connection { out, streams, requests, waiting, ended, block, .. } = &client.connection;
    assert_eq!((out.capacity(), waiting[0].capacity(), waiting[1].capacity()), (0, 0, 0));
    assert!(block.is_none() && streams.capacity() <= 4 && requests.capacity() <= 4);
    assert!(ended.capacities().iter().all(|capacity| *capacity <= MAX_REMEMBERED));
    let size = size_of::<Connection>();
    assert!(size <= 640, "{size} bytes");
}
