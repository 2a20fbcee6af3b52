//! The only unsafe code of the crate, one module per foreign thing.
#![allow(unsafe_code)]

/// Version of libtorch that this build binds.
pub const LIBTORCH: &str = "2.11";

pub mod cuda;
pub mod device_memory;
pub mod devices;
pub mod driver;
pub mod heap;
pub mod library;
pub mod memory;
pub mod nccl;
pub mod nvml;
pub mod nvrtc;
pub mod slices;
pub mod socket;
