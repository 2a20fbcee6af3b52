//! Who gets which seat: the scheduler's problem out of what is known, and its answer carried out.

use std::collections::{BTreeMap, BTreeSet};

use ringmaster_proto::Seat;

use super::node::Node;
use super::table::Nodes;
use crate::fleet::{Batch, Job, Jobs};
use crate::scheduler::{self, Problem, Reason, Standing, solve};
use crate::state::HaltKind;

/// Seats of a job by seat, as the scheduler decided them.
type Seats = Vec<Option<String>>;

impl Nodes {
    /// Asks the scheduler, if there is anything to ask, and carries out what it says.
    pub(crate) fn place(&self, jobs: &mut Jobs, batch: &mut Batch) {
        if !jobs.by_id.values().any(may_change) {
            return;
        }
        let problem = self.problem(jobs, batch);
        for job in jobs.by_id.values_mut() {
            job.at_checkpoint = false;
        }
        if problem.is_content() {
            return;
        }
        let solution = solve(&problem);
        // Jobs that make room for others checkpoint and stop; nothing else becomes of them now.
        for (job_id, job) in &mut jobs.by_id {
            if let Some(stop) = solution.stopped.get(job_id) {
                job.halt(batch, HaltKind::Preempt, &stop.to_string());
            }
        }
        // Jobs that got seats, or others than they had, take them.
        for (job_id, seats) in solution.placed {
            if solution.stopped.contains_key(&job_id) {
                continue;
            }
            let changed = jobs.by_id.get(&job_id).is_some_and(|job| job.record.seats != seats);
            if changed {
                self.seat(jobs, batch, &job_id, seats);
            }
        }
        // Jobs that wait are told for what.
        for (job_id, job) in &mut jobs.by_id {
            if solution.stopped.contains_key(job_id) {
                continue;
            }
            let Some(reason) = solution.waiting.get(job_id) else { continue };
            if matches!(reason, Reason::Avoided { .. }) {
                job.evidence.relent(batch.now.at);
            }
            let reason = reason.to_string();
            if job.record.reason != reason {
                job.record.reason = reason;
                job.dirty = true;
            }
        }
    }

    fn problem(&self, jobs: &Jobs, batch: &Batch) -> Problem {
        let answers = |node: &Node| node.answers(batch.now.at) && !node.leaving;
        let nodes = self.by_name.iter().filter(|(_, node)| answers(node)).map(|(name, node)| {
            scheduler::Node {
                name: name.clone(),
                slots: node.slots_in_service(),
                strays: self.strays_on(jobs, name),
                accelerator: node.accelerator.clone(),
                closed: self.closures.contains_key(name),
                unusable: node.unusable().is_some(),
                suspect: self.scores.is_suspect(name, batch.now.unix_ms),
            }
        });
        let gangs = jobs.by_id.values().filter_map(|job| job.gang(batch.now.at));
        Problem { nodes: nodes.collect(), gangs: gangs.collect() }
    }

    /// Ranks on a node whose job does not have its seat there: they end soon, but take a slot until
    /// then.
    pub(crate) fn strays_on(&self, jobs: &Jobs, name: &str) -> u32 {
        let Some(node) = self.by_name.get(name) else { return 0 };
        let strays = node.processes.keys().filter(|(job_id, seat)| {
            let job = jobs.by_id.get(job_id);
            !job.is_some_and(|job| job.record.state.is_placed() && job.sits(*seat, name))
        });
        u32::try_from(strays.count()).unwrap_or(u32::MAX)
    }

    /// Gives a job the seats the scheduler chose for it.
    fn seat(&self, jobs: &mut Jobs, batch: &mut Batch, job_id: &str, seats: Seats) {
        let Some(mut job) = jobs.by_id.remove(job_id) else { return };
        if job.record.threads == 0 {
            job.record.threads = self.threads(&job, &seats);
        }
        for (seat, node) in (0..).map(Seat).zip(seats) {
            if job.seat(seat) == node.as_deref() {
                continue;
            }
            // Of a node that is left; its process is stopped, as it has no place any more.
            job.vacate(seat);
            if let Some(node) = node {
                // The lowest slot of its node that nobody has.
                let used = self.used_slots(jobs, &job, &node);
                let slot = (0..).find(|slot| !used.contains(slot)).unwrap_or_default();
                job.sit(seat, node, slot);
            }
        }
        job.seated(batch);
        jobs.by_id.insert(job_id.to_owned(), job);
    }

    /// Slots of a node that ranks have, those that are still ending included as far as known.
    fn used_slots(&self, others: &Jobs, mine: &Job, name: &str) -> BTreeSet<u32> {
        let others = others.by_id.values().filter(|job| job.record.state.is_placed());
        let seated = others.chain([mine]).flat_map(|job| {
            let slots = job.record.seats.iter().zip(&job.record.slots);
            slots.filter(|(seat, _)| seat.as_deref() == Some(name)).map(|(_, slot)| *slot)
        });
        let processes = self.by_name.get(name).into_iter().flat_map(|node| node.processes.values());
        let out = self.by_name.get(name).map(Node::out_of_service).unwrap_or_default();
        let processes = processes.filter_map(|process| process.slot);
        seated.chain(processes).chain(out.into_keys()).collect()
    }

    /// libtorch threads per rank: what the manifest says, else what the tightest node has.
    fn threads(&self, job: &Job, seats: &Seats) -> u32 {
        let tightest = || {
            let nodes = seats.iter().flatten().filter_map(|name| self.by_name.get(name));
            nodes.map(Node::threads_per_slot).min()
        };
        job.spec.threads_per_rank.or_else(tightest).unwrap_or(1)
    }
}

/// Whether the scheduler could have something else to say of a job than last time.
fn may_change(job: &Job) -> bool {
    match job.standing() {
        Some(Standing::Queued) => true,
        Some(Standing::Forming) => !job.is_whole(),
        Some(Standing::Training { at_checkpoint }) => at_checkpoint,
        Some(Standing::Held | Standing::Leaving) | None => false,
    }
}

/// Seats that are taken, by node.
pub(crate) fn taken_seats(jobs: &Jobs) -> BTreeMap<&str, u32> {
    let placed = jobs.by_id.values().filter(|job| job.record.state.is_placed());
    let mut taken = BTreeMap::new();
    for seat in placed.flat_map(|job| job.record.seats.iter().flatten()) {
        *taken.entry(seat.as_str()).or_default() += 1;
    }
    taken
}
