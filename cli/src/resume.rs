//! What `--resume` means: `latest`, a job id, or where a job or a checkpoint lies, on any store; turned
//! into a checkpoint URL, and held against the manifest before anything starts.

use ringmaster_checkpoint::browse::{Checkpoint, JobFolder, Target};
use ringmaster_checkpoint::{Listing, State, job_url};
use ringmaster_data::resumed;
use ringmaster_manifest::resume_conflict;
use ringmaster_manifest::spec::TrainJob;

use super::error::Error;
use super::location::location;
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
    if ringmaster_checkpoint::is_weights(wanted) {
        let url = location(wanted)?;
        return match missing(wanted, &url, reader) {
            Some(missing) => Err(missing),
            None if may_train(wanted) => Ok(url),
            None => Err(weights_alone(wanted, &url, "it holds weights")),
        };
    }
    let url = if wanted.contains('/') {
        location(wanted)?.trim_end_matches('/').to_owned()
    } else {
        job_url(uri, wanted)
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

/// Whether a file may be a training checkpoint of OpenCLIP's, by its ending: ranks find out.
fn may_train(wanted: &str) -> bool {
    wanted.ends_with(".pt") || wanted.ends_with(".pth")
}

/// Weights are no run: there is no optimizer's state and no step to go on from.
fn weights_alone(wanted: &str, place: &str, found: &str) -> Error {
    Error::Resume {
        wanted: wanted.to_owned(),
        reason: format!("{found} and no state of a run to go on from"),
        remedy: format!(
            "to start a run from them, leave --resume out and write under spec.model\n    pretrained: {}",
            yaml_text(place)
        ),
    }
}

/// Returns text as YAML has it: in quotes where it could be taken for something else.
fn yaml_text(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/:._-~%+=".contains(c);
    if text.starts_with(|c: char| c == '/' || c.is_ascii_alphabetic()) && text.chars().all(plain) {
        text.to_owned()
    } else {
        serde_json::to_string(text).unwrap_or_else(|_| text.to_owned())
    }
}

/// Returns why a file of this machine cannot be resumed from here, if it is not there.
fn missing(wanted: &str, url: &str, reader: Reader) -> Option<Error> {
    let local = ringmaster_store::open(url).ok()?.local?;
    (reader == Reader::ThisMachine && !local.is_file()).then(|| Error::Resume {
        wanted: wanted.to_owned(),
        reason: if local.is_dir() {
            format!("{} is a folder", local.display())
        } else {
            format!("there is no file {}", local.display())
        },
        remedy:
            "name a job id, the place of a run's checkpoints, or OpenCLIP's epoch_N.pt by its path"
                .to_owned(),
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
        Err(ringmaster_checkpoint::Error::Unusable { reason, .. }) => {
            return Err(match weights_in(url).await {
                Some(file) => weights_alone(wanted, url, &format!("it holds weights ({file})")),
                None => refused(reason),
            });
        }
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

/// Returns one of the files of weights in a folder, if there is any and it can be listed.
async fn weights_in(url: &str) -> Option<String> {
    let listing = Listing::read(url).await.ok()?;
    listing.files.into_iter().find(|name| ringmaster_checkpoint::is_weights(name))
}

/// Refuses a checkpoint of another loss or model.
async fn compare(url: &str, checkpoint: &Checkpoint, job: &TrainJob) -> Result<(), Error> {
    // A rank verifies all of it; here only what is known of the run counts.
    let Some(state) = checkpoint.state().await? else { return Ok(()) };
    match resume_conflict(&state.manifest, job) {
        None => compare_order(url, &state, job),
        Some(conflict) => Err(Error::ResumeConflict { url: url.to_owned(), conflict }),
    }
}

/// Refuses a checkpoint of another order of samples, unless the job takes it. That shards have other contents shows
/// only when ranks open them.
fn compare_order(url: &str, state: &State, job: &TrainJob) -> Result<(), Error> {
    if job.data.accept_new_data {
        return Ok(());
    }
    let Some(reason) = resumed::conflict(state, &job.data, None) else { return Ok(()) };
    let conflict = format!("{reason}; {}", resumed::remedy(state));
    Err(Error::ResumeConflict { url: url.to_owned(), conflict })
}

/// Finds the job of this manifest's name that trained last.
async fn latest(uri: &str, job: &TrainJob) -> Result<String, Error> {
    let nothing = || Error::Resume {
        wanted: "latest".to_owned(),
        reason: format!("no job {} has a checkpoint below {uri}", job.name),
        remedy: "leave --resume out to start anew".to_owned(),
    };
    let jobs = match Target::open(uri).await {
        Ok(Target::Jobs(jobs)) => jobs,
        Ok(Target::Job(_) | Target::One(..)) => Vec::new(),
        Err(ringmaster_checkpoint::Error::Unusable { .. }) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let mut runs = Vec::new();
    for folder in jobs.iter().filter(|folder| is_of(folder.name(), &job.name)) {
        if let Some(checkpoint) = folder.newest().await? {
            runs.push(Run::read(folder, checkpoint).await?);
        }
    }
    let newest = runs.iter().max_by_key(|run| run.order()).ok_or_else(nothing)?;
    for run in runs.iter().filter(|run| run.is_passed_over_for(newest)) {
        let (copy, original) = (&run.url, run.checkpoint.job_id().unwrap_or("another job"));
        output::error_line(&format!(
            "warning: {copy} is a copy of {original} and does not say when it was saved, only when it was \
             copied, so it does not count as the latest; name it to go on from it"
        ));
    }
    compare(&newest.url, &newest.checkpoint, job).await?;
    Ok(newest.url.clone())
}

/// A job's folder and its newest checkpoint.
struct Run {
    url: String,
    checkpoint: Checkpoint,
    /// What the checkpoint itself says; earlier releases did not write it.
    saved_at_ms: Option<i64>,
    /// The folder was copied: another job wrote what lies in it.
    is_copy: bool,
}

impl Run {
    async fn read(folder: &JobFolder, checkpoint: Checkpoint) -> Result<Self, Error> {
        let saved_at_ms = match checkpoint.state().await {
            Ok(state) => state.and_then(|state| state.saved_at_ms),
            Err(error) if is_store(&error) => return Err(error.into()),
            // What is wrong with it is said if it is the one that is taken.
            Err(_) => None,
        };
        let is_copy = checkpoint.job_id().is_some_and(|id| id != folder.name());
        Ok(Self { url: folder.url().to_owned(), checkpoint, saved_at_ms, is_copy })
    }

    /// Places the run that trained last after all others. The time of a file tells when a job wrote it,
    /// unless it is a copy: `cp -r` gives an old run new times. Of a run and its copy the run counts.
    fn order(&self) -> (bool, i64, bool) {
        let of_file = self.checkpoint.written_at_ms.unwrap_or(0);
        let is_known = self.saved_at_ms.is_some() || !self.is_copy;
        (is_known, self.saved_at_ms.unwrap_or(of_file), !self.is_copy)
    }

    fn is_passed_over_for(&self, chosen: &Self) -> bool {
        let (is_known, at, _) = self.order();
        !is_known && chosen.order().0 && at > chosen.order().1
    }
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
#[path = "resume_tests.rs"]
mod tests;
