//! What the end of a Parquet file says: its row groups, its columns and, where it has an offset index, its pages.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parquet::DecodeResult;
use parquet::file::metadata::{
    ColumnChunkMask, PageIndexPolicy, ParquetMetaData, ParquetMetaDataOptions,
    ParquetMetaDataPushDecoder as Decoder, ParquetStatisticsPolicy,
};
use ringmaster_inputs::panics;
use ringmaster_weights::found;
use tokio_util::sync::CancellationToken;

use super::Options;
use super::columns::Columns;
use super::pages::{Chunk, Group};
use super::values::shown;
use crate::Error;
use crate::source::objects;
use crate::store::Object;

/// Bytes of the end that are fetched at once: enough for the footer of most files.
const TAIL: u64 = 64 << 10;
/// How a Parquet file begins.
const MAGIC: &[u8] = b"PAR1";
/// Files whose ends are fetched at a time.
const AT_ONCE: usize = 32;

/// An opened file.
#[derive(Debug)]
pub(super) struct File {
    pub(super) object: Object,
    /// Its bytes.
    pub(super) len: u64,
    pub(super) columns: Columns,
}

impl File {
    /// Returns where a link of the file leads: one that is relative starts at the file's folder.
    ///
    /// # Errors
    /// An empty link.
    pub(super) fn located(&self, link: &str) -> Result<String, String> {
        let link = link.trim();
        if link.is_empty() {
            return Err(format!("no image: column {:?} is empty", self.columns.image_name));
        }
        let name = link.trim_start_matches("./");
        Ok(objects::below(objects::folder(&self.object.url), name))
    }
}

/// Opens files, several at a time, in order.
///
/// # Errors
/// Of the first file that cannot be opened.
pub(super) fn open_all(
    objects: &[Object],
    options: &Options,
) -> Result<Vec<(File, Vec<Group>)>, Error> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut opened = Vec::new();
        while let number = next.fetch_add(1, Ordering::Relaxed)
            && let Some(object) = objects.get(number)
        {
            let file = open(object, options);
            if file.is_err() {
                // Nobody needs the files after it.
                next.store(objects.len(), Ordering::Relaxed);
            }
            opened.push((number, file));
        }
        opened
    };
    let mut opened = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for _ in 0..AT_ONCE.min(objects.len()) {
            let thread = std::thread::Builder::new().name("data-open".to_owned());
            let thread = thread.spawn_scoped(scope, work);
            threads.push(thread.map_err(|source| Error::Thread { source })?);
        }
        let opened = threads.into_iter().map(|thread| match thread.join() {
            Ok(opened) => opened,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        Ok::<_, Error>(opened.flatten().collect::<Vec<_>>())
    })?;
    opened.sort_by_key(|(number, _)| *number);
    opened.into_iter().map(|(_, file)| file).collect()
}

/// Opens a file.
fn open(object: &Object, options: &Options) -> Result<(File, Vec<Group>), Error> {
    let len = object.head()?.size;
    let tail = len.saturating_sub(TAIL)..len;
    let end = if len == 0 { Bytes::new() } else { fetch(object, tail.clone())? };
    let ending = Ending { object, len, tail, end };
    let metadata = ending.footer()?;
    let columns = Columns::find(metadata.file_metadata().schema_descr(), options)
        .map_err(|reason| ending.unreadable(reason))?;
    let metadata = ending.with_pages(metadata, &columns)?;
    let groups = ending.groups(&metadata, &columns)?;
    if groups.is_empty() {
        let reason = "a Parquet file without rows; leave it out".to_owned();
        return Err(Error::Empty { url: object.url.clone(), reason });
    }
    Ok((File { object: object.clone(), len, columns }, groups))
}

/// The end of a file, fetched.
struct Ending<'a> {
    object: &'a Object,
    /// Bytes of the file.
    len: u64,
    /// Where the end lies.
    tail: Range<u64>,
    end: Bytes,
}

impl Ending<'_> {
    /// Reads the footer, without the statistics, which nobody asks for.
    fn footer(&self) -> Result<ParquetMetaData, Error> {
        let skip = || ParquetStatisticsPolicy::SkipAll;
        let wanted = ParquetMetaDataOptions::new()
            .with_column_stats_policy(skip())
            .with_encoding_stats_policy(skip())
            .with_size_stats_policy(skip());
        let decoder = match Decoder::try_new(self.len) {
            Ok(decoder) => decoder,
            Err(error) => return Err(self.no_parquet(&error.to_string())?),
        };
        let decoder = decoder
            .with_page_index_policy(PageIndexPolicy::Skip)
            .with_metadata_options(Some(Arc::new(wanted)));
        match self.decode(decoder)? {
            Ok(metadata) => Ok(metadata),
            Err(reason) => Err(self.no_parquet(&reason)?),
        }
    }

    /// Adds the offset index of the columns, where there is one that can be read.
    fn with_pages(
        &self,
        metadata: ParquetMetaData,
        columns: &Columns,
    ) -> Result<ParquetMetaData, Error> {
        let decoder = match Decoder::try_new_with_metadata(self.len, metadata.clone()) {
            Ok(decoder) => decoder,
            Err(error) => return Err(self.unreadable(error.to_string())),
        };
        let decoder = decoder
            .with_column_index_policy(PageIndexPolicy::Skip)
            .with_offset_index_policy(PageIndexPolicy::Optional)
            .with_offset_index_mask(ColumnChunkMask::columns(columns.leaves()));
        match self.decode(decoder)? {
            Ok(metadata) => Ok(metadata),
            Err(reason) => {
                let url = &self.object.url;
                tracing::warn!(%url, %reason, "offset index is damaged, whole row groups are read");
                Ok(metadata)
            }
        }
    }

    /// Decodes the end, and fetches what it lacks. The inner error is the file's fault.
    fn decode(&self, mut decoder: Decoder) -> Result<Result<ParquetMetaData, String>, Error> {
        let mut more = vec![(self.tail.clone(), self.end.clone())];
        loop {
            let step = panics::caught(|| {
                let (ranges, parts) = std::mem::take(&mut more).into_iter().unzip();
                decoder.push_ranges(ranges, parts)?;
                decoder.try_decode()
            });
            let ranges = match step {
                Ok(Ok(DecodeResult::Data(metadata))) => return Ok(Ok(metadata)),
                Ok(Ok(DecodeResult::NeedsData(ranges))) => ranges,
                Ok(Ok(DecodeResult::Finished)) => return Ok(Err("nothing in it".to_owned())),
                Ok(Err(error)) => return Ok(Err(shown(&error.to_string()))),
                Err(panic) => return Ok(Err(shown(&panic))),
            };
            for range in ranges {
                if range.is_empty() || range.end > self.len {
                    let (Range { start, end }, len) = (range, self.len);
                    return Ok(Err(format!("bytes {start} to {end} of {len} are wanted")));
                }
                more.push((range.clone(), fetch(self.object, range)?));
            }
        }
    }

    /// Returns the row groups that have rows.
    fn groups(&self, metadata: &ParquetMetaData, columns: &Columns) -> Result<Vec<Group>, Error> {
        let mut groups = Vec::new();
        let mut start = 0_u64;
        for number in 0..metadata.num_row_groups() {
            let chunks = self
                .group(metadata, number, columns)
                .map_err(|reason| self.unreadable(format!("row group {number}: {reason}")))?;
            let Some((rows, chunks)) = chunks else { continue };
            groups.push(Group { file: 0, number, start, rows, chunks });
            start = start.saturating_add(rows);
        }
        Ok(groups)
    }

    /// Returns rows and columns of a row group, unless it is empty.
    fn group(
        &self,
        metadata: &ParquetMetaData,
        number: usize,
        columns: &Columns,
    ) -> Result<Option<(u64, Vec<Chunk>)>, String> {
        let group = metadata.row_group(number);
        let rows = u32::try_from(group.num_rows())
            .map_err(|_| format!("it is said to have {} rows", group.num_rows()))?;
        if rows == 0 {
            return Ok(None);
        }
        let chunk = |leaf: usize| {
            let meta = group.columns().get(leaf).ok_or("it lacks columns")?.clone();
            let name = meta.column_path().string();
            let index = metadata.page_index().and_then(|index| index.page_locations(number, leaf));
            Chunk::new(meta, index.cloned(), rows.into(), self.len)
                .map_err(|reason| format!("column {name:?}: {reason}"))
        };
        let chunks: Result<Vec<_>, _> = columns.leaves().into_iter().map(chunk).collect();
        Ok(Some((rows.into(), chunks?)))
    }

    /// Says of a file whose footer cannot be read what it is.
    fn no_parquet(&self, reason: &str) -> Result<Error, Error> {
        let beginning = 0..self.len.min(found::BEGINNING as u64);
        let begin = match beginning.is_empty() {
            true => Bytes::new(),
            false => fetch(self.object, beginning)?,
        };
        let len = self.len;
        let reason = match found::described(&begin) {
            _ if len == 0 => "it is empty".to_owned(),
            _ if begin.starts_with(MAGIC) => format!(
                "it begins as one, but its end does not say what is in it ({reason}); it may have been cut off at byte \
                 {len}: copy or write it again"
            ),
            Some(what) => format!("it is {what}"),
            None => format!("{reason} ({len} bytes)"),
        };
        Ok(Error::NoParquet { url: self.object.url.clone(), reason })
    }

    fn unreadable(&self, reason: String) -> Error {
        Error::Parquet { url: self.object.url.clone(), reason }
    }
}

fn fetch(object: &Object, range: Range<u64>) -> Result<Bytes, Error> {
    let ranges = std::slice::from_ref(&range);
    let fetched = object.ranges(ranges, &CancellationToken::new())?;
    Ok(fetched.into_iter().next().unwrap_or_default())
}
