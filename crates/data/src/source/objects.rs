//! Samples' images that are objects of their own: fetched by path or URL, many at once.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::store::{Object, Stores};

/// Requests in flight over a network, per block that is fetched.
const AT_ONCE: usize = 64;
/// Bytes of the longest object that is read: no image has as many, and a wrong URL must not fill the memory.
const LONGEST: u64 = 256 << 20;

/// Fetches objects; the threads that wait for stores are shared.
#[derive(Debug, Default)]
pub(super) struct Objects {
    stores: Mutex<Stores>,
    /// For how long a store that is away is waited for, where tests choose it.
    #[cfg(test)]
    patience: Option<std::time::Duration>,
}

impl Objects {
    /// Returns what waits no longer than `patience` for a store that is away.
    #[cfg(test)]
    pub(super) fn with_patience(patience: std::time::Duration) -> Self {
        Self { patience: Some(patience), ..Self::default() }
    }

    /// Fetches the objects that absolute paths or URLs name. One that cannot be had for what it is, is a reason in its
    /// place: it is missing, may not be read, is too long, or nothing can be there. `cancel` ends the wait for a store
    /// that is away.
    ///
    /// # Errors
    /// When a store fails, or cannot be opened with the environment's settings.
    pub(super) fn fetch(
        &self,
        urls: &[String],
        cancel: &CancellationToken,
    ) -> Result<Vec<Result<Bytes, String>>, Error> {
        let objects = urls.iter().map(|url| self.named(url)).collect::<Result<Vec<_>, _>>()?;
        self.read(&objects, cancel)
    }

    /// Fetches opened objects, those that could be, as [`Self::fetch`] does.
    ///
    /// # Errors
    /// When a store fails.
    pub(super) fn read(
        &self,
        objects: &[Result<Object, String>],
        cancel: &CancellationToken,
    ) -> Result<Vec<Result<Bytes, String>>, Error> {
        match objects.iter().flatten().find(|object| object.is_remote()) {
            Some(remote) => remote.block_on(read_all(objects, AT_ONCE, cancel)),
            // A disk gains nothing by more than one request of each thread.
            None => futures::executor::block_on(read_all(objects, 1, cancel)),
        }
    }

    /// Opens the object behind an absolute path or a URL; whether it exists shows later.
    ///
    /// # Errors
    /// [`Error::Url`] or [`Error::Settings`].
    pub(super) fn object(&self, url: &str) -> Result<Object, Error> {
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        let object = if url.starts_with('/') {
            stores.object(&without_dots(url))?
        } else {
            stores.object(url)?
        };
        #[cfg(test)]
        let object = match self.patience {
            Some(patience) => object.patient(patience),
            None => object,
        };
        Ok(object)
    }

    /// As [`Self::object`], of a URL that a row of data names: one that names nothing is the row's flaw.
    fn named(&self, url: &str) -> Result<Result<Object, String>, Error> {
        match self.object(url) {
            Ok(object) => Ok(Ok(object)),
            Err(Error::Url { reason, .. }) => Ok(Err(reason)),
            Err(error) => Err(error),
        }
    }
}

/// Reads objects in order, some of them at a time; the first store that fails ends it.
async fn read_all(
    objects: &[Result<Object, String>],
    at_once: usize,
    cancel: &CancellationToken,
) -> Result<Vec<Result<Bytes, String>>, Error> {
    let read = |object: &'_ Result<Object, String>| {
        let object = object.clone();
        async move {
            match object {
                Ok(object) => object.whole(LONGEST, cancel).await,
                Err(reason) => Ok(Err(reason)),
            }
        }
    };
    futures::stream::iter(objects.iter().map(read)).buffered(at_once).try_collect().await
}

/// Whether what a path or URL names lies behind a network.
pub(super) fn is_remote(url: &str) -> bool {
    url.contains("://") && !url.starts_with("file://")
}

/// Returns the folder of a file, as [`below`] takes it: without a slash at its end.
pub(super) fn folder(url: &str) -> &str {
    url.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Returns what a name in a table means: absolute paths and URLs themselves, others start at the table's folder.
pub(super) fn below(folder: &str, name: &str) -> String {
    if name.starts_with('/') || has_scheme(name) {
        return name.to_owned();
    }
    if !folder.contains("://") {
        return format!("{folder}/{name}");
    }
    // The name is a path, in which these characters mean nothing.
    let name = name.replace('%', "%25").replace('?', "%3F").replace('#', "%23");
    format!("{folder}/{name}")
}

/// Whether a name begins as a URL does.
fn has_scheme(name: &str) -> bool {
    let scheme = name.split_once("://").map_or("", |(scheme, _)| scheme);
    !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

/// Returns an absolute path without `.`, `..` and empty parts, which stores do not know.
fn without_dots(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_a_table_start_at_its_folder_unless_they_are_whole() {
        for (folder, name, expected) in [
            ("/data", "a/b.png", "/data/a/b.png"),
            ("/data", "/images/b.png", "/images/b.png"),
            ("/data", "50% #1?.png", "/data/50% #1?.png"),
            ("/data", "s3://bucket/b.png", "s3://bucket/b.png"),
            ("s3://bucket/d", "a b.png", "s3://bucket/d/a b.png"),
            ("s3://bucket/d", "50% #1?.png", "s3://bucket/d/50%25 %231%3F.png"),
            ("s3://bucket/d", "https://host/b.png", "https://host/b.png"),
            ("/data", "://b.png", "/data/://b.png"),
        ] {
            assert_eq!(below(folder, name), expected);
        }
    }

    #[test]
    fn paths_lose_their_dots() {
        assert_eq!(without_dots("/a/./b//../c.png"), "/a/c.png");
        assert_eq!(without_dots("/../../c.png"), "/c.png");
    }
}
