//! The decision itself.

use std::collections::BTreeMap;

use super::backfill::Backfill;
use super::pool::Pool;
use super::preemption::victims;
use super::reason::{Hold, Holder, Reason};
use super::{Gang, Problem, Solution, Standing, Stop};

/// Returns who sits where, who has to go, and why the others wait.
///
/// Guarantees: no node holds more ranks than it has slots (beyond seats that were taken already),
/// and a closed one gets none; a gang is placed with at least its fewest ranks or not at all; seats
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

struct Solver<'a> {
    problem: &'a Problem,
    pool: Pool<'a>,
    /// Seats as decided so far, by job id.
    seats: BTreeMap<&'a str, Vec<Option<String>>>,
    /// Free slots that are kept for a gang that grows at its next checkpoint, by job id.
    kept: BTreeMap<&'a str, u32>,
    /// Who waits first for each accelerator.
    lines: BTreeMap<&'a str, Line<'a>>,
    waiting: BTreeMap<String, Reason>,
    stopped: BTreeMap<String, Stop>,
}

/// The gangs that wait for slots with one accelerator.
struct Line<'a> {
    head: &'a Gang,
    /// Absent when it has to be counted out anew.
    backfill: Option<Backfill>,
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

    /// Slots a gang with ranks may take, of `wanted` ones, without delaying the head of its line.
    fn room(&self, gang: &Gang, wanted: u32) -> u32 {
        let most = wanted.min(self.pool.free(&gang.accelerator));
        let Some(line) = self.lines.get(gang.accelerator.as_str()) else { return most };
        // The gang itself gives back what it takes with what it has: whether it ends makes no
        // difference.
        self.backfill(line.head, Some(gang)).largest(1, most).unwrap_or(0)
    }

    /// Slots have changed hands although there is a line: what its head may see is another.
    fn count_anew(&mut self, gang: &Gang) {
        if let Some(line) = self.lines.get_mut(gang.accelerator.as_str()) {
            line.backfill = None;
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
        let free = self.pool.free(&gang.accelerator);
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

    /// Starts a gang behind a head if that delays the head in no case, with as many ranks as do not.
    fn start_behind(&mut self, head: &'a Gang, gang: &'a Gang, needed: u32, most: u32) {
        let counted =
            self.lines.get_mut(gang.accelerator.as_str()).and_then(|line| line.backfill.take());
        let mut backfill = counted.unwrap_or_else(|| self.backfill(head, None));
        match backfill.largest(needed, most) {
            Some(ranks) => {
                backfill.start(ranks);
                self.take(gang, ranks);
            }
            None => match self.impossible(gang) {
                Some(reason) => self.wait(gang, reason),
                None => self.wait(gang, Reason::Behind { job_id: head.job_id.clone() }),
            },
        }
        self.lines.insert(&gang.accelerator, Line { head, backfill: Some(backfill) });
    }

    /// Counts out which slots a head that waits may see become free while one gang stays.
    fn backfill(&self, head: &Gang, stays: Option<&Gang>) -> Backfill {
        let free = self.pool.free(&head.accelerator);
        let lack = self.missing(head).0.saturating_sub(free);
        let may_end = self
            .others(head)
            .filter(|other| stays.is_none_or(|stays| stays.job_id != other.job_id));
        let sizes = may_end.map(|other| {
            self.frees(other) + self.kept.get(other.job_id.as_str()).copied().unwrap_or(0)
        });
        let ending = std::iter::repeat_n(1, self.pool.strays(&head.accelerator) as usize);
        Backfill::new(lack, free, sizes.chain(ending))
    }

    /// Adds ranks to a gang that trains with fewer than it could, now or at its next checkpoint.
    fn grow(&mut self, gang: &'a Gang, at_checkpoint: bool) {
        let is_behind = self.lines.contains_key(gang.accelerator.as_str());
        if is_behind || self.stopped.contains_key(&gang.job_id) {
            return;
        }
        let (_, vacant) = self.missing(gang);
        let ranks = vacant.min(self.pool.free(&gang.accelerator));
        if ranks == 0 {
            return;
        }
        match at_checkpoint {
            true => self.take(gang, ranks),
            false => {
                // Not taken yet, but nobody later in the order may have them.
                let mut imagined = self.seats[gang.job_id.as_str()].clone();
                self.pool.seat(gang, &mut imagined, ranks);
                self.kept.insert(&gang.job_id, ranks);
            }
        }
    }

    /// Why no change among the jobs could ever make room for a gang, if so.
    fn impossible(&self, gang: &Gang) -> Option<Reason> {
        let accelerator = gang.accelerator.clone();
        let Some((slots, closed)) = self.pool.slots(&accelerator) else {
            return Some(Reason::NoNode { accelerator });
        };
        let wanted = gang.min_ranks;
        (slots < wanted).then_some(Reason::TooLarge { wanted, slots, closed, accelerator })
    }

    /// Lets a gang wait as the first of its line, and makes room for it if that takes preemption.
    fn head(&mut self, gang: &'a Gang, needed: u32, free: u32) {
        let lack = needed - free;
        let strays = self.pool.strays(&gang.accelerator);
        let leaving = self.others(gang).filter(|other| self.leaves(other));
        let coming = strays + leaving.map(|other| self.frees(other)).sum::<u32>();
        let candidates: Vec<(&Gang, u32)> = self
            .others(gang)
            .filter(|other| !self.leaves(other) && self.gives_way(other, gang))
            .map(|other| (other, self.frees(other)))
            .collect();
        for victim in victims(&candidates, lack.saturating_sub(coming)) {
            let stop = Stop::MakesRoom { job_id: gang.job_id.clone() };
            self.stopped.insert(victim.job_id.clone(), stop);
        }
        let reason = Reason::Full {
            wanted: needed,
            more: gang.taken() > 0,
            accelerator: gang.accelerator.clone(),
            free,
            ending: strays,
            holders: self.holders(gang),
        };
        self.wait(gang, reason);
        self.lines.insert(&gang.accelerator, Line { head: gang, backfill: None });
    }

    /// The other gangs with the same accelerator.
    fn others<'b>(&self, gang: &'b Gang) -> impl Iterator<Item = &'a Gang> + use<'a, 'b> {
        let same = move |other: &&Gang| {
            other.accelerator == gang.accelerator && other.job_id != gang.job_id
        };
        self.problem.gangs.iter().filter(same)
    }

    /// Slots that are free once a gang has gone.
    fn frees(&self, gang: &Gang) -> u32 {
        self.pool.held_by(&self.seats[gang.job_id.as_str()])
    }

    fn leaves(&self, gang: &Gang) -> bool {
        gang.standing == Standing::Leaving || self.stopped.contains_key(&gang.job_id)
    }

    /// True when a gang may be stopped for another: it has lower priority; or it has lost so many
    /// ranks that it cannot run, and comes later in the order or has no hope of any.
    fn gives_way(&self, other: &Gang, to: &Gang) -> bool {
        let below = other.priority < to.priority;
        match other.standing {
            Standing::Training { .. } => below,
            Standing::Forming => {
                let cannot_run = self.missing(other).0 > 0;
                let hopeless = cannot_run && self.impossible(other).is_some();
                below || hopeless || (cannot_run && other.place() > to.place())
            }
            Standing::Queued | Standing::Held | Standing::Leaving => false,
        }
    }

    fn holders(&self, gang: &Gang) -> Vec<Holder> {
        let mut holders = Vec::new();
        let mut add = |hold, other: &Gang, slots| {
            if slots > 0 {
                holders.push(Holder { hold, job_id: other.job_id.clone(), slots });
            }
        };
        for other in self.others(gang) {
            add(Hold::ForGrowth, other, self.kept.get(other.job_id.as_str()).copied().unwrap_or(0));
            let hold = if self.leaves(other) { Hold::UntilCheckpoint } else { Hold::Runs };
            add(hold, other, self.frees(other));
        }
        let largest = |holder: &Holder| (holder.hold, std::cmp::Reverse(holder.slots));
        holders.sort_by(|a, b| largest(a).cmp(&largest(b)).then_with(|| a.job_id.cmp(&b.job_id)));
        holders
    }

    /// Ranks a gang needs before it can run, and seats it has vacant, as decided so far.
    fn missing(&self, gang: &Gang) -> (u32, u32) {
        let seats = &self.seats[gang.job_id.as_str()];
        let taken = super::count(seats.iter().flatten().count());
        (gang.min_ranks.saturating_sub(taken), super::count(seats.len()) - taken)
    }

    fn take(&mut self, gang: &'a Gang, ranks: u32) {
        let seats = self.seats.get_mut(gang.job_id.as_str()).expect("every gang has seats");
        self.pool.seat(gang, seats, ranks);
    }

    fn wait(&mut self, gang: &Gang, reason: Reason) {
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
mod tests {
    use super::super::Node;
    use super::super::properties::{gang, node, seats};
    use super::*;

    fn running(job_id: &str, priority: i32, sequence: u64, nodes: &[&str]) -> Gang {
        Gang {
            standing: Standing::Training { at_checkpoint: false },
            seats: seats(nodes),
            ..gang(job_id, priority, sequence, nodes.len())
        }
    }

    fn solve_for(nodes: &[Node], gangs: &[Gang]) -> Solution {
        solve(&Problem { nodes: nodes.to_vec(), gangs: gangs.to_vec() })
    }

    #[test]
    fn a_gang_takes_the_smallest_node_that_holds_it() {
        let solution = solve_for(&[node("a", 8), node("b", 2)], &[gang("j", 0, 1, 2)]);
        assert_eq!(solution.placed["j"], seats(&["b", "b"]));
    }

    #[test]
    fn a_gang_larger_than_any_node_is_spread_in_rank_order() {
        let solution = solve_for(&[node("a", 1), node("b", 2)], &[gang("j", 0, 1, 3)]);
        assert_eq!(solution.placed["j"], seats(&["b", "b", "a"]));
    }

    #[test]
    fn an_elastic_gang_starts_with_what_there_is_but_not_with_less_than_its_fewest() {
        let elastic = Gang { min_ranks: 2, ..gang("j", 0, 1, 4) };
        let solution = solve_for(&[node("a", 3)], std::slice::from_ref(&elastic));
        assert_eq!(solution.placed["j"], seats(&["a", "a", "a", "-"]));
        let solution = solve_for(&[node("a", 1)], &[elastic]);
        assert_eq!(
            solution.waiting["j"].to_string(),
            "needs 2 cpu slots; the connected nodes have 1 in all"
        );
    }

    #[test]
    fn higher_priority_goes_first_then_the_older_job() {
        let gangs = [gang("old", 0, 1, 1), gang("new", 0, 2, 1), gang("high", 5, 3, 1)];
        let solution = solve_for(&[node("a", 2)], &gangs);
        assert_eq!(solution.placed.keys().collect::<Vec<_>>(), ["high", "old"]);
        assert_eq!(
            solution.waiting["new"].to_string(),
            "waits: needs 1 cpu slot, 0 free, 1 held by job high, 1 held by job old"
        );
    }

    #[test]
    fn a_small_gang_goes_ahead_only_where_it_cannot_delay_the_one_before_it() {
        let (big, small) = (gang("big", 0, 2, 2), gang("small", 0, 3, 1));
        let one = running("one", 0, 1, &["a"]);
        let solution = solve_for(&[node("a", 2)], &[one, big.clone(), small.clone()]);
        assert_eq!(
            solution.waiting["big"].to_string(),
            "waits: needs 2 cpu slots, 1 free, 1 held by job one"
        );
        assert_eq!(solution.waiting["small"].to_string(), "waits behind job big");

        // When the running job ends, three slots are free: one is to spare.
        let two = running("two", 0, 1, &["a", "a"]);
        let solution = solve_for(&[node("a", 3)], &[two, big, small]);
        assert_eq!(solution.placed["small"], seats(&["a"]));
        assert!(solution.waiting.contains_key("big"));
    }

    #[test]
    fn a_gang_no_cluster_could_hold_blocks_nobody() {
        let gangs = [gang("huge", 9, 1, 64), gang("small", 0, 2, 1)];
        let closed = Node { closed: true, ..node("b", 70) };
        let solution = solve_for(&[node("a", 2), closed], &gangs);
        assert!(solution.placed.contains_key("small"));
        assert_eq!(
            solution.waiting["huge"].to_string(),
            "needs 64 cpu slots; the connected nodes have 2 in all, and 70 on nodes that are drained \
             or excluded"
        );
    }

    #[test]
    fn a_slot_whose_last_rank_is_still_ending_is_waited_for() {
        let node = Node { strays: 1, ..node("a", 2) };
        let solution = solve_for(&[node], &[gang("j", 0, 1, 2)]);
        assert_eq!(
            solution.waiting["j"].to_string(),
            "waits: needs 2 cpu slots, 1 free, 1 of ranks that are ending"
        );
    }

    #[test]
    fn a_lost_rank_goes_back_to_its_node_and_before_others_of_its_priority() {
        let hurt = Gang {
            standing: Standing::Forming,
            seats: seats(&["a", "-"]),
            preferred: seats(&["-", "b"]),
            ..gang("hurt", 0, 9, 2)
        };
        let gangs = [gang("older", 0, 1, 1), hurt];
        let solution = solve_for(&[node("a", 1), node("b", 1)], &gangs);
        assert_eq!(solution.placed["hurt"], seats(&["a", "b"]));
        assert!(solution.waiting.contains_key("older"));
    }

    #[test]
    fn of_two_gangs_that_lost_ranks_the_later_gives_way_so_that_one_can_run() {
        let forming = |job_id: &str, sequence| Gang {
            standing: Standing::Forming,
            seats: seats(&["a", "-"]),
            ..gang(job_id, 0, sequence, 2)
        };
        let solution = solve_for(&[node("a", 2)], &[forming("one", 1), forming("two", 2)]);
        let room = Stop::MakesRoom { job_id: "one".to_owned() };
        assert_eq!(solution.stopped, BTreeMap::from([("two".to_owned(), room)]));
        assert_eq!(
            solution.waiting["one"].to_string(),
            "waits: needs 1 more cpu slot, 0 free, 1 held by job two until its next checkpoint"
        );
    }

    #[test]
    fn a_job_for_another_accelerator_waits_and_says_for_what() {
        let gpu = Gang { accelerator: "cuda".to_owned(), ..gang("gpu", 0, 1, 1) };
        let solution = solve_for(&[node("a", 1)], &[gpu]);
        assert_eq!(
            solution.waiting["gpu"].to_string(),
            "waits for a node with accelerator cuda; none is connected"
        );
    }

    #[test]
    fn the_youngest_job_of_the_lowest_priority_makes_room_and_the_head_says_for_whom_it_waits() {
        let gangs = [
            running("old", 0, 1, &["a", "a"]),
            running("young", 0, 2, &["a", "a"]),
            gang("urgent", 1, 3, 2),
            gang("equal", 0, 4, 1),
        ];
        let solution = solve_for(&[node("a", 4)], &gangs);
        assert_eq!(solution.stopped.keys().collect::<Vec<_>>(), ["young"]);
        assert_eq!(
            solution.waiting["urgent"].to_string(),
            "waits: needs 2 cpu slots, 0 free, 2 held by job young until its next checkpoint, 2 held \
             by job old"
        );
        assert_eq!(solution.waiting["equal"].to_string(), "waits behind job urgent");
    }

    #[test]
    fn a_ring_that_may_grow_keeps_its_slots_until_its_checkpoint() {
        let small = Gang { seats: seats(&["a", "-"]), ..running("small", 0, 1, &["a", "-"]) };
        let next = gang("next", 0, 2, 1);
        let solution = solve_for(&[node("a", 2)], &[small.clone(), next.clone()]);
        assert_eq!(solution.placed["small"], seats(&["a", "-"]));
        assert_eq!(
            solution.waiting["next"].to_string(),
            "waits: needs 1 cpu slot, 0 free, 1 kept for job small, which grows at its next \
             checkpoint, 1 held by job small"
        );
        let ready = Gang { standing: Standing::Training { at_checkpoint: true }, ..small };
        let solution = solve_for(&[node("a", 2)], &[ready, next]);
        assert_eq!(solution.placed["small"], seats(&["a", "a"]));
    }

    #[test]
    fn at_a_checkpoint_ranks_leave_a_closed_node_shrink_or_stop() {
        let closed = Node { closed: true, ..node("a", 2) };
        let job = Gang {
            standing: Standing::Training { at_checkpoint: true },
            ..running("j", 0, 1, &["a", "b"])
        };
        let moved = solve_for(&[closed.clone(), node("b", 2)], std::slice::from_ref(&job));
        assert_eq!(moved.placed["j"], seats(&["b", "b"]));

        let elastic = Gang { min_ranks: 1, ..job.clone() };
        let shrunk = solve_for(&[closed.clone(), node("b", 1)], &[elastic]);
        assert_eq!(shrunk.placed["j"], seats(&["-", "b"]));

        let stopped = solve_for(&[closed.clone(), node("b", 1)], std::slice::from_ref(&job));
        assert_eq!(stopped.stopped["j"], Stop::Closed);

        let early = Gang { standing: Standing::Training { at_checkpoint: false }, ..job };
        let waits = solve_for(&[closed, node("b", 2)], &[early]);
        assert_eq!(waits.placed["j"], seats(&["a", "b"]));
    }

    #[test]
    fn ten_thousand_nodes_and_a_thousand_jobs_are_solved_well_within_a_tick() {
        let nodes: Vec<Node> = (0..10_000).map(|at| node(&format!("n{at:05}"), 1)).collect();
        let mut gangs: Vec<Gang> =
            (0..1000).map(|at| gang(&format!("j{at:04}"), at % 3, at as u64, 12)).collect();
        let begun = std::time::Instant::now();
        let first = solve_for(&nodes, &gangs);
        let placed = first.placed.len();
        assert_eq!((placed, first.waiting.len()), (833, 167));
        for gang in &mut gangs {
            if let Some(seats) = first.placed.get(&gang.job_id) {
                gang.seats.clone_from(seats);
                gang.standing = Standing::Training { at_checkpoint: false };
            }
        }
        let again = solve_for(&nodes, &gangs);
        assert_eq!(again.placed.len(), placed);
        assert!(begun.elapsed() < std::time::Duration::from_secs(1), "{:?}", begun.elapsed());
    }
}
