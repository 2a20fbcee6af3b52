//! Deadlines: who holds up a job that does not move on.
//!
//! Every heartbeat says of a rank its step, phase, collectives entered and work done in the phase.
//! As long as any of them changes the rank moves, however slowly. When none has for longer than the
//! phase's deadline, somebody hangs; the question is who. All ranks run the same program, so the
//! rank that has entered the fewest collectives is behind, and the others can at most wait for it:
//! it alone is judged, by the deadline of its own phase. A rank that waits inside a collective is
//! never to blame. When all of them wait, no rank is; then the ring is, and is formed anew.
//!
//! A deadline is the phase's floor, or twenty times the longest that this job has stood still in the
//! phase so far, whichever is more: a job that is slow by nature sets its own measure. The first steps
//! of a generation (kernels are loaded, readers fill) have a floor of their own; once the job has shown
//! how long its first step takes, that is twenty times as long at most.
//!
//! Time counts only while the rank is heard of: silence is the lease's to judge.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use ringmaster_proto::Seat;
use ringmaster_proto::v1::{Generation, Phase, RankStatus};

/// Phases there are, the unspecified one included.
const PHASES: usize = 11;
/// A longer pause between two heartbeats says nothing about the rank and does not count.
const UNHEARD: Duration = Duration::from_secs(5);
/// Steps of a generation after which a rank is past its first ones.
const SETTLED: u64 = 3;

/// How long a rank may stand still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadlines {
    /// By phase; a rank that waits for peers has that of the collective.
    floors: [Duration; PHASES],
    /// Floor of data, compute, collective and apply during a generation's first steps.
    pub first_step: Duration,
    /// Deadlines are at least so many times the longest standstill a job has shown in the phase.
    pub patience: u32,
    /// What a job has shown never raises a deadline beyond this.
    pub most: Duration,
}

impl Default for Deadlines {
    /// Twice what goes by unnoticed elsewhere: stores are away for a minute without anybody's fault,
    /// and an evaluation or a checkpoint shows its own progress.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        let mut deadlines = Self {
            floors: [seconds(300); PHASES],
            first_step: seconds(900),
            patience: 20,
            most: seconds(3600),
        };
        for (phase, floor) in [
            (Phase::Start, 120),
            (Phase::Load, 900),
            (Phase::Data, 180),
            (Phase::Compute, 120),
            (Phase::Apply, 120),
            (Phase::Save, 900),
        ] {
            deadlines.set(phase, seconds(floor));
        }
        deadlines
    }
}

impl Deadlines {
    /// Returns the floor of a phase.
    pub fn floor(&self, phase: Phase) -> Duration {
        self.floors[phase as usize]
    }

    /// Sets the floor of a phase.
    pub fn set(&mut self, phase: Phase, floor: Duration) {
        self.floors[phase as usize] = floor;
    }
}

/// What shows that a rank moves: any change of it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Signs {
    generation: Generation,
    step: u64,
    sequence: u64,
    phase: Phase,
    progress: u64,
}

impl Signs {
    fn of(status: &RankStatus) -> Self {
        Self {
            generation: status.generation.unwrap_or_default(),
            step: status.step,
            sequence: status.collective_sequence,
            phase: status.phase(),
            progress: status.progress,
        }
    }

    fn is_in_a_step(&self) -> bool {
        use Phase::{Apply, Collective, Compute, Data};
        matches!(self.phase, Data | Compute | Collective | Apply)
    }

    /// How far this rank has come: all go the same way.
    fn place(&self) -> (Generation, u64) {
        (self.generation, self.sequence)
    }
}

/// One rank as it was seen to move.
#[derive(Debug, Clone)]
struct Rank {
    signs: Signs,
    /// When its signs changed last.
    since: Instant,
    /// When it was heard of last.
    heard: Instant,
    /// It was seen to leave Join in its generation.
    was_in_ring: bool,
    /// Step at which it began to train in its generation.
    trains_from: Option<u64>,
}

impl Rank {
    fn new(signs: Signs, now: Instant) -> Self {
        let trains_from = signs.is_in_a_step().then_some(signs.step);
        Self { signs, since: now, heard: now, was_in_ring: false, trains_from }
    }

    fn stood_still(&self) -> Duration {
        self.heard.saturating_duration_since(self.since)
    }

    /// Steps of its generation that are behind it.
    fn steps_done(&self) -> u64 {
        self.trains_from.map_or(0, |from| self.signs.step.saturating_sub(from))
    }
}

/// Who is to blame for a standstill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// This rank hangs.
    Hung { seat: Seat, phase: Phase, step: u64, stood_still: Duration, deadline: Duration },
    /// Every rank waits inside a collective.
    RingStuck { sequence: u64, step: u64, stood_still: Duration },
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hung { phase, step, stood_still, deadline, .. } => write!(
                f,
                "it hangs: no progress in {} after step {step} for {:.0} s (deadline {:.0} s)",
                word(*phase),
                stood_still.as_secs_f64(),
                deadline.as_secs_f64()
            ),
            Self::RingStuck { sequence, step, stood_still } => write!(
                f,
                "all ranks have waited in collective #{sequence} after step {step} for {:.0} s",
                stood_still.as_secs_f64()
            ),
        }
    }
}

/// A phase in a person's word. A rank that has named none yet is about to start.
pub(crate) fn word(phase: Phase) -> &'static str {
    phase.word().unwrap_or("start")
}

/// The movements of one job's ranks. In memory only: after a restart all clocks start afresh.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    /// By seat.
    ranks: BTreeMap<Seat, Rank>,
    /// Longest standstill that ended by itself, by phase; first steps not counted.
    longest: [Duration; PHASES],
    /// The same over first steps; none before one was done.
    longest_first: Option<Duration>,
    /// Longest standstill so far in a first step that may still be going on.
    in_first: Duration,
}

impl Progress {
    /// Takes in what a rank says of itself.
    pub(crate) fn observe(&mut self, seat: Seat, status: &RankStatus, now: Instant) {
        let signs = Signs::of(status);
        let Some(rank) = self.ranks.get_mut(&seat) else {
            self.ranks.insert(seat, Rank::new(signs, now));
            return;
        };
        let unheard = now.saturating_duration_since(rank.heard);
        // Seen to last so long; what changed between two heartbeats may have lasted less.
        let stood_still = rank.stood_still();
        rank.heard = now;
        if unheard > UNHEARD {
            rank.since += unheard;
        }
        if rank.signs == signs {
            return;
        }
        if rank.signs.generation != signs.generation {
            *rank = Rank::new(signs, now);
            return;
        }
        let longest = if rank.signs.is_in_a_step() && rank.steps_done() == 0 {
            &mut self.in_first
        } else {
            &mut self.longest[rank.signs.phase as usize]
        };
        *longest = (*longest).max(stood_still);
        rank.was_in_ring |= rank.signs.phase == Phase::Join && signs.phase > Phase::Join;
        rank.signs = signs;
        rank.since = now;
        if rank.signs.is_in_a_step() {
            rank.trains_from.get_or_insert(signs.step);
        }
        if rank.steps_done() > 0 {
            self.longest_first = Some(self.in_first);
        }
    }

    /// Takes in that a rank was asked for and has not been heard of.
    pub(crate) fn expect(&mut self, seat: Seat, generation: Generation, now: Instant) {
        let status = RankStatus {
            generation: Some(generation),
            phase: Phase::Start.into(),
            ..RankStatus::default()
        };
        self.observe(seat, &status, now);
    }

    /// Forgets the rank of a seat, which is gone.
    pub(crate) fn forget(&mut self, seat: Seat) {
        self.ranks.remove(&seat);
    }

    /// Whether a rank saves, and was seen to move within this time.
    pub(crate) fn saves(&self, seat: Seat, within: Duration, now: Instant) -> bool {
        self.ranks.get(&seat).is_some_and(|rank| {
            rank.signs.phase == Phase::Save && now.saturating_duration_since(rank.since) < within
        })
    }

    /// When a rank was seen to move last; none where no rank is known.
    pub(crate) fn moved_at(&self) -> Option<Instant> {
        self.ranks.values().map(|rank| rank.since).max()
    }

    /// How long ranks that are to stop may stand still: the floor, or three times the longest standstills
    /// that this job has shown in a step and while it saved.
    pub(crate) fn patience_to_stop(&self, floor: Duration) -> Duration {
        let save = self.longest[Phase::Save as usize];
        let in_step = [Phase::Data, Phase::Compute, Phase::Collective, Phase::Apply];
        let step = in_step.map(|phase| self.longest[phase as usize]).into_iter().max();
        floor.max(3 * (step.unwrap_or_default() + save))
    }

    /// For how long all ranks of a generation were seen to wait for one another; none if one does not.
    pub(crate) fn all_wait(&self, generation: Generation) -> Option<Duration> {
        self.wait_for(&BTreeSet::new(), generation).map(|(still, _)| still)
    }

    /// For how long all ranks but these were seen to wait for them, and when the first of them was heard
    /// last; none if one does not wait in a collective of this generation. What nobody has said again was
    /// not seen: silence of the others is no standstill.
    pub(crate) fn wait_for(
        &self,
        others: &BTreeSet<Seat>,
        generation: Generation,
    ) -> Option<(Duration, Instant)> {
        let mut seen: Option<(Duration, Instant)> = None;
        for (_, rank) in self.ranks.iter().filter(|(seat, _)| !others.contains(*seat)) {
            if rank.signs.phase != Phase::Collective || rank.signs.generation != generation {
                return None;
            }
            let (still, heard) = seen.unwrap_or((Duration::MAX, rank.heard));
            seen = Some((still.min(rank.stood_still()), heard.min(rank.heard)));
        }
        seen
    }

    /// Nobody could be heard for so long: that passed for nobody.
    pub(crate) fn excuse(&mut self, gap: Duration, now: Instant) {
        for rank in self.ranks.values_mut() {
            rank.since = (rank.since + gap).min(now);
            rank.heard = (rank.heard + gap).min(now);
        }
    }

    /// Whether a rank has its state and trains in this generation.
    pub(crate) fn trains(&self, seat: Seat, generation: Generation) -> bool {
        let rank = self.ranks.get(&seat).filter(|rank| rank.signs.generation == generation);
        rank.is_some_and(|rank| rank.trains_from.is_some())
    }

    /// Whether a step of this generation is done.
    pub(crate) fn has_stepped(&self, generation: Generation) -> bool {
        let mut ranks = self.ranks.values().filter(|rank| rank.signs.generation == generation);
        ranks.any(|rank| rank.steps_done() > 0)
    }

    /// Whether a rank that was in this generation's ring wants to join again.
    pub(crate) fn ring_broke(&self, generation: Generation) -> bool {
        let mut ranks = self.ranks.values().filter(|rank| rank.signs.generation == generation);
        let was_in_ring = |rank: &Rank| rank.was_in_ring || rank.trains_from.is_some();
        ranks.any(|rank| was_in_ring(rank) && rank.signs.phase == Phase::Join)
    }

    /// Starts all clocks afresh: nobody could be heard for a while.
    pub(crate) fn restart(&mut self, now: Instant) {
        for rank in self.ranks.values_mut() {
            (rank.since, rank.heard) = (now, now);
        }
    }

    /// Says who holds up a job that is in generation `current`, if somebody does; its clock starts
    /// afresh then. Seats in `joined` wait for the others at the coordinator.
    pub(crate) fn judge(
        &mut self,
        current: Generation,
        joined: &BTreeSet<Seat>,
        deadlines: &Deadlines,
        now: Instant,
    ) -> Option<Verdict> {
        // All ranks run the same program: those that have come least far are behind.
        let judged = || self.ranks.iter().filter(|(seat, _)| !joined.contains(*seat));
        let behind = judged().map(|(_, rank)| rank.signs.place()).min()?;
        // A rank that still waits in a ring of an older generation counts as hung.
        let waits =
            |rank: &Rank| rank.signs.phase == Phase::Collective && rank.signs.generation == current;
        // Of these, one that works and not only waits may hang, by the deadline of its own phase.
        let last = judged().filter(|(_, rank)| rank.signs.place() == behind && !waits(rank));
        let overdue = last
            .map(|(seat, rank)| (*seat, rank.stood_still(), self.deadline(rank, deadlines)))
            .filter(|(_, stood_still, deadline)| stood_still > deadline)
            .max_by_key(|(_, stood_still, deadline)| *stood_still - *deadline);
        if let Some((seat, stood_still, deadline)) = overdue {
            let rank = self.ranks.get_mut(&seat)?;
            (rank.since, rank.heard) = (now, now);
            let Signs { phase, step, .. } = rank.signs;
            return Some(Verdict::Hung { seat, phase, step, stood_still, deadline });
        }
        // If nobody works, nobody joins, and yet nobody gets what it waits for, the ring is to blame.
        let all_wait = joined.is_empty() && self.ranks.values().all(waits);
        let still = |rank: &Rank| rank.stood_still() > self.deadline(rank, deadlines);
        if !all_wait || !self.ranks.values().all(still) {
            return None;
        }
        let stood_still = self.ranks.values().map(Rank::stood_still).min()?;
        let step = self.ranks.values().map(|rank| rank.signs.step).min()?;
        self.restart(now);
        Some(Verdict::RingStuck { sequence: behind.1, step, stood_still })
    }

    fn deadline(&self, rank: &Rank, deadlines: &Deadlines) -> Duration {
        let phase = rank.signs.phase;
        let longest = |phase: Phase| self.longest[phase as usize];
        let shown = match phase {
            // It computes, too: who has not shown it yet may take as long as a few dozen steps.
            Phase::Eval => longest(Phase::Eval).max(2 * longest(Phase::Compute)),
            phase => longest(phase),
        };
        let usual = deadlines.floor(phase).max((shown * deadlines.patience).min(deadlines.most));
        if !rank.signs.is_in_a_step() || rank.steps_done() >= SETTLED {
            return usual;
        }
        let first = self.longest_first.map(|shown| shown * deadlines.patience);
        usual.max(first.map_or(deadlines.first_step, |first| first.min(deadlines.first_step)))
    }
}

#[cfg(test)]
#[path = "deadlines_tests.rs"]
mod tests;
