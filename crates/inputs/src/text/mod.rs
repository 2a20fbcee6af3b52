//! From a caption to token ids.
//!
//! [`Tokenizer`] is one of OpenCLIP's: CLIP's byte-pair encoding (`clip`), a `tokenizer.json` of
//! Hugging Face's (`hugging_face`) or a SentencePiece model (`sentencepiece`), after the cleaning its
//! model asks for ([`clean`], with HTML's references in `entities` and wrong character sets in `mojibake`;
//! plain ASCII takes the short way of `ascii`, and a thread remembers its words in `cache`). Nothing here
//! touches libtorch, so the loader's threads may call it.

mod ascii;
mod bytes;
mod cache;
pub mod clean;
mod clip;
mod entities;
mod hugging_face;
mod mojibake;
mod sentencepiece;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod parity_tests;

use std::path::{Path, PathBuf};

pub use clean::Clean;
use clip::ClipBpe;
pub use clip::{END_OF_TEXT, START_OF_TEXT, VOCAB_SIZE};
use hugging_face::HfTokenizer;

/// Turns captions into token ids; made once and shared between threads.
#[derive(Debug)]
pub struct Tokenizer {
    context_length: usize,
    clean: Clean,
    family: Family,
}

#[derive(Debug)]
enum Family {
    Clip(Box<ClipBpe>),
    HuggingFace(Box<HfTokenizer>),
}

/// Why there is no tokenizer.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A file is no tokenizer.
    #[error("{} is no usable tokenizer: {reason}", path.display())]
    Format {
        path: PathBuf,
        /// What is wrong, and what was expected.
        reason: String,
    },
    /// A folder has no tokenizer.
    #[error(
        "{} holds no tokenizer; expected tokenizer.json, or spiece.model, sentencepiece.model or \
         tokenizer.model",
        folder.display()
    )]
    Missing { folder: PathBuf },
}

/// Files of a tokenizer in a folder, in the order they are looked for.
const FILES: [&str; 4] =
    ["tokenizer.json", "spiece.model", "sentencepiece.model", "tokenizer.model"];

impl Tokenizer {
    /// Builds CLIP's tokenizer for captions of `context_length` tokens, start and end included:
    /// OpenCLIP's `SimpleTokenizer`.
    pub fn clip(context_length: usize) -> Self {
        Self { context_length, clean: Clean::Lower, family: Family::Clip(Box::new(ClipBpe::new())) }
    }

    /// Reads a tokenizer from a `tokenizer.json`, a SentencePiece model, or a folder with either:
    /// OpenCLIP's `HFTokenizer`. With `strip_sep_token` separators become zeros, as CLIPA's captions
    /// need.
    ///
    /// # Errors
    /// A file that cannot be read or is no tokenizer, and one without padding.
    pub fn open(path: &Path, context_length: usize, strip_sep_token: bool) -> Result<Self, Error> {
        let file = if path.is_dir() {
            FILES
                .iter()
                .map(|name| path.join(name))
                .find(|file| file.is_file())
                .ok_or_else(|| Error::Missing { folder: path.to_owned() })?
        } else {
            path.to_owned()
        };
        let tokenizer = HfTokenizer::open(&file, context_length, strip_sep_token)?;
        let family = Family::HuggingFace(Box::new(tokenizer));
        Ok(Self { context_length, clean: Clean::Whitespace, family })
    }

    /// Returns the tokenizer that cleans captions another way.
    #[must_use]
    pub fn cleaning(self, clean: Clean) -> Self {
        Self { clean, ..self }
    }

    /// Returns the number of ids [`Self::encode`] gives.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// Returns the ids of `caption`, as many as [`Self::context_length`]: equal to OpenCLIP's
    /// tokenizers.
    pub fn encode(&self, caption: &str) -> Vec<i64> {
        let cleaned = self.clean.apply(caption);
        match &self.family {
            Family::Clip(bpe) => bpe.encode(&cleaned, self.context_length),
            Family::HuggingFace(tokenizer) => tokenizer.encode(&cleaned),
        }
    }
}
