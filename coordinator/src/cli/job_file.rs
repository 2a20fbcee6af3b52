//! From a manifest file to a request the coordinator takes: parsed, checked, paths absolute.

use std::path::{Path, PathBuf};

use ringmaster_manifest::ModelCatalogue;
use ringmaster_manifest::spec::TrainJob;
use ringmaster_proto::v1::SubmitRequest;

use super::error::{Error, MissingFile};
use super::text::thousands;

/// A manifest that was read and found valid.
#[derive(Debug)]
pub(crate) struct JobFile {
    path: PathBuf,
    yaml: String,
    /// What it means.
    pub(crate) job: TrainJob,
}

impl JobFile {
    /// Reads and validates the manifest at `path`. Relative paths in it start at its folder.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let read_error = |source| Error::ReadManifest { path: path.to_owned(), source };
        let yaml = std::fs::read_to_string(path).map_err(read_error)?;
        let absolute = std::path::absolute(path).map_err(read_error)?;
        let base_dir = absolute.parent().unwrap_or(Path::new("/"));
        let refused = |mistakes: String| Error::Manifest { path: path.to_owned(), mistakes };
        let models = ModelCatalogue::from_env().map_err(Error::Models)?;
        let shown_name = path.display().to_string();
        let job = ringmaster_manifest::parse(&yaml, &shown_name, base_dir, &models)
            .map_err(|mistakes| refused(mistakes.to_string()))?;
        Ok(Self { path: path.to_owned(), yaml, job })
    }

    /// Trains with `ranks` ranks whatever the manifest says.
    ///
    /// # Errors
    /// When the batch cannot be divided among so many.
    pub(crate) fn set_ranks(&mut self, ranks: u32) -> Result<(), Error> {
        let refused = |constraint: String, remedy: &str| Error::Flag {
            flag: "--ranks",
            value: ranks.to_string(),
            constraint,
            remedy: remedy.to_owned(),
        };
        let (lanes, batch) = (self.job.data.lanes, self.job.batch.global);
        if ranks > lanes {
            let constraint = format!("spec.data.lanes is {lanes} and every rank needs a lane");
            return Err(refused(constraint, "use fewer ranks or more lanes"));
        }
        if ranks > batch {
            let constraint = format!("spec.batch.global is {batch} and every rank needs a sample");
            return Err(refused(constraint, "use fewer ranks or a larger batch"));
        }
        if let Some(group) = self.job.loss.ring_group.filter(|group| !ranks.is_multiple_of(*group))
        {
            let constraint = format!("spec.loss.ring.group is {group} and must divide the ranks");
            return Err(refused(constraint, "use a multiple, or ring.group: auto"));
        }
        self.job.resources.ranks = ranks;
        self.job.resources.min_ranks = self.job.resources.min_ranks.min(ranks);
        Ok(())
    }

    /// Checks that every local data file the manifest names is there.
    pub(crate) fn check_data(&self) -> Result<(), Error> {
        let mut missing = missing_files("spec.data.train", &self.job.data.train);
        for (index, set) in self.job.eval.zero_shot.iter().enumerate() {
            let field = format!("spec.eval.zero_shot[{index}].data");
            missing.extend(missing_files(&field, &set.data));
        }
        if missing.is_empty() { Ok(()) } else { Err(Error::MissingData { missing }) }
    }

    /// Returns the request that submits this job once, however often it is sent.
    pub(crate) fn submit_request(&self, resume_from: String) -> SubmitRequest {
        SubmitRequest {
            manifest: ringmaster_manifest::to_json(&self.job),
            file_name: self.path.display().to_string(),
            request_id: hex::encode(rand::random::<[u8; 16]>()),
            resume_from,
            manifest_yaml: self.yaml.clone(),
        }
    }

    /// Returns what the job is in one line.
    pub(crate) fn headline(&self) -> String {
        headline(&self.job)
    }
}

/// Returns what a job is in one line: model, loss, ranks, batch, length.
pub(crate) fn headline(job: &TrainJob) -> String {
    let loss = match job.loss.kind {
        ringmaster_manifest::spec::LossKind::Siglip => "siglip",
        ringmaster_manifest::spec::LossKind::Infonce => "infonce",
    };
    let (ranks, batch) = (job.resources.ranks, u64::from(job.batch.global));
    let steps = job.schedule.total_steps;
    format!(
        "{} · {loss} · {ranks} {} · batch {} · {} steps · {} samples",
        job.model.name,
        if ranks == 1 { "rank" } else { "ranks" },
        thousands(batch),
        thousands(steps),
        thousands(batch * steps)
    )
}

/// Returns the local path a data URL means, or none for a remote store.
fn local_path(url: &str) -> Option<PathBuf> {
    let path = match url.split_once("://") {
        Some(("file", rest)) => rest.strip_prefix("localhost").unwrap_or(rest),
        Some(_) => return None,
        None => url,
    };
    Some(PathBuf::from(percent_decoded(path, url.contains("://"))))
}

fn percent_decoded(path: &str, is_url: bool) -> String {
    if !is_url || !path.contains('%') {
        return path.to_owned();
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = tail
            .get(..2)
            .filter(|_| byte == b'%')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn missing_files(field: &str, urls: &[String]) -> Vec<MissingFile> {
    urls.iter()
        .filter_map(|url| local_path(url))
        .filter(|path| !path.is_file())
        .map(|path| MissingFile { field: field.to_owned(), path })
        .collect()
}

/// Returns the local folder a checkpoint URI means, or none for a remote store.
pub(crate) fn local_folder(uri: &str) -> Option<PathBuf> {
    local_path(uri)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_local_files_are_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("a b.tar");
        std::fs::write(&there, b"").unwrap();
        let escaped = format!("file://{}", there.display()).replace(' ', "%20");
        let gone = folder.path().join("gone.tar");
        let urls = [
            there.display().to_string(),
            escaped,
            "s3://bucket/train.tar".to_owned(),
            gone.display().to_string(),
        ];
        let missing = missing_files("spec.data.train", &urls);
        assert_eq!(missing, [MissingFile { field: "spec.data.train".to_owned(), path: gone }]);
    }

    #[test]
    fn a_folder_is_not_a_data_file() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(missing_files("f", &[folder.path().display().to_string()]).len(), 1);
    }
}
