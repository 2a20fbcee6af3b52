//! The only unsafe code of the crate, one module per foreign thing.
#![allow(unsafe_code)]

pub mod cuda;
pub mod memory;
pub mod process;
pub mod socket;
