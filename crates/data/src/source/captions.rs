//! The captions of a sample, as its text member or a field of its JSON member holds them.

use ringmaster_weights::found;
use serde_json::Value;

use super::json;

/// Returns the caption of a text member, without blanks around it.
///
/// # Errors
/// Why there is none, in words: it is no UTF-8, or a pointer in place of a file.
pub(super) fn of_text(text: &[u8]) -> Result<Vec<String>, String> {
    check(text)?;
    let caption = std::str::from_utf8(text).map_err(|error| format!("caption: {error}"))?;
    Ok(vec![caption.trim().to_owned()])
}

/// Returns the captions of a JSON member: what the first of `fields`, whose names are joined by `;`, holds, a string
/// or a list of strings. Captions of nothing but blanks do not count.
///
/// # Errors
/// Why there is none, in words: it is no JSON, or no field holds a caption.
pub(super) fn of_json(text: &[u8], fields: &str) -> Result<Vec<String>, String> {
    check(text)?;
    let json = json::read(text).map_err(|error| format!("json member: {error}"))?;
    let mut captions = fields.split(';').map(|field| of_value(&json[field]));
    captions
        .find(|captions| !captions.is_empty())
        .ok_or_else(|| format!("json member: field {fields:?} holds no caption"))
}

fn of_value(value: &Value) -> Vec<String> {
    let texts: Vec<&str> = match value {
        Value::String(caption) => vec![caption],
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    texts.into_iter().filter(|text| !text.trim().is_empty()).map(str::to_owned).collect()
}

fn check(text: &[u8]) -> Result<(), String> {
    match found::pointer(text) {
        Some(what) => Err(format!("caption: it is {what}")),
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str, fields: &str) -> Vec<String> {
        of_json(text.as_bytes(), fields).unwrap()
    }

    /// `caption;alt` with an empty caption trained on empty captions.
    #[test]
    fn the_first_field_that_holds_a_caption_counts() {
        assert_eq!(read(r#"{"caption": "", "alt": "a"}"#, "caption;alt"), ["a"]);
        assert_eq!(read(r#"{"caption": " \n", "alt": "a"}"#, "caption;alt"), ["a"]);
        assert_eq!(read(r#"{"caption": null, "alt": "a"}"#, "caption;alt"), ["a"]);
        assert_eq!(read(r#"{"caption": "c", "alt": "a"}"#, "caption;alt"), ["c"]);
        assert_eq!(read(r#"{"caption": ["", " "], "alt": ["a"]}"#, "caption;alt"), ["a"]);
    }

    #[test]
    fn captions_of_nothing_but_blanks_are_not_drawn_from_a_list() {
        assert_eq!(read(r#"{"c": ["a", "", 3, " ", "b"]}"#, "c"), ["a", "b"]);
        for empty in [r#"{"c": []}"#, r#"{"c": [" "]}"#, r#"{"c": ""}"#, "{}", "[]", "3"] {
            let error = of_json(empty.as_bytes(), "c").unwrap_err();
            assert_eq!(error, "json member: field \"c\" holds no caption", "{empty}");
        }
    }

    #[test]
    fn a_text_member_is_its_caption_without_blanks_around_it() {
        assert_eq!(of_text(b" a caption\r\n").unwrap(), ["a caption"]);
        assert!(of_text(b"caf\xe9").unwrap_err().starts_with("caption: incomplete utf-8"));
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_panic_and_no_caption_is_blank(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = of_text(&bytes);
            for caption in of_json(&bytes, "a;b").unwrap_or_default() {
                prop_assert!(!caption.trim().is_empty());
            }
        }
    }
}
