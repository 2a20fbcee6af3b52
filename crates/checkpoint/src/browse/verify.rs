//! Every byte of a checkpoint against its manifest.

use std::sync::Arc;

use futures::TryStreamExt as _;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Checkpoint, JobFolder, Meter, Status};
use crate::Error;
use crate::checksum::Hasher;
use crate::dir::CheckpointDir;
use crate::layout::CHUNK;
use crate::layout::{self, StepName};
use crate::manifest::{Manifest, Object};
use crate::state::State;

/// Objects that are read at once; each takes one part of its stream in memory.
const OBJECTS_AT_ONCE: usize = 4;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// URL of the object, or of the checkpoint.
    pub object: String,
    /// What is wrong, with the range of bytes where there is one.
    pub reason: String,
}

impl Checkpoint {
    /// Reads every object, compares it with the manifest, and looks whether what they hold fits
    /// together; returns everything that is wrong. Of an object no more is in memory than what the
    /// store hands over at once.
    ///
    /// # Errors
    /// A store that fails for another reason than absence: then nothing is known; and
    /// [`Error::Interrupted`].
    pub async fn verify(&self, meter: &Meter) -> Result<Vec<Finding>, Error> {
        let Some(manifest) = &self.manifest else {
            let (object, reason) = match &self.status {
                Status::Damaged { reason } => (self.object_url(layout::MANIFEST), reason.clone()),
                _ => (self.url(), "it has no MANIFEST.json: nobody finished it".to_owned()),
            };
            return Ok(vec![Finding { object, reason }]);
        };
        let mut findings = self.verify_objects(manifest, meter).await?;
        if findings.is_empty() {
            findings = self.verify_meaning().await?;
        }
        findings.sort();
        Ok(findings)
    }

    async fn verify_objects(
        &self,
        manifest: &Manifest,
        meter: &Meter,
    ) -> Result<Vec<Finding>, Error> {
        let permits = Arc::new(Semaphore::new(OBJECTS_AT_ONCE));
        let mut tasks = JoinSet::new();
        for object in manifest.objects.clone() {
            let (dir, name, meter) = (self.dir.clone(), self.step_name, meter.clone());
            let permits = Arc::clone(&permits);
            tasks.spawn(async move {
                let _permit = permits.acquire_owned().await.expect("nobody closes it");
                let reasons = read_through(&dir, name, &object, &meter).await?;
                let url = dir.object_url(name, &object.name);
                let finding = |reason| Finding { object: url.clone(), reason };
                Ok::<_, Error>(reasons.into_iter().map(finding).collect::<Vec<_>>())
            });
        }
        let mut findings = Vec::new();
        // Leaving early aborts the rest.
        while let Some(ended) = tasks.join_next().await {
            findings.extend(ended.map_err(|_| Error::Interrupted)??);
        }
        Ok(findings)
    }

    /// Whether what the objects hold makes sense together.
    async fn verify_meaning(&self) -> Result<Vec<Finding>, Error> {
        let mut findings = Vec::new();
        let mut finding =
            |object: String, reason: String| findings.push(Finding { object, reason });
        match self.state().await {
            Ok(Some(state)) => {
                if let Some(reason) = self.misnamed(&state) {
                    finding(self.object_url(layout::STATE), reason);
                }
            }
            Ok(None) => finding(self.object_url(layout::STATE), "it does not exist".to_owned()),
            Err(error @ (Error::Json { .. } | Error::Version { .. } | Error::Damaged { .. })) => {
                finding(self.object_url(layout::STATE), ringmaster_words::chain(&error));
            }
            Err(error) => return Err(error),
        }
        match self.tensors().await {
            Ok(files) => {
                for gap in Self::gaps(&files) {
                    finding(self.url(), gap);
                }
            }
            Err(Error::Damaged { object, reason }) => finding(object, reason),
            Err(error) => return Err(error),
        }
        Ok(findings)
    }

    fn misnamed(&self, state: &State) -> Option<String> {
        let said = StepName { generation: state.generation, step: state.step };
        (said != self.step_name).then(|| format!("it is the state of {said}"))
    }

    fn object_url(&self, object: &str) -> String {
        self.dir.object_url(self.step_name, object)
    }
}

impl JobFolder {
    /// Says what is wrong with latest.json, if anything.
    ///
    /// # Errors
    /// A store that fails.
    pub async fn verify_latest(&self) -> Result<Option<Finding>, Error> {
        let finding = |reason: String| Some(Finding { object: self.dir.latest_url(), reason });
        let named = match self.dir.latest().await? {
            None => return Ok(None),
            Some((None, _)) => return Ok(finding("it cannot be understood".to_owned())),
            Some((Some(pointer), _)) => pointer.name(),
        };
        if !self.survey.names.contains(&named) {
            return Ok(finding(format!("it names {named}, which does not exist")));
        }
        Ok(match self.checkpoint(named).await?.status {
            Status::Complete => None,
            status => finding(format!("it names {named}, which is {}", status.word())),
        })
    }
}

/// Streams one object past its checksums; returns what differs.
pub(super) async fn read_through(
    dir: &CheckpointDir,
    name: StepName,
    object: &Object,
    meter: &Meter,
) -> Result<Vec<String>, Error> {
    let Some(result) = dir.get(name, &object.name).await? else {
        meter.add(object.size);
        return Ok(vec!["it does not exist".to_owned()]);
    };
    if result.meta.size != object.size {
        meter.add(object.size);
        return Ok(vec![format!("{} bytes, the manifest says {}", result.meta.size, object.size)]);
    }
    let mut checksums = Checksums::new(object);
    let mut parts = result.into_stream();
    let error = |source| dir.read_error(name, &object.name, source);
    while let Some(part) = parts.try_next().await.map_err(error)? {
        meter.go_on()?;
        checksums.update(&part);
        meter.add(part.len() as u64);
    }
    Ok(checksums.finish())
}

/// Compares bytes with an object's checksums as they come.
pub(super) struct Checksums<'a> {
    object: &'a Object,
    hasher: Hasher,
    /// Bytes so far.
    seen: u64,
    /// What differs so far.
    reasons: Vec<String>,
}

impl<'a> Checksums<'a> {
    pub(super) fn new(object: &'a Object) -> Self {
        Self { object, hasher: object.hasher(), seen: 0, reasons: Vec::new() }
    }

    /// Takes in the next bytes.
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = CHUNK - self.seen as usize % CHUNK;
            let (now, rest) = bytes.split_at(bytes.len().min(room));
            self.hasher.update(now);
            self.seen += now.len() as u64;
            if self.seen.is_multiple_of(CHUNK as u64) {
                self.end_chunk(CHUNK as u64);
            }
            bytes = rest;
        }
    }

    /// Returns what differs, one reason for each chunk.
    pub(super) fn finish(mut self) -> Vec<String> {
        let rest = self.seen % CHUNK as u64;
        if rest > 0 {
            self.end_chunk(rest);
        }
        if self.seen != self.object.size {
            let size = self.object.size;
            self.reasons.push(format!("{} bytes came, the manifest says {size}", self.seen));
        } else {
            self.reasons.extend(self.object.miscounted());
        }
        self.reasons
    }

    fn end_chunk(&mut self, len: u64) {
        let start = self.seen - len;
        let found = self.hasher.finish();
        let expected = self.object.sums().get((start / CHUNK as u64) as usize);
        if expected.is_some_and(|expected| *expected != found) {
            self.reasons.push(format!("checksum of bytes {start}..{} differs", self.seen));
        }
    }
}
