//! Training, as `open_clip_train` does it.
//!
//! Modules in reading order: [`run`](mod@run) (a rank's life, generation by generation), `steps` (the loop:
//! data, step, apply, what follows), `step` (a batch to reduced gradients), `towers` (this rank's rows
//! through the model and back), `pixels` (what the image tower sees of them), `loss_choice` (the loss that the manifest asks for), `context` (what every
//! step is given) and `after_step` (checkpoints, evaluations, the end).

mod after_step;
mod context;
mod loss_choice;
mod pixels;
pub mod run;
mod step;
mod steps;
mod towers;

pub use run::run;
