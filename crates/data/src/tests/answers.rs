//! A store in memory that answers reads as a test says.

use std::fmt;

use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::*;

/// How reads are answered.
#[async_trait::async_trait]
pub(super) trait Answers: fmt::Debug + Send + Sync + 'static {
    /// Answers a request for an object, or for its properties.
    async fn get(&self, objects: &InMemory, at: &Path, how: GetOptions) -> Result<GetResult>;
}

/// Puts these objects behind `memory://NAME/…`, and returns what answers for them.
pub(super) fn register<A: Answers>(
    name: &str,
    objects: impl IntoIterator<Item = (String, Vec<u8>)>,
    answers: A,
) -> Arc<A> {
    let (store, answers) = (InMemory::new(), Arc::new(answers));
    for (path, bytes) in objects {
        let put = async { store.put(&Path::from(path), bytes.into()).await };
        futures::executor::block_on(put).unwrap();
    }
    let store = Answering { objects: store, answers: Arc::clone(&answers) };
    ringmaster_store::register(name, ringmaster_store::Store::of(Arc::new(store)));
    answers
}

#[derive(Debug)]
struct Answering<A> {
    objects: InMemory,
    answers: Arc<A>,
}

impl<A> fmt::Display for Answering<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a test's store")
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
