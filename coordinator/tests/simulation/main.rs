//! The real coordinator, simulated: its services, its decisions and its database run under turmoil's
//! network and clock, with simulated agents and ranks, while faults drawn from a seed strike.
//!
//! One seed is one run, and the same run every time: nothing depends on real time, threads or the
//! order of a hash map. `cargo test` runs a fixed part of the seeds; `cargo xtask simulate` runs
//! any. With `RINGMASTER_SIM_SEED=17` the test prints everything that happens under seed 17.
//!
//! Files in reading order: `scenario` (what a seed means), `run` (one run, step by step), `world`
//! (what is known to be true, and the named invariants), `ring` (what ranks do together),
//! `coordinator`, `node` (an agent), `rank` (a rank), `client` (people), `net` (turmoil under tonic).

#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod client;
mod coordinator;
mod net;
mod node;
mod rank;
mod ring;
mod run;
mod scenario;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use run::{Outcome, simulate};

/// Seeds that every test run tries.
const FIXED: u64 = 40;
/// How often a long run says how far it is.
const PROGRESS: Duration = Duration::from_secs(5);

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}; a number is wanted")))
}

#[test]
fn no_seed_violates_an_invariant() {
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
        let (first, second) = (simulate(seed), simulate(seed));
        let differs = first.trace.iter().zip(&second.trace).find(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(first.trace.len(), second.trace.len(), "seed {seed}");
    }
}

/// Runs seeds on all cores; returns those that failed, after telling their stories.
fn many(from: u64, seeds: u64) -> Vec<u64> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, began) = (AtomicU64::new(0), Instant::now());
    let (failed, tally) = (Mutex::new(Vec::new()), Mutex::new((Tally::default(), Instant::now())));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= seeds {
                        return;
                    }
                    let outcome = simulate(from + index);
                    if !outcome.violations.is_empty() {
                        eprintln!("{}", outcome.story(60));
                        failed.lock().unwrap().push(from + index);
                    }
                    let (tally, said) = &mut *tally.lock().unwrap();
                    tally.add(&outcome);
                    if said.elapsed() >= PROGRESS {
                        *said = Instant::now();
                        eprintln!("simulate: {}", tally.line(seeds, began.elapsed()));
                    }
                }
            });
        }
    });
    eprintln!("simulate: {}", tally.into_inner().unwrap().0.line(seeds, began.elapsed()));
    let mut failed = failed.into_inner().unwrap();
    failed.sort_unstable();
    failed
}

/// What many runs came to.
#[derive(Default)]
struct Tally {
    runs: u64,
    violations: usize,
    faults: usize,
    generations: usize,
    steps: u64,
    checkpoints: usize,
    succeeded: usize,
    jobs: usize,
    simulated: Duration,
}

impl Tally {
    fn add(&mut self, outcome: &Outcome) {
        self.runs += 1;
        self.violations += outcome.violations.len();
        self.faults += outcome.faults;
        self.generations += outcome.generations;
        self.steps += outcome.steps;
        self.checkpoints += outcome.checkpoints;
        self.succeeded += outcome.succeeded;
        self.jobs += outcome.jobs;
        self.simulated += outcome.simulated;
    }

    fn line(&self, seeds: u64, elapsed: Duration) -> String {
        format!(
            "{} of {seeds} seeds in {:.0} s: {} violations; {} faults, {} jobs ({} succeeded), {} \
             generations, {} steps, {} checkpoints, {} simulated hours",
            self.runs,
            elapsed.as_secs_f64(),
            self.violations,
            self.faults,
            self.jobs,
            self.succeeded,
            self.generations,
            self.steps,
            self.checkpoints,
            self.simulated.as_secs() / 3600,
        )
    }
}
