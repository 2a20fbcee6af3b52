//! A coordinator and agents as processes of their own, and what its people see.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::binaries::{Binaries, binaries};
use crate::job::Job;
use crate::network::{Host, Network};
use crate::processes::{LIMIT, Running, eventually};

/// Ends a process with whoever holds the other end of its stdin.
const END_WITH_PARENT: &str = "--parent-pipe";

/// What a cluster is made of.
#[derive(Debug)]
pub struct Setup {
    /// The product.
    pub binaries: Binaries,
    /// How its hosts reach one another.
    pub network: Network,
    /// Slots of each node.
    pub slots: Vec<u32>,
    /// Further arguments of the coordinator.
    pub coordinator: Vec<String>,
    /// Cores a node's ranks share; none: all.
    pub cpus: Option<u32>,
    /// Write what the processes say into files of the job's folder, instead of to stderr.
    pub logs: bool,
}

/// A coordinator and agents called `node-0`, `node-1`, …
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: agents end their ranks while somebody listens.
    /// The agents.
    pub agents: Vec<Running>,
    /// The coordinator.
    pub coordinator: Running,
    /// What it is made of; its network goes last.
    pub setup: Setup,
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
    pub fn start_with(job: &Job, slots: &[u32], more: &[&str]) -> Self {
        let setup = Setup {
            binaries: binaries().clone(),
            network: Network::Loopback,
            slots: slots.to_vec(),
            coordinator: more.iter().copied().map(str::to_owned).collect(),
            cpus: None,
            logs: false,
        };
        Self::of(setup, job)
    }

    /// Starts a coordinator and agents as `setup` says.
    ///
    /// # Panics
    /// When a process does not start.
    pub fn of(setup: Setup, job: &Job) -> Self {
        let any = format!("{}:0", setup.network.address(Host::Coordinator));
        let coordinator = setup.start_coordinator(job, [&any, &any, "127.0.0.1:0"]);
        let addresses = addresses(&state(job));
        let address = |name: &str| {
            let text = addresses[name].as_str().expect("an address is text");
            text.trim_start_matches("http://").to_owned()
        };
        let (people, fleet) = (address("people"), address("fleet"));
        let health = address("health").parse().expect("an address with a port");
        let mut cluster = Self { agents: Vec::new(), coordinator, setup, people, fleet, health };
        for node in 0..cluster.setup.slots.len() {
            let agent = cluster.setup.start_agent(job, &cluster.fleet, node);
            cluster.agents.push(agent);
        }
        cluster
    }

    /// Returns where people's clients connect, without a scheme.
    pub fn people(&self) -> &str {
        &self.people
    }

    /// Returns what the agent of a node has said so far, where its words go into a file.
    pub fn agent_log(&self, job: &Job, node: usize) -> String {
        std::fs::read_to_string(job.folder().join(log_name(node))).unwrap_or_default()
    }

    /// Kills an agent as a crash of its node's software would.
    pub fn kill_agent(&mut self, node: usize) {
        self.agents[node].signal(Signal::SIGKILL);
        self.agents[node].wait();
    }

    /// Starts the agent of a node again, after it has ended.
    pub fn restart_agent(&mut self, job: &Job, node: usize) {
        self.agents[node] = self.setup.start_agent(job, &self.fleet, node);
    }

    /// Starts the coordinator again where it was, after it has ended, and waits until it serves.
    ///
    /// # Panics
    /// When it does not.
    pub fn restart_coordinator(&mut self, job: &Job) {
        let _ = std::fs::remove_file(state(job).join(ADDRESSES));
        let health = self.health.to_string();
        self.coordinator = self.setup.start_coordinator(job, [&self.people, &self.fleet, &health]);
        addresses(&state(job));
    }

    /// Runs a verb of the command line.
    ///
    /// # Panics
    /// When it does not start.
    pub fn client(&self, job: &Job, args: &[&str]) -> Output {
        self.setup
            .network
            .command(Host::Coordinator, &self.setup.binaries.ringmaster)
            .args(args)
            .args(["--coordinator", &format!("http://{}", self.people)])
            .envs(&job.env)
            .output()
            .expect("ringmaster starts")
    }

    /// Runs a verb that prints JSON, one value or one per line; none if it fails, as while the
    /// coordinator is away.
    pub fn ask(&self, job: &Job, args: &[&str]) -> Option<Value> {
        let output = self.client(job, args);
        if !output.status.success() {
            return None;
        }
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text).ok().or_else(|| {
            let lines = text.lines().map(serde_json::from_str);
            lines.collect::<Result<Vec<Value>, _>>().ok().map(Value::Array)
        })
    }

    /// The same where it must not fail.
    ///
    /// # Panics
    /// When it fails or prints something else.
    pub fn json(&self, job: &Job, args: &[&str]) -> Value {
        self.ask(job, args).unwrap_or_else(|| {
            panic!("{args:?} prints no JSON: {}", job.transcript(&self.client(job, args)))
        })
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
        let state = self.until_ended(job, id);
        assert_eq!(state, "succeeded", "{:#?}", self.events(job, id));
    }

    /// Waits until a job has ended, and returns how.
    ///
    /// # Panics
    /// When it does not.
    pub fn until_ended(&self, job: &Job, id: &str) -> String {
        let mut state = String::new();
        let ended = eventually(LIMIT, || {
            state = self.state(job, id);
            ["succeeded", "failed", "cancelled"].contains(&state.as_str())
        });
        assert!(ended, "{:#?}", self.events(job, id));
        state
    }
}

impl Setup {
    /// Listeners for people, agents and probes.
    fn start_coordinator(&self, job: &Job, listeners: [&str; 3]) -> Running {
        let flags = ["--listen", "--fleet-listen", "--health-listen"];
        let mut command = self.network.command(Host::Coordinator, &self.binaries.ringmaster);
        command
            .args(["coordinator", "--insecure", END_WITH_PARENT, "--state-dir"])
            .arg(state(job))
            .args(flags.into_iter().zip(listeners).flat_map(|(flag, address)| [flag, address]))
            .args(&self.coordinator);
        self.run(&mut command, job, "coordinator.log")
    }

    fn start_agent(&self, job: &Job, fleet: &str, node: usize) -> Running {
        let host = Host::Node(node);
        let mut command = self.network.command(host, &self.binaries.ringmaster);
        command
            .args(["agent", END_WITH_PARENT, "--coordinator", &format!("http://{fleet}")])
            .args(["--slots", &self.slots[node].to_string()])
            .args(["--node", &node_name(node)])
            .args(["--address", &self.network.address(host)])
            .arg("--work-dir")
            .arg(job.folder().join(node_name(node)))
            .arg("--runs-dir")
            .arg(job.folder().join("runs"))
            .envs(&job.env);
        if let Some(cpus) = self.cpus {
            command.args(["--cpus", &cpus.to_string()]);
        }
        self.run(&mut command, job, &log_name(node))
    }

    fn run(&self, command: &mut Command, job: &Job, log: &str) -> Running {
        command.stdout(Stdio::null());
        if self.logs {
            let path = job.folder().join(log);
            let file = std::fs::File::options().create(true).append(true).open(path);
            command.stderr(file.expect("a temporary folder is writable"));
        }
        Running::start(command)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // All agents at once; each is then waited for.
        for agent in &mut self.agents {
            agent.tell_to_end();
        }
    }
}

/// Returns the name of a node.
pub fn node_name(node: usize) -> String {
    format!("node-{node}")
}

/// Returns the name of the file that an agent's words go into.
fn log_name(node: usize) -> String {
    format!("{}.log", node_name(node))
}

/// Where the coordinator says on which ports it listens.
const ADDRESSES: &str = "addresses.json";

fn state(job: &Job) -> PathBuf {
    job.folder().join("coordinator")
}

fn addresses(state: &Path) -> Value {
    let file = state.join(ADDRESSES);
    let mut value = Value::Null;
    let there = eventually(LIMIT, || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        serde_json::from_str(&text).map(|found| value = found).is_ok()
    });
    assert!(there, "the coordinator wrote no {}", file.display());
    value
}
