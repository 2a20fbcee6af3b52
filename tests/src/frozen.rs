//! A process that SIGKILL does not end: in state D, as one that waits for a driver or for a file system
//! that never answers.
//!
//! The kernel's first freezer (of cgroup version 1) makes any process so, at any moment, and undoes it:
//! signals wait until the process is thawed. A FUSE server that has taken a request and never answers makes
//! the same of a process that has asked it, but the process must ask. What else looks like it is not: the
//! freezer of cgroup version 2 lets SIGKILL through, and so does the wait of a parent for its child of
//! vfork, though it stands in state D (seen on Linux 6.18).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::processes::{LIMIT, eventually};

/// Time a process may take to leave its group once it is thawed.
const LEAVE: Duration = Duration::from_secs(10);

/// A process that is frozen as long as this lives.
#[derive(Debug)]
pub struct Frozen {
    pid: u32,
    /// The group it came from.
    home: PathBuf,
    /// The one it is frozen in.
    group: PathBuf,
    // Unmounted last.
    _freezer: Freezer,
}

/// Where the groups of the freezer are.
#[derive(Debug)]
struct Freezer {
    folder: PathBuf,
    /// There if the freezer was mounted for this alone.
    own: Option<TempDir>,
}

impl Frozen {
    /// Freezes all threads of a process, and returns once they are.
    ///
    /// # Errors
    /// This is not root, or the kernel has no freezer of cgroup version 1, in a sentence.
    pub fn new(pid: u32) -> Result<Self, String> {
        let freezer = Freezer::find()?;
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"));
        let groups = groups.map_err(|e| format!("cannot read the groups of process {pid}: {e}"))?;
        let home = home_in(&groups).ok_or("process has no group of the freezer")?;
        let home = freezer.folder.join(home);
        let group = home.join(format!("ringmaster-tests-{pid}"));
        fs::create_dir(&group).map_err(|e| format!("cannot make {}: {e}", group.display()))?;
        // From here on what was begun is undone when it fails.
        let frozen = Self { pid, home, group, _freezer: freezer };
        write(&frozen.group.join("cgroup.procs"), &pid.to_string())?;
        let state = frozen.group.join("freezer.state");
        write(&state, "FROZEN")?;
        let is_frozen = || fs::read_to_string(&state).is_ok_and(|text| text.trim() == "FROZEN");
        if eventually(LIMIT, is_frozen) {
            Ok(frozen)
        } else {
            Err(format!("process {pid} does not freeze"))
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = write(&self.group.join("freezer.state"), "THAWED");
        // Fails for one that a signal has ended meanwhile: then the group is empty soon.
        let _ = write(&self.home.join("cgroup.procs"), &self.pid.to_string());
        eventually(LEAVE, || fs::remove_dir(&self.group).is_ok());
    }
}

impl Freezer {
    fn find() -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        if let Some(folder) = mounted_in(&mounts) {
            return Ok(Self { folder, own: None });
        }
        let own = tempfile::tempdir().map_err(|e| format!("no temporary folder: {e}"))?;
        let words = ["-t", "cgroup", "-o", "freezer", "none"];
        let output = Command::new("mount").args(words).arg(own.path()).output();
        let output = output.map_err(|e| format!("cannot start mount: {e}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(format!("the freezer of cgroup version 1 cannot be mounted: {said}"));
        }
        Ok(Self { folder: own.path().to_owned(), own: Some(own) })
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        if let Some(own) = &self.own {
            // The folder that is removed next must be nothing but a folder.
            let _ = Command::new("umount").arg(own.path()).output();
        }
    }
}

/// Where the freezer is mounted, by the text of `/proc/self/mounts`.
fn mounted_in(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, folder, "cgroup", options, ..] = fields[..] else { return None };
        options.split(',').any(|option| option == "freezer").then(|| PathBuf::from(folder))
    })
}

/// A process's group of the freezer below where that is mounted, by the text of `/proc/PID/cgroup`.
fn home_in(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        controllers.split(',').any(|name| name == "freezer").then(|| group.trim_start_matches('/'))
    })
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("cannot write {text} into {}: {e}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nix::sys::signal::Signal;

    use super::*;
    use crate::processes::signal_process;
    use crate::skips;

    #[test]
    fn the_freezer_and_a_processs_group_in_it_are_found_among_the_others() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0\n\
                      cgroup /sys/fs/cgroup/freezer cgroup rw,relatime,freezer 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mounted_in(mounts), Some(PathBuf::from("/sys/fs/cgroup/freezer")));
        assert_eq!(mounted_in("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"), None);
        assert_eq!(home_in("3:cpu,cpuacct:/a\n2:freezer:/docker/x:y\n0::/z\n"), Some("docker/x:y"));
        assert_eq!(home_in("2:freezer:/\n"), Some(""));
        assert_eq!(home_in("0::/z\n"), None);
    }

    #[test]
    fn a_frozen_process_is_in_state_d_and_sigkill_ends_it_only_when_it_is_thawed() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let frozen = match Frozen::new(child.id()) {
            Ok(frozen) => frozen,
            Err(why) => {
                child.kill().unwrap();
                child.wait().unwrap();
                skips::skip("freezer", &format!("no process can be frozen (needs root): {why}"));
                return;
            }
        };
        let status = || fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        assert!(status().contains("State:\tD"), "{}", status());
        signal_process(child.id(), Signal::SIGKILL);
        // What is tried is that time does not end it.
        assert!(!eventually(Duration::from_secs(1), || !status().contains("State:\tD")));
        let group = frozen.group.clone();
        drop(frozen);
        assert!(!child.wait().unwrap().success());
        assert!(!group.exists(), "nothing is left of it");
    }
}
