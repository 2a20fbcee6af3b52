//! What must not change: the JSON of jobs, which databases and checkpoints hold, and the schema of manifests.
//!
//! With `RINGMASTER_WRITE_GOLDEN` set, the files are written anew.

use std::collections::BTreeSet;
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
    let more = ["every_key.yaml", "least.yaml", "mixture.yaml"].map(golden);
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
        let stored: Value = serde_json::from_str(&json).unwrap();
        assert_golden(&format!("{name}.json"), &stored["job"]);
        assert_eq!(from_validated_json(&json).unwrap(), job, "{name}");
    }
}

/// What arrives over the wire need not come from a client of ours.
#[test]
fn no_number_in_a_job_over_the_wire_panics() {
    fn numbers(value: &Value, here: &str, found: &mut Vec<String>) {
        if value.is_number() {
            found.push(here.to_owned());
        }
        for (key, child) in value.as_object().into_iter().flatten() {
            numbers(child, &format!("{here}/{key}"), found);
        }
        for (index, child) in value.as_array().into_iter().flatten().enumerate() {
            numbers(child, &format!("{here}/{index}"), found);
        }
    }
    let text = fs::read_to_string(golden("every_key.json")).unwrap();
    let good: Value = serde_json::from_str(&text).unwrap();
    let mut places = Vec::new();
    numbers(&good, "", &mut places);
    assert!(places.len() > 60, "{}", places.len());
    for place in &places {
        for odd in ["0", "-1", "1", "0.5", "1e308", "4294967295", "18446744073709551615"] {
            let mut changed = good.clone();
            *changed.pointer_mut(place).unwrap() = serde_json::from_str(odd).unwrap();
            if let Ok(job) = from_validated_json(&changed.to_string()) {
                assert_eq!(from_validated_json(&to_json(&job)).unwrap(), job, "{place}: {odd}");
            }
        }
    }
}

#[test]
fn the_schema_stays_as_it_is() {
    assert_golden("schema.json", &json_schema().to_value());
}

/// A new field needs a line there, and then its value in a job is pinned.
#[test]
fn a_manifest_with_every_key_has_every_key() {
    fn keys(value: &Value, found: &mut BTreeSet<String>) {
        for (key, child) in value.as_object().into_iter().flatten() {
            found.insert(key.clone());
            keys(child, found);
        }
        value.as_array().into_iter().flatten().for_each(|item| keys(item, found));
    }
    let mut written = BTreeSet::new();
    for name in ["every_key.yaml", "least.yaml", "mixture.yaml"] {
        let text = fs::read_to_string(golden(name)).unwrap();
        keys(&serde_yaml::from_str(&text).unwrap(), &mut written);
    }
    let schema = json_schema().to_value();
    let sections = schema["$defs"].as_object().unwrap().values().chain([&schema]);
    let properties = sections.filter_map(|section| section["properties"].as_object());
    let missing: Vec<_> =
        properties.flat_map(|all| all.keys()).filter(|key| !written.contains(*key)).collect();
    assert!(missing.is_empty(), "add to tests/mistakes/golden/every_key.yaml: {missing:?}");
}

/// A default is told in words, too, and the words are not what is used.
#[test]
fn every_default_is_the_one_that_its_description_tells() {
    let schema = json_schema().to_value();
    let mut told = 0;
    for section in schema["$defs"].as_object().unwrap().values() {
        for (key, property) in section["properties"].as_object().into_iter().flatten() {
            let default = match &property["default"] {
                Value::String(text) if text == "\t" => "a tab".to_owned(),
                Value::String(text) => text.clone(),
                Value::Number(number) if key == "logits_budget" => {
                    format!("{}MiB", number.as_u64().unwrap() >> 20)
                }
                Value::Array(items) if items.is_empty() => "none".to_owned(),
                Value::Array(items) if items.iter().all(|item| *item == 0) => "all zero".to_owned(),
                Value::Null | Value::Object(_) => continue,
                other => other.to_string().replace(',', ", "),
            };
            let description = property["description"].as_str().unwrap();
            assert!(description.contains(&format!("Default {default}.")), "{key}: {default}");
            told += 1;
        }
    }
    assert!(told > 25, "{told}");
}

#[test]
fn a_job_has_the_configuration_of_every_model_to_the_last_bit() {
    let models = ModelCatalogue::builtin();
    let least = fs::read_to_string(golden("least.yaml")).unwrap();
    for (name, config) in models.iter() {
        let text = least.replace("ViT-B-32", name);
        let job = parse(&text, name, Path::new("/jobs"), &models).unwrap();
        assert_eq!(job.model.config, *config, "{name}");
        assert_eq!(Some(&job.model.preprocess), models.preprocess(name).as_ref(), "{name}");
        assert_eq!(from_validated_json(&to_json(&job)).unwrap(), job, "{name}");
    }
}
