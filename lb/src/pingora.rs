//! Evenkeel in a Pingora server of your own, in two ways (`docs/pingora.md`):
//!
//! - [`Proxy`]: a `ProxyHttp`. Pingora reads requests, connects and moves bytes; Evenkeel decides where each request goes
//!   and what follows from a failure. What of the configuration Pingora's proxy has no counterpart for is refused.
//! - [`App`]: a `ServerApp`. Evenkeel's own engine serves the connections that a Pingora server has accepted.
//!
//! Either one brings a [`Management`], a service with the probes and the admin API, which is to be added to the server too.
//!
//! - [`head`]: what is read of a request, and what a backend and a client are told.
//! - [`lines`]: the connections to backends that Pingora keeps.
//! - [`failed`]: what Pingora's errors mean in the table of failures.
//! - [`settings`]: what of a configuration is refused, or has no effect.

mod app;
mod failed;
mod head;
mod lines;
mod management;
mod proxy;
mod settings;

pub use app::App;
pub use management::Management;
pub use proxy::{Context, Proxy};
pub use settings::Refused;
