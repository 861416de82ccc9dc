//! Content on its way from one side to the other: understood as it came, framed anew.

use std::ops::Range;
use std::time::Duration;

use super::pace::Pace;
use crate::exchange::refusal::Refusal;
use crate::failure::Failure;
use crate::http::h1::body::BodyReader;
use crate::http::h1::chunked::{self, write_chunk, write_end};
use crate::http::h1::reject::Reject;
use crate::http::h1::response::BadResponse;
use crate::message::framing::Framing;

const LEAST_IN_PLACE_BYTES: usize = 4096;
const CHUNK_LIMITS: chunked::Limits = chunked::Limits::new(4096, 8192);

/// A request's content, read from the buffer behind the head. The bytes stay there while the whole may have to be
/// sent again to another backend.
pub struct RequestBody {
    reader: BodyReader,
    framing: Framing,
    /// Where in the buffer the content begins, and how far it was read.
    start: usize,
    at: usize,
    received: u64,
    most: Option<u64>,
    /// How many bytes may stay in the buffer to be sent again.
    keep: usize,
    is_at_hand: bool,
    /// The client was sent a 100, which it gets once.
    pub has_continued: bool,
    /// How the client keeps up with sending it. What is taken counts by itself, whoever is waited for meanwhile.
    pub pace: Pace,
}

impl RequestBody {
    pub fn new(framing: Framing, start: usize, most: Option<u64>, keep: usize, pace: Pace) -> Self {
        let reader = BodyReader::new(framing, CHUNK_LIMITS);
        Self {
            reader,
            framing,
            start,
            at: start,
            received: 0,
            most,
            keep,
            is_at_hand: true,
            has_continued: false,
            pace,
        }
    }

    /// Of a request whose body nobody reads.
    pub fn none() -> Self {
        Self::new(Framing::None, 0, None, 0, Pace::new(None, None))
    }

    /// How many bytes of it the client has still to send beyond what is in `buffer`; `None`: its length is not told.
    pub fn bytes_left(&self, buffer: &[u8]) -> Option<u64> {
        match self.reader {
            BodyReader::Done => Some(0),
            BodyReader::Length(left) => Some(left.saturating_sub(buffer.len().saturating_sub(self.at) as u64)),
            _ if self.is_done() => Some(0),
            _ => None,
        }
    }

    /// Whether the last byte was read.
    pub fn is_done(&self) -> bool {
        self.reader.is_done()
    }

    /// Whether every byte that was read is still in the buffer.
    pub fn is_at_hand(&self) -> bool {
        self.is_at_hand
    }

    /// Whether nothing of it has come yet.
    pub fn is_untouched(&self) -> bool {
        self.is_at_hand && self.at == self.start
    }

    /// Where the next request begins in the buffer, once this one is done.
    pub fn end(&self) -> usize {
        self.at
    }

    /// How much is still to come of content that fits among what may be sent again, if its length is known.
    pub fn missing(&self, buffer: &[u8]) -> usize {
        self.kept_length().map_or(0, |length| (self.start + length).saturating_sub(buffer.len()))
    }

    /// The length of the content, if it is told and all of it may be sent again.
    fn kept_length(&self) -> Option<usize> {
        let Framing::Length(length) = self.framing else { return None };
        usize::try_from(length).ok().filter(|length| *length <= self.keep)
    }

    /// Begins again at the first byte, for another backend.
    pub fn rewind(&mut self) {
        self.reader = BodyReader::new(self.framing, CHUNK_LIMITS);
        self.at = self.start;
        self.received = 0;
    }

    /// Takes content that is whole in `buffer` and leaves as it came: where it lies, to be sent from there. Less than
    /// a few kilobytes are copied more cheaply.
    pub fn take_in_place(&mut self, buffer: &[u8]) -> Option<Range<usize>> {
        let length = self.kept_length().filter(|length| *length >= LEAST_IN_PLACE_BYTES)?;
        let end = self.start + length;
        if self.at != self.start || end > buffer.len() {
            return None;
        }
        self.reader = BodyReader::Done;
        self.received = length as u64;
        self.at = end;
        Some(self.start..end)
    }

    /// Reads what is in `buffer` and appends it to `out` as the backend is sent it.
    pub fn take(&mut self, buffer: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), Failure> {
        while self.at < buffer.len() && !self.is_done() {
            let input = &buffer[self.at..];
            let progress = self.reader.advance(input).map_err(|_| Failure::RequestMalformed)?;
            let data = progress.data(input);
            self.received += data.len() as u64;
            self.pace.moved(data.len() as u64, Duration::ZERO);
            if self.most.is_some_and(|most| self.received > most) {
                return Err(Failure::BodyTooLarge);
            }
            append(self.framing, data, out);
            self.at += progress.consumed;
            if progress.done && self.framing == Framing::Chunked {
                write_end(self.reader.trailers(), out);
            }
        }
        if self.at - self.start > self.keep {
            self.is_at_hand = false;
            buffer.drain(self.start..self.at);
            self.at = self.start;
        }
        Ok(())
    }
}

/// A response's content.
pub struct ResponseBody {
    reader: BodyReader,
    framing: Framing,
    /// Bytes of content passed on.
    pub sent: u64,
}

impl ResponseBody {
    /// Content that comes in one framing and leaves in another.
    pub fn new(from: Framing, to: Framing) -> Self {
        Self { reader: BodyReader::new(from, CHUNK_LIMITS), framing: to, sent: 0 }
    }

    pub fn is_done(&self) -> bool {
        self.reader.is_done()
    }

    /// Whether content that is framed so may begin with these bytes.
    pub fn begins_well(framing: Framing, bytes: &[u8]) -> bool {
        let mut reader = match framing {
            Framing::Chunked => BodyReader::new(framing, CHUNK_LIMITS),
            _ => return true,
        };
        let mut at = 0;
        while at < bytes.len() && !reader.is_done() {
            let Ok(progress) = reader.advance(&bytes[at..]) else { return false };
            at += progress.consumed;
        }
        true
    }

    /// Whether the bytes leave as they come, so that they need not be copied.
    pub fn is_plain(&self) -> bool {
        !matches!(self.framing, Framing::Chunked) && !matches!(self.reader, BodyReader::Chunked(_))
    }

    /// Appends the content in `input` to `out`; how much of the input belonged to this response.
    pub fn take(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, BadResponse> {
        let mut at = 0;
        while at < input.len() && !self.is_done() {
            let progress = self.reader.advance(&input[at..])?;
            let data = progress.data(&input[at..]);
            self.sent += data.len() as u64;
            append(self.framing, data, out);
            at += progress.consumed;
            if progress.done && self.framing == Framing::Chunked {
                write_end(self.reader.trailers(), out);
            }
        }
        Ok(at)
    }

    /// How much is still to come, where that is known and the bytes leave as they come.
    pub fn plain_bytes_left(&self) -> Option<u64> {
        match self.reader {
            BodyReader::Length(left) if self.is_plain() => Some(left),
            _ => None,
        }
    }

    /// So many bytes of plain content have been passed on without being looked at.
    pub fn skip(&mut self, count: u64) {
        self.sent += count;
        match self.reader {
            BodyReader::Length(left) if left > count => self.reader = BodyReader::Length(left - count),
            _ => self.reader = BodyReader::Done,
        }
    }

    /// Like [`Self::take`] for plain content that is in its place already.
    pub fn pass(&mut self, content: &[u8]) -> Result<usize, BadResponse> {
        let progress = self.reader.advance(content)?;
        self.sent += progress.consumed as u64;
        Ok(progress.consumed)
    }

    /// The backend closed its side: the regular end of some content, too early for other.
    pub fn end_of_input(&mut self, out: &mut Vec<u8>) -> Result<(), BadResponse> {
        self.reader.end_of_input().map_err(|_| BadResponse::Truncated)?;
        if self.framing == Framing::Chunked {
            write_end(&[], out);
        }
        Ok(())
    }
}

fn append(framing: Framing, data: &[u8], out: &mut Vec<u8>) {
    match framing {
        // An empty chunk would be the last one.
        Framing::Chunked if data.is_empty() => {}
        Framing::Chunked => write_chunk(data, out),
        _ => out.extend_from_slice(data),
    }
}

/// What the client is answered for what the parser refused.
pub fn refusal(reject: Reject) -> Refusal {
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
