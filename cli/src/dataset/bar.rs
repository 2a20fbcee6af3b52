//! How far work on samples is: a bar in a terminal, a line now and then elsewhere.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use ringmaster_dataset::meter::Reading;
use ringmaster_dataset::{Error as DatasetError, Meter};
use ringmaster_words::thousands;

use crate::error::Error;
use crate::output;
use crate::text::{clock, rate};

/// Time between two looks at the meter.
const REFRESH: Duration = Duration::from_millis(100);
/// Time between two lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Does `work` on a thread of its own, showing how far it is; Ctrl-C lets it take back what it began and end. A second
/// one ends the process.
pub(super) async fn watch<T: Send + 'static>(
    work: impl FnOnce(&Meter) -> Result<T, DatasetError> + Send + 'static,
) -> Result<T, Error> {
    let meter = Arc::new(Meter::default());
    let mut done = start(Arc::clone(&meter), work)?;
    let mut shown = Shown::new();
    let mut tick = tokio::time::interval(REFRESH);
    let mut stop = std::pin::pin!(tokio::signal::ctrl_c());
    let mut stopping = false;
    let result = loop {
        tokio::select! {
            result = &mut done => break result,
            _ = tick.tick() => shown.update(&meter.read()),
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
    let ended = |_| DatasetError::Thread { reason: "it ended early".to_owned() };
    Ok(result.map_err(ended)??)
}

type Done<T> = tokio::sync::oneshot::Receiver<Result<T, DatasetError>>;

fn start<T: Send + 'static>(
    meter: Arc<Meter>,
    work: impl FnOnce(&Meter) -> Result<T, DatasetError> + Send + 'static,
) -> Result<Done<T>, Error> {
    let (send, receive) = tokio::sync::oneshot::channel();
    let run = move || {
        // Nobody waits any more when the command was interrupted twice.
        let _ = send.send(work(&meter));
    };
    std::thread::Builder::new()
        .name("dataset".to_owned())
        .spawn(run)
        .map_err(|source| Error::io("start a thread", source))?;
    Ok(receive)
}

enum Shown {
    Bar { bar: ProgressBar, total: u64 },
    Lines { began: Instant, last: Instant, doing: String },
}

impl Shown {
    fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            let now = Instant::now();
            return Self::Lines { began: now, last: now, doing: String::new() };
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
        Self::Bar { bar: bar.with_style(waiting_style()), total: 0 }
    }

    fn update(&mut self, reading: &Reading) {
        match self {
            Self::Bar { bar, total } => draw(bar, total, reading),
            Self::Lines { began, last, doing } => {
                if *doing != reading.doing {
                    doing.clone_from(&reading.doing);
                    *began = Instant::now();
                }
                if last.elapsed() >= LINE_INTERVAL {
                    *last = Instant::now();
                    output::error_line(&line(reading, began.elapsed()));
                }
            }
        }
    }

    fn note(&self, text: &str) {
        match self {
            Self::Bar { bar, .. } => bar.println(text),
            Self::Lines { .. } => output::error_line(text),
        }
    }

    fn finish(&self) {
        if let Self::Bar { bar, .. } = self {
            bar.finish_and_clear();
        }
    }
}

fn draw(bar: &ProgressBar, total: &mut u64, reading: &Reading) {
    if reading.total != *total {
        *total = reading.total;
        bar.reset();
        bar.set_style(if *total == 0 { waiting_style() } else { running_style() });
        bar.set_length(*total);
    }
    if *total == 0 {
        bar.tick();
    } else {
        bar.set_position(reading.done.min(*total));
    }
    let bytes = BinaryBytes(reading.bytes);
    bar.set_message(match (reading.total, reading.bad) {
        (0, _) => reading.doing.clone(),
        (_, 0) => format!("{} · {bytes}", reading.doing),
        (_, bad) => format!("{} · {bytes} · {} corrupt", reading.doing, thousands(bad)),
    });
}

fn line(reading: &Reading, elapsed: Duration) -> String {
    let Reading { doing, done, total, .. } = reading;
    if *total == 0 {
        return format!("{doing}, for {}", clock(elapsed));
    }
    let speed = *done as f64 / elapsed.as_secs_f64().max(1e-3);
    let left = total.saturating_sub(*done) as f64 / speed;
    let eta = Duration::try_from_secs_f64(left).map_or_else(|_| "–".to_owned(), clock);
    let (done, total) = (thousands(*done), thousands(*total));
    format!("{doing}: {done} of {total} samples, {}/s, ETA {eta}", rate(speed))
}

fn running_style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{bar:26.cyan/238} {percent:>3}%  {human_pos}/{human_len}  {per_sec}  ETA {eta}\n{msg:.dim}",
    )
    .expect("the template is a constant that indicatif accepts; a test draws it")
    .progress_chars("━╸─")
}

fn waiting_style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner:.cyan} {wide_msg}")
        .expect("the template is a constant that indicatif accepts; a test draws it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(done: u64, total: u64) -> Reading {
        Reading { doing: "verifying".to_owned(), done, total, bytes: 7 << 20, bad: 2 }
    }

    #[test]
    fn a_line_has_counts_speed_and_the_time_left() {
        let text = line(&reading(1000, 4000), Duration::from_secs(2));
        assert_eq!(text, "verifying: 1,000 of 4,000 samples, 500/s, ETA 0:06");
        assert!(line(&reading(0, 10), Duration::ZERO).ends_with("ETA –"));
        assert_eq!(line(&reading(0, 0), Duration::from_secs(5)), "verifying, for 0:05");
    }

    #[test]
    fn the_bar_can_be_drawn_with_and_without_a_number() {
        let (bar, mut total) = (ProgressBar::hidden(), 0);
        for (done, of) in [(0, 0), (3, 10), (10, 10), (0, 0), (1, 5)] {
            draw(&bar, &mut total, &reading(done, of));
            assert_eq!(total, of);
        }
        assert_eq!((bar.position(), bar.length()), (1, Some(5)));
        assert_eq!(bar.message(), "verifying · 7.00 MiB · 2 corrupt");
    }
}
