//! Heads of HTTP/2 written as those of HTTP/1.1 and the other way round (RFC 9113 §8). What HTTP/2 does not allow is
//! written so that the parser of HTTP/1.1 refuses it: one place says what a request may be.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use h2::ext::Protocol;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};

use crate::clock;
use crate::http::h1::chunked;
use crate::http::h1::response::ResponseHead;
use crate::message::ascii;

/// No target, name or value holds this byte.
const REFUSED: u8 = 0x7f;

/// Whether the request asks for a WebSocket (RFC 8441 §5).
pub fn asks_for_websocket(request: &Parts) -> bool {
    request.method == Method::CONNECT
        && request.extensions.get::<Protocol>().is_some_and(|protocol| protocol.as_str() == "websocket")
}

/// Appends the head of a request as HTTP/1.1 has it. `has_content`: content follows, and is sent in chunks where no
/// field tells its length. Returns whether it is.
pub fn write_request(request: &Parts, has_content: bool, out: &mut Vec<u8>) -> bool {
    let is_websocket = asks_for_websocket(request);
    let method = if is_websocket { "GET" } else { request.method.as_str() };
    out.extend_from_slice(method.as_bytes());
    out.push(b' ');
    let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
    out.extend(target.bytes().map(|byte| if byte > b' ' { byte } else { REFUSED }));
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let authority = request.uri.authority().map(|authority| authority.as_str().as_bytes());
    if let Some(authority) = authority {
        write_field(b"host", authority, out);
    }
    let mut is_host_told = false;
    for (name, value) in &request.headers {
        match *name {
            // One that says the same as `:authority` is left out; another makes a repeated Host of it.
            header::HOST if !is_host_told && authority.is_some_and(|a| a.eq_ignore_ascii_case(value.as_bytes())) => {
                is_host_told = true;
            }
            header::COOKIE => {}
            // The connection to the backend has one of its own.
            header::SEC_WEBSOCKET_KEY if is_websocket => {}
            // What follows is no content.
            header::CONTENT_LENGTH if is_websocket => write_field(&[REFUSED], b"", out),
            _ if !is_trimmed(value) => write_field(name.as_str().as_bytes(), &[REFUSED], out),
            _ if is_of_connection(name) || !ascii::is_token(name.as_str().as_bytes()) => {
                write_field(&[REFUSED], b"", out)
            }
            _ => write_field(name.as_str().as_bytes(), value.as_bytes(), out),
        }
    }
    write_cookies(&request.headers, out);
    if is_websocket {
        out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n");
        write_field(b"sec-websocket-key", websocket_key().as_bytes(), out);
    }
    let is_chunked = !is_websocket && has_content && !request.headers.contains_key(header::CONTENT_LENGTH);
    if is_chunked {
        write_field(b"transfer-encoding", b"chunked", out);
    }
    out.extend_from_slice(b"\r\n");
    is_chunked
}

/// What a backend proves that it speaks WebSocket by (RFC 6455 §4.1). Clients of HTTP/2 send none.
fn websocket_key() -> String {
    STANDARD.encode([clock::random().to_ne_bytes(), clock::random().to_ne_bytes()].concat())
}

/// Cookies that came as several fields become one (RFC 9113 §8.2.3).
fn write_cookies(fields: &HeaderMap, out: &mut Vec<u8>) {
    let mut before: &[u8] = b"cookie: ";
    for value in fields.get_all(header::COOKIE) {
        out.extend_from_slice(before);
        out.extend_from_slice(if is_trimmed(value) { value.as_bytes() } else { &[REFUSED] });
        before = b"; ";
    }
    if before == b"; " {
        out.extend_from_slice(b"\r\n");
    }
}

/// Appends the last chunk with these trailers.
pub fn write_end(trailers: Option<&HeaderMap>, out: &mut Vec<u8>) {
    let mut lines = Vec::new();
    for (name, value) in trailers.into_iter().flatten() {
        if ascii::is_token(name.as_str().as_bytes()) && !is_of_connection(name) {
            let value = if is_trimmed(value) { value.as_bytes() } else { &[REFUSED] };
            write_field(name.as_str().as_bytes(), value, &mut lines);
        }
    }
    chunked::write_end(&lines, out);
}

fn write_field(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Whether a value has no blank at either end. HTTP/1.1 drops such blanks; in HTTP/2 they are an error (RFC 9113 §8.2.1).
fn is_trimmed(value: &HeaderValue) -> bool {
    value.as_bytes().trim_ascii().len() == value.len()
}

/// Fields of one connection, which HTTP/2 has not (RFC 9113 §8.2.2).
fn is_of_connection(name: &HeaderName) -> bool {
    matches!(name.as_str(), "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade")
}

/// The head of a response as HTTP/2 has it, from one of HTTP/1.1 in `buf`. A 101 opens a WebSocket, which HTTP/2 says
/// by 200 (RFC 8441 §5).
pub fn response(head: &ResponseHead, buf: &[u8]) -> Response<()> {
    let mut response = Response::new(());
    *response.headers_mut() = fields(head.fields().iter(buf));
    *response.status_mut() = match head.status() {
        101 => {
            response.headers_mut().remove(header::SEC_WEBSOCKET_ACCEPT);
            StatusCode::OK
        }
        // The parser takes no status but those from 100 to 599.
        status => StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY),
    };
    response
}

/// Trailers from lines of HTTP/1.1; `None`: there are none.
pub fn trailers(lines: &[u8]) -> Option<HeaderMap> {
    let lines = lines.split(|&byte| byte == b'\n');
    let named = lines.filter_map(|line| {
        let colon = line.iter().position(|&byte| byte == b':')?;
        Some((&line[..colon], line[colon + 1..].trim_ascii()))
    });
    Some(fields(named)).filter(|fields| !fields.is_empty())
}

fn fields<'a>(named: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for (name, value) in named {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
            && !is_of_connection(&name)
        {
            fields.append(name, value);
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::head::RequestHead;
    use crate::http::h1::websocket;
    use crate::message::field::BadField;
    use crate::message::framing::Framing;
    use crate::message::limits::Limits;
    use crate::message::{Method, Parsed};

    fn written(uri: &str, fields: &[(&str, &str)], has_content: bool) -> String {
        let mut request = http::Request::builder().uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        let mut out = Vec::new();
        write_request(&parts, has_content, &mut out);
        String::from_utf8(out).expect("ASCII")
    }

    fn status_of(text: &str) -> Result<Framing, u16> {
        let mut head = RequestHead::default();
        match head.parse(text.as_bytes(), &Limits::default()) {
            Parsed::Complete(len) => {
                assert_eq!(len, text.len());
                Ok(head.framing())
            }
            Parsed::Rejected(reject) => Err(reject.status()),
            Parsed::Partial => panic!("not a whole head: {text:?}"),
        }
    }

    #[test]
    fn a_request_reads_as_http_1_has_it() {
        let text = written("https://a.example/x?y", &[("accept", "*/*"), ("host", "A.example")], false);
        assert_eq!(text, "GET /x?y HTTP/1.1\r\nhost: a.example\r\naccept: */*\r\n\r\n");
        assert_eq!(status_of(&text), Ok(Framing::None));
        assert_eq!(status_of(&written("https://a.example/", &[], true)), Ok(Framing::Chunked));
        let told = written("https://a.example/", &[("content-length", "5")], true);
        assert_eq!(status_of(&told), Ok(Framing::Length(5)));
    }

    #[test]
    fn a_websocket_is_asked_for_as_http_1_does_it() {
        let fields = [("sec-websocket-version", "13"), ("sec-websocket-key", "bWluZQ=="), ("origin", "https://a")];
        let asked = |protocol: &'static str, fields: &[(&str, &str)]| {
            let mut request =
                http::Request::connect("https://a.example/x?y").extension(Protocol::from_static(protocol));
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            let (parts, ()) = request.body(()).expect("a request").into_parts();
            let mut out = Vec::new();
            assert!(!write_request(&parts, true, &mut out), "no chunks");
            String::from_utf8(out).expect("ASCII")
        };
        let text = asked("websocket", &fields);
        let mut head = RequestHead::default();
        assert_eq!(head.parse(text.as_bytes(), &Limits::default()), Parsed::Complete(text.len()));
        assert!(websocket::asks(&head), "{text}");
        assert!(text.starts_with("GET /x?y HTTP/1.1\r\nhost: a.example\r\n"), "{text}");
        assert_eq!(text.matches("sec-websocket-key").count(), 1, "{text}");
        assert!(!text.contains("bWluZQ=="), "{text}");
        assert_eq!(status_of(&asked("websocket", &[("content-length", "0")])), Err(400));
    }

    #[test]
    fn cookies_become_one_field() {
        let text = written("https://a/", &[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")], false);
        assert_eq!(text, "GET / HTTP/1.1\r\nhost: a\r\nx: y\r\ncookie: a=1; b=2; c=3\r\n\r\n");
    }

    #[test]
    fn what_http_2_does_not_allow_is_refused() {
        for fields in [
            &[("transfer-encoding", "chunked")][..],
            &[("connection", "close")],
            &[("upgrade", "websocket")],
            &[("keep-alive", "5")],
            &[("proxy-connection", "close")],
            &[("host", "b.example")],
            &[("host", "a.example"), ("host", "a.example")],
            &[("content-length", "5"), ("content-length", "5")],
            &[("content-length", "5, 5")],
            &[("x", " y")],
            &[("x", "y ")],
            &[("x", "\ty")],
            &[("x", "y\t")],
            &[("x", " ")],
            &[("host", "a.example ")],
            &[("cookie", "a=1"), ("cookie", " b=2")],
            &[("content-length", "5 ")],
        ] {
            assert_eq!(status_of(&written("https://a.example/", fields, true)), Err(400), "{fields:?}");
        }
        assert_eq!(status_of(&written("https://u@a.example/", &[], false)), Err(400));
        assert_eq!(status_of(&written("/", &[], false)), Err(400), "no host at all");
    }

    #[test]
    fn responses_and_trailers_become_fields() {
        let text = b"HTTP/1.1 201 Created\r\nX-A: b\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut head = ResponseHead::default();
        assert_eq!(head.parse(text, Method::Get, &Limits::default()), Parsed::Complete(text.len()));
        let response = response(&head, text);
        assert_eq!(response.status(), 201);
        assert_eq!(response.headers().len(), 1);
        assert_eq!(response.headers()["x-a"], "b");
        assert_eq!(trailers(b"X-Sum: abc\r\n").expect("a trailer")["x-sum"], "abc");
        assert_eq!(trailers(b""), None);
    }

    #[test]
    fn trailers_follow_the_last_chunk() {
        let mut fields = HeaderMap::new();
        fields.insert("x-sum", HeaderValue::from_static("abc"));
        let mut out = Vec::new();
        write_end(Some(&fields), &mut out);
        assert_eq!(out, b"0\r\nx-sum: abc\r\n\r\n");
        fields.insert("x-sum", HeaderValue::from_static("abc "));
        out.clear();
        write_end(Some(&fields), &mut out);
        let mut decoder = chunked::Decoder::new(chunked::Limits::default());
        assert_eq!(decoder.advance(&out), Err(chunked::BadChunk::Trailer(BadField::Control)));
    }
}
