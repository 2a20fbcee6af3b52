//! Tests that lack what they need: the one place where they say so.
//!
//! A test that returns early counts as passed, and what it prints is not shown. So each skip is
//! written down for `cargo xtask test`, which counts them beside the passed ones and says why; and
//! where `RINGMASTER_REQUIRE` (a list separated by commas) names the kind of thing that is missing, the
//! test fails instead.

mod record;

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;

pub use self::record::{Extent, FILE, REQUIRE, Record, is_required};

/// Notes that the running test skips everything, because something of a kind is missing. `why` is the
/// same for all tests that lack the same thing, and says what to do about it.
///
/// # Panics
/// When `RINGMASTER_REQUIRE` names the kind, or the record cannot be written.
pub fn skip(kind: &str, why: &str) {
    note(kind, why, Extent::Whole);
}

/// Notes that the running test skips a part, or checks less strictly.
///
/// # Panics
/// As [`skip`].
pub fn skip_part(kind: &str, why: &str) {
    note(kind, why, Extent::Part);
}

fn note(kind: &str, why: &str, extent: Extent) {
    assert!(!is_required(kind), "{REQUIRE} names {kind}: {why}");
    // libtest gives each test a thread of its name.
    let test = std::thread::current().name().unwrap_or("a thread without a name").to_owned();
    let record = Record { test, extent, why: why.to_owned() };
    let how = match extent {
        Extent::Whole => "skipped",
        Extent::Part => "skipped in part",
    };
    // Straight to the terminal: what a test prints is shown only when it fails.
    let _ = writeln!(std::io::stderr(), "test {} {how}: {why}", record.test);
    if let Some(file) = std::env::var_os(FILE) {
        append(&file, &record).unwrap_or_else(|error| panic!("{FILE} is {file:?}: {error}"));
    }
}

/// Appends a record in one write, so that those of tests that run at once do not mix.
fn append(file: &OsStr, record: &Record) -> std::io::Result<()> {
    let mut file = File::options().create(true).append(true).open(file)?;
    file.write_all(format!("{record}\n").as_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
