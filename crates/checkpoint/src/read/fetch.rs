//! Objects on their way out of the store: read in chunks side by side, each verified as it comes.

use std::sync::Arc;

use bytes::Bytes;
use object_store::ObjectStoreExt;
use tokio::task::JoinSet;

use crate::Error;
use crate::chunks::Chunks;
use crate::dir::CheckpointDir;
use crate::layout::{CHUNK, StepName};
use crate::manifest::Object;
use crate::progress;

/// Chunks on their way at once.
const CHUNKS_IN_FLIGHT: usize = 8;

/// What reading an object came to.
#[derive(Debug)]
pub(crate) enum Fetched {
    /// It is what the manifest says.
    Good(Chunks),
    /// It is not, and why.
    Bad(String),
}

/// A chunk that was read.
struct Chunk {
    index: usize,
    content: Result<Bytes, String>,
}

/// Reads an object and holds it against the manifest.
///
/// # Errors
/// A store that fails for another reason than absence.
pub(crate) async fn fetch(
    dir: &CheckpointDir,
    name: StepName,
    object: &Object,
) -> Result<Fetched, Error> {
    if let Some(reason) = misfit(dir, name, object).await? {
        return Ok(Fetched::Bad(reason));
    }
    let object = Arc::new(object.clone());
    let count = object.sums().len();
    let mut chunks = vec![Bytes::new(); count];
    let mut next = 0;
    let mut in_flight = JoinSet::new();
    loop {
        while next < count && in_flight.len() < CHUNKS_IN_FLIGHT {
            in_flight.spawn(chunk(dir.clone(), name, Arc::clone(&object), next));
            next += 1;
        }
        let Some(ended) = in_flight.join_next().await else { break };
        let Chunk { index, content } = ended.expect("reading a chunk does not panic")?;
        progress::advance();
        match content {
            Ok(bytes) => chunks[index] = bytes,
            Err(reason) => return Ok(Fetched::Bad(reason)),
        }
    }
    Ok(Fetched::Good(Chunks::new(chunks, object.size as usize)))
}

/// Returns what about an object contradicts the manifest without reading it, if anything.
async fn misfit(
    dir: &CheckpointDir,
    name: StepName,
    object: &Object,
) -> Result<Option<String>, Error> {
    let size = match dir.store.head(&dir.object(name, &object.name)).await {
        Ok(meta) => meta.size,
        Err(object_store::Error::NotFound { .. }) => {
            return Ok(Some("it does not exist".to_owned()));
        }
        Err(source) => return Err(dir.read_error(name, &object.name, source)),
    };
    if size != object.size {
        return Ok(Some(format!("{size} bytes, the manifest says {}", object.size)));
    }
    Ok(object.miscounted())
}

/// Reads and verifies one chunk.
async fn chunk(
    dir: CheckpointDir,
    name: StepName,
    object: Arc<Object>,
    index: usize,
) -> Result<Chunk, Error> {
    let start = (index * CHUNK) as u64;
    let range = start..object.size.min(start + CHUNK as u64);
    let path = dir.object(name, &object.name);
    let bytes = dir.store.get_range(&path, range.clone()).await;
    let bytes = bytes.map_err(|source| dir.read_error(name, &object.name, source))?;
    let verify = move || {
        let whole = bytes.len() as u64 == range.end - range.start;
        let good = whole && object.verifies(index, &bytes);
        let reason = || format!("checksum of bytes {}..{} differs", range.start, range.end);
        let content = if good { Ok(bytes) } else { Err(reason()) };
        Chunk { index, content }
    };
    Ok(tokio::task::spawn_blocking(verify).await.expect("a checksum does not panic"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ringmaster_proto::v1::Generation;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::write::upload;

    fn name() -> StepName {
        StepName { generation: Generation::new(1, 1), step: 3 }
    }

    fn pattern(len: usize) -> Bytes {
        (0..len).map(|i| (i / 7) as u8).collect::<Vec<u8>>().into()
    }

    async fn stored(dir: &CheckpointDir, bytes: &Bytes) -> Object {
        let alive = CancellationToken::new();
        let stored = upload::put(dir, name(), "object", vec![bytes.clone()], &alive).await;
        let stored = stored.unwrap();
        Object {
            name: stored.name,
            size: stored.size,
            sha256: stored.sha256,
            blake3: stored.blake3,
        }
    }

    #[tokio::test]
    async fn what_is_read_is_what_was_written_whatever_its_length() {
        let dir = CheckpointDir::memory();
        for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5] {
            let bytes = pattern(len);
            let object = stored(&dir, &bytes).await;
            let Fetched::Good(chunks) = fetch(&dir, name(), &object).await.unwrap() else {
                panic!("{len} bytes are damaged")
            };
            assert_eq!(chunks.len(), len);
            assert!(chunks.to_vec() == bytes);
            if len > CHUNK {
                let mut across = [0; 4];
                chunks.copy_to(CHUNK - 3, &mut across);
                assert_eq!(across, bytes[CHUNK - 3..CHUNK + 1]);
            }
        }
    }

    #[tokio::test]
    async fn a_mismatch_says_where_it_is() {
        let dir = CheckpointDir::memory();
        let bytes = pattern(CHUNK + 2);
        let object = stored(&dir, &bytes).await;
        let reason = async |found: Vec<u8>, object: &Object| {
            let path = dir.object(name(), "object");
            dir.store.put(&path, found.into()).await.unwrap();
            match fetch(&dir, name(), object).await.unwrap() {
                Fetched::Bad(reason) => reason,
                Fetched::Good(_) => panic!("not noticed"),
            }
        };
        let mut flipped = bytes.to_vec();
        flipped[CHUNK + 1] ^= 1;
        let found = reason(flipped, &object).await;
        assert_eq!(found, "checksum of bytes 16777216..16777218 differs");
        let found = reason(bytes[1..].to_vec(), &object).await;
        assert_eq!(found, "16777217 bytes, the manifest says 16777218");
        let short = Object { blake3: object.blake3[1..].to_vec(), ..object.clone() };
        let found = reason(bytes.to_vec(), &short).await;
        assert_eq!(found, "the manifest lists 1 checksums for 16777218 bytes");
        dir.delete_all(name()).await.unwrap();
        let Fetched::Bad(found) = fetch(&dir, name(), &object).await.unwrap() else { panic!() };
        assert_eq!(found, "it does not exist");
    }
}
