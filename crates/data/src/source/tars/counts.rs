//! How many samples each shard holds, without reading it where somebody has counted before.
//!
//! Four sources per folder, best first: `sizes.json`, which the data set's maker declares; `shardindex.json`, as
//! `widsindex create` of webdataset writes it, for shards of the length that it says; our own cache beside the shards,
//! valid as long as a shard's length and time of change are those counted, and what is counted is the same; the shard's
//! headers.

use std::collections::{BTreeMap, HashMap};

use object_store::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::index::Wanted;
use crate::Error;
use crate::store::Object;

/// Sample counts as webdataset and OpenCLIP write them: `{"00000.tar": 1000, …}`.
const DECLARED: &str = "sizes.json";
/// Shards with sample counts and lengths: `{"shardlist": [{"url": …, "nsamples": 1000, "filesize": …}, …]}`.
const INDEXED: &str = "shardindex.json";
/// Our own cache; another name, so that it is never taken for a declaration.
const COUNTED: &str = "ringmaster-sizes.json";
/// What makes a sample; raised when that changes. 0: any members that share a key. 1: those of which one is an image or
/// a caption, apart where an extension comes again.
const RULE: u32 = 1;

/// Sample counts of the folders asked about so far.
#[derive(Debug)]
pub(super) struct Counts {
    /// The extensions of images and captions that make a sample.
    extensions: String,
    folders: BTreeMap<String, Folder>,
}

#[derive(Debug)]
struct Folder {
    declared: HashMap<String, u64>,
    indexed: HashMap<String, Listed>,
    counted: BTreeMap<String, Counted>,
    cache: Object,
    changed: bool,
}

/// What is read of webdataset's index.
#[derive(Debug, Default, Deserialize)]
struct ShardIndex {
    shardlist: Vec<Listed>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    /// Of which only the last part counts: shards move together with their index.
    url: String,
    nsamples: u64,
    filesize: Option<u64>,
}

/// A count and what it is valid for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Counted {
    samples: u64,
    bytes: u64,
    modified_ms: i64,
    /// [`RULE`] at that time; older counts have none.
    #[serde(default)]
    rule: u32,
    #[serde(default)]
    extensions: String,
}

impl Counts {
    /// Returns counts of samples that have one of these members.
    pub(super) fn new(wanted: &Wanted) -> Self {
        let extensions = format!("{};{}", wanted.image.join(";"), wanted.text);
        Self { extensions, folders: BTreeMap::new() }
    }

    /// Returns the samples of a shard if they are declared or were counted before.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) fn known(
        &mut self,
        shard: &Object,
        meta: &ObjectMeta,
    ) -> Result<Option<u64>, Error> {
        let folder = self.folder(shard)?;
        let name = shard.file_name();
        if let Some(&samples) = folder.declared.get(&name) {
            return Ok(Some(samples));
        }
        let is_it = |listed: &&Listed| listed.filesize.is_none_or(|len| len == meta.size);
        if let Some(listed) = folder.indexed.get(&name).filter(is_it) {
            return Ok(Some(listed.nsamples));
        }
        let Some(known) = folder.counted.get(&name).cloned() else { return Ok(None) };
        let is_valid = known == self.counted(known.samples, meta);
        Ok(is_valid.then_some(known.samples))
    }

    /// Remembers what was counted in a shard.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) fn remember(
        &mut self,
        shard: &Object,
        meta: &ObjectMeta,
        samples: u64,
    ) -> Result<(), Error> {
        let counted = self.counted(samples, meta);
        let folder = self.folder(shard)?;
        folder.counted.insert(shard.file_name(), counted);
        folder.changed = true;
        Ok(())
    }

    /// Writes what was counted beside the shards; a store that refuses costs the next start a
    /// count, no more.
    pub(super) fn save(self) {
        for folder in self.folders.into_values().filter(|folder| folder.changed) {
            let json = serde_json::to_vec_pretty(&folder.counted).expect("plain data serialises");
            if let Err(error) = folder.cache.write(json) {
                tracing::info!(url = %folder.cache.url, %error, "sample counts not cached");
            }
        }
    }

    fn counted(&self, samples: u64, meta: &ObjectMeta) -> Counted {
        let (bytes, modified_ms) = (meta.size, meta.last_modified.timestamp_millis());
        Counted { samples, bytes, modified_ms, rule: RULE, extensions: self.extensions.clone() }
    }

    fn folder(&mut self, shard: &Object) -> Result<&mut Folder, Error> {
        let cache = shard.sibling(COUNTED);
        let key = cache.url.clone();
        if !self.folders.contains_key(&key) {
            let declared = read_json(&shard.sibling(DECLARED))?;
            let indexed = read_json::<ShardIndex>(&shard.sibling(INDEXED))?.by_name();
            let counted = read_json(&cache)?;
            let folder = Folder { declared, indexed, counted, cache, changed: false };
            self.folders.insert(key.clone(), folder);
        }
        Ok(self.folders.get_mut(&key).expect("inserted above"))
    }
}

impl ShardIndex {
    fn by_name(self) -> HashMap<String, Listed> {
        let name = |shard: &Listed| shard.url.rsplit('/').next().unwrap_or_default().to_owned();
        self.shardlist.into_iter().map(|shard| (name(&shard), shard)).collect()
    }
}

/// Reads counts; none, or of another form, are empty.
fn read_json<T: Default + serde::de::DeserializeOwned>(object: &Object) -> Result<T, Error> {
    let Some(bytes) = object.read()? else { return Ok(T::default()) };
    Ok(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        let url = &object.url;
        tracing::warn!(%url, %error, "holds no sample counts, counting instead");
        T::default()
    }))
}
