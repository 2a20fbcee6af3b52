//! A coordinator and agents as processes of their own, and what its people see.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::binaries::binaries;
use crate::job::Job;
use crate::processes::eventually;

/// Only a broken build makes anybody wait so long.
const LIMIT: Duration = Duration::from_secs(90);

/// A child process that ends with the test.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        signal_process(self.0.id(), signal);
    }

    /// Waits for its end and returns its exit code; none when a signal ended it.
    ///
    /// # Panics
    /// When the system cannot say.
    pub fn wait(&mut self) -> Option<i32> {
        self.0.wait().expect("a child can be waited for").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = kill(pid(self.0.id()), Signal::SIGTERM);
        if !eventually(Duration::from_secs(10), || matches!(self.0.try_wait(), Ok(Some(_)))) {
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
}

/// Sends a signal to any process.
///
/// # Panics
/// When there is no such process.
pub fn signal_process(process: u32, signal: Signal) {
    kill(pid(process), signal).expect("the process is there");
}

fn pid(process: u32) -> Pid {
    Pid::from_raw(i32::try_from(process).expect("process ids fit an i32"))
}

/// A cluster of agents called `node-0`, `node-1`, …
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: agents end their ranks while somebody listens.
    /// The agents.
    pub agents: Vec<Running>,
    /// The coordinator.
    pub coordinator: Running,
    slots: Vec<u32>,
    /// What the coordinator was started with, its real addresses filled in.
    arguments: Vec<String>,
    people: String,
    fleet: String,
    /// Where probes connect.
    pub health: SocketAddr,
}

impl Cluster {
    /// Starts a coordinator and an agent with so many slots each.
    pub fn start(job: &Job, slots: &[u32]) -> Self {
        Self::start_with(job, slots, &[])
    }

    /// The same with more arguments for the coordinator.
    ///
    /// # Panics
    /// When a process does not start.
    pub fn start_with(job: &Job, slots: &[u32], more: &[&str]) -> Self {
        let state = job.folder().join("coordinator");
        let arguments = |people: &str, fleet: &str, health: &str| -> Vec<String> {
            let state = state.display().to_string();
            let listeners =
                ["--listen", people, "--fleet-listen", fleet, "--health-listen", health];
            let all = ["coordinator", "--state-dir", &state].into_iter().chain(listeners);
            all.chain(more.iter().copied()).map(str::to_owned).collect()
        };
        let any = "127.0.0.1:0";
        let coordinator = coordinator(&arguments(any, any, any));
        let addresses = addresses(&state);
        let address = |name: &str| {
            let text = addresses[name].as_str().expect("an address is text");
            text.trim_start_matches("http://").to_owned()
        };
        let mut cluster = Self {
            agents: Vec::new(),
            coordinator,
            slots: slots.to_vec(),
            arguments: arguments(&address("people"), &address("fleet"), &address("health")),
            people: format!("http://{}", address("people")),
            fleet: format!("http://{}", address("fleet")),
            health: address("health").parse().expect("an address with a port"),
        };
        for node in 0..slots.len() {
            let agent = cluster.agent(job, node);
            cluster.agents.push(agent);
        }
        cluster
    }

    fn agent(&self, job: &Job, node: usize) -> Running {
        Command::new(&binaries().worker)
            .args(["agent", "--coordinator", &self.fleet])
            .args(["--slots", &self.slots[node].to_string()])
            .args(["--node", &format!("node-{node}")])
            .arg("--work-dir")
            .arg(job.folder().join(format!("node-{node}")))
            .arg("--runs-dir")
            .arg(job.folder().join("runs"))
            .envs(&job.env)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map(Running)
            .expect("an agent starts")
    }

    /// Kills an agent as a crash of its node's software would.
    pub fn kill_agent(&mut self, node: usize) {
        self.agents[node].signal(Signal::SIGKILL);
        self.agents[node].wait();
    }

    /// Starts the agent of a node again, after it has ended.
    pub fn restart_agent(&mut self, job: &Job, node: usize) {
        let agent = self.agent(job, node);
        self.agents[node] = agent;
    }

    /// Starts the coordinator again where it was, after it has ended.
    pub fn restart_coordinator(&mut self) {
        self.coordinator = coordinator(&self.arguments);
    }

    /// Runs a verb of the command line.
    ///
    /// # Panics
    /// When it does not start.
    pub fn client(&self, job: &Job, args: &[&str]) -> Output {
        Command::new(&binaries().ringmaster)
            .args(args)
            .args(["--coordinator", &self.people])
            .envs(&job.env)
            .output()
            .expect("ringmaster starts")
    }

    /// Runs a verb that prints JSON.
    ///
    /// # Panics
    /// When it fails or prints something else.
    pub fn json(&self, job: &Job, args: &[&str]) -> Value {
        let output = self.client(job, args);
        assert!(output.status.success(), "{args:?}: {}", job.transcript(&output));
        serde_json::from_slice(&output.stdout).expect("--json prints JSON")
    }

    /// Submits and returns the job's id, the last word on the first line of the answer.
    ///
    /// # Panics
    /// When it is refused.
    pub fn submit(&self, job: &Job) -> String {
        let manifest = job.write_manifest();
        let output = self.client(job, &["submit", &manifest.display().to_string()]);
        let text = job.transcript(&output);
        assert!(output.status.success(), "{text}");
        text.split_whitespace()
            .map(|word| word.trim_matches(|c: char| !c.is_ascii_alphanumeric()))
            .find(|word| word.starts_with("tiny-") && word.len() == "tiny-".len() + 6)
            .unwrap_or_else(|| panic!("no job id in {text}"))
            .to_owned()
    }

    /// Describes a job.
    pub fn describe(&self, job: &Job, id: &str) -> Value {
        self.json(job, &["describe", id, "--json"])
    }

    /// Returns a job's state in a word.
    pub fn state(&self, job: &Job, id: &str) -> String {
        self.describe(job, id)["state"].as_str().unwrap_or_default().to_lowercase()
    }

    /// Returns the process id of a rank; zero before it is known.
    pub fn rank_pid(&self, job: &Job, id: &str, rank: usize) -> u32 {
        let pid = self.describe(job, id)["ranks"][rank]["pid"].as_u64().unwrap_or_default();
        u32::try_from(pid).unwrap_or_default()
    }

    /// Returns a job's history as (kind, message, Unix milliseconds).
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn events(&self, job: &Job, id: &str) -> Vec<(String, String, i64)> {
        let events = self.json(job, &["events", id, "--json"]);
        let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let events = events.as_array().expect("a list of events").iter();
        events
            .map(|event| {
                let at = event["at_ms"].as_i64().unwrap_or_default();
                (text(event, "kind"), text(event, "message"), at)
            })
            .collect()
    }

    /// Waits until a job's history holds an event that satisfies `wanted`, and returns its message.
    ///
    /// # Panics
    /// When it does not come.
    pub fn until_event(
        &self,
        job: &Job,
        id: &str,
        wanted: impl Fn(&str, &str) -> bool,
    ) -> (String, i64) {
        let mut found = None;
        let there = eventually(LIMIT, || {
            let mut events = self.events(job, id).into_iter();
            found = events.find(|(kind, message, _)| wanted(kind, message));
            found.is_some()
        });
        assert!(there, "no such event among {:#?}", self.events(job, id));
        let (_, message, at) = found.expect("it is there");
        (message, at)
    }

    /// Waits until a job has succeeded.
    ///
    /// # Panics
    /// When it does not.
    pub fn until_succeeded(&self, job: &Job, id: &str) {
        let ended = |word: &str| ["succeeded", "failed", "cancelled"].contains(&word);
        let mut state = String::new();
        eventually(LIMIT, || {
            state = self.state(job, id);
            ended(&state)
        });
        assert_eq!(state, "succeeded", "{:#?}", self.events(job, id));
    }
}

fn coordinator(arguments: &[String]) -> Running {
    Command::new(&binaries().ringmaster)
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()
        .map(Running)
        .expect("the coordinator starts")
}

fn addresses(state: &Path) -> Value {
    let file = state.join("addresses.json");
    let mut value = Value::Null;
    let there = eventually(Duration::from_secs(20), || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        serde_json::from_str(&text).map(|found| value = found).is_ok()
    });
    assert!(there, "the coordinator wrote no {}", file.display());
    value
}
