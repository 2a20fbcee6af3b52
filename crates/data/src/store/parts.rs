//! Parts of an object, of the version that was asked about first.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::Range;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::{GetOptions, GetResult, GetResultPayload, ObjectMeta, ObjectStoreExt as _};
use ringmaster_store::{self as store, Scheme};
use tokio_util::sync::CancellationToken;

use super::{Object, version};
use crate::Error;

/// Requests for parts of one object at a time.
const AT_ONCE: usize = 8;

impl Object {
    /// Several requests at a time, each made again by itself.
    pub(super) async fn parts(
        &self,
        ranges: &[Range<u64>],
        cancel: &CancellationToken,
    ) -> Result<Vec<Bytes>, Error> {
        let part = |range: Range<u64>| async move {
            let request = || self.one_part(range.clone());
            let part = self.store.insist(self.patience, cancel, request).await;
            part.map_err(|error| self.failed_at(&range, error))
        };
        futures::stream::iter(ranges.iter().cloned())
            .map(part)
            .buffered(AT_ONCE)
            .try_collect()
            .await
    }

    async fn one_part(&self, range: Range<u64>) -> object_store::Result<Bytes> {
        let how = GetOptions {
            range: Some(range.clone().into()),
            if_match: self.first.get().and_then(version::condition),
            ..GetOptions::default()
        };
        let result = match self.store.objects().get_opts(&self.path, how).await {
            Ok(result) => result,
            Err(error) => return Err(self.why(error).await),
        };
        self.check(&result)?;
        let bytes = result.bytes().await?;
        if bytes.len() as u64 == range.end - range.start {
            return Ok(bytes);
        }
        let reason = format!("{} bytes came for bytes {range:?}", bytes.len());
        Err(generic(io::Error::new(io::ErrorKind::UnexpectedEof, reason)))
    }

    /// All ranges of a file out of one opening.
    pub(super) async fn parts_of_file(
        &self,
        ranges: &[Range<u64>],
        cancel: &CancellationToken,
    ) -> Result<Vec<Bytes>, Error> {
        let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else {
            return Ok(Vec::new());
        };
        let request = || async {
            let objects = self.store.objects();
            let result = objects.get_opts(&self.path, GetOptions::default()).await?;
            self.check(&result)?;
            match result.payload {
                GetResultPayload::File(mut file, _) => {
                    ranges.iter().map(|range| read_range(&mut file, range)).collect()
                }
                GetResultPayload::Stream(_) => {
                    futures::stream::iter(ranges.iter().cloned())
                        .then(|range| self.one_part(range))
                        .try_collect()
                        .await
                }
            }
        };
        let parts = self.store.insist(self.patience, cancel, request).await;
        parts.map_err(|error| self.failed_at(&(first.start..last.end), error))
    }

    /// Checks that it is the version that was asked about first.
    fn check(&self, result: &GetResult) -> object_store::Result<()> {
        match self.first.get().and_then(|first| self.replaced(first, &result.meta)) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Returns the error, or that the object was replaced: a store that knows no versions refuses to read beyond the
    /// end of a shorter one.
    async fn why(&self, error: object_store::Error) -> object_store::Error {
        use object_store::Error::{NotFound, Precondition};
        let Some(first) = self.first.get() else { return error };
        if matches!(error, NotFound { .. } | Precondition { .. }) || store::is_transient(&error) {
            return error;
        }
        match self.store.objects().head(&self.path).await {
            Ok(now) => self.replaced(first, &now).unwrap_or(error),
            Err(_) => error,
        }
    }

    fn replaced(&self, first: &ObjectMeta, now: &ObjectMeta) -> Option<object_store::Error> {
        let reason = version::replaced(first, now, self.store.scheme() == Scheme::File)?;
        let (path, source) = (self.path.to_string(), reason.into());
        Some(object_store::Error::Precondition { path, source })
    }

    fn failed_at(&self, range: &Range<u64>, error: object_store::Error) -> Error {
        match self.failed(error) {
            Error::Store { url, source } => {
                Error::Read { url, from: range.start, to: range.end, source }
            }
            other => other,
        }
    }
}

fn read_range(file: &mut File, range: &Range<u64>) -> object_store::Result<Bytes> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    let read = file.seek(SeekFrom::Start(range.start)).and_then(|_| file.read_exact(&mut bytes));
    read.map_err(generic)?;
    Ok(bytes.into())
}

fn generic(error: io::Error) -> object_store::Error {
    object_store::Error::Generic { store: "store", source: Box::new(error) }
}
