//! Two nodes that both reach the coordinator and cannot reach each other, and a job placed on just them.
//!
//! The coordinator hears well of both, so nothing but the job's own ranks, or their agents before they are
//! started, can tell. What is measured is the time from submission until the job's history names the pair.
//! A third node reaches everybody: the job must train there with one of the two, or end with the cause.

use std::time::Duration;

use serde_json::Value;

use super::kind::Kind;
use super::now;
use super::report::Report;
use super::timeline::Timeline;
use crate::binaries::Binaries;
use crate::cluster::{Cluster, Setup, node_name};
use crate::job::Job;
use crate::network::{Namespaces, Network};
use crate::processes::eventually;
use crate::steps::Steps;

/// The nodes that are parted: where placement, which prefers nodes of lower names, puts two ranks.
const PAIR: [usize; 2] = [0, 1];
/// All nodes, of one slot each.
const NODES: usize = 3;
/// How long anything may take that is not measured.
const PATIENCE: Duration = Duration::from_secs(120);
/// Kinds of events that say which nodes do not reach each other: found by agents before ranks are started,
/// and by ranks.
const NAMING: [&str; 2] = ["unreachable", "ring_lost"];

/// What became of one job.
struct Outcome {
    /// From submission until an event named both nodes; none if none did.
    named: Option<f64>,
    /// What it then did, or why that is not what it must do.
    then: Result<String, String>,
}

/// Submits `runs` jobs, each to a cluster of its own: what agents have once reached is not tried again.
pub(super) fn part(binaries: &Binaries, runs: usize, say: impl Fn(&str)) -> Report {
    let kind = Kind::UnreachablePair;
    let mut report = Report {
        kind,
        recoveries: Vec::new(),
        starts: Vec::new(),
        calm: [0.0; 2],
        counted: 0,
        complaints: Vec::new(),
    };
    for run in 1..=runs {
        let Outcome { named, then } = one(binaries);
        let time = named.map_or("not named".to_owned(), |named| format!("named in {named:.2} s"));
        let told = then.as_ref().unwrap_or_else(|complaint| complaint);
        say(&format!("{} {run}/{runs}: {time}, {told}", kind.word()));
        match named {
            Some(total) => report.recoveries.push(Timeline { total, parts: [0.0; 5] }),
            None => report.complaints.push(format!("run {run}: nobody named the pair")),
        }
        report.complaints.extend(then.err().map(|complaint| format!("run {run}: {complaint}")));
    }
    report
}

fn one(binaries: &Binaries) -> Outcome {
    let mut job = Job::new();
    // It trains until its cluster ends.
    (job.ranks, job.steps, job.when_busy) = (2, 1_000_000, "skip");
    let cluster = start(binaries, &job);
    let submitted = now();
    let id = cluster.submit(&job);
    let mut steps = Steps::of(job.folder().join("runs").join(&id).join("metrics.jsonl"));
    let (mut named, mut seen) = (None, Value::Null);
    let settled = eventually(PATIENCE, || {
        let events = cluster.ask(&job, &["events", &id, "--json"]).unwrap_or_default();
        named = named.or(naming(&events, &PAIR.map(node_name)));
        seen = cluster.ask(&job, &["describe", &id, "--json"]).unwrap_or_default();
        let trains = steps.read().is_some();
        seen["state"] == "failed" || (seen["state"] == "running" && trains)
    });
    let then = match outcome(&seen, &PAIR.map(node_name)) {
        Some(then) if settled => Ok(then),
        _ => {
            let history = job.transcript(&cluster.client(&job, &["events", &id]));
            Err(format!("it neither trains elsewhere nor says why it ended: {seen}: {history}"))
        }
    };
    Outcome { named: named.map(|at| at - submitted), then }
}

/// A cluster whose first two nodes are parted.
fn start(binaries: &Binaries, job: &Job) -> Cluster {
    let namespaces = Namespaces::new(NODES);
    let namespaces = namespaces.unwrap_or_else(|why| panic!("no network namespaces: {why}"));
    namespaces.part(PAIR[0], PAIR[1]).expect("nodes of an own network can be parted");
    let setup = Setup {
        binaries: binaries.clone(),
        network: Network::Namespaces(namespaces),
        slots: vec![1; NODES],
        coordinator: Vec::new(),
        cpus: Some(1),
        logs: true,
    };
    let cluster = Cluster::of(setup, job);
    let all_are_there = eventually(PATIENCE, || {
        let nodes = cluster.ask(job, &["nodes", "--json"]).unwrap_or_default();
        let nodes = nodes.as_array().map(Vec::as_slice).unwrap_or_default();
        nodes.iter().filter(|node| node["connected"] == true).count() == NODES
    });
    assert!(all_are_there, "not all agents reach the coordinator");
    cluster
}

/// When the first event came that names all of `nodes`, in Unix seconds.
fn naming(events: &Value, nodes: &[String]) -> Option<f64> {
    let names = |event: &&Value| {
        let message = event["message"].as_str().unwrap_or_default();
        NAMING.iter().any(|kind| event["kind"] == *kind)
            && nodes.iter().all(|node| message.contains(node.as_str()))
    };
    let first = events.as_array()?.iter().find(names)?;
    Some(first["at_ms"].as_f64()? / 1000.0)
}

/// What a job did that was placed on a pair: it trains, not on both of them, or it failed and its reason names
/// both. None if it did neither.
fn outcome(seen: &Value, pair: &[String]) -> Option<String> {
    let reason = seen["reason"].as_str().unwrap_or_default();
    if seen["state"] == "failed" {
        let explains = pair.iter().all(|node| reason.contains(node.as_str()));
        return explains.then(|| format!("failed: {reason}"));
    }
    let ranks = seen["ranks"].as_array()?;
    let nodes: Vec<&str> = ranks.iter().filter_map(|rank| rank["node"].as_str()).collect();
    let stays = pair.iter().all(|node| nodes.contains(&node.as_str()));
    let trains = seen["state"] == "running" && !nodes.is_empty();
    (trains && !stays).then(|| format!("trains on {}", nodes.join(" and ")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_counts_that_is_about_reaching_and_names_both() {
        let pair = PAIR.map(node_name);
        let events = json!([
            {"kind": "placed", "message": "node-0, node-1", "at_ms": 1000},
            {"kind": "unreachable", "message": "node-0 cannot be reached", "at_ms": 2000},
            {"kind": "ring_lost", "message": "node-1 and node-0: no connection", "at_ms": 3500},
            {"kind": "unreachable", "message": "node-0 and node-1", "at_ms": 4000},
        ]);
        assert!(naming(&events, &pair).is_some_and(|at| (at - 3.5).abs() < 1e-9));
        assert_eq!(naming(&Value::Null, &pair), None);
    }

    #[test]
    fn a_job_must_train_elsewhere_or_say_why_it_cannot() {
        let pair = PAIR.map(node_name);
        let job = |state: &str, reason: &str, nodes: [&str; 2]| {
            let ranks = nodes.map(|node| json!({"node": node}));
            json!({"state": state, "reason": reason, "ranks": ranks})
        };
        let elsewhere = job("running", "", ["node-0", "node-2"]);
        assert_eq!(outcome(&elsewhere, &pair).as_deref(), Some("trains on node-0 and node-2"));
        assert_eq!(outcome(&job("running", "", ["node-1", "node-0"]), &pair), None);
        assert_eq!(outcome(&job("failed", "no luck", ["node-0", "node-1"]), &pair), None);
        let why = "node-0 cannot reach node-1 at 10.77.0.11";
        assert!(outcome(&job("failed", why, ["", ""]), &pair).is_some());
        assert_eq!(outcome(&Value::Null, &pair), None);
    }
}
