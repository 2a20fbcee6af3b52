//! An object on its way into the store: in parts side by side, each hashed while it travels.

use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload, UploadPart};
use ringmaster_proto::v1::StoredObject;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::checksum::Hasher;
use crate::dir::CheckpointDir;
use crate::layout::{CHUNK, StepName};
use crate::progress;

/// Parts on their way at once. They are views of the snapshot and cost no memory of their own.
const PARTS_IN_FLIGHT: usize = 4;

/// Writes one object made of `pieces`; nothing is visible before it returns, and nothing is left
/// behind when it fails. Ends early once `abandon` is cancelled, whatever it waits for: what it writes is
/// wanted no more.
///
/// # Errors
/// [`Error::Abandoned`], or the store's.
pub(crate) async fn put(
    dir: &CheckpointDir,
    checkpoint: StepName,
    name: &str,
    pieces: Vec<Bytes>,
    abandon: &CancellationToken,
) -> Result<StoredObject, Error> {
    let parts = parts(pieces);
    let size = parts.iter().map(|part| part.content_length() as u64).sum();
    let path = dir.object(checkpoint, name);
    let stored = match parts.len() {
        // In one request, which is atomic too.
        0 | 1 => put_whole(dir, &path, parts, abandon).await,
        _ => put_parts(dir, &path, parts, abandon).await,
    };
    let blake3 = stored.map_err(|failure| match failure {
        Failure::Abandoned => Error::Abandoned { step: checkpoint.step },
        Failure::Store(source) => Error::Store {
            action: "write",
            object: dir.object_url(checkpoint, name),
            source: source.into(),
        },
    })?;
    progress::advance();
    Ok(StoredObject { name: name.to_owned(), size, sha256: Vec::new(), blake3 })
}

/// Why an object was not stored.
enum Failure {
    Abandoned,
    Store(object_store::Error),
}

impl From<object_store::Error> for Failure {
    fn from(source: object_store::Error) -> Self {
        Self::Store(source)
    }
}

/// Waits for the store or for the abandonment, whichever comes first; a request that has ended counts even
/// then.
async fn unless_abandoned<T>(
    abandon: &CancellationToken,
    request: impl Future<Output = object_store::Result<T>>,
) -> Result<T, Failure> {
    match abandon.run_until_cancelled(request).await {
        Some(result) => Ok(result?),
        None => Err(Failure::Abandoned),
    }
}

/// Cuts a sequence of pieces into parts of [`CHUNK`] bytes, the last excepted, without copying.
fn parts(pieces: Vec<Bytes>) -> Vec<PutPayload> {
    let mut parts = Vec::new();
    let (mut part, mut len) = (Vec::new(), 0);
    for mut piece in pieces {
        while !piece.is_empty() {
            let now = piece.split_to(piece.len().min(CHUNK - len));
            len += now.len();
            part.push(now);
            if len == CHUNK {
                parts.push(PutPayload::from_iter(part.drain(..)));
                len = 0;
            }
        }
    }
    if len > 0 {
        parts.push(PutPayload::from_iter(part));
    }
    parts
}

/// Returns the checksum of an object of at most one part.
async fn put_whole(
    dir: &CheckpointDir,
    path: &Path,
    mut parts: Vec<PutPayload>,
    abandon: &CancellationToken,
) -> Result<Vec<String>, Failure> {
    let (payload, sums) = match parts.pop() {
        Some(payload) => (payload.clone(), vec![hashed(payload).await]),
        None => (PutPayload::new(), Vec::new()),
    };
    unless_abandoned(abandon, dir.store.put(path, payload)).await?;
    Ok(sums)
}

/// Returns the checksum of every part.
async fn put_parts(
    dir: &CheckpointDir,
    path: &Path,
    parts: Vec<PutPayload>,
    abandon: &CancellationToken,
) -> Result<Vec<String>, Failure> {
    let mut upload = unless_abandoned(abandon, dir.store.put_multipart(path)).await?;
    let result = match send_parts(upload.as_mut(), parts, abandon).await {
        Ok(sums) => unless_abandoned(abandon, upload.complete()).await.map(|_| sums),
        Err(failure) => Err(failure),
    };
    if result.is_err() {
        // Best effort: a later checkpoint clears the prefix, unfinished uploads included.
        let _ = upload.abort().await;
    }
    result
}

async fn send_parts(
    upload: &mut dyn MultipartUpload,
    parts: Vec<PutPayload>,
    abandon: &CancellationToken,
) -> Result<Vec<String>, Failure> {
    let mut sums = vec![String::new(); parts.len()];
    let mut parts = parts.into_iter().enumerate();
    // Dropping it stops what is in flight.
    let mut in_flight = JoinSet::new();
    loop {
        while in_flight.len() < PARTS_IN_FLIGHT
            && let Some((index, part)) = parts.next()
        {
            in_flight.spawn(send_part(index, part.clone(), upload.put_part(part)));
        }
        if in_flight.is_empty() {
            return Ok(sums);
        }
        let ended = async {
            let ended = in_flight.join_next().await.expect("parts are in flight");
            ended.expect("sending a part does not panic")
        };
        let (index, sum) = unless_abandoned(abandon, ended).await?;
        sums[index] = sum;
        progress::advance();
    }
}

/// Hashes a part while it travels.
async fn send_part(
    index: usize,
    part: PutPayload,
    travelling: UploadPart,
) -> object_store::Result<(usize, String)> {
    let (sum, sent) = tokio::join!(hashed(part), travelling);
    sent.map(|()| (index, sum))
}

/// Returns the checksum of a part, from a thread that may compute for long.
async fn hashed(part: PutPayload) -> String {
    let hash = move || {
        let mut hasher = Hasher::current();
        part.iter().for_each(|piece| hasher.update(piece));
        hasher.finish()
    };
    tokio::task::spawn_blocking(hash).await.expect("a checksum does not panic")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ringmaster_proto::v1::Generation;

    use super::*;

    fn name() -> StepName {
        StepName { generation: Generation::new(1, 1), step: 3 }
    }

    #[tokio::test]
    async fn an_object_is_hashed_in_chunks_whatever_the_pieces_were() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Bytes = (0..2 * CHUNK + 5).map(|i| (i / 7) as u8).collect::<Vec<u8>>().into();
        let expected: Vec<String> =
            bytes.chunks(CHUNK).map(|chunk| blake3::hash(chunk).to_hex().to_string()).collect();
        for dir in
            [CheckpointDir::memory(), CheckpointDir::open(folder.path().to_str().unwrap()).unwrap()]
        {
            let alive = CancellationToken::new();
            for cuts in [vec![], vec![3, CHUNK + 9], vec![CHUNK, 2 * CHUNK], vec![5, 5, 6]] {
                let ends = cuts.iter().copied().chain([bytes.len()]);
                let starts = [0].into_iter().chain(cuts.iter().copied());
                let pieces = starts.zip(ends).map(|(start, end)| bytes.slice(start..end));
                let stored = put(&dir, name(), "object", pieces.collect(), &alive).await.unwrap();
                assert_eq!((stored.size, &stored.blake3), (bytes.len() as u64, &expected));
                assert!(dir.text(name(), "object").await.unwrap().unwrap() == bytes);
            }
        }
    }

    #[tokio::test]
    async fn an_abandoned_upload_leaves_no_object() {
        let folder = tempfile::tempdir().unwrap();
        let dir = CheckpointDir::open(folder.path().to_str().unwrap()).unwrap();
        let abandon = CancellationToken::new();
        abandon.cancel();
        for len in [3, 3 * CHUNK] {
            let pieces = vec![Bytes::from(vec![1; len])];
            let error = put(&dir, name(), "object", pieces, &abandon).await.unwrap_err();
            assert!(matches!(error, Error::Abandoned { step: 3 }), "{error}");
            assert!(dir.text(name(), "object").await.unwrap().is_none());
        }
        assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none(), "nothing is staged");
    }

    #[tokio::test]
    async fn who_waits_for_the_store_is_woken_by_the_abandonment() {
        let abandon = CancellationToken::new();
        let request = std::future::pending::<object_store::Result<()>>();
        let waiting = unless_abandoned(&abandon, request);
        let (outcome, ()) = tokio::join!(waiting, async { abandon.cancel() });
        assert!(matches!(outcome, Err(Failure::Abandoned)));
    }
}
