//! The command line of `ringmaster-worker`, its logs and its exit codes.
//!
//! Exit codes: 0 ended as asked; 1 failed; 2 the command line or a rank's environment is wrong;
//! 75 a rank lost its agent; 77 this node cannot run the rank, another one may; 78 trying again cannot help (the
//! manifest or its data cannot work); 101 a panic.

use std::ffi::OsStr;
use std::io::{self, IsTerminal as _, Write as _};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ringmaster_agent::env::RankEnv;
use ringmaster_agent::environment;
use ringmaster_agent::exit::{self, ExitStatus};
use ringmaster_agent::ffi::exit_now;
use ringmaster_manifest::spec::Accelerator;
use ringmaster_words::chain;
use ringmaster_worker::control::panic_hook;
use ringmaster_worker::control::signals::Termination;
use ringmaster_worker::factory::commands::{self, ModelCommand};
use ringmaster_worker::{error, probe, train};
use tracing_subscriber::EnvFilter;

/// A rank of Ringmaster: what touches tensors.
#[derive(Debug, Parser)]
#[command(name = "ringmaster-worker", version = env!("RINGMASTER_VERSION"))]
struct Cli {
    /// How logs are written.
    #[arg(long, global = true, env = environment::LOG_FORMAT, default_value = "text")]
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
    /// Trains as one rank of a job. Started by an agent, which sets its environment.
    Rank,
    /// Says what this worker is and which GPUs it sees. Agents ask before they start a rank.
    Probe(ProbeArgs),
    /// Runs, prepares inputs for, exports and looks into models.
    #[command(subcommand)]
    Model(Box<ModelCommand>),
}

#[derive(Debug, Args)]
struct ProbeArgs {
    /// One line of JSON instead of text
    #[arg(long)]
    json: bool,
    /// What ranks are to compute on: with cuda the GPUs are in the JSON, and it is an error if none can be
    /// used
    #[arg(long, default_value = "cpu", requires = "json")]
    accelerator: ProbedAccelerator,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProbedAccelerator {
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
        Command::Rank => run_rank(),
        Command::Probe(args) => run_probe(&args),
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

fn run_probe(args: &ProbeArgs) -> i32 {
    let accelerator = match args.accelerator {
        ProbedAccelerator::Cpu => Accelerator::Cpu,
        ProbedAccelerator::Cuda => Accelerator::Cuda,
    };
    let text = if args.json {
        let in_json = |info| serde_json::to_string(&info).map_err(|error| error.to_string());
        probe::probe(accelerator).and_then(in_json).map(|line| line + "\n")
    } else {
        probe::describe()
    };
    let write = |text: String| io::stdout().write_all(text.as_bytes());
    match text.and_then(|text| write(text).map_err(|error| format!("stdout: {error}"))) {
        Ok(()) => exit::SUCCESS,
        Err(why) => {
            // Not a log line, of which the agent would take the time for a part of the reason. Nobody may be
            // left to read it.
            let _ = writeln!(io::stderr(), "{why}");
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
        // It would complain on stderr about a broken stderr, and panic.
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

fn run_rank() -> i32 {
    // An agent starts it by the number of an open file, which would be its name in ps. Cosmetic only.
    let _ = nix::sys::prctl::set_name(c"ringmaster-work");
    let env = match RankEnv::from_env() {
        Ok(env) => env,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            return exit::USAGE;
        }
    };
    panic_hook::install(env.status_file.clone());
    let status_file = env.status_file.clone();
    let termination = Termination::take().map_err(|source| error::Error::Signals { source });
    let Err(error) = termination.and_then(|termination| train::run(env, termination)) else {
        return exit::SUCCESS;
    };
    let status = last_words(&error);
    tracing::error!(
        class = ?status.class,
        operation = status.operation,
        cause = status.cause,
        "{}",
        status.reason
    );
    if let Err(error) = exit::write_status(&status_file, &status) {
        tracing::error!(%error, path = %status_file.display(), "cannot write the status file");
    }
    code_of(status.class)
}

/// Says why a rank ends, and whose fault that is.
fn last_words(error: &error::Error) -> ExitStatus {
    ExitStatus {
        reason: chain(error),
        class: error.class(),
        operation: error.operation().to_owned(),
        cause: error.cause(),
    }
}

/// The exit code says the class, too, to an agent that finds no status file.
fn code_of(class: exit::Class) -> i32 {
    match class {
        exit::Class::Retry => exit::FAILED,
        exit::Class::Node => exit::NODE,
        exit::Class::Job => exit::HOPELESS,
    }
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
    fn last_words_and_exit_code_say_whose_fault_it_is() {
        let error = error::Error::NotFinite { step: 7, loss: f64::NAN, squared_norm: 1.0 };
        let words = last_words(&error);
        assert!(words.reason.contains("not finite in step 7"), "{}", words.reason);
        assert_eq!((words.class, code_of(words.class)), (exit::Class::Job, 78));
        assert_eq!((words.operation.as_str(), words.cause.as_str()), ("train", "not finite"));
        assert_eq!((code_of(exit::Class::Retry), code_of(exit::Class::Node)), (1, 77));
    }

    #[test]
    fn the_version_names_the_build_and_whether_it_can_be_made_to_fail() {
        let version = Cli::command().render_version();
        let faults = if cfg!(faults) { "+faults" } else { "" };
        let start = format!("ringmaster-worker 0.1.0{faults} (build ");
        assert!(version.starts_with(&start), "{version}");
    }
}
