//! Granting checkpoints: the fence against ranks of an attempt that is over.
//!
//! A checkpoint may be published once every rank has reported its upload and the grant is durable,
//! and only by the current generation. Reports are durable too, so that a restart of the coordinator
//! between two of them leaves nobody waiting.

use std::collections::BTreeMap;

use ringmaster_proto::v1::{self, StoredObject};

use super::Error;
use super::cluster::Cluster;
use super::handle::Reply;
use super::job::Job;
use super::ledger::Ledger;
use super::membership::check_rank;
use crate::state::{Change, CheckpointGrant, ShardRecord, objects_to_json};

/// The kind of event that tells what befalls a store.
const STORE: &str = "store";

/// Checkpoints of the current generation, by step.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    steps: BTreeMap<u64, Step>,
}

#[derive(Debug, Default)]
struct Step {
    /// Uploaded objects by ring rank.
    shards: BTreeMap<u32, Vec<StoredObject>>,
    /// Who asked for the grant and waits for the shards.
    waiting: Option<(u64, Reply<Vec<StoredObject>>)>,
    granted: bool,
    /// Ranks of the ring that could not store their parts, and why: without them the checkpoint is
    /// never complete. A rank that tries again and succeeds leaves.
    failures: BTreeMap<u32, String>,
}

impl Checkpoints {
    /// Forgets everything; returns those that waited for a grant.
    pub(super) fn clear(&mut self) -> Vec<Reply<Vec<StoredObject>>> {
        let steps = std::mem::take(&mut self.steps).into_values();
        steps.filter_map(|step| step.waiting).map(|(_, reply)| reply).collect()
    }

    /// Takes in what a rank uploaded.
    pub(super) fn add_shard(&mut self, step: u64, rank: u32, objects: Vec<StoredObject>) {
        let step = self.steps.entry(step).or_default();
        step.failures.remove(&rank);
        step.shards.insert(rank, objects);
    }
}

impl Cluster {
    pub(super) fn report_shard(&mut self, request: v1::ReportShardRequest) -> Result<(), Error> {
        let v1::ReportShardRequest { job_id, generation, rank, step, objects, failure } = request;
        let (generation, request_step) = (generation.unwrap_or_default(), step);
        let job = self.live(&job_id, generation)?;
        let ring = u32::try_from(job.record.ring.len()).expect("world sizes fit u32");
        check_rank(rank, ring, &job_id)?;
        if !failure.is_empty() {
            let step = job.checkpoints.steps.entry(step).or_default();
            step.failures.insert(rank, failure);
            let job = self.jobs.get_mut(&job_id).expect("it is live");
            self.ledger.grant_if_complete(job, request_step);
            return Ok(());
        }
        job.checkpoints.add_shard(step, rank, objects.clone());
        let shard = ShardRecord { job_id: job_id.clone(), generation, step, rank, objects };
        self.ledger.change(Change::Shard(Box::new(shard)));
        let job = self.jobs.get_mut(&job_id).expect("it is live");
        self.ledger.grant_if_complete(job, step);
        Ok(())
    }

    pub(super) fn commit(
        &mut self,
        request: &v1::CommitCheckpointRequest,
        reply: Reply<Vec<StoredObject>>,
    ) {
        let generation = request.generation.unwrap_or_default();
        if let Err(error) = self.live(&request.job_id, generation) {
            return self.ledger.reply(reply, Err(error));
        }
        let job = self.jobs.get_mut(&request.job_id).expect("it is live");
        let step = job.checkpoints.steps.entry(request.step).or_default();
        if let Some((_, replaced)) = step.waiting.replace((request.digest, reply)) {
            let job_id = request.job_id.clone();
            self.ledger.reply(replaced, Err(Error::Replaced { job_id, rank: 0 }));
        }
        self.ledger.grant_if_complete(job, request.step);
    }

    pub(super) fn published(
        &mut self,
        request: v1::CheckpointPublishedRequest,
    ) -> Result<Vec<String>, Error> {
        let job_id = request.job_id.clone();
        self.take_published(request)?;
        Ok(self.in_use(&job_id))
    }

    fn take_published(&mut self, request: v1::CheckpointPublishedRequest) -> Result<(), Error> {
        let v1::CheckpointPublishedRequest { job_id, generation, step, url } = request;
        let generation = generation.unwrap_or_default();
        let unknown = || Error::UnknownJob { job_id: job_id.clone() };
        let job = self.jobs.get_mut(&job_id).ok_or_else(unknown)?;
        if job.record.generation != Some(generation) {
            let current = job.generation();
            return Err(Error::Stale { job_id, given: generation, current });
        }
        if job.record.checkpoint_url == url {
            return Ok(());
        }
        job.checkpoints.steps.retain(|at, _| *at > step);
        let given_up = job.record.rollback.as_ref().filter(|to| generation <= to.up_to());
        if let Some(rollback) = given_up {
            let to = rollback.step;
            let message =
                format!("step {step} is saved, and given up: the job goes back to step {to}");
            self.ledger.event(job, "checkpoint", message);
        } else {
            job.record.rollback = None;
            job.record.checkpoint_step = step;
            job.record.checkpoint_url.clone_from(&url);
            job.at_checkpoint = job.record.formed && step < job.wants.total_steps;
            self.ledger.event(job, "checkpoint", format!("step {step} is published at {url}"));
        }
        self.ledger.change(Change::ForgetShards { job_id: job_id.clone(), up_to_step: step });
        self.ledger.change(Change::Published { job_id, generation, step, url });
        Ok(())
    }

    pub(super) fn note(&mut self, request: v1::NoteRequest) -> Result<(), Error> {
        let kind = match request.kind() {
            v1::NoteKind::SlowLink => "slow_link",
            v1::NoteKind::Evaluation => "evaluation",
            v1::NoteKind::Store => STORE,
            v1::NoteKind::Unspecified => {
                return Err(Error::Invalid {
                    field: "kind",
                    value: request.kind.to_string(),
                    constraint: "a kind of note that this coordinator knows".to_owned(),
                });
            }
        };
        let generation = request.generation.unwrap_or_default();
        self.live(&request.job_id, generation)?;
        let job = self.jobs.get_mut(&request.job_id).expect("it is live");
        if kind == STORE {
            // A store may be in the same trouble again; all ranks say the same of it.
            job.notes.retain(|(_, known, message)| *known != kind || *message == request.message);
        }
        if job.notes.insert((generation, kind, request.message.clone())) {
            self.ledger.event(job, kind, request.message);
        }
        Ok(())
    }

    pub(super) fn finish(&mut self, request: v1::FinishRequest) -> Result<(), Error> {
        let given = request.generation.unwrap_or_default();
        let grace = self.config.grace;
        let job = self.live(&request.job_id, given)?;
        if job.is_finished() {
            return Ok(());
        }
        if request.summary_json.is_empty() {
            return Err(Error::Invalid {
                field: "summary_json",
                value: "empty".to_owned(),
                constraint: "a finished run hands in its summary".to_owned(),
            });
        }
        let job = self.jobs.get_mut(&request.job_id).expect("it is live");
        job.record.summary_json = request.summary_json;
        job.kill_at = Some(self.ledger.now.at + grace);
        self.ledger.event(job, "finished", "rank 0 handed in the summary".to_owned());
        Ok(())
    }
}

impl Ledger {
    /// Grants a checkpoint whose shards are all there and whose grant somebody waits for.
    fn grant_if_complete(&mut self, job: &mut Job, at: u64) {
        let generation = job.generation();
        let Some(step) = job.checkpoints.steps.get_mut(&at) else { return };
        if let Some((&rank, reason)) = step.failures.first_key_value() {
            let reason = reason.clone();
            if let Some((_, reply)) = step.waiting.take() {
                let job_id = job.record.job_id.clone();
                self.reply(reply, Err(Error::ShardFailed { job_id, rank, step: at, reason }));
            }
            return;
        }
        if step.shards.len() < job.record.ring.len() {
            return;
        }
        let Some((digest, reply)) = step.waiting.take() else { return };
        let objects: Vec<StoredObject> = step.shards.values().flatten().cloned().collect();
        if !step.granted {
            step.granted = true;
            self.change(Change::Grant(Box::new(CheckpointGrant {
                job_id: job.record.job_id.clone(),
                generation,
                step: at,
                digest,
                at_ms: self.now.unix_ms,
                objects_json: objects_to_json(&objects),
            })));
        }
        self.reply(reply, Ok(objects));
    }
}
