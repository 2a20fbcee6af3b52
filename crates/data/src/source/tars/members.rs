//! The members of a tar, header by header.

use std::io;
use std::num::NonZeroU64;
use std::ops::Range;

use super::content::{Content, Reader};
use super::sparse::{self, Map};
use crate::Error;

/// Unit of a tar.
pub(super) const BLOCK: u64 = 512;

/// Where a member's bytes lie in the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// No member starts at 0: a header stands before it.
    offset: NonZeroU64,
    len: u64,
}

impl Span {
    /// Returns the offset of the first byte, by which spans of a shard can be told apart.
    pub(super) fn offset(&self) -> u64 {
        self.offset.get()
    }

    /// Returns the bytes' offsets in the shard.
    pub(super) fn range(&self) -> Range<u64> {
        self.offset.get()..self.offset.get() + self.len
    }
}

/// A member that holds bytes, or points to one that does.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// A file, stored here; with a map if without its holes.
    File(Span, Option<Map>),
    /// A hard or symbolic link to another member.
    Link { target: Vec<u8> },
}

/// Why no more members can be read.
#[derive(Debug)]
pub(super) enum Stop {
    /// The tar is damaged.
    Broken(io::Error),
    /// The store failed.
    Store(Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

/// Hands out member by member. Folders, devices and what else holds no bytes are left out, as webdataset does.
///
/// # Errors
/// Why it ends early; `next` is then the offset of the header that is wrong, and at the end of the tar that of the
/// block behind the last member.
pub(super) fn each(
    reader: &mut Reader<'_>,
    next: &mut u64,
    mut take: impl FnMut(Member),
) -> Result<(), Stop> {
    let content = reader.content;
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries_with_seek()? {
        let mut entry = entry?;
        let found = locate(&mut entry, content)?;
        if found.end > content.len() {
            let name = String::from_utf8_lossy(&found.name).into_owned();
            return Err(io::Error::other(format!("{name} ends beyond the shard")).into());
        }
        *next = found.end.next_multiple_of(BLOCK);
        if let Some(kind) = found.kind {
            take(Member { name: found.name, kind });
        }
    }
    Ok(())
}

/// What a header says.
struct Found {
    name: Vec<u8>,
    kind: Option<Kind>,
    /// One past the last stored byte.
    end: u64,
}

fn locate(entry: &mut tar::Entry<'_, impl io::Read>, content: &Content<'_>) -> Result<Found, Stop> {
    let kind = entry.header().entry_type();
    let mut name = entry.path_bytes().into_owned();
    let (offset, size) = (entry.raw_file_position(), entry.size());
    if kind.is_gnu_sparse() {
        return sparse_of_gnu(entry, name, content);
    }
    let end = offset.checked_add(size).ok_or_else(|| io::Error::other("size overflow"))?;
    if kind.is_hard_link() || kind.is_symlink() {
        let target = entry.link_name_bytes().unwrap_or_default().into_owned();
        return Ok(Found { name, kind: Some(Kind::Link { target }), end });
    }
    // Contiguous files are files: how a disk of 1988 laid them out.
    if !kind.is_file() && !kind.is_contiguous() || end > content.len() {
        return Ok(Found { name, kind: None, end });
    }
    let mut pax = pax(entry)?;
    if let Some(real) = pax.name.take() {
        name = real.into_bytes();
    }
    let (map, before) = match pax.map((offset, size), content)? {
        Some((map, before)) => (Some(map), before),
        None => (None, 0),
    };
    Ok(Found { name, kind: file(offset + before, size - before, map), end })
}

fn sparse_of_gnu(
    entry: &tar::Entry<'_, impl io::Read>,
    name: Vec<u8>,
    content: &Content<'_>,
) -> Result<Found, Stop> {
    let after = entry.raw_file_position();
    let header = entry.header();
    // Its size is that of the file; the header's own is that of what is stored.
    let size = header.entry_size()?;
    let gnu = header.as_gnu().ok_or_else(|| io::Error::other("a sparse member of another kind"))?;
    let (map, map_len) = sparse::of_gnu(gnu, after, content)?;
    let offset = after + map_len;
    let end = offset.checked_add(size).ok_or_else(|| io::Error::other("size overflow"))?;
    Ok(Found { name, kind: file(offset, size, Some(map)), end })
}

fn file(offset: u64, len: u64, map: Option<Map>) -> Option<Kind> {
    let span = NonZeroU64::new(offset).map(|offset| Span { offset, len })?;
    Some(Kind::File(span, map))
}

fn pax(entry: &mut tar::Entry<'_, impl io::Read>) -> io::Result<sparse::Pax> {
    let mut pax = sparse::Pax::default();
    for record in entry.pax_extensions()?.into_iter().flatten().flatten() {
        if let (Ok(key), Ok(value)) = (record.key(), record.value()) {
            pax.add(key, value);
        }
    }
    Ok(pax)
}
