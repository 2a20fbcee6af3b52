//! Deleting a checkpoint so that at no moment something names what is gone.

use super::{Checkpoint, JobFolder, Status};
use crate::Error;
use crate::layout;

impl JobFolder {
    /// Deletes a checkpoint of this job: latest.json first moves to the newest complete one that stays
    /// (or goes, if none does), then the manifest, then the objects. Died half-way, it leaves a
    /// checkpoint without manifest, which the next call or the next training run clears.
    ///
    /// # Errors
    /// A store that fails.
    pub async fn remove(&self, checkpoint: &Checkpoint) -> Result<(), Error> {
        let name = checkpoint.step_name;
        let mut heir = None;
        for other in self.survey.standing().into_iter().filter(|other| *other != name) {
            if self.checkpoint(other).await?.status == Status::Complete {
                heir = Some(other);
                break;
            }
        }
        self.dir.move_latest(|named| named == name, heir).await?;
        self.dir.delete(name, layout::MANIFEST).await?;
        self.dir.delete_all(name).await
    }

    /// Whether no complete checkpoint would be left without this one.
    ///
    /// # Errors
    /// A store that fails.
    pub async fn is_last(&self, checkpoint: &Checkpoint) -> Result<bool, Error> {
        if checkpoint.status != Status::Complete {
            return Ok(false);
        }
        let others = self.checkpoints().await?;
        let stays = |other: &Checkpoint| {
            other.step_name != checkpoint.step_name && other.status == Status::Complete
        };
        Ok(!others.iter().any(stays))
    }
}
