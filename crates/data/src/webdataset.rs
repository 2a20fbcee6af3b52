//! A webdataset: shards of consecutive members that share a key, behind one index over samples.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use object_store::ObjectMeta;
use ringmaster_manifest::spec;
use ringmaster_weights::found;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::counts::Counts;
use crate::index::{Index, Span, Wanted};
use crate::store::{Object, Stores};

/// Samples whose places are kept at once, about 50 bytes each: those of the shards that the open windows of a rank lie
/// in, which may be a thousand.
const INDEXED_SAMPLES: usize = 16_000_000;

/// Which shards, and which of their members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Shards: absolute paths or URLs, in order.
    pub urls: Vec<String>,
    /// Extensions tried for the image, in order.
    pub image_key: Vec<String>,
    /// Extension of the caption.
    pub text_key: String,
    /// Field of the `.json` member that holds the caption or a list of captions instead; of
    /// several names, joined by `;`, the first that holds one counts.
    pub json_text_key: Option<String>,
}

impl Options {
    /// Returns what a manifest's `data` asks of a source.
    pub fn of(data: &spec::Data, source: &spec::Source) -> Self {
        Self {
            urls: source.data.clone(),
            image_key: data.image_key.clone(),
            text_key: data.text_key.clone(),
            json_text_key: data.json_text_key.clone(),
        }
    }
}

/// A sample as it lies in its shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawSample {
    /// `shard/key`, for people.
    pub key: String,
    /// The encoded image.
    pub image: Bytes,
    /// Its captions; at least one.
    pub captions: Vec<String>,
}

/// Samples of a shard whose bytes are at hand.
#[derive(Debug)]
pub(crate) struct Run {
    shard: usize,
    /// Place in the shard of the first.
    first: u64,
    index: Arc<Index>,
    /// Image and text of each; none for a sample that lacks one.
    members: Vec<Option<(Bytes, Bytes)>>,
    bytes: u64,
}

impl Run {
    /// Returns how much it holds.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Why a sample could not be read.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// Its bytes are wrong, and will be next time.
    #[error("{shard}, sample {key}: {reason}")]
    Corrupt {
        shard: String,
        /// The sample's key, or its place in the shard.
        key: String,
        reason: String,
    },
    /// The store failed.
    #[error("sample store")]
    Store(#[from] Error),
}

/// Opened shards; shared by reader threads.
#[derive(Debug)]
pub struct Webdataset {
    options: Options,
    wanted: Wanted,
    shards: Vec<Object>,
    metas: Vec<ObjectMeta>,
    sizes: Vec<u64>,
    /// Index in the data set of every shard's first sample.
    starts: Vec<u64>,
    damaged: Vec<Damaged>,
    indexes: Mutex<Indexes>,
}

/// A shard that breaks off and whose number of samples nobody declared: how many are lost is not
/// known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// The shard.
    pub url: String,
    /// Samples before the break, which are used.
    pub samples: u64,
    /// Where it breaks off, and what to do.
    pub reason: String,
}

/// The tar indexes used last, the one unused for longest out first.
#[derive(Debug, Default)]
struct Indexes {
    by_shard: HashMap<usize, Arc<Index>>,
    order: VecDeque<usize>,
    samples: usize,
}

impl Webdataset {
    /// Finds every shard and its number of samples: declared in `sizes.json` beside the shards,
    /// counted by an earlier start, or counted now from the tar headers and cached beside them
    /// where the store allows it.
    ///
    /// # Errors
    /// A shard that is missing or holds no sample, named; a store that fails.
    pub fn open(options: Options) -> Result<Self, Error> {
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
            starts: Vec::new(),
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
        let mut start = 0;
        for shard in 0..dataset.shards.len() {
            let size = dataset.count(shard, &mut counts)?;
            dataset.sizes.push(size);
            dataset.starts.push(start);
            start += size;
        }
        counts.save();
        Ok(dataset)
    }

    /// Returns the number of samples.
    pub fn len(&self) -> u64 {
        self.sizes.iter().sum()
    }

    /// Whether there is no sample; an opened data set has some.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the shards that break off, found when they were counted.
    pub fn damaged(&self) -> &[Damaged] {
        &self.damaged
    }

    /// Returns the samples of every shard, in order.
    pub fn shard_sizes(&self) -> &[u64] {
        &self.sizes
    }

    /// Adds the shards' names, lengths and sample counts to a digest: it changes when the order would mean something
    /// else.
    pub(crate) fn add_to(&self, fingerprint: &mut Sha256) {
        for ((shard, meta), size) in self.shards.iter().zip(&self.metas).zip(&self.sizes) {
            fingerprint.update(format!("{} {} {size}\n", shard.file_name(), meta.size));
        }
    }

    /// Reads one sample.
    ///
    /// # Errors
    /// [`SampleError::Corrupt`] for a sample that cannot be used, [`SampleError::Store`] when the
    /// store fails.
    ///
    /// # Panics
    /// When `index` is not below [`Webdataset::len`].
    pub fn read(&self, index: u64) -> Result<RawSample, SampleError> {
        self.read_until(index, &CancellationToken::new())
    }

    /// As [`Webdataset::read`]; `cancel` ends the wait for a store that is away.
    ///
    /// # Errors
    /// As [`Webdataset::read`].
    ///
    /// # Panics
    /// As [`Webdataset::read`].
    pub fn read_until(
        &self,
        index: u64,
        cancel: &CancellationToken,
    ) -> Result<RawSample, SampleError> {
        let (shard, place) = self.place(index);
        let run = self.fetch(shard, place..place + 1, cancel)?;
        self.sample(&run, index)
    }

    /// Returns shard and number of the block that a sample lies in, when blocks are at most `longest` samples long.
    pub(crate) fn block_of(&self, index: u64, longest: u64) -> (usize, u64) {
        let (shard, place) = self.place(index);
        let size = self.sizes[shard];
        let count = size.div_ceil(longest);
        // The last block that begins at or before the place: block i begins at ⌊i·size/count⌋.
        (shard, ((place + 1) * count).div_ceil(size) - 1)
    }

    /// Returns the places in its shard that a block has.
    pub(crate) fn places(&self, shard: usize, block: u64, longest: u64) -> Range<u64> {
        let size = self.sizes[shard];
        let count = size.div_ceil(longest);
        block * size / count..(block + 1) * size / count
    }

    /// Fetches the members of some samples of a shard, in one request where the store can.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn fetch(
        &self,
        shard: usize,
        places: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<Run, Error> {
        let index = self.index(shard, cancel)?;
        let known = places.start..places.end.min(index.len() as u64);
        let spans: Vec<Option<(Span, Span)>> =
            known.map(|place| self.members(&index, place as usize).ok()).collect();
        let ranges: Vec<Range<u64>> = spans
            .iter()
            .flatten()
            .flat_map(|(image, text)| [image.range(), text.range()])
            .collect();
        let mut parts = self.shards[shard].ranges(&ranges, cancel)?.into_iter();
        let mut next = || parts.next().unwrap_or_default();
        let members = spans.iter().map(|spans| spans.map(|_| (next(), next()))).collect();
        let bytes = ranges.iter().map(|range| range.end - range.start).sum();
        Ok(Run { shard, first: places.start, index, members, bytes })
    }

    /// Returns a sample of fetched ones.
    ///
    /// # Errors
    /// [`SampleError::Corrupt`].
    pub(crate) fn sample(&self, run: &Run, index: u64) -> Result<RawSample, SampleError> {
        let (shard, place) = self.place(index);
        debug_assert!(shard == run.shard && place >= run.first, "sample {index} of another run");
        let (tar, within) = (&run.index, (place - run.first) as usize);
        let place = place as usize;
        if place >= tar.len() {
            let reason = tar.broken.clone().unwrap_or_else(|| {
                format!("the shard holds {} samples, fewer than declared", tar.len())
            });
            return Err(self.corrupt(shard, &format!("#{place}"), reason));
        }
        let key = tar.key(place);
        let corrupt = |reason| self.corrupt(shard, key, reason);
        let Some(Some((image, text))) = run.members.get(within) else {
            let reason = self.members(tar, place).err().unwrap_or_else(|| "not fetched".to_owned());
            return Err(corrupt(reason));
        };
        let captions = self.captions(text).map_err(corrupt)?;
        let key = format!("{}/{key}", self.shards[shard].file_name());
        Ok(RawSample { key, image: image.clone(), captions })
    }

    /// Returns shard and place in it of a sample.
    fn place(&self, index: u64) -> (usize, u64) {
        assert!(index < self.len(), "sample {index} of {}", self.len());
        let shard = self.starts.partition_point(|&start| start <= index) - 1;
        (shard, index - self.starts[shard])
    }

    /// Whether shards lie in a remote store.
    pub(crate) fn is_remote(&self) -> bool {
        self.shards.iter().any(Object::is_remote)
    }

    /// Returns the bytes of all shards.
    pub(crate) fn bytes(&self) -> u64 {
        self.metas.iter().map(|meta| meta.size).sum()
    }

    fn members(&self, tar: &Index, place: usize) -> Result<(Span, Span), String> {
        let image = tar
            .image(place)
            .ok_or_else(|| format!("no image (.{})", self.wanted.image.join(", .")))?;
        let text = tar.text(place).ok_or_else(|| format!("no caption (.{})", self.wanted.text))?;
        Ok((image, text))
    }

    fn captions(&self, text: &[u8]) -> Result<Vec<String>, String> {
        if let Some(what) = found::pointer(text) {
            return Err(format!("caption: it is {what}"));
        }
        let Some(fields) = &self.options.json_text_key else {
            let caption = std::str::from_utf8(text).map_err(|e| format!("caption: {e}"))?;
            return Ok(vec![caption.trim().to_owned()]);
        };
        let json: serde_json::Value =
            serde_json::from_slice(text).map_err(|e| format!("json member: {e}"))?;
        for field in fields.split(';') {
            let captions: Vec<String> = match &json[field] {
                serde_json::Value::String(caption) => vec![caption.clone()],
                serde_json::Value::Array(list) => {
                    list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
                }
                _ => Vec::new(),
            };
            if !captions.is_empty() {
                return Ok(captions);
            }
        }
        Err(format!("json member: field {fields:?} holds no caption"))
    }

    fn corrupt(&self, shard: usize, key: &str, reason: String) -> SampleError {
        let shard = self.shards[shard].url.clone();
        SampleError::Corrupt { shard, key: key.to_owned(), reason }
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
