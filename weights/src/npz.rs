//! numpy's `.npz`: a zip archive of `.npy` arrays.

use std::collections::BTreeMap;
use std::io::{Cursor, Read as _};
use std::sync::Arc;

use zip::{CompressionMethod, ZipArchive};

use crate::map::{Bytes, MappedFile};
use crate::{DType, Error, Tensor};

const FORMAT: &str = "npz";
/// How many times its packed size deflate can unpack to, at most.
const MOST_DEFLATED: u64 = 1032;

/// Returns the arrays of a file.
pub(crate) fn read(file: &MappedFile) -> Result<BTreeMap<String, Tensor>, Error> {
    let corrupt = |reason: String| Error::corrupt(file.path(), FORMAT, reason);
    let mut archive = ZipArchive::new(Cursor::new(&file[..]))
        .map_err(|error| corrupt(format!("it is no zip archive: {error}")))?;
    let mut tensors = BTreeMap::new();
    let mut left = most_unpacked(file);
    for index in 0..archive.len() {
        let (name, bytes) = entry(file, &mut archive, index, &mut left)?;
        let Some(name) = name.strip_suffix(".npy") else { continue };
        let tensor = array(bytes).map_err(|reason| corrupt(format!("{name}: {reason}")))?;
        tensors.insert(name.to_owned(), tensor);
    }
    Ok(tensors)
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
    let mut entry = archive
        .by_index(index)
        .map_err(|error| corrupt(format!("entry {index} cannot be read: {error}")))?;
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

/// Reads an array of numpy's format (`numpy.lib.format`).
fn array(bytes: Bytes) -> Result<Tensor, String> {
    if !bytes.starts_with(b"\x93NUMPY") || bytes.len() < 12 {
        return Err("it does not begin as an array of numpy's".to_owned());
    }
    let (length, begin) = match bytes[6] {
        1 => (usize::from(u16::from_le_bytes([bytes[8], bytes[9]])), 10),
        2 | 3 => {
            let length = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
            (length as usize, 12)
        }
        version => return Err(format!("version {version} of numpy's format is not known")),
    };
    let end = begin + length;
    let header = bytes.get(begin..end).ok_or("its header is cut short")?;
    let header = std::str::from_utf8(header).map_err(|_| "its header is no text")?;
    let (dtype, shape, fortran) = parse(header)?;
    let storage = match bytes {
        Bytes::Part(file, range) => Bytes::Part(file, range.start + end..range.end),
        Bytes::Own(bytes) => Bytes::Own(Arc::new(bytes[end..].to_vec())),
    };
    if !fortran {
        return Tensor::contiguous(dtype, shape, storage);
    }
    // The first dimension is the fastest: the mirror image, seen the other way round.
    let mirrored = Tensor::contiguous(dtype, shape.iter().rev().copied().collect(), storage)?;
    Ok(mirrored.permute(&(0..shape.len()).rev().collect::<Vec<_>>()))
}

/// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
fn parse(header: &str) -> Result<(DType, Vec<usize>, bool), String> {
    let after = |key: &str| {
        let found = header.split_once(key).map(|(_, rest)| rest.trim_start_matches([':', ' ']));
        found.ok_or_else(|| format!("its header has no {key}"))
    };
    let descr = after("'descr'")?;
    let descr = descr
        .strip_prefix('\'')
        .and_then(|rest| rest.split_once('\''))
        .map(|(descr, _)| descr)
        .ok_or("it is a structured array; expected plain numbers")?;
    let dtype = match descr {
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
        other => return Err(format!("its type is {other:?}; expected little-endian numbers")),
    };
    let fortran = after("'fortran_order'")?.starts_with("True");
    let shape = after("'shape'")?
        .strip_prefix('(')
        .and_then(|rest| rest.split_once(')'))
        .map(|(shape, _)| shape)
        .ok_or("its shape is no tuple")?;
    let sizes = shape.split(',').map(str::trim).filter(|size| !size.is_empty());
    let sizes = sizes.map(|size| size.parse().map_err(|_| format!("a size is {size:?}")));
    Ok((dtype, sizes.collect::<Result<_, _>>()?, fortran))
}
