//! Why a request was not carried out, and where that is said.

use ringmaster_proto::v1::Generation;
use ringmaster_proto::{RingRank, Seat};
use tokio::sync::oneshot;

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// Why a request was not carried out.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such job.
    #[error("there is no job {job_id}")]
    UnknownJob { job_id: String },
    /// No such node.
    #[error("there is no node {node}: none of this name has registered or is closed")]
    UnknownNode { node: String },
    /// The request belongs to an attempt that is over.
    #[error("generation {given} of job {job_id} has been superseded by {current}")]
    Stale { job_id: String, given: Generation, current: Generation },
    /// The job has ended or is being stopped.
    #[error("job {job_id} is {state}: {reason}")]
    NotLive { job_id: String, state: &'static str, reason: String },
    /// There is nothing left to resume.
    #[error(
        "job {job_id} has succeeded, nothing is left to resume; to train it longer, submit its manifest \
         with a longer schedule and `--resume {job_id}`"
    )]
    Succeeded { job_id: String },
    /// A job cannot go back to a checkpoint.
    #[error("job {job_id} cannot go back to step {step}: {reason}")]
    RollBack { job_id: String, step: u64, reason: String },
    /// A rank whose place was given up joined all the same.
    #[error("rank {seat} of job {job_id} has no place in the job any more")]
    NoSeat { job_id: String, seat: Seat },
    /// The same rank called again while it still waited.
    #[error("a newer call of {caller} of job {job_id} replaced this one")]
    Replaced { job_id: String, caller: String },
    /// A rank could not store its part of a checkpoint.
    #[error(
        "checkpoint of step {step} of job {job_id}: rank {rank} could not store its part: {reason}"
    )]
    ShardFailed { job_id: String, rank: RingRank, step: u64, reason: String },
    /// A value makes no sense.
    #[error("{field} is {value}; {constraint}")]
    Invalid { field: &'static str, value: String, constraint: String },
    /// A stored job cannot be read any more.
    #[error("the stored job of the manifest {file_name} cannot be read; submit it anew")]
    Manifest {
        file_name: String,
        #[source]
        source: ringmaster_manifest::stored::Error,
    },
    /// An agent of another build.
    #[error(
        "agent {node} is of build {found}, this coordinator needs {wanted}; install the same build on both"
    )]
    WrongBuild { node: String, found: String, wanted: String },
    /// Another agent of this name is connected.
    #[error(
        "an agent of the name {node} is connected already (data address {address}, process {pid}); give \
         each node a name of its own with --node, or end the other agent"
    )]
    NameTaken { node: String, address: String, pid: u32 },
    /// The agent that had this name before a restart may come back with its ranks.
    #[error(
        "another agent of the name {node} ran ranks before the coordinator restarted (process {pid}), and is \
         waited for; if it does not come back this one is let in; give each node a name of its own with --node"
    )]
    NameAwaited { node: String, pid: u32 },
    /// The agent's session was replaced or given up.
    #[error("this session is over; register again")]
    SessionOver,
    /// A job that was stored cannot be read.
    #[error("the coordinator cannot read its database")]
    State {
        #[source]
        source: crate::state::Error,
    },
    /// The coordinator is ending.
    #[error("the coordinator is shutting down")]
    Stopped,
}
