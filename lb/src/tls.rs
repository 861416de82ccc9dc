//! TLS of connections. What is to be wanted of it stands in [`crate::config::tls`].
//!
//! - [`server`]: towards clients.

pub(crate) mod server;
