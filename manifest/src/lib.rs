//! Manifests: YAML text to a validated [`spec::TrainJob`], or an error with file, line and column.
//!
//! Modules in reading order: [`spec`] (the validated specification), [`model_config`] (OpenCLIP's
//! model JSON).

pub mod model_config;
pub mod spec;
