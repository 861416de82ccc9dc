//! Requests of RFC 9112 and those that have been used against proxies, each with its one right answer.

use super::super::chunked::BadChunk;
use super::super::websocket;
use super::*;
use crate::message::connection::BadConnection;
use crate::message::field::BadField;

fn parse_within(bytes: &[u8], limits: &Limits) -> (RequestHead, Parsed<Reject>) {
    let mut head = RequestHead::default();
    let verdict = head.parse(bytes, limits);
    (head, verdict)
}

/// Parses what must be a complete head.
#[track_caller]
fn accepted(text: &str) -> RequestHead {
    let (head, verdict) = parse_within(text.as_bytes(), &Limits::default());
    assert_eq!(verdict, Parsed::Complete(text.len()), "{text:?}");
    head
}

#[track_caller]
fn refused(text: &str, reject: Reject) {
    let (_, verdict) = parse_within(text.as_bytes(), &Limits::default());
    assert_eq!(verdict, Parsed::Rejected(reject), "{text:?}");
}

/// A request in HTTP/1.1 with these fields besides Host.
fn with(fields: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")
}

fn line(line: &str) -> String {
    format!("{line}\r\nHost: a\r\n\r\n")
}

fn hosted(host: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

#[test]
fn reads_a_browsers_request() {
    let text = "GET /a/b?c=d&e HTTP/1.1\r\nHost: Example.com:8888\r\nAccept: */*\r\nCookie: x=y\r\ncookie: z\r\n\r\n";
    let head = accepted(text);
    let buf = text.as_bytes();
    assert_eq!((head.method(), head.version(), head.form()), (Method::Get, Version::Http11, TargetForm::Origin));
    assert_eq!((head.path(buf), head.query(buf)), (&b"/a/b"[..], Some(&b"c=d&e"[..])));
    assert_eq!((head.host(buf), head.port()), (Some(&b"Example.com"[..]), Some(8888)));
    assert_eq!(head.authority(buf), Some(&b"Example.com:8888"[..]));
    assert_eq!((head.framing(), head.keeps_alive(), head.expects_continue()), (Framing::None, true, false));
    assert_eq!(head.fields().values(buf, Name::Cookie).collect::<Vec<_>>(), [&b"x=y"[..], b"z"]);
    assert_eq!(head.fields().named(buf, b"ACCEPT").collect::<Vec<_>>(), [b"*/*"]);
    assert_eq!(head.fields().value(buf, Name::Authorization), None);
    assert_eq!(head.fields().iter(buf).count(), 4);
}

#[test]
fn does_not_read_into_the_next_request() {
    let text = "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\n";
    let (_, verdict) = parse_within(text.as_bytes(), &Limits::default());
    assert_eq!(verdict, Parsed::Complete(27));
}

#[test]
fn is_reusable_after_clear() {
    let mut head = RequestHead::default();
    let first = b"POST http://a/?q HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nConnection: close, x\r\n\
                  Expect: 100-continue\r\n\r\n";
    assert!(matches!(head.parse(first, &Limits::default()), Parsed::Complete(_)));
    head.clear();
    let second = b"GET / HTTP/1.0\r\n\r\n";
    assert!(matches!(head.parse(second, &Limits::default()), Parsed::Complete(_)));
    assert_eq!((head.framing(), head.keeps_alive(), head.expects_continue()), (Framing::None, false, false));
    assert_eq!((head.authority(second), head.host(second), head.query(second)), (None, None, None));
    assert_eq!((head.form(), head.fields().all().len()), (TargetForm::Origin, 0));
}

#[test]
fn content_length_with_transfer_encoding() {
    refused(&with("Content-Length: 5\r\nTransfer-Encoding: chunked"), Reject::LengthAndEncoding);
    refused(&with("Transfer-Encoding: chunked\r\nContent-Length: 0"), Reject::LengthAndEncoding);
    refused(&with("Transfer-Encoding: gzip\r\nContent-Length: 5"), Reject::LengthAndEncoding);
}

#[test]
fn content_length_that_is_not_one_number() {
    for value in
        ["+5", "-5", "0x5", "5a", "", " ", "5, 5", "5,5", "5 5", "5.0", "1e3", "18446744073709551616", "\"5\"", "5;"]
    {
        refused(&with(&format!("Content-Length: {value}")), Reject::ContentLength);
    }
    for repeat in ["5", "6", "x"] {
        refused(&with(&format!("Content-Length: 5\r\nContent-Length: {repeat}")), Reject::RepeatedContentLength);
    }
    assert_eq!(accepted(&with("Content-Length: 18446744073709551615")).framing(), Framing::Length(u64::MAX));
    assert_eq!(accepted(&with("content-length:  005 ")).framing(), Framing::Length(5));
    assert_eq!(accepted(&with("Content-Length: 0")).framing(), Framing::Length(0));
}

#[test]
fn transfer_encoding_other_than_chunked() {
    assert_eq!(accepted(&with("Transfer-Encoding: chunked")).framing(), Framing::Chunked);
    assert_eq!(accepted(&with("transfer-encoding:\tCHUNKED ")).framing(), Framing::Chunked);
    for value in ["xchunked", "chunkedx", "br", "cow, chunked", "identityx", "x;a=b"] {
        refused(&with(&format!("Transfer-Encoding: {value}")), Reject::TransferCoding);
    }
    for value in ["gzip, chunked", "deflate,gzip;a=b, chunked", "identity, chunked"] {
        refused(&with(&format!("Transfer-Encoding: {value}")), Reject::TransferCoding);
    }
    for value in
        ["gzip", "identity", "chunked, gzip", "chunked, chunked", "chunked, x", "chunked\r\nTransfer-Encoding: chunked"]
    {
        refused(&with(&format!("Transfer-Encoding: {value}")), Reject::ChunkedNotLast);
    }
    for value in [
        "",
        "chunked,",
        ",chunked",
        "chunked;a=b",
        "chunked;",
        "\"chunked\"",
        "chun ked",
        "chunked chunked",
        "ch\u{fc}nked",
    ] {
        refused(&with(&format!("Transfer-Encoding: {value}")), Reject::TransferEncoding);
    }
    refused(&with("Transfer-Encoding: \x0bchunked"), Reject::Field(BadField::Control));
    refused(&with("Transfer-Encoding : chunked"), Reject::Field(BadField::SpaceBeforeColon));
    refused(&with("Transfer-Encoding:\r\n chunked"), Reject::TransferEncoding);
}

#[test]
fn transfer_encoding_in_http_1_0() {
    refused("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", Reject::EncodingInHttp10);
}

#[test]
fn host_missing() {
    refused("GET / HTTP/1.1\r\n\r\n", Reject::MissingHost);
    refused("GET http://a/ HTTP/1.1\r\nAccept: */*\r\n\r\n", Reject::MissingHost);
    refused("GET / HTTP/1.2\r\nX-Host: a\r\n\r\n", Reject::MissingHost);
    assert_eq!(accepted("GET / HTTP/1.0\r\n\r\n").authority(b""), None);
}

#[test]
fn host_repeated() {
    refused(&hosted("a\r\nHost: a"), Reject::RepeatedHost);
    refused(&hosted("a\r\nhOST: b"), Reject::RepeatedHost);
    refused("GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", Reject::RepeatedHost);
}

#[test]
fn host_malformed() {
    for host in [
        "", "a b", "a,b", "a, b", "u@a", "u:p@a", "a/b", "a?b", "a#b", "a\\b", "http://a", "a:x", "a:65536", "a:80:80",
        ":80", "[::1", "[x]", "[::1]a", "a%20b", "\u{e9}", "a\"", "a|b",
    ] {
        refused(&hosted(host), Reject::Host);
    }
    refused("GET / HTTP/1.0\r\nHost: a/b\r\n\r\n", Reject::Host);
    refused(&hosted("a\tb"), Reject::Host);
    for host in ["a", "A.b.", "a:", "a:0", "a:65535", "[::1]:80", "127.0.0.1", "a_b"] {
        accepted(&hosted(host));
    }
}

#[test]
fn line_structure_against_the_grammar() {
    refused(&with("X : b"), Reject::Field(BadField::SpaceBeforeColon));
    refused(&with("X: a\r\n b"), Reject::Field(BadField::Folded));
    refused("GET / HTTP/1.1\r\n Host: a\r\n\r\n", Reject::Field(BadField::Folded));
    refused(&with("X: a\rb"), Reject::Field(BadField::BareCr));
    refused(&with("X: a\nY: b"), Reject::Field(BadField::BareLf));
    refused(&with("X: a\0b"), Reject::Field(BadField::Nul));
    refused(&with("X\0: a"), Reject::Field(BadField::NameByte));
    refused(&with("X: a\x7f"), Reject::Field(BadField::Control));
    refused(&with("X"), Reject::Field(BadField::NoColon));
    refused(&with(": a"), Reject::Field(BadField::EmptyName));
    refused(&with("X[1]: a"), Reject::Field(BadField::NameByte));
    refused("GET / HTTP/1.1\nHost: a\n\n", Reject::RequestLine);
    refused("GET / HTTP/1.1\rHost: a\r\n\r\n", Reject::RequestLine);
    refused("GET / HTTP/1.1\r\nHost: a\r\n\n", Reject::Field(BadField::BareLf));
    refused("GET / HTTP/1.1\r\nHost: a\r\n\rX", Reject::Field(BadField::BareCr));
    accepted(&with("X: caf\u{e9}\r\nY:\r\nZ:\t \t\r\nV: a\tb"));
}

#[test]
fn absolute_target_other_than_host() {
    let absolute = |target: &str, host: &str| format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    refused(&absolute("http://a/", "b"), Reject::HostMismatch);
    refused(&absolute("http://a:80/", "a"), Reject::HostMismatch);
    refused(&absolute("http://a/", "a/"), Reject::Host);
    refused(&absolute("ftp://a/", "a"), Reject::Scheme);
    for target in ["http://u@a/", "http:///x", "http://", "http://a:x/", "http://a%41/", "http://a\\b/"] {
        refused(&absolute(target, "a"), Reject::TargetAuthority);
    }
    for target in ["http:/a/", "http:a", "a:80", "a", "a/b", "?q", "mailto:x@y", "\\"] {
        refused(&absolute(target, "a"), Reject::PathNotAbsolute);
    }

    let text = absolute("HTTP://A:80?q?r", "a:80");
    let head = accepted(&text);
    let buf = text.as_bytes();
    assert_eq!((head.form(), head.path(buf), head.query(buf)), (TargetForm::Http, &b"/"[..], Some(&b"q?r"[..])));
    assert_eq!((head.host(buf), head.port()), (Some(&b"A"[..]), Some(80)));
    assert_eq!(accepted(&absolute("https://a/x", "A")).form(), TargetForm::Https);
}

#[test]
fn absolute_target_in_http_1_0_stands_in_for_host() {
    let text = "GET http://a:1/x HTTP/1.0\r\n\r\n";
    assert_eq!(accepted(text).authority(text.as_bytes()), Some(&b"a:1"[..]));
}

#[test]
fn target_form_against_the_method() {
    refused(&line("GET * HTTP/1.1"), Reject::AsteriskForm);
    refused(&line("OPTIONS *x HTTP/1.1"), Reject::PathNotAbsolute);
    refused(&line("GET a:80 HTTP/1.1"), Reject::PathNotAbsolute);
    let text = line("OPTIONS * HTTP/1.1");
    let head = accepted(&text);
    assert_eq!((head.form(), head.path(text.as_bytes())), (TargetForm::Asterisk, &b"*"[..]));
    let text = line("OPTIONS http://a HTTP/1.1");
    assert_eq!(accepted(&text).path(text.as_bytes()), b"*");
    let text = line("OPTIONS http://a/ HTTP/1.1");
    assert_eq!(accepted(&text).path(text.as_bytes()), b"/");
}

#[test]
fn target_with_bytes_it_cannot_have() {
    for target in ["/\x01", "/\x7f", "/\u{e9}", "/a#b", "/\0", "/\t"] {
        refused(&line(&format!("GET {target} HTTP/1.1")), Reject::Target);
    }
    for target in ["/%", "/%4", "/%zz", "/a%00b", "http://a/%00"] {
        refused(&line(&format!("GET {target} HTTP/1.1")), Reject::PathEscape);
    }
    accepted(&line("GET /%2F..%2e?%zz%00 HTTP/1.1"));
    accepted(&line("GET /{}|^`\"<>\\ HTTP/1.1"));
}

#[test]
fn request_line_against_the_grammar() {
    for (text, reject) in [
        ("GET /a b HTTP/1.1", Reject::Version),
        ("GET  / HTTP/1.1", Reject::RequestLine),
        ("GET /  HTTP/1.1", Reject::Version),
        ("GET / HTTP/1.1 ", Reject::RequestLine),
        ("GET / HTTP/1.1x", Reject::RequestLine),
        ("GET\t/ HTTP/1.1", Reject::Method),
        (" GET / HTTP/1.1", Reject::Method),
        ("GET /", Reject::RequestLine),
        ("GET", Reject::Method),
        ("G(T / HTTP/1.1", Reject::Method),
        ("\u{e9} / HTTP/1.1", Reject::Method),
        ("GET / http/1.1", Reject::Version),
        ("GET / HTTP/11", Reject::Version),
        ("GET / HTTP/1.10", Reject::RequestLine),
        ("GET / HTTPS/1.1", Reject::Version),
        ("GET / X", Reject::Version),
        ("\x16\x03\x01\x02", Reject::Method),
    ] {
        refused(&line(text), reject);
    }
}

#[test]
fn versions_of_http() {
    refused(&line("GET / HTTP/2.0"), Reject::UnsupportedVersion);
    refused(&line("GET / HTTP/0.9"), Reject::UnsupportedVersion);
    refused("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Reject::UnsupportedVersion);
    assert_eq!(accepted(&line("GET / HTTP/1.9")).version(), Version::Http11);
    assert_eq!(accepted(&line("GET / HTTP/1.0")).version(), Version::Http10);
}

#[test]
fn blank_lines_before_a_request() {
    accepted("\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    refused("\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Reject::TooManyBlankLines);
    refused("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Reject::RequestLine);
    refused("\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", Reject::RequestLine);
}

#[test]
fn connect_and_trace() {
    refused("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", Reject::ConnectMethod);
    refused(&line("TRACE / HTTP/1.1"), Reject::TraceMethod);
    assert_eq!((Reject::ConnectMethod.status(), Reject::TraceMethod.status()), (405, 405));
    let text = line("connect / HTTP/1.1");
    assert_eq!(accepted(&text).method(), Method::Other);
}

#[test]
fn request_line_too_long() {
    let limits = Limits::new(64, 256, 10).unwrap();
    let of_length = |len: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(len - 14));
    assert!(matches!(parse_within(of_length(64).as_bytes(), &limits).1, Parsed::Complete(_)));
    assert_eq!(parse_within(of_length(65).as_bytes(), &limits).1, Parsed::Rejected(Reject::RequestLineTooLong));
    let endless = vec![b'/'; 200];
    let text = [b"GET ", endless.as_slice()].concat();
    assert_eq!(parse_within(&text, &limits).1, Parsed::Rejected(Reject::RequestLineTooLong));
    assert_eq!(Reject::RequestLineTooLong.status(), 414);
    refused(&format!("{} / HTTP/1.1\r\n", "A".repeat(33)), Reject::MethodTooLong);
}

#[test]
fn head_too_large_or_fields_too_many() {
    let limits = Limits::new(64, 128, 3).unwrap();
    let with_value = |len: usize| format!("\r\nGET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(len));
    let fits = 128 - (with_value(0).len() - 2);
    assert!(matches!(parse_within(with_value(fits).as_bytes(), &limits).1, Parsed::Complete(_)));
    assert_eq!(parse_within(with_value(fits + 1).as_bytes(), &limits).1, Parsed::Rejected(Reject::HeadTooLarge));
    let with_fields = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(count));
    assert!(matches!(parse_within(with_fields(2).as_bytes(), &limits).1, Parsed::Complete(_)));
    assert_eq!(parse_within(with_fields(3).as_bytes(), &limits).1, Parsed::Rejected(Reject::TooManyFields));
    assert_eq!((Reject::HeadTooLarge.status(), Reject::TooManyFields.status()), (431, 431));
}

#[test]
fn errors_are_reported_at_the_deciding_byte() {
    let limits = Limits::new(64, 128, 3).unwrap();
    let decided_by = |text: String, reject: Reject| {
        let all_but_one = text.len() - 1;
        assert_eq!(parse_within(&text.as_bytes()[..all_but_one], &limits).1, Parsed::Partial, "{text:?}");
        assert_eq!(parse_within(text.as_bytes(), &limits).1, Parsed::Rejected(reject), "{text:?}");
    };
    decided_by("A".repeat(33), Reject::MethodTooLong);
    decided_by(format!("GET /{}", "a".repeat(64 + 2 - 5)), Reject::RequestLineTooLong);
    decided_by(format!("GET / HTTP/1.1\r\nA: {}", "a".repeat(128 - 19)), Reject::HeadTooLarge);
    decided_by(format!("{}\r", "\r\n".repeat(4)), Reject::TooManyBlankLines);
    decided_by("GET / HTTP/1.1\r\nHost ".into(), Reject::Field(BadField::SpaceBeforeColon));
}

#[test]
fn the_largest_head_fits_its_offsets() {
    let limits = Limits::new(1024, crate::message::limits::MAX_HEAD_BYTES, 128).unwrap();
    let start = "\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n";
    let value = "v".repeat(limits.head_bytes - (start.len() - 8) - 7);
    let text = format!("{start}X: {value}\r\n\r\n");
    let (head, verdict) = parse_within(text.as_bytes(), &limits);
    assert_eq!(verdict, Parsed::Complete(text.len()));
    assert_eq!(head.fields().named(text.as_bytes(), b"x").next(), Some(value.as_bytes()));
}

#[test]
fn expectations() {
    assert!(accepted(&with("Expect: 100-Continue\r\nContent-Length: 1")).expects_continue());
    assert!(accepted(&with("Expect: 100-continue\r\nTransfer-Encoding: chunked")).expects_continue());
    assert!(!accepted(&with("Expect: 100-continue\r\nContent-Length: 0")).expects_continue());
    assert!(!accepted(&with("Expect: 100-continue")).expects_continue());
    assert!(!accepted("POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n").expects_continue());
    for value in ["x", "100-continue, x", "100-continue;a", "200-ok"] {
        refused(&with(&format!("Expect: {value}")), Reject::Expectation);
    }
    assert_eq!(Reject::Expectation.status(), 417);
}

#[test]
fn max_forwards() {
    let options = |value: &str| format!("OPTIONS / HTTP/1.1\r\nHost: a\r\nMax-Forwards: {value}\r\n\r\n");
    assert_eq!(accepted(&options("0")).max_forwards(), Some(0));
    assert_eq!(accepted(&options("10")).max_forwards(), Some(10));
    refused(&options("-1"), Reject::MaxForwards);
    refused(&options("1\r\nMax-Forwards: 1"), Reject::MaxForwards);
    assert_eq!(accepted(&with("Max-Forwards: x")).max_forwards(), None);
}

#[test]
fn fields_named_by_connection() {
    let text = with("Connection: close, X-Mine,, x-other\r\nx-mine: 1\r\nX-Mine: 2\r\nX-Others: 3");
    let head = accepted(&text);
    let names: Vec<_> = head.fields().iter(text.as_bytes()).map(|(name, _)| name).collect();
    assert_eq!(names, [&b"Host"[..], b"Connection", b"X-Others"]);
    assert!(!head.keeps_alive());
    for name in [
        "Host",
        "Content-Length",
        "transfer-encoding",
        "Authorization",
        "Cookie",
        "X-Forwarded-For",
        "Forwarded",
        "X-Real-IP",
    ] {
        refused(&with(&format!("Connection: {name}")), Reject::Connection(BadConnection::Protected));
    }
    refused(&with("Connection: a b"), Reject::Connection(BadConnection::Syntax));
    refused(&with(&format!("Connection: {}", "a,".repeat(40))), Reject::Connection(BadConnection::TooMany));
}

#[test]
fn connection_persistence() {
    assert!(accepted(&with("X: y")).keeps_alive());
    assert!(!accepted(&with("Connection: Close")).keeps_alive());
    assert!(!accepted(&with("Connection: keep-alive\r\nConnection: close")).keeps_alive());
    assert!(!accepted("GET / HTTP/1.0\r\n\r\n").keeps_alive());
    assert!(accepted("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").keeps_alive());
    assert!(!accepted("GET / HTTP/1.0\r\nProxy-Connection: keep-alive\r\n\r\n").keeps_alive());
}

#[test]
fn targets_with_bytes_above_ascii_follow_the_rule() {
    let text = b"GET /caf\xc3\xa9%20/\xff?\x80=%zz HTTP/1.1\r\nHost: a\r\n\r\n";
    let pass = Limits { non_ascii: NonAsciiTargets::Pass, ..Limits::default() };
    assert_eq!(parse_within(text, &Limits::default()).1, Parsed::Rejected(Reject::Target));
    let (head, verdict) = parse_within(text, &pass);
    assert_eq!(verdict, Parsed::Complete(text.len()));
    assert_eq!((head.path(text), head.query(text)), (&b"/caf\xc3\xa9%20/\xff"[..], Some(&b"\x80=%zz"[..])));
    for bad in [&b"GET /\xc3\x01 HTTP/1.1\r\n"[..], b"GET /\xc3#a HTTP/1.1\r\n", b"GET /\x7f\xc3 HTTP/1.1\r\n"] {
        assert_eq!(parse_within(bad, &pass).1, Parsed::Rejected(Reject::Target));
    }
    assert_eq!(parse_within(b"GET /\xc3%zz HTTP/1.1\r\n", &pass).1, Parsed::Rejected(Reject::PathEscape));
    assert_eq!(parse_within(b"GET http://\xc3/ HTTP/1.1\r\n", &pass).1, Parsed::Rejected(Reject::TargetAuthority));
}

#[test]
fn ambiguous_names_follow_the_rule() {
    let text = with("Content_Length: 5\r\nX_Forwarded.For: 1\r\nX.Y: 2\r\nX-Y: 3\r\n!#$%&'*+^`|~: 4");
    let seen = |rule: AmbiguousNames| {
        let limits = Limits::default().with_ambiguous_names(rule);
        let (head, verdict) = parse_within(text.as_bytes(), &limits);
        (verdict, head.fields().iter(text.as_bytes()).count())
    };
    assert_eq!(seen(AmbiguousNames::Drop), (Parsed::Complete(text.len()), 3));
    assert_eq!(seen(AmbiguousNames::Pass), (Parsed::Complete(text.len()), 4), "those that would be ours are left out");
    assert_eq!(seen(AmbiguousNames::Reject).0, Parsed::Rejected(Reject::AmbiguousName));
    assert_eq!(accepted(&text).framing(), Framing::None);
}

#[test]
fn upgrade_needs_all_its_fields() {
    let get = |rest: &str| websocket::asks(&accepted(&format!("GET / HTTP/1.{rest}\r\n\r\n")));
    assert!(get("1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket"));
    assert!(get("1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c, websocket"));
    assert!(!get("1\r\nHost: a\r\nUpgrade: websocket"));
    assert!(!get("1\r\nHost: a\r\nConnection: Upgrade"));
    assert!(!get("1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x"));
    assert!(!get("1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c"));
    assert!(!get("0\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket"));
    assert!(!get("1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 1"));
    assert!(!websocket::asks(&accepted(&with("Connection: Upgrade\r\nUpgrade: websocket"))));
}

#[test]
fn every_status_has_its_cases() {
    for (reject, status) in [
        (Reject::Field(BadField::Nul), 400),
        (Reject::Chunk(BadChunk::Size), 400),
        (Reject::PathAboveRoot, 400),
        (Reject::TraceMethod, 405),
        (Reject::TransferCoding, 501),
        (Reject::MethodTooLong, 501),
        (Reject::UnsupportedVersion, 505),
    ] {
        assert_eq!(reject.status(), status);
    }
}

#[test]
fn a_parsed_head_is_small() {
    assert!(size_of::<RequestHead>() < 2048, "{}", size_of::<RequestHead>());
}
