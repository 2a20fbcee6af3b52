//! What is true, seen from outside: every invariant is checked here, as things happen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ringmaster_coordinator::state::{
    Change, CheckpointGrant, HaltKind, JobRecord, State as JobState,
};
use ringmaster_proto::v1::{self, Generation};

use super::ring::{Ring, RingKey};

/// A stale ring may go on this long after its nodes can hear the coordinator again: leases, the news
/// of the new generation, and retries of all of it.
const STALE: Duration = Duration::from_secs(5);
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
    // ---- What is durable
    pub(crate) records: BTreeMap<String, JobRecord>,
    generations: BTreeMap<Generation, String>,
    current: BTreeMap<String, Generation>,
    /// Nodes that take no ranks.
    closed: BTreeSet<String>,
    pub(crate) grants: usize,
    // ---- What the coordinator has acknowledged
    submitted: BTreeMap<String, String>,
    published: BTreeMap<String, (Generation, u64)>,
    finished: BTreeMap<String, Generation>,
    /// Jobs that were paused and that nobody has asked to resume.
    paused: BTreeSet<String>,
    /// Jobs that somebody has asked to resume, at any time.
    resumed: BTreeSet<String>,
    /// Nodes that were drained and that nobody has asked to open, with every job's generation then.
    drained: BTreeMap<String, BTreeMap<String, Generation>>,
    /// Pauses and drains that people have not come to the end of.
    pub(crate) plans: usize,
    // ---- What runs
    slots: BTreeMap<String, u32>,
    pub(crate) processes: BTreeMap<u64, Process>,
    last_process: u64,
    pub(crate) rings: BTreeMap<RingKey, Ring>,
    pub(crate) steps: u64,
    /// Newest generation of each job that has made a step.
    stepped: BTreeMap<String, Generation>,
    /// Until when a node could not, or can hardly, hear the coordinator.
    disturbed: BTreeMap<String, Duration>,
    /// Agents that were told to end, with how long they may take.
    pub(crate) leaving: BTreeMap<String, Duration>,
    /// Published checkpoints: what the object store holds.
    store: BTreeMap<String, BTreeMap<(Generation, u64), String>>,
}

/// A rank's process.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) node: String,
    pub(crate) job_id: String,
    pub(crate) seat: u32,
    pub(crate) generation: Generation,
    pub(crate) hung: bool,
}

impl World {
    pub(crate) fn new(slots: BTreeMap<String, u32>) -> Self {
        Self(Arc::new(Mutex::new(State { slots, ..State::default() })))
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

    pub(crate) fn violate(&self, invariant: &'static str, what: String) {
        let mut state = self.lock();
        let now = state.now;
        state.violate_at(now, invariant, what);
    }

    // ---- Durable

    /// Sees what the coordinator has just made durable, in its order.
    pub(crate) fn committed(&self, changes: &[Change]) {
        let mut state = self.lock();
        for change in changes {
            state.committed(change);
        }
        state.check_seats();
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

    pub(crate) fn acknowledged_checkpoint(&self, job_id: &str, generation: Generation, step: u64) {
        let mut state = self.lock();
        let newest = state.published.entry(job_id.to_owned()).or_default();
        *newest = (*newest).max((generation, step));
    }

    /// One that had handed in its summary, or was being cancelled, is not paused any more.
    pub(crate) fn acknowledged_pause(&self, job_id: &str) {
        let mut state = self.lock();
        let halts_for_it = |record: &JobRecord| {
            record.halt.as_ref().is_some_and(|halt| halt.kind == HaltKind::Pause)
        };
        let record = state.records.get(job_id);
        if record.is_some_and(|job| job.state == JobState::Paused || halts_for_it(job)) {
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

    /// What a job may rely on when it asks for its newest checkpoint now.
    pub(crate) fn published(&self, job_id: &str) -> (Generation, u64) {
        self.lock().published.get(job_id).copied().unwrap_or_default()
    }

    /// True once a newer generation of the job is durable than this one.
    pub(crate) fn is_superseded(&self, key: &RingKey) -> bool {
        self.lock().current.get(&key.0).is_some_and(|current| *current > key.1)
    }

    // ---- The object store

    /// Writes MANIFEST.json.
    pub(crate) fn put_checkpoint(&self, job_id: &str, generation: Generation, step: u64) -> String {
        let url = format!("sim://{job_id}/step-{step:06}.{generation}");
        let mut state = self.lock();
        let job = state.store.entry(job_id.to_owned()).or_default();
        job.insert((generation, step), url.clone());
        url
    }

    /// The step of the newest checkpoint, by generation and then step; zero without any.
    pub(crate) fn newest_checkpoint(&self, job_id: &str) -> u64 {
        let state = self.lock();
        let newest = state.store.get(job_id).and_then(|job| job.keys().next_back().copied());
        newest.map_or(0, |(_, step)| step)
    }

    // ---- Processes

    pub(crate) fn start_process(&self, process: Process) -> u64 {
        let mut state = self.lock();
        let now = state.now;
        let Process { node, job_id, seat, generation, .. } = &process;
        let same = |other: &&Process| {
            (&other.job_id, other.seat, other.generation) == (job_id, *seat, *generation)
        };
        if let Some(other) = state.processes.values().find(same) {
            let what = format!("{job_id}/{seat} {generation} on {node} and on {}", other.node);
            state.violate_at(now, "a rank is never started twice in one generation", what);
        }
        let running = state.processes.values().filter(|other| other.node == *node).count();
        if running >= state.slots[node] as usize {
            let what = format!("{node} runs {running}, and is to start {job_id}/{seat}");
            state.violate_at(now, "no node runs more ranks than it has slots", what);
        }
        // What was decided before the node was drained may still come about.
        let drained = state.drained.get(node).map(|then| then.get(job_id).copied());
        if drained.is_some_and(|then| then.unwrap_or_default() < *generation) {
            let what = format!("{node} is to start {job_id}/{seat} of {generation}");
            state.violate_at(now, "a drained node gets no new rank", what);
        }
        state.last_process += 1;
        let id = state.last_process;
        state.processes.insert(id, process);
        id
    }

    /// May be repeated.
    pub(crate) fn end_process(&self, id: u64) {
        let mut state = self.lock();
        if state.processes.remove(&id).is_some() {
            state.leave_rings(id);
        }
    }

    pub(crate) fn is_hung(&self, id: u64) -> bool {
        self.lock().processes.get(&id).is_some_and(|process| process.hung)
    }

    /// A node cannot, or can hardly, hear the coordinator until then.
    pub(crate) fn disturb(&self, node: &str, until: Duration) {
        let mut state = self.lock();
        let entry = state.disturbed.entry(node.to_owned()).or_default();
        *entry = (*entry).max(until);
    }

    /// A rank has applied a step.
    pub(crate) fn stepped(&self, key: &RingKey) {
        let mut state = self.lock();
        state.steps += 1;
        let newest = state.stepped.entry(key.0.clone()).or_default();
        *newest = (*newest).max(key.1);
        let (newest, now) = (*newest, state.now);
        let is_paused = state.records.get(&key.0).is_some_and(|job| job.state == JobState::Paused);
        let (invariant, why) = match (newest == key.1, is_paused) {
            (false, _) => (
                "a stale generation steps only where the coordinator is not heard",
                format!("after {newest}"),
            ),
            (true, true) => (
                "a paused job steps only where the coordinator is not heard",
                "and is paused".to_owned(),
            ),
            (true, false) => return,
        };
        let disturbed = |node: &str| state.disturbed.get(node).copied().unwrap_or_default();
        let hears = |node: &str| now > disturbed(node) + STALE;
        let members = state.rings.get(key).map(|ring| &ring.members);
        let nodes = members.into_iter().flat_map(BTreeMap::values).map(|member| &member.node);
        if let Some(node) = nodes.filter(|node| hears(node)).max() {
            let what = format!("{} {} steps {why}, with a rank on {node}", key.0, key.1);
            state.violate_at(now, invariant, what);
        }
    }

    /// What must hold once everything has come to rest. `patience` is how long it had.
    pub(crate) fn check_rest(&self, patience: Duration, feasible: impl Fn(&str) -> bool) {
        let mut state = self.lock();
        let now = state.now;
        let mut wrong = Vec::new();
        for (request_id, job_id) in &state.submitted {
            if !state.records.contains_key(job_id) {
                wrong.push(("an acknowledged submission is never lost", request_id.clone()));
            }
        }
        for (job_id, record) in &state.records {
            let seen = format!("{job_id} is {}: {}", record.state.word(), record.reason);
            if state.finished.contains_key(job_id) && record.state.word() != "succeeded" {
                wrong.push(("an acknowledged finish is never undone", seen.clone()));
            }
            let rests = state.rests(record, &feasible);
            if !rests {
                let what = format!("{seen}, {} s after the last fault", patience.as_secs());
                wrong.push(("every job ends or says what it waits for", what));
            }
            if record.state.word() == "failed" {
                wrong.push(("no job fails for the faults of others", seen));
            }
        }
        for process in state.processes.values() {
            let Process { node, job_id, seat, generation, .. } = process;
            let unwanted =
                |record: &JobRecord| record.state.is_ended() || record.state == JobState::Paused;
            if state.records.get(job_id).is_none_or(unwanted) {
                let what = format!("{job_id}/{seat} of {generation} still runs on {node}");
                wrong.push(("what no job wants any more is stopped", what));
            }
        }
        for (invariant, what) in wrong {
            state.violate_at(now, invariant, what);
        }
    }

    /// True when no job is on its way any more.
    pub(crate) fn at_rest(&self, jobs: usize, feasible: impl Fn(&str) -> bool) -> bool {
        let state = self.lock();
        state.records.len() == jobs
            && state.submitted.len() == jobs
            && state.plans == 0
            && state.records.values().all(|record| state.rests(record, &feasible))
            && state.processes.is_empty()
    }
}

impl State {
    pub(crate) fn log(&mut self, line: &str) {
        if self.trace.len() < TRACE {
            self.trace.push(format!("{:>8.3} {line}", self.now.as_secs_f64()));
        }
    }

    pub(crate) fn violate_at(&mut self, at: Duration, invariant: &'static str, what: String) {
        self.log(&format!("VIOLATED: {invariant}: {what}"));
        self.violations.push(Violation { at, invariant, what });
    }

    /// Whether a node is durably closed.
    pub(crate) fn is_closed(&self, node: &str) -> bool {
        self.closed.contains(node)
    }

    /// Whether a job has ended, or says what it waits for and waits for it in vain.
    fn rests(&self, record: &JobRecord, feasible: impl Fn(&str) -> bool) -> bool {
        let says = ["needs ", "waits"].iter().any(|word| record.reason.starts_with(word));
        // Nobody opens them again: who was excluded, or drained for good.
        let closed = !self.closed.is_empty() && record.reason.contains("drained or excluded");
        match record.state {
            JobState::Paused => self.paused.contains(&record.job_id) && !record.reason.is_empty(),
            JobState::Queued => says && (closed || !feasible(&record.name)),
            // It had started when the nodes were closed.
            JobState::Recovering => says && closed,
            state => state.is_ended(),
        }
    }

    /// Generations that were ever opened.
    pub(crate) fn generations(&self) -> usize {
        self.generations.len()
    }

    /// A machine is gone with all its processes.
    pub(crate) fn end_processes_of(&mut self, node: &str) {
        let of = |process: &&u64| self.processes[process].node == node;
        for id in self.processes.keys().filter(of).copied().collect::<Vec<_>>() {
            self.processes.remove(&id);
            self.leave_rings(id);
        }
    }

    /// Kills one of the ranks that run; its agent finds out.
    pub(crate) fn kill(&mut self, pick: usize) {
        if let Some(id) = self.picked(pick) {
            self.processes.remove(&id);
            self.leave_rings(id);
        }
    }

    /// Stops one of the ranks that run where it stands.
    pub(crate) fn hang(&mut self, pick: usize) {
        if let Some(id) = self.picked(pick)
            && let Some(process) = self.processes.get_mut(&id)
        {
            process.hung = true;
        }
    }

    fn picked(&mut self, pick: usize) -> Option<u64> {
        let running: Vec<u64> = self.processes.keys().copied().collect();
        let id = *running.get(pick.checked_rem(running.len())?)?;
        let Process { node, job_id, seat, .. } = self.processes[&id].clone();
        self.log(&format!("---- strikes {}/{seat} on {node}", short(&job_id)));
        Some(id)
    }

    fn committed(&mut self, change: &Change) {
        let now = self.now;
        match change {
            Change::Job(record) => self.record(record),
            Change::Generation { generation, job_id, reason, .. } => {
                self.log(&format!("durable: {} {generation}: {reason}", short(job_id)));
                let newest = self.generations.last_key_value().map(|(newest, _)| *newest);
                if newest.is_some_and(|newest| newest >= *generation) {
                    let what = format!("{generation} for {job_id} after {newest:?}");
                    self.violate_at(now, "generations only rise", what);
                }
                if self.paused.contains(job_id) {
                    let what = format!("{generation} for {job_id}: {reason}");
                    self.violate_at(now, "a paused job opens no generation", what);
                }
                self.generations.insert(*generation, job_id.clone());
                self.current.insert(job_id.clone(), *generation);
            }
            Change::Grant(grant) => {
                self.grants += 1;
                let current = self.current.get(&grant.job_id).copied().unwrap_or_default();
                if current != grant.generation {
                    let what = format!(
                        "step {} of {} is granted to {}, current is {current}",
                        grant.step, grant.job_id, grant.generation
                    );
                    let invariant = "only the current generation may commit a checkpoint";
                    self.violate_at(now, invariant, what);
                }
                self.check_whole(grant);
            }
            Change::Published { job_id, generation, step, .. } => {
                self.log(&format!("durable: {} {generation} step {step} published", short(job_id)));
            }
            Change::Node { node, closure: Some(_) } => {
                self.closed.insert(node.clone());
            }
            Change::Node { node, closure: None } => {
                self.closed.remove(node);
            }
            Change::Event(event) => {
                // What a table says that was to start one more.
                if event.message.contains(ringmaster_agent::FULL) {
                    let what = event.message.clone();
                    self.violate_at(now, "no node runs more ranks than it has slots", what);
                }
                let (job, kind) = (short(&event.job_id).to_owned(), &event.kind);
                self.log(&format!(
                    "durable: {job} {kind}: {}",
                    self.records.keys().fold(event.message.clone(), |text, id| hide(&text, id))
                ));
            }
            _ => {}
        }
    }

    /// One object of each rank of the ring.
    fn check_whole(&mut self, grant: &CheckpointGrant) {
        let key = (grant.job_id.clone(), grant.generation);
        let objects: Vec<serde_json::Value> = serde_json::from_str(&grant.objects_json).unwrap();
        let world_size = self.rings.get(&key).map_or(0, |ring| ring.world_size);
        if objects.len() != world_size {
            let what = format!("{key:?} step {}: {} of {world_size}", grant.step, objects.len());
            self.violate_at(self.now, "a checkpoint that may be published is whole", what);
        }
    }

    fn record(&mut self, record: &JobRecord) {
        let now = self.now;
        if let Some(old) = self.records.get(&record.job_id) {
            let undone = old.state.is_ended() && old.state != record.state;
            // One that failed or was cancelled goes on if somebody wants it.
            let wanted = matches!(old.state, JobState::Failed | JobState::Cancelled)
                && self.resumed.contains(&record.job_id);
            if undone && !wanted {
                let what = format!(
                    "{} was {} and is {}",
                    old.job_id,
                    old.state.word(),
                    record.state.word()
                );
                self.violate_at(now, "what has ended stays ended", what);
            }
        }
        let lost = self.paused.contains(&record.job_id)
            && !record.state.is_ended()
            && record.state != JobState::Paused
            && record.halt.as_ref().is_none_or(|halt| halt.kind != HaltKind::Pause);
        // Cancelling goes first.
        if lost && record.cancel_reason.is_none() {
            let what = format!("{} is {}", record.job_id, record.state.word());
            self.violate_at(now, "an acknowledged pause is never lost", what);
        }
        self.check_new_seats(record);
        self.records.insert(record.job_id.clone(), record.clone());
    }

    /// No seat moves to a node that was drained, but back to a rank that still runs there.
    fn check_new_seats(&mut self, record: &JobRecord) {
        let old = self.records.get(&record.job_id);
        let had = |seat: usize| old.and_then(|old| old.seats.get(seat).cloned().flatten());
        let runs = |seat: usize, node: &str| {
            let mut own = self.processes.values().filter(|other| other.job_id == record.job_id);
            own.any(|process| process.seat as usize == seat && process.node == node)
        };
        let taken = record.seats.iter().enumerate();
        let taken = taken.filter_map(|(seat, node)| Some((seat, node.as_ref()?)));
        let new = taken.filter(|(seat, node)| had(*seat).as_ref() != Some(*node));
        let new = new.filter(|(_, node)| self.drained.contains_key(*node));
        let wrong: Vec<String> = new
            .filter(|(seat, node)| !runs(*seat, node))
            .map(|(seat, node)| format!("seat {seat} of {} moves to {node}", record.job_id))
            .collect();
        for what in wrong {
            self.violate_at(self.now, "a drained node gets no new rank", what);
        }
    }

    fn check_seats(&mut self) {
        let mut used: BTreeMap<&str, u32> = BTreeMap::new();
        for record in self.records.values().filter(|record| record.state.is_placed()) {
            for node in record.seats.iter().flatten() {
                *used.entry(node).or_default() += 1;
            }
        }
        let over: Vec<String> = used
            .into_iter()
            .filter(|(node, used)| *used > self.slots[*node])
            .map(|(node, used)| format!("{node} has {} slots and {used} seats", self.slots[node]))
            .collect();
        let now = self.now;
        for what in over {
            self.violate_at(now, "no node has more seats than slots", what);
        }
    }
}

/// A job's name: the random half of its id is not part of a run's story.
pub(crate) fn short(job_id: &str) -> &str {
    job_id.split('-').next().unwrap_or(job_id)
}

fn hide(text: &str, job_id: &str) -> String {
    text.replace(job_id, short(job_id))
}
