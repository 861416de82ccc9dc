//! Responses of RFC 9112 and those that backends get wrong, each with its one right answer.

use super::super::websocket;
use super::*;
use crate::message::limits::AmbiguousNames;

fn parse_within(bytes: &[u8], method: Method, limits: &Limits) -> (ResponseHead, Parsed<BadResponse>) {
    let mut head = ResponseHead::default();
    let verdict = head.parse(bytes, method, limits);
    (head, verdict)
}

/// Parses what must be a complete head.
#[track_caller]
fn accepted_for(method: Method, text: &str) -> ResponseHead {
    let (head, verdict) = parse_within(text.as_bytes(), method, &Limits::default());
    assert_eq!(verdict, Parsed::Complete(text.len()), "{text:?}");
    head
}

#[track_caller]
fn accepted(text: &str) -> ResponseHead {
    accepted_for(Method::Get, text)
}

#[track_caller]
fn refused(text: &str, bad: BadResponse) {
    let (_, verdict) = parse_within(text.as_bytes(), Method::Get, &Limits::default());
    assert_eq!(verdict, Parsed::Rejected(bad), "{text:?}");
}

fn ok_with(fields: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n")
}

#[test]
fn reads_a_plain_response() {
    let text = "HTTP/1.1 404 Not  Found\r\nContent-Length: 5\r\nX_A: b\r\n\r\n";
    let head = accepted(text);
    assert_eq!(
        (head.status(), head.reason(text.as_bytes()), head.version()),
        (404, &b"Not  Found"[..], Version::Http11)
    );
    assert_eq!((head.framing(), head.keeps_alive(), head.is_interim()), (Framing::Length(5), true, false));
    assert_eq!(head.fields().named(text.as_bytes(), b"x_a").count(), 1);
}

#[test]
fn status_lines_against_the_grammar() {
    for (line, reason) in [
        ("HTTP/1.1 200 ", ""),
        ("HTTP/1.1 200", ""),
        ("HTTP/1.1 200  a\tb", " a\tb"),
        ("HTTP/1.1 200 \u{e9}", "\u{e9}"),
    ] {
        let text = format!("{line}\r\n\r\n");
        assert_eq!(accepted(&text).reason(text.as_bytes()), reason.as_bytes(), "{line:?}");
    }
    for line in [
        "HTTP/2.0 200 OK",
        "HTTP/0.9 200 OK",
        "http/1.1 200 OK",
        "HTTP/1.x 200 OK",
        "ICY 200 OK",
        "200 OK",
        " HTTP/1.1 200",
    ] {
        refused(&format!("{line}\r\n\r\n"), BadResponse::Version);
    }
    for status in ["099", "600", "999", "000", "20", "2000", "2x0", "-20", "+20", " 200", "200x", "200\t", ""] {
        refused(&format!("HTTP/1.1 {status} OK\r\n\r\n"), BadResponse::Status);
    }
    for line in ["HTTP/1.1 200 a\0", "HTTP/1.1 200 a\x01", "HTTP/1.1 200 a\rb", "HTTP/1.1 200 OK\nA: b"] {
        refused(&format!("{line}\r\n\r\n"), BadResponse::ReasonPhrase);
    }
    refused("\r\nHTTP/1.1 200 OK\r\n\r\n", BadResponse::Version);
}

#[test]
fn content_lengths_that_are_not_one_number() {
    for value in ["+5", "-5", "0x5", "", "5,5", "5, 5", "18446744073709551616"] {
        refused(&ok_with(&format!("Content-Length: {value}")), BadResponse::ContentLength);
    }
    refused(&ok_with("Content-Length: 5\r\nContent-Length: 5"), BadResponse::RepeatedContentLength);
    refused(&ok_with("Content-Length: 5\r\nTransfer-Encoding: chunked"), BadResponse::LengthAndEncoding);
}

#[test]
fn codings_other_than_one_chunked() {
    assert_eq!(accepted(&ok_with("Transfer-Encoding: Chunked")).framing(), Framing::Chunked);
    for value in [
        "gzip, chunked",
        "chunked, chunked",
        "chunked\r\nTransfer-Encoding: chunked",
        "identity",
        "",
        "chunked;a",
        "xchunked",
    ] {
        refused(&ok_with(&format!("Transfer-Encoding: {value}")), BadResponse::TransferEncoding);
    }
    refused("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", BadResponse::EncodingInHttp10);
}

#[test]
fn framing_follows_request_and_status() {
    let framing = |method, text: &str| accepted_for(method, text).framing();
    let long = ok_with("Content-Length: 5");
    let chunked = ok_with("Transfer-Encoding: chunked");
    let open = ok_with("A: b");
    assert_eq!(framing(Method::Head, &long), Framing::None);
    assert_eq!(accepted_for(Method::Head, &long).content_length(), Some(5));
    assert_eq!(framing(Method::Head, &chunked), Framing::None);
    assert_eq!(framing(Method::Head, &open), Framing::None);
    assert_eq!(framing(Method::Get, &open), Framing::UntilClose);
    assert_eq!(framing(Method::Connect, &long), Framing::None);
    assert_eq!(framing(Method::Connect, "HTTP/1.1 400 Bad\r\nContent-Length: 5\r\n\r\n"), Framing::Length(5));
    assert_eq!(framing(Method::Get, "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"), Framing::None);
    assert_eq!(framing(Method::Get, "HTTP/1.1 205 Reset\r\nContent-Length: 0\r\n\r\n"), Framing::Length(0));
}

#[test]
fn interim_and_204_have_no_content_whatever_they_declare() {
    for status in [100, 101, 103, 199, 204] {
        for fields in [
            "Content-Length: 5",
            "Transfer-Encoding: chunked",
            "A: b",
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
        ] {
            let head = accepted(&format!("HTTP/1.1 {status} x\r\n{fields}\r\n\r\n"));
            assert_eq!((head.framing(), head.content_length()), (Framing::None, None), "{status} {fields}");
            assert_eq!(head.is_interim(), status < 200 && status != 101);
        }
    }
}

#[test]
fn persistent_connections() {
    assert!(accepted(&ok_with("Content-Length: 0")).keeps_alive());
    assert!(!accepted(&ok_with("Content-Length: 0\r\nConnection: close")).keeps_alive());
    assert!(!accepted(&ok_with("A: b")).keeps_alive());
    assert!(!accepted("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n").keeps_alive());
    assert!(accepted("HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n").keeps_alive());
    assert!(!accepted("HTTP/1.1 101 Switching\r\nConnection: upgrade\r\n\r\n").keeps_alive());
    assert!(accepted("HTTP/1.1 204 No Content\r\n\r\n").keeps_alive());
}

#[test]
fn fields_named_by_connection_are_dropped() {
    let text = ok_with("Connection: X-Mine\r\nX-Mine: a\r\nX-Other: b\r\nContent-Length: 0");
    let head = accepted(&text);
    assert_eq!(head.fields().named(text.as_bytes(), b"x-mine").count(), 0);
    assert_eq!(head.fields().named(text.as_bytes(), b"x-other").count(), 1);
    refused(&ok_with("Connection: Set-Cookie"), BadResponse::Connection(BadConnection::Protected));
}

#[test]
fn field_lines_against_the_grammar() {
    refused(&ok_with("A: b\r\n c"), BadResponse::Field(BadField::Folded));
    refused(&ok_with("A: b\0"), BadResponse::Field(BadField::Nul));
    refused(&ok_with("A: b\nB: c"), BadResponse::Field(BadField::BareLf));
    refused(&ok_with("A"), BadResponse::Field(BadField::NoColon));
    assert_eq!(accepted(&ok_with("Content-Length : 7")).framing(), Framing::Length(7));
}

#[test]
fn sizes_are_bounded() {
    let limits = Limits::new(32, 64, 2).unwrap().with_ambiguous_names(AmbiguousNames::Reject);
    let verdict = |text: String| parse_within(text.as_bytes(), Method::Get, &limits).1;
    assert!(matches!(verdict(format!("HTTP/1.1 200 {}\r\n\r\n", "a".repeat(19))), Parsed::Complete(_)));
    let long_line = Parsed::Rejected(BadResponse::StatusLineTooLong);
    assert_eq!(verdict(format!("HTTP/1.1 200 {}\r\n\r\n", "a".repeat(20))), long_line);
    assert_eq!(
        verdict(format!("HTTP/1.1 200 \r\nA: {}\r\n\r\n", "a".repeat(60))),
        Parsed::Rejected(BadResponse::HeadTooLarge)
    );
    assert_eq!(verdict("HTTP/1.1 200 \r\nA:\r\nA:\r\nA:\r\n\r\n".into()), Parsed::Rejected(BadResponse::TooManyFields));
    assert!(matches!(verdict("HTTP/1.1 200 \r\nA_B: c\r\n\r\n".into()), Parsed::Complete(_)));
    assert_eq!(verdict(format!("HTTP/1.1 200 {}", "a".repeat(20))), Parsed::Partial);
    assert_eq!(verdict(format!("HTTP/1.1 200 {}", "a".repeat(21))), long_line);
    assert_eq!(verdict(format!("HTTP/1.1 200 \r\nA: {}", "a".repeat(45))), Parsed::Partial);
    assert_eq!(verdict(format!("HTTP/1.1 200 \r\nA: {}", "a".repeat(46))), Parsed::Rejected(BadResponse::HeadTooLarge));
}

#[test]
fn a_101_opens_a_tunnel_only_when_requested_and_valid() {
    let answer = |text: &str, asked| websocket::answers(&accepted(text), asked);
    let sound = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(answer(sound, true), Ok(true));
    assert_eq!(answer(sound, false), Err(BadResponse::UnaskedUpgrade));
    for unsound in [
        "HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        "HTTP/1.0 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ] {
        assert_eq!(answer(unsound, true), Err(BadResponse::Upgrade), "{unsound:?}");
    }
    assert_eq!(answer("HTTP/1.1 200 OK\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", true), Ok(false));
}
