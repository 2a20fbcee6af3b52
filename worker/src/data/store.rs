//! Objects behind paths and URLs: one place that knows which store serves which scheme, and that
//! waits for a store that is away.

use std::collections::HashMap;
use std::error::Error as _;
use std::io::ErrorKind;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _};
use tokio::runtime::Runtime;
use url::Url;

use super::Error;
use crate::progress::{self, Work};

/// How long a store that fails is asked again before the failure counts.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Pause after the first failure; it doubles from then on.
    pub first: Duration,
    /// Longest pause.
    pub longest: Duration,
    /// Time after which the next failure counts.
    pub deadline: Duration,
}

impl Default for Retry {
    /// Stores are away for a minute without anybody's fault; longer, and the rank says itself
    /// what failed, before the coordinator takes it for hung.
    fn default() -> Self {
        Self {
            first: Duration::from_millis(100),
            longest: Duration::from_secs(5),
            deadline: Duration::from_secs(150),
        }
    }
}

/// Ends the waits of whoever holds it, from another thread.
#[derive(Debug, Default)]
pub struct Cancel {
    cancelled: Mutex<bool>,
    changed: Condvar,
}

impl Cancel {
    /// Ends present and future waits.
    pub fn cancel(&self) {
        *self.cancelled.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits for `pause`; returns whether it was cancelled.
    fn wait(&self, pause: Duration) -> bool {
        let cancelled = self.cancelled.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(cancelled, pause, |cancelled| !*cancelled);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// One object.
#[derive(Debug, Clone)]
pub struct Object {
    /// As the manifest names it.
    pub url: String,
    store: Arc<dyn ObjectStore>,
    path: Path,
    /// Where requests to remote stores run; local files are read on the calling thread.
    runtime: Option<Arc<Runtime>>,
    retry: Retry,
}

/// Opens objects; the stores and the threads that serve them are shared.
#[derive(Debug, Default)]
pub struct Stores {
    local: Arc<LocalFileSystem>,
    remote: HashMap<String, Arc<dyn ObjectStore>>,
    runtime: Option<Arc<Runtime>>,
}

impl Stores {
    /// Returns the object behind an absolute path or a URL; whether it exists shows later. Remote
    /// stores take their credentials from the environment, under the names their own tools use.
    ///
    /// # Errors
    /// [`Error::Url`] for a scheme without a store, or a relative path.
    pub fn object(&mut self, url: &str) -> Result<Object, Error> {
        let bad = |reason: String| Error::Url { url: url.to_owned(), reason };
        if !url.contains("://") {
            return self.local(url, url);
        }
        let parsed = Url::parse(url).map_err(|e| bad(e.to_string()))?;
        if parsed.scheme() == "file" {
            let path = parsed.to_file_path().map_err(|()| bad("not a local file".to_owned()))?;
            return self.local(url, path);
        }
        let unserved = |error: object_store::Error| {
            let scheme = parsed.scheme();
            let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            bad(format!(
                "no store for {scheme}:// in this build ({why}); use a path or a file:// URL"
            ))
        };
        let (_, path) = object_store::ObjectStoreScheme::parse(&parsed)
            .map_err(|error| unserved(error.into()))?;
        let authority = parsed[..url::Position::BeforePath].to_owned();
        let store = match self.remote.get(&authority) {
            Some(known) => Arc::clone(known),
            None => {
                // Whoever writes http:// has allowed it.
                let plain = (parsed.scheme() == "http").then_some(("allow_http", "true"));
                let plain = plain.map(|(key, value)| (key.to_owned(), value.to_owned()));
                let options = std::env::vars().chain(plain);
                let (store, _) =
                    object_store::parse_url_opts(&parsed, options).map_err(unserved)?;
                let store: Arc<dyn ObjectStore> = Arc::from(store);
                self.remote.insert(authority, Arc::clone(&store));
                store
            }
        };
        let runtime = Some(self.runtime()?);
        Ok(Object { url: url.to_owned(), store, path, runtime, retry: Retry::default() })
    }

    fn local(&self, url: &str, path: impl AsRef<std::path::Path>) -> Result<Object, Error> {
        let bad = |reason: String| Error::Url { url: url.to_owned(), reason };
        if !path.as_ref().is_absolute() {
            return Err(bad("the path is relative; ranks need an absolute one".to_owned()));
        }
        let path = Path::from_absolute_path(path).map_err(|e| bad(e.to_string()))?;
        let store: Arc<dyn ObjectStore> = Arc::clone(&self.local) as Arc<dyn ObjectStore>;
        Ok(Object { url: url.to_owned(), store, path, runtime: None, retry: Retry::default() })
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
            .map_err(|e| Error::Reader { reason: e.to_string() })?;
        Ok(Arc::clone(self.runtime.insert(Arc::new(runtime))))
    }
}

impl Object {
    /// Returns size and version.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Store`].
    pub fn head(&self) -> Result<ObjectMeta, Error> {
        self.retry(&Cancel::default(), async || self.store.head(&self.path).await)
    }

    /// Returns several ranges of bytes in one request where the store can; `cancel` ends the wait
    /// for a store that is away.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Store`].
    pub fn ranges(&self, ranges: &[Range<u64>], cancel: &Cancel) -> Result<Vec<Bytes>, Error> {
        self.retry(cancel, async || self.store.get_ranges(&self.path, ranges).await)
    }

    /// Returns the whole object, or none when there is none.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn read(&self) -> Result<Option<Bytes>, Error> {
        let request = async || self.store.get(&self.path).await?.bytes().await;
        match self.retry(&Cancel::default(), request) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the whole object, once: for caches, whose loss costs time only.
    ///
    /// # Errors
    /// The store's own.
    pub fn write(&self, bytes: Vec<u8>) -> Result<(), object_store::Error> {
        self.block_on(self.store.put(&self.path, bytes.into())).map(|_| ())
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
    fn retry<T>(
        &self,
        cancel: &Cancel,
        request: impl AsyncFn() -> Result<T, object_store::Error>,
    ) -> Result<T, Error> {
        let start = Instant::now();
        let mut pause = self.retry.first;
        loop {
            let source = match self.block_on(request()) {
                Ok(value) => {
                    progress::advance(Work::Data);
                    return Ok(value);
                }
                Err(object_store::Error::NotFound { .. }) => {
                    return Err(Error::Missing { url: self.url.clone() });
                }
                Err(source) => source,
            };
            let over = start.elapsed() + pause > self.retry.deadline || !is_transient(&source);
            if !over {
                tracing::warn!(url = %self.url, error = %source, ?pause, "store error, will retry");
            }
            if over || cancel.wait(pause) {
                return Err(Error::Store { url: self.url.clone(), source });
            }
            pause = (pause * 2).min(self.retry.longest);
        }
    }

    fn block_on<T>(&self, request: impl Future<Output = T>) -> T {
        match &self.runtime {
            Some(runtime) => runtime.block_on(request),
            None => futures::executor::block_on(request),
        }
    }
}

/// Whether the same request may succeed later: not if the store understood and refused it.
fn is_transient(error: &object_store::Error) -> bool {
    use object_store::Error::{Generic, JoinError};
    if !matches!(error, Generic { .. } | JoinError { .. }) {
        return false;
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = error.source();
    while let Some(error) = cause {
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        let lasting = [ErrorKind::PermissionDenied, ErrorKind::IsADirectory];
        if kind.is_some_and(|kind| lasting.contains(&kind)) {
            return false;
        }
        cause = error.source();
    }
    true
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
