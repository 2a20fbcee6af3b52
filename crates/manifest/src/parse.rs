//! The way from text to [`TrainJob`], and from JSON back to it.

use std::path::Path as FilePath;

use serde_yaml::Value;

use crate::catalogue::ModelCatalogue;
use crate::check::{self, Findings};
use crate::error::{Error, Errors, Problem};
use crate::file::File;
use crate::source::{Fault, Path, Position, Source};
use crate::spec::TrainJob;
use crate::{assemble, invariants, merge, text, words};

/// What [`read`] found wrong, and how much more there is of it.
type Mistakes = (Vec<(Position, Problem)>, usize);

/// Reads a manifest.
///
/// `file_name` is what messages call it; relative paths in it start at `base_dir`, usually the
/// manifest's folder. Nothing outside `text` is read: whether the data exists is the caller's
/// question. A file's bytes become text by [`crate::decode`].
///
/// # Errors
/// Every mistake of the file, each with its line and column, its value and what is allowed. What a URL
/// holds of a secret is not repeated.
pub fn parse(
    text: &str,
    file_name: &str,
    base_dir: &FilePath,
    models: &ModelCatalogue,
) -> Result<TrainJob, Errors> {
    read(text::without_mark(text), base_dir, models).map_err(|(problems, left_out)| {
        let place = |(position, problem)| Error { file: file_name.to_owned(), position, problem };
        Errors::new(problems.into_iter().map(place).collect()).and_more(left_out)
    })
}

fn read(text: &str, base_dir: &FilePath, models: &ModelCatalogue) -> Result<TrainJob, Mistakes> {
    text::check_length(text.len()).map_err(|problem| (vec![problem], 0))?;
    let source = Source::parse(text).map_err(|faults| {
        let problems = faults.into_iter().map(|(place, fault)| (place, fault.into()));
        (problems.collect(), 0)
    })?;
    let mut original: Value =
        serde_yaml::from_str(text).map_err(|error| (vec![syntax(&error)], 0))?;
    merge::merge(&mut original);

    // Structure: unknown and missing keys, kinds, ranges. What is wrong is cut out.
    let mut document = original.clone();
    let mut findings = check::check(&mut document, &source);
    let file: File = match serde_yaml::from_value(document) {
        Ok(file) => file,
        Err(error) => {
            // Only reachable if the schema takes something that the types do not.
            findings.problems.push(syntax(&error));
            return Err((findings.problems, findings.left_out));
        }
    };

    // Meaning: what only shows when values are used, then what must hold between fields.
    let (job, found) = assemble::assemble(file, base_dir, models);
    for (field, mut problem) in found {
        fill_in(&mut problem, &field, &original);
        let missing = matches!(problem, Problem::Missing { .. });
        if !(findings.is_broken(&field) || missing && is_given_wrong(&field, &findings)) {
            let place = || if missing { source.key(&field) } else { source.value(&field) };
            findings.add(place, || problem);
            findings.broken.insert(field);
        }
    }
    for violation in invariants::violations(&job) {
        relate(&violation, &original, &source, &mut findings);
    }
    if findings.problems.is_empty() { Ok(job) } else { Err((findings.problems, findings.left_out)) }
}

/// Returns whether what seems to be missing was given under its other name, and cut out.
fn is_given_wrong(field: &Path, findings: &Findings) -> bool {
    let names = written_as("spec.schedule.total_steps").into_iter().map(Path::of);
    let names: Vec<Path> = names.collect();
    names.contains(field) && names.iter().any(|name| findings.is_broken(name))
}

/// Adds what only the document knows.
fn fill_in(problem: &mut Problem, field: &Path, original: &Value) {
    match problem {
        Problem::Conflict { value, .. } => {
            if let Some(raw) = field.find(original) {
                *value = check::shown(raw);
            }
        }
        Problem::Missing { present, .. } => {
            if let Some(Value::Mapping(entries)) = field.parent().find(original) {
                *present = check::present(entries);
            }
        }
        _ => {}
    }
}

/// Places a violation at the field that the file has, unless a field it depends on is already
/// reported.
fn relate(
    violation: &invariants::Violation,
    original: &Value,
    source: &Source,
    findings: &mut Findings,
) {
    let fields: Vec<Path> = std::iter::once(&violation.field)
        .chain(violation.others)
        .flat_map(|field| written_as(field))
        .map(Path::of)
        .collect();
    if fields.iter().any(|field| findings.is_broken(field)) {
        return;
    }
    let blamed = written_as(violation.field)
        .into_iter()
        .map(Path::of)
        .find(|field| field.find(original).is_some_and(|value| !value.is_null()));
    let (field, value) = match &blamed {
        Some(field) => (field.clone(), field.find(original).map(check::shown)),
        None => (Path::of(violation.field), None),
    };
    let problem = || Problem::Conflict {
        field: field.to_string(),
        value: value.unwrap_or_else(|| "left at its default".to_owned()),
        reason: violation.reason.clone(),
    };
    findings.add(|| source.value(&field), problem);
}

/// Returns the names that a field of the specification may have in the file.
fn written_as(field: &'static str) -> Vec<&'static str> {
    match field {
        "spec.schedule.total_steps" => vec!["spec.schedule.steps", "spec.schedule.samples"],
        "spec.schedule.warmup_steps" => vec![field, "spec.schedule.warmup_samples"],
        _ => vec![field],
    }
}

fn syntax(error: &serde_yaml::Error) -> (Position, Problem) {
    let place = error.location().map_or(Position::START, |location| Position {
        line: location.line(),
        column: location.column(),
    });
    let detail = words::without_secrets(&error.to_string()).into_owned();
    (place, Problem::Syntax { detail, hint: None })
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Syntax { detail, hint } => Self::Syntax { detail, hint },
            Fault::Empty => Self::Empty,
            Fault::SeveralDocuments => Self::SeveralDocuments,
            Fault::TooLarge { what, remedy } => Self::TooLarge { what, remedy },
            Fault::DuplicateKey { path, first } => {
                Self::DuplicateKey { field: path.to_string(), first }
            }
            Fault::Merge { path, found } => Self::Merge { field: path.to_string(), found },
            Fault::Number { path, text } => Self::Value {
                field: path.to_string(),
                value: text,
                expected: "a number that fits 64 bits, or text in quotes".to_owned(),
                nearest: Vec::new(),
            },
        }
    }
}

/// A job that arrived as JSON and cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Not the JSON of a [`TrainJob`]; probably written by another version.
    #[error("the job is not in the form this version reads")]
    Json(#[from] serde_json::Error),
    /// Fields that do not go together.
    #[error("{field}: {reason}")]
    Inconsistent {
        /// The field.
        field: &'static str,
        /// Why, and what is allowed.
        reason: String,
    },
}

/// Reads the JSON that [`to_json`] wrote.
///
/// # Errors
/// Text that is not such JSON, or the first pair of fields that do not go together.
pub fn from_validated_json(text: &str) -> Result<TrainJob, SpecError> {
    let job: TrainJob = serde_json::from_str(text)?;
    if let Some((field, reason)) = invariants::out_of_range(&job) {
        return Err(SpecError::Inconsistent { field, reason });
    }
    match invariants::violations(&job).into_iter().next() {
        Some(violation) => {
            Err(SpecError::Inconsistent { field: violation.field, reason: violation.reason })
        }
        None => Ok(job),
    }
}

/// Returns a validated job as the JSON that travels between processes.
pub fn to_json(job: &TrainJob) -> String {
    serde_json::to_string(job).expect("a TrainJob has string keys and finite numbers only")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::spec::WhenBusy;

    const MINIMAL: &str = "
apiVersion: ringmaster/v1
kind: TrainJob
metadata: {name: tiny}
spec:
  model: {name: ViT-B-32}
  data: {train: 'shards/{00..01}.tar'}
  loss: {kind: siglip}
  optimizer: {lr: 1e-3}
  schedule: {samples: 1M, warmup_samples: 100K}
  batch: {global: 256}
  checkpoint: {uri: runs}
";

    fn minimal() -> TrainJob {
        parse(MINIMAL, "tiny.yaml", FilePath::new("/jobs"), &ModelCatalogue::builtin()).unwrap()
    }

    #[test]
    fn defaults_units_and_places_are_filled_in() {
        let job = minimal();
        assert_eq!(job.resources.ranks, 1);
        assert_eq!(job.resources.min_ranks, 1);
        assert_eq!(job.data.train, ["/jobs/shards/00.tar", "/jobs/shards/01.tar"]);
        assert_eq!(job.data.image_key, ["png", "jpg", "jpeg", "webp"]);
        assert_eq!((job.schedule.total_steps, job.schedule.warmup_steps), (3906, 390));
        assert_eq!(job.optimizer.beta2, 0.95);
        assert_eq!(job.loss.logits_budget, 256 << 20);
        assert_eq!(job.checkpoint.uri, "file:///jobs/runs");
        assert_eq!((job.checkpoint.keep_every, job.checkpoint.when_busy), (None, WhenBusy::Skip));
        assert_eq!(job.model.config.vision_cfg.patch_size, 32);
        assert!(job.eval.zero_shot.is_empty());
    }

    #[test]
    fn a_job_survives_the_wire_exactly() {
        let job = minimal();
        assert_eq!(from_validated_json(&to_json(&job)).unwrap(), job);
    }

    #[test]
    fn a_job_that_an_earlier_version_wrote_is_read() {
        let mut json: serde_json::Value = serde_json::from_str(&to_json(&minimal())).unwrap();
        for (part, key) in
            [("checkpoint", "keep_every"), ("checkpoint", "when_busy"), ("model", "pretrained")]
        {
            json[part].as_object_mut().unwrap().remove(key).unwrap();
        }
        assert_eq!(from_validated_json(&json.to_string()).unwrap(), minimal());
    }

    #[test]
    fn json_that_no_manifest_gives_is_refused() {
        let mut job = minimal();
        job.schedule.warmup_steps = job.schedule.total_steps + 1;
        let error = from_validated_json(&to_json(&job)).unwrap_err();
        assert!(error.to_string().starts_with("spec.schedule.warmup_steps: a warm-up of 3907"));
        assert!(from_validated_json("{}").is_err());
    }
}
