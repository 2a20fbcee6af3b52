use proptest::prelude::*;

use super::*;

fn in_generation(counter: u32, applied_step: u64, digest: u64, entered_ready: bool) -> Report {
    let agreed = Generation::new(1, counter);
    Report::Held(Held { applied_step, digest, entered_ready, agreed })
}

fn held(applied_step: u64, digest: u64, entered_ready: bool) -> Report {
    in_generation(1, applied_step, digest, entered_ready)
}

fn anywhere(reports: &[Report]) -> Plan {
    decide(reports, &Floor::default())
}

fn ranks(ranks: &[u32]) -> Vec<RingRank> {
    ranks.iter().copied().map(RingRank).collect()
}

#[test]
fn a_first_generation_starts_from_what_is_stored() {
    let plan = anywhere(&[Report::Fresh, Report::Fresh, Report::Fresh]);
    assert_eq!((plan.source, plan.source_rank), (Source::Stored, RingRank(0)));
    assert_eq!(plan.receivers, ranks(&[1, 2]));
}

#[test]
fn a_replacement_receives_from_the_lowest_survivor() {
    let plan = anywhere(&[Report::Fresh, held(7, 1, false), held(7, 1, false)]);
    assert_eq!((plan.source, plan.source_rank), (Source::Live, RingRank(1)));
    assert_eq!((plan.receivers, plan.apply_held), (ranks(&[0]), vec![]));
}

#[test]
fn a_survivor_one_step_behind_applies_what_it_holds() {
    let plan = anywhere(&[held(7, 5, true), held(8, 6, false), Report::Fresh]);
    assert_eq!((plan.source, plan.source_rank), (Source::Live, RingRank(1)));
    assert_eq!((plan.apply_held, plan.receivers), (ranks(&[0]), ranks(&[2])));
}

#[test]
fn a_survivor_one_step_behind_without_gradients_receives() {
    let plan = anywhere(&[held(7, 5, false), held(8, 6, true)]);
    assert_eq!((plan.apply_held, plan.receivers), (vec![], ranks(&[0])));
}

#[test]
fn gradients_of_a_step_nobody_applied_are_dropped() {
    let plan = anywhere(&[held(7, 5, true), held(7, 5, false)]);
    assert_eq!((plan.source, plan.source_rank), (Source::Live, RingRank(0)));
    assert_eq!((plan.apply_held, plan.receivers), (vec![], vec![]));
}

#[test]
fn survivors_that_disagree_fall_back_to_what_is_stored() {
    let plan = anywhere(&[held(7, 5, true), held(7, 6, true), held(6, 1, true)]);
    assert_eq!((plan.source, plan.source_rank), (Source::Stored, RingRank(0)));
    assert_eq!((plan.apply_held, plan.receivers), (vec![], ranks(&[1, 2])));
}

#[test]
fn who_agreed_in_an_older_generation_receives_however_far_it_has_come() {
    let plan = anywhere(&[in_generation(1, 300, 5, true), in_generation(3, 260, 6, false)]);
    assert_eq!((plan.source, plan.source_rank), (Source::Live, RingRank(1)));
    assert_eq!((plan.apply_held, plan.receivers), (vec![], ranks(&[0])));
    // Its gradients are of another ring: near the state of this one, and not the same.
    let plan = anywhere(&[in_generation(1, 259, 5, true), in_generation(3, 260, 6, false)]);
    assert_eq!((plan.apply_held, plan.receivers), (vec![], ranks(&[0])));
}

#[test]
fn a_survivor_of_an_older_generation_is_better_than_nothing() {
    let plan = anywhere(&[Report::Fresh, in_generation(1, 300, 5, true)]);
    assert_eq!((plan.source, plan.source_rank), (Source::Live, RingRank(1)));
}

#[test]
fn a_state_below_the_newest_checkpoint_does_not_count() {
    let floor = Floor { checkpoint_step: 480, gives_up: None };
    let plan = decide(&[Report::Fresh, held(479, 5, true)], &floor);
    assert_eq!(plan.source, Source::Stored);
    let plan = decide(&[Report::Fresh, held(480, 5, true)], &floor);
    assert_eq!(plan.source, Source::Live);
}

#[test]
fn a_state_that_a_roll_back_gave_up_does_not_count_though_nobody_else_holds_one() {
    let gives_up = Some(Generation::new(1, 2));
    let floor = Floor { checkpoint_step: 200, gives_up };
    let plan = decide(&[Report::Fresh, in_generation(2, 300, 5, false)], &floor);
    assert_eq!(plan.source, Source::Stored);
    let plan = decide(&[in_generation(3, 210, 6, false), in_generation(2, 300, 5, false)], &floor);
    assert_eq!((plan.source, plan.source_rank), (Source::Live, RingRank(0)));
    assert_eq!(plan.receivers, ranks(&[1]));
}

fn report() -> impl Strategy<Value = Report> {
    prop_oneof![
        Just(Report::Fresh),
        (0..3_u32, 0..4_u64, 0..2_u64, any::<bool>())
            .prop_map(|(counter, step, digest, ready)| in_generation(counter, step, digest, ready)),
    ]
}

fn floor() -> impl Strategy<Value = Floor> {
    (0..4_u64, proptest::option::of(0..3_u32)).prop_map(|(checkpoint_step, counter)| Floor {
        checkpoint_step,
        gives_up: counter.map(|counter| Generation::new(1, counter)),
    })
}

/// The states that a reader of the rules would let count.
fn by_the_rules(reports: &[Report], floor: &Floor) -> Vec<(usize, Held)> {
    let mut standing: Vec<(usize, Held)> = Vec::new();
    for (rank, report) in reports.iter().enumerate() {
        let Report::Held(held) = *report else { continue };
        let given_up = floor.gives_up.is_some_and(|gives_up| held.agreed <= gives_up);
        if held.applied_step >= floor.checkpoint_step && !given_up {
            standing.push((rank, held));
        }
    }
    let highest = standing.iter().map(|(_, held)| held.agreed).max();
    standing.retain(|(_, held)| Some(held.agreed) == highest);
    standing
}

proptest! {
    #[test]
    fn after_the_plan_every_rank_is_at_the_same_state(
        reports in proptest::collection::vec(report(), 1..8), floor in floor()
    ) {
        let plan = decide(&reports, &floor);
        prop_assert!(plan.source_rank.index() < reports.len());
        prop_assert!(!plan.receivers.contains(&plan.source_rank));
        prop_assert!(!plan.apply_held.contains(&plan.source_rank));
        let standing = by_the_rules(&reports, &floor);
        let newest = standing.iter().map(|(_, held)| held.applied_step).max();
        let at_newest = |held: &Held| Some(held.applied_step) == newest;
        if plan.source == Source::Stored {
            prop_assert_eq!(plan.receivers.len(), reports.len() - 1);
            prop_assert!(plan.apply_held.is_empty());
            let mut digests = standing.iter().filter(|(_, held)| at_newest(held))
                .map(|(_, held)| held.digest);
            let first = digests.next();
            prop_assert!(
                first.is_none() || digests.any(|digest| Some(digest) != first),
                "an agreed live state was thrown away"
            );
            return Ok(());
        }
        let source = standing.iter().find(|(rank, _)| *rank == plan.source_rank.index());
        prop_assert!(source.is_some_and(|(_, held)| at_newest(held)), "the source does not count");
        let agreed = source.unwrap().1.digest;
        for (index, rank) in (0..reports.len()).zip((0..).map(RingRank)) {
            let (receives, applies) =
                (plan.receivers.contains(&rank), plan.apply_held.contains(&rank));
            prop_assert!(!(receives && applies));
            // Whoever neither receives nor applies must hold the very state.
            match standing.iter().find(|(other, _)| *other == index) {
                None => prop_assert!(receives),
                Some((_, held)) if applies => {
                    prop_assert!(held.entered_ready && Some(held.applied_step + 1) == newest);
                }
                Some((_, held)) if !receives => {
                    prop_assert!(at_newest(held) && held.digest == agreed);
                }
                Some(_) => {}
            }
        }
    }

    #[test]
    fn the_plan_depends_on_nothing_but_the_reports(
        reports in proptest::collection::vec(report(), 1..8), floor in floor()
    ) {
        prop_assert_eq!(decide(&reports, &floor), decide(&reports, &floor));
    }
}
