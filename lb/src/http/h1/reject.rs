//! The ways a request is refused, each with its one status and fixed text. Every refusal closes the connection: after
//! bytes we could not read, where the next request begins is anyone's guess.

use std::fmt;

use super::chunked::BadChunk;
use crate::message::connection::BadConnection;
use crate::message::field::BadField;
use crate::message::path::BadPath;

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "`reason` has a sentence for each")]
pub enum Reject {
    TooManyBlankLines,
    RequestLine,
    Method,
    Version,
    Target,
    PathNotAbsolute,
    PathEscape,
    PathAboveRoot,
    AsteriskForm,
    Scheme,
    TargetAuthority,
    MissingHost,
    RepeatedHost,
    Host,
    HostMismatch,
    AmbiguousName,
    ContentLength,
    RepeatedContentLength,
    LengthAndEncoding,
    EncodingInHttp10,
    TransferEncoding,
    ChunkedNotLast,
    MaxForwards,
    Field(BadField),
    Connection(BadConnection),
    Chunk(BadChunk),
    ConnectMethod,
    TraceMethod,
    RequestLineTooLong,
    Expectation,
    HeadTooLarge,
    TooManyFields,
    MethodTooLong,
    TransferCoding,
    UnsupportedVersion,
}

impl Reject {
    /// The status code to answer with.
    pub const fn status(self) -> u16 {
        match self {
            Reject::ConnectMethod | Reject::TraceMethod => 405,
            Reject::RequestLineTooLong => 414,
            Reject::Expectation => 417,
            Reject::HeadTooLarge | Reject::TooManyFields => 431,
            Reject::MethodTooLong | Reject::TransferCoding => 501,
            Reject::UnsupportedVersion => 505,
            _ => 400,
        }
    }

    /// A fixed sentence for the log line, without anything of the client's in it.
    pub const fn reason(self) -> &'static str {
        match self {
            Reject::TooManyBlankLines => "too many blank lines before the request",
            Reject::RequestLine => "malformed request line",
            Reject::Method => "malformed method",
            Reject::Version => "malformed protocol version",
            Reject::Target => "byte not allowed in a request target",
            Reject::PathNotAbsolute => "request target is neither a path nor an absolute URI",
            Reject::PathEscape => "malformed escape or %00 in the path",
            Reject::PathAboveRoot => "path climbs above the root",
            Reject::AsteriskForm => "target * with a method other than OPTIONS",
            Reject::Scheme => "request target with a scheme other than http and https",
            Reject::TargetAuthority => "malformed authority in the request target",
            Reject::MissingHost => "Host missing",
            Reject::RepeatedHost => "Host repeated",
            Reject::Host => "malformed Host",
            Reject::HostMismatch => "Host differs from the request target",
            Reject::AmbiguousName => "ambiguous field name",
            Reject::ContentLength => "malformed Content-Length",
            Reject::RepeatedContentLength => "Content-Length repeated",
            Reject::LengthAndEncoding => "both Content-Length and Transfer-Encoding",
            Reject::EncodingInHttp10 => "Transfer-Encoding in HTTP/1.0",
            Reject::TransferEncoding => "malformed Transfer-Encoding",
            Reject::ChunkedNotLast => "chunked is not the last transfer coding, or repeated",
            Reject::MaxForwards => "malformed Max-Forwards",
            Reject::Field(bad) => bad.reason(),
            Reject::Connection(bad) => bad.reason(),
            Reject::Chunk(bad) => bad.reason(),
            Reject::ConnectMethod => "CONNECT is not served",
            Reject::TraceMethod => "TRACE is not served",
            Reject::RequestLineTooLong => "request line longer than allowed",
            Reject::Expectation => "unknown expectation",
            Reject::HeadTooLarge => "head larger than allowed",
            Reject::TooManyFields => "more fields than allowed",
            Reject::MethodTooLong => "method longer than any known",
            Reject::TransferCoding => "transfer coding other than chunked",
            Reject::UnsupportedVersion => "HTTP version other than 1.x",
        }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl std::error::Error for Reject {}

impl From<BadField> for Reject {
    fn from(bad: BadField) -> Reject {
        Reject::Field(bad)
    }
}

impl From<BadConnection> for Reject {
    fn from(bad: BadConnection) -> Reject {
        Reject::Connection(bad)
    }
}

impl From<BadChunk> for Reject {
    fn from(bad: BadChunk) -> Reject {
        Reject::Chunk(bad)
    }
}

impl From<BadPath> for Reject {
    fn from(bad: BadPath) -> Reject {
        match bad {
            BadPath::NotAbsolute => Reject::PathNotAbsolute,
            BadPath::Escape => Reject::PathEscape,
            BadPath::AboveRoot => Reject::PathAboveRoot,
        }
    }
}
