//! Ending everything a rank started.
//!
//! A rank leads its own session and process group. Killing the group reaches nearly everything;
//! what moved itself into another group of the session is found in /proc, and what moved into a
//! session of its own by what its environment says: every process that a rank starts inherits the
//! path of the rank's status file, which no other rank has. Callers hold the leader unreaped
//! (running or a zombie) meanwhile, so its number cannot have been given to a stranger.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use ringmaster_proto::Seat;

use super::proc::{self, Environment, Process};
use crate::env;

/// How long the kernel gets to end processes that SIGKILL has reached.
const DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// Whose a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// To be ended.
    Ours,
    /// Not ours.
    Strange,
    /// It cannot be told at the moment.
    Unclear,
}

/// Sends SIGKILL to every process of the session that `leader` leads.
pub(super) fn kill_session(leader: u32) {
    // ESRCH: the group is empty already.
    let _ = killpg(pid(leader), Signal::SIGKILL);
    for member in members(leader) {
        let _ = kill(pid(member.pid), Signal::SIGKILL);
    }
}

/// Kills what runs in the session of `leader` and waits until nothing of it does.
pub(super) fn end_session(leader: u32) {
    end_all(|process| if process.is_led_by(leader) { Verdict::Ours } else { Verdict::Strange });
}

/// What became of processes that were to end.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// How many were found.
    pub(super) found: usize,
    /// Those that SIGKILL did not end within the deadline.
    pub(super) left: Vec<Process>,
}

/// Kills what is left of the session of `leader`, and what else carries `status_file` in its
/// environment; waits until nothing of it runs, or SIGKILL has not ended it within the deadline.
pub(super) fn clear(leader: u32, status_file: &Path) -> Ended {
    end_all(|process| {
        if process.is_led_by(leader) {
            return Verdict::Ours;
        }
        match process.environment() {
            Environment::Changing => Verdict::Unclear,
            // Nearly always another rank, which dies at the same time and may take its time.
            Environment::Released => Verdict::Strange,
            known if known.path(env::STATUS_FILE) == Some(status_file) => Verdict::Ours,
            Environment::Known(_) => Verdict::Strange,
        }
    })
}

/// A process that an earlier agent left behind, and that SIGKILL does not end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Orphan {
    /// The process.
    pub(super) process: Process,
    /// The rank that it is, or was started by.
    pub(super) key: (String, Seat),
    /// The slot that it holds.
    pub(super) slot: u32,
}

/// Kills the ranks that an earlier agent of this node left behind: those with their status file
/// below `work_dir` whose agent's socket nobody answers any more. Waits until they are gone, those
/// that were ending by themselves included, and returns those that are not gone within the deadline.
///
/// Ranks end by themselves when their agent's socket closes; one that is stopped or hangs cannot.
pub(super) fn end_orphans(work_dir: &Path) -> Vec<Orphan> {
    let is_orphan = |environment: &Environment| {
        environment.path(env::STATUS_FILE).is_some_and(|file| file.starts_with(work_dir))
            && environment.path(env::AGENT_SOCKET).is_some_and(nobody_answers)
    };
    // While it can be read: who dies gives up its environment first.
    let places = RefCell::new(BTreeMap::new());
    let ended = end_all(|process| match process.environment() {
        // What dies by itself may be one of them: it holds its ports and its GPU until it has.
        Environment::Changing | Environment::Released => Verdict::Unclear,
        known if is_orphan(&known) => {
            places.borrow_mut().extend(place(&known).map(|place| (process, place)));
            Verdict::Ours
        }
        Environment::Known(_) => Verdict::Strange,
    });
    if ended.found > 0 {
        let left = ended.left.len();
        tracing::warn!(processes = ended.found, left, "ended what an earlier agent left behind");
    }
    let orphan = |process: Process| {
        let (key, slot) = places.borrow().get(&process)?.clone();
        Some(Orphan { process, key, slot })
    };
    ended.left.into_iter().filter_map(orphan).collect()
}

/// Which rank has this environment, and which slot it was given.
fn place(environment: &Environment) -> Option<((String, Seat), u32)> {
    let job_id = environment.text(env::JOB_ID)?.to_owned();
    let number = |name| environment.text(name)?.parse::<u32>().ok();
    Some(((job_id, Seat(number(env::RANK)?)), number(env::LOCAL_RANK)?))
}

/// Whether this is the socket of an agent that is gone. Anything but a refusal says nothing of it.
fn nobody_answers(socket: &Path) -> bool {
    let gone = [ErrorKind::ConnectionRefused, ErrorKind::NotFound, ErrorKind::NotADirectory];
    UnixStream::connect(socket).is_err_and(|error| gone.contains(&error.kind()))
}

/// Kills the processes that are ours by `verdict`, and what they start meanwhile, until a look finds
/// nothing of them running and nothing of which it cannot be told.
fn end_all(verdict: impl Fn(Process) -> Verdict) -> Ended {
    let deadline = Instant::now() + DEADLINE;
    let mut ours = BTreeSet::new();
    loop {
        let (known, mut unclear) = (ours.len(), Vec::new());
        for process in proc::running() {
            if ours.contains(&process) {
                continue;
            }
            match verdict(process) {
                Verdict::Ours => drop(ours.insert(process)),
                Verdict::Strange => {}
                Verdict::Unclear => unclear.push(process.pid),
            }
        }
        let left: Vec<Process> = ours.iter().copied().filter(|process| process.runs()).collect();
        for process in &left {
            let _ = kill(pid(process.pid), Signal::SIGKILL);
        }
        // What was found just now may have started something behind this look's back.
        let is_over = ours.len() == known && left.is_empty() && unclear.is_empty();
        if is_over || Instant::now() > deadline {
            report(&left, &unclear);
            return Ended { found: ours.len(), left };
        }
        std::thread::sleep(POLL);
    }
}

/// Says what is there after all. Stuck in the kernel (a dead network file system): life must go on.
fn report(left: &[Process], unclear: &[u32]) {
    if !left.is_empty() {
        let left: Vec<u32> = left.iter().map(|process| process.pid).collect();
        tracing::error!(?left, "processes survive SIGKILL");
    }
    if !unclear.is_empty() {
        tracing::warn!(?unclear, "processes that end or begin take long; they may be a rank's");
    }
}

/// Returns the running processes whose session or process group is `leader`'s.
fn members(leader: u32) -> impl Iterator<Item = Process> {
    proc::running().filter(move |process| process.is_led_by(leader))
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).expect("the kernel's process ids fit an i32"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "group_tests.rs"]
mod tests;
