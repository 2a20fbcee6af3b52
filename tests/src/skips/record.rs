//! What a test writes down of what it skipped, for `cargo xtask test` to count; xtask compiles this
//! file, too.

use std::fmt;
use std::str::FromStr;

/// Variable that names the file of records; without it nothing is written down.
pub const FILE: &str = "RINGMASTER_SKIPS";
/// Variable with the kinds of things, separated by commas, whose absence is a failure.
pub const REQUIRE: &str = "RINGMASTER_REQUIRE";

/// Something that was not tested.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// Name of the test.
    pub test: String,
    /// How much of it was skipped.
    pub extent: Extent,
    /// Why, and what to do about it.
    pub why: String,
}

/// How much of a test was skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// All of it: its success says nothing.
    Whole,
    /// A part, or it was checked less strictly.
    Part,
}

/// Whether [`REQUIRE`] names a kind of thing.
pub fn is_required(kind: &str) -> bool {
    std::env::var(REQUIRE).is_ok_and(|list| list.split(',').any(|item| item.trim() == kind))
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let extent = match self.extent {
            Extent::Whole => "whole",
            Extent::Part => "part",
        };
        // One record is one line of three fields, whatever an error message holds.
        let why: Vec<&str> = self.why.split_whitespace().collect();
        write!(f, "{}\t{extent}\t{}", self.test, why.join(" "))
    }
}

impl FromStr for Record {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let fields: Vec<&str> = line.split('\t').collect();
        let [test, extent, why] = fields[..] else {
            return Err(format!("not a record of a skipped test: {line:?}"));
        };
        let extent = match extent {
            "whole" => Extent::Whole,
            "part" => Extent::Part,
            other => return Err(format!("{other:?} is no extent of a skipped test: {line:?}")),
        };
        Ok(Self { test: test.to_owned(), extent, why: why.to_owned() })
    }
}
