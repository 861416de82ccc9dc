//! Evenkeel inside a Pingora server, in two ways (`docs/pingora.md`):
//!
//! - [`Proxy`]: a `ProxyHttp`. Pingora reads requests, connects and transfers bytes; Evenkeel decides where each
//!   request goes and how failures are handled. Settings that Pingora's proxy cannot apply are rejected.
//! - [`App`]: a `ServerApp`. Evenkeel's own engine serves the connections that a Pingora server has accepted.
//!
//! Both provide a [`Management`], a service with the probes and the admin API, which must be added to the server too.
//!
//! - [`head`]: what is read of a request, and the fields for backends and clients.
//! - [`connections`]: the connections to backends that Pingora keeps.
//! - [`failed`]: converts Pingora's errors to failures.
//! - [`settings`]: which settings are rejected, or have no effect.

mod app;
mod connections;
mod failed;
mod head;
mod management;
mod proxy;
mod settings;

pub use app::App;
pub use management::Management;
pub use proxy::{Context, Proxy};
pub use settings::Refused;

/// The programs of the page are compiled as tests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/pingora.md")]
struct Page;
