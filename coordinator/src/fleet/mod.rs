//! The one task that owns jobs, nodes and generations.
//!
//! Everything the coordinator knows lives in `Cluster`, a plain value without IO and without a
//! clock of its own. The task in `actor` feeds it what arrives (in batches), lets it settle (a
//! level-triggered comparison of what should run with what is seen to run), makes all changes
//! durable in one flush, and only then sends messages and answers. So nobody ever hears of a
//! transition that a crash could undo, and a request may be repeated at any time.
//!
//! Modules in reading order: `handle` (the commands), `actor` (the task), `pace` (when
//! it settles), `cluster` (what is known),
//! `ledger` (what is about to be made durable and told), `node` and `lease` (agents and what they
//! run), `job` and `wants` (one job), `sessions` (what agents say), `requests` (what people ask),
//! `membership` (forming a ring) and `ring` (its order), `checkpoints` (granting), `lifecycle`
//! (losing, recovering, ending), `halting` (stopping to go on later), `resuming` (going on, from an older
//! checkpoint too), `closing` (nodes that take no ranks), `reconcile` (desired, observed, difference) with
//! `placement` (who gets which seat), `view` (what people see).

mod actor;
mod checkpoints;
mod closing;
mod cluster;
mod deadlines;
mod halting;
mod handle;
mod job;
mod lease;
mod ledger;
mod lifecycle;
mod membership;
mod node;
mod pace;
mod placement;
mod reconcile;
mod requests;
mod resuming;
mod ring;
mod sessions;
mod standstill;
mod view;
mod wants;

pub use actor::{Task, start};
pub use deadlines::Deadlines;
pub use handle::{Handle, Hold, Submission};
pub use lease::Lease;
pub use resuming::RolledBack;
pub(crate) use view::event as event_view;

use std::time::Duration;

use ringmaster_proto::v1::Generation;

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
    /// Time ranks get to checkpoint and stop before they are killed.
    pub grace: Duration,
    /// Faults in a row without progress after which a node takes no more ranks; zero for never.
    /// The last open node with its accelerator is never excluded: there the restart budget decides.
    pub exclude_after: u32,
    /// Build id that agents must have; absent to take any.
    pub build_id: Option<String>,
    /// How long a rank may stand still before it counts as hung.
    pub deadlines: Deadlines,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            lease: Duration::from_secs(5),
            session_grace: Duration::from_secs(2),
            grace: Duration::from_secs(30),
            exclude_after: 3,
            build_id: None,
            deadlines: Deadlines::default(),
        }
    }
}

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such job.
    #[error("there is no job {job_id}")]
    UnknownJob {
        /// The id asked for.
        job_id: String,
    },
    /// No such node.
    #[error("there is no node {node}: none of this name has registered or is closed")]
    UnknownNode {
        /// The name asked for.
        node: String,
    },
    /// The request belongs to an attempt that is over.
    #[error("generation {given} of job {job_id} has been superseded by {current}")]
    Stale {
        /// The job.
        job_id: String,
        /// What the caller believes in.
        given: Generation,
        /// What holds.
        current: Generation,
    },
    /// The job has ended or is being stopped.
    #[error("job {job_id} is {state}: {reason}")]
    NotLive {
        /// The job.
        job_id: String,
        /// Its state, or "stopping".
        state: &'static str,
        /// Why.
        reason: String,
    },
    /// There is nothing left to resume.
    #[error(
        "job {job_id} has succeeded, nothing is left to resume; to train it longer, submit its manifest \
         with a longer schedule and `--resume {job_id}`"
    )]
    Succeeded {
        /// The job.
        job_id: String,
    },
    /// A job cannot go back to a checkpoint.
    #[error("job {job_id} cannot go back to step {step}: {reason}")]
    RollBack {
        /// The job.
        job_id: String,
        /// Which checkpoint was asked for.
        step: u64,
        /// Why not, and what can be done.
        reason: String,
    },
    /// A rank whose place was given up joined all the same.
    #[error("rank {seat} of job {job_id} has no place in the job any more")]
    NoSeat {
        /// The job.
        job_id: String,
        /// Who called.
        seat: u32,
    },
    /// The same rank called again while it still waited.
    #[error("a newer call of rank {rank} of job {job_id} replaced this one")]
    Replaced {
        /// The job.
        job_id: String,
        /// Who called.
        rank: u32,
    },
    /// A rank could not store its part of a checkpoint.
    #[error(
        "checkpoint of step {step} of job {job_id}: rank {rank} could not store its part: {reason}"
    )]
    ShardFailed {
        /// The job.
        job_id: String,
        /// The rank.
        rank: u32,
        /// Step of the checkpoint.
        step: u64,
        /// What its store said.
        reason: String,
    },
    /// A value makes no sense.
    #[error("{field} is {value}; {constraint}")]
    Invalid {
        /// Which field of the request.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What it must be and what to do.
        constraint: String,
    },
    /// The manifest in a submission is not a `TrainJob`.
    #[error(
        "the manifest {file_name} is not a validated TrainJob; submit it with this build's client"
    )]
    Manifest {
        /// Name of the file.
        file_name: String,
        /// What is wrong.
        #[source]
        source: ringmaster_manifest::SpecError,
    },
    /// An agent of another build.
    #[error(
        "agent {node} is of build {found}, this coordinator needs {wanted}; install the same build on both"
    )]
    WrongBuild {
        /// Which agent.
        node: String,
        /// Its build.
        found: String,
        /// The build that is wanted.
        wanted: String,
    },
    /// The agent's session was replaced or given up.
    #[error("this session is over; register again")]
    SessionOver,
    /// A job that was stored cannot be read.
    #[error("the coordinator cannot read its database")]
    State {
        /// Why not.
        #[source]
        source: crate::state::Error,
    },
    /// The coordinator is ending.
    #[error("the coordinator is shutting down")]
    Stopped,
}
