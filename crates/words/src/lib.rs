//! How errors, numbers, lists and times are written for people, wherever they are read: in a terminal,
//! a log, a report. And what people write before names of models, in manifests as on the command line.

use std::error::Error;

use chrono::{DateTime, Utc};

/// Before the path of a folder on this machine that holds a model or weights.
pub const LOCAL_DIR: &str = "local-dir:";
/// Before the name of a repository of a model hub.
pub const HF_HUB: &str = "hf-hub:";

/// Returns an error and its causes in one line, separated by colons.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Returns `n` with commas between groups of three digits: `1,234,567`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns the first `shown` names, and how many more there are: `a, b and 3 more`.
pub fn some_of(names: &[impl AsRef<str>], shown: usize) -> String {
    let first: Vec<&str> = names.iter().take(shown).map(AsRef::as_ref).collect();
    let first = first.join(", ");
    match names.len().saturating_sub(shown) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// Returns the question that proposes what was probably meant, after `separator`; nothing where nothing is
/// near.
pub fn did_you_mean(separator: &str, nearest: &[String]) -> String {
    if nearest.is_empty() {
        return String::new();
    }
    format!("{separator}did you mean {}?", nearest.join(", "))
}

/// Returns Unix milliseconds as a date and time in UTC; the epoch for what no calendar has.
pub fn utc(unix_ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(unix_ms).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn an_error_is_followed_by_its_causes() {
        #[derive(Debug)]
        struct Outer(io::Error);
        impl std::fmt::Display for Outer {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("cannot read a.tar")
            }
        }
        impl Error for Outer {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(&self.0)
            }
        }
        assert_eq!(chain(&Outer(io::Error::other("gone"))), "cannot read a.tar: gone");
    }

    #[test]
    fn digits_are_grouped_from_the_right() {
        assert_eq!([thousands(0), thousands(999), thousands(1_234_567)], ["0", "999", "1,234,567"]);
    }

    #[test]
    fn lists_say_how_much_they_leave_out() {
        assert_eq!(some_of(&["a", "b"], 2), "a, b");
        assert_eq!(some_of(&["a", "b", "c"], 2), "a, b and 1 more");
        assert_eq!(did_you_mean("; ", &["ViT-B-16".to_owned()]), "; did you mean ViT-B-16?");
        assert_eq!(did_you_mean("; ", &[]), "");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let written = |ms| utc(ms).format("%Y-%m-%d %H:%M:%S").to_string();
        assert_eq!(written(1_000), "1970-01-01 00:00:01");
        assert_eq!(written(951_782_400_000), "2000-02-29 00:00:00");
        assert_eq!(written(1_795_464_252_000), "2026-11-23 20:04:12");
        assert_eq!(written(i64::MAX), "1970-01-01 00:00:00");
    }
}
