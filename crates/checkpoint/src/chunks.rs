//! An object of a checkpoint in memory.

use bytes::Bytes;

use super::layout::CHUNK;

/// An object in memory, as the chunks it was read in.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    /// Each but the last of [`CHUNK`] bytes.
    chunks: Vec<Bytes>,
    len: usize,
}

impl Chunks {
    /// Takes the chunks of an object of `len` bytes, in order.
    pub(crate) fn new(chunks: Vec<Bytes>, len: usize) -> Self {
        Self { chunks, len }
    }

    #[cfg(test)]
    pub(crate) fn of(bytes: Vec<u8>) -> Self {
        let (len, bytes) = (bytes.len(), Bytes::from(bytes));
        let chunks = (0..len).step_by(CHUNK).map(|at| bytes.slice(at..len.min(at + CHUNK)));
        Self { chunks: chunks.collect(), len }
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Copies bytes from `at` on.
    ///
    /// # Panics
    /// When the object ends before `out` is full.
    pub(crate) fn copy_to(&self, mut at: usize, mut out: &mut [u8]) {
        while !out.is_empty() {
            let chunk = &self.chunks[at / CHUNK][at % CHUNK..];
            let (now, rest) = out.split_at_mut(out.len().min(chunk.len()));
            now.copy_from_slice(&chunk[..now.len()]);
            at += now.len();
            out = rest;
        }
    }

    /// Returns everything in one piece.
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        self.chunks.concat()
    }
}
