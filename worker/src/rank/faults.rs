//! Faults that a test asks for, by rank, step and place instead of by the clock.
//!
//! `RINGMASTER_FAULT=rank=1,step=7,at=before_reduce,marker=/tmp/x` makes rank 1 die of SIGKILL in
//! step 7 before it reduces its gradients. The fault fires only if it can create the marker file,
//! so exactly once, however often the rank is restarted; the file tells the test that it did.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::str::FromStr;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A place in a training step where a fault can strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Gradients computed, their reduction not started.
    BeforeReduce,
    /// *Ready* passed, gradients not applied.
    BeforeApply,
    /// Gradients applied.
    AfterApply,
    /// The last checkpoint is published, the last evaluation not begun.
    BeforeLastEval,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "before_reduce" => Ok(Self::BeforeReduce),
            "before_apply" => Ok(Self::BeforeApply),
            "after_apply" => Ok(Self::AfterApply),
            "before_last_eval" => Ok(Self::BeforeLastEval),
            other => Err(format!(
                "at={other} is none of before_reduce, before_apply, after_apply, before_last_eval"
            )),
        }
    }
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fault {
    rank: u32,
    /// 1-based: the step that would be applied next.
    step: u64,
    at: Place,
    marker: PathBuf,
}

/// The faults of this process; usually none.
#[derive(Debug, Default)]
pub(super) struct Faults {
    faults: Vec<Fault>,
    rank: u32,
}

impl Faults {
    /// Reads the faults of `rank` from the text of `RINGMASTER_FAULT`; several are separated by `;`.
    ///
    /// # Errors
    /// Text of another form, with what is expected.
    pub(super) fn parse(text: Option<&str>, rank: u32) -> Result<Self, String> {
        let faults = text
            .unwrap_or_default()
            .split(';')
            .filter(|part| !part.trim().is_empty())
            .map(parse_one)
            .collect::<Result<_, _>>()
            .map_err(|e| format!("RINGMASTER_FAULT: {e}"))?;
        Ok(Self { faults, rank })
    }

    /// Dies here if a fault says so.
    pub(super) fn strike(&self, step: u64, at: Place) {
        for fault in &self.faults {
            if (fault.rank, fault.step, fault.at) != (self.rank, step, at) {
                continue;
            }
            if OpenOptions::new().write(true).create_new(true).open(&fault.marker).is_ok() {
                let _ = kill(Pid::this(), Signal::SIGKILL);
            }
        }
    }
}

fn parse_one(text: &str) -> Result<Fault, String> {
    let (mut rank, mut step, mut at, mut marker) = (None, None, None, None);
    for pair in text.trim().split(',') {
        let (key, value) = pair.split_once('=').ok_or_else(|| format!("{pair:?} has no ="))?;
        let number = || value.parse::<u32>().map_err(|_| format!("{key}={value} is not a number"));
        match key {
            "rank" => rank = Some(number()?),
            "step" => step = Some(u64::from(number()?)),
            "at" => at = Some(value.parse()?),
            "marker" => marker = Some(PathBuf::from(value)),
            other => return Err(format!("{other:?} is none of rank, step, at, marker")),
        }
    }
    let missing = |key: &str| format!("{text:?} lacks {key}=");
    Ok(Fault {
        rank: rank.ok_or_else(|| missing("rank"))?,
        step: step.ok_or_else(|| missing("step"))?,
        at: at.ok_or_else(|| missing("at"))?,
        marker: marker.ok_or_else(|| missing("marker"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_parse_and_mistakes_say_what_is_allowed() {
        let text = "rank=1,step=7,at=before_apply,marker=/tmp/m; rank=0,step=2,at=after_apply,marker=/tmp/n";
        assert_eq!(Faults::parse(Some(text), 1).map(|f| f.faults.len()), Ok(2));
        assert_eq!(Faults::parse(None, 0).map(|f| f.faults.len()), Ok(0));
        let error = Faults::parse(Some("rank=1,step=7,at=lunch,marker=/tmp/m"), 1);
        assert_eq!(
            error.err().as_deref(),
            Some(
                "RINGMASTER_FAULT: at=lunch is none of before_reduce, before_apply, after_apply, before_last_eval"
            )
        );
        assert!(Faults::parse(Some("rank=1"), 1).is_err_and(|e| e.contains("lacks step=")));
    }
}
