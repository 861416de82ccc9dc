//! The chunked transfer coding (RFC 9112 §7.1), both ways.
//!
//! The decoder is a state machine that can stop at any byte. It points at the data rather than copy it, drops chunk
//! extensions after checking them, and keeps the trailer fields worth passing on. Chunks are never passed through as
//! they came: the encoder frames the data anew, so a chunk header two parsers could disagree on ends here.

use super::body::Progress;
use crate::message::ascii::{self, TOKEN};
use crate::message::field::{self, BadField, Field, Line};
use crate::message::name::Name;

/// The line end after a chunk's data.
pub const CHUNK_END: &[u8] = b"\r\n";

/// Hexadecimal digits a size may have, leading zeros included: those of 64 bits, so that no size overflows.
const SIZE_DIGITS: u8 = 16;

/// How much of a chunked message may be something else than data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    extension_bytes: u16,
    is_per_chunk: bool,
    trailer_bytes: u16,
}

impl Limits {
    /// `extension_bytes` bounds all chunk extensions together, `trailer_bytes` all trailer lines with the last, empty
    /// one. So a peer that wraps every byte of data in kilobytes of extension gets no further than one that does it
    /// once.
    pub const fn new(extension_bytes: u16, trailer_bytes: u16) -> Limits {
        Limits { extension_bytes, is_per_chunk: false, trailer_bytes }
    }

    /// The same for the extensions of each chunk, however many there are of all. RFC 9112 §7.1.1 asks for a limit on
    /// all of them in requests only.
    pub const fn per_chunk(self) -> Limits {
        Limits { is_per_chunk: true, ..self }
    }
}

impl Default for Limits {
    /// 16 KiB of extensions, 8 KiB of trailers.
    fn default() -> Limits {
        Limits::new(16 * 1024, 8 * 1024)
    }
}

/// What is wrong with a chunked message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadChunk {
    /// No size, a byte that is not a hexadecimal digit, or more digits than 64 bits need.
    Size,
    /// An extension against the grammar.
    Extension,
    /// More extension bytes than allowed.
    ExtensionTooLong,
    /// A line that does not end in CRLF.
    LineEnd,
    /// Data without CRLF after it: the size was a lie.
    DataEnd,
    /// A trailer line that would be refused in a head too.
    Trailer(BadField),
    /// More trailer bytes than allowed.
    TrailersTooLong,
}

impl BadChunk {
    /// A fixed sentence without anything of the peer's in it.
    pub const fn reason(self) -> &'static str {
        match self {
            BadChunk::Size => "malformed chunk size",
            BadChunk::Extension => "malformed chunk extension",
            BadChunk::ExtensionTooLong => "chunk extensions larger than allowed",
            BadChunk::LineEnd => "chunk line without CRLF",
            BadChunk::DataEnd => "chunk data longer than its size",
            BadChunk::Trailer(bad) => bad.reason(),
            BadChunk::TrailersTooLong => "trailers larger than allowed",
        }
    }
}

/// Where in the grammar the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size {
        digits: u8,
    },
    /// Blanks that only `;` may follow.
    BeforeSemicolon,
    BeforeExtName,
    ExtName,
    AfterExtName,
    BeforeExtValue,
    ExtToken,
    Quoted,
    QuotedPair,
    AfterQuoted,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailers,
    Done,
    Failed(BadChunk),
}

/// Decodes one chunked message.
#[derive(Debug, Clone)]
pub struct Decoder {
    state: State,
    /// The size while it is read, then what is left of the chunk's data.
    left: u64,
    limits: Limits,
    extension_bytes: u16,
    trailer_bytes: u16,
    /// The trailer line that has not ended yet. No memory is held before the first trailer.
    line: Vec<u8>,
    trailers: Vec<u8>,
}

impl Decoder {
    /// A decoder at the start of the first chunk.
    pub fn new(limits: Limits) -> Decoder {
        Decoder {
            state: State::Size { digits: 0 },
            left: 0,
            limits,
            extension_bytes: 0,
            trailer_bytes: 0,
            line: Vec::new(),
            trailers: Vec::new(),
        }
    }

    /// Reads on, up to the end of the next piece of data or of the input. Once it has failed it fails for good.
    pub fn advance(&mut self, input: &[u8]) -> Result<Progress, BadChunk> {
        let mut at = 0;
        while let Some(rest) = input.get(at..).filter(|rest| !rest.is_empty()) {
            match self.state {
                State::Data => return Ok(self.data(at, rest.len())),
                State::Trailers => at += self.trailer_line(rest).map_err(|bad| self.fail(bad))?,
                State::Done => break,
                _ => {
                    self.byte(rest[0]).map_err(|bad| self.fail(bad))?;
                    at += 1;
                }
            }
        }
        Ok(Progress { data_start: at, data_end: at, consumed: at, done: self.is_done() })
    }

    /// How many bytes of the chunk that has begun are still to come, as far as its size has been read.
    pub fn left_of_chunk(&self) -> u64 {
        self.left
    }

    /// Whether the last chunk and the trailers have been read.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The trailer fields to pass on, as lines `Name: value CRLF`. Those that must not come after the content are left
    /// out, and so are ambiguous names.
    pub fn trailers(&self) -> &[u8] {
        if self.is_done() { &self.trailers } else { &[] }
    }

    fn fail(&mut self, bad: BadChunk) -> BadChunk {
        self.state = State::Failed(bad);
        bad
    }

    fn data(&mut self, at: usize, available: usize) -> Progress {
        let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(available);
        self.left -= len as u64;
        if self.left == 0 {
            self.state = State::DataCr;
        }
        Progress { data_start: at, data_end: at + len, consumed: at + len, done: false }
    }

    /// One byte of a chunk header or of a line end.
    fn byte(&mut self, byte: u8) -> Result<(), BadChunk> {
        self.state = match self.state {
            State::Size { digits } => self.size_byte(byte, digits)?,
            State::SizeLf if byte != b'\n' => return Err(BadChunk::LineEnd),
            State::SizeLf if self.left == 0 => State::Trailers,
            State::SizeLf => State::Data,
            State::DataCr if byte == b'\r' => State::DataLf,
            State::DataLf if byte == b'\n' => {
                if self.limits.is_per_chunk {
                    self.extension_bytes = 0;
                }
                State::Size { digits: 0 }
            }
            State::DataCr | State::DataLf => return Err(BadChunk::DataEnd),
            State::Failed(bad) => return Err(bad),
            state => self.extension_byte(state, byte)?,
        };
        Ok(())
    }

    fn size_byte(&mut self, byte: u8, digits: u8) -> Result<State, BadChunk> {
        if let Some(digit) = ascii::hex_value(byte) {
            if digits == SIZE_DIGITS {
                return Err(BadChunk::Size);
            }
            self.left = self.left << 4 | u64::from(digit);
            return Ok(State::Size { digits: digits + 1 });
        }
        match byte {
            _ if digits == 0 => Err(BadChunk::Size),
            b'\r' => Ok(State::SizeLf),
            b'\n' => Err(BadChunk::LineEnd),
            b';' | b' ' | b'\t' => self.extension_byte(State::BeforeSemicolon, byte),
            _ => Err(BadChunk::Size),
        }
    }

    /// `*( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )`, RFC 9112 §7.1.1. Blanks that no `;` follows
    /// are refused.
    fn extension_byte(&mut self, state: State, byte: u8) -> Result<State, BadChunk> {
        let next = match (state, byte) {
            (State::ExtName | State::ExtToken | State::AfterQuoted, b'\r') => return Ok(State::SizeLf),
            (
                State::BeforeSemicolon | State::BeforeExtName | State::AfterExtName | State::BeforeExtValue,
                b' ' | b'\t',
            ) => state,
            (State::ExtName, b' ' | b'\t') => State::AfterExtName,
            (State::ExtToken | State::AfterQuoted, b' ' | b'\t') => State::BeforeSemicolon,
            (
                State::BeforeSemicolon | State::ExtName | State::AfterExtName | State::ExtToken | State::AfterQuoted,
                b';',
            ) => State::BeforeExtName,
            (State::ExtName | State::AfterExtName, b'=') => State::BeforeExtValue,
            (State::BeforeExtName | State::ExtName, _) if ascii::is(byte, TOKEN) => State::ExtName,
            (State::BeforeExtValue, b'"') => State::Quoted,
            (State::BeforeExtValue | State::ExtToken, _) if ascii::is(byte, TOKEN) => State::ExtToken,
            (State::Quoted, b'"') => State::AfterQuoted,
            (State::Quoted, b'\\') => State::QuotedPair,
            (State::Quoted | State::QuotedPair, _) if ascii::is(byte, ascii::TEXT) => State::Quoted,
            (_, b'\n') => return Err(BadChunk::LineEnd),
            _ => return Err(BadChunk::Extension),
        };
        if self.extension_bytes >= self.limits.extension_bytes {
            return Err(BadChunk::ExtensionTooLong);
        }
        self.extension_bytes += 1;
        Ok(next)
    }

    /// Takes from `rest` up to the end of the current trailer line; gives how much.
    fn trailer_line(&mut self, rest: &[u8]) -> Result<usize, BadChunk> {
        let line_end = rest.iter().position(|&byte| byte == b'\n');
        let len = line_end.map_or(rest.len(), |at| at + 1);
        let allowed = usize::from(self.limits.trailer_bytes - self.trailer_bytes);
        if len > allowed {
            return Err(BadChunk::TrailersTooLong);
        }
        self.trailer_bytes += len as u16;
        self.line.extend_from_slice(rest.get(..len).unwrap_or_default());
        if line_end.is_some() {
            match field::line::<false>(&self.line, 0).map_err(BadChunk::Trailer)? {
                Line::Empty(_) => self.state = State::Done,
                Line::Field(field, _) => self.keep(field),
                // A line feed always decides a line; were this ever reached, the line is not one.
                Line::Unfinished => return Err(BadChunk::LineEnd),
            }
            self.line.clear();
        }
        Ok(len)
    }

    /// Keeps a trailer field for the other side, unless its name is one the balancer knows: it knows a name because it
    /// frames, routes, authenticates, sets conditions or describes the content, and nothing of that may come after the
    /// content (RFC 9110 §6.5.1).
    fn keep(&mut self, field: Field) {
        if field.is_ambiguous() || field.known() != Name::Other {
            return;
        }
        for piece in [field.name(&self.line), b": ", field.value(&self.line), b"\r\n"] {
            self.trailers.extend_from_slice(piece);
        }
    }
}

/// The line before a chunk's data, formatted on the stack.
#[derive(Debug, Clone, Copy)]
pub struct ChunkHeader {
    bytes: [u8; 18],
    start: u8,
}

impl ChunkHeader {
    /// The header of a chunk of `len` bytes, `None` for 0: an empty chunk would end the message.
    pub fn new(len: usize) -> Option<ChunkHeader> {
        if len == 0 {
            return None;
        }
        let mut bytes = [0; 18];
        bytes[16] = b'\r';
        bytes[17] = b'\n';
        let digits = (usize::BITS - len.leading_zeros()).div_ceil(4) as usize;
        let mut value = len;
        for slot in bytes.iter_mut().take(16).rev().take(digits) {
            *slot = b"0123456789abcdef"[value & 0xf];
            value >>= 4;
        }
        Some(ChunkHeader { bytes, start: (16 - digits) as u8 })
    }

    /// The line.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(usize::from(self.start)..).unwrap_or_default()
    }
}

/// Appends `data` as one chunk; nothing if there is none.
pub fn write_chunk(data: &[u8], out: &mut Vec<u8>) {
    if let Some(header) = ChunkHeader::new(data.len()) {
        out.reserve(data.len() + 20);
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(data);
        out.extend_from_slice(CHUNK_END);
    }
}

/// Appends the last chunk with `trailers`, complete lines as [`Decoder::trailers`] gives them.
pub fn write_end(trailers: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    out.extend_from_slice(trailers);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Data, trailers, bytes taken and whether that was all.
    type Decoded = (Vec<u8>, Vec<u8>, usize, bool);

    /// Decodes `input`, arriving in pieces of `step`.
    fn decode(input: &[u8], step: usize, limits: Limits) -> Result<Decoded, BadChunk> {
        let mut decoder = Decoder::new(limits);
        let (mut data, mut taken) = (Vec::new(), 0);
        for piece in input.chunks(step) {
            let mut rest = piece;
            while !rest.is_empty() && !decoder.is_done() {
                let progress = decoder.advance(rest)?;
                assert_eq!(progress.done, decoder.is_done());
                data.extend_from_slice(progress.data(rest));
                taken += progress.consumed;
                rest = &rest[progress.consumed..];
            }
        }
        Ok((data, decoder.trailers().to_vec(), taken, decoder.is_done()))
    }

    fn all_steps(input: &[u8]) -> Result<Decoded, BadChunk> {
        let whole = decode(input, input.len().max(1), Limits::default());
        for step in 1..input.len() {
            assert_eq!(decode(input, step, Limits::default()), whole, "in pieces of {step}");
        }
        whole
    }

    #[test]
    fn decodes_what_the_grammar_allows() {
        for (text, data) in [
            ("0\r\n\r\n", ""),
            ("5\r\nhello\r\n0\r\n\r\n", "hello"),
            ("5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", "hello world"),
            ("A\r\n0123456789\r\n00\r\n\r\n", "0123456789"),
            ("0000000000000001\r\nx\r\n0\r\n\r\n", "x"),
            ("1;a\r\nx\r\n0;b=c\r\n\r\n", "x"),
            ("1 ; a = \"q \\\" ;\t\\\\\" ;b;c=d\r\nx\r\n0\r\n\r\n", "x"),
            ("1;a=\"\"\r\nx\r\n0\r\n\r\n", "x"),
            ("2\r\n\r\n\r\n0\r\n\r\n", "\r\n"),
        ] {
            let expected = (data.as_bytes().to_vec(), Vec::new(), text.len(), true);
            assert_eq!(all_steps(text.as_bytes()), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn does_not_read_into_the_next_message() {
        let (data, _, taken, done) = all_steps(b"1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\n").unwrap();
        assert_eq!((data.as_slice(), taken, done), (&b"x"[..], 11, true));
    }

    #[test]
    fn refuses_bad_sizes() {
        for size in [
            "",
            "g",
            "0x5",
            "-1",
            "+5",
            " 5",
            "\t5",
            "5g",
            "5,5",
            "5.0",
            "_5",
            "5_",
            "\u{664}",
            "ffffffffffffffff0",
            "00000000000000005",
            "\r\n5",
            "5\0",
            "\"5\"",
            "5h",
            ";a",
        ] {
            assert_eq!(all_steps(format!("{size}\r\nhello\r\n0\r\n\r\n").as_bytes()), Err(BadChunk::Size), "{size:?}");
        }
    }

    #[test]
    fn accepts_the_largest_chunk_size() {
        let (data, _, _, done) = all_steps(b"ffffffffffffffff\r\nabc").unwrap();
        assert_eq!((data.as_slice(), done), (&b"abc"[..], false));
    }

    #[test]
    fn refuses_bad_extensions() {
        for ext in [
            ";",
            "; ",
            " ",
            "\t",
            ";;a",
            ";=b",
            ";a=",
            ";a b",
            ";a=b c",
            ";a=\"b\"c",
            ";a=b=c",
            ";a\0",
            ";a=\"\x01\"",
            ";a=\"\x7f\"",
            ";a=(",
            " a",
            ";a ",
            ";a=b ",
        ] {
            let text = format!("5{ext}\r\nhello\r\n0\r\n\r\n");
            assert_eq!(all_steps(text.as_bytes()), Err(BadChunk::Extension), "{ext:?}");
        }
    }

    #[test]
    fn refuses_bare_line_breaks() {
        for (text, cause) in [
            ("5\nhello\r\n0\r\n\r\n", BadChunk::LineEnd),
            ("5\rhello\r\n0\r\n\r\n", BadChunk::LineEnd),
            ("5;a\nhello\r\n0\r\n\r\n", BadChunk::LineEnd),
            ("5;a=\"\n\"\r\nhello\r\n0\r\n\r\n", BadChunk::LineEnd),
            ("5;a=\"\r\n\"\r\nhello\r\n0\r\n\r\n", BadChunk::Extension),
            ("5\r\nhello\n0\r\n\r\n", BadChunk::DataEnd),
            ("5\r\nhello\r0\r\n\r\n", BadChunk::DataEnd),
            ("5\r\nhello0\r\n\r\n", BadChunk::DataEnd),
            ("4\r\nhello\r\n0\r\n\r\n", BadChunk::DataEnd),
            ("0\n\n", BadChunk::LineEnd),
            ("0\r\n\n", BadChunk::Trailer(BadField::BareLf)),
            ("0\r\nA: b\n\r\n", BadChunk::Trailer(BadField::BareLf)),
            ("0\r\n\rA: b\r\n\r\n", BadChunk::Trailer(BadField::BareCr)),
        ] {
            assert_eq!(all_steps(text.as_bytes()), Err(cause), "{text:?}");
        }
    }

    #[test]
    fn keeps_trailers_but_drops_forbidden_ones() {
        let text = "0\r\nX-Sum:  abc \r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: x\r\n\
                    Authorization: y\r\nX_Sum: z\r\nSet-Cookie: a=b\r\ngrpc-status: 0\r\n\r\n";
        let (_, trailers, taken, done) = all_steps(text.as_bytes()).unwrap();
        assert_eq!(trailers, b"X-Sum: abc\r\ngrpc-status: 0\r\n");
        assert_eq!((taken, done), (text.len(), true));
    }

    #[test]
    fn refuses_bad_trailers_as_it_does_fields() {
        for (line, cause) in [
            ("A : b", BadField::SpaceBeforeColon),
            (" A: b", BadField::Folded),
            ("A", BadField::NoColon),
            ("A: \0", BadField::Nul),
            (": b", BadField::EmptyName),
        ] {
            let text = format!("0\r\n{line}\r\n\r\n");
            assert_eq!(all_steps(text.as_bytes()), Err(BadChunk::Trailer(cause)), "{line:?}");
        }
    }

    #[test]
    fn bounds_bytes_that_are_not_data() {
        let limits = Limits::new(6, 12);
        for step in 1..40 {
            assert!(decode(b"1;ab\r\nx\r\n1;ab\r\nx\r\n0\r\nA: 34567\r\n\r\n", step, limits).is_ok());
            let long_ext = decode(b"1;ab\r\nx\r\n1;abc\r\nx\r\n0\r\n\r\n", step, limits);
            assert_eq!(long_ext, Err(BadChunk::ExtensionTooLong));
            let each = limits.per_chunk();
            assert!(decode(b"1;abcde\r\nx\r\n1;abcde\r\nx\r\n0;abcde\r\n\r\n", step, each).is_ok());
            assert_eq!(decode(b"1;ab\r\nx\r\n1;abcdef\r\nx\r\n", step, each), Err(BadChunk::ExtensionTooLong));
            let long_trailers = decode(b"0\r\nA: b\r\nA: b\r\n\r\n", step, limits);
            assert_eq!(long_trailers, Err(BadChunk::TrailersTooLong));
        }
    }

    #[test]
    fn stays_failed_after_an_error() {
        let mut decoder = Decoder::new(Limits::default());
        assert_eq!(decoder.advance(b"x"), Err(BadChunk::Size));
        assert_eq!(decoder.advance(b"5\r\nhello"), Err(BadChunk::Size));
        assert!(!decoder.is_done());
    }

    #[test]
    fn what_is_written_reads_back() {
        let mut out = Vec::new();
        for data in [&b"hello"[..], b"", &[b'x'; 4096]] {
            write_chunk(data, &mut out);
        }
        write_end(b"A: b\r\n", &mut out);
        let (data, trailers, taken, done) = decode(&out, 7, Limits::default()).unwrap();
        assert_eq!((data.len(), trailers.as_slice(), taken, done), (4101, &b"A: b\r\n"[..], out.len(), true));
    }

    #[test]
    fn headers_are_plain_hexadecimal() {
        for len in [1, 9, 10, 15, 16, 255, 256, 0xabc_def, usize::MAX] {
            let header = ChunkHeader::new(len).unwrap();
            assert_eq!(header.as_bytes(), format!("{len:x}\r\n").as_bytes());
        }
        assert!(ChunkHeader::new(0).is_none());
    }
}
