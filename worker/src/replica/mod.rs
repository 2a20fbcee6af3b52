//! What every rank holds a copy of: parameters, optimizer state, and how far they are.

pub(crate) mod agreement;
pub(crate) mod openclip;
pub mod snapshot;

use std::ops::Range;

use prost::Message as _;
use ringmaster_checkpoint::{self as checkpoint, Corrupt, Ledger, Moment};
use ringmaster_data::order::Windows;
use ringmaster_manifest::MAX_LOGIT_SCALE;
use ringmaster_manifest::spec::{self, TrainJob};
use ringmaster_proto::v1::{Generation, StepMetrics};
use ringmaster_weights::Weights;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::error::Error;

use crate::collective::{Collective, bytes};
use crate::factory;
use crate::factory::load::{self, Misfit, MissingBias};
use crate::factory::loadable::Loadable as _;
use crate::model::{Clip, LogitInit, Tower};
use crate::optim::adamw::{AdamW, Update, clip_factor};
use crate::optim::norm::squared_norm;
use crate::optim::schedule::learning_rate;
use snapshot::Portion;

/// One rank's copy of the training state.
#[derive(Debug)]
pub(crate) struct Replica {
    pub clip: Clip,
    adamw: AdamW,
    decay: Vec<(Range<usize>, bool)>,
    /// Steps applied.
    pub applied: u64,
    /// Updates of the optimizer, which corrects its moments by them: other than the steps after a run with another
    /// batch.
    pub updates: u64,
    /// Samples consumed that are not steps of this job's batch: what a run with another batch left over.
    pub samples_before: u64,
    /// The gradients of step `applied + 1` are reduced and kept, and this rank entered *ready*.
    pub held: Option<HeldStep>,
    /// The newest generation at whose beginning this state's rank and its whole ring held the same; the state comes
    /// from it. None for a state that nobody else was ever seen to hold, and while it is being overwritten.
    pub agreed: Option<Generation>,
    /// Nothing has been written over the initial values.
    pub pristine: bool,
    /// Samples of the run that no step takes.
    pub left_out: Windows,
    /// Corrupt samples met so far, by all ranks.
    pub ledger: Ledger,
    /// Samples that the run this one resumed from had consumed.
    pub resumed_samples: u64,
    /// Of the step applied last: rank 0 may have died before it wrote them down.
    pub metrics: Option<StepMetrics>,
}

/// What a rank that entered *ready* knows of the step beside its gradients: enough to write the
/// step down if it applies it alone.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HeldStep {
    /// Of the global batch.
    pub loss: f64,
    /// Which sample stood in which row of the global batch.
    pub order_digest: u64,
    /// Rows of the step whose sample was replaced: they count once it is applied.
    pub replaced: u64,
    /// Corrupt samples met in the step, by all ranks.
    pub corrupt: Vec<Corrupt>,
}

/// What travels beside the flat buffers when a state is handed over.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    applied: u64,
    updates: u64,
    samples_before: u64,
    resumed_samples: u64,
    left_out: Vec<[u64; 2]>,
    ledger: Ledger,
    /// An encoded `StepMetrics`; empty for none.
    metrics: Vec<u8>,
}

/// What applying a step tells.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Applied {
    pub lr: f64,
    pub grad_norm: f64,
}

impl Replica {
    /// Returns the state at step 0, the same on every rank.
    pub(crate) fn new(job: &TrainJob, device: Device) -> Result<Self, Error> {
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
            updates: 0,
            samples_before: 0,
            held: None,
            agreed: None,
            pristine: true,
            left_out: Windows::default(),
            ledger: Ledger::default(),
            resumed_samples: 0,
            metrics: None,
        })
    }

    /// Applies the reduced gradients it holds. No collective, no abort: whoever passed *ready*
    /// may do this alone and all replicas stay equal.
    pub(crate) fn apply(&mut self, job: &TrainJob) -> Result<Applied, Error> {
        let grad_norm = squared_norm(self.clip.params().grad()).sqrt();
        let lr = learning_rate(&job.schedule, job.optimizer.lr, self.applied);
        let update = Update {
            lr,
            beta1: job.optimizer.beta1,
            beta2: job.optimizer.beta2,
            eps: job.optimizer.eps,
            weight_decay: job.optimizer.weight_decay,
            grad_factor: clip_factor(grad_norm, job.optimizer.grad_clip_norm),
            step: self.updates + 1,
        };
        let params = self.clip.params();
        self.adamw.apply(params.flat(), params.grad(), &self.decay, update)?;
        if job.loss.clamp_logit_scale {
            let entry = params.entry("logit_scale").expect("every model has a logit_scale");
            let mut scale = params.flat().narrow(0, entry.offset as i64, entry.len as i64);
            // As OpenCLIP does.
            let _ = scale.f_clamp_(0.0, MAX_LOGIT_SCALE)?;
        }
        if let Some(held) = self.held.take() {
            self.ledger.merge(held.replaced, &held.corrupt);
        }
        self.applied += 1;
        self.updates += 1;
        self.pristine = false;
        Ok(Applied { lr, grad_norm })
    }

    /// Forgets which samples were corrupt or left out: their numbers mean nothing in other data.
    pub(crate) fn forget_samples(&mut self) {
        let replaced = self.ledger.replaced();
        self.ledger = Ledger::default();
        self.ledger.merge(replaced, &[]);
        self.left_out = Windows::default();
    }

    /// Returns the samples consumed.
    pub(crate) fn samples(&self, job: &TrainJob) -> u64 {
        job.samples(self.applied).saturating_add(self.samples_before)
    }

    /// Returns a digest of parameters and optimizer state: equal on replicas that agree.
    pub(crate) fn digest(&self) -> u64 {
        snapshot::digest(self.applied, self.buffers(), threads())
    }

    /// Copies a rank's portion of the state into `memory` and returns the digest of the whole.
    pub(crate) fn capture(&self, portion: &Portion, memory: &mut [u8]) -> u64 {
        snapshot::capture(self.applied, self.buffers(), portion, memory, threads())
    }

    /// Damages one weight, as failing memory would, for tests.
    pub(crate) fn corrupt(&mut self) -> Result<(), Error> {
        let _ = self.clip.params().flat().f_narrow(0, 0, 1)?.f_add_scalar_(1.0)?;
        Ok(())
    }

    fn buffers(&self) -> [&Tensor; 3] {
        [self.clip.params().flat(), &self.adamw.exp_avg, &self.adamw.exp_avg_sq]
    }

    /// Hands the state of `source` to every rank. A receiver, whose state this `overwrites`, holds nothing from
    /// then on until the ring has compared its states; the others hold these bits already.
    pub(crate) fn receive(
        &mut self,
        source: usize,
        overwrites: bool,
        collective: &dyn Collective,
    ) -> Result<(), Error> {
        let header = Header {
            applied: self.applied,
            updates: self.updates,
            samples_before: self.samples_before,
            resumed_samples: self.resumed_samples,
            left_out: self.left_out.stored(),
            ledger: self.ledger.clone(),
            metrics: self.metrics.map(|m| m.encode_to_vec()).unwrap_or_default(),
        };
        let text = serde_json::to_vec(&header).expect("plain data serialises");
        // collective: broadcast of what lies beside the buffers. Waits for the source, which may still be
        // reading a checkpoint.
        let text = bytes::broadcast(&text, source, collective)?;
        let header: Header = serde_json::from_slice(&text)
            .map_err(|e| Error::Internal { what: format!("state header: {e}") })?;
        let left_out = Windows::try_from(&header.left_out[..])
            .map_err(|e| Error::Internal { what: format!("state header: {e}") })?;
        // Between here and the end the buffers are a mixture, unless they already held these bits.
        if overwrites {
            self.agreed = None;
        }
        self.pristine = false;
        for buffer in self.buffers() {
            // collective: broadcast of one flat buffer, the same three in the same order on every rank.
            collective.broadcast(buffer, source)?.wait()?;
        }
        // On a device the buffers are whole only now.
        collective.settle()?;
        self.applied = header.applied;
        self.updates = header.updates;
        self.samples_before = header.samples_before;
        self.resumed_samples = header.resumed_samples;
        self.metrics = StepMetrics::decode(header.metrics.as_slice()).ok().filter(|m| m.step > 0);
        self.left_out = left_out;
        self.ledger = header.ledger;
        self.held = None;
        Ok(())
    }

    /// Takes over a checkpoint, for a job with this global batch: the run goes on after as many samples, whatever the
    /// steps were.
    pub(crate) fn load(
        &mut self,
        loaded: &checkpoint::Loaded,
        global_batch: u64,
    ) -> Result<(), Error> {
        let samples = loaded.state.samples;
        let left_out = Windows::try_from(&loaded.state.data.left_out[..])
            .map_err(|e| Error::Checkpoint { what: e.to_string() })?;
        self.agreed = None;
        self.pristine = false;
        let [params, exp_avg, exp_avg_sq] = self.buffers();
        for entry in self.clip.params().entries() {
            let value = loaded.parameter(&entry.name).ok_or_else(|| Error::Checkpoint {
                what: format!("it has no {}, which the model needs", entry.name),
            })?;
            if value.shape() != entry.shape {
                let (name, shape, wanted) = (&entry.name, value.shape(), &entry.shape);
                let what = format!(
                    "{name} has shape {shape:?} in the checkpoint and {wanted:?} in the model"
                );
                return Err(Error::Checkpoint { what });
            }
            value.put(params, entry.offset);
            for (buffer, moment) in [exp_avg, exp_avg_sq].into_iter().zip(Moment::ALL) {
                for (start, slice) in loaded.moment(moment, &entry.name) {
                    slice.put(buffer, entry.offset + start);
                }
            }
        }
        (self.applied, self.samples_before) = (samples / global_batch, samples % global_batch);
        self.updates = loaded.state.updates;
        self.metrics = None;
        self.left_out = left_out;
        self.ledger = loaded.state.data.ledger.clone();
        self.held = None;
        Ok(())
    }

    /// Takes over a training checkpoint of OpenCLIP's. A step is a global batch, here and there.
    ///
    /// # Errors
    /// What does not fit, or is not there.
    pub(crate) fn load_training(
        &mut self,
        file: &Weights,
        global_batch: u64,
    ) -> Result<openclip::Resumed, factory::Error> {
        self.agreed = None;
        self.pristine = false;
        let resumed = openclip::resume(&self.clip, &self.adamw, file)?;
        self.applied = resumed.step;
        self.updates = resumed.step;
        self.samples_before = 0;
        self.resumed_samples = resumed.step.saturating_mul(global_batch);
        self.metrics = None;
        self.held = None;
        Ok(resumed)
    }

    /// Takes over the weights of a checkpoint of any job, t′ and β among them: what the checkpoint says
    /// goes before the manifest. A loss that has no β ignores it, and one that needs it and does not find
    /// it keeps what it has. Nothing is taken unless everything fits; returns what was done to make it fit.
    ///
    /// # Errors
    /// What does not fit.
    pub(crate) fn load_weights(
        &mut self,
        loaded: &checkpoint::Loaded,
    ) -> Result<Vec<String>, Misfit> {
        let notes = load::load(&self.clip, &load::of_checkpoint(loaded), MissingBias::Kept)?;
        self.pristine = false;
        Ok(notes)
    }

    /// Sets the gradients of t′ and β, which every rank knows in full without a reduction.
    pub(crate) fn set_logit_gradients(&self, log_scale: f64, bias: f64) {
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

/// Threads that a pass over the state may use: as many as libtorch.
fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}
