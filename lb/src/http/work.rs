//! The buffers that a busy connection works with. They are lent by the thread when bytes have come and returned when
//! the connection falls idle, so ten thousand idle clients hold none.

use std::cell::RefCell;

use crate::http::h1::head::RequestHead;
use crate::http::h1::response::ResponseHead;

/// How many a thread keeps for the next connections.
const MOST_SPARE: usize = 128;
/// A buffer that grew beyond this is not kept.
const MOST_KEPT_BYTES: usize = 128 * 1024;
/// What those that a thread keeps may hold together.
const MAX_SPARE_BYTES: usize = 8 * 1024 * 1024;

#[derive(Default)]
pub struct Work {
    pub request: RequestHead,
    pub response: ResponseHead,
    /// What the client sent: the head, then what came after it.
    pub from_client: Vec<u8>,
    pub from_backend: Vec<u8>,
    pub to_backend: Vec<u8>,
    pub to_client: Vec<u8>,
    /// Values of the fields that we add.
    pub text: String,
    pub path: Vec<u8>,
}

#[derive(Default)]
struct Spare {
    #[expect(clippy::vec_box, reason = "a work moves between here and its borrower, and is large")]
    works: Vec<Box<Work>>,
    /// What all of them hold.
    bytes: usize,
}

thread_local! {
    static SPARE: RefCell<Spare> = RefCell::default();
}

/// Forgets what this thread keeps, whose sizes tell of what went before.
#[cfg(test)]
pub fn clear() {
    SPARE.take();
}

impl Work {
    pub fn take() -> Box<Self> {
        let spare = SPARE.with_borrow_mut(|spare| {
            let work = spare.works.pop()?;
            spare.bytes -= work.bytes();
            Some(work)
        });
        spare.unwrap_or_default()
    }

    pub fn give_back(mut self: Box<Self>) {
        for buffer in
            [&mut self.from_client, &mut self.from_backend, &mut self.to_backend, &mut self.to_client, &mut self.path]
        {
            buffer.clear();
            buffer.shrink_to(MOST_KEPT_BYTES);
        }
        SPARE.with_borrow_mut(|spare| {
            let bytes = spare.bytes + self.bytes();
            if spare.works.len() < MOST_SPARE && bytes <= MAX_SPARE_BYTES {
                spare.bytes = bytes;
                spare.works.push(self);
            }
        });
    }

    /// What its buffers hold in memory.
    fn bytes(&self) -> usize {
        let Self { from_client, from_backend, to_backend, to_client, text, path, .. } = self;
        let buffers = [from_client, from_backend, to_backend, to_client, path];
        buffers.into_iter().map(Vec::capacity).sum::<usize>() + text.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spare_is_bounded_in_bytes() {
        let works: Vec<_> = (0..MOST_SPARE)
            .map(|_| {
                let mut work = Work::take();
                work.from_client.reserve(MOST_KEPT_BYTES);
                work.to_client.reserve(2 * MOST_KEPT_BYTES);
                work
            })
            .collect();
        works.into_iter().for_each(Work::give_back);
        let (count, bytes) = SPARE.with_borrow(|spare| (spare.works.len(), spare.bytes));
        assert!(count > 1 && count < MOST_SPARE && bytes <= MAX_SPARE_BYTES, "{count} of {bytes} bytes");
        for _ in 0..count {
            drop(Work::take());
        }
        assert_eq!(SPARE.with_borrow(|spare| (spare.works.len(), spare.bytes)), (0, 0));
    }
}
