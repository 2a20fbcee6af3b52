//! A store whose errors say what they mean, and whose failed requests are made again.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::context::Context;
use super::error::{self, Error, Kind};
use super::{news, resume, upload};

/// First pause before a request is made again; it doubles up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// Objects that are deleted with one request, where the store can.
const DELETED_AT_ONCE: usize = 1000;

/// For how long a request is made again before its failure counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) usual: Duration,
    /// While the store has never answered.
    pub(super) first: Duration,
}

impl Patience {
    /// For how long a request that fails now is made again.
    pub(super) fn now(self, context: &Context) -> Duration {
        if context.reached() { self.usual } else { self.first }
    }
}

/// See the module.
#[derive(Clone)]
pub(super) struct Guarded {
    inner: Arc<dyn ObjectStore>,
    /// The same store's uploads, where each request of one can be made again.
    parts: Option<Arc<dyn MultipartStore>>,
    pub(super) context: Arc<Context>,
    patience: Option<Patience>,
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
    pub(super) fn new(
        inner: Arc<dyn ObjectStore>,
        parts: Option<Arc<dyn MultipartStore>>,
        context: Context,
    ) -> Self {
        Self { inner, parts, context: Arc::new(context), patience: None }
    }

    /// Returns the same store with patience.
    pub(super) fn patient(&self, patience: Patience) -> Self {
        Self { patience: Some(patience), ..self.clone() }
    }

    /// Returns the store in words.
    pub(super) fn place(&self) -> String {
        self.context.place.clone()
    }

    /// Returns the error with its explanation inside.
    pub(super) fn explained(&self, error: object_store::Error) -> object_store::Error {
        explained(&self.context, error)
    }

    pub(super) fn retries(&self) -> Retries {
        Retries::new(Arc::clone(&self.context), self.patience)
    }

    /// Makes a request until it succeeds, is refused, or patience ends.
    pub(super) async fn run<T, F>(&self, request: impl Fn() -> F + Send + Sync) -> Result<T>
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

fn explained(context: &Context, error: object_store::Error) -> object_store::Error {
    if error::find(&error).is_some() {
        return error;
    }
    let path = match &error {
        object_store::Error::NotFound { path, .. }
        | object_store::Error::AlreadyExists { path, .. }
        | object_store::Error::Precondition { path, .. } => path.clone(),
        _ => String::new(),
    };
    Error::explain(&error, context).into_store_error(&path)
}

/// The pauses of one request.
pub(super) struct Retries {
    context: Arc<Context>,
    patience: Option<Patience>,
    began: Instant,
    pause: Duration,
}

impl Retries {
    pub(super) fn new(context: Arc<Context>, patience: Option<Patience>) -> Self {
        Self { context, patience, began: Instant::now(), pause: FIRST_PAUSE }
    }

    /// Notes that the store answered; patience starts anew.
    pub(super) fn succeeded(&mut self) {
        news::answered(&self.context);
        (self.began, self.pause) = (Instant::now(), FIRST_PAUSE);
    }

    /// Waits before the request is made again.
    ///
    /// # Errors
    /// The explained error, if it is not worth it.
    pub(super) async fn wait_after(&mut self, error: object_store::Error) -> Result<()> {
        let error = explained(&self.context, error);
        if !error::is_transient(&error) {
            if error::find(&error).is_some_and(|error| error.kind.is_answer()) {
                let _ = self.context.answered();
            }
            return Err(error);
        }
        let Some(patience) = self.patience else { return Err(error) };
        let limit = patience.now(&self.context);
        if self.began.elapsed() + self.pause > limit {
            return Err(error);
        }
        if let Some(error) = error::find(&error) {
            news::say_trouble(&self.context, error, limit);
        }
        tokio::time::sleep(spread(self.pause)).await;
        self.pause = (self.pause * 2).min(LAST_PAUSE);
        Ok(())
    }
}

/// Returns between three quarters and five quarters of a pause, so that many do not come at once.
fn spread(pause: Duration) -> Duration {
    let draw = RandomState::new().hash_one(0) % 1024;
    pause.mul_f64(0.75 + draw as f64 / 2048.0)
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
