//! How far something that moves bytes is: a bar in a terminal, a line now and then elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ringmaster_checkpoint::browse::Meter;

use super::bytes;
use crate::error::Error;
use crate::output;
use crate::text::clock;

/// Time between two looks at the meter.
const REFRESH: Duration = Duration::from_millis(100);
/// Time between two lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Waits for `work`, showing how far it is; Ctrl-C lets it take back what it began and end. A second
/// one ends the process.
pub(super) async fn watch<T>(
    doing: &str,
    total: u64,
    meter: &Meter,
    work: impl Future<Output = Result<T, ringmaster_checkpoint::Error>>,
) -> Result<T, Error> {
    let began = Instant::now();
    let mut shown = Shown::new(doing, total);
    let mut tick = tokio::time::interval(REFRESH);
    let mut stop = std::pin::pin!(tokio::signal::ctrl_c());
    let mut stopping = false;
    let mut work = std::pin::pin!(work);
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            _ = tick.tick() => shown.update(meter.bytes(), total, began.elapsed()),
            _ = &mut stop => {
                if stopping {
                    std::process::exit(i32::from(crate::error::exit_code::CANCELLED));
                }
                stopping = true;
                meter.cancel();
                shown.note("stopping; Ctrl-C again to leave at once");
                stop.set(tokio::signal::ctrl_c());
            }
        }
    };
    shown.finish();
    Ok(result?)
}

/// Returns how much was done in which time, for people.
pub(super) fn speed(moved: u64, took: Duration) -> String {
    let seconds = took.as_secs_f64().max(1e-3);
    let rate = (moved as f64 / seconds) as u64;
    format!("{} in {seconds:.1} s, {}/s", bytes(moved), bytes(rate))
}

enum Shown {
    Bar(ProgressBar),
    Lines { doing: String, last: Instant },
}

impl Shown {
    fn new(doing: &str, total: u64) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines { doing: doing.to_owned(), last: Instant::now() };
        }
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(8));
        Self::Bar(bar.with_style(style()).with_prefix(doing.to_owned()))
    }

    fn update(&mut self, done: u64, total: u64, elapsed: Duration) {
        match self {
            Self::Bar(bar) => bar.set_position(done.min(total)),
            Self::Lines { doing, last } => {
                if last.elapsed() >= LINE_INTERVAL {
                    *last = Instant::now();
                    output::error_line(&line(doing, done, total, elapsed));
                }
            }
        }
    }

    fn note(&self, text: &str) {
        match self {
            Self::Bar(bar) => bar.println(text),
            Self::Lines { .. } => output::error_line(text),
        }
    }

    fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn line(doing: &str, done: u64, total: u64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    let rate = done as f64 / seconds.max(1e-3);
    let left = (total.saturating_sub(done)) as f64 / rate;
    let eta = Duration::try_from_secs_f64(left).map_or_else(|_| "–".to_owned(), clock);
    format!("{doing} {} of {}, {}/s, ETA {eta}", bytes(done), bytes(total), bytes(rate as u64))
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{bar:26.cyan/238} {percent:>3}%  {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  ETA {eta}\n{prefix:.dim}",
    )
    .expect("the template is a constant that indicatif accepts; a test draws it")
    .progress_chars("━╸─")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_amounts_speed_and_the_time_left() {
        let text = line("verifying", 1 << 30, 3 << 30, Duration::from_secs(4));
        assert_eq!(text, "verifying 1.00 GiB of 3.00 GiB, 256.00 MiB/s, ETA 0:08");
        let text = line("verifying", 0, 3 << 30, Duration::ZERO);
        assert!(text.ends_with("ETA –"), "{text}");
    }

    #[test]
    fn the_bar_can_be_drawn() {
        let bar = ProgressBar::hidden().with_style(style());
        bar.set_position(3);
    }
}
