//! The agent and the worker as processes of their own: nothing of them is left behind.

use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use ringmaster_proto::v1::coordinator_message::Message as Order;
use ringmaster_proto::v1::{Generation, StopRank};
use ringmaster_tests::binaries::binaries;
use tempfile::TempDir;

use super::coordinator::Coordinator;
use super::harness::{JOB, is_alive, probe_program, signal, start_rank, wait_until_gone};

const WORKER: &str = env!("CARGO_BIN_EXE_ringmaster-worker");

/// An agent process, killed if a test fails before it ends it.
struct Process {
    child: Child,
    coordinator: Coordinator,
    folder: TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Process {
    async fn start(arguments: &[&str]) -> Self {
        let coordinator = Coordinator::start().await;
        let folder = tempfile::tempdir().unwrap();
        let child = Self::spawn(&coordinator, &folder, arguments);
        let process = Self { child, coordinator, folder };
        process.coordinator.wait_for_registrations(1).await;
        process
    }

    /// Starts the agent of the same node again.
    fn restart(&mut self) {
        drop(self.child.wait());
        self.child = Self::spawn(&self.coordinator, &self.folder, &[]);
    }

    fn spawn(coordinator: &Coordinator, folder: &TempDir, arguments: &[&str]) -> Child {
        let mut program = probe_program().into_iter();
        let mut command = Command::new(&binaries().ringmaster);
        command
            .args(["agent", "--coordinator", &coordinator.url(), "--node", "node-a"])
            .args(["--slots", "2"])
            .arg("--work-dir")
            .arg(folder.path().join("work"))
            .arg("--runs-dir")
            .arg(folder.path().join("runs"))
            .arg("--rank-program")
            .arg(program.next().unwrap())
            .args(arguments);
        for argument in program {
            command.arg("--rank-argument").arg(argument);
        }
        // Its socket's folder goes below this one, so that tests see whether it is removed.
        command.env("TMPDIR", folder.path()).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // Nobody reads its log, as when the terminal or parent it wrote to is gone.
        drop(child.stderr.take());
        child
    }

    /// What lies in its folder for temporary files.
    fn left(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "work" && name != "runs").collect()
    }

    /// Starts two ranks with a child each and returns the pids of all four.
    async fn start_families(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        for rank in [0, 1] {
            let start = start_rank(rank, Generation::new(1, 1), "family");
            self.coordinator.order(Order::StartRank(start)).await;
            pids.push(self.coordinator.wait_for_status(rank, |status| status.step == 5).await.pid);
            let of_rank = |line: &&ringmaster_proto::v1::AgentLogLine| line.rank == rank;
            let child = self
                .coordinator
                .wait_for("the child's pid", |seen| {
                    let mut lines = seen.lines.iter().filter(of_rank);
                    lines.find_map(|line| line.text.strip_prefix("child ")?.parse().ok())
                })
                .await;
            pids.push(child);
        }
        assert!(pids.iter().all(|&pid| is_alive(pid)), "{pids:?}");
        pids
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_parent_pipe_closes_leaves_no_process_and_no_socket_behind() {
    let mut agent = Process::start(&["--parent-pipe"]).await;
    let pids = agent.start_families().await;
    // Ctrl-C in the parent's terminal reaches the agent too and must change nothing.
    signal(agent.child.id(), Signal::SIGINT);
    agent.coordinator.wait_for_heartbeats(3).await;
    assert!(pids.iter().all(|&pid| is_alive(pid)));

    drop(agent.child.stdin.take());
    wait_until_gone(&pids).await;
    assert_eq!(agent.child.wait().unwrap().code(), Some(0));
    assert_eq!(agent.left(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_an_agent_once_its_ranks_have_stopped_with_all_they_started() {
    let mut agent = Process::start(&[]).await;
    let pids = agent.start_families().await;
    signal(agent.child.id(), Signal::SIGTERM);
    wait_until_gone(&pids).await;
    assert_eq!(agent.child.wait().unwrap().code(), Some(0));
    let codes: Vec<_> = agent.coordinator.seen().exits().iter().map(|exit| exit.code).collect();
    assert_eq!(codes, [Some(0), Some(0)]);
    assert_eq!(agent.left(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_does_not_wait_for_the_grace() {
    let mut agent = Process::start(&["--grace", "600"]).await;
    let start = start_rank(0, Generation::new(1, 1), "stubborn");
    agent.coordinator.order(Order::StartRank(start)).await;
    let pid = agent.coordinator.wait_for_status(0, |status| status.step == 5).await.pid;
    signal(agent.child.id(), Signal::SIGTERM);
    agent.coordinator.wait_for("the leave", |seen| seen.leaving().cloned()).await;
    assert!(is_alive(pid));
    signal(agent.child.id(), Signal::SIGTERM);
    wait_until_gone(&[pid]).await;
    assert_eq!(agent.child.wait().unwrap().code(), Some(0));
}

/// A stopped rank cannot see that its agent's socket closed. It would come back to life beside the
/// rank that was started in its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_ends_what_its_predecessor_left_before_it_registers() {
    let mut agent = Process::start(&[]).await;
    let pids = agent.start_families().await;
    signal(pids[0], Signal::SIGSTOP);
    signal(agent.child.id(), Signal::SIGKILL);
    agent.restart();
    agent.coordinator.wait_for_registrations(2).await;
    let left: Vec<u32> = pids.into_iter().filter(|&pid| is_alive(pid)).collect();
    assert_eq!(left, Vec::<u32>::new());
    assert!(agent.coordinator.seen().registrations()[1].running.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn ranks_of_a_killed_agent_end_by_themselves() {
    let agent = Process::start(&[]).await;
    let start = start_rank(0, Generation::new(1, 1), "train");
    agent.coordinator.order(Order::StartRank(start)).await;
    let pid = agent.coordinator.wait_for_status(0, |status| status.step == 5).await.pid;
    signal(agent.child.id(), Signal::SIGKILL);
    wait_until_gone(&[pid]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_process_serves_orders_like_any_other() {
    let agent = Process::start(&["--log-format", "json"]).await;
    let pids = agent.start_families().await;
    for rank in [0, 1] {
        let stop = StopRank {
            job_id: JOB.into(),
            rank,
            graceful: true,
            grace_ms: 30_000,
            reason: "done".into(),
        };
        agent.coordinator.order(Order::StopRank(stop)).await;
        assert_eq!(agent.coordinator.wait_for_exit(rank).await.code, Some(0));
    }
    assert!(pids.iter().all(|&pid| !is_alive(pid)), "an exit is told when all is gone");
}

#[test]
fn the_version_names_the_build_and_a_rank_without_its_environment_says_what_is_missing() {
    let version = Command::new(WORKER).arg("--version").output().unwrap();
    let text = String::from_utf8(version.stdout).unwrap();
    assert_eq!(text, format!("ringmaster-worker {}\n", env!("RINGMASTER_VERSION")));

    let rank = Command::new(WORKER).arg("rank").env_remove("WORLD_SIZE").output().unwrap();
    assert_eq!(rank.status.code(), Some(2));
    let text = String::from_utf8(rank.stderr).unwrap();
    assert!(text.contains("WORLD_SIZE is not set"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_process_says_which_build_it_is_and_ends_for_good_when_it_is_refused() {
    let version = Command::new(&binaries().ringmaster).arg("--version").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let agent = Process::start(&[]).await;
    let build = agent.coordinator.seen().registrations()[0].build_id.clone();
    assert!(version.contains(&format!("(build {build})")), "{version:?} {build:?}");

    let coordinator = Coordinator::start().await;
    coordinator.behave(|manners| manners.refuses_agents = Some("this is build 1, not 2".into()));
    let folder = tempfile::tempdir().unwrap();
    let mut refused = tokio::process::Command::from({
        let mut command = Command::new(&binaries().ringmaster);
        command.args(["agent", "--coordinator", &coordinator.url(), "--log-format", "json"]);
        command.arg("--work-dir").arg(folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    });
    let output = refused.kill_on_drop(true).output().await.unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{text}");
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "ERROR");
    // At the top, as in the logs of ranks.
    assert!(last["message"].as_str().unwrap().contains("this is build 1, not 2"), "{text}");
}

#[test]
fn an_agent_without_a_worker_beside_it_ends_at_once_and_says_where_one_is_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("ringmaster");
    std::fs::copy(&binaries().ringmaster, &alone).unwrap();
    let mut command = Command::new(&alone);
    command.args(["agent", "--coordinator", "http://127.0.0.1:9", "--work-dir"]).arg(folder.path());
    let output = command.env_remove("RINGMASTER_WORKER").output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let beside = format!("cannot find ringmaster-worker beside {}", alone.display());
    assert!(text.contains(&beside) && text.contains("RINGMASTER_WORKER"), "{text}");
}

/// An address without a scheme was tried for ever, and one with https:// in plain text.
#[test]
fn an_agent_whose_coordinators_address_can_never_work_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for (url, said) in [
        ("127.0.0.1:7071", "write http://127.0.0.1:7071"),
        ("https://127.0.0.1:7071", "asks for TLS"),
        ("http://head", "names no port; write http://head:7071"),
    ] {
        let mut command = Command::new(&binaries().ringmaster);
        command.args(["agent", "--coordinator", url, "--work-dir"]).arg(folder.path());
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{url}: {text}");
        assert!(text.contains(said) && text.contains("--coordinator"), "{url}: {text}");
        assert!(!text.contains('\u{1b}'), "colours in a pipe: {text:?}");
    }
}
