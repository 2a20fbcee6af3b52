//! `cargo xtask test`: everything a change must pass, stage by stage, with a summary at the end.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;
use std::{env, fs, thread};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::skips::{REQUIRE, is_required};
use crate::summary::{self, Outcome, Report, Tally};
use crate::workspace::Workspace;
use crate::{console, deny, skips, system};

/// Arguments of `cargo xtask test`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Run only these stages.
    #[arg(long, value_delimiter = ',', value_name = "STAGE")]
    only: Vec<Stage>,
    /// Leave these stages out.
    #[arg(long, value_delimiter = ',', value_name = "STAGE")]
    skip: Vec<Stage>,
    /// Stop at the first stage that fails.
    #[arg(long)]
    fail_fast: bool,
    /// Arguments of the test programs: a part of a test's name, --nocapture, --test-threads=1, …
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

/// The stages, in the order they run: what fails fastest comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// cargo fmt --check
    Fmt,
    /// cargo clippy with warnings as errors
    Clippy,
    /// Build all binaries, which the end-to-end tests start
    Build,
    /// Unit and integration tests
    Tests,
    /// Examples in the documentation
    Doctests,
    /// cargo doc with warnings as errors
    Doc,
    /// cargo deny: licences, duplicate providers, sources
    Deny,
    /// cargo deny: known vulnerabilities
    Advisories,
}

/// Runs the chosen stages. The exit code is 0 when none failed.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let chosen = Stage::value_variants().iter().copied().filter(|stage| {
        (options.only.is_empty() || options.only.contains(stage)) && !options.skip.contains(stage)
    });
    let started = Instant::now();
    let mut reports: Vec<Report> = Vec::new();
    for stage in chosen {
        let broken =
            reports.iter().any(|r| r.stage == Stage::Build.name() && r.outcome == Outcome::Failed);
        let report = if broken && stage.runs_binaries() {
            stage.skipped("the build failed".to_owned())
        } else {
            stage.run(workspace, &options.arguments)?
        };
        let stop = options.fail_fast && report.outcome == Outcome::Failed;
        reports.push(report);
        if stop {
            break;
        }
    }
    Ok(summary::print(&reports, started.elapsed()))
}

impl Stage {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn runs_binaries(self) -> bool {
        matches!(self, Self::Tests | Self::Doctests)
    }

    /// What the absence of counts as in `RINGMASTER_REQUIRE`, for stages that may lack something.
    fn kind(self) -> &'static str {
        if self == Self::Advisories { "advisories" } else { "deny" }
    }

    fn skipped(self, why: String) -> Report {
        console::step(&format!("{}: skipped: {why}", self.name()));
        Report::skipped(self.name(), why)
    }

    /// The same, unless it must not be: then it has failed.
    fn lacks(self, why: String) -> Report {
        if is_required(self.kind()) {
            console::note(&format!("{REQUIRE} names {}: {why}", self.kind()));
            return Report { outcome: Outcome::Failed, ..Report::skipped(self.name(), why) };
        }
        self.skipped(why)
    }

    fn run(self, workspace: &Workspace, arguments: &[OsString]) -> Result<Report> {
        let mut command = match self.command(workspace, arguments) {
            Ok(command) => command,
            Err(error) => return Ok(self.lacks(format!("there is no cargo-deny: {error:#}"))),
        };
        if self == Self::Tests {
            system::ensure_s3_server(workspace);
            system::ensure_grpc_client(workspace);
        }
        let skips = workspace.cache().join(format!("skips-{}", std::process::id()));
        forget(&skips);
        command.env(skips::FILE, &skips);
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        let program = Path::new(command.get_program()).file_name().unwrap_or_default();
        let line = format!("{} {}", program.to_string_lossy(), words.join(" "));
        console::step(&format!("{}: {line}", self.name()));
        let started = Instant::now();
        let (success, output) = run_and_read(&mut command)?;
        let time = started.elapsed();
        if !success && self == Self::Advisories && is_offline(&output) {
            let why = "the advisory database cannot be reached".to_owned();
            return Ok(Report { time, ..self.lacks(why) });
        }
        let outcome = if success { Outcome::Passed } else { Outcome::Failed };
        let (tests, skipped) = (Tally::read(&output), summary::read_skips(&skips)?);
        forget(&skips);
        Ok(Report { stage: self.name(), outcome, time, tests, skips: skipped })
    }

    /// The command of a stage. All select the whole workspace, so that cargo chooses one set of
    /// features and compiles each dependency once.
    ///
    /// # Errors
    /// There is no cargo-deny.
    fn command(self, workspace: &Workspace, arguments: &[OsString]) -> Result<Command> {
        let mut cargo = match self {
            Self::Deny | Self::Advisories => deny::command(workspace)?,
            _ => workspace.cargo(),
        };
        match self {
            Self::Fmt => cargo.args(["fmt", "--all", "--check"]),
            Self::Clippy => cargo.args(["clippy", "--workspace", "--all-targets", "--"]),
            Self::Build => cargo.args(["build", "--workspace", "--bins"]),
            Self::Tests => {
                cargo.args(["test", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"])
            }
            Self::Doctests => cargo.args(["test", "--workspace", "--doc", "--no-fail-fast"]),
            Self::Doc => cargo.args(["doc", "--workspace", "--no-deps"]),
            Self::Deny => cargo.args(["check", "bans", "licenses", "sources"]),
            Self::Advisories => cargo.args(["check", "advisories"]),
        };
        match self {
            Self::Clippy => {
                cargo.args(["-D", "warnings"]);
            }
            Self::Tests | Self::Doctests if !arguments.is_empty() => {
                cargo.arg("--").args(arguments);
            }
            Self::Doc => {
                cargo.env("RUSTDOCFLAGS", "-D warnings");
            }
            _ => {}
        }
        Ok(cargo)
    }
}

/// Removes what tests wrote down; there is nothing where none skipped anything.
fn forget(skips: &Path) {
    let _ = fs::remove_file(skips);
}

fn is_offline(output: &str) -> bool {
    output.contains("failed to fetch advisory database")
}

/// Runs a command, passes what it prints on as it comes, and returns it too.
fn run_and_read(command: &mut Command) -> Result<(bool, String)> {
    if io::stdout().is_terminal() && env::var_os("CARGO_TERM_COLOR").is_none() {
        // Through a pipe cargo and the test programs would drop their colours.
        command.env("CARGO_TERM_COLOR", "always");
    }
    let watch_errors = command.get_args().any(|word| word == "advisories");
    let mut child = command
        .stdout(Stdio::piped())
        // cargo's progress bar wants the terminal; cargo-deny speaks on standard error only.
        .stderr(if watch_errors { Stdio::piped() } else { Stdio::inherit() })
        .spawn()
        .context("cannot start cargo")?;
    let stdout = child.stdout.take().context("standard output was not captured")?;
    let stderr = child.stderr.take();
    // Side by side: a command that fills the one would wait for ever for somebody to read it.
    let text = thread::scope(|scope| {
        let errors = stderr.map(|stderr| scope.spawn(|| forward(stderr, io::stderr())));
        let text = forward(stdout, io::stdout());
        let errors = errors.and_then(|errors| errors.join().ok());
        [text, errors.unwrap_or_default()].concat()
    });
    let status = child.wait().context("cannot wait for cargo")?;
    Ok((status.success(), text))
}

fn forward(mut source: impl Read, mut target: impl Write) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 8192];
    while let Ok(read @ 1..) = source.read(&mut buffer) {
        // The stage goes on when nobody reads any more.
        let _ = target.write_all(&buffer[..read]).and_then(|()| target.flush());
        all.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8_lossy(&all).into_owned()
}
