//! Strikes a real cluster with faults and prints how long its job takes to train again.

#![allow(clippy::print_stderr, reason = "progress of a command for the terminal")]

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use ringmaster_tests::binaries::Binaries;
use ringmaster_tests::faults::drill::{Report, drill};
use ringmaster_tests::faults::interruption;
use ringmaster_tests::faults::kind::{KINDS, Kind};
use ringmaster_tests::faults::timeline::PARTS;
use ringmaster_tests::processes::Interrupted;
use serde_json::json;

/// Strikes a real cluster with faults and prints how long its job takes to train again.
#[derive(Debug, Parser)]
struct Options {
    /// Faults of each kind
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Jobs that are slow in some way, of each kind; one may take two minutes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    slow_runs: u16,
    /// Ranks of the job; the cluster has one node of one slot more
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=32))]
    ranks: u32,
    /// Kinds of fault [default: all]
    #[arg(long, value_delimiter = ',', value_parser = parse_kind)]
    kinds: Vec<Kind>,
    /// Fail where a recovery takes longer than it may
    #[arg(long)]
    check: bool,
    /// Break off when stdin ends
    #[arg(long, hide = true)]
    parent_pipe: bool,
}

/// Exit code of a drill that was broken off, as shells have it for SIGINT.
const INTERRUPTED: u8 = 130;

fn parse_kind(text: &str) -> Result<Kind, String> {
    let words: Vec<&str> = KINDS.iter().map(|(word, _)| *word).collect();
    let known = KINDS.iter().find(|(word, _)| *word == text);
    known.map(|(_, kind)| *kind).ok_or_else(|| format!("one of {}", words.join(", ")))
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Err(error) = interruption::watch(options.parent_pipe) {
        eprintln!("error: cannot take signals: {error}");
        return ExitCode::FAILURE;
    }
    let kinds = if options.kinds.is_empty() {
        KINDS.iter().map(|(_, kind)| *kind).collect()
    } else {
        options.kinds.clone()
    };
    let binaries = Binaries::beside_this_program();
    let mut kept = true;
    for kind in kinds {
        match one(kind, &binaries, &options) {
            Ok(promise_kept) => kept &= promise_kept,
            Err(Interrupted) => {
                eprintln!("interrupted; the cluster has ended");
                return ExitCode::from(INTERRUPTED);
            }
        }
    }
    if kept || !options.check { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One kind; whether its promise was kept. A job that does not go on breaks off its kind only.
fn one(kind: Kind, binaries: &Binaries, options: &Options) -> Result<bool, Interrupted> {
    let say = |line: &str| eprintln!("{line}");
    let runs = match kind {
        Kind::Slow(_) => options.slow_runs,
        _ => options.runs,
    };
    let drill = || drill(kind, binaries, options.ranks, runs.into(), say);
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(drill)) {
        Ok(report) => Ok(print(&report, options.ranks)),
        Err(payload) if payload.is::<Interrupted>() => Err(Interrupted),
        Err(payload) => {
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
            let error = text.unwrap_or("a panic without a word");
            write(&json!({"fault": kind.word(), "passed": false, "error": error}));
            Ok(false)
        }
    }
}

/// What is promised of a fault: most seconds in the median, and at all.
fn promise(report: &Report) -> [f64; 2] {
    match report.kind {
        Kind::KillRank | Kind::KillAgent => [2.0, 5.0],
        // A lease of 5 s runs out first.
        Kind::StopRank | Kind::CutNode => [10.0, 10.0],
        // No step is lost: none takes longer than the slowest without a fault, with some room for
        // the processes that start meanwhile on the same cores.
        Kind::KillCoordinator => [1.0, 1.0],
        // As long as it stood still, and a second to spare.
        Kind::SlowRank => [4.0, 4.0],
        Kind::Slow(slow) => [slow.limit().as_secs_f64(); 2],
    }
}

/// Prints a kind's line; whether its promise was kept.
fn print(report: &Report, ranks: u32) -> bool {
    let mut totals: Vec<f64> = report.recoveries.iter().map(|r| r.total).collect();
    totals.sort_by(f64::total_cmp);
    let parts: serde_json::Map<_, _> = PARTS
        .iter()
        .enumerate()
        .map(|(i, part)| {
            let mut times: Vec<f64> = report.recoveries.iter().map(|r| r.parts[i]).collect();
            times.sort_by(f64::total_cmp);
            (format!("{part}_p50_seconds"), json!(round(at(&times, 0.5))))
        })
        .collect();
    let [median, most] = promise(report);
    let no_alarm = !report.kind.spares_ranks() || report.counted == 0;
    let kept = no_alarm && at(&totals, 0.5) <= median && at(&totals, 1.0) <= most;
    let line = json!({
        "fault": report.kind.word(),
        "runs": totals.len(),
        "ranks": ranks,
        "measures": if report.kind.spares_ranks() { "longest time between two steps" } else { "fault to next completed step" },
        "p50_seconds": round(at(&totals, 0.5)),
        "p95_seconds": round(at(&totals, 0.95)),
        "max_seconds": round(at(&totals, 1.0)),
        "parts": if report.kind.spares_ranks() { serde_json::Map::new() } else { parts },
        "step_p50_seconds": round(report.calm[0]),
        "step_max_seconds": round(report.calm[1]),
        "recoveries_counted": report.counted,
        "promised_p50_seconds": median,
        "promised_max_seconds": most,
        "passed": kept,
    });
    write(&line);
    kept
}

fn write(line: &serde_json::Value) {
    // A reader that has gone needs no more.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

fn at(sorted: &[f64], share: f64) -> f64 {
    let index = (share * sorted.len().saturating_sub(1) as f64).ceil() as usize;
    sorted.get(index).copied().unwrap_or_default()
}

fn round(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}
