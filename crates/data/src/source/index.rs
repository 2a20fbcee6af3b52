//! What is where in a tar shard: built once by reading its headers, then every sample is a range.

use std::io::{self, Read, Seek, SeekFrom};
use std::num::NonZeroU64;
use std::ops::Range;

use bytes::Bytes;
use ringmaster_weights::found;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::store::Object;

/// Bytes fetched at a time while reading headers from a disk, and over a network, where every request waits.
const READ_AHEAD: [u64; 2] = [256 << 10, 8 << 20];

/// Extensions of the members that make a sample, lower-case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Tried in this order for the image.
    pub(super) image: Vec<String>,
    /// Holds the caption.
    pub(super) text: String,
}

/// Where a member's bytes lie in the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// No member starts at 0: a header stands before it.
    offset: NonZeroU64,
    len: u64,
}

impl Span {
    /// Returns the bytes' offsets in the shard.
    pub(super) fn range(&self) -> Range<u64> {
        self.offset.get()..self.offset.get() + self.len
    }
}

/// Consecutive members that share a key, as webdataset groups them: 40 bytes and the key, since
/// many shards are open at once and each may hold ten thousand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    /// Where the key ends in [`Index::keys`]; it starts where the one before ends.
    key_end: usize,
    image: Option<Span>,
    text: Option<Span>,
}

/// The samples of a shard, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    entries: Vec<Entry>,
    /// The keys, end to end.
    keys: String,
    /// Where and why the headers end early, when they do: what follows in the shard is lost.
    pub(super) broken: Option<String>,
}

/// Characters of a tar reader's message that are shown: it may quote the shard's bytes.
const DETAIL_CHARS: usize = 120;
/// Unit of a tar.
const BLOCK: u64 = 512;

impl Index {
    /// Reads the headers of `shard`, of `len` bytes.
    ///
    /// # Errors
    /// When the store fails; a damaged tar is not an error but [`Index::broken`].
    pub(super) fn read(
        shard: &Object,
        len: u64,
        wanted: &Wanted,
        cancel: &CancellationToken,
    ) -> Result<Self, Error> {
        let mut reader = RangeReader {
            shard,
            cancel,
            len,
            position: 0,
            start: 0,
            buffer: Bytes::new(),
            failed: None,
        };
        let mut index = Self::default();
        let mut next = 0;
        let broken = index.collect(&mut reader, wanted, &mut next).err();
        if let Some(error) = reader.failed {
            return Err(error);
        }
        let first = if reader.start == 0 { &reader.buffer[..] } else { &[] };
        index.broken = broken.map(|error| describe_break(&error, next, len, first));
        Ok(index)
    }

    /// Returns the samples whose headers could be read.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns folder and base name, up to its first dot, of a sample.
    pub(super) fn key(&self, place: usize) -> &str {
        let start = place.checked_sub(1).map_or(0, |before| self.entries[before].key_end);
        &self.keys[start..self.entries[place].key_end]
    }

    /// Returns where the image is, if the sample has one.
    pub(super) fn image(&self, place: usize) -> Option<Span> {
        self.entries[place].image
    }

    /// Returns where the caption is, if the sample has one.
    pub(super) fn text(&self, place: usize) -> Option<Span> {
        self.entries[place].text
    }

    /// Reads headers to the end or to the first bad one, whose offset is then in `next`.
    fn collect(
        &mut self,
        reader: &mut RangeReader<'_>,
        wanted: &Wanted,
        next: &mut u64,
    ) -> io::Result<()> {
        let len = reader.len;
        let mut archive = tar::Archive::new(reader);
        // How far down `wanted.image` the newest sample's image stands.
        let mut preference = usize::MAX;
        for entry in archive.entries_with_seek()? {
            let entry = entry?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let (offset, size) = (entry.raw_file_position(), entry.size());
            let Some(end) = offset.checked_add(size).filter(|&end| end <= len) else {
                return Err(io::Error::other(format!("{name} ends beyond the shard")));
            };
            *next = end.next_multiple_of(BLOCK);
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let Some((key, extension)) = split(&name) else { continue };
            if self.is_empty() || self.key(self.len() - 1) != key {
                self.keys.push_str(key);
                self.entries.push(Entry { key_end: self.keys.len(), image: None, text: None });
                preference = usize::MAX;
            }
            let span = NonZeroU64::new(offset).map(|offset| Span { offset, len: size });
            let newest = self.entries.last_mut().expect("one was pushed if there was none");
            let extension = extension.to_ascii_lowercase();
            if extension == wanted.text {
                newest.text = newest.text.or(span);
            }
            let place = wanted.image.iter().position(|wanted| *wanted == extension);
            if let Some(place) = place.filter(|&place| place < preference) {
                newest.image = span;
                preference = place;
            }
        }
        Ok(())
    }
}

/// Says where a shard, which begins with `first`, stops being a tar, without its raw bytes.
fn describe_break(error: &io::Error, offset: u64, len: u64, first: &[u8]) -> String {
    let start = &first[..first.len().min(found::BEGINNING)];
    if let Some(what) = found::described(start).filter(|_| offset == 0) {
        return format!("not a tar archive but {what}");
    }
    let detail: String =
        error.to_string().chars().flat_map(char::escape_default).take(DETAIL_CHARS).collect();
    if offset == 0 {
        return format!("not a tar archive: no tar header at byte 0 of {len} ({detail})");
    }
    format!(
        "breaks off at byte {offset} of {len} ({detail}); what follows is lost: copy or build the \
         shard again"
    )
}

/// Splits a member's name at the first dot of its base name into key and extension; hidden files
/// and names without an extension belong to no sample.
fn split(name: &str) -> Option<(&str, &str)> {
    let folder_end = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = name[folder_end..].find('.').filter(|&dot| dot > 0)?;
    Some((&name[..folder_end + dot], &name[folder_end + dot + 1..]))
}

/// A shard as a seekable stream, fetched in pieces.
struct RangeReader<'a> {
    shard: &'a Object,
    cancel: &'a CancellationToken,
    len: u64,
    position: u64,
    /// Offset of `buffer` in the shard.
    start: u64,
    buffer: Bytes,
    /// The store's error, which `io::Error` would flatten.
    failed: Option<Error>,
}

impl Read for RangeReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.len || out.is_empty() {
            return Ok(0);
        }
        let buffered = self.start..self.start + self.buffer.len() as u64;
        if !buffered.contains(&self.position) {
            let range = self.position
                ..self.len.min(self.position + READ_AHEAD[usize::from(self.shard.is_remote())]);
            let ranges = std::slice::from_ref(&range);
            let fetched = self.shard.ranges(ranges, self.cancel).map_err(|error| {
                self.failed = Some(error);
                io::Error::other("store error")
            })?;
            self.start = self.position;
            self.buffer = fetched.into_iter().next().unwrap_or_default();
        }
        let from = (self.position - self.start) as usize;
        let n = out.len().min(self.buffer.len() - from);
        out[..n].copy_from_slice(&self.buffer[from..from + n]);
        self.position += n as u64;
        Ok(n)
    }
}

impl Seek for RangeReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.len.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = target.ok_or_else(|| io::Error::other("seek before the start"))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_at_the_first_dot_of_the_base_name() {
        assert_eq!(split("a/b.c/000.seg.png"), Some(("a/b.c/000", "seg.png")));
        assert_eq!(split("x.txt"), Some(("x", "txt")));
        assert_eq!(split("a/.hidden.png"), None);
        assert_eq!(split("README"), None);
    }
}
