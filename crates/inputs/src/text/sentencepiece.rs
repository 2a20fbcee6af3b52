//! SentencePiece unigram models (`*.model`), as Hugging Face's T5 tokenizer reads them for SigLIP.
//!
//! The file is a protobuf message (`sentencepiece_model.proto`); of it the pieces, the normaliser's
//! character map and whether unknown characters become bytes are needed.

use prost::Message;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::{Precompiled, Replace, Sequence, Strip};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, NormalizerWrapper, Tokenizer};

/// `ModelProto`.
#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<NormalizerSpec>,
}

/// `ModelProto.SentencePiece`.
#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    /// 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

/// `TrainerSpec`.
#[derive(Clone, PartialEq, Message)]
struct Trainer {
    /// 1 is unigram.
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
}

/// `NormalizerSpec`.
#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
}

const UNIGRAM: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
/// How SentencePiece writes a blank.
const BLANK: char = '▁';
/// What ends a caption, and, for SigLIP, fills it up.
const END: &str = "</s>";

/// Returns the tokenizer of a model and the id captions are filled up with: SigLIP's sticky end.
///
/// # Errors
/// What is wrong with the bytes, in a sentence.
pub(super) fn read(bytes: &[u8]) -> Result<(Tokenizer, i64), String> {
    let model = Model::decode(bytes).map_err(|error| {
        format!("it is neither a tokenizer.json nor a SentencePiece model: {error}")
    })?;
    if model.pieces.is_empty() {
        return Err("it has no pieces; expected a SentencePiece model".to_owned());
    }
    let trainer = model.trainer.unwrap_or_default();
    if trainer.model_type.unwrap_or(UNIGRAM) != UNIGRAM {
        return Err(
            "it is not a unigram model, which SigLIP's tokenizers are; use a tokenizer.json \
                    for others"
                .to_owned(),
        );
    }
    let unknown = model.pieces.iter().position(|piece| piece.kind == Some(UNKNOWN));
    let end = model.pieces.iter().position(|piece| piece.piece.as_deref() == Some(END));
    let end = end.ok_or_else(|| format!("it has no {END}, which ends captions"))?;
    let vocabulary = model.pieces.iter().map(|piece| {
        (piece.piece.clone().unwrap_or_default(), f64::from(piece.score.unwrap_or(0.0)))
    });
    let byte_fallback = trainer.byte_fallback.unwrap_or(false);
    let unigram = Unigram::from(vocabulary.collect(), unknown, byte_fallback)
        .map_err(|error| error.to_string())?;
    let mut tokenizer = Tokenizer::new(unigram);
    let map = model.normalizer.and_then(|spec| spec.precompiled_charsmap).unwrap_or_default();
    tokenizer.with_normalizer(Some(normalizer(&map)?));
    // With `legacy=False` only the text's beginning gets a blank, not what follows a special token.
    tokenizer.with_pre_tokenizer(Some(Metaspace::new(BLANK, PrependScheme::First, true)));
    let template = TemplateProcessing::builder()
        .try_single(format!("$A {END}"))
        .map_err(|error| error.to_string())?
        .special_tokens(vec![(END, end as u32)])
        .build()
        .map_err(|error| error.to_string())?;
    tokenizer.with_post_processor(Some(template));
    let special = model.pieces.iter().filter(|piece| matches!(piece.kind, Some(CONTROL | UNKNOWN)));
    let special =
        special.map(|piece| AddedToken::from(piece.piece.clone().unwrap_or_default(), true));
    tokenizer.add_special_tokens(&special.collect::<Vec<_>>());
    Ok((tokenizer, end as i64))
}

/// The model's own map of characters, then no blanks at the end and no two in a row.
fn normalizer(map: &[u8]) -> Result<Sequence, String> {
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if !map.is_empty() {
        let map =
            Precompiled::from(map).map_err(|error| format!("its character map: {error:?}"))?;
        steps.push(map.into());
    }
    steps.push(Strip::new(false, true).into());
    let blanks = tokenizers::normalizers::replace::ReplacePattern::Regex(" {2,}".to_owned());
    steps.push(Replace::new(blanks, BLANK.to_string()).map_err(|error| error.to_string())?.into());
    Ok(Sequence::new(steps))
}
