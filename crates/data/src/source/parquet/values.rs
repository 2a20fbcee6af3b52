//! Rows of a column, decoded from the bytes that hold them.

use std::ops::Range;
use std::sync::Arc;

use bytes::buf::Reader;
use bytes::{Buf as _, Bytes};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;

use super::pages::Chunk;

/// Characters of the decoder's message that are shown: it may quote the file's bytes.
const DETAIL_CHARS: usize = 200;

/// The bytes of a file that were fetched.
#[derive(Debug)]
pub(super) struct Parts {
    /// Length of the file.
    len: u64,
    /// Where each part begins, and its bytes; in order.
    parts: Vec<(u64, Bytes)>,
}

/// The values of neighbouring rows of a column.
#[derive(Debug)]
pub(super) struct Values {
    values: Vec<ByteArray>,
    /// Where the values of each row end; they start where those of the row before end.
    ends: Vec<usize>,
}

impl Parts {
    /// Takes the bytes of some ranges of a file.
    pub(super) fn new(len: u64, ranges: &[Range<u64>], bytes: Vec<Bytes>) -> Self {
        let starts = ranges.iter().map(|range| range.start);
        let mut parts: Vec<_> = starts.zip(bytes).collect();
        parts.sort_by_key(|(start, _)| *start);
        Self { len, parts }
    }

    /// Returns what was fetched without a gap from an offset on.
    fn from(&self, offset: u64) -> Result<Bytes, ParquetError> {
        let missing = || ParquetError::EOF(format!("a page reaches beyond its bytes at {offset}"));
        let place = self.parts.partition_point(|(start, _)| *start <= offset);
        let (start, bytes) = place.checked_sub(1).map(|at| &self.parts[at]).ok_or_else(missing)?;
        let skip = usize::try_from(offset - start).ok().filter(|skip| *skip < bytes.len());
        Ok(bytes.slice(skip.ok_or_else(missing)?..))
    }
}

impl Length for Parts {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for Parts {
    type T = Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(self.from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        let bytes = self.from(start)?;
        if length > bytes.len() {
            let have = bytes.len();
            let what = format!("a page of {length} bytes at {start}, of which {have} were fetched");
            return Err(ParquetError::EOF(what));
        }
        Ok(bytes.slice(..length))
    }
}

impl Values {
    /// Returns the number of rows.
    pub(super) fn rows(&self) -> usize {
        self.ends.len()
    }

    /// Returns the values of a row: none for a null, several for a list.
    pub(super) fn of(&self, row: usize) -> &[ByteArray] {
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.values[start..self.ends[row]]
    }

    /// Assigns values to rows by the levels of Parquet: a repetition level of 0 begins a row, a definition level
    /// below the deepest is a null.
    fn assign(
        values: Vec<ByteArray>,
        definition: &[i16],
        repetition: &[i16],
        deepest: i16,
    ) -> Self {
        let levels = if deepest == 0 { values.len() } else { definition.len() };
        let (mut ends, mut end) = (Vec::new(), 0);
        for level in 0..levels {
            let begins = repetition.get(level).is_none_or(|depth| *depth == 0);
            if begins && level > 0 {
                ends.push(end);
            }
            end += usize::from(definition.get(level).is_none_or(|depth| *depth == deepest));
        }
        if levels > 0 {
            ends.push(end);
        }
        Self { values, ends }
    }
}

/// Reads neighbouring rows of a column that has `total` rows.
///
/// # Errors
/// What is wrong with the column's bytes.
pub(super) fn read(
    chunk: &Chunk,
    parts: &Arc<Parts>,
    rows: &Range<u64>,
    total: u64,
) -> Result<Values, String> {
    let name = chunk.meta.column_path().string();
    let told = |reason: String| format!("column {name:?} cannot be decoded: {reason}");
    let read = decoded(chunk, parts, rows, total);
    let values = read.map_err(|error| told(shown(&error.to_string())))?;
    let (wanted, found) = (rows.end - rows.start, values.ends.len() as u64);
    if found != wanted || values.ends.last() != Some(&values.values.len()) {
        return Err(told(format!(
            "it holds {found} of the {wanted} rows from row {} on",
            rows.start
        )));
    }
    Ok(values)
}

fn decoded(
    chunk: &Chunk,
    parts: &Arc<Parts>,
    rows: &Range<u64>,
    total: u64,
) -> Result<Values, ParquetError> {
    let column = chunk.meta.column_descr_ptr();
    let deepest = column.max_def_level();
    let pages = chunk.pages.clone();
    let pages = SerializedPageReader::new(Arc::clone(parts), &chunk.meta, size(total)?, pages)?;
    let mut reader = ColumnReaderImpl::<ByteArrayType>::new(column, Box::new(pages));
    reader.skip_records(size(rows.start)?)?;
    let (mut definition, mut repetition, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let wanted = size(rows.end - rows.start)?;
    reader.read_records(wanted, Some(&mut definition), Some(&mut repetition), &mut values)?;
    Ok(Values::assign(values, &definition, &repetition, deepest))
}

fn size(rows: u64) -> Result<usize, ParquetError> {
    Ok(usize::try_from(rows)?)
}

/// Returns a message of the decoder as it may be logged.
pub(super) fn shown(message: &str) -> String {
    message.chars().filter(|char| !char.is_control()).take(DETAIL_CHARS).collect()
}
