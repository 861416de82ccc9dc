//! The content of a response: parsed in the backend's framing, written in the client's.

use super::content::CHUNK_LIMITS;
use super::h1::body::BodyReader;
use super::h1::chunked::{self, write_chunk, write_end};
use super::h1::reject::Reject;
use super::h1::response::BadResponse;
use crate::exchange::refusal::Refusal;
use crate::failure::Detail;
use crate::message::framing::Framing;
use crate::message::limits::Limits;

/// Backends may sign each chunk with an extension, and a recipient must ignore extensions that it does not know (RFC
/// 9112 §7.1.1).
const LIMITS: chunked::Limits = CHUNK_LIMITS.per_chunk();

/// The content of a response.
pub(super) struct ResponseBody {
    reader: BodyReader,
    framing: Framing,
    /// Bytes of content passed on to the client.
    pub sent: u64,
}

impl ResponseBody {
    /// Converts content from one framing to another.
    pub(super) fn new(from: Framing, to: Framing) -> Self {
        Self { reader: BodyReader::new(from, LIMITS), framing: to, sent: 0 }
    }

    pub(super) fn is_done(&self) -> bool {
        self.reader.is_done()
    }

    /// Whether content with this framing may begin with these bytes.
    pub(super) fn begins_well(framing: Framing, bytes: &[u8]) -> bool {
        let mut reader = match framing {
            Framing::Chunked => BodyReader::new(framing, LIMITS),
            _ => return true,
        };
        let mut at = 0;
        while at < bytes.len() && !reader.is_done() {
            let Ok(progress) = reader.advance(&bytes[at..]) else { return false };
            at += progress.consumed;
        }
        true
    }

    /// Whether the bytes are passed on unchanged, so that they need not be copied.
    pub(super) fn is_plain(&self) -> bool {
        !matches!(self.framing, Framing::Chunked) && !matches!(self.reader, BodyReader::Chunked(_))
    }

    /// Whether only the end of the connection tells the client that the content is complete.
    pub(super) fn is_until_close(&self) -> bool {
        self.framing == Framing::UntilClose
    }

    /// Appends the content in `input` to `out`, with small chunks joined. Returns how much of the input belonged to
    /// this response. The input is overwritten: its content may be moved within it.
    pub(super) fn take(&mut self, input: &mut [u8], out: &mut Vec<u8>) -> Result<usize, BadResponse> {
        let (mut at, mut content) = (0, 0..0);
        let mut failed = None;
        while at < input.len() && !self.is_done() {
            let progress = match self.reader.advance(&input[at..]) {
                Ok(progress) => progress,
                Err(e) => {
                    failed = Some(e.into());
                    break;
                }
            };
            let data = at + progress.data_start..at + progress.data_end;
            at += progress.consumed;
            if content.is_empty() {
                content = data;
            } else if !data.is_empty() {
                let end = content.end + data.len();
                input.copy_within(data, content.end);
                content.end = end;
            }
        }
        self.sent += content.len() as u64;
        append(self.framing, &input[content], out);
        if let Some(failed) = failed {
            return Err(failed);
        }
        if self.is_done() && self.framing == Framing::Chunked {
            write_end(self.reader.trailers(), out);
        }
        Ok(at)
    }

    /// How many bytes are still to come, if that is known and they are passed on unchanged.
    pub(super) fn plain_bytes_left(&self) -> Option<u64> {
        match self.reader {
            BodyReader::Length(left) if self.is_plain() => Some(left),
            _ => None,
        }
    }

    /// Counts `count` bytes of plain content that were passed on without being read, by `splice`.
    pub(super) fn skip(&mut self, count: u64) {
        self.sent += count;
        match self.reader {
            BodyReader::Length(left) if left > count => self.reader = BodyReader::Length(left - count),
            _ => self.reader = BodyReader::Done,
        }
    }

    /// Like [`Self::take`], for plain content that needs no copy.
    pub(super) fn pass(&mut self, content: &[u8]) -> Result<usize, BadResponse> {
        let progress = self.reader.advance(content)?;
        self.sent += progress.consumed as u64;
        Ok(progress.consumed)
    }

    /// The backend closed its side. That ends content delimited by the close, and truncates any other.
    pub(super) fn end_of_input(&mut self, out: &mut Vec<u8>) -> Result<(), BadResponse> {
        self.reader.end_of_input().map_err(|_| BadResponse::Truncated)?;
        if self.framing == Framing::Chunked {
            write_end(&[], out);
        }
        Ok(())
    }
}

fn append(framing: Framing, data: &[u8], out: &mut Vec<u8>) {
    match framing {
        // An empty chunk would end the content.
        Framing::Chunked if data.is_empty() => {}
        Framing::Chunked => write_chunk(data, out),
        _ => out.extend_from_slice(data),
    }
}

/// The details of an error of the parser, with the limit of the listener if it is one.
pub(super) fn detail(reject: Reject, limits: &Limits) -> Detail {
    let limit = |setting, limit| Detail::Limit { setting, limit, value: None };
    match reject {
        Reject::RequestLineTooLong => limit("[[listener]] max_request_line_bytes", limits.line_bytes),
        Reject::HeadTooLarge => limit("[[listener]] max_head_bytes", limits.head_bytes()),
        Reject::TooManyFields => limit("[[listener]] max_fields", limits.fields()),
        _ => Detail::Reason(reject.reason()),
    }
}

/// The refusal for an error of the parser.
pub(super) fn refusal(reject: Reject) -> Refusal {
    match reject.status() {
        405 => Refusal::Method,
        414 => Refusal::TargetTooLong,
        417 => Refusal::Expectation,
        431 => Refusal::FieldsTooLarge,
        501 => Refusal::NotImplemented,
        505 => Refusal::Version,
        _ => Refusal::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_chunks_leave_as_one() {
        let sent = b"1;x=y\r\na\r\n3\r\nbcd\r\n2\r\nef\r\n0\r\nX-End: yes\r\n\r\nHTTP";
        let whole = b"6\r\nabcdef\r\n0\r\nX-End: yes\r\n\r\n";
        for (framing, expected) in [(Framing::Chunked, &whole[..]), (Framing::UntilClose, b"abcdef")] {
            let (mut body, mut out) = (ResponseBody::new(Framing::Chunked, framing), b"head".to_vec());
            assert_eq!(body.take(&mut sent.to_vec(), &mut out), Ok(sent.len() - 4), "{framing:?}");
            assert_eq!(out.strip_prefix(b"head"), Some(expected), "{framing:?}");
            assert_eq!((body.sent, body.is_done()), (6, true), "{framing:?}");
        }
        for step in 1..sent.len() {
            let (mut body, mut out) = (ResponseBody::new(Framing::Chunked, Framing::UntilClose), Vec::new());
            for piece in sent.chunks(step) {
                body.take(&mut piece.to_vec(), &mut out).expect("valid");
            }
            assert_eq!(out, b"abcdef", "by {step}");
        }
    }

    #[test]
    fn bytes_before_an_error_are_passed_on() {
        let (mut body, mut out) = (ResponseBody::new(Framing::Chunked, Framing::Chunked), Vec::new());
        assert!(body.take(&mut b"1\r\na\r\n1\r\nb\r\nno size\r\n".to_vec(), &mut out).is_err());
        assert_eq!(out, b"2\r\nab\r\n");
    }
}
