#![no_main]

#[path = "../../tests/http1/properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::response_holds(data));
