//! Progress of one job in the terminal: a two-line bar with state changes above it, or one log
//! line per interval when nobody looks.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ringmaster_proto::v1::{Event, Job, JobState, StepMetrics};

use super::text::{clock, rate, share, state_word, thousands, time_of_day};

/// Redraws per second.
const REFRESH_HZ: u8 = 8;
/// Events that would only repeat what the bar shows.
const QUIET_EVENTS: [&str; 1] = ["checkpoint_granted"];

/// Shows one job's progress on standard error.
#[derive(Debug)]
pub(crate) struct Progress {
    output: Output,
    shown_state: Option<JobState>,
    shown_event: u64,
}

#[derive(Debug)]
enum Output {
    Bar(ProgressBar),
    Lines { interval: Duration, last: Option<(Instant, u64)> },
}

impl Progress {
    /// Starts a bar when standard error is a terminal, otherwise log lines every `interval`.
    pub(crate) fn new(interval: Duration) -> Self {
        let output = if std::io::stderr().is_terminal() {
            let target = ProgressDrawTarget::stderr_with_hz(REFRESH_HZ);
            let bar = ProgressBar::with_draw_target(None, target).with_style(waiting_style());
            bar.enable_steady_tick(Duration::from_millis(125));
            Output::Bar(bar)
        } else {
            Output::Lines { interval, last: None }
        };
        Self { output, shown_state: None, shown_event: 0 }
    }

    /// Returns a way to print lines above the bar while somebody else moves it.
    pub(crate) fn notices(&self) -> Notices {
        match &self.output {
            Output::Bar(bar) => Notices { bar: Some(bar.clone()) },
            Output::Lines { .. } => Notices { bar: None },
        }
    }

    /// Prints a line above the bar.
    pub(crate) fn line(&self, text: &str) {
        self.notices().line(text);
    }

    /// Shows a job as it is now.
    pub(crate) fn job(&mut self, job: &Job) {
        let state = job.state();
        let state_changed = self.shown_state.replace(state) != Some(state);
        match &mut self.output {
            Output::Bar(bar) => draw(bar, job),
            Output::Lines { interval, last } => {
                if state_changed && is_worth_a_line(state) {
                    write_line(&waiting_text(job));
                }
                let Some(metrics) = &job.metrics else { return };
                let is_last_step = metrics.step == metrics.total_steps;
                let due = last.is_none_or(|(at, step)| {
                    step != metrics.step && (is_last_step || at.elapsed() >= *interval)
                });
                if due {
                    write_line(&log_line(metrics, job.world_size));
                    *last = Some((Instant::now(), metrics.step));
                }
            }
        }
    }

    /// Shows an event above the bar, once.
    pub(crate) fn event(&mut self, event: &Event) {
        if event.id <= self.shown_event || QUIET_EVENTS.contains(&event.kind.as_str()) {
            return;
        }
        self.shown_event = event.id;
        self.line(&event_line(event, matches!(self.output, Output::Bar(_)) && colours()));
    }

    /// Removes the bar; the last metrics stay as a line.
    pub(crate) fn finish(&mut self, job: Option<&Job>) {
        if let Output::Bar(bar) = &self.output {
            if let Some(metrics) = job.and_then(|job| job.metrics.as_ref()) {
                bar.println(format!("  {}", closing_line(metrics)));
            }
            bar.finish_and_clear();
        }
    }
}

/// Prints lines above a progress bar.
#[derive(Debug, Clone)]
pub(crate) struct Notices {
    bar: Option<ProgressBar>,
}

impl Notices {
    /// Prints a line above the bar, or by itself when there is none.
    pub(crate) fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => write_line(text),
        }
    }
}

fn draw(bar: &ProgressBar, job: &Job) {
    match (&job.metrics, job.state()) {
        (Some(metrics), JobState::Running) => {
            bar.set_style(running_style());
            bar.set_length(metrics.total_steps);
            bar.set_position(metrics.step);
            bar.set_prefix(first_line_text(metrics));
            let evaluating = job.ranks.iter().find_map(|rank| after_training(rank.phase()));
            bar.set_message(match evaluating {
                Some(doing) if metrics.step == metrics.total_steps => doing.to_owned(),
                _ => second_line_text(metrics),
            });
        }
        _ => {
            bar.set_style(waiting_style());
            bar.set_message(waiting_text(job));
        }
    }
}

fn after_training(phase: ringmaster_proto::v1::Phase) -> Option<&'static str> {
    match phase {
        ringmaster_proto::v1::Phase::Eval => Some("evaluating on held-out images …"),
        ringmaster_proto::v1::Phase::Save => Some("saving the last checkpoint …"),
        ringmaster_proto::v1::Phase::Done => Some("writing the report …"),
        _ => None,
    }
}

/// Returns what the bar's first line says beside the bar: at most 52 columns.
fn first_line_text(metrics: &StepMetrics) -> String {
    format!(
        "{}/{}  loss {}  ETA {}",
        thousands(metrics.step),
        thousands(metrics.total_steps),
        loss_text(metrics.loss),
        eta(metrics).map_or_else(|| "–".to_owned(), clock)
    )
}

fn second_line_text(metrics: &StepMetrics) -> String {
    let (data, compute, comm) = (metrics.data_share, metrics.compute_share, metrics.comm_share);
    let mut text = format!(
        "{} samples/s · data {} · compute {} · comm {} · lr {:.1e}",
        rate(metrics.samples_per_second),
        share(data),
        share(compute),
        share(comm),
        metrics.lr
    );
    if metrics.substituted > 0 {
        text.push_str(&format!(" · {} replaced", metrics.substituted));
    }
    text
}

/// States in which nothing is printed for a while, and a person wants to know why.
fn is_worth_a_line(state: JobState) -> bool {
    matches!(
        state,
        JobState::Queued | JobState::Recovering | JobState::Preempting | JobState::Paused
    )
}

fn waiting_text(job: &Job) -> String {
    if job.reason.is_empty() {
        state_word(job.state()).to_owned()
    } else {
        format!("{}: {}", state_word(job.state()), job.reason)
    }
}

fn closing_line(metrics: &StepMetrics) -> String {
    format!(
        "step {}/{} · loss {} · {} samples/s",
        thousands(metrics.step),
        thousands(metrics.total_steps),
        loss_text(metrics.loss),
        rate(metrics.samples_per_second)
    )
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

/// Returns an event as a line: time, mark, message.
fn event_line(event: &Event, colours: bool) -> String {
    let (mark, colour) = match event.kind.as_str() {
        "rank_lost" | "failed" | "node_lost" => ("✗", "31"),
        "recovering" | "cancelled" | "waiting" => ("↻", "33"),
        "running" | "recovered" | "succeeded" => ("✓", "32"),
        "checkpoint" => ("▪", "36"),
        _ => ("·", "2"),
    };
    let (time, message) = (time_of_day(event.at_ms), &event.message);
    let message = if message.is_empty() { &event.kind } else { message };
    if colours {
        format!("\u{1b}[2m{time}\u{1b}[0m \u{1b}[{colour}m{mark}\u{1b}[0m {message}")
    } else {
        format!("{time} {mark} {message}")
    }
}

/// Returns the time left at the present speed; none before the speed is known.
fn eta(metrics: &StepMetrics) -> Option<Duration> {
    if metrics.step == 0 || metrics.samples_per_second <= 0.0 {
        return None;
    }
    let samples_per_step = metrics.samples as f64 / metrics.step as f64;
    let steps_left = metrics.total_steps.saturating_sub(metrics.step) as f64;
    Duration::try_from_secs_f64(steps_left * samples_per_step / metrics.samples_per_second).ok()
}

/// Returns a loss in at most 7 columns.
fn loss_text(loss: f64) -> String {
    match loss.abs() {
        size if size < 100.0 => format!("{loss:.4}"),
        size if size < 100_000.0 => format!("{loss:.1}"),
        _ => format!("{loss:.1e}"),
    }
}

fn running_style() -> ProgressStyle {
    ProgressStyle::with_template("{bar:26.cyan/238} {percent:>3}%  {prefix}\n{msg:.dim}")
        .expect("the template is a constant that indicatif accepts; a test draws it")
        .progress_chars("━╸─")
}

fn waiting_style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner:.cyan} {wide_msg}")
        .expect("the template is a constant that indicatif accepts; a test draws it")
        .tick_strings(&["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏", " "])
}

fn colours() -> bool {
    std::env::var_os("NO_COLOR").is_none()
}

fn write_line(text: &str) {
    // A closed standard error must not end a training job.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Mutex};

    use indicatif::TermLike;

    use super::*;

    /// An 80-column terminal that remembers what was drawn on it.
    #[derive(Debug, Clone, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl Screen {
        fn draw(job: &Job) -> String {
            let screen = Self::default();
            let target = ProgressDrawTarget::term_like(Box::new(screen.clone()));
            let bar = ProgressBar::with_draw_target(None, target);
            draw(&bar, job);
            bar.force_draw();
            // The first draw shows the bar before its style was set; the last one counts.
            let drawn = without_colours(&screen.0.lock().unwrap());
            drawn.rsplit('\u{c}').next().unwrap_or_default().to_owned()
        }

        fn push(&self, text: &str) -> std::io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }
    }

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            80
        }
        fn move_cursor_up(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> std::io::Result<()> {
            self.push(text)?;
            self.push("\n")
        }
        fn write_str(&self, text: &str) -> std::io::Result<()> {
            self.push(text)
        }
        fn clear_line(&self) -> std::io::Result<()> {
            self.push("\u{c}")
        }
        fn flush(&self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn without_colours(text: &str) -> String {
        let mut parts = text.split('\u{1b}');
        let mut plain = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            plain.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
        }
        plain
    }

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
            generation: None,
            substituted: 12_345,
            ..StepMetrics::default()
        }
    }

    fn running(metrics: StepMetrics) -> Job {
        let mut job = Job { metrics: Some(metrics), world_size: 2, ..Job::default() };
        job.set_state(JobState::Running);
        job
    }

    #[test]
    fn the_bar_of_a_huge_run_fits_80_columns() {
        let screen = Screen::draw(&running(metrics()));
        assert!(screen.contains("123,456/987,654  loss 12.3457  ETA 2d 15:"), "{screen}");
        assert!(screen.contains("data 2% · compute 85% · comm 13%"), "{screen}");
        // Bar, gaps and percentage take 33 columns; the second line is cut to the width.
        assert!(33 + first_line_text(&metrics()).chars().count() <= 80, "{screen}");
    }

    #[test]
    fn a_recovering_job_shows_why_instead_of_the_bar() {
        let mut job = running(metrics());
        job.set_state(JobState::Recovering);
        job.reason = "rank 1 was killed by signal 9".to_owned();
        let screen = Screen::draw(&job);
        assert!(screen.contains("recovering: rank 1 was killed"), "{screen}");
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

    #[test]
    fn events_carry_time_and_a_mark_without_colours_in_files() {
        let event = Event {
            id: 3,
            at_ms: 1_795_464_252_000,
            kind: "rank_lost".to_owned(),
            message: "rank 1 was killed by signal 9".to_owned(),
            ..Event::default()
        };
        assert_eq!(event_line(&event, false), "20:04:12 ✗ rank 1 was killed by signal 9");
    }
}
