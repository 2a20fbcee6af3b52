//! What the README claims of the main job, checked against the run that was just made.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::console;

/// One number of `summary.json` and the bound it must keep.
struct Claim {
    what: &'static str,
    /// JSON pointer into the summary.
    at: &'static str,
    bound: Bound,
    unit: Unit,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

#[derive(Clone, Copy)]
enum Unit {
    Seconds,
    /// Of 0..1 in the file, per cent for people.
    Share,
    Count,
}

const CLAIMS: [Claim; 4] = [
    Claim {
        what: "training time",
        at: "/training_seconds",
        bound: Bound::AtMost(360.0),
        unit: Unit::Seconds,
    },
    Claim {
        what: "zero-shot top-1",
        at: "/zero_shot/top1",
        bound: Bound::AtLeast(0.10),
        unit: Unit::Share,
    },
    Claim {
        what: "zero-shot top-5",
        at: "/zero_shot/top5",
        bound: Bound::AtLeast(0.30),
        unit: Unit::Share,
    },
    Claim {
        what: "distinct captions",
        at: "/zero_shot/classes",
        bound: Bound::AtLeast(1300.0),
        unit: Unit::Count,
    },
];

/// Prints every claim with its limit and what the run reached; returns whether all hold.
///
/// # Errors
/// A summary that is not there or no JSON.
pub(crate) fn check(summary: &Path) -> Result<bool> {
    let text = std::fs::read_to_string(summary)
        .with_context(|| format!("the run left no summary at {}", summary.display()))?;
    let summary: Value = serde_json::from_str(&text)
        .with_context(|| format!("{} is not JSON", summary.display()))?;
    let (rows, holds) = judge(&summary);
    console::out("");
    console::out(console::table(&rows).trim_end());
    console::out(if holds {
        "the run keeps every claim"
    } else {
        "the run does NOT keep every claim"
    });
    Ok(holds)
}

fn judge(summary: &Value) -> (Vec<Vec<String>>, bool) {
    let mut rows = vec![["claim", "limit", "value", ""].map(str::to_owned).to_vec()];
    let mut all_hold = true;
    for claim in &CLAIMS {
        let value = summary.pointer(claim.at).and_then(Value::as_f64);
        let holds = value.is_some_and(|value| claim.bound.holds(value));
        all_hold &= holds;
        let limit = match claim.bound {
            Bound::AtMost(limit) => format!("at most {}", claim.unit.text(limit)),
            Bound::AtLeast(limit) => format!("at least {}", claim.unit.text(limit)),
        };
        let value = value.map_or_else(|| "missing".to_owned(), |value| claim.unit.text(value));
        let verdict = if holds { "ok" } else { "FAILED" };
        rows.push(vec![claim.what.to_owned(), limit, value, verdict.to_owned()]);
    }
    (rows, all_hold)
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

impl Unit {
    fn text(self, value: f64) -> String {
        match self {
            Self::Seconds => format!("{value:.0} s"),
            Self::Share => format!("{:.1} %", value * 100.0),
            Self::Count => format!("{value:.0}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_holds_only_if_every_number_is_there_and_within_its_bound() {
        let good = serde_json::json!({
            "training_seconds": 360.0,
            "zero_shot": {"top1": 0.1, "top5": 0.3, "classes": 1300}
        });
        assert!(judge(&good).1, "the limits themselves are good enough");
        for (at, bad) in [
            ("/training_seconds", serde_json::json!(360.5)),
            ("/zero_shot/top1", serde_json::json!(0.0999)),
            ("/zero_shot/top5", serde_json::json!(null)),
            ("/zero_shot/classes", serde_json::json!(1299)),
        ] {
            let mut summary = good.clone();
            if let Some(value) = summary.pointer_mut(at) {
                *value = bad;
            }
            let (rows, holds) = judge(&summary);
            assert!(!holds, "{at}");
            assert_eq!(rows.iter().filter(|row| row[3] == "FAILED").count(), 1, "{at}");
        }
        assert!(!judge(&serde_json::json!({})).1);
    }
}
