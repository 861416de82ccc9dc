//! Responses: streams take turns, each within its own window and that of the connection.

use super::*;

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
fn content_counts_as_shared_by_all_streams_that_wait_for_the_connections_window() {
    let mut cx = Context::from_waker(Waker::noop());
    let mut client = Client::new();
    client.send(&setting(4, 100_000));
    for id in [1, 3, 5] {
        client.ask(id);
        client.connection.send_head(id, HeadKind::Response, false, |out| hpack::write_status(200, out));
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
fn a_stream_that_is_dropped_in_its_turn_blocks_no_other() {
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
