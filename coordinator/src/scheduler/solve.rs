//! The decision itself.

use std::collections::BTreeMap;

use super::backfill::Backfill;
use super::pool::Pool;
use super::reason::Reason;
use super::{Gang, Problem, Solution, Standing, Stop};

/// Returns who sits where, who has to go, and why the others wait.
///
/// Guarantees: no node holds more ranks than it has slots (beyond seats that were taken already),
/// and one that is closed or unusable gets none; a gang is placed with at least its fewest ranks or not at all; seats
/// that are taken never move, but off closed nodes at a checkpoint; the answer to the problem with
/// the answer carried out is the same answer, and stops nobody further.
pub fn solve(problem: &Problem) -> Solution {
    let mut solver = Solver {
        problem,
        pool: Pool::new(problem),
        seats: problem
            .gangs
            .iter()
            .map(|gang| (gang.job_id.as_str(), gang.seats.clone()))
            .collect(),
        kept: BTreeMap::new(),
        lines: BTreeMap::new(),
        waiting: BTreeMap::new(),
        stopped: BTreeMap::new(),
    };

    let mut order: Vec<&Gang> = problem.gangs.iter().collect();
    order.sort_by_key(|gang| gang.place());
    // By priority: a gang may only be stopped by one that was dealt with before it.
    for equals in order.chunk_by(|a, b| a.priority == b.priority) {
        // ---- 1. What was lost is given back, and closed nodes are left
        for gang in equals {
            match gang.standing {
                _ if solver.stopped.contains_key(&gang.job_id) => {}
                Standing::Forming => solver.restore(gang),
                Standing::Training { at_checkpoint: true } => solver.leave_closed(gang),
                _ => {}
            }
        }

        // ---- 2. Everybody who wants more, the oldest first
        for gang in equals {
            match gang.standing {
                _ if solver.stopped.contains_key(&gang.job_id) => {}
                Standing::Queued | Standing::Forming => solver.start(gang),
                Standing::Training { at_checkpoint } => solver.grow(gang, at_checkpoint),
                Standing::Held | Standing::Leaving => {}
            }
        }
    }
    solver.into_solution()
}

/// A decision in the making.
pub(super) struct Solver<'a> {
    pub(super) problem: &'a Problem,
    pub(super) pool: Pool<'a>,
    /// Seats as decided so far, by job id.
    pub(super) seats: BTreeMap<&'a str, Vec<Option<String>>>,
    /// Free slots that are kept for a gang that grows at its next checkpoint, by job id.
    pub(super) kept: BTreeMap<&'a str, u32>,
    /// Who waits first for each accelerator.
    pub(super) lines: BTreeMap<&'a str, Line<'a>>,
    waiting: BTreeMap<String, Reason>,
    pub(super) stopped: BTreeMap<String, Stop>,
}

/// The gangs that wait for slots with one accelerator.
pub(super) struct Line<'a> {
    pub(super) head: &'a Gang,
    /// Absent when it has to be counted out anew.
    pub(super) backfill: Option<Backfill>,
}

impl<'a> Solver<'a> {
    /// Gives ranks that were lost their slots back, or as many as the gang needs to run.
    fn restore(&mut self, gang: &'a Gang) {
        let lost = |(seat, preferred): &(&Option<String>, &Option<String>)| {
            seat.is_none() && preferred.is_some()
        };
        let lost = super::count(gang.seats.iter().zip(&gang.preferred).filter(lost).count());
        let needed = gang.needed();
        let room = self.room(gang, lost.max(needed));
        if room >= needed {
            self.take(gang, room);
            self.count_anew(gang);
        }
    }

    /// Moves the ranks on closed nodes elsewhere, as far as there is room; stops the gang if that
    /// leaves too few, or nobody who holds the state.
    fn leave_closed(&mut self, gang: &'a Gang) {
        let is_closed =
            |seat: &Option<String>| seat.as_ref().is_some_and(|name| self.pool.is_closed(name));
        let staying: Vec<Option<String>> =
            gang.seats.iter().map(|seat| seat.clone().filter(|_| !is_closed(seat))).collect();
        let leaving = gang.seats.iter().filter(|seat| is_closed(seat)).count();
        if leaving == 0 {
            return;
        }
        let stay = super::count(staying.iter().flatten().count());
        let room = self.room(gang, super::count(leaving));
        if stay == 0 || stay + room < gang.min_ranks {
            self.stopped.insert(gang.job_id.clone(), Stop::Closed);
            return;
        }
        self.seats.insert(&gang.job_id, staying);
        self.take(gang, room);
        self.count_anew(gang);
    }

    /// Starts a gang, lets it wait at the head of its line, or behind it.
    fn start(&mut self, gang: &'a Gang) {
        let (needed, vacant) = self.missing(gang);
        let free = self.pool.free_for(gang);
        let most = vacant.min(free);
        if let Some(head) = self.lines.get(gang.accelerator.as_str()).map(|line| line.head) {
            if needed > 0 {
                self.start_behind(head, gang, needed, most);
            }
        } else if free >= needed {
            self.take(gang, most);
        } else if let Some(reason) = self.impossible(gang) {
            self.wait(gang, reason);
        } else {
            self.head(gang, needed, free);
        }
    }

    /// Adds ranks to a gang that trains with fewer than it could, now or at its next checkpoint.
    fn grow(&mut self, gang: &'a Gang, at_checkpoint: bool) {
        let is_behind = self.lines.contains_key(gang.accelerator.as_str());
        if is_behind || self.stopped.contains_key(&gang.job_id) {
            return;
        }
        let (_, vacant) = self.missing(gang);
        let ranks = vacant.min(self.pool.free_for(gang));
        if ranks == 0 {
            return;
        }
        if at_checkpoint {
            self.take(gang, ranks);
        } else {
            // Not taken yet, but nobody later in the order may have them.
            let mut imagined = self.seats[gang.job_id.as_str()].clone();
            self.pool.seat(gang, &mut imagined, ranks);
            self.kept.insert(&gang.job_id, ranks);
        }
    }

    /// Ranks a gang needs before it can run, and seats it has vacant, as decided so far.
    pub(super) fn missing(&self, gang: &Gang) -> (u32, u32) {
        let seats = &self.seats[gang.job_id.as_str()];
        let taken = super::count(seats.iter().flatten().count());
        (gang.min_ranks.saturating_sub(taken), super::count(seats.len()) - taken)
    }

    pub(super) fn take(&mut self, gang: &'a Gang, ranks: u32) {
        let seats = self.seats.get_mut(gang.job_id.as_str()).expect("every gang has seats");
        self.pool.seat(gang, seats, ranks);
    }

    pub(super) fn wait(&mut self, gang: &Gang, reason: Reason) {
        self.waiting.insert(gang.job_id.clone(), reason);
    }

    fn into_solution(self) -> Solution {
        let Self { seats, waiting, stopped, .. } = self;
        let runs = seats.into_iter().filter(|(job_id, _)| !waiting.contains_key(*job_id));
        let placed = runs.map(|(job_id, seats)| (job_id.to_owned(), seats)).collect();
        Solution { placed, waiting, stopped }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "solve_tests.rs"]
mod tests;
