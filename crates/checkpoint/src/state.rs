//! What a checkpoint holds: tensors by name, and the state of the run in state.json.

use std::collections::BTreeMap;

use std::sync::Arc;

use bytes::Bytes;
use ringmaster_manifest::spec::TrainJob;
use ringmaster_proto::v1::Generation;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Error;
use super::ledger::Ledger;
use super::tensors::Part;
use super::upgrade;

/// Format of state.json that this build writes. It reads every version from 1 on: `upgrade` leads from each to the
/// next.
///
/// 1: step, samples, seed, plan, data, manifest, versions. 2: says beside these where data, randomness
/// and schedule go on; for version 1 that follows from the step. 3: the job is in an envelope, with every key
/// written out. 4: names the version of the data order, lists corrupt samples instead of replacements, and counts
/// updates and samples beside the steps.
pub const STATE_VERSION: u64 = 4;

const _: () = assert!(STATE_VERSION == upgrade::NEWEST);

/// What one rank contributes to the checkpoint of a step boundary.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Steps applied.
    pub step: u64,
    /// Which tensors `bytes` holds.
    pub layout: Arc<Layout>,
    /// Their values, little-endian.
    pub bytes: Bytes,
    /// The run; rank 0 only.
    pub state: Option<State>,
    /// Of parameters and optimizer state, equal on replicas that agree.
    pub digest: u64,
}

/// Which tensors lie where in a rank's snapshots; the same all through a generation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// All parameters, by OpenCLIP's keys; rank 0 only, empty elsewhere.
    pub model: Vec<Part>,
    /// This rank's slice of the optimizer state, by [`Part::moment`]; may be empty.
    pub optim: Vec<Part>,
    /// Length of a snapshot in bytes.
    pub len: usize,
}

/// state.json: everything but tensors that continuing the run needs, and where it came from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// [`STATE_VERSION`].
    pub version: u64,
    /// Steps applied.
    pub step: u64,
    /// When the run was at this step, in Unix milliseconds; states of earlier releases do not say. What
    /// the store says of its objects tells when they were written, which a copy of them is later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved_at_ms: Option<i64>,
    /// Samples consumed.
    pub samples: u64,
    /// Of these, the ones that are not steps of this job's batch: what a run with another batch left over.
    pub samples_before: u64,
    /// Updates of the optimizer: other than `step` after a run with another batch.
    pub updates: u64,
    /// Of `samples`, the ones that the job this one resumed from had consumed.
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
    /// Where every stream of random numbers goes on.
    pub rng: RngState,
    /// Where the learning-rate schedule goes on.
    pub schedule: ScheduleState,
    /// What was trained, in its envelope.
    #[serde(with = "ringmaster_manifest::stored")]
    pub manifest: TrainJob,
    /// Software that wrote it, by name.
    pub versions: BTreeMap<String, String>,
}

/// Which data the run reads, and where it departed from it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DataState {
    /// Version of the order of samples.
    pub order: u32,
    /// Of all that decides which samples are read in which order.
    pub fingerprint: String,
    /// What is read next.
    pub cursor: Cursor,
    /// Corrupt samples met so far, and how often one was replaced.
    pub ledger: Ledger,
    /// Samples of the run that no step takes, as [first, one past the last]. States of before there were any do not
    /// say.
    #[serde(default)]
    pub left_out: Vec<[u64; 2]>,
}

/// A place in the order of samples, which is a function of (seed, data set, place) alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// 0-based global batch that the next step takes.
    pub next_batch: u64,
    /// Position of its first sample, over all epochs.
    pub next_sample: u64,
}

/// Randomness is counter-based: a draw is a function of the seed and of what it is for, so a stream's
/// whole state is the counter it goes on with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {
    /// Of every stream.
    pub seed: u64,
    /// Order of samples: next global batch.
    pub order: u64,
    /// Augmentation: next position in the order.
    pub augmentation: u64,
    /// Patch dropout: next step.
    pub dropout: u64,
}

/// Where the learning-rate schedule stands; its shape is in the manifest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleState {
    /// Steps behind it.
    pub step: u64,
    /// Steps in all.
    pub total_steps: u64,
}

impl State {
    /// Describes a run before its first step; each snapshot calls [`State::advance_to`] and fills in
    /// `saved_at_ms`, `resumed_samples` and `data.ledger`.
    pub fn describe(
        job: &TrainJob,
        generation: Generation,
        world_size: usize,
        numeric_plan: serde_json::Value,
        data: DataState,
        versions: BTreeMap<String, String>,
    ) -> Self {
        let mut state = Self {
            version: STATE_VERSION,
            step: 0,
            saved_at_ms: None,
            samples: 0,
            samples_before: 0,
            updates: 0,
            resumed_samples: 0,
            generation,
            seed: job.data.seed,
            world_size,
            numeric_plan,
            data,
            rng: RngState::default(),
            schedule: ScheduleState::default(),
            manifest: job.clone(),
            versions,
        };
        state.advance_to(0);
        state
    }

    /// Sets everything that follows from the number of steps applied, and from `samples_before`.
    pub fn advance_to(&mut self, step: u64) {
        let samples = self.manifest.samples(step).saturating_add(self.samples_before);
        self.step = step;
        self.samples = samples;
        self.data.cursor = Cursor { next_batch: step, next_sample: samples };
        self.rng = RngState { seed: self.seed, order: step, augmentation: samples, dropout: step };
        let total_steps = self.manifest.schedule.total_steps;
        self.schedule = ScheduleState { step, total_steps };
    }

    /// Returns the text of state.json.
    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a state has string keys and plain values")
    }

    /// Reads state.json of any version; `object` names it in errors.
    ///
    /// # Errors
    /// [`Error::Version`] before anything else is looked at, [`Error::Json`] with the place, or
    /// [`Error::Damaged`] where the parts of it contradict each other.
    pub(crate) fn decode(text: &[u8], object: &str) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Probe {
            version: u64,
        }
        let json = |source| Error::Json { object: object.to_owned(), source };
        let Probe { version } = serde_json::from_slice(text).map_err(json)?;
        if !(1..=STATE_VERSION).contains(&version) {
            let (object, supported) = (object.to_owned(), STATE_VERSION);
            return Err(Error::Version { object, found: version, supported });
        }
        let mut document: Value = serde_json::from_slice(text).map_err(json)?;
        upgrade::upgrade(&mut document, version);
        let state: Self = serde_json::from_value(document).map_err(json)?;
        match state.contradiction() {
            Some(reason) => Err(Error::Damaged { object: object.to_owned(), reason }),
            None => Ok(state),
        }
    }

    /// Returns which part of the state does not belong to its step, if any: going on from there
    /// would repeat or skip samples.
    fn contradiction(&self) -> Option<String> {
        let mut expected = self.clone();
        expected.advance_to(self.step);
        let step = self.step;
        let differs = |what: &str, found: String, wanted: String| {
            (found != wanted).then(|| format!("{what} is {found}, step {step} has {wanted}"))
        };
        differs("samples", self.samples.to_string(), expected.samples.to_string())
            .or_else(|| {
                let [found, wanted] = [self, &expected].map(|s| format!("{:?}", s.data.cursor));
                differs("data.cursor", found, wanted)
            })
            .or_else(|| {
                let [found, wanted] = [self, &expected].map(|s| format!("{:?}", s.rng));
                differs("rng", found, wanted)
            })
            .or_else(|| {
                let [found, wanted] = [self, &expected].map(|s| format!("{:?}", s.schedule));
                differs("schedule", found, wanted)
            })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tests::testing;

    fn state() -> State {
        let plan = serde_json::json!({"threads": 2});
        State::describe(
            &testing::job(),
            Generation::new(1, 7),
            2,
            plan,
            DataState { fingerprint: "fp".to_owned(), ..DataState::default() },
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
        let error = State::decode(br#"{"version": 5, "novelty": []}"#, "s").unwrap_err();
        assert_eq!(
            error.to_string(),
            "s has format version 5, this build reads 1 to 4; use a newer build"
        );
    }

    #[test]
    fn a_state_says_where_everything_goes_on_and_may_not_contradict_itself() {
        let mut state = state();
        state.advance_to(12);
        assert_eq!(state.data.cursor, Cursor { next_batch: 12, next_sample: 12 * 64 });
        assert_eq!(state.rng.augmentation, 12 * 64);
        assert!(State::decode(&state.encode(), "s").is_ok());
        let cases: [fn(&mut State); 4] = [
            |s| s.samples += 1,
            |s| s.data.cursor.next_batch = 13,
            |s| s.rng.dropout = 11,
            |s| s.schedule.step = 0,
        ];
        for (change, what) in cases.into_iter().zip(["samples", "data.cursor", "rng", "schedule"]) {
            let mut changed = state.clone();
            change(&mut changed);
            let error = State::decode(&changed.encode(), "s").unwrap_err().to_string();
            assert!(error.starts_with(&format!("s is damaged: {what} is ")), "{error}");
        }
    }

    /// `step × batch` overflowed, in whoever read the file.
    #[test]
    fn a_state_of_a_step_beyond_all_bounds_is_read_or_refused_without_a_panic() {
        let mut state = state();
        state.advance_to(u64::MAX);
        assert_eq!(state.samples, u64::MAX);
        assert!(State::decode(&state.encode(), "s").is_ok());
        let mut first: Value = serde_json::from_slice(&state.encode()).unwrap();
        first["version"] = 1.into();
        first["manifest"] = first["manifest"]["job"].take();
        let first = State::decode(first.to_string().as_bytes(), "s").unwrap();
        assert_eq!((first.version, first.samples), (STATE_VERSION, u64::MAX));
        state.samples = 5;
        assert!(State::decode(&state.encode(), "s").unwrap_err().to_string().contains("damaged"));
    }

    /// A run goes on as it began, and not with a default of today.
    #[test]
    fn the_job_in_a_state_has_every_key_and_none_that_is_unknown() {
        let written: Value = serde_json::from_slice(&state().encode()).unwrap();
        assert_eq!(written["manifest"]["kind"], "TrainJob");
        for (change, said) in [
            ("novelty", "unknown key optimizer.novelty"),
            ("beta2", "missing field `beta2`"),
            ("grad_clip_norm", "the key optimizer.grad_clip_norm is missing"),
        ] {
            let mut changed = written.clone();
            let section = changed["manifest"]["job"]["optimizer"].as_object_mut().unwrap();
            if section.shift_remove(change).is_none() {
                section.insert(change.to_owned(), 1.into());
            }
            let error = State::decode(changed.to_string().as_bytes(), "s").unwrap_err();
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains(said), "{source}");
        }
    }

    #[test]
    fn a_state_with_a_wrong_field_names_it() {
        let text = String::from_utf8(state().encode()).unwrap().replace("\"g1.7\"", "\"7\"");
        let error = State::decode(text.as_bytes(), "s").unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("not a generation"), "{source}");
    }
}
