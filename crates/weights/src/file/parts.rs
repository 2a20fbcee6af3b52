//! Weights in parts: several files, and an index that says which of them holds which tensor.
//!
//! transformers writes `model.safetensors.index.json` beside `model-00001-of-00002.safetensors` and so
//! on: `{"metadata": {"total_size": BYTES}, "weight_map": {TENSOR: PART}}`. The index is data from
//! outside: its parts have to lie where it lies, be there, and hold what it says and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ringmaster_words::some_of;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::map::MappedFile;
use crate::tensor::Content;
use crate::{Error, Weights};

/// How the name of an index ends.
pub const INDEX: &str = ".index.json";
/// Names that a message shows of many.
const SHOWN: usize = 5;

/// An index of weights in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartIndex {
    path: PathBuf,
    /// Bytes of all tensors, if it says so.
    total_size: Option<u64>,
    /// The part of each tensor.
    tensors: BTreeMap<String, String>,
}

/// Whether a file begins as JSON and not as safetensors, whose first eight bytes are a length.
pub(crate) fn is_json(bytes: &[u8]) -> bool {
    let length = bytes.first_chunk().map(|first| u64::from_le_bytes(*first));
    let within = length.is_some_and(|length| length <= bytes.len() as u64);
    !within && without_mark(bytes).trim_ascii_start().first() == Some(&b'{')
}

fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

impl PartIndex {
    /// Reads the text of the index at `path`.
    ///
    /// # Errors
    /// JSON that is no index, with the keys it has; a tensor that is listed twice; a part that would lie
    /// outside the index's folder.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Index { path: path.to_owned(), reason };
        let document: Document = serde_json::from_slice(without_mark(text))
            .map_err(|error| wrong(format!("it begins as JSON and is none: {error}")))?;
        let Some(listed) = document.weight_map else {
            return Err(Error::NoWeights { path: path.to_owned(), what: document.other() });
        };
        let mut tensors = BTreeMap::new();
        for (tensor, part) in listed.0 {
            if !is_inside(&part) {
                let reason =
                    format!("{tensor:?} is to lie in {part:?}; expected a file beside the index");
                return Err(wrong(reason));
            }
            if let Some(other) = tensors.insert(tensor.clone(), part.clone()) {
                return Err(wrong(format!("it lists {tensor} twice, in {other} and in {part}")));
            }
        }
        if tensors.is_empty() {
            return Err(wrong("it lists no tensors".to_owned()));
        }
        let total_size = document.metadata.and_then(|metadata| metadata.total_size?.as_u64());
        Ok(Self { path: path.to_owned(), total_size, tensors })
    }

    /// Returns the names of the parts, relative to the index's folder.
    pub fn parts(&self) -> BTreeSet<&str> {
        self.tensors.values().map(String::as_str).collect()
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Index { path: self.path.clone(), reason }
    }

    fn place(&self, part: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(part)
    }

    /// Refuses an index some of whose parts are not there.
    fn check_presence(&self) -> Result<(), Error> {
        let parts = self.parts();
        let absent = parts.iter().copied().filter(|part| !self.place(part).is_file());
        let absent: Vec<&str> = absent.collect();
        if absent.is_empty() {
            return Ok(());
        }
        let folder = self.path.parent().unwrap_or(Path::new("."));
        Err(self.wrong(format!(
            "of the {} parts it lists {} not in {}: {}; fetch the rest of them",
            parts.len(),
            if absent.len() == 1 { "one is".to_owned() } else { format!("{} are", absent.len()) },
            folder.display(),
            some_of(&absent, SHOWN)
        )))
    }
}

/// Opens all parts of an index as one.
pub(crate) fn open(index: &PartIndex) -> Result<Weights, Error> {
    index.check_presence()?;
    let mut whole: Option<Weights> = None;
    let mut from: BTreeMap<String, &str> = BTreeMap::new();
    let mut content = Content::default();
    for part in index.parts() {
        let opened = Weights::of_file(&MappedFile::open(&index.place(part))?)?;
        let names = opened.tensors().keys().chain(opened.unreadable().keys());
        for name in names {
            if let Some(other) = from.insert(name.clone(), part) {
                let reason =
                    format!("{name} lies in {other} and in {part}; expected it in one of them");
                return Err(index.wrong(reason));
            }
        }
        content.tensors.extend(opened.tensors().clone());
        content.unreadable.extend(opened.unreadable().clone());
        whole = whole.or(Some(opened));
    }
    compare(index, &from)?;
    let first = whole.ok_or_else(|| index.wrong("it lists no parts".to_owned()))?;
    let mut whole = Weights::of(&index.path, first.format(), content);
    whole.metadata = first.metadata;
    whole.notes.extend(other_size(index, &whole));
    Ok(whole)
}

/// Refuses parts that hold other tensors than the index says: of two models, or of two saves of one.
fn compare(index: &PartIndex, from: &BTreeMap<String, &str>) -> Result<(), Error> {
    let mut reasons = Vec::new();
    let listed = index.tensors.iter();
    let absent = listed.clone().filter(|(name, _)| !from.contains_key(*name));
    let absent: Vec<&str> = absent.map(|(name, _)| name.as_str()).collect();
    if !absent.is_empty() {
        reasons.push(format!(
            "{} that it lists are in none ({})",
            absent.len(),
            some_of(&absent, SHOWN)
        ));
    }
    let moved = listed.filter_map(|(name, part)| {
        let found = from.get(name).filter(|found| **found != part.as_str())?;
        Some(format!("{name} is in {found} and not in {part}"))
    });
    reasons.extend(moved.take(1));
    let more = from.iter().filter(|(name, _)| !index.tensors.contains_key(*name));
    let more: Vec<String> = more.map(|(name, part)| format!("{name} in {part}")).collect();
    if !more.is_empty() {
        reasons.push(format!(
            "{} that it does not list are there ({})",
            more.len(),
            some_of(&more, SHOWN)
        ));
    }
    if reasons.is_empty() {
        Ok(())
    } else {
        Err(index.wrong(format!(
            "its parts hold other tensors than it says: {}; index and parts are of different saves: \
             fetch all of them again",
            reasons.join("; ")
        )))
    }
}

fn other_size(index: &PartIndex, whole: &Weights) -> Option<String> {
    let bytes =
        whole.tensors().values().map(|tensor| (tensor.len() * tensor.dtype().size()) as u64);
    let (found, said) = (bytes.sum::<u64>(), index.total_size?);
    (found != said && whole.unreadable().is_empty()).then(|| {
        let name = index.path.file_name().unwrap_or_default().to_string_lossy();
        format!("the tensors are {found} bytes, {name} says {said}")
    })
}

/// Returns the index beside a file that lists it as one of its parts, and how many there are.
pub fn index_of(file: &Path) -> Option<(PathBuf, usize)> {
    let name = file.file_name()?.to_str()?;
    let beside = std::fs::read_dir(file.parent()?).ok()?.flatten();
    beside.map(|entry| entry.path()).filter(|path| is_index(&path.to_string_lossy())).find_map(
        |path| {
            let index = PartIndex::parse(&path, &std::fs::read(&path).ok()?).ok()?;
            let parts = index.parts();
            parts.contains(name).then_some((path, parts.len()))
        },
    )
}

/// Whether a path or URL ends as an index of weights does.
pub fn is_index(place: &str) -> bool {
    place.ends_with(INDEX)
}

/// Whether a path leads to something beside what names it, or below.
fn is_inside(part: &str) -> bool {
    let plain = |step: &str| {
        !matches!(step, "" | "." | "..") && !step.contains(['\\', '\0']) && step.len() <= 255
    };
    part.split('/').all(plain)
}

/// What is read of an index, and what else a JSON document has.
struct Document {
    weight_map: Option<Listed>,
    metadata: Option<Metadata>,
    keys: Vec<String>,
}

impl Document {
    /// Says what a document without a `weight_map` is.
    fn other(&self) -> String {
        let keys = match self.keys.len() {
            0 => "without keys".to_owned(),
            _ => format!("with the keys {}", some_of(&self.keys, SHOWN)),
        };
        format!("a JSON document {keys} and no weight_map, so it lists no parts of weights")
    }
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    total_size: Option<serde_json::Value>,
}

/// Tensor and part, in their order: a map would hide what is listed twice.
struct Listed(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Document;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object with a weight_map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
                let mut found = Document { weight_map: None, metadata: None, keys: Vec::new() };
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "weight_map" => found.weight_map = Some(map.next_value()?),
                        "metadata" => {
                            // Of any form: nothing in it is needed.
                            let value: serde_json::Value = map.next_value()?;
                            found.metadata = serde_json::from_value(value).ok();
                        }
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                    found.keys.push(key);
                }
                Ok(found)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Listed;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a weight_map from tensors to the names of files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Listed, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Listed(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "parts_tests.rs"]
mod tests;
