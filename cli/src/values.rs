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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_split_as_a_shell_splits_it() {
        let split = |text| words(text).map(|words| words.0);
        let expected = ["run", "--bind", "/my data", "a'b"].map(OsString::from).to_vec();
        assert_eq!(split(r#"run  --bind '/my data' "a'b""#), Ok(expected));
        assert!(split("run 'x").is_err_and(|why| why.contains("not closed")));
        assert!(split("  ").is_err_and(|why| why.contains("no command")));
    }
}
