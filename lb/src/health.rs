//! Whether a backend can be trusted with a request: what probes find, and what real traffic finds.

pub(crate) mod ejection;
pub(crate) mod tracker;
