//! The command line, as clap reads it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::values;
use clap::{Args, Parser, Subcommand};
use ringmaster_proto::v1::Phase;

const EXIT_CODES: &str = "Exit codes: 0 done; 1 the job failed or something broke; 2 the command \
line, the manifest or its data is wrong and nothing was started; 3 the coordinator cannot be \
reached; 4 no such job; 78 the coordinator refuses this agent; 130 cancelled or interrupted.";

/// Trains CLIP and SigLIP models on a cluster.
#[derive(Debug, Parser)]
#[command(name = "ringmaster", version = super::VERSION, after_help = EXIT_CODES)]
#[command(disable_help_subcommand = false, propagate_version = true)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a job here: coordinator, agent and ranks on this machine, progress in the terminal
    Train(Train),
    /// Run the coordinator of a cluster
    Coordinator(Coordinator),
    /// Run a node's ranks for a coordinator, until SIGTERM or SIGINT
    Agent(Box<super::agent::AgentArgs>),
    /// Hand a job to the coordinator
    Submit(Submit),
    /// List jobs
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show everything known about a job
    Describe(Describe),
    /// Print the log lines of a job's ranks
    Logs(Logs),
    /// Print the history of a job
    Events(Events),
    /// Ask a job to save its state and stop
    Cancel(Cancel),
    /// Ask a job to save its state, stop, and wait until it is resumed
    Pause(Pause),
    /// Let a paused, failed or cancelled job go on, or roll a job back to an older checkpoint
    Resume(Resume),
    /// List the nodes of the cluster, or close and open them
    Nodes(Nodes),
    /// Look at checkpoints, verify, copy, export and delete them
    Checkpoints(Checkpoints),
    /// Look at a data set, verify it, and write it as shards
    Dataset(super::dataset::args::Dataset),
    /// List the models a manifest can name, with their sizes
    Models(super::models::Models),
    /// Check manifests without running anything
    Validate(Validate),
    /// Print the JSON Schema of manifests
    Schema,
}

/// Where the coordinator is.
#[derive(Debug, Args)]
pub(crate) struct Remote {
    /// URL of the coordinator
    #[arg(
        long,
        value_name = "URL",
        env = "RINGMASTER_COORDINATOR",
        default_value = "http://127.0.0.1:7070"
    )]
    pub(crate) coordinator: String,
}

#[derive(Debug, Args)]
pub(crate) struct Train {
    /// Manifest of the job
    #[arg(value_name = "JOB.yaml")]
    pub(crate) manifest: PathBuf,
    /// Go on from a checkpoint: `latest` of this manifest's runs, a job id, or the path or URL of a
    /// job's folder, of one checkpoint, or of OpenCLIP's epoch_N.pt
    #[arg(long, value_name = "latest|JOB|URL", num_args = 0..=1, default_missing_value = "latest")]
    pub(crate) resume: Option<String>,
    /// With --resume: take data that is not what the checkpoint's run read, or another order of it, and go on
    /// after as many samples
    #[arg(long, requires = "resume")]
    pub(crate) accept_new_data: bool,
    /// Ranks to train with, instead of the manifest's spec.resources.ranks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) ranks: Option<u32>,
    /// Folder that holds one run folder per job, and a link `latest` to the newest
    #[arg(long, value_name = "DIR", default_value = "runs")]
    pub(crate) runs_dir: PathBuf,
    /// Keep the embedded coordinator's database and logs here [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Seconds between log lines when the output is not a terminal
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) log_interval: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Coordinator {
    /// Database, logs and the addresses.json that names the listeners
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: PathBuf,
    /// Listener for people and their tools (Jobs, reflection, health)
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7070")]
    pub(crate) listen: SocketAddr,
    /// Listener for agents and ranks (Fleet, Ranks, health)
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7071")]
    pub(crate) fleet_listen: SocketAddr,
    /// Listener for probes (health only)
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7072")]
    pub(crate) health_listen: SocketAddr,
    /// How long a rank may stand still in a phase (start, join, load, data, compute, collective,
    /// apply, eval, save, done) or in its first steps (first_step) before it counts as hung, unless
    /// its job has shown that it takes longer; may be repeated
    #[arg(long, value_name = "PHASE=SECONDS", value_parser = deadline)]
    pub(crate) deadline: Vec<Deadline>,
    /// Time between two heartbeats of an agent
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = values::seconds)]
    pub(crate) heartbeat: Duration,
    /// Time without a heartbeat after which a node's ranks count as lost
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = values::seconds)]
    pub(crate) lease: Duration,
    /// Allow listeners that are not on the loopback interface, although there is no TLS
    #[arg(long)]
    pub(crate) insecure: bool,
    /// How long ranks that are to checkpoint and stop may make no progress before they are killed
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = values::seconds)]
    pub(crate) grace: Duration,
    /// Faults that a node is charged with at which it takes no more ranks; half of them are forgotten
    /// every hour; 0 for never
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) exclude_after: u32,
    /// End when stdin does, so as not to outlive the process that holds its other end
    #[arg(long, hide = true)]
    pub(crate) parent_pipe: bool,
    /// Log as JSON lines
    #[arg(long)]
    pub(crate) log_json: bool,
}

/// One `--deadline`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline {
    /// None: the first steps of a generation.
    pub(crate) phase: Option<Phase>,
    pub(crate) time: Duration,
}

fn deadline(text: &str) -> Result<Deadline, String> {
    let (name, seconds) = text.split_once('=').ok_or("it is no PHASE=SECONDS")?;
    let phase = match name {
        "first_step" => None,
        name => {
            let word = format!("PHASE_{}", name.to_ascii_uppercase());
            let phase = Phase::from_str_name(&word).filter(|phase| *phase != Phase::Unspecified);
            let unknown = || {
                format!(
                    "{name:?} is no phase; one of first_step, start, join, load, data, compute, \
                     collective, apply, eval, save, done is wanted"
                )
            };
            Some(phase.ok_or_else(unknown)?)
        }
    };
    Ok(Deadline { phase, time: values::seconds(seconds)? })
}

#[derive(Debug, Args)]
pub(crate) struct Submit {
    /// Manifest of the job
    #[arg(value_name = "JOB.yaml")]
    pub(crate) manifest: PathBuf,
    /// Go on from a checkpoint: `latest` of this manifest's runs, a job id, or the path or URL of a
    /// job's folder, of one checkpoint, or of OpenCLIP's epoch_N.pt
    #[arg(long, value_name = "latest|JOB|URL", num_args = 0..=1, default_missing_value = "latest")]
    pub(crate) resume: Option<String>,
    /// With --resume: take data that is not what the checkpoint's run read, or another order of it, and go on
    /// after as many samples
    #[arg(long, requires = "resume")]
    pub(crate) accept_new_data: bool,
    /// Stay and show progress until the job ends (Ctrl-C leaves the job running)
    #[arg(long)]
    pub(crate) wait: bool,
    /// Seconds between log lines when the output is not a terminal
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) log_interval: u64,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Jobs that ended, too
    #[arg(long, short)]
    pub(crate) all: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Debug, Args)]
pub(crate) struct Describe {
    /// Id of the job
    pub(crate) job: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Id of the job
    pub(crate) job: String,
    /// Keep printing until the job ends
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only this rank
    #[arg(long, value_name = "N")]
    pub(crate) rank: Option<u32>,
    /// Only the newest N lines
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) tail: u64,
    /// Print JSON lines
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Id of the job
    pub(crate) job: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// Id of the job
    pub(crate) job: String,
    /// Why, for the job's history
    #[arg(long, default_value = "cancelled from the command line")]
    pub(crate) reason: String,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Debug, Args)]
pub(crate) struct Pause {
    /// Id of the job
    pub(crate) job: String,
    /// Why, for the job's history
    #[arg(long, default_value = "paused from the command line")]
    pub(crate) reason: String,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Debug, Args)]
pub(crate) struct Resume {
    /// Id of the job
    pub(crate) job: String,
    /// Go on from the checkpoint of this step instead of the newest, and give up what is above it: the
    /// job's ranks stop first, if it runs
    #[arg(long, value_name = "STEP")]
    pub(crate) from: Option<u64>,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Nodes {
    /// What to do; without it the nodes are listed
    #[command(subcommand)]
    pub(crate) command: Option<NodesCommand>,
    #[command(flatten)]
    pub(crate) list: ListNodes,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodesCommand {
    /// List the nodes of the cluster
    #[command(visible_alias = "list")]
    Ls(ListNodes),
    /// Let a node take no more ranks; those it has leave at their jobs' next checkpoints
    Drain(Drain),
    /// Let a node take ranks again, after a drain or after it was excluded for its faults
    Undrain(Undrain),
}

#[derive(Debug, Args)]
pub(crate) struct ListNodes {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Debug, Args)]
pub(crate) struct Drain {
    /// Name of the node
    pub(crate) node: String,
    /// Why, for listings and the histories of the jobs on it
    #[arg(long, default_value = "drained from the command line")]
    pub(crate) reason: String,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Debug, Args)]
pub(crate) struct Undrain {
    /// Name of the node
    pub(crate) node: String,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

const PLACES: &str = "URL is a folder of jobs, a job's folder or a checkpoint's: a path, or a URL of \
file://, s3://, gs:// or az:// (credentials come from the environment).";

#[derive(Debug, Args)]
pub(crate) struct Checkpoints {
    #[command(subcommand)]
    pub(crate) command: CheckpointsCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CheckpointsCommand {
    /// List the checkpoints of a job, newest first, or the jobs of a folder
    #[command(visible_alias = "list", after_help = PLACES)]
    Ls(LsCheckpoints),
    /// Show what a checkpoint holds; of a job the newest complete one
    #[command(after_help = PLACES)]
    Describe(DescribeCheckpoint),
    /// Read every object and compare it with the manifest's checksums; exit code 1 if something
    /// differs. Of a job the newest complete one
    #[command(after_help = PLACES)]
    Verify(VerifyCheckpoints),
    /// Delete checkpoints
    Rm(RmCheckpoints),
    /// Copy a checkpoint (of a job the newest complete one) into a job's folder elsewhere, verified on
    /// the way; a copy that broke off goes on where it was
    #[command(after_help = PLACES)]
    Copy(CopyCheckpoints),
    /// Write a checkpoint's model alone, as OpenCLIP loads it; of a job the newest complete one
    #[command(after_help = PLACES)]
    Export(ExportCheckpoint),
}

#[derive(Debug, Args)]
pub(crate) struct LsCheckpoints {
    /// Folder of jobs, a job's folder, or a checkpoint
    #[arg(default_value = "runs")]
    pub(crate) url: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DescribeCheckpoint {
    /// A checkpoint, or a job's folder
    pub(crate) url: String,
    /// Every tensor with type and shape, too
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyCheckpoints {
    /// A checkpoint, a job's folder, or a folder of jobs
    pub(crate) url: String,
    /// Not only the newest checkpoint of each job
    #[arg(long)]
    pub(crate) all: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RmCheckpoints {
    /// Checkpoints
    #[arg(value_name = "URL", required = true)]
    pub(crate) urls: Vec<String>,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Delete even the only complete one of a job, or one that may be being written
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CopyCheckpoints {
    /// A checkpoint, or a job's folder
    #[arg(value_name = "FROM")]
    pub(crate) from: String,
    /// The job's folder that the checkpoint will lie in; made if it does not exist
    #[arg(value_name = "TO")]
    pub(crate) to: String,
    /// All complete checkpoints of the job
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExportCheckpoint {
    /// A checkpoint, or a job's folder
    pub(crate) url: String,
    /// File to write, a path or URL that ends in .safetensors
    #[arg(value_name = "FILE")]
    pub(crate) file: String,
    /// Replace the file if it exists
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Validate {
    /// Manifests to check
    #[arg(value_name = "FILE", required = true)]
    pub(crate) manifests: Vec<PathBuf>,
    /// Open the training data as ranks do: refuse a manifest whose data is missing or takes more memory than it
    /// allows, and say how much there is
    #[arg(long)]
    pub(crate) data: bool,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn nodes_lists_them_unless_it_is_told_what_else_to_do() {
        let parse = |words: &[&str]| match Cli::try_parse_from(words).unwrap().command {
            Command::Nodes(nodes) => nodes,
            other => panic!("{other:?}"),
        };
        let listing = parse(&["ringmaster", "nodes", "--json"]);
        assert!(listing.command.is_none() && listing.list.json);
        let words = ["ringmaster", "nodes", "drain", "n0", "--coordinator", "http://10.0.0.1:1"];
        match parse(&words).command {
            Some(NodesCommand::Drain(drain)) => {
                assert_eq!(
                    (drain.node.as_str(), drain.remote.coordinator.as_str()),
                    ("n0", words[5])
                );
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn resume_without_a_value_means_latest() {
        let parse = |words: &[&str]| match Cli::try_parse_from(words).unwrap().command {
            Command::Train(train) => train,
            other => panic!("{other:?}"),
        };
        assert_eq!(parse(&["ringmaster", "train", "a.yaml", "--resume"]).resume.unwrap(), "latest");
        assert_eq!(
            parse(&["ringmaster", "train", "a.yaml", "--resume", "emoji-abc234"]).resume.unwrap(),
            "emoji-abc234"
        );
        assert_eq!(parse(&["ringmaster", "train", "a.yaml"]).resume, None);
    }
}
