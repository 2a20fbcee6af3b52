//! What must not change: the JSON of jobs, which databases and checkpoints hold, and the schema of manifests.
//!
//! With `RINGMASTER_WRITE_GOLDEN` set, the files are written anew.

use std::fs;
use std::path::{Path, PathBuf};

use ringmaster_manifest::{ModelCatalogue, from_validated_json, json_schema, parse, to_json};
use serde_json::Value;

use crate::{fixture, project};

fn golden(name: &str) -> PathBuf {
    project().join("crates/manifest/tests/mistakes/golden").join(name)
}

/// Compares with a file, keys and their order included.
fn assert_golden(name: &str, now: &Value) {
    let path = golden(name);
    let now = format!("{now:#}\n");
    if std::env::var_os("RINGMASTER_WRITE_GOLDEN").is_some() {
        fs::write(&path, &now).unwrap();
    }
    let then = fs::read_to_string(&path).unwrap_or_default();
    let differs = then.lines().zip(now.lines()).position(|(then, now)| then != now);
    assert!(then == now, "{name} differs, first in line {:?}", differs.map(|line| line + 1));
}

fn manifests() -> Vec<(String, String)> {
    let jobs = fs::read_dir(project().join("configs/jobs")).unwrap();
    let jobs = jobs.map(|entry| entry.unwrap().path());
    let more = ["every_key.yaml", "least.yaml"].map(golden);
    let read = |path: PathBuf| {
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (stem, fs::read_to_string(&path).unwrap())
    };
    let mut all: Vec<_> = jobs.chain(more).map(read).collect();
    all.push(("good".to_owned(), fixture("good.yaml")));
    all
}

#[test]
fn the_json_of_a_job_keeps_its_keys_their_order_and_their_values() {
    let models = ModelCatalogue::builtin();
    for (name, text) in manifests() {
        let job = parse(&text, &name, Path::new("/jobs/here"), &models).unwrap();
        let json = to_json(&job);
        assert_golden(&format!("{name}.json"), &serde_json::from_str(&json).unwrap());
        assert_eq!(from_validated_json(&json).unwrap(), job, "{name}");
    }
}

/// Jobs of the first two formats of checkpoints, and one as the coordinator's tests have it.
#[test]
fn jobs_that_earlier_versions_stored_are_read() {
    for (file, place) in [
        ("crates/checkpoint/fixtures/v1/step-0000000012.g1.1/state.json", "/manifest"),
        ("crates/checkpoint/fixtures/v2/step-0000000012.g1.1/state.json", "/manifest"),
        ("coordinator/tests/fleet/job.json", ""),
    ] {
        let text = fs::read_to_string(project().join(file)).unwrap();
        let document: Value = serde_json::from_str(&text).unwrap();
        let job = document.pointer(place).unwrap().to_string();
        from_validated_json(&job).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}

#[test]
fn the_schema_stays_as_it_is() {
    assert_golden("schema.json", &json_schema().to_value());
}
