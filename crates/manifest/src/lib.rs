//! Manifests: YAML text to a validated [`spec::TrainJob`], or every mistake with file, line and
//! column.
//!
//! Modules in reading order: [`parse()`] (the way through), `text` (from bytes), `limits` (how much a
//! manifest may ask for), `file` (the format as written), `source` (where everything stands), `merge`
//! (merge keys), `check` and `schema` (the document against its schema), `assemble` (defaults, units,
//! places), `invariants` (what must hold between fields), [`spec`] (the validated specification),
//! [`model_config`] (`OpenCLIP`'s model JSON) and [`catalogue`] (models by name), `resume` (what may change
//! between a checkpoint and the job that goes on from it), [`error`] (mistakes and their words).

mod assemble;
pub mod catalogue;
mod check;
pub mod error;
mod file;
mod invariants;
mod limits;
mod merge;
pub mod model_config;
mod nearest;
mod number;
mod parse;
mod resume;
mod schema;
mod source;
pub mod spec;
mod text;
mod urls;
mod words;

pub use catalogue::ModelCatalogue;
pub use error::{Error, Errors};
pub use invariants::MAX_LOGIT_SCALE;
pub use limits::{MAX_COUNT, MAX_JOB_NAME, MAX_NAMES, MAX_TEXT};
pub use parse::{SpecError, from_validated_json, parse, to_json};
pub use resume::{config_difference, resume_conflict};
pub use source::Position;
pub use text::decode;

/// Returns the JSON schema of a manifest, for editors and `ringmaster schema`.
pub fn json_schema() -> schemars::Schema {
    let mut schema = schemars::schema_for!(file::File);
    schema::with_written_numbers(&mut schema);
    schema
}
