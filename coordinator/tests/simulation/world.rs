//! What is true, seen from outside: what runs, what is durable, what was acknowledged. Every invariant
//! is checked here or beside it, as things happen: `durable` (what the coordinator writes), `history`
//! (what rings begin with), `budget` and `blame` (who pays for a fault), `processes`, `rest` (the end).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ringmaster_coordinator::state::{HaltKind, JobRecord, State as JobState};
use ringmaster_proto::v1::{self, Generation};

use super::blame::Blame;
use super::budget::Budget;
use super::desk::Desk;
use super::history::History;
use super::processes::Process;
use super::ring::{Ring, RingKey};
use super::saving::Shards;
use super::scenario::{JobPlan, Scenario};

/// A stale ring may go on this long after its nodes can hear the coordinator again: leases, the news
/// of the new generation, and retries of all of it.
pub(crate) const STALE: Duration = Duration::from_secs(5);
/// Lines of a run's story that are kept.
const TRACE: usize = 20_000;

/// Shared by everything in one simulation.
#[derive(Clone)]
pub(crate) struct World(Arc<Mutex<State>>);

/// An invariant that did not hold.
#[derive(Debug, Clone)]
#[allow(dead_code, reason = "read through Debug")]
pub(crate) struct Violation {
    pub(crate) at: Duration,
    pub(crate) invariant: &'static str,
    pub(crate) what: String,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) now: Duration,
    pub(crate) trace: Vec<String>,
    pub(crate) violations: Vec<Violation>,
    /// How often each thing struck or came about.
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// What people want, by the names of jobs.
    pub(crate) plans_of: BTreeMap<String, JobPlan>,
    /// What a rank takes at most to start, in milliseconds.
    pub(crate) start_ms: u64,
    // ---- What is durable
    pub(crate) records: BTreeMap<String, JobRecord>,
    pub(crate) generations: BTreeMap<Generation, String>,
    pub(crate) current: BTreeMap<String, Generation>,
    /// Nodes that take no ranks.
    pub(crate) closed: BTreeSet<String>,
    pub(crate) grants: usize,
    // ---- What the coordinator has acknowledged
    pub(crate) submitted: BTreeMap<String, String>,
    pub(crate) finished: BTreeMap<String, Generation>,
    /// Jobs that were paused and that nobody has asked to resume.
    pub(crate) paused: BTreeSet<String>,
    /// Jobs that somebody has asked to resume, at any time.
    pub(crate) resumed: BTreeSet<String>,
    /// Nodes that were drained and that nobody has asked to open, with every job's generation then.
    pub(crate) drained: BTreeMap<String, BTreeMap<String, Generation>>,
    /// Pauses, drains and roll-backs that people have not come to the end of.
    pub(crate) plans: usize,
    pub(crate) desk: Desk,
    // ---- What runs
    pub(crate) slots: BTreeMap<String, u32>,
    pub(crate) processes: BTreeMap<u64, Process>,
    pub(crate) last_process: u64,
    /// The hosts whose agents live, by the names they register under.
    pub(crate) agents: BTreeMap<String, BTreeSet<String>>,
    /// Whose ranks a name's are, by host.
    pub(crate) holders: BTreeMap<String, String>,
    pub(crate) rings: BTreeMap<RingKey, Ring>,
    pub(crate) steps: u64,
    /// Newest generation of each job that has made a step.
    pub(crate) stepped: BTreeMap<String, Generation>,
    /// Until when a node could not, or can hardly, hear the coordinator.
    pub(crate) disturbed: BTreeMap<String, Duration>,
    /// Until when anybody could not, or can hardly, hear the coordinator.
    pub(crate) troubled: Duration,
    /// Pairs of nodes whose ranks do not reach each other, and until when.
    pub(crate) links: BTreeMap<(String, String), Duration>,
    /// Agents that were told to end, by host, with how long they may take.
    pub(crate) leaving: BTreeMap<String, Duration>,
    /// The coordinator is to crash now, for this long.
    pub(crate) crash_wanted: Option<Duration>,
    // ---- What made it so
    pub(crate) history: History,
    pub(crate) budgets: BTreeMap<String, Budget>,
    pub(crate) blame: Blame,
    pub(crate) shards: Shards,
}

impl World {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let slots = scenario.slots.iter().enumerate();
        let plans = scenario.jobs.iter().map(|plan| (plan.name.clone(), plan.clone()));
        Self(Arc::new(Mutex::new(State {
            slots: slots.map(|(index, slots)| (format!("n{index}"), *slots)).collect(),
            plans_of: plans.collect(),
            plans: scenario.plans(),
            start_ms: scenario.start_ms,
            ..State::default()
        })))
    }

    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn log(&self, line: String) {
        self.lock().log(&line);
    }

    pub(crate) fn count(&self, what: &'static str) {
        self.lock().count(what);
    }

    pub(crate) fn violate(&self, invariant: &'static str, what: String) {
        let mut state = self.lock();
        let now = state.now;
        state.violate_at(now, invariant, what);
    }

    // ---- Acknowledged

    pub(crate) fn acknowledged_submit(&self, request_id: &str, job_id: &str) {
        let mut state = self.lock();
        let earlier = state.submitted.insert(request_id.to_owned(), job_id.to_owned());
        if earlier.as_ref().is_some_and(|earlier| earlier != job_id)
            || !state.records.contains_key(job_id)
        {
            let what = format!("{request_id} became {job_id}, was {earlier:?}; or is not durable");
            let now = state.now;
            state.violate_at(now, "an acknowledged submission is never lost", what);
        }
    }

    pub(crate) fn acknowledged_finish(&self, job_id: &str, generation: Generation) {
        self.lock().finished.insert(job_id.to_owned(), generation);
    }

    /// One that had handed in its summary, was being cancelled or is asked to go back is not paused any
    /// more.
    pub(crate) fn acknowledged_pause(&self, job_id: &str) {
        let mut state = self.lock();
        let halts_for_it = |record: &JobRecord| {
            record.halt.as_ref().is_some_and(|halt| halt.kind == HaltKind::Pause)
        };
        let record = state.records.get(job_id);
        let is_paused =
            record.is_some_and(|job| job.state == JobState::Paused || halts_for_it(job));
        if is_paused && !state.desk.is_asked_of(job_id) {
            state.paused.insert(job_id.to_owned());
            state.log(&format!("client: {} is paused", short(job_id)));
        }
    }

    pub(crate) fn asked_to_resume(&self, job_id: &str) {
        let mut state = self.lock();
        state.paused.remove(job_id);
        state.resumed.insert(job_id.to_owned());
    }

    /// Whether a job that was seen ended may be seen going on: somebody wanted it.
    pub(crate) fn may_go_on(&self, job_id: &str, ended: v1::JobState) -> bool {
        let ended_badly = matches!(ended, v1::JobState::Failed | v1::JobState::Cancelled);
        ended_badly && self.lock().resumed.contains(job_id)
    }

    pub(crate) fn acknowledged_drain(&self, node: &str) {
        let mut state = self.lock();
        let current = state.current.clone();
        state.drained.insert(node.to_owned(), current);
        state.log(&format!("client: {node} is drained"));
    }

    pub(crate) fn asked_to_undrain(&self, node: &str) {
        self.lock().drained.remove(node);
    }

    /// True once a newer generation of the job is durable than this one.
    pub(crate) fn is_superseded(&self, key: &RingKey) -> bool {
        self.lock().current.get(&key.0).is_some_and(|current| *current > key.1)
    }

    /// Whether the steps of a job take long.
    pub(crate) fn is_slow(&self, job_id: &str) -> bool {
        self.lock().plan_of(job_id).is_some_and(|plan| plan.slow)
    }

    // ---- Time

    /// A node cannot, or can hardly, hear the coordinator until then.
    pub(crate) fn disturb(&self, node: &str, until: Duration) {
        let mut state = self.lock();
        state.troubled = state.troubled.max(until);
        let entry = state.disturbed.entry(node.to_owned()).or_default();
        *entry = (*entry).max(until);
    }
}

impl State {
    pub(crate) fn log(&mut self, line: &str) {
        if self.trace.len() < TRACE {
            self.trace.push(format!("{:>8.3} {line}", self.now.as_secs_f64()));
        }
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub(crate) fn violate_at(&mut self, at: Duration, invariant: &'static str, what: String) {
        self.log(&format!("VIOLATED: {invariant}: {what}"));
        self.violations.push(Violation { at, invariant, what });
    }

    /// Whether a node is durably closed.
    pub(crate) fn is_closed(&self, node: &str) -> bool {
        self.closed.contains(node)
    }

    /// Whether a node has heard the coordinator for long enough to know what it wants.
    pub(crate) fn hears(&self, node: &str) -> bool {
        self.now > self.disturbed.get(node).copied().unwrap_or_default() + STALE
    }

    /// Whether the coordinator may hear a node now.
    pub(crate) fn is_heard(&self, node: &str) -> bool {
        self.disturbed.get(node).is_none_or(|until| self.now > *until)
    }

    /// What its people want of a job.
    pub(crate) fn plan_of(&self, job_id: &str) -> Option<&JobPlan> {
        self.plans_of.get(short(job_id))
    }
}

/// A job's name: the random half of its id is not part of a run's story.
pub(crate) fn short(job_id: &str) -> &str {
    job_id.split('-').next().unwrap_or(job_id)
}

pub(crate) fn hide(text: &str, job_id: &str) -> String {
    text.replace(job_id, short(job_id))
}
