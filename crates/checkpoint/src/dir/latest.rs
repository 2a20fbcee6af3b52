//! latest.json, which never goes back: by comparing and setting where the store can, under a lock on
//! local files, and else by reading again what was written.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::TryFutureExt as _;
use object_store::{ObjectStoreExt, PutMode, UpdateVersion};

use super::CheckpointDir;
use crate::Error;
use crate::layout::{LATEST, StepName};
use crate::manifest::Pointer;
use ringmaster_store::Conditional;

/// Longest wait for another process that is writing latest.json.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);
/// Time between two looks at the lock.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);
/// Lock file beside latest.json, local files only.
const LOCK: &str = ".latest.lock";
/// Attempts at a store that cannot compare, against writers that overwrite each other.
const ATTEMPTS: usize = 10;

/// What a pointer that is to be written finds.
enum Found {
    /// latest.json names that checkpoint or a newer one.
    Newest,
    /// It names an older one, or none; this version is to be replaced.
    Older(UpdateVersion),
    /// There is no latest.json.
    Nothing,
}

impl CheckpointDir {
    /// Points latest.json at `pointer` unless it names that one or a newer one already.
    pub(crate) async fn advance_latest(&self, pointer: &Pointer) -> Result<(), Error> {
        let lock = self.lock_latest().await?;
        let mut unsure = 0;
        loop {
            let mode = match self.found(pointer).await? {
                // Somebody was faster: every round trip sees a newer pointer, so this ends.
                Found::Newest => return Ok(()),
                Found::Older(version) => self.latest_mode(Some(version)).await?,
                Found::Nothing => self.latest_mode(None).await?,
            };
            // Without a lock and without a condition the next round sees whether it stayed.
            let sure = lock.is_some() || !matches!(mode, PutMode::Overwrite);
            if self.put_latest(pointer, mode).await? && sure {
                return Ok(());
            }
            unsure += usize::from(!sure);
            if unsure > ATTEMPTS {
                return Err(Error::Overwritten { object: self.latest_url() });
            }
        }
    }

    /// Keeps others from changing latest.json where the store has no compare-and-set.
    async fn lock_latest(&self) -> Result<Option<File>, Error> {
        match &self.local {
            Some(folder) => Ok(Some(lock(folder.join(LOCK)).await?)),
            None => Ok(None),
        }
    }

    /// How a latest.json of this version is replaced, and created where there is none; without a
    /// condition where the store honours none.
    async fn latest_mode(&self, version: Option<UpdateVersion>) -> Result<PutMode, Error> {
        if self.local.is_some() {
            return Ok(PutMode::Overwrite);
        }
        let Conditional { create, update } = self.conditional().await?;
        Ok(match (version, update) {
            (Some(version), Some(tag)) => PutMode::Update(tag.applied(version)),
            (None, Some(_)) if create => PutMode::Create,
            _ => PutMode::Overwrite,
        })
    }

    /// Compares `pointer` to what latest.json says now.
    async fn found(&self, pointer: &Pointer) -> Result<Found, Error> {
        Ok(match self.latest().await? {
            Some((Some(current), _)) if current.name() >= pointer.name() => Found::Newest,
            Some((_, version)) => Found::Older(version),
            None => Found::Nothing,
        })
    }

    /// Writes latest.json; returns whether the condition held.
    async fn put_latest(&self, pointer: &Pointer, mode: PutMode) -> Result<bool, Error> {
        let path = self.base.clone().join(LATEST);
        match self.store.put_opts(&path, pointer.encode().into(), mode.into()).await {
            Ok(_) => Ok(true),
            Err(
                object_store::Error::Precondition { .. }
                | object_store::Error::AlreadyExists { .. },
            ) => Ok(false),
            Err(source) => Err(self.store_error("write", self.latest_url(), source)),
        }
    }

    /// Lets latest.json name `to`, or removes it for none, if it names one that `leaves` says.
    pub(crate) async fn move_latest(
        &self,
        leaves: impl Fn(StepName) -> bool,
        to: Option<StepName>,
    ) -> Result<(), Error> {
        let _lock = self.lock_latest().await?;
        loop {
            let Some((pointer, version)) = self.latest().await? else { return Ok(()) };
            if pointer.is_some_and(|pointer| !leaves(pointer.name())) {
                return Ok(());
            }
            let path = self.base.clone().join(LATEST);
            let error = |action| move |source| self.store_error(action, self.latest_url(), source);
            let Some(to) = to else {
                return self.store.delete(&path).map_err(error("delete")).await;
            };
            let mode = self.latest_mode(Some(version)).await?;
            let text = Pointer::to(to).encode();
            match self.store.put_opts(&path, text.into(), mode.into()).await {
                Ok(_) => return Ok(()),
                // Somebody wrote it meanwhile; what it says now may be right already.
                Err(object_store::Error::Precondition { .. }) => {}
                Err(source) => return Err(error("write")(source)),
            }
        }
    }

    /// Returns latest.json; `None` if there is none, no pointer if it says nothing.
    pub(crate) async fn latest(&self) -> Result<Option<(Option<Pointer>, UpdateVersion)>, Error> {
        let error = |source| self.store_error("read", self.latest_url(), source);
        loop {
            let result = match self.store.get(&self.base.clone().join(LATEST)).await {
                Ok(result) => result,
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                Err(source) => return Err(error(source)),
            };
            let version = UpdateVersion {
                e_tag: result.meta.e_tag.clone(),
                version: result.meta.version.clone(),
            };
            match result.bytes().await {
                // An unreadable pointer is replaced: it points nowhere.
                Ok(text) => return Ok(Some((serde_json::from_slice(&text).ok(), version))),
                // The connection broke off, and it was replaced before the rest was asked for.
                Err(object_store::Error::Precondition { .. }) => {}
                Err(source) => return Err(error(source)),
            }
        }
    }

    /// Returns the URL of latest.json.
    pub(crate) fn latest_url(&self) -> String {
        format!("{}/{LATEST}", self.url)
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

    #[tokio::test]
    async fn a_pointer_that_says_nothing_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(LATEST), "{").unwrap();
        let dir = CheckpointDir::open(folder.path().to_str().unwrap()).unwrap();
        dir.advance_latest(&Pointer::to(name(1, 5))).await.unwrap();
        assert_eq!(dir.latest().await.unwrap().unwrap().0.unwrap().name(), name(1, 5));
    }

    #[tokio::test]
    async fn latest_json_leaves_what_was_given_up_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        for dir in
            [CheckpointDir::memory(), CheckpointDir::open(folder.path().to_str().unwrap()).unwrap()]
        {
            let latest = async || dir.latest().await.unwrap().map(|(p, _)| p.unwrap().name());
            dir.move_latest(|_| true, Some(name(1, 1))).await.unwrap();
            assert_eq!(latest().await, None, "there was none, and none is made");
            dir.advance_latest(&Pointer::to(name(1, 30))).await.unwrap();
            dir.move_latest(|named| named == name(1, 20), Some(name(1, 10))).await.unwrap();
            assert_eq!(latest().await, Some(name(1, 30)));
            dir.move_latest(|named| named == name(1, 30), Some(name(1, 10))).await.unwrap();
            assert_eq!(latest().await, Some(name(1, 10)));
            dir.move_latest(|_| true, None).await.unwrap();
            assert_eq!(latest().await, None);
        }
    }
}
