//! Brace lists as webdataset expands them: `{000..127}`, `{0..10..2}`, `{a,b}`, one in another.
//!
//! A short text can stand for more than any memory holds. So a pattern is read first, then says in closed
//! form how much it stands for, and is expanded last.

use crate::limits::{MAX_NAMES, MAX_SHARDS};

/// Braces in braces.
const MAX_DEPTH: usize = 16;

/// Digits of a range's ends: differences of such numbers fit 64 bits.
const MAX_DIGITS: usize = 18;

/// Above this, a number of shards is only said to be larger.
const COUNTLESS: u64 = 1_000_000_000_000_000;

/// A text with braces.
#[derive(Debug)]
pub(super) struct Pattern<'t>(Vec<Piece<'t>>);

#[derive(Debug)]
enum Piece<'t> {
    Text(&'t str),
    Range(Range),
    Choice(Vec<Pattern<'t>>),
}

/// `first..last` or `first..last..step`.
#[derive(Debug)]
struct Range {
    first: i64,
    /// May be negative.
    step: i64,
    count: u64,
    /// Digits that numbers are padded to, with a sign.
    width: usize,
}

/// How many texts a pattern stands for, and how many bytes they have; saturated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) count: u64,
    pub(super) bytes: u64,
}

/// What all lists of a manifest may still expand to.
#[derive(Debug)]
pub(crate) struct Budget {
    shards: u64,
    bytes: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { shards: MAX_SHARDS, bytes: MAX_NAMES as u64 }
    }
}

impl Budget {
    /// Takes what a list expands to.
    ///
    /// # Errors
    /// As [`super::expand`].
    pub(super) fn take(&mut self, extent: Extent) -> Result<(), String> {
        let Extent { count, bytes } = extent;
        if count > self.shards {
            let all = (MAX_SHARDS - self.shards).saturating_add(count);
            let found =
                if all > COUNTLESS { format!("more than {COUNTLESS}") } else { all.to_string() };
            return Err(format!(
                "at most {MAX_SHARDS} shards in all lists together, and with this text there would be \
                 {found}"
            ));
        }
        if bytes > self.bytes {
            let all = (MAX_NAMES as u64 - self.bytes).saturating_add(bytes);
            return Err(format!(
                "names of at most {MAX_NAMES} bytes in all lists together, and with this text there \
                 would be {all}"
            ));
        }
        self.shards -= count;
        self.bytes -= bytes;
        Ok(())
    }
}

impl<'t> Pattern<'t> {
    /// Reads a text with braces.
    ///
    /// # Errors
    /// As [`super::expand`].
    pub(super) fn parse(text: &'t str) -> Result<Self, String> {
        Self::within(text, text, 0)
    }

    /// Reads a part of `whole`.
    fn within(whole: &str, text: &'t str, depth: usize) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, brace) = rest.split_at(at);
            if brace.starts_with('}') {
                return Err(unbalanced(whole, brace, '}'));
            }
            let Some(inside) = inside(brace) else { return Err(unbalanced(whole, brace, '{')) };
            if !before.is_empty() {
                pieces.push(Piece::Text(before));
            }
            pieces.push(Piece::parse(whole, inside, depth + 1)?);
            rest = &brace[inside.len() + 2..];
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest));
        }
        Ok(Self(pieces))
    }

    /// Returns how much the pattern stands for.
    pub(super) fn extent(&self) -> Extent {
        let one = Extent { count: 1, bytes: 0 };
        self.0.iter().map(Piece::extent).fold(one, |all, piece| Extent {
            count: all.count.saturating_mul(piece.count),
            bytes: all
                .bytes
                .saturating_mul(piece.count)
                .saturating_add(piece.bytes.saturating_mul(all.count)),
        })
    }

    /// Returns all texts the pattern stands for, in order: what comes last varies fastest.
    pub(super) fn expand(&self) -> Vec<String> {
        let mut all = vec![String::new()];
        for piece in &self.0 {
            let choices = match piece {
                Piece::Text(text) => {
                    all.iter_mut().for_each(|one| one.push_str(text));
                    continue;
                }
                Piece::Range(range) => range.expand(),
                Piece::Choice(patterns) => patterns.iter().flat_map(Self::expand).collect(),
            };
            all = match &choices[..] {
                [only] => {
                    all.iter_mut().for_each(|one| one.push_str(only));
                    all
                }
                _ => all
                    .iter()
                    .flat_map(|one| {
                        choices.iter().map(move |choice| [one, choice.as_str()].concat())
                    })
                    .collect(),
            };
        }
        all
    }
}

impl<'t> Piece<'t> {
    fn parse(whole: &str, inside: &'t str, depth: usize) -> Result<Self, String> {
        if depth > MAX_DEPTH {
            let at = place(whole, inside) - 1;
            return Err(format!(
                "braces in braces at most {MAX_DEPTH} deep, and those at character {at} are deeper"
            ));
        }
        if let Some(range) = Range::parse(inside)? {
            return Ok(Self::Range(range));
        }
        let parts = parts(inside);
        if parts.len() < 2 {
            let at = place(whole, inside) - 1;
            return Err(format!(
                "a list {{a,b}} or a range {{000..127}} inside braces, and those at character {at} \
                 hold neither"
            ));
        }
        let patterns = parts.into_iter().map(|part| Pattern::within(whole, part, depth));
        Ok(Self::Choice(patterns.collect::<Result<_, _>>()?))
    }

    fn extent(&self) -> Extent {
        match self {
            Self::Text(text) => Extent { count: 1, bytes: text.len() as u64 },
            Self::Range(range) => range.extent(),
            Self::Choice(patterns) => {
                let none = Extent { count: 0, bytes: 0 };
                patterns.iter().map(Pattern::extent).fold(none, |all, one| Extent {
                    count: all.count.saturating_add(one.count),
                    bytes: all.bytes.saturating_add(one.bytes),
                })
            }
        }
    }
}

impl Range {
    /// Returns the range that stands in braces, if one does.
    fn parse(inside: &str) -> Result<Option<Self>, String> {
        let ends: Vec<&str> = inside.splitn(4, "..").collect();
        let (first, last, step) = match ends[..] {
            [first, last] => (first, last, "1"),
            [first, last, step] => (first, last, step),
            _ => return Ok(None),
        };
        let given = [first, last, step];
        if !given
            .into_iter()
            .all(|end| !digits(end).is_empty() && digits(end).chars().all(is_digit))
        {
            return Ok(None);
        }
        let longest = given.into_iter().map(|end| digits(end).len()).max().unwrap_or(0);
        let number = |text: &str| text.parse::<i64>().ok().filter(|_| longest <= MAX_DIGITS);
        let (Some(low), Some(high), Some(step)) = (number(first), number(last), number(step))
        else {
            return Err(format!(
                "numbers of at most {MAX_DIGITS} digits in a range, and this one has {longest}"
            ));
        };
        let padded = |text: &str| digits(text).starts_with('0') && text.len() > 1;
        let width = if padded(first) || padded(last) { first.len().max(last.len()) } else { 0 };
        let step = step.abs().max(1);
        let count = low.abs_diff(high) / step.unsigned_abs() + 1;
        Ok(Some(Self { first: low, step: if high >= low { step } else { -step }, count, width }))
    }

    fn nth(&self, n: u64) -> String {
        // Between the ends, whose difference fits.
        let number = self.first + self.step * n as i64;
        format!("{number:0width$}", width = self.width)
    }

    /// Numbers between the ends are no longer than the ends.
    fn extent(&self) -> Extent {
        let longest = self.nth(0).len().max(self.nth(self.count - 1).len());
        Extent { count: self.count, bytes: self.count.saturating_mul(longest as u64) }
    }

    fn expand(&self) -> Vec<String> {
        (0..self.count).map(|n| self.nth(n)).collect()
    }
}

fn is_digit(character: char) -> bool {
    character.is_ascii_digit()
}

fn digits(number: &str) -> &str {
    number.strip_prefix(['+', '-']).unwrap_or(number)
}

/// Returns what stands between the brace that `text` begins with and the one that closes it.
fn inside(text: &str) -> Option<&str> {
    let mut depth = 0_usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&text[1..at]);
        }
    }
    None
}

/// Splits at commas outside of further braces, which are balanced.
fn parts(inside: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    let outside = |character: char| {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        character == ',' && depth == 0
    };
    inside.split(outside).collect()
}

/// Returns the character, counted from 1, at which `part` of `whole` begins.
fn place(whole: &str, part: &str) -> usize {
    let before = (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize);
    whole.get(..before).map_or(0, |text| text.chars().count()) + 1
}

fn unbalanced(whole: &str, brace: &str, which: char) -> String {
    let at = place(whole, brace);
    match which {
        '{' => {
            format!("a closing brace for every opening one, and the {{ at character {at} has none")
        }
        _ => {
            format!("an opening brace for every closing one, and the }} at character {at} has none")
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn expanded(text: &str) -> Vec<String> {
        Pattern::parse(text).unwrap().expand()
    }

    fn refused(text: &str) -> String {
        let fits = |pattern: Pattern<'_>| Budget::default().take(pattern.extent());
        Pattern::parse(text).and_then(fits).unwrap_err()
    }

    #[test]
    fn ranges_are_padded_as_their_ends_are_and_go_either_way() {
        assert_eq!(expanded("{098..101}"), ["098", "099", "100", "101"]);
        assert_eq!(expanded("{4..0..2}"), ["4", "2", "0"]);
        assert_eq!(expanded("{-1..1}"), ["-1", "0", "1"]);
        assert_eq!(expanded("{-01..1}"), ["-01", "000", "001"]);
        assert_eq!(expanded("{0..1..0}"), ["0", "1"]);
        assert_eq!(expanded("{0..5..9}"), ["0"]);
        assert_eq!(expanded("{0..0}"), ["0"]);
    }

    #[test]
    fn lists_nest_and_what_comes_last_varies_fastest() {
        assert_eq!(expanded("{a,b{1,2}}x{8..9}"), ["ax8", "ax9", "b1x8", "b1x9", "b2x8", "b2x9"]);
        assert_eq!(expanded("{,a}"), ["", "a"]);
        assert_eq!(expanded(""), [""]);
    }

    /// determined PR#2688, bashkit#493: the number of a range's members overflowed, or a width beyond
    /// what a formatter takes; both were panics.
    #[test]
    fn a_range_of_extreme_ends_is_refused() {
        let shards =
            "at most 1000000 shards in all lists together, and with this text there would be";
        assert_eq!(
            refused("{0..9223372036854775807}"),
            "numbers of at most 18 digits in a range, and this one has 19"
        );
        assert_eq!(
            refused(&format!("{{{}..1}}", "0".repeat(100_001))),
            "numbers of at most 18 digits in a range, and this one has 100001"
        );
        let nines = "9".repeat(18);
        assert_eq!(
            refused(&format!("{{-{nines}..{nines}}}")),
            format!("{shards} more than 1000000000000000")
        );
        assert_eq!(refused("{0..9999999}"), format!("{shards} 10000000"));
    }

    /// CVE-2026-14257, open_clip#278: a few kilobytes of braces stood for gigabytes.
    #[test]
    fn what_would_not_fit_memory_is_refused_before_it_is_expanded() {
        let shards =
            "at most 1000000 shards in all lists together, and with this text there would be";
        assert_eq!(refused(&"{a,b}".repeat(1500)), format!("{shards} more than 1000000000000000"));
        assert_eq!(refused(&"{0..999}".repeat(3)), format!("{shards} 1000000000"));
        let long = format!("{}{{0..99999}}", "x".repeat(1000));
        assert_eq!(
            refused(&long),
            "names of at most 12582912 bytes in all lists together, and with this text there would be \
             100500000"
        );
        let deep = format!("{}a,b{}", "{a,".repeat(50_000), "}".repeat(50_000));
        assert_eq!(
            refused(&deep),
            "braces in braces at most 16 deep, and those at character 49 are deeper"
        );
    }

    #[test]
    fn many_braces_that_stand_for_one_text_take_no_longer_than_the_text() {
        assert_eq!(expanded(&"{7..7}".repeat(100_000)), ["7".repeat(100_000)]);
    }

    proptest! {
        #[test]
        fn the_extent_is_what_expanding_gives(text in r"(\{[a{},.0-2]{0,9}\}|[a,-]){0,5}") {
            if let Ok(pattern) = Pattern::parse(&text)
                && pattern.extent().count < 10_000
            {
                let all = pattern.expand();
                let extent = pattern.extent();
                prop_assert_eq!(all.len() as u64, extent.count);
                let bytes = all.iter().map(String::len).sum::<usize>() as u64;
                prop_assert!(bytes <= extent.bytes, "{} of {}", bytes, extent.bytes);
            }
        }
    }
}
