//! A store whose errors say what they mean, and whose failed requests are made again.

mod upload;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::error::{self, Error};
use super::kind::Kind;
use super::resume;
use super::retries::{Patience, Retries, explained};

/// Objects that are deleted with one request, where the store can.
const DELETED_AT_ONCE: usize = 1000;

/// See the module.
#[derive(Clone)]
pub(crate) struct Guarded {
    inner: Arc<dyn ObjectStore>,
    /// The same store's uploads, where each request of one can be made again.
    parts: Option<Arc<dyn MultipartStore>>,
    pub(crate) context: Arc<Context>,
    patience: Option<Patience>,
    cancel: Option<CancellationToken>,
}

/// Names the place only: what stores print of themselves holds how they authenticate.
impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.context.place).finish()
    }
}

impl fmt::Display for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context.place)
    }
}

impl Guarded {
    pub(crate) fn new(
        inner: Arc<dyn ObjectStore>,
        parts: Option<Arc<dyn MultipartStore>>,
        context: Context,
    ) -> Self {
        Self { inner, parts, context: Arc::new(context), patience: None, cancel: None }
    }

    /// Returns the same store with patience.
    pub(crate) fn patient(&self, patience: Patience) -> Self {
        Self { patience: Some(patience), ..self.clone() }
    }

    /// Returns the same store, whose waits `cancel` ends.
    pub(crate) fn until(self, cancel: &CancellationToken) -> Self {
        Self { cancel: Some(cancel.clone()), ..self }
    }

    /// Returns the store in words.
    pub(crate) fn place(&self) -> String {
        self.context.place.clone()
    }

    /// Returns the error with its explanation inside.
    pub(crate) fn explained(&self, error: object_store::Error) -> object_store::Error {
        explained(&self.context, error)
    }

    pub(crate) fn retries(&self) -> Retries {
        Retries::new(Arc::clone(&self.context), self.patience, self.cancel.clone())
    }

    /// Makes a request until it succeeds, is refused, or patience ends.
    pub(crate) async fn run<T, F>(&self, request: impl Fn() -> F + Send + Sync) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
    {
        let mut retries = self.retries();
        loop {
            match request().await {
                Ok(value) => {
                    retries.succeeded();
                    return Ok(value);
                }
                Err(error) => retries.wait_after(error).await?,
            }
        }
    }
}

impl Guarded {
    /// Asks for an object. The answer to a question for its properties alone has no body, so a missing
    /// bucket looks like a missing object there and a wrong secret like a missing permission: what was
    /// refused so is asked for once more in a way that is answered in words.
    async fn get_in_words(&self, at: &Path, how: &GetOptions) -> Result<GetResult> {
        let error = match self.inner.get_opts(at, how.clone()).await {
            Err(error) if how.head && self.context.scheme.prefix().is_some() => error,
            result => return result,
        };
        let kind = Error::explain(&error, &self.context).kind;
        if !matches!(kind, Kind::Missing | Kind::NoPermission | Kind::Refused) {
            return Err(error);
        }
        let first_byte = GetOptions { head: false, range: Some((0..1).into()), ..how.clone() };
        match self.inner.get_opts(at, first_byte).await {
            Err(in_words) if !error::is_transient(&in_words) => Err(in_words),
            _ => Err(error),
        }
    }
}

#[async_trait]
impl ObjectStore for Guarded {
    async fn put_opts(&self, at: &Path, body: PutPayload, how: PutOptions) -> Result<PutResult> {
        self.run(|| self.inner.put_opts(at, body.clone(), how.clone())).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let Some(parts) = self.parts.clone() else {
            let inner = self.run(|| self.inner.put_multipart_opts(at, how.clone())).await?;
            return Ok(Box::new(upload::Simple::new(self.clone(), at.clone(), inner)));
        };
        let id = self.run(|| parts.create_multipart_opts(at, how.clone())).await?;
        Ok(Box::new(upload::InParts::new(self.clone(), parts, at.clone(), id)))
    }

    async fn get_opts(&self, at: &Path, how: GetOptions) -> Result<GetResult> {
        let mut result = self.run(|| self.get_in_words(at, &how)).await?;
        if let GetResultPayload::Stream(body) = result.payload {
            let rest = resume::Rest::new(&result.meta, result.range.clone(), &how);
            let body = resume::resumed(Arc::clone(&self.inner), self.retries(), rest, body);
            result.payload = GetResultPayload::Stream(body);
        }
        Ok(result)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let guard = self.clone();
        let delete = move |chunk: Vec<Path>| {
            let guard = guard.clone();
            async move {
                let deleted = guard
                    .run(|| {
                        let paths = futures::stream::iter(chunk.clone().into_iter().map(Ok));
                        guard.inner.delete_stream(paths.boxed()).try_collect::<Vec<Path>>()
                    })
                    .await?;
                Ok(futures::stream::iter(deleted.into_iter().map(Ok)))
            }
        };
        locations
            .try_chunks(DELETED_AT_ONCE)
            .map_err(|stopped| stopped.1)
            .and_then(delete)
            .try_flatten()
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        resume::listed(Arc::clone(&self.inner), self.retries(), prefix.cloned())
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let context = Arc::clone(&self.context);
        let listed = self.inner.list_with_offset(prefix, offset);
        listed.map_err(move |error| explained(&context, error)).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.run(|| self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> Result<()> {
        self.run(|| self.inner.copy_opts(from, to, how.clone())).await
    }
}
