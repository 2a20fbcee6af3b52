//! Whose fault a rank's end is, and who may be made to pay for it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ringmaster_agent::exit::Class;
use ringmaster_coordinator::state::{JobRecord, State as JobState};

use super::world::{State, World, short};

/// Faults of a node, and not of the jobs that run there, before it may be excluded.
const FEW: u32 = 3;

/// How a rank ended.
#[derive(Debug, Clone)]
pub(crate) struct Exit {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    /// Whose fault it says that this is, and what it was about to do.
    pub(crate) class: Class,
    pub(crate) operation: &'static str,
    pub(crate) cause: &'static str,
    pub(crate) reason: String,
    /// It is the job's own fault, whatever it says.
    pub(crate) is_of_the_job: bool,
}

impl Exit {
    pub(crate) fn with(code: i32, reason: &str) -> Self {
        Self {
            code: Some(code),
            signal: None,
            class: Class::Retry,
            operation: "run",
            cause: "code",
            reason: reason.to_owned(),
            is_of_the_job: false,
        }
    }

    pub(crate) fn killed() -> Self {
        Self { code: None, signal: Some(9), cause: "signal 9", ..Self::with(0, "killed") }
    }

    /// One that a rank meets before it joins.
    fn met(class: Class, of: &str) -> Self {
        let (code, operation, cause, reason) = match class {
            Class::Retry => (101, "run", "panic", "panicked"),
            Class::Node => (77, "open device", "missing", "the device does not answer"),
            Class::Job => (78, "build model", "shape", "the weights do not fit the model"),
        };
        Self { class, operation, cause, ..Self::with(code, &format!("{reason} ({of})")) }
    }
}

/// What is wrong with nodes and with jobs.
#[derive(Default)]
pub(crate) struct Blame {
    /// What ranks meet that are started on a node, and until when.
    nodes: BTreeMap<String, (Class, Duration)>,
    /// What all ranks of a job meet, by the job's name.
    jobs: BTreeMap<String, Class>,
    /// Nodes on which ranks of a job met a fault of the node, by the job's name and what they met.
    met: BTreeMap<(String, &'static str), BTreeSet<String>>,
    /// Ends of ranks that are no fault of the job, by node.
    ends: BTreeMap<String, u32>,
}

impl World {
    /// What a rank meets when it is started.
    pub(crate) fn meets(&self, job_id: &str, node: &str) -> Option<Exit> {
        self.with(|state| {
            let exit = state.blame.of_the_job(job_id);
            let now = state.now;
            let of_the_node = state.blame.nodes.get(node).filter(|(_, until)| now < *until);
            let class = of_the_node.map(|(class, _)| *class);
            if exit.is_some() || class.is_none() {
                return exit;
            }
            let class = class?;
            let exit = Exit::met(class, "a fault of the node");
            let what = (short(job_id).to_owned(), exit.operation);
            state.blame.met.entry(what).or_default().insert(node.to_owned());
            Some(exit)
        })
    }

    /// What a rank of a job meets on its way.
    pub(crate) fn meets_on_the_way(&self, job_id: &str) -> Option<Exit> {
        self.with(|state| state.blame.of_the_job(job_id))
    }

    /// A rank has ended on a node.
    pub(crate) fn rank_ended(&self, node: &str, exit: &Exit) {
        self.with(|state| {
            state.count(match (exit.code, exit.class) {
                (Some(0), _) => "exit: well",
                (None, _) => "exit: killed",
                (_, Class::Retry) => "exit: retry",
                (_, Class::Node) => "exit: node",
                (_, Class::Job) => "exit: job",
            });
            if exit.code != Some(0) && !exit.is_of_the_job {
                *state.blame.ends.entry(node.to_owned()).or_default() += 1;
            }
        });
    }
}

impl Blame {
    fn of_the_job(&self, job_id: &str) -> Option<Exit> {
        let class = *self.jobs.get(short(job_id))?;
        Some(Exit { is_of_the_job: true, ..Exit::met(class, "a fault of the job") })
    }

    /// A machine was lost with this many ranks.
    pub(crate) fn lost_machine(&mut self, node: &str, ranks: usize) {
        *self.ends.entry(node.to_owned()).or_default() += u32::try_from(ranks).unwrap_or(FEW);
    }
}

impl State {
    pub(crate) fn spoil_node(&mut self, node: &str, class: Class, lasts: Duration) {
        let until = self.now.saturating_add(lasts);
        // With a large budget it would take longer than a run.
        let small = self.plans_of.values().all(|plan| plan.max_without_progress <= 3);
        let for_good = lasts == Duration::MAX;
        let class = if class == Class::Retry && for_good && !small { Class::Node } else { class };
        self.blame.nodes.insert(node.to_owned(), (class, until));
    }

    /// All ranks of a job fail alike from now on; false for one that is not there any more.
    pub(crate) fn spoil_job(&mut self, pick: usize, class: Class) -> bool {
        let live = self.records.values().filter(|record| !record.state.is_ended());
        let live: Vec<String> = live.map(|record| record.name.clone()).collect();
        let Some(name) = pick.checked_rem(live.len()).map(|index| live[index].clone()) else {
            return false;
        };
        // With a large budget it would take longer than a run.
        let plan = self.plans_of.get(&name);
        let small = plan.is_some_and(|plan| plan.max_without_progress <= 3);
        let class = if class == Class::Retry && !small { Class::Job } else { class };
        self.log(&format!("---- spoils {name}: {class:?}"));
        self.blame.jobs.insert(name, class);
        true
    }

    /// Whether the ranks of a job that are started fail for good, and call that their nodes' fault: with a large
    /// budget it tries one node after the other for longer than a run.
    pub(crate) fn is_spoilt_job(&self, record: &JobRecord) -> bool {
        self.blame.jobs.get(&record.name) == Some(&Class::Node)
    }

    /// Whether ranks started on this node fail for good.
    pub(crate) fn is_spoilt(&self, node: &str) -> bool {
        self.blame.nodes.get(node).is_some_and(|(_, until)| self.now < *until)
    }

    /// A job's new record says that it failed.
    pub(crate) fn check_failure(&mut self, record: &JobRecord) {
        let old = self.records.get(&record.job_id);
        let fails =
            record.state == JobState::Failed && !old.is_some_and(|old| old.state.is_ended());
        let name = short(&record.job_id);
        if !fails || self.blame.jobs.contains_key(name) || Self::is_out_of_budget(record) {
            return;
        }
        let what = format!("{name}: {}", record.reason);
        let met = self.blame.met.iter().filter(|((job, _), _)| job == name);
        let nodes: Vec<&BTreeSet<String>> = met.map(|(_, nodes)| nodes).collect();
        if nodes.is_empty() {
            return self.violate_at(self.now, "no job fails for the faults of others", what);
        }
        // Two nodes that show the same are evidence against the job, even if both are to blame.
        if nodes.iter().any(|nodes| nodes.len() > 1) {
            return;
        }
        let others = self.slots.iter().filter(|(node, _)| {
            !nodes.iter().any(|nodes| nodes.contains(*node)) && !self.is_closed(node)
        });
        let others: u32 = others.map(|(node, _)| self.usable_slots(node)).sum();
        if others >= self.plan_of(&record.job_id).map_or(1, |plan| plan.min_ranks) {
            let invariant = "no job fails for a node's fault while another node could run it";
            self.violate_at(self.now, invariant, what);
        }
    }

    /// A node was excluded.
    pub(crate) fn check_exclusion(&mut self, node: &str, reason: &str) {
        self.count("excluded");
        let ends = self.blame.ends.get(node).copied().unwrap_or_default();
        if ends < FEW && !self.blame.jobs.is_empty() {
            let what = format!("{node} after {ends} faults of its own: {reason}");
            self.violate_at(self.now, "no node is excluded for a job's fault", what);
        }
    }

    /// Slots of a node that may be had in the end: not those of undead ranks.
    pub(crate) fn usable_slots(&self, node: &str) -> u32 {
        if self.is_spoilt(node) {
            return 0;
        }
        let undead = |process: &&super::processes::Process| {
            process.host == node && process.survives.is_some()
        };
        let undead = self.processes.values().filter(undead).count();
        self.slots[node].saturating_sub(u32::try_from(undead).unwrap_or(u32::MAX))
    }
}
