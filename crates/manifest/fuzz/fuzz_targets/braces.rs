//! Any text as the place of data, of checkpoints and of weights: brace lists, joins, URLs, paths.
#![no_main]

#[path = "../../tests/mistakes/exercise.rs"]
mod exercise;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| exercise::braces(bytes));
