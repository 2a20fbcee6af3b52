//! What every rank holds a copy of: parameters, optimizer state, and how far they are.

use std::collections::BTreeMap;
use std::ops::Range;

use prost::Message as _;
use ringmaster_checkpoint as checkpoint;
use ringmaster_manifest::spec::{self, TrainJob};
use ringmaster_proto::v1::StepMetrics;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use xxhash_rust::xxh3::Xxh3;

use super::Error;
use crate::collective::Collective;
use crate::data::Substitution;
use crate::ffi::memory::HostBytes;
use crate::model::{Clip, LogitInit, Tower};
use crate::optim::adamw::{AdamW, Update, clip_factor};
use crate::optim::norm::squared_norm;
use crate::optim::schedule::learning_rate;

/// t′ stays within [0, ln 100], as OpenCLIP clamps it.
const MAX_LOG_SCALE: f64 = 4.605_170_185_988_092;

/// One rank's copy of the training state.
#[derive(Debug)]
pub(super) struct Replica {
    pub clip: Clip,
    adamw: AdamW,
    decay: Vec<(Range<usize>, bool)>,
    /// Steps applied.
    pub applied: u64,
    /// The gradients of step `applied + 1` are reduced and kept, and this rank entered *ready*.
    pub held: Option<HeldStep>,
    /// False until the state has been received, loaded or initialised in full.
    pub complete: bool,
    /// Nothing has been written over the initial values.
    pub pristine: bool,
    /// Corrupt samples replaced so far, by all ranks.
    pub substitutions: Vec<Substitution>,
    /// Samples that the run this one resumed from had consumed.
    pub resumed_samples: u64,
    /// Of the step applied last: rank 0 may have died before it wrote them down.
    pub metrics: Option<StepMetrics>,
}

/// What a rank that entered *ready* knows of the step beside its gradients: enough to write the
/// step down if it applies it alone.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct HeldStep {
    /// Of the global batch.
    pub loss: f64,
    /// Which sample stood in which row of the global batch.
    pub order_digest: u64,
    /// Corrupt samples replaced in the step, by all ranks: they count once it is applied.
    pub substitutions: Vec<Substitution>,
}

/// What travels beside the flat buffers when a state is handed over.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    applied: u64,
    resumed_samples: u64,
    substitutions: Vec<Substitution>,
    /// An encoded `StepMetrics`; empty for none.
    metrics: Vec<u8>,
}

/// What applying a step tells.
#[derive(Debug, Clone, Copy)]
pub(super) struct Applied {
    pub lr: f64,
    pub grad_norm: f64,
}

impl Replica {
    /// Returns the state at step 0, the same on every rank.
    pub(super) fn new(job: &TrainJob, device: Device) -> Result<Self, Error> {
        let mut config = job.model.config.clone();
        if let Some(patch_dropout) = job.model.force_patch_dropout {
            config.vision_cfg.patch_dropout = patch_dropout;
        }
        let default_scale = match job.loss.kind {
            spec::LossKind::Siglip => 10_f64.ln(),
            spec::LossKind::Infonce => (1.0_f64 / 0.07).ln(),
        };
        let scale = job.loss.init_logit_scale.or(config.init_logit_scale).unwrap_or(default_scale);
        let bias = match job.loss.kind {
            spec::LossKind::Siglip => {
                Some(job.loss.init_logit_bias.or(config.init_logit_bias).unwrap_or(-10.0))
            }
            spec::LossKind::Infonce => None,
        };
        let init = LogitInit { scale, bias };
        let clip = Clip::new(&config, job.model.precision, device, job.data.seed, init)?;
        let adamw = AdamW::like(clip.params().flat());
        let decay = clip.params().decay_ranges();
        Ok(Self {
            clip,
            adamw,
            decay,
            applied: 0,
            held: None,
            complete: false,
            pristine: true,
            substitutions: Vec::new(),
            resumed_samples: 0,
            metrics: None,
        })
    }

    /// Applies the reduced gradients it holds. No collective, no abort: whoever passed *ready*
    /// may do this alone and all replicas stay equal.
    pub(super) fn apply(&mut self, job: &TrainJob) -> Result<Applied, Error> {
        let grad_norm = squared_norm(self.clip.params().grad()).sqrt();
        let lr = learning_rate(&job.schedule, job.optimizer.lr, self.applied);
        let update = Update {
            lr,
            beta1: job.optimizer.beta1,
            beta2: job.optimizer.beta2,
            eps: job.optimizer.eps,
            weight_decay: job.optimizer.weight_decay,
            grad_factor: clip_factor(grad_norm, job.optimizer.grad_clip_norm),
            step: self.applied + 1,
        };
        let params = self.clip.params();
        self.adamw.apply(params.flat(), params.grad(), &self.decay, update)?;
        if job.loss.clamp_logit_scale {
            let entry = params.entry("logit_scale").expect("every model has a logit_scale");
            let mut scale = params.flat().narrow(0, entry.offset as i64, entry.len as i64);
            let _ = scale.f_clamp_(0.0, MAX_LOG_SCALE)?;
        }
        if let Some(held) = self.held.take() {
            self.substitutions.extend(held.substitutions);
        }
        self.applied += 1;
        self.pristine = false;
        Ok(Applied { lr, grad_norm })
    }

    /// Returns a digest of parameters and optimizer state: equal on replicas that agree.
    pub(super) fn digest(&self) -> u64 {
        let mut hasher = Xxh3::new();
        hasher.update(&self.applied.to_le_bytes());
        for buffer in self.buffers() {
            let host = buffer.to_device(Device::Cpu).contiguous();
            let bytes = HostBytes::of(&host).expect("flat buffers are contiguous");
            hasher.update(bytes.read(0..bytes.len()));
        }
        hasher.digest()
    }

    /// Damages one weight, as failing memory would, for tests.
    pub(super) fn corrupt(&mut self) -> Result<(), Error> {
        let _ = self.clip.params().flat().f_narrow(0, 0, 1)?.f_add_scalar_(1.0)?;
        Ok(())
    }

    fn buffers(&self) -> [&Tensor; 3] {
        [self.clip.params().flat(), &self.adamw.exp_avg, &self.adamw.exp_avg_sq]
    }

    /// Hands the state of `source` to every rank. A receiver that fails half-way holds nothing.
    pub(super) fn receive(
        &mut self,
        source: usize,
        stored: bool,
        collective: &dyn Collective,
    ) -> Result<(), Error> {
        let header = Header {
            applied: self.applied,
            resumed_samples: self.resumed_samples,
            substitutions: self.substitutions.clone(),
            metrics: self.metrics.map(|m| m.encode_to_vec()).unwrap_or_default(),
        };
        let text = serde_json::to_vec(&header).expect("plain data serialises");
        let text = super::bytes::broadcast(&text, source, collective)?;
        let header: Header = serde_json::from_slice(&text)
            .map_err(|e| Error::Internal { what: format!("state header: {e}") })?;
        // Between here and the end the buffers are a mixture, unless they already held these bits.
        if stored || self.applied != header.applied {
            self.complete = false;
        }
        self.pristine = false;
        for buffer in self.buffers() {
            collective.broadcast(buffer, source)?.wait()?;
        }
        // On a device the buffers are whole only now.
        collective.settle()?;
        self.applied = header.applied;
        self.resumed_samples = header.resumed_samples;
        self.metrics = StepMetrics::decode(header.metrics.as_slice()).ok().filter(|m| m.step > 0);
        self.substitutions = header.substitutions;
        self.held = None;
        self.complete = true;
        Ok(())
    }

    /// Takes over a checkpoint.
    pub(super) fn load(&mut self, loaded: &checkpoint::Loaded) -> Result<(), Error> {
        self.complete = false;
        self.pristine = false;
        for entry in self.clip.params().entries() {
            let missing = |what: &str| Error::Checkpoint {
                what: format!("{what} of {} is missing or has another size", entry.name),
            };
            let (shape, values) = loaded.model.get(&entry.name).ok_or_else(|| missing("value"))?;
            if *shape != entry.shape {
                let what = format!(
                    "{} has shape {shape:?} in the checkpoint and {:?} in the model",
                    entry.name, entry.shape
                );
                return Err(Error::Checkpoint { what });
            }
            let moments: [(&str, &BTreeMap<String, Vec<f32>>); 2] =
                [("exp_avg", &loaded.exp_avg), ("exp_avg_sq", &loaded.exp_avg_sq)];
            let [params, exp_avg, exp_avg_sq] = self.buffers();
            put(params, entry.offset, values);
            for (buffer, (name, moments)) in [exp_avg, exp_avg_sq].iter().zip(moments) {
                let values = moments.get(&entry.name).filter(|v| v.len() == entry.len);
                put(buffer, entry.offset, values.ok_or_else(|| missing(name))?);
            }
        }
        self.applied = loaded.state.step;
        self.metrics = None;
        self.substitutions = loaded.state.data.substitutions.clone();
        self.held = None;
        self.complete = true;
        Ok(())
    }

    /// Takes over the weights of a checkpoint of any job, t′ and β among them: what the checkpoint says
    /// goes before the manifest. A loss that has no β ignores it, and one that needs it and does not find
    /// it keeps what it has; returns what was kept so. Nothing is taken unless everything fits.
    ///
    /// # Errors
    /// What does not fit, in a sentence.
    pub(super) fn load_weights(
        &mut self,
        loaded: &checkpoint::Loaded,
    ) -> Result<Vec<String>, String> {
        const OPTIONAL: &str = "logit_bias";
        let entries = self.clip.params().entries();
        let (mut missing, mut misshaped) = (Vec::new(), Vec::new());
        for entry in entries {
            match loaded.model.get(&entry.name) {
                None => missing.push(entry.name.clone()),
                Some((shape, _)) if *shape != entry.shape => misshaped.push(format!(
                    "{} has shape {shape:?} there and {:?} here",
                    entry.name, entry.shape
                )),
                Some(_) => {}
            }
        }
        let here = |name: &String| entries.iter().any(|entry| entry.name == *name);
        let unexpected = loaded.model.keys().filter(|name| !here(name) && *name != OPTIONAL);
        let unexpected: Vec<String> = unexpected.cloned().collect();
        let (kept, missing): (Vec<_>, Vec<_>) =
            missing.into_iter().partition(|name| name == OPTIONAL);
        let complaint =
            [("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped)]
                .into_iter()
                .filter(|(_, names)| !names.is_empty())
                .map(|(what, names)| format!("{} {what} ({})", names.len(), some_of(&names)))
                .collect::<Vec<_>>();
        if !complaint.is_empty() {
            let complaint = complaint.join(", ");
            return Err(format!(
                "its parameters are not those of the manifest's model: {complaint}; use a checkpoint of \
                 the same model"
            ));
        }
        let [params, ..] = self.buffers();
        for entry in entries {
            if let Some((_, values)) = loaded.model.get(&entry.name) {
                put(params, entry.offset, values);
            }
        }
        self.pristine = false;
        Ok(kept)
    }

    /// Copies the parameters for a checkpoint, by OpenCLIP's names.
    pub(super) fn model_copy(&self) -> Vec<checkpoint::NamedTensor> {
        let params = self.clip.params();
        params
            .entries()
            .iter()
            .map(|entry| checkpoint::NamedTensor {
                name: entry.name.clone(),
                shape: entry.shape.clone(),
                values: get(params.flat(), entry.offset..entry.offset + entry.len),
            })
            .collect()
    }

    /// Copies this rank's slice of the optimizer state, by parameter name.
    pub(super) fn optimizer_copy(
        &self,
        rank: usize,
        world_size: usize,
    ) -> Vec<checkpoint::OptimSlice> {
        let params = self.clip.params();
        let total = params.flat().numel();
        let slice = total * rank / world_size..total * (rank + 1) / world_size;
        let mut copies = Vec::new();
        for entry in params.entries() {
            let start = entry.offset.max(slice.start);
            let end = (entry.offset + entry.len).min(slice.end);
            if start < end {
                copies.push(checkpoint::OptimSlice {
                    name: entry.name.clone(),
                    start: start - entry.offset,
                    exp_avg: get(&self.adamw.exp_avg, start..end),
                    exp_avg_sq: get(&self.adamw.exp_avg_sq, start..end),
                });
            }
        }
        copies
    }

    /// Sets the gradients of t′ and β, which every rank knows in full without a reduction.
    pub(super) fn set_logit_gradients(&self, log_scale: f64, bias: f64) {
        let params = self.clip.params();
        let range = params.range(Tower::Head);
        let _ = params.grad().narrow(0, range.start as i64, range.len() as i64).zero_();
        for (name, value) in [("logit_scale", log_scale), ("logit_bias", bias)] {
            if let Some(entry) = params.entry(name) {
                let _ = params.grad().narrow(0, entry.offset as i64, 1).fill_(value);
            }
        }
    }
}

/// Names for people: the first few, and how many more there are.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let more = names.len().saturating_sub(SHOWN);
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

fn part(buffer: &Tensor, range: Range<usize>) -> Tensor {
    buffer.narrow(0, range.start as i64, range.len() as i64)
}

fn put(buffer: &Tensor, offset: usize, values: &[f32]) {
    part(buffer, offset..offset + values.len()).copy_(&Tensor::from_slice(values));
}

fn get(buffer: &Tensor, range: Range<usize>) -> Vec<f32> {
    let mut values = vec![0.0; range.len()];
    let host = part(buffer, range).to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
    let len = values.len();
    host.copy_data(&mut values, len);
    values
}
