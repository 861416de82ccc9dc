//! Response heads from a backend: strict, since what is misread here reaches a client as another response.
//!
//! The length of the content depends on the request as well (RFC 9112 §6.3), so parsing takes its method. Whatever is
//! wrong with a response becomes a 502 for the client and ends the backend's connection.

use std::fmt;

use super::chunked::BadChunk;
use crate::message::connection::{BadConnection, ConnectionOptions};
use crate::message::field::{self, BadField, Field, Fields, Line, Span};
use crate::message::framing::Framing;
use crate::message::limits::Limits;
use crate::message::name::Name;
use crate::message::{self, Method, Parsed, VERSION_BYTES, Version, ascii};

/// A response head, parsed. Like a request's it borrows nothing and is made to be used again.
#[derive(Debug, Clone, Default)]
pub struct ResponseHead {
    facts: Facts,
    fields: Fields,
}

/// All but the fields.
#[derive(Debug, Clone, Copy, Default)]
struct Facts {
    status: u16,
    version: Version,
    framing: Framing,
    length: Option<u64>,
    connection: ConnectionOptions,
    chunked: bool,
    takes_websocket: bool,
    reason: Span,
    /// Offset of the first line not read yet, 0 before the status line is.
    next: usize,
}

/// Why a response is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "`reason` has a sentence for each")]
pub enum BadResponse {
    Version,
    Status,
    ReasonPhrase,
    StatusLineTooLong,
    HeadTooLarge,
    TooManyFields,
    ContentLength,
    RepeatedContentLength,
    LengthAndEncoding,
    EncodingInHttp10,
    TransferEncoding,
    Field(BadField),
    Connection(BadConnection),
    Chunk(BadChunk),
    UnaskedUpgrade,
    Upgrade,
    Truncated,
}

impl BadResponse {
    /// A fixed sentence for the log line, without anything of the backend's in it.
    pub const fn reason(self) -> &'static str {
        match self {
            BadResponse::Version => "malformed or unsupported protocol version",
            BadResponse::Status => "malformed status code",
            BadResponse::ReasonPhrase => "malformed reason phrase",
            BadResponse::StatusLineTooLong => "status line longer than allowed",
            BadResponse::HeadTooLarge => "head larger than allowed",
            BadResponse::TooManyFields => "more fields than allowed",
            BadResponse::ContentLength => "malformed Content-Length",
            BadResponse::RepeatedContentLength => "Content-Length repeated",
            BadResponse::LengthAndEncoding => "both Content-Length and Transfer-Encoding",
            BadResponse::EncodingInHttp10 => "Transfer-Encoding in HTTP/1.0",
            BadResponse::TransferEncoding => "transfer coding other than a single chunked",
            BadResponse::Field(bad) => bad.reason(),
            BadResponse::Connection(bad) => bad.reason(),
            BadResponse::Chunk(bad) => bad.reason(),
            BadResponse::UnaskedUpgrade => "101 to a request without Upgrade",
            BadResponse::Upgrade => "101 to another protocol than asked for",
            BadResponse::Truncated => "connection closed before the response was complete",
        }
    }
}

impl fmt::Display for BadResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl std::error::Error for BadResponse {}

impl From<BadField> for BadResponse {
    fn from(bad: BadField) -> BadResponse {
        BadResponse::Field(bad)
    }
}

impl From<BadConnection> for BadResponse {
    fn from(bad: BadConnection) -> BadResponse {
        BadResponse::Connection(bad)
    }
}

impl From<BadChunk> for BadResponse {
    fn from(bad: BadChunk) -> BadResponse {
        BadResponse::Chunk(bad)
    }
}

impl ResponseHead {
    /// Forgets the response, ready for the next; also between an interim response and the final one.
    #[inline]
    pub fn clear(&mut self) {
        self.facts = Facts::default();
        self.fields.clear();
    }

    /// Parses the head at the start of `buf`, the answer to a request with `method`. After [`Parsed::Partial`], call
    /// again with the same bytes and more; after anything else, [`clear`](Self::clear) first.
    #[inline]
    pub fn parse(&mut self, buf: &[u8], method: Method, limits: &Limits) -> Parsed<BadResponse> {
        match self.advance(buf, method, limits) {
            Ok(Some(len)) => Parsed::Complete(len),
            Ok(None) => Parsed::Partial,
            Err(bad) => Parsed::Rejected(bad),
        }
    }

    /// The status code, 100 to 599.
    pub fn status(&self) -> u16 {
        self.facts.status
    }

    /// Whether another response follows this one to the same request (RFC 9110 §15.2). 101 is final here: what follows
    /// it is not HTTP/1.1.
    pub fn is_interim(&self) -> bool {
        self.facts.status < 200 && self.facts.status != 101
    }

    /// The reason phrase; often empty.
    pub fn reason<'b>(&self, buf: &'b [u8]) -> &'b [u8] {
        self.facts.reason.of(buf)
    }

    /// The version the backend speaks.
    pub fn version(&self) -> Version {
        self.facts.version
    }

    /// How the content is delimited.
    pub fn framing(&self) -> Framing {
        self.facts.framing
    }

    /// The length the backend declared. For HEAD and 304 it tells of content that is not there; for 1xx and 204, which
    /// must not have one (RFC 9110 §8.6), there is none.
    pub fn content_length(&self) -> Option<u64> {
        self.facts.length
    }

    /// What the backend says of the connection.
    pub fn connection(&self) -> ConnectionOptions {
        self.facts.connection
    }

    /// Whether the backend takes another request on this connection once the content has been read to its end.
    pub fn keeps_alive(&self) -> bool {
        let switched = self.facts.status == 101;
        let open = !switched && self.facts.framing != Framing::UntilClose;
        open && self.facts.connection.persists(self.facts.version == Version::Http11)
    }

    /// Whether Upgrade says `websocket`.
    pub(crate) fn takes_websocket(&self) -> bool {
        self.facts.takes_websocket
    }

    /// The fields.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Bytes of the head read so far.
    pub(crate) fn len(&self) -> usize {
        self.facts.next
    }

    fn advance(&mut self, buf: &[u8], method: Method, limits: &Limits) -> Result<Option<usize>, BadResponse> {
        if self.facts.next == 0 {
            match self.status_line(buf, limits)? {
                Some(next) => self.facts.next = next,
                None => return Ok(None),
            }
        }
        let window = buf.get(..limits.head_bytes).unwrap_or(buf);
        loop {
            match field::line::<true>(window, self.facts.next)? {
                Line::Field(field, next) => {
                    self.take(field, buf, limits)?;
                    self.facts.next = next;
                }
                Line::Empty(end) => {
                    self.conclude(buf, method)?;
                    return Ok(Some(end));
                }
                Line::Unfinished if buf.len() >= limits.head_bytes => return Err(BadResponse::HeadTooLarge),
                Line::Unfinished => return Ok(None),
            }
        }
    }

    /// Reads `version SP status SP [reason] CRLF` (RFC 9112 §4) and gives where the next line begins. The second space
    /// may be missing with the reason phrase: many servers leave both out.
    fn status_line(&mut self, buf: &[u8], limits: &Limits) -> Result<Option<usize>, BadResponse> {
        const STATUS_AT: usize = VERSION_BYTES + 1;
        const STATUS_END: usize = STATUS_AT + 3;
        let bound = limits.line_bytes + 2;
        let window = buf.get(..bound).unwrap_or(buf);
        let Some(version) = Version::read(window).map_err(|_| BadResponse::Version)? else {
            return Ok(None);
        };
        let Some(status) = read_status(window.get(VERSION_BYTES..).unwrap_or_default())? else {
            return Ok(None);
        };
        let reason_at = match window.get(STATUS_END) {
            None => return Ok(None),
            Some(b' ') => STATUS_END + 1,
            Some(b'\r') => STATUS_END,
            Some(_) => return Err(BadResponse::Status),
        };
        let reason_end = reason_at + ascii::text_run(window.get(reason_at..).unwrap_or_default());
        match (window.get(reason_end), window.get(reason_end + 1)) {
            (Some(b'\r'), Some(b'\n')) => {}
            (None, _) | (Some(b'\r'), None) if buf.len() >= bound => return Err(BadResponse::StatusLineTooLong),
            (None, _) | (Some(b'\r'), None) => return Ok(None),
            _ => return Err(BadResponse::ReasonPhrase),
        }
        self.facts.version = version;
        self.facts.status = status;
        self.facts.reason = Span::new(reason_at, reason_end);
        Ok(Some(reason_end + 2))
    }

    #[inline]
    fn take(&mut self, field: Field, buf: &[u8], limits: &Limits) -> Result<(), BadResponse> {
        let value = field.value(buf);
        match field.known() {
            Name::Connection => self.facts.connection.read(value)?,
            Name::ContentLength if self.facts.length.is_some() => return Err(BadResponse::RepeatedContentLength),
            Name::ContentLength => {
                self.facts.length = Some(ascii::decimal(value).ok_or(BadResponse::ContentLength)?);
            }
            Name::TransferEncoding if self.facts.chunked || !ascii::same_token(value, b"chunked") => {
                return Err(BadResponse::TransferEncoding);
            }
            Name::TransferEncoding => self.facts.chunked = true,
            Name::Upgrade => self.facts.takes_websocket |= message::lists(value, b"websocket"),
            _ => {}
        }
        if self.fields.push(field, limits.fields) { Ok(()) } else { Err(BadResponse::TooManyFields) }
    }

    /// Frames the content by RFC 9112 §6.3, in its order.
    fn conclude(&mut self, buf: &[u8], method: Method) -> Result<(), BadResponse> {
        let Facts { status, version, chunked, length, .. } = self.facts;
        if self.facts.connection.names_fields {
            self.fields.drop_named_by_connection(buf);
        }
        let never_framed = status < 200 || status == 204 || (method == Method::Connect && status < 300);
        if never_framed {
            self.facts.length = None;
            return Ok(());
        }
        if chunked && length.is_some() {
            return Err(BadResponse::LengthAndEncoding);
        }
        if chunked && version == Version::Http10 {
            return Err(BadResponse::EncodingInHttp10);
        }
        self.facts.framing = match length {
            _ if method == Method::Head || status == 304 => Framing::None,
            _ if chunked => Framing::Chunked,
            Some(length) => Framing::Length(length),
            None => Framing::UntilClose,
        };
        Ok(())
    }
}

/// Reads ` ddd`, 100 to 599; `None` while there is too little of it.
fn read_status(bytes: &[u8]) -> Result<Option<u16>, BadResponse> {
    match bytes {
        [b' ', a @ b'1'..=b'5', b, c, ..] if b.is_ascii_digit() && c.is_ascii_digit() => {
            let digit = |byte: u8| u16::from(byte - b'0');
            Ok(Some(digit(*a) * 100 + digit(*b) * 10 + digit(*c)))
        }
        [] | [b' '] | [b' ', b'1'..=b'5'] => Ok(None),
        [b' ', b'1'..=b'5', b] if b.is_ascii_digit() => Ok(None),
        _ => Err(BadResponse::Status),
    }
}

#[cfg(test)]
mod tests;
