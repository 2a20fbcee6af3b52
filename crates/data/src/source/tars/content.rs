//! The bytes of a shard, wherever they lie, and a stream over them.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::store::Object;

/// Bytes fetched at a time while reading headers from a disk, and over a network, where every request waits: 30 ms are
/// less than a tenth of what 32 MiB take at 100 MB/s.
const READ_AHEAD: [u64; 2] = [256 << 10, 32 << 20];

/// Where the bytes of a shard are.
#[derive(Debug, Clone)]
pub(super) enum Content<'a> {
    /// In its store, as many.
    Stored {
        shard: &'a Object,
        len: u64,
        /// Ends the wait for a store that is away.
        cancel: &'a CancellationToken,
    },
    /// In memory.
    Unpacked(Bytes),
}

impl Content<'_> {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Stored { len, .. } => *len,
            Self::Unpacked(bytes) => bytes.len() as u64,
        }
    }

    /// Returns several ranges, which lie within the shard.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) fn ranges(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, Error> {
        let whole = match self {
            Self::Stored { shard, cancel, .. } => return shard.ranges(ranges, cancel),
            Self::Unpacked(whole) => whole,
        };
        let taken: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        // Slices keep the whole shard in memory, which is worth it for most of one only.
        let is_most = taken > self.len() / 2;
        let part = |range: &Range<u64>| {
            let part = range.start as usize..range.end as usize;
            if is_most { whole.slice(part) } else { Bytes::copy_from_slice(&whole[part]) }
        };
        Ok(ranges.iter().map(part).collect())
    }

    /// Returns one range, which lies within the shard.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) fn range(&self, range: Range<u64>) -> Result<Bytes, Error> {
        let parts = self.ranges(std::slice::from_ref(&range))?;
        Ok(parts.into_iter().next().unwrap_or_default())
    }

    /// Returns the bytes that it begins with, as many as are fetched at a time.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) fn beginning(&self) -> Result<Bytes, Error> {
        self.from(0)
    }

    /// Returns the bytes from `offset` on, as many as are fetched at a time.
    fn from(&self, offset: u64) -> Result<Bytes, Error> {
        let many = match self {
            Self::Stored { shard, .. } => READ_AHEAD[usize::from(shard.is_remote())],
            Self::Unpacked(whole) => return Ok(whole.slice(offset as usize..)),
        };
        self.range(offset..self.len().min(offset.saturating_add(many)))
    }
}

/// A shard as a seekable stream, fetched in pieces.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) content: &'a Content<'a>,
    position: u64,
    /// Offset of `buffer` in the shard.
    start: u64,
    buffer: Bytes,
    /// The store's error, which `io::Error` would flatten.
    pub(super) failed: Option<Error>,
}

impl<'a> Reader<'a> {
    /// Returns a stream over content that begins with these bytes.
    pub(super) fn new(content: &'a Content<'a>, beginning: Bytes) -> Self {
        Self { content, position: 0, start: 0, buffer: beginning, failed: None }
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.content.len() || out.is_empty() {
            return Ok(0);
        }
        let buffered = self.start..self.start + self.buffer.len() as u64;
        if !buffered.contains(&self.position) {
            self.buffer = self.content.from(self.position).map_err(|error| {
                self.failed = Some(error);
                io::Error::other("store error")
            })?;
            self.start = self.position;
        }
        let from = (self.position - self.start) as usize;
        let n = out.len().min(self.buffer.len() - from);
        out[..n].copy_from_slice(&self.buffer[from..from + n]);
        self.position += n as u64;
        Ok(n)
    }
}

impl Seek for Reader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.content.len().checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = target.ok_or_else(|| io::Error::other("seek before the start"))?;
        Ok(self.position)
    }
}
