//! The agent and a rank's ends of its lines, with real processes, real Unix sockets and a fake
//! coordinator behind real gRPC on loopback.
#![allow(clippy::unwrap_used)]

mod calls;
mod coordinator;
mod devices;
mod exits;
mod harness;
mod orders;
mod probe;
mod process;
mod session;
mod worker;
