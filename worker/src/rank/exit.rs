//! How a rank ends: its exit codes and its last words.
//!
//! A rank writes why it ended to its status file; the agent reads the file once the process is
//! gone and tells the coordinator. A process that a signal ends leaves none, and the agent says
//! which signal it was.

use std::fs::File;
use std::io::{self, Write as _};
use std::panic::PanicHookInfo;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::ffi::process::exit_now;
use crate::panics;

/// The run ended as it should: finished, or stopped gracefully.
pub const SUCCESS: i32 = 0;
/// An error that another attempt may not meet; the status file says which.
pub const FAILED: i32 = 1;
/// The command line or the environment is wrong.
pub const USAGE: i32 = 2;
/// The agent is gone (EX_TEMPFAIL): its socket closed.
pub const AGENT_GONE: i32 = 75;
/// An error that every attempt would meet (EX_CONFIG): bad manifest, missing data file.
pub const HOPELESS: i32 = 78;
/// A panic; as the Rust runtime's own.
pub const PANICKED: i32 = 101;

/// A rank's last words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Why it ended, in a sentence.
    pub reason: String,
    /// False when running it again cannot help.
    pub retryable: bool,
}

/// Writes `status` to `path` as JSON, complete or not at all.
///
/// # Errors
/// Whatever writing or renaming the file gives.
pub fn write_status(path: &Path, status: &ExitStatus) -> io::Result<()> {
    let unfinished = path.with_extension(format!("{}.tmp", std::process::id()));
    let mut file = File::create(&unfinished)?;
    file.write_all(&serde_json::to_vec(status)?)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)
}

/// Returns what is written at `path`; none when there is no file.
///
/// # Errors
/// A file that cannot be read or holds something else.
pub fn read_status(path: &Path) -> io::Result<Option<ExitStatus>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a panic on any thread write `status_file` and end the process with [`PANICKED`]: a rank
/// that lost a thread would otherwise hold up its peers until a deadline. Panics that
/// [`crate::panics::caught`] turns into errors pass.
pub fn install_panic_hook(status_file: PathBuf) {
    static PANICKING: AtomicBool = AtomicBool::new(false);
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if panics::is_caught() {
            return;
        }
        // A second panicking thread must not overwrite the first one's words, nor end the process
        // before they are written.
        if PANICKING.swap(true, Ordering::SeqCst) {
            loop {
                std::thread::park();
            }
        }
        print(info);
        let status = ExitStatus { reason: describe(info), retryable: true };
        if let Err(error) = write_status(&status_file, &status) {
            tracing::error!(%error, path = %status_file.display(), "cannot write the status file");
        }
        exit_now(PANICKED);
    }));
}

fn describe(info: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed");
    let message = info.payload_as_str().unwrap_or("a value that is no text");
    match info.location() {
        Some(place) => format!("thread {name:?} panicked at {place}: {message}"),
        None => format!("thread {name:?} panicked: {message}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn last_words_survive_the_file_and_a_missing_file_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rank0.status.json");
        assert_eq!(read_status(&path).unwrap(), None);
        let status = ExitStatus { reason: "no such shard \"a.tar\"".into(), retryable: false };
        write_status(&path, &status).unwrap();
        assert_eq!(read_status(&path).unwrap(), Some(status));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_file_that_is_no_status_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{\"reason\": 3}").unwrap();
        assert!(read_status(file.path()).is_err());
    }
}
