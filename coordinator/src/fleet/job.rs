//! One job: what is durable about it, and what is only known while the coordinator runs.

use std::collections::BTreeMap;

use ringmaster_proto::v1::{self, Generation};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::checkpoints::Checkpoints;
use super::membership::Membership;
use super::wants::Wants;
use crate::state::JobRecord;

/// A job and its observed ranks.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) record: JobRecord,
    pub(super) wants: Wants,
    /// Last heartbeat of every rank, by rank.
    pub(super) statuses: Vec<Option<v1::RankStatus>>,
    /// Newest metrics of rank 0.
    pub(super) metrics: Option<v1::StepMetrics>,
    /// Most steps any rank has applied.
    pub(super) high_step: u64,
    /// The ring that is being formed, or stands.
    pub(super) membership: Membership,
    pub(super) checkpoints: Checkpoints,
    /// Ranks lost since the last settling, and how.
    pub(super) lost: BTreeMap<u32, Loss>,
    /// Where a rank without a seat was last.
    pub(super) preferred: Vec<Option<String>>,
    /// After a restart of the coordinator: until when agents may still bring back their ranks.
    pub(super) attach_until: Option<Instant>,
    /// When ranks that were asked to end, or should end by themselves, are killed.
    pub(super) kill_at: Option<Instant>,
    pub(super) watchers: Vec<mpsc::Sender<v1::JobUpdate>>,
    /// History since the last flush, for the watchers.
    pub(super) news: Vec<v1::Event>,
    /// The record differs from what is durable.
    pub(super) dirty: bool,
    /// Watchers should hear.
    pub(super) changed: bool,
}

/// How a rank was lost.
#[derive(Debug)]
pub(super) struct Loss {
    /// In a sentence.
    pub(super) how: String,
    /// It had reached the current generation; otherwise it is part of the fault that is already
    /// being recovered from, and does not count against the restart budget.
    pub(super) counts: bool,
}

impl Job {
    pub(super) fn new(record: JobRecord, wants: Wants) -> Self {
        let ranks = record.world_size as usize;
        Self {
            statuses: vec![None; ranks],
            metrics: None,
            high_step: record.high_step,
            membership: Membership::default(),
            checkpoints: Checkpoints::default(),
            lost: BTreeMap::new(),
            preferred: vec![None; ranks],
            attach_until: None,
            kill_at: None,
            watchers: Vec::new(),
            news: Vec::new(),
            dirty: false,
            changed: false,
            record,
            wants,
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.record.cancel_reason.is_some()
    }

    /// Rank 0 has handed in the summary: no rank's end is a loss any more.
    pub(super) fn is_finished(&self) -> bool {
        !self.record.summary_json.is_empty()
    }

    /// The current generation; placed jobs have one.
    pub(super) fn generation(&self) -> Generation {
        self.record.generation.unwrap_or_default()
    }

    /// True when this rank's seat is on this node.
    pub(super) fn sits(&self, rank: u32, node: &str) -> bool {
        self.seat(rank) == Some(node)
    }

    /// Node of a rank; absent while it waits for one, and for ranks that do not exist.
    pub(super) fn seat(&self, rank: u32) -> Option<&str> {
        self.record.seats.get(rank as usize)?.as_deref()
    }

    /// True when this rank ended well.
    pub(super) fn is_done(&self, rank: u32) -> bool {
        self.record.done.get(rank as usize).copied().unwrap_or(false)
    }

    /// Every rank, in order.
    pub(super) fn ranks(&self) -> std::ops::Range<u32> {
        0..self.record.world_size
    }

    /// Takes a rank's seat away, remembering where it was.
    pub(super) fn vacate(&mut self, rank: u32) {
        let index = rank as usize;
        if let Some(node) = self.record.seats[index].take() {
            self.preferred[index] = Some(node);
        }
        self.record.done[index] = false;
        self.statuses[index] = None;
        self.dirty = true;
    }

    /// Takes in how many steps a rank has applied; a new one resets the restart budget.
    pub(super) fn progress(&mut self, step: u64) {
        if step <= self.high_step {
            return;
        }
        self.high_step = step;
        if self.record.without_progress > 0 {
            self.record.without_progress = 0;
            self.record.high_step = step;
            self.dirty = true;
        }
    }
}
