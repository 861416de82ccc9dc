//! The properties of [`properties`] for generated messages: valid ones with unusual pieces inserted.

use super::properties;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

const FIELDS: &[&str] = &[
    "Host: a",
    "Host: a",
    "Host: a:80",
    "Host: b,c",
    "Content-Length: 3",
    "Content-Length: 3",
    "Content-Length: x",
    "Transfer-Encoding: chunked",
    "transfer-encoding:CHUNKED ",
    "Transfer-Encoding: gzip, chunked",
    "Connection: close",
    "Connection: keep-alive",
    "Connection: Upgrade, X-A",
    "Connection: Host",
    "Upgrade: websocket",
    "Upgrade: h2c",
    "Expect: 100-continue",
    "Expect: x",
    "Max-Forwards: 1",
    "Max-Forwards: 0",
    "X-A: 1",
    "X-A:2",
    "X_A: 3",
    "TE: trailers",
    "Trailer: X-Sum",
    "Cookie: a=b; c",
    "Accept: */*",
    "X-Forwarded-For: 1.2.3.4",
    "x-forwarded-for:",
    "Date: d",
    "Keep-Alive: 5",
    "Set-Cookie: a",
    "A : b",
    " fold",
    "A: \u{e9}\t ",
    "A: \0",
    "A: b\rc",
    "A",
    ": b",
    "A: b\nC: d",
];

const REQUEST_LINES: &[&str] = &[
    "GET / HTTP/1.1",
    "GET / HTTP/1.1",
    "POST /a?b HTTP/1.1",
    "GET /%2e%2e//x/./y HTTP/1.1",
    "OPTIONS * HTTP/1.1",
    "OPTIONS http://a HTTP/1.1",
    "GET http://a?q HTTP/1.1",
    "GET http://a:80/ HTTP/1.0",
    "HEAD / HTTP/1.0",
    "GET  / HTTP/1.1",
    "CONNECT a:80 HTTP/1.1",
    "GET /%00 HTTP/1.1",
    "PRI * HTTP/2.0",
    "\r\n\r\nPUT /x HTTP/1.1",
    "get /# HTTP/1.1",
    "GET /",
];

const STATUS_LINES: &[&str] = &[
    "HTTP/1.1 200 OK",
    "HTTP/1.1 200 OK",
    "HTTP/1.0 200 OK",
    "HTTP/1.1 204 ",
    "HTTP/1.1 304 Not Modified",
    "HTTP/1.1 404",
    "HTTP/1.1 101 Switching Protocols",
    "HTTP/1.1 103 Early",
    "HTTP/1.1 099 x",
    "HTTP/2 200",
    "HTTP/1.1 2000 x",
];

const CHUNK_PIECES: &[&str] = &[
    "3\r\nabc\r\n",
    "3\r\nabc\r\n",
    "a\r\n0123456789\r\n",
    "1;x=y\r\nz\r\n",
    "1 ; x = \"\\\"\" \r\nz\r\n",
    "0\r\n",
    "0\r\n\r\n",
    "X-Sum: 1\r\n",
    "Host: a\r\n",
    "\r\n",
    "5\nhello\r\n",
    "g\r\n",
    "4\r\nabc\r\n",
    "fffffffffffffffff\r\n",
    "X : y\r\n",
];

/// A head with a first line and some fields, sometimes with one byte replaced.
fn head(first_lines: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let fields = vec(select(FIELDS), 0..8);
    let slip = proptest::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>()));
    (select(first_lines), fields, slip, select(&["\r\n", "", "\r\nrest\n"][..])).prop_map(
        |(first, fields, slip, end)| {
            let mut bytes = [&[first], fields.as_slice()].concat().join("\r\n").into_bytes();
            bytes.extend_from_slice(b"\r\n");
            bytes.extend_from_slice(end.as_bytes());
            if let Some((at, byte)) = slip {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        },
    )
}

fn chunks() -> impl Strategy<Value = Vec<u8>> {
    vec(select(CHUNK_PIECES), 0..6).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn requests_parse_the_same_however_they_are_split(bytes in head(REQUEST_LINES)) {
        properties::request_holds(&bytes);
        properties::request_holds_at_every_cut(&bytes);
    }

    #[test]
    fn responses_parse_the_same_however_they_are_split(bytes in head(STATUS_LINES)) {
        properties::response_holds(&bytes);
        properties::response_holds_at_every_cut(&bytes);
    }

    #[test]
    fn chunks_parse_the_same_however_they_are_split(bytes in chunks()) {
        properties::chunked_holds(&bytes);
        properties::chunked_holds_at_every_cut(&bytes);
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in vec(any::<u8>(), 0..200)) {
        properties::request_holds(&bytes);
        properties::response_holds(&bytes);
        properties::chunked_holds(&bytes);
    }
}
