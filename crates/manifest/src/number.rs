//! Numbers as people write them: `20M` samples, `256Ki` rows, `512MiB`, `10m` of time.

use std::borrow::Cow;

use schemars::JsonSchema;

use crate::limits::MAX_COUNT;

/// Suffixes of counts: powers of 1000, and powers of 1024 with an `i`.
const COUNT_SUFFIXES: &[(&str, u64)] = &[
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("K", 1_000),
    ("k", 1_000),
    ("M", 1_000_000),
    ("B", 1_000_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
];

/// Suffixes of byte sizes. A lone `B` is left out: it means a billion in a count.
const BYTES_SUFFIXES: &[(&str, u64)] = &[
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// Suffixes of times, as seconds.
const SECONDS_SUFFIXES: &[(&str, u64)] = &[("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)];

const COUNT_PATTERN: &str =
    r"^(0|[1-9](_?[0-9])*)(\.[0-9](_?[0-9])*)?([eE][0-9]+)? *(Ki|Mi|Gi|Ti|K|k|M|B|G|T)?$";
const BYTES_PATTERN: &str =
    r"^(0|[1-9](_?[0-9])*)(\.[0-9](_?[0-9])*)?([eE][0-9]+)? *(KiB|MiB|GiB|TiB|KB|kB|MB|GB|TB)?$";

const SECONDS_PATTERN: &str = r"^(0|[1-9](_?[0-9])*)(\.[0-9](_?[0-9])*)?([eE][0-9]+)? *(s|m|h|d)?$";

/// Texts that whole numbers of any field may be written as, signs included.
pub(crate) const WHOLE_PATTERN: &str =
    r"^-?(0|[1-9](_?[0-9])*)(\.[0-9](_?[0-9])*)?([eE][0-9]+)? *(Ki|Mi|Gi|Ti|K|k|M|B|G|T)?$";

/// Texts that other numbers may be written as.
pub(crate) const REAL_PATTERN: &str =
    r"^[-+]?[0-9](_?[0-9])*(\.([0-9](_?[0-9])*)?)?([eE][-+]?[0-9](_?[0-9])*)?$";

/// What the text of a count may look like, for messages.
pub(crate) const COUNT_SUFFIX_FORM: &str =
    "plain or with K, M, B, T (powers of 1000) or Ki, Mi, Gi, Ti (powers of 1024)";

/// What the text of a size may look like, for messages.
pub(crate) const BYTES_FORM: &str = "a number of bytes, plain or with KB, MB, GB, KiB, MiB, GiB";

/// What the text of a time may look like, for messages.
pub(crate) const SECONDS_SUFFIX_FORM: &str = "plain or with s, m, h, d, as in 90, 10m or 1.5h";

/// Schema of a count of samples or steps: an integer, or text such as `20M`, `1.5B` or `256Ki`.
#[derive(JsonSchema)]
#[schemars(inline, with = "u64")]
#[schemars(extend("type" = ["integer", "string"], "format" = "count", "pattern" = COUNT_PATTERN))]
pub(crate) struct Count;

/// Schema of a size in bytes: an integer, or text such as `256MiB`.
#[derive(JsonSchema)]
#[schemars(inline, with = "u64")]
#[schemars(extend("type" = ["integer", "string"], "format" = "bytes", "pattern" = BYTES_PATTERN))]
pub(crate) struct ByteSize;

/// Schema of a time in seconds: an integer, or text such as `30s`, `10m` or `2h`.
#[derive(JsonSchema)]
#[schemars(inline, with = "u64")]
#[schemars(extend("type" = ["integer", "string"], "format" = "seconds", "pattern" = SECONDS_PATTERN))]
pub(crate) struct Seconds;

/// Returns the count that `text` stands for, or none where it is not one or does not fit 64 bits.
pub(crate) fn parse_count(text: &str) -> Option<u64> {
    parse_with(text, COUNT_SUFFIXES)
}

/// Returns the number of bytes that `text` stands for.
pub(crate) fn parse_bytes(text: &str) -> Option<u64> {
    parse_with(text, BYTES_SUFFIXES)
}

/// Returns the seconds that `text` stands for.
pub(crate) fn parse_seconds(text: &str) -> Option<u64> {
    parse_with(text, SECONDS_SUFFIXES)
}

/// Returns the whole number, with a sign or not, that `text` stands for: written as counts are.
pub(crate) fn parse_whole(text: &str) -> Option<serde_yaml::Number> {
    match text.strip_prefix('-') {
        Some(size) => {
            let size = i64::try_from(parse_count(size)?).ok()?;
            Some(serde_yaml::Number::from(-size))
        }
        None => parse_count(text).map(serde_yaml::Number::from),
    }
}

/// Returns the number that `text` with underscores between its digits stands for.
pub(crate) fn parse_real(text: &str) -> Option<f64> {
    let digits = without_underscores(text)?;
    let begins = digits.trim_start_matches(['+', '-']).starts_with(|c: char| c.is_ascii_digit());
    // Neither `inf` nor `nan`: these are no numbers to compute with.
    digits.parse().ok().filter(|number: &f64| begins && number.is_finite())
}

/// Returns `text` without underscores; none where one does not stand between two digits.
fn without_underscores(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('_') {
        return Some(Cow::Borrowed(text));
    }
    let bytes = text.as_bytes();
    let digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
    let between = |at: usize| digit(at.checked_sub(1)) && digit(at.checked_add(1));
    let right = text.match_indices('_').all(|(at, _)| between(at));
    right.then(|| Cow::Owned(text.replace('_', "")))
}

/// Decimal digits are exact: `1.1M` is 1 100 000, and `1.0005K` is refused for not being whole.
fn parse_with(text: &str, suffixes: &[(&str, u64)]) -> Option<u64> {
    let (digits, factor) = suffixes
        .iter()
        .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)))
        .unwrap_or((text, 1));
    let digits = without_underscores(digits.trim_end())?;
    let (mantissa, exponent) = match digits.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<u32>().ok()?),
        None => (&*digits, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    // YAML 1.1 reads digits behind a zero as octal, later versions as text.
    let octal = whole.len() > 1 && whole.starts_with('0');
    if octal || !whole.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }

    let mut value: u128 = 0;
    for character in whole.chars().chain(fraction.chars()) {
        let digit = character.to_digit(10)?;
        value = value.checked_mul(10)?.checked_add(u128::from(digit))?;
    }
    let scale = 10_u128.checked_pow(exponent)?.checked_mul(u128::from(factor))?;
    let divisor = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let scaled = value.checked_mul(scale)?;
    if scaled % divisor != 0 {
        return None;
    }
    u64::try_from(scaled / divisor).ok()
}

/// Returns the integer that a float is exactly, where it is one below [`MAX_COUNT`].
pub(crate) fn whole(value: f64) -> Option<u64> {
    let fits = (0.0..MAX_COUNT as f64).contains(&value) && value.fract() == 0.0;
    fits.then_some(value as u64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::schema;

    #[test]
    fn suffixes_multiply_exactly() {
        for (text, value) in [
            ("0", 0),
            ("1_000", 1_000),
            ("20M", 20_000_000),
            ("3B", 3_000_000_000),
            ("1.1M", 1_100_000),
            ("256Ki", 262_144),
            ("2 Gi", 2_147_483_648),
            ("12.8e6", 12_800_000),
        ] {
            assert_eq!(parse_count(text), Some(value), "{text}");
        }
        assert_eq!(parse_bytes("256MiB"), Some(268_435_456));
        assert_eq!(parse_bytes("1.5GB"), Some(1_500_000_000));
    }

    #[test]
    fn times_are_whole_seconds_with_or_without_a_unit() {
        for (text, value) in
            [("90", 90), ("30s", 30), ("10 m", 600), ("1.5h", 5_400), ("2d", 172_800)]
        {
            assert_eq!(parse_seconds(text), Some(value), "{text}");
        }
        for text in ["", "s", "0.5s", "-1m", "10M", "10min", "1h30m", "ten"] {
            assert_eq!(parse_seconds(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_whole_number_is_refused() {
        for text in [
            "", "M", "-3", "1.0005K", "3 apples", "1e99", "99999T99", ".5M", "20MB", "_1", "1_",
            "1__0", "1_.5M", "1_M", "0100", "00",
        ] {
            assert_eq!(parse_count(text), None, "{text}");
        }
        for text in ["3B", "20M", "1.5"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
        for text in
            ["9".repeat(100_000), format!("1.{}", "0".repeat(100_000)), format!("1e{}", u32::MAX)]
        {
            assert_eq!(parse_count(&text), None);
        }
    }

    #[test]
    fn every_number_may_have_underscores_between_digits() {
        assert_eq!(parse_count("1.5_0M"), Some(1_500_000), "they do not count as digits");
        assert_eq!(parse_whole("1_024"), Some(1024.into()));
        assert_eq!(parse_whole("-1_024"), Some((-1024).into()));
        assert_eq!(parse_whole("32Ki"), Some(32_768.into()));
        assert_eq!(parse_whole("-"), None);
        assert_eq!(parse_real("0.000_1"), Some(0.0001));
        assert_eq!(parse_real("-1_0e-1"), Some(-1.0));
        for text in ["inf", "-inf", "nan", "1e999", "_1", "1_", "0._1", "", "-", "0x10", "1 000"] {
            assert_eq!(parse_real(text), None, "{text}");
        }
    }

    #[test]
    fn yaml_gives_counts_as_integers_floats_and_text() {
        let count = schemars::schema_for!(Count).to_value();
        let read = |text| {
            let value = serde_yaml::from_str(text).unwrap();
            schema::scalar_fits(&value, &count).then(|| schema::plain_count(&value, &count))?
        };
        assert_eq!(read("7"), Some(7));
        assert_eq!(read("1e6"), Some(1_000_000));
        assert_eq!(read("20M"), Some(20_000_000));
        assert_eq!(read("-1"), None);
        assert_eq!(read("0.5"), None);
    }
}
