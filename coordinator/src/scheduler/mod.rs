//! Who may run where: a pure function of the nodes, the gangs that want slots and where they sit.
//!
//! A job is a gang: at least its fewest ranks get a slot or none does. Higher priority goes first, then
//! whoever was submitted first. Seats that are taken stay taken, so that solving again without a
//! change moves nobody. A gang that waits although the cluster could hold it blocks those behind
//! it, because a stream of small jobs would otherwise starve it; one the cluster cannot hold at all
//! blocks nobody.

mod solve;

pub use solve::solve;

use std::collections::BTreeMap;
use std::fmt;

/// A node that may take ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Unique and stable.
    pub name: String,
    /// Ranks it can run at once.
    pub slots: u32,
    /// Ranks that still run there and belong to no gang of the problem; they end soon.
    pub strays: u32,
    /// "cpu" or "cuda".
    pub accelerator: String,
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
    /// True when nothing can be done for it now.
    pub fn is_content(&self) -> bool {
        let may_change = match self.standing {
            Standing::Queued | Standing::Forming => true,
            Standing::Training { at_checkpoint } => at_checkpoint,
            Standing::Held | Standing::Leaving => false,
        };
        !may_change || self.vacant() == 0
    }

    /// True when at least one rank sits already.
    fn is_seated(&self) -> bool {
        self.seats.iter().any(Option::is_some)
    }

    /// Seats without a rank.
    fn vacant(&self) -> u32 {
        let vacant = self.seats.iter().filter(|seat| seat.is_none()).count();
        u32::try_from(vacant).expect("world sizes fit u32")
    }

    /// Ranks it needs before it can run.
    fn needed(&self) -> u32 {
        let taken = u32::try_from(self.seats.len()).expect("world sizes fit u32") - self.vacant();
        self.min_ranks.saturating_sub(taken)
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

/// Who sits where and why the others wait, by job id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Solution {
    /// Node of every seat, by seat, of the gangs that have enough to run.
    pub placed: BTreeMap<String, Vec<Option<String>>>,
    /// Why a gang has to wait; its taken seats stay taken.
    pub waiting: BTreeMap<String, Reason>,
}

/// Why a gang waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// No connected node has the accelerator.
    NoNode {
        /// What is wanted.
        accelerator: String,
    },
    /// All nodes together are too small.
    TooLarge {
        /// Slots the job needs in all.
        wanted: u32,
        /// Slots of all nodes that fit.
        slots: u32,
        /// What is wanted.
        accelerator: String,
    },
    /// Others hold the slots.
    Full {
        /// Slots the job still needs.
        wanted: u32,
        /// Slots that are free.
        free: u32,
    },
    /// Slots are free, but somebody else is first.
    Behind {
        /// Who.
        job_id: String,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNode { accelerator } => {
                write!(f, "waits for a node with accelerator {accelerator}; none is connected")
            }
            Self::TooLarge { wanted, slots, accelerator } => write!(
                f,
                "needs {wanted} {accelerator} slots; the connected nodes have {slots} in all"
            ),
            Self::Full { wanted, free } => {
                write!(f, "waits for free slots: {wanted} needed, {free} free")
            }
            Self::Behind { job_id } => write!(f, "waits behind job {job_id}"),
        }
    }
}
