//! Reading: the newest checkpoint that is what its manifest says.
//!
//! Every object is read once: verified here, kept as bytes, and turned into tensors by
//! [`Chosen::load`].

use std::collections::BTreeMap;

use super::fetch::{self, Fetched};
use crate::Error;
use crate::chunks::Chunks;
use crate::dir::CheckpointDir;
use crate::layout::{self, StepName};
use crate::manifest::Manifest;
use crate::runtime::runtime;
use crate::state::State;
use crate::tensors::{Moment, Moments, TensorFile, Values};

/// A verified checkpoint, in memory.
#[derive(Debug)]
pub struct Chosen {
    dir: CheckpointDir,
    name: StepName,
    manifest: Manifest,
    /// By name, as stored.
    objects: BTreeMap<String, Chunks>,
}

/// A checkpoint as values, of whatever world size it was written.
#[derive(Debug)]
pub struct Loaded {
    /// The run.
    pub state: State,
    model: TensorFile,
    /// Slices of the optimizer state, a file per rank that wrote it.
    optim: Vec<TensorFile>,
    moments: Moments,
}

impl Loaded {
    /// Returns a parameter by OpenCLIP's name.
    pub fn parameter(&self, name: &str) -> Option<Values<'_>> {
        self.model.get(name)
    }

    /// Returns every parameter, by name.
    pub fn parameters(&self) -> impl Iterator<Item = Values<'_>> {
        self.model.iter()
    }

    /// Returns the parts that make up one of a parameter's running means, in order, each with the
    /// element it begins at; nothing for a parameter that does not exist.
    pub fn moment(
        &self,
        moment: Moment,
        parameter: &str,
    ) -> impl Iterator<Item = (usize, Values<'_>)> {
        self.moments.slices(&self.optim, moment, parameter)
    }
}

/// Returns the newest complete checkpoint of the first folder that has one; `None` if none has.
/// Each of `urls` leads to a job's folder or to the folder of one checkpoint. "Newest" is by generation,
/// then by step, and what a roll-back gave up is none of a job's. One whose manifest or objects do not
/// verify is passed over with a warning that names the object and the reason.
///
/// Blocks; not for use inside an async runtime.
///
/// # Errors
/// A folder that this build cannot reach, or a store that fails for another reason than absence:
/// then a newer checkpoint than those seen may exist, so nothing is chosen.
pub fn choose(urls: &[&str]) -> Result<Option<Chosen>, Error> {
    runtime()?.block_on(async {
        for url in urls {
            let dir = CheckpointDir::open(url)?;
            let (dir, candidates) = match dir.split() {
                Some((job, name)) => (job, vec![name]),
                None => {
                    let steps = dir.survey().await?.standing();
                    (dir, steps)
                }
            };
            for name in candidates {
                match examine(&dir, name).await? {
                    Verdict::Complete(chosen) => return Ok(Some(*chosen)),
                    Verdict::Unfinished => {
                        tracing::debug!(url = dir.step_url(name), "has no manifest, passed over");
                    }
                    Verdict::Damaged { object, reason } => {
                        tracing::warn!(
                            object,
                            reason,
                            "checkpoint is damaged, trying an older one"
                        );
                    }
                }
            }
        }
        Ok(None)
    })
}

/// What a look at one checkpoint found.
pub(crate) enum Verdict {
    Complete(Box<Chosen>),
    /// No manifest: nobody finished it.
    Unfinished,
    Damaged {
        /// URL of the first object that does not verify.
        object: String,
        reason: String,
    },
}

/// Reads and verifies a checkpoint.
pub(crate) async fn examine(dir: &CheckpointDir, name: StepName) -> Result<Verdict, Error> {
    let Some(text) = dir.text(name, layout::MANIFEST).await? else {
        return Ok(Verdict::Unfinished);
    };
    let damaged = |object: &str, reason: String| {
        Ok(Verdict::Damaged { object: dir.object_url(name, object), reason })
    };
    let manifest = match Manifest::decode(&text, name) {
        Ok(manifest) => manifest,
        Err(reason) => return damaged(layout::MANIFEST, reason),
    };
    let mut objects = BTreeMap::new();
    for object in &manifest.objects {
        match fetch::fetch(dir, name, object).await? {
            Fetched::Good(chunks) => objects.insert(object.name.clone(), chunks),
            Fetched::Bad(reason) => return damaged(&object.name, reason),
        };
    }
    let chosen = Chosen { dir: dir.clone(), name, manifest, objects };
    Ok(Verdict::Complete(Box::new(chosen)))
}

impl Chosen {
    /// Returns where it lies, in the style of the folder it was found in.
    pub fn url(&self) -> String {
        self.dir.step_url(self.name)
    }

    /// Returns the digest of parameters and optimizer state that its writers agreed on.
    pub fn digest(&self) -> Option<u64> {
        self.manifest.digest()
    }

    /// Makes the values accessible by name; they stay where they are.
    ///
    /// # Errors
    /// Content that verifies and makes no sense here: another format version, or slices of the
    /// optimizer state that do not cover every parameter. No older checkpoint is tried, because
    /// such content is no accident of storage.
    pub fn load(mut self) -> Result<Loaded, Error> {
        let state_url = self.dir.object_url(self.name, layout::STATE);
        let state = State::decode(&self.take(layout::STATE).to_vec(), &state_url)?;
        if state.step != self.name.step || state.generation != self.name.generation {
            let reason = format!("it is the state of step {}", state.step);
            return Err(Error::Damaged { object: state_url, reason });
        }
        let model = self.tensors(layout::MODEL)?;
        let slices: Vec<String> =
            self.objects.keys().filter(|name| layout::is_optim(name)).cloned().collect();
        let optim = slices.iter().map(|name| self.tensors(name)).collect::<Result<Vec<_>, _>>()?;
        let urls: Vec<String> =
            slices.iter().map(|name| self.dir.object_url(self.name, name)).collect();
        let moments = Moments::index(&model, &optim, &urls, &self.url())?;
        Ok(Loaded { state, model, optim, moments })
    }

    fn tensors(&mut self, object: &str) -> Result<TensorFile, Error> {
        let url = self.dir.object_url(self.name, object);
        TensorFile::parse(self.take(object), &url)
    }

    fn take(&mut self, object: &str) -> Chunks {
        self.objects.remove(object).expect("a manifest lists every part, and all were read")
    }
}
