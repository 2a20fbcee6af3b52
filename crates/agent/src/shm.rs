//! Shared memory that a killed rank leaves behind.
//!
//! NCCL's ranks of a node talk through files in `/dev/shm`, which they remove once all have opened
//! them. A rank killed before that leaves its file, memory that nothing frees until the next boot.
//! Only files that are certainly of no use are removed: NCCL's by name, this user's, no older than
//! the rank, and neither mapped nor open in any process.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const FOLDER: &str = "/dev/shm";
const PREFIX: &str = "nccl-";

/// Removes what ranks that started at `since` or later left, and returns how many files that were.
pub(super) fn clear(since: SystemTime) -> usize {
    let left: Vec<PathBuf> = candidates(Path::new(FOLDER), since);
    // Looking through all processes costs milliseconds, and nearly always there is nothing to find.
    let unused = left.into_iter().filter(|file| !is_used(file));
    unused.filter(|file| fs::remove_file(file).is_ok()).count()
}

fn candidates(folder: &Path, since: SystemTime) -> Vec<PathBuf> {
    let Ok(me) = fs::metadata("/proc/self").map(|about| about.uid()) else { return Vec::new() };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        .filter(|entry| {
            entry.metadata().is_ok_and(|about| {
                about.uid() == me && about.modified().is_ok_and(|at| at >= since)
            })
        })
        .map(|entry| entry.path())
        .collect()
}

fn is_used(file: &Path) -> bool {
    let name = file.to_string_lossy();
    let mut processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.any(|process| {
        let process = process.path();
        let maps = fs::read_to_string(process.join("maps")).unwrap_or_default();
        let mut open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        maps.lines().any(|line| line.ends_with(name.as_ref()))
            || open.any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == file))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_new_files_that_nobody_uses_are_removed() {
        let began = SystemTime::now() - Duration::from_secs(1);
        let path = |what: &str| {
            Path::new(FOLDER).join(format!("{PREFIX}ringmaster-test-{}-{what}", std::process::id()))
        };
        let (left, used, other) = (
            path("left"),
            path("used"),
            path("left").with_file_name(format!("ringmaster-test-{}", std::process::id())),
        );
        let open = fs::File::create(&used).unwrap();
        for file in [&left, &other] {
            fs::write(file, "x").unwrap();
        }
        assert!(
            !candidates(Path::new(FOLDER), SystemTime::now() + Duration::from_secs(60))
                .contains(&left)
        );
        clear(began);
        assert_eq!([&left, &used, &other].map(|file| file.exists()), [false, true, true]);
        drop(open);
        clear(began);
        assert!(!used.exists());
        fs::remove_file(other).unwrap();
    }
}
