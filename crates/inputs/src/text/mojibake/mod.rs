//! Repairs mojibake, text whose UTF-8 bytes were once read in a single-byte code page.
//!
//! The results are those of `fix_encoding` in the Python package ftfy 6.3.1 with its default
//! settings. Only that one step of ftfy is here: HTML entities, quotes, ligatures, widths, line
//! breaks and normalisation are untouched. The tables of characters and patterns in the
//! submodules are facts taken from ftfy (Apache-2.0, copyright Robyn Speer); the code is not.
//!
//! A text goes through these stages until nothing changes any more:
//!
//! 1. [`badness`] says whether the text looks garbled at all. Nearly all text stops here.
//! 2. Each code page in turn is asked for the bytes it would have read as this text, and the
//!    bytes, after the small repairs in [`byte_repairs`], are read again as UTF-8.
//! 3. Failing that, [`embedded`] repairs the garbled stretches between sound ones.
//! 4. Failing that too, C1 control characters become what Windows-1252 has in their place.

use std::borrow::Cow;

mod badness;
mod byte_repairs;
mod code_pages;
mod embedded;
mod traits;
mod words;

#[cfg(test)]
mod tests;

use code_pages::CodePage;

/// How many bytes of text one call may work through, whatever the length of the text.
const EFFORT_FOR_ANY: usize = 10_000_000;
/// How many times over the text may be worked through on top of that.
const EFFORT_PER_BYTE: usize = 16;

/// Returns the text with mojibake repaired, borrowed when there is nothing to repair.
///
/// Text that is pure ASCII or does not look garbled costs one scan and no allocation.
pub(super) fn fix_encoding(text: &str) -> Cow<'_, str> {
    // Real text needs two or three rounds, but a text such as "Ã" with a million times "ƒ"
    // after it loses one character a round. The limit keeps the time in line with the length;
    // no text under three thousand bytes can reach it.
    let mut effort = EFFORT_FOR_ANY.saturating_add(text.len().saturating_mul(EFFORT_PER_BYTE));
    fix_within(text, &mut effort)
}

/// Returns what Windows-1252 has in the place of a C1 control, and other characters as they are.
pub(super) fn control_as_windows_1252(character: char) -> char {
    code_pages::control_as_windows_1252(character)
}

/// Returns the text repaired until nothing changes any more or the effort is used up.
fn fix_within<'a>(text: &'a str, effort: &mut usize) -> Cow<'a, str> {
    let mut current = Cow::Borrowed(text);
    while let Some(repaired) = repair_once(&current, effort) {
        current = Cow::Owned(repaired);
    }
    current
}

/// Returns the text after one layer of garbling is undone, or nothing if no change is due.
fn repair_once(text: &str, effort: &mut usize) -> Option<String> {
    if text.is_ascii() || !badness::is_bad(text) {
        return None;
    }
    *effort = effort.checked_sub(text.len())?;
    let reread = code_pages::ALL.iter().find_map(|page| reread_as_utf8(text, page));
    if let Some(repaired) = reread {
        // The first reading that works is final, even when it gives the same text again.
        return (repaired != text).then_some(repaired);
    }
    embedded::repair(text, effort).or_else(|| replace_controls(text))
}

/// Returns the text that the page's bytes for this text hold when they are read as UTF-8.
fn reread_as_utf8(text: &str, page: &CodePage) -> Option<String> {
    let mut bytes = page.encode(text)?;
    if page.may_have_lost_no_break_spaces() {
        bytes = byte_repairs::restore_no_break_spaces(bytes);
    }
    if page.reads_substitute_as_replacement() {
        bytes = byte_repairs::mark_lost_characters(bytes);
    }
    byte_repairs::decode_loose_utf8(bytes)
}

/// Returns the text with C1 controls replaced as Windows-1252 has them, or nothing if it has
/// none that Windows-1252 assigns.
fn replace_controls(text: &str) -> Option<String> {
    let repaired: String = text.chars().map(code_pages::control_as_windows_1252).collect();
    (repaired != text).then_some(repaired)
}
