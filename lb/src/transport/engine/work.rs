//! The buffers that a busy connection works with. They are lent by the thread when bytes have come and returned when
//! the connection falls idle, so ten thousand idle clients hold none.

use std::cell::RefCell;

use crate::transport::http1::head::RequestHead;
use crate::transport::http1::response::ResponseHead;

/// How many a thread keeps for the next connections.
const MOST_SPARE: usize = 128;
/// A buffer that grew beyond this is not kept.
const MOST_KEPT_BYTES: usize = 128 * 1024;

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

thread_local! {
    #[expect(clippy::vec_box, reason = "a work moves between here and its borrower, and is large")]
    static SPARE: RefCell<Vec<Box<Work>>> = const { RefCell::new(Vec::new()) };
}

impl Work {
    pub fn take() -> Box<Self> {
        SPARE.with_borrow_mut(Vec::pop).unwrap_or_default()
    }

    pub fn give_back(mut self: Box<Self>) {
        for buffer in
            [&mut self.from_client, &mut self.from_backend, &mut self.to_backend, &mut self.to_client, &mut self.path]
        {
            buffer.clear();
            buffer.shrink_to(MOST_KEPT_BYTES);
        }
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < MOST_SPARE {
                spare.push(self);
            }
        });
    }
}
