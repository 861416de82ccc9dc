//! The content of a request: one store that several cursors read independently, such as the current attempt and a
//! retry. The store parses what the client sends once, and keeps it in the read buffer, behind the head. Bytes that
//! every cursor has passed are dropped once there are more than a retry may send again.

use std::ops::Range;
use std::time::Duration;

use super::h1::body::BodyReader;
use super::h1::chunked::{self, BadChunk, write_chunk, write_end};
use super::pace::Pace;
use crate::failure::Failure;
use crate::message::framing::Framing;

/// Pieces smaller than this are copied behind what precedes them, which is cheaper than a vectored write.
const MIN_VECTORED_BYTES: usize = 4096;
pub(super) const CHUNK_LIMITS: chunked::Limits = chunked::Limits::new(4096, 8192);

pub(super) struct Content {
    framing: Framing,
    /// How far the client's bytes have been parsed.
    reader: BodyReader,
    /// Where the content lies in the buffer. The bytes behind it are not parsed yet, or belong to the next request.
    start: usize,
    end: usize,
    /// How many bytes of the content have been dropped from its beginning.
    dropped: u64,
    /// `None`: no limit.
    max_bytes: Option<u64>,
    /// How many bytes may be kept for a retry.
    keep: usize,
    /// Why the content is malformed.
    pub fault: Option<BadChunk>,
    /// Whether the client was sent a 100 response. It gets only one.
    pub has_continued: bool,
    /// The rate at which the client sends the content. Counts while other parties are waited for, too.
    pub pace: Pace,
}

/// How far one reader has read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    /// Offset in the content.
    at: u64,
    /// Whether the end of chunked content has been read, too.
    has_end: bool,
}

impl Content {
    /// Content behind a head that ends at `start`.
    pub(super) fn new(framing: Framing, start: usize, max_bytes: Option<u64>, keep: usize, pace: Pace) -> Self {
        let reader = BodyReader::new(framing, CHUNK_LIMITS);
        Self {
            framing,
            reader,
            start,
            end: start,
            dropped: 0,
            max_bytes,
            keep,
            fault: None,
            has_continued: false,
            pace,
        }
    }

    /// Content of a request that nobody reads.
    pub(super) fn none() -> Self {
        Self::new(Framing::None, 0, None, 0, Pace::new(None, Duration::ZERO, None))
    }

    /// Applies other limits from here on. Content that is buffered already stays, even beyond them.
    pub(super) fn limit(&mut self, max_bytes: Option<u64>, keep: usize) {
        (self.max_bytes, self.keep) = (max_bytes, keep.max(self.end - self.start));
    }

    pub(super) fn is_chunked(&self) -> bool {
        self.framing == Framing::Chunked
    }

    /// Whether the last byte of the content has been received and parsed.
    pub(super) fn is_done(&self) -> bool {
        self.reader.is_done()
    }

    /// Whether everything received so far can still be read from the beginning.
    pub(super) fn is_at_hand(&self) -> bool {
        self.dropped == 0 && self.end - self.start <= self.keep
    }

    /// Whether the beginning is still buffered, for a new cursor.
    pub(super) fn has_beginning(&self) -> bool {
        self.dropped == 0
    }

    /// Whether nothing of the content has been parsed yet.
    pub(super) fn is_untouched(&self) -> bool {
        self.received() == 0
    }

    /// The offset of the next request in the buffer, once this one is done.
    pub(super) fn end(&self) -> usize {
        self.end
    }

    /// How many bytes the client still has to send beyond those in `buffer`; `None` if the length is not declared.
    pub(super) fn bytes_left(&self, buffer: &[u8]) -> Option<u64> {
        match self.reader {
            BodyReader::Done => Some(0),
            BodyReader::Length(left) => Some(left.saturating_sub(buffer.len().saturating_sub(self.end) as u64)),
            _ if self.is_done() => Some(0),
            _ => None,
        }
    }

    fn received(&self) -> u64 {
        self.dropped + (self.end - self.start) as u64
    }

    /// Parses what has arrived in `buffer`. Chunks are joined in place.
    pub(super) fn take_in(&mut self, buffer: &mut Vec<u8>) -> Result<(), Failure> {
        let before = self.received();
        let mut at = self.end;
        while at < buffer.len() && !self.is_done() {
            let progress = self.reader.advance(&buffer[at..]).map_err(|bad| {
                self.fault = Some(bad);
                Failure::RequestMalformed
            })?;
            let data = at + progress.data_start..at + progress.data_end;
            let count = data.len();
            if data.start != self.end {
                buffer.copy_within(data, self.end);
            }
            self.end += count;
            at += progress.consumed;
        }
        buffer.drain(self.end..at);
        let received = self.received();
        self.pace.moved(received - before, Duration::ZERO);
        let known = received.saturating_add(self.reader.left_of_chunk());
        if self.max_bytes.is_some_and(|max| known > max) { Err(Failure::BodyTooLarge) } else { Ok(()) }
    }

    /// The part of the buffer that `cursor` still has to read.
    pub(super) fn unread(&self, cursor: Cursor) -> Range<usize> {
        let at = cursor.at.saturating_sub(self.dropped);
        let at = usize::try_from(at).map_or(self.end, |at| (self.start + at).min(self.end));
        at..self.end
    }

    /// Whether `cursor` has read everything, the end included.
    pub(super) fn is_read(&self, cursor: Cursor) -> bool {
        let needs_end = self.framing == Framing::Chunked;
        self.is_done() && cursor.at == self.received() && (cursor.has_end || !needs_end)
    }

    /// Advances `cursor` to the end of what has been received, and appends that to `out` in the framing for the
    /// backend. Large plain content stays in the buffer, to be written from there.
    pub(super) fn read(&self, cursor: &mut Cursor, buffer: &[u8], out: &mut Vec<u8>) {
        let unread = self.unread(*cursor);
        if self.framing != Framing::Chunked {
            if unread.len() < MIN_VECTORED_BYTES {
                cursor.pass(unread.len());
                out.extend_from_slice(&buffer[unread]);
            }
            return;
        }
        if !unread.is_empty() {
            cursor.pass(unread.len());
            write_chunk(&buffer[unread], out);
        }
        if self.is_done() && !std::mem::replace(&mut cursor.has_end, true) {
            write_end(self.reader.trailers(), out);
        }
    }

    /// Drops bytes that all `cursors` have passed, if there are more than may be kept for a retry.
    pub(super) fn forget(&mut self, cursors: &[Cursor], buffer: &mut Vec<u8>) {
        if self.end - self.start <= self.keep && self.dropped == 0 {
            return;
        }
        let passed = cursors.iter().map(|cursor| self.unread(*cursor).start).min().unwrap_or(self.start);
        buffer.drain(self.start..passed);
        self.dropped += (passed - self.start) as u64;
        self.end -= passed - self.start;
    }
}

impl Cursor {
    /// Advances by `count` bytes, which were written from the buffer.
    pub(super) fn pass(&mut self, count: usize) {
        self.at += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"POST / HTTP/1.1\r\n\r\n";
    const CHUNKED: &[u8] = b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nX-End: yes\r\n\r\n";

    fn content(framing: Framing, keep: usize) -> Content {
        Content::new(framing, HEAD.len(), Some(100_000), keep, Pace::new(None, Duration::ZERO, None))
    }

    /// Reads with `cursor` what is available, in the framing for the backend.
    fn read(content: &Content, cursor: &mut Cursor, buffer: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        content.read(cursor, buffer, &mut out);
        let in_place = content.unread(*cursor);
        cursor.pass(in_place.len());
        out.extend_from_slice(&buffer[in_place]);
        out
    }

    #[test]
    fn cursors_read_the_same_bytes_independently() {
        for (framing, sent, expected) in [
            (Framing::Chunked, CHUNKED, &b"7\r\nabcdefg\r\n0\r\nX-End: yes\r\n\r\n"[..]),
            (Framing::Length(7), b"abcdefg", b"abcdefg"),
        ] {
            for step in [1, 2, 5, sent.len()] {
                let mut content = content(framing, 100);
                let mut buffer = HEAD.to_vec();
                let (mut attempt, mut mirror) = (Cursor::default(), Cursor::default());
                let mut attempted = Vec::new();
                for piece in sent.chunks(step) {
                    buffer.extend_from_slice(piece);
                    content.take_in(&mut buffer).expect("sound");
                    attempted.extend(read(&content, &mut attempt, &buffer));
                }
                buffer.extend_from_slice(b"GET");
                content.take_in(&mut buffer).expect("sound");
                assert!(content.is_read(attempt) && !content.is_read(mirror) && content.is_at_hand());
                let data = |bytes: &[u8]| bytes.iter().filter(|byte| byte.is_ascii_lowercase()).count();
                assert_eq!(data(&attempted), data(expected), "{framing:?} by {step}");
                assert_eq!(read(&content, &mut mirror, &buffer), expected, "{framing:?} by {step}");
                let mut again = Cursor::default();
                assert_eq!(read(&content, &mut again, &buffer), expected, "a retry");
                assert!(content.is_read(mirror) && content.is_read(again));
                assert_eq!(&buffer[content.end()..], b"GET", "the next request stays");
            }
        }
    }

    #[test]
    fn bytes_are_dropped_once_every_cursor_passed_them_beyond_the_replay_limit() {
        let mut content = content(Framing::Length(20_000), 10_000);
        let mut buffer = HEAD.to_vec();
        let (mut fast, mut slow) = (Cursor::default(), Cursor::default());
        buffer.extend_from_slice(&[b'a'; 10_000]);
        content.take_in(&mut buffer).expect("sound");
        assert_eq!(read(&content, &mut fast, &buffer).len(), 10_000);
        content.forget(&[fast], &mut buffer);
        assert!(content.is_at_hand(), "no more than may be kept");
        buffer.extend_from_slice(&[b'b'; 10_000]);
        content.take_in(&mut buffer).expect("sound");
        assert!(!content.is_at_hand());
        assert_eq!(read(&content, &mut fast, &buffer), [b'b'; 10_000]);
        slow.pass(4000);
        content.forget(&[fast, slow], &mut buffer);
        assert_eq!(buffer.len(), HEAD.len() + 16_000);
        assert_eq!(read(&content, &mut slow, &buffer), [&[b'a'; 6000][..], &[b'b'; 10_000]].concat());
        content.forget(&[fast, slow], &mut buffer);
        assert_eq!((buffer.as_slice(), content.end()), (HEAD, HEAD.len()));
        assert!(content.is_done() && content.is_read(fast) && content.is_read(slow));
    }

    #[test]
    fn a_new_cursor_fails_once_the_beginning_is_dropped() {
        let mut content = content(Framing::Length(7), 0);
        let mut buffer = [HEAD, b"abcdefg"].concat();
        content.take_in(&mut buffer).expect("sound");
        let mut cursor = Cursor::default();
        read(&content, &mut cursor, &buffer);
        content.forget(&[cursor], &mut buffer);
        assert!(content.is_read(cursor) && !content.is_read(Cursor::default()) && !content.has_beginning());
    }

    #[test]
    fn buffered_content_stays_when_limits_change() {
        let mut content = content(Framing::Length(9), 100);
        let mut buffer = [HEAD, b"abcdefg"].concat();
        content.take_in(&mut buffer).expect("sound");
        content.limit(Some(8), 0);
        assert!(content.is_at_hand());
        buffer.extend_from_slice(b"hi");
        assert_eq!(content.take_in(&mut buffer), Err(Failure::BodyTooLarge));
    }

    #[test]
    fn too_large_or_malformed_content_is_refused() {
        let mut large = content(Framing::Length(200_000), 10);
        let mut buffer = [HEAD, &[b'x'; 100_001]].concat();
        assert_eq!(large.take_in(&mut buffer), Err(Failure::BodyTooLarge));
        // Its bytes were waited for.
        for (size, outcome) in [(&b"186a0\r\n"[..], Ok(())), (b"186a1\r\n", Err(Failure::BodyTooLarge))] {
            assert_eq!(content(Framing::Chunked, 10).take_in(&mut [HEAD, size].concat()), outcome);
        }
        let mut buffer = [HEAD, b"no size"].concat();
        assert_eq!(content(Framing::Chunked, 10).take_in(&mut buffer), Err(Failure::RequestMalformed));
    }

    #[test]
    fn the_rest_is_known_where_a_length_is_declared() {
        let buffer = [HEAD, b"abc"].concat();
        assert_eq!(content(Framing::Length(7), 10).bytes_left(&buffer), Some(4));
        assert_eq!(content(Framing::Chunked, 10).bytes_left(&buffer), None);
        assert_eq!(content(Framing::None, 10).bytes_left(&buffer), Some(0));
    }
}
