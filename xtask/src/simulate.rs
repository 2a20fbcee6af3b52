//! `cargo xtask simulate`: many seeds of the coordinator's simulation.

use anyhow::{Context, Result};
use clap::Args;

use crate::console;
use crate::workspace::Workspace;

/// `cargo xtask simulate`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Only this one, telling everything that happens.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
}

/// Runs the seeds. Returns whether every invariant held; the test tells the story of each that did
/// not, and how to see it again.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    console::step("cargo test --workspace --test simulation");
    let mut cargo = workspace.cargo();
    cargo
        .args(["test", "--workspace", "--test", "simulation"])
        .args(["--", "--nocapture", "no_seed_violates_an_invariant"])
        .env("RINGMASTER_SIM_FROM", options.from.to_string())
        .env("RINGMASTER_SIM_SEEDS", options.seeds.to_string())
        .env_remove("RINGMASTER_SIM_SEED");
    if let Some(seed) = options.seed {
        cargo.env("RINGMASTER_SIM_SEED", seed.to_string());
    }
    Ok(cargo.status().context("cannot start cargo")?.success())
}
