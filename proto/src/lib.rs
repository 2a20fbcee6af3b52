//! The wire contract: generated code of `ringmaster.v1`, ids and their conversions. No policy.
//!
//! Modules in reading order: [`v1`] (messages and services), [`generation`] (order and text of generations), `ids` (what a
//! rank is called),
//! `phase` (what a rank does, in a word), [`limits`] (message sizes and keep-alive both ends agree on),
//! [`address`] (where a coordinator is), [`status`] (whether a call may be made again, what a refusal says).

pub mod address;
pub mod generation;
mod ids;
pub mod limits;
mod phase;
pub mod status;

pub use ids::{RingRank, Seat};

/// Messages, clients and servers of package `ringmaster.v1`, as generated; `tests/generated.rs` says
/// how to generate them anew.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::clone_on_ref_ptr, clippy::use_self)]
pub mod v1 {
    include!("generated/ringmaster.v1.rs");
}

/// Encoded file descriptors, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/ringmaster.v1.bin");
