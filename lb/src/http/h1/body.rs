//! Content: one reader for all the ways in which it may be delimited (RFC 9112 §6).

use super::chunked::{self, BadChunk};
use crate::message::framing::Framing;

/// The result of one call: how it divides its input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Where content begins in the input.
    pub data_start: usize,
    /// Where it ends; equal to `data_start` if there was none.
    pub data_end: usize,
    /// How much of the input is dealt with. The rest is for the next call, or, once done, for the next message.
    pub consumed: usize,
    /// The content is complete.
    pub done: bool,
}

impl Progress {
    /// The content in `input`, the bytes this progress was made on.
    pub fn data<'a>(&self, input: &'a [u8]) -> &'a [u8] {
        input.get(self.data_start..self.data_end).unwrap_or_default()
    }

    fn plain(len: usize, done: bool) -> Progress {
        Progress { data_start: 0, data_end: len, consumed: len, done }
    }
}

/// The peer closed before the content was complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncated;

/// Reads the content of one message, however it is delimited.
#[derive(Debug, Clone, Default)]
pub enum BodyReader {
    /// Nothing, or nothing more.
    #[default]
    Done,
    /// So many bytes are still to come; never 0.
    Length(u64),
    /// Chunks. The decoder is large, and moved with whatever holds it.
    Chunked(Box<chunked::Decoder>),
    /// Everything up to the end of the connection.
    UntilClose,
}

impl BodyReader {
    /// A reader for content framed so.
    pub fn new(framing: Framing, limits: chunked::Limits) -> BodyReader {
        match framing {
            Framing::None | Framing::Length(0) => BodyReader::Done,
            Framing::Length(length) => BodyReader::Length(length),
            Framing::Chunked => BodyReader::Chunked(Box::new(chunked::Decoder::new(limits))),
            Framing::UntilClose => BodyReader::UntilClose,
        }
    }

    /// Reads on. Each call finds at most one piece of content; call again while input is left and it is not done.
    #[inline]
    pub fn advance(&mut self, input: &[u8]) -> Result<Progress, BadChunk> {
        match self {
            BodyReader::Done => Ok(Progress::plain(0, true)),
            BodyReader::Length(left) => {
                let len = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= len as u64;
                let done = *left == 0;
                if done {
                    *self = BodyReader::Done;
                }
                Ok(Progress::plain(len, done))
            }
            BodyReader::Chunked(decoder) => decoder.advance(input),
            BodyReader::UntilClose => Ok(Progress::plain(input.len(), false)),
        }
    }

    /// How many bytes of a chunk that has begun are still to come.
    pub fn left_of_chunk(&self) -> u64 {
        if let BodyReader::Chunked(decoder) = self { decoder.left_of_chunk() } else { 0 }
    }

    /// Whether the content is complete.
    pub fn is_done(&self) -> bool {
        match self {
            BodyReader::Done => true,
            BodyReader::Chunked(decoder) => decoder.is_done(),
            BodyReader::Length(_) | BodyReader::UntilClose => false,
        }
    }

    /// The peer has closed: whether that completes the content or cuts it short (RFC 9112 §8).
    pub fn end_of_input(&mut self) -> Result<(), Truncated> {
        if let BodyReader::UntilClose = self {
            *self = BodyReader::Done;
        }
        if self.is_done() { Ok(()) } else { Err(Truncated) }
    }

    /// The trailer fields, once done, as complete lines: see [`chunked::Decoder::trailers`].
    pub fn trailers(&self) -> &[u8] {
        match self {
            BodyReader::Chunked(decoder) => decoder.trailers(),
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(framing: Framing) -> BodyReader {
        BodyReader::new(framing, chunked::Limits::default())
    }

    #[test]
    fn a_body_of_known_length_takes_exactly_its_bytes() {
        let mut body = reader(Framing::Length(5));
        assert_eq!(body.advance(b"he"), Ok(Progress::plain(2, false)));
        assert!(!body.is_done());
        assert_eq!(body.clone().end_of_input(), Err(Truncated));
        let progress = body.advance(b"lloGET").unwrap();
        assert_eq!((progress.data(b"lloGET"), progress.consumed, progress.done), (&b"llo"[..], 3, true));
        assert_eq!(body.advance(b"GET"), Ok(Progress::plain(0, true)));
        assert_eq!(body.end_of_input(), Ok(()));
    }

    #[test]
    fn no_content_is_done_at_once() {
        assert!(reader(Framing::None).is_done());
        assert!(reader(Framing::Length(0)).is_done());
    }

    #[test]
    fn a_body_delimited_by_close_ends_only_with_the_connection() {
        let mut body = reader(Framing::UntilClose);
        assert_eq!(body.advance(b"abc"), Ok(Progress::plain(3, false)));
        assert_eq!(body.end_of_input(), Ok(()));
        assert!(body.is_done());
    }

    #[test]
    fn incomplete_chunks_are_truncation() {
        let mut body = reader(Framing::Chunked);
        body.advance(b"5\r\nhel").unwrap();
        assert_eq!(body.end_of_input(), Err(Truncated));
    }
}
