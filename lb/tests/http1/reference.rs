//! A comparison: `httparse` reads everything that we accept in the same way. It is more lenient, so the reverse does
//! not hold.

use evenkeel::http::h1::head::RequestHead;
use evenkeel::http::h1::response::ResponseHead;
use evenkeel::message::limits::{AmbiguousNames, Limits};
use evenkeel::message::{Method, Parsed};
use proptest::collection::vec;
use proptest::prelude::*;

fn limits() -> Limits {
    Limits::default().with_ambiguous_names(AmbiguousNames::Pass)
}

fn fields_agree<'a>(ours: impl Iterator<Item = (&'a [u8], &'a [u8])>, theirs: &[httparse::Header<'_>]) {
    let ours: Vec<_> = ours.collect();
    let theirs: Vec<_> = theirs.iter().map(|field| (field.name.as_bytes(), field.value)).collect();
    assert_eq!(ours, theirs);
}

/// HTTP/1.2 and later count as 1.1 here (RFC 9110 §2.5), but are an error for `httparse`.
fn knows_version(verdict: httparse::Result<usize>) -> bool {
    verdict != Err(httparse::Error::Version)
}

fn request_agrees(bytes: &[u8]) -> bool {
    let mut head = RequestHead::default();
    let Parsed::Complete(len) = head.parse(bytes, &limits()) else {
        return false;
    };
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut reference = httparse::Request::new(&mut fields);
    let verdict = reference.parse(bytes);
    if !knows_version(verdict) {
        return false;
    }
    assert_eq!(verdict, Ok(httparse::Status::Complete(len)), "{}", bytes.escape_ascii());
    assert_eq!(reference.method.map(str::as_bytes), Some(head.method_token(bytes)));
    if let Some(target) = reference.path.filter(|target| target.starts_with('/')) {
        let query = head.query(bytes).map(|query| [b"?", query].concat()).unwrap_or_default();
        assert_eq!(target.as_bytes(), [head.path(bytes), &query].concat());
    }
    fields_agree(head.fields().iter(bytes), reference.headers);
    true
}

fn response_agrees(bytes: &[u8]) -> bool {
    let mut head = ResponseHead::default();
    let Parsed::Complete(len) = head.parse(bytes, Method::Get, &limits()) else {
        return false;
    };
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut reference = httparse::Response::new(&mut fields);
    let verdict = httparse::ParserConfig::default()
        .allow_spaces_after_header_name_in_responses(true)
        .parse_response(&mut reference, bytes);
    if !knows_version(verdict) {
        return false;
    }
    assert_eq!(verdict, Ok(httparse::Status::Complete(len)), "{}", bytes.escape_ascii());
    assert_eq!(reference.code, Some(head.status()));
    fields_agree(head.fields().iter(bytes), reference.headers);
    true
}

/// Field lines of names and values, without fields that must be consistent with others.
fn field_lines() -> impl Strategy<Value = String> {
    let name = "[A-Za-z0-9!#$%&'*+.^_`|~-]{1,12}".prop_map(|name| format!("X{name}"));
    let value = "[ \\t]{0,2}[!-~\u{e9}]{0,3}[ -~\\t]{0,20}";
    vec((name, value).prop_map(|(name, value)| format!("{name}:{value}\r\n")), 0..10).prop_map(|lines| lines.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn requests_read_as_httparse_reads_them(
        method in "[A-Z]{1,8}[0-9]?",
        target in "/[a-zA-Z0-9/._~!$&'()*+,;=:@-]{0,20}[?]?[a-zA-Z0-9%?/]{0,8}",
        fields in field_lines(),
    ) {
        prop_assume!(!target.split('?').next().unwrap_or_default().contains('%'));
        let text = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\nrest");
        let special = method == "CONNECT" || method == "TRACE";
        prop_assert!(request_agrees(text.as_bytes()) || special, "{text:?}");
    }

    #[test]
    fn responses_read_as_httparse_reads_them(
        status in 100..600u16,
        reason in "[ -~]{0,12}",
        fields in field_lines(),
    ) {
        let text = format!("HTTP/1.1 {status} {reason}\r\n{fields}\r\nrest");
        prop_assert!(response_agrees(text.as_bytes()), "{text:?}");
    }

    #[test]
    fn mutated_heads_that_are_accepted_read_as_httparse_reads_them(
        fields in field_lines(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut request = format!("GET /a?b HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes();
        let index = at.index(request.len());
        request[index] = byte;
        request_agrees(&request);
        let mut response = format!("HTTP/1.1 200 OK\r\nServer : a\r\n{fields}\r\n").into_bytes();
        let index = at.index(response.len());
        response[index] = byte;
        response_agrees(&response);
    }
}
