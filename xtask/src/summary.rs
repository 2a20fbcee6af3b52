//! What `cargo xtask test` prints at the end: every stage, how many tests passed, failed and were
//! skipped, and why.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::console;
use crate::skips::{Extent, Record};

/// How a stage ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It holds.
    Passed,
    /// It does not.
    Failed,
    /// It was not run, and why.
    Skipped(String),
}

/// What a stage left behind.
#[derive(Debug)]
pub(crate) struct Report {
    /// Its name.
    pub(crate) stage: String,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// How long it took.
    pub(crate) time: Duration,
    /// Its tests.
    pub(crate) tests: Tally,
    /// What its tests skipped; the same test may say so more than once.
    pub(crate) skips: BTreeSet<Record>,
}

impl Report {
    /// A stage that was not run.
    pub(crate) fn skipped(stage: String, why: String) -> Self {
        let outcome = Outcome::Skipped(why);
        let (tests, skips) = (Tally::default(), BTreeSet::new());
        Self { stage, outcome, time: Duration::ZERO, tests, skips }
    }

    fn skipped_tests(&self) -> u64 {
        let whole = self.skips.iter().filter(|record| record.extent == Extent::Whole);
        whole.map(|record| &record.test).collect::<BTreeSet<_>>().len() as u64
    }

    /// Tests that tested something, and those that did not: to libtest both have passed.
    fn tests(&self) -> Counts {
        let skipped = self.skipped_tests();
        let Tally { passed, failed, ignored } = self.tests;
        Counts { passed: passed.saturating_sub(skipped), failed, skipped: skipped + ignored }
    }
}

/// Sums over the `test result:` lines of all test programs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Tally {
    /// Adds up what test programs printed.
    pub(crate) fn read(output: &str) -> Self {
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
}

/// Reads what tests wrote down of what they skipped; nothing where no test did.
///
/// # Errors
/// The file cannot be read, or holds something else.
pub(crate) fn read_skips(file: &Path) -> Result<BTreeSet<Record>> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", file.display()));
        }
    };
    let records = text.lines().map(|line| line.parse::<Record>().map_err(anyhow::Error::msg));
    records.collect::<Result<_>>().with_context(|| format!("in {}", file.display()))
}

/// Prints the summary. The exit code is 0 when no stage failed.
pub(crate) fn print(reports: &[Report], time: Duration) -> ExitCode {
    console::out("");
    console::out(text(reports, time).trim_end());
    let has_failed = reports.iter().any(|report| report.outcome == Outcome::Failed);
    if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn text(reports: &[Report], time: Duration) -> String {
    let mut rows = vec![["stage", "result", "time", "tests"].map(str::to_owned).to_vec()];
    for report in reports {
        let result = match &report.outcome {
            Outcome::Passed => "ok",
            Outcome::Failed => "FAILED",
            Outcome::Skipped(_) => "skipped",
        };
        let counts = report.tests();
        let tests = if counts == Counts::default() { String::new() } else { counts.to_string() };
        let time = format!("{:.1} s", report.time.as_secs_f64());
        rows.push(vec![report.stage.clone(), result.to_owned(), time, tests]);
    }
    let total = reports.iter().map(Report::tests).fold(Counts::default(), Counts::plus);
    format!(
        "{}{}cargo xtask test: {}; {:.0} s\ntests: {total}\n",
        console::table(&rows),
        reasons(reports),
        verdict(reports),
        time.as_secs_f64()
    )
}

/// A line per thing that was missing: which stage it cost, or how many tests.
fn reasons(reports: &[Report]) -> String {
    let mut text = String::new();
    for report in reports {
        if let Outcome::Skipped(why) = &report.outcome {
            text.push_str(&format!("    {} skipped: {why}\n", report.stage));
        }
    }
    let mut tests = BTreeMap::<(Extent, &str), BTreeSet<&str>>::new();
    for record in reports.iter().flat_map(|report| &report.skips) {
        tests.entry((record.extent, &record.why)).or_default().insert(&record.test);
    }
    for ((extent, why), tests) in tests {
        let (count, tests) = (tests.len(), if tests.len() == 1 { "test" } else { "tests" });
        text.push_str(&match extent {
            Extent::Whole => format!("    {count} {tests} skipped: {why}\n"),
            Extent::Part => format!("    {count} {tests} run only in part: {why}\n"),
        });
    }
    text
}

fn verdict(reports: &[Report]) -> String {
    let names = |wanted: fn(&Outcome) -> bool| -> Vec<&str> {
        let chosen = reports.iter().filter(|report| wanted(&report.outcome));
        chosen.map(|report| report.stage.as_str()).collect()
    };
    let failed = names(|outcome| *outcome == Outcome::Failed);
    let skipped = names(|outcome| matches!(outcome, Outcome::Skipped(_)));
    match (&failed[..], &skipped[..]) {
        ([], []) => "all stages passed".to_owned(),
        ([], skipped) => format!("no stage failed, skipped: {}", skipped.join(", ")),
        (failed, _) => format!("failed: {}", failed.join(", ")),
    }
}

/// What became of tests.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Counts {
    fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
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

    /// Thirty tests without an S3 server used to count as passed, and nothing told.
    #[test]
    fn what_was_skipped_is_counted_once_per_test_taken_off_what_passed_and_explained() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("skips");
        assert!(read_skips(&file).unwrap().is_empty());
        let record = |test: &str, extent, why: &str| Record {
            test: test.to_owned(),
            extent,
            why: why.to_owned(),
        };
        let lines = [
            record("e2e a", Extent::Whole, "no S3 server"),
            record("e2e a", Extent::Whole, "no S3 server"),
            record("e2e b", Extent::Whole, "no S3 server"),
            record("checkpoint a", Extent::Part, "moto serves"),
        ];
        fs::write(&file, lines.map(|record| format!("{record}\n")).concat()).unwrap();
        let tests = Report {
            stage: "tests".to_owned(),
            outcome: Outcome::Passed,
            time: Duration::from_secs(9),
            tests: Tally { passed: 12, failed: 0, ignored: 1 },
            skips: read_skips(&file).unwrap(),
        };
        let advisories = Report::skipped("advisories".to_owned(), "nobody answers".to_owned());
        let text = text(&[tests, advisories], Duration::from_secs(10));
        for line in [
            "    tests            ok  9.0 s  10 passed, 0 failed, 3 skipped",
            "    advisories  skipped  0.0 s",
            "    advisories skipped: nobody answers",
            "    2 tests skipped: no S3 server",
            "    1 test run only in part: moto serves",
            "cargo xtask test: no stage failed, skipped: advisories; 10 s",
            "tests: 10 passed, 0 failed, 3 skipped",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        fs::write(&file, "torn").unwrap();
        let error = format!("{:#}", read_skips(&file).unwrap_err());
        assert!(error.contains("skips: not a record of a skipped test: \"torn\""), "{error}");
    }
}
