//! What is wrong with a manifest, where, and what would be right.

use std::fmt;

use crate::limits::MAX_MISTAKES;
use crate::position::Position;

/// One mistake in a manifest: `jobs/emoji.yaml:12:5: unknown key …`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{}:{}: {problem}", position.line, position.column)]
pub struct Error {
    /// Name of the manifest file, as it was given to [`crate::parse`]; or `override` and a field, for a
    /// mistake in what takes the place of the file's.
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
        /// What was probably meant.
        hint: Option<&'static str>,
    },
    /// The bytes are not text in an encoding that is read.
    Encoding {
        /// What was found.
        what: String,
    },
    /// There is no document.
    Empty,
    /// There is more than one document.
    SeveralDocuments,
    /// Too long, nested too deeply, or expanded too far by aliases.
    TooLarge {
        /// What was found, and the limit.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A key appears twice in one mapping.
    DuplicateKey {
        /// The field.
        field: String,
        /// Where it appeared first.
        first: Position,
    },
    /// A merge key, `<<`, whose value is no mapping.
    Merge {
        /// The field.
        field: String,
        /// What the value is.
        found: &'static str,
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
        /// The keys it has, separated by commas; empty where it has none.
        present: String,
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

impl Problem {
    /// Returns that a field does not take a value, which is given as it is shown.
    pub(crate) fn value(
        field: impl Into<String>,
        value: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        let nearest = Vec::new();
        Self::Value { field: field.into(), value: value.into(), expected: expected.into(), nearest }
    }
}

impl Problem {
    /// Returns the dotted path of the field that is meant; empty where it is the whole text.
    pub fn field(&self) -> String {
        match self {
            Self::DuplicateKey { field, .. }
            | Self::Merge { field, .. }
            | Self::Value { field, .. }
            | Self::Conflict { field, .. } => field.clone(),
            Self::UnknownKey { key, within, .. } | Self::Missing { key, within, .. } => {
                if within.is_empty() { key.clone() } else { format!("{within}.{key}") }
            }
            Self::Syntax { .. }
            | Self::Encoding { .. }
            | Self::Empty
            | Self::SeveralDocuments
            | Self::TooLarge { .. } => String::new(),
        }
    }
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
            Self::Syntax { detail, hint } => {
                write!(f, "not valid YAML: {detail}")?;
                hint.map_or(Ok(()), |hint| write!(f, "; {hint}"))
            }
            Self::Encoding { what } => {
                write!(f, "{what}; save it as UTF-8, the usual encoding of YAML")
            }
            Self::Empty => f.write_str(
                "the file holds nothing; a manifest starts with apiVersion: ringmaster/v1 and \
                 kind: TrainJob",
            ),
            Self::SeveralDocuments => f.write_str(
                "a second YAML document starts here; a manifest is one document, so put this one \
                 in a file of its own",
            ),
            Self::TooLarge { what, remedy } => write!(f, "{what}; {remedy}"),
            Self::DuplicateKey { field, first } => write!(
                f,
                "{field} is given twice, first at line {}, column {}; remove one",
                first.line, first.column
            ),
            Self::Merge { field, found } => write!(
                f,
                "{field} is {found}; expected a mapping, or a list of mappings, whose keys are taken \
                 over, as in \"<<: *defaults\""
            ),
            Self::UnknownKey { key, within, hint, known } => {
                let within = if within.is_empty() { "" } else { &format!(" in {within}") };
                let hint = hint.as_ref().map_or_else(String::new, Hint::to_string);
                write!(f, "unknown key {key:?}{within}{hint} (known keys: {})", known.join(", "))
            }
            Self::Missing { key, within, present, expected } => {
                let within = or_the_file(within);
                let present =
                    if present.is_empty() { "is empty" } else { &format!("has {present}") };
                write!(f, "missing key {key:?} in {within}, which {present}; expected {expected}")
            }
            Self::Value { field, value, expected, nearest } => {
                write!(f, "{} is {value}; expected {expected}", or_the_file(field))?;
                if nearest.is_empty() {
                    Ok(())
                } else {
                    write!(f, "; did you mean {}?", nearest.join(" or "))
                }
            }
            Self::Conflict { field, value, reason } => write!(f, "{field} is {value}: {reason}"),
        }
    }
}

/// What stands behind the unknown key.
impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DidYouMean(name) => write!(f, "; did you mean {name:?}?"),
            Self::BelongsIn(places) => write!(f, "; it belongs in {}", places.join(" or ")),
        }
    }
}

fn or_the_file(field: &str) -> &str {
    if field.is_empty() { "the file" } else { field }
}

/// The mistakes of a manifest, in the order of the file. Prints one per line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errors {
    mistakes: Vec<Error>,
    left_out: usize,
}

impl Errors {
    /// Sorts the mistakes by place.
    pub(crate) fn new(mut mistakes: Vec<Error>) -> Self {
        mistakes.sort_by_key(|error| error.position);
        let left_out = mistakes.len().saturating_sub(MAX_MISTAKES);
        mistakes.truncate(MAX_MISTAKES);
        Self { mistakes, left_out }
    }

    /// Adds to the number of mistakes that are not told.
    pub(crate) fn and_more(mut self, left_out: usize) -> Self {
        self.left_out += left_out;
        self
    }

    /// Returns the first `most` of these mistakes, and at least one; the others are counted.
    #[must_use]
    pub fn up_to(&self, most: usize) -> Self {
        let mistakes: Vec<Error> = self.mistakes.iter().take(most.max(1)).cloned().collect();
        let left_out = self.left_out + self.mistakes.len() - mistakes.len();
        Self { mistakes, left_out }
    }

    /// Returns how many mistakes there are beyond those that [`Self::iter`] returns.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// Returns the mistakes; there is at least one. Of very many, the first ones.
    pub fn iter(&self) -> std::slice::Iter<'_, Error> {
        self.mistakes.iter()
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
        for (index, error) in self.mistakes.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        match self.left_out {
            0 => Ok(()),
            1 => f.write_str("\nand one more mistake"),
            more => write!(f, "\nand {more} more mistakes"),
        }
    }
}

impl std::error::Error for Errors {}
