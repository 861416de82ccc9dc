//! Spare buffers of the thread. A connection takes one while it has bytes to keep, and gives it back when it has none:
//! an idle connection holds none.

use std::cell::RefCell;

/// Maximum number of spare buffers, and the largest that is kept.
const MAX_SPARE: usize = 64;
const MAX_KEPT_BYTES: usize = 128 * 1024;
/// Maximum of their capacities together.
const MAX_SPARE_BYTES: usize = 4 * 1024 * 1024;

#[derive(Default)]
struct Spare {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

thread_local! {
    static SPARE: RefCell<Spare> = RefCell::default();
}

/// An empty one.
pub(super) fn take() -> Vec<u8> {
    let spare = SPARE.try_with(|spare| {
        let mut spare = spare.borrow_mut();
        let buffer = spare.buffers.pop()?;
        spare.bytes -= buffer.capacity();
        Some(buffer)
    });
    spare.ok().flatten().unwrap_or_default()
}

pub(super) fn give_back(mut buffer: Vec<u8>) {
    let bytes = buffer.capacity();
    if bytes == 0 || bytes > MAX_KEPT_BYTES {
        return;
    }
    buffer.clear();
    // The thread may be ending.
    let _ = SPARE.try_with(|spare| {
        let mut spare = spare.borrow_mut();
        if spare.buffers.len() < MAX_SPARE && spare.bytes + bytes <= MAX_SPARE_BYTES {
            spare.bytes += bytes;
            spare.buffers.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spare_buffers_are_bounded() {
        for size in [10, MAX_KEPT_BYTES, MAX_KEPT_BYTES + 1] {
            let lent: Vec<_> = (0..2 * MAX_SPARE)
                .map(|_| {
                    let mut buffer = take();
                    buffer.reserve_exact(size);
                    buffer.push(b'x');
                    buffer
                })
                .collect();
            lent.into_iter().for_each(give_back);
            SPARE.with_borrow(|spare| {
                assert!(spare.buffers.len() <= MAX_SPARE && spare.bytes <= MAX_SPARE_BYTES);
                assert_eq!(spare.bytes, spare.buffers.iter().map(Vec::capacity).sum::<usize>());
                assert!(spare.buffers.iter().all(|buffer| buffer.is_empty() && buffer.capacity() <= MAX_KEPT_BYTES));
            });
        }
    }
}
