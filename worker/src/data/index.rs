//! What is where in a tar shard: built once by reading its headers, then every sample is a range.

use std::io::{self, Read, Seek, SeekFrom};

use super::Error;
use super::store::Object;

/// Bytes fetched at a time while reading headers.
const READ_AHEAD: u64 = 256 << 10;

/// A file inside the tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// What follows the first dot of the base name, lower-case: `png`, `txt`, `json` …
    pub extension: String,
    /// Offset of its bytes in the shard.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// Consecutive members that share a key, as webdataset groups them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Folder and base name up to the first dot.
    pub key: String,
    /// The members, in the order of the tar.
    pub members: Vec<Member>,
}

/// The samples of a shard, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// Samples whose headers could be read.
    pub entries: Vec<Entry>,
    /// Why the headers end early, when they do: what follows in the shard is lost.
    pub broken: Option<String>,
}

impl Index {
    /// Reads the headers of `shard`, of `len` bytes.
    ///
    /// # Errors
    /// When the store fails; a damaged tar is not an error but [`Index::broken`].
    pub fn read(shard: &Object, len: u64) -> Result<Self, Error> {
        let mut reader = RangeReader { shard, len, position: 0, start: 0, buffer: Vec::new(), failed: None };
        let mut index = Self::default();
        let broken = index.collect(&mut reader).err();
        if let Some(error) = reader.failed {
            return Err(error);
        }
        index.broken = broken.map(|e| e.to_string());
        Ok(index)
    }

    fn collect(&mut self, reader: &mut RangeReader<'_>) -> io::Result<()> {
        let len = reader.len;
        let mut archive = tar::Archive::new(reader);
        for entry in archive.entries_with_seek()? {
            let entry = entry?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let (offset, size) = (entry.raw_file_position(), entry.size());
            if offset + size > len {
                return Err(io::Error::other(format!("{name} ends beyond the shard")));
            }
            let folder_end = name.rfind('/').map_or(0, |slash| slash + 1);
            // Hidden files and names without an extension belong to no sample.
            let Some(dot) = name[folder_end..].find('.').filter(|&dot| dot > 0) else { continue };
            let (key, extension) = (&name[..folder_end + dot], &name[folder_end + dot + 1..]);
            let member =
                Member { extension: extension.to_ascii_lowercase(), offset, len: size };
            match self.entries.last_mut().filter(|last| last.key == key) {
                Some(last) => last.members.push(member),
                None => self.entries.push(Entry { key: key.to_owned(), members: vec![member] }),
            }
        }
        Ok(())
    }
}

/// A shard as a seekable stream, fetched in pieces.
struct RangeReader<'a> {
    shard: &'a Object,
    len: u64,
    position: u64,
    /// Offset of `buffer` in the shard.
    start: u64,
    buffer: Vec<u8>,
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
            let range = self.position..self.len.min(self.position + READ_AHEAD);
            let fetched = self.shard.ranges(std::slice::from_ref(&range)).map_err(|error| {
                self.failed = Some(error);
                io::Error::other("store error")
            })?;
            self.start = self.position;
            self.buffer = fetched.into_iter().next().unwrap_or_default().to_vec();
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
