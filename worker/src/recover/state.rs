//! Whose state the ranks of a generation go on from: a survivor's, a checkpoint's, or that of step 0.

use std::time::Instant;

use ringmaster_checkpoint as checkpoint;
use ringmaster_manifest::resume_conflict;
use ringmaster_proto::RingRank;
use ringmaster_proto::v1::{Generation, JoinReply, StateSource};

use crate::collective::Collective;
use crate::error::Error;
use crate::rank::Rank;
use crate::replica::Replica;
use crate::replica::agreement;
use crate::report::clock::Rates;

impl Rank {
    /// Catches up with the survivors that applied the step whose gradients this rank holds.
    pub(crate) fn apply_held(&mut self, generation: Generation) -> Result<(), Error> {
        let Some(held) = self.replica.held.clone() else {
            let what = "told to apply gradients that this rank does not hold".to_owned();
            return Err(Error::Internal { what });
        };
        let step = self.replica.applied + 1;
        tracing::info!(step, "applying the gradients held since the fault");
        self.joined_digest = None;
        let applied = self.replica.apply(&self.job)?;
        // Nobody measured this step's speed; the one before stands in for it.
        let rates = self.replica.metrics.as_ref().map_or_else(Rates::default, Rates::of);
        let known = (held.loss, held.order_digest);
        self.replica.metrics = Some(self.step_metrics(generation, known, applied, rates));
        Ok(())
    }

    /// Everybody leaves with the state of the source: a survivor's, a checkpoint's, or step 0. From then on it is
    /// this generation's.
    pub(crate) fn agree_on_state(
        &mut self,
        generation: Generation,
        reply: &JoinReply,
        collective: &dyn Collective,
    ) -> Result<(), Error> {
        let source = RingRank(reply.source_rank).index();
        let stored = reply.source() == StateSource::Stored;
        // One rank reads for all. The others wait for it in the first broadcast below; if it fails, it breaks
        // the ring, which ends their wait.
        if stored && collective.rank() == source {
            self.replica.agreed = None;
            self.load_stored(generation, reply)?;
        }
        // The same on every rank: also those that hold the state take part in the broadcast.
        if stored || !reply.receivers.is_empty() {
            self.receive_state(reply, source, collective)?;
        }
        self.compare_states(collective)?;
        self.replica.agreed = Some(generation);
        Ok(())
    }

    /// Takes part in the handing over of the source's state.
    fn receive_state(
        &mut self,
        reply: &JoinReply,
        source: usize,
        collective: &dyn Collective,
    ) -> Result<(), Error> {
        let began = Instant::now();
        let stored = reply.source() == StateSource::Stored;
        let rank = collective.rank();
        let own = reply.apply_held.then(|| self.replica.digest());
        // What the source of a live state holds does not change.
        if stored || rank != source {
            self.joined_digest = None;
        }
        let overwrites = stored || reply.receivers.contains(&(rank as u32));
        self.replica.receive(source, overwrites, collective)?;
        let step = self.replica.applied;
        if let Some(own) = own {
            let received = self.replica.digest();
            self.joined_digest = Some(received);
            if own == received {
                tracing::info!(step, source, "the gradients held gave the same state")
            } else {
                tracing::warn!(
                    step,
                    source,
                    "the gradients held gave another state; this node or the source's \
                     computes or stores wrongly"
                )
            }
        }
        tracing::info!(
            step,
            source,
            live = !stored,
            milliseconds = began.elapsed().as_millis() as u64,
            "state received"
        );
        Ok(())
    }

    /// Makes sure that all ranks hold the same state before they train on it: what was handed over or applied may
    /// have been damaged on the way, and survivors may never have held the same.
    fn compare_states(&mut self, collective: &dyn Collective) -> Result<(), Error> {
        let known = self.joined_digest.take();
        if collective.world_size() == 1 {
            return Ok(());
        }
        let digest = known.unwrap_or_else(|| self.replica.digest());
        agreement::compare(digest, self.replica.applied, collective)
    }

    /// The checkpoint this job was rolled back to, or what followed it; else its newest one, else that
    /// of the job it resumes from, else step 0.
    fn load_stored(&mut self, generation: Generation, reply: &JoinReply) -> Result<(), Error> {
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
            let other = self.check_order(generation, &url, chosen_is_own, &loaded.state)?;
            self.replica.load(&loaded, self.job.batch.global.into())?;
            if other {
                self.replica.forget_samples();
            }
            self.replica.resumed_samples = resumed_samples(&loaded.state, chosen_is_own);
            return Ok(());
        }
        if let Some(resume) = resume {
            let what = format!("{resume} holds no complete checkpoint to resume from");
            return Err(Error::NoCheckpoint { url: resume.to_owned(), what });
        }
        if !hint.is_empty() {
            let what = format!(
                "{hint} was published, but no checkpoint of this job verifies any more; the log says \
                 what is damaged. Submit the job again to start anew"
            );
            return Err(Error::NoCheckpoint { url: hint.to_owned(), what });
        }
        if !self.replica.pristine {
            self.replica = Replica::new(&self.job, self.device)?;
        }
        if let Some(file) = file {
            return self.load_training(&file);
        }
        self.load_pretrained()
    }
}

/// Returns the samples that another job had consumed before this one goes on from `state`.
fn resumed_samples(state: &checkpoint::State, is_own: bool) -> u64 {
    if is_own { state.resumed_samples } else { state.samples }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A run of 75 steps of 64, gone on with at 128 samples a step: 4,800 samples that nobody saw
    /// counted for its speed.
    #[test]
    fn samples_of_the_run_before_are_those_it_consumed_whatever_the_batch_is_now() {
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
        let data = checkpoint::DataState::default();
        let mut state = checkpoint::State::describe(&job, generation, 2, plan, data, versions);
        state.advance_to(75);
        assert_eq!(resumed_samples(&state, false), 4800);
        state.resumed_samples = 640;
        assert_eq!(resumed_samples(&state, true), 640);
    }
}
