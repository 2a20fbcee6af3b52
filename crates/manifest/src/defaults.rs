//! What stands where a manifest says nothing.

use serde_json::Value as Json;
use serde_yaml::{Mapping, Value};

use crate::schema::{alternatives, is_required, type_names, vocabulary};

/// Puts the schema's defaults where `value` leaves a key out, and placeholders where a required one is missing
/// or was cut out by [`crate::check`].
pub(crate) fn fill(value: &mut Value, schema: &'static Json) {
    let alternatives = alternatives(schema);
    match value {
        Value::Mapping(entries) => {
            let section = alternatives.iter().find(|one| one["properties"].is_object());
            let keys = section.and_then(|one| one["properties"].as_object());
            for (key, property) in keys.into_iter().flatten() {
                let required = section.is_some_and(|one| is_required(key, one));
                if let Some(child) = entries.get_mut(key) {
                    fill(child, property);
                } else if let Some(mut child) = left_out(property, required) {
                    fill(&mut child, property);
                    entries.insert(Value::from(key.as_str()), child);
                }
            }
        }
        Value::Sequence(items) => {
            let Some(list) = alternatives.iter().find(|one| one["items"].is_object()) else {
                return;
            };
            for item in items.iter_mut().filter(|item| item.is_mapping()) {
                fill(item, &list["items"]);
            }
        }
        _ => {}
    }
}

fn left_out(schema: &'static Json, required: bool) -> Option<Value> {
    match schema.get("default") {
        Some(default) => serde_yaml::to_value(default).ok(),
        None => required.then(|| placeholder(alternatives(schema)[0])),
    }
}

/// Returns a value that the types take. The job it gets into is not used.
fn placeholder(schema: &Json) -> Value {
    match (vocabulary(schema).first(), &type_names(schema)[..]) {
        (Some(word), _) => Value::from(*word),
        (None, ["object"]) => Value::Mapping(Mapping::new()),
        (None, ["integer" | "number"]) => Value::from(1),
        (None, ["array"]) => Value::Sequence(Vec::new()),
        (None, ["boolean"]) => Value::from(false),
        (None, _) => Value::from(""),
    }
}
