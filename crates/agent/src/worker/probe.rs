//! Asking a worker what it is: the one run of it that belongs to no job.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Child;

use super::info::WorkerInfo;
use crate::exit;
use crate::ffi::in_new_session;
use crate::group;

/// How long a worker may take to answer: libtorch may come over a slow file system.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes read of what it prints. Its answer takes a few hundred per GPU.
const MOST_BYTES: u64 = 1 << 20;
/// Characters shown of what it printed instead of an answer.
const SHOWN: usize = 500;

/// Runs `command`, which ends in `probe --json`, and returns what it says.
///
/// # Errors
/// Why there is no answer, as the end of a sentence about the worker.
pub(super) async fn ask(command: Command) -> Result<WorkerInfo, String> {
    ask_within(TIMEOUT, command).await
}

async fn ask_within(timeout: Duration, mut command: Command) -> Result<WorkerInfo, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    in_new_session(&mut command);
    let mut child = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("it cannot be started: {error}"))?;
    match tokio::time::timeout(timeout, read(&mut child)).await {
        Ok(Ok((status, stdout, stderr))) => understand(status, &stdout, &stderr),
        Ok(Err(error)) => Err(format!("what it says cannot be read: {error}")),
        Err(_) => {
            // What a prefix started, too. Not waited for yet, so its number is still its own.
            if let Some(leader) = child.id() {
                group::kill_session(leader);
            }
            Err(format!("it did not answer within {} s", timeout.as_secs_f64()))
        }
    }
}

/// Reads both outputs to their ends and waits for the process.
async fn read(child: &mut Child) -> io::Result<(ExitStatus, String, String)> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (stdout, stderr, status) = tokio::try_join!(text(stdout), text(stderr), child.wait())?;
    Ok((status, stdout, stderr))
}

async fn text(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(MOST_BYTES).read_to_end(&mut bytes).await?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Takes the answer out of what was printed: the last line, since a prefix may have its say before.
fn understand(status: ExitStatus, stdout: &str, stderr: &str) -> Result<WorkerInfo, String> {
    if !status.success() {
        let how = exit::in_words(status.code(), status.signal());
        return Err(match last_line(stderr) {
            Some(line) => format!("its probe {how}; its last line was: {line}"),
            None => format!("its probe {how}"),
        });
    }
    let line = last_line(stdout).unwrap_or_default();
    serde_json::from_str(&line).map_err(|error| {
        format!(
            "it is no ringmaster-worker, or one of a release that has no `probe`: it answered {line:?} \
             ({error})"
        )
    })
}

fn last_line(text: &str) -> Option<String> {
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().take(SHOWN).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A worker that runs this shell script.
    fn script(text: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", text]);
        command
    }

    #[tokio::test]
    async fn the_last_line_is_the_answer() {
        let answer = r#"{"version": "v", "build_id": "b", "features": ["faults"], "protocol": 1,
            "libtorch": "2.11", "devices": [{"uuid": "GPU-1", "name": "H200", "memory_bytes": 7}], "more": 1}"#;
        let answer = answer.replace('\n', "");
        let info =
            ask(script(&format!("echo banner; echo noise >&2; echo '{answer}'"))).await.unwrap();
        assert_eq!(
            (info.protocol, info.features.as_slice()),
            (1, ["faults".to_owned()].as_slice())
        );
        assert_eq!((info.devices[0].uuid.as_str(), info.devices[0].memory_bytes), ("GPU-1", 7));
    }

    #[tokio::test]
    async fn a_worker_that_ends_badly_is_described_by_its_code_or_signal_and_last_line() {
        let missing = "echo 'libtorch_cpu.so: cannot open shared object file' >&2; exit 127";
        let why = ask(script(missing)).await.unwrap_err();
        assert!(why.contains("exited with code 127") && why.contains("libtorch_cpu.so"), "{why}");
        let why = ask(script("kill -ILL $$")).await.unwrap_err();
        assert!(why.contains("signal 4 (SIGILL)"), "{why}");
    }

    #[tokio::test]
    async fn another_program_is_no_worker() {
        let why = ask(script("echo hello")).await.unwrap_err();
        assert!(why.contains("no ringmaster-worker") && why.contains("\"hello\""), "{why}");
        let why = ask(Command::new("/nonexistent/worker")).await.unwrap_err();
        assert!(why.contains("cannot be started"), "{why}");
    }

    #[tokio::test]
    async fn a_worker_that_hangs_is_given_up_and_ended_with_what_it_started() {
        let why = ask_within(Duration::from_millis(100), script("sleep 600 & cat /dev/zero")).await;
        assert_eq!(why.unwrap_err(), "it did not answer within 0.1 s");
    }
}
