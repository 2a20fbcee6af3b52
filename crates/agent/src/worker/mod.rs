//! Which program ranks are, and whether it can run here.
//!
//! A worker is asked what it is (`ringmaster-worker probe --json`) before this node registers, whenever its
//! file changes, and now and then while it cannot start. Ranks are started from the file that answered. The
//! coordinator hears of every change, and gives a node whose worker cannot run no rank.
//!
//! Modules in reading order: `info` (what a worker says, and whether that fits), `executable` (its file, kept
//! open), `probe` (asking it).

mod executable;
mod info;
mod probe;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringmaster_proto::v1;
use tokio::sync::watch;

use crate::environment;
use executable::{Executable, Stamp};
pub(super) use info::Demands;
pub use info::{DeviceInfo, FAULTS, WorkerInfo};

/// How often it is looked whether the worker's file has changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a worker that cannot run is left alone while its file stays the same: a file system that it needs
/// may be mounted meanwhile, or a driver loaded.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// What is started as a rank.
#[derive(Debug, Clone)]
pub enum RankProgram {
    /// `ringmaster-worker`.
    Worker {
        /// Where it lies; behind a prefix, where the prefix finds it.
        path: PathBuf,
        /// Program and arguments that start it, such as `numactl --interleave=all`; mostly none.
        prefix: Vec<OsString>,
    },
    /// Any other program and its first arguments, taken as it is: for tests.
    Other(Vec<OsString>),
}

/// The program of ranks, and what was found out about it.
#[derive(Debug)]
pub(super) struct Worker {
    program: RankProgram,
    demands: Demands,
    found: watch::Sender<Found>,
}

/// What one look at the worker found.
#[derive(Debug, Clone)]
struct Found {
    at: Instant,
    /// Of the file that was looked at; none where there was none.
    stamp: Option<Stamp>,
    /// What ranks are started from; none behind a prefix, which finds the file by itself.
    executable: Option<Arc<Executable>>,
    /// What it said, if it said anything.
    info: Option<WorkerInfo>,
    /// Why ranks cannot be it.
    unusable: Option<String>,
}

impl Worker {
    /// Nothing is known of it yet: [`Worker::probe`] finds out.
    pub(super) fn new(program: RankProgram, demands: Demands) -> Self {
        let unusable = match program {
            RankProgram::Worker { .. } => Some("it has not been probed yet".to_owned()),
            RankProgram::Other(_) => None,
        };
        let nothing =
            Found { at: Instant::now(), stamp: None, executable: None, info: None, unusable };
        Self { program, demands, found: watch::Sender::new(nothing) }
    }

    /// Asks the worker what it is and keeps the answer.
    pub(super) async fn probe(&self) {
        let RankProgram::Worker { path, prefix } = &self.program else { return };
        let found = look(path, prefix, &self.demands).await;
        let before = self.found.borrow().unusable.clone();
        match &found.unusable {
            None => {
                let info = found.info.clone().unwrap_or_default();
                tracing::info!(worker = %path.display(), version = %info.version, libtorch = %info.libtorch, devices = info.devices.len(), "the worker can run");
            }
            Some(why) if before.as_ref() != Some(why) => {
                tracing::error!(worker = %path.display(), %why, "the worker cannot run, so this node takes no rank; it is probed again until it can");
            }
            Some(_) => {}
        }
        self.found.send_replace(found);
    }

    /// Probes whenever there is reason to expect another answer. Never ends, unless no worker is to be probed.
    pub(super) async fn watch(self: Arc<Self>) {
        let RankProgram::Worker { path, .. } = &self.program else { return };
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let stamp = stamp(path).await;
            if self.may_have_changed(stamp) {
                self.probe().await;
            }
        }
    }

    fn may_have_changed(&self, stamp: Option<Stamp>) -> bool {
        let found = self.found.borrow();
        let is_retried = found.unusable.is_some() && found.at.elapsed() >= RETRY_INTERVAL;
        stamp != found.stamp || is_retried
    }

    /// Why ranks cannot be started; none when they can.
    pub(super) fn unusable(&self) -> Option<String> {
        self.found.borrow().unusable.clone()
    }

    /// Says when it has been probed again.
    pub(super) fn probes(&self) -> Probes {
        Probes(self.found.subscribe())
    }

    /// What the coordinator is told of it; none of a program that is no worker.
    pub(super) fn message(&self) -> Option<v1::Worker> {
        let RankProgram::Worker { path, .. } = &self.program else { return None };
        let found = self.found.borrow();
        let said = found.info.as_ref().map(v1::Worker::from).unwrap_or_default();
        let why = |why: &String| format!("{}: {why}", path.display());
        Some(v1::Worker { unusable: found.unusable.as_ref().map(why).unwrap_or_default(), ..said })
    }

    /// Starts a rank: `spawn` adds what it needs to the command that begins it, and spawns it.
    ///
    /// # Errors
    /// The worker cannot run, or what `spawn` gives.
    pub(super) fn start(
        &self,
        spawn: impl FnOnce(&mut Command) -> io::Result<Child>,
    ) -> io::Result<Child> {
        let found = self.found.borrow().clone();
        match &self.program {
            RankProgram::Worker { path, prefix } => {
                if let Some(why) = &found.unusable {
                    let why = format!("the worker {} cannot run: {why}", path.display());
                    return Err(io::Error::other(why));
                }
                let mut command = begin(path, prefix, found.executable.as_deref());
                spawn(command.arg("rank"))
            }
            RankProgram::Other(words) => {
                let [program, arguments @ ..] = &words[..] else {
                    return Err(io::Error::other("no rank program is set"));
                };
                spawn(Command::new(program).args(arguments))
            }
        }
    }
}

/// Probes of a worker as they happen.
#[derive(Debug)]
pub(super) struct Probes(watch::Receiver<Found>);

impl Probes {
    /// Waits for the next one.
    pub(super) async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            // The worker is gone: there is none any more.
            std::future::pending::<()>().await;
        }
    }
}

/// Returns the command that the worker's own arguments are added to.
fn begin(path: &Path, prefix: &[OsString], executable: Option<&Executable>) -> Command {
    match (prefix, executable) {
        ([program, arguments @ ..], _) => {
            let mut command = Command::new(program);
            command.args(arguments).arg(path);
            command
        }
        ([], Some(executable)) => executable.command(),
        ([], None) => Command::new(path),
    }
}

/// Opens the worker, unless a prefix does that, and asks it.
async fn look(path: &Path, prefix: &[OsString], demands: &Demands) -> Found {
    // Before the file is opened: what changes in between is another stamp at the next look.
    let stamp = stamp(path).await;
    let mut found =
        Found { at: Instant::now(), stamp, executable: None, info: None, unusable: None };
    if prefix.is_empty() {
        match open(path).await {
            Ok(executable) => found.executable = Some(Arc::new(executable)),
            Err(error) => {
                found.unusable = Some(format!("it cannot be opened: {error}"));
                return found;
            }
        }
    }
    let mut command = begin(path, prefix, found.executable.as_deref());
    command
        .args(["probe", "--json", "--accelerator", &demands.accelerator])
        .env_clear()
        .envs(environment::inherited(std::env::vars_os()));
    match probe::ask(command).await {
        Ok(info) => {
            found.unusable = info.misfit(demands).err();
            found.info = Some(info);
        }
        Err(why) => found.unusable = Some(why),
    }
    found
}

/// As [`Stamp::at`]. A file system that does not answer holds up nobody else.
async fn stamp(path: &Path) -> Option<Stamp> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || Stamp::at(&path)).await.ok().flatten()
}

async fn open(path: &Path) -> io::Result<Executable> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || Executable::open(&path)).await.map_err(io::Error::other)?
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    const ANSWER: &str = r#"{"version": "v1", "build_id": "b", "features": [], "protocol": 1,
        "libtorch": "2.11", "devices": []}"#;

    /// A worker at the end of a prefix: a shell reads it, so that nothing is executed that was just written.
    struct Script {
        folder: TempDir,
        worker: Worker,
    }

    impl Script {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("worker");
            let program = RankProgram::Worker { path, prefix: vec!["/bin/sh".into()] };
            let demands = Demands { accelerator: "cpu".to_owned(), slots: 1, takes_faults: false };
            Self { folder, worker: Worker::new(program, demands) }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("worker")
        }

        /// Replaces the worker, as an installer does.
        fn put(&self, text: &str) {
            let next = self.path().with_extension("next");
            fs::write(&next, text).unwrap();
            fs::rename(&next, self.path()).unwrap();
        }

        fn answering(&self, version: &str) {
            let answer = ANSWER.replace('\n', "").replace("v1", version);
            self.put(&format!("test \"$1 $2\" = 'probe --json' && echo '{answer}'"));
        }

        fn unusable(&self) -> String {
            self.worker.message().unwrap().unusable
        }

        fn may_have_changed(&self) -> bool {
            self.worker.may_have_changed(Stamp::at(&self.path()))
        }
    }

    #[tokio::test]
    async fn a_worker_is_usable_once_it_has_answered_and_starts_ranks_from_then_on() {
        let script = Script::new();
        script.answering("v1");
        let never = |_: &mut Command| unreachable!("nothing is started");
        assert!(script.worker.start(never).is_err(), "not probed yet");
        script.worker.probe().await;
        assert_eq!(script.unusable(), "");
        assert_eq!(script.worker.message().unwrap().version, "v1");
        let spawn = |command: &mut Command| {
            assert_eq!(
                command.get_args().collect::<Vec<_>>(),
                [script.path().as_os_str(), "rank".as_ref()]
            );
            command.spawn()
        };
        script.worker.start(spawn).unwrap().wait().unwrap();
    }

    #[tokio::test]
    async fn a_worker_is_asked_again_when_its_file_changes_and_only_then() {
        let script = Script::new();
        script.answering("v1");
        script.worker.probe().await;
        assert!(!script.may_have_changed());
        script.answering("v2, an update");
        assert!(script.may_have_changed());
        script.worker.probe().await;
        assert_eq!(script.worker.message().unwrap().version, "v2, an update");
        assert!(!script.may_have_changed());
    }

    #[tokio::test]
    async fn a_worker_that_cannot_start_says_why_starts_no_rank_and_may_recover() {
        let script = Script::new();
        script.put("echo 'libtorch_cpu.so is missing' >&2; exit 127");
        script.worker.probe().await;
        assert!(script.unusable().contains("libtorch_cpu.so is missing"), "{}", script.unusable());
        assert!(script.unusable().starts_with(&script.path().display().to_string()));
        let never = |_: &mut Command| unreachable!("nothing is started");
        let refused = script.worker.start(never).unwrap_err().to_string();
        assert!(refused.contains("libtorch_cpu.so is missing"), "{refused}");
        script.answering("v1");
        assert!(script.may_have_changed());
        script.worker.probe().await;
        assert_eq!(script.unusable(), "");
    }

    #[tokio::test]
    async fn a_worker_that_is_not_there_makes_the_node_unusable() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none");
        let program = RankProgram::Worker { path, prefix: Vec::new() };
        let demands = Demands { accelerator: "cpu".to_owned(), slots: 1, takes_faults: false };
        let worker = Worker::new(program, demands);
        worker.probe().await;
        let why = worker.unusable().unwrap();
        assert!(why.contains("cannot be opened") && why.contains("No such file"), "{why}");
    }

    #[test]
    fn a_program_for_tests_is_taken_as_it_is() {
        let program = RankProgram::Other(vec!["/bin/true".into(), "rank".into()]);
        let demands = Demands { accelerator: "cpu".to_owned(), slots: 1, takes_faults: false };
        let worker = Worker::new(program, demands);
        assert_eq!((worker.message(), worker.unusable()), (None, None));
        assert!(worker.start(Command::spawn).unwrap().wait().unwrap().success());
    }
}
