//! Evenkeel, a load balancer that changes while it runs.
//!
//! The balancer separates the configured state (a [`snapshot`] of routes and pools, immutable, replaced as a whole)
//! from the runtime state (kept by each [`backend`] across all snapshots). The modules, in reading order:
//!
//! - [`config`]: the configuration, parsed and checked.
//! - [`snapshot`], [`site`], [`pool`], [`backend`]: the configured state and the runtime state.
//! - [`control`]: the only place where the snapshot changes; [`change`]: such a change as a value; [`state`]: the part
//!   that survives a restart.
//! - [`balance`]: which candidate gets a request.
//! - [`health`]: which backends are candidates.
//! - [`dial`]: how to connect to a backend. [`probe`]: checks the health of backends.
//! - [`exchange`]: the decisions about a request; [`failure`]: the consequences of each kind of failure.
//! - [`message`]: heads and their parts; [`value`]: texts with variables, patterns and conditions.
//! - [`http`]: how bytes are transferred; [`listen`]: listeners; [`tls`]: encryption; [`connection_limit`]: how many
//!   clients; [`shutdown`]: stopping.
//! - [`metrics`]: counters; [`log`], [`access_log`]: logs, written by [`lines`].
//! - `pingora`, with the feature `pingora-proxy`: the same balancer inside a Pingora server.
//! - [`plant`]: old bugs for the simulation of the engine (`simulation`, in tests only) to find.
//! - [`clock`]: time and randomness, which simulations control; [`date`]: the current time for responses.
//!
//! The interface for other programs is public and documented: `cli` and `server` make the program `evenkeel`; `config`,
//! `control`, `change`, `log`, `metrics` and `pingora` are for use inside a Pingora server. The benchmarks and tests
//! beside `src` need more than that. What they need is public too, but hidden, and may change at any time.

#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

mod access_log;
mod admin;
#[doc(hidden)]
pub mod backend;
#[doc(hidden)]
pub mod balance;
pub mod change;
pub mod cli;
mod clock;
pub mod config;
mod connection_limit;
pub mod control;
mod date;
mod dial;
mod exchange;
mod failure;
mod health;
#[doc(hidden)]
pub mod http;
mod lines;
mod listen;
pub mod log;
#[doc(hidden)]
pub mod message;
pub mod metrics;
#[cfg(feature = "pingora-proxy")]
pub mod pingora;
mod plant;
mod pool;
mod probe;
pub mod server;
mod shutdown;
#[cfg(test)]
mod simulation;
mod site;
#[doc(hidden)]
pub mod snapshot;
mod state;
mod sticky;
mod tls;
mod user;
#[doc(hidden)]
pub mod value;
