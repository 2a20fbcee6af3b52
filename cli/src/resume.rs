//! What `--resume` means: `latest`, a job id, or where a job or a checkpoint lies, on any store; turned
//! into a checkpoint URL, and held against the manifest before anything starts.

use ringmaster_checkpoint::browse::{Checkpoint, JobFolder, Target};
use ringmaster_checkpoint::{Listing, job_url};
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
        None => Ok(()),
        Some(conflict) => Err(Error::ResumeConflict { url: url.to_owned(), conflict }),
    }
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
#[allow(clippy::unwrap_used, dead_code)]
#[path = "../../coordinator/tests/fleet/stored.rs"]
mod stored;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    use ringmaster_proto::v1::Generation;

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
        assert!(
            refused.contains("there is no file ") && refused.contains("epoch_3.pt;"),
            "{refused}"
        );
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

    /// Weights have no optimizer's state: "refused" alone left people to find `pretrained` by themselves.
    #[tokio::test]
    async fn plain_weights_are_refused_with_the_line_that_starts_a_run_from_them() {
        let folder = tempfile::tempdir().unwrap();
        let job = job(folder.path());
        let place = |name: &str| folder.path().join(name).display().to_string();
        for name in ["m.safetensors", "two words.bin", "model.safetensors.index.json"] {
            std::fs::write(place(name), "weights").unwrap();
        }
        std::fs::create_dir(place("weights")).unwrap();
        std::fs::write(place("weights/open_clip_model.safetensors"), "weights").unwrap();
        for (wanted, value) in [
            (place("m.safetensors"), place("m.safetensors")),
            (place("two words.bin"), format!("{:?}", place("two words.bin"))),
            (place("model.safetensors.index.json"), place("model.safetensors.index.json")),
            ("s3://bucket/m.safetensors".to_owned(), "s3://bucket/m.safetensors".to_owned()),
            (place("weights/"), place("weights")),
        ] {
            for reader in [Reader::ThisMachine, Reader::Cluster] {
                let error = resolve(&wanted, &job, reader).await.unwrap_err();
                let text = error.to_string();
                assert!(text.contains("and no state of a run to go on from"), "{text}");
                let line = format!("write under spec.model\n    pretrained: {value}");
                assert!(text.ends_with(&line), "{text}");
                assert_eq!(error.exit_code(), 2);
            }
        }
        let missing = resolve(&place("no.safetensors"), &job, Reader::ThisMachine).await;
        assert!(missing.unwrap_err().to_string().contains("there is no file "));
    }

    struct Runs {
        folder: tempfile::TempDir,
        job: TrainJob,
    }

    impl Runs {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let job = job(folder.path());
            Self { folder, job }
        }

        async fn store(&self, id: &str, step: u64, saved_at_ms: Option<i64>) {
            let manifest = ringmaster_manifest::to_json(&self.job);
            let generation = Generation::new(1, 1);
            stored::store_at(self.folder.path(), manifest, id, generation, step, saved_at_ms).await;
        }

        /// As `cp -r`, an hour from now.
        fn copy(&self, from: &str, to: &str) {
            let name = |id: &str| self.folder.path().join(id).join("step-0000000010.g1.1");
            std::fs::create_dir_all(name(to)).unwrap();
            for entry in std::fs::read_dir(name(from)).unwrap() {
                let entry = entry.unwrap();
                let copy = name(to).join(entry.file_name());
                std::fs::copy(entry.path(), &copy).unwrap();
                let copy = std::fs::File::options().append(true).open(copy).unwrap();
                copy.set_modified(SystemTime::now() + Duration::from_secs(3600)).unwrap();
            }
        }

        async fn latest(&self) -> String {
            let url = resolve("latest", &self.job, Reader::ThisMachine).await.unwrap();
            url.rsplit('/').next().unwrap().to_owned()
        }
    }

    /// metatrain#720: a copy of an older run, made to look into it, was newer by the times of its files.
    #[tokio::test]
    async fn latest_is_the_run_that_trained_last_and_no_copy_of_an_older_one() {
        for recorded in [true, false] {
            let at = |ms: i64| recorded.then_some(ms);
            let runs = Runs::new();
            runs.store("emoji-aaaaaa", 10, at(1000)).await;
            runs.copy("emoji-aaaaaa", "emoji-bbbbbb");
            assert_eq!(runs.latest().await, "emoji-aaaaaa", "a run before its copy");
            runs.store("emoji-cccccc", 5, at(2000)).await;
            assert_eq!(runs.latest().await, "emoji-cccccc", "recorded: {recorded}");
            std::fs::remove_dir_all(runs.folder.path().join("emoji-cccccc")).unwrap();
            std::fs::remove_dir_all(runs.folder.path().join("emoji-aaaaaa")).unwrap();
            assert_eq!(
                runs.latest().await,
                "emoji-bbbbbb",
                "a copy is a run if it is all there is"
            );
        }
    }

    /// Restored from a backup, a run has the times of the restoring.
    #[tokio::test]
    async fn latest_goes_by_what_checkpoints_say_and_not_by_the_times_of_files() {
        let runs = Runs::new();
        runs.store("emoji-aaaaaa", 10, Some(2000)).await;
        runs.store("emoji-bbbbbb", 10, Some(1000)).await;
        runs.copy("emoji-bbbbbb", "emoji-bbbbbb.new");
        let path = |id: &str| runs.folder.path().join(id);
        std::fs::remove_dir_all(path("emoji-bbbbbb")).unwrap();
        std::fs::rename(path("emoji-bbbbbb.new"), path("emoji-bbbbbb")).unwrap();
        assert_eq!(runs.latest().await, "emoji-aaaaaa");
    }
}
