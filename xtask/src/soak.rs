//! `cargo xtask soak`: the checks that are too long for every change, by name: end-to-end tests, and one that
//! is a program of its own, because it must let go on whom it has stopped, however it ends.

use std::process::Command;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::bench::{DISTURBERS, END_WITH_PARENT, run_with_pipe};
use crate::skips::REQUIRE;
use crate::workspace::Workspace;
use crate::{build, console};

/// `cargo xtask soak`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Which checks; all of them if none is named.
    #[arg(value_name = "CHECK")]
    checks: Vec<Check>,
    /// How long false-loss lasts.
    #[arg(long, value_name = "MINUTES", default_value_t = 60.0)]
    minutes: f64,
    /// What false-loss inflicts, and when; drawn, and said, if absent.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// A long check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Check {
    /// A run killed 20 times at random steps and resumed from S3 each time
    Interrupted,
    /// A store that is away for 60 s in the middle of a save
    StoreAway,
    /// 2,000 pictures of random sizes, trained and evaluated at 224, 336 and 448 pixels
    Pictures,
    /// Ten runs whose checkpoint folder is full or read-only until room or right is made
    DiskFull,
    /// An hour of slow ranks, starved cores, stopped agents and lost packets: nothing is taken for lost
    FalseLoss,
}

/// A test of the ordinary run, told to take longer.
#[derive(Debug)]
struct Test {
    /// The beginning of its name.
    name: &'static str,
    /// The variable that makes it long.
    variable: &'static str,
    value: &'static str,
    /// Without what it has shown nothing.
    needs: &'static str,
}

impl Check {
    /// The test that it is; none for the one that is a program.
    fn test(self) -> Option<Test> {
        let (name, variable, value, needs) = match self {
            Self::Interrupted => {
                ("a_run_killed_again_and_again", "RINGMASTER_SOAK_KILLS", "20", "s3")
            }
            Self::StoreAway => ("a_store_that_is_away", "RINGMASTER_SOAK_AWAY_SECONDS", "60", "s3"),
            Self::Pictures => ("pictures_of_any_size", "RINGMASTER_SOAK_PICTURES", "2000", "s3"),
            Self::DiskFull => {
                ("a_checkpoint_folder_without", "RINGMASTER_SOAK_FULL_DISKS", "10", "mount")
            }
            Self::FalseLoss => return None,
        };
        Some(Test { name, variable, value, needs })
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
        held &= match check.test() {
            Some(test) => run_test(workspace, &test)?,
            None => false_loss(workspace, options)?,
        };
    }
    Ok(held)
}

fn run_test(workspace: &Workspace, test: &Test) -> Result<bool> {
    let Test { name, variable, value, needs } = test;
    console::step(&format!("{variable}={value} cargo test --workspace --test e2e {name}"));
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--workspace", "--test", "e2e", "--", "--nocapture", *name]);
    // A soak that skips has shown nothing.
    cargo.env(variable, value).env(REQUIRE, needs);
    Ok(cargo.status().context("cannot start cargo")?.success())
}

/// Disturbs the programs that people run, but for the features that let ranks be slow.
fn false_loss(workspace: &Workspace, options: &Options) -> Result<bool> {
    if !build(workspace, &[DISTURBERS.0], &DISTURBERS.1)? {
        return Ok(false);
    }
    let minutes = options.minutes.to_string();
    console::step(&format!("ringmaster-soak --minutes {minutes}"));
    let mut soak = Command::new(workspace.program("ringmaster-soak")?);
    soak.args(["--minutes", &minutes, END_WITH_PARENT]);
    if let Some(seed) = options.seed {
        soak.args(["--seed", &seed.to_string()]);
    }
    run_with_pipe(&mut soak)
}
