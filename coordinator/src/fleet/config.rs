//! Intervals the fleet lives by, and what it asks of agents.

use std::time::{Duration, SystemTime};

use super::rings::Deadlines;

/// Intervals the fleet lives by.
#[derive(Debug, Clone)]
pub struct Config {
    /// How often agents are asked to report.
    pub heartbeat: Duration,
    /// A node unheard of for this long is lost.
    pub lease: Duration,
    /// A node whose agent's connection closed is lost unless it is back within this time. Never longer
    /// than the lease.
    pub session_grace: Duration,
    /// How long ranks that are to checkpoint and stop may make no progress before they are killed.
    pub grace: Duration,
    /// Faults that a node is charged with at which it takes no more ranks; zero for never. Half of them are
    /// forgotten every hour. The last open node with its accelerator is never excluded: there the restart
    /// budget decides.
    pub exclude_after: u32,
    /// How much longer than a lease a kill may take before its rank counts as undead.
    pub kill_deadline: Duration,
    /// A node unheard of for this long is lost if the ranks of other nodes wait for those it has.
    pub early_loss: Duration,
    /// How long nodes may take to say whether they reach one another.
    pub dial_deadline: Duration,
    /// How long a grant is waited for while no part of the checkpoint comes and nobody saves. Longer than any
    /// writer tries to reach a store that is away, so that its own word comes first.
    pub commit_patience: Duration,
    /// Build id that agents must have; absent to take any.
    pub build_id: Option<String>,
    /// How long a rank may stand still before it counts as hung.
    pub deadlines: Deadlines,
    /// The clock that people go by. No interval is measured with it: it may be put forward or back.
    pub wall_clock: fn() -> SystemTime,
    /// What settling takes for each job there is, beside the time that passes anyway: nothing, but in a
    /// simulation, whose clock stands still while something is decided.
    pub settling_cost: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            lease: Duration::from_secs(5),
            session_grace: Duration::from_secs(2),
            grace: Duration::from_secs(30),
            exclude_after: 3,
            kill_deadline: Duration::from_secs(5),
            early_loss: Duration::from_millis(1500),
            dial_deadline: Duration::from_secs(5),
            commit_patience: Duration::from_secs(3600),
            build_id: None,
            deadlines: Deadlines::default(),
            wall_clock: SystemTime::now,
            settling_cost: Duration::ZERO,
        }
    }
}
