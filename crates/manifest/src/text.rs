//! From a file's bytes to text: a manifest is UTF-8 or UTF-16, with or without a byte-order mark
//! (YAML 1.2.2, section 5.2).

use crate::error::{Error, Errors, Problem};
use crate::limits::MAX_TEXT;
use crate::position::Position;

/// Stands before a text to tell its encoding, and is no part of it.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Returns the text of a manifest's bytes.
///
/// `file_name` is what messages call the file. Of a large file, its first [`crate::MAX_TEXT`] bytes and
/// one more are enough.
///
/// # Errors
/// The encoding found where it is another, or the first bytes that are no text, with their place.
pub fn decode(bytes: &[u8], file_name: &str) -> Result<String, Errors> {
    let refused = |(position, problem)| {
        Errors::new(vec![Error { file: file_name.to_owned(), position, problem }])
    };
    read(bytes).map_err(refused)
}

/// Returns the text without a byte-order mark.
pub(crate) fn without_mark(text: &str) -> &str {
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
}

/// Refuses a text that is too long to be read.
pub(crate) fn check_length(bytes: usize) -> Result<(), (Position, Problem)> {
    if bytes <= MAX_TEXT {
        Ok(())
    } else {
        let what = format!("the file has more than {MAX_TEXT} bytes");
        let remedy = "a manifest names its data with braces and patterns, and not file by file";
        Err((Position::START, Problem::TooLarge { what, remedy }))
    }
}

fn read(bytes: &[u8]) -> Result<String, (Position, Problem)> {
    check_length(bytes.len())?;
    let text = match Encoding::of(bytes) {
        Encoding::Utf8 => utf8(bytes)?,
        Encoding::Utf16(unit) => utf16(bytes, unit)?,
        Encoding::Utf32 => {
            let what = "the file is UTF-32".to_owned();
            return Err((Position::START, Problem::Encoding { what }));
        }
    };
    Ok(without_mark(&text).to_owned())
}

/// What the first bytes say, as YAML 1.2.2 deduces it: every manifest begins with an ASCII character.
enum Encoding {
    Utf8,
    /// With the order of a unit's bytes.
    Utf16(fn([u8; 2]) -> u16),
    Utf32,
}

impl Encoding {
    fn of(bytes: &[u8]) -> Self {
        match *bytes {
            [0xff, 0xfe, 0, 0, ..]
            | [0, 0, 0xfe, 0xff, ..]
            | [0, 0, 0, _, ..]
            | [_, 0, 0, 0, ..] => Self::Utf32,
            [0xff, 0xfe, ..] => Self::Utf16(u16::from_le_bytes),
            [0xfe, 0xff, ..] => Self::Utf16(u16::from_be_bytes),
            [0, second, ..] if second != 0 => Self::Utf16(u16::from_be_bytes),
            [first, 0, ..] if first != 0 => Self::Utf16(u16::from_le_bytes),
            _ => Self::Utf8,
        }
    }
}

fn utf8(bytes: &[u8]) -> Result<String, (Position, Problem)> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|error| {
        let (good, rest) = bytes.split_at(error.valid_up_to());
        let what = format!("the byte 0x{:02x} here is not UTF-8", rest.first().unwrap_or(&0));
        (end_of(&String::from_utf8_lossy(good)), Problem::Encoding { what })
    })
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String, (Position, Problem)> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let mut text = String::with_capacity(bytes.len());
    for character in char::decode_utf16(pairs.iter().map(|pair| unit(*pair))) {
        match character {
            Ok(character) => text.push(character),
            Err(error) => {
                let what = format!(
                    "half a character, 0x{:04x}, stands here in UTF-16",
                    error.unpaired_surrogate()
                );
                return Err((end_of(&text), Problem::Encoding { what }));
            }
        }
    }
    if rest.is_empty() {
        Ok(text)
    } else {
        let what = "the file is UTF-16 and ends within a character".to_owned();
        Err((end_of(&text), Problem::Encoding { what }))
    }
}

/// Returns the place behind a text.
fn end_of(text: &str) -> Position {
    let last = text.rsplit('\n').next().unwrap_or_default();
    let column = without_mark(last).chars().count() + 1;
    Position { line: text.matches('\n').count() + 1, column }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TEXT: &str = "kind: TrainJob # größer\nname: 🦀\n";

    fn utf16(mark: &str, unit: fn(u16) -> [u8; 2]) -> Vec<u8> {
        format!("{mark}{TEXT}").encode_utf16().flat_map(unit).collect()
    }

    fn refused(bytes: &[u8]) -> String {
        decode(bytes, "job.yaml").unwrap_err().to_string()
    }

    #[test]
    fn utf_8_and_utf_16_are_read_with_and_without_a_byte_order_mark() {
        for mark in ["", "\u{feff}"] {
            let utf8 = format!("{mark}{TEXT}").into_bytes();
            for bytes in [utf8, utf16(mark, u16::to_le_bytes), utf16(mark, u16::to_be_bytes)] {
                assert_eq!(decode(&bytes, "job.yaml").unwrap(), TEXT);
            }
        }
        assert_eq!(decode(b"", "job.yaml").unwrap(), "");
    }

    #[test]
    fn other_encodings_are_named_and_bad_bytes_are_placed() {
        let as_utf8 = "save it as UTF-8, the usual encoding of YAML";
        let utf32: Vec<u8> = "\u{feff}a".chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
        assert_eq!(refused(&utf32), format!("job.yaml:1:1: the file is UTF-32; {as_utf8}"));
        assert_eq!(
            refused(b"a: 1\nb: gr\xf6sser\n"),
            format!("job.yaml:2:6: the byte 0xf6 here is not UTF-8; {as_utf8}")
        );
        assert_eq!(
            refused(b"\xff\xfea\0\n\0b\0\x00\xd8c\0"),
            format!("job.yaml:2:2: half a character, 0xd800, stands here in UTF-16; {as_utf8}")
        );
        assert_eq!(
            refused(b"\xff\xfea\0b"),
            format!("job.yaml:1:2: the file is UTF-16 and ends within a character; {as_utf8}")
        );
    }
}
