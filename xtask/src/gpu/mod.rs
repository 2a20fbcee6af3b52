//! The claims about GPUs, put to the test where there is one.
//!
//! [`check`] runs the trials, [`machine`] says what they run on, [`report`] writes down what they showed, and
//! [`bundle`] packs them for a machine without this workspace.

pub(crate) mod bundle;
pub(crate) mod check;
mod machine;
mod report;
