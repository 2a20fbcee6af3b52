//! Weights of CLIP models in the formats they come in, without libtorch and without running code.
//!
//! [`Weights::open`] finds the format by a file's content and gives its tensors by name:
//! safetensors, PyTorch's pickles (zip archives since 1.6, the format before, TorchScript archives
//! such as OpenAI's) and numpy's `.npz`. Files are mapped into memory, so that only what is read is
//! loaded. Modules in reading order: `map` (a file in memory), [`tensor`] (types, views and how they
//! become f32), [`pickle`] (a machine that builds data and calls nothing), `torch`, `npz` and
//! `safe` (the formats), [`parts`] (several files and their index), [`mod@file`] (which of them, and what
//! stands in it), [`found`] (what a file is that is none of them), `jax` (names and layouts of Google's
//! checkpoints), `training` (the optimizer in OpenCLIP's), [`hub`] (where weights lie, and fetching them).

mod error;
mod ffi;
pub mod file;
pub mod found;
pub mod hub;
mod jax;
mod map;
mod npz;
pub mod pickle;
mod safe;
pub mod tensor;
mod torch;
mod training;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use error::Error;
pub use file::parts::{self, PartIndex};
pub use file::{Format, Weights};
pub use jax::{big_vision, vision_transformer};
pub use tensor::{DType, Tensor};
pub use training::{Group, Moments, Training, training};
