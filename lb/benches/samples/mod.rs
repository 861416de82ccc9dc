//! The messages that are measured.

use evenkeel::http::h1::rewrite::{Change, Edit, FieldName, FieldValue};
use evenkeel::message::name::Name;

/// A browser's request, 8 fields.
pub const REQUEST: &[u8] = b"GET /api/hello/?page=2&sort=name HTTP/1.1\r\n\
Host: www.example.com:8888\r\n\
User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
Accept-Language: en-US,en;q=0.5\r\n\
Accept-Encoding: gzip, deflate, br, zstd\r\n\
Connection: keep-alive\r\n\
Cookie: session=5f2b8c1d9e7a4f60b3c2d1e0f9a8b7c6\r\n\
Referer: http://www.example.com:8888/accounts/login/\r\n\
\r\n";

/// A typical response, 7 fields.
pub const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\n\
Server: app\r\n\
Date: Sat, 21 Nov 2026 04:00:00 GMT\r\n\
Content-Type: text/html; charset=utf-8\r\n\
Content-Length: 200\r\n\
Cache-Control: no-store\r\n\
Vary: Accept-Encoding\r\n\
X-Content-Type-Options: nosniff\r\n\
\r\n";

/// What the balancer usually says to a backend.
pub fn changes() -> [Change<'static>; 4] {
    [
        set(Name::XForwardedFor, "203.0.113.7"),
        set(Name::XForwardedProto, "http"),
        set(Name::XForwardedHost, "www.example.com:8888"),
        set(Name::XRequestId, "0123456789abcdef0123456789abcdef"),
    ]
}

fn set(name: Name, value: &'static str) -> Change<'static> {
    let value = FieldValue::new(value.as_bytes()).expect("a constant without control bytes");
    Change { name: FieldName::known(name), edit: Edit::Set(value) }
}
