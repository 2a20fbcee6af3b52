//! The only unsafe code of this crate.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// Maps a whole file for reading.
pub(crate) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is read-only and private to this process's address space; what may not
    // happen is that the bytes change under a `&[u8]`. Weights are written once and then read: who
    // rewrites a file in place while it is being loaded breaks every reader, mapped or not, and
    // writers here and in the libraries of the field write a new file and rename it.
    unsafe { Mmap::map(file) }
}
