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

#![forbid(unsafe_code)]

pub mod access_log;
pub mod admin;
pub mod backend;
pub mod balance;
pub mod change;
pub mod cli;
pub mod clock;
pub mod config;
pub mod connection_limit;
pub mod control;
pub mod date;
pub mod dial;
pub mod exchange;
pub mod failure;
pub mod health;
pub mod http;
pub mod lines;
pub mod listen;
pub mod log;
pub mod message;
pub mod metrics;
#[cfg(feature = "pingora-proxy")]
pub mod pingora;
pub mod plant;
pub mod pool;
pub mod probe;
pub mod server;
pub mod shutdown;
#[cfg(test)]
mod simulation;
pub mod site;
pub mod snapshot;
pub mod state;
pub mod sticky;
pub mod tls;
pub mod user;
pub mod value;
