use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;

const NAME: &str = "model.safetensors.index.json";

/// A safetensors file of one-element tensors.
fn part(tensors: &[(&str, f32)]) -> Vec<u8> {
    let entries = tensors.iter().enumerate().map(|(index, (name, _))| {
        let (from, to) = (4 * index, 4 * index + 4);
        format!("\"{name}\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[{from},{to}]}}")
    });
    let header = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
    let values = tensors.iter().flat_map(|(_, value)| value.to_le_bytes());
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(values);
    file
}

fn index(total_size: u64, tensors: &[(&str, &str)]) -> String {
    let map: BTreeMap<&str, &str> = tensors.iter().copied().collect();
    serde_json::json!({"metadata": {"total_size": total_size}, "weight_map": map}).to_string()
}

const A: &str = "model-00001-of-00002.safetensors";
const B: &str = "model-00002-of-00002.safetensors";

/// Weights in two parts.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    write(A, &part(&[("module.a", 1.0), ("module.b", 2.0)]));
    write(B, &part(&[("module.c", 3.0)]));
    write(NAME, index(12, &[("module.a", A), ("module.b", A), ("module.c", B)]).as_bytes());
    folder
}

fn open(folder: &Path) -> Result<Weights, Error> {
    Weights::open(&folder.join(NAME))
}

fn refusal(folder: &Path, text: &str) -> String {
    fs::write(folder.join(NAME), text).unwrap();
    open(folder).unwrap_err().to_string()
}

/// transformers' `model-00001-of-00002.safetensors` alone was opened, "43 missing".
#[test]
fn an_index_opens_all_its_parts_as_one() {
    let folder = folder();
    let weights = open(folder.path()).unwrap();
    let values: Vec<(&str, f32)> = weights
        .tensors()
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.scalar().unwrap()))
        .collect();
    assert_eq!(values, [("a", 1.0), ("b", 2.0), ("c", 3.0)], "without what wraps all names");
    assert!(weights.notes().is_empty(), "{:?}", weights.notes());
    assert_eq!(weights.path(), folder.path().join(NAME));
    let of = |name: &str| index_of(&folder.path().join(name));
    assert_eq!(of(A), Some((folder.path().join(NAME), 2)));
    assert_eq!(of("other.safetensors"), None);
}

#[test]
fn a_total_size_that_is_wrong_is_a_note_and_no_more() {
    let folder = folder();
    let text = index(999, &[("module.a", A), ("module.b", A), ("module.c", B)]);
    fs::write(folder.path().join(NAME), format!("\u{feff}\n{text}")).unwrap();
    let weights = open(folder.path()).unwrap();
    assert_eq!(weights.notes(), [format!("the tensors are 12 bytes, {NAME} says 999")]);
    for metadata in ["null", "3", "{\"total_size\":\"12\"}", "{\"total_size\":-1}", "[]"] {
        let text = format!(
            "{{\"metadata\":{metadata},\"weight_map\":{{\"module.a\":\"{A}\",\"module.b\":\"{A}\",\
             \"module.c\":\"{B}\"}}}}"
        );
        fs::write(folder.path().join(NAME), text).unwrap();
        assert!(open(folder.path()).is_ok(), "{metadata}");
    }
}

#[test]
fn parts_that_are_absent_are_named() {
    let folder = folder();
    fs::remove_file(folder.path().join(B)).unwrap();
    let text = open(folder.path()).unwrap_err().to_string();
    assert!(text.contains("of the 2 parts it lists one is not in "), "{text}");
    assert!(text.contains(&format!(": {B}; fetch")), "{text}");
    fs::write(folder.path().join(B), b"version https://git-lfs.github.com/spec/v1\nsize 5\n")
        .unwrap();
    let text = open(folder.path()).unwrap_err().to_string();
    assert!(text.contains(B) && text.contains("is a git-lfs pointer"), "{text}");
}

#[test]
fn parts_that_hold_other_tensors_than_the_index_says_are_refused() {
    let folder = folder();
    let refused = |tensors: &[(&str, &str)]| refusal(folder.path(), &index(0, tensors));
    let text = refused(&[("module.a", A), ("module.c", B)]);
    assert!(
        text.contains(&format!("1 that it does not list are there (module.b in {A})")),
        "{text}"
    );
    let text = refused(&[("module.a", A), ("module.b", A), ("module.c", B), ("module.d", B)]);
    assert!(text.contains("1 that it lists are in none (module.d)"), "{text}");
    let text = refused(&[("module.a", A), ("module.b", B), ("module.c", B)]);
    assert!(text.contains(&format!("module.b is in {A} and not in {B}")), "{text}");
    assert!(text.contains("index and parts are of different saves"), "{text}");
}

#[test]
fn a_tensor_in_two_parts_is_refused() {
    let folder = folder();
    fs::write(folder.path().join(B), part(&[("module.c", 3.0), ("module.a", 9.0)])).unwrap();
    let text = open(folder.path()).unwrap_err().to_string();
    assert!(
        text.contains(&format!("module.a lies in {A} and in {B}; expected it in one")),
        "{text}"
    );
    let twice = format!("{{\"weight_map\": {{\"x\": \"{A}\", \"x\": \"{B}\"}}}}");
    let text = refusal(folder.path(), &twice);
    assert!(text.contains(&format!("it lists x twice, in {A} and in {B}")), "{text}");
}

#[test]
fn parts_outside_of_the_folder_are_refused_before_anything_is_opened() {
    let folder = folder();
    let outside = folder.path().join(A).display().to_string();
    for place in [
        "../secret",
        "sub/../../secret",
        &outside,
        "",
        ".",
        "a//b",
        "a\\b",
        "a\0b",
        "sub/./a",
        "/etc/x",
    ] {
        let text = refusal(folder.path(), &index(0, &[("module.a", place)]));
        assert!(text.contains("expected a file beside the index"), "{place}: {text}");
    }
    // An index is no part of another.
    let text = refusal(folder.path(), &index(0, &[("module.a", NAME)]));
    assert!(text.contains("begins like no weights"), "{text}");
    fs::create_dir(folder.path().join("sub")).unwrap();
    fs::write(folder.path().join("sub/a.safetensors"), part(&[("a", 4.0)])).unwrap();
    fs::write(folder.path().join(NAME), index(4, &[("a", "sub/a.safetensors")])).unwrap();
    assert_eq!(open(folder.path()).unwrap().get("a").unwrap().scalar(), Some(4.0));
}

#[test]
fn json_that_is_no_index_says_what_it_is() {
    let folder = folder();
    for (text, expected) in [
        ("{\"hidden_size\": 768}", "a JSON document with the keys hidden_size and no weight_map"),
        ("{}", "a JSON document without keys and no weight_map"),
        ("{\"weight_map\": {}}", "it lists no tensors"),
        ("{\"weight_map\": 3}", "expected a weight_map from tensors to the names of files"),
        ("{\"weight_map\": {\"a\": [1]}}", "it begins as JSON and is none"),
        ("{\"weight_map\": {\"a\": ", "it begins as JSON and is none"),
    ] {
        let found = refusal(folder.path(), text);
        assert!(found.contains(expected), "{text}: {found}");
    }
}

proptest! {
    #[test]
    fn no_index_makes_the_reader_panic_or_leave_its_folder(
        text in "\\{\"weight_map\": \\{(\"[a-c./\\\\]{0,4}\": \"[a-c./\\\\]{0,6}\",? ?){0,3}\\}\\}",
    ) {
        if let Ok(index) = PartIndex::parse(Path::new("/models/x.index.json"), text.as_bytes()) {
            for part in index.parts() {
                prop_assert!(std::path::absolute(index.place(part)).unwrap().starts_with("/models"));
                prop_assert!(part.split('/').all(|step| step != ".."), "{}", part);
            }
        }
    }
}
