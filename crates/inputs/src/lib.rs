//! What a model reads: pictures and captions, from bytes to what a tensor is filled with.
//!
//! Nothing here knows of training or links libtorch. What OpenCLIP has in `transform.py` is
//! [`mod@image`], what it has in `tokenizer.py` is [`text`]. [`rng`] is the counter-based randomness that
//! augmentation draws from, [`panics`] keeps a decoder that panics from ending the process.

pub mod image;
pub mod panics;
pub mod rng;
pub mod text;
