//! `ringmaster agent`: runs a node's ranks for a coordinator until it is told to stop.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ringmaster_agent::environment::LOG_FORMAT;
use ringmaster_agent::{Agent, Options, RankProgram};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::agent_process::find_worker;
use super::error::Error;
use super::values::{self, Words};

/// What `ringmaster agent` can be told
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// URL of the coordinator's fleet listener, such as http://127.0.0.1:7071
    #[arg(long, value_name = "URL")]
    coordinator: String,
    /// Name of this node, stable over restarts, and no other node's; default: the host name
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Ranks this node can run at once. Each rank computes with CPUS / SLOTS threads, unless the
    /// manifest sets spec.resources.threads_per_rank
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    slots: u32,
    /// Cores for this agent's ranks; default: all that this process may use. Several agents on one
    /// host should share its cores out by this, since each would take all of them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    cpus: Option<u32>,
    /// Folder for manifests, status files and logs of ranks
    #[arg(long, value_name = "DIR")]
    work_dir: PathBuf,
    /// Folder of run folders
    #[arg(long, value_name = "DIR", default_value = "runs")]
    runs_dir: PathBuf,
    /// Write the ranks' logs to `logs/` in each job's run folder instead of the work folder
    #[arg(long)]
    logs_in_runs: bool,
    /// The ranks' executable, ringmaster-worker; default: RINGMASTER_WORKER, else the one beside this
    /// command. It is probed at the start and whenever the file changes; while it cannot start, the node
    /// takes no ranks
    #[arg(long, value_name = "PATH", conflicts_with = "rank_program")]
    worker: Option<PathBuf>,
    /// Command that starts the ranks' executable, its arguments separated as in a shell, such as
    /// "numactl --interleave=all" or "apptainer exec --nv clip.sif". --worker is then a path that this
    /// command understands; a change of it that cannot be seen from here is noticed when a rank fails. Ranks
    /// have LOCAL_RANK in their environment
    #[arg(long, value_name = "COMMAND", value_parser = values::words, conflicts_with = "rank_program")]
    rank_prefix: Option<Words>,
    /// Device of this node's ranks
    #[arg(long, default_value = "cpu")]
    accelerator: Accelerator,
    /// Address at which other nodes' ranks reach this node's (no port), and at which this agent answers the
    /// agents that try it. Default: the address that this machine has on the way to the coordinator; loopback
    /// where the coordinator is on loopback
    #[arg(long, value_name = "HOST")]
    address: Option<String>,
    /// Kill all ranks and end when stdin reaches its end: the parent process is gone
    #[arg(long)]
    parent_pipe: bool,
    /// Folder to remove once the parent process and all ranks are gone
    #[arg(long, hide = true, requires = "parent_pipe", value_name = "DIR")]
    parent_folder: Option<PathBuf>,
    /// Seconds after which a rank that gives no sign of life is killed; default: the coordinator's
    /// lease, at least 3
    #[arg(long, value_parser = values::seconds, value_name = "SECONDS")]
    rank_silence: Option<Duration>,
    /// Seconds that ranks get to checkpoint and stop after SIGTERM or SIGINT; a second signal kills
    /// them at once
    #[arg(long, default_value = "25", value_parser = values::seconds, value_name = "SECONDS")]
    grace: Duration,
    /// Seconds without a coordinator after which ranks checkpoint and stop
    #[arg(long, default_value = "3600", value_parser = values::seconds, value_name = "SECONDS")]
    orphan_timeout: Duration,
    /// How logs are written
    #[arg(long, env = LOG_FORMAT, default_value = "text")]
    log_format: LogFormat,
    /// Program to run as rank instead of `ringmaster-worker rank`, for tests
    #[arg(long, hide = true)]
    rank_program: Option<OsString>,
    /// An argument of --rank-program; may be repeated
    #[arg(long, hide = true, requires = "rank_program", allow_hyphen_values = true)]
    rank_argument: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Accelerator {
    Cpu,
    Cuda,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Serves until SIGTERM, SIGINT or, if asked, the end of stdin. Ranks checkpoint and stop first; a second
/// signal kills them.
pub(crate) async fn run(args: &AgentArgs) -> Result<(), Error> {
    super::log_to_stderr(match args.log_format {
        LogFormat::Text => super::LogFormat::Text,
        LogFormat::Json => super::LogFormat::FlatJson,
    });
    let agent = Agent::build(options(args)?).map_err(said)?;
    let told = count_signals(args.parent_pipe)
        .map_err(|source| Error::io("listen for signals", source))?;
    agent.run(times(told.clone(), 1), times(told, 2)).await.map_err(said)
}

/// Writes what ended the agent to its log, with all causes.
fn said(error: ringmaster_agent::Error) -> Error {
    let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
    let text = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
    tracing::error!("{text}");
    Error::Agent(error)
}

fn options(args: &AgentArgs) -> Result<Options, Error> {
    let node = args.node.clone().unwrap_or_else(host_name);
    let rank = rank_program(args)?;
    let work_dir = args.work_dir.clone();
    let mut options = Options::new(&args.coordinator, &node, args.slots, work_dir, rank);
    options.build_id = env!("RINGMASTER_BUILD_ID").to_owned();
    options.takes_faults = cfg!(faults);
    options.runs_dir = args.runs_dir.clone();
    options.logs_in_runs = args.logs_in_runs;
    options.parent_folder = args.parent_folder.clone();
    options.cpus = args.cpus.unwrap_or(options.cpus);
    options.accelerator = match args.accelerator {
        Accelerator::Cpu => "cpu".to_owned(),
        Accelerator::Cuda => "cuda".to_owned(),
    };
    options.address = args.address.clone();
    options.parent_pipe = args.parent_pipe;
    options.silence = args.rank_silence;
    options.grace = args.grace;
    options.orphan_timeout = args.orphan_timeout;
    Ok(options)
}

fn rank_program(args: &AgentArgs) -> Result<RankProgram, Error> {
    if let Some(program) = &args.rank_program {
        let words = std::iter::once(program).chain(&args.rank_argument).cloned();
        return Ok(RankProgram::Other(words.collect()));
    }
    let worker = args.worker.as_deref();
    Ok(match (&args.rank_prefix, worker) {
        // Where it leads, that path need not be one of this file system.
        (Some(prefix), Some(path)) => {
            RankProgram::Worker { path: path.to_owned(), prefix: prefix.0.clone() }
        }
        (prefix, _) => RankProgram::Worker {
            path: find_worker(worker)?,
            prefix: prefix.clone().map(|prefix| prefix.0).unwrap_or_default(),
        },
    })
}

fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "localhost".to_owned())
}

/// Counts SIGTERMs and SIGINTs.
///
/// With a parent pipe SIGINT is taken and ignored: Ctrl-C reaches the whole foreground group, and
/// it is the parent who turns it into a graceful cancellation.
fn count_signals(parent_pipe: bool) -> std::io::Result<watch::Receiver<u32>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (count, told) = watch::channel(0);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => count.send_modify(|count| *count += 1),
                _ = interrupt.recv() => if !parent_pipe {
                    count.send_modify(|count| *count += 1);
                },
            }
        }
    });
    Ok(told)
}

/// Completes once as many signals have come.
async fn times(mut told: watch::Receiver<u32>, wanted: u32) {
    if told.wait_for(|count| *count >= wanted).await.is_err() {
        // The counting task lives as long as the runtime: there is nothing left to wait for.
        std::future::pending::<()>().await;
    }
}
