//! What must hold once everything has come to rest.

use std::time::Duration;

use ringmaster_coordinator::state::{JobRecord, State as JobState};

use super::processes::Process;
use super::world::{State, World, short};

impl World {
    /// True when no job is on its way any more.
    pub(crate) fn at_rest(&self, jobs: usize) -> bool {
        self.with(|state| {
            state.records.len() == jobs
                && state.submitted.len() == jobs
                && state.plans == 0
                && state.records.values().all(|record| state.rests(record))
                && state.processes.values().all(|process| process.survives.is_some())
        })
    }

    /// What must hold now. `patience` is how long everything had to come to rest.
    pub(crate) fn check_rest(&self, patience: Duration) {
        self.with(|state| {
            let mut wrong = state.lost_submissions();
            wrong.extend(state.records.values().flat_map(|record| state.unrest(record, patience)));
            wrong.extend(state.processes.values().filter_map(|process| state.unwanted(process)));
            for (invariant, what) in wrong {
                state.violate_at(state.now, invariant, what);
            }
        });
    }
}

impl State {
    fn lost_submissions(&self) -> Vec<(&'static str, String)> {
        let lost = self.submitted.iter().filter(|(_, job_id)| !self.records.contains_key(*job_id));
        let invariant = "an acknowledged submission is never lost";
        lost.map(|(request_id, _)| (invariant, request_id.clone())).collect()
    }

    fn unrest(&self, record: &JobRecord, patience: Duration) -> Vec<(&'static str, String)> {
        let mut wrong = Vec::new();
        let job_id = &record.job_id;
        let seen = format!("{job_id} is {}: {}", record.state.word(), record.reason);
        if self.finished.contains_key(job_id) && record.state != JobState::Succeeded {
            wrong.push(("an acknowledged finish is never undone", seen.clone()));
        }
        if self.rests(record) {
            return wrong;
        }
        let what = format!("{seen}, {} s after the last fault", patience.as_secs());
        let is_undead = |process: &Process| process.job_id == *job_id && process.survives.is_some();
        let invariant = if record.cancel_reason.is_some() || record.halt.is_some() {
            "cancel and pause end"
        } else if self.processes.values().any(is_undead) {
            "a job whose kill came to nothing goes on"
        } else {
            "every job ends or says what it waits for"
        };
        wrong.push((invariant, what));
        wrong
    }

    fn unwanted(&self, process: &Process) -> Option<(&'static str, String)> {
        let Process { node, job_id, seat, generation, survives, .. } = process;
        let unwanted =
            |record: &JobRecord| record.state.is_ended() || record.state == JobState::Paused;
        let wrong = survives.is_none() && self.records.get(job_id).is_none_or(unwanted);
        let what = || format!("{job_id}/{seat} of {generation} still runs on {node}");
        wrong.then(|| ("what no job wants any more is stopped", what()))
    }

    /// Whether a job has ended, or says what it waits for and waits for it in vain.
    fn rests(&self, record: &JobRecord) -> bool {
        let says = ["needs ", "waits"].iter().any(|word| record.reason.starts_with(word));
        // Nobody opens them again: who was excluded, or drained for good.
        let closed = !self.closed.is_empty() && record.reason.contains("drained or excluded");
        let in_vain = closed || self.is_spoilt_job(record) || !self.is_feasible(record);
        match record.state {
            JobState::Paused => self.paused.contains(&record.job_id) && !record.reason.is_empty(),
            JobState::Queued | JobState::Recovering => says && in_vain,
            state => state.is_ended(),
        }
    }

    /// A job that the open nodes of this cluster could hold.
    fn is_feasible(&self, record: &JobRecord) -> bool {
        let open = self.slots.keys().filter(|node| !self.is_closed(node));
        let total: u32 = open.map(|node| self.usable_slots(node)).sum();
        let plan = self.plans_of.get(short(&record.job_id));
        plan.is_some_and(|plan| plan.min_ranks <= total)
    }
}
