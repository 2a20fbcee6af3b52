//! Manifests: YAML text to a validated [`spec::TrainJob`], or every mistake with file, line and
//! column.
//!
//! Modules in reading order: [`parse()`] (the way through), `file` (the format as written),
//! `source` (where everything stands), `check` (the document against its schema), `assemble`
//! (defaults, units, places), `invariants` (what must hold between fields), [`spec`] (the validated
//! specification), [`model_config`] (`OpenCLIP`'s model JSON) and [`catalogue`] (models by name),
//! `resume` (what may change between a checkpoint and the job that goes on from it), [`error`]
//! (mistakes and their words).

mod assemble;
pub mod catalogue;
mod check;
pub mod error;
mod file;
mod invariants;
pub mod model_config;
mod nearest;
mod number;
mod parse;
mod resume;
mod source;
pub mod spec;
mod urls;

pub use catalogue::ModelCatalogue;
pub use error::{Error, Errors};
pub use invariants::MAX_LOGIT_SCALE;
pub use parse::{SpecError, from_validated_json, parse, to_json};
pub use resume::{config_difference, resume_conflict};
pub use source::Position;

/// Returns the JSON schema of a manifest, for editors and `ringmaster schema`.
pub fn json_schema() -> schemars::Schema {
    schemars::schema_for!(file::File)
}
