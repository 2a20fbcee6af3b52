//! One sample, looked at: all that is said of it later, without its bytes.

use ringmaster_data::{Flaw, RawSample};
use ringmaster_inputs::image::decode;
use ringmaster_inputs::image::formats::Format;
use ringmaster_inputs::text::Tokenizer;
use ringmaster_words::chain;

use crate::picture::{self, Digest, Likeness};
use crate::walk::Read;
use crate::{Input, Meter};

/// Tokens that are counted at most.
pub(crate) const MOST_TOKENS: usize = 1024;

/// What there is to say of a sample.
#[derive(Debug)]
pub(crate) struct Looked {
    pub(crate) index: u64,
    pub(crate) format: Format,
    /// Of the encoded image.
    pub(crate) bytes: u64,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) digest: Digest,
    pub(crate) likeness: Option<Likeness>,
    pub(crate) captions: Vec<Caption>,
}

/// A caption and how long it is.
#[derive(Debug)]
pub(crate) struct Caption {
    pub(crate) text: String,
    pub(crate) characters: u64,
    /// Start and end included.
    pub(crate) tokens: u64,
}

/// Returns a tokenizer that counts, rather than cuts at a model's context length.
pub(crate) fn counting_tokenizer() -> Tokenizer {
    Tokenizer::clip(MOST_TOKENS)
}

/// Looks at a sample; counts it in `meter` if it cannot be used.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn look(
    input: &Input,
    tokenizer: &Tokenizer,
    meter: &Meter,
    read: Read,
) -> Result<Looked, Flaw> {
    let looked = try_look(input, tokenizer, read);
    if looked.is_err() {
        meter.count_bad();
    }
    looked
}

fn try_look(input: &Input, tokenizer: &Tokenizer, (index, read): Read) -> Result<Looked, Flaw> {
    let RawSample { key, image, captions } = read?;
    let flaw = |reason| input.flaw(index, &key, reason);
    let pixels = decode(&image).map_err(|error| flaw(chain(&error)))?;
    let format =
        Format::of(&image).ok_or_else(|| flaw("an image of no known format".to_owned()))?;
    let captions = captions.into_iter().map(|text| Caption {
        characters: text.chars().count() as u64,
        tokens: tokens(tokenizer, &text),
        text,
    });
    Ok(Looked {
        index,
        format,
        bytes: image.len() as u64,
        width: pixels.width(),
        height: pixels.height(),
        digest: picture::digest(&image),
        likeness: Likeness::of(&pixels),
        captions: captions.collect(),
    })
}

/// Returns the tokens of a caption, start and end included; what stands behind the end is padding.
fn tokens(tokenizer: &Tokenizer, caption: &str) -> u64 {
    let ids = tokenizer.encode(caption);
    ids.iter().rposition(|&id| id != 0).map_or(0, |last| last as u64 + 1)
}
