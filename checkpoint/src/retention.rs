//! Which checkpoints of a job stay.
//!
//! A checkpoint is deleted manifest first: from then on no reader chooses it, and a crash in the
//! middle leaves a folder without manifest, which the next pass clears.

use std::collections::BTreeSet;

use super::Error;
use super::layout::{self, StepName};
use super::place::Place;
use super::publish::{Phase, Publisher};

/// What to delete, oldest first.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Complete ones beyond `keep_last`.
    retire: Vec<StepName>,
    /// Without manifest: abandoned by a dead rank, or half deleted.
    clear: Vec<StepName>,
}

/// Decides for the writer of `own`, which never touches what is newer than its own checkpoint.
fn plan(found: &[(StepName, bool)], own: StepName, keep_last: usize) -> Plan {
    let sorted: BTreeSet<_> = found.iter().copied().collect();
    let complete: Vec<StepName> =
        sorted.iter().filter(|(_, complete)| *complete).map(|(name, _)| *name).collect();
    let surplus = complete.len().saturating_sub(keep_last.max(1));
    let retire = complete[..surplus].iter().copied().filter(|name| *name < own).collect();
    let clear = sorted
        .iter()
        .filter(|(name, complete)| !complete && *name < own)
        .map(|(name, _)| *name)
        .collect();
    Plan { retire, clear }
}

impl Publisher {
    /// Deletes what `own`, just published, makes superfluous.
    pub(crate) async fn retain(&self, place: &Place, own: StepName) -> Result<(), Error> {
        place.abort_unfinished_before(own).await;
        let mut found = Vec::new();
        for name in place.steps().await? {
            found.push((name, place.exists(name, layout::MANIFEST).await?));
        }
        let plan = plan(&found, own, self.options.keep_last as usize);
        for name in plan.clear {
            self.clear(place, name, own).await?;
        }
        for name in plan.retire {
            self.enter(Phase::Retire, own.step)?;
            place.delete(name, layout::MANIFEST).await?;
            self.clear(place, name, own).await?;
        }
        Ok(())
    }

    async fn clear(&self, place: &Place, name: StepName, own: StepName) -> Result<(), Error> {
        self.enter(Phase::Clear, own.step)?;
        place.delete_all(name).await
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

    #[test]
    fn the_oldest_complete_ones_go_and_unfinished_ones_do_not_count() {
        let found = [
            (name(1, 10), true),
            (name(1, 20), false),
            (name(1, 30), true),
            (name(2, 15), true),
            (name(2, 20), true),
        ];
        let plan = plan(&found, name(2, 20), 2);
        assert_eq!(plan, Plan { retire: vec![name(1, 10), name(1, 30)], clear: vec![name(1, 20)] });
    }

    #[test]
    fn a_writer_of_an_older_generation_leaves_newer_ones_alone() {
        let found = [(name(1, 90), true), (name(2, 10), true), (name(2, 20), false)];
        let plan = plan(&found, name(1, 90), 1);
        assert_eq!(plan, Plan { retire: vec![], clear: vec![] });
    }

    proptest! {
        #[test]
        fn the_newest_keep_last_complete_ones_always_stay(
            found in proptest::collection::btree_map((1_u32..4, 0_u64..6), any::<bool>(), 1..12),
            keep_last in 0_usize..4,
            own in (1_u32..4, 0_u64..6),
        ) {
            let found: Vec<_> =
                found.into_iter().map(|((c, s), complete)| (name(c, s), complete)).collect();
            let own = name(own.0, own.1);
            let plan = plan(&found, own, keep_last);
            let complete = |c: &StepName| found.contains(&(*c, true));
            prop_assert!(plan.retire.iter().all(|c| complete(c) && *c < own));
            prop_assert!(plan.clear.iter().all(|c| !complete(c) && *c < own));
            let mut kept: Vec<_> = found.iter().filter(|(_, c)| *c).map(|(n, _)| *n).collect();
            kept.sort_by(|a, b| b.cmp(a));
            kept.truncate(keep_last.max(1));
            prop_assert!(kept.iter().all(|name| !plan.retire.contains(name)));
        }
    }
}
