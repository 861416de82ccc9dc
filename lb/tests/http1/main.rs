//! The HTTP/1.1 codec from outside: properties over generated messages, and agreement with another parser.

mod properties;
mod reference;
mod splits;
