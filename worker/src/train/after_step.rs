//! What a step boundary asks for besides the next step: checkpoints, evaluations, the end.

use ringmaster_checkpoint as checkpoint;
use ringmaster_manifest::spec::TrainJob;
use ringmaster_proto::v1::{FinishRequest, Generation, JoinReply, NoteKind, Phase, StateSource};
use tch::Tensor;

use crate::collective::{Collective, ReduceOp};
use crate::control::history;
use crate::error::Error;
use crate::eval;
use crate::faults::FaultPoint;
use crate::rank::{Rank, preprocess};
use crate::report::{self, Summary};

/// What the manifest asks for after a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Due {
    checkpoint: bool,
    evaluation: bool,
}

impl Due {
    /// Returns what `job` asks for once `step` steps are applied; the same on every rank.
    pub(crate) fn after(job: &TrainJob, step: u64) -> Self {
        let total = job.schedule.total_steps;
        Self::at(step, total, job.checkpoint.every_steps, job.eval.every_steps)
    }

    fn at(step: u64, total: u64, checkpoint_every: u64, eval_every: Option<u64>) -> Self {
        if step == 0 || step >= total {
            return Self::default();
        }
        Self {
            checkpoint: step.is_multiple_of(checkpoint_every),
            evaluation: eval_every.is_some_and(|every| step.is_multiple_of(every)),
        }
    }
}

impl Rank {
    /// Does what is due after the step applied last.
    pub(crate) fn follow_up(
        &mut self,
        generation: Generation,
        due: Due,
        collective: &dyn Collective,
    ) -> Result<(), Error> {
        if due.checkpoint {
            self.save(collective)?;
        }
        if due.evaluation {
            self.evaluate(generation, collective)?;
        }
        Ok(())
    }

    /// A fault may have struck between a step and what was due after it: does what is missing.
    pub(crate) fn catch_up(
        &mut self,
        generation: Generation,
        reply: &JoinReply,
        collective: &dyn Collective,
    ) -> Result<(), Error> {
        let due = Due::after(&self.job, self.replica.applied);
        if due == Due::default() {
            return Ok(());
        }
        // Rank 0 has the run folder, so it decides for all what is there already.
        let missing = self.missing(reply)?;
        let flags = Tensor::from_slice(&[
            i64::from(due.checkpoint && missing.checkpoint),
            i64::from(due.evaluation && missing.evaluation),
        ]);
        // collective: all-reduce. All ranks have come here: they agree on the step, and so on what is due.
        collective.all_reduce(&flags, ReduceOp::Max)?.wait()?;
        let wanted = |i: i64| flags.int64_value(&[i]) > 0;
        let due = Due { checkpoint: wanted(0), evaluation: wanted(1) };
        if due != Due::default() {
            let step = self.replica.applied;
            tracing::info!(step, ?due, "doing what was due when the fault struck");
        }
        self.follow_up(generation, due, collective)
    }

    /// Returns what the step applied last lacks, as far as rank 0 knows; nothing elsewhere.
    fn missing(&self, reply: &JoinReply) -> Result<Due, Error> {
        let Some(run) = &self.run else { return Ok(Due::default()) };
        let step = self.replica.applied;
        let stored = reply.source() == StateSource::Stored
            || checkpoint::step_of(&reply.checkpoint_hint) == Some(step);
        let evaluated = run.evaluations_at(step)? >= self.eval_sets.len();
        Ok(Due { checkpoint: !stored, evaluation: !evaluated })
    }

    fn save(&mut self, collective: &dyn Collective) -> Result<(), Error> {
        self.control.status(|status| status.phase = Phase::Save.into());
        let saving = self.saving.as_mut().expect("every attempt starts a writer");
        saving.save(&self.replica, collective)
    }

    /// Returns the URL of the run's last checkpoint.
    fn save_last(&mut self, collective: &dyn Collective) -> Result<Option<String>, Error> {
        self.control.status(|status| status.phase = Phase::Save.into());
        let saving = self.saving.take().expect("every attempt starts a writer");
        saving.save_last(&self.replica, collective)
    }

    fn evaluate(
        &mut self,
        generation: Generation,
        collective: &dyn Collective,
    ) -> Result<(), Error> {
        self.control.status(|status| status.phase = Phase::Eval.into());
        self.faults.strike(self.replica.applied, FaultPoint::InEval);
        let preprocess = preprocess(&self.job);
        // All ranks have the same sets in the same order, and score each of them together.
        for set in &self.eval_sets {
            let clip = &self.replica.clip;
            let scores = eval::evaluate(clip, &self.tokenizer, collective, set, &preprocess)?;
            if let Some(run) = &mut self.run {
                let step = self.replica.applied;
                run.eval(step, self.replica.samples(&self.job), &scores)?;
                let said = history::evaluation(step, &scores);
                tracing::info!("{said}");
                self.history.note(generation, NoteKind::Evaluation, said);
            }
        }
        Ok(())
    }

    /// Last checkpoint, evaluation, report; all ranks leave together, so that a rank lost now can
    /// still be replaced.
    pub(crate) fn finish(
        &mut self,
        generation: Generation,
        collective: &dyn Collective,
    ) -> Result<(), Error> {
        let checkpoint = self.save_last(collective)?;
        self.faults.strike(self.replica.applied, FaultPoint::BeforeLastEval);
        self.evaluate(generation, collective)?;
        self.control.status(|status| status.phase = Phase::Done.into());
        if let Some(summary) = self.write_report(checkpoint, true)? {
            self.client.finish(FinishRequest {
                job_id: self.env.job_id.clone(),
                generation: Some(generation),
                summary_json: summary.to_json(),
            })?;
            self.faults.strike(self.replica.applied, FaultPoint::AfterFinish);
        }
        // collective: barrier. The others wait for rank 0, which writes the report and hands it in: should it
        // be lost before that, they still hold the state.
        collective.barrier()?;
        Ok(())
    }

    /// Asked to stop: one last checkpoint at this step boundary, and a report of what was done.
    pub(crate) fn stop(&mut self, collective: &dyn Collective) -> Result<(), Error> {
        tracing::info!(step = self.replica.applied, "stopping as asked, after a checkpoint");
        let checkpoint = self.save_last(collective)?;
        self.write_report(checkpoint, false)?;
        // collective: barrier. The others wait for rank 0, which writes the report.
        collective.barrier()?;
        Ok(())
    }

    /// Writes `summary.json` and `report.html`; none where this is not rank 0.
    fn write_report(
        &mut self,
        checkpoint: Option<String>,
        finished: bool,
    ) -> Result<Option<Summary>, Error> {
        let Some(run) = self.run.take() else { return Ok(None) };
        let summary = run.finish(&report::Ending {
            finished,
            steps: self.replica.applied,
            samples: self.replica.samples(&self.job),
            resumed_samples: self.replica.resumed_samples,
            training_seconds: None,
            substituted: self.replica.ledger.replaced(),
            damaged_shards: self.dataset.damaged().count() as u64,
            checkpoint,
        })?;
        tracing::info!("{}", summary.to_text());
        Ok(Some(summary))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_due_at_either_end_of_a_run() {
        let due = |step| Due::at(step, 20, 5, Some(10));
        assert_eq!(due(0), Due::default());
        assert_eq!(due(5), Due { checkpoint: true, evaluation: false });
        assert_eq!(due(7), Due::default());
        assert_eq!(due(10), Due { checkpoint: true, evaluation: true });
        assert_eq!(due(20), Due::default(), "the end of the run does both anyway");
        assert_eq!(Due::at(10, 20, 5, None), Due { checkpoint: true, evaluation: false });
    }
}
