//! Which parts of a checkpoint are stored, and who waits for all of them.

use std::collections::BTreeMap;
use std::time::Duration;

use ringmaster_proto::RingRank;
use ringmaster_proto::v1::StoredObject;
use tokio::time::Instant;

use crate::fleet::Reply;

/// Checkpoints of the current generation, by step.
#[derive(Debug, Default)]
pub(crate) struct Checkpoints {
    steps: BTreeMap<u64, Step>,
}

#[derive(Debug, Default)]
struct Step {
    /// Uploaded objects by ring rank.
    shards: BTreeMap<RingRank, Vec<StoredObject>>,
    /// Who asked for the grant and waits for the shards.
    waiting: Option<Waiting>,
    granted: bool,
    /// Ranks of the ring that could not store their parts, and why: without them the checkpoint is
    /// never complete. A rank that tries again and succeeds leaves.
    failures: BTreeMap<RingRank, String>,
}

/// Somebody waits for a grant.
#[derive(Debug)]
struct Waiting {
    digest: u64,
    /// When a part was stored last, or the wait began.
    since: Instant,
    reply: Reply<Vec<StoredObject>>,
}

/// A grant that has been waited for in vain.
#[derive(Debug)]
pub(crate) struct Overdue {
    pub(crate) step: u64,
    /// Of which no part has come, ascending.
    pub(crate) missing: Vec<RingRank>,
    pub(crate) reply: Reply<Vec<StoredObject>>,
}

/// What whoever waits for a grant is to hear.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It may publish a checkpoint of these objects.
    Granted {
        /// Of the state, as the asking rank says.
        digest: u64,
        objects: Vec<StoredObject>,
        /// No grant was given before.
        is_new: bool,
    },
    /// A rank could not store its part.
    Failed { rank: RingRank, reason: String },
}

impl Checkpoints {
    /// Forgets everything; returns those that waited for a grant.
    pub(crate) fn clear(&mut self) -> Vec<Reply<Vec<StoredObject>>> {
        let steps = std::mem::take(&mut self.steps).into_values();
        steps.filter_map(|step| step.waiting).map(|waiting| waiting.reply).collect()
    }

    /// Forgets the checkpoints up to a step that is published.
    pub(crate) fn forget_up_to(&mut self, published: u64) {
        self.steps.retain(|step, _| *step > published);
    }

    /// Takes in what a rank uploaded.
    pub(crate) fn add_shard(
        &mut self,
        step: u64,
        rank: RingRank,
        objects: Vec<StoredObject>,
        now: Instant,
    ) {
        let step = self.steps.entry(step).or_default();
        step.failures.remove(&rank);
        step.shards.insert(rank, objects);
        if let Some(waiting) = &mut step.waiting {
            waiting.since = now;
        }
    }

    /// Takes in that a rank could not store its part.
    pub(crate) fn add_failure(&mut self, step: u64, rank: RingRank, reason: String) {
        self.steps.entry(step).or_default().failures.insert(rank, reason);
    }

    /// Lets somebody wait for a grant; returns an earlier call that still waited.
    pub(crate) fn wait(
        &mut self,
        step: u64,
        digest: u64,
        reply: Reply<Vec<StoredObject>>,
        now: Instant,
    ) -> Option<Reply<Vec<StoredObject>>> {
        let step = self.steps.entry(step).or_default();
        let waiting = Waiting { digest, since: now, reply };
        step.waiting.replace(waiting).map(|replaced| replaced.reply)
    }

    /// Whether somebody waits for a grant.
    pub(crate) fn is_awaited(&self) -> bool {
        self.steps.values().any(|step| step.waiting.is_some())
    }

    /// Takes those that have waited for `patience` since a part was stored last. Ranks in `at_work` still
    /// have something to store; who waits for one of them waits on.
    pub(crate) fn take_overdue(
        &mut self,
        ranks: usize,
        patience: Duration,
        at_work: impl Fn(RingRank) -> bool,
        now: Instant,
    ) -> Vec<Overdue> {
        let mut overdue = Vec::new();
        for (at, step) in &mut self.steps {
            let missing = (0..).map(RingRank).take(ranks);
            let missing: Vec<RingRank> =
                missing.filter(|rank| !step.shards.contains_key(rank)).collect();
            let is_over =
                |waiting: &mut Waiting| now.saturating_duration_since(waiting.since) >= patience;
            if missing.iter().any(|rank| at_work(*rank)) {
                continue;
            }
            if let Some(Waiting { reply, .. }) = step.waiting.take_if(is_over) {
                overdue.push(Overdue { step: *at, missing, reply });
            }
        }
        overdue
    }

    /// Returns who waits for the grant of a step and what it is to hear, once that is certain: all
    /// `ranks` parts are stored, or one never will be.
    pub(crate) fn decide(
        &mut self,
        at: u64,
        ranks: usize,
    ) -> Option<(Reply<Vec<StoredObject>>, Answer)> {
        let step = self.steps.get_mut(&at)?;
        if let Some((&rank, reason)) = step.failures.first_key_value() {
            let Waiting { reply, .. } = step.waiting.take()?;
            return Some((reply, Answer::Failed { rank, reason: reason.clone() }));
        }
        if step.shards.len() < ranks {
            return None;
        }
        let Waiting { digest, reply, .. } = step.waiting.take()?;
        let objects = step.shards.values().flatten().cloned().collect();
        let is_new = !std::mem::replace(&mut step.granted, true);
        Some((reply, Answer::Granted { digest, objects, is_new }))
    }
}
