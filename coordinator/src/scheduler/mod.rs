//! Who may run where: a pure function of the nodes, the gangs that want slots and where they sit.
//!
//! **Gangs.** A job starts with at least its fewest ranks or not at all, and takes as many as there
//! are slots for, up to its most. Seats that are taken stay taken: solving again without a change
//! moves nobody. The exceptions are a node that was closed, whose ranks move at their job's next
//! checkpoint, and preemption.
//!
//! **Order.** Higher priority goes first. Within a priority, ranks that were lost get slots again
//! before anything else, because their job only takes back what it had; then goes whoever was
//! submitted first. A job that trains with fewer ranks than it could stands in this order, too: the
//! slots it may have are kept for it until its next checkpoint. A gang no cluster could hold blocks
//! nobody.
//!
//! **Preemption.** The first gang of each accelerator that has to wait is the *head*. When slots
//! that are about to be free do not suffice, and those of gangs of lower priority would, the head
//! has the youngest gangs of the lowest priority stopped at a checkpoint, and only as many as it
//! takes to start with its fewest ranks. A gang that lost so many ranks that it cannot run gives
//! its slots up to any gang before it in the order.
//!
//! **Backfill.** Nobody knows when a job will end. So a gang behind the head may take slots only if
//! the head could not start earlier without that, whichever jobs end first: whenever the slots free by
//! then, without those of the gang, are too few, they are too few with them as well. Which sums of
//! slots can become free is counted out (`backfill`).

mod backfill;
mod line;
mod pool;
mod preemption;
mod reason;
mod solve;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use reason::{Hold, Holder, Reason};
pub use solve::solve;

use std::collections::BTreeMap;

/// A node that may take ranks, or has some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Unique and stable.
    pub name: String,
    /// Ranks it can run at once, without the slots that are out of service.
    pub slots: u32,
    /// Ranks that still run there and belong to no gang of the problem; they end soon.
    pub strays: u32,
    /// "cpu" or "cuda".
    pub accelerator: String,
    /// It was drained or excluded: it takes no ranks, and those it has leave at a checkpoint.
    pub closed: bool,
    /// Its worker cannot start: it takes no ranks, and those it has go on.
    pub unusable: bool,
    /// It is charged with faults: ranks that it has lost do not go back to it before others would do.
    pub suspect: bool,
}

impl Node {
    /// Whether it takes ranks.
    fn is_open(&self) -> bool {
        !self.closed && !self.unusable
    }
}

/// A job that runs or wants to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gang {
    /// Its job.
    pub job_id: String,
    /// Higher goes first.
    pub priority: i32,
    /// Order of submission.
    pub sequence: u64,
    /// What its nodes must have.
    pub accelerator: String,
    /// The fewest ranks it runs with, at least one; the most are its seats.
    pub min_ranks: u32,
    /// What may happen to its seats.
    pub standing: Standing,
    /// Node of every seat by seat, absent where it is vacant.
    pub seats: Vec<Option<String>>,
    /// Where the rank of a vacant seat would best go: the node it was on.
    pub preferred: Vec<Option<String>>,
    /// Nodes that get none of its ranks for a while, and why.
    pub avoids: BTreeMap<String, String>,
}

/// What may happen to the seats of a gang.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It has none and wants to start.
    Queued,
    /// Its ring is being formed: it takes what it can get.
    Forming,
    /// Its ring stands, and changes only at a checkpoint.
    Training {
        /// It has just published one.
        at_checkpoint: bool,
    },
    /// It keeps what it has, and gets no more.
    Held,
    /// Its ranks checkpoint and stop.
    Leaving,
}

impl Gang {
    /// Seats without a rank.
    pub fn vacant(&self) -> u32 {
        count(self.seats.iter().filter(|seat| seat.is_none()).count())
    }

    /// Seats with a rank.
    pub fn taken(&self) -> u32 {
        count(self.seats.len()) - self.vacant()
    }

    /// Ranks it needs before it can run.
    fn needed(&self) -> u32 {
        self.min_ranks.saturating_sub(self.taken())
    }

    /// Its place in the order: priority first, then age.
    fn place(&self) -> (std::cmp::Reverse<i32>, u64) {
        (std::cmp::Reverse(self.priority), self.sequence)
    }
}

/// Everything a decision depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problem {
    /// Nodes that answer.
    pub nodes: Vec<Node>,
    /// Jobs that have not ended.
    pub gangs: Vec<Gang>,
}

impl Problem {
    /// True when no answer could change anything.
    pub fn is_content(&self) -> bool {
        let closed =
            |seat: &String| self.nodes.iter().any(|node| node.closed && node.name == *seat);
        self.gangs.iter().all(|gang| match gang.standing {
            Standing::Queued | Standing::Forming => gang.vacant() == 0,
            Standing::Training { at_checkpoint: true } => {
                gang.vacant() == 0 && !gang.seats.iter().flatten().any(closed)
            }
            Standing::Training { at_checkpoint: false } | Standing::Held | Standing::Leaving => {
                true
            }
        })
    }
}

/// Who sits where, who has to go, and why the others wait, by job id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Solution {
    /// Node of every seat, by seat, of the gangs that have enough to run.
    pub placed: BTreeMap<String, Vec<Option<String>>>,
    /// Why a gang has to wait; its taken seats stay taken.
    pub waiting: BTreeMap<String, Reason>,
    /// Gangs whose ranks are to checkpoint and stop; they wait in the queue afterwards.
    pub stopped: BTreeMap<String, Stop>,
}

/// Why a gang is stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// Another one needs its slots.
    MakesRoom {
        /// Which.
        job_id: String,
    },
    /// Its nodes were closed, and elsewhere there is no room for as many ranks as it needs.
    Closed,
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MakesRoom { job_id } => write!(f, "makes room for job {job_id}"),
            Self::Closed => write!(f, "leaves nodes that were drained or excluded"),
        }
    }
}

fn count(ranks: usize) -> u32 {
    u32::try_from(ranks).expect("world sizes fit u32")
}
