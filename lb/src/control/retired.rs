//! What is no longer in force and may still be used. It is kept until nobody else holds it, so that it is dropped here,
//! and not by the last exchange on a traffic thread: to drop a thousand sites takes long.

use std::any::Any;
use std::sync::Arc;

#[derive(Debug, Default)]
pub(super) struct Retired(Vec<Arc<dyn Any + Send + Sync>>);

impl Retired {
    /// Whoever holds `part` now may go on; nobody can come to hold it any more but through those.
    pub(super) fn push(&mut self, part: Arc<dyn Any + Send + Sync>) {
        self.0.push(part);
    }

    /// Drops what nobody else holds. What is in something else is pushed after it.
    pub(super) fn drop_unused(&mut self) {
        self.0.retain(|part| Arc::strong_count(part) > 1);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
