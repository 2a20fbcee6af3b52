//! The coordinator of Ringmaster: jobs, queue, placement, membership and generations of a cluster.
//!
//! Nothing here links libtorch. Every decision is a pure function of what is known and the time
//! given to it; one task owns what is known, makes it durable and only then tells anybody.
//!
//! Modules in reading order: [`server`] (three listeners and their life), [`service`] (gRPC in and
//! out; its types stop there), [`fleet`] (the one task that owns jobs, nodes and generations),
//! [`scheduler`] (who may run where), [`recovery`] (from whose state a generation goes on),
//! [`state`] (SQLite), [`logs`] (what the ranks printed), [`open_files`] (the limit on connections).

pub mod fleet;
pub mod logs;
pub mod open_files;
pub mod recovery;
pub mod scheduler;
pub mod server;
pub mod service;
pub mod state;
