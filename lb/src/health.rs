//! Whether a backend can be trusted with a request: what probes find, and what real traffic finds.

pub mod ejection;
mod pingora_error;
pub mod probe;
pub mod tracker;
