use super::*;
use crate::value::pattern::{Case, Pattern};
use crate::value::table::{Written, WrittenCases};
use crate::value::tests::TestFacts;
use crate::value::{Phase, Scope};

fn value(text: &str) -> Value {
    let pattern = Pattern::parse("^/x(.*)$", Case::Sensitive).expect("valid");
    let scope = Scope { route: Some(&pattern), ..Scope::new(Phase::End) };
    Value::parse(text, &scope).expect(text)
}

fn location(text: &str, facts: &TestFacts) -> String {
    let mut out = b">".to_vec();
    let presence = value(text).write_location(facts, &mut out);
    let written = String::from_utf8(out).expect("ASCII")[1..].to_owned();
    assert_eq!(presence == Presence::Missing, written.is_empty());
    written
}

#[test]
fn a_location_with_an_empty_host_is_missing() {
    let facts =
        TestFacts::new(&[("$scheme", "https"), ("$request_uri", "/evil.example/x"), ("$uri", "/x"), ("$args", "a")]);
    for text in [
        "https://$host$request_uri",
        "https://$server_name$request_uri",
        "$scheme://$host/evil.example",
        "https://$host:8443$uri",
        "https://$host?$args",
        "https://$host",
    ] {
        assert_eq!(location(text, &facts), "", "{text}");
    }
    assert_eq!(location("$host$request_uri", &facts), "/evil.example/x");
    assert_eq!(location("/a?b=https://$host", &facts), "/a?b=https://");
}

fn target(text: &str, facts: &TestFacts) -> Option<String> {
    let mut out = b">".to_vec();
    let presence = value(text).write_target(facts, &mut out);
    let written = String::from_utf8(out).expect("ASCII")[1..].to_owned();
    assert_eq!(presence == Presence::Missing, written.is_empty());
    (presence == Presence::Present).then_some(written)
}

#[test]
fn values_in_a_location_cannot_leave_their_part() {
    let facts = TestFacts::new(&[
        ("$host", "a.example"),
        ("$request_uri", "/a%20b?c=d&e"),
        ("$uri", "/a b?\u{e4}%"),
        ("$args", "c=d&e"),
        ("$is_args", "?"),
        ("$http_x", "x\r\nSet-Cookie: a=b"),
        ("$http_y", "../y"),
        ("$1", "/evil.example"),
    ]);
    for (text, expected) in [
        ("https://$host$request_uri", "https://a.example/a%20b?c=d&e"),
        ("$request_uri", "/a%20b?c=d&e"),
        ("https://$host$uri", "https://a.example/a%20b%3F%C3%A4%25"),
        ("$uri$is_args$args", "/a%20b%3F%C3%A4%25?c=d&e"),
        ("/login?next=$request_uri", "/login?next=/a%2520b%3Fc%3Dd%26e"),
        ("/login?next=$uri&x=$http_x", "/login?next=/a%20b%3F%C3%A4%25&x=x%0D%0ASet-Cookie:%20a%3Db"),
        ("/$http_x", "/x%0D%0ASet-Cookie:%20a=b"),
        ("/$http_y/", "/..%2Fy/"),
        ("/$1", "/evil.example"),
        ("$$", "/$"),
        ("/a b#c", "/a%20b#c"),
        ("/\\evil.example", "/%5Cevil.example"),
    ] {
        assert_eq!(location(text, &facts), expected, "{text}");
    }
    let facts =
        TestFacts::new(&[("$request_uri", "//evil.example/x"), ("$uri", "//evil.example"), ("$1", "\\evil.example")]);
    assert_eq!(location("$request_uri", &facts), "/evil.example/x");
    assert_eq!(location("$uri", &facts), "/evil.example");
    assert_eq!(location("/$1", &facts), "/%5Cevil.example");
    // A request for the server as a whole, `OPTIONS *`, has no path.
    let facts = TestFacts::new(&[("$request_uri", "*"), ("$host", "a.example")]);
    assert_eq!(location("https://$host$request_uri", &facts), "https://a.example/*");
}

#[test]
fn values_in_a_target_cannot_leave_their_part() {
    let facts = TestFacts::new(&[
        ("$request_uri", "/a%20b?c=d&e"),
        ("$uri", "/a b?/%2e"),
        ("$arg_x", "1%zz 2"),
        ("$1", ".."),
        ("$http_x", "a/../b c HTTP/1.1\r\nX: y"),
    ]);
    for (text, expected) in [
        ("/v1$uri", Some("/v1/a%20b%3F/%252e")),
        ("$request_uri", Some("/a%20b?c=d&e")),
        ("/v1?x=$arg_x", Some("/v1?x=1%25zz%202")),
        ("/t/$http_x/", Some("/t/a%2F..%2Fb%20c%20HTTP%2F1.1%0D%0AX:%20y/")),
        ("/t/$1/", None),
        ("/t/.$1/", Some("/t/.../")),
        ("/t/?x=$1", Some("/t/?x=..")),
        ("/a#b", Some("/a%23b")),
        ("$http_x", None),
        ("$http_y", None),
    ] {
        assert_eq!(target(text, &facts).as_deref(), expected, "{text}");
    }
}

#[test]
fn redirects_that_a_client_could_send_elsewhere_are_refused() {
    let tables = Tables::read(&[
        table("moved", "$uri", &[("/a", "/b"), ("/c", "https://b.example/c")]),
        table("echo", "$arg_next", &[("~^(.*)$", "$1")]),
        table("without_www", "$host", &[("~^www\\.(.*)$", "$1"), ("a.example", "b.example")]),
        table("any_host", "$arg_host", &[("~^(.*)$", "$1")]),
    ])
    .expect("valid");
    let pattern = Pattern::parse("^/x(.*)(y?)$", Case::Sensitive).expect("valid");
    let scope = Scope { tables: &tables, route: Some(&pattern), ..Scope::new(Phase::Route) };
    let check = |text| Value::parse(text, &scope).expect(text).check_location(&tables);
    for text in [
        "/x",
        "/$1",
        "$uri",
        "$request_uri",
        "https://shop.example",
        "HTTPS://shop.example$request_uri",
        "https://$host$request_uri",
        "$scheme://$host:$server_port$uri$is_args$args",
        "https://www.$host$is_args$args",
        "https://$http_host/x",
        "https://a.example/$1",
        "https://a.example?x=$arg_x",
        "https://$without_www$request_uri",
        "https://a.example:$server_port$request_uri",
        "https://$1.shop.example",
        "https://$1.shop.example.:8443/",
        "https://$1.s_3.xn--p1ai?x",
        "$scheme://$arg_x.shop.example$request_uri",
        "$moved",
    ] {
        assert_eq!(check(text), Ok(()), "{text}");
    }
    for (text, why) in [
        ("", "empty"),
        ("x", "write \"/x\""),
        ("//a.example", "write the scheme"),
        ("/\\a.example", "write the scheme"),
        ("ftp://a.example", "begins neither"),
        ("https://", "no host"),
        ("https:///x", "no host"),
        ("https://$uri", "no host|choose the host"),
        ("$arg_next", "choose the host"),
        ("$1", "choose the host"),
        ("https://a.example$1", "choose the host"),
        ("https://$arg_x/", "choose the host"),
        ("https://a.example$args", "choose the host"),
        ("https://a.example$is_args$http_x", "choose the host"),
        ("https://a.example$is_args$args$http_x", "choose the host"),
        ("$scheme$request_uri", "begins neither"),
        ("$echo", "choose the host"),
        ("https://$1.example/", "choose the host"),
        ("https://$1..example/", "choose the host"),
        ("https://$1.example./", "choose the host"),
        ("https://$1.$$..(", "choose the host"),
        ("https://$1.a..example/", "choose the host"),
        ("https://$1.shop;example.de/", "choose the host"),
        ("https://$1.0.1/", "choose the host"),
        ("https://$1.0.0x1/", "choose the host"),
        ("https://$1.shop.example$2", "choose the host"),
        ("https://$1$arg_x.shop.example/", "choose the host"),
        ("https://$1.shop.example$arg_x", "choose the host"),
        ("javascript:alert(1)", "begins neither"),
        ("$scheme$1", "begins neither"),
        ("https://$any_host/", "choose the host"),
    ] {
        let refusal = check(text).expect_err(text);
        assert!(why.split('|').any(|why| refusal.contains(why)), "{text}: {refusal}");
    }
}

fn table(name: &str, from: &str, cases: &[(&str, &str)]) -> Written {
    let cases = cases.iter().map(|(case, value)| ((*case).to_owned(), (*value).to_owned())).collect();
    Written {
        name: name.to_owned(),
        from: from.to_owned(),
        cases: WrittenCases::Map { cases, hostnames: false },
        default: None,
    }
}

#[test]
fn a_field_with_a_line_break_is_left_out() {
    let facts =
        TestFacts::new(&[("$uri", "/a\r\nX: y"), ("$http_a", " \t"), ("$http_b", "\t b c "), ("$http_c", "\u{e4}")]);
    let field = |text| {
        let mut out = b">".to_vec();
        let presence = value(text).write_field(&facts, &mut out);
        assert_eq!(presence == Presence::Missing, out == b">");
        String::from_utf8(out[1..].to_vec()).expect("UTF-8")
    };
    for (text, expected) in [
        ("$uri", ""),
        ("x $uri", ""),
        ("$http_a", ""),
        ("", ""),
        ("$http_b", "b c"),
        ("$http_c", "\u{e4}"),
        ("$http_d", ""),
    ] {
        assert_eq!(field(text), expected, "{text}");
    }
}

#[test]
fn log_lines_are_escaped_as_nginx_does() {
    let facts = TestFacts::new(&[("$uri", "/\"\\\n\u{e4}\u{1}\u{7f}"), ("$args", "")]);
    let line = |text, escape| {
        let mut out = Vec::new();
        value(text).write_log(escape, usize::MAX, &facts, &mut out);
        String::from_utf8(out).expect("UTF-8")
    };
    assert_eq!(line("\"$uri\" $args $http_x", Escape::Default), "\"/\\x22\\x5C\\x0A\\xC3\\xA4\\x01\\x7F\"  -");
    assert_eq!(line("{\"u\":\"$uri$http_x\"}", Escape::Json), "{\"u\":\"/\\\"\\\\\\n\u{e4}\\u0001\u{7f}\"}");
    assert!(serde_json::from_str::<serde_json::Value>(&line("{\"u\":\"$uri\"}", Escape::Json)).is_ok());
}
