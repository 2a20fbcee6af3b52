//! A file of text, as large as it likes: read from its beginning in pieces, and in parts, never as a whole.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::store::Object;

/// Bytes fetched at a time while a file is read through, from a disk and over a network, where every request waits.
const PIECE: [u64; 2] = [1 << 20, 8 << 20];
/// How a file compressed by gzip begins.
const GZIP: &[u8] = b"\x1f\x8b";

/// See the module. Parts of another version of the file are never returned.
#[derive(Debug)]
pub(super) struct Text {
    object: Object,
    /// What the file holds, uncompressed, in a file for temporary use that nobody else sees.
    unpacked: Option<File>,
    len: u64,
}

impl Text {
    /// Opens a file; one that is compressed by gzip, whatever its name, is unpacked first.
    ///
    /// # Errors
    /// A file that is missing or compressed and damaged; no space to unpack it; a store that fails.
    pub(super) fn open(object: Object) -> Result<Self, Error> {
        let text = Self::plain(object)?;
        if text.is_compressed()? { text.unpacked(true) } else { Ok(text) }
    }

    /// As [`Self::open`]; what lies behind a network is copied to this machine, for many small parts of it.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(super) fn open_here(object: Object) -> Result<Self, Error> {
        let text = Self::open(object)?;
        if text.object.is_remote() && text.unpacked.is_none() {
            return text.unpacked(false);
        }
        Ok(text)
    }

    fn plain(object: Object) -> Result<Self, Error> {
        let meta = object.head()?;
        Ok(Self { object, len: meta.size, unpacked: None })
    }

    fn is_compressed(&self) -> Result<bool, Error> {
        let start = 0..self.len.min(GZIP.len() as u64);
        Ok(self.part(start, &CancellationToken::new())? == GZIP)
    }

    /// Returns the file's path or URL.
    pub(super) fn url(&self) -> &str {
        &self.object.url
    }

    /// Returns the last part of the file's name.
    pub(super) fn file_name(&self) -> String {
        self.object.file_name()
    }

    /// Returns the bytes of the text.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Returns a part of the text.
    ///
    /// # Errors
    /// [`Error::Replaced`]; a store that fails.
    pub(super) fn part(
        &self,
        range: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<Bytes, Error> {
        let Some(file) = &self.unpacked else { return self.object.part(range, cancel) };
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let failed = |source| Error::Unpack { url: self.url().to_owned(), source };
        file.read_exact_at(&mut bytes, range.start).map_err(failed)?;
        Ok(bytes.into())
    }

    /// Returns the text from its beginning.
    pub(super) fn stream(&self) -> Stream<'_> {
        Stream { text: self, next: 0, piece: Bytes::new(), most: u64::MAX, failed: None }
    }

    /// Returns the same text, read from a file without a name on this machine.
    fn unpacked(self, is_compressed: bool) -> Result<Self, Error> {
        let (file, len) = self.unpack(is_compressed)?;
        Ok(Self { unpacked: Some(file), len, ..self })
    }

    /// Writes what the file holds into one without a name; returns it, and its length.
    fn unpack(&self, is_compressed: bool) -> Result<(File, u64), Error> {
        let no_place = |source| Error::Unpack { url: self.url().to_owned(), source };
        let mut file = tempfile::tempfile().map_err(no_place)?;
        let mut packed = self.stream();
        let mut unpacked: Box<dyn Read> = match is_compressed {
            true => Box::new(MultiGzDecoder::new(&mut packed)),
            false => Box::new(&mut packed),
        };
        let (mut buffer, mut len) = (vec![0; 1 << 18], 0);
        let damage = loop {
            match unpacked.read(&mut buffer) {
                Ok(0) => return Ok((file, len)),
                Ok(n) => {
                    file.write_all(&buffer[..n]).map_err(no_place)?;
                    len += n as u64;
                }
                Err(error) => break error,
            }
        };
        drop(unpacked);
        Err(packed.failed.take().unwrap_or_else(|| {
            let reason = format!(
                "compressed by gzip, and damaged after {len} unpacked bytes ({damage}); make or copy it again"
            );
            Error::Unreadable { url: self.url().to_owned(), reason }
        }))
    }
}

/// A text from its beginning.
pub(super) struct Stream<'a> {
    text: &'a Text,
    /// Offset of what comes after `piece`.
    next: u64,
    piece: Bytes,
    /// Bytes that are handed out at most.
    most: u64,
    /// The store's error, which `io::Error` would flatten.
    pub(super) failed: Option<Error>,
}

impl Stream<'_> {
    /// Lets no more than so many bytes be read, counted from the beginning; beyond is an error.
    pub(super) fn read_at_most(&mut self, bytes: u64) {
        self.most = bytes;
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            let text = self.text;
            let end = text.len.min(self.next + PIECE[usize::from(text.object.is_remote())]);
            let piece = text.part(self.next..end, &CancellationToken::new()).map_err(|error| {
                self.failed = Some(error);
                io::Error::other("store error")
            })?;
            (self.piece, self.next) = (piece, end);
        }
        let n = out.len().min(self.piece.len());
        if n > 0 && self.next - self.piece.len() as u64 >= self.most {
            return Err(io::Error::other("too long"));
        }
        out[..n].copy_from_slice(&self.piece.split_to(n));
        Ok(n)
    }
}
