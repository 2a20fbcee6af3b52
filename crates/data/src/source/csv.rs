//! Tables of images and captions: one row is one sample, one file of them one shard.
//!
//! A table may have many millions of rows, and every rank reads it: of its rows no more is kept than where each 64th
//! begins. Whoever asks for a block reads that part of the text, and then the images its rows name.

use std::ops::Range;

use ::csv::ByteRecord;
use bytes::Bytes;
use ringmaster_manifest::spec;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::objects::{self, Objects};
use super::table::Table;
use super::text::Text;
use super::{Shards, captions};
use crate::Error;
use crate::sample::{Block, Flaw, RawSample};

/// A place in the text is kept for every so many rows.
const MARKED: u64 = 64;
/// Images that are read when a source is opened, to know about how long they are.
const TRIED: u64 = 16;
/// Bytes of an image where none of those could be read.
const USUAL_IMAGE: u64 = 100 << 10;

/// Which tables, and which of their columns: as OpenCLIP's `--csv-separator`, `--csv-img-key`, `--csv-caption-key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// Tables: absolute paths or URLs, in order; they may be compressed by gzip.
    pub(crate) urls: Vec<String>,
    /// Stands between two fields.
    pub(crate) separator: u8,
    /// Column of the images' paths or URLs; relative ones start at the table's folder.
    pub(crate) img_key: String,
    /// Column of the captions.
    pub(crate) caption_key: String,
}

impl Options {
    /// Returns what a manifest's `data` asks of a source.
    pub(crate) fn of(data: &spec::Data, source: &spec::Source) -> Self {
        Self {
            urls: source.data.clone(),
            // Manifests with another one are refused.
            separator: u8::try_from(data.csv_separator).unwrap_or(b'\t'),
            img_key: data.csv_img_key.clone(),
            caption_key: data.csv_caption_key.clone(),
        }
    }
}

/// Opened tables.
#[derive(Debug)]
pub(crate) struct Csv {
    options: Options,
    objects: Objects,
    tables: Vec<Marked>,
    sizes: Vec<u64>,
    is_remote: bool,
    image_bytes: u64,
}

/// A table, and where its rows are.
#[derive(Debug)]
struct Marked {
    table: Table,
    /// Offset and line of every [`MARKED`]th row.
    marks: Vec<(u64, u64)>,
    rows: u64,
    /// Which columns hold image and caption.
    image: usize,
    caption: usize,
}

/// What a row says: where the image is, and what is on it.
#[derive(Debug)]
struct Pair {
    url: String,
    captions: Vec<String>,
}

/// The line that a row begins on, and what the row says or what is wrong with it.
type Said = (u64, Result<Pair, String>);

impl Csv {
    /// Reads every table once, to know where its rows are.
    ///
    /// # Errors
    /// A table that is missing, empty, without the columns or with a quote that is never closed, named; a store that
    /// fails.
    pub(crate) fn open(options: Options) -> Result<Self, Error> {
        Self::open_with(options, Objects::default())
    }

    /// As [`Self::open`], with a way to objects that waits as long as the test wants.
    #[cfg(test)]
    pub(crate) fn open_patient(
        options: Options,
        patience: std::time::Duration,
    ) -> Result<Self, Error> {
        Self::open_with(options, Objects::with_patience(patience))
    }

    fn open_with(options: Options, objects: Objects) -> Result<Self, Error> {
        let open = |url: &String| Marked::open(objects.object(url)?, &options);
        let tables = options.urls.iter().map(open).collect::<Result<Vec<_>, Error>>()?;
        let sizes: Vec<u64> = tables.iter().map(|table| table.rows).collect();
        let is_remote = options.urls.iter().any(|url| objects::is_remote(url));
        let image_bytes = USUAL_IMAGE;
        let mut source = Self { options, objects, tables, sizes, is_remote, image_bytes };
        source.try_images()?;
        Ok(source)
    }

    /// Reads the first images: how long they are stands for all, and so does where they lie.
    fn try_images(&mut self) -> Result<(), Error> {
        let Some(table) = self.tables.first() else { return Ok(()) };
        let tried = 0..table.rows.min(TRIED);
        let cancel = CancellationToken::new();
        let pairs = table.pairs(tried.clone(), &cancel)?;
        let far = |pair: &Result<Pair, String>| {
            pair.as_ref().is_ok_and(|pair| objects::is_remote(&pair.url))
        };
        self.is_remote |= pairs.iter().any(|(_, pair)| far(pair));
        let block = self.fetch(0, tried, &cancel)?;
        let good = block.samples.iter().flatten().count() as u64;
        if let (0, Some(Err(flaw))) = (good, block.samples.first()) {
            tracing::warn!(%flaw, "none of the first images can be read");
        }
        self.image_bytes = block.bytes.checked_div(good).unwrap_or(USUAL_IMAGE);
        Ok(())
    }

    fn sample(
        &self,
        shard: usize,
        line: u64,
        pair: Result<(Pair, Result<Bytes, String>), String>,
    ) -> Result<RawSample, Flaw> {
        let text = &self.tables[shard].table.text;
        let key = format!("on line {line}");
        let flaw = |reason| Err(Flaw { shard: text.url().to_owned(), key, reason });
        match pair {
            Ok((Pair { url, captions }, Ok(image))) => {
                let key = format!("{}/line {line} ({url})", text.file_name());
                Ok(RawSample { key, image, captions })
            }
            Ok((Pair { url, .. }, Err(reason))) => flaw(format!("image {url}: {reason}")),
            Err(reason) => flaw(reason),
        }
    }
}

impl Shards for Csv {
    fn sizes(&self) -> &[u64] {
        &self.sizes
    }

    fn add_to(&self, fingerprint: &mut Sha256) {
        let Options { separator, img_key, caption_key, .. } = &self.options;
        fingerprint.update(format!("csv {separator} {img_key:?} {caption_key:?}\n"));
        for Marked { table, rows, .. } in &self.tables {
            fingerprint.update(format!("{} {} {rows}\n", table.text.file_name(), table.text.len()));
        }
    }

    fn is_remote(&self) -> bool {
        self.is_remote
    }

    fn bytes(&self) -> u64 {
        self.sizes.iter().sum::<u64>().saturating_mul(self.image_bytes)
    }

    fn fetch(
        &self,
        shard: usize,
        places: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<Block, Error> {
        let pairs = self.tables[shard].pairs(places.clone(), cancel)?;
        let urls: Vec<String> =
            pairs.iter().flat_map(|(_, pair)| pair).map(|pair| pair.url.clone()).collect();
        let images = self.objects.fetch(&urls, cancel)?;
        let bytes = images.iter().flatten().map(|image| image.len() as u64).sum();
        let mut images = images.into_iter();
        let mut image = || images.next().expect("as many images as rows that name one");
        let samples = pairs
            .into_iter()
            .map(|(line, pair)| self.sample(shard, line, pair.map(|pair| (pair, image()))))
            .collect();
        Ok(Block { first: places.start, samples, bytes })
    }
}

impl Marked {
    fn open(object: crate::store::Object, options: &Options) -> Result<Self, Error> {
        let table = Table::open(Text::open(object)?, options.separator)?;
        let image = table.named_by("data.csv_img_key", &options.img_key)?;
        let caption = table.named_by("data.csv_caption_key", &options.caption_key)?;
        let (mut marks, mut row) = (Vec::new(), 0);
        let rows = table.scan(|found| {
            if row % MARKED == 0 {
                marks.push((found.start, found.line));
            }
            row += 1;
        })?;
        if rows == 0 {
            let reason = "a table without rows".to_owned();
            return Err(Error::Empty { url: table.text.url().to_owned(), reason });
        }
        Ok(Self { table, marks, rows, image, caption })
    }

    /// Returns what the rows at some places say, and on which line each begins.
    fn pairs(&self, places: Range<u64>, cancel: &CancellationToken) -> Result<Vec<Said>, Error> {
        let first = places.start / MARKED;
        let (start, line) = self.marks[first as usize];
        let after = self.marks.get(places.end.div_ceil(MARKED) as usize);
        let end = after.map_or(self.table.text.len(), |(start, _)| *start);
        let part = self.table.text.part(start..end, cancel)?;
        let skipped = (places.start - first * MARKED) as usize;
        let count = (places.end - places.start) as usize;
        let rows = self.table.parse(&part, line).skip(skipped).take(count);
        let pairs: Vec<_> = rows.map(|(line, fields)| (line, self.pair(&fields))).collect();
        if pairs.len() < count {
            return Err(Error::Replaced { url: self.table.text.url().to_owned() });
        }
        Ok(pairs)
    }

    fn pair(&self, fields: &ByteRecord) -> Result<Pair, String> {
        let (count, columns) = (fields.len(), self.table.columns());
        if count != columns {
            return Err(format!("the row has {count} fields and the table {columns} columns"));
        }
        let image = std::str::from_utf8(&fields[self.image]).map_err(|e| format!("image: {e}"))?;
        if image.trim().is_empty() {
            return Err("no image: its field is empty".to_owned());
        }
        let captions = captions::of_text(&fields[self.caption])?;
        if captions.iter().all(String::is_empty) {
            return Err("no caption: its field is empty".to_owned());
        }
        Ok(Pair { url: objects::below(objects::folder(self.table.text.url()), image), captions })
    }
}
