//! Repairs bytes that are nearly UTF-8, and reads them.
//!
//! The patterns (which lead bytes, which continuations, in what order) follow ftfy 6.3.1
//! (Apache-2.0).

/// The byte that stands for a character lost as U+FFFD in the bytes of a lenient code page.
const SUBSTITUTE: u8 = 0x1a;

/// The UTF-8 bytes of U+FFFD, the replacement character.
const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// Returns the bytes with A0 put back where a blank stands in what would otherwise be UTF-8.
///
/// Programs that tidy no-break spaces into blanks also hit the A0 inside a garbled character.
pub(super) fn restore_no_break_spaces(bytes: Vec<u8>) -> Vec<u8> {
    if !bytes.contains(&b' ') {
        return bytes;
    }
    let mut restored = Vec::with_capacity(bytes.len() + 8);
    let mut at = 0;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        at += push_restored(rest, &mut restored);
    }
    restored
}

/// Copies one byte or one damaged sequence, mended, and returns how many bytes it read.
fn push_restored(rest: &[u8], restored: &mut Vec<u8>) -> usize {
    if let [0xc3, b' ', tail @ ..] = rest {
        // The letter à is a word of its own in French, so the blank after it is real as well
        // as the lost A0. That is not so inside longer words.
        let spare: &[u8] = if continues_a_word(tail) { b"" } else { b" " };
        restored.extend_from_slice(&[0xc3, 0xa0]);
        restored.extend_from_slice(spare);
        return 2;
    }
    let len = damaged_len(rest);
    if len == 0 {
        restored.extend(rest.first());
        return 1;
    }
    let damaged = rest.iter().take(len);
    restored.extend(damaged.map(|&byte| if byte == b' ' { 0xa0 } else { byte }));
    len
}

/// Returns whether the text after "à" shows that it begins a longer (Portuguese) word.
fn continues_a_word(tail: &[u8]) -> bool {
    const ENDINGS: [&[u8]; 5] = [b" ", b"quele", b"quela", b"quilo", b"s "];
    ENDINGS.iter().any(|ending| tail.starts_with(ending))
}

/// Returns the length of the UTF-8 sequence at the start that has one blank for an A0, or 0.
///
/// Only lead bytes whose characters are common enough are taken: blanks are everywhere.
fn damaged_len(rest: &[u8]) -> usize {
    // A0 itself and 85 (an ellipsis in Windows-1252) are left out beside a blank.
    let beside = |byte: u8| matches!(byte, 0x80..=0x84 | 0x86..=0x9f | 0xa1..=0xbf);
    match *rest {
        [0xc2 | 0xc3 | 0xc5 | 0xce | 0xd0 | 0xd9, b' ', ..] => 2,
        [0xe2 | 0xe3, b' ', other, ..] if beside(other) => 3,
        [0xe0..=0xe3, other, b' ', ..] if beside(other) => 3,
        [0xf0, b' ', 0x80..=0xbf, 0x80..=0xbf, ..]
        | [0xf0, 0x80..=0xbf, b' ', 0x80..=0xbf, ..]
        | [0xf0, 0x80..=0xbf, 0x80..=0xbf, b' ', ..] => 4,
        _ => 0,
    }
}

/// Returns the bytes with each UTF-8 sequence that lost some of its bytes replaced by U+FFFD.
pub(super) fn mark_lost_characters(bytes: Vec<u8>) -> Vec<u8> {
    if !bytes.iter().any(|&byte| is_lost_or_question(byte)) {
        return bytes;
    }
    let mut marked = Vec::with_capacity(bytes.len() + 8);
    let mut at = 0;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        match lossy_len(rest) {
            0 => {
                marked.extend(rest.first());
                at += 1;
            }
            len => {
                marked.extend_from_slice(REPLACEMENT);
                at += len;
            }
        }
    }
    marked
}

/// Returns whether the byte may stand for a lost one: a substitute or a question mark.
fn is_lost_or_question(byte: u8) -> bool {
    matches!(byte, SUBSTITUTE | b'?')
}

/// Returns whether the byte is a continuation byte or the mark of a lost one.
fn is_kept_or_lost(byte: u8) -> bool {
    matches!(byte, SUBSTITUTE | 0x80..=0xbf)
}

/// Returns whether a character's later bytes show loss: at least one, with at most one "?".
fn shows_loss(tail: &[u8]) -> bool {
    let questions = tail.iter().filter(|&&byte| byte == b'?').count();
    tail.iter().all(|&byte| is_kept_or_lost(byte) || byte == b'?')
        && tail.iter().any(|&byte| is_lost_or_question(byte))
        && questions <= 1
}

/// Returns the length of the sequence at the start that has lost bytes, or 0 if none is there.
fn lossy_len(rest: &[u8]) -> usize {
    match rest {
        [0xc2..=0xdf, SUBSTITUTE, ..] | [0xc2 | 0xc3, b'?', ..] => 2,
        // Two surrogates as CESU-8 writes them; here both halves may have a "?".
        [0xed, 0xa0..=0xaf, a, 0xed, 0xb0..=0xbf, b, ..] if pair_shows_loss(*a, *b) => 6,
        [0xe0..=0xef, a, b, ..] if shows_loss(&[*a, *b]) => 3,
        [0xf0..=0xf4, a, b, c, ..] if shows_loss(&[*a, *b, *c]) => 4,
        [SUBSTITUTE, ..] => 1,
        _ => 0,
    }
}

/// Returns whether the last bytes of two surrogates show that at least one of them was lost.
fn pair_shows_loss(high: u8, low: u8) -> bool {
    let fits = |byte: u8| is_kept_or_lost(byte) || byte == b'?';
    fits(high) && fits(low) && (is_lost_or_question(high) || is_lost_or_question(low))
}

/// Returns the bytes read as UTF-8, or nothing if they are not UTF-8.
///
/// Two common variants are let through: surrogate pairs of three bytes each (CESU-8) and the
/// two-byte zero that Java writes.
pub(super) fn decode_loose_utf8(bytes: Vec<u8>) -> Option<String> {
    let has_variants = bytes.iter().any(|byte| matches!(byte, 0xc0 | 0xed));
    let bytes = if has_variants { with_variants_made_plain(&bytes) } else { bytes };
    String::from_utf8(bytes).ok()
}

/// Returns the bytes with CESU-8 pairs and two-byte zeros rewritten as plain UTF-8.
fn with_variants_made_plain(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        if let Some((character, len)) = variant_at(rest) {
            plain.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            at += len;
        } else {
            plain.extend(rest.first());
            at += 1;
        }
    }
    plain
}

/// Returns the character at the start and its length, if it is written in a variant of UTF-8.
fn variant_at(rest: &[u8]) -> Option<(char, usize)> {
    match *rest {
        [0xc0, 0x80, ..] => Some(('\0', 2)),
        [
            0xed,
            high @ 0xa0..=0xaf,
            a @ 0x80..=0xbf,
            0xed,
            low @ 0xb0..=0xbf,
            b @ 0x80..=0xbf,
            ..,
        ] => surrogates(high, a, low, b),
        // ftfy takes a line feed at the very end for the missing last byte. These two arms are
        // here only to give its results.
        [0xc0, b'\n'] => Some(('\0', 2)),
        [0xed, high @ 0xa0..=0xaf, a @ 0x80..=0xbf, 0xed, low @ 0xb0..=0xbf, b'\n'] => {
            surrogates(high, a, low, b'\n')
        }
        _ => None,
    }
}

/// Returns the character that two surrogates stand for, from the bytes that hold their bits.
fn surrogates(high: u8, a: u8, low: u8, b: u8) -> Option<(char, usize)> {
    let bits = |byte: u8, mask: u8, shift: u32| u32::from(byte & mask) << shift;
    let offset = bits(high, 0x0f, 16) + bits(a, 0x3f, 10) + bits(low, 0x0f, 6) + bits(b, 0x3f, 0);
    char::from_u32(0x1_0000 + offset).map(|character| (character, 6))
}
