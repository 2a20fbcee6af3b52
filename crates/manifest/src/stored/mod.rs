//! Jobs as databases and checkpoints hold them and agents get them: JSON of an envelope,
//! `{"kind": "TrainJob", "schema": 4, "job": {…}}`.
//!
//! Everything stands in the job, defaults included: a default that changes later changes no stored job. The
//! schema counts the shapes that a kind's job has had, and is read from 1 on: `upgrade` leads from each to
//! the next. A key that the shape does not have is refused, so that what a newer version wrote is never half
//! understood.
//!
//! A change of shape is a new schema: a step in `upgrade`, and a job of the schema before among the fixtures
//! of `tests/mistakes/stored`. What has no value (`"exchange": null`) is written out, too: null says that
//! ranks choose when they form a ring, as they know then what they choose by.
//!
//! Modules in reading order: `envelope` (kind and schema), `upgrade`, `keys` (none too many and none too
//! few), `error`.

mod envelope;
mod error;
mod keys;
mod upgrade;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::invariants::{Violation, validate};
use crate::spec::TrainJob;
use envelope::{Envelope, Kind};
use keys::Difference;

pub use error::Error;

/// What refuses unknown keys by itself, and leaves keys without a value out, as `OpenCLIP`'s files do.
const OPEN_CLIPS: &str = "model.config";

/// Returns a job as it is stored and sent.
pub fn to_json(job: &TrainJob) -> String {
    serde_json::to_string(&Envelope::of(job))
        .expect("a TrainJob has string keys and finite numbers only")
}

/// Reads what [`to_json`] wrote, now or in an earlier version.
///
/// # Errors
/// Text that is no such JSON; a kind or a schema that is not known; a key too many or too few; the first field
/// that is out of bounds or does not go with others.
pub fn from_validated_json(text: &str) -> Result<TrainJob, Error> {
    let job = read(serde_json::from_str(text)?)?;
    match validate(&job).into_iter().next() {
        Some(Violation { field, reason, .. }) => {
            Err(Error::Inconsistent { field: field.to_string(), reason })
        }
        None => Ok(job),
    }
}

/// Writes a job as a part of another document, for `serde(with)`.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(job: &TrainJob, serializer: S) -> Result<S::Ok, S::Error> {
    Envelope::of(job).serialize(serializer)
}

/// Reads what [`serialize`] wrote, now or in an earlier version, for `serde(with)`. Bounds are not checked: what
/// is read so has run.
///
/// # Errors
/// As [`from_validated_json`]'s, but for values.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TrainJob, D::Error> {
    read(Value::deserialize(deserializer)?).map_err(|error| match error {
        // Whoever reads the document says what it is.
        Error::Json(source) => D::Error::custom(source),
        other => D::Error::custom(other),
    })
}

/// Returns the job of a document of any known kind and schema.
fn read(document: Value) -> Result<TrainJob, Error> {
    let (kind, job) = envelope::open(document)?;
    match kind {
        Kind::TrainJob => train_job(&job),
    }
}

/// Reads a job of the newest schema.
fn train_job(json: &Value) -> Result<TrainJob, Error> {
    let job = TrainJob::deserialize(json)?;
    let kind = Kind::TrainJob;
    let (kind, schema) = (kind.name(), kind.schema());
    match keys::difference(json, &serde_json::to_value(&job)?, OPEN_CLIPS) {
        Some(Difference::Unknown(key)) => Err(Error::UnknownKey { key, kind, schema }),
        Some(Difference::Missing(key)) => Err(Error::MissingKey { key, kind, schema }),
        None => Ok(job),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::ModelCatalogue;

    const MANIFEST: &str = "
apiVersion: ringmaster/v1
kind: TrainJob
metadata: {name: tiny, labels: {team: vision}}
spec:
  model: {name: ViT-B-32}
  data: {train: a.tar}
  loss: {kind: siglip}
  optimizer: {lr: 1e-3}
  schedule: {steps: 40}
  batch: {global: 64}
  checkpoint: {uri: runs}
  eval: {zero_shot: [{name: one, data: b.tar}]}
";

    fn job() -> TrainJob {
        let models = ModelCatalogue::builtin();
        crate::parse(MANIFEST, "tiny.yaml", Path::new("/jobs"), &models).unwrap()
    }

    fn stored() -> Value {
        serde_json::from_str(&to_json(&job())).unwrap()
    }

    fn refused(document: &Value) -> String {
        from_validated_json(&document.to_string()).unwrap_err().to_string()
    }

    #[test]
    fn a_job_is_stored_in_an_envelope_with_its_kind_and_schema() {
        let stored = stored();
        assert_eq!((&stored["kind"], &stored["schema"]), (&json!("TrainJob"), &json!(4)));
        assert_eq!(stored["job"]["name"], "tiny");
        assert_eq!(from_validated_json(&stored.to_string()).unwrap(), job());
    }

    #[test]
    fn a_job_without_an_envelope_is_of_schema_1() {
        let bare = stored()["job"].take();
        assert_eq!(from_validated_json(&bare.to_string()).unwrap(), job());
    }

    #[test]
    fn a_key_that_the_schema_does_not_have_is_refused_by_its_name_at_any_depth() {
        for (place, key) in [
            ("/job", "novelty"),
            ("/job/optimizer", "optimizer.novelty"),
            ("/job/data/aug_cfg", "data.aug_cfg.novelty"),
            ("/job/eval/zero_shot/0", "eval.zero_shot[0].novelty"),
        ] {
            for value in [json!(1), Value::Null] {
                let mut changed = stored();
                let section = changed.pointer_mut(place).unwrap().as_object_mut().unwrap();
                section.insert("novelty".to_owned(), value);
                let said = refused(&changed);
                assert!(said.starts_with(&format!("unknown key {key}: ")), "{said}");
                assert!(said.contains("schema 4 of TrainJob"), "{said}");
            }
        }
        let mut changed = stored();
        changed["job"]["model"]["config"]["novelty"] = json!(1);
        assert_eq!(refused(&changed), "the job is not in the form this version reads");
        changed = stored();
        changed["novelty"] = json!(1);
        let said = refused(&changed);
        assert!(said.contains("novelty") && said.contains("kind, schema and job"), "{said}");
    }

    #[test]
    fn labels_are_keys_of_peoples_own() {
        let mut changed = stored();
        changed["job"]["labels"]["novelty"] = json!("x");
        let read = from_validated_json(&changed.to_string()).unwrap();
        assert_eq!(read.labels["novelty"], "x");
    }

    /// A default of today must not become the value of a job that does not say.
    #[test]
    fn a_key_that_is_left_out_is_refused_by_its_name() {
        for (place, key) in [
            ("/job/checkpoint", "when_busy"),
            ("/job/checkpoint", "stop_within"),
            ("/job/optimizer", "grad_clip_norm"),
            ("/job/model/preprocess", "resize_mode"),
        ] {
            let mut changed = stored();
            changed.pointer_mut(place).unwrap().as_object_mut().unwrap().shift_remove(key);
            let said = refused(&changed);
            let section = place.trim_start_matches("/job/").replace('/', ".");
            assert!(said.starts_with(&format!("the key {section}.{key} is missing")), "{said}");
        }
    }

    #[test]
    fn a_newer_schema_and_another_kind_are_refused_with_what_to_do() {
        let mut newer = stored();
        newer["schema"] = json!(5);
        newer["job"] = json!({"novel": "shape"});
        let said = refused(&newer);
        assert_eq!(
            said,
            "the TrainJob is of schema 5, and this ringmaster reads 1 to 4; upgrade ringmaster"
        );
        let mut other = stored();
        other["kind"] = json!("EvalJob");
        let said = refused(&other);
        assert!(
            said.starts_with("unknown kind \"EvalJob\"; this ringmaster reads TrainJob"),
            "{said}"
        );
    }

    #[test]
    fn an_envelope_that_is_none_is_refused_without_a_panic() {
        for odd in [
            json!([]),
            json!({}),
            json!({"kind": "TrainJob"}),
            json!({"kind": "TrainJob", "schema": 0, "job": {}}),
            json!({"kind": "TrainJob", "schema": "2", "job": {}}),
            json!({"kind": "TrainJob", "schema": 1, "job": 7}),
            json!({"kind": "TrainJob", "schema": 1, "job": {"model": 1, "loss": []}}),
            json!({"kind": 7, "schema": 1, "job": {}}),
        ] {
            assert!(from_validated_json(&odd.to_string()).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_job_inside_of_another_document_is_read_with_or_without_an_envelope() {
        #[derive(Serialize, Deserialize)]
        struct State {
            #[serde(with = "super")]
            manifest: TrainJob,
        }
        let written = serde_json::to_value(State { manifest: job() }).unwrap();
        assert_eq!(written["manifest"], stored());
        let bare = json!({"manifest": stored()["job"].take()});
        for document in [written, bare] {
            let read: State = serde_json::from_value(document).unwrap();
            assert_eq!(read.manifest, job());
        }
    }
}
