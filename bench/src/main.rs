//! `ringmaster-bench`: see the library. Its ranks are this program again.

use std::io;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use ringmaster_bench::checkpoint::{self, CheckpointArgs};
use ringmaster_bench::collective::{self, CollectiveArgs};
use ringmaster_bench::control_plane::{self, ControlPlane};
use ringmaster_bench::data::{self, DataArgs};
use ringmaster_bench::inputs::{self, PreprocessArgs, TokenizerArgs};
use ringmaster_bench::loss::{self, LossArgs};
use tracing_subscriber::EnvFilter;

/// Measures parts of Ringmaster on this machine; one line of JSON each.
#[derive(Debug, Parser)]
#[command(name = "ringmaster-bench", version)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// What a checkpoint costs a run, beside plain copies of memory and files.
    Checkpoint(CheckpointArgs),
    /// How fast tensors move between ranks, each a process of this machine.
    Collective(CollectiveArgs),
    /// A coordinator of its own under simulated agents: heartbeat round trip, time from submission
    /// to assignment, memory and processor time of the coordinator
    ControlPlane(ControlPlane),
    /// How fast shards become batches.
    Data(DataArgs),
    /// What a loss costs in time and memory beside its bare matrix products, and what it computes.
    Loss(LossArgs),
    /// How fast pictures become inputs, on one core.
    Preprocess(PreprocessArgs),
    /// How fast captions become token ids, on one core.
    Tokenizer(TokenizerArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    match run(&cli.what) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            control_plane::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(what: &What) -> Result<()> {
    match what {
        What::Checkpoint(args) => checkpoint::run(args),
        What::Collective(args) => collective::run(args),
        What::ControlPlane(args) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(control_plane::run(args))
        }
        What::Data(args) => data::run(args),
        What::Loss(args) => loss::run(args),
        What::Preprocess(args) => inputs::preprocess(args),
        What::Tokenizer(args) => inputs::tokenizer(args),
    }
}
