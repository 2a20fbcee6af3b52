//! Copies of checkpoints and of what they hold, verified on the way.
//!
//! Memory is bounded: a few objects at a time, each with a few parts on their way, whatever their
//! size. Nothing is visible at the destination before all of it was verified: an object appears when it
//! is finished, and a checkpoint when its manifest is written, last.

use std::sync::Arc;

use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, WriteMultipart};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::verify::{Checksums, read_through};
use super::{Checkpoint, JobFolder, Meter};
use crate::Error;
use crate::dir::CheckpointDir;
use crate::layout::{self, StepName};
use crate::manifest::{Object, Pointer};

/// Objects that are copied at once.
const OBJECTS_AT_ONCE: usize = 3;
/// Bytes of a part of an upload.
const PART: usize = 8 << 20;
/// Parts of an object on their way at once. With the above: 3 · (4 + 1) · 8 MiB = 120 MiB.
const PARTS_IN_FLIGHT: usize = 4;

/// How a copy went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// URL of the checkpoint at the destination.
    pub url: String,
    /// Objects that were copied, and those that were there already.
    pub copied: usize,
    /// Objects that lay there already, and verified.
    pub kept: usize,
}

/// A job's folder to copy to; it need not exist.
#[derive(Debug, Clone)]
pub struct Destination(CheckpointDir);

impl Destination {
    /// Opens the folder at `url`.
    ///
    /// # Errors
    /// A folder that cannot be reached, that is a checkpoint's own folder, or that holds jobs.
    pub async fn open(url: &str) -> Result<Self, Error> {
        let dir = CheckpointDir::open(url)?;
        let refused = |reason: String| Error::Unusable { url: url.to_owned(), reason };
        if dir.split().is_some() {
            return Err(refused(
                "a checkpoint's own folder; name the job's folder above it".into(),
            ));
        }
        let job = JobFolder::look(dir).await?;
        if job.is_job() {
            return Ok(Self(job.dir));
        }
        for name in &job.survey.folders {
            let Some(below) = job.dir.below(name) else { continue };
            if JobFolder::look(below).await?.is_job() {
                let example = layout::url_below(url.trim_end_matches('/'), name);
                let reason = format!("a folder of jobs; name a job's folder in it, as {example}");
                return Err(refused(reason));
            }
        }
        Ok(Self(job.dir))
    }
}

impl Checkpoint {
    /// Copies this checkpoint into another job's folder, and lets its latest.json name it unless that
    /// names a newer one. Objects that lie there already are read and kept if they verify, so that a
    /// copy that was broken off goes on where it was.
    ///
    /// # Errors
    /// A store that fails, bytes that do not verify, a checkpoint that was given up at the
    /// destination, [`Error::Interrupted`]: then no checkpoint is visible there.
    pub async fn copy_to(&self, to: &Destination, meter: &Meter) -> Result<Copied, Error> {
        let (dir, name) = (&to.0, self.step_name);
        let Some(manifest) = &self.manifest else {
            let reason = "it has no MANIFEST.json that can be read, so nothing can be verified";
            return Err(Error::Damaged { object: self.url(), reason: reason.to_owned() });
        };
        if dir.is_same(&self.dir) {
            let reason = "the checkpoint lies there; name another folder".to_owned();
            return Err(Error::Unusable { url: dir.url.clone(), reason });
        }
        if let Some(rollback) = dir.survey().await?.rollback_of(name) {
            let reason = format!(
                "a roll-back to {} gave {name} up in this folder; copy to another one",
                rollback.to
            );
            return Err(Error::Unusable { url: dir.url.clone(), reason });
        }

        let permits = Arc::new(Semaphore::new(OBJECTS_AT_ONCE));
        let mut tasks = JoinSet::new();
        for object in manifest.objects.clone() {
            let (from, to, meter) = (self.dir.clone(), dir.clone(), meter.clone());
            let permits = Arc::clone(&permits);
            tasks.spawn(async move {
                let _permit = permits.acquire_owned().await.expect("nobody closes it");
                let path = to.object(name, &object.name);
                let is_there = to.exists(name, &object.name).await?
                    && read_through(&to, name, &object, &Meter::default()).await?.is_empty();
                if is_there {
                    meter.add(object.size);
                } else {
                    let url = to.object_url(name, &object.name);
                    let goal = Goal { path: &path, url, dir: &to };
                    stream(&from, name, &object, &goal, &meter).await?;
                }
                Ok::<_, Error>(is_there)
            });
        }
        let (mut copied, mut kept) = (0, 0);
        let mut failure = None;
        // All are waited for: each takes back what it had begun.
        while let Some(ended) = tasks.join_next().await {
            match ended.map_err(|_| Error::Interrupted).flatten() {
                Ok(true) => kept += 1,
                Ok(false) => copied += 1,
                Err(Error::Interrupted) => failure = failure.or(Some(Error::Interrupted)),
                Err(error) => {
                    meter.cancel();
                    failure = match failure {
                        None | Some(Error::Interrupted) => Some(error),
                        earlier => earlier,
                    };
                }
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        meter.go_on()?;
        dir.create(name, layout::MANIFEST, manifest.encode()).await?;
        dir.advance_latest(&Pointer::to(name)).await?;
        Ok(Copied { url: dir.step_url(name), copied, kept })
    }

    /// Writes the model alone to a file at `url`, an absolute path or a URL, as OpenCLIP loads it. It
    /// appears when all of it is there and verified. Returns its size.
    ///
    /// # Errors
    /// A store that fails, bytes that do not verify, a file that exists unless `overwrite`,
    /// [`Error::Interrupted`].
    pub async fn export(&self, url: &str, overwrite: bool, meter: &Meter) -> Result<u64, Error> {
        let refused =
            |reason: &str| Error::Unusable { url: url.to_owned(), reason: reason.to_owned() };
        if !url.ends_with(".safetensors") {
            return Err(refused("only safetensors files are written; name a file ….safetensors"));
        }
        let file = CheckpointDir::open(url)?;
        if file.local.as_ref().is_some_and(|path| path.is_dir()) {
            return Err(refused("it is a folder; name a file in it"));
        }
        let exists = match file.store.head(&file.base).await {
            Ok(_) => true,
            Err(object_store::Error::NotFound { .. }) => false,
            Err(source) => {
                return Err(file.store_error("look at", url.to_owned(), source));
            }
        };
        if exists && !overwrite {
            return Err(refused("it exists; name another file, or pass --force to replace it"));
        }
        let objects = self.manifest.iter().flat_map(|manifest| &manifest.objects);
        let Some(model) = objects.clone().find(|object| object.name == layout::MODEL) else {
            let reason = "it has no MANIFEST.json that can be read, so nothing can be verified";
            return Err(Error::Damaged { object: self.url(), reason: reason.to_owned() });
        };
        let goal = Goal { path: &file.base, url: url.to_owned(), dir: &file };
        stream(&self.dir, self.step_name, model, &goal, meter).await?;
        Ok(model.size)
    }

    /// Returns the bytes of the model alone.
    pub fn model_size(&self) -> u64 {
        self.objects.get(layout::MODEL).copied().unwrap_or(0)
    }
}

/// An object that is to be written.
struct Goal<'a> {
    /// In the store of `dir`.
    path: &'a Path,
    url: String,
    dir: &'a CheckpointDir,
}

/// Streams one object to another folder, compared with its checksums; it appears there only if all of
/// it is right.
async fn stream(
    from: &CheckpointDir,
    name: StepName,
    object: &Object,
    goal: &Goal<'_>,
    meter: &Meter,
) -> Result<(), Error> {
    let url = from.object_url(name, &object.name);
    let missing = || Error::Damaged { object: url.clone(), reason: "it does not exist".to_owned() };
    let result = from.get(name, &object.name).await?.ok_or_else(missing)?;
    let write_error = |source| goal.dir.store_error("write", goal.url.clone(), source);
    let upload = goal.dir.store.put_multipart(goal.path).await.map_err(write_error)?;
    let mut writer = WriteMultipart::new_with_chunk_size(upload, PART);
    let filled = fill(from, name, object, result, &mut writer, meter, write_error).await;
    if let Err(error) = filled {
        // What is left of it is nobody's; the error is the one that counts.
        let _ = writer.abort().await;
        return Err(error);
    }
    writer.finish().await.map_err(write_error)?;
    Ok(())
}

async fn fill(
    from: &CheckpointDir,
    name: StepName,
    object: &Object,
    result: object_store::GetResult,
    writer: &mut WriteMultipart,
    meter: &Meter,
    write_error: impl Fn(object_store::Error) -> Error,
) -> Result<(), Error> {
    let mut checksums = Checksums::new(object);
    let mut parts = result.into_stream();
    let read_error = |source| from.read_error(name, &object.name, source);
    while let Some(part) = parts.try_next().await.map_err(read_error)? {
        meter.go_on()?;
        checksums.update(&part);
        writer.wait_for_capacity(PARTS_IN_FLIGHT).await.map_err(&write_error)?;
        meter.add(part.len() as u64);
        writer.put(part);
    }
    meter.go_on()?;
    match checksums.finish().into_iter().next() {
        None => Ok(()),
        Some(reason) => Err(Error::Damaged { object: from.object_url(name, &object.name), reason }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::browse::Target;
    use crate::tests::testing;

    /// A checkpoint of step 10 in one folder, and another folder.
    fn two_places() -> (tempfile::TempDir, String, String) {
        let root = tempfile::tempdir().unwrap();
        let uri = root.path().join("runs");
        testing::publish(uri.to_str().unwrap(), 1, 10);
        let from = crate::job_url(uri.to_str().unwrap(), testing::JOB_ID);
        let to = root.path().join("elsewhere").to_str().unwrap().to_owned();
        (root, from, to)
    }

    async fn newest(url: &str) -> Checkpoint {
        let Target::Job(job) = Target::open(url).await.unwrap() else { panic!("{url} is no job") };
        job.newest().await.unwrap().unwrap()
    }

    #[test]
    fn an_interrupted_copy_or_export_leaves_nothing_half_written() {
        let (root, from, to) = two_places();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let checkpoint = newest(&from).await;
            let meter = Meter::default();
            meter.cancel();
            let destination = Destination::open(&to).await.unwrap();
            let copied = checkpoint.copy_to(&destination, &meter).await;
            assert!(matches!(copied, Err(Error::Interrupted)), "{copied:?}");
            let file = root.path().join("model.safetensors");
            let exported = checkpoint.export(file.to_str().unwrap(), false, &meter).await;
            assert!(matches!(exported, Err(Error::Interrupted)), "{exported:?}");
            assert!(checkpoint.verify(&meter).await.is_err());

            // The same again, uninterrupted.
            let meter = Meter::default();
            checkpoint.copy_to(&destination, &meter).await.unwrap();
            assert_eq!(meter.bytes(), checkpoint.payload());
            assert_eq!(newest(&to).await.verify(&Meter::default()).await.unwrap(), []);
            checkpoint.export(file.to_str().unwrap(), false, &Meter::default()).await.unwrap();
        });
        // Dropping the runtime waits for what still deletes in the background.
        drop(runtime);
        let names = |folder: &std::path::Path| {
            let mut names: Vec<String> = std::fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(root.path()), ["elsewhere", "model.safetensors", "runs"]);
        let copy = std::path::Path::new(&to).join("step-0000000010.g1.1");
        let original = std::path::Path::new(&from).join("step-0000000010.g1.1");
        assert_eq!(names(&copy), names(&original));
    }

    #[test]
    fn what_was_given_up_at_the_destination_is_not_copied_there() {
        let (_root, from, to) = two_places();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let error = runtime.block_on(async {
            std::fs::create_dir_all(&to).unwrap();
            let mark = "rollback-g1.9-to-step-0000000005.g1.1.json";
            std::fs::write(std::path::Path::new(&to).join(mark), "{}").unwrap();
            let destination = Destination::open(&to).await.unwrap();
            newest(&from).await.copy_to(&destination, &Meter::default()).await.unwrap_err()
        });
        let expected = "a roll-back to step-0000000005.g1.1 gave step-0000000010.g1.1 up";
        assert!(error.to_string().contains(expected), "{error}");
    }
}
