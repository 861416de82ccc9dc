//! A response by Evenkeel itself: a status, fields and content. It is sent like a backend's response: with the same
//! added fields and the same rules for framing and keep-alive.

use std::fmt;

use bytes::Bytes;

use crate::message::limits::MAX_HEAD_BYTES;
use crate::message::{self, ascii};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    status: u16,
    /// Complete lines.
    fields: Vec<u8>,
    content: Bytes,
}

impl Reply {
    /// An empty response. `status`: 200 to 599.
    pub fn new(status: u16) -> Self {
        Self { status, fields: Vec::new(), content: Bytes::new() }
    }

    /// Adds a field, unless its name or value contains bytes that would end the line.
    pub fn field(&mut self, name: &[u8], value: &[u8]) {
        if ascii::is_token(name) && ascii::is_text(value) {
            for piece in [name, b": ", value.trim_ascii(), b"\r\n"] {
                self.fields.extend_from_slice(piece);
            }
        }
    }

    /// Whether the head is no larger than the largest head of a backend's response.
    pub fn is_sendable(&self) -> bool {
        self.fields.len() <= MAX_HEAD_BYTES
    }

    /// Sets the content. It is omitted if the status allows none (RFC 9110 §15.3.5, §15.4.5).
    pub fn content(&mut self, content_type: &[u8], content: Bytes) {
        if self.has_content() {
            self.field(b"Content-Type", content_type);
            self.content = content;
        }
    }

    /// Writes the status line and fields, including those for framing. Returns the content.
    pub fn write(self, out: &mut Vec<u8>) -> Bytes {
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(StatusText(self.status).to_string().as_bytes());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&self.fields);
        if self.has_content() {
            out.extend_from_slice(b"Content-Length: ");
            ascii::write_decimal(self.content.len() as u64, out);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
        self.content
    }

    pub fn status(&self) -> u16 {
        self.status
    }

    /// The names and values, for protocols that do not send lines.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.split(|&byte| byte == b'\n').filter_map(|line| {
            let colon = line.iter().position(|&byte| byte == b':')?;
            Some((&line[..colon], line[colon + 1..].trim_ascii()))
        })
    }

    pub fn into_content(self) -> Bytes {
        self.content
    }

    fn has_content(&self) -> bool {
        !matches!(self.status, 204 | 304)
    }
}

/// A status code with its name.
pub(crate) struct StatusText(pub u16);

impl StatusText {
    pub(crate) fn name(&self) -> &'static str {
        message::reason(self.0)
    }
}

impl fmt::Display for StatusText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(reply: Reply) -> (String, Bytes) {
        let mut head = Vec::new();
        let content = reply.write(&mut head);
        (String::from_utf8(head).expect("text"), content)
    }

    #[test]
    fn a_reply_has_head_and_content() {
        let mut reply = Reply::new(403);
        reply.content(b"text/plain", "no".into());
        reply.field(b"X-A", b" b ");
        let (head, content) = written(reply);
        assert_eq!(head, "HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nX-A: b\r\nContent-Length: 2\r\n\r\n");
        assert_eq!(content, "no");
        assert_eq!(written(Reply::new(299)).0, "HTTP/1.1 299 \r\nContent-Length: 0\r\n\r\n");
    }

    #[test]
    fn fields_and_content_of_a_reply_are_available_separately() {
        let mut reply = Reply::new(403);
        reply.content(b"text/plain", "no".into());
        reply.field(b"X-A", b"b: c");
        let fields: Vec<_> = reply.fields().collect();
        assert_eq!(fields, [(&b"Content-Type"[..], &b"text/plain"[..]), (b"X-A", b"b: c")]);
        assert_eq!((reply.status(), reply.into_content()), (403, Bytes::from_static(b"no")));
    }

    #[test]
    fn replies_without_content_have_no_body() {
        for status in [204, 304] {
            let mut reply = Reply::new(status);
            reply.content(b"text/plain", "no".into());
            let (head, content) = written(reply);
            assert_eq!((head.matches("\r\n").count(), content.len()), (2, 0), "{head}");
        }
    }

    #[test]
    fn fields_of_a_reply_cannot_inject_lines() {
        let mut reply = Reply::new(200);
        for (name, value) in [("X-A", "a\r\nX-B: b"), ("X-A\r\nX-B", "b"), ("X A", "b"), ("", "b"), ("X-A", "a\0")] {
            reply.field(name.as_bytes(), value.as_bytes());
        }
        assert_eq!(written(reply).0, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    }
}
