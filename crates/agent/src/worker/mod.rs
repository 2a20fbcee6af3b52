//! Which program ranks are, and whether it can run here.
//!
//! A worker is asked what it is (`ringmaster-worker probe --json`) before this node registers, whenever its
//! file changes, when a rank ends without a word or because of its device, and now and then while it cannot
//! start or a device is missing. Ranks are started from the file that answered. The coordinator hears of every
//! change, and gives a node whose worker cannot run no rank. A GPU that is gone keeps its place among the
//! others, so that slots keep their GPUs.
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
use crate::exit::cause;
use crate::ranks::Table;
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
    /// What it said, if it said anything; the GPUs are those of `places`.
    info: Option<WorkerInfo>,
    /// UUIDs of the GPUs that it listed.
    listed: Vec<String>,
    /// The GPUs in the order of slots, those that have gone meanwhile among them.
    places: Vec<DeviceInfo>,
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
        let nothing = Found { unusable, ..Found::nothing(None) };
        Self { program, demands, found: watch::Sender::new(nothing) }
    }

    /// Asks the worker what it is and keeps the answer. Blocks for up to a minute.
    pub(super) fn probe(&self) {
        let RankProgram::Worker { path, prefix } = &self.program else { return };
        let mut found = look(path, prefix, &self.demands);
        let before = self.found.borrow().unusable.clone();
        found.keep_places(&self.found.borrow().places, &self.demands);
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

    /// Probes whenever there is reason to expect another answer, until `is_over`, and tells `table` which GPUs
    /// are there.
    ///
    /// On a thread of its own: a file system that does not answer holds up nobody else.
    pub(super) fn watch(&self, is_over: &AtomicBool, table: &Table) {
        let RankProgram::Worker { path, .. } = &self.program else { return };
        while !is_over.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK_INTERVAL);
            let fault = table.newest_fault().map(tokio::time::Instant::into_std);
            if self.may_have_changed(Stamp::at(path)) || self.is_missing_a_device(fault) {
                self.probe();
            }
            let (listed, at) = self.listed();
            table.listed(&listed, tokio::time::Instant::from_std(at));
        }
    }

    /// Whether it is to be asked for a device that failed at `fault`, if one did: at once, and then now and
    /// then.
    fn is_missing_a_device(&self, fault: Option<Instant>) -> bool {
        let found = self.found.borrow();
        fault.is_some_and(|fault| found.at <= fault || found.at.elapsed() >= RETRY_INTERVAL)
    }

    /// Returns the UUIDs of the GPUs that the newest probe listed, and when it began.
    fn listed(&self) -> (Vec<String>, Instant) {
        let found = self.found.borrow();
        (found.listed.clone(), found.at)
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
        Err(NotStarted { why, cause: cause::WORKER.to_owned(), for_the_worker: true })
    }

    fn give_up(&self, why: String) {
        tracing::error!(%why, "the worker cannot run any more; it is probed again");
        self.found.send_modify(|found| found.unusable = Some(why));
    }
}

impl Found {
    /// A look that found nothing yet; it begins now.
    fn nothing(stamp: Option<Stamp>) -> Self {
        Self {
            at: Instant::now(),
            stamp,
            executable: None,
            info: None,
            listed: Vec::new(),
            places: Vec::new(),
            unusable: None,
        }
    }

    /// Leaves every GPU in the place that it had before, whatever has become of it.
    fn keep_places(&mut self, before: &[DeviceInfo], demands: &Demands) {
        let Some(info) = &mut self.info else {
            self.places = before.to_vec();
            return;
        };
        self.listed = info.devices.iter().map(|device| device.uuid.clone()).collect();
        if info.lists_part_of(before) {
            info.devices = before.to_vec();
            self.unusable = info.misfit(demands).err();
        }
        self.places.clone_from(&info.devices);
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
    let mut found = Found::nothing(Stamp::at(path));
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
mod tests;
