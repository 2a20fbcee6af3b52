//! The decision itself.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::{Gang, Node, Problem, Reason, Solution};

/// Returns who sits where.
///
/// Guarantees: no node holds more ranks than it has slots (beyond seats that were taken already);
/// a gang is placed whole or not at all; seats that are taken never move; the answer to the
/// problem with the answer's seats filled in is the same answer.
pub fn solve(problem: &Problem) -> Solution {
    // ---- 1. What is free once every taken seat is counted
    let mut free = Free::new(problem);

    // ---- 2. Everybody who needs a seat, in order: jobs that lost ranks before new ones
    let mut order: Vec<&Gang> = problem.gangs.iter().collect();
    order.sort_by_key(|gang| (!gang.is_seated(), Reverse(gang.priority), gang.sequence));

    // ---- 3. One gang after another, all or nothing
    let mut solution = Solution::default();
    let mut blocked: BTreeMap<&str, &str> = BTreeMap::new();
    for gang in order {
        let outcome = match blocked.get(gang.accelerator.as_str()) {
            Some(first) if !gang.is_content() && gang.needed() > 0 => {
                Err(Reason::Behind { job_id: (*first).to_owned() })
            }
            _ => place(gang, &mut free),
        };
        match outcome {
            Ok(seats) => {
                solution.placed.insert(gang.job_id.clone(), seats);
            }
            Err(reason) => {
                if matches!(reason, Reason::Full { .. }) {
                    blocked.entry(&gang.accelerator).or_insert(&gang.job_id);
                }
                solution.waiting.insert(gang.job_id.clone(), reason);
            }
        }
    }
    solution
}

/// Free slots by node.
struct Free<'a> {
    nodes: BTreeMap<&'a str, (&'a Node, u32)>,
}

impl<'a> Free<'a> {
    fn new(problem: &'a Problem) -> Self {
        let free = |node: &Node| node.slots.saturating_sub(node.strays);
        let mut nodes: BTreeMap<_, _> =
            problem.nodes.iter().map(|node| (node.name.as_str(), (node, free(node)))).collect();
        for seat in problem.gangs.iter().flat_map(|gang| gang.seats.iter().flatten()) {
            if let Some((_, slots)) = nodes.get_mut(seat.as_str()) {
                *slots = slots.saturating_sub(1);
            }
        }
        Self { nodes }
    }

    /// Nodes a gang may use, with their free slots.
    fn fitting(&self, gang: &Gang) -> BTreeMap<&'a str, u32> {
        self.nodes
            .iter()
            .filter(|(_, (node, _))| node.accelerator == gang.accelerator)
            .map(|(name, (_, slots))| (*name, *slots))
            .collect()
    }

    fn take(&mut self, name: &str) {
        let (_, slots) = self.nodes.get_mut(name).expect("only known nodes are chosen");
        *slots -= 1;
    }

    fn total(&self, gang: &Gang) -> u32 {
        self.nodes
            .values()
            .filter(|(node, _)| node.accelerator == gang.accelerator)
            .map(|(node, _)| node.slots)
            .sum()
    }
}

/// Finds a seat for as many ranks as can be, or says why there are not enough for the gang to run.
fn place(gang: &Gang, free: &mut Free<'_>) -> Result<Vec<Option<String>>, Reason> {
    if gang.is_content() {
        return Ok(gang.seats.clone());
    }
    let mut fitting = free.fitting(gang);
    refuse_if_short(gang, &fitting, free.total(gang))?;
    let mut wanted = gang.vacant().min(fitting.values().sum());

    // Ranks go back to where they were, if they can: their files are there.
    let mut seats = gang.seats.clone();
    for (seat, preferred) in seats.iter_mut().zip(&gang.preferred) {
        let Some(name) = preferred.as_deref().filter(|_| seat.is_none()) else { continue };
        if let Some(slots) = fitting.get_mut(name).filter(|slots| **slots > 0) {
            *slots -= 1;
            wanted -= 1;
            free.take(name);
            *seat = Some(name.to_owned());
        }
    }

    // The others share as few nodes as can be, ranks in order on each.
    while wanted > 0 {
        let name = best_node(&fitting, wanted);
        for seat in seats.iter_mut().filter(|seat| seat.is_none()) {
            let slots = fitting.get_mut(name).expect("the node is one of those that fit");
            if *slots == 0 || wanted == 0 {
                break;
            }
            *slots -= 1;
            wanted -= 1;
            free.take(name);
            *seat = Some(name.to_owned());
        }
    }
    Ok(seats)
}

fn refuse_if_short(gang: &Gang, fitting: &BTreeMap<&str, u32>, total: u32) -> Result<(), Reason> {
    let (wanted, free) = (gang.needed(), fitting.values().sum::<u32>());
    if free >= wanted {
        return Ok(());
    }
    let accelerator = gang.accelerator.clone();
    if fitting.is_empty() {
        return Err(Reason::NoNode { accelerator });
    }
    if total < gang.min_ranks {
        return Err(Reason::TooLarge { wanted: gang.min_ranks, slots: total, accelerator });
    }
    Err(Reason::Full { wanted, free })
}

/// The smallest node that holds all that is missing, else the one with most room.
fn best_node<'a>(fitting: &BTreeMap<&'a str, u32>, missing: u32) -> &'a str {
    let enough = fitting
        .iter()
        .filter(|(_, slots)| **slots >= missing)
        .min_by_key(|(name, slots)| (**slots, **name));
    let most = || fitting.iter().max_by_key(|(name, slots)| (**slots, Reverse(**name)));
    enough.or_else(most).map(|(name, _)| *name).expect("enough slots are free")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::super::Standing;
    use super::*;

    fn node(name: &str, slots: u32) -> Node {
        Node { name: name.to_owned(), slots, strays: 0, accelerator: "cpu".to_owned() }
    }

    fn gang(job_id: &str, priority: i32, sequence: u64, ranks: usize) -> Gang {
        Gang {
            job_id: job_id.to_owned(),
            priority,
            sequence,
            accelerator: "cpu".to_owned(),
            min_ranks: u32::try_from(ranks).unwrap(),
            standing: Standing::Queued,
            seats: vec![None; ranks],
            preferred: vec![None; ranks],
        }
    }

    fn seats(nodes: &[&str]) -> Vec<Option<String>> {
        nodes.iter().map(|node| (*node != "-").then(|| (*node).to_owned())).collect()
    }

    #[test]
    fn a_gang_takes_the_smallest_node_that_holds_it() {
        let problem =
            Problem { nodes: vec![node("a", 8), node("b", 2)], gangs: vec![gang("j", 0, 1, 2)] };
        assert_eq!(solve(&problem).placed["j"], seats(&["b", "b"]));
    }

    #[test]
    fn a_gang_larger_than_any_node_is_spread_in_rank_order() {
        let problem =
            Problem { nodes: vec![node("a", 1), node("b", 2)], gangs: vec![gang("j", 0, 1, 3)] };
        assert_eq!(solve(&problem).placed["j"], seats(&["b", "b", "a"]));
    }

    #[test]
    fn higher_priority_goes_first_then_the_older_job() {
        let gangs = vec![gang("old", 0, 1, 1), gang("new", 0, 2, 1), gang("high", 5, 3, 1)];
        let solution = solve(&Problem { nodes: vec![node("a", 2)], gangs });
        assert_eq!(solution.placed.keys().collect::<Vec<_>>(), ["high", "old"]);
        assert_eq!(solution.waiting["new"], Reason::Full { wanted: 1, free: 0 });
    }

    #[test]
    fn a_waiting_gang_is_not_starved_by_smaller_ones_behind_it() {
        let mut running = gang("running", 0, 1, 1);
        running.seats = vec![Some("a".to_owned())];
        running.standing = Standing::Training { at_checkpoint: false };
        let gangs = vec![running, gang("big", 0, 2, 2), gang("small", 0, 3, 1)];
        let solution = solve(&Problem { nodes: vec![node("a", 2)], gangs });
        assert_eq!(solution.waiting["big"].to_string(), "waits for free slots: 2 needed, 1 free");
        assert_eq!(solution.waiting["small"].to_string(), "waits behind job big");
    }

    #[test]
    fn a_gang_no_cluster_could_hold_blocks_nobody() {
        let gangs = vec![gang("huge", 9, 1, 64), gang("small", 0, 2, 1)];
        let solution = solve(&Problem { nodes: vec![node("a", 2)], gangs });
        assert!(solution.placed.contains_key("small"));
        assert_eq!(
            solution.waiting["huge"].to_string(),
            "needs 64 cpu slots; the connected nodes have 2 in all"
        );
    }

    #[test]
    fn a_slot_whose_last_rank_is_still_ending_is_waited_for() {
        let mut node = node("a", 2);
        node.strays = 1;
        let solution = solve(&Problem { nodes: vec![node], gangs: vec![gang("j", 0, 1, 2)] });
        assert_eq!(solution.waiting["j"], Reason::Full { wanted: 2, free: 1 });
    }

    #[test]
    fn a_lost_rank_goes_back_to_its_node_and_before_new_jobs() {
        let mut hurt = gang("hurt", 0, 9, 2);
        hurt.seats = vec![Some("a".to_owned()), None];
        hurt.standing = Standing::Forming;
        hurt.preferred = vec![None, Some("b".to_owned())];
        let gangs = vec![gang("new", 100, 1, 1), hurt];
        let solution = solve(&Problem { nodes: vec![node("a", 1), node("b", 1)], gangs });
        assert_eq!(solution.placed["hurt"], seats(&["a", "b"]));
        assert!(solution.waiting.contains_key("new"));
    }

    #[test]
    fn a_job_for_another_accelerator_waits_and_says_for_what() {
        let mut gpu = gang("gpu", 0, 1, 1);
        gpu.accelerator = "cuda".to_owned();
        let solution = solve(&Problem { nodes: vec![node("a", 1)], gangs: vec![gpu] });
        assert_eq!(
            solution.waiting["gpu"].to_string(),
            "waits for a node with accelerator cuda; none is connected"
        );
    }

    fn problem() -> impl Strategy<Value = Problem> {
        let nodes = proptest::collection::vec((0..5_u32, any::<bool>()), 0..5);
        let gangs = proptest::collection::vec((-2..3_i32, 1..6_usize, any::<bool>()), 0..7);
        (nodes, gangs).prop_map(|(nodes, gangs)| {
            let accelerator = |cuda| if cuda { "cuda".to_owned() } else { "cpu".to_owned() };
            let nodes = nodes.into_iter().enumerate().map(|(index, (slots, cuda))| Node {
                name: format!("n{index}"),
                slots,
                strays: slots / 3,
                accelerator: accelerator(cuda),
            });
            let gangs =
                gangs.into_iter().enumerate().map(|(index, (priority, ranks, cuda))| Gang {
                    accelerator: accelerator(cuda),
                    ..gang(&format!("j{index}"), priority, index as u64, ranks)
                });
            Problem { nodes: nodes.collect(), gangs: gangs.collect() }
        })
    }

    /// The problem one gets after carrying out a solution.
    fn carry_out(problem: &Problem, solution: &Solution) -> Problem {
        let mut next = problem.clone();
        for gang in &mut next.gangs {
            if let Some(seats) = solution.placed.get(&gang.job_id) {
                gang.seats.clone_from(seats);
                gang.standing = Standing::Forming;
            }
        }
        next
    }

    fn check(problem: &Problem, solution: &Solution) -> Result<(), TestCaseError> {
        let mut used: BTreeMap<&str, u32> = BTreeMap::new();
        for gang in &problem.gangs {
            let placed = solution.placed.get(&gang.job_id);
            let waits = solution.waiting.contains_key(&gang.job_id);
            prop_assert!(placed.is_some() != waits, "placed or waiting, not both");
            let seats: Vec<&String> = match placed {
                Some(seats) => {
                    prop_assert_eq!(seats.len(), gang.seats.len(), "all or nothing");
                    for (seat, before) in seats.iter().zip(&gang.seats) {
                        prop_assert!(before.is_none() || before == seat);
                    }
                    seats.iter().flatten().collect()
                }
                None => gang.seats.iter().flatten().collect(),
            };
            for seat in seats {
                let node = problem.nodes.iter().find(|node| node.name == *seat).unwrap();
                prop_assert_eq!(&node.accelerator, &gang.accelerator);
                *used.entry(&node.name).or_default() += 1;
            }
        }
        for node in &problem.nodes {
            let used = used.get(node.name.as_str()).copied().unwrap_or(0);
            prop_assert!(used + node.strays <= node.slots);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn capacity_holds_gangs_are_whole_and_solving_again_moves_nobody(problem in problem()) {
            let solution = solve(&problem);
            check(&problem, &solution)?;
            let next = carry_out(&problem, &solution);
            let again = solve(&next);
            prop_assert_eq!(&again.placed, &solution.placed);
            check(&next, &again)?;
        }

        #[test]
        fn a_gang_that_lost_ranks_keeps_the_seats_of_the_others(
            problem in problem(),
            lost in any::<proptest::sample::Index>(),
        ) {
            let mut next = carry_out(&problem, &solve(&problem));
            let mut seated: Vec<&mut Gang> =
                next.gangs.iter_mut().filter(|gang| gang.is_seated()).collect();
            if seated.is_empty() {
                return Ok(());
            }
            let chosen = lost.index(seated.len());
            let gang = &mut seated[chosen];
            let node = gang.seats[0].take();
            gang.preferred[0] = node.clone();
            let job_id = gang.job_id.clone();
            let solution = solve(&next);
            check(&next, &solution)?;
            prop_assert_eq!(&solution.placed[&job_id][0], &node);
        }
    }
}
