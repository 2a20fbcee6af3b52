//! A store in memory that answers reads as a test says.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// How reads are answered.
#[async_trait::async_trait]
pub(crate) trait Answers: fmt::Debug + Send + Sync + 'static {
    /// The store's name in messages.
    fn name(&self) -> &str {
        "a test's store"
    }

    /// Answers a request for an object, or for its properties.
    async fn get(&self, objects: &InMemory, at: &Path, how: GetOptions) -> Result<GetResult>;
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Answering<A> {
    pub(crate) objects: InMemory,
    answers: A,
}

impl<A: Answers> Answering<A> {
    /// Returns an empty store.
    pub(crate) fn new(answers: A) -> Arc<Self> {
        Arc::new(Self { objects: InMemory::new(), answers })
    }

    /// Returns an empty store behind `memory://NAME/…`.
    pub(crate) fn registered(name: &str, answers: A) -> Arc<Self> {
        let store = Self::new(answers);
        let opened = Arc::clone(&store) as Arc<dyn ObjectStore>;
        ringmaster_store::register(name, ringmaster_store::Store::of(opened));
        store
    }

    pub(crate) fn add(&self, path: &str, bytes: Vec<u8>) {
        futures::executor::block_on(self.objects.put(&Path::from(path), bytes.into())).unwrap();
    }
}

/// Puts these objects behind `memory://NAME/…`, and returns what answers for them.
pub(super) fn register<A: Answers>(
    name: &str,
    objects: impl IntoIterator<Item = (String, Vec<u8>)>,
    answers: A,
) -> Arc<Answering<A>> {
    let store = Answering::registered(name, answers);
    for (path, bytes) in objects {
        store.add(&path, bytes);
    }
    store
}

/// What the test has told it, and it has met.
impl<A> Deref for Answering<A> {
    type Target = A;

    fn deref(&self) -> &A {
        &self.answers
    }
}

impl<A: Answers> fmt::Display for Answering<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.answers.name())
    }
}

#[async_trait::async_trait]
impl<A: Answers> ObjectStore for Answering<A> {
    async fn put_opts(&self, at: &Path, body: PutPayload, o: PutOptions) -> Result<PutResult> {
        self.objects.put_opts(at, body, o).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        o: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(at, o).await
    }

    async fn get_opts(&self, at: &Path, o: GetOptions) -> Result<GetResult> {
        self.answers.get(&self.objects, at, o).await
    }

    fn delete_stream(
        &self,
        at: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.objects.delete_stream(at)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, o: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, o).await
    }
}
