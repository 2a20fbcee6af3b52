//! The command line of `ringmaster-worker`, its logs and its exit codes.
//!
//! Exit codes: 0 ended as asked; 1 failed; 2 the command line or a rank's environment is wrong;
//! 75 a rank lost its agent; 78 trying again cannot help (the coordinator refuses this agent, a
//! rank's manifest or data cannot work); 101 a panic.

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ringmaster_worker::agent::{self, Agent};
use ringmaster_worker::bench::checkpoint::{self, CheckpointArgs};
use ringmaster_worker::bench::collective::{self, CollectiveArgs};
use ringmaster_worker::bench::inputs::{self, PreprocessArgs, TokenizerArgs};
use ringmaster_worker::bench::loss::{self, LossArgs};
use ringmaster_worker::factory::commands::{self, ModelCommand};
use ringmaster_worker::ffi::process::exit_now;
use ringmaster_worker::rank::exit::{self, ExitStatus};
use ringmaster_worker::rank::signals::Termination;
use ringmaster_worker::rank::{self, RankEnv};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// Agent and rank of Ringmaster: what touches tensors.
#[derive(Debug, Parser)]
#[command(name = "ringmaster-worker", version = agent::VERSION)]
struct Cli {
    /// How logs are written.
    #[arg(long, global = true, env = agent::environment::LOG_FORMAT, default_value = "text")]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs this node's ranks for a coordinator, until SIGTERM or SIGINT.
    Agent(Box<AgentArgs>),
    /// Trains as one rank of a job. Started by an agent, which sets its environment.
    Rank,
    /// Measures the data plane on this machine and prints one line of JSON.
    #[command(subcommand)]
    Bench(Bench),
    /// Runs, prepares inputs for, exports and looks into models.
    #[command(subcommand)]
    Model(ModelCommand),
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// What a checkpoint costs a run, beside plain copies of memory and files.
    Checkpoint(CheckpointArgs),
    /// How fast tensors move between ranks, each a process of this machine.
    Collective(CollectiveArgs),
    /// What a loss costs in time and memory beside its bare matrix products, and what it computes.
    Loss(LossArgs),
    /// How fast pictures become inputs, on one core.
    Preprocess(PreprocessArgs),
    /// How fast captions become token ids, on one core.
    Tokenizer(TokenizerArgs),
}

#[derive(Debug, Args)]
struct AgentArgs {
    /// URL of the coordinator's fleet listener, such as http://127.0.0.1:7071.
    #[arg(long)]
    coordinator: String,
    /// Name of this node, stable over restarts; default: the host name.
    #[arg(long)]
    node: Option<String>,
    /// Ranks this node can run at once. Each rank computes with CPUS / SLOTS threads, unless the
    /// manifest sets spec.resources.threads_per_rank.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    slots: u32,
    /// Cores for this agent's ranks; default: all that this process may use. Several agents on one
    /// host should share its cores out by this, since each would take all of them.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65536))]
    cpus: Option<u32>,
    /// Folder for manifests, status files and logs of ranks.
    #[arg(long)]
    work_dir: PathBuf,
    /// Folder of run folders.
    #[arg(long, default_value = "runs")]
    runs_dir: PathBuf,
    /// Write the ranks' logs to `logs/` in each job's run folder instead of the work folder.
    #[arg(long)]
    logs_in_runs: bool,
    /// Device of this node's ranks.
    #[arg(long, default_value = "cpu")]
    accelerator: Accelerator,
    /// Address at which other nodes' ranks reach this node's (no port).
    #[arg(long, default_value = "127.0.0.1")]
    address: String,
    /// Kill all ranks and end when stdin reaches its end: the parent process is gone.
    #[arg(long)]
    parent_pipe: bool,
    /// Folder to remove once the parent process and all ranks are gone.
    #[arg(long, hide = true, requires = "parent_pipe", value_name = "DIR")]
    parent_folder: Option<PathBuf>,
    /// Seconds after which a rank that gives no sign of life is killed; default: the coordinator's
    /// lease, at least 3.
    #[arg(long, value_parser = seconds, value_name = "SECONDS")]
    rank_silence: Option<f64>,
    /// Seconds that ranks get to checkpoint and stop after SIGTERM or SIGINT; a second signal kills
    /// them at once.
    #[arg(long, default_value_t = 25.0, value_parser = seconds, value_name = "SECONDS")]
    grace: f64,
    /// Seconds without a coordinator after which ranks checkpoint and stop.
    #[arg(long, default_value_t = 3600.0, value_parser = seconds, value_name = "SECONDS")]
    orphan_timeout: f64,
    /// Program to run as rank instead of this one's `rank`, for tests.
    #[arg(long, hide = true)]
    rank_program: Option<OsString>,
    /// An argument of --rank-program; may be repeated.
    #[arg(long, hide = true, requires = "rank_program", allow_hyphen_values = true)]
    rank_argument: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Accelerator {
    Cpu,
    Cuda,
}

/// Parses the command line, runs the command and ends the process with its exit code.
///
/// By then everything is dropped and written. What libtorch registered at the start is not taken apart
/// again: that is a third of the processor time of a command that does nothing.
pub(crate) fn run() -> ! {
    let cli = Cli::parse();
    start_logging(cli.log_format);
    let code = match cli.command {
        Command::Agent(args) => run_agent(*args),
        Command::Rank => run_rank(),
        Command::Bench(bench) => run_bench(&bench),
        Command::Model(command) => run_model(&command),
    };
    // Nobody may be left to read it.
    let _ = io::stdout().flush();
    exit_now(code)
}

fn run_model(command: &ModelCommand) -> i32 {
    match commands::run(command) {
        Ok(()) => exit::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            exit::FAILED
        }
    }
}

/// Logs go to stderr: for a rank that is the file its agent follows.
fn start_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        // It would complain on stderr about a broken stderr, and panic: a parent or terminal that
        // is gone must not keep the agent from ending its ranks.
        .log_internal_errors(false)
        .with_ansi(colours(io::stderr().is_terminal(), std::env::var_os("NO_COLOR").as_deref()));
    match format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
}

/// Colour codes are for terminals, and not for those whose people do not want them (no-color.org).
fn colours(is_terminal: bool, no_color: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty)
}

fn run_agent(args: AgentArgs) -> i32 {
    let parent_pipe = args.parent_pipe;
    let agent = match options(args).and_then(Agent::build) {
        Ok(agent) => agent,
        Err(error) => return report(&error),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("agent")
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(async {
            match count_signals(parent_pipe) {
                Ok(told) => agent.run(times(told.clone(), 1), times(told, 2)).await,
                Err(source) => Err(agent::Error::Thread { name: "signals", source }),
            }
        }),
        Err(source) => Err(agent::Error::Thread { name: "agent", source }),
    };
    match outcome {
        Ok(()) => exit::SUCCESS,
        Err(error) => report(&error),
    }
}

fn report(error: &agent::Error) -> i32 {
    tracing::error!("{}", chain(error));
    match error {
        agent::Error::Address(_) => exit::USAGE,
        agent::Error::Refused { .. } => exit::HOPELESS,
        _ => exit::FAILED,
    }
}

fn options(args: AgentArgs) -> Result<agent::Options, agent::Error> {
    let node = args.node.unwrap_or_else(host_name);
    let mut options = agent::Options::new(&args.coordinator, &node, args.slots, args.work_dir)?;
    options.runs_dir = args.runs_dir;
    options.logs_in_runs = args.logs_in_runs;
    options.parent_folder = args.parent_folder;
    options.cpus = args.cpus.unwrap_or(options.cpus);
    options.accelerator = match args.accelerator {
        Accelerator::Cpu => "cpu".to_owned(),
        Accelerator::Cuda => "cuda".to_owned(),
    };
    options.address = args.address;
    options.parent_pipe = args.parent_pipe;
    options.silence = args.rank_silence.map(Duration::from_secs_f64);
    options.grace = Duration::from_secs_f64(args.grace);
    options.orphan_timeout = Duration::from_secs_f64(args.orphan_timeout);
    if let Some(program) = args.rank_program {
        options.rank_program = std::iter::once(program).chain(args.rank_argument).collect();
    }
    Ok(options)
}

fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "localhost".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    match value > 0.0 && value <= 1e9 {
        true => Ok(value),
        false => Err("it must be above 0 and at most 1e9 seconds".to_owned()),
    }
}

/// Counts SIGTERMs and SIGINTs.
///
/// With a parent pipe SIGINT is taken and ignored: Ctrl-C reaches the whole foreground group, and
/// it is the parent who turns it into a graceful cancellation.
fn count_signals(parent_pipe: bool) -> io::Result<watch::Receiver<u32>> {
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

fn run_bench(bench: &Bench) -> i32 {
    let result = match bench {
        Bench::Checkpoint(args) => checkpoint::run(args),
        Bench::Collective(args) => collective::run(args),
        Bench::Loss(args) => loss::run(args),
        Bench::Preprocess(args) => inputs::preprocess(args),
        Bench::Tokenizer(args) => inputs::tokenizer(args),
    };
    match result {
        Ok(()) => exit::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            exit::FAILED
        }
    }
}

fn run_rank() -> i32 {
    let env = match RankEnv::from_env() {
        Ok(env) => env,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            return exit::USAGE;
        }
    };
    exit::install_panic_hook(env.status_file.clone());
    let status_file = env.status_file.clone();
    let Err(error) = Termination::take().and_then(|termination| rank::run(env, termination)) else {
        return exit::SUCCESS;
    };
    let status = ExitStatus { reason: chain(&error), retryable: error.retryable() };
    tracing::error!(retryable = status.retryable, "{}", status.reason);
    if let Err(error) = exit::write_status(&status_file, &status) {
        tracing::error!(%error, path = %status_file.display(), "cannot write the status file");
    }
    if status.retryable { exit::FAILED } else { exit::HOPELESS }
}

/// Returns an error with all its causes, each after a colon.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn colours_are_for_terminals_whose_people_want_them() {
        assert!(colours(true, None) && colours(true, Some(OsStr::new(""))));
        assert!(!colours(true, Some(OsStr::new("1"))));
        assert!(!colours(false, None));
    }

    #[test]
    fn the_version_names_the_build() {
        let version = Cli::command().render_version();
        assert!(version.starts_with("ringmaster-worker 0.1.0 (build "), "{version}");
    }
}
