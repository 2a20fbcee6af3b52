//! Nodes: what their agents say, what they run, which of a job's ranks they get, what they are told.
//!
//! [`Nodes`] knows of jobs and reports to them: that a rank was lost, that it is back, that it ended.
//!
//! Modules in reading order: `node` (a node and the processes it runs) and `lease` (how long it counts
//! as alive), `table` (all of them), `sessions` (what agents say), `exits` (ranks that ended), `expiry`
//! (what has silently gone), `undead` (kills that come to nothing), `standstill` (ranks that do not move),
//! `placement` (who gets which seat), `dials` (whether nodes reach one another), `parting` (what is done
//! about a broken ring), `orders` (what agents are told), `scores` (which faults nodes are charged with),
//! `closing` (nodes that take no ranks), `view` (what people see).

mod closing;
mod dials;
mod exits;
mod expiry;
mod lease;
mod node;
mod orders;
mod parting;
mod placement;
mod scores;
mod sessions;
mod standstill;
mod table;
mod undead;
mod view;

pub use lease::Lease;
pub(crate) use node::Process;
pub(crate) use table::Nodes;
