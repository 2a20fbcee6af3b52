//! Hugging Face's tokenizers, as OpenCLIP's `HFTokenizer` uses them: special tokens as the file
//! says, cut to the context, filled up on the right.

use std::path::Path;

use ringmaster_weights::found;
use serde_json::Value;
use tokenizers::utils::truncation::{TruncationDirection, TruncationParams, TruncationStrategy};

use super::{Error, sentencepiece};

/// A tokenizer of any kind that `tokenizer.json` describes.
#[derive(Debug)]
pub(super) struct HfTokenizer {
    tokenizer: tokenizers::Tokenizer,
    context_length: usize,
    pad_id: i64,
    /// Id that becomes zero.
    stripped: Option<i64>,
}

/// Files beside a `tokenizer.json` that name its special tokens.
const SPECIAL: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];
/// A character of one dictionary, which hardly a vocabulary has.
const NOBODYS: &str = "\u{2a6d6}";
/// What transformers' tokenizer classes pad with where no file says: BERT's, and RoBERTa's and T5's.
const PADS: [&str; 2] = ["[PAD]", "<pad>"];
/// The same for separators.
const SEPARATORS: [&str; 2] = ["[SEP]", "</s>"];

impl HfTokenizer {
    pub(super) fn open(
        path: &Path,
        context_length: usize,
        strip_sep_token: bool,
    ) -> Result<Self, Error> {
        let format = |reason: String| Error::Format { path: path.to_owned(), reason };
        let bytes =
            std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        if let Some(what) = found::described(&bytes[..bytes.len().min(found::BEGINNING)]) {
            return Err(format(format!("it is {what}")));
        }
        let (mut tokenizer, pad) = if bytes.first() == Some(&b'{') {
            let tokenizer = tokenizers::Tokenizer::from_bytes(&bytes)
                .map_err(|error| format(error.to_string()))?;
            (tokenizer, None)
        } else {
            sentencepiece::read(&bytes)
                .map(|(tokenizer, pad)| (tokenizer, Some(pad)))
                .map_err(format)?
        };
        // A tokenizer.json may fix padding itself.
        let own = tokenizer.get_padding().map(|padding| i64::from(padding.pad_id));
        let pad_id = special_token(path, "pad_token", &tokenizer)
            .or(own)
            .or(pad)
            .or_else(|| usual_token(&PADS, &tokenizer))
            .ok_or_else(|| {
                format(format!(
                    "it has no pad_token; expected one in {} beside it, padding inside it, or {} among \
                     its special tokens",
                    SPECIAL.join(" or "),
                    PADS.join(" or ")
                ))
            })?;
        let separator = special_token(path, "sep_token", &tokenizer)
            .or_else(|| usual_token(&SEPARATORS, &tokenizer));
        let stripped = match (strip_sep_token, separator) {
            (false, _) => None,
            (true, Some(id)) => Some(id),
            (true, None) => {
                return Err(format("strip_sep_token is asked for, and it has no sep_token".into()));
            }
        };
        tokenizer.with_padding(None);
        let truncation = TruncationParams {
            max_length: context_length,
            strategy: TruncationStrategy::LongestFirst,
            direction: TruncationDirection::Right,
            stride: 0,
        };
        tokenizer.with_truncation(Some(truncation)).map_err(|error| format(error.to_string()))?;
        // A vocabulary without a token for what it does not know fails when it meets that.
        tokenizer.encode_fast(NOBODYS, true).map_err(|error| {
            format(format!("it has nothing for a character that it does not know: {error}"))
        })?;
        Ok(Self { tokenizer, context_length, pad_id, stripped })
    }

    /// Returns the ids of `cleaned` text.
    pub(super) fn encode(&self, cleaned: &str) -> Vec<i64> {
        // Opening made sure that it knows what to do with any text.
        let encoding = self.tokenizer.encode_fast(cleaned, true).ok();
        let ids = encoding.as_ref().map_or(&[][..], |encoding| encoding.get_ids());
        let strip = |id: u32| Some(i64::from(id)).filter(|id| self.stripped != Some(*id));
        let mut ids: Vec<i64> = ids.iter().map(|id| strip(*id).unwrap_or(0)).collect();
        ids.resize(self.context_length, self.pad_id);
        ids
    }
}

/// Returns the id of a special token that a file beside the tokenizer names.
fn special_token(path: &Path, name: &str, tokenizer: &tokenizers::Tokenizer) -> Option<i64> {
    SPECIAL.iter().find_map(|file| {
        let text = std::fs::read_to_string(path.with_file_name(file)).ok()?;
        let document: Value = serde_json::from_str(&text).ok()?;
        let token = match document.get(name)? {
            Value::String(token) => token.clone(),
            // `AddedToken`, written out.
            described => described.get("content")?.as_str()?.to_owned(),
        };
        tokenizer.token_to_id(&token).map(i64::from)
    })
}

/// Returns the id of the first of `names` that is one of the tokenizer's special tokens.
fn usual_token(names: &[&str], tokenizer: &tokenizers::Tokenizer) -> Option<i64> {
    let added = tokenizer.get_added_tokens_decoder();
    names.iter().find_map(|name| {
        let token = added.iter().find(|(_, token)| token.special && token.content == *name);
        token.map(|(id, _)| i64::from(*id))
    })
}
