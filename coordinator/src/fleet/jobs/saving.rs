//! Granting checkpoints: the fence against ranks of an attempt that is over.
//!
//! A checkpoint may be published once every rank has reported its upload and the grant is durable,
//! and only by the current generation. Reports are durable too, so that a restart of the coordinator
//! between two of them leaves nobody waiting.

use ringmaster_proto::RingRank;
use ringmaster_proto::v1::{self, StoredObject};
use tokio::time::Instant;

use super::job::Job;
use super::joining::check_rank;
use crate::fleet::rings::{Answer, Overdue};
use crate::fleet::{Batch, Error, Reply};
use crate::state::{Change, CheckpointGrant, ShardRecord, objects_to_json};

impl Job {
    /// Takes in what a rank of the current generation uploaded, or why it could not.
    pub(crate) fn report_shard(
        &mut self,
        batch: &mut Batch,
        request: v1::ReportShardRequest,
    ) -> Result<(), Error> {
        let v1::ReportShardRequest { job_id, rank, step, objects, failure, .. } = request;
        let ring = u32::try_from(self.record.ring.len()).expect("world sizes fit u32");
        check_rank(rank, ring, &job_id)?;
        let generation = self.generation();
        let shard =
            ShardRecord { job_id, generation, step, rank: RingRank(rank), objects, failure };
        self.take_up_shard(shard.clone(), batch.now.at);
        // Why a part is missing must outlive this process, too: nobody says it again.
        batch.change(Change::Shard(Box::new(shard)));
        self.answer_commit(batch, step);
        Ok(())
    }

    /// Takes up what a rank has stored of a checkpoint, or why it could not.
    pub(crate) fn take_up_shard(&mut self, shard: ShardRecord, now: Instant) {
        let ShardRecord { step, rank, objects, failure, .. } = shard;
        if failure.is_empty() {
            self.checkpoints.add_shard(step, rank, objects, now);
        } else {
            self.checkpoints.add_failure(step, rank, failure);
        }
    }

    /// Refuses grants that cannot come: no part is missing that somebody still works on.
    pub(crate) fn refuse_overdue_commits(&mut self, batch: &mut Batch) {
        if !self.checkpoints.is_awaited() {
            return;
        }
        let (ring, now) = (self.record.ring.clone(), batch.now.at);
        let patience = batch.config.commit_patience;
        let saves = |rank: RingRank| {
            let seat = ring.get(rank.index()).copied();
            seat.is_some_and(|seat| self.movement.saves(seat, patience, now))
        };
        let overdue = self.checkpoints.take_overdue(ring.len(), patience, saves, now);
        for Overdue { step, missing, reply } in overdue {
            let job_id = self.record.job_id.clone();
            let reason = format!("nothing came of it for {} s", patience.as_secs());
            let missing = missing.first().copied().unwrap_or_default();
            let message = format!(
                "the checkpoint of step {step} is given up: rank {missing} has not stored its part, \
                 {reason}"
            );
            self.event(batch, "checkpoint_failed", message.clone());
            self.checkpoint_trouble = message;
            let refusal = Error::ShardFailed { job_id, rank: missing, step, reason };
            batch.reply(reply, Err(refusal));
        }
    }

    /// Grants the checkpoint of a step as soon as every rank's part is there.
    pub(crate) fn commit(
        &mut self,
        batch: &mut Batch,
        request: &v1::CommitCheckpointRequest,
        reply: Reply<Vec<StoredObject>>,
    ) {
        let now = batch.now.at;
        if let Some(replaced) = self.checkpoints.wait(request.step, request.digest, reply, now) {
            let job_id = self.record.job_id.clone();
            batch.reply(
                replaced,
                Err(Error::Replaced { job_id, caller: "the ring's first rank".to_owned() }),
            );
        }
        self.answer_commit(batch, request.step);
    }

    /// Answers whoever waits for the grant of a step, once all parts are stored or one never will be.
    fn answer_commit(&mut self, batch: &mut Batch, step: u64) {
        let decided = self.checkpoints.decide(step, self.record.ring.len());
        let Some((reply, answer)) = decided else { return };
        let job_id = self.record.job_id.clone();
        match answer {
            Answer::Failed { rank, reason } => {
                batch.reply(reply, Err(Error::ShardFailed { job_id, rank, step, reason }));
            }
            Answer::Granted { digest, objects, is_new } => {
                // Stored before it is answered, as all changes of a batch are: a coordinator that restarts in
                // between knows what it granted.
                if is_new {
                    batch.change(Change::Grant(Box::new(CheckpointGrant {
                        job_id,
                        generation: self.generation(),
                        step,
                        digest,
                        at_ms: batch.now.unix_ms,
                        objects_json: objects_to_json(&objects),
                    })));
                }
                batch.reply(reply, Ok(objects));
            }
        }
    }

    /// Takes in that a granted checkpoint is in place.
    pub(crate) fn published(
        &mut self,
        batch: &mut Batch,
        request: v1::CheckpointPublishedRequest,
    ) -> Result<(), Error> {
        let v1::CheckpointPublishedRequest { job_id, generation, step, url } = request;
        let generation = generation.unwrap_or_default();
        if self.record.generation != Some(generation) {
            let current = self.generation();
            return Err(Error::Stale { job_id, given: generation, current });
        }
        if self.record.checkpoint_url == url {
            return Ok(());
        }
        self.checkpoints.forget_up_to(step);
        let given_up = self.record.rollback.as_ref().filter(|to| generation <= to.up_to());
        if let Some(rollback) = given_up {
            let to = rollback.step;
            let message =
                format!("step {step} is saved, and given up: the job goes back to step {to}");
            self.event(batch, "checkpoint", message);
        } else {
            self.record.rollback = None;
            self.checkpoint_trouble.clear();
            self.record.checkpoint_step = step;
            self.record.checkpoint_url.clone_from(&url);
            self.at_checkpoint = self.record.formed && step < self.spec.total_steps;
            self.event(batch, "checkpoint", format!("step {step} is published at {url}"));
        }
        batch.change(Change::ForgetShards { job_id: job_id.clone(), up_to_step: step });
        batch.change(Change::Published { job_id, generation, step, url });
        Ok(())
    }
}
