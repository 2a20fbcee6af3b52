//! The worker's executable, kept open: ranks are the very file that was probed, whatever lies under its name
//! by then.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An executable that was there when it was opened.
#[derive(Debug)]
pub(super) struct Executable {
    path: PathBuf,
    /// When it was opened, before anything was read of it.
    stamp: Stamp,
    /// Closed in whatever is started, by std's default.
    file: File,
    /// It begins with `#!`: its interpreter opens it again, and can do so only by its name.
    is_script: bool,
}

/// What changes when a file is replaced or written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// Returns the stamp of what lies at `path` now; none where nothing can be seen.
    pub(super) fn at(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().map(|metadata| Self::of(&metadata))
    }

    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Executable {
    /// Opens what lies at `path`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
        }
        let mut start = [0; 2];
        let is_script = file.read(&mut start)? == start.len() && start == *b"#!";
        Ok(Self { path: path.to_owned(), stamp: Stamp::of(&metadata), file, is_script })
    }

    /// Whether nothing was written to it since it was opened. Another file of its name does not matter.
    pub(super) fn is_unchanged(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| Stamp::of(&metadata) == self.stamp)
    }

    /// Returns a command that runs this file, even if another one has its name by now. A script is run by its
    /// name.
    ///
    /// The command must be started while `self` is there.
    pub(super) fn command(&self) -> Command {
        if self.is_script {
            return Command::new(&self.path);
        }
        // The child looks this name up in its own table of open files, a copy of the agent's, before exec
        // closes it there.
        let mut command = Command::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        let name: &OsStr = self.path.as_os_str();
        command.arg0(name);
        command
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Gives a file another name as well, which it takes from whatever has it. Nothing is written that could
    /// be "busy" in a process some other test forks at the moment.
    fn link(file: &str, path: &Path) {
        let next = path.with_extension("next");
        symlink(file, &next).unwrap();
        fs::rename(&next, path).unwrap();
    }

    fn code(executable: &Executable) -> Option<i32> {
        executable.command().status().unwrap().code()
    }

    #[test]
    fn the_opened_file_runs_although_another_one_has_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker");
        link("/bin/true", &path);
        let good = Executable::open(&path).unwrap();
        let before = Stamp::at(&path);
        assert_eq!(Stamp::at(&path), before);
        link("/bin/false", &path);
        assert_ne!(Stamp::at(&path), before);
        assert!(good.is_unchanged());
        assert_eq!(code(&good), Some(0));
        assert_eq!(code(&Executable::open(&path).unwrap()), Some(1));
        fs::remove_file(&path).unwrap();
        assert_eq!((Stamp::at(&path), code(&good)), (None, Some(0)));
    }

    #[test]
    fn a_script_runs_by_its_name_since_its_interpreter_opens_it_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker.sh");
        fs::write(&path, "#!/bin/sh\n").unwrap();
        assert_eq!(Executable::open(&path).unwrap().command().get_program(), path);
    }

    #[test]
    fn a_file_that_is_written_to_in_place_has_another_stamp() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker");
        fs::write(&path, "one").unwrap();
        let (before, opened) = (Stamp::at(&path), Executable::open(&path).unwrap());
        assert!(opened.is_unchanged());
        fs::write(&path, "other").unwrap();
        assert_ne!(Stamp::at(&path), before);
        assert!(!opened.is_unchanged());
    }

    #[test]
    fn a_folder_is_no_executable() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Executable::open(folder.path()).is_err());
    }
}
