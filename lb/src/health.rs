//! Whether a backend can be trusted with a request: what probes find, and what real traffic finds.

pub mod ejection;
pub mod tracker;
