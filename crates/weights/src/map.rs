//! A file in memory.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use crate::{Error, ffi};

/// A mapped file, shared by the tensors that lie in it.
#[derive(Debug, Clone)]
pub(crate) struct MappedFile {
    path: Arc<PathBuf>,
    bytes: Arc<Mmap>,
}

impl MappedFile {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let read = |source| Error::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        let bytes = ffi::map(&file).map_err(read)?;
        Ok(Self { path: Arc::new(path.to_owned()), bytes: Arc::new(bytes) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Bytes of a tensor's storage: a part of the file, or what was unpacked from it.
#[derive(Debug, Clone)]
pub(crate) enum Bytes {
    /// A part of the file.
    Part(MappedFile, Range<usize>),
    /// Unpacked.
    Own(Arc<Vec<u8>>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Part(file, range) => &file[range.clone()],
            Self::Own(bytes) => bytes,
        }
    }
}
