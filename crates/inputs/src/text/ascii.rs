//! The short way for captions of plain ASCII, which most are: the same results without tables of
//! Unicode. Whatever might be markup or a reference (`<`, `&`) takes the long way.

use super::Clean;

/// Returns `caption` cleaned, if it is plain.
pub(super) fn clean(how: Clean, caption: &str) -> Option<String> {
    let plain = |byte: u8| matches!(byte, b' '..=b'~' | b'\t' | b'\n') && byte != b'<';
    if !caption.bytes().all(plain) || may_hold_references(caption) {
        return None;
    }
    let mut cleaned = Vec::with_capacity(caption.len());
    let mut blank = false;
    for byte in caption.bytes() {
        let byte = match how {
            Clean::Whitespace => byte,
            Clean::Lower => byte.to_ascii_lowercase(),
            Clean::Canonicalize if byte == b'_' => b' ',
            Clean::Canonicalize if byte.is_ascii_punctuation() => continue,
            Clean::Canonicalize => byte.to_ascii_lowercase(),
        };
        if matches!(byte, b' ' | b'\t' | b'\n') {
            blank = !cleaned.is_empty();
            continue;
        }
        if std::mem::take(&mut blank) {
            cleaned.push(b' ');
        }
        cleaned.push(byte);
    }
    String::from_utf8(cleaned).ok()
}

/// Whether an ampersand stands before anything but a blank.
fn may_hold_references(caption: &str) -> bool {
    let after = |(at, _): (usize, &str)| caption.as_bytes().get(at + 1).copied();
    caption.match_indices('&').filter_map(after).any(|byte| byte != b' ')
}

/// Returns the words of cleaned text, if it is plain: English clitics, runs of letters, single
/// digits, runs of anything else that is not blank.
pub(super) fn words(text: &str) -> Option<Words<'_>> {
    let plain =
        |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'<' && !byte.is_ascii_uppercase();
    text.bytes().all(plain).then_some(Words { rest: text })
}

/// Words, from left to right.
#[derive(Debug)]
pub(super) struct Words<'a> {
    rest: &'a str,
}

/// What follows an apostrophe and belongs to it, in the order it is tried.
const CLITICS: [&str; 7] = ["s", "t", "re", "ve", "m", "ll", "d"];

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.rest.trim_ascii_start();
        let bytes = rest.as_bytes();
        let run = |belongs: fn(&u8) -> bool| bytes.iter().take_while(|byte| belongs(byte)).count();
        let length = match bytes.first()? {
            b'\'' => {
                let clitic = CLITICS.iter().find(|clitic| rest[1..].starts_with(**clitic));
                clitic.map_or_else(|| run(is_other), |clitic| 1 + clitic.len())
            }
            byte if byte.is_ascii_alphabetic() => run(u8::is_ascii_alphabetic),
            byte if byte.is_ascii_digit() => 1,
            _ => run(is_other),
        };
        let (word, rest) = rest.split_at(length);
        self.rest = rest;
        Some(word)
    }
}

fn is_other(byte: &u8) -> bool {
    byte.is_ascii_graphic() && !byte.is_ascii_alphanumeric()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn words_end_where_the_pattern_ends_them() {
        let split = |text| words(text).unwrap().collect::<Vec<_>>();
        assert_eq!(
            split("it's 21st... don't!?'re"),
            ["it", "'s", "2", "1", "st", "...", "don", "'t", "!?'", "re"]
        );
        assert_eq!(split("''s 'x a_b"), ["''", "s", "'", "x", "a", "_", "b"]);
        assert!(words("a <b>").is_none() && words("é").is_none() && words("A").is_none());
    }

    #[test]
    fn what_is_no_plain_text_takes_the_long_way() {
        assert_eq!(clean(Clean::Lower, " A  b\tC\n").unwrap(), "a b c");
        assert_eq!(clean(Clean::Canonicalize, "A_b, c!").unwrap(), "a b c");
        assert_eq!(clean(Clean::Lower, "A & b &").unwrap(), "a & b &");
        for text in ["a&b", "&#65;", "<b>", "é", "\u{7}", "a\r\nb"] {
            assert!(clean(Clean::Lower, text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn the_short_way_gives_what_the_long_way_gives() {
        let long = |how: Clean, text: &str| {
            // A character that is dropped forces the long way.
            how.apply(&format!("{text}\u{feff}"))
        };
        for text in
            ["", "  ", "It's  A\tTEST_case, don't!", "100% (of) x^2 ~ `y`", "'S 'T", "R & D"]
        {
            for how in [Clean::Whitespace, Clean::Lower, Clean::Canonicalize] {
                assert_eq!(clean(how, text).unwrap(), long(how, text), "{how:?} {text:?}");
            }
        }
    }
}
