//! The schema of manifests, derived from [`crate::spec`] and [`crate::spec::written`], and what it says
//! of a value: whether it fits, and in words.

use std::sync::LazyLock;

use serde_json::{Value as Json, json};
use serde_yaml::{Number, Value};

use crate::limits::{MAX_COUNT, MAX_JOB_NAME, MAX_SECONDS};
use crate::number::{self, BYTES_FORM, COUNT_SUFFIX_FORM, SECONDS_SUFFIX_FORM};
use crate::spec::written::File;

/// The schema of a manifest, as documents are held against it.
pub(crate) fn of_file() -> &'static Json {
    static SCHEMA: LazyLock<Json> = LazyLock::new(|| derived().to_value());
    &SCHEMA
}

/// Returns the schema that the types say, and the rules that hold of all their fields.
pub(crate) fn derived() -> schemars::Schema {
    let mut schema = schemars::schema_for!(File);
    with_rules(&mut schema);
    schema
}

/// A section takes no unknown keys. What has a default may be left out, or be null, which says the same.
fn with_rules(schema: &mut schemars::Schema) {
    schemars::transform::transform_subschemas(&mut with_rules, schema);
    let Some(properties) = schema.get_mut("properties").and_then(Json::as_object_mut) else {
        return;
    };
    let mut optional = Vec::new();
    for (key, property) in properties.iter_mut().filter(|(_, one)| one.get("default").is_some()) {
        optional.push(Json::from(key.as_str()));
        allow_null(property);
    }
    if let Some(Json::Array(mut required)) = schema.remove("required") {
        required.retain(|key| !optional.contains(key));
        if !required.is_empty() {
            schema.insert("required".to_owned(), required.into());
        }
    }
    schema.insert("additionalProperties".to_owned(), false.into());
}

fn allow_null(schema: &mut Json) {
    let Some(fields) = schema.as_object_mut() else { return };
    if let Some(reference) = fields.remove("$ref") {
        fields.insert("anyOf".to_owned(), json!([{"$ref": reference}, {"type": "null"}]));
    } else {
        add_type(fields, "null");
    }
}

/// Adds a type to those that a schema takes, where it names any.
fn add_type(schema: &mut serde_json::Map<String, Json>, more: &str) {
    let Some(types) = schema.get_mut("type") else { return };
    let listed = types.as_array().cloned().unwrap_or_else(|| vec![types.clone()]);
    *types = listed.into_iter().chain([more.into()]).collect();
}

/// Lets numbers be written as [`number`] reads them: what YAML takes for text, as `1_024`, an editor shall
/// not mark.
pub(crate) fn with_written_numbers(schema: &mut schemars::Schema) {
    schemars::transform::transform_subschemas(&mut with_written_numbers, schema);
    for (name, pattern) in [("integer", number::WHOLE_PATTERN), ("number", number::REAL_PATTERN)] {
        let types = type_names(schema.as_value());
        if types.contains(&name) && !types.contains(&"string") {
            let schema = schema.ensure_object();
            add_type(schema, "string");
            schema.insert("pattern".to_owned(), pattern.into());
        }
    }
}

/// Returns what a value may be, references resolved and null left out.
pub(crate) fn alternatives(schema: &'static Json) -> Vec<&'static Json> {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = of_file().pointer(reference.trim_start_matches('#'));
        return alternatives(target.expect("a derived schema refers to its own parts"));
    }
    match schema["anyOf"].as_array() {
        Some(options) => {
            let present = options.iter().filter(|option| option["type"] != "null");
            present.flat_map(alternatives).collect()
        }
        None => vec![schema],
    }
}

/// Returns the number that `value` is written for, where numbers and no texts are wanted.
pub(crate) fn written_number(value: &Value, alternatives: &[&Json]) -> Option<Number> {
    let wants = |name: &str| {
        let names = alternatives.iter().map(|one| type_names(one));
        names.into_iter().any(|names| names.contains(&name) && !names.contains(&"string"))
    };
    match value {
        Value::String(text) if wants("integer") => number::parse_whole(text),
        Value::String(text) if wants("number") => number::parse_real(text).map(Number::from),
        // `1e3` is a float to YAML.
        Value::Number(number) if number.is_f64() && wants("integer") => {
            number.as_f64().and_then(number::whole).map(Number::from)
        }
        _ => None,
    }
}

/// Returns true if the kind of `value` (text, number, list …) is one the schema takes.
pub(crate) fn takes_kind(schema: &Json, value: &Value) -> bool {
    // `Value` looks through tags when it is asked for its kind; this format has none.
    if matches!(value, Value::Tagged(_)) {
        return false;
    }
    if !vocabulary(schema).is_empty() {
        return value.is_string();
    }
    let count = matches!(schema["format"].as_str(), Some("count" | "bytes" | "seconds"));
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
pub(crate) fn scalar_fits(value: &Value, schema: &Json) -> bool {
    let words = vocabulary(schema);
    if let (Some(text), false) = (value.as_str(), words.is_empty()) {
        return words.contains(&text);
    }
    match (value, schema["format"].as_str()) {
        (Value::Bool(_), _) => true,
        (Value::String(text), None | Some("job-name" | "set-name")) => text_fits(text, schema),
        _ => number_of(value, schema).is_some_and(|number| within_bounds(number, schema)),
    }
}

/// Returns the number that a value stands for, as far as it matters for bounds; none where it is none.
fn number_of(value: &Value, schema: &Json) -> Option<f64> {
    // Next to 2^53 an f64 rounds, and must not round into the range.
    let exact = |count: u64| if count > MAX_COUNT { f64::INFINITY } else { count as f64 };
    match (schema["format"].as_str(), value) {
        (Some("count" | "bytes" | "seconds"), Value::Number(number)) => match number.as_u64() {
            Some(count) => Some(exact(count)),
            None => number
                .as_f64()
                .map(|one| if one >= MAX_COUNT as f64 { f64::INFINITY } else { one })
                .filter(|one| one.is_infinite() || one.fract() == 0.0),
        },
        (Some("count"), Value::String(text)) => number::parse_count(text).map(exact),
        (Some("bytes"), Value::String(text)) => number::parse_bytes(text).map(exact),
        (Some("seconds"), Value::String(text)) => number::parse_seconds(text).map(exact),
        (_, Value::Number(number)) => number.as_f64().filter(|number| !number.is_nan()),
        _ => None,
    }
}

/// Returns the whole number that an accepted count, size or time stands for: at most 2^53, which a float holds.
pub(crate) fn plain_count(value: &Value, schema: &Json) -> Option<u64> {
    let counts = matches!(schema["format"].as_str(), Some("count" | "bytes" | "seconds"));
    counts.then(|| number_of(value, schema))?.map(|number| number as u64)
}

/// Returns whether a list is neither too short nor too long.
pub(crate) fn length_fits(items: &[Value], schema: &Json) -> bool {
    let fewest = schema["minItems"].as_u64().unwrap_or(0);
    let most = schema["maxItems"].as_u64().unwrap_or(u64::MAX);
    (fewest..=most).contains(&(items.len() as u64))
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
    number.is_finite()
        && bound("minimum").or(least).is_none_or(|least| number >= least)
        && bound("maximum").or(most).is_none_or(|most| number <= most)
        && bound("exclusiveMinimum").is_none_or(|limit| number > limit)
        && bound("exclusiveMaximum").is_none_or(|limit| number < limit)
}

/// Returns the range of the type behind a schema; 64 bits need no check, YAML has no more.
fn format_range(schema: &Json) -> (Option<f64>, Option<f64>) {
    match schema["format"].as_str() {
        Some("uint32") => (Some(0.0), Some(f64::from(u32::MAX))),
        Some("int32") => (Some(f64::from(i32::MIN)), Some(f64::from(i32::MAX))),
        Some("uint64") => (Some(0.0), None),
        Some("count" | "bytes") => (Some(0.0), Some(MAX_COUNT as f64)),
        Some("seconds") => (Some(0.0), Some(MAX_SECONDS as f64)),
        _ => (None, None),
    }
}

/// Returns what all alternatives allow, as a phrase.
pub(crate) fn describe_all(alternatives: &[&'static Json]) -> String {
    let all: Vec<String> = alternatives.iter().map(|one| describe(one)).collect();
    all.join(" or ")
}

/// Returns what a schema allows, as a phrase.
fn describe(schema: &'static Json) -> String {
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
        Some("seconds") => {
            return format!("a whole number of seconds{}, {SECONDS_SUFFIX_FORM}", bounds(schema));
        }
        Some("job-name") => {
            return format!(
                "lower-case letters, digits and dashes, at most {MAX_JOB_NAME}, with a letter or \
                 digit at either end"
            );
        }
        Some("set-name") => return "letters, digits, dots, dashes and underscores".to_owned(),
        _ => {}
    }
    match type_names(schema)[..] {
        ["integer"] => format!("a whole number{}", bounds(schema)),
        ["number"] => format!("a number{}", bounds(schema)),
        ["boolean"] => "true or false".to_owned(),
        ["string"] => "text".to_owned(),
        ["array"] => describe_list(schema),
        ["object"] if keys(schema).is_empty() => "a mapping of names to text".to_owned(),
        ["object"] => format!("a mapping with the keys {}", keys(schema).join(", ")),
        _ => "another value".to_owned(),
    }
}

fn describe_list(schema: &'static Json) -> String {
    let items = alternatives(&schema["items"]);
    let number = match (schema["minItems"].as_u64(), schema["maxItems"].as_u64()) {
        (Some(least), Some(most)) if least == most => format!("{least} "),
        (Some(least), Some(most)) if least > 1 => format!("{least} to {most} "),
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

/// Returns what belongs behind the words for a schema because of this value: the bound of the type that it
/// breaks, or that it is too short or too long. Worth words only then.
pub(crate) fn broken_bound(value: &Value, schema: &Json) -> String {
    let (least, most) = format_range(schema);
    match (number_of(value, schema), least, most) {
        (Some(number), _, Some(most)) if number > most => match bounds(schema).as_str() {
            "" => format!(" of at most {most}"),
            _ => format!(" and at most {most}"),
        },
        (Some(number), Some(least), _) if number < least && schema["minimum"].is_null() => {
            format!(" of at least {least}")
        }
        _ => broken_length(value, schema),
    }
}

fn broken_length(value: &Value, schema: &Json) -> String {
    let (length, least) = match value {
        Value::String(text) => (text.chars().count() as u64, schema["minLength"].as_u64()),
        Value::Sequence(items) => (items.len() as u64, schema["minItems"].as_u64()),
        _ => return String::new(),
    };
    match (length, schema["maxLength"].as_u64()) {
        (0, _) if least.is_some_and(|least| least > 0) => " that is not empty".to_owned(),
        (length, Some(most)) if length > most => format!("; it has {length} characters"),
        _ => String::new(),
    }
}

/// Returns the words of a closed list, in order.
pub(crate) fn vocabulary(schema: &Json) -> Vec<&str> {
    let listed = schema["enum"].as_array().into_iter().flatten();
    let constant = schema.get("const").into_iter();
    let options = schema["oneOf"].as_array().into_iter().flatten();
    listed.chain(constant).filter_map(Json::as_str).chain(options.flat_map(vocabulary)).collect()
}

pub(crate) fn type_names(schema: &Json) -> Vec<&str> {
    match &schema["type"] {
        Json::String(name) => vec![name],
        Json::Array(names) => {
            names.iter().filter_map(Json::as_str).filter(|name| *name != "null").collect()
        }
        _ => Vec::new(),
    }
}

pub(crate) fn is_required(key: &str, schema: &Json) -> bool {
    schema["required"].as_array().is_some_and(|all| all.iter().any(|one| one == key))
}

pub(crate) fn keys(schema: &Json) -> Vec<&str> {
    let properties = schema["properties"].as_object();
    properties.into_iter().flat_map(|all| all.keys().map(String::as_str)).collect()
}
