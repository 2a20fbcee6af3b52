//! Which bytes of a file hold which rows.

use std::ops::Range;

use parquet::basic::Compression;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::page_index::offset_index::PageLocation;

/// A row group.
#[derive(Debug)]
pub(super) struct Group {
    /// Number of its file.
    pub(super) file: usize,
    /// Its number in the file.
    pub(super) number: usize,
    /// Rows of the file before it.
    pub(super) start: u64,
    /// Its rows; at least one.
    pub(super) rows: u64,
    /// The columns that are read.
    pub(super) chunks: Vec<Chunk>,
}

/// A column of a row group.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) meta: ColumnChunkMetaData,
    /// Where its data pages lie, if the file says so.
    pub(super) pages: Option<Vec<PageLocation>>,
    /// All its bytes in the file: a dictionary, if it has one, then data pages.
    range: Range<u64>,
}

impl Group {
    /// Whether it is known for every column which page holds which rows.
    pub(super) fn is_indexed(&self) -> bool {
        self.chunks.iter().all(|chunk| chunk.pages.is_some())
    }

    /// Returns the bytes of its columns, compressed.
    pub(super) fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.range.end - chunk.range.start).sum()
    }

    /// Returns which bytes of the file hold some of its rows: whole columns where nothing more is known.
    pub(super) fn ranges(&self, rows: &Range<u64>) -> Vec<Range<u64>> {
        let parts = self.chunks.iter().flat_map(|chunk| chunk.parts(rows));
        parts.filter(|part| !part.is_empty()).collect()
    }
}

impl Chunk {
    /// Takes over what a file of `len` bytes says of a column of `rows` rows.
    ///
    /// # Errors
    /// What cannot be.
    pub(super) fn new(
        meta: ColumnChunkMetaData,
        pages: Option<Vec<PageLocation>>,
        rows: u64,
        len: u64,
    ) -> Result<Self, String> {
        let start = meta.dictionary_page_offset().unwrap_or_else(|| meta.data_page_offset());
        let start = u64::try_from(start).ok();
        let size = u64::try_from(meta.compressed_size()).ok().filter(|size| *size > 0);
        let range = start.zip(size).and_then(|(start, size)| Some(start..start.checked_add(size)?));
        let Some(range) = range.filter(|range| range.end <= len) else {
            let (from, size) = (meta.data_page_offset(), meta.compressed_size());
            return Err(format!(
                "its {size} bytes from byte {from} on are not within the file's {len} bytes"
            ));
        };
        // Every row has a value or a null; a list has several.
        let values = meta.num_values();
        let fits = |values: u64| match meta.column_descr().max_rep_level() {
            0 => values == rows,
            _ => values >= rows,
        };
        if !u64::try_from(values).is_ok_and(fits) {
            return Err(format!("it has {values} values in {rows} rows"));
        }
        if meta.compression() == Compression::LZO {
            let instead = "snappy, gzip, zstd, lz4, brotli or nothing";
            return Err(format!("it is compressed by LZO; write it again with {instead}"));
        }
        if meta.file_path().is_some() {
            return Err("it lies in a file of its own; write it again as one file".to_owned());
        }
        Ok(Self { meta, pages: pages.filter(|pages| are_sound(pages, rows, &range)), range })
    }

    /// Returns the dictionary's bytes and those of the pages that hold these rows, which may be none.
    fn parts(&self, rows: &Range<u64>) -> [Range<u64>; 2] {
        let Some(pages) = &self.pages else { return [self.range.clone(), 0..0] };
        let first = pages.partition_point(|page| first_row(page) <= rows.start);
        let after = pages.partition_point(|page| first_row(page) < rows.end);
        let held = &pages[first.saturating_sub(1)..after];
        let (Some(first), Some(last)) = (held.first(), held.last()) else { return [0..0, 0..0] };
        [self.range.start..bytes(&pages[0]).start, bytes(first).start..bytes(last).end]
    }
}

/// Returns how many times its bytes an epoch reads, when groups are cut into blocks of at most so many rows.
pub(super) fn reread(groups: &[Group], block: u64) -> f64 {
    let mut read = 0;
    for group in groups {
        let count = group.rows.div_ceil(block);
        for number in 0..count {
            let rows = number * group.rows / count..(number + 1) * group.rows / count;
            read += group.ranges(&rows).iter().map(|range| range.end - range.start).sum::<u64>();
        }
    }
    let all: u64 = groups.iter().map(Group::bytes).sum();
    read as f64 / all.max(1) as f64
}

/// Whether pages follow one another within a column's bytes, from its first row on.
fn are_sound(pages: &[PageLocation], rows: u64, range: &Range<u64>) -> bool {
    let within = |page: &PageLocation| {
        page.offset >= 0
            && page.compressed_page_size > 0
            && page.first_row_index >= 0
            && bytes(page).start >= range.start
            && bytes(page).end <= range.end
            && first_row(page) < rows
    };
    let follows = |pair: &[PageLocation]| {
        first_row(&pair[0]) < first_row(&pair[1]) && bytes(&pair[0]).end <= bytes(&pair[1]).start
    };
    pages.first().is_some_and(|page| page.first_row_index == 0)
        && pages.iter().all(within)
        && pages.windows(2).all(follows)
}

/// Of a sound page.
fn bytes(page: &PageLocation) -> Range<u64> {
    let start = page.offset.unsigned_abs();
    start..start.saturating_add(page.compressed_page_size.unsigned_abs().into())
}

/// Of a sound page.
fn first_row(page: &PageLocation) -> u64 {
    page.first_row_index.unsigned_abs()
}
