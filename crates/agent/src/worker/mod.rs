//! Which program ranks are, and whether it can run here.
//!
//! A worker is asked what it is (`ringmaster-worker probe --json`) before this node registers, whenever its
//! file changes, when a rank ends without a word, and now and then while it cannot start. Ranks are started
//! from the file that answered. The coordinator hears of every change, and gives a node whose worker cannot
//! run no rank.
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
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringmaster_proto::v1;
use tokio::sync::watch;

use crate::entry::NotStarted;
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

    /// Asks the worker what it is and keeps the answer. Blocks for up to a minute.
    pub(super) fn probe(&self) {
        let RankProgram::Worker { path, prefix } = &self.program else { return };
        let found = look(path, prefix, &self.demands);
        let before = self.found.borrow().unusable.clone();
        match &found.unusable {
            None => {
                let info = found.info.clone().unwrap_or_default();
                tracing::info!(worker = %path.display(), version = %info.version, libtorch = %info.libtorch, devices = info.devices.len(), "the worker can run");
            }
            Some(why) if before.as_ref() != Some(why) => {
                tracing::error!(worker = %path.display(), %why, "the worker cannot run, so no rank starts here");
            }
            Some(_) => {}
        }
        self.found.send_replace(found);
    }

    /// Probes whenever there is reason to expect another answer, until `is_over`.
    ///
    /// On a thread of its own: a file system that does not answer holds up nobody else.
    pub(super) fn watch(&self, is_over: &AtomicBool) {
        let RankProgram::Worker { path, .. } = &self.program else { return };
        while !is_over.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK_INTERVAL);
            if self.may_have_changed(Stamp::at(path)) {
                self.probe();
            }
        }
    }

    /// After a rank that ended without a word: asks whether the worker can run at all, and returns why not.
    pub(super) fn suspect(&self) -> Option<String> {
        self.probe();
        self.unusable()
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
    /// The worker cannot run, or what `spawn` gives. A worker that cannot be started is unusable until it has
    /// been probed again.
    pub(super) fn start(
        &self,
        spawn: impl FnOnce(&mut Command) -> io::Result<Child>,
    ) -> Result<Child, NotStarted> {
        match &self.program {
            RankProgram::Worker { path, prefix } => self.start_worker(path, prefix, spawn),
            RankProgram::Other(words) => {
                let [program, arguments @ ..] = &words[..] else {
                    return Err(io::Error::other("no rank program is set").into());
                };
                Ok(spawn(Command::new(program).args(arguments))?)
            }
        }
    }

    fn start_worker(
        &self,
        path: &Path,
        prefix: &[OsString],
        spawn: impl FnOnce(&mut Command) -> io::Result<Child>,
    ) -> Result<Child, NotStarted> {
        let found = self.found.borrow().clone();
        let executable = found.executable.as_deref();
        if found.unusable.is_none() && executable.is_some_and(|file| !file.is_unchanged()) {
            self.give_up(
                "its file was written to, and it has not been probed again yet".to_owned(),
            );
        } else if found.unusable.is_none() {
            match spawn(begin(path, prefix, executable).arg("rank")) {
                Ok(child) => return Ok(child),
                Err(error) => self.give_up(format!("a rank could not be started: {error}")),
            }
        }
        let why = self.unusable().unwrap_or_default();
        let why = format!("the worker {} cannot run: {why}", path.display());
        Err(NotStarted { why, for_the_worker: true })
    }

    fn give_up(&self, why: String) {
        tracing::error!(%why, "the worker cannot run any more; it is probed again");
        self.found.send_modify(|found| found.unusable = Some(why));
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
fn look(path: &Path, prefix: &[OsString], demands: &Demands) -> Found {
    // Before the file is opened: what changes in between is another stamp at the next look.
    let stamp = Stamp::at(path);
    let mut found =
        Found { at: Instant::now(), stamp, executable: None, info: None, unusable: None };
    if prefix.is_empty() {
        match Executable::open(path) {
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
    match probe::ask(command) {
        Ok(info) => {
            found.unusable = info.misfit(demands).err();
            found.info = Some(info);
        }
        Err(why) => {
            found.unusable = Some(match prefix.first() {
                Some(program) => format!("started by --rank-prefix {}: {why}", program.display()),
                None => why,
            });
        }
    }
    found
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

    #[test]
    fn a_worker_is_usable_once_it_has_answered_and_starts_ranks_from_then_on() {
        let script = Script::new();
        script.answering("v1");
        let never = |_: &mut Command| unreachable!("nothing is started");
        assert!(script.worker.start(never).is_err(), "not probed yet");
        script.worker.probe();
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

    #[test]
    fn a_worker_is_asked_again_when_its_file_changes_and_only_then() {
        let script = Script::new();
        script.answering("v1");
        script.worker.probe();
        assert!(!script.may_have_changed());
        script.answering("v2, an update");
        assert!(script.may_have_changed());
        script.worker.probe();
        assert_eq!(script.worker.message().unwrap().version, "v2, an update");
        assert!(!script.may_have_changed());
    }

    #[test]
    fn a_worker_that_cannot_start_says_why_starts_no_rank_and_may_recover() {
        let script = Script::new();
        script.put("echo 'libtorch_cpu.so is missing' >&2; exit 127");
        script.worker.probe();
        assert!(script.unusable().contains("libtorch_cpu.so is missing"), "{}", script.unusable());
        assert!(script.unusable().starts_with(&script.path().display().to_string()));
        let never = |_: &mut Command| unreachable!("nothing is started");
        let refused = script.worker.start(never).unwrap_err();
        assert!(
            refused.for_the_worker && refused.why.contains("libtorch_cpu.so is missing"),
            "{refused:?}"
        );
        script.answering("v1");
        assert!(script.may_have_changed());
        script.worker.probe();
        assert_eq!(script.unusable(), "");
    }

    /// It counted as the job's fault, and the worker as usable, until its file changed.
    #[test]
    fn a_worker_that_cannot_be_started_any_more_is_unusable_until_it_has_been_probed_again() {
        let script = Script::new();
        script.answering("v1");
        script.worker.probe();
        let fails = |_: &mut Command| Err(io::Error::from(io::ErrorKind::ExecutableFileBusy));
        let refused = script.worker.start(fails).unwrap_err();
        assert!(refused.for_the_worker, "{refused:?}");
        assert!(script.unusable().contains("a rank could not be started"), "{}", script.unusable());
        assert_eq!(script.worker.suspect(), None);
        assert_eq!(script.unusable(), "");
    }

    #[test]
    fn a_worker_whose_file_was_written_to_starts_no_rank_before_it_has_been_probed_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker");
        fs::write(&path, "one").unwrap();
        let program = RankProgram::Worker { path: path.clone(), prefix: Vec::new() };
        let demands = Demands { accelerator: "cpu".to_owned(), slots: 1, takes_faults: false };
        let worker = Worker::new(program, demands);
        let executable = Some(Arc::new(Executable::open(&path).unwrap()));
        worker.found.send_modify(|found| (found.unusable, found.executable) = (None, executable));
        fs::write(&path, "another").unwrap();
        let never = |_: &mut Command| unreachable!("nothing is started");
        let refused = worker.start(never).unwrap_err();
        assert!(refused.for_the_worker && refused.why.contains("written to"), "{refused:?}");
    }

    #[test]
    fn a_worker_that_is_not_there_makes_the_node_unusable() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none");
        let program = RankProgram::Worker { path, prefix: Vec::new() };
        let demands = Demands { accelerator: "cpu".to_owned(), slots: 1, takes_faults: false };
        let worker = Worker::new(program, demands);
        worker.probe();
        let why = worker.unusable().unwrap();
        assert!(why.contains("cannot be opened") && why.contains("No such file"), "{why}");
    }

    /// The worker was blamed for what was not there.
    #[test]
    fn a_prefix_that_cannot_be_started_is_named() {
        let program =
            RankProgram::Worker { path: "/bin/true".into(), prefix: vec!["/no/numactl".into()] };
        let demands = Demands { accelerator: "cpu".to_owned(), slots: 1, takes_faults: false };
        let worker = Worker::new(program, demands);
        worker.probe();
        let why = worker.unusable().unwrap();
        assert!(why.starts_with("started by --rank-prefix /no/numactl: it cannot"), "{why}");
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
