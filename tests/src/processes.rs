//! Which processes of a test are still alive.

use std::path::Path;
use std::time::{Duration, Instant};

/// Returns the ids of processes whose environment or command line mentions `folder`: everything
/// started for a job in that folder, however deep.
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
        .filter(|pid| !is_zombie(*pid))
        .collect()
}

fn is_zombie(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
}

/// Waits until `condition` holds and returns whether it did within `limit`.
pub fn eventually(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}
