//! Evenkeel, a load balancer that changes while it runs.
//!
//! A balancer is two things: what the operator wants (a [`snapshot`] of routes and pools, never altered, swapped
//! whole) and what is true right now (kept by each [`backend`], across every swap). The modules in the order in
//! which a reader meets them:
//!
//! - [`config`]: what the operator wrote, checked.
//! - [`snapshot`], [`site`], [`pool`], [`backend`]: the balancer's idea of the world.
//! - [`control`]: the one place where the snapshot changes; [`change`]: such a change as a value; [`state`]: what of it
//!   survives a restart.
//! - [`balance`]: which candidate takes a request.
//! - [`health`]: which backends are candidates.
//! - [`dial`]: how a backend is connected to. [`probe`]: asks backends whether they are well.
//! - [`exchange`]: what is decided about a request; [`failure`]: what follows from each way to fail.
//! - [`message`]: heads and what they are made of; [`value`]: texts with variables, patterns and conditions.
//! - [`http`]: how bytes move; [`listen`]: where from; [`tls`]: encrypted; [`connection_limit`]: for how many clients;
//!   [`shutdown`]: until when.
//! - [`metrics`]: what is counted; [`log`], [`access_log`]: what is written down, by way of [`lines`].
//! - `pingora`, behind the feature `pingora-proxy`: all of it in a Pingora server of one's own.
//! - [`plant`]: old bugs, for the simulation of the engine (`simulation`, in tests only) to find.
//! - [`clock`]: time and randomness, which simulations set; [`date`]: the present as responses tell it.
//!
//! What other programs use is public and documented: `cli` and `server` make the program `evenkeel`; `config`, `control`,
//! `change`, `log`, `metrics` and `pingora` are what a Pingora server of one's own needs. The benchmarks and tests beside
//! `src` look at more than that. What they look at is public too, but hidden, and may change at any time.

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
