#![no_main]

#[path = "../../tests/values/properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::both_hold(data));
