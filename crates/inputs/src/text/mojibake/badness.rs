//! Tells whether a text looks garbled, by neighbours that hardly ever meet in sound text.
//!
//! The rules (which kinds of characters must not meet, and in which places) are those of the
//! badness heuristic of ftfy 6.3.1 (Apache-2.0). Each is looked for around one character of
//! interest, so a text is read once and all characters outside the tables are stepped over.

use super::traits::{
    BOX, CLOSING, CONTROL, EVERYDAY, FACE, HAS_OWN_RULES, LEGAL, LOWER, MATHS, MONEY, OPENING,
    PLAIN_LOWER, PLAIN_UPPER, TELLTALE, UPPER, traits_of,
};
use super::words::{is_blank, is_word};

/// The signs and letters that a telltale character must not touch.
const NEAR_TELLTALE: u32 = ACCENTED | BOX | OPENING | CLOSING | MONEY | MATHS | LEGAL;
/// Letters with accents.
const ACCENTED: u32 = LOWER | UPPER;
/// Greek and Cyrillic letters.
const PLAIN: u32 = PLAIN_LOWER | PLAIN_UPPER;

/// Traits of two neighbours, left and right, that mark a text as garbled.
const CLASHES: [(u32, u32); 10] = [
    (NEAR_TELLTALE | TELLTALE, TELLTALE),
    (TELLTALE, NEAR_TELLTALE),
    (LOWER | PLAIN_LOWER | BOX | CLOSING | MONEY | MATHS, UPPER),
    (BOX | CLOSING | MONEY | MATHS, LOWER),
    (LOWER | BOX | CLOSING, MONEY),
    (UPPER | BOX, MATHS | LEGAL),
    (MONEY | MATHS | BOX, OPENING),
    (BOX, FACE),
    (ACCENTED | MONEY | MATHS | OPENING | CLOSING | LEGAL, BOX),
    (BOX, CLOSING),
];

/// Every trait that stands on the right in `CLASHES`.
const CLASHES_ON_THE_RIGHT: u32 = NEAR_TELLTALE | TELLTALE | FACE;

/// Returns whether the text has at least one place that looks garbled.
pub(super) fn is_bad(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut at = ascii_run(bytes);
    while let Some(&lead) = bytes.get(at) {
        at += match lead {
            // The lead bytes of all characters that have traits: up to U+04BF, and the blocks
            // U+2000 and U+F000. Other scripts are stepped over undecoded.
            0xc2..=0xd2 if is_bad_at(text, at) => return true,
            0xe2 | 0xef if is_bad_at(text, at) => return true,
            0x00..=0x7f => ascii_run(bytes.get(at..).unwrap_or_default()),
            0x80..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xff => 4,
        };
    }
    false
}

/// Returns how many bytes at the start are ASCII.
fn ascii_run(bytes: &[u8]) -> usize {
    const STRIDE: usize = 16;
    let strides = bytes.chunks_exact(STRIDE).take_while(|stride| stride.is_ascii()).count();
    let rest = bytes.iter().skip(strides * STRIDE);
    strides * STRIDE + rest.take_while(|byte| byte.is_ascii()).count()
}

/// Returns whether the character that starts at the byte `at` belongs to a garbled place.
fn is_bad_at(text: &str, at: usize) -> bool {
    let (before, from_here) = text.split_at(at);
    let mut characters = from_here.chars();
    let Some(character) = characters.next() else { return false };
    let own = traits_of(character);
    if own & CONTROL != 0 {
        return true;
    }
    let after = characters.as_str();
    // All other rules need a character that follows.
    let Some(next) = characters.next().filter(|_| own != 0) else { return false };
    let following = traits_of(next);
    clashes(own, following)
        || is_bad_after(before, own, next, following)
        || (own & UPPER != 0 && next == '°')
        || (own & HAS_OWN_RULES != 0 && breaks_own_rule(before, character, after))
}

/// Returns whether two neighbours with these traits hardly ever meet.
fn clashes(own: u32, following: u32) -> bool {
    following & CLASHES_ON_THE_RIGHT != 0
        && CLASHES.iter().any(|&(left, right)| own & left != 0 && following & right != 0)
}

/// Returns whether a character with these traits looks wrong between its two neighbours.
fn is_bad_after(before: &str, own: u32, next: char, following: u32) -> bool {
    // Cheap questions first: most letters are through after these.
    let worth_asking = (own & PLAIN != 0 && following & TELLTALE != 0)
        || (own & UPPER != 0 && following & (MONEY | OPENING) != 0)
        || own & (OPENING | CLOSING) != 0;
    let Some(previous) = before.chars().next_back().filter(|_| worth_asking) else {
        return false;
    };
    let preceding = traits_of(previous);
    let between = |left: u32, middle: u32, right: u32| {
        preceding & left != 0 && own & middle != 0 && following & right != 0
    };
    (previous.is_ascii_alphabetic() && own & PLAIN != 0 && following & TELLTALE != 0)
        || (is_blank(previous) && own & UPPER != 0 && following & MONEY != 0)
        || (previous.is_ascii_lowercase() && own & UPPER != 0 && following & (OPENING | MONEY) != 0)
        || between(ACCENTED | BOX | MONEY | CLOSING, OPENING, MATHS)
        || between(ACCENTED | MONEY | MATHS | BOX | LEGAL, CLOSING, OPENING)
        || (preceding & ACCENTED != 0 && own & (OPENING | CLOSING) != 0 && is_word(next))
}

/// Returns whether the character breaks a rule that only it and a few like it have.
fn breaks_own_rule(before: &str, character: char, after: &str) -> bool {
    let mut following = after.chars();
    let Some(next) = following.next() else { return false };
    let has = |traits: u32| traits_of(next) & traits != 0;
    let rest = following.as_str();
    match character {
        // The ligature is sound before a plain letter only.
        'Œ' | 'œ' => !next.is_ascii_alphabetic(),
        'Â' | 'Ã' if next == ' ' => is_bad_before_blank(before, character),
        // UTF-8 of Western letters and signs, read as Windows-1252.
        'Â' | 'Ã' | 'Î' | 'Ð' => {
            "€œŠš¢£Ÿž\u{a0}\u{ad}®©°·»–—´".contains(next) || has(OPENING | CLOSING)
        }
        '×' => matches!(next, '²' | '³'),
        'Ø' | 'Ù' => is_arabic(next, rest),
        // UTF-8 of some Indian scripts, read as Windows-1252.
        'à' => "²µ¹¼½¾".contains(next),
        // UTF-8 read as MacRoman.
        '√' => "±∂†≠®™´≤≥¥µø".contains(next),
        '≈' => matches!(next, '°' | '¢'),
        '‚' => is_low_quote_in_macroman(next, rest),
        // UTF-8 of the block U+2000, read as Windows-1251, 1253 and 1257.
        'в' => next == 'Ђ',
        'β' => next == '€' && rest.starts_with(['™', '\u{a0}', 'Ά', '\u{ad}', '®', '°']),
        'ā' => next == '€',
        // UTF-8 of Western or the page's own letters, read as Windows-1251 or 1253. One pair
        // alone may be sound.
        'В' | 'Г' | 'Р' | 'С' => {
            let odd = has(CONTROL | TELLTALE | OPENING | CLOSING | MONEY) || "°µ".contains(next);
            (odd && rest.starts_with(['В', 'Г', 'Р', 'С'])) || is_twice_garbled(character, after)
        }
        'Β' | 'Γ' | 'Ξ' | 'Ο' => {
            let odd = has(CONTROL | TELLTALE | OPENING | CLOSING | MONEY) || next == '°';
            odd && rest.starts_with(['Β', 'Γ', 'Ξ', 'Ο'])
        }
        _ => false,
    }
}

/// Returns whether Â or Ã before a blank is the wreck of a no-break space or of "à".
fn is_bad_before_blank(before: &str, character: char) -> bool {
    let after_letter = |text: &str| text.ends_with(|c: char| c.is_ascii_lowercase());
    let blank_aside = before.strip_suffix(is_blank).unwrap_or(before);
    let ends_words = |c: char| ".,?!".contains(c) || traits_of(c) & CLOSING != 0;
    before.is_empty()
        || after_letter(before)
        || after_letter(blank_aside)
        || (character == 'Â' && before.ends_with(ends_words))
}

/// Returns whether Ø or Ù starts two Arabic letters in UTF-8 read as Windows-1252.
fn is_arabic(next: char, rest: &str) -> bool {
    let is_second_half = |half: char| {
        traits_of(half) & (EVERYDAY | MONEY | TELLTALE | MATHS | OPENING) != 0
            || "ŸŠ®°µ»".contains(half)
    };
    let mut following = rest.chars();
    is_second_half(next)
        && following.next().is_some_and(|lead| matches!(lead, 'Ø' | 'Ù'))
        && following.next().is_some_and(is_second_half)
}

/// Returns whether a low quotation mark starts a sign in UTF-8 read as MacRoman.
fn is_low_quote_in_macroman(next: char, rest: &str) -> bool {
    match next {
        'Ä' => rest.starts_with(|c: char| "ìîïòôúùû†°¢π".contains(c)),
        'â' | 'ó' => rest.starts_with(['à', 'ä', '°', 'ê']),
        _ => false,
    }
}

/// Returns whether a Western sign, garbled twice, is next to a plain letter or a blank.
fn is_twice_garbled(character: char, after: &str) -> bool {
    let tail = after.strip_prefix("ўВЂВ").filter(|_| character == 'Г');
    let mut following = tail.unwrap_or_default().chars();
    following.next().is_some_and(|any| any != '\n')
        && following.next().is_some_and(|last| last == ' ' || last.is_ascii_alphabetic())
}
