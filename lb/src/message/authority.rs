//! Host and authority: `uri-host [ ":" port ]` and nothing else (RFC 9110 §7.2, RFC 3986 §3.2).
//!
//! Stricter than the grammar in three respects, because the balancer and every backend must understand a name in the
//! same way: names contain no percent-encoding, no comma and no empty label (nginx rejects it too), and the only
//! address literals are IPv6 without zone.

use std::net::Ipv6Addr;
use std::str;

use super::ascii::{self, HOST};

/// The longest host: the longest DNS name with a final dot.
const MAX_HOST_BYTES: usize = 254;

/// The parts of an authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Authority<'a> {
    /// The host as received: a name, an IPv4 address, or an IPv6 address in brackets. Never empty.
    pub host: &'a [u8],
    /// The port, if one is given; a colon without digits gives none.
    pub port: Option<u16>,
}

/// The host without its port, in its original case.
pub fn without_port(host: &str) -> &str {
    // Bytes, because the searches of `str` cost more than everything else on such short texts.
    let end = match host.bytes().rposition(|byte| byte == b']') {
        Some(bracket) => bracket + 1,
        None => host.bytes().position(|byte| byte == b':').unwrap_or(host.len()),
    };
    // Both characters are ASCII, so this is a character boundary.
    host.get(..end).unwrap_or(host)
}

/// Parses an authority. `None` for an empty host, user information, a path, a blank, or a port out of range.
#[inline]
pub fn parse(authority: &[u8]) -> Option<Authority<'_>> {
    let host_len = match authority.first()? {
        b'[' => ipv6_literal(authority)?,
        _ => ascii::run_holding(authority, HOST).0,
    };
    let (host, rest) = authority.split_at_checked(host_len)?;
    // The final dot of a name is removed where the name is used.
    if matches!(host, b"" | b".") || host.len() > MAX_HOST_BYTES || host.windows(2).any(|two| two == b"..") {
        return None;
    }
    let port = match rest {
        [] | [b':'] => None,
        [b':', digits @ ..] => Some(u16::try_from(ascii::decimal(digits)?).ok()?),
        _ => return None,
    };
    Some(Authority { host, port })
}

/// The length of the IPv6 literal with its brackets.
fn ipv6_literal(authority: &[u8]) -> Option<usize> {
    let close = authority.iter().position(|&byte| byte == b']')?;
    let address = str::from_utf8(authority.get(1..close)?).ok()?;
    address.parse::<Ipv6Addr>().ok()?;
    Some(close + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_names_and_addresses() {
        for (text, host, port) in [
            ("example.com", "example.com", None),
            ("example.com:", "example.com", None),
            ("example.com:0", "example.com", Some(0)),
            ("example.com:65535", "example.com", Some(65_535)),
            ("EXAMPLE.com.:080", "EXAMPLE.com.", Some(80)),
            ("127.0.0.1:8888", "127.0.0.1", Some(8888)),
            ("[::1]", "[::1]", None),
            ("[2001:db8::1.2.3.4]:443", "[2001:db8::1.2.3.4]", Some(443)),
            ("my_app-1~x", "my_app-1~x", None),
        ] {
            assert_eq!(parse(text.as_bytes()), Some(Authority { host: host.as_bytes(), port }), "{text}");
        }
    }

    #[test]
    fn refuses_everything_else() {
        let long = "a".repeat(255);
        for text in [
            "",
            ":80",
            ".",
            ".:80",
            "..",
            "a..",
            "a..b:80",
            "a b",
            "a:b",
            "a:-1",
            "a:+1",
            "a:65536",
            "a:99999999999999999999",
            "a:80:80",
            "a,b",
            "a, b",
            "a/b",
            "/a",
            "a?b",
            "a#b",
            "a\\b",
            "u@a",
            "u:p@a",
            "http://a",
            "//a",
            "a%41",
            "%00",
            "a\"",
            "a<",
            "a|b",
            "é",
            "[::1",
            "::1",
            "[::1]x",
            "[::1]80",
            "[]",
            "[::g]",
            "[fe80::1%eth0]",
            "[v1.a]",
            "[1.2.3.4]",
            "a]",
            "a\t",
            "a\0",
            "a:8 0",
            "a: 80",
            long.as_str(),
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn ports_are_cut_off() {
        for (host, expected) in [("a:80", "a"), ("a", "a"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("", "")] {
            assert_eq!(without_port(host), expected);
        }
    }
}
