//! Processes that end with this one, and which of a test are still alive.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Only a broken build makes anybody wait so long.
pub const LIMIT: Duration = Duration::from_secs(120);
/// How long a process may take to end once its pipe has closed.
const END: Duration = Duration::from_secs(60);

/// A child process that ends with this one.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Running {
    /// Starts a program that ends when its stdin does: the kernel sees to that when this process
    /// dies. It has a process group of its own, so that who interrupts this process in a terminal
    /// does not interrupt it, too.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Self {
        let started = command.stdin(Stdio::piped()).process_group(0).spawn();
        let mut child = started.unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        let pipe = child.stdin.take();
        Self { child, pipe }
    }

    /// Closes its stdin.
    pub fn tell_to_end(&mut self) {
        drop(self.pipe.take());
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        signal_process(self.child.id(), signal);
    }

    /// Waits for its end and returns its exit code; none when a signal ended it.
    ///
    /// # Panics
    /// When the system cannot say.
    pub fn wait(&mut self) -> Option<i32> {
        self.child.wait().expect("a child can be waited for").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tell_to_end();
        if !eventually(END, || matches!(self.child.try_wait(), Ok(Some(_)))) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// Sends a signal to any process.
///
/// # Panics
/// When there is no such process.
pub fn signal_process(process: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(process).expect("process ids fit an i32"));
    kill(pid, signal).expect("the process is there");
}

/// Returns the ids of running processes whose environment or command line mentions `folder`: everything
/// started for a job in that folder, however deep, but what begins or ends just now: a process can be
/// read neither in the middle of an exec nor once it has begun to end.
pub fn mentioning(folder: &Path) -> Vec<u32> {
    let needle = folder.display().to_string().into_bytes();
    let mentions = |path: String| {
        std::fs::read(path).is_ok_and(|text| text.windows(needle.len()).any(|w| w == needle))
    };
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_string_lossy().parse::<u32>().ok())
        .filter(|&pid| pid != std::process::id())
        .filter(|pid| {
            mentions(format!("/proc/{pid}/cmdline")) || mentions(format!("/proc/{pid}/environ"))
        })
        .filter(|pid| runs(*pid))
        .collect()
}

/// Waits until nothing runs that mentions `folder`, and nothing of `known`; what does is given to `meet`
/// at each look. Returns what is left after [`LIMIT`].
pub fn until_gone(folder: &Path, known: &[u32], mut meet: impl FnMut(u32)) -> Vec<u32> {
    let mut known: BTreeSet<u32> = known.iter().copied().collect();
    let mut empty_looks = 0;
    eventually(LIMIT, || {
        known.retain(|pid| runs(*pid));
        known.extend(mentioning(folder));
        known.iter().for_each(|pid| meet(*pid));
        // The second look finds what was in the middle of an exec at the first.
        empty_looks = if known.is_empty() { empty_looks + 1 } else { 0 };
        empty_looks == 2
    });
    known.into_iter().collect()
}

/// Whether any thread of a process is left. A zombie, which only waits for its parent, does not run.
pub fn runs(pid: u32) -> bool {
    let Ok(stat) = std::fs::read(format!("/proc/{pid}/stat")) else { return false };
    let stat = String::from_utf8_lossy(&stat);
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    // The state is the third field of all, the number of threads the twentieth.
    let mut fields = rest.split_whitespace();
    match (fields.next(), fields.nth(16).and_then(|threads| threads.parse::<u32>().ok())) {
        (Some("X"), _) | (None, _) => false,
        (Some("Z"), threads) => threads.is_some_and(|threads| threads > 1),
        _ => true,
    }
}

/// Waits until `condition` holds and returns whether it did within `limit`.
///
/// # Panics
/// With [`Interrupted`], after a call of [`interrupt`]: what the caller has started ends with it.
pub fn eventually(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !condition() {
        // Not in what is cleaned up on the way out.
        if INTERRUPTED.load(Ordering::Relaxed) && !std::thread::panicking() {
            std::panic::resume_unwind(Box::new(Interrupted));
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// Waits for so long, because the lapse of time is what is tried.
///
/// # Panics
/// As [`eventually`].
pub fn pause(time: Duration) {
    eventually(time, || false);
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What waiting threads unwind with when they are interrupted.
#[derive(Debug)]
pub struct Interrupted;

/// Ends every wait of this process, present and future.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_zombie_does_not_run_and_what_mentions_a_folder_is_found_until_it_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep").arg("600").env("X", folder.path()).spawn().unwrap();
        let id = child.id();
        assert!(eventually(LIMIT, || mentioning(folder.path()) == [id]) && runs(id));
        let left = until_gone(folder.path(), &[], |pid| signal_process(pid, Signal::SIGKILL));
        assert!(left.is_empty() && !runs(id), "{left:?}");
        assert!(Path::new(&format!("/proc/{id}")).exists(), "it waits for its parent");
        child.wait().unwrap();
    }
}
