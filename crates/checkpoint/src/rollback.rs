//! Rolling a job back: the checkpoints above one of them are given up, all at once.
//!
//! One small object in the job's folder says so: everything above a checkpoint, up to a generation,
//! is abandoned. Nothing of it is chosen or listed as complete any more, and retention deletes it once
//! the job has saved anew. One object for all of them, because a single put is atomic: there is no
//! half roll-back, whenever the one who does it dies. And because it names a generation it also
//! covers what a rank of that generation publishes late. Its name says everything, so whoever lists
//! the folder knows it without reading.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use futures::TryFutureExt as _;
use object_store::ObjectStoreExt as _;
use ringmaster_proto::v1::Generation;
use serde_json::json;

use super::Error;
use super::choose::{self, Chosen, Verdict};
use super::layout::{LATEST, StepName};
use super::manifest::{Pointer, VERSION};
use super::place::Place;

/// Gives up the checkpoints above the one at `url`, as far as generations up to `up_to` wrote them,
/// and lets latest.json name that one. Repeating it changes nothing.
///
/// # Errors
/// A `url` that is no checkpoint's, or a store that fails; what was given up then is all or nothing.
pub async fn roll_back(url: &str, up_to: Generation) -> Result<(), Error> {
    let (place, to) = checkpoint(url)?;
    let rollback = Rollback { up_to, to };
    place.create_rollback(rollback).await?;
    place.move_latest(|named| rollback.abandons(named), Some(to)).await
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
    choose::runtime()?.block_on(async {
        let (place, to) = checkpoint(url)?;
        let names = place.survey().await?.names;
        for name in names.into_iter().filter(|name| name.generation > up_to) {
            match good(&place, name).await? {
                Ok(chosen) => {
                    roll_back(url, up_to).await?;
                    return Ok(chosen);
                }
                Err((object, reason)) => tracing::warn!(object, reason, "passed over"),
            }
        }
        let chosen = good(&place, to).await?;
        let chosen = chosen.map_err(|(object, reason)| Error::Damaged { object, reason })?;
        roll_back(url, up_to).await?;
        Ok(chosen)
    })
}

/// Reads and verifies a checkpoint, or says which object is wrong, and how.
async fn good(place: &Place, name: StepName) -> Result<Result<Chosen, (String, String)>, Error> {
    Ok(match choose::read(place, name).await? {
        Verdict::Complete(chosen) => Ok(*chosen),
        Verdict::Unfinished => Err((place.step_url(name), "it has no MANIFEST.json".to_owned())),
        Verdict::Damaged { object, reason } => Err((object, reason)),
    })
}

fn checkpoint(url: &str) -> Result<(Place, StepName), Error> {
    Place::open(url)?.split().ok_or_else(|| Error::Place {
        url: url.to_owned(),
        reason: "not the folder of one checkpoint; write …/step-<step>.<generation>".to_owned(),
    })
}

/// A roll-back that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rollback {
    /// The newest generation whose work is given up.
    pub(crate) up_to: Generation,
    /// What the job went back to.
    pub(crate) to: StepName,
}

impl Rollback {
    /// Whether this roll-back gave a checkpoint up.
    pub(crate) fn abandons(self, name: StepName) -> bool {
        name > self.to && name.generation <= self.up_to
    }
}

impl fmt::Display for Rollback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rollback-{}-to-{}.json", self.up_to, self.to)
    }
}

/// A name that is not a roll-back's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotARollback;

impl FromStr for Rollback {
    type Err = NotARollback;

    fn from_str(text: &str) -> Result<Self, NotARollback> {
        let rest = text.strip_prefix("rollback-").and_then(|rest| rest.strip_suffix(".json"));
        let (up_to, to) = rest.and_then(|rest| rest.split_once("-to-")).ok_or(NotARollback)?;
        let rollback = Self {
            up_to: up_to.parse().map_err(|_| NotARollback)?,
            to: to.parse().map_err(|_| NotARollback)?,
        };
        if rollback.to_string() == text { Ok(rollback) } else { Err(NotARollback) }
    }
}

/// What lies in a job's folder, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    /// Checkpoints, complete or not, newest first.
    pub(crate) names: Vec<StepName>,
    /// Roll-backs, in no order that matters.
    pub(crate) rollbacks: BTreeSet<Rollback>,
    /// There is a latest.json.
    pub(crate) has_latest: bool,
    /// Folders that are no checkpoints.
    pub(crate) folders: Vec<String>,
}

impl Survey {
    /// Whether a roll-back gave this checkpoint up.
    pub(crate) fn is_abandoned(&self, name: StepName) -> bool {
        self.rollbacks.iter().any(|rollback| rollback.abandons(name))
    }

    /// The roll-back that gave this checkpoint up.
    pub(crate) fn rollback_of(&self, name: StepName) -> Option<Rollback> {
        self.rollbacks.iter().rev().copied().find(|rollback| rollback.abandons(name))
    }

    /// Checkpoints that no roll-back gave up, newest first.
    pub(crate) fn standing(&self) -> Vec<StepName> {
        self.names.iter().copied().filter(|name| !self.is_abandoned(*name)).collect()
    }
}

impl Place {
    /// Whether both are the same folder, however it was written.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.base == other.base && origin(&self.url) == origin(&other.url)
    }

    /// Looks what lies in this folder; nothing for one that does not exist.
    pub(crate) async fn survey(&self) -> Result<Survey, Error> {
        let listed = self.store.list_with_delimiter(Some(&self.base)).await;
        let listed = listed.map_err(|source| self.store_error("list", self.url.clone(), source))?;
        let mut survey = Survey::default();
        for folder in listed.common_prefixes.iter().filter_map(|prefix| prefix.filename()) {
            match folder.parse() {
                Ok(name) => survey.names.push(name),
                Err(_) => survey.folders.push(folder.to_owned()),
            }
        }
        for object in listed.objects.iter().filter_map(|object| object.location.filename()) {
            survey.has_latest |= object == LATEST;
            survey.rollbacks.extend(object.parse::<Rollback>().ok());
        }
        survey.names.sort_by(|a, b| b.cmp(a));
        Ok(survey)
    }

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

    /// Lets latest.json name `to`, or removes it for none, if it names one that `leaves` says.
    pub(crate) async fn move_latest(
        &self,
        leaves: impl Fn(StepName) -> bool,
        to: Option<StepName>,
    ) -> Result<(), Error> {
        let _lock = self.lock_latest().await?;
        loop {
            let Some((pointer, version)) = self.latest().await? else { return Ok(()) };
            if pointer.is_some_and(|pointer| !leaves(pointer.name())) {
                return Ok(());
            }
            let path = self.base.clone().join(LATEST);
            let error = |action| move |source| self.store_error(action, self.latest_url(), source);
            let Some(to) = to else {
                return self.store.delete(&path).map_err(error("delete")).await;
            };
            let mode = self.latest_mode(Some(version)).await?;
            let text = Pointer::to(to).encode();
            match self.store.put_opts(&path, text.into(), mode.into()).await {
                Ok(_) => return Ok(()),
                // Somebody wrote it meanwhile; what it says now may be right already.
                Err(object_store::Error::Precondition { .. }) => {}
                Err(source) => return Err(error("write")(source)),
            }
        }
    }
}

/// The store that a URL leads to: scheme and bucket, nothing for files.
fn origin(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once("://").filter(|(scheme, _)| *scheme != "file")?;
    Some((scheme, rest.split('/').next().unwrap_or_default()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{Writer, WriterOptions, choose, testing};

    fn name(counter: u32, step: u64) -> StepName {
        StepName { generation: Generation::new(1, counter), step }
    }

    #[test]
    fn a_name_says_the_whole_roll_back() {
        let rollback = Rollback { up_to: Generation::new(2, 9), to: name(3, 100) };
        let text = "rollback-g2.9-to-step-0000000100.g1.3.json";
        assert_eq!((rollback.to_string().as_str(), text.parse()), (text, Ok(rollback)));
        for other in ["rollback-g2.9.json", "rollback-g2.9-to-step-100.g1.3.json", "latest.json"] {
            assert_eq!(other.parse::<Rollback>(), Err(NotARollback), "{other}");
        }
    }

    #[test]
    fn what_is_above_is_abandoned_until_a_later_generation() {
        let rollback = Rollback { up_to: Generation::new(1, 5), to: name(3, 100) };
        for abandoned in [name(3, 101), name(4, 50), name(5, 900)] {
            assert!(rollback.abandons(abandoned), "{abandoned}");
        }
        for kept in [name(3, 100), name(3, 90), name(2, 900), name(6, 101), name(6, 1)] {
            assert!(!rollback.abandons(kept), "{kept}");
        }
    }

    #[tokio::test]
    async fn latest_json_leaves_what_was_given_up_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        for place in [Place::memory(), Place::open(folder.path().to_str().unwrap()).unwrap()] {
            let latest = async || place.latest().await.unwrap().map(|(p, _)| p.unwrap().name());
            place.move_latest(|_| true, Some(name(1, 1))).await.unwrap();
            assert_eq!(latest().await, None, "there was none, and none is made");
            place.advance_latest(&Pointer::to(name(1, 30))).await.unwrap();
            place.move_latest(|named| named == name(1, 20), Some(name(1, 10))).await.unwrap();
            assert_eq!(latest().await, Some(name(1, 30)));
            place.move_latest(|named| named == name(1, 30), Some(name(1, 10))).await.unwrap();
            assert_eq!(latest().await, Some(name(1, 10)));
            place.move_latest(|_| true, None).await.unwrap();
            assert_eq!(latest().await, None);
        }
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
        let place = Place::open(&job).unwrap();
        runtime.block_on(place.create_rollback(rollback)).unwrap();
        assert_eq!((newest(&job), latest(&job)), (10, "step-0000000020.g1.1".to_owned()));
        let url = format!("{job}/step-0000000010.g1.1");
        for _ in 0..2 {
            runtime.block_on(roll_back(&url, Generation::new(1, 1))).unwrap();
            assert_eq!((newest(&job), latest(&job)), (10, "step-0000000010.g1.1".to_owned()));
        }
    }

    #[test]
    fn a_folder_is_the_same_however_it_is_written() {
        let open = |url: &str| Place::open(url).unwrap();
        assert!(open("/runs/a").is_same(&open("file:///runs/a/")));
        assert!(!open("/runs/a").is_same(&open("/runs/b")));
        assert_ne!(origin("s3://a/runs"), origin("s3://b/runs"));
        assert_ne!(origin("s3://a/runs"), origin("/runs"));
    }
}
