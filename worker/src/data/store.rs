//! Objects behind URLs: one place that knows which store serves which scheme, and that retries.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, ObjectMeta};
use tokio::runtime::Runtime;

use super::Error;

/// Attempts before a store error counts, with a pause that doubles in between.
const ATTEMPTS: u32 = 7;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// One object.
#[derive(Debug, Clone)]
pub struct Object {
    /// As the manifest names it.
    pub url: String,
    store: Arc<dyn ObjectStore>,
    path: Path,
    runtime: Arc<Runtime>,
}

/// Opens objects; the stores and the threads that serve them are shared.
#[derive(Debug, Clone)]
pub struct Stores {
    local: Arc<dyn ObjectStore>,
    runtime: Arc<Runtime>,
}

impl Stores {
    /// Starts the thread that runs store requests.
    ///
    /// # Errors
    /// When the host refuses the thread.
    pub fn start() -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("data-store")
            .enable_all()
            .build()
            .map_err(|e| Error::Reader { reason: e.to_string() })?;
        Ok(Self { local: Arc::new(LocalFileSystem::new()), runtime: Arc::new(runtime) })
    }

    /// Returns the object behind an absolute path or a URL; whether it exists shows later.
    ///
    /// # Errors
    /// [`Error::Url`] for a scheme without a store, or a relative path.
    pub fn object(&self, url: &str) -> Result<Object, Error> {
        let bad = |reason: String| Error::Url { url: url.to_owned(), reason };
        let local = url.strip_prefix("file://").unwrap_or(url);
        if local.contains("://") {
            let scheme = url.split("://").next().unwrap_or_default();
            return Err(bad(format!(
                "no store for {scheme}:// in this build; use a path or a file:// URL"
            )));
        }
        if !local.starts_with('/') {
            return Err(bad("the path is relative; ranks need an absolute one".to_owned()));
        }
        let path = Path::from_absolute_path(local).map_err(|e| bad(e.to_string()))?;
        Ok(Object {
            url: url.to_owned(),
            store: Arc::clone(&self.local),
            path,
            runtime: Arc::clone(&self.runtime),
        })
    }
}

impl Object {
    /// Returns size and version.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Store`].
    pub fn head(&self) -> Result<ObjectMeta, Error> {
        self.retry(async || self.store.head(&self.path).await)
    }

    /// Returns several ranges of bytes in one request where the store can.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Store`].
    pub fn ranges(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, Error> {
        self.retry(async || self.store.get_ranges(&self.path, ranges).await)
    }

    /// Returns the whole object, or none when there is none.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn read(&self) -> Result<Option<Bytes>, Error> {
        let result = self.retry(async || self.store.get(&self.path).await?.bytes().await);
        match result {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the object of another name in the same folder.
    pub fn sibling(&self, name: &str) -> Self {
        let parts: Vec<_> = self.path.parts().collect();
        let folder = parts[..parts.len().saturating_sub(1)].iter().cloned();
        let path = Path::from_iter(folder).join(name);
        let url = self.url.rsplit_once('/').map_or_else(String::new, |(folder, _)| folder.to_owned());
        Self { url: format!("{url}/{name}"), path, ..self.clone() }
    }

    /// Returns the last part of the name.
    pub fn file_name(&self) -> String {
        self.path.filename().unwrap_or_default().to_owned()
    }

    /// A store that is away for a moment is waited for; an object that does not exist is not.
    fn retry<T>(
        &self,
        request: impl AsyncFn() -> Result<T, object_store::Error>,
    ) -> Result<T, Error> {
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            let source = match self.runtime.block_on(request()) {
                Ok(value) => return Ok(value),
                Err(object_store::Error::NotFound { .. }) => {
                    return Err(Error::Missing { url: self.url.clone() });
                }
                Err(source) => source,
            };
            if attempt == ATTEMPTS {
                return Err(Error::Store { url: self.url.clone(), source });
            }
            tracing::warn!(url = %self.url, error = %source, attempt, "store error, trying again");
            std::thread::sleep(pause);
            pause *= 2;
        }
        unreachable!("the loop returns at its last attempt")
    }
}
