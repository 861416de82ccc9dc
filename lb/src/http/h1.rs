//! HTTP/1.1 on the wire, without the wire: pure functions over byte slices, RFC 9110 and 9112 to the letter.
//!
//! A message is read by [`head`] or [`response`] into offsets, its content by [`body`] (and [`chunked`]), and the head
//! for the other side is written by [`rewrite`]. Framing is understood on one side and made anew on the other, never
//! copied, so nothing that two parsers could read differently passes through. All else serves these.
//!
//! In the order of an exchange:
//!
//! - [`head`]: a request's head, with the facts that decide its way.
//! - [`reject`]: the ways to refuse it.
//! - [`rewrite`]: the head for the other side.
//! - [`response`]: a backend's head.
//! - [`body`], [`chunked`]: content, and how to frame it anew.
//! - [`websocket`]: when both sides leave HTTP.
//! - [`crate::message`]: what these are made of.
//!
//! One rule holds everywhere: the verdict on some bytes does not depend on how they were cut on their way here.

pub mod body;
pub mod chunked;
pub mod head;
pub mod reject;
pub mod response;
pub mod rewrite;
pub mod websocket;
