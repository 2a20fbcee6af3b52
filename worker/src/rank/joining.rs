//! How a rank enters a generation: it joins, connects, and leaves with the state that all continue
//! from.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use ringmaster_checkpoint as checkpoint;
use ringmaster_manifest::resume_conflict;
use ringmaster_proto::v1::{Generation, HeldState, JoinReply, JoinRequest, StateSource};
use tch::Device;

use super::Error;
use super::plan::NumericPlan;
use super::replica::Replica;
use super::step::Rates;
use super::train::Rank;
use crate::collective::nccl::{self, Nccl, UniqueId};
use crate::collective::tcp::{AbortFlag, Options, Tcp, Tls};
use crate::collective::{ByDevice, Collective, Solo};

/// Time all peers have to connect once they know one another.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for their GPUs: NCCL explores the network first.
const COMMUNICATOR_TIMEOUT: Duration = Duration::from_secs(120);
/// Time their GPUs have to drop all work when the ring breaks.
const ABORT_DEADLINE: Duration = Duration::from_secs(20);

impl Rank {
    pub(super) fn join(
        &self,
        generation: Generation,
        listener: &TcpListener,
        interruptions: u64,
    ) -> Result<JoinReply, Error> {
        let held = self.replica.complete.then(|| HeldState {
            applied_step: self.replica.applied,
            digest: self.replica.digest(),
            entered_ready: self.replica.held.is_some(),
        });
        let plan = NumericPlan::propose(&self.job, &self.env, self.device);
        let data_address = listener
            .local_addr()
            .map_err(|source| Error::Listen { address: self.env.address.clone(), source })?
            .to_string();
        let request = JoinRequest {
            job_id: self.env.job_id.clone(),
            generation: Some(generation),
            rank: self.env.rank,
            data_address,
            held,
            numeric_plan: serde_json::to_string(&plan).expect("a plan is plain data"),
            communicator_id: self.communicator_id()?,
        };
        Ok(self.client.join_unless_interrupted_since(request, interruptions)?)
    }

    /// What the GPUs' communicator of the next generation is formed with. Every rank makes one, since
    /// which of them is first in the ring is known only once all have joined; the others' are dropped.
    fn communicator_id(&self) -> Result<Vec<u8>, Error> {
        if self.env.world_size == 1 || self.device == Device::Cpu {
            return Ok(Vec::new());
        }
        let id = UniqueId::create().map_err(|e| Error::Environment { what: e.to_string() })?;
        Ok(id.as_bytes().to_vec())
    }

    pub(super) fn connect(
        &self,
        generation: Generation,
        listener: &TcpListener,
        reply: &JoinReply,
        abort: &AbortFlag,
    ) -> Result<Box<dyn Collective>, Error> {
        if reply.peers.len() == 1 {
            return Ok(Box::new(Solo::new()));
        }
        let options = Options {
            generation,
            rank: reply.rank as usize,
            peers: reply.peers.clone(),
            token: reply.token.clone(),
            connect_timeout: CONNECT_TIMEOUT,
            // Progress is the control plane's to judge: it knows slow from dead.
            deadline: None,
            tls: self.tls()?,
        };
        let host = Tcp::connect(listener, &options, abort)?;
        match self.device {
            Device::Cuda(ordinal) => self.connect_gpus(host, ordinal, reply, abort),
            _ => Ok(Box::new(host)),
        }
    }

    /// Joins the ranks' GPUs beside their connections over `host`.
    fn connect_gpus(
        &self,
        host: Tcp,
        ordinal: usize,
        reply: &JoinReply,
        abort: &AbortFlag,
    ) -> Result<Box<dyn Collective>, Error> {
        let id = UniqueId::from_bytes(&reply.communicator_id).ok_or_else(|| {
            let bytes = reply.communicator_id.len();
            let what = format!(
                "rank 0 sent a communicator id of {bytes} bytes, but NCCL's have {}; all ranks of a \
                 job need accelerator: cuda and the same version of ringmaster-worker",
                UniqueId::LEN
            );
            Error::Environment { what }
        })?;
        // A GPU that has failed once stays failed for this process; another one may do better.
        nccl::check_device(ordinal)
            .map_err(|e| Error::Internal { what: format!("GPU {ordinal} of this node: {e}") })?;
        let options = nccl::Options {
            id,
            rank: host.rank(),
            world_size: host.world_size(),
            ordinal,
            connect_timeout: COMMUNICATOR_TIMEOUT,
            // As for `host`.
            deadline: None,
            abort_deadline: ABORT_DEADLINE,
            on_failure: Some(host.aborter()),
        };
        let device = Nccl::connect(options, abort)?;
        Ok(Box::new(ByDevice::new(Box::new(device), Box::new(host))))
    }

    /// The certificate names the generation, so its file is read anew for each.
    fn tls(&self) -> Result<Option<Tls>, Error> {
        let Some(files) = &self.env.data_tls else { return Ok(None) };
        let tls =
            Tls::from_files(&self.env.job_id, &files.authority, &files.certificate, &files.key)?;
        Ok(Some(tls))
    }

    /// Keeps the plan that the job's first generation fixed, and says where that is impossible.
    pub(super) fn note_numeric_plan(&mut self, reply: &JoinReply) {
        let world_size = reply.world_size as usize;
        let proposed = NumericPlan::propose(&self.job, &self.env, self.device);
        let now = proposed.among(&self.job, world_size);
        let Ok(fixed) = serde_json::from_str::<NumericPlan>(&reply.numeric_plan) else {
            tracing::warn!(plan = reply.numeric_plan, "cannot read the job's numeric plan");
            self.plan = now.keeping(&NumericPlan { ring_group: 1, ..now.clone() });
            return;
        };
        self.plan = now.keeping(&fixed);
        tch::set_num_threads(self.plan.threads.max(1) as i32);
        let departures = self.plan.departures(&fixed);
        if !departures.is_empty() {
            tracing::warn!(
                step = self.replica.applied,
                departures = departures.join("; "),
                "bit-exactness ends here: the numeric plan cannot be kept"
            );
        }
    }

    /// Catches up with the survivors that applied the step whose gradients this rank holds.
    pub(super) fn apply_held(&mut self, generation: Generation) -> Result<(), Error> {
        let Some(held) = self.replica.held.clone() else {
            let what = "told to apply gradients that this rank does not hold".to_owned();
            return Err(Error::Internal { what });
        };
        let step = self.replica.applied + 1;
        tracing::info!(step, "applying the gradients held since the fault");
        let applied = self.replica.apply(&self.job)?;
        // Nobody measured this step's speed; the one before stands in for it.
        let rates = self.replica.metrics.as_ref().map_or_else(Rates::default, Rates::of);
        let known = (held.loss, held.order_digest);
        self.replica.metrics = Some(self.step_metrics(generation, known, applied, rates));
        Ok(())
    }

    /// Everybody leaves with the state of the source: a survivor's, a checkpoint's, or step 0.
    pub(super) fn agree_on_state(
        &mut self,
        reply: &JoinReply,
        collective: &dyn Collective,
    ) -> Result<(), Error> {
        let source = reply.source_rank as usize;
        let stored = reply.source() == StateSource::Stored;
        if stored && collective.rank() == source {
            self.load_stored(reply)?;
        }
        if stored || !reply.receivers.is_empty() {
            let began = Instant::now();
            let own = reply.apply_held.then(|| self.replica.digest());
            self.replica.receive(source, stored, collective)?;
            if let Some(own) = own {
                let step = self.replica.applied;
                match own == self.replica.digest() {
                    true => tracing::info!(step, source, "the gradients held gave the same state"),
                    false => tracing::warn!(
                        step,
                        source,
                        "the gradients held gave another state; this node or the source's \
                         computes or stores wrongly"
                    ),
                }
            }
            tracing::info!(
                step = self.replica.applied,
                source,
                live = !stored,
                milliseconds = began.elapsed().as_millis() as u64,
                "state received"
            );
        }
        Ok(())
    }

    /// The checkpoint this job was rolled back to, or what followed it; else its newest one, else that
    /// of the job it resumes from, else step 0.
    fn load_stored(&mut self, reply: &JoinReply) -> Result<(), Error> {
        let hint = reply.checkpoint_hint.as_str();
        let own = checkpoint::job_url(&self.job.checkpoint.uri, &self.env.job_id);
        let given = self.env.resume_from.clone();
        // A training checkpoint of OpenCLIP's is one file.
        let (file, resume) = match given {
            Some(place) if checkpoint::is_weights(&place) => (Some(place), None),
            place => (None, place),
        };
        let resume = resume.as_deref();
        let chosen = match reply.rolled_back_to.as_str() {
            "" => {
                let places: Vec<&str> = std::iter::once(own.as_str()).chain(resume).collect();
                checkpoint::choose(&places)?
            }
            url => {
                let gives_up = reply.gives_up.unwrap_or_default();
                Some(checkpoint::choose_rolled_back(url, gives_up)?)
            }
        };
        if let Some(chosen) = chosen {
            tracing::info!(url = %chosen.url(), "loading checkpoint");
            let chosen_is_own = chosen.url().starts_with(&own);
            let url = chosen.url();
            self.loaded_from = Some(url.clone());
            let loaded = chosen.load()?;
            if let Some(conflict) = resume_conflict(&loaded.state.manifest, &self.job) {
                return Err(Error::Checkpoint { what: format!("{url}: {conflict}") });
            }
            self.replica.load(&loaded)?;
            self.replica.resumed_samples =
                resumed_samples(&loaded.state, chosen_is_own, self.job.batch.global);
            return Ok(());
        }
        if let Some(resume) = resume {
            let what = format!("{resume} holds no complete checkpoint to resume from");
            return Err(Error::Checkpoint { what });
        }
        if !hint.is_empty() {
            let what = format!(
                "{hint} was published, but no checkpoint of this job verifies any more; the log says \
                 what is damaged. Submit the job again to start anew"
            );
            return Err(Error::Checkpoint { what });
        }
        if !self.replica.pristine {
            self.replica = Replica::new(&self.job, self.device)?;
        }
        if let Some(file) = file {
            return self.load_training(&file);
        }
        self.load_pretrained()?;
        self.replica.complete = true;
        Ok(())
    }
}

/// Returns the samples of the steps that another job had done before this one goes on from `state`,
/// counted in this job's batches, as all of its samples are.
fn resumed_samples(state: &checkpoint::State, is_own: bool, global_batch: u32) -> u64 {
    match is_own {
        true => state.resumed_samples,
        false => state.step * u64::from(global_batch),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A run of 75 steps of 64, gone on with at 128 samples a step: 4,800 samples that nobody saw
    /// counted for its speed.
    #[test]
    fn samples_of_the_run_before_are_counted_in_the_batches_of_this_one() {
        let models = ringmaster_manifest::ModelCatalogue::builtin();
        let yaml = "apiVersion: ringmaster/v1\nkind: TrainJob\nmetadata: {name: tiny}\nspec:\n  \
                    model: {name: ViT-B-32}\n  data: {train: [/data/a.tar], lanes: 8}\n  \
                    loss: {kind: siglip}\n  optimizer: {lr: 1.0e-3}\n  \
                    schedule: {warmup_steps: 2, steps: 80}\n  batch: {global: 64}\n  \
                    checkpoint: {uri: /data/checkpoints}\n";
        let here = std::path::Path::new("/data");
        let job = ringmaster_manifest::parse(yaml, "tiny.yaml", here, &models).unwrap();
        let (plan, versions) = (serde_json::Value::Null, std::collections::BTreeMap::new());
        let generation = Generation::new(1, 1);
        let mut state =
            checkpoint::State::describe(&job, generation, 2, plan, String::new(), versions);
        state.advance_to(75);
        assert_eq!(resumed_samples(&state, false, 64), 4800);
        assert_eq!(resumed_samples(&state, false, 128), 9600);
        state.resumed_samples = 640;
        assert_eq!(resumed_samples(&state, true, 64), 640);
    }
}
