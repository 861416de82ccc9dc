//! The buffers of a busy connection. A thread lends them when bytes have arrived and takes them back when the
//! connection is idle, so idle clients hold none.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use bytes::Bytes;

use crate::exchange::reply::Reply;
use crate::http::h1::head::RequestHead;
use crate::http::h1::response::ResponseHead;
use crate::message::Parsed;
use crate::message::limits::Limits;
use crate::value::variable::Variable;

/// How many buffers a thread keeps for reuse.
const MAX_SPARE: usize = 128;
/// Larger buffers are shrunk to this before they are kept.
const MAX_SPARE_CAPACITY: usize = 128 * 1024;
/// Limit on the memory of all buffers that a thread keeps.
const MAX_SPARE_BYTES: usize = 8 * 1024 * 1024;

#[derive(Default)]
pub(crate) struct Buffers {
    pub request: RequestHead,
    pub response: ResponseHead,
    /// Bytes from the client: the head and what follows it.
    pub from_client: Vec<u8>,
    pub from_backend: ResponseBuffer,
    pub to_backend: Vec<u8>,
    pub to_client: Vec<u8>,
    /// Values of generated fields.
    pub text: String,
    /// The decoded and normalised path, if it differs from the received one.
    pub path: Vec<u8>,
    /// Path and query after an internal redirect; empty without one.
    pub target: Vec<u8>,
    /// Response fields for the access log.
    pub noted: Vec<(Variable, Vec<u8>)>,
}

/// Bytes from the backend, with headroom in front: the rewritten head may be longer than the received one, and with
/// headroom the content does not have to be moved.
pub(crate) struct ResponseBuffer(Vec<u8>);

/// By how much a head may grow in place: enough for a request id and some fields.
const HEADROOM_BYTES: usize = 128;

#[derive(Default)]
struct Spare {
    #[expect(clippy::vec_box, reason = "a value moves between here and its borrower, and is large")]
    idle: Vec<Box<Buffers>>,
    /// Their size in memory.
    bytes: usize,
}

thread_local! {
    static SPARE: RefCell<Spare> = RefCell::default();
}

/// Drops the buffers that this thread keeps: their sizes depend on earlier runs of the simulation.
#[cfg(test)]
pub(crate) fn clear() {
    SPARE.take();
}

impl Buffers {
    pub(crate) fn take() -> Box<Self> {
        let spare = SPARE.with_borrow_mut(|spare| {
            let buffers = spare.idle.pop()?;
            spare.bytes -= buffers.bytes();
            Some(buffers)
        });
        spare.unwrap_or_default()
    }

    /// Stores the head of our own response in place of a backend's. Returns the content.
    pub(crate) fn take_reply(&mut self, reply: Reply) -> Bytes {
        // Replies are always sendable. If one were not, a 500 is sent instead.
        let content = self.put_reply(reply);
        content.or_else(|| self.put_reply(Reply::new(500))).unwrap_or_default()
    }

    fn put_reply(&mut self, reply: Reply) -> Option<Bytes> {
        let Self { request, response, from_backend, .. } = self;
        from_backend.clear();
        response.clear();
        let content = reply.write(from_backend.end());
        match response.parse(from_backend, request.method(), &Limits::LARGEST) {
            Parsed::Complete(_) => Some(content),
            _ => None,
        }
    }

    pub(crate) fn give_back(mut self: Box<Self>) {
        for buffer in
            [&mut self.from_client, &mut self.to_backend, &mut self.to_client, &mut self.path, &mut self.target]
        {
            buffer.clear();
            buffer.shrink_to(MAX_SPARE_CAPACITY);
        }
        self.from_backend.clear();
        self.from_backend.0.shrink_to(MAX_SPARE_CAPACITY);
        self.text.clear();
        self.text.shrink_to(MAX_SPARE_CAPACITY);
        // Few routes need this.
        self.noted = Vec::new();
        SPARE.with_borrow_mut(|spare| {
            let bytes = spare.bytes + self.bytes();
            if spare.idle.len() < MAX_SPARE && bytes <= MAX_SPARE_BYTES {
                spare.bytes = bytes;
                spare.idle.push(self);
            }
        });
    }

    /// The size of its buffers in memory.
    fn bytes(&self) -> usize {
        let Self { from_client, from_backend, to_backend, to_client, text, path, target, .. } = self;
        let buffers = [from_client, &from_backend.0, to_backend, to_client, path, target];
        buffers.into_iter().map(Vec::capacity).sum::<usize>() + text.capacity()
    }
}

impl ResponseBuffer {
    pub(crate) fn clear(&mut self) {
        self.0.truncate(HEADROOM_BYTES);
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        self.0.truncate(HEADROOM_BYTES + len);
    }

    pub(crate) fn drop_first(&mut self, count: usize) {
        self.0.drain(HEADROOM_BYTES..HEADROOM_BYTES + count);
    }

    /// The underlying buffer, for appending.
    pub(crate) fn end(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }

    /// Where a head of `len` bytes would begin if it replaced the one that ends at `head`; `None` if it does not fit
    /// there.
    pub(crate) fn space_for_head(&self, head: usize, len: usize) -> Option<usize> {
        (HEADROOM_BYTES + head).checked_sub(len)
    }

    /// Writes `new` at the start that [`space_for_head`](Self::space_for_head) found, and swaps the two buffers.
    pub(crate) fn put_head(&mut self, start: usize, new: &mut Vec<u8>) {
        self.0[start..start + new.len()].copy_from_slice(new);
        std::mem::swap(&mut self.0, new);
        self.0.clear();
        self.0.resize(HEADROOM_BYTES, 0);
    }
}

impl Default for ResponseBuffer {
    fn default() -> Self {
        Self(vec![0; HEADROOM_BYTES])
    }
}

impl Deref for ResponseBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0[HEADROOM_BYTES..]
    }
}

impl DerefMut for ResponseBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0[HEADROOM_BYTES..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::framing::Framing;

    #[test]
    fn a_longer_head_replaces_the_received_one() {
        let mut received = ResponseBuffer::default();
        received.end().extend_from_slice(b"headcontent");
        for (new, fits) in
            [("a longer head", true), (&"x".repeat(HEADROOM_BYTES + 4), true), (&"x".repeat(HEADROOM_BYTES + 5), false)]
        {
            let mut received = ResponseBuffer::default();
            received.end().extend_from_slice(b"headcontent and more");
            received.truncate(11);
            let space = received.space_for_head(4, new.len());
            assert_eq!(space.is_some(), fits);
            let mut bytes = new.as_bytes().to_vec();
            match space {
                Some(start) => {
                    received.put_head(start, &mut bytes);
                    assert_eq!(bytes[start..], [new.as_bytes(), b"content"].concat());
                    assert!(received.is_empty());
                }
                None => assert!(*received == *b"headcontent" && bytes == new.as_bytes()),
            }
        }
        received.drop_first(4);
        assert_eq!(*received, *b"content");
        received.clear();
        assert!(received.is_empty());
    }

    #[test]
    fn an_unsendable_reply_is_replaced_by_500() {
        let mut buffers = Buffers::take();
        let mut reply = Reply::new(301);
        reply.field(b"Location", &vec![b'a'; 3 * 1024 * 1024]);
        assert!(!reply.is_sendable());
        assert!(buffers.take_reply(reply).is_empty());
        assert_eq!((buffers.response.status(), buffers.response.framing()), (500, Framing::Length(0)));
        let mut reply = Reply::new(301);
        reply.field(b"Location", &vec![b'a'; 1024 * 1024 - 12]);
        assert!(reply.is_sendable());
        buffers.take_reply(reply);
        assert_eq!(buffers.response.status(), 301);
    }

    #[test]
    fn notes_about_a_response_are_cleared() {
        let mut buffers = Buffers::take();
        buffers.noted.push((Variable::Host, vec![0; MAX_SPARE_CAPACITY]));
        buffers.text.reserve(2 * MAX_SPARE_CAPACITY);
        buffers.give_back();
        let buffers = Buffers::take();
        assert!(
            buffers.noted.is_empty() && buffers.noted.capacity() == 0 && buffers.text.capacity() <= MAX_SPARE_CAPACITY
        );
    }

    #[test]
    fn spare_buffers_are_bounded_in_bytes() {
        let idle: Vec<_> = (0..MAX_SPARE)
            .map(|_| {
                let mut buffers = Buffers::take();
                buffers.from_client.reserve(MAX_SPARE_CAPACITY);
                buffers.to_client.reserve(2 * MAX_SPARE_CAPACITY);
                buffers
            })
            .collect();
        idle.into_iter().for_each(Buffers::give_back);
        let (count, bytes) = SPARE.with_borrow(|spare| (spare.idle.len(), spare.bytes));
        assert!(count > 1 && count < MAX_SPARE && bytes <= MAX_SPARE_BYTES, "{count} of {bytes} bytes");
        for _ in 0..count {
            drop(Buffers::take());
        }
        assert_eq!(SPARE.with_borrow(|spare| (spare.idle.len(), spare.bytes)), (0, 0));
    }
}
