//! From snapshot to published checkpoint: the phases of one rank, in order.
//!
//! A crash between any two of them leaves what the phases before it promise: before the manifest
//! nothing new is visible, after it the checkpoint is complete.

use bytes::Bytes;
use futures::future::join_all;
use ringmaster_proto::v1::StoredObject;
use ringmaster_words::chain;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::WriterOptions;
use super::upload;
use crate::dir::CheckpointDir;
use crate::layout::{self, StepName};
use crate::manifest::{Manifest, Pointer};
use crate::runtime::runtime;
use crate::state::Snapshot;
use crate::{Error, GrantError, tensors};

/// The coordinator's word on who may publish. Calls block, and may wait as long as it takes.
pub trait Grant: Send + Sync {
    /// Reports this rank's objects, all uploaded and durable.
    ///
    /// # Errors
    /// The generation is over.
    fn report_shard(&self, step: u64, objects: Vec<StoredObject>) -> Result<(), GrantError>;

    /// Reports that this rank's objects could not be stored, so that nobody waits for them.
    ///
    /// # Errors
    /// The generation is over.
    fn report_failure(&self, step: u64, reason: &str) -> Result<(), GrantError>;

    /// Waits until every rank has reported its objects, and returns them all: the permission to
    /// publish, which is durable at the coordinator. Rank 0 only.
    ///
    /// # Errors
    /// The generation is over.
    fn commit(&self, step: u64, digest: u64) -> Result<Vec<StoredObject>, GrantError>;

    /// Tells where the checkpoint lies now that readers can see it. Rank 0 only.
    ///
    /// # Errors
    /// The coordinator did not take note; the checkpoint is good all the same.
    fn published(&self, step: u64, url: &str) -> Result<(), GrantError>;

    /// Returns the URLs of job folders and checkpoints that other jobs are to start from, as known when
    /// the last checkpoint was published: what lies there stays.
    fn in_use(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What a rank has done its part for. On rank 0 the checkpoint is complete and visible; on the
/// others this rank's objects are stored and reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Steps applied.
    pub step: u64,
    /// Of the checkpoint, in the style of the folder's URL.
    pub url: String,
}

/// Where a rank is on the way to a published checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Before each object.
    Upload,
    /// Before the coordinator hears of the objects.
    Report,
    /// Before it is asked for the commit.
    Commit,
    /// Before MANIFEST.json: the commit is granted.
    Manifest,
    /// Before latest.json.
    Latest,
    /// Before the coordinator hears of the checkpoint.
    Announce,
    /// Before the manifest of an old checkpoint is deleted.
    Retire,
    /// Before the objects of a checkpoint without manifest are deleted.
    Clear,
}

impl Phase {
    /// Whether a writer whose generation is over stops here. Once granted it goes on: the
    /// coordinator counts on the checkpoint.
    fn before_the_grant(self) -> bool {
        matches!(self, Self::Upload | Self::Report | Self::Commit)
    }
}

/// Writes the checkpoints of one rank in one generation, one after the other.
pub(crate) struct Publisher {
    pub(crate) options: WriterOptions,
    pub(crate) runtime: Runtime,
    /// Cancelled when the generation is over.
    pub(crate) abandon: CancellationToken,
    /// Dies at the n-th phase it enters, in tests.
    #[cfg(test)]
    pub(crate) crash: crate::tests::testing::Crash,
}

impl Publisher {
    pub(crate) fn new(options: WriterOptions, abandon: CancellationToken) -> Result<Self, Error> {
        Ok(Self {
            options,
            runtime: runtime()?,
            abandon,
            #[cfg(test)]
            crash: crate::tests::testing::Crash::default(),
        })
    }

    /// Takes a snapshot through all phases. The grant's calls block outside of the runtime, which
    /// lets them bring their own.
    pub(crate) fn publish(&self, snapshot: Snapshot) -> Result<Published, Error> {
        let Snapshot { step, digest, .. } = snapshot;
        let name = StepName { generation: self.options.generation, step };
        let dir = CheckpointDir::open(&layout::job_url(&self.options.uri, &self.options.job_id))?;
        let published = Published { step, url: dir.step_url(name) };
        let refused = |what| move |source| Error::Grant { what, step, source };
        let grant = &self.options.grant;

        // Upload: durable when it returns, and the snapshot's memory is free again.
        let objects = match self.runtime.block_on(self.upload(&dir, name, snapshot)) {
            Ok(objects) => objects,
            Err(error) => {
                // The other ranks' parts are worthless now; the first error is the one that counts.
                let _ = grant.report_failure(step, &chain(&error));
                return Err(error);
            }
        };

        self.enter(Phase::Report, step)?;
        grant.report_shard(step, objects).map_err(refused("the objects"))?;
        if self.options.rank != 0 {
            return Ok(published);
        }

        self.enter(Phase::Commit, step)?;
        let objects = grant.commit(step, digest).map_err(refused("the commit"))?;
        let manifest = Manifest::new(&self.options.job_id, name, digest, objects);
        if let Some(missing) = manifest.missing() {
            return Err(Error::Incomplete { step, missing });
        }

        // From here on it is granted: the only writer that may finish this checkpoint.
        self.enter(Phase::Manifest, step)?;
        self.runtime.block_on(dir.create(name, layout::MANIFEST, manifest.encode()))?;

        self.enter(Phase::Latest, step)?;
        self.runtime.block_on(dir.advance_latest(&Pointer::to(name)))?;

        self.enter(Phase::Announce, step)?;
        grant.published(step, &published.url).map_err(refused("the announcement"))?;

        // The new checkpoint is safe: a failure to tidy up is no failure of it.
        if let Err(error) = self.runtime.block_on(self.retain(&dir, name)) {
            tracing::warn!(error = %chain(&error), "old checkpoints could not be deleted");
        }
        Ok(published)
    }

    /// Writes this rank's objects side by side and returns their checksums: while one is being made
    /// durable, the others travel.
    async fn upload(
        &self,
        dir: &CheckpointDir,
        name: StepName,
        snapshot: Snapshot,
    ) -> Result<Vec<StoredObject>, Error> {
        let Snapshot { step, layout: parts, bytes, state, .. } = snapshot;
        let (rank, world_size) = (self.options.rank, self.options.world_size);
        let mut objects = Vec::new();
        if rank == 0 {
            let lacks = |missing: &str| Error::Incomplete { step, missing: missing.to_owned() };
            let state = state.ok_or_else(|| lacks("the state"))?;
            if parts.model.is_empty() {
                return Err(lacks("the model"));
            }
            let model = tensors::pieces(&parts.model, &bytes, layout::MODEL)?;
            objects.push((layout::MODEL.to_owned(), model));
            objects.push((layout::STATE.to_owned(), vec![state.encode().into()]));
        }
        let object = layout::optim(rank, world_size);
        let optim = tensors::pieces(&parts.optim, &bytes, &object)?;
        objects.push((object, optim));
        // From here on the parts alone keep the snapshot's memory: each frees what it has sent.
        drop(bytes);
        let puts = objects.into_iter().map(|(object, pieces)| self.put(dir, name, object, pieces));
        // All come to their end, so that the one that fails leaves none half-way.
        join_all(puts).await.into_iter().collect()
    }

    async fn put(
        &self,
        dir: &CheckpointDir,
        checkpoint: StepName,
        object: String,
        pieces: Vec<Bytes>,
    ) -> Result<StoredObject, Error> {
        self.enter(Phase::Upload, checkpoint.step)?;
        upload::put(dir, checkpoint, &object, pieces, &self.abandon).await
    }

    /// Every phase begins here, so that tests can end a writer before any of them.
    pub(crate) fn enter(&self, phase: Phase, step: u64) -> Result<(), Error> {
        #[cfg(test)]
        self.crash.strike(phase)?;
        if phase.before_the_grant() && self.abandon.is_cancelled() {
            return Err(Error::Abandoned { step });
        }
        Ok(())
    }
}
