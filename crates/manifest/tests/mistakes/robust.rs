//! Whatever stands in a manifest, the answer is a job or mistakes with their places.

use proptest::prelude::*;
use ringmaster_manifest::ModelCatalogue;
use ringmaster_manifest::error::Problem;
use serde_yaml::Value;

use crate::{exercise, fixture, parse, project};

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

/// What numbers, and texts in their place, are at their ends.
const EXTREMES: [&str; 48] = [
    "0",
    "-0",
    "-1",
    "1",
    "-0.0",
    "1e-400",
    "5e-324",
    "2.2250738585072014e-308",
    "1.7976931348623157e308",
    "-1.7976931348623157e308",
    "1e309",
    "1e999999999999",
    ".inf",
    "-.inf",
    ".nan",
    "16777217",
    "65537",
    "2147483647",
    "-2147483648",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740991",
    "9007199254740992",
    "9007199254740993",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "-9223372036854775809",
    "18446744073709551615",
    "18446744073709551616",
    "340282366920938463463374607431768211455",
    "340282366920938463463374607431768211456",
    "0x7fffffffffffffff",
    "-0x8000000000000000",
    "0b1",
    "0o17",
    "1_000",
    "-1_000",
    "9999T",
    "9_007_199_254_740_992",
    "9223372036854775807Ti",
    "1e18",
    "1e19",
    "'-'",
    "~",
    "\"\\0\\u202e\\uFEFF\\x7f\"",
    "!!int '9223372036854775808'",
];

/// Returns where the numbers of a manifest stand, those in texts too.
fn numbers(text: &str) -> Vec<std::ops::Range<usize>> {
    let of_number = |c: char| c.is_ascii_digit() || ".eE_".contains(c);
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = text[at..].find(|c: char| c.is_ascii_digit()).map(|found| at + found) {
        let end = text[start..].find(|c| !of_number(c)).map_or(text.len(), |found| start + found);
        found.push(start..end);
        at = end;
    }
    found
}

#[test]
fn no_number_in_any_place_panics() {
    let good = fixture("good.yaml");
    let places = numbers(&good);
    assert!(places.len() > 30, "{}", places.len());
    for place in places {
        for extreme in EXTREMES {
            let mut text = good.clone();
            text.replace_range(place.clone(), extreme);
            exercise::manifest(text.as_bytes());
        }
    }
}

proptest! {
    #[test]
    fn no_numbers_together_panic(
        changes in prop::collection::vec((0.0..1.0_f64, prop::sample::select(&EXTREMES[..])), 2..6)
    ) {
        let mut text = fixture("good.yaml");
        for (place, extreme) in changes {
            let places = numbers(&text);
            let place = places[(place * places.len() as f64) as usize].clone();
            text.replace_range(place, extreme);
        }
        exercise::manifest(text.as_bytes());
    }

    #[test]
    fn no_text_in_any_place_panics(
        place in 0.0..1.0_f64,
        insert in prop_oneof![
            "\\PC{1,12}",
            ".{1,12}",
            "[\\x00-\\x1f\\x7f-\\u{9f}\u{feff}\u{2028}\u{d7ff}\u{10ffff}]{1,4}",
            "(\\{[0-9a,.]{0,6}\\}|[{}]|::|//|\\?|#|@|%[0-9A-F]{2}|://){1,12}",
        ],
        times in prop::sample::select(&[1_usize, 2, 100, 5000][..])
    ) {
        let mut text: Vec<char> = fixture("good.yaml").chars().collect();
        let at = (place * text.len() as f64) as usize;
        text.splice(at..at, insert.repeat(times).chars());
        exercise::manifest(text.into_iter().collect::<String>().as_bytes());
        exercise::braces(insert.repeat(times).as_bytes());
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), at in 0.0..1.0_f64) {
        exercise::manifest(&bytes);
        let mut text = fixture("good.yaml").into_bytes();
        let at = (at * text.len() as f64) as usize;
        text.splice(at..at, bytes);
        exercise::manifest(&text);
    }

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
