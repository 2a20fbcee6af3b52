//! What a stored document is, and of which schema.

use serde::Serialize;
use serde_json::Value;

use super::Error;
use super::upgrade::{self, Step};
use crate::spec::TrainJob;

/// The keys of an envelope.
const KEYS: [&str; 3] = ["kind", "schema", "job"];

/// What may be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A training run.
    TrainJob,
}

impl Kind {
    const ALL: [Self; 1] = [Self::TrainJob];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::TrainJob => "TrainJob",
        }
    }

    /// Returns the schema that this version writes.
    pub(super) fn schema(self) -> u64 {
        self.steps().len() as u64 + 1
    }

    /// Returns what leads from each schema to the next.
    fn steps(self) -> &'static [Step] {
        match self {
            Self::TrainJob => &upgrade::TRAIN_JOB,
        }
    }

    fn of(name: &Value) -> Result<Self, Error> {
        let known = Self::ALL.into_iter().find(|kind| name == kind.name());
        known.ok_or_else(|| Error::UnknownKind {
            found: name.to_string(),
            known: Self::ALL.map(Self::name).join(", "),
        })
    }
}

/// A job on its way out.
#[derive(Serialize)]
pub(super) struct Envelope<'a> {
    kind: &'static str,
    schema: u64,
    job: &'a TrainJob,
}

impl<'a> Envelope<'a> {
    pub(super) fn of(job: &'a TrainJob) -> Self {
        let kind = Kind::TrainJob;
        Self { kind: kind.name(), schema: kind.schema(), job }
    }
}

/// Returns the kind of a stored document, and its content in the newest schema of that.
///
/// # Errors
/// What is no envelope, or of a kind or schema that is not known.
pub(super) fn open(mut document: Value) -> Result<(Kind, Value), Error> {
    let Some(fields) = document.as_object() else {
        return Err(Error::Envelope { reason: "it is no JSON object".to_owned() });
    };
    // Schema 1 was stored as it is.
    let bare = !KEYS.iter().any(|key| fields.contains_key(*key));
    let (kind, schema) = if bare { (Kind::TrainJob, 1) } else { read_head(fields)? };
    let mut content = if bare { document } else { document["job"].take() };
    let first = usize::try_from(schema - 1).unwrap_or(usize::MAX);
    for step in kind.steps().iter().skip(first) {
        step(&mut content);
    }
    Ok((kind, content))
}

/// Returns kind and schema of an envelope.
fn read_head(fields: &serde_json::Map<String, Value>) -> Result<(Kind, u64), Error> {
    if let Some(key) = fields.keys().find(|key| !KEYS.contains(&key.as_str())) {
        let reason = format!("unknown key {key} beside kind, schema and job");
        return Err(Error::Envelope { reason });
    }
    if let Some(key) = KEYS.iter().find(|key| !fields.contains_key(**key)) {
        return Err(Error::Envelope { reason: format!("it has no key {key}") });
    }
    let kind = Kind::of(&fields["kind"])?;
    let known = kind.schema();
    match fields["schema"].as_u64() {
        Some(schema) if (1..=known).contains(&schema) => Ok((kind, schema)),
        Some(found) if found > known => Err(Error::TooNew { kind: kind.name(), found, known }),
        _ => {
            let reason = format!("its schema is {}; expected 1 to {known}", fields["schema"]);
            Err(Error::Envelope { reason })
        }
    }
}
