//! End-to-end tests: real processes, real gRPC, real shards, real checkpoints.
#![allow(clippy::unwrap_used)]
#![allow(clippy::print_stdout, reason = "what a test measured, for whoever runs it alone")]

mod checkpoints;
mod clients;
mod cluster;
mod data;
mod elastic;
mod faults;
mod health;
mod manifests;
mod no_room;
mod openclip;
mod other_data;
mod pictures;
mod slow;
mod standstill;
mod stopping;
mod stores;
mod words;
mod world_size;
