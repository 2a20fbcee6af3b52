//! `ringmaster-bench`: loads parts of Ringmaster as a large cluster would, and says what they take.

mod agent;
mod control_plane;
mod host;
mod jobs;
mod numbers;
mod recorder;
mod report;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Loads parts of Ringmaster as a large cluster would.
#[derive(Debug, Parser)]
#[command(name = "ringmaster-bench", version)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// A coordinator of its own under simulated agents: heartbeat round trip, time from submission
    /// to assignment, memory and processor time of the coordinator; one line of JSON
    ControlPlane(control_plane::ControlPlane),
}

fn main() -> ExitCode {
    match run(&Cli::parse().what) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            control_plane::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(what: &What) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match what {
        What::ControlPlane(args) => runtime.block_on(control_plane::run(args)),
    }
}
