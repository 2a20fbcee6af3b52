//! One job, many faults of one kind.

use std::time::Duration;

use serde_json::Value;

use super::kind::{Kind, node_of};
use super::report::Report;
use super::starts::{self, Exec};
use super::timeline::{Timeline, timeline};
use super::{now, pair};
use crate::binaries::Binaries;
use crate::cluster::{Cluster, Setup, node_name};
use crate::job::Job;
use crate::network::{Namespaces, Network};
use crate::processes::eventually;
use crate::slow::Slow;
use crate::steps::{Step, Steps};

/// How long anything may take that is not measured.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long it may take until people see what a fault has done to a node.
const SIGHT: Duration = Duration::from_secs(5);
/// Steps between two faults; more where steps go on during the fault.
const APART: [u64; 2] = [100, 800];
/// Nodes of one slot that the job does not need.
const SPARE: usize = 1;

/// Trains one job through `runs` faults, to its end.
///
/// # Panics
/// When the job does not go on after a fault, does not end well, or lost or repeated a step.
pub fn drill(
    kind: Kind,
    binaries: &Binaries,
    ranks: u32,
    runs: usize,
    say: impl Fn(&str),
) -> Report {
    match kind {
        Kind::Slow(slow) => return left_alone(slow, binaries, runs, say),
        Kind::UnreachablePair => return pair::part(binaries, runs, say),
        _ => {}
    }
    let mut job = Job::new();
    let apart = APART[usize::from(kind.trains_meanwhile())];
    // Twice what the strikes need: steps go on while a node comes back.
    (job.ranks, job.steps) = (ranks, apart * (2 * runs as u64 + 2));
    // A checkpoint waits for a coordinator that is away; training does not wait for the checkpoint.
    (job.checkpoint_every, job.when_busy) = (100, "skip");
    let mut cluster = start(kind, binaries, &job);
    let id = cluster.submit(&job);
    let metrics = job.folder().join("runs").join(&id).join("metrics.jsonl");
    let mut steps = Steps::of(metrics);
    let (mut struck, mut complaints) = (Vec::new(), Vec::new());
    for run in 0..runs {
        let seat = run % ranks as usize;
        await_step(&cluster, &job, &id, &mut steps, apart * (run as u64 + 1));
        let before = await_health(&cluster, &job, &id);
        let at = now();
        let damage = kind.strike(&mut cluster, &job, &before, seat);
        let first = if kind.spares_ranks() {
            await_attached(&cluster, &job, &id, &mut steps)
        } else {
            await_generation(&cluster, &job, &id, &mut steps, &before, at)
        };
        if kind == Kind::UndeadRank {
            complaints.extend(slot_in_service(&cluster, &job, node_of(&before["ranks"][seat])));
        }
        kind.mend(damage, &mut cluster, &job, &before, seat);
        say(&format!("{} {}/{runs}: {:.2} s", kind.word(), run + 1, first.at - at));
        struck.push((at, first));
    }
    let ended = await_end(&cluster, &job, &id);
    steps.read();
    check_steps(&steps.seen, job.steps);
    let events = cluster.json(&job, &["events", &id, "--json"]);
    let logs = cluster.json(&job, &["logs", &id, "--json"]);
    let recoveries = struck.iter().map(|(at, first)| {
        if kind.spares_ranks() {
            longest_gap(&steps.seen, *at, first.at)
        } else {
            timeline(*at, first, &events, &logs)
        }
    });
    Report {
        kind,
        recoveries: recoveries.collect(),
        starts: fresh_starts(&cluster, &job, &struck, &events),
        calm: calm(&steps.seen, &struck),
        counted: ended["recoveries"].as_u64().unwrap_or_default(),
        complaints,
    }
}

/// A slow job, again and again.
fn left_alone(slow: Slow, binaries: &Binaries, runs: usize, say: impl Fn(&str)) -> Report {
    let kind = Kind::Slow(slow);
    let (mut recoveries, mut counted) = (Vec::new(), 0);
    for run in 1..=runs {
        let outcome = slow.scenario().run(binaries);
        say(&format!("{} {run}/{runs}: {:.2} s", kind.word(), outcome.longest));
        outcome.alarms.iter().for_each(|alarm| say(alarm));
        counted += outcome.alarms.len() as u64;
        recoveries.push(Timeline { total: outcome.longest, parts: [0.0; 5] });
    }
    let (starts, complaints) = (Vec::new(), Vec::new());
    Report { kind, recoveries, starts, calm: [0.0; 2], counted, complaints }
}

/// How long the fresh rank of each recovery took to start, where there was one.
fn fresh_starts(cluster: &Cluster, job: &Job, struck: &[(f64, Step)], events: &Value) -> Vec<f64> {
    let logs = (0..cluster.agents.len()).map(|node| cluster.agent_log(job, node));
    let execs: Vec<Exec> = logs.flat_map(|log| starts::execs(&log)).collect();
    let recoveries = struck.iter();
    recoveries.filter_map(|(at, first)| starts::start(*at, first.at, &execs, events)).collect()
}

/// What is to be said against a node on which a process lives on that was killed: that people do not see
/// that its slot takes no rank.
fn slot_in_service(cluster: &Cluster, job: &Job, node: usize) -> Option<String> {
    let name = node_name(node);
    let mut seen = Value::Null;
    let out_of_service = eventually(SIGHT, || {
        let nodes = cluster.ask(job, &["nodes", "--json"]).unwrap_or_default();
        let own = nodes.as_array().into_iter().flatten().find(|own| own["node"] == name.as_str());
        seen = own.cloned().unwrap_or_default();
        seen["free_slots"] == 0 && seen["slots_out"].as_array().is_some_and(|out| !out.is_empty())
    });
    (!out_of_service).then(|| format!("`nodes` does not show that {name}'s slot is out: {seen}"))
}

/// A cluster of one node per rank and a spare one, each with one slot.
fn start(kind: Kind, binaries: &Binaries, job: &Job) -> Cluster {
    let nodes = job.ranks as usize + SPARE;
    let network = match kind {
        Kind::CutNode => Network::Namespaces(Namespaces::new(nodes).expect("namespaces")),
        _ => Network::Loopback,
    };
    let setup = Setup {
        binaries: binaries.clone(),
        network,
        slots: vec![1; nodes],
        coordinator: Vec::new(),
        cpus: Some(1),
        logs: true,
    };
    Cluster::of(setup, job)
}

/// The job as it is; null while the coordinator is away.
fn describe(cluster: &Cluster, job: &Job, id: &str) -> Value {
    cluster.ask(job, &["describe", id, "--json"]).unwrap_or_default()
}

fn await_step(cluster: &Cluster, job: &Job, id: &str, steps: &mut Steps, step: u64) {
    let came = eventually(PATIENCE, || steps.read().is_some_and(|newest| newest.step >= step));
    assert!(came, "step {step} does not come: {}", describe(cluster, job, id));
}

/// Waits until all ranks train and all nodes answer; returns the job then.
fn await_health(cluster: &Cluster, job: &Job, id: &str) -> Value {
    let mut seen = Value::Null;
    let healthy = eventually(PATIENCE, || {
        seen = describe(cluster, job, id);
        let nodes = cluster.ask(job, &["nodes", "--json"]).unwrap_or_default();
        let nodes = nodes.as_array().map(Vec::as_slice).unwrap_or_default();
        let free: u64 = nodes.iter().filter_map(|node| node["free_slots"].as_u64()).sum();
        seen["state"] == "running"
            && seen["world_size"].as_u64() == Some(job.ranks.into())
            && nodes.len() == job.ranks as usize + SPARE
            && nodes.iter().all(|node| node["connected"] == true)
            && free == SPARE as u64
    });
    assert!(healthy, "the cluster does not heal: {seen}");
    seen
}

fn await_generation(
    cluster: &Cluster,
    job: &Job,
    id: &str,
    steps: &mut Steps,
    before: &Value,
    struck: f64,
) -> Step {
    let old = before["generation"].as_str().unwrap_or_default().to_owned();
    let mut first = None;
    let trains = eventually(PATIENCE, || {
        steps.read();
        let newer = |step: &&Step| step.generation != old && step.at > struck;
        first = steps.seen.iter().find(newer).cloned();
        first.is_some()
    });
    assert!(trains, "no step after the fault: {}", describe(cluster, job, id));
    first.expect("it was found")
}

/// Waits until a new coordinator knows all ranks again and they have taken a step since.
fn await_attached(cluster: &Cluster, job: &Job, id: &str, steps: &mut Steps) -> Step {
    await_health(cluster, job, id);
    let attached = now();
    let mut newest = None;
    let trains = eventually(PATIENCE, || {
        newest = steps.read().filter(|step| step.at > attached).cloned();
        newest.is_some()
    });
    assert!(trains, "no step after the coordinator's restart: {}", describe(cluster, job, id));
    newest.expect("it was found")
}

fn await_end(cluster: &Cluster, job: &Job, id: &str) -> Value {
    let mut seen = Value::Null;
    let ended = eventually(Duration::from_secs(300), || {
        seen = describe(cluster, job, id);
        ["succeeded", "failed", "cancelled"].iter().any(|state| seen["state"] == *state)
    });
    assert!(ended && seen["state"] == "succeeded", "the job did not end well: {seen}");
    seen
}

/// Every step is there once. One that was applied when its rank died is written down by the next.
fn check_steps(seen: &[Step], total: u64) {
    let numbers: Vec<u64> = seen.iter().map(|step| step.step).collect();
    let wanted: Vec<u64> = (1..=total).collect();
    assert!(numbers == wanted, "steps were lost or repeated: {numbers:?}");
}

fn longest_gap(seen: &[Step], from: f64, to: f64) -> Timeline {
    let gaps = seen.windows(2).filter(|pair| pair[1].at >= from && pair[0].at <= to);
    let longest = gaps.map(|pair| pair[1].at - pair[0].at).fold(0.0, f64::max);
    Timeline { total: longest, parts: [0.0; 5] }
}

fn calm(seen: &[Step], struck: &[(f64, Step)]) -> [f64; 2] {
    let disturbed = |pair: &[Step]| {
        struck.iter().any(|(at, first)| pair[1].at >= *at && pair[0].at <= first.at)
    };
    let gaps = seen.windows(2).filter(|pair| !disturbed(pair));
    let mut gaps: Vec<f64> = gaps.map(|pair| pair[1].at - pair[0].at).collect();
    gaps.sort_by(f64::total_cmp);
    let median = gaps.get(gaps.len() / 2).copied().unwrap_or_default();
    [median, gaps.last().copied().unwrap_or_default()]
}
