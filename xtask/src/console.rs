//! What is printed: results on standard output, everything else on standard error, so that
//! `eval "$(cargo xtask env)"` stays clean.

use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// All bars on the terminal: downloads run side by side.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Writes one line of a result to standard output.
pub fn out(line: &str) {
    // Nobody is left to tell when the reader of a pipe has gone.
    let _ = writeln!(io::stdout().lock(), "{line}");
}

/// Writes one line for people to standard error.
pub fn note(line: &str) {
    BARS.suspend(|| {
        let _ = writeln!(io::stderr().lock(), "{line}");
    });
}

/// Announces a longer piece of work.
pub fn step(line: &str) {
    note(&format!("==> {line}"));
}

/// Prints an error with its causes, one a line.
pub fn error(error: &anyhow::Error) {
    note(&format!("error: {error}"));
    for cause in error.chain().skip(1) {
        note(&format!("  caused by: {cause}"));
    }
}

/// A progress bar on a terminal; without one, a line when the work starts and one when it ends.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    label: String,
    started: Instant,
}

impl Progress {
    /// A bar that counts bytes.
    pub fn bytes(label: impl Into<String>, total: u64) -> Self {
        Self::new(label.into(), total, "{bytes:>10} / {total_bytes:10} {bytes_per_sec:>12}")
    }

    /// A bar that counts things.
    pub fn items(label: impl Into<String>, total: u64) -> Self {
        Self::new(label.into(), total, "{pos:>6} / {len:6}")
    }

    fn new(label: String, total: u64, counters: &str) -> Self {
        let bar = BARS.add(ProgressBar::new(total));
        let template = format!("    {{msg:44}} [{{bar:24}}] {counters}");
        let style = ProgressStyle::with_template(&template).expect("the template is a constant");
        bar.set_style(style.progress_chars("=> "));
        bar.set_message(label.clone());
        if io::stderr().is_terminal() {
            bar.enable_steady_tick(Duration::from_millis(200));
        } else {
            note(&format!("    {label} …"));
        }
        Self { bar, label, started: Instant::now() }
    }

    /// Sets the position; more than the total counts as the total.
    pub fn set(&self, position: u64) {
        self.bar.set_position(position.min(self.bar.length().unwrap_or(position)));
    }

    /// Moves the position by `delta`.
    pub fn add(&self, delta: u64) {
        self.bar.inc(delta);
    }

    /// Removes the bar and leaves one line with the time taken.
    pub fn done(self) {
        self.bar.finish_and_clear();
        note(&format!("    {} ({:.1} s)", self.label, self.started.elapsed().as_secs_f64()));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // An error is about to be printed: it should not share a line with the bar.
        self.bar.finish_and_clear();
    }
}

/// Lays `rows` out in columns as wide as their widest cell; the first row is the heading. The first
/// column is aligned left, the others right.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::from("   ");
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            if column == 0 {
                line.push_str(&format!(" {cell:<width$}"));
            } else {
                line.push_str(&format!("  {cell:>width$}"));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["stage", "time"], ["fmt", "1.0 s"], ["integration", "12.5 s"]]
            .map(|row| row.map(String::from).to_vec());
        let expected =
            "    stage          time\n    fmt           1.0 s\n    integration  12.5 s\n";
        assert_eq!(table(&rows), expected);
    }
}
