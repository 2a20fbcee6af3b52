//! A rank's life: join a generation, agree on the state, train, and start over when a peer is lost.
//!
//! [`run`] is the outer loop over generations, `Rank::attempt` one generation (how it begins is in
//! `joining.rs`), `Rank::train` the steps, top to bottom; what follows a step is in `boundary.rs`.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringmaster_checkpoint::Memory;
use ringmaster_manifest::spec::TrainJob;
use ringmaster_proto::v1::{Generation, JoinReply, Phase, StepMetrics};
use tch::Device;

use super::Error;
use super::boundary::Due;
use super::client::{self, RanksClient};
use super::control::Control;
use super::counted::Counted;
use super::faults::{Faults, Place};
use super::history::History;
use super::plan::NumericPlan;
use super::replica::{Applied, Replica};
use super::saving::{Saving, Start};
use super::signals::Termination;
use super::step::{self, Clock, Context, Rates, Ready, row_counts};
use super::switch::Switch;
use crate::collective::Collective;
use crate::collective::tcp::AbortFlag;
use crate::data::{self, Dataset, Loader, LoaderOptions, Order, OrderOptions};
use crate::factory::tokenizer::get_tokenizer;
use crate::report::{self, Run};
use crate::{eval, ffi, health};
use ringmaster_agent::env::RankEnv;
use ringmaster_inputs::image::Preprocess;
use ringmaster_inputs::text::Tokenizer;

/// Time a rank whose ring broke waits for the coordinator's next generation before it asks for one.
const REGROUP_PATIENCE: Duration = Duration::from_secs(5);
/// Steps between log lines and between the intervals that throughput is averaged over.
const LOG_EVERY: u64 = 10;

/// Trains until the job ends, over as many generations as that takes.
///
/// # Errors
/// What ends this process; [`Error::retryable`] says whether another one may do better.
pub fn run(env: RankEnv, termination: Termination) -> Result<(), Error> {
    let mut rank = Rank::start(env, termination)?;
    let mut generation = rank.env.generation;
    loop {
        let Err(error) = rank.attempt(generation) else { return Ok(()) };
        rank.machine.tell_news();
        if !error.regroups() {
            return Err(error);
        }
        tracing::warn!(%generation, error = %super::chain(&error), "ring lost, waiting for the next generation");
        rank.control.status(|status| status.phase = Phase::Join.into());
        // Without an order nobody died and the ring broke all the same: joining once more tells the
        // coordinator, which then forms a new generation. It may be away; joining waits for it.
        if let Some(next) = rank.switch.next_generation(generation, REGROUP_PATIENCE) {
            generation = next;
        }
    }
}

/// What a rank keeps over generations.
pub(super) struct Rank {
    pub(super) env: RankEnv,
    pub(super) job: TrainJob,
    pub(super) device: Device,
    pub(super) control: Control,
    pub(super) switch: Arc<Switch>,
    pub(super) client: RanksClient,
    pub(super) history: History,
    pub(super) faults: Faults,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) dataset: Arc<Dataset>,
    pub(super) order: Arc<Order>,
    pub(super) replica: Replica,
    /// How the work is divided; the job's first generation fixes it.
    pub(super) plan: NumericPlan,
    pub(super) eval_sets: Vec<eval::EvalSet>,
    /// Open on the first rank of the ring.
    pub(super) run: Option<Run>,
    pub(super) saving: Option<Saving>,
    /// Where snapshots wait while they are written.
    snapshots: Memory,
    /// Checkpoint that this process took the state from.
    pub(super) loaded_from: Option<String>,
    machine: health::Machine,
    /// This process has been in a ring whose links were measured, or did not have to be.
    pub(super) links_checked: bool,
}

/// Why the steps of a generation ended.
enum Ended {
    Complete,
    Stopped,
}

impl Rank {
    /// Everything that does not depend on the generation.
    fn start(env: RankEnv, termination: Termination) -> Result<Self, Error> {
        let job = read_manifest(&env.manifest_path)?;
        let faults = Faults::parse(env.fault.as_deref(), env.rank)
            .map_err(|what| Error::Environment { what })?;
        let client = RanksClient::start(&env.coordinator)?;
        let switch = Arc::new(Switch::new(env.generation, client.clone()));
        let history = History::new(client.clone(), &env.job_id);
        history.follow_stores(&switch);
        let obeying = Arc::clone(&switch);
        let (control, _commands) =
            Control::connect(&env.agent_socket, &env.job_id, env.rank, move |command| {
                obeying.obey(command);
            })?;
        let told = Arc::clone(&switch);
        termination.forward(move || {
            tracing::info!("SIGTERM: this job stops after a checkpoint at the next step boundary");
            told.request_stop();
        })?;
        control.status(|status| status.phase = Phase::Load.into());
        let threads = env.threads.max(1) as i32;
        tch::set_num_threads(threads);
        tch::set_num_interop_threads(1);
        let device = ffi::cuda::device(job.resources.accelerator, env.local_rank)
            .map_err(|what| Error::Environment { what })?;
        let demand = health::memory::Demand::of(&job, env.local_world_size)?;
        let machine = health::check_machine(device, demand)?;
        let text = &job.model.config.text_cfg;
        let tokenizer = Arc::new(get_tokenizer(text, job.model.tokenizer.as_deref())?);
        let dataset = Arc::new(Dataset::open(data::Options::of(&job.data))?);
        let open_set = |set| eval::EvalSet::open(set, &job.data);
        let eval_sets = job.eval.zero_shot.iter().map(open_set).collect::<Result<_, _>>()?;
        let order = Arc::new(Order::new(dataset.shard_sizes(), OrderOptions::of(&job))?);
        let replica = Replica::new(&job, device)?;
        tracing::info!(
            samples = dataset.len(),
            shards = dataset.shard_sizes().len(),
            parameters = replica.clip.params().entries().iter().map(|e| e.len).sum::<usize>(),
            global_batch = job.batch.global,
            steps = job.schedule.total_steps,
            threads,
            "rank ready"
        );
        let plan = NumericPlan::propose(&job, &env, device);
        Ok(Self {
            plan,
            env,
            job,
            device,
            control,
            switch,
            client,
            history,
            faults,
            tokenizer,
            dataset,
            order,
            replica,
            eval_sets,
            run: None,
            saving: None,
            snapshots: Memory::default(),
            loaded_from: None,
            machine,
            links_checked: false,
        })
    }

    /// One generation: form the ring, agree on the state, train to the end.
    fn attempt(&mut self, generation: Generation) -> Result<(), Error> {
        let interruptions = self.client.interruptions();
        let abort = self.switch.arm(generation);
        // The snapshot of an older generation can no longer be published.
        self.saving = None;
        self.control.status(|status| {
            status.phase = Phase::Join.into();
            status.generation = Some(generation);
            // Only the ring's first rank reports them, and that may be another one from now on.
            status.metrics = None;
        });
        let listener = TcpListener::bind((self.env.address.as_str(), 0))
            .map_err(|source| Error::Listen { address: self.env.address.clone(), source })?;
        let reply = self.join(generation, &listener, interruptions)?;
        let collective = self.connect(generation, &listener, &reply, &abort)?;
        let collective: &dyn Collective = &Counted::begin(collective);
        self.switch.attach(collective.aborter());
        self.note_numeric_plan(&reply);
        self.in_ring(generation, &reply, &abort, collective)
    }

    /// [`Rank::attempt`]'s part inside a ring. A rank that fails by itself breaks the ring, so that
    /// its peers notice at once instead of waiting for it in their next collective.
    fn in_ring(
        &mut self,
        generation: Generation,
        reply: &JoinReply,
        abort: &AbortFlag,
        collective: &dyn Collective,
    ) -> Result<(), Error> {
        let result = self.run_generation(generation, reply, abort, collective);
        if let Err(error) = &result {
            collective.aborter().abort(&super::chain(error));
        }
        result
    }

    fn run_generation(
        &mut self,
        generation: Generation,
        reply: &JoinReply,
        abort: &AbortFlag,
        collective: &dyn Collective,
    ) -> Result<(), Error> {
        self.control.status(|status| status.phase = Phase::Load.into());
        self.check_links(generation, reply, collective)?;
        if reply.apply_held {
            self.apply_held(generation)?;
        }
        self.agree_on_state(reply, collective)?;
        self.control.status(|status| status.step = self.replica.applied);

        let counts = row_counts(&self.job, collective.world_size());
        match collective.rank() {
            0 => self.open_run(generation, collective.world_size())?,
            // It may have been first in an earlier ring.
            _ => self.run = None,
        }
        let rolled_back_to = Some(reply.rolled_back_to.clone()).filter(|url| !url.is_empty());
        let start = Start {
            job: &self.job,
            env: &self.env,
            generation,
            client: &self.client,
            plan: &self.plan,
            dataset: &self.dataset,
            params: self.replica.clip.params(),
            memory: &self.snapshots,
            abort,
            spared: rolled_back_to.into_iter().chain(self.loaded_from.clone()).collect(),
        };
        self.saving = Some(Saving::start(&start, collective));
        self.catch_up(generation, reply, collective)?;
        match self.train(generation, collective, &counts)? {
            Ended::Complete => self.finish(generation, collective),
            Ended::Stopped => self.stop(collective),
        }
    }

    fn open_run(&mut self, generation: Generation, world_size: usize) -> Result<(), Error> {
        if let Some(run) = &mut self.run {
            run.enter(generation, world_size)?;
            return self.write_down_last_step();
        }
        self.run = Some(Run::open(report::Options {
            runs_dir: &self.env.runs_dir,
            job_id: &self.env.job_id,
            generation,
            job: &self.job,
            world_size,
            versions: [("libtorch".to_owned(), "2.11".to_owned())].into(),
        })?);
        self.write_down_last_step()
    }

    /// A rank 0 that died between applying a step and writing its metrics leaves that to the next;
    /// one that got the step from another rank, or applied it late, has not written it either.
    fn write_down_last_step(&mut self) -> Result<(), Error> {
        let (Some(run), Some(metrics)) = (&mut self.run, &self.replica.metrics) else {
            return Ok(());
        };
        if metrics.step == self.replica.applied && run.last_logged_step()? < metrics.step {
            run.step(metrics)?;
        }
        Ok(())
    }

    /// The steps of one generation.
    fn train(
        &mut self,
        generation: Generation,
        collective: &dyn Collective,
        counts: &[usize],
    ) -> Result<Ended, Error> {
        let total = self.job.schedule.total_steps;
        let mut loader = self.start_loader(collective)?;
        let mut clock = Clock::start();
        let corrupt_limit = data::corrupt_limit(self.dataset.len(), self.job.data.max_corrupt);
        while self.replica.applied < total {
            // Data.
            self.control.status(|status| status.phase = Phase::Data.into());
            let waiting = Instant::now();
            let batch = loader.next()?;
            clock.data += waiting.elapsed().as_secs_f64();

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
            let stop = self.switch.stop_requested();
            let ready = step::run(&context, &mut self.replica, &batch, stop)?;
            self.faults.strike(self.replica.applied + 1, Place::BeforeApply);

            // Apply: every rank alone, nothing can interrupt it.
            self.control.status(|status| status.phase = Phase::Apply.into());
            let applied = self.replica.apply(&self.job)?;
            self.faults.strike(self.replica.applied, Place::AfterApply);
            if self.faults.corrupts(self.replica.applied) {
                self.replica.corrupt()?;
            }
            clock.comm += crate::collective::take_waited();
            clock.samples += u64::from(self.job.batch.global);

            // What follows a step: metrics, checkpoint, evaluation.
            self.report(generation, &ready, applied, &mut clock)?;
            if ready.stop {
                return Ok(Ended::Stopped);
            }
            self.follow_up(generation, Due::after(&self.job, self.replica.applied), collective)?;
        }
        Ok(Ended::Complete)
    }

    fn start_loader(&self, collective: &dyn Collective) -> Result<Loader, Error> {
        let per_lane = u64::from(self.job.batch.global / self.job.data.lanes);
        let lanes = data::share(self.job.data.lanes, collective.rank(), collective.world_size());
        Ok(Loader::start(LoaderOptions {
            dataset: Arc::clone(&self.dataset),
            order: Arc::clone(&self.order),
            rows: u64::from(lanes.start) * per_lane..u64::from(lanes.end) * per_lane,
            first_step: self.replica.applied,
            last_step: self.job.schedule.total_steps,
            preprocess: preprocess(&self.job),
            tokenizer: Arc::clone(&self.tokenizer),
            aug: self.job.data.aug_cfg.clone(),
            seed: self.job.data.seed,
            readers: self.job.data.readers as usize,
            prefetch: 3,
            substitutions: self.replica.substitutions.clone(),
            max_corrupt: self.job.data.max_corrupt,
        })?)
    }

    /// Returns the metrics of the step applied last, of which the loss and the order's digest are
    /// `known`.
    pub(super) fn step_metrics(
        &self,
        generation: Generation,
        known: (f64, u64),
        applied: Applied,
        rates: Rates,
    ) -> StepMetrics {
        let step = self.replica.applied;
        StepMetrics {
            step,
            total_steps: self.job.schedule.total_steps,
            samples: self.job.samples(step),
            loss: known.0,
            logit_scale: self.replica.clip.logit_scale().exp(),
            logit_bias: self.replica.clip.logit_bias(),
            lr: applied.lr,
            grad_norm: applied.grad_norm,
            samples_per_second: rates.samples_per_second,
            data_share: rates.data_share,
            compute_share: (1.0 - rates.data_share - rates.comm_share).max(0.0),
            comm_share: rates.comm_share,
            generation: Some(generation),
            substituted: self.replica.substitutions.len() as u64,
            order_digest: known.1,
            slowest_rank: rates.slowest.map(|(rank, _)| rank),
            slowest_over_median: rates.slowest.map(|(_, ratio)| ratio),
        }
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

pub(super) fn preprocess(job: &TrainJob) -> Preprocess {
    Preprocess::new(&job.model.preprocess())
}

fn read_manifest(path: &Path) -> Result<TrainJob, Error> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::Environment {
        what: format!("cannot read the manifest {}: {e}", path.display()),
    })?;
    ringmaster_manifest::from_validated_json(&text)
        .map_err(|e| Error::Environment { what: format!("manifest {}: {e}", path.display()) })
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

// A client error is one of the rank's own only where it ends the attempt.
impl From<client::Error> for Error {
    fn from(error: client::Error) -> Self {
        match error {
            client::Error::Superseded(_) | client::Error::Interrupted => {
                Self::Superseded { what: error.to_string() }
            }
            source => Self::Coordinator { source },
        }
    }
}
