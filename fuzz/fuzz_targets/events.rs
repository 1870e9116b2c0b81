//! Bodies, from the envelope to the rows: see `properties/events.rs`.
#![no_main]

#[path = "../properties/events.rs"]
mod events;

libfuzzer_sys::fuzz_target!(|input: &[u8]| events::check(input));
