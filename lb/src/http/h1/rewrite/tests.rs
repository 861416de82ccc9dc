//! Heads as they arrive, and as they leave.

use super::super::websocket;
use super::*;
use crate::message::limits::{AmbiguousNames, Limits};
use crate::message::{Method, Parsed};

fn value(text: &str) -> FieldValue<'_> {
    FieldValue::new(text.as_bytes()).unwrap()
}

fn change<'a>(name: &'a str, edit: Edit<'a>) -> Change<'a> {
    Change { name: FieldName::new(name.as_bytes()).unwrap(), edit }
}

/// The request as a backend gets it, the plan adjusted by `adjust`.
#[track_caller]
fn sent<'a>(text: &str, changes: &'a [Change<'a>], adjust: impl FnOnce(&RequestHead, &mut RequestPlan<'a>)) -> String {
    let mut head = RequestHead::default();
    let limits = Limits::default().with_ambiguous_names(AmbiguousNames::Drop);
    assert_eq!(head.parse(text.as_bytes(), &limits), Parsed::Complete(text.len()), "{text:?}");
    let mut plan = RequestPlan::new(&head, changes);
    adjust(&head, &mut plan);
    let mut out = b"before".to_vec();
    request(&head, text.as_bytes(), &plan, &mut out);
    String::from_utf8(out).unwrap().strip_prefix("before").unwrap().into()
}

/// The response as a client gets it.
#[track_caller]
fn answered(text: &str, client: Version, persistence: Persistence, changes: &[Change<'_>]) -> String {
    answered_to(Method::Get, text, client, persistence, changes, None)
}

fn answered_to(
    method: Method,
    text: &str,
    client: Version,
    persistence: Persistence,
    changes: &[Change<'_>],
    date: Option<&str>,
) -> String {
    let mut head = ResponseHead::default();
    assert_eq!(head.parse(text.as_bytes(), method, &Limits::default()), Parsed::Complete(text.len()), "{text:?}");
    let plan = ResponsePlan { date: date.map(value), ..ResponsePlan::new(&head, client, persistence, changes) };
    let mut out = Vec::new();
    response(&head, text.as_bytes(), &plan, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn hop_by_hop_fields_of_requests_are_dropped() {
    let text = "POST /a?b HTTP/1.0\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\nHost: a\r\nAccept:*/*\r\n\
                Keep-Alive: 5\r\nProxy-Connection: close\r\nTE: trailers\r\nTrailer: X-Sum\r\nUpgrade: h2c\r\n\
                HTTP2-Settings: x\r\nProxy-Authorization: y\r\nContent-Length: 005\r\nX_Y: 2\r\n\
                Expect: 100-continue\r\nCookie: c \r\nX-Z: z\r\n\r\n";
    assert_eq!(
        sent(text, &[], |_, _| {}),
        "POST /a?b HTTP/1.1\r\nHost: a\r\nAccept: */*\r\nCookie: c\r\nX-Z: z\r\nContent-Length: 5\r\n\r\n"
    );
}

#[test]
fn changes_replace_append_add_and_remove() {
    let text = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1\r\nx-forwarded-for:\r\nX-Forwarded-For: 2, 3\r\n\
                X-A: a\r\nx-b: b\r\nVia: v\r\nX-C: c\r\nX-Real-IP: 9\r\nX-AA: aa\r\n\r\n";
    let changes = [
        change("X-Forwarded-For", Edit::Append(value("4"))),
        change("x-a", Edit::Set(value("A"))),
        change("X-B", Edit::Remove),
        change("via", Edit::Add(value("w"))),
        change("X-C", Edit::Append(value("d"))),
        change("X-D", Edit::Append(value("e"))),
        change("X-Real-IP", Edit::Set(value("8"))),
    ];
    assert_eq!(
        sent(text, &changes, |_, _| {}),
        "GET / HTTP/1.1\r\nHost: a\r\nVia: v\r\nX-AA: aa\r\nX-Forwarded-For: 1, 2, 3, 4\r\nx-a: A\r\nvia: w\r\n\
         X-C: c, d\r\nX-D: e\r\nX-Real-IP: 8\r\n\r\n"
    );
}

#[test]
fn targets_are_sent_in_origin_form() {
    let first = |line: &str| {
        let text = format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n");
        sent(&text, &[], |_, _| {}).lines().next().map(String::from)
    };
    assert_eq!(first("GET http://a").as_deref(), Some("GET / HTTP/1.1"));
    assert_eq!(first("GET http://a?").as_deref(), Some("GET /? HTTP/1.1"));
    assert_eq!(first("GET http://a/x/%2e?y?z").as_deref(), Some("GET /x/%2e?y?z HTTP/1.1"));
    assert_eq!(first("OPTIONS http://a").as_deref(), Some("OPTIONS * HTTP/1.1"));
    assert_eq!(first("OPTIONS *").as_deref(), Some("OPTIONS * HTTP/1.1"));
    assert_eq!(first("BREW /?").as_deref(), Some("BREW /? HTTP/1.1"));
    let moved = sent("GET /x HTTP/1.1\r\nHost: a\r\n\r\n", &[], |_, plan| plan.target = Target::new(b"/y?z"));
    assert!(moved.starts_with("GET /y?z HTTP/1.1\r\n"));
}

#[test]
fn host_is_the_authority_unless_replaced() {
    let host = |text: &str| sent(text, &[], |_, _| {}).lines().nth(1).map(String::from);
    assert_eq!(host("GET / HTTP/1.1\r\nhOST:A:80\r\n\r\n").as_deref(), Some("Host: A:80"));
    assert_eq!(host("GET http://a:1/ HTTP/1.0\r\n\r\n").as_deref(), Some("Host: a:1"));
    assert_eq!(host("GET / HTTP/1.0\r\n\r\n").as_deref(), Some("Host: "));
    let replaced = sent("GET / HTTP/1.1\r\nHost: a\r\n\r\n", &[], |_, plan| plan.host = Some(value("b:1")));
    assert_eq!(replaced, "GET / HTTP/1.1\r\nHost: b:1\r\n\r\n");
}

#[test]
fn framing_fields_are_regenerated() {
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\nTrailer: X\r\n\r\n";
    let start = "POST / HTTP/1.1\r\nHost: a\r\n";
    assert_eq!(sent(chunked, &[], |_, _| {}), format!("{start}Trailer: X\r\nTransfer-Encoding: chunked\r\n\r\n"));
    let buffered = sent(chunked, &[], |_, plan| plan.framing = Framing::Length(7));
    assert_eq!(buffered, format!("{start}Content-Length: 7\r\n\r\n"));
    let expecting = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n";
    let asked = sent(expecting, &[], |head, plan| plan.expect_continue = head.expects_continue());
    assert_eq!(asked, format!("{start}Expect: 100-continue\r\nContent-Length: 1\r\n\r\n"));
    let last = sent("POST / HTTP/1.1\r\nHost: a\r\n\r\n", &[], |_, plan| plan.persistence = Persistence::Close);
    assert_eq!(last, format!("{start}Connection: close\r\n\r\n"));
}

#[test]
fn max_forwards_counts_down_for_options_only() {
    let with = |method: &str| {
        let text = format!("{method} / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 3\r\n\r\n");
        sent(&text, &[], |_, _| {}).contains("Max-Forwards: 2\r\n")
    };
    assert!(with("OPTIONS") && !with("GET"));
}

#[test]
fn an_upgrade_is_requested_with_generated_fields() {
    let text = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: h2c, WebSocket\r\n\
                Sec-WebSocket-Key: k\r\n\r\n";
    let upgraded = sent(text, &[], |head, plan| {
        assert!(websocket::asks(head));
        plan.persistence = Persistence::WebSocket;
    });
    assert_eq!(
        upgraded,
        "GET /ws HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Key: k\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    );
}

#[test]
fn hop_by_hop_fields_of_responses_are_dropped() {
    let text = "HTTP/1.0 200 Fine\r\nServer: app\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\n\
                Upgrade: h2c\r\nTrailer: X\r\nX_Y: 2\r\nDate : d\r\nContent-Length: 05\r\nSet-Cookie: a\r\n\
                Set-Cookie: b\r\nX-Powered-By: x\r\n\r\n";
    let changes = [
        change("Set-Cookie", Edit::Add(value("lb=1"))),
        change("Server", Edit::Set(value("evenkeel"))),
        change("X-Powered-By", Edit::Remove),
    ];
    assert_eq!(
        answered_to(Method::Get, text, Version::Http11, Persistence::KeepAlive, &changes, Some("now")),
        "HTTP/1.1 200 Fine\r\nX_Y: 2\r\nDate: d\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nSet-Cookie: lb=1\r\n\
         Server: evenkeel\r\nContent-Length: 5\r\n\r\n"
    );
}

#[test]
fn content_of_unknown_length_is_framed_for_the_clients_version() {
    for text in ["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"] {
        assert_eq!(
            answered(text, Version::Http11, Persistence::KeepAlive, &[]),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        assert_eq!(
            answered(text, Version::Http10, Persistence::KeepAlive, &[]),
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
        );
    }
}

#[test]
fn persistence_is_signalled_for_the_clients_version() {
    let text = "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n";
    let start = "HTTP/1.1 200 \r\nContent-Length: 0\r\n";
    let signalled =
        |client, persistence| answered(text, client, persistence, &[]).strip_prefix(start).map(String::from);
    assert_eq!(signalled(Version::Http11, Persistence::KeepAlive).as_deref(), Some("\r\n"));
    assert_eq!(signalled(Version::Http11, Persistence::Close).as_deref(), Some("Connection: close\r\n\r\n"));
    assert_eq!(signalled(Version::Http10, Persistence::KeepAlive).as_deref(), Some("Connection: keep-alive\r\n\r\n"));
    assert_eq!(signalled(Version::Http10, Persistence::Close).as_deref(), Some("Connection: close\r\n\r\n"));
}

#[test]
fn responses_without_content_keep_only_representation_fields() {
    let to = |method, status: u16| {
        let text = format!("HTTP/1.1 {status} x\r\nContent-Length: 5\r\n\r\n");
        answered_to(method, &text, Version::Http11, Persistence::Close, &[], Some("now"))
    };
    let rest = "Date: now\r\nConnection: close\r\n\r\n";
    assert_eq!(to(Method::Head, 200), format!("HTTP/1.1 200 x\r\nContent-Length: 5\r\n{rest}"));
    assert_eq!(to(Method::Get, 304), format!("HTTP/1.1 304 x\r\nContent-Length: 5\r\n{rest}"));
    assert_eq!(to(Method::Get, 204), format!("HTTP/1.1 204 x\r\n{rest}"));
    assert_eq!(to(Method::Get, 103), "HTTP/1.1 103 x\r\n\r\n");
}

#[test]
fn a_101_is_sent_with_generated_fields() {
    let text = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\
                Sec-WebSocket-Accept: k\r\n\r\n";
    assert_eq!(
        answered(text, Version::Http11, Persistence::WebSocket, &[]),
        "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: k\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\n\r\n"
    );
}

#[test]
fn names_values_and_targets_cannot_inject_lines() {
    for name in ["", "a b", "a:", "a\r\n", "Content-Length", "connection", "Host", "Transfer-Encoding", "\u{e9}"] {
        assert_eq!(FieldName::new(name.as_bytes()), None, "{name:?}");
    }
    for bad in ["a\r\nb", "a\n", "\0", "\x7f"] {
        assert_eq!(FieldValue::new(bad.as_bytes()), None, "{bad:?}");
    }
    for bad in ["", "a", "/a b", "/\r\n", "/\u{e9}", "/#"] {
        assert_eq!(Target::new(bad.as_bytes()), None, "{bad:?}");
    }
}
