//! The HTTP/2 codec from outside: properties over generated frames, and agreement with another implementation.

mod agreement;
mod frames;
mod properties;
