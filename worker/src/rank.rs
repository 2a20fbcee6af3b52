//! What a rank of a job keeps over generations, whatever becomes of its peers.

use std::path::Path;
use std::sync::Arc;

use ringmaster_agent::env::RankEnv;
use ringmaster_checkpoint::Memory;
use ringmaster_data::Dataset;
use ringmaster_inputs::image::Preprocess;
use ringmaster_inputs::text::Tokenizer;
use ringmaster_manifest::spec::TrainJob;
use ringmaster_proto::v1::{Generation, Phase, RingLoss, StepMetrics};
use tch::Device;

use crate::control::agent::Control;
use crate::control::coordinator::RanksClient;
use crate::control::history::History;
use crate::control::interrupt::Interrupt;
use crate::control::signals::Termination;
use crate::error::Error;
use crate::factory::tokenizer::get_tokenizer;
use crate::faults::Faults;
use crate::plan::NumericPlan;
use crate::replica::{Applied, Replica};
use crate::report::Run;
use crate::report::bottleneck;
use crate::report::clock::Rates;
use crate::save::{FolderCheck, Saving};
use crate::{eval, ffi, health};

/// Readers that a rank has at most unless its job says otherwise: more decode more than a GPU takes.
const MAX_READERS: usize = 16;

/// See the module.
pub(crate) struct Rank {
    pub(crate) env: RankEnv,
    pub(crate) job: TrainJob,
    pub(crate) device: Device,
    pub(crate) control: Control,
    pub(crate) interrupt: Arc<Interrupt>,
    pub(crate) client: RanksClient,
    pub(crate) history: History,
    pub(crate) faults: Faults,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) dataset: Arc<Dataset>,
    pub(crate) replica: Replica,
    /// What steps wait for.
    pub(crate) bottleneck: bottleneck::Watch,
    /// Bytes of shards that it may keep, unless the job says how many.
    pub(crate) memory: u64,
    /// How the work is divided; the job's first generation fixes it.
    pub(crate) plan: NumericPlan,
    pub(crate) eval_sets: Vec<eval::EvalSet>,
    /// Open on the first rank of the ring.
    pub(crate) run: Option<Run>,
    /// Whether checkpoints can be written, until somebody has asked for the answer.
    pub(crate) folder: Option<FolderCheck>,
    pub(crate) saving: Option<Saving>,
    /// Where snapshots wait while they are written.
    pub(crate) snapshots: Memory,
    /// Checkpoint that this process took the state from.
    pub(crate) loaded_from: Option<String>,
    pub(crate) machine: health::Machine,
    /// This process has been in a ring whose links were measured, or did not have to be.
    pub(crate) links_checked: bool,
    /// How the ring that this rank was in last came to its end, until the coordinator has heard of it.
    pub(crate) left: Option<RingLoss>,
    /// Digest of the state as it was when the rank joined its generation; none once something has changed it.
    pub(crate) joined_digest: Option<u64>,
}

impl Rank {
    /// Everything that does not depend on the generation.
    pub(crate) fn start(env: RankEnv, termination: Termination) -> Result<Self, Error> {
        let job = read_manifest(&env.manifest_path)?;
        let faults =
            Faults::parse(env.fault.as_deref(), env.seat).map_err(|what| Error::Fault { what })?;
        let client = RanksClient::start(&env.coordinator)?;
        let interrupt = Arc::new(Interrupt::new(env.generation, client.clone()));
        let history = History::new(client.clone(), &env.job_id);
        history.follow_stores(&interrupt);
        let control = connect(&env, &interrupt, termination)?;
        control.status(|status| status.phase = Phase::Load.into());
        // Beside all that follows, which takes longer.
        let folder = FolderCheck::start(&job.checkpoint.uri, &env.job_id)?;
        let threads = env.threads.max(1) as i32;
        tch::set_num_threads(threads);
        tch::set_num_interop_threads(1);
        let device = open_device(&job, &env)?;
        let demand = health::memory::Demand::of(&job, env.local_world_size)?;
        let machine = health::check_machine(device, demand)?;
        let memory = health::memory::free() / 2 / u64::from(env.local_world_size.max(1));
        let text = &job.model.config.text_cfg;
        let tokenizer = Arc::new(get_tokenizer(text, job.model.tokenizer.as_deref())?);
        let dataset = Arc::new(Dataset::open(&job.data, job.batch.global.into())?);
        let open_set = |set| eval::EvalSet::open(set, &job.data);
        let eval_sets = job.eval.zero_shot.iter().map(open_set).collect::<Result<_, _>>()?;
        let replica = Replica::new(&job, device)?;
        tracing::info!(
            samples = dataset.len(),
            shards = dataset.shards(),
            parameters = replica.clip.params().entries().iter().map(|e| e.len).sum::<usize>(),
            global_batch = job.batch.global,
            steps = job.schedule.total_steps,
            threads,
            "rank ready"
        );
        let plan = NumericPlan::propose(&job, &env, device);
        Ok(Self {
            plan,
            memory,
            bottleneck: bottleneck::Watch::default(),
            env,
            job,
            device,
            control,
            interrupt,
            client,
            history,
            faults,
            tokenizer,
            dataset,
            replica,
            eval_sets,
            run: None,
            folder: Some(folder),
            saving: None,
            snapshots: Memory::default(),
            loaded_from: None,
            machine,
            links_checked: false,
            left: None,
            joined_digest: None,
        })
    }

    /// Returns the threads that decode: as the job says, else the cores that computing leaves idle, one at least.
    pub(crate) fn readers(&self) -> usize {
        let chosen = || {
            let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
            let own = cores / self.env.local_world_size.max(1) as usize;
            own.saturating_sub(self.env.threads as usize).clamp(1, MAX_READERS)
        };
        self.job.data.readers.map_or_else(chosen, |readers| readers as usize)
    }

    /// Returns the metrics of the step applied last, of which the loss and the order's digest are
    /// `known`.
    pub(crate) fn step_metrics(
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
            samples: self.replica.samples(&self.job),
            loss: known.0,
            logit_scale: self.replica.clip.logit_scale().exp(),
            logit_bias: self.replica.clip.logit_bias(),
            lr: applied.lr,
            grad_norm: applied.grad_norm,
            samples_per_second: rates.samples_per_second,
            data_share: rates.data_share,
            store_share: rates.store_share,
            compute_share: (1.0 - rates.data_share - rates.comm_share).max(0.0),
            comm_share: rates.comm_share,
            generation: Some(generation),
            substituted: self.replica.ledger.replaced(),
            order_digest: known.1,
            slowest_rank: rates.slowest.map(|(rank, _)| rank),
            slowest_over_median: rates.slowest.map(|(_, ratio)| ratio),
        }
    }
}

pub(crate) fn preprocess(job: &TrainJob) -> Preprocess {
    Preprocess::new(&job.model.preprocess)
}

fn read_manifest(path: &Path) -> Result<TrainJob, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::ReadManifest { path: path.to_owned(), source })?;
    ringmaster_manifest::from_validated_json(&text)
        .map_err(|source| Error::Manifest { path: path.to_owned(), source })
}

/// Opens the line to the agent, and obeys what comes over it and SIGTERM.
fn connect(
    env: &RankEnv,
    interrupt: &Arc<Interrupt>,
    termination: Termination,
) -> Result<Control, Error> {
    let obeying = Arc::clone(interrupt);
    let control =
        Control::connect(&env.agent_socket, &env.job_id, env.seat, &env.secret, move |command| {
            obeying.obey(command);
        })?;
    let told = Arc::clone(interrupt);
    let stop = move || {
        tracing::info!("SIGTERM: this job stops after a checkpoint at the next step boundary");
        told.request_stop();
    };
    termination.forward(stop).map_err(|source| Error::Thread { name: "signals", source })?;
    Ok(control)
}

/// Returns the device that the rank computes on.
fn open_device(job: &TrainJob, env: &RankEnv) -> Result<Device, Error> {
    // A rank that has a GPU for itself sees no other; else it sees all of the node, and takes its own.
    let (ordinal, device) = match env.device.as_str() {
        "" => (env.local_rank, format!("the GPU of local rank {}", env.local_rank)),
        uuid => (0, uuid.to_owned()),
    };
    ffi::cuda::device(job.resources.accelerator, ordinal)
        .map_err(|source| Error::Device { device, source })
}
