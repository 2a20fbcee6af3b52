//! The real worker behind an agent: probed before the node registers and whenever its file changes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ringmaster_agent::{Options, RankProgram, WorkerInfo};
use ringmaster_proto::v1::{self, Generation};
use ringmaster_tests::binaries::binaries;

use super::coordinator::{Coordinator, Seen};
use super::harness::Cluster;

const WORKER: &str = env!("CARGO_BIN_EXE_ringmaster-worker");

/// Starts an agent whose worker this is, which may be one for tests.
async fn agent_with(path: &Path, change: impl FnOnce(&mut Options)) -> Cluster {
    let program = RankProgram::Worker { path: path.to_owned(), prefix: Vec::new() };
    Cluster::start_with(|options| {
        (options.rank_program, options.takes_faults) = (program, true);
        change(options);
    })
    .await
}

fn registered(coordinator: &Coordinator) -> v1::Worker {
    coordinator.seen().registrations()[0].worker.clone().unwrap()
}

/// Waits until so many changes of the worker were reported; returns the last.
async fn change(coordinator: &Coordinator, count: usize) -> v1::Worker {
    let find =
        |seen: &Seen| (seen.workers().len() >= count).then(|| seen.workers()[count - 1].clone());
    coordinator.wait_for("a change of the worker", find).await
}

/// A worker under a name that can be given to another file at once.
struct Installed {
    folder: tempfile::TempDir,
}

impl Installed {
    fn new(file: &str) -> Self {
        let installed = Self { folder: tempfile::tempdir().unwrap() };
        installed.replace_by(file);
        installed
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("ringmaster-worker")
    }

    fn replace_by(&self, file: &str) {
        let next = self.folder.path().join("next");
        symlink(file, &next).unwrap();
        fs::rename(&next, self.path()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_registers_with_what_its_worker_says() {
    let cluster = agent_with(Path::new(WORKER), |_| {}).await;
    let worker = registered(&cluster.coordinator);
    assert_eq!(
        (worker.unusable.as_str(), worker.version.as_str()),
        ("", env!("RINGMASTER_VERSION"))
    );
    assert_eq!((worker.libtorch.as_str(), worker.features), ("2.11", vec!["faults".to_owned()]));
    assert!(worker.version.contains(&worker.build_id) && worker.build_id.len() == 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_takes_no_worker_that_fails_on_demand() {
    let cluster = agent_with(Path::new(WORKER), |options| options.takes_faults = false).await;
    let why = registered(&cluster.coordinator).unusable;
    assert!(why.starts_with(WORKER) && why.contains("+faults"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_replaced_is_probed_again_and_a_broken_one_starts_no_rank() {
    let installed = Installed::new(WORKER);
    let cluster = agent_with(&installed.path(), |_| {}).await;
    let coordinator = &cluster.coordinator;
    assert_eq!(registered(coordinator).unusable, "");

    installed.replace_by("/bin/false");
    let broken = change(coordinator, 1).await.unusable;
    assert!(broken.contains("exited with code 1"), "{broken}");
    cluster.start_rank(0, Generation::new(1, 1), "no manifest").await;
    let exit = coordinator.wait_for_exit(0).await;
    assert_eq!((exit.code, exit.signal, exit.for_the_worker), (None, None, true));
    assert!(exit.reason.contains("cannot run: its probe exited with code 1"), "{}", exit.reason);

    installed.replace_by(WORKER);
    assert_eq!(change(coordinator, 2).await.unusable, "");
    cluster.start_rank(1, Generation::new(1, 1), "no manifest").await;
    // It ran: a manifest that it cannot read may be one for another build.
    let exit = coordinator.wait_for_exit(1).await;
    assert_eq!((exit.code, exit.for_the_worker), (Some(77), false));
}

/// It was the job's fault, until its restarts were used up, while the node counted as ready.
#[tokio::test(flavor = "multi_thread")]
async fn ranks_of_a_worker_that_stopped_working_are_its_nodes_fault() {
    let folder = tempfile::tempdir().unwrap();
    let flag = folder.path().join("works");
    fs::write(&flag, "").unwrap();
    // Its file stays the same, and what it needs goes.
    let script = format!("test -e '{}' || exit 127; exec \"$0\" \"$@\"", flag.display());
    let prefix = ["/bin/sh", "-c", &script].map(Into::into).to_vec();
    let program = RankProgram::Worker { path: WORKER.into(), prefix };
    let cluster = agent_with(Path::new(WORKER), |options| options.rank_program = program).await;
    assert_eq!(registered(&cluster.coordinator).unusable, "");

    fs::remove_file(&flag).unwrap();
    cluster.start_rank(0, Generation::new(1, 1), "no manifest").await;
    let exit = cluster.coordinator.wait_for_exit(0).await;
    assert!(exit.for_the_worker && exit.reason.contains("127"), "{exit:?}");
    assert!(change(&cluster.coordinator, 1).await.unusable.contains("127"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_starts_the_probe_and_the_ranks() {
    let prefix = ["/usr/bin/env", "RINGMASTER_LOG_FORMAT=json"].map(Into::into).to_vec();
    let program = RankProgram::Worker { path: WORKER.into(), prefix };
    let cluster = agent_with(Path::new(WORKER), |options| options.rank_program = program).await;
    assert_eq!(registered(&cluster.coordinator).unusable, "");
    cluster.start_rank(0, Generation::new(1, 1), "no manifest").await;
    assert_eq!(cluster.coordinator.wait_for_exit(0).await.code, Some(77));
    let json = |seen: &Seen| seen.line("{").is_some().then_some(());
    cluster
        .coordinator
        .wait_for("a log line of a rank that the prefix told to write JSON", json)
        .await;
}

fn probe(arguments: &[&str]) -> Output {
    Command::new(WORKER).arg("probe").args(arguments).output().unwrap()
}

#[test]
fn a_probe_says_the_same_to_people_and_to_agents() {
    let json = probe(&["--json"]);
    assert!(json.status.success(), "{json:?}");
    let info: WorkerInfo = serde_json::from_slice(&json.stdout).unwrap();
    let text = String::from_utf8(probe(&[]).stdout).unwrap();
    assert!(
        text.starts_with(&format!("ringmaster-worker {}\nlibtorch 2.11\n", info.version)),
        "{text}"
    );
    assert!(info.devices.is_empty(), "ranks on the CPU use none");
    // Each GPU, or why there is none.
    assert!(text.lines().count() > 2, "{text}");
}

#[test]
fn a_probe_for_gpus_fails_with_a_remedy_where_none_can_be_used() {
    let output = probe(&["--json", "--accelerator", "cuda"]);
    let text = String::from_utf8(output.stderr).unwrap();
    // A machine with GPUs lists them.
    if !output.status.success() {
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("accelerator: cpu") && output.stdout.is_empty(), "{text}");
        assert!(!text.contains("ERROR"), "the reason and nothing else: {text}");
    }
}

/// Its job would wait for ever for a node that takes ranks.
#[tokio::test(flavor = "multi_thread")]
async fn the_agent_of_one_command_ends_at_once_when_its_worker_cannot_run() {
    let coordinator = Coordinator::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(&binaries().ringmaster);
    command
        .args([
            "agent",
            "--parent-pipe",
            "--worker",
            "/bin/false",
            "--coordinator",
            &coordinator.url(),
        ])
        .arg("--work-dir")
        .arg(folder.path())
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    // Its parent lives: the other end of the pipe stays open.
    let _pipe = child.stdin.take();
    let output = child.wait_with_output().await.unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && output.status.code().is_some(), "{text}");
    assert!(text.contains("the worker cannot run: its probe exited with code 1"), "{text}");
    assert!(coordinator.seen().registrations().is_empty());
}
