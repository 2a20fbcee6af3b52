//! One job: what is durable about it, and what is only known while the coordinator runs.

use std::collections::{BTreeMap, BTreeSet};

use ringmaster_proto::v1::{self, Generation};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::checkpoints::Checkpoints;
use super::deadlines::Progress;
use super::membership::Membership;
use super::ring;
use super::standstill::Recovery;
use super::wants::Wants;
use crate::state::JobRecord;

/// A job and its observed ranks.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) record: JobRecord,
    pub(super) wants: Wants,
    /// Last heartbeat of every rank, by seat.
    pub(super) statuses: Vec<Option<v1::RankStatus>>,
    /// Newest metrics of the ring's first rank.
    pub(super) metrics: Option<v1::StepMetrics>,
    /// Most steps any rank has applied.
    pub(super) high_step: u64,
    /// The ring that is being formed, or stands.
    pub(super) membership: Membership,
    pub(super) checkpoints: Checkpoints,
    /// Seats whose ranks were lost since the last settling, and how.
    pub(super) lost: BTreeMap<u32, Loss>,
    /// Where the rank of a vacant seat was last.
    pub(super) preferred: Vec<Option<String>>,
    /// After a restart of the coordinator: until when agents may still bring back their ranks.
    pub(super) attach_until: Option<Instant>,
    /// How its ranks were seen to move.
    pub(super) movement: Progress,
    /// The recovery that is going on, for people.
    pub(super) recovery: Option<Recovery>,
    /// A checkpoint was published since the last settling: seats may change hands cheaply.
    pub(super) at_checkpoint: bool,
    /// URLs of its checkpoints that somebody reads, once for each reader.
    pub(super) held: Vec<String>,
    /// When ranks that were asked to end, or should end by themselves, are killed.
    pub(super) kill_at: Option<Instant>,
    /// What its rings had to say, by kind; in memory only, so that a repetition is known.
    pub(super) notes: BTreeSet<(Generation, &'static str, String)>,
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
    /// The node at whose door it lies; absent when nothing says that its node is to blame.
    pub(super) blames: Option<String>,
}

impl Job {
    pub(super) fn new(record: JobRecord, wants: Wants) -> Self {
        let ranks = record.ranks as usize;
        Self {
            statuses: vec![None; ranks],
            metrics: None,
            high_step: record.high_step,
            membership: Membership::default(),
            checkpoints: Checkpoints::default(),
            lost: BTreeMap::new(),
            preferred: vec![None; ranks],
            attach_until: None,
            movement: Progress::default(),
            recovery: None,
            at_checkpoint: false,
            held: Vec::new(),
            kill_at: None,
            notes: BTreeSet::new(),
            watchers: Vec::new(),
            news: Vec::new(),
            dirty: false,
            changed: false,
            record,
            wants,
        }
    }

    /// Its ranks are to checkpoint and stop: for good, or to go on later.
    pub(super) fn is_stopping(&self) -> bool {
        self.record.cancel_reason.is_some() || self.record.halt.is_some()
    }

    /// Why its ranks are to stop, if they are.
    pub(super) fn stop_reason(&self) -> Option<&str> {
        let halt = self.record.halt.as_ref().map(|halt| halt.reason.as_str());
        self.record.cancel_reason.as_deref().or(halt)
    }

    /// The ring has handed in the summary: no rank's end is a loss any more.
    pub(super) fn is_finished(&self) -> bool {
        !self.record.summary_json.is_empty()
    }

    /// The current generation; placed jobs have one.
    pub(super) fn generation(&self) -> Generation {
        self.record.generation.unwrap_or_default()
    }

    /// True when this seat is on this node.
    pub(super) fn sits(&self, seat: u32, node: &str) -> bool {
        self.seat(seat) == Some(node)
    }

    /// Node of a seat; absent while it is vacant, and for seats that do not exist.
    pub(super) fn seat(&self, seat: u32) -> Option<&str> {
        self.record.seats.get(seat as usize)?.as_deref()
    }

    /// True when the rank of this seat ended well.
    pub(super) fn is_done(&self, seat: u32) -> bool {
        self.record.done.get(seat as usize).copied().unwrap_or(false)
    }

    /// Every seat, taken or not, in order.
    pub(super) fn seats(&self) -> std::ops::Range<u32> {
        0..self.record.ranks
    }

    /// How many seats are taken.
    pub(super) fn taken(&self) -> usize {
        self.record.seats.iter().flatten().count()
    }

    /// True when no seat is vacant.
    pub(super) fn is_whole(&self) -> bool {
        self.record.seats.iter().all(Option::is_some)
    }

    /// The seats that take part in the current generation: those of its ring, or while that is
    /// being formed those that are taken.
    pub(super) fn members(&self) -> Vec<u32> {
        if self.record.formed { self.record.ring.clone() } else { ring::order(&self.record.seats) }
    }

    /// Place of a seat in the ring that stands.
    pub(super) fn ring_rank(&self, seat: u32) -> Option<usize> {
        self.record.ring.iter().position(|member| *member == seat)
    }

    /// Which seats are taken, for people.
    pub(super) fn strength(&self) -> String {
        let (taken, ranks) = (self.taken(), self.record.ranks);
        if taken == ranks as usize {
            return format!("all {ranks} ranks train");
        }
        format!("{taken} of {ranks} ranks train")
    }

    /// Takes a seat away from its rank, remembering where it was.
    pub(super) fn vacate(&mut self, seat: u32) {
        let index = seat as usize;
        if let Some(node) = self.record.seats[index].take() {
            self.preferred[index] = Some(node);
        }
        self.record.done[index] = false;
        self.statuses[index] = None;
        self.movement.forget(seat);
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
