//! What a measurement came to: for scripts as one line of JSON, for people as a table.

use std::time::Duration;

use anyhow::{Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::recorder::Seen;
use ringmaster_words::thousands;

/// Targets of the control plane; `--check` fails where one is missed.
const HEARTBEAT_P99: Duration = Duration::from_millis(100);
const ASSIGNMENT_MAX: Duration = Duration::from_secs(1);
const PEAK_RSS: u64 = 1 << 30;

/// One measurement.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) agents: u32,
    pub(crate) jobs: u32,
    pub(crate) ranks: u32,
    pub(crate) slots: u32,
    pub(crate) register_seconds: f64,
    /// From the first submission until every ring was formed.
    pub(crate) submitting_seconds: f64,
    /// From the first submission to the end; heartbeats of all this time count.
    pub(crate) window_seconds: f64,
    pub(crate) seen: Seen,
    pub(crate) coordinator_cores: f64,
    pub(crate) agents_cores: f64,
    pub(crate) peak_rss_bytes: u64,
    pub(crate) jobs_running: usize,
    pub(crate) jobs_succeeded: usize,
    pub(crate) jobs_listed: usize,
}

impl Report {
    fn unanswered(&self) -> u64 {
        self.seen.heartbeats_sent - self.seen.round_trips.len() as u64
    }

    /// One flat object; units are in the names.
    pub(crate) fn json(&self) -> Value {
        let mut object = json!({
            "bench": "control-plane",
            "agents": self.agents,
            "jobs": self.jobs,
            "ranks_per_job": self.ranks,
            "slots_per_agent": self.slots,
            "cores_of_host": std::thread::available_parallelism().map_or(0, usize::from),
            "register_seconds": round(self.register_seconds),
            "submitting_seconds": round(self.submitting_seconds),
            "window_seconds": round(self.window_seconds),
            "heartbeats_sent": self.seen.heartbeats_sent,
            "heartbeats_unanswered": self.unanswered(),
            "coordinator_peak_rss_bytes": self.peak_rss_bytes,
            "coordinator_cores": round(self.coordinator_cores),
            "agents_cores": round(self.agents_cores),
            "jobs_listed": self.jobs_listed,
            "jobs_running": self.jobs_running,
            "jobs_succeeded": self.jobs_succeeded,
            "ranks_regenerated": self.seen.regenerated,
            "failures": self.seen.troubles,
        });
        let series = [
            ("heartbeat_round_trip", &self.seen.round_trips),
            ("submit_to_reply", &self.seen.replies),
            ("submit_to_assignment", &self.seen.assignments),
            ("submit_to_ring", &self.seen.rings),
        ];
        for (name, times) in series {
            for (percentile, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
                object[format!("{name}_{percentile}_ms")] =
                    round(millis(quantile(times, share))).into();
            }
        }
        object
    }

    /// The same for people.
    pub(crate) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header(["milliseconds", "p50", "p99", "max", ""]);
        let rows = [
            ("heartbeat round trip", &self.seen.round_trips, "from when it was due to its answer"),
            ("submit to reply", &self.seen.replies, "durable"),
            (
                "submit to assignment",
                &self.seen.assignments,
                "its last rank's start is at the agent",
            ),
            ("submit to ring", &self.seen.rings, "its last rank was told the plan"),
        ];
        for (name, times, note) in rows {
            let cell = |share| format!("{:.1}", millis(quantile(times, share)));
            table.add_row([name.to_owned(), cell(0.5), cell(0.99), cell(1.0), note.to_owned()]);
        }
        for column in 1..4 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let trouble = self.seen.first_trouble.as_deref().unwrap_or("no failures");
        format!(
            "{table}\n{} agents registered in {:.1} s; {} heartbeats in {:.1} s, {} unanswered\n\
             {} jobs of {} ranks in {:.1} s; {} run, {} succeeded; {trouble}\n\
             coordinator: {:.0} MiB at most, {:.2} cores; simulated agents: {:.2} cores",
            thousands(self.agents.into()),
            self.register_seconds,
            thousands(self.seen.heartbeats_sent),
            self.window_seconds,
            self.unanswered(),
            thousands(self.jobs.into()),
            self.ranks,
            self.submitting_seconds,
            self.jobs_running,
            self.jobs_succeeded,
            self.peak_rss_bytes as f64 / f64::from(1 << 20),
            self.coordinator_cores,
            self.agents_cores,
        )
    }

    /// Says which targets were missed.
    pub(crate) fn check(&self) -> Result<()> {
        let missed: Vec<&str> = [
            (quantile(&self.seen.round_trips, 0.99) < HEARTBEAT_P99, "heartbeat p99 under 100 ms"),
            (quantile(&self.seen.assignments, 1.0) < ASSIGNMENT_MAX, "assignment under 1 s"),
            (self.peak_rss_bytes < PEAK_RSS, "coordinator under 1 GiB"),
            (self.unanswered() == 0, "every heartbeat answered"),
            (self.seen.troubles == 0 && self.seen.regenerated == 0, "nothing fails"),
            (
                self.jobs_running + self.jobs_succeeded == self.jobs_listed,
                "every job runs or succeeds",
            ),
        ]
        .into_iter()
        .filter_map(|(kept, target)| (!kept).then_some(target))
        .collect();
        if missed.is_empty() {
            return Ok(());
        }
        bail!("missed: {}", missed.join("; "))
    }
}

/// The value that this share of the sorted times does not exceed; zero for none.
fn quantile(sorted: &[Duration], share: f64) -> Duration {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    rank.checked_sub(1).and_then(|index| sorted.get(index)).copied().unwrap_or_default()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_smallest_time_that_covers_the_share() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(quantile(&times, 0.5), Duration::from_millis(100));
        assert_eq!(quantile(&times, 0.99), Duration::from_millis(198));
        assert_eq!(quantile(&times, 1.0), Duration::from_millis(200));
        assert_eq!(quantile(&[], 0.5), Duration::ZERO);
        assert_eq!(quantile(&times[..1], 0.5), Duration::from_millis(1));
    }
}
