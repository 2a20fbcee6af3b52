//! CLIP's byte-pair encoding, as OpenCLIP's `SimpleTokenizer`.

use std::cell::RefCell;
use std::io::Read;

use flate2::read::GzDecoder;
use regex::Regex;
use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Merges, Vocab};

use super::cache::WordCache;
use super::{ascii, bytes};

/// Entries of the vocabulary.
pub const VOCAB_SIZE: i64 = 49_408;
/// Id of `<start_of_text>`, the first token of every caption.
pub const START_OF_TEXT: i64 = VOCAB_SIZE - 2;
/// Id of `<end_of_text>`, the last token of every caption and the largest id there is.
pub const END_OF_TEXT: i64 = VOCAB_SIZE - 1;

const START_OF_TEXT_WORD: &str = "<start_of_text>";
const END_OF_TEXT_WORD: &str = "<end_of_text>";

/// Words of a cleaned caption: the special tokens, English clitics, runs of letters, single
/// digits, runs of anything else that is not blank. The combining iota (U+0345) belongs to none of
/// them: Python's `regex`, ignoring case, finds it neither a letter nor anything else.
const WORDS: &str = concat!(
    r"(?i:<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d)",
    r"|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+"
);

/// OpenAI's merge list (MIT), one merge a line after a heading, most frequent first.
static MERGES: &[u8] = include_bytes!("bpe_simple_vocab_16e6.txt.gz");
/// Merges that belong to CLIP's vocabulary; the file holds more.
const MERGE_COUNT: usize = VOCAB_SIZE as usize - 2 * 256 - 2;
/// CLIP's byte-pair encoding of cleaned text.
pub(super) struct ClipBpe {
    words: Regex,
    pieces: BPE,
    character_of_byte: [char; 256],
}

impl ClipBpe {
    /// Builds it from the embedded list of merges.
    pub(super) fn new() -> Self {
        let table = bytes::in_vocabulary_order();
        let mut character_of_byte = ['\0'; 256];
        for &(byte, character) in &table {
            character_of_byte[usize::from(byte)] = character;
        }
        let merges = merge_list();
        let pieces = BPE::builder()
            .vocab_and_merges(vocabulary(&table, &merges), merges)
            .end_of_word_suffix("</w>".to_owned())
            .cache_capacity(0)
            .build()
            .expect("every merge of the embedded list joins two entries of its vocabulary");
        let words = Regex::new(WORDS).expect("the pattern is a constant that compiles");
        Self { words, pieces, character_of_byte }
    }

    /// Returns the ids of `cleaned` text: start, its pieces, end, then zeros up to
    /// `context_length`. Text that is too long is cut so that its last id is the end token.
    pub(super) fn encode(&self, cleaned: &str, context_length: usize) -> Vec<i64> {
        let mut ids = Vec::with_capacity(context_length + 8);
        ids.push(START_OF_TEXT);
        if let Some(words) = ascii::words(cleaned) {
            self.push_words(words, context_length, &mut ids);
        } else {
            let words = self.words.find_iter(cleaned).map(|word| word.as_str());
            self.push_words(words, context_length, &mut ids);
        }
        ids.push(END_OF_TEXT);
        if ids.len() > context_length {
            ids.truncate(context_length);
            if let Some(last) = ids.last_mut() {
                *last = END_OF_TEXT;
            }
        }
        ids.resize(context_length, 0);
        ids
    }

    fn push_words<'a>(
        &self,
        words: impl Iterator<Item = &'a str>,
        context_length: usize,
        ids: &mut Vec<i64>,
    ) {
        CACHE.with_borrow_mut(|cache| {
            for word in words {
                if ids.len() >= context_length {
                    break;
                }
                cache.push(word, ids, |word| self.pieces_of(word));
            }
        });
    }

    /// Returns the ids of a word that no cache has.
    fn pieces_of(&self, word: &str) -> Vec<i64> {
        match word {
            START_OF_TEXT_WORD => return vec![START_OF_TEXT],
            END_OF_TEXT_WORD => return vec![END_OF_TEXT],
            _ => {}
        }
        let spelled: String =
            word.bytes().map(|byte| self.character_of_byte[usize::from(byte)]).collect();
        let pieces = self
            .pieces
            .tokenize(&spelled)
            .expect("splitting fails only for an unknown-token entry, which this one lacks");
        pieces.iter().map(|piece| i64::from(piece.id)).collect()
    }
}

thread_local! {
    /// Words of this thread: there is one vocabulary, so all tokenizers share it.
    static CACHE: RefCell<WordCache> = RefCell::default();
}

impl std::fmt::Debug for ClipBpe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClipBpe").finish_non_exhaustive()
    }
}

/// Reads CLIP's merges from the embedded file.
fn merge_list() -> Merges {
    let mut text = String::new();
    GzDecoder::new(MERGES)
        .read_to_string(&mut text)
        .expect("the embedded merge list is intact gzip and UTF-8");
    let pairs = text.lines().skip(1).take(MERGE_COUNT);
    pairs
        .map(|line| line.split_once(' ').expect("a merge is two pieces with a blank between"))
        .map(|(first, second)| (first.to_owned(), second.to_owned()))
        .collect()
}

/// Numbers the bytes, the bytes that end a word, the merged pieces and the two special tokens.
fn vocabulary(table: &[(u8, char)], merges: &Merges) -> Vocab {
    let bytes = table.iter().map(|(_, character)| character.to_string());
    let last_bytes = table.iter().map(|(_, character)| format!("{character}</w>"));
    let merged = merges.iter().map(|(first, second)| format!("{first}{second}"));
    let special = [START_OF_TEXT_WORD, END_OF_TEXT_WORD].map(str::to_owned);
    bytes.chain(last_bytes).chain(merged).chain(special).zip(0..).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Tokenizer;
    use super::*;

    #[derive(serde::Deserialize)]
    struct Golden {
        text: String,
        ids: Vec<i64>,
    }

    #[test]
    fn ids_equal_those_of_open_clip() {
        // Written by tests/parity/tokenizer_golden.py.
        let golden: Vec<Golden> = serde_json::from_str(include_str!("golden.json")).unwrap();
        assert!(golden.len() >= 200);
        let tokenizer = Tokenizer::clip(24);
        let wrong: Vec<String> = golden
            .iter()
            .filter_map(|Golden { text, ids }| {
                let got = tokenizer.encode(text);
                let mut expected = ids.clone();
                expected.resize(24, 0);
                (got != expected).then(|| format!("{text:?}: got {got:?}, expected {expected:?}"))
            })
            .collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn captions_start_end_and_are_filled_with_zeros() {
        let ids = Tokenizer::clip(8).encode("a cat");
        assert_eq!(ids, [START_OF_TEXT, 320, 2368, END_OF_TEXT, 0, 0, 0, 0]);
        assert_eq!(Tokenizer::clip(8).encode(""), [START_OF_TEXT, END_OF_TEXT, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_cut_caption_keeps_its_end_token() {
        for length in 1..6 {
            let ids = Tokenizer::clip(length).encode("one two three four five six seven");
            assert_eq!(ids.len(), length);
            assert_eq!(ids.last(), Some(&END_OF_TEXT));
        }
    }

    #[test]
    fn threads_that_share_a_tokenizer_get_the_same_ids() {
        let tokenizer = Tokenizer::clip(16);
        let captions: Vec<String> = (0..200).map(|i| format!("caption number {i} zebra")).collect();
        let expected: Vec<_> = captions.iter().map(|caption| tokenizer.encode(caption)).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for (caption, ids) in captions.iter().zip(&expected) {
                        assert_eq!(&tokenizer.encode(caption), ids);
                    }
                });
            }
        });
    }
}
