//! The coordinator's word on who may publish a checkpoint.

use std::sync::{Mutex, PoisonError};

use ringmaster_checkpoint::{self as checkpoint, GrantError};
use ringmaster_proto::RingRank;
use ringmaster_proto::v1::{
    CheckpointPublishedRequest, CommitCheckpointRequest, Generation, ReportShardRequest,
    StoredObject,
};
use ringmaster_words as words;

use super::waits::People;
use crate::control::coordinator::{self, RanksClient};
use crate::progress;

/// See the module.
pub(super) struct CoordinatorGrant {
    client: RanksClient,
    job_id: String,
    generation: Generation,
    rank: RingRank,
    people: People,
    /// What others are about to read, as the coordinator said when the last checkpoint was published.
    in_use: Mutex<Vec<String>>,
}

impl CoordinatorGrant {
    pub(super) fn new(
        client: RanksClient,
        job_id: &str,
        generation: Generation,
        rank: RingRank,
        people: People,
    ) -> Self {
        let job_id = job_id.to_owned();
        Self { client, job_id, generation, rank, people, in_use: Mutex::default() }
    }
}

impl checkpoint::Grant for CoordinatorGrant {
    fn report_shard(&self, step: u64, objects: Vec<StoredObject>) -> Result<(), GrantError> {
        let request = ReportShardRequest {
            job_id: self.job_id.clone(),
            generation: Some(self.generation),
            rank: self.rank.0,
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
            rank: self.rank.0,
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
        // The other ranks may still be writing, and the coordinator may be away.
        let why = "a checkpoint is uploaded here and waits for the coordinator and the other ranks";
        let _waiting = progress::wait_for_grant();
        let commit = || self.client.commit_checkpoint(request);
        self.people.told_while(why, commit).map(|reply| reply.objects).map_err(refused)
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

fn refused(error: coordinator::Error) -> GrantError {
    GrantError { reason: words::chain(&error) }
}
