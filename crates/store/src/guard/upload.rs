//! Uploads in parts, each of whose requests is made again on its own.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    MultipartId, MultipartUpload, ObjectStoreExt, PutPayload, PutResult, Result, UploadPart,
};

use super::Guarded;
use crate::error;
use crate::kind::Kind;

/// An upload whose parts the store numbers by what it is told, so that the same part can be sent
/// twice.
pub(super) struct InParts {
    guard: Guarded,
    store: Arc<dyn MultipartStore>,
    at: Path,
    id: MultipartId,
    size: u64,
    started: usize,
    done: Arc<Mutex<Vec<(usize, PartId)>>>,
}

impl fmt::Debug for InParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InParts").field("at", &self.at).finish_non_exhaustive()
    }
}

impl InParts {
    pub(super) fn new(
        guard: Guarded,
        store: Arc<dyn MultipartStore>,
        at: Path,
        id: MultipartId,
    ) -> Self {
        Self { guard, store, at, id, size: 0, started: 0, done: Arc::default() }
    }

    fn parts(&self) -> Result<Vec<PartId>> {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if done.len() != self.started {
            let reason = format!("{} of {} parts are stored", done.len(), self.started);
            return Err(object_store::Error::Generic { store: "store", source: reason.into() });
        }
        done.sort_by_key(|(number, _)| *number);
        Ok(done.into_iter().map(|(_, part)| part).collect())
    }
}

#[async_trait]
impl MultipartUpload for InParts {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        self.size += part.content_length() as u64;
        let number = self.started;
        self.started += 1;
        let (guard, store) = (self.guard.clone(), Arc::clone(&self.store));
        let (at, id, done) = (self.at.clone(), self.id.clone(), Arc::clone(&self.done));
        Box::pin(async move {
            let stored = guard.run(|| store.put_part(&at, &id, number, part.clone())).await?;
            done.lock().unwrap_or_else(PoisonError::into_inner).push((number, stored));
            Ok(())
        })
    }

    /// Completes the object. The answer to a completion may be lost, and the store then knows no
    /// such upload when it is asked again: what counts is whether the object is there.
    async fn complete(&mut self) -> Result<PutResult> {
        let parts = self.parts()?;
        let mut retries = self.guard.retries();
        loop {
            let error = match self.store.complete_multipart(&self.at, &self.id, parts.clone()).await
            {
                Ok(result) => {
                    retries.succeeded();
                    return named(&self.guard, &self.at, result).await;
                }
                Err(error) => self.guard.explained(error),
            };
            let unknown = error::find(&error).is_some_and(|known| known.kind == Kind::Missing);
            if (unknown || error::is_transient(&error))
                && is_there(&self.guard, &self.at, self.size).await?
            {
                return put_result(&self.guard, &self.at).await;
            }
            retries.wait_after(error).await?;
        }
    }

    async fn abort(&mut self) -> Result<()> {
        // What is left is listed and ended later; nobody waits for a store in trouble here.
        let aborted = self.store.abort_multipart(&self.at, &self.id).await;
        aborted.map_err(|error| self.guard.explained(error))
    }
}

/// An upload as the store makes it: local files, memory.
#[derive(Debug)]
pub(super) struct Simple {
    guard: Guarded,
    at: Path,
    inner: Box<dyn MultipartUpload>,
    size: u64,
}

impl Simple {
    pub(super) fn new(guard: Guarded, at: Path, inner: Box<dyn MultipartUpload>) -> Self {
        Self { guard, at, inner, size: 0 }
    }
}

#[async_trait]
impl MultipartUpload for Simple {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        self.size += part.content_length() as u64;
        let guard = self.guard.clone();
        let sent = self.inner.put_part(part);
        Box::pin(async move { sent.await.map_err(|error| guard.explained(error)) })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let error = match self.inner.complete().await {
            Ok(result) => return named(&self.guard, &self.at, result).await,
            Err(error) => self.guard.explained(error),
        };
        // It cannot be asked twice; if only the answer was lost the object is there.
        if error::is_transient(&error) && is_there(&self.guard, &self.at, self.size).await? {
            return put_result(&self.guard, &self.at).await;
        }
        Err(error)
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await.map_err(|error| self.guard.explained(error))
    }
}

/// Some stores complete an upload without saying which version it is now.
async fn named(store: &Guarded, at: &Path, result: PutResult) -> Result<PutResult> {
    match result.e_tag.as_deref() {
        Some("") => put_result(store, at).await,
        _ => Ok(result),
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
