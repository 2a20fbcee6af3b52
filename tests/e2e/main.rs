//! End-to-end tests: real processes, real gRPC, real shards, real checkpoints.
#![allow(clippy::unwrap_used)]

mod cluster;
mod data;
mod faults;
mod manifests;
mod stopping;
mod world_size;
