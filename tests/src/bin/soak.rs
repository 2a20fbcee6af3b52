//! Disturbs a real cluster without harming it, and fails if anything is taken for lost.

#![allow(clippy::print_stderr, reason = "progress of a command for the terminal")]

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use ringmaster_tests::binaries::Binaries;
use ringmaster_tests::faults::{interruption, now};
use ringmaster_tests::processes::Interrupted;
use ringmaster_tests::skips::{REQUIRE, is_required};
use ringmaster_tests::unrest::{ACTS, Outcome, Trial};
use serde_json::json;

/// Disturbs a real cluster without harming it, and fails if anything is taken for lost.
#[derive(Debug, Parser)]
struct Options {
    /// How long
    #[arg(long, default_value_t = 60.0, value_parser = parse_minutes)]
    minutes: f64,
    /// What is inflicted, when and for how long [default: drawn]
    #[arg(long)]
    seed: Option<u64>,
    /// Break off when stdin ends
    #[arg(long, hide = true)]
    parent_pipe: bool,
}

/// Exit code when it was broken off, as shells have it for SIGINT.
const INTERRUPTED: u8 = 130;
/// What is missing where packets cannot be lost, in `RINGMASTER_REQUIRE`.
const LOSS: &str = "loss";

fn parse_minutes(text: &str) -> Result<f64, String> {
    let minutes = text.parse::<f64>().ok().filter(|minutes| *minutes > 0.0 && *minutes <= 1e5);
    minutes.ok_or_else(|| "a number of minutes above 0".to_owned())
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Err(error) = interruption::watch(options.parent_pipe) {
        eprintln!("error: cannot take signals: {error}");
        return ExitCode::FAILURE;
    }
    match std::panic::catch_unwind(|| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(payload) if payload.is::<Interrupted>() => {
            eprintln!("interrupted; the cluster has ended");
            ExitCode::from(INTERRUPTED)
        }
        // The panic has said why.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Whether nothing was taken for lost.
fn run(options: &Options) -> bool {
    let seed = options.seed.unwrap_or_else(|| now() as u64);
    let time = Duration::from_secs_f64(options.minutes * 60.0);
    eprintln!("--minutes {} --seed {seed}", options.minutes);
    let trial = Trial::start(&Binaries::beside_this_program());
    let skipped = trial.no_packets_lost.as_deref();
    if let Some(why) = skipped {
        eprintln!("no packets are lost on this machine: {why}");
    }
    let outcome = trial.run(seed, time, |line| eprintln!("{line}"));
    eprintln!("{}", table(&outcome, skipped));
    let missing = skipped.is_some() && is_required(LOSS);
    if missing {
        eprintln!("{REQUIRE} names {LOSS}");
    }
    let held = outcome.losses.is_empty() && !missing;
    if !outcome.losses.is_empty() {
        eprintln!("{}", trial.story());
    }
    let line = json!({
        "soak": "false-loss", "seed": seed, "seconds": outcome.time.as_secs(),
        "steps": outcome.steps, "losses": outcome.losses, "skipped": skipped, "passed": held,
    });
    // A reader that has gone needs no more.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
    held
}

/// What was inflicted how often, and what came of it.
fn table(outcome: &Outcome, skipped: Option<&str>) -> String {
    let header = ["inflicted", "times", "seconds", "longest"];
    let mut lines =
        vec![format!("{:<24} {:>6} {:>8} {:>8}", header[0], header[1], header[2], header[3])];
    for (name, act) in ACTS {
        let tally = outcome.tallies.iter().find(|(other, _)| *other == act);
        let tally = tally.map(|(_, tally)| *tally).unwrap_or_default();
        let (total, longest) = (tally.total.as_secs_f64(), tally.longest.as_secs_f64());
        lines.push(format!("{name:<24} {:>6} {total:>8.0} {longest:>8.2}", tally.times));
    }
    lines.push(format!("{} steps in {:.0} s", outcome.steps, outcome.time.as_secs_f64()));
    lines.push(format!("skipped: {}", usize::from(skipped.is_some())));
    match outcome.losses.as_slice() {
        [] => lines.push("nothing was taken for lost".to_owned()),
        losses => lines.extend(losses.iter().map(|loss| format!("LOST: {loss}"))),
    }
    lines.join("\n")
}
