//! What many runs came to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::run::Outcome;

/// Everything that many runs have to bring about: each fault that strikes somebody, each way in which
/// a rank ends, each deadline that passes, each act of people that is rare.
pub(crate) const MUST_HAPPEN: [&str; 39] = [
    "deadline: commit",
    "deadline: connect",
    "deadline: early loss",
    "deadline: grace",
    "deadline: kill",
    "deadline: lease",
    "deadline: reattach",
    "deadline: session",
    "deadline: silence",
    "deadline: standstill",
    "dial: not reached",
    "excluded",
    "exit: job",
    "exit: killed",
    "exit: node",
    "exit: retry",
    "exit: well",
    "fault: client partition",
    "fault: clock step",
    "fault: coordinator crash",
    "fault: hold",
    "fault: job fault",
    "fault: link down",
    "fault: node crash",
    "fault: node fault",
    "fault: node leave",
    "fault: one way",
    "fault: partition",
    "fault: rank hang",
    "fault: rank kill",
    "fault: rank stuck",
    "fault: ring break",
    "fault: ring break at the end",
    "fault: shard fails",
    "fault: shard stalls",
    "fault: slow network",
    "fault: twin",
    "fault: undead",
    "people: roll-back",
];

/// Sums over runs.
#[derive(Default)]
pub(crate) struct Tally {
    runs: u64,
    generations: usize,
    steps: u64,
    checkpoints: usize,
    succeeded: usize,
    jobs: usize,
    simulated: Duration,
    counts: BTreeMap<&'static str, u64>,
    /// Seeds that violated each invariant, in order.
    violated: BTreeMap<&'static str, Vec<u64>>,
}

impl Tally {
    pub(crate) fn add(&mut self, outcome: &Outcome) {
        self.runs += 1;
        self.generations += outcome.generations;
        self.steps += outcome.steps;
        self.checkpoints += outcome.checkpoints;
        self.succeeded += outcome.succeeded;
        self.jobs += outcome.jobs;
        self.simulated += outcome.simulated;
        for (what, count) in &outcome.counts {
            *self.counts.entry(what).or_default() += count;
        }
        for violation in &outcome.violations {
            let seeds = self.violated.entry(violation.invariant).or_default();
            if seeds.last() != Some(&outcome.seed) {
                seeds.push(outcome.seed);
            }
        }
    }

    pub(crate) fn line(&self, from: u64, seeds: u64, elapsed: Duration) -> String {
        let violations: usize = self.violated.values().map(Vec::len).sum();
        let faults = self.counts.iter().filter(|(what, _)| what.starts_with("fault: "));
        let faults: u64 = faults.map(|(_, count)| count).sum();
        format!(
            "{} of {seeds} seeds from {from} in {:.0} s: {violations} violations; {faults} faults, {} jobs \
             ({} succeeded), {} generations, {} steps, {} checkpoints, {} simulated hours",
            self.runs,
            elapsed.as_secs_f64(),
            self.jobs,
            self.succeeded,
            self.generations,
            self.steps,
            self.checkpoints,
            self.simulated.as_secs() / 3600,
        )
    }

    /// Which seeds violated what, an invariant a line.
    pub(crate) fn violated(&self) -> String {
        let mut text = String::new();
        for (invariant, seeds) in &self.violated {
            let first: Vec<_> = seeds.iter().take(8).collect();
            let _ =
                writeln!(text, "violated under {} seeds, {first:?} …: {invariant}", seeds.len());
        }
        text
    }

    /// How often each thing came about that has to, a thing a line, as `cargo xtask simulate` adds up.
    pub(crate) fn counts(&self) -> String {
        let mut counts: BTreeMap<&str, u64> = MUST_HAPPEN.iter().map(|what| (*what, 0)).collect();
        counts.extend(self.counts.iter().map(|(what, count)| (*what, *count)));
        let mut text = String::new();
        for (what, count) in counts {
            let _ = writeln!(text, "{count:>8} {what}");
        }
        text
    }
}
