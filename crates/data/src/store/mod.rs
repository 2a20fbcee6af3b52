//! Objects behind paths and URLs. Which store serves which scheme, how the environment configures it, and how
//! one that is away is waited for, is for `ringmaster_store`.
//!
//! An object whose properties were asked for is read as that version ever after ([`Error::Replaced`]): where samples
//! lie in a shard is known of one version only.

mod heads;
mod parts;
mod ranges;
mod version;

use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore as _, ObjectStoreExt as _};
use ringmaster_store::{self as store, Scheme, Store};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

pub(crate) use self::heads::heads;
use crate::Error;
use crate::progress;

/// Longest time for which a store that fails is asked again before the failure counts; its own patience may
/// end earlier. Stores are away for a minute without anybody's fault; longer, and the rank says itself what
/// failed, before the coordinator takes it for hung.
const LONGEST_WAIT: Duration = Duration::from_secs(150);
/// Bytes between two ranges, of a disk and over a network, that are cheaper to read than to leave out.
const GAP: [u64; 2] = [64 << 10, 1 << 20];

/// One object.
#[derive(Debug, Clone)]
pub struct Object {
    /// As the manifest names it.
    pub url: String,
    store: Store,
    path: Path,
    /// Where requests to remote stores run; local files are read on the calling thread.
    runtime: Option<Arc<Runtime>>,
    /// For how long requests that fail are made again.
    patience: Duration,
    /// What [`Object::head`] found first.
    first: OnceLock<ObjectMeta>,
}

/// Opens objects; the threads that wait for stores are shared.
#[derive(Debug, Default)]
pub struct Stores {
    runtime: Option<Arc<Runtime>>,
}

impl Stores {
    /// Returns the object behind an absolute path or a URL; whether it exists shows later. Remote
    /// stores take their credentials from the environment, under the names their own tools use.
    ///
    /// # Errors
    /// [`Error::Url`] for a scheme without a store or a relative path, [`Error::Settings`] for settings of the
    /// environment that cannot be used.
    pub fn object(&mut self, url: &str) -> Result<Object, Error> {
        if !url.contains("://") && !url.starts_with('/') {
            let reason = "the path is relative; ranks need an absolute one".to_owned();
            return Err(Error::Url { url: url.to_owned(), reason });
        }
        let unusable = |error: store::Unusable| match error {
            store::Unusable { url, reason, by_settings: true } => Error::Settings { url, reason },
            store::Unusable { url, reason, .. } => Error::Url { url, reason },
        };
        let opened = store::open(url).map_err(unusable)?;
        // Local files are read on the calling thread.
        let runtime = match opened.local {
            Some(_) => None,
            None => Some(self.runtime()?),
        };
        let path = opened.path.clone();
        let (url, first) = (url.to_owned(), OnceLock::new());
        Ok(Object { url, store: opened, path, runtime, patience: LONGEST_WAIT, first })
    }

    fn runtime(&mut self) -> Result<Arc<Runtime>, Error> {
        if let Some(runtime) = &self.runtime {
            return Ok(Arc::clone(runtime));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("data-store")
            .enable_all()
            .build()
            .map_err(|source| Error::Thread { source })?;
        Ok(Arc::clone(self.runtime.insert(Arc::new(runtime))))
    }
}

impl Object {
    /// Whether reading it takes a request to another process.
    pub fn is_remote(&self) -> bool {
        self.runtime.is_some()
    }

    /// Returns size and version. From the first time on, ranges are read of this version only.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Store`].
    pub fn head(&self) -> Result<ObjectMeta, Error> {
        self.block_on(self.ask_head())
    }

    /// Returns several ranges of bytes, neighbouring ones by one request; `cancel` ends the wait for a store that is
    /// away.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Replaced`] where the object is not the one that [`Object::head`] was told of;
    /// [`Error::Read`] with the place.
    pub fn ranges(
        &self,
        ranges: &[Range<u64>],
        cancel: &CancellationToken,
    ) -> Result<Vec<Bytes>, Error> {
        let merged = ranges::merged(ranges, GAP[usize::from(self.is_remote())]);
        let parts = match self.store.scheme() {
            Scheme::File => self.block_on(self.parts_of_file(&merged, cancel))?,
            _ => self.block_on(self.parts(&merged, cancel))?,
        };
        progress::advance();
        Ok(ranges.iter().map(|range| ranges::cut(range, &merged, &parts)).collect())
    }

    /// Returns some bytes of the object, as long as it is the one that was asked about first.
    ///
    /// # Errors
    /// As [`Object::ranges`].
    pub fn part(&self, range: Range<u64>, cancel: &CancellationToken) -> Result<Bytes, Error> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let parts = self.ranges(std::slice::from_ref(&range), cancel)?;
        Ok(parts.into_iter().next().unwrap_or_default())
    }

    /// Returns the whole object, or the reason why it cannot be had, where that lies in the object and not in its
    /// store: it is not there, may not be read, or has more than `longest` bytes.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) async fn whole(
        &self,
        longest: u64,
        cancel: &CancellationToken,
    ) -> Result<Result<Bytes, String>, Error> {
        let request = || async {
            let found = self.store.objects().get(&self.path).await?;
            match found.meta.size {
                size if size > longest => Ok(Err(size)),
                _ => found.bytes().await.map(Ok),
            }
        };
        let source = match self.store.insist(self.patience, cancel, request).await {
            Ok(found) => {
                progress::advance();
                return Ok(found.map_err(|size| {
                    format!("it has {size} bytes, more than the {longest} that are read")
                }));
            }
            Err(error) => store::Error::from(error),
        };
        if is_of_object(self.store.scheme(), source.kind) {
            return Ok(Err(source.to_string()));
        }
        Err(Error::Store { url: self.url.clone(), source })
    }

    /// Tells `each` of every object below this folder: its name there, and how many bytes it has.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn list(&self, mut each: impl FnMut(&str, u64)) -> Result<(), Error> {
        let folder = self.path.as_ref();
        let mut found = self.store.patient().list(Some(&self.path));
        let all = async {
            while let Some(meta) = found.try_next().await? {
                let name = meta.location.as_ref().strip_prefix(folder).unwrap_or_default();
                each(name.trim_start_matches('/'), meta.size);
                progress::advance();
            }
            Ok(())
        };
        self.block_on(all).map_err(|error: object_store::Error| Error::Store {
            url: self.url.clone(),
            source: error.into(),
        })
    }

    /// Returns the object of this name below this folder, as [`Self::list`] tells it.
    ///
    /// # Errors
    /// [`Error::Url`] for a name that no object can have.
    pub fn below(&self, name: &str) -> Result<Self, Error> {
        let url = format!("{}/{name}", self.url.trim_end_matches('/'));
        match Path::parse(format!("{}/{name}", self.path)) {
            Ok(path) => Ok(Self { url, path, ..self.clone() }),
            Err(error) => Err(Error::Url { url, reason: error.to_string() }),
        }
    }

    /// Returns the same object, waited for no longer than `patience` when its store is away.
    #[cfg(test)]
    pub(crate) fn patient(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Returns the whole object, or none when there is none that may be read.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn read(&self) -> Result<Option<Bytes>, Error> {
        let request = || async { self.store.objects().get(&self.path).await?.bytes().await };
        match self.ask(&CancellationToken::new(), request) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::Missing { .. }) => Ok(None),
            // Who may not list a bucket is not told that an object is missing.
            Err(Error::Store { source, .. }) if source.kind == store::Kind::NoPermission => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes the whole object, once: for caches, whose loss costs time only.
    ///
    /// # Errors
    /// The store's own.
    pub fn write(&self, bytes: Vec<u8>) -> Result<(), object_store::Error> {
        self.block_on(self.store.objects().put(&self.path, bytes.into())).map(|_| ())
    }

    /// Returns the object of another name in the same folder.
    pub fn sibling(&self, name: &str) -> Self {
        let parts: Vec<_> = self.path.parts().collect();
        let folder = parts[..parts.len().saturating_sub(1)].iter().cloned();
        let path = Path::from_iter(folder).join(name);
        let url = self.url.rsplit_once('/').map_or("", |(folder, _)| folder);
        Self { url: format!("{url}/{name}"), path, first: OnceLock::new(), ..self.clone() }
    }

    /// Returns the last part of the name.
    pub fn file_name(&self) -> String {
        self.path.filename().unwrap_or_default().to_owned()
    }

    /// A store that is away for a moment is waited for; what waiting cannot cure is not.
    fn ask<T, F>(
        &self,
        cancel: &CancellationToken,
        request: impl Fn() -> F + Send + Sync,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, object_store::Error>> + Send,
    {
        match self.block_on(self.store.insist(self.patience, cancel, request)) {
            Ok(value) => {
                progress::advance();
                Ok(value)
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    fn failed(&self, error: object_store::Error) -> Error {
        let url = self.url.clone();
        match error {
            object_store::Error::NotFound { .. } => Error::Missing { url },
            object_store::Error::Precondition { .. } => Error::Replaced { url },
            source => Error::Store { url, source: source.into() },
        }
    }

    /// Waits for requests of this store's objects.
    pub(crate) fn block_on<T>(&self, request: impl Future<Output = T>) -> T {
        match &self.runtime {
            Some(runtime) => runtime.block_on(request),
            None => futures::executor::block_on(request),
        }
    }
}

/// Whether a failure lies in the object that was asked for: other objects of the store may be read all the same.
fn is_of_object(scheme: store::Scheme, kind: store::Kind) -> bool {
    use store::{Kind, Scheme};
    match kind {
        Kind::Missing | Kind::NoPermission => true,
        // A web server refuses single pages for many reasons, a file system names that are too long.
        Kind::Refused | Kind::WrongCredentials | Kind::Unsupported => {
            matches!(scheme, Scheme::Http | Scheme::File)
        }
        _ => false,
    }
}

#[cfg(test)]
mod replaced_tests;

#[cfg(test)]
mod tests;
