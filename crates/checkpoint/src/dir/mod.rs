//! Where checkpoints lie: a folder of a store, and what stores do differently.
//!
//! On local files every write is a staged file, an fsync, a rename and an fsync of the folders it
//! changed, so what was granted survives a power cut. What is to be created once is created with a
//! condition; where the store ignores conditions it is looked at before and read back after.
//!
//! Modules: `latest` (the pointer that never goes back), `survey` (what lies in a job's folder), `writable`
//! (whether anything can be written there).

mod latest;
mod survey;
mod writable;

use std::fs::File;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetResult, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use ringmaster_store::{self as store, Conditional, Scheme, Store};

pub(crate) use survey::Survey;
pub use writable::check_writable;

use super::Error;
use super::layout::StepName;
use super::progress;

/// A folder of a store.
#[derive(Debug, Clone)]
pub(crate) struct CheckpointDir {
    /// Its failed requests are made again with patience, its errors say what they mean.
    pub(crate) store: Arc<dyn ObjectStore>,
    opened: Store,
    /// Of the folder, within the store.
    pub(crate) base: Path,
    /// Of the folder, as the user wrote it, without a slash at the end.
    pub(crate) url: String,
    /// The folder itself where the store is this machine's files.
    pub(crate) local: Option<PathBuf>,
}

impl CheckpointDir {
    /// Chooses the store by the URL's scheme.
    ///
    /// # Errors
    /// [`Error::Unusable`] for what is neither an absolute path nor a URL of a known scheme, and for
    /// settings that cannot be used.
    pub(crate) fn open(url: &str) -> Result<Self, Error> {
        let trimmed = if url.len() > 1 { url.trim_end_matches('/') } else { url };
        let unusable =
            |error: store::Unusable| Error::Unusable { url: error.url, reason: error.reason };
        let opened = store::open(trimmed).map_err(unusable)?;
        if opened.scheme() == Scheme::Http {
            let reason = "a web server takes no checkpoints; write s3://…, gs://…, az://… or /…";
            return Err(Error::Unusable { url: url.to_owned(), reason: reason.to_owned() });
        }
        Ok(Self::of(opened, trimmed))
    }

    pub(crate) fn of(opened: Store, url: &str) -> Self {
        Self {
            store: opened.patient(),
            base: opened.path.clone(),
            local: opened.local.clone(),
            url: url.to_owned(),
            opened,
        }
    }

    /// Returns a folder of a store that knows compare-and-set.
    #[cfg(test)]
    pub(crate) fn memory() -> Self {
        let store = Arc::new(object_store::memory::InMemory::new());
        let mut opened = Store::of(store);
        opened.path = Path::from("job");
        Self::of(opened, "memory:///job")
    }

    /// Splits a checkpoint's own folder into its job's folder and its name.
    pub(crate) fn split(&self) -> Option<(Self, StepName)> {
        let name = self.base.filename()?.parse().ok()?;
        let (parent, _) = self.url.rsplit_once('/')?;
        let mut job = self.clone();
        job.url = parent.to_owned();
        job.base = self.base.parent().unwrap_or_default();
        job.local = self.local.as_deref().and_then(FsPath::parent).map(FsPath::to_owned);
        Some((job, name))
    }

    /// Whether both are the same folder, however it was written.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.base == other.base && origin(&self.url) == origin(&other.url)
    }

    /// Returns where an object of a checkpoint lies in the store.
    pub(crate) fn object(&self, name: StepName, object: &str) -> Path {
        self.base.clone().join(name.to_string()).join(object)
    }

    /// Returns where what lies in this folder under a name, as a listing gives it, lies in the store; none
    /// for what is no name. The library's own way to join takes names for text and escapes them.
    pub(crate) fn inside(&self, name: &str) -> Option<Path> {
        match self.base.as_ref() {
            "" => Path::parse(name).ok(),
            base => Path::parse(format!("{base}/{name}")).ok(),
        }
    }

    /// Returns the URL of a checkpoint.
    pub(crate) fn step_url(&self, name: StepName) -> String {
        format!("{}/{name}", self.url)
    }

    /// Returns the URL of an object of a checkpoint.
    pub(crate) fn object_url(&self, name: StepName, object: &str) -> String {
        format!("{}/{name}/{object}", self.url)
    }

    /// Opens an object; `None` if there is none.
    pub(crate) async fn get(
        &self,
        name: StepName,
        object: &str,
    ) -> Result<Option<GetResult>, Error> {
        match self.store.get(&self.object(name, object)).await {
            Ok(result) => Ok(Some(result)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(self.read_error(name, object, source)),
        }
    }

    /// Returns the bytes of a small object; `None` if there is none.
    pub(crate) async fn text(
        &self,
        name: StepName,
        object: &str,
    ) -> Result<Option<Vec<u8>>, Error> {
        let Some(result) = self.get(name, object).await? else { return Ok(None) };
        let bytes = result.bytes().await.map_err(|source| self.read_error(name, object, source))?;
        Ok(Some(bytes.into()))
    }

    /// Whether an object exists.
    pub(crate) async fn exists(&self, name: StepName, object: &str) -> Result<bool, Error> {
        match self.store.head(&self.object(name, object)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(source) => Err(self.read_error(name, object, source)),
        }
    }

    /// The error of a read that failed for another reason than absence.
    pub(crate) fn read_error(
        &self,
        name: StepName,
        object: &str,
        source: object_store::Error,
    ) -> Error {
        self.store_error("read", self.object_url(name, object), source)
    }

    /// The error of a request that failed.
    pub(crate) fn store_error(
        &self,
        action: &'static str,
        object: String,
        source: object_store::Error,
    ) -> Error {
        Error::Store { action, object, source: source.into() }
    }

    /// Creates an object. Success too if it exists with the same content: an attempt whose answer
    /// was lost.
    pub(crate) async fn create(
        &self,
        name: StepName,
        object: &str,
        text: Vec<u8>,
    ) -> Result<(), Error> {
        let path = self.object(name, object);
        let write_error = |source| self.store_error("write", self.object_url(name, object), source);
        if self.conditional().await?.create {
            let options = PutOptions::from(PutMode::Create);
            match self.store.put_opts(&path, text.clone().into(), options).await {
                Ok(_) => return Ok(()),
                Err(object_store::Error::AlreadyExists { .. }) => {}
                Err(source) => return Err(write_error(source)),
            }
            return self
                .holds(name, object, &text)
                .await?
                .ok_or_else(|| Error::Conflict { object: self.object_url(name, object) });
        }
        // The coordinator lets one writer come here; this finds out if it was wrong.
        if self.exists(name, object).await? {
            return self
                .holds(name, object, &text)
                .await?
                .ok_or_else(|| Error::Conflict { object: self.object_url(name, object) });
        }
        self.store.put(&path, text.clone().into()).await.map_err(write_error)?;
        self.holds(name, object, &text)
            .await?
            .ok_or_else(|| Error::Overwritten { object: self.object_url(name, object) })
    }

    /// Whether an object holds these bytes.
    async fn holds(&self, name: StepName, object: &str, text: &[u8]) -> Result<Option<()>, Error> {
        Ok((self.text(name, object).await?.as_deref() == Some(text)).then_some(()))
    }

    /// Returns which conditions the store honours.
    async fn conditional(&self) -> Result<Conditional, Error> {
        if self.local.is_some() {
            return Ok(Conditional { create: true, update: None });
        }
        let found = self.opened.conditional(&self.base).await;
        found.map_err(|source| self.store_error("write", self.url.clone(), source))
    }

    /// Deletes one object for good: the deletion itself survives a power cut.
    pub(crate) async fn delete(&self, name: StepName, object: &str) -> Result<(), Error> {
        match self.store.delete(&self.object(name, object)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(source) => {
                return Err(self.store_error("delete", self.object_url(name, object), source));
            }
        }
        let Some(job) = &self.local else { return Ok(()) };
        let path = job.join(name.to_string());
        match File::open(&path).and_then(|folder| folder.sync_all()) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Io { action: "sync", path, source })
            }
            _ => Ok(()),
        }
    }

    /// Deletes the folder of a checkpoint with all it holds, staged files and parts of unfinished
    /// uploads included.
    pub(crate) async fn delete_all(&self, name: StepName) -> Result<(), Error> {
        if let Some(job) = &self.local {
            let path = job.join(name.to_string());
            return match std::fs::remove_dir_all(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::Io { action: "delete", path, source })
                }
                _ => Ok(()),
            };
        }
        let error = |source| self.store_error("delete", self.step_url(name), source);
        let prefix = self.base.clone().join(name.to_string());
        self.abort_unfinished(&prefix, |_| true).await;
        let listed = self.store.list(Some(&prefix)).map_ok(|object| object.location).boxed();
        let mut deleted = self.store.delete_stream(listed);
        while let Some(result) = deleted.next().await {
            match result {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => progress::advance(),
                Err(source) => return Err(error(source)),
            }
        }
        Ok(())
    }

    /// Ends the unfinished uploads of checkpoints older than `own`; a dead writer may have left
    /// nothing else, and then no listing shows its checkpoint.
    pub(crate) async fn abort_unfinished_before(&self, own: StepName) {
        let depth = self.base.parts().count();
        let is_older = |object: &Path| {
            let folder = object.parts().nth(depth);
            folder.and_then(|part| part.as_ref().parse::<StepName>().ok()).is_some_and(|s| s < own)
        };
        self.abort_unfinished(&self.base, is_older).await;
    }

    /// Ends unfinished uploads. Failing to is no failure of whoever tidies up: they cost space and
    /// are not seen by readers.
    async fn abort_unfinished(&self, folder: &Path, chosen: impl Fn(&Path) -> bool) {
        match self.opened.abort_unfinished(folder, chosen).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, url = self.url, "ended unfinished uploads"),
            Err(error) => {
                let reason = store::Error::from(error).to_string();
                tracing::warn!(reason, url = self.url, "unfinished uploads cannot be ended");
            }
        }
    }
}

/// The store that a URL leads to: scheme and bucket, nothing for files.
fn origin(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once("://").filter(|(scheme, _)| *scheme != "file")?;
    Some((scheme, rest.split('/').next().unwrap_or_default()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests;
