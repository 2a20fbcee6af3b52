//! Objects behind paths and URLs. Which store serves which scheme, how the environment configures it, and how
//! one that is away is waited for, is for `ringmaster_store`.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt as _};
use ringmaster_store::{self as store, Store};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::progress;

/// Longest time for which a store that fails is asked again before the failure counts; its own patience may
/// end earlier. Stores are away for a minute without anybody's fault; longer, and the rank says itself what
/// failed, before the coordinator takes it for hung.
const LONGEST_WAIT: Duration = Duration::from_secs(150);

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
    /// [`Error::Url`] for a scheme without a store, a relative path, or settings that cannot be used.
    pub fn object(&mut self, url: &str) -> Result<Object, Error> {
        if !url.contains("://") && !url.starts_with('/') {
            let reason = "the path is relative; ranks need an absolute one".to_owned();
            return Err(Error::Url { url: url.to_owned(), reason });
        }
        let unusable = |error: store::Unusable| Error::Url { url: error.url, reason: error.reason };
        let opened = store::open(url).map_err(unusable)?;
        // Local files are read on the calling thread.
        let runtime = match opened.local {
            Some(_) => None,
            None => Some(self.runtime()?),
        };
        let path = opened.path.clone();
        Ok(Object { url: url.to_owned(), store: opened, path, runtime, patience: LONGEST_WAIT })
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

    /// Returns size and version.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Store`].
    pub fn head(&self) -> Result<ObjectMeta, Error> {
        let request = || async { self.store.objects().head(&self.path).await };
        self.ask(&CancellationToken::new(), request)
    }

    /// Returns several ranges of bytes in one request where the store can; `cancel` ends the wait
    /// for a store that is away.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Store`].
    pub fn ranges(
        &self,
        ranges: &[Range<u64>],
        cancel: &CancellationToken,
    ) -> Result<Vec<Bytes>, Error> {
        self.ask(cancel, || async { self.store.objects().get_ranges(&self.path, ranges).await })
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
        Self { url: format!("{url}/{name}"), path, ..self.clone() }
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
            Err(object_store::Error::NotFound { .. }) => {
                Err(Error::Missing { url: self.url.clone() })
            }
            Err(source) => Err(Error::Store { url: self.url.clone(), source: source.into() }),
        }
    }

    fn block_on<T>(&self, request: impl Future<Output = T>) -> T {
        match &self.runtime {
            Some(runtime) => runtime.block_on(request),
            None => futures::executor::block_on(request),
        }
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
