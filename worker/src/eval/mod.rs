//! Evaluation on held-out image–text pairs: zero-shot classification among all distinct captions
//! and retrieval both ways, sharded over the ranks.
//!
//! Modules in reading order: [`scoring`] (pure functions over similarities), [`scores`] (what an
//! evaluation returns).

pub mod scores;
pub mod scoring;

pub use scores::{Choice, Picture, Prediction, Scores};
pub use scoring::{Ranks, Retrieval};
