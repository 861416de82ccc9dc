//! Translates heads of requests from HTTP/2 to HTTP/1.1, and of responses back (RFC 9113 §8). A request that is
//! malformed by the rules of HTTP/2 is found here, and its stream is reset. All other rules are those of the parser of
//! HTTP/1.1, which refuses what breaks them.

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::hpack;
use crate::clock;
use crate::http::h1::chunked;
use crate::http::h1::response::ResponseHead;
use crate::message::Method;
use crate::message::ascii;
use crate::message::name::Name;

/// A byte that no target, name or value may have.
const REFUSED: u8 = 0x7f;
/// What is wrong with content that ends before its declared length.
pub(super) const TOO_LITTLE: &str = "less content than Content-Length says";
/// How many bytes behind the request line are kept of a head that is too large: for the log, and for the format of the
/// refusal.
const MAX_CUT_BYTES: usize = 4096;

/// A request in HTTP/1.1.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// Its head.
    pub text: Vec<u8>,
    /// The head exceeds the limit: `text` has its first lines only, and no end.
    pub is_too_large: bool,
    pub method: Method,
    /// The client has asked with CONNECT, for a WebSocket or anything else.
    pub is_connect: bool,
    pub content: Content,
    /// Content-Length.
    pub declared: Option<u64>,
}

/// How content follows the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Nothing,
    /// As many bytes as Content-Length says.
    Plain,
    /// In chunks.
    Chunked,
    /// The data of a WebSocket, if that is opened.
    Tunnel,
}

/// Builds a request, field by field.
#[derive(Debug)]
pub struct RequestReader {
    text: Vec<u8>,
    /// The values of pseudo-header fields, and the cookies.
    pseudo: Vec<u8>,
    method: Option<Range<usize>>,
    scheme: Option<Range<usize>>,
    path: Option<Range<usize>>,
    authority: Option<Range<usize>>,
    protocol: Option<Range<usize>>,
    cookies: Vec<u8>,
    /// The limit on the size of all fields.
    max_bytes: usize,
    /// The request line has been written: no pseudo-header field may follow.
    has_begun: bool,
    /// The first rule that it breaks.
    fault: Option<&'static str>,
    is_connect: bool,
    is_websocket: bool,
    is_host_told: bool,
    has_length: bool,
    declared: Option<u64>,
}

impl RequestReader {
    /// `max_bytes`: the limit on the size of all fields, as SETTINGS_MAX_HEADER_LIST_SIZE counts them: at least twice
    /// the limit of a head.
    pub fn new(max_bytes: usize) -> Self {
        Self {
            text: Vec::with_capacity(512),
            pseudo: Vec::with_capacity(128),
            method: None,
            scheme: None,
            path: None,
            authority: None,
            protocol: None,
            cookies: Vec::new(),
            max_bytes,
            has_begun: false,
            fault: None,
            is_connect: false,
            is_websocket: false,
            is_host_told: false,
            has_length: false,
            declared: None,
        }
    }

    /// Takes the next field.
    pub fn field(&mut self, name: &[u8], value: &[u8]) {
        if self.fault.is_none() {
            self.fault = self.take(name, value).err();
        }
    }

    fn take(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if name.first() == Some(&b':') {
            return self.take_pseudo(name, value);
        }
        if !self.has_begun {
            self.begin()?;
        }
        let known = Name::of(name);
        check(name, value, known)?;
        self.take_field(name, value, known)
    }

    fn take_pseudo(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let slot = match name {
            b":method" => &mut self.method,
            b":scheme" => &mut self.scheme,
            b":path" => &mut self.path,
            b":authority" => &mut self.authority,
            b":protocol" => &mut self.protocol,
            _ => return Err("unknown pseudo-header field"),
        };
        let is_sound = value.iter().all(|&byte| byte > b' ' && byte != REFUSED);
        if self.has_begun {
            return Err("pseudo-header field behind other fields");
        }
        if slot.is_some() {
            return Err("pseudo-header field repeated");
        }
        if !is_sound {
            return Err("blank or control character in a pseudo-header field");
        }
        let start = self.pseudo.len();
        self.pseudo.extend_from_slice(value);
        *slot = Some(start..self.pseudo.len());
        Ok(())
    }

    /// Writes the request line and Host.
    fn begin(&mut self) -> Result<(), &'static str> {
        self.has_begun = true;
        self.try_begin()
    }

    /// The same for a head that is too large, where the pseudo-header fields may be missing: the request is refused in
    /// any case.
    fn begin_too_large(&mut self) {
        if self.fault.is_some() || self.try_begin().is_ok() {
            return;
        }
        let method = value_of(&self.pseudo, self.method.clone());
        if !ascii::is_token(method) {
            self.pseudo = b"GET".to_vec();
            self.method = Some(0..self.pseudo.len());
        }
        self.text.extend_from_slice(value_of(&self.pseudo, self.method.clone()));
        self.text.extend_from_slice(b" / HTTP/1.1\r\n");
    }

    fn try_begin(&mut self) -> Result<(), &'static str> {
        let value = |range: &Option<Range<usize>>| range.clone().and_then(|range| self.pseudo.get(range));
        let method = value(&self.method).ok_or(":method missing")?;
        if !ascii::is_token(method) {
            return Err("malformed :method");
        }
        let protocol = value(&self.protocol);
        let authority = value(&self.authority);
        self.is_connect = method == b"CONNECT";
        let target = match (self.is_connect, protocol) {
            // RFC 9113 §8.5.
            (true, None) if self.scheme.is_some() || self.path.is_some() => {
                return Err("CONNECT with :scheme or :path, without :protocol");
            }
            (true, None) => authority.ok_or("CONNECT without :authority")?,
            (false, Some(_)) => return Err(":protocol without CONNECT"),
            // RFC 8441 §4.
            (true, Some(_)) if authority.is_none() => return Err("CONNECT without :authority"),
            _ => {
                if !is_scheme(value(&self.scheme).ok_or(":scheme missing")?) {
                    return Err("malformed :scheme");
                }
                let path = value(&self.path).ok_or(":path missing")?;
                if !path.starts_with(b"/") && path != b"*" {
                    return Err(":path that does not begin with a slash");
                }
                path
            }
        };
        self.is_websocket = protocol == Some(b"websocket");
        let out = &mut self.text;
        out.extend_from_slice(if self.is_websocket { b"GET" } else { method });
        out.push(b' ');
        out.extend_from_slice(target);
        out.extend_from_slice(b" HTTP/1.1\r\n");
        if let Some(authority) = authority {
            write_field(b"host", authority, out);
        }
        Ok(())
    }

    fn take_field(&mut self, name: &[u8], value: &[u8], known: Name) -> Result<(), &'static str> {
        let is_trimmed = is_trimmed(value);
        let value = if is_trimmed { value } else { &[REFUSED] };
        match known {
            Name::Cookie => {
                // Cookie fields are joined (RFC 9113 §8.2.3).
                self.cookies.extend_from_slice(if self.cookies.is_empty() { b"cookie: " } else { b"; " });
                self.cookies.extend_from_slice(value);
                return Ok(());
            }
            // Left out if it equals `:authority`. Otherwise there are two Host fields, which the parser refuses.
            Name::Host if !self.is_host_told => {
                self.is_host_told = true;
                let authority = self.authority.clone().and_then(|range| self.pseudo.get(range));
                if authority.is_some_and(|authority| authority.eq_ignore_ascii_case(value)) {
                    return Ok(());
                }
            }
            Name::Te if !value.eq_ignore_ascii_case(b"trailers") => return Err("TE with another value than trailers"),
            // The connection to the backend gets a key of its own.
            Name::SecWebSocketKey if self.is_websocket => return Ok(()),
            // A CONNECT has no content.
            Name::ContentLength if self.is_websocket => {
                write_field(&[REFUSED], b"", &mut self.text);
                return Ok(());
            }
            Name::ContentLength => {
                self.has_length = true;
                let number = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
                self.declared = number.and_then(|number| number.parse().ok());
            }
            _ => {}
        }
        write_field(name, value, &mut self.text);
        Ok(())
    }

    /// The request, once all its fields have come. `is_end`: END_STREAM came with them. `fits`: the decoder has passed
    /// them all on. The error is the rule that it breaks.
    pub fn finish(mut self, is_end: bool, fits: bool) -> Result<Request, &'static str> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if !self.has_begun {
            match fits {
                true => self.begin()?,
                false => self.begin_too_large(),
            }
        }
        if is_end && self.declared.is_some_and(|declared| declared > 0) {
            return Err(TOO_LITTLE);
        }
        let method = value_of(&self.pseudo, self.method);
        let method = if self.is_websocket { Method::Get } else { Method::of(method) };
        let is_connect = self.is_connect;
        let content = match (is_end, is_connect, self.has_length) {
            (true, ..) => Content::Nothing,
            (_, true, _) => Content::Tunnel,
            (_, _, true) => Content::Plain,
            _ => Content::Chunked,
        };
        let is_too_large = !fits || self.text.len() + self.cookies.len() > self.max_bytes / 2;
        if is_too_large {
            let text = cut(&self.text);
            return Ok(Request { text, is_too_large, method, is_connect, content, declared: self.declared });
        }
        let out = &mut self.text;
        if !self.cookies.is_empty() {
            out.extend_from_slice(&self.cookies);
            out.extend_from_slice(b"\r\n");
        }
        if self.is_websocket {
            out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n");
            write_field(b"sec-websocket-key", websocket_key().as_bytes(), out);
            if is_end {
                // A WebSocket needs the stream to stay open.
                write_field(&[REFUSED], b"", out);
            }
        }
        if content == Content::Chunked {
            write_field(b"transfer-encoding", b"chunked", out);
        }
        out.extend_from_slice(b"\r\n");
        Ok(Request { text: self.text, is_too_large, method, is_connect, content, declared: self.declared })
    }
}

/// The request line, and whole lines up to the limit on what is kept of a head that is too large.
fn cut(text: &[u8]) -> Vec<u8> {
    let line = text.iter().position(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let kept = &text[..text.len().min(line + MAX_CUT_BYTES)];
    let end = kept.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    kept[..end].to_vec()
}

fn value_of(pseudo: &[u8], range: Option<Range<usize>>) -> &[u8] {
    range.and_then(|range| pseudo.get(range)).unwrap_or_default()
}

/// A random Sec-WebSocket-Key (RFC 6455 §4.1), which clients of HTTP/2 do not send.
fn websocket_key() -> String {
    STANDARD.encode([clock::random().to_ne_bytes(), clock::random().to_ne_bytes()].concat())
}

/// Builds the lines of trailers, field by field.
#[derive(Debug, Default)]
pub struct TrailerReader {
    lines: Vec<u8>,
    /// The first rule that they break.
    fault: Option<&'static str>,
}

impl TrailerReader {
    /// Takes the next field.
    pub fn field(&mut self, name: &[u8], value: &[u8]) {
        if self.fault.is_none() {
            // The check of the name refuses pseudo-header fields, too.
            self.fault = check(name, value, Name::of(name)).err();
        }
        if self.fault.is_some() {
            return;
        }
        write_field(name, if is_trimmed(value) { value } else { &[REFUSED] }, &mut self.lines);
    }

    /// The lines. The error is the rule that they break.
    pub fn finish(self) -> Result<Vec<u8>, &'static str> {
        self.fault.map_or(Ok(self.lines), Err)
    }
}

/// Appends the last chunk with these trailers.
pub fn write_end(trailers: &[u8], out: &mut Vec<u8>) {
    chunked::write_end(trailers, out);
}

fn write_field(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Checks a field that is no pseudo-header field by the rules of HTTP/2. The error is the rule that it breaks.
fn check(name: &[u8], value: &[u8], known: Name) -> Result<(), &'static str> {
    if !is_name(name) {
        return Err(if ascii::is_token(name) { "field name with a capital letter" } else { "malformed field name" });
    }
    if !is_value(value) {
        return Err("NUL, CR or LF in a field's value");
    }
    if is_of_connection(known) {
        return Err(
            "Connection, Keep-Alive, Proxy-Connection, Transfer-Encoding or Upgrade, which HTTP/2 does not have",
        );
    }
    Ok(())
}

/// Whether a field's name is valid, without capital letters (RFC 9113 §8.2.1).
fn is_name(name: &[u8]) -> bool {
    ascii::is_token(name) && !name.iter().any(u8::is_ascii_uppercase)
}

/// Whether a value has none of the bytes that no value may have (RFC 9113 §8.2.1). The parser of HTTP/1.1 refuses
/// others.
fn is_value(value: &[u8]) -> bool {
    ascii::is_text(value) || !value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n'))
}

/// Whether a value has no blank at either end. HTTP/1.1 drops such blanks; in HTTP/2 they are an error (RFC 9113
/// §8.2.1).
fn is_trimmed(value: &[u8]) -> bool {
    !matches!(value.first(), Some(b' ' | b'\t')) && !matches!(value.last(), Some(b' ' | b'\t'))
}

fn is_scheme(scheme: &[u8]) -> bool {
    let is_other = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
    scheme.first().is_some_and(u8::is_ascii_alphabetic) && scheme.iter().all(is_other)
}

/// Connection-specific fields, which HTTP/2 does not allow (RFC 9113 §8.2.2).
fn is_of_connection(name: Name) -> bool {
    matches!(name, Name::Connection | Name::KeepAlive | Name::ProxyConnection | Name::TransferEncoding | Name::Upgrade)
}

/// Appends the fields of a response whose HTTP/1.1 head is in `buf`. A 101, which opens a WebSocket, becomes a 200 (RFC
/// 8441 §5).
pub fn write_response(head: &ResponseHead, buf: &[u8], out: &mut Vec<u8>) {
    let opens_websocket = head.status() == 101;
    hpack::write_status(if opens_websocket { 200 } else { head.status() }, out);
    for field in head.fields().all().iter().filter(|field| !field.is_dropped()) {
        let known = field.known();
        let is_left_out = is_of_connection(known) || opens_websocket && known == Name::SecWebSocketAccept;
        if !is_left_out {
            hpack::write_field(field.name(buf), field.value(buf), out);
        }
    }
}

/// Appends trailers from lines of HTTP/1.1.
pub fn write_trailers(lines: &[u8], out: &mut Vec<u8>) {
    for line in lines.split(|&byte| byte == b'\n') {
        if let Some(colon) = line.iter().position(|&byte| byte == b':') {
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            if !is_of_connection(Name::of(name)) {
                hpack::write_field(name, value, out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::head::RequestHead;
    use crate::http::h1::websocket;
    use crate::message::Parsed;
    use crate::message::field::BadField;
    use crate::message::framing::Framing;
    use crate::message::limits::Limits;

    const PSEUDO: [(&str, &str); 4] =
        [(":method", "GET"), (":scheme", "https"), (":authority", "a.example"), (":path", "/x?y")];

    fn request_of(fields: &[(&str, &str)], is_end: bool) -> Option<Request> {
        let mut reader = RequestReader::new(70_000);
        fields.iter().for_each(|(name, value)| reader.field(name.as_bytes(), value.as_bytes()));
        reader.finish(is_end, true).ok()
    }

    /// The text of a request with these fields behind the usual ones.
    fn written(fields: &[(&str, &str)], has_content: bool) -> Option<String> {
        let request = request_of(&[&PSEUDO[..], fields].concat(), !has_content)?;
        Some(String::from_utf8(request.text).expect("ASCII"))
    }

    fn status_of(text: &[u8]) -> Result<Framing, u16> {
        let mut head = RequestHead::default();
        match head.parse(text, &Limits::default()) {
            Parsed::Complete(len) => {
                assert_eq!(len, text.len());
                Ok(head.framing())
            }
            Parsed::Rejected(reject) => Err(reject.status()),
            Parsed::Partial => panic!("not a whole head: {}", String::from_utf8_lossy(text)),
        }
    }

    #[test]
    fn a_request_reads_as_http_1_has_it() {
        let text = written(&[("accept", "*/*"), ("host", "A.example")], false).expect("sound");
        assert_eq!(text, "GET /x?y HTTP/1.1\r\nhost: a.example\r\naccept: */*\r\n\r\n");
        assert_eq!(status_of(text.as_bytes()), Ok(Framing::None));
        assert_eq!(status_of(written(&[], true).expect("sound").as_bytes()), Ok(Framing::Chunked));
        let told = written(&[("content-length", "5")], true).expect("sound");
        assert_eq!(status_of(told.as_bytes()), Ok(Framing::Length(5)));
        let asterisk = [(":method", "OPTIONS"), (":scheme", "https"), (":authority", "a"), (":path", "*")];
        assert_eq!(request_of(&asterisk, true).expect("sound").text, b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n");
    }

    #[test]
    fn a_websocket_is_asked_for_as_http_1_does_it() {
        let fields = [("sec-websocket-version", "13"), ("sec-websocket-key", "bWluZQ=="), ("origin", "https://a")];
        let asked = |protocol: &'static str, fields: &[(&str, &str)], is_end: bool| {
            let pseudo = [(":method", "CONNECT"), (":protocol", protocol), PSEUDO[1], PSEUDO[2], PSEUDO[3]];
            request_of(&[&pseudo[..], fields].concat(), is_end).expect("sound")
        };
        let request = asked("websocket", &fields, false);
        assert_eq!((request.method, request.content), (Method::Get, Content::Tunnel));
        let mut head = RequestHead::default();
        assert_eq!(head.parse(&request.text, &Limits::default()), Parsed::Complete(request.text.len()));
        let text = String::from_utf8(request.text).expect("ASCII");
        assert!(websocket::asks(&head), "{text}");
        assert!(text.starts_with("GET /x?y HTTP/1.1\r\nhost: a.example\r\n"), "{text}");
        assert_eq!(text.matches("sec-websocket-key").count(), 1, "{text}");
        assert!(!text.contains("bWluZQ=="), "{text}");
        assert_eq!(status_of(&asked("websocket", &[("content-length", "0")], false).text), Err(400));
        assert_eq!(status_of(&asked("websocket", &fields, true).text), Err(400), "its side is closed already");
        assert_eq!(status_of(&asked("connect-udp", &[], true).text), Err(405));
        for (name, _) in &PSEUDO[1..] {
            let pseudo = [(":method", "CONNECT"), (":protocol", "websocket"), PSEUDO[1], PSEUDO[2], PSEUDO[3]];
            let without: Vec<_> = pseudo.into_iter().filter(|(other, _)| other != name).collect();
            assert_eq!(request_of(&without, false), None, "without {name}");
        }
    }

    #[test]
    fn connect_is_answered_as_over_http_1() {
        let connect = |is_end| request_of(&[(":method", "CONNECT"), (":authority", "a.example:443")], is_end);
        for is_end in [true, false] {
            assert_eq!(status_of(&connect(is_end).expect("sound").text), Err(405));
        }
        assert_eq!(request_of(&[(":method", "CONNECT")], true), None);
        assert_eq!(request_of(&[(":method", "CONNECT"), (":authority", "a"), (":path", "/")], true), None);
    }

    #[test]
    fn cookies_become_one_field() {
        let fields = [("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")];
        let text = written(&fields, false).expect("sound");
        assert!(text.ends_with("\r\nx: y\r\ncookie: a=1; b=2; c=3\r\n\r\n"), "{text}");
    }

    #[test]
    fn fields_that_http_2_forbids_are_malformed() {
        let long = "a".repeat(80);
        for fields in [
            &[("transfer-encoding", "chunked")][..],
            &[("connection", "close")],
            &[("upgrade", "websocket")],
            &[("keep-alive", "5")],
            &[("proxy-connection", "close")],
            &[("te", "gzip")],
            &[("X", "y")],
            &[("x-Y", "y")],
            &[("", "y")],
            &[("x y", "z")],
            &[("x:y", "z")],
            &[("x\r\ny", "z")],
            &[("x\"a", "z")],
            &[("x", "y\0")],
            &[("x", "y\rz")],
            &[("x", "y\nz")],
            &[("x", &(long.clone() + "\n"))],
            &[("x", "y"), (":method", "GET")],
            &[(":method", "GET")],
            &[(":path", "/x?y")],
            &[(":status", "200")],
            &[(":unknown", "x")],
            &[(":", "x")],
            &[(":protocol", "websocket")],
        ] {
            assert_eq!(written(fields, true), None, "{fields:?}");
        }
        let with = |name: &'static str, value: Option<&'static str>| {
            let others = PSEUDO.into_iter().filter(|(other, _)| *other != name);
            let own = value.map(|value| (name, value));
            request_of(&others.chain(own).collect::<Vec<_>>(), true)
        };
        for (name, value) in [
            (":path", ""),
            (":path", "x"),
            (":path", "http://other/"),
            (":path", "/a b"),
            (":path", "/ HTTP/1.1\r\nhost: x\r\n\r\nGET /smuggled"),
            (":method", ""),
            (":method", "G T"),
            (":method", "GET / HTTP/1.1\r\n"),
            (":scheme", ""),
            (":scheme", "1:"),
            (":authority", "x\r\ny: z"),
        ] {
            assert_eq!(with(name, Some(value)), None, "{name} {value:?}");
        }
        for name in [":method", ":scheme", ":path"] {
            assert_eq!(with(name, None), None, "without {name}");
        }
        assert_eq!(written(&[("content-length", "5")], false), None, "no content comes");
    }

    #[test]
    fn requests_that_break_a_rule_of_http_2_are_refused() {
        for fields in [
            &[("host", "b.example")][..],
            &[("host", "a.example"), ("host", "a.example")],
            &[("content-length", "5"), ("content-length", "5")],
            &[("content-length", "5, 5")],
            &[("x", " y")],
            &[("x", "y ")],
            &[("x", "\ty")],
            &[("x", "y\t")],
            &[("x", " ")],
            &[("x", "\x01")],
            &[("host", "a.example ")],
            &[("cookie", "a=1"), ("cookie", " b=2")],
            &[("content-length", "5 ")],
        ] {
            let text = written(fields, true).expect("no malformed one");
            assert_eq!(status_of(text.as_bytes()), Err(400), "{fields:?}");
        }
        let of = |authority: Option<&'static str>| {
            let fields = authority.map(|authority| (":authority", authority));
            let fields: Vec<_> = [PSEUDO[0], PSEUDO[1], PSEUDO[3]].into_iter().chain(fields).collect();
            status_of(&request_of(&fields, true).expect("no malformed one").text)
        };
        assert_eq!(of(Some("u@a.example")), Err(400));
        assert_eq!(of(None), Err(400), "no host at all");
        assert_eq!(of(Some("a.example")), Ok(Framing::None));
    }

    #[test]
    fn heads_that_are_too_large_are_refused_with_the_status_for_that() {
        // As they come off HPACK.
        let read = |pseudo: &[(&str, &str)], fields: &mut dyn Iterator<Item = (String, String)>| {
            let (mut reader, mut block) = (RequestReader::new(70_000), Vec::new());
            let pseudo = pseudo.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
            for (name, value) in pseudo.chain(fields) {
                hpack::write_field(name.as_bytes(), value.as_bytes(), &mut block);
            }
            let fits = hpack::Decoder::default().read(&block, 70_000, |name, value| reader.field(name, value));
            let request = reader.finish(true, fits.expect("not far too large")).ok()?;
            if !request.is_too_large {
                return Some((request.method, status_of(&request.text)));
            }
            // There was a filler of as much as all fields may be.
            let line = request.text.iter().position(|&byte| byte == b'\n').expect("a line");
            assert!(request.text.capacity() <= line + 1 + MAX_CUT_BYTES);
            let status = match RequestHead::default().parse(&request.text, &Limits::default()) {
                Parsed::Partial => 431,
                Parsed::Rejected(reject) => reject.status(),
                Parsed::Complete(_) => panic!("an end"),
            };
            Some((request.method, Err(status)))
        };
        let get = |status| Some((Method::Get, status));
        let many = |name: &'static str, len, count| (0..count).map(move |_| (name.to_owned(), "c".repeat(len)));
        assert_eq!(read(&PSEUDO, &mut many("cookie", 0, 1000)), get(Ok(Framing::None)));
        for (name, len, count) in
            [("cookie", 0, 10_000), ("cookie", 100_000, 1), ("x", 4000, 10), ("x", 4000, 30), ("x", 69_700, 2)]
        {
            assert_eq!(read(&PSEUDO, &mut many(name, len, count)), get(Err(431)), "{count} times {name}");
        }
        let malformed = [&PSEUDO[..], &[("connection", "x")]].concat();
        assert_eq!(read(&malformed, &mut many("x", 4000, 30)), None);
        let with = |name: &str, value: &str| {
            let others = PSEUDO.into_iter().filter(|(other, _)| *other != name);
            let pseudo: Vec<_> = others.chain([(name, value)]).collect();
            read(&pseudo, &mut std::iter::empty())
        };
        let long = format!("/{}", "p".repeat(100_000));
        assert_eq!(with(":path", &long[..20_000]), get(Err(414)));
        assert_eq!(with(":path", &long[..40_000]), get(Err(414)), "also where it is cut");
        // Nobody reads what is larger than all fields may be.
        for name in [":method", ":authority", ":path"] {
            assert_eq!(with(name, &long), get(Err(431)), "{name}");
        }
        let head = [(":method", "HEAD"), PSEUDO[1], PSEUDO[2], (":path", &*long)];
        assert_eq!(read(&head, &mut std::iter::empty()), Some((Method::Head, Err(431))));
    }

    #[test]
    fn responses_become_fields() {
        let text =
            b"HTTP/1.1 201 Created\r\nX-A: b\r\nConnection: close\r\nDate: d\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut head = ResponseHead::default();
        assert_eq!(head.parse(text, Method::Get, &Limits::default()), Parsed::Complete(text.len()));
        let mut out = Vec::new();
        write_response(&head, text, &mut out);
        assert_eq!(out, b"\x08\x03201\x00\x03x-a\x01b\x0f\x12\x01d");
        out.clear();
        write_trailers(b"X-Sum: abc\r\nConnection: x\r\n", &mut out);
        assert_eq!(out, b"\x00\x05x-sum\x03abc");
        out.clear();
        write_trailers(b"", &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn trailers_follow_the_last_chunk() {
        let lines = |fields: &[(&str, &str)]| {
            let mut reader = TrailerReader::default();
            fields.iter().for_each(|(name, value)| reader.field(name.as_bytes(), value.as_bytes()));
            reader.finish().ok()
        };
        let mut out = Vec::new();
        write_end(&lines(&[("x-sum", "abc")]).expect("sound"), &mut out);
        assert_eq!(out, b"0\r\nx-sum: abc\r\n\r\n");
        out.clear();
        write_end(&lines(&[("x-sum", "abc ")]).expect("sound"), &mut out);
        let mut decoder = chunked::Decoder::new(chunked::Limits::default());
        assert_eq!(decoder.advance(&out), Err(chunked::BadChunk::Trailer(BadField::Control)));
        for (name, value) in [(":path", "/"), ("X", "y"), ("x", "y\n"), ("connection", "x")] {
            assert_eq!(lines(&[("x-sum", "abc"), (name, value)]), None, "{name}");
        }
    }
}
