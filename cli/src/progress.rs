//! Progress of one job in the terminal: a two-line bar with state changes above it, or the lines of
//! `lines.rs` when nobody looks.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ringmaster_proto::v1::{Event, Job, JobState, Phase, StepMetrics};

use super::lines::{EVALUATING, Lines, eta, evaluates, loss_text, waiting_text};
use super::output;
use super::text::{clock, rate, share, time_of_day};
use ringmaster_words::thousands;

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
    Lines(Lines),
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
            Output::Lines(Lines::every(interval))
        };
        Self { output, shown_state: None, shown_event: 0 }
    }

    /// Returns a way to print lines above the bar while somebody else moves it.
    pub(crate) fn notices(&self) -> Notices {
        match &self.output {
            Output::Bar(bar) => Notices { bar: Some(bar.clone()) },
            Output::Lines(_) => Notices { bar: None },
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
            Output::Lines(lines) => {
                for line in lines.about(job, state_changed) {
                    write_line(&line);
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
        self.line(&event_line(
            event,
            matches!(self.output, Output::Bar(_)) && output::colours_on_stderr(),
        ));
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
            bar.set_message(doing(job, metrics).unwrap_or_else(|| second_line_text(metrics)));
        }
        _ => {
            bar.set_style(waiting_style());
            bar.set_message(waiting_text(job));
        }
    }
}

/// Returns what the ranks do when they do not train.
fn doing(job: &Job, metrics: &StepMetrics) -> Option<String> {
    if evaluates(job) {
        return Some(EVALUATING.to_owned());
    }
    // Checkpoints before the last one are written while training goes on.
    let is_last = metrics.step == metrics.total_steps;
    let after = job.ranks.iter().filter(|_| is_last).find_map(|rank| match rank.phase() {
        Phase::Save => Some("saving the last checkpoint …"),
        Phase::Done => Some("writing the report …"),
        _ => None,
    });
    after.map(str::to_owned)
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

fn closing_line(metrics: &StepMetrics) -> String {
    format!(
        "step {}/{} · loss {} · {} samples/s",
        thousands(metrics.step),
        thousands(metrics.total_steps),
        loss_text(metrics.loss),
        rate(metrics.samples_per_second)
    )
}

/// Returns an event as a line: time, mark, message.
fn event_line(event: &Event, colours: bool) -> String {
    let (mark, colour) = match event.kind.as_str() {
        "rank_lost" | "failed" | "node_lost" => ("✗", "31"),
        "recovering" | "cancelled" | "waiting" => ("↻", "33"),
        "running" | "recovered" | "succeeded" => ("✓", "32"),
        "checkpoint" => ("▪", "36"),
        "evaluation" => ("◆", "36"),
        "store" | "waits" | "data" => ("!", "33"),
        "checkpoint_failed" | "stopped_unsaved" | "unreachable" | "ring_lost" => ("✗", "31"),
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

fn write_line(text: &str) {
    // A closed standard error must not end a training job.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Mutex};

    use indicatif::TermLike;
    use ringmaster_proto::v1::RankInfo;

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

    /// The terminal said nothing of an evaluation until the run was over.
    #[test]
    fn an_evaluation_in_the_middle_of_a_run_is_shown_instead_of_the_speed() {
        let mut job = running(metrics());
        job.ranks = vec![RankInfo { phase: Phase::Eval.into(), ..RankInfo::default() }];
        let screen = Screen::draw(&job);
        assert!(screen.contains("123,456/987,654") && screen.contains(EVALUATING), "{screen}");
        job.ranks[0].phase = Phase::Save.into();
        let screen = Screen::draw(&job);
        assert!(screen.contains("samples/s") && !screen.contains("saving"), "{screen}");
        let metrics = job.metrics.as_mut().unwrap();
        metrics.step = metrics.total_steps;
        assert!(Screen::draw(&job).contains("saving the last checkpoint"));
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
