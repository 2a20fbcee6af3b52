//! Sparse members of tars: files stored without their holes, as `tar --sparse` writes them.
//!
//! GNU tar has four ways to say where the stored bytes belong: in the header and blocks behind it (its own format),
//! and in three versions of PAX records (0.0, 0.1, and 1.0, whose map stands before the bytes).

use bytes::Bytes;
use tar::{GnuExtSparseHeader, GnuHeader, GnuSparseHeader};

use super::content::Content;
use crate::Error;

/// Bytes of the longest expanded member: an image or a caption is shorter.
const LONGEST: u64 = 1 << 30;
/// Bytes of a map that are looked at.
const LONGEST_MAP: u64 = 1 << 20;
const BLOCK: u64 = 512;

/// Where the stored bytes of a sparse file belong in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sparse {
    /// Of the expanded file.
    size: u64,
    /// Offsets in the file and lengths, in the order in which the bytes are stored.
    parts: Vec<(u64, u64)>,
}

/// A map, or what is wrong with it.
pub(super) type Map = Result<Sparse, String>;

impl Sparse {
    fn new(size: u64, parts: Vec<(u64, u64)>) -> Map {
        let mut end = 0;
        for &(offset, len) in &parts {
            let fits = offset >= end && offset.checked_add(len).is_some_and(|end| end <= size);
            if !fits {
                return Err(format!("its sparse map has {len} bytes at {offset}, out of place"));
            }
            end = offset + len;
        }
        if size > LONGEST {
            return Err(format!("a sparse member of {size} bytes; at most {LONGEST} are read"));
        }
        Ok(Self { size, parts })
    }

    /// Returns the file whose stored bytes these are.
    ///
    /// # Errors
    /// In words, where the map asks for more bytes than there are.
    pub(super) fn expand(&self, mut stored: &[u8]) -> Result<Bytes, String> {
        let mut file = vec![0; self.size as usize];
        for &(offset, len) in &self.parts {
            let (offset, len) = (offset as usize, len as usize);
            let part = stored.split_off(..len);
            let part = part.ok_or("its sparse map asks for more bytes than are stored")?;
            file[offset..offset + len].copy_from_slice(part);
        }
        Ok(file.into())
    }
}

/// Reads the map of GNU's own format, from a header and the blocks that begin at `after`; returns the bytes of these
/// blocks as well.
///
/// # Errors
/// When the store fails.
pub(super) fn of_gnu(
    header: &GnuHeader,
    after: u64,
    content: &Content<'_>,
) -> Result<(Map, u64), Error> {
    let mut parts = Vec::new();
    let mut sound = push_all(&mut parts, &header.sparse);
    let mut goes_on = header.is_extended();
    let mut at = after;
    while goes_on && at + BLOCK <= content.len() {
        let block = content.range(at..at + BLOCK)?;
        let mut more = GnuExtSparseHeader::new();
        more.as_mut_bytes().copy_from_slice(&block);
        sound = sound && push_all(&mut parts, &more.sparse);
        goes_on = more.is_extended();
        at += BLOCK;
    }
    let size = header.real_size().ok().filter(|_| sound);
    let map = size.ok_or_else(|| "its sparse map has no numbers".to_owned());
    Ok((map.and_then(|size| Sparse::new(size, parts)), at - after))
}

/// Appends what a header lists; returns false where it is no number.
fn push_all(parts: &mut Vec<(u64, u64)>, listed: &[GnuSparseHeader]) -> bool {
    for part in listed.iter().filter(|part| !part.is_empty()) {
        let (Ok(offset), Ok(len)) = (part.offset(), part.length()) else { return false };
        parts.push((offset, len));
    }
    true
}

/// What PAX records say of a sparse member.
#[derive(Debug, Default)]
pub(super) struct Pax {
    /// The member's name: its header has another.
    pub(super) name: Option<String>,
    size: Option<u64>,
    numbers: Vec<Option<u64>>,
    map_is_before_bytes: bool,
}

impl Pax {
    /// Takes notice of a record.
    pub(super) fn add(&mut self, key: &str, value: &str) {
        match key {
            "GNU.sparse.name" => self.name = Some(value.to_owned()),
            "GNU.sparse.size" | "GNU.sparse.realsize" => self.size = value.parse().ok(),
            "GNU.sparse.major" => self.map_is_before_bytes = value == "1",
            "GNU.sparse.map" => self.numbers = value.split(',').map(|n| n.parse().ok()).collect(),
            "GNU.sparse.offset" | "GNU.sparse.numbytes" => self.numbers.push(value.parse().ok()),
            _ => {}
        }
    }

    /// Returns the map of the member whose bytes lie at `offset`, and the bytes of the map if it stands before them;
    /// none where the member is not sparse.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) fn map(
        self,
        (offset, len): (u64, u64),
        content: &Content<'_>,
    ) -> Result<Option<(Map, u64)>, Error> {
        let Some(size) = self.size else { return Ok(None) };
        if !self.map_is_before_bytes {
            return Ok(Some((pairs(&self.numbers).and_then(|parts| Sparse::new(size, parts)), 0)));
        }
        let beginning = content.range(offset..offset + len.min(LONGEST_MAP))?;
        let map = before_bytes(&beginning).ok_or_else(|| "its sparse map is cut".to_owned());
        Ok(Some(match map {
            Ok((parts, map_len)) => (Sparse::new(size, parts), map_len.min(len)),
            Err(reason) => (Err(reason), 0),
        }))
    }
}

fn pairs(numbers: &[Option<u64>]) -> Result<Vec<(u64, u64)>, String> {
    let unpaired = || "its sparse map has no pairs of numbers".to_owned();
    let (pairs, []) = numbers.as_chunks::<2>() else { return Err(unpaired()) };
    pairs.iter().map(|[offset, len]| offset.zip(*len).ok_or_else(unpaired)).collect()
}

/// Reads decimal numbers, one a line: how many parts there are, then offset and length of each. Returns the parts and
/// the bytes up to the block behind.
fn before_bytes(bytes: &[u8]) -> Option<(Vec<(u64, u64)>, u64)> {
    let mut at = 0;
    let mut number = || {
        let line = bytes.get(at..)?.split(|byte| *byte == b'\n').next()?;
        at += line.len() + 1;
        std::str::from_utf8(line).ok()?.parse::<u64>().ok()
    };
    let count = number()?;
    let mut parts = Vec::new();
    for _ in 0..count {
        parts.push((number()?, number()?));
    }
    Some((parts, (at as u64).next_multiple_of(BLOCK)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn holes_are_zeros_and_parts_stand_where_the_map_says() {
        let map = Sparse::new(10, vec![(1, 2), (5, 3), (10, 0)]).unwrap();
        assert_eq!(map.expand(b"abcde").unwrap(), &b"\0ab\0\0cde\0\0"[..]);
        assert!(map.expand(b"abcd").unwrap_err().contains("more bytes than are stored"));
    }

    #[test]
    fn a_map_beyond_its_file_or_out_of_order_is_refused() {
        assert!(Sparse::new(10, vec![(8, 3)]).is_err());
        assert!(Sparse::new(10, vec![(5, 2), (6, 1)]).is_err());
        assert!(Sparse::new(10, vec![(u64::MAX, 2)]).is_err());
        assert!(Sparse::new(LONGEST + 1, Vec::new()).unwrap_err().contains("at most 1073741824"));
    }

    #[test]
    fn a_map_before_the_bytes_ends_with_its_block() {
        let mut bytes = b"2\n0\n512\n1024\n3\n".to_vec();
        bytes.resize(2000, 0);
        assert_eq!(before_bytes(&bytes), Some((vec![(0, 512), (1024, 3)], 512)));
        assert_eq!(before_bytes(b"2\n0\n512\n"), None);
    }

    proptest! {
        #[test]
        fn no_map_is_a_panic(
            size in 0_u64..2000,
            parts in prop::collection::vec((0_u64..2000, 0_u64..500), 0..6),
            stored in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            if let Ok(map) = Sparse::new(size, parts)
                && let Ok(file) = map.expand(&stored)
            {
                prop_assert_eq!(file.len() as u64, size);
            }
        }

        #[test]
        fn any_bytes_are_a_map_or_not(bytes in "[0-9\n-]{0,80}") {
            let _ = before_bytes(bytes.as_bytes());
        }
    }
}
