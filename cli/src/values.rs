//! Values of flags that clap has no words for.

use std::time::Duration;

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
