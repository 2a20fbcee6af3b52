//! Manifests: YAML text to a validated [`spec::TrainJob`], or every mistake with file, line and
//! column.
//!
//! Modules in reading order: [`parse()`] (the way through), `text` (from bytes), `limits` (how much a
//! manifest may ask for), [`spec`] (the validated specification, with the default, the bounds and the
//! meaning of every field), `spec::written` (where it is written otherwise), `source` (where everything stands),
//! `merge` (merge keys), `check`, `schema` and `defaults` (the document against its schema), `resolve` (units,
//! places, the model), `invariants` (what must hold of every job),
//! `overrides` (values in the place of the text's), [`model_config`] (`OpenCLIP`'s model JSON) and
//! [`catalogue`] (models by name), [`stored`] (jobs in databases, checkpoints and messages, of any version),
//! `advice` (what a person should know), `alone` (data without a job), `resume` (what may change between a checkpoint and the job that goes on from it), [`error`] (mistakes and
//! their words).

mod advice;
mod alone;
pub mod catalogue;
mod check;
mod defaults;
pub mod error;
mod invariants;
mod limits;
mod merge;
pub mod model_config;
mod nearest;
mod number;
mod overrides;
mod parse;
mod position;
mod resolve;
mod resume;
mod schema;
mod source;
pub mod spec;
pub mod stored;
mod text;
mod urls;
mod words;

pub use advice::advice;
pub use alone::{DataWords, data};
pub use catalogue::ModelCatalogue;
pub use error::{Error, Errors};
pub use invariants::MAX_LOGIT_SCALE;
pub use limits::{MAX_COUNT, MAX_JOB_NAME, MAX_NAMES, MAX_TEXT};
pub use overrides::Overrides;
pub use parse::{parse, parse_with};
pub use position::Position;
pub use resume::{config_difference, order_differences, resume_conflict};
pub use stored::{from_validated_json, to_json};
pub use text::decode;

/// Returns the JSON schema of a manifest, for editors and `ringmaster schema`.
pub fn json_schema() -> schemars::Schema {
    let mut schema = schema::derived();
    schema::with_written_numbers(&mut schema);
    schema
}
