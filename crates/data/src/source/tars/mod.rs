//! Webdataset shards: tars whose samples are consecutive members that share a key, plain or compressed by gzip.
//!
//! Modules in reading order: [`content`] (a shard's bytes), [`unpacked`] (of compressed ones), [`members`] and [`sparse`]
//! (what tars hold), [`groups`] and [`index`] (what is where), [`indexes`] (of many shards), [`counts`] (samples per
//! shard), [`counting`] (of shards that nobody has counted).

mod content;
mod counting;
mod counts;
mod groups;
mod index;
mod indexes;
mod members;
mod sparse;
mod unpacked;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use bytes::Bytes;
use object_store::ObjectMeta;
use ringmaster_manifest::spec;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use self::content::Content;
use self::counting::Counted;
use self::counts::Counts;
use self::index::{Index, Wanted};
use self::indexes::Indexes;
use self::members::Span;
use self::unpacked::Unpacked;
use super::{Shards, captions};
use crate::Error;
use crate::sample::{Block, Damaged, Flaw, RawSample};
use crate::store::{Object, Stores, heads};

/// Which shards, and which of their members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// Shards: absolute paths or URLs, in order.
    pub(crate) urls: Vec<String>,
    /// Extensions tried for the image, in order.
    pub(crate) image_key: Vec<String>,
    /// Extension of the caption.
    pub(crate) text_key: String,
    /// Field of the `.json` member that holds the caption or a list of captions instead; of
    /// several names, joined by `;`, the first that holds one counts.
    pub(crate) json_text_key: Option<String>,
}

impl Options {
    /// Returns what a manifest's `data` asks of a source.
    pub(crate) fn of(data: &spec::Data, source: &spec::Source) -> Self {
        Self {
            urls: source.data.clone(),
            image_key: data.image_key.clone(),
            text_key: data.text_key.clone(),
            json_text_key: data.json_text_key.clone(),
        }
    }
}

/// Opened tars.
#[derive(Debug)]
pub(crate) struct Tars {
    options: Options,
    wanted: Wanted,
    shards: Vec<Object>,
    metas: Vec<ObjectMeta>,
    sizes: Vec<u64>,
    damaged: Vec<Damaged>,
    /// The first shard without samples, and why it has none.
    empty: Option<(String, String)>,
    indexes: Mutex<Indexes>,
    unpacked: unpacked::Cache,
    /// Says that compressed shards are slow.
    told_packed: Once,
}

impl Tars {
    /// Finds every shard and its number of samples: declared in `sizes.json` beside the shards,
    /// counted by an earlier start, or counted now from the tar headers and cached beside them
    /// where the store allows it.
    ///
    /// # Errors
    /// A shard that is missing or no tar, named; shards of which none holds a sample; a store that fails.
    pub(crate) fn open(options: Options) -> Result<Self, Error> {
        let lower = |keys: &[String]| keys.iter().map(|key| key.to_ascii_lowercase()).collect();
        let text = match options.json_text_key {
            Some(_) => "json".to_owned(),
            None => options.text_key.to_ascii_lowercase(),
        };
        let mut dataset = Self {
            wanted: Wanted { image: lower(&options.image_key), text },
            shards: Vec::new(),
            metas: Vec::new(),
            sizes: Vec::new(),
            damaged: Vec::new(),
            empty: None,
            indexes: Mutex::default(),
            unpacked: unpacked::Cache::default(),
            told_packed: Once::new(),
            options,
        };
        let mut stores = Stores::default();
        for url in &dataset.options.urls {
            dataset.shards.push(stores.object(url)?);
        }
        dataset.metas = heads(&dataset.shards)?;
        dataset.find_sizes()?;
        match dataset.empty.take().filter(|_| dataset.sizes.iter().all(|size| *size == 0)) {
            Some((url, reason)) => Err(Error::Empty { url, reason }),
            None => Ok(dataset),
        }
    }

    /// Returns the sample at a place, whose members are these if they could be fetched.
    fn sample(
        &self,
        shard: usize,
        tar: &Index,
        place: usize,
        members: Result<(Bytes, Bytes), String>,
    ) -> Result<RawSample, Flaw> {
        if place >= tar.len() {
            let reason = tar.broken.clone().unwrap_or_else(|| {
                format!("the shard holds {} samples, fewer than declared", tar.len())
            });
            return Err(self.flaw(shard, &format!("#{place}"), reason));
        }
        let key = tar.key(place);
        let flaw = |reason| self.flaw(shard, key, reason);
        let (image, text) = members.map_err(flaw)?;
        let captions = match &self.options.json_text_key {
            Some(fields) => captions::of_json(&text, fields),
            None => captions::of_text(&text),
        };
        let captions = captions.map_err(flaw)?;
        let key = format!("{}/{key}", self.shards[shard].file_name());
        Ok(RawSample { key, image, captions })
    }

    fn members(&self, tar: &Index, place: usize) -> Result<(Span, Span), String> {
        if place >= tar.len() {
            return Err("not in the shard".to_owned());
        }
        tar.members(place, &self.wanted)
    }

    fn flaw(&self, shard: usize, key: &str, reason: String) -> Flaw {
        Flaw { shard: self.shards[shard].url.clone(), key: key.to_owned(), reason }
    }

    /// Finds the samples of every shard: those that nobody has counted are read.
    fn find_sizes(&mut self) -> Result<(), Error> {
        let mut counts = Counts::new(&self.wanted);
        let of_known = self.shards.iter().zip(&self.metas);
        let known = of_known.map(|(shard, meta)| counts.known(shard, meta));
        let known = known.collect::<Result<Vec<_>, _>>()?;
        let unknown: Vec<usize> =
            (0..known.len()).filter(|&shard| known[shard].is_none()).collect();
        let counted = self.count_all(&unknown)?;
        self.sizes = known.into_iter().map(Option::unwrap_or_default).collect();
        for (shard, found) in counted {
            self.sizes[shard] = found.samples;
            self.judge(shard, found, &mut counts)?;
        }
        counts.save();
        Ok(())
    }

    /// Remembers what was counted, or says what is wrong with the shard.
    fn judge(&mut self, shard: usize, found: Counted, counts: &mut Counts) -> Result<(), Error> {
        let (object, samples) = (&self.shards[shard], found.samples);
        let url = object.url.clone();
        // A count that a repair would change is not worth keeping, nor is one that goes without a word next time.
        if let Some(reason) = found.broken {
            tracing::warn!(%url, %reason, samples, "damaged shard");
            self.damaged.push(Damaged { url, samples, reason });
        } else if let Some(reason) = found.nothing {
            tracing::warn!(%url, %reason, "shard without samples");
            self.empty.get_or_insert((url, reason));
        } else {
            counts.remember(object, &self.metas[shard], samples)?;
        }
        Ok(())
    }

    fn index(&self, shard: usize, cancel: &CancellationToken) -> Result<Arc<Index>, Error> {
        if let Some(known) = self.indexes().get(shard) {
            return Ok(known);
        }
        // Two readers may build the same index once; that costs less than waiting with the lock.
        let index = Arc::new(self.build(shard, cancel)?);
        if self.indexes().keep(shard, &index) {
            self.tell(shard, &index);
        }
        Ok(index)
    }

    fn build(&self, shard: usize, cancel: &CancellationToken) -> Result<Index, Error> {
        let stored = self.stored(shard, cancel);
        let beginning = stored.beginning()?;
        if !unpacked::is_gzip(&beginning) {
            return Index::read(&stored, beginning, &self.wanted);
        }
        let unpacked = self.unpack(shard, cancel)?;
        let bytes = unpacked.bytes.clone();
        let mut index = Index::read(&Content::Unpacked(bytes.clone()), bytes, &self.wanted)?;
        index.is_packed = true;
        // What stands behind the end of the tar is no part of it.
        if let Some(damage) = unpacked.damage.as_ref().filter(|_| !index.is_complete) {
            index.broken =
                Some(format!("compressed by gzip, and {damage}; copy or build the shard again"));
        }
        Ok(index)
    }

    /// Says what is odd about a shard whose index was built for the first time.
    fn tell(&self, shard: usize, index: &Index) {
        let (url, found) = (&self.shards[shard].url, index.len());
        if let Some(&declared) = self.sizes.get(shard)
            && found as u64 > declared
        {
            tracing::warn!(%url, declared, found, "more samples than declared; the rest is unused");
        }
        if let Some(byte) = index.more_after {
            tracing::warn!(
                %url, byte, samples = found,
                "more follows the end marker of the tar, as where two were put together by cat; it is not read: unpack \
                 both and write one shard, or several"
            );
        }
        if index.is_packed {
            self.told_packed.call_once(|| {
                tracing::warn!(
                    %url,
                    "shards compressed by gzip are read and unpacked as a whole whenever one of their samples is \
                     needed and they are not at hand any more; write them uncompressed (gunzip)"
                );
            });
        }
    }

    fn stored<'a>(&'a self, shard: usize, cancel: &'a CancellationToken) -> Content<'a> {
        let (shard, len) = (&self.shards[shard], self.metas[shard].size);
        Content::Stored { shard, len, cancel }
    }

    fn unpack(&self, shard: usize, cancel: &CancellationToken) -> Result<Arc<Unpacked>, Error> {
        self.unpacked.get(shard, || {
            let stored = self.stored(shard, cancel);
            stored.range(0..stored.len())
        })
    }

    /// Returns what the index of a shard tells the places in.
    fn content<'a>(
        &'a self,
        shard: usize,
        index: &Index,
        cancel: &'a CancellationToken,
    ) -> Result<Content<'a>, Error> {
        if index.is_packed {
            return Ok(Content::Unpacked(self.unpack(shard, cancel)?.bytes.clone()));
        }
        Ok(self.stored(shard, cancel))
    }

    fn indexes(&self) -> MutexGuard<'_, Indexes> {
        self.indexes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shards for Tars {
    fn sizes(&self) -> &[u64] {
        &self.sizes
    }

    /// What is compressed as a whole is read as a whole, if the names say so: what is found when shards are counted is
    /// not known when counts are.
    fn block_samples(&self, asked: u32) -> u32 {
        if !self.shards.iter().any(|shard| unpacked::is_gzip_name(&shard.file_name())) {
            return asked;
        }
        let longest = self.sizes.iter().max().copied().unwrap_or_default();
        asked.max(u32::try_from(longest).unwrap_or(u32::MAX))
    }

    fn damaged(&self) -> &[Damaged] {
        &self.damaged
    }

    fn add_to(&self, fingerprint: &mut Sha256) {
        for ((shard, meta), size) in self.shards.iter().zip(&self.metas).zip(&self.sizes) {
            fingerprint.update(format!("{} {} {size}\n", shard.file_name(), meta.size));
        }
    }

    fn is_remote(&self) -> bool {
        self.shards.iter().any(Object::is_remote)
    }

    fn bytes(&self) -> u64 {
        self.metas.iter().map(|meta| meta.size).sum()
    }

    fn fetch(
        &self,
        shard: usize,
        places: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<Block, Error> {
        let index = self.index(shard, cancel)?;
        let spans: Vec<Result<(Span, Span), String>> =
            places.clone().map(|place| self.members(&index, place as usize)).collect();
        let ranges: Vec<Range<u64>> = spans
            .iter()
            .flatten()
            .flat_map(|(image, text)| [image.range(), text.range()])
            .collect();
        let content = self.content(shard, &index, cancel)?;
        let mut parts = content.ranges(&ranges)?.into_iter();
        let mut next = |span| index.expanded(span, parts.next().unwrap_or_default());
        let samples = places.clone().zip(spans).map(|(place, spans)| {
            let members = spans.and_then(|(image, text)| {
                // Both are taken, whatever the first is.
                let (image, text) = (next(image), next(text));
                Ok((image?, text?))
            });
            self.sample(shard, &index, place as usize, members)
        });
        let samples = samples.collect();
        let bytes = ranges.iter().map(|range| range.end - range.start).sum();
        Ok(Block { first: places.start, samples, bytes })
    }
}
