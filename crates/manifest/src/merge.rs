//! Merge keys: `<<: *defaults` takes over the keys of another mapping that the own one does not have
//! (<https://yaml.org/type/merge.html>; part of YAML 1.1 that most tools still read).

use serde_yaml::Value;

/// The key whose mappings are merged.
pub(crate) const KEY: &str = "<<";

/// Merges everywhere in `value`. The own keys win; of several mappings, the first that has a key.
///
/// What is no mapping is left out: [`crate::source`] has refused it, and places keys by the same rules.
pub(crate) fn merge(value: &mut Value) {
    match value {
        Value::Sequence(items) => items.iter_mut().for_each(merge),
        Value::Tagged(tagged) => merge(&mut tagged.value),
        Value::Mapping(entries) => {
            // What is merged may itself merge.
            entries.values_mut().for_each(merge);
            let Some(merged) = entries.shift_remove(KEY) else { return };
            let sources = match merged {
                Value::Sequence(items) => items,
                one => vec![one],
            };
            for source in sources {
                let Value::Mapping(source) = untagged(source) else { continue };
                for (key, child) in source {
                    entries.entry(key).or_insert(child);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn untagged(value: Value) -> Value {
    match value {
        Value::Tagged(tagged) => untagged(tagged.value),
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn merged(text: &str) -> Value {
        let mut value = serde_yaml::from_str(text).unwrap();
        merge(&mut value);
        value
    }

    #[test]
    fn own_keys_win_then_the_first_mapping_that_has_the_key() {
        let value = merged(
            "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], x: 3}\nd: {<<: *b, w: 4}\n",
        );
        let expected =
            "a: {x: 1, y: 1}\nb: {y: 2, z: 2}\nc: {x: 3, y: 1, z: 2}\nd: {w: 4, y: 2, z: 2}";
        assert_eq!(value, serde_yaml::from_str::<Value>(expected).unwrap());
    }

    #[test]
    fn what_is_merged_may_merge_itself() {
        let value = merged("a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b, z: 3}\n");
        assert_eq!(value["c"], serde_yaml::from_str::<Value>("{z: 3, y: 2, x: 1}").unwrap());
    }
}
