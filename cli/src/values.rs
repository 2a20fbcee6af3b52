//! Values of flags that clap does not parse by itself.

use std::ffi::OsString;
use std::time::Duration;

/// The words of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Words(pub(crate) Vec<OsString>);

/// Splits a command into words as a shell does, without its variables and patterns.
///
/// # Errors
/// Nothing but blanks, or an open quotation, in a sentence.
pub(crate) fn words(text: &str) -> Result<Words, String> {
    let words = shlex::split(text).ok_or("a quotation is not closed, or a backslash is the end")?;
    if words.is_empty() {
        return Err("it names no command".to_owned());
    }
    Ok(Words(words.into_iter().map(OsString::from).collect()))
}

/// Reads a number of seconds, whole or not.
///
/// # Errors
/// What is no number, or beyond 1e-3 to 1e9, in a sentence.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    if (1e-3..=1e9).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("it must be from 0.001 to 1e9 seconds".to_owned())
    }
}

/// Reads a number of bytes: `500000`, `64M` and `1.5G` in powers of ten, `512MiB` in powers of two.
///
/// # Errors
/// What is no such number, in a sentence.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let wrong = || format!("{text:?} is no number of bytes; write 500000, 64M or 512MiB");
    let unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "ki" | "kib" => 1 << 10,
        "mi" | "mib" => 1 << 20,
        "gi" | "gib" => 1 << 30,
        _ => return Err(wrong()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(unit).ok_or_else(wrong);
    }
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * unit as f64;
    // Beyond that, a float is no whole number any more.
    if bytes < (1_u64 << 53) as f64 { Ok(bytes.round() as u64) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units_of_ten_and_of_two() {
        let read = ["7", "64M", "1.5G", "512MiB", " 2 kib "].map(bytes);
        let expected = [7, 64_000_000, 1_500_000_000, 512 << 20, 2048].map(Ok);
        assert_eq!(read, expected);
        for wrong in ["", "M", "1.2.3", "5 apples", "-1", "99999999999G", "1e9"] {
            assert!(bytes(wrong).is_err_and(|why| why.contains("512MiB")), "{wrong}");
        }
    }

    #[test]
    fn a_command_is_split_as_a_shell_splits_it() {
        let split = |text| words(text).map(|words| words.0);
        let expected = ["run", "--bind", "/my data", "a'b"].map(OsString::from).to_vec();
        assert_eq!(split(r#"run  --bind '/my data' "a'b""#), Ok(expected));
        assert!(split("run 'x").is_err_and(|why| why.contains("not closed")));
        assert!(split("  ").is_err_and(|why| why.contains("no command")));
    }
}
