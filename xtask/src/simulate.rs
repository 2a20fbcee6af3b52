//! `cargo xtask simulate`: many seeds of the coordinator's simulation.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use clap::Args;

use crate::console;
use crate::workspace::Workspace;

/// From so many seeds on, everything that a run counts must have happened …
const ENOUGH: u64 = 1000;
/// … once in so many seeds.
const ONCE_IN: u64 = 100;

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

/// Runs the seeds, a process per core. Returns whether every invariant held and, with many seeds,
/// whether every fault, kind of exit and deadline struck often enough. The test tells the story of each
/// seed that violated something, and how to see it again.
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
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let mut running = Vec::new();
    for core in 0..cores.min(options.seeds) {
        let (first, end) = (options.seeds * core / cores, options.seeds * (core + 1) / cores);
        let counts = folder.path().join(core.to_string());
        let mut part = test(workspace);
        part.env("RINGMASTER_SIM_FROM", (options.from + first).to_string())
            .env("RINGMASTER_SIM_SEEDS", (end - first).to_string())
            .env("RINGMASTER_SIM_COUNTS", &counts)
            .env_remove("RINGMASTER_SIM_SEED");
        running.push((part.spawn().context("cannot start cargo")?, counts));
    }
    let mut held = true;
    let mut counts = BTreeMap::new();
    for (mut part, path) in running {
        held &= part.wait().context("cannot wait for cargo")?.success();
        add_counts(&path, &mut counts)?;
    }
    Ok(struck_often_enough(&counts, options.seeds) && held)
}

/// Adds what one process counted: a number and what it counts, a line.
fn add_counts(path: &Path, counts: &mut BTreeMap<String, u64>) -> Result<()> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("a part of the seeds left no counts at {}", path.display()))?;
    for line in text.lines() {
        let parsed = line.trim().split_once(' ');
        let parsed = parsed.and_then(|(count, what)| Some((count.parse::<u64>().ok()?, what)));
        let (count, what) = parsed.with_context(|| format!("{line:?} is no count"))?;
        *counts.entry(what.to_owned()).or_default() += count;
    }
    Ok(())
}

/// Tells the counts, and which of them are too low for so many seeds. What hardly ever happens was not
/// tried.
fn struck_often_enough(counts: &BTreeMap<String, u64>, seeds: u64) -> bool {
    for (what, count) in counts {
        console::note(&format!("{count:>8} {what}"));
    }
    if seeds < ENOUGH {
        return true;
    }
    let least = seeds / ONCE_IN;
    let rare = counts.iter().filter(|(_, count)| **count < least);
    let rare: Vec<String> = rare.map(|(what, count)| format!("{what} ({count})")).collect();
    if !rare.is_empty() {
        console::note(&format!("fewer than {least} in {seeds} seeds: {}", rare.join(", ")));
    }
    rare.is_empty()
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_hardly_ever_happened_is_told_once_there_were_many_seeds() {
        let counts = |count| BTreeMap::from([("fault: twin".to_owned(), count)]);
        assert!(struck_often_enough(&counts(100), 10_000));
        assert!(!struck_often_enough(&counts(99), 10_000));
        assert!(!struck_often_enough(&counts(0), 1000));
        assert!(struck_often_enough(&counts(0), 999));
    }

    #[test]
    fn the_counts_of_all_processes_are_added_up() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "       3 fault: twin\n       0 exit: job\n").unwrap();
        let mut counts = BTreeMap::new();
        for _ in 0..2 {
            add_counts(file.path(), &mut counts).unwrap();
        }
        let expected = [("exit: job".to_owned(), 0), ("fault: twin".to_owned(), 6)];
        assert_eq!(counts, BTreeMap::from(expected));
        std::fs::write(file.path(), "twin\n").unwrap();
        assert!(add_counts(file.path(), &mut counts).is_err());
    }
}
