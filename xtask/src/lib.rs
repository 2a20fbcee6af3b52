//! What `cargo xtask` and the program that draws its data set share: what people see
//! ([`console`]) and checksums ([`digest`]).

pub mod console;
pub mod digest;
