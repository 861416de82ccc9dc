//! Everything that is decided about a request, apart from how its bytes move: whether it is admitted, where it goes,
//! what is tried when a backend fails, what is told to the backend and to the client, and what is counted. Plain
//! Rust without sockets; a *transport* carries it out.

pub mod exchange;
pub mod failure;
pub mod headers;
pub mod refusal;
