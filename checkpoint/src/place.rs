//! Where checkpoints lie: one function from URL to store, and what stores do differently.
//!
//! On local files every write is a staged file, an fsync, a rename and an fsync of the folders it
//! changed, so what was granted survives a power cut. Local files know no compare-and-set: there
//! latest.json changes under a lock.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{GetResult, ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion};
use url::Url;

use super::Error;
use super::layout::{LATEST, StepName};
use super::manifest::Pointer;

/// Longest wait for another process that is writing latest.json.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);
/// Time between two looks at the lock.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);
/// Lock file beside latest.json, local files only.
const LOCK: &str = ".latest.lock";

/// A folder of a store.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) store: Arc<dyn ObjectStore>,
    /// Of the folder, within the store.
    pub(crate) base: Path,
    /// Of the folder, as the user wrote it, without a slash at the end.
    pub(crate) url: String,
    /// The folder itself where the store is this machine's files.
    pub(crate) local: Option<PathBuf>,
}

impl Place {
    /// Chooses the store by the URL's scheme.
    ///
    /// # Errors
    /// [`Error::Place`] for what is neither an absolute path nor a URL of a known scheme.
    pub(crate) fn open(url: &str) -> Result<Self, Error> {
        let error = |reason: String| Error::Place { url: url.to_owned(), reason };
        let trimmed = if url.len() > 1 { url.trim_end_matches('/') } else { url };
        if url.starts_with('/') {
            return Self::files(trimmed, FsPath::new(trimmed));
        }
        let parsed = Url::parse(url).map_err(|e| {
            error(format!("neither an absolute path nor a URL ({e}); write file:///… or /…"))
        })?;
        match parsed.scheme() {
            "file" => {
                let folder = parsed.to_file_path().map_err(|()| {
                    error("a file URL names no other host; write file:///…".to_owned())
                })?;
                Self::files(trimmed, &folder)
            }
            scheme => Err(error(format!(
                "no store for scheme {scheme:?} in this build; write file:///… or /…"
            ))),
        }
    }

    fn files(url: &str, folder: &FsPath) -> Result<Self, Error> {
        let base = Path::from_absolute_path(folder)
            .map_err(|e| Error::Place { url: url.to_owned(), reason: e.to_string() })?;
        let store = Arc::new(LocalFileSystem::new().with_fsync(true));
        Ok(Self { store, base, url: url.to_owned(), local: Some(folder.to_owned()) })
    }

    /// Returns a folder of a store that knows compare-and-set.
    #[cfg(test)]
    pub(crate) fn memory() -> Self {
        let store = Arc::new(object_store::memory::InMemory::new());
        Self { store, base: Path::from("job"), url: "memory:///job".to_owned(), local: None }
    }

    /// Splits a checkpoint's own folder into its job's folder and its name.
    pub(crate) fn split(&self) -> Option<(Self, StepName)> {
        let name = self.base.filename()?.parse().ok()?;
        let (parent, _) = self.url.rsplit_once('/')?;
        let mut job = self.clone();
        job.url = parent.to_owned();
        job.base = self.base.parent().unwrap_or_default();
        job.local = self.local.as_deref().and_then(FsPath::parent).map(FsPath::to_owned);
        Some((job, name))
    }

    /// Returns where an object of a checkpoint lies in the store.
    pub(crate) fn object(&self, name: StepName, object: &str) -> Path {
        self.base.clone().join(name.to_string()).join(object)
    }

    /// Returns the URL of a checkpoint.
    pub(crate) fn step_url(&self, name: StepName) -> String {
        format!("{}/{name}", self.url)
    }

    /// Returns the URL of an object of a checkpoint.
    pub(crate) fn object_url(&self, name: StepName, object: &str) -> String {
        format!("{}/{name}/{object}", self.url)
    }

    /// Opens an object; `None` if there is none.
    pub(crate) async fn get(
        &self,
        name: StepName,
        object: &str,
    ) -> Result<Option<GetResult>, Error> {
        match self.store.get(&self.object(name, object)).await {
            Ok(result) => Ok(Some(result)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(self.read_error(name, object, source)),
        }
    }

    /// Returns the bytes of a small object; `None` if there is none.
    pub(crate) async fn text(
        &self,
        name: StepName,
        object: &str,
    ) -> Result<Option<Vec<u8>>, Error> {
        let Some(result) = self.get(name, object).await? else { return Ok(None) };
        let bytes = result.bytes().await.map_err(|source| self.read_error(name, object, source))?;
        Ok(Some(bytes.into()))
    }

    /// Whether an object exists.
    pub(crate) async fn exists(&self, name: StepName, object: &str) -> Result<bool, Error> {
        match self.store.head(&self.object(name, object)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(source) => Err(self.read_error(name, object, source)),
        }
    }

    /// The error of a read that failed for another reason than absence.
    pub(crate) fn read_error(
        &self,
        name: StepName,
        object: &str,
        source: object_store::Error,
    ) -> Error {
        Error::Store { action: "read", object: self.object_url(name, object), source }
    }

    /// Creates an object. Success too if it exists with the same content: an attempt whose answer
    /// was lost.
    pub(crate) async fn create(
        &self,
        name: StepName,
        object: &str,
        text: Vec<u8>,
    ) -> Result<(), Error> {
        let options = PutOptions::from(PutMode::Create);
        let path = self.object(name, object);
        match self.store.put_opts(&path, text.clone().into(), options).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. }) => {
                if self.text(name, object).await?.as_deref() == Some(text.as_slice()) {
                    return Ok(());
                }
                Err(Error::Conflict { object: self.object_url(name, object) })
            }
            Err(source) => {
                let object = self.object_url(name, object);
                Err(Error::Store { action: "write", object, source })
            }
        }
    }

    /// Deletes one object for good: the deletion itself survives a power cut.
    pub(crate) async fn delete(&self, name: StepName, object: &str) -> Result<(), Error> {
        match self.store.delete(&self.object(name, object)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(source) => {
                let object = self.object_url(name, object);
                return Err(Error::Store { action: "delete", object, source });
            }
        }
        let Some(job) = &self.local else { return Ok(()) };
        let path = job.join(name.to_string());
        match File::open(&path).and_then(|folder| folder.sync_all()) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Io { action: "sync", path, source })
            }
            _ => Ok(()),
        }
    }

    /// Deletes the folder of a checkpoint with all it holds, staged files included.
    pub(crate) async fn delete_all(&self, name: StepName) -> Result<(), Error> {
        if let Some(job) = &self.local {
            let path = job.join(name.to_string());
            return match std::fs::remove_dir_all(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::Io { action: "delete", path, source })
                }
                _ => Ok(()),
            };
        }
        let error = |source| {
            let object = self.step_url(name);
            Error::Store { action: "delete", object, source }
        };
        let prefix = self.base.clone().join(name.to_string());
        let listed = self.store.list_with_delimiter(Some(&prefix)).await.map_err(error)?;
        for object in listed.objects {
            self.store.delete(&object.location).await.map_err(error)?;
        }
        Ok(())
    }

    /// Returns latest.json; `None` if there is none or it says nothing.
    pub(crate) async fn latest(&self) -> Result<Option<(Option<Pointer>, UpdateVersion)>, Error> {
        let error = |source| Error::Store { action: "read", object: self.latest_url(), source };
        let result = match self.store.get(&self.base.clone().join(LATEST)).await {
            Ok(result) => result,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(source) => return Err(error(source)),
        };
        let version = UpdateVersion {
            e_tag: result.meta.e_tag.clone(),
            version: result.meta.version.clone(),
        };
        let text = result.bytes().await.map_err(error)?;
        // An unreadable pointer is replaced: it points nowhere.
        Ok(Some((serde_json::from_slice(&text).ok(), version)))
    }

    /// Points latest.json at `pointer` unless it names that one or a newer one already.
    pub(crate) async fn advance_latest(&self, pointer: &Pointer) -> Result<(), Error> {
        let _lock = self.lock_latest().await?;
        loop {
            let current = self.latest().await?;
            if let Some((Some(current), _)) = &current
                && current.name() >= pointer.name()
            {
                return Ok(());
            }
            let mode = match current {
                Some((_, version)) => self.update_mode(version),
                None if self.local.is_some() => PutMode::Overwrite,
                None => PutMode::Create,
            };
            let path = self.base.clone().join(LATEST);
            match self.store.put_opts(&path, pointer.encode().into(), mode.into()).await {
                Ok(_) => return Ok(()),
                // Somebody was faster: every round trip sees a newer pointer, so this ends.
                Err(
                    object_store::Error::Precondition { .. }
                    | object_store::Error::AlreadyExists { .. },
                ) => {}
                Err(source) => {
                    let object = self.latest_url();
                    return Err(Error::Store { action: "write", object, source });
                }
            }
        }
    }

    pub(crate) fn latest_url(&self) -> String {
        format!("{}/{LATEST}", self.url)
    }

    /// Keeps others from changing latest.json where the store has no compare-and-set.
    pub(crate) async fn lock_latest(&self) -> Result<Option<File>, Error> {
        match &self.local {
            Some(folder) => Ok(Some(lock(folder.join(LOCK)).await?)),
            None => Ok(None),
        }
    }

    /// How a latest.json of this version is replaced.
    pub(crate) fn update_mode(&self, version: UpdateVersion) -> PutMode {
        if self.local.is_some() { PutMode::Overwrite } else { PutMode::Update(version) }
    }
}

/// Takes the lock; it is released when the file is dropped or its process dies.
async fn lock(path: PathBuf) -> Result<File, Error> {
    let io = |action| {
        let path = path.clone();
        move |source| Error::Io { action, path, source }
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io("open"))?;
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(io("lock")(source)),
            Err(TryLockError::WouldBlock) if began.elapsed() > LOCK_PATIENCE => {
                return Err(Error::Locked { path, seconds: LOCK_PATIENCE.as_secs() });
            }
            Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_INTERVAL).await,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ringmaster_proto::v1::Generation;

    use super::*;

    fn name(counter: u32, step: u64) -> StepName {
        StepName { generation: Generation::new(1, counter), step }
    }

    async fn advance_and_look(place: &Place, to: StepName) -> StepName {
        place.advance_latest(&Pointer::to(to)).await.unwrap();
        place.latest().await.unwrap().unwrap().0.unwrap().name()
    }

    #[tokio::test]
    async fn an_older_checkpoint_never_takes_latest_json_back() {
        let folder = tempfile::tempdir().unwrap();
        for place in [Place::memory(), Place::open(folder.path().to_str().unwrap()).unwrap()] {
            assert_eq!(advance_and_look(&place, name(1, 20)).await, name(1, 20));
            assert_eq!(advance_and_look(&place, name(1, 10)).await, name(1, 20));
            assert_eq!(advance_and_look(&place, name(2, 10)).await, name(2, 10));
            assert_eq!(advance_and_look(&place, name(1, 90)).await, name(2, 10));
        }
    }

    #[tokio::test]
    async fn a_pointer_that_says_nothing_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(LATEST), "{").unwrap();
        let place = Place::open(folder.path().to_str().unwrap()).unwrap();
        assert_eq!(advance_and_look(&place, name(1, 5)).await, name(1, 5));
    }

    #[tokio::test]
    async fn a_manifest_is_created_once() {
        let folder = tempfile::tempdir().unwrap();
        for place in [Place::memory(), Place::open(folder.path().to_str().unwrap()).unwrap()] {
            place.create(name(1, 1), "MANIFEST.json", b"a".to_vec()).await.unwrap();
            place.create(name(1, 1), "MANIFEST.json", b"a".to_vec()).await.unwrap();
            let error = place.create(name(1, 1), "MANIFEST.json", b"b".to_vec()).await.unwrap_err();
            assert!(matches!(error, Error::Conflict { .. }), "{error}");
        }
    }

    #[test]
    fn places_this_build_cannot_reach_say_what_to_write_instead() {
        for (url, reason) in [
            ("s3://bucket/runs", "no store for scheme \"s3\" in this build; write file:///… or /…"),
            ("runs", "neither an absolute path nor a URL"),
            ("file://other/runs", "a file URL names no other host"),
        ] {
            let error = Place::open(url).unwrap_err().to_string();
            assert!(error.contains(url) && error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_checkpoints_own_folder_is_told_from_a_jobs() {
        let place = Place::open("file:///runs/a%20b/step-0000000012.g1.7/").unwrap();
        let (job, name) = place.split().unwrap();
        assert_eq!(name, StepName { generation: Generation::new(1, 7), step: 12 });
        assert_eq!(job.url, "file:///runs/a%20b");
        assert_eq!(job.local.as_deref(), Some(FsPath::new("/runs/a b")));
        assert_eq!(job.base.as_ref(), "runs/a b");
        assert!(job.split().is_none());
    }
}
