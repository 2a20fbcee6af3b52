//! What a process shows to be the rank that its agent started.

use std::fmt;

/// Told to one process at exec, and to nobody else. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Returns one that nobody can guess: 128 bits from the system.
    pub(super) fn draw() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()))
    }

    /// Takes what an environment or a message holds.
    pub fn of(text: String) -> Self {
        Self(text)
    }

    /// Returns it for an environment or a message.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ_and_are_not_shown() {
        let (one, other) = (Secret::draw(), Secret::draw());
        assert_ne!(one, other);
        assert_eq!(one.reveal().len(), 32);
        assert!(!format!("{one:?}").contains(one.reveal()));
    }
}
