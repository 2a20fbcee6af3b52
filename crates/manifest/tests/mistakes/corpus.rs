//! What the fuzzer begins with.

use std::fs;

use crate::{exercise, project};

/// Gives every file below `folder` to `target`.
fn replay(folder: &str, target: fn(&[u8])) -> usize {
    let folder = project().join(folder);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut read = 0;
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_file() {
            // Seen only where a test fails: which file it was.
            println!("{}", path.display());
            target(&fs::read(&path).unwrap());
            read += 1;
        }
    }
    read
}

#[test]
fn every_seed_of_the_fuzzer_is_taken_or_refused_in_order() {
    assert!(replay("crates/manifest/tests/mistakes/fixtures", exercise::manifest) > 20);
    assert!(replay("configs/jobs", exercise::manifest) >= 3);
}

#[test]
fn what_the_fuzzer_found_is_taken_or_refused_in_order() {
    assert!(replay("crates/manifest/fuzz/corpus/manifest", exercise::manifest) > 20);
    assert!(replay("crates/manifest/fuzz/corpus/braces", exercise::braces) > 20);
}

/// The dictionary lets the fuzzer write keys and words that it would not find by itself.
#[test]
fn the_fuzzers_dictionary_has_every_key_and_word_of_the_format() {
    let schema = ringmaster_manifest::json_schema().to_value();
    let mut wanted = Vec::new();
    collect(&schema, &mut wanted);
    wanted.sort();
    wanted.dedup();
    let path = project().join("crates/manifest/fuzz/manifest.dict");
    let dictionary = fs::read_to_string(&path).unwrap();
    let missing: Vec<String> = wanted
        .into_iter()
        .map(|word| format!("\"{word}\""))
        .filter(|line| !dictionary.lines().any(|known| known == line))
        .collect();
    if std::env::var_os("RINGMASTER_WRITE_GOLDEN").is_some() && !missing.is_empty() {
        return fs::write(&path, format!("{dictionary}{}\n", missing.join("\n"))).unwrap();
    }
    assert!(
        missing.is_empty(),
        "add to crates/manifest/fuzz/manifest.dict:\n{}",
        missing.join("\n")
    );
}

fn collect(schema: &serde_json::Value, words: &mut Vec<String>) {
    match schema {
        serde_json::Value::Object(fields) => {
            if let Some(properties) = fields.get("properties").and_then(|all| all.as_object()) {
                words.extend(properties.keys().cloned());
            }
            let listed = fields.get("enum").and_then(|all| all.as_array()).into_iter().flatten();
            let texts = listed.chain(fields.get("const")).filter_map(|word| word.as_str());
            words.extend(texts.map(str::to_owned));
            fields.values().for_each(|field| collect(field, words));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| collect(item, words)),
        _ => {}
    }
}
