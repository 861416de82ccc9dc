//! What a client can make the balancer do or hold is bounded by what it does that is useful.

use super::super::budgets::{
    IDLE_FRAMES_OF_CONTENT, IDLE_FRAMES_OF_STREAM, MAX_CANCELLED, MAX_IDLE_FRAMES, MAX_LOST, MAX_REFUSED,
};
use super::super::ended::MAX_REMEMBERED;
use super::*;

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
fn clients_that_reset_more_streams_than_they_read_are_disconnected() {
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
        let kind = if n % 2 == 0 { HeadKind::Tunnel } else { HeadKind::Response };
        client.connection.send_head(id, kind, false, |out| hpack::write_status(200, out));
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
        client.connection.send_head(id, HeadKind::Response, false, |out| hpack::write_status(200, out));
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
fn frames_that_need_a_reply_are_read_no_faster_than_replies_are_sent() {
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
fn idle_frames_are_limited_and_useful_ones_allow_more() {
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
    (0..=MAX_CONTINUATIONS + 1).for_each(|_| client.send(&frame(9, 0, 1, b"")));
    assert_eq!(client.error(), Some(Code::EnhanceYourCalm));
    // With a high limit on heads it was the number of frames that ended the connection.
    let mut client = Client::new();
    client.connection.limit_fields(2 << 20);
    client.send(&head(1, 1));
    (0..2 * MAX_CONTINUATIONS).for_each(|_| client.send(&frame(9, 0, 1, &[0; MAX_PAYLOAD])));
    assert_eq!(client.error(), None);
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
fn an_idle_connection_uses_little_memory() {
    let mut client = Client::with_windows();
    for n in 0..500 {
        let id = 2 * n + 1;
        client.ask(id);
        client.connection.send_head(id, HeadKind::Response, false, |out| hpack::write_status(200, out));
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
    assert!(size <= 664, "{size} bytes");
}
