//! The agent of a node: starts and stops ranks, heartbeats for them, ships their logs.
//!
//! Modules in reading order: `agent` (its start and end), [`address`] (where other nodes reach this one),
//! `dial` (whether they do), `session` (the stream to the coordinator), `ranks` (the table of ranks: the
//! agent's only shared state) and `entry` (one rank in it), `worker` (which program ranks are, and whether it
//! can run here), `launcher` (exec and the wait for the end),
//! `environment` (what a rank is told) and [`mod@env`] (what it reads of that), `socket` and [`wire`] (the
//! line to each rank), `exits` (kept until acknowledged), `logs`, `group` over `proc` and `shm` (nothing a
//! rank started survives it), `parent` (the agent of `ringmaster train` ends with it), [`exit`] (how a rank
//! ends), `error`, [`ffi`] (the only unsafe code).
//!
//! Whoever runs ranks that are no processes has [`Table`], [`Service`] and [`Processes`]: a simulation.
//!
//! Nothing here links libtorch. A rank shares [`mod@env`], [`wire`], [`exit`] and [`ffi`] with its agent.
//!
//! An agent that dies takes its ranks along: they end when its socket closes. So a restarted agent
//! starts with none and says so when it registers.

pub mod address;
mod agent;
mod dial;
mod entry;
pub mod env;
pub mod environment;
mod error;
pub mod exit;
mod exits;
pub mod ffi;
mod group;
mod launcher;
mod logs;
mod parent;
mod proc;
mod processes;
mod ranks;
mod secret;
mod session;
mod shm;
mod socket;
pub mod wire;
mod worker;

pub use agent::{Agent, Options};
pub use entry::{Ending, Killed, Launch, NotStarted};
pub use error::Error;
pub use exits::Exits;
pub use processes::Processes;
pub use ranks::{FULL, KILL_DEADLINE, Key, Table};
pub use secret::Secret;
pub use session::{Error as SessionError, Line, Reach, Service};
pub use worker::{DeviceInfo, FAULTS, RankProgram, WorkerInfo};
