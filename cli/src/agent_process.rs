//! The agent that `ringmaster train` starts beside itself.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, ChildStdin, Command};

use super::error::Error;
use super::job_file::not_a_file;

/// Name of the worker's executable.
const WORKER: &str = "ringmaster-worker";
/// Names the worker's executable where it is not beside this one.
const WORKER_VARIABLE: &str = "RINGMASTER_WORKER";
/// Name under which the embedded agent registers.
pub(crate) const NODE: &str = "local";
/// How long the agent may take to end its ranks after its pipe closed.
const GRACE: Duration = Duration::from_secs(10);
/// Lines of the agent's log shown when it ends early.
const LAST_WORDS: usize = 15;

/// What the agent needs to know.
#[derive(Debug)]
pub(crate) struct Options<'a> {
    /// URL of the coordinator's fleet listener.
    pub(crate) fleet_url: String,
    /// Ranks it may run at once.
    pub(crate) slots: u32,
    /// Folder for its own files and the ranks' logs.
    pub(crate) work_dir: &'a Path,
    /// Folder that receives run folders.
    pub(crate) runs_dir: &'a Path,
    /// The cluster's temporary folder, removed by the agent if this process is killed.
    pub(crate) temporary: Option<&'a Path>,
    /// `cpu` or `cuda`.
    pub(crate) accelerator: &'static str,
}

/// A running agent. It ends itself and its ranks when the pipe held here closes, which the
/// kernel does even when this process is killed.
#[derive(Debug)]
pub(crate) struct AgentProcess {
    child: Child,
    pipe: Option<ChildStdin>,
    log: PathBuf,
}

impl AgentProcess {
    /// Starts the agent.
    pub(crate) fn start(options: &Options<'_>) -> Result<Self, Error> {
        let worker = find_worker(None)?;
        let log = options.work_dir.join("agent.log");
        let log_file = std::fs::File::create(&log)
            .map_err(|source| Error::io(format!("create {}", log.display()), source))?;
        let log_copy = log_file
            .try_clone()
            .map_err(|source| Error::io(format!("share {}", log.display()), source))?;
        let program = std::env::current_exe()
            .map_err(|source| Error::io("find this executable's own path", source))?;
        let mut command = Command::new(&program);
        command
            .args(["agent", "--parent-pipe", "--node", NODE, "--address", "127.0.0.1"])
            .args(["--coordinator", &options.fleet_url])
            .args(["--slots", &options.slots.to_string()])
            .args(["--accelerator", options.accelerator])
            .arg("--worker")
            .arg(worker)
            .arg("--work-dir")
            .arg(options.work_dir)
            .arg("--runs-dir")
            .arg(options.runs_dir)
            // What the ranks say outlives the temporary folder, and a kill of this process.
            .arg("--logs-in-runs");
        if let Some(folder) = options.temporary {
            command.arg("--parent-folder").arg(folder);
        }
        command
            .stdin(Stdio::piped())
            .stdout(log_file)
            .stderr(log_copy)
            // Its own group: Ctrl-C in the terminal reaches only this process, which then asks
            // the job to save its state first.
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command
            .spawn()
            .map_err(|source| Error::io(format!("start {}", program.display()), source))?;
        let pipe = child.stdin.take();
        Ok(Self { child, pipe, log })
    }

    /// Waits until the agent ends by itself, which it should not.
    pub(crate) async fn ended_early(&mut self) -> Error {
        match self.child.wait().await {
            Ok(status) => {
                Error::AgentEnded { status: describe(status), log: last_lines(&self.log) }
            }
            Err(source) => Error::io("wait for the embedded agent", source),
        }
    }

    /// Closes the pipe and waits until the agent has ended its ranks and itself.
    pub(crate) async fn stop(mut self) {
        drop(self.pipe.take());
        if tokio::time::timeout(GRACE, self.child.wait()).await.is_err() {
            tracing::warn!(grace = ?GRACE, "the embedded agent did not end in time; killing it");
            // Failure means that it has just ended.
            let _ = self.child.kill().await;
        }
    }
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() {
        return "  (nothing)".to_owned();
    }
    let first = lines.len().saturating_sub(LAST_WORDS);
    lines[first..].iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

/// Returns the worker's executable: the one that a flag names, else `RINGMASTER_WORKER`, else the one beside
/// this executable.
pub(crate) fn find_worker(flag: Option<&Path>) -> Result<PathBuf, Error> {
    let variable = std::env::var_os(WORKER_VARIABLE).filter(|path| !path.is_empty());
    let by_flag = flag.map(|path| (format!("--worker {}", path.display()), path.to_owned()));
    let by_variable = || {
        let path = PathBuf::from(variable?);
        Some((format!("{WORKER_VARIABLE}={}", path.display()), path))
    };
    if let Some((named, path)) = by_flag.or_else(by_variable) {
        return match not_a_file(&path) {
            // For an agent that starts it from elsewhere, and never through PATH.
            None => std::path::absolute(&path)
                .map_err(|source| Error::io(format!("find {}", path.display()), source)),
            Some(found) => Err(Error::WorkerNotAFile { named, found }),
        };
    }
    let own = std::env::current_exe()
        .map_err(|source| Error::io("find this executable's own path", source))?;
    let beside = own.parent().unwrap_or(Path::new("/")).join(WORKER);
    if beside.is_file() { Ok(beside) } else { Err(Error::WorkerMissing { beside: own }) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_lines_of_a_long_log_are_shown() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("agent.log");
        let text: String = (0..100).map(|n| format!("line {n}\n")).collect();
        std::fs::write(&log, text).unwrap();
        let shown = last_lines(&log);
        assert!(shown.starts_with("  line 85\n") && shown.ends_with("line 99"), "{shown}");
        assert_eq!(last_lines(&folder.path().join("none")), "  (nothing)");
    }
}
