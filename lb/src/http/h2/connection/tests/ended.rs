//! Streams and connections that end: what is still in flight for them does no harm, and what was asked for is served.

use super::super::ended::MAX_REMEMBERED;
use super::*;

#[test]
fn a_closed_stream_is_told_from_one_that_never_existed() {
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
fn frames_in_flight_for_the_first_of_many_refused_streams_are_dropped() {
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

#[test]
fn frames_in_flight_for_an_abandoned_stream_are_dropped() {
    let mut client = Client::new();
    client.send(&head(END_HEADERS, 1));
    client.connection.next_request();
    client.send(&frame(0, 0, 1, b"x"));
    client.connection.send_head(1, HeadKind::Response, true, |out| hpack::write_status(413, out));
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
fn nothing_is_sent_on_a_reset_stream() {
    type End = dyn Fn(&mut Client);
    let ends: [&End; 5] = [
        &|client| {
            let start = client.connection.begin_content();
            client.connection.end_content(start, 1, true);
        },
        &|client| client.connection.send_head(1, HeadKind::Response, true, |out| hpack::write_status(204, out)),
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
        client.connection.send_head(1, HeadKind::Tunnel, false, |out| hpack::write_status(200, out));
        *client.connection.budgets.losses() = 7;
        reset(&mut client);
        client.sent();
        end(&mut client);
        assert_eq!((client.sent(), *client.connection.budgets.losses()), (Vec::new(), 7), "case {at}");
        assert_eq!(client.connection.out.capacity(), 0, "case {at}");
    }
}

#[test]
fn requests_sent_before_goaway_are_served() {
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
fn goaway_is_sent_twice() {
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

// It named the one before, so the client repeated the one that had broken the connection.
#[test]
fn goaway_names_the_stream_of_a_head_that_has_not_ended() {
    let endings: [fn(&mut Client); 3] = [
        |client| client.connection.fail(Code::EnhanceYourCalm, "late"),
        |client| client.send(&frame(9, 0, 5, b"x")),
        |client| client.send(&frame(0, 0, 1, b"x")),
    ];
    for (at, end) in endings.into_iter().enumerate() {
        let mut client = Client::new();
        client.ask(1);
        client.send(&head(END_STREAM, 3));
        end(&mut client);
        let sent = client.sent();
        let (.., goaway) = sent.iter().find(|(kind, ..)| *kind == 7).expect("a GOAWAY");
        assert_eq!(goaway[..4], [0, 0, 0, 3], "case {at}");
    }
}
