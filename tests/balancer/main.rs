//! What Evenkeel promises, seen from outside: the real program between real sockets, one module for each promise.

mod admin;
mod algorithms;
mod changes;
mod check;
mod config;
mod differential;
mod early_answers;
mod explain;
mod failures;
mod forwarding;
mod health;
mod hot_swap;
mod http2;
mod jumps;
mod kill;
mod logs;
mod malformed;
mod metrics;
mod observability;
mod reload;
mod retry;
mod sites;
mod slow_clients;
mod state;
mod sticky;
mod stopping;
