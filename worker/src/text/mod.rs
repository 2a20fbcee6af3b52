//! From a caption to token ids.
//!
//! [`Tokenizer`] is CLIP's byte-pair encoding as OpenCLIP's `SimpleTokenizer` runs it; [`clean`]
//! is what it does to a caption first. Nothing here touches libtorch, so the loader's threads may
//! call it.

mod bytes;
pub mod clean;
mod tokenizer;

pub use tokenizer::{END_OF_TEXT, START_OF_TEXT, Tokenizer, VOCAB_SIZE};
