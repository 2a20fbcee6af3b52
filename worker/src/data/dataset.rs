//! A webdataset: shards of consecutive members that share a key, behind one index over samples.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use ringmaster_manifest::spec;
use sha2::{Digest, Sha256};

use super::Error;
use super::index::{Entry, Index, Member};
use super::store::{Object, Stores};

/// Tar indexes kept at once; a lane order reads few shards at a time.
const INDEXES_KEPT: usize = 256;
/// Declares sample counts, as webdataset and OpenCLIP write it: `{"00000.tar": 1000, …}`.
const SIZES_FILE: &str = "sizes.json";

/// Which shards, and which of their members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Shards: absolute paths or URLs, in order.
    pub urls: Vec<String>,
    /// Extensions tried for the image, in order.
    pub image_key: Vec<String>,
    /// Extension of the caption.
    pub text_key: String,
    /// Field of the `.json` member that holds the caption or a list of captions instead.
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
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// Its bytes are wrong, and will be next time.
    #[error("{shard}, sample {key}: {reason}")]
    Corrupt {
        /// The shard.
        shard: String,
        /// The sample's key, or its place in the shard.
        key: String,
        /// What is wrong.
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
    shards: Vec<Object>,
    lens: Vec<u64>,
    sizes: Vec<u64>,
    /// Index in the data set of every shard's first sample.
    starts: Vec<u64>,
    indexes: Mutex<Indexes>,
}

/// The newest tar indexes, oldest out first.
#[derive(Debug, Default)]
struct Indexes {
    by_shard: HashMap<usize, Arc<Index>>,
    order: VecDeque<usize>,
}

impl Dataset {
    /// Finds every shard and its number of samples: declared in `sizes.json` beside the shards,
    /// or counted from the tar headers.
    ///
    /// # Errors
    /// A shard that is missing or holds no sample, named; a store that fails.
    pub fn open(options: Options) -> Result<Self, Error> {
        let stores = Stores::start()?;
        let mut dataset = Self {
            shards: Vec::new(),
            lens: Vec::new(),
            sizes: Vec::new(),
            starts: Vec::new(),
            indexes: Mutex::default(),
            options,
        };
        for url in &dataset.options.urls {
            let shard = stores.object(url)?;
            dataset.lens.push(shard.head()?.size);
            dataset.shards.push(shard);
        }
        let mut declared = BTreeMap::new();
        let mut start = 0;
        for shard in 0..dataset.shards.len() {
            let size = dataset.count(shard, &mut declared)?;
            dataset.sizes.push(size);
            dataset.starts.push(start);
            start += size;
        }
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

    /// Returns the samples of every shard, in order.
    pub fn shard_sizes(&self) -> &[u64] {
        &self.sizes
    }

    /// Returns a digest of the shards' names, lengths and sample counts: it changes when the order
    /// would mean something else.
    pub fn fingerprint(&self) -> String {
        let mut hasher = Sha256::new();
        for ((shard, len), size) in self.shards.iter().zip(&self.lens).zip(&self.sizes) {
            hasher.update(format!("{} {len} {size}\n", shard.file_name()));
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
        assert!(index < self.len(), "sample {index} of {}", self.len());
        let shard = self.starts.partition_point(|&start| start <= index) - 1;
        let place = (index - self.starts[shard]) as usize;
        let tar = self.index(shard)?;
        let Some(entry) = tar.entries.get(place) else {
            let reason = tar.broken.clone().unwrap_or_else(|| {
                format!("the shard holds {} samples, fewer than declared", tar.entries.len())
            });
            return Err(self.corrupt(shard, &format!("#{place}"), reason));
        };
        let (image, text) = self.members(entry).map_err(|r| self.corrupt(shard, &entry.key, r))?;
        let range = |member: &Member| member.offset..member.offset + member.len;
        let ranges: [Range<u64>; 2] = [range(image), range(text)];
        let mut parts = self.shards[shard].ranges(&ranges)?.into_iter();
        let (image, text) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let captions =
            self.captions(&text).map_err(|reason| self.corrupt(shard, &entry.key, reason))?;
        let key = format!("{}/{}", self.shards[shard].file_name(), entry.key);
        Ok(RawSample { key, image, captions })
    }

    /// Returns `shard/key` of a sample, for messages.
    pub fn describe(&self, index: u64) -> String {
        let shard = self.starts.partition_point(|&start| start <= index).saturating_sub(1);
        format!("{} #{}", self.shards[shard].url, index - self.starts[shard])
    }

    fn members<'a>(&self, entry: &'a Entry) -> Result<(&'a Member, &'a Member), String> {
        let find = |extension: &str| entry.members.iter().find(|m| m.extension == extension);
        let image = self.options.image_key.iter().find_map(|key| find(key)).ok_or_else(|| {
            format!("no image (.{})", self.options.image_key.join(", ."))
        })?;
        let text_key = match self.options.json_text_key {
            Some(_) => "json",
            None => self.options.text_key.as_str(),
        };
        let text = find(text_key).ok_or_else(|| format!("no caption (.{text_key})"))?;
        Ok((image, text))
    }

    fn captions(&self, text: &[u8]) -> Result<Vec<String>, String> {
        let Some(field) = &self.options.json_text_key else {
            let caption = std::str::from_utf8(text).map_err(|e| format!("caption: {e}"))?;
            return Ok(vec![caption.trim().to_owned()]);
        };
        let json: serde_json::Value =
            serde_json::from_slice(text).map_err(|e| format!("json member: {e}"))?;
        let captions: Vec<String> = match &json[field.as_str()] {
            serde_json::Value::String(caption) => vec![caption.clone()],
            serde_json::Value::Array(list) => {
                list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
            }
            _ => Vec::new(),
        };
        match captions.is_empty() {
            true => Err(format!("json member: field {field:?} holds no caption")),
            false => Ok(captions),
        }
    }

    fn corrupt(&self, shard: usize, key: &str, reason: String) -> SampleError {
        let shard = self.shards[shard].url.clone();
        SampleError::Corrupt { shard, key: key.to_owned(), reason }
    }

    /// Returns the samples of a shard; `declared` caches the `sizes.json` of every folder.
    fn count(
        &self,
        shard: usize,
        declared: &mut BTreeMap<String, HashMap<String, u64>>,
    ) -> Result<u64, Error> {
        let object = &self.shards[shard];
        let sizes_file = object.sibling(SIZES_FILE);
        if !declared.contains_key(&sizes_file.url) {
            let sizes = match sizes_file.read()? {
                None => HashMap::new(),
                Some(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                    let url = &sizes_file.url;
                    tracing::warn!(%url, %error, "not a map from shard to count, counting instead");
                    HashMap::new()
                }),
            };
            declared.insert(sizes_file.url.clone(), sizes);
        }
        if let Some(&size) = declared[&sizes_file.url].get(&object.file_name()) {
            return Ok(size);
        }
        let index = self.index(shard)?;
        if let Some(reason) = &index.broken {
            tracing::warn!(url = %object.url, %reason, samples = index.entries.len(), "shard ends early");
        }
        if index.entries.is_empty() {
            let reason = index.broken.clone().unwrap_or_else(|| "an empty tar".to_owned());
            return Err(Error::Empty { url: object.url.clone(), reason });
        }
        Ok(index.entries.len() as u64)
    }

    fn index(&self, shard: usize) -> Result<Arc<Index>, Error> {
        if let Some(known) = self.indexes().by_shard.get(&shard) {
            return Ok(Arc::clone(known));
        }
        // Two readers may build the same index once; that costs less than waiting with the lock.
        let index = Arc::new(Index::read(&self.shards[shard], self.lens[shard])?);
        let mut indexes = self.indexes();
        if indexes.by_shard.insert(shard, Arc::clone(&index)).is_none() {
            indexes.order.push_back(shard);
        }
        if indexes.order.len() > INDEXES_KEPT
            && let Some(oldest) = indexes.order.pop_front()
        {
            indexes.by_shard.remove(&oldest);
        }
        Ok(index)
    }

    fn indexes(&self) -> std::sync::MutexGuard<'_, Indexes> {
        self.indexes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
