//! A cluster that is never left alone, and a job of which nothing may be taken for lost.
//!
//! Ranks are slowed by stopping them for tens of milliseconds at a time, busy loops take the processor,
//! agents and the coordinator are stopped for as long as they may be, and packets are lost; when and for how
//! long is drawn from a seed. All of it is harmless. It lasts an hour (`cargo xtask soak false-loss`), and
//! the job must still be in its first generation then.
//!
//! Modules in reading order: `plan` (what is inflicted, when and for how long), `inflict` (the threads that do
//! it), `verdict` (what counts as a loss).

mod inflict;
mod plan;
mod verdict;

use std::time::{Duration, Instant};

use serde_json::Value;

pub use self::inflict::Tally;
use self::inflict::{Ends, LOST_SHARE, Unrest, Victims};
pub use self::plan::{ACTS, Act};
use self::verdict::losses;
use crate::binaries::Binaries;
use crate::cluster::{Cluster, Setup};
use crate::job::Job;
use crate::network::{Namespaces, Network};
use crate::processes::{eventually, pause};

/// Ranks, each on a node of one slot.
const RANKS: u32 = 3;
/// Time until the job trains.
const PATIENCE: Duration = Duration::from_secs(120);
/// Time between two looks at the job.
const LOOK: Duration = Duration::from_secs(1);
/// Time between two words to whoever waits.
const WORD: Duration = Duration::from_secs(30);
/// Time after the last blow in which a loss may still be found: longer than a lease.
const AFTERWARDS: Duration = Duration::from_secs(10);

/// A cluster and its job, which trains.
#[derive(Debug)]
pub struct Trial {
    // The cluster ends before the job's folder is removed.
    cluster: Cluster,
    job: Job,
    id: String,
    generation: String,
    /// Why no packets are lost, if so.
    pub no_packets_lost: Option<String>,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// How often what was inflicted.
    pub tallies: Vec<(Act, Tally)>,
    /// What was taken for lost, a sentence each.
    pub losses: Vec<String>,
    /// Steps that were completed meanwhile.
    pub steps: u64,
    /// How long it lasted.
    pub time: Duration,
}

impl Trial {
    /// Starts a cluster, in namespaces where they can be made, and waits until its job trains.
    ///
    /// # Panics
    /// When it does not.
    pub fn start(binaries: &Binaries) -> Self {
        let job = job();
        let (network, no_packets_lost) = network();
        let setup = Setup {
            binaries: binaries.clone(),
            network,
            slots: vec![1; RANKS as usize],
            coordinator: Vec::new(),
            cpus: Some(1),
            logs: true,
        };
        let cluster = Cluster::of(setup, &job);
        let id = cluster.submit(&job);
        let mut trial = Self { cluster, job, id, generation: String::new(), no_packets_lost };
        let trains = eventually(PATIENCE, || trial.step() > 20);
        assert!(trains, "the job does not train: {}", trial.describe());
        trial.generation = trial.describe()["generation"].as_str().unwrap_or_default().to_owned();
        trial
    }

    /// Inflicts what `seed` draws for `time`, or until something was taken for lost. Tells how it stands now
    /// and then.
    ///
    /// # Panics
    /// With [`Interrupted`](crate::processes::Interrupted), when it is interrupted; everybody goes on then.
    pub fn run(&self, seed: u64, time: Duration, say: impl Fn(&str)) -> Outcome {
        let (unrest, victims) = (Unrest::default(), self.victims());
        let (first, began) = (self.step(), Instant::now());
        std::thread::scope(|scope| {
            let ends = Ends(&unrest);
            let inflict = |act, stream| {
                let (unrest, victims) = (&unrest, &victims);
                scope.spawn(move || unrest.inflict(act, seed, stream, victims));
            };
            // Ranks are slowed side by side, each in its own time.
            (0..u64::from(RANKS)).for_each(|rank| inflict(Act::SlowRank, rank));
            inflict(Act::Starve, 0);
            inflict(Act::StopAgent, 0);
            inflict(Act::StopCoordinator, 0);
            if victims.network.is_some() {
                inflict(Act::LosePackets, 0);
            }
            self.watch(&unrest, began, time, say);
            drop(ends);
        });
        let lasted = began.elapsed();
        pause(AFTERWARDS);
        let (last, mut losses) = (self.step(), self.losses());
        if last <= first || !eventually(PATIENCE, || self.step() > last) {
            losses.push(format!("the job stands still after step {last}"));
        }
        let (tallies, steps) = (unrest.tallies().into_iter().collect(), last.saturating_sub(first));
        Outcome { tallies, losses, steps, time: lasted }
    }

    /// The job's history and the last words of all agents: what explains a loss.
    pub fn story(&self) -> String {
        let events = self.cluster.client(&self.job, &["events", &self.id]);
        let mut story = self.job.transcript(&events);
        for node in 0..RANKS as usize {
            let log = self.cluster.agent_log(&self.job, node);
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(20)..].join("\n");
            story.push_str(&format!("\n--- node-{node}\n{last}"));
        }
        story
    }

    fn watch(&self, unrest: &Unrest, began: Instant, time: Duration, say: impl Fn(&str)) {
        let mut told = began;
        while began.elapsed() < time && self.losses().is_empty() {
            pause(LOOK);
            if told.elapsed() >= WORD {
                told = Instant::now();
                let (tallies, step) = (unrest.tallies(), self.step());
                let blows: u64 = tallies.values().map(|tally| tally.times).sum();
                let (now, end) = (began.elapsed().as_secs(), time.as_secs());
                say(&format!("{now} of {end} s: step {step}, {blows} blows, nothing lost"));
            }
        }
    }

    fn victims(&self) -> Victims<'_> {
        let pid = |rank| self.cluster.rank_pid(&self.job, &self.id, rank);
        let network = match &self.cluster.setup.network {
            Network::Namespaces(namespaces) if self.no_packets_lost.is_none() => Some(namespaces),
            _ => None,
        };
        let ranks: Vec<u32> = (0..RANKS as usize).map(pid).collect();
        assert!(ranks.iter().all(|pid| *pid > 1), "a rank that trains has a process: {ranks:?}");
        Victims {
            ranks,
            agents: self.cluster.agents.iter().map(|agent| agent.id()).collect(),
            coordinator: self.cluster.coordinator.id(),
            network,
        }
    }

    fn losses(&self) -> Vec<String> {
        let events = self.cluster.ask(&self.job, &["events", &self.id, "--json"]);
        losses(&self.generation, &self.describe(), &events.unwrap_or_default())
    }

    /// The job as it is; null when the coordinator did not answer.
    fn describe(&self) -> Value {
        self.cluster.ask(&self.job, &["describe", &self.id, "--json"]).unwrap_or_default()
    }

    /// The newest step that the coordinator knows.
    fn step(&self) -> u64 {
        self.describe()["metrics"]["step"].as_u64().unwrap_or_default()
    }
}

/// A job that outlasts any hour and takes twenty steps a second, so that its files stay small.
fn job() -> Job {
    let mut job = Job::new();
    (job.ranks, job.steps) = (RANKS, 1_000_000);
    (job.checkpoint_every, job.when_busy) = (100, "skip");
    job.checkpoint_more = ", keep_last: 2".to_owned();
    let pace = format!("rank=1,step=1-{},at=before_reduce,act=pause,seconds=0.05", job.steps);
    job.env.insert("RINGMASTER_FAULT".to_owned(), pace);
    job
}

/// Namespaces in which packets can be lost, or why there are none.
fn network() -> (Network, Option<String>) {
    let namespaces = match Namespaces::new(RANKS as usize) {
        Ok(namespaces) => namespaces,
        Err(why) => return (Network::Loopback, Some(why)),
    };
    let refused = namespaces.lose(LOST_SHARE).err();
    (Network::Namespaces(namespaces), refused)
}
