//! A store whose errors say what they mean, and whose failed requests are made again.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::retry::{RetryContext, RetryPolicy};
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    UploadPart,
};

use super::context::Context;
use super::error::{self, Error, Kind};
use super::resume;

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

/// See the module.
#[derive(Clone)]
pub(super) struct Guarded {
    inner: Arc<dyn ObjectStore>,
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
    pub(super) fn new(inner: Arc<dyn ObjectStore>, context: Context) -> Self {
        Self { inner, context: Arc::new(context), patience: None }
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

    fn retries(&self) -> Retries {
        Retries::new(Arc::clone(&self.context), self.patience)
    }

    /// Makes a request until it succeeds, is refused, or patience ends.
    async fn run<T, F>(&self, request: impl Fn() -> F + Send + Sync) -> Result<T>
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
        if let Some(away) = self.context.answered() {
            tracing::info!(
                store = self.context.place,
                seconds = away.as_secs_f64(),
                "the store answers again"
            );
        }
        (self.began, self.pause) = (Instant::now(), FIRST_PAUSE);
    }

    /// Waits before the request is made again.
    ///
    /// # Errors
    /// The explained error, if it is not worth it.
    pub(super) async fn wait_after(&mut self, error: object_store::Error) -> Result<()> {
        let error = explained(&self.context, error);
        if !error::is_transient(&error) {
            let _ = self.context.answered();
            return Err(error);
        }
        let Some(patience) = self.patience else { return Err(error) };
        let limit = if self.context.reached() { patience.usual } else { patience.first };
        if self.began.elapsed() + self.pause > limit {
            return Err(error);
        }
        if self.context.failed() {
            let reason = error::find(&error).map_or_else(String::new, ToString::to_string);
            let seconds = limit.as_secs();
            tracing::warn!(reason, "the store is in trouble; trying again for up to {seconds} s");
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

/// The pauses between attempts at one part of an upload, made by the library.
#[derive(Debug)]
struct PartPolicy {
    context: Arc<Context>,
    patience: Patience,
}

#[async_trait]
impl RetryPolicy for PartPolicy {
    async fn retry(&self, attempt: RetryContext) -> bool {
        use object_store::retry::RetryFailure::{Status, Transport};
        let worth_it = match attempt.failure {
            Status(status) => {
                let lasting = [501, 505, 507];
                let status = status.as_u16();
                // 400: what arrived is not what was sent. It is looked at again when the part fails.
                (status == 408 || status == 429 || status >= 500) && !lasting.contains(&status)
            }
            Transport(_) => true,
            _ => false,
        };
        let doublings = u32::try_from(attempt.attempt).unwrap_or(u32::MAX).min(8);
        let pause = (FIRST_PAUSE * 2_u32.pow(doublings)).min(LAST_PAUSE);
        let limit = if self.context.reached() { self.patience.usual } else { self.patience.first };
        if !worth_it || attempt.elapsed + pause > limit {
            return false;
        }
        if self.context.failed() {
            let (store, seconds) = (&self.context.place, limit.as_secs());
            tracing::warn!(
                store,
                reason = ?attempt.failure,
                "the store takes no part of an upload; trying again for up to {seconds} s"
            );
        }
        tokio::time::sleep(spread(pause)).await;
        true
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
        let how = match self.patience {
            Some(patience) => {
                let context = Arc::clone(&self.context);
                how.with_retry_policy(Arc::new(PartPolicy { context, patience }))
            }
            None => how,
        };
        let inner = self.run(|| self.inner.put_multipart_opts(at, how.clone())).await?;
        let (guard, at) = (self.clone(), at.clone());
        Ok(Box::new(GuardedUpload { guard, at, inner, size: 0 }))
    }

    async fn get_opts(&self, at: &Path, how: GetOptions) -> Result<GetResult> {
        let mut result = self.run(|| self.inner.get_opts(at, how.clone())).await?;
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

/// An object on its way, in parts.
#[derive(Debug)]
struct GuardedUpload {
    guard: Guarded,
    at: Path,
    inner: Box<dyn MultipartUpload>,
    size: u64,
}

#[async_trait]
impl MultipartUpload for GuardedUpload {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        self.size += part.content_length() as u64;
        let context = Arc::clone(&self.guard.context);
        let sent = self.inner.put_part(part);
        Box::pin(async move {
            match sent.await {
                Ok(()) => {
                    let _ = context.answered();
                    Ok(())
                }
                Err(error) => Err(explained(&context, error)),
            }
        })
    }

    /// Completes the object. The answer to a completion may be lost, and the store then knows no
    /// such upload when it is asked again: what counts is whether the object is there.
    async fn complete(&mut self) -> Result<PutResult> {
        let mut retries = self.guard.retries();
        let mut again = false;
        let mut result = loop {
            match self.inner.complete().await {
                Ok(result) => {
                    retries.succeeded();
                    break result;
                }
                Err(error) => {
                    let error = self.guard.explained(error);
                    let lost = error::find(&error).is_some_and(|known| known.kind == Kind::Missing);
                    if again && lost && is_there(&self.guard, &self.at, self.size).await? {
                        break put_result(&self.guard, &self.at).await?;
                    }
                    retries.wait_after(error).await?;
                    again = true;
                }
            }
        };
        // Some stores complete an upload without saying which version it is now.
        if result.e_tag.as_deref() == Some("") {
            result = put_result(&self.guard, &self.at).await?;
        }
        Ok(result)
    }

    async fn abort(&mut self) -> Result<()> {
        // What is left is listed and ended later; nobody waits for a store in trouble here.
        self.inner.abort().await.map_err(|error| self.guard.explained(error))
    }
}

async fn is_there(store: &Guarded, at: &Path, size: u64) -> Result<bool> {
    match store.head(at).await {
        Ok(meta) => Ok(meta.size == size),
        Err(object_store::Error::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn put_result(store: &Guarded, at: &Path) -> Result<PutResult> {
    let meta = store.head(at).await?;
    Ok(PutResult { e_tag: meta.e_tag, version: meta.version, extensions: Default::default() })
}
