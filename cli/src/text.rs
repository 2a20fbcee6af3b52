//! How numbers, times and states are written for people.

use std::time::Duration;

use ringmaster_proto::v1::{JobState, Phase};
use ringmaster_words::{thousands, utc};

/// Returns a rate with three significant digits or whole thousands: `8.31`, `93.4`, `1,204`.
pub(crate) fn rate(value: f64) -> String {
    match value {
        v if !v.is_finite() || v < 0.0 => "–".to_owned(),
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => thousands(v.round() as u64),
    }
}

/// Returns a share of 0..1 as a whole percentage.
pub(crate) fn share(value: f64) -> String {
    format!("{:.0}%", value.clamp(0.0, 1.0) * 100.0)
}

/// Returns a score of 0..1 as a percentage with one decimal.
pub(crate) fn percent(value: f64) -> String {
    format!("{:.1} %", value * 100.0)
}

/// Returns a clock-like duration: `0:07`, `12:31`, `3:05:59`, `2d 04:10`.
pub(crate) fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes}:{rest:02}"),
        (0, _) => format!("{hours}:{minutes:02}:{rest:02}"),
        _ => format!("{days}d {hours:02}:{minutes:02}"),
    }
}

/// Returns how long ago `then_ms` was at `now_ms`, or a dash for never.
pub(crate) fn ago(then_ms: i64, now_ms: i64) -> String {
    if then_ms == 0 {
        return "–".to_owned();
    }
    let seconds = (now_ms - then_ms).max(0) / 1000;
    match seconds {
        0..=119 => format!("{seconds}s ago"),
        120..=7199 => format!("{}m ago", seconds / 60),
        7200..=172_799 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

/// Returns Unix milliseconds as `2026-11-23 20:04:12` in UTC, or a dash for zero.
pub(crate) fn timestamp(unix_ms: i64) -> String {
    if unix_ms == 0 {
        return "–".to_owned();
    }
    utc(unix_ms).format("%Y-%m-%d %H:%M:%S").to_string()
}

/// Returns the time of day of `unix_ms` in UTC.
pub(crate) fn time_of_day(unix_ms: i64) -> String {
    timestamp(unix_ms).split_once(' ').map_or_else(|| "–".to_owned(), |(_, time)| time.to_owned())
}

/// Returns Unix milliseconds now.
pub(crate) fn now_ms() -> i64 {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since_epoch.map_or(0, |elapsed| elapsed.as_millis() as i64)
}

/// Returns a job's state as one lower-case word.
pub(crate) fn state_word(state: JobState) -> &'static str {
    match state {
        JobState::Unspecified => "unknown",
        JobState::Queued => "queued",
        JobState::Starting => "starting",
        JobState::Running => "running",
        JobState::Recovering => "recovering",
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
        JobState::Preempting => "preempting",
        JobState::Paused => "paused",
    }
}

/// Returns true when a job in this state changes no more.
pub(crate) fn is_final(state: JobState) -> bool {
    matches!(state, JobState::Succeeded | JobState::Failed | JobState::Cancelled)
}

/// Returns what a rank does as one lower-case word.
pub(crate) fn phase_word(phase: Phase) -> &'static str {
    phase.word().unwrap_or("–")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_keep_three_digits() {
        assert_eq!([rate(0.5), rate(93.42), rate(1203.6)], ["0.50", "93.4", "1,204"]);
        assert_eq!(rate(f64::NAN), "–");
        assert_eq!([share(0.426), percent(0.1384)], ["43%", "13.8 %"]);
    }

    #[test]
    fn durations_read_like_a_clock() {
        let text = |seconds| clock(Duration::from_secs(seconds));
        assert_eq!(
            [text(7), text(751), text(11_159), text(187_800)],
            ["0:07", "12:31", "3:05:59", "2d 04:10"]
        );
    }

    #[test]
    fn times_are_written_as_dates_in_utc() {
        assert_eq!(timestamp(1_795_464_252_000), "2026-11-23 20:04:12");
        assert_eq!([timestamp(0), time_of_day(0)], ["–", "–"]);
        assert_eq!(time_of_day(1_795_464_252_000), "20:04:12");
    }

    #[test]
    fn ages_get_coarser_with_time() {
        assert_eq!([ago(1_000, 91_000), ago(1_000, 7_000_000)], ["90s ago", "116m ago"]);
        assert_eq!([ago(0, 5), ago(10_000, 5_000)], ["–", "0s ago"]);
    }
}
