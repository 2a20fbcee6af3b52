//! The real coordinator, simulated: its services, its decisions and its database run under turmoil's
//! network and clock, with real agents but for their processes, while faults drawn from a seed strike.
//!
//! One seed is one run, and the same run every time: nothing depends on real time or the order of a
//! hash map. Only one run at a time in a process, since tokio's tasks draw from process-wide counters.
//! `cargo test` runs a fixed part of the seeds; `cargo xtask simulate` runs any. With
//! `RINGMASTER_SIM_SEED=17` the test prints everything that happens under seed 17.
//!
//! Files in reading order: `scenario` (what a seed means), `run` (one run, step by step), `faults` (what
//! strikes it), `world` (what is known to be true) with the named invariants in `durable`, `history`,
//! `budget`, `blame`, `processes` and `rest`, `ring` (what ranks do together), `coordinator` and its
//! `desk` for roll-backs, `node` (an agent), `rank` (a rank) with `orders`, `saving` and `call`, `client`
//! (people), `net` (turmoil under tonic), `tally` (what many runs came to).

#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod blame;
mod budget;
mod call;
mod client;
mod coordinator;
mod desk;
mod durable;
mod faults;
mod history;
mod net;
mod node;
mod orders;
mod processes;
mod rank;
mod rest;
mod ring;
mod run;
mod saving;
mod scenario;
mod tally;
mod world;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use run::simulate;
use tally::Tally;

/// Seeds that every test run tries.
const FIXED: u64 = 200;
/// Held by whoever simulates.
static ALONE: Mutex<()> = Mutex::new(());
/// How often a long run says how far it is.
const PROGRESS: Duration = Duration::from_secs(5);

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}; a number is wanted")))
}

#[test]
fn no_seed_violates_an_invariant() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(seed) = number("RINGMASTER_SIM_SEED") {
        let outcome = simulate(seed);
        eprintln!("{}", outcome.story(usize::MAX));
        assert!(outcome.violations.is_empty(), "seed {seed}: {:#?}", outcome.violations);
        return;
    }
    let from = number("RINGMASTER_SIM_FROM").unwrap_or(0);
    let seeds = number("RINGMASTER_SIM_SEEDS").unwrap_or(FIXED);
    let failed = many(from, seeds);
    assert!(failed.is_empty(), "seeds that violate an invariant: {failed:?}");
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    for seed in [3, 4] {
        let [first, second] = [alone(seed), alone(seed)];
        let differs = first.iter().zip(&second).find(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}

/// Runs one seed in a process of its own, as `cargo xtask simulate --seed` does, and returns what
/// happened. In a process that has run another before, a coordinator that dies may close its
/// connections in another order, which is not the seed's to say.
fn alone(seed: u64) -> Vec<String> {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "no_seed_violates_an_invariant", "--nocapture"])
        .env("RINGMASTER_SIM_SEED", seed.to_string())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    // Lines of the story begin with their time, right-aligned.
    let is_told = |line: &&str| line.split_whitespace().next().is_some_and(is_time);
    let lines: Vec<String> = told.lines().filter(is_told).map(str::to_owned).collect();
    assert!(lines.len() > 10, "{told}");
    lines
}

fn is_time(word: &str) -> bool {
    word.contains('.') && word.parse::<f64>().is_ok()
}

/// Runs seeds one after another; returns those that failed, after telling their stories.
fn many(from: u64, seeds: u64) -> Vec<u64> {
    let began = Instant::now();
    let (mut failed, mut tally, mut said) = (Vec::new(), Tally::default(), began);
    for seed in from..from + seeds {
        let outcome = simulate(seed);
        if !outcome.violations.is_empty() {
            eprintln!("{}", outcome.story(60));
            failed.push(seed);
        }
        tally.add(&outcome);
        if said.elapsed() >= PROGRESS {
            said = Instant::now();
            eprintln!("simulate: {}", tally.line(from, seeds, began.elapsed()));
        }
    }
    eprintln!("simulate: {}", tally.line(from, seeds, began.elapsed()));
    eprint!("{}", tally.violated());
    // Whoever runs several parts of the seeds adds them up.
    match std::env::var("RINGMASTER_SIM_COUNTS") {
        Ok(path) => std::fs::write(path, tally.counts()).unwrap(),
        Err(_) => eprint!("{}", tally.counts()),
    }
    failed
}
