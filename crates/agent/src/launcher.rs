//! Starts ranks and waits for their ends.
//!
//! One long-lived thread runs every exec; one thread per rank waits for its end, clears what the
//! rank left behind, reads its status file and only then lets the exit be known.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::SystemTime;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use ringmaster_proto::v1::StartRank;
use tokio::sync::mpsc::UnboundedReceiver;

use super::entry::{Ending, Launch, NotStarted};
use super::environment::{self, Files, Node};
use super::group;
use super::logs::{self, Tails};
use super::ranks::{Key, Table};
use super::secret::Secret;
use super::shm;
use super::worker::Worker;
use crate::exit;
use crate::ffi::in_new_session;

/// Bytes of a log's end in which its last line is looked for.
const LAST_LINE_WINDOW: u64 = 4096;

/// Where the logs of a job's ranks are written.
#[derive(Debug, Clone)]
pub(super) enum LogFolder {
    /// In the job's folder below the work folder.
    Work,
    /// In `logs/` of the job's run folder below this one.
    Runs(PathBuf),
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
            let mut files = None;
            let exec = |start: &StartRank, secret: &Secret| {
                let prepared = prepare(&self.work_dir, &self.logs, start)?;
                let child = self.exec(start, secret, &prepared)?;
                files = Some(prepared);
                Ok((child.id(), child))
            };
            let Some((child, launch)) = table.launch(&key, exec) else { continue };
            let files = files.expect("a process was started with its files");
            let generation = launch.start.generation.unwrap_or_default();
            tracing::info!(job_id = %key.0, rank = key.1.0, %generation, pid = child.id(), log = %files.log.display(), "started a rank");
            self.watch(key, child, launch, files);
        }
    }

    fn exec(&self, start: &StartRank, secret: &Secret, files: &Files) -> Result<Child, NotStarted> {
        let log = File::create(&files.log)?;
        let output = log.try_clone()?;
        self.worker.start(|command| {
            command
                .env_clear()
                .envs(environment::of_rank(start, secret, &self.node, files, std::env::vars_os()))
                .stdin(Stdio::null())
                .stdout(output)
                .stderr(log);
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
            wait_for_end(&table, &worker, &watched, child, &files);
            drop(ended);
        };
        let name = format!("wait-{pid}");
        if let Err(error) = std::thread::Builder::new().name(name).spawn(waiter) {
            // A rank nobody waits for must not run. It stays a zombie until the agent ends.
            self.table.ending(&key);
            group::clear(pid, &status);
            let reason = format!("cannot start a thread that waits for it: {error}");
            self.table.ended(&key, Ending { reason, retryable: true, ..Ending::default() });
        }
    }
}

/// Makes the job's folder, writes the manifest and removes an earlier status file.
fn prepare(work_dir: &Path, logs: &LogFolder, start: &StartRank) -> io::Result<Files> {
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
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(files),
    }
}

fn is_plain_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && !name.starts_with('.') && name.len() <= 200 && name.chars().all(allowed)
}

fn wait_for_end(table: &Table, worker: &Worker, key: &Key, mut child: Child, files: &Files) {
    let (pid, started) = (child.id(), SystemTime::now());
    let leader = Pid::from_raw(i32::try_from(pid).expect("process ids fit an i32"));
    // Left a zombie on purpose: as long as it is one, nobody else can have its number.
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    while waitid(Id::Pid(leader), flags) == Err(Errno::EINTR) {}
    table.ending(key);
    let survivors = group::clear(pid, &files.status);
    let segments = shm::clear(started);
    if segments > 0 {
        tracing::warn!(job_id = %key.0, rank = key.1.0, pid, segments, "removed shared memory that the rank left");
    }
    if survivors > 0 {
        tracing::warn!(job_id = %key.0, rank = key.1.0, pid, survivors, "killed what the rank left running");
    }
    let killed_because = table.killed_because(key);
    let is_mute = killed_because.is_none() && !table.has_connected(key) && !files.status.exists();
    let ending = match child.wait() {
        // It may be that no rank can run here: then the job is not to blame.
        Ok(status) if is_mute && !status.success() => {
            let why_not = worker.suspect();
            let ending = describe(status, files, None);
            Ending { for_the_worker: why_not.is_some(), ..ending }
        }
        Ok(status) => describe(status, files, killed_because),
        Err(error) => Ending {
            reason: format!("its exit status cannot be read: {error}"),
            retryable: true,
            ..Ending::default()
        },
    };
    tracing::info!(job_id = %key.0, rank = key.1.0, pid, code = ending.code, signal = ending.signal, reason = %ending.reason, "a rank ended");
    table.ended(key, ending);
}

fn describe(status: ExitStatus, files: &Files, killed_because: Option<String>) -> Ending {
    let (code, signal) = (status.code(), status.signal());
    let ending =
        |reason, retryable| Ending { code, signal, reason, retryable, for_the_worker: false };
    match exit::read_status(&files.status) {
        Ok(Some(words)) => return ending(words.reason, words.retryable),
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(%error, path = %files.status.display(), "cannot read the status file");
        }
    }
    if let (Some(because), Some(_)) = (killed_because, signal) {
        return ending(because, true);
    }
    let how = match (code, signal) {
        (Some(exit::SUCCESS), _) => return ending("finished".to_owned(), true),
        (Some(exit::AGENT_GONE), _) => "lost the connection to its agent".to_owned(),
        _ => exit::in_words(code, signal),
    };
    let reason = match last_line(&files.log) {
        Some(line) => format!("{how}; its last line was: {line}"),
        None => how,
    };
    ending(reason, !matches!(code, Some(exit::USAGE | exit::HOPELESS)))
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

    #[test]
    fn last_words_go_before_everything_else() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let words = exit::ExitStatus { reason: "no such shard".into(), retryable: false };
        exit::write_status(&files.status, &words).unwrap();
        let ending = describe(ExitStatus::from_raw(1 << 8), &files, None);
        assert_eq!((ending.code, ending.signal), (Some(1), None));
        assert_eq!((ending.reason.as_str(), ending.retryable), ("no such shard", false));
    }

    #[test]
    fn a_process_without_last_words_is_described_by_its_signal_or_code_and_last_line() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let ending = describe(ExitStatus::from_raw(9), &files, None);
        assert_eq!((ending.code, ending.signal), (None, Some(9)));
        assert_eq!(ending.reason, "ended by signal 9 (SIGKILL)");
        let ending = describe(ExitStatus::from_raw(9), &files, Some("out of grace".into()));
        assert_eq!(ending.reason, "out of grace");
        fs::write(&files.log, "first\nlibtorch_cpu.so: not found\n\n").unwrap();
        let ending = describe(ExitStatus::from_raw(127 << 8), &files, None);
        assert_eq!(
            ending.reason,
            "exited with code 127; its last line was: libtorch_cpu.so: not found"
        );
        assert!(ending.retryable);
        assert!(!describe(ExitStatus::from_raw(exit::USAGE << 8), &files, None).retryable);
    }

    #[test]
    fn logs_may_go_to_the_run_folder_and_everything_else_stays_in_the_work_folder() {
        let (work, runs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let start = StartRank { job_id: "emoji-abc234".into(), rank: 3, ..StartRank::default() };
        let logs = LogFolder::Runs(runs.path().to_owned());
        let files = prepare(work.path(), &logs, &start).unwrap();
        assert!(files.log.starts_with(runs.path().join("emoji-abc234/logs")), "{files:?}");
        assert!(files.manifest.starts_with(work.path()) && files.status.starts_with(work.path()));
        let files = prepare(work.path(), &LogFolder::Work, &start).unwrap();
        assert!(files.log.starts_with(work.path()), "{files:?}");
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
