//! What is wrong with a manifest, where, and what would be right.

use std::fmt;

use crate::source::Position;

/// One mistake in a manifest: `jobs/emoji.yaml:12:5: unknown key …`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{}:{}: {problem}", position.line, position.column)]
pub struct Error {
    /// Name of the manifest file, as it was given to [`crate::parse`].
    pub file: String,
    /// Where the mistake stands.
    pub position: Position,
    /// The mistake.
    pub problem: Problem,
}

/// A mistake, its value, what is allowed and the nearest right thing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The text is not YAML.
    Syntax {
        /// What the YAML parser found.
        detail: String,
    },
    /// There is no document.
    Empty,
    /// There is more than one document.
    SeveralDocuments,
    /// Nested too deeply or expanded too far by aliases.
    TooLarge,
    /// A key appears twice in one mapping.
    DuplicateKey {
        /// The field.
        field: String,
        /// Where it appeared first.
        first: Position,
    },
    /// A key that the format does not have.
    UnknownKey {
        /// The key as written.
        key: String,
        /// The mapping it stands in; empty for the whole file.
        within: String,
        /// What was probably meant.
        hint: Option<Hint>,
        /// The keys this mapping may have.
        known: Vec<String>,
    },
    /// A required key is not there.
    Missing {
        /// The key.
        key: String,
        /// The mapping that should hold it; empty for the whole file.
        within: String,
        /// What belongs there.
        expected: String,
    },
    /// A value that the field does not take.
    Value {
        /// The field.
        field: String,
        /// The value as written, shortened.
        value: String,
        /// What is allowed.
        expected: String,
        /// Allowed values that look like it.
        nearest: Vec<String>,
    },
    /// A value that does not go with the others.
    Conflict {
        /// The field.
        field: String,
        /// The value as written, shortened.
        value: String,
        /// Why, and what to do.
        reason: String,
    },
}

/// What an unknown key was probably meant to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// Another key of the same mapping.
    DidYouMean(String),
    /// The same key elsewhere: the mappings that have it.
    BelongsIn(Vec<String>),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax { detail } => write!(f, "not valid YAML: {detail}"),
            Self::Empty => f.write_str(
                "the file holds nothing; a manifest starts with apiVersion: ringmaster/v1 and \
                 kind: TrainJob",
            ),
            Self::SeveralDocuments => f.write_str(
                "a second YAML document starts here; a manifest is one document, so put this one \
                 in a file of its own",
            ),
            Self::TooLarge => f.write_str("the document is nested too deeply or is too large"),
            Self::DuplicateKey { field, first } => write!(
                f,
                "{field} is given twice, first at line {}, column {}; remove one",
                first.line, first.column
            ),
            Self::UnknownKey { key, within, hint, known } => {
                write!(f, "unknown key {key:?}{}", within_of(within))?;
                match hint {
                    Some(Hint::DidYouMean(name)) => write!(f, "; did you mean {name:?}?")?,
                    Some(Hint::BelongsIn(places)) => {
                        write!(f, "; it belongs in {}", places.join(" or "))?;
                    }
                    None => {}
                }
                write!(f, " (known keys: {})", known.join(", "))
            }
            Self::Missing { key, within, expected } => {
                write!(f, "missing key {key:?}{}; expected {expected}", within_of(within))
            }
            Self::Value { field, value, expected, nearest } => {
                let field = if field.is_empty() { "the file" } else { field };
                write!(f, "{field} is {value}; expected {expected}")?;
                if !nearest.is_empty() {
                    write!(f, "; did you mean {}?", nearest.join(" or "))?;
                }
                Ok(())
            }
            Self::Conflict { field, value, reason } => write!(f, "{field} is {value}: {reason}"),
        }
    }
}

fn within_of(within: &str) -> String {
    if within.is_empty() { String::new() } else { format!(" in {within}") }
}

/// Every mistake of a manifest, in the order of the file. Prints one per line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errors(Vec<Error>);

impl Errors {
    /// Sorts the mistakes by place.
    pub(crate) fn new(mut errors: Vec<Error>) -> Self {
        errors.sort_by_key(|error| error.position);
        Self(errors)
    }

    /// Returns the mistakes; there is at least one.
    pub fn iter(&self) -> std::slice::Iter<'_, Error> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a Errors {
    type Item = &'a Error;
    type IntoIter = std::slice::Iter<'a, Error>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}
