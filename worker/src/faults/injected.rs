//! Faults as `RINGMASTER_FAULT` describes them.

use std::fs::OpenOptions;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringmaster_proto::Seat;

use super::FaultPoint;

/// How long a fault waits for the files that `after` names before it strikes all the same.
const AFTER_LIMIT: Duration = Duration::from_secs(60);
/// Time between two looks for them.
const AFTER_POLL: Duration = Duration::from_millis(2);

/// Every point and its word.
const POINTS: [(&str, FaultPoint); 7] = [
    ("before_reduce", FaultPoint::BeforeReduce),
    ("in_ready", FaultPoint::InReady),
    ("before_apply", FaultPoint::BeforeApply),
    ("after_apply", FaultPoint::AfterApply),
    ("in_eval", FaultPoint::InEval),
    ("before_last_eval", FaultPoint::BeforeLastEval),
    ("after_finish", FaultPoint::AfterFinish),
];

/// What becomes of the rank that a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Die,
    Hang,
    Live,
    Corrupt,
    Pause(Duration),
}

impl FromStr for FaultPoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = POINTS.iter().find(|(word, _)| *word == text);
        known.map(|(_, point)| *point).ok_or_else(|| {
            let words: Vec<&str> = POINTS.iter().map(|(word, _)| *word).collect();
            format!("at={text} is none of {}", words.join(", "))
        })
    }
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fault {
    seat: Seat,
    /// 1-based: the steps that would be applied next.
    steps: RangeInclusive<u64>,
    at: FaultPoint,
    act: Act,
    /// None: every time.
    marker: Option<PathBuf>,
    after: Vec<PathBuf>,
}

/// The faults of this process; usually none.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    faults: Vec<Fault>,
    seat: Seat,
}

impl Faults {
    /// Reads the faults of the rank at `seat` from the text of `RINGMASTER_FAULT`; several are separated by `;`.
    ///
    /// # Errors
    /// Text of another form, with what is expected.
    pub(crate) fn parse(text: Option<&str>, seat: Seat) -> Result<Self, String> {
        let faults = text
            .unwrap_or_default()
            .split(';')
            .filter(|part| !part.trim().is_empty())
            .map(parse_one)
            .collect::<Result<_, _>>()
            .map_err(|e| format!("RINGMASTER_FAULT: {e}"))?;
        Ok(Self { faults, seat })
    }

    /// Dies, hangs or waits here if a fault says so.
    pub(crate) fn strike(&self, step: u64, at: FaultPoint) {
        for fault in self.due(step, at) {
            if !fault.fires() {
                continue;
            }
            match fault.act {
                Act::Die => drop(kill(Pid::this(), Signal::SIGKILL)),
                Act::Hang => loop {
                    std::thread::park();
                },
                Act::Live => {}
                Act::Pause(time) => std::thread::sleep(time),
                Act::Corrupt => unreachable!("it strikes in Faults::corrupts"),
            }
        }
    }

    /// Whether a fault says that this rank's memory is damaged after it has applied `step`.
    pub(crate) fn corrupts(&self, step: u64) -> bool {
        let mut due =
            self.faults.iter().filter(|f| f.is_at(self.seat, step, FaultPoint::AfterApply));
        due.any(|fault| fault.act == Act::Corrupt && fault.fires())
    }

    /// Whether a fault says that this rank is not to learn that *ready* of `step` is over.
    pub(crate) fn ready_is_lost(&self, step: u64) -> bool {
        self.due(step, FaultPoint::InReady).any(Fault::fires)
    }

    fn due(&self, step: u64, at: FaultPoint) -> impl Iterator<Item = &Fault> {
        let here = move |fault: &&Fault| fault.is_at(self.seat, step, at);
        self.faults.iter().filter(here).filter(|fault| fault.act != Act::Corrupt)
    }
}

impl Fault {
    fn is_at(&self, seat: Seat, step: u64, at: FaultPoint) -> bool {
        (self.seat, self.at) == (seat, at) && self.steps.contains(&step)
    }

    /// Leaves the marker and waits for the files it is to come after; false when the marker was
    /// there already.
    fn fires(&self) -> bool {
        if let Some(marker) = &self.marker
            && OpenOptions::new().write(true).create_new(true).open(marker).is_err()
        {
            return false;
        }
        let deadline = Instant::now() + AFTER_LIMIT;
        while !self.after.iter().all(|file| file.exists()) && Instant::now() < deadline {
            std::thread::sleep(AFTER_POLL);
        }
        true
    }
}

fn parse_one(text: &str) -> Result<Fault, String> {
    let (mut seat, mut steps, mut at, mut marker) = (None, None, None, None);
    let (mut act, mut seconds, mut after) = ("die", None, Vec::new());
    for pair in text.trim().split(',') {
        let (key, value) = pair.split_once('=').ok_or_else(|| format!("{pair:?} has no ="))?;
        let bad = |what: &str| format!("{key}={value} is not {what}");
        match key {
            "rank" => seat = Some(Seat(value.parse().map_err(|_| bad("a number"))?)),
            "step" => steps = Some(parse_steps(value).ok_or_else(|| bad("N or FIRST-LAST"))?),
            "at" => at = Some(value.parse()?),
            "marker" => marker = Some(PathBuf::from(value)),
            "after" => after.push(PathBuf::from(value)),
            "act" => act = value,
            "seconds" => seconds = Some(value.parse().map_err(|_| bad("a number"))?),
            other => {
                return Err(format!(
                    "{other:?} is none of rank, step, at, act, seconds, marker, after"
                ));
            }
        }
    }
    let missing = |key: &str| format!("{text:?} lacks {key}=");
    let fault = Fault {
        seat: seat.ok_or_else(|| missing("rank"))?,
        steps: steps.ok_or_else(|| missing("step"))?,
        at: at.ok_or_else(|| missing("at"))?,
        act: parse_act(act, seconds.ok_or_else(|| missing("seconds")))?,
        marker,
        after,
    };
    // What happens once and for all must not happen again to the rank that comes next.
    if fault.marker.is_none() && !matches!(fault.act, Act::Pause(_)) {
        Err(missing("marker"))
    } else {
        Ok(fault)
    }
}

fn parse_steps(text: &str) -> Option<RangeInclusive<u64>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

fn parse_act(word: &str, seconds: Result<f64, String>) -> Result<Act, String> {
    match word {
        "die" => Ok(Act::Die),
        "hang" => Ok(Act::Hang),
        "live" => Ok(Act::Live),
        "corrupt" => Ok(Act::Corrupt),
        "pause" => {
            let seconds = seconds?;
            let time = Duration::try_from_secs_f64(seconds);
            time.map(Act::Pause).map_err(|_| format!("seconds={seconds} is no time"))
        }
        other => Err(format!("act={other} is none of die, hang, live, corrupt, pause")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn faults_parse_and_mistakes_say_what_is_allowed() {
        let text = "rank=1,step=7,at=before_apply,marker=/tmp/m; rank=0,step=2,at=after_apply,marker=/tmp/n";
        assert_eq!(Faults::parse(Some(text), Seat(1)).map(|f| f.faults.len()), Ok(2));
        assert_eq!(Faults::parse(None, Seat(0)).map(|f| f.faults.len()), Ok(0));
        let error = Faults::parse(Some("rank=1,step=7,at=lunch,marker=/tmp/m"), Seat(1));
        assert_eq!(
            error.err().as_deref(),
            Some(
                "RINGMASTER_FAULT: at=lunch is none of before_reduce, in_ready, before_apply, \
                 after_apply, in_eval, before_last_eval, after_finish"
            )
        );
        assert!(Faults::parse(Some("rank=1"), Seat(1)).is_err_and(|e| e.contains("lacks step=")));
    }

    #[test]
    fn only_a_pause_needs_no_marker_and_it_has_a_length() {
        let parse = |text: &str| Faults::parse(Some(text), Seat(1));
        let place = "rank=1,step=2-4,at=before_reduce";
        let faults = parse(&format!("{place},act=pause,seconds=0.5")).unwrap();
        assert_eq!(faults.faults[0].act, Act::Pause(Duration::from_millis(500)));
        let due = |step| faults.due(step, FaultPoint::BeforeReduce).filter(|f| f.fires()).count();
        assert_eq!([1, 2, 2, 4, 5].map(due), [0, 1, 1, 1, 0], "it comes every time");
        let error = |text: &str| parse(&format!("{place}{text}")).unwrap_err();
        assert!(error("").contains("lacks marker="));
        assert!(error(",act=pause").contains("lacks seconds="));
        assert!(error(",act=pause,seconds=-1").contains("seconds=-1 is no time"));
    }

    #[test]
    fn a_fault_fires_once_and_only_where_it_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let (marker, first) = (folder.path().join("struck"), folder.path().join("first"));
        std::fs::write(&first, "").unwrap();
        let text = format!(
            "rank=2,step=7,at=in_ready,marker={},after={}",
            marker.display(),
            first.display()
        );
        let faults = Faults::parse(Some(&text), Seat(2)).unwrap();
        assert!(!faults.ready_is_lost(6));
        assert!(!Faults::parse(Some(&text), Seat(1)).unwrap().ready_is_lost(7));
        assert!(!marker.exists());
        assert!(faults.ready_is_lost(7));
        assert!(!faults.ready_is_lost(7), "the marker is there");
    }
}
