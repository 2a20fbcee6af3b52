//! Which checkpoints of a job stay.
//!
//! A checkpoint is deleted manifest first: from then on no reader chooses it, and a crash in the
//! middle leaves a folder without manifest, which the next pass clears.
//!
//! What somebody reads stays. This run says itself what it went on from (`WriterOptions::spared`).
//! Jobs that are to start from a checkpoint of this one are the coordinator's to know: it says so
//! whenever a checkpoint is published (`Grant::in_use`), until they have one of their own. Of readers
//! that the coordinator does not know (another cluster, a person's copy) nothing is known here; the
//! newest complete one is never deleted, so they find one when they look again.

use std::collections::BTreeSet;

use super::publish::{Phase, Publisher};
use crate::Error;
use crate::dir::CheckpointDir;
use crate::layout::{self, StepName};

/// A checkpoint of the job's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    name: StepName,
    /// It has a manifest.
    complete: bool,
    /// A roll-back gave it up.
    abandoned: bool,
}

/// What stays, beside the newest complete one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Rules {
    /// So many of the newest.
    keep_last: usize,
    /// Those whose step is a multiple of this.
    keep_every: Option<u64>,
    /// These.
    spared: BTreeSet<StepName>,
    /// All: somebody reads whichever is the newest.
    spare_all: bool,
}

/// What to delete, oldest first.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// With manifest: complete ones beyond what the rules keep, and abandoned ones.
    retire: Vec<StepName>,
    /// Without manifest: abandoned by a dead rank, or half deleted.
    clear: Vec<StepName>,
}

/// Decides for the writer of `own`, which never touches what is newer than its own checkpoint.
fn plan(found: &[Found], own: StepName, rules: &Rules) -> Plan {
    let sorted: BTreeSet<Found> = found.iter().copied().collect();
    let standing = sorted.iter().filter(|found| found.complete && !found.abandoned);
    let newest: BTreeSet<StepName> =
        standing.rev().take(rules.keep_last.max(1)).map(|found| found.name).collect();
    let for_good = |name: StepName| {
        rules.keep_every.is_some_and(|every| name.step.is_multiple_of(every.max(1)))
    };
    let mut plan = Plan { retire: Vec::new(), clear: Vec::new() };
    for Found { name, complete, abandoned } in sorted {
        if name >= own || rules.spared.contains(&name) {
            continue;
        }
        let superfluous = abandoned || !(newest.contains(&name) || for_good(name));
        if !complete {
            plan.clear.push(name);
        } else if superfluous && !rules.spare_all {
            plan.retire.push(name);
        }
    }
    plan
}

impl Publisher {
    /// Deletes what `own`, just published, makes superfluous.
    pub(crate) async fn retain(&self, dir: &CheckpointDir, own: StepName) -> Result<(), Error> {
        dir.abort_unfinished_before(own).await;
        let survey = dir.survey().await?;
        let mut found = Vec::new();
        for &name in &survey.names {
            let complete = dir.exists(name, layout::MANIFEST).await?;
            found.push(Found { name, complete, abandoned: survey.is_abandoned(name) });
        }
        let plan = plan(&found, own, &self.rules(dir));
        for name in plan.clear {
            self.clear(dir, name, own).await?;
        }
        for name in plan.retire {
            self.enter(Phase::Retire, own.step)?;
            dir.delete(name, layout::MANIFEST).await?;
            self.clear(dir, name, own).await?;
        }
        Ok(())
    }

    fn rules(&self, dir: &CheckpointDir) -> Rules {
        let mut rules = Rules {
            keep_last: self.options.keep_last as usize,
            keep_every: self.options.keep_every,
            ..Rules::default()
        };
        for url in self.options.spared.iter().chain(&self.options.grant.in_use()) {
            // A folder that cannot be opened here is not this one.
            let Ok(other) = CheckpointDir::open(url) else { continue };
            match other.split() {
                Some((job, name)) if job.is_same(dir) => {
                    rules.spared.insert(name);
                }
                None if other.is_same(dir) => rules.spare_all = true,
                _ => {}
            }
        }
        rules
    }

    async fn clear(&self, dir: &CheckpointDir, name: StepName, own: StepName) -> Result<(), Error> {
        self.enter(Phase::Clear, own.step)?;
        dir.delete_all(name).await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use ringmaster_proto::v1::Generation;

    use super::*;

    fn name(counter: u32, step: u64) -> StepName {
        StepName { generation: Generation::new(1, counter), step }
    }

    fn complete(name: StepName) -> Found {
        Found { name, complete: true, abandoned: false }
    }

    fn keep(keep_last: usize) -> Rules {
        Rules { keep_last, ..Rules::default() }
    }

    #[test]
    fn the_oldest_complete_ones_go_and_unfinished_ones_do_not_count() {
        let found = [
            complete(name(1, 10)),
            Found { complete: false, ..complete(name(1, 20)) },
            complete(name(1, 30)),
            complete(name(2, 15)),
            complete(name(2, 20)),
        ];
        let plan = plan(&found, name(2, 20), &keep(2));
        assert_eq!(plan, Plan { retire: vec![name(1, 10), name(1, 30)], clear: vec![name(1, 20)] });
    }

    #[test]
    fn a_writer_of_an_older_generation_leaves_newer_ones_alone() {
        let unfinished = Found { complete: false, ..complete(name(2, 20)) };
        let found = [complete(name(1, 90)), complete(name(2, 10)), unfinished];
        let plan = plan(&found, name(1, 90), &keep(1));
        assert_eq!(plan, Plan { retire: vec![], clear: vec![] });
    }

    #[test]
    fn every_so_many_steps_one_stays_for_good_unless_it_was_given_up() {
        let mut found: Vec<Found> = (1..=9).map(|n| complete(name(1, n * 100))).collect();
        found.extend([1000, 1100].map(|step| Found { abandoned: true, ..complete(name(1, step)) }));
        found.push(complete(name(2, 1000)));
        let rules = Rules { keep_every: Some(500), ..keep(2) };
        let plan = plan(&found, name(2, 1000), &rules);
        let retired = [100, 200, 300, 400, 600, 700, 800, 1000, 1100].map(|step| name(1, step));
        assert_eq!(plan, Plan { retire: retired.to_vec(), clear: vec![] });
    }

    #[test]
    fn what_somebody_reads_stays() {
        let found: Vec<Found> = (1..=5).map(|n| complete(name(1, n))).collect();
        let rules = Rules { spared: [name(1, 2)].into(), ..keep(1) };
        let expected = [1, 3, 4].map(|step| name(1, step));
        assert_eq!(plan(&found, name(1, 5), &rules).retire, expected);
        let rules = Rules { spare_all: true, ..keep(1) };
        assert_eq!(plan(&found, name(1, 5), &rules).retire, []);
    }

    fn rules() -> impl Strategy<Value = Rules> {
        let spared = proptest::collection::btree_set((1_u32..4, 0_u64..6), 0..3);
        (0_usize..4, proptest::option::of(1_u64..4), spared, any::<bool>()).prop_map(
            |(keep_last, keep_every, spared, spare_all)| Rules {
                keep_last,
                keep_every,
                spared: spared.into_iter().map(|(c, s)| name(c, s)).collect(),
                spare_all,
            },
        )
    }

    proptest! {
        #[test]
        fn what_the_rules_keep_stays_and_the_rest_below_the_writer_goes(
            found in proptest::collection::btree_map(
                (1_u32..4, 0_u64..6), (any::<bool>(), any::<bool>()), 1..12
            ),
            rules in rules(),
            own in (1_u32..4, 0_u64..6),
        ) {
            let found: Vec<Found> = found.into_iter()
                .map(|((c, s), (complete, abandoned))| Found { name: name(c, s), complete, abandoned })
                .collect();
            let own = name(own.0, own.1);
            let plan = plan(&found, own, &rules);
            let mut standing: Vec<StepName> =
                found.iter().filter(|f| f.complete && !f.abandoned).map(|f| f.name).collect();
            standing.sort_by(|a, b| b.cmp(a));
            let index = |name: &StepName| standing.iter().position(|other| other == name);
            for Found { name, complete, abandoned } in &found {
                let retired = plan.retire.contains(name);
                let cleared = plan.clear.contains(name);
                prop_assert!(!(retired && cleared));
                let untouchable = *name >= own || rules.spared.contains(name);
                let kept = rules.spare_all || !abandoned && (
                    index(name) < Some(rules.keep_last.max(1))
                    || rules.keep_every.is_some_and(|every| name.step % every == 0)
                );
                prop_assert_eq!(retired, *complete && !untouchable && !kept, "{}", name);
                prop_assert_eq!(cleared, !complete && !untouchable, "{}", name);
            }
            if let Some(newest) = standing.first() {
                prop_assert!(!plan.retire.contains(newest), "the newest one never goes");
            }
            let names: Vec<StepName> = found.iter().map(|f| f.name).collect();
            prop_assert!(plan.retire.iter().chain(&plan.clear).all(|gone| names.contains(gone)));
        }
    }
}
