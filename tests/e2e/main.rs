//! End-to-end tests: real processes, real gRPC, real shards, real checkpoints.
#![allow(clippy::unwrap_used)]

mod cluster;
mod data;
mod elastic;
mod faults;
mod manifests;
mod standstill;
mod stopping;
mod world_size;
