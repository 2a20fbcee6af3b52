//! Writing to the terminal: results to standard output, remarks to standard error.

use std::ffi::OsStr;
use std::io::{ErrorKind, IsTerminal as _, Write as _};

use super::error::Error;

/// Whether what is written to standard error may be coloured.
pub(crate) fn colours_on_stderr() -> bool {
    colours(std::io::stderr().is_terminal(), std::env::var_os("NO_COLOR").as_deref())
}

/// Colour codes are for terminals, and not for those whose people do not want them (no-color.org).
fn colours(is_terminal: bool, no_color: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty)
}

/// Writes `text` and a line break to standard output.
///
/// # Errors
/// When standard output cannot be written. A reader that went away (`| head`) is no error.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|source| Error::io("write to standard output", source)),
    }
}

/// Writes `text` and a line break; returns false when the reader went away.
pub(crate) fn print_until_closed(text: &str) -> bool {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).is_ok()
}

/// Writes `value` as indented JSON.
pub(crate) fn print_json(value: &serde_json::Value) -> Result<(), Error> {
    print(&format!("{value:#}"))
}

/// Writes a remark to standard error; failure to do so is ignored.
pub(crate) fn error_line(text: &str) {
    if !text.is_empty() {
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }
}

/// Writes an error and all its causes to standard error.
pub(crate) fn error_chain(error: &dyn std::error::Error) {
    let mut text = format!("error: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!("\n  because {cause}"));
        source = cause.source();
    }
    error_line(&text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals_whose_people_want_them() {
        assert!(colours(true, None) && colours(true, Some(OsStr::new(""))));
        assert!(!colours(true, Some(OsStr::new("1"))));
        assert!(!colours(false, None));
    }
}
