//! `cargo xtask test`: everything a change must pass, stage by stage, with a summary at the end.

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::console;
use crate::workspace::Workspace;

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

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    Skipped(String),
}

/// What a stage left behind.
struct Report {
    stage: Stage,
    outcome: Outcome,
    time: Duration,
    tests: Tally,
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
            reports.iter().any(|r| r.stage == Stage::Build && r.outcome == Outcome::Failed);
        let report = if broken && stage.runs_binaries() {
            Report::skipped(stage, "the build failed")
        } else {
            stage.run(workspace, &options.arguments)?
        };
        let stop = options.fail_fast && report.outcome == Outcome::Failed;
        reports.push(report);
        if stop {
            break;
        }
    }
    Ok(summarise(&reports, started.elapsed()))
}

impl Stage {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn runs_binaries(self) -> bool {
        matches!(self, Self::Tests | Self::Doctests)
    }

    fn run(self, workspace: &Workspace, arguments: &[OsString]) -> Result<Report> {
        if matches!(self, Self::Deny | Self::Advisories) && !has_cargo_deny(workspace) {
            if required("deny") {
                console::note("RINGMASTER_REQUIRE names deny, and cargo-deny is not installed");
                return Ok(Report { outcome: Outcome::Failed, ..Report::skipped(self, "") });
            }
            let how = "cargo-deny is not installed; cargo install cargo-deny --locked";
            return Ok(Report::skipped(self, how));
        }
        let mut command = self.command(workspace, arguments);
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        console::step(&format!("{}: cargo {}", self.name(), words.join(" ")));
        let started = Instant::now();
        let (success, output) = run_and_read(&mut command)?;
        let outcome = match success {
            true => Outcome::Passed,
            false if self == Self::Advisories && is_offline(&output) && !required("deny") => {
                Outcome::Skipped("the advisory database cannot be reached".to_owned())
            }
            false => Outcome::Failed,
        };
        Ok(Report { stage: self, outcome, time: started.elapsed(), tests: Tally::read(&output) })
    }

    /// The command of a stage. All select the whole workspace, so that cargo chooses one set of
    /// features and compiles each dependency once.
    fn command(self, workspace: &Workspace, arguments: &[OsString]) -> Command {
        let mut cargo = workspace.cargo();
        match self {
            Self::Fmt => cargo.args(["fmt", "--all", "--check"]),
            Self::Clippy => cargo.args(["clippy", "--workspace", "--all-targets", "--"]),
            Self::Build => cargo.args(["build", "--workspace", "--bins"]),
            Self::Tests => {
                cargo.args(["test", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"])
            }
            Self::Doctests => cargo.args(["test", "--workspace", "--doc", "--no-fail-fast"]),
            Self::Doc => cargo.args(["doc", "--workspace", "--no-deps"]),
            Self::Deny => cargo.args(["deny", "check", "bans", "licenses", "sources"]),
            Self::Advisories => cargo.args(["deny", "check", "advisories"]),
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
        cargo
    }
}

impl Report {
    fn skipped(stage: Stage, why: &str) -> Self {
        console::step(&format!("{}: skipped: {why}", stage.name()));
        Self {
            stage,
            outcome: Outcome::Skipped(why.to_owned()),
            time: Duration::ZERO,
            tests: Tally::default(),
        }
    }
}

/// Whether `RINGMASTER_REQUIRE`, a list separated by commas, names `what`.
fn required(what: &str) -> bool {
    env::var("RINGMASTER_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item.trim() == what))
}

fn has_cargo_deny(workspace: &Workspace) -> bool {
    let mut command = workspace.cargo();
    command.args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
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
    let mut text = forward(stdout, io::stdout());
    if let Some(stderr) = stderr {
        text.push_str(&forward(stderr, io::stderr()));
    }
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

/// Sums over the `test result:` lines of all test programs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Tally {
    fn read(output: &str) -> Self {
        let mut tally = Self::default();
        for line in output.lines().filter(|line| line.starts_with("test result:")) {
            let words: Vec<&str> = line.split_whitespace().collect();
            for pair in words.windows(2) {
                let Ok(count) = pair[0].parse::<u64>() else { continue };
                match pair[1].trim_end_matches(';') {
                    "passed" => tally.passed += count,
                    "failed" => tally.failed += count,
                    "ignored" => tally.ignored += count,
                    _ => {}
                }
            }
        }
        tally
    }

    fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
        }
    }
}

fn summarise(reports: &[Report], time: Duration) -> ExitCode {
    let mut rows = vec![["stage", "result", "time", "tests"].map(str::to_owned).to_vec()];
    for report in reports {
        let (result, remark) = match &report.outcome {
            Outcome::Passed => ("ok", ""),
            Outcome::Failed => ("FAILED", ""),
            Outcome::Skipped(why) => ("skipped", why.as_str()),
        };
        let Tally { passed, failed, .. } = report.tests;
        let tests = match passed + failed {
            0 => remark.to_owned(),
            _ => format!("{passed} passed, {failed} failed"),
        };
        let time = format!("{:.1} s", report.time.as_secs_f64());
        rows.push(vec![report.stage.name(), result.to_owned(), time, tests]);
    }
    console::out("");
    console::out(console::table(&rows).trim_end());
    let failed: Vec<_> = reports
        .iter()
        .filter(|report| report.outcome == Outcome::Failed)
        .map(|report| report.stage.name())
        .collect();
    let tests = reports.iter().fold(Tally::default(), |sum, report| sum.plus(report.tests));
    let verdict = if failed.is_empty() {
        "all stages passed".to_owned()
    } else {
        format!("failed: {}", failed.join(", "))
    };
    console::out(&format!(
        "cargo xtask test: {verdict}; {} tests passed, {} failed, {} ignored; {:.0} s",
        tests.passed,
        tests.failed,
        tests.ignored,
        time.as_secs_f64()
    ));
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_test_programs_are_added_up() {
        let output = "\
running 2 tests
test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 5 filtered out; finished in 1s
";
        assert_eq!(Tally::read(output), Tally { passed: 5, failed: 1, ignored: 1 });
    }
}
