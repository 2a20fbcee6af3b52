//! What `--resume` means: `latest`, a job id or a URL, turned into a checkpoint URL.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ringmaster_manifest::resume_conflict;
use ringmaster_manifest::spec::TrainJob;

use super::error::Error;
use super::job_file::local_folder;

/// Letters after the name in a job id: `<name>-<6 of base32>`.
const SUFFIX_LENGTH: usize = 6;
/// Object of a checkpoint that holds the manifest of the job that wrote it.
const STATE: &str = "state.json";

/// Returns the checkpoint URL that `wanted` names for `job`: a job folder or a step prefix.
///
/// # Errors
/// When `wanted` is `latest` and no earlier run of this manifest has a checkpoint, when the job it
/// names has none, or when what was saved is of another loss or model.
pub(crate) fn resolve(wanted: &str, job: &TrainJob) -> Result<String, Error> {
    let url = find(wanted, job)?;
    match saved_job(&url).and_then(|saved| resume_conflict(&saved, job)) {
        None => Ok(url),
        Some(conflict) => Err(Error::ResumeConflict { url, conflict }),
    }
}

/// Returns the job whose state is at `url`, if that can be read from here; a rank checks again.
fn saved_job(url: &str) -> Option<TrainJob> {
    let folder = local_folder(url)?;
    let step = match folder.join(STATE).is_file() {
        true => folder,
        false => newest_step(&folder)?.1,
    };
    let state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(step.join(STATE)).ok()?).ok()?;
    ringmaster_manifest::from_validated_json(&state.get("manifest")?.to_string()).ok()
}

fn find(wanted: &str, job: &TrainJob) -> Result<String, Error> {
    if wanted.contains("://") {
        return Ok(wanted.to_owned());
    }
    let uri = job.checkpoint.uri.trim_end_matches('/');
    let refused = |reason: String, remedy: &str| Error::Resume {
        wanted: wanted.to_owned(),
        reason,
        remedy: remedy.to_owned(),
    };
    let Some(folder) = local_folder(uri) else {
        if wanted == "latest" {
            let reason = format!("{uri} cannot be listed from here");
            return Err(refused(reason, "name the job id, or the URL of the job's folder"));
        }
        return Ok(format!("{uri}/{wanted}"));
    };
    if wanted != "latest" {
        if !has_checkpoint(&folder.join(wanted)) {
            let reason = format!("{} holds no complete checkpoint", folder.join(wanted).display());
            return Err(refused(reason, "name another job id or URL, or leave --resume out"));
        }
        return Ok(format!("{uri}/{wanted}"));
    }
    match newest_job(&folder, &job.name) {
        Some(job_id) => Ok(format!("{uri}/{job_id}")),
        None => {
            let reason = format!("no job {} has a checkpoint below {}", job.name, folder.display());
            Err(refused(reason, "leave --resume out to start anew"))
        }
    }
}

/// Returns true when a job folder holds a step prefix with its manifest, which is written last.
fn has_checkpoint(job_folder: &Path) -> bool {
    newest_manifest(job_folder).is_some()
}

fn newest_manifest(job_folder: &Path) -> Option<SystemTime> {
    newest_step(job_folder).map(|(saved, _)| saved)
}

/// Returns the complete step prefix that was written last, and when.
fn newest_step(job_folder: &Path) -> Option<(SystemTime, PathBuf)> {
    let steps = std::fs::read_dir(job_folder).ok()?;
    let complete = steps.flatten().filter_map(|step| {
        let is_step = step.file_name().to_string_lossy().starts_with("step-");
        let manifest = step.path().join("MANIFEST.json");
        let saved = is_step.then(|| manifest.metadata().ok()?.modified().ok()).flatten()?;
        Some((saved, step.path()))
    });
    complete.max()
}

/// Returns the id of the job of this name whose newest checkpoint is the newest of all.
fn newest_job(folder: &Path, name: &str) -> Option<String> {
    let jobs = std::fs::read_dir(folder).ok()?.flatten().filter_map(|entry| {
        let job_id = entry.file_name().into_string().ok()?;
        let suffix = job_id.strip_prefix(name)?.strip_prefix('-')?;
        let is_suffix = suffix.len() == SUFFIX_LENGTH
            && suffix.chars().all(|c| matches!(c, 'a'..='z' | '2'..='7'));
        let saved = is_suffix.then(|| newest_manifest(&entry.path())).flatten()?;
        Some((saved, job_id))
    });
    jobs.max().map(|(_, job_id)| job_id)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn save(folder: &Path, job_id: &str, step: &str, age: u64) {
        let prefix = folder.join(job_id).join(step);
        std::fs::create_dir_all(&prefix).unwrap();
        let manifest = std::fs::File::create(prefix.join("MANIFEST.json")).unwrap();
        manifest.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    }

    #[test]
    fn latest_is_the_job_of_that_name_that_saved_last() {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), "emoji-aaaaaa", "step-0000000010.g1.1", 50);
        save(folder.path(), "emoji-bbbbbb", "step-0000000005.g1.2", 10);
        save(folder.path(), "emoji-long-cccccc", "step-0000000005.g1.2", 1);
        std::fs::create_dir_all(folder.path().join("emoji-dddddd/step-0000000020.g1.3")).unwrap();
        assert_eq!(newest_job(folder.path(), "emoji").unwrap(), "emoji-bbbbbb");
        assert_eq!(newest_job(folder.path(), "emoji-long").unwrap(), "emoji-long-cccccc");
        assert_eq!(newest_job(folder.path(), "other"), None);
    }

    #[test]
    fn a_prefix_without_its_manifest_is_no_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("step-0000000020.g1.3")).unwrap();
        assert!(!has_checkpoint(folder.path()));
    }
}
