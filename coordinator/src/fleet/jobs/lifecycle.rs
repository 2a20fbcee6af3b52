//! How a job loses ranks, recovers and ends.

use std::collections::BTreeMap;
use std::time::Duration;

use ringmaster_proto::Seat;
use ringmaster_proto::v1::{self, ExitClass, Generation};

use super::evidence::{Failure, Identity, LeftFor, Point};
use super::job::{Job, Loss};
use crate::fleet::nodes::Process;
use crate::fleet::rings::Recovery;
use crate::fleet::{Batch, Error};
use crate::state::State;

/// How long a job puts no rank on a node that could not run one.
pub(crate) const AVOIDED_FOR: Duration = Duration::from_secs(600);
/// What a rank that is gone without a word weighs among its node's faults.
const GONE_WEIGHT: f64 = 0.5;
/// What an agent was about to do when it started no process.
const REFUSED: &str = "start";

/// How a rank's process has ended, and what that may prove.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RankEnd<'a> {
    /// What its agent says of it.
    pub(crate) exited: &'a v1::RankExited,
    /// The generation that it was started for.
    pub(crate) started: Generation,
    /// Whether its loss may count against the restart budget.
    pub(crate) counts: bool,
    /// No other node could run it.
    pub(crate) alone: bool,
}

impl Job {
    /// Takes in that the process of a seat has ended.
    pub(crate) fn rank_ended(&mut self, batch: &mut Batch, end: &RankEnd<'_>) {
        let RankEnd { exited, .. } = end;
        if self.record.state.is_ended() {
            return;
        }
        let rank = Seat(exited.rank);
        let reaches_its_end = self.record.formed || self.is_stopping() || self.is_finished();
        match exited.code {
            Some(0) if reaches_its_end => {
                self.record.done[rank.index()] = true;
                self.movement.forget(rank);
                self.dirty = true;
            }
            // It was told to stop, in the ring that has broken meanwhile: the one that is being
            // formed has not begun, and waits for this seat.
            Some(0) => {
                let how = format!("it ended before {} was formed", self.generation());
                self.lose(batch, rank, Loss::new(&how, false));
            }
            // It failed. The job goes on, unless it is proven that another try would not help.
            _ => self.rank_failed(batch, end),
        }
    }

    fn rank_failed(&mut self, batch: &mut Batch, end: &RankEnd<'_>) {
        let RankEnd { exited, started, counts, alone } = *end;
        let (rank, how) = (Seat(exited.rank), describe(exited));
        let identity = Identity::of(exited);
        let mut failure = self.failure(rank, started, batch.now.at, identity, &how);
        let last = Point::of(exited.last_phase(), exited.last_step);
        failure.point = failure.point.max(last);
        let goes_on = !self.is_finished() && !self.is_stopping();
        let may_pass = failure.identity.class == ExitClass::Retry;
        // What was never started says nothing of its node.
        let was_started = !(may_pass && exited.operation == REFUSED);
        let proof = if !goes_on || !was_started {
            None
        } else if may_pass && !counts {
            self.evidence.echo(&failure);
            None
        } else {
            self.weigh(batch, &failure, alone)
        };
        self.lose(batch, rank, Loss { how: how.clone(), counts });
        if let Some(proof) = proof {
            let reason = format!("rank {rank}: {how}; {proof}, so running it again would not help");
            self.fail(batch, &reason);
        }
    }

    /// Takes in what a failure proves, and leaves its node out where that may help. Returns why the job cannot go
    /// on, if that is proven.
    fn weigh(&mut self, batch: &Batch, failure: &Failure, alone: bool) -> Option<String> {
        let proof = self.evidence.fail(failure, alone);
        // Where nobody else could run it, it is tried there once more, unless others show that they can.
        let is_left_out = !alone || self.evidence.has_witness(failure);
        if failure.identity.class != ExitClass::Retry && is_left_out {
            let (now, why) = (batch.now.at, failure.how.clone());
            self.evidence.avoid(&failure.node, now, AVOIDED_FOR, LeftFor::Failure, why);
        }
        proof
    }

    /// Takes in that a rank is gone although nothing says that it failed: its node may still be charged with
    /// it.
    pub(crate) fn lose_gone(
        &mut self,
        batch: &mut Batch,
        rank: Seat,
        process: &Process,
        cause: &'static str,
        how: &str,
    ) {
        let counts = self.counts(process.started, process.generation);
        if counts && !self.is_finished() && !self.is_stopping() {
            let identity = Identity::gone(cause);
            let failure = self.failure(rank, process.started, batch.now.at, identity, how);
            let failure = Failure { weight: GONE_WEIGHT, ..failure };
            // It may pass, and so it proves nothing against the job.
            self.evidence.fail(&failure, false);
        }
        self.lose(batch, rank, Loss::new(how, counts));
    }

    /// Notes that a rank's process is gone; settling decides.
    pub(crate) fn lose(&mut self, batch: &mut Batch, rank: Seat, loss: Loss) {
        let how = &loss.how;
        if self.record.state.is_ended() || rank.0 >= self.record.ranks {
            return;
        }
        if self.is_finished() {
            let message = format!("rank {rank}: {how}; the run was finished, nothing is redone");
            self.event(batch, "rank_ended", message);
            self.record.done[rank.index()] = true;
            // The others wait for it in the barrier that ends a run, and have nothing left to do.
            self.kill_at = Some(batch.now.at);
            return;
        }
        let node = self.seat(rank).unwrap_or("an unknown node").to_owned();
        self.event(batch, "rank_lost", format!("rank {rank} on {node}: {how}"));
        self.breaks.explained();
        self.lost.insert(rank, loss);
    }

    /// Opens the next generation if ranks were lost, or gives the job up. Afterwards the lost ranks have
    /// no seats, the survivors keep theirs, and nothing of the old ring stands.
    pub(crate) fn recover(&mut self, batch: &mut Batch) {
        let lost = std::mem::take(&mut self.lost);
        let Some(what) = in_words(&lost) else { return };

        for seat in lost.keys() {
            self.vacate(*seat);
        }

        // A job that is to stop does not recover: no checkpoint will come of its broken ring.
        if self.is_stopping() {
            self.vacate_done();
            self.kill_at = Some(batch.now.at);
            return;
        }

        // Losses of the current generation use up the restart budget, which a new step fills again.
        let counts = lost.values().any(|loss| loss.counts);
        self.record.high_step = self.high_step;
        if counts && self.is_out_of_restarts() {
            return self.fail_for_want_of_progress(batch, &what);
        }
        self.begin_recovery(batch, u32::from(counts));
        self.regenerate(batch, &what);
        if counts {
            self.counted = self.record.generation;
        }
    }

    /// All ranks ended well before the run did: somebody else than this coordinator asked them to stop,
    /// and they left a checkpoint.
    pub(crate) fn stopped_by_others(&mut self, batch: &mut Batch) {
        for seat in self.members() {
            self.vacate(seat);
        }
        let why = "its ranks were told to stop by a signal or an agent that leaves, and saved their \
                   state";
        self.event(batch, "stopped", why.to_owned());
        self.start_over(batch, why);
    }

    /// Opens the next generation although no rank was lost, unless that has not helped before.
    pub(crate) fn start_over(&mut self, batch: &mut Batch, why: &str) {
        if self.is_out_of_restarts() {
            return self.fail_for_want_of_progress(batch, why);
        }
        self.record.high_step = self.high_step;
        self.begin_recovery(batch, 1);
        self.regenerate(batch, why);
        self.counted = self.record.generation;
    }

    /// Ranks that had ended well give up their seats: the run is not finished without all of them, so they
    /// have to take part again.
    pub(crate) fn vacate_done(&mut self) {
        let done: Vec<Seat> = self.seats().filter(|seat| self.is_done(*seat)).collect();
        for seat in done {
            self.vacate(seat);
        }
    }

    fn is_out_of_restarts(&self) -> bool {
        self.record.without_progress >= self.spec.max_without_progress
    }

    fn fail_for_want_of_progress(&mut self, batch: &mut Batch, why: &str) {
        let allowed = self.spec.max_without_progress;
        let reason = format!(
            "{why}; {allowed} recoveries in a row without a new step are allowed \
             (restart.max_without_progress)"
        );
        self.fail(batch, &reason);
    }

    fn begin_recovery(&mut self, batch: &Batch, counts: u32) {
        self.recovery.get_or_insert(Recovery::begin(batch.now.at));
        self.record.without_progress += counts;
        self.record.recoveries += 1;
    }

    /// Notes how far a recovery has come, and tells people what it took once a new step is done.
    pub(crate) fn follow_recovery(&mut self, batch: &mut Batch) {
        let Some(mut recovery) = self.recovery else { return };
        let generation = self.generation();
        let all_ready = self.members().iter().all(|seat| self.movement.trains(*seat, generation));
        let stepped = self.movement.has_stepped(generation);
        let over = recovery.follow(all_ready, stepped, batch.now.at);
        self.recovery = over.is_none().then_some(recovery);
        if let Some(message) = over {
            self.event(batch, "recovered", message);
        }
    }

    /// Opens the next generation because the ring broke.
    pub(crate) fn regenerate(&mut self, batch: &mut Batch, why: &str) {
        self.form_anew(batch, State::Recovering, "recovering", why);
    }

    /// Opens the next generation and lets nobody wait for the old one.
    pub(crate) fn form_anew(&mut self, batch: &mut Batch, state: State, kind: &str, why: &str) {
        if !self.is_finished() {
            self.vacate_done();
        }
        // Its ranks leave because they are told to, though it may look otherwise to some of them.
        self.breaks.explained();
        let old = self.generation();
        // From here on calls of the old generation are refused, its commits of checkpoints among them.
        let generation = self.open_generation(batch, why);
        // Ranks that wait for an answer in the old generation learn at once that it is over.
        self.refuse_stale(batch, old);
        // A checkpoint of which parts were stored can no longer be granted.
        self.forget_shards(batch);
        self.record.state = state;
        self.record.reason = format!("{why}; forming generation {generation}");
        self.event(batch, kind, format!("{why}; forming generation {generation}"));
    }

    /// Lets nobody wait for an older generation, and forgets what its ranks have stored.
    pub(crate) fn refuse_stale(&mut self, batch: &mut Batch, old: Generation) {
        let current = self.generation();
        let job_id = &self.record.job_id;
        let stale = || Error::Stale { job_id: job_id.clone(), given: old, current };
        for reply in self.membership.clear() {
            batch.reply(reply, Err(stale()));
        }
        for reply in self.checkpoints.clear() {
            batch.reply(reply, Err(stale()));
        }
    }

    /// Answers whoever waits in a job that is being stopped or has ended.
    pub(crate) fn refuse_waiting(&mut self, batch: &mut Batch) {
        let ended = self.record.state.is_ended();
        let state = if ended { self.record.state.word() } else { "stopping" };
        for reply in self.membership.take_waiting() {
            batch.reply(reply, Err(self.not_live(state)));
        }
        if ended {
            for reply in self.checkpoints.clear() {
                batch.reply(reply, Err(self.not_live(state)));
            }
        }
    }

    /// Ends a job that cannot go on; its ranks are killed by the next settling.
    pub(crate) fn fail(&mut self, batch: &mut Batch, reason: &str) {
        self.end(batch, State::Failed, reason);
    }

    /// Ends a job.
    pub(crate) fn end(&mut self, batch: &mut Batch, state: State, reason: &str) {
        if state == State::Cancelled {
            self.tell_unsaved(batch);
        }
        self.record.state = state;
        self.record.reason = reason.to_owned();
        self.record.ended_at_ms = batch.now.unix_ms;
        self.record.high_step = self.high_step;
        self.lost.clear();
        self.attach_until = None;
        (self.kill_at, self.stopping, self.fault) = (None, None, None);
        self.refuse_waiting(batch);
        self.record.halt = None;
        self.event(batch, state.word(), reason.to_owned());
        self.forget_shards(batch);
        let job_id = self.record.job_id.clone();
        batch.effect(move |logs| logs.announce(&job_id, true));
    }
}

/// Says what was lost; nothing if nothing was.
fn in_words(lost: &BTreeMap<Seat, Loss>) -> Option<String> {
    let (rank, loss) = lost.first_key_value()?;
    Some(match lost.len() {
        1 => format!("rank {rank} was lost ({})", loss.how),
        several => format!("{several} ranks were lost (rank {rank}: {})", loss.how),
    })
}

fn describe(exited: &v1::RankExited) -> String {
    // The agent's reason says how it ended, too.
    if !exited.reason.is_empty() {
        return exited.reason.clone();
    }
    match (exited.code, exited.signal) {
        (_, Some(signal)) => format!("ended by signal {signal}"),
        (Some(code), None) => format!("ended with code {code}"),
        (None, None) => "ended".to_owned(),
    }
}
