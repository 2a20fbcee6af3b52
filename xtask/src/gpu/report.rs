//! The report of `cargo xtask gpu-check`: every claim about GPUs, and what came of it.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::machine::Machine;
use crate::console;

/// One report: a file under docs/gpu.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Of this format.
    pub(crate) version: u32,
    /// Day (UTC) the claims were run, YYYY-MM-DD.
    pub(crate) date: String,
    /// The source that was run: a commit, with `-dirty` when files had changed.
    pub(crate) revision: String,
    /// Where.
    pub(crate) machine: Machine,
    /// In the order they were run.
    pub(crate) claims: Vec<Claim>,
}

/// What somebody may rely on, and whether it held.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Claim {
    /// Short and stable.
    pub(crate) name: String,
    /// The sentence that is claimed.
    pub(crate) claim: String,
    /// What came of it.
    pub(crate) result: Outcome,
    /// Why it failed or was not run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) reason: Option<String>,
    /// What was measured; as the programs printed it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) numbers: Option<Value>,
    /// The whole claim's time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) seconds: Option<f64>,
}

/// What came of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// It was run and it held.
    #[serde(rename = "passed")]
    Passed,
    /// It was run and did not hold.
    #[serde(rename = "failed")]
    Failed,
    /// It was not run; that says nothing about it.
    #[serde(rename = "not run")]
    NotRun,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::NotRun => "not run",
        }
    }
}

impl Report {
    /// Returns a report without claims.
    pub(crate) fn new(revision: String, machine: Machine) -> Self {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Self { version: 1, date: date(seconds / 86_400), revision, machine, claims: Vec::new() }
    }

    /// Whether any claim failed.
    pub(crate) fn failed(&self) -> bool {
        self.claims.iter().any(|claim| claim.result == Outcome::Failed)
    }

    /// Writes the report, complete or not at all.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let mut text = serde_json::to_string_pretty(self).context("a report is plain data")?;
        text.push('\n');
        let unfinished = path.with_extension("json.tmp");
        std::fs::write(&unfinished, text)
            .and_then(|()| std::fs::rename(&unfinished, path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Prints one line per claim.
    pub(crate) fn print(&self) {
        let mut rows = vec![["claim", "result", "remark"].map(str::to_owned).to_vec()];
        for claim in &self.claims {
            let remark = claim.reason.clone().unwrap_or_default();
            rows.push(vec![claim.name.clone(), claim.result.word().to_owned(), remark]);
        }
        console::out(console::table(&rows).trim_end());
    }
}

/// Writes the day `days` after 1970-01-01 as YYYY-MM-DD. By hand: all other dates are chrono's, which object_store
/// brings, but a fresh clone compiles this crate first, and would wait for a calendar that it needs here only.
fn date(days: u64) -> String {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let (mut year, mut day) = (1970, days);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    format!("{year:04}-{month:02}-{:02}", day + 1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn days_are_written_as_dates() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(11_016), "2000-02-29");
        assert_eq!(date(20_780), "2026-11-23");
        assert_eq!(date(20_818), "2026-12-31");
    }

    #[test]
    fn outcomes_are_the_words_of_the_format() {
        let words: Vec<String> = [Outcome::Passed, Outcome::Failed, Outcome::NotRun]
            .iter()
            .map(|outcome| serde_json::to_string(outcome).unwrap())
            .collect();
        assert_eq!(words, ["\"passed\"", "\"failed\"", "\"not run\""]);
    }
}
