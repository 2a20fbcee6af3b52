//! What lies in a folder of a store, by name.

use object_store::ObjectStore as _;

use crate::Error;
use crate::dir::CheckpointDir;
use crate::runtime::runtime;

/// The names in a folder; none for one that does not exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Files or objects, in the order of their names.
    pub files: Vec<String>,
    /// Folders.
    pub folders: Vec<String>,
}

impl Listing {
    /// Lists the folder at `url`, an absolute path or a URL, without what lies in its folders.
    ///
    /// # Errors
    /// A folder that cannot be reached, or a store that fails.
    pub async fn read(url: &str) -> Result<Self, Error> {
        let dir = CheckpointDir::open(url)?;
        let listed = dir.store.list_with_delimiter(Some(&dir.base)).await;
        let listed = listed.map_err(|e| dir.store_error("list", dir.url.clone(), e))?;
        let objects = listed.objects.iter().filter_map(|object| object.location.filename());
        let prefixes = listed.common_prefixes.iter().filter_map(|prefix| prefix.filename());
        let mut files: Vec<String> = objects.map(str::to_owned).collect();
        let mut folders: Vec<String> = prefixes.map(str::to_owned).collect();
        files.sort_unstable();
        folders.sort_unstable();
        Ok(Self { files, folders })
    }

    /// As [`Self::read`]; blocks, and is not for use inside an async runtime.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_blocking(url: &str) -> Result<Self, Error> {
        runtime()?.block_on(Self::read(url))
    }
}
