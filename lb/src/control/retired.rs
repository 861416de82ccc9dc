//! Objects that are no longer in force but may still be in use. They are kept until nobody else holds them, so that
//! they are dropped here and not by the last exchange on a traffic thread: dropping a thousand sites takes long.

use std::any::Any;
use std::sync::Arc;

#[derive(Debug, Default)]
pub(super) struct Retired(Vec<Arc<dyn Any + Send + Sync>>);

impl Retired {
    /// Adds an object. Current holders may continue; only they can pass it on.
    pub(super) fn push(&mut self, part: Arc<dyn Any + Send + Sync>) {
        self.0.push(part);
    }

    /// Drops objects that nobody else holds. An object inside another one must be pushed after it.
    pub(super) fn drop_unused(&mut self) {
        self.0.retain(|part| Arc::strong_count(part) > 1);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
