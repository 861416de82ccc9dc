//! What must hold for any bytes, checked by property tests and fuzz targets: the result does not depend on how the
//! bytes are split, and what is written is read back in the same way.

#![allow(dead_code, reason = "each includer uses some")]

use evenkeel::http::h1::chunked::{self, BadChunk, Decoder};
use evenkeel::http::h1::head::RequestHead;
use evenkeel::http::h1::reject::Reject;
use evenkeel::http::h1::response::{BadResponse, ResponseHead};
use evenkeel::http::h1::rewrite::{self, Change, Edit, FieldName, FieldValue, Persistence, RequestPlan, ResponsePlan};
use evenkeel::http::h1::websocket;
use evenkeel::message::framing::Framing;
use evenkeel::message::limits::{AmbiguousNames, Limits, MAX_HEAD_BYTES};
use evenkeel::message::name::Name;
use evenkeel::message::{Method, Parsed, Version, path};

const STEPS: [usize; 5] = [1, 2, 3, 7, 64];
/// How many bytes of empty lines may precede a request line.
const BLANK_BYTES: usize = 8;

fn limits() -> [Limits; 3] {
    let small = Limits::new(48, 160, 5).expect("sound limits");
    let strict = Limits::new(256, 2048, 100).expect("sound limits").with_ambiguous_names(AmbiguousNames::Reject);
    [Limits::default().with_ambiguous_names(AmbiguousNames::Pass), small, strict]
}

fn largest() -> Limits {
    Limits::new(MAX_HEAD_BYTES - 4, MAX_HEAD_BYTES, 128)
        .expect("sound limits")
        .with_ambiguous_names(AmbiguousNames::Pass)
}

/// The lengths of increasing prefixes of `len` bytes, `step` apart.
fn prefixes(len: usize, step: usize) -> impl Iterator<Item = usize> {
    (step..len).step_by(step).chain([len])
}

/// A parser decides before it has been given this many bytes.
fn max_undecided_bytes(limits: &Limits) -> usize {
    BLANK_BYTES + limits.head_bytes()
}

type Lines = Vec<(Vec<u8>, Vec<u8>)>;

fn owned<'a>(fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Lines {
    fields.map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
}

/// The lines that remain after removing those that are written anew.
fn passed_on(lines: &Lines, also: &[Name], framing: Framing) -> Lines {
    const OWN: [Name; 9] = [
        Name::Connection,
        Name::ContentLength,
        Name::KeepAlive,
        Name::ProxyAuthenticate,
        Name::ProxyAuthorization,
        Name::ProxyConnection,
        Name::Te,
        Name::TransferEncoding,
        Name::Upgrade,
    ];
    let own = |name: Name| OWN.contains(&name) || also.contains(&name);
    let kept = |name: Name| !own(name) && (name != Name::Trailer || framing == Framing::Chunked);
    lines.iter().filter(|(name, _)| kept(Name::of(name))).cloned().collect()
}

/// The content of a request head, for comparison.
fn request_facts(head: &RequestHead, buf: &[u8]) -> String {
    let fields = owned(head.fields().iter(buf));
    format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {fields:?}",
        head.method_token(buf),
        head.version(),
        head.form(),
        head.path(buf),
        head.query(buf),
        head.authority(buf),
        head.port(),
        head.framing(),
        head.connection(),
        head.expects_continue(),
        head.max_forwards(),
        websocket::asks(head),
    )
}

/// Checks all properties of `data` as the start of a request.
pub fn request_holds(data: &[u8]) {
    for limits in limits() {
        request_holds_within(data, &limits);
    }
}

fn request_holds_within(data: &[u8], limits: &Limits) {
    let mut whole = RequestHead::default();
    let verdict = whole.parse(data, limits);
    for step in STEPS {
        let mut head = RequestHead::default();
        let mut seen = 0;
        let mut piecewise = Parsed::Partial;
        for len in prefixes(data.len(), step) {
            seen = len;
            piecewise = head.parse(&data[..len], limits);
            if piecewise != Parsed::Partial {
                break;
            }
        }
        assert_eq!(piecewise, verdict, "in pieces of {step}");
        if verdict != Parsed::Partial {
            let mut fresh = RequestHead::default();
            assert_eq!(fresh.parse(&data[..seen], limits), verdict, "the first {seen} bytes at once");
        }
        if let Parsed::Complete(_) = verdict {
            assert_eq!(request_facts(&head, data), request_facts(&whole, data), "in pieces of {step}");
        }
    }
    match verdict {
        Parsed::Partial => assert!(data.len() < max_undecided_bytes(limits)),
        Parsed::Complete(len) => request_reads_back(&whole, data, len),
        Parsed::Rejected(reject) => reject_is_sound(reject),
    }
}

/// Checks that `data` read in two pieces gives the same result as in one, for every split.
pub fn request_holds_at_every_cut(data: &[u8]) {
    let limits = Limits::default();
    let mut whole = RequestHead::default();
    let verdict = whole.parse(data, &limits);
    for cut in 0..data.len() {
        let mut head = RequestHead::default();
        let early = head.parse(&data[..cut], &limits);
        let late = if early == Parsed::Partial { head.parse(data, &limits) } else { early };
        assert_eq!(late, verdict, "cut at {cut}");
        if let Parsed::Complete(_) = verdict {
            assert_eq!(request_facts(&head, data), request_facts(&whole, data), "cut at {cut}");
        }
    }
}

fn reject_is_sound(reject: Reject) {
    assert!(matches!(reject.status(), 400 | 405 | 414 | 417 | 431 | 501 | 505), "{reject:?}");
    assert!(!reject.reason().is_empty());
}

fn request_reads_back(head: &RequestHead, data: &[u8], len: usize) {
    assert!(len <= data.len());
    let target = head.path(data);
    if target != b"*" {
        normal_form_holds(target);
    }
    let asks = websocket::asks(head);
    let forwarded_for = Change {
        name: FieldName::known(Name::XForwardedFor),
        edit: Edit::Append(FieldValue::new(b"203.0.113.7").expect("a sound value")),
    };
    let changes = [forwarded_for];
    let mut plan = RequestPlan::new(head, &changes);
    let fallback = head.authority(data).unwrap_or(b"backend:80");
    plan.host = FieldValue::new(fallback);
    plan.persistence = if asks { Persistence::WebSocket } else { Persistence::KeepAlive };
    plan.expect_continue = head.expects_continue();

    let mut out = Vec::new();
    rewrite::request(head, data, &plan, &mut out);
    let mut again = RequestHead::default();
    assert_eq!(again.parse(&out, &largest()), Parsed::Complete(out.len()), "{}", out.escape_ascii());
    assert_eq!(again.method_token(&out), head.method_token(data));
    assert_eq!(again.version(), Version::Http11);
    assert_eq!(again.path(&out), head.path(data));
    assert_eq!(again.query(&out), head.query(data));
    assert_eq!(again.authority(&out), Some(fallback));
    assert_eq!(again.framing(), head.framing());
    assert_eq!(again.expects_continue(), head.expects_continue());
    assert_eq!(again.max_forwards(), head.max_forwards().map(|hops| hops.saturating_sub(1)));
    assert_eq!(websocket::asks(&again), asks);

    let mut ours = vec![Name::Host, Name::Http2Settings, Name::Expect, Name::XForwardedFor];
    if head.max_forwards().is_some() {
        ours.push(Name::MaxForwards);
    }
    let before = passed_on(&owned(head.fields().iter(data)), &ours, head.framing());
    let after = passed_on(&owned(again.fields().iter(&out)), &ours, head.framing());
    assert_eq!(before, after);

    let before: Vec<_> = head.fields().values(data, Name::XForwardedFor).filter(|value| !value.is_empty()).collect();
    let expected = [&before[..], &[b"203.0.113.7"]].concat().join(&b", "[..]);
    let after: Vec<_> = again.fields().values(&out, Name::XForwardedFor).collect();
    assert_eq!(after, [expected.as_slice()]);
}

fn normal_form_holds(target: &[u8]) {
    let mut scratch = Vec::new();
    if let Ok(normal) = path::normalise(target, &mut scratch) {
        assert_eq!(normal.first(), Some(&b'/'));
        assert!(normal.len() <= target.len());
        assert!(!normal.windows(2).any(|pair| pair == b"//"));
        assert!(!normal.split(|&byte| byte == b'/').any(|segment| segment == b"." || segment == b".."));
        assert!(!normal.contains(&0));
    }
}

fn response_facts(head: &ResponseHead, buf: &[u8]) -> String {
    let fields = owned(head.fields().iter(buf));
    format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {fields:?}",
        head.version(),
        head.status(),
        head.reason(buf),
        head.framing(),
        head.content_length(),
        head.connection(),
        head.keeps_alive(),
        websocket::answers(head, true),
    )
}

/// Checks all properties of `data` as the start of a response.
pub fn response_holds(data: &[u8]) {
    for limits in limits() {
        for method in [Method::Get, Method::Head] {
            response_holds_within(data, method, &limits);
        }
    }
}

fn response_holds_within(data: &[u8], method: Method, limits: &Limits) {
    let mut whole = ResponseHead::default();
    let verdict = whole.parse(data, method, limits);
    for step in STEPS {
        let mut head = ResponseHead::default();
        let mut piecewise: Parsed<BadResponse> = Parsed::Partial;
        for len in prefixes(data.len(), step) {
            piecewise = head.parse(&data[..len], method, limits);
            if piecewise != Parsed::Partial {
                break;
            }
        }
        assert_eq!(piecewise, verdict, "in pieces of {step}");
        if let Parsed::Complete(_) = verdict {
            assert_eq!(response_facts(&head, data), response_facts(&whole, data), "in pieces of {step}");
        }
    }
    if verdict == Parsed::Partial {
        assert!(data.len() < max_undecided_bytes(limits));
    }
    if let Parsed::Complete(_) = verdict {
        for client in [Version::Http11, Version::Http10] {
            response_reads_back(&whole, data, method, client);
        }
    }
}

/// Checks that `data` read in two pieces gives the same result as in one, for every split.
pub fn response_holds_at_every_cut(data: &[u8]) {
    let limits = Limits::default();
    let mut whole = ResponseHead::default();
    let verdict = whole.parse(data, Method::Get, &limits);
    for cut in 0..data.len() {
        let mut head = ResponseHead::default();
        let early = head.parse(&data[..cut], Method::Get, &limits);
        let late = if early == Parsed::Partial { head.parse(data, Method::Get, &limits) } else { early };
        assert_eq!(late, verdict, "cut at {cut}");
        if let Parsed::Complete(_) = verdict {
            assert_eq!(response_facts(&head, data), response_facts(&whole, data), "cut at {cut}");
        }
    }
}

fn response_reads_back(head: &ResponseHead, data: &[u8], method: Method, client: Version) {
    let date = FieldValue::new(b"Sat, 21 Nov 2026 04:00:00 GMT");
    let persistence = if head.status() == 101 { Persistence::WebSocket } else { Persistence::KeepAlive };
    let plan = ResponsePlan { date, ..ResponsePlan::new(head, client, persistence, &[]) };
    let mut out = Vec::new();
    rewrite::response(head, data, &plan, &mut out);
    let mut again = ResponseHead::default();
    assert_eq!(again.parse(&out, method, &largest()), Parsed::Complete(out.len()), "{}", out.escape_ascii());
    assert_eq!(again.version(), Version::Http11);
    assert_eq!(again.status(), head.status());
    assert_eq!(again.reason(&out), head.reason(data));
    assert_eq!(again.content_length(), head.content_length());
    assert_eq!(again.framing(), plan.framing);
    assert!(client == Version::Http11 || plan.framing != Framing::Chunked);
    match (head.framing(), plan.framing) {
        (Framing::Chunked | Framing::UntilClose, Framing::Chunked) => assert!(again.keeps_alive()),
        (Framing::Chunked | Framing::UntilClose, Framing::UntilClose) => assert!(again.connection().close),
        (received, sent) => assert_eq!(received, sent),
    }
    assert_eq!(again.fields().value(&out, Name::Date).is_some(), {
        !head.is_interim() || head.fields().value(data, Name::Date).is_some()
    });
    let before = passed_on(&owned(head.fields().iter(data)), &[Name::Date], plan.framing);
    let after = passed_on(&owned(again.fields().iter(&out)), &[Name::Date], plan.framing);
    assert_eq!(before, after);
}

/// The result of a decoder.
#[derive(Debug, PartialEq, Eq)]
struct Decoded {
    data: Vec<u8>,
    trailers: Vec<u8>,
    taken: usize,
    end: Result<bool, BadChunk>,
}

fn decode(input: &[u8], step: usize, limits: chunked::Limits) -> Decoded {
    decode_pieces(input.chunks(step), limits)
}

fn decode_pieces<'a>(pieces: impl Iterator<Item = &'a [u8]>, limits: chunked::Limits) -> Decoded {
    let mut decoder = Decoder::new(limits);
    let (mut data, mut taken) = (Vec::new(), 0);
    for piece in pieces {
        let mut rest = piece;
        while !rest.is_empty() && !decoder.is_done() {
            match decoder.advance(rest) {
                Ok(progress) => {
                    assert!(progress.consumed > 0 && progress.data_end <= progress.consumed);
                    data.extend_from_slice(progress.data(rest));
                    taken += progress.consumed;
                    rest = &rest[progress.consumed..];
                }
                // The position of the failure is not reported, so the decoded bytes are not compared.
                Err(bad) => return Decoded { data, trailers: Vec::new(), taken: 0, end: Err(bad) },
            }
        }
    }
    Decoded { data, trailers: decoder.trailers().to_vec(), taken, end: Ok(decoder.is_done()) }
}

/// Checks all properties of `data` as chunked content, and as data to be chunked.
pub fn chunked_holds(data: &[u8]) {
    for limits in [chunked::Limits::default(), chunked::Limits::new(8, 24), chunked::Limits::new(0, 0)] {
        let whole = decode(data, data.len().max(1), limits);
        for step in STEPS {
            assert_eq!(decode(data, step, limits), whole, "in pieces of {step}");
        }
        if whole.end == Ok(true) {
            reads_back_chunked(&whole.data, &whole.trailers);
        }
    }
    reads_back_chunked(data, b"");
}

/// Checks that `data` decoded in two pieces gives the same result as in one, for every split.
pub fn chunked_holds_at_every_cut(data: &[u8]) {
    let limits = chunked::Limits::default();
    let whole = decode_pieces([data].into_iter(), limits);
    for cut in 0..data.len() {
        let (before, after) = data.split_at(cut);
        assert_eq!(decode_pieces([before, after].into_iter(), limits), whole, "cut at {cut}");
    }
}

fn reads_back_chunked(data: &[u8], trailers: &[u8]) {
    let mut out = Vec::new();
    for piece in data.chunks(5) {
        chunked::write_chunk(piece, &mut out);
    }
    chunked::write_end(trailers, &mut out);
    let expected = Decoded { data: data.to_vec(), trailers: trailers.to_vec(), taken: out.len(), end: Ok(true) };
    assert_eq!(decode(&out, 3, chunked::Limits::default()), expected);
}
