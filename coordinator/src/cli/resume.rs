//! What `--resume` means: `latest`, a job id, or where a job or a checkpoint lies, on any store; turned
//! into a checkpoint URL, and held against the manifest before anything starts.

use ringmaster_checkpoint::browse::{Checkpoint, Target};
use ringmaster_manifest::resume_conflict;
use ringmaster_manifest::spec::TrainJob;

use super::checkpoints::location;
use super::error::Error;
use super::output;

/// Letters after the name in a job id: `<name>-<6 of base32>`.
const SUFFIX_LENGTH: usize = 6;

/// Who reads the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    /// Ranks of this machine: a store that this command cannot read they cannot read either.
    ThisMachine,
    /// Ranks elsewhere, which may reach stores that this command does not.
    Cluster,
}

/// Returns the checkpoint URL that `wanted` names for `job`: a job's folder or a checkpoint's.
///
/// # Errors
/// When `wanted` is `latest` and no earlier run of this manifest has a checkpoint, when what it names has
/// none, or when what was saved is of another loss or model. A store that fails is an error for
/// [`Reader::ThisMachine`], and for `latest`, which nobody else could find out.
pub(crate) async fn resolve(wanted: &str, job: &TrainJob, reader: Reader) -> Result<String, Error> {
    let uri = job.checkpoint.uri.trim_end_matches('/');
    if wanted == "latest" {
        return latest(uri, job).await;
    }
    if is_file(wanted) {
        let url = location(wanted)?;
        return missing(wanted, &url, reader).map_or(Ok(url), Err);
    }
    let url = match wanted.contains('/') {
        true => location(wanted)?.trim_end_matches('/').to_owned(),
        false => format!("{uri}/{wanted}"),
    };
    match look(wanted, &url, job).await {
        Ok(()) => Ok(url),
        Err(Error::Checkpoint(error)) if reader == Reader::Cluster && is_store(&error) => {
            output::error_line(&format!(
                "warning: {url} cannot be read from here ({error}); the job looks for itself"
            ));
            Ok(url)
        }
        Err(error) => Err(error),
    }
}

/// Whether a place ends as the training checkpoints of OpenCLIP do, which ranks read.
fn is_file(wanted: &str) -> bool {
    wanted.ends_with(".pt") || wanted.ends_with(".pth")
}

/// Returns why a file of this machine cannot be resumed from here, if it is not there.
fn missing(wanted: &str, url: &str, reader: Reader) -> Option<Error> {
    let local = ringmaster_checkpoint::store::open(url).ok()?.local?;
    (reader == Reader::ThisMachine && !local.is_file()).then(|| Error::Resume {
        wanted: wanted.to_owned(),
        reason: format!("{} is no file", local.display()),
        remedy: "name OpenCLIP's epoch_N.pt by its path".to_owned(),
    })
}

/// The store could not be asked; what it holds is unknown.
fn is_store(error: &ringmaster_checkpoint::Error) -> bool {
    matches!(error, ringmaster_checkpoint::Error::Store { .. })
}

/// Checks that a place has a complete checkpoint that `job` can go on from.
async fn look(wanted: &str, url: &str, job: &TrainJob) -> Result<(), Error> {
    let refused = |reason: String| Error::Resume {
        wanted: wanted.to_owned(),
        reason,
        remedy: "name another job id or URL (`ringmaster checkpoints ls` shows them), or leave \
                 --resume out"
            .to_owned(),
    };
    let checkpoint = match Target::open(url).await {
        Err(ringmaster_checkpoint::Error::Place { reason, .. }) => return Err(refused(reason)),
        Err(error) => return Err(error.into()),
        Ok(Target::Jobs(jobs)) => {
            return Err(refused(format!("{url} is a folder of {} jobs", jobs.len())));
        }
        Ok(Target::Job(folder)) => folder.newest().await?,
        Ok(Target::One(_, checkpoint)) => Some(*checkpoint).filter(Checkpoint::can_be_loaded),
    };
    let nothing = || refused(format!("{url} holds no complete checkpoint"));
    compare(url, &checkpoint.ok_or_else(nothing)?, job).await
}

/// Refuses a checkpoint of another loss or model.
async fn compare(url: &str, checkpoint: &Checkpoint, job: &TrainJob) -> Result<(), Error> {
    // A rank verifies all of it; here only what is known of the run counts.
    let Some(state) = checkpoint.state().await? else { return Ok(()) };
    match resume_conflict(&state.manifest, job) {
        None => Ok(()),
        Some(conflict) => Err(Error::ResumeConflict { url: url.to_owned(), conflict }),
    }
}

/// Finds the job of this manifest's name that saved last.
async fn latest(uri: &str, job: &TrainJob) -> Result<String, Error> {
    let nothing = || Error::Resume {
        wanted: "latest".to_owned(),
        reason: format!("no job {} has a checkpoint below {uri}", job.name),
        remedy: "leave --resume out to start anew".to_owned(),
    };
    let jobs = match Target::open(uri).await {
        Ok(Target::Jobs(jobs)) => jobs,
        Ok(Target::Job(_) | Target::One(..)) => Vec::new(),
        Err(ringmaster_checkpoint::Error::Place { .. }) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let mut newest: Option<(i64, Checkpoint, String)> = None;
    for folder in jobs.iter().filter(|folder| is_of(folder.name(), &job.name)) {
        let Some(checkpoint) = folder.newest().await? else { continue };
        let written = checkpoint.written_at_ms.unwrap_or(0);
        if newest.as_ref().is_none_or(|(before, ..)| written > *before) {
            newest = Some((written, checkpoint, folder.url().to_owned()));
        }
    }
    let (_, checkpoint, url) = newest.ok_or_else(nothing)?;
    compare(&url, &checkpoint, job).await?;
    Ok(url)
}

/// Whether a job id belongs to a job of this name.
fn is_of(job_id: &str, name: &str) -> bool {
    let suffix = job_id.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
    suffix.is_some_and(|suffix| {
        suffix.len() == SUFFIX_LENGTH && suffix.chars().all(|c| matches!(c, 'a'..='z' | '2'..='7'))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;

    fn job(uri: &Path) -> TrainJob {
        let yaml = format!(
            "apiVersion: ringmaster/v1\nkind: TrainJob\nmetadata: {{name: emoji}}\nspec:\n  \
             model: {{name: ViT-B-32}}\n  data: {{train: [/data/a.tar], lanes: 8}}\n  \
             loss: {{kind: siglip}}\n  optimizer: {{lr: 1.0e-3}}\n  \
             schedule: {{warmup_steps: 2, steps: 40}}\n  batch: {{global: 64}}\n  \
             checkpoint: {{uri: {}}}\n",
            uri.display()
        );
        let models = ringmaster_manifest::ModelCatalogue::builtin();
        ringmaster_manifest::parse(&yaml, "job.yaml", Path::new("/data"), &models).unwrap()
    }

    #[test]
    fn a_job_id_belongs_to_one_name() {
        assert!(is_of("emoji-aaaaaa", "emoji") && is_of("emoji-long-a2b3c4", "emoji-long"));
        assert!(!is_of("emoji-long-a2b3c4", "emoji") && !is_of("emoji-aaaaa1", "emoji"));
        assert!(!is_of("emoji", "emoji") && !is_of("emoji-AAAAAA", "emoji"));
    }

    #[tokio::test]
    async fn a_training_checkpoint_of_open_clips_is_a_file_that_ranks_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("epoch_3.pt");
        let job = job(folder.path());
        let wanted = file.display().to_string();
        let refused = resolve(&wanted, &job, Reader::ThisMachine).await.unwrap_err().to_string();
        assert!(refused.contains("epoch_3.pt is no file"), "{refused}");
        assert_eq!(resolve(&wanted, &job, Reader::Cluster).await.unwrap(), wanted);
        std::fs::write(&file, b"any").unwrap();
        assert_eq!(resolve(&wanted, &job, Reader::ThisMachine).await.unwrap(), wanted);
        let url = "s3://bucket/logs/run/checkpoints/epoch_3.pt";
        assert_eq!(resolve(url, &job, Reader::ThisMachine).await.unwrap(), url);
    }

    #[tokio::test]
    async fn what_names_nothing_is_refused_with_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let job = job(folder.path());
        let step = folder.path().join("emoji-bbbbbb/step-0000000020.g1.3");
        std::fs::create_dir_all(&step).unwrap();
        std::fs::write(step.join("state.json"), "being written").unwrap();
        let unfinished = step.display().to_string();
        for (wanted, reason) in [
            ("latest", "no job emoji has a checkpoint below file:///"),
            ("emoji-aaaaaa", "no checkpoint lies there"),
            ("emoji-bbbbbb", "holds no complete checkpoint"),
            (&unfinished, "holds no complete checkpoint"),
        ] {
            let error = resolve(wanted, &job, Reader::ThisMachine).await.unwrap_err();
            let text = error.to_string();
            assert!(text.contains(reason) && text.contains("--resume out"), "{text}");
            assert_eq!(error.exit_code(), 2);
        }
    }
}
