//! Single objects brought to this machine, for readers that want a file.

use std::path::{Path as FsPath, PathBuf};
use std::time::Duration;

use futures::StreamExt as _;
use object_store::{GetResult, ObjectMeta, ObjectStoreExt as _};
use tokio::io::AsyncWriteExt as _;

use crate::Error;
use crate::progress;
use crate::runtime::runtime;
use ringmaster_store::{self as store, Store};

/// How the names of files begin that are not complete.
const PARTIAL: &str = ".partial-";
/// Silence after which nobody writes a partial file any more.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Brings the object at `url` (a store's or a web server's) to a folder below `cache` and returns its
/// file; one that lies there already is returned at once, as long as the store still has that version
/// of it. A file of this machine is returned as it is. `moved` is told the bytes written and their sum.
///
/// Blocks; not for use inside an async runtime.
///
/// # Errors
/// A URL that names no object, a store that fails, and a folder that cannot be written.
pub fn download(
    url: &str,
    cache: &FsPath,
    moved: &mut dyn FnMut(u64, u64),
) -> Result<PathBuf, Error> {
    let store = store::open(url)
        .map_err(|unusable| Error::Unusable { url: unusable.url, reason: unusable.reason })?;
    if let Some(local) = store.local {
        return Ok(local);
    }
    runtime()?.block_on(fetch(&store, url, cache, moved))
}

async fn fetch(
    store: &Store,
    url: &str,
    cache: &FsPath,
    moved: &mut dyn FnMut(u64, u64),
) -> Result<PathBuf, Error> {
    let failed = |source| Error::Store {
        action: "read",
        object: url.to_owned(),
        source: store::Error::from(source),
    };
    let answer = store.patient().get(&store.path).await.map_err(failed)?;
    let name = store.path.filename().unwrap_or("object").to_owned();
    let folder = cache.join(version(url, &answer.meta));
    let file = folder.join(name);
    if file.metadata().is_ok_and(|found| found.len() == answer.meta.size) {
        return Ok(file);
    }
    let io = |action| {
        let path = folder.clone();
        move |source| Error::Io { action, path, source }
    };
    std::fs::create_dir_all(&folder).map_err(io("create"))?;
    clear_abandoned(&folder);
    // Complete or invisible: a file of another name until all of it is there.
    let partial = tempfile::Builder::new().prefix(PARTIAL).tempfile_in(&folder);
    let partial = partial.map_err(io("write to"))?;
    let out = partial.reopen().map_err(io("write to"))?;
    write(answer, tokio::fs::File::from_std(out), moved).await.map_err(|broken| match broken {
        Broken::Store(source) => failed(source),
        Broken::File(source) => io("write to")(source),
    })?;
    partial.persist(&file).map_err(|error| io("write to")(error.error))?;
    Ok(file)
}

/// Removes what downloads that were killed left; one that goes on writes all the time.
fn clear_abandoned(folder: &FsPath) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let idle = entry.metadata().and_then(|found| found.modified()).ok();
        let idle = idle.and_then(|written| written.elapsed().ok());
        let partial = entry.file_name().to_string_lossy().starts_with(PARTIAL);
        if partial && idle.is_some_and(|idle| idle > ABANDONED) {
            // Nothing is lost if it stays.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

enum Broken {
    Store(object_store::Error),
    File(std::io::Error),
}

async fn write(
    answer: GetResult,
    mut out: tokio::fs::File,
    moved: &mut dyn FnMut(u64, u64),
) -> Result<(), Broken> {
    let size = answer.meta.size;
    let mut body = answer.into_stream();
    let mut written = 0;
    while let Some(bytes) = body.next().await {
        let bytes = bytes.map_err(Broken::Store)?;
        out.write_all(&bytes).await.map_err(Broken::File)?;
        written += bytes.len() as u64;
        progress::advance();
        moved(written, size);
    }
    out.sync_all().await.map_err(Broken::File)
}

/// Names a version of an object: another content has another name.
fn version(url: &str, meta: &ObjectMeta) -> String {
    let tag = meta.e_tag.clone().unwrap_or_else(|| meta.last_modified.to_rfc3339());
    let text = format!("{url}\n{tag}\n{}", meta.size);
    blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use object_store::path::Path;

    use super::*;

    #[test]
    fn an_object_is_brought_once_and_again_when_it_changed() {
        let url = "memory://download/weights/a.safetensors";
        let store = store::open(url).unwrap();
        let path = Path::from("weights/a.safetensors");
        let put = |bytes: Vec<u8>| {
            let objects = store.objects();
            runtime().unwrap().block_on(async { objects.put(&path, bytes.into()).await }).unwrap();
        };
        let cache = tempfile::tempdir().unwrap();
        let missing = download(url, cache.path(), &mut |_, _| {}).unwrap_err();
        assert!(missing.to_string().contains(url), "{missing}");
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0, "nothing half-made");

        put(vec![7; 300_000]);
        let mut told = Vec::new();
        let first = download(url, cache.path(), &mut |done, all| told.push((done, all))).unwrap();
        assert_eq!(std::fs::read(&first).unwrap(), vec![7; 300_000]);
        assert_eq!(first.file_name().unwrap(), "a.safetensors");
        let files = std::fs::read_dir(first.parent().unwrap()).unwrap().count();
        assert_eq!(files, 1, "no partial file is left");
        assert_eq!(told.last(), Some(&(300_000, 300_000)));
        let again = download(url, cache.path(), &mut |_, _| panic!("it is there")).unwrap();
        assert_eq!(again, first);

        put(vec![8; 300_000]);
        let changed = download(url, cache.path(), &mut |_, _| {}).unwrap();
        assert_ne!(changed, first);
        assert_eq!(std::fs::read(&changed).unwrap(), vec![8; 300_000]);
    }

    #[test]
    fn a_file_of_this_machine_stays_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.pt");
        let url = format!("file://{}", file.display());
        assert_eq!(download(&url, folder.path(), &mut |_, _| {}).unwrap(), file);
        assert!(download("nowhere", folder.path(), &mut |_, _| {}).is_err());
    }
}
