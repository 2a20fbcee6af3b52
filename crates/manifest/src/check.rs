//! Holds a document against the JSON schema of manifests and collects every mistake.
//!
//! Only the vocabulary that the derived schema uses is understood ([`schema`]): `$ref`, `anyOf`, closed
//! lists of words, types, ranges, lengths and this crate's own formats. A mistake is cut out of the
//! document, and what is missing is filled in, so that what is left can be read and checked further.

use std::collections::HashSet;

use serde_json::Value as Json;
use serde_yaml::Value;

use crate::error::{Hint, Problem};
use crate::limits::MAX_MISTAKES;
use crate::schema::{self, alternatives, describe_all, is_required, keys, type_names, vocabulary};
use crate::source::{Path, Position, Source};
use crate::{defaults, nearest, words};

/// Keys of a mapping that a message repeats.
const KEYS_SHOWN: usize = 8;

/// What [`check`] found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// The mistakes and their places.
    pub(crate) problems: Vec<(Position, Problem)>,
    /// Fields that are missing or were cut out; what depends on them is not worth a message.
    pub(crate) broken: HashSet<Path>,
    /// Mistakes beyond [`MAX_MISTAKES`].
    pub(crate) left_out: usize,
}

impl Findings {
    /// Adds a mistake, and only counts it where there are enough already.
    pub(crate) fn add(
        &mut self,
        place: impl FnOnce() -> Position,
        problem: impl FnOnce() -> Problem,
    ) {
        if self.problems.len() < MAX_MISTAKES {
            self.problems.push((place(), problem()))
        } else {
            self.left_out += 1
        }
    }

    /// Returns true if `path` or something above it is missing or was cut out.
    pub(crate) fn is_broken(&self, path: &Path) -> bool {
        self.broken.iter().any(|broken| path.starts_with(broken))
    }
}

/// Collects the mistakes of `document`, cuts them out of it, and fills in what it leaves out.
pub(crate) fn check(document: &mut Value, source: &Source) -> Findings {
    let mut checker = Checker { source, findings: Findings::default() };
    if !checker.value(&Path::default(), document, schema::of_file()) {
        *document = Value::Mapping(serde_yaml::Mapping::new());
    }
    defaults::fill(document, schema::of_file());
    checker.findings
}

struct Checker<'s> {
    source: &'s Source,
    findings: Findings,
}

impl Checker<'_> {
    /// Returns false if `value` must be cut out.
    fn value(&mut self, path: &Path, value: &mut Value, schema: &'static Json) -> bool {
        let alternatives = alternatives(schema);
        if let Some(number) = schema::written_number(value, &alternatives) {
            *value = Value::Number(number);
        }
        let kept = match alternatives.iter().find(|one| schema::takes_kind(one, value)) {
            // Of a closed list of words the others say as much: `auto` or a number.
            Some(one) if value.is_string() && !schema::scalar_fits(value, one) => {
                match vocabulary(one)[..] {
                    [] => self.content(path, value, one),
                    [..] => self.refuse(path, value, &alternatives),
                }
            }
            Some(one) => self.content(path, value, one),
            None => self.refuse(path, value, &alternatives),
        };
        if !kept {
            self.findings.broken.insert(path.clone());
        }
        kept
    }

    /// Checks what is inside a value whose kind is right.
    fn content(&mut self, path: &Path, value: &mut Value, schema: &'static Json) -> bool {
        match value {
            Value::Mapping(_) => self.mapping(path, value, schema),
            Value::Sequence(_) => self.sequence(path, value, schema),
            scalar if schema::scalar_fits(scalar, schema) => {
                if let Some(count) = schema::plain_count(scalar, schema) {
                    *scalar = Value::from(count);
                }
                true
            }
            scalar => self.refuse(path, scalar, &[schema]),
        }
    }

    fn mapping(&mut self, path: &Path, value: &mut Value, schema: &'static Json) -> bool {
        let Value::Mapping(entries) = value else { return false };
        let properties = schema["properties"].as_object();
        let mut kept = serde_yaml::Mapping::new();
        let given = std::mem::take(entries);
        let present = present(&given);
        for (key, mut child) in given {
            let name = key_text(&key);
            let child_schema = properties
                .and_then(|all| all.get(&name))
                .or_else(|| schema.get("additionalProperties").filter(|more| more.is_object()));
            let Some(child_schema) = child_schema else {
                self.unknown(path, &name, schema);
                continue;
            };
            let place = path.key(&name);
            // A known key without a value counts as absent.
            if child.is_null() && properties.is_some_and(|all| all.contains_key(&name)) {
                if is_required(&name, schema) {
                    self.value_missing(&place, child_schema);
                }
            } else if self.value(&place, &mut child, child_schema) {
                kept.insert(Value::String(name), child);
            }
        }
        self.missing(path, &kept, &present, schema);
        *entries = kept;
        true
    }

    fn unknown(&mut self, path: &Path, name: &str, schema: &'static Json) {
        if self.findings.problems.len() >= MAX_MISTAKES {
            self.findings.left_out += 1;
            return;
        }
        let known: Vec<&str> = keys(schema);
        let hint = match nearest::key(name, &known) {
            Some(near) => {
                self.findings.broken.insert(path.key(near));
                Some(Hint::DidYouMean(near.to_owned()))
            }
            None => {
                let mut places = Vec::new();
                places_of(name, schema::of_file(), "", &mut places);
                (!places.is_empty()).then_some(Hint::BelongsIn(places))
            }
        };
        self.findings.problems.push((
            self.source.key(&path.key(name)),
            Problem::UnknownKey {
                key: words::short(name).into_owned(),
                within: path.to_string(),
                hint,
                known: known.into_iter().map(str::to_owned).collect(),
            },
        ));
    }

    /// A required key without a value.
    fn value_missing(&mut self, path: &Path, schema: &'static Json) {
        let expected = describe_all(&alternatives(schema));
        let problem = || Problem::value(path.to_string(), "empty", expected);
        self.findings.add(|| self.source.key(path), problem);
        self.findings.broken.insert(path.clone());
    }

    fn missing(
        &mut self,
        path: &Path,
        entries: &serde_yaml::Mapping,
        present: &str,
        schema: &'static Json,
    ) {
        for key in schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str) {
            let place = path.key(key);
            if entries.contains_key(key) || self.findings.is_broken(&place) {
                continue;
            }
            let problem = || Problem::Missing {
                key: key.to_owned(),
                within: path.to_string(),
                present: present.to_owned(),
                expected: describe_all(&alternatives(&schema["properties"][key])),
            };
            self.findings.add(|| self.source.key(path), problem);
            self.findings.broken.insert(place);
        }
    }

    /// A list with one bad item is cut out whole, so that positions of items stay true.
    fn sequence(&mut self, path: &Path, value: &mut Value, schema: &'static Json) -> bool {
        let Value::Sequence(items) = value else { return false };
        if !schema::length_fits(items, schema) {
            return self.refuse(path, value, &[schema]);
        }
        let mut all_kept = true;
        for (index, item) in items.iter_mut().enumerate() {
            all_kept &= self.value(&path.index(index), item, &schema["items"]);
        }
        all_kept
    }

    /// Records a value that no alternative takes.
    fn refuse(&mut self, path: &Path, value: &Value, alternatives: &[&'static Json]) -> bool {
        let problem = || Problem::Value {
            field: path.to_string(),
            value: shown(value),
            expected: expected(value, alternatives),
            nearest: nearest_words(value, alternatives),
        };
        self.findings.add(|| self.source.value(path), problem);
        false
    }
}

/// Collects the mappings that have a key of this name.
fn places_of(name: &str, schema: &'static Json, within: &str, places: &mut Vec<String>) {
    for one in alternatives(schema) {
        let Some(properties) = one["properties"].as_object() else {
            if let Some(items) = one.get("items") {
                places_of(name, items, within, places);
            }
            continue;
        };
        if properties.contains_key(name) && !within.is_empty() {
            places.push(within.to_owned());
        }
        for (key, child) in properties {
            let dot = if within.is_empty() { "" } else { "." };
            places_of(name, child, &format!("{within}{dot}{key}"), places);
        }
    }
}

/// Returns what belongs in the place of `value`.
fn expected(value: &Value, alternatives: &[&'static Json]) -> String {
    let mut expected = describe_all(alternatives);
    let only_text = alternatives.iter().all(|one| type_names(one) == ["string"]);
    let words = alternatives.iter().any(|one| !vocabulary(one).is_empty());
    if only_text && !words && matches!(value, Value::Number(_) | Value::Bool(_)) {
        expected.push_str(", so put it in quotes");
    }
    if let [one] = alternatives {
        expected.push_str(&schema::broken_bound(value, one));
    }
    expected
}

/// Returns the words of a closed list that look like `value`.
fn nearest_words(value: &Value, alternatives: &[&'static Json]) -> Vec<String> {
    let words: Vec<&str> = alternatives.iter().flat_map(|one| vocabulary(one)).collect();
    let nearest = match value.as_str() {
        Some(text) if words.len() > 1 => nearest::names(text, words.into_iter(), 1),
        _ => Vec::new(),
    };
    nearest.into_iter().map(str::to_owned).collect()
}

/// Returns the keys of a mapping as a message repeats them; empty where it has none.
pub(crate) fn present(entries: &serde_yaml::Mapping) -> String {
    let shown =
        entries.keys().take(KEYS_SHOWN).map(|key| words::short(&key_text(key)).into_owned());
    let mut shown = shown.collect::<Vec<_>>().join(", ");
    if entries.len() > KEYS_SHOWN {
        shown.push_str(&format!(" and {} more", entries.len() - KEYS_SHOWN));
    }
    shown
}

fn key_text(key: &Value) -> String {
    match key {
        Value::String(text) => text.clone(),
        other => scalar_text(other),
    }
}

/// Returns a value as a message shows it: text in quotes, collections by their size.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "empty".to_owned(),
        Value::String(text) => words::quoted(text),
        Value::Sequence(items) if items.is_empty() => "an empty list".to_owned(),
        Value::Sequence(items) if items.len() <= 4 && items.iter().all(Value::is_number) => {
            let items: Vec<String> = items.iter().map(scalar_text).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Sequence(items) => format!("a list of {}", items.len()),
        Value::Mapping(_) => "a mapping".to_owned(),
        Value::Tagged(tagged) => {
            format!("a value tagged {}", words::short(&tagged.tag.to_string()))
        }
        scalar => scalar_text(scalar),
    }
}

fn scalar_text(value: &Value) -> String {
    serde_yaml::to_string(value).map_or_else(|_| "?".to_owned(), |text| text.trim_end().to_owned())
}
