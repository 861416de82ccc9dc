#![no_main]

#[path = "../../tests/http1/properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::chunked_holds(data));
