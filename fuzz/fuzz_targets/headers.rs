//! Header parsing: see `properties/headers.rs`.
#![no_main]

#[path = "../properties/headers.rs"]
mod headers;
#[expect(dead_code, reason = "headers do not depend on the body")]
#[path = "../properties/request.rs"]
mod request;

libfuzzer_sys::fuzz_target!(|input: &[u8]| headers::check(input));
