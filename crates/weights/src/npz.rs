//! numpy's `.npz`: a zip archive of `.npy` arrays.

use std::io::{Cursor, Read as _};
use std::sync::Arc;

use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use crate::map::{Bytes, MappedFile};
use crate::tensor::Content;
use crate::{DType, Error, Tensor};

const FORMAT: &str = "npz archive";
/// How the names of arrays end.
const ARRAY: &str = ".npy";
/// How many times its packed size deflate can unpack to, at most.
const MOST_DEFLATED: u64 = 1032;

/// Returns the arrays of a file.
pub(crate) fn read(file: &MappedFile) -> Result<Content, Error> {
    let corrupt = |reason: String| Error::corrupt(file.path(), FORMAT, reason);
    let mut archive = open(file)?;
    let mut content = Content::default();
    let mut left = most_unpacked(file);
    let names: Vec<String> = archive.file_names().flatten().map(Into::into).collect();
    if !names.iter().any(|name| name.ends_with(ARRAY)) {
        let what = archive_of(&names);
        return Err(Error::NoWeights { path: file.path().to_owned(), what });
    }
    for index in 0..archive.len() {
        let (name, bytes) = entry(file, &mut archive, index, &mut left)?;
        let Some(name) = name.strip_suffix(ARRAY) else { continue };
        match array(bytes).map_err(|reason| corrupt(format!("{name}: {reason}")))? {
            Array::Tensor(tensor) => drop(content.tensors.insert(name.to_owned(), tensor)),
            Array::Other(what) => drop(content.unreadable.insert(name.to_owned(), what)),
        }
    }
    Ok(content)
}

/// Says what a zip archive without arrays and without PyTorch's pickle is.
fn archive_of(names: &[String]) -> String {
    match names {
        [] => "an empty zip archive".to_owned(),
        [first, ..] => {
            let count = names.len();
            format!("a zip archive of {count} files, {first:?} among them; unpack it with unzip")
        }
    }
}

/// Opens a zip archive.
pub(crate) fn open(file: &MappedFile) -> Result<ZipArchive<Cursor<&[u8]>>, Error> {
    ZipArchive::new(Cursor::new(&file[..])).map_err(|error| {
        let reason = format!(
            "its directory at the end of its {} bytes cannot be read ({error}): it is cut short or was \
             changed; fetch it again",
            file.len()
        );
        Error::corrupt(file.path(), "zip archive", reason)
    })
}

/// Returns the bytes that a file's entries may unpack to, together: entries may share their packed
/// bytes, and each alone would be within its bound.
pub(crate) fn most_unpacked(file: &MappedFile) -> u64 {
    (file.len() as u64).saturating_mul(MOST_DEFLATED)
}

/// Returns name and content of an entry: a part of the file where it is stored as it is. What is
/// unpacked is taken from `left`.
pub(crate) fn entry(
    file: &MappedFile,
    archive: &mut ZipArchive<Cursor<&[u8]>>,
    index: usize,
    left: &mut u64,
) -> Result<(String, Bytes), Error> {
    let corrupt = |reason: String| Error::corrupt(file.path(), "zip archive", reason);
    let mut entry = archive.by_index(index).map_err(|error| match error {
        ZipError::UnsupportedArchive(what) => {
            Error::unsupported(file.path(), format!("a zip archive in a form of its own ({what})"))
        }
        ZipError::CompressionMethodNotSupported(method) => {
            let what =
                format!("a zip archive compressed by method {method}, not stored or deflated");
            Error::unsupported(file.path(), what)
        }
        error => corrupt(format!("entry {index} cannot be read: {error}")),
    })?;
    let name = entry
        .name()
        .map_err(|error| corrupt(format!("the name of entry {index}: {error}")))?
        .into_owned();
    let (size, packed) = (entry.size(), entry.compressed_size());
    if entry.compression() == CompressionMethod::Stored {
        let start = entry.data_start().unwrap_or(u64::MAX);
        let end = start.checked_add(size).filter(|end| *end <= file.len() as u64);
        let end = end.ok_or_else(|| {
            corrupt(format!("{name} is {size} bytes at {start}, past the end of the file"))
        })?;
        return Ok((name, Bytes::Part(file.clone(), start as usize..end as usize)));
    }
    if size > packed.saturating_mul(MOST_DEFLATED) || packed > file.len() as u64 {
        return Err(corrupt(format!("{name} claims to unpack {packed} bytes to {size}")));
    }
    *left = left.checked_sub(size).ok_or_else(|| {
        corrupt(format!("up to {name}, its entries claim to unpack to more than they can"))
    })?;
    let mut bytes = Vec::new();
    let found = entry.by_ref().take(size + 1).read_to_end(&mut bytes);
    match found {
        Ok(found) if found as u64 == size => Ok((name, Bytes::Own(Arc::new(bytes)))),
        Ok(found) => Err(corrupt(format!("{name} unpacks to {found} bytes, not {size}"))),
        Err(error) => Err(corrupt(format!("{name} cannot be unpacked: {error}"))),
    }
}

/// An entry of the archive.
enum Array {
    Tensor(Tensor),
    /// Of a type that is not read.
    Other(String),
}

/// Reads an array of numpy's format (`numpy.lib.format`).
fn array(bytes: Bytes) -> Result<Array, String> {
    if !bytes.starts_with(b"\x93NUMPY") || bytes.len() < 12 {
        return Err("it does not begin as an array of numpy's".to_owned());
    }
    let (length, begin) = match bytes[6] {
        1 => (usize::from(u16::from_le_bytes([bytes[8], bytes[9]])), 10),
        2 | 3 => {
            let length = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
            (length as usize, 12)
        }
        version => {
            return Ok(Array::Other(format!("an array of version {version} of numpy's format")));
        }
    };
    let end = begin + length;
    let header = bytes.get(begin..end).ok_or("its header is cut short")?;
    let header = std::str::from_utf8(header).map_err(|_| "its header is no text")?;
    let Header { descr, fortran, shape } = parse(header)?;
    let Some(dtype) = dtype(descr) else {
        return Ok(Array::Other(format!("an array of numpy's type {}", descr.escape_debug())));
    };
    let storage = match bytes {
        Bytes::Part(file, range) => Bytes::Part(file, range.start + end..range.end),
        Bytes::Own(bytes) => Bytes::Own(Arc::new(bytes[end..].to_vec())),
    };
    if !fortran {
        return Tensor::contiguous(dtype, shape, storage).map(Array::Tensor);
    }
    // The first dimension is the fastest: the mirror image, seen the other way round.
    let mirrored = Tensor::contiguous(dtype, shape.iter().rev().copied().collect(), storage)?;
    Ok(Array::Tensor(mirrored.permute(&(0..shape.len()).rev().collect::<Vec<_>>())))
}

/// What an array's header says.
struct Header<'a> {
    /// Type of the elements; of a structured array the list of its fields.
    descr: &'a str,
    fortran: bool,
    shape: Vec<usize>,
}

/// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
fn parse(header: &str) -> Result<Header<'_>, String> {
    let after = |key: &str| {
        let found = header.split_once(key).map(|(_, rest)| rest.trim_start_matches([':', ' ']));
        found.ok_or_else(|| format!("its header has no {key}"))
    };
    let descr = after("'descr'")?;
    let descr = match descr.strip_prefix('\'') {
        Some(rest) => rest.split_once('\'').map(|(descr, _)| descr),
        None => descr.split_once(", 'fortran_order'").map(|(fields, _)| fields),
    };
    let descr = descr.ok_or("its header does not say of which type it is")?;
    let fortran = after("'fortran_order'")?.starts_with("True");
    let shape = after("'shape'")?
        .strip_prefix('(')
        .and_then(|rest| rest.split_once(')'))
        .map(|(shape, _)| shape)
        .ok_or("its shape is no tuple")?;
    let sizes = shape.split(',').map(str::trim).filter(|size| !size.is_empty());
    let sizes = sizes.map(|size| size.parse().map_err(|_| format!("a size is {size:?}")));
    Ok(Header { descr, fortran, shape: sizes.collect::<Result<_, _>>()? })
}

fn dtype(descr: &str) -> Option<DType> {
    Some(match descr {
        "<f8" => DType::F64,
        "<f4" => DType::F32,
        "<f2" => DType::F16,
        // How numpy writes the bfloat16 of JAX, which it does not know.
        "|V2" | "<V2" => DType::BF16,
        "<i8" => DType::I64,
        "<i4" => DType::I32,
        "<i2" => DType::I16,
        "|i1" => DType::I8,
        "|u1" => DType::U8,
        "|b1" => DType::Bool,
        _ => return None,
    })
}
