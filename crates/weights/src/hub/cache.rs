//! The cache on disk, in the layout of `huggingface_hub`:
//!
//! ```text
//! models--ORG--NAME/refs/REVISION               the commit it stands for
//! models--ORG--NAME/snapshots/COMMIT/FILE       a link to the blob
//! models--ORG--NAME/blobs/ETAG                  content, .incomplete while it comes
//! .locks/models--ORG--NAME/ETAG.lock            held by who writes the blob
//! ```

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::repository::is_commit;
use super::{Error, Repository};

/// How long a download of another process may stand still.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// The part of a cache that belongs to one repository.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    locks: PathBuf,
}

impl Cache {
    pub(super) fn new(root: &Path, repository: &Repository) -> Self {
        let name = repository.folder();
        Self { folder: root.join(&name), locks: root.join(".locks").join(name) }
    }

    /// Returns the file of a commit, if it is there.
    pub(super) fn find(&self, commit: &str, file: &str) -> Option<PathBuf> {
        Some(self.snapshot(commit, file)).filter(|path| path.is_file())
    }

    /// Returns the file of the commit that a revision stood for when it was last asked.
    pub(super) fn current(&self, revision: &str, file: &str) -> Option<PathBuf> {
        let commit = fs::read_to_string(self.reference(revision)).unwrap_or_default();
        match commit.trim() {
            commit if is_commit(commit) => self.find(commit, file),
            _ if is_commit(revision) => self.find(revision, file),
            _ => None,
        }
    }

    /// Whether it is known which commit a revision stands for.
    pub(super) fn knows(&self, revision: &str) -> bool {
        let commit = fs::read_to_string(self.reference(revision)).unwrap_or_default();
        is_commit(commit.trim()) || is_commit(revision)
    }

    /// Returns where the content with this ETag lies.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Returns where it lies while it comes; Python resumes the same file.
    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Notes which commit a revision stands for.
    pub(super) fn refer(&self, revision: &str, commit: &str) -> Result<(), Error> {
        let path = self.reference(revision);
        let known = fs::read_to_string(&path).is_ok_and(|known| known == commit);
        if known || revision == commit {
            return Ok(());
        }
        make_parent(&path)?;
        let new = beside(&path);
        fs::write(&new, commit).map_err(Error::cache("write", &new))?;
        fs::rename(&new, &path).map_err(Error::cache("write", &path))
    }

    /// Links a commit's file to its content; returns the file.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<PathBuf, Error> {
        let path = self.snapshot(commit, file);
        make_parent(&path)?;
        // From snapshots/COMMIT/FILE up to the repository's folder.
        let up = "../".repeat(2 + file.matches('/').count());
        let new = beside(&path);
        let _ = fs::remove_file(&new);
        std::os::unix::fs::symlink(format!("{up}blobs/{etag}"), &new)
            .map_err(Error::cache("link", &new))?;
        fs::rename(&new, &path).map_err(Error::cache("link", &path))?;
        Ok(path)
    }

    /// Waits until no other process writes this content; the lock ends with the file returned.
    pub(super) async fn lock(&self, etag: &str) -> Result<File, Error> {
        let path = self.locks.join(format!("{etag}.lock"));
        make_parent(&path)?;
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(Error::cache("open", &path))?;
        let size = || fs::metadata(self.incomplete(etag)).map_or(0, |metadata| metadata.len());
        let (mut moved, mut seen) = (Instant::now(), size());
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(source)) => {
                    return Err(Error::cache("lock", &path)(source));
                }
                Err(TryLockError::WouldBlock) => {}
            }
            if size() != seen {
                (moved, seen) = (Instant::now(), size());
            }
            if moved.elapsed() > PATIENCE {
                return Err(Error::Locked { path, seconds: PATIENCE.as_secs() });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn snapshot(&self, commit: &str, file: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit).join(file)
    }

    fn reference(&self, revision: &str) -> PathBuf {
        self.folder.join("refs").join(revision)
    }
}

/// Makes the folder that `path` lies in.
pub(super) fn make_parent(path: &Path) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(Error::cache("make the folder", folder))
}

/// A name for what becomes `path` by being renamed; of this process and thread alone.
fn beside(path: &Path) -> PathBuf {
    let thread = format!("{:?}", std::thread::current().id());
    let number: String = thread.chars().filter(char::is_ascii_digit).collect();
    path.with_added_extension(format!("{}-{number}.new", std::process::id()))
}
