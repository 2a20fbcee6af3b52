//! From the state.json of one version to the next one's, in JSON: types of the past are not kept.
//!
//! A change of shape is a new version: a step here, and a checkpoint of the version before among the fixtures.
//! What the run was told, its job, has upgrades of its own: `ringmaster_manifest::stored`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Brings the JSON of one version into the shape of the next. What it does not know it leaves alone: whoever
/// reads the result refuses it.
type Step = fn(&mut Value);

/// The first leads from version 1 to 2. A step is never edited once released.
const STEPS: [Step; 3] = [say_where_it_goes_on, put_the_job_into_an_envelope, list_corrupt_samples];

/// The version that the steps lead to.
pub(crate) const NEWEST: u64 = STEPS.len() as u64 + 1;

/// Brings a state of a known version into the newest one's shape.
pub(crate) fn upgrade(state: &mut Value, version: u64) {
    let first = usize::try_from(version.saturating_sub(1)).unwrap_or(usize::MAX);
    for step in STEPS.iter().skip(first) {
        step(state);
    }
    if let Some(fields) = state.as_object_mut() {
        fields.insert("version".to_owned(), json!(NEWEST));
    }
}

/// From 1 to 2: where data, randomness and schedule go on follows from the step.
fn say_where_it_goes_on(state: &mut Value) {
    let number = |place: &str| state.pointer(place).and_then(Value::as_u64);
    let places = ["/step", "/seed", "/manifest/batch/global", "/manifest/schedule/total_steps"];
    let [Some(step), Some(seed), Some(batch), Some(total_steps)] = places.map(number) else {
        return;
    };
    let samples = step.saturating_mul(batch);
    state["samples"] = json!(samples);
    state["rng"] = json!({"seed": seed, "order": step, "augmentation": samples, "dropout": step});
    state["schedule"] = json!({"step": step, "total_steps": total_steps});
    if let Some(data) = state.get_mut("data").and_then(Value::as_object_mut) {
        data.insert("cursor".to_owned(), json!({"next_batch": step, "next_sample": samples}));
    }
}

/// From 2 to 3: the job says of which kind and schema it is. Until then it was of the first.
fn put_the_job_into_an_envelope(state: &mut Value) {
    if let Some(manifest) = state.get_mut("manifest") {
        let job = manifest.take();
        *manifest = json!({"kind": "TrainJob", "schema": 1, "job": job});
    }
}

/// From 3 to 4: there was one source in one order, every step was an update and a batch of the job's, and each
/// replacement was listed.
fn list_corrupt_samples(state: &mut Value) {
    let Some(fields) = state.as_object_mut() else { return };
    let updates = fields.get("step").cloned().unwrap_or_default();
    fields.insert("updates".to_owned(), updates);
    fields.insert("samples_before".to_owned(), json!(0));
    let Some(data) = fields.get_mut("data").and_then(Value::as_object_mut) else { return };
    let substitutions = data.shift_remove("substitutions").unwrap_or_default();
    let substitutions = substitutions.as_array().map_or(&[][..], Vec::as_slice);
    let by_sample: BTreeMap<u64, &Value> = substitutions
        .iter()
        .rev()
        .filter_map(|one| Some((one["sample"].as_u64()?, &one["reason"])))
        .collect();
    let corrupt = by_sample.into_iter();
    let corrupt =
        corrupt.map(|(index, reason)| json!({"source": 0, "index": index, "reason": reason}));
    let corrupt: Vec<Value> = corrupt.collect();
    data.insert("ledger".to_owned(), json!({"replaced": substitutions.len(), "corrupt": corrupt}));
    data.insert("order".to_owned(), json!(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_state_is_left_alone() {
        for odd in [json!([1]), json!("x"), json!({"step": "x", "manifest": 7})] {
            let mut state = odd.clone();
            upgrade(&mut state, 1);
            upgrade(&mut state, u64::MAX);
            assert_eq!(state.get("step"), odd.get("step"));
        }
    }
}
