//! HTTP messages (RFC 9110) independent of the protocol version: methods, versions, fields, names, paths, framing. Pure
//! functions; this module depends on no other.

pub mod ascii;
pub mod authority;
pub mod connection;
pub mod field;
pub mod framing;
pub mod limits;
pub mod name;
pub mod path;

/// The result of parsing the bytes so far. `R` is the type of rejections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed<R> {
    /// More bytes are needed.
    Partial,
    /// The head is complete; the content begins at this offset.
    Complete(usize),
    /// The message is rejected. No later byte of this connection can be trusted: respond and close.
    Rejected(R),
}

/// Request methods (RFC 9110 §9). They are case-sensitive; extension methods are [`Method::Other`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it all")]
pub enum Method {
    #[default]
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Patch,
    Trace,
    Connect,
    Other,
}

impl Method {
    /// The method called `token`.
    #[inline]
    pub fn of(token: &[u8]) -> Method {
        match token {
            b"GET" => Method::Get,
            b"HEAD" => Method::Head,
            b"POST" => Method::Post,
            b"PUT" => Method::Put,
            b"DELETE" => Method::Delete,
            b"OPTIONS" => Method::Options,
            b"PATCH" => Method::Patch,
            b"TRACE" => Method::Trace,
            b"CONNECT" => Method::Connect,
            _ => Method::Other,
        }
    }

    /// Whether repeating the request has the same effect as sending it once (RFC 9110 §9.2.2), so that a proxy may
    /// retry it.
    pub fn is_idempotent(self) -> bool {
        !matches!(self, Method::Post | Method::Patch | Method::Connect | Method::Other)
    }
}

/// The protocol version of a message. A minor version above 1 is served as 1.1 (RFC 9110 §2.5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1 and later 1.x.
    #[default]
    Http11,
}

/// The error of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadVersion {
    /// Not `HTTP/` digit `.` digit.
    Syntax,
    /// A major version other than 1.
    Unsupported,
}

/// The length of `HTTP/x.y`.
pub(crate) const VERSION_BYTES: usize = 8;

impl Version {
    /// Parses `HTTP/x.y` at the start of `bytes` (RFC 9112 §2.3). `None` if more bytes are needed.
    #[inline]
    pub(crate) fn read(bytes: &[u8]) -> Result<Option<Version>, BadVersion> {
        match bytes {
            [b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor, ..] if minor.is_ascii_digit() => {
                Ok(Some(if *minor == b'0' { Version::Http10 } else { Version::Http11 }))
            }
            _ => Version::read_odd(bytes),
        }
    }

    #[cold]
    fn read_odd(bytes: &[u8]) -> Result<Option<Version>, BadVersion> {
        const PATTERN: &[u8; VERSION_BYTES] = b"HTTP/0.0";
        for (byte, pattern) in bytes.iter().zip(PATTERN) {
            let fits = if *pattern == b'0' { byte.is_ascii_digit() } else { byte == pattern };
            if !fits {
                return Err(BadVersion::Syntax);
            }
        }
        if bytes.len() < VERSION_BYTES { Ok(None) } else { Err(BadVersion::Unsupported) }
    }
}

/// The reason phrase of a status; empty if it has none.
pub fn reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status).ok().and_then(|code| code.canonical_reason()).unwrap_or_default()
}

/// Whether the elements of `list` include the token `wanted`.
pub(crate) fn lists(list: &[u8], wanted: &[u8]) -> bool {
    ascii::elements(list).any(|element| ascii::same_token(element, wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_versions_are_matched_exactly() {
        assert_eq!(Version::read(b"HTTP/1.1\r\n"), Ok(Some(Version::Http11)));
        assert_eq!(Version::read(b"HTTP/1.0"), Ok(Some(Version::Http10)));
        assert_eq!(Version::read(b"HTTP/1.9"), Ok(Some(Version::Http11)));
        for len in 0..8 {
            assert_eq!(Version::read(&b"HTTP/1.1"[..len]), Ok(None));
        }
        for text in ["HTTP/2.0", "HTTP/0.9", "HTTP/3.1"] {
            assert_eq!(Version::read(text.as_bytes()), Err(BadVersion::Unsupported), "{text}");
        }
        for text in ["http/1.1", "HTTP/1,1", "HTTP/11", "HTTP /1.1", "HTTP/1.a", "HTTPS", "X", "HTTP/-1.1"] {
            assert_eq!(Version::read(text.as_bytes()), Err(BadVersion::Syntax), "{text}");
        }
    }

    #[test]
    fn only_idempotent_methods_may_be_repeated() {
        for method in [Method::Get, Method::Head, Method::Put, Method::Delete, Method::Options] {
            assert!(method.is_idempotent());
        }
        for method in [Method::Post, Method::Patch, Method::of(b"get")] {
            assert!(!method.is_idempotent());
        }
    }
}
