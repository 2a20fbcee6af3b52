//! One run: the cluster of a seed, stepped through its faults until everything has come to rest.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use turmoil::{Builder, Sim};

use super::scenario::{CALM, Fault, Scenario};
use super::world::{Violation, World};
use super::{client, coordinator, node};

const TICK: Duration = Duration::from_millis(5);
/// Latency of a healthy network.
const LATENCY: Duration = Duration::from_millis(20);
/// Time everything has to come to rest after the last fault.
const PATIENCE: Duration = Duration::from_secs(90);
/// A node counts as disturbed for so long after a fault of the coordinator or the network.
const AFTERMATH: Duration = Duration::from_secs(4);

/// When a repair that could not be made is tried again.
const RETRY: Duration = Duration::from_millis(500);

const COORDINATOR: &str = "coordinator";
const CLIENT: &str = "client";

/// What a run came to.
pub(crate) struct Outcome {
    pub(crate) seed: u64,
    pub(crate) scenario: Scenario,
    pub(crate) violations: Vec<Violation>,
    pub(crate) trace: Vec<String>,
    pub(crate) faults: usize,
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

/// What is to be repaired, and when.
type Repairs = Vec<(Duration, Repair)>;

enum Repair {
    Bounce(String),
    Heal(String),
    Release(String),
    Latency,
}

/// Runs one seed to its end.
pub(crate) fn simulate(seed: u64) -> Outcome {
    let scenario = Scenario::draw(seed);
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..scenario.slots.len()).map(|index| format!("n{index}")).collect();
    let slots: BTreeMap<_, _> = names.iter().cloned().zip(scenario.slots.clone()).collect();
    let world = World::new(slots.clone());
    world.with(|state| state.plans = scenario.plans());

    let mut sim = Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .simulation_duration(CALM + 2 * PATIENCE)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(LATENCY)
        .tcp_capacity(4096)
        .build();
    hosts(&mut sim, &world, &scenario, folder.path(), seed);

    let feasible = |name: &str| feasible(&scenario, name);
    let (mut faults, mut repairs) =
        (scenario.faults.clone().into_iter().peekable(), Repairs::new());
    let mut calm_since = None;
    loop {
        let now = sim.elapsed();
        world.with(|state| state.now = now);
        while let Some((_, fault)) = faults.next_if(|(at, _)| *at <= now) {
            strike(&mut sim, &world, &names, fault, now, &mut repairs);
        }
        let (due, later): (Repairs, Repairs) = repairs.drain(..).partition(|(at, _)| *at <= now);
        repairs = later;
        for (_, repair) in due {
            repairs.extend(mend(&mut sim, &world, repair, now));
        }
        if calm_since.is_none() && faults.peek().is_none() && repairs.is_empty() && now >= CALM {
            world.log("---- calm".to_owned());
            calm_since = Some(now);
        }
        let patience = calm_since.map(|since| now - since).unwrap_or_default();
        let over = calm_since.is_some() && world.at_rest(scenario.jobs.len(), feasible);
        if over || patience >= PATIENCE {
            world.check_rest(patience, feasible);
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

fn outcome(seed: u64, scenario: Scenario, world: &World, simulated: Duration) -> Outcome {
    world.with(|state| Outcome {
        seed,
        faults: scenario.faults.len(),
        scenario,
        violations: std::mem::take(&mut state.violations),
        trace: std::mem::take(&mut state.trace),
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
    let starts = AtomicU64::new(0);
    sim.host(COORDINATOR, move || {
        let start = starts.fetch_add(1, Ordering::Relaxed);
        coordinator::run(shared.clone(), state_dir.clone(), seed ^ (start << 40))
    });
    for (index, slots) in scenario.slots.iter().enumerate() {
        let (shared, slots, starts) = (world.clone(), *slots, AtomicU32::new(0));
        sim.host(format!("n{index}"), move || {
            node::run(node::Options {
                world: shared.clone(),
                name: format!("n{index}"),
                slots,
                seed: seed ^ ((index as u64 + 1) << 48),
                pid: 1 + starts.fetch_add(1, Ordering::Relaxed),
            })
        });
    }
    let (shared, jobs, drains) = (world.clone(), scenario.jobs.clone(), scenario.drains.clone());
    sim.host(CLIENT, move || client::run(shared.clone(), jobs.clone(), drains.clone(), seed));
}

/// A job that this cluster could hold.
fn feasible(scenario: &Scenario, name: &str) -> bool {
    let total: u32 = scenario.slots.iter().sum();
    scenario.jobs.iter().any(|job| job.name == name && job.min_ranks <= total)
}

fn strike(
    sim: &mut Sim<'_>,
    world: &World,
    names: &[String],
    fault: Fault,
    now: Duration,
    repairs: &mut Repairs,
) {
    world.log(format!("---- {fault:?}"));
    match fault {
        Fault::CoordinatorCrash { down } => {
            for name in names {
                world.disturb(name, now + down + AFTERMATH);
            }
            sim.crash(COORDINATOR);
            repairs.push((now + down, Repair::Bounce(COORDINATOR.to_owned())));
        }
        Fault::NodeCrash { node, down } => {
            let name = names[node].clone();
            sim.crash(name.as_str());
            world.with(|state| state.end_processes_of(&name));
            world.with(|state| state.leaving.remove(&name));
            repairs.push((now + down, Repair::Bounce(name)));
        }
        Fault::NodeLeave { node, notice, down } => {
            let name = names[node].clone();
            world.with(|state| state.leaving.insert(name.clone(), notice));
            repairs.push((now + down, Repair::Bounce(name)));
        }
        Fault::RankKill { pick } => world.with(|state| state.kill(pick)),
        Fault::RankHang { pick } => world.with(|state| state.hang(pick)),
        Fault::RingBreak { pick } => {
            let rings = world.with(|state| state.live_rings());
            if !rings.is_empty() {
                world.break_ring(&rings[pick % rings.len()]);
            }
        }
        Fault::Partition { node, lasts } => {
            let name = names[node].clone();
            world.disturb(&name, now + lasts + AFTERMATH);
            sim.partition(name.as_str(), COORDINATOR);
            repairs.push((now + lasts, Repair::Heal(name)));
        }
        Fault::OneWay { node, from_node, lasts } => {
            let name = names[node].clone();
            world.disturb(&name, now + lasts + AFTERMATH);
            if from_node {
                sim.partition_oneway(name.as_str(), COORDINATOR);
            } else {
                sim.partition_oneway(COORDINATOR, name.as_str());
            }
            repairs.push((now + lasts, Repair::Heal(name)));
        }
        Fault::Hold { node, lasts } => {
            let name = names[node].clone();
            world.disturb(&name, now + lasts + AFTERMATH);
            sim.hold(name.as_str(), COORDINATOR);
            repairs.push((now + lasts, Repair::Release(name)));
        }
        Fault::SlowNetwork { most, lasts } => {
            for name in names {
                world.disturb(name, now + lasts + AFTERMATH);
            }
            sim.set_max_message_latency(most);
            repairs.push((now + lasts, Repair::Latency));
        }
        Fault::ClientPartition { lasts } => {
            sim.partition(CLIENT, COORDINATOR);
            repairs.push((now + lasts, Repair::Heal(CLIENT.to_owned())));
        }
    }
}

/// Repairs something; returns what has to be tried again later.
fn mend(
    sim: &mut Sim<'_>,
    world: &World,
    repair: Repair,
    now: Duration,
) -> Option<(Duration, Repair)> {
    match repair {
        Repair::Bounce(host) => {
            // Two crashes may overlap: the first repair starts it, the second finds it running. An
            // agent that leaves may still be at it.
            let running = sim.is_host_running(host.as_str());
            if running && world.with(|state| state.leaving.contains_key(&host)) {
                return Some((now + RETRY, Repair::Bounce(host)));
            }
            if !running {
                world.log(format!("---- {host} starts"));
                world.with(|state| state.leaving.remove(&host));
                sim.bounce(host.as_str());
            }
        }
        Repair::Heal(host) => sim.repair(host.as_str(), COORDINATOR),
        Repair::Release(host) => sim.release(host.as_str(), COORDINATOR),
        Repair::Latency => sim.set_max_message_latency(LATENCY),
    }
    None
}
