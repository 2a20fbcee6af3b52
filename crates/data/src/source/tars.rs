//! Webdataset shards: tars whose samples are consecutive members that share a key.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use object_store::ObjectMeta;
use ringmaster_manifest::spec;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::counts::Counts;
use super::index::{Index, Span, Wanted};
use super::{Shards, captions};
use crate::Error;
use crate::sample::{Block, Damaged, Flaw, RawSample};
use crate::store::{Object, Stores};

/// Samples whose places are kept at once, about 50 bytes each: those of the shards that the open windows of a rank lie
/// in, which may be a thousand.
const INDEXED_SAMPLES: usize = 16_000_000;

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
    indexes: Mutex<Indexes>,
}

/// The tar indexes used last, the one unused for longest out first.
#[derive(Debug, Default)]
struct Indexes {
    by_shard: HashMap<usize, Arc<Index>>,
    order: VecDeque<usize>,
    samples: usize,
}

impl Tars {
    /// Finds every shard and its number of samples: declared in `sizes.json` beside the shards,
    /// counted by an earlier start, or counted now from the tar headers and cached beside them
    /// where the store allows it.
    ///
    /// # Errors
    /// A shard that is missing or holds no sample, named; a store that fails.
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
            indexes: Mutex::default(),
            options,
        };
        let mut stores = Stores::default();
        for url in &dataset.options.urls {
            let shard = stores.object(url)?;
            dataset.metas.push(shard.head()?);
            dataset.shards.push(shard);
        }
        let mut counts = Counts::default();
        for shard in 0..dataset.shards.len() {
            let size = dataset.count(shard, &mut counts)?;
            dataset.sizes.push(size);
        }
        counts.save();
        Ok(dataset)
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
        let captions = self.captions(&text).map_err(flaw)?;
        let key = format!("{}/{key}", self.shards[shard].file_name());
        Ok(RawSample { key, image, captions })
    }

    fn members(&self, tar: &Index, place: usize) -> Result<(Span, Span), String> {
        if place >= tar.len() {
            return Err("not in the shard".to_owned());
        }
        let image = tar
            .image(place)
            .ok_or_else(|| format!("no image (.{})", self.wanted.image.join(", .")))?;
        let text = tar.text(place).ok_or_else(|| format!("no caption (.{})", self.wanted.text))?;
        Ok((image, text))
    }

    fn captions(&self, text: &[u8]) -> Result<Vec<String>, String> {
        match &self.options.json_text_key {
            Some(fields) => captions::of_json(text, fields),
            None => captions::of_text(text),
        }
    }

    fn flaw(&self, shard: usize, key: &str, reason: String) -> Flaw {
        Flaw { shard: self.shards[shard].url.clone(), key: key.to_owned(), reason }
    }

    /// Returns the samples of a shard.
    fn count(&mut self, shard: usize, counts: &mut Counts) -> Result<u64, Error> {
        let (object, meta) = (&self.shards[shard], &self.metas[shard]);
        if let Some(samples) = counts.known(object, meta)? {
            return Ok(samples);
        }
        let index = self.index(shard, &CancellationToken::new())?;
        let samples = index.len() as u64;
        if index.is_empty() {
            let reason = index.broken.clone().unwrap_or_else(|| "an empty tar".to_owned());
            return Err(Error::Empty { url: object.url.clone(), reason });
        }
        match &index.broken {
            // A count that a repair would change is not worth keeping.
            Some(reason) => {
                tracing::warn!(url = %object.url, %reason, samples, "damaged shard");
                let (url, reason) = (object.url.clone(), reason.clone());
                self.damaged.push(Damaged { url, samples, reason });
            }
            None => counts.remember(object, meta, samples)?,
        }
        Ok(samples)
    }

    fn index(&self, shard: usize, cancel: &CancellationToken) -> Result<Arc<Index>, Error> {
        if let Some(known) = self.indexes().get(shard) {
            return Ok(known);
        }
        // Two readers may build the same index once; that costs less than waiting with the lock.
        let (object, bytes) = (&self.shards[shard], self.metas[shard].size);
        let index = Arc::new(Index::read(object, bytes, &self.wanted, cancel)?);
        if let Some(&declared) = self.sizes.get(shard)
            && index.len() as u64 > declared
        {
            let (url, found) = (&object.url, index.len());
            tracing::warn!(%url, declared, found, "more samples than declared; the rest is unused");
        }
        self.indexes().keep(shard, &index);
        Ok(index)
    }

    fn indexes(&self) -> std::sync::MutexGuard<'_, Indexes> {
        self.indexes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shards for Tars {
    fn sizes(&self) -> &[u64] {
        &self.sizes
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
        let mut parts = self.shards[shard].ranges(&ranges, cancel)?.into_iter();
        let mut next = || parts.next().unwrap_or_default();
        let samples = places.clone().zip(spans).map(|(place, spans)| {
            let members = spans.map(|_| (next(), next()));
            self.sample(shard, &index, place as usize, members)
        });
        let samples = samples.collect();
        let bytes = ranges.iter().map(|range| range.end - range.start).sum();
        Ok(Block { first: places.start, samples, bytes })
    }
}

impl Indexes {
    fn get(&mut self, shard: usize) -> Option<Arc<Index>> {
        let known = Arc::clone(self.by_shard.get(&shard)?);
        // A shard is asked for once a block, so that a walk through a thousand of them costs nothing.
        if let Some(place) = self.order.iter().position(|other| *other == shard) {
            self.order.remove(place);
            self.order.push_back(shard);
        }
        Some(known)
    }

    fn keep(&mut self, shard: usize, index: &Arc<Index>) {
        if self.by_shard.insert(shard, Arc::clone(index)).is_some() {
            return;
        }
        self.order.push_back(shard);
        self.samples += index.len();
        while self.samples > INDEXED_SAMPLES
            && self.order.len() > 1
            && let Some(oldest) = self.order.pop_front()
        {
            self.samples -= self.by_shard.remove(&oldest).map_or(0, |index| index.len());
        }
    }
}
