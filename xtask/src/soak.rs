//! `cargo xtask soak`: the end-to-end tests that are too long for every change, by name.

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::console;
use crate::skips::REQUIRE;
use crate::workspace::Workspace;

/// `cargo xtask soak`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Which checks; all of them if none is named.
    #[arg(value_name = "CHECK")]
    checks: Vec<Check>,
}

/// A long check: a test of the ordinary run, told to take longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Check {
    /// A run killed 20 times at random steps and resumed from S3 each time
    Interrupted,
    /// A store that is away for 60 s in the middle of a save
    StoreAway,
    /// 2,000 pictures of random sizes, trained and evaluated at 224, 336 and 448 pixels
    Pictures,
}

impl Check {
    /// The test, and the variable that makes it long.
    fn test(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Interrupted => ("a_run_killed_again_and_again", "RINGMASTER_SOAK_KILLS", "20"),
            Self::StoreAway => ("a_store_that_is_away", "RINGMASTER_SOAK_AWAY_SECONDS", "60"),
            Self::Pictures => ("pictures_of_any_size", "RINGMASTER_SOAK_PICTURES", "2000"),
        }
    }
}

/// Runs the checks one after the other. Returns whether all held.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    let chosen = match options.checks.as_slice() {
        [] => Check::value_variants(),
        some => some,
    };
    let mut held = true;
    for check in chosen {
        let (test, variable, value) = check.test();
        console::step(&format!("{variable}={value} cargo test --workspace --test e2e {test}"));
        let mut cargo = workspace.cargo();
        cargo.args(["test", "--workspace", "--test", "e2e", "--", "--nocapture", test]);
        // A soak that skips has shown nothing.
        cargo.env(variable, value).env(REQUIRE, "s3");
        held &= cargo.status().context("cannot start cargo")?.success();
    }
    Ok(held)
}
