//! From whose state a generation goes on: a pure decision over what its ranks hold.
//!
//! Why survivors can agree at all: gradients are reduced first, then every rank passes a small
//! *ready* all-reduce, then each applies them without any collective. Who entered *ready* of a step
//! holds that step's reduced gradients. So survivors of one ring are never more than one step apart
//! through a fault, and one that is behind catches up from what it holds already.
//!
//! Why not every survivor counts: a rank that was cut off lives on with the state of a ring that others
//! have left behind. Each ring begins with a comparison of digests, and who passed it has *agreed*; a
//! held state says in which generation that was. Ranks that agreed in an older generation than others
//! did are sent the state of those, however many steps they have applied. And no state counts that lies
//! below the job's newest checkpoint, or that a roll-back has given up.

use ringmaster_proto::RingRank;
use ringmaster_proto::v1::Generation;

/// What one rank of the generation holds, by rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// A new process; it holds nothing.
    Fresh,
    /// A survivor.
    Held(Held),
}

/// The state of a survivor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Steps applied.
    pub applied_step: u64,
    /// Digest of parameters and optimizer state after `applied_step`.
    pub digest: u64,
    /// It holds the reduced gradients of step `applied_step + 1`.
    pub entered_ready: bool,
    /// The newest generation in which its whole ring held one state, from which this one comes.
    pub agreed: Generation,
}

/// What a job must not fall behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Floor {
    /// Step of its newest published checkpoint; zero without one.
    pub checkpoint_step: u64,
    /// A roll-back has given up the states of generations up to this one.
    pub gives_up: Option<Generation>,
}

/// Where the state of the generation comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The source rank sends what it holds.
    Live,
    /// The source rank reads the newest verified checkpoint, or initialises, and sends that.
    Stored,
}

/// What every rank of the generation is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Kind of source.
    pub source: Source,
    /// The rank everybody continues from.
    pub source_rank: RingRank,
    /// Ranks that apply the gradients they hold before anything else, ascending.
    pub apply_held: Vec<RingRank>,
    /// Ranks that receive the source's state, ascending.
    pub receivers: Vec<RingRank>,
}

/// Decides where the ranks of a generation take their state from.
///
/// Of the survivors only those count whose states are not below the floor, and of these only those that
/// agreed in the highest generation. Among them the newest applied step wins, provided that all who
/// applied it hold the same bits; one that is a step behind and entered *ready* applies what it holds.
/// Everybody else receives. Without an agreed live state the newest stored one is taken, by rank 0 for
/// all.
pub fn decide(reports: &[Report], floor: &Floor) -> Plan {
    let counted = counted(reports, floor);
    // The newest step that one of them has applied; without any, what is stored.
    let newest = counted.iter().flatten().map(|held| held.applied_step).max();
    let Some(newest) = newest else { return stored(reports.len()) };

    // The lowest rank that applied it is the source. Another that applied it must hold the same bits.
    let mut agreed: Option<(RingRank, u64)> = None;
    let mut apply_held = Vec::new();
    let mut receivers = Vec::new();
    for (rank, held) in (0..).map(RingRank).zip(counted) {
        match held {
            Some(Held { applied_step, digest, .. }) if applied_step == newest => match agreed {
                None => agreed = Some((rank, digest)),
                // Two states of one step: which of them is right cannot be told, so neither is used.
                Some((_, expected)) if expected != digest => return stored(reports.len()),
                Some(_) => {}
            },
            // One step behind, and it holds the gradients of the newest step.
            Some(held) if held.entered_ready && held.applied_step + 1 == newest => {
                apply_held.push(rank);
            }
            // Everybody else is sent the source's state.
            Some(_) | None => receivers.push(rank),
        }
    }
    let (source_rank, _) = agreed.expect("the newest step has a holder");
    Plan { source: Source::Live, source_rank, apply_held, receivers }
}

/// The states that count, by rank.
fn counted(reports: &[Report], floor: &Floor) -> Vec<Option<Held>> {
    let stands = |held: &Held| {
        held.applied_step >= floor.checkpoint_step
            && floor.gives_up.is_none_or(|gives_up| held.agreed > gives_up)
    };
    let held = reports.iter().map(|report| match report {
        Report::Held(held) => Some(*held).filter(stands),
        Report::Fresh => None,
    });
    let mut held: Vec<Option<Held>> = held.collect();
    let highest = held.iter().flatten().map(|held| held.agreed).max();
    for held in &mut held {
        *held = held.filter(|held| Some(held.agreed) == highest);
    }
    held
}

fn stored(world_size: usize) -> Plan {
    let world_size = u32::try_from(world_size).expect("world sizes fit u32");
    Plan {
        source: Source::Stored,
        source_rank: RingRank(0),
        apply_held: Vec::new(),
        receivers: (1..world_size).map(RingRank).collect(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "recovery_tests.rs"]
mod tests;
