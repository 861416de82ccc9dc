#![no_main]

#[path = "../../tests/http2/properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::connection_holds(data));
