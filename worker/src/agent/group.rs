//! Ending everything a rank started.
//!
//! A rank leads its own session and process group. Killing the group reaches nearly everything;
//! what moved itself into another group of the session is found in /proc. Callers hold the leader
//! unreaped (running or a zombie) meanwhile, so its number cannot have been given to a stranger.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

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

/// Kills what is left of the session of `leader`, itself a zombie by now, and waits until nothing
/// runs. Returns how many processes outlived the leader.
pub(super) fn clear_session(leader: u32) -> usize {
    let survivors = others(leader).len();
    let deadline = Instant::now() + DEADLINE;
    while !others(leader).is_empty() {
        kill_session(leader);
        if Instant::now() > deadline {
            // Stuck in the kernel (a dead network file system): the exit must be reported anyway.
            tracing::error!(leader, left = ?others(leader), "processes survive SIGKILL");
            break;
        }
        std::thread::sleep(POLL);
    }
    survivors
}

fn others(leader: u32) -> Vec<u32> {
    members(leader).into_iter().filter(|&member| member != leader).collect()
}

/// Returns the living processes whose session or process group is `leader`'s.
fn members(leader: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| belongs(pid, leader)).collect()
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
        assert_eq!(others(leader.id()).len(), 2);

        kill(pid(leader.id()), Signal::SIGKILL).unwrap();
        assert_eq!(clear_session(leader.id()), 2);
        assert_eq!(others(leader.id()), Vec::<u32>::new());
        leader.wait().unwrap();
    }
}
