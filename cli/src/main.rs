//! The `ringmaster` executable: a command line over the coordinator, a node's agent, and `train`, which runs
//! a whole cluster on one machine.
//!
//! Files in reading order: [`args`] (what can be asked), `run` here (who answers), [`train`]
//! (a whole cluster in one command) with [`agent_process`], [`coordinator`], [`agent`]; [`job_file`] and
//! [`mod@resume`] (from a manifest to a request); [`client`], [`watch`], [`progress`] and [`lines`]
//! (following a job); [`checkpoints`]; [`dataset`]; [`models`]; [`listing`], [`logs`], [`json`], [`summary`] (what
//! people and scripts read); [`text`], [`output`] and [`error`].

mod agent;
mod agent_process;
mod args;
mod checkpoints;
mod client;
mod coordinator;
mod dataset;
mod error;
mod greeting;
mod job_file;
mod json;
mod lines;
mod listing;
mod location;
mod logs;
mod models;
mod output;
mod progress;
mod resume;
mod summary;
mod text;
mod train;
mod validate;
mod values;
mod watch;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use ringmaster_proto::v1::JobState;
use ringmaster_store::{self as store, News};
use tracing_subscriber::EnvFilter;

use args::{Cli, Command};
use error::Error;

/// What `--version` prints: the package's version and the build's id.
const VERSION: &str = env!("RINGMASTER_VERSION");

/// Threads of an agent: the cores of its node are for the ranks.
const AGENT_THREADS: usize = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    match cli.command {
        Command::Agent(_) => runtime.worker_threads(AGENT_THREADS).thread_name("agent"),
        _ => runtime.thread_name("control"),
    };
    let runtime = runtime
        .enable_all()
        .build()
        .expect("a tokio runtime starts unless the host refuses threads");
    let exit_code = runtime.block_on(run(&cli));
    // Nothing that still runs here is worth waiting for: what must be kept is kept.
    runtime.shutdown_background();
    exit_code
}

/// Does what the command line asks and returns the exit code.
async fn run(cli: &Cli) -> ExitCode {
    match dispatch(&cli.command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is_said() {
                output::error_chain(&error);
            }
            ExitCode::from(error.exit_code())
        }
    }
}

async fn dispatch(command: &Command) -> Result<(), Error> {
    // These have a log.
    if !matches!(command, Command::Coordinator(_) | Command::Agent(_)) {
        store::on_news(|(News::Trouble(what) | News::Answers(what))| output::error_line(&what));
    }
    match command {
        Command::Train(args) => Box::pin(train::run(args)).await,
        Command::Coordinator(args) => Box::pin(coordinator::run(args)).await,
        Command::Agent(args) => Box::pin(agent::run(args)).await,
        Command::Submit(args) => submit(args).await,
        Command::Ls(args) => listing::ls(args).await,
        Command::Describe(args) => listing::describe(args).await,
        Command::Logs(args) => logs::logs(args).await,
        Command::Events(args) => logs::events(args).await,
        Command::Cancel(args) => cancel(args).await,
        Command::Pause(args) => pause(args).await,
        Command::Resume(args) => resume(args).await,
        Command::Nodes(args) => nodes(args).await,
        Command::Checkpoints(args) => Box::pin(checkpoints::run(&args.command)).await,
        Command::Dataset(args) => Box::pin(dataset::run(&args.command)).await,
        Command::Models(args) => models::models(args),
        Command::Validate(args) => validate::run(&args.manifests, args.data),
        Command::Schema => schema(),
    }
}

/// Hands in a job, and follows it with `--wait`.
async fn submit(args: &args::Submit) -> Result<(), Error> {
    let mut file = job_file::JobFile::read(&args.manifest)?;
    if args.accept_new_data {
        file.accept_new_data();
    }
    file.advise();
    file.check_data()?;
    let resume_from = match &args.resume {
        Some(wanted) => resume::resolve(wanted, &file.job, resume::Reader::Cluster).await?,
        None => String::new(),
    };
    let client = client::Client::new(&args.remote.coordinator)?;
    let job_id = client.submit(file.submit_request(resume_from)).await?;
    output::print(&job_id)?;
    if !args.wait {
        return Ok(());
    }
    let mut progress = progress::Progress::new(Duration::from_secs(args.log_interval));
    progress.line(&file.headline());
    let followed = watch::follow(&client, &job_id, &mut progress).await;
    progress.finish(followed.as_ref().ok());
    let job = followed?;
    watch::outcome(&job)?;
    if let Some(summary) = summary::Summary::from_json(&job.summary_json) {
        output::print(&summary.training_line())?;
        for note in summary.notes() {
            output::print(&note)?;
        }
        if let Some(table) = summary.table() {
            output::print(&table)?;
        }
    }
    Ok(())
}

async fn cancel(args: &args::Cancel) -> Result<(), Error> {
    let client = client::Client::new(&args.remote.coordinator)?;
    let job = client.cancel(&args.job, &args.reason).await?;
    let state = text::state_word(job.state());
    output::print(&if text::is_final(job.state()) {
        format!("{} has already {}", job.job_id, ended_word(state))
    } else {
        format!("{} ({state}) saves its state and stops", job.job_id)
    })
}

async fn pause(args: &args::Pause) -> Result<(), Error> {
    let client = client::Client::new(&args.remote.coordinator)?;
    let job = client.pause(&args.job, &args.reason).await?;
    let state = text::state_word(job.state());
    output::print(&match job.state() {
        JobState::Paused => format!("{} is paused; `ringmaster resume` it", job.job_id),
        _ => format!("{} ({state}) saves its state and pauses", job.job_id),
    })
}

async fn resume(args: &args::Resume) -> Result<(), Error> {
    let client = client::Client::new(&args.remote.coordinator)?;
    if let Some(step) = args.from {
        output::error_line(&format!(
            "the coordinator verifies the checkpoint of step {step}; what is above it is given up only \
             if it is good"
        ));
    }
    let job = client.resume(&args.job, args.from).await.map_err(|error| match error {
        Error::Refused { code: tonic::Code::FailedPrecondition, message } => {
            Error::CannotResume { message }
        }
        other => other,
    })?;
    output::print(&format!("{} ({}): {}", job.job_id, text::state_word(job.state()), job.reason))
}

async fn nodes(args: &args::Nodes) -> Result<(), Error> {
    match &args.command {
        None => listing::nodes(&args.list).await,
        Some(args::NodesCommand::Ls(args)) => listing::nodes(args).await,
        Some(args::NodesCommand::Drain(args)) => {
            let client = client::Client::new(&args.remote.coordinator)?;
            let node = client.set_node(&args.node, false, &args.reason).await?;
            output::print(&format!("{} takes no more ranks ({})", node.node, node.availability))
        }
        Some(args::NodesCommand::Undrain(args)) => {
            let client = client::Client::new(&args.remote.coordinator)?;
            let node = client.set_node(&args.node, true, "").await?;
            output::print(&format!("{} takes ranks again ({})", node.node, node.availability))
        }
    }
}

fn ended_word(state: &str) -> String {
    if state == "cancelled" { "been cancelled".to_owned() } else { state.to_owned() }
}

fn schema() -> Result<(), Error> {
    let schema =
        serde_json::to_value(ringmaster_manifest::json_schema()).expect("a JSON Schema is JSON");
    output::print_json(&schema)
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LogFormat {
    Text,
    /// An object a line; what an event says is in its `fields`.
    Json,
    /// An object a line with all of it at the top, as ranks write theirs.
    FlatJson,
}

/// Sends log lines to standard error, at `info` unless RUST_LOG says otherwise.
fn log_to_stderr(format: LogFormat) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter())
        .with_writer(std::io::stderr)
        // It would complain on stderr about a broken stderr, and panic: a parent or terminal that
        // is gone must not keep an agent from ending its ranks.
        .log_internal_errors(false)
        .with_ansi(output::colours_on_stderr());
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
        LogFormat::FlatJson => builder.json().flatten_event(true).init(),
    }
}

/// Sends log lines to a file, so that they do not tear the progress bar.
fn log_to_file(path: &Path) -> Result<(), Error> {
    let file = std::fs::File::create(path)
        .map_err(|source| Error::io(format!("create {}", path.display()), source))?;
    let writer = std::sync::Mutex::new(file);
    tracing_subscriber::fmt().with_env_filter(filter()).with_ansi(false).with_writer(writer).init();
    Ok(())
}

fn filter() -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"))
}
