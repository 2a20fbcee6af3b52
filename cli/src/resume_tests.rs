//! Which checkpoint or job a command line means.

#[allow(dead_code)]
#[path = "../../coordinator/tests/fleet/stored.rs"]
mod stored;

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
    assert!(refused.contains("there is no file ") && refused.contains("epoch_3.pt;"), "{refused}");
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
        let (folder, generation) = (self.folder.path(), Generation::new(1, 1));
        stored::store_at(folder, &self.job, id, generation, step, saved_at_ms).await;
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
        assert_eq!(runs.latest().await, "emoji-bbbbbb", "a copy is a run if it is all there is");
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
