//! What the end-to-end tests stand on: real processes, real sockets, and parts that misbehave on demand. Nothing here
//! shares code with what it tests, and nothing depends on how long something takes: tests wait for conditions, with a
//! deadline. The modules in the order in which a reader meets them:
//!
//! - [`deadline`]: waiting for conditions.
//! - [`wire`]: HTTP/1.1 by the byte, for clients and origins alike. [`http2`]: clients of HTTP/2, and over TLS.
//! - [`port`], [`process`]: addresses and child processes that do not outlive a test.
//! - [`config`], [`balancer`]: a configuration, and the real program running with it.
//! - [`origin`]: a backend that does as told. [`dns`]: names that lead where a test says. [`link`]: a connection that
//!   can be cut. [`websocket`]: a client.
//! - [`nginx`], [`haproxy`]: references for what must agree with them. [`openssl`]: certificates, and another client of
//!   TLS. [`authority`]: certificates for addresses, and such as have expired.
//! - [`redis_cluster`]: a store of several nodes that can be killed, frozen and given other roles.
//! - [`app`], [`browser`]: the application, and a person who uses it.

pub mod app;
pub mod authority;
pub mod balancer;
pub mod browser;
pub mod config;
pub mod deadline;
pub mod dns;
pub mod haproxy;
pub mod http2;
pub mod link;
pub mod nginx;
pub mod openssl;
pub mod origin;
pub mod port;
pub mod process;
pub mod redis_cluster;
pub mod websocket;
pub mod wire;

pub use balancer::{Balancer, Metrics, Program, evenkeel};
pub use config::{Config, Pool};
pub use deadline::{eventually, found_eventually, within};
pub use dns::Dns;
pub use link::Link;
pub use origin::{Health, Origin, Step, response};
pub use port::Port;
pub use websocket::WebSocket;
pub use wire::{End, Reply, Request, Wire};
