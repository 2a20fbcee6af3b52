//! How a rank ends: its exit codes, and why it ended.
//!
//! A rank writes why it ended to its status file; the agent reads the file once the process is
//! gone and tells the coordinator. A process that a signal ends leaves none, and the agent says
//! which signal it was.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

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

/// What a rank writes about its end.
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

/// Says how a process ended, as the end of a sentence about it.
pub(crate) fn in_words(code: Option<i32>, signal: Option<i32>) -> String {
    match (code, signal) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(number)) => match Signal::try_from(number) {
            Ok(signal) => format!("ended by signal {number} ({signal})"),
            Err(_) => format!("ended by signal {number}"),
        },
        (None, None) => "ended in an unknown way".to_owned(),
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
