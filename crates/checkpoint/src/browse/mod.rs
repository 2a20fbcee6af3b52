//! Checkpoints as people and tools look at them: what lies where, whether it is good, moving it.
//!
//! Files in reading order: here what a URL names and what lies there; `headers` (what safetensors
//! files hold, without reading them), `verify` (every byte against the manifest), `transfer` (copies
//! and exports), `remove`. Everything is async, for a runtime with several threads, and reads no object
//! into memory as a whole.

mod headers;
mod remove;
mod transfer;
mod verify;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::{StreamExt as _, TryStreamExt as _};
use object_store::ObjectStore as _;
use ringmaster_proto::v1::Generation;

use super::Error;
use super::dir::{CheckpointDir, Survey};
use super::layout::{self, StepName};
use super::manifest::Manifest;
use super::read::Listing;
use super::state::State;

pub use headers::TensorInfo;
pub use transfer::{Copied, Destination};
pub use verify::Finding;

/// Checkpoints or folders that are looked at together.
const LOOKS_AT_ONCE: usize = 16;

/// What a URL names.
#[derive(Debug, Clone)]
pub enum Target {
    /// A folder of jobs: those that have checkpoints, by name.
    Jobs(Vec<JobFolder>),
    /// A job's folder.
    Job(JobFolder),
    /// One checkpoint, within its job's folder.
    One(JobFolder, Box<Checkpoint>),
}

impl Target {
    /// Looks what `url` names: an absolute path or a URL.
    ///
    /// # Errors
    /// A folder that cannot be reached, or that holds nothing of this kind.
    pub async fn open(url: &str) -> Result<Self, Error> {
        let dir = CheckpointDir::open(url)?;
        let nothing =
            |reason: &str| Error::Unusable { url: url.to_owned(), reason: reason.to_owned() };
        if let Some((dir, name)) = dir.split() {
            let job = JobFolder::look(dir).await?;
            if !job.survey.names.contains(&name) {
                return Err(nothing(&format!(
                    "there is no such checkpoint; {} holds {}",
                    job.url(),
                    job.steps_in_words()
                )));
            }
            let checkpoint = job.checkpoint(name).await?;
            return Ok(Self::One(job, Box::new(checkpoint)));
        }
        let folder = JobFolder::look(dir).await?;
        if folder.is_job() {
            return Ok(Self::Job(folder));
        }
        let names = folder.survey.folders.iter();
        let below: Vec<CheckpointDir> = names.filter_map(|name| folder.dir.below(name)).collect();
        let jobs: Vec<JobFolder> = futures::stream::iter(below.into_iter().map(JobFolder::look))
            .buffered(LOOKS_AT_ONCE)
            .try_collect()
            .await?;
        let mut jobs: Vec<JobFolder> = jobs.into_iter().filter(JobFolder::is_job).collect();
        jobs.sort_by(|a, b| a.url().cmp(b.url()));
        if jobs.is_empty() {
            return Err(nothing(&format!(
                "no checkpoint lies there: {}; name a folder of jobs, a job's folder or a checkpoint's",
                instead(&folder.dir).await?
            )));
        }
        Ok(Self::Jobs(jobs))
    }

    /// Returns every job's folder it is about.
    pub fn jobs(&self) -> Vec<&JobFolder> {
        match self {
            Self::Jobs(jobs) => jobs.iter().collect(),
            Self::Job(job) | Self::One(job, _) => vec![job],
        }
    }
}

/// Says what a folder holds that holds no checkpoints.
async fn instead(dir: &CheckpointDir) -> Result<String, Error> {
    const SHOWN: usize = 4;
    match &dir.local {
        Some(path) if path.is_file() => return Ok("it is a file".to_owned()),
        Some(path) if !path.exists() => return Ok("there is no such folder".to_owned()),
        _ => {}
    }
    let Listing { files, folders } = Listing::read(&dir.url).await?;
    if let Some(weights) = files.iter().find(|name| layout::is_weights(name)) {
        return Ok(format!("it holds plain weights ({weights}), which are no checkpoint of a run"));
    }
    let names: Vec<String> =
        folders.iter().map(|name| format!("{name}/")).chain(files.iter().cloned()).collect();
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    Ok(match names.len().saturating_sub(SHOWN) {
        _ if names.is_empty() => "nothing lies there".to_owned(),
        0 => format!("it holds {shown}"),
        more => format!("it holds {shown} and {more} more"),
    })
}

/// The folder of one job's checkpoints, as it was when it was looked at.
#[derive(Debug, Clone)]
pub struct JobFolder {
    dir: CheckpointDir,
    survey: Survey,
}

impl CheckpointDir {
    /// Returns a folder within this one; none for a link to one, which has another name.
    fn below(&self, name: &str) -> Option<Self> {
        let local = self.local.as_ref().map(|folder| folder.join(name));
        if local.as_ref().is_some_and(|folder| folder.is_symlink()) {
            return None;
        }
        let mut below = self.clone();
        below.base = self.inside(name)?;
        below.url = layout::url_below(&self.url, name);
        below.local = local;
        Some(below)
    }
}

impl JobFolder {
    async fn look(dir: CheckpointDir) -> Result<Self, Error> {
        let survey = dir.survey().await?;
        Ok(Self { dir, survey })
    }

    fn is_job(&self) -> bool {
        !self.survey.names.is_empty() || self.survey.has_latest
    }

    /// Returns where it is.
    pub fn url(&self) -> &str {
        &self.dir.url
    }

    /// Returns the folder's own name: the job's id, unless somebody renamed it.
    pub fn name(&self) -> &str {
        let of_url = || self.url().rsplit('/').next().unwrap_or_default();
        self.dir.base.filename().unwrap_or_else(of_url)
    }

    /// Returns its checkpoints, complete or not, newest first.
    ///
    /// # Errors
    /// A store that fails.
    pub async fn checkpoints(&self) -> Result<Vec<Checkpoint>, Error> {
        futures::stream::iter(self.survey.names.iter().map(|name| self.checkpoint(*name)))
            .buffered(LOOKS_AT_ONCE)
            .try_collect()
            .await
    }

    /// Returns the newest complete checkpoint: what a resume takes unless it is damaged inside.
    ///
    /// # Errors
    /// A store that fails.
    pub async fn newest(&self) -> Result<Option<Checkpoint>, Error> {
        for name in self.survey.standing() {
            let checkpoint = self.checkpoint(name).await?;
            if checkpoint.status == Status::Complete {
                return Ok(Some(checkpoint));
            }
        }
        Ok(None)
    }

    /// Returns the newest complete checkpoint of a step.
    ///
    /// # Errors
    /// A store that fails.
    pub async fn of_step(&self, step: u64) -> Result<Option<Checkpoint>, Error> {
        for name in self.survey.standing().into_iter().filter(|name| name.step == step) {
            let checkpoint = self.checkpoint(name).await?;
            if checkpoint.status == Status::Complete {
                return Ok(Some(checkpoint));
            }
        }
        Ok(None)
    }

    /// Returns the folder's name of the checkpoint that latest.json names; `None` without one that can
    /// be read.
    ///
    /// # Errors
    /// A store that fails.
    pub async fn latest(&self) -> Result<Option<String>, Error> {
        let latest = self.dir.latest().await?;
        Ok(latest.and_then(|(pointer, _)| Some(pointer?.name().to_string())))
    }

    async fn checkpoint(&self, name: StepName) -> Result<Checkpoint, Error> {
        Checkpoint::look(&self.dir, name, self.survey.is_abandoned(name)).await
    }

    /// Names the steps that are there, for people.
    pub fn steps_in_words(&self) -> String {
        let mut steps: Vec<u64> = self.survey.standing().iter().map(|name| name.step).collect();
        steps.dedup();
        match steps.len() {
            0 => "none".to_owned(),
            1 => format!("only step {}", steps[0]),
            all => {
                let shown: Vec<String> = steps.iter().take(8).map(u64::to_string).collect();
                let more =
                    if all > 8 { format!(" and {} older ones", all - 8) } else { String::new() };
                format!("steps {}{more}", shown.join(", "))
            }
        }
    }
}

/// How a checkpoint stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Its manifest and the sizes of its objects are right.
    Complete,
    /// It has no manifest: it is being written, or whoever wrote it died.
    Unfinished,
    /// A roll-back gave it up.
    Abandoned,
    /// Its manifest cannot be read, or objects are missing or have another size.
    Damaged {
        /// Where and how.
        reason: String,
    },
}

impl Status {
    /// Returns it as one word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Unfinished => "unfinished",
            Self::Abandoned => "abandoned",
            Self::Damaged { .. } => "damaged",
        }
    }
}

/// One checkpoint, as its folder shows it.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    dir: CheckpointDir,
    step_name: StepName,
    /// How it stands.
    pub status: Status,
    /// Size in bytes by name, of what lies there.
    pub objects: BTreeMap<String, u64>,
    /// When its newest object was written: the manifest, of a complete one. Unix milliseconds.
    pub written_at_ms: Option<i64>,
    /// What its writers agreed on, of parameters and optimizer state.
    pub digest: Option<u64>,
    manifest: Option<Manifest>,
}

impl Checkpoint {
    async fn look(dir: &CheckpointDir, name: StepName, abandoned: bool) -> Result<Self, Error> {
        let mut checkpoint = Self {
            dir: dir.clone(),
            step_name: name,
            status: Status::Unfinished,
            objects: BTreeMap::new(),
            written_at_ms: None,
            digest: None,
            manifest: None,
        };
        checkpoint.list().await?;
        let text = if checkpoint.objects.contains_key(layout::MANIFEST) {
            dir.text(name, layout::MANIFEST).await?
        } else {
            None
        };
        match text.map(|text| Manifest::decode(&text, name)) {
            None => {}
            Some(Err(reason)) => {
                let object = dir.object_url(name, layout::MANIFEST);
                checkpoint.status = Status::Damaged { reason: format!("{object}: {reason}") };
            }
            Some(Ok(manifest)) => {
                checkpoint.status = match checkpoint.misfit(&manifest) {
                    Some(reason) => Status::Damaged { reason },
                    None => Status::Complete,
                };
                checkpoint.digest = manifest.digest();
                checkpoint.manifest = Some(manifest);
            }
        }
        if abandoned {
            checkpoint.status = Status::Abandoned;
        }
        Ok(checkpoint)
    }

    async fn list(&mut self) -> Result<(), Error> {
        let prefix = self.dir.base.clone().join(self.step_name.to_string());
        let url = self.dir.step_url(self.step_name);
        let error = |source| self.dir.store_error("list", url, source);
        let listed = self.dir.store.list_with_delimiter(Some(&prefix)).await.map_err(error)?;
        for object in listed.objects {
            let Some(name) = object.location.filename() else { continue };
            self.objects.insert(name.to_owned(), object.size);
            self.written_at_ms =
                self.written_at_ms.max(Some(object.last_modified.timestamp_millis()));
        }
        Ok(())
    }

    /// Says which object is missing or has another size than the manifest says.
    fn misfit(&self, manifest: &Manifest) -> Option<String> {
        manifest.objects.iter().find_map(|object| {
            let url = self.dir.object_url(self.step_name, &object.name);
            match self.objects.get(&object.name) {
                None => Some(format!("{url} does not exist")),
                Some(size) if *size == object.size => None,
                Some(size) => {
                    Some(format!("{url} has {size} bytes, the manifest says {}", object.size))
                }
            }
        })
    }

    /// Whether it can be gone on from if its content is good: one that a roll-back gave up, too, if it
    /// is named itself.
    pub fn can_be_loaded(&self) -> bool {
        let misfit = |manifest| self.misfit(manifest).is_some();
        self.manifest.as_ref().is_some_and(|manifest| !misfit(manifest))
    }

    /// Returns where it is.
    pub fn url(&self) -> String {
        self.dir.step_url(self.step_name)
    }

    /// Returns the id of the job that wrote it, whatever its folder is called now.
    pub fn job_id(&self) -> Option<&str> {
        self.manifest.as_ref().map(|manifest| manifest.job_id.as_str())
    }

    /// Returns the name of its folder.
    pub fn name(&self) -> String {
        self.step_name.to_string()
    }

    /// Returns how many steps were applied.
    pub fn step(&self) -> u64 {
        self.step_name.step
    }

    /// Returns who wrote it.
    pub fn generation(&self) -> Generation {
        self.step_name.generation
    }

    /// Returns the bytes that lie there.
    pub fn size(&self) -> u64 {
        self.objects.values().sum()
    }

    /// Returns the bytes that verifying or copying it moves.
    pub fn payload(&self) -> u64 {
        let objects = self.manifest.iter().flat_map(|manifest| &manifest.objects);
        objects.map(|object| object.size).sum()
    }

    /// Returns how many ranks wrote it, as far as that shows.
    pub fn world_size(&self) -> Option<usize> {
        let objects = self.manifest.iter().flat_map(|manifest| &manifest.objects);
        match objects.filter(|object| layout::is_optim(&object.name)).count() {
            0 => None,
            ranks => Some(ranks),
        }
    }

    /// Reads state.json; `None` if there is none. Its checksum is not looked at.
    ///
    /// # Errors
    /// A store that fails, or a state that cannot be understood.
    pub async fn state(&self) -> Result<Option<State>, Error> {
        let Some(text) = self.dir.text(self.step_name, layout::STATE).await? else {
            return Ok(None);
        };
        let object = self.dir.object_url(self.step_name, layout::STATE);
        State::decode(&text, &object).map(Some)
    }
}

/// How far a long operation is, and whether it should stop; clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    bytes: AtomicU64,
    cancelled: AtomicBool,
}

impl Meter {
    /// Returns how many bytes were read and verified.
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Ends the operation at the next part, with what it was about to write taken back.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }

    fn add(&self, bytes: u64) {
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn go_on(&self) -> Result<(), Error> {
        if self.0.cancelled.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod names_tests;
