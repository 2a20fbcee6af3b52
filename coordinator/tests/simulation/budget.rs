//! How often a job may recover without a new step, counted from outside.

use std::collections::BTreeMap;

use ringmaster_coordinator::state::{JobRecord, State as JobState};
use ringmaster_proto::v1::Generation;

use super::history::parse_url;
use super::ring::RingKey;
use super::world::{State, short};

/// How the reason begins of a generation that opens without any fault.
const NO_FAULT: [&str; 4] = ["first placement", "placed again", "growing", "leaving closed nodes"];
/// What a job's reason names that fails for want of progress.
const NAMED: &str = "max_without_progress";

/// How often the network may take a rank that hangs.
const SLACK: u32 = 4;

/// What one job has used up.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// The newest generation whose ring has formed.
    formed: Option<Generation>,
    /// Most steps that any rank has applied, in work that nobody has given up.
    high: u64,
    /// Rings that were followed by another generation since the last new step: at least so many
    /// recoveries count.
    used: u32,
    /// Generations opened for any fault since the last new step.
    tried: u32,
    /// Generations opened for any fault since the coordinator itself counted none: at most so many do.
    opened: u32,
}

impl State {
    /// A generation has become durable.
    pub(crate) fn count_generation(&mut self, job_id: &str, reason: &str) {
        let previous = self.current.get(job_id).copied();
        let Some((allowed, ranks)) =
            self.plan_of(job_id).map(|plan| (plan.max_without_progress, plan.ranks))
        else {
            return;
        };
        let budget = self.budgets.entry(job_id.to_owned()).or_default();
        let stood = budget.formed.is_some() && budget.formed == previous;
        if NO_FAULT.iter().any(|begin| reason.starts_with(begin)) {
            return;
        }
        budget.opened += 1;
        budget.tried += 1;
        budget.used += u32::from(stood);
        // One fault may take every rank of a job, one after the other, and the network one that hangs again and
        // again.
        let endless = budget.tried == (allowed + 1) * ranks + SLACK;
        let used = if endless { budget.tried } else { budget.used };
        if endless || (stood && used > allowed) {
            let what =
                format!("{}: recovery {used} since step {}: {reason}", short(job_id), budget.high);
            self.violate_at(self.now, "recoveries without progress stay within the budget", what);
        }
    }

    /// What a job's new record says of its budget. Its old one is still known.
    pub(crate) fn count_record(&mut self, record: &JobRecord) {
        let old = self.records.get(&record.job_id);
        let was_ended = old.is_some_and(|old| old.state.is_ended());
        let before = old.and_then(|old| old.rollback.clone());
        let fails = record.state == JobState::Failed && !was_ended && record.reason.contains(NAMED);
        let allowed = self.plan_of(&record.job_id).map_or(0, |plan| plan.max_without_progress);
        let budget = self.budgets.entry(record.job_id.clone()).or_default();
        if fails && budget.opened < allowed {
            let what = format!("{} after {} of {allowed}", short(&record.job_id), budget.opened);
            self.violate_at(self.now, "no job fails before its budget is used up", what);
            return;
        }
        if record.formed {
            budget.formed = record.generation;
        }
        if record.without_progress == 0 {
            budget.opened = 0;
        }
        if let Some(to) = record.rollback.as_ref().filter(|_| record.rollback != before) {
            (budget.high, budget.used, budget.tried) = (parse_url(&to.url).1, 0, 0);
        }
        if was_ended && !record.state.is_ended() {
            (budget.used, budget.tried) = (0, 0);
        }
    }

    /// A coordinator knows no more of its jobs' progress than what was durable.
    pub(crate) fn forget_progress(&mut self) {
        for (job_id, record) in &self.records {
            if let Some(budget) = self.budgets.get_mut(job_id) {
                budget.high = budget.high.min(record.high_step);
            }
        }
    }

    /// A rank has applied a step.
    pub(crate) fn made_step(&mut self, key: &RingKey, step: u64) {
        if self.history.gives_up(&key.0).is_some_and(|up_to| key.1 <= up_to) {
            return;
        }
        // Of what happens where nobody is heard the coordinator may learn, or never.
        let members = self.rings.get(key).map(|ring| &ring.members);
        let mut nodes = members.into_iter().flat_map(BTreeMap::values).map(|member| &member.node);
        let is_heard = nodes.any(|node| self.is_heard(node));
        let budget = self.budgets.entry(key.0.clone()).or_default();
        if step > budget.high {
            (budget.used, budget.tried) = (0, 0);
            budget.high = if is_heard { step } else { budget.high };
        }
    }

    /// Whether a job failed for want of progress.
    pub(crate) fn is_out_of_budget(record: &JobRecord) -> bool {
        record.state == JobState::Failed && record.reason.contains(NAMED)
    }
}
