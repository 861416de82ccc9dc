//! Each error of a peer ends its stream or the connection, with the code of RFC 9113.

use super::*;

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
fn stream_errors_are_reported_on_their_stream() {
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
