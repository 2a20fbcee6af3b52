//! Clients that are not ours, and know of the coordinator what it says of itself.

use std::path::Path;
use std::process::{Command, Stdio};

use ringmaster_tests::cluster::Cluster;
use ringmaster_tests::job::Job;
use ringmaster_tests::python;
use serde_json::{Value, json};

/// Returns what a client in Python is answered that hands a manifest in.
fn submit(python: &Path, cluster: &Cluster, job: &Job, manifest: &str) -> Value {
    let path = job.folder().join("job.yaml");
    std::fs::write(&path, manifest).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/submit.py");
    let output = Command::new(python)
        .arg(script)
        .arg(cluster.people())
        .arg(&path)
        // Neither the trimmed libtorch nor what else the test itself needs.
        .env_remove("LD_LIBRARY_PATH")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = job.transcript(&output);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

#[test]
fn a_client_that_knows_only_the_proto_hears_of_a_mistake_by_its_line_and_submits() {
    let Some(python) = python::with_grpc() else { return };
    let job = Job::new();
    // No agents: a job waits in the queue.
    let cluster = Cluster::start(&job, &[]);
    let manifest = job.manifest().replace("model: {name: tiny", "model: {name: ViT-B-32");

    let wrong = manifest.replace("optimizer: {lr", "optimizer: {learning_rat: 1, lr");
    assert_ne!(wrong, manifest);
    let answer = submit(&python, &cluster, &job, &wrong);
    assert_eq!(answer["code"], "INVALID_ARGUMENT", "{answer}");
    let text = answer["message"].as_str().unwrap();
    assert!(text.contains("job.yaml:9:15: unknown key \"learning_rat\""), "{text}");
    let mistakes = answer["details"][0]["mistakes"].as_array().unwrap();
    assert_eq!(mistakes.len(), 1, "{answer}");
    assert_eq!((&mistakes[0]["line"], &mistakes[0]["column"]), (&json!(9), &json!(15)));
    assert_eq!(mistakes[0]["field"], "spec.optimizer.learning_rat");
    assert!(cluster.json(&job, &["ls", "--all", "--json"]).as_array().unwrap().is_empty());

    let answer = submit(&python, &cluster, &job, &manifest);
    let id = answer["job_id"].as_str().unwrap_or_else(|| panic!("{answer}"));
    let described = cluster.describe(&job, id);
    assert_eq!(described["state"].as_str().unwrap().to_lowercase(), "queued", "{described}");
}
