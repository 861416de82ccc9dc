//! Tests of the HTTP/1.1 codec from outside: properties of generated messages, and comparison with another parser.

mod properties;
mod reference;
mod splits;
