//! From whose state a generation goes on: a pure decision over what its ranks hold.
//!
//! Why survivors can agree at all: gradients are reduced first, then every rank passes a small
//! *ready* all-reduce, then each applies them without any collective. Who entered *ready* of a step
//! holds that step's reduced gradients. So survivors are never more than one step apart through a
//! fault, and one that is behind catches up from what it holds already.

use ringmaster_proto::RingRank;

/// What one rank of the generation holds, by rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// A new process; it holds nothing.
    Fresh,
    /// A survivor.
    Held {
        /// Steps applied.
        applied_step: u64,
        /// Digest of parameters and optimizer state after `applied_step`.
        digest: u64,
        /// It holds the reduced gradients of step `applied_step + 1`.
        entered_ready: bool,
    },
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
/// The newest applied step among the survivors wins, provided that all who applied it hold the same
/// bits. A survivor one step behind that entered *ready* applies what it holds; everybody else
/// receives. Without an agreed live state the newest stored one is taken, by rank 0 for all.
pub fn decide(reports: &[Report]) -> Plan {
    // The newest step that a survivor has applied; without survivors, what is stored.
    let newest = reports
        .iter()
        .filter_map(|report| match report {
            Report::Held { applied_step, .. } => Some(*applied_step),
            Report::Fresh => None,
        })
        .max();
    let Some(newest) = newest else { return stored(reports.len()) };

    // The lowest rank that applied it is the source. Another that applied it must hold the same bits.
    let mut agreed: Option<(RingRank, u64)> = None;
    let mut apply_held = Vec::new();
    let mut receivers = Vec::new();
    for (rank, report) in (0..).map(RingRank).zip(reports) {
        match *report {
            Report::Held { applied_step, digest, .. } if applied_step == newest => match agreed {
                None => agreed = Some((rank, digest)),
                // Two states of one step: which of them is right cannot be told, so neither is used.
                Some((_, expected)) if expected != digest => return stored(reports.len()),
                Some(_) => {}
            },
            // One step behind, and it holds the gradients of the newest step.
            Report::Held { applied_step, entered_ready: true, .. }
                if applied_step + 1 == newest =>
            {
                apply_held.push(rank);
            }
            // Everybody else is sent the source's state.
            Report::Held { .. } | Report::Fresh => receivers.push(rank),
        }
    }
    let (source_rank, _) = agreed.expect("the newest step has a holder");
    Plan { source: Source::Live, source_rank, apply_held, receivers }
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn held(applied_step: u64, digest: u64, entered_ready: bool) -> Report {
        Report::Held { applied_step, digest, entered_ready }
    }

    #[test]
    fn a_first_generation_starts_from_what_is_stored() {
        let plan = decide(&[Report::Fresh, Report::Fresh, Report::Fresh]);
        assert_eq!((plan.source, plan.source_rank), (Source::Stored, RingRank(0)));
        assert_eq!(plan.receivers, [1, 2].map(RingRank));
    }

    #[test]
    fn a_replacement_receives_from_the_lowest_survivor() {
        let plan = decide(&[Report::Fresh, held(7, 1, false), held(7, 1, false)]);
        assert_eq!((plan.source, plan.source_rank), (Source::Live, RingRank(1)));
        assert_eq!((plan.receivers, plan.apply_held), (vec![RingRank(0)], vec![]));
    }

    #[test]
    fn a_survivor_one_step_behind_applies_what_it_holds() {
        let plan = decide(&[held(7, 5, true), held(8, 6, false), Report::Fresh]);
        assert_eq!((plan.source, plan.source_rank), (Source::Live, RingRank(1)));
        assert_eq!((plan.apply_held, plan.receivers), (vec![RingRank(0)], vec![RingRank(2)]));
    }

    #[test]
    fn a_survivor_one_step_behind_without_gradients_receives() {
        let plan = decide(&[held(7, 5, false), held(8, 6, true)]);
        assert_eq!((plan.apply_held, plan.receivers), (vec![], vec![RingRank(0)]));
    }

    #[test]
    fn gradients_of_a_step_nobody_applied_are_dropped() {
        let plan = decide(&[held(7, 5, true), held(7, 5, false)]);
        assert_eq!((plan.source, plan.source_rank), (Source::Live, RingRank(0)));
        assert_eq!((plan.apply_held, plan.receivers), (vec![], vec![]));
    }

    #[test]
    fn survivors_that_disagree_fall_back_to_what_is_stored() {
        let plan = decide(&[held(7, 5, true), held(7, 6, true), held(6, 1, true)]);
        assert_eq!((plan.source, plan.source_rank), (Source::Stored, RingRank(0)));
        assert_eq!((plan.apply_held, plan.receivers), (vec![], vec![RingRank(1), RingRank(2)]));
    }

    fn report() -> impl Strategy<Value = Report> {
        prop_oneof![
            Just(Report::Fresh),
            (0..4_u64, 0..2_u64, any::<bool>())
                .prop_map(|(step, digest, ready)| held(step, digest, ready)),
        ]
    }

    proptest! {
        #[test]
        fn after_the_plan_every_rank_is_at_the_same_state(
            reports in proptest::collection::vec(report(), 1..8)
        ) {
            let plan = decide(&reports);
            let rank_of = |index: usize| RingRank(u32::try_from(index).unwrap());
            prop_assert!(plan.source_rank.index() < reports.len());
            prop_assert!(!plan.receivers.contains(&plan.source_rank));
            prop_assert!(!plan.apply_held.contains(&plan.source_rank));
            let newest = reports.iter().filter_map(|report| match report {
                Report::Held { applied_step, .. } => Some(*applied_step),
                Report::Fresh => None,
            }).max();
            match plan.source {
                Source::Stored => {
                    prop_assert_eq!(plan.receivers.len(), reports.len() - 1);
                    prop_assert!(plan.apply_held.is_empty());
                    let mut at_newest = reports.iter().filter_map(|report| match report {
                        Report::Held { applied_step, digest, .. }
                            if Some(*applied_step) == newest => Some(*digest),
                        _ => None,
                    });
                    let first = at_newest.next();
                    prop_assert!(
                        newest.is_none() || at_newest.any(|digest| Some(digest) != first),
                        "an agreed live state was thrown away"
                    );
                }
                Source::Live => {
                    let newest = newest.unwrap();
                    let Report::Held { applied_step, digest: agreed, .. } =
                        reports[plan.source_rank.index()] else {
                        return Err(TestCaseError::fail("the source holds nothing"));
                    };
                    prop_assert_eq!(applied_step, newest);
                    for (index, report) in reports.iter().enumerate() {
                        let rank = rank_of(index);
                        let receives = plan.receivers.contains(&rank);
                        let applies = plan.apply_held.contains(&rank);
                        prop_assert!(!(receives && applies));
                        // Whoever neither receives nor applies must hold the very state.
                        match *report {
                            Report::Fresh => prop_assert!(receives),
                            Report::Held { applied_step, digest, entered_ready } => {
                                if applies {
                                    prop_assert!(entered_ready && applied_step + 1 == newest);
                                } else if !receives {
                                    prop_assert_eq!((applied_step, digest), (newest, agreed));
                                }
                            }
                        }
                    }
                }
            }
        }

        #[test]
        fn the_plan_depends_on_nothing_but_the_reports(
            reports in proptest::collection::vec(report(), 1..8)
        ) {
            prop_assert_eq!(decide(&reports), decide(&reports));
        }
    }
}
