//! What a manifest of `ringmaster/v1` may say stays: its keys are only added to, and a default changes only with
//! a line in CHANGELOG.md.
//!
//! `golden/keys.txt` has a line for every key: `KEY: required`, `KEY: optional`, or `KEY: ` and the default as
//! JSON. Where that changes, the new one stands behind the old, as in `KEY: 3 then 5`. Nothing writes the file but
//! people, so that a key does not vanish with the golden schema.

use std::collections::BTreeMap;
use std::fs;

use ringmaster_manifest::json_schema;
use serde_json::{Value, json};

use crate::project;

/// Where a key stands, and whether and how it may be left out.
type Keys = BTreeMap<String, String>;

fn keys(schema: &Value) -> Keys {
    let mut found = Keys::new();
    collect(schema, schema, "", &mut found);
    found
}

/// Adds the keys below a part of the schema.
fn collect(part: &Value, schema: &Value, path: &str, found: &mut Keys) {
    if let Some(reference) = part["$ref"].as_str() {
        return collect(schema.pointer(&reference[1..]).unwrap(), schema, path, found);
    }
    for one in part["anyOf"].as_array().into_iter().flatten() {
        collect(one, schema, path, found);
    }
    if part["items"].is_object() {
        collect(&part["items"], schema, &format!("{path}[]"), found);
    }
    for (key, property) in part["properties"].as_object().into_iter().flatten() {
        let place = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let required = part["required"].as_array().is_some_and(|all| all.contains(&json!(key)));
        let value = match property.get("default") {
            Some(default) => default.to_string(),
            None if required => "required".to_owned(),
            None => "optional".to_owned(),
        };
        collect(property, schema, &place, found);
        found.insert(place, value);
    }
}

/// Returns what of `now` breaks with what is pinned, or is not pinned yet.
fn trouble(pinned: &str, now: &Keys, changelog: &str) -> Vec<String> {
    let lines = pinned.lines().map(|line| line.split_once(": ").unwrap_or((line, "")));
    let pinned: BTreeMap<&str, &str> = lines.collect();
    let mut found = Vec::new();
    for (key, history) in &pinned {
        let Some(value) = now.get(*key) else {
            found.push(format!("{key} is gone: within ringmaster/v1 keys are only added"));
            continue;
        };
        let (before, newest) = history.rsplit_once(" then ").unwrap_or(("", *history));
        if newest != value {
            found.push(format!(
                "{key} was {newest} and is {value}: CHANGELOG.md needs a line that says so; then write \
                 \" then {value}\" behind the key's line in keys.txt"
            ));
        } else if value == "required" && !before.is_empty() {
            found.push(format!("{key} is required now: manifests without it would be refused"));
        } else if !before.is_empty() {
            let told = |line: &str| line.contains(&format!("`{key}`")) && line.contains(value);
            if !changelog.lines().any(told) {
                found.push(format!("CHANGELOG.md needs a line with `{key}` and {value}"));
            }
        }
    }
    let new = now.iter().filter(|(key, _)| !pinned.contains_key(key.as_str()));
    // A section that is new may require what it likes.
    let inside_new = |key: &str| {
        key.match_indices(['.', '['])
            .any(|(end, _)| now.contains_key(&key[..end]) && !pinned.contains_key(&key[..end]))
    };
    found.extend(new.map(|(key, value)| match value.as_str() {
        "required" if !inside_new(key) => {
            format!("{key} is new and required: manifests without it would be refused")
        }
        value => format!("{key} is new: add a line to keys.txt: \"{key}: {value}\""),
    }));
    found
}

#[test]
fn keys_are_only_added_and_a_default_changes_with_a_line_in_the_changelog() {
    let read = |path: &str| fs::read_to_string(project().join(path)).unwrap();
    let pinned = read("crates/manifest/tests/mistakes/golden/keys.txt");
    let now = keys(&json_schema().to_value());
    assert!(now.len() > 80, "{now:?}");
    assert_eq!(now["spec.optimizer.beta2"], "0.95");
    assert_eq!(now["spec.eval.zero_shot[].name"], "required");
    let trouble = trouble(&pinned, &now, &read("CHANGELOG.md"));
    assert!(trouble.is_empty(), "{}", trouble.join("\n"));
}

#[test]
fn every_break_is_told() {
    let now = |pairs: &[(&str, &str)]| -> Keys {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let pinned = "a: 3\nb: required\n";
    let told =
        |now: &Keys, pinned: &str, changelog: &str| trouble(pinned, now, changelog).join("|");
    assert_eq!(told(&now(&[("a", "3"), ("b", "required")]), pinned, ""), "");
    assert!(told(&now(&[("a", "3")]), pinned, "").starts_with("b is gone: within ringmaster/v1"));
    let changed = now(&[("a", "5"), ("b", "required")]);
    assert!(told(&changed, pinned, "").starts_with("a was 3 and is 5: CHANGELOG.md needs a line"));
    let noted = "a: 3 then 5\nb: required\n";
    assert_eq!(told(&changed, noted, "- `b` is 5"), "CHANGELOG.md needs a line with `a` and 5");
    assert_eq!(told(&changed, noted, "- `a` is 5 unless a manifest says otherwise"), "");
    let required = now(&[("a", "required"), ("b", "required")]);
    assert!(
        told(&required, "a: 3 then required\nb: required\n", "").starts_with("a is required now")
    );
    let more = now(&[
        ("a", "3"),
        ("b", "required"),
        ("c", "null"),
        ("c[].x", "required"),
        ("d", "required"),
    ]);
    let said = told(&more, pinned, "");
    assert!(said.contains("\"c[].x: required\""), "{said}");
    assert!(said.contains("\"c: null\"") && said.contains("d is new and required"), "{said}");
}
