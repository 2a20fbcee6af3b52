//! `--resume` of `submit`: refused before anything starts.

use std::fs;

use crate::{JOB_ID, Runs};

fn manifest(runs: &Runs, name: &str, model: &str, loss: &str) -> String {
    // The order of samples of the job that the checkpoints are of.
    let text = format!(
        "apiVersion: ringmaster/v1\nkind: TrainJob\nmetadata: {{name: {name}}}\nspec:\n  \
         model: {{name: {model}}}\n  data: {{train: a.tar, lanes: 4, shuffle_window: 64}}\n  loss: {{kind: {loss}}}\n  \
         optimizer: {{lr: 1.0e-3}}\n  schedule: {{steps: 40}}\n  batch: {{global: 64}}\n  \
         checkpoint: {{uri: .}}\n"
    );
    // The model that the saved job names.
    let tiny = r#"{"embed_dim": 8, "vision_cfg": {"layers": 1}, "text_cfg": {"layers": 1}}"#;
    fs::create_dir_all(runs.root().join("models")).unwrap();
    fs::write(runs.root().join("models/tiny.json"), tiny).unwrap();
    fs::write(runs.root().join("a.tar"), "").unwrap();
    fs::write(runs.root().join("job.yaml"), text).unwrap();
    "job.yaml".to_owned()
}

/// What `submit` says; nobody answers at the address, so only what was decided before shows.
fn submit(runs: &Runs, yaml: &str, resume: &str) -> crate::Said {
    let nowhere = "http://127.0.0.1:1";
    runs.ringmaster(&["submit", yaml, "--resume", resume, "--coordinator", nowhere])
}

#[test]
fn latest_an_id_a_path_and_a_url_of_a_job_or_checkpoint_are_all_found() {
    let runs = Runs::with(&[(1, 10)]);
    let yaml = manifest(&runs, "emoji", "tiny", "siglip");
    let url = format!("file://{}", runs.step(1, 10).display());
    for resume in ["latest", JOB_ID, "./emoji-abc234", runs.job().to_str().unwrap(), &url] {
        // Good enough for the coordinator, which is not there.
        let err = submit(&runs, &yaml, resume).refused(3);
        assert!(err.contains("no coordinator answers"), "{resume}: {err}");
    }
}

#[test]
fn another_order_of_samples_is_refused_until_it_is_accepted() {
    let runs = Runs::with(&[(1, 10)]);
    let yaml = manifest(&runs, "emoji", "tiny", "siglip");
    let text = fs::read_to_string(runs.root().join(&yaml)).unwrap().replace("lanes: 4", "lanes: 8");
    fs::write(runs.root().join(&yaml), text).unwrap();
    let err = submit(&runs, &yaml, "latest").refused(2);
    assert!(err.contains("data.lanes was 4 and is 8"), "{err}");
    assert!(err.contains("--accept-new-data") && err.contains("nothing was started"), "{err}");
    let nowhere = ["--coordinator", "http://127.0.0.1:1"];
    let accepted = ["submit", &yaml, "--resume", "latest", "--accept-new-data"];
    let err = runs.ringmaster(&[&accepted[..], &nowhere].concat()).refused(3);
    assert!(err.contains("no coordinator answers"), "{err}");
}

#[test]
fn another_loss_than_the_checkpoints_is_refused_before_anything_starts() {
    let runs = Runs::with(&[(1, 10)]);
    let yaml = manifest(&runs, "emoji", "tiny", "infonce");
    for resume in ["latest", JOB_ID, "./emoji-abc234/step-0000000010.g1.1"] {
        let err = submit(&runs, &yaml, resume).refused(2);
        assert!(err.contains("kind siglip and the manifest says infonce"), "{resume}: {err}");
        assert!(err.contains("nothing was started"), "{err}");
    }
}

#[test]
fn what_holds_no_checkpoint_is_refused_before_anything_starts() {
    let runs = Runs::with(&[(1, 10)]);
    let yaml = manifest(&runs, "other", "tiny", "siglip");
    for (resume, reason) in [
        ("latest", "no job other has a checkpoint below file:///"),
        ("other-aaaaaa", "no checkpoint lies there"),
        ("./", "is a folder of 1 jobs"),
    ] {
        let err = submit(&runs, &yaml, resume).refused(2);
        assert!(err.contains(reason), "{resume}: {err}");
    }
}
