//! Ending everything a rank started.
//!
//! A rank leads its own session and process group. Killing the group reaches nearly everything;
//! what moved itself into another group of the session is found in /proc, and what moved into a
//! session of its own by what its environment says: every process that a rank starts inherits the
//! path of the rank's status file, which no other rank has. Callers hold the leader unreaped
//! (running or a zombie) meanwhile, so its number cannot have been given to a stranger.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::rank::env;

/// How long the kernel gets to end processes that SIGKILL has reached.
const DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// Sends SIGKILL to every process of the session that `leader` leads.
pub(super) fn kill_session(leader: u32) {
    let group = pid(leader);
    // ESRCH: the group is empty already.
    let _ = killpg(group, Signal::SIGKILL);
    for member in members(leader) {
        let _ = kill(pid(member), Signal::SIGKILL);
    }
}

/// Kills what is left of the session of `leader`, itself a zombie by now, and what else carries
/// `status_file` in its environment; waits until nothing runs. Returns how many processes outlived
/// the leader.
pub(super) fn clear(leader: u32, status_file: &Path) -> usize {
    let left = || {
        let mut left: Vec<u32> = processes()
            .filter(|&process| {
                belongs(process, leader)
                    || variable(process, env::STATUS_FILE).is_some_and(|file| file == status_file)
            })
            .filter(|&process| process != leader)
            .collect();
        left.dedup();
        left
    };
    let survivors = left().len();
    kill_until_gone(left);
    survivors
}

/// Kills the ranks that an earlier agent of this node left behind: those with their status file
/// below `work_dir` whose agent's socket nobody answers any more. Waits until they are gone and
/// returns how many there were.
///
/// Ranks end by themselves when their agent's socket closes; one that is stopped or hangs cannot.
pub(super) fn end_orphans(work_dir: &Path) -> usize {
    let is_orphan = |process: u32| {
        let below = |file: PathBuf| file.starts_with(work_dir);
        variable(process, env::STATUS_FILE).is_some_and(below)
            && variable(process, env::AGENT_SOCKET)
                .is_some_and(|socket| UnixStream::connect(socket).is_err())
    };
    let orphans: Vec<u32> = processes().filter(|&process| is_orphan(process)).collect();
    if orphans.is_empty() {
        return 0;
    }
    tracing::warn!(?orphans, "ending processes that an earlier agent left behind");
    kill_until_gone(|| processes().filter(|&process| is_orphan(process)).collect());
    orphans.len()
}

fn kill_until_gone(left: impl Fn() -> Vec<u32>) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let left = left();
        if left.is_empty() {
            return;
        }
        for &process in &left {
            let _ = kill(pid(process), Signal::SIGKILL);
        }
        if Instant::now() > deadline {
            // Stuck in the kernel (a dead network file system): life must go on.
            tracing::error!(?left, "processes survive SIGKILL");
            return;
        }
        std::thread::sleep(POLL);
    }
}

/// Returns the living processes whose session or process group is `leader`'s.
fn members(leader: u32) -> Vec<u32> {
    processes().filter(|&process| belongs(process, leader)).collect()
}

/// Returns all living processes.
fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn belongs(pid: u32, leader: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // "pid (name) state ppid pgrp session …"; the name may hold anything, parentheses included.
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let fields: Vec<&str> = rest.split_whitespace().take(4).collect();
    let &[state, _, group, session] = &fields[..] else { return false };
    let leader = leader.to_string();
    !matches!(state, "Z" | "X") && (group == leader || session == leader)
}

/// Returns a variable that a process was started with, as a path; none where it is not this user's,
/// or a zombie.
fn variable(process: u32, name: &str) -> Option<PathBuf> {
    let environment = fs::read(format!("/proc/{process}/environ")).ok()?;
    let mut variables = environment.split(|&byte| byte == 0);
    let value = variables
        .find_map(|variable| variable.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    Some(OsStr::from_bytes(value).into())
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).expect("the kernel's process ids fit an i32"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};

    use super::*;
    use crate::ffi::process::in_new_session;

    #[test]
    fn a_session_ends_as_a_whole_even_what_left_the_process_group() {
        // `set -m` gives the background job a process group of its own.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep 600 & set -m; sleep 600 & set +m; echo ready; wait"]);
        let mut leader = in_new_session(&mut command).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(leader.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(members(leader.id()).len(), 3);

        kill(pid(leader.id()), Signal::SIGKILL).unwrap();
        assert_eq!(clear(leader.id(), Path::new("/nonexistent")), 2);
        assert_eq!(members(leader.id()), Vec::<u32>::new());
        leader.wait().unwrap();
    }

    #[test]
    fn a_process_that_fled_into_its_own_session_is_found_by_its_environment() {
        // Unlike that of any other run of this test on the machine.
        let status = format!("/nonexistent/ringmaster-test-{}/status.json", std::process::id());
        let status = status.as_str();
        let mut command = Command::new("/bin/sh");
        command.env(env::STATUS_FILE, status).args(["-c", "setsid sleep 600 & echo $!; wait"]);
        let mut leader = in_new_session(&mut command).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(leader.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let child: u32 = line.trim().parse().unwrap();
        // While it is being exec'd it has its new name already and no environment yet.
        let fled = || {
            fs::read_to_string(format!("/proc/{child}/comm")).unwrap() == "sleep\n"
                && variable(child, env::STATUS_FILE).is_some()
        };
        let deadline = Instant::now() + DEADLINE;
        while !fled() {
            assert!(Instant::now() < deadline, "setsid never ran");
            std::thread::sleep(POLL);
        }
        assert!(!belongs(child, leader.id()));
        assert_eq!(variable(child, env::STATUS_FILE), Some(status.into()));

        kill(pid(leader.id()), Signal::SIGKILL).unwrap();
        assert_eq!(clear(leader.id(), Path::new(status)), 1);
        assert_eq!(variable(child, env::STATUS_FILE), None);
        leader.wait().unwrap();
    }
}
