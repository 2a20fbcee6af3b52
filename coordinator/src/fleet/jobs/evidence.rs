//! Whose fault it was: what a job's failures prove, as a value without clock and without IO.
//!
//! **Identity.** Two failures are the same if class, operation and cause are; texts differ from node to
//! node and are for people.
//!
//! **Nodes.** That a rank failed on a node proves nothing against the node: every node might have failed
//! there. It does once another node is seen past that point of the same job afterwards; then the node is
//! charged. Who has got past it before is no witness: what comes now might have befallen it, too. When a
//! second node fails in the same way, the failure is the job's own: nobody is charged with it, and what was
//! charged is taken back.
//!
//! **Jobs.** A failure that the rank or its agent calls the node's or the job's ends the job when two nodes
//! have met it, or the only node that could run the job has in two attempts, without a new step in between;
//! but not what a rank calls its node's, as long as another node has got past that point. What another
//! attempt may mend wherever it is made uses up the restart budget instead.
//!
//! All of it is believed for an hour: what two nodes meet in the same way a week apart is no evidence.

use std::collections::BTreeMap;
use std::time::Duration;

use ringmaster_proto::v1::{self, ExitClass, Generation, Phase};
use tokio::time::Instant;

/// Failures without a step in between that are remembered.
const REMEMBERED: usize = 64;
/// How long a job that cannot do without a node leaves it out: it may be mended. Twice as long each time.
const ALONE_FOR: Duration = Duration::from_secs(15);
/// How often that is doubled at most.
const MOST_DOUBLED: u32 = 5;
/// How long a failure is evidence.
const BELIEVED: Duration = Duration::from_secs(3600);

/// What two failures have in common that are the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) class: ExitClass,
    pub(crate) operation: String,
    pub(crate) cause: String,
}

impl Identity {
    /// What a process's end says of itself; one of an agent that does not say it may pass.
    pub(crate) fn of(exited: &v1::RankExited) -> Self {
        let class = match exited.class() {
            ExitClass::Unspecified => ExitClass::Retry,
            class => class,
        };
        Self { class, operation: exited.operation.clone(), cause: exited.cause.clone() }
    }

    /// A rank that is gone although nothing says that it failed.
    pub(crate) fn gone(cause: &str) -> Self {
        Self { class: ExitClass::Retry, operation: "node".to_owned(), cause: cause.to_owned() }
    }
}

/// How far a rank has come in its job: what lies behind it, its node can do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Point {
    stage: Stage,
    step: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// The process starts: device, data, model.
    #[default]
    Starts,
    /// It has all that it needs by itself, and joins a ring.
    Joins,
    /// It trains.
    Trains,
}

impl Point {
    /// Where a rank is, as it says itself.
    pub(crate) fn of(phase: Phase, step: u64) -> Self {
        match phase {
            Phase::Unspecified | Phase::Start | Phase::Load => Self::default(),
            Phase::Join => Self { stage: Stage::Joins, step: 0 },
            _ => Self { stage: Stage::Trains, step },
        }
    }
}

/// A rank that failed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Failure {
    pub(crate) identity: Identity,
    pub(crate) node: String,
    /// The generation that its process was started for.
    pub(crate) started: Generation,
    pub(crate) at: Instant,
    /// How far it had come.
    pub(crate) point: Point,
    /// Faults that its node is charged with if it was the node.
    pub(crate) weight: f64,
    /// In a sentence.
    pub(crate) how: String,
}

/// Faults that a node is to be charged with, or that are taken back.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Charge {
    pub(crate) node: String,
    pub(crate) faults: f64,
    /// What it did, in a sentence.
    pub(crate) how: String,
}

/// Why and how long a node gets none of a job's ranks.
#[derive(Debug)]
struct Avoided {
    since: Instant,
    until: Instant,
    for_what: LeftFor,
    why: String,
}

/// For what a node is left out; what weighs more comes later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LeftFor {
    /// It and another node do not reach one another. With others, or alone, it could run the job.
    Link,
    /// It could not run a rank of the job.
    Failure,
    /// A rank of the job does not end there. The job is told when it has: a sooner attempt would not help.
    Undead,
}

/// What is known of a job's failures. In memory only: after a restart of the coordinator it is gathered anew.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    /// Since the last new step.
    recent: Vec<Failure>,
    /// Failures that their nodes may yet be charged with, and those that they were.
    open: Vec<(Failure, bool)>,
    /// What several nodes have met, and when: it is the job's.
    own: Vec<(Identity, Instant)>,
    /// How far each node has come in this job.
    reached: BTreeMap<String, Point>,
    /// Charges that nobody has acted on yet.
    due: Vec<Charge>,
    /// Nodes that get none of its ranks for a while.
    avoided: BTreeMap<String, Avoided>,
    /// How often each was.
    times_avoided: BTreeMap<String, u32>,
}

impl Evidence {
    /// Takes in a failure. Returns why the job cannot go on, if that is proven now: `alone` says that no
    /// other node could run the failed rank.
    pub(crate) fn fail(&mut self, failure: &Failure, alone: bool) -> Option<String> {
        self.forget_before(failure.at);
        let proof = self.proof(failure, alone);
        self.recent.truncate(REMEMBERED - 1);
        self.recent.insert(0, failure.clone());
        match &proof {
            Some(_) => self.own(failure),
            None => self.weigh(failure),
        }
        proof
    }

    fn forget_before(&mut self, now: Instant) {
        let is_old = |at: Instant| now.saturating_duration_since(at) >= BELIEVED;
        self.recent.retain(|failure| !is_old(failure.at));
        self.open.retain(|(failure, _)| !is_old(failure.at));
        self.own.retain(|(_, at)| !is_old(*at));
    }

    /// Whether a node has got past the point of a failure that has not failed in the same way.
    pub(crate) fn has_witness(&self, failure: &Failure) -> bool {
        let failed = |node: &String| {
            let mut all = self.recent.iter().chain(self.open.iter().map(|(other, _)| other));
            all.any(|other| other.identity == failure.identity && other.node == *node)
        };
        let mut others = self.reached.iter().filter(|(node, _)| **node != failure.node);
        others.any(|(node, point)| *point > failure.point && !failed(node))
    }

    fn proof(&self, failure: &Failure, alone: bool) -> Option<String> {
        let may_pass = failure.identity.class == ExitClass::Retry;
        if may_pass || (failure.identity.class == ExitClass::Node && self.has_witness(failure)) {
            return None;
        }
        let mut same = self.recent.iter().filter(|other| other.identity == failure.identity);
        if let Some(other) = same.clone().find(|other| other.node != failure.node) {
            return Some(format!("the same happened on {}", other.node));
        }
        // Two ranks that end in one attempt are one attempt.
        (alone && same.any(|other| other.started < failure.started))
            .then(|| format!("it happened twice on {}, which alone could run it", failure.node))
    }

    /// Notes what the node of a failure may be charged with.
    fn weigh(&mut self, failure: &Failure) {
        let is_own = |(own, _): &(Identity, Instant)| *own == failure.identity;
        if failure.identity.class == ExitClass::Job || self.own.iter().any(is_own) {
            return;
        }
        let mut same = self.open.iter().filter(|(other, _)| other.identity == failure.identity);
        if same.clone().any(|(other, _)| other.node != failure.node) {
            return self.own(failure);
        }
        // What befalls all ranks of a node at once is one fault.
        if same.any(|(other, _)| other.started == failure.started) {
            return;
        }
        self.open.push((failure.clone(), false));
        self.open.drain(..self.open.len().saturating_sub(REMEMBERED));
    }

    /// Takes in a failure that is part of another fault, perhaps: it proves nothing against its node, but that a
    /// second node fails in the same way.
    pub(crate) fn echo(&mut self, failure: &Failure) {
        let same = |(other, _): &(Failure, bool)| {
            other.identity == failure.identity && other.node != failure.node
        };
        if self.open.iter().any(same) {
            self.own(failure);
        }
    }

    /// A failure turns out to be the job's own: no node is charged with it any more.
    fn own(&mut self, failure: &Failure) {
        self.own.push((failure.identity.clone(), failure.at));
        let same = self.open.extract_if(.., |(other, _)| other.identity == failure.identity);
        for (other, charged) in same {
            if charged {
                // As much as is left of it.
                let age = failure.at.saturating_duration_since(other.at);
                let faults = -other.weight * left_after(age);
                self.due.push(Charge { node: other.node, faults, how: other.how });
            }
        }
    }

    /// Takes in how far a rank on a node has come by now, whose process was started for a generation, and charges
    /// other nodes with failures at points that lie behind it. A process from before a start that failed is no
    /// witness of how starts go.
    pub(crate) fn reach(&mut self, node: &str, started: Generation, point: Point) {
        match self.reached.get_mut(node) {
            Some(reached) => *reached = (*reached).max(point),
            None => drop(self.reached.insert(node.to_owned(), point)),
        }
        let Self { open, due, .. } = self;
        for (failure, charged) in open.iter_mut().filter(|(_, charged)| !charged) {
            let at_start = failure.point.stage == Stage::Starts;
            let went_there = !at_start || started >= failure.started;
            if failure.node != node && point > failure.point && went_there {
                *charged = true;
                let Failure { node, weight, how, .. } = failure.clone();
                due.push(Charge { node, faults: weight, how });
            }
        }
    }

    /// Takes what nodes are to be charged with since the last call.
    pub(crate) fn take_due(&mut self) -> Vec<Charge> {
        std::mem::take(&mut self.due)
    }

    /// A new step is done: what came before it proves nothing against the job any more.
    pub(crate) fn progressed(&mut self) {
        self.recent.clear();
    }

    /// Forgets how far nodes have come: what comes now is another attempt, from an older state.
    pub(crate) fn start_over(&mut self) {
        self.recent.clear();
        self.reached.clear();
    }

    // ---- Nodes that are left out

    /// Puts no rank of the job on a node for so long. What several of its ranks meet there in one attempt is
    /// one reason.
    pub(crate) fn avoid(
        &mut self,
        node: &str,
        now: Instant,
        lasts: Duration,
        for_what: LeftFor,
        why: String,
    ) {
        let known = self.avoided.get(node).filter(|avoided| avoided.until > now);
        if known.is_some_and(|avoided| avoided.for_what >= for_what) {
            return;
        }
        let avoided = Avoided { since: now, until: now + lasts, for_what, why };
        self.avoided.insert(node.to_owned(), avoided);
        *self.times_avoided.entry(node.to_owned()).or_default() += 1;
    }

    /// The job has not enough slots without the nodes that it leaves out: those that may have been mended are
    /// tried again, the sooner the less often they were.
    pub(crate) fn relent(&mut self, now: Instant) {
        let times = &self.times_avoided;
        self.avoided.retain(|node, avoided| {
            let before = times.get(node).copied().unwrap_or(1).saturating_sub(1);
            let patience = ALONE_FOR * 2_u32.pow(before.min(MOST_DOUBLED));
            avoided.for_what == LeftFor::Undead || now < avoided.since + patience
        });
    }

    /// How often a node was left out so far.
    pub(crate) fn times_avoided(&self, node: &str) -> u32 {
        self.times_avoided.get(node).copied().unwrap_or(0)
    }

    /// Whether the job's ranks may go to a node.
    pub(crate) fn avoids(&self, node: &str, now: Instant) -> bool {
        self.avoided.get(node).is_some_and(|avoided| avoided.until > now)
    }

    /// Whether a node was found unable to run the job's ranks.
    pub(crate) fn rules_out(&self, node: &str, now: Instant) -> bool {
        let avoided = self.avoided.get(node).filter(|avoided| avoided.until > now);
        avoided.is_some_and(|avoided| avoided.for_what != LeftFor::Link)
    }

    /// The nodes that are left out by now, and why.
    pub(crate) fn avoided(&self, now: Instant) -> BTreeMap<String, String> {
        let left_out = self.avoided.iter().filter(|(_, avoided)| avoided.until > now);
        left_out.map(|(node, avoided)| (node.clone(), avoided.why.clone())).collect()
    }

    /// A node is another one now, or somebody vouches for it.
    pub(crate) fn accept(&mut self, node: &str) {
        self.avoided.remove(node);
    }

    /// Everything counts anew: somebody resumed the job.
    pub(crate) fn clear(&mut self) {
        *self = Self { due: std::mem::take(&mut self.due), ..Self::default() };
    }
}

/// What is left of a charge after so long, as a share: half of it every hour.
fn left_after(age: Duration) -> f64 {
    (-age.as_secs_f64() / BELIEVED.as_secs_f64()).exp2()
}

#[cfg(test)]
#[path = "evidence_tests.rs"]
mod tests;
