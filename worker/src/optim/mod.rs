//! AdamW on flat buffers, gradient clipping and the learning-rate schedule.
//!
//! [`adamw`] updates slices in place, [`norm`] measures a gradient, [`schedule`] gives the learning rate of
//! a step.

pub mod adamw;
pub mod norm;
pub mod schedule;
