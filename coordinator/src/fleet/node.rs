//! An agent's node, and the ranks it runs as far as they have been seen.

use std::collections::BTreeMap;

use ringmaster_proto::v1::{self, Generation};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Lease;

/// A rank of a job.
pub(super) type RankKey = (String, u32);

/// One node. It stays known after its agent has gone, for people to see.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) slots: u32,
    pub(super) cpus: u32,
    pub(super) accelerator: String,
    pub(super) address: String,
    /// Of the agent's process: another one means that the agent was restarted.
    pub(super) pid: u32,
    /// Absent while the agent is away.
    pub(super) session: Option<Session>,
    /// Runs on while the agent is away.
    pub(super) lease: Lease,
    pub(super) last_heartbeat_ms: i64,
    /// Its agent was told to end and takes no rank any more.
    pub(super) leaving: bool,
    pub(super) processes: BTreeMap<RankKey, Process>,
    /// Faults in a row that lie at its door.
    pub(super) faults: Option<Faults>,
}

/// Faults of a node without progress in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Faults {
    pub(super) count: u32,
    /// Whose rank was the last; a step of this job on the node ends the row.
    pub(super) job_id: String,
    /// Most steps that job had applied by then.
    pub(super) step: u64,
}

impl Node {
    /// libtorch threads for each of its ranks.
    pub(super) fn threads_per_slot(&self) -> u32 {
        (self.cpus / self.slots.max(1)).max(1)
    }
}

/// An agent's open stream.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: u64,
    pub(super) outbound: mpsc::Sender<v1::CoordinatorMessage>,
}

/// A rank's process as observed.
#[derive(Debug)]
pub(super) struct Process {
    /// The generation it was started for: an exit of an older one is about another process.
    pub(super) started: Generation,
    /// The newest generation it is known to be in.
    pub(super) generation: Generation,
    /// Zero until the agent has reported it.
    pub(super) pid: u32,
    pub(super) presence: Presence,
    /// Which slot of its node it has; absent when it was started by an earlier coordinator for a
    /// seat that is no longer its own.
    pub(super) slot: Option<u32>,
    /// Session and generation of the last Regenerate.
    pub(super) told: Option<(u64, Generation)>,
    /// It was to be killed because its seat was not its own any more: whoever has the seat now, here
    /// or elsewhere, is another process, which starts once this one has gone.
    pub(super) doomed: bool,
    /// Session and urgency of the last StopRank.
    pub(super) stopped: Option<(u64, Stop)>,
}

/// How sure it is that a process exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// Its start was sent; nothing has been heard yet.
    Requested,
    /// Its agent, or it itself, has reported.
    Seen,
    /// Its agent registered again without it; the news of its exit may be on the way.
    Missing {
        /// Since when.
        since: Instant,
        /// It had been seen before.
        seen: bool,
    },
}

/// How a rank is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stop {
    /// Checkpoint together with the others, then end.
    Graceful,
    /// At once.
    Kill,
}

impl Process {
    /// A process whose start was just sent.
    pub(super) fn requested(generation: Generation, slot: Option<u32>) -> Self {
        Self {
            started: generation,
            generation,
            pid: 0,
            presence: Presence::Requested,
            slot,
            told: None,
            doomed: false,
            stopped: None,
        }
    }

    /// A process its agent reported.
    pub(super) fn reported(generation: Generation, pid: u32, slot: Option<u32>) -> Self {
        Self { pid, presence: Presence::Seen, ..Self::requested(generation, slot) }
    }

    /// Takes in that it lives and is in this generation.
    pub(super) fn see(&mut self, generation: Generation, pid: Option<u32>) {
        self.presence = Presence::Seen;
        self.generation = self.generation.max(generation);
        if let Some(pid) = pid {
            self.pid = pid;
        }
    }
}
