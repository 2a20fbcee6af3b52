//! How a rank ends: its exit codes, why it ended, and whose fault that probably is.
//!
//! A rank writes why it ended to its status file; the agent reads the file once the process is
//! gone and tells the coordinator. A process that a signal ends leaves none, and the agent says
//! which signal it was.
//!
//! Class, operation and cause together are the identity of a failure: two that have all three in common
//! are the same one. So operations and causes are words of the source, and never hold a path or a number
//! that another node would have otherwise.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use nix::sys::signal::Signal;
use ringmaster_proto::v1::ExitClass;
use serde::{Deserialize, Serialize};

/// The run ended as it should: finished, or stopped gracefully.
pub const SUCCESS: i32 = 0;
/// An error that another attempt may not meet; the status file says which.
pub const FAILED: i32 = 1;
/// The command line or the environment is wrong.
pub const USAGE: i32 = 2;
/// The agent is gone (EX_TEMPFAIL): its socket closed.
pub const AGENT_GONE: i32 = 75;
/// An error that another node may not meet (EX_NOPERM): no device, no mount, no memory.
pub const NODE: i32 = 77;
/// An error that every attempt would meet (EX_CONFIG): a manifest that no rank can train from.
pub const HOPELESS: i32 = 78;
/// A panic; as the Rust runtime's own.
pub const PANICKED: i32 = 101;

/// Operations that agents name, and those of the worker's that agents act upon.
pub mod operation {
    /// The agent could not serve the rank, or the rank ended before it had begun.
    pub const START: &str = "start";
    /// The rank's files or its process could not be made.
    pub const EXEC: &str = "exec";
    /// The rank ran.
    pub const RUN: &str = "run";
    /// The rank was to end.
    pub const END: &str = "end";
    /// The rank's device was asked for or checked. Its slot takes no other rank until a probe of the
    /// worker lists the device again.
    pub const DEVICE: &str = "device";
}

/// Causes that agents name, beside kinds of I/O errors ("NotFound"), [`signal`](cause::signal) and
/// [`code`](cause::code).
pub mod cause {
    /// All slots are in use, or the one that was asked for takes no rank.
    pub const SLOTS: &str = "slots";
    /// The agent ends.
    pub const LEAVING: &str = "leaving";
    /// The rank is not there.
    pub const NOT_RUNNING: &str = "not running";
    /// The node's worker cannot run.
    pub const WORKER: &str = "worker";
    /// It gave no sign of life for too long.
    pub const SILENT: &str = "silent";
    /// It was to be killed, or did not end within its grace.
    pub const KILLED: &str = "killed";
    /// A signal had stopped it.
    pub const STOPPED: &str = "stopped";
    /// It is still there after SIGKILL.
    pub const SURVIVES: &str = "survives SIGKILL";

    /// This signal ended the process.
    pub fn signal(number: i32) -> String {
        format!("signal {number}")
    }

    /// The process ended with this code and said nothing.
    pub fn code(code: i32) -> String {
        format!("code {code}")
    }

    /// An operation of the system failed like this.
    pub fn io(kind: std::io::ErrorKind) -> String {
        format!("{kind:?}")
    }
}

/// Whose fault the end of a rank probably is: a word in the status file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Another attempt may do better, wherever.
    #[default]
    Retry,
    /// Another node may do better.
    Node,
    /// Every attempt would meet it.
    Job,
}

impl Class {
    /// Returns the code with which a rank ends that says so.
    pub const fn exit_code(self) -> i32 {
        match self {
            Self::Retry => FAILED,
            Self::Node => NODE,
            Self::Job => HOPELESS,
        }
    }

    /// Returns what can be told from an exit code alone.
    pub(crate) const fn of_code(code: i32) -> Self {
        match code {
            NODE => Self::Node,
            USAGE | HOPELESS => Self::Job,
            _ => Self::Retry,
        }
    }
}

impl From<Class> for ExitClass {
    fn from(class: Class) -> Self {
        match class {
            Class::Retry => Self::Retry,
            Class::Node => Self::Node,
            Class::Job => Self::Job,
        }
    }
}

impl From<ExitClass> for Class {
    /// A class that is not said, or that this build does not know, is no reason to give anything up.
    fn from(class: ExitClass) -> Self {
        match class {
            ExitClass::Unspecified | ExitClass::Retry => Self::Retry,
            ExitClass::Node => Self::Node,
            ExitClass::Job => Self::Job,
        }
    }
}

/// What a rank writes about its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Why it ended, in a sentence.
    pub reason: String,
    /// Whose fault that probably is.
    pub class: Class,
    /// What it was about to do.
    pub operation: String,
    /// What kind of thing went wrong.
    pub cause: String,
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
        let status = ExitStatus {
            reason: "no such shard \"a.tar\"".into(),
            class: Class::Node,
            operation: "open data".into(),
            cause: "data: missing".into(),
        };
        write_status(&path, &status).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"class\":\"node\""), "{text}");
        assert_eq!(read_status(&path).unwrap(), Some(status));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_file_that_is_no_status_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{\"reason\": 3}").unwrap();
        assert!(read_status(file.path()).is_err());
        // Of a worker that knew no classes: its exit code says more than a guess would.
        std::fs::write(file.path(), "{\"reason\": \"x\", \"retryable\": false}").unwrap();
        assert!(read_status(file.path()).is_err());
    }

    #[test]
    fn a_class_survives_its_exit_code_and_the_protocol() {
        for (class, code, word) in [
            (Class::Retry, 1, "\"retry\""),
            (Class::Node, 77, "\"node\""),
            (Class::Job, 78, "\"job\""),
        ] {
            assert_eq!((class.exit_code(), Class::of_code(code)), (code, class));
            assert_eq!(Class::from(ExitClass::from(class)), class);
            assert_eq!(serde_json::to_string(&class).unwrap(), word);
        }
        assert_eq!(Class::from(ExitClass::Unspecified), Class::Retry);
        assert_eq!(Class::of_code(USAGE), Class::Job);
        assert!([75, 101, 3].map(Class::of_code).iter().all(|class| *class == Class::Retry));
    }
}
