//! The steps of one generation, top to bottom: data, step, apply, and what follows.

use std::sync::Arc;
use std::time::Instant;

use ringmaster_data::{Loader, LoaderOptions, corrupt};
use ringmaster_proto::v1::{Generation, Phase, StepMetrics};

use super::after_step::Due;
use super::context::Context;
use super::step::{self, Ready};
use crate::collective::{self, Collective};
use crate::error::Error;
use crate::faults::FaultPoint;
use crate::rank::{Rank, preprocess};
use crate::replica::Applied;
use crate::report::clock::{Clock, Rates};
use crate::split::even_range;

/// Steps between log lines and between the intervals that throughput is averaged over.
const LOG_EVERY: u64 = 10;

/// Why the steps of a generation ended.
pub(super) enum Ended {
    Complete,
    Stopped,
}

impl Rank {
    /// The steps of one generation.
    pub(super) fn train(
        &mut self,
        generation: Generation,
        collective: &dyn Collective,
        counts: &[usize],
    ) -> Result<Ended, Error> {
        let total = self.job.schedule.total_steps;
        let mut loader = self.start_loader(collective)?;
        let mut clock = Clock::start();
        let corrupt_limit = corrupt::limit(self.dataset.len(), self.job.data.max_corrupt);
        while self.replica.applied < total {
            // Data.
            self.control.status(|status| status.phase = Phase::Data.into());
            let waiting = Instant::now();
            // Waits for this rank's own readers, never for another rank.
            let batch = loader.next()?;
            clock.data += waiting.elapsed().as_secs_f64();
            let spent = loader.take_spent();
            clock.spent.store += spent.store;
            clock.spent.decode += spent.decode;

            // Forward, loss, backward, reduction; ends with *ready*.
            let context = Context {
                job: &self.job,
                collective,
                control: &self.control,
                faults: &self.faults,
                device: self.device,
                counts,
                plan: &self.plan,
                corrupt_limit,
            };
            let stop = self.interrupt.stop_requested();
            let ready = step::run(&context, &mut self.replica, &batch, stop)?;
            self.faults.strike(self.replica.applied + 1, FaultPoint::BeforeApply);

            // Apply: every rank alone, nothing can interrupt it.
            self.control.status(|status| status.phase = Phase::Apply.into());
            let applied = self.replica.apply(&self.job)?;
            self.faults.strike(self.replica.applied, FaultPoint::AfterApply);
            if self.faults.corrupts(self.replica.applied) {
                self.replica.corrupt()?;
            }
            clock.comm += collective::take_waited();
            clock.samples += u64::from(self.job.batch.global);

            // What follows a step: metrics, checkpoint, evaluation.
            self.report(generation, &ready, applied, &mut clock)?;
            // The wish to stop went through *ready*: all ranks leave after the same step.
            if ready.stop {
                return Ok(Ended::Stopped);
            }
            // What is due is a function of the job and the step, so that all ranks enter its collectives.
            self.follow_up(generation, Due::after(&self.job, self.replica.applied), collective)?;
        }
        Ok(Ended::Complete)
    }

    fn start_loader(&self, collective: &dyn Collective) -> Result<Loader, Error> {
        let global_batch = self.job.batch.global;
        let rows = even_range(global_batch as usize, collective.rank(), collective.world_size());
        Ok(Loader::start(LoaderOptions {
            dataset: Arc::clone(&self.dataset),
            global_batch: global_batch.into(),
            rows: rows.start as u64..rows.end as u64,
            first_step: self.replica.applied,
            first_sample: self.replica.samples(&self.job),
            last_step: self.job.schedule.total_steps,
            preprocess: preprocess(&self.job),
            tokenizer: Arc::clone(&self.tokenizer),
            aug: self.job.data.aug_cfg.clone(),
            jpeg_scaled_decode: self.job.data.jpeg_scaled_decode,
            seed: self.job.data.seed,
            readers: self.readers(),
            prefetch: 3,
            memory: self.job.data.memory.unwrap_or(self.memory),
            left_out: self.replica.left_out.clone(),
            ledger: self.replica.ledger.clone(),
            max_corrupt: self.job.data.max_corrupt,
        })?)
    }

    fn report(
        &mut self,
        generation: Generation,
        ready: &Ready,
        applied: Applied,
        clock: &mut Clock,
    ) -> Result<(), Error> {
        let known = (ready.loss, ready.order_digest);
        clock.add_busy(&ready.busy);
        let metrics = self.step_metrics(generation, known, applied, clock.rates());
        let step = metrics.step;
        self.replica.metrics = Some(metrics);
        if let Some(run) = &mut self.run {
            run.step(&metrics)?;
        }
        if step.is_multiple_of(LOG_EVERY) || step == metrics.total_steps {
            if self.run.is_some() {
                log_line(&metrics);
                self.say_bottleneck(&clock.rates());
            }
            *clock = Clock::start();
        }
        let first = self.run.is_some();
        self.control.status(|status| {
            status.step = step;
            if first {
                status.metrics = Some(metrics);
            }
        });
        Ok(())
    }
}

impl Rank {
    /// Says what steps have waited for of late, when it is not what was said last.
    fn say_bottleneck(&mut self, rates: &Rates) {
        if let Some(now) = self.bottleneck.interval(rates) {
            tracing::info!("{}", now.sentence(rates, self.readers()));
        }
    }
}

fn log_line(m: &StepMetrics) {
    let slowest = match m.slowest_rank.zip(m.slowest_over_median) {
        Some((rank, ratio)) => format!(" | slowest rank {rank} ({ratio:.2} × median)"),
        None => String::new(),
    };
    tracing::info!(
        "step {}/{} | samples {} | loss {:.4} | logit_scale {:.3} | logit_bias {:.3} | lr {:.3e} | \
         grad_norm {:.3} | {:.1} samples/s | data {:.0} % compute {:.0} % comm {:.0} %{}",
        m.step,
        m.total_steps,
        m.samples,
        m.loss,
        m.logit_scale,
        m.logit_bias.unwrap_or(0.0),
        m.lr,
        m.grad_norm,
        m.samples_per_second,
        m.data_share * 100.0,
        m.compute_share * 100.0,
        m.comm_share * 100.0,
        slowest,
    );
}
