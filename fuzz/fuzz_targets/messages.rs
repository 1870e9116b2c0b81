//! Messages of foreign publishers, from properties and body to the rows: see
//! `properties/messages.rs`.
#![no_main]

#[path = "../properties/messages.rs"]
mod messages;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    messages::check(&messages::message(input), messages::now());
});
