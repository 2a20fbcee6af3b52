//! Whether a document has the keys that its reader knows, no more and no fewer.

use serde_json::Value;

/// A key by its dotted path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Difference {
    /// The reader does not know it.
    Unknown(String),
    /// The reader knows it, and it is not there.
    Missing(String),
}

/// Returns the first key that one of two documents has and the other does not: what is `given`, and what its
/// reader would write. Nothing is compared below the path `passed_over`.
pub(super) fn difference(given: &Value, known: &Value, passed_over: &str) -> Option<Difference> {
    below("", given, known, passed_over)
}

fn below(path: &str, given: &Value, known: &Value, passed_over: &str) -> Option<Difference> {
    if path == passed_over {
        return None;
    }
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (key, value) in given {
                let place = dotted(path, key);
                let Some(known) = known.get(key) else { return Some(Difference::Unknown(place)) };
                if let Some(found) = below(&place, value, known, passed_over) {
                    return Some(found);
                }
            }
            let missing = known.keys().find(|key| !given.contains_key(*key))?;
            Some(Difference::Missing(dotted(path, missing)))
        }
        (Value::Array(given), Value::Array(known)) => {
            let mut items = given.iter().zip(known).enumerate();
            // Of texts there may be a million.
            items.find_map(|(index, (given, known))| {
                let place = given.is_object().then(|| format!("{path}[{index}]"))?;
                below(&place, given, known, passed_over)
            })
        }
        _ => None,
    }
}

fn dotted(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
