//! Rolling a job back: the checkpoints above one of them are given up, all at once.
//!
//! One small object in the job's folder says so: everything above a checkpoint, up to a generation,
//! is abandoned. Nothing of it is chosen or listed as complete any more, and retention deletes it once
//! the job has saved anew. One object for all of them, because a single put is atomic: there is no
//! half roll-back, whenever the one who does it dies. And because it names a generation it also
//! covers what a rank of that generation publishes late. Its name says everything, so whoever lists
//! the folder knows it without reading.

use object_store::ObjectStoreExt as _;
use ringmaster_proto::v1::Generation;
use serde_json::json;

use super::Error;
use super::dir::CheckpointDir;
use super::layout::{Rollback, StepName};
use super::manifest::VERSION;
use super::read::{self, Chosen, Verdict};
use super::runtime::runtime;

/// Gives up the checkpoints above the one at `url`, as far as generations up to `up_to` wrote them,
/// and lets latest.json name that one. Repeating it changes nothing.
///
/// # Errors
/// A `url` that is no checkpoint's, or a store that fails; what was given up then is all or nothing.
pub async fn roll_back(url: &str, up_to: Generation) -> Result<(), Error> {
    let (dir, to) = checkpoint(url)?;
    let rollback = Rollback { up_to, to };
    dir.create_rollback(rollback).await?;
    dir.move_latest(|named| rollback.abandons(named), Some(to)).await
}

/// Rolls back to the checkpoint at `url` as [`roll_back`] does, and returns what to go on from: what was
/// written after the roll-back, if it was done before and somebody has saved since, else that very one
/// and no other.
///
/// Blocks; not for use inside an async runtime.
///
/// # Errors
/// As [`roll_back`]; a checkpoint that does not exist or does not verify, and then nothing is given up
/// that was not before.
pub fn choose_rolled_back(url: &str, up_to: Generation) -> Result<Chosen, Error> {
    runtime()?.block_on(async {
        let (dir, to) = checkpoint(url)?;
        let names = dir.survey().await?.names;
        for name in names.into_iter().filter(|name| name.generation > up_to) {
            match good(&dir, name).await? {
                Ok(chosen) => {
                    roll_back(url, up_to).await?;
                    return Ok(chosen);
                }
                Err((object, reason)) => tracing::warn!(object, reason, "passed over"),
            }
        }
        let chosen = good(&dir, to).await?;
        let chosen = chosen.map_err(|(object, reason)| Error::Damaged { object, reason })?;
        roll_back(url, up_to).await?;
        Ok(chosen)
    })
}

/// Reads and verifies a checkpoint, or says which object is wrong, and how.
async fn good(
    dir: &CheckpointDir,
    name: StepName,
) -> Result<Result<Chosen, (String, String)>, Error> {
    Ok(match read::examine(dir, name).await? {
        Verdict::Complete(chosen) => Ok(*chosen),
        Verdict::Unfinished => Err((dir.step_url(name), "it has no MANIFEST.json".to_owned())),
        Verdict::Damaged { object, reason } => Err((object, reason)),
    })
}

fn checkpoint(url: &str) -> Result<(CheckpointDir, StepName), Error> {
    CheckpointDir::open(url)?.split().ok_or_else(|| Error::Unusable {
        url: url.to_owned(),
        reason: "not the folder of one checkpoint; write …/step-<step>.<generation>".to_owned(),
    })
}

impl CheckpointDir {
    async fn create_rollback(&self, rollback: Rollback) -> Result<(), Error> {
        let text = json!({
            "version": VERSION,
            "to": rollback.to.to_string(),
            "abandons_up_to": rollback.up_to.to_string(),
        });
        let text = serde_json::to_vec_pretty(&text).expect("plain data serialises");
        let path = self.base.clone().join(rollback.to_string());
        // Its name is its content: whoever is faster writes the same.
        let error = |source| self.store_error("write", format!("{}/{rollback}", self.url), source);
        self.store.put(&path, text.into()).await.map(|_| ()).map_err(error)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tests::testing;
    use crate::{Writer, WriterOptions, choose};

    fn name(counter: u32, step: u64) -> StepName {
        StepName { generation: Generation::new(1, counter), step }
    }

    /// A job's folder with these checkpoints, by generation and step.
    fn job(checkpoints: &[(u32, u64)]) -> (tempfile::TempDir, String) {
        let root = tempfile::tempdir().unwrap();
        for &(counter, step) in checkpoints {
            publish_all(&root, counter, step);
        }
        let url = crate::job_url(root.path().to_str().unwrap(), testing::JOB_ID);
        (root, url)
    }

    fn publish_all(root: &tempfile::TempDir, counter: u32, step: u64) {
        let uri = root.path().to_str().unwrap();
        let grant = std::sync::Arc::new(testing::Coordinator::new(1));
        let options = WriterOptions { keep_last: 9, ..testing::options(uri, counter, 0, 1, grant) };
        let mut writer = Writer::new(options);
        let _ = writer.save(testing::snapshot(counter, step, 0, 1));
        writer.finish().unwrap();
    }

    fn newest(job: &str) -> u64 {
        choose(&[job]).unwrap().unwrap().load().unwrap().state.step
    }

    fn latest(job: &str) -> String {
        let text = std::fs::read(format!("{job}/latest.json")).unwrap();
        let latest: serde_json::Value = serde_json::from_slice(&text).unwrap();
        latest["prefix"].as_str().unwrap().to_owned()
    }

    #[test]
    fn a_roll_back_goes_on_from_the_very_one_and_newer_ones_are_no_more() {
        let (root, job) = job(&[(1, 10), (1, 20), (2, 30)]);
        let url = format!("{job}/step-0000000010.g1.1");
        let chosen = choose_rolled_back(&url, Generation::new(1, 2)).unwrap();
        assert_eq!(chosen.url(), url);
        testing::assert_is(&chosen.load().unwrap(), 10);
        assert_eq!((newest(&job), latest(&job)), (10, "step-0000000010.g1.1".to_owned()));

        // What a rank that died meanwhile publishes late is given up, too.
        publish_all(&root, 2, 40);
        assert_eq!(newest(&job), 10);
        // The new generation's own count, for whoever rolls back again, too; and if they break it is the
        // one gone back to once more.
        publish_all(&root, 3, 12);
        let again = || choose_rolled_back(&url, Generation::new(1, 2)).unwrap().load().unwrap();
        testing::assert_is(&again(), 12);
        assert_eq!((newest(&job), latest(&job)), (12, "step-0000000012.g1.3".to_owned()));
        std::fs::remove_file(format!("{job}/step-0000000012.g1.3/state.json")).unwrap();
        testing::assert_is(&again(), 10);
        assert_eq!(newest(&job), 10);
    }

    #[test]
    fn the_first_checkpoint_after_a_roll_back_clears_what_it_gave_up() {
        let (root, job) = job(&[(1, 10), (1, 20), (1, 30)]);
        choose_rolled_back(&format!("{job}/step-0000000010.g1.1"), Generation::new(1, 1)).unwrap();
        let there = |name: &str| std::fs::exists(format!("{job}/{name}")).unwrap();
        assert!(there("step-0000000020.g1.1"));
        publish_all(&root, 2, 15);
        assert!(!there("step-0000000020.g1.1") && !there("step-0000000030.g1.1"));
        assert!(there("step-0000000010.g1.1") && there("step-0000000015.g1.2"));
    }

    #[test]
    fn what_cannot_be_loaded_is_not_rolled_back_to() {
        let (_root, job) = job(&[(1, 10), (1, 20)]);
        let url = format!("{job}/step-0000000010.g1.1");
        std::fs::write(format!("{url}/model.safetensors"), "noise").unwrap();
        for (url, reason) in [
            (url.as_str(), "model.safetensors is damaged: 5 bytes, the manifest says"),
            (&format!("{job}/step-0000000015.g1.1"), "is damaged: it has no MANIFEST.json"),
            (&job, "not the folder of one checkpoint"),
        ] {
            let error = choose_rolled_back(url, Generation::new(1, 1)).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        assert_eq!((newest(&job), latest(&job)), (20, "step-0000000020.g1.1".to_owned()));
    }

    #[test]
    fn a_roll_back_that_died_half_way_is_done_by_repeating_it() {
        let (_root, job) = job(&[(1, 10), (1, 20)]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let rollback = Rollback { up_to: Generation::new(1, 1), to: name(1, 10) };
        let dir = CheckpointDir::open(&job).unwrap();
        runtime.block_on(dir.create_rollback(rollback)).unwrap();
        assert_eq!((newest(&job), latest(&job)), (10, "step-0000000020.g1.1".to_owned()));
        let url = format!("{job}/step-0000000010.g1.1");
        for _ in 0..2 {
            runtime.block_on(roll_back(&url, Generation::new(1, 1))).unwrap();
            assert_eq!((newest(&job), latest(&job)), (10, "step-0000000010.g1.1".to_owned()));
        }
    }
}
