//! A store that fails, and answers only many requests at once, as a test tells it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result,
};
use tokio::sync::Notify;

/// How long a request waits for others that do not come.
const LIMIT: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Told {
    inner: InMemory,
    /// Requests still to fail.
    pub(super) failures: AtomicU32,
    /// Requests so far.
    pub(super) asked: AtomicUsize,
    /// No request is answered before so many were made.
    pub(super) answers_after: AtomicUsize,
    more: Notify,
}

impl Told {
    /// Returns a new store, behind `memory://NAME/…`.
    pub(super) fn register(name: &str) -> Arc<Self> {
        let told = Arc::new(Self::default());
        let store = Arc::clone(&told) as Arc<dyn ObjectStore>;
        ringmaster_store::register(name, ringmaster_store::Store::of(store));
        told
    }

    pub(super) fn put(&self, path: &str, bytes: Vec<u8>) {
        futures::executor::block_on(self.inner.put(&Path::from(path), bytes.into())).unwrap();
    }

    /// Waits until so many requests were made; returns false if they are not.
    async fn enough(&self) -> bool {
        let enough = async {
            loop {
                let more = self.more.notified();
                let wanted = self.answers_after.load(Ordering::SeqCst);
                if self.asked.load(Ordering::SeqCst) >= wanted {
                    break;
                }
                more.await;
            }
        };
        tokio::time::timeout(LIMIT, enough).await.is_ok()
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store that is told")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Told {
    async fn put_opts(&self, at: &Path, body: PutPayload, o: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(at, body, o).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        o: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, o).await
    }

    async fn get_opts(&self, at: &Path, o: GetOptions) -> Result<GetResult> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.more.notify_waiters();
        if !self.enough().await {
            return Err(Error::NotSupported { source: "too few requests at once".into() });
        }
        let less = |left: u32| left.checked_sub(1);
        if self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok() {
            return Err(Error::Generic { store: "told", source: "busy".into() });
        }
        self.inner.get_opts(at, o).await
    }

    fn delete_stream(
        &self,
        at: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(at)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, o: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, o).await
    }
}
