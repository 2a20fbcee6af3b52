//! One run: the cluster of a seed, stepped through its faults until everything has come to rest.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use turmoil::{Builder, Sim};

use super::faults::{Repairs, Striker, twin};
use super::scenario::{CALM, Fault, Scenario};
use super::world::{Violation, World};
use super::{client, coordinator, node};

const TICK: Duration = Duration::from_millis(10);
/// Latency of a healthy network.
pub(crate) const LATENCY: Duration = Duration::from_millis(20);
/// Time everything has to come to rest after the last fault.
const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) const COORDINATOR: &str = "coordinator";
pub(crate) const CLIENT: &str = "client";

/// What a run came to.
pub(crate) struct Outcome {
    pub(crate) seed: u64,
    pub(crate) scenario: Scenario,
    pub(crate) violations: Vec<Violation>,
    pub(crate) trace: Vec<String>,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    pub(crate) generations: usize,
    pub(crate) steps: u64,
    pub(crate) checkpoints: usize,
    pub(crate) jobs: usize,
    pub(crate) succeeded: usize,
    pub(crate) simulated: Duration,
}

impl Outcome {
    /// The scenario, the last lines of what happened, what was violated and how to see it again.
    pub(crate) fn story(&self, lines: usize) -> String {
        let skipped = self.trace.len().saturating_sub(lines);
        let mut story = format!("==== seed {}\n{:#?}\n", self.seed, self.scenario);
        if skipped > 0 {
            story.push_str(&format!("     … {skipped} lines before\n"));
        }
        story.push_str(&self.trace[skipped..].join("\n"));
        for violation in &self.violations {
            story.push_str(&format!("\nviolated: {violation:?}"));
        }
        story.push_str(&format!("\n==== again: cargo xtask simulate --seed {}", self.seed));
        story
    }
}

/// Runs one seed to its end.
pub(crate) fn simulate(seed: u64) -> Outcome {
    let scenario = Scenario::draw(seed);
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..scenario.slots.len()).map(|index| format!("n{index}")).collect();
    let world = World::new(&scenario);
    coordinator::start_clock();

    let mut sim = network(seed);
    hosts(&mut sim, &world, &scenario, folder.path(), seed);

    let mut faults = scenario.faults.iter().peekable();
    let mut striker = Striker { world: &world, names: &names, repairs: Repairs::new() };
    let mut calm_since = None;
    loop {
        let now = sim.elapsed();
        world.with(|state| state.now = now);
        while let Some((_, fault)) = faults.next_if(|(at, _)| *at <= now) {
            striker.strike(&mut sim, fault, now);
        }
        if let Some(down) = world.with(|state| state.crash_wanted.take()) {
            world.log("---- the coordinator crashes".to_owned());
            striker.crash_coordinator(&mut sim, down, now);
        }
        striker.mend(&mut sim, now);
        let struck = faults.peek().is_none() && striker.repairs.is_empty();
        let over = struck && world.at_rest(scenario.jobs.len());
        if calm_since.is_none() && struck && (over || now >= CALM) {
            world.log("---- calm".to_owned());
            calm_since = Some(now);
        }
        let patience = calm_since.map(|since| now - since).unwrap_or_default();
        if over || patience >= PATIENCE {
            world.check_rest(patience);
            break;
        }
        if let Err(error) = sim.step() {
            world.violate("nothing in the simulation fails", error.to_string());
            break;
        }
    }
    let simulated = sim.elapsed();
    drop(sim);
    outcome(seed, scenario, &world, simulated)
}

fn network(seed: u64) -> Sim<'static> {
    Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .simulation_duration(CALM + 3 * PATIENCE)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(LATENCY)
        .tcp_capacity(4096)
        .build()
}

fn outcome(seed: u64, scenario: Scenario, world: &World, simulated: Duration) -> Outcome {
    world.with(|state| Outcome {
        seed,
        scenario,
        violations: std::mem::take(&mut state.violations),
        trace: std::mem::take(&mut state.trace),
        counts: std::mem::take(&mut state.counts),
        generations: state.generations(),
        steps: state.steps,
        checkpoints: state.grants,
        jobs: state.records.len(),
        succeeded: state.records.values().filter(|job| job.state.word() == "succeeded").count(),
        simulated,
    })
}

fn hosts(
    sim: &mut Sim<'_>,
    world: &World,
    scenario: &Scenario,
    folder: &std::path::Path,
    seed: u64,
) {
    let (shared, state_dir) = (world.clone(), folder.to_owned());
    let (starts, cost) = (AtomicU64::new(0), scenario.settling_cost);
    sim.host(COORDINATOR, move || {
        let start = starts.fetch_add(1, Ordering::Relaxed);
        coordinator::run(shared.clone(), state_dir.clone(), cost, seed ^ (start << 40))
    });
    for (index, slots) in (0..).zip(&scenario.slots) {
        agent_host(sim, world, (format!("n{index}"), format!("n{index}")), *slots, seed, index + 1);
    }
    let has_twin = |index: usize| {
        let mut faults = scenario.faults.iter();
        faults.any(|(_, fault)| matches!(fault, Fault::Twin { node, .. } if *node == index))
    };
    for (index, slots) in scenario.slots.iter().enumerate().filter(|(index, _)| has_twin(*index)) {
        let names = (format!("n{index}"), twin(index));
        let number = 100 + u64::try_from(index).unwrap();
        agent_host(sim, world, names, *slots, seed, number);
        // It comes when the fault strikes.
        sim.crash(twin(index));
    }
    let (shared, jobs, drains) = (world.clone(), scenario.jobs.clone(), scenario.drains.clone());
    sim.host(CLIENT, move || client::run(shared.clone(), jobs.clone(), drains.clone(), seed));
}

/// A machine with an agent of this name.
fn agent_host(
    sim: &mut Sim<'_>,
    world: &World,
    (name, host): (String, String),
    slots: u32,
    seed: u64,
    number: u64,
) {
    let (shared, starts, address) = (world.clone(), AtomicU32::new(0), host.clone());
    sim.host(address, move || {
        let start = starts.fetch_add(1, Ordering::Relaxed);
        node::run(node::Options {
            world: shared.clone(),
            name: name.clone(),
            host: host.clone(),
            slots,
            seed: seed ^ (number << 48),
            // No two agents of a name have the same.
            pid: u32::try_from(number).unwrap() * 1000 + start,
        })
    });
}
