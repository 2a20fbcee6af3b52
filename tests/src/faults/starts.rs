//! *s*: how long a fresh rank takes from exec to Join, in the very recovery that it is part of.
//!
//! A fresh rank loads its libraries, opens its data and builds its model before it can join; that depends
//! on the machine and on the model, and no rule of recovery makes it shorter. So recoveries are judged by
//! what they take beyond it.
//!
//! It is taken from what the processes themselves wrote down, all by the clock of one machine. It begins
//! with the agent's line `started a rank`, written when exec has succeeded. It ends with the coordinator's
//! event `running`, written when the last rank has joined: survivors wait in Join for the fresh one. Where
//! the fresh rank's own log says `rank ready` long before that event, it was not the last to join, and that
//! line ends its start: otherwise waiting for others would count as starting, and excuse them.

use std::path::PathBuf;

use serde_json::Value;

/// A rank that is ready joins within this time: it has a message to write.
const JOINING: f64 = 0.05;

/// A process that an agent has started.
#[derive(Debug, Clone, PartialEq)]
pub struct Exec {
    /// Unix seconds.
    pub at: f64,
    /// Where its own words are.
    pub log: PathBuf,
}

/// Reads the processes that an agent has started off its log, in their order.
pub fn execs(log: &str) -> Vec<Exec> {
    let lines = log.lines().filter(|line| line.contains(" started a rank "));
    let exec = |line: &str| {
        let path = line.split_whitespace().find_map(|word| word.strip_prefix("log="))?;
        Some(Exec { at: time_of(line)?, log: PathBuf::from(path) })
    };
    lines.filter_map(exec).collect()
}

/// Returns *s* of a recovery that began with a fault at `struck` and ended with a step at `first`: of the
/// process that was started last before the ring was formed. None if none was started.
pub fn start(struck: f64, first: f64, execs: &[Exec], events: &Value) -> Option<f64> {
    let runs = events.as_array().into_iter().flatten().filter(|event| event["kind"] == "running");
    let formed = runs
        .filter_map(|event| Some(event["at_ms"].as_f64()? / 1000.0))
        .filter(|at| *at >= struck && *at <= first + 0.001)
        .reduce(f64::max)?;
    let fresh = execs.iter().filter(|exec| exec.at >= struck && exec.at <= formed + 0.001);
    let fresh = fresh.max_by(|a, b| a.at.total_cmp(&b.at))?;
    let ready = std::fs::read_to_string(&fresh.log).ok().and_then(|log| ready_at(&log));
    let joined = ready.map_or(formed, |ready| formed.min(ready + JOINING));
    Some((joined - fresh.at).max(0.0))
}

/// When a rank had nothing left to do but to join, by its own log.
fn ready_at(log: &str) -> Option<f64> {
    time_of(log.lines().find(|line| line.contains(" rank ready "))?)
}

/// Returns the time that a log line begins with, as `2026-03-01T12:00:00.250000Z`, in Unix seconds.
fn time_of(line: &str) -> Option<f64> {
    let (date, time) = line.split_whitespace().next()?.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.split('-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let mut time = time.splitn(3, ':');
    let (hours, minutes) = (time.next()?.parse::<i64>().ok()?, time.next()?.parse::<i64>().ok()?);
    let seconds: f64 = time.next()?.parse().ok()?;
    let minutes = (days_since_1970(year, month, day) * 24 + hours) * 60 + minutes;
    Some(minutes as f64 * 60.0 + seconds)
}

/// Counts years from March: what February makes irregular is then at the end.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month > 2 { year } else { year - 1 };
    let months_since_march = (month + 9) % 12;
    let leap_days = year / 4 - year / 100 + year / 400;
    // The last term is the days of whole months; 1970-01-01 is day 719,468 of this count.
    year * 365 + leap_days + (153 * months_since_march + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn is_near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-4
    }

    #[test]
    fn times_of_log_lines_are_unix_seconds() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00.000000Z", 0.0),
            ("2000-02-29T23:59:59.5Z", 951_868_799.5),
            ("2026-03-01T12:00:00.250000Z", 1_772_366_400.25),
            ("2100-12-31T00:00:00Z", 4_133_894_400.0),
        ] {
            assert!(is_near(time_of(text).unwrap(), seconds), "{text}: {:?}", time_of(text));
        }
        assert_eq!(time_of("no time at all"), None);
    }

    /// A log of an agent with two processes, whose own logs are in `folder`.
    fn agent_log(folder: &std::path::Path) -> String {
        let line = |second: &str, rank: u32| {
            format!(
                "2026-03-01T12:00:{second}Z  INFO ringmaster_agent::launcher: started a rank \
                 job_id=tiny-abc234 rank={rank} generation=g1.2 pid=77 log={}/{rank}.log\n",
                folder.display()
            )
        };
        format!(
            "{}2026-03-01T12:00:02Z  INFO x: a rank ended\n{}",
            line("01.5", 0),
            line("03.25", 1)
        )
    }

    #[test]
    fn a_start_ends_with_the_ring_or_where_others_were_waited_for_with_the_ranks_own_word() {
        let folder = tempfile::tempdir().unwrap();
        let execs = execs(&agent_log(folder.path()));
        assert_eq!(execs.len(), 2);
        let noon = 1_772_366_400.0;
        assert!(is_near(execs[1].at, noon + 3.25));
        let formed = |seconds: f64| json!({"kind": "running", "at_ms": (noon + seconds) * 1000.0});
        let events = json!([formed(0.5), {"kind": "placed", "at_ms": 0}, formed(3.6)]);
        let start = |first: f64| start(noon + 3.0, noon + first, &execs, &events);
        assert!(is_near(start(4.0).unwrap(), 0.35), "{:?}", start(4.0));
        assert_eq!(start(3.5), None, "no ring was formed before this step");

        let ready =
            "2026-03-01T12:00:03.45Z  INFO ringmaster_worker::rank: rank ready samples=480\n";
        std::fs::write(folder.path().join("1.log"), ready).unwrap();
        assert!(is_near(start(4.0).unwrap(), 0.25), "{:?}", start(4.0));
        let survivors_only = super::start(noon + 3.3, noon + 4.0, &execs, &events);
        assert_eq!(survivors_only, None, "nothing was started after the fault");
    }
}
