//! The site as browsers and balancers meet it: real sockets, real stores in a temporary folder.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod accounts;
mod failing;
mod fixture;
mod instances;
mod media;
mod posts;
mod service;
