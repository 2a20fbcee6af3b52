//! Jobs that are slow through nobody's fault: their ranks must be left alone.
//!
//! Deadlines are a few seconds here and agents report ten times a second, so that a standstill of
//! some seconds is well above the phase's floor and shows, and only what the rules grant beside the
//! floor (a first step's own time, twenty times what the job has shown, progress inside a phase)
//! keeps the rank alive.

use std::path::PathBuf;
use std::time::Duration;

use crate::binaries::Binaries;
use crate::cluster::{Cluster, Setup};
use crate::job::{Job, Run};
use crate::network::Network;
use crate::processes::{self, eventually};
use crate::steps::Steps;
use crate::tiny;
use crate::web::{Health, WebServer};

/// What is slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slow {
    /// The first step: kernels are compiled, caches are cold.
    FirstStep,
    /// One step, by a factor of ten, of a job whose steps take a second: statuses come four times a second, so
    /// that at least 0.7 s of each are seen and grant it 14.
    Step,
    /// An evaluation that shows nothing of itself for as long as twenty steps take.
    Evaluation,
    /// The store of the training data is away for so long: half of the time it closes every
    /// connection, then it does not answer.
    StoreAway(Duration),
}

/// A job with something slow in it.
#[derive(Debug)]
pub struct Scenario {
    /// The job, of two ranks.
    pub job: Job,
    /// Further arguments of its coordinator.
    pub coordinator: Vec<String>,
    /// Where its data comes from, and for how long that is away.
    store: Option<(WebServer, Duration)>,
}

/// What became of it.
#[derive(Debug)]
pub struct Outcome {
    /// Longest time without a completed step, in seconds.
    pub longest: f64,
    /// What the job's history holds that only a fault puts there, and whatever ended it but success.
    pub alarms: Vec<String>,
}

impl Slow {
    /// Returns how long all ranks stand still for it.
    pub fn standstill(self) -> Duration {
        match self {
            Self::FirstStep => Duration::from_secs(4),
            Self::Step => Duration::from_secs(10),
            Self::Evaluation => Duration::from_secs(16),
            // Some batches are read ahead.
            Self::StoreAway(time) => time.saturating_sub(Duration::from_secs(1)),
        }
    }

    /// Returns how long they may stand still at most: slow steps before, a machine that is busy, and
    /// where a store was away, the pause before it is asked again.
    pub fn limit(self) -> Duration {
        let more = if let Self::StoreAway(_) = self { 25 } else { 3 };
        self.standstill() + Duration::from_secs(more)
    }

    /// Returns the job and its cluster's deadlines.
    pub fn scenario(self) -> Scenario {
        let mut job = Job::new();
        job.steps = 12;
        let (long, seconds) = (self.standstill(), Duration::from_secs_f64);
        match self {
            Self::FirstStep => {
                pause(&mut job, "step=1,at=before_reduce", long);
                scenario(job, &["compute=1", "first_step=30"])
            }
            Self::Step => {
                pause(&mut job, "step=1-4,at=before_reduce", seconds(1.0));
                pause(&mut job, "step=5,at=before_reduce", long);
                scenario(job, &["compute=2"])
            }
            Self::Evaluation => {
                job.held_out = tiny::write_shards(&job.folder().join("held-out"), 2, &[]);
                job.eval_every = Some(5);
                pause(&mut job, "step=1-4,at=before_reduce", seconds(0.8));
                pause(&mut job, "step=5,at=in_eval", long);
                scenario(job, &["eval=2", "compute=2"])
            }
            Self::StoreAway(time) => {
                let server = WebServer::start(&job.folder().join("train"));
                job.train = server.url("{000..011}.tar");
                (job.steps, job.lanes) = (60, 16);
                // All shards would be in memory when the store goes away.
                job.data_more = ", memory: 1".to_owned();
                pause(&mut job, "step=1-60,at=before_reduce", seconds(0.05));
                let mut scenario = scenario(job, &["compute=2"]);
                scenario.store = Some((server, time));
                scenario
            }
        }
    }
}

/// Rank 1 stands still for `time` whenever it comes to a place.
fn pause(job: &mut Job, place: &str, time: Duration) {
    let faults = job.env.entry("RINGMASTER_FAULT".to_owned()).or_default();
    faults.push_str(&format!("rank=1,{place},act=pause,seconds={};", time.as_secs_f64()));
}

fn scenario(job: Job, deadlines: &[&str]) -> Scenario {
    let deadlines = deadlines.iter().flat_map(|deadline| ["--deadline", *deadline]);
    let arguments = ["--heartbeat", "0.1"].into_iter().chain(deadlines);
    Scenario { job, coordinator: arguments.map(str::to_owned).collect(), store: None }
}

impl Scenario {
    /// Trains the job to its end on two nodes of a cluster of its own.
    ///
    /// # Panics
    /// When the cluster does not start, or the job does not end.
    pub fn run(self, binaries: &Binaries) -> Outcome {
        let job = &self.job;
        let setup = Setup {
            binaries: binaries.clone(),
            network: Network::Loopback,
            slots: vec![1, 1],
            coordinator: self.coordinator,
            cpus: Some(1),
            logs: true,
        };
        let cluster = Cluster::of(setup, job);
        let id = cluster.submit(job);
        let metrics = job.folder().join("runs").join(&id).join("metrics.jsonl");
        if let Some((server, time)) = &self.store {
            go_away(server, *time, metrics);
        }
        cluster.until_ended(job, &id);
        let events = cluster.events(job, &id);
        let metrics = Run { folder: job.folder().join("runs").join(&id) }.metrics();
        let began = events.iter().find(|(kind, ..)| kind == "running");
        let began = began.map(|(.., at)| *at as f64 / 1000.0);
        let steps = metrics.iter().filter_map(|line| line["time"].as_f64());
        let times: Vec<f64> = began.into_iter().chain(steps).collect();
        Outcome {
            longest: times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max),
            alarms: alarms(&events),
        }
    }
}

/// The store is away for `time` once some steps are done.
fn go_away(server: &WebServer, time: Duration, metrics: PathBuf) {
    let mut steps = Steps::of(metrics);
    let trains = || steps.read().is_some_and(|newest| newest.step >= 5);
    assert!(eventually(Duration::from_secs(60), trains), "the job does not train");
    for health in [Health::Refuses, Health::Mute] {
        server.set(health);
        processes::pause(time / 2);
    }
    server.set(Health::Serves);
}

/// Events of a job that was left alone, news of its evaluations and of its store among them.
const CALM: [&str; 8] = [
    "submitted",
    "placed",
    "running",
    "evaluation",
    "store",
    "checkpoint",
    "finished",
    "succeeded",
];

fn alarms(events: &[(String, String, i64)]) -> Vec<String> {
    let rings = events.iter().filter(|(kind, ..)| kind == "running").count();
    let loud = events.iter().filter(|(kind, ..)| !CALM.contains(&kind.as_str()));
    let mut alarms: Vec<String> =
        loud.map(|(kind, message, _)| format!("{kind}: {message}")).collect();
    if rings != 1 {
        alarms.push(format!("{rings} rings were formed"));
    }
    if events.last().is_none_or(|(kind, ..)| kind != "succeeded") {
        alarms.push("the job did not succeed".to_owned());
    }
    alarms
}
