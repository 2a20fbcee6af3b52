//! Memory that a rank's state takes, and what the machine has of it.

use std::fmt;
use std::path::{Path, PathBuf};

use ringmaster_manifest::spec::{Precision, TrainJob};

use super::Error;
use crate::model::{self, Clip};

/// What the process itself takes beside the state: libtorch, the loader's queues.
const HOST_MARGIN: u64 = 64 << 20;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes @ ..0x4000_0000 => write!(f, "{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
            bytes => write!(f, "{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
        }
    }
}

/// What one rank's training state takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Parameters of the model.
    pub parameters: u64,
    /// Parameters, gradients and both moments of the optimizer.
    pub state: Bytes,
    /// Ranks of the job on this machine.
    pub local_ranks: u64,
}

impl Demand {
    /// Returns what a rank of `job` needs.
    ///
    /// # Errors
    /// When the job's configuration describes no model.
    pub fn of(job: &TrainJob, local_ranks: u32) -> Result<Self, model::Error> {
        let parameters = Clip::count_parameters(&job.model.config)?;
        let size = if job.model.precision == Precision::Fp64 { 8 } else { 4 };
        let state = Bytes(4 * size * parameters);
        Ok(Self { parameters, state, local_ranks: u64::from(local_ranks.max(1)) })
    }
}

/// Memory of a machine, or of the part of it that this process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Memory {
    total: u64,
    free: u64,
}

/// Looks whether the host's memory holds the state.
pub(super) fn check_host(demand: Demand) -> Result<(), Error> {
    let Some(memory) = host() else {
        tracing::warn!("health: this host does not say how much memory it has");
        return Ok(());
    };
    tracing::info!(
        "health: {} of {} host memory free, the state takes {}",
        Bytes(memory.free),
        Bytes(memory.total),
        demand.state
    );
    judge(memory, demand)
}

/// What is free now must hold this rank, and the machine all of the job's ranks on it: of what is
/// free the others may have taken theirs already.
fn judge(memory: Memory, demand: Demand) -> Result<(), Error> {
    let own = demand.state.0 + HOST_MARGIN;
    let all = demand.local_ranks * own;
    let (free, needed) = if memory.free < own {
        (memory.free, own)
    } else if memory.total < all {
        (memory.total, all)
    } else {
        return Ok(());
    };
    Err(Error::Memory {
        node: super::node(),
        memory: "host".to_owned(),
        free: Bytes(free),
        needed: Bytes(needed),
        parameters: demand.parameters,
    })
}

/// Returns the bytes of memory that this process may still take; where the system does not say, a modest number.
pub(crate) fn free() -> u64 {
    const UNKNOWN: u64 = 4 << 30;
    host().map_or(UNKNOWN, |memory| memory.free)
}

/// The smaller of what the machine has and what this process's control groups allow.
fn host() -> Option<Memory> {
    let machine = parse_meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = groups(&own, Path::new("/sys/fs/cgroup"));
    Some(limits.iter().filter_map(|group| limit(group)).fold(machine, Memory::smaller))
}

impl Memory {
    fn smaller(self, other: Self) -> Self {
        Self { total: self.total.min(other.total), free: self.free.min(other.free) }
    }
}

fn parse_meminfo(text: &str) -> Option<Memory> {
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    Some(Memory { total: kib("MemTotal")? << 10, free: kib("MemAvailable")? << 10 })
}

/// Folders of the control groups (version 2) that a process is in, by its `/proc/PID/cgroup`.
fn groups(own: &str, root: &Path) -> Vec<PathBuf> {
    let Some(path) = own.lines().find_map(|line| line.strip_prefix("0::/")) else {
        return Vec::new();
    };
    let innermost = root.join(path);
    let ancestors = innermost.ancestors().take_while(|folder| folder.starts_with(root));
    ancestors.map(Path::to_owned).collect()
}

/// What a control group allows; none where it sets no limit.
fn limit(group: &Path) -> Option<Memory> {
    let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    // "max" is no number: no limit.
    let total = number("memory.max")?;
    let used = number("memory.current")?;
    // Files that were read once: given back before anybody is killed.
    let cached = read("memory.stat").and_then(|text| {
        text.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok())
    });
    let used = used.saturating_sub(cached.unwrap_or(0));
    Some(Memory { total, free: total.saturating_sub(used) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tests::job;

    const GIB: u64 = 1 << 30;

    fn demand(state: u64, local_ranks: u64) -> Demand {
        Demand { parameters: state / 16, state: Bytes(state), local_ranks }
    }

    #[test]
    fn the_state_is_sixteen_bytes_per_parameter_and_twice_that_in_f64() {
        let mut job = job(2, 16, 48);
        let single = Demand::of(&job, 2).unwrap();
        assert!(single.parameters > 10_000, "{single:?}");
        assert_eq!(single.state.0, 16 * single.parameters);
        job.model.precision = Precision::Fp64;
        assert_eq!(Demand::of(&job, 2).unwrap().state.0, 32 * single.parameters);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_figures() {
        let memory = Memory { total: 8 * GIB, free: 2 * GIB };
        assert!(judge(memory, demand(GIB, 4)).is_ok(), "the others may have theirs already");
        let text = judge(memory, demand(3 * GIB, 1)).unwrap_err().to_string();
        assert!(text.contains("2.0 GiB free, and the training state takes 3.1 GiB"), "{text}");
        let text = judge(memory, demand(3 * GIB / 2, 8)).unwrap_err().to_string();
        assert!(text.contains("8.0 GiB free, and the training state takes 12.5 GiB"), "{text}");
    }

    #[test]
    fn the_machine_and_every_control_group_above_count() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("jobs/one");
        std::fs::create_dir_all(&inner).unwrap();
        let write = |folder: &Path, name: &str, text: &str| {
            std::fs::write(folder.join(name), text).unwrap();
        };
        write(&inner, "memory.max", "max\n");
        let outer = root.path().join("jobs");
        write(&outer, "memory.max", "4294967296\n");
        write(&outer, "memory.current", "3221225472\n");
        write(&outer, "memory.stat", "anon 5\ninactive_file 1073741824\n");
        let found = groups("0::/jobs/one\n", root.path());
        assert_eq!(found, [inner, outer, root.path().to_owned()]);
        let limits: Vec<Memory> = found.iter().filter_map(|group| limit(group)).collect();
        assert_eq!(limits, [Memory { total: 4 * GIB, free: 2 * GIB }]);
        let text = "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:    1048576 kB\n";
        let machine = parse_meminfo(text).unwrap();
        assert_eq!(machine, Memory { total: 16 * GIB, free: GIB });
        assert_eq!(machine.smaller(limits[0]), Memory { total: 4 * GIB, free: GIB });
    }

    #[test]
    fn this_machine_says_what_it_has() {
        let memory = host().unwrap();
        assert!(memory.free > 0 && memory.total >= memory.free, "{memory:?}");
    }
}
