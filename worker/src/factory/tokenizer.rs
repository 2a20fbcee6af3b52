//! The tokenizer of a model.

use std::path::{Path, PathBuf};

use ringmaster_manifest::model_config::TextConfig;
use ringmaster_weights::hub;

use super::lookup;
use ringmaster_inputs::text::{self, Tokenizer};

/// Why a model has no tokenizer here.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its files are nowhere.
    #[error(
        "the tokenizer {name} is neither a file or folder here nor to be had from the hub; name a \
         folder with its tokenizer.json by spec.model.tokenizer"
    )]
    NotFound {
        name: String,
        #[source]
        source: hub::Error,
    },
    /// The files are no tokenizer.
    #[error(transparent)]
    Text(#[from] text::Error),
}

/// Returns the tokenizer of `text`, as `open_clip.get_tokenizer`: CLIP's own, or what
/// `hf_tokenizer_name` names, with its `tokenizer_kwargs`. `given`, a file, a folder or a repository,
/// goes before that name.
///
/// # Errors
/// Files that are nowhere or no tokenizer.
pub fn get_tokenizer(text: &TextConfig, given: Option<&str>) -> Result<Tokenizer, Error> {
    let length = usize::try_from(text.context_length).unwrap_or(0);
    let kwargs = text.tokenizer_kwargs.unwrap_or_default();
    let tokenizer = match given.or(text.hf_tokenizer_name.as_deref()) {
        None => Tokenizer::clip(length),
        Some(name) => Tokenizer::open(&find(name)?, length, kwargs.strip_sep_token)?,
    };
    Ok(match kwargs.clean {
        None => tokenizer,
        Some(clean) => tokenizer.cleaning(clean.into()),
    })
}

fn find(name: &str) -> Result<PathBuf, Error> {
    if Path::new(name).exists() {
        return Ok(PathBuf::from(name));
    }
    lookup::tokenizer(name).map_err(|source| Error::NotFound { name: name.to_owned(), source })
}
