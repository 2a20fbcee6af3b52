//! What the coordinator makes durable, in its order, and what must hold of it.

use std::collections::BTreeMap;

use ringmaster_coordinator::state::{
    Change, CheckpointGrant, ClosureKind, EventRecord, HaltKind, JobRecord, State as JobState,
};
use ringmaster_proto::v1::Generation;

use super::coordinator::LEASE;
use super::history::{WentBack, parse_url};
use super::world::{State, World, hide, short};

/// Words of the history that show that a deadline has passed, and what that is counted as.
const DEADLINES: [(&str, &str); 7] = [
    ("were killed before they had saved", "deadline: grace"),
    ("s after SIGKILL (", "deadline: kill"),
    ("is given up: rank", "deadline: commit"),
    ("was not heard of for", "deadline: lease"),
    ("connection closed and did not come back", "deadline: session"),
    ("did not come back after the coordinator's restart", "deadline: reattach"),
    ("it hangs: no progress", "deadline: standstill"),
];

/// Whether a node was lost before its lease had ended.
fn was_early(message: &str) -> bool {
    let (_, rest) = message.split_once("was not heard of for ").unwrap_or_default();
    let seconds: Option<f64> = rest.split_once(" s").and_then(|(seconds, _)| seconds.parse().ok());
    seconds.is_some_and(|seconds| seconds < LEASE.as_secs_f64())
}

impl World {
    /// Sees what the coordinator has just made durable, in its order.
    pub(crate) fn committed(&self, changes: &[Change]) {
        self.with(|state| {
            for change in changes {
                state.committed(change);
            }
            state.check_seats();
        });
    }
}

impl State {
    /// Generations that were ever opened.
    pub(crate) fn generations(&self) -> usize {
        self.generations.len()
    }

    fn committed(&mut self, change: &Change) {
        match change {
            Change::Job(record) => self.record(record),
            Change::Generation { generation, job_id, reason, .. } => {
                self.generation(*generation, job_id, reason);
            }
            Change::Grant(grant) => self.grant(grant),
            Change::Published { job_id, generation, step, .. } => {
                self.log(&format!("durable: {} {generation} step {step} published", short(job_id)));
            }
            Change::Node { node, closure: Some(closure) } => {
                self.closed.insert(node.clone());
                if closure.kind == ClosureKind::Excluded {
                    self.check_exclusion(node, &closure.reason);
                }
            }
            Change::Node { node, closure: None } => {
                self.closed.remove(node);
            }
            Change::Event(event) => self.event(event),
            _ => {}
        }
    }

    fn generation(&mut self, generation: Generation, job_id: &str, reason: &str) {
        let now = self.now;
        self.log(&format!("durable: {} {generation}: {reason}", short(job_id)));
        let newest = self.generations.last_key_value().map(|(newest, _)| *newest);
        if newest.is_some_and(|newest| newest >= generation) {
            let what = format!("{generation} for {job_id} after {newest:?}");
            self.violate_at(now, "generations only rise", what);
        }
        if self.paused.contains(job_id) {
            let what = format!("{generation} for {job_id}: {reason}");
            self.violate_at(now, "a paused job opens no generation", what);
        }
        self.count_generation(job_id, reason);
        self.generations.insert(generation, job_id.to_owned());
        self.current.insert(job_id.to_owned(), generation);
    }

    fn grant(&mut self, grant: &CheckpointGrant) {
        self.grants += 1;
        let current = self.current.get(&grant.job_id).copied().unwrap_or_default();
        if current != grant.generation {
            let what = format!(
                "step {} of {} is granted to {}, current is {current}",
                grant.step, grant.job_id, grant.generation
            );
            let invariant = "only the current generation may commit a checkpoint";
            self.violate_at(self.now, invariant, what);
        }
        // One object of each rank of the ring.
        let key = (grant.job_id.clone(), grant.generation);
        let objects: Vec<serde_json::Value> = serde_json::from_str(&grant.objects_json).unwrap();
        let world_size = self.rings.get(&key).map_or(0, |ring| ring.world_size);
        if objects.len() != world_size {
            let what = format!("{key:?} step {}: {} of {world_size}", grant.step, objects.len());
            self.violate_at(self.now, "a checkpoint that may be published is whole", what);
        }
    }

    fn event(&mut self, event: &EventRecord) {
        // What a table says that was to start one more.
        if event.message.contains(ringmaster_agent::FULL) {
            let what = event.message.clone();
            self.violate_at(self.now, "no node runs more ranks than it has slots", what);
        }
        for (words, deadline) in DEADLINES {
            if event.message.contains(words) {
                self.count(deadline);
            }
        }
        if was_early(&event.message) {
            self.count("deadline: early loss");
        }
        let (job, kind) = (short(&event.job_id).to_owned(), &event.kind);
        self.log(&format!(
            "durable: {job} {kind}: {}",
            self.records.keys().fold(event.message.clone(), |text, id| hide(&text, id))
        ));
    }

    fn record(&mut self, record: &JobRecord) {
        self.check_ended(record);
        self.check_paused(record);
        self.check_new_seats(record);
        self.check_failure(record);
        self.count_record(record);
        let old = self.records.get(&record.job_id);
        let before = old.and_then(|old| old.rollback.clone());
        if let Some(to) = record.rollback.as_ref().filter(|_| record.rollback != before) {
            let went_back = WentBack { to: parse_url(&to.url), up_to: to.up_to() };
            self.history.go_back(&record.job_id, went_back);
        }
        self.records.insert(record.job_id.clone(), record.clone());
    }

    fn check_ended(&mut self, record: &JobRecord) {
        let Some(old) = self.records.get(&record.job_id) else { return };
        let undone = old.state.is_ended() && old.state != record.state;
        // One that failed or was cancelled goes on if somebody wants it.
        let wanted = matches!(old.state, JobState::Failed | JobState::Cancelled)
            && self.resumed.contains(&record.job_id);
        if undone && !wanted {
            let (was, is) = (old.state.word(), record.state.word());
            let what = format!("{} was {was} and is {is}", old.job_id);
            self.violate_at(self.now, "what has ended stays ended", what);
        }
    }

    fn check_paused(&mut self, record: &JobRecord) {
        let lost = self.paused.contains(&record.job_id)
            && !record.state.is_ended()
            && record.state != JobState::Paused
            && record.halt.as_ref().is_none_or(|halt| halt.kind != HaltKind::Pause);
        // Cancelling goes first.
        if lost && record.cancel_reason.is_none() {
            let what = format!("{} is {}", record.job_id, record.state.word());
            self.violate_at(self.now, "an acknowledged pause is never lost", what);
        }
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
            // Its agent may have said so before the rank ended, in a message that comes late.
            .filter(|(seat, node)| !runs(*seat, node) && self.hears(node))
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
