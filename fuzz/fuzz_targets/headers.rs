//! Header parsing: see `properties/headers.rs`.
#![no_main]

#[path = "../properties/headers.rs"]
mod headers;
#[path = "../properties/request.rs"]
mod request;

libfuzzer_sys::fuzz_target!(|input: &[u8]| headers::check(input));
