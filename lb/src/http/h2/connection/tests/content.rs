//! Uploads: windows are given back as content is taken, and what is held is bounded.

use super::super::content::RELEASED_AT_ONCE;
use super::*;

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
fn unread_uploads_leave_a_whole_window_to_the_others() {
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
        let came = Received::Bytes(100.min(at + 1));
        assert_eq!(client.connection.poll_content(1, &mut cx), Poll::Ready(Ok(came)));
        if let Some(more) = client.connection.unfinished(b"") {
            assert_ne!(std::mem::replace(&mut began, more), more, "it is progress");
        }
    }
    assert_eq!((client.connection.unfinished(b""), client.error()), (None, None));
    assert_eq!(client.connection.take_content(1, 1_000, |content| assert_eq!(content, [b'x'; 100])), 100);
    assert_eq!(client.connection.poll_content(1, &mut cx), Poll::Ready(Ok(Received::End)));
    client.ask(3);
}

#[test]
fn content_of_a_stream_reset_within_a_frame_returns_its_window() {
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
