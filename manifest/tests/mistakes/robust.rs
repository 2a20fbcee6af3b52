//! Whatever stands in a manifest, the answer is a job or mistakes with their places.

use proptest::prelude::*;
use ringmaster_manifest::ModelCatalogue;
use ringmaster_manifest::error::Problem;
use serde_yaml::Value;

use crate::{fixture, parse, project};

#[test]
fn every_job_of_the_repository_is_valid() {
    let folder = project().join("configs/jobs");
    let mut jobs = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.display().to_string();
        let catalogue = ModelCatalogue::builtin();
        if let Err(errors) = ringmaster_manifest::parse(&text, &name, &folder, &catalogue) {
            panic!("{errors}");
        }
        jobs += 1;
    }
    assert!(jobs > 0, "no jobs in {}", folder.display());
}

#[test]
fn the_schema_allows_no_unknown_key_and_explains_every_field() {
    let schema = serde_json::to_value(ringmaster_manifest::json_schema()).unwrap();
    let definitions = schema["$defs"].as_object().unwrap().values();
    for object in definitions.chain([&schema]) {
        let Some(properties) = object["properties"].as_object() else { continue };
        assert_eq!(object["additionalProperties"], false, "{object}");
        for (key, property) in properties {
            assert!(property["description"].is_string(), "{key} has no description");
        }
    }
    let required: Vec<&str> =
        schema["required"].as_array().unwrap().iter().filter_map(|key| key.as_str()).collect();
    assert_eq!(required, ["apiVersion", "kind", "metadata", "spec"]);
}

/// The schema check must refuse whatever the types behind it would: the types know no places.
#[test]
fn an_odd_value_in_any_field_is_taken_or_refused_by_name() {
    let document: Value = serde_yaml::from_str(&fixture("good.yaml")).unwrap();
    let mut fields = Vec::new();
    collect(&document, &mut Vec::new(), &mut fields);
    assert!(fields.len() > 40, "{}", fields.len());

    let odd: Vec<Value> = [
        "",
        "true",
        "-1",
        "0",
        "1",
        "1.5",
        "1e300",
        ".nan",
        "text",
        "3B",
        "[]",
        "[1, 2]",
        "{}",
        "18446744073709551615",
        "-9223372036854775808",
        "!tag x",
        "{1: 2}",
        "'{'",
        "[[]]",
    ]
    .map(|text| serde_yaml::from_str(text).unwrap())
    .into();
    for field in &fields {
        for value in &odd {
            let mut changed = document.clone();
            *at(&mut changed, field) = value.clone();
            let text = serde_yaml::to_string(&changed).unwrap();
            let Err(errors) = parse(&text) else { continue };
            for error in &errors {
                let placed = !matches!(error.problem, Problem::Syntax { .. });
                assert!(placed, "{field:?} = {value:?}: {error}");
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Key(String),
    Index(usize),
}

fn collect(value: &Value, here: &mut Vec<Step>, fields: &mut Vec<Vec<Step>>) {
    if !here.is_empty() {
        fields.push(here.clone());
    }
    let children: Vec<(Step, &Value)> = match value {
        Value::Mapping(entries) => entries
            .iter()
            .map(|(key, child)| (Step::Key(key.as_str().unwrap().to_owned()), child))
            .collect(),
        Value::Sequence(items) => {
            items.iter().enumerate().map(|(index, child)| (Step::Index(index), child)).collect()
        }
        _ => Vec::new(),
    };
    for (step, child) in children {
        here.push(step);
        collect(child, here, fields);
        here.pop();
    }
}

fn at<'v>(document: &'v mut Value, steps: &[Step]) -> &'v mut Value {
    steps.iter().fold(document, |value, step| match step {
        Step::Key(key) => value.get_mut(key.as_str()).unwrap(),
        Step::Index(index) => value.get_mut(*index).unwrap(),
    })
}

proptest! {
    #[test]
    fn damaged_text_never_panics_and_every_mistake_is_inside_the_file(
        cuts in prop::collection::vec((0.0..1.0_f64, "[\\[\\]{}:,&*!|>'\"#\n a0-]{0,3}", 0..4_usize), 1..4)
    ) {
        let mut text: Vec<char> = fixture("good.yaml").chars().collect();
        for (place, insert, removed) in cuts {
            let start = (place * text.len() as f64) as usize;
            let end = (start + removed).min(text.len());
            text.splice(start..end, insert.chars());
        }
        let text: String = text.into_iter().collect();
        if let Err(errors) = parse(&text) {
            let lines = text.lines().count() + 1;
            prop_assert!(errors.iter().count() > 0);
            for error in &errors {
                prop_assert!((1..=lines).contains(&error.position.line), "{error}\n{text}");
                prop_assert!(error.position.column >= 1, "{error}");
            }
        }
    }
}
