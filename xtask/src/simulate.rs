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

/// Runs the seeds, a process per core. Returns whether every invariant held; the test tells the
/// story of each that did not, and how to see it again.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    console::step("cargo test --workspace --test simulation");
    let mut build = workspace.cargo();
    build.args(["test", "--workspace", "--test", "simulation", "--no-run"]);
    if !build.status().context("cannot start cargo")?.success() {
        return Ok(false);
    }
    if let Some(seed) = options.seed {
        let mut one = test(workspace);
        one.env("RINGMASTER_SIM_SEED", seed.to_string());
        return Ok(one.status().context("cannot start cargo")?.success());
    }
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let mut running = Vec::new();
    for core in 0..cores.min(options.seeds) {
        let (first, end) = (options.seeds * core / cores, options.seeds * (core + 1) / cores);
        let mut part = test(workspace);
        part.env("RINGMASTER_SIM_FROM", (options.from + first).to_string())
            .env("RINGMASTER_SIM_SEEDS", (end - first).to_string())
            .env_remove("RINGMASTER_SIM_SEED");
        running.push(part.spawn().context("cannot start cargo")?);
    }
    let mut held = true;
    for mut part in running {
        held &= part.wait().context("cannot wait for cargo")?.success();
    }
    Ok(held)
}

fn test(workspace: &Workspace) -> std::process::Command {
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--quiet", "--workspace", "--test", "simulation"]).args([
        "--",
        "--nocapture",
        "no_seed_violates_an_invariant",
    ]);
    cargo
}
