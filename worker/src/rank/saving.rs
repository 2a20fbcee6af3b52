//! Checkpoints of a running job: a snapshot at a step boundary, written while training goes on.

use std::sync::{Arc, Mutex, PoisonError};

use ringmaster_manifest::spec::TrainJob;
use ringmaster_proto::v1::{
    CheckpointPublishedRequest, CommitCheckpointRequest, Generation, ReportShardRequest,
    StoredObject,
};

use tch::Tensor;

use super::Error;
use super::client::RanksClient;
use super::env::RankEnv;
use super::plan::NumericPlan;
use super::replica::Replica;
use crate::collective::{Collective, ReduceOp};
use crate::data::Dataset;
use ringmaster_checkpoint::{
    self as checkpoint, GrantError, Published, Saved, Snapshot, Writer, WriterOptions,
};

/// This rank's part in writing checkpoints of one generation.
pub(super) struct Saving {
    writer: Writer,
    rank: usize,
    world_size: usize,
    /// Rank 0 describes the run beside its tensors; empty elsewhere.
    state: Option<checkpoint::State>,
    last: Option<Published>,
}

impl Saving {
    /// Starts the writer of `generation`.
    pub(super) fn start(
        job: &TrainJob,
        env: &RankEnv,
        generation: Generation,
        collective: &dyn Collective,
        client: &RanksClient,
        plan: &NumericPlan,
        dataset: &Dataset,
        spared: Vec<String>,
    ) -> Self {
        let (rank, world_size) = (collective.rank(), collective.world_size());
        let grant = CoordinatorGrant {
            client: client.clone(),
            job_id: env.job_id.clone(),
            generation,
            rank: rank as u32,
            in_use: Mutex::default(),
        };
        let writer = Writer::new(WriterOptions {
            uri: job.checkpoint.uri.clone(),
            job_id: env.job_id.clone(),
            generation,
            rank,
            world_size,
            keep_last: job.checkpoint.keep_last,
            keep_every: job.checkpoint.keep_every,
            spared,
            grant: Arc::new(grant),
        });
        let state = (rank == 0).then(|| {
            let plan = serde_json::to_value(plan).expect("a plan is plain data");
            let versions = [("ringmaster", env!("RINGMASTER_VERSION"))];
            let versions = versions.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
            let fingerprint = dataset.fingerprint();
            checkpoint::State::describe(job, generation, world_size, plan, fingerprint, versions)
        });
        Self { writer, rank, world_size, state, last: None }
    }

    /// Copies the state and starts writing it, unless some rank is still writing the last one:
    /// a checkpoint needs every rank's part, so all of them write it or none does.
    pub(super) fn save(
        &mut self,
        replica: &Replica,
        job: &TrainJob,
        collective: &dyn Collective,
    ) -> Result<(), Error> {
        let busy = Tensor::from_slice(&[i64::from(self.writer.busy())]);
        collective.all_reduce(&busy, ReduceOp::Max)?.wait()?;
        if busy.int64_value(&[0]) > 0 {
            tracing::warn!(
                step = replica.applied,
                "the previous checkpoint is still being written, this one is skipped"
            );
            return Ok(());
        }
        self.start_write(replica, job);
        Ok(())
    }

    /// Writes the last checkpoint of a run, after the one in flight, and returns the URL of the
    /// newest published one.
    pub(super) fn save_last(mut self, replica: &Replica, job: &TrainJob) -> Option<String> {
        self.writer.wait();
        self.start_write(replica, job);
        self.finish()
    }

    fn start_write(&mut self, replica: &Replica, job: &TrainJob) {
        self.collect();
        let state = self.state.clone().map(|mut state| {
            state.step = replica.applied;
            state.samples = replica.applied * u64::from(job.batch.global);
            state.resumed_samples = replica.resumed_samples;
            state.data.substitutions = replica.substitutions.clone();
            state
        });
        let snapshot = Snapshot {
            step: replica.applied,
            model: (self.rank == 0).then(|| replica.model_copy()),
            optim: replica.optimizer_copy(self.rank, self.world_size),
            state,
            digest: replica.digest(),
        };
        let saved = self.writer.save(snapshot);
        debug_assert_eq!(saved, Saved::Started, "nothing is in flight here");
    }

    /// Waits for the checkpoint in flight and returns the URL of the newest published one.
    fn finish(mut self) -> Option<String> {
        self.collect();
        match self.writer.finish() {
            Ok(Some(published)) => Some(published.url),
            Ok(None) => self.last.map(|published| published.url),
            Err(error) => {
                tracing::warn!(error = %super::chain(&error), "the last checkpoint was not published");
                self.last.map(|published| published.url)
            }
        }
    }

    /// Notes how the writes that ended meanwhile went; a failed one does not stop training.
    fn collect(&mut self) {
        while let Some(result) = self.writer.poll() {
            match result {
                Ok(published) => {
                    if self.rank == 0 {
                        tracing::info!(step = published.step, url = %published.url, "checkpoint published");
                    }
                    self.last = Some(published);
                }
                Err(error) => {
                    tracing::warn!(error = %super::chain(&error), "a checkpoint was not published");
                }
            }
        }
    }
}

/// The coordinator's word on who may publish.
struct CoordinatorGrant {
    client: RanksClient,
    job_id: String,
    generation: Generation,
    rank: u32,
    /// What others are about to read, as the coordinator said when the last checkpoint was published.
    in_use: Mutex<Vec<String>>,
}

impl checkpoint::Grant for CoordinatorGrant {
    fn report_shard(&self, step: u64, objects: Vec<StoredObject>) -> Result<(), GrantError> {
        let request = ReportShardRequest {
            job_id: self.job_id.clone(),
            generation: Some(self.generation),
            rank: self.rank,
            step,
            objects,
            failure: String::new(),
        };
        self.client.report_shard(request).map(|_| ()).map_err(refused)
    }

    fn report_failure(&self, step: u64, reason: &str) -> Result<(), GrantError> {
        let request = ReportShardRequest {
            job_id: self.job_id.clone(),
            generation: Some(self.generation),
            rank: self.rank,
            step,
            objects: Vec::new(),
            failure: reason.to_owned(),
        };
        self.client.report_shard(request).map(|_| ()).map_err(refused)
    }

    fn commit(&self, step: u64, digest: u64) -> Result<Vec<StoredObject>, GrantError> {
        let request = CommitCheckpointRequest {
            job_id: self.job_id.clone(),
            generation: Some(self.generation),
            step,
            digest,
        };
        self.client.commit_checkpoint(request).map(|reply| reply.objects).map_err(refused)
    }

    fn published(&self, step: u64, url: &str) -> Result<(), GrantError> {
        let request = CheckpointPublishedRequest {
            job_id: self.job_id.clone(),
            generation: Some(self.generation),
            step,
            url: url.to_owned(),
        };
        let reply = self.client.checkpoint_published(request).map_err(refused)?;
        *self.in_use.lock().unwrap_or_else(PoisonError::into_inner) = reply.in_use;
        Ok(())
    }

    fn in_use(&self) -> Vec<String> {
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn refused(error: super::client::Error) -> GrantError {
    GrantError { reason: super::chain(&error) }
}
