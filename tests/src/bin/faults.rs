//! Strikes a real cluster with faults and prints how long its job takes to train again.

#![allow(clippy::print_stderr, reason = "progress of a command for the terminal")]

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use ringmaster_tests::binaries::Binaries;
use ringmaster_tests::faults::drill::drill;
use ringmaster_tests::faults::interruption;
use ringmaster_tests::faults::kind::{KINDS, Kind};
use ringmaster_tests::faults::report::{Report, Verdict, at};
use ringmaster_tests::faults::table::{Row, table};
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
    let mut rows = Vec::new();
    for kind in kinds {
        match one(kind, &binaries, &options) {
            Ok(row) => rows.push(row),
            Err(Interrupted) => {
                eprintln!("interrupted; the cluster has ended");
                return ExitCode::from(INTERRUPTED);
            }
        }
    }
    eprintln!("{}", table(&rows));
    let kept = rows.iter().all(|row| matches!(row, Row::Measured(verdict) if verdict.kept()));
    if kept || !options.check { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One kind. A job that does not go on breaks off its kind only.
fn one(kind: Kind, binaries: &Binaries, options: &Options) -> Result<Row, Interrupted> {
    let say = |line: &str| eprintln!("{line}");
    let runs = match kind {
        Kind::Slow(_) => options.slow_runs,
        _ => options.runs,
    };
    let drill = || drill(kind, binaries, options.ranks, runs.into(), say);
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(drill)) {
        Ok(report) => {
            let verdict = report.verdict();
            write(&line(&report, &verdict, options.ranks));
            Ok(Row::Measured(verdict))
        }
        Err(payload) if payload.is::<Interrupted>() => Err(Interrupted),
        Err(payload) => {
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
            let error = text.unwrap_or("a panic without a word");
            write(&json!({"fault": kind.word(), "passed": false, "error": error}));
            Ok(Row::BrokeOff(kind.word(), error.to_owned()))
        }
    }
}

/// A kind's figures.
fn line(report: &Report, verdict: &Verdict, ranks: u32) -> serde_json::Value {
    let spared = report.kind.spares_ranks();
    let measures = match report.kind {
        Kind::UnreachablePair => "submission to the event that names the pair",
        _ if spared => "longest time between two steps",
        _ => "fault to next completed step",
    };
    let has_parts = !spared && report.kind != Kind::UnreachablePair;
    let seconds = |limit: Option<f64>| limit.map(round);
    json!({
        "fault": report.kind.word(),
        "runs": verdict.runs,
        "ranks": ranks,
        "measures": measures,
        "p50_seconds": round(verdict.median),
        "p95_seconds": round(verdict.p95),
        "max_seconds": round(verdict.longest),
        "start_p50_seconds": seconds(verdict.start.map(|[median, _]| median)),
        "start_max_seconds": seconds(verdict.start.map(|[_, longest]| longest)),
        "starts": report.starts.len(),
        "parts": if has_parts { parts(report) } else { serde_json::Map::new() },
        "step_p50_seconds": round(report.calm[0]),
        "step_max_seconds": round(report.calm[1]),
        "recoveries_counted": report.counted,
        "promised_p50_seconds": seconds(verdict.promise.median.seconds(verdict.start)),
        "promised_max_seconds": seconds(verdict.promise.longest.seconds(verdict.start)),
        "broken": verdict.broken,
        "passed": verdict.kept(),
    })
}

/// The median of each part of a recovery.
fn parts(report: &Report) -> serde_json::Map<String, serde_json::Value> {
    let part = |(i, part): (usize, &&str)| {
        let mut times: Vec<f64> = report.recoveries.iter().map(|r| r.parts[i]).collect();
        times.sort_by(f64::total_cmp);
        (format!("{part}_p50_seconds"), json!(round(at(&times, 0.5))))
    };
    PARTS.iter().enumerate().map(part).collect()
}

fn write(line: &serde_json::Value) {
    // A reader that has gone needs no more.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

fn round(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}
