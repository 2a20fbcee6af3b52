//! Parquet files: every row group is a shard, every row a sample.
//!
//! Read: [`file`] (what the end of a file says: row groups, columns and pages), [`columns`] (which columns hold image
//! and caption), [`pages`] (which bytes hold which rows), [`values`] (a column's values from these bytes), [`rows`]
//! (image and captions from values). Only the two columns are read. Where files have an offset index, a block is a
//! run of rows and costs the pages that hold them; without one nobody knows where a row begins, and the block is the
//! row group.

mod columns;
mod file;
mod pages;
mod rows;
mod values;

use std::ops::Range;

use ringmaster_manifest::spec;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use self::file::File;
use self::pages::Group;
use self::rows::{Image, Row};
use self::values::Parts;
use super::Shards;
use super::objects::Objects;
use crate::Error;
use crate::sample::{Block, Flaw, RawSample};
use crate::store::Stores;

/// Blocks of more rows than this are warned of: a pool of 250,000 samples holds only fifteen of them.
const MANY_ROWS: u64 = 16_384;
/// Bytes that an epoch may read, as a multiple of what the columns hold: pages that two blocks share are read twice.
const MOST_REREAD: f64 = 1.5;

/// Which files, and which of their columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// Files: absolute paths or URLs, in order.
    pub(crate) urls: Vec<String>,
    /// Names of the image's column; the first that a file has counts.
    pub(crate) img_keys: Vec<String>,
    /// Names of the caption's column; the first that a file has counts.
    pub(crate) caption_keys: Vec<String>,
}

impl Options {
    /// Returns what a manifest's `data` asks of a source.
    pub(crate) fn of(data: &spec::Data, source: &spec::Source) -> Self {
        Self {
            urls: source.data.clone(),
            img_keys: data.parquet_img_key.clone(),
            caption_keys: data.parquet_caption_key.clone(),
        }
    }
}

/// Opened Parquet files.
#[derive(Debug)]
pub(crate) struct Parquet {
    files: Vec<File>,
    groups: Vec<Group>,
    /// Rows of every group.
    sizes: Vec<u64>,
    /// Fetches images that lie elsewhere.
    objects: Objects,
}

impl Parquet {
    /// Reads the end of every file: what row groups, columns and pages it has.
    ///
    /// # Errors
    /// A file that is missing, is no Parquet file, is damaged there, lacks the columns or has no rows, named; a store
    /// that fails.
    pub(crate) fn open(options: &Options) -> Result<Self, Error> {
        let mut stores = Stores::default();
        let objects: Result<Vec<_>, _> =
            options.urls.iter().map(|url| stores.object(url)).collect();
        let mut opened = Self {
            files: Vec::new(),
            groups: Vec::new(),
            sizes: Vec::new(),
            objects: Objects::default(),
        };
        for (number, (file, groups)) in file::open_all(&objects?, options)?.into_iter().enumerate()
        {
            opened.files.push(file);
            opened.groups.extend(groups.into_iter().map(|group| Group { file: number, ..group }));
        }
        opened.sizes = opened.groups.iter().map(|group| group.rows).collect();
        Ok(opened)
    }

    /// Returns samples of rows from `first` on, and the bytes of the images that were fetched for them.
    fn samples(
        &self,
        group: &Group,
        first: u64,
        rows: Vec<Result<Row, String>>,
        cancel: &CancellationToken,
    ) -> Result<(Vec<Result<RawSample, Flaw>>, u64), Error> {
        let links: Vec<String> = rows.iter().flatten().filter_map(Row::link).collect();
        let mut images = self.objects.fetch(&links, cancel)?.into_iter();
        let object = &self.files[group.file].object;
        let (mut samples, mut bytes) = (Vec::new(), 0);
        for (row, place) in rows.into_iter().zip(first..) {
            let (at, number) = (group.start + place, group.number);
            let key = format!("row {at} (row {place} of row group {number})");
            let complete = row.and_then(|row| {
                let image = match row.image {
                    Image::Bytes(image) => image,
                    Image::Link(link) => {
                        let image = images.next().unwrap_or_else(|| Err("not fetched".to_owned()));
                        let image = image.map_err(|reason| format!("image {link}: {reason}"))?;
                        bytes += image.len() as u64;
                        image
                    }
                };
                Ok((image, row.captions))
            });
            samples.push(match complete {
                Ok((image, captions)) => {
                    Ok(RawSample { key: format!("{}/{key}", object.file_name()), image, captions })
                }
                Err(reason) => Err(Flaw { shard: object.url.clone(), key, reason }),
            });
        }
        Ok((samples, bytes))
    }
}

impl Shards for Parquet {
    fn sizes(&self) -> &[u64] {
        &self.sizes
    }

    /// Where every row group has an offset index: the smallest number of rows, from `asked` on by doubling, of which
    /// an epoch reads no more than [`MOST_REREAD`] times what the columns hold. Otherwise the largest row group.
    fn block_samples(&self, asked: u32) -> u32 {
        let largest = self.sizes.iter().copied().max().unwrap_or(1);
        let indexed = self.groups.iter().all(Group::is_indexed);
        let mut rows = if indexed { u64::from(asked.max(1)).min(largest) } else { largest };
        while rows < largest && pages::reread(&self.groups, rows) > MOST_REREAD {
            rows = largest.min(rows * 2);
        }
        if rows > MANY_ROWS {
            let file = &self.files[0].object.url;
            tracing::warn!(
                rows,
                "{file} and those with it have to be read {rows} rows at a time, which mix badly and take memory; \
                 write them with row groups of at most {MANY_ROWS} rows, or with an offset index and small pages \
                 (pyarrow: row_group_size=1000, or write_page_index=True with write_batch_size=64)"
            );
        }
        u32::try_from(rows).unwrap_or(u32::MAX)
    }

    fn add_to(&self, fingerprint: &mut Sha256) {
        for group in &self.groups {
            let File { object, len, columns } = &self.files[group.file];
            let (name, rows) = (object.file_name(), group.rows);
            let (image, caption) = (&columns.image_name, &columns.caption_name);
            fingerprint.update(format!("{name} {len} {rows} {image:?} {caption:?}\n"));
        }
    }

    fn is_remote(&self) -> bool {
        let remote = |file: &File| file.object.is_remote() || file.columns.bytes().is_none();
        self.files.iter().any(remote)
    }

    fn bytes(&self) -> u64 {
        self.groups.iter().map(Group::bytes).sum()
    }

    fn fetch(
        &self,
        shard: usize,
        places: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<Block, Error> {
        let group = &self.groups[shard];
        let file = &self.files[group.file];
        let ranges = group.ranges(&places);
        let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        let fetched = file.object.ranges(&ranges, cancel)?;
        let parts = Parts::new(file.len, &ranges, fetched);
        let rows = rows::read(file, group, &places, parts);
        let (samples, images) = self.samples(group, places.start, rows, cancel)?;
        Ok(Block { first: places.start, samples, bytes: bytes + images })
    }
}
