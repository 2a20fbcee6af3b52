//! An agent in this process with probes as ranks, and looks at real processes.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ringmaster_agent::{Agent, Error, Options, RankProgram};
use ringmaster_proto::v1::coordinator_message::Message as Order;
use ringmaster_proto::v1::{Generation, StartRank};
pub(crate) use ringmaster_tests::processes::runs as is_alive;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::coordinator::{Coordinator, DEADLINE};
use super::probe;

pub(crate) const JOB: &str = "emoji-test01";

/// An agent registered with a fake coordinator.
pub(crate) struct Cluster {
    pub(crate) coordinator: Coordinator,
    // Removed with the cluster.
    _folder: TempDir,
    agent: (oneshot::Sender<()>, JoinHandle<Result<(), Error>>),
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Options)) -> Self {
        let coordinator = Coordinator::start().await;
        let folder = tempfile::tempdir().unwrap();
        let mut options = options(&coordinator, &folder);
        change(&mut options);
        let agent = Agent::build(options).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let told = async {
            drop(stopped.await);
        };
        let running = tokio::spawn(agent.run(told, std::future::pending()));
        coordinator.wait_for_registrations(1).await;
        Self { coordinator, _folder: folder, agent: (stop, running) }
    }

    pub(crate) async fn start_rank(&self, rank: u32, generation: Generation, script: &str) {
        self.coordinator.order(Order::StartRank(start_rank(rank, generation, script))).await;
    }

    /// Starts a rank of generation g1.1 and waits for its first own status.
    pub(crate) async fn start_training(&self, rank: u32, script: &str) -> u32 {
        self.start_rank(rank, Generation::new(1, 1), script).await;
        self.coordinator.wait_for_status(rank, |status| status.step == 5).await.pid
    }

    /// Ends the agent as a signal would.
    pub(crate) async fn stop(self) -> Coordinator {
        let (stop, agent) = self.agent;
        drop(stop);
        tokio::time::timeout(DEADLINE, agent).await.unwrap().unwrap().unwrap();
        self.coordinator
    }
}

/// What agents say of their build.
pub(crate) const BUILD_ID: &str = "0123456789abcdef";

pub(crate) fn options(coordinator: &Coordinator, folder: &TempDir) -> Options {
    let work_dir = folder.path().join("work");
    let program = RankProgram::Other(probe_program());
    let mut options = Options::new(&coordinator.url(), "node-a", 2, work_dir, program);
    options.runs_dir = folder.path().join("runs");
    options.build_id = BUILD_ID.to_owned();
    options
}

pub(crate) fn probe_program() -> Vec<OsString> {
    let program: PathBuf = std::env::current_exe().unwrap();
    std::iter::once(program.into()).chain(probe::ARGUMENTS.map(OsString::from)).collect()
}

pub(crate) fn start_rank(rank: u32, generation: Generation, script: &str) -> StartRank {
    StartRank {
        job_id: JOB.into(),
        generation: Some(generation),
        rank,
        world_size: 2,
        local_rank: rank,
        local_world_size: 2,
        manifest: script.into(),
        threads: 1,
        ..StartRank::default()
    }
}

/// Waits until no process of `pids` is left.
pub(crate) async fn wait_until_gone(pids: &[u32]) {
    let started = Instant::now();
    while pids.iter().any(|&pid| is_alive(pid)) {
        assert!(started.elapsed() < DEADLINE, "still there: {pids:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
    nix::sys::signal::kill(pid, signal).unwrap();
}
