//! Request heads: from bytes to offsets and digested facts in one pass (RFC 9112 §3 to §6).
//!
//! The parsed head borrows nothing, so it can be kept while a backend is connected to; its accessors take the buffer
//! it was parsed from. It is made to be used again for the next request, here or on another connection.

use super::reject::Reject;
use crate::message::ascii::{self, PERCENT, QUESTION, TARGET, TOKEN};
use crate::message::connection::ConnectionOptions;
use crate::message::field::{self, Field, Fields, Line, Span};
use crate::message::framing::Framing;
use crate::message::limits::{AmbiguousNames, BLANK_BYTES, Limits, NonAsciiTargets};
use crate::message::name::{Name, NameSet};
use crate::message::{self, BadVersion, Method, Parsed, VERSION_BYTES, Version, authority, path};

/// The longest method; registered ones have up to 17 letters.
const METHOD_BYTES: usize = 32;

/// The forms of a request target (RFC 9112 §3.2). The authority form is for CONNECT, which is refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TargetForm {
    /// `/path?query`.
    #[default]
    Origin,
    /// `http://host/path?query`.
    Http,
    /// `https://host/path?query`.
    Https,
    /// `*`, with OPTIONS; and an absolute target with neither path nor query there, which means the same.
    Asterisk,
}

/// A request head, parsed.
#[derive(Debug, Clone, Default)]
pub struct RequestHead {
    facts: Facts,
    fields: Fields,
}

/// All but the fields: small enough to be put back to its default for every request.
#[derive(Debug, Clone, Copy, Default)]
struct Facts {
    method: Method,
    version: Version,
    form: TargetForm,
    framing: Framing,
    connection: ConnectionOptions,
    expects_continue: bool,
    offers_websocket: bool,
    max_forwards: Option<u64>,
    method_token: Span,
    path: Span,
    query: Option<Span>,
    authority: Span,
    host: Span,
    port: Option<u16>,
    seen: Seen,
    /// Offset of the request line.
    start: usize,
    /// Offset of the first line not read yet, 0 before the request line is.
    next: usize,
}

/// What is known of the framing and of Host before the last field is read.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    host: bool,
    length: Option<u64>,
    coding: Coding,
}

/// The transfer codings so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Coding {
    #[default]
    None,
    /// `chunked` alone.
    Chunked,
    /// Others, without `chunked` at the end.
    Open,
    /// Others, with `chunked` at the end.
    Closed,
}

impl RequestHead {
    /// Forgets the request, ready for the next.
    #[inline]
    pub fn clear(&mut self) {
        self.facts = Facts::default();
        self.fields.clear();
    }

    /// Parses the head at the start of `buf`. After [`Parsed::Partial`], call again with the same bytes and more: whole
    /// lines are not read twice. After anything else, [`clear`](Self::clear) before the next request.
    ///
    /// [`Parsed::Complete`] counts the blank lines before the request line too.
    #[inline]
    pub fn parse(&mut self, buf: &[u8], limits: &Limits) -> Parsed<Reject> {
        match self.advance(buf, limits) {
            Ok(Some(len)) => Parsed::Complete(len),
            Ok(None) => Parsed::Partial,
            Err(reject) => Parsed::Rejected(reject),
        }
    }

    /// The method; its text, if it is [`Method::Other`], is at [`method_token`](Self::method_token).
    pub fn method(&self) -> Method {
        self.facts.method
    }

    /// The method as received.
    pub fn method_token<'b>(&self, buf: &'b [u8]) -> &'b [u8] {
        self.facts.method_token.of(buf)
    }

    /// The version the client speaks.
    pub fn version(&self) -> Version {
        self.facts.version
    }

    /// The form of the request target.
    pub fn form(&self) -> TargetForm {
        self.facts.form
    }

    /// The path as received, `/` if an absolute target has none, `*` in the asterisk form. Escapes are sound but not
    /// decoded: route by [`path::normalise`], but for the asterisk form, which is about the whole server.
    pub fn path<'b>(&self, buf: &'b [u8]) -> &'b [u8] {
        match self.facts.path.of(buf) {
            _ if self.facts.form == TargetForm::Asterisk => b"*",
            b"" => b"/",
            path => path,
        }
    }

    /// The target of a request line that was not accepted; all of the line as far as it was received, if even its words
    /// are not clear. `None`: see [`path`](Self::path).
    pub(crate) fn unread_target<'b>(&self, buf: &'b [u8]) -> Option<&'b [u8]> {
        if self.facts.next > 0 {
            return None;
        }
        let method = self.facts.method_token;
        if !method.is_empty() {
            let rest = buf.get(method.end() + 1..).unwrap_or_default();
            return rest.split(|&byte| byte == b' ').next();
        }
        let is_line_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
        let start = buf.iter().position(|byte| !is_line_end(byte)).unwrap_or(buf.len());
        buf.get(start..)?.split(is_line_end).next()
    }

    /// What follows the first `?` of the target.
    pub fn query<'b>(&self, buf: &'b [u8]) -> Option<&'b [u8]> {
        self.facts.query.map(|query| query.of(buf))
    }

    /// Path and query in one piece, for the origin form.
    pub(crate) fn path_and_query<'b>(&self, buf: &'b [u8]) -> &'b [u8] {
        self.facts.query.map_or(self.facts.path, |query| self.facts.path.through(query)).of(buf)
    }

    /// Host and port as the client wrote them; `None` only in HTTP/1.0. An absolute target decides, and must agree with
    /// Host (RFC 9112 §3.2.2).
    pub fn authority<'b>(&self, buf: &'b [u8]) -> Option<&'b [u8]> {
        (!self.facts.authority.is_empty()).then(|| self.facts.authority.of(buf))
    }

    /// The host without port, as received (RFC 9110 §7.2); `None` only in HTTP/1.0.
    pub fn host<'b>(&self, buf: &'b [u8]) -> Option<&'b [u8]> {
        (!self.facts.host.is_empty()).then(|| self.facts.host.of(buf))
    }

    /// The port the client named.
    pub fn port(&self) -> Option<u16> {
        self.facts.port
    }

    /// How the content is delimited (RFC 9112 §6.3). Never [`Framing::UntilClose`].
    pub fn framing(&self) -> Framing {
        self.facts.framing
    }

    /// What the client says of the connection.
    pub fn connection(&self) -> ConnectionOptions {
        self.facts.connection
    }

    /// Whether the client would send another request on this connection (RFC 9112 §9.3).
    pub fn keeps_alive(&self) -> bool {
        self.facts.connection.persists(self.facts.version == Version::Http11)
    }

    /// Whether the client waits for `100 Continue` before it sends its content (RFC 9110 §10.1.1). Never true in
    /// HTTP/1.0 or without content.
    pub fn expects_continue(&self) -> bool {
        self.facts.expects_continue && !matches!(self.facts.framing, Framing::None | Framing::Length(0))
    }

    /// Whether Upgrade offers `websocket`. That alone is not a handshake; see [`super::websocket::asks`].
    pub(crate) fn offers_websocket(&self) -> bool {
        self.facts.offers_websocket
    }

    /// Max-Forwards of an OPTIONS request: at 0 it is ours to answer (RFC 9110 §7.6.2). Other methods have none.
    pub fn max_forwards(&self) -> Option<u64> {
        self.facts.max_forwards
    }

    /// The fields.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Bytes of the head read so far.
    pub(crate) fn len(&self) -> usize {
        self.facts.next
    }

    fn advance(&mut self, buf: &[u8], limits: &Limits) -> Result<Option<usize>, Reject> {
        if self.facts.next == 0 && !self.first_line(buf, limits)? {
            return Ok(None);
        }
        let bound = self.facts.start + limits.head_bytes;
        let window = buf.get(..bound).unwrap_or(buf);
        loop {
            match field::line::<false>(window, self.facts.next)? {
                Line::Field(field, next) => {
                    self.take(field, buf, limits)?;
                    self.facts.next = next;
                }
                Line::Empty(end) => {
                    self.facts.next = end;
                    self.conclude(buf)?;
                    return Ok(Some(end));
                }
                Line::Unfinished if buf.len() >= bound => return Err(Reject::HeadTooLarge),
                Line::Unfinished => return Ok(None),
            }
        }
    }

    /// Reads blank lines and the request line; false while it is not complete. `method SP target SP version CRLF`, with
    /// single spaces (RFC 9112 §3).
    fn first_line(&mut self, buf: &[u8], limits: &Limits) -> Result<bool, Reject> {
        let Some(start) = skip_blank_lines(buf)? else {
            return Ok(false);
        };
        let bound = start + limits.line_bytes + 2;
        let window = buf.get(..bound).unwrap_or(buf);
        match self.words(window, start, limits.non_ascii)? {
            Some((target, holds, next)) => {
                self.digest_target(buf, target, holds)?;
                self.facts.start = start;
                self.facts.next = next;
                Ok(true)
            }
            None if buf.len() >= bound => Err(Reject::RequestLineTooLong),
            None => Ok(false),
        }
    }

    /// Reads the request line's words: the target, the classes of bytes in it, and where the next line begins.
    #[inline]
    fn words(
        &mut self,
        window: &[u8],
        start: usize,
        non_ascii: NonAsciiTargets,
    ) -> Result<Option<(Span, u8, usize)>, Reject> {
        let line = window.get(start..).unwrap_or_default();
        let (method_len, _) = ascii::run_holding(line, TOKEN);
        if method_len > METHOD_BYTES {
            return Err(Reject::MethodTooLong);
        }
        match line.get(method_len) {
            None => return Ok(None),
            Some(b' ') if method_len > 0 => {}
            Some(_) => return Err(Reject::Method),
        }
        let target_at = method_len + 1;
        let rest = line.get(target_at..).unwrap_or_default();
        let (mut target_len, mut holds) = ascii::run_holding(rest, TARGET);
        if non_ascii == NonAsciiTargets::Pass && rest.get(target_len).is_some_and(|byte| !byte.is_ascii()) {
            (target_len, holds) = non_ascii_run(rest);
        }
        let target_end = target_at + target_len;
        match line.get(target_end) {
            None => return Ok(None),
            Some(b' ') if target_len > 0 => {}
            Some(b' ' | b'\r' | b'\n') => return Err(Reject::RequestLine),
            Some(_) => return Err(Reject::Target),
        }
        let rest = line.get(target_end + 1..).unwrap_or_default();
        let version = Version::read(rest).map_err(|bad| match bad {
            BadVersion::Syntax => Reject::Version,
            BadVersion::Unsupported => Reject::UnsupportedVersion,
        })?;
        let Some(version) = version else {
            return Ok(None);
        };
        match (rest.get(VERSION_BYTES), rest.get(VERSION_BYTES + 1)) {
            (Some(b'\r'), Some(b'\n')) => {}
            (None, _) | (Some(b'\r'), None) => return Ok(None),
            _ => return Err(Reject::RequestLine),
        }
        self.facts.method = Method::of(line.get(..method_len).unwrap_or_default());
        self.facts.method_token = Span::new(start, start + method_len);
        self.facts.version = version;
        let target = Span::new(start + target_at, start + target_end);
        Ok(Some((target, holds, start + target_end + 1 + VERSION_BYTES + 2)))
    }

    fn digest_target(&mut self, buf: &[u8], target: Span, holds: u8) -> Result<(), Reject> {
        match self.facts.method {
            Method::Connect => return Err(Reject::ConnectMethod),
            Method::Trace => return Err(Reject::TraceMethod),
            _ => {}
        }
        let path_at = match target.of(buf) {
            [b'/', ..] => {
                self.facts.form = TargetForm::Origin;
                target.start()
            }
            b"*" if self.facts.method == Method::Options => {
                self.facts.form = TargetForm::Asterisk;
                target.start()
            }
            b"*" => return Err(Reject::AsteriskForm),
            uri => target.start() + self.digest_absolute(buf, target.start(), uri)?,
        };
        self.split_query(buf, Span::new(path_at, target.end()), holds);
        if path_at == target.end() && self.facts.method == Method::Options {
            self.facts.form = TargetForm::Asterisk;
        }
        if holds & PERCENT != 0 && !path::escapes_are_sound(self.facts.path.of(buf)) {
            return Err(Reject::PathEscape);
        }
        Ok(())
    }

    /// Takes scheme and authority off an absolute target; gives the offset of the path in it.
    #[cold]
    fn digest_absolute(&mut self, buf: &[u8], start: usize, uri: &[u8]) -> Result<usize, Reject> {
        let colon = uri.iter().position(|&byte| byte == b':').ok_or(Reject::PathNotAbsolute)?;
        let scheme_end = colon + 3;
        if uri.get(colon..scheme_end) != Some(b"://") {
            return Err(Reject::PathNotAbsolute);
        }
        let scheme = uri.get(..colon).unwrap_or_default();
        self.facts.form = if scheme.eq_ignore_ascii_case(b"http") {
            TargetForm::Http
        } else if scheme.eq_ignore_ascii_case(b"https") {
            TargetForm::Https
        } else {
            return Err(Reject::Scheme);
        };
        let rest = uri.get(scheme_end..).unwrap_or_default();
        let len = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
        self.digest_authority(buf, Span::new(start + scheme_end, start + scheme_end + len))
            .ok_or(Reject::TargetAuthority)?;
        Ok(scheme_end + len)
    }

    #[inline]
    fn digest_authority(&mut self, buf: &[u8], span: Span) -> Option<()> {
        let parts = authority::parse(span.of(buf))?;
        self.facts.authority = span;
        self.facts.host = Span::new(span.start(), span.start() + parts.host.len());
        self.facts.port = parts.port;
        Some(())
    }

    fn split_query(&mut self, buf: &[u8], whole: Span, holds: u8) {
        self.facts.path = whole;
        if holds & QUESTION != 0
            && let Some(len) = whole.of(buf).iter().position(|&byte| byte == b'?')
        {
            self.facts.path = Span::new(whole.start(), whole.start() + len);
            self.facts.query = Some(Span::new(whole.start() + len + 1, whole.end()));
        }
    }

    #[inline]
    fn take(&mut self, mut field: Field, buf: &[u8], limits: &Limits) -> Result<(), Reject> {
        if field.is_ambiguous() {
            match limits.ambiguous {
                AmbiguousNames::Drop => field.mark_dropped(),
                AmbiguousNames::Pass if reads_as_ours(field.name(buf)) => field.mark_dropped(),
                AmbiguousNames::Pass => {}
                AmbiguousNames::Reject => return Err(Reject::AmbiguousName),
            }
        }
        if field.known() != Name::Other {
            self.digest(&field, buf)?;
        }
        if self.fields.push(field, limits.fields) { Ok(()) } else { Err(Reject::TooManyFields) }
    }

    #[inline]
    fn digest(&mut self, field: &Field, buf: &[u8]) -> Result<(), Reject> {
        let value = field.value(buf);
        match field.known() {
            Name::Host => self.digest_host(field, buf),
            Name::Connection => Ok(self.facts.connection.read(value)?),
            Name::ContentLength => self.digest_length(value),
            Name::TransferEncoding => self.digest_coding(value),
            Name::Expect => self.digest_expect(value),
            Name::MaxForwards => self.digest_max_forwards(value),
            Name::Upgrade => {
                self.facts.offers_websocket |= message::lists(value, b"websocket");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Exactly one sound Host in HTTP/1.1, at most one in HTTP/1.0 (RFC 9112 §3.2).
    fn digest_host(&mut self, field: &Field, buf: &[u8]) -> Result<(), Reject> {
        if self.facts.seen.host {
            return Err(Reject::RepeatedHost);
        }
        self.facts.seen.host = true;
        if self.facts.authority.is_empty() {
            return self.digest_authority(buf, field.value_span()).ok_or(Reject::Host);
        }
        // The target has named the authority already.
        let host = field.value(buf);
        authority::parse(host).ok_or(Reject::Host)?;
        if host.eq_ignore_ascii_case(self.facts.authority.of(buf)) { Ok(()) } else { Err(Reject::HostMismatch) }
    }

    /// One decimal number, once. RFC 9110 §8.6 lets identical repeats pass; two parsers have disagreed about them
    /// often enough.
    fn digest_length(&mut self, value: &[u8]) -> Result<(), Reject> {
        if self.facts.seen.length.is_some() {
            return Err(Reject::RepeatedContentLength);
        }
        self.facts.seen.length = Some(ascii::decimal(value).ok_or(Reject::ContentLength)?);
        Ok(())
    }

    /// Notes the codings of one Transfer-Encoding line (RFC 9112 §6.1). Only `chunked` alone is served.
    fn digest_coding(&mut self, value: &[u8]) -> Result<(), Reject> {
        if self.facts.version == Version::Http10 {
            return Err(Reject::EncodingInHttp10);
        }
        ascii::elements(value).try_for_each(|coding| self.add_coding(coding))
    }

    fn add_coding(&mut self, coding: &[u8]) -> Result<(), Reject> {
        let name = ascii::trim(coding.split(|&byte| byte == b';').next().unwrap_or_default());
        if !ascii::is_token(name) {
            return Err(Reject::TransferEncoding);
        }
        if matches!(self.facts.seen.coding, Coding::Chunked | Coding::Closed) {
            return Err(Reject::ChunkedNotLast);
        }
        let chunked = ascii::same_token(name, b"chunked");
        if chunked && coding.len() != name.len() {
            return Err(Reject::TransferEncoding);
        }
        if !chunked && !is_registered(name) {
            return Err(Reject::TransferCoding);
        }
        self.facts.seen.coding = match (chunked, self.facts.seen.coding) {
            (true, Coding::None) => Coding::Chunked,
            (true, _) => Coding::Closed,
            (false, _) => Coding::Open,
        };
        Ok(())
    }

    /// `100-continue` is the only expectation there is (RFC 9110 §10.1.1), and HTTP/1.0 does not have it.
    fn digest_expect(&mut self, value: &[u8]) -> Result<(), Reject> {
        for expectation in ascii::elements(value).filter(|element| !element.is_empty()) {
            if !expectation.eq_ignore_ascii_case(b"100-continue") {
                return Err(Reject::Expectation);
            }
            self.facts.expects_continue = self.facts.version == Version::Http11;
        }
        Ok(())
    }

    fn digest_max_forwards(&mut self, value: &[u8]) -> Result<(), Reject> {
        if self.facts.method != Method::Options {
            return Ok(());
        }
        if self.facts.max_forwards.is_some() {
            return Err(Reject::MaxForwards);
        }
        self.facts.max_forwards = Some(ascii::decimal(value).ok_or(Reject::MaxForwards)?);
        Ok(())
    }

    /// The verdicts that need the whole head.
    fn conclude(&mut self, buf: &[u8]) -> Result<(), Reject> {
        if self.facts.version == Version::Http11 && !self.facts.seen.host {
            return Err(Reject::MissingHost);
        }
        self.facts.framing = match (self.facts.seen.coding, self.facts.seen.length) {
            (Coding::None, None) => Framing::None,
            (Coding::None, Some(length)) => Framing::Length(length),
            (_, Some(_)) => return Err(Reject::LengthAndEncoding),
            (Coding::Chunked, None) => Framing::Chunked,
            (Coding::Open, None) => return Err(Reject::ChunkedNotLast),
            (Coding::Closed, None) => return Err(Reject::TransferCoding),
        };
        if self.facts.connection.names_fields {
            self.fields.drop_named_by_connection(buf);
        }
        Ok(())
    }
}

/// Fields that the balancer sets, or from which it has understood the request.
const INTERPRETED_FIELDS: NameSet = NameSet::of(&[
    Name::CdnLoop,
    Name::ClientCert,
    Name::ClientCertChain,
    Name::Connection,
    Name::ContentLength,
    Name::Expect,
    Name::Forwarded,
    Name::Host,
    Name::KeepAlive,
    Name::MaxForwards,
    Name::ProxyConnection,
    Name::Te,
    Name::Trailer,
    Name::TransferEncoding,
    Name::Upgrade,
    Name::XForwardedClientCert,
    Name::XForwardedFor,
    Name::XForwardedHost,
    Name::XForwardedPort,
    Name::XForwardedPrefix,
    Name::XForwardedProto,
    Name::XForwardedServer,
    Name::XRealIp,
    Name::XRequestId,
]);

/// Whether an application that takes `_` and `.` for hyphens reads `name` as one of [`INTERPRETED_FIELDS`].
#[cold]
fn reads_as_ours(name: &[u8]) -> bool {
    let folded: Vec<u8> = name.iter().map(|byte| if matches!(byte, b'_' | b'.') { b'-' } else { *byte }).collect();
    INTERPRETED_FIELDS.has(Name::of(&folded))
}

/// Where the request line begins, `None` while only blank lines have come.
#[inline]
fn skip_blank_lines(buf: &[u8]) -> Result<Option<usize>, Reject> {
    let mut at = 0;
    loop {
        match (buf.get(at), buf.get(at + 1)) {
            (Some(b'\r'), Some(b'\n')) if at < BLANK_BYTES => at += 2,
            (Some(b'\r'), None) if at < BLANK_BYTES => return Ok(None),
            (Some(b'\r'), _) if at >= BLANK_BYTES => return Err(Reject::TooManyBlankLines),
            (Some(b'\r' | b'\n'), _) => return Err(Reject::RequestLine),
            (Some(_), _) => return Ok(Some(at)),
            (None, _) => return Ok(None),
        }
    }
}

/// Whether `coding` is another transfer coding of the IANA registry, or was one. They are no more served than unknown
/// ones, but are known not to delimit anything.
fn is_registered(coding: &[u8]) -> bool {
    [&b"gzip"[..], b"x-gzip", b"compress", b"x-compress", b"deflate", b"identity"]
        .iter()
        .any(|known| ascii::same_token(coding, known))
}

/// The length of a target that may hold bytes above ASCII, and the classes of bytes in it.
#[cold]
fn non_ascii_run(bytes: &[u8]) -> (usize, u8) {
    let is_part = |byte: &u8| !byte.is_ascii() || ascii::is(*byte, TARGET);
    let len = bytes.iter().take_while(|byte| is_part(byte)).count();
    let mut holds = 0;
    for piece in bytes[..len].split(|byte| !byte.is_ascii()) {
        holds |= ascii::run_holding(piece, TARGET).1;
    }
    (len, holds)
}

#[cfg(test)]
mod tests;
