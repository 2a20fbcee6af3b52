//! Starts ranks and waits for their ends.
//!
//! One long-lived thread runs every exec, and makes what a rank needs of files before: without the table's
//! lock, since a file system may not answer. One thread per rank waits for its end, clears what the rank left
//! behind, reads its status file and only then lets the exit be known.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use ringmaster_proto::v1::StartRank;
use tokio::sync::mpsc::UnboundedReceiver;

use super::entry::{Ending, Killed, Launch, NotStarted};
use super::environment::{self, Files, Node};
use super::group;
use super::logs::{self, Tails};
use super::proc::Process;
use super::ranks::{Key, Table};
use super::secret::Secret;
use super::shm;
use super::worker::Worker;
use crate::exit::{self, Class, cause, operation};
use crate::ffi::in_new_session;

/// Bytes of a log's end in which its last line is looked for.
const LAST_LINE_WINDOW: u64 = 4096;
/// Between two looks whether processes that survived SIGKILL have gone.
const SURVIVORS_POLL: Duration = Duration::from_secs(1);

/// Where the logs of a job's ranks are written.
#[derive(Debug, Clone)]
pub(super) enum LogFolder {
    /// In the job's folder below the work folder.
    Work,
    /// In `logs/` of the job's run folder below this one.
    Runs(PathBuf),
}

/// What lies ready for a rank.
#[derive(Debug)]
struct Prepared {
    files: Files,
    /// Open, and empty.
    log: File,
}

/// What starting a rank takes.
#[derive(Debug)]
pub(super) struct Launcher {
    pub(super) table: Arc<Table>,
    /// What ranks are.
    pub(super) worker: Arc<Worker>,
    pub(super) work_dir: PathBuf,
    /// Where each rank's log goes.
    pub(super) logs: LogFolder,
    pub(super) node: Node,
    pub(super) tails: Tails,
}

impl Launcher {
    /// Starts the ranks that come out of `queue` until every sender is gone.
    pub(super) fn run(self, mut queue: UnboundedReceiver<Key>) {
        let table = Arc::clone(&self.table);
        while let Some(key) = queue.blocking_recv() {
            let prepare = |start: &StartRank| {
                prepare(&self.work_dir, &self.logs, start).map_err(NotStarted::from)
            };
            let exec = |start: &StartRank, secret: &Secret, prepared: Prepared| {
                let child = self.exec(start, secret, &prepared)?;
                Ok((child.id(), (child, prepared.files)))
            };
            let launched = table.launch_prepared(&key, prepare, exec);
            let Some(((child, files), launch)) = launched else { continue };
            let generation = launch.start.generation.unwrap_or_default();
            tracing::info!(job_id = %key.0, rank = key.1.0, %generation, pid = child.id(), log = %files.log.display(), "started a rank");
            self.watch(key, child, launch, files);
        }
    }

    fn exec(
        &self,
        start: &StartRank,
        secret: &Secret,
        Prepared { files, log }: &Prepared,
    ) -> Result<Child, NotStarted> {
        let (output, errors) = (log.try_clone()?, log.try_clone()?);
        self.worker.start(|command| {
            command
                .env_clear()
                .envs(environment::of_rank(start, secret, &self.node, files, std::env::vars_os()))
                .stdin(Stdio::null())
                .stdout(output)
                .stderr(errors);
            in_new_session(command).spawn()
        })
    }

    fn watch(&self, key: Key, child: Child, launch: Launch, files: Files) {
        let pid = child.id();
        let ended = self.tails.follow(logs::Source {
            path: files.log.clone(),
            job_id: key.0.clone(),
            rank: key.1.0,
            generation: launch.generation,
        });
        let (table, worker, watched) =
            (Arc::clone(&self.table), Arc::clone(&self.worker), key.clone());
        let status = files.status.clone();
        let waiter = move || {
            let survivors = wait_for_end(&table, &worker, &watched, child, &files);
            drop(ended);
            if !survivors.is_empty() {
                wait_for_survivors(&survivors);
                table.release(&watched, pid);
            }
        };
        let name = format!("wait-{pid}");
        if let Err(error) = std::thread::Builder::new().name(name).spawn(waiter) {
            // A rank nobody waits for must not run. It stays a zombie until the agent ends.
            self.table.ending(&key, pid);
            group::clear(pid, &status);
            let ending = Ending {
                reason: format!("cannot start a thread that waits for it: {error}"),
                class: Class::Node,
                operation: operation::EXEC.to_owned(),
                cause: cause::io(error.kind()),
                ..Ending::default()
            };
            self.table.ended(&key, pid, ending);
        }
    }
}

/// Makes the job's folder, writes the manifest, removes an earlier status file and opens the log.
fn prepare(work_dir: &Path, logs: &LogFolder, start: &StartRank) -> io::Result<Prepared> {
    if !is_plain_name(&start.job_id) {
        let message = format!("job id {:?} cannot be the name of a folder", start.job_id);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let folder = work_dir.join(&start.job_id);
    fs::create_dir_all(&folder)?;
    let log_folder = match logs {
        LogFolder::Work => folder.clone(),
        LogFolder::Runs(runs_dir) => runs_dir.join(&start.job_id).join("logs"),
    };
    fs::create_dir_all(&log_folder)?;
    let stem = format!("{}-rank{}", start.generation.unwrap_or_default(), start.rank);
    let files = Files {
        manifest: folder.join(format!("{stem}.manifest.json")),
        status: folder.join(format!("{stem}.status.json")),
        log: log_folder.join(format!("{stem}.log")),
    };
    fs::write(&files.manifest, &start.manifest)?;
    match fs::remove_file(&files.status) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let log = File::create(&files.log)?;
    Ok(Prepared { files, log })
}

fn is_plain_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && !name.starts_with('.') && name.len() <= 200 && name.chars().all(allowed)
}

/// Waits for the end of a rank and of all it started, and tells it to the table. Returns what SIGKILL did
/// not end, whose slot is kept out of service.
fn wait_for_end(
    table: &Table,
    worker: &Worker,
    key: &Key,
    mut child: Child,
    files: &Files,
) -> Vec<Process> {
    let (pid, started) = (child.id(), SystemTime::now());
    let leader = Pid::from_raw(i32::try_from(pid).expect("process ids fit an i32"));
    // Left a zombie on purpose: as long as it is one, nobody else can have its number.
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    while waitid(Id::Pid(leader), flags) == Err(Errno::EINTR) {}
    table.ending(key, pid);
    let cleared = group::clear(pid, &files.status);
    let segments = shm::clear(started);
    if segments > 0 {
        tracing::warn!(job_id = %key.0, rank = key.1.0, pid, segments, "removed shared memory that the rank left");
    }
    if cleared.found > 0 {
        tracing::warn!(job_id = %key.0, rank = key.1.0, pid, survivors = cleared.found, "killed what the rank left running");
    }
    if !cleared.left.is_empty() {
        // Before the exit is known: what takes the rank's place would find its device in use.
        table.keep_out(key, pid, &hold_the_slot(&cleared.left));
    }
    let ending = ending(table, worker, key, &mut child, files);
    tracing::info!(job_id = %key.0, rank = key.1.0, pid, code = ending.code, signal = ending.signal, class = ?ending.class, operation = %ending.operation, cause = %ending.cause, reason = %ending.reason, "a rank ended");
    table.ended(key, pid, ending);
    cleared.left
}

/// Reaps a rank of which nothing runs any more and says how it ended.
fn ending(table: &Table, worker: &Worker, key: &Key, child: &mut Child, files: &Files) -> Ending {
    let pid = child.id();
    let killed = table.killed_because(key, pid);
    let is_mute = killed.is_none() && !table.has_connected(key, pid) && !files.status.exists();
    match child.wait() {
        // It may be that no rank can run here: then the job is not to blame.
        Ok(status) if is_mute && !status.success() => {
            let why_not = worker.suspect();
            let ending = describe(status, files, None);
            Ending { for_the_worker: why_not.is_some(), ..ending }
        }
        Ok(status) => describe(status, files, killed),
        Err(error) => Ending {
            reason: format!("its exit status cannot be read: {error}"),
            operation: operation::RUN.to_owned(),
            cause: cause::io(error.kind()),
            ..Ending::default()
        },
    }
}

/// Says why the slot of a rank that has ended takes no other.
fn hold_the_slot(left: &[Process]) -> String {
    let pids: Vec<String> = left.iter().map(|process| process.pid.to_string()).collect();
    format!("processes that its last rank left survive SIGKILL: {}", pids.join(", "))
}

/// Waits for as long as any of them is there.
fn wait_for_survivors(survivors: &[Process]) {
    while survivors.iter().any(|process| process.runs()) {
        std::thread::sleep(SURVIVORS_POLL);
    }
}

/// Says how a process ended: in its own words if it has left any, else by its signal or code.
fn describe(status: ExitStatus, files: &Files, killed: Option<Killed>) -> Ending {
    let (code, signal) = (status.code(), status.signal());
    match exit::read_status(&files.status) {
        Ok(Some(exit::ExitStatus { reason, class, operation, cause })) => {
            let words = Ending { reason, class, operation, cause, ..Ending::default() };
            return Ending { code, signal, ..words };
        }
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(%error, path = %files.status.display(), "cannot read the status file");
        }
    }
    if let (Some(killed), Some(_)) = (killed, signal) {
        return Ending { code, signal, ..Ending::from(killed) };
    }
    let ending = by_code(code, signal);
    let how = match code {
        Some(exit::SUCCESS) => return Ending { reason: "finished".to_owned(), ..ending },
        Some(exit::AGENT_GONE) => "lost the connection to its agent".to_owned(),
        _ => exit::in_words(code, signal),
    };
    let reason = match last_line(&files.log) {
        Some(line) => format!("{how}; its last line was: {line}"),
        None => how,
    };
    Ending { reason, ..ending }
}

/// Returns what can be told of an end from its code or signal alone.
fn by_code(code: Option<i32>, signal: Option<i32>) -> Ending {
    let (class, cause) = match (code, signal) {
        (Some(code), _) => (Class::of_code(code), cause::code(code)),
        (None, Some(signal)) => (Class::Retry, cause::signal(signal)),
        (None, None) => (Class::Retry, String::new()),
    };
    // A code that blames anybody is about what it found before it could say anything.
    let operation = if class == Class::Retry { operation::RUN } else { operation::START };
    Ending { code, signal, class, operation: operation.to_owned(), cause, ..Ending::default() }
}

/// Returns the last line of a log that says anything.
fn last_line(log: &Path) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_LINE_WINDOW))).ok()?;
    let mut end = Vec::new();
    file.read_to_end(&mut end).ok()?;
    let text = String::from_utf8_lossy(&end);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().take(500).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn files(folder: &Path) -> Files {
        let file = |name| folder.join(name);
        Files { manifest: file("m"), status: file("s"), log: file("l") }
    }

    fn identity(ending: &Ending) -> (Class, &str, &str) {
        (ending.class, &ending.operation, &ending.cause)
    }

    #[test]
    fn last_words_go_before_everything_else() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let words = exit::ExitStatus {
            reason: "no such shard".into(),
            class: Class::Node,
            operation: "open data".into(),
            cause: "data: missing".into(),
        };
        exit::write_status(&files.status, &words).unwrap();
        let ending = describe(ExitStatus::from_raw(1 << 8), &files, None);
        assert_eq!((ending.code, ending.signal), (Some(1), None));
        assert_eq!(ending.reason, "no such shard");
        assert_eq!(identity(&ending), (Class::Node, "open data", "data: missing"));
    }

    #[test]
    fn a_process_without_last_words_is_described_by_its_signal_or_code_and_last_line() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let ending = describe(ExitStatus::from_raw(9), &files, None);
        assert_eq!((ending.code, ending.signal), (None, Some(9)));
        assert_eq!(ending.reason, "ended by signal 9 (SIGKILL)");
        assert_eq!(identity(&ending), (Class::Retry, "run", "signal 9"));
        let killed = Killed { because: "out of grace".into(), cause: cause::KILLED };
        let ending = describe(ExitStatus::from_raw(9), &files, Some(killed));
        assert_eq!((ending.reason.as_str(), ending.signal), ("out of grace", Some(9)));
        assert_eq!(identity(&ending), (Class::Retry, "run", "killed"));
        fs::write(&files.log, "first\nlibtorch_cpu.so: not found\n\n").unwrap();
        let ending = describe(ExitStatus::from_raw(127 << 8), &files, None);
        assert_eq!(
            ending.reason,
            "exited with code 127; its last line was: libtorch_cpu.so: not found"
        );
        assert_eq!(identity(&ending), (Class::Retry, "run", "code 127"));
    }

    #[test]
    fn a_code_without_words_says_whose_fault_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        for (code, expected) in [
            (exit::SUCCESS, (Class::Retry, "run", "code 0")),
            (exit::FAILED, (Class::Retry, "run", "code 1")),
            (exit::USAGE, (Class::Job, "start", "code 2")),
            (exit::AGENT_GONE, (Class::Retry, "run", "code 75")),
            (exit::NODE, (Class::Node, "start", "code 77")),
            (exit::HOPELESS, (Class::Job, "start", "code 78")),
            (exit::PANICKED, (Class::Retry, "run", "code 101")),
        ] {
            let ending = describe(ExitStatus::from_raw(code << 8), &files, None);
            assert_eq!((ending.code, identity(&ending)), (Some(code), expected));
            assert!(!ending.reason.is_empty() && !ending.undead && !ending.for_the_worker);
        }
    }

    #[test]
    fn logs_may_go_to_the_run_folder_and_everything_else_stays_in_the_work_folder() {
        let (work, runs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let start = StartRank { job_id: "emoji-abc234".into(), rank: 3, ..StartRank::default() };
        let logs = LogFolder::Runs(runs.path().to_owned());
        let files = prepare(work.path(), &logs, &start).unwrap().files;
        assert!(files.log.starts_with(runs.path().join("emoji-abc234/logs")), "{files:?}");
        assert!(files.manifest.starts_with(work.path()) && files.status.starts_with(work.path()));
        let prepared = prepare(work.path(), &LogFolder::Work, &start).unwrap();
        assert!(prepared.files.log.starts_with(work.path()), "{prepared:?}");
        assert!(prepared.files.log.exists(), "it is opened before the table is locked");
    }

    #[test]
    fn a_job_id_cannot_leave_the_work_folder() {
        for bad in ["", ".", "..", "../x", "a/b", "a\0b"] {
            let start = StartRank { job_id: bad.into(), ..StartRank::default() };
            let prepared = prepare(Path::new("/nonexistent"), &LogFolder::Work, &start);
            assert!(prepared.is_err(), "{bad:?}");
        }
    }
}
