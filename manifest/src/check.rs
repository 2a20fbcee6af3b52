//! Holds a document against the JSON schema of [`crate::file`] and collects every mistake.
//!
//! Only the vocabulary that the derived schema uses is understood: `$ref`, `anyOf`, closed lists
//! of words, types, ranges, lengths and this crate's own formats. A mistake is cut out of the
//! document, so that what is left can be read and checked further.

use std::collections::HashSet;

use serde_json::Value as Json;
use serde_yaml::Value;

use crate::error::{Hint, Problem};
use crate::nearest;
use crate::number::{self, BYTES_FORM, COUNT_SUFFIX_FORM};
use crate::source::{Path, Position, Source};

/// Longest value shown in a message, in characters.
const SHOWN: usize = 60;

/// What [`check`] found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// The mistakes and their places.
    pub(crate) problems: Vec<(Position, Problem)>,
    /// Fields that are missing or were cut out; what depends on them is not worth a message.
    pub(crate) broken: HashSet<Path>,
}

impl Findings {
    /// Returns true if `path` or something above it is missing or was cut out.
    pub(crate) fn is_broken(&self, path: &Path) -> bool {
        self.broken.iter().any(|broken| path.starts_with(broken))
    }
}

/// Collects the mistakes of `document` and cuts them out of it.
pub(crate) fn check(document: &mut Value, schema: &Json, source: &Source) -> Findings {
    let mut checker = Checker { schema, source, findings: Findings::default() };
    if !checker.value(&Path::default(), document, schema) {
        *document = Value::Mapping(serde_yaml::Mapping::new());
    }
    checker.findings
}

struct Checker<'s> {
    schema: &'s Json,
    source: &'s Source,
    findings: Findings,
}

impl<'s> Checker<'s> {
    /// Returns false if `value` must be cut out.
    fn value(&mut self, path: &Path, value: &mut Value, schema: &'s Json) -> bool {
        let alternatives = self.alternatives(schema);
        let kept = match alternatives.iter().find(|one| takes_kind(one, value)) {
            Some(one) => self.content(path, value, one),
            None => self.refuse(path, value, &alternatives),
        };
        if !kept {
            self.findings.broken.insert(path.clone());
        }
        kept
    }

    /// Checks what is inside a value whose kind is right.
    fn content(&mut self, path: &Path, value: &mut Value, schema: &'s Json) -> bool {
        match value {
            Value::Mapping(_) => self.mapping(path, value, schema),
            Value::Sequence(_) => self.sequence(path, value, schema),
            scalar if scalar_fits(scalar, schema) => true,
            scalar => self.refuse(path, scalar, &[schema]),
        }
    }

    fn mapping(&mut self, path: &Path, value: &mut Value, schema: &'s Json) -> bool {
        let Value::Mapping(entries) = value else { return false };
        let properties = schema["properties"].as_object();
        let mut kept = serde_yaml::Mapping::new();
        for (key, mut child) in std::mem::take(entries) {
            let name = key_text(&key);
            let place = path.key(&name);
            let child_schema = properties
                .and_then(|all| all.get(&name))
                .or_else(|| schema.get("additionalProperties").filter(|more| more.is_object()));
            let Some(child_schema) = child_schema else {
                self.unknown(path, &name, schema);
                continue;
            };
            // A known key without a value counts as absent.
            let absent = child.is_null() && properties.is_some_and(|all| all.contains_key(&name));
            if !absent && self.value(&place, &mut child, child_schema) {
                kept.insert(Value::String(name), child);
            }
        }
        self.missing(path, &kept, schema);
        *entries = kept;
        true
    }

    fn unknown(&mut self, path: &Path, name: &str, schema: &'s Json) {
        let known: Vec<&str> = keys(schema);
        let hint = match nearest::key(name, &known) {
            Some(near) => {
                self.findings.broken.insert(path.key(near));
                Some(Hint::DidYouMean(near.to_owned()))
            }
            None => {
                let mut places = Vec::new();
                self.places_of(name, self.schema, "", &mut places);
                (!places.is_empty()).then_some(Hint::BelongsIn(places))
            }
        };
        self.findings.problems.push((
            self.source.key(&path.key(name)),
            Problem::UnknownKey {
                key: name.to_owned(),
                within: path.to_string(),
                hint,
                known: known.into_iter().map(str::to_owned).collect(),
            },
        ));
    }

    /// Collects the mappings that have a key of this name.
    fn places_of(&self, name: &str, schema: &'s Json, within: &str, places: &mut Vec<String>) {
        for one in self.alternatives(schema) {
            let Some(properties) = one["properties"].as_object() else {
                if let Some(items) = one.get("items") {
                    self.places_of(name, items, within, places);
                }
                continue;
            };
            if properties.contains_key(name) && !within.is_empty() {
                places.push(within.to_owned());
            }
            for (key, child) in properties {
                let dot = if within.is_empty() { "" } else { "." };
                self.places_of(name, child, &format!("{within}{dot}{key}"), places);
            }
        }
    }

    fn missing(&mut self, path: &Path, entries: &serde_yaml::Mapping, schema: &'s Json) {
        for key in schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str) {
            let place = path.key(key);
            if entries.contains_key(key) || self.findings.is_broken(&place) {
                continue;
            }
            let expected = self.describe_all(&self.alternatives(&schema["properties"][key]));
            self.findings.problems.push((
                self.source.key(path),
                Problem::Missing { key: key.to_owned(), within: path.to_string(), expected },
            ));
            self.findings.broken.insert(place);
        }
    }

    /// A list with one bad item is cut out whole, so that positions of items stay true.
    fn sequence(&mut self, path: &Path, value: &mut Value, schema: &'s Json) -> bool {
        let Value::Sequence(items) = value else { return false };
        let fewest = schema["minItems"].as_u64().unwrap_or(0);
        let most = schema["maxItems"].as_u64().unwrap_or(u64::MAX);
        if !(fewest..=most).contains(&(items.len() as u64)) {
            return self.refuse(path, value, &[schema]);
        }
        let mut all_kept = true;
        for (index, item) in items.iter_mut().enumerate() {
            all_kept &= self.value(&path.index(index), item, &schema["items"]);
        }
        all_kept
    }

    /// Records a value that no alternative takes.
    fn refuse(&mut self, path: &Path, value: &Value, alternatives: &[&'s Json]) -> bool {
        let words: Vec<&str> = alternatives.iter().flat_map(|one| vocabulary(one)).collect();
        let nearest = match value.as_str() {
            Some(text) if words.len() > 1 => nearest::names(text, words.iter().copied(), 1),
            _ => Vec::new(),
        };
        let nearest = nearest.into_iter().map(str::to_owned).collect();
        let mut expected = self.describe_all(alternatives);
        let only_text = alternatives.iter().all(|one| type_names(one) == ["string"]);
        if only_text && words.is_empty() && matches!(value, Value::Number(_) | Value::Bool(_)) {
            expected.push_str(", so put it in quotes");
        }
        if let [one] = alternatives {
            expected.push_str(&type_bound(value, one));
        }
        let field = path.to_string();
        let problem = Problem::Value { field, value: shown(value), expected, nearest };
        self.findings.problems.push((self.source.value(path), problem));
        false
    }

    /// Returns what a value may be, references resolved and null left out.
    fn alternatives(&self, schema: &'s Json) -> Vec<&'s Json> {
        if let Some(reference) = schema["$ref"].as_str() {
            let target = self.schema.pointer(reference.trim_start_matches('#'));
            return self.alternatives(target.expect("a derived schema refers to its own parts"));
        }
        match schema["anyOf"].as_array() {
            Some(options) => {
                let present = options.iter().filter(|option| option["type"] != "null");
                present.flat_map(|option| self.alternatives(option)).collect()
            }
            None => vec![schema],
        }
    }

    fn describe_all(&self, alternatives: &[&'s Json]) -> String {
        let all: Vec<String> = alternatives.iter().map(|one| self.describe(one)).collect();
        all.join(" or ")
    }

    /// Returns what a schema allows, as a phrase.
    fn describe(&self, schema: &'s Json) -> String {
        let words = vocabulary(schema);
        if words.len() == 1 {
            return words[0].to_owned();
        }
        if !words.is_empty() {
            return format!("one of {}", words.join(", "));
        }
        match schema["format"].as_str() {
            Some("count") => {
                return format!("a whole number{}, {COUNT_SUFFIX_FORM}", bounds(schema));
            }
            Some("bytes") => return BYTES_FORM.to_owned(),
            Some("job-name") => {
                return "lower-case letters, digits and dashes, at most 48, with a letter or digit \
                        at either end"
                    .to_owned();
            }
            Some("set-name") => return "letters, digits, dots, dashes and underscores".to_owned(),
            _ => {}
        }
        match type_names(schema)[..] {
            ["integer"] => format!("a whole number{}", bounds(schema)),
            ["number"] => format!("a number{}", bounds(schema)),
            ["boolean"] => "true or false".to_owned(),
            ["string"] => "text".to_owned(),
            ["array"] => self.describe_list(schema),
            ["object"] if keys(schema).is_empty() => "a mapping of names to text".to_owned(),
            ["object"] => format!("a mapping with the keys {}", keys(schema).join(", ")),
            _ => "another value".to_owned(),
        }
    }

    fn describe_list(&self, schema: &'s Json) -> String {
        let items = self.alternatives(&schema["items"]);
        let number = match (schema["minItems"].as_u64(), schema["maxItems"].as_u64()) {
            (Some(least), Some(most)) if least == most => format!("{least} "),
            _ => String::new(),
        };
        let each = match items[..] {
            [item] if type_names(item) == ["number"] => format!("numbers{}", bounds(item)),
            [item] if !vocabulary(item).is_empty() => vocabulary(item).join(", "),
            [item] if type_names(item) == ["object"] => {
                format!("mappings with the keys {}", keys(item).join(", "))
            }
            _ => "texts".to_owned(),
        };
        format!("a list of {number}{each}")
    }
}

/// Returns true if the kind of `value` (text, number, list …) is one the schema takes.
fn takes_kind(schema: &Json, value: &Value) -> bool {
    // `Value` looks through tags when it is asked for its kind; this format has none.
    if matches!(value, Value::Tagged(_)) {
        return false;
    }
    if !vocabulary(schema).is_empty() {
        return value.is_string();
    }
    let count = matches!(schema["format"].as_str(), Some("count" | "bytes"));
    type_names(schema).into_iter().any(|name| match name {
        "boolean" => value.is_bool(),
        "integer" => match value {
            Value::Number(number) => !number.is_f64() || count,
            _ => false,
        },
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_sequence(),
        "object" => value.is_mapping(),
        _ => false,
    })
}

/// Checks words, ranges, lengths and formats.
fn scalar_fits(value: &Value, schema: &Json) -> bool {
    let words = vocabulary(schema);
    if let (Some(text), false) = (value.as_str(), words.is_empty()) {
        return words.contains(&text);
    }
    let as_number: Option<f64> = match (schema["format"].as_str(), value) {
        (Some("count" | "bytes"), Value::Number(number)) if number.is_f64() => {
            number.as_f64().and_then(number::whole).map(|count| count as f64)
        }
        (Some("count"), Value::String(text)) => number::parse_count(text).map(|n| n as f64),
        (Some("bytes"), Value::String(text)) => number::parse_bytes(text).map(|n| n as f64),
        (_, Value::String(text)) => return text_fits(text, schema),
        (_, Value::Bool(_)) => return true,
        (_, number) => number.as_f64(),
    };
    as_number.is_some_and(|number| number.is_finite() && within_bounds(number, schema))
}

fn text_fits(text: &str, schema: &Json) -> bool {
    let length = text.chars().count() as u64;
    let short = length < schema["minLength"].as_u64().unwrap_or(0);
    let long = length > schema["maxLength"].as_u64().unwrap_or(u64::MAX);
    if short || long {
        return false;
    }
    let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    match schema["format"].as_str() {
        Some("job-name") => {
            text.starts_with(lower)
                && text.ends_with(lower)
                && text.chars().all(|c| lower(c) || c == '-')
        }
        Some("set-name") => {
            text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        }
        _ => true,
    }
}

fn within_bounds(number: f64, schema: &Json) -> bool {
    let bound = |name: &str| schema[name].as_f64();
    let (least, most) = format_range(schema);
    bound("minimum").or(least).is_none_or(|least| number >= least)
        && bound("maximum").or(most).is_none_or(|most| number <= most)
        && bound("exclusiveMinimum").is_none_or(|limit| number > limit)
        && bound("exclusiveMaximum").is_none_or(|limit| number < limit)
}

/// Returns the range of the integer type behind a schema; 64 bits need no check, YAML has no more.
fn format_range(schema: &Json) -> (Option<f64>, Option<f64>) {
    match schema["format"].as_str() {
        Some("uint32") => (Some(0.0), Some(f64::from(u32::MAX))),
        Some("int32") => (Some(f64::from(i32::MIN)), Some(f64::from(i32::MAX))),
        Some("uint64") => (Some(0.0), None),
        _ => (None, None),
    }
}

/// Returns the bounds as the end of a phrase: " of at least 1", " above 0 and at most 1".
fn bounds(schema: &Json) -> String {
    let bound = |name: &str| schema[name].as_f64();
    let mut parts = Vec::new();
    if let Some(limit) = bound("exclusiveMinimum") {
        parts.push(format!("above {limit}"));
    } else if let Some(limit) = bound("minimum") {
        parts.push(format!("of at least {limit}"));
    }
    if let Some(limit) = bound("exclusiveMaximum") {
        parts.push(format!("below {limit}"));
    } else if let Some(limit) = bound("maximum") {
        parts.push(format!("at most {limit}"));
    }
    if parts.is_empty() { String::new() } else { format!(" {}", parts.join(" and ")) }
}

/// Returns the bound of the integer type that `value` breaks: worth words only then.
fn type_bound(value: &Value, schema: &Json) -> String {
    let (least, most) = format_range(schema);
    match (value.as_f64(), least, most) {
        (Some(number), _, Some(most)) if number > most => match bounds(schema).as_str() {
            "" => format!(" of at most {most}"),
            _ => format!(" and at most {most}"),
        },
        (Some(number), Some(least), _) if number < least && schema["minimum"].is_null() => {
            format!(" of at least {least}")
        }
        _ => String::new(),
    }
}

/// Returns the words of a closed list, in order.
fn vocabulary(schema: &Json) -> Vec<&str> {
    let listed = schema["enum"].as_array().into_iter().flatten();
    let constant = schema.get("const").into_iter();
    let options = schema["oneOf"].as_array().into_iter().flatten();
    listed.chain(constant).filter_map(Json::as_str).chain(options.flat_map(vocabulary)).collect()
}

fn type_names(schema: &Json) -> Vec<&str> {
    match &schema["type"] {
        Json::String(name) => vec![name],
        Json::Array(names) => {
            names.iter().filter_map(Json::as_str).filter(|name| *name != "null").collect()
        }
        _ => Vec::new(),
    }
}

fn keys(schema: &Json) -> Vec<&str> {
    let properties = schema["properties"].as_object();
    properties.into_iter().flat_map(|all| all.keys().map(String::as_str)).collect()
}

fn key_text(key: &Value) -> String {
    match key {
        Value::String(text) => text.clone(),
        other => scalar_text(other),
    }
}

/// Returns a value as a message shows it: text in quotes, collections by their size.
pub(crate) fn shown(value: &Value) -> String {
    let text = match value {
        Value::Null => "empty".to_owned(),
        Value::String(text) => format!("{text:?}"),
        Value::Sequence(items) if items.is_empty() => "an empty list".to_owned(),
        Value::Sequence(items) if items.len() <= 4 && items.iter().all(Value::is_number) => {
            let items: Vec<String> = items.iter().map(scalar_text).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Sequence(items) => format!("a list of {}", items.len()),
        Value::Mapping(_) => "a mapping".to_owned(),
        Value::Tagged(tagged) => format!("a value tagged {}", tagged.tag),
        scalar => scalar_text(scalar),
    };
    if text.chars().count() <= SHOWN {
        return text;
    }
    let start: String = text.chars().take(SHOWN).collect();
    format!("{start}…")
}

fn scalar_text(value: &Value) -> String {
    serde_yaml::to_string(value).map_or_else(|_| "?".to_owned(), |text| text.trim_end().to_owned())
}
