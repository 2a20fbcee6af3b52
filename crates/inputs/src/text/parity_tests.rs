//! Tokenizers of every kind against ids that open_clip's gave
//! (`tests/parity/tokenizer_live.py --golden` writes the files).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ringmaster_manifest::model_config::Cleaning;

use super::{Clean, Tokenizer};

/// What a tokenizer gave.
#[derive(serde::Deserialize)]
struct Expected {
    context_length: usize,
    clean: Cleaning,
    strip_sep_token: bool,
    ids: Vec<Vec<i64>>,
}

#[derive(serde::Deserialize)]
struct Golden {
    texts: Vec<String>,
    tokenizers: BTreeMap<String, Expected>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/golden/tokenizers")
}

#[test]
fn ids_of_every_kind_of_tokenizer_equal_those_of_open_clip() {
    let text = std::fs::read_to_string(folder().join("ids.json")).unwrap();
    let golden: Golden = serde_json::from_str(&text).unwrap();
    assert_eq!(golden.tokenizers.len(), 4);
    assert!(golden.texts.len() >= 300);
    for (name, expected) in &golden.tokenizers {
        let length = expected.context_length;
        let path = folder().join(name);
        let tokenizer = Tokenizer::open(&path, length, expected.strip_sep_token).unwrap();
        let tokenizer = tokenizer.cleaning(expected.clean.into());
        for (text, ids) in golden.texts.iter().zip(&expected.ids) {
            assert_eq!(&tokenizer.encode(text), ids, "{name}: {text:?}");
        }
    }
}

#[test]
fn siglips_captions_end_again_and_again() {
    let tokenizer = Tokenizer::open(&folder().join("siglip"), 8, false).unwrap();
    let tokenizer = tokenizer.cleaning(Clean::Canonicalize);
    assert_eq!(tokenizer.encode(""), [1; 8]);
    assert_eq!(tokenizer.encode("A cat!"), tokenizer.encode("a  CAT"));
    let cut = tokenizer.encode("a photo of a cat in the garden of the old house by the sea");
    assert_eq!((cut.len(), cut[7]), (8, 1));
}

/// The repositories of BERT and RoBERTa leave both to the classes of transformers.
#[test]
fn a_tokenizer_whose_files_name_no_special_tokens_has_the_usual_ones() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("tokenizer.json");
    std::fs::copy(folder().join("wordpiece/tokenizer.json"), &path).unwrap();
    let named = Tokenizer::open(&folder().join("wordpiece"), 12, true).unwrap();
    let unnamed = Tokenizer::open(&path, 12, true).unwrap();
    for caption in
        ["", "a photo of a cat", "two cats and a dog in the garden, at night, by the sea"]
    {
        assert_eq!(unnamed.encode(caption), named.encode(caption), "{caption}");
    }
}

#[test]
fn a_sentencepiece_model_pads_with_what_a_file_beside_it_says() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("spiece.model");
    std::fs::copy(folder().join("siglip/spiece.model"), &path).unwrap();
    assert_eq!(Tokenizer::open(&path, 4, false).unwrap().encode(""), [1, 1, 1, 1]);
    let map = place.path().join("special_tokens_map.json");
    std::fs::write(map, r#"{"pad_token": {"content": "<pad>"}}"#).unwrap();
    let tokenizer = Tokenizer::open(&path, 4, false).unwrap();
    assert_eq!(tokenizer.encode(""), [1, 0, 0, 0]);
}

#[test]
fn what_is_no_tokenizer_says_why() {
    let place = tempfile::tempdir().unwrap();
    let open = |name: &str, content: &str, strip: bool| {
        let path = place.path().join(name);
        std::fs::write(&path, content).unwrap();
        Tokenizer::open(&path, 8, strip).unwrap_err().to_string()
    };
    assert!(open("a.json", "{}", false).contains("is no usable tokenizer"));
    assert!(open("b.model", "no such thing", false).contains("neither a tokenizer.json nor"));
    assert!(open("c.model", "", false).contains("it has no pieces"));
    let wordpiece = std::fs::read_to_string(folder().join("wordpiece/tokenizer.json")).unwrap();
    let nameless = wordpiece.replace("[PAD]", "[FILL]").replace("[SEP]", "[CUT]");
    let text = open("tokenizer.json", &nameless, false);
    assert!(text.contains("it has no pad_token; expected one in tokenizer_config.json"), "{text}");
    let closed = wordpiece.replace("\"unk_token\":\"[UNK]\"", "\"unk_token\":\"[NONE]\"");
    let text = open("tokenizer.json", &closed, false);
    assert!(text.contains("it has nothing for a character that it does not know"), "{text}");
    let map = place.path().join("special_tokens_map.json");
    std::fs::write(&map, r#"{"pad_token": "[FILL]"}"#).unwrap();
    let text = open("tokenizer.json", &nameless, true);
    assert!(text.contains("strip_sep_token is asked for, and it has no sep_token"), "{text}");
    let empty = tempfile::tempdir().unwrap();
    let error = Tokenizer::open(empty.path(), 8, false).unwrap_err().to_string();
    assert!(error.contains("holds no tokenizer; expected tokenizer.json"), "{error}");
}
