//! Panics that end one piece of work instead of the process.
//!
//! A rank ends when any of its threads panics (the rank's panic hook). Decoders of other people's
//! files are written by others and meet anything; a file one of them panics at is one corrupt sample.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, and returns what it said when it panics. State that it shares with others must be
/// sound after a panic at any place.
///
/// # Errors
/// The panic's message.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let before = CAUGHT.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    CAUGHT.set(before);
    result.map_err(|payload| message(payload.as_ref()))
}

/// Returns whether a panic of this thread is caught by [`caught`]: hooks let it pass in silence.
pub fn is_caught() -> bool {
    CAUGHT.get()
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
    text.unwrap_or("a value that is no text").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message_and_the_next_one_is_not_caught() {
        assert_eq!(caught(|| 7), Ok(7));
        let length = |list: &[u8]| list[3];
        let Err(message) = caught(|| length(&[0; 2])) else { unreachable!("there is no fourth") };
        assert!(message.contains("index out of bounds"), "{message}");
        assert_eq!(caught(|| caught(|| 7).map(|_| is_caught())), Ok(Ok(true)));
        assert!(!is_caught());
    }
}
