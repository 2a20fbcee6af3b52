//! JSON as it is found beside images: what Python's `json.loads` takes, which wrote most of it.
//!
//! Beyond JSON itself that is UTF-16 and UTF-32, byte order marks, `NaN` and `Infinity`, numbers of any size, and
//! halves of surrogate pairs. Such a number is read as null and such a half as U+FFFD: they stand in fields that nobody
//! reads, or in captions that no tokenizer could take otherwise.

use std::borrow::Cow;

use serde_json::Value;

/// Reads a JSON document.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn read(bytes: &[u8]) -> Result<Value, String> {
    // Nearly all are plain JSON: what is special is looked for where that fails.
    if let Ok(value) = serde_json::from_slice(bytes) {
        return Ok(value);
    }
    let text = decoded(bytes)?;
    serde_json::from_str(&plain(&text)).map_err(|error| error.to_string())
}

/// Returns the text in the encoding that its first bytes tell, without a byte order mark.
fn decoded(bytes: &[u8]) -> Result<Cow<'_, str>, String> {
    match bytes {
        [0xff, 0xfe, 0, 0, rest @ ..] => utf32(rest, u32::from_le_bytes).map(Cow::Owned),
        [0, 0, 0xfe, 0xff, rest @ ..] => utf32(rest, u32::from_be_bytes).map(Cow::Owned),
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes).map(Cow::Owned),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes).map(Cow::Owned),
        [0xef, 0xbb, 0xbf, rest @ ..] => utf8(rest),
        // A document begins with an ASCII character: which bytes of it are zero tells the unit.
        [0, 0, 0, 1..=255, ..] => utf32(bytes, u32::from_be_bytes).map(Cow::Owned),
        [1..=255, 0, 0, 0, ..] => utf32(bytes, u32::from_le_bytes).map(Cow::Owned),
        [0, 1..=255, ..] => utf16(bytes, u16::from_be_bytes).map(Cow::Owned),
        [1..=255, 0, ..] => utf16(bytes, u16::from_le_bytes).map(Cow::Owned),
        _ => utf8(bytes),
    }
}

/// Halves of surrogate pairs have an encoding of three bytes, as their replacement has.
fn utf8(bytes: &[u8]) -> Result<Cow<'_, str>, String> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Ok(Cow::Borrowed(text));
    }
    let mut bytes = bytes.to_vec();
    for at in 0..bytes.len().saturating_sub(2) {
        if let [0xed, 0xa0..=0xbf, 0x80..=0xbf] = bytes[at..at + 3] {
            bytes[at..at + 3].copy_from_slice("\u{fffd}".as_bytes());
        }
    }
    String::from_utf8(bytes).map(Cow::Owned).map_err(|error| error.to_string())
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String, String> {
    let (units, []) = bytes.as_chunks::<2>() else {
        return Err("UTF-16 of an odd number of bytes".to_owned());
    };
    let characters = char::decode_utf16(units.iter().map(|bytes| unit(*bytes)));
    Ok(characters.map(|read| read.unwrap_or(char::REPLACEMENT_CHARACTER)).collect())
}

fn utf32(bytes: &[u8], unit: fn([u8; 4]) -> u32) -> Result<String, String> {
    let (units, []) = bytes.as_chunks::<4>() else {
        return Err("UTF-32 of a number of bytes that 4 does not divide".to_owned());
    };
    let read = |bytes: &[u8; 4]| match unit(*bytes) {
        0xd800..=0xdfff => Ok(char::REPLACEMENT_CHARACTER),
        code => char::from_u32(code).ok_or_else(|| format!("UTF-32: no character {code:#x}")),
    };
    units.iter().map(read).collect()
}

/// Returns the document with what only Python knows written as JSON.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(quote) = rest.find('"') {
        let (between, string) = rest.split_at(quote);
        push_literals(between, &mut out);
        let (string, after) = string.split_at(string_len(string));
        push_string(string, &mut out);
        rest = after;
    }
    push_literals(rest, &mut out);
    out
}

/// Returns the bytes of the string that `text` begins with, both quotes included.
fn string_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Appends what stands outside of strings; numbers that JSON's readers do not take become null.
fn push_literals(text: &str, out: &mut String) {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    let mut rest = text;
    while let Some(start) = rest.find(is_word) {
        let (before, word) = rest.split_at(start);
        let end = word.find(|c| !is_word(c)).unwrap_or(word.len());
        let (word, after) = word.split_at(end);
        out.push_str(before);
        out.push_str(if is_no_number(word) { "null" } else { word });
        rest = after;
    }
    out.push_str(rest);
}

fn is_no_number(word: &str) -> bool {
    let is_digits = word.trim_start_matches('-').starts_with(|c: char| c.is_ascii_digit());
    let is_endless = || word.parse::<f64>().is_ok_and(f64::is_infinite);
    matches!(word, "NaN" | "Infinity" | "-Infinity") || is_digits && is_endless()
}

/// Appends a string; escapes of halves of surrogate pairs become the replacement character's.
fn push_string(text: &str, out: &mut String) {
    let mut rest = text;
    while let Some(start) = rest.find('\\') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let (escape, len) = match utf16_unit(rest) {
            Some(0xd800..=0xdbff) if matches!(utf16_unit(&rest[6..]), Some(0xdc00..=0xdfff)) => {
                (&rest[..12], 12)
            }
            Some(0xd800..=0xdfff) => ("\\ufffd", 6),
            _ => {
                let len = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
                (&rest[..len], len)
            }
        };
        out.push_str(escape);
        rest = &rest[len..];
    }
    out.push_str(rest);
}

/// Returns what the escape stands for that `text` begins with, if it is one of four digits.
fn utf16_unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_hex.then(|| u16::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read_text(text: &str) -> Value {
        read(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_python_writes_beyond_json_is_read() {
        let text =
            r#"{"a": NaN, "b": [Infinity, -Infinity, 1e999, -1E+400], "c": "NaN, -Infinity"}"#;
        let expected = json!({"a": null, "b": [null, null, null, null], "c": "NaN, -Infinity"});
        assert_eq!(read_text(text), expected);
        let long = format!(r#"{{"n": {}, "c": "x"}}"#, "9".repeat(400));
        assert_eq!(read_text(&long), json!({"n": null, "c": "x"}));
    }

    #[test]
    fn halves_of_surrogate_pairs_are_replaced_and_whole_pairs_are_kept() {
        let text =
            r#"{"a": "\ud83d", "b": "x\udc4dy\\ud83d", "c": "\ud83d\ude00 \uD83D\ud83d\ude00"}"#;
        let expected = json!({"a": "\u{fffd}", "b": "x\u{fffd}y\\ud83d", "c": "😀 \u{fffd}😀"});
        assert_eq!(read_text(text), expected);
        assert_eq!(read(b"[\"\xed\xa0\xbdx\"]").unwrap(), json!(["\u{fffd}x"]));
    }

    #[test]
    fn every_encoding_that_python_tells_is_read_with_and_without_a_mark() {
        let text = r#"{"c": "é😀"}"#;
        let expected = json!({"c": "é😀"});
        let encoded = |bytes_of: fn(&str) -> Vec<u8>| {
            for text in [text.to_owned(), format!("\u{feff}{text}")] {
                assert_eq!(read(&bytes_of(&text)).unwrap(), expected);
            }
        };
        encoded(|text| text.as_bytes().to_vec());
        encoded(|text| text.encode_utf16().flat_map(u16::to_le_bytes).collect());
        encoded(|text| text.encode_utf16().flat_map(u16::to_be_bytes).collect());
        encoded(|text| text.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect());
        encoded(|text| text.chars().flat_map(|c| u32::from(c).to_be_bytes()).collect());
    }

    #[test]
    fn what_python_refuses_is_refused() {
        for text in [
            &b"{\"a\": nan}"[..],
            b"{\"a\": +Infinity}",
            b"{'a': 1}",
            b"{\"a\": 1,}",
            b"{\"a\": \"caf\xe9\"}",
            b"{\"a\": \"\\u12\"}",
            b"{\"a\": \"x",
            b"\xff\xfe{",
            b"",
        ] {
            assert!(read(text).is_err(), "{}", String::from_utf8_lossy(text));
        }
    }

    proptest! {
        #[test]
        fn plain_json_stays_what_it_is(text in "\\PC{0,40}", number in any::<f64>(), list in any::<Vec<u16>>()) {
            let value = json!({"text": text, "number": number, "list": list});
            let written = value.to_string();
            let again: Value = serde_json::from_str(&plain(&written)).unwrap();
            prop_assert_eq!(again, value);
        }

        #[test]
        fn any_text_made_of_jsons_pieces_is_read_or_refused(text in "[\\[\\]{}\":,\\\\ud8cf0-3eENa. é-]{0,60}") {
            let _ = read(text.as_bytes());
        }
    }
}
