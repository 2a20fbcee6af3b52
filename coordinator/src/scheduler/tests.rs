//! What holds for every problem, as properties over random ones.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// Random problems per property.
const CASES: u32 = 2000;

/// An open node that nobody uses.
pub(super) fn node(name: &str, slots: u32) -> Node {
    let (name, accelerator) = (name.to_owned(), "cpu".to_owned());
    Node { name, slots, strays: 0, accelerator, closed: false, unusable: false, suspect: false }
}

/// A queued gang that is not elastic.
pub(super) fn gang(job_id: &str, priority: i32, sequence: u64, ranks: usize) -> Gang {
    Gang {
        job_id: job_id.to_owned(),
        priority,
        sequence,
        accelerator: "cpu".to_owned(),
        min_ranks: count(ranks),
        standing: Standing::Queued,
        seats: vec![None; ranks],
        preferred: vec![None; ranks],
        avoids: BTreeMap::new(),
    }
}

/// Seats by the names of their nodes; "-" is vacant.
pub(super) fn seats(nodes: &[&str]) -> Vec<Option<String>> {
    nodes.iter().map(|node| (*node != "-").then(|| (*node).to_owned())).collect()
}

/// What a gang is made of: priority, ranks, fewest ranks, accelerator, standing once placed, seats
/// that are lost.
type Draft = (i32, usize, u32, bool, u8, Vec<Index>);

fn draft(priorities: std::ops::Range<i32>) -> impl Strategy<Value = Draft> {
    let lost = proptest::collection::vec(any::<Index>(), 0..2);
    (priorities, 1..6_usize, 1..6_u32, proptest::bool::weighted(0.2), 0..8_u8, lost)
}

fn accelerator(cuda: bool) -> String {
    if cuda { "cuda".to_owned() } else { "cpu".to_owned() }
}

fn queued(index: usize, (priority, ranks, min_ranks, cuda, ..): &Draft) -> Gang {
    Gang {
        accelerator: accelerator(*cuda),
        min_ranks: (*min_ranks).min(count(*ranks)),
        ..gang(&format!("j{index}"), *priority, index as u64, *ranks)
    }
}

/// A problem in the middle of a cluster's life: some gangs were placed at an earlier time and have
/// lost ranks, train, grow or leave; some nodes were closed or became unusable since; the others are queued.
fn problem() -> impl Strategy<Value = Problem> {
    let rarely = || proptest::bool::weighted(0.2);
    let node = (0..6_u32, rarely(), 0..3_u32, rarely(), rarely());
    let nodes = proptest::collection::vec(node, 0..5);
    let placed = proptest::collection::vec(draft(-1..2), 0..6);
    let waiting = proptest::collection::vec(draft(-1..3), 0..6);
    (nodes, placed, waiting).prop_map(|(nodes, placed, waiting)| {
        let mut earlier = Problem {
            nodes: nodes
                .iter()
                .enumerate()
                .map(|(index, (slots, cuda, ..))| Node {
                    accelerator: accelerator(*cuda),
                    ..self::node(&format!("n{index}"), *slots)
                })
                .collect(),
            gangs: placed.iter().enumerate().map(|(index, draft)| queued(index, draft)).collect(),
        };
        let solution = solve(&earlier);
        for (gang, (.., standing, lost)) in earlier.gangs.iter_mut().zip(&placed) {
            let Some(seats) = solution.placed.get(&gang.job_id) else { continue };
            gang.seats.clone_from(seats);
            gang.standing = match standing {
                0..=3 => Standing::Training { at_checkpoint: *standing == 0 },
                4 => Standing::Held,
                5 => Standing::Leaving,
                _ => Standing::Forming,
            };
            let ranks = gang.seats.len();
            for seat in lost.iter().map(|index| index.index(ranks)) {
                if gang.standing == Standing::Forming || gang.taken() > gang.min_ranks {
                    gang.preferred[seat] = gang.seats[seat].take();
                }
            }
        }
        let all = |gang: &Gang| gang.seats.iter().flatten().cloned().collect::<Vec<_>>();
        let used: Vec<String> = earlier.gangs.iter().flat_map(all).collect();
        for (node, (.., strays, closed, unusable)) in earlier.nodes.iter_mut().zip(&nodes) {
            let taken = count(used.iter().filter(|name| **name == node.name).count());
            node.strays = (*strays).min(node.slots - taken);
            (node.closed, node.unusable) = (*closed, *unusable);
        }
        let first = earlier.gangs.len();
        let later = waiting.iter().enumerate().map(|(index, draft)| queued(first + index, draft));
        earlier.gangs.extend(later);
        earlier
    })
}

/// The problem one gets after carrying out a solution.
fn carry_out(problem: &Problem, solution: &Solution) -> Problem {
    let mut next = problem.clone();
    for gang in &mut next.gangs {
        if solution.stopped.contains_key(&gang.job_id) {
            gang.standing = Standing::Leaving;
        } else if let Some(seats) = solution.placed.get(&gang.job_id)
            && *seats != gang.seats
        {
            gang.seats.clone_from(seats);
            gang.standing = Standing::Forming;
        } else if gang.standing == (Standing::Training { at_checkpoint: true }) {
            gang.standing = Standing::Training { at_checkpoint: false };
        }
    }
    next
}

fn is_closed(problem: &Problem, name: &str) -> bool {
    problem.nodes.iter().any(|node| node.closed && node.name == name)
}

fn is_open(problem: &Problem, name: &str) -> bool {
    problem.nodes.iter().any(|node| node.is_open() && node.name == name)
}

/// Seats of a gang as a solution leaves them.
fn after<'a>(gang: &'a Gang, solution: &'a Solution) -> &'a [Option<String>] {
    match solution.placed.get(&gang.job_id) {
        Some(seats) if !solution.stopped.contains_key(&gang.job_id) => seats,
        _ => &gang.seats,
    }
}

fn taken(seats: &[Option<String>]) -> u32 {
    count(seats.iter().flatten().count())
}

/// Ranks a solution adds to a gang.
fn gained(gang: &Gang, solution: &Solution) -> u32 {
    taken(after(gang, solution)).saturating_sub(gang.taken())
}

/// Slots that are free on open nodes with an accelerator.
fn free(problem: &Problem, accelerator: &str) -> u32 {
    pool::Pool::new(problem).free(accelerator)
}

fn waits_for_slots(gang: &Gang, solution: &Solution) -> bool {
    matches!(solution.waiting.get(&gang.job_id), Some(Reason::Full { .. } | Reason::Behind { .. }))
}

fn capacity_holds(problem: &Problem, solution: &Solution) -> Result<(), TestCaseError> {
    let mut used: BTreeMap<&str, u32> = BTreeMap::new();
    for gang in &problem.gangs {
        for name in after(gang, solution).iter().flatten() {
            let node = problem.nodes.iter().find(|node| node.name == *name).unwrap();
            prop_assert_eq!(&node.accelerator, &gang.accelerator);
            *used.entry(&node.name).or_default() += 1;
        }
    }
    for node in &problem.nodes {
        let used = used.get(node.name.as_str()).copied().unwrap_or(0);
        prop_assert!(used + node.strays <= node.slots, "{} is over its slots", node.name);
    }
    Ok(())
}

fn gangs_are_whole_and_sit_still(
    problem: &Problem,
    solution: &Solution,
) -> Result<(), TestCaseError> {
    for gang in &problem.gangs {
        let waits = solution.waiting.contains_key(&gang.job_id);
        let placed = solution.placed.get(&gang.job_id);
        prop_assert!(placed.is_some() != waits, "placed or waiting, not both");
        let seats = after(gang, solution);
        prop_assert_eq!(seats.len(), gang.seats.len());
        if seats != gang.seats {
            prop_assert!(taken(seats) >= gang.min_ranks, "fewer than its fewest: {gang:?}");
        }
        for (before, now) in gang.seats.iter().zip(seats) {
            let may_move = gang.standing == (Standing::Training { at_checkpoint: true })
                && before.as_ref().is_some_and(|name| is_closed(problem, name));
            prop_assert!(before.is_none() || before == now || may_move, "{gang:?} was moved");
            if before != now {
                let open = now.as_ref().is_none_or(|name| is_open(problem, name));
                prop_assert!(open, "a node that takes no ranks got one of {gang:?}");
            }
        }
        let fixed = !matches!(
            gang.standing,
            Standing::Queued | Standing::Forming | Standing::Training { at_checkpoint: true }
        );
        prop_assert!(!fixed || seats == gang.seats, "{gang:?} was changed");
    }
    Ok(())
}

/// Whoever waits at the head of a line could not have started on what later gangs got.
fn nobody_is_overtaken(problem: &Problem, solution: &Solution) -> Result<(), TestCaseError> {
    let next = carry_out(problem, solution);
    for head in &problem.gangs {
        let Some(Reason::Full { wanted, .. }) = solution.waiting.get(&head.job_id) else {
            continue;
        };
        let later = problem.gangs.iter().filter(|other| {
            let restored = other.standing == Standing::Forming && other.needed() > 0
                || other.preferred.iter().any(Option::is_some)
                || other.standing == (Standing::Training { at_checkpoint: true });
            other.accelerator == head.accelerator && other.place() > head.place() && !restored
        });
        let got: u32 = later.map(|other| gained(other, solution)).sum();
        let kept = solution.waiting.get(&head.job_id).map_or(0, |reason| match reason {
            Reason::Full { holders, .. } => holders
                .iter()
                .filter(|holder| holder.hold == Hold::ForGrowth)
                .map(|holder| holder.slots)
                .sum(),
            _ => 0,
        });
        let left = free(&next, &head.accelerator).saturating_sub(kept);
        prop_assert!(got + left < *wanted, "{head:?} could have started");
    }
    for (earlier, later) in
        problem.gangs.iter().flat_map(|a| problem.gangs.iter().map(move |b| (a, b)))
    {
        let comparable = earlier.place() < later.place()
            && earlier.accelerator == later.accelerator
            && earlier.standing == Standing::Queued
            && later.standing == Standing::Queued
            && earlier.min_ranks <= later.min_ranks;
        if comparable && waits_for_slots(earlier, solution) {
            prop_assert_eq!(gained(later, solution), 0, "{:?} overtook {:?}", later, earlier);
        }
    }
    Ok(())
}

fn preemption_is_minimal(problem: &Problem, solution: &Solution) -> Result<(), TestCaseError> {
    let pool = pool::Pool::new(problem);
    let next = carry_out(problem, solution);
    for head in &problem.gangs {
        let room = Stop::MakesRoom { job_id: head.job_id.clone() };
        let victims: Vec<&Gang> = problem
            .gangs
            .iter()
            .filter(|gang| solution.stopped.get(&gang.job_id) == Some(&room))
            .collect();
        if victims.is_empty() {
            continue;
        }
        for victim in &victims {
            let cannot_run = victim.standing == Standing::Forming && victim.needed() > 0;
            prop_assert!(victim.priority < head.priority || cannot_run, "{victim:?} for {head:?}");
        }
        let Some(Reason::Full { wanted, free, ending, .. }) = solution.waiting.get(&head.job_id)
        else {
            return Err(TestCaseError::fail("somebody is stopped for a gang that does not wait"));
        };
        let frees = |gang: &Gang| pool.held_by(&gang.seats, head);
        // Who leaves a closed node with lower priority is dealt with later.
        let leaving = next.gangs.iter().filter(|gang| {
            let late = gang.priority < head.priority
                && solution.stopped.get(&gang.job_id) == Some(&Stop::Closed);
            gang.standing == Standing::Leaving && gang.accelerator == head.accelerator && !late
        });
        let coming = free + ending + leaving.map(frees).sum::<u32>();
        prop_assert!(coming >= *wanted, "stopping them is not enough for {head:?}");
        for victim in victims {
            prop_assert!(coming - frees(victim) < *wanted, "{victim:?} was stopped needlessly");
        }
    }
    Ok(())
}

/// Every way in which the holders may end: does the head start as early as without the gangs that
/// were let past it?
fn the_head_is_not_delayed(problem: &Problem, solution: &Solution) -> Result<(), TestCaseError> {
    let next = carry_out(problem, solution);
    let pool = pool::Pool::new(&next);
    for head in &problem.gangs {
        let Some(Reason::Full { wanted, holders, .. }) = solution.waiting.get(&head.job_id) else {
            continue;
        };
        let same =
            |gang: &&Gang| gang.accelerator == head.accelerator && gang.job_id != head.job_id;
        let past = |gang: &&Gang| {
            let before = problem.gangs.iter().find(|before| before.job_id == gang.job_id).unwrap();
            gang.place() > head.place()
                && before.standing == Standing::Queued
                && gained(before, solution) > 0
        };
        let others: Vec<&Gang> = next.gangs.iter().filter(same).collect();
        let backfilled: u32 =
            others.iter().copied().filter(past).map(|gang| pool.held_by(&gang.seats, head)).sum();
        let growth: BTreeMap<&str, u32> = holders
            .iter()
            .filter(|holder| holder.hold == Hold::ForGrowth)
            .map(|holder| (holder.job_id.as_str(), holder.slots))
            .collect();
        let kept: u32 = growth.values().sum();
        let free = pool.free(&head.accelerator) - kept;
        let mut sizes: Vec<u32> = others
            .iter()
            .copied()
            .filter(|gang| !past(gang))
            .map(|gang| {
                pool.held_by(&gang.seats, head)
                    + growth.get(gang.job_id.as_str()).copied().unwrap_or(0)
            })
            .collect();
        sizes.extend(std::iter::repeat_n(1, pool.strays(&head.accelerator) as usize));
        for ended in 0..1_u32 << sizes.len() {
            let chosen = sizes.iter().enumerate().filter(|(bit, _)| ended & (1 << bit) != 0);
            let freed: u32 = free + chosen.map(|(_, size)| size).sum::<u32>();
            prop_assert_eq!(freed >= *wanted, freed + backfilled >= *wanted, "{:?}", head);
        }
    }
    Ok(())
}

/// When each of a queue's gangs starts, if the jobs of `ends` end one after another. Starts of the
/// first gang that has to wait are what is compared.
fn first_to_wait_starts_at(mut problem: Problem, ends: &[Index]) -> (Option<String>, usize) {
    let mut head = None;
    for (step, end) in ends.iter().enumerate() {
        let solution = solve(&problem);
        problem = carry_out(&problem, &solution);
        for gang in &mut problem.gangs {
            if gang.standing == Standing::Forming {
                gang.standing = Standing::Training { at_checkpoint: false };
            }
        }
        let waits =
            |gang: &&Gang| matches!(solution.waiting.get(&gang.job_id), Some(Reason::Full { .. }));
        let first = problem.gangs.iter().find(waits).map(|gang| gang.job_id.clone());
        let head: &mut Option<String> = head.get_or_insert(first);
        let Some(name) = head.as_ref() else { return (None, 0) };
        let started = problem.gangs.iter().any(|gang| gang.job_id == *name && gang.taken() > 0);
        if started {
            return (head.clone(), step);
        }
        // Of those that ran at first one ends; those that were let past the head run for ever.
        let name: usize = name[1..].parse().unwrap();
        let running: Vec<usize> = (0..problem.gangs.len())
            .filter(|at| problem.gangs[*at].taken() > 0)
            .filter(|at| problem.gangs[*at].job_id[1..].parse::<usize>().unwrap() < name)
            .collect();
        if !running.is_empty() {
            problem.gangs.remove(running[end.index(running.len())]);
        }
    }
    (head.flatten(), usize::MAX)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn no_node_holds_more_than_its_slots(problem in problem()) {
        capacity_holds(&problem, &solve(&problem))?;
    }

    #[test]
    fn gangs_start_whole_sit_still_and_keep_off_closed_nodes(problem in problem()) {
        gangs_are_whole_and_sit_still(&problem, &solve(&problem))?;
    }

    #[test]
    fn higher_priority_and_then_age_go_first(problem in problem()) {
        nobody_is_overtaken(&problem, &solve(&problem))?;
    }

    #[test]
    fn only_lower_priority_is_stopped_and_no_more_than_it_takes(problem in problem()) {
        preemption_is_minimal(&problem, &solve(&problem))?;
    }

    #[test]
    fn the_head_starts_as_early_as_without_backfill_whichever_jobs_end(problem in problem()) {
        the_head_is_not_delayed(&problem, &solve(&problem))?;
    }

    #[test]
    fn solving_again_changes_nothing_and_stops_nobody_further(problem in problem()) {
        let solution = solve(&problem);
        let next = carry_out(&problem, &solution);
        let again = solve(&next);
        capacity_holds(&next, &again)?;
        prop_assert_eq!(&again.stopped, &BTreeMap::new());
        for gang in &next.gangs {
            prop_assert_eq!(after(gang, &again), &gang.seats, "{:?}", gang);
        }
        prop_assert_eq!(&solve(&problem), &solution, "nothing but the problem decides");
    }

    #[test]
    fn through_a_whole_run_backfill_delays_the_head_by_no_step(
        slots in 1..12_u32,
        drafts in proptest::collection::vec((1..6_usize, 1..6_u32), 2..9),
        ends in proptest::collection::vec(any::<Index>(), 12),
    ) {
        let gangs = drafts.iter().enumerate().map(|(index, (ranks, min_ranks))| Gang {
            min_ranks: (*min_ranks).min(count(*ranks)),
            ..gang(&format!("j{index}"), 0, index as u64, *ranks)
        });
        let problem = Problem { nodes: vec![node("a", slots)], gangs: gangs.collect() };
        let with = first_to_wait_starts_at(problem.clone(), &ends);
        let mut alone = problem;
        if let (Some(head), _) = &with {
            let at = alone.gangs.iter().position(|gang| gang.job_id == *head).unwrap();
            alone.gangs.truncate(at + 1);
        }
        prop_assert_eq!(first_to_wait_starts_at(alone, &ends), with);
    }
}
