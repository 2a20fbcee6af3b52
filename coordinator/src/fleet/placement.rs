//! Who gets which seat: the scheduler's problem out of what is known, and its answer carried out.

use std::collections::{BTreeMap, BTreeSet};

use super::cluster::Cluster;
use super::job::Job;
use super::ledger::Ledger;
use super::node::Node;
use crate::scheduler::{self, Gang, Problem, Standing, solve};
use crate::state::{HaltKind, State};

/// Seats of a job by seat, as the scheduler decided them.
type Seats = Vec<Option<String>>;

impl Cluster {
    /// Asks the scheduler, if there is anything to ask, and carries out what it says.
    pub(super) fn place(&mut self) {
        let may_change = |job: &Job| match standing(job) {
            Some(Standing::Queued) => true,
            Some(Standing::Forming) => !job.is_whole(),
            Some(Standing::Training { at_checkpoint }) => at_checkpoint,
            Some(Standing::Held | Standing::Leaving) | None => false,
        };
        if !self.jobs.values().any(may_change) {
            return;
        }
        let problem = self.problem();
        for job in self.jobs.values_mut() {
            job.at_checkpoint = false;
        }
        if problem.is_content() {
            return;
        }
        let solution = solve(&problem);
        for (job_id, stop) in &solution.stopped {
            let job = self.jobs.get_mut(job_id).expect("gangs are jobs");
            self.ledger.halt(job, HaltKind::Preempt, &stop.to_string(), self.config.grace);
        }
        for (job_id, seats) in solution.placed {
            if solution.stopped.contains_key(&job_id) {
                continue;
            }
            let changed = self.jobs.get(&job_id).is_some_and(|job| job.record.seats != seats);
            if changed {
                self.seat(&job_id, seats);
            }
        }
        for (job_id, reason) in solution.waiting {
            if solution.stopped.contains_key(&job_id) {
                continue;
            }
            let job = self.jobs.get_mut(&job_id).expect("gangs are jobs");
            let reason = reason.to_string();
            if job.record.reason != reason {
                job.record.reason = reason;
                job.dirty = true;
            }
        }
    }

    fn problem(&self) -> Problem {
        let now = self.ledger.now.at;
        let nodes = self
            .nodes
            .iter()
            .filter(|(_, node)| {
                node.session.is_some() && !node.leaving && !node.lease.is_expired(now)
            })
            .map(|(name, node)| scheduler::Node {
                name: name.clone(),
                slots: node.slots,
                strays: self.strays_on(name),
                accelerator: node.accelerator.clone(),
                closed: self.closures.contains_key(name),
            });
        let gangs = self.jobs.iter().filter_map(|(job_id, job)| {
            Some(Gang {
                job_id: job_id.clone(),
                priority: job.record.priority,
                sequence: job.record.sequence,
                accelerator: job.wants.accelerator.clone(),
                min_ranks: job.wants.min_ranks,
                standing: standing(job)?,
                seats: job.record.seats.clone(),
                preferred: job.preferred.clone(),
            })
        });
        Problem { nodes: nodes.collect(), gangs: gangs.collect() }
    }

    /// Ranks on a node whose job does not have its seat there: they end soon, but take a slot until
    /// then.
    pub(super) fn strays_on(&self, name: &str) -> u32 {
        let Some(node) = self.nodes.get(name) else { return 0 };
        let strays = node.processes.keys().filter(|(job_id, seat)| {
            let job = self.jobs.get(job_id);
            !job.is_some_and(|job| job.record.state.is_placed() && job.sits(*seat, name))
        });
        u32::try_from(strays.count()).unwrap_or(u32::MAX)
    }

    /// Seats that are taken, by node.
    pub(super) fn taken_seats(&self) -> BTreeMap<&str, u32> {
        let jobs = self.jobs.values().filter(|job| job.record.state.is_placed());
        let mut taken = BTreeMap::new();
        for seat in jobs.flat_map(|job| job.record.seats.iter().flatten()) {
            *taken.entry(seat.as_str()).or_default() += 1;
        }
        taken
    }

    /// Gives a job the seats the scheduler chose for it.
    fn seat(&mut self, job_id: &str, seats: Seats) {
        let mut job = self.jobs.remove(job_id).expect("gangs are jobs");
        if job.record.threads == 0 {
            job.record.threads = self.threads(&job, &seats);
        }
        for (seat, node) in (0..).zip(seats) {
            if job.seat(seat) == node.as_deref() {
                continue;
            }
            // Of a node that is left; its process is stopped, as it has no place any more.
            job.vacate(seat);
            if let Some(node) = node {
                self.take_seat(&mut job, seat, node);
            }
        }
        self.ledger.seated(&mut job);
        self.jobs.insert(job_id.to_owned(), job);
    }

    /// Seats one rank, on the lowest slot of its node that nobody has.
    fn take_seat(&self, job: &mut Job, seat: u32, node: String) {
        let used = self.used_slots(job, &node);
        let slot = (0..).find(|slot| !used.contains(slot)).unwrap_or_default();
        let index = seat as usize;
        job.record.slots[index] = slot;
        job.record.seats[index] = Some(node);
        job.dirty = true;
    }

    /// Slots of a node that ranks have, those that are still ending included as far as known.
    fn used_slots(&self, mine: &Job, name: &str) -> BTreeSet<u32> {
        let others = self.jobs.values().filter(|job| job.record.state.is_placed());
        let seated = others.chain([mine]).flat_map(|job| {
            let slots = job.record.seats.iter().zip(&job.record.slots);
            slots.filter(|(seat, _)| seat.as_deref() == Some(name)).map(|(_, slot)| *slot)
        });
        let processes = self.nodes.get(name).into_iter().flat_map(|node| node.processes.values());
        seated.chain(processes.filter_map(|process| process.slot)).collect()
    }

    /// libtorch threads per rank: what the manifest says, else what the tightest node has.
    fn threads(&self, job: &Job, seats: &Seats) -> u32 {
        let tightest = || {
            let nodes = seats.iter().flatten().filter_map(|name| self.nodes.get(name));
            nodes.map(Node::threads_per_slot).min()
        };
        job.wants.threads_per_rank.or_else(tightest).unwrap_or(1)
    }
}

/// How a job stands towards the scheduler; nothing for one that holds and wants no slots.
fn standing(job: &Job) -> Option<Standing> {
    match job.record.state {
        State::Queued => Some(Standing::Queued),
        state if !state.is_placed() => None,
        _ if job.is_stopping() => Some(Standing::Leaving),
        _ if job.attach_until.is_some() || job.is_finished() => Some(Standing::Held),
        _ if !job.record.formed => Some(Standing::Forming),
        _ => Some(Standing::Training { at_checkpoint: job.at_checkpoint }),
    }
}

impl Ledger {
    /// Notes that a job has got seats: its first ones, some of those it had lost, or more than its
    /// ring has.
    fn seated(&mut self, job: &mut Job) {
        let nodes = nodes(job);
        let (taken, ranks) = (job.taken(), job.record.ranks);
        let of = if job.is_whole() { String::new() } else { format!(" of {ranks}") };
        if job.record.state == State::Queued {
            let why = match job.record.generation {
                None => "first placement",
                Some(_) => "placed again",
            };
            let generation = self.open_generation(job, why);
            job.record.state = State::Starting;
            job.record.reason = format!("forming generation {generation} on {nodes}");
            let message = format!("{taken}{of} ranks on {nodes}, generation {generation}");
            return self.event(job, "placed", message);
        }
        if job.record.formed {
            let ring = job.record.ring.len();
            let (kind, why) = if taken > ring {
                ("growing", format!("growing from {ring} to {taken}{of} ranks ({nodes})"))
            } else {
                ("moving", format!("leaving closed nodes for {nodes}, {taken}{of} ranks"))
            };
            return self.form_anew(job, State::Starting, kind, &why);
        }
        let generation = job.generation();
        job.record.reason = format!("forming generation {generation} on {nodes}");
        let message = if job.is_whole() {
            format!("its lost ranks have seats again ({nodes})")
        } else {
            format!("{taken}{of} ranks have seats ({nodes})")
        };
        self.event(job, "placed", message);
    }
}

/// The nodes a job sits on, each once, in the order of seats.
fn nodes(job: &Job) -> String {
    let mut nodes: Vec<&str> = Vec::new();
    for node in job.record.seats.iter().flatten() {
        if !nodes.contains(&node.as_str()) {
            nodes.push(node);
        }
    }
    nodes.join(", ")
}
