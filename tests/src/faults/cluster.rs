//! A coordinator and agents as processes that can be killed and started again.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::network::{Host, Network};
use crate::binaries::Binaries;
use crate::job::Job;
use crate::processes::eventually;

/// How long anything may take that is not measured.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The processes of a cluster; they end with this value.
#[derive(Debug)]
pub struct Cluster {
    binaries: Binaries,
    folder: PathBuf,
    env: Vec<(String, String)>,
    coordinator: Option<Child>,
    agents: Vec<Option<Child>>,
    /// host:port of the listeners for people and for agents, from the coordinator's first start on.
    addresses: Option<[String; 2]>,
    /// How its hosts reach one another; dropped last.
    pub network: Network,
}

impl Cluster {
    /// Starts a coordinator and `nodes` agents of one slot each.
    ///
    /// # Panics
    /// When one of them does not start.
    pub fn start(job: &Job, binaries: &Binaries, network: Network, nodes: usize) -> Self {
        let mut cluster = Self {
            binaries: binaries.clone(),
            folder: job.folder().to_owned(),
            env: job.env.clone().into_iter().collect(),
            coordinator: None,
            agents: (0..nodes).map(|_| None).collect(),
            addresses: None,
            network,
        };
        cluster.start_coordinator();
        for node in 0..nodes {
            cluster.start_agent(node);
        }
        cluster
    }

    /// Starts the coordinator, at its former addresses if it had any, and waits until it serves.
    ///
    /// # Panics
    /// When it does not.
    pub fn start_coordinator(&mut self) {
        let state = self.folder.join("coordinator");
        let written = state.join("addresses.json");
        let _ = std::fs::remove_file(&written);
        let any = format!("{}:0", self.network.address(Host::Coordinator));
        let [people, fleet] = self.addresses.clone().unwrap_or([any.clone(), any]);
        let mut command = self.network.command(Host::Coordinator, &self.binaries.ringmaster);
        let child = command
            .arg("coordinator")
            .arg("--state-dir")
            .arg(&state)
            .args(["--listen", &people, "--fleet-listen", &fleet])
            .args(["--health-listen", "127.0.0.1:0", "--insecure"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log(&self.folder, "coordinator.log"))
            .spawn();
        self.coordinator = Some(child.expect("the coordinator starts"));
        let mut found = Value::Null;
        let serves = eventually(PATIENCE, || {
            let text = std::fs::read_to_string(&written).unwrap_or_default();
            serde_json::from_str(&text).map(|value| found = value).is_ok()
        });
        assert!(serves, "the coordinator wrote no {}", written.display());
        let address = |name: &str| {
            let text = found[name].as_str().expect("an address is text");
            text.trim_start_matches("http://").to_owned()
        };
        self.addresses = Some([address("people"), address("fleet")]);
    }

    /// Starts a node's agent.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_agent(&mut self, node: usize) {
        let [_, fleet] = self.addresses.clone().expect("the coordinator was started first");
        let host = Host::Node(node);
        let mut command = self.network.command(host, &self.binaries.worker);
        let child = command
            .args(["agent", "--coordinator", &format!("http://{fleet}"), "--slots", "1"])
            .args(["--cpus", "1", "--node", &node_name(node)])
            .args(["--address", &self.network.address(host)])
            .arg("--work-dir")
            .arg(self.folder.join(node_name(node)))
            .arg("--runs-dir")
            .arg(self.folder.join("runs"))
            .envs(self.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log(&self.folder, &format!("{}.log", node_name(node))))
            .spawn();
        self.agents[node] = Some(child.expect("an agent starts"));
    }

    /// Kills the coordinator with SIGKILL.
    pub fn kill_coordinator(&mut self) {
        end(self.coordinator.take(), Signal::SIGKILL);
    }

    /// Kills a node's agent with SIGKILL.
    pub fn kill_agent(&mut self, node: usize) {
        end(self.agents[node].take(), Signal::SIGKILL);
    }

    /// Runs a client's verb and returns the JSON it prints; null while the coordinator is away.
    pub fn ask(&self, args: &[&str]) -> Value {
        let [people, _] = self.addresses.clone().expect("the coordinator was started first");
        let mut command = self.network.command(Host::Coordinator, &self.binaries.ringmaster);
        command.args(args).args(["--coordinator", &format!("http://{people}")]);
        let output = command.envs(self.env.iter().cloned()).output();
        let output = output.expect("ringmaster starts");
        let text = String::from_utf8_lossy(&output.stdout);
        // Lists are printed whole or one value per line.
        serde_json::from_str(&text).unwrap_or_else(|_| {
            let lines = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>();
            lines.map_or(Value::Null, |lines| match lines.is_empty() {
                true => Value::Null,
                false => Value::Array(lines),
            })
        })
    }

    /// Submits a job and returns its id.
    ///
    /// # Panics
    /// When the coordinator does not take it.
    pub fn submit(&self, job: &Job) -> String {
        let [people, _] = self.addresses.clone().expect("the coordinator was started first");
        let manifest = job.write_manifest();
        let mut command = self.network.command(Host::Coordinator, &self.binaries.ringmaster);
        command.arg("submit").arg(manifest).args(["--coordinator", &format!("http://{people}")]);
        let output = command.envs(self.env.iter().cloned()).output().expect("ringmaster starts");
        let text = job.transcript(&output);
        assert!(output.status.success(), "{text}");
        let listed = self.ask(&["ls", "--all", "--json"]);
        listed[0]["job_id"].as_str().unwrap_or_else(|| panic!("no job in {listed}")).to_owned()
    }
}

/// The name of a node.
pub fn node_name(node: usize) -> String {
    format!("node-{node}")
}

fn log(folder: &std::path::Path, name: &str) -> Stdio {
    let file = std::fs::File::options().create(true).append(true).open(folder.join(name));
    file.map_or_else(|_| Stdio::null(), Stdio::from)
}

fn end(child: Option<Child>, signal: Signal) {
    let Some(mut child) = child else { return };
    let _ = kill(Pid::from_raw(child.id().cast_signed()), signal);
    if !eventually(Duration::from_secs(20), || matches!(child.try_wait(), Ok(Some(_)))) {
        let _ = child.kill();
    }
    let _ = child.wait();
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // An agent that is killed takes its ranks along at once.
        for agent in &mut self.agents {
            end(agent.take(), Signal::SIGKILL);
        }
        end(self.coordinator.take(), Signal::SIGTERM);
    }
}
