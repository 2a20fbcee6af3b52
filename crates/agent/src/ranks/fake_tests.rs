//! A table over processes that are what a test says of them, and a clock that a test moves.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringmaster_proto::Seat;
use ringmaster_proto::v1::{Generation, RankExited, StartRank, StopRank};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::Instant;

use super::{Key, Table};
use crate::exits::Exits;
use crate::processes::Processes;

/// What a connected rank may keep silent for.
pub(super) const SILENCE: Duration = Duration::from_secs(10);
/// How often the table looks at its ranks.
const LOOK: Duration = Duration::from_millis(100);

/// The processes of a machine.
#[derive(Debug, Default)]
pub(super) struct Fake {
    pub(super) killed: Mutex<Vec<u32>>,
    pub(super) stopped: Mutex<BTreeMap<u32, u64>>,
}

impl Processes for Fake {
    fn kill(&self, pid: u32) {
        self.killed.lock().expect("no test panics while it holds the lock").push(pid);
    }

    fn stopped(&self, pid: u32) -> Option<u64> {
        self.stopped.lock().expect("no test panics while it holds the lock").get(&pid).copied()
    }
}

/// A node whose processes do nothing by themselves.
pub(super) struct Node {
    pub(super) table: Table,
    pub(super) processes: Arc<Fake>,
    pub(super) queue: UnboundedReceiver<Key>,
    pub(super) now: Instant,
}

impl Node {
    pub(super) fn new(slots: usize) -> Self {
        let (launches, queue) = mpsc::unbounded_channel();
        let processes = Arc::new(Fake::default());
        let known: Arc<dyn Processes> = Arc::<Fake>::clone(&processes);
        let table = Table::new(slots, SILENCE, Exits::new("n".into()), launches, known);
        Self { table, processes, queue, now: Instant::now() }
    }

    /// Starts a rank and gives it this process.
    pub(super) fn launch(&self, start: &StartRank, pid: u32) {
        self.table.start(start.clone());
        let launched = self.table.launch(&key(start.rank), |_, _| Ok((pid, ())));
        assert!(launched.is_some(), "{start:?}");
    }

    /// Lets time pass, in which the table looks at its ranks as often as it does.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += LOOK;
            self.table.enforce(self.now);
        }
    }

    /// Returns all exits that were not acknowledged.
    pub(super) fn exits(&self) -> Vec<RankExited> {
        self.table.exits.due(Instant::now(), Duration::ZERO)
    }

    pub(super) fn killed(&self) -> Vec<u32> {
        self.processes.killed.lock().expect("no test panics while it holds the lock").clone()
    }

    pub(super) fn slots_out(&self) -> Vec<u32> {
        self.table.slots_out().slots.iter().map(|out| out.slot).collect()
    }

    /// The processes that a registration names.
    pub(super) fn running(&self) -> Vec<u32> {
        self.table.registration().0.iter().map(|rank| rank.pid).collect()
    }
}

pub(super) fn key(rank: u32) -> Key {
    ("job".to_owned(), Seat(rank))
}

/// A start of generation g1.`counter` in this slot.
pub(super) fn start(rank: u32, slot: u32, counter: u32) -> StartRank {
    StartRank {
        job_id: "job".into(),
        rank,
        local_rank: slot,
        generation: Some(Generation::new(1, counter)),
        ..StartRank::default()
    }
}

pub(super) fn stop(rank: u32, graceful: bool, grace_ms: u32) -> StopRank {
    StopRank { job_id: "job".into(), rank, graceful, grace_ms, reason: "test".into() }
}
