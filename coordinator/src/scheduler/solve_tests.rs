use super::super::Node;
use super::super::tests::{gang, node, seats};
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
         or excluded, or whose worker cannot start"
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
    let gangs: Vec<Gang> =
        (0..1000).map(|at| gang(&format!("j{at:04}"), at % 3, at as u64, 12)).collect();
    let limit = std::time::Duration::from_secs(1);
    let took = ringmaster_tests::timing::fastest(limit, || {
        let mut gangs = gangs.clone();
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
    });
    assert!(took < limit, "{took:?}");
}

#[test]
fn a_gang_does_not_go_back_to_a_node_that_it_avoids_and_waits_if_nothing_else_is_large_enough() {
    let avoids = BTreeMap::from([("b".to_owned(), "no device".to_owned())]);
    let hurt = Gang {
        standing: Standing::Forming,
        seats: seats(&["a", "-"]),
        preferred: seats(&["-", "b"]),
        avoids,
        ..gang("hurt", 0, 9, 2)
    };
    let solution =
        solve_for(&[node("a", 1), node("b", 2), node("c", 1)], std::slice::from_ref(&hurt));
    assert_eq!(solution.placed["hurt"], seats(&["a", "c"]));
    let small = [node("a", 1), node("b", 2)];
    let solution = solve_for(&small, &[hurt.clone(), gang("other", 0, 10, 2)]);
    assert_eq!(
        solution.waiting["hurt"].to_string(),
        "waits: needs 2 cpu slots; the nodes it does not avoid for a while have 1 in all; b: no device"
    );
    assert_eq!(
        solution.placed["other"],
        seats(&["b", "b"]),
        "it keeps nothing that it does not want"
    );
    // With as few ranks as it has it goes on, and does not grow onto that node.
    let elastic = Gang { min_ranks: 1, ..hurt };
    let solution = solve_for(&small, std::slice::from_ref(&elastic));
    assert_eq!(solution.placed["hurt"], seats(&["a", "-"]));
    let trains = Gang { standing: Standing::Training { at_checkpoint: true }, ..elastic };
    assert_eq!(solve_for(&small, &[trains]).placed["hurt"], seats(&["a", "-"]));
}

#[test]
fn a_seat_on_a_node_that_is_avoided_for_another_seat_stays_and_counts() {
    let avoids = BTreeMap::from([("b".to_owned(), "no device".to_owned())]);
    let hurt = Gang {
        standing: Standing::Forming,
        seats: seats(&["b", "-"]),
        avoids,
        ..gang("hurt", 0, 9, 2)
    };
    let solution = solve_for(&[node("b", 2), node("c", 1)], &[hurt]);
    assert_eq!(solution.placed["hurt"], seats(&["b", "c"]));
}

#[test]
fn a_lost_rank_goes_back_to_a_suspect_node_only_where_it_would_go_anyway() {
    let suspect = |name| Node { suspect: true, ..node(name, 1) };
    let hurt = || Gang {
        standing: Standing::Forming,
        seats: seats(&["a", "-"]),
        preferred: seats(&["-", "c"]),
        ..gang("hurt", 0, 9, 2)
    };
    let solution = solve_for(&[node("a", 1), node("b", 1), suspect("c")], &[hurt()]);
    assert_eq!(solution.placed["hurt"], seats(&["a", "b"]));
    let solution = solve_for(&[node("a", 1), suspect("c")], &[hurt()]);
    assert_eq!(solution.placed["hurt"], seats(&["a", "c"]));
}
