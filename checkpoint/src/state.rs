//! What a checkpoint holds: tensors by name, and the state of the run in state.json.

use std::collections::BTreeMap;

use ringmaster_manifest::spec::TrainJob;
use ringmaster_proto::v1::Generation;
use serde::{Deserialize, Serialize};

use super::Error;

/// Format of state.json that this build writes and reads.
pub const STATE_VERSION: u64 = 1;

/// What one rank contributes to the checkpoint of a step boundary.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Steps applied.
    pub step: u64,
    /// All parameters; rank 0 only.
    pub model: Option<Vec<NamedTensor>>,
    /// This rank's slice of the optimizer state; may be empty.
    pub optim: Vec<OptimSlice>,
    /// The run; rank 0 only.
    pub state: Option<State>,
    /// Of parameters and optimizer state, equal on replicas that agree.
    pub digest: u64,
}

/// A parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// OpenCLIP's key.
    pub name: String,
    /// Empty for a scalar.
    pub shape: Vec<i64>,
    /// Row-major.
    pub values: Vec<f32>,
}

/// Consecutive elements of one parameter's AdamW moments.
#[derive(Debug, Clone, PartialEq)]
pub struct OptimSlice {
    /// The parameter's name.
    pub name: String,
    /// Index of the first element within the flattened parameter.
    pub start: usize,
    /// First moment.
    pub exp_avg: Vec<f32>,
    /// Second moment, as many elements as the first.
    pub exp_avg_sq: Vec<f32>,
}

/// state.json: everything but tensors that continuing the run needs, and where it came from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// [`STATE_VERSION`].
    pub version: u64,
    /// Steps applied.
    pub step: u64,
    /// Samples consumed.
    pub samples: u64,
    /// Of these, the ones that the job this one resumed from had consumed.
    #[serde(default)]
    pub resumed_samples: u64,
    /// Who wrote it.
    #[serde(with = "super::manifest::generation_text")]
    pub generation: Generation,
    /// Of order and augmentation.
    pub seed: u64,
    /// Ranks that wrote it; any number may load it.
    pub world_size: usize,
    /// What fixes the last bit: the job's first generation chose it, and this is what the generation
    /// that wrote this kept of it.
    pub numeric_plan: serde_json::Value,
    /// The training data.
    pub data: DataState,
    /// The validated manifest.
    pub manifest: TrainJob,
    /// Software that wrote it, by name.
    pub versions: BTreeMap<String, String>,
}

/// Which data the run reads, and where it departed from it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DataState {
    /// Changes with the shards' names and sizes.
    pub fingerprint: String,
    /// Corrupt samples replaced so far, in the order they were met.
    pub substitutions: Vec<Substitution>,
}

/// A slot of the order whose sample was corrupt, and the sample that took its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Substitution {
    /// 0-based global batch.
    pub step: u64,
    /// Row of the global batch.
    pub row: u64,
    /// Index of the corrupt sample in the data set.
    pub sample: u64,
    /// Index of the sample that replaced it.
    pub replacement: u64,
    /// Where the corrupt sample is and what is wrong with it.
    pub reason: String,
}

impl State {
    /// Describes a run before its first step; the caller fills in `step`, `samples`,
    /// `resumed_samples` and `data.substitutions` at each snapshot.
    pub fn describe(
        job: &TrainJob,
        generation: Generation,
        world_size: usize,
        numeric_plan: serde_json::Value,
        fingerprint: String,
        versions: BTreeMap<String, String>,
    ) -> Self {
        Self {
            version: STATE_VERSION,
            step: 0,
            samples: 0,
            resumed_samples: 0,
            generation,
            seed: job.data.seed,
            world_size,
            numeric_plan,
            data: DataState { fingerprint, substitutions: Vec::new() },
            manifest: job.clone(),
            versions,
        }
    }

    /// Returns the text of state.json.
    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a state has string keys and plain values")
    }

    /// Reads state.json; `object` names it in errors.
    ///
    /// # Errors
    /// [`Error::Version`] before anything else is looked at, else [`Error::Json`] with the place.
    pub(crate) fn decode(text: &[u8], object: &str) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Probe {
            version: u64,
        }
        let json = |source| Error::Json { object: object.to_owned(), source };
        let Probe { version } = serde_json::from_slice(text).map_err(json)?;
        if version != STATE_VERSION {
            let (object, supported) = (object.to_owned(), STATE_VERSION);
            return Err(Error::Version { object, found: version, supported });
        }
        serde_json::from_slice(text).map_err(json)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing;

    fn state() -> State {
        let plan = serde_json::json!({"threads": 2});
        State::describe(
            &testing::job(),
            Generation::new(1, 7),
            2,
            plan,
            "fp".to_owned(),
            BTreeMap::new(),
        )
    }

    #[test]
    fn state_json_round_trips() {
        let state = state();
        let back = State::decode(&state.encode(), "state.json").unwrap();
        assert_eq!(back.encode(), state.encode());
        assert_eq!(back.generation, Generation::new(1, 7));
        assert_eq!(back.manifest, state.manifest);
    }

    #[test]
    fn a_truncated_state_json_is_an_error_that_names_the_file_and_the_place() {
        let text = state().encode();
        for len in 0..text.len() {
            let error = State::decode(&text[..len], "/runs/a/state.json").unwrap_err();
            assert_eq!(error.to_string(), "cannot understand /runs/a/state.json");
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains("line") || source.contains("missing"), "{source}");
        }
    }

    #[test]
    fn a_state_of_another_format_version_says_so_before_anything_else() {
        let error = State::decode(br#"{"version": 2, "novelty": []}"#, "s").unwrap_err();
        assert_eq!(
            error.to_string(),
            "s has format version 2, this build reads 1; use a newer build"
        );
    }

    #[test]
    fn a_state_with_a_wrong_field_names_it() {
        let text = String::from_utf8(state().encode()).unwrap().replace("\"g1.7\"", "\"7\"");
        let error = State::decode(text.as_bytes(), "s").unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("not a generation"), "{source}");
    }
}
