//! The folder that shards go to: on this machine or in a store.
//!
//! Objects are stored whole: a file is written under another name and renamed, and a store shows no object before its
//! last byte.

use std::path::PathBuf;
use std::time::Duration;

use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutPayload};
use ringmaster_store::{self as store, Store};
use ringmaster_words::some_of;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::{Error, Meter};

/// How many samples each shard holds.
pub(super) const SIZES: &str = "sizes.json";
/// What readers keep beside shards whose samples they counted.
const COUNTED: &str = "ringmaster-sizes.json";
/// For how long a store that fails is asked again.
const PATIENCE: Duration = Duration::from_secs(150);
/// Names that are said of what lies in a folder.
const NAMED: usize = 5;

/// See the module.
pub(super) struct Target {
    url: String,
    store: Store,
    runtime: Runtime,
    cancel: CancellationToken,
    /// What this run has written.
    written: Vec<Path>,
}

impl Target {
    /// Opens a folder; nothing is asked of it yet.
    pub(super) fn open(url: &str, meter: &Meter) -> Result<Self, Error> {
        let url = url.trim_end_matches('/').to_owned();
        let store = store::open(&url).map_err(|error| Error::Asked {
            what: format!("{} cannot be written to: {}", error.url, error.reason),
            remedy: "nothing was written".to_owned(),
        })?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("shard-store")
            .enable_all()
            .build()
            .map_err(|error| Error::Thread { reason: error.to_string() })?;
        Ok(Self { url, store, runtime, cancel: meter.token().clone(), written: Vec::new() })
    }

    /// Makes sure that the folder is empty; `overwrite` removes what an earlier writing left there, and nothing else.
    ///
    /// # Errors
    /// A folder that is not empty, or in which a shard of the source lies.
    pub(super) fn prepare(&mut self, inputs: &[String], overwrite: bool) -> Result<(), Error> {
        if let Some(own) = inputs.iter().find(|input| self.holds(input)) {
            return Err(Error::Asked {
                what: format!("{own} is read, and lies in the folder that is written to"),
                remedy: "name another folder as output".to_owned(),
            });
        }
        let names = self.list()?;
        if !names.is_empty() && !overwrite {
            return Err(Error::Asked {
                what: format!("{} is not empty: it holds {}", self.url, some_of(&names, NAMED)),
                remedy:
                    "name another folder as output, or pass --overwrite to replace the shards there"
                        .to_owned(),
            });
        }
        // The sizes go first: without them, nobody takes what is left for a whole set.
        let mut ours: Vec<&String> = names.iter().filter(|name| is_ours(name)).collect();
        ours.sort_by_key(|name| name.ends_with(".tar"));
        ours.into_iter().try_for_each(|name| self.delete(&self.path(name)))
    }

    /// Stores an object under a name.
    pub(super) fn put(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), Error> {
        let (path, payload) = (self.path(name), PutPayload::from(bytes));
        let objects = self.store.objects();
        let request = || async { objects.put(&path, payload.clone()).await };
        // It may be there even if the answer is an error.
        self.written.push(path.clone());
        let stored = self.runtime.block_on(self.store.insist(PATIENCE, &self.cancel, request));
        stored.map(|_| ()).map_err(|error| self.failed("store", name, error))
    }

    /// Removes what this run has written, as far as the store lets it.
    pub(super) fn discard(&mut self) {
        // The wait for requests ends with `cancel`, and this has to be done all the same.
        let objects = self.store.objects();
        for path in std::mem::take(&mut self.written) {
            let _ = self.runtime.block_on(objects.delete(&path));
        }
    }

    fn list(&self) -> Result<Vec<String>, Error> {
        let objects = self.store.objects();
        let request = || async {
            let first = objects.list(Some(&self.store.path));
            first.try_collect::<Vec<_>>().await
        };
        let listed = self.runtime.block_on(self.store.insist(PATIENCE, &self.cancel, request));
        let listed = listed.map_err(|error| self.failed("list", "", error))?;
        let prefix = self.store.path.as_ref();
        let below = |path: &str| {
            let name = path.strip_prefix(prefix).unwrap_or(path);
            name.trim_start_matches('/').to_owned()
        };
        let mut names: Vec<String> =
            listed.iter().map(|meta| below(meta.location.as_ref())).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn delete(&self, path: &Path) -> Result<(), Error> {
        let objects = self.store.objects();
        let request = || async { objects.delete(path).await };
        let deleted = self.runtime.block_on(self.store.insist(PATIENCE, &self.cancel, request));
        deleted.map_err(|error| self.failed("delete", path.filename().unwrap_or_default(), error))
    }

    fn path(&self, name: &str) -> Path {
        self.store.path.clone().join(name)
    }

    fn failed(&self, doing: &'static str, name: &str, error: object_store::Error) -> Error {
        let url = match name {
            "" => self.url.clone(),
            name => format!("{}/{name}", self.url),
        };
        Error::Store { doing, url, source: error.into() }
    }

    /// Whether a shard lies in this folder itself.
    fn holds(&self, shard: &str) -> bool {
        let Some((folder, _)) = shard.rsplit_once('/') else { return false };
        let real = |path: &str| std::fs::canonicalize(path).unwrap_or_else(|_| PathBuf::from(path));
        match &self.store.local {
            Some(own) => shard.starts_with('/') && real(folder) == real(&own.to_string_lossy()),
            None => folder == self.url,
        }
    }
}

/// Whether a name is one that is written here, or by those who read it.
fn is_ours(name: &str) -> bool {
    let number = name.strip_suffix(".tar").unwrap_or_default();
    let is_shard = number.len() >= 6 && number.bytes().all(|byte| byte.is_ascii_digit());
    is_shard || name == SIZES || name == COUNTED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_this_command_writes_is_overwritten() {
        for name in ["000000.tar", "1000000.tar", "sizes.json", "ringmaster-sizes.json"] {
            assert!(is_ours(name), "{name}");
        }
        for name in ["train-0000.tar", "00000.tar", "a/000000.tar", "notes.txt", ".tar"] {
            assert!(!is_ours(name), "{name}");
        }
    }
}
