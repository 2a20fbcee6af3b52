//! Why a gang waits, in words.

use std::collections::BTreeMap;
use std::fmt;

/// Holders named one by one; the others are counted.
const NAMED: usize = 3;

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
        /// Slots of all open nodes that fit.
        slots: u32,
        /// Slots of the nodes that take no ranks.
        closed: u32,
        /// What is wanted.
        accelerator: String,
    },
    /// The nodes that it does not avoid are too small.
    Avoided {
        /// Slots the job needs in all.
        wanted: u32,
        /// Slots of the open nodes that fit and that it does not avoid.
        slots: u32,
        /// The nodes it avoids, and why.
        nodes: BTreeMap<String, String>,
        /// What is wanted.
        accelerator: String,
    },
    /// Others hold the slots.
    Full {
        /// Slots the job still needs.
        wanted: u32,
        /// It has some already.
        more: bool,
        /// What is wanted.
        accelerator: String,
        /// Slots that are free.
        free: u32,
        /// Slots of ranks that are ending.
        ending: u32,
        /// Who has the others, those first that will give them up.
        holders: Vec<Holder>,
    },
    /// Slots are free, but somebody else is first.
    Behind {
        /// Who.
        job_id: String,
    },
}

/// A gang with slots that another one waits for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// For how long.
    pub hold: Hold,
    /// Its job.
    pub job_id: String,
    /// How many.
    pub slots: u32,
}

/// For how long slots are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hold {
    /// Its ranks stop at a checkpoint.
    UntilCheckpoint,
    /// Free, but kept for ranks that will be added at a checkpoint.
    ForGrowth,
    /// As long as it runs.
    Runs,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNode { accelerator } => {
                write!(f, "waits for a node with accelerator {accelerator}; none is connected")
            }
            Self::TooLarge { wanted, slots, closed, accelerator } => {
                write!(f, "needs {}; ", slots_of(*wanted, accelerator))?;
                write!(f, "the connected nodes have {slots} in all")?;
                match closed {
                    0 => Ok(()),
                    _ => write!(
                        f,
                        ", and {closed} on nodes that are drained or excluded, or whose worker cannot start"
                    ),
                }
            }
            Self::Avoided { wanted, slots, nodes, accelerator } => {
                write!(f, "waits: needs {}; ", slots_of(*wanted, accelerator))?;
                write!(f, "the nodes it does not avoid for a while have {slots} in all")?;
                for (node, why) in nodes.iter().take(NAMED) {
                    write!(f, "; {node}: {why}")?;
                }
                Ok(())
            }
            Self::Full { wanted, more, accelerator, free, ending, holders } => {
                let more = if *more { "more " } else { "" };
                let slots = if *wanted == 1 { "slot" } else { "slots" };
                write!(f, "waits: needs {wanted} {more}{accelerator} {slots}, {free} free")?;
                if *ending > 0 {
                    write!(f, ", {ending} of ranks that are ending")?;
                }
                for holder in holders.iter().take(NAMED) {
                    write!(f, ", {holder}")?;
                }
                let others = holders.get(NAMED..).unwrap_or_default();
                if !others.is_empty() {
                    let slots: u32 = others.iter().map(|holder| holder.slots).sum();
                    write!(f, ", {slots} held by {} other jobs", others.len())?;
                }
                Ok(())
            }
            Self::Behind { job_id } => write!(f, "waits behind job {job_id}"),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hold, job_id, slots } = self;
        match hold {
            Hold::UntilCheckpoint => {
                write!(f, "{slots} held by job {job_id} until its next checkpoint")
            }
            Hold::ForGrowth => {
                write!(f, "{slots} kept for job {job_id}, which grows at its next checkpoint")
            }
            Hold::Runs => write!(f, "{slots} held by job {job_id}"),
        }
    }
}

fn slots_of(slots: u32, accelerator: &str) -> String {
    let plural = if slots == 1 { "slot" } else { "slots" };
    format!("{slots} {accelerator} {plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_names_who_holds_the_slots_and_for_how_long() {
        let holder = |job_id: &str, slots, hold| Holder { hold, job_id: job_id.to_owned(), slots };
        let mut reason = Reason::Full {
            wanted: 4,
            more: false,
            accelerator: "cuda".to_owned(),
            free: 2,
            ending: 0,
            holders: vec![holder("x", 2, Hold::UntilCheckpoint)],
        };
        let expected =
            "waits: needs 4 cuda slots, 2 free, 2 held by job x until its next checkpoint";
        assert_eq!(reason.to_string(), expected);
        if let Reason::Full { holders, wanted, more, ending, .. } = &mut reason {
            holders.extend(["a", "b", "c", "d"].map(|job| holder(job, 3, Hold::Runs)));
            (*wanted, *more, *ending) = (1, true, 1);
        }
        let expected = "waits: needs 1 more cuda slot, 2 free, 1 of ranks that are ending, 2 held by \
                        job x until its next checkpoint, 3 held by job a, 3 held by job b, 6 held by \
                        2 other jobs";
        assert_eq!(reason.to_string(), expected);
    }
}
