//! The stores on the network, each as real as it can be had: PostgreSQL from Debian, buckets from emulators, CrateDB's
//! grammar in place of CrateDB (and CrateDB where there is one), and in the end the whole site on all of them.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod buckets;
mod databases;
mod disturbances;
mod grammar;
mod whole;

mod emulator;
mod link;
mod postgres;
mod python;
mod standin;
