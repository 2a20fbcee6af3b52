//! Developer commands of the Ringmaster repository: `cargo xtask <command>`.
//!
//! This crate must stay quick to compile, because it is what a fresh clone builds first: no libtorch,
//! no async runtime, no crate of the workspace. What draws the data set is a program of its own,
//! `xtask/emoji`.
//!
//! Modules in reading order: [`workspace`] (where things are), [`tools`] (what the machine must have),
//! [`fetch`] (verified downloads), [`libtorch`], [`emoji`] (the data of the main job), [`setup`] (all of
//! these), [`python`] (environments), [`system`] (what tests talk to), [`deny`] (cargo-deny), [`claims`] (what
//! the main job must reach), [`stages`] (the test run) with [`skips`] and [`summary`] (what it skipped, what it
//! tells), [`mod@bench`] (our numbers beside the peers'), [`parity`] (our values beside OpenCLIP's),
//! [`simulate`] (many seeds), [`soak`] (long checks), [`fuzz`] (inputs that nobody thought of), [`gpu`] (the
//! claims about GPUs), [`console`] (what is printed) and [`digest`] are in the library, which `xtask/emoji`
//! uses too.

mod bench;
#[path = "../../tests/src/cargo_env.rs"]
mod cargo_env;
mod claims;
mod deny;
mod early_build;
mod emoji;
mod fetch;
mod fuzz;
mod gpu;
mod libtorch;
mod parity;
mod python;
mod setup;
mod simulate;
#[path = "../../tests/src/skips/record.rs"]
#[expect(unreachable_pub, reason = "the tests' crate exports it")]
mod skips;
mod soak;
mod stages;
mod summary;
mod system;
mod tools;
mod workspace;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use xtask::{console, digest};

use crate::early_build::EarlyBuild;
use crate::workspace::Workspace;

/// The packages, and programs, that people run.
const PRODUCT: [&str; 2] = ["ringmaster", "ringmaster-worker"];

/// What is said when the product is built.
const BUILDING: &str =
    "building the coordinator and the worker (a first build takes a few minutes)";

/// The job that `cargo xtask quickstart` runs, relative to the root of the workspace.
const QUICKSTART_JOB: &str = "configs/jobs/emoji-siglip.yaml";

/// Developer commands of the Ringmaster repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Download libtorch and build the emoji data set; does nothing where both are there already.
    Setup {
        /// Read every installed file again and compare its checksum.
        #[arg(long)]
        verify: bool,
        /// Install the servers and libraries that tests use, with the system's package manager where that
        /// may be, and cargo-deny; nothing else.
        #[arg(long, conflicts_with = "verify")]
        system: bool,
    },
    /// Print shell lines that let plain `cargo build` and `cargo test` find libtorch:
    /// eval "$(cargo xtask env)".
    Env,
    /// Set up, then build what people run: ringmaster and ringmaster-worker, optimised.
    Build,
    /// Set up, build, and train the emoji model: the main job from end to end.
    Quickstart {
        /// Fail unless the run keeps what the README claims: its time, its accuracy.
        #[arg(long)]
        check: bool,
        /// Further arguments of `ringmaster train`.
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// Set up, then check format, lints, tests, documentation and dependencies; says at the end what was
    /// skipped, and why.
    Test(stages::Options),
    /// Compare with OpenCLIP and gloo in one run: parity, loss, collective; load the control plane.
    Bench(bench::Options),
    /// Compare every model family, tokenizer and transform with OpenCLIP's, live: golden files are
    /// made anew, full-size models run on both sides.
    Parity(parity::Options),
    /// Simulate the coordinator under faults drawn from many seeds.
    Simulate(simulate::Options),
    /// Run checks that take too long for every change: many interrupted runs, a store that is away.
    Soak(soak::Options),
    /// Let a fuzzer make manifests, and look for one that panics, takes long or takes much memory.
    Fuzz(fuzz::Options),
    /// Run every claim about GPUs and write one JSON report; without a GPU all are "not run".
    GpuCheck(gpu::check::Options),
    /// Pack what gpu-check needs on a machine with PyTorch 2.11 and a GPU but no Rust.
    GpuBundle(gpu::bundle::Options),
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            console::error(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Setup { system: true, .. } => {
            system::run(&Workspace::locate()?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Setup { verify, system: false } => {
            setup::run(&Workspace::locate()?, verify)?;
            console::note(
                "next: `cargo xtask quickstart` trains the emoji model; `cargo xtask test` runs every test",
            );
            Ok(ExitCode::SUCCESS)
        }
        Command::Env => {
            console::out(&Workspace::locate()?.shell_exports());
            Ok(ExitCode::SUCCESS)
        }
        Command::Build => {
            let workspace = Workspace::locate()?;
            if !set_up_and_build(&workspace)? {
                return Ok(ExitCode::FAILURE);
            }
            let program = workspace.program(PRODUCT[0])?;
            let folder = program.parent().unwrap_or(&program);
            console::note(&format!("{} are in {}", PRODUCT.join(" and "), folder.display()));
            Ok(ExitCode::SUCCESS)
        }
        Command::Quickstart { check, arguments } => {
            quickstart(&Workspace::locate()?, check, &arguments)
        }
        Command::Test(options) => {
            let workspace = Workspace::locate()?;
            setup::run(&workspace, false)?;
            stages::run(&workspace, &options)
        }
        Command::Bench(options) => Ok(exit_code(bench::run(&Workspace::locate()?, &options)?)),
        Command::Parity(options) => Ok(exit_code(parity::run(&Workspace::locate()?, &options)?)),
        Command::Simulate(options) => {
            let workspace = Workspace::locate()?;
            setup::run(&workspace, false)?;
            Ok(exit_code(simulate::run(&workspace, &options)?))
        }
        Command::Soak(options) => {
            let workspace = Workspace::locate()?;
            setup::run(&workspace, false)?;
            Ok(exit_code(soak::run(&workspace, &options)?))
        }
        Command::Fuzz(options) => Ok(exit_code(fuzz::run(&Workspace::locate()?, &options)?)),
        // Runs outside the repository too, out of a bundle.
        Command::GpuCheck(options) => gpu::check::run(Workspace::locate, &options),
        Command::GpuBundle(options) => {
            gpu::bundle::run(&Workspace::locate()?, &options)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Sets up, and builds the product in one call of cargo with what set-up itself needs built.
fn set_up_and_build(workspace: &Workspace) -> Result<bool> {
    let ready = setup::Ready::find(workspace);
    let packages = [&PRODUCT, ready.packages()].concat();
    let early =
        ready.lacks_something().then(|| EarlyBuild::start(workspace, &packages)).transpose()?;
    setup::download(workspace)?;
    console::step(BUILDING);
    let is_built = early.map_or(Ok(false), EarlyBuild::finish)?;
    if !is_built && !workspace.build(&packages, &[])? {
        return Ok(false);
    }
    setup::finish(workspace, ready)?;
    Ok(true)
}

/// Builds the product, and `more` packages with it, as people run it, but for `features`.
fn build(workspace: &Workspace, more: &[&str], features: &[&str]) -> Result<bool> {
    console::step(BUILDING);
    workspace.build(&[&PRODUCT, more].concat(), features)
}

/// Becomes `ringmaster train`, so that its exit code and the terminal's signals are its own; to
/// check the run afterwards it has to stay the parent.
fn quickstart(workspace: &Workspace, check: bool, arguments: &[OsString]) -> Result<ExitCode> {
    if !set_up_and_build(workspace)? {
        return Ok(ExitCode::FAILURE);
    }
    let program = workspace.program(PRODUCT[0])?;
    console::step(&format!("ringmaster train {QUICKSTART_JOB}"));
    let mut train = workspace.command(&program);
    train.args(["train", QUICKSTART_JOB]).args(arguments).current_dir(workspace.root());
    let cannot_start = || format!("cannot start {}", program.display());
    if !check {
        return Err(train.exec()).with_context(cannot_start);
    }
    let status = train.status().with_context(cannot_start)?;
    if !status.success() {
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
    }
    let summary = workspace.root().join("runs/latest/summary.json");
    Ok(exit_code(claims::check(&summary)?))
}

fn exit_code(success: bool) -> ExitCode {
    if success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
