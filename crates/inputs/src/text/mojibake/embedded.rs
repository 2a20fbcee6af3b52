//! Repairs garbled stretches that stand between sound ones.
//!
//! Text joined from several sources may be garbled in part only, so that no code page explains
//! the whole. The stretches that have the shape of UTF-8 in some code page can still be found
//! and repaired one by one. What counts as such a stretch follows ftfy 6.3.1 (Apache-2.0).

use super::badness;
use super::fix_within;
use super::traits::{self, traits_of};

/// Returns the text with its garbled stretches repaired, or nothing if none of them changes.
pub(super) fn repair(text: &str, effort: &mut usize) -> Option<String> {
    let mut repaired = String::new();
    let mut copied = 0;
    let mut at = 0;
    let mut after_continuation = false;
    while let Some(character) = text.get(at..).and_then(|rest| rest.chars().next()) {
        // A stretch right after a continuation is the tail of a larger garble; to repair only
        // that would make things worse.
        let len = if after_continuation { 0 } else { stretch_len(&text[at..]) };
        if let Some(better) = repair_stretch(&text[at..at + len], text, effort) {
            repaired.push_str(&text[copied..at]);
            repaired.push_str(&better);
            copied = at + len;
        }
        let last = text[at..at + len].chars().next_back().unwrap_or(character);
        after_continuation = traits_of(last) & traits::CONTINUES_FIRMLY != 0;
        at += len.max(character.len_utf8());
    }
    repaired.push_str(&text[copied..]);
    (copied > 0 && repaired != text).then_some(repaired)
}

/// Returns the repaired stretch, if it is a true part of the text and looks garbled.
fn repair_stretch(stretch: &str, text: &str, effort: &mut usize) -> Option<String> {
    // The whole text has been tried already, and would be tried again without end.
    let worthwhile = stretch.len() < text.len() && badness::is_bad(stretch);
    worthwhile.then(|| fix_within(stretch, effort).into_owned())
}

/// Returns how many bytes at the start look like UTF-8 sequences read in some code page.
fn stretch_len(text: &str) -> usize {
    let mut len = 0;
    while let Some(more) = text.get(len..).and_then(sequence_len) {
        len += more;
    }
    len
}

/// Returns the length in bytes of the one UTF-8 look-alike at the start, if one is there.
fn sequence_len(text: &str) -> Option<usize> {
    const LEADS: [(u32, usize); 3] =
        [(traits::STARTS_TWO, 1), (traits::STARTS_THREE, 2), (traits::STARTS_FOUR, 3)];
    let lead = text.chars().next()?;
    let lead_traits = traits_of(lead);
    let tail = &text[lead.len_utf8()..];
    LEADS
        .iter()
        .filter(|(starts, _)| lead_traits & starts != 0)
        .find_map(|&(_, count)| continuations_len(tail, count))
        .map(|len| lead.len_utf8() + len)
}

/// Returns the length in bytes of the given number of continuations, if all of them are there.
fn continuations_len(tail: &str, count: usize) -> Option<usize> {
    let mut characters = tail.chars();
    let found = characters
        .by_ref()
        .take(count)
        .take_while(|&character| traits_of(character) & traits::CONTINUES != 0)
        .count();
    (found == count).then(|| tail.len() - characters.as_str().len())
}
