//! What people do with checkpoints of real runs: going back, moving them, starting from them.

use std::process::{Command, Output, Stdio};

use ringmaster_tests::binaries::binaries;
use ringmaster_tests::cluster::Cluster;
use ringmaster_tests::job::Job;
use ringmaster_tests::processes::{LIMIT, eventually};
use ringmaster_tests::s3;

/// Runs `ringmaster checkpoints` in the job's folder.
fn checkpoints(job: &Job, words: &[&str]) -> Output {
    Command::new(&binaries().ringmaster)
        .arg("checkpoints")
        .args(words)
        .envs(&job.env)
        .current_dir(job.folder())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// What it printed, having done what it was asked to.
fn well(job: &Job, words: &[&str]) -> String {
    let output = checkpoints(job, words);
    assert!(output.status.success(), "{words:?}: {}", job.transcript(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Steps of the complete checkpoints at a place, newest first.
fn steps(job: &Job, place: &str) -> Vec<u64> {
    let output = checkpoints(job, &["ls", "--json", place]);
    let Ok(listed) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else {
        return Vec::new();
    };
    let all = listed[0]["checkpoints"].as_array().cloned().unwrap_or_default();
    let complete = all.iter().filter(|checkpoint| checkpoint["state"] == "complete");
    complete.map(|checkpoint| checkpoint["step"].as_u64().unwrap()).collect()
}

#[test]
fn a_job_that_goes_back_to_an_older_checkpoint_ends_as_if_it_had_never_left_it() {
    let mut job = Job::new();
    (job.steps, job.checkpoint_every) = (400, 40);
    let undisturbed = job.train(&[]).final_state();

    let cluster = Cluster::start(&job, &[2]);
    let id = cluster.submit(&job);
    let folder = format!("checkpoints/{id}");
    let saved = eventually(LIMIT, || steps(&job, &folder).len() >= 2);
    assert!(saved, "{}", cluster.describe(&job, &id));
    assert!(cluster.client(&job, &["cancel", &id]).status.success());
    let ended = eventually(LIMIT, || cluster.state(&job, &id).contains("cancelled"));
    assert!(ended, "{}", cluster.describe(&job, &id));

    // Before it is resumed nothing has changed; afterwards the newer ones are no more.
    let before = steps(&job, &folder);
    let [.., back] = before[..] else { panic!("{before:?}") };
    let refused = cluster.client(&job, &["resume", &id, "--from", "7"]);
    assert_eq!(refused.status.code(), Some(2), "{}", job.transcript(&refused));
    assert_eq!(steps(&job, &folder), before);
    let resumed = cluster.client(&job, &["resume", &id, "--from", &back.to_string()]);
    assert!(resumed.status.success(), "{}", job.transcript(&resumed));

    let ended = eventually(LIMIT, || cluster.state(&job, &id).contains("succeeded"));
    assert!(ended, "{}", cluster.describe(&job, &id));
    let events = job.transcript(&cluster.client(&job, &["events", &id]));
    assert!(events.contains(&format!("state from the checkpoint of step {back}")), "{events}");
    assert_eq!(job.latest_run().final_state(), undisturbed);
    // The step after the one gone back to was done twice.
    let again = job.latest_run().curve().iter().filter(|(step, ..)| *step == back + 1).count();
    assert_eq!(again, 2);
    well(&job, &["verify", "--all", &folder]);
}

#[test]
fn checkpoints_move_through_s3_and_runs_go_on_from_there() {
    let Some(server) = s3::server() else { return };
    let bucket = server.bucket();
    let mut job = Job::new();
    job.env.extend(bucket.environment());
    job.checkpoint_every = 10;
    job.train(&[]);
    let jobs: Vec<String> = std::fs::read_dir(job.folder().join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let [id] = &jobs[..] else { panic!("{jobs:?}") };
    let (here, there) = (format!("checkpoints/{id}"), bucket.url(&format!("runs/{id}")));

    well(&job, &["copy", "--all", &here, &there]);
    assert_eq!(steps(&job, &there), [20, 10]);
    assert_eq!(well(&job, &["verify", "--all", &there]).lines().count(), 2);
    let described = well(&job, &["describe", "--tensors", &there]);
    assert!(described.contains("complete, named by latest.json"), "{described}");
    assert!(described.contains("visual.conv1.weight"), "{described}");
    let listed = well(&job, &["ls", &bucket.url("runs")]);
    assert!(listed.contains("2 of 2") && listed.contains("step 20"), "{listed}");

    // The model out of the bucket is the model, byte for byte.
    well(&job, &["export", &there, "out.safetensors"]);
    let out = std::fs::read(job.folder().join("out.safetensors")).unwrap();
    let state = job.latest_run().final_state();
    assert!(out == state["model.safetensors"]);

    // A run goes on from the copy of an older one, and ends like the first.
    let older = format!("{there}/{}", name_of(&job, &there, 10));
    let resumed = job.train(&["--resume", &older]);
    assert_eq!(resumed.final_state(), state);
    assert_eq!(resumed.curve().first().map(|(step, ..)| *step), Some(11));

    // The weights of a file in the bucket start a run.
    let newest = format!("{there}/{}", name_of(&job, &there, 20));
    let mut from_file = Job::new();
    from_file.env.extend(bucket.environment());
    let cache = from_file.folder().join("cache");
    from_file.env.insert("XDG_CACHE_HOME".to_owned(), cache.display().to_string());
    from_file.pretrained = Some(format!("{newest}/model.safetensors"));
    let started = from_file.train(&[]);
    assert!(started.log().contains("weights of a file"), "{}", started.log());

    // Deleting the newest leaves latest.json at the older one.
    well(&job, &["rm", "--yes", &newest]);
    assert_eq!(steps(&job, &there), [10]);
    let described = well(&job, &["describe", &there]);
    assert!(described.contains("Step         10 of"), "{described}");
    assert!(described.contains("named by latest.json"), "{described}");
}

/// Name of the checkpoint of a step.
fn name_of(job: &Job, place: &str, step: u64) -> String {
    let listed: serde_json::Value =
        serde_json::from_str(&well(job, &["ls", "--json", place])).unwrap();
    let all = listed[0]["checkpoints"].as_array().unwrap();
    let found = all.iter().find(|checkpoint| checkpoint["step"] == step).unwrap();
    found["name"].as_str().unwrap().to_owned()
}

#[test]
fn pretrained_weights_start_a_run_and_those_of_another_model_are_refused_with_names() {
    let first = Job::new();
    let trained = first.train(&[]);
    let last_loss = trained.curve().last().unwrap().1;
    let checkpoints = first.folder().join("checkpoints").join(id_of(&trained.folder));

    let mut job = Job::new();
    job.pretrained = Some(checkpoints.display().to_string());
    let run = job.train(&[]);
    let (first_step, first_loss, _) = run.curve()[0].clone();
    // Step 0 of a run of its own, with what the other had learnt, its scale and bias among it.
    assert_eq!((first_step, run.curve().len()), (1, 20));
    assert!((first_loss - last_loss).abs() < 0.5, "{first_loss} after {last_loss}");
    assert!(run.log().contains("weights of another run"), "{}", run.log());
    assert_eq!(run.summary()["samples"], 20 * 48);

    // The same weights as a file, which OpenCLIP could have written.
    let mut from_file = Job::new();
    let name = name_of(&first, &checkpoints.display().to_string(), 20);
    let file = checkpoints.join(name).join("model.safetensors");
    from_file.pretrained = Some(file.display().to_string());
    let same = from_file.train(&[]);
    assert_eq!(same.curve(), run.curve());
    assert!(same.log().contains("weights of a file"), "{}", same.log());

    // The same weights in a model that computes with another GELU.
    let config = std::fs::read_to_string(job.folder().join("models/tiny.json")).unwrap();
    let quick = config.replace("{\"embed_dim\"", "{\"quick_gelu\":true,\"embed_dim\"");
    assert_ne!(quick, config);
    std::fs::write(job.folder().join("models/tiny.json"), quick).unwrap();
    let refused = job.train_command(&[]).output().unwrap();
    let said = job.transcript(&refused);
    let reason = "was trained with exact GELU and tiny uses QuickGELU";
    assert!(!refused.status.success() && said.contains(reason), "{said}");

    // A text tower of another width, under another name.
    let wider = config.replace("\"width\":16", "\"width\":32");
    assert_ne!(wider, config);
    std::fs::write(job.folder().join("models/tiny.json"), wider).unwrap();
    let refused = job.train_command(&[]).output().unwrap();
    let said = job.transcript(&refused);
    assert!(!refused.status.success(), "{said}");
    for part in
        ["spec.model.pretrained", "of another shape: ", "the model's is [", "use a checkpoint of"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn a_checkpoint_that_does_not_verify_starts_no_run() {
    let first = Job::new();
    let trained = first.train(&[]);
    let folder = first.folder().join("checkpoints").join(id_of(&trained.folder));
    let name = name_of(&first, &folder.display().to_string(), 20);
    let weights = folder.join(&name).join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let mut job = Job::new();
    for place in [folder.join(&name), folder] {
        job.pretrained = Some(place.display().to_string());
        let output = job.train_command(&[]).output().unwrap();
        let said = job.transcript(&output);
        let refused = !output.status.success() && said.contains("holds no complete checkpoint");
        assert!(refused, "{}: {said}", place.display());
    }
}

fn id_of(run: &std::path::Path) -> String {
    run.file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn checkpoints_of_every_so_many_steps_stay_for_good() {
    let mut job = Job::new();
    (job.steps, job.checkpoint_every) = (60, 10);
    job.checkpoint_more = ", keep_last: 1, keep_every: 20".to_owned();
    let run = job.train(&[]);
    assert_eq!(steps(&job, &format!("checkpoints/{}", id_of(&run.folder))), [60, 40, 20]);
}
