//! Asking a worker what it is: the one run of it that belongs to no job.

use std::io::Read;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::info::WorkerInfo;
use crate::exit;
use crate::ffi::in_new_session;
use crate::group;

/// How long a worker may take to answer: libtorch may come over a slow file system.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks whether it has ended.
const POLL: Duration = Duration::from_millis(5);
/// How long its output is waited for once all of its session is gone: what fled that may hold it open.
const DRAIN: Duration = Duration::from_secs(1);
/// Bytes read of what it prints. Its answer takes a few hundred per GPU.
const MOST_BYTES: u64 = 1 << 20;
/// Characters shown of what it printed instead of an answer.
const SHOWN: usize = 500;

/// Runs `command`, which ends in `probe --json`, and returns what it says. Nothing it started is left.
///
/// Blocks for up to a minute.
///
/// # Errors
/// Why there is no answer, as the end of a sentence about the worker.
pub(super) fn ask(command: Command) -> Result<WorkerInfo, String> {
    ask_within(TIMEOUT, command)
}

fn ask_within(timeout: Duration, mut command: Command) -> Result<WorkerInfo, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = in_new_session(&mut command).spawn();
    let mut child = started.map_err(|error| format!("it cannot be started: {error}"))?;
    let (stdout, stderr) = (text(child.stdout.take()), text(child.stderr.take()));
    let in_time = wait(&child, timeout);
    // Not waited for yet, so its number is still its own, and nothing else leads its session.
    group::end_session(child.id());
    let status = child.wait().map_err(|error| format!("its end cannot be waited for: {error}"))?;
    if !in_time {
        return Err(format!("it did not answer within {} s", timeout.as_secs_f64()));
    }
    let read = |pipe: Receiver<String>| pipe.recv_timeout(DRAIN).unwrap_or_default();
    understand(status, &read(stdout), &read(stderr))
}

/// Waits for the end of a process and leaves it a zombie; false when it has not ended in time.
fn wait(child: &Child, timeout: Duration) -> bool {
    let leader = Pid::from_raw(i32::try_from(child.id()).expect("process ids fit an i32"));
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
    let deadline = Instant::now() + timeout;
    while matches!(waitid(Id::Pid(leader), flags), Ok(WaitStatus::StillAlive)) {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

/// Reads a pipe to its end, beside whatever else goes on.
fn text(pipe: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, text) = mpsc::channel();
    let read = move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            // What was read before it broke is all there is.
            let _ = pipe.take(MOST_BYTES).read_to_end(&mut bytes);
        }
        // Wanted by nobody any more, if it took too long.
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    };
    // Without a thread nothing is read, and the worker has said nothing.
    let _ = std::thread::Builder::new().name("worker-probe".into()).spawn(read);
    text
}

/// Takes the answer out of what was printed: the last line, since a prefix may have its say before.
fn understand(status: ExitStatus, stdout: &str, stderr: &str) -> Result<WorkerInfo, String> {
    if !status.success() {
        let how = exit::in_words(status.code(), status.signal());
        return Err(match last_line(stderr) {
            "" => format!("its probe {how}"),
            line => format!("its probe {how}; its last line was: {}", shown(line)),
        });
    }
    let line = last_line(stdout);
    serde_json::from_str(line).map_err(|error| {
        format!(
            "it is no ringmaster-worker, or one of a release that has no `probe`: it answered {:?} ({error})",
            shown(line)
        )
    })
}

/// Returns the last line that says anything; nothing where none does.
fn last_line(text: &str) -> &str {
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default()
}

fn shown(line: &str) -> String {
    line.chars().take(SHOWN).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::super::info::DeviceInfo;
    use super::*;

    /// A worker that runs this shell script.
    fn script(text: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", text]);
        command
    }

    fn info(devices: usize) -> WorkerInfo {
        let device = DeviceInfo {
            uuid: "GPU-00112233-4455-6677-8899-aabbccddeeff".into(),
            name: "NVIDIA H100 80GB HBM3".into(),
            memory_bytes: 85_520_809_984,
        };
        WorkerInfo {
            protocol: ringmaster_proto::limits::RANK_PROTOCOL,
            devices: vec![device; devices],
            ..WorkerInfo::default()
        }
    }

    fn runs(pid: &str) -> bool {
        let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }

    /// An answer of four GPUs was cut like a line that is shown.
    #[test]
    fn the_last_line_is_the_answer_however_many_gpus_it_names() {
        for devices in [0, 1, 4, 64] {
            let answer = serde_json::to_string(&info(devices)).unwrap();
            let said = ask(script(&format!("echo banner; echo noise >&2; echo '{answer}'")));
            assert_eq!(said.unwrap(), info(devices));
        }
    }

    #[test]
    fn keys_of_a_newer_worker_are_passed_over_and_those_of_an_older_one_are_not_missed() {
        let newer =
            ask(script(r#"echo '{"protocol": 2, "version": "v", "novelty": [1]}'"#)).unwrap();
        assert_eq!((newer.protocol, newer.version.as_str(), newer.devices), (2, "v", vec![]));
    }

    #[test]
    fn a_worker_that_ends_badly_is_described_by_its_code_or_signal_and_last_line() {
        let missing = "echo 'libtorch_cpu.so: cannot open shared object file' >&2; exit 127";
        let why = ask(script(missing)).unwrap_err();
        assert!(why.contains("exited with code 127") && why.contains("libtorch_cpu.so"), "{why}");
        let why = ask(script("kill -ILL $$")).unwrap_err();
        assert!(why.contains("signal 4 (SIGILL)"), "{why}");
    }

    #[test]
    fn another_program_is_no_worker() {
        let why = ask(script("echo hello")).unwrap_err();
        assert!(why.contains("no ringmaster-worker") && why.contains("\"hello\""), "{why}");
        let why = ask(Command::new("/nonexistent/worker")).unwrap_err();
        assert!(why.contains("cannot be started"), "{why}");
    }

    /// What holds the pipes open kept the answer from being read, and was left behind.
    #[test]
    fn an_answer_counts_whatever_holds_the_pipes_and_nothing_of_the_session_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let answer = serde_json::to_string(&info(1)).unwrap();
        let text = format!("sleep 600 & echo $! > '{}'; echo '{answer}'", file.display());
        assert_eq!(ask(script(&text)).unwrap(), info(1));
        let helper = fs::read_to_string(&file).unwrap();
        assert!(!runs(helper.trim()), "{helper}");
    }

    #[test]
    fn a_worker_that_hangs_is_given_up_and_ended_with_what_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pids");
        let text = format!("sleep 600 & echo $$ $! > '{}'; wait", file.display());
        // Long enough for a shell to begin, however busy the machine is.
        let why = ask_within(Duration::from_secs(3), script(&text)).unwrap_err();
        assert_eq!(why, "it did not answer within 3 s");
        let pids = fs::read_to_string(&file).unwrap();
        assert_eq!(pids.split_whitespace().count(), 2, "{pids}");
        assert!(pids.split_whitespace().all(|pid| !runs(pid)), "{pids}");
    }
}
