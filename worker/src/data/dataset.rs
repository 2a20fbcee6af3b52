//! A webdataset: shards of consecutive members that share a key, behind one index over samples.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use object_store::ObjectMeta;
use ringmaster_manifest::spec;
use ringmaster_weights::found;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::Error;
use super::counts::Counts;
use super::index::{Index, Span, Wanted};
use super::store::{Object, Stores};

/// Samples whose places are kept at once, about 50 bytes each. A rank reads at most two or three
/// shards per lane at a time.
const INDEXED_SAMPLES: usize = 4_000_000;

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
    /// Returns what a manifest's `data` asks for.
    pub fn of(data: &spec::Data) -> Self {
        Self {
            urls: data.train.clone(),
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

/// An opened data set; shared by reader threads.
#[derive(Debug)]
pub struct Dataset {
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

/// The newest tar indexes, oldest out first.
#[derive(Debug, Default)]
struct Indexes {
    by_shard: HashMap<usize, Arc<Index>>,
    order: VecDeque<usize>,
    samples: usize,
}

impl Dataset {
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

    /// Returns a digest of the shards' names, lengths and sample counts: it changes when the order
    /// would mean something else.
    pub fn fingerprint(&self) -> String {
        let mut hasher = Sha256::new();
        for ((shard, meta), size) in self.shards.iter().zip(&self.metas).zip(&self.sizes) {
            hasher.update(format!("{} {} {size}\n", shard.file_name(), meta.size));
        }
        hex::encode(&hasher.finalize()[..16])
    }

    /// Reads one sample.
    ///
    /// # Errors
    /// [`SampleError::Corrupt`] for a sample that cannot be used, [`SampleError::Store`] when the
    /// store fails.
    ///
    /// # Panics
    /// When `index` is not below [`Dataset::len`].
    pub fn read(&self, index: u64) -> Result<RawSample, SampleError> {
        self.read_until(index, &CancellationToken::new())
    }

    /// As [`Dataset::read`]; `cancel` ends the wait for a store that is away.
    ///
    /// # Errors
    /// As [`Dataset::read`].
    ///
    /// # Panics
    /// As [`Dataset::read`].
    pub fn read_until(
        &self,
        index: u64,
        cancel: &CancellationToken,
    ) -> Result<RawSample, SampleError> {
        assert!(index < self.len(), "sample {index} of {}", self.len());
        let shard = self.starts.partition_point(|&start| start <= index) - 1;
        let place = (index - self.starts[shard]) as usize;
        let tar = self.index(shard, cancel)?;
        if place >= tar.len() {
            let reason = tar.broken.clone().unwrap_or_else(|| {
                format!("the shard holds {} samples, fewer than declared", tar.len())
            });
            return Err(self.corrupt(shard, &format!("#{place}"), reason));
        }
        let key = tar.key(place);
        let corrupt = |reason| self.corrupt(shard, key, reason);
        let (image, text) = self.members(&tar, place).map_err(corrupt)?;
        let ranges = [image.range(), text.range()];
        let mut parts = self.shards[shard].ranges(&ranges, cancel)?.into_iter();
        let (image, text) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let captions = self.captions(&text).map_err(corrupt)?;
        let key = format!("{}/{key}", self.shards[shard].file_name());
        Ok(RawSample { key, image, captions })
    }

    /// Returns `shard/key` of a sample, for messages.
    pub fn describe(&self, index: u64) -> String {
        let shard = self.starts.partition_point(|&start| start <= index).saturating_sub(1);
        format!("{} #{}", self.shards[shard].url, index - self.starts[shard])
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
        if let Some(known) = self.indexes().by_shard.get(&shard) {
            return Ok(Arc::clone(known));
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
