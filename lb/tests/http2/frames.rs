//! The properties of [`properties`] over generated frames: sound ones with odd ones among them.

use super::properties;

use evenkeel::http::h2::hpack::{self, FIELD_OVERHEAD};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

const FIELDS: &[(&str, &str)] = &[
    ("accept", "*/*"),
    ("cookie", "a=b"),
    ("cookie", "c"),
    ("content-length", "3"),
    ("content-length", "0"),
    ("content-length", "x"),
    ("host", "a"),
    ("host", "b"),
    ("te", "trailers"),
    ("te", "gzip"),
    ("connection", "close"),
    ("X-Upper", "a"),
    ("x-blank", " a"),
    ("x-break", "a\r\nb: c"),
    (":path", "/late"),
    (":status", "200"),
    ("", ""),
    ("expect", "100-continue"),
];

const PSEUDO: &[&[(&str, &str)]] = &[
    &[(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/")],
    &[(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/")],
    &[(":method", "POST"), (":scheme", "http"), (":authority", "a:80"), (":path", "/a?b")],
    &[(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":authority", "a"), (":path", "/")],
    &[(":method", "CONNECT"), (":authority", "a:443")],
    &[(":method", "GET"), (":scheme", "https"), (":path", "")],
    &[],
];

fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(id.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn literal(name: &str, value: &str, is_kept: bool) -> Vec<u8> {
    let mut out = vec![if is_kept { 0x40 } else { 0 }, name.len() as u8];
    out.extend_from_slice(name.as_bytes());
    out.push(value.len() as u8);
    out.extend_from_slice(value.as_bytes());
    out
}

fn block() -> impl Strategy<Value = Vec<u8>> {
    let field = (select(FIELDS), any::<bool>());
    let odd = prop_oneof![
        20 => Just(Vec::new()),
        1 => vec(any::<u8>(), 1..8),
        1 => vec(0xbe..0xc6_u8, 1..300),
        1 => Just(vec![0x20]),
    ];
    (select(PSEUDO), vec(field, 0..4), odd).prop_map(|(pseudo, fields, odd)| {
        let mut block: Vec<u8> = pseudo.iter().flat_map(|(name, value)| literal(name, value, true)).collect();
        block.extend(fields.iter().flat_map(|((name, value), is_kept)| literal(name, value, *is_kept)));
        block.extend(odd);
        block
    })
}

/// Frames of one kind each, on streams of which some are open.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let id = prop_oneof![30 => (0..12_u32).prop_map(|n| 2 * n + 1), 1 => Just(0), 1 => Just(2)];
    let flags = prop_oneof![Just(4_u8), Just(5), Just(0), Just(1), Just(0x2d)];
    let window = prop_oneof![1..100_000_u32, Just(0), Just(0x7fff_ffff)];
    let one = prop_oneof![
        8 => (id.clone(), flags.clone(), block()).prop_map(|(id, flags, block)| frame(1, flags, id, &block)),
        2 => (id.clone(), 1..40_usize, block()).prop_map(|(id, at, block)| {
            let (first, rest) = block.split_at(at.min(block.len()));
            [frame(1, 0, id, first), frame(9, 4, id, rest)].concat()
        }),
        6 => (id.clone(), prop_oneof![Just(0_u8), Just(1), Just(8)], 0..20_000_usize)
            .prop_map(|(id, flags, len)| frame(0, flags, id, &vec![3; len.min(16_384)])),
        3 => (id.clone(), window).prop_map(|(id, by)| frame(8, 0, id, &by.to_be_bytes())),
        2 => id.clone().prop_map(|id| frame(3, 0, id, &8_u32.to_be_bytes())),
        1 => id.clone().prop_map(|id| frame(2, 0, id, &[0, 0, 0, 1, 16])),
        2 => (0..5_u16, any::<u32>()).prop_map(|(name, value)| {
            frame(4, 0, 0, &[&[0, name as u8][..], &(value % 200_000).to_be_bytes()].concat())
        }),
        1 => Just(frame(4, 1, 0, b"")),
        2 => (0..3_000_usize).prop_map(|count| frame(6, 0, 0, b"8 bytes.").repeat(count / 100)),
        1 => Just(frame(7, 0, 0, &[0; 8])),
        1 => (any::<u8>(), any::<u8>(), id, vec(any::<u8>(), 0..20))
            .prop_map(|(kind, flags, id, payload)| frame(kind, flags, id, &payload)),
    ];
    vec(one, 1..40).prop_map(|frames| frames.concat())
}

/// Streams one after the other, as clients open them, with content.
fn requests() -> impl Strategy<Value = Vec<u8>> {
    let one = (select(&[4_u8, 5][..]), block(), 0..40_000_usize);
    vec(one, 1..130).prop_map(|requests| {
        let mut frames = frame(8, 0, 0, &1_000_000_u32.to_be_bytes());
        for (n, (flags, block, len)) in requests.into_iter().enumerate() {
            let id = 2 * n as u32 + 1;
            frames.extend(frame(1, flags, id, &block));
            if flags == 4 {
                let content = vec![b'x'; len];
                let pieces = content.chunks(16_000);
                pieces.for_each(|piece| frames.extend(frame(0, u8::from(piece.len() < 16_000), id, piece)));
            }
        }
        frames
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_frames_are_taken_as_they_are_cut(frames in frames()) {
        properties::connection_holds(&frames);
    }

    #[test]
    fn any_bytes_are_taken_as_they_are_cut(bytes in vec(any::<u8>(), 0..300)) {
        properties::connection_holds(&bytes);
    }

    #[test]
    fn any_block_is_read_to_its_end_or_refused(block in vec(any::<u8>(), 0..200), most in 0..10_000_usize) {
        let mut decoder = hpack::Decoder::default();
        for _ in 0..3 {
            let mut size = 0;
            let read = decoder.read(&block, most, |name, value| size += name.len() + value.len() + FIELD_OVERHEAD);
            prop_assert!(size <= most);
            if read.is_err() {
                break;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn many_requests_are_taken_as_they_are_cut(frames in requests()) {
        properties::connection_holds(&frames);
    }
}
