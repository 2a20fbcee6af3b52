//! Reading: the newest checkpoint that is what its manifest says.
//!
//! Every object is read once: verified here, kept as bytes, and turned into tensors by
//! [`Chosen::load`].

use std::collections::BTreeMap;

use futures::TryStreamExt;

use super::Error;
use super::layout::{self, StepName};
use super::manifest::Manifest;
use super::place::Place;
use super::state::State;
use super::tensors::{self, Moment, Moments};
use super::upload;
use crate::progress;

/// A verified checkpoint, in memory.
#[derive(Debug)]
pub struct Chosen {
    place: Place,
    name: StepName,
    manifest: Manifest,
    /// By name, as stored.
    objects: BTreeMap<String, Vec<u8>>,
}

/// A checkpoint as values, of whatever world size it was written.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Shape and values (f32, row-major) of every parameter, by OpenCLIP's name.
    pub model: BTreeMap<String, (Vec<i64>, Vec<f32>)>,
    /// First moments, one vector per parameter.
    pub exp_avg: BTreeMap<String, Vec<f32>>,
    /// Second moments, one vector per parameter.
    pub exp_avg_sq: BTreeMap<String, Vec<f32>>,
    /// The run.
    pub state: State,
}

/// Returns the newest complete checkpoint of the first place that has one; `None` if none has.
/// A place is a job's folder or the folder of one checkpoint. "Newest" is by generation, then by
/// step, and what a roll-back gave up is none of a job's. One whose manifest or objects do not verify is passed over with a warning that names the
/// object and the reason.
///
/// Blocks; not for use inside an async runtime.
///
/// # Errors
/// A place that this build cannot reach, or a store that fails for another reason than absence:
/// then a newer checkpoint than those seen may exist, so nothing is chosen.
pub fn choose(places: &[&str]) -> Result<Option<Chosen>, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Runtime { source })?;
    runtime.block_on(async {
        for url in places {
            let place = Place::open(url)?;
            let (place, candidates) = match place.split() {
                Some((job, name)) => (job, vec![name]),
                None => {
                    let steps = place.survey().await?.standing();
                    (place, steps)
                }
            };
            for name in candidates {
                match read(&place, name).await? {
                    Verdict::Complete(chosen) => return Ok(Some(*chosen)),
                    Verdict::Unfinished => {
                        tracing::debug!(url = place.step_url(name), "has no manifest, passed over");
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
pub(crate) async fn read(place: &Place, name: StepName) -> Result<Verdict, Error> {
    let Some(text) = place.text(name, layout::MANIFEST).await? else {
        return Ok(Verdict::Unfinished);
    };
    let damaged = |object: &str, reason: String| {
        Ok(Verdict::Damaged { object: place.object_url(name, object), reason })
    };
    let manifest = match Manifest::decode(&text, name) {
        Ok(manifest) => manifest,
        Err(reason) => return damaged(layout::MANIFEST, reason),
    };
    let mut objects = BTreeMap::new();
    for object in &manifest.objects {
        let Some(result) = place.get(name, &object.name).await? else {
            return damaged(&object.name, "it does not exist".to_owned());
        };
        if result.meta.size != object.size {
            let reason = format!("{} bytes, the manifest says {}", result.meta.size, object.size);
            return damaged(&object.name, reason);
        }
        let mut bytes = Vec::with_capacity(object.size as usize);
        let mut parts = result.into_stream();
        let error = |source| place.read_error(name, &object.name, source);
        while let Some(part) = parts.try_next().await.map_err(error)? {
            bytes.extend_from_slice(&part);
            progress::advance();
        }
        if let Some(reason) = upload::mismatch(&bytes, object.size, &object.sha256) {
            return damaged(&object.name, reason);
        }
        objects.insert(object.name.clone(), bytes);
    }
    let chosen = Chosen { place: place.clone(), name, manifest, objects };
    Ok(Verdict::Complete(Box::new(chosen)))
}

impl Chosen {
    /// Returns where it lies, in the style of the place it was found in.
    pub fn url(&self) -> String {
        self.place.step_url(self.name)
    }

    /// Returns the digest of parameters and optimizer state that its writers agreed on.
    pub fn digest(&self) -> Option<u64> {
        self.manifest.digest()
    }

    /// Turns the bytes into values, freeing them as it goes.
    ///
    /// # Errors
    /// Content that verifies and makes no sense here: another format version, or slices of the
    /// optimizer state that do not cover every parameter. No older checkpoint is tried, because
    /// such content is no accident of storage.
    pub fn load(mut self) -> Result<Loaded, Error> {
        let state_url = self.place.object_url(self.name, layout::STATE);
        let state = State::decode(&self.take(layout::STATE), &state_url)?;
        let model_url = self.place.object_url(self.name, layout::MODEL);
        let model = tensors::read_model(&self.take(layout::MODEL), &model_url)?;
        let slices: Vec<String> =
            self.objects.keys().filter(|name| layout::is_optim(name)).cloned().collect();
        let mut moments = Moments::of(&model);
        for name in slices {
            let url = self.place.object_url(self.name, &name);
            moments.add(&self.take(&name), &url)?;
        }
        let url = self.url();
        let exp_avg = moments.take(Moment::ExpAvg, &url)?;
        let exp_avg_sq = moments.take(Moment::ExpAvgSq, &url)?;
        if state.step != self.name.step || state.generation != self.name.generation {
            let reason = format!("it is the state of step {}", state.step);
            return Err(Error::Damaged { object: state_url, reason });
        }
        Ok(Loaded { model, exp_avg, exp_avg_sq, state })
    }

    fn take(&mut self, object: &str) -> Vec<u8> {
        self.objects.remove(object).expect("a manifest lists every part, and all were read")
    }
}
