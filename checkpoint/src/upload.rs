//! An object on its way into the store: streamed in parts, hashed as it goes.

use std::sync::atomic::{AtomicBool, Ordering};

use object_store::{ObjectStoreExt, WriteMultipart};
use ringmaster_proto::v1::StoredObject;
use sha2::{Digest, Sha256};

use super::Error;
use super::layout::StepName;
use super::place::Place;
use crate::progress;

/// Bytes under one checksum, and of one part of an upload.
pub(crate) const CHUNK: usize = 16 << 20;
/// Parts on their way at once: bounds the memory beside the snapshot to 64 MiB.
const PARTS_IN_FLIGHT: usize = 4;

/// Writes one object; nothing is visible before [`Upload::finish`].
pub(crate) struct Upload<'a> {
    name: String,
    step: u64,
    url: String,
    parts: WriteMultipart,
    hasher: Sha256,
    /// Bytes in `hasher`, below [`CHUNK`].
    hashed: usize,
    size: u64,
    sha256: Vec<String>,
    abandoned: &'a AtomicBool,
}

impl<'a> Upload<'a> {
    /// Starts an object; it gives up once `abandoned` is set.
    pub(crate) async fn start(
        place: &Place,
        checkpoint: StepName,
        name: &str,
        abandoned: &'a AtomicBool,
    ) -> Result<Self, Error> {
        let url = place.object_url(checkpoint, name);
        let parts = place.store.put_multipart(&place.object(checkpoint, name)).await;
        let parts = parts.map_err(|source| write_error(&url, source))?;
        Ok(Self {
            name: name.to_owned(),
            step: checkpoint.step,
            url,
            parts: WriteMultipart::new_with_chunk_size(parts, CHUNK),
            hasher: Sha256::new(),
            hashed: 0,
            size: 0,
            sha256: Vec::new(),
            abandoned,
        })
    }

    /// Appends bytes.
    pub(crate) async fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            if self.abandoned.load(Ordering::Relaxed) {
                return Err(Error::Abandoned { step: self.step });
            }
            let capacity = self.parts.wait_for_capacity(PARTS_IN_FLIGHT).await;
            capacity.map_err(|source| write_error(&self.url, source))?;
            let (now, rest) = bytes.split_at(bytes.len().min(CHUNK - self.hashed));
            self.parts.write(now);
            progress::advance();
            self.hasher.update(now);
            self.hashed += now.len();
            self.size += now.len() as u64;
            if self.hashed == CHUNK {
                self.end_chunk();
            }
            bytes = rest;
        }
        Ok(())
    }

    /// Makes the object visible and durable.
    pub(crate) async fn finish(mut self) -> Result<StoredObject, Error> {
        if self.hashed > 0 {
            self.end_chunk();
        }
        self.parts.finish().await.map_err(|source| write_error(&self.url, source))?;
        progress::advance();
        Ok(StoredObject { name: self.name, size: self.size, sha256: self.sha256 })
    }

    fn end_chunk(&mut self) {
        self.sha256.push(hex::encode(self.hasher.finalize_reset()));
        self.hashed = 0;
    }
}

fn write_error(url: &str, source: object_store::Error) -> Error {
    Error::Store { action: "write", object: url.to_owned(), source: source.into() }
}

/// Returns what of `bytes` is not what the manifest says, if anything.
pub(crate) fn mismatch(bytes: &[u8], size: u64, sha256: &[String]) -> Option<String> {
    if bytes.len() as u64 != size {
        return Some(format!("{} bytes, the manifest says {size}", bytes.len()));
    }
    if bytes.chunks(CHUNK).len() != sha256.len() {
        return Some(format!("the manifest lists {} checksums for {size} bytes", sha256.len()));
    }
    let wrong = bytes
        .chunks(CHUNK)
        .zip(sha256)
        .position(|(chunk, expected)| hex::encode(Sha256::digest(chunk)) != *expected)?;
    let start = wrong * CHUNK;
    let end = bytes.len().min(start + CHUNK);
    Some(format!("checksum of bytes {start}..{end} differs"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ringmaster_proto::v1::Generation;

    use super::*;

    #[tokio::test]
    async fn an_object_is_hashed_in_chunks_whatever_the_writes_were() {
        let folder = tempfile::tempdir().unwrap();
        let name = StepName { generation: Generation::new(1, 1), step: 3 };
        let bytes: Vec<u8> = (0..2 * CHUNK + 5).map(|i| (i / 7) as u8).collect();
        for place in [Place::memory(), Place::open(folder.path().to_str().unwrap()).unwrap()] {
            let alive = AtomicBool::new(false);
            let mut upload = Upload::start(&place, name, "object", &alive).await.unwrap();
            for part in [&bytes[..3], &bytes[3..CHUNK + 9], &bytes[CHUNK + 9..]] {
                upload.write(part).await.unwrap();
            }
            let stored = upload.finish().await.unwrap();
            assert_eq!((stored.size, stored.sha256.len()), (bytes.len() as u64, 3));
            let back = place.text(name, "object").await.unwrap().unwrap();
            assert!(back == bytes);
            assert_eq!(mismatch(&back, stored.size, &stored.sha256), None);
        }
    }

    #[test]
    fn a_mismatch_says_where_it_is() {
        let bytes = vec![7; CHUNK + 2];
        let good: Vec<String> =
            bytes.chunks(CHUNK).map(|chunk| hex::encode(Sha256::digest(chunk))).collect();
        let size = bytes.len() as u64;
        let mut flipped = bytes.clone();
        flipped[CHUNK + 1] ^= 1;
        let reason = mismatch(&flipped, size, &good).unwrap();
        assert_eq!(reason, "checksum of bytes 16777216..16777218 differs");
        let reason = mismatch(&bytes[1..], size, &good).unwrap();
        assert_eq!(reason, "16777217 bytes, the manifest says 16777218");
        assert!(mismatch(&bytes, size, &good[1..]).is_some());
        assert_eq!(mismatch(&[], 0, &[]), None);
    }

    #[tokio::test]
    async fn an_abandoned_upload_leaves_no_object() {
        let name = StepName { generation: Generation::new(1, 1), step: 3 };
        let place = Place::memory();
        let abandoned = AtomicBool::new(true);
        let mut upload = Upload::start(&place, name, "object", &abandoned).await.unwrap();
        let error = upload.write(b"abc").await.unwrap_err();
        assert!(matches!(error, Error::Abandoned { step: 3 }), "{error}");
        drop(upload);
        assert!(place.text(name, "object").await.unwrap().is_none());
    }
}
