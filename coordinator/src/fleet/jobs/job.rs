//! One job: what is durable about it, and what is only known while the coordinator runs.

use std::collections::{BTreeMap, BTreeSet};

use ringmaster_proto::v1::{self, Generation, Phase};
use ringmaster_proto::{RingRank, Seat};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::evidence::{Evidence, Failure, Identity, Point};
use super::spec::JobSpec;
use super::stopping::Stopping;
use crate::fleet::rings::{Breaks, Checkpoints, Fault, Membership, Progress, Recovery, order};
use crate::fleet::{Batch, Error};
use crate::state::{Change, JobRecord};

/// A job and its observed ranks.
#[derive(Debug, Default)]
pub(crate) struct Job {
    pub(crate) record: JobRecord,
    pub(crate) spec: JobSpec,
    /// Last heartbeat of every rank, by seat.
    pub(crate) statuses: Vec<Option<v1::RankStatus>>,
    /// Newest metrics of the ring's first rank.
    pub(crate) metrics: Option<v1::StepMetrics>,
    /// Most steps any rank has applied.
    pub(crate) high_step: u64,
    /// The ring that is being formed, or stands.
    pub(crate) membership: Membership,
    pub(crate) checkpoints: Checkpoints,
    /// Seats whose ranks were lost since the last settling, and how.
    pub(crate) lost: BTreeMap<Seat, Loss>,
    /// What its failures prove.
    pub(crate) evidence: Evidence,
    /// How far each seat's process has come.
    pub(crate) points: Vec<Point>,
    /// What its ranks say of how their ring ended.
    pub(crate) breaks: Breaks,
    /// What broke its ring, as long as nobody has acted on it.
    pub(crate) fault: Option<Fault>,
    /// Which of its nodes are being asked to reach one another.
    pub(crate) dial: Dial,
    /// Where the rank of a vacant seat was last.
    pub(crate) preferred: Vec<Option<String>>,
    /// After a restart of the coordinator: until when agents may still bring back their ranks.
    pub(crate) attach_until: Option<Instant>,
    /// How its ranks were seen to move.
    pub(crate) movement: Progress,
    /// The generation that the newest recovery opened which counts against the restart budget.
    pub(crate) counted: Option<Generation>,
    /// The recovery that is going on, for people.
    pub(crate) recovery: Option<Recovery>,
    /// A checkpoint was published since the last settling: seats may change hands cheaply.
    pub(crate) at_checkpoint: bool,
    /// URLs of its checkpoints that somebody reads, once for each reader.
    pub(crate) held: Vec<String>,
    /// When ranks that were asked to end, or should end by themselves, are killed whatever they do.
    pub(crate) kill_at: Option<Instant>,
    /// Since when it stops, and whether in time.
    pub(crate) stopping: Option<Stopping>,
    /// Why the checkpoints since the newest published one were not stored; empty while they are.
    pub(crate) checkpoint_trouble: String,
    /// What its rings had to say, by kind; in memory only, so that a repetition is known.
    pub(crate) notes: BTreeSet<(Generation, &'static str, String)>,
    pub(crate) watchers: Vec<mpsc::Sender<v1::JobUpdate>>,
    /// History since the last flush, for the watchers.
    pub(crate) news: Vec<v1::Event>,
    /// The record differs from what is durable.
    pub(crate) dirty: bool,
    /// Watchers should hear.
    pub(crate) changed: bool,
}

/// How a rank was lost.
#[derive(Debug)]
pub(crate) struct Loss {
    /// In a sentence.
    pub(crate) how: String,
    /// It had reached the current generation; otherwise it is part of the fault that is already
    /// being recovered from, and does not count against the restart budget.
    pub(crate) counts: bool,
}

impl Loss {
    pub(crate) fn new(how: &str, counts: bool) -> Self {
        Self { how: how.to_owned(), counts }
    }
}

/// Nodes of a job that are asked whether they reach one another before ranks are started, or when all
/// ranks of a ring wait for one another.
#[derive(Debug, Default)]
pub(crate) struct Dial {
    /// For which generation.
    pub(crate) generation: Generation,
    /// Which.
    pub(crate) nodes: BTreeSet<String>,
    /// When they were asked; none before.
    pub(crate) asked_at: Option<Instant>,
    /// Who has not answered, and whom it was to reach.
    pub(crate) awaited: BTreeMap<String, Vec<String>>,
    /// Who does not reach whom, and how that is known.
    pub(crate) unreached: Vec<(String, v1::Unreached)>,
    /// Nothing is awaited for this generation any more.
    pub(crate) is_over: bool,
}

impl Job {
    pub(crate) fn new(record: JobRecord, spec: JobSpec) -> Self {
        let ranks = record.ranks as usize;
        Self {
            statuses: vec![None; ranks],
            preferred: vec![None; ranks],
            points: vec![Point::default(); ranks],
            high_step: record.high_step,
            record,
            spec,
            ..Self::default()
        }
    }

    /// Its ranks are to checkpoint and stop: for good, or to go on later.
    pub(crate) fn is_stopping(&self) -> bool {
        self.record.cancel_reason.is_some() || self.record.halt.is_some()
    }

    /// Why its ranks are to stop, if they are.
    pub(crate) fn stop_reason(&self) -> Option<&str> {
        let halt = self.record.halt.as_ref().map(|halt| halt.reason.as_str());
        self.record.cancel_reason.as_deref().or(halt)
    }

    /// The ring has handed in the summary: no rank's end is a loss any more.
    pub(crate) fn is_finished(&self) -> bool {
        !self.record.summary_json.is_empty()
    }

    /// The current generation; placed jobs have one.
    pub(crate) fn generation(&self) -> Generation {
        self.record.generation.unwrap_or_default()
    }

    /// True when this seat is on this node.
    pub(crate) fn sits(&self, seat: Seat, node: &str) -> bool {
        self.seat(seat) == Some(node)
    }

    /// Node of a seat; absent while it is vacant, and for seats that do not exist.
    pub(crate) fn seat(&self, seat: Seat) -> Option<&str> {
        self.record.seats.get(seat.index())?.as_deref()
    }

    /// Whether ranks of it may come back from this node after the coordinator's restart.
    pub(crate) fn awaits(&self, node: &str) -> bool {
        let sits = |seat: Seat| self.sits(seat, node) && !self.is_done(seat);
        self.attach_until.is_some() && self.seats().any(sits)
    }

    /// Whether its ranks are to go on: they have places, are back after a restart of the coordinator, are not
    /// being stopped, and have not reached the end of the run.
    pub(crate) fn goes_on(&self) -> bool {
        let is_there = self.record.state.is_placed() && self.attach_until.is_none();
        is_there && !self.is_stopping() && !self.is_finished()
    }

    /// True when the rank of this seat ended well.
    pub(crate) fn is_done(&self, seat: Seat) -> bool {
        self.record.done.get(seat.index()).copied().unwrap_or(false)
    }

    /// Every seat, taken or not, in order.
    pub(crate) fn seats(&self) -> impl Iterator<Item = Seat> + use<> {
        (0..self.record.ranks).map(Seat)
    }

    /// How many seats are taken.
    pub(crate) fn taken(&self) -> usize {
        self.record.seats.iter().flatten().count()
    }

    /// True when no seat is vacant.
    pub(crate) fn is_whole(&self) -> bool {
        self.record.seats.iter().all(Option::is_some)
    }

    /// The seats that take part in the current generation: those of its ring, or while that is
    /// being formed those that are taken.
    pub(crate) fn members(&self) -> Vec<Seat> {
        if self.record.formed { self.record.ring.clone() } else { order(&self.record.seats) }
    }

    /// Place of a seat in the ring that stands.
    pub(crate) fn ring_rank(&self, seat: Seat) -> Option<RingRank> {
        let mut ring = (0..).map(RingRank).zip(&self.record.ring);
        ring.find_map(|(rank, member)| (*member == seat).then_some(rank))
    }

    /// Whether its ring stands, and the rank of this seat is in it.
    pub(crate) fn ring_stands_with(&self, seat: Seat) -> bool {
        self.record.formed && self.ring_rank(seat).is_some()
    }

    /// Which seats are taken, for people.
    pub(crate) fn strength(&self) -> String {
        let (taken, ranks) = (self.taken(), self.record.ranks);
        if taken == ranks as usize {
            return format!("all {ranks} ranks train");
        }
        format!("{taken} of {ranks} ranks train")
    }

    /// " of 4" behind a number of ranks, where seats are vacant; empty where all are taken.
    pub(crate) fn of_all(&self) -> String {
        if self.is_whole() { String::new() } else { format!(" of {}", self.record.ranks) }
    }

    /// Takes a seat away from its rank, remembering where it was.
    pub(crate) fn vacate(&mut self, seat: Seat) {
        let index = seat.index();
        if let Some(node) = self.record.seats[index].take() {
            self.preferred[index] = Some(node);
        }
        self.record.done[index] = false;
        self.statuses[index] = None;
        self.points[index] = Point::default();
        self.movement.forget(seat);
        self.dirty = true;
    }

    /// Takes in how many steps a rank has applied; a new one resets the restart budget.
    pub(crate) fn progress(&mut self, step: u64) {
        if step <= self.high_step {
            return;
        }
        self.high_step = step;
        self.evidence.progressed();
        self.breaks.progressed();
        if self.record.without_progress > 0 {
            self.record.without_progress = 0;
            self.record.high_step = step;
            self.dirty = true;
        }
    }

    /// Takes in how many steps survivors of a ring that has broken had applied. Steps of which nothing was known
    /// fill the restart budget, and the break that they were followed by has been counted already.
    pub(crate) fn learn(&mut self, step: u64) {
        let used = self.record.without_progress.min(1);
        self.progress(step);
        self.record.without_progress = self.record.without_progress.max(used);
    }

    /// Takes in what the rank of a seat says of itself, whose process was started for a generation.
    pub(crate) fn observe(
        &mut self,
        mut status: v1::RankStatus,
        started: Generation,
        now: Instant,
    ) {
        let seat = Seat(status.rank);
        self.follow(seat, &status, started);
        if let Some(metrics) = status.metrics.take() {
            self.metrics = Some(metrics);
            self.changed = true;
        }
        self.movement.observe(seat, &status, now);
        let slot = &mut self.statuses[seat.index()];
        self.changed |= slot.as_ref().is_none_or(|old| {
            (old.step, old.phase, old.pid) != (status.step, status.phase, status.pid)
        });
        *slot = Some(status);
    }

    /// Takes in how far a rank has come. Only in a ring that stands has it a state that counts: a rank that
    /// was cut off may be far ahead in what others have given up.
    fn follow(&mut self, seat: Seat, status: &v1::RankStatus, started: Generation) {
        let is_current = status.generation == self.record.generation && self.record.formed;
        let phase = status.phase();
        let holds_state =
            !matches!(phase, Phase::Unspecified | Phase::Start | Phase::Join | Phase::Load);
        if holds_state && !is_current {
            return;
        }
        if holds_state {
            self.progress(status.step);
        }
        let point = Point::of(phase, status.step);
        let furthest = &mut self.points[seat.index()];
        *furthest = (*furthest).max(point);
        if let Some(node) = self.record.seats[seat.index()].as_deref() {
            self.evidence.reach(node, started, point);
        }
    }

    /// Whether the loss of a process counts against the restart budget: it had reached the current
    /// generation, or was started after the newest loss that counts. Any other is part of a fault that is
    /// being recovered from already.
    pub(crate) fn counts(&self, started: Generation, reached: Generation) -> bool {
        reached == self.generation() || self.counted.is_some_and(|counted| started >= counted)
    }

    /// A rank of this seat that failed, or is gone, where it sits.
    pub(crate) fn failure(
        &self,
        seat: Seat,
        started: Generation,
        now: Instant,
        identity: Identity,
        how: &str,
    ) -> Failure {
        let node = self.seat(seat).unwrap_or_default().to_owned();
        let point = self.points.get(seat.index()).copied().unwrap_or_default();
        Failure { identity, node, started, at: now, point, weight: 1.0, how: how.to_owned() }
    }

    /// Adds a line to its history.
    pub(crate) fn event(&mut self, batch: &mut Batch, kind: &str, message: String) {
        self.news.push(batch.event(&self.record.job_id, kind, message));
        self.dirty = true;
    }

    /// Opens its next generation.
    pub(crate) fn open_generation(&mut self, batch: &mut Batch, reason: &str) -> Generation {
        let generation = batch.open_generation(&self.record.job_id, reason);
        self.record.generation = Some(generation);
        self.record.formed = false;
        self.dirty = true;
        generation
    }

    /// No generation's reported parts of checkpoints are of use any more.
    pub(crate) fn forget_shards(&self, batch: &mut Batch) {
        let job_id = self.record.job_id.clone();
        batch.change(Change::ForgetAllShards { job_id });
    }

    /// Says that it does not take a request any more.
    pub(crate) fn not_live(&self, state: &'static str) -> Error {
        let job_id = self.record.job_id.clone();
        Error::NotLive { job_id, state, reason: self.record.reason.clone() }
    }
}
