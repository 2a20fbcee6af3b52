//! Any bytes as a manifest file: decoded, read, validated, and used.
#![no_main]

#[path = "../../tests/mistakes/exercise.rs"]
mod exercise;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| exercise::manifest(bytes));
