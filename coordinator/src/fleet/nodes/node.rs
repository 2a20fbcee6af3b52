//! An agent's node, and the ranks it runs as far as they have been seen.

use std::collections::BTreeMap;

use ringmaster_proto::Seat;
use ringmaster_proto::v1::{self, Generation};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::lease::Lease;
use crate::state::AgentProcess;

/// A rank of a job.
pub(crate) type RankKey = (String, Seat);

/// One node. It stays known after its agent has gone, for people to see.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) slots: u32,
    pub(crate) cpus: u32,
    pub(crate) accelerator: String,
    pub(crate) address: String,
    /// Of the agent's process: another one means that the agent was restarted.
    pub(crate) agent: AgentProcess,
    /// Where its agent answers who wants to know whether it can be reached; empty where it does not.
    pub(crate) dial_address: String,
    /// Absent while the agent is away.
    pub(crate) session: Option<Session>,
    /// Runs on while the agent is away.
    pub(crate) lease: Lease,
    pub(crate) last_heartbeat_ms: i64,
    /// Its agent was told to end and takes no rank any more.
    pub(crate) leaving: bool,
    /// What its worker says of itself, if that is one.
    pub(crate) worker: Option<v1::Worker>,
    pub(crate) processes: BTreeMap<RankKey, Process>,
    /// Slots that take no rank, as its agent says, and why.
    pub(crate) slots_out: BTreeMap<u32, String>,
    /// Processes that were killed and have not gone, of which its agent says nothing.
    pub(crate) undead: Vec<Undead>,
}

/// A process that its kill has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Undead {
    pub(crate) key: RankKey,
    /// The newest generation of its job when it was given up: what its agent says of an older one is about
    /// this process.
    pub(crate) until: Generation,
    pub(crate) slot: Option<u32>,
    pub(crate) why: String,
}

impl Node {
    /// True while its agent is connected and was heard of within a lease.
    pub(crate) fn answers(&self, now: Instant) -> bool {
        self.session.is_some() && !self.lease.is_expired(now)
    }

    /// Why its worker cannot run a rank; none when it can.
    pub(crate) fn unusable(&self) -> Option<&str> {
        self.worker.as_ref().map(|worker| worker.unusable.as_str()).filter(|why| !why.is_empty())
    }

    /// Slots that take no rank at the moment, and why.
    pub(crate) fn out_of_service(&self) -> BTreeMap<u32, String> {
        let undead =
            self.undead.iter().filter_map(|undead| Some((undead.slot?, undead.why.clone())));
        undead.chain(self.slots_out.clone()).collect()
    }

    /// Slots that may take ranks.
    pub(crate) fn slots_in_service(&self) -> u32 {
        let out = self.out_of_service().into_keys().filter(|slot| *slot < self.slots).count();
        self.slots.saturating_sub(u32::try_from(out).unwrap_or(u32::MAX))
    }

    /// UUID of the GPU that the rank of a slot has for itself; empty where ranks compute on the CPU.
    pub(crate) fn device(&self, slot: u32) -> String {
        let devices = self.worker.as_ref().map(|worker| worker.devices.as_slice());
        let device = devices.unwrap_or_default().get(slot as usize);
        device.map(|device| device.uuid.clone()).unwrap_or_default()
    }

    /// libtorch threads for each of its ranks.
    pub(crate) fn threads_per_slot(&self) -> u32 {
        (self.cpus / self.slots.max(1)).max(1)
    }
}

/// An agent's open stream.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) outbound: mpsc::Sender<v1::CoordinatorMessage>,
}

/// A rank's process as observed.
#[derive(Debug)]
pub(crate) struct Process {
    /// The generation it was started for: an exit of an older one is about another process.
    pub(crate) started: Generation,
    /// The newest generation it is known to be in.
    pub(crate) generation: Generation,
    /// Zero until the agent has reported it.
    pub(crate) pid: u32,
    pub(crate) presence: Presence,
    /// Which slot of its node it has; absent when it was started by an earlier coordinator for a
    /// seat that is no longer its own.
    pub(crate) slot: Option<u32>,
    /// Session and generation of the last Regenerate.
    pub(crate) told: Option<(u64, Generation)>,
    /// It was to be killed because its seat was not its own any more: whoever has the seat now, here
    /// or elsewhere, is another process, which starts once this one has gone.
    pub(crate) doomed: bool,
    /// Session and urgency of the last StopRank.
    pub(crate) stopped: Option<(u64, Stop)>,
    /// When its agent was first asked to kill it, and why.
    pub(crate) killed: Option<(Instant, String)>,
}

/// How sure it is that a process exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
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
pub(crate) enum Stop {
    /// Checkpoint together with the others, then end.
    Graceful,
    /// At once.
    Kill,
}

impl Process {
    /// A process whose start was just sent.
    pub(crate) fn requested(generation: Generation, slot: Option<u32>) -> Self {
        Self {
            started: generation,
            generation,
            pid: 0,
            presence: Presence::Requested,
            slot,
            told: None,
            doomed: false,
            stopped: None,
            killed: None,
        }
    }

    /// A process its agent reported.
    pub(crate) fn reported(generation: Generation, pid: u32, slot: Option<u32>) -> Self {
        Self { pid, presence: Presence::Seen, ..Self::requested(generation, slot) }
    }

    /// Takes in that it lives and is in this generation.
    pub(crate) fn see(&mut self, generation: Generation, pid: Option<u32>) {
        self.presence = Presence::Seen;
        self.generation = self.generation.max(generation);
        if let Some(pid) = pid {
            self.pid = pid;
        }
    }
}
