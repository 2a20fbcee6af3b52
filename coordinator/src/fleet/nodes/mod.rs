//! Nodes: what their agents say, what they run, which of a job's ranks they get, what they are told.
//!
//! [`Nodes`] knows of jobs and reports to them: that a rank was lost, that it is back, that it ended.
//!
//! Modules in reading order: `node` (a node and the processes it runs) and `lease` (how long it counts
//! as alive), `table` (all of them), `sessions` (what agents say), `exits` (ranks that ended), `expiry`
//! (what has silently gone), `standstill` (ranks that do not move), `placement` (who gets which seat),
//! `orders` (what agents are told), `closing` (nodes that take no ranks), `view` (what people see).

mod closing;
mod exits;
mod expiry;
mod lease;
mod node;
mod orders;
mod placement;
mod sessions;
mod standstill;
mod table;
mod view;

pub use lease::Lease;
pub(crate) use table::Nodes;
