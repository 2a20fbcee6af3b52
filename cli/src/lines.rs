//! Progress of one job as lines, for output that is no terminal.

use std::time::{Duration, Instant};

use ringmaster_proto::v1::{Job, JobState, Phase, StepMetrics};

use super::text::{clock, share, state_word};
use ringmaster_words::thousands;

/// What ranks do in an evaluation.
pub(crate) const EVALUATING: &str = "evaluating on held-out images …";

/// One log line per interval, and what people want to know at once.
#[derive(Debug)]
pub(crate) struct Lines {
    interval: Duration,
    /// When a step was last shown, and which.
    last: Option<(Instant, u64)>,
    /// The evaluation that goes on has been said.
    evaluating: bool,
}

impl Lines {
    /// Shows a step once in `interval`.
    pub(crate) fn every(interval: Duration) -> Self {
        Self { interval, last: None, evaluating: false }
    }

    /// Returns what is to be written of a job as it is now.
    pub(crate) fn about(&mut self, job: &Job, state_changed: bool) -> Vec<String> {
        let mut lines = Vec::new();
        if state_changed && is_worth_a_line(job.state()) {
            lines.push(waiting_text(job));
        }
        let Some(metrics) = &job.metrics else { return lines };
        let is_last_step = metrics.step == metrics.total_steps;
        let due = self.last.is_none_or(|(at, step)| {
            step != metrics.step && (is_last_step || at.elapsed() >= self.interval)
        });
        if due {
            lines.push(log_line(metrics, job.world_size));
            self.last = Some((Instant::now(), metrics.step));
        }
        let evaluates = evaluates(job);
        if evaluates && !self.evaluating {
            lines.push(format!("step {}: {EVALUATING}", thousands(metrics.step)));
        }
        self.evaluating = evaluates;
        lines
    }
}

/// Whether the ranks of a running job evaluate.
pub(crate) fn evaluates(job: &Job) -> bool {
    job.state() == JobState::Running && job.ranks.iter().any(|rank| rank.phase() == Phase::Eval)
}

/// States in which nothing is printed for a while, and a person wants to know why.
fn is_worth_a_line(state: JobState) -> bool {
    matches!(
        state,
        JobState::Queued | JobState::Recovering | JobState::Preempting | JobState::Paused
    )
}

/// Returns a job's state and the reason for it.
pub(crate) fn waiting_text(job: &Job) -> String {
    if job.reason.is_empty() {
        state_word(job.state()).to_owned()
    } else {
        format!("{}: {}", state_word(job.state()), job.reason)
    }
}

/// Returns the line that stands for an interval when the output is not a terminal.
fn log_line(metrics: &StepMetrics, world_size: u32) -> String {
    let per_rank = metrics.samples_per_second / f64::from(world_size.max(1));
    let bias = metrics.logit_bias.map_or_else(String::new, |bias| format!(" logit_bias={bias:.3}"));
    format!(
        "step={}/{} samples={} loss={} logit_scale={:.3}{bias} lr={:.3e} grad_norm={:.3} \
         samples/s={:.1} samples/s/rank={per_rank:.1} data={} compute={} comm={} eta={}",
        metrics.step,
        metrics.total_steps,
        metrics.samples,
        loss_text(metrics.loss),
        metrics.logit_scale,
        metrics.lr,
        metrics.grad_norm,
        metrics.samples_per_second,
        share(metrics.data_share),
        share(metrics.compute_share),
        share(metrics.comm_share),
        eta(metrics).map_or_else(|| "–".to_owned(), clock)
    )
}

/// Returns the time left at the present speed; none before the speed is known.
pub(crate) fn eta(metrics: &StepMetrics) -> Option<Duration> {
    if metrics.step == 0 || metrics.samples_per_second <= 0.0 {
        return None;
    }
    let samples_per_step = metrics.samples as f64 / metrics.step as f64;
    let steps_left = metrics.total_steps.saturating_sub(metrics.step) as f64;
    Duration::try_from_secs_f64(steps_left * samples_per_step / metrics.samples_per_second).ok()
}

/// Returns a loss in at most 7 columns.
pub(crate) fn loss_text(loss: f64) -> String {
    match loss.abs() {
        size if size < 100.0 => format!("{loss:.4}"),
        size if size < 100_000.0 => format!("{loss:.1}"),
        _ => format!("{loss:.1e}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ringmaster_proto::v1::RankInfo;

    use super::*;

    fn metrics() -> StepMetrics {
        StepMetrics {
            step: 123_456,
            total_steps: 987_654,
            samples: 123_456 * 32_768,
            loss: 12.345_678,
            logit_scale: 14.28,
            logit_bias: Some(-10.0),
            lr: 1.0e-3,
            grad_norm: 0.5,
            samples_per_second: 123_456.0,
            data_share: 0.021,
            compute_share: 0.85,
            comm_share: 0.129,
            ..StepMetrics::default()
        }
    }

    #[test]
    fn the_log_line_has_speed_per_rank_and_the_three_shares() {
        let line = log_line(&metrics(), 2);
        for part in [
            "step=123456/987654",
            "loss=12.3457",
            "logit_bias=-10.000",
            "lr=1.000e-3",
            "samples/s/rank=61728.0",
            "comm=13%",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }

    #[test]
    fn eta_follows_the_present_speed_and_is_unknown_at_the_start() {
        let mut now = StepMetrics {
            step: 10,
            total_steps: 30,
            samples: 1000,
            samples_per_second: 50.0,
            ..StepMetrics::default()
        };
        assert_eq!(eta(&now), Some(Duration::from_secs(40)));
        now.samples_per_second = 0.0;
        assert_eq!(eta(&now), None);
    }

    /// A log of a run said nothing of an evaluation until the run was over.
    #[test]
    fn an_evaluation_is_said_once_when_it_begins() {
        let mut job = Job { metrics: Some(metrics()), world_size: 2, ..Job::default() };
        job.set_state(JobState::Running);
        let mut lines = Lines::every(Duration::from_secs(3600));
        assert!(lines.about(&job, true)[0].starts_with("step=123456/987654"));
        job.ranks = vec![RankInfo { phase: Phase::Eval.into(), ..RankInfo::default() }];
        let expected = format!("step 123,456: {EVALUATING}");
        assert_eq!(lines.about(&job, false), [expected.as_str()]);
        assert!(lines.about(&job, false).is_empty());
        job.ranks[0].phase = Phase::Data.into();
        assert!(lines.about(&job, false).is_empty());
        job.ranks[0].phase = Phase::Eval.into();
        assert_eq!(lines.about(&job, false), [expected]);
    }
}
