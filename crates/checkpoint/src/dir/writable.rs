//! Whether checkpoints can be written into a folder, found out before anything is worth saving.

use std::hash::{BuildHasher as _, RandomState};

use object_store::{ObjectStoreExt as _, PutPayload};
use ringmaster_words::chain;

use super::CheckpointDir;
use crate::Error;
use crate::layout;
use crate::runtime::runtime;

/// Writes a small object where the checkpoints of `job_id` below `uri` are to lie, and deletes it: folders that
/// are missing are made, as for a checkpoint. Blocks for some seconds where the store does not answer; a file
/// system that hangs may block it for ever.
///
/// # Errors
/// The object was not written: [`Error::refuses`] says whether it never will be, and [`Error::is_full`] whether
/// room can be made. That it could not be deleted is only logged.
pub fn check_writable(uri: &str, job_id: &str) -> Result<(), Error> {
    let dir = CheckpointDir::open(&layout::job_url(uri, job_id))?;
    runtime()?.block_on(dir.check_writable())
}

impl CheckpointDir {
    /// As the function of this name, for this folder.
    pub(crate) async fn check_writable(&self) -> Result<(), Error> {
        // Every rank of a job tries at the same time, so each needs a name of its own.
        let random = RandomState::new().hash_one(std::process::id());
        let name = format!(".writable-{random:016x}");
        let object = format!("{}/{name}", self.url);
        let path = self.base.clone().join(name);
        // Not the patient store: whoever starts a job can wait for one that is away when there is something
        // to save.
        let store = self.opened.objects();
        let body = PutPayload::from_static(b"whether checkpoints can be written here");
        if let Err(source) = store.put(&path, body).await {
            return Err(self.store_error("write", object, source));
        }
        if let Err(source) = store.delete(&path).await {
            let error = self.store_error("delete", object, source);
            tracing::warn!(
                error = %chain(&error),
                "checkpoints can be written but not deleted there: old ones will stay"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::stores::{Subject, subjects};
    use super::*;

    #[test]
    fn whoever_may_write_leaves_no_object_behind() {
        let runtime = runtime().unwrap();
        for Subject { store, dir, .. } in &subjects() {
            runtime.block_on(dir.check_writable()).unwrap();
            let left = runtime.block_on(dir.store.list_with_delimiter(Some(&dir.base))).unwrap();
            assert!(left.objects.is_empty(), "{store}: {left:?}");
        }
    }

    #[test]
    fn folders_that_are_missing_are_made_as_for_a_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let uri = folder.path().join("not/yet");
        check_writable(uri.to_str().unwrap(), "job-1").unwrap();
        assert_eq!(std::fs::read_dir(uri.join("job-1")).unwrap().count(), 0);
    }

    /// Permission bits do not keep root out; these places do.
    #[test]
    fn a_place_that_takes_no_file_is_a_refusal_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        for uri in [file.to_str().unwrap(), "/proc/ringmaster", "/sys/ringmaster"] {
            let error = check_writable(uri, "job-1").unwrap_err();
            assert!(error.refuses() && !error.is_full(), "{error:?}");
            assert!(error.to_string().starts_with(&format!("cannot write {uri}/job-1/.writable-")));
        }
        let error = check_writable("ftp://host/runs", "job-1").unwrap_err();
        assert!(error.refuses(), "{error:?}");
    }

    #[test]
    fn a_full_store_and_one_that_is_away_refuse_nothing() {
        for (code, is_full) in [("QuotaExceeded", true), ("InternalError", false)] {
            let source = format!("<Error><Code>{code}</Code></Error>").into();
            let source = object_store::Error::Generic { store: "S3", source }.into();
            let error = Error::Store { action: "write", object: "s3://runs/x".to_owned(), source };
            assert_eq!((error.refuses(), error.is_full()), (false, is_full), "{code}");
        }
    }
}
