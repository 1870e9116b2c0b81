//! Signature lists and their verification: see `properties/signatures.rs`.
#![no_main]

#[path = "../properties/request.rs"]
mod request;
#[path = "../properties/signatures.rs"]
mod signatures;

libfuzzer_sys::fuzz_target!(|input: &[u8]| signatures::check(input));
